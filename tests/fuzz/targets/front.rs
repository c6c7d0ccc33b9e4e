//! A back end that does what it likes: whatever it answers, writes into the ring and its nodes, keeps mapped, and however often it goes
//! and comes back. Nothing panics; each I/O that is submitted completes once; no page is used again that it can reach; at the end
//! nothing is held.
#![no_main]

use std::collections::BTreeSet;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::SeqCst;

use fuzz::bed::{Domain, check_quiet, fresh};
use fuzz::input::Input;
use fuzz::thin::{PEER, Thin};
use fuzz::tree::Tree;
use hypercall::mem::{PAGE_SIZE, PageBuf, Shared};
use libfuzzer_sys::fuzz_target;
use xbd::front::{Change, Completion, Config, Front, Returned};
use xbd::protocol::Operation;
use xen_sys::io::ring::RING_HEADER_SIZE;
use xenbus::device::State;
use xenbus::ring::Field;

const FRONT: &str = "device/vbd/51712";
const BACK: &str = "/local/domain/1/backend/vbd/2/51712";
/// Bytes of a slot, and slots of a ring of one page.
const SLOT: usize = 112;
const SLOTS: u32 = 32;

type Io = (u64, Option<PageBuf<Thin>>);

/// The I/Os of an owner: each ends once.
#[derive(Default)]
struct Owner {
    out: BTreeSet<u64>,
    /// Pages of buffers that never came back.
    lost: usize,
}

impl Owner {
    fn done(&mut self, completion: Completion<Io>) {
        let Completion { buffer, result } = completion;
        assert!(self.out.remove(&buffer.get().0), "completed twice");
        if let Err(error) = result {
            assert!(!error.to_string().is_empty());
        }
        if let Returned::Held(held) = &buffer {
            self.lost += held.buffer().1.as_ref().map_or(0, |buffer| buffer.len().div_ceil(PAGE_SIZE));
        }
    }
}

/// A back end's view of a front end.
struct Peer {
    thin: Thin,
    tree: Tree,
    front: Front<Domain, Io>,
    owner: Owner,
    /// The ring, as long as it is mapped, and its grant.
    ring: Option<(u32, Shared<'static>)>,
    req_cons: u32,
    rsp_prod: u32,
    /// The last request that was taken, and its operation.
    last: (u64, u8),
    next: u64,
    closed: bool,
}

impl Peer {
    fn word(&self, field: Field) -> Option<&'static AtomicU32> {
        self.ring.map(|(_, ring)| ring.word(field.offset()))
    }

    /// Maps the ring that the front end has told.
    fn attach(&mut self) {
        self.detach();
        let Some(gref) = self.tree.number(&format!("{FRONT}/ring-ref")) else { return };
        let Some(page) = self.thin.granted(gref as u32).filter(|_| self.thin.peer_maps(gref as u32, true)) else {
            return;
        };
        self.ring = Some((gref as u32, page));
        (self.req_cons, self.rsp_prod) = (0, 0);
    }

    fn detach(&mut self) {
        if let Some((gref, _)) = self.ring.take() {
            self.thin.peer_unmaps(gref);
        }
    }

    /// Takes the next request: its number, its operation, and the first grant of it.
    fn take(&mut self) -> Option<(u64, u8, u32)> {
        let (_, ring) = self.ring?;
        if self.word(Field::ReqProd)?.load(SeqCst) == self.req_cons {
            return None;
        }
        let at = RING_HEADER_SIZE + (self.req_cons % SLOTS) as usize * SLOT;
        self.req_cons = self.req_cons.wrapping_add(1);
        let mut bytes = [0; 28];
        ring.read(at, &mut bytes);
        let id = u64::from_le_bytes(std::array::from_fn(|index| bytes[8 + index]));
        let gref = u32::from_le_bytes(std::array::from_fn(|index| bytes[24 + index]));
        self.last = (id, if bytes[0] == 6 { bytes[1] } else { bytes[0] });
        Some((id, self.last.1, gref))
    }

    fn respond(&mut self, id: u64, operation: u8, status: i16) {
        let Some((_, ring)) = self.ring else { return };
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&id.to_le_bytes());
        bytes[8] = operation;
        bytes[10..12].copy_from_slice(&status.to_le_bytes());
        ring.write(RING_HEADER_SIZE + (self.rsp_prod % SLOTS) as usize * SLOT, &bytes);
        self.rsp_prod = self.rsp_prod.wrapping_add(1);
    }

    fn show(&self) {
        if let Some(word) = self.word(Field::RspProd) {
            word.store(self.rsp_prod, SeqCst);
        }
    }

    fn submit(&mut self, input: &mut Input<'_>) {
        let (what, place) = (input.byte(), input.byte());
        let Some(queue) = self.front.queue(0) else { return };
        let operations = [Operation::Read, Operation::Write, Operation::Flush, Operation::Barrier, Operation::Discard];
        let operation = operations[usize::from(what >> 5) % operations.len()];
        let mut pages = usize::from(what & 31);
        if matches!(operation, Operation::Flush | Operation::Discard) && what & 1 == 0 {
            pages = 0;
        }
        let Ok(mut buffer) = PageBuf::new(&self.thin, pages.max(1) * PAGE_SIZE) else { return };
        buffer.set_len((pages * PAGE_SIZE).saturating_sub(usize::from(place & 1) * 512));
        let io = (self.next, (pages > 0).then_some(buffer));
        let sector = u64::from(place >> 1);
        let submitted = match operation {
            Operation::Discard => queue.submit_discard(sector, u64::from(what & 31), place & 1 != 0, io),
            _ => queue.submit(operation, sector, io),
        };
        match submitted {
            Ok(()) => assert!(self.owner.out.insert(self.next)),
            Err((error, (number, _))) => assert!(number == self.next && !error.to_string().is_empty()),
        }
        self.next += 1;
    }

    fn push(&mut self) {
        if let Some(queue) = self.front.queue(0) {
            queue.push();
        }
    }

    fn poll(&mut self) {
        let owner = &mut self.owner;
        let Some(queue) = self.front.queue(0) else { return };
        if let Err(error) = queue.poll(|completion| owner.done(completion)) {
            self.front.fail(&error);
        }
        self.count();
    }

    fn step(&mut self) {
        let owner = &mut self.owner;
        match self.front.step(|completion| owner.done(completion)) {
            Ok(Change::Closed) => self.closed = true,
            Ok(Change::CloseWanted) => _ = self.front.close(),
            Ok(_) => {}
            Err(error) => assert!(!error.to_string().is_empty()),
        }
        self.count();
    }

    /// What is out and what is in flight is the same, but for what is to be sent again.
    fn count(&mut self) {
        let connected = self.front.device().state() == State::Connected;
        let Some(queue) = self.front.queue(0) else { return };
        assert!(queue.in_flight() as usize <= self.owner.out.len());
        if connected && queue.disk().is_some() {
            assert_eq!(queue.in_flight() as usize, self.owner.out.len());
        }
    }

    fn say(&self, node: &str, value: u64) {
        self.tree.say(&format!("{BACK}/{node}"), value);
    }

    fn act(&mut self, input: &mut Input<'_>) {
        match input.byte() % 24 {
            0..=3 => self.submit(input),
            4 => {
                self.submit(input);
                self.push();
            }
            5 => self.push(),
            6..=8 => {
                let how = input.byte();
                for _ in 0..1 + how % 4 {
                    let Some((id, operation, _)) = self.take() else { break };
                    let status = [0, 0, 0, 0, 0, -1, -2, i16::from(how) - 100][usize::from(how / 32)];
                    self.respond(id, operation, status);
                }
                self.show();
                self.poll();
            }
            9 => {
                // To nothing, to something else than was asked, or once more.
                let (id, operation) = (input.byte(), input.byte());
                match id {
                    0..=99 => self.respond(u64::from(id % 40), operation % 7, 0),
                    100..=163 => self.respond(u64::MAX >> (id - 100), operation % 7, 0),
                    _ => self.respond(self.last.0, self.last.1, 0),
                }
                self.show();
            }
            10 => {
                let (at, byte) = (usize::from(input.byte()) * 16 + usize::from(input.byte() % 16), input.byte());
                if let Some((_, ring)) = self.ring {
                    ring.write(at, &[byte]);
                }
            }
            11 => {
                let (low, high) = (input.byte(), input.byte());
                let far = if high & 1 != 0 { 1 << (high >> 3) } else { 0 };
                self.rsp_prod = self.rsp_prod.wrapping_add_signed(i32::from(low as i8)).wrapping_add(far);
                self.show();
            }
            12 => {
                // A page of the next request is mapped before it is answered.
                let how = input.byte();
                if let Some((id, operation, gref)) = self.take() {
                    if gref < 512 && self.ring.is_none_or(|(ring, _)| ring != gref) {
                        self.thin.peer_maps(gref, how & 1 != 0);
                    }
                    if how & 2 != 0 {
                        self.respond(id, operation, 0);
                        self.show();
                    }
                }
            }
            13 => {
                let gref = 8 + u32::from(input.byte());
                if self.ring.is_none_or(|(ring, _)| ring != gref) {
                    if gref % 2 == 0 {
                        self.thin.peer_unmaps(gref)
                    } else {
                        _ = self.thin.peer_maps(gref, true)
                    };
                }
            }
            14 => self.poll(),
            15 => {
                self.say("state", u64::from(input.byte() % 8));
                self.step();
            }
            16 => {
                let nodes = ["sectors", "sector-size", "info", "feature-barrier", "feature-discard", "state"];
                let (node, value) = (input.byte(), input.byte());
                let path = format!("{BACK}/{}", nodes[usize::from(node) % nodes.len()]);
                match value {
                    0..=99 => self.tree.say(&path, value),
                    100..=130 => self.tree.remove(&path),
                    131..=160 => self.tree.say_bytes(&path, input.bytes(usize::from(value % 8))),
                    161..=200 => self.tree.say(&path, 1_u64 << (value % 64)),
                    _ => self.tree.say(&path, u64::MAX / u64::from(value)),
                }
            }
            17 => match input.byte() {
                0..=60 => _ = self.front.close(),
                61..=120 => self.thin.refuse_allocs(1),
                121..=180 => self.tree.refuse(1),
                181..=200 => self.tree.remove(FRONT),
                _ => self.front.set_patience_ns(1_000_000_000),
            },
            18 => {
                self.thin.pass(u64::from(input.byte()) * 100_000_000);
                self.step();
            }
            19 => {
                // It is another, which is there at once.
                self.detach();
                let states: &[u64] = if input.byte() & 1 != 0 { &[6, 2] } else { &[2] };
                for state in states {
                    self.say("state", *state);
                    self.step();
                }
                self.step();
                self.attach();
                self.say("state", 4);
                self.step();
            }
            20 => self.attach(),
            21 => self.detach(),
            _ => self.step(),
        }
    }

    /// The back end lets go of all, or is gone with all that it has.
    fn end(&mut self, abandon: bool) {
        self.tree.refuse(0);
        self.thin.refuse_allocs(0);
        if !abandon {
            (0..512).for_each(|gref| self.thin.peer_unmaps(gref));
        }
        let _ = self.front.close();
        self.tree.remove("/local/domain/1");
        for _ in 0..4 {
            if !self.closed {
                self.poll();
                self.step();
                self.thin.pass(2_000_000_000);
            }
        }
        if abandon && !self.closed {
            let owner = &mut self.owner;
            self.closed = self.front.abandon(|completion| owner.done(completion)) == Change::Closed;
        }
        assert!(self.closed || self.front.queues() == 0, "it doesn't come to an end");
        assert!(self.owner.out.is_empty(), "{} never came back", self.owner.out.len());
    }
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let bed = fresh();
    let free = bed.grants.stats().free;
    let Domain { platform: thin, store: tree, .. } = bed.clone();
    let (shape, more) = (input.byte(), input.byte());
    let config = Config {
        max_indirect_segments: if shape & 1 != 0 { 16 } else { 0 },
        persistent: shape & 2 != 0,
        trusted: shape & 4 == 0,
        max_grants: 16 + u16::from(shape >> 4),
        reconnect: shape & 8 != 0,
        ..Config::DEFAULT
    };
    tree.say(&format!("{FRONT}/backend"), BACK);
    tree.say(&format!("{FRONT}/backend-id"), PEER.0);
    for (node, value) in [
        ("state", 2),
        ("sectors", 128),
        ("sector-size", if more & 1 != 0 { 4096 } else { 512 }),
        ("info", if more & 0x30 == 0x30 { 4 } else { 0 }),
        ("feature-flush-cache", u64::from(more >> 1 & 1)),
        ("feature-barrier", u64::from(more >> 2 & 1)),
        ("feature-discard", u64::from(more >> 3 & 1)),
        ("feature-persistent", 1),
        ("feature-max-indirect-segments", 32),
    ] {
        tree.say(&format!("{BACK}/{node}"), value);
    }
    let Ok(front) = Front::new(&bed, FRONT, config) else { panic!("the nodes are right") };
    let owner = Owner::default();
    let (ring, req_cons, rsp_prod, last, next) = (None, 0, 0, (0, 0), 0);
    let mut peer = Peer { thin, tree, front, owner, ring, req_cons, rsp_prod, last, next, closed: false };
    peer.step();
    peer.attach();
    peer.say("state", 4);
    peer.step();
    assert!(peer.ring.is_some() && peer.front.disk().is_some(), "the back end was honest so far");
    let mut acts = 0;
    while !input.is_empty() && acts < 300 && !peer.closed {
        peer.act(&mut input);
        acts += 1;
    }
    peer.end(more & 0x40 != 0);
    let Peer { front, owner, thin, .. } = peer;
    drop(front);
    // What is mapped to the last is given back when it is let go of; a buffer that never came back is lost, and no other page.
    (0..512).for_each(|gref| thin.peer_unmaps(gref));
    bed.grants.retry_quarantine();
    assert_eq!(thin.in_use().0, owner.lost, "other pages are lost than those of buffers that were held");
    thin.forget_lost();
    check_quiet(&bed, free);
});
