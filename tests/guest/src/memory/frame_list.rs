//! The frame lists: by them a toolstack that saves the domain finds the list of its frames, in which pages refer to frames by their
//! pfns.
//!
//! ```text
//! shared page ──► list of lists ──► lists ──► pages of the domain's list of frames (start_info.mfn_list) ──► frames
//!            mfn               mfns      mfns                                                           mfns
//! ```
//!
//! The domain never changes which frames it has, so the lists stay true while it runs. A restored domain has other frames: the toolstack
//! has put them into the domain's list, and the lists are made again.

use core::sync::atomic::{AtomicPtr, Ordering::Relaxed};

use xen_sys::xen::SharedInfo;

use crate::boot::start_info;
use crate::memory::{PAGE_SIZE, frames, pages};

/// Frame numbers in a page.
const PER_PAGE: usize = PAGE_SIZE / size_of::<usize>();

/// The list of lists, and the lists behind it.
static LISTS: AtomicPtr<usize> = AtomicPtr::new(core::ptr::null_mut());

/// Makes the lists, or makes them anew, and tells of them in the shared page.
///
/// # Panics
/// If there is no memory for them.
pub fn publish(shared: &SharedInfo) {
    let count = frames::count();
    let listed = count.div_ceil(PER_PAGE);
    let lists = listed.div_ceil(PER_PAGE);
    assert!(lists <= PER_PAGE, "a domain of {count} pages has more lists than a page names");
    let mut all = LISTS.load(Relaxed);
    if all.is_null() {
        all = pages::alloc(1 + lists).expect("no memory for the frame lists").as_ptr().cast();
        LISTS.store(all, Relaxed);
    }
    let write = |index: usize, page: usize| {
        // SAFETY: within the pages just made, which serve nothing else and are never freed.
        unsafe { all.add(index).write_volatile(frames::mfn_at(page).0 as usize) };
    };
    for index in 0..listed {
        write(PER_PAGE + index, start_info().mfn_list + index * PAGE_SIZE);
    }
    for index in 0..lists {
        write(index, all as usize + (1 + index) * PAGE_SIZE);
    }
    // As the toolstack takes it: the number of frames.
    shared.arch.max_pfn.store(count, Relaxed);
    shared.arch.pfn_to_mfn_frame_list_list.store(frames::mfn_at(all as usize).0 as usize, Relaxed);
}
