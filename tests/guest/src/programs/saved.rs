//! The guest of a Linux dom0 that saves and restores it: keeps both its disks busy all the time, by two queues each, checks all that it
//! reads, and lets itself be suspended in the middle of that: `saved`.
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
use suite::block::{Client, Io, XVDA, hex};
use suite::exec::{Program, run as run_programs};
use suite::node::Node;
use suite::{Context, Failure, ensure};
use xbd::SECTOR;
use xbd::front::{Completion, Config, Returned, SubmitError};
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

/// Queues of a disk.
const QUEUES: usize = 2;

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
        for disk in &mut disks {
            disk.work()?;
        }
        let mut again = false;
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
        if !again && node.happened() == seen {
            node.turn().await;
        } else {
            node.pause().await;
        }
    }
    for Disk { name, mut client, steps, .. } in disks {
        let sum = client.sha256().await.context(name)?;
        println!("xenlab: {name} rounds {} sha256 {}", steps[0] / 2, hex(&sum));
        client.close().await.context(name)?;
    }
    let stats = node.own().grants.stats();
    let clean = stats.leaked_refs == 0 && stats.leaked_pages == 0 && stats.quarantined_refs == 0;
    ensure(clean, format_args!("the grant table at the end: {stats:?}"))
}

/// Lets the toolstack save the domain, and goes on in whatever it becomes.
fn be_saved(node: &Node<Bare>, disks: &mut [Disk]) -> Result<(), Failure> {
    let Services { events, grants, store, .. } = node.own();
    // Of each queue of each disk.
    let counts: Vec<usize> = disks.iter_mut().flat_map(Disk::in_flight).collect();
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
    for (disk, counts) in disks.iter_mut().zip(counts.as_chunks::<QUEUES>().0) {
        // It sees that the domain has come back. What the old back end had answered is over.
        disk.poll()?;
        again.push(counts.iter().sum::<usize>() - disk.finished.len());
    }
    println!("xenlab: resumed restored, in flight{}, sent again{}", words(&counts), words(&again));
    Ok(())
}

fn words(counts: &[usize]) -> String {
    counts.iter().map(|count| format!(" {count}")).collect()
}

/// A disk, and what is done to it. An I/O has the number of its block.
struct Disk {
    node: Node<Bare>,
    name: &'static str,
    client: Client<Bare>,
    /// First sector of the area.
    area: u64,
    /// Steps that each block has done: an even one is a write, and an odd one a read of what that wrote.
    steps: Vec<u32>,
    /// The queue whose turn it is.
    queue: usize,
    /// Blocks whose next step nobody has begun.
    idle: VecDeque<usize>,
    /// The step before which each block stops.
    end: u32,
    spare: Vec<PageBuf<Bare>>,
    finished: Vec<Completion<Io<Bare>>>,
    /// How many blocks were read, and held what was written.
    verified: u64,
}

impl Disk {
    /// Attaches a disk that the toolstack has made.
    async fn attach(node: &Node<Bare>, name: &'static str, number: u32, persistent: bool) -> Result<Self, Failure> {
        let (max_queues, max_ring_pages) = (QUEUES as u16, 4);
        // Half of the blocks of a disk, with all their pages.
        let max_grants = (BLOCKS / QUEUES * BLOCK / PAGE_SIZE) as u16;
        let config = Config { max_queues, max_ring_pages, max_grants, persistent, ..Config::default() };
        let client = Client::attach_with(node, number, config).await.context(name)?;
        ensure(client.queues() == QUEUES, format_args!("{name}: {} queue(s)", client.queues()))?;
        let sectors = client.disk().sectors;
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
            client,
            area,
            steps: alloc::vec![0; BLOCKS],
            queue: 0,
            idle: (0..BLOCKS).collect(),
            end: u32::MAX,
            spare,
            finished: Vec::with_capacity(BLOCKS),
            verified: 0,
        })
    }

    /// Does what there is to do now, and leaves as much in flight as the disk takes.
    fn work(&mut self) -> Result<(), Failure> {
        self.client.follow().context(self.name)?;
        ensure(!self.client.close_wanted(), format_args!("{}: the back end goes", self.name))?;
        self.poll()?;
        for Completion { buffer, result } in self.finished.drain(..) {
            let (Returned::Whole((block, Some(buffer))), Ok(())) = (buffer, result) else {
                return Err(Failure(format!("{}: {result:?}", self.name)));
            };
            let block = block as usize;
            let step = self.steps[block];
            if !step.is_multiple_of(2) {
                check(self.name, block, step / 2, &buffer)?;
                self.verified += 1;
            }
            self.steps[block] = step + 1;
            self.idle.push_back(block);
            self.spare.push(buffer);
        }
        if !self.client.is_connected() {
            return Ok(());
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
        for index in 0..QUEUES {
            let queue = self.client.queue(index)?;
            self.node.metered(|| queue.push());
        }
        Ok(())
    }

    /// Begins a step of a block; `false` if the disk doesn't take it now.
    fn begin(&mut self, block: usize, step: u32) -> Result<bool, Failure> {
        let Some(buffer) = self.spare.pop() else { return Ok(false) };
        let operation = if step.is_multiple_of(2) { Operation::Write } else { Operation::Read };
        if operation == Operation::Write {
            fill(block, step / 2, &buffer);
        }
        let sector = self.area + block as u64 * BLOCK_SECTORS;
        // The next one's turn, even if this one is full.
        let queue = self.client.queue(self.queue)?;
        self.queue = (self.queue + 1) % QUEUES;
        match self.node.metered(|| queue.submit(operation, sector, (block as u64, Some(buffer)))) {
            Ok(()) => Ok(true),
            Err((SubmitError::Full, (_, buffer))) => {
                self.spare.extend(buffer);
                Ok(false)
            }
            Err((error, _)) => Err(Failure(format!("{}: {operation:?} at {sector}: {error}", self.name))),
        }
    }

    /// Shows what was asked for, and takes what the other end has finished.
    fn poll(&mut self) -> Result<(), Failure> {
        self.client.poll(|completion| self.finished.push(completion)).context(self.name)?;
        Ok(())
    }

    /// Returns how much is in flight on each queue.
    fn in_flight(&mut self) -> [usize; QUEUES] {
        core::array::from_fn(|index| self.client.queue(index).map_or(0, |queue| queue.in_flight() as usize))
    }

    /// Lets all blocks come to the end of the same round, that of the foremost: the step that it may be at just now still counts.
    fn finish(&mut self) {
        self.end = self.steps.iter().max().map_or(0, |step| (step + 1).next_multiple_of(2));
    }

    /// Tells whether all blocks are there.
    fn is_done(&self) -> bool {
        self.idle.len() == BLOCKS && self.steps.iter().all(|&step| step == self.end)
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
