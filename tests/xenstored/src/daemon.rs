//! The daemon: its clients, the domains that it knows, and the operations that are about them.

use alloc::collections::BTreeMap;
use alloc::collections::btree_map::Entry;
use alloc::sync::Arc;
use alloc::vec::Vec;

use xen_sys::DomId;
use xen_sys::io::xs_wire::XsdSockmsgType as Op;

use crate::request::{self, Session, first, ok, only};
use crate::transaction::Transactions;
use crate::tree::{Tree, Who, number_of};
use crate::watch::{Changes, Watches, home};
use crate::wire::{BadFrame, Input, Kind, Output, Packet};
use crate::{Quota, Refusal};

/// A client of the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId(u64);

#[derive(Debug)]
struct Connection {
    session: Session,
    input: Input,
    output: Output,
    /// Set for ever when the framing was broken.
    bad: Option<BadFrame>,
    watches: Watches,
    transactions: Transactions,
    /// How the next request is refused, if it is to be.
    refuse: Option<Refusal>,
}

/// What INTRODUCE said of a domain: its ring's frame and event channel; none if the host introduced it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Introduction {
    gfn: u64,
    port: u32,
}

/// A xenstored without IO.
#[derive(Debug)]
pub struct Daemon {
    tree: Arc<Tree>,
    quota: Quota,
    connections: BTreeMap<ConnId, Connection>,
    next: u64,
    domains: BTreeMap<DomId, Option<Introduction>>,
}

impl Default for Daemon {
    fn default() -> Self {
        Self::new(Quota::default())
    }
}

const INTRODUCE_DOMAIN: &str = "@introduceDomain";
const RELEASE_DOMAIN: &str = "@releaseDomain";

impl Daemon {
    /// Makes a daemon whose tree has nothing but the root, and which knows domain 0.
    pub fn new(quota: Quota) -> Self {
        Self {
            tree: Arc::new(Tree::new()),
            quota,
            connections: BTreeMap::new(),
            next: 0,
            domains: BTreeMap::from([(DomId(0), None)]),
        }
    }

    /// Takes a new client, which speaks for `domain`. Domain 0 is privileged. A domain may have several.
    pub fn connect(&mut self, domain: DomId) -> ConnId {
        let id = ConnId(self.next);
        self.next += 1;
        let session = Session { who: Who { domain, target: None }, home: home(domain) };
        let connection = Connection {
            session,
            input: Input::default(),
            output: Output::default(),
            bad: None,
            watches: Watches::default(),
            transactions: Transactions::default(),
            refuse: None,
        };
        self.connections.insert(id, connection);
        id
    }

    /// Forgets a client, its watches and its transactions.
    pub fn disconnect(&mut self, id: ConnId) {
        self.connections.remove(&id);
    }

    /// Takes note that a domain came: the watches on `@introduceDomain` fire, unless it was known.
    pub fn introduce(&mut self, domain: DomId) {
        if let Entry::Vacant(place) = self.domains.entry(domain) {
            place.insert(None);
            self.fire_special(INTRODUCE_DOMAIN);
        }
    }

    /// Takes note that a domain is gone: its clients are disconnected, its nodes removed without events, and the watches on
    /// `@releaseDomain` fire, unless it was not known.
    pub fn release(&mut self, domain: DomId) {
        if self.domains.remove(&domain).is_some() {
            self.connections.retain(|_, connection| connection.session.who.domain != domain);
            let tree = Arc::make_mut(&mut self.tree);
            tree.generation += 1;
            tree.release(domain);
            self.fire_special(RELEASE_DOMAIN);
        }
    }

    /// Tells whether a domain was introduced and not released.
    pub fn is_introduced(&self, domain: DomId) -> bool {
        self.domains.contains_key(&domain)
    }

    /// Takes bytes from a client, split anywhere, and does what is complete. Returns how many it took: fewer than all if the
    /// client must read replies before it may ask for more.
    ///
    /// # Errors
    /// [`BadFrame`], now and ever after, once the client has announced more than a message may hold.
    pub fn input(&mut self, id: ConnId, bytes: &[u8]) -> Result<usize, BadFrame> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let Some(connection) = self.connections.get_mut(&id) else { return Ok(bytes.len()) };
            if let Some(bad) = connection.bad {
                return Err(bad);
            }
            if connection.output.replies() >= self.quota.outstanding {
                break;
            }
            match connection.input.take(&mut rest) {
                Ok(Some(packet)) => self.serve(id, packet),
                Ok(None) => break,
                Err(bad) => {
                    connection.bad = Some(bad);
                    return Err(bad);
                }
            }
        }
        Ok(bytes.len() - rest.len())
    }

    /// Returns the next bytes for a client; none if there are none now. [`consume`](Self::consume) drops what was delivered.
    pub fn output(&self, id: ConnId) -> &[u8] {
        self.connections.get(&id).map(|connection| connection.output.peek()).unwrap_or_default()
    }

    /// Drops the first `count` of the bytes that [`output`](Self::output) returned.
    pub fn consume(&mut self, id: ConnId, count: usize) {
        if let Some(connection) = self.connections.get_mut(&id)
            && let Some(Kind::Event(watch)) = connection.output.consume(count)
        {
            connection.watches.delivered(watch);
        }
    }

    /// Makes the next request that comes in by a client's bytes fail without having done anything: for hosts that want to see
    /// how the client bears it.
    pub fn refuse_next(&mut self, id: ConnId, refusal: Refusal) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.refuse = Some(refusal);
        }
    }

    /// Returns how many messages wait for a client.
    pub fn pending(&self, id: ConnId) -> usize {
        self.connections.get(&id).map_or(0, |connection| connection.output.packets())
    }

    /// Returns how many watches and how many open transactions a client has.
    pub fn holds(&self, id: ConnId) -> (usize, usize) {
        self.connections.get(&id).map_or((0, 0), |client| (client.watches.len(), client.transactions.len()))
    }

    /// Does one operation for a client at once, past its byte stream: for hosts that play the tool stack. Events that it causes
    /// are queued.
    ///
    /// # Errors
    /// [`Refusal`] as the client would have read it; [`Refusal::Io`] too if there is no such client.
    pub fn call(&mut self, id: ConnId, op: Op, tx_id: u32, payload: &[u8]) -> Result<Vec<u8>, Refusal> {
        let (result, effect) = self.perform(id, op, tx_id, payload);
        self.take_effect(id, effect);
        result
    }

    fn serve(&mut self, id: ConnId, packet: Packet) {
        let Packet { op, req_id, tx_id, payload } = packet;
        let refusal = self.connections.get_mut(&id).and_then(|connection| connection.refuse.take());
        let (result, effect) = match refusal {
            Some(refusal) => (Err(refusal), Effect::None),
            None => self.perform(id, op, tx_id, &payload),
        };
        let effect = match effect {
            // The events of a transaction come before the answer to its end, all others after.
            Effect::Changed(..) if op == Op::TRANSACTION_END => {
                self.take_effect(id, effect);
                Effect::None
            }
            effect => effect,
        };
        // Watches have nothing to do with transactions, and the answer says so.
        let tx_id = if matches!(op, Op::WATCH | Op::UNWATCH) { 0 } else { tx_id };
        let reply = match result {
            Ok(payload) => Packet { op, req_id, tx_id, payload },
            Err(refusal) => {
                let payload = [refusal.word().as_bytes(), &[0]].concat();
                Packet { op: Op::ERROR, req_id, tx_id, payload }
            }
        };
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.output.push(Kind::Reply, &reply);
        }
        self.take_effect(id, effect);
    }

    fn perform(&mut self, id: ConnId, op: Op, tx_id: u32, payload: &[u8]) -> (Result<Vec<u8>, Refusal>, Effect) {
        match self.dispatch(id, op, tx_id, payload) {
            Ok((reply, effect)) => (Ok(reply), effect),
            Err(refusal) => (Err(refusal), Effect::None),
        }
    }

    fn dispatch(&mut self, id: ConnId, op: Op, tx_id: u32, payload: &[u8]) -> Result<(Vec<u8>, Effect), Refusal> {
        let Some(client) = self.connections.get_mut(&id) else { return Err(Refusal::Io) };
        let Connection { session, watches, transactions, .. } = client;
        let quota = &self.quota;
        let privileged = session.who.privileged();
        let reply = match op {
            Op::WATCH => {
                let (path, token) = two(payload)?;
                let watch = watches.add(session.who, &session.home, path, token, quota)?;
                return Ok((ok(), Effect::Watched(watch)));
            }
            Op::UNWATCH => {
                let (path, token) = two(payload)?;
                watches.remove(&session.home, path, token)?;
                ok()
            }
            Op::RESET_WATCHES => {
                watches.clear();
                transactions.clear();
                ok()
            }
            Op::TRANSACTION_START if tx_id != 0 => return Err(transactions.get(tx_id).err().unwrap_or(Refusal::Busy)),
            Op::TRANSACTION_START => {
                alloc::format!("{}\0", transactions.start(session, &self.tree, quota)?).into_bytes()
            }
            Op::TRANSACTION_END => {
                if tx_id != 0 && transactions.get(tx_id)?.is_full(session, quota) {
                    return Err(Refusal::Quota);
                }
                let commit = match first(payload).map_or(payload, |(word, _)| word) {
                    b"T" => true,
                    b"F" => false,
                    _ => return Err(Refusal::Inval),
                };
                let transaction = transactions.end(tx_id).ok_or(Refusal::Noent)?;
                if commit {
                    let (before, changes) = transaction.commit(session, &mut self.tree, quota)?;
                    return Ok((ok(), Effect::Changed(Some(before), changes)));
                }
                ok()
            }
            Op::CONTROL => ok(),
            Op::INTRODUCE | Op::RELEASE | Op::IS_DOMAIN_INTRODUCED | Op::RESUME | Op::SET_TARGET => {
                if !privileged {
                    return Err(Refusal::Acces);
                }
                self.about_domain(op, payload)?
            }
            _ if tx_id != 0 => transactions.get(tx_id)?.run(session, op, payload, quota)?,
            _ => {
                // Kept only where the events depend on it: the tree is copied when it changes while somebody holds it.
                let before = matches!(op, Op::RM | Op::SET_PERMS).then(|| self.tree.clone());
                let mut changes = Changes::default();
                let session = session.clone();
                let reply = request::run(&mut self.tree, &session, op, payload, quota, &mut changes)?;
                return Ok((reply, Effect::Changed(before, changes)));
            }
        };
        Ok((reply, Effect::None))
    }

    /// Does the operations by which a tool stack tells of domains.
    fn about_domain(&mut self, op: Op, payload: &[u8]) -> Result<Vec<u8>, Refusal> {
        let (word, rest) = first(payload)?;
        match op {
            Op::INTRODUCE => {
                let domain = number_of(word).map(DomId)?;
                let (gfn, rest) = first(rest)?;
                let port = first(rest).map_or(rest, |(port, _)| port);
                let said = Introduction { gfn: number_of(gfn)?, port: number_of(port)? };
                match self.domains.get_mut(&domain) {
                    None => {
                        self.domains.insert(domain, Some(said));
                        self.fire_special(INTRODUCE_DOMAIN);
                    }
                    // The same ring again is a domain that came back with another port.
                    Some(Some(known)) if known.gfn == said.gfn => known.port = said.port,
                    Some(_) => return Err(Refusal::Inval),
                }
            }
            Op::RELEASE => {
                let domain = number_of(only(payload)?).map(DomId)?;
                if !self.is_introduced(domain) {
                    return Err(Refusal::Inval);
                }
                self.release(domain);
            }
            Op::IS_DOMAIN_INTRODUCED => {
                let domain = number_of(word).map(DomId)?;
                let known = domain == xen_sys::xen::DOMID_SELF || self.is_introduced(domain);
                return Ok(if known { b"T\0".to_vec() } else { b"F\0".to_vec() });
            }
            Op::RESUME => {
                if !self.is_introduced(number_of(word).map(DomId)?) {
                    return Err(Refusal::Inval);
                }
            }
            _ => {
                let (domain, target) = two(payload)?;
                let (domain, target) = (number_of(domain).map(DomId)?, number_of(target).map(DomId)?);
                let mut clients = self.connections.values_mut().map(|client| &mut client.session.who).peekable();
                let mut found = false;
                for who in clients.by_ref().filter(|who| who.domain == domain) {
                    who.target = Some(target);
                    found = true;
                }
                if !found {
                    return Err(Refusal::Noent);
                }
            }
        }
        Ok(ok())
    }

    fn take_effect(&mut self, id: ConnId, effect: Effect) {
        match effect {
            Effect::None => {}
            Effect::Watched(watch) => {
                if let Some(Connection { watches, output, .. }) = self.connections.get_mut(&id) {
                    watches.fire_one(watch, output);
                }
            }
            Effect::Changed(before, changes) => {
                if changes.0.is_empty() {
                    return;
                }
                let before = before.as_ref().unwrap_or(&self.tree);
                for Connection { session, watches, output, .. } in self.connections.values_mut() {
                    watches.fire(session.who, &session.home, &changes, before, &self.tree, output);
                }
            }
        }
    }

    fn fire_special(&mut self, name: &str) {
        for Connection { session, watches, output, .. } in self.connections.values_mut() {
            watches.fire_special(session.who, name, &self.tree, output);
        }
    }
}

/// What an operation has caused besides its answer.
#[derive(Debug)]
enum Effect {
    None,
    /// A watch of this number was set, which fires once.
    Watched(u64),
    /// These are the changes, and the tree from before them if it matters.
    Changed(Option<Arc<Tree>>, Changes),
}

/// Returns the two strings of a payload.
fn two(payload: &[u8]) -> Result<(&[u8], &[u8]), Refusal> {
    let (one, rest) = first(payload)?;
    Ok((one, only(rest)?))
}
