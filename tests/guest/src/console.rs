//! Output. The first domain prints by hypercall, every other one through its console ring, whose other end is
//! xenconsoled: polled, until a driver takes over.

use core::fmt::{self, Write};
use core::sync::atomic::{Ordering::Acquire, Ordering::Relaxed, Ordering::Release};

use hypercall::call::{console, event_channel, sched};
use spin::Mutex;
use xen_sys::io::console::XenconsInterface;
use xen_sys::{Mfn, Port};

use crate::Bare;
use crate::boot::{is_dom0, start_info};
use crate::memory::frames;

/// Prints a line.
#[macro_export]
macro_rules! println {
    ($($argument:tt)*) => { $crate::console::print_line(format_args!($($argument)*)) };
}

/// How often another domain gets the processor before output to a full ring is given up: nobody reads there.
const PATIENCE: u32 = 100_000;

/// How a console driver writes.
pub type Output = fn(&[u8]);

/// A console that has replaced the polled one.
static DRIVER: Mutex<Option<Output>> = Mutex::new(None);

/// Hands all output to `driver`, or back to the polled console. The driver must not print, and must be able to wait by
/// itself: it is called for a panic, too. Should it be the driver that panics, the polled console is used again.
pub fn set_driver(driver: Option<Output>) {
    *DRIVER.lock() = driver;
}

/// Prints `line` and ends it.
pub fn print_line(line: fmt::Arguments<'_>) {
    let mut pieces = Pieces { bytes: [0; 256], filled: 0 };
    // Writing to the pieces never fails; what may fail is a `Display` of someone else's, and then the rest is missing.
    let _ = pieces.write_fmt(line);
    let _ = pieces.write_str("\n");
    pieces.flush();
}

/// Gathers small pieces, so that a line is one hypercall.
struct Pieces {
    bytes: [u8; 256],
    filled: usize,
}

impl Pieces {
    fn flush(&mut self) {
        write(&self.bytes[..self.filled]);
        self.filled = 0;
    }
}

impl Write for Pieces {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for &byte in text.as_bytes() {
            if self.filled == self.bytes.len() {
                self.flush();
            }
            self.bytes[self.filled] = byte;
            self.filled += 1;
        }
        Ok(())
    }
}

/// Writes bytes as they are.
pub fn write(bytes: &[u8]) {
    // Taken only for a moment; should a fault have come in that very moment, the polled way is right.
    let driver = DRIVER.try_lock().and_then(|driver| *driver);
    match driver {
        Some(driver) => driver(bytes),
        // Whether that worked is nothing that could be said anywhere.
        None if is_dom0() => drop(console::write(&Bare, bytes)),
        None => write_ring(bytes),
    }
}

/// Writes through the console ring; a line feed moves to the line's start, too, as terminals want it.
fn write_ring(bytes: &[u8]) {
    let (ring, port) = ring();
    for &byte in bytes {
        if byte == b'\n' {
            put(ring, port, b'\r');
        }
        put(ring, port, byte);
    }
    let _ = event_channel::send(&Bare, port);
}

/// Puts one byte into the ring, or drops it if nobody makes room.
fn put(ring: &XenconsInterface, port: Port, byte: u8) {
    let at = ring.out_prod.load(Relaxed);
    let mut tries = 0;
    // The reader moves its index on when it has read: only then may its place be overwritten.
    while at.wrapping_sub(ring.out_cons.load(Acquire)) >= ring.out.len() as u32 {
        tries += 1;
        if tries > PATIENCE {
            return;
        }
        let _ = event_channel::send(&Bare, port);
        let _ = sched::yield_now(&Bare);
    }
    ring.out[at as usize % ring.out.len()].store(byte, Relaxed);
    // The byte before the index that publishes it.
    ring.out_prod.store(at.wrapping_add(1), Release);
}

/// Waits until the other end has read all output, or doesn't any more: what is in the ring when the domain is saved may come out twice.
pub fn drain() {
    let (ring, port) = ring();
    for _ in 0..PATIENCE {
        if ring.out_prod.load(Relaxed) == ring.out_cons.load(Acquire) {
            return;
        }
        let _ = event_channel::send(&Bare, port);
        let _ = sched::yield_now(&Bare);
    }
}

/// Returns the console ring and its port, of a domain that has one: every one but the first.
///
/// # Panics
/// In the first domain.
pub fn ring() -> (&'static XenconsInterface, Port) {
    assert!(!is_dom0(), "the first domain has no console ring");
    // SAFETY: not the first domain, so this is the variant that its builder filled in.
    let console = unsafe { start_info().console.domU };
    let address = frames::address(Mfn(console.mfn.0 as u64));
    // SAFETY: the ring is a page of the boot region, which stays mapped, and every byte of the type is atomic.
    (unsafe { &*(address as *const XenconsInterface) }, console.evtchn)
}
