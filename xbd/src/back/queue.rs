//! The fast path of the back end: requests in, work for the store, responses out. `take` is the first part of it.
//!
//! ```text
//!   ring ─► take ─────► map all pages ─► begin ─► Store::start ──────► answer ─► settle: unmap all ─► publish
//!           check,         in a batch                  │ pending        ▲           in a batch
//!           admit                                      └─► completed ───┘
//! ```
//!
//! An answer is written into the ring at once, and shown by nothing but the publishing. The data of small requests is copied instead, by
//! Xen: of writes where pages are mapped, of reads where they are unmapped.

mod take;

use alloc::boxed::Box;
use alloc::vec;

use hypercall::event::Channel;
use hypercall::{DomId, Platform, Port};
use xenbus::Domain;
use xenbus::ring::{Notify, RingError};

use super::BackError;
use super::config::{Config, Counters};
use super::copies::Copies;
use super::pages::{NONE, Pages};
use super::ring::Ring;
use super::slot::{Kind, Slot, step};
use super::store::{Chain, Parts, Started, Store, StoreFault, Token, Work};
use crate::SECTOR;
use crate::features::{self, Abi, Disk};
use crate::protocol::{Answer, Operation, Request, Status};
use take::Taken;

/// Most requests that are taken before they are begun with.
const TAKEN: usize = 32;

/// A ring with its event channel, a handle of the disk, and the requests that it works on. It stands in a
/// [`Place`](xenbus::Place) of the owner's.
pub struct Queue<D: Domain, S: Store> {
    platform: D::Platform,
    store: S,
    ring: Ring<D::Platform>,
    channel: Channel<D::Events>,
    pages: Pages<D::Platform>,
    copies: Copies<D::Platform>,
    slots: Box<[Slot]>,
    free: u16,
    /// Taken from the ring, to be given to the store.
    taken: [u16; TAKEN],
    taken_count: usize,
    /// First and last that is over and whose data lies in pages of our own: to be copied and answered.
    copied: (u16, u16),
    /// How many are taken, or with the store.
    busy: u32,
    /// There is one among those that are taken whose segments are not read yet.
    folded: bool,
    /// Taken from the ring, and has to wait.
    held: Option<Request>,
    /// A barrier is under way: nothing overtakes it.
    barrier: bool,
    disk: Disk,
    max_indirect_segments: u16,
    idle_ns: u64,
    now_ns: u64,
    stopped: bool,
    counters: Counters,
}

/// How a queue is to be, as the two ends have agreed.
pub(super) struct Agreed<'a> {
    pub(super) config: &'a Config,
    pub(super) abi: Abi,
    pub(super) persistent: bool,
    pub(super) disk: Disk,
}

impl<D: Domain, S: Store> Queue<D, S> {
    pub(super) fn new(
        domain: &D,
        peer: DomId,
        ring: &features::Ring,
        agreed: &Agreed<'_>,
        store: S,
    ) -> Result<Self, BackError> {
        let Agreed { config, abi, persistent, disk } = *agreed;
        let platform = domain.platform();
        let ring_end = Ring::new(platform, peer, &ring.refs, abi)?;
        let size = ring_end.size();
        let kept = if persistent { usize::from(config.max_persistent) } else { 0 };
        let pages = Pages::new(platform, peer, config.working_pages(size), kept)?;
        let copy_limit = if persistent { 0 } else { config.copy_limit };
        let copies = Copies::new(platform, peer, copy_limit, config.copy_pages, size)?;
        let mut slots = vec![Slot::FREE; size as usize];
        for (index, slot) in slots.iter_mut().enumerate().take(size as usize - 1) {
            slot.link = index as u16 + 1;
        }
        // Last, because the first event may be pending from here on.
        let channel = Channel::bind(domain.events(), peer, ring.port)?;
        Ok(Self {
            platform: platform.clone(),
            store,
            ring: ring_end,
            channel,
            pages,
            copies,
            slots: slots.into(),
            free: 0,
            taken: [NONE; TAKEN],
            taken_count: 0,
            copied: (NONE, NONE),
            busy: 0,
            folded: false,
            held: None,
            barrier: false,
            disk,
            max_indirect_segments: config.abilities().max_indirect_segments,
            idle_ns: config.idle_ns,
            now_ns: 0,
            stopped: false,
            counters: Counters::default(),
        })
    }

    /// Returns the port whose events [`poll`](Self::poll) answers.
    pub fn port(&self) -> Port {
        self.channel.port()
    }

    /// Returns how many requests the store works on.
    pub const fn busy(&self) -> u32 {
        self.busy
    }

    /// Returns what the queue has done so far.
    pub fn counters(&self) -> Counters {
        let mut counters = self.counters;
        self.pages.count(&mut counters);
        self.copies.count(&mut counters);
        counters
    }

    /// Returns its handle of the disk.
    pub const fn store(&self) -> &S {
        &self.store
    }

    /// Takes no more requests.
    pub(super) fn stop(&mut self) {
        self.stopped = true;
        self.held = None;
    }

    pub(super) const fn learn(&mut self, disk: Disk) {
        self.disk = disk;
    }

    /// Serves the requests that are there, and completes what the store has finished. Called on the event of
    /// [`port`](Self::port), and when the store has completed something. Returns `true` if there is more to do at once: one call takes no
    /// more than a ring's worth of requests.
    ///
    /// # Errors
    /// [`RingError`] if the other end breaks the protocol. The queue takes no more requests, and its port stays masked; its owner tells
    /// [`Back::fail`](super::Back::fail).
    pub fn poll(&mut self) -> Result<bool, RingError> {
        self.look_at_clock();
        let before = self.counters.requests;
        let completed = self.collect();
        let taken = if self.stopped { Ok(false) } else { self.take_all() };
        self.settle();
        self.publish();
        // A front end that has broken the ring, or is gone, has nothing to tell any more.
        match taken {
            Ok(_) if !self.stopped => {
                // What has to wait was told of by an event, too.
                let waits = self.barrier || self.held.is_some();
                self.channel.handled(completed || waits || self.counters.requests != before);
            }
            Ok(_) => {}
            Err(_) => self.stop(),
        }
        taken
    }

    /// Answers what the store has finished, and takes nothing.
    pub(super) fn complete(&mut self) {
        self.look_at_clock();
        self.collect();
        self.settle();
        self.publish();
    }

    /// Unmaps the grants that are kept mapped and were not used for too long. [`poll`](Self::poll) does it, too; this is for a queue
    /// where nothing happens. Called when [`next_tend_ns`](Self::next_tend_ns) says, or now and then.
    pub fn tend(&mut self, now_ns: u64) {
        if let Some(since) = now_ns.checked_sub(self.idle_ns) {
            self.pages.expire(since);
            self.pages.unmap();
        }
    }

    /// Returns when [`tend`](Self::tend) has something to do, as the platform's clock goes; `None` if not before the next
    /// [`poll`](Self::poll).
    pub fn next_tend_ns(&self) -> Option<u64> {
        Some(self.pages.oldest_ns()?.saturating_add(self.idle_ns))
    }

    fn look_at_clock(&mut self) {
        if self.pages.keeps() {
            self.now_ns = self.platform.now_ns();
            if let Some(since) = self.now_ns.checked_sub(self.idle_ns) {
                self.pages.expire(since);
            }
        }
    }

    fn publish(&mut self) {
        let notify = self.ring.publish();
        self.tell(notify);
    }

    fn tell(&mut self, notify: Notify) {
        if notify == Notify::Yes {
            self.notify();
        }
    }

    /// Sends an event.
    pub(super) fn notify(&mut self) {
        self.counters.notifications += 1;
        self.channel.notify();
    }

    /// Takes a ring's worth of requests at most, and answers what is over at once; tells whether there are more.
    fn take_all(&mut self) -> Result<bool, RingError> {
        let mut budget = self.ring.size();
        loop {
            let taken = self.take(&mut budget);
            let any = self.taken_count > 0;
            self.begin();
            match taken? {
                Taken::All => {
                    self.settle();
                    let (notify, more) = self.ring.publish_and_arm();
                    self.tell(notify);
                    if !more? || budget == 0 {
                        return more;
                    }
                }
                Taken::Some => {}
                // What it waits for may be over already. If not, the store's completion brings us back.
                Taken::Blocked if any => {}
                Taken::Blocked => return Ok(false),
            }
        }
    }

    /// Maps or copies the pages of what was taken, and gives it to the store.
    fn begin(&mut self) {
        if self.taken_count == 0 {
            return;
        }
        let mut all = self.pages.map();
        if core::mem::take(&mut self.folded) {
            all &= self.unfold_all();
        }
        if self.copies.coming() {
            self.copies.fetch(&mut self.slots, &self.taken[..self.taken_count]);
        }
        for at in 0..core::mem::take(&mut self.taken_count).min(TAKEN) {
            let index = self.taken[at];
            if !(all && self.run_plain(index)) {
                self.run_other(index);
            }
        }
    }

    /// Lets the store do a request that goes its way as most do, and answers it if it is over; `false` if it isn't such a one.
    #[inline(always)]
    fn run_plain(&mut self, index: u16) -> bool {
        let Self { slots, pages, copies, store, ring, .. } = self;
        let slot = &mut slots[usize::from(index)];
        let started = match slot.kind {
            Kind::Mapped => start(store, pages, slot, index),
            Kind::Copied if slot.status == Status::Okay => start(store, copies, slot, index),
            _ => return false,
        };
        let Started::Done(result) = started else {
            slot.started = true;
            return true;
        };
        if let Err(fault) = result {
            self.counters.store_faults += 1;
            slot.status = fault.into();
        }
        if slot.kind == Kind::Copied {
            self.finish(index);
            return true;
        }
        self.busy -= 1;
        pages.release(slot.pages, self.now_ns);
        answer(ring, slot);
        slot.link = core::mem::replace(&mut self.free, index);
        true
    }

    /// Lets the store do any request, unless it has failed already.
    #[inline(never)]
    fn run_other(&mut self, index: u16) {
        let slot = &mut self.slots[usize::from(index)];
        if slot.status == Status::Okay && !self.pages.are_mapped(slot.pages) {
            self.counters.unmappable += 1;
            slot.status = Status::Error;
        }
        if slot.status == Status::Okay {
            self.run_steps(index);
        } else {
            self.finish(index);
        }
    }

    /// Asks the store for what is to be done of a request, step by step, until it has to be waited for.
    fn run_steps(&mut self, index: u16) {
        loop {
            let Self { slots, pages, copies, store, .. } = self;
            let slot = &mut slots[usize::from(index)];
            let chain: &dyn Chain = if slot.kind == Kind::Copied { copies } else { pages };
            let parts = || Parts::chain(chain, slot.data, slot.sectors as usize * SECTOR);
            let (sector, sectors) = (slot.sector, slot.sectors);
            let work = match (slot.steps & slot.steps.wrapping_neg(), slot.operation) {
                (0, _) => return self.finish(index),
                (step::WORK, Operation::Read) => Work::Read { sector, parts: parts() },
                (step::WORK, Operation::Write | Operation::Barrier) => Work::Write { sector, parts: parts() },
                (step::WORK, Operation::Discard) => Work::Discard { sector, sectors, secure: false },
                (step::WORK, Operation::SecureDiscard) => {
                    let secure = self.disk.discard.is_some_and(|discard| discard.secure);
                    Work::Discard { sector, sectors, secure }
                }
                _ => Work::Flush,
            };
            match store.start(Token(index), work) {
                Started::Pending => {
                    slot.started = true;
                    return;
                }
                Started::Done(result) => {
                    if !self.step(index, result) {
                        return self.finish(index);
                    }
                }
            }
        }
    }

    /// Notes what became of a step; tells whether to go on with the next.
    fn step(&mut self, index: u16, result: Result<(), StoreFault>) -> bool {
        let slot = &mut self.slots[usize::from(index)];
        slot.started = false;
        slot.steps &= slot.steps.wrapping_sub(1);
        let Err(fault) = result else { return true };
        slot.status = fault.into();
        self.counters.store_faults += 1;
        false
    }

    /// Takes what the store has finished; tells whether there was anything. A token that it made up is ignored.
    fn collect(&mut self) -> bool {
        let mut any = false;
        while let Some((Token(index), result)) = self.store.completed() {
            any = true;
            if !self.slots.get(usize::from(index)).is_some_and(|slot| slot.started) {
                continue;
            }
            if self.step(index, result) {
                self.run_steps(index);
            } else {
                self.finish(index);
            }
        }
        any
    }

    /// A request is over. If there is something to copy, [`settle`](Self::settle) answers it.
    #[inline(never)]
    fn finish(&mut self, index: u16) {
        let slot = &mut self.slots[usize::from(index)];
        self.busy -= 1;
        if slot.operation == Operation::Barrier {
            self.barrier = false;
        }
        if slot.kind != Kind::Copied {
            self.pages.release(slot.pages, self.now_ns);
            answer(&mut self.ring, slot);
            slot.link = core::mem::replace(&mut self.free, index);
            return;
        }
        slot.link = NONE;
        let last = core::mem::replace(&mut self.copied.1, index);
        match self.slots.get_mut(usize::from(last)) {
            Some(slot) => slot.link = index,
            None => self.copied.0 = index,
        }
    }

    /// Unmaps the pages of what is over, or copies them, in one batch each. To be done before any answer is published.
    fn settle(&mut self) {
        if self.copied.0 != NONE {
            self.settle_copied();
        }
        self.pages.unmap();
    }

    #[inline(never)]
    fn settle_copied(&mut self) {
        let (mut next, _) = core::mem::replace(&mut self.copied, (NONE, NONE));
        self.copies.answer(&mut self.slots, next);
        while let Some(slot) = self.slots.get_mut(usize::from(next)) {
            answer(&mut self.ring, slot);
            let index = core::mem::replace(&mut next, slot.link);
            slot.link = core::mem::replace(&mut self.free, index);
        }
    }
}

/// Lets the store begin with a request that reads or writes.
#[inline(always)]
fn start<S: Store>(store: &mut S, pages: &impl Chain, slot: &Slot, index: u16) -> Started {
    let (sector, parts) = (slot.sector, Parts::chain(pages, slot.data, slot.sectors as usize * SECTOR));
    let work =
        if slot.operation == Operation::Read { Work::Read { sector, parts } } else { Work::Write { sector, parts } };
    store.start(Token(index), work)
}

/// Writes the answer to a request, which nobody sees before it is published.
#[inline(always)]
fn answer<P: Platform>(ring: &mut Ring<P>, slot: &Slot) {
    ring.respond(&Answer { id: slot.id, operation: slot.operation.wire(), status: slot.status });
}

impl<D: Domain, S: Store> Drop for Queue<D, S> {
    fn drop(&mut self) {
        // The store was promised that what it works on stays mapped.
        if self.busy > 0 {
            self.pages.abandon();
            self.copies.abandon();
        }
    }
}
