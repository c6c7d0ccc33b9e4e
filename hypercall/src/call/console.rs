//! `console_io`: Xen's own console. For dom0, or for anybody in a debug build of Xen.

use xen_sys::Nr;
use xen_sys::xen::{CONSOLEIO_read, CONSOLEIO_write};

use crate::error::{XenError, from_ret};
use crate::platform::Hypervisor;

/// Writes bytes to Xen's console.
///
/// # Errors
/// `EPERM` if the domain may not.
pub fn write<H: Hypervisor>(hypervisor: &H, bytes: &[u8]) -> Result<(), XenError> {
    let args = [CONSOLEIO_write as usize, bytes.len(), bytes.as_ptr().expose_provenance(), 0, 0];
    // SAFETY: Xen only reads the bytes.
    from_ret(unsafe { hypervisor.hypercall(Nr::CONSOLE_IO, args) }).map(drop)
}

/// Reads bytes from Xen's console and returns how many there were.
///
/// # Errors
/// `EPERM` if the domain may not.
pub fn read<H: Hypervisor>(hypervisor: &H, bytes: &mut [u8]) -> Result<usize, XenError> {
    let args = [CONSOLEIO_read as usize, bytes.len(), bytes.as_mut_ptr().expose_provenance(), 0, 0];
    // SAFETY: Xen writes at most `len` bytes.
    from_ret(unsafe { hypervisor.hypercall(Nr::CONSOLE_IO, args) })
}
