//! Our front end of a disk against a back end that is played by hand: what goes over the wire, and what comes of the answers.
#![cfg(not(target_os = "none"))]

#[path = "../common/mod.rs"]
mod common;

mod bounce;
mod indirect;
mod player;
mod replay;
mod wire;

#[global_allocator]
static ALLOCATOR: mock::alloc::Counting = mock::alloc::Counting;
