//! A device between two domains of the mock, one end of which is written by hand.

use hypercall::event::Channel;
use hypercall::grant::SharedPages;
use hypercall::mem::{Buffer, PageBuf, Segment, Shared};
use mock::{Config, Machine, Node};
use xen_sys::io::netif::{NetifRxRequest, NetifRxResponse, NetifTxRequest, NetifTxResponse};
use xenbus::Domain;
use xenbus::device::{Device, State};
use xenbus::ring::{BackRing, FrontRing, MappedPages, RingPages};
use xenbus::store::{Perm, Store as _, StoreError, Tx};
use xennet::features::{self, Rings};

pub(crate) type Grants = <Node as Domain>::Grants;
pub(crate) type Store = <Node as Domain>::Store;
pub(crate) type Events = <Node as Domain>::Events;
pub(crate) type Platform = mock::Domain;

/// Where the front end's directory is, from its domain's home.
pub(crate) const FRONT: &str = "device/vif/0";

/// The address of the front end's interface.
pub(crate) const MAC: &str = "00:16:3e:58:45:4e";

/// Three domains and a device between two of them.
pub(crate) struct Rig {
    pub(crate) front: Node,
    pub(crate) back: Node,
    toolstack: Node,
    // Last: the nodes are handles of it.
    pub(crate) machine: Machine,
}

impl Rig {
    pub(crate) fn new() -> Self {
        let machine = Machine::new(Config::deterministic(7));
        let toolstack = machine.services(machine.dom0().id());
        let (front, back) = (machine.boot(), machine.boot());
        let rig = Self { front, back, toolstack, machine };
        rig.toolstack.store.transaction(|tx| rig.attach(tx)).unwrap();
        rig.machine.mark_usage();
        rig
    }

    /// The domain of the front end is saved, and restored as another with an interface like it.
    pub(crate) fn restore(&mut self) {
        let old = (self.front.id, self.back_path());
        self.front.id = self.machine.restore_next(old.0);
        self.toolstack.store.transaction(|tx| self.attach(tx)).unwrap();
        assert_eq!(mock::suspend(&self.front), Ok(mock::Suspended::Restored));
        for path in [format!("{}/{FRONT}", old.0.0), format!("{}/{}", self.back.id.0, old.1)] {
            self.toolstack.store.rm(Tx::NONE, &format!("/local/domain/{path}")).unwrap();
        }
    }

    /// Returns where the back end's directory is, from its domain's home.
    pub(crate) fn back_path(&self) -> String {
        format!("backend/vif/{}/0", self.front.id.0)
    }

    fn attach(&self, tx: Tx) -> Result<(), StoreError> {
        let store = &self.toolstack.store;
        let (front, back) = (self.front.id, self.back.id);
        let front_path = format!("/local/domain/{}/{FRONT}", front.0);
        let back_path = format!("/local/domain/{}/{}", back.0, self.back_path());
        for (path, owner, reader) in [(&front_path, front, back), (&back_path, back, front)] {
            let perm = |domain, read| Perm { domain, read, write: false };
            store.mkdir(tx, path)?;
            store.set_permissions(tx, path, &[perm(owner, false), perm(reader, true)])?;
            store.write_text(tx, &format!("{path}/mac"), MAC)?;
            store.write_text(tx, &format!("{path}/state"), State::Initialising.number())?;
        }
        store.write_text(tx, &format!("{front_path}/backend"), &back_path)?;
        store.write_text(tx, &format!("{front_path}/backend-id"), back.0)?;
        store.write_text(tx, &format!("{back_path}/frontend"), &front_path)?;
        store.write_text(tx, &format!("{back_path}/frontend-id"), front.0)?;
        store.write_text(tx, &format!("{back_path}/online"), 1)
    }

    /// The toolstack wants the device to go.
    pub(crate) fn ask_detach(&self) {
        let path = format!("/local/domain/{}/{}/online", self.back.id.0, self.back_path());
        self.toolstack.store.write_text(Tx::NONE, &path, 0).unwrap();
    }

    /// The toolstack removes both directories.
    pub(crate) fn remove(&self) {
        let store = &self.toolstack.store;
        store.rm(Tx::NONE, &format!("/local/domain/{}/{FRONT}", self.front.id.0)).unwrap();
        store.rm(Tx::NONE, &format!("/local/domain/{}/{}", self.back.id.0, self.back_path())).unwrap();
    }

    /// Tells whether the back end's directory is there.
    pub(crate) fn back_exists(&self) -> bool {
        self.back.store.directory(Tx::NONE, &self.back_path()).is_ok()
    }
}

/// Memory of a packet, in segments of so many bytes at most.
pub(crate) struct Cut {
    pub(crate) whole: PageBuf<Platform>,
    pub(crate) piece: u16,
}

// SAFETY: parts of the segments of a buffer that it owns.
unsafe impl Buffer for Cut {
    fn segments(&self) -> impl Iterator<Item = Segment> {
        self.whole.segments().flat_map(move |segment| {
            (0..segment.len).step_by(self.piece.into()).map(move |at| Segment {
                offset: segment.offset + at,
                len: self.piece.min(segment.len - at),
                ..segment
            })
        })
    }

    fn parts(&self) -> impl Iterator<Item = Shared<'_>> {
        self.whole.parts().flat_map(move |part| {
            (0..part.len())
                .step_by(self.piece.into())
                .map(move |at| part.slice(at, usize::from(self.piece).min(part.len() - at)))
        })
    }
}

impl Cut {
    /// Makes one with bytes in it that can be told apart from those at other places.
    pub(crate) fn new(platform: &Platform, len: usize, piece: u16) -> Self {
        let whole = PageBuf::new(platform, len).unwrap();
        whole.shared().write(0, &(0..len).map(pattern).collect::<Vec<_>>());
        Self { whole, piece }
    }

    /// Returns its bytes.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.whole.len()];
        self.whole.shared().read(0, &mut bytes);
        bytes
    }
}

pub(crate) const fn pattern(at: usize) -> u8 {
    (at % 251) as u8
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
        let mut device = Device::front(&rig.front.store, FRONT).unwrap();
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
        let mut device = Device::back(&rig.back.store, &rig.back_path()).unwrap();
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
