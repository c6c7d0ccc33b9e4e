//! Xen PV block device: front end and back end.
#![no_std]
