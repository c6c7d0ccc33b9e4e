//! `hvm/params.h`.
