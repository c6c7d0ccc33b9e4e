//! The grant table of the domain: for our own drivers, and for the kernel's C drivers behind their names (`xengnt_*`, by the glue).
//!
//! All of the table is taken at boot, as NetBSD's own does: nothing grows later, so nothing allocates or asks Xen under its lock.

use alloc::boxed::Box;
use core::ffi::c_int;
use core::sync::atomic::AtomicPtr;
use core::sync::atomic::Ordering::{AcqRel, Acquire};

use hypercall::grant::{Access, GrantTable, Grants, StillMapped};
use hypercall::{DomId, Gfn, GrantRef, Level, Platform};

use crate::errno;
use crate::kernel::Kernel;

const KERNEL: Kernel = Kernel::named(c"xengnt");

/// The table, once it is made. It is never unmade.
static TABLE: AtomicPtr<GrantTable<Kernel>> = AtomicPtr::new(core::ptr::null_mut());

/// Returns the table, if it was made.
pub(crate) fn table() -> Option<&'static GrantTable<Kernel>> {
    // SAFETY: what was stored is a table that stays for ever. Acquire: it was made before it was stored.
    unsafe { TABLE.load(Acquire).as_ref() }
}

/// Takes over the grant table of the domain, with all its frames.
///
/// Context: thread, while the system starts, before anything is granted; sleeps. Locks: none. Errors, also logged: EBUSY if it was done
/// already, ENOMEM, and what Xen says.
#[unsafe(no_mangle)]
pub extern "C" fn xenpv_grant_init() -> c_int {
    if table().is_some() {
        return errno::XENPV_EBUSY;
    }
    // SAFETY: the glue calls this in place of the kernel's own code for the table.
    let made = unsafe { GrantTable::new(KERNEL) };
    match made.and_then(|table| table.grow_to(u32::MAX).map(|()| table)) {
        Ok(table) => {
            // Release: the table is made before it is seen. There is one thread yet, so nobody was faster.
            TABLE.swap(Box::into_raw(Box::new(table)), AcqRel);
            0
        }
        Err(error) => {
            KERNEL.log(Level::Error, format_args!("{error}"));
            errno::of_grant(&error)
        }
    }
}

/// Grants the page with frame `frame` to domain `domid`, for reading only or for writing, too. The reference is in `*gref`.
///
/// Context: any up to IPL_VM. Locks: any. Ownership: the page stays the caller's, and where it is, until `xenpv_grant_revoke`. Errors:
/// ENXIO before `xenpv_grant_init`, ENOMEM if all references are in use, EINVAL for a frame beyond 16 TiB.
///
/// # Safety
/// As above; `gref` may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xenpv_grant_access(domid: u16, frame: u64, readonly: bool, gref: *mut u32) -> c_int {
    let Some(table) = table() else { return errno::XENPV_ENXIO };
    // An entry of version 1 has 32 bits for it.
    if u32::try_from(frame).is_err() {
        return errno::XENPV_EINVAL;
    }
    let mut refs = [GrantRef(0)];
    if let Err(error) = table.reserve(&mut refs) {
        return errno::of_grant(&error);
    }
    let access = if readonly { Access::ReadOnly } else { Access::ReadWrite };
    let [made] = refs;
    // SAFETY: just reserved; the caller keeps the page where it is.
    unsafe {
        table.share(made, DomId(domid), Gfn(frame), access);
        gref.write(made.0);
    }
    0
}

/// Ends what `xenpv_grant_access` has begun, and frees the reference. Returns 0, or EBUSY if the other domain still maps the page: then
/// the reference is freed when it doesn't any more, and the page must stay where it is and be used for nothing else.
///
/// Context: any up to IPL_VM. Locks: any.
///
/// # Safety
/// The reference was returned by `xenpv_grant_access` and not revoked since.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xenpv_grant_revoke(gref: u32) -> c_int {
    let Some(table) = table() else { return errno::XENPV_ENXIO };
    let refs = [GrantRef(gref)];
    match table.end(refs[0]) {
        Ok(()) => {
            // SAFETY: the caller had it, and its access is over.
            unsafe { table.release(&refs) };
            0
        }
        Err(StillMapped { .. }) => {
            // SAFETY: the caller had it and gives it up; the page is the caller's.
            unsafe { table.quarantine(&refs, None) };
            errno::XENPV_EBUSY
        }
    }
}

/// Tells whether another domain maps the page of a reference just now.
///
/// Context: any. Locks: any.
#[unsafe(no_mangle)]
pub extern "C" fn xenpv_grant_mapped(gref: u32) -> bool {
    table().is_some_and(|table| table.is_mapped(GrantRef(gref)))
}

/// What the grant table is, in numbers.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct GrantCounters {
    /// References that there are.
    pub entries: u32,
    /// Of these, free ones.
    pub free: u32,
    /// References that a peer has not let go of, and that are tried again.
    pub quarantined: u32,
    /// References that are lost for ever.
    pub leaked: u32,
}
static_assertions::const_assert_eq!(size_of::<GrantCounters>(), 16);

/// Writes what the grant table is to `*counters`; zeros before `xenpv_grant_init`.
///
/// Context: any up to IPL_VM. Locks: any.
///
/// # Safety
/// `counters` may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xenpv_grant_counters(counters: *mut GrantCounters) {
    let now = table().map_or(GrantCounters::default(), |table| {
        let stats = table.stats();
        GrantCounters {
            entries: stats.entries,
            free: stats.free,
            quarantined: stats.quarantined_refs,
            leaked: stats.leaked_refs,
        }
    });
    // SAFETY: the caller's promise.
    unsafe { counters.write(now) };
}
