//! `io/pciif.h`.
