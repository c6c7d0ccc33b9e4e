//! Checks of the NetBSD glue that need no NetBSD: its header, its compilation, and a host that plays the kernel.
//!
//! ```text
//!   tests/*.rs                 bufs, opens, keys
//!        │
//!   host/{kernel,nodes,disk,tty}.c    dk(9), autoconf(9), tty(4): what the glue may rely on, and no more
//!        │            ▲
//!   netbsd/glue/*.c   │        as in a kernel
//!        │            │
//!   xenpv, the library         as in a kernel, but for the processor's instructions
//!        │            │
//!   [`interrupts`], [`memory`], [`store`], host/port.c       the rest of the kernel, over a domain of the mock
//! ```
//!
//! There is one kernel a process: the library has one grant table and one console, as a real kernel has. So a test takes the
//! [`Kernel`], and gives it back clean.
#![cfg_attr(target_os = "none", no_std)]
#![cfg(not(target_os = "none"))]

pub mod console;
pub mod interrupts;
pub mod kernel;
pub mod memory;
pub mod peer;
pub mod store;

pub use kernel::Kernel;
