//! A front end that breaks every rule that it can, until the toolstack asks for the end: `hostile [seed=N]`. Its domain's disk is
//! served by somebody who must stay unharmed, and serve the others meanwhile.
//!
//! In each round it connects as an honest front end does, in one of the two layouts, lies in one way, and leaves, often without a word. It
//! writes the protocol by hand: the drivers of this project would not let it lie.

use alloc::format;
use alloc::string::{String, ToString};
use core::mem::offset_of;
use core::sync::atomic::Ordering::{Relaxed, Release};

use hypercall::Platform;
use hypercall::event::{Channel, EventChannels};
use hypercall::grant::{GrantTable, SharedPages};
use suite::node::Node;
use suite::{Context, Failure};
use xen_sys::io::blkif::{BlkifOp, BlkifRequestSegment, x86_32, x86_64};
use xen_sys::io::protocols::{XEN_IO_PROTO_ABI_X86_32, XEN_IO_PROTO_ABI_X86_64};
use xen_sys::io::ring::{RING_HEADER_SIZE, SringHeader};
use xenbus::device::{Device, Enumerator, Hotplug, State};
use xenbus::store::{Tx, XenStore};

use super::Args;
use super::outside::{self, Administrator};
use crate::memory::PAGE_SIZE;
use crate::{Bare, println};

/// How long the other end may take for a step of the life cycle.
const PATIENCE_NS: u64 = 120_000_000_000;
/// How long a lie may have no effect: some are ignored.
const EFFECT_NS: u64 = 300_000_000;
/// How often it is looked at what the other end does, though no event has come. Each look is work for dom0's xenstored, which is
/// nobody's enemy here.
const LOOK_NS: u64 = 100_000_000;
/// The time between two rounds, for the same reason; after one that took longer, as long as that.
const PAUSE_NS: u64 = 200_000_000;

/// Where the indices stand in the ring's page.
const REQ_PROD: usize = offset_of!(SringHeader, req_prod);
const RSP_PROD: usize = offset_of!(SringHeader, rsp_prod);
const RSP_EVENT: usize = offset_of!(SringHeader, rsp_event);
/// Slots of a ring of one page, in either layout.
const RING: u32 = 32;
/// Bytes of a request at most.
const REQUEST: usize = size_of::<x86_64::BlkifRequest>();

/// Where something stands in a request. Operation and number of segments are where they are in both.
struct Layout {
    /// As the node `protocol` has it.
    name: &'static str,
    slot: usize,
    id: usize,
    sector: usize,
    /// Segments, or the sectors of a discard.
    data: usize,
    /// Pages of segments.
    tables: usize,
}

macro_rules! layout {
    ($module:ident, $name:ident) => {
        Layout {
            name: $name,
            slot: size_of::<$module::BlkifRequest>(),
            id: offset_of!($module::BlkifRequest, id),
            sector: offset_of!($module::BlkifRequest, sector_number),
            data: offset_of!($module::BlkifRequest, seg),
            tables: offset_of!($module::BlkifRequestIndirect, indirect_grefs),
        }
    };
}

const LAYOUTS: [Layout; 2] = [layout!(x86_64, XEN_IO_PROTO_ABI_X86_64), layout!(x86_32, XEN_IO_PROTO_ABI_X86_32)];

type Store_ = XenStore<Bare, EventChannels<Bare>>;

/// A lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lie {
    /// Slots full of noise.
    Noise,
    /// Requests that look good but for one field each.
    Fields,
    /// Indirect requests with one thing wrong in each, or on their page of segments.
    Indirect,
    /// Discards of nothing, or beyond the end, or around it.
    Discard,
    /// Requests that go on changing while they are read.
    Scribble,
    /// An index that jumps.
    Jump,
    /// Nodes that are no numbers, or name what was never offered.
    Nodes,
    /// Leaving in the middle of honest requests, their pages mapped.
    Leave,
}

const LIES: [Lie; 8] =
    [Lie::Noise, Lie::Fields, Lie::Indirect, Lie::Discard, Lie::Scribble, Lie::Jump, Lie::Nodes, Lie::Leave];

/// What the lies have come to.
#[derive(Debug, Default)]
struct Outcome {
    rounds: usize,
    /// Rounds in which requests were answered.
    answered: usize,
    /// Rounds in which the other end closed the device.
    closed: usize,
}

pub(super) fn run(args: &Args<'_>) -> Result<(), String> {
    let mut liar = Liar { node: outside::node()?, random: Random(args.number("seed", 1)?) };
    let outcome = liar.live().map_err(|failure| failure.to_string())?;
    let Outcome { rounds, answered, closed } = outcome;
    println!("xenlab: hostile rounds={rounds} answered={answered} closed={closed}");
    // Else there was nothing by which anybody could have been harmed.
    let each = rounds >= LIES.len() && answered > 0 && closed > 0;
    if each { Ok(()) } else { Err("not every lie was told, or none had an effect".into()) }
}

/// A linear congruential generator; its upper half is the random one.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 32) as u32
    }

    /// Returns a number below `end`, not quite evenly.
    fn below(&mut self, end: u32) -> u32 {
        self.next() % end
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        bytes.fill_with(|| self.next() as u8);
    }
}

struct Liar {
    node: Node<Bare>,
    random: Random,
}

impl Liar {
    fn live(&mut self) -> Result<Outcome, Failure> {
        let node = self.node.clone();
        let administrator = Administrator::new(&node)?;
        let path = self.find()?;
        println!("xenlab: hostile on {path}");
        let mut outcome = Outcome::default();
        while !administrator.wants_the_end()? {
            let lie = LIES[outcome.rounds % LIES.len()];
            let begin = Bare.now_ns();
            let told = self.round(&path, lie, &mut outcome);
            told.map_err(|failure| Failure(format!("round {}, {lie:?}: {failure}", outcome.rounds)))?;
            outcome.rounds += 1;
            if outcome.rounds == LIES.len() {
                println!("xenlab: hostile has told each lie once");
            }
            let now = Bare.now_ns();
            Bare.wait(&[], now + PAUSE_NS.max(now - begin));
        }
        Ok(outcome)
    }

    /// Waits until `look` finds something, or the time is over.
    fn until<T>(&self, patience_ns: u64, mut look: impl FnMut() -> Result<Option<T>, Failure>) -> Result<T, Failure> {
        let end = Bare.now_ns() + patience_ns;
        loop {
            while self.node.deliver() {}
            if let Some(found) = look()? {
                return Ok(found);
            }
            if Bare.now_ns() > end {
                return Err(Failure::new("the other end does nothing"));
            }
            Bare.wait(&self.node.waits(), Bare.now_ns() + LOOK_NS);
        }
    }

    /// Waits for the domain's disk.
    fn find(&self) -> Result<String, Failure> {
        let mut devices = Enumerator::front(self.node.store(), "vbd").context("watch device/vbd")?;
        self.until(PATIENCE_NS, || {
            let changes = devices.changes().context("list devices")?;
            Ok(changes.into_iter().find_map(|change| match change {
                Hotplug::Added(path) => Some(path),
                Hotplug::Removed(_) => None,
            }))
        })
    }

    /// Waits until the other end is in a state.
    fn other_is(&self, device: &Device<Store_>, wanted: State) -> Result<(), Failure> {
        self.until(PATIENCE_NS, || {
            let state = device.other_state().context("the other state")?;
            Ok((state == wanted).then_some(()))
        })
        .map_err(|failure| Failure(format!("{wanted}: {failure}")))
    }

    fn round(&mut self, path: &str, lie: Lie, outcome: &mut Outcome) -> Result<(), Failure> {
        let own = self.node.own().clone();
        let mut device = Device::front(self.node.store(), path).context("device")?;
        device.switch(State::Initialising).context("begin")?;
        self.other_is(&device, State::InitWait)?;
        let page = SharedPages::new(&own.grants, device.other_id(), 1).context("ring")?;
        let data = SharedPages::new(&own.grants, device.other_id(), 1).context("data")?;
        let layout = &LAYOUTS[self.random.below(2) as usize];
        let channel = Channel::offer(&own.events, device.other_id()).context("port")?;
        // The index at which the other end is to tell of an answer.
        page.shared().word(RSP_EVENT).store(1, Release);
        let (mut gref, mut port) = (page.refs()[0].0.to_string(), channel.port().0.to_string());
        if lie == Lie::Nodes {
            let nonsense = ["", "no number", "-1", "4294967296", "4294967295", "12345"];
            let word = nonsense[self.random.below(nonsense.len() as u32) as usize].to_string();
            *(if self.random.below(2) == 0 { &mut gref } else { &mut port }) = word;
        }
        device.write_own(Tx::NONE, "ring-ref", gref).context("tell the ring")?;
        device.write_own(Tx::NONE, "event-channel", port).context("tell the port")?;
        device.write_own(Tx::NONE, "protocol", layout.name).context("tell the protocol")?;
        device.switch(State::Initialised).context("offer")?;
        let refused = || State::Closing == device.other_state().unwrap_or(State::Unknown);
        if lie == Lie::Nodes {
            self.other_is(&device, State::Closing)?;
        } else {
            self.other_is(&device, State::Connected)?;
            self.tell(lie, layout, &page, &data, &channel);
        }
        let answered = || page.shared().word(RSP_PROD).load(Relaxed) != 0;
        if lie != Lie::Leave {
            // Some lies lead to nothing: that is no failure.
            let _ = self.until(EFFECT_NS, || Ok((answered() || refused()).then_some(())));
        }
        outcome.answered += usize::from(answered());
        outcome.closed += usize::from(refused());
        // Pages and port go while the other end may still use them, or when it has let go of them.
        let kept = if lie == Lie::Leave || self.random.below(2) == 0 { None } else { Some((page, data, channel)) };
        device.leave(State::Closed).context("leave")?;
        self.other_is(&device, State::Closed)?;
        drop(kept);
        Ok(())
    }

    /// Tells one lie in the ring.
    fn tell(
        &mut self,
        lie: Lie,
        layout: &Layout,
        page: &SharedPages<GrantTable<Bare>>,
        data: &SharedPages<GrantTable<Bare>>,
        channel: &Channel<EventChannels<Bare>>,
    ) {
        let ring = page.shared();
        let good = data.refs()[0].0;
        let produced = match lie {
            Lie::Noise => self.noise(page),
            Lie::Jump => self.random.next() | 1 << 31,
            _ => {
                if lie == Lie::Indirect {
                    self.scrawl(data);
                }
                for slot in 0..RING {
                    let mut request = layout.request(slot, self.random.below(2) as u8, good);
                    match lie {
                        Lie::Indirect => self.spoil_indirect(layout, &mut request, good),
                        Lie::Discard => self.spoil_discard(layout, &mut request),
                        Lie::Leave => {}
                        _ => self.spoil(layout, &mut request),
                    }
                    ring.write(RING_HEADER_SIZE + slot as usize * layout.slot, &request[..layout.slot]);
                }
                RING
            }
        };
        // The slots before the index that publishes them.
        ring.word(REQ_PROD).store(produced, Release);
        channel.notify();
        if lie == Lie::Scribble {
            let end = Bare.now_ns() + EFFECT_NS / 10;
            while Bare.now_ns() < end {
                self.noise(page);
                channel.notify();
            }
            ring.word(REQ_PROD).store(self.random.below(2 * RING), Release);
            channel.notify();
        }
    }

    /// Fills the slots with noise, and returns a number of requests.
    fn noise(&mut self, page: &SharedPages<GrantTable<Bare>>) -> u32 {
        let mut noise = [0; PAGE_SIZE - RING_HEADER_SIZE];
        self.random.fill(&mut noise);
        page.shared().write(RING_HEADER_SIZE, &noise);
        1 + self.random.below(RING)
    }

    /// Changes one field of a request, or none.
    fn spoil(&mut self, layout: &Layout, request: &mut [u8; REQUEST]) {
        let Layout { sector, data, .. } = *layout;
        // Operation, number of segments, sector, first segment's reference, its first and last sector.
        let fields = [0..1, 1..2, sector..sector + 8, data..data + 4, data + 4..data + 5, data + 5..data + 6, 0..0];
        let field = fields[self.random.below(fields.len() as u32) as usize].clone();
        self.random.fill(&mut request[field]);
    }

    /// Makes a page one of segments: eight that are good, each a sector of that page itself, and noise.
    fn scrawl(&mut self, data: &SharedPages<GrantTable<Bare>>) {
        let mut table = [0; PAGE_SIZE];
        self.random.fill(&mut table);
        for (segment, sector) in table.chunks_exact_mut(size_of::<BlkifRequestSegment>()).zip(0..8) {
            segment[..4].copy_from_slice(&data.refs()[0].0.to_le_bytes());
            segment[4..].copy_from_slice(&[sector, sector, 0, 0]);
        }
        data.shared().write(0, &table);
    }

    /// Makes a request an indirect one, in which one thing is wrong, or none.
    fn spoil_indirect(&mut self, layout: &Layout, request: &mut [u8; REQUEST], table: u32) {
        let (mut inner, mut segments, mut gref) = (request[0], 1 + self.random.below(8) as u16, table);
        match self.random.below(6) {
            0 => segments = 0,
            // More than are offered, or than there can be.
            1 => segments = 257 + self.random.below(65_000) as u16,
            // Of another operation: one that moves no data, an indirect one, or none.
            2 => inner = 2 + self.random.below(254) as u8,
            3 => gref = self.random.next(),
            // The noise on the page.
            4 => segments = 9 + self.random.below(248) as u16,
            _ => {}
        }
        (request[0], request[1]) = (BlkifOp::INDIRECT.0, inner);
        request[2..4].copy_from_slice(&segments.to_le_bytes());
        request[layout.data..].fill(0);
        request[layout.tables..][..4].copy_from_slice(&gref.to_le_bytes());
    }

    /// Makes a request a discard, secure or not, with something wrong in where it is, or nothing but that it may not be aligned.
    fn spoil_discard(&mut self, layout: &Layout, request: &mut [u8; REQUEST]) {
        let (far, near) = (u64::MAX - u64::from(self.random.below(16)), u64::from(self.random.below(16)));
        let (sector, sectors) = match self.random.below(5) {
            0 => (near, 0),
            1 => (far, near),
            2 => (near, far),
            3 => (far, far),
            _ => (near, near),
        };
        (request[0], request[1]) = (BlkifOp::DISCARD.0, self.random.next() as u8);
        request[layout.data..].fill(0);
        request[layout.sector..][..8].copy_from_slice(&sector.to_le_bytes());
        request[layout.data..][..8].copy_from_slice(&sectors.to_le_bytes());
    }
}

impl Layout {
    /// Makes a good request: a page of the disk, read or written.
    fn request(&self, number: u32, operation: u8, gref: u32) -> [u8; REQUEST] {
        let mut request = [0; REQUEST];
        request[0] = operation;
        request[1] = 1;
        request[self.id..][..8].copy_from_slice(&u64::from(number).to_le_bytes());
        request[self.sector..][..8].copy_from_slice(&u64::from(number * 8).to_le_bytes());
        request[self.data..][..4].copy_from_slice(&gref.to_le_bytes());
        request[self.data + 5] = 7;
        request
    }
}
