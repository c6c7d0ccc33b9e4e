//! Our back end of a disk against a front end that does what it may not do.
#![cfg(not(target_os = "none"))]

mod common;

use std::collections::BTreeMap;

use common::raw_front::{Granted, RawFront, raw_request};
use common::{BackOwner, Bed, DEPTH, FrontOwner, Lots, Slow, follow_both};
use hypercall::GrantRef;
use hypercall::Platform;
use hypercall::grant::{Access, Grants};
use hypercall::mem::Pages;
use mock::{Fault, Kind};
use xbd::back::Config;
use xbd::protocol::Operation;
use xen_sys::grant_table::{GNTST_general_error, GNTTABOP_unmap_grant_ref};
use xen_sys::io::blkif::{BLKIF_RSP_EOPNOTSUPP, BLKIF_RSP_ERROR, BLKIF_RSP_OKAY, BlkifOp, BlkifRequest};
use xenbus::device::State;
use xenbus::store::{Store, Tx};

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

#[test]
fn sectors_beyond_the_end_are_refused_and_up_to_it_are_served() {
    let disk = Slow::new(SECTORS as usize);
    let (bed, mut back, mut front) = connected(1, &disk);
    let page = Granted::new(&bed);
    for (sector, expected) in [
        (0, BLKIF_RSP_OKAY),
        (SECTORS - 8, BLKIF_RSP_OKAY),
        (SECTORS - 7, BLKIF_RSP_ERROR),
        (SECTORS, BLKIF_RSP_ERROR),
        (1 << 32, BLKIF_RSP_ERROR),
        (1 << 55, BLKIF_RSP_ERROR),
        (u64::MAX - 8, BLKIF_RSP_ERROR),
        (u64::MAX - 7, BLKIF_RSP_ERROR),
        (u64::MAX, BLKIF_RSP_ERROR),
    ] {
        for op in [BlkifOp::READ, BlkifOp::WRITE] {
            let request = raw_request(op, sector, sector, &[page.gref()]);
            assert_eq!(one(&bed, &mut back, &mut front, &request), expected, "{op:?} {sector}");
        }
    }
    assert_eq!(disk.0.borrow().started, 4);
    assert_eq!(back.counters().refused, 14);
    drop(page);
    ends(&bed, &mut back, front);
    bed.check_quiet();
}

#[test]
fn read_only_disk_takes_no_write_of_any_kind() {
    let disk = Slow::new(SECTORS as usize);
    disk.0.borrow_mut().read_only = true;
    let (bed, mut back, mut front) = connected(2, &disk);
    let before = disk.0.borrow().bytes.clone();
    let page = Granted::new(&bed);
    for op in (0..=u8::MAX).map(BlkifOp) {
        let grefs = [page.gref()];
        let request = raw_request(op, 7, 0, if op == BlkifOp::FLUSH_DISKCACHE { &[] } else { &grefs });
        let expected = match op {
            BlkifOp::READ | BlkifOp::FLUSH_DISKCACHE => BLKIF_RSP_OKAY,
            BlkifOp::WRITE | BlkifOp::WRITE_BARRIER | BlkifOp::DISCARD | BlkifOp::INDIRECT => BLKIF_RSP_ERROR,
            _ => BLKIF_RSP_EOPNOTSUPP,
        };
        assert_eq!(one(&bed, &mut back, &mut front, &request), expected, "{op:?}");
    }
    assert_eq!(disk.0.borrow().bytes, before);
    drop(page);
    ends(&bed, &mut back, front);
    bed.check_quiet();
}

#[test]
fn toolstack_makes_a_disk_read_only_whatever_the_store_says() {
    let disk = Slow::new(SECTORS as usize);
    let bed = Bed::new(3);
    bed.back_says("mode", "r").unwrap();
    let mut back = BackOwner::new(&bed, disk.clone());
    back.follow(&bed);
    let mut front = RawFront::offer(&bed);
    back.follow(&bed);
    let page = Granted::new(&bed);
    let write = raw_request(BlkifOp::WRITE, 7, 0, &[page.gref()]);
    assert_eq!(one(&bed, &mut back, &mut front, &write), BLKIF_RSP_ERROR);
    assert_eq!(disk.0.borrow().started, 0);
    drop(page);
    ends(&bed, &mut back, front);
    bed.check_quiet();
}

#[test]
fn grants_that_are_not_there_or_not_ours_or_read_only_are_refused_and_nothing_stays_mapped() {
    let disk = Slow::new(SECTORS as usize);
    let (bed, mut back, mut front) = connected(4, &disk);
    let good: Vec<_> = (0..11).map(|_| Granted::new(&bed)).collect();
    // Granted to another domain, and for reading only.
    let page = Pages::new(&bed.front.platform, 1).unwrap();
    let mut refs = [GrantRef(0); 2];
    bed.front.grants.reserve(&mut refs).unwrap();
    // SAFETY: just reserved; the page is seen through atomics only, and freed after the grants are ended.
    unsafe {
        bed.front.grants.share(refs[0], bed.toolstack.id, page.gfn(0), Access::ReadWrite);
        bed.front.grants.share(refs[1], bed.back.id, page.gfn(0), Access::ReadOnly);
    }
    let maps = |bed: &Bed| bed.machine.usage().0[&bed.back.id].mappings.len();
    let base = maps(&bed);
    let bad = [GrantRef(300), GrantRef(511), GrantRef(512), GrantRef(u32::MAX), refs[0]];
    for bad in bad {
        for place in 0..11 {
            let mut grefs: Vec<_> = good.iter().map(Granted::gref).collect();
            grefs[place] = bad;
            let request = raw_request(BlkifOp::READ, 1, 0, &grefs);
            assert_eq!(one(&bed, &mut back, &mut front, &request), BLKIF_RSP_ERROR, "{bad:?} {place}");
            assert_eq!(maps(&bed), base);
        }
    }
    // For reading only: good enough for a write of the disk, not for a read.
    let read = raw_request(BlkifOp::READ, 1, 0, &[refs[1]]);
    assert_eq!(one(&bed, &mut back, &mut front, &read), BLKIF_RSP_ERROR);
    let write = raw_request(BlkifOp::WRITE, 1, 0, &[refs[1]]);
    assert_eq!(one(&bed, &mut back, &mut front, &write), BLKIF_RSP_OKAY);
    // The same page eleven times is the front end's own business.
    let same = raw_request(BlkifOp::WRITE, 1, 0, &[good[0].gref(); 11]);
    assert_eq!(one(&bed, &mut back, &mut front, &same), BLKIF_RSP_OKAY);
    assert_eq!((back.counters().unmappable, back.counters().copy_failed), (5 * 11, 1));
    honest_at_full_depth(&bed, &mut back, &mut front, &disk);
    drop(good);
    for gref in refs {
        bed.front.grants.end(gref).unwrap();
    }
    // SAFETY: reserved above, and ended.
    unsafe { bed.front.grants.release(&refs) };
    drop(page);
    ends(&bed, &mut back, front);
    bed.check_quiet();
}

#[test]
fn data_goes_where_the_segments_say_and_nowhere_else() {
    let disk = Slow::new(SECTORS as usize);
    let (bed, mut back, mut front) = connected(5, &disk);
    let page = Granted::new(&bed);
    for first in 0..8u8 {
        for last in first..8 {
            page.fill(0xee);
            let mut request = raw_request(BlkifOp::READ, 1, 16, &[page.gref()]);
            (request.seg[0].first_sect, request.seg[0].last_sect) = (first, last);
            assert_eq!(one(&bed, &mut back, &mut front, &request), BLKIF_RSP_OKAY);
            let (start, end) = (usize::from(first) * 512, (usize::from(last) + 1) * 512);
            let mut expected = [0xee; 4096];
            expected[start..end].copy_from_slice(&disk.0.borrow().bytes[16 * 512..][..end - start]);
            assert_eq!(page.bytes(), expected, "{first} {last}");
        }
    }
    drop(page);
    ends(&bed, &mut back, front);
    bed.check_quiet();
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
        // No operation; a discard, which is not offered; and an indirect request, which has no segments where it should have them.
        _ => match BlkifOp(4 + lots.below(252) as u8) {
            BlkifOp::INDIRECT => {
                request.operation = BlkifOp::INDIRECT;
                request.nr_segments = lots.below(256) as u8;
            }
            operation => {
                request.operation = operation;
                return (request, BLKIF_RSP_EOPNOTSUPP);
            }
        },
    }
    (request, BLKIF_RSP_ERROR)
}

#[test]
fn million_bad_requests_get_one_answer_each_and_no_line_of_log_and_nothing_sticks() {
    let count = if cfg!(miri) { 64 } else { 1_000_000 };
    let disk = Slow::new(SECTORS as usize);
    let (bed, mut back, mut front) = connected(6, &disk);
    let page = Granted::new(&bed);
    let mut lots = Lots(6);
    let mut id = 0;
    while id < count {
        let mut expected = BTreeMap::new();
        let mut batch = Vec::new();
        for _ in 0..=lots.below(u64::from(DEPTH)) {
            let (request, status) = bad_request(&mut lots, page.gref(), id);
            expected.insert(id, (answered_as(&request), status));
            batch.push(request);
            id += 1;
        }
        front.send(&batch);
        // Now and then: it takes its time.
        let watched = lots.below(256) == 0;
        bed.machine.record(if watched { 1000 } else { 0 });
        back.follow(&bed);
        if watched {
            let trace = bed.machine.trace();
            let lines: Vec<_> =
                trace.entries.iter().filter(|entry| matches!(entry.what, mock::What::Log(..))).collect();
            assert!(lines.is_empty() && !trace.entries.is_empty(), "{lines:?}");
        }
        for response in front.responses() {
            let expected = expected.remove(&response.id).expect("one answer for a request");
            assert_eq!((response.operation, response.status), expected);
        }
        assert!(expected.is_empty(), "no answer for {expected:?}");
    }
    assert_eq!(disk.0.borrow().started, 0, "none reached the disk");
    let counters = back.counters();
    assert_eq!(counters.refused + counters.unmappable, id);
    assert_eq!(back.errors, [""; 0]);
    honest_at_full_depth(&bed, &mut back, &mut front, &disk);
    drop(page);
    ends(&bed, &mut back, front);
    bed.check_quiet();
}

#[test]
fn producer_beyond_the_ring_closes_the_device_once_and_nothing_leaks() {
    for taken in [0, 3u32] {
        for claim in [DEPTH + 1, 2 * DEPTH, 1 << 31, u32::MAX - 1, u32::MAX] {
            let disk = Slow::new(SECTORS as usize);
            let (bed, mut back, mut front) = connected(7, &disk);
            let page = Granted::new(&bed);
            // What is being worked on when it happens is finished, and let go of.
            disk.hold(true);
            let request = raw_request(BlkifOp::READ, 1, 0, &[page.gref()]);
            // Not in vain: what comes after that is not looked at at once.
            if taken > 0 {
                front.send(&vec![request; taken as usize]);
                back.follow(&bed);
            }
            assert_eq!(disk.0.borrow().jobs(), taken as usize);
            front.show(claim);
            back.follow(&bed);
            assert_eq!(back.errors.len(), 1, "{claim}: {:?}", back.errors);
            assert_eq!(bed.back_state().as_deref(), Some("5"));
            // Whatever it does now: it isn't heard.
            for _ in 0..20 {
                front.show(taken);
                front.send(&[request]);
                back.follow(&bed);
            }
            assert_eq!((back.errors.len(), disk.0.borrow().jobs()), (1, taken as usize));
            disk.hold(false);
            back.poll();
            bed.front_says("state", State::Closed.number()).unwrap();
            back.follow(&bed);
            assert_eq!((back.disconnections, bed.back_state().as_deref()), (1, Some("6")));
            drop((front, page));
            bed.check_quiet();
        }
    }
}

#[test]
fn full_ring_is_legal_at_every_place_of_it() {
    let disk = Slow::new(SECTORS as usize);
    let (bed, mut back, mut front) = connected(8, &disk);
    let page = Granted::new(&bed);
    for _ in 0..DEPTH {
        one(&bed, &mut back, &mut front, &raw_request(BlkifOp::READ, 0, 0, &[page.gref()]));
        front.send(&vec![raw_request(BlkifOp::READ, 0, 0, &[page.gref()]); DEPTH as usize]);
        back.follow(&bed);
        let responses = front.responses();
        assert_eq!(responses.len(), DEPTH as usize);
        assert!(responses.iter().all(|response| response.status == BLKIF_RSP_OKAY));
    }
    assert_eq!(back.errors, [""; 0]);
    drop(page);
    ends(&bed, &mut back, front);
    bed.check_quiet();
}

#[test]
fn ring_that_was_used_before_is_taken_where_its_responses_end() {
    let disk = Slow::new(SECTORS as usize);
    let bed = Bed::new(9);
    let mut back = BackOwner::new(&bed, disk.clone());
    back.follow(&bed);
    let mut front = RawFront::offer(&bed);
    front.start_at(u32::MAX - 5);
    back.follow(&bed);
    let page = Granted::new(&bed);
    for _ in 0..DEPTH {
        let request = raw_request(BlkifOp::READ, 3, 0, &[page.gref()]);
        assert_eq!(one(&bed, &mut back, &mut front, &request), BLKIF_RSP_OKAY);
    }
    drop(page);
    ends(&bed, &mut back, front);
    bed.check_quiet();
}

#[test]
fn nodes_that_are_garbage_close_the_device_and_it_can_come_back() {
    let disk = Slow::new(SECTORS as usize);
    let bed = Bed::new(10);
    let mut back = BackOwner::new(&bed, disk.clone());
    back.follow(&bed);
    let bad = [
        ("ring-ref", &["", "x", "-1", "4294967296", "300", "512", "4294967295"][..]),
        ("event-channel", &["", "x", "0", "-1", "4294967296", "4294967295", "4096", "999"]),
        ("protocol", &["", "x86_64-abi\u{301}", "native", "x"]),
        // More than was offered, or than there can be. It is these that are wrong, before anything is looked for that they count.
        ("ring-page-order", &["5", "31", "32", "64", "4294967295", "-1"]),
        ("num-ring-pages", &["0", "3", "32", "2147483648", "4294967296"]),
        ("multi-queue-num-queues", &["0", "5", "65536", "4294967295", "x"]),
    ];
    let mut rounds = 0;
    for (node, values) in bad {
        for value in values {
            rounds += 1;
            let front = RawFront::offer_but(&bed, node, value);
            back.follow(&bed);
            assert_eq!(back.connections, 0, "{node}={value:?}");
            assert_eq!(back.errors.len(), rounds, "{node}={value:?}: {:?}", back.errors);
            let names = back.errors.last().is_some_and(|error| error.contains(node));
            assert!(names || !node.contains("num-") && !node.contains("order"), "{node}={value:?}: {:?}", back.errors);
            assert_eq!(bed.back_state().as_deref(), Some("5"), "{node}={value:?}");
            bed.front_says("state", State::Closed.number()).unwrap();
            back.follow(&bed);
            assert_eq!(bed.back_state().as_deref(), Some("6"), "{node}={value:?}");
            drop(front);
            bed.front_says("state", State::Initialising.number()).unwrap();
            back.follow(&bed);
            assert_eq!(bed.back_state().as_deref(), Some("2"), "{node}={value:?}");
        }
    }
    let mut front = RawFront::offer(&bed);
    back.follow(&bed);
    assert_eq!(back.connections, 1);
    honest_at_full_depth(&bed, &mut back, &mut front, &disk);
    ends(&bed, &mut back, front);
    bed.check_quiet();
}

#[test]
fn state_that_is_garbage_ends_the_connection_in_a_few_steps_and_is_reported_once() {
    let disk = Slow::new(SECTORS as usize);
    let (bed, mut back, front) = connected(11, &disk);
    let before = back.steps;
    bed.front_says("state", "garbage").unwrap();
    back.follow(&bed);
    assert_eq!(back.errors.len(), 1, "{:?}", back.errors);
    assert_eq!((back.disconnections, bed.back_state().as_deref()), (1, Some("6")));
    assert!(back.steps - before < 5, "{} steps", back.steps - before);
    drop(front);
    bed.check_quiet();
}

#[test]
fn error_that_stays_is_no_loop_of_steps_although_we_are_told_of_our_own_writes() {
    let (bed, mut back, front) = connected(11, &Slow::new(SECTORS as usize));
    let before = back.steps;
    bed.back_says("online", "garbage").unwrap();
    bed.front_says("state", State::Closing.number()).unwrap();
    back.follow(&bed);
    assert!(!back.errors.is_empty());
    assert!(back.steps - before < 5, "{} steps", back.steps - before);
    // And when it doesn't stay, the device goes on to its end.
    bed.back_says("online", 0).unwrap();
    bed.front_says("state", State::Closed.number()).unwrap();
    back.follow(&bed);
    assert!(back.removed);
    drop(front);
    bed.check_quiet();
}

#[test]
fn what_a_front_end_makes_us_report_has_a_rate() {
    let bed = Bed::new(12);
    let mut back = BackOwner::new(&bed, Slow::new(SECTORS as usize));
    back.follow(&bed);
    let start = bed.back.platform.now_ns();
    let node = format!("error/{}/error", bed.device.back_path());
    let mut reports = 0;
    for _ in 0..500 {
        bed.front_says("ring-ref", "junk").unwrap();
        for state in [State::Initialised, State::Closed, State::Initialising] {
            bed.front_says("state", state.number()).unwrap();
            back.follow(&bed);
        }
        if bed.read(&bed.back, &node).is_some() {
            reports += 1;
            bed.back.store.rm(Tx::NONE, &node).unwrap();
        }
    }
    assert_eq!(back.errors.len(), 500);
    let seconds = (bed.back.platform.now_ns() - start) / 1_000_000_000 + 1;
    assert!(reports >= 10 && reports <= 10 * seconds, "{reports} reports in {seconds} s");
}

#[test]
fn front_end_that_dies_while_the_disk_works_is_let_go_of_when_it_is_done_and_not_before() {
    for dead in [false, true] {
        let disk = Slow::new(SECTORS as usize);
        let (bed, mut back, mut front) = mapping(13, &disk);
        let pages: Vec<_> = (0..5).map(|_| Granted::new(&bed)).collect();
        disk.hold(true);
        for (id, page) in (0..).zip(&pages) {
            front.send(&[raw_request(BlkifOp::READ, id, 0, &[page.gref()])]);
        }
        back.follow(&bed);
        if dead {
            bed.machine.kill(bed.front.id);
            back.follow(&bed);
            // What it owned in the store went with it, and no watch tells.
            back.step();
        } else {
            bed.front_says("state", State::Closed.number()).unwrap();
        }
        back.follow(&bed);
        assert_eq!(back.disconnections, 0);
        assert!(!back.back.closing());
        let mapped = bed.machine.usage().0[&bed.back.id].mappings.len();
        assert_eq!(mapped, 6, "the ring and what the disk works on");
        // The disk writes into the pages, which must still be there.
        disk.hold(false);
        back.poll();
        assert!(back.back.closing());
        back.follow(&bed);
        assert_eq!((back.disconnections, bed.back_state().as_deref()), (1, Some("6")));
        assert!(bed.machine.usage().0[&bed.back.id].mappings.is_empty());
        drop((front, pages));
        if !dead {
            bed.check_quiet();
        }
    }
}

#[test]
fn back_end_that_is_dropped_while_its_disk_works_leaves_the_memory_mapped() {
    let disk = Slow::new(SECTORS as usize);
    let (bed, mut back, mut front) = mapping(14, &disk);
    let page = Granted::new(&bed);
    page.fill(1);
    disk.hold(true);
    front.send(&[raw_request(BlkifOp::READ, 1, 0, &[page.gref()])]);
    back.follow(&bed);
    let mut store = back.back.into_store();
    disk.hold(false);
    // Would fault if it were not mapped.
    assert!(xbd::back::Store::completed(&mut store).is_some());
    assert_eq!(page.bytes()[..512], disk.0.borrow().bytes[..512]);
    drop((front, page));
    assert_eq!(bed.front.grants.stats().quarantined_pages, 1);
}

#[test]
fn requests_that_were_sent_before_the_front_end_began_to_close_are_served() {
    for by_toolstack in [false, true] {
        let disk = Slow::new(SECTORS as usize);
        let (bed, mut back, mut front) = connected(15, &disk);
        let page = Granted::new(&bed);
        if by_toolstack {
            bed.device.ask_detach(&bed.toolstack.store).unwrap();
        } else {
            bed.front_says("state", State::Closing.number()).unwrap();
        }
        back.follow(&bed);
        assert_eq!(bed.back_state().as_deref(), Some("5"));
        let request = raw_request(BlkifOp::WRITE, 4, 8, &[page.gref()]);
        assert_eq!(one(&bed, &mut back, &mut front, &request), BLKIF_RSP_OKAY);
        bed.front_says("state", State::Closed.number()).unwrap();
        back.follow(&bed);
        assert_eq!(back.removed, by_toolstack);
        drop((front, page));
        bed.check_quiet();
    }
}

#[test]
fn requests_that_were_sent_before_the_front_end_has_closed_are_served_though_no_event_tells_of_them() {
    let disk = Slow::new(SECTORS as usize);
    let (bed, mut back, mut front) = connected(15, &disk);
    let page = Granted::new(&bed);
    front.send(&[raw_request(BlkifOp::WRITE, 4, 8, &[page.gref()])]);
    for (state, answers) in [(State::Closing, 0), (State::Closed, 1)] {
        bed.front_says("state", state.number()).unwrap();
        back.step();
        assert_eq!(front.responses().len(), answers, "{state:?}");
    }
    assert_eq!(bed.back_state().as_deref(), Some("6"));
    drop((front, page));
    bed.check_quiet();
}

#[test]
fn place_whose_pages_can_not_be_unmapped_is_lost_alone() {
    let disk = Slow::new(SECTORS as usize);
    let (bed, mut back, mut front) = connected(16, &disk);
    let pages: Vec<_> = (0..3).map(|_| Granted::new(&bed)).collect();
    let request = raw_request(BlkifOp::WRITE, 4, 8, &pages.iter().map(Granted::gref).collect::<Vec<_>>());
    // The whole call fails once: it is done again when the place is needed.
    let errno = xen_sys::errno::XEN_ENOMEM;
    let kind = Some(Kind::grant(GNTTABOP_unmap_grant_ref));
    bed.machine.order(Fault::Hypercall { domain: Some(bed.back.id), kind, nth: 1, errno });
    for _ in 0..3 {
        assert_eq!(one(&bed, &mut back, &mut front, &request), BLKIF_RSP_OKAY);
    }
    assert_eq!(back.counters().lost, 0);
    // A page stays where it is for ever.
    bed.machine.order(Fault::Entry {
        domain: Some(bed.back.id),
        cmd: GNTTABOP_unmap_grant_ref,
        nth: 2,
        status: GNTST_general_error,
    });
    for _ in 0..3 {
        assert_eq!(one(&bed, &mut back, &mut front, &request), BLKIF_RSP_OKAY);
    }
    assert_eq!(back.counters().lost, 1);
    assert_eq!(back.errors, [""; 0]);
    ends(&bed, &mut back, front);
    drop(pages);
    assert_eq!(bed.machine.violations(), [""; 0]);
    assert_eq!(bed.front.grants.stats().quarantined_pages, 1);
}

/// The front end flips its state and its nodes by lot, and sends good and bad requests; whatever happens, each request that is
/// answered was asked, and nothing is left. In the end an honest one finds a back end that works.
#[test]
fn thirty_thousand_flips_of_the_front_end_leave_a_back_end_that_works() {
    // 100,000 take a minute, and pass, too.
    let flips = if cfg!(miri) { 20 } else { 30_000 };
    let bed = Bed::new(17);
    let disk = Slow::new(SECTORS as usize);
    let small = Config { pages: 32, max_indirect_segments: 16, copy_pages: 8, ..Config::default() };
    let mut back = BackOwner::with(&bed, disk.clone(), small).unwrap();
    let mut lots = Lots(17);
    let mut raw: Option<RawFront> = None;
    let page = Granted::new(&bed);
    for flip in 0..flips {
        match lots.below(12) {
            0..=2 => bed.front_says("state", [1, 3, 4, 5, 6][lots.below(5) as usize]).unwrap(),
            3 => bed.front_says("state", lots.below(12)).unwrap(),
            4..=6 => {
                bed.front_says("state", 1).unwrap();
                back.follow(&bed);
                drop(raw.take());
                raw = Some(RawFront::offer(&bed));
            }
            7 => {
                let node = ["ring-ref", "event-channel", "protocol"][lots.below(3) as usize];
                bed.front_says(node, lots.below(2000)).unwrap();
            }
            _ => {}
        }
        back.follow(&bed);
        if let Some(front) = &mut raw {
            for _ in 0..lots.below(4) {
                let op = [BlkifOp::READ, BlkifOp::WRITE][lots.below(2) as usize];
                match lots.below(8) {
                    0 => front.send(&[bad_request(&mut lots, page.gref(), flip).0]),
                    1 if lots.below(8) == 0 => front.show(lots.below(1 << 32) as u32),
                    _ => front.send(&[raw_request(op, flip, 8, &[page.gref()])]),
                }
            }
        }
        disk.hold(lots.below(3) == 0);
        back.poll();
        back.follow(&bed);
        if let Some(front) = &mut raw {
            front.responses();
        }
    }
    disk.hold(false);
    back.poll();
    assert!(cfg!(miri) || back.connections > 500, "{}", back.connections);
    bed.front_says("state", State::Closed.number()).unwrap();
    back.follow(&bed);
    drop((raw, page));
    assert_eq!(back.connections, back.disconnections);
    bed.check_quiet();
    let mut front = FrontOwner::new(&bed);
    follow_both(&bed, &mut front, &mut back);
    for sector in 0..DEPTH {
        front.submit(&bed, Operation::Read, u64::from(sector) * 8, 1).unwrap();
    }
    follow_both(&bed, &mut front, &mut back);
    front.check_each_once();
    assert!(front.done.iter().all(|done| done.result == Ok(())));
    front.front.close().unwrap();
    front.step();
    follow_both(&bed, &mut front, &mut back);
    assert!(front.closed);
    drop(front);
    bed.check_quiet();
}
