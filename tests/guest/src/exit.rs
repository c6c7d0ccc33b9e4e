//! The end of the domain, and how the outside learns whether it was a good one.
//!
//! The last line printed is `guest: ok` or `guest: ` and what went wrong. Xen's shut-down alone says too little: QEMU's
//! status is 0 after a reboot and after a crash of the first domain. So the first domain writes an [`End`] to QEMU's
//! isa-debug-exit device at port 0xf4, which ends QEMU with the status 2 × value + 1; without that device, and in every
//! other domain, Xen is told: power off (the first domain: reboot) after a good end, crash after a bad one.

use alloc::string::String;
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};

use hypercall::Hypervisor;
use x86_64::instructions::port::PortWriteOnly;
use xen_sys::Nr;
use xen_sys::physdev::{PHYSDEVOP_set_iopl, PhysdevSetIopl};
use xen_sys::sched::{SCHEDOP_shutdown, SHUTDOWN_crash, SHUTDOWN_poweroff, SHUTDOWN_reboot, SchedShutdown};

use crate::boot::is_dom0;
use crate::{Bare, println, shared};

/// How the domain ended: what is written to the isa-debug-exit device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum End {
    /// The program returned `Ok`. QEMU's status: 33.
    Ok = 0x10,
    /// The program returned an error. QEMU's status: 35.
    Failed = 0x11,
    /// A panic. QEMU's status: 37.
    Panicked = 0x12,
    /// A fault of the processor. QEMU's status: 39.
    Faulted = 0x13,
}

/// Port of QEMU's isa-debug-exit device.
const DEBUG_EXIT_PORT: u16 = 0xf4;
/// How long Xen gets to send what was printed: its serial console works by interrupts.
const DRAIN_NS: u64 = 20_000_000;

/// Ends the domain with the program's outcome.
pub fn finish(outcome: Result<(), String>) -> ! {
    match outcome {
        Ok(()) => {
            println!("guest: ok");
            exit(End::Ok)
        }
        Err(message) => {
            println!("guest: failed: {message}");
            exit(End::Failed)
        }
    }
}

/// Ends the domain.
pub fn exit(end: End) -> ! {
    shared::wait(&[], shared::now_ns() + DRAIN_NS);
    if is_dom0() {
        debug_exit(end);
    }
    let reason = match end {
        End::Ok if is_dom0() => SHUTDOWN_reboot,
        End::Ok => SHUTDOWN_poweroff,
        _ => SHUTDOWN_crash,
    };
    let mut shutdown = SchedShutdown { reason };
    loop {
        // SAFETY: the structure lives as long as the call.
        unsafe { Bare.hypercall(Nr::SCHED_OP, [SCHEDOP_shutdown as usize, &raw mut shutdown as usize, 0, 0, 0]) };
    }
}

/// Ends QEMU, if it has the device. Returns where there is none.
fn debug_exit(end: End) {
    let mut iopl = PhysdevSetIopl { iopl: 1 };
    // SAFETY: the structure lives as long as the call. The first domain may have I/O ports.
    let answer =
        unsafe { Bare.hypercall(Nr::PHYSDEV_OP, [PHYSDEVOP_set_iopl as usize, &raw mut iopl as usize, 0, 0, 0]) };
    if answer == 0 {
        // SAFETY: nothing else answers at this port on the machines that the guest is run on.
        unsafe { PortWriteOnly::<u32>::new(DEBUG_EXIT_PORT).write(end as u32) };
    }
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    static PANICKING: AtomicBool = AtomicBool::new(false);
    // A panic within the printing of a panic: be short.
    if !PANICKING.swap(true, Relaxed) {
        match info.location() {
            Some(location) => println!("guest: panic at {location}: {}", info.message()),
            None => println!("guest: panic: {}", info.message()),
        }
    }
    exit(End::Panicked)
}
