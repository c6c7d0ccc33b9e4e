//! Requests whose segments stand on pages of their own.

use hypercall::grant::Access;
use hypercall::mem::PAGE_SIZE;
use xbd::front::{Config, SubmitError};
use xbd::protocol::Operation;
use xen_sys::io::blkif::BlkifOp;
use xen_sys::io::blkif::x86_64::BlkifRequestIndirect;
use xen_sys::reinterpret;

use crate::common::Done;
use crate::player::{buffer, bytes, connected, ends, submit};

const PLAIN: Config = Config::DEFAULT;

#[test]
fn indirect_request_has_its_segments_on_pages_that_are_granted_for_reading_only() {
    let (bed, mut front, mut players) = connected(1, PLAIN, &[("feature-max-indirect-segments", "256")]);
    let len = 39 * PAGE_SIZE + 1536;
    submit(&mut front, Operation::Write, 80, Some(buffer(&bed, len, 9))).unwrap();
    submit(&mut front, Operation::Read, 8, Some(buffer(&bed, 12 * PAGE_SIZE, 0))).unwrap();
    submit(&mut front, Operation::Write, 0, Some(buffer(&bed, 11 * PAGE_SIZE, 0))).unwrap();
    let requests = players[0].requests(&bed);
    assert_eq!(requests.iter().map(|seen| seen.indirect).collect::<Vec<_>>(), [true, true, false]);
    let raw: BlkifRequestIndirect = reinterpret(&requests[0].raw);
    assert_eq!((raw.operation, raw.indirect_op, raw.nr_segments), (BlkifOp::INDIRECT, BlkifOp::WRITE, 40));
    assert_eq!((raw.id, raw.sector_number, raw.handle, raw._pad0, raw._pad1, raw._pad2), (0, 80, 0, 0, 0, 0));
    assert!(raw.indirect_grefs[0].0 > 0 && raw.indirect_grefs[1..].iter().all(|gref| gref.0 == 0));
    assert_eq!(players[0].page(&bed, raw.indirect_grefs[0], Access::ReadWrite), None);
    // Nothing else of us is on it.
    let page = players[0].page(&bed, raw.indirect_grefs[0], Access::ReadOnly).unwrap();
    assert!(page[40 * 8..].iter().all(|byte| *byte == 0));
    let last = requests[0].segments[39];
    assert_eq!((last.first_sect, last.last_sect), (0, 2));
    assert!(requests[0].segments[..39].iter().all(|segment| (segment.first_sect, segment.last_sect) == (0, 7)));
    assert_eq!(players[0].data(&bed, &requests[0]), bytes(len, 9));
    assert_eq!(requests[1].segments.len(), 12);
    let counters = front.front.counters();
    assert_eq!((counters.requests, counters.indirect, counters.segments), (3, 2, 63));
    players[0].all_well(&requests);
    front.follow(&bed);
    front.check_each_once();
    ends(bed, front, players);
}

#[test]
fn request_of_more_than_512_segments_takes_several_pages_and_an_io_may_be_several_of_them() {
    let config = Config { max_indirect_segments: 4096, max_grants: 3000, ..PLAIN };
    let (bed, mut front, mut players) = connected(2, config, &[("feature-max-indirect-segments", "1000")]);
    let queue = front.front.queue(0).unwrap();
    assert_eq!((queue.max_request_segments(), queue.max_segments()), (1000, 3000));
    let len = 2005 * PAGE_SIZE;
    submit(&mut front, Operation::Write, 0, Some(buffer(&bed, len, 3))).unwrap();
    let requests = players[0].requests(&bed);
    let shape: Vec<_> = requests.iter().map(|seen| (seen.sector, seen.segments.len(), seen.indirect)).collect();
    assert_eq!(shape, [(0, 1000, true), (8000, 1000, true), (16000, 5, false)]);
    let mut data = Vec::new();
    for request in &requests {
        data.append(&mut players[0].data(&bed, request));
    }
    assert!(data == bytes(len, 3));
    players[0].all_well(&requests);
    front.follow(&bed);
    assert_eq!(front.done, [Done { number: 0, result: Ok(()), whole: true }]);
    ends(bed, front, players);
}

#[test]
fn indirect_request_lies_within_the_disk_and_has_no_more_segments_than_the_back_end_takes() {
    let nodes = [("feature-max-indirect-segments", "16"), ("sector-size", "4096")];
    let (bed, mut front, mut players) = connected(3, PLAIN, &nodes);
    let capacity = front.front.disk().unwrap().sectors;
    let sectors = 13 * 8;
    let mut write = |sector| submit(&mut front, Operation::Write, sector, Some(buffer(&bed, 13 * PAGE_SIZE, 1)));
    for sector in [capacity - sectors + 8, capacity, u64::MAX - 7] {
        assert_eq!(write(sector), Err(SubmitError::BeyondEnd { sector, sectors, capacity }));
    }
    // Not where a sector of the disk begins.
    assert_eq!(write(4), Err(SubmitError::BadBuffer));
    write(capacity - sectors).unwrap();
    for pages in [16, 17] {
        submit(&mut front, Operation::Read, 0, Some(buffer(&bed, pages * PAGE_SIZE, 1))).unwrap();
    }
    let requests = players[0].requests(&bed);
    let shape: Vec<_> = requests.iter().map(|seen| (seen.sector, seen.segments.len(), seen.indirect)).collect();
    assert_eq!(shape, [(capacity - sectors, 13, true), (0, 16, true), (0, 16, true), (16 * 8, 1, false)]);
    assert_eq!(players[0].data(&bed, &requests[0]), bytes(13 * PAGE_SIZE, 1));
    players[0].all_well(&requests);
    front.follow(&bed);
    ends(bed, front, players);
}

#[test]
fn indirect_request_that_finds_too_few_grants_leaves_its_pages_to_others() {
    let nodes = [("feature-max-indirect-segments", "256")];
    let (bed, mut front, mut players) = connected(4, Config { max_grants: 36, ..PLAIN }, &nodes);
    let pages = |count| Some(buffer(&bed, count * PAGE_SIZE, 0));
    for index in 0..32 {
        submit(&mut front, Operation::Read, index, pages(1)).unwrap();
    }
    // What there is never room for is not what there is no room for now.
    let errors = [36, 37].map(|count| submit(&mut front, Operation::Read, 0, pages(count)).unwrap_err());
    assert_eq!(errors, [SubmitError::Full, SubmitError::TooLarge { segments: 37, max: 36 }]);
    let requests = players[0].requests(&bed);
    players[0].all_well(&requests);
    front.follow(&bed);
    submit(&mut front, Operation::Read, 0, pages(30)).unwrap();
    for _ in 0..3 {
        assert_eq!(submit(&mut front, Operation::Read, 0, pages(12)), Err(SubmitError::Full));
    }
    let requests = players[0].requests(&bed);
    players[0].all_well(&requests);
    front.follow(&bed);
    for _ in 0..3 {
        submit(&mut front, Operation::Read, 0, pages(12)).unwrap();
    }
    let requests = players[0].requests(&bed);
    let shape: Vec<_> = requests.iter().map(|seen| (seen.segments.len(), seen.indirect)).collect();
    assert_eq!(shape, [(12, true); 3]);
    players[0].all_well(&requests);
    front.follow(&bed);
    ends(bed, front, players);
}
