//! Runs a program in a second domain, and is its console: `pair PROGRAM [key=value...]`. The second domain's image is the
//! module behind this domain's own.

use alloc::format;
use alloc::string::{String, ToString};
use core::sync::atomic::{Ordering::Acquire, Ordering::Relaxed, Ordering::Release};

use hypercall::Platform;
use hypercall::call::event_channel;
use xen_sys::io::console::XenconsInterface;
use xen_sys::sched::SHUTDOWN_poweroff;

use super::Args;
use crate::boot::start_info;
use crate::domu::{self, DomU, Ended, Foreign};
use crate::{Bare, println, shared};

/// Pages of the second domain: 64 MiB.
const PAGES: usize = 16384;
/// How often the domain is asked whether it still runs, at least.
const LOOK_NS: u64 = 10_000_000;
/// How long the program may run.
const LIMIT_NS: u64 = 60_000_000_000;

pub(super) fn run(args: &Args<'_>) -> Result<(), String> {
    let domain = start(args.0)?;
    println!("pair: {:?} runs {:?}", domain.id, args.0);
    let ended = watch(&domain);
    finish(domain, ended?)
}

/// Starts the second domain with that command line.
pub(super) fn start(command_line: &str) -> Result<DomU, String> {
    let info = start_info();
    if info.mod_len == 0 {
        return Err("no module: the second domain's image must follow this one's".to_string());
    }
    // SAFETY: Xen mapped the module in the boot region, and nothing writes there.
    let elf = unsafe { core::slice::from_raw_parts(info.mod_start as *const u8, info.mod_len) };
    domu::start(elf, PAGES, command_line)
}

/// Takes the domain apart and judges how it ended.
pub(super) fn finish(domain: DomU, ended: Ended) -> Result<(), String> {
    let destroyed = domain.destroy();
    match ended {
        Ended(reason) if reason == SHUTDOWN_poweroff => {
            destroyed.map_err(|error| format!("the domain could not be destroyed: {error}"))
        }
        Ended(reason) => Err(format!("the second domain has shut down for reason {reason}")),
    }
}

/// Prints what the domain prints until it has ended.
fn watch(domain: &DomU) -> Result<Ended, String> {
    let mut terminal = Terminal::new(domain)?;
    let limit = Bare.now_ns() + LIMIT_NS;
    while Bare.now_ns() < limit {
        // Asked before the ring is read: what was printed last is read still.
        let ended = domain.ended().map_err(|error| format!("getdomaininfo: {error}"))?;
        shared::clear(domain.console);
        terminal.read(|_| {});
        if let Some(ended) = ended {
            return Ok(ended);
        }
        Bare.wait(&[domain.console], Bare.now_ns() + LOOK_NS);
    }
    Err(format!("still running after {} s", LIMIT_NS / 1_000_000_000))
}

/// What stands at the other end of the second domain's console.
pub(super) struct Terminal<'a> {
    domain: &'a DomU,
    foreign: Foreign,
    /// The line that has not ended yet.
    line: String,
}

impl<'a> Terminal<'a> {
    pub(super) fn new(domain: &'a DomU) -> Result<Self, String> {
        let mut foreign = Foreign::new(domain.id)?;
        foreign.map(domain.console_ring)?;
        Ok(Self { domain, foreign, line: String::new() })
    }

    fn ring(&self) -> &XenconsInterface {
        // SAFETY: the page is mapped there as long as `foreign` lives, and every byte of the type is atomic.
        unsafe { self.foreign.address().cast().as_ref() }
    }

    /// Reads what is in the ring, and prints and hands over whole lines.
    pub(super) fn read(&mut self, mut take: impl FnMut(&str)) {
        let mut text = core::mem::take(&mut self.line);
        let ring = self.ring();
        let start = ring.out_cons.load(Relaxed);
        // The bytes are read after the index that published them; no more than the ring holds, whatever the other side claims.
        let count = ring.out_prod.load(Acquire).wrapping_sub(start).min(ring.out.len() as u32);
        for at in (0..count).map(|step| start.wrapping_add(step)) {
            match ring.out[at as usize % ring.out.len()].load(Relaxed) {
                b'\r' => {}
                b'\n' => {
                    println!("domU: {text}");
                    take(&text);
                    text.clear();
                }
                byte => text.push(char::from(byte)),
            }
        }
        // The place is free for the other side only once it was read.
        ring.out_cons.store(start.wrapping_add(count), Release);
        if count != 0 {
            self.notify();
        }
        self.line = text;
    }

    /// Types, as far as there is room.
    pub(super) fn write(&mut self, text: &[u8]) {
        let ring = self.ring();
        let start = ring.in_prod.load(Relaxed);
        let room = ring.r#in.len() as u32 - start.wrapping_sub(ring.in_cons.load(Acquire)).min(ring.r#in.len() as u32);
        let mut at = start;
        for &byte in text.iter().take(room as usize) {
            ring.r#in[at as usize % ring.r#in.len()].store(byte, Relaxed);
            at = at.wrapping_add(1);
        }
        // The bytes before the index that publishes them.
        ring.in_prod.store(at, Release);
        self.notify();
    }

    fn notify(&self) {
        let _ = event_channel::send(&Bare, self.domain.console);
    }
}

impl Drop for Terminal<'_> {
    fn drop(&mut self) {
        if !self.line.is_empty() {
            println!("domU: {}", self.line);
        }
    }
}
