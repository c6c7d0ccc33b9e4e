//! An open file or block device: what it is, and one piece of work on it.

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use rustix::fs::{AtFlags, FallocateFlags, OFlags, StatxFlags};
use rustix::io::{Errno, retry_on_intr};
use xbd::SECTOR;
use xbd::back::{StoreFault, Work};
use xbd::features::Discard;
use xenbus::Rate;

use super::block;
use super::error::{OpenError, Refusal, Trouble};
use super::transfer::{Alignment, Bounce, Way, transfer, transfer_directly};
use super::{Log, Options};

/// An open file or block device.
pub(crate) struct Image {
    file: File,
    path: PathBuf,
    block_device: bool,
    pub(crate) read_only: bool,
    pub(crate) sector_size: u32,
    pub(crate) physical_sector_size: u32,
    direct: Option<Alignment>,
    discard: Option<Discard>,
    /// It turned out that it can't.
    no_discard: AtomicBool,
    /// A flush has failed. Held while one is under way.
    lost: Mutex<bool>,
    log: Log,
    told: Mutex<Told>,
    opened: Instant,
}

#[derive(Default)]
struct Told {
    rate: Rate,
    /// Lines that were held back since the last.
    held_back: u64,
}

impl Image {
    pub(crate) fn open(path: &Path, options: &Options) -> Result<Self, OpenError> {
        let open = || {
            let mut how = OpenOptions::new();
            how.read(true).write(!options.read_only);
            if !options.read_only && fs::metadata(path)?.file_type().is_block_device() {
                // Not one that is mounted, or served already.
                how.custom_flags(libc::O_EXCL);
            }
            how.open(path)
        };
        let wanted = if options.read_only { "open it" } else { "open it for writing" };
        let file =
            open().map_err(|error| OpenError { path: path.to_owned(), why: Refusal::System { wanted, error } })?;
        Self::new(file, path, options)
    }

    pub(crate) fn new(file: File, path: &Path, options: &Options) -> Result<Self, OpenError> {
        Self::look(file, path, options).map_err(|why| OpenError { path: path.to_owned(), why })
    }

    fn look(file: File, path: &Path, options: &Options) -> Result<Self, Refusal> {
        let about = file.metadata().map_err(system("look at it"))?;
        let block_device = about.file_type().is_block_device();
        if !block_device && !about.is_file() {
            return Err(Refusal::NoDisk);
        }
        if let Some(wanted) = options.sector_size
            && !(wanted.is_power_of_two() && (512..=4096).contains(&wanted))
        {
            return Err(Refusal::BadSectorSize(wanted));
        }
        let flags = rustix::fs::fcntl_getfl(&file).map_err(system("look at it"))?;
        if !options.read_only && flags & OFlags::ACCMODE == OFlags::RDONLY {
            return Err(Refusal::ReadOnly);
        }
        let own = if block_device { block::sector_size(&file).map_err(system("ask its sector size"))? } else { 512 };
        let direct = if options.direct { Some(go_direct(&file, flags, block_device.then_some(own))?) } else { None };
        let least = direct.map_or(own, |alignment| own.max(alignment.place as u32));
        let sector_size = options.sector_size.unwrap_or(least);
        if sector_size < least {
            return Err(Refusal::SmallSectors { sector_size, least });
        }
        let bytes = len(&file, block_device).map_err(system("ask its length"))?;
        if bytes == 0 {
            return Err(Refusal::Empty);
        }
        if !bytes.is_multiple_of(u64::from(sector_size)) {
            return Err(Refusal::PartialSector { bytes, sector_size });
        }
        let physical = if block_device {
            block::physical_sector_size(&file).map_err(system("ask its sector size"))?
        } else {
            u32::try_from(about.blksize()).unwrap_or(4096).clamp(512, 4096)
        };
        let discard = match block_device {
            _ if options.read_only => None,
            true => block::discard(&file, about.rdev(), sector_size),
            false => Some(Discard {
                // What is less than a block of the file system is zeroed, but frees nothing.
                granularity: u32::try_from(about.blksize())
                    .ok()
                    .filter(|bytes| *bytes > 0 && bytes.is_multiple_of(sector_size))
                    .unwrap_or(sector_size),
                alignment: 0,
                secure: false,
            }),
        };
        Ok(Self {
            file,
            path: path.to_owned(),
            block_device,
            read_only: options.read_only,
            sector_size,
            physical_sector_size: if physical.is_power_of_two() { physical.max(sector_size) } else { sector_size },
            direct,
            discard,
            no_discard: AtomicBool::new(false),
            lost: Mutex::new(false),
            log: options.log.clone(),
            told: Mutex::default(),
            opened: Instant::now(),
        })
    }

    pub(crate) fn bounce(&self) -> Bounce {
        Bounce::new(self.direct.is_some())
    }

    pub(crate) fn discard(&self) -> Option<Discard> {
        self.discard.filter(|_| !self.no_discard.load(Relaxed))
    }

    /// Returns how many whole sectors it has now, in sectors of 512 bytes.
    pub(crate) fn sectors(&self) -> u64 {
        match len(&self.file, self.block_device) {
            Ok(bytes) => bytes / u64::from(self.sector_size) * (u64::from(self.sector_size) / SECTOR as u64),
            Err(errno) => {
                self.tell(format_args!("its length: {}", std::io::Error::from(errno)));
                0
            }
        }
    }

    /// Does it, and tells the log if it fails.
    pub(crate) fn run(&self, work: Work<'_>, bounce: &mut Bounce) -> Result<(), StoreFault> {
        let trouble = match self.try_run(work, bounce) {
            Ok(()) => return Ok(()),
            Err(trouble) => trouble,
        };
        match work {
            Work::Read { sector, .. } => self.tell(format_args!("read at sector {sector}: {trouble}")),
            Work::Write { sector, .. } => self.tell(format_args!("write at sector {sector}: {trouble}")),
            Work::Flush => self.tell(format_args!("flush: {trouble}")),
            Work::Discard { sector, sectors, secure } => {
                let kind = if secure { "secure discard" } else { "discard" };
                self.tell(format_args!("{kind} of {sectors} at sector {sector}: {trouble}"));
            }
        }
        Err(match trouble {
            Trouble::NotSupported => StoreFault::NotSupported,
            _ => StoreFault::Failed,
        })
    }

    fn try_run(&self, work: Work<'_>, bounce: &mut Bounce) -> Result<(), Trouble> {
        let (way, sector, parts) = match work {
            Work::Read { sector, parts } => (Way::In, sector, parts),
            Work::Write { sector, parts } => (Way::Out, sector, parts),
            Work::Flush => return self.flush(),
            Work::Discard { sector, sectors, secure } => return self.forget(sector, sectors, secure),
        };
        let at = sector.checked_mul(SECTOR as u64).ok_or(Trouble::Shorter)?;
        if way == Way::Out {
            self.check_end(at, parts.len() as u64)?;
        }
        match self.direct {
            None => transfer(&self.file, way, at, parts),
            Some(alignment) => transfer_directly(&self.file, way, at, parts, alignment, bounce),
        }
    }

    /// A file that has been cut would grow again if it were written there; what it had lost would read as zeroes.
    fn check_end(&self, at: u64, bytes: u64) -> Result<(), Trouble> {
        let end = at.checked_add(bytes).ok_or(Trouble::Shorter)?;
        if self.block_device || end <= len(&self.file, false)? { Ok(()) } else { Err(Trouble::Shorter) }
    }

    /// One at a time: the system tells of a write that it could not do to one flush only, and no other may say meanwhile that all
    /// is well.
    fn flush(&self) -> Result<(), Trouble> {
        let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        if *lost {
            return Err(Trouble::Lost);
        }
        let done = retry_on_intr(|| rustix::fs::fdatasync(&self.file));
        *lost = done.is_err();
        Ok(done?)
    }

    fn forget(&self, sector: u64, sectors: u64, secure: bool) -> Result<(), Trouble> {
        match self.discard() {
            Some(discard) if discard.secure || !secure => {}
            _ => return Err(Trouble::NotSupported),
        }
        let bytes = |sectors: u64| sectors.checked_mul(SECTOR as u64).ok_or(Trouble::Shorter);
        let (at, len) = (bytes(sector)?, bytes(sectors)?);
        self.check_end(at, len)?;
        let done = if self.block_device {
            block::forget(&self.file, at, len, secure)
        } else {
            let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            retry_on_intr(|| rustix::fs::fallocate(&self.file, how, at, len))
        };
        match done {
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
                self.no_discard.store(true, Relaxed);
                Err(Trouble::NotSupported)
            }
            done => Ok(done?),
        }
    }

    /// Says something to the log, but not too often.
    fn tell(&self, what: std::fmt::Arguments<'_>) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if !told.rate.allows(self.opened.elapsed().as_nanos() as u64) {
            told.held_back += 1;
            return;
        }
        let held_back = std::mem::take(&mut told.held_back);
        drop(told);
        let path = self.path.display();
        match held_back {
            0 => (self.log)(format_args!("disk {path}: {what}")),
            _ => (self.log)(format_args!("disk {path}: {what} (and {held_back} more that were not told)")),
        }
    }
}

fn system<E: Into<std::io::Error>>(wanted: &'static str) -> impl FnOnce(E) -> Refusal {
    move |error| Refusal::System { wanted, error: error.into() }
}

fn len(file: &File, block_device: bool) -> Result<u64, Errno> {
    if block_device { block::len(file) } else { Ok(rustix::fs::fstat(file)?.st_size as u64) }
}

/// Turns the page cache off. Returns what has to be aligned from now on, and how.
fn go_direct(file: &File, flags: OFlags, device_sector: Option<u32>) -> Result<Alignment, Refusal> {
    match rustix::fs::fcntl_setfl(file, flags | OFlags::DIRECT) {
        Err(Errno::INVAL) => return Err(Refusal::NoDirect),
        done => done.map_err(system("turn its cache off"))?,
    }
    // Linux before 6.1 doesn't say, nor do some file systems.
    let guess = device_sector.unwrap_or(4096) as usize;
    let mut alignment = Alignment { memory: guess, place: guess };
    let asked = StatxFlags::DIOALIGN;
    if let Ok(about) = rustix::fs::statx(file.as_fd(), "", AtFlags::EMPTY_PATH, asked)
        && about.stx_mask & asked.bits() != 0
    {
        alignment = Alignment { memory: about.stx_dio_mem_align as usize, place: about.stx_dio_offset_align as usize };
    }
    // Zeroes are a file that can't, although its flag can be set.
    let possible = (1..=Bounce::PAGE).contains(&alignment.memory) && (1..=4096).contains(&alignment.place);
    if !possible || !alignment.place.is_power_of_two() {
        return Err(Refusal::NoDirect);
    }
    Ok(alignment)
}
