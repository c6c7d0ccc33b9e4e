//! Both ends of a disk in one domain, on a hypervisor that is no more than tables: what `xenlab bench block` measures.
//!
//! The drivers, the grant table and the event channels are the real ones, and come together by the real handshake. What is around them
//! costs next to nothing: the store has read what it looks at, the disk takes no time, buffers are numbers.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::cell::RefCell;
use core::ffi::c_void;
use core::fmt;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use alloc::rc::Rc;
use hypercall::event::EventChannels;
use hypercall::grant::GrantTable;
use hypercall::mem::{Buffer, PAGE_SIZE, Segment, Shared};
use hypercall::{DomId, Gfn, Hypervisor, Level, Nr, Platform, Port, Region};
use xbd::back::{self, Back, Started, StoreFault, Token, Work};
use xbd::front::{self, Front};
use xbd::protocol::Operation;
use xenbus::domain::Services;
use xenbus::store::{Cause, Reply, Request, Store, StoreError, Tx, WatchId};
use xenstored::{ConnId, Daemon, Op, Quota};

/// The domain that both ends are in.
const SELF: DomId = DomId(0);

/// Most requests at once, and most pages of one.
pub const DEPTH: u32 = 32;
/// See [`DEPTH`]: 64 KiB, as much as NetBSD transfers at once, by an indirect request.
pub const SEGMENTS: u32 = 16;

/// Sectors of the disk.
const SECTORS: u64 = 1 << 20;

/// What the host has set aside, and its hypervisor.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Host {
    /// Memory of the domain, its frames numbered from 0.
    pub memory: NonNull<u8>,
    /// Pages of it.
    pub pages: usize,
    /// Address space without memory.
    pub room: NonNull<u8>,
    /// Pages of it.
    pub room_pages: usize,
    /// The way into the hypervisor, with `context`, the number and five arguments.
    pub enter: unsafe extern "C" fn(*mut c_void, u32, *const [usize; 5]) -> isize,
    /// Whatever `enter` needs.
    pub context: *mut c_void,
}

struct Machine {
    host: Host,
    /// How many pages are given out, of either kind.
    given: [AtomicUsize; 2],
}

/// The domain.
#[derive(Clone, Copy)]
struct Here(&'static Machine);

impl fmt::Debug for Here {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Here")
    }
}

// SAFETY: the host's hypervisor does what the calls say that are made here.
unsafe impl Hypervisor for Here {
    #[inline]
    unsafe fn hypercall(&self, nr: Nr, args: [usize; 5]) -> isize {
        let Host { enter, context, .. } = self.0.host;
        // SAFETY: the caller's.
        unsafe { enter(context, nr.0 as u32, &raw const args) }
    }
}

// SAFETY: pages are given out once; their frames are their places in the memory, at which the hypervisor finds them.
unsafe impl Platform for Here {
    fn alloc(&self, region: Region, pages: usize) -> Option<NonNull<u8>> {
        let Machine { host, given: [memory, room] } = self.0;
        let (given, start, all) = match region {
            Region::Memory => (memory, host.memory, host.pages),
            Region::Unbacked => (room, host.room, host.room_pages),
        };
        let first = given.fetch_add(pages, Relaxed);
        // SAFETY: inside.
        (first + pages <= all).then(|| unsafe { start.add(first * PAGE_SIZE) })
    }

    unsafe fn free(&self, _: Region, _: NonNull<u8>, _: usize) {}

    #[inline]
    fn gfn_of(&self, va: NonNull<u8>) -> Gfn {
        Gfn(((va.addr().get() - self.0.host.memory.addr().get()) / PAGE_SIZE) as u64)
    }

    #[inline]
    fn now_ns(&self) -> u64 {
        1
    }

    fn wait(&self, _: &[Port], _: u64) {}

    fn log(&self, _: Level, _: fmt::Arguments<'_>) {}
}

/// A buffer of whole pages, known by its first frame.
struct Data {
    here: Here,
    first: u32,
    pages: u32,
}

// SAFETY: the pages are set aside for the life of the bed, and nobody looks at them but through atomics.
unsafe impl Buffer for Data {
    #[inline]
    fn segments(&self) -> impl Iterator<Item = Segment> {
        let segment = |index| Segment { gfn: Gfn(u64::from(self.first + index)), offset: 0, len: PAGE_SIZE as u16 };
        (0..self.pages).map(segment)
    }

    #[inline]
    fn parts(&self) -> impl Iterator<Item = Shared<'_>> {
        (self.first..self.first + self.pages).map(|frame| {
            // SAFETY: pages of the domain, which stay.
            unsafe { Shared::new(self.here.0.host.memory.add(frame as usize * PAGE_SIZE), PAGE_SIZE) }
        })
    }
}

/// A disk that looks at all that it is asked for, and has done it.
struct Disk {
    bytes: &'static AtomicU64,
}

impl back::Store for Disk {
    fn handle(&self) -> Self {
        Self { bytes: self.bytes }
    }

    fn sectors(&self) -> u64 {
        SECTORS
    }

    #[inline]
    fn start(&mut self, _: Token, work: Work<'_>) -> Started {
        if let Work::Read { parts, .. } | Work::Write { parts, .. } = work {
            let bytes = parts.iter().map(|part| part.len() as u64).sum::<u64>();
            self.bytes.store(self.bytes.load(Relaxed) + bytes, Relaxed);
            return Started::Done(Ok(()));
        }
        Started::Done(Err(StoreFault::NotSupported))
    }
}

/// xenstore, by calls.
#[derive(Clone)]
struct Xenstore(Rc<RefCell<Daemon>>, ConnId);

impl Store for Xenstore {
    fn request(&self, request: &Request<'_>) -> Result<Vec<u8>, Cause> {
        let done = self.0.borrow_mut().call(self.1, request.op, request.tx.0, &request.parts.concat());
        done.or_else(|refusal| {
            let payload = [refusal.word().as_bytes(), &[0]].concat();
            Reply { op: Op::ERROR, id: 0, payload: &payload }.result(request.op).map(Vec::from)
        })
    }

    fn watch(&self, _: &str) -> Result<WatchId, StoreError> {
        Ok(WatchId(0))
    }

    fn unwatch(&self, _: WatchId) -> Result<(), StoreError> {
        Ok(())
    }

    /// Whoever asks looks at everything.
    fn fired(&self, _: WatchId) -> bool {
        true
    }
}

type Domain = Services<Here, GrantTable<Here>, EventChannels<Here>, Xenstore>;

/// The back end maps the pages of each request.
pub const MAPPED: u64 = 0;
/// Data is copied by the front end, by way of pages that stay granted and mapped.
pub const KEPT: u64 = 1;
/// The back end lets the hypervisor copy.
pub const COPIED: u64 = 2;

/// The domain, before there are disks.
#[allow(missing_debug_implementations, reason = "nobody prints it")]
pub struct Ground {
    domain: Domain,
    /// First page of the buffers.
    buffers: NonNull<u8>,
}

impl Ground {
    /// Sets the domain up. Its first frame is the page that is shared with the hypervisor.
    ///
    /// # Errors
    /// What has gone wrong.
    ///
    /// # Safety
    /// What `host` names is nobody else's and stays, and its hypervisor does what it is asked.
    pub unsafe fn new(host: Host) -> Result<Self, String> {
        let given = [const { AtomicUsize::new(0) }; 2];
        let here = Here(Box::leak(Box::new(Machine { host, given })));
        let shared = here.alloc(Region::Memory, 1).ok_or("no memory")?.cast();
        let mut daemon = Daemon::new(Quota::default());
        let connection = daemon.connect(SELF);
        let store = Xenstore(Rc::new(RefCell::new(daemon)), connection);
        // SAFETY: there is one table, and the page is a zeroed one that nobody else has.
        let (grants, events) = unsafe { (GrantTable::new(here), EventChannels::new(here, shared)) };
        let grants = grants.map_err(|error| format!("{error}"))?;
        let domain = Services { platform: here, grants, events, store, id: SELF };
        let buffers = here.alloc(Region::Memory, (DEPTH * SEGMENTS) as usize).ok_or("no memory for buffers")?;
        Ok(Self { domain, buffers })
    }

    /// Returns the event channels.
    pub fn events(&self) -> &EventChannels<impl Platform> {
        &self.domain.events
    }

    /// Makes a disk of this number, and connects its two ends.
    ///
    /// # Errors
    /// What has gone wrong.
    pub fn disk(&self, number: usize, front: front::Config, back: back::Config) -> Result<Bed, String> {
        let Self { domain, buffers } = self;
        let (ours, theirs) =
            (format!("/local/domain/0/device/vbd/{number}"), format!("/local/domain/0/backend/vbd/0/{number}"));
        let (ours, theirs) = (ours.as_str(), theirs.as_str());
        let nodes = [
            (ours, [("backend", theirs), ("backend-id", "0"), ("handle", "1"), ("state", "1")]),
            (theirs, [("frontend", ours), ("frontend-id", "0"), ("online", "1"), ("state", "1")]),
        ];
        for (directory, nodes) in nodes {
            for (node, value) in nodes {
                let written = domain.store.write(Tx::NONE, &format!("{directory}/{node}"), value.as_bytes());
                written.map_err(|error| format!("{error}"))?;
            }
        }
        let front = Front::new(domain, ours, front).map_err(|error| format!("front end: {error}"))?;
        let bytes = Box::leak(Box::new(AtomicU64::new(0)));
        let back = Back::new(domain, theirs, Disk { bytes }, back);
        let back = back.map_err(|error| format!("back end: {error}"))?;
        let mut bed = Bed { here: domain.platform, front, back, buffers: *buffers, sector: 0 };
        bed.connect()?;
        Ok(bed)
    }
}

/// Both ends of a disk, connected.
#[allow(missing_debug_implementations, reason = "nobody prints it")]
pub struct Bed {
    here: Here,
    front: Front<Domain, Data>,
    back: Back<Domain, Disk>,
    /// First page of the buffers.
    buffers: NonNull<u8>,
    sector: u64,
}

impl Bed {
    /// Connects them. `way` is one of [`MAPPED`], [`KEPT`] and [`COPIED`].
    ///
    /// # Errors
    /// What has gone wrong.
    ///
    /// # Safety
    /// As [`Ground::new`].
    pub unsafe fn open(host: Host, way: u64) -> Result<Self, String> {
        // SAFETY: the caller's.
        let ground = unsafe { Ground::new(host) }?;
        let front = front::Config { persistent: way == KEPT, ..front::Config::default() };
        // All that is asked for, or nothing.
        let copy_limit = if way == COPIED { SEGMENTS * PAGE_SIZE as u32 } else { 0 };
        let copy_pages = (DEPTH * SEGMENTS) as u16;
        ground.disk(1, front, back::Config { copy_limit, copy_pages, ..back::Config::default() })
    }

    fn connect(&mut self) -> Result<(), String> {
        for _ in 0..16 {
            self.back.step().map_err(|error| format!("back end: {error}"))?;
            let change = self.front.step(|_| {}).map_err(|error| format!("front end: {error}"))?;
            if let front::Change::Connected(_) = change {
                return Ok(());
            }
        }
        Err(String::from("the ends don't come together"))
    }

    // Out of line, as the one place where a kernel calls the driver.

    /// Submits so many reads of so many pages each to a queue, and tells the back end. Returns how many it took.
    #[inline(never)]
    pub fn submit(&mut self, queue: usize, count: u32, pages: u32) -> u64 {
        let first = self.here.gfn_of(self.buffers).0 as u32;
        let (here, mut sector) = (self.here, self.sector);
        let Some(queue) = self.front.queue(queue) else { return 0 };
        for index in 0..count {
            let data = Data { here, first: first + index * SEGMENTS, pages };
            if queue.submit(Operation::Read, sector, data).is_err() {
                return index.into();
            }
            sector = (sector + 128) % (SECTORS / 2);
        }
        queue.push();
        self.sector = sector;
        count.into()
    }

    /// Lets the back end do what there is in a queue. Returns whether all was well.
    #[inline(never)]
    pub fn serve(&mut self, queue: usize) -> u64 {
        self.back.poll(queue).is_ok().into()
    }

    /// Takes the completions of a queue. Returns how many were good.
    #[inline(never)]
    pub fn complete(&mut self, queue: usize) -> u64 {
        let Some(queue) = self.front.queue(queue) else { return 0 };
        let mut good = 0;
        let polled = queue.poll(|completion| good += u64::from(completion.result.is_ok()));
        if polled.is_ok() { good } else { 0 }
    }

    /// Returns the ports of a queue: the front end's and the back end's.
    pub fn ports(&mut self, queue: usize) -> Option<[Port; 2]> {
        Some([self.front.queue(queue)?.port(), self.back.port(queue)?])
    }

    /// Copies a page, as the front end does where data goes by way of its own.
    pub fn copy(&mut self) -> u64 {
        // SAFETY: two pages of the buffers.
        let [from, to] = [0, 1].map(|page| unsafe { Shared::new(self.buffers.add(page * PAGE_SIZE), PAGE_SIZE) });
        to.copy_from(0, from);
        1
    }

    /// Bytes that the disk was asked for so far.
    pub fn bytes(&mut self) -> u64 {
        self.back.store().bytes.load(Relaxed)
    }
}
