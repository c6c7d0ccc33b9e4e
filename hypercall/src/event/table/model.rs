//! The event channels under all interleavings: the code is that of [`EventChannels`], on atomics that loom follows. Of the shared page
//! there is what it uses, with two words of two ports; Xen is what its interface promises of those bits.
//! `RUSTFLAGS="--cfg loom" cargo test -p hypercall --release --lib model`.

extern crate std;

use alloc::sync::Arc;
use core::fmt;
use core::ptr::NonNull;
use core::sync::atomic::Ordering::{self, AcqRel, Acquire, Relaxed, SeqCst};

use loom::sync::atomic::fence;
use loom::thread;
use xen_sys::event_channel::*;
use xen_sys::{DomId, Gfn, Nr, Port};

use super::{Event, EventChannels, Events, place};
use crate::platform::{Hypervisor, Level, Platform, Region};

/// Bits of a word, and words: as few as there can be for more than one of each.
pub(super) const WORD: u32 = 2;

/// Accesses in an order. loom takes sequentially consistent accesses for less than they are, and fences for what they are; and a store
/// may slip before the read of an exchange, so that it is one itself.
fn ordered<T>(order: Ordering, weaker: Ordering, access: impl FnOnce(Ordering) -> T) -> T {
    if order != SeqCst {
        return access(order);
    }
    fence(SeqCst);
    let value = access(weaker);
    fence(SeqCst);
    value
}

macro_rules! followed {
    ($($name:ident: $number:ty),*) => {$(
        #[derive(Default)]
        pub(super) struct $name(loom::sync::atomic::$name);

        #[allow(dead_code, reason = "what one of them needs, both have")]
        impl $name {
            pub(super) fn new(value: $number) -> Self {
                Self(loom::sync::atomic::$name::new(value))
            }

            pub(super) fn load(&self, order: Ordering) -> $number {
                ordered(order, Acquire, |order| self.0.load(order))
            }

            pub(super) fn store(&self, value: $number, order: Ordering) {
                ordered(order, AcqRel, |order| self.0.swap(value, order));
            }

            pub(super) fn swap(&self, value: $number, order: Ordering) -> $number {
                ordered(order, AcqRel, |order| self.0.swap(value, order))
            }

            pub(super) fn fetch_add(&self, value: $number, order: Ordering) -> $number {
                ordered(order, AcqRel, |order| self.0.fetch_add(value, order))
            }

            pub(super) fn fetch_or(&self, value: $number, order: Ordering) -> $number {
                ordered(order, AcqRel, |order| self.0.fetch_or(value, order))
            }

            pub(super) fn fetch_and(&self, value: $number, order: Ordering) -> $number {
                ordered(order, AcqRel, |order| self.0.fetch_and(value, order))
            }
        }
    )*};
}

followed!(AtomicU32: u32, AtomicUsize: usize);

/// What there is of the shared page.
#[derive(Default)]
pub struct SharedInfo {
    pub(super) vcpu_info: [VcpuInfo; 1],
    pub(super) evtchn_pending: [AtomicUsize; WORD as usize],
    pub(super) evtchn_mask: [AtomicUsize; WORD as usize],
}

#[derive(Default)]
pub(super) struct VcpuInfo {
    pub(super) evtchn_upcall_pending: AtomicU32,
    pub(super) evtchn_pending_sel: AtomicUsize,
}

/// The one port that is used: not the first of all, nor of its word.
const PORT: Port = Port(3);

/// Xen, and what it shares with its one domain.
#[derive(Clone, Default)]
struct Xen(Arc<Machine>);

#[derive(Default)]
struct Machine {
    shared: SharedInfo,
    /// How often somebody has asked for the time. No delay is longer than from one time to the next.
    asked: AtomicU32,
}

impl Xen {
    /// The other end signals.
    fn send(&self) {
        let shared = &self.0.shared;
        let (word, bit) = place(PORT);
        let pending = shared.evtchn_pending[word].fetch_or(bit, SeqCst) & bit != 0;
        if !pending && shared.evtchn_mask[word].load(SeqCst) & bit == 0 {
            self.raise(word);
        }
    }

    fn unmask(&self) {
        let shared = &self.0.shared;
        let (word, bit) = place(PORT);
        let masked = shared.evtchn_mask[word].fetch_and(!bit, SeqCst) & bit != 0;
        if masked && shared.evtchn_pending[word].load(SeqCst) & bit != 0 {
            self.raise(word);
        }
    }

    fn close(&self) {
        let (word, bit) = place(PORT);
        self.0.shared.evtchn_pending[word].fetch_and(!bit, SeqCst);
    }

    /// Tells the vcpu, unless it was told of that word already.
    fn raise(&self, word: usize) {
        let vcpu = &self.0.shared.vcpu_info[0];
        if vcpu.evtchn_pending_sel.fetch_or(1 << word, SeqCst) & 1 << word == 0 {
            vcpu.evtchn_upcall_pending.swap(1, SeqCst);
        }
    }
}

// SAFETY: the one command with an answer writes into its own argument.
unsafe impl Hypervisor for Xen {
    #[allow(non_upper_case_globals, reason = "the constants have their C names")]
    unsafe fn hypercall(&self, nr: Nr, args: [usize; 5]) -> isize {
        assert_eq!(nr, Nr::EVENT_CHANNEL_OP);
        match args[0] as u32 {
            EVTCHNOP_alloc_unbound => {
                let made = core::ptr::with_exposed_provenance_mut::<EvtchnAllocUnbound>(args[1]);
                // SAFETY: the argument of that command.
                unsafe { (*made).port = PORT };
            }
            EVTCHNOP_unmask => self.unmask(),
            EVTCHNOP_close => self.close(),
            other => panic!("command {other}"),
        }
        0
    }
}

// SAFETY: there are no pages.
unsafe impl Platform for Xen {
    fn alloc(&self, _: Region, _: usize) -> Option<NonNull<u8>> {
        None
    }

    unsafe fn free(&self, _: Region, _: NonNull<u8>, _: usize) {}

    fn gfn_of(&self, _: NonNull<u8>) -> Gfn {
        panic!("there are no pages")
    }

    fn now_ns(&self) -> u64 {
        2_000_000_000 * u64::from(self.0.asked.fetch_add(1, Relaxed))
    }

    fn wait(&self, _: &[Port], _: u64) {}

    fn log(&self, _: Level, _: fmt::Arguments<'_>) {}
}

/// A domain whose port has a handler, which looks for what the other end has left.
#[derive(Clone)]
struct Domain {
    xen: Xen,
    events: EventChannels<Xen>,
    /// What there is to do for the first channel of the port, and for the next.
    work: Arc<[AtomicU32; 2]>,
}

impl Domain {
    fn new() -> Self {
        let xen = Xen::default();
        let shared = NonNull::from(&xen.0.shared);
        // SAFETY: the platform, which the channels keep, keeps the page.
        let events = unsafe { EventChannels::new(xen.clone(), shared) };
        assert_eq!(events.alloc_unbound(DomId(1)), Ok(PORT));
        Self { xen, events, work: Arc::default() }
    }

    /// The other end leaves work, and signals.
    fn send(&self) {
        self.leave(0);
    }

    /// The same, at the other end of that channel.
    fn leave(&self, channel: usize) {
        self.work[channel].store(1, SeqCst);
        self.xen.send();
    }

    /// What a handler does, if the port is still the channel that the event is of.
    fn handle(&self, event: Event) {
        if !self.events.is_current(event) {
            return;
        }
        if self.work[event.generation as usize].swap(0, SeqCst) == 1 {
            self.events.unmask(event.port);
        } else {
            self.events.put_off(event.port);
        }
    }

    fn dispatch(&self) {
        self.events.dispatch(0, |event| self.handle(event));
    }

    fn dispatch_delayed(&self) {
        self.events.dispatch_delayed(|event| self.handle(event));
    }

    /// Lets everything come to rest.
    fn run(&self) {
        while self.events.upcall_pending(0) || self.events.next_delayed_ns().is_some() {
            self.dispatch();
            self.dispatch_delayed();
        }
    }

    /// Runs to the end: the work was done, and the port is dispatched again.
    fn ends(&self) {
        self.run();
        assert_eq!(self.work.each_ref().map(|work| work.load(SeqCst)), [0; 2], "an event is lost");
        assert!(!self.events.is_masked(PORT), "a port is masked for ever");
    }

    /// The port is closed, and made again at once for another channel, whose other end signals.
    fn made_again(&self) {
        self.events.close(PORT);
        assert_eq!(self.events.alloc_unbound(DomId(1)), Ok(PORT));
        self.leave(1);
    }
}

/// Looks at all ways in which this may go, or at those with as many preemptions at most: a port that is made again while its handler
/// runs has too many of them.
fn all_ways(preemptions: Option<usize>, way: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = preemptions;
    model.check(way);
}

/// A handler runs beside whatever else is done, and then everything comes to its end.
fn beside(
    preemptions: Option<usize>,
    begin: fn() -> Domain,
    handler: fn(&Domain),
    other: impl Fn(&Domain) + Sync + Send + 'static,
) {
    all_ways(preemptions, move || {
        let domain = begin();
        let thread = {
            let domain = domain.clone();
            thread::spawn(move || handler(&domain))
        };
        other(&domain);
        thread.join().unwrap();
        domain.ends();
    });
}

/// An event without work has come: it is the first, which is followed by no delay.
fn first() -> Domain {
    let domain = Domain::new();
    domain.xen.send();
    domain
}

/// The second, which is followed by one.
fn second() -> Domain {
    let domain = first();
    domain.dispatch();
    domain.xen.send();
    domain
}

/// The second is handled, and the delay begun.
fn put_off() -> Domain {
    let domain = second();
    domain.dispatch();
    assert!(domain.events.next_delayed_ns().is_some() && domain.events.is_masked(PORT));
    domain
}

#[test]
fn event_that_comes_while_one_without_work_is_handled_is_not_lost() {
    beside(None, first, Domain::dispatch, Domain::send);
}

#[test]
fn event_that_comes_while_its_port_is_put_off_is_not_lost() {
    beside(None, second, Domain::dispatch, Domain::send);
}

#[test]
fn event_that_comes_while_its_ports_delay_ends_is_not_lost() {
    beside(None, put_off, Domain::dispatch_delayed, Domain::send);
}

/// By two, as the upcall and the clock may come to different vcpus.
#[test]
fn event_that_comes_to_one_vcpu_while_the_delay_ends_at_another_is_not_lost() {
    let send_and_dispatch = |domain: &Domain| {
        domain.send();
        domain.dispatch();
    };
    beside(None, put_off, Domain::dispatch_delayed, send_and_dispatch);
}

#[test]
fn event_of_a_port_that_was_made_again_is_not_lost_to_the_handler_of_the_old_one() {
    beside(Some(5), first, Domain::dispatch, Domain::made_again);
}

#[test]
fn event_of_a_port_that_was_made_again_is_not_lost_though_the_old_one_was_being_put_off() {
    beside(Some(5), second, Domain::dispatch, Domain::made_again);
}

#[test]
fn event_of_a_port_that_was_made_again_is_not_lost_though_the_old_ones_delay_was_ending() {
    beside(Some(5), put_off, Domain::dispatch_delayed, Domain::made_again);
}

/// Work that was put off while its port was closed knows that it isn't the same channel, and what it has seen before is not seen again.
#[test]
fn event_that_was_taken_before_the_port_was_closed_is_not_the_new_channels() {
    all_ways(Some(5), || {
        let domain = first();
        let closed = Arc::new(AtomicU32::default());
        let thread = {
            let (domain, closed) = (domain.clone(), closed.clone());
            thread::spawn(move || {
                domain.events.dispatch(0, |event| {
                    // One that was taken while the port was being closed counts as the new channel's: an event too much, which its
                    // handler bears.
                    let late = closed.load(SeqCst) == 1;
                    assert!(event.generation != 0 || !late || !domain.events.is_current(event), "a closed channel's");
                });
            })
        };
        domain.events.close(PORT);
        closed.store(1, SeqCst);
        assert_eq!(domain.events.alloc_unbound(DomId(1)), Ok(PORT));
        thread.join().unwrap();
        assert!(!domain.events.take(PORT), "an event that nobody has sent");
    });
}
