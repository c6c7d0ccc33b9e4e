//! Frame numbers: the domain's own (pfn, counted from 0) and the machine's (mfn).

use xen_sys::arch_x86::xen_x86_64::MACH2PHYS_VIRT_START;
use xen_sys::{Mfn, Pfn};

use crate::boot::{VIRT_BASE, start_info};
use crate::memory::PAGE_SIZE;

/// Machine frame → frame of the domain that owns it: an array of Xen's, readable by every 64-bit domain.
const MACHINE_TO_PHYS: *const usize = MACH2PHYS_VIRT_START as *const usize;

/// Returns how many frames the domain has: pfns are below.
pub fn count() -> usize {
    start_info().nr_pages
}

/// Returns the machine frame of `pfn`.
///
/// # Panics
/// If the domain has no such frame.
pub fn mfn(pfn: Pfn) -> Mfn {
    let pfn = pfn.0 as usize;
    assert!(pfn < count(), "pfn {pfn:#x} of {:#x}", count());
    let list = start_info().mfn_list as *const usize;
    // SAFETY: the list has an entry for each frame of the domain, in the boot region.
    Mfn(unsafe { list.add(pfn).read_volatile() } as u64)
}

/// Returns the frame of this domain that `mfn` is. Nonsense if the frame isn't this domain's; the caller knows.
pub fn pfn(mfn: Mfn) -> Pfn {
    // SAFETY: Xen's array covers all of the machine's memory, and `mfn` came from Xen.
    Pfn(unsafe { MACHINE_TO_PHYS.add(mfn.0 as usize).read_volatile() } as u64)
}

/// Returns the machine frame of the linearly mapped page at `va`: boot region and own memory.
///
/// # Panics
/// If `va` lies outside.
pub fn mfn_at(va: usize) -> Mfn {
    assert!(va >= VIRT_BASE, "{va:#x} is not the domain's memory");
    mfn(Pfn(((va - VIRT_BASE) / PAGE_SIZE) as u64))
}

/// Returns where a frame of the boot region or of own memory is mapped: page tables, console ring, store ring.
pub fn address(mfn: Mfn) -> usize {
    VIRT_BASE + pfn(mfn).0 as usize * PAGE_SIZE
}
