//! Byte rings: the streams of xenstore and of the console. Two in a page, one for each direction.
//!
//! ```text
//!                 prod, published by the writer        cons, published by the reader
//!   Producer ──►  ░░░░░████████░░░░░░░░░░░░░░░░░  ──►  Consumer         prod − cons ≤ size, wrapping
//!                      ▲       ▲
//!                      cons    prod
//! ```
//!
//! Whoever writes or reads tells the other end by an event, each time: these rings have no words to ask for one. The event is a
//! full barrier, so no end sleeps on what the other has published before it.
//!
//! The own index is private, and the truth; it is published and never read back. The peer's is read once for each operation,
//! and then bounded.

use core::mem::offset_of;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use hypercall::mem::Shared;
use xen_sys::io::console::XenconsInterface;
use xen_sys::io::xs_wire::{XENSTORE_RING_SIZE, XenstoreDomainInterface};

use super::RingError;

/// Where one ring lies in its page.
#[derive(Clone, Copy, Debug)]
struct Layout {
    bytes: usize,
    /// Bytes that it holds; a power of two.
    size: u32,
    cons: usize,
    prod: usize,
}

const REQUESTS: Layout = Layout {
    bytes: offset_of!(XenstoreDomainInterface, req),
    size: XENSTORE_RING_SIZE as u32,
    cons: offset_of!(XenstoreDomainInterface, req_cons),
    prod: offset_of!(XenstoreDomainInterface, req_prod),
};
const RESPONSES: Layout = Layout {
    bytes: offset_of!(XenstoreDomainInterface, rsp),
    size: XENSTORE_RING_SIZE as u32,
    cons: offset_of!(XenstoreDomainInterface, rsp_cons),
    prod: offset_of!(XenstoreDomainInterface, rsp_prod),
};
const INPUT: Layout = Layout {
    bytes: offset_of!(XenconsInterface, r#in),
    size: (offset_of!(XenconsInterface, out) - offset_of!(XenconsInterface, r#in)) as u32,
    cons: offset_of!(XenconsInterface, in_cons),
    prod: offset_of!(XenconsInterface, in_prod),
};
const OUTPUT: Layout = Layout {
    bytes: offset_of!(XenconsInterface, out),
    size: (offset_of!(XenconsInterface, in_cons) - offset_of!(XenconsInterface, out)) as u32,
    cons: offset_of!(XenconsInterface, out_cons),
    prod: offset_of!(XenconsInterface, out_prod),
};

/// One end of the two rings of a page.
#[derive(Debug)]
pub struct ByteRings<'a> {
    /// What this end sends.
    pub tx: Producer<'a>,
    /// What this end receives.
    pub rx: Consumer<'a>,
}

impl<'a> ByteRings<'a> {
    /// Takes the guest's end of a xenstore page. It goes on where the last user of this end stopped.
    ///
    /// # Panics
    /// If `page` is smaller than the interface (io/xs_wire.h, struct xenstore_domain_interface), or not aligned to words.
    pub fn xenstore_front(page: Shared<'a>) -> Self {
        Self { tx: Producer::new(page, REQUESTS), rx: Consumer::new(page, RESPONSES) }
    }

    /// Takes the daemon's end of a xenstore page. It goes on where the last user of this end stopped.
    ///
    /// # Panics
    /// As [`xenstore_front`](Self::xenstore_front).
    pub fn xenstore_back(page: Shared<'a>) -> Self {
        Self { tx: Producer::new(page, RESPONSES), rx: Consumer::new(page, REQUESTS) }
    }

    /// Takes the guest's end of a console page. It goes on where the last user of this end stopped.
    ///
    /// # Panics
    /// If `page` is smaller than the interface (io/console.h, struct xencons_interface), or not aligned to words.
    pub fn console_front(page: Shared<'a>) -> Self {
        Self { tx: Producer::new(page, OUTPUT), rx: Consumer::new(page, INPUT) }
    }

    /// Takes the other end of a console page. It goes on where the last user of this end stopped.
    ///
    /// # Panics
    /// As [`console_front`](Self::console_front).
    pub fn console_back(page: Shared<'a>) -> Self {
        Self { tx: Producer::new(page, INPUT), rx: Consumer::new(page, OUTPUT) }
    }
}

/// The writing end of a ring.
#[derive(Debug)]
pub struct Producer<'a> {
    page: Shared<'a>,
    layout: Layout,
    prod: u32,
    broken: Option<RingError>,
}

impl<'a> Producer<'a> {
    fn new(page: Shared<'a>, layout: Layout) -> Self {
        // Our own index, from before: nobody else has a right to it, and a wrong one is found out by the bound.
        let prod = page.word(layout.prod).load(Relaxed);
        Self { page, layout, prod, broken: None }
    }

    /// Returns how many bytes the ring has room for now.
    ///
    /// # Errors
    /// [`RingError`] if the reader claims to have read what was never written; from then on each time.
    pub fn room(&mut self) -> Result<usize, RingError> {
        // Acquire: the reader has copied bytes out before it gave their room back, and we write over them after this.
        let cons = self.page.word(self.layout.cons).load(Acquire);
        let used = bounded(self.prod.wrapping_sub(cons), self.layout, &mut self.broken)?;
        Ok((self.layout.size - used) as usize)
    }

    /// Writes as many of the bytes as there is room for, and returns how many. If any, the other end is to be notified.
    ///
    /// # Errors
    /// As [`room`](Self::room); nothing was written then.
    pub fn write(&mut self, bytes: &[u8]) -> Result<usize, RingError> {
        let count = self.room()?.min(bytes.len());
        let bytes = bytes.split_at(count).0;
        let start = self.layout.place(self.prod);
        let (first, second) = bytes.split_at(count.min(self.layout.size as usize - start));
        self.page.write(self.layout.bytes + start, first);
        self.page.write(self.layout.bytes, second);
        self.prod = self.prod.wrapping_add(count as u32);
        // Release: the reader that sees the index sees the bytes.
        self.page.word(self.layout.prod).store(self.prod, Release);
        Ok(count)
    }
}

/// The reading end of a ring.
#[derive(Debug)]
pub struct Consumer<'a> {
    page: Shared<'a>,
    layout: Layout,
    cons: u32,
    broken: Option<RingError>,
}

impl<'a> Consumer<'a> {
    fn new(page: Shared<'a>, layout: Layout) -> Self {
        // As for the producer.
        let cons = page.word(layout.cons).load(Relaxed);
        Self { page, layout, cons, broken: None }
    }

    /// Returns how many bytes can be read now.
    ///
    /// # Errors
    /// [`RingError`] if the writer claims to have written more than the ring holds; from then on each time.
    pub fn available(&mut self) -> Result<usize, RingError> {
        // Acquire: the bytes that the index stands for are read after this.
        let prod = self.page.word(self.layout.prod).load(Acquire);
        Ok(bounded(prod.wrapping_sub(self.cons), self.layout, &mut self.broken)? as usize)
    }

    /// Passes over all that there is to read.
    ///
    /// # Errors
    /// As [`available`](Self::available).
    pub fn skip(&mut self) -> Result<(), RingError> {
        self.cons = self.cons.wrapping_add(self.available()? as u32);
        // Relaxed: nothing was read.
        self.page.word(self.layout.cons).store(self.cons, Relaxed);
        Ok(())
    }

    /// Reads as many bytes as there are and `to` takes, and returns how many. If any, the other end is to be notified.
    ///
    /// # Errors
    /// As [`available`](Self::available); nothing was read then.
    pub fn read(&mut self, to: &mut [u8]) -> Result<usize, RingError> {
        let count = self.available()?.min(to.len());
        let to = to.split_at_mut(count).0;
        let start = self.layout.place(self.cons);
        let (first, second) = to.split_at_mut(count.min(self.layout.size as usize - start));
        self.page.read(self.layout.bytes + start, first);
        self.page.read(self.layout.bytes, second);
        self.cons = self.cons.wrapping_add(count as u32);
        // Release: our reads are over before the writer may write there again.
        self.page.word(self.layout.cons).store(self.cons, Release);
        Ok(count)
    }
}

impl Layout {
    fn place(self, index: u32) -> usize {
        (index & (self.size - 1)) as usize
    }
}

/// Checks what the two indices claim to be in the ring. What was once wrong stays wrong.
fn bounded(claimed: u32, layout: Layout, broken: &mut Option<RingError>) -> Result<u32, RingError> {
    if let Some(error) = *broken {
        return Err(error);
    }
    if claimed > layout.size {
        let error = RingError::PeerOverflow { claimed, size: layout.size };
        *broken = Some(error);
        return Err(error);
    }
    Ok(claimed)
}

#[cfg(all(test, not(loom)))]
mod tests {
    extern crate std;

    use core::ptr::NonNull;
    use std::vec::Vec;

    use super::*;

    fn view(page: &mut [u64; 512]) -> Shared<'_> {
        // SAFETY: borrowed for as long as the views live, and nobody has it but them.
        unsafe { Shared::new(NonNull::from(page).cast(), 4096) }
    }

    fn start_at(page: Shared<'_>, index: u32) {
        for layout in [REQUESTS, RESPONSES] {
            page.word(layout.cons).store(index, Relaxed);
            page.word(layout.prod).store(index, Relaxed);
        }
    }

    #[test]
    fn what_goes_in_comes_out_across_every_wrap() {
        for start in [0, 1023, 1024, u32::MAX - 700] {
            let mut memory = [0; 512];
            let page = view(&mut memory);
            start_at(page, start);
            let (mut front, mut back) = (ByteRings::xenstore_front(page), ByteRings::xenstore_back(page));
            let sent: Vec<u8> = (0..5000u32).map(|n| (n % 251) as u8).collect();
            let (mut written, mut got) = (0, Vec::new());
            let mut buffer = [0; 700];
            while got.len() < sent.len() {
                written += front.tx.write(&sent[written..(written + 333).min(sent.len())]).unwrap();
                let count = back.rx.read(&mut buffer).unwrap();
                got.extend_from_slice(&buffer[..count]);
            }
            assert_eq!(got, sent);
            assert_eq!(page.word(REQUESTS.prod).load(Relaxed), start.wrapping_add(5000));
            assert_eq!(page.word(REQUESTS.cons).load(Relaxed), start.wrapping_add(5000));
        }
    }

    #[test]
    fn full_ring_is_legal_and_takes_no_more() {
        let mut memory = [0; 512];
        let page = view(&mut memory);
        let (mut front, mut back) = (ByteRings::console_front(page), ByteRings::console_back(page));
        assert_eq!(front.tx.write(&[7; 3000]), Ok(2048));
        assert_eq!(front.tx.write(&[7; 1]), Ok(0));
        assert_eq!(back.rx.available(), Ok(2048));
        assert_eq!(back.tx.write(&[8; 3000]), Ok(1024));
        assert_eq!(front.rx.available(), Ok(1024));
        assert_eq!(back.rx.read(&mut [0; 48]), Ok(48));
        assert_eq!(front.tx.room(), Ok(48));
    }

    #[test]
    fn ring_rejects_an_index_that_claims_more_than_it_holds_once_and_for_all() {
        for start in [0u32, 500, u32::MAX - 3] {
            for claim in [1025, 2048, 1 << 31, u32::MAX - 1, u32::MAX] {
                let mut memory = [0; 512];
                let page = view(&mut memory);
                start_at(page, start);
                let (mut front, mut back) = (ByteRings::xenstore_front(page), ByteRings::xenstore_back(page));
                let error = RingError::PeerOverflow { claimed: claim, size: 1024 };

                page.word(REQUESTS.prod).store(start.wrapping_add(claim), Relaxed);
                assert_eq!(back.rx.read(&mut [0; 16]), Err(error));
                page.word(REQUESTS.prod).store(start, Relaxed);
                assert_eq!(back.rx.available(), Err(error));

                page.word(REQUESTS.cons).store(start.wrapping_sub(claim), Relaxed);
                assert_eq!(front.tx.write(&[1]), Err(error));
                page.word(REQUESTS.cons).store(start, Relaxed);
                assert_eq!(front.tx.room(), Err(error));
            }
        }
    }

    #[test]
    fn own_index_is_never_read_back() {
        let mut memory = [0; 512];
        let page = view(&mut memory);
        let (mut front, mut back) = (ByteRings::xenstore_front(page), ByteRings::xenstore_back(page));
        front.tx.write(b"abcd").unwrap();
        back.rx.read(&mut [0; 2]).unwrap();
        page.word(REQUESTS.prod).store(999, Relaxed);
        assert_eq!(front.tx.room(), Ok(1022));
        page.word(REQUESTS.prod).store(4, Relaxed);
        page.word(REQUESTS.cons).store(77, Relaxed);
        assert_eq!(back.rx.available(), Ok(2));
    }
}
