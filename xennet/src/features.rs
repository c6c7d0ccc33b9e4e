//! Negotiation: what the two ends tell each other through xenstore. No other file of this crate names a node.
//!
//! | node | writer | unit | default | meaning |
//! |---|---|---|---|---|
//! | `tx-ring-ref` | front | grant reference | – | the page of the ring that the front end sends on |
//! | `rx-ring-ref` | front | grant reference | – | the page of the ring that it receives on |
//! | `event-channel` | front | port of the front end's domain | – | the event channel of both rings, unbound |
//! | `request-rx-copy` | front | 0, 1 | 0 | received packets are copied into posted pages; without it, nothing works |
//! | `feature-rx-notify` | front | 0, 1 | 0 | it says when it has posted pages; without it, a back end can't wait for them |
//! | `feature-rx-copy` | back | 0, 1 | 0 | it can copy into posted pages |
//! | `feature-rx-flip` | back | 0, 1 | 0 | it can exchange pages: long gone, always 0 |
//! | `feature-sg` | both | 0, 1 | 0 | packets of several slots are taken |
//! | `feature-no-csum-offload` | both | 0, 1 | 0 | no packets without a TCP or UDP checksum over IPv4, please |
//! | `mac` | toolstack, in both directories | text | – | address of the front end's interface |
//! | `mtu` | toolstack, in the front end's directory | bytes | 1500 | longest payload that the network takes |

use core::fmt;
use core::str::FromStr;

use hypercall::{GrantRef, Port};
use xenbus::device::Device;
pub use xenbus::error::NegotiationError;
use xenbus::store::{Store, Tx};

/// An Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mac(pub [u8; 6]);

/// A text that is no Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoMac;

impl FromStr for Mac {
    type Err = NoMac;

    fn from_str(text: &str) -> Result<Self, NoMac> {
        let mut mac = [0; 6];
        let mut digits = text.split(':');
        for byte in &mut mac {
            let pair = digits.next().filter(|pair| pair.len() == 2 && !pair.starts_with('+')).ok_or(NoMac)?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| NoMac)?;
        }
        if digits.next().is_some() { Err(NoMac) } else { Ok(Self(mac)) }
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// Where the front end's rings are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rings {
    /// The page of the ring that it sends on.
    pub tx: GrantRef,
    /// The page of the ring that it receives on.
    pub rx: GrantRef,
    /// The event channel that it offers for both.
    pub port: Port,
}

/// What the front end's interface is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its address.
    pub mac: Mac,
    /// Longest payload that the network takes, in bytes, without the Ethernet header.
    pub mtu: u16,
    /// Packets of several slots may be sent; else none leaves one page.
    pub scatter_gather: bool,
}

/// What the back end has to know of the front end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Where its rings are.
    pub rings: Rings,
    /// It takes packets of several slots; else none may be longer than a page.
    pub scatter_gather: bool,
}

fn flag<S: Store>(device: &Device<S>, node: &'static str) -> Result<bool, NegotiationError> {
    match device.read_other_if_there(Tx::NONE, node)? {
        None | Some(0u32) => Ok(false),
        Some(1) => Ok(true),
        Some(other) => Err(NegotiationError::bad(node, other)),
    }
}

fn required<S: Store>(device: &Device<S>, node: &'static str) -> Result<(), NegotiationError> {
    if flag(device, node)? { Ok(()) } else { Err(NegotiationError::bad(node, 0)) }
}

/// Front end: tells where the rings are, and what it takes.
///
/// # Errors
/// [`NegotiationError`] if the store refuses.
pub fn offer_rings<S: Store>(device: &Device<S>, rings: Rings) -> Result<(), NegotiationError> {
    Ok(device.store().transaction(|tx| {
        device.write_own(tx, "tx-ring-ref", rings.tx.0)?;
        device.write_own(tx, "rx-ring-ref", rings.rx.0)?;
        device.write_own(tx, "event-channel", rings.port.0)?;
        device.write_own(tx, "request-rx-copy", 1)?;
        device.write_own(tx, "feature-rx-notify", 1)?;
        device.write_own(tx, "feature-sg", 1)?;
        device.write_own(tx, "feature-no-csum-offload", 1)
    })?)
}

/// Back end: learns where the rings are, and what the front end takes.
///
/// # Errors
/// [`NegotiationError`] if a node is not there, is garbage, or asks for what we don't do.
pub fn find_peer<S: Store>(device: &Device<S>) -> Result<Peer, NegotiationError> {
    let tx = GrantRef(device.read_other(Tx::NONE, "tx-ring-ref")?);
    let rx = GrantRef(device.read_other(Tx::NONE, "rx-ring-ref")?);
    let port: u32 = device.read_other(Tx::NONE, "event-channel")?;
    if port == 0 {
        return Err(NegotiationError::bad("event-channel", port));
    }
    required(device, "request-rx-copy")?;
    required(device, "feature-rx-notify")?;
    Ok(Peer { rings: Rings { tx, rx, port: Port(port) }, scatter_gather: flag(device, "feature-sg")? })
}

/// Back end: tells what it takes.
///
/// # Errors
/// [`NegotiationError`] if the store refuses.
pub fn offer<S: Store>(device: &Device<S>) -> Result<(), NegotiationError> {
    Ok(device.store().transaction(|tx| {
        device.write_own(tx, "feature-rx-copy", 1)?;
        device.write_own(tx, "feature-rx-flip", 0)?;
        device.write_own(tx, "feature-sg", 1)?;
        device.write_own(tx, "feature-no-csum-offload", 1)
    })?)
}

/// Front end: learns what its interface is.
///
/// # Errors
/// [`NegotiationError`] if a node is not there, is garbage, or the back end can't copy.
pub fn find_link<S: Store>(device: &Device<S>) -> Result<Link, NegotiationError> {
    required(device, "feature-rx-copy")?;
    let mac = mac(device)?.ok_or(NegotiationError::bad("mac", ""))?;
    let mtu = device.read_own_if_there(Tx::NONE, "mtu")?.unwrap_or(1500);
    Ok(Link { mac, mtu, scatter_gather: flag(device, "feature-sg")? })
}

/// Either end: returns the address of the front end's interface, if the toolstack has given one.
///
/// # Errors
/// [`NegotiationError`] if the store refuses, or the node is garbage.
pub fn mac<S: Store>(device: &Device<S>) -> Result<Option<Mac>, NegotiationError> {
    Ok(device.read_own_if_there(Tx::NONE, "mac")?)
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::*;

    #[test]
    fn an_address_reads_as_it_is_written() {
        let mac: Mac = "00:16:3e:AB:cd:ef".parse().unwrap();
        assert_eq!(mac, Mac([0, 0x16, 0x3e, 0xab, 0xcd, 0xef]));
        assert_eq!(mac.to_string().parse(), Ok(mac));
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in
            ["", "00:16:3e:ab:cd", "00:16:3e:ab:cd:ef:00", "0:16:3e:ab:cd:ef", "00:16:3e:ab:cd:+f", "00-16-3e-ab-cd-ef"]
        {
            assert_eq!(text.parse::<Mac>(), Err(NoMac), "{text:?}");
        }
    }
}
