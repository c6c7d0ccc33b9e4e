//! `features.h`: bit numbers of what Xen offers to this guest; see [`XENVER_get_features`](crate::version::XENVER_get_features).

/// Feature: page tables may be mapped for writing, and need no hypercalls.
pub const XENFEAT_writable_page_tables: u32 = 0;
/// Feature: descriptor tables may be mapped for writing.
pub const XENFEAT_writable_descriptor_tables: u32 = 1;
/// Feature: the hypervisor translates frames; pfns take the place of mfns.
pub const XENFEAT_auto_translated_physmap: u32 = 2;
/// Feature: the kernel runs in the highest privilege.
pub const XENFEAT_supervisor_mode_kernel: u32 = 3;
/// Feature: a PAE top-level table may lie above 4 GiB.
pub const XENFEAT_pae_pgdir_above_4gb: u32 = 4;
/// Feature: [`MMU_PT_UPDATE_PRESERVE_AD`](crate::xen::MMU_PT_UPDATE_PRESERVE_AD) works.
pub const XENFEAT_mmu_pt_update_preserve_ad: u32 = 5;
/// Feature: `MMUEXT_CLEAR_PAGE` and `MMUEXT_COPY_PAGE` work.
pub const XENFEAT_highmem_assist: u32 = 6;
/// Feature: [`GNTMAP_guest_avail_mask`](crate::grant_table::GNTMAP_guest_avail_mask) works.
pub const XENFEAT_gnttab_map_avail_bits: u32 = 7;
/// Feature: events can come by a vector of a hardware-virtualised guest.
pub const XENFEAT_hvm_callback_vector: u32 = 8;
/// Feature: a hardware-virtualised guest may use Xen's clock.
pub const XENFEAT_hvm_safe_pvclock: u32 = 9;
/// Feature: a hardware-virtualised guest may have physical interrupts as events.
pub const XENFEAT_hvm_pirqs: u32 = 10;
/// Feature: the domain is dom0.
pub const XENFEAT_dom0: u32 = 11;
/// Feature: [`XENMEMF_vnode`](crate::memory::XENMEMF_vnode) works.
pub const XENFEAT_memory_op_vnode_supported: u32 = 13;
/// Feature: Arm's calling convention works.
pub const XENFEAT_ARM_SMCCC_supported: u32 = 14;
/// Feature: Linux in PVH mode may have its ACPI table anywhere.
pub const XENFEAT_linux_rsdp_unrestricted: u32 = 15;
/// Feature: frames and pfns differ.
pub const XENFEAT_not_direct_mapped: u32 = 16;
/// Feature: frames and pfns are the same.
pub const XENFEAT_direct_mapped: u32 = 17;
/// Words of the feature bitmap.
pub const XENFEAT_NR_SUBMAPS: u32 = 1;
