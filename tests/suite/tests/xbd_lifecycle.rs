//! The life of a disk whose both ends are ours: what the toolstack may do at each moment, and what may fail.
#![cfg(not(target_os = "none"))]

mod common;

use common::{BackOwner, Bed, DEPTH, Done, FrontOwner, Slow, follow_both};
use hypercall::{DomId, Platform as _};
use mock::{Fault, Kind, Refusal};
use xbd::back;
use xbd::front::IoError;
use xbd::protocol::Operation;
use xen_sys::errno::*;
use xen_sys::event_channel::{EVTCHNOP_close, EVTCHNOP_send};
use xen_sys::grant_table::{
    GNTST_general_error, GNTST_no_device_space, GNTTABOP_map_grant_ref, GNTTABOP_unmap_grant_ref,
};
use xenbus::device::State;
use xenbus::store::{Perm, Store, Tx};

const SECTORS: usize = 256;

struct Pair {
    bed: Bed,
    disk: Slow,
    front: FrontOwner,
    back: BackOwner<Slow>,
}

impl Pair {
    fn new(seed: u64) -> Self {
        let (bed, disk) = (Bed::new(seed), Slow::new(SECTORS));
        // What is mapped is what the life of a disk has to wait for.
        let config = back::Config { copy_limit: 0, ..back::Config::default() };
        let (front, back) = (FrontOwner::new(&bed), BackOwner::with(&bed, disk.clone(), config).unwrap());
        Self { bed, disk, front, back }
    }

    fn connected(seed: u64) -> Self {
        let mut pair = Self::new(seed);
        pair.follow();
        assert!(pair.front.connected);
        pair
    }

    fn follow(&mut self) {
        follow_both(&self.bed, &mut self.front, &mut self.back);
    }

    /// Lets one of the two ends have one turn; tells whether it did anything.
    fn turn(&mut self, front: bool) -> bool {
        if front { self.front.turn(&self.bed) } else { self.back.turn(&self.bed) }
    }

    fn submit(&mut self, count: u64) {
        for number in 0..count {
            let operation = if number % 2 == 0 { Operation::Read } else { Operation::Write };
            self.front.submit(&self.bed, operation, number * 8, 1).unwrap();
        }
    }

    /// The disk gets another size, and the back end tells it.
    fn resize(&mut self, sectors: usize) {
        self.disk.0.borrow_mut().bytes.resize(sectors * 512, 0);
        self.back.back.resized().unwrap();
    }

    /// The disk has sectors up to there, as both ends see it.
    fn ends_at(&mut self, end: u64) {
        assert_eq!(self.front.front.disk().unwrap().sectors, end);
        let before = self.front.done.len();
        let last = end.checked_sub(8).and_then(|last| self.front.submit(&self.bed, Operation::Write, last, 1));
        for beyond in [end.saturating_sub(7), end, u64::MAX - 7] {
            assert_eq!(self.front.submit(&self.bed, Operation::Read, beyond, 1), None, "{beyond} of {end}");
        }
        self.follow();
        let done: Vec<_> = self.front.done[before..].iter().map(|done| (done.number, done.result)).collect();
        assert_eq!(done, last.map(|number| (number, Ok(()))).into_iter().collect::<Vec<_>>());
        assert_eq!(last.is_some(), end > 0);
    }

    fn close(&mut self) {
        self.front.front.close().unwrap();
        self.front.step();
    }

    /// Nothing is left of either end.
    fn check_quiet(self) {
        let Self { bed, front, back, .. } = self;
        front.check_each_once();
        assert_eq!((&front.errors, &back.errors), (&Vec::new(), &Vec::new()));
        drop((front, back));
        bed.check_quiet();
    }
}

/// Each step of either end is told to the other by a watch, and by nothing else: the owners of this test look at no state that they
/// were not told of.
#[test]
fn each_change_of_state_is_told_once_and_acted_on() {
    let mut pair = Pair::new(1);
    let mut states = Vec::new();
    let note = |pair: &Pair, states: &mut Vec<String>| {
        let now = format!("{}{}", pair.bed.front_state().unwrap(), pair.bed.back_state().unwrap_or("-".into()));
        if states.last() != Some(&now) {
            states.push(now);
        }
    };
    note(&pair, &mut states);
    // Back end first, one turn each, and an end that was not told anything does nothing.
    for _ in 0..8 {
        for front in [false, true] {
            while pair.turn(front) {
                note(&pair, &mut states);
            }
        }
    }
    assert_eq!(states, ["11", "12", "32", "34", "44"]);
    assert!(!pair.turn(true) && !pair.turn(false));
    pair.bed.device.ask_detach(&pair.bed.toolstack.store).unwrap();
    note(&pair, &mut states);
    pair.follow();
    assert!(pair.front.close_wanted);
    pair.close();
    note(&pair, &mut states);
    for _ in 0..8 {
        for front in [false, true] {
            while pair.turn(front) {
                note(&pair, &mut states);
            }
        }
    }
    assert_eq!(states[5..], ["45", "65", "66", "6-"]);
    assert!(pair.front.closed && pair.back.removed);
    pair.check_quiet();
}

/// A directory that is to go stays long enough for the toolstack to see that it is Closed. Until then the toolstack may still want
/// something else: to keep it, to remove it, or to make another in its place.
#[test]
fn directory_that_is_to_go_is_kept_for_a_while_and_given_up_only_if_that_is_still_wanted() {
    for (kept, left) in [(true, Some("6")), (false, None), (false, Some("1"))] {
        let mut pair = Pair::connected(8);
        pair.bed.device.ask_detach(&pair.bed.toolstack.store).unwrap();
        while pair.bed.back_state().as_deref() != Some("6") {
            if pair.front.close_wanted && !pair.front.closed {
                pair.close();
            }
            assert!(pair.turn(true) | pair.turn(false));
        }
        let config = back::Config::default();
        let rests_ns = pair.back.back.next_tend_ns().unwrap() - pair.bed.back.platform.now_ns();
        assert!(rests_ns > config.rest_ns / 2 && rests_ns <= config.rest_ns, "{rests_ns}");
        pair.back.step();
        assert!(!pair.back.removed && pair.back.disconnections == 1);
        let back = format!("/local/domain/{}/{}", pair.bed.back.id.0, pair.bed.device.back_path());
        let toolstack = &pair.bed.toolstack.store;
        if kept {
            toolstack.write_text(Tx::NONE, &format!("{back}/online"), 1).unwrap();
        } else {
            toolstack.rm(Tx::NONE, &back).unwrap();
        }
        if left == Some("1") {
            pair.bed.device.attach(toolstack).unwrap();
        }
        pair.bed.settle();
        pair.back.step();
        pair.bed.machine.advance(config.rest_ns);
        assert!(!pair.back.back.closing() && pair.back.back.next_tend_ns().is_none());
        assert_eq!((pair.back.removed, pair.bed.back_state().as_deref()), (!kept, left));
        pair.check_quiet();
    }
}

/// A back end that goes asks for what the store has refused again, though nobody else moves.
#[test]
#[cfg_attr(miri, ignore = "many lives")]
fn what_the_store_refuses_of_a_back_end_that_goes_is_asked_for_again() {
    let mut refused = 0;
    for nth in 1.. {
        let mut pair = Pair::connected(8);
        pair.bed.device.ask_detach(&pair.bed.toolstack.store).unwrap();
        let domain = Some(pair.bed.back.id);
        pair.bed.machine.order(Fault::Request { domain, nth, refusal: Refusal::Again });
        pair.follow();
        pair.close();
        pair.follow();
        assert!(pair.front.closed && pair.back.removed, "{nth}: {:?}", pair.back.errors);
        if pair.bed.machine.faults_waiting() > 0 {
            break;
        }
        refused += pair.back.errors.len();
        pair.back.errors.clear();
        pair.check_quiet();
    }
    assert!(refused > 10, "{refused}");
}

/// A back end that can't say that it is connected, nor that it closes, holds nothing of the other end: the next attempt begins anew.
#[test]
fn back_end_that_can_not_say_that_it_is_connected_keeps_no_queue() {
    let mut pair = Pair::new(10);
    while pair.bed.front_state().as_deref() != Some("3") {
        pair.turn(false);
        pair.turn(true);
    }
    let state = format!("/local/domain/{}/{}/state", pair.bed.back.id.0, pair.bed.device.back_path());
    let reader = |domain| Perm { domain, read: true, write: false };
    let mine = Perm { domain: DomId(0), read: false, write: false };
    let perms = [mine, reader(pair.bed.back.id), reader(pair.bed.front.id)];
    pair.bed.toolstack.store.set_permissions(Tx::NONE, &state, &perms).unwrap();
    pair.back.step();
    assert_eq!(pair.back.errors.len(), 1, "{:?}", pair.back.errors);
    assert!(pair.back.errors[0].contains("EACCES"), "{:?}", pair.back.errors);
    assert_eq!((pair.bed.back_state().as_deref(), pair.back.back.port(0)), (Some("2"), None));
}

/// A front end that hides its state can't keep its back end from being removed.
#[test]
fn back_end_whose_other_end_hides_its_state_can_be_detached() {
    let mut pair = Pair::connected(9);
    let state = format!("{}/state", pair.bed.device.front_path());
    let hidden = [Perm { domain: pair.bed.front.id, read: false, write: false }];
    pair.bed.front.store.set_permissions(Tx::NONE, &state, &hidden).unwrap();
    pair.bed.device.ask_detach(&pair.bed.toolstack.store).unwrap();
    pair.follow();
    assert!(pair.back.removed);
    assert!(pair.back.errors.is_empty(), "{:?}", pair.back.errors);
}

#[test]
fn toolstack_may_ask_for_the_end_at_every_moment() {
    for first in [false, true] {
        for moment in 0..12 {
            let mut pair = Pair::new(2);
            // Turns by turns, so that each state of the two is met.
            for turn in 0..moment {
                pair.turn((turn % 2 == 0) == first);
            }
            let busy = pair.front.connected;
            if busy {
                pair.submit(4);
            }
            pair.bed.device.ask_detach(&pair.bed.toolstack.store).unwrap();
            pair.follow();
            if !pair.front.closed {
                pair.close();
                pair.follow();
            }
            assert!(pair.front.closed && pair.back.removed, "{first} {moment}");
            assert!(pair.front.done.iter().all(|done| done.result == Ok(())), "{first} {moment}");
            assert_eq!(pair.bed.back_state(), None);
            pair.check_quiet();
        }
    }
}

#[test]
fn back_end_that_nobody_uses_goes_when_the_toolstack_asks() {
    let bed = Bed::new(3);
    let mut back = BackOwner::new(&bed, Slow::new(SECTORS));
    back.follow(&bed);
    assert_eq!(bed.back_state().as_deref(), Some("2"));
    bed.device.ask_detach(&bed.toolstack.store).unwrap();
    back.follow(&bed);
    assert!(back.removed);
    assert_eq!(bed.back_state(), None);
    bed.check_quiet();
}

#[test]
fn wish_to_detach_is_seen_although_our_own_write_comes_over_it() {
    let mut pair = Pair::new(3);
    // Between the back end's look and its write: the toolstack's state is lost, its `online` is not.
    pair.bed.back_says("online", 0).unwrap();
    pair.bed.back_says("state", State::InitWait.number()).unwrap();
    pair.follow();
    assert!(pair.back.removed && pair.front.closed || pair.bed.back_state().is_none());
    pair.check_quiet();
}

#[test]
fn toolstack_may_remove_the_directory_at_every_moment() {
    for first in [false, true] {
        for moment in 0..12 {
            let mut pair = Pair::new(4);
            for turn in 0..moment {
                pair.turn((turn % 2 == 0) == first);
            }
            let was_up = matches!(pair.front.front.device().state(), State::Initialised | State::Connected);
            if pair.front.connected {
                pair.submit(4);
            }
            pair.bed.remove_back();
            pair.follow();
            assert!(pair.back.removed, "{first} {moment}");
            assert_eq!(pair.front.closed, was_up, "{first} {moment}");
            assert_eq!(pair.bed.back_state(), None, "it was not made again");
            assert!(pair.front.done.iter().all(|done| done.whole));
            pair.check_quiet();
        }
    }
}

#[test]
fn directory_that_is_removed_while_the_disk_works_is_waited_for() {
    let mut pair = Pair::connected(5);
    pair.disk.hold(true);
    pair.submit(6);
    pair.follow();
    pair.bed.remove_back();
    pair.follow();
    assert!(!pair.back.removed && pair.front.closed);
    // The front end has given them up; the disk has not.
    assert!(pair.front.done.iter().all(|done| !done.whole), "{:?}", pair.front.done);
    pair.disk.hold(false);
    pair.back.poll();
    pair.follow();
    assert!(pair.back.removed);
    pair.front.check_each_once();
    let Pair { bed, front, back, .. } = pair;
    drop((front, back));
    assert_eq!(bed.machine.violations(), [""; 0]);
}

#[test]
fn requests_in_flight_end_before_the_disk_does() {
    for held in [false, true] {
        let mut pair = Pair::connected(6);
        pair.disk.hold(held);
        pair.submit(u64::from(DEPTH));
        pair.close();
        pair.follow();
        if held {
            assert_eq!((pair.front.done.len(), pair.front.closed), (0, false));
            pair.disk.hold(false);
            pair.back.poll();
            pair.follow();
        }
        assert!(pair.front.closed);
        assert!(pair.front.done.iter().all(|done| done.result == Ok(()) && done.whole));
        assert_eq!(pair.bed.back_state().as_deref(), Some("6"));
        pair.check_quiet();
    }
}

#[test]
fn disk_that_was_closed_can_be_used_again_by_a_new_front_end() {
    let mut pair = Pair::connected(7);
    for round in 1..=5 {
        pair.submit(3);
        pair.follow();
        pair.close();
        pair.follow();
        assert!(pair.front.closed);
        pair.front.check_each_once();
        assert_eq!((pair.back.connections, pair.back.disconnections), (round, round));
        pair.front = FrontOwner::new(&pair.bed);
        pair.follow();
        assert!(pair.front.connected, "round {round}");
    }
    pair.close();
    pair.follow();
    pair.check_quiet();
}

#[test]
fn front_end_that_begins_anew_without_a_word_is_served() {
    for held in [false, true] {
        let mut pair = Pair::connected(8);
        pair.disk.hold(held);
        pair.submit(3);
        pair.back.follow(&pair.bed);
        // The kernel has forgotten all about it; what it had granted is still there.
        let old = std::mem::replace(&mut pair.front, FrontOwner::new(&pair.bed));
        pair.follow();
        if held {
            assert!(!pair.front.connected);
            pair.disk.hold(false);
            pair.back.poll();
            pair.follow();
        }
        assert!(pair.front.connected);
        drop(old);
        pair.submit(3);
        pair.follow();
        assert!(pair.front.done.iter().all(|done| done.result == Ok(())));
        pair.close();
        pair.follow();
        pair.check_quiet();
    }
}

#[test]
fn new_size_is_told_and_a_disk_that_closes_is_not_opened_by_it() {
    let mut pair = Pair::connected(9);
    // It grows and shrinks.
    for sectors in [SECTORS * 2, SECTORS / 2, SECTORS] {
        pair.resize(sectors);
        pair.follow();
        pair.ends_at(sectors as u64);
    }
    pair.disk.hold(true);
    pair.submit(1);
    pair.close();
    pair.back.follow(&pair.bed);
    assert_eq!(pair.bed.back_state().as_deref(), Some("5"));
    pair.back.back.resized().unwrap();
    assert_eq!(pair.bed.back_state().as_deref(), Some("5"));
    pair.disk.hold(false);
    pair.back.poll();
    pair.follow();
    assert!(pair.front.closed);
    pair.check_quiet();
}

/// A drive gets a medium and loses it, and is one and the same disk all the time.
#[test]
fn drive_may_be_empty_and_get_and_lose_its_medium_while_it_is_connected() {
    let (bed, disk) = (Bed::new(9), Slow::new(0));
    let (front, back) = (FrontOwner::new(&bed), BackOwner::new(&bed, disk.clone()));
    let mut pair = Pair { bed, disk, front, back };
    pair.follow();
    assert!(pair.front.connected);
    pair.ends_at(0);
    for sectors in [SECTORS, 0, 8, 0] {
        if sectors == 0 {
            // It is gone, and the front end has not heard of it yet.
            pair.resize(0);
            let number = pair.front.submit(&pair.bed, Operation::Read, 0, 1).unwrap();
            pair.follow();
            let last = *pair.front.done.last().unwrap();
            assert_eq!(last, Done { number, result: Err(IoError::Failed), whole: true });
        } else {
            pair.resize(sectors);
            pair.follow();
        }
        pair.ends_at(sectors as u64);
        // What moves no data can be asked for all the time.
        let flush = pair.front.submit_buffer(Operation::Flush, 0, None).unwrap();
        pair.follow();
        assert_eq!(pair.front.done.last().map(|done| (done.number, done.result)), Some((flush, Ok(()))));
    }
    assert_eq!((pair.back.connections, pair.front.closed), (1, false));
    pair.close();
    pair.follow();
    pair.check_quiet();
}

#[test]
fn disk_that_fails_fails_its_requests_and_nothing_else() {
    let mut pair = Pair::connected(10);
    pair.disk.0.borrow_mut().fail = true;
    pair.submit(5);
    pair.follow();
    pair.disk.0.borrow_mut().fail = false;
    assert!(pair.front.done.iter().all(|done| done.result == Err(IoError::Failed) && done.whole));
    pair.submit(5);
    pair.follow();
    assert!(pair.front.done[5..].iter().all(|done| done.result == Ok(())));
    assert_eq!(pair.back.back.counters().unwrap().store_faults, 5);
    pair.close();
    pair.follow();
    pair.check_quiet();
}

/// The whole life of a disk, whose owners bear every failure: what can't go on is closed, what can does.
/// Returns whether all of it worked.
fn life(bed: &Bed, disk: &Slow) -> bool {
    let mut back = BackOwner::try_new(bed, disk.clone()).ok();
    let mut front = FrontOwner::try_new(bed).ok();
    if let (Some(front), Some(back)) = (&mut front, &mut back) {
        follow_both(bed, front, back);
        for number in 0..6 {
            front.submit(bed, [Operation::Read, Operation::Write][number as usize % 2], number * 8, 3);
        }
        front.submit_buffer(Operation::Flush, 0, None);
        follow_both(bed, front, back);
        // A lost event is found by whoever looks.
        for _ in 0..3 {
            front.poll();
            back.poll();
            follow_both(bed, front, back);
        }
    }
    let _ = bed.device.ask_detach(&bed.toolstack.store);
    for _ in 0..4 {
        if let Some(front) = &mut front {
            let _ = front.front.close();
            front.poll();
            front.step();
            front.follow(bed);
        }
        if let Some(back) = &mut back
            && !back.removed
        {
            back.poll();
            back.step();
            back.follow(bed);
        }
    }
    let mut worked = back.as_ref().is_some_and(|back| back.removed) && front.as_ref().is_some_and(|front| front.closed);
    if let Some(front) = &mut front {
        // By now all is over, however it went.
        assert!(front.closed || front.next == front.done.len() as u64, "{:?} {:?}", front.errors, front.done);
        front.check_each_once();
        worked &= front.next == 7 && front.done.iter().all(|done| done.result == Ok(()));
    }
    if !worked {
        let told = |errors: Option<&Vec<String>>| errors.is_none_or(|errors| !errors.is_empty());
        let failed_io = front.as_ref().is_some_and(|front| front.done.iter().any(|done| done.result.is_err()));
        let few = front.as_ref().is_none_or(|front| front.next < 7);
        assert!(
            told(front.as_ref().map(|front| &front.errors))
                || told(back.as_ref().map(|back| &back.errors))
                || failed_io
                || few,
            "it failed without a word: {:?} {:?} {:?}",
            front.as_ref().map(|front| (front.closed, front.front.device().state(), &front.done)),
            back.as_ref().map(|back| (back.removed, back.back.device().state())),
            (bed.front_state(), bed.back_state()),
        );
    }
    drop((front, back));
    worked
}

/// Runs a life with one fault, for the first, the second … until there is none any more. Returns how many there were.
fn each_fault(order: impl Fn(&Bed, u64) -> Fault, leaks: impl Fn(&str) -> bool) -> u64 {
    for nth in 1.. {
        let (bed, disk) = (Bed::new(100), Slow::new(SECTORS));
        let fault = order(&bed, nth);
        bed.machine.order(fault);
        let worked = life(&bed, &disk);
        let happened = bed.machine.faults_waiting() == 0;
        bed.machine.cancel_faults();
        assert_eq!(bed.machine.violations(), [""; 0], "{fault:?}");
        bed.settle();
        bed.front.grants.retry_quarantine();
        let leaked: Vec<_> = bed.machine.leaks().iter().map(ToString::to_string).filter(|leak| !leaks(leak)).collect();
        assert_eq!(leaked, [""; 0], "{fault:?}");
        if !happened {
            assert!(worked, "nothing has failed");
            return nth - 1;
        }
    }
    unreachable!("the loop has no end")
}

/// The kinds of hypercall that a domain makes in a life without faults.
fn kinds(domain: impl Fn(&Bed) -> DomId) -> Vec<Kind> {
    let (bed, disk) = (Bed::new(100), Slow::new(SECTORS));
    let before = bed.machine.ledger_of(domain(&bed));
    assert!(life(&bed, &disk));
    bed.check_quiet();
    bed.machine.ledger_of(domain(&bed)).since(&before).hypercalls.into_keys().collect()
}

/// What a hypercall may say. Nobody but a pager's client tries again for one of them.
const ERRNOS: [i32; 16] = [
    XEN_ENOMEM, XEN_EAGAIN, XEN_EINVAL, XEN_EPERM, XEN_ENOENT, XEN_ESRCH, XEN_EIO, XEN_ENXIO, XEN_E2BIG, XEN_EACCES,
    XEN_EFAULT, XEN_EBUSY, XEN_EEXIST, XEN_ENODEV, XEN_ENOSPC, XEN_ENOSYS,
];

fn every_hypercall_may_fail(domain: impl Fn(&Bed) -> DomId) {
    let mut faults = 0;
    for kind in kinds(&domain) {
        // Each call fails in all ways that there are; but events are sent a hundred times, each in three ways, and all of
        // them together in all.
        let ways = if kind == Kind::event(EVTCHNOP_send) { 3 } else { ERRNOS.len() };
        for first in 0..ways {
            let errno = |nth: u64| ERRNOS[(ways * nth as usize + first) % ERRNOS.len()];
            let order = |bed: &Bed, nth| Fault::Hypercall {
                domain: Some(domain(bed)),
                kind: Some(kind),
                nth,
                errno: errno(nth),
            };
            // A port that the hypervisor refuses to close stays open.
            let leaks = |leak: &str| kind == Kind::event(EVTCHNOP_close) && leak.contains("is open");
            faults += each_fault(order, leaks);
        }
    }
    assert!(faults > 400, "{faults}");
}

#[test]
#[cfg_attr(miri, ignore = "hundreds of lives")]
fn every_hypercall_of_the_front_end_may_fail() {
    every_hypercall_may_fail(|bed| bed.front.id);
}

#[test]
#[cfg_attr(miri, ignore = "hundreds of lives")]
fn every_hypercall_of_the_back_end_may_fail() {
    every_hypercall_may_fail(|bed| bed.back.id);
}

#[test]
#[cfg_attr(miri, ignore = "hundreds of lives")]
fn every_grant_operation_may_fail_by_itself() {
    for (cmd, status) in [
        (GNTTABOP_map_grant_ref, GNTST_general_error),
        (GNTTABOP_map_grant_ref, GNTST_no_device_space),
        (GNTTABOP_unmap_grant_ref, GNTST_general_error),
    ] {
        let order = |bed: &Bed, nth| Fault::Entry { domain: Some(bed.back.id), cmd, nth, status };
        // What the hypervisor refuses to unmap stays mapped, and its page stays the back end's.
        let faults = each_fault(order, |_| cmd == GNTTABOP_unmap_grant_ref);
        assert_eq!(faults, 1 + 6 * 3, "the ring, and each page");
    }
}

#[test]
#[cfg_attr(miri, ignore = "many lives")]
fn every_allocation_may_fail() {
    for domain in [|bed: &Bed| bed.front.id, |bed: &Bed| bed.back.id] {
        assert!(each_fault(|bed, nth| Fault::Alloc { domain: domain(bed), nth }, |_| false) >= 2);
    }
}

#[test]
#[cfg_attr(miri, ignore = "many lives")]
fn every_event_may_be_lost_or_come_twice() {
    for domain in [|bed: &Bed| bed.front.id, |bed: &Bed| bed.back.id] {
        let lost = each_fault(|bed, nth| Fault::DropEvent { to: Some(domain(bed)), nth }, |_| false);
        let twice = each_fault(|bed, nth| Fault::RepeatEvent { to: Some(domain(bed)), nth }, |_| false);
        let late = each_fault(|bed, nth| Fault::DelayEvent { to: Some(domain(bed)), nth }, |_| false);
        assert!(lost > 10 && twice > 10 && late > 10, "{lost} {twice} {late}");
    }
}

#[test]
#[cfg_attr(miri, ignore = "many lives")]
fn every_request_to_the_store_may_be_refused_and_every_watch_come_twice() {
    for domain in [|bed: &Bed| bed.front.id, |bed: &Bed| bed.back.id] {
        let mut faults = 0;
        for refusal in [Refusal::Again, Refusal::Acces, Refusal::Quota] {
            faults += each_fault(|bed, nth| Fault::Request { domain: Some(domain(bed)), nth, refusal }, |_| false);
        }
        let twice = each_fault(|bed, nth| Fault::RepeatWatch { to: Some(domain(bed)), nth }, |_| false);
        assert!(faults > 50 && twice >= 2, "{faults} {twice}");
    }
}

#[test]
#[cfg_attr(miri, ignore = "many lives")]
fn every_watch_may_be_lost_and_the_disk_can_be_taken_away() {
    for domain in [|bed: &Bed| bed.front.id, |bed: &Bed| bed.back.id] {
        let lost = each_fault(|bed, nth| Fault::DropWatch { to: Some(domain(bed)), nth }, |_| false);
        assert!(lost >= 2, "{lost}");
    }
}
