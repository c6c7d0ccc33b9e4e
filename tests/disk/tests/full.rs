//! A disk of the host that is full. The limit counts for the whole process, so this is its only test.
#![cfg(target_os = "linux")]

#[path = "claims/common.rs"]
mod common;

use std::fs;

use common::{Area, fill, logged, run};
use disk::{FileStore, Options};
use xbd::back::{Parts, StoreFault, Work};

#[test]
fn what_has_no_room_fails_and_the_rest_goes_on() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 20).unwrap();
    let (options, log) = logged(Options::default());
    let mut store = FileStore::open(file.path(), &options).unwrap();
    let area = Area::new(2);
    let (large, small) = (area.parts(&[8192], 0), area.parts(&[512], 0));
    fill(&large, &[6; 8192]);
    // A limit that anybody may set: no file is written beyond 64 KiB.
    let limit = libc::rlimit { rlim_cur: 1 << 16, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: plain numbers; whoever ignores the signal gets an error instead.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
        let mut before = limit;
        assert_eq!(libc::getrlimit(libc::RLIMIT_FSIZE, &mut before), 0);
        assert_eq!(libc::setrlimit(libc::RLIMIT_FSIZE, &libc::rlimit { rlim_max: before.rlim_max, ..limit }), 0);
    }
    // Half of it is written, by a call that says so; the next one says why not the rest.
    let write = |sector, parts| Work::Write { sector, parts: Parts::new(parts) };
    assert_eq!(run(&mut store, write(120, &large)), Err(StoreFault::Failed));
    let expected = format!("disk {}: write at sector 120: File too large (os error 27)\n", file.path().display());
    assert_eq!(*log.lock().unwrap(), expected);
    let bytes = fs::read(file.path()).unwrap();
    assert!(bytes[120 * 512..][..4096].iter().all(|byte| *byte == 6));
    assert!(bytes[1 << 16..].iter().all(|byte| *byte == 0));
    // What is within bounds is served as ever.
    assert_eq!(run(&mut store, write(0, &small)), Ok(()));
    assert_eq!(fs::read(file.path()).unwrap()[..512], [6; 512]);
}
