//! The two-level scheme of event channels: a bit a port in the shared page, and above it a bit a word for each vcpu.

mod delay;
#[cfg(all(test, loom))]
mod model;

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::ptr::NonNull;
use core::sync::atomic::Ordering::{Relaxed, SeqCst};
#[cfg(not(all(test, loom)))]
use core::sync::atomic::{AtomicU32, AtomicUsize};
use core::{array, fmt};

use xen_sys::arch_x86::xen::XEN_LEGACY_MAX_VCPUS;
#[cfg(not(all(test, loom)))]
use xen_sys::xen::SharedInfo;
use xen_sys::{DomId, Port};

// The same code, under all interleavings: on what loom can follow, and fewer ports.
#[cfg(all(test, loom))]
use model::{AtomicU32, AtomicUsize, SharedInfo, WORD};

use super::{EventError, Events, Polled};
use crate::call::event_channel::{self as call, Status};
use crate::error::XenError;
use crate::platform::Platform;

/// Bits of a word, and words of the shared page.
#[cfg(not(all(test, loom)))]
const WORD: u32 = usize::BITS;

/// Ports that the two-level scheme has.
pub const PORTS: u32 = WORD * WORD;

/// Event channels of this domain, on two-level bitmaps. A handle: cheap to clone, and shared by all CPUs.
///
/// The mask bit of a port is also the right to handle it: whoever sets it, where it was clear, has the port to itself until
/// [`unmask`](Events::unmask). That makes all of this work without a lock: the slow operations (alloc, bind, close) happen on
/// ports that are masked.
///
/// A port that is not in use is masked. Xen clears the pending bit when a port is closed, so a new port starts with no event
/// of its past, and what is pending right after the bind is real.
///
/// Vcpus must have their `VcpuInfo` in the shared page (the first 32 do, unless it was moved by `VCPUOP_register_vcpu_info`).
pub struct EventChannels<P: Platform>(Arc<Inner<P>>);

struct Inner<P> {
    platform: P,
    shared: NonNull<SharedInfo>,
    ports: Box<[Slot]>,
    /// The port behind the one that was served last, by vcpu: where the next scan begins.
    next: [AtomicU32; XEN_LEGACY_MAX_VCPUS],
    /// How often the domain has come back from a suspend.
    suspends: AtomicU32,
    /// The ports that are left alone for a while, a bit each.
    delayed: [AtomicUsize; WORD as usize],
}

/// What the shared page doesn't tell about a port.
#[derive(Default)]
struct Slot {
    /// Counts how often the port was closed.
    generation: AtomicU32,
    /// The vcpu at which its events arrive.
    vcpu: AtomicU32,
    /// How many events without work have come one behind the other.
    workless: AtomicU32,
    /// When a port that is left alone is looked at.
    due_ms: AtomicU32,
}

// SAFETY: the shared page is nothing but atomics and stays mapped, as `new` demands.
unsafe impl<P: Send> Send for Inner<P> {}
// SAFETY: as above.
unsafe impl<P: Sync> Sync for Inner<P> {}

/// An event that was taken: port and generation. By the generation, work that was put off knows whether the port is still
/// the same channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// The port. It is masked now.
    pub port: Port,
    generation: u32,
}

impl<P: Platform> Clone for EventChannels<P> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<P: Platform> fmt::Debug for EventChannels<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EventChannels({:p})", self.0.shared)
    }
}

/// Where a port's bits are: word and bit.
const fn place(port: Port) -> (usize, usize) {
    ((port.0 / WORD) as usize, 1 << (port.0 % WORD))
}

/// Returns which bits of a word are set, from the lowest on.
fn bits(mut word: usize) -> impl Iterator<Item = u32> {
    core::iter::from_fn(move || {
        let bit = (word != 0).then(|| word.trailing_zeros())?;
        word &= word - 1;
        Some(bit)
    })
}

impl<P: Platform> EventChannels<P> {
    /// Takes over the domain's event channels. All ports are masked; those that the toolstack made (console, xenstore) are
    /// taken by [`Channel::adopt`](super::Channel::adopt) or [`unmask`](Events::unmask).
    ///
    /// # Safety
    /// `shared` is the domain's shared page, and stays mapped there as long as there is a handle.
    pub unsafe fn new(platform: P, shared: NonNull<SharedInfo>) -> Self {
        let ports = (0..PORTS).map(|_| Slot::default()).collect();
        let (next, suspends) = (array::from_fn(|_| AtomicU32::new(0)), AtomicU32::new(0));
        let delayed = array::from_fn(|_| AtomicUsize::new(0));
        let this = Self(Arc::new(Inner { platform, shared, ports, next, suspends, delayed }));
        this.mask_all();
        this
    }

    /// Begins anew in a domain that has come back from a suspend, once the shared page is seen at its address again: all ports of
    /// before are gone, those of console and store, too, of which `start_info` has new ones. Events of before are not
    /// [current](Self::is_current) any more, and a [`Channel`](super::Channel) of before closes nothing.
    ///
    /// Called before any port is made, while one vcpu runs and handles no event. Not for a suspend that was cancelled: nothing has
    /// changed there.
    pub fn resume(&self) {
        self.0.suspends.fetch_add(1, SeqCst);
        for (port, slot) in (0..).map(Port).zip(&self.0.ports) {
            slot.generation.fetch_add(1, SeqCst);
            self.forget_workless(port, slot);
        }
        // What is pending stays so: it is of the new ports, for the toolstack has wiped out the rest.
        self.mask_all();
    }

    fn mask_all(&self) {
        for word in &self.shared().evtchn_mask {
            word.store(usize::MAX, SeqCst);
        }
    }

    fn shared(&self) -> &SharedInfo {
        // SAFETY: mapped as long as there is a handle, and made of atomics only.
        unsafe { self.0.shared.as_ref() }
    }

    /// Returns the platform.
    pub fn platform(&self) -> &P {
        &self.0.platform
    }

    /// Makes a port for a virtual interrupt (`VIRQ_` of `xen.h`) of a vcpu.
    ///
    /// # Errors
    /// [`EventError`] as the hypervisor says, for instance when it is bound already.
    pub fn bind_virq(&self, virq: u32, vcpu: u32) -> Result<Port, EventError> {
        let made = call::bind_virq(&self.0.platform, virq, vcpu);
        self.made("bind_virq", virq, vcpu, made)
    }

    /// Makes a port by which the vcpus of this domain signal `vcpu`.
    ///
    /// # Errors
    /// [`EventError`] as the hypervisor says.
    pub fn bind_ipi(&self, vcpu: u32) -> Result<Port, EventError> {
        let made = call::bind_ipi(&self.0.platform, vcpu);
        self.made("bind_ipi", vcpu, vcpu, made)
    }

    /// Lets the events of a port arrive at another vcpu; those that were pending do so too.
    ///
    /// # Errors
    /// [`EventError`] as the hypervisor says.
    pub fn bind_vcpu(&self, port: Port, vcpu: u32) -> Result<(), EventError> {
        // Nobody may take the port while its vcpu is in doubt.
        let mine = self.mask(port);
        let bound = call::bind_vcpu(&self.0.platform, port, vcpu);
        if let (Ok(()), Some(slot)) = (bound, self.slot(port)) {
            slot.vcpu.store(vcpu, SeqCst);
        }
        if mine {
            self.clear_mask(port);
        } else {
            // The handler may have unmasked it before the new vcpu stood in the slot, and an event that came then was skipped.
            self.raise_again(port);
        }
        bound.map_err(|error| EventError { op: "bind_vcpu", about: vcpu, error })
    }

    /// Returns what a port is, and the vcpu at which its events arrive.
    ///
    /// # Errors
    /// [`EventError`] if the number is no port's.
    pub fn status(&self, port: Port) -> Result<(Status, u32), EventError> {
        call::status(&self.0.platform, port).map_err(|error| EventError { op: "status", about: port.0, error })
    }

    /// Keeps the port from being dispatched until [`unmask`](Events::unmask). Returns `false` if it was masked before.
    #[inline]
    pub fn mask(&self, port: Port) -> bool {
        if self.slot(port).is_none() {
            return false;
        }
        let (word, bit) = place(port);
        self.shared().evtchn_mask[word].fetch_or(bit, SeqCst) & bit == 0
    }

    /// Tells whether a port is masked: no event of it is dispatched before [`unmask`](Events::unmask). So is what is no port.
    #[inline]
    pub fn is_masked(&self, port: Port) -> bool {
        let (word, bit) = place(port);
        self.slot(port).is_none() || self.shared().evtchn_mask[word].load(SeqCst) & bit != 0
    }

    /// Clears the pending bit of a port and returns what it was: for waiting without an upcall, on a masked port.
    #[inline]
    pub fn take(&self, port: Port) -> bool {
        if self.slot(port).is_none() {
            return false;
        }
        let (word, bit) = place(port);
        // Sequentially consistent, so that whoever looks at a ring after this sees what was written before the signal.
        self.shared().evtchn_pending[word].fetch_and(!bit, SeqCst) & bit != 0
    }

    /// Tells whether Xen has raised the upcall of a vcpu and nobody has dispatched since.
    ///
    /// # Panics
    /// If the vcpu is not one of the shared page's.
    #[inline]
    pub fn upcall_pending(&self, vcpu: u32) -> bool {
        self.shared().vcpu_info[vcpu as usize].evtchn_upcall_pending.load(SeqCst) != 0
    }

    /// Takes the events that are pending at `vcpu` and calls `handle` for each; the port is masked until somebody calls
    /// [`unmask`](Events::unmask). Returns how many there were.
    ///
    /// One pass: every port is visited at most once, even if it is unmasked and signalled meanwhile, and the scan goes on
    /// where the last one ended. A port that storms can't keep others from being served. If
    /// [`upcall_pending`](Self::upcall_pending) says so afterwards, there is more.
    ///
    /// # Panics
    /// If the vcpu is not one of the shared page's.
    pub fn dispatch(&self, vcpu: u32, mut handle: impl FnMut(Event)) -> usize {
        let shared = self.shared();
        let info = &shared.vcpu_info[vcpu as usize];
        // Xen sets, in this order: a pending bit, the word's selector bit, the upcall flag. We clear from the other end, so
        // that whatever it sets during the scan raises the upcall again.
        info.evtchn_upcall_pending.store(0, SeqCst);
        let selected = info.evtchn_pending_sel.swap(0, SeqCst);
        if selected == 0 {
            return 0;
        }
        let next = &self.0.next[vcpu as usize];
        let start = next.load(Relaxed) % PORTS;
        let first = start / WORD;
        let upper = usize::MAX << (start % WORD);
        let mut served = 0;
        // From the first word on. It comes twice: its upper part at the beginning, its lower part at the end.
        let turned = selected.rotate_right(first);
        for step in bits(turned).chain((turned & 1 != 0).then_some(WORD)) {
            let word = (first + step) % WORD;
            let part = match step {
                0 => upper,
                WORD => !upper,
                _ => usize::MAX,
            };
            let index = word as usize;
            let pending = shared.evtchn_pending[index].load(SeqCst);
            for bit in bits(pending & !shared.evtchn_mask[index].load(SeqCst) & part) {
                let port = Port(word * WORD + bit);
                if let Some(event) = self.claim(port, vcpu) {
                    next.store(port.0 + 1, Relaxed);
                    served += 1;
                    handle(event);
                }
            }
        }
        served
    }

    /// Masks a port that seems pending and takes its event, unless it is another vcpu's, or somebody was faster.
    #[inline]
    fn claim(&self, port: Port, vcpu: u32) -> Option<Event> {
        let slot = self.slot(port)?;
        if slot.vcpu.load(SeqCst) != vcpu || !self.mask(port) {
            return None;
        }
        if !self.take(port) {
            // Taken by polling, or closed, since it was seen.
            self.clear_mask(port);
            return None;
        }
        // Read after the event was taken: a port that was closed and made anew in between can only lead to an event too
        // much for the new channel, never to one that is taken for an old one's and dropped.
        Some(Event { port, generation: slot.generation.load(SeqCst) })
    }

    /// Tells whether the port of an event is still the same channel.
    pub fn is_current(&self, event: Event) -> bool {
        self.slot(event.port).is_some_and(|slot| slot.generation.load(SeqCst) == event.generation)
    }

    /// Lets the next event of a port be dispatched, also one that is pending already.
    #[inline]
    fn clear_mask(&self, port: Port) {
        let (word, bit) = place(port);
        // Against Xen, which sets the pending bit and then looks at the mask: either it sees the mask clear and raises the
        // upcall, or we see the pending bit. Both sides need the order of their two steps.
        self.shared().evtchn_mask[word].fetch_and(!bit, SeqCst);
        self.raise_again(port);
    }

    /// Lets Xen raise the upcall for a port that is pending and not masked.
    #[inline]
    fn raise_again(&self, port: Port) {
        let (word, bit) = place(port);
        let shared = self.shared();
        if self.slot(port).is_none() || shared.evtchn_pending[word].load(SeqCst) & bit == 0 {
            return;
        }
        // Only Xen can raise the upcall of the right vcpu, and it does so only on clearing a mask bit that is set. If it is
        // set already, then somebody was faster and serves the event.
        if self.mask(port) {
            // It fails only for a number that is no port's, and such a bit is never pending.
            let _ = call::unmask(&self.0.platform, port);
        }
    }

    fn slot(&self, port: Port) -> Option<&Slot> {
        // By its place: `get` makes a reference to all of them first, which costs Miri a second.
        if port.0 < PORTS { Some(&self.0.ports[port.0 as usize]) } else { None }
    }

    /// Finishes the making of a port: from now on it is dispatched.
    fn made(&self, op: &'static str, about: u32, vcpu: u32, made: Result<Port, XenError>) -> Result<Port, EventError> {
        let port = made.map_err(|error| EventError { op, about, error })?;
        if let Some(slot) = self.slot(port) {
            slot.vcpu.store(vcpu, SeqCst);
        }
        self.unmask(port);
        Ok(port)
    }
}

impl<P: Platform> Events for EventChannels<P> {
    fn alloc_unbound(&self, remote: DomId) -> Result<Port, EventError> {
        let made = call::alloc_unbound(&self.0.platform, remote);
        self.made("alloc_unbound", u32::from(remote.0), 0, made)
    }

    fn bind_interdomain(&self, remote: DomId, port: Port) -> Result<Port, EventError> {
        let made = call::bind_interdomain(&self.0.platform, remote, port);
        self.made("bind_interdomain", u32::from(remote.0), 0, made)
    }

    #[inline]
    fn notify(&self, port: Port) {
        // It fails only for a port that is not ours, and there is nobody to tell then. A peer that closed its end is no error.
        let _ = call::send(&self.0.platform, port);
    }

    #[inline]
    fn unmask(&self, port: Port) {
        let Some(slot) = self.slot(port) else { return };
        self.forget_workless(port, slot);
        self.clear_mask(port);
    }

    fn put_off(&self, port: Port) {
        self.delay(port);
    }

    fn close(&self, port: Port) {
        let Some(slot) = self.slot(port) else { return };
        slot.generation.fetch_add(1, SeqCst);
        self.mask(port);
        self.forget_workless(port, slot);
        // Xen clears the pending bit. From here on the port may be another's, so nothing may be touched after the call.
        let _ = call::close(&self.0.platform, port);
    }

    fn suspends(&self) -> u32 {
        self.0.suspends.load(SeqCst)
    }
}

impl<P: Platform> Polled for EventChannels<P> {
    #[inline]
    fn take(&self, port: Port) -> bool {
        // The inherent method, which has precedence.
        Self::take(self, port)
    }

    fn raise(&self, port: Port) {
        if self.slot(port).is_none() {
            return;
        }
        let (word, bit) = place(port);
        self.shared().evtchn_pending[word].fetch_or(bit, SeqCst);
        self.raise_again(port);
    }
}
