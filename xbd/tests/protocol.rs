//! The door: what gets in, and what doesn't.

use proptest::prelude::*;
use xbd::protocol::{
    Answer, Data, IndirectPages, Layout, Malformed, Operation, Request, Segment, Segments, Status, Why, X86_32, X86_64,
};
use xbd::{MAX_INDIRECT_SEGMENTS, MAX_SEGMENTS};
use xen_sys::io::blkif::{
    BLKIF_DISCARD_SECURE, BLKIF_RSP_EOPNOTSUPP, BLKIF_RSP_ERROR, BlkifOp, BlkifRequestSegment, x86_32, x86_64,
};
use xen_sys::{GrantRef, reinterpret};

fn segment() -> impl Strategy<Value = Segment> {
    let sectors = (0u8..8).prop_flat_map(|first| (Just(first), first..8));
    (any::<u32>(), sectors).prop_map(|(gref, (first, last))| Segment::new(GrantRef(gref), first, last).unwrap())
}

fn direct(least: usize) -> impl Strategy<Value = Segments> {
    prop::collection::vec(segment(), least..=MAX_SEGMENTS).prop_map(|list| {
        let mut segments = Segments::EMPTY;
        list.iter().for_each(|segment| assert!(segments.push(*segment)));
        segments
    })
}

fn indirect() -> impl Strategy<Value = IndirectPages> {
    (1..=MAX_INDIRECT_SEGMENTS as u16, prop::array::uniform8(any::<u32>()))
        .prop_map(|(segments, grefs)| IndirectPages::new(segments, &grefs.map(GrantRef)).unwrap())
}

/// Every request that there can be.
fn request() -> impl Strategy<Value = Request> {
    let transfer = || prop_oneof![Just(Operation::Read), Just(Operation::Write)];
    let discard = prop_oneof![Just(Operation::Discard), Just(Operation::SecureDiscard)];
    let what = prop_oneof![
        1 => Just((Operation::Flush, 0, Data::None)),
        4 => (transfer(), any::<u64>(), direct(1)).prop_map(|(op, sector, list)| (op, sector, Data::Direct(list))),
        1 => (any::<u64>(), direct(1)).prop_map(|(sector, list)| (Operation::Barrier, sector, Data::Direct(list))),
        1 => Just((Operation::Barrier, 0, Data::Direct(Segments::EMPTY))),
        3 => (transfer(), any::<u64>(), indirect()).prop_map(|(op, sector, pages)| (op, sector, Data::Indirect(pages))),
        1 => (discard, any::<u64>(), 1..=u64::MAX).prop_map(|(op, sector, n)| (op, sector, Data::Sectors(n))),
    ];
    (any::<u64>(), what).prop_map(|(id, (operation, sector, data))| Request { id, operation, sector, data })
}

/// Anything that can stand in a slot, mostly near to what is right.
fn raw() -> impl Strategy<Value = x86_64::BlkifRequest> {
    let op = prop_oneof![3 => 0u8..8, 1 => any::<u8>()];
    let count = prop_oneof![3 => 0u8..13, 1 => any::<u8>()];
    let sector = || prop_oneof![5 => 0u8..8, 1 => any::<u8>()];
    let segments = prop::array::uniform11((any::<u32>(), sector(), sector(), any::<u16>()));
    (op, count, any::<u16>(), any::<u32>(), any::<u64>(), any::<u64>(), segments).prop_map(
        |(op, nr_segments, handle, pad, id, sector_number, segments)| x86_64::BlkifRequest {
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

fn read_of(first_sect: u8, last_sect: u8) -> x86_64::BlkifRequest {
    let mut raw = x86_64::BlkifRequest { operation: BlkifOp::READ, nr_segments: 1, ..Default::default() };
    raw.seg[0] = BlkifRequestSegment { gref: GrantRef(9), first_sect, last_sect, ..Default::default() };
    raw
}

/// Checks what a parsed request promises.
fn holds(request: &Request) -> Result<(), TestCaseError> {
    match (request.operation, &request.data) {
        (Operation::Flush, Data::None) => prop_assert_eq!(request.sector, 0),
        (Operation::Read | Operation::Write, Data::Direct(list)) => prop_assert!(!list.as_slice().is_empty()),
        (Operation::Barrier, Data::Direct(_)) => {}
        (Operation::Read | Operation::Write, Data::Indirect(pages)) => {
            prop_assert!((1..=MAX_INDIRECT_SEGMENTS).contains(&usize::from(pages.segments())));
            prop_assert_eq!(pages.grefs().len(), usize::from(pages.segments()).div_ceil(512));
        }
        (Operation::Discard | Operation::SecureDiscard, Data::Sectors(sectors)) => prop_assert!(*sectors > 0),
        _ => prop_assert!(false, "{:?}", request),
    }
    if let Data::Direct(list) = &request.data {
        for segment in list.as_slice() {
            prop_assert!(segment.offset() + segment.len() <= 4096 && !segment.is_empty());
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 8 } else { 4096 }, failure_persistence: None, ..Default::default() })]

    #[test]
    fn request_that_was_emitted_is_parsed_as_it_was_in_either_layout(request in request()) {
        prop_assert_eq!(X86_64::parse(&X86_64::emit(&request)), Ok(request));
        prop_assert_eq!(X86_32::parse(&X86_32::emit(&request)), Ok(request));
    }

    #[test]
    fn emitted_request_has_nothing_in_what_it_does_not_use(request in request()) {
        let raw = X86_64::emit(&request);
        prop_assert_eq!(raw._pad0, 0);
        if let Data::Direct(list) = &request.data {
            prop_assert_eq!(raw.handle, 0);
            for (index, segment) in raw.seg.iter().enumerate() {
                prop_assert_eq!(segment._pad, 0);
                if index >= list.as_slice().len() {
                    prop_assert_eq!(*segment, BlkifRequestSegment::default());
                }
            }
        }
        if let Data::Indirect(pages) = &request.data {
            let raw: x86_64::BlkifRequestIndirect = reinterpret(&raw);
            for gref in &raw.indirect_grefs[pages.grefs().len()..] {
                prop_assert_eq!(*gref, GrantRef(0));
            }
        }
    }

    #[test]
    fn whatever_stands_in_a_slot_is_a_good_request_or_is_told_what_is_wrong(raw in raw()) {
        let narrow: x86_32::BlkifRequest = reinterpret(&raw);
        let narrow = X86_32::parse(&narrow);
        for parsed in [X86_64::parse(&raw), narrow] {
            match parsed {
                Ok(request) => holds(&request)?,
                Err(malformed) => {
                    let unknown = raw.operation.0 == 4 || raw.operation.0 > 6;
                    prop_assert_eq!(malformed.why == Why::UnknownOperation, unknown);
                    prop_assert_ne!(malformed.status(), Status::Okay);
                }
            }
        }
    }

    #[test]
    fn a_segment_on_an_indirect_page_is_read_as_it_was_written(segment in segment()) {
        prop_assert_eq!(Segment::from_bytes(segment.to_bytes(), 7), Ok(segment));
        let raw = BlkifRequestSegment { gref: segment.gref(), ..Default::default() };
        prop_assert_eq!(&segment.to_bytes()[..4], &raw.gref.0.to_ne_bytes()[..]);
    }
}

#[test]
fn a_segment_is_taken_exactly_if_its_sectors_lie_in_its_page() {
    for first in 0..=u8::MAX {
        for last in 0..=u8::MAX {
            let good = first <= last && last < 8;
            let parsed = X86_64::parse(&read_of(first, last));
            assert_eq!(parsed.is_ok(), good, "{first} {last}");
            let [a, b, c, d] = 9u32.to_ne_bytes();
            let on_page = Segment::from_bytes([a, b, c, d, first, last, 0xff, 0xff], 3);
            assert_eq!(on_page.is_ok(), good, "{first} {last}");
            if !good {
                assert_eq!(parsed.unwrap_err().why, Why::SegmentSectors { index: 0, first, last });
                assert_eq!(on_page.unwrap_err(), Why::SegmentSectors { index: 3, first, last });
            }
        }
    }
}

#[test]
fn a_count_of_segments_is_what_the_operation_takes() {
    for (op, counts) in [
        (BlkifOp::READ, 1..=11),
        (BlkifOp::WRITE, 1..=11),
        (BlkifOp::WRITE_BARRIER, 0..=11),
        (BlkifOp::FLUSH_DISKCACHE, 0..=0),
    ] {
        for count in 0..=u8::MAX {
            let raw = x86_64::BlkifRequest { operation: op, nr_segments: count, id: 5, ..Default::default() };
            match X86_64::parse(&raw) {
                Ok(_) => assert!(counts.contains(&count), "{op:?} {count}"),
                Err(malformed) => {
                    assert!(!counts.contains(&count), "{op:?} {count}");
                    assert_eq!(malformed, Malformed { id: 5, operation: op, why: Why::SegmentCount(count.into()) });
                }
            }
        }
    }
}

#[test]
fn every_16_bit_count_of_an_indirect_request_is_checked_before_it_is_narrowed() {
    for segments in 0..=u16::MAX {
        let raw = x86_64::BlkifRequestIndirect {
            operation: BlkifOp::INDIRECT,
            indirect_op: BlkifOp::WRITE,
            nr_segments: segments,
            ..Default::default()
        };
        let parsed = X86_64::parse(&reinterpret(&raw));
        assert_eq!(parsed.is_ok(), (1..=4096).contains(&segments), "{segments}");
        if let Err(malformed) = parsed {
            // As the answer names it.
            assert_eq!(malformed.operation, BlkifOp::WRITE);
        }
    }
}

#[test]
fn an_indirect_request_is_a_read_or_a_write() {
    for inner in 0..=u8::MAX {
        let raw = x86_64::BlkifRequestIndirect {
            operation: BlkifOp::INDIRECT,
            indirect_op: BlkifOp(inner),
            nr_segments: 1,
            ..Default::default()
        };
        match X86_64::parse(&reinterpret(&raw)) {
            Ok(request) => assert!(inner <= 1 && request.operation.wire() == BlkifOp(inner)),
            Err(malformed) => {
                assert!(inner > 1);
                assert_eq!(malformed.why, Why::InnerOperation(BlkifOp(inner)));
                assert_eq!(malformed.status(), Status::Error);
            }
        }
    }
}

#[test]
fn a_discard_of_nothing_is_malformed_and_its_flags_beyond_the_first_mean_nothing() {
    let mut raw = x86_64::BlkifRequestDiscard { operation: BlkifOp::DISCARD, flag: 0xfe, ..Default::default() };
    assert_eq!(X86_64::parse(&reinterpret(&raw)).unwrap_err().why, Why::NoSectors);
    raw.nr_sectors = 1;
    assert_eq!(X86_64::parse(&reinterpret(&raw)).unwrap().operation, Operation::Discard);
    raw.flag |= BLKIF_DISCARD_SECURE;
    assert_eq!(X86_64::parse(&reinterpret(&raw)).unwrap().operation, Operation::SecureDiscard);
}

#[test]
fn an_unknown_operation_is_told_apart_from_a_wrong_request() {
    for op in [4, 7, 200, 255] {
        let raw = x86_64::BlkifRequest { operation: BlkifOp(op), id: 3, ..Default::default() };
        let malformed = X86_64::parse(&raw).unwrap_err();
        assert_eq!((malformed.id, malformed.status().wire()), (3, BLKIF_RSP_EOPNOTSUPP));
    }
    assert_eq!(X86_64::parse(&read_of(0, 8)).unwrap_err().status().wire(), BLKIF_RSP_ERROR);
}

#[test]
fn every_status_goes_over_the_wire_and_back_in_either_layout() {
    for status in i16::MIN..=i16::MAX {
        assert_eq!(Status::from_wire(status).wire(), status);
    }
    let answer = Answer { id: u64::MAX - 3, operation: BlkifOp::DISCARD, status: Status::NotSupported };
    assert_eq!(X86_64::answer(&X86_64::respond(&answer)), answer);
    assert_eq!(X86_32::answer(&X86_32::respond(&answer)), answer);
    let raw = X86_64::respond(&answer);
    assert_eq!((raw._pad0, raw._pad1), (0, 0));
}

#[test]
fn every_segment_is_checked_not_the_first_alone() {
    for index in 0..MAX_SEGMENTS as u8 {
        let mut raw = read_of(0, 7);
        raw.nr_segments = 11;
        raw.seg[usize::from(index)].last_sect = 8;
        let why = Why::SegmentSectors { index: index.into(), first: 0, last: 8 };
        assert_eq!(X86_64::parse(&raw).unwrap_err().why, why);
        // What is behind the count is not looked at.
        raw.nr_segments = index;
        assert_eq!(X86_64::parse(&raw).is_ok(), index > 0);
    }
}

#[test]
fn reads_and_flushes_alone_leave_the_disk_as_it_is() {
    let harmless = [Operation::Read, Operation::Flush];
    let others = [Operation::Write, Operation::Barrier, Operation::Discard, Operation::SecureDiscard];
    assert!(!harmless.iter().any(|op| op.mutates()) && others.iter().all(|op| op.mutates()));
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

#[test]
fn request_of_one_segment_looks_the_same_however_it_is_written() {
    fn check<L: Layout>(request: &Request, segment: (GrantRef, u8, u8)) {
        let Request { id, operation, sector, .. } = *request;
        let parsed = L::parse(&L::emit_one(id, operation, sector, segment));
        assert_eq!(parsed.as_ref(), Ok(request));
    }
    for operation in [Operation::Read, Operation::Write] {
        for (first, last) in [(0, 7), (3, 3), (0, 0), (6, 7)] {
            let segment = Segment::new(GrantRef(0x1234_5678), first, last).unwrap();
            let mut list = Segments::EMPTY;
            assert!(list.push(segment));
            let request = Request { id: 7 << 40, operation, sector: u64::MAX - 5, data: Data::Direct(list) };
            let segment = (segment.gref(), first, last);
            check::<X86_64>(&request, segment);
            check::<X86_32>(&request, segment);
        }
    }
}
