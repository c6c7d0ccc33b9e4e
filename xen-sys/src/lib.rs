//! The Xen public ABI as types and constants, one file per public header.
#![no_std]
