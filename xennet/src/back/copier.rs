//! Copies of many packets, in as few hypercalls as possible.

use hypercall::Platform;
use hypercall::grant::{CopyBatch, CopyError, Foreign, Local};

/// Packets whose copies may go together.
pub(super) const PACKETS: usize = 32;

/// Which packets could not be copied.
pub(super) type Failed = [bool; PACKETS];

/// Collects the copies of up to [`PACKETS`] packets, and does them whenever a hypercall is full.
pub(super) struct Copier<'a, P: Platform> {
    platform: &'a P,
    batch: CopyBatch<'a>,
    /// The packet of each copy in the batch.
    of: [u8; CopyBatch::<'static>::MAX],
    failed: Failed,
}

impl<'a, P: Platform> Copier<'a, P> {
    pub(super) fn new(platform: &'a P) -> Self {
        let of = [0; CopyBatch::<'static>::MAX];
        Self { platform, batch: CopyBatch::new(), of, failed: [false; PACKETS] }
    }

    /// Copies `len` bytes from the other end for a packet.
    pub(super) fn fetch(&mut self, packet: usize, from: Foreign, to: Local<'a>, len: u16) {
        self.room();
        let added = self.batch.from_peer(from, to, len);
        self.note(packet, added);
    }

    /// Copies `len` bytes of a packet to the other end.
    pub(super) fn put(&mut self, packet: usize, from: Local<'a>, to: Foreign, len: u16) {
        self.room();
        let added = self.batch.to_peer(from, to, len);
        self.note(packet, added);
    }

    /// Says that a packet can't be copied.
    pub(super) fn fail(&mut self, packet: usize) {
        self.failed[packet] = true;
    }

    /// Does what is left, and tells which packets could not be copied whole.
    pub(super) fn finish(mut self) -> Failed {
        self.run();
        self.failed
    }

    fn room(&mut self) {
        if self.batch.is_full() {
            self.run();
        }
    }

    fn note(&mut self, packet: usize, added: Result<usize, CopyError>) {
        match added {
            Ok(index) => self.of[index] = packet as u8,
            Err(_) => self.fail(packet),
        }
    }

    fn run(&mut self) {
        let Self { platform, batch, of, failed } = self;
        // What exactly is wrong with its grant is the other end's affair; it learns that the packet failed.
        batch.run(*platform, |index, _| failed[usize::from(of[index])] = true);
    }
}
