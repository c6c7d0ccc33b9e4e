//! What is loaded of a slot, by counting it; two threads, also under Miri, which has memory that is weaker than ours.

extern crate std;

use std::boxed::Box;
use std::cell::RefCell;
use std::sync::Arc;
use std::vec::Vec;

use xen_sys::io::blkif::{BlkifOp, BlkifRequest, BlkifRequestSegment, BlkifResponse, x86_32};
use xen_sys::io::netif::{NetifTxRequest, NetifTxResponse};

use super::*;
use crate::ring::{BackRing, FrontRing, Notify};

std::thread_local! {
    static LOADS: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

/// Notes that a word of a slot is loaded.
pub(super) fn note_load(at: *mut u8) {
    LOADS.with_borrow_mut(|loads| loads.push(at.addr()));
}

/// Returns how many words of slots were loaded since the last time, and that none was loaded twice.
fn loads() -> usize {
    let mut loads = LOADS.take();
    let all = loads.len();
    loads.sort_unstable();
    loads.dedup();
    assert_eq!(loads.len(), all, "a word was loaded twice");
    all
}

#[repr(align(4096))]
struct Bytes {
    _bytes: [u8; PAGE_SIZE],
}

/// A page that the rings of a test share, freed with the last of them.
#[derive(Clone)]
struct Page(Arc<Owned>);

struct Owned(NonNull<u8>);

// SAFETY: a page of its own, accessed by atomics only.
unsafe impl Send for Owned {}
// SAFETY: as above.
unsafe impl Sync for Owned {}

impl Drop for Owned {
    fn drop(&mut self) {
        // SAFETY: `Page::new` has leaked it, and nobody else has it.
        drop(unsafe { Box::from_raw(self.0.cast::<Bytes>().as_ptr()) });
    }
}

impl Page {
    fn new() -> Self {
        let bytes = Box::leak(Box::new(Bytes { _bytes: [0xEE; PAGE_SIZE] }));
        Self(Arc::new(Owned(NonNull::from(bytes).cast())))
    }
}

// SAFETY: the page is there until the last has gone.
unsafe impl Backing for Page {
    fn view(&self) -> Shared<'_> {
        // SAFETY: as above.
        unsafe { Shared::new(self.0.0, PAGE_SIZE) }
    }
}

/// Sends requests through a ring and returns, for each, what arrived and how many words of slots were loaded for it.
fn through<Q: Wire + Default, S: Wire>(requests: &[Q]) -> Vec<(Q, usize)> {
    let page = Page::new();
    let mut front = FrontRing::starting_at(RingPages::<_, Q, S>::new(page.clone()), u32::MAX - 1);
    let mut back = BackRing::attach(RingPages::<_, Q, S>::new(page.clone()));
    let mut arrived = Vec::new();
    for request in requests {
        assert!(front.push(request));
        let _ = front.publish();
        loads();
        let popped = back.pop().unwrap().unwrap();
        arrived.push((popped, loads()));
    }
    arrived
}

fn with_all_segments(operation: BlkifOp, nr_segments: u8) -> BlkifRequest {
    let segment = |index| BlkifRequestSegment { gref: GrantRef(index), first_sect: 1, last_sect: 2, _pad: 3 };
    let seg = core::array::from_fn(|index| segment(index as u32 + 1));
    BlkifRequest { operation, nr_segments, id: 5, sector_number: 6, seg, ..BlkifRequest::default() }
}

#[test]
fn of_a_block_request_only_what_is_in_use_is_loaded_and_each_word_once() {
    let cases = [
        (BlkifOp::READ, 0, 3),
        (BlkifOp::READ, 1, 4),
        (BlkifOp::WRITE, 2, 5),
        (BlkifOp::WRITE_BARRIER, 7, 10),
        (BlkifOp::WRITE, 11, 14),
        // More than there can be: it will be refused, by its head.
        (BlkifOp::READ, 12, 3),
        (BlkifOp::READ, 255, 3),
        (BlkifOp::FLUSH_DISKCACHE, 0, 3),
        // A discard has 32 bytes and an indirect request 64, whatever stands where others have their segments' number.
        (BlkifOp::DISCARD, 1, 4),
        (BlkifOp::DISCARD, 200, 4),
        (BlkifOp::INDIRECT, 0, 8),
        (BlkifOp::RESERVED_1, 11, 3),
        (BlkifOp(255), 11, 3),
    ];
    let requests = cases.map(|(operation, segments, _)| with_all_segments(operation, segments));
    for ((case, sent), (arrived, loads)) in
        cases.iter().zip(requests).zip(through::<BlkifRequest, BlkifResponse>(&requests))
    {
        assert_eq!(loads, case.2, "{case:?}");
        let mut expected = sent;
        for segment in &mut expected.seg[case.2 - 3..] {
            *segment = BlkifRequestSegment::default();
        }
        assert_eq!(arrived, expected, "what is not in use is zero: {case:?}");
    }
}

#[test]
fn the_other_layout_of_block_requests_loses_nothing() {
    let segments = |count: u8| {
        let seg = with_all_segments(BlkifOp::READ, count).seg;
        x86_32::BlkifRequest { operation: BlkifOp::READ, nr_segments: count, id: 5, sector_number: 6, seg, handle: 7 }
    };
    let indirect = x86_32::BlkifRequest { operation: BlkifOp::INDIRECT, ..segments(0) };
    let requests = [segments(1), segments(11), indirect, segments(12)];
    let arrived = through::<x86_32::BlkifRequest, x86_32::BlkifResponse>(&requests);
    // 20 bytes of head, and then 8, 88, 44 rounded up to 48, and none where there are more than there can be.
    assert_eq!(arrived.iter().map(|(_, loads)| *loads).collect::<Vec<_>>(), [5 + 2, 5 + 22, 5 + 12, 5]);
    assert_eq!(arrived[0].0.seg[0], requests[0].seg[0]);
    assert_eq!(arrived[1].0, requests[1]);
    assert_eq!(arrived[2].0.seg[..6], requests[2].seg[..6]);
}

#[test]
fn of_a_packet_every_word_is_loaded_once() {
    let request = NetifTxRequest { gref: GrantRef(1), offset: 2, flags: 3, id: 4, size: 5 };
    assert_eq!(through::<NetifTxRequest, NetifTxResponse>(&[request]), [(request, 3)]);
}

#[test]
fn a_request_is_taken_into_place_and_what_is_not_in_use_stays() {
    let page = Page::new();
    let mut front = FrontRing::new(RingPages::<_, BlkifRequest, BlkifResponse>::new(page.clone()));
    let mut back = BackRing::attach(RingPages::<_, BlkifRequest, BlkifResponse>::new(page.clone()));
    let mut request = with_all_segments(BlkifOp::WRITE, 11);
    assert_eq!(back.pop_into(&mut request), Ok(false));
    assert_eq!(request, with_all_segments(BlkifOp::WRITE, 11), "nothing came, nothing is written");
    let one = BlkifRequest { nr_segments: 1, id: 9, ..BlkifRequest::default() };
    assert!(front.push(&one));
    let _ = front.publish();
    loads();
    assert_eq!(back.pop_into(&mut request), Ok(true));
    assert_eq!(loads(), 4);
    let mut expected = with_all_segments(BlkifOp::WRITE, 11);
    expected.seg[0] = BlkifRequestSegment::default();
    assert_eq!(request, BlkifRequest { seg: expected.seg, ..one });
}

#[test]
fn nothing_of_what_is_not_in_use_goes_into_the_slot() {
    let page = Page::new();
    let mut front = FrontRing::new(RingPages::<_, BlkifRequest, BlkifResponse>::new(page.clone()));
    assert!(front.push(&with_all_segments(BlkifOp::WRITE, 2)));
    let mut slot = [0; size_of::<BlkifRequest>()];
    page.view().slice(RING_HEADER_SIZE, slot.len()).read(0, &mut slot);
    assert!(slot[..24 + 2 * 8].iter().all(|byte| *byte != 0xEE));
    assert!(slot[24 + 2 * 8..].iter().all(|byte| *byte == 0xEE), "{slot:x?}");
}

/// What all rests on, as the model under loom has a barrier of its own. Miri, where stores wait in buffers, finds soon if it is gone.
#[test]
fn of_two_that_announce_and_then_look_one_sees_the_other() {
    use std::sync::Barrier;
    const ROUNDS: u32 = if cfg!(miri) { 50 } else { 20_000 };
    let page = Page::new();
    let ring = || RingPages::<_, BlkifRequest, BlkifResponse>::new(page.clone());
    let (ours, theirs, together) = (ring(), ring(), Barrier::new(2));
    let announce_and_look = |memory: &RingPages<Page, BlkifRequest, BlkifResponse>, own, other| {
        let mut seen = Vec::new();
        for round in 0..ROUNDS {
            together.wait();
            memory.announce(own, round);
            seen.push(memory.load(other, Ordering::SeqCst) == round);
        }
        seen
    };
    let (publishing, arming) = std::thread::scope(|scope| {
        let announce_and_look = &announce_and_look;
        let peer = scope.spawn(move || announce_and_look(&theirs, Field::ReqEvent, Field::ReqProd));
        (announce_and_look(&ours, Field::ReqProd, Field::ReqEvent), peer.join().unwrap())
    });
    for (round, (one, other)) in publishing.into_iter().zip(arming).enumerate() {
        assert!(one || other, "in round {round} neither has seen the other");
    }
}

/// Two threads that sleep until they are told, with a ring that fills.
#[test]
fn two_threads_lose_no_event() {
    use std::sync::mpsc;
    const REQUESTS: u64 = if cfg!(miri) { 40 } else { 20_000 };
    let page = Page::new();
    let mut front = FrontRing::new(RingPages::<_, BlkifRequest, BlkifResponse>::new(page.clone()));
    let mut back = BackRing::attach(RingPages::<_, BlkifRequest, BlkifResponse>::new(page.clone()));
    // Their capacity is what makes an event: a full channel has one pending.
    let (to_back, back_event) = mpsc::sync_channel::<()>(1);
    let (to_front, front_event) = mpsc::sync_channel::<()>(1);
    let patience = core::time::Duration::from_secs(60);
    let peer = std::thread::spawn(move || {
        let mut answered = 0;
        while answered < REQUESTS {
            while let Some(request) = back.pop().unwrap() {
                assert_eq!(request.id, answered);
                assert!(back.respond(&BlkifResponse { id: answered, ..BlkifResponse::default() }));
                answered += 1;
            }
            let (notify, more) = if answered % 2 == 0 { back.publish_and_arm() } else { (back.publish(), back.arm()) };
            if notify == Notify::Yes {
                let _ = to_front.try_send(());
            }
            if answered < REQUESTS && !more.unwrap() {
                back_event.recv_timeout(patience).expect("an event for the back end");
            }
        }
    });
    let (mut sent, mut received) = (0, 0);
    while received < REQUESTS {
        while let Some(response) = front.pop().unwrap() {
            assert_eq!(response.id, received);
            received += 1;
        }
        while sent < REQUESTS
            && front.push(&BlkifRequest { nr_segments: (sent % 12) as u8, id: sent, ..BlkifRequest::default() })
        {
            sent += 1;
        }
        if front.publish() == Notify::Yes {
            let _ = to_back.try_send(());
        }
        if received < REQUESTS && !front.arm().unwrap() {
            front_event.recv_timeout(patience).expect("an event for the front end");
        }
    }
    peer.join().unwrap();
}
