//! Disk images as files: the store behind the demo's back end, and an image to show when none is given.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use sha2::{Digest, Sha256};
use xbd::back::{Parts, Started, Store, StoreFault, Token, Work};
use xbd::{MAX_SEGMENTS, SECTOR};

use crate::host::process::die_with_parent;

/// A file that is served as a disk.
#[derive(Clone, Debug)]
pub(crate) struct FileStore {
    file: Arc<File>,
    sectors: u64,
    read_only: bool,
}

impl FileStore {
    /// Takes an open image: a file that is a whole number of sectors long. `name` stands in messages.
    ///
    /// # Errors
    /// It is no plain file, is empty or ends within a sector.
    pub(crate) fn new(file: File, name: &str, read_only: bool) -> Result<Self> {
        let about = file.metadata().with_context(|| format!("image {name}"))?;
        ensure!(about.is_file(), "image {name} is not a file");
        let len = about.len();
        ensure!(len > 0, "image {name} is empty");
        ensure!(
            len.is_multiple_of(SECTOR as u64),
            "image {name} has {len} bytes, which is no whole number of {SECTOR}-byte sectors"
        );
        Ok(Self { file: Arc::new(file), sectors: len / SECTOR as u64, read_only })
    }

    /// Moves all bytes of the parts by as few system calls as possible.
    fn transfer(&self, sector: u64, parts: Parts<'_>, call: Vectored) -> Result<(), StoreFault> {
        let mut vectors = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; MAX_SEGMENTS];
        let mut count = 0;
        for (vector, part) in vectors.iter_mut().zip(parts.iter()) {
            *vector = libc::iovec { iov_base: part.as_ptr().as_ptr().cast(), iov_len: part.len() };
            count += 1;
        }
        let mut left = &mut vectors[..count];
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
                return Err(StoreFault::Failed);
            };
            if moved == 0 {
                eprintln!("xenlab: image, sector {sector}: the file has become shorter");
                return Err(StoreFault::Failed);
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
    fn handle(&self) -> Self {
        self.clone()
    }

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
            // None is offered.
            Work::Discard { .. } => Err(StoreFault::NotSupported),
            Work::Flush => self.file.sync_data().map_err(|error| {
                eprintln!("xenlab: image, flush: {error}");
                StoreFault::Failed
            }),
        })
    }
}

/// Opens an image for reading.
///
/// # Errors
/// It can't be opened.
pub(crate) fn open(path: &Path) -> Result<File> {
    File::open(path).with_context(|| format!("image {} can't be opened", path.display()))
}

/// Returns the SHA-256 of a file.
///
/// # Errors
/// It can't be read.
pub(crate) fn sha256(file: &File) -> Result<[u8; 32]> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut at = 0;
    loop {
        match file.read_at(&mut buffer, at).context("the image can't be read")? {
            0 => return Ok(hash.finalize().into()),
            count => {
                hash.update(&buffer[..count]);
                at += count as u64;
            }
        }
    }
}

/// Makes an image of `bytes` bytes, without a name: an ext4 file system with some files if `mke2fs` is there, else noise. Returns
/// what it is, too.
///
/// # Errors
/// It can't be written, or `mke2fs` fails.
pub(crate) fn make(bytes: u64) -> Result<(File, &'static str)> {
    let image = tempfile::tempfile()?;
    image.set_len(bytes)?;
    let files = tempfile::tempdir()?;
    for number in 0..64u64 {
        fs::write(
            files.path().join(format!("noise-{number}")),
            suite::scenarios::noise(number, 1000 * number as usize),
        )?;
    }
    let mut command = Command::new("mke2fs");
    command.args(["-q", "-F", "-t", "ext4", "-d"]).arg(files.path()).arg(open_again(&image));
    die_with_parent(&mut command, Vec::new());
    match command.env("PATH", search_path()).stdin(Stdio::null()).status() {
        Ok(status) => {
            ensure!(status.success(), "mke2fs failed: {status}");
            Ok((image, "ext4"))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            image.write_all_at(&suite::scenarios::noise(bytes, bytes as usize), 0)?;
            Ok((image, "noise, as mke2fs is not installed"))
        }
        Err(error) => Err(error).context("mke2fs can't be started"),
    }
}

/// Lets `e2fsck` look at an image without changing it. `None` if it isn't installed.
///
/// # Errors
/// It finds a fault.
pub(crate) fn check_ext4(image: &File) -> Result<Option<()>> {
    let mut command = Command::new("e2fsck");
    command.args(["-f", "-n"]).arg(open_again(image));
    die_with_parent(&mut command, Vec::new());
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

/// Returns the path by which another process opens a file of ours that has no name.
fn open_again(file: &File) -> PathBuf {
    format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()).into()
}

/// The file system tools live where only root's path leads.
fn search_path() -> String {
    format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(contents: &[u8]) -> String {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(contents, 0).unwrap();
        format!("{:#}", FileStore::new(file, "x.img", true).unwrap_err())
    }

    #[test]
    fn an_image_must_be_a_whole_number_of_sectors() {
        assert_eq!(refusal(&[]), "image x.img is empty");
        assert_eq!(refusal(&[0; 513]), "image x.img has 513 bytes, which is no whole number of 512-byte sectors");
    }

    #[test]
    fn an_image_must_be_a_file_that_is_there() {
        let missing = format!("{:#}", open(Path::new("/nowhere/x.img")).unwrap_err());
        assert!(missing.starts_with("image /nowhere/x.img can't be opened: No such file"), "{missing}");
        let folder = open(Path::new("/")).unwrap();
        assert_eq!(format!("{:#}", FileStore::new(folder, "/", true).unwrap_err()), "image / is not a file");
    }
}
