//! `io/netif.h`: network devices: the transmit, receive and control rings.
//!
//! A packet is one slot or several, chained by `more_data`; after the first may stand slots of [`NetifExtraInfo`].

use static_assertions::const_assert_eq;

use crate::io::ring::ring_size;
use crate::{GrantRef, PAGE_SIZE, Wire};

/// `__CONST_RING_SIZE(netif_tx, 4096)`: slots of a transmit ring.
pub const NETIF_TX_RING_SIZE: usize = ring_size::<NetifTxRequest>(PAGE_SIZE);
/// `__CONST_RING_SIZE(netif_rx, 4096)`: slots of a receive ring.
pub const NETIF_RX_RING_SIZE: usize = ring_size::<NetifRxRequest>(PAGE_SIZE);
/// `__CONST_RING_SIZE(xen_netif_ctrl, 4096)`: slots of a control ring.
pub const XEN_NETIF_CTRL_RING_SIZE: usize = ring_size::<XenNetifCtrlRequest>(PAGE_SIZE);

/// Slots of one packet that every back end takes.
pub const XEN_NETIF_NR_SLOTS_MIN: usize = 18;
/// Longest packet in bytes that can be sent.
pub const XEN_NETIF_MAX_TX_SIZE: u32 = 0xFFFF;

/// Flag of a transmit request: the checksum of the protocol is to be filled in.
pub const NETTXF_csum_blank: u16 = 1 << 0;
/// Flag of a transmit request: the data needs no check.
pub const NETTXF_data_validated: u16 = 1 << 1;
/// Flag of a transmit request: the packet goes on in the next.
pub const NETTXF_more_data: u16 = 1 << 2;
/// Flag of a transmit request: extra information follows.
pub const NETTXF_extra_info: u16 = 1 << 3;

/// `io/netif.h`, `struct netif_tx_request`. Part of a packet to send.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetifTxRequest {
    /// Page that holds it.
    pub gref: GrantRef,
    /// First byte in the page.
    pub offset: u16,
    /// `NETTXF_` bits.
    pub flags: u16,
    /// The front end's own number, repeated in the response.
    pub id: u16,
    /// Bytes: of the whole packet in its first slot, of the part in the others.
    pub size: u16,
}

const_assert_eq!(size_of::<NetifTxRequest>(), 12);
// SAFETY: integers without padding between them; the size is asserted above.
unsafe impl Wire for NetifTxRequest {}

/// `io/netif.h`, `struct netif_tx_response`. Outcome of a transmit request, or the answer to a slot of extra information.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetifTxResponse {
    /// That of the request.
    pub id: u16,
    /// One of the `NETIF_RSP_` constants.
    pub status: i16,
}

const_assert_eq!(size_of::<NetifTxResponse>(), 4);
// SAFETY: integers without padding between them; the size is asserted above.
unsafe impl Wire for NetifTxResponse {}

/// `io/netif.h`, `struct netif_rx_request`. Page to receive into.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetifRxRequest {
    /// The front end's own number, repeated in the response.
    pub id: u16,
    /// Padding; 0.
    pub pad: u16,
    /// The page.
    pub gref: GrantRef,
}

const_assert_eq!(size_of::<NetifRxRequest>(), 8);
// SAFETY: integers without padding between them; the size is asserted above.
unsafe impl Wire for NetifRxRequest {}

/// `io/netif.h`, `struct netif_rx_response`. Part of a packet received.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetifRxResponse {
    /// That of the request.
    pub id: u16,
    /// First byte in the page.
    pub offset: u16,
    /// `NETRXF_` bits.
    pub flags: u16,
    /// Bytes, or if negative one of the `NETIF_RSP_` constants.
    pub status: i16,
}

const_assert_eq!(size_of::<NetifRxResponse>(), 8);
// SAFETY: integers without padding between them; the size is asserted above.
unsafe impl Wire for NetifRxResponse {}

/// Flag of a receive response: the data needs no check.
pub const NETRXF_data_validated: u16 = 1 << 0;
/// Flag of a receive response: the checksum of the protocol isn't filled in.
pub const NETRXF_csum_blank: u16 = 1 << 1;
/// Flag of a receive response: the packet goes on in the next.
pub const NETRXF_more_data: u16 = 1 << 2;
/// Flag of a receive response: extra information follows.
pub const NETRXF_extra_info: u16 = 1 << 3;
/// Flag of a receive response: the older form of segmentation information.
pub const NETRXF_gso_prefix: u16 = 1 << 4;

/// Status: dropped.
pub const NETIF_RSP_DROPPED: i16 = -2;
/// Status: failed.
pub const NETIF_RSP_ERROR: i16 = -1;
/// Status: done.
pub const NETIF_RSP_OKAY: i16 = 0;
/// Status: no outcome of its own, as for extra information.
pub const NETIF_RSP_NULL: i16 = 1;

/// `io/netif.h`, `struct netif_extra_info`. Information about a packet, in a slot of its own.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct NetifExtraInfo {
    /// One of the `XEN_NETIF_EXTRA_TYPE_` constants.
    pub r#type: u8,
    /// [`XEN_NETIF_EXTRA_FLAG_MORE`] or 0.
    pub flags: u8,
    /// What belongs to the type.
    pub u: NetifExtraInfoU,
}

const_assert_eq!(size_of::<NetifExtraInfo>(), 8);
// SAFETY: two bytes, and a union each of whose fields is 6 bytes of integers without padding between them.
unsafe impl Wire for NetifExtraInfo {}

/// Kind of extra information: none; never sent.
pub const XEN_NETIF_EXTRA_TYPE_NONE: u8 = 0;
/// Kind of extra information: how to segment.
pub const XEN_NETIF_EXTRA_TYPE_GSO: u8 = 1;
/// Kind of extra information: a multicast group to join.
pub const XEN_NETIF_EXTRA_TYPE_MCAST_ADD: u8 = 2;
/// Kind of extra information: a multicast group to leave.
pub const XEN_NETIF_EXTRA_TYPE_MCAST_DEL: u8 = 3;
/// Kind of extra information: the packet's hash.
pub const XEN_NETIF_EXTRA_TYPE_HASH: u8 = 4;
/// One more than the last kind of extra information.
pub const XEN_NETIF_EXTRA_TYPE_MAX: u8 = 5;
/// Flag of [`NetifExtraInfo`]: another one follows.
pub const XEN_NETIF_EXTRA_FLAG_MORE: u8 = 1 << 0;
/// Kind of segmentation: none.
pub const XEN_NETIF_GSO_TYPE_NONE: u8 = 0;
/// Kind of segmentation: TCP over IPv4.
pub const XEN_NETIF_GSO_TYPE_TCPV4: u8 = 1;
/// Kind of segmentation: TCP over IPv6.
pub const XEN_NETIF_GSO_TYPE_TCPV6: u8 = 2;

/// `io/netif.h`, `struct netif_extra_info.u`. The part of [`NetifExtraInfo`] that its type decides.
#[repr(C)]
#[derive(Clone, Copy)]
pub union NetifExtraInfoU {
    /// For [`XEN_NETIF_EXTRA_TYPE_GSO`].
    pub gso: NetifExtraInfoGso,
    /// For [`XEN_NETIF_EXTRA_TYPE_MCAST_ADD`] and [`XEN_NETIF_EXTRA_TYPE_MCAST_DEL`].
    pub mcast: NetifExtraInfoMcast,
    /// For [`XEN_NETIF_EXTRA_TYPE_HASH`].
    pub hash: NetifExtraInfoHash,
    /// The bytes as they are.
    pub pad: [u16; 3],
}

/// `io/netif.h`, `struct netif_extra_info.u.gso`. How to segment.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetifExtraInfoGso {
    /// Payload bytes of each segment.
    pub size: u16,
    /// One of the `XEN_NETIF_GSO_TYPE_` constants.
    pub r#type: u8,
    /// Padding; 0.
    pub pad: u8,
    /// Unused; 0.
    pub features: u16,
}

/// `io/netif.h`, `struct netif_extra_info.u.mcast`. A multicast group.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetifExtraInfoMcast {
    /// Its Ethernet address.
    pub addr: [u8; 6],
}

/// `io/netif.h`, `struct netif_extra_info.u.hash`. Hash of a packet.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetifExtraInfoHash {
    /// Bit number of its `XEN_NETIF_CTRL_HASH_TYPE_`.
    pub r#type: u8,
    /// One of the `XEN_NETIF_CTRL_HASH_ALGORITHM_` constants.
    pub algorithm: u8,
    /// The hash.
    pub value: [u8; 4],
}

/// Bit of what is hashed: IPv4 addresses.
pub const XEN_NETIF_CTRL_HASH_TYPE_IPV4: u32 = 1 << 0;
/// Bit of what is hashed: IPv4 addresses and TCP ports.
pub const XEN_NETIF_CTRL_HASH_TYPE_IPV4_TCP: u32 = 1 << 1;
/// Bit of what is hashed: IPv6 addresses.
pub const XEN_NETIF_CTRL_HASH_TYPE_IPV6: u32 = 1 << 2;
/// Bit of what is hashed: IPv6 addresses and TCP ports.
pub const XEN_NETIF_CTRL_HASH_TYPE_IPV6_TCP: u32 = 1 << 3;
/// How to hash: not.
pub const XEN_NETIF_CTRL_HASH_ALGORITHM_NONE: u8 = 0;
/// How to hash: Toeplitz.
pub const XEN_NETIF_CTRL_HASH_ALGORITHM_TOEPLITZ: u8 = 1;

/// `io/netif.h`, `struct xen_netif_ctrl_request`. Request on the control ring.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XenNetifCtrlRequest {
    /// The front end's own number, repeated in the response.
    pub id: u16,
    /// One of the `XEN_NETIF_CTRL_TYPE_` constants.
    pub r#type: u16,
    /// What belongs to the type.
    pub data: [u32; 3],
}

const_assert_eq!(size_of::<XenNetifCtrlRequest>(), 16);
// SAFETY: integers without padding between them; the size is asserted above.
unsafe impl Wire for XenNetifCtrlRequest {}

/// Control request: none.
pub const XEN_NETIF_CTRL_TYPE_INVALID: u16 = 0;
/// Control request: tells what can be hashed.
pub const XEN_NETIF_CTRL_TYPE_GET_HASH_FLAGS: u16 = 1;
/// Control request: sets what is hashed.
pub const XEN_NETIF_CTRL_TYPE_SET_HASH_FLAGS: u16 = 2;
/// Control request: sets the key, in a granted page.
pub const XEN_NETIF_CTRL_TYPE_SET_HASH_KEY: u16 = 3;
/// Control request: tells the largest table of hash to queue.
pub const XEN_NETIF_CTRL_TYPE_GET_HASH_MAPPING_SIZE: u16 = 4;
/// Control request: sets the size of the table of hash to queue.
pub const XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING_SIZE: u16 = 5;
/// Control request: sets entries of the table, in a granted page.
pub const XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING: u16 = 6;
/// Control request: sets how to hash.
pub const XEN_NETIF_CTRL_TYPE_SET_HASH_ALGORITHM: u16 = 7;
/// Control request: tells how many grants can stay mapped.
pub const XEN_NETIF_CTRL_TYPE_GET_GREF_MAPPING_SIZE: u16 = 8;
/// Control request: has grants mapped to stay; [`XenNetifGref`].
pub const XEN_NETIF_CTRL_TYPE_ADD_GREF_MAPPING: u16 = 9;
/// Control request: has such grants unmapped; [`XenNetifGref`].
pub const XEN_NETIF_CTRL_TYPE_DEL_GREF_MAPPING: u16 = 10;

/// `io/netif.h`, `struct xen_netif_ctrl_response`. Outcome of a control request.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XenNetifCtrlResponse {
    /// That of the request.
    pub id: u16,
    /// That of the request.
    pub r#type: u16,
    /// One of the `XEN_NETIF_CTRL_STATUS_` constants.
    pub status: u32,
    /// What belongs to the type.
    pub data: u32,
}

const_assert_eq!(size_of::<XenNetifCtrlResponse>(), 12);
// SAFETY: integers without padding between them; the size is asserted above.
unsafe impl Wire for XenNetifCtrlResponse {}

/// Status of a control request: done.
pub const XEN_NETIF_CTRL_STATUS_SUCCESS: u32 = 0;
/// Status of a control request: unknown.
pub const XEN_NETIF_CTRL_STATUS_NOT_SUPPORTED: u32 = 1;
/// Status of a control request: wrong data.
pub const XEN_NETIF_CTRL_STATUS_INVALID_PARAMETER: u32 = 2;
/// Status of a control request: more data than there is room.
pub const XEN_NETIF_CTRL_STATUS_BUFFER_OVERFLOW: u32 = 3;

/// `io/netif.h`, `struct xen_netif_gref`. One grant to stay mapped, in a list on a granted page.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XenNetifGref {
    /// The grant.
    pub r#ref: GrantRef,
    /// [`XEN_NETIF_CTRLF_GREF_readonly`] or 0.
    pub flags: u16,
    /// Out: one of the `XEN_NETIF_CTRL_STATUS_` constants.
    pub status: u16,
}

const_assert_eq!(size_of::<XenNetifGref>(), 8);
// SAFETY: integers without padding between them; the size is asserted above.
unsafe impl Wire for XenNetifGref {}

/// Flag of [`XenNetifGref`]: map for reading alone.
pub const XEN_NETIF_CTRLF_GREF_readonly: u16 = 1 << 0;
