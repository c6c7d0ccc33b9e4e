//! Own pages and address space of a domain, taken and given back; and who can still reach what was given back.

use std::collections::BTreeMap;
use std::ptr::NonNull;

use hypercall::mem::PAGE_SIZE;
use hypercall::{DomId, Mfn};

use crate::state::{Dom, Life, State};

impl State {
    pub(crate) fn alloc_pages(&mut self, dom: DomId, pages: usize) -> Option<NonNull<u8>> {
        if self.struck(dom, |faults| faults.alloc(dom)) {
            return None;
        }
        let Self { frames, rng, domains, .. } = self;
        let dom = domains.get_mut(&dom).filter(|dom| !dom.is_dead())?;
        dom.space.alloc(frames, rng, pages)
    }

    pub(crate) fn alloc_unbacked(&mut self, dom: DomId, pages: usize) -> Option<NonNull<u8>> {
        if self.struck(dom, |faults| faults.alloc(dom)) {
            return None;
        }
        let Self { rng, domains, .. } = self;
        domains.get_mut(&dom).filter(|dom| !dom.is_dead())?.space.alloc_unbacked(rng, pages)
    }

    /// Frees own pages, and takes note if another domain can still reach one of them.
    pub(crate) fn free_pages(&mut self, dom: DomId, start: NonNull<u8>, pages: usize) {
        if !self.domains.contains_key(&dom) || self.dom(dom).is_dead() {
            return;
        }
        let granted = self.grants_of(dom);
        let mapped: BTreeMap<Mfn, (u32, DomId)> =
            self.dom(dom).grants.active.iter().map(|(gref, active)| (active.mfn, (*gref, active.user))).collect();
        let mut reachable = false;
        for addr in (0..pages).map(|index| start.addr().get() + index * PAGE_SIZE) {
            let Some(mfn) = self.dom(dom).space.frame_at(addr) else {
                self.violation(format!("domain {} freed a page at {addr:#x} that it does not have", dom.0));
                return;
            };
            if let Some((gref, user)) = mapped.get(&mfn) {
                reachable = true;
                let what = format!("domain {} freed a page while mapped: grant {gref}, by domain {}", dom.0, user.0);
                self.violation(what);
            } else if let Some(gref) = granted.get(&mfn) {
                self.violation(format!("domain {} freed a page while granted: grant {gref}", dom.0));
            }
        }
        for mfn in self.dom(dom).space.free(start, pages, !reachable) {
            self.lose(dom, mfn);
        }
    }

    /// Gives a frame back that a domain has no more; later, if another domain can still reach it.
    pub(crate) fn lose(&mut self, dom: DomId, mfn: Mfn) {
        if self.dom(dom).grants.active.values().any(|active| active.mfn == mfn) {
            self.frames.disown(mfn);
            self.dom(dom).limbo.push(mfn);
        } else {
            self.frames.give(mfn);
        }
    }

    /// Gives back frames that were freed while mapped and are no more, and forgets a dead domain that nobody maps.
    pub(crate) fn bury(&mut self, dom: DomId) {
        let Dom { limbo, grants, life, .. } = self.dom(dom);
        let (mapped, gone): (Vec<Mfn>, Vec<Mfn>) =
            limbo.drain(..).partition(|mfn| grants.active.values().any(|active| active.mfn == *mfn));
        *limbo = mapped;
        let forgotten = *life == Life::Dead && grants.active.is_empty();
        for mfn in gone {
            self.frames.give(mfn);
        }
        if forgotten {
            // Its memory stays where its threads left it, until they are done with it.
            let grave = self.domains.remove(&dom).expect("just seen");
            self.spent.add(&grave.ledger);
            self.graves.insert(dom, grave.space);
        }
    }

    /// Frees room, and takes note if something is still mapped there.
    pub(crate) fn free_unbacked(&mut self, dom: DomId, start: NonNull<u8>, pages: usize) {
        if !self.domains.contains_key(&dom) || self.dom(dom).is_dead() {
            return;
        }
        let mut addrs = (0..pages).map(|index| start.addr().get() + index * PAGE_SIZE);
        let space = &self.dom(dom).space;
        if let Some(addr) = addrs.find(|addr| space.pte(*addr).is_some()) {
            let what = format!("domain {} freed address space with a page mapped at {addr:#x}", dom.0);
            self.violation(what);
        }
        self.dom(dom).space.free_unbacked(start, pages);
    }
}
