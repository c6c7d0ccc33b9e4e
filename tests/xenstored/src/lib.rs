//! A small xenstored without IO, for the mock and for guests without a dom0.
//!
//! A [`Daemon`] holds the tree. Each client is a connection: its bytes go in by [`Daemon::input`] and come out by
//! [`Daemon::output`], in the wire format of io/xs_wire.h; [`RingClient`] moves them through a domain's ring page. Nothing here waits, and nothing a client sends makes it panic or grow
//! without bound.
//!
//! What it does, and which error it answers with, is what oxenstored of Xen 4.17 does; the quotas are numbers of their own.
//!
//! ```text
//!   bytes ──► Input ──► one packet ──► Daemon::call ──► Tree                  a transaction works on a snapshot of the
//!                                          │                                  tree; at its end the operations are done
//!   bytes ◄── Output ◄── reply, events ◄───┴── changes × watches              again on today's tree if that has changed,
//!                                                                             and EAGAIN is the answer if one differs
//! ```
#![no_std]

extern crate alloc;

mod daemon;
mod request;
mod ring;
mod transaction;
mod tree;
mod watch;
mod wire;

pub use daemon::{ConnId, Daemon};
pub use ring::{Dropped, RingClient};
pub use wire::BadFrame;
pub use xen_sys::io::xs_wire::XsdSockmsgType as Op;

/// What one unprivileged domain may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// Nodes that it owns.
    pub nodes: usize,
    /// Bytes of a value; holds for everybody.
    pub node_bytes: usize,
    /// Permissions of a node that it sets.
    pub perms: usize,
    /// Watches of a connection.
    pub watches: usize,
    /// Open transactions of a connection.
    pub transactions: usize,
    /// Operations of a transaction.
    pub transaction_ops: usize,
    /// Requests whose replies it has not read; no more is taken from it until it does. Holds for everybody.
    pub outstanding: usize,
}

impl Default for Quota {
    /// As oxenstored has them: its limits are 100 watches and 10 transactions, but it counts one too few. Permissions it
    /// doesn't count.
    fn default() -> Self {
        Self {
            nodes: 1000,
            node_bytes: 2048,
            perms: usize::MAX,
            watches: 101,
            transactions: 11,
            transaction_ops: 1024,
            outstanding: 20,
        }
    }
}

/// Why an operation was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// A bad path or argument.
    Inval,
    /// No permission.
    Acces,
    /// A watch that is there already.
    Exist,
    /// No such node, watch or domain.
    Noent,
    /// More permissions than a node may have.
    Nospc,
    /// No such transaction.
    Io,
    /// No such operation.
    Nosys,
    /// A transaction inside a transaction.
    Busy,
    /// Somebody else changed what a transaction had looked at.
    Again,
    /// A value that is too long, or a reply that would be.
    Toobig,
    /// A quota is used up.
    Quota,
}

impl Refusal {
    /// Returns the word that stands for it on the wire. `EQUOTA` is oxenstored's own, io/xs_wire.h doesn't have it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Inval => "EINVAL",
            Self::Acces => "EACCES",
            Self::Exist => "EEXIST",
            Self::Noent => "ENOENT",
            Self::Nospc => "ENOSPC",
            Self::Io => "EIO",
            Self::Nosys => "ENOSYS",
            Self::Busy => "EBUSY",
            Self::Again => "EAGAIN",
            Self::Toobig => "E2BIG",
            Self::Quota => "EQUOTA",
        }
    }
}
