//! Where the frames of a grant table are seen.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};

use xen_sys::XenPfn;
use xen_sys::memory::XENMAPSPACE_grant_table;
use xen_sys::xen::{UVMF_ALL, UVMF_INVLPG, UVMF_NONE};

use crate::call::memory::{add_to_physmap, populate_physmap, remove_from_physmap};
use crate::call::mmu::update_va_mapping;
use crate::call::version::is_auto_translated;
use crate::error::XenError;
use crate::mem::{OutOfMemory, PAGE_SIZE};
use crate::platform::{Level, Platform, Region};

/// Bits of a page-table entry: present, writable, user (the kernel of a 64-bit PV guest runs in ring 3), accessed, dirty.
const PTE: u64 = 0x67;

/// Addresses for the frames of a grant table, side by side.
///
/// In a PV domain they are address space without memory, and a frame is put there by a page-table entry. In an auto-translated
/// one they are pages of own memory, and Xen puts a frame in the place of one, by its frame number: its memory goes back to
/// Xen then, and the kernel's own page tables stay as they are. That needs no guest-physical room of which the kernel would
/// have to know that it is free. It costs a page for each frame that the table may have and doesn't have yet: with Xen's
/// default of 64 frames, a quarter of a megabyte.
pub(super) struct Place {
    region: NonNull<u8>,
    frames: u32,
    is_translated: bool,
    /// A frame was refused, and whether the page that it was to replace is still there is not known.
    in_doubt: AtomicBool,
}

impl Place {
    /// Sets addresses for `frames` frames aside.
    pub(super) fn new<P: Platform>(platform: &P, frames: u32) -> Result<Self, OutOfMemory> {
        let is_translated = is_auto_translated(platform);
        let pages = frames as usize;
        let region = platform.alloc(Self::region(is_translated), pages).ok_or(OutOfMemory { pages })?;
        Ok(Self { region, frames, is_translated, in_doubt: AtomicBool::new(false) })
    }

    const fn region(is_translated: bool) -> Region {
        if is_translated { Region::Memory } else { Region::Unbacked }
    }

    /// Returns how many frames there is room for.
    pub(super) const fn frames(&self) -> u32 {
        self.frames
    }

    /// Returns the address of a frame as the hypervisor knows it.
    ///
    /// # Panics
    /// In a debug build, if there is no room for the frame.
    pub(super) fn va(&self, frame: u32) -> NonNull<u8> {
        debug_assert!(frame < self.frames, "frame {frame} of {}", self.frames);
        // SAFETY: callers ask for frames below `frames`, for which there is room.
        unsafe { self.region.add(frame as usize * PAGE_SIZE) }
    }

    /// Lets the hypervisor show a frame of the table, whose number in a PV domain is `mfn`, at its address.
    ///
    /// # Safety
    /// It was not shown before, or it was taken away again, or it went with a suspend of the domain; and it will be seen through
    /// atomics only.
    pub(super) unsafe fn show<P: Platform>(&self, platform: &P, frame: u32, mfn: XenPfn) -> Result<(), XenError> {
        let va = self.va(frame);
        if self.is_translated {
            let (space, gfn) = (XENMAPSPACE_grant_table, platform.gfn_of(va));
            // SAFETY: the page is ours, and nobody looks at it; the rest is the caller's.
            let shown = unsafe { add_to_physmap(platform, space, frame as usize, gfn) };
            if shown.is_err() {
                self.in_doubt.store(true, Relaxed);
            }
            return shown;
        }
        let pte = (mfn.0 as u64) << 12 | PTE;
        // SAFETY: address space of ours into which nothing is mapped yet; the rest is the caller's.
        unsafe { update_va_mapping(platform, va.as_ptr().addr(), pte, UVMF_NONE) }
    }

    /// Takes a frame away from its address. Tells whether the address is as it was before.
    ///
    /// # Safety
    /// The frame is shown, and nobody looks at it any more.
    unsafe fn hide<P: Platform>(&self, platform: &P, frame: u32) -> bool {
        if !self.is_translated {
            // SAFETY: the caller's.
            return unsafe { self.withdraw(platform, frame) }.is_ok();
        }
        let gfn = platform.gfn_of(self.va(frame));
        // SAFETY: the caller's.
        if unsafe { remove_from_physmap(platform, gfn) }.is_err() {
            return false;
        }
        // The page that was here is Xen's since the frame came. Whoever gets these pages from the platform next wants memory.
        // SAFETY: just emptied.
        matches!(unsafe { populate_physmap(platform, &mut [XenPfn(gfn.0 as usize)], 0, 0) }, Ok(1))
    }

    /// Takes a frame out of the page tables, for the time of a suspend. In an auto-translated domain, whose page tables know nothing of
    /// it, it stays.
    ///
    /// # Safety
    /// The frame is shown, and nobody looks at it until it is shown again.
    pub(super) unsafe fn withdraw<P: Platform>(&self, platform: &P, frame: u32) -> Result<(), XenError> {
        if self.is_translated {
            return Ok(());
        }
        let va = self.va(frame).as_ptr().addr();
        // SAFETY: address space of ours; the rest is the caller's.
        unsafe { update_va_mapping(platform, va, 0, UVMF_INVLPG | UVMF_ALL) }
    }

    /// Takes the first `shown` frames away and gives the addresses back.
    ///
    /// # Safety
    /// Those frames are shown, and nobody looks at them any more, nor at `self` after this.
    pub(super) unsafe fn give_back<P: Platform>(&self, platform: &P, shown: u32) {
        let mut usable = !self.in_doubt.load(Relaxed);
        for frame in 0..shown {
            // SAFETY: the caller's.
            usable &= unsafe { self.hide(platform, frame) };
        }
        let (region, pages) = (Self::region(self.is_translated), self.frames as usize);
        if usable {
            // SAFETY: from `alloc` in `new`; nothing is mapped there any more, and all of it is memory again if it was.
            unsafe { platform.free(region, self.region, pages) };
        } else {
            // A frame of the table may still be there, or nothing at all: nobody may get these addresses as memory again.
            platform.log(Level::Error, format_args!("grant table: {pages} page(s) of address space lost"));
        }
    }
}
