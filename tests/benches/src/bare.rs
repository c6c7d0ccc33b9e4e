//! The workload under the names that its C counterpart has.

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

/// The rings allocate nothing; the crates around them ask for an allocator nevertheless.
struct Nothing;

// SAFETY: it gives nothing out.
unsafe impl core::alloc::GlobalAlloc for Nothing {
    unsafe fn alloc(&self, _: core::alloc::Layout) -> *mut u8 {
        core::ptr::null_mut()
    }

    unsafe fn dealloc(&self, _: *mut u8, _: core::alloc::Layout) {}
}

#[global_allocator]
static ALLOCATOR: Nothing = Nothing;
