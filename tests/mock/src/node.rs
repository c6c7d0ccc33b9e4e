//! The services of a domain, made of the real crates.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use hypercall::DomId;
use hypercall::event::EventChannels;
use hypercall::grant::GrantTable;
use hypercall::mem::{PAGE_SIZE, Shared};
use xenbus::domain::Services;
use xenbus::store::XenStore;

use crate::domain::Domain;
use crate::machine::Machine;

/// A domain with all its services: our own grant table, event channels and store client, on the mock.
pub type Node = Services<Domain, GrantTable<Domain>, EventChannels<Domain>, XenStore<Domain, EventChannels<Domain>>>;

/// The services that were made: one bundle a domain, for there is one grant table and one shared page.
#[derive(Default)]
pub(crate) struct Nodes(Mutex<BTreeMap<DomId, Node>>);

impl Nodes {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<DomId, Node>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets go of them: they hold the machine, as the machine holds them.
    pub(crate) fn clear(&self) {
        let nodes = std::mem::take(&mut *self.lock());
        drop(nodes);
    }
}

impl Machine {
    /// Returns a domain's services, the same each time. What they hold themselves is no leak of the domain.
    ///
    /// # Panics
    /// If there is no such domain, or no memory for its grant table.
    pub fn services(&self, id: DomId) -> Node {
        let mut nodes = self.nodes.lock();
        if let Some(node) = nodes.get(&id) {
            return node.clone();
        }
        let platform = self.domain(id);
        let start = platform.start();
        // SAFETY: the shared page lives as long as the machine's memory, which each handle of the domain keeps.
        let events = unsafe { EventChannels::new(platform.clone(), platform.shared_info()) };
        // SAFETY: one bundle a domain, kept in the list, and this is its only table.
        let grants = unsafe { GrantTable::new(platform.clone()) }.expect("a new domain has room for its grant table");
        // SAFETY: the page was made with the domain, which never frees it; the store client is alone in using it, and holds a
        // handle of the domain.
        let page = unsafe { Shared::new(start.store, PAGE_SIZE) };
        let store = XenStore::new(platform.clone(), events.clone(), page, start.store_port);
        let node = Node { platform, grants, events, store, id };
        nodes.insert(id, node.clone());
        self.mark_domain(id);
        node
    }

    /// Makes a domain and returns its services.
    ///
    /// # Panics
    /// As [`create`](Self::create).
    pub fn boot(&self) -> Node {
        self.services(self.create(crate::DomainConfig::default()).id())
    }
}
