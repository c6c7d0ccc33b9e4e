//! Our front end of a disk against a back end that does what it may not do.
#![cfg(not(target_os = "none"))]

mod answers;
#[path = "../common/mod.rs"]
mod common;
mod life;

use common::{Bed, FrontOwner, RawBack};
use xenbus::device::State;

fn connected(seed: u64) -> (Bed, FrontOwner, RawBack) {
    let bed = Bed::new(seed);
    let mut front = FrontOwner::new(&bed);
    let back = RawBack::connect(&bed, &mut front);
    (bed, front, back)
}

/// The back end lets go of everything, and the front end ends: nothing may be left.
fn ends(bed: &Bed, front: &mut FrontOwner, back: RawBack) {
    drop(back);
    bed.back_says("state", State::Closed.number()).unwrap();
    front.follow(bed);
    assert!(front.closed, "{:?}", front.errors);
    assert_eq!(bed.front_state().as_deref(), Some("6"));
    front.check_each_once();
}
