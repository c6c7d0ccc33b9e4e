//! `hvm/params.h`: numbered parameters of a hardware-virtualised guest: where its xenstore and console are, how events come.

/// Parameter: how Xen tells of events: kind in the top byte, details below.
pub const HVM_PARAM_CALLBACK_IRQ: u32 = 0;
/// Mask of the kind in [`HVM_PARAM_CALLBACK_IRQ`].
pub const HVM_PARAM_CALLBACK_IRQ_TYPE_MASK: u64 = 0xFF << 56;
/// Kind of [`HVM_PARAM_CALLBACK_IRQ`]: an interrupt line.
pub const HVM_PARAM_CALLBACK_TYPE_GSI: u32 = 0;
/// Kind of [`HVM_PARAM_CALLBACK_IRQ`]: a PCI device's interrupt pin.
pub const HVM_PARAM_CALLBACK_TYPE_PCI_INTX: u32 = 1;
/// Kind of [`HVM_PARAM_CALLBACK_IRQ`]: a vector.
pub const HVM_PARAM_CALLBACK_TYPE_VECTOR: u32 = 2;
/// Parameter: pfn of the xenstore ring.
pub const HVM_PARAM_STORE_PFN: u32 = 1;
/// Parameter: event channel of the xenstore ring.
pub const HVM_PARAM_STORE_EVTCHN: u32 = 2;
/// Parameter: pfn of the device model's requests.
pub const HVM_PARAM_IOREQ_PFN: u32 = 5;
/// Parameter: pfn of the device model's buffered requests.
pub const HVM_PARAM_BUFIOREQ_PFN: u32 = 6;
/// Parameter: which of Viridian's interfaces there are.
pub const HVM_PARAM_VIRIDIAN: u32 = 9;
/// Parameter: what becomes of missed timer ticks.
pub const HVM_PARAM_TIMER_MODE: u32 = 10;
/// Value of [`HVM_PARAM_TIMER_MODE`]: time stops with the guest.
pub const HVMPTM_delay_for_missed_ticks: u32 = 0;
/// Value of [`HVM_PARAM_TIMER_MODE`]: time goes on, ticks come late.
pub const HVMPTM_no_delay_for_missed_ticks: u32 = 1;
/// Value of [`HVM_PARAM_TIMER_MODE`]: missed ticks are lost.
pub const HVMPTM_no_missed_ticks_pending: u32 = 2;
/// Value of [`HVM_PARAM_TIMER_MODE`]: missed ticks become one.
pub const HVMPTM_one_missed_tick_pending: u32 = 3;
/// Parameter: whether there is a high-precision timer.
pub const HVM_PARAM_HPET_ENABLED: u32 = 11;
/// Parameter: address of an identity page table.
pub const HVM_PARAM_IDENT_PT: u32 = 12;
/// Parameter: ACPI sleep state.
pub const HVM_PARAM_ACPI_S_STATE: u32 = 14;
/// Parameter: address of a task-state segment.
pub const HVM_PARAM_VM86_TSS: u32 = 15;
/// Parameter: whether periodic timers are aligned.
pub const HVM_PARAM_VPT_ALIGN: u32 = 16;
/// Parameter: pfn of the console ring.
pub const HVM_PARAM_CONSOLE_PFN: u32 = 17;
/// Parameter: event channel of the console ring.
pub const HVM_PARAM_CONSOLE_EVTCHN: u32 = 18;
/// Parameter: where ACPI's ports are.
pub const HVM_PARAM_ACPI_IOPORTS_LOCATION: u32 = 19;
/// Parameter: pfn of the ring of paging events.
pub const HVM_PARAM_PAGING_RING_PFN: u32 = 27;
/// Parameter: pfn of the ring of monitor events.
pub const HVM_PARAM_MONITOR_RING_PFN: u32 = 28;
/// Parameter: pfn of the ring of sharing events.
pub const HVM_PARAM_SHARING_RING_PFN: u32 = 29;
/// Parameter: the shutdown reason that a triple fault stands for.
pub const HVM_PARAM_TRIPLE_FAULT_REASON: u32 = 31;
/// Parameter: first pfn for the pages of I/O request servers.
pub const HVM_PARAM_IOREQ_SERVER_PFN: u32 = 32;
/// Parameter: how many such pages there are.
pub const HVM_PARAM_NR_IOREQ_SERVER_PAGES: u32 = 33;
/// Parameter: address of the generation id.
pub const HVM_PARAM_VM_GENERATION_ID_ADDR: u32 = 34;
/// Parameter: whether there may be alternate physical maps.
pub const HVM_PARAM_ALTP2M: u32 = 35;
/// Value of [`HVM_PARAM_ALTP2M`]: none.
pub const XEN_ALTP2M_disabled: u32 = 0;
/// Value of [`HVM_PARAM_ALTP2M`]: for the guest and for others.
pub const XEN_ALTP2M_mixed: u32 = 1;
/// Value of [`HVM_PARAM_ALTP2M`]: for others alone.
pub const XEN_ALTP2M_external: u32 = 2;
/// Value of [`HVM_PARAM_ALTP2M`]: for others, and the guest may switch.
pub const XEN_ALTP2M_limited: u32 = 3;
/// Parameter: bytes of the x87 instruction pointer that are saved.
pub const HVM_PARAM_X87_FIP_WIDTH: u32 = 36;
/// Parameter: address and size of a task-state segment.
pub const HVM_PARAM_VM86_TSS_SIZED: u32 = 37;
/// Parameter: what machine checks can do.
pub const HVM_PARAM_MCA_CAP: u32 = 38;
/// Bit of [`HVM_PARAM_MCA_CAP`]: machine checks for one CPU.
pub const XEN_HVM_MCA_CAP_LMCE: u64 = 1 << 0;
/// Mask of [`HVM_PARAM_MCA_CAP`].
pub const XEN_HVM_MCA_CAP_MASK: u64 = XEN_HVM_MCA_CAP_LMCE;
/// How many parameters there are.
pub const HVM_NR_PARAMS: u32 = 39;
