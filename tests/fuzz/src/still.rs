//! A domain in which nothing happens by itself: its clock goes on when somebody waits, and what answers is the fuzzer.

use std::cell::{Cell, RefCell};
use std::fmt::Arguments;
use std::ptr::NonNull;
use std::rc::Rc;

use hypercall::event::{EventError, Events, Polled};
use hypercall::{DomId, Gfn, Hypervisor, Level, Nr, Platform, Port, Region};

/// What happens while somebody waits; returns whether anything has.
type Turn = Box<dyn FnMut() -> bool>;

/// The platform and the event channels.
#[derive(Clone)]
pub struct Still(Rc<Inner>);

struct Inner {
    now_ns: Cell<u64>,
    pending: Cell<bool>,
    turn: RefCell<Turn>,
}

impl Still {
    /// Makes a domain. `turn` is what happens whenever somebody waits.
    pub fn new(turn: impl FnMut() -> bool + 'static) -> Self {
        let turn = RefCell::new(Box::new(turn) as Turn);
        Self(Rc::new(Inner { now_ns: Cell::new(0), pending: Cell::new(false), turn }))
    }
}

// SAFETY: there is no hypervisor, and it does nothing.
unsafe impl Hypervisor for Still {
    unsafe fn hypercall(&self, _: Nr, _: [usize; 5]) -> isize {
        -38
    }
}

// SAFETY: it never gives a page.
unsafe impl Platform for Still {
    fn alloc(&self, _: Region, _: usize) -> Option<NonNull<u8>> {
        None
    }

    unsafe fn free(&self, _: Region, _: NonNull<u8>, _: usize) {}

    fn gfn_of(&self, _: NonNull<u8>) -> Gfn {
        Gfn(0)
    }

    fn now_ns(&self) -> u64 {
        self.0.now_ns.get()
    }

    fn wait(&self, _: &[Port], deadline_ns: u64) {
        if (self.0.turn.borrow_mut())() {
            self.0.pending.set(true);
        } else {
            // Whoever looks again every moment until its time is up need not do so a thousand times.
            self.0.now_ns.set(self.0.now_ns.get().max(deadline_ns).saturating_add(1_000_000_000));
        }
    }

    fn log(&self, _: Level, _: Arguments<'_>) {}
}

impl Events for Still {
    fn alloc_unbound(&self, _: DomId) -> Result<Port, EventError> {
        Ok(Port(1))
    }

    fn bind_interdomain(&self, _: DomId, port: Port) -> Result<Port, EventError> {
        Ok(port)
    }

    fn notify(&self, _: Port) {}

    fn unmask(&self, _: Port) {}

    fn close(&self, _: Port) {}
}

impl Polled for Still {
    fn take(&self, _: Port) -> bool {
        self.0.pending.replace(false)
    }

    fn raise(&self, _: Port) {
        self.0.pending.set(true);
    }
}
