//! Mapping foreign pages into address space of our own.

use alloc::vec;
use alloc::vec::Vec;
use core::fmt;
use core::mem::MaybeUninit;
use core::ptr::NonNull;

use xen_sys::grant_table::{GNTMAP_host_map, GNTMAP_readonly, GNTST_okay, GnttabMapGrantRef, GnttabUnmapGrantRef};
use xen_sys::{DomId, GrantHandle, GrantRef};

use super::{Access, GrantStatus, UNTRIED};
use crate::call::version::is_auto_translated;
use crate::call::{grant_table as call, sched};
use crate::error::XenError;
use crate::mem::{OutOfMemory, PAGE_SIZE, Shared};
use crate::platform::{Level, Platform, Region};

/// Entries of one hypercall; they stand on the stack.
const BATCH: usize = 32;

/// How often a grant is tried again whose frame is being paged in.
const TRIES: usize = 16;

/// A grant to map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapRequest {
    /// The reference, as the peer named it.
    pub gref: GrantRef,
    /// The domain that granted it.
    pub peer: DomId,
    /// What we want to do with the page.
    pub access: Access,
}

/// Why a grant could not be mapped. Nothing is mapped then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapError {
    /// The window has no such slot.
    NoSlot {
        /// The slot.
        slot: usize,
    },
    /// Something is mapped there already.
    Occupied {
        /// The slot.
        slot: usize,
    },
    /// The hypervisor refused this grant.
    Refused {
        /// The reference, as the peer named it.
        gref: GrantRef,
        /// What the hypervisor said.
        status: GrantStatus,
    },
    /// The hypervisor refused the whole call before it came to this grant.
    Xen(XenError),
}

impl fmt::Display for MapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSlot { slot } => write!(f, "the window has no slot {slot}"),
            Self::Occupied { slot } => write!(f, "slot {slot} of the window is in use"),
            Self::Refused { gref, status } => write!(f, "grant {} can't be mapped: {status}", gref.0),
            Self::Xen(error) => write!(f, "grants can't be mapped: {error}"),
        }
    }
}

/// Some slots could not be unmapped. They can't be used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnmapError {
    /// How many.
    pub failed: usize,
}

impl fmt::Display for UnmapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} grant(s) can't be unmapped", self.failed)
    }
}

/// One page of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slot {
    Empty,
    /// In the batch that is being mapped.
    Claimed,
    Mapped {
        handle: GrantHandle,
        access: Access,
    },
    /// Xen refused to unmap it: what is there now is not known.
    Stuck,
}

/// What goes into one hypercall, and what each entry is about. To fill in what is not in use would cost more than most batches are
/// worth.
struct Batch<T, O> {
    entries: [MaybeUninit<T>; BATCH],
    of: [MaybeUninit<O>; BATCH],
    len: usize,
}

impl<T: Copy, O: Copy> Batch<T, O> {
    #[inline]
    const fn new() -> Self {
        Self { entries: [const { MaybeUninit::uninit() }; BATCH], of: [const { MaybeUninit::uninit() }; BATCH], len: 0 }
    }

    /// Adds an entry, for which there is room; tells whether it was the last.
    #[inline]
    fn push(&mut self, entry: T, of: O) -> bool {
        let at = self.len;
        self.entries[at].write(entry);
        self.of[at].write(of);
        self.len = at + 1;
        self.len == BATCH
    }

    /// Returns what was added, and begins anew.
    #[inline]
    fn take(&mut self) -> (&mut [T], &mut [O]) {
        let len = core::mem::take(&mut self.len);
        let (entries, of) = (&mut self.entries[..len], &mut self.of[..len]);
        // SAFETY: `push` has filled in as many, and a value in a `MaybeUninit` is laid out as one outside.
        unsafe { (&mut *(core::ptr::from_mut(entries) as *mut [T]), &mut *(core::ptr::from_mut(of) as *mut [O])) }
    }
}

/// Address space into which grants of other domains are mapped, page by page. Dropping it unmaps them all.
///
/// Mapping and unmapping take batches of any length; a hypercall does 32. Nothing is allocated after [`Window::new`].
pub struct Window<P: Platform> {
    platform: P,
    va: NonNull<u8>,
    /// Xen knows the slots by frame number, not by address.
    is_translated: bool,
    slots: Vec<Slot>,
}

// SAFETY: the address space is owned, and the platform's handle says itself whether it may move to another thread.
unsafe impl<P: Platform + Send> Send for Window<P> {}

impl<P: Platform> fmt::Debug for Window<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Window({:p}, {} of {} mapped, {} stuck)", self.va, self.mapped(), self.slots.len(), self.stuck())
    }
}

impl<P: Platform> Window<P> {
    /// Sets aside address space for `slots` pages.
    ///
    /// # Errors
    /// [`OutOfMemory`] if there is none.
    pub fn new(platform: &P, slots: usize) -> Result<Self, OutOfMemory> {
        let va = platform.alloc(Region::Unbacked, slots).ok_or(OutOfMemory { pages: slots })?;
        let is_translated = is_auto_translated(platform);
        Ok(Self { platform: platform.clone(), va, is_translated, slots: vec![Slot::Empty; slots] })
    }

    /// Returns how many slots there are.
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// Returns how many slots are mapped.
    pub fn mapped(&self) -> usize {
        self.slots.iter().filter(|slot| matches!(slot, Slot::Mapped { .. })).count()
    }

    /// Returns how many slots can't be used any more because they could not be unmapped.
    pub fn stuck(&self) -> usize {
        self.slots.iter().filter(|slot| matches!(slot, Slot::Stuck)).count()
    }

    /// Maps a grant into an empty slot.
    ///
    /// # Errors
    /// [`MapError`]; nothing is mapped then.
    pub fn map(&mut self, slot: usize, request: MapRequest) -> Result<Shared<'_>, MapError> {
        self.map_run(slot, &[request])
    }

    /// Maps grants into consecutive empty slots, and returns one view of them all: all or none.
    ///
    /// # Errors
    /// [`MapError`] of the first grant that failed; nothing is mapped then.
    pub fn map_run(&mut self, first: usize, requests: &[MapRequest]) -> Result<Shared<'_>, MapError> {
        let run = first..first.saturating_add(requests.len());
        if let Some(slot) = run.clone().find(|slot| self.slots.get(*slot).is_some_and(|slot| *slot != Slot::Empty)) {
            return Err(MapError::Occupied { slot });
        }
        let mut result = Ok(());
        self.map_batch(run.clone().zip(requests.iter().copied()), |_, mapped| result = result.and(mapped));
        if result.is_err() {
            // They were all empty, so what is mapped there now was mapped here.
            let _ = self.unmap_batch(run.clone());
        }
        result?;
        self.view_run(first, requests.len()).ok_or(MapError::NoSlot { slot: first })
    }

    /// Maps grants into empty slots, in as few hypercalls as possible. Each ends up mapped or not by itself; `outcome` is
    /// called once for each, with its index in the batch, in any order.
    pub fn map_batch(
        &mut self,
        batch: impl IntoIterator<Item = (usize, MapRequest)>,
        mut outcome: impl FnMut(usize, Result<(), MapError>),
    ) {
        // With index and slot of each operation.
        let mut ops = Batch::new();
        for (index, (slot, request)) in batch.into_iter().enumerate() {
            match self.slots.get_mut(slot) {
                Some(state @ Slot::Empty) => {
                    *state = Slot::Claimed;
                    if ops.push(self.map_op(slot, request), (index, slot)) {
                        self.map_chunk(ops.take(), &mut outcome);
                    }
                }
                None => outcome(index, Err(MapError::NoSlot { slot })),
                Some(_) => outcome(index, Err(MapError::Occupied { slot })),
            }
        }
        self.map_chunk(ops.take(), &mut outcome);
    }

    #[inline]
    fn map_op(&self, slot: usize, request: MapRequest) -> GnttabMapGrantRef {
        let readonly = if request.access == Access::ReadOnly { GNTMAP_readonly } else { 0 };
        GnttabMapGrantRef {
            host_addr: self.host_addr(slot),
            flags: GNTMAP_host_map | readonly,
            r#ref: request.gref,
            dom: request.peer,
            status: UNTRIED,
            ..GnttabMapGrantRef::default()
        }
    }

    /// Maps what fits into one hypercall.
    #[inline]
    fn map_chunk(
        &mut self,
        (ops, of): (&mut [GnttabMapGrantRef], &mut [(usize, usize)]),
        outcome: &mut impl FnMut(usize, Result<(), MapError>),
    ) {
        if ops.is_empty() {
            return;
        }
        // SAFETY: the addresses are of slots that are ours and empty.
        let called = unsafe { call::map_grant_ref(&self.platform, ops) };
        let mut failed = false;
        for (op, (index, slot)) in ops.iter().zip(&*of) {
            // A handle exists if and only if the status says so, whatever the call as a whole says.
            if op.status == GNTST_okay {
                self.note_mapped(op, *slot);
                outcome(*index, Ok(()));
            } else {
                failed = true;
            }
        }
        if failed {
            self.map_again(ops, of, called, outcome);
        }
    }

    #[inline]
    fn note_mapped(&mut self, op: &GnttabMapGrantRef, slot: usize) {
        let access = if op.flags & GNTMAP_readonly != 0 { Access::ReadOnly } else { Access::ReadWrite };
        self.slots[slot] = Slot::Mapped { handle: op.handle, access };
    }

    /// Deals with those of a call that were not mapped: tries those once more that are being paged in.
    #[cold]
    fn map_again(
        &mut self,
        mut ops: &mut [GnttabMapGrantRef],
        of: &mut [(usize, usize)],
        mut called: Result<(), XenError>,
        outcome: &mut dyn FnMut(usize, Result<(), MapError>),
    ) {
        // Those that are mapped were told of after the first call.
        let mut told = true;
        for left in (0..TRIES).rev() {
            let mut again = 0;
            for at in 0..ops.len() {
                let (op, (index, slot)) = (ops[at], of[at]);
                let status = GrantStatus(op.status);
                if status.is_again() && left > 0 {
                    ops[again] = GnttabMapGrantRef { status: UNTRIED, ..op };
                    of[again] = (index, slot);
                    again += 1;
                    continue;
                }
                let mapped = match (status.ok(), called) {
                    (Ok(()), _) if told => continue,
                    (Ok(()), _) => {
                        self.note_mapped(&op, slot);
                        outcome(index, Ok(()));
                        continue;
                    }
                    (Err(GrantStatus(UNTRIED)), Err(error)) => MapError::Xen(error),
                    (Err(status), _) => MapError::Refused { gref: op.r#ref, status },
                };
                self.slots[slot] = Slot::Empty;
                outcome(index, Err(mapped));
            }
            if again == 0 {
                return;
            }
            ops = &mut ops[..again];
            // The pager runs in another domain. Yielding can't fail, and nothing would follow from it.
            let _ = sched::yield_now(&self.platform);
            // SAFETY: as above.
            called = unsafe { call::map_grant_ref(&self.platform, ops) };
            told = false;
        }
    }

    /// Unmaps a slot. An empty one is left alone.
    ///
    /// # Errors
    /// [`UnmapError`] if Xen refuses.
    pub fn unmap(&mut self, slot: usize) -> Result<(), UnmapError> {
        self.unmap_batch([slot])
    }

    /// Unmaps slots, such as a range of them, in as few hypercalls as possible. Those that are empty are left alone.
    ///
    /// # Errors
    /// [`UnmapError`] if Xen refuses some. The others are unmapped. Where the whole call was refused, the slots stay mapped
    /// and it may be tried again; else they are [stuck](Self::stuck).
    pub fn unmap_batch(&mut self, slots: impl IntoIterator<Item = usize>) -> Result<(), UnmapError> {
        let mut ops = Batch::new();
        let mut failed = 0;
        for slot in slots {
            let Some(Slot::Mapped { handle, .. }) = self.slots.get(slot) else { continue };
            let (host_addr, handle) = (self.host_addr(slot), *handle);
            if ops.push(GnttabUnmapGrantRef { host_addr, dev_bus_addr: 0, handle, status: UNTRIED }, slot) {
                failed += self.unmap_chunk(ops.take());
            }
        }
        failed += self.unmap_chunk(ops.take());
        if failed == 0 { Ok(()) } else { Err(UnmapError { failed }) }
    }

    /// Leaves everything mapped that is, for ever: somebody may still use it who can't be told. Dropping the window loses its
    /// address space then.
    pub fn abandon(&mut self) {
        for slot in self.slots.iter_mut().filter(|slot| matches!(slot, Slot::Mapped { .. })) {
            *slot = Slot::Stuck;
        }
    }

    /// Unmaps what fits into one hypercall. Returns how many are still mapped, or may be.
    fn unmap_chunk(&mut self, (ops, of): (&mut [GnttabUnmapGrantRef], &mut [usize])) -> usize {
        if ops.is_empty() {
            return 0;
        }
        // SAFETY: `&mut self`, so there are no views.
        let called = unsafe { call::unmap_grant_ref(&self.platform, ops) };
        let mut failed = 0;
        for (op, slot) in ops.iter().zip(of) {
            if op.status == GNTST_okay {
                self.slots[*slot] = Slot::Empty;
                continue;
            }
            match (GrantStatus(op.status).ok(), called) {
                (Ok(()), _) => {}
                (Err(GrantStatus(UNTRIED)), Err(_)) => failed += 1,
                (Err(_), _) => {
                    self.slots[*slot] = Slot::Stuck;
                    failed += 1;
                }
            }
        }
        failed
    }

    /// Tells whether something is mapped in a slot.
    #[inline]
    pub fn is_mapped(&self, slot: usize) -> bool {
        matches!(self.slots.get(slot), Some(Slot::Mapped { .. }))
    }

    /// Tells whether something can be mapped into a slot: it is there, nothing is mapped in it, and it is not [stuck](Self::stuck).
    #[inline]
    pub fn is_empty(&self, slot: usize) -> bool {
        matches!(self.slots.get(slot), Some(Slot::Empty))
    }

    /// Returns the view of a mapped slot.
    #[inline]
    pub fn view(&self, slot: usize) -> Option<Shared<'_>> {
        let Some(Slot::Mapped { access, .. }) = self.slots.get(slot) else { return None };
        let va = self.platform.mapped(self.slot_va(slot));
        // SAFETY: mapped, and unmapped only by `&mut self` or `drop`, which the borrow keeps away. Another domain's memory is seen in
        // no other way than through views.
        Some(unsafe {
            match access {
                Access::ReadWrite => Shared::new(va, PAGE_SIZE),
                Access::ReadOnly => Shared::read_only(va, PAGE_SIZE),
            }
        })
    }

    /// Returns one view of consecutive mapped slots, as of a ring of several pages. It can be written if all were mapped for
    /// writing.
    pub fn view_run(&self, first: usize, slots: usize) -> Option<Shared<'_>> {
        let run = self.slots.get(first..first.checked_add(slots)?)?;
        let mut writable = true;
        let base = self.platform.mapped(self.slot_va(first));
        for (index, slot) in run.iter().enumerate() {
            let Slot::Mapped { access, .. } = slot else { return None };
            writable &= *access == Access::ReadWrite;
            // Without an MMU (`Platform::mapped`) pages need not be neighbours.
            let page = self.platform.mapped(self.slot_va(first + index));
            if page.as_ptr().addr() != base.as_ptr().addr() + index * PAGE_SIZE {
                return None;
            }
        }
        let len = slots * PAGE_SIZE;
        // SAFETY: mapped, contiguous, and unmapped only by `&mut self` or `drop`, which the borrow keeps away. Another
        // domain's memory is seen in no other way than through views.
        Some(unsafe { if writable { Shared::new(base, len) } else { Shared::read_only(base, len) } })
    }

    /// Returns where Xen is to map a slot: its address in a PV domain, its guest-physical address in an auto-translated one.
    fn host_addr(&self, slot: usize) -> u64 {
        let va = self.slot_va(slot);
        if self.is_translated {
            return self.platform.gfn_of(va).0 * PAGE_SIZE as u64;
        }
        va.as_ptr().expose_provenance() as u64
    }

    fn slot_va(&self, slot: usize) -> NonNull<u8> {
        // SAFETY: callers have looked the slot up, or it is the first of an empty run: inside, or one past the end.
        unsafe { self.va.add(slot * PAGE_SIZE) }
    }
}

impl<P: Platform> Drop for Window<P> {
    fn drop(&mut self) {
        // A call that was refused as a whole has changed nothing, so a second try may help.
        let unmapped = self.unmap_batch(0..self.slots.len()).or_else(|_| self.unmap_batch(0..self.slots.len()));
        let stuck = self.stuck();
        if unmapped.is_ok() && stuck == 0 {
            // SAFETY: from `alloc` in `new`, and nothing is mapped there any more.
            unsafe { self.platform.free(Region::Unbacked, self.va, self.slots.len()) };
        } else {
            let pages = self.slots.len();
            let held = stuck + self.mapped();
            self.platform.log(
                Level::Error,
                format_args!("grant window: {pages} page(s) of address space lost: {held} can't be unmapped"),
            );
        }
    }
}
