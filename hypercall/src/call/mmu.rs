//! `mmu_update`, `update_va_mapping` and `mmuext_op`: page tables, which Xen checks and writes for a PV guest.

use xen_sys::Nr;
use xen_sys::xen::{MmuUpdate, MmuextOp};

use super::SELF;
use crate::error::{XenError, from_ret};
use crate::platform::Hypervisor;

/// Applies updates to page tables or to the machine-to-physical table, in order. Returns how many were done.
///
/// # Errors
/// As Xen says of the first that it refuses; those before it are done.
///
/// # Safety
/// The new tables keep Rust's promises: no object loses its memory, none becomes aliased, no code becomes writable.
pub unsafe fn mmu_update<H: Hypervisor>(hypervisor: &H, updates: &[MmuUpdate]) -> Result<usize, XenError> {
    let mut done = 0_u32;
    let args = [
        updates.as_ptr().expose_provenance(),
        updates.len(),
        core::ptr::from_mut(&mut done).expose_provenance(),
        SELF.0 as usize,
        0,
    ];
    // SAFETY: Xen reads the list and writes the count; the caller vouches for what the updates do.
    from_ret(unsafe { hypervisor.hypercall(Nr::MMU_UPDATE, args) })?;
    Ok(done as usize)
}

/// Writes the entry of the last level of page tables that maps `va`. `flags`: `UVMF_`.
///
/// # Errors
/// `EINVAL` if a table on the way is lacking, or if the frame may not be mapped so.
///
/// # Safety
/// As for [`mmu_update`].
pub unsafe fn update_va_mapping<H: Hypervisor>(
    hypervisor: &H,
    va: usize,
    entry: u64,
    flags: usize,
) -> Result<(), XenError> {
    #[cfg(target_pointer_width = "64")]
    let args = [va, entry as usize, flags, 0, 0];
    #[cfg(target_pointer_width = "32")]
    let args = [va, entry as usize, (entry >> 32) as usize, flags, 0];
    // SAFETY: the caller's.
    from_ret(unsafe { hypervisor.hypercall(Nr::UPDATE_VA_MAPPING, args) }).map(drop)
}

/// Carries out extended operations on page tables: pin, unpin, load, flush, in order. Returns how many were done.
///
/// # Errors
/// As Xen says of the first that it refuses; those before it are done.
///
/// # Safety
/// As for [`mmu_update`]; addresses in the operations are valid.
pub unsafe fn mmuext_op<H: Hypervisor>(hypervisor: &H, ops: &[MmuextOp]) -> Result<usize, XenError> {
    let mut done = 0_u32;
    let args = [
        ops.as_ptr().expose_provenance(),
        ops.len(),
        core::ptr::from_mut(&mut done).expose_provenance(),
        SELF.0 as usize,
        0,
    ];
    // SAFETY: Xen reads the list and writes the count; the caller vouches for what the operations do.
    from_ret(unsafe { hypervisor.hypercall(Nr::MMUEXT_OP, args) })?;
    Ok(done as usize)
}
