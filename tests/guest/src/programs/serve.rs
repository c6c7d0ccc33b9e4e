//! A driver domain: serves a disk in memory to every front end that the toolstack connects with it: `serve [mib=N] [large=NAME]`.
//!
//! Disks are known by the node `params`, which is the word behind `target=` in a domain's configuration. What is written to a disk
//! stays there when its device goes, and is there for the next device with that word, of whatever domain. All disks are of one size at first, and one may have sectors of 4 KiB.
//! "NAME MIB" in the node `resize` of the domain's home gives a disk that has a device another size.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use hypercall::Platform;
use suite::block::Memory;
use suite::disk::Shape;
use suite::exec::{Program, run as run_programs};
use suite::node::{Node, Own};
use suite::{Context, Failure, ensure};
use xbd::back::{Back, Change, Config, Counters, Store as _};
use xbd::features::Discard;
use xenbus::device::{Enumerator, Hotplug};
use xenbus::store::{Store, Tx, WatchId};

use super::Args;
use super::outside::{self, Administrator, Outside};
use crate::memory::pages;
use crate::{Bare, println};

pub(super) fn run(args: &Args<'_>) -> Result<(), String> {
    let size = args.number("mib", 16)?.checked_mul(1 << 20).and_then(|bytes| usize::try_from(bytes).ok());
    let large = args.get("large").unwrap_or_default().to_string();
    let mut server = Server::new(outside::node()?, size.ok_or("mib: too many")?, large);
    let node = server.node.clone();
    let life = Program::new("server", server.live());
    run_programs(core::slice::from_ref(&node), &mut Outside, [life].into()).map_err(|failure| failure.to_string())?;
    match server.allocations {
        0 => Ok(()),
        count => Err(format!("{count} allocation(s) on the data path")),
    }
}

/// Where the toolstack says which disk has another size now.
const RESIZE: &str = "resize";

/// What a disk with large sectors is.
const LARGE: Shape = Shape {
    sector_size: 4096,
    physical_sector_size: 4096,
    read_only: false,
    discard: Some(Discard { granularity: 4096, alignment: 0, secure: true }),
};

/// Some disks at once, in the address space that the guest has for others' pages.
const CONFIG: Config = Config {
    max_queues: 2,
    max_ring_pages: 4,
    max_indirect_segments: 64,
    persistent: true,
    max_persistent: 352,
    idle_ns: 60_000_000_000,
    rest_ns: 100_000_000,
    pages: 352,
    copy_limit: 4096,
    copy_pages: 32,
};

struct Server {
    node: Node<Bare>,
    /// Bytes of each disk.
    size: usize,
    /// The disk that has large sectors.
    large: String,
    /// Disks that no device has just now, by their names.
    idle: BTreeMap<String, Memory>,
    devices: Vec<Device>,
    /// How often serving requests has asked for memory.
    allocations: u64,
}

/// A device that has a disk.
struct Device {
    disk: String,
    back: Back<Own<Bare>, Memory>,
    /// What was done for the front end that is there, or was last.
    counters: Counters,
    /// How many queues the front end has, or has had last, and how many of them have brought requests.
    queues: (usize, usize),
    /// Sectors that the disk had discarded before this device came.
    discarded: u64,
}

impl Device {
    /// Tells what was done for the front end, and returns the disk with its name.
    fn end(self) -> (String, Memory) {
        let Self { disk, back, counters, queues: (queues, used), discarded } = self;
        let store = back.into_store();
        let Counters { requests, indirect, flushes, discards, refused, unmappable, reused, .. } = counters;
        println!(
            "xenlab: disk {disk} served queues={queues} used={used} requests={requests} indirect={indirect} flushes={flushes} \
             discards={discards} discarded={} reused={reused} refused={refused} unmappable={unmappable}",
            store.discarded() - discarded,
        );
        (disk, store)
    }
}

impl Server {
    const fn new(node: Node<Bare>, size: usize, large: String) -> Self {
        Self { node, size, large, idle: BTreeMap::new(), devices: Vec::new(), allocations: 0 }
    }

    async fn live(&mut self) -> Result<(), Failure> {
        let node = self.node.clone();
        let administrator = Administrator::new(&node)?;
        let mut hotplug = Enumerator::back(node.store(), "vbd").context("watch backend/vbd")?;
        let resize = node.store().watch(RESIZE).context("watch resize")?;
        println!("xenlab: ready");
        loop {
            let seen = node.happened();
            for change in hotplug.changes().context("list devices")? {
                if let Hotplug::Added(path) = change {
                    self.add(&path)?;
                }
            }
            self.heed(resize)?;
            let more = self.serve()?;
            if administrator.wants_the_end()? {
                let left = self.devices.len();
                return ensure(left == 0, format_args!("{left} device(s) are still there"));
            }
            if more {
                node.pause().await;
            } else if node.happened() == seen {
                let next = self.devices.iter_mut().filter_map(|device| device.back.next_tend_ns()).min();
                node.turn_until(next).await;
            }
        }
    }

    /// Gives a new device its disk.
    fn add(&mut self, path: &str) -> Result<(), Failure> {
        let store = self.node.store();
        // Looked at anew: the device may be served already, or gone again.
        let named: Option<String> = store.read_if_there(Tx::NONE, &format!("{path}/params")).context("params")?;
        let Some(name) = named.filter(|_| !self.devices.iter().any(|device| device.back.device().path() == path))
        else {
            return Ok(());
        };
        if self.devices.iter().any(|device| device.disk == name) {
            println!("xenlab: {path}: the disk {name} has a device already");
            return Ok(());
        }
        let disk = match self.idle.remove(&name) {
            Some(disk) => disk,
            None => match zeroes(self.size) {
                Some(bytes) => Memory::with_shape(bytes, if name == self.large { LARGE } else { Shape::default() }),
                None => {
                    println!("xenlab: {path}: no memory for the disk {name}");
                    return Ok(());
                }
            },
        };
        let discarded = disk.discarded();
        let back = Back::new(self.node.own(), path, disk, CONFIG).context(path)?;
        println!("xenlab: {path}: disk {name}, {} bytes", self.size);
        self.devices.push(Device { disk: name, back, counters: Counters::default(), queues: (0, 0), discarded });
        Ok(())
    }

    /// Gives a disk another size, if the toolstack has said so.
    fn heed(&mut self, resize: WatchId) -> Result<(), Failure> {
        let store = self.node.store();
        if !store.fired(resize) {
            return Ok(());
        }
        let Some(said) = store.read_if_there::<String>(Tx::NONE, RESIZE).context("resize")? else { return Ok(()) };
        let asked = said.split_once(' ').and_then(|(name, mib)| Some((name, mib.parse::<u32>().ok()?)));
        let (name, mib) = asked.ok_or_else(|| Failure(format!("resize: {said:?}")))?;
        let device = self.devices.iter_mut().find(|device| device.disk == name);
        let back = &mut device.ok_or_else(|| Failure(format!("resize: the disk {name} has no device")))?.back;
        back.store().resize(u64::from(mib) << 20 >> 9);
        println!("xenlab: disk {name} has {} sectors", back.store().sectors());
        back.resized().context("resized")
    }

    /// Serves what there is to serve. Returns whether there is more to do at once.
    fn serve(&mut self) -> Result<bool, Failure> {
        let node = &self.node;
        let mut more = false;
        let mut over = Vec::new();
        let now = Bare.now_ns();
        for (index, Device { back, counters, queues, .. }) in self.devices.iter_mut().enumerate() {
            let busy = back.store_busy();
            for queue in 0..back.queues() {
                if !node.take(back.port(queue)) && !busy {
                    continue;
                }
                let before = pages::allocations();
                // A front end that breaks the rules loses its device, no more; the back end itself tells the store and the
                // console what was wrong, which is no part of the data path.
                if let Ok(left) = back.poll(queue) {
                    more |= left;
                    self.allocations += pages::allocations() - before;
                }
            }
            back.tend(now);
            if let Some(now) = back.counters() {
                *counters = now;
                let mut used = 0;
                for queue in 0..back.queues() {
                    used += usize::from(back.counters_of(queue).is_some_and(|counters| counters.requests > 0));
                }
                *queues = (back.queues(), used);
            }
            if (back.device().changed() || back.closing()) && matches!(back.step(), Ok(Change::Removed)) {
                over.push(index);
            }
            more |= back.store_busy();
        }
        for index in over.into_iter().rev() {
            let device = self.devices.swap_remove(index);
            let path = String::from(device.back.device().path());
            let (disk, store) = device.end();
            self.idle.insert(disk, store);
            println!("xenlab: {path}: gone");
            // Whoever makes the same device again at once is not told of as new: the list of devices is the same as before.
            self.add(&path)?;
        }
        Ok(more)
    }
}

/// Returns so many bytes, if there is memory for them.
fn zeroes(len: usize) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(len).ok()?;
    bytes.resize(len, 0);
    Some(bytes)
}
