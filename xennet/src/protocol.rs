//! Wire values → checked values, once, at the door. Slots of the tx ring become a [`Packet`] or are [`Refused`] by a
//! [`Parser`], and feeding it the slots of [`Packet::emit`] gives the same packet back. A response on the rx ring becomes a
//! [`Fragment`] or a [`Fault`].

use core::fmt;

use xen_sys::GrantRef;
use xen_sys::io::netif::{
    NETIF_RSP_DROPPED, NETIF_RSP_ERROR, NETIF_RSP_NULL, NETIF_RSP_OKAY, NETRXF_csum_blank, NETRXF_extra_info,
    NETRXF_gso_prefix, NETRXF_more_data, NETTXF_csum_blank, NETTXF_extra_info, NETTXF_more_data, NetifRxResponse,
    NetifTxRequest, NetifTxResponse, XEN_NETIF_EXTRA_FLAG_MORE,
};

use crate::{MAX_PACKET, MAX_SLOTS, MIN_PACKET};

/// Bytes in a page, which no slot leaves.
const PAGE: usize = 4096;

/// A part of a packet, within one granted page: `offset` + `len` ≤ 4096.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Part {
    id: u16,
    gref: GrantRef,
    offset: u16,
    len: u16,
}

impl Part {
    /// Makes the part of `len` bytes from `offset` on in a page; `None` if it leaves the page. `id` is the front end's own
    /// number of the slot.
    pub const fn new(id: u16, gref: GrantRef, offset: u16, len: u16) -> Option<Self> {
        if offset as usize + len as usize <= PAGE { Some(Self { id, gref, offset, len }) } else { None }
    }

    /// Returns the number of its slot, which goes back with the response.
    pub const fn id(self) -> u16 {
        self.id
    }

    /// Returns the grant of its page.
    pub const fn gref(self) -> GrantRef {
        self.gref
    }

    /// Returns its first byte within the page.
    pub const fn offset(self) -> u16 {
        self.offset
    }

    /// Returns its length in bytes.
    pub const fn len(self) -> u16 {
        self.len
    }

    /// Tells whether it has no bytes, which the first part of a packet always has.
    pub const fn is_empty(self) -> bool {
        self.len == 0
    }
}

/// A packet that the front end sends: 1 to [`MAX_SLOTS`] parts, the first of which holds the whole Ethernet header; 14 to 65535
/// bytes together.
#[derive(Clone, Copy)]
pub struct Packet {
    parts: [Part; MAX_SLOTS],
    count: u8,
    len: u16,
}

const NO_PART: Part = Part { id: 0, gref: GrantRef(0), offset: 0, len: 0 };

impl Packet {
    /// Makes a packet.
    ///
    /// # Errors
    /// [`Why`] if it would be none.
    pub fn new(parts: impl IntoIterator<Item = Part>) -> Result<Self, Why> {
        let mut packet = Self { parts: [NO_PART; MAX_SLOTS], count: 0, len: 0 };
        for part in parts {
            *packet.parts.get_mut(usize::from(packet.count)).ok_or(Why::TooManySlots)? = part;
            packet.count += 1;
            packet.len = packet.len.checked_add(part.len).ok_or(Why::TooLong)?;
        }
        if usize::from(packet.len) < MIN_PACKET {
            return Err(Why::TooShort(packet.len));
        }
        if usize::from(packet.parts[0].len) < MIN_PACKET {
            return Err(Why::SplitHeader(packet.parts[0].len));
        }
        Ok(packet)
    }

    /// Returns the parts, in order.
    pub fn parts(&self) -> &[Part] {
        &self.parts[..usize::from(self.count)]
    }

    /// Gives the parts, one after another, their numbers and grants.
    pub fn address(&mut self, to: impl IntoIterator<Item = (u16, GrantRef)>) {
        for (part, (id, gref)) in self.parts.iter_mut().zip(to) {
            (part.id, part.gref) = (id, gref);
        }
    }

    /// Returns the length in bytes.
    pub const fn len(&self) -> usize {
        self.len as usize
    }

    /// Tells whether it has no bytes, which it always has.
    pub const fn is_empty(&self) -> bool {
        false
    }

    /// Writes the packet as it goes over the wire: the first slot has the length of the whole, the others their own.
    pub fn emit(&self) -> impl Iterator<Item = NetifTxRequest> {
        let last = usize::from(self.count) - 1;
        self.parts().iter().enumerate().map(move |(index, part)| NetifTxRequest {
            gref: part.gref,
            offset: part.offset,
            flags: if index < last { NETTXF_more_data } else { 0 },
            id: part.id,
            size: if index == 0 { self.len } else { part.len },
        })
    }
}

impl PartialEq for Packet {
    fn eq(&self, other: &Self) -> bool {
        self.parts() == other.parts()
    }
}

impl Eq for Packet {}

impl fmt::Debug for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.parts()).finish()
    }
}

/// What is wrong with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// More parts than a packet may have.
    TooManySlots,
    /// More bytes than a packet may have.
    TooLong,
    /// Fewer bytes than an Ethernet header.
    TooShort(u16),
    /// The first part does not hold the whole Ethernet header, but this many bytes.
    SplitHeader(u16),
    /// The parts are longer than the packet.
    Sizes {
        /// Bytes of the packet, as the first slot says.
        total: u16,
        /// Bytes of all other slots together.
        others: u32,
    },
    /// A part leaves its page.
    LeavesPage {
        /// Its first byte.
        offset: u16,
        /// Its bytes.
        len: u16,
    },
    /// Extra information comes with it, of which we offer none.
    ExtraInfo,
    /// Its checksum is to be filled in, which we don't offer.
    BlankChecksum,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooManySlots => write!(f, "a packet of more than {MAX_SLOTS} slots"),
            Self::TooLong => write!(f, "a packet of more than {MAX_PACKET} bytes"),
            Self::TooShort(len) => write!(f, "a packet of {len} bytes, where its header has {MIN_PACKET}"),
            Self::SplitHeader(len) => write!(f, "a packet whose first slot has {len} bytes, less than its header"),
            Self::Sizes { total, others } => write!(f, "a packet of {total} bytes with {others} in its later slots"),
            Self::LeavesPage { offset, len } => write!(f, "{len} bytes at {offset} leave their page"),
            Self::ExtraInfo => f.write_str("extra information, of which none was offered"),
            Self::BlankChecksum => f.write_str("a checksum left to us"),
        }
    }
}

/// Slots that make no packet. Each of their numbers gets an error for its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    ids: [u16; MAX_SLOTS + 1],
    count: u8,
    /// What is wrong; `None` if it is the rest of a packet that was refused before.
    pub why: Option<Why>,
}

impl Refused {
    /// Returns the numbers of the slots.
    pub fn ids(&self) -> &[u16] {
        &self.ids[..usize::from(self.count)]
    }
}

/// What a slot of the tx ring was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "each slot has to be answered"]
pub enum Fed {
    /// A part of a packet that goes on. It is answered with the packet.
    Part,
    /// The last part of this packet.
    Packet(Packet),
    /// Extra information, to be answered with [`Status::Null`].
    Extra,
    /// Wrong.
    Refused(Refused),
}

/// What the next slot has to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Expect {
    #[default]
    First,
    Extra,
    Part,
}

/// Follows the chains of slots of a ring, tx or rx: which slot is what is said by the flags of those before it. It has no
/// bound, for it holds nothing; who holds the parts bounds them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    expect: Expect,
    more: bool,
}

// The two rings have the same bits for the two flags that chains are made of.
const _: () = assert!(NETTXF_more_data == NETRXF_more_data && NETTXF_extra_info == NETRXF_extra_info);

impl Chain {
    /// Tells whether the next slot begins a packet.
    pub fn is_first(self) -> bool {
        self.expect == Expect::First
    }

    /// Tells whether the next slot is extra information.
    pub fn is_extra(self) -> bool {
        self.expect == Expect::Extra
    }

    /// Goes past a slot that is a part of a packet, with its flags. Extra information follows the first slot only.
    pub fn part(&mut self, flags: u16) {
        let extra = self.is_first() && flags & NETTXF_extra_info != 0;
        self.more = flags & NETTXF_more_data != 0;
        self.expect = if extra { Expect::Extra } else { self.after() };
    }

    /// Goes past a slot of extra information. Its second byte has the flags (struct netif_extra_info), which is the upper half of
    /// the first word of a slot of either ring.
    pub fn extra(&mut self, flags: u8) {
        if flags & XEN_NETIF_EXTRA_FLAG_MORE == 0 {
            self.expect = self.after();
        }
    }

    const fn after(self) -> Expect {
        if self.more { Expect::Part } else { Expect::First }
    }
}

/// Makes packets of the slots of the tx ring, which must be private copies. Total: each slot fed is accounted for in what is
/// returned, however the slots are chained, and no more than a packet's are held.
#[derive(Clone, Debug)]
pub struct Parser {
    chain: Chain,
    /// The slots of the packet so far; the first one's `len` is 0, for it has the length of all of them on the wire.
    parts: [Part; MAX_SLOTS],
    count: usize,
    /// Offset and length of a part are checked as the packet ends.
    total: u16,
    /// The packet was refused: the rest of it goes the same way.
    refusing: bool,
}

impl Default for Parser {
    fn default() -> Self {
        Self::new()
    }
}

impl Parser {
    /// Makes a parser that expects the first slot of a packet.
    pub const fn new() -> Self {
        let chain = Chain { expect: Expect::First, more: false };
        Self { chain, parts: [NO_PART; MAX_SLOTS], count: 0, total: 0, refusing: false }
    }

    /// Returns the numbers of the slots that are held for a packet that goes on.
    pub fn held(&self) -> impl Iterator<Item = u16> {
        self.parts[..self.count].iter().map(|part| part.id)
    }

    /// Takes the next slot.
    pub fn feed(&mut self, raw: &NetifTxRequest) -> Fed {
        if self.chain.is_extra() {
            let [_, flags, ..] = raw.gref.0.to_le_bytes();
            self.chain.extra(flags);
            return Fed::Extra;
        }
        let first = self.chain.is_first();
        self.chain.part(raw.flags);
        if first {
            (self.count, self.total, self.refusing) = (0, raw.size, false);
        } else if self.refusing {
            return self.refuse(raw.id, None);
        }
        match self.hold(raw, first) {
            Err(why) => self.refuse(raw.id, Some(why)),
            Ok(()) if !self.chain.is_first() => Fed::Part,
            Ok(()) => match self.finish() {
                Ok(packet) => {
                    self.count = 0;
                    Fed::Packet(packet)
                }
                Err(why) => {
                    self.count -= 1;
                    self.refuse(raw.id, Some(why))
                }
            },
        }
    }

    fn hold(&mut self, raw: &NetifTxRequest, first: bool) -> Result<(), Why> {
        if first && raw.flags & NETTXF_extra_info != 0 {
            return Err(Why::ExtraInfo);
        }
        if first && raw.flags & NETTXF_csum_blank != 0 {
            return Err(Why::BlankChecksum);
        }
        if first && usize::from(raw.size) < MIN_PACKET {
            return Err(Why::TooShort(raw.size));
        }
        let (offset, len) = (raw.offset, if first { 0 } else { raw.size });
        let part = Part::new(raw.id, raw.gref, offset, len).ok_or(Why::LeavesPage { offset, len })?;
        *self.parts.get_mut(self.count).ok_or(Why::TooManySlots)? = part;
        self.count += 1;
        Ok(())
    }

    fn finish(&mut self) -> Result<Packet, Why> {
        let parts = &mut self.parts[..self.count];
        let others = parts.iter().map(|part| u32::from(part.len)).sum();
        let own = u32::from(self.total).checked_sub(others).ok_or(Why::Sizes { total: self.total, others })?;
        let (offset, len) = (parts[0].offset, own as u16);
        parts[0] = Part::new(parts[0].id, parts[0].gref, offset, len).ok_or(Why::LeavesPage { offset, len })?;
        Packet::new(parts.iter().copied())
    }

    /// Refuses what is held, and the slot `id`.
    fn refuse(&mut self, id: u16, why: Option<Why>) -> Fed {
        let mut refused = Refused { ids: [0; MAX_SLOTS + 1], count: self.count as u8 + 1, why };
        for (place, part) in refused.ids.iter_mut().zip(&self.parts[..self.count]) {
            *place = part.id;
        }
        refused.ids[self.count] = id;
        self.count = 0;
        // What the chain goes on with, if it does, is of the same packet.
        self.refusing = true;
        Fed::Refused(refused)
    }
}

/// How a slot ended, as the wire says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Sent.
    Okay,
    /// Wrong, or it could not be read.
    Error,
    /// Dropped, for want of room.
    Dropped,
    /// The slot had no outcome of its own.
    Null,
    /// A value that the protocol doesn't have; it counts as an error.
    Unknown(i16),
}

impl Status {
    /// Returns its wire value (io/netif.h, NETIF_RSP_*).
    pub const fn wire(self) -> i16 {
        match self {
            Self::Okay => NETIF_RSP_OKAY,
            Self::Error => NETIF_RSP_ERROR,
            Self::Dropped => NETIF_RSP_DROPPED,
            Self::Null => NETIF_RSP_NULL,
            Self::Unknown(status) => status,
        }
    }

    /// Returns what a wire value says.
    pub const fn from_wire(status: i16) -> Self {
        match status {
            NETIF_RSP_OKAY => Self::Okay,
            NETIF_RSP_ERROR => Self::Error,
            NETIF_RSP_DROPPED => Self::Dropped,
            NETIF_RSP_NULL => Self::Null,
            _ => Self::Unknown(status),
        }
    }
}

/// Writes a response on the tx ring as it goes over the wire.
pub const fn respond(id: u16, status: Status) -> NetifTxResponse {
    NetifTxResponse { id, status: status.wire() }
}

/// A part of a received packet, within the page that was posted: `offset` + `len` ≤ 4096.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fragment {
    offset: u16,
    len: u16,
}

impl Fragment {
    /// Makes the part of `len` bytes from `offset` on; `None` if it leaves the page.
    pub const fn new(offset: u16, len: u16) -> Option<Self> {
        if offset as usize + len as usize <= PAGE { Some(Self { offset, len }) } else { None }
    }

    /// Returns its first byte within the page.
    pub const fn offset(self) -> usize {
        self.offset as usize
    }

    /// Returns its length in bytes.
    pub const fn len(self) -> usize {
        self.len as usize
    }

    /// Tells whether it has no bytes.
    pub const fn is_empty(self) -> bool {
        self.len == 0
    }

    /// Writes the response on the rx ring to the request `id`; `more` if the packet goes on in the next.
    pub const fn emit(self, id: u16, more: bool) -> NetifRxResponse {
        let flags = if more { NETRXF_more_data } else { 0 };
        NetifRxResponse { id, offset: self.offset, flags, status: self.len as i16 }
    }
}

/// What is wrong with a response on the rx ring. Its packet is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The back end says that it failed.
    Status(i16),
    /// It leaves its page.
    LeavesPage {
        /// Its first byte.
        offset: u16,
        /// Its bytes.
        len: u16,
    },
    /// It leaves something to us that we have not offered to do: [the flags](NetifRxResponse::flags).
    Flags(u16),
}

/// Checks a response on the rx ring that is no extra information. Whether the packet goes on, [`Chain`] knows.
///
/// # Errors
/// [`Fault`].
pub fn parse_received(raw: &NetifRxResponse) -> Result<Fragment, Fault> {
    let len = u16::try_from(raw.status).map_err(|_| Fault::Status(raw.status))?;
    if raw.flags & (NETRXF_csum_blank | NETRXF_extra_info | NETRXF_gso_prefix) != 0 {
        return Err(Fault::Flags(raw.flags));
    }
    Fragment::new(raw.offset, len).ok_or(Fault::LeavesPage { offset: raw.offset, len })
}

/// Writes the response on the rx ring that says that a packet was lost.
pub const fn lost(id: u16) -> NetifRxResponse {
    NetifRxResponse { id, offset: 0, flags: 0, status: NETIF_RSP_ERROR }
}

/// Tells whether a packet of so many bytes may be.
pub const fn is_packet(len: usize) -> bool {
    len >= MIN_PACKET && len <= MAX_PACKET
}
