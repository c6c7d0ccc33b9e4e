//! A domain of a Linux dom0: its store and its toolstack are outside, and so is all that moves its programs.

use alloc::string::{String, ToString};

use hypercall::Mfn;
use hypercall::mem::{PAGE_SIZE, Shared};
use suite::exec::World;
use suite::node::Node;
use suite::{Context, Failure};
use xenbus::domain;
use xenbus::store::{Store, Tx, WatchId, XenStore};

use crate::bare::{Services, domain_id, services};
use crate::boot::{is_dom0, start_info};
use crate::memory::{frames, pages};
use crate::{Bare, println};

/// How long xenstored may take for an answer: dom0 is an emulated machine on what may be a busy host.
const STORE_PATIENCE_NS: u64 = 60_000_000_000;

/// There is nothing in this domain but the programs: what moves them comes from outside.
pub(super) struct Outside;

impl World for Outside {
    fn pump(&mut self) -> bool {
        false
    }

    fn choose(&mut self, _: usize) -> usize {
        0
    }

    fn patience_ns(&self) -> u64 {
        // The administrator takes the time that he needs.
        u64::MAX
    }
}

/// Makes the node of this domain, with the store that the builder has told of.
pub(super) fn node() -> Result<Node<Bare>, String> {
    if is_dom0() {
        return Err("the first domain has neither a xenstore nor a toolstack: this is a program for a domU".into());
    }
    let id = domain_id().map_err(|error| error.to_string())?;
    let Services { events, grants } = services()?;
    let info = start_info();
    let store = XenStore::new(Bare, events.clone(), boot_page(Mfn(info.store_mfn.0 as u64)), info.store_evtchn);
    store.set_timeout_ns(STORE_PATIENCE_NS);
    let own = domain::Services { platform: Bare, grants, events, store, id };
    Ok(Node::new("domU", own, pages::allocations))
}

/// Returns a view of a page that the domain builder made.
pub(super) fn boot_page(mfn: Mfn) -> Shared<'static> {
    let address = frames::address(mfn) as *mut u8;
    let Some(address) = core::ptr::NonNull::new(address) else { return Shared::EMPTY };
    // SAFETY: the builder's pages lie in the boot region, which stays mapped, and whoever uses them does so by atomics.
    unsafe { Shared::new(address, PAGE_SIZE) }
}

/// What the toolstack asks of the whole domain.
pub(super) struct Administrator<'a> {
    node: &'a Node<Bare>,
    asked: WatchId,
}

impl<'a> Administrator<'a> {
    pub(super) fn new(node: &'a Node<Bare>) -> Result<Self, Failure> {
        let asked = node.store().watch("control/shutdown").context("watch control/shutdown")?;
        Ok(Self { node, asked })
    }

    /// Returns what the domain was asked to do, once; that is acknowledged.
    pub(super) fn asked(&self) -> Result<Option<String>, Failure> {
        let store = self.node.store();
        if !store.fired(self.asked) {
            return Ok(None);
        }
        let reason: Option<String> = store.read_if_there(Tx::NONE, "control/shutdown").context("shutdown")?;
        let Some(reason) = reason.filter(|reason| !reason.is_empty()) else { return Ok(None) };
        store.write_text(Tx::NONE, "control/shutdown", "").context("acknowledge the shutdown")?;
        println!("xenlab: shutdown ({reason})");
        Ok(Some(reason))
    }

    /// Tells whether the domain was asked to shut down, as it is by anything it is asked here.
    pub(super) fn wants_the_end(&self) -> Result<bool, Failure> {
        Ok(self.asked()?.is_some())
    }
}
