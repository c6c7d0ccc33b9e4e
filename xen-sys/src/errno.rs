//! `errno.h`: Xen's error numbers.
//!
//! A hypercall returns them negated. They are Xen's own, whatever the guest's kernel calls by these names: 11 is `EAGAIN` here
//! and `EDEADLK` in a BSD.

/// The caller lacks the privilege.
pub const XEN_EPERM: i32 = 1;
/// No such object.
pub const XEN_ENOENT: i32 = 2;
/// No such domain.
pub const XEN_ESRCH: i32 = 3;
/// Input or output failed.
pub const XEN_EIO: i32 = 5;
/// No such device or address.
pub const XEN_ENXIO: i32 = 6;
/// An argument is too long.
pub const XEN_E2BIG: i32 = 7;
/// The image can't be executed.
pub const XEN_ENOEXEC: i32 = 8;
/// Bad descriptor.
pub const XEN_EBADF: i32 = 9;
/// No child.
pub const XEN_ECHILD: i32 = 10;
/// Not now; the caller may try again.
pub const XEN_EAGAIN: i32 = 11;
/// Another name of [`XEN_EAGAIN`].
pub const XEN_EWOULDBLOCK: i32 = 11;
/// Out of memory.
pub const XEN_ENOMEM: i32 = 12;
/// Access denied.
pub const XEN_EACCES: i32 = 13;
/// A guest handle points to no accessible memory.
pub const XEN_EFAULT: i32 = 14;
/// The object is in use.
pub const XEN_EBUSY: i32 = 16;
/// The object exists already.
pub const XEN_EEXIST: i32 = 17;
/// The two objects are of different devices.
pub const XEN_EXDEV: i32 = 18;
/// No such device.
pub const XEN_ENODEV: i32 = 19;
/// Not a directory.
pub const XEN_ENOTDIR: i32 = 20;
/// A directory.
pub const XEN_EISDIR: i32 = 21;
/// An argument is invalid.
pub const XEN_EINVAL: i32 = 22;
/// The system's table is full.
pub const XEN_ENFILE: i32 = 23;
/// The domain's table is full.
pub const XEN_EMFILE: i32 = 24;
/// No space left.
pub const XEN_ENOSPC: i32 = 28;
/// Read-only.
pub const XEN_EROFS: i32 = 30;
/// Too many links.
pub const XEN_EMLINK: i32 = 31;
/// An argument lies outside the function's domain.
pub const XEN_EDOM: i32 = 33;
/// A result can't be represented.
pub const XEN_ERANGE: i32 = 34;
/// Waiting would never end.
pub const XEN_EDEADLK: i32 = 35;
/// Another name of [`XEN_EDEADLK`].
pub const XEN_EDEADLOCK: i32 = 35;
/// A name is too long.
pub const XEN_ENAMETOOLONG: i32 = 36;
/// No lock is available.
pub const XEN_ENOLCK: i32 = 37;
/// Xen doesn't implement the hypercall or the command.
pub const XEN_ENOSYS: i32 = 38;
/// The directory isn't empty.
pub const XEN_ENOTEMPTY: i32 = 39;
/// No data.
pub const XEN_ENODATA: i32 = 61;
/// The timer ran out.
pub const XEN_ETIME: i32 = 62;
/// The message makes no sense.
pub const XEN_EBADMSG: i32 = 74;
/// A value is too large for its field.
pub const XEN_EOVERFLOW: i32 = 75;
/// Invalid sequence of bytes.
pub const XEN_EILSEQ: i32 = 84;
/// Not a socket.
pub const XEN_ENOTSOCK: i32 = 88;
/// The message is too large.
pub const XEN_EMSGSIZE: i32 = 90;
/// The operation isn't supported, or not on this object.
pub const XEN_EOPNOTSUPP: i32 = 95;
/// The address is in use.
pub const XEN_EADDRINUSE: i32 = 98;
/// The address isn't available.
pub const XEN_EADDRNOTAVAIL: i32 = 99;
/// No buffer space.
pub const XEN_ENOBUFS: i32 = 105;
/// Connected already.
pub const XEN_EISCONN: i32 = 106;
/// Not connected.
pub const XEN_ENOTCONN: i32 = 107;
/// The operation took too long.
pub const XEN_ETIMEDOUT: i32 = 110;
/// The other side refused the connection.
pub const XEN_ECONNREFUSED: i32 = 111;
