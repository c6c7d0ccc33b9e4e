//! This domain's grant table, version 1.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{
    AtomicU32,
    Ordering::{Acquire, Relaxed, Release},
};

use xen_sys::grant_table::{GNTTAB_NR_RESERVED_ENTRIES, GTF_invalid, GTF_reading, GTF_writing};
use xen_sys::{GrantRef, XenPfn};

use super::entries::{PER_FRAME, TableEntries, end_again};
use super::locked::Locked;
use super::place::Place;
use super::{Entries, GrantError, Grants, StillMapped};
use crate::call::grant_table::{GrantOpError, query_size, setup_table};
use crate::error::XenError;
use crate::mem::{OutOfMemory, Pages};
use crate::platform::{Level, Platform};

/// Frames for which address space is set aside, however many Xen would allow: half a million entries.
const MAX_FRAMES: u32 = 1024;

/// References that the quarantine keeps; beyond, they are leaked. Bounds the work of trying again.
const QUARANTINE_MAX: usize = 1024;

/// This domain's grant table. A handle: cheap to clone, and shared by all CPUs.
///
/// `share` and `end` write entries without a lock. Reserving, releasing and the quarantine take a spin lock, and hold it
/// [uninterrupted](Platform::uninterrupted); they belong to attach and detach, but an interrupt handler may release, too, and
/// quarantine where it may free pages and log. Under the lock nothing is allocated, freed or logged.
///
/// It is for PV domains and for auto-translated ones (PVH), and asks Xen which of them this is. In the latter, the frames stand
/// in the place of own pages: [`GrantTable::new`] allocates one for each frame that the table may have, which costs 256 KiB with
/// Xen's default of 64 frames, and 4 MiB at most. Frame numbers above 32 bits (16 TiB of machine memory) need version 2: an
/// entry for such a frame stays invalid, and the peer is refused.
///
/// When the last handle is dropped, what is still mapped by peers stays granted, and its pages are leaked.
pub struct GrantTable<P: Platform>(Arc<Inner<P>>);

struct Inner<P: Platform> {
    platform: P,
    place: Place,
    /// Entries in frames that are shown. Changed only under the lock.
    entries: AtomicU32,
    state: Locked<State<P>>,
}

/// What is under the lock, where nothing is allocated and nothing freed: lists grow by [`enlarge`].
struct State<P: Platform> {
    /// What Xen calls the frames of the table, of those at least that are shown.
    frames: Vec<XenPfn>,
    /// Free references, last in first out. Growing has made room for all entries, and a reference is in here once or with one
    /// owner, so giving back never allocates.
    free: Vec<GrantRef>,
    quarantine: Vec<Quarantined<P>>,
    stats: GrantStats,
}

struct Quarantined<P: Platform> {
    refs: Vec<GrantRef>,
    pages: Option<Pages<P>>,
}

/// The state of a grant table, in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GrantStats {
    /// Entries that the table has, the reserved ones included.
    pub entries: u32,
    /// References that nobody has reserved.
    pub free: u32,
    /// References in the quarantine: still mapped by a peer when they were given up.
    pub quarantined_refs: u32,
    /// Pages in the quarantine.
    pub quarantined_pages: u32,
    /// References that are lost: the quarantine was full, or the entry was in use when the table was taken over.
    pub leaked_refs: u32,
    /// Pages that are lost.
    pub leaked_pages: u32,
    /// References that were ever given up while a peer mapped them.
    pub given_up: u32,
    /// How often the table was enlarged.
    pub grown: u32,
}

// SAFETY: the table's memory is nothing but atomics, and everything else is under the lock.
unsafe impl<P: Platform + Send + Sync> Send for Inner<P> {}
// SAFETY: as above.
unsafe impl<P: Platform + Send + Sync> Sync for Inner<P> {}

impl<P: Platform> Clone for GrantTable<P> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<P: Platform> fmt::Debug for GrantTable<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GrantTable({:?})", self.stats())
    }
}

impl<P: Platform> GrantTable<P> {
    /// Takes over the domain's grant table and maps its first frame. The first eight entries stay the toolstack's.
    ///
    /// # Safety
    /// There is no other table of this domain, and none is made as long as there is a handle of this one: they would hand out the
    /// same references.
    ///
    /// # Errors
    /// [`GrantError`] if Xen refuses, or there is no address space, or no memory.
    pub unsafe fn new(platform: P) -> Result<Self, GrantError> {
        let (_, max_frames) = query_size(&platform).map_err(GrantError::Xen)?;
        let place = Place::new(&platform, max_frames.min(MAX_FRAMES))?;
        let (frames, free, quarantine) = (Vec::new(), Vec::new(), Vec::new());
        let state = State { frames, free, quarantine, stats: GrantStats::default() };
        let inner = Inner { platform, place, entries: AtomicU32::new(0), state: Locked::new(state) };
        let mut room = Room::new(inner.wanted(1)?, 1)?;
        inner.with(|state| inner.grow(state, &mut room))?;
        Ok(Self(Arc::new(inner)))
    }

    /// Enlarges the table to `frames` frames of 512 entries, or to as many as it may have if those are fewer: `u32::MAX` takes
    /// them all. The table grows by itself when references are lacking; a kernel that has done this at boot never allocates or
    /// calls the hypervisor for references later, and is told at once that there are no more.
    ///
    /// # Errors
    /// [`GrantError`] if Xen refuses, or there is no memory. What was added stays.
    pub fn grow_to(&self, frames: u32) -> Result<(), GrantError> {
        let want = frames.min(self.max_frames()) as usize;
        let have = self.frames();
        if want <= have as usize {
            return Ok(());
        }
        let mut room = Room::new(want, want - have as usize)?;
        self.0.with(|state| if self.frames() < want as u32 { self.0.grow(state, &mut room) } else { Ok(()) })
    }

    /// Takes the table out of the domain's page tables before the domain is suspended: a page-table entry that leads to no memory of
    /// the domain's can't be saved. Allocates nothing, and neither does [`resume`](Self::resume).
    ///
    /// # Errors
    /// [`GrantError`] as Xen says; the table is as it was then.
    ///
    /// # Safety
    /// Until [`resume`](Self::resume), nobody uses the table, nor anything that stands on it: one vcpu runs, and does nothing else.
    pub unsafe fn suspend(&self) -> Result<(), GrantError> {
        let Inner { platform, place, .. } = &*self.0;
        self.0.with(|state| {
            for frame in 0..self.frames() {
                // SAFETY: shown, and the caller promises that nobody looks.
                let Err(error) = (unsafe { place.withdraw(platform, frame) }) else { continue };
                for (frame, mfn) in (0..frame).zip(&state.frames) {
                    // SAFETY: just taken away; an entry is made of atomics.
                    unsafe { place.show(platform, frame, *mfn) }.map_err(of_xen)?;
                }
                return Err(of_xen(error));
            }
            Ok(())
        })
    }

    /// Shows the table again after a suspend. If the domain has come back as another, it is a new one: nothing is granted any more,
    /// and nothing is mapped. References stay reserved, or in the quarantine, until their owners [`end`](Grants::end) them and give
    /// them back. If the suspend was cancelled, all is as it was.
    ///
    /// # Errors
    /// [`GrantError`] as Xen says. What could not be shown is out of use then: by its references nothing is shared, nor ended.
    pub fn resume(&self) -> Result<(), GrantError> {
        let Inner { platform, place, entries, .. } = &*self.0;
        self.0.with(|state| {
            let frames = entries.swap(0, Relaxed) / PER_FRAME;
            setup_table(platform, frames, &mut state.frames).map_err(GrantError::Xen)?;
            for (frame, mfn) in (0..frames).zip(&state.frames) {
                // SAFETY: taken away by `suspend`, or by the suspend itself; an entry is made of atomics.
                unsafe { place.show(platform, frame, *mfn) }.map_err(of_xen)?;
                entries.store((frame + 1) * PER_FRAME, Release);
            }
            Ok(())
        })
    }

    /// Returns how many frames the table has.
    pub fn frames(&self) -> u32 {
        self.0.frames()
    }

    /// Returns how many frames the table may have.
    pub fn max_frames(&self) -> u32 {
        self.0.place.frames()
    }

    /// Returns the state of the table in numbers.
    pub fn stats(&self) -> GrantStats {
        self.0.with(|state| GrantStats {
            entries: self.0.entries.load(Relaxed),
            free: state.free.len() as u32,
            quarantined_refs: state.quarantine.iter().map(|held| held.refs.len() as u32).sum(),
            quarantined_pages: state.quarantine.iter().map(Quarantined::pages).sum(),
            ..state.stats
        })
    }

    /// Tells whether the peer maps the page of a reference just now: for kernels whose drivers ask before they end a grant.
    pub fn is_mapped(&self, gref: GrantRef) -> bool {
        self.0.shown().entry(gref).is_some_and(|entry| entry.flags.load(Acquire) & (GTF_reading | GTF_writing) != 0)
    }

    /// Tries again to end what is in the quarantine. `reserve` does so too; this is for whoever waits for a peer.
    pub fn retry_quarantine(&self) {
        self.0.sweep();
    }
}

fn of_xen(error: XenError) -> GrantError {
    GrantError::Xen(GrantOpError::Xen(error))
}

/// Memory for a table of some frames, made outside the lock.
#[derive(Default)]
struct Room {
    /// For the numbers of the frames.
    frames: Vec<XenPfn>,
    /// For all references.
    free: Vec<GrantRef>,
}

impl Room {
    /// Makes room for `frames` frames, `more` of which the table doesn't have yet.
    fn new(frames: usize, more: usize) -> Result<Self, OutOfMemory> {
        let no_memory = |_| OutOfMemory { pages: more };
        let mut room = Self::default();
        room.frames.try_reserve_exact(frames).map_err(no_memory)?;
        room.frames.resize(frames, XenPfn(0));
        room.free.try_reserve_exact(frames * PER_FRAME as usize).map_err(no_memory)?;
        Ok(room)
    }
}

/// Moves a list into `room` if that is larger. What is left, the smaller one, is to be dropped outside the lock.
fn enlarge<T>(list: &mut Vec<T>, room: &mut Vec<T>) {
    if room.capacity() > list.capacity() {
        room.append(list);
        core::mem::swap(list, room);
    }
}

impl<P: Platform> State<P> {
    /// Takes references off the free list; all or none.
    fn take(&mut self, refs: &mut [GrantRef]) -> bool {
        let Some(rest) = self.free.len().checked_sub(refs.len()) else { return false };
        // From the top, the last one first.
        for (gref, free) in refs.iter_mut().rev().zip(self.free.drain(rest..)) {
            *gref = free;
        }
        true
    }

    /// Takes out of the quarantine something that nobody maps any more.
    fn take_ended(&mut self) -> Option<Quarantined<P>> {
        let ended = self.quarantine.iter().position(|held| held.refs.is_empty())?;
        Some(self.quarantine.swap_remove(ended))
    }

    /// Takes something into the quarantine, if it may have so much.
    fn take_in(&mut self, held: &mut Option<Quarantined<P>>, room: &mut Vec<Quarantined<P>>) -> TakenIn {
        enlarge(&mut self.quarantine, room);
        let refs = |held: &Quarantined<P>| held.refs.len();
        if self.quarantine.iter().chain(held.as_ref()).map(refs).sum::<usize>() > QUARANTINE_MAX {
            return TakenIn::TooMuch;
        }
        if self.quarantine.len() == self.quarantine.capacity() {
            return TakenIn::NoRoom { entries: self.quarantine.len() };
        }
        self.quarantine.extend(held.take());
        TakenIn::Yes
    }
}

/// What became of something that was given to the quarantine.
enum TakenIn {
    Yes,
    TooMuch,
    /// The list is full.
    NoRoom {
        entries: usize,
    },
}

impl<P: Platform> Quarantined<P> {
    fn pages(&self) -> u32 {
        self.pages.as_ref().map_or(0, |pages| pages.count() as u32)
    }

    /// Gives everything up for ever.
    fn leak(self) {
        if let Some(pages) = self.pages {
            pages.leak();
        }
    }
}

impl<P: Platform> Inner<P> {
    /// Takes the lock for the time of `work`.
    fn with<T>(&self, work: impl FnOnce(&mut State<P>) -> T) -> T {
        self.state.with(&self.platform, work)
    }

    fn frames(&self) -> u32 {
        self.entries.load(Relaxed) / PER_FRAME
    }

    fn full(&self) -> GrantError {
        GrantError::TableFull { entries: self.entries.load(Relaxed) }
    }

    /// Returns the entries of the frames that are shown.
    #[inline]
    fn shown(&self) -> TableEntries<'_, P> {
        // Acquire: the frame was shown before the number of entries was raised.
        let count = self.entries.load(Acquire);
        // SAFETY: frames are side by side, and are taken away only in `drop`, or by `suspend`, whose caller promises that nobody looks.
        unsafe { TableEntries::new(&self.platform, self.place.first().cast(), count) }
    }

    /// Returns how many frames the table needs for `lacking` more entries.
    fn wanted(&self, lacking: usize) -> Result<usize, GrantError> {
        let want = (self.frames() as usize).saturating_add(lacking.div_ceil(PER_FRAME as usize));
        if want <= self.place.frames() as usize { Ok(want) } else { Err(self.full()) }
    }

    /// Enlarges the table to as many frames as there is room for. What was added stays, even if not all could be.
    #[cold]
    fn grow(&self, state: &mut State<P>, room: &mut Room) -> Result<(), GrantError> {
        let have = self.frames();
        let want = room.frames.len() as u32;
        enlarge(&mut state.free, &mut room.free);
        setup_table(&self.platform, want, &mut room.frames).map_err(GrantError::Xen)?;
        // The smaller one is dropped outside the lock.
        core::mem::swap(&mut state.frames, &mut room.frames);
        for frame in have..want {
            // SAFETY: not shown before, for the table has no entries of it; an entry is made of atomics.
            unsafe { self.place.show(&self.platform, frame, state.frames[frame as usize]) }.map_err(of_xen)?;
            self.entries.store((frame + 1) * PER_FRAME, Release);
            self.adopt(state, frame);
        }
        state.stats.grown += 1;
        Ok(())
    }

    /// Puts the entries of a new frame on the free list, the lowest on top. A kernel that ran here before (a boot loader)
    /// may have left grants: they are ended, and what its peer still maps is left alone for ever.
    fn adopt(&self, state: &mut State<P>, frame: u32) {
        let first = frame * PER_FRAME;
        for (gref, entry) in (first..first + PER_FRAME).map(GrantRef).zip(self.shown().frame(frame)).rev() {
            if gref.0 < GNTTAB_NR_RESERVED_ENTRIES {
                continue;
            }
            // Nearly all of them are unused.
            if entry.flags.load(Acquire) == GTF_invalid || end_again(entry, gref).is_ok() {
                state.free.push(gref);
            } else {
                state.stats.leaked_refs += 1;
            }
        }
    }

    /// Tries to end what is in the quarantine, and frees what nobody maps any more.
    fn sweep(&self) {
        self.with(|state| {
            let State { free, quarantine, .. } = state;
            let entries = self.shown();
            for held in quarantine {
                held.refs.retain(|gref| match entries.end(*gref) {
                    Ok(()) => {
                        free.push(*gref);
                        false
                    }
                    Err(StillMapped { .. }) => true,
                });
            }
        });
        // One by one: pages are freed outside the lock, and a list of them would need memory.
        while let Some(ended) = self.with(State::take_ended) {
            drop(ended);
        }
    }
}

// SAFETY: a reference is on the free list or with one owner, as the unsafe `release` and `quarantine` promise; the entries are those
// of the frames that Xen has been told.
unsafe impl<P: Platform> Grants for GrantTable<P> {
    type Platform = P;

    type Entries<'a>
        = TableEntries<'a, P>
    where
        P: 'a;

    fn platform(&self) -> &P {
        &self.0.platform
    }

    fn reserve(&self, refs: &mut [GrantRef]) -> Result<(), GrantError> {
        let inner = &*self.0;
        inner.sweep();
        let mut room = Room::default();
        loop {
            let lacking = inner.with(|state| {
                if state.take(refs) {
                    return Ok(None);
                }
                let want = inner.wanted(refs.len() - state.free.len())?;
                if want > room.frames.len() {
                    return Ok(Some((want, want - inner.frames() as usize)));
                }
                let grown = inner.grow(state, &mut room);
                if state.take(refs) {
                    return Ok(None);
                }
                // Enlarged, but a former kernel's grants took the room.
                grown.and(Err(inner.full()))
            })?;
            let Some((want, more)) = lacking else { return Ok(()) };
            // Outside the lock. Whatever others do meanwhile, it is looked at anew.
            room = Room::new(want, more)?;
        }
    }

    unsafe fn release(&self, refs: &[GrantRef]) {
        self.0.with(|state| state.free.extend_from_slice(refs));
    }

    #[inline]
    fn entries(&self) -> TableEntries<'_, P> {
        self.0.shown()
    }

    unsafe fn quarantine(&self, refs: &[GrantRef], pages: Option<Pages<P>>) {
        let inner = &*self.0;
        inner.sweep();
        let count = refs.len() as u32;
        let mut own = Vec::new();
        let copied = own.try_reserve_exact(refs.len()).is_ok();
        if copied {
            own.extend_from_slice(refs);
        }
        let mut held = Some(Quarantined { refs: own, pages });
        let pages = held.as_ref().map_or(0, Quarantined::pages);
        let mut room = Vec::new();
        let leaked = !copied
            || loop {
                match inner.with(|state| state.take_in(&mut held, &mut room)) {
                    TakenIn::Yes => break false,
                    TakenIn::TooMuch => break true,
                    TakenIn::NoRoom { entries } => {
                        room = Vec::new();
                        if room.try_reserve_exact(2 * entries + 4).is_err() {
                            break true;
                        }
                    }
                }
            };
        let (before, given_up) = inner.with(|state| {
            let before = state.stats.given_up;
            state.stats.given_up = before.saturating_add(count);
            if leaked {
                state.stats.leaked_refs += count;
                state.stats.leaked_pages += pages;
            }
            (before, state.stats.given_up)
        });
        if let Some(lost) = held {
            lost.leak();
        }
        // A peer can bring this about as often as its device is attached, so a line comes only when the count has doubled.
        if before.checked_ilog2() != given_up.checked_ilog2() {
            let fate = if leaked { "leaked" } else { "quarantined" };
            inner.platform.log(
                Level::Error,
                format_args!("grant table: {count} grant(s) and {pages} page(s) {fate}: still mapped by the peer"),
            );
        }
    }
}

impl<P: Platform> Drop for Inner<P> {
    fn drop(&mut self) {
        self.sweep();
        for held in self.state.get_mut().quarantine.drain(..) {
            held.leak();
        }
        // SAFETY: the last handle is gone, so nobody looks at the entries.
        unsafe { self.place.give_back(&self.platform, self.frames()) };
    }
}
