//! `physdev_op`: the few calls about physical interrupts and I/O that a PV kernel makes.

use xen_sys::physdev::*;
use xen_sys::{GuestHandle, Nr};

use super::{SELF, command};
use crate::error::XenError;
use crate::platform::Hypervisor;

/// Sets the I/O privilege level of this vcpu: at 1 and above, the kernel may use I/O ports that the domain was given.
///
/// # Errors
/// `EINVAL` above 3.
///
/// # Safety
/// No code that runs at that level can do harm by I/O ports.
pub unsafe fn set_iopl<H: Hypervisor>(hypervisor: &H, iopl: u32) -> Result<(), XenError> {
    // SAFETY: no pointers inside; the rest is the caller's.
    unsafe { command(hypervisor, Nr::PHYSDEV_OP, PHYSDEVOP_set_iopl, &mut PhysdevSetIopl { iopl }) }.map(drop)
}

/// Sets the bitmap of the I/O ports that user mode may *not* use, for this vcpu. Xen reads it when a port is used.
///
/// # Errors
/// `EINVAL` for more than 65536 ports.
///
/// # Safety
/// User mode can do no harm by those ports.
pub unsafe fn set_iobitmap<H: Hypervisor>(hypervisor: &H, bitmap: &'static [u8]) -> Result<(), XenError> {
    let nr_ports = 8 * bitmap.len() as u32;
    let mut arg = PhysdevSetIobitmap { bitmap: GuestHandle(bitmap.as_ptr().cast_mut()), nr_ports };
    // SAFETY: Xen only reads the bitmap, which stays for ever.
    unsafe { command(hypervisor, Nr::PHYSDEV_OP, PHYSDEVOP_set_iobitmap, &mut arg) }.map(drop)
}

/// Tells Xen that a physical interrupt was handled.
///
/// # Errors
/// `EINVAL` if there is no such interrupt.
pub fn eoi<H: Hypervisor>(hypervisor: &H, irq: u32) -> Result<(), XenError> {
    // SAFETY: no pointers inside.
    unsafe { command(hypervisor, Nr::PHYSDEV_OP, PHYSDEVOP_eoi, &mut PhysdevEoi { irq }) }.map(drop)
}

/// Returns what a physical interrupt needs: `XENIRQSTAT_` bits.
///
/// # Errors
/// `EINVAL` if there is no such interrupt.
pub fn irq_status_query<H: Hypervisor>(hypervisor: &H, irq: u32) -> Result<u32, XenError> {
    let mut arg = PhysdevIrqStatusQuery { irq, flags: 0 };
    // SAFETY: no pointers inside.
    unsafe { command(hypervisor, Nr::PHYSDEV_OP, PHYSDEVOP_irq_status_query, &mut arg) }?;
    Ok(arg.flags)
}

/// Gives a global system interrupt a number by which [`bind_pirq`](super::event_channel::bind_pirq) knows it; returns it.
///
/// # Errors
/// `EPERM` if the domain was not given the interrupt.
pub fn map_pirq_gsi<H: Hypervisor>(hypervisor: &H, gsi: i32) -> Result<i32, XenError> {
    let mut arg = PhysdevMapPirq {
        domid: SELF,
        r#type: MAP_PIRQ_TYPE_GSI,
        index: gsi,
        pirq: gsi,
        bus: 0,
        devfn: 0,
        entry_nr: 0,
        table_base: 0,
    };
    // SAFETY: no pointers inside.
    unsafe { command(hypervisor, Nr::PHYSDEV_OP, PHYSDEVOP_map_pirq, &mut arg) }?;
    Ok(arg.pirq)
}

/// Gives the number from [`map_pirq_gsi`] back.
///
/// # Errors
/// `EINVAL` if there is no such number.
pub fn unmap_pirq<H: Hypervisor>(hypervisor: &H, pirq: i32) -> Result<(), XenError> {
    let mut arg = PhysdevUnmapPirq { domid: SELF, pirq };
    // SAFETY: no pointers inside.
    unsafe { command(hypervisor, Nr::PHYSDEV_OP, PHYSDEVOP_unmap_pirq, &mut arg) }.map(drop)
}
