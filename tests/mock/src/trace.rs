//! What has happened on a machine, entry by entry: a recorder that is off until somebody wants it.
//!
//! Nothing in an entry is the host's: no address, no real time on a deterministic machine. So the same seed gives the same
//! trace.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;

use hypercall::{DomId, Level, Port, XenError};
use xen_sys::grant_table::{GTF_permit_access, GTF_readonly, GTF_type_mask};

use crate::faults::Fault;
use crate::ledger::Kind;
use crate::state::State;

/// Between two entries there is at least so much on the drawn line, since virtual time stands still while a domain
/// works.
const STEP_NS: u64 = 100;

/// What became of an event at its port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// The port is pending, and the domain is told.
    Delivered,
    /// The port is pending; it is masked, so that the domain is not told.
    Masked,
    /// It was pending before: the two are one.
    Merged,
    /// The port is xenstored's: it looks at the ring.
    Xenstored,
    /// There is no such port any more.
    Closed,
}

/// What a message between a domain and xenstored is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// What the domain asks.
    Request,
    /// The answer.
    Reply,
    /// The event of a watch.
    Watch,
}

/// What has happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// The domain made a hypercall.
    Hypercall {
        /// Its kind.
        kind: Kind,
        /// Its arguments, and what came back in them.
        words: String,
        /// The plain answer.
        result: isize,
    },
    /// The domain, or the machine where there is no domain, sent an event.
    Sent {
        /// Its number, by which its arrival is known.
        event: u64,
        /// The sender's port, if it has one.
        from: Option<Port>,
        /// Where it goes; nowhere if the other end is not bound.
        to: Option<(DomId, Port)>,
    },
    /// An event has come to a port of the domain.
    Arrived {
        /// Its number.
        event: u64,
        /// The port.
        port: Port,
        /// What became of it.
        how: Arrival,
    },
    /// The domain waits, for an event of these ports or any upcall.
    Waits(Vec<Port>),
    /// It has waited long enough.
    Woke,
    /// The domain has written an entry of its grant table, or used a grant of another's.
    Grant(String),
    /// A message between the domain and xenstored.
    Store(Message, String),
    /// A fault that was ordered has struck.
    Fault(Fault),
    /// A program had its turn, and something has happened in it.
    Program(&'static str),
    /// The domain has written a line to its log.
    Log(Level, String),
    /// The domain was made, was killed, or has shut itself down.
    Life(String),
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hypercall { kind, words, result } => write!(f, "hypercall {kind}: {words} = {}", Answer(*result)),
            Self::Sent { event, from, to } => {
                write!(f, "event #{event}")?;
                from.map_or(Ok(()), |from| write!(f, " from port {}", from.0))?;
                match to {
                    Some((dom, port)) => write!(f, " to port {} of domain {}", port.0, dom.0),
                    None => f.write_str(" to nobody"),
                }
            }
            Self::Arrived { event, port, how } => write!(f, "event #{event} at port {}: {how:?}", port.0),
            Self::Waits(ports) if ports.is_empty() => f.write_str("waits for any event"),
            Self::Waits(ports) => {
                let ports: Vec<String> = ports.iter().map(|port| port.0.to_string()).collect();
                write!(f, "waits for port {}", ports.join(", "))
            }
            Self::Woke => f.write_str("wakes"),
            Self::Grant(words) => write!(f, "grant {words}"),
            Self::Store(message, words) => write!(f, "store {message:?}: {words}"),
            Self::Fault(fault) => write!(f, "FAULT {}", fault.code().trim_start_matches("Fault::")),
            Self::Program(name) => write!(f, "program {name}"),
            Self::Log(level, line) => write!(f, "log {level:?}: {line}"),
            Self::Life(words) => f.write_str(words),
        }
    }
}

/// The plain answer of a hypercall, as it is written.
pub(crate) struct Answer(pub(crate) isize);

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 < 0 { write!(f, "-{}", XenError(-(self.0 as i32))) } else { self.0.fmt(f) }
    }
}

/// Something that has happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The machine's time.
    pub time_ns: u64,
    /// Where it begins on the drawn line.
    pub drawn_ns: u64,
    /// Where it ends there: what it has caused lies in between.
    pub drawn_end_ns: u64,
    /// Whose it is; none if it is the machine's own, or a program's.
    pub domain: Option<DomId>,
    /// What it is.
    pub what: What,
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>6}.{:09} ", self.time_ns / 1_000_000_000, self.time_ns % 1_000_000_000)?;
        match self.domain {
            Some(dom) => write!(f, "domain {:<3}", dom.0)?,
            None => f.write_str("machine   ")?,
        }
        write!(f, " {}", self.what)
    }
}

/// What has happened on a machine, of which the oldest may be missing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    /// What has happened, in its order.
    pub entries: Vec<Entry>,
    /// How many entries before these there was no room for.
    pub dropped: u64,
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.dropped > 0 {
            writeln!(f, "{} older entries were dropped", self.dropped)?;
        }
        self.entries.iter().try_for_each(|entry| writeln!(f, "{entry}"))
    }
}

/// An entry that has begun.
#[derive(Clone, Copy)]
pub(crate) struct Begun(u64);

/// An entry of a grant table, without the marks that the hypervisor sets.
type Granted = (u16, DomId, u32);

/// Takes down what happens.
#[derive(Default)]
pub(crate) struct Recorder {
    /// Entries that it holds; 0 while it is off.
    bound: usize,
    entries: VecDeque<Entry>,
    dropped: u64,
    /// Where the drawn line ends.
    drawn_ns: u64,
    /// The program whose turn it is.
    program: Option<Begun>,
    /// The grant tables as they were last seen.
    tables: BTreeMap<DomId, Vec<Granted>>,
}

impl Recorder {
    pub(crate) fn is_on(&self) -> bool {
        self.bound > 0
    }

    fn stamp(&mut self, now: u64) -> u64 {
        self.drawn_ns = now.max(self.drawn_ns + STEP_NS);
        self.drawn_ns
    }

    fn push(&mut self, time_ns: u64, domain: Option<DomId>, what: What) -> Begun {
        if self.entries.len() >= self.bound {
            self.entries.pop_front();
            self.dropped += 1;
        }
        let drawn_ns = self.stamp(time_ns);
        self.entries.push_back(Entry { time_ns, drawn_ns, drawn_end_ns: drawn_ns + STEP_NS / 2, domain, what });
        Begun(self.dropped + self.entries.len() as u64 - 1)
    }

    /// Returns an entry that has begun, if it is still there.
    fn get(&mut self, Begun(at): Begun) -> Option<&mut Entry> {
        self.entries.get_mut(usize::try_from(at.checked_sub(self.dropped)?).ok()?)
    }

    fn end(&mut self, begun: Begun, now: u64) {
        let drawn_end_ns = self.stamp(now);
        if let Some(entry) = self.get(begun) {
            entry.drawn_end_ns = drawn_end_ns;
        }
    }
}

impl State {
    /// Begins to record, with room for so many entries, or ends it, with none.
    pub(crate) fn record(&mut self, bound: usize) {
        self.trace = Recorder { bound, ..Recorder::default() };
        if bound > 0 {
            // What is granted already is no news.
            let domains: Vec<DomId> = self.domains.keys().copied().collect();
            for dom in domains {
                let table = self.table(dom);
                self.trace.tables.insert(dom, table);
            }
        }
    }

    pub(crate) fn recorded(&self) -> Trace {
        Trace { entries: self.trace.entries.iter().cloned().collect(), dropped: self.trace.dropped }
    }

    /// Takes down something, if anything is taken down.
    pub(crate) fn note(&mut self, domain: Option<DomId>, what: impl FnOnce() -> What) {
        if self.trace.is_on() {
            let now = self.now();
            self.trace.push(now, domain, what());
        }
    }

    /// Takes down a hypercall, before it has done anything.
    pub(crate) fn note_call(&mut self, caller: DomId, kind: Kind) -> Option<Begun> {
        if !self.trace.is_on() {
            return None;
        }
        self.note_grants(caller);
        let now = self.now();
        Some(self.trace.push(now, Some(caller), What::Hypercall { kind, words: String::new(), result: 0 }))
    }

    /// Takes down what became of a hypercall.
    pub(crate) fn note_answer(&mut self, begun: Begun, said: String, answer: isize) {
        let now = self.now();
        self.trace.end(begun, now);
        if let Some(Entry { what: What::Hypercall { words, result, .. }, .. }) = self.trace.get(begun) {
            (*words, *result) = (said, answer);
        }
    }

    /// Takes down whose turn it is, or that nobody's is. A turn in which nothing has happened is forgotten.
    pub(crate) fn note_turn(&mut self, program: Option<&'static str>) {
        if !self.trace.is_on() {
            return;
        }
        let now = self.now();
        if let Some(begun) = self.trace.program.take() {
            let newest = self.trace.dropped + self.trace.entries.len() as u64 - 1;
            if begun.0 == newest {
                self.trace.entries.pop_back();
                self.trace.drawn_ns -= STEP_NS.min(self.trace.drawn_ns);
            } else {
                self.trace.end(begun, now);
            }
        }
        self.trace.program = program.map(|name| self.trace.push(now, None, What::Program(name)));
    }

    /// Returns the grant table of a domain as the domain has written it.
    fn table(&self, dom: DomId) -> Vec<Granted> {
        let permits = |entry: &Granted| entry.0 & GTF_type_mask == GTF_permit_access;
        self.grant_entries(dom).map(|entry| if permits(&entry) { entry } else { (0, DomId(0), 0) }).collect()
    }

    /// Takes down what a domain has written into its grant table since it was last looked at: that needs no hypercall, so
    /// it is seen at the next one.
    fn note_grants(&mut self, dom: DomId) {
        let now = self.table(dom);
        let before = self.trace.tables.insert(dom, now.clone()).unwrap_or_default();
        let nothing = (0, DomId(0), 0);
        for (gref, entry) in now.into_iter().enumerate() {
            let earlier = before.get(gref).copied().unwrap_or(nothing);
            if entry == earlier {
                continue;
            }
            if earlier != nothing {
                self.note(Some(dom), || What::Grant(format!("{gref} ended")));
            }
            let (flags, user, frame) = entry;
            if entry != nothing {
                let access = if flags & GTF_readonly == 0 { "" } else { ", read-only" };
                let words = || What::Grant(format!("{gref} to domain {}: frame {frame}{access}", user.0));
                self.note(Some(dom), words);
            }
        }
    }
}
