//! The network: a server that reflects each frame, and a client that plays with it: it sends, and verifies what comes back.

use alloc::collections::VecDeque;
use alloc::format;
use alloc::vec;
use alloc::vec::Vec;

use hypercall::grant::Grants;
use hypercall::mem::PageBuf;
use hypercall::{DomId, Platform};
use sha2::{Digest, Sha256};
use xenbus::device::Enumerator;
use xennet::back::{self, Back, Interface};
use xennet::features::Link;
use xennet::front::{self, Completion, Front, Queue, Received, Returned};
use xennet::{MAX_PACKET, MIN_PACKET};

use crate::block::find_device;
use crate::node::{Node, Own};
use crate::scenarios::noise;
use crate::toolstack::NewDevice;
use crate::{Context, Failure, ensure};

/// Frames that are under way at once. What they take on the way back is less than a ring, so that none is dropped.
const WINDOW: usize = 8;

/// Lengths of frames: the shortest and the longest, usual ones, and those around the borders of pages.
const LENGTHS: [usize; 14] =
    [MIN_PACKET, 15, 60, 64, 1514, 4095, 4096, 4097, 8191, 9014, 12_289, 32_768, 61_441, MAX_PACKET];

/// How often each length is played.
const ROUNDS: usize = 3;

/// The OS's side of a network that gives each frame back.
pub struct Reflector<P: Platform> {
    spare: Vec<PageBuf<P>>,
    back: VecDeque<PageBuf<P>>,
}

impl<P: Platform> Reflector<P> {
    /// Makes one that holds as many frames as are under way at once.
    ///
    /// # Errors
    /// [`Failure`] if there is no memory.
    pub fn new(platform: &P) -> Result<Self, Failure> {
        Ok(Self { spare: frames(platform)?, back: VecDeque::with_capacity(WINDOW) })
    }
}

/// Makes memory for as many frames as are under way at once.
fn frames<P: Platform>(platform: &P) -> Result<Vec<PageBuf<P>>, Failure> {
    (0..WINDOW).map(|_| PageBuf::new(platform, MAX_PACKET).context("frame")).collect()
}

impl<P: Platform> Interface for Reflector<P> {
    type Packet = PageBuf<P>;

    fn allocate(&mut self, len: usize) -> Option<PageBuf<P>> {
        let mut packet = self.spare.pop()?;
        packet.set_len(len);
        Some(packet)
    }

    fn deliver(&mut self, packet: PageBuf<P>) {
        self.back.push_back(packet);
    }

    fn release(&mut self, packet: PageBuf<P>) {
        self.spare.push(packet);
    }
}

/// Serves the interface of that number, as soon as the toolstack makes it, until the toolstack removes it. Returns what the queue
/// has done.
///
/// # Errors
/// [`Failure`] if it can't be attached, or the client breaks the protocol.
pub async fn serve<P: Platform>(node: &Node<P>, handle: u32) -> Result<back::Counters, Failure> {
    let mut devices = Enumerator::back(node.store(), "vif").context("watch backend/vif")?;
    let path = find_device(node, &mut devices, handle).await?;
    let mut back = Back::new(node.own(), &path, Reflector::new(&node.own().platform)?).context("xennetback")?;
    let mut counters = back::Counters::default();
    let mut more = false;
    loop {
        let seen = node.happened();
        if more | node.take(back.port()) {
            more = node.metered(|| reflect(&mut back))?;
        }
        counters = back.counters().copied().unwrap_or(counters);
        if back.device().changed() {
            match back.step().context("xennetback step")? {
                back::Change::Removed => return Ok(counters),
                back::Change::Connected => more = true,
                back::Change::None | back::Change::Disconnected => {}
            }
        }
        if more {
            node.pause().await;
        } else if node.happened() == seen {
            node.turn().await;
        }
    }
}

/// Takes what has come, and sends it back. Tells whether there is more.
fn reflect<P: Platform>(back: &mut Back<Own<P>, Reflector<P>>) -> Result<bool, Failure> {
    let more = back.poll().context("xennetback poll")?;
    while let Some(packet) = back.interface_mut().back.pop_front() {
        back.send(packet).map_err(|(error, _)| error).context("xennetback send")?;
    }
    back.push().context("xennetback push")?;
    Ok(more)
}

/// Who plays with the reflector.
pub struct Player<P: Platform> {
    node: Node<P>,
    front: Front<Own<P>, PageBuf<P>>,
    link: Link,
    /// The back end wants to go.
    close_wanted: bool,
}

impl<P: Platform> Player<P> {
    /// Attaches the interface of that number, and waits until it is there and connected.
    ///
    /// # Errors
    /// [`Failure`] if it can't be attached.
    pub async fn attach(node: &Node<P>, handle: u32) -> Result<Self, Failure> {
        let mut devices = Enumerator::front(node.store(), "vif").context("watch device/vif")?;
        let path = find_device(node, &mut devices, handle).await?;
        let mut front = Front::new(node.own(), &path).context("xennet")?;
        loop {
            let seen = node.happened();
            if front.device().changed()
                && let front::Change::Connected(link) = front.step(drop).context("xennet step")?
            {
                return Ok(Self { node: node.clone(), front, link, close_wanted: false });
            }
            if node.happened() == seen {
                node.turn().await;
            }
        }
    }

    /// Returns what the interface is.
    pub const fn link(&self) -> &Link {
        &self.link
    }

    fn queue(&mut self) -> Result<&mut Queue<Own<P>, PageBuf<P>>, Failure> {
        self.front.queue().ok_or_else(|| Failure::new("the interface has no queue"))
    }

    /// Sends frames of all lengths, and checks that they come back as they were sent, in their order. Returns what the queue has
    /// done.
    ///
    /// # Errors
    /// [`Failure`] if they don't.
    pub async fn play(&mut self, seed: u64) -> Result<front::Counters, Failure> {
        let node = self.node.clone();
        let lengths: Vec<usize> = LENGTHS.repeat(ROUNDS);
        let mut spare = frames(&node.own().platform)?;
        let mut game =
            Game { expected: VecDeque::with_capacity(WINDOW), bytes: vec![0; MAX_PACKET], back: 0, wrong: None };
        let (mut next, mut more) = (0, false);
        loop {
            let seen = node.happened();
            while game.expected.len() < WINDOW
                && let Some(len) = lengths.get(next)
                && let Some(mut frame) = spare.pop()
            {
                let bytes = noise(seed.wrapping_add(next as u64), *len);
                frame.set_len(*len);
                frame.shared().write(0, &bytes);
                game.expected.push_back((*len, Sha256::digest(&bytes).into()));
                let queue = self.queue()?;
                node.metered(|| queue.submit(frame)).map_err(|(error, _)| error).context("xennet submit")?;
                next += 1;
            }
            let queue = self.queue()?;
            node.metered(|| queue.push());
            if game.back == lengths.len() && queue.in_flight() == 0 {
                return Ok(*queue.counters());
            }
            if more | node.take(Some(queue.port())) {
                let mut lost = None;
                let sent = |completion: Completion<PageBuf<P>>| match (completion.packet, completion.result) {
                    (Returned::Whole(frame), Ok(())) => spare.push(frame),
                    (_, result) => lost = Some(result),
                };
                more = node.metered(|| queue.poll(sent, |packet| game.take(packet))).context("xennet poll")?;
                ensure(lost.is_none(), format!("a frame was not sent: {lost:?}"))?;
                ensure(game.wrong.is_none(), format!("frame {:?} has come back wrong", game.wrong))?;
            } else if !self.follow()? && node.happened() == seen {
                node.turn().await;
            }
        }
    }

    /// Lets the life cycle go on, if the other end has moved. Returns whether it had.
    fn follow(&mut self) -> Result<bool, Failure> {
        if !self.front.device().changed() {
            return Ok(false);
        }
        match self.front.step(drop).context("xennet step")? {
            front::Change::CloseWanted => self.close_wanted = true,
            front::Change::Closed => return Err(Failure::new("the back end has gone")),
            front::Change::None | front::Change::Connected(_) => {}
        }
        Ok(true)
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

    /// Closes the interface and waits until nothing of it is held any more.
    ///
    /// # Errors
    /// [`Failure`] if the store refuses.
    pub async fn close(mut self) -> Result<(), Failure> {
        self.front.close().context("xennet close")?;
        loop {
            let seen = self.node.happened();
            // Asked even if the other end has not moved: closing goes on by itself.
            self.front.device().changed();
            if self.front.step(drop).context("xennet step")? == front::Change::Closed {
                return Ok(());
            }
            if self.node.happened() == seen {
                self.node.turn().await;
            }
        }
    }
}

/// What is expected to come back.
struct Game {
    /// Length and SHA-256 of the frames that are under way.
    expected: VecDeque<(usize, [u8; 32])>,
    /// Room for one frame.
    bytes: Vec<u8>,
    /// Frames that have come back.
    back: usize,
    /// The first frame that was not as it should be.
    wrong: Option<usize>,
}

impl Game {
    fn take<G: Grants>(&mut self, packet: Received<'_, G>) {
        let len = packet.read(&mut self.bytes);
        let seen = (packet.len(), Sha256::digest(&self.bytes[..len]).into());
        if self.expected.pop_front() != Some(seen) {
            self.wrong.get_or_insert(self.back);
        }
        self.back += 1;
    }
}

/// Returns the interface that scenarios make.
pub fn interface(front: DomId, back: DomId) -> NewDevice<'static> {
    NewDevice {
        class: "vif",
        handle: 0,
        front,
        back,
        back_nodes: &[("mac", MAC), ("bridge", "scenario")],
        front_nodes: &[("mac", MAC)],
    }
}

/// Address of that interface.
const MAC: &str = "00:16:3e:58:45:4e";
