//! `io/protocols.h`: names of a front end's ABI, the xenstore node `protocol`.

/// Structures as a 32-bit x86 guest lays them out.
pub const XEN_IO_PROTO_ABI_X86_32: &str = "x86_32-abi";
/// Structures as a 64-bit x86 guest lays them out.
pub const XEN_IO_PROTO_ABI_X86_64: &str = "x86_64-abi";
/// Structures as an Arm guest lays them out.
pub const XEN_IO_PROTO_ABI_ARM: &str = "arm-abi";
/// Structures as this guest lays them out.
#[cfg(target_pointer_width = "64")]
pub const XEN_IO_PROTO_ABI_NATIVE: &str = XEN_IO_PROTO_ABI_X86_64;
/// Structures as this guest lays them out.
#[cfg(target_pointer_width = "32")]
pub const XEN_IO_PROTO_ABI_NATIVE: &str = XEN_IO_PROTO_ABI_X86_32;
