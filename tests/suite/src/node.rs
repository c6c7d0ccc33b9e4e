//! A domain with its services, and the events that have reached it.

use alloc::collections::BTreeSet;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::future::poll_fn;
use core::task::Poll;

use hypercall::event::EventChannels;
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
    /// Ports that programs have asked for, without an event there yet.
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
        self.own().events.dispatch(0, |event| {
            any = true;
            if event.port == store.port() {
                store.process();
            } else {
                self.inner.pending.borrow_mut().insert(event.port);
            }
        });
        if any {
            self.inner.happened.set(self.inner.happened.get() + 1);
        }
        any
    }

    /// Tells whether an event of `port` has come since this was last asked.
    pub fn take(&self, port: Option<Port>) -> bool {
        let Some(port) = port else { return false };
        let taken = self.inner.pending.borrow_mut().remove(&port);
        if !taken {
            self.inner.waits.borrow_mut().insert(port);
        }
        taken
    }

    /// Returns the ports whose events can wake a program up.
    pub fn waits(&self) -> Vec<Port> {
        let mut ports: Vec<Port> = self.inner.waits.borrow().iter().copied().collect();
        ports.push(self.store().port());
        ports
    }

    /// Forgets what [`waits`](Self::waits) says, before programs ask anew.
    pub fn forget_waits(&self) {
        self.inner.waits.borrow_mut().clear();
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
