//! The guest of a Linux dom0 that saves and restores it: keeps both its disks busy all the time, checks all that it reads, and lets itself
//! be suspended in the middle of that: `saved`.
//!
//! At the end of each disk is an area of blocks. Each block is written and read in turn, in rounds: what a word holds tells the round and
//! the word's place. When the toolstack asks for the end, the blocks that lag behind catch up, so that what the disks hold then is known
//! by the number of rounds.

use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use hypercall::Platform;
use hypercall::mem::{PAGE_SIZE, PageBuf};
use sha2::{Digest, Sha256};
use suite::block::{XVDA, hex};
use suite::exec::{Program, run as run_programs};
use suite::node::{Node, Own};
use suite::{Context, Failure, ensure};
use xbd::SECTOR;
use xbd::front::{Change, Completion, Config, Front, Queue, Returned, SubmitError};
use xbd::protocol::Operation;
use xenbus::domain::Services;

use super::Args;
use super::outside::{self, Administrator, Outside};
use crate::boot::start_info;
use crate::suspend::{Outcome, suspend};
use crate::{Bare, println};

/// Bytes and sectors of a block: more pages than a request has segments, so that requests are indirect where the back end takes such.
const BLOCK: usize = 16 * PAGE_SIZE;
const BLOCK_SECTORS: u64 = (BLOCK / SECTOR) as u64;
/// Blocks of a disk's area: twice what is in flight at most.
const BLOCKS: usize = 64;

/// The disks: name, number, and whether data goes by way of pages that stay granted. Neither way may lose anything.
const DISKS: [(&str, u32, bool); 2] = [("xvda", XVDA, true), ("xvdb", XVDA + 16, false)];

/// How often the program says that it is at work.
const TALK_NS: u64 = 1_000_000_000;

pub(super) fn run(_: &Args<'_>) -> Result<(), String> {
    let node = outside::node()?;
    let life = Program::new("domU", live(&node));
    run_programs(core::slice::from_ref(&node), &mut Outside, [life].into()).map_err(|failure| failure.to_string())?;
    match node.allocations() {
        0 => Ok(()),
        count => Err(format!("{count} allocation(s) on the data path")),
    }
}

async fn live(node: &Node<Bare>) -> Result<(), Failure> {
    let administrator = Administrator::new(node)?;
    let mut disks = Vec::new();
    for (name, number, persistent) in DISKS {
        disks.push(Disk::attach(node, name, number, persistent).await?);
    }
    println!("xenlab: ready");
    let mut last_said = Bare.now_ns();
    loop {
        let seen = node.happened();
        let mut again = false;
        for disk in &mut disks {
            again |= disk.work()?;
        }
        match administrator.asked()?.as_deref() {
            None => {}
            Some("suspend") => {
                be_saved(node, &mut disks)?;
                again = true;
            }
            Some(_) => disks.iter_mut().for_each(Disk::finish),
        }
        if disks.iter().all(Disk::is_done) {
            break;
        }
        let now = Bare.now_ns();
        if now.saturating_sub(last_said) > TALK_NS {
            last_said = now;
            println!("xenlab: busy, {} blocks read as written", disks.iter().map(|disk| disk.verified).sum::<u64>());
        }
        if again {
            node.pause().await;
        } else if node.happened() == seen {
            node.turn().await;
        }
    }
    for mut disk in disks {
        let sum = disk.sha256().await?;
        println!("xenlab: {} rounds {} sha256 {}", disk.name, disk.steps[0] / 2, hex(&sum));
        disk.close().await?;
    }
    let stats = node.own().grants.stats();
    let clean = stats.leaked_refs == 0 && stats.leaked_pages == 0 && stats.quarantined_refs == 0;
    ensure(clean, format_args!("the grant table at the end: {stats:?}"))
}

/// Lets the toolstack save the domain, and goes on in whatever it becomes.
fn be_saved(node: &Node<Bare>, disks: &mut [Disk]) -> Result<(), Failure> {
    let Services { events, grants, store, .. } = node.own();
    let counts: Vec<usize> = disks.iter_mut().map(Disk::in_flight).collect();
    store.suspend().context("suspend the store")?;
    // SAFETY: nothing happens in the domain but this until the table is there again.
    unsafe { grants.suspend() }.context("suspend the grant table")?;
    let outcome = suspend().context("suspend")?;
    if outcome == Outcome::Restored {
        events.resume();
    }
    grants.resume().context("resume the grant table")?;
    if outcome == Outcome::Cancelled {
        store.cancel_suspend();
        println!("xenlab: resumed cancelled, in flight{}", words(&counts));
        return Ok(());
    }
    store.reconnect(start_info().store_evtchn).context("reconnect the store")?;
    let mut again = Vec::new();
    for (disk, count) in disks.iter_mut().zip(&counts) {
        disk.front.resume(|completion| disk.finished.push(completion)).context(disk.name)?;
        // What the old back end had answered is over.
        again.push(count - disk.finished.len());
    }
    println!("xenlab: resumed restored, in flight{}, sent again{}", words(&counts), words(&again));
    Ok(())
}

fn words(counts: &[usize]) -> String {
    counts.iter().map(|count| format!(" {count}")).collect()
}

/// What is in flight: a block of the area, or the sector of another read, and the data.
type Io = (usize, Option<PageBuf<Bare>>);

/// A disk, and what is done to it.
struct Disk {
    node: Node<Bare>,
    name: &'static str,
    front: Front<Own<Bare>, Io>,
    /// First sector of the area.
    area: u64,
    /// Steps that each block has done: an even one is a write, and an odd one a read of what that wrote.
    steps: Vec<u32>,
    /// Blocks whose next step nobody has begun.
    idle: VecDeque<usize>,
    /// The step before which each block stops.
    end: u32,
    spare: Vec<PageBuf<Bare>>,
    finished: Vec<Completion<Io>>,
    /// How many blocks were read, and held what was written.
    verified: u64,
}

impl Disk {
    /// Attaches a disk that the toolstack has made.
    async fn attach(node: &Node<Bare>, name: &'static str, number: u32, persistent: bool) -> Result<Self, Failure> {
        let config = Config { persistent, ..Config::default() };
        let mut front = Front::new(node.own(), &format!("device/vbd/{number}"), config).context(name)?;
        let sectors = loop {
            let seen = node.happened();
            if front.device().changed()
                && let Change::Connected(disk) = front.step(drop).context(name)?
            {
                break disk.sectors;
            }
            if node.happened() == seen {
                node.turn().await;
            }
        };
        let area = sectors.checked_sub(BLOCKS as u64 * BLOCK_SECTORS);
        let area = area.ok_or_else(|| Failure(format!("{name} has {sectors} sectors only")))?;
        // All that the data path needs is made before.
        let mut spare = Vec::with_capacity(BLOCKS);
        for _ in 0..BLOCKS {
            spare.push(PageBuf::new(&Bare, BLOCK).context("buffer")?);
        }
        Ok(Self {
            node: node.clone(),
            name,
            front,
            area,
            steps: alloc::vec![0; BLOCKS],
            idle: (0..BLOCKS).collect(),
            end: u32::MAX,
            spare,
            finished: Vec::with_capacity(BLOCKS),
            verified: 0,
        })
    }

    /// Does what there is to do now, and leaves as much in flight as the disk takes. Returns whether there is more to be done soon, though
    /// nothing will tell of it.
    fn work(&mut self) -> Result<bool, Failure> {
        self.follow()?;
        self.poll()?;
        for Completion { buffer, result } in self.finished.drain(..) {
            let (Returned::Whole((block, Some(buffer))), Ok(())) = (buffer, result) else {
                return Err(Failure(format!("{}: {result:?}", self.name)));
            };
            let step = self.steps[block];
            if !step.is_multiple_of(2) {
                check(self.name, block, step / 2, &buffer)?;
                self.verified += 1;
            }
            self.steps[block] = step + 1;
            self.idle.push_back(block);
            self.spare.push(buffer);
        }
        for _ in 0..self.idle.len() {
            let Some(block) = self.idle.pop_front() else { break };
            let step = self.steps[block];
            if step >= self.end {
                self.idle.push_back(block);
            } else if !self.begin(block, step)? {
                self.idle.push_front(block);
                break;
            }
        }
        if let Some(queue) = self.front.queue(0) {
            self.node.metered(|| queue.push());
        }
        Ok(self.front.is_waiting())
    }

    /// Begins a step of a block; `false` if the disk doesn't take it now.
    fn begin(&mut self, block: usize, step: u32) -> Result<bool, Failure> {
        let Some(buffer) = self.spare.pop() else { return Ok(false) };
        let operation = if step.is_multiple_of(2) { Operation::Write } else { Operation::Read };
        if operation == Operation::Write {
            fill(block, step / 2, &buffer);
        }
        self.submit(operation, self.area + block as u64 * BLOCK_SECTORS, (block, Some(buffer)))
    }

    /// Starts an I/O; `false` if the disk doesn't take it now.
    fn submit(&mut self, operation: Operation, sector: u64, io: Io) -> Result<bool, Failure> {
        let Some(queue) = self.front.queue(0) else {
            self.spare.extend(io.1);
            return Ok(false);
        };
        match self.node.metered(|| queue.submit(operation, sector, io)) {
            Ok(()) => Ok(true),
            Err((SubmitError::Full | SubmitError::NotConnected, (_, buffer))) => {
                self.spare.extend(buffer);
                Ok(false)
            }
            Err((error, _)) => Err(Failure(format!("{}: {operation:?} at {sector}: {error}", self.name))),
        }
    }

    /// Takes what the other end has finished.
    fn poll(&mut self) -> Result<(), Failure> {
        let Some(queue) = self.front.queue(0) else { return Ok(()) };
        if self.node.take(Some(queue.port())) {
            self.node.metered(|| queue.poll(|completion| self.finished.push(completion))).context(self.name)?;
        }
        Ok(())
    }

    /// Goes along with the other end. Nothing may be lost by that.
    fn follow(&mut self) -> Result<(), Failure> {
        if !self.front.device().changed() && !self.front.is_waiting() {
            return Ok(());
        }
        match self.front.step(|completion| self.finished.push(completion)).context(self.name)? {
            Change::CloseWanted | Change::Closed => Err(Failure(format!("{}: the back end goes", self.name))),
            Change::None | Change::Connected(_) | Change::Resized(_) | Change::Reconnecting => Ok(()),
        }
    }

    fn in_flight(&mut self) -> usize {
        self.front.queue(0).map_or(0, |queue| queue.in_flight() as usize)
    }

    /// Lets all blocks come to the end of the same round, that of the foremost: the step that it may be at just now still counts.
    fn finish(&mut self) {
        self.end = self.steps.iter().max().map_or(0, |step| (step + 1).next_multiple_of(2));
    }

    /// Tells whether all blocks are there.
    fn is_done(&self) -> bool {
        self.idle.len() == BLOCKS && self.steps.iter().all(|&step| step == self.end)
    }

    /// Returns the SHA-256 of the whole disk, which is idle.
    async fn sha256(&mut self) -> Result<[u8; 32], Failure> {
        let sectors = self.area + BLOCKS as u64 * BLOCK_SECTORS;
        let mut hash = Sha256::new();
        let mut at = 0;
        while at < sectors {
            let count = (sectors - at).min(BLOCK_SECTORS);
            let buffer = PageBuf::new(&Bare, count as usize * SECTOR).context("buffer")?;
            ensure(self.submit(Operation::Read, at, (0, Some(buffer)))?, "an idle disk takes no read")?;
            self.front.queue(0).into_iter().for_each(Queue::push);
            let done = loop {
                let seen = self.node.happened();
                self.poll()?;
                if let Some(done) = self.finished.pop() {
                    break done;
                }
                if self.node.happened() == seen {
                    self.node.turn().await;
                }
            };
            let (Returned::Whole((_, Some(buffer))), Ok(())) = (done.buffer, done.result) else {
                return Err(Failure(format!("{}: read at {at}: {:?}", self.name, done.result)));
            };
            let mut bytes = alloc::vec![0; buffer.len()];
            buffer.shared().read(0, &mut bytes);
            hash.update(&bytes);
            at += count;
        }
        Ok(hash.finalize().into())
    }

    /// Closes the disk, which is idle, and waits until nothing of it is held any more.
    async fn close(mut self) -> Result<(), Failure> {
        self.front.close().context(self.name)?;
        loop {
            let seen = self.node.happened();
            // Asked even if the other end has not moved: closing goes on by itself.
            self.front.device().changed();
            if self.front.step(drop).context(self.name)? == Change::Closed {
                return Ok(());
            }
            if self.node.happened() == seen {
                self.node.turn().await;
            }
        }
    }
}

/// What a word of the area holds after a round.
const fn word(round: u32, index: usize) -> u64 {
    (round as u64 + 1) << 32 | index as u64
}

/// The words of a block, by their numbers in the area.
const WORDS: usize = BLOCK / size_of::<u64>();

/// Puts what a round writes into a buffer.
fn fill(block: usize, round: u32, buffer: &PageBuf<Bare>) {
    for index in 0..WORDS {
        buffer.shared().write(index * size_of::<u64>(), &word(round, block * WORDS + index).to_le_bytes());
    }
}

/// Compares what was read with what the round has written.
fn check(name: &str, block: usize, round: u32, buffer: &PageBuf<Bare>) -> Result<(), Failure> {
    let mut page = [0; PAGE_SIZE];
    for from in (0..BLOCK).step_by(PAGE_SIZE) {
        buffer.shared().read(from, &mut page);
        for (number, bytes) in page.as_chunks().0.iter().enumerate() {
            let index = block * WORDS + from / size_of::<u64>() + number;
            let (found, wanted) = (u64::from_le_bytes(*bytes), word(round, index));
            ensure(found == wanted, format_args!("{name}: word {index} is {found:#x}, {wanted:#x} was written"))?;
        }
    }
    Ok(())
}
