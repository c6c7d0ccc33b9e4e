//! One typed function a hypercall operation, over any [`Hypervisor`].
//!
//! A function is safe where the hypercall can't break Rust's rules of memory: whatever Xen does with an event channel or the
//! console, no object of ours changes under it. Where Xen reads or writes memory by address, changes page tables or hands
//! frames away, the function is `unsafe` and says what the caller answers for.
//!
//! | module | hypercall |
//! |---|---|
//! | [`event_channel`] | `event_channel_op` |
//! | [`grant_table`] | `grant_table_op` |
//! | [`memory`] | `memory_op` |
//! | [`mmu`] | `mmu_update`, `update_va_mapping`, `mmuext_op` |
//! | [`sched`] | `sched_op`, `set_timer_op` |
//! | [`vcpu`] | `vcpu_op` |
//! | [`version`] | `xen_version` |
//! | [`console`] | `console_io` |
//! | [`physdev`] | `physdev_op` |
//! | [`trap`] | `set_trap_table`, `set_callbacks`, `stack_switch`, `set_gdt`, `set_segment_base`, `vm_assist` |
//! | [`multicall`] | `multicall` |

pub mod console;
pub mod event_channel;
pub mod grant_table;
pub mod memory;
pub mod mmu;
pub mod physdev;
pub mod sched;
pub mod trap;
pub mod vcpu;
pub mod version;

use xen_sys::xen::MulticallEntry;
use xen_sys::{DomId, Nr};

use crate::error::{XenError, from_ret};
use crate::platform::Hypervisor;

/// Carries out several hypercalls in one. Returns once all were tried: each answer stands in `result` of its entry.
///
/// # Errors
/// [`XenError`] if the list itself could not be read or written.
///
/// # Safety
/// Each entry's arguments are right for its hypercall, as for [`Hypervisor::hypercall`].
pub unsafe fn multicall<H: Hypervisor>(hypervisor: &H, calls: &mut [MulticallEntry]) -> Result<(), XenError> {
    let args = [calls.as_mut_ptr().expose_provenance(), calls.len(), 0, 0, 0];
    // SAFETY: the list is valid for reads and writes; the caller vouches for what is in it.
    from_ret(unsafe { hypervisor.hypercall(Nr::MULTICALL, args) }).map(drop)
}

/// Makes a hypercall of the common form: a command and the address of its argument.
///
/// # Safety
/// `T` is the argument of that command; what it points to is valid for what Xen does with it.
unsafe fn command<H: Hypervisor, T>(hypervisor: &H, nr: Nr, cmd: u32, arg: &mut T) -> Result<usize, XenError> {
    let args = [cmd as usize, core::ptr::from_mut(arg).expose_provenance(), 0, 0, 0];
    // SAFETY: the argument is valid for reads and writes; the caller vouches for the rest.
    from_ret(unsafe { hypervisor.hypercall(nr, args) })
}

/// As [`command`], for commands without an argument.
///
/// # Safety
/// The command takes no argument and does nothing that breaks the rules of memory.
unsafe fn command_alone<H: Hypervisor>(hypervisor: &H, nr: Nr, cmd: u32) -> Result<usize, XenError> {
    // SAFETY: the caller's.
    from_ret(unsafe { hypervisor.hypercall(nr, [cmd as usize, 0, 0, 0, 0]) })
}

/// The calling domain.
const SELF: DomId = xen_sys::xen::DOMID_SELF;
