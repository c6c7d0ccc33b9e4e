//! The two rings of the front end, and their event channel.

use core::fmt;

use hypercall::event::Channel;
use hypercall::mem::Buffer;
use hypercall::{DomId, Port};
use xenbus::Domain;
use xenbus::ring::{Notify, RingError};

use super::FrontError;
use super::rx::{Received, Rx};
use super::tx::{Completion, SubmitError, Tx};
use crate::features::{Link, Rings};

/// Why the queue is out of use: mostly what the back end did to a ring that it may not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueError {
    /// The indices lie.
    Ring(RingError),
    /// The back end is gone, and the queue with it.
    Gone,
    /// A response to a slot that is not in flight.
    UnknownId(u16),
    /// A response on the rx ring that is not in the slot of its request.
    WrongSlot {
        /// The number of the request that was made in this slot.
        expected: u16,
        /// The number that the response has.
        claimed: u16,
    },
}

impl From<RingError> for QueueError {
    fn from(error: RingError) -> Self {
        Self::Ring(error)
    }
}

impl fmt::Display for QueueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ring(error) => error.fmt(f),
            Self::Gone => f.write_str("the back end is gone"),
            Self::UnknownId(id) => write!(f, "a response to slot {id}, which is not in flight"),
            Self::WrongSlot { expected, claimed } => {
                write!(f, "a received packet for page {claimed} in the slot of page {expected}")
            }
        }
    }
}

/// What the queue has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets submitted.
    pub tx_packets: u64,
    /// Bytes in them.
    pub tx_bytes: u64,
    /// Slots that they took.
    pub tx_slots: u64,
    /// Packets that the back end failed or dropped.
    pub tx_errors: u64,
    /// Packets received.
    pub rx_packets: u64,
    /// Bytes in them.
    pub rx_bytes: u64,
    /// Slots that they took.
    pub rx_slots: u64,
    /// Packets lost on the way in: failed by the back end, or malformed.
    pub rx_errors: u64,
    /// Responses whose page the back end still had mapped.
    pub still_mapped: u64,
    /// Events sent to the back end.
    pub notifications: u64,
}

/// Both rings with their event channel, the packets that are in flight, and the pages to receive into.
pub struct Queue<D: Domain, B: Buffer> {
    tx: Tx<D, B>,
    rx: Rx<D>,
    channel: Channel<D::Events>,
    broken: Option<QueueError>,
    counters: Counters,
}

impl<D: Domain, B: Buffer> Queue<D, B> {
    pub(super) fn new(domain: &D, peer: DomId) -> Result<Self, FrontError> {
        let tx = Tx::new(domain.grants(), peer)?;
        let mut rx = Rx::new(domain.grants(), peer)?;
        rx.post();
        // Nobody is there to be told: the back end looks at the ring when it comes.
        let _ = rx.publish();
        let channel = Channel::offer(domain.events(), peer)?;
        Ok(Self { tx, rx, channel, broken: None, counters: Counters::default() })
    }

    /// Returns where the rings are.
    pub(super) fn rings(&self) -> Rings {
        Rings { tx: self.tx.ring_ref(), rx: self.rx.ring_ref(), port: self.channel.port() }
    }

    /// Returns the port whose events [`poll`](Self::poll) answers.
    pub fn port(&self) -> Port {
        self.channel.port()
    }

    pub(super) fn start(&mut self, link: Link) {
        self.tx.start(link);
    }

    pub(super) fn stop(&mut self) {
        self.tx.stop();
    }

    /// Returns how many packets were submitted and are not completed.
    pub const fn in_flight(&self) -> u32 {
        self.tx.in_flight()
    }

    /// Returns what the queue has done so far.
    pub const fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Writes a packet into the ring, a slot a segment; the back end sees it after [`push`](Self::push). The first segment has the
    /// whole Ethernet header, and checksums are filled in.
    ///
    /// # Errors
    /// [`SubmitError`] and the packet.
    pub fn submit(&mut self, packet: B) -> Result<(), (SubmitError, B)> {
        if self.broken.is_some() {
            return Err((SubmitError::NotConnected, packet));
        }
        self.tx.submit(packet, &mut self.counters)
    }

    /// Shows the back end all that was submitted, and notifies it if it wants that.
    pub fn push(&mut self) {
        let notify = self.tx.publish();
        self.notify(notify, Notify::No);
    }

    fn notify(&mut self, tx: Notify, rx: Notify) {
        if tx == Notify::Yes || rx == Notify::Yes {
            self.counters.notifications += 1;
            self.channel.notify();
        }
    }

    /// Gives what was sent back to `sent`, and what has come to `received`, both in the order in which they came. Called on the
    /// event of [`port`](Self::port). A received packet lies in pages of the queue's own, which the back end can't reach any more;
    /// they are posted again when `received` has returned. Returns `true` if there is more to do at once: one call takes no more
    /// than a ring's worth.
    ///
    /// # Errors
    /// [`QueueError`] if the back end breaks the protocol; from then on each time, and no event tells more. The owner
    /// [closes](super::Front::close) the device, and what is in flight is given to [`step`](super::Front::step)'s `lost` when the
    /// back end is closed, too.
    pub fn poll(
        &mut self,
        sent: impl FnMut(Completion<B>),
        received: impl FnMut(Received<'_, D::Grants>),
    ) -> Result<bool, QueueError> {
        if let Some(error) = self.broken {
            return Err(error);
        }
        let polled = self.take_all(sent, received).inspect_err(|error| self.broken = Some(*error));
        // A port whose other end has broken the protocol stays masked: it could go on signalling.
        if polled.is_ok() {
            self.channel.unmask();
        }
        polled
    }

    fn take_all(
        &mut self,
        sent: impl FnMut(Completion<B>),
        received: impl FnMut(Received<'_, D::Grants>),
    ) -> Result<bool, QueueError> {
        self.tx.take_all(&mut self.counters, sent)?;
        let more = self.rx.take_all(&mut self.counters, received)?;
        self.rx.post();
        let notify = self.rx.publish();
        self.notify(Notify::No, notify);
        // Before anything is posted, the ring could not be armed for what then comes.
        Ok(more || self.rx.arm()?)
    }

    /// The back end is gone, the queue ends: completes all that is in flight, as lost unless it was answered.
    pub(super) fn give_up(&mut self, mut lost: impl FnMut(Completion<B>)) {
        self.stop();
        if self.broken.is_none() {
            // Its last answers. Should they break the protocol, then there is nobody left to blame.
            let _ = self.tx.take_all(&mut self.counters, &mut lost);
        }
        self.broken = Some(QueueError::Gone);
        self.tx.give_up(&mut self.counters, lost);
    }
}
