//! `memory_op`: how much memory the domain has, and which frames it consists of.

use xen_sys::memory::*;
use xen_sys::{Gfn, GuestHandle, Nr, XenPfn};

use super::{SELF, command, command_alone};
use crate::error::XenError;
use crate::platform::Hypervisor;

/// Makes a hypercall on a list of extents of 2^`order` pages; returns how many were done.
///
/// # Safety
/// The caller answers for what the command does with the extents.
unsafe fn reservation<H: Hypervisor>(
    hypervisor: &H,
    cmd: u32,
    extents: &mut [XenPfn],
    order: u32,
    flags: u32,
) -> Result<usize, XenError> {
    let mut arg = XenMemoryReservation {
        extent_start: GuestHandle(extents.as_mut_ptr()),
        nr_extents: extents.len(),
        extent_order: order,
        mem_flags: flags,
        domid: SELF,
    };
    // SAFETY: Xen reads and writes the list; the rest is the caller's.
    unsafe { command(hypervisor, Nr::MEMORY_OP, cmd, &mut arg) }
}

/// Adds extents to the domain's memory; their machine frames are written to `extents`. Returns how many were had.
/// `flags`: `XENMEMF_`.
///
/// # Errors
/// As the hypervisor says.
pub fn increase_reservation<H: Hypervisor>(
    hypervisor: &H,
    extents: &mut [XenPfn],
    order: u32,
    flags: u32,
) -> Result<usize, XenError> {
    // SAFETY: new frames, which nobody uses yet; Xen writes their numbers into the list.
    unsafe { reservation(hypervisor, XENMEM_increase_reservation, extents, order, flags) }
}

/// Gives extents of the domain's memory back to Xen. Returns how many it took.
///
/// # Errors
/// As the hypervisor says.
///
/// # Safety
/// The frames are the caller's, and nothing maps or uses them any more.
pub unsafe fn decrease_reservation<H: Hypervisor>(
    hypervisor: &H,
    extents: &mut [XenPfn],
    order: u32,
) -> Result<usize, XenError> {
    // SAFETY: the caller's.
    unsafe { reservation(hypervisor, XENMEM_decrease_reservation, extents, order, 0) }
}

/// Puts new memory behind the guest's frame numbers in `extents`, which become machine frames in a PV guest. Returns how
/// many were had.
///
/// # Errors
/// As the hypervisor says.
///
/// # Safety
/// Nothing stands behind these frame numbers yet.
pub unsafe fn populate_physmap<H: Hypervisor>(
    hypervisor: &H,
    extents: &mut [XenPfn],
    order: u32,
    flags: u32,
) -> Result<usize, XenError> {
    // SAFETY: the caller's.
    unsafe { reservation(hypervisor, XENMEM_populate_physmap, extents, order, flags) }
}

/// Returns how many pages this domain has.
///
/// # Errors
/// As the hypervisor says.
pub fn current_reservation<H: Hypervisor>(hypervisor: &H) -> Result<usize, XenError> {
    let mut arg = XenMemoryDomain { domid: SELF };
    // SAFETY: no pointers inside.
    unsafe { command(hypervisor, Nr::MEMORY_OP, XENMEM_current_reservation, &mut arg) }
}

/// Returns how many pages this domain may have.
///
/// # Errors
/// As the hypervisor says.
pub fn maximum_reservation<H: Hypervisor>(hypervisor: &H) -> Result<usize, XenError> {
    let mut arg = XenMemoryDomain { domid: SELF };
    // SAFETY: no pointers inside.
    unsafe { command(hypervisor, Nr::MEMORY_OP, XENMEM_maximum_reservation, &mut arg) }
}

/// Returns the highest machine frame of the host that is memory.
///
/// # Errors
/// As the hypervisor says.
pub fn maximum_ram_page<H: Hypervisor>(hypervisor: &H) -> Result<usize, XenError> {
    // SAFETY: no argument, no effect on memory.
    unsafe { command_alone(hypervisor, Nr::MEMORY_OP, XENMEM_maximum_ram_page) }
}

/// Puts a page of some space (`XENMAPSPACE_`) behind a frame number of an auto-translated guest. Memory that is there now goes
/// back to Xen; a page that is somewhere else in the guest's space already is moved.
///
/// # Errors
/// As the hypervisor says: `EACCES` in a PV guest, `EINVAL` for an index that the space doesn't have.
///
/// # Safety
/// Nobody uses what stands behind the frame number now, and the page that comes there is seen only atomically.
pub unsafe fn add_to_physmap<H: Hypervisor>(
    hypervisor: &H,
    space: u32,
    index: usize,
    gfn: Gfn,
) -> Result<(), XenError> {
    let mut arg = XenAddToPhysmap { domid: SELF, size: 0, space, idx: index, gpfn: XenPfn(gfn.0 as usize) };
    // SAFETY: no pointers inside; the rest is the caller's.
    unsafe { command(hypervisor, Nr::MEMORY_OP, XENMEM_add_to_physmap, &mut arg) }.map(drop)
}

/// Takes away what is behind a frame number of an auto-translated guest.
///
/// # Errors
/// As the hypervisor says: `EACCES` in a PV guest, `ENOENT` if nothing is there.
///
/// # Safety
/// Nobody uses what stands behind the frame number.
pub unsafe fn remove_from_physmap<H: Hypervisor>(hypervisor: &H, gfn: Gfn) -> Result<(), XenError> {
    let mut arg = XenRemoveFromPhysmap { domid: SELF, gpfn: XenPfn(gfn.0 as usize) };
    // SAFETY: no pointers inside; the rest is the caller's.
    unsafe { command(hypervisor, Nr::MEMORY_OP, XENMEM_remove_from_physmap, &mut arg) }.map(drop)
}

/// Returns where the machine-to-physical table is mapped: first address, address after the last, highest frame.
///
/// # Errors
/// As the hypervisor says.
pub fn machphys_mapping<H: Hypervisor>(hypervisor: &H) -> Result<(usize, usize, usize), XenError> {
    let mut arg = XenMachphysMapping { v_start: 0, v_end: 0, max_mfn: 0 };
    // SAFETY: no pointers inside.
    unsafe { command(hypervisor, Nr::MEMORY_OP, XENMEM_machphys_mapping, &mut arg) }?;
    Ok((arg.v_start, arg.v_end, arg.max_mfn))
}

/// An entry of a memory map, as the BIOS reports it (E820).
#[repr(C, packed)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryMapEntry {
    /// First byte.
    pub start: u64,
    /// Bytes.
    pub size: u64,
    /// 1 for usable memory.
    pub kind: u32,
}

/// Writes the domain's pseudo-physical memory map to `entries` and returns how many there are.
///
/// # Errors
/// `ENOSYS` if none was set.
pub fn memory_map<H: Hypervisor>(hypervisor: &H, entries: &mut [MemoryMapEntry]) -> Result<usize, XenError> {
    let buffer = GuestHandle(entries.as_mut_ptr().cast());
    let mut arg = XenMemoryMap { nr_entries: entries.len() as u32, buffer };
    // SAFETY: Xen writes at most `nr_entries` entries of 20 bytes.
    unsafe { command(hypervisor, Nr::MEMORY_OP, XENMEM_memory_map, &mut arg) }?;
    Ok((arg.nr_entries as usize).min(entries.len()))
}
