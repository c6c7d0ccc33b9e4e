//! `physdev.h`: physical interrupts, I/O privilege and PCI devices of a domain that has some.

use crate::{DomId, GuestHandle, XenPfn};

/// Command: tells whether an interrupt needs an end; [`PhysdevIrqStatusQuery`].
pub const PHYSDEVOP_irq_status_query: u32 = 5;
/// Command: sets the I/O privilege level; [`PhysdevSetIopl`].
pub const PHYSDEVOP_set_iopl: u32 = 6;
/// Command: sets the bitmap of allowed ports; [`PhysdevSetIobitmap`].
pub const PHYSDEVOP_set_iobitmap: u32 = 7;
/// Command: reads an I/O APIC register; [`PhysdevApic`].
pub const PHYSDEVOP_apic_read: u32 = 8;
/// Command: writes an I/O APIC register; [`PhysdevApic`].
pub const PHYSDEVOP_apic_write: u32 = 9;
/// Command: allocates a vector; [`PhysdevIrq`].
pub const PHYSDEVOP_alloc_irq_vector: u32 = 10;
/// Command: frees a vector; [`PhysdevIrq`].
pub const PHYSDEVOP_free_irq_vector: u32 = 11;
/// Command: ends an interrupt; [`PhysdevEoi`].
pub const PHYSDEVOP_eoi: u32 = 12;
/// Command: maps an interrupt into a domain; [`PhysdevMapPirq`].
pub const PHYSDEVOP_map_pirq: u32 = 13;
/// Command: takes it back; [`PhysdevUnmapPirq`].
pub const PHYSDEVOP_unmap_pirq: u32 = 14;
/// Command: adds a PCI device; [`PhysdevManagePci`].
pub const PHYSDEVOP_manage_pci_add: u32 = 15;
/// Command: removes a PCI device; [`PhysdevManagePci`].
pub const PHYSDEVOP_manage_pci_remove: u32 = 16;
/// Command: registers the bitmap of interrupts that need an end; [`PHYSDEVOP_eoi`] then unmasks too.
pub const PHYSDEVOP_pirq_eoi_gmfn_v1: u32 = 17;
/// Command: writes a device's interrupt messages anew; [`PhysdevRestoreMsi`].
pub const PHYSDEVOP_restore_msi: u32 = 19;
/// Command: adds a PCI function with its kind; [`PhysdevManagePciExt`].
pub const PHYSDEVOP_manage_pci_add_ext: u32 = 20;
/// Command: sets trigger and polarity; [`PhysdevSetupGsi`].
pub const PHYSDEVOP_setup_gsi: u32 = 21;
/// Command: allocates an interrupt number; [`PhysdevGetFreePirq`].
pub const PHYSDEVOP_get_free_pirq: u32 = 23;
/// Command: tells that a configuration window is reserved; [`PhysdevPciMmcfgReserved`].
pub const PHYSDEVOP_pci_mmcfg_reserved: u32 = 24;
/// Command: adds a PCI function; [`PhysdevPciDeviceAdd`].
pub const PHYSDEVOP_pci_device_add: u32 = 25;
/// Command: removes a PCI function; [`PhysdevPciDevice`].
pub const PHYSDEVOP_pci_device_remove: u32 = 26;
/// Command: [`PHYSDEVOP_restore_msi`] with a segment; [`PhysdevPciDevice`].
pub const PHYSDEVOP_restore_msi_ext: u32 = 27;
/// Command: registers the bitmap of interrupts that need an end; [`PhysdevPirqEoiGmfn`].
pub const PHYSDEVOP_pirq_eoi_gmfn_v2: u32 = 28;
/// Command: tells of resets of a debug port; [`PhysdevDbgpOp`].
pub const PHYSDEVOP_dbgp_op: u32 = 29;
/// Command: readies MSI-X of a device for another domain; [`PhysdevPciDevice`].
pub const PHYSDEVOP_prepare_msix: u32 = 30;
/// Command: takes [`PHYSDEVOP_prepare_msix`] back; [`PhysdevPciDevice`].
pub const PHYSDEVOP_release_msix: u32 = 31;

/// `physdev.h`, `struct physdev_eoi`. Argument of [`PHYSDEVOP_eoi`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PhysdevEoi {
    /// The interrupt.
    pub irq: u32,
}

/// `physdev.h`, `struct physdev_pirq_eoi_gmfn`. Argument of [`PHYSDEVOP_pirq_eoi_gmfn_v2`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PhysdevPirqEoiGmfn {
    /// Frame of the bitmap.
    pub gmfn: XenPfn,
}

/// `physdev.h`, `struct physdev_irq_status_query`. Argument of [`PHYSDEVOP_irq_status_query`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PhysdevIrqStatusQuery {
    /// The interrupt.
    pub irq: u32,
    /// Out: `XENIRQSTAT_` bits.
    pub flags: u32,
}

/// Bit of an interrupt's state: it needs [`PHYSDEVOP_eoi`].
pub const XENIRQSTAT_needs_eoi: u32 = 1 << 0;
/// Bit of an interrupt's state: other domains have it too.
pub const XENIRQSTAT_shared: u32 = 1 << 1;

/// `physdev.h`, `struct physdev_set_iopl`. Argument of [`PHYSDEVOP_set_iopl`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PhysdevSetIopl {
    /// Privilege level that may do I/O.
    pub iopl: u32,
}

/// `physdev.h`, `struct physdev_set_iobitmap`. Argument of [`PHYSDEVOP_set_iobitmap`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PhysdevSetIobitmap {
    /// A bit for each port that is not allowed.
    pub bitmap: GuestHandle<u8>,
    /// How many bits.
    pub nr_ports: u32,
}

/// `physdev.h`, `struct physdev_apic`. Argument of [`PHYSDEVOP_apic_read`] and [`PHYSDEVOP_apic_write`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PhysdevApic {
    /// Physical address of the I/O APIC.
    pub apic_physbase: usize,
    /// Register.
    pub reg: u32,
    /// Its value, in or out.
    pub value: u32,
}

/// `physdev.h`, `struct physdev_irq`. Argument of [`PHYSDEVOP_alloc_irq_vector`] and [`PHYSDEVOP_free_irq_vector`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PhysdevIrq {
    /// The interrupt.
    pub irq: u32,
    /// Its vector, in or out.
    pub vector: u32,
}

/// Kind of interrupt: message.
pub const MAP_PIRQ_TYPE_MSI: i32 = 0;
/// Kind of interrupt: line.
pub const MAP_PIRQ_TYPE_GSI: i32 = 1;
/// Kind of interrupt: unknown.
pub const MAP_PIRQ_TYPE_UNKNOWN: i32 = 2;
/// Kind of interrupt: message, with the segment in the high half of `bus`.
pub const MAP_PIRQ_TYPE_MSI_SEG: i32 = 3;
/// Kind of interrupt: several messages.
pub const MAP_PIRQ_TYPE_MULTI_MSI: i32 = 4;

/// `physdev.h`, `struct physdev_map_pirq`. Argument of [`PHYSDEVOP_map_pirq`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PhysdevMapPirq {
    /// Domain that gets it.
    pub domid: DomId,
    /// One of the `MAP_PIRQ_TYPE_` constants.
    pub r#type: i32,
    /// Line, or a negative number for a message.
    pub index: i32,
    /// In: number wanted, or negative. Out: number given.
    pub pirq: i32,
    /// PCI bus, and segment from bit 16.
    pub bus: i32,
    /// PCI device and function.
    pub devfn: i32,
    /// MSI-X entry, or how many messages.
    pub entry_nr: i32,
    /// Physical address of the MSI-X table, or 0.
    pub table_base: u64,
}

/// `physdev.h`, `struct physdev_unmap_pirq`. Argument of [`PHYSDEVOP_unmap_pirq`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PhysdevUnmapPirq {
    /// Domain that has it.
    pub domid: DomId,
    /// Its number there.
    pub pirq: i32,
}

/// `physdev.h`, `struct physdev_manage_pci`. Argument of [`PHYSDEVOP_manage_pci_add`] and [`PHYSDEVOP_manage_pci_remove`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PhysdevManagePci {
    /// PCI bus.
    pub bus: u8,
    /// PCI device and function.
    pub devfn: u8,
}

/// `physdev.h`, `struct physdev_restore_msi`. Argument of [`PHYSDEVOP_restore_msi`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PhysdevRestoreMsi {
    /// PCI bus.
    pub bus: u8,
    /// PCI device and function.
    pub devfn: u8,
}

/// `physdev.h`, `struct physdev_manage_pci_ext`. Argument of [`PHYSDEVOP_manage_pci_add_ext`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PhysdevManagePciExt {
    /// PCI bus.
    pub bus: u8,
    /// PCI device and function.
    pub devfn: u8,
    /// Not 0: an extended function.
    pub is_extfn: u32,
    /// Not 0: a virtual function.
    pub is_virtfn: u32,
    /// Its physical function.
    pub physfn: PhysdevManagePciExtPhysfn,
}

/// `physdev.h`, `struct physdev_manage_pci_ext.physfn`. Physical function of a virtual one.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PhysdevManagePciExtPhysfn {
    /// PCI bus.
    pub bus: u8,
    /// PCI device and function.
    pub devfn: u8,
}

/// `physdev.h`, `struct physdev_op`. Argument of the older [`PHYSDEV_OP_COMPAT`](crate::Nr::PHYSDEV_OP_COMPAT).
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PhysdevOp {
    /// One of the `PHYSDEVOP_` constants up to [`PHYSDEVOP_free_irq_vector`].
    pub cmd: u32,
    /// Argument of the command.
    pub u: PhysdevOpU,
}

/// `physdev.h`, `struct physdev_op.u`. Arguments of the older commands.
#[repr(C)]
#[derive(Clone, Copy)]
pub union PhysdevOpU {
    /// For [`PHYSDEVOP_irq_status_query`].
    pub irq_status_query: PhysdevIrqStatusQuery,
    /// For [`PHYSDEVOP_set_iopl`].
    pub set_iopl: PhysdevSetIopl,
    /// For [`PHYSDEVOP_set_iobitmap`].
    pub set_iobitmap: PhysdevSetIobitmap,
    /// For [`PHYSDEVOP_apic_read`] and [`PHYSDEVOP_apic_write`].
    pub apic_op: PhysdevApic,
    /// For [`PHYSDEVOP_alloc_irq_vector`] and [`PHYSDEVOP_free_irq_vector`].
    pub irq_op: PhysdevIrq,
}

/// `physdev.h`, `struct physdev_setup_gsi`. Argument of [`PHYSDEVOP_setup_gsi`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PhysdevSetupGsi {
    /// The line.
    pub gsi: i32,
    /// 0 edge, 1 level.
    pub triggering: u8,
    /// 0 active high, 1 active low.
    pub polarity: u8,
}

/// `physdev.h`, `struct physdev_get_free_pirq`. Argument of [`PHYSDEVOP_get_free_pirq`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PhysdevGetFreePirq {
    /// One of the `MAP_PIRQ_TYPE_` constants.
    pub r#type: i32,
    /// Out: the number.
    pub pirq: u32,
}

/// `physdev.h`, `struct physdev_pci_mmcfg_reserved`. Argument of [`PHYSDEVOP_pci_mmcfg_reserved`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PhysdevPciMmcfgReserved {
    /// Physical address of the window.
    pub address: u64,
    /// PCI segment.
    pub segment: u16,
    /// First bus.
    pub start_bus: u8,
    /// Last bus.
    pub end_bus: u8,
    /// [`XEN_PCI_MMCFG_RESERVED`] or 0.
    pub flags: u32,
}

/// Flag of [`PhysdevPciMmcfgReserved`]: reserved by the firmware.
pub const XEN_PCI_MMCFG_RESERVED: u32 = 1;

/// `physdev.h`, `struct physdev_pci_device_add`. Argument of [`PHYSDEVOP_pci_device_add`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PhysdevPciDeviceAdd {
    /// PCI segment.
    pub seg: u16,
    /// PCI bus.
    pub bus: u8,
    /// PCI device and function.
    pub devfn: u8,
    /// `XEN_PCI_DEV_` bits.
    pub flags: u32,
    /// Its physical function, with [`XEN_PCI_DEV_VIRTFN`].
    pub physfn: PhysdevPciDeviceAddPhysfn,
    /// One word after the structure with [`XEN_PCI_DEV_PXM`]: the proximity domain.
    pub optarr: [u32; 0],
}

/// `physdev.h`, `struct physdev_pci_device_add.physfn`. Physical function of a virtual one.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PhysdevPciDeviceAddPhysfn {
    /// PCI bus.
    pub bus: u8,
    /// PCI device and function.
    pub devfn: u8,
}

/// Flag of [`PhysdevPciDeviceAdd`]: an extended function.
pub const XEN_PCI_DEV_EXTFN: u32 = 1;
/// Flag of [`PhysdevPciDeviceAdd`]: a virtual function.
pub const XEN_PCI_DEV_VIRTFN: u32 = 2;
/// Flag of [`PhysdevPciDeviceAdd`]: the proximity domain follows.
pub const XEN_PCI_DEV_PXM: u32 = 4;

/// `physdev.h`, `struct physdev_pci_device`. A PCI function.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PhysdevPciDevice {
    /// PCI segment.
    pub seg: u16,
    /// PCI bus.
    pub bus: u8,
    /// PCI device and function.
    pub devfn: u8,
}

/// `physdev.h`, `struct physdev_dbgp_op`. Argument of [`PHYSDEVOP_dbgp_op`].
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PhysdevDbgpOp {
    /// [`PHYSDEVOP_DBGP_RESET_PREPARE`] or [`PHYSDEVOP_DBGP_RESET_DONE`].
    pub op: u8,
    /// [`PHYSDEVOP_DBGP_BUS_UNKNOWN`] or [`PHYSDEVOP_DBGP_BUS_PCI`].
    pub bus: u8,
    /// The device.
    pub u: PhysdevDbgpOpU,
}

/// `physdev.h`, `struct physdev_dbgp_op.u`. Device of a debug port.
#[repr(C)]
#[derive(Clone, Copy)]
pub union PhysdevDbgpOpU {
    /// For [`PHYSDEVOP_DBGP_BUS_PCI`].
    pub pci: PhysdevPciDevice,
}

/// Operation of [`PhysdevDbgpOp`]: a reset comes.
pub const PHYSDEVOP_DBGP_RESET_PREPARE: u8 = 1;
/// Operation of [`PhysdevDbgpOp`]: the reset is done.
pub const PHYSDEVOP_DBGP_RESET_DONE: u8 = 2;
/// Bus of [`PhysdevDbgpOp`]: unknown.
pub const PHYSDEVOP_DBGP_BUS_UNKNOWN: u8 = 0;
/// Bus of [`PhysdevDbgpOp`]: PCI.
pub const PHYSDEVOP_DBGP_BUS_PCI: u8 = 1;
/// Command of the older [`PhysdevOp`]: unmasks interrupts.
pub const PHYSDEVOP_IRQ_UNMASK_NOTIFY: u32 = 4;
