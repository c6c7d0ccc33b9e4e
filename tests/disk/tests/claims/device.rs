//! Block devices, and file systems that can't do everything. Who isn't root, or has no loop devices, sees what is left out; with
//! `XEN_DISK_REQUIRED` in the environment that is a failure.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::Command;

use crate::common::{discard, logged, read, run, write};
use disk::{FileStore, Options};
use xbd::SECTOR;
use xbd::back::{Store, StoreFault, Work};

/// Says so where it is seen although the test passes, which `println` isn't.
fn left_out(command: &str, why: &str) {
    let _ = writeln!(std::io::stderr(), "left out: {command}: {why}");
    let required = std::env::var_os("XEN_DISK_REQUIRED").is_some();
    assert!(!required || std::thread::panicking(), "{command} is required: {why}");
}

/// Runs a command; returns what it has printed. `None`, and a message, if it fails.
fn tool(command: &str, arguments: &[&str]) -> Option<String> {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    match Command::new(command).args(arguments).env("PATH", path).output() {
        Ok(output) if output.status.success() => Some(String::from_utf8_lossy(&output.stdout).trim().into()),
        Ok(output) => {
            left_out(command, String::from_utf8_lossy(&output.stderr).trim());
            None
        }
        Err(error) => {
            left_out(command, &error.to_string());
            None
        }
    }
}

/// A block device that is kept in a file.
struct Loop {
    device: PathBuf,
}

impl Loop {
    fn new(file: &std::path::Path, sector_size: u32) -> Option<Self> {
        let sector_size = sector_size.to_string();
        let file = file.to_str()?;
        let device = tool("losetup", &["--find", "--show", "--partscan", "--sector-size", &sector_size, file])?;
        Some(Self { device: device.into() })
    }

    /// Makes a partition of it. The kernel is told of it, not left to find it: not each knows the tables of partitions.
    fn partition(&self, number: u32, first: usize, sectors: usize) -> Option<PathBuf> {
        let device = self.device.display();
        let place = [u64::from(number), first as u64, sectors as u64].map(|number| number.to_string());
        tool("addpart", &[&device.to_string(), &place[0], &place[1], &place[2]])?;
        let path = PathBuf::from(format!("{device}p{number}"));
        if !path.exists() {
            left_out("addpart", &format!("there is no {}", path.display()));
            return None;
        }
        Some(path)
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        tool("losetup", &["--detach", &self.device.to_string_lossy()]);
    }
}

/// A file system of its own.
struct Mount {
    folder: tempfile::TempDir,
}

impl Mount {
    fn new(kind: &str, options: &str) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        tool("mount", &["-t", kind, "-o", options, "none", folder.path().to_str()?])?;
        Some(Self { folder })
    }

    fn image(&self, bytes: u64) -> PathBuf {
        let path = self.folder.path().join("x.img");
        fs::File::create(&path).unwrap().set_len(bytes).unwrap();
        path
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        tool("umount", &[&self.folder.path().to_string_lossy()]);
    }
}

#[test]
fn a_device_is_served_as_what_it_is() {
    for (direct, sector_size) in [(false, 512), (true, 512), (true, 4096)] {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(4 << 20).unwrap();
        let Some(device) = Loop::new(file.path(), sector_size) else { return };
        let (options, log) = logged(Options { direct, ..Options::default() });
        let mut store = FileStore::open(&device.device, &options).unwrap();
        assert_eq!((store.sectors(), store.sector_size()), (8192, sector_size));
        assert!(store.physical_sector_size() >= sector_size);

        write(&mut store, 0, &vec![7; 2 << 20]).unwrap();
        run(&mut store, Work::Flush).unwrap();
        assert_eq!(fs::read(file.path()).unwrap()[..2 << 20], vec![7; 2 << 20]);
        let before = file.as_file().metadata().unwrap().blocks();
        let offered = store.discard().expect("a loop device on a file that can have holes forgets");
        assert!(offered.granularity.is_multiple_of(sector_size) && !offered.secure, "{offered:?}");
        discard(&mut store, 1024, 2048).unwrap();
        assert!(file.as_file().metadata().unwrap().blocks() + 2048 <= before);
        assert_eq!(read(&mut store, 1024, 1 << 20).unwrap(), vec![0; 1 << 20]);
        assert_eq!(read(&mut store, 0, 1024 * 512).unwrap(), vec![7; 1024 * 512]);
        let secure = Work::Discard { sector: 0, sectors: 8, secure: true };
        assert_eq!(run(&mut store, secure), Err(StoreFault::NotSupported));

        assert_eq!(read(&mut store, 8192, 4096), Err(StoreFault::Failed));
        assert_eq!(write(&mut store, 8192, &[0; 4096]), Err(StoreFault::Failed));
        let log = log.lock().unwrap();
        let expected = format!("disk {}: read at sector 8192: it has become shorter", device.device.display());
        assert!(log.contains(&expected), "{log}");
    }
}

#[test]
fn a_partition_is_served_as_a_disk_of_its_own_and_nothing_beside_it_is_touched() {
    let (first, sectors) = (2048, 2048);
    for direct in [false, true] {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut whole = vec![9; 8192 * SECTOR];
        fs::write(file.path(), &whole).unwrap();
        let Some(device) = Loop::new(file.path(), 512) else { return };
        let Some(partition) = device.partition(1, first, sectors) else { return };
        let (options, log) = logged(Options { direct, ..Options::default() });
        let mut store = FileStore::open(&partition, &options).unwrap();
        assert_eq!((store.sectors(), store.sector_size()), (2048, 512));

        write(&mut store, 0, &vec![7; sectors * SECTOR]).unwrap();
        discard(&mut store, 512, 1024).unwrap();
        run(&mut store, Work::Flush).unwrap();
        let begin = first * SECTOR;
        whole[begin..][..sectors * SECTOR].fill(7);
        whole[begin + 512 * SECTOR..][..1024 * SECTOR].fill(0);
        assert!(read(&mut store, 0, sectors * SECTOR).unwrap() == whole[begin..][..sectors * SECTOR]);
        for sector in [2041, 2048, 1 << 40] {
            assert_eq!(write(&mut store, sector, &[1; 4096]), Err(StoreFault::Failed), "{sector}");
            assert_eq!(discard(&mut store, sector, 8), Err(StoreFault::Failed), "{sector}");
        }
        run(&mut store, Work::Flush).unwrap();
        let (now, end) = (fs::read(file.path()).unwrap(), begin + sectors * SECTOR);
        assert!(
            now[..begin] == whole[..begin] && now[end..] == whole[end..],
            "something beside the partition has changed"
        );
        assert!(now[begin..end - 7 * SECTOR] == whole[begin..end - 7 * SECTOR], "what fails changes nothing before it");
        let log = log.lock().unwrap();
        assert!(log.contains(&format!("disk {}: write at sector 2048", partition.display())), "{log}");

        // A disk of which a partition is served is in use, and the partition again.
        for path in [&device.device, &partition] {
            let error = FileStore::open(path, &Options::default()).unwrap_err().to_string();
            assert!(error.contains("busy"), "{error}");
        }
        // It forgets as its disk does, whose queue it has: as another disk of that kind, for its own is in use.
        let other = tempfile::NamedTempFile::new().unwrap();
        other.as_file().set_len(4 << 20).unwrap();
        let Some(other) = Loop::new(other.path(), 512) else { return };
        let other = FileStore::open(&other.device, &Options::default()).unwrap();
        assert_eq!(store.discard(), other.discard());
        assert!(store.discard().is_some());
    }
}

#[test]
fn a_device_that_is_in_use_is_not_written() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 20).unwrap();
    let Some(device) = Loop::new(file.path(), 512) else { return };
    let first = FileStore::open(&device.device, &Options::default()).unwrap();
    let name = device.device.display();
    let error = FileStore::open(&device.device, &Options::default()).unwrap_err().to_string();
    assert_eq!(error, format!("disk {name}: can't open it for writing: Device or resource busy (os error 16)"));
    FileStore::open(&device.device, &Options { read_only: true, ..Options::default() }).unwrap();
    drop(first);
    FileStore::open(&device.device, &Options::default()).unwrap();
}

#[test]
fn sectors_smaller_than_the_device_s_are_refused() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 20).unwrap();
    let Some(device) = Loop::new(file.path(), 4096) else { return };
    let options = Options { sector_size: Some(512), ..Options::default() };
    let error = FileStore::open(&device.device, &options).unwrap_err().to_string();
    let name = device.device.display();
    assert_eq!(error, format!("disk {name}: can't have sectors of 512 bytes, only of 4096 or more"));
}

#[test]
fn after_a_flush_that_failed_none_succeeds() {
    // A device in a file, on a file system with less room than the device says that it has.
    let Some(small) = Mount::new("tmpfs", "size=1m") else { return };
    let Some(device) = Loop::new(&small.image(8 << 20), 512) else { return };
    let (options, log) = logged(Options::default());
    let mut store = FileStore::open(&device.device, &options).unwrap();
    write(&mut store, 0, &vec![7; 4 << 20]).unwrap();
    assert_eq!(run(&mut store, Work::Flush), Err(StoreFault::Failed));
    assert_eq!(run(&mut store, Work::Flush), Err(StoreFault::Failed));
    assert_eq!(run(&mut store.handle(), Work::Flush), Err(StoreFault::Failed));
    let log = log.lock().unwrap();
    let lines: Vec<_> = log.lines().collect();
    assert!(lines[0].contains("flush: ") && lines[0].contains("os error"), "{log}");
    assert!(lines[1].ends_with("flush: an earlier flush has failed, and what it was for may be lost"), "{log}");
}

#[test]
fn a_file_system_without_holes_or_direct_access_says_so() {
    let Some(plain) = Mount::new("ramfs", "mode=700") else { return };
    let path = plain.image(1 << 16);
    let error = FileStore::open(&path, &Options { direct: true, ..Options::default() }).unwrap_err().to_string();
    assert_eq!(error, format!("disk {}: can't be accessed directly, past the page cache", path.display()));
    let (options, log) = logged(Options::default());
    let mut store = FileStore::open(&path, &options).unwrap();
    assert!(store.discard().is_some(), "nobody has tried yet");
    assert_eq!(discard(&mut store, 0, 8), Err(StoreFault::NotSupported));
    assert_eq!(store.discard(), None);
    assert_eq!(store.handle().discard(), None);
    assert_eq!(discard(&mut store, 0, 8), Err(StoreFault::NotSupported));
    let expected = format!("disk {}: discard of 8 at sector 0: it can't do this", path.display());
    assert_eq!(log.lock().unwrap().lines().next(), Some(expected.as_str()));
}
