//! What the disks claim.
#![cfg(target_os = "linux")]

mod common;
mod device;
mod faulty;
mod file;
mod served;
mod workers;
