//! The workloads under names that C has for them.

use alloc::boxed::Box;

use crate::bed::{Bed, Host};
use crate::fleet::Fleet;
use crate::work::{Blk, NetRx, NetTx, open, run, run_back, run_front, state_size};

macro_rules! export {
    ($kind:ty, $size:ident, $open:ident, $run:ident, $front:ident, $back:ident) => {
        #[unsafe(no_mangle)]
        extern "C" fn $size() -> u64 {
            state_size::<$kind>()
        }

        #[unsafe(no_mangle)]
        unsafe extern "C" fn $open(page: *mut u8, state: *mut u8) {
            // SAFETY: the caller's promises are those that are asked for.
            unsafe { open::<$kind>(page, state) }
        }

        #[unsafe(no_mangle)]
        unsafe extern "C" fn $run(state: *mut u8, rounds: u64, batch: u32) -> u64 {
            // SAFETY: as above.
            unsafe { run::<$kind>(state, rounds, batch) }
        }

        #[unsafe(no_mangle)]
        unsafe extern "C" fn $front(state: *mut u8, rounds: u64, batch: u32) -> u64 {
            // SAFETY: as above.
            unsafe { run_front::<$kind>(state, rounds, batch) }
        }

        #[unsafe(no_mangle)]
        unsafe extern "C" fn $back(state: *mut u8, rounds: u64, batch: u32) -> u64 {
            // SAFETY: as above.
            unsafe { run_back::<$kind>(state, rounds, batch) }
        }
    };
}

export!(Blk<1>, blk1_state_size, blk1_open, blk1_run, blk1_front, blk1_back);
export!(Blk<11>, blk11_state_size, blk11_open, blk11_run, blk11_front, blk11_back);
export!(NetTx, net_tx_state_size, net_tx_open, net_tx_run, net_tx_front, net_tx_back);
export!(NetRx, net_rx_state_size, net_rx_open, net_rx_run, net_rx_front, net_rx_back);

/// There is nobody to tell; whoever measures sees that it doesn't come to an end.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {
        core::hint::spin_loop();
    }
}

/// Opens a bed of a disk; null if that fails.
#[unsafe(no_mangle)]
unsafe extern "C" fn block_open(host: *const Host, way: u64) -> *mut Bed {
    // SAFETY: as the caller promises.
    let bed = unsafe { Bed::open(*host, way) };
    bed.map_or(core::ptr::null_mut(), |bed| Box::into_raw(Box::new(bed)))
}

/// Opens disks; their number is in the upper half of `size`, that of the queues of each in the lower. Null if that fails.
#[unsafe(no_mangle)]
unsafe extern "C" fn fleet_open(host: *const Host, size: u64) -> *mut Fleet {
    // SAFETY: as the caller promises.
    let fleet = unsafe { Fleet::open(*host, (size >> 32) as usize, size as u16) };
    fleet.map_or(core::ptr::null_mut(), |fleet| Box::into_raw(Box::new(fleet)))
}

macro_rules! part {
    ($name:ident, $bed:ident: $Bed:ty, $one:ident, $other:ident => $what:expr) => {
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name(bed: *mut $Bed, $one: u32, $other: u32) -> u64 {
            // SAFETY: the caller has it from the function that opens it, and uses it once at a time.
            let $bed = unsafe { &mut *bed };
            $what
        }
    };
}

part!(block_submit, bed: Bed, count, pages => bed.submit(0, count, pages));
part!(block_serve, bed: Bed, _count, _pages => bed.serve(0));
part!(block_complete, bed: Bed, _count, _pages => bed.complete(0));
part!(block_copy, bed: Bed, _count, _pages => bed.copy());
part!(block_bytes, bed: Bed, _count, _pages => bed.bytes());
part!(fleet_submit, fleet: Fleet, count, disks => fleet.submit(count, disks));
part!(fleet_handle, fleet: Fleet, _count, _disks => fleet.handle());
part!(fleet_raise, fleet: Fleet, ports, _disks => fleet.raise(ports));
part!(fleet_scan, fleet: Fleet, _ports, _disks => fleet.scan());

unsafe extern "C" {
    fn aligned_alloc(align: usize, size: usize) -> *mut u8;
    fn free(block: *mut u8);
}

/// The memory of the program that has loaded this.
struct Heap;

#[global_allocator]
static HEAP: Heap = Heap;

// SAFETY: these are C's own, by which a block is given out once until it is freed.
unsafe impl core::alloc::GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: core::alloc::Layout) -> *mut u8 {
        // SAFETY: the alignment is a power of two, of which the size is a multiple.
        unsafe { aligned_alloc(layout.align(), layout.pad_to_align().size()) }
    }

    unsafe fn dealloc(&self, block: *mut u8, _: core::alloc::Layout) {
        // SAFETY: `alloc` has it from there.
        unsafe { free(block) };
    }
}
