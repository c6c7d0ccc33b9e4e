//! Plays dom0 for the program `linux`, in a second domain: xenstored, toolstack, disks and terminal, on two real domains but
//! without Linux: `dom0 [sectors=N] [seed=N]`. One disk after the other is used, each in another way. The second domain's image is the
//! module behind this domain's own.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use core::future::poll_fn;
use core::mem::replace;
use core::task::Poll;

use hypercall::DomId;
use hypercall::event::Events;
use sha2::{Digest, Sha256};
use suite::block::{Memory, disk, hex, serve};
use suite::exec::{Program, World, run as run_programs};
use suite::node::Node;
use suite::scenarios::noise;
use suite::toolstack::NewDevice;
use suite::{Context, Failure, ensure};
use xbd::SECTOR;
use xenbus::store::{Perm, Store, StoreError, Tx};

use super::Args;
use super::fast::node;
use super::linux::{WAYS, write_pattern};
use super::pair::{Terminal, finish, start};
use crate::bare::services;
use crate::domu::{DomU, Ended};
use crate::{Bare, local_store};

/// How long the second domain may be silent: it hashes its disk.
const PATIENCE_NS: u64 = 60_000_000_000;

/// The world around the programs: the store daemon.
struct Dom0;

impl World for Dom0 {
    fn pump(&mut self) -> bool {
        local_store::pump()
    }

    fn choose(&mut self, _: usize) -> usize {
        0
    }

    fn patience_ns(&self) -> u64 {
        PATIENCE_NS
    }
}

/// What is typed at the second domain's console.
const TYPED: &str = "typed in dom0";

pub(super) fn run(args: &Args<'_>) -> Result<(), String> {
    let seed = args.number("seed", 1)?;
    // Not a multiple of what a request holds.
    let sectors = args.number("sectors", 4109)?;
    let services = services()?;
    let node = node(&services)?;
    // All of this before the domain runs, which waits for its store no longer than a few seconds.
    let contents = Contents::new(noise(seed, sectors as usize * SECTOR));
    let domain = start(&format!("linux disks={}", WAYS.len()))?;
    let served = local_store::introduce(&services, &domain)
        .and_then(|()| play(&node, &domain, contents).map_err(|failure| failure.to_string()));
    local_store::release(domain.id);
    match served {
        Ok(ended) => finish(domain, ended),
        Err(message) => {
            let _ = domain.destroy();
            Err(message)
        }
    }
}

/// A disk's contents as they are made and as they must be in the end, and what the second domain has to say meanwhile.
struct Contents {
    before: Vec<u8>,
    after: Vec<u8>,
    script: Vec<Step>,
}

/// What the second domain says, and what that leads to.
struct Step {
    says: String,
    then: Then,
}

enum Then {
    Nothing,
    Type,
    Detach,
    /// The next disk is attached; after the last, the domain is asked to end.
    Next,
}

impl Contents {
    fn new(before: Vec<u8>) -> Self {
        let mut after = before.clone();
        let mut script = Vec::new();
        let mut step = |says, then| script.push(Step { says, then });
        for (index, way) in WAYS.iter().enumerate() {
            let name = way.name;
            step(format!("{name} before {}", hex(&Sha256::digest(&after))), Then::Nothing);
            write_pattern(way, &mut after);
            let says = format!("{name} after {}", hex(&Sha256::digest(&after)));
            if index == 0 {
                step(says, Then::Type);
                step(format!("console got {TYPED}"), Then::Detach);
            } else {
                step(says, Then::Detach);
            }
            step(format!("detached {name}"), Then::Next);
        }
        Self { before, after, script }
    }
}

fn play(node: &Node<Bare>, domain: &DomU, contents: Contents) -> Result<Ended, Failure> {
    let Contents { before, after, script } = contents;
    make_home(node.store(), domain.id).context("make the home")?;
    let (mut ended, mut left) = (None, None);
    let terminal = async {
        ended = Some(drive(node, domain, &script).await?);
        Ok(())
    };
    let server = async {
        let mut bytes = before;
        for way in &WAYS {
            let served = serve(node, way.device, Memory::new(bytes)).await.context(way.name)?;
            let did = served.counters;
            ensure(did.refused == 0 && did.unmappable == 0 && did.lost == 0, format_args!("{}: {did:?}", way.name))?;
            ensure((did.reused > 0) == way.config.persistent, format_args!("{}: {did:?}", way.name))?;
            bytes = served.store.bytes();
        }
        left = Some(bytes);
        Ok(())
    };
    let programs = vec![Program::new("terminal", terminal), Program::new("server", server)];
    run_programs(core::slice::from_ref(node), &mut Dom0, programs)?;
    ensure(
        left.ok_or(Failure::new("the server has not ended"))? == after,
        "the disk holds other bytes than it should",
    )?;
    ended.ok_or(Failure::new("the domain has not ended"))
}

/// Makes a domain's home, as a toolstack does: the domain reads it, and writes where it has to.
fn make_home(store: &impl Store, id: DomId) -> Result<(), StoreError> {
    let toolstack = Perm { domain: DomId(0), read: false, write: false };
    let node = |path: &str, write| {
        let path = format!("/local/domain/{}{path}", id.0);
        store.write_text(Tx::NONE, &path, "")?;
        store.set_permissions(Tx::NONE, &path, &[toolstack, Perm { domain: id, read: true, write }])
    };
    node("", false)?;
    node("/device", false)?;
    node("/control", false)?;
    node("/control/shutdown", true)
}

/// Is the second domain's terminal and its administrator: what it says leads to the next step.
async fn drive(node: &Node<Bare>, domain: &DomU, script: &[Step]) -> Result<Ended, Failure> {
    let mut terminal = Terminal::new(domain).map_err(Failure)?;
    let mut disks = WAYS.iter().map(|way| NewDevice { handle: way.device, ..disk(domain.id, node.id()) });
    let mut device = disks.next();
    let attach = |device: &Option<NewDevice<'_>>| match device {
        Some(device) => device.attach(node.store()).context("attach"),
        None => {
            let path = format!("/local/domain/{}/control/shutdown", domain.id.0);
            node.store().write_text(Tx::NONE, &path, "poweroff").context("ask for the end")
        }
    };
    attach(&device)?;
    let mut said = Vec::new();
    let mut steps = script.iter();
    loop {
        // Asked before the ring is read: what was printed last is read still.
        let ended = domain.ended().context("getdomaininfo")?;
        node.take(Some(domain.console));
        node.own().events.unmask(domain.console);
        terminal.read(|line| said.extend(line.strip_prefix("xenlab: ").map(String::from)));
        for line in said.drain(..) {
            let Some(Step { says, then }) = steps.as_slice().first() else { continue };
            // Of what it says besides, nothing begins like this.
            let about = says.rsplit_once(' ').map_or(says.as_str(), |(about, _)| about);
            if !line.starts_with(about) {
                continue;
            }
            ensure(line == *says, format_args!("it says {line:?}, and {says:?} was expected"))?;
            steps.next();
            match (then, &device) {
                (Then::Type, _) => terminal.write(format!("{TYPED}\r").as_bytes()),
                (Then::Detach, Some(device)) => device.ask_detach(node.store()).context("detach")?,
                (Then::Next, Some(gone)) => {
                    gone.clean_up(node.store()).context("clean up")?;
                    device = disks.next();
                    attach(&device)?;
                }
                (Then::Nothing, _) | (_, None) => {}
            }
        }
        if let Some(ended) = ended {
            let left = steps.len();
            ensure(left == 0, format_args!("the second domain has ended {left} steps early"))?;
            return Ok(ended);
        }
        // The next turn comes with an event, or when the executor has waited for none.
        let mut waited = false;
        poll_fn(|_| if replace(&mut waited, true) { Poll::Ready(()) } else { Poll::Pending }).await;
    }
}
