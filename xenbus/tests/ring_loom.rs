//! The ring's notify protocol under the interleavings that its orderings allow: all of them for one request, those with up to three
//! preemptions for a full ring.
//! `RUSTFLAGS="--cfg loom" cargo test -p xenbus --release --test ring_loom`.
#![cfg(loom)]

use std::sync::Arc;

use loom::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};
use loom::thread;
use xen_sys::Wire;
use xenbus::ring::{BackRing, Field, FrontRing, Notify, RingMemory};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
struct Msg(u32);

// SAFETY: one plain word.
unsafe impl Wire for Msg {}

/// A ring of two slots, and the two pending bits of its event channel.
struct Page {
    words: [AtomicU32; 4],
    slots: [AtomicU32; 2],
    to_back: AtomicBool,
    to_front: AtomicBool,
}

#[derive(Clone)]
struct Model(Arc<Page>);

impl Model {
    fn word(&self, field: Field) -> &AtomicU32 {
        &self.0.words[field.offset() / 4]
    }
}

impl RingMemory for Model {
    type Index = u32;
    type Request = Msg;
    type Response = Msg;
    type View<'a> = Self;

    fn view(&self) -> Self {
        self.clone()
    }

    fn slots(&self) -> u32 {
        2
    }

    fn load(&self, field: Field, order: Ordering) -> u32 {
        self.word(field).load(order)
    }

    fn store(&self, field: Field, value: u32, order: Ordering) {
        self.word(field).store(value, order);
    }

    // loom takes sequentially consistent accesses for less than they are, and fences for what they are.
    fn announce(&self, field: Field, value: u32) {
        self.word(field).store(value, Ordering::Release);
        fence(Ordering::SeqCst);
    }

    fn read_request(&self, slot: usize) -> Msg {
        Msg(self.0.slots[slot].load(Ordering::Relaxed))
    }

    fn write_request(&self, slot: usize, request: &Msg) {
        self.0.slots[slot].store(request.0, Ordering::Relaxed);
    }

    fn read_response(&self, slot: usize) -> Msg {
        self.read_request(slot)
    }

    fn write_response(&self, slot: usize, response: &Msg) {
        self.write_request(slot, response);
    }
}

/// Waits for the event as a handler does. The bit is taken by read-modify-write, as the hypervisor's own is, so this
/// orders nothing that the ring should have ordered: relaxed on purpose.
fn wait(pending: &AtomicBool) {
    while !pending.swap(false, Ordering::Relaxed) {
        thread::yield_now();
    }
}

/// `count` requests go over and come back, with at most that many preemptions if a bound is given; a lost event leaves one side
/// waiting for ever, which loom reports. The back end publishes and arms `at_once`, or one after the other.
fn round_trips(count: u32, preemptions: Option<usize>, at_once: bool) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = preemptions;
    model.check(move || {
        let page = Arc::new(Page {
            words: Default::default(),
            slots: Default::default(),
            to_back: AtomicBool::new(false),
            to_front: AtomicBool::new(false),
        });
        let mut front = FrontRing::new(Model(page.clone()));
        let mut back = BackRing::attach(Model(page.clone()));
        let peer = {
            let page = page.clone();
            thread::spawn(move || {
                let mut answered = 0;
                while answered < count {
                    // In a batch where both are done at once.
                    if at_once {
                        let mut requests = back.requests().unwrap();
                        while let Some(Msg(value)) = requests.next() {
                            assert_eq!(value, answered);
                            assert!(requests.respond(&Msg(value + 100)));
                            answered += 1;
                        }
                    }
                    while !at_once && let Some(Msg(value)) = back.pop().unwrap() {
                        assert_eq!(value, answered);
                        assert!(back.respond(&Msg(value + 100)));
                        answered += 1;
                        if back.publish() == Notify::Yes {
                            page.to_front.swap(true, Ordering::Relaxed);
                        }
                    }
                    let more = if at_once {
                        let (notify, more) = back.publish_and_arm();
                        if notify == Notify::Yes {
                            page.to_front.swap(true, Ordering::Relaxed);
                        }
                        more.unwrap()
                    } else {
                        answered < count && back.arm().unwrap()
                    };
                    if answered < count && !more {
                        wait(&page.to_back);
                    }
                }
            })
        };
        let (mut sent, mut received) = (0, 0);
        while received < count {
            if at_once {
                for Msg(value) in front.responses().unwrap() {
                    assert_eq!(value, received + 100);
                    received += 1;
                }
            }
            while !at_once && let Some(Msg(value)) = front.pop().unwrap() {
                assert_eq!(value, received + 100);
                received += 1;
            }
            // After the responses, which make the room.
            while sent < count && front.push(&Msg(sent)) {
                sent += 1;
            }
            if front.publish() == Notify::Yes {
                page.to_back.swap(true, Ordering::Relaxed);
            }
            if received < count && !front.arm().unwrap() {
                wait(&page.to_front);
            }
        }
        peer.join().unwrap();
    });
}

#[test]
fn no_event_is_lost_with_one_request() {
    round_trips(1, None, false);
}

#[test]
fn no_event_is_lost_when_the_ring_fills() {
    round_trips(3, Some(3), false);
}

#[test]
fn no_event_is_lost_when_publishing_and_arming_share_a_barrier() {
    round_trips(1, None, true);
    round_trips(3, Some(3), true);
}
