//! The address space of one domain: its own pages, and the room into which foreign ones are mapped.

use std::collections::{BTreeMap, BTreeSet};
use std::ptr::NonNull;

use hypercall::mem::PAGE_SIZE;
use hypercall::{DomId, Gfn, Mfn};
use rand::rngs::SmallRng;

use crate::memory::{Backing, Frames, copy_page, free_heap_block, heap_block};
use crate::physmap::Physmap;

/// What was mapped at an address by the hypervisor: a page-table entry, as far as the mock has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pte {
    pub(crate) mfn: Mfn,
    pub(crate) writable: bool,
}

/// Own pages and unbacked address space of a domain.
pub(crate) struct Space {
    owner: DomId,
    kind: Kind,
    /// The frame numbers of an auto-translated domain. Any other knows the machine's.
    physmap: Option<Physmap>,
    /// Frames of own pages, by address.
    own: BTreeMap<usize, Mfn>,
    /// Entries that the hypervisor made, by address.
    ptes: BTreeMap<usize, Pte>,
    /// Own pages that there may be.
    max_pages: usize,
    /// Own pages that are allocated. In an auto-translated domain something else may stand in the place of one.
    allocated: usize,
    /// Unbacked pages in use.
    unbacked: usize,
}

enum Kind {
    /// One address range: own pages first, then the unbacked ones.
    Range { base: NonNull<u8>, pages: usize, memory: Runs, room: Runs },
    /// Blocks of the heap, by address, with their size in pages; and pages that stand where a dead domain's mappings were.
    Heap { blocks: BTreeMap<usize, (NonNull<u8>, usize)>, seen: BTreeMap<usize, NonNull<u8>>, max_unbacked: usize },
}

// SAFETY: the pointers are to memory that the space owns, which is not tied to a thread.
unsafe impl Send for Space {}

impl Space {
    /// Makes the space of `owner`, for `memory` own pages and `unbacked` pages of room.
    pub(crate) fn new(owner: DomId, backing: Backing, memory: usize, unbacked: usize, is_translated: bool) -> Self {
        let kind = match backing {
            Backing::Mapped => Kind::Range {
                base: reserve(memory + unbacked),
                pages: memory + unbacked,
                memory: Runs::new(0, memory),
                room: Runs::new(memory, unbacked),
            },
            Backing::Plain => Kind::Heap { blocks: BTreeMap::new(), seen: BTreeMap::new(), max_unbacked: unbacked },
        };
        Self {
            owner,
            kind,
            physmap: is_translated.then(Physmap::default),
            own: BTreeMap::new(),
            ptes: BTreeMap::new(),
            max_pages: memory,
            allocated: 0,
            unbacked: 0,
        }
    }

    /// Tells whether the domain has frame numbers of its own.
    pub(crate) fn is_translated(&self) -> bool {
        self.physmap.is_some()
    }

    /// Returns the number by which the domain knows the frame of the page at `addr`, anywhere in the page.
    pub(crate) fn gfn_at(&self, addr: usize) -> Option<Gfn> {
        match &self.physmap {
            Some(physmap) => physmap.gfn(page(addr)),
            None => self.frame_at(addr).map(|mfn| Gfn(mfn.0)),
        }
    }

    /// Returns the frame of the machine that the domain means by a number. Whose it is has still to be seen.
    pub(crate) fn frame_of(&self, gfn: Gfn) -> Option<Mfn> {
        match &self.physmap {
            Some(physmap) => self.frame_at(physmap.addr(gfn)?),
            None => Some(Mfn(gfn.0)),
        }
    }

    /// Returns the number of the frame that the hypervisor has put into an auto-translated domain's space, if it is there.
    pub(crate) fn gfn_of(&self, mfn: Mfn) -> Option<Gfn> {
        let (addr, _) = self.ptes.iter().find(|(_, pte)| pte.mfn == mfn)?;
        self.physmap.as_ref()?.gfn(*addr)
    }

    /// Returns the address of the page that the domain knows by a frame number of its own.
    pub(crate) fn addr_of(&self, gfn: Gfn) -> Option<usize> {
        self.physmap.as_ref()?.addr(gfn)
    }

    /// Returns the address that the domain means by the address of a mapping, if a page can be mapped there: by machine address
    /// where it has page tables, else by guest-physical address.
    pub(crate) fn host_addr(&self, addr: u64) -> Option<usize> {
        match &self.physmap {
            Some(_) => self.addr_of(Gfn(addr / PAGE_SIZE as u64)),
            None => Some(addr as usize).filter(|addr| self.covers(*addr)),
        }
    }

    /// Returns how many own pages there are.
    pub(crate) fn own_pages(&self) -> usize {
        self.own.len()
    }

    /// Returns how many own pages are allocated.
    pub(crate) fn memory_pages(&self) -> usize {
        self.allocated
    }

    /// Returns how many own pages there may be.
    pub(crate) fn max_pages(&self) -> usize {
        self.max_pages
    }

    /// Returns how many unbacked pages are in use.
    pub(crate) fn unbacked_pages(&self) -> usize {
        self.unbacked
    }

    /// Returns the frame of the own page at `addr`, anywhere in the page.
    pub(crate) fn frame_at(&self, addr: usize) -> Option<Mfn> {
        self.own.get(&page(addr)).copied()
    }

    /// Returns the entry at `addr`: what the hypervisor mapped there, or the own page.
    pub(crate) fn pte(&self, addr: usize) -> Option<Pte> {
        let own = || self.frame_at(addr).map(|mfn| Pte { mfn, writable: true });
        self.ptes.get(&page(addr)).copied().or_else(own)
    }

    /// Returns the addresses where the hypervisor mapped something within `pages` pages from `addr`.
    pub(crate) fn mapped_within(&self, addr: usize, pages: usize) -> Vec<usize> {
        self.ptes.range(addr..addr + pages * PAGE_SIZE).map(|(addr, _)| *addr).collect()
    }

    /// Returns all entries that the hypervisor made.
    pub(crate) fn mapped(&self) -> Vec<(usize, Pte)> {
        self.ptes.iter().map(|(addr, pte)| (*addr, *pte)).collect()
    }

    /// Allocates `pages` own pages, or none.
    pub(crate) fn alloc(&mut self, frames: &mut Frames, rng: &mut SmallRng, pages: usize) -> Option<NonNull<u8>> {
        if pages == 0 || self.own.len() + pages > self.max_pages || frames.free() < pages {
            return None;
        }
        let start = match &mut self.kind {
            // SAFETY: the run lies inside the range.
            Kind::Range { base, memory, .. } => unsafe { base.add(memory.take(pages)? * PAGE_SIZE) },
            Kind::Heap { blocks, .. } => {
                let block = heap_block(pages);
                blocks.insert(block.addr().get(), (block, pages));
                block
            }
        };
        for index in 0..pages {
            // SAFETY: inside the run or the block.
            let at = unsafe { start.add(index * PAGE_SIZE) };
            let mfn = match self.kind {
                Kind::Range { .. } => frames.take_file(rng, self.owner)?,
                Kind::Heap { .. } => frames.take_heap(rng, self.owner, at)?,
            };
            self.own.insert(at.addr().get(), mfn);
            if let Kind::Range { .. } = self.kind {
                map_frame(frames, at, mfn, true);
            }
        }
        self.allocated += pages;
        self.number(rng, start, pages);
        Some(start)
    }

    /// Gives new pages their frame numbers, in an auto-translated domain.
    fn number(&mut self, rng: &mut SmallRng, start: NonNull<u8>, pages: usize) {
        if let Some(physmap) = &mut self.physmap {
            (0..pages).for_each(|index| physmap.draw(rng, start.addr().get() + index * PAGE_SIZE));
        }
    }

    /// Takes the frame numbers of pages away, in an auto-translated domain.
    fn unnumber(&mut self, start: NonNull<u8>, pages: usize) {
        if let Some(physmap) = &mut self.physmap {
            (0..pages).for_each(|index| physmap.forget(start.addr().get() + index * PAGE_SIZE));
        }
    }

    /// Takes the own page at `addr` away and returns its frame; the page faults.
    pub(crate) fn take_away(&mut self, addr: usize) -> Option<Mfn> {
        let mfn = self.own.remove(&page(addr))?;
        self.unmap(addr);
        Some(mfn)
    }

    /// Puts a new, zeroed own page at `addr`, where nothing is, if the domain may have one more.
    pub(crate) fn populate(&mut self, frames: &mut Frames, rng: &mut SmallRng, addr: usize) -> Option<()> {
        if self.own.len() >= self.max_pages {
            return None;
        }
        let mfn = match &self.kind {
            Kind::Range { base, .. } => {
                let mfn = frames.take_file(rng, self.owner)?;
                map_frame(frames, at(*base, addr), mfn, true);
                mfn
            }
            Kind::Heap { blocks, .. } => {
                let (start, (block, _)) = blocks.range(..=addr).next_back()?;
                // SAFETY: the space covers the address, so this is inside the block.
                let at = unsafe { block.add(addr - start) };
                let mfn = frames.take_heap(rng, self.owner, at)?;
                // SAFETY: a page of the block, at which nobody looks, as nothing was there.
                unsafe { at.write_bytes(0, PAGE_SIZE) };
                mfn
            }
        };
        self.own.insert(addr, mfn);
        Some(())
    }

    /// Hands the space over to another domain, whose pages are other frames with the same in them. Returns the old frames, of which
    /// `kept` are mapped elsewhere.
    pub(crate) fn hand_over(
        &mut self,
        frames: &mut Frames,
        rng: &mut SmallRng,
        owner: DomId,
        kept: &BTreeSet<Mfn>,
    ) -> Vec<Mfn> {
        self.owner = owner;
        let own: Vec<(usize, Mfn)> = self.own.iter().map(|(addr, mfn)| (*addr, *mfn)).collect();
        for (addr, old) in &own {
            self.renew(frames, rng, *addr, *old, kept.contains(old));
        }
        own.into_iter().map(|(_, old)| old).collect()
    }

    /// Gives the page at `addr`, whose frame was `old`, another frame with the same in it.
    fn renew(&mut self, frames: &mut Frames, rng: &mut SmallRng, addr: usize, old: Mfn, kept: bool) {
        let new = match &self.kind {
            Kind::Range { base, .. } => {
                let new = frames.take_file(rng, self.owner).expect("the mock machine is out of frames");
                copy_page(frames.ptr(old), frames.ptr(new));
                map_frame(frames, at(*base, addr), new, true);
                new
            }
            // The page stays where it is, so it is the old frame that gets another.
            Kind::Heap { .. } => {
                let page = frames.ptr(old);
                if kept {
                    frames.move_away(old);
                }
                frames.take_heap(rng, self.owner, page).expect("the mock machine is out of frames")
            }
        };
        self.own.insert(addr, new);
    }

    /// Sees to it that a frame is seen where it is now: of the heap, it may have moved.
    pub(crate) fn look_again(&mut self, frames: &Frames) {
        if let Kind::Heap { seen, .. } = &mut self.kind {
            for (addr, pte) in &self.ptes {
                seen.insert(*addr, frames.ptr(pte.mfn));
            }
        }
    }

    /// Frees own pages and returns their frames, which nobody has now; they still have to be given back, or not.
    pub(crate) fn free(&mut self, start: NonNull<u8>, pages: usize, reuse: bool) -> Vec<Mfn> {
        let addr = start.addr().get();
        let frames = (0..pages).filter_map(|index| self.own.remove(&(addr + index * PAGE_SIZE))).collect();
        self.allocated -= pages;
        self.unnumber(start, pages);
        match &mut self.kind {
            Kind::Range { base, memory, .. } => {
                unmap_pages(start, pages);
                memory.give((addr - base.addr().get()) / PAGE_SIZE, pages);
            }
            // Kept until the space goes.
            Kind::Heap { .. } if !reuse => {}
            Kind::Heap { blocks, .. } => {
                if let Some((block, pages)) = blocks.remove(&addr) {
                    // SAFETY: `alloc` made the block with that many pages; its owner has just given it up, and no other
                    // domain maps one of its pages, for the caller would not let them be used again.
                    unsafe { free_heap_block(block, pages) };
                }
            }
        }
        frames
    }

    /// Reserves `pages` pages of room, in which every access faults.
    pub(crate) fn alloc_unbacked(&mut self, rng: &mut SmallRng, pages: usize) -> Option<NonNull<u8>> {
        if pages == 0 {
            return None;
        }
        let start = match &mut self.kind {
            // SAFETY: the run lies inside the range.
            Kind::Range { base, room, .. } => unsafe { base.add(room.take(pages)? * PAGE_SIZE) },
            Kind::Heap { max_unbacked, .. } if self.unbacked + pages > *max_unbacked => return None,
            Kind::Heap { blocks, .. } => {
                let block = heap_block(pages);
                blocks.insert(block.addr().get(), (block, pages));
                block
            }
        };
        self.unbacked += pages;
        self.number(rng, start, pages);
        Some(start)
    }

    /// Gives room back, whatever is mapped there.
    pub(crate) fn free_unbacked(&mut self, start: NonNull<u8>, pages: usize) {
        let addr = start.addr().get();
        for addr in self.mapped_within(addr, pages) {
            self.ptes.remove(&addr);
        }
        self.unbacked -= pages;
        self.unnumber(start, pages);
        match &mut self.kind {
            Kind::Range { base, room, .. } => {
                unmap_pages(start, pages);
                room.give((addr - base.addr().get()) / PAGE_SIZE, pages);
            }
            Kind::Heap { blocks, seen, .. } => {
                seen.retain(|at, _| !(addr..addr + pages * PAGE_SIZE).contains(at));
                if let Some((block, pages)) = blocks.remove(&addr) {
                    // SAFETY: `alloc_unbacked` made the block with that many pages, and its owner has given it up.
                    unsafe { free_heap_block(block, pages) };
                }
            }
        }
    }

    /// Tells whether a page can be mapped at `addr`: it lies in the domain's range.
    pub(crate) fn covers(&self, addr: usize) -> bool {
        match &self.kind {
            Kind::Range { base, pages, .. } => {
                let base = base.addr().get();
                (base..base + pages * PAGE_SIZE).contains(&addr)
            }
            Kind::Heap { blocks, .. } => {
                blocks.range(..=addr).next_back().is_some_and(|(start, (_, pages))| addr < start + pages * PAGE_SIZE)
            }
        }
    }

    /// Returns the place of the page at `addr` in the domain's range, if it has one.
    pub(crate) fn place(&self, addr: usize) -> Option<usize> {
        match &self.kind {
            Kind::Range { base, .. } if self.covers(addr) => Some((addr - base.addr().get()) / PAGE_SIZE),
            Kind::Range { .. } | Kind::Heap { .. } => None,
        }
    }

    /// Maps a frame at `addr`, which the space covers.
    pub(crate) fn map(&mut self, frames: &Frames, addr: usize, pte: Pte) {
        let addr = page(addr);
        match &mut self.kind {
            Kind::Range { base, .. } => map_frame(frames, at(*base, addr), pte.mfn, pte.writable),
            Kind::Heap { seen, .. } => {
                seen.insert(addr, frames.ptr(pte.mfn));
            }
        }
        self.ptes.insert(addr, pte);
    }

    /// Makes the page at `addr` fault again.
    pub(crate) fn unmap(&mut self, addr: usize) {
        let addr = page(addr);
        self.ptes.remove(&addr);
        match &mut self.kind {
            Kind::Range { base, .. } => unmap_pages(at(*base, addr), 1),
            Kind::Heap { seen, .. } => {
                seen.remove(&addr);
            }
        }
    }

    /// Puts an empty page where a frame was mapped: what is left to the threads of a domain that was killed.
    pub(crate) fn orphan(&mut self, addr: usize) {
        let addr = page(addr);
        self.ptes.remove(&addr);
        match &mut self.kind {
            Kind::Range { base, .. } => map_nothing(at(*base, addr), 1, libc::PROT_READ | libc::PROT_WRITE),
            Kind::Heap { blocks, seen, .. } => {
                let ghost = heap_block(1);
                blocks.insert(ghost.addr().get(), (ghost, 1));
                seen.insert(addr, ghost);
            }
        }
    }

    /// Returns where the memory that is mapped at `va` is seen.
    pub(crate) fn seen(&self, va: NonNull<u8>) -> NonNull<u8> {
        match &self.kind {
            Kind::Range { .. } => va,
            Kind::Heap { seen, .. } => {
                let addr = va.addr().get();
                match seen.get(&page(addr)) {
                    // SAFETY: the offset lies inside the page.
                    Some(start) => unsafe { start.add(addr - page(addr)) },
                    None => va,
                }
            }
        }
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        match &self.kind {
            // SAFETY: the mapping that `reserve` made; no handle of the domain is left, so nobody uses its memory.
            Kind::Range { base, pages, .. } => unsafe {
                libc::munmap(base.as_ptr().cast(), pages * PAGE_SIZE);
            },
            Kind::Heap { blocks, .. } => {
                for (block, pages) in blocks.values() {
                    // SAFETY: as above.
                    unsafe { free_heap_block(*block, *pages) };
                }
            }
        }
    }
}

/// Free runs of pages: first number, and how many.
struct Runs(BTreeMap<usize, usize>);

impl Runs {
    fn new(first: usize, count: usize) -> Self {
        Self(BTreeMap::from([(first, count)]))
    }

    /// Takes the first run that is long enough.
    fn take(&mut self, count: usize) -> Option<usize> {
        let (first, length) =
            self.0.iter().find(|(_, length)| **length >= count).map(|(first, length)| (*first, *length))?;
        self.0.remove(&first);
        if length > count {
            self.0.insert(first + count, length - count);
        }
        Some(first)
    }

    /// Gives a run back and joins it with its neighbours.
    fn give(&mut self, mut first: usize, mut count: usize) {
        if let Some(after) = self.0.remove(&(first + count)) {
            count += after;
        }
        if let Some((before, length)) = self.0.range(..first).next_back().map(|(before, length)| (*before, *length))
            && before + length == first
        {
            first = before;
            count += length;
        }
        self.0.insert(first, count);
    }
}

/// Returns the address of the first byte of the page.
const fn page(addr: usize) -> usize {
    addr & !(PAGE_SIZE - 1)
}

/// Returns the pointer to `addr`, an address in the range at `base`.
fn at(base: NonNull<u8>, addr: usize) -> NonNull<u8> {
    // SAFETY: callers have checked that the range covers the address.
    unsafe { base.add(addr - base.addr().get()) }
}

/// Reserves address space in which every access faults.
fn reserve(pages: usize) -> NonNull<u8> {
    // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
    let base = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            pages * PAGE_SIZE,
            libc::PROT_NONE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    assert!(base != libc::MAP_FAILED, "mmap: {}", std::io::Error::last_os_error());
    NonNull::new(base.cast()).expect("a mapping is never at 0")
}

/// Maps a frame of the memory file over the page at `va`.
fn map_frame(frames: &Frames, va: NonNull<u8>, mfn: Mfn, writable: bool) {
    use std::os::fd::AsRawFd;
    let (fd, offset) = frames.file_of(mfn);
    let access = if writable { libc::PROT_READ | libc::PROT_WRITE } else { libc::PROT_READ };
    // SAFETY: the page lies in a domain's range, which the mock alone fills; what was mapped there is the domain's to
    // lose, by the hypercall that it has just made.
    let done = unsafe {
        libc::mmap(va.as_ptr().cast(), PAGE_SIZE, access, libc::MAP_SHARED | libc::MAP_FIXED, fd.as_raw_fd(), offset)
    };
    // Each frame is a mapping of its own for the host, which limits their number (vm.max_map_count).
    assert!(done != libc::MAP_FAILED, "mmap of a frame: {}", std::io::Error::last_os_error());
}

/// Makes pages of a domain's range fault.
fn unmap_pages(va: NonNull<u8>, pages: usize) {
    map_nothing(va, pages, libc::PROT_NONE);
}

/// Puts anonymous memory over pages of a domain's range.
fn map_nothing(va: NonNull<u8>, pages: usize, access: i32) {
    // SAFETY: as for `map_frame`.
    let done = unsafe {
        libc::mmap(
            va.as_ptr().cast(),
            pages * PAGE_SIZE,
            access,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED,
            -1,
            0,
        )
    };
    assert!(done != libc::MAP_FAILED, "mmap of nothing: {}", std::io::Error::last_os_error());
}
