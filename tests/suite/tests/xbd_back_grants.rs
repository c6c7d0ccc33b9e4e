//! How our back end of a disk maps its front end's pages: how often, how many, for how long, and what becomes of those that can't be.
#![cfg(not(target_os = "none"))]

mod common;

use std::collections::BTreeMap;

use common::raw_front::{Asks, Granted};
use common::rig::{Rig, direct, discard, flush, grefs, indirect, table, whole};
use common::{DEPTH, Lots, Slow};
use hypercall::grant::Grants;
use hypercall::{GrantRef, Platform};
use mock::{Fault, Kind};
use xbd::MAX_SEGMENTS;
use xbd::back::Config;
use xbd::features::Discard;
use xbd::protocol::{Data, IndirectPages, Layout, Operation, Request, Segment, Segments, Status, X86_32, X86_64};
use xen_sys::errno::XEN_ENOMEM;
use xen_sys::grant_table::{GNTST_eagain, GNTST_general_error, GNTTABOP_map_grant_ref, GNTTABOP_unmap_grant_ref};

const SECTORS: u64 = 2048;
const PERSISTENT: Asks = Asks { queues: 1, pages: 1, persistent: true };

/// Everything is mapped.
fn config() -> Config {
    Config { copy_limit: 0, ..Config::default() }
}

fn disk() -> Slow {
    Slow::new(SECTORS as usize)
}

/// Reads, one a page.
fn reads(pages: &[Granted]) -> Vec<Request> {
    pages.iter().zip(0..).map(|(page, id)| direct(Operation::Read, id, 8 * id, std::slice::from_ref(page))).collect()
}

fn statuses(rig: &mut Rig<X86_64>, requests: &[Request]) -> Vec<Status> {
    rig.send(requests).iter().map(|answer| answer.status).collect()
}

#[test]
fn full_ring_costs_one_hypercall_to_map_and_one_to_unmap_and_none_if_grants_are_kept() {
    let okay = vec![Status::Okay; DEPTH as usize];
    for persistent in [false, true] {
        let disk = disk();
        let mut rig = Rig::<X86_64>::new(&disk, config(), Asks { persistent, ..Asks::default() });
        let pages = Granted::many(&rig.bed, DEPTH as usize);
        for round in 0..3 {
            let before = rig.ledger();
            assert_eq!(statuses(&mut rig, &reads(&pages)), okay);
            let expected = match (persistent, round) {
                (false, _) => (1, 1),
                (true, 0) => (1, 0),
                (true, _) => (0, 0),
            };
            assert_eq!(rig.grant_calls(&before), expected, "{persistent} {round}");
            // Nor anything else but one event.
            let since = rig.ledger().since(&before);
            assert_eq!((since.all_hypercalls(), since.notifications), (expected.0 + expected.1 + 1, 1));
        }
        // A disk that finishes later: the same.
        disk.hold(true);
        let before = rig.ledger();
        assert_eq!(rig.send(&reads(&pages)), []);
        assert_eq!(rig.finish(DEPTH as usize).len(), DEPTH as usize);
        assert_eq!(rig.grant_calls(&before), if persistent { (0, 0) } else { (1, 1) });
        disk.hold(false);
        // 32 pages a hypercall, whatever the requests are.
        let eleven: Vec<_> =
            (0..DEPTH).map(|id| direct(Operation::Write, id.into(), 0, &pages[..MAX_SEGMENTS])).collect();
        let before = rig.ledger();
        assert_eq!(statuses(&mut rig, &eleven), okay);
        // Those that are kept are used by the first only, at the same time.
        let each = if persistent { DEPTH as u64 - 1 } else { DEPTH.into() } * MAX_SEGMENTS as u64;
        assert_eq!(rig.grant_calls(&before), (each.div_ceil(32), each.div_ceil(32)));
        rig.end(pages);
    }
}

#[test]
fn indirect_requests_cost_one_more_hypercall_for_all_of_them() {
    for persistent in [false, true] {
        let disk = disk();
        let mut rig = Rig::<X86_64>::new(&disk, config(), Asks { persistent, ..Asks::default() });
        let pages = Granted::many(&rig.bed, 32);
        let tables: Vec<_> = pages.chunks(4).map(|pages| table(&rig.bed, &whole(pages)).remove(0)).collect();
        let requests: Vec<_> = tables
            .iter()
            .zip(0..)
            .map(|(page, id)| indirect(Operation::Read, id, 8 * id, 4, std::slice::from_ref(page)))
            .collect();
        for round in 0..2 {
            let before = rig.ledger();
            assert_eq!(statuses(&mut rig, &requests), [Status::Okay; 8]);
            // 8 pages of segments, then 32 of data; 40 at the end.
            let expected = match (persistent, round) {
                (false, _) => (2, 2),
                (true, 0) => (2, 0),
                (true, _) => (0, 0),
            };
            assert_eq!(rig.grant_calls(&before), expected, "{persistent} {round}");
        }
        rig.end(pages.into_iter().chain(tables).collect());
    }
}

#[test]
fn segments_are_read_once_and_from_pages_that_we_can_not_write() {
    let disk = disk();
    let mut rig = Rig::<X86_64>::new(&disk, config(), Asks::default());
    let pages = Granted::many(&rig.bed, 2);
    // Granted for reading only, as a page of segments may be.
    let mut refs = [GrantRef(0)];
    let segments = hypercall::mem::Pages::new(&rig.bed.front.platform, 1).unwrap();
    segments.shared().write(0, whole(&pages).as_flattened());
    rig.bed.front.grants.reserve(&mut refs).unwrap();
    let access = hypercall::grant::Access::ReadOnly;
    // SAFETY: just reserved; the page is seen through atomics only, and freed after the grant is ended.
    unsafe { rig.bed.front.grants.share(refs[0], rig.bed.back.id, segments.gfn(0), access) };
    let list = IndirectPages::new(2, &refs).unwrap();
    let request = Request { id: 1, operation: Operation::Read, sector: 0, data: Data::Indirect(list) };
    assert_eq!(rig.one(&request), Status::Okay);
    // Changed while the disk works: nobody looks any more.
    disk.hold(true);
    assert_eq!(rig.send(&[request]), []);
    segments.shared().write(0, &[0xff; 16]);
    assert_eq!(rig.finish(1)[0].status, Status::Okay);
    rig.bed.front.grants.end(refs[0]).unwrap();
    // SAFETY: reserved above, and ended.
    unsafe { rig.bed.front.grants.release(&refs) };
    drop(segments);
    rig.end(pages);
}

#[test]
fn grants_are_kept_only_if_both_ends_want_it() {
    for (ours, theirs) in [(false, false), (false, true), (true, false), (true, true)] {
        let config = Config { persistent: ours, ..config() };
        let mut rig = Rig::<X86_64>::new(&disk(), config, Asks { persistent: theirs, ..Asks::default() });
        let offered = rig.bed.read(&rig.bed.back, &format!("{}/feature-persistent", rig.bed.device.back_path()));
        assert_eq!(offered, Some(u8::from(ours).to_string()));
        let pages = Granted::many(&rig.bed, 3);
        for _ in 0..2 {
            statuses(&mut rig, &reads(&pages));
        }
        let kept = if ours && theirs { 3 } else { 0 };
        assert_eq!((rig.counters().persistent, rig.counters().reused, rig.mapped()), (kept, kept, 1 + kept as usize));
        rig.end(pages);
    }
}

#[test]
fn grant_that_was_not_used_for_longest_makes_room_for_a_new_one() {
    let config = Config { max_persistent: 8, ..config() };
    let mut rig = Rig::<X86_64>::new(&disk(), config, PERSISTENT);
    let pages = Granted::many(&rig.bed, 17);
    // Twice the quota, again and again: never more than the quota.
    for round in 0..4 {
        for page in reads(&pages[..16]) {
            assert_eq!(rig.one(&page), Status::Okay);
            assert!(rig.mapped() <= 1 + 8);
        }
        let counters = rig.counters();
        assert_eq!((counters.persistent, counters.reused, counters.evicted), (8, 0, 16 * (round + 1) - 8));
    }
    // 8 to 15 are there. 8 is used, and then 16 takes the place of 9.
    let use_it = |rig: &mut Rig<X86_64>, index: usize| {
        let before = rig.counters().reused;
        assert_eq!(rig.one(&reads(&pages[index..=index])[0]), Status::Okay);
        rig.counters().reused > before
    };
    assert!(use_it(&mut rig, 8));
    assert!(!use_it(&mut rig, 16));
    assert!(use_it(&mut rig, 8) && use_it(&mut rig, 10) && use_it(&mut rig, 15) && use_it(&mut rig, 16));
    assert!(!use_it(&mut rig, 9));
    assert!(!use_it(&mut rig, 11), "it made room for 9");
    // None was forgotten.
    rig.back.back.tend(u64::MAX);
    assert_eq!((rig.counters().persistent, rig.mapped()), (0, 1));
    rig.end(pages);
}

#[test]
fn more_grants_at_once_than_may_be_kept_are_mapped_for_the_time_being() {
    let config = Config { max_persistent: 8, ..config() };
    let disk = disk();
    let mut rig = Rig::<X86_64>::new(&disk, config, PERSISTENT);
    let pages = Granted::many(&rig.bed, 32);
    disk.hold(true);
    assert_eq!(rig.send(&reads(&pages)), []);
    assert_eq!((rig.mapped(), rig.counters().persistent), (1 + 32, 8));
    assert_eq!(rig.finish(32).len(), 32);
    assert_eq!((rig.mapped(), rig.counters().persistent, rig.counters().evicted), (1 + 8, 8, 0));
    rig.end(pages);
}

#[test]
fn grant_that_nobody_uses_is_not_kept_for_ever() {
    let second = 1_000_000_000;
    for by_poll in [false, true] {
        let config = Config { idle_ns: 60 * second, ..config() };
        let mut rig = Rig::<X86_64>::new(&disk(), config, PERSISTENT);
        let pages = Granted::many(&rig.bed, 3);
        assert_eq!(rig.back.back.next_tend_ns(), None);
        rig.send(&reads(&pages[..2]));
        let used = rig.bed.back.platform.now_ns();
        let due = rig.back.back.next_tend_ns().unwrap();
        assert!(due >= 60 * second && due <= used + 60 * second, "{due} {used}");
        rig.bed.machine.advance(30 * second);
        rig.send(&reads(&pages[1..]));
        let tend = |rig: &mut Rig<X86_64>| {
            if by_poll {
                rig.back.poll();
            } else {
                let now = rig.bed.back.platform.now_ns();
                rig.back.back.tend(now);
            }
            (rig.counters().persistent, rig.counters().expired, rig.mapped())
        };
        let ms = 1_000_000;
        rig.bed.machine.advance(due - ms - rig.bed.back.platform.now_ns());
        if !by_poll {
            assert_eq!(tend(&mut rig), (3, 0, 4), "a moment too early");
        }
        rig.bed.machine.advance(2 * ms);
        assert_eq!(tend(&mut rig), (2, 1, 3));
        assert!(rig.back.back.next_tend_ns().unwrap() >= due + 30 * second);
        rig.bed.machine.advance(31 * second);
        assert_eq!(tend(&mut rig), (0, 3, 1));
        assert_eq!(rig.back.back.next_tend_ns(), None);
        // And they are mapped anew when they are used again.
        assert_eq!(statuses(&mut rig, &reads(&pages)), [Status::Okay; 3]);
        assert_eq!((rig.counters().persistent, rig.counters().mapped), (3, 6));
        rig.end(pages);
    }
}

#[test]
fn kept_grant_that_another_request_uses_is_mapped_once_more() {
    let disk = disk();
    let mut rig = Rig::<X86_64>::new(&disk, config(), PERSISTENT);
    let pages = Granted::many(&rig.bed, 1);
    let request = direct(Operation::Write, 1, 0, &pages);
    for _ in 0..2 {
        disk.hold(true);
        // Within one poll, and from one to the next.
        assert_eq!(rig.send(&[request, request]), []);
        assert_eq!(rig.send(&[request]), []);
        assert_eq!((rig.mapped(), rig.counters().persistent), (1 + 3, 1));
        // The one that is kept may end first or last.
        disk.0.borrow_mut().lifo ^= true;
        assert_eq!(rig.finish(3).len(), 3);
        assert_eq!((rig.mapped(), rig.counters().persistent), (1 + 1, 1));
    }
    // Twice in the same request, too.
    let mut segments = Segments::EMPTY;
    for (first, last) in [(4, 7), (0, 3)] {
        assert!(segments.push(Segment::new(pages[0].gref(), first, last).unwrap()));
    }
    disk.hold(false);
    pages[0].fill(9);
    pages[0].shared().write(2048, &[8; 2048]);
    let twice = Request { id: 2, operation: Operation::Write, sector: 16, data: Data::Direct(segments) };
    assert_eq!(rig.one(&twice), Status::Okay);
    assert_eq!(disk.0.borrow().bytes[16 * 512..24 * 512], [[8; 2048], [9; 2048]].concat());
    rig.end(pages);
}

#[test]
fn kept_grant_is_written_though_it_was_mapped_for_a_write_of_the_disk() {
    let disk = disk();
    let mut rig = Rig::<X86_64>::new(&disk, config(), PERSISTENT);
    let pages = Granted::many(&rig.bed, 1);
    assert_eq!(rig.one(&direct(Operation::Write, 1, 0, &pages)), Status::Okay);
    assert_eq!(rig.one(&direct(Operation::Read, 1, 8, &pages)), Status::Okay);
    assert_eq!(pages[0].bytes(), disk.0.borrow().bytes[4096..8192]);
    assert_eq!((rig.counters().mapped, rig.counters().reused), (1, 1));
    rig.end(pages);
}

#[test]
fn front_end_that_ends_a_kept_grant_gets_its_page_back_when_we_let_go_of_it() {
    let disk = disk();
    let mut rig = Rig::<X86_64>::new(&disk, config(), PERSISTENT);
    let mut pages = Granted::many(&rig.bed, 3);
    assert_eq!(statuses(&mut rig, &reads(&pages)), [Status::Okay; 3]);
    let liar = pages.remove(1);
    let gref = liar.gref();
    let request = reads(std::slice::from_ref(&liar))[0];
    // Its page is still mapped: it goes into quarantine, whatever it has promised.
    drop(liar);
    assert_eq!(rig.bed.front.grants.stats().quarantined_pages, 1);
    // The page can still be written, for it is nobody's yet.
    assert_eq!(rig.one(&request), Status::Okay);
    let now = rig.bed.back.platform.now_ns() + config().idle_ns;
    rig.back.back.tend(now);
    rig.bed.front.grants.retry_quarantine();
    assert_eq!(rig.bed.front.grants.stats().quarantined_pages, 0);
    // Now it is gone.
    assert_eq!(rig.one(&request), Status::Error);
    assert!(!grefs(&pages).contains(&gref));
    assert_eq!(statuses(&mut rig, &reads(&pages)), [Status::Okay; 2]);
    rig.end(pages);
}

#[test]
fn page_that_can_not_be_mapped_fails_its_request_alone() {
    for persistent in [false, true] {
        for requests in [4, 12] {
            let pages_each = 3;
            for nth in 1..=requests * pages_each {
                let disk = disk();
                let mut rig = Rig::<X86_64>::new(&disk, config(), Asks { persistent, ..Asks::default() });
                let pages = Granted::many(&rig.bed, requests * pages_each);
                let batch: Vec<_> = pages
                    .chunks(pages_each)
                    .zip(0..)
                    .map(|(pages, id)| direct(Operation::Read, id, 0, pages))
                    .collect();
                rig.bed.machine.order(Fault::Entry {
                    domain: Some(rig.bed.back.id),
                    cmd: GNTTABOP_map_grant_ref,
                    nth: nth as u64,
                    status: GNTST_general_error,
                });
                let mut answers = rig.send(&batch);
                answers.sort_unstable_by_key(|answer| answer.id);
                let expected: Vec<_> = (0..requests)
                    .map(|index| if index == (nth - 1) / pages_each { Status::Error } else { Status::Okay })
                    .collect();
                assert_eq!(answers.iter().map(|answer| answer.status).collect::<Vec<_>>(), expected, "{nth}");
                let kept = if persistent { requests * pages_each - 1 } else { 0 };
                assert_eq!((rig.mapped(), rig.counters().persistent), (1 + kept, kept as u64), "{nth}");
                assert_eq!((rig.counters().unmappable, disk.0.borrow().started), (1, requests as u64 - 1));
                // And then all of it works.
                assert!(rig.send(&batch).iter().all(|answer| answer.status == Status::Okay));
                rig.end(pages);
            }
        }
    }
}

#[test]
fn page_of_an_indirect_request_that_can_not_be_mapped_fails_it_alone() {
    for persistent in [false, true] {
        // Two requests: two pages of segments, then four and four pages of data.
        for nth in 1..=10 {
            let mut rig = Rig::<X86_64>::new(&disk(), config(), Asks { persistent, ..Asks::default() });
            let pages = Granted::many(&rig.bed, 8);
            let tables: Vec<_> = pages.chunks(4).map(|pages| table(&rig.bed, &whole(pages)).remove(0)).collect();
            let requests = [0, 1].map(|id| indirect(Operation::Read, id as u64, 0, 4, &tables[id..=id]));
            rig.bed.machine.order(Fault::Entry {
                domain: Some(rig.bed.back.id),
                cmd: GNTTABOP_map_grant_ref,
                nth,
                status: GNTST_general_error,
            });
            let mut answers = rig.send(&requests);
            answers.sort_unstable_by_key(|answer| answer.id);
            let failed = match nth {
                // Without its segments, the data of the other comes next.
                1 | 3..=6 => 0,
                _ => 1,
            };
            for (index, answer) in answers.iter().enumerate() {
                let expected = if index == failed { Status::Error } else { Status::Okay };
                assert_eq!(answer.status, expected, "{nth} {index}");
            }
            assert_eq!(statuses(&mut rig, &requests), [Status::Okay; 2]);
            rig.end(pages.into_iter().chain(tables).collect());
        }
    }
}

#[test]
fn map_that_is_refused_as_a_whole_fails_what_was_in_it_and_a_page_that_is_paged_in_is_waited_for() {
    let mut rig = Rig::<X86_64>::new(&disk(), config(), PERSISTENT);
    let pages = Granted::many(&rig.bed, 4);
    let kind = Some(Kind::grant(GNTTABOP_map_grant_ref));
    rig.bed.machine.order(Fault::Hypercall { domain: Some(rig.bed.back.id), kind, nth: 1, errno: XEN_ENOMEM });
    assert_eq!(statuses(&mut rig, &reads(&pages)), [Status::Error; 4]);
    assert_eq!((rig.mapped(), rig.counters().persistent, rig.counters().unmappable), (1, 0, 4));
    let status = GNTST_eagain;
    let domain = Some(rig.bed.back.id);
    rig.bed.machine.order(Fault::Entry { domain, cmd: GNTTABOP_map_grant_ref, nth: 2, status });
    assert_eq!(statuses(&mut rig, &reads(&pages)), [Status::Okay; 4]);
    rig.end(pages);
}

#[test]
fn kept_page_that_can_not_be_unmapped_is_lost_and_no_other() {
    let config = Config { max_persistent: 2, ..config() };
    let mut rig = Rig::<X86_64>::new(&disk(), config, PERSISTENT);
    let pages = Granted::many(&rig.bed, 4);
    assert_eq!(statuses(&mut rig, &reads(&pages[..2])), [Status::Okay; 2]);
    let domain = Some(rig.bed.back.id);
    rig.bed.machine.order(Fault::Entry { domain, cmd: GNTTABOP_unmap_grant_ref, nth: 1, status: GNTST_general_error });
    assert_eq!(statuses(&mut rig, &reads(&pages[2..])), [Status::Okay; 2]);
    assert_eq!((rig.counters().lost, rig.counters().persistent, rig.counters().evicted), (1, 2, 2));
    for _ in 0..3 {
        assert_eq!(statuses(&mut rig, &reads(&pages)), [Status::Okay; 4]);
    }
    assert_eq!(rig.counters().lost, 1);
}

#[test]
fn requests_without_room_for_their_pages_wait_for_their_turn_and_none_for_ever() {
    for persistent in [false, true] {
        let config = Config { pages: 33, max_indirect_segments: 32, max_persistent: 1, ..config() };
        let disk = disk();
        let mut rig = Rig::<X86_64>::new(&disk, config, Asks { persistent, ..Asks::default() });
        let pages = Granted::many(&rig.bed, 32);
        let segments = table(&rig.bed, &whole(&pages));
        disk.hold(true);
        let big = |id| indirect(Operation::Read, id, 0, 32, &segments);
        let small = |id| direct(Operation::Read, id, 0, &pages[..1]);
        assert_eq!(rig.send(&[big(1), big(2), flush(3), small(4), big(5)]), []);
        let mut order = Vec::new();
        while disk.0.borrow().jobs() > 0 {
            assert!(rig.mapped() <= 1 + 33 + usize::from(persistent), "{}", rig.mapped());
            order.extend(rig.finish(1).iter().map(|answer| (answer.id, answer.status)));
        }
        // In the order of the ring: nothing has overtaken what waits.
        assert_eq!(order, [1, 2, 3, 4, 5].map(|id| (id, Status::Okay)));
        // One more page is there with a grant that may be kept.
        assert_eq!(rig.counters().waits, if persistent { 2 } else { 3 });
        // A disk that does all at once makes nobody wait.
        disk.hold(false);
        let requests: Vec<_> = (0..u64::from(DEPTH)).map(big).collect();
        assert_eq!(statuses(&mut rig, &requests), [Status::Okay; DEPTH as usize]);
        rig.end(pages.into_iter().chain(segments).collect());
    }
}

#[test]
fn request_that_fits_no_more_since_pages_are_lost_is_an_error_and_smaller_ones_are_served() {
    let config = Config { pages: 1, max_indirect_segments: 32, persistent: false, ..config() };
    let mut rig = Rig::<X86_64>::new(&disk(), config, Asks::default());
    let pages = Granted::many(&rig.bed, 32);
    let segments = table(&rig.bed, &whole(&pages));
    let domain = Some(rig.bed.back.id);
    let big = indirect(Operation::Read, 1, 0, 32, &segments);
    rig.bed.machine.order(Fault::Entry { domain, cmd: GNTTABOP_unmap_grant_ref, nth: 7, status: GNTST_general_error });
    assert_eq!(rig.one(&big), Status::Okay);
    assert_eq!(
        statuses(&mut rig, &[big, big, flush(2), big]),
        [Status::Error, Status::Error, Status::Okay, Status::Error]
    );
    assert_eq!((rig.counters().lost, rig.counters().unmappable), (1, 3));
    assert_eq!(rig.one(&indirect(Operation::Read, 1, 0, 31, &segments)), Status::Okay);
}

#[test]
fn grants_that_are_kept_go_before_a_request_would_not_fit() {
    let config = Config { pages: 1, max_indirect_segments: 32, max_persistent: 32, ..config() };
    let mut rig = Rig::<X86_64>::new(&disk(), config, PERSISTENT);
    let pages = Granted::many(&rig.bed, 32);
    let segments = table(&rig.bed, &whole(&pages));
    let domain = Some(rig.bed.back.id);
    let big = indirect(Operation::Read, 1, 0, 32, &segments);
    rig.bed.machine.order(Fault::Entry { domain, cmd: GNTTABOP_unmap_grant_ref, nth: 1, status: GNTST_general_error });
    assert_eq!(rig.one(&big), Status::Okay);
    // 65 pages, of which 32 are kept and one is lost: one too few.
    assert_eq!((rig.counters().persistent, rig.counters().lost, rig.counters().expired), (32, 1, 0));
    assert_eq!(rig.one(&big), Status::Okay);
    assert_eq!((rig.counters().persistent, rig.counters().expired), (32, 32));
}

/// A request that has nothing wrong in its form and something else, drawn by lot, and how it should end.
fn bad_request(
    lots: &mut Lots,
    id: u64,
    good: &[Granted],
    bad_tables: &[Granted],
    good_table: &[Granted],
) -> (Request, Status) {
    let operation = [Operation::Read, Operation::Write][lots.below(2) as usize];
    let nowhere = GrantRef(1000 + lots.below(1 << 20) as u32);
    let one = |gref| {
        let mut segments = Segments::EMPTY;
        let _ = segments.push(Segment::new(good[0].gref(), 0, 7).unwrap())
            && segments.push(Segment::new(gref, 3, 3).unwrap());
        Request { id, operation, sector: 0, data: Data::Direct(segments) }
    };
    let list = |count, grefs: &[GrantRef]| Request {
        id,
        operation,
        sector: 0,
        data: Data::Indirect(IndirectPages::new(count, grefs).unwrap()),
    };
    let request = match lots.below(8) {
        0 => one(nowhere),
        1 => Request { sector: SECTORS - lots.below(8), ..direct(operation, id, 0, good) },
        2 => Request { sector: u64::MAX - lots.below(20), ..direct(operation, id, 0, good) },
        3 => list(2, &[nowhere]),
        4 => {
            let table = &bad_tables[lots.below(bad_tables.len() as u64) as usize];
            list(3, &[table.gref()])
        }
        5 => list(257 + lots.below(200) as u16, &[good_table[0].gref()]),
        6 => Request { sector: SECTORS - 23 + lots.below(1 << 40), ..list(3, &[good_table[0].gref()]) },
        _ => {
            let sectors = 1 + lots.below(SECTORS);
            let sector = SECTORS + 1 - sectors + lots.below(u64::MAX / 2);
            Request { id, ..discard(Operation::Discard, sector, sectors) }
        }
    };
    (request, Status::Error)
}

fn bad_requests<L: Layout>(persistent: bool) {
    let count = if cfg!(miri) { 64 } else { 50_000 };
    let disk = disk();
    disk.0.borrow_mut().discard = Some(Discard { granularity: 512, alignment: 0, secure: true });
    // A small stock, so that there are evictions and waits as well.
    let config = Config { max_persistent: 3, pages: 300, ..config() };
    let mut rig = Rig::<L>::new(&disk, config, Asks { persistent, ..Asks::default() });
    let good = Granted::many(&rig.bed, 3);
    let good_table = table(&rig.bed, &whole(&good));
    let bad_tables: Vec<_> = (0..3)
        .flat_map(|place| {
            let mut sectors = whole(&good);
            sectors[place][5] = 8;
            let mut gref = whole(&good);
            gref[place][..4].copy_from_slice(&5000u32.to_ne_bytes());
            [sectors, gref].map(|segments| table(&rig.bed, &segments).remove(0))
        })
        .collect();
    let mut lots = Lots(9);
    let mut id = 0;
    while id < count {
        let mut expected = BTreeMap::new();
        let mut batch = Vec::new();
        for _ in 0..=lots.below(u64::from(DEPTH)) {
            let (request, status) = bad_request(&mut lots, id, &good, &bad_tables, &good_table);
            expected.insert(id, (request.operation.wire(), status));
            batch.push(request);
            id += 1;
        }
        for answer in rig.send(&batch) {
            let expected = expected.remove(&answer.id).expect("one answer for a request");
            assert_eq!((answer.operation, answer.status), expected);
        }
        assert!(expected.is_empty(), "no answer for {expected:?}");
    }
    let counters = rig.counters();
    assert_eq!(counters.refused + counters.unmappable, id, "{counters:?}");
    assert_eq!((disk.0.borrow().started, counters.lost, &rig.back.errors), (0, 0, &Vec::new()));
    // No place and no page is lost: honest requests at full depth, all at the same time.
    disk.hold(true);
    let pages = Granted::many(&rig.bed, DEPTH as usize);
    let requests: Vec<_> = reads(&pages);
    assert_eq!(rig.send(&requests), []);
    assert_eq!(disk.0.borrow().jobs(), DEPTH as usize);
    assert!(rig.finish(DEPTH as usize).iter().all(|answer| answer.status == Status::Okay));
    assert_eq!(rig.mapped(), 1 + if persistent { 3 } else { 0 });
    rig.end([good, good_table, bad_tables, pages].into_iter().flatten().collect());
}

#[test]
fn hundred_thousand_bad_requests_of_all_operations_get_one_answer_each_and_nothing_sticks() {
    bad_requests::<X86_64>(true);
    bad_requests::<X86_32>(false);
}
