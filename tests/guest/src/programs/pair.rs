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
    let info = start_info();
    if info.mod_len == 0 {
        return Err("no module: the second domain's image must follow this one's".to_string());
    }
    // SAFETY: Xen mapped the module in the boot region, and nothing writes there.
    let elf = unsafe { core::slice::from_raw_parts(info.mod_start as *const u8, info.mod_len) };
    let domain = domu::start(elf, PAGES, args.0)?;
    println!("pair: {:?} runs {:?}", domain.id, args.0);
    let ended = watch(&domain);
    let destroyed = domain.destroy();
    match ended? {
        Ended(reason) if reason == SHUTDOWN_poweroff => {
            destroyed.map_err(|error| format!("the domain could not be destroyed: {error}"))
        }
        Ended(reason) => Err(format!("the second domain has shut down for reason {reason}")),
    }
}

/// Prints what the domain prints until it has ended.
fn watch(domain: &DomU) -> Result<Ended, String> {
    let mut foreign = Foreign::new(domain.id)?;
    let ring = foreign.map(domain.console_ring)?.cast::<XenconsInterface>();
    // SAFETY: a page is mapped there as long as `foreign` lives, and every byte of the type is atomic.
    let ring = unsafe { ring.as_ref() };
    let mut line = String::new();
    let limit = Bare.now_ns() + LIMIT_NS;
    while Bare.now_ns() < limit {
        // Asked before the ring is read: what was printed last is read still.
        let ended = domain.ended().map_err(|error| format!("getdomaininfo: {error}"))?;
        shared::clear(domain.console);
        if read(ring, &mut line) {
            let _ = event_channel::send(&Bare, domain.console);
        }
        if let Some(ended) = ended {
            if !line.is_empty() {
                println!("domU: {line}");
            }
            return Ok(ended);
        }
        Bare.wait(&[domain.console], Bare.now_ns() + LOOK_NS);
    }
    Err(format!("still running after {} s", LIMIT_NS / 1_000_000_000))
}

/// Reads what is in the ring and prints whole lines; tells whether there was anything.
fn read(ring: &XenconsInterface, line: &mut String) -> bool {
    let start = ring.out_cons.load(Relaxed);
    let mut at = start;
    // The bytes are read after the index that published them.
    let end = ring.out_prod.load(Acquire);
    // No more than the ring holds, whatever the other side claims.
    for _ in 0..end.wrapping_sub(start).min(ring.out.len() as u32) {
        match ring.out[at as usize % ring.out.len()].load(Relaxed) {
            b'\r' => {}
            b'\n' => {
                println!("domU: {line}");
                line.clear();
            }
            byte => line.push(char::from(byte)),
        }
        at = at.wrapping_add(1);
    }
    // The place is free for the other side only once it was read.
    ring.out_cons.store(at, Release);
    at != start
}
