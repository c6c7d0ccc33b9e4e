//! Own memory: the linear mapping is grown over frames that Xen left unmapped; one first-fit list gives whole pages to
//! the platform and smaller pieces to the heap.

use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use linked_list_allocator::Heap;
use spin::Mutex;
use xen_sys::Pfn;

use crate::boot::VIRT_BASE;
use crate::memory::tables::{self, Access};
use crate::memory::{PAGE_SIZE, TABLE_SPAN, WINDOW_BASE, frames, image_end};

/// Own memory at most, in bytes: more than any program needs, and quick to map.
const MEMORY_MAX: usize = 256 << 20;

static FREE: Mutex<Heap> = Mutex::new(Heap::empty());

/// The first level-1 table, in the image: memory for the others is what it maps.
#[repr(C, align(4096))]
struct FirstTable(UnsafeCell<[u64; 512]>);

// SAFETY: written once, in `install`, before anything else runs; Xen and the processor read it afterwards.
unsafe impl Sync for FirstTable {}

static FIRST_TABLE: FirstTable = FirstTable(UnsafeCell::new([0; 512]));

/// Maps own memory behind the boot region and opens the heap on it.
///
/// # Panics
/// If the domain has no whole table's worth of memory beyond the boot region.
pub fn install() {
    let start = tables::first_gap(image_end()).next_multiple_of(TABLE_SPAN);
    let pages = frames::count().min((WINDOW_BASE - VIRT_BASE) / PAGE_SIZE);
    let end = (VIRT_BASE + pages * PAGE_SIZE).min(start + MEMORY_MAX) & !(TABLE_SPAN - 1);
    assert!(start < end, "a domain of {} pages has no memory left", frames::count());
    assert!(!tables::has_leaf_table(start), "page tables beyond the boot region");

    // What the first table maps begins with the tables of all the rest.
    let spans = (end - start) / TABLE_SPAN;
    for span in 0..spans {
        let table = match span {
            0 => FIRST_TABLE.0.get() as usize,
            _ => start + (span - 1) * PAGE_SIZE,
        };
        add_table(table, start + span * TABLE_SPAN);
    }
    let heap = start + (spans - 1) * PAGE_SIZE;
    // SAFETY: mapped just now, and nobody else knows of it.
    unsafe { FREE.lock().init(heap as *mut u8, end - heap) };
}

/// Fills `table` with a linear mapping of the span at `va` and puts it into place.
fn add_table(table: usize, va: usize) {
    for index in 0..512 {
        let pfn = Pfn(((va - VIRT_BASE) / PAGE_SIZE + index) as u64);
        let entry = tables::leaf(frames::mfn(pfn), Access::ReadWrite);
        // SAFETY: the table is a mapped, writable page that serves nothing else.
        unsafe { (table as *mut u64).add(index).write(entry) };
    }
    tables::set_leaf_table(va, table);
}

fn layout(pages: usize) -> Option<Layout> {
    Layout::from_size_align(pages.checked_mul(PAGE_SIZE)?, PAGE_SIZE).ok().filter(|layout| layout.size() != 0)
}

/// Allocates zeroed pages, one behind the other.
pub fn alloc(pages: usize) -> Option<NonNull<u8>> {
    let layout = layout(pages)?;
    let va = FREE.lock().allocate_first_fit(layout).ok()?;
    // SAFETY: just allocated, so long.
    unsafe { va.write_bytes(0, layout.size()) };
    Some(va)
}

/// Gives pages back.
///
/// # Safety
/// They came from one [`alloc()`] of as many pages, and nobody uses them any more.
///
/// # Panics
/// If no `alloc` can have returned so many pages.
pub unsafe fn free(va: NonNull<u8>, pages: usize) {
    let layout = layout(pages).expect("pages that were never allocated");
    // SAFETY: the caller's promise.
    unsafe { FREE.lock().deallocate(va, layout) };
}

/// Returns bytes in use and bytes in all.
pub fn usage() -> (usize, usize) {
    let heap = FREE.lock();
    (heap.used(), heap.size())
}

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

/// Returns how often the heap was asked for memory.
pub fn allocations() -> u64 {
    ALLOCATIONS.load(Relaxed)
}

/// The heap of Rust: pieces of own memory.
struct RustHeap;

#[global_allocator]
static RUST_HEAP: RustHeap = RustHeap;

// SAFETY: the list gives each byte out once. Nothing allocates in a fault or a panic, so the lock is free whenever the one
// processor comes here.
unsafe impl GlobalAlloc for RustHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Relaxed);
        FREE.lock().allocate_first_fit(layout).map_or(core::ptr::null_mut(), NonNull::as_ptr)
    }

    unsafe fn dealloc(&self, va: *mut u8, layout: Layout) {
        if let Some(va) = NonNull::new(va) {
            // SAFETY: the caller's promise: `va` came from `alloc` with that layout.
            unsafe { FREE.lock().deallocate(va, layout) };
        }
    }
}
