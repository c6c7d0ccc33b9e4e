//! `arch-x86/xen-x86_32.h`: selectors, registers and address ranges of a 32-bit guest (PAE).

use core::sync::atomic::AtomicUsize;

use static_assertions::const_assert_eq;

/// Flat code selector of ring 1.
pub const FLAT_RING1_CS: u16 = 0xe019;
/// Flat data selector of ring 1.
pub const FLAT_RING1_DS: u16 = 0xe021;
/// Flat stack selector of ring 1.
pub const FLAT_RING1_SS: u16 = 0xe021;
/// Flat code selector of ring 3.
pub const FLAT_RING3_CS: u16 = 0xe02b;
/// Flat data selector of ring 3.
pub const FLAT_RING3_DS: u16 = 0xe033;
/// Flat stack selector of ring 3.
pub const FLAT_RING3_SS: u16 = 0xe033;
/// Code selector of the kernel.
pub const FLAT_KERNEL_CS: u16 = FLAT_RING1_CS;
/// Data selector of the kernel.
pub const FLAT_KERNEL_DS: u16 = FLAT_RING1_DS;
/// Stack selector of the kernel.
pub const FLAT_KERNEL_SS: u16 = FLAT_RING1_SS;
/// Code selector of user mode.
pub const FLAT_USER_CS: u16 = FLAT_RING3_CS;
/// Data selector of user mode.
pub const FLAT_USER_DS: u16 = FLAT_RING3_DS;
/// Stack selector of user mode.
pub const FLAT_USER_SS: u16 = FLAT_RING3_SS;

/// First address of the range that is Xen's under a 32-bit Xen.
pub const HYPERVISOR_VIRT_START: usize = 0xF580_0000;
/// First address of the machine-to-physical table.
pub const MACH2PHYS_VIRT_START: usize = 0xF580_0000;
/// Address after the machine-to-physical table.
pub const MACH2PHYS_VIRT_END: usize = 0xF680_0000;
/// Entries of the machine-to-physical table, one word each.
pub const MACH2PHYS_NR_ENTRIES: usize = (MACH2PHYS_VIRT_END - MACH2PHYS_VIRT_START) >> 2;

/// `arch-x86/xen-x86_32.h`, `struct cpu_user_regs`. Registers of a vcpu.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuUserRegs {
    /// EBX.
    pub ebx: u32,
    /// ECX.
    pub ecx: u32,
    /// EDX.
    pub edx: u32,
    /// ESI.
    pub esi: u32,
    /// EDI.
    pub edi: u32,
    /// EBP.
    pub ebp: u32,
    /// EAX.
    pub eax: u32,
    /// Error code of an exception.
    pub error_code: u16,
    /// Vector by which Xen was entered.
    pub entry_vector: u16,
    /// Instruction pointer.
    pub eip: u32,
    /// Code selector.
    pub cs: u16,
    /// Event mask of the interrupted code.
    pub saved_upcall_mask: u8,
    /// Padding.
    pub _pad0: u8,
    /// Flags register.
    pub eflags: u32,
    /// Stack pointer.
    pub esp: u32,
    /// Stack selector.
    pub ss: u16,
    /// Padding.
    pub _pad1: u16,
    /// ES selector.
    pub es: u16,
    /// Padding.
    pub _pad2: u16,
    /// DS selector.
    pub ds: u16,
    /// Padding.
    pub _pad3: u16,
    /// FS selector.
    pub fs: u16,
    /// Padding.
    pub _pad4: u16,
    /// GS selector.
    pub gs: u16,
    /// Padding.
    pub _pad5: u16,
}
const_assert_eq!(size_of::<CpuUserRegs>(), 68);

/// `arch-x86/xen-x86_32.h`, `struct arch_vcpu_info`. The x86 part of a vcpu's shared state. Xen writes it in place.
#[repr(C)]
#[derive(Debug, Default)]
pub struct ArchVcpuInfo {
    /// Address of the last page fault.
    pub cr2: AtomicUsize,
    /// Unused.
    pub pad: [AtomicUsize; 5],
}

/// `arch-x86/xen-x86_32.h`, `struct xen_callback`. Where a callback begins.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XenCallback {
    /// Code selector.
    pub cs: usize,
    /// Address of the first instruction.
    pub eip: usize,
}
