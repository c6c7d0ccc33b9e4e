//! The trait behind which the OS's network interface stands.

use hypercall::mem::Buffer;

/// The OS's side of an interface that we serve: what stands between it and the rest of the network, such as a bridge.
///
/// Packets are copied between the other end's pages and [`Packet`](Self::Packet)s, which are the OS's own, so what has come here is
/// out of the other end's reach.
pub trait Interface {
    /// The memory of one packet, in as many segments as it likes.
    type Packet: Buffer;

    /// Tells whether the OS's side is ready, so that the other end may be told that it is connected. When this changes, the owner
    /// calls [`Back::step`](super::Back::step). It waits for whatever makes it ready, be it the toolstack's script that puts it
    /// into a bridge.
    fn is_up(&self) -> bool {
        true
    }

    /// Returns memory for a packet of `len` bytes that the other end sends, 14 to 65535; or `None` if there is none: the packet is
    /// dropped.
    fn allocate(&mut self, len: usize) -> Option<Self::Packet>;

    /// Takes a packet that has come from the other end, in what [`allocate`](Self::allocate) returned. Nothing of it was looked at.
    fn deliver(&mut self, packet: Self::Packet);

    /// Takes back the memory of a packet whose way is over: one that was [sent](super::Back::send) or lost, or one that was
    /// allocated and could not be read.
    fn release(&mut self, packet: Self::Packet) {
        drop(packet);
    }
}
