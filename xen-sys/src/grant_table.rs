//! `grant_table.h`: grant tables, by which a domain lends its pages to another.

use core::mem::ManuallyDrop;
use core::sync::atomic::{AtomicU16, AtomicU32, AtomicU64};

use static_assertions::const_assert_eq;

use crate::{DomId, GrantHandle, GrantRef, GuestHandle, XenPfn};

/// `grant_table.h`, `struct grant_entry_v1`. One entry of a version 1 table. Both sides write it in place.
#[repr(C)]
#[derive(Debug, Default)]
pub struct GrantEntryV1 {
    /// `GTF_` bits. The guest writes it last, after a barrier.
    pub flags: AtomicU16,
    /// Domain that is allowed in.
    pub domid: AtomicU16,
    /// Frame that is lent; for a transfer, the frame received.
    pub frame: AtomicU32,
}

const_assert_eq!(size_of::<GrantEntryV1>(), 8);

/// First entries of the table that the toolstack fills.
pub const GNTTAB_NR_RESERVED_ENTRIES: u32 = 8;
/// Entry of the console ring.
pub const GNTTAB_RESERVED_CONSOLE: u32 = 0;
/// Entry of the xenstore ring.
pub const GNTTAB_RESERVED_XENSTORE: u32 = 1;

/// Type of an entry: grants nothing.
pub const GTF_invalid: u16 = 0;
/// Type of an entry: the domain may map and copy the frame.
pub const GTF_permit_access: u16 = 1;
/// Type of an entry: the domain may transfer a frame here.
pub const GTF_accept_transfer: u16 = 2;
/// Type of an entry: passes on a grant of a third domain (version 2).
pub const GTF_transitive: u16 = 3;
/// Mask of the type.
pub const GTF_type_mask: u16 = 3;
/// Flag of an access entry, set by the guest: no writing.
pub const GTF_readonly: u16 = 1 << 2;
/// Flag of an access entry, set by Xen: somebody has it mapped.
pub const GTF_reading: u16 = 1 << 3;
/// Flag of an access entry, set by Xen: somebody has it mapped for writing.
pub const GTF_writing: u16 = 1 << 4;
/// Flag of an access entry: PWT of the mapping's page-table entry.
pub const GTF_PWT: u16 = 1 << 5;
/// Flag of an access entry: PCD of the mapping's page-table entry.
pub const GTF_PCD: u16 = 1 << 6;
/// Flag of an access entry: PAT of the mapping's page-table entry.
pub const GTF_PAT: u16 = 1 << 7;
/// Flag of an access entry: lends part of a page, for copies only (version 2).
pub const GTF_sub_page: u16 = 1 << 8;
/// Flag of a transfer entry, set by Xen: a transfer is under way.
pub const GTF_transfer_committed: u16 = 1 << 2;
/// Flag of a transfer entry, set by Xen: `frame` is the new frame.
pub const GTF_transfer_completed: u16 = 1 << 3;

/// `grant_table.h`, `struct grant_entry_header`. Start of a version 2 entry.
#[repr(C)]
#[derive(Debug, Default)]
pub struct GrantEntryHeader {
    /// `GTF_` bits, without reading and writing: see [`GrantStatus`].
    pub flags: AtomicU16,
    /// Domain that is allowed in.
    pub domid: AtomicU16,
}

/// `grant_table.h`, `union grant_entry_v2`. One entry of a version 2 table. Both sides write it in place.
#[repr(C)]
pub union GrantEntryV2 {
    /// What all kinds begin with.
    pub hdr: ManuallyDrop<GrantEntryHeader>,
    /// A whole page.
    pub full_page: ManuallyDrop<GrantEntryV2FullPage>,
    /// Part of a page: [`GTF_sub_page`].
    pub sub_page: ManuallyDrop<GrantEntryV2SubPage>,
    /// A grant passed on: [`GTF_transitive`].
    pub transitive: ManuallyDrop<GrantEntryV2Transitive>,
}

/// `grant_table.h`, `union grant_entry_v2.full_page`. Version 2 entry for a whole page.
#[repr(C)]
#[derive(Debug, Default)]
pub struct GrantEntryV2FullPage {
    /// Start.
    pub hdr: GrantEntryHeader,
    /// Unused.
    pub pad0: AtomicU32,
    /// Frame that is lent.
    pub frame: AtomicU64,
}

/// `grant_table.h`, `union grant_entry_v2.sub_page`. Version 2 entry for part of a page.
#[repr(C)]
#[derive(Debug, Default)]
pub struct GrantEntryV2SubPage {
    /// Start.
    pub hdr: GrantEntryHeader,
    /// First byte that is lent.
    pub page_off: AtomicU16,
    /// Bytes that are lent.
    pub length: AtomicU16,
    /// Frame of which part is lent.
    pub frame: AtomicU64,
}

/// `grant_table.h`, `union grant_entry_v2.transitive`. Version 2 entry that passes on a grant.
#[repr(C)]
#[derive(Debug, Default)]
pub struct GrantEntryV2Transitive {
    /// Start.
    pub hdr: GrantEntryHeader,
    /// Domain that lends.
    pub trans_domid: AtomicU16,
    /// Unused.
    pub pad0: AtomicU16,
    /// Its grant.
    pub gref: AtomicU32,
}

const_assert_eq!(size_of::<GrantEntryV2>(), 16);

/// `grant_table.h`, `grant_status_t`. Who uses a version 2 entry: [`GTF_reading`], [`GTF_writing`]. Xen writes it in place.
#[repr(transparent)]
#[derive(Debug, Default)]
pub struct GrantStatus(pub AtomicU16);

/// Command: maps grants; [`GnttabMapGrantRef`].
pub const GNTTABOP_map_grant_ref: u32 = 0;
/// Command: unmaps grants; [`GnttabUnmapGrantRef`].
pub const GNTTABOP_unmap_grant_ref: u32 = 1;
/// Command: gives the table frames; [`GnttabSetupTable`].
pub const GNTTABOP_setup_table: u32 = 2;
/// Command: prints the table on Xen's console; [`GnttabDumpTable`].
pub const GNTTABOP_dump_table: u32 = 3;
/// Command: gives frames away; [`GnttabTransfer`].
pub const GNTTABOP_transfer: u32 = 4;
/// Command: copies between grants and own frames; [`GnttabCopy`].
pub const GNTTABOP_copy: u32 = 5;
/// Command: tells how large the table is; [`GnttabQuerySize`].
pub const GNTTABOP_query_size: u32 = 6;
/// Command: unmaps, and moves another page's mapping there; [`GnttabUnmapAndReplace`].
pub const GNTTABOP_unmap_and_replace: u32 = 7;
/// Command: chooses version 1 or 2; [`GnttabSetVersion`].
pub const GNTTABOP_set_version: u32 = 8;
/// Command: tells the frames of the version 2 status words; [`GnttabGetStatusFrames`].
pub const GNTTABOP_get_status_frames: u32 = 9;
/// Command: tells a domain's version; [`GnttabGetVersion`].
pub const GNTTABOP_get_version: u32 = 10;
/// Command: swaps two entries; [`GnttabSwapGrantRef`].
pub const GNTTABOP_swap_grant_ref: u32 = 11;
/// Command: cleans caches for a device (Arm); [`GnttabCacheFlush`].
pub const GNTTABOP_cache_flush: u32 = 12;

/// `grant_table.h`, `struct gnttab_map_grant_ref`. Argument of [`GNTTABOP_map_grant_ref`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GnttabMapGrantRef {
    /// Virtual address to map at, or machine address of the entry with [`GNTMAP_contains_pte`].
    pub host_addr: u64,
    /// `GNTMAP_` bits.
    pub flags: u32,
    /// Grant to map.
    pub r#ref: GrantRef,
    /// Domain that granted it.
    pub dom: DomId,
    /// Out: one of the `GNTST_` constants.
    pub status: i16,
    /// Out: handle of the mapping.
    pub handle: GrantHandle,
    /// Out: address for devices.
    pub dev_bus_addr: u64,
}

const_assert_eq!(size_of::<GnttabMapGrantRef>(), 32);

/// `grant_table.h`, `struct gnttab_unmap_grant_ref`. Argument of [`GNTTABOP_unmap_grant_ref`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GnttabUnmapGrantRef {
    /// As it was mapped; 0: leaves the host mapping.
    pub host_addr: u64,
    /// As it was returned; 0: leaves the device mapping.
    pub dev_bus_addr: u64,
    /// Mapping to end.
    pub handle: GrantHandle,
    /// Out: one of the `GNTST_` constants.
    pub status: i16,
}

const_assert_eq!(size_of::<GnttabUnmapGrantRef>(), 24);

/// `grant_table.h`, `struct gnttab_setup_table`. Argument of [`GNTTABOP_setup_table`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GnttabSetupTable {
    /// Domain whose table it is.
    pub dom: DomId,
    /// Frames the table shall have.
    pub nr_frames: u32,
    /// Out: one of the `GNTST_` constants.
    pub status: i16,
    /// Where Xen writes the frames' numbers.
    pub frame_list: GuestHandle<XenPfn>,
}

/// `grant_table.h`, `struct gnttab_dump_table`. Argument of [`GNTTABOP_dump_table`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GnttabDumpTable {
    /// Domain whose table it is.
    pub dom: DomId,
    /// Out: one of the `GNTST_` constants.
    pub status: i16,
}

/// `grant_table.h`, `struct gnttab_transfer`. Argument of [`GNTTABOP_transfer`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GnttabTransfer {
    /// Frame to give away.
    pub mfn: XenPfn,
    /// Domain that gets it.
    pub domid: DomId,
    /// Entry by which it accepts.
    pub r#ref: GrantRef,
    /// Out: one of the `GNTST_` constants.
    pub status: i16,
}

/// Flag of [`GnttabCopy`]: the source is a grant.
pub const GNTCOPY_source_gref: u16 = 1 << 0;
/// Flag of [`GnttabCopy`]: the destination is a grant.
pub const GNTCOPY_dest_gref: u16 = 1 << 1;

/// `grant_table.h`, `struct gnttab_copy`. Argument of [`GNTTABOP_copy`]. Neither side may cross the end of its page.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct GnttabCopy {
    /// Where to copy from.
    pub source: GnttabCopyPtr,
    /// Where to copy to.
    pub dest: GnttabCopyPtr,
    /// Bytes.
    pub len: u16,
    /// `GNTCOPY_` bits.
    pub flags: u16,
    /// Out: one of the `GNTST_` constants.
    pub status: i16,
}

/// `grant_table.h`, `struct gnttab_copy_ptr`. One side of a copy.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct GnttabCopyPtr {
    /// The page.
    pub u: GnttabCopyPtrU,
    /// Domain of the grant or of the frame.
    pub domid: DomId,
    /// First byte in the page.
    pub offset: u16,
}

/// `grant_table.h`, `struct gnttab_copy_ptr.u`. The page of one side of a copy.
#[repr(C)]
#[derive(Clone, Copy)]
pub union GnttabCopyPtrU {
    /// With the side's flag: a grant.
    pub r#ref: GrantRef,
    /// Without: a frame of the caller's.
    pub gmfn: XenPfn,
}

const_assert_eq!(size_of::<GnttabCopy>(), if cfg!(target_pointer_width = "64") { 40 } else { 24 });

/// `grant_table.h`, `struct gnttab_query_size`. Argument of [`GNTTABOP_query_size`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GnttabQuerySize {
    /// Domain whose table it is.
    pub dom: DomId,
    /// Out: frames of the table.
    pub nr_frames: u32,
    /// Out: frames it can have.
    pub max_nr_frames: u32,
    /// Out: one of the `GNTST_` constants.
    pub status: i16,
}

/// `grant_table.h`, `struct gnttab_unmap_and_replace`. Argument of [`GNTTABOP_unmap_and_replace`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GnttabUnmapAndReplace {
    /// As it was mapped.
    pub host_addr: u64,
    /// Address whose page is mapped there instead; its own mapping goes.
    pub new_addr: u64,
    /// Mapping to end.
    pub handle: GrantHandle,
    /// Out: one of the `GNTST_` constants.
    pub status: i16,
}

/// `grant_table.h`, `struct gnttab_set_version`. Argument of [`GNTTABOP_set_version`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GnttabSetVersion {
    /// In: the version wanted. Out: the version in use.
    pub version: u32,
}

/// `grant_table.h`, `struct gnttab_get_status_frames`. Argument of [`GNTTABOP_get_status_frames`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GnttabGetStatusFrames {
    /// Room of the list.
    pub nr_frames: u32,
    /// Domain whose table it is.
    pub dom: DomId,
    /// Out: one of the `GNTST_` constants.
    pub status: i16,
    /// Where Xen writes the frames' numbers.
    pub frame_list: GuestHandle<u64>,
}

/// `grant_table.h`, `struct gnttab_get_version`. Argument of [`GNTTABOP_get_version`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GnttabGetVersion {
    /// Domain asked about.
    pub dom: DomId,
    /// Padding.
    pub pad: u16,
    /// Out: its version.
    pub version: u32,
}

/// `grant_table.h`, `struct gnttab_swap_grant_ref`. Argument of [`GNTTABOP_swap_grant_ref`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GnttabSwapGrantRef {
    /// One entry.
    pub ref_a: GrantRef,
    /// The other.
    pub ref_b: GrantRef,
    /// Out: one of the `GNTST_` constants.
    pub status: i16,
}

/// `grant_table.h`, `struct gnttab_cache_flush`. Argument of [`GNTTABOP_cache_flush`].
#[repr(C)]
#[derive(Clone, Copy)]
pub struct GnttabCacheFlush {
    /// The page.
    pub a: GnttabCacheFlushA,
    /// First byte in it.
    pub offset: u16,
    /// Bytes.
    pub length: u16,
    /// `GNTTAB_CACHE_` bits.
    pub op: u32,
}

/// `grant_table.h`, `struct gnttab_cache_flush.a`. The page of a cache operation.
#[repr(C)]
#[derive(Clone, Copy)]
pub union GnttabCacheFlushA {
    /// Its address for devices.
    pub dev_bus_addr: u64,
    /// With [`GNTTAB_CACHE_SOURCE_GREF`]: a grant.
    pub r#ref: GrantRef,
}

/// Bit of [`GnttabCacheFlush`]: writes the cache back.
pub const GNTTAB_CACHE_CLEAN: u32 = 1 << 0;
/// Bit of [`GnttabCacheFlush`]: invalidates the cache.
pub const GNTTAB_CACHE_INVAL: u32 = 1 << 1;
/// Bit of [`GnttabCacheFlush`]: the page is named by a grant.
pub const GNTTAB_CACHE_SOURCE_GREF: u32 = 1 << 31;

/// Bit of a mapping: for devices.
pub const GNTMAP_device_map: u32 = 1 << 0;
/// Bit of a mapping: for the CPU.
pub const GNTMAP_host_map: u32 = 1 << 1;
/// Bit of a mapping: no writing.
pub const GNTMAP_readonly: u32 = 1 << 2;
/// Bit of a mapping: for user mode too.
pub const GNTMAP_application_map: u32 = 1 << 3;
/// Bit of a mapping: `host_addr` is the machine address of a page-table entry.
pub const GNTMAP_contains_pte: u32 = 1 << 4;
/// Bits of a mapping that go to the guest's own bits of the page-table entry.
pub const GNTMAP_guest_avail_mask: u32 = !0 << 16;

/// Status: done.
pub const GNTST_okay: i16 = 0;
/// Status: an error without a name.
pub const GNTST_general_error: i16 = -1;
/// Status: no such domain, or not allowed.
pub const GNTST_bad_domain: i16 = -2;
/// Status: no such grant, or not for the caller.
pub const GNTST_bad_gntref: i16 = -3;
/// Status: no such mapping.
pub const GNTST_bad_handle: i16 = -4;
/// Status: nothing can be, or is, mapped at the virtual address.
pub const GNTST_bad_virt_addr: i16 = -5;
/// Status: wrong device address.
pub const GNTST_bad_dev_addr: i16 = -6;
/// Status: the IOMMU has no room.
pub const GNTST_no_device_space: i16 = -7;
/// Status: not allowed.
pub const GNTST_permission_denied: i16 = -8;
/// Status: the frame isn't the domain's, or of the wrong kind.
pub const GNTST_bad_page: i16 = -9;
/// Status: the copy crosses a page's end.
pub const GNTST_bad_copy_arg: i16 = -10;
/// Status: the frame's address is too large for the receiver.
pub const GNTST_address_too_big: i16 = -11;
/// Status: not now; the caller may try again.
pub const GNTST_eagain: i16 = -12;
/// Status: no room for the bookkeeping.
pub const GNTST_no_space: i16 = -13;
