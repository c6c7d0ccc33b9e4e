//! What the crate promises: the protocol by itself, and each end against one that is written here by hand and does what it may
//! not, and both with one another, on the mock hypervisor.
#![cfg(not(target_os = "none"))]

mod back;
mod front;
mod life;
mod protocol;
mod rig;
