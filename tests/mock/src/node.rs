//! The services of a domain, made of the real crates.

use std::sync::{Mutex, MutexGuard, PoisonError};

use hypercall::call::sched;
use hypercall::event::EventChannels;
use hypercall::grant::GrantTable;
use hypercall::mem::{PAGE_SIZE, Shared};
use hypercall::{DomId, Mfn};
use xenbus::domain::Services;
use xenbus::store::XenStore;

use crate::domain::Domain;
use crate::machine::Machine;

/// A domain with all its services: our own grant table, event channels and store client, on the mock.
pub type Node = Services<Domain, GrantTable<Domain>, EventChannels<Domain>, XenStore<Domain, EventChannels<Domain>>>;

/// The services that were made: one bundle a domain, for there is one grant table and one shared page.
#[derive(Default)]
pub(crate) struct Nodes(Mutex<Vec<Node>>);

impl Nodes {
    fn lock(&self) -> MutexGuard<'_, Vec<Node>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets go of them: they hold the machine, as the machine holds them.
    pub(crate) fn clear(&self) {
        let nodes = std::mem::take(&mut *self.lock());
        drop(nodes);
    }
}

/// How a suspend ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suspended {
    /// Nothing has changed.
    Cancelled,
    /// The domain was saved, and is another now: its devices are to be resumed.
    Restored,
}

/// Suspends a domain as a kernel does, while nothing else of it runs, and lets its services begin anew if it comes back as another. What
/// becomes of it is decided by [`Machine::restore_next`] and [`Machine::cancel_next_suspend`].
///
/// # Errors
/// What could not be done, in words.
pub fn suspend(node: &Node) -> Result<Suspended, String> {
    node.store.suspend().map_err(|error| error.to_string())?;
    // SAFETY: nothing else of the domain runs, and below the table is not used before `resume`.
    let cancelled = unsafe { node.grants.suspend() }.map_err(|error| error.to_string()).and_then(|()| {
        let start_info = Mfn(node.platform.start().store_gfn.0);
        // SAFETY: as above; what is of before is begun anew below, and by the caller. The mock has no start_info.
        let cancelled = unsafe { sched::suspend(&node.platform, start_info) };
        if cancelled == Ok(false) {
            node.events.resume();
        }
        node.grants.resume().map_err(|error| error.to_string())?;
        cancelled.map_err(|error| error.to_string())
    });
    match cancelled {
        Ok(false) => {
            node.store.reconnect(node.platform.start().store_port).map_err(|error| error.to_string())?;
            Ok(Suspended::Restored)
        }
        Ok(true) => {
            node.store.cancel_suspend();
            Ok(Suspended::Cancelled)
        }
        Err(error) => {
            node.store.cancel_suspend();
            Err(error)
        }
    }
}

impl Machine {
    /// Returns a domain's services, the same each time, also when it has come back from a suspend as another. What they hold themselves
    /// is no leak of the domain.
    ///
    /// # Panics
    /// If there is no such domain, or no memory for its grant table.
    pub fn services(&self, id: DomId) -> Node {
        let mut nodes = self.nodes.lock();
        if let Some(node) = nodes.iter().find(|node| node.platform.id() == id) {
            return Node { id, ..node.clone() };
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
        nodes.push(node.clone());
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
