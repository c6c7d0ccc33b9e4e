//! The tree of nodes, who may touch them, and how many a domain may own.
//!
//! The nodes stand in one sorted map under their full paths, so that a snapshot is one handle and no operation recurses.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt::Write;
use core::ops::Bound;

use xen_sys::DomId;

use crate::{Quota, Refusal};

/// Who asks: the domain of a connection, and the one that it may act for (SET_TARGET).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Who {
    pub(crate) domain: DomId,
    pub(crate) target: Option<DomId>,
}

impl Who {
    fn is(self, domain: DomId) -> bool {
        self.domain == domain || self.target == Some(domain)
    }

    /// Tells whether permissions and quotas do not hold.
    pub(crate) fn privileged(self) -> bool {
        self.is(DomId(0))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Perm {
    domain: DomId,
    read: bool,
    write: bool,
}

/// The permissions of a node: the owner first, whose letter holds for everybody who is not in the rest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Perms {
    owner: DomId,
    list: Vec<Perm>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Want {
    Read,
    Write,
}

impl Perms {
    /// Parses what SET_PERMS carries after the path: `r0`, `b7`, each with a NUL behind it. What has none behind it does not
    /// count.
    pub(crate) fn parse(text: &[u8]) -> Result<Self, Refusal> {
        let end = text.iter().rposition(|&byte| byte == 0).ok_or(Refusal::Inval)?;
        let text = text.get(..end).unwrap_or_default();
        let list = text.split(|&byte| byte == 0).map(parse_perm).collect::<Result<Vec<_>, _>>()?;
        let owner = list.first().ok_or(Refusal::Inval)?.domain;
        Ok(Self { owner, list })
    }

    pub(crate) fn len(&self) -> usize {
        self.list.len()
    }

    fn text(&self) -> Vec<u8> {
        let mut text = String::new();
        for perm in &self.list {
            let letter = match (perm.read, perm.write) {
                (false, false) => 'n',
                (true, false) => 'r',
                (false, true) => 'w',
                (true, true) => 'b',
            };
            // Writing into a String can't fail.
            let _ = write!(text, "{letter}{}\0", perm.domain.0);
        }
        text.into_bytes()
    }

    fn allow(&self, who: Who, want: Want) -> bool {
        let granted = |domain: DomId| {
            let own = self.list.iter().skip(1).find(|perm| perm.domain == domain);
            own.or(self.list.first()).is_some_and(|perm| if want == Want::Read { perm.read } else { perm.write })
        };
        who.privileged() || who.is(self.owner) || granted(who.domain) || who.target.is_some_and(granted)
    }

    fn demand(&self, who: Who, want: Want) -> Result<(), Refusal> {
        if self.allow(who, want) { Ok(()) } else { Err(Refusal::Acces) }
    }
}

fn parse_perm(text: &[u8]) -> Result<Perm, Refusal> {
    let (letter, number) = text.split_first().ok_or(Refusal::Inval)?;
    let (read, write) = match letter {
        b'n' => (false, false),
        b'r' => (true, false),
        b'w' => (false, true),
        b'b' => (true, true),
        _ => return Err(Refusal::Inval),
    };
    Ok(Perm { domain: DomId(number_of(number)?), read, write })
}

/// Parses a decimal number that is all of the text.
pub(crate) fn number_of<T: core::str::FromStr>(text: &[u8]) -> Result<T, Refusal> {
    core::str::from_utf8(text).ok().and_then(|text| text.parse().ok()).ok_or(Refusal::Inval)
}

#[derive(Clone, Debug)]
struct Node {
    value: Vec<u8>,
    perms: Perms,
}

/// All nodes, by path. Cloned when it is changed while a transaction looks at it.
#[derive(Clone, Debug)]
pub(crate) struct Tree {
    nodes: BTreeMap<Arc<str>, Arc<Node>>,
    /// Nodes that each unprivileged domain owns.
    owned: BTreeMap<DomId, usize>,
    /// A number that no other state of the tree has.
    pub(crate) generation: u64,
}

impl Tree {
    pub(crate) fn new() -> Self {
        let perms = Perms { owner: DomId(0), list: alloc::vec![Perm { domain: DomId(0), read: false, write: false }] };
        let node = Arc::new(Node { value: Vec::new(), perms });
        let paths = ["/", "/@introduceDomain", "/@releaseDomain"];
        let nodes = paths.into_iter().map(|path| (path.into(), node.clone())).collect();
        Self { nodes, owned: BTreeMap::new(), generation: 1 }
    }

    fn node(&self, path: &str) -> Result<&Arc<Node>, Refusal> {
        self.nodes.get(path).ok_or(Refusal::Noent)
    }

    fn node_mut(&mut self, path: &str) -> Result<&mut Node, Refusal> {
        self.nodes.get_mut(path).map(Arc::make_mut).ok_or(Refusal::Noent)
    }

    pub(crate) fn read(&self, who: Who, path: &str) -> Result<Vec<u8>, Refusal> {
        let node = self.node(path)?;
        node.perms.demand(who, Want::Read)?;
        Ok(node.value.clone())
    }

    /// Returns the names of the children, each with a NUL behind it.
    pub(crate) fn directory(&self, who: Who, path: &str) -> Result<Vec<u8>, Refusal> {
        self.node(path)?.perms.demand(who, Want::Read)?;
        let below = below(path);
        let mut names = Vec::new();
        for child in self.below(path) {
            let name = child.get(below.len()..).unwrap_or_default();
            if !name.is_empty() && !name.contains('/') {
                names.extend_from_slice(name.as_bytes());
                names.push(0);
            }
        }
        Ok(names)
    }

    pub(crate) fn perms(&self, who: Who, path: &str) -> Result<Vec<u8>, Refusal> {
        let node = self.node(path)?;
        node.perms.demand(who, Want::Read)?;
        Ok(node.perms.text())
    }

    pub(crate) fn set_perms(&mut self, who: Who, path: &str, perms: Perms) -> Result<(), Refusal> {
        let node = self.node(path)?;
        let (old, new) = (node.perms.owner, perms.owner);
        if !who.privileged() && (old != new || !who.is(old)) {
            return Err(Refusal::Acces);
        }
        self.node_mut(path)?.perms = perms;
        self.count(old, -1);
        self.count(new, 1);
        Ok(())
    }

    pub(crate) fn write(&mut self, who: Who, path: &str, value: &[u8], quota: &Quota) -> Result<(), Refusal> {
        self.make_parents(who, path, quota)?;
        if value.len() > quota.node_bytes {
            return Err(Refusal::Toobig);
        }
        if self.nodes.contains_key(path) {
            let node = self.node_mut(path)?;
            node.perms.demand(who, Want::Write)?;
            node.value = value.into();
            return Ok(());
        }
        self.make(who, path, value, quota)
    }

    /// Makes an empty node; tells whether it is new.
    pub(crate) fn mkdir(&mut self, who: Who, path: &str, quota: &Quota) -> Result<bool, Refusal> {
        if path == "/" {
            return Ok(false);
        }
        self.make_parents(who, path, quota)?;
        if let Some(node) = self.nodes.get(path) {
            node.perms.demand(who, Want::Write)?;
            return Ok(false);
        }
        self.make(who, path, &[], quota)?;
        Ok(true)
    }

    /// Removes a node and all below it; tells whether it was there.
    pub(crate) fn rm(&mut self, who: Who, path: &str) -> Result<bool, Refusal> {
        self.node(parent(path))?;
        let Some(node) = self.nodes.get(path) else { return Ok(false) };
        node.perms.demand(who, Want::Write)?;
        let mut gone: Vec<String> = self.below(path).filter(|below| *below != "/").map(String::from).collect();
        if path != "/" {
            gone.push(path.into());
        }
        for path in gone {
            self.forget(&path);
        }
        Ok(true)
    }

    /// Forgets a domain that is no more: its nodes go, and its place in the permissions of others.
    pub(crate) fn release(&mut self, domain: DomId) {
        let owned = |node: &Node| node.perms.owner == domain;
        let roots: Vec<Arc<str>> = self
            .nodes
            .iter()
            .filter(|(path, node)| &***path != "/" && owned(node))
            .map(|(path, _)| path.clone())
            .collect();
        for root in roots {
            let below: Vec<String> = self.below(&root).map(String::from).collect();
            for path in below {
                self.forget(&path);
            }
            self.forget(&root);
        }
        for node in self.nodes.values_mut() {
            if node.perms.list.iter().skip(1).any(|perm| perm.domain == domain) {
                let owner = node.perms.list.first().copied();
                let list = &mut Arc::make_mut(node).perms.list;
                list.retain(|perm| perm.domain != domain);
                // An owner of the same number stays the first: a node is never without one.
                if let Some(owner) = owner.filter(|owner| owner.domain == domain) {
                    list.insert(0, owner);
                }
            }
        }
        self.owned.remove(&domain);
    }

    /// Tells whether `who` may learn that `path` changed: it may read the node or its parent.
    pub(crate) fn visible(&self, who: Who, path: &str) -> bool {
        let Some(up) = self.nodes.get(parent(path)).filter(|_| path != "/") else { return false };
        up.perms.allow(who, Want::Read) || self.nodes.get(path).is_some_and(|node| node.perms.allow(who, Want::Read))
    }

    /// Makes those of the nodes above that are missing, from the top.
    fn make_parents(&mut self, who: Who, path: &str, quota: &Quota) -> Result<(), Refusal> {
        for (end, _) in path.match_indices('/').skip(1) {
            let above = path.get(..end).unwrap_or_default();
            if !self.nodes.contains_key(above) {
                self.make(who, above, &[], quota)?;
            }
        }
        Ok(())
    }

    /// Makes a node that is not there below one that is. It has its parent's permissions, the owner included.
    fn make(&mut self, who: Who, path: &str, value: &[u8], quota: &Quota) -> Result<(), Refusal> {
        let perms = self.node(parent(path))?.perms.clone();
        let owner = perms.owner;
        let used = self.owned.get(&owner).copied().unwrap_or(0);
        if !who.privileged() && owner != DomId(0) && used >= quota.nodes {
            return Err(Refusal::Quota);
        }
        perms.demand(who, Want::Write)?;
        self.nodes.insert(path.into(), Arc::new(Node { value: value.into(), perms }));
        self.count(owner, 1);
        Ok(())
    }

    fn forget(&mut self, path: &str) {
        if let Some(node) = self.nodes.remove(path) {
            self.count(node.perms.owner, -1);
        }
    }

    fn count(&mut self, owner: DomId, change: isize) {
        let used = self.owned.entry(owner).or_default();
        *used = used.saturating_add_signed(change);
        if *used == 0 {
            self.owned.remove(&owner);
        }
    }

    /// Returns the paths of all nodes below one, in order. For the root that is all of them, itself too.
    fn below(&self, path: &str) -> impl Iterator<Item = &str> {
        let prefix = below(path);
        let from = self.nodes.range::<str, _>((Bound::Included(prefix.as_str()), Bound::Unbounded));
        from.map(|(path, _)| &**path).take_while(move |path| path.starts_with(&prefix))
    }
}

/// Returns what the paths of all nodes below `path` begin with.
fn below(path: &str) -> String {
    let mut prefix = String::from(path);
    if path != "/" {
        prefix.push('/');
    }
    prefix
}

/// Tells whether `path` is `top`, or below it.
pub(crate) fn covers(top: &str, path: &str) -> bool {
    top == path || path.starts_with(&below(top))
}

fn parent(path: &str) -> &str {
    match path.rfind('/') {
        None | Some(0) => "/",
        Some(end) => path.get(..end).unwrap_or("/"),
    }
}

/// Bytes of a node's path, not counting `/local/domain/ID/` before it. io/xs_wire.h would allow more.
const PATH_MAX: usize = 1024;

/// Returns the absolute form of the path of a node, whose relative paths begin at `home`. A special one, as in
/// `@releaseDomain`, is a node below the root.
pub(crate) fn absolute(raw: &[u8], home: &str) -> Result<String, Refusal> {
    let path = absolute_of_any_length(raw, home)?;
    if without_home(&path).len() > PATH_MAX { Err(Refusal::Inval) } else { Ok(path) }
}

/// As [`absolute`], for what is watched: no node need ever be there.
pub(crate) fn absolute_of_any_length(raw: &[u8], home: &str) -> Result<String, Refusal> {
    let text = core::str::from_utf8(raw).map_err(|_| Refusal::Inval)?;
    let path = match text.as_bytes().first() {
        None => return Err(Refusal::Inval),
        Some(b'/') => String::from(text),
        Some(b'@') => alloc::format!("/{text}"),
        Some(_) => alloc::format!("{home}{text}"),
    };
    let valid = |name: &str| {
        !name.is_empty()
            && name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'-' | b'@'))
    };
    if path == "/" || path.split('/').skip(1).all(valid) { Ok(path) } else { Err(Refusal::Inval) }
}

fn without_home(path: &str) -> &str {
    let rest = path.strip_prefix("/local/domain/").and_then(|rest| rest.split_once('/'));
    rest.filter(|(id, _)| !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_digit())).map_or(path, |(_, rest)| rest)
}
