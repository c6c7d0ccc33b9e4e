//! The end of the domain, and how the outside learns whether it was a good one.
//!
//! The last line printed is `guest: ok` or `guest: ` and what went wrong. Xen's shut-down alone says too little: QEMU's
//! status is 0 after a reboot and after a crash of the first domain. So the first domain writes an [`End`] to QEMU's
//! isa-debug-exit device at port 0xf4, which ends QEMU with the status 2 × value + 1; without that device, and in every
//! other domain, Xen is told: power off (the first domain: reboot) after a good end, crash after a bad one.

use alloc::string::String;
use core::fmt;
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicU8, Ordering::Relaxed};

use hypercall::call::{physdev, sched};
use x86_64::instructions::port::PortWriteOnly;
use xen_sys::sched::{SHUTDOWN_crash, SHUTDOWN_poweroff, SHUTDOWN_reboot};

use crate::boot::is_dom0;
use crate::{Bare, console, println, shared};

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
    // Not `shared::wait`: nothing here may panic.
    let _ = sched::poll(&Bare, &[], shared::now_ns() + DRAIN_NS);
    if is_dom0() {
        debug_exit(end);
    }
    let reason = match end {
        End::Ok if is_dom0() => SHUTDOWN_reboot,
        End::Ok => SHUTDOWN_poweroff,
        _ => SHUTDOWN_crash,
    };
    loop {
        // Xen refuses no reason that it knows; should it, there is nothing else to be done.
        let _ = sched::shutdown(&Bare, reason);
    }
}

/// Ends QEMU, if it has the device. Returns where there is none.
fn debug_exit(end: End) {
    // SAFETY: the only code that uses a port stands below.
    if unsafe { physdev::set_iopl(&Bare, 1) }.is_ok() {
        // SAFETY: nothing else answers at this port on the machines that the guest is run on.
        unsafe { PortWriteOnly::<u32>::new(DEBUG_EXIT_PORT).write(end as u32) };
    }
}

/// Prints what a panic or a fault has to say. The second time, it was the printing that went wrong, so it is done in the
/// plainest way; the third time it is left.
pub fn last_words(line: fmt::Arguments<'_>) {
    static SPOKEN: AtomicU8 = AtomicU8::new(0);
    match SPOKEN.fetch_add(1, Relaxed) {
        0 => {}
        1 => console::set_driver(None),
        _ => return,
    }
    println!("{line}");
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    match info.location() {
        Some(location) => last_words(format_args!("guest: panic at {location}: {}", info.message())),
        None => last_words(format_args!("guest: panic: {}", info.message())),
    }
    exit(End::Panicked)
}
