//! `arch-x86/xen.h`: the part of the ABI that is the processor's, one module per header.
//!
//! The types of the guest's own width are exported here, as C's header does.

pub mod cpuid;
pub mod xen;
#[cfg(target_pointer_width = "32")]
pub mod xen_x86_32;
#[cfg(target_pointer_width = "64")]
pub mod xen_x86_64;

#[cfg(target_pointer_width = "32")]
pub use xen_x86_32::{ArchVcpuInfo, CpuUserRegs, XenCallback};
#[cfg(target_pointer_width = "64")]
pub use xen_x86_64::{ArchVcpuInfo, CpuUserRegs, XenCallback};
