//! What the tests of the disk share: a bed that is stepped by hand, owners of our two ends, and ends that do whatever a test wants.
#![allow(dead_code, reason = "each test uses a part of it")]

pub(crate) mod neighbour;
pub(crate) mod raw_front;
pub(crate) mod rig;
mod slow;

use std::cell::RefCell;
use std::collections::BTreeSet;

use hypercall::event::{Channel, Event};
use hypercall::grant::{Access, MapRequest, Window};
use hypercall::mem::{PAGE_SIZE, PageBuf};
use hypercall::{DomId, GrantRef, Platform, Port};
use mock::{Config, Domain, Machine, Node, Suspended, suspend};
use suite::block;
use suite::toolstack::NewDevice;
use xbd::MAX_SEGMENTS;
use xbd::back::{self, Back, Store as Disk};
use xbd::front::{self, Completion, Front, IoError, Returned};
use xbd::protocol::Operation;
use xen_sys::io::blkif::{BlkifOp, BlkifRequest, BlkifResponse};
use xenbus::device::State;
use xenbus::ring::{Field, MappedPages, RingMemory, RingPages};
use xenbus::store::{Store, StoreError, Tx};

pub(crate) use slow::Slow;

/// What goes through a queue: a number to know it by, and the data.
pub(crate) type Io = (u64, Option<PageBuf<Domain>>);

/// Slots of a ring of one page.
pub(crate) const DEPTH: u32 = 32;

/// Draws lots.
pub(crate) struct Lots(pub(crate) u64);

impl Lots {
    /// Draws a number below `count`.
    pub(crate) fn below(&mut self, count: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % count
    }
}

/// Three domains, and a disk between two of them that the toolstack has made.
pub(crate) struct Bed {
    pub(crate) toolstack: Node,
    pub(crate) front: Node,
    pub(crate) back: Node,
    pub(crate) device: NewDevice<'static>,
    /// Events that were dispatched and not taken yet.
    pending: RefCell<BTreeSet<(DomId, Port)>>,
    /// Dropped last.
    pub(crate) machine: Machine,
}

impl Bed {
    pub(crate) fn new(seed: u64) -> Self {
        let machine = Machine::new(Config::deterministic(seed));
        let toolstack = machine.services(DomId(0));
        let (front, back) = (machine.boot(), machine.boot());
        let device = block::disk(front.id, back.id);
        device.attach(&toolstack.store).unwrap();
        let bed = Self { toolstack, front, back, device, pending: RefCell::default(), machine };
        bed.settle();
        bed.machine.mark_usage();
        bed
    }

    /// Lets the machine do all that there is to do, and the domains take their events.
    pub(crate) fn settle(&self) {
        loop {
            self.machine.settle();
            let mut taken = 0;
            for node in [&self.toolstack, &self.front, &self.back] {
                let mut take = |event: Event| {
                    if event.port == node.store.port() {
                        node.store.process();
                    } else {
                        self.pending.borrow_mut().insert((node.id, event.port));
                    }
                };
                taken += node.events.dispatch(0, &mut take) + node.events.dispatch_delayed(&mut take);
            }
            if taken == 0 {
                return;
            }
        }
    }

    /// Takes the event of a port, if one has come.
    pub(crate) fn take(&self, node: &Node, port: Option<Port>) -> bool {
        port.is_some_and(|port| self.pending.borrow_mut().remove(&(node.id, port)))
    }

    /// Writes one of the front end's nodes, as the front end's domain may.
    pub(crate) fn front_says(&self, node: &str, value: impl std::fmt::Display) -> Result<(), StoreError> {
        self.front.store.write_text(Tx::NONE, &format!("{}/{node}", self.device.front_path()), value)
    }

    /// Writes one of the back end's nodes, as the back end's domain may.
    pub(crate) fn back_says(&self, node: &str, value: impl std::fmt::Display) -> Result<(), StoreError> {
        self.back.store.write_text(Tx::NONE, &format!("{}/{node}", self.device.back_path()), value)
    }

    /// Reads a node that is below the home of a domain, as the toolstack may.
    pub(crate) fn read(&self, domain: &Node, path: &str) -> Option<String> {
        let path = format!("/local/domain/{}/{path}", domain.id.0);
        self.toolstack.store.read_if_there(Tx::NONE, &path).unwrap()
    }

    pub(crate) fn front_state(&self) -> Option<String> {
        self.read(&self.front, &format!("{}/state", self.device.front_path()))
    }

    pub(crate) fn back_state(&self) -> Option<String> {
        self.read(&self.back, &format!("{}/state", self.device.back_path()))
    }

    /// Checks that no rule was broken and nothing is left.
    pub(crate) fn check_quiet(&self) {
        // What a peer has let go of meanwhile.
        self.front.grants.retry_quarantine();
        self.machine.check_quiet();
    }

    /// The domain of the front end is saved and restored, and has the disk there, too. Whoever has served it before is not served any
    /// longer, and has not gone yet.
    pub(crate) fn restore(&mut self) {
        let old = self.device.clone();
        self.device.front = self.machine.restore_next(self.front.id);
        self.device.attach(&self.toolstack.store).unwrap();
        assert_eq!(suspend(&self.front), Ok(Suspended::Restored));
        self.front.id = self.device.front;
        old.remove(&self.toolstack.store).unwrap();
    }

    /// Removes the back end's directory, as a toolstack does that has lost its patience.
    pub(crate) fn remove_back(&self) {
        let path = format!("/local/domain/{}/{}", self.back.id.0, self.device.back_path());
        self.toolstack.store.rm(Tx::NONE, &path).unwrap();
    }
}

/// What became of an I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Done {
    pub(crate) number: u64,
    pub(crate) result: Result<(), IoError>,
    /// The buffer came back.
    pub(crate) whole: bool,
}

impl From<Completion<Io>> for Done {
    fn from(Completion { buffer, result }: Completion<Io>) -> Self {
        Self { number: buffer.get().0, result, whole: matches!(buffer, Returned::Whole(_)) }
    }
}

/// Our front end, with an owner that is led by events and watches alone.
pub(crate) struct FrontOwner {
    pub(crate) front: Front<Node, Io>,
    pub(crate) done: Vec<Done>,
    pub(crate) connected: bool,
    pub(crate) close_wanted: bool,
    pub(crate) closed: bool,
    /// Errors of the life cycle and of the queue.
    pub(crate) errors: Vec<String>,
    /// Number of the next I/O.
    pub(crate) next: u64,
}

impl FrontOwner {
    pub(crate) fn new(bed: &Bed) -> Self {
        Self::try_new(bed).unwrap()
    }

    pub(crate) fn try_new(bed: &Bed) -> Result<Self, front::FrontError> {
        Self::with(bed, front::Config::default())
    }

    pub(crate) fn with(bed: &Bed, config: front::Config) -> Result<Self, front::FrontError> {
        let front = Front::new(&bed.front, &bed.device.front_path(), config)?;
        Ok(Self {
            front,
            done: Vec::new(),
            connected: false,
            close_wanted: false,
            closed: false,
            errors: Vec::new(),
            next: 0,
        })
    }

    /// Submits an I/O of so many pages; its number comes back with its completion.
    pub(crate) fn submit(&mut self, bed: &Bed, operation: Operation, sector: u64, pages: usize) -> Option<u64> {
        let buffer = PageBuf::new(&bed.front.platform, pages * PAGE_SIZE).ok()?;
        self.submit_buffer(operation, sector, (pages > 0).then_some(buffer))
    }

    pub(crate) fn submit_buffer(
        &mut self,
        operation: Operation,
        sector: u64,
        buffer: Option<PageBuf<Domain>>,
    ) -> Option<u64> {
        self.submit_on(0, operation, sector, buffer)
    }

    /// The same, by a queue of the caller's choice.
    pub(crate) fn submit_on(
        &mut self,
        queue: usize,
        operation: Operation,
        sector: u64,
        buffer: Option<PageBuf<Domain>>,
    ) -> Option<u64> {
        let number = self.next;
        let queue = self.front.queue(queue)?;
        queue.submit(operation, sector, (number, buffer)).ok()?;
        queue.push();
        self.next += 1;
        Some(number)
    }

    /// Takes what the queues' events tell.
    pub(crate) fn poll(&mut self) {
        (0..self.front.queues()).for_each(|index| self.poll_queue(index));
    }

    fn poll_queue(&mut self, index: usize) {
        let Some(queue) = self.front.queue(index) else { return };
        let done = &mut self.done;
        if let Err(error) = queue.poll(|completion| done.push(completion.into())) {
            self.errors.push(error.to_string());
            // The owner's duty; what the store says to it is in the next step.
            let _ = self.front.close();
            self.step();
        }
    }

    pub(crate) fn step(&mut self) {
        let done = &mut self.done;
        let change = self.front.step(|completion| done.push(completion.into()));
        self.heed(change);
    }

    /// Begins anew, in a domain that has come back from a suspend.
    pub(crate) fn resume(&mut self) {
        let done = &mut self.done;
        let change = self.front.resume(|completion| done.push(completion.into()));
        self.connected = false;
        self.heed(change);
    }

    fn heed(&mut self, change: Result<front::Change, front::FrontError>) {
        match change {
            Ok(front::Change::Connected(_)) => self.connected = true,
            Ok(front::Change::CloseWanted) => self.close_wanted = true,
            Ok(front::Change::Closed) => self.closed = true,
            Ok(front::Change::Resized(_) | front::Change::None | front::Change::Reconnecting) => {}
            Err(error) => self.errors.push(error.to_string()),
        }
    }

    /// Does what events and watches ask for. Tells whether they asked.
    pub(crate) fn turn(&mut self, bed: &Bed) -> bool {
        bed.settle();
        let mut event = false;
        for index in 0..self.front.queues() {
            if bed.take(&bed.front, self.front.port(index)) {
                self.poll_queue(index);
                event = true;
            }
        }
        let changed = self.front.device().changed();
        if changed || (event && self.front.device().is_closing()) {
            self.step();
        }
        event || changed
    }

    /// Goes on until nothing asks any more.
    pub(crate) fn follow(&mut self, bed: &Bed) {
        until_quiet(|| self.turn(bed));
    }

    /// Checks that each I/O so far is over, exactly once.
    pub(crate) fn check_each_once(&self) {
        let mut numbers: Vec<u64> = self.done.iter().map(|done| done.number).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, (0..self.next).collect::<Vec<_>>(), "{:?}", self.done);
    }
}

/// Our back end, with an owner that is led by events and watches alone.
pub(crate) struct BackOwner<S: Disk> {
    pub(crate) back: Back<Node, S>,
    pub(crate) connections: u32,
    pub(crate) disconnections: u32,
    pub(crate) removed: bool,
    pub(crate) errors: Vec<String>,
    pub(crate) steps: u64,
    more: bool,
}

impl<S: Disk> BackOwner<S> {
    pub(crate) fn new(bed: &Bed, store: S) -> Self {
        Self::try_new(bed, store).unwrap()
    }

    pub(crate) fn try_new(bed: &Bed, store: S) -> Result<Self, back::BackError> {
        Self::with(bed, store, back::Config::default())
    }

    pub(crate) fn with(bed: &Bed, store: S, config: back::Config) -> Result<Self, back::BackError> {
        let back = Back::new(&bed.back, &bed.device.back_path(), store, config)?;
        Ok(Self { back, connections: 0, disconnections: 0, removed: false, errors: Vec::new(), steps: 0, more: false })
    }

    /// Polls all queues.
    pub(crate) fn poll(&mut self) {
        for queue in 0..self.back.queues() {
            match self.back.poll(queue) {
                Ok(more) => self.more |= more,
                Err(error) => self.errors.push(error.to_string()),
            }
        }
    }

    pub(crate) fn counters(&mut self) -> back::Counters {
        self.back.counters().unwrap()
    }

    pub(crate) fn step(&mut self) {
        self.steps += 1;
        match self.back.step() {
            Ok(back::Change::Connected) => {
                self.connections += 1;
                self.poll();
            }
            Ok(back::Change::Disconnected) => self.disconnections += 1,
            Ok(back::Change::Removed) => self.removed = true,
            Ok(back::Change::None) => {}
            Err(error) => self.errors.push(error.to_string()),
        }
    }

    pub(crate) fn turn(&mut self, bed: &Bed) -> bool {
        bed.settle();
        if self.removed {
            return false;
        }
        let ports: Vec<_> = (0..self.back.queues()).map(|queue| self.back.port(queue)).collect();
        let mut event = std::mem::take(&mut self.more);
        for port in ports {
            event |= bed.take(&bed.back, port);
        }
        if event {
            self.poll();
        }
        let changed = self.back.device().changed() || self.back.closing();
        if changed {
            self.step();
        }
        // Nothing else moves: the time may.
        let rest = self.back.again_ns().filter(|_| !event && !changed);
        if let Some(until) = rest {
            bed.machine.advance(until.saturating_sub(bed.back.platform.now_ns()));
        }
        event || changed || rest.is_some()
    }

    pub(crate) fn follow(&mut self, bed: &Bed) {
        until_quiet(|| self.turn(bed));
    }
}

/// Lets both ends go on until nothing asks any more.
pub(crate) fn follow_both<S: Disk>(bed: &Bed, front: &mut FrontOwner, back: &mut BackOwner<S>) {
    until_quiet(|| front.turn(bed) | back.turn(bed));
}

/// Goes on as long as `turn` says so, within reason: no end may keep its owner busy for ever.
fn until_quiet(turn: impl FnMut() -> bool) {
    let turns = std::iter::repeat_with(turn).take(10_000).take_while(|more| *more).count();
    assert!(turns < 10_000, "it asks for another turn for ever");
}

type BackPages = RingPages<MappedPages<Domain>, BlkifRequest, BlkifResponse>;
type Events = hypercall::event::EventChannels<Domain>;

/// A back end that does whatever a test wants.
pub(crate) struct RawBack {
    pub(crate) ring: BackPages,
    pub(crate) channel: Channel<Events>,
    pub(crate) req_cons: u32,
    pub(crate) rsp_prod: u32,
    pub(crate) window: Window<Domain>,
}

impl RawBack {
    /// Tells what the disk is, as a right back end does.
    pub(crate) fn offer(bed: &Bed) {
        bed.back_says("sectors", 1024).unwrap();
        bed.back_says("state", State::InitWait.number()).unwrap();
    }

    /// Maps the ring of a front end that is Initialised. The other end is not told.
    pub(crate) fn attach(bed: &Bed) -> Self {
        let front = |node: &str| bed.read(&bed.front, &format!("{}/{node}", bed.device.front_path())).unwrap();
        let gref = GrantRef(front("ring-ref").parse().unwrap());
        let port = Port(front("event-channel").parse().unwrap());
        let pages = MappedPages::new(&bed.back.platform, bed.front.id, &[gref]).unwrap();
        let channel = Channel::bind(&bed.back.events, bed.front.id, port).unwrap();
        let window = Window::new(&bed.back.platform, DEPTH as usize * MAX_SEGMENTS).unwrap();
        Self { ring: RingPages::new(pages), channel, req_cons: 0, rsp_prod: 0, window }
    }

    /// Connects a front end to a raw back end.
    pub(crate) fn connect(bed: &Bed, front: &mut FrontOwner) -> Self {
        Self::offer(bed);
        front.follow(bed);
        let back = Self::attach(bed);
        bed.back_says("state", State::Connected.number()).unwrap();
        front.follow(bed);
        assert!(front.connected, "{:?}", front.errors);
        back
    }

    /// Takes the requests that are there.
    pub(crate) fn requests(&mut self) -> Vec<BlkifRequest> {
        let order = std::sync::atomic::Ordering::SeqCst;
        let req_prod = self.ring.load(Field::ReqProd, order);
        let mut requests = Vec::new();
        while self.req_cons != req_prod {
            requests.push(self.ring.read_request((self.req_cons % DEPTH) as usize));
            self.req_cons = self.req_cons.wrapping_add(1);
        }
        self.ring.store(Field::ReqEvent, self.req_cons.wrapping_add(1), order);
        requests
    }

    /// Writes responses and shows them.
    pub(crate) fn respond(&mut self, responses: &[BlkifResponse]) {
        for response in responses {
            self.ring.write_response((self.rsp_prod % DEPTH) as usize, response);
            self.rsp_prod = self.rsp_prod.wrapping_add(1);
        }
        self.show(self.rsp_prod);
    }

    /// Claims to have made so many responses.
    pub(crate) fn show(&mut self, rsp_prod: u32) {
        self.ring.store(Field::RspProd, rsp_prod, std::sync::atomic::Ordering::SeqCst);
        self.channel.notify();
    }

    /// Maps the first page of a request.
    pub(crate) fn map(&mut self, bed: &Bed, slot: usize, request: &BlkifRequest) -> bool {
        let access = if request.operation == BlkifOp::READ { Access::ReadWrite } else { Access::ReadOnly };
        self.window.map(slot, MapRequest { gref: request.seg[0].gref, peer: bed.front.id, access }).is_ok()
    }
}

/// The right response to a request, with a status.
pub(crate) fn answer(request: &BlkifRequest, status: i16) -> BlkifResponse {
    BlkifResponse { id: request.id, operation: request.operation, status, ..BlkifResponse::default() }
}
