//! A file store is a disk: whatever is done to it, it has what a plain vector has.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::common::{Area, contents, discard, fill, logged, read, run, write};
use disk::{FileStore, Options, Refusal, Workers};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use xbd::SECTOR;
use xbd::back::{Parts, Started, Store, StoreFault, Token, Work};

fn image(bytes: u64) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(bytes).unwrap();
    file
}

/// Work of a random sequence, in units of the disk's sector size.
#[derive(Clone, Debug)]
enum Step {
    /// How long the parts are, in sectors of 512 bytes, and how they lie in their pages, in bytes.
    Transfer {
        write: bool,
        unit: u64,
        parts: Vec<usize>,
        skew: usize,
        salt: u8,
    },
    Flush,
    Discard {
        unit: u64,
        units: u64,
    },
}

/// Units of the disk that is tried.
const UNITS: u64 = 64;

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let transfer = (any::<bool>(), 0..UNITS, prop::collection::vec(1..=8usize, 1..12), any::<u8>()).prop_flat_map(
        |(write, unit, parts, salt)| {
            // Aligned to a page, to a sector, to nothing.
            let skew = prop::sample::select(vec![0usize, 512, 1536, 3]);
            skew.prop_map(move |skew| Step::Transfer { write, unit, parts: parts.clone(), skew, salt })
        },
    );
    let discard = (0..UNITS, 1..=UNITS).prop_map(|(unit, units)| Step::Discard { unit, units });
    prop::collection::vec(prop_oneof![6 => transfer, 1 => Just(Step::Flush), 2 => discard], 1..24)
}

fn follows_a_vector(direct: bool, sector_size: u32, threads: usize) {
    let options = Options { direct, sector_size: Some(sector_size), ..Options::default() };
    let size = UNITS * u64::from(sector_size);
    let probe = image(size);
    if let Err(error) = FileStore::open(probe.path(), &options) {
        assert!(matches!(error.why, Refusal::NoDirect | Refusal::SmallSectors { .. }), "{error}");
        println!("left out: {error}");
        return;
    }
    // What is written directly is waited for.
    let cases = if direct { 16 } else { 64 };
    let mut runner = TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() });
    // Enough for the longest list of parts.
    let area = Area::new(32);
    let tried = runner.run(&steps(), |steps| {
        let file = image(size);
        let mut store = FileStore::open(file.path(), &options).unwrap();
        if threads > 0 {
            // SAFETY: each piece of work is waited for before its memory goes.
            store = unsafe { store.with_workers(&Workers { threads, ..Workers::default() }) }.unwrap();
        }
        let mut model = vec![0u8; size as usize];
        for step in steps {
            follow(&mut store, &mut model, &step, &area)?;
        }
        prop_assert_eq!(&fs::read(file.path()).unwrap(), &model);
        Ok(())
    });
    if let Err(error) = tried {
        panic!("{error}");
    }
}

fn follow(store: &mut FileStore, model: &mut [u8], step: &Step, area: &Area) -> Result<(), TestCaseError> {
    let sector_size = store.sector_size();
    let unit_sectors = u64::from(sector_size) / SECTOR as u64;
    match *step {
        Step::Flush => prop_assert_eq!(run(store, Work::Flush), Ok(())),
        Step::Discard { unit, units } => {
            let units = units.min(UNITS - unit);
            let done = discard(store, unit * unit_sectors, units * unit_sectors);
            if done == Err(StoreFault::NotSupported) {
                prop_assert_eq!(store.discard(), None);
                return Ok(());
            }
            prop_assert_eq!(done, Ok(()));
            model[(unit * u64::from(sector_size)) as usize..][..(units * u64::from(sector_size)) as usize].fill(0);
        }
        Step::Transfer { write, unit, ref parts, skew, salt } => {
            // As much of it as is on the disk, in whole units.
            let most = ((UNITS - unit) * unit_sectors) as usize;
            let mut sectors = 0;
            let mut lengths = Vec::new();
            for part in parts {
                let part = (*part).min(most - sectors);
                sectors += part;
                lengths.extend((part > 0).then_some(part * SECTOR));
            }
            let ragged = sectors % unit_sectors as usize;
            if ragged > 0 {
                lengths.push((unit_sectors as usize - ragged) * SECTOR);
            }
            let len: usize = lengths.iter().sum();
            let parts = area.parts(&lengths, skew);
            let at = (unit * u64::from(sector_size)) as usize;
            let sector = unit * unit_sectors;
            if write {
                let bytes: Vec<u8> = (0..len).map(|n| (n % 253) as u8 ^ salt).collect();
                fill(&parts, &bytes);
                prop_assert_eq!(run(store, Work::Write { sector, parts: Parts::new(&parts) }), Ok(()));
                model[at..at + len].copy_from_slice(&bytes);
            } else {
                prop_assert_eq!(run(store, Work::Read { sector, parts: Parts::new(&parts) }), Ok(()));
                prop_assert_eq!(contents(&parts), &model[at..at + len]);
            }
        }
    }
    Ok(())
}

#[test]
fn buffered_512() {
    follows_a_vector(false, 512, 0);
}

#[test]
fn buffered_4096() {
    follows_a_vector(false, 4096, 0);
}

#[test]
fn buffered_512_with_workers() {
    follows_a_vector(false, 512, 3);
}

#[test]
fn direct_512() {
    follows_a_vector(true, 512, 0);
}

#[test]
fn direct_4096() {
    follows_a_vector(true, 4096, 0);
}

#[test]
fn direct_4096_with_workers() {
    follows_a_vector(true, 4096, 3);
}

#[test]
fn a_request_may_have_more_parts_than_a_system_call_takes() {
    let file = image(4 << 20);
    for direct in [false, true] {
        let Ok(mut store) = FileStore::open(file.path(), &Options { direct, ..Options::default() }) else {
            println!("left out: no direct access in {}", file.path().display());
            continue;
        };
        // Of a length by which the buffer for direct access can't be divided.
        let (count, len) = (2730, 1536);
        // An odd address too, so that direct access goes by way of its buffer, several times.
        for skew in [0, 1] {
            let area = Area::new(count);
            let parts = area.parts(&vec![len; count], skew);
            let bytes: Vec<u8> = (0..count * len).map(|n| (n / 512 + n + skew) as u8).collect();
            fill(&parts, &bytes);
            assert_eq!(run(&mut store, Work::Write { sector: 0, parts: Parts::new(&parts) }), Ok(()));
            assert!(fs::read(file.path()).unwrap()[..bytes.len()] == bytes);
            fill(&parts, &vec![0; bytes.len()]);
            assert_eq!(run(&mut store, Work::Read { sector: 0, parts: Parts::new(&parts) }), Ok(()));
            assert!(contents(&parts) == bytes);
        }
    }
}

#[test]
fn a_discard_gives_its_blocks_back() {
    let file = image(1 << 20);
    let mut store = FileStore::open(file.path(), &Options::default()).unwrap();
    let offered = store.discard().unwrap();
    assert!(!offered.secure && offered.granularity >= 512, "{offered:?}");
    write(&mut store, 0, &vec![7; 1 << 20]).unwrap();
    run(&mut store, Work::Flush).unwrap();
    let before = file.as_file().metadata().unwrap().blocks();
    if discard(&mut store, 512, 1024) == Err(StoreFault::NotSupported) {
        println!("left out: {} is where no holes can be punched", file.path().display());
        return;
    }
    let after = file.as_file().metadata().unwrap().blocks();
    assert!(after + 1024 <= before, "{before} blocks became {after}");
    let mut expected = vec![7; 1 << 20];
    expected[512 * SECTOR..1536 * SECTOR].fill(0);
    assert!(fs::read(file.path()).unwrap() == expected);
}

#[test]
fn a_secure_discard_of_a_file_is_no_promise_that_we_make() {
    let file = image(1 << 16);
    let mut store = FileStore::open(file.path(), &Options::default()).unwrap();
    write(&mut store, 0, &[7; 512]).unwrap();
    let secure = Work::Discard { sector: 0, sectors: 1, secure: true };
    assert_eq!(run(&mut store, secure), Err(StoreFault::NotSupported));
    // Nor does it end the other kind.
    assert!(store.discard().is_some());
    assert_eq!(read(&mut store, 0, 512).unwrap(), [7; 512]);
}

#[test]
fn a_file_that_became_shorter_fails_what_it_has_lost() {
    let file = image(1 << 16);
    let (options, log) = logged(Options::default());
    let mut store = FileStore::open(file.path(), &options).unwrap();
    write(&mut store, 0, &vec![5; 1 << 16]).unwrap();
    file.as_file().set_len(1 << 15).unwrap();
    assert_eq!(store.sectors(), 64);
    assert_eq!(read(&mut store, 100, 512), Err(StoreFault::Failed));
    assert_eq!(read(&mut store, 60, 4096), Err(StoreFault::Failed), "half of it is there");
    assert_eq!(write(&mut store, 60, &[1; 4096]), Err(StoreFault::Failed));
    assert_eq!(discard(&mut store, 60, 8), Err(StoreFault::Failed));
    assert_eq!(file.as_file().metadata().unwrap().len(), 1 << 15, "a write has made it longer");
    assert_eq!(read(&mut store, 0, 1 << 15).unwrap(), vec![5; 1 << 15]);
    let path = file.path().display();
    let expected: String =
        ["read at sector 100", "read at sector 60", "write at sector 60", "discard of 8 at sector 60"]
            .map(|what| format!("disk {path}: {what}: it has become shorter\n"))
            .concat();
    assert_eq!(*log.lock().unwrap(), expected);
    // It may also grow.
    file.as_file().set_len(1 << 17).unwrap();
    assert_eq!(store.sectors(), 256);
    assert_eq!(write(&mut store, 255, &[1; 512]), Ok(()));
}

#[test]
fn a_sector_beyond_all_bounds_is_an_error() {
    let file = image(1 << 16);
    let mut store = FileStore::open(file.path(), &logged(Options::default()).0).unwrap();
    for sector in [u64::MAX, u64::MAX / 512, i64::MAX as u64 / 512, 1 << 40] {
        assert_eq!(read(&mut store, sector, 512), Err(StoreFault::Failed));
        assert_eq!(write(&mut store, sector, &[0; 512]), Err(StoreFault::Failed));
        assert_eq!(discard(&mut store, sector, u64::MAX), Err(StoreFault::Failed));
    }
}

#[test]
fn a_log_is_not_flooded() {
    let file = image(1 << 16);
    let (options, log) = logged(Options::default());
    let mut store = FileStore::open(file.path(), &options).unwrap();
    let area = Area::new(1);
    let parts = area.parts(&[512], 0);
    let start = Instant::now();
    let mut fail = || run(&mut store, Work::Read { sector: 1 << 20, parts: Parts::new(&parts) });
    for _ in 0..10_000 {
        assert_eq!(fail(), Err(StoreFault::Failed));
    }
    // Ten a second, and those of the second that has begun.
    let most = 10 * (start.elapsed().as_secs() as usize + 2);
    let told = log.lock().unwrap().lines().count();
    assert!((10..=most).contains(&told), "{told} lines");
    std::thread::sleep(Duration::from_millis(1100));
    assert_eq!(fail(), Err(StoreFault::Failed));
    // Whatever was not told is counted.
    let log = log.lock().unwrap();
    let held_back = log.lines().filter_map(|line| line.split_once("(and ")?.1.split_once(" more that were not told)"));
    let held_back: usize = held_back.map(|(count, _)| count.parse::<usize>().unwrap()).sum();
    assert_eq!(log.lines().count() + held_back, 10_001);
}

#[test]
fn memory_that_can_t_be_written_is_not_read_into() {
    let file = image(1 << 16);
    let (options, log) = logged(Options::default());
    let mut store = FileStore::open(file.path(), &options).unwrap();
    static CONSTANT: [u8; 512] = [3; 512];
    // SAFETY: constants stay as they are, and are only read.
    let part = unsafe { hypercall::mem::Shared::read_only(std::ptr::NonNull::from(&CONSTANT).cast(), 512) };
    let parts = [part];
    assert_eq!(run(&mut store, Work::Write { sector: 1, parts: Parts::new(&parts) }), Ok(()));
    assert_eq!(run(&mut store, Work::Read { sector: 0, parts: Parts::new(&parts) }), Err(StoreFault::Failed));
    assert_eq!(read(&mut store, 1, 512).unwrap(), CONSTANT);
    assert!(log.lock().unwrap().contains("read at sector 0: the memory to read into can't be written"));
}

#[test]
fn without_workers_all_is_done_at_once() {
    let file = image(1 << 16);
    let mut store = FileStore::open(file.path(), &Options::default()).unwrap();
    assert_eq!(store.start(Token(0), Work::Flush), Started::Done(Ok(())));
    assert_eq!(store.completed(), None);
}

#[test]
fn a_disk_is_what_it_was_asked_to_be() {
    let file = image(1 << 16);
    let store = FileStore::open(file.path(), &Options::default()).unwrap();
    assert_eq!((store.sectors(), store.sector_size(), store.read_only()), (128, 512, false));
    assert!(store.physical_sector_size() >= 512);
    let options = Options { sector_size: Some(4096), read_only: true, ..Options::default() };
    let (options, log) = logged(options);
    let mut store = FileStore::open(file.path(), &options).unwrap();
    assert_eq!((store.sectors(), store.sector_size(), store.physical_sector_size()), (128, 4096, 4096));
    assert!(store.read_only() && store.discard().is_none());
    assert_eq!(write(&mut store, 0, &[0; 4096]), Err(StoreFault::Failed));
    assert_eq!(discard(&mut store, 0, 8), Err(StoreFault::NotSupported));
    assert!(log.lock().unwrap().contains("write at sector 0: Bad file descriptor (os error 9)"), "{log:?}");
    assert!(store.handle().read_only());
}

fn refusal(path: &Path, options: &Options) -> String {
    FileStore::open(path, options).unwrap_err().to_string()
}

#[test]
fn what_is_no_disk_is_refused_with_its_name() {
    let any = Options::default();
    let file = image(0);
    let name = file.path().display();
    assert_eq!(refusal(file.path(), &any), format!("disk {name}: is empty"));
    file.as_file().set_len(513).unwrap();
    let partial = format!("disk {name}: has 513 bytes, which is no whole number of 512-byte sectors");
    assert_eq!(refusal(file.path(), &any), partial);
    file.as_file().set_len(4096 + 512).unwrap();
    let large = Options { sector_size: Some(4096), ..Options::default() };
    let partial = format!("disk {name}: has 4608 bytes, which is no whole number of 4096-byte sectors");
    assert_eq!(refusal(file.path(), &large), partial);
    for bad in [0, 256, 768, 8192] {
        let options = Options { sector_size: Some(bad), ..Options::default() };
        assert_eq!(refusal(file.path(), &options), format!("disk {name}: can't have sectors of {bad} bytes"));
    }
    let missing = refusal(Path::new("/nowhere/x.img"), &any);
    assert_eq!(missing, "disk /nowhere/x.img: can't open it for writing: No such file or directory (os error 2)");
    assert_eq!(refusal(Path::new("/dev/null"), &any), "disk /dev/null: is neither a file nor a block device");
    let reading = Options { read_only: true, ..Options::default() };
    assert_eq!(refusal(Path::new("/"), &reading), "disk /: is neither a file nor a block device");
}

#[test]
fn a_file_that_may_only_be_read_is_refused_for_writing() {
    let file = image(1 << 16);
    let name = file.path().to_owned();
    fs::set_permissions(&name, fs::Permissions::from_mode(0o444)).unwrap();
    // Root may write to everything, so a thread of root's becomes nobody for file systems first.
    let tried = std::thread::spawn(move || {
        // SAFETY: concerns this thread alone, which ends here.
        unsafe { libc::setfsuid(65534) };
        let reading = Options { read_only: true, ..Options::default() };
        FileStore::open(&name, &reading).unwrap();
        refusal(&name, &Options::default())
    });
    let name = file.path().display();
    let expected = format!("disk {name}: can't open it for writing: Permission denied (os error 13)");
    assert_eq!(tried.join().unwrap(), expected);

    let reader = File::open(file.path()).unwrap();
    let error = FileStore::new(reader, "x.img", &Options::default()).unwrap_err();
    assert_eq!(error.to_string(), "disk x.img: was opened for reading only");
}
