//! Scenarios that run on every bed.
#![no_std]
