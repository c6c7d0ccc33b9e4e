//! Page tables: looked at directly (they are mapped read-only), changed by hypercall.

use hypercall::call::mmu;
use x86_64::VirtAddr;
use x86_64::structures::paging::{PageTableFlags, page_table::PageTableLevel};
use xen_sys::Mfn;
use xen_sys::xen::{MMU_NORMAL_PT_UPDATE, MmuUpdate, UVMF_INVLPG};

use crate::Bare;
use crate::boot::start_info;
use crate::memory::{PAGE_SIZE, frames};

/// Bits of an entry that hold the machine address.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// What a mapping allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reading: what page tables must be mapped as.
    ReadOnly,
    /// Reading and writing.
    ReadWrite,
    /// Reading and running: code.
    Execute,
}

impl Access {
    const fn flags(self) -> PageTableFlags {
        let run = PageTableFlags::PRESENT.union(PageTableFlags::ACCESSED);
        let read = run.union(PageTableFlags::NO_EXECUTE);
        match self {
            Self::ReadOnly => read,
            Self::ReadWrite => read.union(PageTableFlags::WRITABLE).union(PageTableFlags::DIRTY),
            Self::Execute => run,
        }
    }
}

/// Makes the entry that maps `mfn`.
pub const fn leaf(mfn: Mfn, access: Access) -> u64 {
    mfn.0 << 12 | access.flags().bits()
}

/// One entry: where it stands in the machine's memory, and what it holds.
#[derive(Clone, Copy, Debug)]
struct Entry {
    machine_address: u64,
    value: u64,
}

impl Entry {
    fn is_present(self) -> bool {
        self.value & PageTableFlags::PRESENT.bits() != 0
    }

    fn frame(self) -> Mfn {
        Mfn((self.value & ADDRESS) >> 12)
    }
}

/// Walks down to the entry of `level` for `va`; `None` where a table on the way is missing.
fn entry(va: usize, level: PageTableLevel) -> Option<Entry> {
    let mut table = frames::mfn_at(start_info().pt_base);
    let mut at = PageTableLevel::Four;
    loop {
        let index = u64::from(VirtAddr::new_truncate(va as u64).page_table_index(at));
        let address = frames::address(table) + index as usize * 8;
        // SAFETY: tables of the domain lie in its linearly mapped memory, where they can be read.
        let value = unsafe { (address as *const u64).read_volatile() };
        let entry = Entry { machine_address: (table.0 << 12) + index * 8, value };
        if at == level {
            return Some(entry);
        }
        if !entry.is_present() {
            return None;
        }
        table = entry.frame();
        at = at.next_lower_level()?;
    }
}

/// Returns what is mapped at `va`: the frame, and the most that it allows. Xen's own first mappings allow everything; they
/// count as writable.
pub fn mapping(va: usize) -> Option<(Mfn, Access)> {
    let entry = entry(va, PageTableLevel::One).filter(|entry| entry.is_present())?;
    let flags = PageTableFlags::from_bits_truncate(entry.value);
    let access = if flags.contains(PageTableFlags::WRITABLE) {
        Access::ReadWrite
    } else if flags.contains(PageTableFlags::NO_EXECUTE) {
        Access::ReadOnly
    } else {
        Access::Execute
    };
    Some((entry.frame(), access))
}

/// Tells whether there is a level-1 table for `va`.
pub fn has_leaf_table(va: usize) -> bool {
    entry(va, PageTableLevel::Two).is_some_and(Entry::is_present)
}

/// Sets what the page at `va` maps.
///
/// # Panics
/// If Xen refuses, as it does where there is no level-1 table, or where the frame is a page table or not the domain's.
pub fn set_leaf(va: usize, mapping: Option<(Mfn, Access)>) {
    let value = mapping.map_or(0, |(mfn, access)| leaf(mfn, access));
    // SAFETY: `memory` alone calls this, for pages that it owns, guards, and frames that came to it to be mapped.
    let done = unsafe { mmu::update_va_mapping(&Bare, va, value, UVMF_INVLPG) };
    assert!(done.is_ok(), "update_va_mapping({va:#x}, {value:#x}): {done:?}");
}

/// Makes the page at `table`, filled with entries, the level-1 table for the addresses around `va`. The page can't be
/// written any more.
///
/// # Panics
/// If Xen refuses the page, or there is no level-2 table for `va`.
pub fn set_leaf_table(va: usize, table: usize) {
    let mfn = frames::mfn_at(table);
    set_leaf(table, Some((mfn, Access::ReadOnly)));
    let slot = entry(va, PageTableLevel::Two).expect("no level-2 table");
    let flags = PageTableFlags::PRESENT | PageTableFlags::WRITABLE | PageTableFlags::ACCESSED;
    let update = MmuUpdate { ptr: slot.machine_address | MMU_NORMAL_PT_UPDATE, val: mfn.0 << 12 | flags.bits() };
    // SAFETY: until now there was nothing at these addresses; the table's page belongs to the tables from now on.
    let done = unsafe { mmu::mmu_update(&Bare, &[update]) };
    assert!(done == Ok(1), "mmu_update({:#x}, {:#x}): {done:?}", update.ptr, update.val);
}

/// Returns the first address from `va` on where nothing is mapped.
pub fn first_gap(va: usize) -> usize {
    let mut va = va & !(PAGE_SIZE - 1);
    while mapping(va).is_some() {
        va += PAGE_SIZE;
    }
    va
}
