//! The window: address space without memory, for grant mappings and frames of the grant table. Its level-1 tables exist
//! before anything is mapped, because Xen writes grant mappings into tables that are there.

use core::ptr::NonNull;

use spin::Mutex;

use crate::memory::{PAGE_SIZE, TABLE_SPAN, WINDOW_BASE, WINDOW_PAGES, pages, tables};

/// Which pages are taken.
static TAKEN: Mutex<[bool; WINDOW_PAGES]> = Mutex::new([false; WINDOW_PAGES]);

/// Reserves `count` pages of address space; reading them faults until something is mapped.
pub fn alloc(count: usize) -> Option<NonNull<u8>> {
    let mut taken = TAKEN.lock();
    let first = first_fit(&*taken, count)?;
    let va = WINDOW_BASE + first * PAGE_SIZE;
    if !ensure_tables(va, va + count * PAGE_SIZE) {
        return None;
    }
    taken[first..first + count].fill(true);
    NonNull::new(va as *mut u8)
}

/// Gives address space back.
///
/// # Panics
/// If part of it isn't taken, or something is mapped there still: whoever unmaps less than it mapped is told here.
pub fn free(va: NonNull<u8>, count: usize) {
    let va = va.as_ptr() as usize;
    let first = (va - WINDOW_BASE) / PAGE_SIZE;
    for page in 0..count {
        let mapped = tables::mapping(va + page * PAGE_SIZE);
        assert!(mapped.is_none(), "page {page} of {count} at {va:#x} still maps {mapped:x?}");
    }
    let mut taken = TAKEN.lock();
    let pages = &mut taken[first..first + count];
    assert!(pages.iter().all(|&taken| taken), "{count} pages at {va:#x} are not all taken");
    pages.fill(false);
}

/// Makes sure that nothing is mapped here: a domain that maps frames of others can't be saved.
///
/// # Panics
/// If something is; it names the first.
pub fn assert_empty() {
    let taken = TAKEN.lock();
    for page in (0..WINDOW_PAGES).filter(|&page| taken[page]) {
        let va = WINDOW_BASE + page * PAGE_SIZE;
        let mapped = tables::mapping(va);
        assert!(mapped.is_none(), "{va:#x} still maps {mapped:x?}");
    }
}

/// Returns the first of `count` free pages in a row.
fn first_fit(taken: &[bool], count: usize) -> Option<usize> {
    let mut run = 0;
    for (page, &taken) in taken.iter().enumerate() {
        run = if taken { 0 } else { run + 1 };
        if count != 0 && run == count {
            return Some(page + 1 - count);
        }
    }
    None
}

/// Makes the missing level-1 tables from `va` to `end`. They are kept for ever.
fn ensure_tables(va: usize, end: usize) -> bool {
    let mut span = va & !(TABLE_SPAN - 1);
    while span < end {
        if !tables::has_leaf_table(span) {
            let Some(table) = pages::alloc(1) else { return false };
            tables::set_leaf_table(span, table.as_ptr() as usize);
        }
        span += TABLE_SPAN;
    }
    true
}
