//! The back end that is played, and the bed that it is played on.

use std::sync::atomic::Ordering::SeqCst;

use hypercall::event::Channel;
use hypercall::grant::{Access, MapRequest, Window};
use hypercall::mem::{PAGE_SIZE, PageBuf};
use hypercall::{GrantRef, Port};
use mock::Domain;
use xbd::front::{Config, SubmitError};
use xbd::protocol::Operation;
use xen_sys::io::blkif::x86_64::BlkifRequestIndirect;
use xen_sys::io::blkif::{BLKIF_RSP_OKAY, BlkifOp, BlkifRequest, BlkifRequestSegment, BlkifResponse};
use xen_sys::reinterpret;
use xenbus::device::State;
use xenbus::ring::{Backing, Field, MappedPages, RingMemory, RingPages};
use xenbus::store::{Store, Tx};

use crate::common::{Bed, FrontOwner};

type Events = hypercall::event::EventChannels<Domain>;

/// A request as it was seen in the ring.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) raw: BlkifRequest,
    /// What is to be done, of an indirect one too.
    pub(crate) op: BlkifOp,
    pub(crate) id: u64,
    pub(crate) sector: u64,
    pub(crate) segments: Vec<BlkifRequestSegment>,
    pub(crate) indirect: bool,
}

/// One queue's back end.
pub(crate) struct Player {
    ring: RingPages<MappedPages<Domain>, BlkifRequest, BlkifResponse>,
    pub(crate) slots: u32,
    pub(crate) channel: Channel<Events>,
    req_cons: u32,
    rsp_prod: u32,
    pub(crate) window: Window<Domain>,
}

fn told(bed: &Bed, node: &str) -> Option<String> {
    bed.read(&bed.front, &format!("{}/{node}", bed.device.front_path()))
}

fn number(bed: &Bed, node: &str) -> Option<u32> {
    told(bed, node).map(|text| text.parse().unwrap())
}

impl Player {
    /// Finds the ring of a front end that is Initialised, in a directory of its own or not.
    fn attach(bed: &Bed, folder: &str) -> Self {
        let pages = 1 << number(bed, "ring-page-order").unwrap_or(0);
        assert_eq!(number(bed, "num-ring-pages").unwrap_or(1), pages, "both styles say the same");
        let refs: Vec<_> = if pages == 1 {
            vec![GrantRef(number(bed, &format!("{folder}ring-ref")).unwrap())]
        } else {
            (0..pages).map(|page| GrantRef(number(bed, &format!("{folder}ring-ref{page}")).unwrap())).collect()
        };
        let port = Port(number(bed, &format!("{folder}event-channel")).unwrap());
        let ring = RingPages::new(MappedPages::new(&bed.back.platform, bed.front.id, &refs).unwrap());
        let channel = Channel::bind(&bed.back.events, bed.front.id, port).unwrap();
        let window = Window::new(&bed.back.platform, 2048).unwrap();
        Self { slots: ring.slots(), ring, channel, req_cons: 0, rsp_prod: 0, window }
    }

    /// Finds all rings.
    pub(crate) fn attach_all(bed: &Bed) -> Vec<Self> {
        match number(bed, "multi-queue-num-queues") {
            None | Some(1) => vec![Self::attach(bed, "")],
            Some(count) => {
                assert_eq!(told(bed, "ring-ref"), None);
                (0..count).map(|queue| Self::attach(bed, &format!("queue-{queue}/"))).collect()
            }
        }
    }

    /// Connects a front end; the back end's nodes are these, besides a size.
    pub(crate) fn connect(bed: &Bed, front: &mut FrontOwner, nodes: &[(&str, &str)]) -> Vec<Self> {
        front.connected = false;
        bed.back_says("sectors", 65536).unwrap();
        for (node, value) in nodes {
            bed.back_says(node, value).unwrap();
        }
        bed.back_says("state", State::InitWait.number()).unwrap();
        front.follow(bed);
        let players = Self::attach_all(bed);
        bed.back_says("state", State::Connected.number()).unwrap();
        front.follow(bed);
        assert!(front.connected, "{:?}", front.errors);
        players
    }

    /// Returns the first page of the ring as it is.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; PAGE_SIZE];
        self.ring.backing().view().read(0, &mut bytes);
        bytes
    }

    /// Takes the requests that are there.
    pub(crate) fn requests(&mut self, bed: &Bed) -> Vec<Seen> {
        let req_prod = self.ring.load(Field::ReqProd, SeqCst);
        let mut requests = Vec::new();
        while self.req_cons != req_prod {
            let raw = self.ring.read_request((self.req_cons % self.slots) as usize);
            requests.push(self.see(bed, raw));
            self.req_cons = self.req_cons.wrapping_add(1);
        }
        self.ring.store(Field::ReqEvent, self.req_cons.wrapping_add(1), SeqCst);
        requests
    }

    fn see(&mut self, bed: &Bed, raw: BlkifRequest) -> Seen {
        if raw.operation != BlkifOp::INDIRECT {
            let count = if raw.operation == BlkifOp::DISCARD { 0 } else { raw.nr_segments.into() };
            let segments = raw.seg[..count].to_vec();
            let (op, id, sector) = (raw.operation, raw.id, raw.sector_number);
            return Seen { raw, op, id, sector, segments, indirect: false };
        }
        let indirect: BlkifRequestIndirect = reinterpret(&raw);
        let mut segments = Vec::new();
        for (page, left) in (0..usize::from(indirect.nr_segments)).step_by(512).enumerate() {
            let bytes = self.page(bed, indirect.indirect_grefs[page], Access::ReadOnly).unwrap();
            for entry in bytes.as_chunks::<8>().0.iter().take(usize::from(indirect.nr_segments) - left) {
                let gref = GrantRef(u32::from_le_bytes(entry[..4].try_into().unwrap()));
                assert_eq!(entry[6..], [0, 0]);
                segments.push(BlkifRequestSegment { gref, first_sect: entry[4], last_sect: entry[5], _pad: 0 });
            }
        }
        let (op, id, sector) = (indirect.indirect_op, indirect.id, indirect.sector_number);
        Seen { raw, op, id, sector, segments, indirect: true }
    }

    /// Maps a page, lets `work` look at it, and unmaps it; `None` if it is not granted like that.
    pub(crate) fn with_page<R>(
        &mut self,
        bed: &Bed,
        gref: GrantRef,
        access: Access,
        work: impl FnOnce(hypercall::mem::Shared<'_>) -> R,
    ) -> Option<R> {
        let request = MapRequest { gref, peer: bed.front.id, access };
        let value = work(self.window.map(2047, request).ok()?);
        self.window.unmap(2047).unwrap();
        Some(value)
    }

    /// Returns all that is in a granted page.
    pub(crate) fn page(&mut self, bed: &Bed, gref: GrantRef, access: Access) -> Option<Vec<u8>> {
        self.with_page(bed, gref, access, |page| {
            let mut bytes = vec![0; PAGE_SIZE];
            page.read(0, &mut bytes);
            bytes
        })
    }

    /// Returns the data of a write.
    pub(crate) fn data(&mut self, bed: &Bed, request: &Seen) -> Vec<u8> {
        let mut data = Vec::new();
        for segment in &request.segments {
            let page = self.page(bed, segment.gref, Access::ReadOnly).unwrap();
            let (first, last) = (usize::from(segment.first_sect), usize::from(segment.last_sect));
            data.extend_from_slice(&page[first * 512..(last + 1) * 512]);
        }
        data
    }

    /// Fills the segments of a read: each sector with a byte that `byte` names by its place on the disk.
    pub(crate) fn fill(&mut self, bed: &Bed, request: &Seen, byte: impl Fn(u64) -> u8) {
        let mut sector = request.sector;
        for segment in &request.segments {
            self.with_page(bed, segment.gref, Access::ReadWrite, |page| {
                for at in segment.first_sect..=segment.last_sect {
                    page.write(usize::from(at) * 512, &[byte(sector); 512]);
                    sector += 1;
                }
            })
            .unwrap();
        }
    }

    /// Answers requests, and tells of it.
    pub(crate) fn answer(&mut self, answers: &[(&Seen, i16)]) {
        for (request, status) in answers {
            let response =
                BlkifResponse { id: request.id, operation: request.op, status: *status, ..Default::default() };
            self.ring.write_response((self.rsp_prod % self.slots) as usize, &response);
            self.rsp_prod = self.rsp_prod.wrapping_add(1);
        }
        self.ring.store(Field::RspProd, self.rsp_prod, SeqCst);
        self.channel.notify();
    }

    /// Answers all of them well.
    pub(crate) fn all_well(&mut self, requests: &[Seen]) {
        let answers: Vec<_> = requests.iter().map(|request| (request, BLKIF_RSP_OKAY)).collect();
        self.answer(&answers);
    }
}

pub(crate) fn connected(seed: u64, config: Config, nodes: &[(&str, &str)]) -> (Bed, FrontOwner, Vec<Player>) {
    let bed = Bed::new(seed);
    let mut front = FrontOwner::with(&bed, config).unwrap();
    let players = Player::connect(&bed, &mut front, nodes);
    (bed, front, players)
}

/// Closes the disk, lets the back end go, and checks that nothing is left.
pub(crate) fn ends(bed: Bed, mut front: FrontOwner, players: Vec<Player>) {
    front.front.close().unwrap();
    front.step();
    front.follow(&bed);
    drop(players);
    bed.back_says("state", State::Closed.number()).unwrap();
    front.follow(&bed);
    assert!(front.closed, "{:?}", front.errors);
    front.check_each_once();
    drop(front);
    bed.check_quiet();
}

/// Makes a buffer of so many bytes, each of which says where it stands.
pub(crate) fn buffer(bed: &Bed, len: usize, salt: u8) -> PageBuf<Domain> {
    let buffer = PageBuf::new(&bed.front.platform, len).unwrap();
    let bytes: Vec<u8> = bytes(len, salt);
    buffer.shared().write(0, &bytes);
    buffer
}

pub(crate) fn bytes(len: usize, salt: u8) -> Vec<u8> {
    (0..len).map(|at| (at / 512 * 7 + at) as u8 ^ salt).collect()
}

/// Submits on a queue, and says why if it is not taken.
pub(crate) fn submit_on(
    front: &mut FrontOwner,
    queue: usize,
    operation: Operation,
    sector: u64,
    buffer: Option<PageBuf<Domain>>,
) -> Result<u64, SubmitError> {
    let number = front.next;
    let queue = front.front.queue(queue).unwrap();
    queue.submit(operation, sector, (number, buffer)).map_err(|(error, _)| error)?;
    queue.push();
    front.next += 1;
    Ok(number)
}

pub(crate) fn submit(
    front: &mut FrontOwner,
    operation: Operation,
    sector: u64,
    buffer: Option<PageBuf<Domain>>,
) -> Result<u64, SubmitError> {
    submit_on(front, 0, operation, sector, buffer)
}

pub(crate) fn discard(front: &mut FrontOwner, sector: u64, sectors: u64, secure: bool) -> Result<u64, SubmitError> {
    let number = front.next;
    let queue = front.front.queue(0).unwrap();
    queue.submit_discard(sector, sectors, secure, (number, None)).map_err(|(error, _)| error)?;
    queue.push();
    front.next += 1;
    Ok(number)
}

/// Rewrites a node of the front end's directory that the toolstack owns.
pub(crate) fn toolstack_says(bed: &Bed, node: &str, value: &str) {
    let path = format!("/local/domain/{}/{}/{node}", bed.front.id.0, bed.device.front_path());
    bed.toolstack.store.write_text(Tx::NONE, &path, value).unwrap();
}
