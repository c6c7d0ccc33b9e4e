//! Xenstore: the small tree of names and values by which the ends of a device find each other.
//!
//! Drivers use the trait [`Store`]; [`XenStore`] is our client of it, over the ring page of the domain. Its calls wait for
//! the answer, so they belong to the control part of a driver, in a thread that may sleep; the data path never calls it.

mod client;
mod codec;
mod operations;
mod toolstack;
mod watches;

pub use client::{Stats, XenStore};
pub use codec::{Decoder, Event, Incoming, Message, Oversize, Reply, Request};
pub use watches::WATCHES;
pub use xen_sys::io::xs_wire::XsdSockmsgType as Op;

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::str::FromStr;

use codec::{emit_perms, parse_perms};
use operations::{done, on};

/// A transaction, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tx(pub u32);

impl Tx {
    /// No transaction: the operation stands for itself.
    pub const NONE: Self = Self(0);
}

/// A watch that was set. It is unset by [`Store::unwatch`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WatchId(pub u32);

/// What went wrong with an operation on the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreError {
    /// The operation, as in "read".
    pub op: &'static str,
    /// The node that it was about.
    pub path: String,
    /// Why.
    pub cause: Cause,
}

/// Why an operation on the store failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// xenstored refused, with this error (io/xs_wire.h, xsd_errors).
    Refused(Errno),
    /// xenstored refused with a word that the protocol doesn't have; its first bytes.
    UnknownRefusal(String),
    /// The request is longer than the wire allows, in bytes.
    TooLong(usize),
    /// The ring's indices lie; the store is not used any more.
    Broken,
    /// The answer is not of the operation's form.
    Malformed,
    /// The value is there, but is not what it should be; the value.
    BadValue(String),
    /// No answer came in time, in nanoseconds.
    TimedOut(u64),
    /// All of the client's watches are in use; how many there are.
    NoWatch(usize),
    /// The transaction was tried this often, and each time somebody else was faster.
    Contended(u32),
}

/// An error word of xenstored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Errno {
    /// Not valid: a bad path or value.
    Inval,
    /// No permission.
    Acces,
    /// Exists already.
    Exist,
    /// A directory that is the root of the tree.
    Isdir,
    /// No such node.
    Noent,
    /// No memory in xenstored.
    Nomem,
    /// A quota is used up.
    Nospc,
    /// Input or output failed in xenstored.
    Io,
    /// Not empty.
    Notempty,
    /// Not supported.
    Nosys,
    /// Read-only.
    Rofs,
    /// Busy.
    Busy,
    /// Try again: a transaction met another one.
    Again,
    /// Already connected.
    Isconn,
    /// Too big.
    Toobig,
    /// Not permitted.
    Perm,
    /// A quota is used up: oxenstored's own word, which xsd_errors doesn't have.
    Quota,
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "xenstore {} {}: ", self.op, self.path)?;
        match &self.cause {
            Cause::Refused(errno) => write!(f, "{}", errno.word()),
            Cause::UnknownRefusal(word) => write!(f, "refused with an unknown error \"{}\"", word.escape_default()),
            Cause::TooLong(bytes) => write!(f, "{bytes} bytes are more than the wire takes"),
            Cause::Broken => f.write_str("the ring is corrupt, the store is out of use"),
            Cause::Malformed => f.write_str("malformed answer"),
            Cause::BadValue(value) => write!(f, "bad value \"{}\"", value.escape_default()),
            Cause::TimedOut(ns) => write!(f, "no answer within {} ms", ns / 1_000_000),
            Cause::NoWatch(watches) => write!(f, "all {watches} watches are in use"),
            Cause::Contended(tries) => write!(f, "transaction met others {tries} times"),
        }
    }
}

impl StoreError {
    /// Tells whether the node does not exist.
    pub fn is_absent(&self) -> bool {
        self.cause == Cause::Refused(Errno::Noent)
    }
}

/// Who may do what with a node (GET_PERMS, SET_PERMS). The first of a list is the owner, whose letter holds for all
/// who are not in the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Perm {
    /// The domain.
    pub domain: hypercall::DomId,
    /// May read.
    pub read: bool,
    /// May write.
    pub write: bool,
}

/// The store as drivers use it. [`XenStore`] is ours; a kernel that has a client already lends its own: it passes requests on,
/// and takes note of watches that fire. A handle: cheap to clone. Paths are absolute, or relative to the domain's home
/// `/local/domain/ID`.
///
/// Each call waits for the answer, but [`fired`](Self::fired).
pub trait Store: Clone {
    /// Sends a request and returns the payload of its answer. The operations below are made of this.
    ///
    /// # Errors
    /// [`Cause`].
    fn request(&self, request: &Request<'_>) -> Result<Vec<u8>, Cause>;

    /// Sets a watch on a node and all below it. It fires once at once.
    ///
    /// # Errors
    /// [`StoreError`].
    fn watch(&self, path: &str) -> Result<WatchId, StoreError>;

    /// Unsets a watch; what it had pending is forgotten.
    ///
    /// # Errors
    /// [`StoreError`].
    fn unwatch(&self, watch: WatchId) -> Result<(), StoreError>;

    /// Tells whether the watch has fired since this was last asked. However often it fired, that is one event: the
    /// store is to be read again, the last state wins.
    fn fired(&self, watch: WatchId) -> bool;

    /// Reads a value, as bytes.
    ///
    /// # Errors
    /// [`StoreError`]; [`StoreError::is_absent`] if there is no such node.
    fn read(&self, tx: Tx, path: &str) -> Result<Vec<u8>, StoreError> {
        on(self, "read", Op::READ, tx, path, &[])
    }

    /// Writes a value; makes the node, and those above it, if they aren't there.
    ///
    /// # Errors
    /// [`StoreError`].
    fn write(&self, tx: Tx, path: &str, value: &[u8]) -> Result<(), StoreError> {
        done(self, "write", Op::WRITE, tx, path, &[value])
    }

    /// Returns the names of the nodes below one.
    ///
    /// # Errors
    /// [`StoreError`].
    fn directory(&self, tx: Tx, path: &str) -> Result<Vec<String>, StoreError> {
        match on(self, "directory", Op::DIRECTORY, tx, path, &[]) {
            Err(StoreError { cause: Cause::Refused(Errno::Toobig), .. }) => self.directory_in_parts(tx, path),
            Err(error) => Err(error),
            Ok(payload) => {
                operations::names(&payload).map_err(|cause| StoreError { op: "directory", path: path.into(), cause })
            }
        }
    }

    /// Returns the names below a node by as many requests as it takes, all of the same state of the node. An older oxenstored
    /// doesn't have the operation.
    ///
    /// # Errors
    /// [`StoreError`]; [`Cause::Contended`] if the node changes all the time.
    fn directory_in_parts(&self, tx: Tx, path: &str) -> Result<Vec<String>, StoreError> {
        operations::directory_in_parts(self, tx, path)
    }

    /// Makes an empty node.
    ///
    /// # Errors
    /// [`StoreError`].
    fn mkdir(&self, tx: Tx, path: &str) -> Result<(), StoreError> {
        done(self, "mkdir", Op::MKDIR, tx, path, &[])
    }

    /// Removes a node and all below it.
    ///
    /// # Errors
    /// [`StoreError`].
    fn rm(&self, tx: Tx, path: &str) -> Result<(), StoreError> {
        done(self, "rm", Op::RM, tx, path, &[])
    }

    /// Returns the permissions of a node.
    ///
    /// # Errors
    /// [`StoreError`].
    fn permissions(&self, tx: Tx, path: &str) -> Result<Vec<Perm>, StoreError> {
        let payload = on(self, "get_perms", Op::GET_PERMS, tx, path, &[])?;
        let perms = parse_perms(&payload).filter(|perms| !perms.is_empty());
        perms.ok_or_else(|| StoreError { op: "get_perms", path: path.into(), cause: Cause::Malformed })
    }

    /// Sets the permissions of a node.
    ///
    /// # Errors
    /// [`StoreError`].
    fn set_permissions(&self, tx: Tx, path: &str, perms: &[Perm]) -> Result<(), StoreError> {
        done(self, "set_perms", Op::SET_PERMS, tx, path, &[emit_perms(perms).as_bytes()])
    }

    /// Starts a transaction. Use [`transaction`](Self::transaction).
    ///
    /// # Errors
    /// [`StoreError`].
    fn start(&self) -> Result<Tx, StoreError> {
        let fail = |cause| StoreError { op: "transaction_start", path: String::new(), cause };
        let request = Request { op: Op::TRANSACTION_START, tx: Tx::NONE, parts: &[&[0]] };
        match operations::number(&self.request(&request).map_err(fail)?).map_err(fail)? {
            // Zero would be no transaction at all.
            0 => Err(fail(Cause::Malformed)),
            id => Ok(Tx(id)),
        }
    }

    /// Ends a transaction. Use [`transaction`](Self::transaction).
    ///
    /// # Errors
    /// [`StoreError`] with [`Errno::Again`] if somebody else was faster.
    fn end(&self, tx: Tx, commit: bool) -> Result<(), StoreError> {
        let word: &[u8] = if commit { b"T\0" } else { b"F\0" };
        let ended = self.request(&Request { op: Op::TRANSACTION_END, tx, parts: &[word] });
        ended.map(drop).map_err(|cause| StoreError { op: "transaction_end", path: String::new(), cause })
    }

    /// Reads a value as text without surrounding blanks.
    ///
    /// # Errors
    /// [`StoreError`]; [`Cause::BadValue`] if it is not UTF-8.
    fn read_text(&self, tx: Tx, path: &str) -> Result<String, StoreError> {
        let value = self.read(tx, path)?;
        match core::str::from_utf8(&value) {
            Ok(text) => Ok(text.trim().into()),
            Err(_) => Err(bad_value(path, String::from_utf8_lossy(&value).into_owned())),
        }
    }

    /// Reads a decimal number, or anything else that is written as text.
    ///
    /// # Errors
    /// [`StoreError`]; [`Cause::BadValue`] if the text is not such a thing.
    fn read_as<T: FromStr>(&self, tx: Tx, path: &str) -> Result<T, StoreError> {
        let text = self.read_text(tx, path)?;
        text.parse().map_err(|_| bad_value(path, text))
    }

    /// Reads as [`read_as`](Self::read_as), `None` if there is no such node.
    ///
    /// # Errors
    /// [`StoreError`] for everything else.
    fn read_if_there<T: FromStr>(&self, tx: Tx, path: &str) -> Result<Option<T>, StoreError> {
        match self.read_as(tx, path) {
            Ok(value) => Ok(Some(value)),
            Err(error) if error.is_absent() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes a value as text.
    ///
    /// # Errors
    /// [`StoreError`].
    fn write_text(&self, tx: Tx, path: &str, value: impl fmt::Display) -> Result<(), StoreError> {
        self.write(tx, path, alloc::format!("{value}").as_bytes())
    }

    /// Runs `steps` in a transaction and commits it; once more, up to [`TRANSACTION_TRIES`] times in all, if somebody else
    /// was faster. `steps` that fail abort it.
    ///
    /// # Errors
    /// What `steps` returned, or [`StoreError`] with [`Cause::Contended`].
    fn transaction<T>(&self, mut steps: impl FnMut(Tx) -> Result<T, StoreError>) -> Result<T, StoreError> {
        for _ in 0..TRANSACTION_TRIES {
            let tx = self.start()?;
            let value = match steps(tx) {
                Ok(value) => value,
                Err(error) => {
                    // The transaction's own failure is what matters, and a failed abort ends with it.
                    let _ = self.end(tx, false);
                    return Err(error);
                }
            };
            match self.end(tx, true) {
                Ok(()) => return Ok(value),
                Err(StoreError { cause: Cause::Refused(Errno::Again), .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Err(StoreError { op: "transaction", path: String::new(), cause: Cause::Contended(TRANSACTION_TRIES) })
    }
}

/// How often a transaction is tried before it is given up.
pub const TRANSACTION_TRIES: u32 = 16;

impl Errno {
    /// All of them.
    pub const ALL: [Self; 17] = [
        Self::Inval,
        Self::Acces,
        Self::Exist,
        Self::Isdir,
        Self::Noent,
        Self::Nomem,
        Self::Nospc,
        Self::Io,
        Self::Notempty,
        Self::Nosys,
        Self::Rofs,
        Self::Busy,
        Self::Again,
        Self::Isconn,
        Self::Toobig,
        Self::Perm,
        Self::Quota,
    ];

    /// Returns the word that stands for it on the wire.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Inval => "EINVAL",
            Self::Acces => "EACCES",
            Self::Exist => "EEXIST",
            Self::Isdir => "EISDIR",
            Self::Noent => "ENOENT",
            Self::Nomem => "ENOMEM",
            Self::Nospc => "ENOSPC",
            Self::Io => "EIO",
            Self::Notempty => "ENOTEMPTY",
            Self::Nosys => "ENOSYS",
            Self::Rofs => "EROFS",
            Self::Busy => "EBUSY",
            Self::Again => "EAGAIN",
            Self::Isconn => "EISCONN",
            Self::Toobig => "E2BIG",
            Self::Perm => "EPERM",
            Self::Quota => "EQUOTA",
        }
    }
}

fn bad_value(path: &str, value: String) -> StoreError {
    StoreError { op: "read", path: path.into(), cause: Cause::BadValue(value) }
}
