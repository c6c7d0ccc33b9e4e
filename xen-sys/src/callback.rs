//! `callback.h`: where Xen enters the guest's kernel.

use crate::arch_x86::XenCallback;

/// Entry: an event is pending.
pub const CALLBACKTYPE_event: u16 = 0;
/// Entry: the return to the guest failed, as for a bad segment selector.
pub const CALLBACKTYPE_failsafe: u16 = 1;
/// Entry: `syscall` of 64-bit user mode.
pub const CALLBACKTYPE_syscall: u16 = 2;
/// Entry: `sysenter` of old; not to be used.
pub const CALLBACKTYPE_sysenter_deprecated: u16 = 3;
/// Entry: non-maskable interrupt.
pub const CALLBACKTYPE_nmi: u16 = 4;
/// Entry: `sysenter`.
pub const CALLBACKTYPE_sysenter: u16 = 5;
/// Entry: `syscall` of 32-bit user mode.
pub const CALLBACKTYPE_syscall32: u16 = 7;

/// Flag of [`CallbackRegister`]: events are masked on entry.
pub const CALLBACKF_mask_events: u16 = 1 << 0;

/// Command: sets an entry; [`CallbackRegister`].
pub const CALLBACKOP_register: u32 = 0;
/// Command: takes an entry back; [`CallbackUnregister`].
pub const CALLBACKOP_unregister: u32 = 1;

/// `callback.h`, `struct callback_register`. Argument of [`CALLBACKOP_register`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CallbackRegister {
    /// One of the `CALLBACKTYPE_` constants.
    pub r#type: u16,
    /// [`CALLBACKF_mask_events`] or 0.
    pub flags: u16,
    /// Where to enter.
    pub address: XenCallback,
}

/// `callback.h`, `struct callback_unregister`. Argument of [`CALLBACKOP_unregister`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CallbackUnregister {
    /// One of the `CALLBACKTYPE_` constants.
    pub r#type: u16,
    /// Padding.
    pub _unused: u16,
}
