//! Our back end of a disk against a front end that does what it may not do.
#![cfg(not(target_os = "none"))]

#[path = "../common/mod.rs"]
mod common;
mod lies;
mod life;
mod requests;

use common::raw_front::{Granted, RawFront, raw_request};
use common::{BackOwner, Bed, DEPTH, Lots, Slow};
use hypercall::GrantRef;
use xbd::back::Config;
use xen_sys::io::blkif::{
    BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST, BLKIF_RSP_EOPNOTSUPP, BLKIF_RSP_ERROR, BLKIF_RSP_OKAY, BlkifOp, BlkifRequest,
    BlkifRequestIndirect,
};
use xen_sys::reinterpret;
use xenbus::device::State;

const SECTORS: u64 = 1024;

fn connected(seed: u64, disk: &Slow) -> (Bed, BackOwner<Slow>, RawFront) {
    connected_with(seed, disk, Config::default())
}

/// The same; the pages of all requests are mapped, be they ever so small.
fn mapping(seed: u64, disk: &Slow) -> (Bed, BackOwner<Slow>, RawFront) {
    connected_with(seed, disk, Config { copy_limit: 0, ..Config::default() })
}

fn connected_with(seed: u64, disk: &Slow, config: Config) -> (Bed, BackOwner<Slow>, RawFront) {
    let bed = Bed::new(seed);
    let mut back = BackOwner::with(&bed, disk.clone(), config).unwrap();
    back.follow(&bed);
    assert_eq!(bed.back_state().as_deref(), Some("2"));
    let front = RawFront::offer(&bed);
    back.follow(&bed);
    assert_eq!((back.connections, bed.back_state().as_deref()), (1, Some("4")), "{:?}", back.errors);
    (bed, back, front)
}

/// The front end goes as it should, and nothing is left.
fn ends(bed: &Bed, back: &mut BackOwner<Slow>, front: RawFront) {
    bed.front_says("state", State::Closing.number()).unwrap();
    back.follow(bed);
    assert_eq!(bed.back_state().as_deref(), Some("5"));
    bed.front_says("state", State::Closed.number()).unwrap();
    back.follow(bed);
    assert_eq!(bed.back_state().as_deref(), Some("6"));
    assert_eq!(back.disconnections, back.connections);
    drop(front);
}

/// Sends one request and returns the status of its one response.
fn one(bed: &Bed, back: &mut BackOwner<Slow>, front: &mut RawFront, request: &BlkifRequest) -> i16 {
    front.send(&[*request]);
    back.follow(bed);
    let responses = front.responses();
    assert_eq!(responses.len(), 1, "{request:?}");
    assert_eq!((responses[0].id, responses[0].operation), (request.id, answered_as(request)));
    responses[0].status
}

/// Returns the operation that an answer names: of an indirect request that is the inner one.
fn answered_as(request: &BlkifRequest) -> BlkifOp {
    if request.operation == BlkifOp::INDIRECT { BlkifOp(request.nr_segments) } else { request.operation }
}

/// Requests at full depth, all of which must work.
fn honest_at_full_depth(bed: &Bed, back: &mut BackOwner<Slow>, front: &mut RawFront, disk: &Slow) {
    let pages: Vec<_> = (0..DEPTH).map(|_| Granted::new(bed)).collect();
    let mut requests = Vec::new();
    for (id, page) in (0..).zip(&pages) {
        page.fill(id as u8 + 1);
        requests.push(raw_request(BlkifOp::WRITE, id, 8 * id, &[page.gref()]));
    }
    disk.hold(true);
    front.send(&requests);
    back.follow(bed);
    assert_eq!(disk.0.borrow().jobs(), DEPTH as usize);
    disk.hold(false);
    back.poll();
    let responses = front.responses();
    assert_eq!(responses.len(), DEPTH as usize);
    assert!(responses.iter().all(|response| response.status == BLKIF_RSP_OKAY), "{responses:?}");
    let mapped = bed.machine.usage().0[&bed.back.id].mappings.len();
    assert_eq!(mapped, 1, "the ring, and no page of a request that was answered");
    for id in 0..DEPTH as usize {
        assert_eq!(disk.0.borrow().bytes[id * 4096..][..4096], [id as u8 + 1; 4096]);
    }
}

/// Returns an indirect one: without segments, with more than can be, of an operation that can't be inside, or with its segments nowhere.
fn bad_indirect(lots: &mut Lots, good: GrantRef, id: u64) -> BlkifRequest {
    let (inner, segments, gref) = match lots.below(4) {
        0 => (BlkifOp::READ, 0, good),
        1 => (BlkifOp::WRITE, 257 + lots.below(65_000) as u16, good),
        2 => (BlkifOp(2 + lots.below(254) as u8), 3, good),
        _ => (BlkifOp::READ, 3, GrantRef(300 + lots.below(1 << 20) as u32)),
    };
    let operation = BlkifOp::INDIRECT;
    let indirect_grefs = [gref; BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST];
    reinterpret(&BlkifRequestIndirect {
        operation,
        indirect_op: inner,
        nr_segments: segments,
        id,
        indirect_grefs,
        ..Default::default()
    })
}

/// Returns a request with something wrong in it, drawn by lot, and the status that it should get.
fn bad_request(lots: &mut Lots, good: GrantRef, id: u64) -> (BlkifRequest, i16) {
    let op = [BlkifOp::READ, BlkifOp::WRITE][lots.below(2) as usize];
    let mut request = raw_request(op, id, 0, &[good; 3]);
    match lots.below(8) {
        0 => request.nr_segments = 0,
        1 => request.nr_segments = 12 + lots.below(244) as u8,
        2 => request.seg[lots.below(3) as usize].last_sect = 8 + lots.below(248) as u8,
        3 => request.seg[lots.below(3) as usize].first_sect = 8 + lots.below(248) as u8,
        4 => request.sector_number = SECTORS - 23 + lots.below(u64::MAX / 2),
        5 => request.seg[lots.below(3) as usize].gref = GrantRef(300 + lots.below(1 << 20) as u32),
        6 => request = BlkifRequest { operation: BlkifOp::FLUSH_DISKCACHE, ..request },
        // No operation; a discard, which is not offered; and an indirect request with something wrong in it.
        _ => match BlkifOp(4 + lots.below(252) as u8) {
            BlkifOp::INDIRECT => request = bad_indirect(lots, good, id),
            operation => {
                request.operation = operation;
                return (request, BLKIF_RSP_EOPNOTSUPP);
            }
        },
    }
    (request, BLKIF_RSP_ERROR)
}
