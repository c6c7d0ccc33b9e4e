//! `io/pciif.h`: PCI devices handed to a guest: the page of one request at a time.

use static_assertions::const_assert_eq;

/// Version of the protocol, the xenstore node `magic`.
pub const XEN_PCI_MAGIC: &str = "7";

/// Bit of [`XenPciSharedinfo::flags`]: the front end's request waits or is in work.
pub const XEN_PCIF_active: u32 = 1 << 0;
/// Bit of [`XenPciSharedinfo::flags`]: an error handler of the front end runs.
pub const XEN_PCIB_AERHANDLER: u32 = 1 << 1;
/// Bit of [`XenPciSharedinfo::flags`]: the back end's error report waits.
pub const XEN_PCIB_active: u32 = 1 << 2;

/// Command: reads configuration space.
pub const XEN_PCI_OP_conf_read: u32 = 0;
/// Command: writes configuration space.
pub const XEN_PCI_OP_conf_write: u32 = 1;
/// Command: enables MSI.
pub const XEN_PCI_OP_enable_msi: u32 = 2;
/// Command: disables MSI.
pub const XEN_PCI_OP_disable_msi: u32 = 3;
/// Command: enables MSI-X.
pub const XEN_PCI_OP_enable_msix: u32 = 4;
/// Command: disables MSI-X.
pub const XEN_PCI_OP_disable_msix: u32 = 5;
/// Report: an error was found.
pub const XEN_PCI_OP_aer_detected: u32 = 6;
/// Report: go on.
pub const XEN_PCI_OP_aer_resume: u32 = 7;
/// Report: registers can be reached again.
pub const XEN_PCI_OP_aer_mmio: u32 = 8;
/// Report: the slot was reset.
pub const XEN_PCI_OP_aer_slotreset: u32 = 9;
/// Command: enables several MSI.
pub const XEN_PCI_OP_enable_multi_msi: u32 = 10;

/// Status: done.
pub const XEN_PCI_ERR_success: i32 = 0;
/// Status: no such device.
pub const XEN_PCI_ERR_dev_not_found: i32 = -1;
/// Status: no such place in configuration space.
pub const XEN_PCI_ERR_invalid_offset: i32 = -2;
/// Status: not allowed.
pub const XEN_PCI_ERR_access_denied: i32 = -3;
/// Status: not implemented.
pub const XEN_PCI_ERR_not_implemented: i32 = -4;
/// Status: failed.
pub const XEN_PCI_ERR_op_failed: i32 = -5;

/// MSI-X entries of one request.
pub const SH_INFO_MAX_VEC: usize = 128;

/// `io/pciif.h`, `struct xen_msix_entry`. One MSI-X entry.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XenMsixEntry {
    /// Interrupt.
    pub vector: u16,
    /// Entry of the device's table.
    pub entry: u16,
}

/// `io/pciif.h`, `struct xen_pci_op`. A request of the front end and its outcome.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XenPciOp {
    /// One of the `XEN_PCI_OP_` commands.
    pub cmd: u32,
    /// Out: one of the `XEN_PCI_ERR_` constants.
    pub err: i32,
    /// PCI segment as the guest sees it.
    pub domain: u32,
    /// PCI bus as the guest sees it.
    pub bus: u32,
    /// PCI device and function as the guest sees it.
    pub devfn: u32,
    /// Byte of configuration space.
    pub offset: i32,
    /// Bytes: 1, 2 or 4.
    pub size: i32,
    /// Value, in or out; for interrupts, how many or which.
    pub value: u32,
    /// For interrupts, more of the same.
    pub info: u32,
    /// Entries for [`XEN_PCI_OP_enable_msix`].
    pub msix_entries: [XenMsixEntry; SH_INFO_MAX_VEC],
}

/// `io/pciif.h`, `struct xen_pcie_aer_op`. An error report of the back end and its outcome.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XenPcieAerOp {
    /// One of the `XEN_PCI_OP_` reports.
    pub cmd: u32,
    /// Out: what the handler says.
    pub err: i32,
    /// PCI segment as the guest sees it.
    pub domain: u32,
    /// PCI bus as the guest sees it.
    pub bus: u32,
    /// PCI device and function as the guest sees it.
    pub devfn: u32,
}

/// `io/pciif.h`, `struct xen_pci_sharedinfo`. The shared page. Copied in parts; no reference is taken to it in place.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XenPciSharedinfo {
    /// Whose turn it is, for what.
    pub flags: u32,
    /// Request.
    pub op: XenPciOp,
    /// Error report.
    pub aer_op: XenPcieAerOp,
}

const_assert_eq!(size_of::<XenPciSharedinfo>(), 572);
