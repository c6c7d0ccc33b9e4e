//! What goes over the wire for each kind of I/O, and how it is cut.

use hypercall::Platform;
use hypercall::grant::Access;
use hypercall::mem::{PAGE_SIZE, PageBuf};
use xbd::front::{Change, Config, Front, IoError, Queue, SubmitError};
use xbd::protocol::Operation;
use xen_sys::io::blkif::x86_64::{BlkifRequestDiscard, BlkifRequestIndirect};
use xen_sys::io::blkif::{
    BLKIF_RSP_EOPNOTSUPP, BLKIF_RSP_ERROR, BLKIF_RSP_OKAY, BlkifOp, BlkifRequest, BlkifRequestSegment,
};
use xen_sys::reinterpret;
use xenbus::Place;
use xenbus::device::State;

use crate::common::{Done, Io};
use crate::player::{buffer, bytes, connected, discard, ends, submit, submit_on};

const PLAIN: Config = Config::DEFAULT;

#[test]
fn split_io_ends_once_when_all_is_answered_with_the_first_error_whatever_the_order() {
    const ORDERS: [[usize; 3]; 6] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
    for order in ORDERS {
        for wrong in 0..8 {
            let (bed, mut front, mut players) = connected(3, PLAIN, &[]);
            submit(&mut front, Operation::Write, 16, Some(buffer(&bed, 25 * PAGE_SIZE, 5))).unwrap();
            let requests = players[0].requests(&bed);
            let shape: Vec<_> = requests.iter().map(|seen| (seen.sector, seen.segments.len())).collect();
            assert_eq!(shape, [(16, 11), (16 + 88, 11), (16 + 176, 3)]);
            let mut first = None;
            for (count, index) in order.into_iter().enumerate() {
                assert_eq!(front.done, [], "after {count}");
                // The second one that is wrong is wrong in another way.
                let status = match (wrong >> index & 1, first) {
                    (0, _) => BLKIF_RSP_OKAY,
                    (_, None) => BLKIF_RSP_ERROR,
                    _ => BLKIF_RSP_EOPNOTSUPP,
                };
                if status != BLKIF_RSP_OKAY {
                    first = first.or(Some(IoError::Failed));
                }
                players[0].answer(&[(&requests[index], status)]);
                front.follow(&bed);
            }
            let result = first.map_or(Ok(()), Err);
            assert_eq!(front.done, [Done { number: 0, result, whole: true }], "{order:?} {wrong}");
            ends(bed, front, players);
        }
    }
}

#[test]
fn request_of_a_split_io_that_is_answered_twice_breaks_the_queue() {
    for again in 0..3 {
        let (bed, mut front, mut players) = connected(3, PLAIN, &[]);
        submit(&mut front, Operation::Read, 0, Some(buffer(&bed, 25 * PAGE_SIZE, 5))).unwrap();
        let requests = players[0].requests(&bed);
        assert_eq!(requests.len(), 3);
        let twice = &requests[again];
        players[0].answer(&[(twice, BLKIF_RSP_OKAY), (twice, BLKIF_RSP_OKAY)]);
        front.follow(&bed);
        front.step();
        assert_eq!(front.errors, [format!("a response to request {}, which is not in flight", twice.id)]);
        assert_eq!(front.done, [Done { number: 0, result: Err(IoError::Lost), whole: true }]);
        ends(bed, front, players);
    }
}

#[test]
fn ring_of_sixteen_pages_is_used_at_full_depth() {
    let config = Config { max_ring_pages: 100, ..PLAIN };
    let nodes = [("max-ring-page-order", "4"), ("max-ring-pages", "16")];
    let (bed, mut front, mut players) = connected(4, config, &nodes);
    assert_eq!(players[0].slots, 512);
    for round in 0..3 {
        for sector in 0..512 {
            submit(&mut front, Operation::Write, sector, Some(buffer(&bed, 512, sector as u8))).unwrap();
        }
        assert_eq!(submit(&mut front, Operation::Write, 0, Some(buffer(&bed, 512, 0))), Err(SubmitError::Full));
        let mut requests = players[0].requests(&bed);
        assert_eq!(requests.len(), 512);
        for (sector, request) in (0..).zip(&requests) {
            assert_eq!(request.sector, sector);
            assert_eq!(players[0].data(&bed, request), bytes(512, sector as u8));
        }
        requests.reverse();
        players[0].all_well(&requests);
        front.follow(&bed);
        assert_eq!(front.done.len(), 512 * (round + 1));
    }
    assert_eq!(front.front.counters().full, 3);
    ends(bed, front, players);
}

#[test]
fn ring_is_no_larger_than_the_owner_wants_or_the_back_end_takes() {
    for (wanted, order, slots) in [(1, "4", 32), (5, "4", 128), (16, "1", 64), (0, "0", 32)] {
        let config = Config { max_ring_pages: wanted, ..PLAIN };
        let (bed, front, players) = connected(5, config, &[("max-ring-page-order", order)]);
        assert_eq!((players[0].slots, front.front.queues()), (slots, 1));
        ends(bed, front, players);
    }
}

/// io/blkif.h has two styles of telling it, and a back end may know but one.
#[test]
fn size_of_the_largest_ring_is_found_in_either_style() {
    let config = Config { max_ring_pages: 16, ..PLAIN };
    for (node, value, slots) in [
        ("max-ring-pages", "4", 128),
        ("max-ring-pages", "1", 32),
        ("max-ring-pages", "64", 512),
        ("max-ring-page-order", "2", 128),
        ("max-ring-page-order", "9", 512),
        ("info", "0", 32),
    ] {
        let (bed, mut front, mut players) = connected(5, config, &[(node, value)]);
        assert_eq!((players[0].slots, front.front.queues()), (slots, 1), "{node} {value}");
        for sector in 0..u64::from(slots) {
            submit(&mut front, Operation::Write, sector, Some(buffer(&bed, 512, sector as u8))).unwrap();
        }
        let requests = players[0].requests(&bed);
        assert_eq!(requests.len(), slots as usize);
        assert_eq!(players[0].data(&bed, &requests[31]), bytes(512, 31));
        players[0].all_well(&requests);
        front.follow(&bed);
        ends(bed, front, players);
    }
}

#[test]
fn queues_have_nothing_in_common() {
    let config = Config { max_queues: 4, max_ring_pages: 2, ..PLAIN };
    let nodes = [("multi-queue-max-queues", "3"), ("max-ring-page-order", "1")];
    let (bed, mut front, mut players) = connected(6, config, &nodes);
    assert_eq!((players.len(), front.front.queues()), (3, 3));
    assert!(front.front.queue(3).is_none() && front.front.port(3).is_none());
    // One is full, which is nothing to the others.
    for sector in 0..64 {
        submit_on(&mut front, 1, Operation::Read, sector, Some(buffer(&bed, 512, 0))).unwrap();
    }
    assert_eq!(submit_on(&mut front, 1, Operation::Read, 0, Some(buffer(&bed, 512, 0))), Err(SubmitError::Full));
    for queue in [0, 2] {
        submit_on(&mut front, queue, Operation::Write, 8, Some(buffer(&bed, PAGE_SIZE, queue as u8))).unwrap();
        let requests = players[queue].requests(&bed);
        assert_eq!((requests.len(), requests[0].id), (1, 0));
        assert_eq!(players[queue].data(&bed, &requests[0]), bytes(PAGE_SIZE, queue as u8));
        players[queue].all_well(&requests);
        front.follow(&bed);
    }
    assert_eq!(front.done.len(), 2);
    let requests = players[1].requests(&bed);
    players[1].all_well(&requests);
    front.follow(&bed);
    front.check_each_once();
    let counters = front.front.counters();
    assert_eq!((counters.requests, counters.full), (66, 1));
    assert_eq!(front.front.queue(2).unwrap().counters().requests, 1);
    ends(bed, front, players);
}

#[test]
fn queue_that_the_back_end_breaks_ends_the_device_with_all_its_queues() {
    let config = Config { max_queues: 2, ..PLAIN };
    let (bed, mut front, mut players) = connected(7, config, &[("multi-queue-max-queues", "8")]);
    for queue in 0..2 {
        submit_on(&mut front, queue, Operation::Read, 0, Some(buffer(&bed, 512, 0))).unwrap();
    }
    let mut wrong = players[1].requests(&bed);
    wrong[0].id = 5;
    players[1].all_well(&wrong);
    front.follow(&bed);
    front.step();
    assert_eq!(front.errors, ["a response to request 5, which is not in flight"]);
    assert_eq!(bed.front_state().as_deref(), Some("6"));
    front.check_each_once();
    assert!(front.done.iter().all(|done| done.whole && done.result == Err(IoError::Lost)));
    ends(bed, front, players);
}

/// What a disk that does everything says.
const ABLE: [(&str, &str); 5] = [
    ("feature-flush-cache", "1"),
    ("feature-barrier", "1"),
    ("feature-discard", "1"),
    ("discard-granularity", "4096"),
    ("discard-secure", "1"),
];

#[test]
fn flush_barrier_and_discard_look_like_that() {
    let (bed, mut front, mut players) = connected(8, PLAIN, &ABLE);
    submit(&mut front, Operation::Flush, 99, None).unwrap();
    submit(&mut front, Operation::Barrier, 99, None).unwrap();
    submit(&mut front, Operation::Barrier, 24, Some(buffer(&bed, 13 * PAGE_SIZE, 1))).unwrap();
    discard(&mut front, 7, 1 << 12, false).unwrap();
    discard(&mut front, 65535, 1, true).unwrap();
    let requests = players[0].requests(&bed);
    let shape: Vec<_> = requests.iter().map(|seen| (seen.op, seen.sector, seen.raw.nr_segments)).collect();
    let (flush, barrier, forget) = (BlkifOp::FLUSH_DISKCACHE, BlkifOp::WRITE_BARRIER, BlkifOp::DISCARD);
    let expected =
        [(flush, 0, 0), (barrier, 0, 0), (barrier, 24, 11), (barrier, 112, 2), (forget, 7, 0), (forget, 65535, 1)];
    assert_eq!(shape, expected);
    let sectors = |index: usize| reinterpret::<_, BlkifRequestDiscard>(&requests[index].raw).nr_sectors;
    assert_eq!((sectors(4), sectors(5)), (1 << 12, 1));
    players[0].all_well(&requests);
    front.follow(&bed);
    assert!(front.done.iter().all(|done| done.result == Ok(())));
    let counters = front.front.counters();
    assert_eq!((counters.requests, counters.segments), (6, 13));
    assert_eq!((counters.flushes, counters.barriers, counters.discards), (1, 3, 2));
    ends(bed, front, players);
}

/// Neither padding, nor a segment that is not in use, nor what is behind the last on a page of segments tells anything of
/// ours.
#[test]
fn every_byte_of_a_ring_is_what_a_request_says_or_zero() {
    let nodes = [&ABLE[..], &[("feature-max-indirect-segments", "256")]].concat();
    let (bed, mut front, mut players) = connected(8, PLAIN, &nodes);
    for (operation, pages) in
        [(Operation::Read, 1), (Operation::Write, 3), (Operation::Write, 20), (Operation::Read, 11)]
    {
        submit(&mut front, operation, 99, Some(buffer(&bed, pages * PAGE_SIZE, 1))).unwrap();
    }
    submit(&mut front, Operation::Flush, 99, None).unwrap();
    discard(&mut front, 99, 5, true).unwrap();
    let requests = players[0].requests(&bed);
    let mut expected = vec![0; PAGE_SIZE];
    for (slot, seen) in requests.iter().enumerate() {
        let (id, sector_number) = (seen.id, seen.sector);
        let said: BlkifRequest = if seen.indirect {
            let raw: BlkifRequestIndirect = reinterpret(&seen.raw);
            let (operation, indirect_op, nr_segments) = (BlkifOp::INDIRECT, seen.op, seen.segments.len() as u16);
            let mut indirect_grefs = [Default::default(); 8];
            indirect_grefs[0] = raw.indirect_grefs[0];
            let page = players[0].page(&bed, indirect_grefs[0], Access::ReadOnly).unwrap();
            assert!(page[seen.segments.len() * 8..].iter().all(|byte| *byte == 0));
            let said = BlkifRequestIndirect {
                operation,
                indirect_op,
                nr_segments,
                id,
                sector_number,
                indirect_grefs,
                ..Default::default()
            };
            reinterpret(&said)
        } else if seen.op == BlkifOp::DISCARD {
            let (operation, flag, nr_sectors) = (seen.op, 1, 5);
            reinterpret(&BlkifRequestDiscard { operation, flag, id, sector_number, nr_sectors, ..Default::default() })
        } else {
            let (operation, nr_segments) = (seen.op, seen.segments.len() as u8);
            let mut said = BlkifRequest { operation, nr_segments, id, sector_number, ..Default::default() };
            said.seg[..seen.segments.len()].copy_from_slice(&seen.segments);
            said
        };
        let head = u64::from(said.operation.0) | u64::from(said.nr_segments) << 8 | u64::from(said.handle) << 16;
        let segment = |segment: &BlkifRequestSegment| {
            let sectors =
                u64::from(segment.first_sect) | u64::from(segment.last_sect) << 8 | u64::from(segment._pad) << 16;
            u64::from(segment.gref.0) | sectors << 32
        };
        let words = [head | u64::from(said._pad0) << 32, said.id, said.sector_number].into_iter();
        for (at, word) in words.chain(said.seg.iter().map(segment)).enumerate() {
            expected[64 + slot * 112 + at * 8..][..8].copy_from_slice(&word.to_le_bytes());
        }
    }
    // Behind the indices, which are whatever they are.
    assert!(players[0].bytes()[16..] == expected[16..], "{:?}", players[0].bytes());
    players[0].all_well(&requests);
    front.follow(&bed);
    ends(bed, front, players);
}

#[test]
fn what_the_disk_does_not_do_is_not_taken() {
    let (bed, mut front, players) = connected(9, PLAIN, &[]);
    for operation in [Operation::Flush, Operation::Barrier] {
        assert_eq!(submit(&mut front, operation, 0, None), Err(SubmitError::NotSupported(operation)));
    }
    assert_eq!(discard(&mut front, 0, 8, false), Err(SubmitError::NotSupported(Operation::Discard)));
    assert_eq!(discard(&mut front, 0, 8, true), Err(SubmitError::NotSupported(Operation::SecureDiscard)));
    ends(bed, front, players);

    let nodes = [("feature-discard", "1"), ("sector-size", "4096"), ("feature-flush-cache", "1")];
    let (bed, mut front, players) = connected(9, PLAIN, &nodes);
    assert_eq!(discard(&mut front, 0, 8, true), Err(SubmitError::NotSupported(Operation::SecureDiscard)));
    for (sector, sectors) in [(1, 8), (0, 7), (0, 0), (4, 4)] {
        assert_eq!(discard(&mut front, sector, sectors, false), Err(SubmitError::BadBuffer), "{sector} {sectors}");
    }
    for (sector, sectors) in [(65536, 8), (0, 65544), (u64::MAX - 7, 8), (8, u64::MAX - 7)] {
        let expected = SubmitError::BeyondEnd { sector, sectors, capacity: 65536 };
        assert_eq!(discard(&mut front, sector, sectors, false), Err(expected));
    }
    // Each kind has data or has none.
    let page = || Some(buffer(&bed, PAGE_SIZE, 0));
    for (operation, data) in [
        (Operation::Read, None),
        (Operation::Write, None),
        (Operation::Flush, page()),
        (Operation::Discard, None),
        (Operation::Discard, page()),
    ] {
        assert_eq!(submit(&mut front, operation, 0, data), Err(SubmitError::BadBuffer), "{operation:?}");
    }
    ends(bed, front, players);
}

#[test]
fn ability_that_the_back_end_denies_is_gone_until_the_disk_is_connected_anew() {
    let config = Config { max_queues: 2, ..PLAIN };
    let nodes = [&ABLE[..], &[("multi-queue-max-queues", "2")]].concat();
    let (bed, mut front, mut players) = connected(10, config, &nodes);
    submit(&mut front, Operation::Flush, 0, None).unwrap();
    submit(&mut front, Operation::Barrier, 0, None).unwrap();
    discard(&mut front, 0, 8, true).unwrap();
    let requests = players[0].requests(&bed);
    players[0].answer(&requests.iter().map(|request| (request, BLKIF_RSP_EOPNOTSUPP)).collect::<Vec<_>>());
    front.follow(&bed);
    assert!(front.done.iter().all(|done| done.result == Err(IoError::NotSupported) && done.whole));
    let disk = *front.front.queue(0).unwrap().disk().unwrap();
    assert_eq!((disk.flush, disk.barrier, disk.discard.map(|discard| discard.secure)), (false, false, Some(false)));
    assert_eq!(submit(&mut front, Operation::Flush, 0, None), Err(SubmitError::NotSupported(Operation::Flush)));
    assert_eq!(submit(&mut front, Operation::Barrier, 0, None), Err(SubmitError::NotSupported(Operation::Barrier)));
    assert_eq!(discard(&mut front, 0, 8, true), Err(SubmitError::NotSupported(Operation::SecureDiscard)));
    discard(&mut front, 0, 8, false).unwrap();
    let requests = players[0].requests(&bed);
    players[0].answer(&[(&requests[0], BLKIF_RSP_EOPNOTSUPP)]);
    front.follow(&bed);
    assert_eq!(discard(&mut front, 0, 8, false), Err(SubmitError::NotSupported(Operation::Discard)));
    // A failed read or write says nothing about the disk; and a resize brings nothing back.
    submit(&mut front, Operation::Read, 0, Some(buffer(&bed, 512, 0))).unwrap();
    let requests = players[0].requests(&bed);
    players[0].answer(&[(&requests[0], BLKIF_RSP_EOPNOTSUPP)]);
    bed.back_says("sectors", 2048).unwrap();
    bed.back_says("state", State::Connected.number()).unwrap();
    front.follow(&bed);
    let expected = xbd::features::Disk { sectors: 2048, discard: None, ..disk };
    assert_eq!(front.front.disk(), Some(&expected));
    assert_eq!(front.front.queue(0).unwrap().disk(), Some(&expected));
    assert_eq!(front.front.queue(1).unwrap().disk(), Some(&expected), "the other queue has heard of it");
    ends(bed, front, players);
}

#[test]
fn resize_reaches_all_queues_and_may_change_the_physical_sectors_too() {
    let config = Config { max_queues: 2, ..PLAIN };
    let (bed, mut front, players) = connected(11, config, &[("multi-queue-max-queues", "2")]);
    bed.back_says("sectors", 8).unwrap();
    bed.back_says("physical-sector-size", 4096).unwrap();
    bed.back_says("state", State::Connected.number()).unwrap();
    front.follow(&bed);
    let disk = *front.front.disk().unwrap();
    assert_eq!((disk.sectors, disk.physical_sector_size), (8, 4096));
    for queue in 0..2 {
        assert_eq!(front.front.queue(queue).unwrap().disk(), Some(&disk));
        let error = submit_on(&mut front, queue, Operation::Read, 8, Some(buffer(&bed, 512, 0))).unwrap_err();
        assert_eq!(error, SubmitError::BeyondEnd { sector: 8, sectors: 1, capacity: 8 });
    }
    ends(bed, front, players);
}

#[test]
fn empty_drive_is_connected_and_has_no_sector() {
    let (bed, mut front, players) = connected(12, PLAIN, &[("info", "3")]);
    bed.back_says("sectors", 0).unwrap();
    bed.back_says("state", State::Connected.number()).unwrap();
    front.follow(&bed);
    assert_eq!(front.front.disk().map(|disk| (disk.sectors, disk.cdrom, disk.removable)), Some((0, true, true)));
    let error = submit(&mut front, Operation::Read, 0, Some(buffer(&bed, 512, 0))).unwrap_err();
    assert_eq!(error, SubmitError::BeyondEnd { sector: 0, sectors: 1, capacity: 0 });
    ends(bed, front, players);
}

#[test]
fn io_that_never_fits_is_told_from_one_that_does_not_fit_now() {
    let config = Config { max_grants: 30, ..PLAIN };
    let (bed, mut front, mut players) = connected(13, config, &[]);
    assert_eq!(front.front.queue(0).unwrap().max_segments(), 30);
    let pages = |count| Some(buffer(&bed, count * PAGE_SIZE, 0));
    let error = submit(&mut front, Operation::Write, 0, pages(31)).unwrap_err();
    assert_eq!(error, SubmitError::TooLarge { segments: 31, max: 30 });
    submit(&mut front, Operation::Write, 0, pages(30)).unwrap();
    for count in [1, 11, 12, 30] {
        assert_eq!(submit(&mut front, Operation::Write, 0, pages(count)), Err(SubmitError::Full), "{count}");
    }
    let requests = players[0].requests(&bed);
    assert_eq!(requests.len(), 3);
    players[0].all_well(&requests);
    front.follow(&bed);
    submit(&mut front, Operation::Write, 0, pages(29)).unwrap();
    submit(&mut front, Operation::Write, 0, pages(1)).unwrap();
    let requests = players[0].requests(&bed);
    players[0].all_well(&requests);
    front.follow(&bed);
    front.check_each_once();
    ends(bed, front, players);

    // What bounds it here is the ring.
    let (bed, mut front, players) = connected(13, PLAIN, &[]);
    assert_eq!(front.front.queue(0).unwrap().max_segments(), 352);
    let error = submit(&mut front, Operation::Write, 0, Some(buffer(&bed, 353 * PAGE_SIZE, 0))).unwrap_err();
    assert_eq!(error, SubmitError::TooLarge { segments: 353, max: 352 });
    ends(bed, front, players);
}

#[test]
fn io_that_is_split_is_made_of_whole_sectors_of_the_disk() {
    /// Pages with a first part of their own length.
    struct Odd(PageBuf<mock::Domain>, u16);
    // SAFETY: parts of pages that the buffer owns.
    unsafe impl hypercall::mem::Buffer for Odd {
        fn segments(&self) -> impl Iterator<Item = hypercall::mem::Segment> {
            let cut = self.1;
            self.0.segments().flat_map(move |part| {
                let second = hypercall::mem::Segment { offset: cut, len: part.len - cut, ..part };
                [hypercall::mem::Segment { len: cut, ..part }, second]
            })
        }

        fn parts(&self) -> impl Iterator<Item = hypercall::mem::Shared<'_>> {
            let cut = usize::from(self.1);
            self.0.parts().flat_map(move |part| [part.slice(0, cut), part.slice(cut, part.len() - cut)])
        }
    }
    for (cut, pages, expected) in [(2048, 6, 2), (2048, 5, 1), (1536, 5, 1), (1536, 6, 0)] {
        let bed = crate::common::Bed::new(14);
        let mut front: xbd::front::Front<_, Odd> =
            xbd::front::Front::new(&bed.front, &bed.device.front_path(), PLAIN).unwrap();
        bed.back_says("sectors", 65536).unwrap();
        bed.back_says("sector-size", 2048).unwrap();
        bed.back_says("state", State::InitWait.number()).unwrap();
        bed.settle();
        front.step(drop).unwrap();
        bed.back_says("state", State::Connected.number()).unwrap();
        bed.settle();
        front.step(drop).unwrap();
        let queue = front.queue(0).unwrap();
        let odd = Odd(buffer(&bed, pages * PAGE_SIZE, 0), cut);
        let submitted = queue.submit(Operation::Read, 0, odd).map_err(|(error, _)| error);
        assert_eq!(queue.counters().requests, expected, "{cut} {pages}");
        assert_eq!(submitted, if expected > 0 { Ok(()) } else { Err(SubmitError::BadBuffer) });
        assert_eq!(front.abandon(drop), xbd::front::Change::Closed);
    }
}

#[test]
fn data_path_allocates_nothing_and_needs_nothing_but_the_moment_under_a_lock() {
    for (config, nodes) in [
        (PLAIN, &[][..]),
        (PLAIN, &[("feature-max-indirect-segments", "64")]),
        (Config { trusted: false, ..PLAIN }, &[]),
        (Config { persistent: true, ..PLAIN }, &[("feature-persistent", "1")]),
    ] {
        let (bed, mut front, mut players) = connected(15, config, nodes);
        let mut done = Vec::with_capacity(64);
        for pages in [1, 11, 12, 40, 64, 100] {
            for operation in [Operation::Read, Operation::Write] {
                let data = Some(buffer(&bed, pages * PAGE_SIZE, 0));
                let number = front.next;
                front.next += 1;
                let queue = front.front.queue(0).unwrap();
                let before = mock::alloc::count();
                assert!(queue.submit(operation, 0, (number, data)).is_ok());
                queue.push();
                assert_eq!(mock::alloc::count() - before, 0, "submit {operation:?} {pages} {config:?}");
                let requests = players[0].requests(&bed);
                players[0].all_well(&requests);
                bed.settle();
                let queue = front.front.queue(0).unwrap();
                let before = mock::alloc::count();
                queue.poll(|completion| done.push(completion)).unwrap();
                assert_eq!(mock::alloc::count() - before, 0, "poll {operation:?} {pages} {config:?}");
                front.done.extend(done.drain(..).map(Done::from));
            }
        }
        ends(bed, front, players);
    }
}

/// A place behind a lock under which interrupts are held off: the mock finds whoever allocates, frees pages or waits there.
struct Guarded(Option<Queue<mock::Node, Io>>, mock::Domain);

impl Place<Queue<mock::Node, Io>> for Guarded {
    fn with<R>(&mut self, work: impl FnOnce(&mut Option<Queue<mock::Node, Io>>) -> R) -> R {
        let Self(queue, domain) = self;
        domain.uninterrupted(|| work(queue))
    }
}

#[test]
fn life_cycle_does_nothing_under_a_lock_of_the_places_that_a_kernel_could_not() {
    for config in [PLAIN, Config { trusted: false, ..PLAIN }, Config { reconnect: true, ..PLAIN }] {
        let bed = crate::common::Bed::new(16);
        let place = || Guarded(None, bed.front.platform.clone());
        let mut front =
            Front::with_places(&bed.front, &bed.device.front_path(), config, vec![place(), place()]).unwrap();
        let mut over = Vec::with_capacity(100);
        let mut changes = Vec::new();
        for _ in 0..2 {
            bed.back_says("sectors", 4096).unwrap();
            bed.back_says("feature-max-indirect-segments", 32).unwrap();
            bed.back_says("multi-queue-max-queues", 2).unwrap();
            for state in [State::InitWait, State::Connected, State::Closed] {
                if state == State::Closed {
                    // Under no lock here: what the owner does is the owner's.
                    for place in 0..front.queues() {
                        let data = buffer(&bed, 40 * PAGE_SIZE, 0);
                        let queue = front.place(place).0.as_mut().unwrap();
                        assert!(queue.submit(Operation::Write, 0, (changes.len() as u64, Some(data))).is_ok());
                    }
                }
                bed.back_says("state", state.number()).unwrap();
                bed.settle();
                changes.push(front.step(|completion| over.push(completion)).unwrap());
            }
            assert_eq!(bed.machine.violations(), [""; 0], "{config:?}");
        }
        let gone = if config.reconnect { Change::Reconnecting } else { Change::Closed };
        assert_eq!(changes[2], gone);
        assert_eq!(front.abandon(|completion| over.push(completion)), Change::Closed);
        assert_eq!(over.len(), if config.reconnect { 4 } else { 2 });
        over.clear();
        drop(front);
        bed.check_quiet();
    }
}
