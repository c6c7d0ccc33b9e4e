//! Disk images: one to show when none is given, and what is in one.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use sha2::{Digest, Sha256};

use crate::host::process::die_with_parent;

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

    #[test]
    fn an_image_must_be_there() {
        let missing = format!("{:#}", open(Path::new("/nowhere/x.img")).unwrap_err());
        assert!(missing.starts_with("image /nowhere/x.img can't be opened: No such file"), "{missing}");
    }
}
