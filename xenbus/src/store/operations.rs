//! What the operations of [`Store`](super::Store) are made of: requests, and the forms of their answers.

use alloc::string::String;
use alloc::vec::Vec;

use xen_sys::io::xs_wire::XsdSockmsgType as Op;

use super::codec::{Request, strings};
use super::{Cause, Store, StoreError, TRANSACTION_TRIES, Tx};

/// Bytes of a list of names that are believed.
const LIST_MAX: usize = 1 << 20;

/// Does an operation on a node.
pub(super) fn on<S: Store>(
    store: &S,
    name: &'static str,
    op: Op,
    tx: Tx,
    path: &str,
    rest: &[&[u8]],
) -> Result<Vec<u8>, StoreError> {
    let fail = |cause| StoreError { op: name, path: path.into(), cause };
    // The wire ends strings by NUL: one inside would make the rest of it something else.
    if path.contains('\0') {
        return Err(fail(Cause::BadValue(path.into())));
    }
    let mut parts = [path.as_bytes(), &[0], &[], &[], &[]];
    for (part, rest) in parts.iter_mut().skip(2).zip(rest) {
        *part = rest;
    }
    store.request(&Request { op, tx, parts: &parts }).map_err(fail)
}

/// Does an operation whose answer is nothing but that it was done.
pub(super) fn done<S: Store>(
    store: &S,
    name: &'static str,
    op: Op,
    tx: Tx,
    path: &str,
    rest: &[&[u8]],
) -> Result<(), StoreError> {
    on(store, name, op, tx, path, rest).map(drop)
}

/// Parses a number with a NUL behind it.
pub(super) fn number<T: core::str::FromStr>(payload: &[u8]) -> Result<T, Cause> {
    let text = payload.strip_suffix(&[0]).unwrap_or(payload);
    core::str::from_utf8(text).ok().and_then(|text| text.parse().ok()).ok_or(Cause::Malformed)
}

/// Parses a list of names, each with a NUL behind it.
pub(super) fn names(payload: &[u8]) -> Result<Vec<String>, Cause> {
    strings(payload).map(|name| core::str::from_utf8(name).map(String::from).map_err(|_| Cause::Malformed)).collect()
}

/// Returns the names below a node by as many requests as it takes, all of the same state of the node.
pub(super) fn directory_in_parts<S: Store>(store: &S, tx: Tx, path: &str) -> Result<Vec<String>, StoreError> {
    let fail = |cause| StoreError { op: "directory_part", path: path.into(), cause };
    let (mut generation, mut list, mut restarts) = (None, Vec::new(), 0);
    loop {
        let offset = alloc::format!("{path}\0{}\0", list.len());
        let request = Request { op: Op::DIRECTORY_PART, tx, parts: &[offset.as_bytes()] };
        let reply = store.request(&request).map_err(fail)?;
        let end = reply.iter().position(|&byte| byte == 0).ok_or_else(|| fail(Cause::Malformed))?;
        let (now, rest) = reply.split_at(end);
        let piece = rest.get(1..).unwrap_or_default();
        let now: u64 = number(now).map_err(fail)?;
        if *generation.get_or_insert(now) != now {
            (generation, list, restarts) = (None, Vec::new(), restarts + 1);
            if restarts == TRANSACTION_TRIES {
                return Err(fail(Cause::Contended(restarts)));
            }
            continue;
        }
        // The end of the list is an empty name.
        if piece == [0] {
            return names(&list).map_err(fail);
        }
        let (last, piece) = match piece.strip_suffix(&[0, 0]) {
            Some(_) => (true, piece.get(..piece.len() - 1).unwrap_or_default()),
            None => (false, piece),
        };
        list.extend_from_slice(piece);
        if last {
            return names(&list).map_err(fail);
        }
        if piece.is_empty() || list.len() > LIST_MAX {
            return Err(fail(Cause::Malformed));
        }
    }
}
