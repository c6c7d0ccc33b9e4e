//! The demo: two domains of the mock hypervisor, all devices attached through xenstore, an image copied through them.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context as _, Result, anyhow, ensure};
use disk::{FileStore, Options};
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use mock::{Config, Domain, Ledger};
use sha2::{Digest, Sha256};
use suite::Failure;
use suite::block::{self, Client, hex};
use suite::exec::Program;
use suite::on_mock::{MockBed, TRACE_ENTRIES};
use suite::toolstack::NewDevice;
use xbd::SECTOR;
use xbd::protocol::Operation;

use crate::host::image;

/// Bytes of the image that is made when none is given.
const MADE_BYTES: u64 = 32 << 20;
/// Bytes that are read before they are written.
const CHUNK_BYTES: u64 = 2 << 20;
const XVDB: u32 = block::XVDA + 16;

/// Copies a disk image between two domains of the mock hypervisor and shows what it cost
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The image to copy, which is only read; else one is made
    #[arg(long, value_name = "IMAGE")]
    disk: Option<PathBuf>,
    /// Decides the frame numbers and the order of all that happens
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Writes all that happens to a file, as a timeline for Perfetto (ui.perfetto.dev)
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
}

/// What the copy has shown.
struct Outcome {
    read: [u8; 32],
    written: [u8; 32],
    bytes: u64,
    requests: u64,
    seconds: f64,
    front: Ledger,
    back: Ledger,
    allocations: u64,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let (source, kind) = match &args.disk {
        Some(path) => (image::open(path)?, "as given"),
        None => image::make(MADE_BYTES).context("the demo's image can't be made")?,
    };
    let name = args.disk.as_ref().map_or("made for the demo".into(), |path| path.display().to_string());
    let disk = FileStore::new(source.try_clone()?, &name, &Options { read_only: true, ..Options::default() })?;
    let bytes = xbd::back::Store::sectors(&disk) * SECTOR as u64;
    println!("image     {name} ({kind}), {}", HumanBytes(bytes));
    let expected = image::sha256(&source)?;
    println!("sha256    {}  as the host reads it", hex(&expected));

    // Without a name: however this ends, nothing is left behind.
    let copy = tempfile::tempfile().context("no temporary file for the copy")?;
    copy.set_len(bytes).context("no room for the copy")?;
    // Without workers, so that nothing but the seed decides what happens.
    let target = FileStore::new(copy.try_clone()?, "the copy", &Options::default())?;
    let mut bed = MockBed::new(Config::deterministic(args.seed));
    if args.trace.is_some() {
        bed.machine.record(TRACE_ENTRIES);
    }
    let outcome = copy_through(&mut bed, bytes, disk, target);
    // Of a copy that has failed, too.
    if let Some(path) = &args.trace {
        bed.write_trace(path).with_context(|| format!("{} can't be written", path.display()))?;
    }
    let outcome = outcome?;
    println!("sha256    {}  as domU reads it from xvda", hex(&outcome.read));
    println!("sha256    {}  as domU reads it back from xvdb", hex(&outcome.written));
    let copied = image::sha256(&copy)?;
    println!("sha256    {}  as the host reads the copy", hex(&copied));
    ensure!([outcome.read, outcome.written, copied] == [expected; 3], "the sums differ: data was lost on the way");
    if kind == "ext4" && image::check_ext4(&copy)?.is_some() {
        println!("e2fsck    finds no fault in the copy");
    }
    print_table(&outcome);
    if let Some(path) = &args.trace {
        let trace = bed.machine.trace();
        println!("{:36} {:>12}", "entries in the trace", trace.entries.len());
        println!("trace     {}", path.display());
    }
    println!("ok");
    Ok(())
}

/// Copies xvda to xvdb in a domU, then lets the console echo and the network carry frames.
fn copy_through(bed: &mut MockBed, bytes: u64, source: FileStore, copy: FileStore) -> Result<Outcome> {
    let nodes = [NewDevice { back_nodes: &[("mode", "r")], ..block::disk(bed.front.id(), bed.back.id()) }, {
        NewDevice { handle: XVDB, ..block::disk(bed.front.id(), bed.back.id()) }
    }];
    for device in &nodes {
        device.attach(bed.toolstack.store()).map_err(|error| anyhow!("attach: {error}"))?;
    }
    let bar = progress(3 * bytes);
    let (front, back, toolstack) = (bed.front.clone(), bed.back.clone(), bed.toolstack.clone());
    let machine = bed.machine.clone();
    let ledgers = || (machine.ledger_of(front.id()), machine.ledger_of(back.id()));
    let mut outcome = None;
    let client = async {
        let mut from = Client::attach(&front, block::XVDA).await?;
        let mut to = Client::attach(&front, XVDB).await?;
        println!("attached  xvda and xvdb: {} sectors each", from.disk().sectors);
        let (before, start) = (ledgers(), Instant::now());
        let read = copy_all(&mut from, &mut to, &bar).await?;
        to.flush().await?;
        let written = read_all(&mut to, &bar).await?;
        let seconds = start.elapsed().as_secs_f64();
        let after = ledgers();
        bar.finish_and_clear();
        outcome = Some(Outcome {
            read,
            written,
            bytes: 3 * bytes,
            requests: from.counters().requests + to.counters().requests,
            seconds,
            front: after.0.since(&before.0),
            back: after.1.since(&before.1),
            allocations: front.allocations() + back.allocations(),
        });
        for (device, mut disk) in nodes.iter().zip([from, to]) {
            device.ask_detach(toolstack.store()).map_err(Failure::new)?;
            disk.wait_close_wanted().await?;
            disk.close().await?;
        }
        println!("detached  xvda and xvdb");
        Ok(())
    };
    let serve = |handle, store| {
        let back = back.clone();
        async move { block::serve(&back, handle, store).await.map(drop) }
    };
    let programs = vec![
        Program::new("domU", client),
        Program::new("xvda's server", serve(block::XVDA, source)),
        Program::new("xvdb's server", serve(XVDB, copy)),
    ];
    bed.bed().run(programs)?;
    for device in &nodes {
        device.clean_up(bed.toolstack.store()).map_err(|error| anyhow!("clean up: {error}"))?;
    }
    bed.check()?;
    show_others(bed)?;
    outcome.context("the client has not ended")
}

/// Shows the other devices: what their scenarios have to say.
fn show_others(bed: &mut MockBed) -> Result<()> {
    let scenarios = suite::scenarios::all();
    for (name, show) in [("console", "console"), ("net", "network")] {
        let scenario = scenarios.iter().find(|each| each.name == name).context("the scenario is gone")?;
        for line in bed.run(scenario)? {
            println!("{show:9} {line}");
        }
    }
    Ok(())
}

/// Reads all of one disk and writes it to another. Returns the SHA-256 of what was read.
async fn copy_all(from: &mut Client<Domain>, to: &mut Client<Domain>, bar: &ProgressBar) -> Result<[u8; 32], Failure> {
    let sectors = from.disk().sectors;
    let mut hash = Sha256::new();
    let mut chunk = vec![0; CHUNK_BYTES as usize];
    let mut at = 0;
    while at < sectors {
        let end = sectors.min(at + CHUNK_BYTES / SECTOR as u64);
        let place = |sector: u64| (sector - at) as usize * SECTOR;
        bar.set_message("xvda → xvdb");
        let keep = |sector, buffer: &hypercall::mem::PageBuf<Domain>| {
            bar.inc(buffer.len() as u64);
            buffer.shared().read(0, &mut chunk[place(sector)..][..buffer.len()]);
        };
        from.transfer(Operation::Read, at..end, |_, _| {}, keep).await?;
        hash.update(&chunk[..place(end)]);
        let fill = |sector, buffer: &hypercall::mem::PageBuf<Domain>| {
            bar.inc(buffer.len() as u64);
            buffer.shared().write(0, &chunk[place(sector)..][..buffer.len()]);
        };
        to.transfer(Operation::Write, at..end, fill, |_, _| {}).await?;
        at = end;
    }
    Ok(hash.finalize().into())
}

/// Returns the SHA-256 of a whole disk.
async fn read_all(disk: &mut Client<Domain>, bar: &ProgressBar) -> Result<[u8; 32], Failure> {
    bar.set_message("xvdb, verified");
    let digest = disk.sha256().await;
    bar.set_position(bar.length().unwrap_or(0));
    digest
}

fn progress(bytes: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg:16} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec}");
    ProgressBar::new(bytes).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn print_table(outcome: &Outcome) {
    let per_request = |count: u64| format!("{:.3}", count as f64 / outcome.requests as f64);
    println!();
    println!("{:36} {:>12} {:>12} {:>14}", "", "domU", "driver dom.", "per request");
    let row = |name: &str, front: u64, back: u64| {
        println!("{name:36} {front:>12} {back:>12} {:>14}", per_request(front + back));
    };
    let (front, back) = (&outcome.front, &outcome.back);
    row("notifications", front.notifications, back.notifications);
    let kinds: std::collections::BTreeSet<_> = front.hypercalls.keys().chain(back.hypercalls.keys()).collect();
    for kind in kinds {
        row(&format!("hypercall {kind}"), front.calls(*kind), back.calls(*kind));
    }
    row("grants mapped", front.grant_maps, back.grant_maps);
    row("grants unmapped", front.grant_unmaps, back.grant_unmaps);
    row("bytes copied by grant", front.copied_bytes, back.copied_bytes);
    row("messages to and from xenstore", front.store_messages, back.store_messages);
    println!("{:36} {:>12}", "requests", outcome.requests);
    println!("{:36} {:>12}", "allocations on the data path", outcome.allocations);
    let rate = outcome.bytes as f64 / outcome.seconds / 1e6;
    println!("{:36} {:>12} in {:.2} s: {rate:.0} MB/s", "bytes through xbd", outcome.bytes, outcome.seconds);
}
