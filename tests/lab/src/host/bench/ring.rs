//! The message rings, beside C's and virtio's.

use std::ffi::OsStr;

use anyhow::{Result, bail};
use benches::count::Count;
use benches::rivals::{BATCHES, SHAPES};
use benches::time::Time;
use benches::{baseline, count, rivals, time};
use indicatif::{ProgressBar, ProgressStyle};

use crate::host::bench::{Args, plot, spinner};

/// What each case is called.
const TITLES: [&str; 4] = ["block, 1 segment", "block, 11 segments", "net transmit", "net receive"];

pub(crate) fn run(args: &Args) -> Result<()> {
    if let Some(folder) = &args.cases {
        return count::cases(folder);
    }
    let folder = tempfile::tempdir()?;
    let waiting = spinner("compiling what the rings are compared with");
    let mut missing = rivals::compile(folder.path());
    missing.extend(count::missing());
    waiting.finish_and_clear();
    for what in &missing {
        eprintln!("xenlab: not measured: {what}");
    }
    if baseline::required() && !missing.is_empty() {
        bail!("XEN_BENCH_REQUIRED is set, and not everything can be measured here");
    }
    let waiting = spinner("counting instructions under valgrind");
    let counts = if count::missing().is_some() {
        Vec::new()
    } else {
        count::count(
            &["bench", "ring", "--cases"]
                .map(OsStr::new)
                .into_iter()
                .chain([folder.path().as_os_str()])
                .collect::<Vec<_>>(),
        )?
    };
    waiting.finish_and_clear();
    if args.write_baseline {
        if !missing.is_empty() {
            bail!("a baseline needs all of it");
        }
        print_counts(&counts);
        return baseline::RING.write(counts.iter().filter(|count| count.rival.starts_with("ours")));
    }
    if args.check {
        print_counts(&counts);
        // What is missing was told, and may be.
        if missing.is_empty() {
            for case in baseline::RING.check(&counts)? {
                println!("less than before, write a new baseline: {case}");
            }
            println!("ok");
        }
        return Ok(());
    }
    let rivals = rivals::load(folder.path())?;
    let style = ProgressStyle::with_template("measuring time {wide_bar} {pos}/{len}");
    let bar = ProgressBar::new(time::STEPS).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let times = time::single(&rivals, || bar.inc(1))?;
    let lockstep = time::lockstep(&rivals, || bar.inc(1))?;
    bar.finish_and_clear();
    print_counts(&counts);
    print_times(&times);
    print_lockstep(&lockstep);
    if let Some(path) = &args.svg {
        plot::draw(path, &counts, &times)?;
        println!("drawn in {}", path.display());
    }
    Ok(())
}

/// Prints one value a case: a line for each rival and shape, a column for each batch.
fn print_table(heading: &str, names: &[&str], value: impl Fn(&str, &str, u32) -> Option<f64>, digits: usize) {
    println!("{heading:42}{:>9}{:>9}{:>9}", "batch 1", "8", "32");
    for (shape, title) in SHAPES.iter().zip(TITLES) {
        for name in names {
            let row = BATCHES.map(|batch| value(name, shape, batch));
            if row.iter().any(Option::is_some) {
                let cells = row.map(|cell| cell.map_or("-".into(), |number| format!("{number:.digits$}")));
                println!("  {title:20}{name:20}{:>9}{:>9}{:>9}", cells[0], cells[1], cells[2]);
            }
        }
    }
    println!();
}

/// Returns the rivals in the order of their first case.
fn names<'a>(all: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut names = Vec::new();
    for name in all {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

fn print_counts(counts: &[Count]) {
    let value = |name: &str, shape: &str, batch| {
        let same = |count: &&Count| count.rival == name && count.shape == shape && count.batch == batch;
        counts.iter().find(same).map(|count| count.instructions)
    };
    print_table("instructions a request", &names(counts.iter().map(|count| &*count.rival)), value, 1);
}

/// Finds the time of one case.
pub(super) fn time_of(times: &[Time], name: &str, shape: &str, batch: u32) -> Option<f64> {
    let same = |time: &&Time| (time.rival, time.shape, time.batch) == (name, shape, batch);
    times.iter().find(same).map(|time| time.nanoseconds)
}

fn print_times(times: &[Time]) {
    // The clang of the same flags.
    let beside = |name: &str| if name.ends_with("kernel") { "C clang, kernel" } else { "C clang" };
    let value = |name: &str, shape: &str, batch| {
        Some(time_of(times, name, shape, batch)? / time_of(times, beside(name), shape, batch)?)
    };
    let names = names(times.iter().map(|time| time.rival));
    print_table("time, in that of C clang with the same flags", &names, value, 2);
}

fn print_lockstep(times: &[Time]) {
    println!("{:42}{:>9}{:>9}", "two threads, a request in ping-pongs", "batch 1", "32");
    for name in names(times.iter().map(|time| time.rival)) {
        let cell = |batch| time_of(times, name, SHAPES[0], batch).map_or("-".into(), |unit| format!("{unit:.2}"));
        println!("  {:20}{name:20}{:>9}{:>9}", TITLES[0], cell(1), cell(32));
    }
}
