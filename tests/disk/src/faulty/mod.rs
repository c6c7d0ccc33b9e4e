//! A store that goes wrong on order.

mod cache;
mod plan;

use std::ops::Range;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hypercall::mem::Shared;
use rand::Rng;
use xbd::SECTOR;
use xbd::back::{Parts, Started, Store, StoreFault, Token, Work};
use xbd::features::Discard;

pub use plan::{Kind, Plan, Rule};

use cache::{Cache, Stamp};
use plan::Course;

/// What a [`Faulty`] has done so far, by all its handles.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Reads that were asked for.
    pub reads: u64,
    /// Writes that were asked for.
    pub writes: u64,
    /// Flushes that were asked for.
    pub flushes: u64,
    /// Discards that were asked for.
    pub discards: u64,
    /// Work that failed because of a rule.
    pub failed: u64,
    /// Work that lay beyond the end of a disk that was [cut](Faulty::truncate).
    pub beyond_end: u64,
    /// Work that was named later than it could have been.
    pub delayed: u64,
    /// Work that was named before what was started, and could have been named, earlier.
    pub overtaking: u64,
    /// Sectors of the disk's own size that have lost what was written last to them, in crashes.
    pub lost_sectors: u64,
}

/// A handle of a disk that is another, but goes wrong as its [`Plan`] says.
///
/// Any handle serves to order faults, so a test keeps [one more](Store::handle) when it gives its disk to a back end. Nothing runs
/// beside: all happens in the calls, and with a store beneath that is deterministic, so is this.
///
/// # What a crash leaves
///
/// As of a real disk with a cache: a write is durable when a flush was completed that was started after the write was completed, where
/// *completed* is what the handle's owner was told. A sector of the disk's own size has one of the contents that it was given since, or
/// that which is durable, each drawn by lot: so writes are lost, torn, and arrive in another order than they were completed in. A discarded
/// sector counts as one that was written with zeroes. [`Faulty::crash`] says what becomes of the handles.
///
/// Writes are copied before they are written, so that it is known what they wrote; this store allocates.
pub struct Faulty<S: Store> {
    disk: Arc<Mutex<Disk<S>>>,
    number: usize,
}

struct Disk<S> {
    /// For what is read and written on our own behalf.
    own: S,
    seats: Vec<Option<Seat<S>>>,
    course: Course,
    cache: Cache,
    /// Its end, if that of the store beneath is not nearer.
    end: u64,
    counters: Counters,
}

/// What a handle has started.
struct Seat<S> {
    /// Dropped before the memory that it may still work on.
    store: S,
    jobs: Vec<Job>,
    /// It was there before the power failed.
    dead: bool,
}

struct Job {
    token: Token,
    after: After,
    result: Option<Result<(), StoreFault>>,
    /// Calls of `completed` that still pass over it.
    delay: u32,
    /// What is being written.
    _kept: Option<Kept>,
}

/// What follows when the owner is told that the work went well.
#[derive(Clone, Copy)]
enum After {
    Nothing,
    Written(Stamp),
    Flushed { began: u64 },
}

/// Memory of our own, as stores want it.
struct Kept(Box<[AtomicU8]>);

impl Kept {
    fn new(bytes: &[u8]) -> Self {
        Self(bytes.iter().map(|byte| AtomicU8::new(*byte)).collect())
    }

    fn view(&self) -> Shared<'_> {
        let first = NonNull::from(&*self.0).cast();
        // SAFETY: the bytes are atomics, and live as long as the borrow. A store that works on them longer has them kept in its `Job`.
        unsafe { Shared::new(first, self.0.len()) }
    }

    fn bytes(&self) -> Vec<u8> {
        self.0.iter().map(|byte| byte.load(Relaxed)).collect()
    }
}

impl<S: Store> Faulty<S> {
    /// Makes it of a disk, on which nothing is under way.
    pub fn new(store: S, plan: Plan) -> Self {
        let seats = vec![Some(Seat::new(store.handle()))];
        let (course, cache, counters) = (Course::new(plan), Cache::default(), Counters::default());
        Self {
            disk: Arc::new(Mutex::new(Disk { own: store, seats, course, cache, end: u64::MAX, counters })),
            number: 0,
        }
    }

    /// Goes by another plan from now on. What was started keeps its fate.
    pub fn set_plan(&self, plan: Plan) {
        self.disk().course = Course::new(plan);
    }

    /// Cuts the disk: what lies beyond so many sectors of 512 bytes fails, and [`sectors`](Store::sectors) says so. It is whole again with
    /// `u64::MAX`.
    pub fn truncate(&self, sectors: u64) {
        self.disk().end = sectors;
    }

    /// Returns what was done so far.
    pub fn counters(&self) -> Counters {
        self.disk().counters
    }

    /// Lets `look` see the disk beneath. That all which was written shows there is no promise of its durability.
    pub fn look<T>(&self, look: impl FnOnce(&S) -> T) -> T {
        look(&self.disk().own)
    }

    /// Lets the power fail. All handles are dead from now on: what they had under way, and whatever they start, fails. Returns a handle of
    /// what is left on the disk.
    ///
    /// # Errors
    /// If the disk beneath can't be written.
    pub fn crash(&self) -> Result<Self, StoreFault> {
        let mut disk = self.disk();
        disk.crash()?;
        let number = disk.sit_down();
        drop(disk);
        Ok(Self { disk: self.disk.clone(), number })
    }

    fn disk(&self) -> MutexGuard<'_, Disk<S>> {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: Store> Seat<S> {
    fn new(store: S) -> Self {
        Self { store, jobs: Vec::new(), dead: false }
    }

    /// Learns what the store has finished.
    fn collect(&mut self) {
        while let Some((token, result)) = self.store.completed() {
            let job = self.jobs.iter_mut().find(|job| job.token == token && job.result.is_none());
            if let Some(job) = job {
                job.result = Some(result);
            }
        }
    }
}

impl<S: Store> Disk<S> {
    fn sit_down(&mut self) -> usize {
        self.seats.push(Some(Seat::new(self.own.handle())));
        self.seats.len() - 1
    }

    fn sectors(&self) -> u64 {
        self.own.sectors().min(self.end)
    }

    /// Begins work that no rule is against.
    fn start(&mut self, number: usize, token: Token, work: Work<'_>) -> (Started, After, Option<Kept>) {
        let sector_size = self.own.sector_size() as usize;
        let unit = |sector: u64| sector * SECTOR as u64 / sector_size as u64;
        let begin = |this: &mut Self, sector: u64, contents: &[u8]| {
            let first = unit(sector);
            let all = first..first + (contents.len() / sector_size) as u64;
            for sector in this.cache.unknown(all).collect::<Vec<_>>() {
                let durable = this.fetch(sector)?;
                this.cache.learn(sector, durable);
            }
            Ok(this.cache.begin(first, contents, sector_size))
        };
        let failed = |fault| (Started::Done(Err(fault)), After::Nothing, None);
        let (after, kept) = match work {
            Work::Read { .. } => (After::Nothing, None),
            Work::Flush => (After::Flushed { began: self.cache.now() }, None),
            Work::Write { sector, parts } => {
                let mut contents = vec![0; parts.len()];
                let mut rest = contents.as_mut_slice();
                for part in parts.iter() {
                    let (now, later) = rest.split_at_mut(part.len());
                    part.read(0, now);
                    rest = later;
                }
                match begin(self, sector, &contents) {
                    Ok(stamp) => (After::Written(stamp), Some(Kept::new(&contents))),
                    Err(fault) => return failed(fault),
                }
            }
            Work::Discard { sector, sectors, .. } => match begin(self, sector, &vec![0; sectors as usize * SECTOR]) {
                Ok(stamp) => (After::Written(stamp), None),
                Err(fault) => return failed(fault),
            },
        };
        let Some(seat) = self.seats[number].as_mut() else { return failed(StoreFault::Failed) };
        let started = match (work, &kept) {
            (Work::Write { sector, .. }, Some(kept)) => {
                seat.store.start(token, Work::Write { sector, parts: Parts::new(&[kept.view()]) })
            }
            (work, _) => seat.store.start(token, work),
        };
        (started, after, kept)
    }

    /// Follows what an owner is told.
    fn told(&mut self, after: After, result: Result<(), StoreFault>) {
        match (after, result) {
            (After::Written(stamp), Ok(())) => self.cache.told(stamp),
            (After::Flushed { began }, Ok(())) => self.cache.flushed(began),
            // What failed may be there or not, and no flush is about it.
            _ => {}
        }
    }

    fn crash(&mut self) -> Result<(), StoreFault> {
        for seat in self.seats.iter_mut().flatten() {
            // What the store beneath still does would come too late into what is left.
            while seat.jobs.iter().any(|job| job.result.is_none()) {
                seat.collect();
                std::thread::yield_now();
            }
            for job in &mut seat.jobs {
                (job.result, job.after) = (Some(Err(StoreFault::Failed)), After::Nothing);
            }
            seat.dead = true;
        }
        let (left, lost) = self.cache.fail(&mut self.course.lots);
        self.counters.lost_sectors += lost;
        for (sector, bytes) in left {
            let kept = Kept::new(&bytes);
            let sector = sector * (bytes.len() / SECTOR) as u64;
            self.on_our_own(Work::Write { sector, parts: Parts::new(&[kept.view()]) })?;
        }
        Ok(())
    }

    /// Reads a sector of the disk's own size.
    fn fetch(&mut self, sector: u64) -> Result<Vec<u8>, StoreFault> {
        let kept = Kept::new(&vec![0; self.own.sector_size() as usize]);
        let sector = sector * u64::from(self.own.sector_size()) / SECTOR as u64;
        self.on_our_own(Work::Read { sector, parts: Parts::new(&[kept.view()]) })?;
        Ok(kept.bytes())
    }

    /// Does some work at once.
    fn on_our_own(&mut self, work: Work<'_>) -> Result<(), StoreFault> {
        match self.own.start(Token(0), work) {
            Started::Done(result) => result,
            Started::Pending => loop {
                if let Some((_, result)) = self.own.completed() {
                    return result;
                }
                std::thread::yield_now();
            },
        }
    }
}

/// Returns the sectors that some work touches.
fn touched(work: &Work<'_>) -> Range<u64> {
    match *work {
        Work::Read { sector, parts } | Work::Write { sector, parts } => {
            sector..sector.saturating_add((parts.len() / SECTOR) as u64)
        }
        Work::Flush => 0..u64::MAX,
        Work::Discard { sector, sectors, .. } => sector..sector.saturating_add(sectors),
    }
}

impl<S: Store> Store for Faulty<S> {
    fn handle(&self) -> Self {
        let number = self.disk().sit_down();
        Self { disk: self.disk.clone(), number }
    }

    fn sectors(&self) -> u64 {
        self.disk().sectors()
    }

    fn sector_size(&self) -> u32 {
        self.disk().own.sector_size()
    }

    fn physical_sector_size(&self) -> u32 {
        self.disk().own.physical_sector_size()
    }

    fn read_only(&self) -> bool {
        self.disk().own.read_only()
    }

    fn has_cache(&self) -> bool {
        self.disk().own.has_cache()
    }

    fn discard(&self) -> Option<Discard> {
        self.disk().own.discard()
    }

    fn start(&mut self, token: Token, work: Work<'_>) -> Started {
        let mut disk = self.disk();
        let disk = &mut *disk;
        let (kind, sectors) = (Kind::of(&work), touched(&work));
        match kind {
            Kind::Read => disk.counters.reads += 1,
            Kind::Write => disk.counters.writes += 1,
            Kind::Flush => disk.counters.flushes += 1,
            Kind::Discard => disk.counters.discards += 1,
        }
        if disk.seats[self.number].as_ref().is_none_or(|seat| seat.dead) {
            return Started::Done(Err(StoreFault::Failed));
        }
        let (started, after, kept) = if let Some(fault) = disk.course.fault(kind, &sectors) {
            disk.counters.failed += 1;
            (Started::Done(Err(fault)), After::Nothing, None)
        } else if kind != Kind::Flush && sectors.end > disk.sectors() {
            disk.counters.beyond_end += 1;
            (Started::Done(Err(StoreFault::Failed)), After::Nothing, None)
        } else {
            disk.start(self.number, token, work)
        };
        let delay = disk.course.delay();
        let result = match started {
            Started::Done(result) if delay == 0 => {
                disk.told(after, result);
                return started;
            }
            Started::Done(result) => Some(result),
            Started::Pending => None,
        };
        if let Some(seat) = &mut disk.seats[self.number] {
            seat.jobs.push(Job { token, after, result, delay, _kept: kept });
        }
        Started::Pending
    }

    fn completed(&mut self) -> Option<(Token, Result<(), StoreFault>)> {
        let mut disk = self.disk();
        let disk = &mut *disk;
        let seat = disk.seats[self.number].as_mut()?;
        seat.collect();
        let mut ready = Vec::new();
        for (index, job) in seat.jobs.iter_mut().enumerate() {
            match job.result {
                Some(_) if job.delay == 0 || seat.dead => ready.push(index),
                Some(_) => {
                    job.delay -= 1;
                    disk.counters.delayed += u64::from(job.delay == 0);
                }
                None => {}
            }
        }
        let last = ready.len().checked_sub(1)?;
        let chosen = if disk.course.plan.reorder { disk.course.lots.random_range(0..=last) } else { 0 };
        disk.counters.overtaking += u64::from(chosen > 0);
        let job = seat.jobs.remove(ready[chosen]);
        let result = job.result?;
        disk.told(job.after, result);
        Some((job.token, result))
    }
}

impl<S: Store> Drop for Faulty<S> {
    fn drop(&mut self) {
        let seat = self.disk().seats[self.number].take();
        drop(seat);
    }
}
