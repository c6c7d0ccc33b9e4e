//! Plays dom0 for the program `linux`, in a second domain: xenstored, toolstack, disks and terminal, on two real domains but
//! without Linux: `dom0 [sectors=N] [seed=N]`. One disk after the other is used, each in another way; what the front end says that it
//! has asked for, the back end must have got. The last one grows while it is used, and its back end dies. The second domain's image is
//! the module behind this domain's own.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::future::poll_fn;
use core::mem::replace;
use core::task::Poll;

use hypercall::event::Events;
use hypercall::{DomId, Platform};
use sha2::{Digest, Sha256};
use suite::block::{Memory, Served, disk, hex, serve};
use suite::disk::Shape;
use suite::exec::{Program, World, run as run_programs};
use suite::node::Node;
use suite::scenarios::noise;
use suite::toolstack::NewDevice;
use suite::{Context, Failure, ensure};
use xbd::back::{Started, Store as Disk, StoreFault, Token, Work};
use xbd::features::Discard;
use xbd::{MAX_SEGMENTS, SECTOR};
use xenbus::device::State;
use xenbus::store::{Perm, Store, StoreError, Tx};

use super::Args;
use super::fast::node;
use super::linux::{WAYS, Way, write_pattern};
use super::pair::{Terminal, finish, start};
use crate::bare::services;
use crate::domu::{DomU, Ended};
use crate::{Bare, local_store};

/// How long the second domain may be silent: it hashes its disk.
const PATIENCE_NS: u64 = 60_000_000_000;

/// Bytes by which the last disk grows.
const MORE: usize = 1 << 20;

/// How long its back end hangs before it dies.
const HANGS_NS: u64 = 50_000_000;

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
    let contents = Contents::new(noise(seed, sectors as usize * SECTOR), noise(seed + 1, MORE));
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
    /// What the last disk has more when it has grown.
    more: Vec<u8>,
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
    /// The disk grows.
    Grow,
    /// The disk's back end hangs, dies, and another takes its place.
    Die,
    /// The next disk is attached; after the last, the domain is asked to end.
    Next,
}

impl Contents {
    fn new(before: Vec<u8>, more: Vec<u8>) -> Self {
        let mut after = before.clone();
        let mut script = Vec::new();
        let mut step = |says, then| script.push(Step { says, then });
        for (index, way) in WAYS.iter().enumerate() {
            let name = way.name;
            after.truncate(whole(way, after.len()));
            step(format!("{name} before {}", hex(&Sha256::digest(&after))), Then::Nothing);
            write_pattern(way, &mut after);
            if way.read_only {
                step(format!("{name} refused a write"), Then::Nothing);
            }
            let says = format!("{name} after {}", hex(&Sha256::digest(&after)));
            if index == 0 {
                step(says, Then::Type);
                step(format!("console got {TYPED}"), Then::Detach);
            } else if index == WAYS.len() - 1 {
                step(says, Then::Grow);
                after.extend(&more);
                let sectors = after.len() / SECTOR;
                step(format!("{name} grown {sectors} {}", hex(&Sha256::digest(&more))), Then::Nothing);
                step(format!("{name} is busy"), Then::Die);
                step(format!("{name} is back"), Then::Detach);
                step(format!("{name} ended all"), Then::Nothing);
            } else {
                step(says, Then::Detach);
            }
            step(format!("detached {name}"), Then::Next);
        }
        Self { before, more, after, script }
    }
}

/// Returns how many of so many bytes are whole sectors.
const fn whole(way: &Way, bytes: usize) -> usize {
    bytes - bytes % way.unit as usize
}

/// A disk in memory that has done everything at once: its back end may die at any time.
struct Prompt(Memory);

impl Disk for Prompt {
    fn handle(&self) -> Self {
        Self(self.0.handle())
    }

    fn sectors(&self) -> u64 {
        self.0.sectors()
    }

    fn sector_size(&self) -> u32 {
        self.0.sector_size()
    }

    fn read_only(&self) -> bool {
        self.0.read_only()
    }

    fn discard(&self) -> Option<Discard> {
        self.0.discard()
    }

    fn start(&mut self, token: Token, work: Work<'_>) -> Started {
        match self.0.start(token, work) {
            Started::Pending => Started::Done(self.0.completed().map_or(Err(StoreFault::Failed), |(_, done)| done)),
            done => done,
        }
    }
}

/// What the terminal and the server of the disks have to tell each other.
#[derive(Default)]
struct Shared {
    /// The disk that is there.
    disk: RefCell<Option<Memory>>,
    /// Its back end is to die.
    dies: Cell<bool>,
    /// What the second domain says that it has asked of it.
    used: RefCell<String>,
}

/// Serves a disk in some way until it is gone, and judges what was asked of it.
async fn serve_way(
    node: &Node<Bare>,
    front: DomId,
    way: &Way,
    bytes: Vec<u8>,
    shared: &Shared,
) -> Result<Memory, Failure> {
    let discard = Some(Discard { granularity: way.unit, alignment: 0, secure: true });
    let shape = Shape { sector_size: way.unit, physical_sector_size: way.unit, read_only: way.read_only, discard };
    let disk = Memory::with_shape(bytes, shape);
    *shared.disk.borrow_mut() = Some(disk.handle());
    if way.config.reconnect {
        let device = NewDevice { handle: way.device, ..suite::block::disk(front, node.id()) };
        let Served { store, counters, queues, fewest } = serve_twice(node, &device, Prompt(disk), &shared.dies).await?;
        // All of it since the first back end has died.
        let enough = counters.indirect > 0 && fewest > 0;
        ensure(enough && queues == way.config.max_queues.into(), format_args!("{queues} queues, {counters:?}"))?;
        return Ok(store.0);
    }
    let Served { store, counters: did, queues, fewest } = serve(node, way.device, disk).await?;
    let fail = |what: &str| format!("{what}: {queues} queues, the least used {fewest} requests, {did:?}");
    ensure(did.refused == 0 && did.unmappable == 0 && did.lost == 0, fail("turned away"))?;
    ensure((did.reused > 0) == way.config.persistent, fail("grants"))?;
    ensure(queues == way.config.max_queues.into() && fewest > 0, fail("queues"))?;
    ensure((did.indirect > 0) == (way.io_pages > MAX_SEGMENTS), fail("indirect"))?;
    ensure(did.flushes == u64::from(!way.read_only), fail("flushes"))?;
    ensure(did.barriers == u64::from(way.all) && did.discards == u64::from(way.all), fail("barriers and discards"))?;
    let used = shared.used.take();
    for (what, count) in [
        ("queues", queues as u64),
        ("requests", did.requests),
        ("indirect", did.indirect),
        ("flushes", did.flushes),
        ("barriers", did.barriers),
        ("discards", did.discards),
    ] {
        ensure(
            used.contains(&format!(" {what}={count} ")),
            format_args!("the front end says {used:?}; {}", fail(what)),
        )?;
    }
    // By way of own pages where the back end keeps them, or where the toolstack says that it isn't trusted.
    let straight = !way.config.persistent && way.trusted;
    ensure(used.contains(" copied=0 ") == straight, format_args!("the front end says {used:?}"))?;
    Ok(store)
}

/// Serves a disk by a back end that dies when `dies` says so, and then by another.
async fn serve_twice(
    node: &Node<Bare>,
    device: &NewDevice<'_>,
    disk: Prompt,
    dies: &Cell<bool>,
) -> Result<Served<Prompt>, Failure> {
    let mut first = Box::pin(serve(node, device.handle, disk.handle()));
    poll_fn(|context| match dies.get() {
        true => Poll::Ready(Ok(())),
        false => first.as_mut().poll(context).map(|served| {
            served?;
            Err(Failure::new("the disk has gone before its back end died"))
        }),
    })
    .await?;
    // What is asked for now, nobody answers.
    let deadline = Bare.now_ns() + HANGS_NS;
    poll_fn(|_| if Bare.now_ns() > deadline { Poll::Ready(()) } else { Poll::Pending }).await;
    drop(first);
    // Said for the dead one, before there is another, which would go on with the ring of a front end that is connected.
    let (store, back) = (node.store(), format!("{}/state", device.back_path()));
    store.write_text(Tx::NONE, &back, State::Closed.number()).context("the back end's state")?;
    let front = format!("/local/domain/{}/{}/state", device.front.0, device.front_path());
    while store.read_as::<State>(Tx::NONE, &front).context("the front end's state")? != State::Initialising {
        node.pause().await;
    }
    serve(node, device.handle, disk).await
}

fn play(node: &Node<Bare>, domain: &DomU, contents: Contents) -> Result<Ended, Failure> {
    let Contents { before, more, after, script } = contents;
    make_home(node.store(), domain.id).context("make the home")?;
    let (mut ended, mut left) = (None, None);
    let shared = Shared::default();
    let terminal = async {
        ended = Some(drive(node, domain, &script, &more, &shared).await?);
        Ok(())
    };
    let server = async {
        let mut bytes = before;
        for way in &WAYS {
            bytes.truncate(whole(way, bytes.len()));
            bytes = serve_way(node, domain.id, way, bytes, &shared).await.context(way.name)?.bytes();
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
async fn drive(
    node: &Node<Bare>,
    domain: &DomU,
    script: &[Step],
    more: &[u8],
    shared: &Shared,
) -> Result<Ended, Failure> {
    let mut terminal = Terminal::new(domain).map_err(Failure)?;
    let mut disks = WAYS.iter().map(|way| NewDevice {
        handle: way.device,
        front_nodes: if way.trusted { &[] } else { &[("trusted", "0")] },
        ..disk(domain.id, node.id())
    });
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
            if line.contains(" used queues=") {
                shared.used.replace(line.clone());
            }
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
                (Then::Grow, Some(device)) => {
                    if let Some(disk) = &*shared.disk.borrow() {
                        disk.extend(more);
                    }
                    // Told in the store, too, so that the server has something to wake up from.
                    let path = format!("{}/params", device.back_path());
                    node.store().write_text(Tx::NONE, &path, "grown").context("grow")?;
                }
                (Then::Die, Some(_)) => shared.dies.set(true),
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
