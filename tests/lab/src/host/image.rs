//! Disk images as files: the store behind the demo's back end, and an image to show when none is given.

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use hypercall::mem::Shared;
use sha2::{Digest, Sha256};
use xbd::back::{Started, Store, StoreFault, Token, Work};
use xbd::{MAX_SEGMENTS, SECTOR};

/// A file that is served as a disk.
#[derive(Debug)]
pub(crate) struct FileStore {
    file: File,
    sectors: u64,
    read_only: bool,
}

impl FileStore {
    /// Opens an image: a file that is a whole number of sectors long.
    ///
    /// # Errors
    /// It can't be opened, is no plain file, is empty or ends within a sector.
    pub(crate) fn open(path: &Path, read_only: bool) -> Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(!read_only)
            .open(path)
            .with_context(|| format!("image {} can't be opened", path.display()))?;
        let about = file.metadata().with_context(|| format!("image {}", path.display()))?;
        ensure!(about.is_file(), "image {} is not a file", path.display());
        let len = about.len();
        ensure!(len > 0, "image {} is empty", path.display());
        ensure!(
            len.is_multiple_of(SECTOR as u64),
            "image {} has {len} bytes, which is no whole number of {SECTOR}-byte sectors",
            path.display()
        );
        Ok(Self { file, sectors: len / SECTOR as u64, read_only })
    }

    /// Moves all bytes of the parts by as few system calls as possible.
    fn transfer(&self, sector: u64, parts: &[Shared<'_>], call: Vectored) -> Result<(), StoreFault> {
        let mut vectors = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; MAX_SEGMENTS];
        for (vector, part) in vectors.iter_mut().zip(parts) {
            *vector = libc::iovec { iov_base: part.as_ptr().as_ptr().cast(), iov_len: part.len() };
        }
        let mut left = &mut vectors[..parts.len()];
        let mut at = (sector * SECTOR as u64) as libc::off_t;
        while !left.is_empty() {
            // SAFETY: the parts are mapped for the time of this call; that the other end may change them meanwhile is
            // the kernel's copying to bear, which makes no reference to them.
            let moved = unsafe { call(self.file.as_raw_fd(), left.as_ptr(), left.len() as libc::c_int, at) };
            let Ok(mut moved) = usize::try_from(moved) else {
                let error = std::io::Error::last_os_error();
                if error.kind() == std::io::ErrorKind::Interrupted {
                    continue;
                }
                eprintln!("xenlab: image, sector {sector}: {error}");
                return Err(StoreFault);
            };
            if moved == 0 {
                eprintln!("xenlab: image, sector {sector}: the file has become shorter");
                return Err(StoreFault);
            }
            at += moved as libc::off_t;
            while left.first().is_some_and(|vector| vector.iov_len <= moved) {
                moved -= left[0].iov_len;
                left = &mut left[1..];
            }
            if let Some(vector) = left.first_mut() {
                vector.iov_base = vector.iov_base.wrapping_byte_add(moved);
                vector.iov_len -= moved;
            }
        }
        Ok(())
    }
}

type Vectored = unsafe extern "C" fn(libc::c_int, *const libc::iovec, libc::c_int, libc::off_t) -> libc::ssize_t;

impl Store for FileStore {
    fn sectors(&self) -> u64 {
        self.sectors
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn start(&mut self, _: Token, work: Work<'_>) -> Started {
        Started::Done(match work {
            Work::Read { sector, parts } => self.transfer(sector, parts, libc::preadv),
            Work::Write { sector, parts } => self.transfer(sector, parts, libc::pwritev),
            Work::Flush => self.file.sync_data().map_err(|error| {
                eprintln!("xenlab: image, flush: {error}");
                StoreFault
            }),
        })
    }
}

/// Returns the SHA-256 of a file.
///
/// # Errors
/// It can't be read.
pub(crate) fn sha256(path: &Path) -> Result<[u8; 32]> {
    let mut file = File::open(path).with_context(|| format!("{} can't be opened", path.display()))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).with_context(|| format!("{} can't be read", path.display()))? {
            0 => return Ok(hash.finalize().into()),
            count => hash.update(&buffer[..count]),
        }
    }
}

/// Makes an image of `bytes` bytes: an ext4 file system with some files if `mke2fs` is there, else noise. Returns what it is.
///
/// # Errors
/// It can't be written, or `mke2fs` fails.
pub(crate) fn make(folder: &Path, image: &Path, bytes: u64) -> Result<&'static str> {
    let files = folder.join("files");
    fs::create_dir(&files)?;
    for number in 0..64u64 {
        fs::write(files.join(format!("noise-{number}")), suite::scenarios::noise(number, 1000 * number as usize))?;
    }
    File::create(image)?.set_len(bytes)?;
    let mut command = Command::new("mke2fs");
    command.args(["-q", "-F", "-t", "ext4", "-d"]).arg(&files).arg(image);
    match command.env("PATH", search_path()).stdin(Stdio::null()).status() {
        Ok(status) => {
            ensure!(status.success(), "mke2fs failed: {status}");
            Ok("ext4")
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            fs::write(image, suite::scenarios::noise(bytes, bytes as usize))?;
            Ok("noise, as mke2fs is not installed")
        }
        Err(error) => Err(error).context("mke2fs can't be started"),
    }
}

/// Lets `e2fsck` look at an image without changing it. `None` if it isn't installed.
///
/// # Errors
/// It finds a fault.
pub(crate) fn check_ext4(image: &Path) -> Result<Option<()>> {
    let mut command = Command::new("e2fsck");
    command.args(["-f", "-n"]).arg(image);
    match command.env("PATH", search_path()).stdin(Stdio::null()).output() {
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stdout);
            ensure!(output.status.success(), "e2fsck finds a fault in the copy:\n{said}");
            Ok(Some(()))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).context("e2fsck can't be started"),
    }
}

/// The file system tools live where only root's path leads.
fn search_path() -> String {
    format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(contents: &[u8]) -> String {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), contents).unwrap();
        format!("{:#}", FileStore::open(file.path(), true).unwrap_err())
    }

    #[test]
    fn an_image_must_be_a_whole_number_of_sectors() {
        assert!(refusal(&[]).ends_with("is empty"));
        assert!(refusal(&[0; 513]).ends_with("has 513 bytes, which is no whole number of 512-byte sectors"));
    }

    #[test]
    fn an_image_must_be_a_file_that_is_there() {
        let missing = format!("{:#}", FileStore::open(Path::new("/nowhere/x.img"), true).unwrap_err());
        assert!(missing.starts_with("image /nowhere/x.img can't be opened: No such file"), "{missing}");
        let folder = format!("{:#}", FileStore::open(Path::new("/"), true).unwrap_err());
        assert_eq!(folder, "image / is not a file");
    }
}
