//! A mock hypervisor: domains, grants, events and xenstore in one process.
#![cfg_attr(target_os = "none", no_std)]
#![cfg(not(target_os = "none"))]
