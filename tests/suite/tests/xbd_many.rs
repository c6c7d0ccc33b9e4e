//! What has to hold a million times, or for each of a thousand ways.
#![cfg(not(target_os = "none"))]

mod common;

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;

use common::raw_front::{Asks, Granted};
use common::rig::{Rig, direct, flush, grefs, indirect, table};
use common::{DEPTH, Lots, Slow};
use hypercall::GrantRef;
use hypercall::mem::PAGE_SIZE;
use mock::Kind;
use xbd::back::Config;
use xbd::protocol::{Data, Layout, Operation, Request, Segment, Segments, Status, X86_64};
use xen_sys::event_channel::EVTCHNOP_unmask;

const SECTORS: usize = 1024;

fn rig(disk: &Slow, persistent: bool) -> Rig<X86_64> {
    Rig::new(disk, Config { copy_limit: 0, ..Config::default() }, Asks { persistent, ..Asks::default() })
}

const MS: u64 = 1_000_000;

/// Of 32 pages, which are one call of the hypervisor, any may be such as can't be mapped: the requests that they are of
/// fail, and no other, and what is mapped of them is unmapped.
#[test]
fn random_subset_of_a_full_batch_that_can_not_be_mapped_fails_its_requests_and_no_other() {
    const BATCH: usize = 32;
    let (mut lots, rounds) = (Lots(32), if cfg!(miri) { 2 } else { 200 });
    for (persistent, size) in [(false, 1), (false, 4), (true, 1), (true, 4), (false, 8)] {
        let disk = Slow::new(SECTORS);
        let mut rig = rig(&disk, persistent);
        let pages = Granted::many(&rig.bed, BATCH);
        let good = grefs(&pages);
        let mut failed = 0;
        for round in 0..rounds {
            // Few, many, or none at all.
            let share = [2, 8, 32, 1000][lots.below(4) as usize];
            let bad: Vec<bool> = (0..BATCH).map(|_| lots.below(share) == 0).collect();
            let wrong = GrantRef([100_000, u32::MAX][round % 2]);
            pages.iter().for_each(|page| page.fill(0xee));
            let request = |id: usize| {
                let mut segments = Segments::EMPTY;
                for at in id * size..(id + 1) * size {
                    assert!(segments.push(Segment::new(if bad[at] { wrong } else { good[at] }, 0, 7).unwrap()));
                }
                let sector = (id * size * 8) as u64;
                Request { id: id as u64, operation: Operation::Read, sector, data: Data::Direct(segments) }
            };
            let before = rig.ledger();
            let mut answers = rig.send(&(0..BATCH / size).map(request).collect::<Vec<_>>());
            let calls = rig.grant_calls(&before);
            assert!(calls.0 <= 1 && calls.1 <= 1, "{calls:?}");
            answers.sort_by_key(|answer| answer.id);
            assert_eq!(answers.len(), BATCH / size);
            for (id, answer) in answers.iter().enumerate() {
                let fails = bad[id * size..(id + 1) * size].contains(&true);
                failed += u64::from(fails);
                assert_eq!((answer.id, answer.status == Status::Okay), (id as u64, !fails), "{bad:?}");
                for (at, page) in pages.iter().enumerate().skip(id * size).take(size) {
                    let there = &disk.0.borrow().bytes[at * PAGE_SIZE..][..PAGE_SIZE];
                    assert!(page.bytes() == if fails { &[0xee; PAGE_SIZE] } else { there }, "page {at}: {bad:?}");
                }
            }
            let kept = rig.mapped() - 1;
            assert!(kept <= if persistent { BATCH } else { 0 }, "{kept} pages are mapped: {bad:?}");
        }
        assert_eq!((rig.counters().unmappable, rig.counters().lost), (failed, 0));
        rig.end(pages);
    }
}

/// Signals without work are looked at less and less often, down to once a second and a second time behind it, at no hypercall but those
/// that ask for the next. A request that comes among them waits that second at most; with it all is as before.
#[test]
fn million_events_without_work_cost_a_look_now_and_then_and_a_request_waits_a_second_at_most() {
    let disk = Slow::new(SECTORS);
    let mut rig = rig(&disk, false);
    let pages = Granted::many(&rig.bed, 1);
    let read = |id| direct(Operation::Read, id, 0, &pages);
    let (seconds, at_once) = if cfg!(miri) { (3, 1) } else { (20, 50) };
    let before = rig.ledger();
    let mut looks = 0;
    for _ in 0..seconds * 1000 {
        for _ in 0..at_once {
            rig.front.queues[0].channel.notify();
        }
        while rig.back.turn(&rig.bed) {
            looks += 1;
        }
        rig.bed.machine.advance(MS);
    }
    // Ten delays until they are a second, of a second together.
    assert!((seconds..=2 * (seconds + 12)).contains(&looks), "{looks} looks in {seconds} s");
    let since = rig.ledger().since(&before);
    assert_eq!(since.all_hypercalls(), since.calls(Kind::event(EVTCHNOP_unmask)));
    let counters = rig.counters();
    assert_eq!((counters.requests, counters.notifications, &rig.back.errors), (0, 0, &Vec::new()));

    let mut answers = rig.send(&[read(1)]);
    for waited in 0.. {
        if !answers.is_empty() {
            break;
        }
        assert!(waited < 1000, "a request has waited for longer than a second");
        rig.bed.machine.advance(MS);
        rig.back.follow(&rig.bed);
        answers = rig.front.answers();
    }
    assert_eq!(answers[0].status, Status::Okay);
    for id in 2..10 {
        assert_eq!(rig.one(&read(id)), Status::Okay, "what comes after is answered at once");
    }
    rig.end(pages);
}

/// Who signals only for what is there is never made to wait, though some of it was found before its signal.
#[test]
fn honest_load_is_never_put_off() {
    let disk = Slow::new(SECTORS);
    let mut rig = rig(&disk, false);
    let pages = Granted::many(&rig.bed, 1);
    for id in 0..100 {
        if id % 2 == 0 {
            rig.front.send(&[X86_64::emit(&direct(Operation::Read, id, 0, &pages))]);
            rig.back.poll();
            rig.back.follow(&rig.bed);
            assert_eq!(rig.front.answers().len(), 1);
        } else {
            assert_eq!(rig.one(&direct(Operation::Read, id, 0, &pages)), Status::Okay);
        }
        assert_eq!(rig.bed.back.events.next_delayed_ns(), None);
    }
    rig.end(pages);
}

/// A front end that is blocked by a barrier has something to do, and what signals it then is not in vain.
#[test]
fn requests_that_wait_for_a_barrier_are_not_put_off() {
    let disk = Slow::new(SECTORS);
    let mut rig = rig(&disk, false);
    let pages = Granted::many(&rig.bed, 1);
    disk.0.borrow_mut().hold = true;
    rig.front.send(&[X86_64::emit(&Request { operation: Operation::Barrier, ..flush(0) })]);
    rig.back.follow(&rig.bed);
    for id in 1..10 {
        rig.front.send(&[X86_64::emit(&direct(Operation::Read, id, 0, &pages))]);
        rig.front.queues[0].channel.notify();
        rig.back.follow(&rig.bed);
        assert_eq!(rig.bed.back.events.next_delayed_ns(), None, "request {id}");
    }
    disk.0.borrow_mut().hold = false;
    rig.back.poll();
    rig.back.follow(&rig.bed);
    assert_eq!(rig.front.answers().len(), 10);
    rig.end(pages);
}

/// A front end may write to a page of segments while it is read. A segment is used as it was checked.
#[test]
fn segments_that_change_while_they_are_read_are_used_as_they_were_checked() {
    /// Ends the other thread, by a panic, too.
    struct Stop<'a>(&'a AtomicBool);

    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Relaxed);
        }
    }

    const SEGMENTS: usize = 16;
    let disk = Slow::new(SECTORS);
    let mut rig = rig(&disk, false);
    let pages = Granted::many(&rig.bed, 1);
    let [a, b, c, d] = pages[0].gref().0.to_ne_bytes();
    let (good, bad) = ([a, b, c, d, 0, 7, 0, 0], [a, b, c, d, 7, 0, 0, 0]);
    let segments = table(&rig.bed, &[good; SEGMENTS]);
    let request = indirect(Operation::Read, 1, 0, SEGMENTS, &segments);
    let (rounds, stopped) = (if cfg!(miri) { 10 } else { 5000 }, AtomicBool::new(false));
    let mut refused = 0;
    thread::scope(|scope| {
        let (shared, stopped) = (segments[0].shared(), &stopped);
        scope.spawn(move || {
            while !stopped.load(Relaxed) {
                for number in (0..SEGMENTS).chain(0..SEGMENTS) {
                    shared.write(number * Segment::BYTES, &bad);
                    shared.write(number * Segment::BYTES, &good);
                }
                thread::yield_now();
            }
        });
        let _stop = Stop(stopped);
        for _ in 0..rounds {
            refused += u64::from(rig.one(&request) == Status::Error);
        }
    });
    assert_eq!((rig.counters().refused, rig.counters().requests, rig.mapped()), (refused, rounds, 1));
    drop(segments);
    rig.end(pages);
}

/// Each subset of ten pages that can't be mapped fails the request that they are of, which is answered once, and leaves nothing mapped.
#[test]
fn every_subset_of_pages_that_can_not_be_mapped_fails_its_request_alone() {
    const PAGES: usize = 10;
    for persistent in [false, true] {
        let disk = Slow::new(SECTORS);
        let mut rig = rig(&disk, persistent);
        let pages = Granted::many(&rig.bed, PAGES);
        let good = grefs(&pages);
        let last = if cfg!(miri) { 1 << 3 } else { 1 << PAGES };
        for first in (0..last).step_by(DEPTH as usize) {
            let subsets: Vec<u32> = (first..last.min(first + DEPTH)).collect();
            let request = |subset: &u32| {
                let mut segments = Segments::EMPTY;
                for (index, gref) in good.iter().enumerate() {
                    // Beyond what the front end's table has.
                    let gref = if subset & 1 << index != 0 { GrantRef(100_000 + subset) } else { *gref };
                    assert!(segments.push(Segment::new(gref, 0, 7).unwrap()));
                }
                let operation = [Operation::Read, Operation::Write][subset.count_ones() as usize % 2];
                Request { id: (*subset).into(), operation, sector: 8, data: Data::Direct(segments) }
            };
            let requests: Vec<Request> = subsets.iter().map(request).collect();
            let mut answers = rig.send(&requests);
            answers.sort_by_key(|answer| answer.id);
            for (answer, subset) in answers.iter().zip(&subsets) {
                let expected = if *subset == 0 { Status::Okay } else { Status::Error };
                assert_eq!((answer.id, answer.status), ((*subset).into(), expected), "{subset:b}");
            }
            assert_eq!(answers.len(), subsets.len());
            // The ring, and what is kept.
            assert_eq!(rig.mapped(), 1 + if persistent { PAGES } else { 0 });
        }
        assert_eq!(u64::from(last) - 1, rig.counters().unmappable);
        rig.end(pages);
    }
}
