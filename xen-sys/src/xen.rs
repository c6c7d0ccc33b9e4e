//! `xen.h`: hypercall numbers, the structures of start-up, shared state and time, page-table updates, domain ids.

use core::sync::atomic::{AtomicI8, AtomicU8, AtomicU32, AtomicU64, AtomicUsize};

use static_assertions::const_assert_eq;

use crate::arch_x86::ArchVcpuInfo;
use crate::arch_x86::xen::{ArchSharedInfo, XEN_LEGACY_MAX_VCPUS};
use crate::{DomId, GuestHandle, Port, XenPfn};

/// Number of a hypercall: its index in the hypercall page, and the first register of the call.
///
/// No C counterpart: C passes it as a plain integer. Its values are the constants here.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Nr(pub usize);

impl Nr {
    /// `__HYPERVISOR_set_trap_table`: sets the virtual trap table.
    pub const SET_TRAP_TABLE: Nr = Nr(0);
    /// `__HYPERVISOR_mmu_update`: applies [`MmuUpdate`]s to page tables or the machine-to-physical table.
    pub const MMU_UPDATE: Nr = Nr(1);
    /// `__HYPERVISOR_set_gdt`: sets the frames of the global descriptor table.
    pub const SET_GDT: Nr = Nr(2);
    /// `__HYPERVISOR_stack_switch`: sets the kernel stack for the next entry from user mode.
    pub const STACK_SWITCH: Nr = Nr(3);
    /// `__HYPERVISOR_set_callbacks`: sets the event and failsafe entry points.
    pub const SET_CALLBACKS: Nr = Nr(4);
    /// `__HYPERVISOR_fpu_taskswitch`: sets or clears the virtual task-switched flag.
    pub const FPU_TASKSWITCH: Nr = Nr(5);
    /// `__HYPERVISOR_sched_op_compat`: the scheduling call before [`Nr::SCHED_OP`].
    pub const SCHED_OP_COMPAT: Nr = Nr(6);
    /// `__HYPERVISOR_platform_op`: controls the machine; dom0 only.
    pub const PLATFORM_OP: Nr = Nr(7);
    /// `__HYPERVISOR_set_debugreg`: sets a debug register.
    pub const SET_DEBUGREG: Nr = Nr(8);
    /// `__HYPERVISOR_get_debugreg`: reads a debug register.
    pub const GET_DEBUGREG: Nr = Nr(9);
    /// `__HYPERVISOR_update_descriptor`: writes one entry of a descriptor table.
    pub const UPDATE_DESCRIPTOR: Nr = Nr(10);
    /// `__HYPERVISOR_memory_op`: memory reservations and the physical map: [`crate::memory`].
    pub const MEMORY_OP: Nr = Nr(12);
    /// `__HYPERVISOR_multicall`: carries out several calls, [`MulticallEntry`] each.
    pub const MULTICALL: Nr = Nr(13);
    /// `__HYPERVISOR_update_va_mapping`: writes the page-table entry of one virtual address.
    pub const UPDATE_VA_MAPPING: Nr = Nr(14);
    /// `__HYPERVISOR_set_timer_op`: sets the one-shot timer of this vcpu, in absolute system time.
    pub const SET_TIMER_OP: Nr = Nr(15);
    /// `__HYPERVISOR_event_channel_op_compat`: the event-channel call before [`Nr::EVENT_CHANNEL_OP`].
    pub const EVENT_CHANNEL_OP_COMPAT: Nr = Nr(16);
    /// `__HYPERVISOR_xen_version`: asks about this Xen: [`crate::version`].
    pub const XEN_VERSION: Nr = Nr(17);
    /// `__HYPERVISOR_console_io`: reads and writes Xen's own console: [`CONSOLEIO_write`].
    pub const CONSOLE_IO: Nr = Nr(18);
    /// `__HYPERVISOR_physdev_op_compat`: the device call before [`Nr::PHYSDEV_OP`].
    pub const PHYSDEV_OP_COMPAT: Nr = Nr(19);
    /// `__HYPERVISOR_grant_table_op`: grant tables: [`crate::grant_table`].
    pub const GRANT_TABLE_OP: Nr = Nr(20);
    /// `__HYPERVISOR_vm_assist`: switches help for the guest on and off: [`VMASST_CMD_enable`].
    pub const VM_ASSIST: Nr = Nr(21);
    /// `__HYPERVISOR_update_va_mapping_otherdomain`: [`Nr::UPDATE_VA_MAPPING`] with a frame of another domain.
    pub const UPDATE_VA_MAPPING_OTHERDOMAIN: Nr = Nr(22);
    /// `__HYPERVISOR_iret`: returns from an exception to kernel or user mode.
    pub const IRET: Nr = Nr(23);
    /// `__HYPERVISOR_vcpu_op`: virtual CPUs: [`crate::vcpu`].
    pub const VCPU_OP: Nr = Nr(24);
    /// `__HYPERVISOR_set_segment_base`: sets a segment base in 64-bit mode.
    pub const SET_SEGMENT_BASE: Nr = Nr(25);
    /// `__HYPERVISOR_mmuext_op`: pins tables, switches and flushes: [`MmuextOp`].
    pub const MMUEXT_OP: Nr = Nr(26);
    /// `__HYPERVISOR_xsm_op`: the security module's call.
    pub const XSM_OP: Nr = Nr(27);
    /// `__HYPERVISOR_nmi_op`: registers a handler of non-maskable interrupts.
    pub const NMI_OP: Nr = Nr(28);
    /// `__HYPERVISOR_sched_op`: yields, blocks, polls, shuts down: [`crate::sched`].
    pub const SCHED_OP: Nr = Nr(29);
    /// `__HYPERVISOR_callback_op`: registers entry points: [`crate::callback`].
    pub const CALLBACK_OP: Nr = Nr(30);
    /// `__HYPERVISOR_xenoprof_op`: profiling.
    pub const XENOPROF_OP: Nr = Nr(31);
    /// `__HYPERVISOR_event_channel_op`: event channels: [`crate::event_channel`].
    pub const EVENT_CHANNEL_OP: Nr = Nr(32);
    /// `__HYPERVISOR_physdev_op`: physical interrupts and devices: [`crate::physdev`].
    pub const PHYSDEV_OP: Nr = Nr(33);
    /// `__HYPERVISOR_hvm_op`: parameters of hardware-virtualised guests.
    pub const HVM_OP: Nr = Nr(34);
    /// `__HYPERVISOR_sysctl`: controls the host; toolstack only.
    pub const SYSCTL: Nr = Nr(35);
    /// `__HYPERVISOR_domctl`: controls domains; toolstack only.
    pub const DOMCTL: Nr = Nr(36);
    /// `__HYPERVISOR_kexec_op`: loads and starts a crash kernel.
    pub const KEXEC_OP: Nr = Nr(37);
    /// `__HYPERVISOR_tmem_op`: transcendent memory; gone from Xen.
    pub const TMEM_OP: Nr = Nr(38);
    /// `__HYPERVISOR_argo_op`: Argo, messages between domains.
    pub const ARGO_OP: Nr = Nr(39);
    /// `__HYPERVISOR_xenpmu_op`: performance counters.
    pub const XENPMU_OP: Nr = Nr(40);
    /// `__HYPERVISOR_dm_op`: device models.
    pub const DM_OP: Nr = Nr(41);
    /// `__HYPERVISOR_hypfs_op`: Xen's own file system of settings.
    pub const HYPFS_OP: Nr = Nr(42);
    /// `__HYPERVISOR_arch_0`: first call of the architecture's own; x86: machine checks.
    pub const ARCH_0: Nr = Nr(48);
    /// `__HYPERVISOR_arch_1`: call of the architecture's own.
    pub const ARCH_1: Nr = Nr(49);
    /// `__HYPERVISOR_arch_2`: call of the architecture's own.
    pub const ARCH_2: Nr = Nr(50);
    /// `__HYPERVISOR_arch_3`: call of the architecture's own.
    pub const ARCH_3: Nr = Nr(51);
    /// `__HYPERVISOR_arch_4`: call of the architecture's own.
    pub const ARCH_4: Nr = Nr(52);
    /// `__HYPERVISOR_arch_5`: call of the architecture's own.
    pub const ARCH_5: Nr = Nr(53);
    /// `__HYPERVISOR_arch_6`: call of the architecture's own.
    pub const ARCH_6: Nr = Nr(54);
    /// `__HYPERVISOR_arch_7`: last call of the architecture's own.
    pub const ARCH_7: Nr = Nr(55);
}

// Virtual interrupts. Those marked global go to one vcpu of one domain.

/// Virtual interrupt of the vcpu's timer.
pub const VIRQ_TIMER: u32 = 0;
/// Virtual interrupt that asks the guest to print its state.
pub const VIRQ_DEBUG: u32 = 1;
/// Virtual interrupt: Xen's console has input (global; dom0).
pub const VIRQ_CONSOLE: u32 = 2;
/// Virtual interrupt: a domain changed its state, as by shutting down (global; xenstored's domain).
pub const VIRQ_DOM_EXC: u32 = 3;
/// Virtual interrupt: the trace buffers have records (global; dom0).
pub const VIRQ_TBUF: u32 = 4;
/// Virtual interrupt: a domain paused for the debugger (global; dom0).
pub const VIRQ_DEBUGGER: u32 = 6;
/// Virtual interrupt: profiling has a new sample.
pub const VIRQ_XENOPROF: u32 = 7;
/// Virtual interrupt: Xen's console buffer has new output (global; dom0).
pub const VIRQ_CON_RING: u32 = 8;
/// Virtual interrupt: a physical CPU went on or off line (global; dom0).
pub const VIRQ_PCPU_STATE: u32 = 9;
/// Virtual interrupt: a memory event took place (global; dom0).
pub const VIRQ_MEM_EVENT: u32 = 10;
/// Virtual interrupt: an Argo message arrived (global).
pub const VIRQ_ARGO: u32 = 11;
/// Virtual interrupt: the host is low on memory (global; dom0).
pub const VIRQ_ENOMEM: u32 = 12;
/// Virtual interrupt of the performance counters.
pub const VIRQ_XENPMU: u32 = 13;
/// First virtual interrupt of the architecture's own; x86: machine check.
pub const VIRQ_ARCH_0: u32 = 16;
/// Virtual interrupt of the architecture's own.
pub const VIRQ_ARCH_1: u32 = 17;
/// Virtual interrupt of the architecture's own.
pub const VIRQ_ARCH_2: u32 = 18;
/// Virtual interrupt of the architecture's own.
pub const VIRQ_ARCH_3: u32 = 19;
/// Virtual interrupt of the architecture's own.
pub const VIRQ_ARCH_4: u32 = 20;
/// Virtual interrupt of the architecture's own.
pub const VIRQ_ARCH_5: u32 = 21;
/// Virtual interrupt of the architecture's own.
pub const VIRQ_ARCH_6: u32 = 22;
/// Last virtual interrupt of the architecture's own.
pub const VIRQ_ARCH_7: u32 = 23;
/// How many virtual interrupts there are.
pub const NR_VIRQS: u32 = 24;

// Kinds of `mmu_update`: the two low bits of `ptr`.

/// Kind of [`MmuUpdate`]: writes a page-table entry, checked.
pub const MMU_NORMAL_PT_UPDATE: u64 = 0;
/// Kind of [`MmuUpdate`]: writes the pfn of a frame into the machine-to-physical table.
pub const MMU_MACHPHYS_UPDATE: u64 = 1;
/// Kind of [`MmuUpdate`]: writes an entry and keeps its accessed and dirty bits.
pub const MMU_PT_UPDATE_PRESERVE_AD: u64 = 2;
/// Kind of [`MmuUpdate`]: writes an entry whose frame is not to be translated.
pub const MMU_PT_UPDATE_NO_TRANSLATE: u64 = 3;

// Commands of `mmuext_op`.

/// Pins a frame as a table of level 1. Argument: `mfn`.
pub const MMUEXT_PIN_L1_TABLE: u32 = 0;
/// Pins a frame as a table of level 2. Argument: `mfn`.
pub const MMUEXT_PIN_L2_TABLE: u32 = 1;
/// Pins a frame as a table of level 3. Argument: `mfn`.
pub const MMUEXT_PIN_L3_TABLE: u32 = 2;
/// Pins a frame as a table of level 4. Argument: `mfn`.
pub const MMUEXT_PIN_L4_TABLE: u32 = 3;
/// Unpins a table. Argument: `mfn`.
pub const MMUEXT_UNPIN_TABLE: u32 = 4;
/// Loads the top-level table of kernel mode. Argument: `mfn`.
pub const MMUEXT_NEW_BASEPTR: u32 = 5;
/// Flushes this vcpu's TLB.
pub const MMUEXT_TLB_FLUSH_LOCAL: u32 = 6;
/// Flushes one address from this vcpu's TLB. Argument: `linear_addr`.
pub const MMUEXT_INVLPG_LOCAL: u32 = 7;
/// Flushes the TLBs of the vcpus in `vcpumask`.
pub const MMUEXT_TLB_FLUSH_MULTI: u32 = 8;
/// Flushes `linear_addr` from the TLBs of the vcpus in `vcpumask`.
pub const MMUEXT_INVLPG_MULTI: u32 = 9;
/// Flushes the TLBs of all vcpus.
pub const MMUEXT_TLB_FLUSH_ALL: u32 = 10;
/// Flushes `linear_addr` from the TLBs of all vcpus.
pub const MMUEXT_INVLPG_ALL: u32 = 11;
/// Writes back and invalidates this CPU's caches.
pub const MMUEXT_FLUSH_CACHE: u32 = 12;
/// Sets the local descriptor table: `linear_addr`, `nr_ents` entries.
pub const MMUEXT_SET_LDT: u32 = 13;
/// Loads the top-level table of user mode (64 bit). Argument: `mfn`, 0 for none.
pub const MMUEXT_NEW_USER_BASEPTR: u32 = 15;
/// Fills the frame `mfn` with zeros.
pub const MMUEXT_CLEAR_PAGE: u32 = 16;
/// Copies the frame `src_mfn` to `mfn`.
pub const MMUEXT_COPY_PAGE: u32 = 17;
/// Writes back and invalidates the caches of all CPUs.
pub const MMUEXT_FLUSH_CACHE_GLOBAL: u32 = 18;
/// Marks the 2 MiB page at `mfn` as a superpage.
pub const MMUEXT_MARK_SUPER: u32 = 19;
/// Takes back [`MMUEXT_MARK_SUPER`].
pub const MMUEXT_UNMARK_SUPER: u32 = 20;

/// `xen.h`, `struct mmuext_op`. One extended page-table operation; which arguments count stands at each command.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct MmuextOp {
    /// One of the `MMUEXT_` constants.
    pub cmd: u32,
    /// First argument.
    pub arg1: MmuextOpArg1,
    /// Second argument.
    pub arg2: MmuextOpArg2,
}

/// `xen.h`, `struct mmuext_op.arg1`. First argument of an extended page-table operation.
#[repr(C)]
#[derive(Clone, Copy)]
pub union MmuextOpArg1 {
    /// Frame to work on.
    pub mfn: XenPfn,
    /// Virtual address.
    pub linear_addr: usize,
}

/// `xen.h`, `struct mmuext_op.arg2`. Second argument of an extended page-table operation.
#[repr(C)]
#[derive(Clone, Copy)]
pub union MmuextOpArg2 {
    /// Number of descriptors, for [`MMUEXT_SET_LDT`].
    pub nr_ents: u32,
    /// Bitmap of vcpus.
    pub vcpumask: GuestHandle<u8>,
    /// Frame to copy from.
    pub src_mfn: XenPfn,
}

/// `xen.h`, `struct mmu_update`. One write to a page table or to the machine-to-physical table.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MmuUpdate {
    /// Machine address of the entry; the two low bits are one of the `MMU_` kinds.
    pub ptr: u64,
    /// New value of the entry.
    pub val: u64,
}
const_assert_eq!(size_of::<MmuUpdate>(), 16);

// Flags of `update_va_mapping`; above the low bits may stand the address of a vcpu bitmap.

/// Flushes nothing after `update_va_mapping`.
pub const UVMF_NONE: usize = 0;
/// Flushes the whole TLB.
pub const UVMF_TLB_FLUSH: usize = 1;
/// Flushes the one address.
pub const UVMF_INVLPG: usize = 2;
/// The bits that tell what is flushed.
pub const UVMF_FLUSHTYPE_MASK: usize = 3;
/// Flushes the vcpus of the bitmap whose address is in the flags.
pub const UVMF_MULTI: usize = 0;
/// Flushes this vcpu.
pub const UVMF_LOCAL: usize = 0;
/// Flushes all vcpus.
pub const UVMF_ALL: usize = 1 << 2;

// Commands of `console_io`.

/// Writes bytes to Xen's console: count, then buffer.
pub const CONSOLEIO_write: u32 = 0;
/// Reads bytes from Xen's console: room, then buffer; returns how many.
pub const CONSOLEIO_read: u32 = 1;

// Commands and types of `vm_assist`.

/// Switches an assist on.
pub const VMASST_CMD_enable: u32 = 0;
/// Switches an assist off.
pub const VMASST_CMD_disable: u32 = 1;
/// Assist: emulates segments that reach to 4 GiB (32 bit).
pub const VMASST_TYPE_4gb_segments: u32 = 0;
/// Assist: traps where [`VMASST_TYPE_4gb_segments`] steps in.
pub const VMASST_TYPE_4gb_segments_notify: u32 = 1;
/// Assist: emulates writes to page tables that are mapped read-only.
pub const VMASST_TYPE_writable_pagetables: u32 = 2;
/// Assist: top-level tables may lie above 4 GiB (32 bit).
pub const VMASST_TYPE_pae_extended_cr3: u32 = 3;
/// Assist: the I/O privilege level behaves as on hardware.
pub const VMASST_TYPE_architectural_iopl: u32 = 4;
/// Assist: Xen marks a runstate area while it writes it.
pub const VMASST_TYPE_runstate_update_flag: u32 = 5;
/// Assist: the machine-to-physical table is hidden from user mode.
pub const VMASST_TYPE_m2p_strict: u32 = 32;

// Domain ids with a meaning of their own.

/// First id that no domain can have.
pub const DOMID_FIRST_RESERVED: DomId = DomId(0x7FF0);
/// The calling domain.
pub const DOMID_SELF: DomId = DomId(0x7FF0);
/// Owner of the frames of devices.
pub const DOMID_IO: DomId = DomId(0x7FF1);
/// Owner of frames that Xen shares with guests.
pub const DOMID_XEN: DomId = DomId(0x7FF2);
/// Owner of frames that several domains share, copied on write.
pub const DOMID_COW: DomId = DomId(0x7FF3);
/// No domain.
pub const DOMID_INVALID: DomId = DomId(0x7FF4);
/// Xen's idle domain.
pub const DOMID_IDLE: DomId = DomId(0x7FFF);
/// The bits of a domain id.
pub const DOMID_MASK: DomId = DomId(0x7FFF);

/// `xen.h`, `struct multicall_entry`. One hypercall of a batch.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MulticallEntry {
    /// The hypercall: an [`Nr`].
    pub op: usize,
    /// What it returned; Xen writes it.
    pub result: usize,
    /// Its arguments.
    pub args: [usize; 6],
}
const_assert_eq!(size_of::<MulticallEntry>(), if cfg!(target_pointer_width = "64") { 64 } else { 32 });

/// `xen.h`, `struct vcpu_time_info`. System time of a vcpu as a function of the time-stamp counter. Xen writes it in place.
///
/// A reader takes `version`, then the rest, and starts over if `version` was odd or has changed.
#[repr(C)]
#[derive(Debug, Default)]
pub struct VcpuTimeInfo {
    /// Odd while Xen writes.
    pub version: AtomicU32,
    /// Unused.
    pub pad0: AtomicU32,
    /// Time-stamp counter at the last update.
    pub tsc_timestamp: AtomicU64,
    /// Nanoseconds since boot of the host at `tsc_timestamp`.
    pub system_time: AtomicU64,
    /// Nanoseconds for one shifted tick, as a fraction of 2^32.
    pub tsc_to_system_mul: AtomicU32,
    /// Left shift of the tick count before the multiplication; right if negative.
    pub tsc_shift: AtomicI8,
    /// [`XEN_PVCLOCK_TSC_STABLE_BIT`], [`XEN_PVCLOCK_GUEST_STOPPED`].
    pub flags: AtomicU8,
    /// Unused.
    pub pad1: [AtomicU8; 2],
}
const_assert_eq!(size_of::<VcpuTimeInfo>(), 32);

/// Bit of [`VcpuTimeInfo::flags`]: the clock goes forward across vcpus.
pub const XEN_PVCLOCK_TSC_STABLE_BIT: u8 = 1 << 0;
/// Bit of [`VcpuTimeInfo::flags`]: the guest was stopped for a while.
pub const XEN_PVCLOCK_GUEST_STOPPED: u8 = 1 << 1;

/// `xen.h`, `struct vcpu_info`. What Xen and one vcpu share. Both write it in place.
#[repr(C)]
#[derive(Debug, Default)]
pub struct VcpuInfo {
    /// Not 0: an event may be pending. Xen sets it, the guest clears it before it scans.
    pub evtchn_upcall_pending: AtomicU8,
    /// Not 0: Xen doesn't enter the event callback. The guest's virtual interrupt flag, inverted.
    pub evtchn_upcall_mask: AtomicU8,
    /// Padding up to the next word.
    pub _pad: [AtomicU8; size_of::<usize>() - 2],
    /// Bit n: word n of [`SharedInfo::evtchn_pending`] may have a pending event for this vcpu.
    pub evtchn_pending_sel: AtomicUsize,
    /// The architecture's part.
    pub arch: ArchVcpuInfo,
    /// System time.
    pub time: VcpuTimeInfo,
}
const_assert_eq!(size_of::<VcpuInfo>(), 64);

/// `xen.h`, `struct shared_info`. The page that Xen and the whole domain share. Both write it in place.
#[repr(C)]
#[derive(Debug)]
pub struct SharedInfo {
    /// The first vcpus; others, and these if they choose, have theirs registered: [`crate::vcpu::VcpuRegisterVcpuInfo`].
    pub vcpu_info: [VcpuInfo; XEN_LEGACY_MAX_VCPUS],
    /// Two-level event channels: a bit for each port that is pending.
    pub evtchn_pending: [AtomicUsize; usize::BITS as usize],
    /// Two-level event channels: a bit for each port that is masked.
    pub evtchn_mask: [AtomicUsize; usize::BITS as usize],
    /// Version of the wall clock: odd while Xen writes.
    pub wc_version: AtomicU32,
    /// Seconds of 1970-01-01 00:00 UTC to the host's boot, low half.
    pub wc_sec: AtomicU32,
    /// Nanoseconds of the same.
    pub wc_nsec: AtomicU32,
    /// High half of `wc_sec`; a 32-bit guest has it in [`ArchSharedInfo`].
    #[cfg(target_pointer_width = "64")]
    pub wc_sec_hi: AtomicU32,
    /// The architecture's part.
    pub arch: ArchSharedInfo,
}
const_assert_eq!(size_of::<SharedInfo>(), if cfg!(target_pointer_width = "64") { 3136 } else { 2344 });

/// Longest command line in bytes, with the final 0.
pub const MAX_GUEST_CMDLINE: usize = 1024;

/// `xen.h`, `struct start_info`. What a PV guest finds at its start. The kernel may copy it; Xen doesn't write it while the
/// guest runs.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct StartInfo {
    /// `xen-<version>-<platform>`, ended by 0.
    pub magic: [u8; 32],
    /// Pages of the domain.
    pub nr_pages: usize,
    /// Machine address of the [`SharedInfo`] page.
    pub shared_info: usize,
    /// `SIF_` flags.
    pub flags: u32,
    /// Frame of the xenstore ring.
    pub store_mfn: XenPfn,
    /// Event channel of the xenstore ring.
    pub store_evtchn: Port,
    /// The console, by kind of domain.
    pub console: StartInfoConsole,
    /// Virtual address of the top-level page table.
    pub pt_base: usize,
    /// Frames of the first page tables.
    pub nr_pt_frames: usize,
    /// Virtual address of the list of the domain's frames, by pfn.
    pub mfn_list: usize,
    /// Virtual address of the first module, or its pfn by [`SIF_MOD_START_PFN`].
    pub mod_start: usize,
    /// Bytes of the module.
    pub mod_len: usize,
    /// Command line, ended by 0.
    pub cmd_line: [u8; MAX_GUEST_CMDLINE],
    /// First pfn of the frame list if it isn't mapped.
    pub first_p2m_pfn: usize,
    /// Frames of the frame list.
    pub nr_p2m_frames: usize,
}

/// `xen.h`, `struct start_info.console`. Where the console is.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_snake_case, reason = "the field has its C name")]
pub union StartInfoConsole {
    /// A guest's.
    pub domU: StartInfoConsoleDomU,
    /// That of dom0.
    pub dom0: StartInfoConsoleDom0,
}

/// `xen.h`, `struct start_info.console.domU`. A guest's console: a ring in memory.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StartInfoConsoleDomU {
    /// Frame of the [`crate::io::console::XenconsInterface`].
    pub mfn: XenPfn,
    /// Event channel of the ring.
    pub evtchn: Port,
}

/// `xen.h`, `struct start_info.console.dom0`. The console of dom0: the VGA state that Xen leaves.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StartInfoConsoleDom0 {
    /// Bytes from the start of [`StartInfo`] to a [`Dom0VgaConsoleInfo`].
    pub info_off: u32,
    /// Bytes of it.
    pub info_size: u32,
}

// Flags of `start_info`.

/// The domain is privileged.
pub const SIF_PRIVILEGED: u32 = 1 << 0;
/// The domain is the first one.
pub const SIF_INITDOMAIN: u32 = 1 << 1;
/// `mod_start` points to a list of [`XenMultibootModList`].
pub const SIF_MULTIBOOT_MOD: u32 = 1 << 2;
/// `mod_start` is a pfn.
pub const SIF_MOD_START_PFN: u32 = 1 << 3;
/// The toolstack understands a frame list that is linear in virtual memory.
pub const SIF_VIRT_P2M_4TOOLS: u32 = 1 << 4;
/// Power-management choices of Xen's command line.
pub const SIF_PM_MASK: u32 = 0xFF << 8;

/// `xen.h`, `struct xen_multiboot_mod_list`. One module for dom0.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XenMultibootModList {
    /// Address of the module's first byte.
    pub mod_start: u32,
    /// Address after its last.
    pub mod_end: u32,
    /// Address of its command line.
    pub cmdline: u32,
    /// Unused.
    pub pad: u32,
}

/// `xen.h`, `struct dom0_vga_console_info`. The state in which Xen leaves the display to dom0.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Dom0VgaConsoleInfo {
    /// One of the `XEN_VGATYPE_` constants.
    pub video_type: u8,
    /// What belongs to the type.
    pub u: Dom0VgaConsoleInfoU,
}

/// Display in text mode 3.
pub const XEN_VGATYPE_TEXT_MODE_3: u8 = 0x03;
/// Display with a linear frame buffer set by VESA.
pub const XEN_VGATYPE_VESA_LFB: u8 = 0x23;
/// Display with a linear frame buffer set by EFI.
pub const XEN_VGATYPE_EFI_LFB: u8 = 0x70;

/// `xen.h`, `struct dom0_vga_console_info.u`. The part of the display's state that its type decides.
#[repr(C)]
#[derive(Clone, Copy)]
pub union Dom0VgaConsoleInfoU {
    /// For [`XEN_VGATYPE_TEXT_MODE_3`].
    pub text_mode_3: VgaTextMode3,
    /// For the linear frame buffers.
    pub vesa_lfb: VgaVesaLfb,
}

/// `xen.h`, `struct dom0_vga_console_info.u.text_mode_3`. A display in text mode.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VgaTextMode3 {
    /// Lines of pixels of a character.
    pub font_height: u16,
    /// Column of the cursor.
    pub cursor_x: u16,
    /// Row of the cursor.
    pub cursor_y: u16,
    /// Rows of characters.
    pub rows: u16,
    /// Columns of characters.
    pub columns: u16,
}

/// `xen.h`, `struct dom0_vga_console_info.u.vesa_lfb`. A linear frame buffer.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VgaVesaLfb {
    /// Pixels of a line.
    pub width: u16,
    /// Lines.
    pub height: u16,
    /// Bytes from line to line.
    pub bytes_per_line: u16,
    /// Bits of a pixel.
    pub bits_per_pixel: u16,
    /// Physical address of the frame buffer, low half.
    pub lfb_base: u32,
    /// Size of the frame buffer in units of 64 KiB.
    pub lfb_size: u32,
    /// First bit of red.
    pub red_pos: u8,
    /// Bits of red.
    pub red_size: u8,
    /// First bit of green.
    pub green_pos: u8,
    /// Bits of green.
    pub green_size: u8,
    /// First bit of blue.
    pub blue_pos: u8,
    /// Bits of blue.
    pub blue_size: u8,
    /// First of the other bits.
    pub rsvd_pos: u8,
    /// How many others.
    pub rsvd_size: u8,
    /// VESA's global capabilities.
    pub gbl_caps: u32,
    /// VESA's attributes of the mode.
    pub mode_attrs: u16,
    /// Unused.
    pub pad: u16,
    /// Physical address of the frame buffer, high half.
    pub ext_lfb_base: u32,
}

/// `xen.h`, `xen_domain_handle_t`. A domain's UUID.
pub type XenDomainHandle = [u8; 16];
