//! A front end that does what it likes: whatever it writes into the ring, into its grants and its nodes, whatever the disk does meanwhile,
//! and whatever the toolstack wants. Nothing panics; each request that is taken is answered once; the disk is asked for nothing that it
//! may not be asked for, and works on memory that is mapped; no quota is exceeded; at the end nothing is held.
#![no_main]

use std::sync::atomic::Ordering::SeqCst;

use fuzz::bed::{Domain, OWN, check_quiet, fresh};
use fuzz::input::Input;
use fuzz::shelf::Shelf;
use fuzz::thin::{FOREIGN, Grant, PEER, Thin};
use fuzz::tree::Tree;
use hypercall::mem::Shared;
use libfuzzer_sys::fuzz_target;
use xbd::back::{Back, Change, Config, StoreFault};
use xbd::features::Discard;
use xen_sys::io::blkif::BlkifOp;
use xen_sys::io::ring::RING_HEADER_SIZE;
use xenbus::ring::Field;

const BACK: &str = "backend/vbd/1/51712";
const FRONT: &str = "/local/domain/1/device/vbd/51712";
/// Sectors of the disk.
const SECTORS: u64 = 64;
/// What the disk may hold at most.
const PAGES: usize = 24;
const KEPT: usize = 6;

const NARROW: &str = "x86_32-abi";

/// Bytes of a slot, and where in it a number stands.
const fn layout(narrow: bool) -> (usize, usize) {
    if narrow { (108, 4) } else { (112, 8) }
}

/// What a front end can know of its ring and of what it has asked for.
struct Peer {
    thin: Thin,
    tree: Tree,
    disk: Shelf,
    back: Back<Domain, Shelf>,
    ring: Shared<'static>,
    /// Bytes of a slot, and where in it a number stands.
    slot: usize,
    id_at: usize,
    slots: u32,
    req_prod: u32,
    /// Responses that were seen.
    rsp_seen: u32,
    next_id: u64,
    /// Numbers of what was taken and not answered.
    open: Vec<u64>,
    /// Whether `open` has all of them: not if slots were taken again that had been answered at the same time.
    known: bool,
    taken: u64,
    answered: u64,
    removed: bool,
}

impl Peer {
    fn word(&self, field: Field) -> &std::sync::atomic::AtomicU32 {
        self.ring.word(field.offset())
    }

    fn at(&self, index: u32) -> usize {
        RING_HEADER_SIZE + (index & (self.slots - 1)) as usize * self.slot
    }

    fn id(&self, index: u32) -> u64 {
        let mut bytes = [0; 8];
        self.ring.read(self.at(index) + self.id_at, &mut bytes);
        u64::from_le_bytes(bytes)
    }

    /// Puts a request into the next slot, most of which are right in most of what they say.
    fn request(&mut self, input: &mut Input<'_>) {
        let (kind, shape, place) = (input.byte(), input.byte(), input.byte());
        let mut bytes = [0; 112];
        let operations = [BlkifOp::READ, BlkifOp::WRITE, BlkifOp::INDIRECT, BlkifOp::FLUSH_DISKCACHE];
        let rare = [BlkifOp::WRITE_BARRIER, BlkifOp::DISCARD, BlkifOp(4), BlkifOp(kind)];
        let operation = if kind < 192 { operations[usize::from(kind % 4)] } else { rare[usize::from(kind % 4)] };
        self.next_id += u64::from(place != 255);
        let sector = if place < 250 { u64::from(place % 68) } else { u64::MAX << (place - 250) };
        let gref = 4 + u32::from(shape % 8) * 4;
        let head = self.id_at + 16;
        bytes[0] = operation.0;
        bytes[self.id_at..][..8].copy_from_slice(&self.next_id.to_le_bytes());
        bytes[self.id_at + 8..][..8].copy_from_slice(&sector.to_le_bytes());
        match operation {
            BlkifOp::INDIRECT => {
                let count = u16::from(shape % 20) + if shape == 255 { 500 } else { 0 };
                bytes[1] = u8::from(kind & 4 != 0);
                bytes[2..4].copy_from_slice(&count.to_le_bytes());
                for page in 0..8 {
                    let gref = u32::from(place % 3) + 1 + page;
                    bytes[head + 4 + page as usize * 4..][..4].copy_from_slice(&gref.to_le_bytes());
                }
            }
            BlkifOp::DISCARD => {
                bytes[1] = kind >> 2 & 1;
                bytes[head..][..8].copy_from_slice(&u64::from(shape).to_le_bytes());
            }
            BlkifOp::FLUSH_DISKCACHE => bytes[1] = u8::from(shape == 255),
            _ => {
                let count = shape / 16;
                let sectors = if kind & 8 != 0 { input.byte() } else { 7 << 3 };
                bytes[1] = count;
                for (index, segment) in bytes[head..].as_chunks_mut::<8>().0.iter_mut().take(count.into()).enumerate() {
                    segment[..4].copy_from_slice(&(gref + index as u32).to_le_bytes());
                    (segment[4], segment[5]) = (sectors & 7, sectors >> 3 & 15);
                }
            }
        }
        self.ring.write(self.at(self.req_prod), &bytes[..self.slot]);
        self.req_prod = self.req_prod.wrapping_add(1);
    }

    /// Lets the back end do something, and looks at the answers.
    fn call<T>(&mut self, work: impl FnOnce(&mut Back<Domain, Shelf>) -> T) -> T {
        let connected = self.back.queues() > 0;
        // What it would take next, whatever was claimed before and is now: as many as there are slots without an answer to come.
        let unanswered = (self.taken - self.answered) as u32;
        let next = self.rsp_seen.wrapping_add(unanswered);
        let ids: Vec<u64> =
            (0..self.slots.saturating_sub(unanswered)).map(|at| self.id(next.wrapping_add(at))).collect();
        // The index of responses is the back end's own: it must not matter what stands there.
        let lie = self.rsp_seen.wrapping_add(1 << 31);
        if connected {
            self.word(Field::RspProd).store(lie, SeqCst);
        }
        let done = work(&mut self.back);
        if !connected {
            if self.back.queues() > 0 {
                self.begin();
            }
            return done;
        }
        let counters = self.back.counters();
        if let Some(counters) = counters {
            let more = (counters.requests - self.taken) as usize;
            assert!(more <= self.slots as usize, "more than a ring's worth at once");
            self.known &= more <= ids.len();
            self.open.extend(ids.iter().take(more));
            self.taken = counters.requests;
            assert_eq!(counters.lost, 0);
        } else {
            // It has let go of the ring, and may have served what was there before: nobody tells how much.
            self.known = false;
        }
        let shown = self.word(Field::RspProd).load(SeqCst);
        if shown != lie {
            let count = shown.wrapping_sub(self.rsp_seen);
            // Those that were open, and a ring's worth: a front end that asks for more than there is room for gets as much if room
            // is made in the same call. It has written over its own requests then.
            assert!((1..=unanswered + self.slots).contains(&count), "{count} responses");
            for index in 0..count {
                let mut bytes = [0; 8];
                let at = self.at(self.rsp_seen.wrapping_add(index));
                self.ring.read(at, &mut bytes);
                let open = self.open.iter().position(|id| *id == u64::from_le_bytes(bytes));
                match open {
                    Some(open) => _ = self.open.swap_remove(open),
                    None => assert!(!self.known, "an answer to nothing, or a second one"),
                }
            }
            self.rsp_seen = shown;
            self.answered += u64::from(count);
        } else {
            self.word(Field::RspProd).store(self.rsp_seen, SeqCst);
        }
        if counters.is_none() {
            self.taken = self.taken.max(self.answered);
        }
        assert!(self.answered <= self.taken, "more answers than requests");
        assert!(self.thin.mapped() <= 2 + PAGES + KEPT, "{} pages are mapped", self.thin.mapped());
        if self.back.queues() == 0 {
            // One may have been waiting for room when the end came.
            assert!(self.taken - self.answered <= 1, "{} were taken and not answered", self.taken - self.answered);
            assert_eq!(self.disk.busy(), 0, "let go of while the disk works");
            assert!(self.thin.mapped() == 0, "pages are mapped without a queue");
        }
        done
    }

    /// It is connected, by the ring that its nodes tell of now, and begins where the responses end.
    fn begin(&mut self) {
        let node = |node: &str| self.tree.text(&format!("{FRONT}/{node}"));
        let number = |name: &str| node(name).and_then(|text| text.parse::<usize>().ok());
        let pages = 1 << number("ring-page-order").unwrap_or(0);
        // Of several pages, the first has the number 0 here.
        let first = if pages > 1 { 0 } else { number("ring-ref").unwrap_or(0) };
        self.ring = self.thin.foreign(first, pages);
        self.slots = 32 * pages as u32;
        (self.slot, self.id_at) = layout(node("protocol").as_deref() == Some(NARROW));
        self.disk.0.borrow_mut().spared = self.ring.as_ptr()..self.ring.slice(self.ring.len(), 0).as_ptr();
        self.rsp_seen = self.word(Field::RspProd).load(SeqCst);
        (self.taken, self.answered, self.known) = (0, 0, true);
        self.open.clear();
    }

    fn poll(&mut self) {
        let polled = self.call(|back| back.poll(0));
        if let Err(error) = &polled {
            assert!(!error.to_string().is_empty());
        }
        if let Ok(false) = polled
            && !self.back.store_busy()
            // Where it has been given up, nothing is taken any more, and what waited for room is forgotten.
            && !self.back.closing()
            && self.back.device().state() == xenbus::device::State::Connected
        {
            assert_eq!(self.answered, self.taken, "a request without an answer, and nothing under way");
        }
    }

    fn step(&mut self) {
        match self.call(Back::step) {
            Ok(Change::Removed) => self.removed = true,
            Ok(Change::None | Change::Connected | Change::Disconnected) => {}
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }

    fn act(&mut self, input: &mut Input<'_>) {
        match input.byte() % 24 {
            0..=4 => self.request(input),
            5..=7 => {
                self.word(Field::ReqProd).store(self.req_prod, SeqCst);
                self.poll();
            }
            8 => {
                // Any byte of the ring, but one that is the back end's own business.
                let (at, byte) = (usize::from(input.byte()) * 16 + usize::from(input.byte() % 16), input.byte());
                self.ring.write(at % self.ring.len(), &[byte]);
            }
            9 => {
                let (low, high) = (input.byte(), input.byte());
                let far = if high & 1 != 0 { 1 << (high >> 3) } else { 0 };
                self.req_prod = self.req_prod.wrapping_add_signed(i32::from(low as i8)).wrapping_add(far);
                self.word(Field::ReqProd).store(self.req_prod, SeqCst);
            }
            10 => {
                let (gref, how) = (usize::from(input.byte()) % FOREIGN, input.byte());
                let ways = [Grant::None, Grant::Whole, Grant::ReadOnly, Grant::Away(how / 8)];
                self.thin.grant(gref, ways[usize::from(how % 4)]);
            }
            11 => {
                // A segment of an indirect request.
                let (page, at, gref, sectors) = (input.byte(), input.byte(), input.byte(), input.byte());
                let segment = [gref % 80, 0, 0, 0, sectors & 7, sectors >> 3 & 15, 0, 0];
                let table = self.thin.foreign(1 + usize::from(page % 3), 1);
                table.write(usize::from(at % 24) * 8, &segment);
            }
            12..=14 => self.poll(),
            15 | 16 => {
                let (which, how) = (input.byte(), input.byte());
                let result = match how {
                    0..=200 => Ok(()),
                    201..=230 => Err(StoreFault::Failed),
                    _ => Err(StoreFault::NotSupported),
                };
                self.disk.finish(which.into(), result);
            }
            17 => {
                let how = input.byte();
                let mut inside = self.disk.0.borrow_mut();
                inside.hold = how & 1 != 0;
                inside.result = if how & 2 != 0 { Err(StoreFault::Failed) } else { Ok(()) };
            }
            18 => {
                self.thin.pass(u64::from(input.byte()) * 500_000_000);
                let now = hypercall::Platform::now_ns(&self.thin);
                self.call(|back| back.tend(now));
            }
            19 => {
                self.tree.say(&format!("{FRONT}/state"), input.byte() % 8);
                self.step();
            }
            20 => {
                let nodes = ["state", "ring-ref", "event-channel", "protocol", "feature-persistent", "ring-page-order"];
                let (node, value) = (input.byte(), input.byte());
                let path = format!("{FRONT}/{}", nodes[usize::from(node) % nodes.len()]);
                match value {
                    0..=99 => self.tree.say(&path, value % 8),
                    100..=150 => self.tree.remove(&path),
                    151..=200 => self.tree.say_bytes(&path, input.bytes(usize::from(value % 8))),
                    _ => self.tree.say(&path, u64::MAX / u64::from(value)),
                }
            }
            21 => match input.byte() {
                0..=40 => self.tree.say(&format!("{BACK}/online"), 0),
                41..=60 => self.tree.remove(BACK),
                61..=120 => self.tree.say(&format!("{BACK}/state"), 5),
                121..=160 => self.thin.refuse_allocs(1),
                161..=200 => self.tree.refuse(1),
                other => self.disk.lie(u16::from(other) - 200),
            },
            22 => {
                let sectors = u64::from(input.byte() % 64) * 8;
                self.disk.0.borrow_mut().sectors = sectors;
                let told = self.call(Back::resized).is_ok();
                let mut inside = self.disk.0.borrow_mut();
                // What was taken before, and all if it could not be told, may go to the old end.
                let old = if told && self.taken == self.answered { 0 } else { inside.end };
                inside.end = old.max(sectors);
            }
            _ => self.step(),
        }
    }

    /// All comes to an end, as it does when the other end's domain is gone.
    fn end(mut self) {
        self.tree.refuse(0);
        self.thin.refuse_allocs(0);
        self.tree.remove("/local/domain/1");
        self.tree.say(&format!("{BACK}/online"), 0);
        for _ in 0..8 {
            while self.disk.finish(0, Ok(())) {}
            self.disk.0.borrow_mut().hold = false;
            if self.removed {
                return;
            }
            self.poll();
            self.step();
            // For as long as a rest takes, or what was refused waits to be asked for again.
            self.thin.pass(100_000_000);
        }
        assert!(self.removed, "it doesn't come to an end");
    }
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let bed = fresh();
    let free = bed.grants.stats().free;
    let Domain { platform: thin, store: tree, .. } = bed.clone();
    let (shape, start) = (input.byte(), input.byte());
    let disk = Shelf::new(&thin, SECTORS, if shape & 1 != 0 { 4096 } else { 512 });
    {
        let mut inside = disk.0.borrow_mut();
        inside.hold = shape & 2 != 0;
        inside.read_only = shape & 0x1c == 0x1c;
        let unit = inside.sector_size;
        let discard = Discard { granularity: unit, alignment: 0, secure: shape & 0x20 != 0 };
        inside.discard = (shape & 4 != 0).then_some(discard);
    }
    let persistent = shape & 0x40 != 0;
    let config = Config {
        max_queues: 1,
        max_ring_pages: 2,
        max_indirect_segments: if start & 1 != 0 { 16 } else { 0 },
        persistent,
        max_persistent: KEPT as u16,
        idle_ns: 60_000_000_000,
        rest_ns: if start & 32 != 0 { 100_000_000 } else { 0 },
        pages: PAGES as u16,
        copy_limit: if start & 16 != 0 { 4096 } else { 0 },
        copy_pages: 6,
    };
    tree.say(&format!("{BACK}/frontend"), FRONT);
    tree.say(&format!("{BACK}/frontend-id"), PEER.0);
    tree.say(&format!("{BACK}/online"), 1);
    tree.say(&format!("{BACK}/state"), 1);
    tree.say(&format!("{FRONT}/state"), 1);
    tree.say(&format!("{FRONT}/backend-id"), OWN.0);
    for gref in 0..FOREIGN - 8 {
        thin.grant(gref, if gref % 8 == 7 { Grant::ReadOnly } else { Grant::Whole });
    }
    let pages = 1 + usize::from(start >> 1 & 1);
    let narrow = start & 4 != 0;
    let (slot, id_at) = layout(narrow);
    let ring = thin.foreign(0, pages);
    // The pages of segments are as they were made; what is in data pages nobody looks at.
    thin.foreign(0, 4).clear_from(0);
    tree.say(&format!("{FRONT}/protocol"), if narrow { NARROW } else { "x86_64-abi" });
    tree.say(&format!("{FRONT}/feature-persistent"), u8::from(persistent));
    if pages > 1 {
        tree.say(&format!("{FRONT}/ring-page-order"), 1);
        tree.say(&format!("{FRONT}/ring-ref0"), 0);
        tree.say(&format!("{FRONT}/ring-ref1"), 1);
    } else {
        tree.say(&format!("{FRONT}/ring-ref"), 0);
    }
    tree.say(&format!("{FRONT}/event-channel"), 7);
    let Ok(back) = Back::new(&bed, BACK, disk.clone(), config) else { panic!("the nodes are right") };
    let mut peer = Peer {
        thin,
        tree,
        disk,
        back,
        ring,
        slot,
        id_at,
        slots: 32 * pages as u32,
        req_prod: 0,
        rsp_seen: 0,
        next_id: 0,
        open: Vec::new(),
        known: true,
        taken: 0,
        answered: 0,
        removed: false,
    };
    // Near the wrap of the indices, or not.
    peer.req_prod = if start & 8 != 0 { u32::MAX - 20 } else { 0 };
    for field in [Field::ReqProd, Field::RspProd] {
        peer.word(field).store(peer.req_prod, SeqCst);
    }
    peer.step();
    peer.tree.say(&format!("{FRONT}/state"), 3);
    peer.step();
    assert_eq!(peer.back.queues(), 1, "the front end was honest so far");
    let mut acts = 0;
    while !input.is_empty() && acts < 300 && !peer.removed {
        peer.act(&mut input);
        acts += 1;
    }
    peer.end();
    check_quiet(&bed, free);
});
