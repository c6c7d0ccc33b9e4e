//! Image files and block devices as disks.

mod block;
mod crew;
mod error;
mod image;
mod transfer;

use std::fmt;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

use xbd::back::{Started, Store, StoreFault, Token, Work};
use xbd::features::Discard;

pub use crew::Workers;
pub use error::{OpenError, Refusal};

use crew::Desk;
use image::Image;
use transfer::Bounce;

/// Where a disk tells what goes wrong: a line each, at most ten a second.
pub type Log = Arc<dyn Fn(fmt::Arguments<'_>) + Send + Sync>;

/// How a file or device is served.
#[derive(Clone)]
pub struct Options {
    /// It is only read. What is opened for that can be served to many.
    pub read_only: bool,
    /// It is read and written past the page cache of the host.
    pub direct: bool,
    /// The sector size, a power of two from 512 to 4096; else the smallest that there can be.
    pub sector_size: Option<u32>,
    /// Where to tell what goes wrong; the standard error output, if nothing else is said.
    pub log: Log,
}

impl Default for Options {
    fn default() -> Self {
        Self { read_only: false, direct: false, sector_size: None, log: Arc::new(|line| eprintln!("{line}")) }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { read_only, direct, sector_size, log: _ } = self;
        write!(f, "Options({read_only}, {direct}, {sector_size:?})")
    }
}

/// A handle of an image file or a block device.
///
/// All work is done at once, unless there are [workers](Self::with_workers). A handle that is dropped waits for what it has started.
///
/// | | image file | block device |
/// |---|---|---|
/// | size | that of the file, in whole sectors | BLKGETSIZE64 |
/// | smallest sector | 512 bytes, or what direct access takes | the device's, or what direct access takes |
/// | flush | fdatasync | the same |
/// | discard | punches a hole; in blocks of the file system | BLKDISCARD; in units of the device's queue |
/// | secure discard | none | BLKSECDISCARD, where the device has it |
///
/// Secure discard of a file is not offered. A file system, and the flash below it, may keep what was written before, wherever the zeroes
/// go that are written over it; so nothing that can be done to a file keeps that promise.
///
/// Once a flush has failed, each one after it fails, too. What Linux could not write it forgets: the next `fdatasync` would say that all is
/// well. The way out is to open the disk anew, and to find out what it has.
///
/// The size is asked each time. An image that grew is longer at the next [`Back::resized`](xbd::back::Back::resized); one that was cut
/// fails what lies beyond its end, and is not made longer by a write.
pub struct FileStore {
    image: Arc<Image>,
    desk: Option<Desk>,
    bounce: Bounce,
}

impl FileStore {
    /// Opens a file or block device. A device that is to be written is opened for us alone, so one that is mounted is refused.
    ///
    /// # Errors
    /// [`OpenError`] if it can't be served like that.
    pub fn open(path: impl AsRef<Path>, options: &Options) -> Result<Self, OpenError> {
        Ok(Self::of(Image::open(path.as_ref(), options)?))
    }

    /// Takes a file or device that is open already. `name` stands in messages. Direct access is turned on for all who share the open file.
    ///
    /// # Errors
    /// [`OpenError`] if it can't be served like that.
    pub fn new(file: File, name: impl AsRef<Path>, options: &Options) -> Result<Self, OpenError> {
        Ok(Self::of(Image::new(file, name.as_ref(), options)?))
    }

    fn of(image: Image) -> Self {
        Self { bounce: image.bounce(), image: Arc::new(image), desk: None }
    }

    /// Lets threads do the work, for this handle and those made from it. It ends in any order then.
    ///
    /// # Errors
    /// If no thread can be started.
    ///
    /// # Safety
    /// For each [`start`](Store::start) of each handle: the memory of the parts stays mapped, and is accessed only atomically, until
    /// [`completed`](Store::completed) names the token, or the handle is dropped. That is what a [`Back`](xbd::back::Back) does; it has to be
    /// said here, because `start` is no unsafe function.
    pub unsafe fn with_workers(mut self, workers: &Workers) -> io::Result<Self> {
        self.desk = Some(Desk::open(&self.image, workers)?);
        Ok(self)
    }
}

impl fmt::Debug for FileStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FileStore({} sectors)", self.image.sectors())
    }
}

impl Store for FileStore {
    fn handle(&self) -> Self {
        let desk = self.desk.as_ref().map(Desk::another);
        Self { bounce: self.image.bounce(), image: self.image.clone(), desk }
    }

    fn sectors(&self) -> u64 {
        self.image.sectors()
    }

    fn sector_size(&self) -> u32 {
        self.image.sector_size
    }

    fn physical_sector_size(&self) -> u32 {
        self.image.physical_sector_size
    }

    fn read_only(&self) -> bool {
        self.image.read_only
    }

    fn discard(&self) -> Option<Discard> {
        self.image.discard()
    }

    fn start(&mut self, token: Token, work: Work<'_>) -> Started {
        match &mut self.desk {
            None => Started::Done(self.image.run(work, &mut self.bounce)),
            Some(desk) => {
                // SAFETY: who let us have workers has vouched for it.
                unsafe { desk.start(token, work, &self.image, &mut self.bounce) };
                Started::Pending
            }
        }
    }

    fn completed(&mut self) -> Option<(Token, Result<(), StoreFault>)> {
        let finished = self.desk.as_mut()?.next()?;
        Some((finished.token, finished.result))
    }
}
