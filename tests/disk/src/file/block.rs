//! What Linux tells of block devices, and how it makes them forget.

use std::fs::{self, File};
use std::path::PathBuf;

use rustix::fs::{ioctl_blkpbszget, ioctl_blksszget, major, minor};
use rustix::io::{Errno, retry_on_intr};
use rustix::ioctl::{Getter, Setter, ioctl, opcode};
use xbd::features::Discard;

/// linux/fs.h, BLKGETSIZE64: the length in bytes.
const BLKGETSIZE64: rustix::ioctl::Opcode = opcode::read::<usize>(0x12, 114);
/// linux/fs.h, BLKDISCARD: first byte, bytes.
const BLKDISCARD: rustix::ioctl::Opcode = opcode::none(0x12, 119);
/// linux/fs.h, BLKSECDISCARD: the same.
const BLKSECDISCARD: rustix::ioctl::Opcode = opcode::none(0x12, 125);

/// Returns the length in bytes.
pub(crate) fn len(file: &File) -> Result<u64, Errno> {
    // SAFETY: this code writes 64 bits, whatever its size field says.
    unsafe { ioctl(file, Getter::<BLKGETSIZE64, u64>::new()) }
}

/// Returns the smallest unit of I/O.
pub(crate) fn sector_size(file: &File) -> Result<u32, Errno> {
    ioctl_blksszget(file)
}

/// Returns the best unit of I/O.
pub(crate) fn physical_sector_size(file: &File) -> Result<u32, Errno> {
    ioctl_blkpbszget(file)
}

/// Makes it forget a range of bytes.
pub(crate) fn forget(file: &File, at: u64, len: u64, secure: bool) -> Result<(), Errno> {
    retry_on_intr(|| {
        if secure {
            // SAFETY: this code reads two numbers of 64 bits.
            unsafe { ioctl(file, Setter::<BLKSECDISCARD, [u64; 2]>::new([at, len])) }
        } else {
            // SAFETY: as above.
            unsafe { ioctl(file, Setter::<BLKDISCARD, [u64; 2]>::new([at, len])) }
        }
    })
}

/// Tells whether it can forget, and how. Nothing is forgotten: the range that is tried begins within a sector, which is refused by all
/// that could do it otherwise.
fn can_forget(file: &File, secure: bool) -> bool {
    !matches!(forget(file, 1, 1, secure), Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOTTY | Errno::NOSYS))
}

/// Returns how the device of that number forgets.
pub(crate) fn discard(file: &File, number: u64, sector_size: u32) -> Option<Discard> {
    if !can_forget(file, false) {
        return None;
    }
    let folder = PathBuf::from(format!("/sys/dev/block/{}:{}", major(number), minor(number)));
    let read = |path: &str| fs::read_to_string(folder.join(path)).ok()?.trim().parse::<u32>().ok();
    // A partition has the queue of its disk.
    let queue = |name| read(&format!("queue/{name}")).or_else(|| read(&format!("../queue/{name}")));
    let granularity = queue("discard_granularity")
        .filter(|bytes| *bytes > 0 && bytes.is_multiple_of(sector_size))
        .unwrap_or(sector_size);
    let alignment =
        read("discard_alignment").map(|bytes| bytes % granularity).filter(|bytes| bytes.is_multiple_of(sector_size));
    Some(Discard { granularity, alignment: alignment.unwrap_or(0), secure: can_forget(file, true) })
}
