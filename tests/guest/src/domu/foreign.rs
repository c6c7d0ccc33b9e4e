//! Another domain's frames, one at a time in a page of the window.

use alloc::format;
use alloc::string::{String, ToString};

use core::ptr::NonNull;

use hypercall::{DomId, Hypervisor, Mfn, Nr};
use xen_sys::PAGE_SIZE;
use xen_sys::xen::UVMF_INVLPG;

use crate::Bare;
use crate::memory::{tables, window};

/// Shows frames of one domain.
#[derive(Debug)]
pub(crate) struct Foreign {
    domain: DomId,
    va: NonNull<u8>,
}

// SAFETY: the page of address space is owned, and the same for every processor.
unsafe impl Send for Foreign {}

impl Foreign {
    pub(crate) fn new(domain: DomId) -> Result<Self, String> {
        let va = window::alloc(1).ok_or_else(|| "the window is full".to_string())?;
        Ok(Self { domain, va })
    }

    /// Maps `frame` in place of the one before, and returns where.
    pub(crate) fn map(&mut self, frame: Mfn) -> Result<NonNull<u8>, String> {
        let entry = tables::leaf(frame, tables::Access::ReadWrite);
        let args = [self.va.as_ptr() as usize, entry as usize, UVMF_INVLPG, self.domain.0 as usize, 0];
        // SAFETY: the page of the window is this structure's, and nothing of the frame before is borrowed any more.
        match unsafe { Bare.hypercall(Nr::UPDATE_VA_MAPPING_OTHERDOMAIN, args) } {
            0 => Ok(self.va),
            error => Err(format!("frame {frame:x?} of {:?} can't be mapped: {error}", self.domain)),
        }
    }

    /// Returns where the frame that was mapped last is seen.
    pub(crate) fn address(&self) -> NonNull<u8> {
        self.va
    }

    /// Lets `work` see the frame. The domain must not run.
    pub(crate) fn with(&mut self, frame: Mfn, work: impl FnOnce(&mut [u8])) -> Result<(), String> {
        let va = self.map(frame)?;
        // SAFETY: a page is mapped there, for as long as `self` is borrowed, and nobody else uses it.
        work(unsafe { core::slice::from_raw_parts_mut(va.as_ptr(), PAGE_SIZE) });
        Ok(())
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        tables::set_leaf(self.va.as_ptr() as usize, None);
        window::free(self.va, 1);
    }
}
