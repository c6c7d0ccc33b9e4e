//! Wire values and checked values.

use hypercall::GrantRef;
use proptest::collection::vec;
use proptest::prelude::*;
use xen_sys::io::netif::*;
use xennet::protocol::{Fault, Fed, Fragment, Packet, Parser, Part, Status, Why, lost, parse_received};
use xennet::{MAX_PACKET, MAX_SLOTS, MIN_PACKET};

prop_compose! {
    fn part(shortest: u16)(offset in 0u16..=4096 - shortest, id in any::<u16>(), gref in any::<u32>())
        (len in shortest..=4096 - offset, offset in Just(offset), id in Just(id), gref in Just(gref)) -> Part {
        Part::new(id, GrantRef(gref), offset, len).unwrap()
    }
}

prop_compose! {
    fn packet()(first in part(MIN_PACKET as u16), rest in vec(part(0), 0..MAX_SLOTS)) -> Option<Packet> {
        Packet::new(std::iter::once(first).chain(rest)).ok()
    }
}

/// Slots whose flags make chains, and whose sizes are around what is allowed.
fn slot() -> impl Strategy<Value = NetifTxRequest> {
    let size = prop_oneof![Just(0u16), Just(1), Just(13), Just(14), Just(60), Just(4096), Just(65535), any::<u16>()];
    let flags = prop_oneof![4 => Just(0), 8 => Just(NETTXF_more_data), 1 => Just(NETTXF_extra_info), 1 => any::<u16>()];
    (any::<u32>(), prop_oneof![0u16..4100, any::<u16>()], flags, any::<u16>(), size)
        .prop_map(|(gref, offset, flags, id, size)| NetifTxRequest { gref: GrantRef(gref), offset, flags, id, size })
}

proptest! {
    #[test]
    fn a_packet_that_was_emitted_parses_to_itself(packet in packet()) {
        prop_assume!(packet.is_some());
        let packet = packet.unwrap();
        let mut parser = Parser::new();
        let last = packet.parts().len() - 1;
        for (index, raw) in packet.emit().enumerate() {
            let expected = if index == last { Fed::Packet(packet) } else { Fed::Part };
            prop_assert_eq!(parser.feed(&raw), expected);
        }
        prop_assert_eq!(parser.held().count(), 0);
    }

    #[test]
    fn each_slot_is_accounted_for_once_whatever_comes(slots in vec(slot(), 0..300)) {
        let mut parser = Parser::new();
        let (mut open, mut slots_fed, mut answered) = (Vec::new(), 0, 0);
        for raw in slots {
            slots_fed += 1;
            open.push(raw.id);
            match parser.feed(&raw) {
                Fed::Part => {}
                Fed::Extra => {
                    open.pop();
                    answered += 1;
                }
                Fed::Packet(packet) => {
                    let ids: Vec<u16> = packet.parts().iter().map(|part| part.id()).collect();
                    prop_assert_eq!(&ids, &open);
                    let sum: usize = packet.parts().iter().map(|part| usize::from(part.len())).sum();
                    prop_assert_eq!(sum, packet.len());
                    prop_assert!((MIN_PACKET..=MAX_PACKET).contains(&sum) && ids.len() <= MAX_SLOTS);
                    prop_assert!(usize::from(packet.parts()[0].len()) >= MIN_PACKET);
                    prop_assert!(packet.parts().iter().all(|part| part.offset() + part.len() <= 4096));
                    answered += open.drain(..).len();
                }
                Fed::Refused(refused) => {
                    prop_assert_eq!(refused.ids(), &open[..]);
                    answered += open.drain(..).len();
                }
            }
            prop_assert_eq!(parser.held().collect::<Vec<_>>(), open.clone());
            prop_assert!(open.len() <= MAX_SLOTS);
        }
        prop_assert_eq!(slots_fed, answered + open.len());
    }

    #[test]
    fn a_fragment_that_was_emitted_parses_to_itself(offset in 0u16..=4096, len in 0u16..=4096, id: u16, more: bool) {
        prop_assume!(offset + len <= 4096);
        let fragment = Fragment::new(offset, len).unwrap();
        let raw = fragment.emit(id, more);
        prop_assert_eq!(parse_received(&raw), Ok(fragment));
        prop_assert_eq!((raw.id, raw.flags), (id, if more { NETRXF_more_data } else { 0 }));
    }

    #[test]
    fn a_response_gives_no_more_than_its_page(id: u16, offset: u16, flags: u16, status: i16) {
        if let Ok(fragment) = parse_received(&NetifRxResponse { id, offset, flags, status }) {
            prop_assert!(fragment.offset() + fragment.len() <= 4096);
            prop_assert_eq!(fragment.len() as i16, status);
            prop_assert_eq!(flags & (NETRXF_csum_blank | NETRXF_extra_info | NETRXF_gso_prefix), 0);
        }
    }

    #[test]
    fn a_status_reads_as_it_is_written(status: i16) {
        prop_assert_eq!(Status::from_wire(status).wire(), status);
    }
}

fn raw(flags: u16, offset: u16, size: u16) -> NetifTxRequest {
    NetifTxRequest { gref: GrantRef(9), offset, flags, id: 5, size }
}

fn why(slots: &[NetifTxRequest]) -> Option<Why> {
    let mut parser = Parser::new();
    slots.iter().find_map(|slot| match parser.feed(slot) {
        Fed::Refused(refused) => refused.why,
        Fed::Part | Fed::Packet(_) | Fed::Extra => None,
    })
}

#[test]
fn each_wrong_has_its_name() {
    let more = NETTXF_more_data;
    let many = |count| [raw(more, 0, 60 + 20)].into_iter().chain([raw(more, 0, 1); 20]).take(count).collect::<Vec<_>>();
    let cases: &[(&[NetifTxRequest], Option<Why>)] = &[
        (&[raw(0, 0, 14)], None),
        (&[raw(0, 0, 13)], Some(Why::TooShort(13))),
        (&[raw(0, 4083, 14)], Some(Why::LeavesPage { offset: 4083, len: 14 })),
        (&[raw(0, 0, 4097)], Some(Why::LeavesPage { offset: 0, len: 4097 })),
        (&[raw(0, 65535, 14)], Some(Why::LeavesPage { offset: 65535, len: 0 })),
        (&[raw(more, 0, 60), raw(0, 0, 61)], Some(Why::Sizes { total: 60, others: 61 })),
        (&[raw(more, 0, 60), raw(0, 0, 46)], None),
        (&[raw(more, 0, 60), raw(0, 0, 47)], Some(Why::SplitHeader(13))),
        (&[raw(more, 0, 60), raw(0, 4096, 1)], Some(Why::LeavesPage { offset: 4096, len: 1 })),
        (&[raw(NETTXF_csum_blank, 0, 60)], Some(Why::BlankChecksum)),
        (&[raw(NETTXF_extra_info, 0, 60)], Some(Why::ExtraInfo)),
        (&[raw(NETTXF_data_validated, 0, 60)], None),
        (&many(MAX_SLOTS), None),
        (&many(MAX_SLOTS + 1), Some(Why::TooManySlots)),
    ];
    for (slots, expected) in cases {
        assert_eq!(why(slots), *expected, "{slots:?}");
    }
}

#[test]
fn what_follows_a_refused_packet_is_read_from_its_own_first_slot() {
    let extra =
        |flags: u8| NetifTxRequest { gref: GrantRef(u32::from_le_bytes([1, flags, 0, 0])), ..raw(0xffff, 0, 0) };
    let mut parser = Parser::new();
    let refused = [raw(NETTXF_extra_info | NETTXF_more_data, 0, 60)];
    assert!(matches!(parser.feed(&refused[0]), Fed::Refused(_)));
    assert_eq!(parser.feed(&extra(XEN_NETIF_EXTRA_FLAG_MORE)), Fed::Extra);
    assert_eq!(parser.feed(&extra(0)), Fed::Extra);
    let Fed::Refused(rest) = parser.feed(&raw(0, 0, 40)) else { panic!("the rest of the packet") };
    assert_eq!((rest.ids(), rest.why), (&[5][..], None));
    assert!(matches!(parser.feed(&raw(0, 0, 60)), Fed::Packet(_)));
}

#[test]
fn a_received_response_that_promises_what_was_not_asked_for_is_a_fault() {
    let response = |flags, offset, status| parse_received(&NetifRxResponse { id: 1, offset, flags, status });
    assert_eq!(response(NETRXF_data_validated | NETRXF_more_data, 0, 60), Ok(Fragment::new(0, 60).unwrap()));
    for flags in [NETRXF_csum_blank, NETRXF_extra_info, NETRXF_gso_prefix] {
        assert_eq!(response(flags, 0, 60), Err(Fault::Flags(flags)));
    }
    assert_eq!(response(0, 4037, 60), Err(Fault::LeavesPage { offset: 4037, len: 60 }));
    assert_eq!(parse_received(&lost(1)), Err(Fault::Status(NETIF_RSP_ERROR)));
}
