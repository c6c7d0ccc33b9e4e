//! The workload: requests through a ring, both ends, indices checked, events armed. `c/ring.c` is the same in C, to the sum that
//! it returns; whatever is changed here is changed there.

use core::ptr::NonNull;
use core::sync::atomic::Ordering;

use hypercall::GrantRef;
use hypercall::mem::{PAGE_SIZE, Shared};
use xen_sys::Wire;
use xen_sys::io::blkif::{BLKIF_RSP_OKAY, BlkifOp, BlkifRequest, BlkifRequestSegment, BlkifResponse};
use xen_sys::io::netif::{NETIF_RSP_OKAY, NetifRxRequest, NetifRxResponse, NetifTxRequest, NetifTxResponse};
use xenbus::ring::{BackRing, Backing, Field, FrontRing, Notify, RingMemory, RingPages};

/// What a workload returns that has met a broken ring or a broken request.
pub const BROKEN: u64 = u64::MAX;

/// What a request is made of and what comes of it: as little as both ends can do that have looked at all of it.
pub trait Kind {
    /// The slot's first use.
    type Request: Wire + Default;
    /// The slot's second use.
    type Response: Wire;
    /// Makes a request.
    fn fill(id: u64) -> Self::Request;
    /// Looks at all of a request, and makes the response.
    fn serve(request: &Self::Request) -> (u64, Self::Response);
    /// Looks at all of a response.
    fn take(response: &Self::Response) -> u64;
}

/// Block requests of so many segments.
#[derive(Debug)]
pub struct Blk<const SEGMENTS: usize>;

impl<const SEGMENTS: usize> Kind for Blk<SEGMENTS> {
    type Request = BlkifRequest;
    type Response = BlkifResponse;

    #[inline]
    fn fill(id: u64) -> BlkifRequest {
        let mut request = BlkifRequest {
            operation: BlkifOp::READ,
            nr_segments: SEGMENTS as u8,
            id,
            sector_number: id << 3,
            ..BlkifRequest::default()
        };
        for (index, segment) in request.seg.iter_mut().take(SEGMENTS).enumerate() {
            let gref = GrantRef((id as u32).wrapping_add(index as u32));
            *segment = BlkifRequestSegment { gref, first_sect: 0, last_sect: 7, ..BlkifRequestSegment::default() };
        }
        request
    }

    #[inline]
    fn serve(request: &BlkifRequest) -> (u64, BlkifResponse) {
        let mut sum = request.sector_number;
        if usize::from(request.nr_segments) != SEGMENTS {
            return (BROKEN, BlkifResponse::default());
        }
        for segment in &request.seg[..SEGMENTS] {
            sum = sum.wrapping_add(u64::from(segment.gref.0.wrapping_add(u32::from(segment.last_sect))));
        }
        let (id, operation) = (request.id, request.operation);
        (sum, BlkifResponse { id, operation, status: BLKIF_RSP_OKAY, ..BlkifResponse::default() })
    }

    #[inline]
    fn take(response: &BlkifResponse) -> u64 {
        response.id.wrapping_add(response.status as u64)
    }
}

/// Packets to send.
#[derive(Debug)]
pub struct NetTx;

impl Kind for NetTx {
    type Request = NetifTxRequest;
    type Response = NetifTxResponse;

    #[inline]
    fn fill(id: u64) -> NetifTxRequest {
        NetifTxRequest { gref: GrantRef(id as u32), offset: 0, flags: 0, id: id as u16, size: 1514 }
    }

    #[inline]
    fn serve(request: &NetifTxRequest) -> (u64, NetifTxResponse) {
        let sum = u64::from(request.gref.0) + u64::from(request.size);
        (sum, NetifTxResponse { id: request.id, status: NETIF_RSP_OKAY })
    }

    #[inline]
    fn take(response: &NetifTxResponse) -> u64 {
        u64::from(response.id).wrapping_add(response.status as u64)
    }
}

/// Pages to receive packets into.
#[derive(Debug)]
pub struct NetRx;

impl Kind for NetRx {
    type Request = NetifRxRequest;
    type Response = NetifRxResponse;

    #[inline]
    fn fill(id: u64) -> NetifRxRequest {
        NetifRxRequest { id: id as u16, pad: 0, gref: GrantRef(id as u32) }
    }

    #[inline]
    fn serve(request: &NetifRxRequest) -> (u64, NetifRxResponse) {
        (u64::from(request.gref.0), NetifRxResponse { id: request.id, offset: 0, flags: 0, status: 1514 })
    }

    #[inline]
    fn take(response: &NetifRxResponse) -> u64 {
        u64::from(response.id).wrapping_add(response.status as u64)
    }
}

/// A page that whoever measures has set aside.
#[derive(Debug)]
struct Page(NonNull<u8>);

// SAFETY: `open` was promised the page for as long as the state is used, and nobody else uses it.
unsafe impl Backing for Page {
    fn view(&self) -> Shared<'_> {
        // SAFETY: as above.
        unsafe { Shared::new(self.0, PAGE_SIZE) }
    }
}

type Pages<K> = RingPages<Page, <K as Kind>::Request, <K as Kind>::Response>;

#[repr(align(128))]
struct Front<K: Kind> {
    ring: FrontRing<Pages<K>>,
    notified_back: u64,
}

/// On other lines of the cache than the front end, which may be another thread's.
#[repr(align(128))]
struct Back<K: Kind> {
    ring: BackRing<Pages<K>>,
    request: K::Request,
    notified_front: u64,
}

/// Both ends of a ring. Their functions aren't inlined: they are in two domains.
#[repr(C)]
struct State<K: Kind> {
    front: Front<K>,
    back: Back<K>,
}

/// A driver hands its copy of a request to other functions; so it has to be one, of all that is in use.
#[inline]
fn in_memory<T>(value: &T) {
    // SAFETY: it does nothing, and the compiler doesn't know that.
    unsafe { core::arch::asm!("/* {} */", in(reg) value, options(nostack, preserves_flags)) };
}

#[inline(never)]
fn submit<K: Kind>(front: &mut Front<K>, first: u64, batch: u32) {
    for count in 0..batch {
        if !front.ring.push(&K::fill(first.wrapping_add(u64::from(count)))) {
            break;
        }
    }
    front.notified_back += u64::from(front.ring.publish() == Notify::Yes);
}

#[inline(never)]
fn poll_back<K: Kind>(ring: &mut BackRing<Pages<K>>, request: &mut K::Request, notified: &mut u64) -> u64 {
    let mut sum = 0u64;
    loop {
        let Ok(mut requests) = ring.requests() else { return BROKEN };
        while requests.next_into(request) {
            in_memory(request);
            let (part, response) = K::serve(request);
            sum = sum.wrapping_add(part);
            if !requests.respond(&response) {
                return BROKEN;
            }
        }
        drop(requests);
        let (notify, more) = ring.publish_and_arm();
        *notified += u64::from(notify == Notify::Yes);
        match more {
            Ok(true) => {}
            Ok(false) => return sum,
            Err(_) => return BROKEN,
        }
    }
}

#[inline(never)]
fn poll_front<K: Kind>(front: &mut Front<K>) -> u64 {
    let mut sum = 0u64;
    loop {
        match front.ring.responses() {
            Ok(responses) => sum = responses.fold(sum, |sum, response| sum.wrapping_add(K::take(&response))),
            Err(_) => return BROKEN,
        }
        match front.ring.arm() {
            Ok(true) => {}
            Ok(false) => return sum,
            Err(_) => return BROKEN,
        }
    }
}

/// Bytes of the state of both ends.
pub(crate) extern "C" fn state_size<K: Kind>() -> u64 {
    size_of::<State<K>>() as u64
}

/// Opens a ring in a page, with the two ends in `state`.
///
/// # Safety
/// Both are as large as they have to be, aligned to 128 bytes and to a page, and nobody else's as long as the state is used.
pub(crate) unsafe extern "C" fn open<K: Kind>(page: *mut u8, state: *mut u8) {
    let Some(page) = NonNull::new(page) else { return };
    let ring = FrontRing::new(RingPages::new(Page(page)));
    let front = Front { ring, notified_back: 0 };
    let ring = BackRing::attach(RingPages::new(Page(page)));
    let back = Back { ring, request: K::Request::default(), notified_front: 0 };
    // SAFETY: as the caller promises.
    unsafe { state.cast::<State<K>>().write(State { front, back }) };
}

/// Runs both ends in turns.
///
/// # Safety
/// `open` has made the state.
pub(crate) unsafe extern "C" fn run<K: Kind>(state: *mut u8, rounds: u64, batch: u32) -> u64 {
    // SAFETY: as the caller promises.
    let state = unsafe { &mut *state.cast::<State<K>>() };
    let mut sum = 0u64;
    for round in 0..rounds {
        submit(&mut state.front, round.wrapping_mul(u64::from(batch)), batch);
        sum = sum.wrapping_add(poll_back::<K>(
            &mut state.back.ring,
            &mut state.back.request,
            &mut state.back.notified_front,
        ));
        sum = sum.wrapping_add(poll_front(&mut state.front));
    }
    sum.wrapping_add(state.back.notified_front).wrapping_add(state.front.notified_back)
}

/// Runs the front end alone, which the back end answers in another thread. It arms its event whenever it finds nothing, and then
/// looks until there is something.
///
/// # Safety
/// `open` has made the state, and nobody else uses this half of it.
pub(crate) unsafe extern "C" fn run_front<K: Kind>(state: *mut u8, rounds: u64, batch: u32) -> u64 {
    // SAFETY: as the caller promises. The other thread has no reference to this half.
    let front = unsafe { &mut (*state.cast::<State<K>>()).front };
    let mut sum = 0u64;
    for round in 0..rounds {
        submit(front, round.wrapping_mul(u64::from(batch)), batch);
        while front.ring.free() < front.ring.size() {
            match front.ring.pop() {
                Ok(Some(response)) => sum = sum.wrapping_add(K::take(&response)).wrapping_add(poll_front(front)),
                Ok(None) => core::hint::spin_loop(),
                Err(_) => return BROKEN,
            }
        }
    }
    sum
}

/// Runs the back end alone; see [`run_front`].
///
/// # Safety
/// As for that, with the other half.
pub(crate) unsafe extern "C" fn run_back<K: Kind>(state: *mut u8, rounds: u64, batch: u32) -> u64 {
    // SAFETY: as the caller promises. The other thread has no reference to this half.
    let back = unsafe { &mut (*state.cast::<State<K>>()).back };
    let mut sum = 0u64;
    let answered = |back: &Back<K>| back.ring.memory().load(Field::RspProd, Ordering::Relaxed);
    let end = answered(back).wrapping_add((rounds as u32).wrapping_mul(batch));
    while answered(back) != end {
        match back.ring.pop_into(&mut back.request) {
            Ok(true) => {
                let (part, response) = K::serve(&back.request);
                if !back.ring.respond(&response) {
                    return BROKEN;
                }
                let rest = poll_back::<K>(&mut back.ring, &mut back.request, &mut back.notified_front);
                sum = sum.wrapping_add(part).wrapping_add(rest);
            }
            Ok(false) => core::hint::spin_loop(),
            Err(_) => return BROKEN,
        }
    }
    sum
}

/// The functions of one workload, in whatever language.
#[derive(Clone, Copy, Debug)]
pub struct Work {
    /// Returns how many bytes of state it needs.
    pub state_size: extern "C" fn() -> u64,
    /// Takes a page and the state, and opens a ring.
    pub open: unsafe extern "C" fn(*mut u8, *mut u8),
    /// Runs both ends in turns.
    pub run: Run,
    /// The front end alone and the back end alone, each for a thread of its own.
    pub ends: Option<(Run, Run)>,
}

/// Takes the state, rounds and requests a round, and returns a sum of all that was seen.
pub type Run = unsafe extern "C" fn(*mut u8, u64, u32) -> u64;

/// Returns our own functions, as this program has them.
pub const fn ours<K: Kind>() -> Work {
    Work { state_size: state_size::<K>, open: open::<K>, run: run::<K>, ends: Some((run_front::<K>, run_back::<K>)) }
}
