//! Why an image or a device can't be served, and what goes wrong while it is.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// A file or device that can't be served.
#[derive(Debug)]
pub struct OpenError {
    /// Which one.
    pub path: PathBuf,
    /// Why.
    pub why: Refusal,
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "disk {}: {}", self.path.display(), self.why)
    }
}

impl std::error::Error for OpenError {}

/// Why a file or device can't be served.
#[derive(Debug)]
pub enum Refusal {
    /// The system says no.
    System {
        /// To what.
        wanted: &'static str,
        /// With which error.
        error: io::Error,
    },
    /// It is a directory, a pipe or the like.
    NoDisk,
    /// It has no bytes at all.
    Empty,
    /// It ends within a sector.
    PartialSector {
        /// Its length.
        bytes: u64,
        /// That of a sector.
        sector_size: u32,
    },
    /// It is no power of two from 512 to 4096.
    BadSectorSize(u32),
    /// What it is on can't be read or written in units as small as that.
    SmallSectors {
        /// The sector size that was asked for.
        sector_size: u32,
        /// The smallest that will do.
        least: u32,
    },
    /// It was opened for reading only, and shall be written.
    ReadOnly,
    /// It can't be read and written past the page cache.
    NoDirect,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::System { wanted, error } => write!(f, "can't {wanted}: {error}"),
            Self::NoDisk => f.write_str("is neither a file nor a block device"),
            Self::Empty => f.write_str("is empty"),
            Self::PartialSector { bytes, sector_size } => {
                write!(f, "has {bytes} bytes, which is no whole number of {sector_size}-byte sectors")
            }
            Self::BadSectorSize(bytes) => write!(f, "can't have sectors of {bytes} bytes"),
            Self::SmallSectors { sector_size, least } => {
                write!(f, "can't have sectors of {sector_size} bytes, only of {least} or more")
            }
            Self::ReadOnly => f.write_str("was opened for reading only"),
            Self::NoDirect => f.write_str("can't be accessed directly, past the page cache"),
        }
    }
}

/// What went wrong with some work.
#[derive(Debug)]
pub(crate) enum Trouble {
    System(io::Error),
    /// It isn't as long any more as it was.
    Shorter,
    /// What is to be read into can't be written.
    Unwritable,
    /// It can't do this at all.
    NotSupported,
    /// A flush has failed, and what it was to make durable may be gone.
    Lost,
}

impl From<rustix::io::Errno> for Trouble {
    fn from(errno: rustix::io::Errno) -> Self {
        Self::System(errno.into())
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::System(error) => error.fmt(f),
            Self::Shorter => f.write_str("it has become shorter"),
            Self::Unwritable => f.write_str("the memory to read into can't be written"),
            Self::NotSupported => f.write_str("it can't do this"),
            Self::Lost => f.write_str("an earlier flush has failed, and what it was for may be lost"),
        }
    }
}
