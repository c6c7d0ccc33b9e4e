//! xenstored behind the store rings.
//!
//! The daemon itself has no input or output: this moves its bytes between the rings and it, and signals.

use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering};

use hypercall::{DomId, Mfn, Port};
use xen_sys::io::xs_wire::{
    XENSTORE_ERROR_COMM, XENSTORE_ERROR_PROTO, XENSTORE_RING_SIZE, XenstoreDomainInterface, XsdSockmsg, XsdSockmsgType,
};
use xenstored::{ConnId, Daemon};

use crate::faults::{Delivery, Faults};
use crate::life::Start;
use crate::memory::Frames;
use crate::state::State;
use crate::trace::What;
use crate::words;

/// The daemon and its clients.
pub(crate) struct Store {
    daemon: Daemon,
    /// The connection by which the machine plays toolstack.
    host: ConnId,
    links: BTreeMap<DomId, Link>,
}

/// A domain's connection.
struct Link {
    conn: ConnId,
    ring: Mfn,
    /// xenstored's end of the channel, a port of domain 0.
    port: Port,
    /// The domain has signalled, or there may be more in the ring.
    kicked: bool,
    /// The ring's indices or the framing lied; it is not served any more.
    broken: bool,
    requests: Cutter,
    replies: Cutter,
    /// The faults were asked about the request that is next.
    asked: bool,
    /// What is still to be given of an event that comes twice.
    again: Vec<u8>,
}

impl Store {
    pub(crate) fn new() -> Self {
        let mut daemon = Daemon::default();
        let host = daemon.connect(DomId(0));
        Self { daemon, host, links: BTreeMap::new() }
    }

    /// Takes a domain's ring into service, and makes its home as the toolstack does.
    pub(crate) fn open(&mut self, dom: DomId, port: Port, ring: Mfn, start: &Start) {
        let conn = self.daemon.connect(dom);
        let link = Link {
            conn,
            ring,
            port,
            kicked: true,
            broken: false,
            requests: Cutter::default(),
            replies: Cutter::default(),
            asked: false,
            again: Vec::new(),
        };
        self.links.insert(dom, link);
        self.make_home(dom, start);
        self.daemon.introduce(dom);
    }

    fn make_home(&mut self, dom: DomId, start: &Start) {
        let home = format!("/local/domain/{}", dom.0);
        // The home is the toolstack's; the domain reads it, and writes where a guest has to.
        let readable = format!("n0\0r{}\0", dom.0);
        let own = format!("n{}\0", dom.0);
        let node = |store: &mut Self, path: &str, value: &str, perms: &str| {
            let path = format!("{home}{path}");
            store.toolstack(XsdSockmsgType::WRITE, &format!("{path}\0{value}"));
            store.toolstack(XsdSockmsgType::SET_PERMS, &format!("{path}\0{perms}"));
        };
        let name = if dom == DomId(0) { "Domain-0".into() } else { format!("mock-{}", dom.0) };
        node(self, "", "", &readable);
        node(self, "/name", &name, &readable);
        node(self, "/domid", &dom.0.to_string(), &readable);
        for dir in ["/device", "/control"] {
            node(self, dir, "", &readable);
        }
        for dir in ["/data", "/drivers", "/feature", "/error", "/control/shutdown"] {
            node(self, dir, "", &own);
        }
        node(self, "/store/ring-ref", &start.store_gfn.0.to_string(), &readable);
        node(self, "/store/port", &start.store_port.0.to_string(), &readable);
        if start.console.is_some() {
            node(self, "/console/ring-ref", &start.console_gfn.0.to_string(), &readable);
            node(self, "/console/port", &start.console_port.0.to_string(), &readable);
            node(self, "/console/type", "xenconsoled", &readable);
        }
    }

    /// Does an operation of the toolstack, which can't fail: the names are its own.
    fn toolstack(&mut self, op: XsdSockmsgType, payload: &str) {
        let done = self.daemon.call(self.host, op, 0, payload.as_bytes());
        assert!(done.is_ok(), "xenstored refused {payload:?}: {done:?}");
    }

    /// Takes note that a domain is gone; the daemon disconnects it.
    pub(crate) fn close(&mut self, dom: DomId) {
        self.links.remove(&dom);
        self.daemon.release(dom);
    }

    /// Takes note that a domain has signalled.
    pub(crate) fn kick(&mut self, dom: DomId) {
        if let Some(link) = self.links.get_mut(&dom) {
            link.kicked = true;
        }
    }

    /// Returns the domains whose rings have work.
    pub(crate) fn ready(&self, frames: &Frames) -> impl Iterator<Item = DomId> {
        let ready = |link: &Link| {
            let ring = ring_at(frames, link.ring);
            let has_room = room(ring) != Some(0);
            !link.broken
                && (link.kicked || (has_room && (!link.again.is_empty() || !self.daemon.output(link.conn).is_empty())))
        };
        self.links.iter().filter(move |(_, link)| ready(link)).map(|(dom, _)| *dom)
    }

    /// Moves what there is between a ring and the daemon.
    fn pump(&mut self, frames: &Frames, dom: DomId, faults: &mut Faults, is_noted: bool) -> Moved {
        let mut moved = Moved { notes: is_noted.then(Vec::new), ..Moved::default() };
        let Some(link) = self.links.get_mut(&dom) else { return moved };
        link.kicked = false;
        let ring = ring_at(frames, link.ring);
        let mut pump = Pump { dom, daemon: &mut self.daemon, ring, faults, moved: &mut moved };
        if let Err(error) = pump.run(link) {
            link.broken = true;
            ring.error.store(error, Ordering::Release);
            (moved.messages, moved.signal) = (0, true);
        }
        moved
    }
}

impl State {
    /// Serves one domain's store ring.
    pub(crate) fn serve(&mut self, dom: DomId) {
        let is_noted = self.trace.is_on();
        let Moved { messages, signal, notes } = self.store.pump(&self.frames, dom, &mut self.faults, is_noted);
        for what in notes.into_iter().flatten() {
            self.note(Some(dom), || what);
        }
        self.dom(dom).ledger.store_messages += messages;
        let served = self.store.links.get(&dom).map(|link| link.port);
        let other = served.and_then(|port| self.dom(DomId(0)).channels.remote(port));
        if signal && let Some((dom, port)) = other {
            self.raise(None, dom, port);
        }
    }
}

/// What was moved between a ring and the daemon.
#[derive(Default)]
struct Moved {
    messages: u64,
    /// The domain is to be signalled.
    signal: bool,
    /// What is to be taken down of it, if anything is.
    notes: Option<Vec<What>>,
}

/// What it takes to move bytes between a ring and the daemon.
struct Pump<'a> {
    dom: DomId,
    daemon: &'a mut Daemon,
    ring: &'a XenstoreDomainInterface,
    faults: &'a mut Faults,
    moved: &'a mut Moved,
}

impl Pump<'_> {
    /// Requests first, then replies and events.
    fn run(&mut self, link: &mut Link) -> Result<(), u32> {
        let (taken, there) = self.requests(link)?;
        let given = self.replies(link)?;
        // The daemon takes no request of a client that doesn't read its replies; once it has read some, there is room again.
        link.kicked = taken < there && given > 0;
        self.moved.signal = taken + given > 0;
        Ok(())
    }

    /// Hands requests to the daemon, message by message. Returns how many bytes it took, and how many there were.
    fn requests(&mut self, link: &mut Link) -> Result<(usize, usize), u32> {
        let mut bytes = [0; XENSTORE_RING_SIZE];
        let consumed = self.ring.req_cons.load(Ordering::Relaxed);
        // Acquire: the bytes of the request were written before the index that publishes them.
        let there = self.ring.req_prod.load(Ordering::Acquire).wrapping_sub(consumed) as usize;
        let requests = bytes.get_mut(..there).ok_or(XENSTORE_ERROR_COMM)?;
        for (offset, byte) in (0..).zip(requests.iter_mut()) {
            *byte = slot(&self.ring.req, consumed, offset).load(Ordering::Relaxed);
        }
        let mut taken = 0;
        while taken < there {
            let (count, is_whole) = link.requests.next(&requests[taken..]);
            let piece = &requests[taken..taken + count];
            if is_whole && !link.asked {
                // Once a message, even if the daemon doesn't take it yet.
                link.asked = true;
                if let Some(refusal) = self.strike(|faults, dom| faults.request(dom)) {
                    self.daemon.refuse_next(link.conn, refusal);
                }
            }
            // It takes all of a piece or, from a client that doesn't read its replies, nothing.
            if self.daemon.input(link.conn, piece).map_err(|_| XENSTORE_ERROR_PROTO)? == 0 {
                break;
            }
            taken += count;
            if let Some(message) = link.requests.push(piece) {
                link.asked = false;
                self.count(true, &message);
            }
        }
        // Release: the bytes have been read before their place is given back.
        self.ring.req_cons.store(consumed.wrapping_add(taken as u32), Ordering::Release);
        Ok((taken, there))
    }

    /// Hands replies and events to the client. Returns how many bytes it gave.
    fn replies(&mut self, link: &mut Link) -> Result<usize, u32> {
        let mut given = 0;
        loop {
            let room = room(self.ring).ok_or(XENSTORE_ERROR_COMM)?;
            if room == 0 {
                return Ok(given);
            }
            self.watch(link);
            let is_again = !link.again.is_empty();
            let output = if is_again { &link.again } else { self.daemon.output(link.conn) };
            let (count, _) = link.replies.next(&output[..output.len().min(room)]);
            if count == 0 {
                return Ok(given);
            }
            let produced = self.ring.rsp_prod.load(Ordering::Relaxed);
            for (offset, byte) in (0..).zip(&output[..count]) {
                slot(&self.ring.rsp, produced, offset).store(*byte, Ordering::Relaxed);
            }
            // Release: the bytes are there before the index that publishes them.
            self.ring.rsp_prod.store(produced.wrapping_add(count as u32), Ordering::Release);
            let message = link.replies.push(&output[..count]);
            if is_again {
                link.again.drain(..count);
            } else {
                self.daemon.consume(link.conn, count);
            }
            if let Some(message) = message {
                self.count(false, &message);
            }
            given += count;
        }
    }

    /// Loses or doubles the watch's event that is next, if a fault was ordered for it.
    fn watch(&mut self, link: &mut Link) {
        while link.again.is_empty() && link.replies.is_between() {
            // Between two messages, the daemon shows the next one as a whole.
            let next = self.daemon.output(link.conn).first_chunk();
            if next.is_none_or(|op| u32::from_le_bytes(*op) != XsdSockmsgType::WATCH_EVENT.0) {
                return;
            }
            let delivery = self.strike(|faults, dom| faults.watch(dom));
            let next = self.daemon.output(link.conn);
            let length = next.len();
            match delivery {
                Delivery::Drop => {}
                Delivery::Repeat => link.again = next.repeat(2),
                Delivery::Plain | Delivery::Delay => return,
            }
            self.daemon.consume(link.conn, length);
        }
    }

    fn strike<T>(&mut self, ask: impl FnOnce(&mut Faults, DomId) -> T) -> T {
        let before = self.faults.happened().len();
        let answer = ask(self.faults, self.dom);
        if let (Some(happened), Some(notes)) = (self.faults.happened().get(before), &mut self.moved.notes) {
            notes.push(What::Fault(happened.fault));
        }
        answer
    }

    fn count(&mut self, is_request: bool, message: &[u8]) {
        self.moved.messages += 1;
        if let Some(notes) = &mut self.moved.notes {
            notes.push(words::message(is_request, message));
        }
    }
}

/// Returns the room for replies, `None` if the indices lie.
fn room(ring: &XenstoreDomainInterface) -> Option<usize> {
    // Acquire: the domain has read the bytes before it gave their place back.
    let read = ring.rsp_cons.load(Ordering::Acquire);
    let unread = ring.rsp_prod.load(Ordering::Relaxed).wrapping_sub(read) as usize;
    XENSTORE_RING_SIZE.checked_sub(unread)
}

fn slot(bytes: &[AtomicU8; XENSTORE_RING_SIZE], from: u32, offset: u32) -> &AtomicU8 {
    &bytes[from.wrapping_add(offset) as usize % XENSTORE_RING_SIZE]
}

/// Returns the ring in a frame.
fn ring_at(frames: &Frames, mfn: Mfn) -> &XenstoreDomainInterface {
    let ring: NonNull<XenstoreDomainInterface> = frames.ptr(mfn).cast();
    // SAFETY: the page was allocated with the domain, which never frees it, and is nothing but atomics.
    unsafe { ring.as_ref() }
}

/// A stream of bytes, cut into messages.
#[derive(Default)]
struct Cutter {
    /// What there is of the message that has begun.
    message: Vec<u8>,
}

const HEADER: usize = size_of::<XsdSockmsg>();
const LENGTH: usize = std::mem::offset_of!(XsdSockmsg, len);

impl Cutter {
    /// Tells whether no message has begun.
    fn is_between(&self) -> bool {
        self.message.is_empty()
    }

    /// Returns how many bytes the header of the message has announced, if it is there.
    fn announced(&self, more: &[u8]) -> Option<usize> {
        let mut length = self.message.iter().chain(more).skip(LENGTH).copied();
        let length = [length.next()?, length.next()?, length.next()?, length.next()?];
        Some(HEADER + u32::from_le_bytes(length) as usize)
    }

    /// Returns how many of the next bytes belong to the message, and whether it is whole with them.
    fn next(&self, bytes: &[u8]) -> (usize, bool) {
        let have = self.message.len();
        let Some(end) = self.announced(bytes) else { return (bytes.len(), false) };
        let count = (end - have).min(bytes.len());
        (count, have + count == end)
    }

    /// Adds bytes as [`next`](Self::next) has counted them. Returns the message if it is whole with them.
    fn push(&mut self, bytes: &[u8]) -> Option<Vec<u8>> {
        self.message.extend_from_slice(bytes);
        (self.announced(&[]) == Some(self.message.len())).then(|| std::mem::take(&mut self.message))
    }
}
