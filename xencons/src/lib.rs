//! Xen PV console: front end and back end.
#![no_std]
