//! The other end of a disk: an honest back end in a domain of its own, on a thread of its own.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use mock::Node;
use suite::Failure;
use suite::exec::{Program, World, run};
use suite::toolstack::NewDevice;
use xbd::SECTOR;
use xbd::back::{Config, Started, Store, StoreFault, Token, Work};
use xbd::features::Discard;

use crate::Kernel;

/// Queues that a back end offers.
pub const QUEUES: usize = 4;

/// What a disk is, and how it is served.
#[derive(Clone, Copy, Debug)]
pub struct DiskKind {
    /// Smallest unit of I/O in bytes.
    pub sector_size: u32,
    /// Best unit of I/O in bytes.
    pub physical_sector_size: u32,
    /// It can't be written.
    pub read_only: bool,
    /// It forgets, in these units.
    pub discard: Option<Discard>,
    /// Queues that are offered.
    pub queues: u16,
    /// Segments of an indirect request.
    pub indirect: u16,
    /// Nodes that the toolstack writes besides.
    pub nodes: &'static [(&'static str, &'static str)],
}

impl DiskKind {
    /// A disk that has nothing special.
    pub const PLAIN: Self = Self {
        sector_size: 512,
        physical_sector_size: 512,
        read_only: false,
        discard: None,
        queues: QUEUES as u16,
        indirect: 256,
        nodes: &[],
    };

    /// The same, from a back end that offers as little as it can.
    pub const POOR: Self = Self { queues: 1, indirect: 0, ..Self::PLAIN };
}

impl Default for DiskKind {
    fn default() -> Self {
        Self::PLAIN
    }
}

/// What the tests see of a disk's other side.
#[derive(Default)]
pub struct Medium {
    bytes: Mutex<Vec<u8>>,
    /// Nothing is finished as long as this is set.
    pub hold: AtomicBool,
    /// Flushes that were asked for.
    pub flushes: AtomicU64,
    /// Requests that were taken.
    pub taken: AtomicU64,
    /// The same, by queue.
    pub by_queue: [AtomicU64; QUEUES],
    /// Parts of the largest.
    pub largest: AtomicU64,
    /// Ranges that were discarded: sector and number of sectors.
    pub discarded: Mutex<Vec<(u64, u64)>>,
    /// Discards are refused, as what the disk doesn't do after all.
    pub refuses: AtomicBool,
    handles: AtomicU64,
    kind: DiskKind,
    /// The back end is to stand still for ever, and does.
    dead: AtomicBool,
    still: AtomicBool,
}

impl Medium {
    /// Returns a part of the contents.
    pub fn bytes(&self, offset: usize, len: usize) -> Vec<u8> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)[offset..offset + len].to_vec()
    }

    /// Makes the disk longer or shorter. The back end sees it with its next request.
    pub fn resize(&self, sectors: usize) {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner).resize(sectors * SECTOR, 0);
    }

    /// Returns what was discarded.
    pub fn discarded(&self) -> Vec<(u64, u64)> {
        self.discarded.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A store that finishes some work at once and some later, in another order.
struct Served {
    medium: Arc<Medium>,
    pending: VecDeque<Token>,
    /// Of which queue, from the first that was made.
    queue: usize,
}

impl Store for Served {
    fn handle(&self) -> Self {
        let queue = self.medium.handles.fetch_add(1, SeqCst) as usize % QUEUES;
        Self { medium: Arc::clone(&self.medium), pending: VecDeque::new(), queue }
    }

    fn sectors(&self) -> u64 {
        (self.medium.bytes.lock().unwrap_or_else(PoisonError::into_inner).len() / SECTOR) as u64
    }

    fn sector_size(&self) -> u32 {
        self.medium.kind.sector_size
    }

    fn physical_sector_size(&self) -> u32 {
        self.medium.kind.physical_sector_size
    }

    fn discard(&self) -> Option<Discard> {
        self.medium.kind.discard
    }

    fn start(&mut self, token: Token, work: Work<'_>) -> Started {
        let medium = &self.medium;
        let mut bytes = medium.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Work::Read { parts, .. } | Work::Write { parts, .. } = &work {
            medium.largest.fetch_max(parts.iter().count() as u64, SeqCst);
        }
        match work {
            Work::Read { sector, parts } => {
                let mut at = sector as usize * SECTOR;
                for part in parts.iter() {
                    part.write(0, &bytes[at..at + part.len()]);
                    at += part.len();
                }
            }
            Work::Write { sector, parts } => {
                let mut at = sector as usize * SECTOR;
                for part in parts.iter() {
                    part.read(0, &mut bytes[at..at + part.len()]);
                    at += part.len();
                }
            }
            // What is offered as secure is wanted by nobody.
            Work::Discard { secure, .. } if secure || medium.refuses.load(SeqCst) => {
                return Started::Done(Err(StoreFault::NotSupported));
            }
            Work::Flush => _ = medium.flushes.fetch_add(1, SeqCst),
            Work::Discard { sector, sectors, .. } => {
                bytes[sector as usize * SECTOR..][..sectors as usize * SECTOR].fill(0);
                medium.discarded.lock().unwrap_or_else(PoisonError::into_inner).push((sector, sectors));
            }
        }
        let taken = medium.taken.fetch_add(1, SeqCst);
        medium.by_queue[self.queue].fetch_add(1, SeqCst);
        if taken.is_multiple_of(3) && !medium.hold.load(SeqCst) {
            return Started::Done(Ok(()));
        }
        self.pending.push_front(token);
        Started::Pending
    }

    fn completed(&mut self) -> Option<(Token, Result<(), StoreFault>)> {
        if self.medium.hold.load(SeqCst) {
            return None;
        }
        self.pending.pop_front().map(|token| (token, Ok(())))
    }
}

/// The machine works by itself, and tests decide when something happens.
struct Thread(Arc<Medium>);

impl World for Thread {
    fn pump(&mut self) -> bool {
        while self.0.dead.load(SeqCst) {
            self.0.still.store(true, SeqCst);
            std::thread::park();
        }
        false
    }

    fn choose(&mut self, _: usize) -> usize {
        0
    }

    fn patience_ns(&self) -> u64 {
        120_000_000_000
    }
}

/// A back end, and the disk that it serves.
pub struct Peer {
    /// What is on the disk.
    pub medium: Arc<Medium>,
    /// Where it stands in the store.
    pub device: NewDevice<'static>,
    thread: JoinHandle<Result<(), Failure>>,
}

impl Peer {
    /// Makes a disk of so many sectors with noise on it, and has it served.
    ///
    /// # Panics
    /// If the store refuses.
    pub fn serve(kernel: &Kernel, handle: u32, sectors: usize, kind: DiskKind) -> Self {
        let node: Node = kernel.machine().boot();
        let medium = Arc::new(Medium { kind, ..Medium::default() });
        *medium.bytes.lock().unwrap_or_else(PoisonError::into_inner) =
            suite::scenarios::noise(u64::from(handle), sectors * SECTOR);
        let mut device = suite::block::disk(kernel.id(), node.id);
        device.handle = handle;
        device.back_nodes = if kind.read_only { &[("mode", "r")] } else { kind.nodes };
        let served = Served { medium: medium.clone(), pending: VecDeque::new(), queue: 0 };
        let mut world = Thread(medium.clone());
        let config = Config { max_queues: kind.queues, max_indirect_segments: kind.indirect, ..Config::default() };
        let thread = std::thread::spawn(move || {
            let node = suite::node::Node::new("back end", node, || 0);
            let server = async { suite::block::serve_with(&node, handle, served, config).await.map(drop) };
            run(std::slice::from_ref(&node), &mut world, vec![Program::new("server", server)])
        });
        device.attach(&kernel.toolstack().store).expect("dom0 may write everywhere");
        Self { medium, device, thread }
    }

    /// Takes the disk away as `xl block-detach` does, and waits until the kernel has let it go.
    ///
    /// # Panics
    /// If the back end has found a fault with the kernel.
    pub fn detach(self, kernel: &Kernel) {
        self.device.ask_detach(&kernel.toolstack().store).expect("dom0 may write everywhere");
        self.gone(kernel);
    }

    /// Waits until the disk, whose end was asked for, is gone, and looks whether the back end has found a fault.
    ///
    /// # Panics
    /// If it has.
    pub fn gone(self, kernel: &Kernel) {
        let path = self.device.front_path();
        kernel.wait_said(&format!("{path} is free"));
        assert_eq!(self.thread.join().expect("the back end has panicked"), Ok(()), "{}", kernel.log());
        kernel.machine().kill(self.device.back);
        self.device.clean_up(&kernel.toolstack().store).expect("dom0 may remove everything");
    }

    /// Ends the back end's domain at once; its directory goes.
    ///
    /// # Panics
    /// If the store refuses.
    pub fn kill(self, kernel: &Kernel) {
        // Its processor stops, before what it has mapped goes away from under it.
        self.medium.dead.store(true, SeqCst);
        kernel.wait("the back end stands still", || self.medium.still.load(SeqCst));
        kernel.remove_back(&self.device);
        kernel.machine().kill(self.device.back);
        kernel.wait_said(&format!("{} is free", self.device.front_path()));
        self.device.clean_up(&kernel.toolstack().store).expect("dom0 may remove everything");
    }
}
