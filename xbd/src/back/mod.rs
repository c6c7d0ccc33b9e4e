//! The back end: a disk that we serve, from its directory in xenstore to its removal.
//!
//! ```text
//!    ours                 theirs
//!    Initialising         any                     tell what may be chosen, and what the disk is     → InitWait
//!    InitWait             Initialised, Connected  map the rings, bind the event channels            → Connected
//!    InitWait, Connected  Closing                 go on serving: they wait for what is in flight    → Closing
//!    any                  Closed                  go on serving until nothing more comes, then:
//!    any                  Closed, gone            when the store is idle, let go of the rings       → Closed
//!    Connected, Closing   Initialising            they have begun anew, or never began: the same    → Closed
//!    Closed               Initialising            they are back, and the toolstack keeps us         → InitWait
//! ```
//!
//! The toolstack may want the device to go at any time ([`Wish`]): then it goes to Closing, as if the front end had asked; once it is
//! Closed, and not kept for the front end to come back, its directory is removed, a little later: whoever waits for that state has to
//! see it. A toolstack that has lost its patience removes the directory itself: everything is let go of, and nothing written any more.

mod config;
mod copies;
mod pages;
mod queue;
mod ring;
mod slot;
pub mod store;

pub use config::{Config, Counters};
pub use queue::Queue;
pub use store::{Parts, Started, Store, StoreFault, Token, Work};
pub use xenbus::error::BackError;

use alloc::vec::Vec;
use core::marker::PhantomData;

use hypercall::{Level, Platform, Port};
use xenbus::device::{Device, State, Wish};
use xenbus::{Domain, Place, Rate};

use crate::features::{self, Disk, Offer};
use queue::Agreed;

/// What a [`step`](Back::step) of the life cycle brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing that the owner has to know.
    None,
    /// The other end is there. The owner polls each queue once: the first event may have come before it knew the port.
    Connected,
    /// The other end is gone, and nothing of it is held any more. It may come back, or the device be removed.
    Disconnected,
    /// The device is over: its directory is removed, nothing of the other end is held any more, the owner drops it.
    Removed,
}

/// A disk that we serve to one other domain. `S` is the real disk.
///
/// This is the part that waits for xenstore. The queues, of which each may be owned by another CPU, stand in [`Place`]s: in here, unless
/// the owner brings places of its own, such as behind locks of its kernel. Each queue has a handle of the disk.
///
/// To be dropped, or taken apart by [`into_store`](Self::into_store), when the store is idle. While the store works on something, the
/// other end's memory that it works on stays mapped, for ever.
pub struct Back<D: Domain, S: Store, Q: Place<Queue<D, S>> = Option<Queue<D, S>>> {
    domain: D,
    device: Device<D::Store>,
    store: S,
    config: Config,
    places: Vec<Q>,
    /// The ports of the queues, while there are some.
    ports: Vec<Port>,
    /// The other end is gone, but the store still works for it.
    waiting: bool,
    /// The other end says that it is closed, and may still ask for something: how many requests were taken so far.
    rest: Option<u64>,
    /// When the next step is to be, if nobody else moves.
    again_ns: Option<u64>,
    reports: Rate,
    queues: PhantomData<Queue<D, S>>,
}

/// A device that is going asks a store that has refused something again after so many nanoseconds.
const AGAIN_NS: u64 = 100_000_000;

impl<D: Domain, S: Store> Back<D, S> {
    /// Takes the device whose directory is `path`, as in "backend/vbd/1/51712", and serves `store` there.
    /// [`step`](Self::step) does the rest.
    ///
    /// # Errors
    /// [`BackError`] if its nodes are not there or wrong.
    pub fn new(domain: &D, path: &str, store: S, config: Config) -> Result<Self, BackError> {
        let places = (0..config.max_queues.max(1)).map(|_| None).collect();
        Self::with_places(domain, path, store, config, places)
    }
}

impl<D: Domain, S: Store, Q: Place<Queue<D, S>>> Back<D, S, Q> {
    /// Takes the device whose directory is `path`; its queues will stand in `places`, which are empty, the first in the first. No more
    /// queues are offered than there are places. [`step`](Self::step) does the rest.
    ///
    /// # Errors
    /// [`BackError`] if its nodes are not there or wrong.
    ///
    /// # Panics
    /// If there is no place.
    pub fn with_places(domain: &D, path: &str, store: S, config: Config, places: Vec<Q>) -> Result<Self, BackError> {
        assert!(!places.is_empty(), "a disk without a place for a queue");
        Ok(Self {
            domain: domain.clone(),
            device: Device::back(domain.store(), path)?,
            store,
            config,
            places,
            ports: Vec::new(),
            waiting: false,
            rest: None,
            again_ns: None,
            reports: Rate::default(),
            queues: PhantomData,
        })
    }

    /// Returns its place in xenstore.
    pub const fn device(&self) -> &Device<D::Store> {
        &self.device
    }

    /// Returns the disk.
    pub const fn store(&self) -> &S {
        &self.store
    }

    /// Gives the disk back.
    pub fn into_store(self) -> S {
        self.store
    }

    /// Tells whether the store works on something, so that polling may have something to complete.
    pub fn store_busy(&mut self) -> bool {
        self.each().any(|queue| queue.with(|queue| queue.as_ref().is_some_and(|queue| queue.busy() > 0)))
    }

    /// Tells whether [`step`](Self::step) is to be called once more, although nobody else has moved: the other end is gone and only the
    /// store kept us from letting go of it, which is idle now, or the time is over that [`again_ns`](Self::again_ns) tells.
    pub fn closing(&mut self) -> bool {
        if self.waiting {
            return !self.store_busy();
        }
        self.again_ns.is_some_and(|until_ns| self.domain.platform().now_ns() >= until_ns)
    }

    /// Returns until when an other end that says it is closed is still served, our own directory stays, or xenstore, which has refused
    /// something, is not asked again: then [`closing`](Self::closing) says so.
    pub const fn again_ns(&self) -> Option<u64> {
        self.again_ns
    }

    /// Returns how many queues there are: none as long as the other end isn't connected.
    pub const fn queues(&self) -> usize {
        self.ports.len()
    }

    /// Returns the port whose events the polling of that queue answers, while the other end is connected.
    pub fn port(&self, queue: usize) -> Option<Port> {
        self.ports.get(queue).copied()
    }

    /// Returns what all queues together have done so far, while the other end is connected.
    pub fn counters(&mut self) -> Option<Counters> {
        let counters = self.each().filter_map(|place| place.with(|queue| queue.as_ref().map(Queue::counters)));
        counters.reduce(|mut sum, more| {
            sum += more;
            sum
        })
    }

    /// Returns what one queue has done so far, while the other end is connected.
    pub fn counters_of(&mut self, queue: usize) -> Option<Counters> {
        self.places.get_mut(queue)?.with(|queue| queue.as_ref().map(Queue::counters))
    }

    /// Polls a queue, as [`Queue::poll`] does; there may be none. Called on the event of its [`port`](Self::port), and when the store has
    /// completed something.
    ///
    /// # Errors
    /// [`BackError::Ring`] if the other end breaks the protocol: the device is being closed.
    pub fn poll(&mut self, queue: usize) -> Result<bool, BackError> {
        let Some(place) = self.places.get_mut(queue) else { return Ok(false) };
        let polled = place.with(|queue| queue.as_mut().map_or(Ok(false), Queue::poll)).map_err(BackError::from);
        if let Err(error) = &polled {
            self.fail(error);
        }
        polled
    }

    /// Unmaps what no queue has used for too long, as [`Queue::tend`] does.
    pub fn tend(&mut self, now_ns: u64) {
        self.each().for_each(|place| _ = place.with(|queue| queue.as_mut().map(|queue| queue.tend(now_ns))));
    }

    /// Returns when [`tend`](Self::tend) has something to do, as [`Queue::next_tend_ns`] does, or [`closing`](Self::closing) something to
    /// say.
    pub fn next_tend_ns(&mut self) -> Option<u64> {
        let again_ns = self.again_ns;
        self.each()
            .filter_map(|place| place.with(|queue| queue.as_ref().and_then(Queue::next_tend_ns)))
            .chain(again_ns)
            .min()
    }

    /// Goes on with the life cycle. Called when [`Device::changed`] says that something has moved, and when
    /// [`closing`](Self::closing) says so after a queue was polled.
    ///
    /// # Errors
    /// [`BackError`]; it was reported in the store, and the device is being closed.
    pub fn step(&mut self) -> Result<Change, BackError> {
        let again_ns = self.again_ns.take();
        let done = self.advance(again_ns);
        if let Err(error) = &done {
            self.fail(error);
            // Nobody tells us when xenstore has thought better of it.
            if self.device.is_closing() && error.may_pass() {
                self.again_ns = Some(self.domain.platform().now_ns().saturating_add(AGAIN_NS));
            }
        }
        done
    }

    /// Reports what the device has died of in the log and in the store, and closes it: an error that the owner got from
    /// [`Queue::poll`]. No queue takes requests any more if a ring is broken.
    pub fn fail(&mut self, error: &BackError) {
        if matches!(error, BackError::Ring(_)) {
            self.each().for_each(|place| _ = place.with(|queue| queue.as_mut().map(Queue::stop)));
        }
        let platform = self.domain.platform();
        if self.reports.allows(platform.now_ns()) {
            self.device.fault(format_args!("{error}"));
            platform.log(Level::Error, format_args!("xbdback {}: {error}", self.device.path()));
        }
        // Once only: we are told of our own writes, too. If the store fails, there is nobody left to tell.
        if !self.device.is_closing() {
            let _ = self.device.switch(State::Closing);
        }
    }

    /// Returns the places that have a queue.
    fn each(&mut self) -> impl Iterator<Item = &mut Q> {
        self.places.iter_mut().take(self.ports.len())
    }

    /// Takes a step; it was to be taken at that time, if at any.
    fn advance(&mut self, again_ns: Option<u64>) -> Result<Change, BackError> {
        let wish = self.device.wish()?;
        if wish == Wish::Gone {
            return Ok(if self.let_go() { Change::Removed } else { Change::None });
        }
        if wish != Wish::Stay && !self.device.is_closing() {
            self.device.switch(State::Closing)?;
        }
        if self.waiting {
            // Its ring is out of use, whatever it says now.
            return self.disconnect(wish);
        }
        let other = self.device.other_state()?;
        if other != State::Closed {
            // A liar, who is not closed after all, must not keep us looking.
            self.rest = None;
        }
        match (self.device.state(), other) {
            (State::Unknown | State::Initialising, _) => self.offer(),
            (State::Closed, _) if wish == Wish::Leave => self.leave(again_ns),
            (State::Closed, State::Initialising) => self.offer(),
            (State::Closed, _) => Ok(Change::None),
            (State::InitWait, State::Initialised | State::Connected) => self.connect(),
            (State::InitWait | State::Connected, State::Closing) => {
                self.device.switch(State::Closing)?;
                Ok(Change::None)
            }
            (_, State::Closed) if self.serves_rest(again_ns) => Ok(Change::None),
            (_, State::Closed) => self.disconnect(wish),
            (_, State::Unknown) | (State::Connected | State::Closing, State::Initialising) => self.disconnect(wish),
            _ => Ok(Change::None),
        }
    }

    /// Tells the other end that the store has another size.
    ///
    /// # Errors
    /// [`BackError`] if xenstore refuses.
    pub fn resized(&mut self) -> Result<(), BackError> {
        let disk = self.tell()?;
        self.each().for_each(|place| _ = place.with(|queue| queue.as_mut().map(|queue| queue.learn(disk))));
        if self.device.state() == State::Connected {
            // Said again on purpose: that is how the other end learns to look.
            self.device.switch(State::Connected)?;
        }
        Ok(())
    }

    /// Tells what the disk is now, and what we can do.
    fn tell(&self) -> Result<Disk, BackError> {
        let wishes = features::find_wishes(&self.device)?;
        let read_only = self.store.read_only() || !wishes.write;
        let disk = Disk {
            sectors: self.store.sectors(),
            sector_size: self.store.sector_size(),
            physical_sector_size: self.store.physical_sector_size(),
            read_only,
            cdrom: wishes.cdrom,
            removable: wishes.removable,
            flush: self.store.has_cache(),
            // Done here, whatever the store is.
            barrier: true,
            discard: self.store.discard().filter(|_| wishes.discard && !read_only),
        };
        features::offer_disk(&self.device, &disk, self.config.abilities())?;
        Ok(disk)
    }

    fn choice(&self) -> Offer {
        self.config.offer(self.places.len())
    }

    fn offer(&mut self) -> Result<Change, BackError> {
        features::make_offer(&self.device, self.choice())?;
        self.tell()?;
        self.device.switch(State::InitWait)?;
        Ok(Change::None)
    }

    fn connect(&mut self) -> Result<Change, BackError> {
        let rings = features::find_rings(&self.device, self.choice())?;
        let agreed = Agreed {
            config: &self.config,
            abi: rings.abi,
            persistent: rings.persistent && self.config.abilities().persistent,
            // Once more: it may have changed since.
            disk: self.tell()?,
        };
        let mut queues = Vec::new();
        for ring in &rings.queues {
            let handle = self.store.handle();
            queues.push(Queue::new(&self.domain, self.device.other_id(), ring, &agreed, handle)?);
        }
        self.device.switch(State::Connected)?;
        self.ports = queues.iter().map(Queue::port).collect();
        for (place, queue) in self.places.iter_mut().zip(queues) {
            place.with(|place| *place = Some(queue));
        }
        Ok(Change::Connected)
    }

    /// Lets go of the other end's memory; `false` as long as the store works on some of it.
    fn let_go(&mut self) -> bool {
        (self.waiting, self.rest) = (false, None);
        for place in self.places.iter_mut().take(self.ports.len()) {
            self.waiting |= place.with(|queue| {
                queue.as_mut().is_some_and(|queue| {
                    queue.stop();
                    queue.complete();
                    queue.busy() > 0
                })
            });
        }
        if self.waiting {
            return false;
        }
        // Out of its place first: unmapping and ending a port is slow, and nothing for under a lock.
        self.each().for_each(|place| drop(place.with(Option::take)));
        self.ports.clear();
        true
    }

    /// Serves what the other end has asked for before it said that it is closed, and thereafter; `false` if nothing has come for as long as
    /// the configuration says. Linux says so before it stops, and then waits for all its answers: what one of its processors has under
    /// way comes later. What it has kept back it asks for at the next event. What is wrong with a ring concerns nobody any more.
    fn serves_rest(&mut self, again_ns: Option<u64>) -> bool {
        let begins = self.rest.is_none() && self.config.rest_ns > 0;
        for place in self.each() {
            place.with(|queue| {
                if let Some(queue) = queue {
                    if begins {
                        queue.notify();
                    }
                    let _ = queue.poll();
                }
            });
        }
        let Some(Counters { requests, .. }) = self.counters() else { return false };
        let nothing_new = self.rest.replace(requests) == Some(requests);
        self.rests(again_ns.filter(|_| nothing_new))
    }

    /// Tells whether the rest is not over, which ends at that time, or begins now. The next step is at its end.
    fn rests(&mut self, until_ns: Option<u64>) -> bool {
        let now_ns = self.domain.platform().now_ns();
        let until_ns = until_ns.unwrap_or_else(|| now_ns.saturating_add(self.config.rest_ns));
        let rests = now_ns < until_ns;
        if rests {
            self.again_ns = Some(until_ns);
        }
        rests
    }

    fn disconnect(&mut self, wish: Wish) -> Result<Change, BackError> {
        let connected = self.queues() > 0;
        if !self.let_go() {
            return Ok(Change::None);
        }
        self.device.switch(State::Closed)?;
        let change = if wish == Wish::Leave { self.leave(None)? } else { Change::None };
        Ok(if connected && change == Change::None { Change::Disconnected } else { change })
    }

    /// Removes the directory, when it has been Closed for as long as the configuration says: `xl` waits for that state, and fails if it
    /// finds no directory instead.
    fn leave(&mut self, again_ns: Option<u64>) -> Result<Change, BackError> {
        if self.rests(again_ns) {
            return Ok(Change::None);
        }
        self.device.remove()?;
        Ok(Change::Removed)
    }
}
