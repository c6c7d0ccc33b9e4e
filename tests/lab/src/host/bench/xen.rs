//! A block request on real Xen: our front end beside Linux's, at the same back end.
//!
//! QEMU counts instructions as time here, so that the processor time by which Xen charges a domain is what the domain, and Xen on its
//! behalf, has executed, whatever else the host does.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};

use crate::host::bench::plot::{self, Bars};
use crate::host::guest;
use crate::host::linux::{DomU, judge_job, machine, said_in_dom0, watch};
use crate::host::qemu::Run;
use crate::host::setup::Beds;

const JOB: &[u8] = include_bytes!("../../../dom0/bench-job");
const DOMU_INIT: &[u8] = include_bytes!("../../../domu/bench-init");

/// MiB of the disk.
const MIB: u64 = 32;

/// Requests of a page in a pass over it.
const PASS: u64 = MIB << 20 >> 12;

/// An instruction lasts two to the power of this many nanoseconds: 8 ns. Less, and what `xl` tells, in tenths of a second, is too
/// coarse; more, and the ticks of Linux's clock, which come by time, would be a larger part of what is counted.
const SHIFT: u32 = 3;

/// Counts what a request costs on real Xen, beside Linux's front end at the same back end: instructions of the guest and of Xen
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Passes over a disk of 32 MiB, of 8192 requests each
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..1000))]
    passes: u64,
    /// Draws the table as an SVG file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Seconds until the run is given up
    #[arg(long, default_value_t = 1800)]
    timeout: u64,
    /// Shows the lines of Xen and of dom0's start too
    #[arg(long, short)]
    verbose: bool,
}

/// What a request has cost.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Cost {
    /// Instructions of the domain, and of Xen for it.
    guest: f64,
    /// Instructions of dom0, which is mostly the back end.
    dom0: f64,
}

/// The rows of the table.
#[derive(Debug, PartialEq)]
struct Table {
    mapped: Cost,
    persistent: Cost,
    /// With fio.
    linux: Cost,
    /// fio alone.
    fio: Cost,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let beds = Beds::find()?;
    let elf = guest::build()?;
    let domu = DomU::new(&beds, DOMU_INIT)?;
    let requests = args.passes * PASS;
    let numbers = [args.passes, requests, MIB].map(|number| number.to_string());
    let [passes, count, mib] = numbers.each_ref().map(|number| number.as_bytes());
    let files = [&domu.files()[..], &[("job.passes", passes), ("job.requests", count), ("job.mib", mib)]].concat();
    // One processor: what is instructions is time for all of the machine, and only one may have it.
    let mut machine = machine(&beds, 1, 1, elf, JOB, args.timeout, &files)?;
    machine.count(SHIFT);
    let started = Instant::now();
    let run = watch(machine, args.timeout, args.verbose, &["mapped", "persistent", "linux"])?;
    judge_job(&run, args.timeout, &[])?;
    let table = read(&run, requests)?;
    print(&table, requests);
    if let Some(path) = &args.svg {
        let bars = Bars { title: "guest and Xen", bars: bars(&table) };
        plot::draw_groups(path, "instructions a read of 4 KiB on real Xen", &[bars])?;
        println!("drawn in {}", path.display());
    }
    println!("({:.1} s)", started.elapsed().as_secs_f64());
    Ok(())
}

/// Works out what a request has cost each.
fn read(run: &Run, requests: u64) -> Result<Table> {
    let seconds = |domain: &str, when: &str| -> Result<(f64, f64)> {
        let key = format!("cost {domain} {when} ");
        let told = run.lines.iter().find_map(|line| line.strip_prefix("xenlab-dom0: ")?.strip_prefix(&key));
        let told = told.with_context(|| {
            format!("the cost of {domain} {when} it is missing; last lines:\n{}", said_in_dom0(&run.lines))
        })?;
        let (guest, dom0) = told.split_once(' ').with_context(|| format!("no two times: {told:?}"))?;
        let number = |text: &str| text.parse().with_context(|| format!("no number of seconds: {text:?}"));
        Ok((number(guest)?, number(dom0)?))
    };
    let each = |seconds: f64| seconds * 1e9 / f64::from(1 << SHIFT) / requests as f64;
    let cost = |domain: &str, from: &str, to: &str| -> Result<Cost> {
        let (before, after) = (seconds(domain, from)?, seconds(domain, to)?);
        ensure!(after.0 > before.0, "{domain} has cost nothing from {before:?} to {after:?}");
        Ok(Cost { guest: each(after.0 - before.0), dom0: each(after.1 - before.1) })
    };
    // Our guest asks Xen for its own time, which is finer than what `xl` tells.
    let ours = |domain: &str| -> Result<Cost> {
        let key = format!("{domain}: xenlab: bench done requests={requests} running_ns=");
        let told = run.lines.iter().find_map(|line| line.strip_prefix(&key)?.split(' ').next());
        let told = told.with_context(|| format!("{domain} has not told that it has made {requests} requests"))?;
        let running_ns: f64 = told.parse().with_context(|| format!("no number of nanoseconds: {told:?}"))?;
        Ok(Cost {
            guest: each(running_ns / 1e9),
            dom0: each(seconds(domain, "after")?.1 - seconds(domain, "before")?.1),
        })
    };
    let table = Table {
        mapped: ours("mapped")?,
        persistent: ours("persistent")?,
        linux: cost("linux", "before", "after")?,
        fio: cost("linux", "after", "nothing")?,
    };
    Ok(table)
}

/// Returns a bar for each domain.
fn bars(table: &Table) -> Vec<(&'static str, f64)> {
    vec![
        ("ours, mapped", table.mapped.guest),
        ("ours, persistent", table.persistent.guest),
        ("Linux", table.linux.guest - table.fio.guest),
    ]
}

fn print(table: &Table, requests: u64) {
    println!("instructions a request of 4 KiB, 32 at once, {requests} requests{:>12}{:>12}", "guest", "dom0");
    let line = |name: &str, cost: Cost| println!("  {name:60}{:>10.0}{:>12.0}", cost.guest, cost.dom0);
    line("ours, pages mapped for each request", table.mapped);
    line("ours, pages that stay mapped, data copied", table.persistent);
    line("Linux, with fio", table.linux);
    line("fio alone", table.fio);
    let without = table.linux.guest - table.fio.guest;
    let best = table.mapped.guest.min(table.persistent.guest);
    println!("  Linux without fio: {without:.0}; the better of ours is {:.2} of that", best / without);
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    use super::*;
    use crate::host::qemu::End;

    fn table(lines: &[&str]) -> Result<Table, String> {
        let lines = lines.iter().map(|line| (*line).to_owned()).collect();
        read(&Run { lines, end: End::Exited(ExitStatus::from_raw(0)) }, 1_000_000).map_err(|error| format!("{error:#}"))
    }

    const GOOD: [&str; 9] = [
        "mapped: xenlab: bench done requests=1000000 running_ns=8000000000 notifications=5 copied=0",
        "persistent: xenlab: bench done requests=1000000 running_ns=4000000000 notifications=5 copied=6",
        "xenlab-dom0: cost mapped before 1.0 100.0",
        "xenlab-dom0: cost mapped after 9.0 116.0",
        "xenlab-dom0: cost persistent before 2.0 120.0",
        "xenlab-dom0: cost persistent after 6.0 128.0",
        "xenlab-dom0: cost linux before 10.0 130.0",
        "xenlab-dom0: cost linux after 98.0 146.0",
        "xenlab-dom0: cost linux nothing 106.0 146.0",
    ];

    #[test]
    fn a_cost_is_the_difference_of_two_times_over_the_requests() {
        let table = table(&GOOD).unwrap();
        assert_eq!(table.mapped, Cost { guest: 1000.0, dom0: 2000.0 });
        assert_eq!(table.persistent, Cost { guest: 500.0, dom0: 1000.0 });
        assert_eq!(table.linux, Cost { guest: 11000.0, dom0: 2000.0 });
        assert_eq!(table.fio, Cost { guest: 1000.0, dom0: 0.0 });
        assert_eq!(bars(&table)[2], ("Linux", 10000.0));
    }

    #[test]
    fn every_line_is_needed_and_must_be_what_it_should() {
        for (index, line) in GOOD.iter().enumerate() {
            let mut less = GOOD.to_vec();
            less.remove(index);
            assert!(table(&less).is_err(), "without {line:?}");
        }
        let mut odd = GOOD.to_vec();
        odd[0] = "mapped: xenlab: bench done requests=999 running_ns=8000000000 notifications=5 copied=0";
        assert!(table(&odd).unwrap_err().contains("mapped has not told that it has made 1000000 requests"));
        odd[0] = "mapped: xenlab: bench done requests=1000000 running_ns=x notifications=5 copied=0";
        assert!(table(&odd).unwrap_err().contains("no number of nanoseconds: \"x\""));
        odd = GOOD.to_vec();
        odd[7] = "xenlab-dom0: cost linux after y 146.0";
        assert!(table(&odd).unwrap_err().contains("no number of seconds: \"y\""));
        odd[7] = "xenlab-dom0: cost linux after 10.0 146.0";
        assert!(table(&odd).unwrap_err().contains("linux has cost nothing"));
    }
}
