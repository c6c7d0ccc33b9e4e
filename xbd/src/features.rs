//! Negotiation: what the two ends tell each other through xenstore. No other file of this crate names a node.
//!
//! What the back end writes before it waits for the front end ([`Offer`]):
//!
//! | node | unit | default | meaning |
//! |---|---|---|---|
//! | `multi-queue-max-queues` | queues | 1 | most queues |
//! | `max-ring-page-order` | log₂ of pages | 0 | largest ring |
//! | `max-ring-pages` | pages, a power of two | 1 | the same, in the older style |
//!
//! What the front end answers ([`Rings`]). Of the queues, if there is more than one, each has a directory `queue-N` with its ring and
//! event channel.
//!
//! | node | unit | default | meaning |
//! |---|---|---|---|
//! | `multi-queue-num-queues` | queues | 1 | how many there are |
//! | `ring-page-order` | log₂ of pages | 0 | size of the rings |
//! | `num-ring-pages` | pages | 1 | the same, in the older style |
//! | `ring-ref` | grant reference | – | the only page of a ring |
//! | `ring-ref0` … | grant reference | – | the pages of a ring of several |
//! | `event-channel` | port of the front end's domain | – | the event channel, unbound |
//! | `protocol` | text | `x86_64-abi` | layout of the ring's slots |
//! | `feature-persistent` | 0, 1 | 0 | the same grants are used again and again |
//!
//! What the back end tells when it is connected ([`Disk`], [`Abilities`]):
//!
//! | node | unit | default | meaning |
//! |---|---|---|---|
//! | `sectors` | 512 bytes, whatever `sector-size` | – | size of the disk; 0 for an empty drive |
//! | `sector-size` | bytes | 512 | smallest unit of I/O |
//! | `physical-sector-size` | bytes | `sector-size` | best unit of I/O |
//! | `info` | bits | 0 | 1 CD-ROM, 2 removable, 4 read-only |
//! | `feature-flush-cache` | 0, 1 | 0 | flush is worth trying |
//! | `feature-barrier` | 0, 1 | 0 | barrier is worth trying |
//! | `feature-discard` | 0, 1 | 0 | discard is worth trying |
//! | `discard-granularity` | bytes | `sector-size` | unit of discards |
//! | `discard-alignment` | bytes | 0 | first sector of a unit |
//! | `discard-secure` | 0, 1 | 0 | secure discard, too |
//! | `feature-persistent` | 0, 1 | 0 | grants stay mapped |
//! | `feature-max-indirect-segments` | segments | 0 | most segments of an indirect request |
//!
//! What the toolstack writes, into the back end's directory ([`Wishes`]) and into the front end's ([`trusted`]):
//!
//! | node | where | unit | default | meaning |
//! |---|---|---|---|---|
//! | `mode` | back | text | `w` | with `w` in it, the disk may be written |
//! | `discard-enable` | back | 0, 1 | 1 | discard may be offered |
//! | `device-type` | back | text | `disk` | `cdrom` is one |
//! | `removable` | back | 0, 1 | 0 | its medium can be taken out |
//! | `trusted` | front | 0, 1 | 1 | with 0, the back end gets to see nothing but what is in a request |

use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;
use core::str::FromStr;

use hypercall::{GrantRef, Port};
use xen_sys::io::blkif::{VDISK_CDROM, VDISK_READONLY, VDISK_REMOVABLE};
use xenbus::device::Device;
use xenbus::error::NegotiationError;
use xenbus::store::{Store, Tx};

use crate::protocol::{Layout, X86_32, X86_64};
use crate::{MAX_INDIRECT_SEGMENTS, MAX_RING_PAGES, SECTOR};

/// What a disk is, as its back end says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Size, in sectors of 512 bytes; 0 for an empty drive.
    pub sectors: u64,
    /// Smallest unit of I/O in bytes: a power of two from 512 to 4096.
    pub sector_size: u32,
    /// Best unit of I/O in bytes: a power of two, at least `sector_size`.
    pub physical_sector_size: u32,
    /// It can't be written.
    pub read_only: bool,
    /// It is a CD-ROM.
    pub cdrom: bool,
    /// Its medium can be removed.
    pub removable: bool,
    /// Flush is worth trying.
    pub flush: bool,
    /// Barrier is worth trying.
    pub barrier: bool,
    /// Discard is worth trying, in these units.
    pub discard: Option<Discard>,
}

/// How a disk forgets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Discard {
    /// The unit, in bytes: a multiple of the sector size. Parts of a unit may not be forgotten.
    pub granularity: u32,
    /// Where the first unit begins, in bytes: less than `granularity`, and a multiple of the sector size.
    pub alignment: u32,
    /// It can make what was there unreadable.
    pub secure: bool,
}

/// What a back end can do besides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Abilities {
    /// It keeps grants mapped.
    pub persistent: bool,
    /// Segments of the largest indirect request that it takes; 0 if it takes none. At most [`MAX_INDIRECT_SEGMENTS`].
    pub max_indirect_segments: u16,
}

/// What a back end lets the front end choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Most queues; at least 1.
    pub max_queues: u16,
    /// Pages of the largest ring: a power of two up to [`MAX_RING_PAGES`].
    pub max_ring_pages: u16,
}

impl Default for Offer {
    fn default() -> Self {
        Self { max_queues: 1, max_ring_pages: 1 }
    }
}

/// Where the front end's rings are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rings {
    /// Each queue's; at least one. All have equally many pages.
    pub queues: Vec<Ring>,
    /// Layout of their slots.
    pub abi: Abi,
    /// The same grants are used again and again.
    pub persistent: bool,
}

impl Rings {
    /// Names the ring of a front end with a single queue, and a single page in it.
    pub fn single(gref: GrantRef, port: Port) -> Self {
        Self { queues: vec![Ring { refs: vec![gref], port }], abi: Abi::NATIVE, persistent: false }
    }
}

/// Where a queue's ring is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ring {
    /// Its pages: a power of two of them, up to [`MAX_RING_PAGES`].
    pub refs: Vec<GrantRef>,
    /// The event channel that the front end offers.
    pub port: Port,
}

/// Layout of a ring's slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abi {
    /// That of 64-bit guests, [`X86_64`].
    X86_64,
    /// That of 32-bit guests, [`X86_32`].
    X86_32,
}

impl Abi {
    /// That of this build.
    pub const NATIVE: Self = if cfg!(target_pointer_width = "64") { Self::X86_64 } else { Self::X86_32 };

    const fn name(self) -> &'static str {
        match self {
            Self::X86_64 => X86_64::NAME,
            Self::X86_32 => X86_32::NAME,
        }
    }
}

impl fmt::Display for Abi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What the toolstack wants of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wishes {
    /// It may be written.
    pub write: bool,
    /// Discard may be offered.
    pub discard: bool,
    /// It is a CD-ROM.
    pub cdrom: bool,
    /// Its medium can be taken out.
    pub removable: bool,
}

/// Back end: tells what the front end may choose.
///
/// # Errors
/// [`NegotiationError`] if the store refuses.
pub fn make_offer<S: Store>(device: &Device<S>, offer: Offer) -> Result<(), NegotiationError> {
    Ok(device.store().transaction(|tx| {
        device.write_own(tx, "multi-queue-max-queues", offer.max_queues)?;
        device.write_own(tx, "max-ring-page-order", offer.max_ring_pages.ilog2())?;
        device.write_own(tx, "max-ring-pages", offer.max_ring_pages)
    })?)
}

/// Front end: learns what it may choose.
///
/// # Errors
/// [`NegotiationError`] if a node is garbage, or can't be.
pub fn find_offer<S: Store>(device: &Device<S>) -> Result<Offer, NegotiationError> {
    let read = |node| device.read_other_if_there::<u32>(Tx::NONE, node);
    let max_queues = match read("multi-queue-max-queues")? {
        // 0 is what some write who have but one.
        None | Some(0) => 1,
        // More than we could ever want.
        Some(queues) => u16::try_from(queues).unwrap_or(u16::MAX),
    };
    let most = MAX_RING_PAGES as u32;
    let max_ring_pages = match (read("max-ring-page-order")?, read("max-ring-pages")?) {
        (Some(order), _) => 1u32.checked_shl(order).unwrap_or(most).min(most),
        (None, Some(pages)) if pages.is_power_of_two() => pages.min(most),
        (None, Some(pages)) => return Err(NegotiationError::bad("max-ring-pages", pages)),
        (None, None) => 1,
    };
    Ok(Offer { max_queues, max_ring_pages: max_ring_pages as u16 })
}

/// Front end: tells where the rings are.
///
/// # Errors
/// [`NegotiationError`] if the store refuses.
pub fn offer_rings<S: Store>(device: &Device<S>, rings: &Rings) -> Result<(), NegotiationError> {
    let pages = rings.queues.first().map_or(1, |ring| ring.refs.len());
    Ok(device.store().transaction(|tx| {
        // What an earlier life with other rings has left would be misread.
        for node in ["multi-queue-num-queues", "ring-page-order", "num-ring-pages", "ring-ref", "event-channel"] {
            device.remove_own(tx, node)?;
        }
        if pages > 1 {
            device.write_own(tx, "ring-page-order", pages.ilog2())?;
            device.write_own(tx, "num-ring-pages", pages)?;
        }
        if rings.queues.len() > 1 {
            device.write_own(tx, "multi-queue-num-queues", rings.queues.len())?;
        }
        for (index, ring) in rings.queues.iter().enumerate() {
            let folder = folder(index, rings.queues.len());
            match ring.refs.as_slice() {
                [gref] => device.write_own(tx, &format!("{folder}ring-ref"), gref.0)?,
                refs => {
                    for (page, gref) in refs.iter().enumerate() {
                        device.write_own(tx, &format!("{folder}ring-ref{page}"), gref.0)?;
                    }
                }
            }
            device.write_own(tx, &format!("{folder}event-channel"), ring.port.0)?;
        }
        device.write_own(tx, "protocol", rings.abi)?;
        device.write_own(tx, "feature-persistent", u32::from(rings.persistent))
    })?)
}

/// Returns where the nodes of a queue stand: at the top, if there is but one.
fn folder(index: usize, queues: usize) -> String {
    if queues > 1 { format!("queue-{index}/") } else { String::new() }
}

/// Back end: learns where the rings are.
///
/// # Errors
/// [`NegotiationError`] if a node is not there, is garbage, was not `offer`ed, or names a layout that we don't speak.
pub fn find_rings<S: Store>(device: &Device<S>, offer: Offer) -> Result<Rings, NegotiationError> {
    let read = |node| device.read_other_if_there::<u32>(Tx::NONE, node);
    let queues = read("multi-queue-num-queues")?.unwrap_or(1);
    if !(1..=u32::from(offer.max_queues)).contains(&queues) {
        return Err(NegotiationError::bad("multi-queue-num-queues", queues));
    }
    let pages = match (read("ring-page-order")?, read("num-ring-pages")?) {
        (Some(order), _) => match 1u32.checked_shl(order) {
            Some(pages) if pages <= u32::from(offer.max_ring_pages) => pages,
            _ => return Err(NegotiationError::bad("ring-page-order", order)),
        },
        (None, Some(pages)) if pages.is_power_of_two() && pages <= u32::from(offer.max_ring_pages) => pages,
        (None, Some(pages)) => return Err(NegotiationError::bad("num-ring-pages", pages)),
        (None, None) => 1,
    };
    let protocol: Option<String> = device.read_other_if_there(Tx::NONE, "protocol")?;
    let abi = match protocol.as_deref() {
        // io/protocols.h: without it, that of this machine.
        None => Abi::NATIVE,
        Some(X86_64::NAME) => Abi::X86_64,
        Some(X86_32::NAME) => Abi::X86_32,
        Some(other) => return Err(NegotiationError::bad("protocol", other)),
    };
    let mut rings = Rings { queues: Vec::new(), abi, persistent: is_set(device, "feature-persistent")? };
    for index in 0..queues as usize {
        rings.queues.push(find_ring(device, &folder(index, queues as usize), pages)?);
    }
    Ok(rings)
}

fn find_ring<S: Store>(device: &Device<S>, folder: &str, pages: u32) -> Result<Ring, NegotiationError> {
    let mut refs = Vec::new();
    for page in 0..pages {
        let numbered = format!("{folder}ring-ref{page}");
        let gref = if pages > 1 {
            device.read_other(Tx::NONE, &numbered)?
        } else {
            // Some number even a single page.
            match device.read_other_if_there(Tx::NONE, &format!("{folder}ring-ref"))? {
                Some(gref) => gref,
                None => match device.read_other_if_there(Tx::NONE, &numbered)? {
                    Some(gref) => gref,
                    // For the error's sake.
                    None => device.read_other(Tx::NONE, &format!("{folder}ring-ref"))?,
                },
            }
        };
        refs.push(GrantRef(gref));
    }
    let port: u32 = device.read_other(Tx::NONE, &format!("{folder}event-channel"))?;
    if port == 0 {
        return Err(NegotiationError::bad("event-channel", port));
    }
    Ok(Ring { refs, port: Port(port) })
}

/// Back end: tells what the disk is.
///
/// # Errors
/// [`NegotiationError`] if the store refuses.
pub fn offer_disk<S: Store>(device: &Device<S>, disk: &Disk, abilities: Abilities) -> Result<(), NegotiationError> {
    let info = [(disk.cdrom, VDISK_CDROM), (disk.removable, VDISK_REMOVABLE), (disk.read_only, VDISK_READONLY)];
    let info: u32 = info.iter().filter(|(on, _)| *on).map(|(_, bit)| bit).sum();
    Ok(device.store().transaction(|tx| {
        device.write_own(tx, "sectors", disk.sectors)?;
        device.write_own(tx, "sector-size", disk.sector_size)?;
        device.write_own(tx, "physical-sector-size", disk.physical_sector_size)?;
        device.write_own(tx, "info", info)?;
        device.write_own(tx, "feature-flush-cache", u32::from(disk.flush))?;
        device.write_own(tx, "feature-barrier", u32::from(disk.barrier))?;
        device.write_own(tx, "feature-discard", u32::from(disk.discard.is_some()))?;
        if let Some(discard) = disk.discard {
            device.write_own(tx, "discard-granularity", discard.granularity)?;
            device.write_own(tx, "discard-alignment", discard.alignment)?;
            device.write_own(tx, "discard-secure", u32::from(discard.secure))?;
        }
        device.write_own(tx, "feature-persistent", u32::from(abilities.persistent))?;
        if abilities.max_indirect_segments == 0 {
            // io/blkif.h: who doesn't take them doesn't have the node.
            return device.remove_own(tx, "feature-max-indirect-segments");
        }
        device.write_own(tx, "feature-max-indirect-segments", abilities.max_indirect_segments)
    })?)
}

/// Front end: learns what the disk is.
///
/// # Errors
/// [`NegotiationError`] if a node is not there, is garbage, or can't be.
pub fn find_disk<S: Store>(device: &Device<S>) -> Result<Disk, NegotiationError> {
    let sectors: u64 = device.read_other(Tx::NONE, "sectors")?;
    if sectors > u64::MAX / SECTOR as u64 {
        return Err(NegotiationError::bad("sectors", sectors));
    }
    let sector_size = read_or(device, "sector-size", SECTOR as u32)?;
    if !sector_size.is_power_of_two() || !(512..=4096).contains(&sector_size) {
        return Err(NegotiationError::bad("sector-size", sector_size));
    }
    let physical = read_or(device, "physical-sector-size", sector_size)?;
    if !physical.is_power_of_two() || physical < sector_size {
        return Err(NegotiationError::bad("physical-sector-size", physical));
    }
    let info: u32 = read_or(device, "info", 0)?;
    Ok(Disk {
        sectors,
        sector_size,
        physical_sector_size: physical,
        read_only: info & VDISK_READONLY != 0,
        cdrom: info & VDISK_CDROM != 0,
        removable: info & VDISK_REMOVABLE != 0,
        flush: is_set(device, "feature-flush-cache")?,
        barrier: is_set(device, "feature-barrier")?,
        discard: find_discard(device, sector_size)?,
    })
}

fn find_discard<S: Store>(device: &Device<S>, sector_size: u32) -> Result<Option<Discard>, NegotiationError> {
    if !is_set(device, "feature-discard")? {
        return Ok(None);
    }
    // 0 is what Linux writes for a disk that doesn't say.
    let granularity = match read_or(device, "discard-granularity", 0u32)? {
        0 => sector_size,
        granularity if granularity.is_multiple_of(sector_size) => granularity,
        other => return Err(NegotiationError::bad("discard-granularity", other)),
    };
    let alignment = read_or(device, "discard-alignment", 0u32)?;
    if !alignment.is_multiple_of(sector_size) {
        return Err(NegotiationError::bad("discard-alignment", alignment));
    }
    Ok(Some(Discard { granularity, alignment: alignment % granularity, secure: is_set(device, "discard-secure")? }))
}

/// Front end: learns what the back end can do besides.
///
/// # Errors
/// [`NegotiationError`] if a node is garbage.
pub fn find_abilities<S: Store>(device: &Device<S>) -> Result<Abilities, NegotiationError> {
    let segments: u32 = read_or(device, "feature-max-indirect-segments", 0)?;
    Ok(Abilities {
        persistent: is_set(device, "feature-persistent")?,
        max_indirect_segments: segments.min(MAX_INDIRECT_SEGMENTS as u32) as u16,
    })
}

/// Back end: learns what the toolstack wants.
///
/// # Errors
/// [`NegotiationError`] if the store refuses, or a node is garbage.
pub fn find_wishes<S: Store>(device: &Device<S>) -> Result<Wishes, NegotiationError> {
    let text = |node| device.read_own_if_there::<String>(Tx::NONE, node);
    let number = |node| device.read_own_if_there::<u32>(Tx::NONE, node);
    Ok(Wishes {
        write: text("mode")?.is_none_or(|mode| mode.contains('w')),
        discard: number("discard-enable")? != Some(0),
        cdrom: text("device-type")?.is_some_and(|kind| kind == "cdrom"),
        removable: number("removable")? == Some(1),
    })
}

/// Front end: tells whether the toolstack trusts the back end.
///
/// # Errors
/// [`NegotiationError`] if the store refuses, or the node is garbage.
pub fn trusted<S: Store>(device: &Device<S>) -> Result<bool, NegotiationError> {
    Ok(device.read_own_if_there::<u32>(Tx::NONE, "trusted")? != Some(0))
}

/// Reads one of the other end's nodes.
fn read_or<S: Store, T: FromStr>(device: &Device<S>, node: &str, default: T) -> Result<T, NegotiationError> {
    Ok(device.read_other_if_there(Tx::NONE, node)?.unwrap_or(default))
}

/// Tells whether one of the other end's nodes is there, and not 0.
fn is_set<S: Store>(device: &Device<S>, node: &str) -> Result<bool, NegotiationError> {
    Ok(read_or(device, node, 0u32)? != 0)
}
