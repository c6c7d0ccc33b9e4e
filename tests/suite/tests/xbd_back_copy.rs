//! How our back end of a disk lets Xen copy the data of small requests: which, how often, where to, and what becomes of those that can't be.
#![cfg(not(target_os = "none"))]

mod common;

use common::raw_front::{Asks, Granted};
use common::rig::{Rig, direct, indirect, table, whole};
use common::{DEPTH, Slow};
use hypercall::GrantRef;
use hypercall::grant::{Access, Grants};
use hypercall::mem::{PAGE_SIZE, Pages};
use mock::{Fault, Kind};
use xbd::back::Config;
use xbd::protocol::{Data, Layout, Operation, Request, Segment, Segments, Status, X86_32, X86_64};
use xbd::{MAX_SEGMENTS, SECTOR};
use xen_sys::errno::XEN_EFAULT;
use xen_sys::grant_table::{GNTST_eagain, GNTST_general_error, GNTTABOP_copy};
use xenbus::device::State;

const SECTORS: u64 = 2048;
const LIMIT: u32 = 16384;

fn config() -> Config {
    Config { copy_limit: LIMIT, ..Config::default() }
}

fn rig<L: Layout>() -> Rig<L> {
    Rig::new(&Slow::new(SECTORS as usize), config(), Asks::default())
}

/// Calls of copies that the back end has made so far.
fn copies<L: Layout>(rig: &Rig<L>) -> u64 {
    rig.ledger().calls(Kind::grant(GNTTABOP_copy))
}

/// Requests of a page.
fn singles(operation: Operation, pages: &[Granted]) -> Vec<Request> {
    pages.iter().zip(0..).map(|(page, id)| direct(operation, id, 8 * id, std::slice::from_ref(page))).collect()
}

/// A request of some sectors of each page.
fn parts(operation: Operation, sector: u64, pages: &[Granted], sectors: &[(u8, u8)]) -> Request {
    let mut segments = Segments::EMPTY;
    for (page, (first, last)) in pages.iter().zip(sectors) {
        assert!(segments.push(Segment::new(page.gref(), *first, *last).unwrap()));
    }
    Request { id: 7, operation, sector, data: Data::Direct(segments) }
}

fn sorted(rig: &mut Rig<X86_64>, requests: &[Request]) -> Vec<Status> {
    let mut answers = rig.send(requests);
    answers.sort_unstable_by_key(|answer| answer.id);
    assert!(answers.iter().map(|answer| answer.id).eq(0..requests.len() as u64), "one answer each");
    answers.iter().map(|answer| answer.status).collect()
}

fn every_size<L: Layout>() {
    let mut rig = rig::<L>();
    let pages = Granted::many(&rig.bed, MAX_SEGMENTS);
    let shapes: Vec<Vec<(u8, u8)>> = (0..8)
        .flat_map(|first| (first..8).map(move |last| vec![(first, last)]))
        .chain((1..=4).map(|count| vec![(0, 7); count]))
        .chain([
            vec![(7, 7), (0, 0)],
            vec![(3, 5), (0, 7), (6, 7), (1, 1)],
            (0..8).chain(0..3).map(|at| (at, at)).collect(),
        ])
        .collect();
    let mut copied = 0;
    for shape in &shapes {
        let sectors: u64 = shape.iter().map(|(first, last)| u64::from(last - first) + 1).sum();
        assert!(sectors * SECTOR as u64 <= LIMIT.into());
        // There: what lies around it on the page is not written.
        pages.iter().zip(1..).for_each(|(page, byte)| page.fill(byte));
        let before = rig.disk.0.borrow().bytes.clone();
        assert_eq!(rig.one(&parts(Operation::Write, 100, &pages, shape)), Status::Okay, "{shape:?}");
        let mut expected = before;
        let mut at = 100 * SECTOR;
        for ((first, last), byte) in shape.iter().zip(1..) {
            let len = usize::from(last - first + 1) * SECTOR;
            expected[at..at + len].fill(byte);
            at += len;
        }
        assert!(rig.disk.0.borrow().bytes == expected, "{shape:?}");
        // Back: only what was asked for is written.
        pages.iter().for_each(|page| page.fill(0xee));
        assert_eq!(rig.one(&parts(Operation::Read, 200, &pages, shape)), Status::Okay, "{shape:?}");
        let disk = rig.disk.0.borrow().bytes.clone();
        let mut at = 200 * SECTOR;
        for (index, page) in pages.iter().enumerate() {
            let mut expected = vec![0xee; PAGE_SIZE];
            if let Some((first, last)) = shape.get(index) {
                let bytes = usize::from(*first) * SECTOR..(usize::from(*last) + 1) * SECTOR;
                let len = bytes.len();
                expected[bytes].copy_from_slice(&disk[at..at + len]);
                at += len;
            }
            assert!(page.bytes() == expected, "{shape:?} {index}");
        }
        copied += 2 * shape.len() as u64;
    }
    let counters = rig.counters();
    assert_eq!((counters.copied, counters.mapped, counters.copy_failed), (copied, 0, 0));
    assert_eq!((counters.requests, counters.segments), (2 * shapes.len() as u64, copied));
    rig.end(pages);
}

#[test]
fn small_requests_of_every_shape_are_copied_to_the_byte_in_the_layout_of_64_bits() {
    every_size::<X86_64>();
}

#[test]
fn small_requests_of_every_shape_are_copied_to_the_byte_in_the_layout_of_32_bits() {
    every_size::<X86_32>();
}

#[test]
fn full_ring_costs_one_hypercall_to_copy_and_no_other_but_an_event() {
    for operation in [Operation::Write, Operation::Read] {
        for hold in [false, true] {
            let mut rig = rig::<X86_64>();
            let pages = Granted::many(&rig.bed, DEPTH as usize);
            for round in 1..4 {
                let before = rig.ledger();
                rig.disk.hold(hold);
                let mut answers = rig.send(&singles(operation, &pages));
                if hold {
                    assert_eq!((answers.len(), rig.mapped()), (0, 1));
                    assert_eq!(copies(&rig) > before.calls(Kind::grant(GNTTABOP_copy)), operation == Operation::Write);
                    answers = rig.finish(DEPTH as usize);
                }
                assert_eq!(answers.len(), DEPTH as usize);
                assert!(answers.iter().all(|answer| answer.status == Status::Okay));
                let since = rig.ledger().since(&before);
                assert_eq!((since.calls(Kind::grant(GNTTABOP_copy)), since.all_hypercalls()), (1, 2), "{hold}");
                assert_eq!((rig.counters().copied, rig.counters().mapped), (round * u64::from(DEPTH), 0));
            }
            rig.end(pages);
        }
    }
}

#[test]
fn larger_ones_indirect_ones_and_barriers_are_mapped_and_so_is_all_without_a_limit_or_with_kept_grants() {
    for (limit, persistent) in [(LIMIT, false), (0, false), (511, false), (LIMIT, true)] {
        let config = Config { copy_limit: limit, ..Config::default() };
        let mut rig = Rig::<X86_64>::new(&Slow::new(SECTORS as usize), config, Asks { persistent, ..Asks::default() });
        let pages = Granted::many(&rig.bed, 5);
        let list = table(&rig.bed, &whole(&pages[..1]));
        let copied = |rig: &mut Rig<X86_64>, request: &Request| {
            let before = rig.counters().copied;
            assert_eq!(rig.one(request), Status::Okay);
            rig.counters().copied - before
        };
        let copies = limit == LIMIT && !persistent;
        assert_eq!(copied(&mut rig, &direct(Operation::Read, 1, 0, &pages[..4])), if copies { 4 } else { 0 });
        let last = [(0, 7), (0, 7), (0, 7), (0, 7), (0, 0)];
        assert_eq!(copied(&mut rig, &parts(Operation::Read, 0, &pages, &last)), 0, "a sector beyond the limit");
        assert_eq!(copied(&mut rig, &indirect(Operation::Read, 1, 0, 1, &list)), 0);
        assert_eq!(copied(&mut rig, &direct(Operation::Barrier, 1, 0, &pages[..1])), 0);
        // All at once.
        if copies {
            let before = rig.ledger();
            let both = [direct(Operation::Write, 0, 0, &pages[..1]), direct(Operation::Write, 1, 64, &pages)];
            assert_eq!(sorted(&mut rig, &both), [Status::Okay; 2]);
            let calls = rig.ledger().since(&before).calls(Kind::grant(GNTTABOP_copy));
            assert_eq!((rig.grant_calls(&before), calls), ((1, 1), 1));
        }
        rig.end(pages.into_iter().chain(list).collect());
    }
}

#[test]
fn page_that_can_not_be_copied_fails_its_request_alone() {
    let (requests, each) = (12, 3);
    for operation in [Operation::Read, Operation::Write] {
        for nth in 1..=requests * each {
            let mut rig = rig::<X86_64>();
            let pages = Granted::many(&rig.bed, requests * each);
            pages.iter().for_each(|page| page.fill(0xee));
            let disk = rig.disk.0.borrow().bytes.clone();
            let batch: Vec<_> =
                pages.chunks(each).zip(0..).map(|(pages, id)| direct(operation, id, 24 * id, pages)).collect();
            let domain = Some(rig.bed.back.id);
            let (cmd, status) = (GNTTABOP_copy, GNTST_general_error);
            rig.bed.machine.order(Fault::Entry { domain, cmd, nth: nth as u64, status });
            let bad = (nth - 1) / each;
            let expected: Vec<_> =
                (0..requests).map(|index| if index == bad { Status::Error } else { Status::Okay }).collect();
            assert_eq!(sorted(&mut rig, &batch), expected, "{operation:?} {nth}");
            let counters = rig.counters();
            assert_eq!((counters.copied, counters.copy_failed), ((requests * each) as u64 - 1, 1));
            let bytes = each * PAGE_SIZE;
            if operation == Operation::Write {
                // The disk has never heard of it.
                assert_eq!(rig.disk.0.borrow().started, requests as u64 - 1);
                assert!(rig.disk.0.borrow().bytes[bad * bytes..][..bytes] == disk[bad * bytes..][..bytes]);
            } else {
                assert_eq!(pages[nth - 1].bytes(), [0xee; PAGE_SIZE]);
            }
            // No place is lost.
            assert_eq!(sorted(&mut rig, &batch), vec![Status::Okay; requests]);
            assert_eq!((rig.counters().copied, rig.counters().mapped), (2 * (requests * each) as u64 - 1, 0));
            rig.end(pages);
        }
    }
}

#[test]
fn copy_that_is_refused_as_a_whole_fails_its_requests_and_one_whose_page_is_away_is_tried_again() {
    for operation in [Operation::Read, Operation::Write] {
        let mut rig = rig::<X86_64>();
        let pages = Granted::many(&rig.bed, 8);
        let domain = Some(rig.bed.back.id);
        let kind = Some(Kind::grant(GNTTABOP_copy));
        rig.bed.machine.order(Fault::Hypercall { domain, kind, nth: 1, errno: XEN_EFAULT });
        assert_eq!(sorted(&mut rig, &singles(operation, &pages)), [Status::Error; 8]);
        assert_eq!((rig.counters().copied, rig.counters().copy_failed), (0, 8));
        assert_eq!(rig.disk.0.borrow().started, if operation == Operation::Write { 0 } else { 8 });
        rig.bed.machine.order(Fault::Entry { domain, cmd: GNTTABOP_copy, nth: 3, status: GNTST_eagain });
        assert_eq!(sorted(&mut rig, &singles(operation, &pages)), [Status::Okay; 8]);
        assert_eq!((rig.counters().copied, rig.counters().copy_failed), (8, 8));
        rig.end(pages);
    }
}

#[test]
fn page_that_we_may_not_write_is_not_written_and_one_that_is_not_granted_any_more_fails() {
    let mut rig = rig::<X86_64>();
    let page = Pages::new(&rig.bed.front.platform, 1).unwrap();
    page.shared().write(0, &[0xee; PAGE_SIZE]);
    let mut refs = [GrantRef(0)];
    rig.bed.front.grants.reserve(&mut refs).unwrap();
    // SAFETY: just reserved; the page is seen through atomics only, and freed after the grant is ended.
    unsafe { rig.bed.front.grants.share(refs[0], rig.bed.back.id, page.gfn(0), Access::ReadOnly) };
    let mut segments = Segments::EMPTY;
    assert!(segments.push(Segment::new(refs[0], 0, 7).unwrap()));
    let request = |operation| Request { id: 1, operation, sector: 8, data: Data::Direct(segments) };
    assert_eq!(rig.one(&request(Operation::Read)), Status::Error);
    let mut bytes = [0; PAGE_SIZE];
    page.shared().read(0, &mut bytes);
    assert_eq!(bytes, [0xee; PAGE_SIZE]);
    assert_eq!(rig.one(&request(Operation::Write)), Status::Okay);
    assert_eq!(rig.disk.0.borrow().bytes[PAGE_SIZE..2 * PAGE_SIZE], [0xee; PAGE_SIZE]);
    // Ended while the disk reads, and before it writes.
    rig.disk.hold(true);
    assert_eq!(rig.send(&[request(Operation::Read)]), []);
    rig.bed.front.grants.end(refs[0]).unwrap();
    assert_eq!(rig.finish(1)[0].status, Status::Error);
    assert_eq!(rig.one(&request(Operation::Write)), Status::Error);
    assert_eq!((rig.counters().copied, rig.counters().copy_failed), (1, 3));
    // SAFETY: reserved above, and ended.
    unsafe { rig.bed.front.grants.release(&refs) };
    drop(page);
    rig.end(Vec::new());
}

#[test]
fn request_for_which_there_are_not_enough_pages_is_mapped_and_never_waits() {
    let config = Config { copy_pages: 5, ..config() };
    let mut rig = Rig::<X86_64>::new(&Slow::new(SECTORS as usize), config, Asks::default());
    let pages = Granted::many(&rig.bed, 12);
    let batch: Vec<_> =
        pages.chunks(2).zip(0..).map(|(pages, id)| direct(Operation::Read, id, 16 * id, pages)).collect();
    for lifo in [false, true, false] {
        rig.disk.hold(true);
        rig.disk.0.borrow_mut().lifo = lifo;
        let before = rig.counters();
        assert_eq!(rig.send(&batch), []);
        assert_eq!((rig.disk.0.borrow().jobs(), rig.mapped()), (6, 1 + 8));
        // One that is smaller takes the place that is left.
        assert_eq!(rig.send(&[direct(Operation::Read, 6, 0, &pages[..1])]), []);
        assert_eq!(rig.mapped(), 1 + 8);
        assert_eq!(rig.finish(7).len(), 7);
        let counters = rig.counters();
        assert_eq!((counters.copied - before.copied, counters.mapped - before.mapped, counters.waits), (5, 8, 0));
        for (index, page) in pages.iter().enumerate() {
            assert_eq!(page.bytes(), rig.disk.0.borrow().bytes[index * PAGE_SIZE..][..PAGE_SIZE]);
        }
    }
    rig.end(pages);
}

#[test]
fn nothing_is_copied_out_of_a_read_that_the_disk_has_failed() {
    let mut rig = rig::<X86_64>();
    let pages = Granted::many(&rig.bed, 2);
    pages[0].fill(0x55);
    pages[1].fill(0xee);
    assert_eq!(rig.one(&direct(Operation::Write, 1, 0, &pages[..1])), Status::Okay);
    rig.disk.0.borrow_mut().fail = true;
    // It would lie in the page of what was just written.
    for hold in [false, true] {
        rig.disk.hold(hold);
        let mut answers = rig.send(&[direct(Operation::Read, 2, 0, &pages[1..])]);
        if hold {
            answers = rig.finish(1);
        }
        assert_eq!(answers[0].status, Status::Error);
        assert_eq!((pages[1].bytes(), copies(&rig)), (vec![0xee; PAGE_SIZE], 1));
    }
    assert_eq!((rig.counters().copied, rig.counters().copy_failed, rig.counters().store_faults), (1, 0, 2));
    rig.end(pages);
}

#[test]
fn front_end_that_goes_with_requests_in_flight_leaves_nothing_behind() {
    for operation in [Operation::Read, Operation::Write] {
        for revoked in [false, true] {
            let mut rig = rig::<X86_64>();
            let mut pages = Granted::many(&rig.bed, 8);
            rig.disk.hold(true);
            assert_eq!(rig.send(&singles(operation, &pages)), []);
            // Nothing of them is mapped, so nothing keeps the front end from ending its grants.
            if revoked {
                pages.clear();
                assert_eq!(rig.bed.front.grants.stats().quarantined_pages, 0);
            }
            rig.bed.front_says("state", State::Closed.number()).unwrap();
            rig.back.follow(&rig.bed);
            assert_eq!(rig.back.disconnections, 0, "the disk works on it");
            rig.disk.hold(false);
            rig.back.poll();
            rig.back.follow(&rig.bed);
            assert_eq!((rig.back.disconnections, rig.mapped()), (1, 0));
            drop((pages, rig.front));
            rig.bed.check_quiet();
        }
    }
}

#[test]
fn memory_that_the_disk_still_works_on_is_never_used_again() {
    let mut rig = rig::<X86_64>();
    let pages = Granted::many(&rig.bed, 1);
    pages[0].fill(0xee);
    rig.disk.hold(true);
    assert_eq!(rig.send(&singles(Operation::Read, &pages)), []);
    let Rig { back, front, disk, bed } = rig;
    let held = bed.machine.usage().0[&bed.back.id].pages;
    drop(back);
    // The ring and the rest are gone, but not the memory of what is copied.
    let left = bed.machine.usage().0[&bed.back.id].pages;
    assert!(left >= usize::from(config().copy_pages), "{left} of {held}");
    assert_eq!(pages[0].bytes(), [0xee; PAGE_SIZE]);
    drop((pages, front, disk));
}
