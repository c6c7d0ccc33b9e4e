//! Checks every type and constant of xen-sys against the C headers of Xen.
#![cfg_attr(target_os = "none", no_std)]
#![cfg(not(target_os = "none"))]
