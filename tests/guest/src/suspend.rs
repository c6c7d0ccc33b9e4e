//! Being saved: what the domain does before the toolstack writes it to a file, and after the toolstack, or another one on another
//! machine, has made a domain of that file.
//!
//! A saved domain is its pages, its processor, and nothing else. In its page tables the toolstack makes numbers of the domain's own out
//! of machine frames, and back into other machine frames, so every frame in them must be the domain's: the shared page, frames of the
//! grant table and frames of others are unmapped before. What else names machine frames is `start_info`, by which the domain and the
//! toolstack tell each other of the rings.

use hypercall::XenError;
use hypercall::call::sched;
use xen_sys::{Mfn, Pfn};

use crate::boot::{is_dom0, renumber_rings, start_info_mfn};
use crate::memory::{frame_list, frames, window};
use crate::{Bare, console, shared};

/// How a suspend ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The domain is the same, and has all that it had.
    Cancelled,
    /// The domain is another: with other frames, another console, another store, and neither ports nor grants.
    Restored,
}

/// Tells the toolstack where the domain's frames are listed: a domain that doesn't can't be saved.
///
/// # Panics
/// Before the shared page is mapped, or without memory.
pub fn publish() {
    // Nobody saves the first domain.
    if !is_dom0() {
        frame_list::publish(shared::shared_info().expect("the shared page is mapped"));
    }
}

/// Suspends the domain. It is saved while this waits, and goes on here, as itself or restored.
///
/// # Errors
/// Xen's, of which none is known. The domain goes on as after [`Outcome::Cancelled`].
///
/// # Panics
/// If a frame of another domain, or of the grant table, is still mapped.
pub fn suspend() -> Result<Outcome, XenError> {
    window::assert_empty();
    console::drain();
    shared::remove();
    // SAFETY: nobody suspends the first domain.
    unsafe { renumber_rings(|mfn| frames::pfn(Mfn(mfn as u64)).0 as usize) };
    // SAFETY: there is one processor; no foreign frame is mapped, as was just looked at; whatever names a frame is made anew below.
    let cancelled = unsafe { sched::suspend(&Bare, start_info_mfn()) };
    if !matches!(cancelled, Ok(false)) {
        // SAFETY: as above.
        unsafe { renumber_rings(|pfn| frames::mfn(Pfn(pfn as u64)).0 as usize) };
    }
    shared::install();
    publish();
    Ok(if cancelled? { Outcome::Cancelled } else { Outcome::Restored })
}
