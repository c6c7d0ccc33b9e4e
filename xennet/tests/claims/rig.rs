//! A device between two domains of the mock, one end of which is written by hand.

use hypercall::event::Channel;
use hypercall::grant::SharedPages;
use mock::{Config, Machine, Node};
use suite::net::interface;
use suite::toolstack::NewDevice;
use xen_sys::io::netif::{NetifRxRequest, NetifRxResponse, NetifTxRequest, NetifTxResponse};
use xenbus::Domain;
use xenbus::device::{Device, State};
use xenbus::ring::{BackRing, FrontRing, MappedPages, RingPages};
use xennet::features::{self, Rings};

pub(crate) type Grants = <Node as Domain>::Grants;
pub(crate) type Store = <Node as Domain>::Store;
pub(crate) type Events = <Node as Domain>::Events;
pub(crate) type Platform = mock::Domain;

/// Three domains and a device between two of them.
pub(crate) struct Rig {
    pub(crate) front: Node,
    pub(crate) back: Node,
    pub(crate) toolstack: Node,
    pub(crate) vif: NewDevice<'static>,
    // Last: the nodes are handles of it.
    pub(crate) machine: Machine,
}

impl Rig {
    pub(crate) fn new() -> Self {
        let machine = Machine::new(Config::deterministic(7));
        let toolstack = machine.services(machine.dom0().id());
        let (front, back) = (machine.boot(), machine.boot());
        let vif = interface(front.id, back.id);
        vif.attach(&toolstack.store).unwrap();
        machine.mark_usage();
        Self { front, back, toolstack, vif, machine }
    }
}

/// A front end by hand: rings, and pages to send from and to receive into, which are its own.
pub(crate) struct HandFront {
    pub(crate) device: Device<Store>,
    pub(crate) tx: FrontRing<RingPages<SharedPages<Grants>, NetifTxRequest, NetifTxResponse>>,
    pub(crate) rx: FrontRing<RingPages<SharedPages<Grants>, NetifRxRequest, NetifRxResponse>>,
    pub(crate) pages: SharedPages<Grants>,
    _channel: Channel<Events>,
}

impl HandFront {
    /// Makes one with so many pages, and says that it is there.
    pub(crate) fn new(rig: &Rig, pages: usize) -> Self {
        let (grants, peer) = (&rig.front.grants, rig.back.id);
        let mut device = Device::front(&rig.front.store, &rig.vif.front_path()).unwrap();
        device.switch(State::Initialising).unwrap();
        let ring = || SharedPages::new(grants, peer, 1).unwrap();
        let tx = FrontRing::new(RingPages::new(ring()));
        let rx = FrontRing::new(RingPages::new(ring()));
        let channel = Channel::offer(&rig.front.events, peer).unwrap();
        let rings =
            Rings { tx: tx.memory().backing().refs()[0], rx: rx.memory().backing().refs()[0], port: channel.port() };
        features::offer_rings(&device, rings).unwrap();
        device.switch(State::Initialised).unwrap();
        Self { device, tx, rx, pages: SharedPages::new(grants, peer, pages).unwrap(), _channel: channel }
    }

    /// Returns the responses that there are on the tx ring.
    pub(crate) fn sent(&mut self) -> Vec<NetifTxResponse> {
        std::iter::from_fn(|| self.tx.pop().unwrap()).collect()
    }
}

/// A back end by hand.
pub(crate) struct HandBack {
    pub(crate) device: Device<Store>,
    pub(crate) tx: BackRing<RingPages<MappedPages<Platform>, NetifTxRequest, NetifTxResponse>>,
    pub(crate) rx: BackRing<RingPages<MappedPages<Platform>, NetifRxRequest, NetifRxResponse>>,
    pub(crate) rings: Rings,
    _channel: Channel<Events>,
}

impl HandBack {
    /// Says what it takes.
    pub(crate) fn offer(rig: &Rig) -> Device<Store> {
        let mut device = Device::back(&rig.back.store, &rig.vif.back_path()).unwrap();
        features::offer(&device).unwrap();
        device.switch(State::InitWait).unwrap();
        device
    }

    /// Connects to the front end.
    pub(crate) fn connect(rig: &Rig, mut device: Device<Store>) -> Self {
        let peer = features::find_peer(&device).unwrap();
        assert!(peer.scatter_gather);
        let tx = BackRing::attach(RingPages::new(Self::map(rig, peer.rings.tx)));
        let rx = BackRing::attach(RingPages::new(Self::map(rig, peer.rings.rx)));
        let channel = Channel::bind(&rig.back.events, rig.front.id, peer.rings.port).unwrap();
        device.switch(State::Connected).unwrap();
        Self { device, tx, rx, rings: peer.rings, _channel: channel }
    }

    /// Maps a page of the front end.
    pub(crate) fn map(rig: &Rig, gref: hypercall::GrantRef) -> MappedPages<Platform> {
        MappedPages::new(&rig.back.platform, rig.front.id, &[gref]).unwrap()
    }
}
