//! The guest of a Linux dom0: hashes the disk that Linux serves, writes to it, answers on its console, lets the disk be
//! detached, and shuts down when the toolstack asks: `linux`.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use hypercall::event::{Channel, EventChannels};
use hypercall::mem::{PageBuf, Shared};
use hypercall::{Mfn, Platform, Port};
use spin::Mutex;
use suite::block::{Client, XVDA, hex, pattern_word};
use suite::exec::{Program, run as run_programs};
use suite::node::Node;
use suite::{Context, Failure};
use xbd::SECTOR;
use xbd::protocol::Operation;
use xencons::front::{Console, panic_write};

use super::Args;
use super::outside::{self, Administrator, Outside, boot_page};
use crate::bare::{Services, services};
use crate::boot::start_info;
use crate::{Bare, console, println, shared};

/// Bytes at the disk's end that the pattern is written to.
const PATTERN_BYTES: u64 = 1 << 20;

/// How long a line waits for room in the console's ring before it is dropped.
const CONSOLE_PATIENCE_NS: u64 = 2_000_000_000;

type Cons = Console<EventChannels<Bare>, Shared<'static>>;

/// The console that the driver has taken over.
static CONSOLE: Mutex<Option<Cons>> = Mutex::new(None);

pub(super) fn run(_: &Args<'_>) -> Result<(), String> {
    let node = outside::node()?;
    let console_port = take_console(&services()?);
    println!("xenlab: ready");
    let life = Program::new("domU", live(&node, console_port));
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

async fn live(node: &Node<Bare>, console_port: Port) -> Result<(), Failure> {
    let administrator = Administrator::new(node)?;
    let mut disk = Some(use_disk(node).await?);
    let mut line = Vec::new();
    loop {
        let seen = node.happened();
        if node.take(Some(console_port)) {
            answer(&mut line).await?;
        }
        if let Some(used) = &mut disk {
            used.follow()?;
        }
        if let Some(used) = disk.take_if(|used| used.close_wanted()) {
            used.close().await?;
            println!("xenlab: detached xvda");
        }
        if administrator.wants_the_end()? {
            return Ok(());
        }
        if node.happened() == seen {
            node.turn().await;
        }
    }
}

/// Hashes the disk, writes the pattern to its end, and hashes it again.
async fn use_disk(node: &Node<Bare>) -> Result<Client<Bare>, Failure> {
    let mut disk = Client::attach(node, XVDA).await?;
    let sectors = disk.disk().sectors;
    println!("xenlab: xvda sectors={sectors}");
    println!("xenlab: sha256 before {}", hex(&disk.sha256().await?));
    let begin = sectors - sectors.min(PATTERN_BYTES / SECTOR as u64);
    disk.transfer(Operation::Write, begin..sectors, |sector, buffer| fill(begin, sector, buffer), |_, _| {}).await?;
    disk.flush().await?;
    println!("xenlab: sha256 after {}", hex(&disk.sha256().await?));
    let counters = disk.counters();
    println!("xenlab: {} requests, {} notifications", counters.requests, counters.notifications);
    Ok(disk)
}

/// Does to a whole disk in memory what the program does to its disk.
pub(super) fn write_pattern(disk: &mut [u8]) {
    let begin = disk.len() - disk.len().min(PATTERN_BYTES as usize);
    for (index, word) in disk[begin..].as_chunks_mut().0.iter_mut().enumerate() {
        *word = pattern_word(index as u64).to_le_bytes();
    }
}

/// Puts the pattern into a buffer: words that are numbered from `begin`, little endian.
fn fill(begin: u64, sector: u64, buffer: &PageBuf<Bare>) {
    const WORD: u64 = size_of::<u64>() as u64;
    let first = (sector - begin) * SECTOR as u64 / WORD;
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
