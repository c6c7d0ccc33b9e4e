//! A disk in memory, which every bed can serve.

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use spin::Mutex;
use xbd::SECTOR;
use xbd::back::{Parts, Started, Store, StoreFault, Token, Work};
use xbd::features::Discard;

/// What [`Memory`] is besides its contents.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Smallest unit of I/O in bytes.
    pub sector_size: u32,
    /// Best unit of I/O in bytes.
    pub physical_sector_size: u32,
    /// It can't be written.
    pub read_only: bool,
    /// How it forgets.
    pub discard: Option<Discard>,
}

impl Default for Shape {
    fn default() -> Self {
        let discard = Some(Discard { granularity: 512, alignment: 0, secure: true });
        Self { sector_size: 512, physical_sector_size: 512, read_only: false, discard }
    }
}

/// A handle of a disk in memory. It finishes some work at once and some later, by turns, and the later in reverse order.
pub struct Memory {
    disk: Arc<Disk>,
    started: u64,
    later: VecDeque<Token>,
}

struct Disk {
    shape: Shape,
    bytes: Mutex<Vec<u8>>,
    flushes: AtomicU64,
    discarded: AtomicU64,
}

impl Memory {
    /// Makes a disk with these contents, a whole number of sectors.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self::with_shape(bytes, Shape::default())
    }

    /// Makes a disk of that shape with these contents, a whole number of sectors.
    pub fn with_shape(bytes: Vec<u8>, shape: Shape) -> Self {
        let (flushes, discarded) = (AtomicU64::new(0), AtomicU64::new(0));
        Self::of(Arc::new(Disk { shape, bytes: Mutex::new(bytes), flushes, discarded }))
    }

    fn of(disk: Arc<Disk>) -> Self {
        // Room for the largest ring's worth, so that the data path allocates nothing.
        Self { disk, started: 0, later: VecDeque::with_capacity(512) }
    }

    /// Lets `look` see the contents.
    pub fn look<T>(&self, look: impl FnOnce(&[u8]) -> T) -> T {
        look(&self.disk.bytes.lock())
    }

    /// Returns a copy of the contents.
    pub fn bytes(&self) -> Vec<u8> {
        self.look(<[u8]>::to_vec)
    }

    /// Makes the disk longer or shorter; what is new is zero. To be told by [`Back::resized`](xbd::back::Back::resized).
    pub fn resize(&self, sectors: u64) {
        self.disk.bytes.lock().resize(sectors as usize * SECTOR, 0);
    }

    /// Makes the disk longer by these bytes, a whole number of sectors.
    pub fn extend(&self, bytes: &[u8]) {
        self.disk.bytes.lock().extend(bytes);
    }

    /// Returns how many flushes were asked for.
    pub fn flushes(&self) -> u64 {
        self.disk.flushes.load(Relaxed)
    }

    /// Returns how many sectors of 512 bytes were discarded.
    pub fn discarded(&self) -> u64 {
        self.disk.discarded.load(Relaxed)
    }

    fn transfer(&self, sector: u64, len: usize, each: impl FnOnce(&mut [u8])) -> Result<(), StoreFault> {
        let mut bytes = self.disk.bytes.lock();
        let at = sector as usize * SECTOR;
        // It may have become shorter since the request was checked.
        each(bytes.get_mut(at..at + len).ok_or(StoreFault::Failed)?);
        Ok(())
    }
}

impl Store for Memory {
    fn handle(&self) -> Self {
        Self::of(Arc::clone(&self.disk))
    }

    fn sectors(&self) -> u64 {
        self.look(|bytes| (bytes.len() / SECTOR) as u64)
    }

    fn sector_size(&self) -> u32 {
        self.disk.shape.sector_size
    }

    fn physical_sector_size(&self) -> u32 {
        self.disk.shape.physical_sector_size
    }

    fn read_only(&self) -> bool {
        self.disk.shape.read_only
    }

    fn discard(&self) -> Option<Discard> {
        self.disk.shape.discard
    }

    fn start(&mut self, token: Token, work: Work<'_>) -> Started {
        let done = match work {
            Work::Read { sector, parts } => self.transfer(sector, parts.len(), |bytes| read(bytes, parts)),
            Work::Write { sector, parts } => self.transfer(sector, parts.len(), |bytes| write(bytes, parts)),
            Work::Flush => {
                self.disk.flushes.fetch_add(1, Relaxed);
                Ok(())
            }
            Work::Discard { sector, sectors, .. } => {
                self.disk.discarded.fetch_add(sectors, Relaxed);
                self.transfer(sector, sectors as usize * SECTOR, |bytes| bytes.fill(0))
            }
        };
        self.started += 1;
        if done.is_err() || self.started.is_multiple_of(3) {
            return Started::Done(done);
        }
        self.later.push_front(token);
        Started::Pending
    }

    fn completed(&mut self) -> Option<(Token, Result<(), StoreFault>)> {
        self.later.pop_front().map(|token| (token, Ok(())))
    }
}

fn read(mut bytes: &[u8], parts: Parts<'_>) {
    for part in parts.iter() {
        let (now, rest) = bytes.split_at(part.len());
        part.write(0, now);
        bytes = rest;
    }
}

fn write(mut bytes: &mut [u8], parts: Parts<'_>) {
    for part in parts.iter() {
        let (now, rest) = bytes.split_at_mut(part.len());
        part.read(0, now);
        bytes = rest;
    }
}
