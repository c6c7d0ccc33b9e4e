//! `arch-x86/xen.h`: traps, the register state of a vcpu, the x86 part of the shared page.

#[cfg(target_pointer_width = "32")]
use core::sync::atomic::AtomicU32;
use core::sync::atomic::AtomicUsize;

use static_assertions::const_assert_eq;

use super::CpuUserRegs;

/// First page of the global descriptor table that is Xen's.
pub const FIRST_RESERVED_GDT_PAGE: u32 = 14;
/// First byte of the global descriptor table that is Xen's.
pub const FIRST_RESERVED_GDT_BYTE: u32 = FIRST_RESERVED_GDT_PAGE * 4096;
/// First entry of the global descriptor table that is Xen's.
pub const FIRST_RESERVED_GDT_ENTRY: u32 = FIRST_RESERVED_GDT_BYTE / 8;

/// How many vcpus have their state in the shared page.
pub const XEN_LEGACY_MAX_VCPUS: usize = 32;

/// `arch-x86/xen.h`, `struct trap_info`. One entry of the virtual trap table; a list of them ends with one whose `address` is 0.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TrapInfo {
    /// Exception vector.
    pub vector: u8,
    /// Bits 0-1: lowest privilege that may raise it by software; bit 2: mask events on entry.
    pub flags: u8,
    /// Code selector of the handler.
    pub cs: u16,
    /// Address of the handler.
    pub address: usize,
}
const_assert_eq!(size_of::<TrapInfo>(), if cfg!(target_pointer_width = "64") { 16 } else { 8 });

/// Bit of [`VcpuGuestContext::flags`]: `fpu_ctxt` is valid.
pub const VGCF_I387_VALID: usize = 1 << 0;
/// Bit of [`VcpuGuestContext::flags`]: the vcpu is in kernel mode.
pub const VGCF_IN_KERNEL: usize = 1 << 2;
/// Bit of [`VcpuGuestContext::flags`]: the same as [`VGCF_I387_VALID`].
pub const VGCF_i387_valid: usize = 1 << 0;
/// Bit of [`VcpuGuestContext::flags`]: the same as [`VGCF_IN_KERNEL`].
pub const VGCF_in_kernel: usize = 1 << 2;
/// Bit of [`VcpuGuestContext::flags`]: events are masked on entry to the failsafe callback.
pub const VGCF_failsafe_disables_events: usize = 1 << 3;
/// Bit of [`VcpuGuestContext::flags`]: events are masked on entry to the system-call callback.
pub const VGCF_syscall_disables_events: usize = 1 << 4;
/// Bit of [`VcpuGuestContext::flags`]: the vcpu runs.
pub const VGCF_online: usize = 1 << 5;

/// `arch-x86/xen.h`, `struct vcpu_guest_context.fpu_ctxt`. State of the floating-point unit, as FXSAVE stores it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FpuCtxt {
    /// The bytes.
    pub x: [u8; 512],
}

/// `arch-x86/xen.h`, `struct vcpu_guest_context`. The whole state of a vcpu, to start one with.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct VcpuGuestContext {
    /// Floating-point state.
    pub fpu_ctxt: FpuCtxt,
    /// `VGCF_` flags.
    pub flags: usize,
    /// Registers.
    pub user_regs: CpuUserRegs,
    /// Virtual trap table, by vector.
    pub trap_ctxt: [TrapInfo; 256],
    /// Virtual address of the local descriptor table.
    pub ldt_base: usize,
    /// Its entries.
    pub ldt_ents: usize,
    /// Frames of the global descriptor table.
    pub gdt_frames: [usize; 16],
    /// Its entries.
    pub gdt_ents: usize,
    /// Stack selector of kernel mode.
    pub kernel_ss: usize,
    /// Stack pointer of kernel mode.
    pub kernel_sp: usize,
    /// Control registers; CR3 and, on 64 bit, CR1 (user mode's table) hold page-table frames in the form of the register.
    pub ctrlreg: [usize; 8],
    /// Debug registers.
    pub debugreg: [usize; 8],
    /// Code selector of the event callback.
    #[cfg(target_pointer_width = "32")]
    pub event_callback_cs: usize,
    /// Address of the event callback.
    pub event_callback_eip: usize,
    /// Code selector of the failsafe callback.
    #[cfg(target_pointer_width = "32")]
    pub failsafe_callback_cs: usize,
    /// Address of the failsafe callback.
    pub failsafe_callback_eip: usize,
    /// Address of the system-call callback.
    #[cfg(target_pointer_width = "64")]
    pub syscall_callback_eip: usize,
    /// Bitmap of the `VMASST_TYPE_` assists.
    pub vm_assist: usize,
    /// Base of FS.
    #[cfg(target_pointer_width = "64")]
    pub fs_base: u64,
    /// Base of GS in kernel mode.
    #[cfg(target_pointer_width = "64")]
    pub gs_base_kernel: u64,
    /// Base of GS in user mode.
    #[cfg(target_pointer_width = "64")]
    pub gs_base_user: u64,
}
const_assert_eq!(size_of::<VcpuGuestContext>(), if cfg!(target_pointer_width = "64") { 5168 } else { 2800 });

/// `arch-x86/xen.h`, `struct arch_shared_info`. The x86 part of the shared page. In use in place.
#[repr(C)]
#[derive(Debug, Default)]
pub struct ArchSharedInfo {
    /// Highest pfn of the domain; the guest writes it, for the toolstack.
    pub max_pfn: AtomicUsize,
    /// Frame of the list of the frames that list the frame list; the guest writes it, for the toolstack.
    pub pfn_to_mfn_frame_list_list: AtomicUsize,
    /// Bits of the causes of a non-maskable interrupt.
    pub nmi_reason: AtomicUsize,
    /// CR3 of the tables by which the frame list at `p2m_vaddr` is mapped.
    pub p2m_cr3: AtomicUsize,
    /// Virtual address of the frame list.
    pub p2m_vaddr: AtomicUsize,
    /// Odd while the guest changes the frame list.
    pub p2m_generation: AtomicUsize,
    /// High half of the wall clock's seconds.
    #[cfg(target_pointer_width = "32")]
    pub wc_sec_hi: AtomicU32,
}

/// `arch-x86/xen.h`, `struct xen_cpuid_leaf`. One leaf of the CPU's identification.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XenCpuidLeaf {
    /// Leaf.
    pub leaf: u32,
    /// Subleaf, or [`XEN_CPUID_NO_SUBLEAF`].
    pub subleaf: u32,
    /// EAX.
    pub a: u32,
    /// EBX.
    pub b: u32,
    /// ECX.
    pub c: u32,
    /// EDX.
    pub d: u32,
}

/// The leaf has no subleaves.
pub const XEN_CPUID_NO_SUBLEAF: u32 = 0xffff_ffff;

/// `arch-x86/xen.h`, `struct xen_msr_entry`. One model-specific register.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XenMsrEntry {
    /// Its number.
    pub idx: u32,
    /// Must be 0.
    pub flags: u32,
    /// Its value.
    pub val: u64,
}

/// I/O port whose bytes go to Xen's console in debug builds, of hardware-virtualised guests.
pub const XEN_HVM_DEBUGCONS_IOPORT: u16 = 0xe9;
