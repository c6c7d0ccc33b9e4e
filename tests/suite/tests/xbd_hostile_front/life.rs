//! What it says in its nodes, and when it goes.

use hypercall::Platform;
use xbd::back::Config;
use xbd::protocol::Operation;
use xen_sys::io::blkif::{BLKIF_RSP_OKAY, BlkifOp};
use xenbus::device::State;
use xenbus::store::{Store, Tx};

use crate::common::raw_front::{Granted, RawFront, raw_request};
use crate::common::{BackOwner, Bed, DEPTH, FrontOwner, Lots, Slow, follow_both};
use crate::{SECTORS, bad_request, connected, ends, honest_at_full_depth, mapping, one};

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
fn requests_of_a_front_end_that_has_closed_are_served_until_none_come_though_no_event_tells_of_them() {
    let disk = Slow::new(SECTORS as usize);
    let (bed, mut back, mut front) = connected(15, &disk);
    let page = Granted::new(&bed);
    let request = raw_request(BlkifOp::WRITE, 4, 8, &[page.gref()]);
    front.send(&[request]);
    for (state, answers) in [(State::Closing, 0), (State::Closed, 1)] {
        bed.front_says("state", state.number()).unwrap();
        back.step();
        assert_eq!(front.responses().len(), answers, "{state:?}");
    }
    let rest_ns = Config::default().rest_ns;
    for _ in 0..3 {
        front.send(&[request]);
        assert!(!back.back.closing());
        bed.machine.advance(rest_ns);
        assert!(back.back.closing() && back.back.next_tend_ns().unwrap() <= bed.back.platform.now_ns());
        back.step();
        assert_eq!((front.responses().len(), bed.back_state().as_deref()), (1, Some("5")));
    }
    back.follow(&bed);
    assert_eq!(bed.back_state().as_deref(), Some("6"));
    drop((front, page));
    bed.check_quiet();
}

#[test]
fn a_front_end_that_has_closed_gets_an_event_at_which_it_sends_what_it_has_kept_back() {
    let (bed, mut back, front) = connected(15, &Slow::new(SECTORS as usize));
    let port = Some(front.queues[0].channel.port());
    for state in [State::Closing, State::Closed] {
        bed.front_says("state", state.number()).unwrap();
        back.step();
        bed.settle();
        assert_eq!(bed.take(&bed.front, port), state == State::Closed);
    }
    back.follow(&bed);
    assert!(!bed.take(&bed.front, port), "once is enough");
    drop(front);
    bed.check_quiet();
}

#[test]
fn a_front_end_that_is_not_closed_after_all_keeps_nobody_looking() {
    let (bed, mut back, front) = connected(15, &Slow::new(SECTORS as usize));
    for state in [State::Closing, State::Closed, State::Closing] {
        bed.front_says("state", state.number()).unwrap();
        back.step();
    }
    bed.machine.advance(Config::default().rest_ns);
    assert!(!back.back.closing() && back.back.next_tend_ns().is_none());
    bed.front_says("state", State::Closed.number()).unwrap();
    back.follow(&bed);
    assert_eq!(bed.back_state().as_deref(), Some("6"));
    drop(front);
    bed.check_quiet();
}

#[test]
fn hundred_thousand_flips_of_the_front_end_leave_a_back_end_that_works() {
    // A life each, at the same time: it takes a while.
    std::thread::scope(|scope| {
        for seed in [17, 18] {
            scope.spawn(move || flip(seed, if cfg!(miri) { 10 } else { 50_000 }));
        }
    });
}

/// The front end flips its state and its nodes by lot, and sends good and bad requests; whatever happens, each request that is
/// answered was asked, and nothing is left. In the end an honest one finds a back end that works.
fn flip(seed: u64, flips: u64) {
    let bed = Bed::new(seed);
    let disk = Slow::new(SECTORS as usize);
    let small = Config { pages: 32, max_indirect_segments: 16, copy_pages: 8, ..Config::default() };
    let mut back = BackOwner::with(&bed, disk.clone(), small).unwrap();
    let mut lots = Lots(seed);
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
