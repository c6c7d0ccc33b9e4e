//! The front end: a disk that another domain serves, from its discovery in xenstore to its removal.
//!
//! ```text
//!    ours            theirs
//!    Initialising    InitWait       make the rings, tell where they are                    → Initialised
//!    Initialised     Connected      learn what the disk is: I/O may begin                  → Connected
//!    Connected       Closing        they want to go: the owner closes when it can spare us
//!    Closing         any            when nothing is in flight                              → Closed
//!    Closed          Closed         the rings are taken back
//!    any             Closed, gone   they are gone: what is in flight is lost               → Closed
//!    Connected …     Initialising,  they are gone, and back so fast that it was not seen:
//!                    InitWait       the same                                               → Closed
//! ```
//!
//! A device that is closed stays so. Its owner makes a new [`Front`] of the same directory to use the disk again, now or when the
//! back end comes back.
//!
//! With [`Config::reconnect`], a back end that goes before we close is waited for: in the last two rows, what is in flight is kept, the
//! rings are taken back → Initialising, and it is sent again when we are connected anew. So it is when the domain has come back from a
//! suspend, as its owner says by [`Front::resume`]: the back end is another then, and the old one can't hold on to anything.
//!
//! And with it, a back end that is Closing while the toolstack keeps its device (`online` is 1) is seen off: we close by ourselves once
//! what is in flight is answered, and begin anew as soon as it is Closed. If the toolstack doesn't keep it, it wants us to close, as in the
//! third row, while we are Initialised, too.
//!
//! | file | what |
//! |---|---|
//! | `config` | what the owner wants |
//! | `submit`, `queue` | the fast path: an I/O becomes requests, answers become its completion |
//! | `slots` | what is known of either |
//! | `bounce` | data that goes by way of own pages |
//! | `over` | how an I/O fails or ends |

mod bounce;
mod config;
mod numbers;
mod over;
mod queue;
mod slots;
mod submit;

pub use config::Config;
pub use over::{Completion, Counters, IoError, QueueError, Returned, SubmitError};
pub use queue::Queue;
pub use xenbus::error::FrontError;

use alloc::vec::Vec;
use core::fmt;
use core::marker::PhantomData;

use hypercall::mem::Buffer;
use hypercall::{Level, Platform, Port};
use xenbus::device::{Device, State};
use xenbus::error::NegotiationError;
use xenbus::store::Tx;
use xenbus::{Domain, Place, Rate};

use crate::MAX_RING_PAGES;
use crate::features::{self, Abi, Disk, Ring, Rings};
use over::{Over, Saved};
use queue::{Equipment, Lacks, Way};

/// How often a back end may go without having been there, before it isn't waited for any more: two that can't come together would
/// try for ever.
const MAX_TRIES: u8 = 16;

/// What a [`step`](Front::step) of the life cycle brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing that the owner has to know.
    None,
    /// The disk is there: [`Front::queue`] takes I/Os.
    Connected(Disk),
    /// The disk has another size now, or something else of it is different.
    Resized(Disk),
    /// The back end wants to go: the owner stops using the disk and calls [`Front::close`].
    CloseWanted,
    /// The back end is gone, and waited for, as [`Config::reconnect`] wants it, or the domain has come back from a suspend: no queue takes
    /// I/Os until it is [`Connected`](Self::Connected) again. What is in flight is sent again then, in its order, and completes once. An
    /// I/O that the disk doesn't take then completes with [`IoError::Refused`]. What the owner wants of the queues it asks anew: how many
    /// there are, their ports, their limits.
    Reconnecting,
    /// The disk is gone, and nothing of it is held any more: the owner drops it.
    Closed,
}

/// A disk that another domain serves. `B` is what I/O is done from and to; it comes back with its completion.
///
/// This is the part that waits for xenstore. The queues, which interrupt handlers use, each stand in a [`Place`] beside it: in here,
/// unless the owner brings places of its own, such as one behind a lock of its kernel. They have nothing in common: each can be
/// another CPU's.
///
/// To be dropped after [`Change::Closed`]. Before, the back end may still have requests that name our grants, and these would soon
/// stand for other pages that it may use. What is in flight then is dropped, or leaked if the back end has it mapped.
pub struct Front<D: Domain, B: Buffer, Q: Place<Queue<D, B>> = Option<Queue<D, B>>> {
    domain: D,
    device: Device<D::Store>,
    config: Config,
    places: Vec<Q>,
    /// How many of the places are in use, from the first.
    used: usize,
    /// What the back end says that the disk is.
    told: Option<Disk>,
    /// The same, without what it doesn't do after all.
    disk: Option<Disk>,
    /// The other end is going and will be back: what is in flight is waited for, and then the other end.
    seeing_off: bool,
    /// The other end has gone, and pages of what is in flight are waited for.
    recovering: bool,
    /// Rings that were made since the disk was there last.
    tries: u8,
    /// What is to be sent again, by the queue that had it.
    saved: Vec<Vec<Saved<B>>>,
    /// What queues have done that are gone, and what none does by itself.
    past: Counters,
    /// There has been a back end.
    met: bool,
    reports: Rate,
    patience_ns: u64,
    /// When the other end has had its time to let go of what is lost.
    out_of_patience: Option<u64>,
    buffers: PhantomData<B>,
}

impl<D: Domain, B: Buffer> Front<D, B> {
    /// Takes the device whose directory is `path`, as in "device/vbd/51712". [`step`](Self::step) does the rest.
    ///
    /// # Errors
    /// [`FrontError`] if its nodes are not there or wrong.
    pub fn new(domain: &D, path: &str, config: Config) -> Result<Self, FrontError> {
        let places = (0..config.max_queues.max(1)).map(|_| None).collect();
        Self::with_places(domain, path, config, places)
    }

    /// Returns a queue, from the moment that its ring exists; those below [`queues`](Self::queues) do.
    pub fn queue(&mut self, index: usize) -> Option<&mut Queue<D, B>> {
        self.places.get_mut(index)?.as_mut()
    }

    /// Returns the port whose events [`Queue::poll`] answers.
    pub fn port(&self, index: usize) -> Option<Port> {
        self.places.get(index)?.as_ref().map(Queue::port)
    }
}

impl<D: Domain, B: Buffer, Q: Place<Queue<D, B>>> Front<D, B, Q> {
    /// Takes the device whose directory is `path`; its queues will stand in `places`, which are empty, and as many as there may be
    /// queues. [`step`](Self::step) does the rest.
    ///
    /// # Errors
    /// [`FrontError`] if its nodes are not there or wrong.
    ///
    /// # Panics
    /// If there is no place.
    pub fn with_places(domain: &D, path: &str, config: Config, places: Vec<Q>) -> Result<Self, FrontError> {
        assert!(!places.is_empty(), "a disk without a place for a queue");
        let mut device = Device::front(domain.store(), path)?;
        device.switch(State::Initialising)?;
        Ok(Self {
            domain: domain.clone(),
            device,
            config,
            places,
            used: 0,
            told: None,
            disk: None,
            seeing_off: false,
            recovering: false,
            tries: 0,
            saved: Vec::new(),
            past: Counters::default(),
            met: false,
            reports: Rate::default(),
            patience_ns: 0,
            out_of_patience: None,
            buffers: PhantomData,
        })
    }

    /// Returns its place in xenstore.
    pub const fn device(&self) -> &Device<D::Store> {
        &self.device
    }

    /// Returns what the disk is, once it is connected. A flush, barrier or discard that the back end has refused as such is missing
    /// from the next [`step`](Self::step) on.
    pub const fn disk(&self) -> Option<&Disk> {
        self.disk.as_ref()
    }

    /// Returns a place for a queue, as the owner brought it.
    ///
    /// # Panics
    /// If there is no such place.
    pub fn place(&mut self, index: usize) -> &mut Q {
        &mut self.places[index]
    }

    /// Returns how many queues there are: as many as there are places, or fewer if the back end has fewer.
    pub const fn queues(&self) -> usize {
        self.used
    }

    /// Returns what all queues have done so far, those before a reconnection too.
    pub fn counters(&mut self) -> Counters {
        let past = self.past;
        self.each_queue(|queue| *queue.counters()).chain([past]).sum()
    }

    /// Gives an other end that is gone so many nanoseconds to let go of the pages of I/Os that are lost, or to be sent again. A back
    /// end that is torn down by force needs moments. What it holds after that is given to `lost` as [`Returned::Held`]. Without this,
    /// no time at all.
    pub const fn set_patience_ns(&mut self, patience_ns: u64) {
        self.patience_ns = patience_ns;
    }

    /// Tells whether the other end has to let go of pages before the life cycle goes on: [`step`](Self::step) is called again soon,
    /// though nothing tells of it.
    pub const fn is_waiting(&self) -> bool {
        self.out_of_patience.is_some()
    }

    /// Goes on with the life cycle. Called when [`Device::changed`] says that the other end has moved, and while the device
    /// [is closing](Device::is_closing) whenever I/O has completed. `lost` gets what is in flight when the other end vanishes or has broken
    /// the protocol, and is not to be sent again.
    ///
    /// # Errors
    /// [`FrontError`]; it was reported in the store, and the device is being closed.
    pub fn step(&mut self, mut lost: impl FnMut(Completion<B>)) -> Result<Change, FrontError> {
        let done = self.advance(&mut lost);
        if let Err(error) = &done {
            self.fail(error);
        }
        done
    }

    /// Reports what the device has died of in the log and in the store, and closes it: an error of [`step`](Self::step), or one that
    /// the owner got from [`Queue::poll`].
    pub fn fail(&mut self, error: &impl fmt::Display) {
        let platform = self.domain.platform();
        if self.reports.allows(platform.now_ns()) {
            self.device.fault(format_args!("{error}"));
            platform.log(Level::Error, format_args!("xbd {}: {error}", self.device.path()));
        }
        // The store itself may be what is broken; there is nobody left to tell.
        let _ = self.close();
    }

    fn advance(&mut self, lost: &mut impl FnMut(Completion<B>)) -> Result<Change, FrontError> {
        let theirs = self.device.other_state()?;
        match (self.device.state(), theirs) {
            (State::Initialised | State::Connected | State::Unknown, _) if self.recovering => self.recover(lost),
            (State::Initialising, State::InitWait) if self.used == 0 => self.connect(),
            (State::Initialised, State::Connected) => self.meet(lost),
            (State::Connected, State::Connected) => self.look_again(),
            (State::Initialised | State::Connected, State::Closing) if self.will_be_back() => self.see_off(),
            (State::Closing, State::Closing) if self.seeing_off => self.see_off(),
            (State::Closed, State::Closing) if self.seeing_off => Ok(Change::None),
            (State::Closing | State::Closed, _) if self.seeing_off => self.recover(lost),
            (State::Initialising | State::Initialised, State::Closing) if !self.config.reconnect => {
                self.close()?;
                self.finish(lost)
            }
            (State::Initialised | State::Connected, State::Closing) => Ok(Change::CloseWanted),
            (State::Initialised | State::Connected, State::Closed | State::Unknown) if self.may_recover() => {
                self.recover(lost)
            }
            (State::Initialised | State::Connected | State::Closing, State::Closed | State::Unknown) => self.end(lost),
            (State::Closed, State::Closed | State::Unknown) if self.used > 0 => self.end(lost),
            (State::Connected, State::Initialising | State::InitWait) if self.may_recover() => self.recover(lost),
            // Before it was connected, that is what it says until it has seen us.
            (State::Connected | State::Closing | State::Closed, State::Initialising | State::InitWait)
                if self.told.is_some() =>
            {
                self.end(lost)
            }
            // It was never connected. It has closed and is ready for the next, so fast that it was not seen, or has not seen us at all:
            // it has no ring of ours either way, or is about to let go of it.
            (State::Closed, State::Initialising | State::InitWait) if self.used > 0 => self.end(lost),
            (State::Closing, _) => self.finish(lost),
            _ => Ok(Change::None),
        }
    }

    /// Begins anew in a domain that has come back from a suspend: with the back end that the toolstack has made there, which is another.
    /// What the last one has answered is completed, and what it has not is sent to the next, in its order, whatever [`Config::reconnect`]
    /// says; see [`Change::Reconnecting`]. A device that is being closed is closed now, and `lost` gets what is in flight.
    ///
    /// Called after event channels, grants and store were resumed. Not for a suspend that was cancelled: nothing has changed there.
    ///
    /// # Errors
    /// [`FrontError`] if the device isn't there any more; it was reported in the store, and the device is being closed.
    pub fn resume(&mut self, mut lost: impl FnMut(Completion<B>)) -> Result<Change, FrontError> {
        let done = self.come_back(&mut lost);
        if let Err(error) = &done {
            self.fail(error);
        }
        done
    }

    fn come_back(&mut self, lost: &mut impl FnMut(Completion<B>)) -> Result<Change, FrontError> {
        if self.device.is_closing() && !self.seeing_off {
            return self.end(lost);
        }
        self.device.resume()?;
        self.recover(lost)?;
        Ok(Change::Reconnecting)
    }

    /// Ends the device whatever the other end says: for an owner that can't wait any longer for one that neither answers nor goes. Called
    /// again until it returns [`Change::Closed`], as pages that the other end maps get their time here, too. `lost` gets what is in
    /// flight.
    pub fn abandon(&mut self, mut lost: impl FnMut(Completion<B>)) -> Change {
        // The store need not hear of it.
        let _ = self.close();
        self.end(&mut lost).unwrap_or(Change::Closed)
    }

    /// Wants the device to end: no new I/O. It ends in a [`step`](Self::step), when nothing is in flight.
    ///
    /// # Errors
    /// [`FrontError`] if the store refuses; there is no new I/O nevertheless.
    pub fn close(&mut self) -> Result<(), FrontError> {
        self.seeing_off = false;
        self.each_queue(Queue::stop).for_each(drop);
        if !self.device.is_closing() {
            self.device.leave(State::Closing)?;
        }
        Ok(())
    }

    /// Does something with each queue, when it is asked for it.
    fn each_queue<R>(&mut self, mut work: impl FnMut(&mut Queue<D, B>) -> R) -> impl Iterator<Item = R> {
        self.places[..self.used].iter_mut().filter_map(move |place| place.with(|queue| queue.as_mut().map(&mut work)))
    }

    /// Initialising → Initialised: makes the rings.
    fn connect(&mut self) -> Result<Change, FrontError> {
        let offer = features::find_offer(&self.device)?;
        let count = self.places.len().min(offer.max_queues.into()).max(1);
        let pages = self.config.max_ring_pages.clamp(1, MAX_RING_PAGES as u16).min(offer.max_ring_pages);
        // A power of two, and not more.
        let pages = 1 << pages.ilog2();
        let mut queues = Vec::new();
        for _ in 0..count {
            queues.push(Queue::new(&self.domain, self.device.other_id(), pages)?);
        }
        let ring = |queue: &Queue<D, B>| Ring { refs: queue.ring_refs().into(), port: queue.port() };
        let rings = queues.iter().map(ring).collect();
        let persistent = self.config.persistent;
        features::offer_rings(&self.device, &Rings { queues: rings, abi: Abi::NATIVE, persistent })?;
        for (place, queue) in self.places.iter_mut().zip(queues) {
            place.with(|place| *place = Some(queue));
        }
        self.used = count;
        self.tries = self.tries.saturating_add(1);
        self.device.switch(State::Initialised)?;
        Ok(Change::None)
    }

    /// Initialised → Connected: learns what the disk is, and sends again what is to be.
    fn meet(&mut self, lost: &mut impl FnMut(Completion<B>)) -> Result<Change, FrontError> {
        let told = features::find_disk(&self.device)?;
        let abilities = features::find_abilities(&self.device)?;
        let trusted = self.config.trusted && features::trusted(&self.device)?;
        let way = Way { abilities, trusted };
        let mut depth = 0;
        self.each_queue(|queue| depth = queue.depth()).for_each(drop);
        // Made and dropped outside of the places: there may be locks around them.
        let new = || Equipment::new(&self.domain, self.device.other_id(), depth, &self.config, way);
        let mut equipment = (0..self.used).map(|_| new()).collect::<Result<Vec<_>, _>>()?;
        let mut next = equipment.iter_mut();
        self.each_queue(|queue| next.next().map(|equipment| queue.equip(equipment))).for_each(drop);
        self.device.switch(State::Connected)?;
        self.tries = 0;
        self.past.reconnections += u64::from(core::mem::replace(&mut self.met, true));
        let disk = self.learn(told);
        let mut saved = core::mem::take(&mut self.saved);
        // Fewer queues than before: what was in the others goes to those that there are.
        for index in (self.used..saved.len()).rev() {
            let more = saved.swap_remove(index);
            saved[index % self.used].extend(more);
        }
        let mut saved = saved.into_iter();
        self.each_queue(|queue| queue.send_again(saved.next().unwrap_or_default(), &mut *lost)).for_each(drop);
        Ok(Change::Connected(disk))
    }

    /// Tells the queues what the disk is, without what any of them has found that the back end doesn't do.
    fn learn(&mut self, told: Disk) -> Disk {
        let lacks = self.each_queue(|queue| queue.lacks()).fold(Lacks::default(), Lacks::and);
        self.each_queue(|queue| queue.start(told, lacks)).for_each(drop);
        let disk = lacks.apply(told);
        (self.told, self.disk) = (Some(told), Some(disk));
        disk
    }

    /// A back end that is connected already says "Connected" again to tell a new size.
    fn look_again(&mut self) -> Result<Change, FrontError> {
        let told = features::find_disk(&self.device)?;
        if let Some(known) = self.told
            // What is queued above was counted in the old unit, and would go elsewhere.
            && known.sector_size != told.sector_size
        {
            return Err(NegotiationError::bad("sector-size", told.sector_size).into());
        }
        let known = self.told;
        let disk = self.learn(told);
        Ok(if known == Some(told) { Change::None } else { Change::Resized(disk) })
    }

    /// Closing → Closed, when nothing is in flight.
    fn finish(&mut self, lost: &mut impl FnMut(Completion<B>)) -> Result<Change, FrontError> {
        // What waits for another back end waits for nothing.
        self.lose_saved(lost);
        // Nothing that a broken queue's other end says is believed any more, so there is nothing to wait for.
        let broken = self.each_queue(|queue| queue.is_broken()).any(|broken| broken);
        let idle = if broken {
            self.lose_all(lost)
        } else {
            // Whatever the order, each is asked.
            self.each_queue(|queue| queue.unanswered()).sum::<u32>() == 0
        };
        if !idle {
            return Ok(Change::None);
        }
        self.device.leave(State::Closed)?;
        // The other end maps the ring until it is closed, too.
        Ok(if self.used > 0 { Change::None } else { Change::Closed })
    }

    /// Gives all that is in flight to `over`, with the number of its queue. Returns `false` if the other end still maps pages of it,
    /// and has time to let go of them.
    fn let_go(&mut self, over: &mut impl FnMut(Over<B>, usize)) -> bool {
        let mut index = 0;
        let give_up = |queue: &mut Queue<D, B>| {
            let left = queue.give_up(|io| over(io, index));
            index += 1;
            left
        };
        if self.each_queue(give_up).sum::<u32>() > 0 {
            let now = self.domain.platform().now_ns();
            if now < *self.out_of_patience.get_or_insert(now.saturating_add(self.patience_ns)) {
                return false;
            }
            self.each_queue(|queue| queue.abandon(|completion| over(Over::Done(completion), 0))).for_each(drop);
        }
        self.out_of_patience = None;
        true
    }

    /// Completes all that is in flight, as lost unless it was answered. Returns as [`let_go`](Self::let_go) does.
    fn lose_all(&mut self, lost: &mut impl FnMut(Completion<B>)) -> bool {
        let mut errors = 0;
        let gone = self.let_go(&mut |over, _| {
            errors += u64::from(matches!(over, Over::Saved(_)));
            lost(over.completion());
        });
        self.past.errors += errors;
        gone
    }

    fn lose_saved(&mut self, lost: &mut impl FnMut(Completion<B>)) {
        for saved in core::mem::take(&mut self.saved).into_iter().flatten() {
            self.past.errors += 1;
            lost(saved.fail(IoError::Lost));
        }
    }

    /// Takes the rings back.
    fn drop_queues(&mut self) {
        for place in &mut self.places[..self.used] {
            // Out of its place first: ending a port and freeing pages is slow, and nothing for under a lock.
            let queue = place.with(Option::take);
            self.past += queue.as_ref().map(|queue| *queue.counters()).unwrap_or_default();
        }
        self.used = 0;
        (self.told, self.disk) = (None, None);
    }

    /// The other end uses nothing of ours any more.
    fn end(&mut self, lost: &mut impl FnMut(Completion<B>)) -> Result<Change, FrontError> {
        if !self.lose_all(lost) {
            return Ok(Change::None);
        }
        self.lose_saved(lost);
        self.recovering = false;
        self.drop_queues();
        if self.device.state() != State::Closed {
            // The toolstack removes directories, and ours need not be ours to make again. Nothing depends on it any more.
            let _ = self.device.leave(State::Closed);
        }
        Ok(Change::Closed)
    }

    /// Tells whether a back end that has gone is to be waited for. One that has broken the protocol isn't, and none that goes again and
    /// again without having been there.
    fn may_recover(&mut self) -> bool {
        self.config.reconnect
            && self.tries < MAX_TRIES
            && !self.each_queue(|queue| queue.is_broken()).any(|broken| broken)
    }

    /// Tells whether a back end that is Closing is to be waited for, and is one that can come back.
    fn will_be_back(&mut self) -> bool {
        self.may_recover() && self.device.read_other_if_there(Tx::NONE, "online") == Ok(Some(1u8))
    }

    /// Connected → Closing → Closed: the other end wants to go, and waits for us.
    fn see_off(&mut self) -> Result<Change, FrontError> {
        let first = !core::mem::replace(&mut self.seeing_off, true);
        if first {
            self.each_queue(Queue::stop).for_each(drop);
            self.device.leave(State::Closing)?;
        }
        if self.each_queue(|queue| queue.unanswered()).sum::<u32>() == 0 {
            self.device.leave(State::Closed)?;
        }
        Ok(if first { Change::Reconnecting } else { Change::None })
    }

    /// Connected → Initialising: the other end has gone. Keeps what is in flight for the next.
    fn recover(&mut self, lost: &mut impl FnMut(Completion<B>)) -> Result<Change, FrontError> {
        let first = !core::mem::replace(&mut self.recovering, true) && !self.seeing_off;
        let mut saved = core::mem::take(&mut self.saved);
        saved.resize_with(saved.len().max(self.used), Vec::new);
        let stop = |queue: &mut Queue<D, B>| {
            queue.stop();
            queue.in_flight()
        };
        // Room is made outside of the places, too.
        for (saved, count) in saved.iter_mut().zip(self.each_queue(stop)) {
            saved.reserve(count as usize);
        }
        let gone = self.let_go(&mut |over, queue| match over {
            Over::Done(completion) => lost(completion),
            Over::Saved(io) => saved[queue].push(io),
        });
        self.saved = saved;
        let change = if first { Change::Reconnecting } else { Change::None };
        if !gone {
            return Ok(change);
        }
        for queue in &mut self.saved {
            // By insertion: there are no more than slots in a ring, and a sort is 6 KB of code.
            for end in 1..queue.len() {
                let mut at = end;
                while at > 0 && queue[at - 1].sequence > queue[at].sequence {
                    queue.swap(at - 1, at);
                    at -= 1;
                }
            }
        }
        self.drop_queues();
        (self.seeing_off, self.recovering) = (false, false);
        self.device.switch(State::Initialising)?;
        Ok(change)
    }
}
