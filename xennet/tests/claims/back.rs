//! The back end against a front end by hand.

use hypercall::GrantRef;
use hypercall::mem::PageBuf;
use mock::Fault;
use proptest::collection::vec;
use proptest::prelude::*;
use std::sync::atomic::Ordering;
use xen_sys::errno::XEN_ENOMEM;
use xen_sys::grant_table::{GNTST_general_error, GNTTABOP_copy, GNTTABOP_map_grant_ref};
use xen_sys::io::netif::*;
use xenbus::device::{Device, State};
use xenbus::ring::{Field, Notify, RingError, RingMemory};
use xennet::back::{Back, BackError, Change, Interface, SendError};
use xennet::{MAX_PACKET, MAX_SLOTS, MIN_PACKET};

use crate::rig::{Cut, FRONT, HandFront, MAC, Platform, Rig, pattern};

/// Keeps what is delivered, in memory that is cut in one way after another.
struct Sink {
    platform: Platform,
    got: Vec<Vec<u8>>,
    /// Has no memory for packets.
    poor: bool,
    allocated: usize,
    released: usize,
    up: bool,
}

const PIECES: [u16; 3] = [4096, 1000, 333];

impl Interface for Sink {
    type Packet = Cut;

    fn is_up(&self) -> bool {
        self.up
    }

    fn allocate(&mut self, len: usize) -> Option<Cut> {
        assert!((MIN_PACKET..=MAX_PACKET).contains(&len));
        self.allocated += 1;
        let piece = PIECES[self.allocated % PIECES.len()];
        (!self.poor).then(|| Cut { whole: PageBuf::new(&self.platform, len).unwrap(), piece })
    }

    fn deliver(&mut self, packet: Cut) {
        self.got.push(packet.bytes());
    }

    fn release(&mut self, _: Cut) {
        self.released += 1;
    }
}

type Served = Back<mock::Node, Sink>;

fn serve(rig: &Rig) -> Served {
    let platform = rig.back.platform.clone();
    let sink = Sink { platform, got: Vec::new(), poor: false, allocated: 0, released: 0, up: true };
    let mut back = Back::new(&rig.back, &rig.back_path(), sink).unwrap();
    assert_eq!(back.step().unwrap(), Change::None);
    assert_eq!(back.device().state(), State::InitWait);
    back
}

/// Both ends, connected. The front end's pages hold a pattern.
fn connect(pages: usize) -> (Rig, Served, HandFront) {
    let rig = Rig::new();
    let mut back = serve(&rig);
    let front = HandFront::new(&rig, pages);
    assert_eq!(back.step().unwrap(), Change::Connected);
    let bytes: Vec<u8> = (0..pages * 4096).map(pattern).collect();
    front.pages.shared().write(0, &bytes);
    (rig, back, front)
}

/// The front end goes, the toolstack removes the device, and nothing is left.
fn end(rig: Rig, mut back: Served, mut front: HandFront) {
    front.device.switch(State::Closed).unwrap();
    rig.ask_detach();
    assert_eq!(back.step().unwrap(), Change::Removed);
    drop((back, front));
    assert!(!rig.back_exists());
    rig.machine.check_quiet();
}

fn slot(front: &HandFront, page: usize, id: u16, flags: u16, offset: u16, size: u16) -> NetifTxRequest {
    NetifTxRequest { gref: front.pages.refs()[page], offset, flags, id, size }
}

fn push(front: &mut HandFront, slots: &[NetifTxRequest]) {
    slots.iter().for_each(|slot| assert!(front.tx.push(slot)));
    let _ = front.tx.publish();
}

/// Sends slots, and returns the ids and states that answer them.
fn send(back: &mut Served, front: &mut HandFront, slots: &[NetifTxRequest]) -> Vec<(u16, i16)> {
    push(front, slots);
    while back.poll().unwrap() {}
    front.sent().iter().map(|response| (response.id, response.status)).collect()
}

fn honest(back: &mut Served, front: &mut HandFront) {
    let before = back.interface().got.len();
    let slot = slot(front, 0, 77, 0, 3, 100);
    assert_eq!(send(back, front, &[slot]), [(77, NETIF_RSP_OKAY)]);
    assert_eq!(back.interface().got.len(), before + 1);
    assert_eq!(back.interface().got[before], (3..103).map(pattern).collect::<Vec<_>>());
}

/// What the back end has to do with slots of which the first claims `total` bytes and the others have `others` each.
fn is_packet(slots: usize, total: usize, others: usize) -> bool {
    let rest = (slots - 1) * others;
    let first = total.saturating_sub(rest);
    slots <= MAX_SLOTS && (MIN_PACKET..=4096).contains(&first) && (slots == 1 || others <= 4096)
}

#[test]
fn split_packets_of_all_counts_and_sizes_get_one_answer_a_slot() {
    let (rig, mut back, mut front) = connect(20);
    let sizes: [usize; 7] = [0, 1, 13, 14, 60, 4096, 65535];
    let (mut good, mut bad) = (0, 0);
    for slots in 1..=20 {
        for total in sizes {
            // As long as the packet, shorter than it by what the others need, and a packet's worth each.
            for others in sizes.into_iter().chain([total / slots, (total.saturating_sub(4096)) / (slots - 1).max(1)]) {
                let chain: Vec<_> = (0..slots)
                    .map(|index| {
                        let flags = if index + 1 < slots { NETTXF_more_data } else { 0 };
                        slot(
                            &front,
                            index,
                            index as u16 + 100,
                            flags,
                            0,
                            if index == 0 { total } else { others } as u16,
                        )
                    })
                    .collect();
                let before = back.interface().got.len();
                let mut answers = send(&mut back, &mut front, &chain);
                answers.sort_unstable();
                let good_one = is_packet(slots, total, others);
                let status = if good_one { NETIF_RSP_OKAY } else { NETIF_RSP_ERROR };
                let expected: Vec<_> = (100..100 + slots as u16).map(|id| (id, status)).collect();
                assert_eq!(answers, expected, "{slots} slots of {others}, {total} in all");
                assert_eq!(back.interface().got.len(), before + usize::from(good_one));
                if good_one {
                    let first = total - (slots - 1) * others;
                    let part = |index| if index == 0 { first } else { others };
                    let sent: Vec<u8> = (0..slots)
                        .flat_map(|index| (0..part(index)).map(move |at| pattern(index * 4096 + at)))
                        .collect();
                    assert_eq!(back.interface().got[before], sent);
                    good += 1;
                } else {
                    bad += 1;
                }
            }
        }
    }
    honest(&mut back, &mut front);
    let counters = *back.counters().unwrap();
    assert_eq!((counters.tx_packets, counters.tx_refused), (good + 1, bad));
    assert!(good > 100 && bad > 100);
    end(rig, back, front);
}

#[test]
fn extra_information_is_answered_and_its_packet_refused_however_long_it_is() {
    let (rig, mut back, mut front) = connect(2);
    for extras in [0, 1, 2, 5, 200] {
        let flags = if extras > 0 { NETTXF_extra_info } else { 0 };
        let mut chain = vec![slot(&front, 0, 1, flags | NETTXF_more_data, 0, 200)];
        for index in 0..extras {
            let more = if index + 1 < extras { XEN_NETIF_EXTRA_FLAG_MORE } else { 0 };
            let kind = XEN_NETIF_EXTRA_TYPE_GSO + index as u8;
            let gref = GrantRef(u32::from_le_bytes([kind, more, 0xff, 0xff]));
            chain.push(NetifTxRequest { gref, offset: 0xffff, flags: 0xffff, id: 0xffff, size: 0xffff });
        }
        chain.push(slot(&front, 1, 2, 0, 0, 100));
        let answers = send(&mut back, &mut front, &chain);
        let status = if extras == 0 { NETIF_RSP_OKAY } else { NETIF_RSP_ERROR };
        assert_eq!(answers.iter().filter(|answer| answer.1 == NETIF_RSP_NULL).count(), extras);
        assert!(answers.contains(&(1, status)) && answers.contains(&(2, status)));
        assert_eq!(answers.len(), extras + 2);
        honest(&mut back, &mut front);
    }
    end(rig, back, front);
}

#[test]
fn a_packet_without_end_is_thrown_away_as_it_comes() {
    let (rig, mut back, mut front) = connect(1);
    for round in 0..100 {
        let chain: Vec<_> = (0..50).map(|id| slot(&front, 0, id, NETTXF_more_data, 0, 60)).collect();
        let answers = send(&mut back, &mut front, &chain);
        // At first, a packet's worth of slots is held.
        assert!(round == 0 || answers.len() == 50);
        assert!(answers.iter().all(|answer| answer.1 == NETIF_RSP_ERROR));
    }
    assert_eq!(back.counters().unwrap().tx_refused, 1);
    let last = slot(&front, 0, 9, 0, 0, 60);
    assert_eq!(send(&mut back, &mut front, &[last]), [(9, NETIF_RSP_ERROR)]);
    honest(&mut back, &mut front);
    end(rig, back, front);
}

#[test]
fn a_packet_may_come_in_pieces() {
    let (rig, mut back, mut front) = connect(3);
    let chain = [
        slot(&front, 0, 1, NETTXF_more_data, 4000, 96 + 50 + 4096),
        slot(&front, 1, 2, NETTXF_more_data, 4046, 50),
        slot(&front, 2, 3, 0, 0, 4096),
    ];
    assert_eq!(send(&mut back, &mut front, &chain[..1]), []);
    assert_eq!(send(&mut back, &mut front, &chain[1..2]), []);
    assert_eq!(send(&mut back, &mut front, &chain[2..]).len(), 3);
    let sent: Vec<u8> = (4000..4096).chain(8142..8192).chain(8192..12288).map(pattern).collect();
    assert_eq!(back.interface().got, [sent]);
    end(rig, back, front);
}

#[test]
fn a_packet_whose_pages_are_not_granted_fails_alone() {
    let (rig, mut back, mut front) = connect(2);
    let honest_slot = slot(&front, 0, 1, 0, 0, 60);
    let mut chain = vec![honest_slot];
    for bad in 0..3 {
        let wrong = NetifTxRequest { gref: GrantRef(0xffff_0000), ..slot(&front, 0, 10 + bad, 0, 0, 60) };
        chain.extend([NetifTxRequest { id: 20 + bad, ..honest_slot }, wrong]);
    }
    let split = [slot(&front, 0, 30, NETTXF_more_data, 0, 120), slot(&front, 1, 31, 0, 0, 60)];
    chain.extend([split[0], NetifTxRequest { gref: GrantRef(7), ..split[1] }]);
    let answers = send(&mut back, &mut front, &chain);
    let ok = NETIF_RSP_OKAY;
    let bad = NETIF_RSP_ERROR;
    assert_eq!(answers, [(1, ok), (20, ok), (10, bad), (21, ok), (11, bad), (22, ok), (12, bad), (30, bad), (31, bad)]);
    let counters = back.counters().unwrap();
    assert_eq!((counters.tx_packets, counters.tx_failed, back.interface().released), (4, 4, 4));
    end(rig, back, front);
}

#[test]
fn a_packet_without_memory_is_dropped_and_said_to_be() {
    let (rig, mut back, mut front) = connect(1);
    back.interface_mut().poor = true;
    let slots = [slot(&front, 0, 1, 0, 0, 60)];
    assert_eq!(send(&mut back, &mut front, &slots), [(1, NETIF_RSP_DROPPED)]);
    assert_eq!(back.counters().unwrap().tx_dropped, 1);
    back.interface_mut().poor = false;
    honest(&mut back, &mut front);
    end(rig, back, front);
}

#[test]
fn an_index_that_lies_closes_the_device_once() {
    for claimed in [-1i64, 257, 1 << 31, u32::MAX as i64 - 5] {
        for tx in [true, false] {
            let (rig, mut back, mut front) = connect(1);
            honest(&mut back, &mut front);
            // On the rx ring nothing was taken yet, on the tx ring one slot.
            let index = if tx { 1i64 + claimed } else { claimed } as u32;
            let field = Field::ReqProd;
            match tx {
                true => front.tx.memory().store(field, index, Ordering::Release),
                false => front.rx.memory().store(field, index, Ordering::Release),
            }
            back.send(packet(&rig, 60)).map_err(|_| ()).unwrap();
            let error = back.poll().unwrap_err();
            assert!(matches!(error, BackError::Ring(RingError::PeerOverflow { .. })), "{claimed}: {error}");
            assert_eq!((back.device().state(), back.interface().released), (State::Closing, 1));
            assert!(!back.poll().unwrap());
            assert!(back.send(packet(&rig, 60)).is_err());
            end(rig, back, front);
        }
    }
}

fn packet(rig: &Rig, len: usize) -> Cut {
    Cut::new(&rig.back.platform, len, PIECES[len % PIECES.len()])
}

/// Posts pages, by the number of each.
fn post(front: &mut HandFront, pages: std::ops::Range<usize>) -> Notify {
    for page in pages {
        let gref = front.pages.refs()[page];
        assert!(front.rx.push(&NetifRxRequest { id: page as u16, pad: 0, gref }));
    }
    front.rx.publish()
}

fn received(front: &mut HandFront) -> Vec<(u16, u16, i16)> {
    let responses = std::iter::from_fn(|| front.rx.pop().unwrap());
    responses.map(|response| (response.id, response.flags, response.status)).collect()
}

#[test]
fn packets_wait_for_pages_and_go_in_their_order() {
    let (rig, mut back, mut front) = connect(20);
    let lengths = [60, 4097, 14, 12_288, MAX_PACKET];
    for len in &lengths {
        back.send(packet(&rig, *len)).map_err(|(error, _)| error).unwrap();
    }
    back.push().unwrap();
    assert_eq!(received(&mut front), []);
    let mut seen = Vec::new();
    // The front end posts a page at a time, and uses each again.
    let mut packets = vec![Vec::new()];
    for turn in 0..40 {
        let _ = post(&mut front, turn % 20..turn % 20 + 1);
        back.poll().unwrap();
        for (id, flags, status) in received(&mut front) {
            seen.push(id);
            let mut bytes = vec![0; status as usize];
            front.pages.shared().read(usize::from(id) * 4096, &mut bytes);
            packets.last_mut().unwrap().extend(bytes);
            if flags & NETRXF_more_data == 0 {
                packets.push(Vec::new());
            }
        }
    }
    assert_eq!(seen, (0..23).map(|page| page % 20).collect::<Vec<u16>>());
    let sent = lengths.iter().map(|len| (0..*len).map(pattern).collect::<Vec<u8>>());
    assert_eq!(packets, sent.chain([Vec::new()]).collect::<Vec<_>>());
    assert_eq!(back.interface().released, 5);
    end(rig, back, front);
}

#[test]
fn an_event_for_pages_is_asked_for_while_packets_wait_and_not_else() {
    let (rig, mut back, mut front) = connect(8);
    let _ = post(&mut front, 0..1);
    for page in 1..8 {
        // As many packets as pages: nothing waits.
        back.send(packet(&rig, 60)).map_err(|(error, _)| error).unwrap();
        back.push().unwrap();
        assert_eq!(received(&mut front).len(), 1);
        if page % 2 == 0 {
            assert_eq!(post(&mut front, page..page + 1), Notify::No);
            continue;
        }
        back.send(packet(&rig, 60)).map_err(|(error, _)| error).unwrap();
        back.push().unwrap();
        assert_eq!(received(&mut front), []);
        assert_eq!(post(&mut front, page..page + 1), Notify::Yes);
        back.poll().unwrap();
        assert_eq!(received(&mut front).len(), 1);
        let _ = post(&mut front, page - 1..page);
    }
    end(rig, back, front);
}

#[test]
fn a_front_end_that_posts_nothing_costs_a_ring_of_packets() {
    let (rig, mut back, front) = connect(1);
    for _ in 0..256 {
        back.send(packet(&rig, 60)).map_err(|(error, _)| error).unwrap();
    }
    for dropped in 1..=1000 {
        let (error, _) = back.send(packet(&rig, 60)).unwrap_err();
        assert_eq!((error, back.counters().unwrap().rx_dropped), (SendError::Full, dropped));
    }
    back.push().unwrap();
    assert_eq!(back.interface().released, 0);
    end(rig, back, front);
}

#[test]
fn the_queue_is_bounded_in_bytes_too() {
    let (rig, mut back, front) = connect(1);
    let mut taken = 0;
    while back.send(packet(&rig, MAX_PACKET)).is_ok() {
        taken += 1;
    }
    assert_eq!(taken, 16);
    end(rig, back, front);
}

#[test]
fn what_is_no_packet_is_not_sent() {
    let (rig, mut back, front) = connect(1);
    for len in [1, 13, MAX_PACKET + 1] {
        let (error, _) = back.send(packet(&rig, len)).unwrap_err();
        assert_eq!(error, SendError::Length(len));
    }
    end(rig, back, front);
}

#[test]
fn a_posted_page_that_is_not_granted_loses_its_packet_alone() {
    let (rig, mut back, mut front) = connect(8);
    let _ = post(&mut front, 0..2);
    assert!(front.rx.push(&NetifRxRequest { id: 2, pad: 0, gref: GrantRef(0xffff_0000) }));
    let _ = post(&mut front, 3..8);
    for len in [60, 12_000, 4096, 60] {
        back.send(packet(&rig, len)).map_err(|(error, _)| error).unwrap();
    }
    back.poll().unwrap();
    let lost = NETIF_RSP_ERROR;
    let expected = [(0, 0, 60), (1, 0, lost), (2, 0, lost), (3, 0, lost), (4, 0, 4096), (5, 0, 60)];
    assert_eq!(received(&mut front), expected);
    let counters = back.counters().unwrap();
    assert_eq!((counters.rx_packets, counters.rx_failed, back.interface().released), (3, 1, 4));
    end(rig, back, front);
}

/// Fails the n-th copy from now on.
fn fail_copy(rig: &Rig, nth: usize) {
    let fault = Fault::Entry { domain: None, cmd: GNTTABOP_copy, nth: nth as u64, status: GNTST_general_error };
    rig.machine.order(fault);
}

#[test]
fn a_failed_copy_fails_its_packet_alone_whichever_it_is() {
    // Each packet takes two slots, and so two copies.
    const PACKETS: usize = 40;
    let (rig, mut back, mut front) = connect(PACKETS);
    for nth in 1..=2 * PACKETS {
        fail_copy(&rig, nth);
        let packets = (0..PACKETS).flat_map(|index| {
            let id = 2 * index as u16;
            [slot(&front, index, id, NETTXF_more_data, 0, 100), slot(&front, index, id + 1, 0, 0, 40)]
        });
        let packets: Vec<_> = packets.collect();
        let answers = send(&mut back, &mut front, &packets);
        let failed: Vec<u16> =
            answers.iter().filter(|answer| answer.1 != NETIF_RSP_OKAY).map(|answer| answer.0).collect();
        assert_eq!((answers.len(), failed.len()), (2 * PACKETS, 2), "{failed:?}");
        assert_eq!(rig.machine.faults_waiting(), 0);
    }
    assert_eq!(back.counters().unwrap().tx_failed, 2 * PACKETS as u64);
    for nth in 1..=PACKETS {
        fail_copy(&rig, nth);
        for _ in 0..PACKETS {
            back.send(packet(&rig, 60)).map_err(|(error, _)| error).unwrap();
        }
        let _ = post(&mut front, 0..PACKETS);
        back.poll().unwrap();
        let answers = received(&mut front);
        let failed: Vec<u16> = answers.iter().filter(|answer| answer.2 != 60).map(|answer| answer.0).collect();
        assert_eq!((answers.len(), &failed[..]), (PACKETS, &[nth as u16 - 1][..]));
    }
    assert_eq!(back.counters().unwrap().rx_failed, PACKETS as u64);
    end(rig, back, front);
}

#[test]
fn no_failure_while_connecting_leaves_anything_behind() {
    type Order = fn(&Rig, u64) -> Fault;
    let alloc: Order = |rig, nth| Fault::Alloc { domain: rig.back.id, nth };
    let call: Order = |rig, nth| Fault::Hypercall { domain: Some(rig.back.id), kind: None, nth, errno: XEN_ENOMEM };
    let map: Order = |rig, nth| Fault::Entry {
        domain: Some(rig.back.id),
        cmd: GNTTABOP_map_grant_ref,
        nth,
        status: GNTST_general_error,
    };
    for fault in [alloc, call, map] {
        for nth in 1.. {
            let rig = Rig::new();
            let mut back = serve(&rig);
            let front = HandFront::new(&rig, 1);
            rig.machine.order(fault(&rig, nth));
            let stepped = back.step();
            let happened = rig.machine.faults_waiting() == 0;
            rig.machine.cancel_faults();
            assert!(happened || stepped == Ok(Change::Connected));
            if stepped.is_err() {
                assert!(back.device().is_closing());
            }
            end(rig, back, front);
            if !happened {
                assert!(nth > 2, "both rings");
                break;
            }
        }
    }
}

#[test]
fn connected_is_said_when_the_interface_is_up_and_not_before() {
    let rig = Rig::new();
    let mut back = serve(&rig);
    back.interface_mut().up = false;
    let front = HandFront::new(&rig, 1);
    for _ in 0..3 {
        assert_eq!(back.step().unwrap(), Change::None);
        assert_eq!(back.device().state(), State::InitWait);
    }
    back.interface_mut().up = true;
    assert_eq!(back.step().unwrap(), Change::Connected);
    assert_eq!(back.mac().unwrap().unwrap().to_string(), MAC);
    end(rig, back, front);
}

#[test]
fn a_front_end_that_does_not_speak_our_way_is_refused() {
    for (node, value) in [
        ("request-rx-copy", "0"),
        ("feature-rx-notify", "0"),
        ("event-channel", "0"),
        ("tx-ring-ref", "x"),
        ("feature-sg", "7"),
    ] {
        let rig = Rig::new();
        let mut back = serve(&rig);
        let front = HandFront::new(&rig, 1);
        front.device.write_own(xenbus::store::Tx::NONE, node, value).unwrap();
        assert!(matches!(back.step(), Err(BackError::Negotiation(_))), "{node}");
        assert_eq!(back.device().state(), State::Closing);
        end(rig, back, front);
    }
}

#[test]
fn a_front_end_without_scatter_gather_gets_no_packet_longer_than_a_page() {
    let rig = Rig::new();
    let mut back = serve(&rig);
    let front = HandFront::new(&rig, 1);
    front.device.write_own(xenbus::store::Tx::NONE, "feature-sg", 0).unwrap();
    assert_eq!(back.step().unwrap(), Change::Connected);
    assert_eq!(back.send(packet(&rig, 4097)).unwrap_err().0, SendError::Length(4097));
    assert!(back.send(packet(&rig, 4096)).is_ok());
    end(rig, back, front);
}

#[test]
fn a_front_end_comes_back_and_is_served_again() {
    let rig = Rig::new();
    let mut back = serve(&rig);
    for _ in 0..3 {
        let mut front = HandFront::new(&rig, 1);
        front.pages.shared().write(0, &(0..4096).map(pattern).collect::<Vec<u8>>());
        assert_eq!(back.step().unwrap(), Change::Connected);
        honest(&mut back, &mut front);
        back.send(packet(&rig, 60)).map_err(|(error, _)| error).unwrap();
        front.device.switch(State::Closing).unwrap();
        assert_eq!(back.step().unwrap(), Change::None);
        front.device.switch(State::Closed).unwrap();
        assert_eq!(back.step().unwrap(), Change::Disconnected);
        front.device.switch(State::Initialising).unwrap();
        assert_eq!(back.step().unwrap(), Change::None);
        assert_eq!(back.device().state(), State::InitWait);
    }
    assert_eq!(back.interface().released, 3);
    let front = HandFront::new(&rig, 1);
    end(rig, back, front);
}

#[test]
fn a_front_end_that_begins_anew_unseen_is_let_go_of_first() {
    let (rig, mut back, front) = connect(1);
    // As after a crash: nobody has closed anything.
    drop(front);
    Device::front(&rig.front.store, FRONT).unwrap().switch(State::Initialising).unwrap();
    assert_eq!(back.step().unwrap(), Change::Disconnected);
    assert_eq!((back.device().state(), back.port()), (State::Closed, None));
    assert_eq!(back.step().unwrap(), Change::None);
    let mut front = HandFront::new(&rig, 1);
    front.pages.shared().write(0, &(0..4096).map(pattern).collect::<Vec<u8>>());
    assert_eq!(back.step().unwrap(), Change::Connected);
    honest(&mut back, &mut front);
    rig.front.grants.retry_quarantine();
    end(rig, back, front);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn each_slot_gets_one_answer_whatever_it_says(
        slots in vec((any::<u32>(), any::<u16>(), any::<u16>(), any::<u16>(), 0usize..6), 1..400),
    ) {
        let (rig, mut back, mut front) = connect(4);
        let (mut fed, mut answered) = (0, 0);
        for chunk in slots.chunks(200) {
            // Slots that are still held are a packet's worth at most, so there is room.
            let chunk: Vec<_> = chunk.iter().map(|(gref, offset, flags, size, kind)| NetifTxRequest {
                // Half of the pages are there, and half of the sizes fit.
                gref: front.pages.refs().get(*kind).copied().unwrap_or(GrantRef(*gref)),
                offset: if kind % 2 == 0 { offset % 64 } else { *offset },
                flags: if kind % 3 == 0 { flags & NETTXF_more_data } else { *flags },
                id: *offset,
                size: if kind % 2 == 0 { size % 4000 } else { *size },
            }).collect();
            fed += chunk.len();
            answered += send(&mut back, &mut front, &chunk).len();
            prop_assert!(fed - answered <= MAX_SLOTS);
        }
        // An end to whatever chain there is: of extra information, and of parts.
        let last = NetifTxRequest { gref: GrantRef(0), offset: 0, flags: 0, id: 0, size: 0 };
        answered += send(&mut back, &mut front, &[last; 2]).len();
        prop_assert_eq!(fed + 2, answered);
        honest(&mut back, &mut front);
        end(rig, back, front);
    }
}
