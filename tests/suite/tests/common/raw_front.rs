//! A front end that does whatever a test wants, of any shape.

use std::sync::atomic::Ordering::SeqCst;

use hypercall::GrantRef;
use hypercall::event::{Channel, EventChannels};
use hypercall::grant::{GrantTable, SharedPages};
use hypercall::mem::{PAGE_SIZE, Shared};
use mock::Domain;
use xbd::protocol::{Answer, Layout, X86_64};
use xen_sys::io::blkif::{BlkifOp, BlkifRequest, BlkifRequestSegment};
use xenbus::device::State;
use xenbus::ring::{Field, RingMemory, RingPages};
use xenbus::store::{Store, Tx};

use super::Bed;

type Pages<L> = RingPages<SharedPages<GrantTable<Domain>>, <L as Layout>::Request, <L as Layout>::Response>;

/// What a front end asks for.
#[derive(Clone, Copy)]
pub(crate) struct Asks {
    pub(crate) queues: usize,
    pub(crate) pages: usize,
    pub(crate) persistent: bool,
}

impl Default for Asks {
    fn default() -> Self {
        Self { queues: 1, pages: 1, persistent: false }
    }
}

/// A front end that does whatever a test wants.
pub(crate) struct RawFront<L: Layout = X86_64> {
    pub(crate) queues: Vec<RawQueue<L>>,
}

/// One of its queues.
pub(crate) struct RawQueue<L: Layout = X86_64> {
    pub(crate) ring: Pages<L>,
    pub(crate) channel: Channel<EventChannels<Domain>>,
    pub(crate) req_prod: u32,
    rsp_cons: u32,
}

impl RawFront {
    /// Makes a ring, and tells where it is.
    pub(crate) fn offer(bed: &Bed) -> Self {
        Self::offer_but(bed, "", "")
    }

    /// Makes a ring, and tells where it is; but one node says something else.
    pub(crate) fn offer_but(bed: &Bed, wrong: &str, value: &str) -> Self {
        Self::ask_but(bed, Asks::default(), wrong, value)
    }
}

impl<L: Layout> RawFront<L> {
    /// Makes the rings, and tells where they are.
    pub(crate) fn ask(bed: &Bed, asks: Asks) -> Self {
        Self::ask_but(bed, asks, "", "")
    }

    /// Makes the rings, and tells where they are; but one node says something else, or is not there if that is empty.
    pub(crate) fn ask_but(bed: &Bed, asks: Asks, wrong: &str, value: &str) -> Self {
        let front = Self::prepare(bed, asks);
        if !wrong.is_empty() {
            bed.front_says(wrong, value).unwrap();
        }
        bed.front_says("state", State::Initialised.number()).unwrap();
        front
    }

    /// Makes the rings, and writes where they are.
    pub(crate) fn prepare(bed: &Bed, asks: Asks) -> Self {
        let Asks { queues, pages, persistent } = asks;
        for node in ["multi-queue-num-queues", "ring-page-order", "num-ring-pages", "ring-ref", "event-channel"] {
            let _ = bed.front.store.rm(Tx::NONE, &format!("{}/{node}", bed.device.front_path()));
        }
        if queues > 1 {
            bed.front_says("multi-queue-num-queues", queues).unwrap();
        }
        if pages > 1 {
            bed.front_says("ring-page-order", pages.ilog2()).unwrap();
        }
        let made = (0..queues).map(|index| {
            let folder = if queues > 1 { format!("queue-{index}/") } else { String::new() };
            RawQueue::new(bed, pages, &folder)
        });
        let queues = made.collect();
        bed.front_says("protocol", L::NAME).unwrap();
        bed.front_says("feature-persistent", u8::from(persistent)).unwrap();
        Self { queues }
    }

    /// Sets all indices of the first queue, before the other end looks at them.
    pub(crate) fn start_at(&mut self, index: u32) {
        self.queues[0].start_at(index);
    }

    /// Writes requests into the first queue and shows them.
    pub(crate) fn send(&mut self, requests: &[L::Request]) {
        self.queues[0].send(requests);
    }

    /// Claims to have made so many requests in the first queue.
    pub(crate) fn show(&mut self, req_prod: u32) {
        self.queues[0].show(req_prod);
    }

    /// Takes the responses that are there in the first queue.
    pub(crate) fn responses(&mut self) -> Vec<L::Response> {
        self.queues[0].responses()
    }

    /// The same, read.
    pub(crate) fn answers(&mut self) -> Vec<Answer> {
        self.queues[0].responses().iter().map(L::answer).collect()
    }
}

impl<L: Layout> RawQueue<L> {
    fn new(bed: &Bed, pages: usize, folder: &str) -> Self {
        let pages = SharedPages::new(&bed.front.grants, bed.back.id, pages).unwrap();
        let channel = Channel::offer(&bed.front.events, bed.back.id).unwrap();
        match pages.refs() {
            [gref] => bed.front_says(&format!("{folder}ring-ref"), gref.0).unwrap(),
            refs => {
                for (index, gref) in refs.iter().enumerate() {
                    bed.front_says(&format!("{folder}ring-ref{index}"), gref.0).unwrap();
                }
            }
        }
        bed.front_says(&format!("{folder}event-channel"), channel.port().0).unwrap();
        let mut queue = Self { ring: RingPages::new(pages), channel, req_prod: 0, rsp_cons: 0 };
        queue.start_at(0);
        queue
    }

    pub(crate) fn depth(&self) -> u32 {
        self.ring.slots()
    }

    /// Sets all indices, before the other end looks at them.
    pub(crate) fn start_at(&mut self, index: u32) {
        for (field, value) in [
            (Field::ReqProd, index),
            (Field::RspProd, index),
            (Field::ReqEvent, index.wrapping_add(1)),
            (Field::RspEvent, index.wrapping_add(1)),
        ] {
            self.ring.store(field, value, SeqCst);
        }
        (self.req_prod, self.rsp_cons) = (index, index);
    }

    /// Writes requests and shows them.
    pub(crate) fn send(&mut self, requests: &[L::Request]) {
        for request in requests {
            self.ring.write_request((self.req_prod % self.depth()) as usize, request);
            self.req_prod = self.req_prod.wrapping_add(1);
        }
        self.show(self.req_prod);
    }

    /// Claims to have made so many requests.
    pub(crate) fn show(&mut self, req_prod: u32) {
        self.ring.store(Field::ReqProd, req_prod, SeqCst);
        self.channel.notify();
    }

    /// Takes the responses that are there.
    pub(crate) fn responses(&mut self) -> Vec<L::Response> {
        let rsp_prod = self.ring.load(Field::RspProd, SeqCst);
        let mut responses = Vec::new();
        while self.rsp_cons != rsp_prod {
            responses.push(self.ring.read_response((self.rsp_cons % self.depth()) as usize));
            self.rsp_cons = self.rsp_cons.wrapping_add(1);
        }
        self.ring.store(Field::RspEvent, self.rsp_cons.wrapping_add(1), SeqCst);
        responses
    }
}

/// A page that a raw front end has granted.
pub(crate) struct Granted(SharedPages<GrantTable<Domain>>);

impl Granted {
    pub(crate) fn new(bed: &Bed) -> Self {
        Self(SharedPages::new(&bed.front.grants, bed.back.id, 1).unwrap())
    }

    pub(crate) fn many(bed: &Bed, count: usize) -> Vec<Self> {
        (0..count).map(|_| Self::new(bed)).collect()
    }

    pub(crate) fn gref(&self) -> GrantRef {
        self.0.refs()[0]
    }

    pub(crate) fn shared(&self) -> Shared<'_> {
        self.0.shared()
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; PAGE_SIZE];
        self.0.shared().read(0, &mut bytes);
        bytes
    }

    pub(crate) fn fill(&self, byte: u8) {
        self.0.shared().write(0, &[byte; PAGE_SIZE]);
    }
}

/// Makes a request with one segment a grant, each a whole page.
pub(crate) fn raw_request(op: BlkifOp, id: u64, sector: u64, grefs: &[GrantRef]) -> BlkifRequest {
    let mut raw = BlkifRequest {
        operation: op,
        nr_segments: grefs.len() as u8,
        id,
        sector_number: sector,
        ..BlkifRequest::default()
    };
    for (segment, gref) in raw.seg.iter_mut().zip(grefs) {
        *segment = BlkifRequestSegment { gref: *gref, first_sect: 0, last_sect: 7, ..Default::default() };
    }
    raw
}
