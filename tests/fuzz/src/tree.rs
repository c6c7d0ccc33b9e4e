//! A store in memory, without a daemon: what was written is read, watches fire, and the next requests may be refused.

use std::cell::RefCell;
use std::fmt::Display;
use std::rc::Rc;

use xen_sys::io::xs_wire::XsdSockmsgType as Op;
use xenbus::store::{Cause, Errno, Request, Store, StoreError, WatchId};

/// A node: a hash of its path, the path, and what it says.
struct Node {
    hash: u64,
    path: String,
    value: Vec<u8>,
}

#[derive(Default)]
struct Inner {
    /// A few dozen. They are found by the hash: libFuzzer looks at each comparison of texts, which takes longer than all else.
    nodes: Vec<Node>,
    /// Path, whether it is set, whether it has fired.
    watches: Vec<(String, bool, bool)>,
    refuse: u32,
}

/// The store. A handle. Own paths are relative, the other end's absolute: they never name the same node.
#[derive(Clone, Default)]
pub struct Tree(Rc<RefCell<Inner>>);

impl Tree {
    /// Forgets everything.
    pub fn clear(&self) {
        *self.0.borrow_mut() = Inner::default();
    }

    /// Writes a node, whoever does it.
    pub fn say(&self, path: &str, value: impl Display) {
        self.0.borrow_mut().write(path, value.to_string().into_bytes());
    }

    /// Writes bytes into a node.
    pub fn say_bytes(&self, path: &str, value: &[u8]) {
        self.0.borrow_mut().write(path, value.to_vec());
    }

    /// Removes a node and all below it.
    pub fn remove(&self, path: &str) {
        self.0.borrow_mut().remove(path);
    }

    /// Returns what a node says, as a number.
    pub fn number(&self, path: &str) -> Option<u64> {
        self.text(path)?.parse().ok()
    }

    /// Returns what a node says, without blanks around it.
    pub fn text(&self, path: &str) -> Option<String> {
        Some(std::str::from_utf8(self.0.borrow().get(path)?).ok()?.trim().into())
    }

    /// Refuses the next requests.
    pub fn refuse(&self, count: u32) {
        self.0.borrow_mut().refuse = count;
    }

    /// Returns how many watches are set.
    pub fn watches(&self) -> usize {
        self.0.borrow().watches.iter().filter(|(_, set, _)| *set).count()
    }
}

/// FNV-1a.
fn hash(path: &str) -> u64 {
    path.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

/// Tells whether a path is another, or below it.
fn is_below(path: &str, above: &str) -> bool {
    let ends = path.as_bytes().get(above.len()).is_none_or(|byte| *byte == b'/');
    ends && path.len() >= above.len() && path.bytes().zip(above.bytes()).all(|(one, other)| one == other)
}

impl Inner {
    fn get(&self, path: &str) -> Option<&Vec<u8>> {
        let wanted = hash(path);
        self.nodes.iter().find(|node| node.hash == wanted).map(|node| &node.value)
    }

    fn touch(&mut self, path: &str) {
        for (watched, _, fired) in &mut self.watches {
            *fired |= is_below(path, watched) || is_below(watched, path);
        }
    }

    fn write(&mut self, path: &str, value: Vec<u8>) {
        let hash = hash(path);
        match self.nodes.iter_mut().find(|node| node.hash == hash) {
            Some(node) => node.value = value,
            None => self.nodes.push(Node { hash, path: path.into(), value }),
        }
        self.touch(path);
    }

    fn remove(&mut self, path: &str) -> bool {
        let before = self.nodes.len();
        self.nodes.retain(|node| !is_below(&node.path, path));
        self.touch(path);
        self.nodes.len() < before
    }
}

impl Store for Tree {
    fn request(&self, request: &Request<'_>) -> Result<Vec<u8>, Cause> {
        let mut inner = self.0.borrow_mut();
        if inner.refuse > 0 {
            inner.refuse -= 1;
            return Err(Cause::Refused(Errno::Again));
        }
        // A path, its end mark, and what is to be written there.
        let path = request.parts.first().and_then(|path| std::str::from_utf8(path).ok()).unwrap_or_default();
        let absent = Err(Cause::Refused(Errno::Noent));
        match request.op {
            Op::READ => inner.get(path).map_or(absent, |value| Ok(value.clone())),
            Op::WRITE => {
                inner.write(path, request.parts.get(2).copied().unwrap_or_default().to_vec());
                Ok(b"OK\0".to_vec())
            }
            Op::RM => {
                if inner.remove(path) {
                    Ok(b"OK\0".to_vec())
                } else {
                    absent
                }
            }
            Op::TRANSACTION_START => Ok(b"1\0".to_vec()),
            _ => Ok(b"OK\0".to_vec()),
        }
    }

    fn watch(&self, path: &str) -> Result<WatchId, StoreError> {
        let mut inner = self.0.borrow_mut();
        inner.watches.push((path.into(), true, true));
        Ok(WatchId(inner.watches.len() as u32 - 1))
    }

    fn unwatch(&self, watch: WatchId) -> Result<(), StoreError> {
        self.0.borrow_mut().watches[watch.0 as usize].1 = false;
        Ok(())
    }

    fn fired(&self, watch: WatchId) -> bool {
        std::mem::take(&mut self.0.borrow_mut().watches[watch.0 as usize].2)
    }
}
