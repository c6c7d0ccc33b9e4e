//! Memory of the domain.
//!
//! ```text
//! VIRT_BASE            boot region (image, frame list, start_info, first page tables), as Xen mapped it
//!   + boot end         own memory, mapped in the same linear way: heap and pages
//!   + 768 MiB          the window: address space whose page tables exist and map nothing, for foreign frames
//!   + 832 MiB          end of the window; one level-2 table serves up to 1 GiB
//! ```
//!
//! In a PV domain page tables hold machine frames, and whoever changes them asks Xen, which looks at every entry. A page
//! that is a table must not be writable through any mapping.

pub mod frame_list;
pub mod frames;
pub mod pages;
pub mod tables;
pub mod window;

use xen_sys::Mfn;

use crate::boot::VIRT_BASE;
use tables::Access;

/// Bytes in a page.
pub const PAGE_SIZE: usize = 4096;
/// Bytes that one level-1 table maps.
pub const TABLE_SPAN: usize = 512 * PAGE_SIZE;
/// Where the window for foreign frames begins; linear memory ends below.
pub const WINDOW_BASE: usize = VIRT_BASE + 0x3000_0000;
/// Pages of the window: 64 MiB.
pub const WINDOW_PAGES: usize = 16384;

unsafe extern "C" {
    // Bounds of the image's parts, each on a page boundary (link.ld).
    safe static __text_start: u8;
    safe static __text_end: u8;
    safe static __rodata_end: u8;
    safe static __image_end: u8;
}

/// Makes own memory usable: after this the heap, [`pages`] and [`window`] work, and code and constants can't be written
/// any more, as Xen left them.
pub fn install() {
    protect(&raw const __text_start, &raw const __text_end, Access::Execute);
    protect(&raw const __text_end, &raw const __rodata_end, Access::ReadOnly);
    pages::install();
}

fn protect(from: *const u8, to: *const u8, access: Access) {
    for va in (from as usize..to as usize).step_by(PAGE_SIZE) {
        tables::set_leaf(va, Some((frames::mfn_at(va), access)));
    }
}

/// Returns where the image ends.
fn image_end() -> usize {
    &raw const __image_end as usize
}

/// Takes the page at `va` out of the address space: a guard.
pub fn unmap_boot_page(va: usize) {
    tables::set_leaf(va, None);
}

/// Maps the frame `mfn` in place of the page at `va`, which must have a level-1 table: a page of the image, of own memory
/// or of the window. What stood there before is lost.
pub fn map_frame(va: usize, mfn: Mfn) {
    tables::set_leaf(va, Some((mfn, Access::ReadWrite)));
}
