//! The bare-metal Xen PV guest and the programs that run in it. Empty on every target but the bare one.
#![no_std]
#![cfg(target_os = "none")]
