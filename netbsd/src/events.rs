//! Event channels: made and signalled by hypercalls, dispatched by the kernel.

use core::ffi::c_void;

use hypercall::call::event_channel as call;
use hypercall::event::{EventError, Events};
use hypercall::{DomId, Port, XenError};

use crate::errno;
use crate::kernel::Kernel;
use crate::upcalls::{xenpv_event_disestablish, xenpv_event_establish};

/// The event channels of a device. Each has the device's handler from its first moment to its last.
#[derive(Clone, Copy, Debug)]
pub struct KernelEvents {
    kernel: Kernel,
    device: *mut c_void,
}

// SAFETY: the glue's device may be named by any thread.
unsafe impl Send for KernelEvents {}

impl KernelEvents {
    /// The event channels of the glue's `device`.
    ///
    /// # Safety
    /// `device` stays what the up-calls want for as long as this or a copy of it is used.
    pub(crate) const unsafe fn new(kernel: Kernel, device: *mut c_void) -> Self {
        Self { kernel, device }
    }

    fn establish(&self, op: &'static str, remote: DomId, made: Result<Port, XenError>) -> Result<Port, EventError> {
        let about = u32::from(remote.0);
        let port = made.map_err(|error| EventError { op, about, error })?;
        // SAFETY: the device is there, as `new` demands.
        match unsafe { xenpv_event_establish(self.device, port.0) } {
            0 => Ok(port),
            errno => {
                let _ = call::close(&self.kernel, port);
                Err(EventError { op: "establish", about, error: errno::to_xen(errno) })
            }
        }
    }
}

impl Events for KernelEvents {
    fn alloc_unbound(&self, remote: DomId) -> Result<Port, EventError> {
        self.establish("alloc_unbound", remote, call::alloc_unbound(&self.kernel, remote))
    }

    fn bind_interdomain(&self, remote: DomId, port: Port) -> Result<Port, EventError> {
        self.establish("bind_interdomain", remote, call::bind_interdomain(&self.kernel, remote, port))
    }

    #[inline]
    fn notify(&self, port: Port) {
        // It fails only for a port that is not ours, and there is nobody to tell then. A peer that closed its end is no error.
        let _ = call::send(&self.kernel, port);
    }

    /// The kernel's dispatcher unmasks a port when its handlers have run. To do so here, too, would cost a hypercall.
    #[inline]
    fn unmask(&self, _: Port) {}

    fn close(&self, port: Port) {
        // First the handler: the port may be another's as soon as it is closed.
        // SAFETY: the device is there, as `new` demands.
        unsafe { xenpv_event_disestablish(self.device, port.0) };
        let _ = call::close(&self.kernel, port);
    }
}
