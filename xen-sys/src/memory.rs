//! `memory.h`: a domain's memory: reservations, the physical map, memory maps.

use static_assertions::const_assert_eq;

use crate::{DomId, GuestHandle, XenPfn};

/// Command: gives the domain frames; [`XenMemoryReservation`]. Returns how many extents.
pub const XENMEM_increase_reservation: u32 = 0;
/// Command: gives frames back; [`XenMemoryReservation`]. Returns how many extents.
pub const XENMEM_decrease_reservation: u32 = 1;
/// Command: returns the host's highest frame.
pub const XENMEM_maximum_ram_page: u32 = 2;
/// Command: returns a domain's pages; [`XenMemoryDomain`].
pub const XENMEM_current_reservation: u32 = 3;
/// Command: returns the pages a domain can have; [`XenMemoryDomain`].
pub const XENMEM_maximum_reservation: u32 = 4;
/// Command: tells the frames of the machine-to-physical table; [`XenMachphysMfnList`].
pub const XENMEM_machphys_mfn_list: u32 = 5;
/// Command: gives the domain frames at given pfns; [`XenMemoryReservation`].
pub const XENMEM_populate_physmap: u32 = 6;
/// Command: puts a frame into the physical map; [`XenAddToPhysmap`].
pub const XENMEM_add_to_physmap: u32 = 7;
/// Command: tells the domain's memory map; [`XenMemoryMap`].
pub const XENMEM_memory_map: u32 = 9;
/// Command: tells the host's memory map; [`XenMemoryMap`]. Privileged.
pub const XENMEM_machine_memory_map: u32 = 10;
/// Command: trades frames for others, as contiguous ones; [`XenMemoryExchange`].
pub const XENMEM_exchange: u32 = 11;
/// Command: tells where the machine-to-physical table is mapped; [`XenMachphysMapping`].
pub const XENMEM_machphys_mapping: u32 = 12;
/// Command: sets a domain's memory map; [`XenForeignMemoryMap`]. Privileged.
pub const XENMEM_set_memory_map: u32 = 13;
/// Command: returns a domain's highest pfn; [`XenMemoryDomain`].
pub const XENMEM_maximum_gpfn: u32 = 14;
/// Command: takes a frame out of the physical map; [`XenRemoveFromPhysmap`].
pub const XENMEM_remove_from_physmap: u32 = 15;
/// Command: sets the target of populate-on-demand; [`XenPodTarget`]. Privileged.
pub const XENMEM_set_pod_target: u32 = 16;
/// Command: tells the target of populate-on-demand; [`XenPodTarget`]. Privileged.
pub const XENMEM_get_pod_target: u32 = 17;
/// Command: puts several frames into the physical map; [`XenAddToPhysmapBatch`].
pub const XENMEM_add_to_physmap_batch: u32 = 23;
/// Command: [`XENMEM_machphys_mfn_list`] for the table of 32-bit guests.
pub const XENMEM_machphys_compat_mfn_list: u32 = 25;
/// Command: tells the domain's NUMA layout; [`XenVnumaTopologyInfo`].
pub const XENMEM_get_vnumainfo: u32 = 26;
/// Command: tells frames of another domain's resource; [`XenMemAcquireResource`].
pub const XENMEM_acquire_resource: u32 = 28;

/// Flag of a reservation: frames come when first used.
pub const XENMEMF_populate_on_demand: u32 = 1 << 16;
/// Flag of a reservation: only from the node named.
pub const XENMEMF_exact_node_request: u32 = 1 << 17;
/// Flag of a reservation: the node is a virtual one.
pub const XENMEMF_vnode: u32 = 1 << 18;

/// `memory.h`, `struct xen_memory_reservation`. Frames to be given, taken or traded.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XenMemoryReservation {
    /// Where the numbers of the extents' first frames are read or written.
    pub extent_start: GuestHandle<XenPfn>,
    /// How many extents.
    pub nr_extents: usize,
    /// Binary logarithm of an extent's frames.
    pub extent_order: u32,
    /// Bits of an address, NUMA node + 1 from bit 8, `XENMEMF_` flags.
    pub mem_flags: u32,
    /// Domain; [`DOMID_SELF`](crate::xen::DOMID_SELF) but for the privileged.
    pub domid: DomId,
}

const_assert_eq!(size_of::<XenMemoryReservation>(), if cfg!(target_pointer_width = "64") { 32 } else { 20 });

/// `memory.h`, `struct xen_memory_exchange`. Argument of [`XENMEM_exchange`]. Both sides have the same number of frames.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XenMemoryExchange {
    /// Frames given.
    pub r#in: XenMemoryReservation,
    /// Frames wanted.
    pub out: XenMemoryReservation,
    /// In: 0. Out: extents of `in` that were traded.
    pub nr_exchanged: usize,
}

/// `memory.h`, `struct xen_memory_domain`. Domain asked about.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XenMemoryDomain {
    /// The domain.
    pub domid: DomId,
}

/// `memory.h`, `struct xen_machphys_mfn_list`. Argument of [`XENMEM_machphys_mfn_list`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XenMachphysMfnList {
    /// Room of the list.
    pub max_extents: u32,
    /// The list: first frame of each 2 MiB of the table.
    pub extent_start: GuestHandle<XenPfn>,
    /// Out: how many were written.
    pub nr_extents: u32,
}

/// `memory.h`, `struct xen_machphys_mapping`. Argument of [`XENMEM_machphys_mapping`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XenMachphysMapping {
    /// Out: first address of the table.
    pub v_start: usize,
    /// Out: address after it.
    pub v_end: usize,
    /// Out: highest frame in it.
    pub max_mfn: usize,
}

/// Space: the page shared with Xen.
pub const XENMAPSPACE_shared_info: u32 = 0;
/// Space: frames of the grant table.
pub const XENMAPSPACE_grant_table: u32 = 1;
/// Space: frames of the domain.
pub const XENMAPSPACE_gmfn: u32 = 2;
/// Space: a range of frames of the domain.
pub const XENMAPSPACE_gmfn_range: u32 = 3;
/// Space: frames of another domain.
pub const XENMAPSPACE_gmfn_foreign: u32 = 4;
/// Space: registers of devices (Arm).
pub const XENMAPSPACE_dev_mmio: u32 = 5;

/// `memory.h`, `struct xen_add_to_physmap`. Argument of [`XENMEM_add_to_physmap`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XenAddToPhysmap {
    /// Domain whose map is changed.
    pub domid: DomId,
    /// Frames, for [`XENMAPSPACE_gmfn_range`].
    pub size: u16,
    /// One of the `XENMAPSPACE_` constants.
    pub space: u32,
    /// Index in the space.
    pub idx: usize,
    /// Place in the map.
    pub gpfn: XenPfn,
}

/// Bit of `idx` in [`XENMAPSPACE_grant_table`]: a frame of status words.
pub const XENMAPIDX_grant_table_status: u32 = 0x8000_0000;

/// `memory.h`, `struct xen_add_to_physmap_batch`. Argument of [`XENMEM_add_to_physmap_batch`].
#[repr(C)]
#[derive(Clone, Copy)]
pub struct XenAddToPhysmapBatch {
    /// Domain whose map is changed.
    pub domid: DomId,
    /// One of the `XENMAPSPACE_` constants.
    pub space: u16,
    /// How many frames.
    pub size: u16,
    /// What belongs to the space.
    pub u: XenAddToPhysmapBatchExtra,
    /// Indices in the space.
    pub idxs: GuestHandle<usize>,
    /// Places in the map.
    pub gpfns: GuestHandle<XenPfn>,
    /// Out: an error number for each.
    pub errs: GuestHandle<i32>,
}

/// `memory.h`, `union xen_add_to_physmap_batch_extra`. The part of [`XenAddToPhysmapBatch`] that the space decides.
#[repr(C)]
#[derive(Clone, Copy)]
pub union XenAddToPhysmapBatchExtra {
    /// For [`XENMAPSPACE_gmfn_foreign`]: the domain of the frames.
    pub foreign_domid: DomId,
    /// For the others: 0.
    pub res0: u16,
}

/// `memory.h`, `struct xen_remove_from_physmap`. Argument of [`XENMEM_remove_from_physmap`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XenRemoveFromPhysmap {
    /// Domain whose map is changed.
    pub domid: DomId,
    /// Place in the map.
    pub gpfn: XenPfn,
}

/// `memory.h`, `struct xen_memory_map`. Argument of [`XENMEM_memory_map`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XenMemoryMap {
    /// In: room. Out: how many entries.
    pub nr_entries: u32,
    /// E820 entries, 20 bytes each: address, size, type.
    pub buffer: GuestHandle<u8>,
}

/// `memory.h`, `struct xen_foreign_memory_map`. Argument of [`XENMEM_set_memory_map`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XenForeignMemoryMap {
    /// Domain that gets the map.
    pub domid: DomId,
    /// The map.
    pub map: XenMemoryMap,
}

/// `memory.h`, `struct xen_pod_target`. Argument of [`XENMEM_set_pod_target`] and [`XENMEM_get_pod_target`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XenPodTarget {
    /// In: pages wanted.
    pub target_pages: u64,
    /// Out: pages of the domain.
    pub tot_pages: u64,
    /// Out: pages that wait to be used.
    pub pod_cache_pages: u64,
    /// Out: pfns without a page.
    pub pod_entries: u64,
    /// The domain.
    pub domid: DomId,
}

/// `memory.h`, `struct xen_mem_acquire_resource`. Argument of [`XENMEM_acquire_resource`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XenMemAcquireResource {
    /// Domain whose resource it is.
    pub domid: DomId,
    /// One of the `XENMEM_resource_` types.
    pub r#type: u16,
    /// Which one, by type.
    pub id: u32,
    /// In: how many frames. Out, if 0 and no list: how many there are.
    pub nr_frames: u32,
    /// Must be 0.
    pub pad: u32,
    /// First frame of the resource.
    pub frame: u64,
    /// Where the frames' numbers, or in a translated domain their places, stand.
    pub frame_list: GuestHandle<XenPfn>,
}

/// Resource: pages of an I/O request server.
pub const XENMEM_resource_ioreq_server: u16 = 0;
/// Resource: pages of the grant table.
pub const XENMEM_resource_grant_table: u16 = 1;
/// Resource: pages of the processor trace.
pub const XENMEM_resource_vmtrace_buf: u16 = 2;
/// Which pages of the grant table: entries.
pub const XENMEM_resource_grant_table_id_shared: u32 = 0;
/// Which pages of the grant table: status words.
pub const XENMEM_resource_grant_table_id_status: u32 = 1;
/// First frame: the buffered requests.
pub const XENMEM_resource_ioreq_server_frame_bufioreq: u64 = 0;

/// `memory.h`, `struct xen_vmemrange`. Range of a NUMA node's memory.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XenVmemrange {
    /// First address.
    pub start: u64,
    /// Address after it.
    pub end: u64,
    /// Unused.
    pub flags: u32,
    /// Virtual node.
    pub nid: u32,
}

/// `memory.h`, `struct xen_vnuma_topology_info`. Argument of [`XENMEM_get_vnumainfo`].
#[repr(C)]
#[derive(Clone, Copy)]
pub struct XenVnumaTopologyInfo {
    /// The domain.
    pub domid: DomId,
    /// Unused.
    pub pad: u16,
    /// In: room. Out: virtual nodes.
    pub nr_vnodes: u32,
    /// In: room. Out: vcpus.
    pub nr_vcpus: u32,
    /// In: room. Out: ranges.
    pub nr_vmemranges: u32,
    /// Where the distances from node to node are written.
    pub vdistance: XenVnumaHandle<u32>,
    /// Where the node of each vcpu is written.
    pub vcpu_to_vnode: XenVnumaHandle<u32>,
    /// Where the ranges are written.
    pub vmemrange: XenVnumaHandle<XenVmemrange>,
}

/// `memory.h`, `struct xen_vnuma_topology_info.vdistance`. A handle in 64 bits.
#[repr(C)]
#[derive(Clone, Copy)]
pub union XenVnumaHandle<T> {
    /// The handle.
    pub h: GuestHandle<T>,
    /// Makes it 64 bits wide.
    pub pad: u64,
}
