//! Negotiation: what the two ends tell each other through xenstore. No other file of this crate names a node.
//!
//! | node | writer | unit | default | meaning |
//! |---|---|---|---|---|
//! | `ring-ref` | front | grant reference | – | the page of the ring |
//! | `event-channel` | front | port of the front end's domain | – | the event channel, unbound |
//! | `protocol` | front | text | `x86_64-abi` | layout of the ring's slots |
//! | `sectors` | back | 512 bytes, whatever `sector-size` | – | size of the disk |
//! | `sector-size` | back | bytes | 512 | smallest unit of I/O |
//! | `physical-sector-size` | back | bytes | `sector-size` | best unit of I/O |
//! | `info` | back | bits | 0 | 1 CD-ROM, 2 removable, 4 read-only |
//! | `feature-flush-cache` | back | 0, 1 | 0 | flush is worth trying |
//! | `mode` | toolstack, in the back end's directory | text | `w` | with `w` in it, the disk may be written |

use alloc::string::String;

use xen_sys::io::blkif::{VDISK_CDROM, VDISK_READONLY, VDISK_REMOVABLE};
use xen_sys::io::protocols::XEN_IO_PROTO_ABI_X86_64;
use xenbus::device::Device;
use xenbus::error::NegotiationError;
use xenbus::store::{Store, Tx};

use hypercall::{GrantRef, Port};

/// What a disk is, as its back end says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Size, in sectors of 512 bytes.
    pub sectors: u64,
    /// Smallest unit of I/O in bytes: a power of two from 512 to 4096.
    pub sector_size: u32,
    /// Best unit of I/O in bytes.
    pub physical_sector_size: u32,
    /// It can't be written.
    pub read_only: bool,
    /// It is a CD-ROM.
    pub cdrom: bool,
    /// Its medium can be removed.
    pub removable: bool,
    /// Flush is worth trying.
    pub flush: bool,
}

/// Where the front end's ring is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ring {
    /// Its page.
    pub gref: GrantRef,
    /// The event channel that the front end offers.
    pub port: Port,
}

/// Front end: tells where the ring is.
///
/// # Errors
/// [`NegotiationError`] if the store refuses.
pub fn offer_ring<S: Store>(device: &Device<S>, ring: Ring) -> Result<(), NegotiationError> {
    Ok(device.store().transaction(|tx| {
        device.write_own(tx, "ring-ref", ring.gref.0)?;
        device.write_own(tx, "event-channel", ring.port.0)?;
        device.write_own(tx, "protocol", XEN_IO_PROTO_ABI_X86_64)
    })?)
}

/// Back end: learns where the ring is.
///
/// # Errors
/// [`NegotiationError`] if a node is not there, is garbage, or names a layout that we don't speak.
pub fn find_ring<S: Store>(device: &Device<S>) -> Result<Ring, NegotiationError> {
    let gref = GrantRef(device.read_other(Tx::NONE, "ring-ref")?);
    let port: u32 = device.read_other(Tx::NONE, "event-channel")?;
    if port == 0 {
        return Err(NegotiationError::bad("event-channel", port));
    }
    let protocol: Option<String> = device.read_other_if_there(Tx::NONE, "protocol")?;
    match protocol {
        Some(protocol) if protocol != XEN_IO_PROTO_ABI_X86_64 => Err(NegotiationError::bad("protocol", protocol)),
        _ => Ok(Ring { gref, port: Port(port) }),
    }
}

/// Back end: tells what the disk is.
///
/// # Errors
/// [`NegotiationError`] if the store refuses.
pub fn offer_disk<S: Store>(device: &Device<S>, disk: &Disk) -> Result<(), NegotiationError> {
    let info = [(disk.cdrom, VDISK_CDROM), (disk.removable, VDISK_REMOVABLE), (disk.read_only, VDISK_READONLY)];
    let info: u32 = info.iter().filter(|(on, _)| *on).map(|(_, bit)| bit).sum();
    Ok(device.store().transaction(|tx| {
        device.write_own(tx, "sectors", disk.sectors)?;
        device.write_own(tx, "sector-size", disk.sector_size)?;
        device.write_own(tx, "physical-sector-size", disk.physical_sector_size)?;
        device.write_own(tx, "info", info)?;
        device.write_own(tx, "feature-flush-cache", u32::from(disk.flush))
    })?)
}

/// Front end: learns what the disk is.
///
/// # Errors
/// [`NegotiationError`] if a node is not there, is garbage, or can't be.
pub fn find_disk<S: Store>(device: &Device<S>) -> Result<Disk, NegotiationError> {
    let sectors: u64 = device.read_other(Tx::NONE, "sectors")?;
    if sectors > u64::MAX / crate::SECTOR as u64 {
        return Err(NegotiationError::bad("sectors", sectors));
    }
    let sector_size = device.read_other_if_there(Tx::NONE, "sector-size")?.unwrap_or(crate::SECTOR as u32);
    if !sector_size.is_power_of_two() || !(512..=4096).contains(&sector_size) {
        return Err(NegotiationError::bad("sector-size", sector_size));
    }
    let physical = device.read_other_if_there(Tx::NONE, "physical-sector-size")?.unwrap_or(sector_size);
    if !physical.is_power_of_two() || physical < sector_size {
        return Err(NegotiationError::bad("physical-sector-size", physical));
    }
    let info: u32 = device.read_other_if_there(Tx::NONE, "info")?.unwrap_or(0);
    let flush: Option<u32> = device.read_other_if_there(Tx::NONE, "feature-flush-cache")?;
    Ok(Disk {
        sectors,
        sector_size,
        physical_sector_size: physical,
        read_only: info & VDISK_READONLY != 0,
        cdrom: info & VDISK_CDROM != 0,
        removable: info & VDISK_REMOVABLE != 0,
        flush: flush == Some(1),
    })
}

/// Back end: tells whether the toolstack lets this disk be written.
///
/// # Errors
/// [`NegotiationError`] if the store refuses.
pub fn may_write<S: Store>(device: &Device<S>) -> Result<bool, NegotiationError> {
    let mode: Option<String> = device.read_own_if_there(Tx::NONE, "mode")?;
    Ok(mode.is_none_or(|mode| mode.contains('w')))
}
