//! `sched.h`: giving up the CPU, waiting, shutting down.

use crate::{DomId, GuestHandle, Port};

/// Command: lets another vcpu run. No argument.
pub const SCHEDOP_yield: u32 = 0;
/// Command: unmasks events and sleeps until one is pending. No argument.
pub const SCHEDOP_block: u32 = 1;
/// Command: stops the domain; [`SchedShutdown`]. A PV guest that suspends passes the frame of its start_info as a third argument.
pub const SCHEDOP_shutdown: u32 = 2;
/// Command: sleeps until a given port is pending or time is up; [`SchedPoll`].
pub const SCHEDOP_poll: u32 = 3;
/// Command: stops another domain; [`SchedRemoteShutdown`].
pub const SCHEDOP_remote_shutdown: u32 = 4;
/// Command: sets the reason of the shutdown to come; [`SchedShutdown`].
pub const SCHEDOP_shutdown_code: u32 = 5;
/// Command: sets, pokes or ends a watchdog; [`SchedWatchdog`].
pub const SCHEDOP_watchdog: u32 = 6;
/// Command: pins the vcpu for a while; [`SchedPinOverride`].
pub const SCHEDOP_pin_override: u32 = 7;

/// `sched.h`, `struct sched_shutdown`. Argument of [`SCHEDOP_shutdown`] and [`SCHEDOP_shutdown_code`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SchedShutdown {
    /// One of the `SHUTDOWN_` constants.
    pub reason: u32,
}

/// `sched.h`, `struct sched_poll`. Argument of [`SCHEDOP_poll`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SchedPoll {
    /// The ports; they should be masked.
    pub ports: GuestHandle<Port>,
    /// How many; at most 128.
    pub nr_ports: u32,
    /// System time in nanoseconds to stop waiting at; 0 for never.
    pub timeout: u64,
}

/// `sched.h`, `struct sched_remote_shutdown`. Argument of [`SCHEDOP_remote_shutdown`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SchedRemoteShutdown {
    /// Domain to stop.
    pub domain_id: DomId,
    /// One of the `SHUTDOWN_` constants.
    pub reason: u32,
}

/// `sched.h`, `struct sched_watchdog`. Argument of [`SCHEDOP_watchdog`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SchedWatchdog {
    /// Watchdog; 0 for a new one.
    pub id: u32,
    /// Seconds; 0 ends it.
    pub timeout: u32,
}

/// `sched.h`, `struct sched_pin_override`. Argument of [`SCHEDOP_pin_override`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SchedPinOverride {
    /// Physical CPU; negative takes the pin back.
    pub pcpu: i32,
}

/// Reason: the domain is done.
pub const SHUTDOWN_poweroff: u32 = 0;
/// Reason: to be started again.
pub const SHUTDOWN_reboot: u32 = 1;
/// Reason: to be saved.
pub const SHUTDOWN_suspend: u32 = 2;
/// Reason: it crashed.
pub const SHUTDOWN_crash: u32 = 3;
/// Reason: its watchdog ran out.
pub const SHUTDOWN_watchdog: u32 = 4;
/// Reason: to be started again in its memory.
pub const SHUTDOWN_soft_reset: u32 = 5;
/// Highest reason.
pub const SHUTDOWN_MAX: u32 = 5;
