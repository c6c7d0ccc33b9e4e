//! Our client of xenstored, over the ring page of the domain.
//!
//! ```text
//!   thread:     submit ──► outgoing bytes ──► ring ──► event ──►   xenstored
//!               take_reply ◄── table of requests ◄──┐
//!   anywhere:   fired ◄── table of watches ◄────────┴── Decoder ◄── ring ◄── event
//!                                                        process(), by the event's handler or whoever waits
//! ```
//!
//! Several requests may be under way, from several threads; replies find theirs by number. What comes too late or was never asked
//! for is dropped and counted.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::Ordering::{Relaxed, SeqCst};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, fence};

use hypercall::event::Polled;
use hypercall::mem::Shared;
use hypercall::{Platform, Port};
use spin::{Mutex, MutexGuard};
use xen_sys::io::xs_wire::{XENSTORE_PAYLOAD_MAX, XENSTORE_RING_SIZE, XsdSockmsg, XsdSockmsgType as Op};

use super::codec::{Decoder, Incoming, Reply, Request};
use super::operations::done;
use super::watches::{WATCHES, Watches};
use super::{Cause, Errno, Store, StoreError, Tx, WatchId};
use crate::ring::bytes::ByteRings;

#[cfg(test)]
mod tests;

/// Requests that may be under way at once. xenstored stops listening to a domain that has more (quota "outstanding").
const REQUESTS: usize = 16;

/// Bytes of requests that may wait for room in the ring.
const OUTGOING: usize = REQUESTS * (size_of::<XsdSockmsg>() + XENSTORE_PAYLOAD_MAX);

/// Bytes that one look into the ring takes at most; what is left raises the event again.
const BURST: usize = 64 * XENSTORE_RING_SIZE;

/// How long an answer may take, if nobody says otherwise: 5 seconds.
const TIMEOUT_NS: u64 = 5_000_000_000;

/// The longest time between two looks: somebody else may have taken our answer out of the ring just before we began to wait for
/// the event.
const LOOK_NS: u64 = 10_000_000;

/// What the client has seen and done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Requests sent.
    pub requests: u64,
    /// Replies that found their request.
    pub replies: u64,
    /// Replies that nobody waited for: too late, or never asked for.
    pub unknown_replies: u64,
    /// Events that found their watch.
    pub events: u64,
    /// Events for a watch that isn't ours, or not any more.
    pub unknown_events: u64,
    /// Messages without the form of what they say they are.
    pub malformed: u64,
    /// Requests that were given up.
    pub timeouts: u64,
}

/// Our client of xenstored. A handle: cheap to clone, shared by all threads.
///
/// The calls of [`Store`] wait; [`process`](Self::process) and [`fired`](Store::fired) don't, and may be called by the handler of
/// the event.
pub struct XenStore<P: Platform, E: Polled>(Arc<Inner<P, E>>);

struct Inner<P, E> {
    platform: P,
    events: E,
    /// The number of the port, which a suspend changes.
    port: AtomicU32,
    timeout_ns: AtomicU64,
    /// Somebody wanted to look into the ring while another held the lock, who looks once more then.
    again: AtomicBool,
    /// A watch has fired since the handler was last here: the dispatcher's event for that must not be lost.
    untold: AtomicBool,
    link: Mutex<Link>,
    watches: Watches,
}

/// The number of a request that is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct RequestId(u32);

/// A request that is under way.
#[derive(Debug)]
struct Pending {
    id: RequestId,
    op: Op,
    /// Where the payload of the reply is put, with room for the longest: its handler must not allocate.
    bytes: Vec<u8>,
    /// What the reply says that it is, once it is there.
    answered: Option<Op>,
}

/// What it takes for a domain to be suspended.
#[derive(Debug, Default)]
struct Calm {
    /// No request is begun but those of transactions.
    wanted: bool,
    /// Transactions that are open.
    transactions: usize,
}

/// The ring and what is under way in it. Without IO but for the ring: nothing here waits or notifies.
#[derive(Debug)]
struct Link {
    page: Shared<'static>,
    rings: ByteRings<'static>,
    decoder: Decoder,
    outgoing: VecDeque<u8>,
    pending: Vec<Pending>,
    last: u32,
    /// The paths of the watches, which xenstored wants to be told again when they end.
    paths: BTreeMap<WatchId, String>,
    calm: Calm,
    broken: bool,
    stats: Stats,
}

/// What a look into the ring has brought.
#[derive(Clone, Copy, Debug, Default)]
struct Moved {
    /// Bytes were written or read: the other end is to be told.
    any: bool,
    /// There may be more.
    more: bool,
    /// A watch has fired.
    fired: bool,
}

impl Link {
    fn new(page: Shared<'static>) -> Self {
        Self {
            page,
            rings: ByteRings::xenstore_front(page),
            decoder: Decoder::new(),
            outgoing: VecDeque::with_capacity(OUTGOING),
            pending: Vec::with_capacity(REQUESTS),
            last: 0,
            paths: BTreeMap::new(),
            calm: Calm::default(),
            broken: false,
            stats: Stats::default(),
        }
    }

    /// Queues a request; `None` if there are too many, or it is to wait for the end of a suspend.
    fn submit(&mut self, request: &Request<'_>) -> Result<Option<RequestId>, Cause> {
        if self.broken {
            return Err(Cause::Broken);
        }
        let bytes = size_of::<XsdSockmsg>() + request.len().min(XENSTORE_PAYLOAD_MAX);
        let waits = self.calm.wanted && request.tx == Tx::NONE;
        if waits || self.pending.len() >= REQUESTS || self.outgoing.len() + bytes > OUTGOING {
            return Ok(None);
        }
        // Zero is the number of what nobody asked for, and one that is still under way is not given twice.
        let mut id = self.last;
        while id == 0 || self.pending.iter().any(|pending| pending.id.0 == id) || id == self.last {
            id = id.wrapping_add(1);
        }
        request.emit(id, &mut self.outgoing)?;
        if request.op == Op::TRANSACTION_END {
            self.calm.transactions = self.calm.transactions.saturating_sub(1);
        }
        self.last = id;
        self.stats.requests += 1;
        let bytes = Vec::with_capacity(XENSTORE_PAYLOAD_MAX);
        self.pending.push(Pending { id: RequestId(id), op: request.op, bytes, answered: None });
        Ok(Some(RequestId(id)))
    }

    /// Moves bytes both ways, as far as they go.
    fn exchange(&mut self, watches: &Watches) -> Moved {
        let mut moved = Moved::default();
        let mut buffer = [0; XENSTORE_RING_SIZE];
        let mut total = 0;
        while !self.broken {
            let Ok(count) = self.step(&mut buffer, watches, &mut moved) else {
                self.broken = true;
                break;
            };
            total += count;
            if count == 0 || total >= BURST {
                moved.more = count != 0;
                break;
            }
            moved.any = true;
        }
        moved
    }

    /// Writes what there is room for, reads what there is; returns how many bytes it was.
    fn step(&mut self, buffer: &mut [u8], watches: &Watches, moved: &mut Moved) -> Result<usize, Cause> {
        let mut written = 0;
        if !self.outgoing.is_empty() {
            written = self.rings.tx.write(self.outgoing.as_slices().0).map_err(|_| Cause::Broken)?;
            self.outgoing.drain(..written);
        }
        let read = self.rings.rx.read(buffer).map_err(|_| Cause::Broken)?;
        let mut bytes = buffer.get(..read).unwrap_or_default();
        while let Some(message) = self.decoder.next(&mut bytes).map_err(|_| Cause::Broken)? {
            match message.incoming() {
                Incoming::Reply(reply) => settle(&mut self.pending, &mut self.stats, reply),
                Incoming::Event(event) if watches.fire(event.token) => {
                    self.stats.events += 1;
                    moved.fired = true;
                }
                Incoming::Event(_) => self.stats.unknown_events += 1,
                Incoming::Odd => self.stats.malformed += 1,
            }
        }
        moved.any |= written + read > 0;
        Ok(written + read)
    }

    /// Returns the answer to a request, which is over then; `None` if it is still under way.
    fn take_reply(&mut self, id: RequestId) -> Option<Result<Vec<u8>, Cause>> {
        let at = self.pending.iter().position(|pending| pending.id == id)?;
        if self.pending.get(at)?.answered.is_none() && !self.broken {
            return None;
        }
        let Pending { op: asked, answered, bytes, .. } = self.pending.swap_remove(at);
        let Some(op) = answered else { return Some(Err(Cause::Broken)) };
        Some(match (Reply { op, id: id.0, payload: &bytes }).result(asked) {
            Ok(_) => {
                self.calm.transactions += usize::from(asked == Op::TRANSACTION_START);
                Ok(bytes)
            }
            Err(cause) => Err(cause),
        })
    }

    /// Tells whether nothing is under way, neither in the ring nor in a transaction.
    fn is_calm(&mut self) -> bool {
        let done = self.outgoing.is_empty() && self.pending.iter().all(|pending| pending.answered.is_some());
        let read = self.rings.tx.room().is_ok_and(|room| room == XENSTORE_RING_SIZE);
        self.broken || (self.calm.transactions == 0 && done && read && self.decoder.is_between())
    }

    /// Begins anew with another xenstored, which knows nothing of what this has asked for.
    fn begin_again(&mut self) {
        self.rings = ByteRings::xenstore_front(self.page);
        self.broken = self.rings.rx.skip().is_err();
        self.decoder = Decoder::new();
        self.outgoing.clear();
        self.calm = Calm::default();
        for pending in self.pending.iter_mut().filter(|pending| pending.answered.is_none()) {
            pending.answered = Some(Op::ERROR);
            pending.bytes.extend_from_slice(Errno::Again.word().as_bytes());
            pending.bytes.push(0);
        }
    }

    /// Forgets a request; its answer is dropped when it comes.
    fn give_up(&mut self, id: RequestId) {
        self.pending.retain(|pending| pending.id != id);
        self.stats.timeouts += 1;
    }
}

/// Gives a reply to the request that waits for it.
fn settle(pending: &mut [Pending], stats: &mut Stats, reply: Reply<'_>) {
    let waiting = pending.iter_mut().find(|pending| pending.id.0 == reply.id && pending.answered.is_none());
    let Some(waiting) = waiting else {
        stats.unknown_replies += 1;
        return;
    };
    stats.replies += 1;
    waiting.answered = Some(reply.op);
    waiting.bytes.extend_from_slice(reply.payload);
}

impl<P: Platform, E: Polled> Clone for XenStore<P, E> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<P: Platform, E: Polled> fmt::Debug for XenStore<P, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "XenStore(port {})", self.port().0)
    }
}

impl<P: Platform, E: Polled> XenStore<P, E> {
    /// Takes over the domain's end of the store: the page and the port of `start_info`. Nobody else uses them.
    ///
    /// # Panics
    /// If `page` is smaller than the interface (io/xs_wire.h, struct xenstore_domain_interface), or not aligned to words.
    pub fn new(platform: P, events: E, page: Shared<'static>, port: Port) -> Self {
        events.unmask(port);
        let link = Mutex::new(Link::new(page));
        let watches = Watches::new();
        let timeout_ns = AtomicU64::new(TIMEOUT_NS);
        Self(Arc::new(Inner {
            platform,
            events,
            port: AtomicU32::new(port.0),
            timeout_ns,
            again: AtomicBool::new(false),
            untold: AtomicBool::new(false),
            link,
            watches,
        }))
    }

    /// Returns the port whose events [`process`](Self::process) answers.
    pub fn port(&self) -> Port {
        Port(self.0.port.load(Relaxed))
    }

    /// Sets how long an answer may take, in nanoseconds.
    pub fn set_timeout_ns(&self, timeout_ns: u64) {
        self.0.timeout_ns.store(timeout_ns, Relaxed);
    }

    /// Returns what the client has seen and done. Not for the handler: it waits for a thread that looks into the ring just now.
    pub fn stats(&self) -> Stats {
        self.with(|link| link.stats)
    }

    /// Handles the event of [`port`](Self::port): takes replies and events from the ring, sends what waits for room. Never waits,
    /// never allocates.
    pub fn process(&self) {
        self.look();
        // Whoever is woken by this event looks at the watches after it.
        self.0.untold.store(false, SeqCst);
        self.0.events.unmask(self.port());
    }

    /// Makes ready for a suspend of the domain: waits until all that was asked is answered and no transaction is open. What is asked
    /// meanwhile outside of a transaction waits until [`reconnect`](Self::reconnect) or [`cancel_suspend`](Self::cancel_suspend).
    ///
    /// # Errors
    /// [`StoreError`] if that takes too long; then all goes on as before.
    pub fn suspend(&self) -> Result<(), StoreError> {
        self.with(|link| link.calm.wanted = true);
        self.wait_until(|_| Ok(self.with(|link| link.is_calm().then_some(())))).map_err(|cause| {
            self.cancel_suspend();
            StoreError { op: "suspend", path: String::new(), cause }
        })
    }

    /// Goes on after a suspend that was cancelled, or didn't come about.
    pub fn cancel_suspend(&self) {
        self.with(|link| link.calm.wanted = false);
    }

    /// Begins anew in a domain that has come back from a suspend, in the same page, and with the port that `start_info` has now. All
    /// watches are set again, and fire. What was asked before and not answered fails with [`Errno::Again`]. A ring that was found
    /// corrupt gets another chance.
    ///
    /// Called after the event channels were resumed, while nobody else uses the store.
    ///
    /// # Errors
    /// The [`StoreError`] of the first watch that was refused; the others are set.
    pub fn reconnect(&self, port: Port) -> Result<(), StoreError> {
        self.0.port.store(port.0, Relaxed);
        let watches = self.with(|link| {
            link.begin_again();
            link.paths.clone()
        });
        self.0.events.unmask(port);
        watches.into_iter().map(|(id, path)| self.set_watch(id, &path)).fold(Ok(()), Result::and)
    }

    fn set_watch(&self, id: WatchId, path: &str) -> Result<(), StoreError> {
        done(self, "watch", Op::WATCH, Tx::NONE, path, &[alloc::format!("{}\0", id.0).as_bytes()])
    }

    /// Does an operation, and returns the payload of its reply. For operations that [`Store`] doesn't have, and for tests.
    ///
    /// # Errors
    /// [`StoreError`]; `path` stands in it.
    pub fn call(&self, name: &'static str, path: &str, request: Request<'_>) -> Result<Vec<u8>, StoreError> {
        self.wait_for(&request).map_err(|cause| StoreError { op: name, path: path.into(), cause })
    }

    /// Looks into the ring, or leaves it to the one who does just now.
    fn look(&self) {
        let inner = &*self.0;
        inner.again.store(true, SeqCst);
        // The flag before the try for the lock, against the holder, who lets go of the lock and then asks for the flag, with a
        // fence between, too: either we get the lock, or they see the flag.
        fence(SeqCst);
        while inner.again.load(SeqCst) {
            let Some(mut link) = inner.link.try_lock() else { break };
            inner.again.store(false, SeqCst);
            let moved = link.exchange(&inner.watches);
            drop(link);
            // Letting go is a mere release: without this, the flag could be asked for before anybody sees the lock free.
            fence(SeqCst);
            if moved.fired {
                inner.untold.store(true, SeqCst);
            }
            if moved.any {
                inner.events.notify(self.port());
            }
            if moved.more {
                // The rest has its turn after whatever else is pending.
                inner.events.raise(self.port());
                break;
            }
        }
    }

    /// Takes the lock of the ring in a thread. The handler doesn't wait for it, but leaves word, which is answered here.
    fn with<T>(&self, work: impl FnOnce(&mut MutexGuard<'_, Link>) -> T) -> T {
        let done = work(&mut self.0.link.lock());
        // As in `look`: the lock is free before the flag is asked for.
        fence(SeqCst);
        if self.0.again.load(SeqCst) {
            self.look();
            self.pass_on();
        }
        done
    }

    /// Makes the event pending again if a watch has fired that the dispatcher has not been told of: it was woken before we saw it,
    /// or not at all because we have taken its event. Ends with its [`process`](Self::process).
    fn pass_on(&self) {
        if self.0.untold.load(SeqCst) {
            self.0.events.raise(self.port());
        }
    }

    fn wait_for(&self, request: &Request<'_>) -> Result<Vec<u8>, Cause> {
        let mut id = None;
        let answer = self.wait_until(|waiting| {
            if id.is_none() {
                id = self.with(|link| link.submit(request))?;
                if id.is_some() {
                    waiting.look();
                }
            }
            Ok(id.and_then(|id| self.with(|link| link.take_reply(id))))
        });
        if let (Err(Cause::TimedOut(_)), Some(id)) = (&answer, id) {
            self.with(|link| link.give_up(id));
        }
        answer?
    }

    /// Looks into the ring until `found` has what it wants, or the time is over.
    fn wait_until<T>(&self, mut found: impl FnMut(&Waiting<'_, P, E>) -> Result<Option<T>, Cause>) -> Result<T, Cause> {
        let inner = &*self.0;
        let timeout_ns = inner.timeout_ns.load(Relaxed);
        let deadline = inner.platform.now_ns().saturating_add(timeout_ns);
        let waiting = Waiting { store: self };
        loop {
            // First the event, then the ring: what comes after the look makes the event pending again.
            waiting.look();
            if let Some(value) = found(&waiting)? {
                return Ok(value);
            }
            let now = inner.platform.now_ns();
            if now >= deadline {
                return Err(Cause::TimedOut(timeout_ns));
            }
            inner.platform.wait(&[self.port()], deadline.min(now.saturating_add(LOOK_NS)));
        }
    }
}

/// Somebody who waits for an answer, and takes events away from the dispatcher meanwhile. What was more than the answer is
/// passed on at the end.
struct Waiting<'a, P: Platform, E: Polled> {
    store: &'a XenStore<P, E>,
}

impl<P: Platform, E: Polled> Waiting<'_, P, E> {
    fn look(&self) {
        let inner = &*self.store.0;
        inner.events.take(self.store.port());
        self.store.look();
    }
}

impl<P: Platform, E: Polled> Drop for Waiting<'_, P, E> {
    fn drop(&mut self) {
        // Whoever is woken by the dispatcher to ask for watches must not miss one that came with our answer, or with that of
        // another call, whose event somebody has taken.
        self.store.pass_on();
    }
}

impl<P: Platform, E: Polled> Store for XenStore<P, E> {
    fn request(&self, request: &Request<'_>) -> Result<Vec<u8>, Cause> {
        self.wait_for(request)
    }

    fn watch(&self, path: &str) -> Result<WatchId, StoreError> {
        let fail = |cause| StoreError { op: "watch", path: path.into(), cause };
        let id = self.0.watches.add().ok_or_else(|| fail(Cause::NoWatch(WATCHES)))?;
        // Its place is there before xenstored knows of it: the first event comes at once.
        match self.set_watch(id, path) {
            Ok(()) => {
                self.with(|link| link.paths.insert(id, path.into()));
                Ok(id)
            }
            Err(error) => {
                self.0.watches.remove(id);
                Err(error)
            }
        }
    }

    fn unwatch(&self, watch: WatchId) -> Result<(), StoreError> {
        let Some(path) = self.with(|link| link.paths.remove(&watch)) else {
            let cause = Cause::BadValue(alloc::format!("watch {}", watch.0));
            return Err(StoreError { op: "unwatch", path: String::new(), cause });
        };
        self.0.watches.remove(watch);
        let token = alloc::format!("{}\0", watch.0);
        done(self, "unwatch", Op::UNWATCH, Tx::NONE, &path, &[token.as_bytes()])
    }

    fn fired(&self, watch: WatchId) -> bool {
        self.0.watches.take(watch)
    }
}
