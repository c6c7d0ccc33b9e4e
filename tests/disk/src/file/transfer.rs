//! Bytes from the parts of a request to the file, and back.

use std::fs::File;
use std::io;
use std::marker::PhantomData;
use std::os::fd::AsRawFd;
use std::sync::atomic::AtomicU8;

use hypercall::mem::Shared;
use xbd::back::Parts;

use super::error::Trouble;

/// `preadv` or `pwritev`.
pub(crate) type Vectored =
    unsafe extern "C" fn(libc::c_int, *const libc::iovec, libc::c_int, libc::off_t) -> libc::ssize_t;

/// Most spans of one system call; well below the system's own limit of 1024.
const SPANS: usize = 128;

/// Which way the bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// From the file.
    In,
    /// To the file.
    Out,
}

impl Way {
    const fn call(self) -> Vectored {
        match self {
            Self::In => libc::preadv,
            Self::Out => libc::pwritev,
        }
    }
}

/// What memory and places have to be multiples of for direct access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Alignment {
    pub(crate) memory: usize,
    pub(crate) place: usize,
}

impl Alignment {
    fn suits(self, part: Shared<'_>) -> bool {
        part.as_ptr().addr().get().is_multiple_of(self.memory) && part.len().is_multiple_of(self.place)
    }
}

/// Memory of our own, for parts that are not aligned. Aligned to a page, which is all that any device wants.
#[derive(Debug)]
pub(crate) struct Bounce {
    bytes: Vec<u8>,
}

impl Bounce {
    pub(crate) const PAGE: usize = 4096;
    const BYTES: usize = 64 * Self::PAGE;

    /// Makes one; an empty one if none is `needed`.
    pub(crate) fn new(needed: bool) -> Self {
        Self { bytes: if needed { vec![0; Self::BYTES + Self::PAGE] } else { Vec::new() } }
    }

    fn aligned(&mut self) -> &mut [u8] {
        let first = self.bytes.as_ptr().align_offset(Self::PAGE);
        &mut self.bytes[first..first + Self::BYTES]
    }
}

/// What a system call is given: memory that is mapped for `'a`, and that the kernel may read or write.
#[repr(transparent)]
#[derive(Clone, Copy)]
struct Span<'a>(libc::iovec, PhantomData<&'a [AtomicU8]>);

impl<'a> Span<'a> {
    const NONE: Self = Self(libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }, PhantomData);

    fn of(part: Shared<'a>) -> Self {
        Self(libc::iovec { iov_base: part.as_ptr().as_ptr().cast(), iov_len: part.len() }, PhantomData)
    }

    fn of_bytes(bytes: &'a mut [u8]) -> Self {
        Self(libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() }, PhantomData)
    }
}

/// Moves all bytes of the parts, from or to the place `at` of the file and on.
pub(crate) fn transfer(file: &File, way: Way, mut at: u64, parts: Parts<'_>) -> Result<(), Trouble> {
    check_writable(way, parts)?;
    let mut rest = parts.iter().filter(|part| !part.is_empty());
    let mut spans = [Span::NONE; SPANS];
    loop {
        let mut count = 0;
        for (span, part) in spans.iter_mut().zip(&mut rest) {
            *span = Span::of(part);
            count += 1;
        }
        if count == 0 {
            return Ok(());
        }
        at = exact(way.call(), file, &mut spans[..count], at)?;
    }
}

/// The same for direct access: where not all parts are aligned, all go by way of the buffer.
pub(crate) fn transfer_directly(
    file: &File,
    way: Way,
    mut at: u64,
    parts: Parts<'_>,
    alignment: Alignment,
    bounce: &mut Bounce,
) -> Result<(), Trouble> {
    if parts.iter().all(|part| alignment.suits(part)) {
        return transfer(file, way, at, parts);
    }
    check_writable(way, parts)?;
    let mut pieces = Pieces { parts: parts.iter(), rest: Shared::EMPTY };
    let mut left = parts.len();
    while left > 0 {
        let buffer = bounce.aligned();
        let len = left.min(buffer.len());
        let buffer = &mut buffer[..len];
        if way == Way::Out {
            pieces.beside(buffer, |piece, bytes| piece.read(0, bytes));
        }
        at = exact(way.call(), file, &mut [Span::of_bytes(buffer)], at)?;
        if way == Way::In {
            pieces.beside(buffer, |piece, bytes| piece.write(0, bytes));
        }
        left -= len;
    }
    Ok(())
}

fn check_writable(way: Way, parts: Parts<'_>) -> Result<(), Trouble> {
    let fits = way == Way::Out || parts.iter().all(Shared::is_writable);
    if fits { Ok(()) } else { Err(Trouble::Unwritable) }
}

/// The parts, cut anew.
struct Pieces<'a, I> {
    parts: I,
    rest: Shared<'a>,
}

impl<'a, I: Iterator<Item = Shared<'a>>> Pieces<'a, I> {
    /// Goes along the buffer, to its end or that of the parts.
    fn beside(&mut self, mut buffer: &mut [u8], mut each: impl FnMut(Shared<'a>, &mut [u8])) {
        while !buffer.is_empty() {
            if self.rest.is_empty() {
                let Some(next) = self.parts.next() else { return };
                self.rest = next;
                continue;
            }
            let len = self.rest.len().min(buffer.len());
            let (now, later) = buffer.split_at_mut(len);
            each(self.rest.slice(0, len), now);
            self.rest = self.rest.slice(len, self.rest.len() - len);
            buffer = later;
        }
    }
}

/// Moves all bytes of the spans, none of which is empty, however many calls it takes. Returns the place behind them.
fn exact(call: Vectored, file: &File, mut spans: &mut [Span<'_>], mut at: u64) -> Result<u64, Trouble> {
    while !spans.is_empty() {
        let offset = libc::off_t::try_from(at).map_err(|_| rustix::io::Errno::OVERFLOW)?;
        // SAFETY: spans are laid out as what the call takes, and each is mapped for its life; those that are read into can be
        // written, as both callers have checked. That somebody else may change the bytes meanwhile is the kernel's to bear, which
        // makes no reference to them.
        let moved = unsafe { call(file.as_raw_fd(), spans.as_ptr().cast(), spans.len() as libc::c_int, offset) };
        let Ok(mut moved) = usize::try_from(moved) else {
            let error = io::Error::last_os_error();
            if error.kind() == io::ErrorKind::Interrupted {
                continue;
            }
            return Err(Trouble::System(error));
        };
        if moved == 0 {
            return Err(Trouble::Shorter);
        }
        at += moved as u64;
        while spans.first().is_some_and(|span| span.0.iov_len <= moved) {
            moved -= spans[0].0.iov_len;
            spans = &mut spans[1..];
        }
        if let Some(span) = spans.first_mut() {
            span.0.iov_base = span.0.iov_base.wrapping_byte_add(moved);
            span.0.iov_len -= moved;
        }
    }
    Ok(at)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::os::unix::fs::FileExt;

    use super::*;

    thread_local! {
        static CALLS: Cell<u32> = const { Cell::new(0) };
    }

    /// A system call that is interrupted each third time, and moves no more than 100 bytes else.
    unsafe extern "C" fn grudging(
        fd: libc::c_int,
        spans: *const libc::iovec,
        _: libc::c_int,
        at: libc::off_t,
    ) -> libc::ssize_t {
        CALLS.set(CALLS.get() + 1);
        if CALLS.get().is_multiple_of(3) {
            // SAFETY: the error number of this thread.
            unsafe { *libc::__errno_location() = libc::EINTR };
            return -1;
        }
        // SAFETY: there is at least one span, as good as the caller's.
        unsafe {
            let span = &*spans;
            libc::pread(fd, span.iov_base, span.iov_len.min(100), at)
        }
    }

    #[test]
    fn what_a_call_leaves_is_moved_by_the_next() {
        let file = tempfile::tempfile().unwrap();
        let contents: Vec<u8> = (0..4096u32).map(|n| (n % 251) as u8).collect();
        file.write_all_at(&contents, 0).unwrap();
        let (mut a, mut b) = (vec![0; 1000], vec![0; 1536]);
        let end = exact(grudging, &file, &mut [Span::of_bytes(&mut a), Span::of_bytes(&mut b)], 512).unwrap();
        assert_eq!(end, 512 + 2536);
        assert_eq!([a, b].concat(), contents[512..][..2536]);
        // 10 for the first, 16 for the second, and each second of them was followed by an interruption.
        assert!(CALLS.get() >= 26 + 12, "{}", CALLS.get());
    }

    #[test]
    fn the_end_of_the_file_is_an_error() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1000).unwrap();
        let mut bytes = vec![0; 1024];
        let error = exact(libc::preadv, &file, &mut [Span::of_bytes(&mut bytes)], 0).unwrap_err();
        assert_eq!(error.to_string(), "it has become shorter");
    }
}
