//! `vcpu.h`: starting and stopping vcpus, their timers, and the areas they share with Xen.

use crate::GuestHandle;
use crate::xen::VcpuTimeInfo;

/// Command: sets a vcpu's state; [`VcpuGuestContext`](crate::arch_x86::xen::VcpuGuestContext).
pub const VCPUOP_initialise: u32 = 0;
/// Command: starts a vcpu. No argument.
pub const VCPUOP_up: u32 = 1;
/// Command: stops a vcpu. No argument.
pub const VCPUOP_down: u32 = 2;
/// Command: returns whether a vcpu runs. No argument.
pub const VCPUOP_is_up: u32 = 3;
/// Command: tells how a vcpu has spent its time; [`VcpuRunstateInfo`].
pub const VCPUOP_get_runstate_info: u32 = 4;
/// Command: has Xen write that by itself; [`VcpuRegisterRunstateMemoryArea`].
pub const VCPUOP_register_runstate_memory_area: u32 = 5;
/// Command: sets the periodic timer; [`VcpuSetPeriodicTimer`].
pub const VCPUOP_set_periodic_timer: u32 = 6;
/// Command: stops the periodic timer. No argument.
pub const VCPUOP_stop_periodic_timer: u32 = 7;
/// Command: sets the one-shot timer; [`VcpuSetSingleshotTimer`].
pub const VCPUOP_set_singleshot_timer: u32 = 8;
/// Command: stops the one-shot timer. No argument.
pub const VCPUOP_stop_singleshot_timer: u32 = 9;
/// Command: moves the vcpu's shared state; [`VcpuRegisterVcpuInfo`].
pub const VCPUOP_register_vcpu_info: u32 = 10;
/// Command: sends a non-maskable interrupt. No argument.
pub const VCPUOP_send_nmi: u32 = 11;
/// Command: tells the physical CPU of a pinned vcpu; [`VcpuGetPhysid`].
pub const VCPUOP_get_physid: u32 = 12;
/// Command: has Xen write the time elsewhere too; [`VcpuRegisterTimeMemoryArea`].
pub const VCPUOP_register_vcpu_time_memory_area: u32 = 13;

/// `vcpu.h`, `struct vcpu_runstate_info`. How a vcpu has spent its time.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VcpuRunstateInfo {
    /// One of the `RUNSTATE_` constants.
    pub state: i32,
    /// System time in nanoseconds at which it began; [`XEN_RUNSTATE_UPDATE`] while Xen writes.
    pub state_entry_time: u64,
    /// Nanoseconds in each state.
    pub time: [u64; 4],
}

/// Bit of `state_entry_time`: Xen is writing; see [`VMASST_TYPE_runstate_update_flag`](crate::xen::VMASST_TYPE_runstate_update_flag).
pub const XEN_RUNSTATE_UPDATE: u64 = 1 << 63;

/// State of a vcpu: runs.
pub const RUNSTATE_running: i32 = 0;
/// State of a vcpu: waits for a CPU.
pub const RUNSTATE_runnable: i32 = 1;
/// State of a vcpu: sleeps.
pub const RUNSTATE_blocked: i32 = 2;
/// State of a vcpu: stopped, or the domain paused.
pub const RUNSTATE_offline: i32 = 3;

/// `vcpu.h`, `struct vcpu_register_runstate_memory_area`. Argument of [`VCPUOP_register_runstate_memory_area`].
#[repr(C)]
#[derive(Clone, Copy)]
pub struct VcpuRegisterRunstateMemoryArea {
    /// The area.
    pub addr: VcpuRegisterRunstateMemoryAreaAddr,
}

/// `vcpu.h`, `struct vcpu_register_runstate_memory_area.addr`. Address of a runstate area.
#[repr(C)]
#[derive(Clone, Copy)]
pub union VcpuRegisterRunstateMemoryAreaAddr {
    /// As a handle.
    pub h: GuestHandle<VcpuRunstateInfo>,
    /// As a virtual address.
    pub v: *mut VcpuRunstateInfo,
    /// As a physical address; unused.
    pub p: u64,
}

/// `vcpu.h`, `struct vcpu_set_periodic_timer`. Argument of [`VCPUOP_set_periodic_timer`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VcpuSetPeriodicTimer {
    /// Period in nanoseconds.
    pub period_ns: u64,
}

/// `vcpu.h`, `struct vcpu_set_singleshot_timer`. Argument of [`VCPUOP_set_singleshot_timer`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VcpuSetSingleshotTimer {
    /// System time in nanoseconds.
    pub timeout_abs_ns: u64,
    /// [`VCPU_SSHOTTMR_future`] or 0.
    pub flags: u32,
}

/// Flag of [`VcpuSetSingleshotTimer`]: a time in the past is an error.
pub const VCPU_SSHOTTMR_future: u32 = 1 << 0;

/// `vcpu.h`, `struct vcpu_register_vcpu_info`. Argument of [`VCPUOP_register_vcpu_info`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VcpuRegisterVcpuInfo {
    /// Frame of the new [`VcpuInfo`](crate::xen::VcpuInfo).
    pub mfn: u64,
    /// Byte of the frame at which it begins.
    pub offset: u32,
    /// Unused.
    pub rsvd: u32,
}

/// `vcpu.h`, `struct vcpu_get_physid`. Argument of [`VCPUOP_get_physid`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VcpuGetPhysid {
    /// Out: APIC id in the low half, ACPI id in the high half.
    pub phys_id: u64,
}

/// `vcpu.h`, `struct vcpu_register_time_memory_area`. Argument of [`VCPUOP_register_vcpu_time_memory_area`].
#[repr(C)]
#[derive(Clone, Copy)]
pub struct VcpuRegisterTimeMemoryArea {
    /// The area.
    pub addr: VcpuRegisterTimeMemoryAreaAddr,
}

/// `vcpu.h`, `struct vcpu_register_time_memory_area.addr`. Address of a time area.
#[repr(C)]
#[derive(Clone, Copy)]
pub union VcpuRegisterTimeMemoryAreaAddr {
    /// As a handle.
    pub h: GuestHandle<VcpuTimeInfo>,
    /// As a virtual address.
    pub v: *mut VcpuTimeInfo,
    /// As a physical address; unused.
    pub p: u64,
}
