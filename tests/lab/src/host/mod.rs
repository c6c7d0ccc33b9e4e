//! The command on the developer's machine.

mod apt;
mod bench;
mod block;
mod cli;
mod conformance;
mod cpio;
mod crash;
mod demo;
mod fast;
mod guest;
mod image;
mod linux;
mod process;
mod qemu;
mod save;
mod setup;
mod ways;

pub(crate) use cli::main;
