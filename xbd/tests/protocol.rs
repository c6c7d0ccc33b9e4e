//! The door: what gets in, and what doesn't.

use proptest::prelude::*;
use xbd::MAX_SEGMENTS;
use xbd::protocol::{Malformed, Operation, Request, Segment, Segments, Status, Why, emit, parse, respond};
use xen_sys::GrantRef;
use xen_sys::io::blkif::{BLKIF_RSP_EOPNOTSUPP, BLKIF_RSP_ERROR, BlkifOp, BlkifRequest, BlkifRequestSegment};

fn segment() -> impl Strategy<Value = Segment> {
    let sectors = (0u8..8).prop_flat_map(|first| (Just(first), first..8));
    (any::<u32>(), sectors).prop_map(|(gref, (first, last))| Segment::new(GrantRef(gref), first, last).unwrap())
}

/// Every request that there can be.
fn request() -> impl Strategy<Value = Request> {
    let data = (any::<bool>(), any::<u64>(), prop::collection::vec(segment(), 1..=MAX_SEGMENTS));
    let what = prop_oneof![
        1 => Just((Operation::Flush, 0, Vec::new())),
        4 => data.prop_map(|(write, sector, list)| {
            (if write { Operation::Write } else { Operation::Read }, sector, list)
        }),
    ];
    (any::<u64>(), what).prop_map(|(id, (operation, sector, list))| {
        let mut segments = Segments::EMPTY;
        list.iter().for_each(|segment| assert!(segments.push(*segment)));
        Request { id, operation, sector, segments }
    })
}

/// Anything that can stand in a slot, mostly near to what is right.
fn raw() -> impl Strategy<Value = BlkifRequest> {
    let op = prop_oneof![3 => 0u8..8, 1 => any::<u8>()];
    let count = prop_oneof![3 => 0u8..13, 1 => any::<u8>()];
    let sector = || prop_oneof![5 => 0u8..8, 1 => any::<u8>()];
    let segments = prop::array::uniform11((any::<u32>(), sector(), sector(), any::<u16>()));
    (op, count, any::<u16>(), any::<u32>(), any::<u64>(), any::<u64>(), segments).prop_map(
        |(op, nr_segments, handle, pad, id, sector_number, segments)| BlkifRequest {
            operation: BlkifOp(op),
            nr_segments,
            handle,
            _pad0: pad,
            id,
            sector_number,
            seg: segments.map(|(gref, first_sect, last_sect, pad)| BlkifRequestSegment {
                gref: GrantRef(gref),
                first_sect,
                last_sect,
                _pad: pad,
            }),
        },
    )
}

fn read_of(first_sect: u8, last_sect: u8) -> BlkifRequest {
    let mut raw = BlkifRequest { operation: BlkifOp::READ, nr_segments: 1, ..Default::default() };
    raw.seg[0] = BlkifRequestSegment { gref: GrantRef(9), first_sect, last_sect, ..Default::default() };
    raw
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 8 } else { 4096 }, failure_persistence: None, ..Default::default() })]

    #[test]
    fn request_that_was_emitted_is_parsed_as_it_was(request in request()) {
        prop_assert_eq!(parse(&emit(&request)), Ok(request));
    }

    #[test]
    fn emitted_request_has_nothing_in_what_it_does_not_use(request in request()) {
        let raw = emit(&request);
        prop_assert_eq!((raw.handle, raw._pad0), (0, 0));
        for (index, segment) in raw.seg.iter().enumerate() {
            prop_assert_eq!(segment._pad, 0);
            if index >= request.segments.as_slice().len() {
                prop_assert_eq!(*segment, BlkifRequestSegment::default());
            }
        }
    }

    #[test]
    fn whatever_stands_in_a_slot_is_a_right_request_or_malformed(raw in raw()) {
        match parse(&raw) {
            Ok(request) => {
                prop_assert_eq!(request.id, raw.id);
                prop_assert_eq!(request.operation.wire(), raw.operation);
                let list = request.segments.as_slice();
                prop_assert_eq!(list.len(), usize::from(raw.nr_segments));
                prop_assert_eq!(list.is_empty(), request.operation == Operation::Flush);
                for (segment, raw) in list.iter().zip(&raw.seg) {
                    prop_assert!(segment.sectors() > 0 && segment.offset() + segment.len() <= 4096);
                    prop_assert_eq!(segment.offset(), usize::from(raw.first_sect) * 512);
                    prop_assert_eq!(segment.gref(), raw.gref);
                }
                let sectors: u64 = list.iter().map(|segment| segment.sectors()).sum();
                prop_assert_eq!(request.segments.sectors(), sectors);
            }
            Err(malformed) => {
                prop_assert_eq!((malformed.id, malformed.operation), (raw.id, raw.operation));
                prop_assert_ne!(malformed.status(), Status::Okay);
            }
        }
    }

    #[test]
    fn status_is_parsed_as_it_was_emitted(status in any::<i16>(), id in any::<u64>(), op in any::<u8>()) {
        let status_of = Status::from_wire(status);
        prop_assert_eq!(status_of.wire(), status);
        let raw = respond(id, BlkifOp(op), status_of);
        prop_assert_eq!((raw.id, raw.operation, raw.status), (id, BlkifOp(op), status));
        prop_assert_eq!((raw._pad0, raw._pad1), (0, 0));
    }
}

#[test]
fn segment_is_taken_if_and_only_if_first_is_not_behind_last_and_last_is_in_the_page() {
    for first in 0..=u8::MAX {
        for last in 0..=u8::MAX {
            let right = first <= last && last <= 7;
            assert_eq!(Segment::new(GrantRef(1), first, last).is_some(), right, "{first} {last}");
            let parsed = parse(&read_of(first, last));
            match parsed {
                Ok(request) => {
                    assert!(right, "{first} {last}");
                    assert_eq!(request.segments.sectors(), u64::from(last - first) + 1);
                }
                Err(malformed) => {
                    assert!(!right, "{first} {last}");
                    assert_eq!(malformed.why, Why::SegmentSectors { index: 0, first, last });
                    assert_eq!(malformed.status().wire(), BLKIF_RSP_ERROR);
                }
            }
        }
    }
}

#[test]
fn every_segment_is_checked_not_the_first_alone() {
    for index in 0..MAX_SEGMENTS as u8 {
        let mut raw = read_of(0, 7);
        raw.nr_segments = 11;
        raw.seg[usize::from(index)].last_sect = 8;
        assert_eq!(parse(&raw).unwrap_err().why, Why::SegmentSectors { index, first: 0, last: 8 });
        // What is behind the count is not looked at.
        raw.nr_segments = index;
        assert_eq!(parse(&raw).is_ok(), index > 0);
    }
}

#[test]
fn count_of_segments_is_checked_for_every_operation_and_every_count() {
    for count in 0..=u8::MAX {
        for (op, right) in [
            (BlkifOp::READ, (1..=11).contains(&count)),
            (BlkifOp::WRITE, (1..=11).contains(&count)),
            (BlkifOp::FLUSH_DISKCACHE, count == 0),
        ] {
            let raw = BlkifRequest { operation: op, nr_segments: count, ..read_of(0, 0) };
            match parse(&raw) {
                Ok(_) => assert!(right, "{op:?} {count}"),
                Err(malformed) => {
                    assert!(!right, "{op:?} {count}");
                    assert_eq!(malformed.why, Why::SegmentCount(count));
                    assert_eq!(malformed.status().wire(), BLKIF_RSP_ERROR);
                }
            }
        }
    }
}

#[test]
fn operation_that_is_not_ours_is_answered_as_not_supported() {
    let ours = [BlkifOp::READ, BlkifOp::WRITE, BlkifOp::FLUSH_DISKCACHE];
    for op in (0..=u8::MAX).map(BlkifOp).filter(|op| !ours.contains(op)) {
        let raw = BlkifRequest { operation: op, id: 77, ..read_of(0, 0) };
        let malformed = parse(&raw).unwrap_err();
        assert_eq!(malformed, Malformed { id: 77, operation: op, why: Why::UnknownOperation });
        assert_eq!(malformed.status().wire(), BLKIF_RSP_EOPNOTSUPP);
    }
}

#[test]
fn only_a_write_changes_the_disk() {
    for op in [Operation::Read, Operation::Write, Operation::Flush] {
        assert_eq!(op.mutates(), op == Operation::Write);
        assert_eq!(Operation::from_wire(op.wire()), Some(op));
    }
}

#[test]
fn there_is_room_for_eleven_segments_and_no_more() {
    let mut segments = Segments::EMPTY;
    let segment = Segment::new(GrantRef(1), 0, 7).unwrap();
    for _ in 0..11 {
        assert!(segments.push(segment));
    }
    assert!(!segments.push(segment));
    assert_eq!(segments.sectors(), 88);
}
