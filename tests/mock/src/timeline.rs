//! A trace as a timeline: the Trace Event Format, as Perfetto and chrome://tracing read it.
//!
//! Each domain is a process with a track for each sort of thing, and the programs are one, with a track each. What happens
//! is a slice, so that arrows can begin and end at it: from where an event was sent to where it has come.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use hypercall::DomId;
use serde_json::{Value, json};

use crate::trace::{Answer, Entry, Trace, What};

/// The process of the programs.
const PROGRAMS: u64 = 1;
/// The process of what the machine does by itself.
const MACHINE: u64 = 2;
/// The process of domain 0; those of the others follow.
const DOMAINS: u64 = 10;
/// Tracks that a process may have: a track's number is its own in the whole timeline.
const TRACKS: u64 = 1000;

/// The tracks of a domain.
const NAMES: [&str; 5] = ["hypercalls", "events", "grants", "store", "log, life and faults"];

impl Trace {
    /// Returns the timeline, in which the domains have these names; else, their numbers.
    pub fn timeline(&self, names: &BTreeMap<DomId, &str>) -> Value {
        let mut timeline = Timeline::default();
        self.entries.iter().for_each(|entry| timeline.add(entry));
        let mut all = timeline.tracks(names);
        all.append(&mut timeline.events);
        json!({
            "displayTimeUnit": "ns",
            "otherData": { "dropped": self.dropped, "time": "at least 100 ns from one entry to the next" },
            "traceEvents": all,
        })
    }

    /// Writes the timeline.
    ///
    /// # Errors
    /// Those of `to`.
    pub fn write_timeline(&self, names: &BTreeMap<DomId, &str>, to: impl io::Write) -> io::Result<()> {
        Ok(serde_json::to_writer(to, &self.timeline(names))?)
    }
}

#[derive(Default)]
struct Timeline {
    events: Vec<Value>,
    /// The tracks of domains and of the machine that have something on them.
    used: BTreeSet<(u64, u64)>,
    /// The tracks of programs, by name.
    programs: BTreeMap<&'static str, u64>,
    /// Where events were sent: process, track, time.
    sent: BTreeMap<u64, (u64, u64, f64)>,
    arrows: u64,
}

/// Returns microseconds, as the format wants them.
fn micros(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1000.0
}

impl Timeline {
    /// Returns the process and the track of an entry.
    fn place(&mut self, entry: &Entry) -> (u64, u64) {
        let process = entry.domain.map_or(MACHINE, |dom| DOMAINS + u64::from(dom.0));
        let track = match entry.what {
            What::Hypercall { .. } => 0,
            What::Sent { .. } | What::Arrived { .. } | What::Waits(_) | What::Woke => 1,
            What::Grant(_) => 2,
            What::Store(..) => 3,
            What::Fault(_) | What::Log(..) | What::Life(_) => 4,
            What::Program(name) => {
                let next = self.programs.len() as u64;
                let track = *self.programs.entry(name).or_insert(next);
                return (PROGRAMS, PROGRAMS * TRACKS + track);
            }
        };
        self.used.insert((process, track));
        (process, process * TRACKS + track)
    }

    fn add(&mut self, entry: &Entry) {
        let (pid, tid) = self.place(entry);
        let (ts, dur) = (micros(entry.drawn_ns), micros(entry.drawn_end_ns - entry.drawn_ns));
        let text = entry.what.to_string();
        let (name, category) = match &entry.what {
            What::Hypercall { kind, .. } => (kind.to_string(), "hypercall"),
            What::Sent { .. } | What::Arrived { .. } | What::Waits(_) | What::Woke => (text.clone(), "event"),
            What::Grant(words) => (words.clone(), "grant"),
            What::Store(_, words) => (words.clone(), "store"),
            What::Fault(_) => (text.clone(), "fault"),
            What::Log(_, line) => (line.clone(), "log"),
            What::Life(words) => (words.clone(), "life"),
            What::Program(name) => ((*name).to_string(), "program"),
        };
        let mut args = json!({ "time_ns": entry.time_ns, "what": text });
        if let What::Hypercall { words, result, .. } = &entry.what {
            args["arguments"] = words.as_str().into();
            args["result"] = Answer(*result).to_string().into();
        }
        let head = json!({ "name": name, "cat": category, "pid": pid, "tid": tid, "ts": ts, "args": args });
        let head = match entry.what {
            What::Fault(_) | What::Log(..) | What::Life(_) => with(head, json!({ "ph": "i", "s": "t" })),
            _ => with(head, json!({ "ph": "X", "dur": dur })),
        };
        self.events.push(head);
        match entry.what {
            What::Sent { event, .. } => {
                self.sent.insert(event, (pid, tid, ts));
            }
            What::Arrived { event, .. } => self.arrow(event, (pid, tid, ts)),
            _ => {}
        }
    }

    /// Draws the arrow of an event that has arrived, if it was seen to be sent.
    fn arrow(&mut self, event: u64, to: (u64, u64, f64)) {
        let Some(from) = self.sent.get(&event).copied() else { return };
        self.arrows += 1;
        for (phase, (pid, tid, ts)) in [("s", from), ("f", to)] {
            let arrow = json!({
                "name": "event", "cat": "event", "id": self.arrows, "ph": phase, "pid": pid, "tid": tid, "ts": ts,
            });
            // It ends at the slice that it points into, not at the next one.
            self.events.push(if phase == "f" { with(arrow, json!({ "bp": "e" })) } else { arrow });
        }
    }

    /// Names processes and tracks.
    fn tracks(&self, names: &BTreeMap<DomId, &str>) -> Vec<Value> {
        let mut all = Vec::new();
        let mut name = |what: &str, pid: u64, tid: u64, name: &str| {
            all.push(json!({ "ph": "M", "name": what, "pid": pid, "tid": tid, "args": { "name": name } }));
        };
        let processes: BTreeSet<u64> = self.used.iter().map(|(process, _)| *process).collect();
        for process in processes {
            let domain = process.checked_sub(DOMAINS).map(|dom| DomId(dom as u16));
            let text = match domain {
                None => "machine".into(),
                Some(dom) => names.get(&dom).map_or(format!("domain {}", dom.0), |name| format!("{name} ({})", dom.0)),
            };
            name("process_name", process, process * TRACKS, &text);
        }
        for (process, track) in &self.used {
            name("thread_name", *process, process * TRACKS + track, NAMES[*track as usize]);
        }
        if !self.programs.is_empty() {
            name("process_name", PROGRAMS, PROGRAMS * TRACKS, "programs");
        }
        for (program, track) in &self.programs {
            name("thread_name", PROGRAMS, PROGRAMS * TRACKS + track, program);
        }
        all
    }
}

/// Returns an object with more members.
fn with(mut object: Value, more: Value) -> Value {
    if let (Value::Object(object), Value::Object(more)) = (&mut object, more) {
        object.extend(more);
    }
    object
}
