//! `arch-x86/xen-x86_64.h`: selectors, registers and address ranges of a 64-bit guest.

use core::sync::atomic::AtomicUsize;

use static_assertions::const_assert_eq;

/// Flat 32-bit code selector.
pub const FLAT_RING3_CS32: u16 = 0xe023;
/// Flat 64-bit code selector.
pub const FLAT_RING3_CS64: u16 = 0xe033;
/// Flat 32-bit data selector.
pub const FLAT_RING3_DS32: u16 = 0xe02b;
/// Data selector of 64-bit code: none is needed.
pub const FLAT_RING3_DS64: u16 = 0;
/// Flat stack selector of 32-bit code.
pub const FLAT_RING3_SS32: u16 = 0xe02b;
/// Flat stack selector of 64-bit code.
pub const FLAT_RING3_SS64: u16 = 0xe02b;
/// Code selector of a 64-bit kernel.
pub const FLAT_KERNEL_CS64: u16 = FLAT_RING3_CS64;
/// Data selector of a 64-bit kernel.
pub const FLAT_KERNEL_DS64: u16 = FLAT_RING3_DS64;
/// Stack selector of a 64-bit kernel.
pub const FLAT_KERNEL_SS64: u16 = FLAT_RING3_SS64;
/// Code selector of the kernel.
pub const FLAT_KERNEL_CS: u16 = FLAT_KERNEL_CS64;
/// Data selector of the kernel.
pub const FLAT_KERNEL_DS: u16 = FLAT_KERNEL_DS64;
/// Stack selector of the kernel.
pub const FLAT_KERNEL_SS: u16 = FLAT_KERNEL_SS64;
/// Code selector of 64-bit user mode.
pub const FLAT_USER_CS64: u16 = FLAT_RING3_CS64;
/// Data selector of 64-bit user mode.
pub const FLAT_USER_DS64: u16 = FLAT_RING3_DS64;
/// Stack selector of 64-bit user mode.
pub const FLAT_USER_SS64: u16 = FLAT_RING3_SS64;
/// Code selector of 32-bit user mode.
pub const FLAT_USER_CS32: u16 = FLAT_RING3_CS32;
/// Data selector of 32-bit user mode.
pub const FLAT_USER_DS32: u16 = FLAT_RING3_DS32;
/// Stack selector of 32-bit user mode.
pub const FLAT_USER_SS32: u16 = FLAT_RING3_SS32;
/// Code selector of user mode.
pub const FLAT_USER_CS: u16 = FLAT_USER_CS64;
/// Data selector of user mode.
pub const FLAT_USER_DS: u16 = FLAT_USER_DS64;
/// Stack selector of user mode.
pub const FLAT_USER_SS: u16 = FLAT_USER_SS64;

/// First address of the range that is Xen's.
pub const HYPERVISOR_VIRT_START: usize = 0xFFFF_8000_0000_0000;
/// Address after the range that is Xen's.
pub const HYPERVISOR_VIRT_END: usize = 0xFFFF_8800_0000_0000;
/// First address of the machine-to-physical table.
pub const MACH2PHYS_VIRT_START: usize = 0xFFFF_8000_0000_0000;
/// Address after the machine-to-physical table.
pub const MACH2PHYS_VIRT_END: usize = 0xFFFF_8040_0000_0000;
/// Entries of the machine-to-physical table, one word each.
pub const MACH2PHYS_NR_ENTRIES: usize = (MACH2PHYS_VIRT_END - MACH2PHYS_VIRT_START) >> 3;

/// Argument of `set_segment_base`: the base of FS.
pub const SEGBASE_FS: u32 = 0;
/// Argument of `set_segment_base`: the base of GS in user mode.
pub const SEGBASE_GS_USER: u32 = 1;
/// Argument of `set_segment_base`: the base of GS in kernel mode.
pub const SEGBASE_GS_KERNEL: u32 = 2;
/// Argument of `set_segment_base`: the selector of GS in user mode.
pub const SEGBASE_GS_USER_SEL: u32 = 3;

/// Bit of [`IretContext::flags`]: return by the faster `sysret`.
pub const VGCF_in_syscall: usize = 1 << 8;
/// Bit of [`IretContext::flags`]: the same as [`VGCF_in_syscall`].
pub const VGCF_IN_SYSCALL: usize = VGCF_in_syscall;

/// `arch-x86/xen-x86_64.h`, `struct iret_context`. What the `iret` hypercall takes from the stack, from low to high.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IretContext {
    /// RAX.
    pub rax: u64,
    /// R11; lost where `flags` has [`VGCF_in_syscall`].
    pub r11: u64,
    /// RCX; lost where `flags` has [`VGCF_in_syscall`].
    pub rcx: u64,
    /// [`VGCF_in_syscall`] or 0.
    pub flags: u64,
    /// Instruction to go on with.
    pub rip: u64,
    /// Code selector; its privilege tells kernel from user mode.
    pub cs: u64,
    /// Flags register; bit 9 (interrupts) becomes the event mask, inverted.
    pub rflags: u64,
    /// Stack pointer.
    pub rsp: u64,
    /// Stack selector.
    pub ss: u64,
}

/// `arch-x86/xen-x86_64.h`, `struct cpu_user_regs`. Registers of a vcpu.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuUserRegs {
    /// R15.
    pub r15: u64,
    /// R14.
    pub r14: u64,
    /// R13.
    pub r13: u64,
    /// R12.
    pub r12: u64,
    /// RBP.
    pub rbp: u64,
    /// RBX.
    pub rbx: u64,
    /// R11.
    pub r11: u64,
    /// R10.
    pub r10: u64,
    /// R9.
    pub r9: u64,
    /// R8.
    pub r8: u64,
    /// RAX.
    pub rax: u64,
    /// RCX.
    pub rcx: u64,
    /// RDX.
    pub rdx: u64,
    /// RSI.
    pub rsi: u64,
    /// RDI.
    pub rdi: u64,
    /// Error code of an exception.
    pub error_code: u32,
    /// Vector by which Xen was entered.
    pub entry_vector: u32,
    /// Instruction pointer.
    pub rip: u64,
    /// Code selector.
    pub cs: u16,
    /// Padding.
    pub _pad0: [u16; 1],
    /// Event mask of the interrupted code.
    pub saved_upcall_mask: u8,
    /// Padding.
    pub _pad1: [u8; 3],
    /// Flags register.
    pub rflags: u64,
    /// Stack pointer.
    pub rsp: u64,
    /// Stack selector.
    pub ss: u16,
    /// Padding.
    pub _pad2: [u16; 3],
    /// ES selector.
    pub es: u16,
    /// Padding.
    pub _pad3: [u16; 3],
    /// DS selector.
    pub ds: u16,
    /// Padding.
    pub _pad4: [u16; 3],
    /// FS selector.
    pub fs: u16,
    /// Padding.
    pub _pad5: [u16; 3],
    /// GS selector.
    pub gs: u16,
    /// Padding.
    pub _pad6: [u16; 3],
}
const_assert_eq!(size_of::<CpuUserRegs>(), 200);

/// `arch-x86/xen-x86_64.h`, `struct arch_vcpu_info`. The x86 part of a vcpu's shared state. Xen writes it in place.
#[repr(C)]
#[derive(Debug, Default)]
pub struct ArchVcpuInfo {
    /// Address of the last page fault.
    pub cr2: AtomicUsize,
    /// Unused.
    pub pad: AtomicUsize,
}

/// `arch-x86/xen-x86_64.h`, `xen_callback_t`. Address of a callback's first instruction.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XenCallback(pub usize);
