//! Errors as NetBSD numbers them. Xen has numbers of its own, some of which mean something else here: 11 is `EAGAIN` there and
//! `EDEADLK` in NetBSD. This is the only place where the one becomes the other.

use core::ffi::c_int;

use hypercall::XenError;
use hypercall::call::grant_table::GrantOpError;
use hypercall::grant::GrantError;
use xbd::front::{IoError, SubmitError};
use xen_sys::errno::{
    XEN_E2BIG, XEN_EACCES, XEN_EAGAIN, XEN_EBUSY, XEN_EEXIST, XEN_EFAULT, XEN_EINVAL, XEN_ENOENT, XEN_ENOMEM,
    XEN_ENOSPC, XEN_ENOSYS, XEN_ENXIO, XEN_EOPNOTSUPP, XEN_EPERM, XEN_ESRCH,
};
use xenbus::error::{FrontError, NegotiationError};
use xenbus::store::{Cause, Errno, StoreError};

/// Operation not permitted.
pub const XENPV_EPERM: c_int = 1;
/// No such file or directory.
pub const XENPV_ENOENT: c_int = 2;
/// No such process; here: no such domain.
pub const XENPV_ESRCH: c_int = 3;
/// Input/output error.
pub const XENPV_EIO: c_int = 5;
/// Device not configured.
pub const XENPV_ENXIO: c_int = 6;
/// Argument list too long.
pub const XENPV_E2BIG: c_int = 7;
/// Cannot allocate memory.
pub const XENPV_ENOMEM: c_int = 12;
/// Permission denied.
pub const XENPV_EACCES: c_int = 13;
/// Bad address.
pub const XENPV_EFAULT: c_int = 14;
/// Device busy.
pub const XENPV_EBUSY: c_int = 16;
/// File exists.
pub const XENPV_EEXIST: c_int = 17;
/// Invalid argument.
pub const XENPV_EINVAL: c_int = 22;
/// No space left on device.
pub const XENPV_ENOSPC: c_int = 28;
/// Read-only file system.
pub const XENPV_EROFS: c_int = 30;
/// Resource temporarily unavailable: the caller tries again later.
pub const XENPV_EAGAIN: c_int = 35;
/// Operation not supported.
pub const XENPV_EOPNOTSUPP: c_int = 45;
/// Operation timed out.
pub const XENPV_ETIMEDOUT: c_int = 60;
/// Function not implemented.
pub const XENPV_ENOSYS: c_int = 78;
/// Bad or corrupt message: a node of xenstore with garbage.
pub const XENPV_EBADMSG: c_int = 88;

/// Returns NetBSD's number for an error of Xen's; `EIO` for those that it has none for.
pub const fn of_xen(error: XenError) -> c_int {
    match error.0 {
        XEN_EPERM => XENPV_EPERM,
        XEN_ENOENT => XENPV_ENOENT,
        XEN_ESRCH => XENPV_ESRCH,
        XEN_ENXIO => XENPV_ENXIO,
        XEN_E2BIG => XENPV_E2BIG,
        XEN_EAGAIN => XENPV_EAGAIN,
        XEN_ENOMEM => XENPV_ENOMEM,
        XEN_EACCES => XENPV_EACCES,
        XEN_EFAULT => XENPV_EFAULT,
        XEN_EBUSY => XENPV_EBUSY,
        XEN_EEXIST => XENPV_EEXIST,
        XEN_EINVAL => XENPV_EINVAL,
        XEN_ENOSPC => XENPV_ENOSPC,
        XEN_ENOSYS => XENPV_ENOSYS,
        XEN_EOPNOTSUPP => XENPV_EOPNOTSUPP,
        _ => XENPV_EIO,
    }
}

/// Returns Xen's error for a number that the kernel has returned from an up-call.
pub(crate) const fn to_xen(errno: c_int) -> XenError {
    match errno {
        XENPV_ENOMEM => XenError::ENOMEM,
        XENPV_ENOENT => XenError::ENOENT,
        XENPV_EBUSY => XenError::EBUSY,
        _ => XenError::EINVAL,
    }
}

pub(crate) const fn of_grant(error: &GrantError) -> c_int {
    match error {
        GrantError::Xen(GrantOpError::Xen(error)) => of_xen(*error),
        GrantError::Xen(_) => XENPV_EIO,
        _ => XENPV_ENOMEM,
    }
}

fn of_store(error: &StoreError) -> c_int {
    match &error.cause {
        Cause::Refused(errno) => match errno {
            Errno::Inval => XENPV_EINVAL,
            Errno::Acces => XENPV_EACCES,
            Errno::Exist => XENPV_EEXIST,
            Errno::Noent => XENPV_ENOENT,
            Errno::Nomem => XENPV_ENOMEM,
            Errno::Nospc | Errno::Quota => XENPV_ENOSPC,
            Errno::Nosys => XENPV_ENOSYS,
            Errno::Rofs => XENPV_EROFS,
            Errno::Busy => XENPV_EBUSY,
            Errno::Again => XENPV_EAGAIN,
            Errno::Toobig => XENPV_E2BIG,
            Errno::Perm => XENPV_EPERM,
            Errno::Isdir | Errno::Io | Errno::Notempty | Errno::Isconn => XENPV_EIO,
        },
        Cause::TooLong(_) => XENPV_E2BIG,
        Cause::Malformed | Cause::BadValue(_) => XENPV_EBADMSG,
        Cause::TimedOut(_) => XENPV_ETIMEDOUT,
        Cause::NoWatch(_) => XENPV_ENOSPC,
        Cause::Contended(_) => XENPV_EAGAIN,
        Cause::Broken | Cause::UnknownRefusal(_) => XENPV_EIO,
    }
}

pub(crate) fn of_front(error: &FrontError) -> c_int {
    match error {
        FrontError::Negotiation(NegotiationError::Store(error)) => of_store(error),
        FrontError::Negotiation(NegotiationError::BadNode { .. }) => XENPV_EBADMSG,
        FrontError::Grant(error) => of_grant(error),
        FrontError::Event(error) => of_xen(error.error),
    }
}

pub(crate) const fn of_submit(error: SubmitError) -> c_int {
    match error {
        SubmitError::Full => XENPV_EAGAIN,
        SubmitError::NotConnected => XENPV_EIO,
        SubmitError::ReadOnly => XENPV_EROFS,
        SubmitError::NotSupported(_) => XENPV_EOPNOTSUPP,
        SubmitError::BeyondEnd { .. } | SubmitError::BadBuffer | SubmitError::TooLarge { .. } => XENPV_EINVAL,
    }
}

pub(crate) const fn of_io(error: IoError) -> c_int {
    match error {
        IoError::NotSupported => XENPV_EOPNOTSUPP,
        IoError::Refused(error) => of_submit(error),
        IoError::Failed | IoError::BadStatus(_) | IoError::Lost => XENPV_EIO,
    }
}
