//! A back end of ours with a raw front end of any shape at it, connected.

use hypercall::GrantRef;
use hypercall::mem::PAGE_SIZE;
use mock::{Kind, Ledger};
use xbd::back::{Config, Counters};
use xbd::protocol::{Answer, Data, IndirectPages, Layout, Operation, Request, Segment, Segments, Status};
use xen_sys::grant_table::{GNTTABOP_map_grant_ref, GNTTABOP_unmap_grant_ref};
use xenbus::device::State;

use super::raw_front::{Asks, Granted, RawFront};
use super::{BackOwner, Bed, Slow};

pub(crate) struct Rig<L: Layout> {
    pub(crate) back: BackOwner<Slow>,
    pub(crate) front: RawFront<L>,
    pub(crate) disk: Slow,
    pub(crate) bed: Bed,
}

impl<L: Layout> Rig<L> {
    pub(crate) fn new(disk: &Slow, config: Config, asks: Asks) -> Self {
        let bed = Bed::new(1);
        let mut back = BackOwner::with(&bed, disk.clone(), config).unwrap();
        back.follow(&bed);
        let front = RawFront::ask(&bed, asks);
        back.follow(&bed);
        assert_eq!((back.connections, bed.back_state().as_deref()), (1, Some("4")), "{:?}", back.errors);
        Self { back, front, disk: disk.clone(), bed }
    }

    /// Sends requests into the first queue, lets the back end do what it wants, and returns the answers.
    pub(crate) fn send(&mut self, requests: &[Request]) -> Vec<Answer> {
        let raw: Vec<_> = requests.iter().map(L::emit).collect();
        self.front.send(&raw);
        self.back.follow(&self.bed);
        self.front.answers()
    }

    /// Sends one request, and returns how it ended.
    pub(crate) fn one(&mut self, request: &Request) -> Status {
        let answers = self.send(std::slice::from_ref(request));
        assert_eq!(answers.len(), 1, "{request:?}");
        assert_eq!((answers[0].id, answers[0].operation), (request.id, request.operation.wire()), "{request:?}");
        answers[0].status
    }

    /// The disk finishes so many of what it has.
    pub(crate) fn finish(&mut self, jobs: usize) -> Vec<Answer> {
        self.disk.0.borrow_mut().allowed = jobs;
        self.back.poll();
        self.back.follow(&self.bed);
        assert_eq!(self.disk.0.borrow().allowed, 0);
        self.front.answers()
    }

    pub(crate) fn counters(&mut self) -> Counters {
        self.back.counters()
    }

    /// Returns how many pages of the front end the back end has mapped.
    pub(crate) fn mapped(&self) -> usize {
        self.bed.machine.usage().0[&self.bed.back.id].mappings.len()
    }

    pub(crate) fn ledger(&self) -> Ledger {
        self.bed.machine.ledger_of(self.bed.back.id)
    }

    /// Returns how many hypercalls of maps and unmaps the back end has made since.
    pub(crate) fn grant_calls(&self, earlier: &Ledger) -> (u64, u64) {
        let since = self.ledger().since(earlier);
        (since.calls(Kind::grant(GNTTABOP_map_grant_ref)), since.calls(Kind::grant(GNTTABOP_unmap_grant_ref)))
    }

    /// The front end goes as it should, and nothing is left.
    pub(crate) fn end(mut self, pages: Vec<Granted>) {
        for state in [State::Closing, State::Closed] {
            self.bed.front_says("state", state.number()).unwrap();
            self.back.follow(&self.bed);
        }
        assert_eq!(self.bed.back_state().as_deref(), Some("6"));
        assert_eq!((self.back.disconnections, self.mapped()), (self.back.connections, 0));
        drop((pages, self.front));
        self.bed.check_quiet();
    }
}

pub(crate) fn grefs(pages: &[Granted]) -> Vec<GrantRef> {
    pages.iter().map(Granted::gref).collect()
}

/// Makes a request of whole pages.
pub(crate) fn direct(operation: Operation, id: u64, sector: u64, pages: &[Granted]) -> Request {
    let mut segments = Segments::EMPTY;
    for page in pages {
        assert!(segments.push(Segment::new(page.gref(), 0, 7).unwrap()));
    }
    Request { id, operation, sector, data: Data::Direct(segments) }
}

pub(crate) fn flush(id: u64) -> Request {
    Request { id, operation: Operation::Flush, sector: 0, data: Data::None }
}

pub(crate) fn discard(operation: Operation, sector: u64, sectors: u64) -> Request {
    Request { id: 5, operation, sector, data: Data::Sectors(sectors) }
}

/// Writes segments onto pages of their own.
pub(crate) fn table(bed: &Bed, segments: &[[u8; Segment::BYTES]]) -> Vec<Granted> {
    let chunks = segments.chunks(PAGE_SIZE / Segment::BYTES);
    chunks
        .map(|chunk| {
            let page = Granted::new(bed);
            page.shared().write(0, chunk.as_flattened());
            page
        })
        .collect()
}

/// Whole pages, as segments on a page of their own.
pub(crate) fn whole(pages: &[Granted]) -> Vec<[u8; Segment::BYTES]> {
    pages.iter().map(|page| Segment::new(page.gref(), 0, 7).unwrap().to_bytes()).collect()
}

/// Makes a request whose segments stand on pages of their own.
pub(crate) fn indirect(operation: Operation, id: u64, sector: u64, count: usize, table: &[Granted]) -> Request {
    let pages = IndirectPages::new(count as u16, &grefs(table)).unwrap();
    Request { id, operation, sector, data: Data::Indirect(pages) }
}
