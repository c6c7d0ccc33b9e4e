//! Xen's error numbers as a type.

use core::fmt;

use xen_sys::errno::*;

/// An error number of Xen's, positive. These are not the numbers of the guest's kernel, even where the names are equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XenError(pub i32);

/// Turns the plain answer of a hypercall into a result.
///
/// # Errors
/// [`XenError`] if it is negative.
#[inline]
pub const fn from_ret(ret: isize) -> Result<usize, XenError> {
    if ret < 0 { Err(XenError(-(ret as i32))) } else { Ok(ret as usize) }
}

impl XenError {
    /// The caller lacks the privilege.
    pub const EPERM: Self = Self(XEN_EPERM);
    /// No such object.
    pub const ENOENT: Self = Self(XEN_ENOENT);
    /// No such domain.
    pub const ESRCH: Self = Self(XEN_ESRCH);
    /// No such device or address.
    pub const ENXIO: Self = Self(XEN_ENXIO);
    /// Not now; the caller may try again.
    pub const EAGAIN: Self = Self(XEN_EAGAIN);
    /// Out of memory.
    pub const ENOMEM: Self = Self(XEN_ENOMEM);
    /// Access denied.
    pub const EACCES: Self = Self(XEN_EACCES);
    /// A guest handle points to no accessible memory.
    pub const EFAULT: Self = Self(XEN_EFAULT);
    /// The object is in use.
    pub const EBUSY: Self = Self(XEN_EBUSY);
    /// The object exists already.
    pub const EEXIST: Self = Self(XEN_EEXIST);
    /// An argument is invalid.
    pub const EINVAL: Self = Self(XEN_EINVAL);
    /// No space left.
    pub const ENOSPC: Self = Self(XEN_ENOSPC);
    /// Xen doesn't implement the hypercall or the command.
    pub const ENOSYS: Self = Self(XEN_ENOSYS);

    /// Returns the name that `errno.h` gives the number, if it gives one.
    pub const fn name(self) -> Option<&'static str> {
        Some(match self.0 {
            XEN_EPERM => "EPERM",
            XEN_ENOENT => "ENOENT",
            XEN_ESRCH => "ESRCH",
            XEN_EIO => "EIO",
            XEN_ENXIO => "ENXIO",
            XEN_E2BIG => "E2BIG",
            XEN_ENOEXEC => "ENOEXEC",
            XEN_EBADF => "EBADF",
            XEN_ECHILD => "ECHILD",
            XEN_EAGAIN => "EAGAIN",
            XEN_ENOMEM => "ENOMEM",
            XEN_EACCES => "EACCES",
            XEN_EFAULT => "EFAULT",
            XEN_EBUSY => "EBUSY",
            XEN_EEXIST => "EEXIST",
            XEN_EXDEV => "EXDEV",
            XEN_ENODEV => "ENODEV",
            XEN_ENOTDIR => "ENOTDIR",
            XEN_EISDIR => "EISDIR",
            XEN_EINVAL => "EINVAL",
            XEN_ENFILE => "ENFILE",
            XEN_EMFILE => "EMFILE",
            XEN_ENOSPC => "ENOSPC",
            XEN_EROFS => "EROFS",
            XEN_EMLINK => "EMLINK",
            XEN_EDOM => "EDOM",
            XEN_ERANGE => "ERANGE",
            XEN_EDEADLK => "EDEADLK",
            XEN_ENAMETOOLONG => "ENAMETOOLONG",
            XEN_ENOLCK => "ENOLCK",
            XEN_ENOSYS => "ENOSYS",
            XEN_ENOTEMPTY => "ENOTEMPTY",
            XEN_ENODATA => "ENODATA",
            XEN_ETIME => "ETIME",
            XEN_EBADMSG => "EBADMSG",
            XEN_EOVERFLOW => "EOVERFLOW",
            XEN_EILSEQ => "EILSEQ",
            XEN_ENOTSOCK => "ENOTSOCK",
            XEN_EMSGSIZE => "EMSGSIZE",
            XEN_EOPNOTSUPP => "EOPNOTSUPP",
            XEN_EADDRINUSE => "EADDRINUSE",
            XEN_EADDRNOTAVAIL => "EADDRNOTAVAIL",
            XEN_ENOBUFS => "ENOBUFS",
            XEN_EISCONN => "EISCONN",
            XEN_ENOTCONN => "ENOTCONN",
            XEN_ETIMEDOUT => "ETIMEDOUT",
            XEN_ECONNREFUSED => "ECONNREFUSED",
            _ => return None,
        })
    }
}

impl fmt::Display for XenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name().unwrap_or("unknown error"), self.0)
    }
}

impl core::error::Error for XenError {}
