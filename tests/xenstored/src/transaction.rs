//! Transactions: work on a snapshot, checked by doing it again.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;

use xen_sys::io::xs_wire::XsdSockmsgType as Op;

use crate::request::{self, Session};
use crate::tree::Tree;
use crate::watch::Changes;
use crate::{Quota, Refusal};

/// An operation that was not refused. One that was is forgotten, even if it would not be refused today.
#[derive(Debug)]
struct Done {
    op: Op,
    payload: Vec<u8>,
    reply: Vec<u8>,
}

/// An open transaction.
#[derive(Debug)]
pub(crate) struct Transaction {
    base: Arc<Tree>,
    tree: Arc<Tree>,
    changes: Changes,
    done: Vec<Done>,
}

impl Transaction {
    /// Tells whether it can't take any more operations. It can't be ended either then: only RESET_WATCHES gets rid of it.
    pub(crate) fn is_full(&self, session: &Session, quota: &Quota) -> bool {
        !session.who.privileged() && self.done.len() >= quota.transaction_ops
    }

    /// Does one operation, and remembers it.
    pub(crate) fn run(&mut self, session: &Session, op: Op, payload: &[u8], quota: &Quota) -> Result<Vec<u8>, Refusal> {
        if self.is_full(session, quota) {
            return Err(Refusal::Quota);
        }
        let reply = request::run(&mut self.tree, session, op, payload, quota, &mut self.changes)?;
        self.done.push(Done { op, payload: payload.into(), reply: reply.clone() });
        Ok(reply)
    }

    /// Makes what was done here come true in `tree`, and returns the tree from before and the changes.
    pub(crate) fn commit(
        self,
        session: &Session,
        tree: &mut Arc<Tree>,
        quota: &Quota,
    ) -> Result<(Arc<Tree>, Changes), Refusal> {
        let before = tree.clone();
        if self.changes.0.is_empty() {
            return Ok((before, self.changes));
        }
        if tree.generation == self.base.generation {
            *tree = self.tree;
            return Ok((before, self.changes));
        }
        let mut again = tree.clone();
        let mut changes = Changes::default();
        for Done { op, payload, reply } in &self.done {
            if request::run(&mut again, session, *op, payload, quota, &mut changes).as_ref() != Ok(reply) {
                return Err(Refusal::Again);
            }
        }
        *tree = again;
        Ok((before, changes))
    }
}

/// The open transactions of one client.
#[derive(Debug, Default)]
pub(crate) struct Transactions {
    open: BTreeMap<u32, Transaction>,
    last: u32,
}

impl Transactions {
    /// Opens one and returns its number.
    pub(crate) fn start(&mut self, session: &Session, tree: &Arc<Tree>, quota: &Quota) -> Result<u32, Refusal> {
        if !session.who.privileged() && self.open.len() >= quota.transactions {
            return Err(Refusal::Quota);
        }
        // Numbers are small and positive, for clients that parse them as signed; one that is open is not given twice.
        let next = |id: u32| if id >= i32::MAX as u32 { 1 } else { id + 1 };
        let mut id = next(self.last);
        while self.open.contains_key(&id) {
            id = next(id);
        }
        self.last = id;
        let transaction =
            Transaction { base: tree.clone(), tree: tree.clone(), changes: Changes::default(), done: Vec::new() };
        self.open.insert(id, transaction);
        Ok(id)
    }

    pub(crate) fn get(&mut self, id: u32) -> Result<&mut Transaction, Refusal> {
        self.open.get_mut(&id).ok_or(Refusal::Io)
    }

    pub(crate) fn end(&mut self, id: u32) -> Option<Transaction> {
        self.open.remove(&id)
    }

    pub(crate) fn clear(&mut self) {
        self.open.clear();
    }

    pub(crate) fn len(&self) -> usize {
        self.open.len()
    }
}
