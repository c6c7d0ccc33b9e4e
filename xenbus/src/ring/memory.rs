//! The memory of a message ring: the index words at its beginning and the slots behind them.

use core::fmt;
use core::mem::{MaybeUninit, offset_of};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

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
    /// See [`view`](Self::view).
    type View<'a>: RingMemory<Index = Self::Index, Request = Self::Request, Response = Self::Response>
    where
        Self: 'a;

    /// Returns the same memory once more, for a batch: what tells where it is, the compiler can keep in registers meanwhile.
    fn view(&self) -> Self::View<'_>;
    /// Returns how many slots there are, a power of two.
    fn slots(&self) -> u32;
    /// Reads an index word.
    fn load(&self, field: Field, order: Ordering) -> Self::Index;
    /// Writes an index word.
    fn store(&self, field: Field, value: Self::Index, order: Ordering);
    /// Writes an index word after all that was written before, and before all that is read after: a store with release, and a full
    /// barrier behind it. What is read after is a [`load`](Self::load) with [`Ordering::SeqCst`].
    fn announce(&self, field: Field, value: Self::Index);
    /// Copies the request in a slot. `slot` < `slots()`.
    fn read_request(&self, slot: usize) -> Self::Request;
    /// Copies what is in use of the request in a slot, and may leave the rest of `to` as it was. `slot` < `slots()`.
    fn read_request_into(&self, slot: usize, to: &mut Self::Request) {
        *to = self.read_request(slot);
    }
    /// Copies a request into a slot. `slot` < `slots()`.
    fn write_request(&self, slot: usize, request: &Self::Request);
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

// SAFETY: what it is a reference to stays where it is as long as the reference is there.
unsafe impl<B: Backing> Backing for &B {
    fn view(&self) -> Shared<'_> {
        (**self).view()
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
    mask: u32,
    of: core::marker::PhantomData<(Q, S)>,
}

// SAFETY: `base` points into `backing`, is accessed by atomics only, and moves along with it.
unsafe impl<B: Backing + Send, Q, S> Send for RingPages<B, Q, S> {}

impl<B: Backing, Q: Wire, S: Wire> RingPages<B, Q, S> {
    /// Bytes of a slot: the larger of request and response.
    const SLOT: usize = if size_of::<Q>() > size_of::<S>() { size_of::<Q>() } else { size_of::<S>() };

    /// Bytes that a slot is copied by: a register, where all in a slot is made of them. One size for all: Miri can't follow a place
    /// that is accessed in two.
    const WORD: usize = {
        // `load_run` and `save_run` go up to that.
        assert!(size_of::<Q>() - Q::HEAD < 32 * size_of::<u32>() && size_of::<S>() - S::HEAD < 32 * size_of::<u32>());
        let sizes = size_of::<Q>() | Q::HEAD | size_of::<S>() | S::HEAD;
        if sizes.is_multiple_of(size_of::<usize>()) { size_of::<usize>() } else { size_of::<u32>() }
    };

    /// Puts a ring into `backing`; as many slots as it holds, rounded down to a power of two. Changes nothing in it.
    ///
    /// # Panics
    /// If the memory is no writable page.
    pub fn new(backing: B) -> Self {
        let view = backing.view();
        assert!(view.is_writable() && view.as_ptr().addr().get().is_multiple_of(PAGE_SIZE), "a ring in {view:?}");
        let fit = view.len().saturating_sub(RING_HEADER_SIZE) / Self::SLOT;
        let mask = (1u32 << fit.ilog2()) - 1;
        let base = view.as_ptr();
        Self { backing, base, mask, of: core::marker::PhantomData }
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
        let slot = slot & self.mask as usize;
        // SAFETY: `new` made as many slots as the memory holds.
        unsafe { self.base.as_ptr().add(RING_HEADER_SIZE + slot * Self::SLOT) }
    }

    /// Copies what is in use of a `T` out of a slot and leaves the rest. Each word is loaded once at most: how many there are is told
    /// by the copy.
    #[inline]
    fn read_into<T: Wire>(&self, slot: usize, to: &mut T) {
        let from = self.slot(slot);
        let into = core::ptr::from_mut(to).cast::<u8>();
        for word in 0..T::HEAD / Self::WORD {
            // SAFETY: a slot is at least as large as `T`.
            unsafe { Self::load(from, into, word) };
        }
        if T::HEAD == size_of::<T>() {
            return;
        }
        let count = to.tail() * (8 / Self::WORD);
        if count == 1 {
            // SAFETY: there is more than the head.
            return unsafe { Self::load(from, into, T::HEAD / Self::WORD) };
        }
        let count = count.min((size_of::<T>() - T::HEAD) / Self::WORD);
        // SAFETY: that many are behind the head, in the slot and in `to`.
        unsafe { Self::load_run(from.add(T::HEAD), into.add(T::HEAD), count) };
    }

    /// Copies what is in use of a `T` out of a slot; the rest is zero.
    #[inline]
    fn read<T: Wire>(&self, slot: usize) -> T {
        // SAFETY: `Wire` accepts every pattern of bytes, so zeroes too.
        let mut to: T = unsafe { MaybeUninit::zeroed().assume_init() };
        self.read_into(slot, &mut to);
        to
    }

    /// Copies what is in use of a `T` into a slot.
    #[inline]
    fn write<T: Wire>(&self, slot: usize, value: &T) {
        // First, while the compiler may still know what `value` was made of.
        let count = value.tail() * (8 / Self::WORD);
        let to = self.slot(slot);
        let from = core::ptr::from_ref(value).cast::<u8>();
        for word in 0..T::HEAD / Self::WORD {
            // SAFETY: a slot is at least as large as `T`.
            unsafe { Self::save(to, from, word) };
        }
        if T::HEAD == size_of::<T>() {
            return;
        }
        if count == 1 {
            // SAFETY: there is more than the head.
            return unsafe { Self::save(to, from, T::HEAD / Self::WORD) };
        }
        let count = count.min((size_of::<T>() - T::HEAD) / Self::WORD);
        // SAFETY: that many are behind the head, in the slot and in `value`.
        unsafe { Self::save_run(to.add(T::HEAD), from.add(T::HEAD), count) };
    }

    /// Copies words out of a slot, by the bits of their number: a loop of which the compiler knows no end would cost more than the
    /// copy itself.
    ///
    /// # Safety
    /// There are as many, less than 32.
    #[inline(never)]
    unsafe fn load_run(mut from: *mut u8, mut to: *mut u8, count: usize) {
        for run in [16, 8, 4, 2, 1] {
            if count & run != 0 {
                for word in 0..run {
                    // SAFETY: as the caller promises.
                    unsafe { Self::load(from, to, word) };
                }
                // SAFETY: as above.
                (from, to) = unsafe { (from.add(run * Self::WORD), to.add(run * Self::WORD)) };
            }
        }
    }

    /// Copies words into a slot, as [`load_run`](Self::load_run) does out of one.
    ///
    /// # Safety
    /// As for that.
    #[inline(never)]
    unsafe fn save_run(mut to: *mut u8, mut from: *const u8, count: usize) {
        for run in [16, 8, 4, 2, 1] {
            if count & run != 0 {
                for word in 0..run {
                    // SAFETY: as the caller promises.
                    unsafe { Self::save(to, from, word) };
                }
                // SAFETY: as above.
                (from, to) = unsafe { (from.add(run * Self::WORD), to.add(run * Self::WORD)) };
            }
        }
    }

    /// Copies one word out of a slot.
    ///
    /// # Safety
    /// There is such a word, in the slot and at `to`.
    #[inline]
    unsafe fn load(slot: *mut u8, to: *mut u8, word: usize) {
        let at = word * Self::WORD;
        #[cfg(all(test, not(loom)))]
        tests::note_load(slot.wrapping_add(at));
        // SAFETY: as the caller promises; slots are aligned to words, and what is private may be less than that.
        unsafe {
            if Self::WORD == size_of::<u64>() {
                let word = AtomicU64::from_ptr(slot.add(at).cast()).load(Ordering::Relaxed);
                to.add(at).cast::<u64>().write_unaligned(word);
            } else {
                let word = AtomicU32::from_ptr(slot.add(at).cast()).load(Ordering::Relaxed);
                to.add(at).cast::<u32>().write_unaligned(word);
            }
        }
    }

    /// Copies one word into a slot.
    ///
    /// # Safety
    /// There is such a word, in the slot and at `from`.
    #[inline]
    unsafe fn save(slot: *mut u8, from: *const u8, word: usize) {
        let at = word * Self::WORD;
        // SAFETY: as for `load`.
        unsafe {
            if Self::WORD == size_of::<u64>() {
                let word = from.add(at).cast::<u64>().read_unaligned();
                AtomicU64::from_ptr(slot.add(at).cast()).store(word, Ordering::Relaxed);
            } else {
                let word = from.add(at).cast::<u32>().read_unaligned();
                AtomicU32::from_ptr(slot.add(at).cast()).store(word, Ordering::Relaxed);
            }
        }
    }
}

impl<B: Backing, Q: Wire, S: Wire> RingMemory for RingPages<B, Q, S> {
    type Index = u32;
    type Request = Q;
    type Response = S;
    type View<'a>
        = RingPages<&'a B, Q, S>
    where
        Self: 'a;

    #[inline]
    fn view(&self) -> Self::View<'_> {
        RingPages { backing: &self.backing, base: self.base, mask: self.mask, of: core::marker::PhantomData }
    }

    #[inline]
    fn slots(&self) -> u32 {
        self.mask + 1
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
    fn announce(&self, field: Field, value: u32) {
        if cfg!(all(any(target_arch = "x86", target_arch = "x86_64"), not(miri))) {
            // An exchange is a full barrier of these processors, and costs half of a store and an mfence.
            self.word(field).swap(value, Ordering::SeqCst);
        } else {
            // The language promises as much of a fence alone: an exchange need not order a relaxed store before it, such as a wish.
            self.word(field).store(value, Ordering::Release);
            fence(Ordering::SeqCst);
        }
    }

    #[inline]
    fn read_request(&self, slot: usize) -> Q {
        self.read(slot)
    }

    #[inline]
    fn read_request_into(&self, slot: usize, request: &mut Q) {
        self.read_into(slot, request);
    }

    #[inline]
    fn write_request(&self, slot: usize, request: &Q) {
        self.write(slot, request);
    }

    #[inline]
    fn read_response(&self, slot: usize) -> S {
        self.read(slot)
    }

    #[inline]
    fn write_response(&self, slot: usize, response: &S) {
        self.write(slot, response);
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
