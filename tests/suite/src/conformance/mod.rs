//! Conformance: scripts of hypercalls and of xenstore operations, with their errors, whose transcripts are the same on every bed.
//!
//! A script is a list of named steps. Each makes one or a few calls, most of them wrong on purpose, and tells in a line what came of
//! it: error names, statuses, flags, and nothing that differs from boot to boot. The transcripts in `tests/suite/conformance` were
//! recorded from real Xen and from oxenstored; the mock is compared with them, and so are later versions of Xen.
//!
//! ```text
//! event: send on port 0 -> EINVAL
//! ────── step ───────────  outcome
//! ```
//!
//! | module | script |
//! |---|---|
//! | [`events`] | `event_channel_op` |
//! | [`grants`] | `grant_table_op`, and the entries of the table |
//! | [`system`] | all other hypercalls that a driver or its kernel makes |
//! | [`store`] | xenstore, message by message |

pub mod events;
pub mod grants;
pub mod store;
pub mod system;

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::Ordering::SeqCst;

use hypercall::call::grant_table::GrantOpError;
use hypercall::grant::GrantStatus;
use hypercall::{DomId, Nr, Platform, Port, XenError};
use xen_sys::xen::SharedInfo;

/// What the hypercall scripts say on Xen 4.17, within domain 0.
pub const HYPERCALLS: &str = include_str!("../../conformance/hypercalls.txt");
/// What the xenstore script says on oxenstored of Xen 4.17, within an unprivileged domain.
pub const XENSTORE: &str = include_str!("../../conformance/xenstore.txt");

/// Between a step and its outcome.
const ARROW: &str = " -> ";
/// What stands before the lines of a transcript file that are no steps.
const COMMENT: char = '#';

/// The steps so far and what came of them.
#[derive(Debug, Default)]
pub struct Transcript {
    lines: Vec<String>,
    steps: BTreeSet<String>,
}

impl Transcript {
    /// Adds a step.
    ///
    /// # Panics
    /// If there was a step of that name, or the text would not be one line: the script is wrong.
    pub fn step(&mut self, step: &str, outcome: impl fmt::Display) {
        let line = format!("{step}{ARROW}{outcome}");
        assert!(!line.contains(char::is_control) && line.trim_end() == line, "{line:?} is no line");
        assert!(self.steps.insert(step.to_string()), "{step:?} twice");
        self.lines.push(line);
    }

    /// Returns the lines.
    pub fn into_lines(self) -> Vec<String> {
        self.lines
    }
}

/// Compares a transcript with a recorded one, step by step; returns each difference as text.
pub fn differences(recorded: &str, lines: &[String]) -> Vec<String> {
    let recorded: Vec<&str> = recorded.lines().filter(|line| !line.starts_with(COMMENT)).collect();
    let split = |line: &'_ str| line.split_once(ARROW).map(|(step, outcome)| (step.to_string(), outcome.to_string()));
    let expected: BTreeMap<String, String> = recorded.iter().copied().filter_map(split).collect();
    let found: BTreeMap<String, String> = lines.iter().map(String::as_str).filter_map(split).collect();
    let mut differences = Vec::new();
    for step in recorded.iter().filter_map(|line| split(line)).map(|(step, _)| step) {
        match (expected.get(&step), found.get(&step)) {
            (Some(expected), Some(found)) if expected != found => {
                differences.push(format!("{step}\n    recorded: {expected}\n    here:     {found}"));
            }
            (_, None) => differences.push(format!("{step}: recorded, but not made here")),
            _ => {}
        }
    }
    let unknown = found.keys().filter(|step| !expected.contains_key(*step));
    differences.extend(unknown.map(|step| format!("{step}: made here, but not recorded")));
    if differences.is_empty() && recorded != lines {
        differences.push("the same steps, but in another order or with other lines between them".to_string());
    }
    differences
}

/// The domain that the hypercall scripts run in. Nothing else happens in it meanwhile, and it has one vcpu, whose events are masked.
#[derive(Debug)]
pub struct Subject<'a, P: Platform> {
    /// Its platform.
    pub platform: P,
    /// Its number.
    pub id: DomId,
    /// The page that it shares with the hypervisor.
    pub shared: &'a SharedInfo,
}

/// Runs all hypercall scripts.
pub fn hypercalls<P: Platform>(subject: &Subject<'_, P>) -> Vec<String> {
    let mut transcript = Transcript::default();
    events::run(subject, &mut transcript);
    grants::run(subject, &mut transcript);
    system::run(subject, &mut transcript);
    transcript.into_lines()
}

/// A domain that there isn't.
const NOBODY: DomId = DomId(4242);
/// An address within Xen's own, at which no domain can read or write.
const XENS: usize = xen_sys::arch_x86::xen_x86_64::HYPERVISOR_VIRT_START + 0x1000;

impl<P: Platform> Subject<'_, P> {
    /// Makes a hypercall of the common form, and tells its answer.
    ///
    /// # Safety
    /// As for [`hypercall::Hypervisor::hypercall`], with `arg` for what the command reads and writes.
    unsafe fn op<T>(&self, nr: Nr, cmd: u32, arg: &mut T, count: usize) -> String {
        let arg = core::ptr::from_mut(arg).expose_provenance();
        // SAFETY: the caller's.
        unsafe { self.raw(nr, [cmd as usize, arg, count, 0, 0]) }
    }

    /// Makes any hypercall, and tells its answer.
    ///
    /// # Safety
    /// As for [`hypercall::Hypervisor::hypercall`].
    unsafe fn raw(&self, nr: Nr, args: [usize; 5]) -> String {
        // SAFETY: the caller's.
        answer(unsafe { self.platform.hypercall(nr, args) })
    }

    fn place(&self, port: Port) -> (usize, usize) {
        (port.0 as usize / usize::BITS as usize, 1 << (port.0 % usize::BITS))
    }

    fn is_pending(&self, port: Port) -> bool {
        let (word, bit) = self.place(port);
        self.shared.evtchn_pending[word].load(SeqCst) & bit != 0
    }

    /// Tells whether an event is pending, and forgets it.
    fn take(&self, port: Port) -> &'static str {
        let (word, bit) = self.place(port);
        let was = self.shared.evtchn_pending[word].fetch_and(!bit, SeqCst) & bit != 0;
        if was { "pending" } else { "not pending" }
    }

    /// Tells whether Xen wants the vcpu to look at its events, and forgets it.
    fn take_upcall(&self) -> &'static str {
        let vcpu = &self.shared.vcpu_info[0];
        vcpu.evtchn_pending_sel.store(0, SeqCst);
        if vcpu.evtchn_upcall_pending.swap(0, SeqCst) != 0 { "upcall" } else { "no upcall" }
    }
}

/// Tells a plain answer.
fn answer(ret: isize) -> String {
    told(hypercall::error::from_ret(ret))
}

/// Tells an answer that may be a number.
fn told(result: Result<usize, XenError>) -> String {
    match result {
        Ok(0) => "ok".to_string(),
        Ok(number) => format!("ok, {number}"),
        Err(error) => error_name(error),
    }
}

/// Tells an answer, whatever its value.
fn outcome<T>(result: &Result<T, XenError>) -> String {
    result.as_ref().map_or_else(|error| error_name(*error), |_| "ok".to_string())
}

fn error_name(error: XenError) -> String {
    error.name().map_or_else(|| format!("error {}", error.0), ToString::to_string)
}

/// Tells the status of a grant operation.
fn status(status: i16) -> String {
    GrantStatus(status).name().map_or_else(|| format!("status {status}"), ToString::to_string)
}

/// Tells how a grant operation went.
fn grant_outcome<T>(result: &Result<T, GrantOpError>) -> String {
    match result {
        Ok(_) => "GNTST_okay".to_string(),
        Err(GrantOpError::Xen(error)) => error_name(*error),
        Err(GrantOpError::Status(failed)) => status(failed.0),
    }
}
