//! Message rings: exhaustively with indices of eight bits, and in real pages' layout by a peer that lies.
#![cfg(not(loom))]

use std::cell::Cell;
use std::rc::Rc;
use std::sync::atomic::Ordering;

use hypercall::mem::Shared;
use xen_sys::Wire;
use xenbus::ring::{BackRing, Field, FrontRing, Notify, RingError, RingMemory, RingPages};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
struct Msg(u32);

// SAFETY: one plain word.
unsafe impl Wire for Msg {}

/// A ring of four slots with indices of eight bits.
#[derive(Clone)]
struct Small(Rc<Cells>);

struct Cells {
    words: [Cell<u8>; 4],
    slots: Vec<Cell<u32>>,
}

impl Small {
    fn new(slots: usize) -> Self {
        Self(Rc::new(Cells { words: Default::default(), slots: vec![Cell::new(0); slots] }))
    }

    fn word(&self, field: Field) -> &Cell<u8> {
        &self.0.words[field.offset() / 4]
    }
}

impl RingMemory for Small {
    type Index = u8;
    type Request = Msg;
    type Response = Msg;
    type View<'a> = Self;

    fn view(&self) -> Self {
        self.clone()
    }

    fn slots(&self) -> u32 {
        self.0.slots.len() as u32
    }

    fn load(&self, field: Field, _: Ordering) -> u8 {
        self.word(field).get()
    }

    fn store(&self, field: Field, value: u8, _: Ordering) {
        self.word(field).set(value);
    }

    fn announce(&self, field: Field, value: u8) {
        self.word(field).set(value);
    }

    fn read_request(&self, slot: usize) -> Msg {
        Msg(self.0.slots[slot].get())
    }

    fn write_request(&self, slot: usize, request: &Msg) {
        self.0.slots[slot].set(request.0);
    }

    fn read_response(&self, slot: usize) -> Msg {
        self.read_request(slot)
    }

    fn write_response(&self, slot: usize, response: &Msg) {
        self.write_request(slot, response);
    }
}

fn pair(slots: usize, start: u8) -> (Small, FrontRing<Small>, BackRing<Small>) {
    let memory = Small::new(slots);
    let front = FrontRing::starting_at(memory.clone(), start);
    let back = BackRing::attach(memory.clone());
    (memory, front, back)
}

#[test]
fn every_message_arrives_once_in_order_from_every_starting_index_and_batch() {
    for start in 0..=255 {
        for batch in 1..=4 {
            let (_, mut front, mut back) = pair(4, start);
            let (mut sent, mut taken, mut answered) = (0, 0, 0);
            while answered < 40 {
                for _ in 0..batch {
                    if front.push(&Msg(sent)) {
                        sent += 1;
                    }
                }
                let _ = front.publish();
                let mut request = Msg(0);
                let mut pop = |back: &mut BackRing<Small>| match start % 2 {
                    0 => back.pop().unwrap(),
                    _ => back.pop_into(&mut request).unwrap().then_some(request),
                };
                if start % 5 == 0 {
                    let mut requests = back.requests().unwrap();
                    let mut at = Msg(0);
                    while requests.next_into(&mut at) {
                        assert_eq!(at, Msg(taken));
                        assert!(requests.respond(&Msg(1000 + taken)));
                        taken += 1;
                    }
                }
                while let Some(request) = pop(&mut back) {
                    assert_eq!(request, Msg(taken));
                    assert!(back.respond(&Msg(1000 + taken)));
                    taken += 1;
                }
                match start % 3 {
                    0 => _ = back.publish(),
                    _ => assert_eq!(back.publish_and_arm().1, Ok(false)),
                }
                if start % 7 == 0 {
                    for response in front.responses().unwrap() {
                        assert_eq!(response, Msg(1000 + answered));
                        answered += 1;
                    }
                }
                while let Some(response) = front.pop().unwrap() {
                    assert_eq!(response, Msg(1000 + answered));
                    answered += 1;
                }
                assert_eq!(front.free(), 4);
            }
        }
    }
}

#[test]
fn a_full_ring_takes_no_more_and_loses_nothing() {
    for start in 0..=255 {
        let (_, mut front, mut back) = pair(4, start);
        for value in 0..4 {
            assert!(front.push(&Msg(value)));
        }
        assert!(!front.push(&Msg(99)));
        assert_eq!(front.free(), 0);
        let _ = front.publish();
        for value in 0..4 {
            assert_eq!(back.pop(), Ok(Some(Msg(value))));
        }
        assert_eq!(back.pop(), Ok(None));
    }
}

#[test]
fn what_a_batch_leaves_is_there_for_the_next_from_every_starting_index() {
    for start in 0..=255 {
        let (memory, mut front, mut back) = pair(4, start);
        for value in 0..3 {
            assert!(front.push(&Msg(value)));
        }
        let _ = front.publish();
        let mut requests = back.requests().unwrap();
        assert!(!requests.respond(&Msg(9)), "nothing is taken yet");
        assert_eq!(requests.next(), Some(Msg(0)));
        assert_eq!(requests.next(), Some(Msg(1)));
        assert!(requests.respond(&Msg(10)));
        drop(requests);
        assert_eq!(back.unanswered(), 1);
        assert_eq!(back.publish_and_arm(), (Notify::Yes, Ok(true)), "one is left");
        // Comes meanwhile: the batch is what was there when it began.
        let mut requests = back.requests().unwrap();
        assert!(front.push(&Msg(3)));
        let _ = front.publish();
        assert_eq!(requests.next(), Some(Msg(2)));
        assert_eq!(requests.next(), None);
        assert!(requests.respond(&Msg(11)) && requests.respond(&Msg(12)) && !requests.respond(&Msg(13)));
        drop(requests);
        assert_eq!(back.arm(), Ok(true));
        assert_eq!(back.pop(), Ok(Some(Msg(3))));
        assert!(back.respond(&Msg(13)));
        let _ = back.publish();
        let mut responses = front.responses().unwrap();
        assert_eq!(responses.next(), Some(Msg(10)));
        drop(responses);
        assert_eq!(front.free(), 1);
        assert_eq!(front.arm(), Ok(true), "three are left");
        assert_eq!(front.pop(), Ok(Some(Msg(11))));
        assert_eq!(front.responses().unwrap().collect::<Vec<_>>(), [Msg(12), Msg(13)]);
        assert_eq!(front.arm(), Ok(false));
        assert_eq!(front.responses().unwrap().count() + back.requests().unwrap().count(), 0);
        assert_eq!(memory.load(Field::RspEvent, Ordering::Relaxed), start.wrapping_add(5));
    }
}

#[test]
fn an_index_that_goes_back_while_some_are_left_gives_no_more_than_it_claims() {
    let (memory, mut front, mut back) = pair(4, 254);
    for value in 0..3 {
        assert!(front.push(&Msg(value)));
    }
    let _ = front.publish();
    assert_eq!(back.pop(), Ok(Some(Msg(0))));
    memory.store(Field::ReqProd, 0, Ordering::Relaxed);
    assert_eq!(back.requests().unwrap().count(), 1);
    memory.store(Field::ReqProd, 255, Ordering::Relaxed);
    assert!(back.requests().is_err(), "behind what was taken");
    memory.store(Field::RspProd, 0, Ordering::Relaxed);
    assert_eq!(front.pop(), Ok(Some(Msg(0))));
    memory.store(Field::RspProd, 254, Ordering::Relaxed);
    assert!(front.responses().is_err());
    memory.store(Field::RspProd, 0, Ordering::Relaxed);
    assert!(front.responses().is_err() && front.arm().is_err(), "a broken ring stays broken");
}

#[test]
fn what_is_ready_can_be_taken_without_another_look_from_every_starting_index() {
    for start in 0..=255 {
        let (memory, mut front, mut back) = pair(4, start);
        assert_eq!(back.ready(), Ok(0));
        for value in 0..3 {
            assert!(front.push(&Msg(value)));
        }
        let _ = front.publish();
        assert_eq!(back.ready(), Ok(3));
        // What is said meanwhile isn't looked at: neither more, nor nonsense.
        memory.store(Field::ReqProd, start.wrapping_add(100), Ordering::Relaxed);
        for value in 0..3 {
            assert_eq!(back.ready(), Ok(3 - value));
            assert_eq!(back.pop(), Ok(Some(Msg(value))));
        }
        assert!(back.ready().is_err());
    }
}

#[test]
fn back_ring_accepts_a_request_producer_iff_it_is_within_what_was_taken_and_the_size() {
    for start in 0..=255u8 {
        for taken in 0..=4u8 {
            for lie in 0..=255u8 {
                let (memory, mut front, mut back) = pair(4, start);
                for value in 0..u32::from(taken) {
                    assert!(front.push(&Msg(value)));
                }
                let _ = front.publish();
                for _ in 0..taken {
                    assert!(back.pop().unwrap().is_some());
                }
                memory.store(Field::ReqProd, lie, Ordering::Relaxed);
                let ahead = lie.wrapping_sub(start);
                let next = match start % 3 {
                    0 => back.pop(),
                    1 => back.ready().map(|ready| (ready > 0).then_some(Msg(0))),
                    _ => back.requests().map(|mut requests| requests.next()),
                };
                match next {
                    Ok(None) => assert_eq!(ahead, taken),
                    Ok(Some(_)) => assert!(ahead > taken && ahead <= 4, "{start} {taken} {lie}"),
                    Err(error) => {
                        assert!(ahead < taken || ahead > 4, "{start} {taken} {lie}");
                        assert_eq!(error, RingError::PeerOverflow { claimed: ahead.into(), size: 4 });
                        memory.store(Field::ReqProd, start.wrapping_add(taken), Ordering::Relaxed);
                        assert_eq!(back.pop(), Err(error), "a broken ring stays broken");
                        assert_eq!(back.ready(), Err(error));
                        assert_eq!(back.requests().map(|requests| requests.count()), Err(error));
                        assert_eq!(back.arm(), Err(error));
                    }
                }
            }
        }
    }
}

#[test]
fn front_ring_rejects_a_response_producer_beyond_its_requests() {
    for start in 0..=255u8 {
        for outstanding in 0..=4u8 {
            for lie in 0..=255u8 {
                let (memory, mut front, _) = pair(4, start);
                for value in 0..u32::from(outstanding) {
                    assert!(front.push(&Msg(value)));
                }
                let _ = front.publish();
                memory.store(Field::RspProd, lie, Ordering::Relaxed);
                let claimed = lie.wrapping_sub(start);
                let next = match start % 2 {
                    0 => front.pop(),
                    _ => front.responses().map(|mut responses| responses.next()),
                };
                match next {
                    Ok(None) => assert_eq!(claimed, 0),
                    Ok(Some(_)) => assert!(claimed <= outstanding),
                    Err(error) => {
                        let size = u32::from(outstanding);
                        assert!(claimed > outstanding);
                        assert_eq!(error, RingError::PeerOverflow { claimed: claimed.into(), size });
                        assert_eq!(front.arm(), Err(error));
                    }
                }
            }
        }
    }
}

#[test]
fn requests_that_were_pushed_but_not_published_can_not_be_answered() {
    let (memory, mut front, _) = pair(4, 0);
    assert!(front.push(&Msg(1)));
    memory.store(Field::RspProd, 1, Ordering::Relaxed);
    assert_eq!(front.pop(), Err(RingError::PeerOverflow { claimed: 1, size: 0 }));
}

#[test]
fn a_response_to_nothing_is_not_written() {
    let (_, mut front, mut back) = pair(4, 7);
    assert!(!back.respond(&Msg(1)));
    assert_eq!(back.publish(), Notify::No);
    assert_eq!(front.pop(), Ok(None));
}

#[test]
fn the_peer_is_notified_iff_the_move_passes_the_index_that_it_waits_for() {
    for start in 0..=255u8 {
        for event in 0..=255u8 {
            for pushed in 1..=4u8 {
                let (memory, mut front, _) = pair(4, start);
                memory.store(Field::ReqEvent, event, Ordering::Relaxed);
                for value in 0..u32::from(pushed) {
                    assert!(front.push(&Msg(value)));
                }
                let passed = (1..=pushed).any(|step| start.wrapping_add(step) == event);
                assert_eq!(front.publish() == Notify::Yes, passed, "{start} {event} {pushed}");
                assert_eq!(front.publish(), Notify::No, "nothing new to tell");
            }
        }
    }
}

#[test]
fn arming_tells_of_what_came_before_it() {
    for start in 0..=255u8 {
        let (_, mut front, mut back) = pair(4, start);
        assert_eq!(back.arm(), Ok(false));
        assert!(front.push(&Msg(1)));
        assert_eq!(front.publish(), Notify::Yes);
        assert_eq!(back.arm(), Ok(true));
        assert_eq!(back.pop(), Ok(Some(Msg(1))));
        assert_eq!(front.arm(), Ok(false));
        assert!(back.respond(&Msg(2)));
        assert_eq!(back.publish(), Notify::Yes);
        assert_eq!(front.arm(), Ok(true));
        assert_eq!(front.pop(), Ok(Some(Msg(2))));
    }
}

#[test]
fn arming_is_not_needed_as_long_as_something_is_there() {
    for start in 0..=255u8 {
        let (memory, mut front, mut back) = pair(4, start);
        assert!(front.push(&Msg(1)) && front.push(&Msg(2)));
        let _ = front.publish();
        assert_eq!(back.pop(), Ok(Some(Msg(1))));
        memory.store(Field::ReqEvent, 99, Ordering::Relaxed);
        assert_eq!(back.arm(), Ok(true));
        assert_eq!(memory.load(Field::ReqEvent, Ordering::Relaxed), 99, "written for nothing");
        assert_eq!(back.pop(), Ok(Some(Msg(2))));
        assert_eq!(back.arm(), Ok(false));
        assert_eq!(memory.load(Field::ReqEvent, Ordering::Relaxed), start.wrapping_add(3));
    }
}

#[test]
fn publishing_and_arming_at_once_does_both_from_every_starting_index() {
    for start in 0..=255u8 {
        let (memory, mut front, mut back) = pair(4, start);
        assert_eq!(front.arm(), Ok(false));
        assert!(front.push(&Msg(1)) && front.push(&Msg(2)));
        let _ = front.publish();
        assert_eq!(back.pop(), Ok(Some(Msg(1))));
        assert!(back.respond(&Msg(11)));
        // Not all was taken: it is published, and nothing is to be armed.
        assert_eq!(back.publish_and_arm(), (Notify::Yes, Ok(true)));
        assert_eq!(back.pop(), Ok(Some(Msg(2))));
        assert_eq!(back.pop(), Ok(None));
        assert!(back.respond(&Msg(12)));
        assert_eq!(back.publish_and_arm(), (Notify::No, Ok(false)), "not asked for");
        assert_eq!(memory.load(Field::RspProd, Ordering::Relaxed), start.wrapping_add(2));
        assert_eq!(memory.load(Field::ReqEvent, Ordering::Relaxed), start.wrapping_add(3));
        assert_eq!(back.publish_and_arm(), (Notify::No, Ok(false)), "nothing to do");
        memory.store(Field::ReqProd, start.wrapping_add(9), Ordering::Relaxed);
        let error = RingError::PeerOverflow { claimed: 7, size: 4 };
        assert_eq!(back.publish_and_arm(), (Notify::No, Err(error)));
    }
}

#[test]
fn an_unarmed_peer_is_notified_once_for_a_batch() {
    let (_, mut front, mut back) = pair(8, 250);
    assert_eq!(back.arm(), Ok(false));
    let mut notified = 0;
    for value in 0..8 {
        assert!(front.push(&Msg(value)));
        notified += u32::from(front.publish() == Notify::Yes);
    }
    assert_eq!(notified, 1);
}

/// Makes a ring in `len` bytes at `offset` of a page that nobody else has, which may be written or not.
fn ring_in(offset: usize, len: usize, writable: bool) {
    let page = Box::leak(Box::new(Page([0; 4096])));
    let base = std::ptr::NonNull::from(&mut page.0).cast();
    // SAFETY: leaked, and nobody has it but the view.
    let view = unsafe { if writable { Shared::new(base, 4096) } else { Shared::read_only(base, 4096) } };
    assert_eq!(RingPages::<_, Msg, Msg>::new(view.slice(offset, len)).slots(), 512);
}

#[repr(align(4096))]
struct Page([u8; 4096]);

#[test]
#[cfg_attr(miri, ignore = "the page is leaked")]
fn ring_stands_in_a_writable_page_and_nowhere_else() {
    let refused = |offset, len, writable| std::panic::catch_unwind(|| ring_in(offset, len, writable)).is_err();
    assert!(!refused(0, 4096, true));
    assert!(refused(2, 4094, true), "not aligned");
    assert!(refused(0, 4096, false), "read-only");
}
