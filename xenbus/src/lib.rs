//! Xenstore client, device state machine and shared rings of Xen PV devices.
#![no_std]
