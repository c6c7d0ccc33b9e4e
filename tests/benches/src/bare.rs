//! The workloads under names that C has for them.

use alloc::boxed::Box;
use core::sync::atomic::{AtomicPtr, Ordering::Relaxed};

use crate::bed::{Bed, Host};
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

/// Opens a bed of a disk; null if that fails. `arena` is memory for all that it allocates.
#[unsafe(no_mangle)]
unsafe extern "C" fn block_open(host: *const Host, way: u64, arena: *mut u8, len: usize) -> *mut Bed {
    ARENA.next.store(arena, Relaxed);
    ARENA.end.store(arena.wrapping_add(len), Relaxed);
    // SAFETY: as the caller promises.
    let bed = unsafe { Bed::open(*host, way) };
    bed.map_or(core::ptr::null_mut(), |bed| Box::into_raw(Box::new(bed)))
}

macro_rules! part {
    ($name:ident, $bed:ident, $count:ident, $pages:ident => $what:expr) => {
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name(bed: *mut Bed, $count: u32, $pages: u32) -> u64 {
            // SAFETY: the caller has it from `block_open`, and uses it once at a time.
            let $bed = unsafe { &mut *bed };
            $what
        }
    };
}

part!(block_submit, bed, count, pages => bed.submit(count, pages));
part!(block_serve, bed, _count, _pages => bed.serve());
part!(block_complete, bed, _count, _pages => bed.complete());
part!(block_copy, bed, _count, _pages => bed.copy());
part!(block_counted, bed, which, _pages => bed.counted().get(which as usize).copied().unwrap_or(0));

/// Memory that is given out and not taken back: what a bed allocates when it is opened.
struct Arena {
    next: AtomicPtr<u8>,
    end: AtomicPtr<u8>,
}

#[global_allocator]
static ARENA: Arena = Arena { next: AtomicPtr::new(core::ptr::null_mut()), end: AtomicPtr::new(core::ptr::null_mut()) };

// SAFETY: each byte is given out once. There is one thread.
unsafe impl core::alloc::GlobalAlloc for Arena {
    unsafe fn alloc(&self, layout: core::alloc::Layout) -> *mut u8 {
        let next = self.next.load(Relaxed);
        let start = next.wrapping_add(next.align_offset(layout.align()));
        let after = start.wrapping_add(layout.size());
        if next.is_null() || after > self.end.load(Relaxed) {
            return core::ptr::null_mut();
        }
        self.next.store(after, Relaxed);
        start
    }

    unsafe fn dealloc(&self, _: *mut u8, _: core::alloc::Layout) {}
}
