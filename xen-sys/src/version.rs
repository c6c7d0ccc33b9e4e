//! `version.h`.
