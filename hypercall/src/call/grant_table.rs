//! `grant_table_op`: the plain calls, batches as slices. [`crate::grant`] stands on them and is what drivers want.

use xen_sys::grant_table::*;
use xen_sys::{DomId, GuestHandle, Nr, XenPfn};

use super::SELF;
use crate::error::{XenError, from_ret};
use crate::grant::GrantStatus;
use crate::platform::Hypervisor;

/// Makes the hypercall on a batch.
///
/// # Safety
/// `T` is the argument of that command, and the caller answers for what each entry does.
#[inline]
unsafe fn batch<H: Hypervisor, T>(hypervisor: &H, cmd: u32, ops: &mut [T]) -> Result<(), XenError> {
    let args = [cmd as usize, ops.as_mut_ptr().expose_provenance(), ops.len(), 0, 0];
    // SAFETY: the slice is valid for reads and writes; the rest is the caller's.
    from_ret(unsafe { hypervisor.hypercall(Nr::GRANT_TABLE_OP, args) }).map(drop)
}

/// Makes the hypercall on one argument and turns its status into a result.
///
/// # Safety
/// As for [`batch`].
unsafe fn single<H: Hypervisor, T>(
    hypervisor: &H,
    cmd: u32,
    op: &mut T,
    status: impl Fn(&T) -> i16,
) -> Result<(), GrantOpError> {
    // SAFETY: the caller's.
    unsafe { batch(hypervisor, cmd, core::slice::from_mut(op)) }.map_err(GrantOpError::Xen)?;
    GrantStatus(status(op)).ok().map_err(GrantOpError::Status)
}

/// How a grant operation failed: as a whole, or by its status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GrantOpError {
    /// The hypercall was refused.
    Xen(XenError),
    /// It was carried out, and ended with this status.
    Status(GrantStatus),
}

impl core::fmt::Display for GrantOpError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Xen(error) => error.fmt(f),
            Self::Status(status) => status.fmt(f),
        }
    }
}

/// Enlarges this domain's grant table to at least `nr_frames` frames and writes the numbers of as many, from the first, to
/// `frames`. It never shrinks.
///
/// # Errors
/// [`GrantOpError`] if there is no memory, or the table may not be so large.
///
/// # Panics
/// If `frames` has no room for them.
pub fn setup_table<H: Hypervisor>(hypervisor: &H, nr_frames: u32, frames: &mut [XenPfn]) -> Result<(), GrantOpError> {
    assert!(frames.len() >= nr_frames as usize, "room for {} of {nr_frames} frames", frames.len());
    let frame_list = GuestHandle(frames.as_mut_ptr());
    let mut arg = GnttabSetupTable { dom: SELF, nr_frames, status: GNTST_general_error, frame_list };
    // SAFETY: Xen writes `nr_frames` numbers, for which there is room.
    unsafe { single(hypervisor, GNTTABOP_setup_table, &mut arg, |arg| arg.status) }
}

/// Returns how many frames this domain's grant table has, and how many it may have.
///
/// # Errors
/// [`GrantOpError`] as the hypervisor says.
pub fn query_size<H: Hypervisor>(hypervisor: &H) -> Result<(u32, u32), GrantOpError> {
    let mut arg = GnttabQuerySize { dom: SELF, nr_frames: 0, max_nr_frames: 0, status: GNTST_general_error };
    // SAFETY: no pointers inside.
    unsafe { single(hypervisor, GNTTABOP_query_size, &mut arg, |arg| arg.status) }?;
    Ok((arg.nr_frames, arg.max_nr_frames))
}

/// Maps foreign grants. Each entry has a status of its own, to be looked at even if the call as a whole failed.
///
/// # Errors
/// [`XenError`] if not all entries were tried.
///
/// # Safety
/// The addresses to map at are the caller's, and nothing else is mapped there.
#[inline]
pub unsafe fn map_grant_ref<H: Hypervisor>(hypervisor: &H, ops: &mut [GnttabMapGrantRef]) -> Result<(), XenError> {
    // SAFETY: the caller's.
    unsafe { batch(hypervisor, GNTTABOP_map_grant_ref, ops) }
}

/// Unmaps foreign grants. Each entry has a status of its own, to be looked at even if the call as a whole failed.
///
/// # Errors
/// [`XenError`] if not all entries were tried.
///
/// # Safety
/// Nothing looks at the mapped memory any more.
#[inline]
pub unsafe fn unmap_grant_ref<H: Hypervisor>(hypervisor: &H, ops: &mut [GnttabUnmapGrantRef]) -> Result<(), XenError> {
    // SAFETY: the caller's.
    unsafe { batch(hypervisor, GNTTABOP_unmap_grant_ref, ops) }
}

/// Copies between grants and own frames. Each entry has a status of its own, to be looked at even if the call as a whole
/// failed.
///
/// # Errors
/// [`XenError`] if not all entries were tried.
///
/// # Safety
/// The own frames that are written are the caller's and accessed only atomically.
#[inline]
pub unsafe fn copy<H: Hypervisor>(hypervisor: &H, ops: &mut [GnttabCopy]) -> Result<(), XenError> {
    // SAFETY: the caller's.
    unsafe { batch(hypervisor, GNTTABOP_copy, ops) }
}

/// Returns which version of grant table a domain uses.
///
/// # Errors
/// `ESRCH` if there is no such domain, `EPERM` if it is another's and the caller may not ask.
pub fn get_version<H: Hypervisor>(hypervisor: &H, dom: DomId) -> Result<u32, XenError> {
    let mut arg = GnttabGetVersion { dom, pad: 0, version: 0 };
    // SAFETY: no pointers inside.
    unsafe { batch(hypervisor, GNTTABOP_get_version, core::slice::from_mut(&mut arg)) }?;
    Ok(arg.version)
}

/// Sets which version of grant table this domain uses, and returns the version in use.
///
/// # Errors
/// `EBUSY` if entries are in use, `EINVAL` for a version that there isn't, `ENOSYS` if it is switched off.
///
/// # Safety
/// Nothing relies on the form of the entries from before.
pub unsafe fn set_version<H: Hypervisor>(hypervisor: &H, version: u32) -> Result<u32, XenError> {
    let mut arg = GnttabSetVersion { version };
    // SAFETY: no pointers inside; the caller vouches for the table. The count is 1, as for every command.
    unsafe { batch(hypervisor, GNTTABOP_set_version, core::slice::from_mut(&mut arg)) }?;
    Ok(arg.version)
}
