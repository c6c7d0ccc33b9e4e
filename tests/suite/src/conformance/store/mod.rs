//! Xenstore, message by message: every operation that an unprivileged domain may ask for, and all the ways to be refused.
//!
//! What a step tells is the whole answer, in the order in which it came: events before the reply, the reply, events after it. A NUL
//! is written as `|`, the domain's own number as `ME`.

mod client;
mod nodes;
mod others;
mod permissions;
mod transactions;
mod watches;

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use hypercall::Platform;
use xen_sys::io::xs_wire::XsdSockmsgType as Op;

pub use client::Link;
use client::{Client, Got};

use super::Transcript;

/// Runs the script. It is the domain's first and last user of its store: at the end the ring is out of use.
///
/// # Panics
/// If xenstored doesn't answer, or doesn't do what all the rest stands on.
pub fn run<P: Platform>(link: Link<'_, P>) -> Vec<String> {
    let mut script = Script { client: Client::new(link), transcript: Transcript::default() };
    script.paths();
    script.writing();
    script.directories();
    script.removing();
    script.forbidden();
    script.permissions();
    script.transactions();
    script.conflicts();
    script.transaction_limits();
    script.watches();
    script.watched_changes();
    script.watch_limits();
    script.others();
    script.streams();
    script.limits();
    script.home_is_lost();
    script.oversize();
    script.transcript.into_lines()
}

struct Script<'a, P: Platform> {
    client: Client<'a, P>,
    transcript: Transcript,
}

impl<P: Platform> Script<'_, P> {
    fn tell(&mut self, step: &str, outcome: impl core::fmt::Display) {
        self.transcript.step(&format!("store: {step}"), outcome);
    }

    /// Makes a request outside of transactions and tells all that came of it.
    fn step(&mut self, step: &str, op: Op, payload: impl AsRef<[u8]>) {
        self.step_in(step, 0, op, payload);
    }

    /// Makes a request within a transaction and tells all that came of it.
    fn step_in(&mut self, step: &str, tx: u32, op: Op, payload: impl AsRef<[u8]>) {
        let got = self.client.call(op, tx, payload.as_ref());
        let text = self.told(op, tx, &got);
        self.tell(step, text);
    }

    /// Makes a request that is to work, for steps about something else.
    fn must(&mut self, op: Op, payload: impl AsRef<[u8]>) {
        self.must_in(0, op, payload);
    }

    fn must_in(&mut self, tx: u32, op: Op, payload: impl AsRef<[u8]>) {
        let payload = payload.as_ref();
        let got = self.client.call(op, tx, payload);
        let refused = got.reply.op == Op::ERROR;
        assert!(!refused, "{op:?} {:?}: {}", String::from_utf8_lossy(payload), self.told(op, tx, &got));
    }

    /// Starts a transaction.
    fn start(&mut self) -> u32 {
        let got = self.client.call(Op::TRANSACTION_START, 0, b"\0");
        number(&got.reply.payload)
            .unwrap_or_else(|| panic!("TRANSACTION_START: {}", self.client.text(&got.reply.payload)))
    }

    /// Tells all that came of a request of `op` in the transaction `tx`.
    fn told(&self, op: Op, tx: u32, got: &Got) -> String {
        let reply = &got.reply;
        let mut text = match reply.op {
            Op::ERROR => self.client.text(reply.payload.strip_suffix(&[0]).unwrap_or(&reply.payload)),
            answered if answered != op => format!("operation {} {:?}", answered.0, self.client.text(&reply.payload)),
            // The protocol says nothing of the order of children.
            Op::DIRECTORY => format!("{:?}", self.client.text(&sorted(&reply.payload))),
            Op::TRANSACTION_START => {
                String::from(if number(&reply.payload).is_some_and(|id| id > 0) { "a number" } else { "no number" })
            }
            Op::GET_PERMS => format!("{:?}", self.client.permissions(&reply.payload)),
            _ => format!("{:?}", self.client.text(&reply.payload)),
        };
        if reply.tx != tx {
            text = format!("{text} in transaction {}", if reply.tx == 0 { "0" } else { "?" });
        }
        for (events, place) in [(&got.before, "before"), (&got.after, "after")] {
            if !events.is_empty() {
                let events: Vec<String> = events.iter().map(|event| self.client.text(event)).collect();
                text = format!("{text}, {place}: {}", events.join(" "));
            }
        }
        text
    }
}

/// Returns the names of a list in order.
fn sorted(names: &[u8]) -> Vec<u8> {
    let mut names: Vec<&[u8]> = names.split_inclusive(|byte| *byte == 0).collect();
    names.sort_unstable();
    names.concat()
}

/// Parses a decimal number with a NUL behind it.
fn number(payload: &[u8]) -> Option<u32> {
    core::str::from_utf8(payload.strip_suffix(&[0])?).ok()?.parse().ok()
}
