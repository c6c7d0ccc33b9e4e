//! `version.h`: what Xen tells about itself.

/// Command: returns the version, major in the high half, minor in the low. No argument.
pub const XENVER_version: u32 = 0;
/// Command: tells the rest of the version; [`XenExtraversion`].
pub const XENVER_extraversion: u32 = 1;
/// Command: tells who compiled it, with what; [`XenCompileInfo`].
pub const XENVER_compile_info: u32 = 2;
/// Command: tells the ABIs that guests may have; [`XenCapabilitiesInfo`].
pub const XENVER_capabilities: u32 = 3;
/// Command: tells the source's revision; [`XenChangesetInfo`].
pub const XENVER_changeset: u32 = 4;
/// Command: tells where Xen's range of addresses begins; [`XenPlatformParameters`].
pub const XENVER_platform_parameters: u32 = 5;
/// Command: tells features; [`XenFeatureInfo`].
pub const XENVER_get_features: u32 = 6;
/// Command: returns the size of a page in bytes. No argument.
pub const XENVER_pagesize: u32 = 7;
/// Command: tells the domain's UUID; [`XenDomainHandle`](crate::xen::XenDomainHandle).
pub const XENVER_guest_handle: u32 = 8;
/// Command: tells Xen's command line; [`XenCommandline`].
pub const XENVER_commandline: u32 = 9;
/// Command: tells the build id; [`XenBuildId`]. Returns its length.
pub const XENVER_build_id: u32 = 10;

/// `version.h`, `xen_extraversion_t`. Rest of the version, ended by 0: `.4-pre`.
pub type XenExtraversion = [u8; XEN_EXTRAVERSION_LEN];
/// Bytes of [`XenExtraversion`].
pub const XEN_EXTRAVERSION_LEN: usize = 16;

/// `version.h`, `struct xen_compile_info`. Who compiled Xen, with what. Each text ends by 0.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XenCompileInfo {
    /// Compiler.
    pub compiler: [u8; 64],
    /// User.
    pub compile_by: [u8; 16],
    /// The user's domain.
    pub compile_domain: [u8; 32],
    /// Date.
    pub compile_date: [u8; 32],
}

/// `version.h`, `xen_capabilities_info_t`. ABIs that guests may have, ended by 0: `xen-3.0-x86_64 hvm-3.0-x86_64`.
pub type XenCapabilitiesInfo = [u8; XEN_CAPABILITIES_INFO_LEN];
/// Bytes of [`XenCapabilitiesInfo`].
pub const XEN_CAPABILITIES_INFO_LEN: usize = 1024;

/// `version.h`, `xen_changeset_info_t`. The source's revision, ended by 0.
pub type XenChangesetInfo = [u8; XEN_CHANGESET_INFO_LEN];
/// Bytes of [`XenChangesetInfo`].
pub const XEN_CHANGESET_INFO_LEN: usize = 64;

/// `version.h`, `struct xen_platform_parameters`. Where Xen's range of addresses begins.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XenPlatformParameters {
    /// First address.
    pub virt_start: usize,
}

/// `version.h`, `struct xen_feature_info`. One word of the feature bitmap.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XenFeatureInfo {
    /// In: which word; below [`XENFEAT_NR_SUBMAPS`](crate::features::XENFEAT_NR_SUBMAPS).
    pub submap_idx: u32,
    /// Out: bits by the numbers of [`features`](crate::features).
    pub submap: u32,
}

/// `version.h`, `xen_commandline_t`. Xen's command line, ended by 0.
pub type XenCommandline = [u8; 1024];

/// `version.h`, `struct xen_build_id`. Header of the build id.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XenBuildId {
    /// In: room for the bytes.
    pub len: u32,
    /// The bytes follow.
    pub buf: [u8; 0],
}
