//! How a domain begins and ends.

use std::ptr::NonNull;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Condvar};

use hypercall::{DomId, Gfn, Port};
use xen_sys::event_channel::{EvtchnAllocUnbound, EvtchnBindInterdomain};
use xen_sys::grant_table::{GNTTAB_RESERVED_CONSOLE, GNTTAB_RESERVED_XENSTORE};
use xen_sys::xen::VIRQ_DOM_EXC;

use crate::config::DomainConfig;
use crate::domain::Identity;
use crate::events::Channels;
use crate::grants::Grants;
use crate::ledger::Ledger;
use crate::space::Space;
use crate::state::{Dom, Life, State};
use crate::trace::What;

/// Where a domain's store ring and console are: what `start_info` tells a PV kernel.
#[derive(Clone, Copy, Debug)]
pub struct Start {
    /// The page of the store ring.
    pub store: NonNull<u8>,
    /// The store's port.
    pub store_port: Port,
    /// Frame of the store ring, as the domain knows it.
    pub store_gfn: Gfn,
    /// Page of the first console's ring; domain 0 has none.
    pub console: Option<NonNull<u8>>,
    /// The console's port, offered to domain 0; 0 where there is no console.
    pub console_port: Port,
    /// Frame of the console's ring, as the domain knows it; 0 where there is no console.
    pub console_gfn: Gfn,
}

// SAFETY: the pointers are to pages of the domain, which are tied to no thread.
unsafe impl Send for Start {}
// SAFETY: as above.
unsafe impl Sync for Start {}

impl State {
    /// Makes a domain with everything that it starts with.
    pub(crate) fn create(&mut self, config: &DomainConfig) -> DomId {
        let id = self.new_number();
        let shared_info = self.frames.take_own(&mut self.rng, id);
        let is_translated = self.auto_translated || config.auto_translated;
        let dom = Dom {
            space: Space::new(id, self.frames.backing(), config.pages, config.unbacked, is_translated),
            channels: Channels::new(config.max_port),
            grants: Grants::new(config.grant_frames, config.maptrack_frames),
            life: Life::Running,
            ledger: Ledger::default(),
            wake: Arc::new(Condvar::new()),
            timer: None,
            printed: Vec::new(),
            in_multicall: false,
            idle: 0,
            limbo: Vec::new(),
            shared_info,
            start: None,
            identity: None,
            fate: None,
            vcpus: config.vcpus,
            vcpus_made: 1,
            vcpus_up: 1,
        };
        self.domains.insert(id, dom);
        for vcpu in &self.shared_info(id).vcpu_info[..config.vcpus as usize] {
            vcpu.evtchn_upcall_mask.store(1, SeqCst);
        }
        self.grow_grants(id, 1);
        let store = self.first_page(id);
        let (store_gfn, store_port) = self.first_ring(id, GNTTAB_RESERVED_XENSTORE, store);
        let mut start =
            Start { store, store_port, store_gfn, console: None, console_port: Port(0), console_gfn: Gfn(0) };
        if id != DomId(0) {
            let console = self.first_page(id);
            (start.console_gfn, start.console_port) = self.first_ring(id, GNTTAB_RESERVED_CONSOLE, console);
            start.console = Some(console);
        }
        self.dom(id).start = Some(start);
        self.dom(id).identity = Some(Arc::new(Identity::new(id, start)));
        self.open_store(id, &start);
        self.note(Some(id), || What::Life("was made".into()));
        id
    }

    /// Returns a number that no domain has had.
    pub(crate) fn new_number(&mut self) -> DomId {
        let id = DomId(self.next_domain);
        self.next_domain += 1;
        id
    }

    fn first_page(&mut self, dom: DomId) -> NonNull<u8> {
        self.alloc_pages(dom, 1).expect("a domain has at least two pages")
    }

    /// Grants the page of a ring that a domain starts with to domain 0, which is to serve it, and makes its port.
    pub(crate) fn first_ring(&mut self, dom: DomId, gref: u32, page: NonNull<u8>) -> (Gfn, Port) {
        let gfn = self.dom(dom).space.gfn_at(page.addr().get()).expect("a page of the domain");
        self.write_entry(dom, gref, DomId(0), gfn);
        let mut offer = EvtchnAllocUnbound { dom, remote_dom: DomId(0), port: Port(0) };
        self.alloc_unbound(DomId(0), &mut offer).expect("a new domain has ports");
        (gfn, offer.port)
    }

    /// Connects a domain to xenstored.
    pub(crate) fn open_store(&mut self, dom: DomId, start: &Start) {
        let mut bind = EvtchnBindInterdomain { remote_dom: dom, remote_port: start.store_port, local_port: Port(0) };
        self.bind_interdomain(DomId(0), &mut bind).expect("the port was offered to domain 0");
        // The event that binding raises is for whoever binds; xenstored looks at the ring anyway.
        self.clear_pending(DomId(0), bind.local_port);
        self.serve_store(bind.local_port, dom);
        let ring = self.dom(dom).space.frame_of(start.store_gfn).expect("made just before");
        self.store.open(dom, bind.local_port, ring, start);
    }

    /// Ends a domain: its ports are closed, its mappings released, its grants can't be mapped any more, and xenstored tells.
    pub(crate) fn kill(&mut self, dom: DomId) {
        if self.dom(dom).is_dead() {
            return;
        }
        self.note(Some(dom), || What::Life("is killed".into()));
        self.close_all(dom);
        self.release_mappings(dom);
        self.unserve_store(dom);
        self.dom(dom).life = Life::Dead;
        self.dom(dom).timer = None;
        self.dom(dom).wake.notify_all();
        self.store.close(dom);
        self.raise_virq(DomId(0), 0, VIRQ_DOM_EXC);
        self.wake_machine();
        self.bury(dom);
    }
}
