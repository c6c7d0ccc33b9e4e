//! A port that is closed, and made again for another channel, while its handler runs: a model of what `hypercall::event` does and of what
//! Xen does to the same bits, under all interleavings. The steps have the names that they have there.
//! `RUSTFLAGS="--cfg loom" cargo test -p xenbus --release --test port_loom`.
#![cfg(loom)]

use loom::sync::Arc;
use loom::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use loom::sync::atomic::{AtomicBool, AtomicU32, fence};
use loom::thread;

/// What there is of a port: two bits in the shared page with the flag above them, and how often it was closed.
#[derive(Default)]
struct Port {
    pending: AtomicBool,
    mask: AtomicBool,
    upcall: AtomicBool,
    generation: AtomicU32,
}

/// loom takes sequentially consistent accesses for less than they are, and fences for what they are.
fn swap(bit: &AtomicBool, value: bool) -> bool {
    fence(SeqCst);
    let before = bit.swap(value, AcqRel);
    fence(SeqCst);
    before
}

fn load(bit: &AtomicBool) -> bool {
    fence(SeqCst);
    bit.load(Acquire)
}

impl Port {
    /// Xen: the other end signals.
    fn send(&self) {
        if !swap(&self.pending, true) && !load(&self.mask) {
            swap(&self.upcall, true);
        }
    }

    /// Xen: clears the mask, and raises the upcall for what is pending.
    fn unmask_call(&self) {
        if swap(&self.mask, false) && load(&self.pending) {
            swap(&self.upcall, true);
        }
    }

    fn unmask(&self) {
        swap(&self.mask, false);
        // `raise_again`
        if load(&self.pending) && !swap(&self.mask, true) {
            self.unmask_call();
        }
    }

    fn generation(&self) -> u32 {
        fence(SeqCst);
        self.generation.load(Acquire)
    }

    /// Closes the port; Xen forgets what was pending.
    fn close(&self) {
        fence(SeqCst);
        self.generation.fetch_add(1, AcqRel);
        swap(&self.mask, true);
        swap(&self.pending, false);
    }

    /// One pass of the dispatcher: takes the event, and returns its generation.
    fn dispatch(&self) -> Option<u32> {
        swap(&self.upcall, false);
        if !load(&self.pending) || load(&self.mask) {
            return None;
        }
        // `claim`
        if swap(&self.mask, true) {
            return None;
        }
        if !swap(&self.pending, false) {
            self.unmask();
            return None;
        }
        Some(self.generation())
    }

    /// The handler, whose work was put off: it looks whether the port is still the same channel. Returns the channel that it has
    /// served, if any.
    fn handle(&self) -> Option<u32> {
        let event = self.dispatch()?;
        if event != self.generation() {
            return None;
        }
        self.unmask();
        Some(event)
    }
}

/// The event of an old channel is pending when its port is closed, and made again: the new channel's first event, which comes at once,
/// is not lost, whatever the handler was at.
#[test]
fn event_of_a_port_that_was_made_again_is_not_lost_to_the_handler_of_the_old_one() {
    loom::model(|| {
        let port = Arc::new(Port::default());
        port.send();
        let handler = {
            let port = port.clone();
            thread::spawn(move || port.handle())
        };
        port.close();
        // `made`
        port.unmask();
        port.send();
        let mut served = handler.join().unwrap() == Some(1);
        while swap(&port.upcall, false) {
            served |= port.handle() == Some(1);
        }
        assert!(served, "the new channel's event is lost");
    });
}

/// Work that was put off while its port was closed knows that it isn't the same channel, and what it has seen before is not seen again.
#[test]
fn event_that_was_taken_before_the_port_was_closed_is_not_the_new_channels() {
    loom::model(|| {
        let port = Arc::new(Port::default());
        let closed = Arc::new(AtomicBool::new(false));
        port.send();
        let handler = {
            let (port, closed) = (port.clone(), closed.clone());
            thread::spawn(move || {
                let event = port.dispatch()?;
                let late = closed.load(Acquire);
                Some((event, late, event == port.generation()))
            })
        };
        port.close();
        closed.store(true, Release);
        port.unmask();
        let taken = handler.join().unwrap();
        // One that was taken while the port was being closed counts as the new channel's: an event too much, which its handler bears.
        if let Some((event, late, current)) = taken {
            assert!(!(event == 0 && late && current), "the event of a channel that is closed");
        }
        assert!(!port.pending.load(Relaxed), "an event that nobody has sent");
    });
}
