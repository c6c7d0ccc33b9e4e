//! The hypervisor's own console, which dom0 has instead of a back end.

use hypercall::call::console;
use hypercall::{Hypervisor, XenError};

/// The hypervisor's console: what is written comes out of the machine's serial port or screen. Its event is VIRQ_CONSOLE.
#[derive(Clone, Debug)]
pub struct HypervisorConsole<H: Hypervisor>(H);

impl<H: Hypervisor> HypervisorConsole<H> {
    /// Takes the console. Whether this domain may use it shows at the first write.
    pub const fn new(hypervisor: H) -> Self {
        Self(hypervisor)
    }

    /// Writes all bytes.
    ///
    /// # Errors
    /// [`XenError`]: `EPERM` in a guest without privileges.
    pub fn write(&self, bytes: &[u8]) -> Result<(), XenError> {
        console::write(&self.0, bytes)
    }

    /// Reads what was typed, and returns how much that was.
    ///
    /// # Errors
    /// [`XenError`]: `EPERM` in a guest without privileges.
    pub fn read(&self, to: &mut [u8]) -> Result<usize, XenError> {
        console::read(&self.0, to)
    }
}
