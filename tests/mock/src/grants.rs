//! Grant tables, version 1: the entries that a domain writes into its own frames, and who has what of them in use.
//!
//! Rules and status codes are those of Xen 4.17. What may surprise: an entry must name the real number of the domain that
//! uses it, never `DOMID_SELF`; a copy may name a frame only of the caller itself, by `DOMID_SELF`; the address given to unmap
//! is checked against what is mapped there, and one of 0 unmaps nothing.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::SeqCst;

use hypercall::mem::{PAGE_SIZE, Shared};
use hypercall::{DomId, Gfn, Mfn};
use xen_sys::GrantHandle;
use xen_sys::errno::*;
use xen_sys::grant_table::*;
use xen_sys::xen::DOMID_SELF;

use crate::physmap::INVALID_GFN;
use crate::space::Pte;
use crate::state::{Dom, State};

/// Entries in a frame of the table.
const ENTRIES: usize = PAGE_SIZE / size_of::<GrantEntryV1>();
/// Mappings that a frame of Xen's own list of them holds.
const MAPTRACK_ENTRIES: usize = 256;
/// A count of mappings of one kind that can't be raised any more.
const PIN_LIMIT: u32 = 1 << 7;
/// How often Xen tries to change an entry that its owner changes at the same time.
const UNSTABLE_TRIES: usize = 5;

/// A grant in use by another domain.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Active {
    pub(crate) user: DomId,
    pub(crate) mfn: Mfn,
    /// Mappings: of the host, writable and read-only; of devices, likewise.
    pins: [u32; 4],
}

impl Active {
    fn is_pinned(&self) -> bool {
        self.pins.iter().any(|count| *count > 0)
    }

    fn is_written(&self) -> bool {
        self.pins[HOST] > 0 || self.pins[DEVICE] > 0
    }
}

const HOST: usize = 0;
const DEVICE: usize = 2;

/// A mapping of a foreign grant.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mapping {
    pub(crate) dom: DomId,
    pub(crate) gref: u32,
    flags: u32,
}

/// What Xen knows of a domain's grants, given and used.
pub(crate) struct Grants {
    /// Frames of the table.
    pub(crate) frames: Vec<Mfn>,
    max_frames: usize,
    /// Own grants in use.
    pub(crate) active: BTreeMap<u32, Active>,
    /// Foreign grants that are mapped, by handle.
    pub(crate) mappings: BTreeMap<u32, Mapping>,
    max_mappings: usize,
    /// Handles that were given back, the last one first.
    free_handles: Vec<u32>,
}

impl Grants {
    pub(crate) fn new(max_frames: usize, maptrack_frames: usize) -> Self {
        Self {
            frames: Vec::new(),
            max_frames,
            active: BTreeMap::new(),
            mappings: BTreeMap::new(),
            max_mappings: maptrack_frames * MAPTRACK_ENTRIES,
            free_handles: Vec::new(),
        }
    }

    /// Returns a table that may become as large as this one, without a frame.
    pub(crate) fn anew(&self) -> Self {
        Self::new(self.max_frames, self.max_mappings / MAPTRACK_ENTRIES)
    }

    pub(crate) const fn max_frames(&self) -> usize {
        self.max_frames
    }

    fn entries(&self) -> usize {
        self.frames.len() * ENTRIES
    }
}

/// Which entry, and what is wanted of it.
#[derive(Clone, Copy)]
struct Wanted {
    owner: DomId,
    gref: u32,
    user: DomId,
    readonly: bool,
}

impl State {
    /// Enlarges a table to `frames` frames.
    pub(crate) fn grow_grants(&mut self, dom: DomId, frames: usize) {
        while self.dom(dom).grants.frames.len() < frames {
            let mfn = self.frames.take_own(&mut self.rng, dom);
            self.dom(dom).grants.frames.push(mfn);
        }
    }

    /// Returns an entry, which must be one of the table.
    fn entry(&mut self, dom: DomId, gref: u32) -> &GrantEntryV1 {
        let (frame, index) = (gref as usize / ENTRIES, gref as usize % ENTRIES);
        let mfn = self.dom(dom).grants.frames[frame];
        // SAFETY: inside the frame, which is page aligned and lives as long as the machine; an entry is nothing but atomics.
        unsafe { self.frames.ptr(mfn).cast::<GrantEntryV1>().add(index).as_ref() }
    }

    /// Writes an entry on the owner's behalf, as the toolstack does for the console's and the store's ring.
    pub(crate) fn write_entry(&mut self, dom: DomId, gref: u32, user: DomId, gfn: Gfn) {
        let entry = self.entry(dom, gref);
        entry.frame.store(gfn.0 as u32, SeqCst);
        entry.domid.store(user.0, SeqCst);
        entry.flags.store(GTF_permit_access, SeqCst);
    }

    /// Returns the references by which a domain grants access to a frame at the moment.
    pub(crate) fn grants_of(&self, dom: DomId) -> BTreeMap<Mfn, u32> {
        let Some(Dom { space, .. }) = self.domains.get(&dom) else { return BTreeMap::new() };
        let granted =
            (0..).zip(self.grant_entries(dom)).filter(|(_, entry)| entry.0 & GTF_type_mask == GTF_permit_access);
        granted.filter_map(|(gref, (_, _, frame))| Some((space.frame_of(Gfn(u64::from(frame)))?, gref))).collect()
    }

    /// Returns the entries of a domain's table as the domain has written them: what they permit, to whom, and the frame.
    pub(crate) fn grant_entries(&self, dom: DomId) -> impl Iterator<Item = (u16, DomId, u32)> {
        let frames = self.domains.get(&dom).map(|dom| dom.grants.frames.as_slice()).unwrap_or_default();
        let entries = frames.iter().flat_map(|mfn| {
            // SAFETY: a frame of the table, which lives as long as the machine; entries are nothing but atomics.
            unsafe { self.frames.ptr(*mfn).cast::<[GrantEntryV1; ENTRIES]>().as_ref() }
        });
        entries.map(|entry| {
            let flags = entry.flags.load(SeqCst) & (GTF_type_mask | GTF_readonly);
            (flags, DomId(entry.domid.load(SeqCst)), entry.frame.load(SeqCst))
        })
    }

    /// Says in the entry that the grant is used, if it may be used so.
    ///
    /// Xen changes flags and domain in one word. Here it is the flags alone, which the owner changes too, so that all access
    /// to a field has one size, as Miri wants it; the domain is looked at again afterwards.
    fn set_status(&mut self, wanted: Wanted, pinned: bool) -> Result<(), i16> {
        let entry = self.entry(wanted.owner, wanted.gref);
        let marks = if wanted.readonly { GTF_reading } else { GTF_reading | GTF_writing };
        let is_for_user = || pinned || entry.domid.load(SeqCst) == wanted.user.0;
        let mut flags = entry.flags.load(SeqCst);
        for _ in 0..UNSTABLE_TRIES {
            let permits = pinned || flags & (GTF_type_mask | GTF_sub_page) == GTF_permit_access;
            if !permits || !is_for_user() || (!wanted.readonly && flags & GTF_readonly != 0) {
                return Err(GNTST_general_error);
            }
            match entry.flags.compare_exchange(flags, flags | marks, SeqCst, SeqCst) {
                Ok(_) if is_for_user() => return Ok(()),
                Ok(_) => flags = entry.flags.fetch_and(!marks, SeqCst) & !marks,
                Err(now) => flags = now,
            }
        }
        Err(GNTST_general_error)
    }

    /// Takes back from the entry what the remaining uses don't need.
    fn reduce_status(&mut self, wanted: Wanted) {
        let active = self.dom(wanted.owner).grants.active.get(&wanted.gref).copied();
        let mut marks = 0;
        if active.is_none_or(|active| !active.is_pinned()) {
            marks |= GTF_reading;
        }
        if !wanted.readonly && active.is_none_or(|active| !active.is_written()) {
            marks |= GTF_writing;
        }
        self.entry(wanted.owner, wanted.gref).flags.fetch_and(!marks, SeqCst);
    }

    /// Counts a use of a grant; `kinds` are indices into the pins. The frame comes back.
    fn pin(&mut self, wanted: Wanted, kinds: &[usize]) -> Result<Mfn, i16> {
        let Wanted { owner, gref, user, readonly } = wanted;
        if gref as usize >= self.dom(owner).grants.entries() {
            return Err(GNTST_bad_gntref);
        }
        let active = self.dom(owner).grants.active.get(&gref).copied();
        if active.is_some_and(|active| active.user != user || kinds.iter().any(|kind| active.pins[*kind] >= PIN_LIMIT))
        {
            return Err(GNTST_general_error);
        }
        if active.is_none_or(|active| !readonly && !active.is_written()) {
            self.set_status(wanted, active.is_some())?;
        }
        let mut active = match active {
            Some(active) => active,
            None => {
                let gfn = Gfn(u64::from(self.entry(owner, gref).frame.load(SeqCst)));
                let mfn = self.dom(owner).space.frame_of(gfn);
                let own = mfn.filter(|mfn| self.frames.owner(*mfn) == Some(owner));
                let Some(mfn) = own.filter(|_| !self.dom(owner).is_dead()) else {
                    self.reduce_status(wanted);
                    return Err(GNTST_bad_page);
                };
                Active { user, mfn, pins: [0; 4] }
            }
        };
        for kind in kinds {
            active.pins[*kind] += 1;
        }
        self.dom(owner).grants.active.insert(gref, active);
        Ok(active.mfn)
    }

    /// Takes back what [`pin`](Self::pin) counted.
    fn unpin(&mut self, wanted: Wanted, kinds: &[usize]) {
        let active = &mut self.dom(wanted.owner).grants.active;
        if let Some(grant) = active.get_mut(&wanted.gref) {
            for kind in kinds {
                grant.pins[*kind] -= 1;
            }
            if !grant.is_pinned() {
                active.remove(&wanted.gref);
            }
        }
        self.reduce_status(wanted);
    }

    /// Maps one grant. The result is in `op`.
    pub(crate) fn map_grant(&mut self, caller: DomId, op: &mut GnttabMapGrantRef) {
        let result = match self.struck(caller, |faults| faults.entry(caller, GNTTABOP_map_grant_ref)) {
            Some(status) => Err(status),
            None => self.try_map(caller, op),
        };
        op.status = match result {
            Ok((handle, mfn)) => {
                op.handle = GrantHandle(handle);
                op.dev_bus_addr = mfn.0 << 12;
                self.dom(caller).ledger.grant_maps += 1;
                GNTST_okay
            }
            Err(status) => status,
        };
        self.note_map(caller, op);
    }

    fn try_map(&mut self, caller: DomId, op: &GnttabMapGrantRef) -> Result<(u32, Mfn), i16> {
        let readonly = op.flags & GNTMAP_readonly != 0;
        let kinds = kinds(op.flags, readonly);
        if kinds.is_empty() {
            return Err(GNTST_bad_gntref);
        }
        if !self.domains.contains_key(&op.dom) {
            return Err(GNTST_bad_domain);
        }
        let grants = &self.dom(caller).grants;
        if grants.mappings.len() >= grants.max_mappings {
            return Err(GNTST_no_space);
        }
        let wanted = Wanted { owner: op.dom, gref: op.r#ref.0, user: caller, readonly };
        let mfn = self.pin(wanted, &kinds)?;
        let at = if op.flags & GNTMAP_host_map == 0 { Ok(None) } else { self.mappable(caller, op).map(Some) };
        let at = at.and_then(|at| if self.dom(op.dom).is_dead() { Err(GNTST_general_error) } else { Ok(at) });
        let at = at.inspect_err(|_| self.unpin(wanted, &kinds))?;
        if let Some(addr) = at {
            self.map_page(caller, addr, Pte { mfn, writable: !readonly });
        }
        let grants = &mut self.dom(caller).grants;
        let handle = grants.free_handles.pop().unwrap_or(grants.mappings.len() as u32);
        grants.mappings.insert(handle, Mapping { dom: op.dom, gref: op.r#ref.0, flags: op.flags });
        Ok((handle, mfn))
    }

    /// Returns the address at which a grant is to be mapped.
    fn mappable(&mut self, caller: DomId, op: &GnttabMapGrantRef) -> Result<usize, i16> {
        let space = &self.dom(caller).space;
        let is_translated = space.is_translated();
        // A page-table entry named by its machine address needs page tables, which the mock's domains don't have. Xen has none
        // of an auto-translated domain, and takes no other flags there than these.
        let bad = if is_translated {
            op.flags & !(GNTMAP_host_map | GNTMAP_readonly)
        } else {
            op.flags & GNTMAP_contains_pte
        };
        let addr = space.host_addr(op.host_addr).filter(|_| bad == 0).ok_or(GNTST_general_error)?;
        if is_translated && space.frame_at(addr).is_some() {
            let what = format!("domain {} mapped a grant over memory, which is lost: {:#x}", caller.0, op.host_addr);
            self.violation(what);
            return Err(GNTST_general_error);
        }
        Ok(addr)
    }

    /// Unmaps one grant. The result is in `op`.
    pub(crate) fn unmap_grant(&mut self, caller: DomId, op: &mut GnttabUnmapGrantRef) {
        let mapping = self.dom(caller).grants.mappings.get(&op.handle.0).copied();
        op.status = match self.struck(caller, |faults| faults.entry(caller, GNTTABOP_unmap_grant_ref)) {
            Some(status) => status,
            None => self.try_unmap(caller, op).err().unwrap_or(GNTST_okay),
        };
        self.note_unmap(caller, op, mapping);
    }

    fn try_unmap(&mut self, caller: DomId, op: &GnttabUnmapGrantRef) -> Result<(), i16> {
        let handle = op.handle.0;
        let Mapping { dom, gref, flags } =
            self.dom(caller).grants.mappings.get(&handle).copied().ok_or(GNTST_bad_handle)?;
        let mfn = self.dom(dom).grants.active.get(&gref).map(|active| active.mfn).ok_or(GNTST_bad_handle)?;
        let readonly = flags & GNTMAP_readonly != 0;
        let of_device = op.dev_bus_addr != 0 && flags & GNTMAP_device_map != 0;
        if of_device && op.dev_bus_addr != mfn.0 << 12 {
            return Err(GNTST_bad_dev_addr);
        }
        let mut done = 0;
        if op.host_addr != 0 && flags & GNTMAP_host_map != 0 {
            let space = &self.dom(caller).space;
            let addr = space.host_addr(op.host_addr).ok_or(GNTST_general_error)?;
            if space.pte(addr) != Some(Pte { mfn, writable: !readonly }) {
                return Err(GNTST_general_error);
            }
            self.dom(caller).space.unmap(addr);
            done |= GNTMAP_host_map;
        }
        if of_device {
            done |= GNTMAP_device_map;
        }
        let grants = &mut self.dom(caller).grants;
        let left = flags & !done;
        if left & (GNTMAP_host_map | GNTMAP_device_map) == 0 {
            grants.mappings.remove(&handle);
            grants.free_handles.push(handle);
        } else {
            grants.mappings.insert(handle, Mapping { dom, gref, flags: left });
        }
        if done != 0 {
            self.dom(caller).ledger.grant_unmaps += 1;
            self.unpin(Wanted { owner: dom, gref, user: caller, readonly }, &kinds(done, readonly));
            self.bury(dom);
        }
        Ok(())
    }

    /// Unmaps everything that a dead domain had mapped. Empty pages stand there afterwards, for its threads.
    pub(crate) fn release_mappings(&mut self, dom: DomId) {
        let mappings = std::mem::take(&mut self.dom(dom).grants.mappings);
        for Mapping { dom: owner, gref, flags } in mappings.into_values() {
            let readonly = flags & GNTMAP_readonly != 0;
            self.unpin(Wanted { owner, gref, user: dom, readonly }, &kinds(flags, readonly));
            self.bury(owner);
        }
        for (addr, pte) in self.dom(dom).space.mapped() {
            if self.frames.owner(pte.mfn) != Some(dom) {
                self.dom(dom).space.orphan(addr);
            }
        }
    }

    /// Copies one segment. The result is in `op`.
    pub(crate) fn copy_grant(&mut self, caller: DomId, op: &mut GnttabCopy) {
        let result = match self.struck(caller, |faults| faults.entry(caller, GNTTABOP_copy)) {
            Some(status) => Err(status),
            None => self.try_copy(caller, op),
        };
        op.status = result.err().unwrap_or(GNTST_okay);
        if op.status == GNTST_okay {
            let ledger = &mut self.dom(caller).ledger;
            ledger.grant_copies += 1;
            ledger.copied_bytes += u64::from(op.len);
        }
        self.note_copy(caller, op);
    }

    fn try_copy(&mut self, caller: DomId, op: &GnttabCopy) -> Result<(), i16> {
        let by_ref = |flag| op.flags & flag != 0;
        let source = self.copy_domain(caller, op.source.domid, by_ref(GNTCOPY_source_gref))?;
        let dest = self.copy_domain(caller, op.dest.domid, by_ref(GNTCOPY_dest_gref))?;
        let from = self.claim(caller, source, &op.source, by_ref(GNTCOPY_source_gref), true)?;
        let done = self.claim(caller, dest, &op.dest, by_ref(GNTCOPY_dest_gref), false).and_then(|to| {
            let moved = self.move_bytes(op, from.0, to.0);
            self.unclaim(to);
            moved
        });
        self.unclaim(from);
        done
    }

    /// Returns the domain that a side of a copy is about.
    fn copy_domain(&mut self, caller: DomId, dom: DomId, by_ref: bool) -> Result<DomId, i16> {
        if dom != DOMID_SELF && !by_ref {
            return Err(GNTST_permission_denied);
        }
        self.resolve(caller, dom).ok_or(GNTST_bad_domain)
    }

    /// Returns the frame of a side of a copy, in use if it is a grant.
    fn claim(
        &mut self,
        caller: DomId,
        owner: DomId,
        side: &GnttabCopyPtr,
        by_ref: bool,
        readonly: bool,
    ) -> Result<(Mfn, Option<Wanted>), i16> {
        if by_ref {
            // SAFETY: both members are plain integers, and the flag says which one was meant.
            let gref = unsafe { side.u.r#ref }.0;
            let wanted = Wanted { owner, gref, user: caller, readonly };
            let owner = self.dom(owner);
            if owner.is_dead() && owner.grants.active.contains_key(&gref) {
                return Err(GNTST_bad_domain);
            }
            return Ok((self.pin(wanted, &kinds(GNTMAP_host_map, readonly))?, Some(wanted)));
        }
        // SAFETY: as above.
        let gfn = Gfn(unsafe { side.u.gmfn }.0 as u64);
        let mfn = self.dom(owner).space.frame_of(gfn).filter(|mfn| self.frames.owner(*mfn) == Some(owner));
        mfn.map(|mfn| (mfn, None)).ok_or(GNTST_bad_page)
    }

    fn unclaim(&mut self, claimed: (Mfn, Option<Wanted>)) {
        if let Some(wanted) = claimed.1 {
            self.unpin(wanted, &kinds(GNTMAP_host_map, wanted.readonly));
        }
    }

    fn move_bytes(&mut self, op: &GnttabCopy, from: Mfn, to: Mfn) -> Result<(), i16> {
        let len = usize::from(op.len);
        let (source, dest) = (usize::from(op.source.offset), usize::from(op.dest.offset));
        if source + len > PAGE_SIZE || dest + len > PAGE_SIZE {
            return Err(GNTST_bad_copy_arg);
        }
        let mut bytes = [0; PAGE_SIZE];
        let bytes = &mut bytes[..len];
        // SAFETY: both frames belong to somebody, and stay so under the machine's lock; the view is atomic.
        unsafe { Shared::new(self.frames.ptr(from), PAGE_SIZE) }.read(source, bytes);
        // SAFETY: as above.
        unsafe { Shared::new(self.frames.ptr(to), PAGE_SIZE) }.write(dest, bytes);
        Ok(())
    }

    /// Answers `setup_table`: the frames of the table, as the domain knows them, after it was enlarged if it had to be.
    pub(crate) fn setup_table(&mut self, caller: DomId, op: &GnttabSetupTable) -> Result<Vec<Gfn>, i16> {
        let dom = self.resolve(caller, op.dom).ok_or(GNTST_bad_domain)?;
        self.target(caller, dom).map_err(|_| GNTST_permission_denied)?;
        let wanted = op.nr_frames as usize;
        if wanted > self.dom(dom).grants.max_frames {
            return Err(GNTST_general_error);
        }
        self.grow_grants(dom, wanted);
        let Dom { grants, space, .. } = self.dom(dom);
        let number =
            |mfn: &Mfn| if space.is_translated() { space.gfn_of(*mfn).unwrap_or(INVALID_GFN) } else { Gfn(mfn.0) };
        Ok(grants.frames[..wanted].iter().map(number).collect())
    }

    pub(crate) fn query_size(&mut self, caller: DomId, op: &mut GnttabQuerySize) {
        op.status = match self.resolve(caller, op.dom) {
            None => GNTST_bad_domain,
            Some(dom) if self.target(caller, dom).is_err() => GNTST_permission_denied,
            Some(dom) => {
                let grants = &self.dom(dom).grants;
                op.nr_frames = grants.frames.len() as u32;
                op.max_nr_frames = grants.max_frames as u32;
                GNTST_okay
            }
        };
    }

    pub(crate) fn grant_version(&mut self, caller: DomId, op: &mut GnttabGetVersion) -> Result<(), i32> {
        let dom = self.resolve(caller, op.dom).ok_or(XEN_ESRCH)?;
        self.target(caller, dom)?;
        op.version = 1;
        Ok(())
    }
}

/// Returns the pins that the flags of a mapping stand for.
fn kinds(flags: u32, readonly: bool) -> Vec<usize> {
    let mut kinds = Vec::with_capacity(2);
    if flags & GNTMAP_host_map != 0 {
        kinds.push(HOST + usize::from(readonly));
    }
    if flags & GNTMAP_device_map != 0 {
        kinds.push(DEVICE + usize::from(readonly));
    }
    kinds
}
