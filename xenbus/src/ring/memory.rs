//! The memory of a message ring: the index words at its beginning and the slots behind them.

use core::fmt;
use core::mem::{MaybeUninit, offset_of};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use hypercall::grant::{Access, Grants, MapError, MapRequest, SharedPages, Window};
use hypercall::mem::{OutOfMemory, PAGE_SIZE, Shared};
use hypercall::{DomId, GrantRef, Platform};
use xen_sys::Wire;
use xen_sys::io::ring::{RING_HEADER_SIZE, SringHeader};

/// One of the four words that both ends see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// How many requests the front end has published.
    ReqProd,
    /// At which request the back end wants an event.
    ReqEvent,
    /// How many responses the back end has published.
    RspProd,
    /// At which response the front end wants an event.
    RspEvent,
}

impl Field {
    /// Returns where the word stands (io/ring.h, struct x_sring).
    pub const fn offset(self) -> usize {
        match self {
            Self::ReqProd => offset_of!(SringHeader, req_prod),
            Self::ReqEvent => offset_of!(SringHeader, req_event),
            Self::RspProd => offset_of!(SringHeader, rsp_prod),
            Self::RspEvent => offset_of!(SringHeader, rsp_event),
        }
    }
}

/// A free-running index. It is 32 bits wide on every real ring; tests use 8 bits, which they can exhaust.
pub trait Index: Copy + Eq + Ord {
    /// Zero.
    const ZERO: Self;
    /// Returns `self + count`, wrapping.
    fn plus(self, count: u32) -> Self;
    /// Returns `self - other`, wrapping.
    fn minus(self, other: Self) -> u32;
    /// Returns the slot that the index stands for, in a ring of `mask + 1` slots.
    fn slot(self, mask: u32) -> usize;
}

impl Index for u32 {
    const ZERO: Self = 0;

    #[inline]
    fn plus(self, count: u32) -> Self {
        self.wrapping_add(count)
    }

    #[inline]
    fn minus(self, other: Self) -> u32 {
        self.wrapping_sub(other)
    }

    #[inline]
    fn slot(self, mask: u32) -> usize {
        (self & mask) as usize
    }
}

impl Index for u8 {
    const ZERO: Self = 0;

    fn plus(self, count: u32) -> Self {
        self.wrapping_add(count as Self)
    }

    fn minus(self, other: Self) -> u32 {
        u32::from(self.wrapping_sub(other))
    }

    fn slot(self, mask: u32) -> usize {
        (u32::from(self) & mask) as usize
    }
}

/// The memory of a ring. [`RingPages`] is the real one; models of it make the rings testable by loom and exhaustively.
pub trait RingMemory {
    /// Width of the indices.
    type Index: Index;
    /// What stands in a slot: a request, and later the response to some request.
    type Request: Wire;
    /// See `Request`.
    type Response: Wire;

    /// Returns how many slots there are, a power of two.
    fn slots(&self) -> u32;
    /// Reads an index word.
    fn load(&self, field: Field, order: Ordering) -> Self::Index;
    /// Writes an index word.
    fn store(&self, field: Field, value: Self::Index, order: Ordering);
    /// Copies the request in a slot. `slot` < `slots()`.
    fn read_request(&self, slot: usize) -> Self::Request;
    /// Copies a request into a slot. `slot` < `slots()`.
    fn write_request(&self, slot: usize, request: &Self::Request);
    /// Copies the first `bytes` bytes of a request into a slot, or more of it.
    #[inline]
    fn write_request_start(&self, slot: usize, request: &Self::Request, _bytes: usize) {
        self.write_request(slot, request);
    }
    /// Copies the response in a slot. `slot` < `slots()`.
    fn read_response(&self, slot: usize) -> Self::Response;
    /// Copies a response into a slot. `slot` < `slots()`.
    fn write_response(&self, slot: usize, response: &Self::Response);
}

/// Memory that a ring can stand in: own pages that are granted, or a peer's pages that are mapped.
///
/// # Safety
/// `view` returns the same page-aligned bytes each time, wherever the value is moved to, and they stay accessible until
/// it is dropped.
pub unsafe trait Backing {
    /// Returns the memory.
    fn view(&self) -> Shared<'_>;
}

// SAFETY: the pages are allocated once, by themselves, and freed in the drop.
unsafe impl<G: Grants> Backing for SharedPages<G> {
    fn view(&self) -> Shared<'_> {
        self.shared()
    }
}

/// A peer's pages, mapped one behind the other for reading and writing. Dropping them unmaps them.
#[derive(Debug)]
pub struct MappedPages<P: Platform>(Window<P>);

/// Why a peer's pages can't be mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapPagesError {
    /// There is no address space.
    OutOfMemory(OutOfMemory),
    /// The hypervisor refused.
    Map(MapError),
}

impl fmt::Display for MapPagesError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutOfMemory(error) => error.fmt(f),
            Self::Map(error) => error.fmt(f),
        }
    }
}

impl<P: Platform> MappedPages<P> {
    /// Maps the pages that `peer` has granted by `refs`; at least one.
    ///
    /// # Errors
    /// [`MapPagesError`]; nothing is mapped then.
    pub fn new(platform: &P, peer: DomId, refs: &[GrantRef]) -> Result<Self, MapPagesError> {
        let mut window = Window::new(platform, refs.len()).map_err(MapPagesError::OutOfMemory)?;
        for (slot, gref) in refs.iter().enumerate() {
            let request = MapRequest { gref: *gref, peer, access: Access::ReadWrite };
            window.map(slot, request).map_err(MapPagesError::Map)?;
        }
        Ok(Self(window))
    }
}

// SAFETY: all slots were mapped by `new` at an address of the window's own, and stay so until it is dropped.
unsafe impl<P: Platform> Backing for MappedPages<P> {
    fn view(&self) -> Shared<'_> {
        self.0.view_run(0, self.0.slots()).unwrap_or(Shared::EMPTY)
    }
}

/// A ring of requests `Q` and responses `S` in real shared pages.
pub struct RingPages<B: Backing, Q, S> {
    backing: B,
    base: NonNull<u8>,
    slots: u32,
    of: core::marker::PhantomData<(Q, S)>,
}

// SAFETY: `base` points into `backing`, is accessed by atomics only, and moves along with it.
unsafe impl<B: Backing + Send, Q, S> Send for RingPages<B, Q, S> {}

impl<B: Backing, Q: Wire, S: Wire> RingPages<B, Q, S> {
    /// Bytes of a slot: the larger of request and response.
    const SLOT: usize = if size_of::<Q>() > size_of::<S>() { size_of::<Q>() } else { size_of::<S>() };

    /// Puts a ring into `backing`; as many slots as it holds, rounded down to a power of two. Changes nothing in it.
    ///
    /// # Panics
    /// If the memory is no writable page.
    pub fn new(backing: B) -> Self {
        let view = backing.view();
        assert!(view.is_writable() && view.as_ptr().addr().get().is_multiple_of(PAGE_SIZE), "a ring in {view:?}");
        let fit = view.len().saturating_sub(RING_HEADER_SIZE) / Self::SLOT;
        let slots = 1u32 << fit.ilog2();
        let base = view.as_ptr();
        Self { backing, base, slots, of: core::marker::PhantomData }
    }

    /// Returns the memory that the ring stands in.
    pub const fn backing(&self) -> &B {
        &self.backing
    }

    #[inline]
    fn word(&self, field: Field) -> &AtomicU32 {
        // SAFETY: the words lie within the first 64 bytes of a page, aligned, and are accessed by atomics only.
        unsafe { AtomicU32::from_ptr(self.base.as_ptr().add(field.offset()).cast()) }
    }

    #[inline]
    fn slot(&self, slot: usize) -> *mut u8 {
        // A power of two: an index beyond is taken for one within.
        let slot = slot & (self.slots as usize - 1);
        // SAFETY: `new` made as many slots as the memory holds.
        unsafe { self.base.as_ptr().add(RING_HEADER_SIZE + slot * Self::SLOT) }
    }

    /// Whether a `T` is copied in words of 64 bits: on a processor that has them, where slots and `T` are made of them.
    const fn is_wide<T>() -> bool {
        cfg!(target_pointer_width = "64") && Self::SLOT.is_multiple_of(8) && size_of::<T>().is_multiple_of(8)
    }

    /// Copies a `T` out of a slot, each word read once.
    #[inline]
    fn read<T: Wire>(&self, slot: usize) -> T {
        let from = self.slot(slot);
        let mut to = MaybeUninit::<T>::uninit();
        if Self::is_wide::<T>() {
            for index in 0..size_of::<T>() / 8 {
                // SAFETY: a slot is at least as large as `T`, and aligned to eight bytes, as the header and each slot are made of
                // so many.
                let word = unsafe { AtomicU64::from_ptr(from.cast::<u64>().add(index)) }.load(Ordering::Relaxed);
                // SAFETY: inside `to`, whose alignment may be less.
                unsafe { to.as_mut_ptr().cast::<u64>().add(index).write_unaligned(word) };
            }
        } else {
            for index in 0..size_of::<T>() / 4 {
                // SAFETY: a slot is at least as large as `T` and aligned to four bytes, like every slot size of `Wire` types.
                let word = unsafe { AtomicU32::from_ptr(from.cast::<u32>().add(index)) }.load(Ordering::Relaxed);
                // SAFETY: inside `to`, whose alignment may be less than four.
                unsafe { to.as_mut_ptr().cast::<u32>().add(index).write_unaligned(word) };
            }
        }
        // SAFETY: all bytes were written, and `Wire` accepts every pattern of them.
        unsafe { to.assume_init() }
    }

    /// Copies the first `bytes` bytes of a `T` into a slot, rounded up to words.
    #[inline(always)]
    fn write<T: Wire>(&self, slot: usize, value: &T, bytes: usize) {
        let to = self.slot(slot);
        let from = core::ptr::from_ref(value);
        let bytes = bytes.min(size_of::<T>());
        if Self::is_wide::<T>() {
            for index in 0..bytes.div_ceil(8) {
                // SAFETY: inside `value`, which has no padding as `Wire` says.
                let word = unsafe { from.cast::<u64>().add(index).read_unaligned() };
                // SAFETY: as in `read`.
                unsafe { AtomicU64::from_ptr(to.cast::<u64>().add(index)) }.store(word, Ordering::Relaxed);
            }
        } else {
            for index in 0..bytes.div_ceil(4) {
                // SAFETY: inside `value`, which has no padding as `Wire` says.
                let word = unsafe { from.cast::<u32>().add(index).read_unaligned() };
                // SAFETY: a slot is at least as large as `T` and aligned to four bytes.
                unsafe { AtomicU32::from_ptr(to.cast::<u32>().add(index)) }.store(word, Ordering::Relaxed);
            }
        }
    }
}

impl<B: Backing, Q: Wire, S: Wire> RingMemory for RingPages<B, Q, S> {
    type Index = u32;
    type Request = Q;
    type Response = S;

    #[inline]
    fn slots(&self) -> u32 {
        self.slots
    }

    #[inline]
    fn load(&self, field: Field, order: Ordering) -> u32 {
        self.word(field).load(order)
    }

    #[inline]
    fn store(&self, field: Field, value: u32, order: Ordering) {
        self.word(field).store(value, order);
    }

    #[inline]
    fn read_request(&self, slot: usize) -> Q {
        self.read(slot)
    }

    #[inline]
    fn write_request(&self, slot: usize, request: &Q) {
        self.write(slot, request, size_of::<Q>());
    }

    #[inline(always)]
    fn write_request_start(&self, slot: usize, request: &Q, bytes: usize) {
        self.write(slot, request, bytes);
    }

    #[inline]
    fn read_response(&self, slot: usize) -> S {
        self.read(slot)
    }

    #[inline]
    fn write_response(&self, slot: usize, response: &S) {
        self.write(slot, response, size_of::<S>());
    }
}
