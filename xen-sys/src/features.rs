//! `features.h`.
