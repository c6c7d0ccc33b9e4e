//! `io/xs_wire.h`: the wire protocol of xenstore and the page by which a guest speaks it.

use core::sync::atomic::{AtomicU8, AtomicU32};

use static_assertions::const_assert_eq;

use crate::Wire;

/// `io/xs_wire.h`, `enum xsd_sockmsg_type`. Kind of a message; a reply has that of its request, or [`XsdSockmsgType::ERROR`].
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct XsdSockmsgType(pub u32);

impl XsdSockmsgType {
    /// `XS_CONTROL`: commands to the daemon itself.
    pub const CONTROL: Self = Self(0);
    /// `XS_DEBUG`: older name of [`XsdSockmsgType::CONTROL`].
    pub const DEBUG: Self = Self(0);
    /// `XS_DIRECTORY`: lists the children of a node.
    pub const DIRECTORY: Self = Self(1);
    /// `XS_READ`: reads a node.
    pub const READ: Self = Self(2);
    /// `XS_GET_PERMS`: reads a node's permissions.
    pub const GET_PERMS: Self = Self(3);
    /// `XS_WATCH`: watches a node and all below.
    pub const WATCH: Self = Self(4);
    /// `XS_UNWATCH`: ends a watch.
    pub const UNWATCH: Self = Self(5);
    /// `XS_TRANSACTION_START`: begins a transaction.
    pub const TRANSACTION_START: Self = Self(6);
    /// `XS_TRANSACTION_END`: ends a transaction: `T` commits, `F` drops it.
    pub const TRANSACTION_END: Self = Self(7);
    /// `XS_INTRODUCE`: makes a domain known; privileged.
    pub const INTRODUCE: Self = Self(8);
    /// `XS_RELEASE`: forgets a domain; privileged.
    pub const RELEASE: Self = Self(9);
    /// `XS_GET_DOMAIN_PATH`: tells a domain's home.
    pub const GET_DOMAIN_PATH: Self = Self(10);
    /// `XS_WRITE`: writes a node, and makes it and its parents if need be.
    pub const WRITE: Self = Self(11);
    /// `XS_MKDIR`: makes a node if there is none.
    pub const MKDIR: Self = Self(12);
    /// `XS_RM`: removes a node and all below.
    pub const RM: Self = Self(13);
    /// `XS_SET_PERMS`: sets a node's permissions.
    pub const SET_PERMS: Self = Self(14);
    /// `XS_WATCH_EVENT`: a watch fired; from the daemon alone.
    pub const WATCH_EVENT: Self = Self(15);
    /// `XS_ERROR`: the request failed; the payload is an error's name.
    pub const ERROR: Self = Self(16);
    /// `XS_IS_DOMAIN_INTRODUCED`: tells whether a domain is known.
    pub const IS_DOMAIN_INTRODUCED: Self = Self(17);
    /// `XS_RESUME`: ends a domain's shut-down state; privileged.
    pub const RESUME: Self = Self(18);
    /// `XS_SET_TARGET`: gives a domain the rights of another; privileged.
    pub const SET_TARGET: Self = Self(19);
    /// `XS_RESET_WATCHES`: ends all watches and transactions of the connection.
    pub const RESET_WATCHES: Self = Self(21);
    /// `XS_DIRECTORY_PART`: lists part of the children of a node.
    pub const DIRECTORY_PART: Self = Self(22);
    /// `XS_GET_FEATURE`: tells the daemon's features, or those of a domain.
    ///
    /// No C counterpart: newer than Xen 4.17.
    pub const GET_FEATURE: Self = Self(23);
    /// `XS_SET_FEATURE`: sets the features that a domain sees; privileged.
    ///
    /// No C counterpart: newer than Xen 4.17.
    pub const SET_FEATURE: Self = Self(24);
    /// `XS_GET_QUOTA`: tells quotas.
    ///
    /// No C counterpart: newer than Xen 4.17.
    pub const GET_QUOTA: Self = Self(25);
    /// `XS_SET_QUOTA`: sets a quota; privileged.
    ///
    /// No C counterpart: newer than Xen 4.17.
    pub const SET_QUOTA: Self = Self(26);
    /// `XS_INVALID`: no kind; guaranteed to be never one.
    pub const INVALID: Self = Self(0xffff);
}

/// `io/xs_wire.h`, `struct xsd_sockmsg`. Header of a message; the payload follows.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XsdSockmsg {
    /// Kind.
    pub r#type: XsdSockmsgType,
    /// Number that the reply repeats.
    pub req_id: u32,
    /// Transaction, 0 for none.
    pub tx_id: u32,
    /// Bytes of payload, at most [`XENSTORE_PAYLOAD_MAX`].
    pub len: u32,
}
const_assert_eq!(size_of::<XsdSockmsg>(), 16);
// SAFETY: four words, each of which may have any value.
unsafe impl Wire for XsdSockmsg {}

/// Field of a watch event: the path.
pub const XS_WATCH_PATH: usize = 0;
/// Field of a watch event: the token.
pub const XS_WATCH_TOKEN: usize = 1;

/// Bytes of each ring of the page; a power of two.
pub const XENSTORE_RING_SIZE: usize = 1024;

/// `io/xs_wire.h`, `struct xenstore_domain_interface`. Two byte rings and their indices. Both sides write it in place.
#[repr(C)]
#[derive(Debug)]
pub struct XenstoreDomainInterface {
    /// Requests of the guest.
    pub req: [AtomicU8; XENSTORE_RING_SIZE],
    /// Replies and events to the guest.
    pub rsp: [AtomicU8; XENSTORE_RING_SIZE],
    /// Bytes of `req` taken by the daemon; a wrapping count, as all indices here.
    pub req_cons: AtomicU32,
    /// Bytes of `req` published by the guest.
    pub req_prod: AtomicU32,
    /// Bytes of `rsp` taken by the guest.
    pub rsp_cons: AtomicU32,
    /// Bytes of `rsp` published by the daemon.
    pub rsp_prod: AtomicU32,
    /// What the daemon can do: `XENSTORE_SERVER_FEATURE_` bits.
    pub server_features: AtomicU32,
    /// [`XENSTORE_CONNECTED`] or [`XENSTORE_RECONNECT`].
    pub connection: AtomicU32,
    /// One of the `XENSTORE_ERROR_` constants.
    pub error: AtomicU32,
}
const_assert_eq!(size_of::<XenstoreDomainInterface>(), 2076);

/// Longest payload in bytes.
pub const XENSTORE_PAYLOAD_MAX: usize = 4096;
/// Longest absolute path in bytes, without a final 0.
pub const XENSTORE_ABS_PATH_MAX: usize = 3072;
/// Longest relative path in bytes, without a final 0.
pub const XENSTORE_REL_PATH_MAX: usize = 2048;

/// Feature of the daemon: the guest may have the connection reset.
pub const XENSTORE_SERVER_FEATURE_RECONNECTION: u32 = 1;
/// Feature of the daemon: it tells errors in `error`.
pub const XENSTORE_SERVER_FEATURE_ERROR: u32 = 2;
/// Feature of the daemon: a watch may have a depth.
///
/// No C counterpart: newer than Xen 4.17.
pub const XENSTORE_SERVER_FEATURE_WATCHDEPTH: u32 = 4;
/// Feature of the daemon: permissions may name any domain.
///
/// No C counterpart: newer than Xen 4.17.
pub const XENSTORE_SERVER_FEATURE_DOMID_ANY: u32 = 8;

/// State of the connection: in use.
pub const XENSTORE_CONNECTED: u32 = 0;
/// State of the connection: the guest wants a reset; the daemon sets it back when that is done.
pub const XENSTORE_RECONNECT: u32 = 1;

/// Error of the connection: none.
pub const XENSTORE_ERROR_NONE: u32 = 0;
/// Error of the connection: communication failed.
pub const XENSTORE_ERROR_COMM: u32 = 1;
/// Error of the connection: an index of a ring is out of range.
pub const XENSTORE_ERROR_RINGIDX: u32 = 2;
/// Error of the connection: a message makes no sense.
pub const XENSTORE_ERROR_PROTO: u32 = 3;
