//! The fast path of the back end: requests in, work for the store, responses out.

use alloc::boxed::Box;
use alloc::vec;

use hypercall::event::Channel;
use hypercall::grant::{Access, MapError, MapRequest, Window};
use hypercall::mem::Shared;
use hypercall::{DomId, GrantRef, Port};
use xen_sys::io::blkif::BlkifOp;
use xenbus::Domain;
use xenbus::ring::{BackRing, MappedPages, Notify, RingError, RingPages};

use super::BackError;
use super::store::{Parts, Started, Store, StoreFault, Token, Work};
use crate::MAX_SEGMENTS;
use crate::features::{Disk, Ring};
use crate::protocol::{Answer, Data, Layout, Native, Operation, Request, Status};

type RawRequest = <Native as Layout>::Request;
type RawResponse = <Native as Layout>::Response;

/// What the queue has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Requests taken.
    pub requests: u64,
    /// Data segments mapped.
    pub segments: u64,
    /// Events sent to the front end.
    pub notifications: u64,
    /// Requests that were refused at the door: malformed, beyond the end, writing to a read-only disk.
    pub refused: u64,
    /// Requests whose pages could not be mapped.
    pub unmappable: u64,
    /// Requests that the store failed.
    pub store_faults: u64,
    /// Places for requests that are lost because pages in them can't be unmapped.
    pub lost_places: u64,
}

/// A request that the store works on. Its place in the table is its token, and its first page in the window is
/// [`MAX_SEGMENTS`] times that.
#[derive(Clone, Copy)]
enum Slot {
    /// Next free slot, if there is one.
    Free(Option<u16>),
    Busy {
        id: u64,
        operation: Operation,
        mapped: u8,
    },
}

/// A ring with its event channel, and the requests that the store works on.
pub struct Queue<D: Domain> {
    peer: DomId,
    ring: BackRing<RingPages<MappedPages<D::Platform>, RawRequest, RawResponse>>,
    channel: Channel<D::Events>,
    window: Window<D::Platform>,
    slots: Box<[Slot]>,
    free: Option<u16>,
    busy: u32,
    disk: Disk,
    stopped: bool,
    counters: Counters,
}

impl<D: Domain> Queue<D> {
    pub(super) fn new(domain: &D, peer: DomId, ring: &Ring, disk: Disk) -> Result<Self, BackError> {
        let page = MappedPages::new(domain.platform(), peer, &ring.refs)?;
        let ring_end = BackRing::attach(RingPages::new(page));
        let size = ring_end.size();
        let window = Window::new(domain.platform(), size as usize * MAX_SEGMENTS)?;
        let mut slots = vec![Slot::Free(None); size as usize];
        for (index, slot) in slots.iter_mut().enumerate().take(size as usize - 1) {
            *slot = Slot::Free(Some(index as u16 + 1));
        }
        // Last, because the first event may be pending from here on.
        let channel = Channel::bind(domain.events(), peer, ring.port)?;
        Ok(Self {
            peer,
            ring: ring_end,
            channel,
            window,
            slots: slots.into(),
            free: Some(0),
            busy: 0,
            disk,
            stopped: false,
            counters: Counters::default(),
        })
    }

    /// Returns the port whose events [`poll`](super::Back::poll) answers.
    pub fn port(&self) -> Port {
        self.channel.port()
    }

    /// Returns how many requests the store works on.
    pub const fn busy(&self) -> u32 {
        self.busy
    }

    /// Returns what the queue has done so far.
    pub const fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Takes no more requests.
    pub(super) fn stop(&mut self) {
        self.stopped = true;
    }

    pub(super) fn learn(&mut self, disk: Disk) {
        self.disk = disk;
    }

    /// See [`Back::poll`](super::Back::poll).
    pub(super) fn poll<S: Store>(&mut self, store: &mut S) -> Result<bool, RingError> {
        self.complete(store);
        let taken = if self.stopped { Ok(false) } else { self.take_all(store) };
        self.publish();
        // A front end that has broken the ring, or is gone, has nothing to tell any more.
        if !self.stopped && taken.is_ok() {
            self.channel.unmask();
        }
        taken
    }

    /// Answers what the store has finished.
    pub(super) fn complete<S: Store>(&mut self, store: &mut S) {
        while let Some((token, result)) = store.completed() {
            self.finish(token, result);
        }
        self.publish();
    }

    fn publish(&mut self) {
        if self.ring.publish() == Notify::Yes {
            self.counters.notifications += 1;
            self.channel.notify();
        }
    }

    /// Takes a ring's worth of requests at most; tells whether there are more.
    fn take_all<S: Store>(&mut self, store: &mut S) -> Result<bool, RingError> {
        for _ in 0..self.ring.size() {
            let Some(raw) = self.ring.pop()? else {
                if self.ring.arm()? {
                    continue;
                }
                return Ok(false);
            };
            self.counters.requests += 1;
            self.take(&raw, store);
        }
        self.ring.arm()
    }

    fn take<S: Store>(&mut self, raw: &RawRequest, store: &mut S) {
        match Native::parse(raw) {
            Ok(request) if !Self::offers(&request) => {
                self.counters.refused += 1;
                self.answer(request.id, request.operation.wire(), Status::NotSupported);
            }
            Ok(request) if self.permits(&request) => self.start(&request, store),
            Ok(request) => {
                self.counters.refused += 1;
                self.answer(request.id, request.operation.wire(), Status::Error);
            }
            Err(malformed) => {
                self.counters.refused += 1;
                self.answer(malformed.id, malformed.operation, malformed.status());
            }
        }
    }

    /// Tells whether we do what is wanted.
    fn offers(request: &Request) -> bool {
        match request.data {
            Data::None | Data::Direct(_) => request.operation != Operation::Barrier,
            Data::Indirect(_) | Data::Sectors(_) => false,
        }
    }

    /// Tells whether the disk has those sectors, in its own units, and may be written if that is what is wanted.
    fn permits(&self, request: &Request) -> bool {
        let sectors = match &request.data {
            Data::None => 0,
            Data::Direct(segments) => segments.sectors(),
            Data::Indirect(_) | Data::Sectors(_) => return false,
        };
        let unit = u64::from(self.disk.sector_size) / crate::SECTOR as u64;
        let inside = request.sector.checked_add(sectors).is_some_and(|end| end <= self.disk.sectors);
        inside
            && request.sector.is_multiple_of(unit)
            && sectors.is_multiple_of(unit)
            && !(request.operation.mutates() && self.disk.read_only)
    }

    fn start<S: Store>(&mut self, request: &Request, store: &mut S) {
        let (id, operation) = (request.id, request.operation);
        let Data::Direct(segments) = &request.data else { return self.flush(request.id, store) };
        let segments = segments.as_slice();
        // Reading the disk writes to the page.
        let access = if operation == Operation::Read { Access::ReadWrite } else { Access::ReadOnly };
        let mut maps = [MapRequest { gref: GrantRef(0), peer: self.peer, access }; MAX_SEGMENTS];
        for (map, segment) in maps.iter_mut().zip(segments) {
            map.gref = segment.gref();
        }
        let Some(index) = self.map(&maps[..segments.len()]) else {
            self.counters.unmappable += 1;
            return self.answer(id, operation.wire(), Status::Error);
        };
        let first = usize::from(index) * MAX_SEGMENTS;
        self.counters.segments += segments.len() as u64;
        self.slots[usize::from(index)] = Slot::Busy { id, operation, mapped: segments.len() as u8 };
        self.busy += 1;
        let mut parts = [Shared::EMPTY; MAX_SEGMENTS];
        for (place, segment) in segments.iter().enumerate() {
            if let Some(view) = self.window.view(first + place) {
                parts[place] = view.slice(segment.offset(), segment.len());
            }
        }
        let (token, sector, parts) = (Token(index), request.sector, &parts[..segments.len()]);
        let work = match operation {
            Operation::Read => Work::Read { sector, parts: Parts::new(parts) },
            _ => Work::Write { sector, parts: Parts::new(parts) },
        };
        if let Started::Done(result) = store.start(token, work) {
            self.finish(token, result);
        }
    }

    fn flush<S: Store>(&mut self, id: u64, store: &mut S) {
        let Some(index) = self.map(&[]) else { return self.answer(id, BlkifOp::FLUSH_DISKCACHE, Status::Error) };
        self.slots[usize::from(index)] = Slot::Busy { id, operation: Operation::Flush, mapped: 0 };
        self.busy += 1;
        if let Started::Done(result) = store.start(Token(index), Work::Flush) {
            self.finish(Token(index), result);
        }
    }

    /// Takes a free place and maps pages there; `None` if they can't be mapped. There is a free one as long as none was lost: the
    /// ring lets no more requests in than there are places, and each answer frees one.
    fn map(&mut self, pages: &[MapRequest]) -> Option<u16> {
        while let Some(index) = self.free {
            let Slot::Free(next) = self.slots[usize::from(index)] else { return None };
            let first = usize::from(index) * MAX_SEGMENTS;
            let mut mapped = self.window.map_run(first, pages).map(|_| ());
            if let Err(MapError::Occupied { .. }) = mapped {
                // From the last request there, whose pages could not be unmapped. Perhaps they can be now.
                let _ = self.window.unmap_batch(first..first + MAX_SEGMENTS);
                mapped = self.window.map_run(first, pages).map(|_| ());
            }
            match mapped {
                Ok(()) => {
                    self.free = next;
                    return Some(index);
                }
                // Not for ever in the way of all others.
                Err(MapError::Occupied { .. }) => {
                    self.free = next;
                    self.counters.lost_places += 1;
                }
                Err(_) => return None,
            }
        }
        None
    }

    /// Unmaps and answers a request that the store is done with. A token that it made up is ignored.
    fn finish(&mut self, token: Token, result: Result<(), StoreFault>) {
        let Some(slot) = self.slots.get_mut(usize::from(token.0)) else { return };
        let Slot::Busy { id, operation, mapped } = *slot else { return };
        *slot = Slot::Free(self.free);
        self.free = Some(token.0);
        self.busy -= 1;
        // Pages that can't be unmapped stay in their place; `map` finds them there.
        let first = usize::from(token.0) * MAX_SEGMENTS;
        let _ = self.window.unmap_batch(first..first + usize::from(mapped));
        self.counters.store_faults += u64::from(result.is_err());
        self.answer(id, operation.wire(), if result.is_ok() { Status::Okay } else { Status::Error });
    }

    fn answer(&mut self, id: u64, operation: BlkifOp, status: Status) {
        // Each answer belongs to a request that was taken, so there is room for it.
        let _ = self.ring.respond(&Native::respond(&Answer { id, operation, status }));
    }
}

impl<D: Domain> Drop for Queue<D> {
    fn drop(&mut self) {
        // The store was promised that what it works on stays mapped.
        if self.busy > 0 {
            self.window.abandon();
        }
    }
}
