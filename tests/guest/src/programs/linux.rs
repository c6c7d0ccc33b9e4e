//! The guest of a Linux dom0: hashes the disk that Linux serves, writes to it, answers on its console, lets the disk be
//! detached, and shuts down when the toolstack asks: `linux [disks=N]`. With more than one disk, each comes when the one before it is
//! gone, and is used in another way. Of a disk that grows, what is new is hashed; then it is kept busy until it goes.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use hypercall::event::{Channel, EventChannels};
use hypercall::mem::{PAGE_SIZE, PageBuf, Shared};
use hypercall::{Mfn, Platform, Port};
use spin::Mutex;
use suite::block::{Client, XVDA, hex, pattern_word};
use suite::exec::{Program, run as run_programs};
use suite::node::Node;
use suite::{Context, Failure, ensure};
use xbd::front::{Config, Counters, SubmitError};
use xbd::protocol::Operation;
use xbd::{MAX_SEGMENTS, SECTOR};
use xencons::front::{Console, panic_write};

use super::Args;
use super::busy::Busy;
use super::outside::{self, Administrator, Outside, boot_page};
use crate::bare::{Services, services};
use crate::boot::start_info;
use crate::{Bare, console, println, shared};

/// Bytes at the disk's end that the pattern is written to.
const PATTERN_BYTES: u64 = 1 << 20;

/// How long a line waits for room in the console's ring before it is dropped.
const CONSOLE_PATIENCE_NS: u64 = 2_000_000_000;

/// A way of using a disk.
#[derive(Debug)]
pub(super) struct Way {
    /// The disk's name, and its number.
    pub(super) name: &'static str,
    pub(super) device: u32,
    pub(super) config: Config,
    /// Pages of an I/O.
    pub(super) io_pages: usize,
    /// Bytes at the disk's end that are written.
    written: u64,
    /// All that a disk is offered to do is done to it: barrier, discard.
    pub(super) all: bool,
    /// Bytes of its sectors.
    pub(super) unit: u32,
    /// It can't be written.
    pub(super) read_only: bool,
    /// The toolstack says that its back end can be trusted.
    pub(super) trusted: bool,
}

const LARGE: Config = Config { max_queues: 2, max_ring_pages: 16, ..Config::DEFAULT };

/// The first is the life of a plain disk; for the others, a back end offers all it can. The last one grows, and is kept busy until it
/// goes.
pub(super) const WAYS: [Way; 6] = [
    Way {
        config: Config::DEFAULT,
        io_pages: MAX_SEGMENTS,
        written: PATTERN_BYTES,
        all: false,
        ..Way::new("xvda", XVDA, LARGE)
    },
    Way::new("xvdb", XVDA + 16, LARGE),
    Way::new("xvdc", XVDA + 32, Config { persistent: true, ..LARGE }),
    Way { io_pages: 20, trusted: false, ..Way::new("xvdd", XVDA + 48, Config { max_ring_pages: 2, ..LARGE }) },
    Way { written: 0, all: false, read_only: true, ..Way::new("xvde", XVDA + 64, LARGE) },
    Way { unit: 4096, ..Way::new("xvdf", XVDA + 80, Config { reconnect: true, ..LARGE }) },
];

impl Way {
    /// Returns a way in which all of a disk is written, and all is done to it.
    const fn new(name: &'static str, device: u32, config: Config) -> Self {
        // More pages than a request of Linux's has: each I/O is several requests.
        let (io_pages, written) = (300, u64::MAX);
        Self {
            name,
            device,
            config,
            io_pages,
            written,
            all: true,
            unit: SECTOR as u32,
            read_only: false,
            trusted: true,
        }
    }

    /// Returns what is written to a disk of that many sectors, and where its words begin: each way has words of its own.
    pub(super) const fn begin(&self, sectors: u64) -> (u64, u64) {
        let written = self.written / SECTOR as u64;
        (sectors - if sectors < written { sectors } else { written }, ((self.device - XVDA) as u64) << 20)
    }

    /// Returns what is discarded of a disk of that many sectors: a quarter of it, in large units.
    fn discarded(&self, sectors: u64) -> core::ops::Range<u64> {
        let quarter = sectors / 4 / 8 * 8;
        quarter..2 * quarter
    }
}

type Cons = Console<EventChannels<Bare>, Shared<'static>>;

/// The console that the driver has taken over.
static CONSOLE: Mutex<Option<Cons>> = Mutex::new(None);

pub(super) fn run(args: &Args<'_>) -> Result<(), String> {
    let disks = args.number("disks", 1)?;
    let ways = usize::try_from(disks).ok().and_then(|disks| WAYS.get(..disks));
    let ways = ways.ok_or_else(|| format!("disks={disks}: there are {} ways to use one", WAYS.len()))?;
    let node = outside::node()?;
    let console_port = take_console(&services()?);
    println!("xenlab: ready");
    let life = Program::new("domU", live(&node, console_port, ways));
    run_programs(core::slice::from_ref(&node), &mut Outside, [life].into()).map_err(|failure| failure.to_string())?;
    match node.allocations() {
        0 => Ok(()),
        count => Err(format!("{count} allocation(s) on the data path")),
    }
}

/// Lets the driver take the console over from the polled output, and returns its port.
fn take_console(services: &Services) -> Port {
    let (_, port) = console::ring();
    let channel = Channel::adopt(&services.events, port);
    *CONSOLE.lock() = Some(Console::new(console_page(), channel));
    console::set_driver(Some(print));
    port
}

fn console_page() -> Shared<'static> {
    // SAFETY: not the first domain, as `run` has checked, so this is the variant that its builder filled in.
    boot_page(Mfn(unsafe { start_info().console.domU }.mfn.0 as u64))
}

/// Prints by the driver; a line feed moves to the line's start, too, as terminals want it.
fn print(bytes: &[u8]) {
    let deadline = Bare.now_ns() + CONSOLE_PATIENCE_NS;
    let Some(mut guard) = CONSOLE.try_lock() else {
        // A panic or fault within the driver itself: from here on, its own state doesn't count any more.
        if let Ok(services) = services() {
            panic_write(&Bare, &services.events, console_page(), console::ring().1, bytes, deadline);
        }
        return;
    };
    let Some(console) = guard.as_mut() else { return };
    for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
        match piece.strip_suffix(b"\n") {
            Some(line) => put(console, line, deadline) && put(console, b"\r\n", deadline),
            None => put(console, piece, deadline),
        };
    }
}

/// Writes all bytes, waiting for room; returns whether they went out in time.
fn put(console: &mut Cons, mut bytes: &[u8], deadline_ns: u64) -> bool {
    while !bytes.is_empty() {
        let Ok(count) = console.write(bytes) else { return false };
        bytes = &bytes[count..];
        if count == 0 {
            if Bare.now_ns() > deadline_ns {
                return false;
            }
            // Not by its port, whose event may be pending already for what was typed.
            shared::wait(&[], Bare.now_ns() + 1_000_000);
        }
    }
    true
}

async fn live(node: &Node<Bare>, console_port: Port, ways: &[Way]) -> Result<(), Failure> {
    let administrator = Administrator::new(node)?;
    let mut ways = ways.iter();
    let mut disk = use_next(node, ways.next()).await?;
    let mut line = Vec::new();
    loop {
        let seen = node.happened();
        if node.take(Some(console_port)) {
            answer(&mut line).await?;
        }
        if let Some(used) = &mut disk {
            used.go_on(node).await.context(used.way.name)?;
        }
        if let Some(Used { way, client, busy, .. }) = disk.take_if(|used| used.client.close_wanted()) {
            match busy {
                Some(busy) => busy.close(client).await.context(way.name)?,
                None => client.close().await?,
            }
            println!("xenlab: detached {}", way.name);
            disk = use_next(node, ways.next()).await?;
        }
        if administrator.wants_the_end()? {
            return Ok(());
        }
        if node.happened() == seen {
            node.turn().await;
        }
    }
}

/// A disk that was used, and is still there.
struct Used<'a> {
    way: &'a Way,
    client: Client<Bare>,
    sectors: u64,
    /// What keeps it busy.
    busy: Option<Busy>,
}

impl Used<'_> {
    /// Does what there is to do now.
    async fn go_on(&mut self, node: &Node<Bare>) -> Result<(), Failure> {
        let Self { way, client, sectors, busy } = self;
        client.follow()?;
        let now = client.disk().sectors;
        if now != *sectors {
            println!("xenlab: {} grown {now} {}", way.name, hex(&client.sha256_of(*sectors..now).await?));
            let (_, word) = way.begin(*sectors);
            *busy = Some(Busy::new(node, way.name, *sectors, word)?);
            *sectors = now;
        }
        busy.as_mut().map_or(Ok(()), |busy| busy.go_on(client))
    }
}

/// Uses a disk, once it is there.
async fn use_next<'a>(node: &Node<Bare>, way: Option<&'a Way>) -> Result<Option<Used<'a>>, Failure> {
    let Some(way) = way else { return Ok(None) };
    let client = use_disk(node, way).await.context(way.name)?;
    let sectors = client.disk().sectors;
    Ok(Some(Used { way, client, sectors, busy: None }))
}

/// Hashes a disk, writes to it, and hashes it again.
async fn use_disk(node: &Node<Bare>, way: &Way) -> Result<Client<Bare>, Failure> {
    let name = way.name;
    let mut disk = Client::attach_with(node, way.device, way.config).await?;
    disk.set_io_pages(way.io_pages);
    let sectors = disk.disk().sectors;
    let (unit, read_only) = (disk.disk().sector_size, disk.disk().read_only);
    let as_told = (unit, read_only) == (way.unit, way.read_only);
    ensure(as_told, format_args!("sectors of {unit} bytes, read-only: {read_only}"))?;
    println!("xenlab: {name} sectors={sectors}");
    println!("xenlab: {name} before {}", hex(&disk.sha256().await?));
    let (begin, word) = way.begin(sectors);
    let fill = |sector, buffer: &PageBuf<Bare>| fill(word, sector - begin, buffer);
    disk.transfer(Operation::Write, begin..sectors, fill, |_, _| {}).await?;
    if way.all && disk.disk().barrier {
        disk.barrier().await?;
    }
    if way.all && disk.disk().discard.is_some() {
        disk.discard(way.discarded(sectors), false).await?;
    }
    if read_only {
        try_to_write(&mut disk)?;
        println!("xenlab: {name} refused a write");
    } else {
        disk.flush().await?;
    }
    println!("xenlab: {name} after {}", hex(&disk.sha256().await?));
    let counters = disk.counters();
    let Counters { requests, indirect, bounced_bytes, flushes, barriers, discards, notifications, .. } = counters;
    println!(
        "xenlab: {name} used queues={} requests={requests} indirect={indirect} copied={bounced_bytes} flushes={flushes} \
         barriers={barriers} discards={discards} notifications={notifications} reconnections={}",
        disk.queues(),
        counters.reconnections,
    );
    Ok(disk)
}

/// Fails unless a write is refused before it comes to the ring.
fn try_to_write(disk: &mut Client<Bare>) -> Result<(), Failure> {
    let before = disk.counters().requests;
    let buffer = PageBuf::new(&Bare, PAGE_SIZE).context("buffer")?;
    let queue = disk.queue(0)?;
    let refused = queue.submit(Operation::Write, 0, (0, Some(buffer))).map_err(|(error, _)| error);
    queue.push();
    let after = disk.counters().requests;
    let as_wanted = refused == Err(SubmitError::ReadOnly) && before == after;
    ensure(as_wanted, format_args!("a write to a read-only disk: {refused:?}, {} requests", after - before))
}

/// Does to a whole disk in memory what the program does to its disk.
pub(super) fn write_pattern(way: &Way, disk: &mut [u8]) {
    let sectors = (disk.len() / SECTOR) as u64;
    let (begin, first) = way.begin(sectors);
    for (index, word) in disk[begin as usize * SECTOR..].as_chunks_mut().0.iter_mut().enumerate() {
        *word = pattern_word(first + index as u64).to_le_bytes();
    }
    if way.all {
        let discarded = way.discarded(sectors);
        disk[discarded.start as usize * SECTOR..discarded.end as usize * SECTOR].fill(0);
    }
}

/// Puts the pattern into a buffer: words that are numbered from `first` where the pattern begins, `sector` sectors before the buffer.
fn fill(first: u64, sector: u64, buffer: &PageBuf<Bare>) {
    const WORD: u64 = size_of::<u64>() as u64;
    let first = first + sector * SECTOR as u64 / WORD;
    for index in 0..buffer.len() as u64 / WORD {
        buffer.shared().write((index * WORD) as usize, &pattern_word(first + index).to_le_bytes());
    }
}

/// Reads what was typed, and answers each line.
async fn answer(line: &mut Vec<u8>) -> Result<(), Failure> {
    loop {
        let mut typed = [0; 64];
        let count = match CONSOLE.lock().as_mut() {
            Some(console) => console.read(&mut typed).context("xencons read")?,
            None => 0,
        };
        if count == 0 {
            if let Some(console) = CONSOLE.lock().as_ref() {
                console.unmask();
            }
            return Ok(());
        }
        for byte in &typed[..count] {
            match byte {
                b'\r' | b'\n' if line.is_empty() => {}
                b'\r' | b'\n' => {
                    println!("xenlab: console got {}", String::from_utf8_lossy(line));
                    line.clear();
                }
                byte => line.push(*byte),
            }
        }
    }
}
