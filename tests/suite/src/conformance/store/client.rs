//! A client of xenstored that hides nothing: messages as they are on the wire, events in their places.

use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::sync::atomic::Ordering::SeqCst;

use hypercall::call::event_channel;
use hypercall::mem::Shared;
use hypercall::{DomId, Platform, Port};
use xen_sys::io::xs_wire::XsdSockmsgType as Op;
use xen_sys::xen::SharedInfo;
use xenbus::ring::bytes::ByteRings;
use xenbus::store::Decoder;

/// How long xenstored may take for an answer. Its dom0 may be busy with other things.
const PATIENCE_NS: u64 = 20_000_000_000;
/// How long the script waits for an answer that is not expected.
const SILENCE_NS: u64 = 1_000_000_000;
/// The longest time between two looks at the ring.
const LOOK_NS: u64 = 10_000_000;

/// A domain's end of the store, which nobody else has used or uses.
#[derive(Debug)]
pub struct Link<'a, P: Platform> {
    /// The domain's platform.
    pub platform: P,
    /// Its number.
    pub id: DomId,
    /// The page that it shares with the hypervisor.
    pub shared: &'a SharedInfo,
    /// The ring's page.
    pub page: Shared<'a>,
    /// The ring's port.
    pub port: Port,
}

/// A message as it came.
pub(super) struct Message {
    pub(super) op: Op,
    pub(super) id: u32,
    pub(super) tx: u32,
    pub(super) payload: Vec<u8>,
}

/// An answer, and the events around it.
pub(super) struct Got {
    pub(super) before: Vec<Vec<u8>>,
    pub(super) reply: Message,
    pub(super) after: Vec<Vec<u8>>,
}

pub(super) struct Client<'a, P: Platform> {
    link: Link<'a, P>,
    rings: ByteRings<'a>,
    decoder: Decoder,
    /// Bytes that were read and not decoded yet.
    rest: VecDeque<u8>,
    last: u32,
}

impl<'a, P: Platform> Client<'a, P> {
    pub(super) fn new(link: Link<'a, P>) -> Self {
        let rings = ByteRings::xenstore_front(link.page);
        Self { link, rings, decoder: Decoder::new(), rest: VecDeque::new(), last: 0 }
    }

    /// Makes a request, and waits for its reply and all events that it causes.
    pub(super) fn call(&mut self, op: Op, tx: u32, payload: &[u8]) -> Got {
        let id = self.send(op, tx, payload);
        let (before, reply) = self.reply(id);
        // What xenstored sends on behalf of a request, it sends before it looks at the next.
        let id = self.send(Op::GET_DOMAIN_PATH, 0, b"0\0");
        let (after, _) = self.reply(id);
        Got { before, reply, after }
    }

    /// Makes a request, and returns only the answer.
    pub(super) fn quick(&mut self, op: Op, tx: u32, payload: &[u8]) -> Message {
        let id = self.send(op, tx, payload);
        self.reply(id).1
    }

    /// Makes a request, and returns its number.
    pub(super) fn send(&mut self, op: Op, tx: u32, payload: &[u8]) -> u32 {
        self.last = self.last.wrapping_add(0x0101_0101);
        self.send_header(op, self.last, tx, payload.len() as u32, payload);
        self.last
    }

    /// Sends a message whose header says what it wants.
    pub(super) fn send_header(&mut self, op: Op, id: u32, tx: u32, len: u32, payload: &[u8]) {
        self.write(&[&[op.0, id, tx, len].map(u32::to_le_bytes).concat(), payload].concat());
    }

    /// Writes bytes into the ring, and tells xenstored.
    fn write(&mut self, bytes: &[u8]) {
        let deadline = self.link.platform.now_ns() + PATIENCE_NS;
        let mut sent = 0;
        while sent < bytes.len() {
            let written = self.rings.tx.write(&bytes[sent..]);
            let count = written.unwrap_or_else(|error| panic!("the store's ring: {error}"));
            sent += count;
            self.notify();
            if count == 0 {
                assert!(self.link.platform.now_ns() < deadline, "xenstored takes no request");
                self.wait();
            }
        }
    }

    fn notify(&self) {
        let sent = event_channel::send(&self.link.platform, self.link.port);
        assert!(sent.is_ok(), "the store's port: {sent:?}");
    }

    fn wait(&mut self) {
        let port = self.link.port;
        self.link.platform.wait(&[port], self.link.platform.now_ns() + LOOK_NS);
        let (word, bit) = (port.0 / usize::BITS, 1 << (port.0 % usize::BITS));
        self.link.shared.evtchn_pending[word as usize].fetch_and(!bit, SeqCst);
    }

    /// Makes a request whose payload is written piece by piece, each with an event of its own.
    pub(super) fn send_pieces(&mut self, op: Op, pieces: &[&[u8]]) -> u32 {
        self.last = self.last.wrapping_add(1);
        let len = pieces.iter().map(|piece| piece.len() as u32).sum();
        self.send_header(op, self.last, 0, len, b"");
        for piece in pieces {
            self.wait();
            self.write(piece);
        }
        self.last
    }

    /// Waits for the next message.
    pub(super) fn receive(&mut self) -> Message {
        self.next(PATIENCE_NS).unwrap_or_else(|| panic!("no answer of xenstored"))
    }

    /// Waits for the reply to a request; returns the events before it, too.
    pub(super) fn reply(&mut self, id: u32) -> (Vec<Vec<u8>>, Message) {
        let mut events = Vec::new();
        loop {
            match self.receive() {
                message if message.op == Op::WATCH_EVENT => events.push(message.payload),
                message if message.id == id => return (events, message),
                message => panic!("an answer to {} while {id} was asked", message.id),
            }
        }
    }

    /// Tells what comes in a while in which nothing should.
    pub(super) fn silence(&mut self) -> String {
        match self.next(SILENCE_NS) {
            None => "no answer".into(),
            Some(message) => format!("operation {} {:?}", message.op.0, self.text(&message.payload)),
        }
    }

    /// Waits for a message.
    fn next(&mut self, patience_ns: u64) -> Option<Message> {
        let deadline = self.link.platform.now_ns() + patience_ns;
        loop {
            if let Some(message) = self.decode() {
                return Some(message);
            }
            let mut buffer = [0; 1024];
            let read = self.rings.rx.read(&mut buffer);
            let count = read.unwrap_or_else(|error| panic!("the store's ring: {error}"));
            self.rest.extend(&buffer[..count]);
            if count > 0 {
                self.notify();
            } else if self.link.platform.now_ns() >= deadline {
                return None;
            } else {
                self.wait();
            }
        }
    }

    fn decode(&mut self) -> Option<Message> {
        let all = self.rest.make_contiguous();
        let mut bytes = &*all;
        let message = match self.decoder.next(&mut bytes) {
            Ok(message) => message.map(|message| Message {
                op: message.op,
                id: message.id,
                tx: message.tx.0,
                payload: message.payload.into(),
            }),
            Err(error) => panic!("a message of {} bytes", error.len),
        };
        let taken = all.len() - bytes.len();
        self.rest.drain(..taken);
        message
    }

    /// Returns a payload as text, without what differs from boot to boot.
    pub(super) fn text(&self, payload: &[u8]) -> String {
        if payload.len() > TEXT_MAX {
            return format!("{} bytes", payload.len());
        }
        let text: String = payload
            .iter()
            .map(|byte| match byte {
                0 => '|',
                byte if byte.is_ascii_graphic() || *byte == b' ' => char::from(*byte),
                _ => '?',
            })
            .collect();
        let (home, id) = (format!("/local/domain/{}", self.link.id.0), format!("{}", self.link.id.0));
        if text == id {
            return "ME".into();
        }
        // The number ends where the path does, or goes on.
        text.replace(&format!("{home}/"), "/local/domain/ME/").replace(&format!("{home}|"), "/local/domain/ME|")
    }

    /// Returns permissions as text.
    pub(super) fn permissions(&self, payload: &[u8]) -> String {
        let words = payload.split_inclusive(|byte| *byte == 0).map(|word| {
            let (letter, number) = word.split_at(1);
            let own =
                number.strip_suffix(&[0]).is_some_and(|number| number == format!("{}", self.link.id.0).as_bytes());
            if own { format!("{}ME|", self.text(letter)) } else { self.text(word) }
        });
        words.collect()
    }

    /// Returns the domain's number.
    pub(super) const fn id(&self) -> DomId {
        self.link.id
    }
}

/// Longer payloads are told by their length.
const TEXT_MAX: usize = 200;
