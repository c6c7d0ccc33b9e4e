//! Byte rings together with the memory that they stand in.

use hypercall::mem::Shared;

use super::bytes::ByteRings;
use super::{Backing, RingError};

/// One end of the two byte rings of a page, and the page.
#[derive(Debug)]
pub struct OwnedByteRings<B: Backing> {
    /// Never handed out, as its lifetime is really that of `backing`.
    rings: ByteRings<'static>,
    backing: B,
}

// SAFETY: the view is copied and stays what it is.
unsafe impl Backing for Shared<'static> {
    fn view(&self) -> Shared<'_> {
        *self
    }
}

impl<B: Backing> OwnedByteRings<B> {
    /// Takes the guest's end of a console page. It goes on where the last user of this end stopped.
    ///
    /// # Panics
    /// As [`ByteRings::console_front`].
    pub fn console_front(backing: B) -> Self {
        Self { rings: ByteRings::console_front(detached(&backing)), backing }
    }

    /// Takes the other end of a console page. It goes on where the last user of this end stopped.
    ///
    /// # Panics
    /// As [`ByteRings::console_front`].
    pub fn console_back(backing: B) -> Self {
        Self { rings: ByteRings::console_back(detached(&backing)), backing }
    }

    /// Takes the guest's end of the same console page anew: it goes on where somebody else stopped who has used this end meanwhile. A ring
    /// that was found corrupt gets another chance.
    ///
    /// # Panics
    /// Never: the page was large enough before.
    pub fn resync(&mut self) {
        self.rings = ByteRings::console_front(detached(&self.backing));
    }

    /// Returns the page.
    pub const fn backing(&self) -> &B {
        &self.backing
    }

    /// Returns how many bytes may be written now; see [`Producer::room`](super::bytes::Producer::room).
    ///
    /// # Errors
    /// [`RingError`] if the other end lies.
    pub fn room(&mut self) -> Result<usize, RingError> {
        self.rings.tx.room()
    }

    /// Returns how many bytes can be read now; see [`Consumer::available`](super::bytes::Consumer::available).
    ///
    /// # Errors
    /// [`RingError`] if the other end lies.
    pub fn available(&mut self) -> Result<usize, RingError> {
        self.rings.rx.available()
    }

    /// Writes what there is room for; see [`Producer::write`](super::bytes::Producer::write).
    ///
    /// # Errors
    /// [`RingError`] if the other end lies.
    pub fn write(&mut self, bytes: &[u8]) -> Result<usize, RingError> {
        self.rings.tx.write(bytes)
    }

    /// Reads what there is; see [`Consumer::read`](super::bytes::Consumer::read).
    ///
    /// # Errors
    /// [`RingError`] if the other end lies.
    pub fn read(&mut self, to: &mut [u8]) -> Result<usize, RingError> {
        self.rings.rx.read(to)
    }
}

/// Returns the view of a page without its lifetime.
fn detached<B: Backing>(backing: &B) -> Shared<'static> {
    let view = backing.view();
    assert!(view.is_writable(), "byte rings in a read-only page");
    // SAFETY: `Backing` promises the same bytes until it is dropped. The rings are dropped with it and never handed out.
    unsafe { Shared::new(view.as_ptr(), view.len()) }
}
