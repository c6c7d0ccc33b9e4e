//! Plays dom0 for the program `linux`, in a second domain: xenstored, toolstack, disk and terminal, on two real domains but
//! without Linux: `dom0 [sectors=N] [seed=N]`. The second domain's image is the module behind this domain's own.

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
use suite::block::{Memory, XVDA, disk, hex, serve};
use suite::exec::{Program, World, run as run_programs};
use suite::node::Node;
use suite::scenarios::noise;
use suite::toolstack::NewDevice;
use suite::{Context, Failure, ensure};
use xbd::SECTOR;
use xenbus::store::{Perm, Store, StoreError, Tx};

use super::fast::node;
use super::pair::{Terminal, finish, start};
use super::{Args, linux};
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
    let domain = start("linux")?;
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

/// The disk as it is made and as it must be in the end, and the SHA-256 of each.
struct Contents {
    before: Vec<u8>,
    after: Vec<u8>,
    sums: [String; 2],
}

impl Contents {
    fn new(before: Vec<u8>) -> Self {
        let mut after = before.clone();
        linux::write_pattern(&mut after);
        let sums = [hex(&Sha256::digest(&before)), hex(&Sha256::digest(&after))];
        Self { before, after, sums }
    }
}

fn play(node: &Node<Bare>, domain: &DomU, contents: Contents) -> Result<Ended, Failure> {
    let Contents { before, after, sums } = contents;
    make_home(node.store(), domain.id).context("make the home")?;
    let device = disk(domain.id, node.id());
    device.attach(node.store()).context("attach")?;
    let (mut ended, mut store) = (None, None);
    let terminal = async {
        ended = Some(drive(node, domain, &device, &sums).await?);
        Ok(())
    };
    let server = async {
        store = Some(serve(node, XVDA, Memory::new(before)).await?.store);
        Ok(())
    };
    let programs = vec![Program::new("terminal", terminal), Program::new("server", server)];
    run_programs(core::slice::from_ref(node), &mut Dom0, programs)?;
    let store = store.ok_or(Failure::new("the server has not ended"))?;
    ensure(store.bytes() == after, "the disk holds other bytes than it should")?;
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
async fn drive(
    node: &Node<Bare>,
    domain: &DomU,
    device: &NewDevice<'_>,
    expected: &[String; 2],
) -> Result<Ended, Failure> {
    let mut terminal = Terminal::new(domain).map_err(Failure)?;
    let mut said = Vec::new();
    let mut steps = 0;
    loop {
        // Asked before the ring is read: what was printed last is read still.
        let ended = domain.ended().context("getdomaininfo")?;
        node.take(Some(domain.console));
        node.own().events.unmask(domain.console);
        terminal.read(|line| said.extend(line.strip_prefix("xenlab: ").map(String::from)));
        for line in said.drain(..) {
            match (steps, line.as_str()) {
                (0, line) if line.starts_with("sha256 before ") => {
                    ensure(line.ends_with(&expected[0]), "the disk reads other than it was made")?;
                }
                (1, line) if line.starts_with("sha256 after ") => {
                    ensure(line.ends_with(&expected[1]), "the disk reads other than it was written")?;
                    terminal.write(format!("{TYPED}\r").as_bytes());
                }
                (2, line) if line.strip_prefix("console got ") == Some(TYPED) => {
                    device.ask_detach(node.store()).context("detach")?;
                }
                (3, "detached xvda") => {
                    let path = format!("/local/domain/{}/control/shutdown", domain.id.0);
                    node.store().write_text(Tx::NONE, &path, "poweroff").context("ask for the end")?;
                }
                _ => continue,
            }
            steps += 1;
        }
        if let Some(ended) = ended {
            ensure(steps == 4, format_args!("the second domain has ended after {steps} of 4 steps"))?;
            return Ok(ended);
        }
        // The next turn comes with an event, or when the executor has waited for none.
        let mut waited = false;
        poll_fn(|_| if replace(&mut waited, true) { Poll::Ready(()) } else { Poll::Pending }).await;
    }
}
