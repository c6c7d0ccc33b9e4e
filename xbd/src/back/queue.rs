//! The fast path of the back end: requests in, work for the store, responses out. `take` is the first part of it.
//!
//! ```text
//!   ring ─► take ─────► map all pages ─► begin ─► Store::start ──────► settle: unmap all, answer all ─► publish
//!           check,         in a batch                  │ pending        ▲
//!           admit                                      └─► completed ───┘
//! ```
//!
//! The data of small requests is copied instead, by Xen: of writes where pages are mapped, of reads where they are unmapped.

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
use super::pages::{List, Pages};
use super::ring::Ring;
use super::slot::{Slot, push, step};
use super::store::{Chain, Parts, Started, Store, StoreFault, Token, Work};
use crate::SECTOR;
use crate::features::{self, Abi, Disk};
use crate::protocol::{Answer, Operation, Request, Status};
use take::Taken;

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
    taken: List,
    /// Over, to be unmapped and answered.
    finished: List,
    /// How many are taken, or with the store.
    busy: u32,
    /// Pages that were promised to requests whose segments are not read yet.
    promised: usize,
    /// There is such a one among those that are taken.
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
            taken: List::EMPTY,
            finished: List::EMPTY,
            busy: 0,
            promised: 0,
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
            self.counters.notifications += 1;
            self.channel.notify();
        }
    }

    /// Takes a ring's worth of requests at most, and answers what is over at once; tells whether there are more.
    fn take_all(&mut self) -> Result<bool, RingError> {
        let mut budget = self.ring.size();
        loop {
            let taken = self.take(&mut budget);
            let any = !self.taken.is_empty();
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
                // What it waits for may be over already. If not, the store's completion brings us back.
                Taken::Blocked if any => {}
                Taken::Blocked => return Ok(false),
            }
        }
    }

    /// Maps or copies the pages of what was taken, and gives it to the store.
    fn begin(&mut self) {
        if self.taken.is_empty() {
            return;
        }
        let mut all = self.pages.map();
        if core::mem::take(&mut self.folded) {
            all &= self.unfold_all();
        }
        if self.copies.coming() {
            self.copies.fetch(&mut self.slots, self.taken.first);
        }
        let mut next = core::mem::replace(&mut self.taken, List::EMPTY).first;
        while let Some(slot) = self.slots.get_mut(usize::from(next)) {
            let index = next;
            next = slot.link;
            if !all && slot.status == Status::Okay && !self.pages.are_mapped(slot.pages.first) {
                self.counters.unmappable += 1;
                slot.status = Status::Error;
            }
            if slot.status == Status::Okay {
                self.run(index);
            } else {
                self.finish(index);
            }
        }
    }

    /// Asks the store for what is to be done of a request.
    #[inline]
    fn run(&mut self, index: u16) {
        let Self { slots, pages, store, .. } = self;
        let slot = &mut slots[usize::from(index)];
        if slot.steps != step::WORK || slot.copied || !matches!(slot.operation, Operation::Read | Operation::Write) {
            return self.run_steps(index);
        }
        let (sector, parts) = (slot.sector, Parts::chain(pages, slot.data, slot.sectors as usize * SECTOR));
        let work = if slot.operation == Operation::Read {
            Work::Read { sector, parts }
        } else {
            Work::Write { sector, parts }
        };
        match store.start(Token(index), work) {
            Started::Pending => slot.started = true,
            Started::Done(Ok(())) => self.finish(index),
            Started::Done(result) => {
                self.step(index, result);
                self.finish(index);
            }
        }
    }

    /// The same of any request, until it has to be waited for.
    #[inline(never)]
    fn run_steps(&mut self, index: u16) {
        loop {
            let Self { slots, pages, copies, store, .. } = self;
            let slot = &mut slots[usize::from(index)];
            let chain: &dyn Chain = if slot.copied { copies } else { pages };
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
        slot.status = match result {
            Ok(()) => return true,
            Err(StoreFault::Failed) => Status::Error,
            Err(StoreFault::NotSupported) => Status::NotSupported,
        };
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

    fn finish(&mut self, index: u16) {
        self.busy -= 1;
        if self.slots[usize::from(index)].operation == Operation::Barrier {
            self.barrier = false;
        }
        push(&mut self.slots, &mut self.finished, index);
    }

    /// Copies or unmaps the pages of what is over, in one batch each, and answers it after that.
    fn settle(&mut self) {
        if self.finished.is_empty() {
            return self.pages.unmap();
        }
        if self.copies.any() {
            self.copies.answer(&mut self.slots, self.finished.first);
        }
        let mut next = self.finished.first;
        while let Some(slot) = self.slots.get(usize::from(next)) {
            next = slot.link;
            // A request has not gone well if one of its pages could not be mapped.
            self.pages.release(slot.pages, slot.status == Status::Okay, self.now_ns);
        }
        self.pages.unmap();
        let mut next = core::mem::replace(&mut self.finished, List::EMPTY).first;
        while let Some(slot) = self.slots.get_mut(usize::from(next)) {
            let index = core::mem::replace(&mut next, slot.link);
            let answer = Answer { id: slot.id, operation: slot.operation.wire(), status: slot.status };
            slot.link = self.free;
            self.free = index;
            self.ring.respond(&answer);
        }
    }
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
