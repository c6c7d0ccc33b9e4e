//! `xen_version`: what Xen tells about itself.

use core::ffi::CStr;

use xen_sys::Nr;
use xen_sys::features::XENFEAT_auto_translated_physmap;
use xen_sys::version::*;

use crate::error::{XenError, from_ret};
use crate::platform::Hypervisor;

/// Makes the hypercall with the address of a buffer, or 0.
///
/// # Safety
/// The buffer is the one of the command.
unsafe fn op<H: Hypervisor>(hypervisor: &H, cmd: u32, buffer: usize) -> Result<usize, XenError> {
    // SAFETY: the caller's.
    from_ret(unsafe { hypervisor.hypercall(Nr::XEN_VERSION, [cmd as usize, buffer, 0, 0, 0]) })
}

/// A text of Xen's, of at most `N` bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Text<const N: usize>([u8; N]);

impl<const N: usize> Text<N> {
    /// Returns the text up to its end mark, or up to what isn't UTF-8.
    pub fn as_str(&self) -> &str {
        let bytes = CStr::from_bytes_until_nul(&self.0).map_or(&self.0[..], CStr::to_bytes);
        bytes.utf8_chunks().next().map_or("", |chunk| chunk.valid())
    }
}

/// Asks for a text.
///
/// # Safety
/// Xen writes at most `N` bytes at this command.
unsafe fn text<H: Hypervisor, const N: usize>(hypervisor: &H, cmd: u32) -> Result<Text<N>, XenError> {
    let mut text = Text([0; N]);
    // SAFETY: the buffer has room for `N` bytes; the rest is the caller's.
    unsafe { op(hypervisor, cmd, text.0.as_mut_ptr().expose_provenance()) }?;
    Ok(text)
}

/// Returns Xen's version, major and minor: (4, 17).
///
/// # Errors
/// None known.
pub fn version<H: Hypervisor>(hypervisor: &H) -> Result<(u16, u16), XenError> {
    // SAFETY: no buffer.
    let version = unsafe { op(hypervisor, XENVER_version, 0) }?;
    Ok(((version >> 16) as u16, version as u16))
}

/// Returns what stands behind major and minor version, such as ".5".
///
/// # Errors
/// None known.
pub fn extraversion<H: Hypervisor>(hypervisor: &H) -> Result<Text<XEN_EXTRAVERSION_LEN>, XenError> {
    // SAFETY: the command's buffer has this length.
    unsafe { text(hypervisor, XENVER_extraversion) }
}

/// Returns the kinds of guests that this Xen runs, such as "xen-3.0-x86_64 hvm-3.0-x86_32".
///
/// # Errors
/// None known.
pub fn capabilities<H: Hypervisor>(hypervisor: &H) -> Result<Text<XEN_CAPABILITIES_INFO_LEN>, XenError> {
    // SAFETY: the command's buffer has this length.
    unsafe { text(hypervisor, XENVER_capabilities) }
}

/// Returns from which source this Xen was built.
///
/// # Errors
/// `EPERM` if the domain may not know.
pub fn changeset<H: Hypervisor>(hypervisor: &H) -> Result<Text<XEN_CHANGESET_INFO_LEN>, XenError> {
    // SAFETY: the command's buffer has this length.
    unsafe { text(hypervisor, XENVER_changeset) }
}

/// Returns the address at which Xen's part of the address space begins.
///
/// # Errors
/// None known.
pub fn platform_parameters<H: Hypervisor>(hypervisor: &H) -> Result<usize, XenError> {
    let mut arg = XenPlatformParameters { virt_start: 0 };
    // SAFETY: Xen writes the structure.
    unsafe { op(hypervisor, XENVER_platform_parameters, core::ptr::from_mut(&mut arg).expose_provenance()) }?;
    Ok(arg.virt_start)
}

/// Returns word `index` of the features that Xen offers: a bit for each `XENFEAT_` number.
///
/// # Errors
/// `EINVAL` for a word that there isn't.
pub fn get_features<H: Hypervisor>(hypervisor: &H, index: u32) -> Result<u32, XenError> {
    let mut arg = XenFeatureInfo { submap_idx: index, submap: 0 };
    // SAFETY: Xen reads and writes the structure.
    unsafe { op(hypervisor, XENVER_get_features, core::ptr::from_mut(&mut arg).expose_provenance()) }?;
    Ok(arg.submap)
}

/// Tells whether Xen offers a feature: a `XENFEAT_` number.
///
/// # Errors
/// As [`get_features`].
pub fn has_feature<H: Hypervisor>(hypervisor: &H, feature: u32) -> Result<bool, XenError> {
    Ok(get_features(hypervisor, feature / 32)? & 1 << (feature % 32) != 0)
}

/// Tells whether Xen translates the frame numbers of this domain, as in a PVH guest; page tables are the guest's own then. A Xen
/// that can't say is too old for it.
pub fn is_auto_translated<H: Hypervisor>(hypervisor: &H) -> bool {
    has_feature(hypervisor, XENFEAT_auto_translated_physmap).unwrap_or(false)
}

/// Returns Xen's page size in bytes.
///
/// # Errors
/// `EPERM` if the domain may not know.
pub fn page_size<H: Hypervisor>(hypervisor: &H) -> Result<usize, XenError> {
    // SAFETY: no buffer.
    unsafe { op(hypervisor, XENVER_pagesize, 0) }
}
