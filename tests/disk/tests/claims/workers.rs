//! Work that is done by threads: all of it ends once, in any order, and is waited for.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::task::{Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

use crate::common::{Area, fill, logged, next};
use disk::{FileStore, Options, Workers};
use hypercall::mem::Shared;
use xbd::back::{Parts, Started, Store, StoreFault, Token, Work};

fn image(bytes: u64) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(bytes).unwrap();
    file
}

fn open(file: &tempfile::NamedTempFile, threads: usize, queue: usize, waker: Option<Waker>) -> FileStore {
    let (options, _) = logged(Options::default());
    let store = FileStore::open(file.path(), &options).unwrap();
    // SAFETY: the tests keep their memory until they have dropped the store.
    unsafe { store.with_workers(&Workers { threads, queue, waker }) }.unwrap()
}

/// Starts something long and something short; returns which was over first.
fn race(store: &mut FileStore, long: &[Shared<'_>], short: &[Shared<'_>]) -> Token {
    let work = Work::Write { sector: 0, parts: Parts::new(long) };
    assert_eq!(store.start(Token(1), work), Started::Pending);
    let work = Work::Read { sector: 0, parts: Parts::new(short) };
    assert_eq!(store.start(Token(2), work), Started::Pending);
    let [first, second] = [next(store), next(store)];
    assert!(first.0 != second.0 && first.1.is_ok() && second.1.is_ok(), "{first:?} {second:?}");
    first.0
}

#[test]
fn what_is_short_overtakes_what_is_long_where_there_are_several_workers() {
    let area = Area::new(2);
    // The same page again and again.
    let long = vec![area.parts(&[4096], 0)[0]; 4096];
    let short = area.parts(&[4096, 512], 0).split_off(1);
    let file = image(16 << 20);
    let mut many = open(&file, 2, 8, None);
    let overtaken = (0..50).any(|_| race(&mut many, &long, &short) == Token(2));
    assert!(overtaken, "16 MiB are always written sooner than 512 bytes are read");
    let mut one = open(&file, 1, 8, None);
    assert!((0..5).all(|_| race(&mut one, &long, &short) == Token(1)), "a single worker has overtaken itself");
}

#[test]
fn all_work_of_all_handles_ends_once_by_the_handle_that_began_it() {
    const EACH: u16 = 200;
    let file = image(1 << 20);
    let area = Area::new(1);
    let parts = area.parts(&[512], 0);
    // A queue that is always full, too.
    for queue in [1, 1000] {
        let first = open(&file, 3, queue, None);
        let mut handles = [first.handle(), first.handle(), first];
        for token in 0..EACH {
            for store in &mut handles {
                // Each tenth lies beyond the end.
                let sector = u64::from(token) + if token % 10 == 0 { 1 << 20 } else { 0 };
                let work = Work::Read { sector, parts: Parts::new(&parts) };
                assert_eq!(store.start(Token(token), work), Started::Pending);
            }
        }
        for store in &mut handles {
            let mut ended = vec![false; usize::from(EACH)];
            for _ in 0..EACH {
                let (token, result) = next(store);
                assert!(!std::mem::replace(&mut ended[usize::from(token.0)], true), "{token:?} has ended twice");
                let expected = if token.0 % 10 == 0 { Err(StoreFault::Failed) } else { Ok(()) };
                assert_eq!(result, expected, "{token:?}");
            }
            assert_eq!(store.completed(), None);
        }
    }
}

#[test]
fn a_handle_that_is_dropped_waits_for_what_it_has_started() {
    let file = image(32 << 20);
    let area = Area::new(16);
    let parts = area.parts(&[1 << 16], 0);
    fill(&parts, &[9; 1 << 16]);
    let mut store = open(&file, 2, 1000, None);
    for number in 0..512u16 {
        let work = Work::Write { sector: u64::from(number) * 128, parts: Parts::new(&parts) };
        assert_eq!(store.start(Token(number), work), Started::Pending);
    }
    drop(store);
    // From now on the memory may be used for something else.
    fill(&parts, &[8; 1 << 16]);
    assert!(fs::read(file.path()).unwrap().iter().all(|byte| *byte == 9));
}

struct Unpark(Thread, AtomicUsize);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.1.fetch_add(1, SeqCst);
        self.0.unpark();
    }
}

#[test]
fn an_owner_that_sleeps_is_woken() {
    let file = image(1 << 20);
    let area = Area::new(1);
    let parts = area.parts(&[4096], 0);
    // With a queue that takes it all, and one that leaves most of it to the owner.
    for queue in [64, 1] {
        let unpark = Arc::new(Unpark(std::thread::current(), AtomicUsize::new(0)));
        let first = open(&file, 2, queue, Some(unpark.clone().into()));
        // A handle made of it wakes, too.
        let mut store = first.handle();
        for number in 0..32u16 {
            let work = Work::Write { sector: u64::from(number) * 8, parts: Parts::new(&parts) };
            assert_eq!(store.start(Token(number), work), Started::Pending);
        }
        let (start, mut ended) = (Instant::now(), 0);
        while ended < 32 {
            match store.completed() {
                Some((_, result)) => {
                    result.unwrap();
                    ended += 1;
                }
                None => std::thread::park_timeout(Duration::from_secs(20)),
            }
            assert!(start.elapsed() < Duration::from_secs(20), "slept through it");
        }
        // Each is told after it can be seen, so the last may be late.
        while unpark.1.load(SeqCst) < 32 {
            assert!(start.elapsed() < Duration::from_secs(20), "{} wakes", unpark.1.load(SeqCst));
            std::thread::yield_now();
        }
    }
}

#[test]
fn the_threads_end_with_the_last_handle_and_the_file_is_closed() {
    let file = image(1 << 16);
    let store = open(&file, 3, 8, None);
    let path = file.into_temp_path();
    let open = || {
        let links = fs::read_dir("/proc/self/fd").unwrap().filter_map(|link| fs::read_link(link.ok()?.path()).ok());
        links.filter(|link| *link == *path).count()
    };
    let another = store.handle();
    drop(store);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(open(), 1, "closed, although there is a handle");
    drop(another);
    let start = Instant::now();
    while open() > 0 {
        assert!(start.elapsed() < Duration::from_secs(20), "still open");
        std::thread::yield_now();
    }
}
