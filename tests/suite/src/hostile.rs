//! Ends of a disk that come as far as honest ones do, and then do whatever a test wants, on the mock.
//!
//! What they have of the honest ends' crates is used here and nowhere else: a test has the ring and the channel.

use alloc::format;
use core::sync::atomic::Ordering;

use hypercall::event::{Channel, EventChannels};
use hypercall::grant::{GrantTable, SharedPages};
use hypercall::{GrantRef, Port};
use mock::Domain;
use xbd::features::{Rings, offer_rings};
use xen_sys::io::blkif::{BlkifOp, BlkifRequest, BlkifRequestSegment, BlkifResponse};
use xenbus::device::{Device, State};
use xenbus::ring::{BackRing, Field, FrontRing, MappedPages, RingMemory, RingPages};
use xenbus::store::{Store, Tx};

use crate::block::OwnStore;
use crate::node::Node;
use crate::toolstack::NewDevice;
use crate::{Context, Failure, ensure};

/// The ring of a front end.
pub type FrontMemory = RingPages<SharedPages<GrantTable<Domain>>, BlkifRequest, BlkifResponse>;
/// The ring of a back end.
pub type BackMemory = RingPages<MappedPages<Domain>, BlkifRequest, BlkifResponse>;

/// Waits until the other end is in a state, or past it: it doesn't stay in each.
async fn other_is(node: &Node<Domain>, device: &Device<OwnStore<Domain>>, state: State) -> Result<(), Failure> {
    loop {
        let seen = node.happened();
        if device.other_state().context("look")?.number() >= state.number() {
            return Ok(());
        }
        if node.happened() == seen {
            node.turn().await;
        }
    }
}

/// A front end that is connected, and does no more by itself.
pub struct Front {
    /// Its ring.
    pub ring: FrontRing<FrontMemory>,
    /// Its event channel.
    pub channel: Channel<EventChannels<Domain>>,
    /// Its device in the store.
    pub device: Device<OwnStore<Domain>>,
    node: Node<Domain>,
}

impl Front {
    /// Comes as far as an honest front end comes: a ring and a port, both told to the back end, which has connected.
    ///
    /// # Errors
    /// [`Failure`] if something on the way fails.
    pub async fn connect(node: &Node<Domain>, new: &NewDevice<'_>) -> Result<Self, Failure> {
        let own = node.own();
        let mut device = Device::front(node.store(), &new.front_path()).context("device")?;
        let page = SharedPages::new(&own.grants, new.back, 1).context("ring")?;
        let ring = FrontRing::new(RingPages::new(page));
        let channel = Channel::offer(&own.events, new.back).context("port")?;
        other_is(node, &device, State::InitWait).await?;
        let gref = ring.memory().backing().refs()[0];
        offer_rings(&device, &Rings::single(gref, channel.port())).context("offer")?;
        device.switch(State::Initialised).context("switch")?;
        other_is(node, &device, State::Connected).await?;
        Ok(Self { ring, channel, device, node: node.clone() })
    }

    /// Returns the grant of its own ring: a good one, for requests that lie about something else.
    pub fn gref(&self) -> GrantRef {
        self.ring.memory().backing().refs()[0]
    }

    /// Sends a request.
    ///
    /// # Errors
    /// [`Failure`] if the ring is full.
    pub fn send(&mut self, request: &BlkifRequest) -> Result<(), Failure> {
        ensure(self.ring.push(request), "no room in the ring")?;
        let _ = self.ring.publish();
        self.channel.notify();
        Ok(())
    }

    /// Claims to have made so many requests.
    pub fn claim(&mut self, requests: u32) {
        self.ring.memory().store(Field::ReqProd, requests, Ordering::Release);
        self.channel.notify();
    }

    /// Waits for a response.
    ///
    /// # Errors
    /// [`Failure`] if the back end breaks the ring.
    pub async fn response(&mut self) -> Result<BlkifResponse, Failure> {
        loop {
            let seen = self.node.happened();
            if let Some(response) = self.ring.pop().context("ring")? {
                return Ok(response);
            }
            self.channel.unmask();
            if !self.ring.arm().context("ring")? && self.node.happened() == seen {
                self.node.turn().await;
            }
        }
    }

    /// Waits until the back end is in a state, or past it.
    ///
    /// # Errors
    /// [`Failure`] if the store refuses.
    pub async fn back_is(&self, state: State) -> Result<(), Failure> {
        other_is(&self.node, &self.device, state).await
    }
}

/// A back end that is connected, and does no more by itself.
pub struct Back {
    /// Its ring.
    pub ring: BackRing<BackMemory>,
    /// Its event channel.
    pub channel: Channel<EventChannels<Domain>>,
    /// Its device in the store.
    pub device: Device<OwnStore<Domain>>,
    node: Node<Domain>,
}

impl Back {
    /// Comes as far as an honest back end comes: a disk of `sectors`, the front end's ring mapped and its port bound, and
    /// connected.
    ///
    /// # Errors
    /// [`Failure`] if something on the way fails.
    pub async fn connect(node: &Node<Domain>, new: &NewDevice<'_>, sectors: u64) -> Result<Self, Failure> {
        let own = node.own();
        let mut device = Device::back(node.store(), &new.back_path()).context("device")?;
        let say = |node: &str, value: u64| {
            own.store.write_text(Tx::NONE, &format!("{}/{node}", new.back_path()), value).context(node)
        };
        say("sectors", sectors)?;
        say("sector-size", 512)?;
        say("info", 0)?;
        device.switch(State::InitWait).context("switch")?;
        other_is(node, &device, State::Initialised).await?;
        let ask = |node: &str| -> Result<u32, Failure> {
            let path = format!("/local/domain/{}/{}/{node}", new.front.0, new.front_path());
            let text: Option<alloc::string::String> = own.store.read_if_there(Tx::NONE, &path).context(node)?;
            text.and_then(|text| text.parse().ok()).ok_or_else(|| Failure(format!("no {node}")))
        };
        let pages = MappedPages::new(&own.platform, new.front, &[GrantRef(ask("ring-ref")?)]).context("ring")?;
        let ring = BackRing::attach(RingPages::new(pages));
        let channel = Channel::bind(&own.events, new.front, Port(ask("event-channel")?)).context("port")?;
        device.switch(State::Connected).context("switch")?;
        Ok(Self { ring, channel, device, node: node.clone() })
    }

    /// Waits for a request.
    ///
    /// # Errors
    /// [`Failure`] if the front end breaks the ring.
    pub async fn request(&mut self) -> Result<BlkifRequest, Failure> {
        loop {
            let seen = self.node.happened();
            if let Some(request) = self.ring.pop().context("ring")? {
                return Ok(request);
            }
            self.channel.unmask();
            if !self.ring.arm().context("ring")? && self.node.happened() == seen {
                self.node.turn().await;
            }
        }
    }

    /// Sends a response.
    ///
    /// # Errors
    /// [`Failure`] if no request is without one.
    pub fn send(&mut self, response: &BlkifResponse) -> Result<(), Failure> {
        ensure(self.ring.respond(response), "no request to respond to")?;
        let _ = self.ring.publish();
        self.channel.notify();
        Ok(())
    }

    /// Lets go of the ring and the port, and says that it is closed, as an honest one does in the end.
    ///
    /// # Errors
    /// [`Failure`] if the store refuses.
    pub fn close(self) -> Result<(), Failure> {
        let Self { ring, channel, mut device, node: _ } = self;
        drop((ring, channel));
        device.leave(State::Closed).context("leave")
    }

    /// Waits until the front end is in a state, or past it.
    ///
    /// # Errors
    /// [`Failure`] if the store refuses.
    pub async fn front_is(&self, state: State) -> Result<(), Failure> {
        other_is(&self.node, &self.device, state).await
    }
}

/// Makes a read of one segment: these sectors of the page of a grant.
pub fn request(id: u64, gref: GrantRef, first_sect: u8, last_sect: u8) -> BlkifRequest {
    let mut raw = BlkifRequest { operation: BlkifOp::READ, nr_segments: 1, id, ..BlkifRequest::default() };
    raw.seg[0] = BlkifRequestSegment { gref, first_sect, last_sect, ..Default::default() };
    raw
}
