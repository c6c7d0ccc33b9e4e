//! The scenarios by name.

use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use hypercall::Platform;
use sha2::{Digest, Sha256};
use xbd::protocol::Operation;
use xbd::{SECTOR, back, front};
use xennet::{MAX_PACKET, MIN_PACKET};

use crate::block::{self, Client, Memory, Served};
use crate::exec::{Program, World, run};
use crate::node::Node;
use crate::{Context, Failure, console, ensure, net};

/// What a bed lends to a scenario. On a bed of one domain, all three nodes are the same.
pub struct Bed<'a, P: Platform, W: World> {
    /// The domain that may write anywhere in xenstore.
    pub toolstack: Node<P>,
    /// The domain of the front ends.
    pub front: Node<P>,
    /// The domain of the back ends.
    pub back: Node<P>,
    /// Everything that is no program.
    pub world: &'a mut W,
    /// What scenarios draw their data from.
    pub seed: u64,
}

impl<P: Platform, W: World> Bed<'_, P, W> {
    /// Runs the programs in the bed's domains.
    ///
    /// # Errors
    /// As [`run`].
    pub fn run(&mut self, programs: Vec<Program<'_>>) -> Result<(), Failure> {
        let nodes = [self.toolstack.clone(), self.front.clone(), self.back.clone()];
        run(&nodes, self.world, programs)
    }

    /// Makes a disk of the scenario's with these contents, lets a client use it, and takes it away. Returns what the back
    /// end has done.
    ///
    /// # Errors
    /// [`Failure`] of the client, or of one of the two ends.
    pub fn with_disk(
        &mut self,
        contents: Vec<u8>,
        work: impl AsyncFnOnce(&mut Client<P>) -> Result<(), Failure>,
    ) -> Result<Served<Memory>, Failure> {
        let device = block::disk(self.front.id(), self.back.id());
        let (toolstack, front, back) = (self.toolstack.clone(), self.front.clone(), self.back.clone());
        device.attach(toolstack.store()).context("attach")?;
        let mut served = None;
        let client = async {
            let mut disk = Client::attach(&front, block::XVDA).await?;
            work(&mut disk).await?;
            // The toolstack asks for the end, and the front end follows.
            device.ask_detach(toolstack.store()).context("detach")?;
            disk.wait_close_wanted().await?;
            disk.close().await
        };
        let server = async {
            served = Some(block::serve(&back, block::XVDA, Memory::new(contents)).await?);
            Ok(())
        };
        self.run(vec![Program::new("client", client), Program::new("server", server)])?;
        device.clean_up(self.toolstack.store()).context("clean up")?;
        served.ok_or(Failure::new("the server has not ended"))
    }
}

/// How a scenario runs in a bed.
pub type Run<P, W> = fn(&mut Bed<'_, P, W>) -> Result<Vec<String>, Failure>;

/// A scenario: its name, what it shows, and how it runs. It returns lines for whoever watches.
pub struct Scenario<P: Platform, W: World> {
    /// Its name on command lines.
    pub name: &'static str,
    /// What it shows.
    pub about: &'static str,
    /// Runs it.
    pub run: Run<P, W>,
}

/// Returns all scenarios.
pub fn all<P: Platform, W: World>() -> Vec<Scenario<P, W>> {
    vec![
        Scenario { name: "block", about: "a disk is attached, written, flushed, read back, detached", run: block_copy },
        Scenario { name: "reattach", about: "a disk comes and goes three times and keeps its data", run: block_again },
        Scenario {
            name: "features",
            about: "a disk with all that its two ends can do, in several ways",
            run: block_features,
        },
        Scenario { name: "readonly", about: "a read-only disk refuses writes at both ends", run: block_read_only },
        Scenario { name: "console", about: "an echo over the console, more than its ring holds", run: console_echo },
        Scenario { name: "net", about: "frames of all sizes go there and back, in their order", run: net_reflect },
    ]
}

/// The scenarios of disks.
pub const BLOCK: [&str; 4] = ["block", "reattach", "features", "readonly"];

/// Returns the scenarios that a word means: "all" of them, those of disks for "block", else the one of that name.
pub fn meant<P: Platform, W: World>(word: &str) -> Vec<Scenario<P, W>> {
    let mut scenarios = all();
    scenarios.retain(|scenario| match word {
        "all" => true,
        "block" => BLOCK.contains(&scenario.name),
        name => name == scenario.name,
    });
    scenarios
}

/// Returns `len` bytes that depend on the seed.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    // A linear congruential generator's upper half is random enough to tell one sector from another.
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..len).map(|_| next()).collect()
}

/// Sectors of the scenarios' disks: not a multiple of what a request holds.
const SECTORS: usize = 2029;

fn block_copy<P: Platform, W: World>(bed: &mut Bed<'_, P, W>) -> Result<Vec<String>, Failure> {
    let before = noise(bed.seed, SECTORS * SECTOR);
    let after = noise(!bed.seed, SECTORS * SECTOR);
    let device = block::disk(bed.front.id(), bed.back.id());
    let (toolstack, front, back) = (bed.toolstack.clone(), bed.front.clone(), bed.back.clone());
    device.attach(toolstack.store()).context("attach")?;
    let (mut lines, mut served) = (Vec::new(), None);
    let client = async {
        let mut disk = Client::attach(&front, block::XVDA).await?;
        lines.push(format!("xbd: {} sectors of 512 bytes", disk.disk().sectors));
        ensure(disk.disk().sectors == SECTORS as u64, "the disk has another size")?;
        ensure(disk.sha256().await?[..] == Sha256::digest(&before)[..], "the disk reads other than it was made")?;
        let whole = 0..SECTORS as u64;
        let part = |sector: u64, len: usize| &after[sector as usize * SECTOR..][..len];
        let fill = |sector, buffer: &hypercall::mem::PageBuf<P>| buffer.shared().write(0, part(sector, buffer.len()));
        disk.transfer(Operation::Write, whole, fill, |_, _| {}).await?;
        disk.flush().await?;
        let digest = disk.sha256().await?;
        lines.push(format!("xbd: sha256 {}", block::hex(&digest)));
        ensure(digest[..] == Sha256::digest(&after)[..], "the disk reads other than it was written")?;
        let counters = disk.counters();
        lines.push(format!("xbd: {} requests, {} notifications", counters.requests, counters.notifications));
        device.ask_detach(toolstack.store()).context("detach")?;
        disk.wait_close_wanted().await?;
        disk.close().await
    };
    let server = async {
        served = Some(block::serve(&back, block::XVDA, Memory::new(before.clone())).await?);
        Ok(())
    };
    bed.run(vec![Program::new("client", client), Program::new("server", server)])?;
    let served = served.ok_or(Failure::new("the server has not ended"))?;
    ensure(served.store.bytes() == after, "the store has other bytes than were written")?;
    ensure(served.store.flushes() == 1, "the flush has not reached the store")?;
    ensure(served.counters.refused == 0 && served.counters.unmappable == 0, format!("{:?}", served.counters))?;
    ensure(!device.back_exists(bed.toolstack.store()).context("look")?, "the back end's directory is still there")?;
    device.clean_up(bed.toolstack.store()).context("clean up")?;
    Ok(lines)
}

fn block_again<P: Platform, W: World>(bed: &mut Bed<'_, P, W>) -> Result<Vec<String>, Failure> {
    let mut bytes = vec![0; 64 * SECTOR];
    for round in 1..=3u8 {
        let served = bed.with_disk(bytes, async |disk| {
            let mut seen = Vec::new();
            let take = |_, buffer: &hypercall::mem::PageBuf<P>| {
                let mut first = [0];
                buffer.shared().read(0, &mut first);
                seen.push(first[0]);
            };
            disk.transfer(Operation::Read, 0..8, |_, _| {}, take).await?;
            ensure(seen == [round - 1], format!("round {round} reads {seen:?}"))?;
            let fill = |_, buffer: &hypercall::mem::PageBuf<P>| buffer.shared().write(0, &[round]);
            disk.transfer(Operation::Write, 0..8, fill, |_, _| {}).await
        })?;
        bytes = served.store.bytes();
    }
    Ok(vec!["xbd: attached and detached three times".into()])
}

/// Ways in which a disk is used.
fn ways() -> [(&'static str, front::Config, back::Config); 5] {
    let front = front::Config { max_queues: 2, max_ring_pages: 4, ..front::Config::DEFAULT };
    let back =
        back::Config { max_queues: 2, max_ring_pages: 4, max_persistent: 256, pages: 300, ..back::Config::default() };
    [
        ("two queues, four pages of ring, indirect", front, back),
        ("grants that stay mapped", front::Config { persistent: true, max_grants: 200, ..front }, back),
        ("a back end that isn't trusted", front::Config { trusted: false, max_grants: 200, ..front }, back),
        ("direct requests alone", front, back::Config { max_indirect_segments: 0, persistent: false, ..back }),
        (
            "direct requests that are copied",
            front,
            back::Config { max_indirect_segments: 0, persistent: false, copy_limit: 45056, ..back },
        ),
    ]
}

/// Sectors of a disk that is used in several ways: a few I/Os.
const FEW_SECTORS: usize = SECTORS / 4;

fn block_features<P: Platform, W: World>(bed: &mut Bed<'_, P, W>) -> Result<Vec<String>, Failure> {
    let mut lines = Vec::new();
    for (way, front_config, back_config) in ways() {
        let contents = noise(bed.seed, FEW_SECTORS * SECTOR);
        let new = noise(!bed.seed, FEW_SECTORS * SECTOR);
        let device = block::disk(bed.front.id(), bed.back.id());
        let (toolstack, front, back) = (bed.toolstack.clone(), bed.front.clone(), bed.back.clone());
        device.attach(toolstack.store()).context("attach")?;
        let (mut served, mut counters) = (None, front::Counters::default());
        let client = async {
            let mut disk = Client::attach_with(&front, block::XVDA, front_config).await.context(way)?;
            ensure(disk.queues() == 2, format_args!("{way}: {} queue(s)", disk.queues()))?;
            disk.set_io_pages(20);
            ensure(disk.sha256().await?[..] == Sha256::digest(&contents)[..], "the disk reads other than it was made")?;
            let part = |sector: u64, len: usize| &new[sector as usize * SECTOR..][..len];
            let fill =
                |sector, buffer: &hypercall::mem::PageBuf<P>| buffer.shared().write(0, part(sector, buffer.len()));
            disk.transfer(Operation::Write, 0..FEW_SECTORS as u64, fill, |_, _| {}).await?;
            disk.barrier().await?;
            disk.flush().await?;
            disk.discard(8..24, false).await?;
            disk.discard(100..101, true).await?;
            counters = disk.counters();
            device.ask_detach(toolstack.store()).context("detach")?;
            disk.wait_close_wanted().await?;
            disk.close().await
        };
        let server = async {
            let store = Memory::new(contents.clone());
            served = Some(block::serve_with(&back, block::XVDA, store, back_config).await?);
            Ok(())
        };
        bed.run(vec![Program::new("client", client), Program::new("server", server)])?;
        let served = served.ok_or(Failure::new("the server has not ended"))?;
        let mut after = new;
        after[8 * SECTOR..24 * SECTOR].fill(0);
        after[100 * SECTOR..101 * SECTOR].fill(0);
        ensure(served.store.bytes() == after, format_args!("{way}: the store has other bytes than it should"))?;
        let did = served.counters;
        ensure(did.refused == 0 && did.unmappable == 0 && did.lost == 0, format_args!("{way}: {did:?}"))?;
        ensure((did.barriers, did.discards) == (1, 2), format_args!("{way}: {did:?}"))?;
        let same =
            (counters.flushes, counters.barriers, counters.discards) == (did.flushes, did.barriers, did.discards);
        ensure(same && counters.reconnections == 0, format_args!("{way}: {counters:?}"))?;
        ensure((did.indirect > 0) == (back_config.max_indirect_segments > 0), format_args!("{way}: {did:?}"))?;
        ensure((did.reused > 0) == front_config.persistent, format_args!("{way}: {did:?}"))?;
        let bounced = front_config.persistent || !front_config.trusted;
        ensure((counters.bounced_bytes > 0) == bounced, format_args!("{way}: {counters:?}"))?;
        device.clean_up(bed.toolstack.store()).context("clean up")?;
        lines.push(format!("xbd: {way}: {} requests, {} mappings", did.requests, did.mapped));
    }
    Ok(lines)
}

fn block_read_only<P: Platform, W: World>(bed: &mut Bed<'_, P, W>) -> Result<Vec<String>, Failure> {
    let mut device = block::disk(bed.front.id(), bed.back.id());
    device.back_nodes = &[("mode", "r")];
    let (toolstack, front, back) = (bed.toolstack.clone(), bed.front.clone(), bed.back.clone());
    device.attach(toolstack.store()).context("attach")?;
    let client = async {
        let mut disk = Client::attach_with(&front, block::XVDA, block::SMALL_FRONT).await?;
        ensure(disk.disk().read_only, "the disk doesn't say that it is read-only")?;
        let written = disk.transfer(Operation::Write, 0..8, |_, _| {}, |_, _| {}).await;
        ensure(written.is_err(), "the front end took a write")?;
        disk.sha256().await?;
        device.ask_detach(toolstack.store()).context("detach")?;
        disk.wait_close_wanted().await?;
        disk.close().await
    };
    let server = async {
        block::serve_with(&back, block::XVDA, Memory::new(vec![7; 64 * SECTOR]), block::SMALL_BACK).await.map(drop)
    };
    bed.run(vec![Program::new("client", client), Program::new("server", server)])?;
    device.clean_up(bed.toolstack.store()).context("clean up")?;
    Ok(vec!["xbd: a read-only disk takes no write".into()])
}

fn console_echo<P: Platform, W: World>(bed: &mut Bed<'_, P, W>) -> Result<Vec<String>, Failure> {
    let (front, back) = (bed.front.clone(), bed.back.clone());
    let text = noise(bed.seed, 10_000);
    let (mut front_half, mut back_half) = console::pair(&bed.toolstack, &front, &back)?;
    let talk = console::talk(&back, &mut back_half, &text);
    let echo = console::echo(&front, &mut front_half, text.len());
    bed.run(vec![Program::new("echo", echo), Program::new("talk", talk)])?;
    // The page is the back end's until it has let go of it.
    drop(back_half);
    drop(front_half);
    Ok(vec![format!("xencons: {} bytes there and back", text.len())])
}

fn net_reflect<P: Platform, W: World>(bed: &mut Bed<'_, P, W>) -> Result<Vec<String>, Failure> {
    let device = net::interface(bed.front.id(), bed.back.id());
    let (toolstack, front, back, seed) = (bed.toolstack.clone(), bed.front.clone(), bed.back.clone(), bed.seed);
    device.attach(toolstack.store()).context("attach")?;
    let (mut lines, mut played, mut served) = (Vec::new(), None, None);
    let client = async {
        let mut player = net::Player::attach(&front, device.handle).await?;
        lines.push(format!("xennet: {}", player.link().mac));
        played = Some(player.play(seed).await?);
        device.ask_detach(toolstack.store()).context("detach")?;
        player.wait_close_wanted().await?;
        player.close().await
    };
    let server = async {
        served = Some(net::serve(&back, device.handle).await?);
        Ok(())
    };
    bed.run(vec![Program::new("client", client), Program::new("server", server)])?;
    let (Some(played), Some(served)) = (played, served) else { return Err(Failure::new("a program has not ended")) };
    lines.push(format!(
        "xennet: {} frames of {} to {} bytes there and back in {} slots, {} notifications",
        played.tx_packets, MIN_PACKET, MAX_PACKET, played.tx_slots, played.notifications
    ));
    ensure(played.tx_errors == 0 && played.rx_errors == 0 && played.still_mapped == 0, format!("{played:?}"))?;
    let sent = (played.tx_packets, played.tx_bytes);
    ensure((served.tx_packets, served.tx_bytes) == sent, format!("{played:?}, {served:?}"))?;
    ensure((served.rx_packets, served.rx_bytes) == sent, format!("{played:?}, {served:?}"))?;
    ensure(!device.back_exists(bed.toolstack.store()).context("look")?, "the back end's directory is still there")?;
    device.clean_up(bed.toolstack.store()).context("clean up")?;
    Ok(lines)
}
