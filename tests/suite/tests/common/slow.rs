//! A disk that works when it is told to.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::ptr::NonNull;
use std::rc::Rc;

use hypercall::mem::Shared;
use xbd::SECTOR;
use xbd::back::{Parts, Started, Store, StoreFault, Token, Work};
use xbd::features::Discard;
use xbd::protocol::Operation;

/// What a [`Shelf`] has been asked for and not done.
struct Job {
    /// Whose it is.
    handle: u32,
    token: Token,
    operation: Operation,
    sector: u64,
    parts: Vec<(NonNull<u8>, usize)>,
}

/// The inside of a [`Slow`] disk.
pub(crate) struct Shelf {
    pub(crate) bytes: Vec<u8>,
    pub(crate) read_only: bool,
    /// Nothing is finished, but kept until this is taken back.
    pub(crate) hold: bool,
    /// But so many may be finished nevertheless.
    pub(crate) allowed: usize,
    /// Everything fails.
    pub(crate) fail: bool,
    /// What comes last is finished first.
    pub(crate) lifo: bool,
    pub(crate) cache: bool,
    pub(crate) sector_size: u32,
    pub(crate) discard: Option<Discard>,
    pub(crate) started: u64,
    /// What was started, and with "ends" what was finished, with its sector.
    pub(crate) log: Vec<(&'static str, u64)>,
    jobs: VecDeque<Job>,
    handles: u32,
}

impl Shelf {
    pub(crate) fn jobs(&self) -> usize {
        self.jobs.len()
    }

    fn forget(&mut self, sector: u64, sectors: u64, secure: bool) -> Started {
        self.started += 1;
        self.log.push((if secure { "secure" } else { "discard" }, sector));
        if self.discard.is_none_or(|discard| secure && !discard.secure) {
            return Started::Done(Err(StoreFault::NotSupported));
        }
        self.bytes[sector as usize * SECTOR..][..sectors as usize * SECTOR].fill(0);
        Started::Done(Ok(()))
    }

    fn work(&mut self, operation: Operation, sector: u64, parts: &[(NonNull<u8>, usize)]) -> Result<(), StoreFault> {
        if self.fail {
            return Err(StoreFault::Failed);
        }
        let mut at = sector as usize * SECTOR;
        for (va, len) in parts {
            // SAFETY: the back end keeps the parts mapped until the token is named; the front end sees them through atomics.
            let part = unsafe { Shared::new(*va, *len) };
            match operation {
                Operation::Read => part.write(0, &self.bytes[at..at + len]),
                Operation::Write => part.read(0, &mut self.bytes[at..at + len]),
                _ => {}
            }
            at += len;
        }
        Ok(())
    }
}

/// A disk in memory that works when it is told to: a handle of it, with its number.
#[derive(Clone)]
pub(crate) struct Slow(pub(crate) Rc<RefCell<Shelf>>, u32);

impl Slow {
    pub(crate) fn new(sectors: usize) -> Self {
        let bytes = (0..sectors * SECTOR).map(|at| (at / SECTOR * 7 + at) as u8).collect();
        let shelf = Shelf {
            bytes,
            read_only: false,
            hold: false,
            allowed: 0,
            fail: false,
            lifo: false,
            cache: true,
            sector_size: SECTOR as u32,
            discard: None,
            started: 0,
            log: Vec::new(),
            jobs: VecDeque::new(),
            handles: 0,
        };
        Self(Rc::new(RefCell::new(shelf)), 0)
    }

    pub(crate) fn hold(&self, hold: bool) {
        self.0.borrow_mut().hold = hold;
    }
}

impl Store for Slow {
    fn handle(&self) -> Self {
        let mut shelf = self.0.borrow_mut();
        shelf.handles += 1;
        Self(self.0.clone(), shelf.handles)
    }

    fn sectors(&self) -> u64 {
        (self.0.borrow().bytes.len() / SECTOR) as u64
    }

    fn sector_size(&self) -> u32 {
        self.0.borrow().sector_size
    }

    fn read_only(&self) -> bool {
        self.0.borrow().read_only
    }

    fn has_cache(&self) -> bool {
        self.0.borrow().cache
    }

    fn discard(&self) -> Option<Discard> {
        self.0.borrow().discard
    }

    fn start(&mut self, token: Token, work: Work<'_>) -> Started {
        let (operation, sector, parts) = match work {
            Work::Read { sector, parts } => (Operation::Read, sector, parts),
            Work::Write { sector, parts } => (Operation::Write, sector, parts),
            Work::Flush => (Operation::Flush, 0, Parts::new(&[])),
            Work::Discard { sector, sectors, secure } => return self.0.borrow_mut().forget(sector, sectors, secure),
        };
        let parts: Vec<_> = parts.iter().map(|part| (part.as_ptr(), part.len())).collect();
        let mut shelf = self.0.borrow_mut();
        shelf.started += 1;
        let name = match operation {
            Operation::Read => "read",
            Operation::Write => "write",
            _ => "flush",
        };
        shelf.log.push((name, sector));
        if !shelf.hold {
            return Started::Done(shelf.work(operation, sector, &parts));
        }
        shelf.jobs.push_back(Job { handle: self.1, token, operation, sector, parts });
        Started::Pending
    }

    fn completed(&mut self) -> Option<(Token, Result<(), StoreFault>)> {
        let mut shelf = self.0.borrow_mut();
        // The first has those of all.
        let mine = |job: &Job| self.1 == 0 || job.handle == self.1;
        let at = if shelf.lifo { shelf.jobs.iter().rposition(mine) } else { shelf.jobs.iter().position(mine) }?;
        if shelf.hold {
            shelf.allowed = shelf.allowed.checked_sub(1)?;
        }
        let job = shelf.jobs.remove(at)?;
        shelf.log.push(("ends", job.sector));
        let result = shelf.work(job.operation, job.sector, &job.parts);
        Some((job.token, result))
    }
}
