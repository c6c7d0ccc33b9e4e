//! The wire format of io/xs_wire.h, without IO: requests into bytes, bytes into replies and events.
//!
//! ```text
//!   type: u32 │ req_id: u32 │ tx_id: u32 │ len: u32 │ len bytes, at most 4096
//! ```

use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec::Vec;

use hypercall::DomId;
use xen_sys::io::xs_wire::{XENSTORE_PAYLOAD_MAX, XsdSockmsg, XsdSockmsgType as Op};

use super::{Cause, Errno, Perm, Tx};

const HEADER: usize = size_of::<XsdSockmsg>();

/// A request: an operation, and the parts of its payload, which follow each other without anything in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request<'a> {
    /// The operation.
    pub op: Op,
    /// The transaction that it is part of.
    pub tx: Tx,
    /// The payload.
    pub parts: &'a [&'a [u8]],
}

impl Request<'_> {
    /// Returns the length of the payload in bytes.
    pub fn len(&self) -> usize {
        self.parts.iter().map(|part| part.len()).sum()
    }

    /// Tells whether there is no payload.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends the bytes of the request to `out`; `id` is what the reply repeats.
    ///
    /// # Errors
    /// [`Cause::TooLong`] if the payload is longer than the wire allows; nothing was appended then.
    pub fn emit(&self, id: u32, out: &mut VecDeque<u8>) -> Result<(), Cause> {
        let len = self.len();
        if len > XENSTORE_PAYLOAD_MAX {
            return Err(Cause::TooLong(len));
        }
        for word in [self.op.0, id, self.tx.0, len as u32] {
            out.extend(word.to_le_bytes());
        }
        for part in self.parts {
            out.extend(*part);
        }
        Ok(())
    }
}

/// A message as it stands on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// What it is.
    pub op: Op,
    /// The number that a reply has from its request.
    pub id: u32,
    /// The transaction.
    pub tx: Tx,
    /// What it says.
    pub payload: &'a [u8],
}

/// What a message from xenstored is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Incoming<'a> {
    /// The answer to a request.
    Reply(Reply<'a>),
    /// A watch fired.
    Event(Event<'a>),
    /// It says that it is an event and has not the form of one.
    Odd,
}

/// The answer to the request with this number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply<'a> {
    /// The operation that was done, or [`Op::ERROR`].
    pub op: Op,
    /// The number of the request.
    pub id: u32,
    /// The result, or the word for the error.
    pub payload: &'a [u8],
}

/// A watch fired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event<'a> {
    /// The node that changed.
    pub path: &'a [u8],
    /// What the client gave to the watch.
    pub token: &'a [u8],
}

impl<'a> Message<'a> {
    /// Tells what the message is.
    pub fn incoming(self) -> Incoming<'a> {
        if self.op != Op::WATCH_EVENT {
            return Incoming::Reply(Reply { op: self.op, id: self.id, payload: self.payload });
        }
        let mut strings = self.payload.split(|&byte| byte == 0);
        match (strings.next(), strings.next(), strings.next()) {
            // What follows the second NUL is of no concern: a later protocol may have more to say.
            (Some(path), Some(token), Some(_)) => Incoming::Event(Event { path, token }),
            _ => Incoming::Odd,
        }
    }
}

impl<'a> Reply<'a> {
    /// Returns what a request of `op` was answered.
    ///
    /// # Errors
    /// [`Cause`]: refused, or the answer to something else.
    pub fn result(self, op: Op) -> Result<&'a [u8], Cause> {
        match self.op {
            Op::ERROR => Err(refusal(self.payload)),
            answered if answered == op => Ok(self.payload),
            _ => Err(Cause::Malformed),
        }
    }
}

/// Bytes of an unknown error word that are kept.
const WORD_MAX: usize = 32;

fn refusal(payload: &[u8]) -> Cause {
    let word = payload.split(|&byte| byte == 0).next().unwrap_or_default();
    Errno::ALL.into_iter().find(|errno| errno.word().as_bytes() == word).map_or_else(
        || Cause::UnknownRefusal(String::from_utf8_lossy(word.get(..WORD_MAX).unwrap_or(word)).into_owned()),
        Cause::Refused,
    )
}

/// xenstored announced a message that is longer than the wire allows: nobody can tell where the next one begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Oversize {
    /// Bytes of payload.
    pub len: u32,
}

/// Finds the messages in a stream of bytes. Allocates nothing once it is made.
#[derive(Debug)]
pub struct Decoder {
    bytes: Vec<u8>,
    /// Whether `bytes` is a message that was returned already.
    seen: bool,
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Decoder {
    /// Makes a decoder that waits for the first byte of a message.
    pub fn new() -> Self {
        Self { bytes: Vec::with_capacity(HEADER + XENSTORE_PAYLOAD_MAX), seen: false }
    }

    /// Tells whether no message has begun.
    pub(super) const fn is_between(&self) -> bool {
        self.seen || self.bytes.is_empty()
    }

    /// Takes bytes from the front of `from`, and returns the first message that is complete; `None` if it has taken all.
    ///
    /// # Errors
    /// [`Oversize`]; the stream is of no use from then on.
    pub fn next(&mut self, from: &mut &[u8]) -> Result<Option<Message<'_>>, Oversize> {
        if core::mem::take(&mut self.seen) {
            self.bytes.clear();
        }
        self.fill(from, HEADER);
        let Some((header, _)) = self.bytes.split_first_chunk::<HEADER>() else { return Ok(None) };
        let word = |at: usize| {
            let bytes = header.get(at..).and_then(|rest| rest.first_chunk());
            u32::from_le_bytes(bytes.copied().unwrap_or_default())
        };
        let (op, id, tx, len) = (Op(word(0)), word(4), Tx(word(8)), word(12));
        if len as usize > XENSTORE_PAYLOAD_MAX {
            return Err(Oversize { len });
        }
        let end = HEADER + len as usize;
        self.fill(from, end);
        if self.bytes.len() < end {
            return Ok(None);
        }
        self.seen = true;
        Ok(Some(Message { op, id, tx, payload: self.bytes.get(HEADER..).unwrap_or_default() }))
    }

    fn fill(&mut self, from: &mut &[u8], upto: usize) {
        let missing = upto.saturating_sub(self.bytes.len()).min(from.len());
        let (now, later) = from.split_at(missing);
        self.bytes.extend_from_slice(now);
        *from = later;
    }
}

/// Returns the text form of permissions: letter and domain, a NUL behind each.
pub(super) fn emit_perms(perms: &[Perm]) -> String {
    perms.iter().fold(String::new(), |text, perm| {
        let letter = match (perm.read, perm.write) {
            (false, false) => 'n',
            (true, false) => 'r',
            (false, true) => 'w',
            (true, true) => 'b',
        };
        alloc::format!("{text}{letter}{}\0", perm.domain.0)
    })
}

/// Parses the text form of permissions; the last NUL may be missing.
pub(super) fn parse_perms(text: &[u8]) -> Option<Vec<Perm>> {
    strings(text).map(parse_perm).collect()
}

fn parse_perm(text: &[u8]) -> Option<Perm> {
    let (letter, number) = text.split_first()?;
    let (read, write) = match letter {
        b'n' => (false, false),
        b'r' => (true, false),
        b'w' => (false, true),
        b'b' => (true, true),
        _ => return None,
    };
    let domain = core::str::from_utf8(number).ok()?.parse().ok()?;
    Some(Perm { domain: DomId(domain), read, write })
}

/// Returns the strings of a payload, each of which has a NUL behind it; the last one may lack it.
pub(super) fn strings(payload: &[u8]) -> impl Iterator<Item = &[u8]> {
    let payload = payload.strip_suffix(&[0]).unwrap_or(payload);
    payload.split(|&byte| byte == 0).filter(move |_| !payload.is_empty())
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    fn config() -> ProptestConfig {
        ProptestConfig { cases: if cfg!(miri) { 8 } else { 256 }, failure_persistence: None, ..Default::default() }
    }

    proptest! {
        #![proptest_config(config())]

        #[test]
        fn requests_are_parsed_as_they_were_emitted_wherever_they_are_split(
            requests in prop::collection::vec((any::<u32>(), any::<u32>(), any::<u32>(), prop::collection::vec(any::<u8>(), 0..200)), 0..8),
            step in 1usize..50,
        ) {
            let mut wire = VecDeque::new();
            for (op, id, tx, payload) in &requests {
                let parts: Vec<&[u8]> = payload.chunks(7).collect();
                Request { op: Op(*op), tx: Tx(*tx), parts: &parts }.emit(*id, &mut wire).unwrap();
            }
            let mut decoder = Decoder::new();
            let mut got = Vec::new();
            for mut piece in wire.make_contiguous().chunks(step) {
                while let Some(message) = decoder.next(&mut piece).unwrap() {
                    got.push((message.op.0, message.id, message.tx.0, message.payload.to_vec()));
                }
                prop_assert!(piece.is_empty());
            }
            prop_assert_eq!(got, requests);
        }

        #[test]
        fn no_bytes_make_the_decoder_panic_or_grow(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..80), 0..40)) {
            let mut decoder = Decoder::new();
            let room = decoder.bytes.capacity();
            'stream: for piece in &pieces {
                let mut piece = piece.as_slice();
                loop {
                    match decoder.next(&mut piece) {
                        Ok(Some(message)) => {
                            let _ = message.incoming();
                            let _ = Reply { op: Op::ERROR, id: 0, payload: message.payload }.result(Op::READ);
                            let _ = parse_perms(message.payload);
                        }
                        Ok(None) => break,
                        Err(Oversize { len }) => {
                            prop_assert!(len > 4096);
                            break 'stream;
                        }
                    }
                }
            }
            prop_assert_eq!(decoder.bytes.capacity(), room);
        }

        #[test]
        fn permissions_are_parsed_as_they_were_emitted(perms in prop::collection::vec((any::<u16>(), any::<bool>(), any::<bool>()), 0..6)) {
            let perms: Vec<Perm> = perms.into_iter().map(|(id, read, write)| Perm { domain: DomId(id), read, write }).collect();
            prop_assert_eq!(parse_perms(emit_perms(&perms).as_bytes()), Some(perms));
        }
    }

    #[test]
    fn messages_beyond_the_wire_limit_are_refused_both_ways() {
        for len in [4097u32, 65536, 1 << 31, u32::MAX] {
            let mut bytes = Vec::from([0; 12]);
            bytes.extend(len.to_le_bytes());
            assert_eq!(Decoder::new().next(&mut bytes.as_slice()), Err(Oversize { len }));
        }
        let mut out = VecDeque::new();
        let request = Request { op: Op::WRITE, tx: Tx::NONE, parts: &[&[0; 4000], &[0; 97]] };
        assert_eq!(request.emit(1, &mut out), Err(Cause::TooLong(4097)));
        assert!(out.is_empty());
        let request = Request { op: Op::WRITE, tx: Tx::NONE, parts: &[&[0; 4096]] };
        assert_eq!(request.emit(1, &mut out), Ok(()));
        assert_eq!(out.len(), 16 + 4096);
    }

    #[test]
    fn errors_are_words_and_an_unknown_one_is_kept_in_part() {
        for errno in Errno::ALL {
            let payload = [errno.word().as_bytes(), &[0]].concat();
            let reply = Reply { op: Op::ERROR, id: 1, payload: &payload };
            assert_eq!(reply.result(Op::READ), Err(Cause::Refused(errno)));
        }
        let reply = Reply { op: Op::ERROR, id: 1, payload: &[b'X'; 4096] };
        assert_eq!(reply.result(Op::READ), Err(Cause::UnknownRefusal("X".repeat(WORD_MAX))));
        let reply = Reply { op: Op::WRITE, id: 1, payload: b"OK\0" };
        assert_eq!(reply.result(Op::READ), Err(Cause::Malformed));
    }

    #[test]
    fn event_without_its_two_strings_is_odd() {
        let event = |payload| Message { op: Op::WATCH_EVENT, id: 0, tx: Tx::NONE, payload }.incoming();
        assert_eq!(event(b"a/b\x0017\0"), Incoming::Event(Event { path: b"a/b", token: b"17" }));
        for payload in [&b""[..], b"a", b"a\0", b"a\0b"] {
            assert_eq!(event(payload), Incoming::Odd);
        }
    }
}
