//! `elfnote.h`: the notes, of owner `Xen`, by which a kernel's image tells the domain builder about itself.

/// Anything, as text.
pub const XEN_ELFNOTE_INFO: u32 = 0;
/// Virtual address of the entry point.
pub const XEN_ELFNOTE_ENTRY: u32 = 1;
/// Virtual address of the page that Xen fills with hypercall stubs.
pub const XEN_ELFNOTE_HYPERCALL_PAGE: u32 = 2;
/// Virtual address at which pfn 0 is mapped.
pub const XEN_ELFNOTE_VIRT_BASE: u32 = 3;
/// What to subtract from the image's physical addresses.
pub const XEN_ELFNOTE_PADDR_OFFSET: u32 = 4;
/// Xen's version that the kernel wants: `xen-3.0`.
pub const XEN_ELFNOTE_XEN_VERSION: u32 = 5;
/// Name of the operating system.
pub const XEN_ELFNOTE_GUEST_OS: u32 = 6;
/// Its version.
pub const XEN_ELFNOTE_GUEST_VERSION: u32 = 7;
/// Loader that the image wants: `generic`.
pub const XEN_ELFNOTE_LOADER: u32 = 8;
/// Whether a 32-bit kernel uses PAE: `yes`, `no`, `bimodal`.
pub const XEN_ELFNOTE_PAE_MODE: u32 = 9;
/// Names of features the kernel can use, or with `!` in front needs, as text, separated by vertical bars.
pub const XEN_ELFNOTE_FEATURES: u32 = 10;
/// Value `yes`: the loader puts the symbol table after the image.
pub const XEN_ELFNOTE_BSD_SYMTAB: u32 = 11;
/// Lowest virtual address that the hypervisor may take.
pub const XEN_ELFNOTE_HV_START_LOW: u32 = 12;
/// Mask and value by which a page-table entry shows a valid frame.
pub const XEN_ELFNOTE_L1_MFN_VALID: u32 = 13;
/// Not 0: the kernel understands a cancelled suspend.
pub const XEN_ELFNOTE_SUSPEND_CANCEL: u32 = 14;
/// Virtual address at which the frame list shall be mapped.
pub const XEN_ELFNOTE_INIT_P2M: u32 = 15;
/// Not 0: the module needn't be mapped; its address is a pfn.
pub const XEN_ELFNOTE_MOD_START_PFN: u32 = 16;
/// Bitmap of features the kernel can use.
pub const XEN_ELFNOTE_SUPPORTED_FEATURES: u32 = 17;
/// Physical address of the 32-bit entry point of a PVH kernel.
pub const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;
/// Highest note of a kernel.
pub const XEN_ELFNOTE_MAX: u32 = XEN_ELFNOTE_PHYS32_ENTRY;
/// Note of a crash dump: Xen's state.
pub const XEN_ELFNOTE_CRASH_INFO: u32 = 0x1000001;
/// Note of a crash dump: registers.
pub const XEN_ELFNOTE_CRASH_REGS: u32 = 0x1000002;
/// Note of a domain's dump: marks the format.
pub const XEN_ELFNOTE_DUMPCORE_NONE: u32 = 0x2000000;
/// Note of a domain's dump: header.
pub const XEN_ELFNOTE_DUMPCORE_HEADER: u32 = 0x2000001;
/// Note of a domain's dump: Xen's version.
pub const XEN_ELFNOTE_DUMPCORE_XEN_VERSION: u32 = 0x2000002;
/// Note of a domain's dump: version of the format.
pub const XEN_ELFNOTE_DUMPCORE_FORMAT_VERSION: u32 = 0x2000003;
