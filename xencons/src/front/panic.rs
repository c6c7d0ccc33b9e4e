//! Output that works when nothing else does any more.

use hypercall::event::Events;
use hypercall::mem::Shared;
use hypercall::{Platform, Port};
use xenbus::ring::bytes::ByteRings;

/// Writes `bytes` to the console in `page`, without a lock, memory or the console's own object, which may be locked, or half
/// changed: what it has published is in the page, and that is where this goes on.
///
/// Waits for room until `deadline_ns` of the platform's clock, by polling; what has no room by then is dropped. Returns how much was
/// written. Whoever has called this writes to the page by no other way any more.
///
/// # Panics
/// If `page` is less than a page.
pub fn panic_write<P: Platform, E: Events>(
    platform: &P,
    events: &E,
    page: Shared<'_>,
    port: Port,
    bytes: &[u8],
    deadline_ns: u64,
) -> usize {
    let mut rings = ByteRings::console_front(page);
    let mut done = 0;
    loop {
        // Corrupt indices are as good as no console.
        let Ok(count) = rings.tx.write(&bytes[done..]) else { return done };
        done += count;
        if count > 0 {
            events.notify(port);
        }
        let now = platform.now_ns();
        if done == bytes.len() || now >= deadline_ns {
            return done;
        }
        // In short pieces, as an event that came before is not cleared and a wait for it ends at once.
        platform.wait(&[], deadline_ns.min(now + 1_000_000));
    }
}
