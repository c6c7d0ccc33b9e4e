//! Memory for requests, and work that is waited for.
#![allow(dead_code, reason = "the test of a full disk uses some of it")]

use std::fmt::Write as _;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use disk::Options;
use hypercall::mem::{PAGE_SIZE, PageBuf, Shared};
use mock::{Config, Domain, DomainConfig, Machine};
use xbd::back::{Parts, Started, Store, StoreFault, Token, Work};

/// The outcome of some work.
pub(crate) type Outcome = Result<(), StoreFault>;

/// Pages of a domain of the mock.
pub(crate) struct Area {
    pages: PageBuf<Domain>,
}

impl Area {
    pub(crate) fn new(pages: usize) -> Self {
        let machine = Machine::new(Config::deterministic(1));
        let domain = machine.create(DomainConfig::default());
        Self { pages: PageBuf::new(&domain, pages * PAGE_SIZE).unwrap() }
    }

    /// Returns one part of each of these lengths, each on pages of its own, `skew` bytes behind the page's beginning.
    pub(crate) fn parts(&self, lengths: &[usize], skew: usize) -> Vec<Shared<'_>> {
        let mut page = 0;
        let parts = lengths.iter().map(|&len| {
            let part = self.pages.shared().slice(page * PAGE_SIZE + skew, len);
            page += (skew + len).div_ceil(PAGE_SIZE);
            part
        });
        parts.collect()
    }
}

pub(crate) fn fill(parts: &[Shared<'_>], mut bytes: &[u8]) {
    for part in parts {
        let (now, rest) = bytes.split_at(part.len());
        part.write(0, now);
        bytes = rest;
    }
}

pub(crate) fn contents(parts: &[Shared<'_>]) -> Vec<u8> {
    let each = parts.iter().map(|part| {
        let mut bytes = vec![0; part.len()];
        part.read(0, &mut bytes);
        bytes
    });
    each.collect::<Vec<_>>().concat()
}

/// Starts some work and waits for its end.
pub(crate) fn run<S: Store>(store: &mut S, work: Work<'_>) -> Outcome {
    match store.start(Token(9), work) {
        Started::Done(result) => result,
        Started::Pending => {
            let (token, result) = next(store);
            assert_eq!(token, Token(9));
            result
        }
    }
}

/// Waits for whatever ends next.
pub(crate) fn next<S: Store>(store: &mut S) -> (Token, Outcome) {
    let start = Instant::now();
    loop {
        if let Some(finished) = store.completed() {
            return finished;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "nothing ends");
        std::thread::yield_now();
    }
}

pub(crate) fn write<S: Store>(store: &mut S, sector: u64, bytes: &[u8]) -> Outcome {
    let area = Area::new(bytes.len().div_ceil(PAGE_SIZE));
    let parts = area.parts(&[bytes.len()], 0);
    fill(&parts, bytes);
    run(store, Work::Write { sector, parts: Parts::new(&parts) })
}

pub(crate) fn read<S: Store>(store: &mut S, sector: u64, len: usize) -> Result<Vec<u8>, StoreFault> {
    let area = Area::new(len.div_ceil(PAGE_SIZE));
    let parts = area.parts(&[len], 0);
    run(store, Work::Read { sector, parts: Parts::new(&parts) })?;
    Ok(contents(&parts))
}

pub(crate) fn discard<S: Store>(store: &mut S, sector: u64, sectors: u64) -> Outcome {
    run(store, Work::Discard { sector, sectors, secure: false })
}

/// Options whose log is kept.
pub(crate) fn logged(options: Options) -> (Options, Arc<Mutex<String>>) {
    let lines = Arc::new(Mutex::new(String::new()));
    let to = lines.clone();
    let log = Arc::new(move |line: std::fmt::Arguments<'_>| writeln!(to.lock().unwrap(), "{line}").unwrap());
    (Options { log, ..options }, lines)
}
