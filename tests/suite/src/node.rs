//! A domain with its services, and the events that have reached it.

use alloc::collections::BTreeSet;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::future::poll_fn;
use core::task::Poll;

use hypercall::event::{Event, EventChannels};
use hypercall::grant::GrantTable;
use hypercall::{DomId, Platform, Port};
use xenbus::Domain;
use xenbus::domain::Services;
use xenbus::store::XenStore;

/// All services of a domain, built from our own crates.
pub type Own<P> = Services<P, GrantTable<P>, EventChannels<P>, XenStore<P, EventChannels<P>>>;

/// A domain that programs run in. A handle: programs of the same domain share it.
pub struct Node<P: Platform> {
    inner: Rc<Inner<P>>,
}

impl<P: Platform> Clone for Node<P> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone() }
    }
}

struct Inner<P: Platform> {
    name: &'static str,
    own: Own<P>,
    /// Events that were dispatched and that no program has taken yet.
    pending: RefCell<BTreeSet<Port>>,
    /// Ports that programs have asked for.
    waits: RefCell<BTreeSet<Port>>,
    /// Reads the bed's counter of allocations, if it has one.
    allocations_now: fn() -> u64,
    /// Allocations in what was [metered](Node::metered).
    allocations: Cell<u64>,
    /// Counts what has reached the domain, so that a program can wait for the next.
    happened: Cell<u64>,
}

impl<P: Platform> Node<P> {
    /// Makes the node of a domain; `name` stands in messages. `allocations_now` reads the bed's counter of allocations.
    pub fn new(name: &'static str, own: Own<P>, allocations_now: fn() -> u64) -> Self {
        Self {
            inner: Rc::new(Inner {
                name,
                own,
                pending: RefCell::default(),
                waits: RefCell::default(),
                allocations_now,
                allocations: Cell::new(0),
                happened: Cell::new(0),
            }),
        }
    }

    /// Runs a piece of a driver's data path and counts its allocations, of which there should be none.
    pub fn metered<T>(&self, piece: impl FnOnce() -> T) -> T {
        let before = (self.inner.allocations_now)();
        let value = piece();
        self.inner.allocations.set(self.inner.allocations.get() + (self.inner.allocations_now)() - before);
        value
    }

    /// Returns how many allocations there were in all that was [metered](Self::metered).
    pub fn allocations(&self) -> u64 {
        self.inner.allocations.get()
    }

    /// Returns its name.
    pub fn name(&self) -> &'static str {
        self.inner.name
    }

    /// Returns the domain's services.
    pub fn own(&self) -> &Own<P> {
        &self.inner.own
    }

    /// Returns the domain's number.
    pub fn id(&self) -> DomId {
        self.own().id
    }

    /// Returns the domain's store.
    pub fn store(&self) -> &XenStore<P, EventChannels<P>> {
        self.own().store()
    }

    /// Takes what has reached the domain: events, and messages of the store. Returns whether there was anything.
    pub fn deliver(&self) -> bool {
        let mut any = false;
        let store = self.store();
        let mut take = |event: Event| {
            any = true;
            if event.port == store.port() {
                store.process();
            } else {
                self.inner.pending.borrow_mut().insert(event.port);
            }
        };
        self.own().events.dispatch(0, &mut take);
        self.own().events.dispatch_delayed(&mut take);
        if any {
            self.inner.happened.set(self.inner.happened.get() + 1);
        }
        any
    }

    /// Tells whether an event of `port` has come since this was last asked.
    pub fn take(&self, port: Option<Port>) -> bool {
        let Some(port) = port else { return false };
        // Even if there is one: the program may wait after this for the next. And for good, as a program that waits isn't asked again for
        // what.
        self.inner.waits.borrow_mut().insert(port);
        self.inner.pending.borrow_mut().remove(&port)
    }

    /// Returns the ports whose events can wake a program up. Of a masked port none comes, though it may have an event for ever: that of a
    /// ring whose other end has broken it. One that is closed is masked.
    pub fn waits(&self) -> Vec<Port> {
        let waits = self.inner.waits.borrow();
        let mut ports: Vec<Port> = waits.iter().copied().filter(|port| !self.own().events.is_masked(*port)).collect();
        ports.push(self.store().port());
        ports
    }

    /// Returns how much has reached the domain so far.
    pub fn happened(&self) -> u64 {
        self.inner.happened.get()
    }

    /// Waits until something reaches the domain.
    pub async fn turn(&self) {
        let before = self.happened();
        poll_fn(|_| if self.happened() > before { Poll::Ready(()) } else { Poll::Pending }).await;
    }

    /// The same, but no longer than until some time, if there is one.
    pub async fn turn_until(&self, ns: Option<u64>) {
        let before = self.happened();
        let is_over = || ns.is_some_and(|ns| self.own().platform.now_ns() >= ns);
        poll_fn(|_| if self.happened() > before || is_over() { Poll::Ready(()) } else { Poll::Pending }).await;
    }

    /// Lets the others have their turn, and goes on.
    pub async fn pause(&self) {
        let mut paused = false;
        poll_fn(|context| {
            if core::mem::replace(&mut paused, true) {
                return Poll::Ready(());
            }
            context.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }
}

#[cfg(all(test, not(target_os = "none")))]
mod tests {
    use hypercall::event::Channel;
    use mock::{Config, Domain};

    use super::*;
    use crate::on_mock::MockBed;

    /// A domain, and the two ends of a channel that it offers to another.
    fn channel() -> (MockBed, Channel<EventChannels<Domain>>, Channel<EventChannels<Domain>>) {
        let bed = MockBed::new(Config::deterministic(1));
        let offered = Channel::offer(&bed.front.own().events, bed.back.id()).unwrap();
        let bound = Channel::bind(&bed.back.own().events, bed.front.id(), offered.port()).unwrap();
        (bed, offered, bound)
    }

    #[test]
    fn a_port_is_waited_for_again_after_its_event() {
        let (bed, own, other) = channel();
        let (node, port) = (&bed.front, own.port());
        assert_eq!(node.waits(), [node.store().port()], "nobody has asked for it");
        for _ in 0..2 {
            other.notify();
            // Whoever goes to sleep right after an event has the next one to wait for, for as long as it sleeps.
            assert!(node.deliver() && node.take(Some(port)));
            own.unmask();
            assert!(node.waits().contains(&port));
            assert!(!node.deliver() && node.waits().contains(&port));
        }
    }

    #[test]
    fn a_masked_port_and_a_closed_one_are_not_waited_for() {
        let (bed, own, other) = channel();
        let (node, port) = (&bed.front, own.port());
        other.notify();
        assert!(node.deliver() && node.take(Some(port)));
        // Pending again, and whoever waited for it would wait for no moment.
        other.notify();
        assert!(!node.waits().contains(&port));
        own.unmask();
        assert!(node.waits().contains(&port));
        drop(own);
        assert!(!node.waits().contains(&port));
    }
}
