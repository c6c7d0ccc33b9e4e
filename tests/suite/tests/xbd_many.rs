//! What has to hold a million times, or for each of a thousand ways.
#![cfg(not(target_os = "none"))]

mod common;

use common::raw_front::{Asks, Granted};
use common::rig::{Rig, direct, grefs};
use common::{DEPTH, Slow};
use hypercall::GrantRef;
use mock::Kind;
use xbd::back::Config;
use xbd::protocol::{Data, Operation, Request, Segment, Segments, Status, X86_64};
use xen_sys::event_channel::EVTCHNOP_unmask;

const SECTORS: usize = 1024;

fn rig(disk: &Slow, persistent: bool) -> Rig<X86_64> {
    Rig::new(disk, Config { copy_limit: 0, ..Config::default() }, Asks { persistent, ..Asks::default() })
}

/// Signals without work cost their receiver a look each, and as many as come before that look, one: no hypercall but the one that
/// asks for the next, no answer, nothing that stays. A request that comes among them is answered at once.
#[test]
fn million_events_without_work_cost_a_look_and_keep_nobody_waiting() {
    let disk = Slow::new(SECTORS);
    let mut rig = rig(&disk, false);
    let pages = Granted::many(&rig.bed, 1);
    let (rounds, at_once) = if cfg!(miri) { (4, 4) } else { (1000, 1000) };
    let looks = rig.ledger();
    for round in 0..rounds {
        for _ in 0..at_once {
            rig.front.queues[0].channel.notify();
        }
        assert!(rig.back.turn(&rig.bed), "an event");
        assert!(!rig.back.turn(&rig.bed), "a second one of what came at once");
        if round % 100 == 0 {
            let since = rig.bed.machine.usage();
            let answers = rig.send(&[direct(Operation::Read, round, 0, &pages)]);
            assert_eq!(answers.iter().map(|answer| answer.status).collect::<Vec<_>>(), [Status::Okay]);
            assert_eq!(rig.bed.machine.usage(), since);
        }
    }
    let honest = rounds.div_ceil(100);
    let since = rig.ledger().since(&looks);
    let calls = since.all_hypercalls() - since.calls(Kind::event(EVTCHNOP_unmask));
    // Of each honest request: a map, an unmap, and a signal.
    assert!(calls <= 3 * honest, "{calls} hypercalls for {honest} requests");
    let counters = rig.counters();
    assert_eq!((counters.requests, counters.notifications, &rig.back.errors), (honest, honest, &Vec::new()));
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
