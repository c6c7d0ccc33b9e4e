//! Hypercalls, event channels, grant tables and the two platform traits of a Xen PV guest.
#![no_std]
