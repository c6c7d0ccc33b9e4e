//! Writes initramfs archives: the "newc" form of cpio that Linux unpacks at boot, every file owned by root.

use std::fs;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

const FILE: u32 = 0o100_000;
const DIRECTORY: u32 = 0o040_000;
const SYMLINK: u32 = 0o120_000;

/// An archive on its way to `out`. Without [`Archive::finish`] Linux takes it for damaged.
#[derive(Debug)]
pub(crate) struct Archive<W> {
    out: W,
    entries: u32,
}

impl<W: Write> Archive<W> {
    pub(crate) fn new(out: W) -> Self {
        Self { out, entries: 0 }
    }

    /// Adds a file; `permissions` are the lower mode bits.
    pub(crate) fn file(&mut self, name: &[u8], permissions: u32, content: &[u8]) -> io::Result<()> {
        self.entry(name, FILE | permissions & 0o7777, content)
    }

    /// Adds all that stands below `tree`, in the order of names.
    pub(crate) fn tree(&mut self, tree: &Path) -> io::Result<()> {
        self.folder(tree, &[])
    }

    /// Writes the end mark and returns what was written to. Another archive may follow right behind.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        self.entry(b"TRAILER!!!", 0, &[])?;
        Ok(self.out)
    }

    fn folder(&mut self, folder: &Path, prefix: &[u8]) -> io::Result<()> {
        let mut found = fs::read_dir(folder)?.collect::<io::Result<Vec<_>>>()?;
        found.sort_by_key(fs::DirEntry::file_name);
        for item in found {
            let name = [prefix, item.file_name().as_bytes()].concat();
            let kind = item.file_type()?;
            if kind.is_symlink() {
                self.entry(&name, SYMLINK | 0o777, fs::read_link(item.path())?.as_os_str().as_bytes())?;
            } else if kind.is_dir() {
                self.entry(&name, DIRECTORY | item.metadata()?.permissions().mode() & 0o7777, &[])?;
                self.folder(&item.path(), &[&name, b"/".as_slice()].concat())?;
            } else if kind.is_file() {
                self.file(&name, item.metadata()?.permissions().mode(), &fs::read(item.path())?)?;
            }
        }
        Ok(())
    }

    fn entry(&mut self, name: &[u8], mode: u32, content: &[u8]) -> io::Result<()> {
        let size = u32::try_from(content.len()).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
        self.entries += 1;
        write!(self.out, "070701")?;
        // Inode, mode, owner, group, links, time, size, device and rdev (major, minor each), name size, checksum.
        for field in [self.entries, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name.len() as u32 + 1, 0] {
            write!(self.out, "{field:08x}")?;
        }
        const HEADER: usize = 110;
        self.out.write_all(name)?;
        self.pad_after(name.len() + HEADER, 1)?;
        self.out.write_all(content)?;
        self.pad_after(content.len(), 0)
    }

    /// Writes `least` zero bytes, and then up to the next multiple of 4 of `length` plus those.
    fn pad_after(&mut self, length: usize, least: usize) -> io::Result<()> {
        let padding = least + (length + least).wrapping_neg() % 4;
        self.out.write_all(&[0; 4][..padding])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_begin_on_multiples_of_four_and_end_with_the_trailer() {
        for length in 0..9 {
            let mut archive = Archive::new(Vec::new());
            archive.file(&vec![b'n'; length + 1], 0o755, &vec![b'x'; length]).unwrap();
            let before_trailer = archive.out.len();
            assert_eq!(before_trailer % 4, 0);
            let bytes = archive.finish().unwrap();
            assert_eq!(bytes.len() % 4, 0);
            assert_eq!(&bytes[..6], b"070701");
            assert_eq!(&bytes[before_trailer..before_trailer + 6], b"070701");
            assert_eq!(&bytes[before_trailer + 110..before_trailer + 121], b"TRAILER!!!\0");
        }
    }

    #[test]
    fn a_tree_keeps_modes_links_and_contents() {
        let tree = tempfile::tempdir().unwrap();
        fs::create_dir(tree.path().join("sub")).unwrap();
        fs::write(tree.path().join("sub/run"), b"hello").unwrap();
        fs::set_permissions(tree.path().join("sub/run"), fs::Permissions::from_mode(0o750)).unwrap();
        std::os::unix::fs::symlink("sub/run", tree.path().join("way")).unwrap();
        let mut archive = Archive::new(Vec::new());
        archive.tree(tree.path()).unwrap();
        let text = String::from_utf8(archive.finish().unwrap()).unwrap();
        assert!(text.contains("000081e8"), "mode of the file: {text:?}");
        assert!(text.contains("sub/run\0\0\0hello"), "name and content: {text:?}");
        assert!(text.contains("0000a1ff"), "mode of the link: {text:?}");
        assert!(text.contains("way\0") && text.matches("sub/run").count() == 2, "{text:?}");
    }
}
