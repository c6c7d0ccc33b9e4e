//! Frame numbers of an auto-translated (PVH) domain, and what the hypervisor puts behind them.

use std::collections::BTreeMap;

use hypercall::{DomId, Gfn, Mfn};
use rand::Rng;
use rand::rngs::SmallRng;
use xen_sys::errno::*;
use xen_sys::memory::*;

use crate::memory::FIRST_MFN;
use crate::space::Pte;
use crate::state::{Dom, State};

/// What Xen says for a frame that is nowhere in the domain's space.
pub(crate) const INVALID_GFN: Gfn = Gfn(u64::MAX);

/// The frame numbers of a domain's pages, memory or not. Drawn by lot, so that no two are taken to be neighbours, and all of them
/// below the machine's, so that neither is taken for the other.
#[derive(Debug, Default)]
pub(crate) struct Physmap {
    gfns: BTreeMap<usize, Gfn>,
    addrs: BTreeMap<Gfn, usize>,
}

impl Physmap {
    pub(crate) fn gfn(&self, addr: usize) -> Option<Gfn> {
        self.gfns.get(&addr).copied()
    }

    pub(crate) fn addr(&self, gfn: Gfn) -> Option<usize> {
        self.addrs.get(&gfn).copied()
    }

    /// Gives a new page its number.
    pub(crate) fn draw(&mut self, rng: &mut SmallRng, addr: usize) {
        let gfn = loop {
            let gfn = Gfn(rng.random_range(1..FIRST_MFN));
            if !self.addrs.contains_key(&gfn) {
                break gfn;
            }
        };
        self.gfns.insert(addr, gfn);
        self.addrs.insert(gfn, addr);
    }

    /// Takes the number of a page away that is no more.
    pub(crate) fn forget(&mut self, addr: usize) {
        if let Some(gfn) = self.gfns.remove(&addr) {
            self.addrs.remove(&gfn);
        }
    }
}

impl State {
    /// Returns the domain whose physmap is to be changed.
    fn physmap_of(&self, caller: DomId, dom: DomId) -> Result<DomId, i32> {
        let dom = self.resolve(caller, dom).ok_or(XEN_ESRCH)?;
        if !self.space(dom).is_translated() {
            return Err(XEN_EACCES);
        }
        self.target(caller, dom)?;
        Ok(dom)
    }

    /// Puts a page of the hypervisor's behind a frame number.
    pub(crate) fn add_to_physmap(&mut self, caller: DomId, op: &XenAddToPhysmap) -> Result<(), i32> {
        if op.space == XENMAPSPACE_gmfn_foreign {
            return Err(XEN_ENOSYS);
        }
        let dom = self.physmap_of(caller, op.domid)?;
        let mfn = match op.space {
            XENMAPSPACE_shared_info if op.idx == 0 => self.dom(dom).shared_info,
            XENMAPSPACE_grant_table => self.table_frame(dom, op.idx)?,
            XENMAPSPACE_gmfn | XENMAPSPACE_gmfn_range => return Err(XEN_ENOSYS),
            _ => return Err(XEN_EINVAL),
        };
        // Xen takes any number that the processor can bear; here a page must be seen by it.
        let addr = self.dom(dom).space.addr_of(Gfn(op.gpfn.0 as u64)).ok_or(XEN_EINVAL)?;
        let before = self.dom(dom).space.pte(addr).map(|pte| pte.mfn);
        if before.is_some_and(|before| self.frames.owner(before) != Some(dom)) {
            // A foreign page, mapped by its grant, is unmapped by its grant.
            return Err(XEN_ENXIO);
        }
        if let Some(own) = self.dom(dom).space.take_away(addr) {
            self.lose(dom, own);
        }
        // It is in one place: from any other it is taken away.
        let Dom { space, .. } = self.dom(dom);
        if let Some(elsewhere) = space.gfn_of(mfn).and_then(|gfn| space.addr_of(gfn)) {
            space.unmap(elsewhere);
        }
        self.map_page(dom, addr, Pte { mfn, writable: true });
        Ok(())
    }

    /// Returns a frame of a grant table, which is enlarged if it may have the frame and hasn't.
    fn table_frame(&mut self, dom: DomId, index: usize) -> Result<Mfn, i32> {
        if index >= self.dom(dom).grants.max_frames() {
            return Err(XEN_EINVAL);
        }
        self.grow_grants(dom, index + 1);
        Ok(self.dom(dom).grants.frames[index])
    }

    /// Takes away what is behind a frame number.
    pub(crate) fn remove_from_physmap(&mut self, caller: DomId, op: &XenRemoveFromPhysmap) -> Result<(), i32> {
        let dom = self.physmap_of(caller, op.domid)?;
        let Dom { space, .. } = self.dom(dom);
        let addr = space.addr_of(Gfn(op.gpfn.0 as u64)).ok_or(XEN_ENOENT)?;
        let mfn = space.pte(addr).map(|pte| pte.mfn).ok_or(XEN_ENOENT)?;
        if self.frames.owner(mfn) != Some(dom) {
            return Err(XEN_ENOENT);
        }
        match self.dom(dom).space.take_away(addr) {
            Some(own) => self.lose(dom, own),
            None => self.dom(dom).space.unmap(addr),
        }
        Ok(())
    }

    /// Puts memory behind a frame number, if there is some.
    pub(crate) fn populate(&mut self, dom: DomId, gfn: Gfn) -> Option<()> {
        let addr = self.dom(dom).space.addr_of(gfn)?;
        if self.dom(dom).space.pte(addr).is_some() {
            let what = format!("domain {} put memory over what is at frame {:#x}, which is lost", dom.0, gfn.0);
            self.violation(what);
            return None;
        }
        let Self { frames, rng, domains, .. } = self;
        domains.get_mut(&dom)?.space.populate(frames, rng, addr)
    }
}
