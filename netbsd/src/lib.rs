//! The drivers as a NetBSD kernel takes them: a static library with a C interface, `netbsd/include/xenpv.h`, which is made of this
//! source.
//!
//! ```text
//!   dk(9), tty(4), autoconf(9)      the kernel
//!        │            ▲
//!   netbsd/glue/*.c   │             C that the kernel's build compiles: what looks into the kernel's structures
//!        │            │
//!   xenpv_*()     up-calls          this crate: C calls into Rust, and Rust asks the kernel
//!        │            │
//!   xbd, xencons, xenbus, hypercall
//! ```
//!
//! | module | what |
//! |---|---|
//! | [`upcalls`] | what the library asks of the kernel |
//! | [`kernel`] | the kernel as a `Platform` of the drivers |
//! | [`grants`] | the grant table, for our drivers and for the kernel's C drivers |
//! | [`events`], [`store`] | event channels and xenstore, which stay the kernel's own |
//! | [`disk`] | the block front end |
//! | [`console`] | the console front end |
//! | [`errno`] | errors as NetBSD numbers them |
//!
//! Rust sees handles and plain numbers only: what a `buf` or a `tty` looks like depends on the kernel's options, and is the glue's
//! business.
#![no_std]

extern crate alloc;

pub mod console;
pub mod disk;
pub mod errno;
pub mod events;
pub mod grants;
pub mod kernel;
mod lock;
#[cfg(target_os = "none")]
mod runtime;
pub mod store;
pub mod upcalls;

/// The version of the C interface. It changes whenever a kernel that was compiled with an older header could go wrong with the
/// library.
pub const XENPV_ABI: u32 = 3;

/// Returns the version of the C interface that the library has, for comparison with `XENPV_ABI` of the header.
///
/// Context: any. Locks: none.
#[unsafe(no_mangle)]
pub extern "C" fn xenpv_abi() -> u32 {
    XENPV_ABI
}
