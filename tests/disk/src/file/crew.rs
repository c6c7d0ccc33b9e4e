//! Threads that work for the handles of a disk.

use std::io;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Waker;

use hypercall::mem::Shared;
use xbd::back::{Parts, StoreFault, Token, Work};

use super::image::Image;
use super::transfer::Bounce;

/// How work is done besides its owner's thread.
#[derive(Clone, Debug)]
pub struct Workers {
    /// How many threads; at least 1.
    pub threads: usize,
    /// How much work waits for them at most. What is started beyond that is done by who starts it.
    pub queue: usize,
    /// Who is to be woken whenever some work is over: any of the disk's handles may have completed something then.
    pub waker: Option<Waker>,
}

impl Default for Workers {
    fn default() -> Self {
        Self { threads: 4, queue: 256, waker: None }
    }
}

/// What work was, and how it ended.
pub(crate) struct Finished {
    pub(crate) token: Token,
    pub(crate) result: Result<(), StoreFault>,
    /// Room for the parts of another.
    room: Vec<Shared<'static>>,
}

enum Wanted {
    Read { sector: u64 },
    Write { sector: u64 },
    Flush,
    Discard { sector: u64, sectors: u64, secure: bool },
}

/// Some work on its way. However it ends, its handle is told.
struct Job {
    token: Token,
    wanted: Wanted,
    parts: Vec<Shared<'static>>,
    result: Result<(), StoreFault>,
    to: Sender<Finished>,
}

impl Job {
    fn run(mut self, image: &Image, bounce: &mut Bounce) {
        let parts = Parts::new(&self.parts);
        let work = match self.wanted {
            Wanted::Read { sector } => Work::Read { sector, parts },
            Wanted::Write { sector } => Work::Write { sector, parts },
            Wanted::Flush => Work::Flush,
            Wanted::Discard { sector, sectors, secure } => Work::Discard { sector, sectors, secure },
        };
        self.result = image.run(work, bounce);
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        let room = std::mem::take(&mut self.parts);
        // A handle waits for all that it has started, so it is there.
        let _ = self.to.send(Finished { token: self.token, result: self.result, room });
    }
}

/// A handle's place at the threads. The threads end when the last is gone.
pub(crate) struct Desk {
    jobs: SyncSender<Job>,
    waker: Option<Waker>,
    to: Sender<Finished>,
    finished: Receiver<Finished>,
    in_flight: usize,
    spare: Vec<Vec<Shared<'static>>>,
}

impl Desk {
    /// Starts the threads.
    pub(crate) fn open(image: &Arc<Image>, workers: &Workers) -> io::Result<Self> {
        let (jobs, queue) = sync_channel(workers.queue.max(1));
        let queue = Arc::new(Mutex::new(queue));
        for number in 0..workers.threads.max(1) {
            let (image, queue, waker) = (image.clone(), queue.clone(), workers.waker.clone());
            std::thread::Builder::new().name(format!("disk {number}")).spawn(move || work(&image, &queue, waker))?;
        }
        Ok(Self::at(jobs, workers.waker.clone()))
    }

    /// Opens another, for another handle.
    pub(crate) fn another(&self) -> Self {
        Self::at(self.jobs.clone(), self.waker.clone())
    }

    fn at(jobs: SyncSender<Job>, waker: Option<Waker>) -> Self {
        let (to, finished) = channel();
        Self { jobs, waker, to, finished, in_flight: 0, spare: Vec::new() }
    }

    /// Hands some work to the threads, or does it if they have too much already. Either way [`next`](Self::next) tells.
    ///
    /// # Safety
    /// The memory of the parts stays mapped until `next` names the token, or the desk is dropped.
    pub(crate) unsafe fn start(&mut self, token: Token, work: Work<'_>, image: &Image, bounce: &mut Bounce) {
        let mut room = self.spare.pop().unwrap_or_default();
        room.clear();
        let mut keep = |parts: Parts<'_>| {
            room.extend(parts.iter().map(|part| {
                let (va, len) = (part.as_ptr(), part.len());
                if part.is_writable() {
                    // SAFETY: the caller vouches for it as long as any thread uses it.
                    unsafe { Shared::new(va, len) }
                } else {
                    // SAFETY: as above.
                    unsafe { Shared::read_only(va, len) }
                }
            }));
        };
        let wanted = match work {
            Work::Read { sector, parts } => {
                keep(parts);
                Wanted::Read { sector }
            }
            Work::Write { sector, parts } => {
                keep(parts);
                Wanted::Write { sector }
            }
            Work::Flush => Wanted::Flush,
            Work::Discard { sector, sectors, secure } => Wanted::Discard { sector, sectors, secure },
        };
        self.in_flight += 1;
        let job = Job { token, wanted, parts: room, result: Err(StoreFault::Failed), to: self.to.clone() };
        if let Err(refused) = self.jobs.try_send(job) {
            use std::sync::mpsc::TrySendError::{Disconnected, Full};
            let (Full(job) | Disconnected(job)) = refused;
            job.run(image, bounce);
            // It is over, but who asked is told that it isn't yet.
            self.waker.iter().for_each(Waker::wake_by_ref);
        }
    }

    /// Returns what is over, if anything is.
    pub(crate) fn next(&mut self) -> Option<Finished> {
        let mut finished = self.finished.try_recv().ok()?;
        self.in_flight -= 1;
        self.spare.push(std::mem::take(&mut finished.room));
        Some(finished)
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        // What the threads still use is mapped no longer than this.
        for _ in 0..self.in_flight {
            let _ = self.finished.recv();
        }
    }
}

fn work(image: &Image, queue: &Mutex<Receiver<Job>>, waker: Option<Waker>) {
    let mut bounce = image.bounce();
    loop {
        // The lock is held while waiting, so that one thread takes one job, and no longer.
        let taken = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = taken else { return };
        job.run(image, &mut bounce);
        waker.iter().for_each(Waker::wake_by_ref);
    }
}
