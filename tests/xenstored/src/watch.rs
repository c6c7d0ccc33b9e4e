//! Watches of one client, and the events that they cause.

use alloc::string::String;
use alloc::vec::Vec;

use xen_sys::DomId;
use xen_sys::io::xs_wire::{XENSTORE_PAYLOAD_MAX, XsdSockmsgType as Op};

use crate::tree::{Tree, Who, absolute_of_any_length, covers};
use crate::wire::{Kind, Output, Packet};
use crate::{Quota, Refusal};

/// What happened to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// Written or made.
    Set,
    /// Removed, with all below it.
    Gone,
    /// Its permissions changed.
    Perms,
}

/// Changes in their order, and the tree from before them.
#[derive(Debug, Default)]
pub(crate) struct Changes(pub(crate) Vec<(Change, String)>);

/// Undelivered events of one watch, beyond which further ones are folded into one that names the watched path.
const EVENTS: usize = 64;

#[derive(Debug)]
struct Watch {
    id: u64,
    /// The watched path in absolute form; a special one as it is.
    key: String,
    /// The path as the client wrote it.
    path: String,
    token: Vec<u8>,
    /// Events in the queue.
    pending: usize,
}

#[derive(Debug, Default)]
pub(crate) struct Watches {
    /// In the order in which they fire: from the root down, of the same path the last one first.
    list: Vec<Watch>,
    next: u64,
}

impl Watches {
    /// Adds a watch, and returns its number. The caller fires it once, by [`fire_one`](Self::fire_one).
    pub(crate) fn add(
        &mut self,
        who: Who,
        home: &str,
        path: &[u8],
        token: &[u8],
        quota: &Quota,
    ) -> Result<u64, Refusal> {
        let key = key(path, home)?;
        if !who.privileged() && self.list.len() >= quota.watches {
            return Err(Refusal::Quota);
        }
        if self.list.iter().any(|watch| watch.key == key && watch.token == token) {
            return Err(Refusal::Exist);
        }
        let path = String::from_utf8_lossy(path).into_owned();
        let id = self.next;
        let place = self.list.partition_point(|watch| watch.key < key);
        self.list.insert(place, Watch { id, key, path, token: token.into(), pending: 0 });
        self.next += 1;
        Ok(id)
    }

    pub(crate) fn remove(&mut self, home: &str, path: &[u8], token: &[u8]) -> Result<(), Refusal> {
        let key = key(path, home)?;
        let at = self.list.iter().position(|watch| watch.key == key && watch.token == token);
        self.list.remove(at.ok_or(Refusal::Noent)?);
        Ok(())
    }

    pub(crate) fn clear(&mut self) {
        self.list.clear();
    }

    pub(crate) fn len(&self) -> usize {
        self.list.len()
    }

    /// Fires a watch, whatever there is at its path.
    pub(crate) fn fire_one(&mut self, id: u64, output: &mut Output) {
        if let Some(watch) = self.list.iter_mut().find(|watch| watch.id == id) {
            let path = watch.path.clone();
            watch.fire(&path, output);
        }
    }

    /// Fires the watches on a special path, as in `@releaseDomain`.
    pub(crate) fn fire_special(&mut self, who: Who, name: &str, tree: &Tree, output: &mut Output) {
        if !tree.visible(who, &alloc::format!("/{name}")) {
            return;
        }
        for watch in self.list.iter_mut().filter(|watch| watch.key == name) {
            watch.fire(name, output);
        }
    }

    /// Fires all watches that these changes concern, as far as the client may know of them.
    pub(crate) fn fire(
        &mut self,
        who: Who,
        home: &str,
        changes: &Changes,
        old: &Tree,
        new: &Tree,
        output: &mut Output,
    ) {
        for (change, path) in &changes.0 {
            let visible = |path: &str| match change {
                Change::Set => new.visible(who, path),
                Change::Gone => old.visible(who, path),
                Change::Perms => old.visible(who, path) || new.visible(who, path),
            };
            for watch in &mut self.list {
                if covers(&watch.key, path) && visible(path) {
                    let path = if watch.relative() { path.strip_prefix(home).unwrap_or(path) } else { path };
                    watch.fire(path, output);
                } else if *change == Change::Gone && covers(path, &watch.key) && visible(&watch.key) {
                    let path = watch.path.clone();
                    watch.fire(&path, output);
                }
            }
        }
    }

    /// Takes note that an event was delivered.
    pub(crate) fn delivered(&mut self, id: u64) {
        if let Some(watch) = self.list.iter_mut().find(|watch| watch.id == id) {
            watch.pending = watch.pending.saturating_sub(1);
        }
    }
}

impl Watch {
    fn relative(&self) -> bool {
        !self.path.starts_with(['/', '@'])
    }

    /// Queues an event. A client that doesn't read gets a last one that says: something below your path has changed.
    fn fire(&mut self, path: &str, output: &mut Output) {
        let too_long = path.len() + self.token.len() + 2 > XENSTORE_PAYLOAD_MAX;
        let path = if self.pending + 1 >= EVENTS || too_long { self.path.as_str() } else { path };
        if self.pending >= EVENTS {
            return;
        }
        let payload = [path.as_bytes(), &[0], &self.token, &[0]].concat();
        output.push(Kind::Event(self.id), &Packet { op: Op::WATCH_EVENT, req_id: 0, tx_id: 0, payload });
        self.pending += 1;
    }
}

fn key(path: &[u8], home: &str) -> Result<String, Refusal> {
    let key = absolute_of_any_length(path, home)?;
    Ok(if path.starts_with(b"@") { key.get(1..).unwrap_or_default().into() } else { key })
}

/// Returns where the relative paths of a domain begin.
pub(crate) fn home(domain: DomId) -> String {
    alloc::format!("/local/domain/{}/", domain.0)
}
