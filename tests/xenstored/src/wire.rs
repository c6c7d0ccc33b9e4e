//! The byte stream of io/xs_wire.h: packets in, packets out.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::fmt;

use xen_sys::io::xs_wire::{XENSTORE_PAYLOAD_MAX, XsdSockmsg, XsdSockmsgType as Op};

const HEADER: usize = size_of::<XsdSockmsg>();

/// io/xs_wire.h, struct xsd_sockmsg, with its payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Packet {
    pub(crate) op: Op,
    pub(crate) req_id: u32,
    pub(crate) tx_id: u32,
    pub(crate) payload: Vec<u8>,
}

impl Packet {
    fn bytes(&self) -> Vec<u8> {
        let len = self.payload.len() as u32;
        let mut bytes = Vec::with_capacity(HEADER + self.payload.len());
        for word in [self.op.0, self.req_id, self.tx_id, len] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        bytes.extend_from_slice(&self.payload);
        bytes
    }
}

/// A client broke the framing: there is no way to tell where its next request begins, so nothing more of it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadFrame {
    /// Bytes of payload that the header announced; at most 4096 are legal.
    pub len: u32,
}

impl fmt::Display for BadFrame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a xenstore message of {} bytes; 4096 are the most", self.len)
    }
}

/// Bytes of one client on their way to being a packet: never more than one.
#[derive(Debug, Default)]
pub(crate) struct Input {
    bytes: Vec<u8>,
}

impl Input {
    /// Takes bytes from the front of `from` up to the end of a packet, and returns it if it is complete.
    pub(crate) fn take(&mut self, from: &mut &[u8]) -> Result<Option<Packet>, BadFrame> {
        self.fill(from, HEADER);
        let Some(header) = self.bytes.first_chunk::<HEADER>() else { return Ok(None) };
        let (words, _) = header.as_chunks::<4>();
        let &[op, req_id, tx_id, len] = words else { return Ok(None) };
        let len = u32::from_le_bytes(len);
        if len as usize > XENSTORE_PAYLOAD_MAX {
            return Err(BadFrame { len });
        }
        let (op, req_id, tx_id) = (Op(u32::from_le_bytes(op)), u32::from_le_bytes(req_id), u32::from_le_bytes(tx_id));
        let end = HEADER + len as usize;
        self.fill(from, end);
        if self.bytes.len() < end {
            return Ok(None);
        }
        let payload = self.bytes.split_off(HEADER);
        self.bytes.clear();
        Ok(Some(Packet { op, req_id, tx_id, payload }))
    }

    fn fill(&mut self, from: &mut &[u8], upto: usize) {
        let missing = upto.saturating_sub(self.bytes.len()).min(from.len());
        let (now, later) = from.split_at(missing);
        self.bytes.extend_from_slice(now);
        *from = later;
    }
}

/// Whom a packet in the queue belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Reply,
    /// An event of the watch with this number.
    Event(u64),
}

/// Packets for one client that it has not taken yet.
#[derive(Debug, Default)]
pub(crate) struct Output {
    queue: VecDeque<(Kind, Vec<u8>)>,
    /// Bytes of the first packet that were taken.
    taken: usize,
    replies: usize,
}

impl Output {
    pub(crate) fn push(&mut self, kind: Kind, packet: &Packet) {
        self.replies += usize::from(kind == Kind::Reply);
        self.queue.push_back((kind, packet.bytes()));
    }

    /// Returns how many replies were not taken yet.
    pub(crate) fn replies(&self) -> usize {
        self.replies
    }

    /// Returns how many packets were not taken yet.
    pub(crate) fn packets(&self) -> usize {
        self.queue.len()
    }

    /// Returns the rest of the first packet; nothing if there is none.
    pub(crate) fn peek(&self) -> &[u8] {
        self.queue.front().and_then(|(_, bytes)| bytes.get(self.taken..)).unwrap_or_default()
    }

    /// Drops `count` bytes of what [`peek`](Self::peek) returned; returns whose packet is gone with them.
    pub(crate) fn consume(&mut self, count: usize) -> Option<Kind> {
        self.taken = self.taken.saturating_add(count);
        let (kind, _) = self.queue.pop_front_if(|(_, bytes)| bytes.len() <= self.taken)?;
        self.taken = 0;
        self.replies -= usize::from(kind == Kind::Reply);
        Some(kind)
    }
}
