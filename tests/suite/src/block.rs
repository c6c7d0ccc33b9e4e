//! The disk: a server with a store in memory, a client that writes, reads back and verifies.

use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use hypercall::event::Events;
use hypercall::mem::{PAGE_SIZE, PageBuf};
use hypercall::{DomId, Platform};
use sha2::{Digest, Sha256};
use xbd::back::{self, Back, Store};
use xbd::features::Disk;
use xbd::front::{self, Completion, Config, Front, IoError, Queue, Returned, SubmitError};
use xbd::protocol::Operation;
use xbd::{MAX_SEGMENTS, SECTOR};
use xenbus::device::{Enumerator, Hotplug};

pub use crate::disk::Memory;
use crate::node::{Node, Own};
use crate::{Context, Failure, ensure};

/// What became of a disk that was served.
pub struct Served<S> {
    /// The store, as the client has left it.
    pub store: S,
    /// What the queues have done, of the last connection.
    pub counters: back::Counters,
    /// How many queues it had.
    pub queues: usize,
    /// Requests of the queue that had the fewest.
    pub fewest: u64,
}

/// A back end with small tables: for scenarios that run hundreds of times, or under Miri, where each place in a table takes its time.
pub const SMALL_BACK: back::Config = back::Config {
    max_queues: 1,
    max_ring_pages: 1,
    max_indirect_segments: 16,
    persistent: false,
    max_persistent: 0,
    idle_ns: 0,
    rest_ns: 100_000_000,
    pages: 32,
    copy_limit: 0,
    copy_pages: 0,
};

/// A front end that fits.
pub const SMALL_FRONT: Config = Config { max_grants: 32, max_indirect_segments: 16, ..Config::DEFAULT };

/// Serves the disk of that number, as soon as the toolstack makes it, until the toolstack removes it.
///
/// # Errors
/// [`Failure`] if it can't be attached, or the client breaks the protocol.
pub async fn serve<P: Platform, S: Store>(node: &Node<P>, handle: u32, store: S) -> Result<Served<S>, Failure> {
    serve_with(node, handle, store, back::Config::default()).await
}

/// Serves the disk as [`serve`] does, in another way.
///
/// # Errors
/// [`Failure`] if it can't be attached, or the client breaks the protocol.
pub async fn serve_with<P: Platform, S: Store>(
    node: &Node<P>,
    handle: u32,
    store: S,
    config: back::Config,
) -> Result<Served<S>, Failure> {
    let mut devices = Enumerator::back(node.store(), "vbd").context("watch backend/vbd")?;
    let path = find_device(node, &mut devices, handle).await?;
    let mut back = Back::new(node.own(), &path, store, config).context("xbdback")?;
    let (mut counters, mut queues, mut fewest) = (back::Counters::default(), 0, 0);
    let mut sectors = back.store().sectors();
    loop {
        let seen = node.happened();
        let mut more = false;
        let busy = back.store_busy();
        for queue in 0..back.queues() {
            if node.take(back.port(queue)) || busy {
                more |= node.metered(|| back.poll(queue)).context("xbdback poll")?;
            }
        }
        back.tend(node.own().platform.now_ns());
        if let Some(now) = back.counters() {
            (counters, queues) = (now, back.queues());
            let each = (0..queues).filter_map(|queue| Some(back.counters_of(queue)?.requests));
            fewest = each.min().unwrap_or(0);
        }
        if back.store().sectors() != sectors {
            sectors = back.store().sectors();
            back.resized().context("xbdback resized")?;
        }
        if back.device().changed() || back.closing() {
            match back.step().context("xbdback step")? {
                back::Change::Removed => return Ok(Served { store: back.into_store(), counters, queues, fewest }),
                back::Change::None | back::Change::Connected | back::Change::Disconnected => {}
            }
        }
        if more || back.store_busy() {
            node.pause().await;
        } else if node.happened() == seen {
            node.turn_until(back.next_tend_ns()).await;
        }
    }
}

/// Waits for a device of a class and returns its path.
pub(crate) async fn find_device<P: Platform>(
    node: &Node<P>,
    devices: &mut Enumerator<OwnStore<P>>,
    handle: u32,
) -> Result<String, Failure> {
    let wanted = format!("/{handle}");
    loop {
        let seen = node.happened();
        for change in devices.changes().context("list devices")? {
            match change {
                Hotplug::Added(path) if path.ends_with(&wanted) => return Ok(path),
                Hotplug::Added(_) | Hotplug::Removed(_) => {}
            }
        }
        if node.happened() == seen {
            node.turn().await;
        }
    }
}

/// The store of our own services.
pub(crate) type OwnStore<P> = xenbus::store::XenStore<P, hypercall::event::EventChannels<P>>;

/// What goes through a queue: a number to know it by, and the data.
pub type Io<P> = (u64, Option<PageBuf<P>>);

/// A disk that a program uses.
pub struct Client<P: Platform> {
    node: Node<P>,
    front: Front<Own<P>, Io<P>>,
    disk: Disk,
    /// Sectors of an I/O.
    io_sectors: u64,
    /// The disk takes I/Os. Else what is in flight waits for the next back end.
    connected: bool,
    /// The back end wants to go.
    close_wanted: bool,
    /// What has come back otherwise than by its queue.
    returned: Vec<Completion<Io<P>>>,
    /// How often the domain had been suspended when this was last looked at.
    suspends: u32,
}

impl<P: Platform> Client<P> {
    /// Attaches the disk of that number, and waits until it is there and connected.
    ///
    /// # Errors
    /// [`Failure`] if it can't be attached.
    pub async fn attach(node: &Node<P>, handle: u32) -> Result<Self, Failure> {
        Self::attach_with(node, handle, Config::default()).await
    }

    /// The same, with what the owner wants.
    ///
    /// # Errors
    /// [`Failure`] if it can't be attached.
    pub async fn attach_with(node: &Node<P>, handle: u32, config: Config) -> Result<Self, Failure> {
        let mut devices = Enumerator::front(node.store(), "vbd").context("watch device/vbd")?;
        let path = find_device(node, &mut devices, handle).await?;
        let mut front = Front::new(node.own(), &path, config).context("xbd")?;
        let mut suspends = node.own().events.suspends();
        loop {
            let seen = node.happened();
            let now = node.own().events.suspends();
            if core::mem::replace(&mut suspends, now) != now {
                front.resume(drop).context("xbd resume")?;
            }
            if front.device().changed()
                && let front::Change::Connected(disk) = front.step(drop).context("xbd step")?
            {
                return Ok(Self {
                    node: node.clone(),
                    front,
                    disk,
                    io_sectors: (MAX_SEGMENTS * PAGE_SIZE / SECTOR) as u64,
                    connected: true,
                    close_wanted: false,
                    returned: Vec::new(),
                    suspends,
                });
            }
            if node.happened() == seen {
                node.turn().await;
            }
        }
    }

    /// Returns what the disk is.
    pub const fn disk(&self) -> &Disk {
        &self.disk
    }

    /// Returns what the queue has done so far.
    pub fn counters(&mut self) -> front::Counters {
        self.front.counters()
    }

    /// Returns how many queues there are.
    pub const fn queues(&self) -> usize {
        self.front.queues()
    }

    /// Tells whether the disk takes I/Os.
    pub const fn is_connected(&self) -> bool {
        self.connected
    }

    /// Tells whether the other end wants to go.
    pub const fn close_wanted(&self) -> bool {
        self.close_wanted
    }

    /// Lets the life cycle go on, if the other end has moved, or the domain has come back from a suspend. Returns whether that was so.
    ///
    /// # Errors
    /// [`Failure`] if the other end goes without asking.
    pub fn follow(&mut self) -> Result<bool, Failure> {
        let resumed = self.resume()?;
        if !self.front.device().changed() {
            return Ok(resumed);
        }
        let returned = &mut self.returned;
        let change = self.front.step(|completion| returned.push(completion)).context("xbd step")?;
        self.heed(change)?;
        Ok(true)
    }

    /// Begins anew if the domain has come back from a suspend since this was last called. Returns whether it has.
    fn resume(&mut self) -> Result<bool, Failure> {
        let suspends = self.node.own().events.suspends();
        if core::mem::replace(&mut self.suspends, suspends) == suspends {
            return Ok(false);
        }
        let returned = &mut self.returned;
        let change = self.front.resume(|completion| returned.push(completion)).context("xbd resume")?;
        self.heed(change)?;
        Ok(true)
    }

    fn heed(&mut self, change: front::Change) -> Result<(), Failure> {
        match change {
            front::Change::CloseWanted => self.close_wanted = true,
            front::Change::Resized(disk) => self.disk = disk,
            front::Change::Closed => {
                let lost = self.returned.len();
                return Err(Failure(format!("the back end has gone, {lost} request(s) are lost")));
            }
            front::Change::Connected(disk) => (self.disk, self.connected) = (disk, true),
            front::Change::Reconnecting => self.connected = false,
            front::Change::None => {}
        }
        Ok(())
    }

    /// Waits until the disk takes I/Os.
    async fn wait_connected(&mut self) -> Result<(), Failure> {
        loop {
            let seen = self.node.happened();
            if !self.follow()? && self.connected {
                return Ok(());
            }
            if self.node.happened() == seen && !self.connected {
                self.node.turn().await;
            }
        }
    }

    /// Waits until the other end wants to go.
    ///
    /// # Errors
    /// [`Failure`] if it goes without asking.
    pub async fn wait_close_wanted(&mut self) -> Result<(), Failure> {
        while !self.close_wanted {
            let seen = self.node.happened();
            self.follow()?;
            if self.node.happened() == seen && !self.close_wanted {
                self.node.turn().await;
            }
        }
        Ok(())
    }

    /// Makes the I/Os of [`transfer`](Self::transfer) so many pages long.
    pub const fn set_io_pages(&mut self, pages: usize) {
        self.io_sectors = (pages * PAGE_SIZE / SECTOR) as u64;
    }

    /// Runs I/Os over `range` (in sectors), by all queues in turn, as many at once as they take. `fill` puts data into each buffer
    /// before, `take` looks at it after; both get the first sector.
    ///
    /// # Errors
    /// [`Failure`] if an I/O fails.
    pub async fn transfer(
        &mut self,
        operation: Operation,
        range: core::ops::Range<u64>,
        mut fill: impl FnMut(u64, &PageBuf<P>),
        mut take: impl FnMut(u64, &PageBuf<P>),
    ) -> Result<(), Failure> {
        let platform = self.node.own().platform.clone();
        let node = self.node.clone();
        let mut at = range.start;
        let mut failed = None;
        // Buffers that came back, to be used again, and completions before they are looked at: with room for all rings' worth
        // each, so that no part of the data path allocates.
        self.wait_connected().await?;
        let depth = self.queue(0)?.depth() as usize * self.front.queues();
        let mut spare: Vec<PageBuf<P>> = Vec::with_capacity(depth);
        let mut finished: Vec<Completion<Io<P>>> = Vec::with_capacity(depth);
        let mut next = 0;
        loop {
            let seen = node.happened();
            self.resume()?;
            let queues = if self.connected { self.front.queues() } else { 0 };
            let mut full = 0;
            while at < range.end && failed.is_none() && full < queues {
                let sectors = (range.end - at).min(self.io_sectors);
                let len = sectors as usize * SECTOR;
                let buffer = match spare.pop().filter(|buffer| buffer.len() == len) {
                    Some(buffer) => buffer,
                    None => PageBuf::new(&platform, len).context("buffer")?,
                };
                fill(at, &buffer);
                let queue = self.queue(next % queues)?;
                next = (next + 1) % queues;
                match node.metered(|| queue.submit(operation, at, (at, Some(buffer)))) {
                    Ok(()) => (at, full) = (at + sectors, 0),
                    Err((SubmitError::Full, (_, buffer))) => {
                        spare.extend(buffer);
                        full += 1;
                    }
                    Err((error, _)) => return Err(Failure(format!("{operation:?} at {at}: {error}"))),
                }
            }
            let progress = self.poll(|completion| finished.push(completion))?;
            if progress == Progress::Idle && (at >= range.end || failed.is_some()) {
                return failed.map_or(Ok(()), Err);
            }
            if progress == Progress::Nothing && !self.follow()? && node.happened() == seen {
                node.turn().await;
            }
            for Completion { buffer, result } in finished.drain(..) {
                match (buffer, result) {
                    (Returned::Whole((sector, Some(buffer))), Ok(())) => {
                        take(sector, &buffer);
                        spare.push(buffer);
                    }
                    (buffer, result) => {
                        let error = result.err().unwrap_or(IoError::Lost);
                        failed = Some(Failure(format!("{operation:?} at {}: {error}", buffer.get().0)));
                    }
                }
            }
        }
    }

    /// Shows all queues' requests, and takes what they have finished.
    ///
    /// # Errors
    /// [`Failure`] if the other end breaks the protocol.
    pub fn poll(&mut self, mut done: impl FnMut(Completion<Io<P>>)) -> Result<Progress, Failure> {
        self.resume()?;
        let node = self.node.clone();
        let (mut in_flight, mut any) = (0, !self.returned.is_empty());
        self.returned.drain(..).for_each(&mut done);
        for index in 0..self.front.queues() {
            let queue = self.queue(index)?;
            node.metered(|| queue.push());
            in_flight += queue.in_flight();
            if node.take(Some(queue.port())) {
                any = true;
                node.metered(|| queue.poll(&mut done)).context("xbd poll")?;
            }
        }
        Ok(match (in_flight, any) {
            (0, false) if self.connected => Progress::Idle,
            (_, true) => Progress::Some,
            (_, false) => Progress::Nothing,
        })
    }

    /// Returns a queue.
    ///
    /// # Errors
    /// [`Failure`] if there is no such queue, as there is none while the next back end is waited for.
    pub fn queue(&mut self, index: usize) -> Result<&mut Queue<Own<P>, Io<P>>, Failure> {
        self.front.queue(index).ok_or_else(|| Failure::new("the disk has no such queue"))
    }

    /// Makes all that was written durable.
    ///
    /// # Errors
    /// [`Failure`] if it fails.
    pub async fn flush(&mut self) -> Result<(), Failure> {
        self.wait_connected().await?;
        self.queue(0)?.submit(Operation::Flush, 0, (0, None)).map_err(|(error, _)| error).context("flush")?;
        self.finish().await.context("flush")
    }

    /// Sends a barrier without data: what was written before is durable when it returns.
    ///
    /// # Errors
    /// [`Failure`] if it fails.
    pub async fn barrier(&mut self) -> Result<(), Failure> {
        self.wait_connected().await?;
        self.queue(0)?.submit(Operation::Barrier, 0, (0, None)).map_err(|(error, _)| error).context("barrier")?;
        self.finish().await.context("barrier")
    }

    /// Discards sectors.
    ///
    /// # Errors
    /// [`Failure`] if it fails.
    pub async fn discard(&mut self, range: core::ops::Range<u64>, secure: bool) -> Result<(), Failure> {
        self.wait_connected().await?;
        let queue = self.queue(0)?;
        let submitted = queue.submit_discard(range.start, range.end - range.start, secure, (range.start, None));
        submitted.map_err(|(error, _)| error).context("discard")?;
        self.finish().await.context("discard")
    }

    /// Waits for the only I/O that is in flight.
    async fn finish(&mut self) -> Result<(), IoError> {
        let mut done = None;
        while done.is_none() {
            let seen = self.node.happened();
            let polled = self.poll(|completion| done = Some(completion.result));
            // Whoever has broken the protocol, or is gone, has lost it.
            let nothing = polled.and_then(|progress| Ok(progress == Progress::Nothing && !self.follow()?));
            if nothing.map_err(|_| IoError::Lost)? && self.node.happened() == seen {
                self.node.turn().await;
            }
        }
        done.unwrap_or(Err(IoError::Lost))
    }

    /// Returns the SHA-256 of the whole disk.
    ///
    /// # Errors
    /// [`Failure`] if a read fails.
    pub async fn sha256(&mut self) -> Result<[u8; 32], Failure> {
        self.sha256_of(0..self.disk.sectors).await
    }

    /// Returns the SHA-256 of some sectors.
    ///
    /// # Errors
    /// [`Failure`] if a read fails.
    pub async fn sha256_of(&mut self, range: core::ops::Range<u64>) -> Result<[u8; 32], Failure> {
        // Completions may come in any order: what is early waits for its turn.
        let mut hash = Sha256::new();
        let mut early = alloc::collections::BTreeMap::<u64, Vec<u8>>::new();
        let (mut at, end) = (range.start, range.end);
        self.transfer(
            Operation::Read,
            range,
            |_, _| {},
            |sector, buffer| {
                let mut bytes = vec![0; buffer.len()];
                buffer.shared().read(0, &mut bytes);
                early.insert(sector, bytes);
                while let Some(bytes) = early.remove(&at) {
                    at += (bytes.len() / SECTOR) as u64;
                    hash.update(&bytes);
                }
            },
        )
        .await?;
        ensure(at == end, format_args!("hashed up to {at}, not {end}"))?;
        Ok(hash.finalize().into())
    }

    /// Closes the disk and waits until nothing of it is held any more.
    ///
    /// # Errors
    /// [`Failure`] if the store refuses.
    pub async fn close(self) -> Result<(), Failure> {
        self.close_with(drop).await
    }

    /// The same; `ended` gets what was in flight.
    ///
    /// # Errors
    /// [`Failure`] if the store refuses.
    pub async fn close_with(mut self, mut ended: impl FnMut(Completion<Io<P>>)) -> Result<(), Failure> {
        self.returned.drain(..).for_each(&mut ended);
        self.front.close().context("xbd close")?;
        loop {
            let seen = self.node.happened();
            for index in 0..self.front.queues() {
                if self.node.take(self.front.port(index))
                    && let Some(queue) = self.front.queue(index)
                {
                    // What is in flight ends first. A back end that breaks the protocol meanwhile is not waited for.
                    let _ = queue.poll(&mut ended);
                }
            }
            // Asked even if the other end has not moved: closing goes on by itself.
            self.front.device().changed();
            if self.front.step(&mut ended).context("xbd step")? == front::Change::Closed {
                return Ok(());
            }
            if self.node.happened() == seen {
                self.node.turn().await;
            }
        }
    }
}

/// What looking at the queues has brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Nothing was in flight.
    Idle,
    /// Nothing yet.
    Nothing,
    /// Perhaps something.
    Some,
}

/// Writes a SHA-256 in hexadecimal.
pub fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Returns the pattern word at a place of the pattern: the text "XENP" above the word's number.
pub const fn pattern_word(index: u64) -> u64 {
    0x5845_4e50_0000_0000 | index
}

/// The number of the disk that is called xvda.
pub const XVDA: u32 = 202 << 8;

/// Returns the disk that scenarios make.
pub fn disk(front: DomId, back: DomId) -> crate::toolstack::NewDevice<'static> {
    crate::toolstack::NewDevice {
        class: "vbd",
        handle: XVDA,
        front,
        back,
        back_nodes: &[("mode", "w"), ("params", "scenario"), ("type", "memory")],
        front_nodes: &[],
    }
}
