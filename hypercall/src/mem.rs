//! Pages, and views of memory that somebody else may change at any time.
//!
//! A page that is shared with another domain is never seen as `&[u8]` or `&mut [u8]`: the peer writes while we read. It is
//! seen as a [`Shared`] view, every access of which is atomic, and is copied in once before anything is decided on it.

use core::fmt;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU8, AtomicU32, AtomicUsize, Ordering::Relaxed};

use xen_sys::Gfn;

use crate::platform::{Platform, Region};

/// Bytes in a page, and in everything that a grant covers.
pub const PAGE_SIZE: usize = 4096;

/// The platform had no page to give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfMemory {
    /// Pages that were asked for.
    pub pages: usize,
}

impl fmt::Display for OutOfMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "out of memory: {} page(s) of 4096 bytes", self.pages)
    }
}

/// A part of one page: what one grant, or one segment of a request, covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The frame of the page.
    pub gfn: Gfn,
    /// First byte within the page.
    pub offset: u16,
    /// Bytes; `offset + len` ≤ 4096.
    pub len: u16,
}

/// Memory that a device reads or writes on its owner's behalf. The driver owns the buffer while the operation is under
/// way and gives it back when it is over, so nobody can free it too early.
///
/// # Safety
/// Until the buffer is dropped or taken apart, the pages of all its segments stay allocated, and are used by nobody else
/// in a way that a concurrent write by another domain would make undefined.
pub unsafe trait Buffer {
    /// Returns its parts in order. The answer is the same each time.
    fn segments(&self) -> impl Iterator<Item = Segment>;

    /// Returns the same parts as this domain sees them: as many, of the same lengths. Data that goes by way of other pages is copied
    /// by these.
    fn parts(&self) -> impl Iterator<Item = Shared<'_>>;
}

// SAFETY: nothing is a buffer without segments, something is one itself.
unsafe impl<B: Buffer> Buffer for Option<B> {
    fn segments(&self) -> impl Iterator<Item = Segment> {
        self.iter().flat_map(Buffer::segments)
    }

    fn parts(&self) -> impl Iterator<Item = Shared<'_>> {
        self.iter().flat_map(Buffer::parts)
    }
}

// SAFETY: the pages are those of the second half; the first is what its owner knows it by.
unsafe impl<T, B: Buffer> Buffer for (T, B) {
    fn segments(&self) -> impl Iterator<Item = Segment> {
        self.1.segments()
    }

    fn parts(&self) -> impl Iterator<Item = Shared<'_>> {
        self.1.parts()
    }
}

/// Owned, page aligned, zeroed pages of this domain. Freed when dropped.
pub struct Pages<P: Platform> {
    platform: P,
    va: NonNull<u8>,
    count: usize,
}

// SAFETY: the pages are owned, and the platform's handle says itself whether it may move to another thread.
unsafe impl<P: Platform + Send> Send for Pages<P> {}

impl<P: Platform> fmt::Debug for Pages<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pages({:p}, {})", self.va, self.count)
    }
}

impl<P: Platform> Pages<P> {
    /// Allocates `count` pages.
    ///
    /// # Errors
    /// [`OutOfMemory`] if the platform has none.
    pub fn new(platform: &P, count: usize) -> Result<Self, OutOfMemory> {
        let va = platform.alloc(Region::Memory, count).ok_or(OutOfMemory { pages: count })?;
        Ok(Self { platform: platform.clone(), va, count })
    }

    /// Returns how many pages there are.
    pub const fn count(&self) -> usize {
        self.count
    }

    /// Returns the frame number of page `index`.
    ///
    /// # Panics
    /// If there is no such page.
    pub fn gfn(&self, index: usize) -> Gfn {
        assert!(index < self.count, "page {index} of {}", self.count);
        // SAFETY: inside the allocation, as was just checked.
        self.platform.gfn_of(unsafe { self.va.add(index * PAGE_SIZE) })
    }

    /// Returns a view of the pages that stays right while a peer changes them.
    pub fn shared(&self) -> Shared<'_> {
        // SAFETY: the pages live as long as the borrow, and nothing else than `Shared` views looks at them: `bytes_mut`
        // needs `&mut self`.
        unsafe { Shared::new(self.va, self.count * PAGE_SIZE) }
    }

    /// Returns the platform that the pages came from.
    pub const fn platform(&self) -> &P {
        &self.platform
    }

    /// Gives up the pages for ever: nobody frees them. The last resort for a page that a peer still maps.
    pub fn leak(self) {
        let this = core::mem::ManuallyDrop::new(self);
        // SAFETY: read once, and `this` is neither used nor dropped after. Only the pages are lost, not the handle too.
        drop(unsafe { core::ptr::read(&this.platform) });
    }
}

impl<P: Platform> Drop for Pages<P> {
    fn drop(&mut self) {
        // SAFETY: `new` got exactly these; views and grants of them are over, or the pages would have been leaked.
        unsafe { self.platform.free(Region::Memory, self.va, self.count) };
    }
}

/// A buffer made of whole pages: what scenarios and tests submit, and what bounce and persistent grants use.
#[derive(Debug)]
pub struct PageBuf<P: Platform> {
    pages: Pages<P>,
    len: usize,
}

impl<P: Platform> PageBuf<P> {
    /// Allocates a zeroed buffer of `len` bytes that begins on a page boundary.
    ///
    /// # Errors
    /// [`OutOfMemory`] if the platform has no pages.
    pub fn new(platform: &P, len: usize) -> Result<Self, OutOfMemory> {
        Ok(Self { pages: Pages::new(platform, len.div_ceil(PAGE_SIZE))?, len })
    }

    /// Returns its length in bytes.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Tells whether it has no bytes at all.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Makes it `len` bytes long, within the pages that it has: a buffer that is used again for something shorter, or longer.
    ///
    /// # Panics
    /// If its pages are fewer.
    pub fn set_len(&mut self, len: usize) {
        assert!(len <= self.pages.count() * PAGE_SIZE, "{len} bytes in {} page(s)", self.pages.count());
        self.len = len;
    }

    /// Returns a view of its bytes.
    pub fn shared(&self) -> Shared<'_> {
        self.pages.shared().slice(0, self.len)
    }

    /// Returns its pages.
    pub(crate) fn into_pages(self) -> Pages<P> {
        self.pages
    }
}

// SAFETY: the pages are owned by the buffer, freed when it is dropped, and seen through atomics only.
unsafe impl<P: Platform> Buffer for PageBuf<P> {
    fn segments(&self) -> impl Iterator<Item = Segment> {
        (0..self.len.div_ceil(PAGE_SIZE)).map(|index| Segment {
            gfn: self.pages.gfn(index),
            offset: 0,
            len: (self.len - index * PAGE_SIZE).min(PAGE_SIZE) as u16,
        })
    }

    fn parts(&self) -> impl Iterator<Item = Shared<'_>> {
        let bytes = self.shared();
        (0..self.len).step_by(PAGE_SIZE).map(move |at| bytes.slice(at, (self.len - at).min(PAGE_SIZE)))
    }
}

/// Bytes of the largest piece that is accessed at once: a register. A larger atomic load may be a write on a 32-bit processor,
/// which a page that is mapped for reading only doesn't bear.
const WORD: usize = size_of::<usize>();

/// Words from which on a copy by one instruction is worth its beginning.
#[cfg(all(target_arch = "x86_64", not(miri)))]
const MANY: usize = 32;

/// Copies words, each by one access.
///
/// # Safety
/// There are so many at both places, which are aligned to words and are accessed only atomically.
unsafe fn copy_words(from: NonNull<u8>, to: NonNull<u8>, words: usize) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    if words >= MANY {
        // SAFETY: as the caller promises. The compiler sees nothing of these accesses, so what others do meanwhile is no race to it; the
        // processor moves words, or more at once. The direction flag is clear, as the ABI demands.
        unsafe {
            core::arch::asm!(
                "rep movsq",
                inout("rcx") words => _,
                inout("rsi") from.as_ptr() => _,
                inout("rdi") to.as_ptr() => _,
                options(nostack, preserves_flags),
            );
        }
        return;
    }
    for index in 0..words {
        // SAFETY: as the caller promises.
        let (source, target) = unsafe {
            let at = WORD * index;
            (AtomicUsize::from_ptr(from.as_ptr().add(at).cast()), AtomicUsize::from_ptr(to.as_ptr().add(at).cast()))
        };
        target.store(source.load(Relaxed), Relaxed);
    }
}

/// A view of bytes that another domain may read and write at any time. All access is atomic, byte by byte or in aligned
/// registers; there is no order between the accesses, that is the ring's business.
#[derive(Clone, Copy)]
pub struct Shared<'a> {
    va: NonNull<u8>,
    len: usize,
    writable: bool,
    life: core::marker::PhantomData<&'a [AtomicU8]>,
}

// SAFETY: the view is nothing but atomics.
unsafe impl Send for Shared<'_> {}
// SAFETY: as above.
unsafe impl Sync for Shared<'_> {}

impl fmt::Debug for Shared<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Shared({:p}, {})", self.va, self.len)
    }
}

impl<'a> Shared<'a> {
    /// A view of nothing.
    pub const EMPTY: Self = Self { va: NonNull::dangling(), len: 0, writable: true, life: core::marker::PhantomData };

    /// Makes a view of `len` bytes at `va`.
    ///
    /// # Safety
    /// For `'a` the bytes are mapped and writable, and this domain accesses them only atomically.
    pub const unsafe fn new(va: NonNull<u8>, len: usize) -> Self {
        Self { va, len, writable: true, life: core::marker::PhantomData }
    }

    /// Makes a view of `len` bytes at `va` that can't be written, such as a page granted for reading only.
    ///
    /// # Safety
    /// For `'a` the bytes are mapped, and this domain accesses them only atomically.
    pub const unsafe fn read_only(va: NonNull<u8>, len: usize) -> Self {
        Self { va, len, writable: false, life: core::marker::PhantomData }
    }

    /// Tells whether the bytes may be written.
    pub const fn is_writable(self) -> bool {
        self.writable
    }

    /// Returns its length in bytes.
    pub const fn len(self) -> usize {
        self.len
    }

    /// Tells whether it covers nothing.
    pub const fn is_empty(self) -> bool {
        self.len == 0
    }

    /// Returns the address of its first byte, for hypercalls and system calls.
    pub const fn as_ptr(self) -> NonNull<u8> {
        self.va
    }

    /// Returns the part of `len` bytes that begins at `offset`.
    ///
    /// # Panics
    /// If that part does not lie inside.
    pub fn slice(self, offset: usize, len: usize) -> Self {
        assert!(offset <= self.len && len <= self.len - offset, "{offset}+{len} of {}", self.len);
        // SAFETY: inside the view, as was just checked.
        Self { va: unsafe { self.va.add(offset) }, len, ..self }
    }

    /// Copies the bytes at `offset` into `to`.
    ///
    /// # Panics
    /// If they do not all lie inside.
    pub fn read(self, offset: usize, to: &mut [u8]) {
        let from = self.slice(offset, to.len());
        let head = from.head(to.len());
        let (first, rest) = to.split_at_mut(head);
        let (words, last) = rest.as_chunks_mut::<WORD>();
        from.bytes(0, first);
        for (index, word) in words.iter_mut().enumerate() {
            // SAFETY: inside the view, and aligned: `head` bytes lead to an aligned address.
            let source = unsafe { AtomicUsize::from_ptr(from.va.as_ptr().add(head + WORD * index).cast()) };
            *word = source.load(Relaxed).to_ne_bytes();
        }
        let done = head + WORD * words.len();
        from.bytes(done, last);
    }

    /// Copies `from` to the bytes at `offset`.
    ///
    /// # Panics
    /// If they do not all lie inside, or the view is for reading only.
    pub fn write(self, offset: usize, from: &[u8]) {
        assert!(self.writable, "write to a read-only page");
        let to = self.slice(offset, from.len());
        let head = to.head(from.len());
        let (first, rest) = from.split_at(head);
        let (words, last) = rest.as_chunks::<WORD>();
        to.set_bytes(0, first);
        for (index, word) in words.iter().enumerate() {
            // SAFETY: inside the view, and aligned: `head` bytes lead to an aligned address.
            let target = unsafe { AtomicUsize::from_ptr(to.va.as_ptr().add(head + WORD * index).cast()) };
            target.store(usize::from_ne_bytes(*word), Relaxed);
        }
        to.set_bytes(head + WORD * words.len(), last);
    }

    /// Copies eight bytes to those at `offset`: an entry of a table, written one by one.
    ///
    /// # Panics
    /// As [`write`](Self::write).
    #[inline]
    pub fn write_entry(self, offset: usize, from: [u8; 8]) {
        assert!(self.writable, "write to a read-only page");
        let to = self.slice(offset, from.len());
        // As `head` says, for Miri.
        if cfg!(miri) || !to.va.addr().get().is_multiple_of(WORD) {
            return to.write(0, &from);
        }
        for (index, word) in from.as_chunks::<WORD>().0.iter().enumerate() {
            // SAFETY: inside the view, and aligned.
            let target = unsafe { AtomicUsize::from_ptr(to.va.as_ptr().add(WORD * index).cast()) };
            target.store(usize::from_ne_bytes(*word), Relaxed);
        }
    }

    /// Copies all bytes of `from` to the bytes at `offset`.
    ///
    /// # Panics
    /// If they do not all lie inside, or the view is for reading only.
    pub fn copy_from(self, offset: usize, from: Shared<'_>) {
        assert!(self.writable, "write to a read-only page");
        let to = self.slice(offset, from.len);
        let aligned = |view: Shared<'_>| view.va.addr().get().is_multiple_of(WORD);
        // As `head` says, for Miri.
        let words = if !cfg!(miri) && aligned(to) && aligned(from) { from.len / WORD } else { 0 };
        // SAFETY: inside both views, and aligned.
        unsafe { copy_words(from.va, to.va, words) };
        for at in WORD * words..from.len {
            to.byte(at).store(from.byte(at).load(Relaxed), Relaxed);
        }
    }

    /// Writes zeros to all bytes from `offset` on.
    ///
    /// # Panics
    /// If `offset` lies outside, or the view is for reading only.
    pub fn clear_from(self, offset: usize) {
        const ZEROS: [u8; 256] = [0; 256];
        let mut at = offset;
        while at < self.len {
            let len = (self.len - at).min(ZEROS.len());
            self.write(at, &ZEROS[..len]);
            at += len;
        }
        assert!(offset <= self.len, "{offset} of {}", self.len);
    }

    /// Returns the word at `offset`: an index of a ring, whose users know what is to be ordered around it.
    ///
    /// # Panics
    /// If the word does not lie inside, or is not aligned, or the view is for reading only.
    pub fn word(self, offset: usize) -> &'a AtomicU32 {
        assert!(self.writable, "a word of a read-only page");
        let word = self.slice(offset, size_of::<u32>()).va.cast::<AtomicU32>();
        assert!(word.is_aligned(), "a word at {offset}");
        // SAFETY: inside the view and aligned, as was just checked, and mapped for `'a`, as `new` was promised.
        unsafe { word.as_ref() }
    }

    /// Returns how many of the first `len` bytes are accessed one by one: those before the first aligned word. All of them under
    /// Miri, which can't follow a place that is accessed in different sizes.
    fn head(self, len: usize) -> usize {
        if cfg!(miri) { len } else { self.va.as_ptr().align_offset(WORD).min(len) }
    }

    fn byte(&self, offset: usize) -> &AtomicU8 {
        // SAFETY: only called with offsets that `slice` has checked.
        unsafe { AtomicU8::from_ptr(self.va.as_ptr().add(offset)) }
    }

    fn bytes(self, offset: usize, to: &mut [u8]) {
        for (index, byte) in to.iter_mut().enumerate() {
            *byte = self.byte(offset + index).load(Relaxed);
        }
    }

    fn set_bytes(self, offset: usize, from: &[u8]) {
        for (index, byte) in from.iter().enumerate() {
            self.byte(offset + index).store(*byte, Relaxed);
        }
    }
}
