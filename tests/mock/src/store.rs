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

use crate::life::Start;
use crate::memory::Frames;
use crate::state::State;

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
    requests: Messages,
    replies: Messages,
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
            requests: Messages::default(),
            replies: Messages::default(),
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
            !link.broken && (link.kicked || (has_room && !self.daemon.output(link.conn).is_empty()))
        };
        self.links.iter().filter(move |(_, link)| ready(link)).map(|(dom, _)| *dom)
    }

    /// Moves what there is between a ring and the daemon. Returns how many messages moved, and whether the domain is to be
    /// signalled.
    fn pump(&mut self, frames: &Frames, dom: DomId) -> (u64, bool) {
        let Some(link) = self.links.get_mut(&dom) else { return (0, false) };
        link.kicked = false;
        let ring = ring_at(frames, link.ring);
        match pump(link, &mut self.daemon, ring) {
            Ok(moved) => moved,
            Err(error) => {
                link.broken = true;
                ring.error.store(error, Ordering::Release);
                (0, true)
            }
        }
    }
}

impl State {
    /// Serves one domain's store ring.
    pub(crate) fn serve(&mut self, dom: DomId) {
        let (messages, signal) = self.store.pump(&self.frames, dom);
        self.dom(dom).ledger.store_messages += messages;
        let served = self.store.links.get(&dom).map(|link| link.port);
        let other = served.and_then(|port| self.dom(DomId(0)).channels.remote(port));
        if signal && let Some((dom, port)) = other {
            self.raise(dom, port);
        }
    }
}

/// Requests first, then replies and events.
fn pump(link: &mut Link, daemon: &mut Daemon, ring: &XenstoreDomainInterface) -> Result<(u64, bool), u32> {
    let mut messages = 0;
    let mut bytes = [0; XENSTORE_RING_SIZE];
    let consumed = ring.req_cons.load(Ordering::Relaxed);
    // Acquire: the bytes of the request were written before the index that publishes them.
    let there = ring.req_prod.load(Ordering::Acquire).wrapping_sub(consumed) as usize;
    let requests = bytes.get_mut(..there).ok_or(XENSTORE_ERROR_COMM)?;
    for (offset, byte) in (0..).zip(requests.iter_mut()) {
        *byte = slot(&ring.req, consumed, offset).load(Ordering::Relaxed);
    }
    let taken = daemon.input(link.conn, requests).map_err(|_| XENSTORE_ERROR_PROTO)?;
    messages += link.requests.count(&requests[..taken]);
    // Release: the bytes have been read before their place is given back.
    ring.req_cons.store(consumed.wrapping_add(taken as u32), Ordering::Release);

    let mut given = 0;
    loop {
        let room = room(ring).ok_or(XENSTORE_ERROR_COMM)?;
        let output = daemon.output(link.conn);
        let count = output.len().min(room);
        if count == 0 {
            break;
        }
        let produced = ring.rsp_prod.load(Ordering::Relaxed);
        for (offset, byte) in (0..).zip(&output[..count]) {
            slot(&ring.rsp, produced, offset).store(*byte, Ordering::Relaxed);
        }
        messages += link.replies.count(&output[..count]);
        // Release: the bytes are there before the index that publishes them.
        ring.rsp_prod.store(produced.wrapping_add(count as u32), Ordering::Release);
        daemon.consume(link.conn, count);
        given += count;
    }
    // The daemon takes no request of a client that doesn't read its replies; once it has read some, there is room again.
    link.kicked = taken < there && given > 0;
    Ok((messages, taken + given > 0))
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

/// Counts the messages in a stream of bytes.
#[derive(Default)]
struct Messages {
    header: Vec<u8>,
    /// Bytes of the message's body that are still to come.
    body: usize,
}

impl Messages {
    /// Returns how many messages begin in `bytes`.
    fn count(&mut self, mut bytes: &[u8]) -> u64 {
        let mut messages = 0;
        loop {
            let skipped = self.body.min(bytes.len());
            self.body -= skipped;
            bytes = &bytes[skipped..];
            if bytes.is_empty() {
                return messages;
            }
            let (more, rest) = bytes.split_at(bytes.len().min(size_of::<XsdSockmsg>() - self.header.len()));
            self.header.extend_from_slice(more);
            bytes = rest;
            if let Some(length) = self.header.get(std::mem::offset_of!(XsdSockmsg, len)..)
                && let Ok(length) = <[u8; 4]>::try_from(length)
            {
                self.body = u32::from_ne_bytes(length) as usize;
                self.header.clear();
                messages += 1;
            }
        }
    }
}
