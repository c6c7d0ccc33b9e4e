//! Mapping foreign pages into address space of our own.

use alloc::boxed::Box;
use alloc::vec;
use core::fmt;
use core::ptr::NonNull;

use xen_sys::grant_table::{GNTMAP_host_map, GNTMAP_readonly, GNTST_okay, GnttabMapGrantRef, GnttabUnmapGrantRef};
use xen_sys::{DomId, GrantHandle, GrantRef};

use super::{Access, GrantStatus, UNTRIED};
use crate::call::version::is_auto_translated;
use crate::call::{grant_table as call, sched};
use crate::error::XenError;
use crate::mem::{OutOfMemory, PAGE_SIZE, Shared};
use crate::platform::{Level, Platform, Region};

/// Entries of one hypercall.
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

/// What is with one page of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Empty,
    /// In the batch that is mapped next.
    Coming,
    Mapped,
    /// In the batch that is unmapped next.
    Going,
    /// Xen refused to unmap it: what is there now is not known.
    Stuck,
}

/// One page of a window.
#[derive(Clone, Copy)]
struct Slot<T> {
    /// Of what is mapped.
    handle: GrantHandle,
    state: State,
    writable: bool,
    note: T,
}

/// What goes into one hypercall, and the slot of each entry.
struct Batch<T> {
    entries: [T; BATCH],
    of: [u32; BATCH],
    len: usize,
}

impl<T: Copy> Batch<T> {
    const fn new(entry: T) -> Self {
        Self { entries: [entry; BATCH], of: [0; BATCH], len: 0 }
    }

    /// Returns the next entry, to be filled in, if there is room.
    #[inline(always)]
    fn next(&mut self, slot: usize) -> Option<&mut T> {
        let (entry, of) = (self.entries.get_mut(self.len)?, self.of.get_mut(self.len)?);
        *of = slot as u32;
        self.len += 1;
        Some(entry)
    }

    /// Returns what was added, and begins anew.
    #[inline(always)]
    fn take(&mut self) -> (&mut [T], &mut [u32]) {
        let len = core::mem::take(&mut self.len).min(BATCH);
        (&mut self.entries[..len], &mut self.of[..len])
    }
}

/// Address space into which grants of other domains are mapped, page by page. Dropping it unmaps them all.
///
/// What is to be mapped or unmapped is taken into a batch, of which a hypercall does up to 32. Nothing is allocated after
/// [`Window::new`]. `T` is what its owner notes of each slot.
pub struct Window<P: Platform, T: Copy = ()> {
    platform: P,
    va: NonNull<u8>,
    /// Xen knows the slots by frame number, not by address.
    is_translated: bool,
    slots: Box<[Slot<T>]>,
    coming: Box<Batch<GnttabMapGrantRef>>,
    going: Box<Batch<GnttabUnmapGrantRef>>,
}

// SAFETY: the address space is owned, and the platform's handle says itself whether it may move to another thread.
unsafe impl<P: Platform + Send, T: Copy + Send> Send for Window<P, T> {}

impl<P: Platform, T: Copy> fmt::Debug for Window<P, T> {
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
        Self::with_notes(platform, slots, ())
    }
}

impl<P: Platform, T: Copy> Window<P, T> {
    /// The same, with a note for each slot.
    ///
    /// # Errors
    /// As for `new`.
    pub fn with_notes(platform: &P, slots: usize, note: T) -> Result<Self, OutOfMemory> {
        let va = platform.alloc(Region::Unbacked, slots).ok_or(OutOfMemory { pages: slots })?;
        let is_translated = is_auto_translated(platform);
        let slot = Slot { handle: GrantHandle(0), state: State::Empty, writable: false, note };
        Ok(Self {
            platform: platform.clone(),
            va,
            is_translated,
            slots: vec![slot; slots].into(),
            coming: Box::new(Batch::new(GnttabMapGrantRef::default())),
            going: Box::new(Batch::new(GnttabUnmapGrantRef::default())),
        })
    }

    /// Returns how many slots there are.
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// Returns how many slots are mapped.
    pub fn mapped(&self) -> usize {
        self.slots.iter().filter(|slot| matches!(slot.state, State::Mapped | State::Going)).count()
    }

    /// Returns how many slots can't be used any more because they could not be unmapped.
    pub fn stuck(&self) -> usize {
        self.slots.iter().filter(|slot| slot.state == State::Stuck).count()
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
        if let Some(slot) = run.clone().find(|slot| *slot < self.slots.len() && !self.is_empty(*slot)) {
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
    /// called once for each, with its slot, in any order; also for what was [added](Self::add) before.
    pub fn map_batch(
        &mut self,
        batch: impl IntoIterator<Item = (usize, MapRequest)>,
        mut outcome: impl FnMut(usize, Result<(), MapError>),
    ) {
        for (slot, request) in batch {
            if self.slots.get(slot).is_none() {
                outcome(slot, Err(MapError::NoSlot { slot }));
            } else if !self.is_empty(slot) {
                outcome(slot, Err(MapError::Occupied { slot }));
            } else if !self.add(slot, request) {
                self.map_added(&mut outcome);
                self.add(slot, request);
            }
        }
        self.map_added(outcome);
    }

    /// Takes a grant into the batch that [`map_added`](Self::map_added) maps. Returns `false` if it is full, or the slot is not empty.
    #[inline(always)]
    pub fn add(&mut self, slot: usize, request: MapRequest) -> bool {
        let Self { platform, va, is_translated, slots, coming, .. } = self;
        let Some(entry @ Slot { state: State::Empty, .. }) = slots.get_mut(slot) else { return false };
        let Some(op) = coming.next(slot) else { return false };
        let writable = request.access == Access::ReadWrite;
        (entry.state, entry.writable) = (State::Coming, writable);
        // The rest is what Xen answers.
        op.host_addr = host_addr(platform, *va, *is_translated, slot);
        op.flags = GNTMAP_host_map | if writable { 0 } else { GNTMAP_readonly };
        (op.r#ref, op.dom, op.status) = (request.gref, request.peer, UNTRIED);
        true
    }

    /// Returns how many grants are in that batch.
    #[inline(always)]
    pub fn added(&self) -> usize {
        self.coming.len
    }

    /// Takes all but the first `len` out of that batch again.
    pub fn forget(&mut self, len: usize) {
        let Self { slots, coming, .. } = self;
        let of = coming.of.get(len..coming.len).unwrap_or_default();
        of.iter().for_each(|of| slots[*of as usize].state = State::Empty);
        coming.len -= of.len();
    }

    /// Maps what was added, in one hypercall. `outcome` is called once for each, with its slot, in any order.
    #[inline]
    pub fn map_added(&mut self, mut outcome: impl FnMut(usize, Result<(), MapError>)) {
        let Self { platform, slots, coming, .. } = self;
        let (ops, of) = coming.take();
        if ops.is_empty() {
            return;
        }
        // SAFETY: the addresses are of slots that are ours and empty.
        let called = unsafe { call::map_grant_ref(platform, ops) };
        let mut failed = false;
        for (op, of) in ops.iter().zip(&*of) {
            // A handle exists if and only if the status says so, whatever the call as a whole says.
            if op.status == GNTST_okay {
                note_mapped(slots, *of, op.handle);
                outcome(*of as usize, Ok(()));
            } else {
                failed = true;
            }
        }
        if failed {
            map_again(platform, slots, (ops, of), called, &mut outcome);
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
        let (mut stuck, mut left) = (0, 0);
        for slot in slots {
            if self.is_mapped(slot) && !self.remove(slot) {
                stuck += self.unmap_removed(|_, _| {});
                left += usize::from(!self.remove(slot));
            }
        }
        stuck += self.unmap_removed(|_, _| {});
        let failed = stuck + left + self.going.len;
        if failed == 0 { Ok(()) } else { Err(UnmapError { failed }) }
    }

    /// Takes a slot into the batch that [`unmap_removed`](Self::unmap_removed) unmaps; there is no view of it any more. Returns `false` if
    /// it is full, or nothing is mapped in the slot.
    #[inline(always)]
    pub fn remove(&mut self, slot: usize) -> bool {
        let Self { platform, va, is_translated, slots, going, .. } = self;
        let Some(entry @ Slot { state: State::Mapped, .. }) = slots.get_mut(slot) else { return false };
        let Some(op) = going.next(slot) else { return false };
        entry.state = State::Going;
        // Nothing is mapped for devices: `dev_bus_addr` stays 0.
        op.host_addr = host_addr(platform, *va, *is_translated, slot);
        (op.handle, op.status) = (entry.handle, UNTRIED);
        true
    }

    /// Returns how many slots are in that batch.
    #[inline(always)]
    pub fn removed(&self) -> usize {
        self.going.len
    }

    /// Unmaps what was removed, in one hypercall. `freed` is called for each slot that is empty now; returns how many are stuck. What is
    /// left where the whole call was refused stays in the batch for the next time.
    #[inline]
    pub fn unmap_removed(&mut self, mut freed: impl FnMut(usize, &mut T)) -> usize {
        let Self { platform, slots, going, .. } = self;
        let (ops, of) = going.take();
        if ops.is_empty() {
            return 0;
        }
        // SAFETY: there are no views: `&mut self`, and none was made since `remove`.
        let called = unsafe { call::unmap_grant_ref(platform, ops) };
        let (mut left, mut stuck) = (0, 0);
        for at in 0..ops.len() {
            let (op, of_op) = (ops[at], of[at]);
            let slot = &mut slots[of_op as usize];
            if op.status == GNTST_okay {
                slot.state = State::Empty;
                freed(of_op as usize, &mut slot.note);
            } else if op.status == UNTRIED && called.is_err() {
                (ops[left], of[left]) = (op, of_op);
                left += 1;
            } else {
                slot.state = State::Stuck;
                stuck += 1;
            }
        }
        going.len = left;
        stuck
    }

    /// Leaves everything mapped that is, for ever: somebody may still use it who can't be told. Dropping the window loses its
    /// address space then.
    pub fn abandon(&mut self) {
        self.going.len = 0;
        for slot in &mut self.slots {
            if matches!(slot.state, State::Mapped | State::Going) {
                slot.state = State::Stuck;
            }
        }
    }

    /// Tells whether something is mapped in a slot.
    #[inline]
    pub fn is_mapped(&self, slot: usize) -> bool {
        matches!(self.slots.get(slot), Some(Slot { state: State::Mapped, .. }))
    }

    /// Tells whether something can be mapped into a slot: it is there, nothing is mapped in it, and it is not [stuck](Self::stuck).
    #[inline]
    pub fn is_empty(&self, slot: usize) -> bool {
        matches!(self.slots.get(slot), Some(Slot { state: State::Empty, .. }))
    }

    /// Returns what is noted of a slot.
    #[inline(always)]
    pub fn note(&self, slot: usize) -> Option<&T> {
        Some(&self.slots.get(slot)?.note)
    }

    /// Lets what is noted of a slot be changed.
    #[inline(always)]
    pub fn note_mut(&mut self, slot: usize) -> Option<&mut T> {
        Some(&mut self.slots.get_mut(slot)?.note)
    }

    /// Returns the view of a mapped slot.
    #[inline]
    pub fn view(&self, slot: usize) -> Option<Shared<'_>> {
        let Some(Slot { state: State::Mapped, writable, .. }) = self.slots.get(slot) else { return None };
        let va = self.platform.mapped(self.slot_va(slot));
        // SAFETY: mapped, and unmapped only by `&mut self` or `drop`, which the borrow keeps away. Another domain's memory is seen in
        // no other way than through views.
        Some(unsafe { if *writable { Shared::new(va, PAGE_SIZE) } else { Shared::read_only(va, PAGE_SIZE) } })
    }

    /// Returns one view of consecutive mapped slots, as of a ring of several pages. It can be written if all were mapped for
    /// writing.
    pub fn view_run(&self, first: usize, slots: usize) -> Option<Shared<'_>> {
        let run = self.slots.get(first..first.checked_add(slots)?)?;
        let mut all_writable = true;
        let base = self.platform.mapped(self.slot_va(first));
        for (index, slot) in run.iter().enumerate() {
            let Slot { state: State::Mapped, writable, .. } = slot else { return None };
            all_writable &= *writable;
            // Without an MMU (`Platform::mapped`) pages need not be neighbours.
            let page = self.platform.mapped(self.slot_va(first + index));
            if page.as_ptr().addr() != base.as_ptr().addr() + index * PAGE_SIZE {
                return None;
            }
        }
        let len = slots * PAGE_SIZE;
        // SAFETY: mapped, contiguous, and unmapped only by `&mut self` or `drop`, which the borrow keeps away. Another
        // domain's memory is seen in no other way than through views.
        Some(unsafe { if all_writable { Shared::new(base, len) } else { Shared::read_only(base, len) } })
    }

    fn slot_va(&self, slot: usize) -> NonNull<u8> {
        slot_va(self.va, slot)
    }
}

/// Returns where Xen is to map a slot: its address in a PV domain, its guest-physical address in an auto-translated one.
#[inline(always)]
fn host_addr<P: Platform>(platform: &P, va: NonNull<u8>, is_translated: bool, slot: usize) -> u64 {
    let va = slot_va(va, slot);
    if is_translated {
        return platform.gfn_of(va).0 * PAGE_SIZE as u64;
    }
    va.as_ptr().expose_provenance() as u64
}

#[inline(always)]
fn slot_va(va: NonNull<u8>, slot: usize) -> NonNull<u8> {
    // SAFETY: callers have looked the slot up, or it is the first of an empty run: inside, or one past the end.
    unsafe { va.add(slot * PAGE_SIZE) }
}

/// Something is mapped in a slot.
#[inline(always)]
fn note_mapped<T>(slots: &mut [Slot<T>], slot: u32, handle: GrantHandle) {
    let slot = &mut slots[slot as usize];
    (slot.handle, slot.state) = (handle, State::Mapped);
}

/// Deals with those of a call that were not mapped: tries those once more that are being paged in.
#[cold]
fn map_again<P: Platform, T>(
    platform: &P,
    slots: &mut [Slot<T>],
    (mut ops, of): (&mut [GnttabMapGrantRef], &mut [u32]),
    mut called: Result<(), XenError>,
    outcome: &mut dyn FnMut(usize, Result<(), MapError>),
) {
    // Those that are mapped were told of after the first call.
    let mut told = true;
    for left in (0..TRIES).rev() {
        let mut again = 0;
        for at in 0..ops.len() {
            let (op, slot) = (ops[at], of[at]);
            let status = GrantStatus(op.status);
            if status.is_again() && left > 0 {
                ops[again] = GnttabMapGrantRef { status: UNTRIED, ..op };
                of[again] = slot;
                again += 1;
                continue;
            }
            let mapped = match (status.ok(), called) {
                (Ok(()), _) if told => continue,
                (Ok(()), _) => {
                    note_mapped(slots, slot, op.handle);
                    outcome(slot as usize, Ok(()));
                    continue;
                }
                (Err(GrantStatus(UNTRIED)), Err(error)) => MapError::Xen(error),
                (Err(status), _) => MapError::Refused { gref: op.r#ref, status },
            };
            slots[slot as usize].state = State::Empty;
            outcome(slot as usize, Err(mapped));
        }
        if again == 0 {
            return;
        }
        ops = &mut ops[..again];
        // The pager runs in another domain. Yielding can't fail, and nothing would follow from it.
        let _ = sched::yield_now(platform);
        // SAFETY: as in `map_added`.
        called = unsafe { call::map_grant_ref(platform, ops) };
        told = false;
    }
}

impl<P: Platform, T: Copy> Drop for Window<P, T> {
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
