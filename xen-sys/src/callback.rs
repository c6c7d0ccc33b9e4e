//! `callback.h`.
