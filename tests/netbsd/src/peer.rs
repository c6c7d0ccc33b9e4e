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
use xbd::back::{Started, Store, StoreFault, Token, Work};

use crate::Kernel;

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
    /// The back end is to stand still for ever, and does.
    dead: AtomicBool,
    still: AtomicBool,
}

impl Medium {
    /// Returns a part of the contents.
    pub fn bytes(&self, offset: usize, len: usize) -> Vec<u8> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)[offset..offset + len].to_vec()
    }
}

/// A store that finishes some work at once and some later, in another order.
struct Served(Arc<Medium>, VecDeque<Token>);

impl Store for Served {
    fn handle(&self) -> Self {
        Self(Arc::clone(&self.0), VecDeque::new())
    }

    fn sectors(&self) -> u64 {
        (self.0.bytes.lock().unwrap_or_else(PoisonError::into_inner).len() / SECTOR) as u64
    }

    fn start(&mut self, token: Token, work: Work<'_>) -> Started {
        let mut bytes = self.0.bytes.lock().unwrap_or_else(PoisonError::into_inner);
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
            Work::Flush => _ = self.0.flushes.fetch_add(1, SeqCst),
            // None is offered.
            Work::Discard { .. } => return Started::Done(Err(StoreFault::NotSupported)),
        }
        let taken = self.0.taken.fetch_add(1, SeqCst);
        if taken.is_multiple_of(3) && !self.0.hold.load(SeqCst) {
            return Started::Done(Ok(()));
        }
        self.1.push_front(token);
        Started::Pending
    }

    fn completed(&mut self) -> Option<(Token, Result<(), StoreFault>)> {
        if self.0.hold.load(SeqCst) {
            return None;
        }
        self.1.pop_front().map(|token| (token, Ok(())))
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
    pub fn serve(kernel: &Kernel, handle: u32, sectors: usize, read_only: bool) -> Self {
        let node: Node = kernel.machine().boot();
        let medium = Arc::new(Medium::default());
        *medium.bytes.lock().unwrap_or_else(PoisonError::into_inner) =
            suite::scenarios::noise(u64::from(handle), sectors * SECTOR);
        let mut device = suite::block::disk(kernel.id(), node.id);
        device.handle = handle;
        if read_only {
            device.back_nodes = &[("mode", "r")];
        }
        let (served, mut world) = (Served(medium.clone(), VecDeque::new()), Thread(medium.clone()));
        let thread = std::thread::spawn(move || {
            let node = suite::node::Node::new("back end", node, || 0);
            let server = async { suite::block::serve(&node, handle, served).await.map(drop) };
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
