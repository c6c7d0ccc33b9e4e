//! The front end against a back end by hand.

use std::sync::atomic::Ordering;

use hypercall::grant::{Access, CopyBatch, Local};
use hypercall::grant::{Foreign, MapRequest, Window};
use hypercall::mem::Pages;
use mock::Fault;
use xen_sys::errno::XEN_ENOMEM;
use xen_sys::io::netif::*;
use xenbus::device::State;
use xenbus::ring::{Field, RingError, RingMemory, RingPages};
use xennet::front::{Change, Front, FrontError, QueueError, Returned, SendError, SubmitError};
use xennet::protocol::{Fragment, Why, lost};
use xennet::{MAX_PACKET, MAX_SLOTS};

use crate::rig::{Cut, FRONT, HandBack, MAC, Rig};

type Used = Front<mock::Node, Cut>;

/// Both ends, connected.
fn connect() -> (Rig, Used, HandBack) {
    let rig = Rig::new();
    let (front, back) = connect_on(&rig);
    (rig, front, back)
}

fn connect_on(rig: &Rig) -> (Used, HandBack) {
    let device = HandBack::offer(rig);
    let mut front = Front::new(&rig.front, FRONT).unwrap();
    assert_eq!(front.step(drop).unwrap(), Change::None);
    assert_eq!(front.device().state(), State::Initialised);
    let back = HandBack::connect(rig, device);
    let Change::Connected(link) = front.step(drop).unwrap() else { panic!("not connected") };
    assert_eq!((link.mac.to_string().as_str(), link.mtu, link.scatter_gather), (MAC, 1500, true));
    (front, back)
}

/// The back end goes, both ends close, and nothing is left. Returns how many packets were lost.
fn end(rig: Rig, front: Used, back: HandBack) -> usize {
    let lost = close(&rig, front, back);
    rig.machine.check_quiet();
    lost
}

fn close(rig: &Rig, mut front: Used, mut back: HandBack) -> usize {
    front.close().unwrap();
    let mut lost = 0;
    let mut count = |completion: xennet::front::Completion<_>| {
        assert_eq!(completion.result, Err(SendError::Lost));
        lost += 1;
    };
    assert_eq!(front.step(&mut count).unwrap(), Change::None);
    assert_eq!(front.device().state(), State::Closed);
    back.device.switch(State::Closed).unwrap();
    drop(back);
    assert_eq!(front.step(&mut count).unwrap(), Change::Closed);
    drop(front);
    assert!(rig.machine.violations().is_empty());
    lost
}

fn packet(rig: &Rig, len: usize) -> Cut {
    Cut::new(&rig.front.platform, len, 4096)
}

fn submit(rig: &Rig, front: &mut Used, len: usize) {
    let queue = front.queue().unwrap();
    queue.submit(packet(rig, len)).map_err(|(error, _)| error).unwrap();
    queue.push();
}

/// Takes all slots of the tx ring.
fn slots(back: &mut HandBack) -> Vec<NetifTxRequest> {
    std::iter::from_fn(|| back.tx.pop().unwrap()).collect()
}

fn answer(back: &mut HandBack, id: u16, status: i16) {
    assert!(back.tx.respond(&NetifTxResponse { id, status }));
    let _ = back.tx.publish();
}

/// What a poll brings: results of packets sent, and bytes of those received.
type Polled = Result<(Vec<Result<(), SendError>>, Vec<Vec<u8>>), QueueError>;

fn poll(front: &mut Used) -> Polled {
    let (mut sent, mut received) = (Vec::new(), Vec::new());
    let queue = front.queue().unwrap();
    let more = queue.poll(
        |completion| {
            assert!(matches!(completion.packet, Returned::Whole(_)));
            sent.push(completion.result);
        },
        |packet| {
            let mut bytes = vec![0; packet.len()];
            assert_eq!(packet.read(&mut bytes), bytes.len());
            received.push(bytes);
        },
    )?;
    assert!(!more);
    Ok((sent, received))
}

#[test]
fn a_packet_goes_out_in_a_slot_a_page_and_completes_once_with_its_worst_status() {
    let (rig, mut front, mut back) = connect();
    submit(&rig, &mut front, 9000);
    let sent = slots(&mut back);
    assert_eq!(sent.iter().map(|slot| slot.size).collect::<Vec<_>>(), [9000, 4096, 808]);
    assert_eq!(sent.iter().map(|slot| slot.flags).collect::<Vec<_>>(), [NETTXF_more_data, NETTXF_more_data, 0]);
    for (slot, status) in sent.iter().zip([NETIF_RSP_OKAY, NETIF_RSP_DROPPED, NETIF_RSP_OKAY]) {
        assert_eq!(front.queue().unwrap().in_flight(), 1);
        assert_eq!(poll(&mut front).unwrap().0, []);
        answer(&mut back, slot.id, status);
    }
    assert_eq!(poll(&mut front).unwrap().0, [Err(SendError::Dropped)]);
    assert_eq!(front.queue().unwrap().in_flight(), 0);
    assert_eq!(end(rig, front, back), 0);
}

#[test]
fn segments_go_out_as_they_are_cut() {
    let (rig, mut front, mut back) = connect();
    let packet = Cut::new(&rig.front.platform, 5000, 1500);
    front.queue().unwrap().submit(packet).map_err(|(error, _)| error).unwrap();
    front.queue().unwrap().push();
    let sent = slots(&mut back);
    let seen: Vec<_> = sent.iter().map(|slot| (slot.offset, slot.size)).collect();
    assert_eq!(seen, [(0, 5000), (1500, 1500), (3000, 1096), (0, 904)]);
    let mut grefs: Vec<_> = sent.iter().map(|slot| slot.gref).collect();
    grefs.sort_unstable();
    grefs.dedup();
    assert_eq!(grefs.len(), 4);
    assert_eq!(end(rig, front, back), 1);
}

#[test]
fn each_status_is_a_result_and_an_unknown_one_an_error() {
    let (rig, mut front, mut back) = connect();
    for (status, result) in [
        (NETIF_RSP_OKAY, Ok(())),
        (NETIF_RSP_ERROR, Err(SendError::Failed)),
        (NETIF_RSP_DROPPED, Err(SendError::Dropped)),
        (NETIF_RSP_NULL, Err(SendError::BadStatus(1))),
        (-77, Err(SendError::BadStatus(-77))),
    ] {
        submit(&rig, &mut front, 60);
        let id = slots(&mut back)[0].id;
        answer(&mut back, id, status);
        assert_eq!(poll(&mut front).unwrap().0, [result]);
    }
    assert_eq!(end(rig, front, back), 0);
}

#[test]
fn packets_that_can_not_be_are_not_submitted() {
    let (rig, mut front, back) = connect();
    for (len, piece, why) in [
        (13, 4096, Why::TooShort(13)),
        (MAX_PACKET + 1, 4096, Why::TooLong),
        (60, 13, Why::SplitHeader(13)),
        (19 * 14, 14, Why::TooManySlots),
    ] {
        let refused = front.queue().unwrap().submit(Cut::new(&rig.front.platform, len, piece)).unwrap_err();
        assert_eq!((refused.0, refused.1.whole.len()), (SubmitError::Malformed(why), len));
    }
    assert_eq!(front.queue().unwrap().counters().tx_packets, 0);
    assert_eq!(end(rig, front, back), 0);
}

#[test]
fn a_ring_full_of_packets_takes_no_more_and_what_is_in_flight_is_lost_once() {
    let (rig, mut front, mut back) = connect();
    for _ in 0..85 {
        submit(&rig, &mut front, 9000);
    }
    let queue = front.queue().unwrap();
    assert_eq!(queue.submit(packet(&rig, 9000)).unwrap_err().0, SubmitError::Full);
    submit(&rig, &mut front, 60);
    let queue = front.queue().unwrap();
    assert_eq!(queue.submit(packet(&rig, 60)).unwrap_err().0, SubmitError::Full);
    let sent = slots(&mut back);
    assert_eq!(sent.len(), 256);
    for slot in &sent[..3] {
        answer(&mut back, slot.id, NETIF_RSP_OKAY);
    }
    assert_eq!(poll(&mut front).unwrap().0, [Ok(())]);
    submit(&rig, &mut front, 9000);
    assert_eq!(end(rig, front, back), 86);
}

#[test]
fn a_response_to_what_is_not_in_flight_breaks_the_queue() {
    let twice: fn(&mut HandBack, u16) -> u16 = |back, id| {
        answer(back, id, NETIF_RSP_OKAY);
        answer(back, id, NETIF_RSP_OKAY);
        id
    };
    let other: fn(&mut HandBack, u16) -> u16 = |back, id| {
        answer(back, id + 100, NETIF_RSP_OKAY);
        id + 100
    };
    let outside: fn(&mut HandBack, u16) -> u16 = |back, _| {
        answer(back, 256, NETIF_RSP_OKAY);
        256
    };
    for case in [twice, other, outside] {
        let (rig, mut front, mut back) = connect();
        submit(&rig, &mut front, 60);
        submit(&rig, &mut front, 60);
        let id = slots(&mut back)[0].id;
        let claimed = case(&mut back, id);
        for _ in 0..3 {
            assert_eq!(poll(&mut front).unwrap_err(), QueueError::UnknownId(claimed));
        }
        let refused = front.queue().unwrap().submit(packet(&rig, 60)).unwrap_err().0;
        assert_eq!(refused, SubmitError::NotConnected);
        assert!(end(rig, front, back) > 0);
    }
}

#[test]
fn an_index_that_lies_breaks_the_queue() {
    // Nothing was sent, and 256 pages are posted.
    let tx = [1, 257, 1 << 31, u32::MAX].map(|claimed| (true, claimed));
    let rx = [257, 513, 1 << 31, u32::MAX].map(|claimed| (false, claimed));
    for (tx, claimed) in tx.into_iter().chain(rx) {
        let (rig, mut front, back) = connect();
        let gref = if tx { back.rings.tx } else { back.rings.rx };
        let memory = RingPages::<_, NetifTxRequest, NetifTxResponse>::new(HandBack::map(&rig, gref));
        memory.store(Field::RspProd, claimed, Ordering::Release);
        let expected = QueueError::Ring(RingError::PeerOverflow { claimed, size: if tx { 0 } else { 256 } });
        for _ in 0..3 {
            assert_eq!(poll(&mut front).unwrap_err(), expected);
        }
        drop(memory);
        assert_eq!(end(rig, front, back), 0);
    }
}

/// Writes bytes into posted pages by grant copy, a part each, and answers them as a packet.
fn receive(rig: &Rig, back: &mut HandBack, parts: &[(u16, &[u8])]) {
    let pages = Pages::new(&rig.back.platform, 1).unwrap();
    for (index, (offset, bytes)) in parts.iter().enumerate() {
        let page = back.rx.pop().unwrap().unwrap();
        pages.shared().write(0, bytes);
        let mut batch = CopyBatch::new();
        let to = Foreign { peer: rig.front.id, gref: page.gref, offset: *offset };
        batch.to_peer(Local::new(&pages, 0), to, bytes.len() as u16).unwrap();
        assert_eq!(batch.run(&rig.back.platform, |_, error| panic!("{error}")), 1);
        let part = Fragment::new(*offset, bytes.len() as u16).unwrap();
        assert!(back.rx.respond(&part.emit(page.id, index + 1 < parts.len())));
    }
    let _ = back.rx.publish();
}

fn honest(rig: &Rig, front: &mut Used, back: &mut HandBack) {
    receive(rig, back, &[(5, b"an honest packet")]);
    assert_eq!(poll(front).unwrap().1, [b"an honest packet"]);
}

#[test]
fn what_is_received_is_what_was_sent_for_longer_than_the_ring() {
    let (rig, mut front, mut back) = connect();
    for round in 0..200u32 {
        let first = [round as u8; 100];
        let last = round.to_le_bytes();
        receive(&rig, &mut back, &[(0, &first), (4092, &last), (77, &[])]);
        assert_eq!(poll(&mut front).unwrap().1, [[&first[..], &last].concat()]);
    }
    let counters = *front.queue().unwrap().counters();
    assert_eq!((counters.rx_packets, counters.rx_slots, counters.rx_errors), (200, 600, 0));
    assert_eq!(end(rig, front, back), 0);
}

#[test]
fn a_packet_may_come_in_pieces() {
    let (rig, mut front, mut back) = connect();
    for (index, piece) in [b"one after ", b"another   "].into_iter().enumerate() {
        let page = back.rx.pop().unwrap().unwrap();
        let pages = Pages::new(&rig.back.platform, 1).unwrap();
        pages.shared().write(0, piece);
        let mut batch = CopyBatch::new();
        let to = Foreign { peer: rig.front.id, gref: page.gref, offset: 0 };
        batch.to_peer(Local::new(&pages, 0), to, 10).unwrap();
        assert_eq!(batch.run(&rig.back.platform, |_, error| panic!("{error}")), 1);
        assert!(back.rx.respond(&Fragment::new(0, 10).unwrap().emit(page.id, index == 0)));
        let _ = back.rx.publish();
        let expected: &[&[u8]] = if index == 0 { &[] } else { &[b"one after another   "] };
        assert_eq!(poll(&mut front).unwrap().1, expected);
    }
    assert_eq!(end(rig, front, back), 0);
}

/// Answers the next pages with these, as they are but for the number.
fn respond(back: &mut HandBack, responses: &[NetifRxResponse]) {
    for response in responses {
        let page = back.rx.pop().unwrap().unwrap();
        assert!(back.rx.respond(&NetifRxResponse { id: page.id, ..*response }));
    }
    let _ = back.rx.publish();
}

#[test]
fn a_malformed_packet_is_lost_alone() {
    let part = |flags, offset, status| NetifRxResponse { id: 0, offset, flags, status };
    let more = NETRXF_more_data;
    let cases: [&[NetifRxResponse]; 9] = [
        &[lost(0)],
        &[part(0, 0, 13)],
        &[part(0, 4090, 14)],
        &[part(0, 65535, 14)],
        &[part(NETRXF_csum_blank, 0, 60)],
        &[part(more, 0, 60), part(more, 0, -1), part(0, 0, 60)],
        &[part(more, 0, 0), part(0, 0, 13)],
        &[part(more, 0, 60); MAX_SLOTS + 1],
        &[part(more, 0, 4096); MAX_SLOTS],
    ];
    let (rig, mut front, mut back) = connect();
    for (errors, case) in (1..).zip(cases) {
        respond(&mut back, case);
        if case.last().unwrap().flags & more != 0 {
            assert_eq!(poll(&mut front).unwrap().1, Vec::<Vec<u8>>::new());
            respond(&mut back, &[part(0, 0, 60)]);
        }
        assert_eq!(poll(&mut front).unwrap().1, Vec::<Vec<u8>>::new());
        assert_eq!(front.queue().unwrap().counters().rx_errors, errors);
        honest(&rig, &mut front, &mut back);
    }
    assert_eq!(end(rig, front, back), 0);
}

#[test]
fn extra_information_has_no_number_and_loses_its_packet() {
    let (rig, mut front, mut back) = connect();
    for extras in [1, 2, 300] {
        respond(&mut back, &[NetifRxResponse { flags: NETRXF_extra_info, status: 60, ..NetifRxResponse::default() }]);
        for index in 0..extras {
            // More than the ring holds: what was thrown away is posted again.
            assert_eq!(poll(&mut front).unwrap().1, Vec::<Vec<u8>>::new());
            back.rx.pop().unwrap().unwrap();
            let more = if index + 1 < extras { XEN_NETIF_EXTRA_FLAG_MORE } else { 0 };
            let id = u16::from_le_bytes([XEN_NETIF_EXTRA_TYPE_GSO, more]);
            assert!(back.rx.respond(&NetifRxResponse { id, offset: 0xffff, flags: 0xffff, status: -1 }));
            let _ = back.rx.publish();
        }
        assert_eq!(poll(&mut front).unwrap().1, Vec::<Vec<u8>>::new());
        honest(&rig, &mut front, &mut back);
    }
    assert_eq!(front.queue().unwrap().counters().rx_errors, 3);
    assert_eq!(end(rig, front, back), 0);
}

#[test]
fn a_packet_without_end_does_not_use_the_pages_up() {
    let (rig, mut front, mut back) = connect();
    for _ in 0..1000 {
        respond(&mut back, &[NetifRxResponse { flags: NETRXF_more_data, status: 60, ..NetifRxResponse::default() }]);
        assert_eq!(poll(&mut front).unwrap().1, Vec::<Vec<u8>>::new());
    }
    respond(&mut back, &[NetifRxResponse::default()]);
    poll(&mut front).unwrap();
    honest(&rig, &mut front, &mut back);
    assert_eq!(end(rig, front, back), 0);
}

#[test]
fn a_response_in_another_slot_than_its_request_breaks_the_queue() {
    for wrong in [1, 255, 256, 65535] {
        let (rig, mut front, mut back) = connect();
        honest(&rig, &mut front, &mut back);
        let page = back.rx.pop().unwrap().unwrap();
        assert_eq!(page.id, 1);
        let claimed = page.id.wrapping_add(wrong);
        assert!(back.rx.respond(&Fragment::new(0, 60).unwrap().emit(claimed, false)));
        let _ = back.rx.publish();
        assert_eq!(poll(&mut front).unwrap_err(), QueueError::WrongSlot { expected: 1, claimed });
        assert_eq!(end(rig, front, back), 0);
    }
}

#[test]
fn a_page_that_the_back_end_maps_is_not_looked_at_nor_posted_until_it_lets_go() {
    let (rig, mut front, mut back) = connect();
    let page = back.rx.pop().unwrap().unwrap();
    let mut window = Window::new(&rig.back.platform, 1).unwrap();
    window.map(0, MapRequest { gref: page.gref, peer: rig.front.id, access: Access::ReadWrite }).unwrap();
    assert!(back.rx.respond(&Fragment::new(0, 60).unwrap().emit(page.id, false)));
    let _ = back.rx.publish();
    assert_eq!(poll(&mut front).unwrap().1, Vec::<Vec<u8>>::new());
    let counters = *front.queue().unwrap().counters();
    assert_eq!((counters.still_mapped, counters.rx_errors), (1, 1));
    // All the others go on, until it would be its turn.
    for _ in 0..255 {
        honest(&rig, &mut front, &mut back);
    }
    assert!(back.rx.pop().unwrap().is_none());
    drop(window);
    poll(&mut front).unwrap();
    honest(&rig, &mut front, &mut back);
    assert_eq!(end(rig, front, back), 0);
}

#[test]
fn a_page_that_is_mapped_at_the_end_waits_in_the_quarantine() {
    let (rig, front, mut back) = connect();
    let page = back.rx.pop().unwrap().unwrap();
    let mut window = Window::new(&rig.back.platform, 1).unwrap();
    window.map(0, MapRequest { gref: page.gref, peer: rig.front.id, access: Access::ReadWrite }).unwrap();
    close(&rig, front, back);
    assert_eq!(rig.front.grants.stats().quarantined_pages, 1);
    drop(window);
    rig.front.grants.retry_quarantine();
    rig.machine.check_quiet();
}

#[test]
fn a_packet_that_the_back_end_maps_completes_when_it_lets_go() {
    let (rig, mut front, mut back) = connect();
    submit(&rig, &mut front, 5000);
    let sent = slots(&mut back);
    let mut window = Window::new(&rig.back.platform, 1).unwrap();
    window.map(0, MapRequest { gref: sent[1].gref, peer: rig.front.id, access: Access::ReadOnly }).unwrap();
    sent.iter().for_each(|slot| answer(&mut back, slot.id, NETIF_RSP_OKAY));
    for _ in 0..3 {
        assert_eq!(poll(&mut front).unwrap().0, []);
    }
    assert_eq!(front.queue().unwrap().counters().still_mapped, 1);
    drop(window);
    assert_eq!(poll(&mut front).unwrap().0, [Ok(())]);
    assert_eq!(end(rig, front, back), 0);
}

#[test]
fn a_back_end_that_vanishes_loses_what_is_in_flight_and_may_come_back() {
    let rig = Rig::new();
    for _ in 0..3 {
        let (mut front, mut back) = connect_on(&rig);
        submit(&rig, &mut front, 60);
        submit(&rig, &mut front, 9000);
        // The first is answered, which nobody has looked at yet.
        let first = slots(&mut back)[0];
        answer(&mut back, first.id, NETIF_RSP_OKAY);
        back.device.switch(State::Closed).unwrap();
        drop(back);
        let mut results = Vec::new();
        let changed = front.step(|completion| results.push(completion.result)).unwrap();
        assert_eq!((changed, front.device().state()), (Change::Closed, State::Closed));
        assert_eq!(results, [Ok(()), Err(SendError::Lost)]);
    }
    rig.machine.check_quiet();
}

#[test]
fn a_back_end_that_is_back_before_anybody_looked_has_lost_what_was_in_flight() {
    let (rig, mut front, back) = connect();
    submit(&rig, &mut front, 60);
    drop(back);
    let device = HandBack::offer(&rig);
    let mut results = Vec::new();
    assert_eq!(front.step(|completion| results.push(completion.result)).unwrap(), Change::Closed);
    assert_eq!((results, front.device().state()), (vec![Err(SendError::Lost)], State::Closed));
    drop((front, device));
    let (front, back) = connect_on(&rig);
    assert_eq!(end(rig, front, back), 0);
}

/// Tries to connect with one fault after another, until none of them happens any more; each time nothing is left behind.
fn connect_in_spite_of(fault: impl Fn(&Rig, u64) -> Fault) -> u64 {
    for nth in 1.. {
        let rig = Rig::new();
        let device = HandBack::offer(&rig);
        let mut front: Used = Front::new(&rig.front, FRONT).unwrap();
        rig.machine.order(fault(&rig, nth));
        let stepped = front.step(drop);
        let happened = rig.machine.faults_waiting() == 0;
        rig.machine.cancel_faults();
        assert!(happened || stepped.is_ok());
        if stepped.is_err() {
            assert!(front.device().is_closing() && front.queue().is_none());
        }
        drop((front, device));
        rig.machine.check_quiet();
        if !happened {
            return nth - 1;
        }
    }
    unreachable!()
}

#[test]
fn no_failure_while_connecting_leaves_anything_behind() {
    // Two rings and 256 pages.
    assert_eq!(connect_in_spite_of(|rig, nth| Fault::Alloc { domain: rig.front.id, nth }), 258);
    let hypercalls = connect_in_spite_of(|rig, nth| Fault::Hypercall {
        domain: Some(rig.front.id),
        kind: None,
        nth,
        errno: XEN_ENOMEM,
    });
    assert!(hypercalls > 3);
}

#[test]
fn a_back_end_that_can_not_copy_is_refused() {
    for (node, value) in [("feature-rx-copy", "0"), ("feature-sg", "x")] {
        let rig = Rig::new();
        let device = HandBack::offer(&rig);
        let mut front: Used = Front::new(&rig.front, FRONT).unwrap();
        front.step(drop).unwrap();
        device.write_own(xenbus::store::Tx::NONE, node, value).unwrap();
        let back = HandBack::connect(&rig, device);
        assert!(matches!(front.step(drop), Err(FrontError::Negotiation(_))), "{node}");
        assert_eq!(front.device().state(), State::Closing);
        end(rig, front, back);
    }
}

#[test]
fn a_back_end_without_scatter_gather_gets_packets_of_one_slot() {
    let rig = Rig::new();
    let device = HandBack::offer(&rig);
    device.write_own(xenbus::store::Tx::NONE, "feature-sg", 0).unwrap();
    let mut front: Used = Front::new(&rig.front, FRONT).unwrap();
    front.step(drop).unwrap();
    let back = HandBack::connect(&rig, device);
    front.step(drop).unwrap();
    let refused = front.queue().unwrap().submit(packet(&rig, 4097)).unwrap_err().0;
    assert_eq!(refused, SubmitError::Segments(2));
    submit(&rig, &mut front, 4096);
    assert_eq!(end(rig, front, back), 1);
}

#[test]
fn an_interface_begins_anew_in_a_restored_domain_and_loses_what_was_in_flight() {
    let (mut rig, mut front, mut old) = connect();
    for len in [100, 5000, 200] {
        submit(&rig, &mut front, len);
    }
    let ids: Vec<u16> = slots(&mut old).iter().map(|slot| slot.id).collect();
    answer(&mut old, ids[0], NETIF_RSP_OKAY);
    rig.restore();
    let mut lost = Vec::new();
    let mut note = |completion: xennet::front::Completion<_>| {
        assert!(matches!(completion.packet, Returned::Whole(_)));
        lost.push(completion.result);
    };
    assert_eq!(front.resume(&mut note).unwrap(), Change::None);
    assert_eq!(lost, [Ok(()), Err(SendError::Lost), Err(SendError::Lost)]);
    assert_eq!((front.device().state(), front.port(), front.link()), (State::Initialising, None, None));

    let device = HandBack::offer(&rig);
    assert_eq!(front.step(drop).unwrap(), Change::None);
    let mut new = HandBack::connect(&rig, device);
    assert!(matches!(front.step(drop).unwrap(), Change::Connected(_)));
    submit(&rig, &mut front, 300);
    assert_eq!(slots(&mut new).iter().map(|slot| slot.size).collect::<Vec<_>>(), [300]);
    assert!(slots(&mut old).is_empty(), "the last one has the rings of before");
    drop(old);
    assert_eq!(end(rig, front, new), 1);
}

#[test]
fn an_interface_that_is_being_closed_is_closed_by_a_suspend() {
    let (mut rig, mut front, old) = connect();
    submit(&rig, &mut front, 100);
    front.close().unwrap();
    rig.restore();
    let mut lost = 0;
    assert_eq!(front.resume(|_| lost += 1).unwrap(), Change::Closed);
    assert_eq!((lost, front.device().state()), (1, State::Closed));
    drop((front, old));
    rig.machine.check_quiet();
}

#[test]
fn an_interface_that_the_restored_domain_does_not_have_is_lost() {
    let (rig, mut front, old) = connect();
    submit(&rig, &mut front, 100);
    assert_eq!(mock::suspend(&rig.front), Ok(mock::Suspended::Restored));
    let refused = front.resume(drop).unwrap_err().to_string();
    assert!(refused.contains("device/vif/0/backend: ENOENT"), "{refused}");
    let mut lost = 0;
    assert_eq!(front.step(|_| lost += 1).unwrap(), Change::Closed);
    assert_eq!(lost, 1);
    drop((front, old));
    rig.machine.check_quiet();
}
