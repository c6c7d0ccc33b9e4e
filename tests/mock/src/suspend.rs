//! A domain that is saved and restored: what `xl save` and `xl restore` do, all within its hypercall.
//!
//! What comes back is another domain with the same in its memory: it has another number and other frames, new ports for store and
//! console and no others, a new grant table, and a home in the store without a device. The old one is dead. Who maps pages of it has
//! them for as long as he likes: what is written there reaches nobody.

use std::sync::atomic::Ordering::SeqCst;

use hypercall::DomId;
use xen_sys::grant_table::{GNTTAB_RESERVED_CONSOLE, GNTTAB_RESERVED_XENSTORE};
use xen_sys::xen::VIRQ_DOM_EXC;

use crate::events::Channels;
use crate::ledger::Ledger;
use crate::life::Start;
use crate::memory::clear_page;
use crate::space::Space;
use crate::state::{Dom, Life, State};
use crate::trace::What;

/// What becomes of a domain that suspends itself.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fate {
    /// Nothing has changed.
    Cancelled,
    /// It is restored under this number.
    Restored(DomId),
}

impl State {
    /// Suspends a domain. Returns what the hypercall does: 1 if that was cancelled, 0 in the restored domain.
    pub(crate) fn suspend(&mut self, dom: DomId) -> isize {
        match self.dom(dom).fate.take() {
            Some(Fate::Cancelled) => {
                self.note(Some(dom), || What::Life("was suspended, which was cancelled".into()));
                return 1;
            }
            Some(Fate::Restored(new)) => self.restore(dom, new),
            None => {
                let new = self.new_number();
                self.restore(dom, new);
            }
        }
        0
    }

    fn restore(&mut self, old: DomId, new: DomId) {
        self.note(Some(old), || What::Life(format!("is saved, and restored as domain {}", new.0)));
        self.check_savable(old);
        self.close_all(old);
        self.release_mappings(old);
        self.unserve_store(old);
        self.store.close(old);
        self.part(old, new);
        self.clear_space(old, new);
        self.renew_pages(old, new);
        let start = self.start_again(new);
        self.restored.push((old, new, start));
        self.raise_virq(DomId(0), 0, VIRQ_DOM_EXC);
        self.wake_machine();
        self.bury(old);
    }

    /// Takes note of what no toolstack can save.
    fn check_savable(&mut self, dom: DomId) {
        let Dom { grants, space, .. } = self.dom(dom);
        let (foreign, mapped) = (grants.mappings.len(), space.mapped().len());
        if foreign > 0 {
            self.violation(format!("domain {} was saved with {foreign} foreign grant(s) mapped", dom.0));
        } else if mapped > 0 && !self.space(dom).is_translated() {
            self.violation(format!("domain {} was saved with {mapped} frame(s) mapped that are not its memory", dom.0));
        }
    }

    /// Makes two of a domain: a dead one, which has what others map of it, and one that goes on.
    fn part(&mut self, old: DomId, new: DomId) {
        let mut dom = self.domains.remove(&old).expect("a domain that there is");
        let (backing, is_translated) = (self.frames.backing(), dom.space.is_translated());
        let grants = dom.grants.anew();
        let dead = Dom {
            space: Space::new(old, backing, 1, 0, is_translated),
            channels: Channels::new(0),
            grants: std::mem::replace(&mut dom.grants, grants),
            life: Life::Dead,
            ledger: Ledger::default(),
            wake: dom.wake.clone(),
            timer: None,
            printed: Vec::new(),
            in_multicall: false,
            idle: 0,
            limbo: std::mem::take(&mut dom.limbo),
            shared_info: dom.shared_info,
            start: None,
            identity: None,
            fate: None,
            vcpus: 0,
            vcpus_made: 0,
            vcpus_up: 0,
        };
        self.domains.insert(old, dead);
        dom.timer = None;
        self.domains.insert(new, dom);
    }

    /// Takes away what the hypervisor had put into the domain. In the place of the table of an auto-translated one there was memory, and
    /// is again.
    fn clear_space(&mut self, old: DomId, new: DomId) {
        let Self { frames, rng, domains, .. } = self;
        let space = &mut domains.get_mut(&new).expect("just made").space;
        for (addr, pte) in space.mapped() {
            space.unmap(addr);
            if space.is_translated() && frames.owner(pte.mfn) == Some(old) {
                space.populate(frames, rng, addr).expect("as much memory as before");
            }
        }
    }

    /// Gives the pages of the restored domain frames of their own, and the old ones back.
    fn renew_pages(&mut self, old: DomId, new: DomId) {
        let kept = self.dom(old).grants.active.values().map(|active| active.mfn).collect();
        let Self { frames, rng, domains, .. } = self;
        let gone = domains.get_mut(&new).expect("just made").space.hand_over(frames, rng, new, &kept);
        domains.values_mut().for_each(|dom| dom.space.look_again(frames));
        gone.into_iter().for_each(|mfn| self.lose(old, mfn));
    }

    /// Makes what a domain starts with.
    fn start_again(&mut self, dom: DomId) -> Start {
        let mfn = self.dom(dom).shared_info;
        self.frames.hand_over(mfn, dom);
        let shared = self.shared_info(dom);
        for (pending, mask) in shared.evtchn_pending.iter().zip(&shared.evtchn_mask) {
            pending.store(0, SeqCst);
            mask.store(usize::MAX, SeqCst);
        }
        for vcpu in &shared.vcpu_info {
            vcpu.evtchn_pending_sel.store(0, SeqCst);
            vcpu.evtchn_upcall_pending.store(0, SeqCst);
            vcpu.evtchn_upcall_mask.store(1, SeqCst);
        }
        self.grow_grants(dom, 1);
        let mut start = self.dom(dom).start.expect("set when the domain was made");
        let console = start.console.expect("only domain 0 has none, and it can't be saved");
        if self.space(dom).is_translated() {
            // As libxc does: the rings of such a domain are empty.
            for page in [start.store, console] {
                let mfn = self.space(dom).frame_at(page.addr().get()).expect("never freed");
                clear_page(self.frames.ptr(mfn));
            }
        }
        // The other way round than before, so that no port has its old number.
        let rings = [(GNTTAB_RESERVED_XENSTORE, start.store), (GNTTAB_RESERVED_CONSOLE, console)];
        let store_first = start.store_port > start.console_port;
        let mut made = [None; 2];
        for index in if store_first { [0, 1] } else { [1, 0] } {
            let (gref, page) = rings[index];
            made[index] = Some(self.first_ring(dom, gref, page));
        }
        let [Some(store), Some(console)] = made else { unreachable!("both were made") };
        (start.store_gfn, start.store_port) = store;
        (start.console_gfn, start.console_port) = console;
        self.dom(dom).start = Some(start);
        if let Some(identity) = &self.dom(dom).identity {
            identity.become_other(dom, start);
        }
        self.open_store(dom, &start);
        start
    }
}
