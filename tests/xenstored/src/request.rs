//! The operations that look at the tree or change it, and may stand in a transaction.

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use xen_sys::io::xs_wire::{XENSTORE_PAYLOAD_MAX, XsdSockmsgType as Op};

use crate::tree::{Perms, Tree, Who, absolute, number_of};
use crate::watch::{Change, Changes};
use crate::{Quota, Refusal};

/// What the operations need to know of the client.
#[derive(Clone, Debug)]
pub(crate) struct Session {
    pub(crate) who: Who,
    /// Where relative paths begin.
    pub(crate) home: String,
}

/// Does one operation on `tree`, and returns the payload of its reply.
pub(crate) fn run(
    tree: &mut Arc<Tree>,
    session: &Session,
    op: Op,
    payload: &[u8],
    quota: &Quota,
    changes: &mut Changes,
) -> Result<Vec<u8>, Refusal> {
    let who = session.who;
    let at = |path: &[u8]| absolute(path, &session.home);
    let reply = match op {
        Op::DIRECTORY => tree.directory(who, &at(only(payload)?)?)?,
        Op::DIRECTORY_PART => directory_part(tree, session, payload)?,
        Op::READ => tree.read(who, &at(only(payload)?)?)?,
        Op::GET_PERMS => tree.perms(who, &at(only(payload)?)?)?,
        Op::GET_DOMAIN_PATH => domain_path(only(payload)?),
        Op::WRITE => {
            let (path, value) = first(payload)?;
            let path = at(path)?;
            change(tree).write(who, &path, value, quota)?;
            changes.0.push((Change::Set, path));
            ok()
        }
        Op::MKDIR => {
            let path = at(only(payload)?)?;
            if change(tree).mkdir(who, &path, quota)? {
                changes.0.push((Change::Set, path));
            }
            ok()
        }
        Op::RM => {
            let path = at(only(payload)?)?;
            if change(tree).rm(who, &path)? {
                changes.0.push((Change::Gone, path));
            }
            ok()
        }
        Op::SET_PERMS => {
            let (path, perms) = first(payload)?;
            let (path, perms) = (at(path)?, Perms::parse(perms)?);
            if !who.privileged() && perms.len() > quota.perms {
                return Err(Refusal::Nospc);
            }
            change(tree).set_perms(who, &path, perms)?;
            changes.0.push((Change::Perms, path));
            ok()
        }
        _ => return Err(Refusal::Nosys),
    };
    if reply.len() > XENSTORE_PAYLOAD_MAX { Err(Refusal::Toobig) } else { Ok(reply) }
}

/// Returns the tree to be changed: a copy of its own if a transaction looks at it, and a new state in any case.
fn change(tree: &mut Arc<Tree>) -> &mut Tree {
    let tree = Arc::make_mut(tree);
    tree.generation += 1;
    tree
}

/// What an operation answers that has nothing to say.
pub(crate) fn ok() -> Vec<u8> {
    b"OK\0".to_vec()
}

/// Returns the one string of a payload.
pub(crate) fn only(payload: &[u8]) -> Result<&[u8], Refusal> {
    match first(payload)? {
        (path, []) => Ok(path),
        _ => Err(Refusal::Inval),
    }
}

/// Returns the first string of a payload, and what follows it.
pub(crate) fn first(payload: &[u8]) -> Result<(&[u8], &[u8]), Refusal> {
    let end = payload.iter().position(|&byte| byte == 0).ok_or(Refusal::Inval)?;
    let (string, rest) = payload.split_at(end);
    Ok((string, rest.get(1..).unwrap_or_default()))
}

/// Any number will do, and what is none is 0, as the real one has it.
fn domain_path(text: &[u8]) -> Vec<u8> {
    let digits = text.iter().skip_while(|byte| !byte.is_ascii_digit()).take_while(|byte| byte.is_ascii_digit());
    let number = digits.fold(0u64, |number, digit| number.wrapping_mul(10).wrapping_add(u64::from(digit - b'0')));
    alloc::format!("/local/domain/{number}\0").into_bytes()
}

/// Returns the generation, and as many whole names from the given offset on as a reply can hold; an empty name ends the list.
fn directory_part(tree: &Tree, session: &Session, payload: &[u8]) -> Result<Vec<u8>, Refusal> {
    let (path, offset) = first(payload)?;
    let offset: usize = number_of(only(offset)?)?;
    let names = tree.directory(session.who, &absolute(path, &session.home)?)?;
    let names = names.get(offset..).unwrap_or_default();
    let mut reply = alloc::format!("{}\0", tree.generation).into_bytes();
    let room = XENSTORE_PAYLOAD_MAX - reply.len() - 1;
    let fits = if names.len() <= room {
        names.len()
    } else {
        let end = names.iter().take(room).rposition(|&byte| byte == 0);
        end.map_or(0, |end| end + 1)
    };
    reply.extend_from_slice(names.get(..fits).unwrap_or_default());
    if fits == names.len() {
        reply.push(0);
    }
    Ok(reply)
}
