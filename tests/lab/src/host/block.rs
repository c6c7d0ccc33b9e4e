//! `xenlab xen linux --suite block`: Linux is dom0, the guest a driver domain whose block back end serves disks in its memory, and
//! Linux domUs use them: file systems, files, `fio`, detach and re-attach, several disks and domains at once, one of which lies.
//! In the end dom0 reads each disk through a front end of its own.

use std::collections::BTreeMap;
use std::fs;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use sha2::{Digest, Sha256};

use crate::host::cpio::Archive;
use crate::host::guest;
use crate::host::linux::{Report, hex, judge_end, judge_status, machine, said_in_dom0, watch};
use crate::host::qemu::Run;
use crate::host::setup::Beds;

const JOB: &[u8] = include_bytes!("../../dom0/block-job");
const DOMU_INIT: &[u8] = include_bytes!("../../domu/init");

/// MiB of each disk.
const MIB: usize = 32;

/// The domains that the job starts.
const DOMAINS: &[&str] = &["driver", "one", "two", "liar"];

/// All steps of the job, in order; the first that is missing in its report tells where it stopped.
const STEPS: &[(&str, &str)] = &[
    ("driver", "the driver domain is up"),
    ("one", "a Linux domU made a file system on its disk, wrote, verified, flushed and unmounted it"),
    ("detach", "the disk was detached"),
    ("attach", "it was attached again and held what was written"),
    ("together", "four disks served two Linux domUs at once, while a third domain lied"),
    ("liar", "the domain that lied was answered or turned away each time"),
    ("shutdown", "the Linux domUs shut down"),
    ("end", "dom0 read all disks, and the driver domain ended with none left"),
];

/// A time for which a domain has a disk.
struct Visit {
    domain: &'static str,
    device: &'static str,
    /// The disk's name in the driver domain.
    target: &'static str,
    /// There was one before.
    again: bool,
}

const fn visit(domain: &'static str, device: &'static str, target: &'static str, again: bool) -> Visit {
    Visit { domain, device, target, again }
}

/// Of one device in their order.
const VISITS: &[Visit] = &[
    visit("one", "xvda", "a", false),
    visit("one", "xvda", "a", true),
    visit("one", "xvdb", "d", false),
    visit("two", "xvda", "b", false),
    visit("two", "xvdb", "c", false),
];

/// What a domain tells of a visit.
const FIRST: &[&str] =
    &["opened", "made", "mounted", "written", "flushed", "trimmed", "unmounted", "checked", "closed"];
const AGAIN: &[&str] =
    &["opened", "mounted", "verified", "written", "flushed", "trimmed", "unmounted", "checked", "closed"];

/// Runs the job on real Xen.
///
/// # Errors
/// The bed is missing, or any step went wrong.
pub(crate) fn run(timeout: u64, verbose: bool) -> Result<()> {
    let beds = Beds::find()?;
    let elf = guest::build()?;
    let unfit = "the bed has no Linux domU; remove its folder and set up again";
    let kernel = fs::read(beds.linux()).context(unfit)?;
    let mut domu = Archive::new(fs::read(beds.domu()).context(unfit)?);
    domu.file(b"init", 0o755, DOMU_INIT)?;
    let domu = domu.finish()?;
    let mib = MIB.to_string();
    let files = [("vmlinuz", &*kernel), ("domu.cpio", &*domu), ("job.mib", mib.as_bytes())];
    let machine = machine(&beds, elf, JOB, timeout, &files)?;
    let started = Instant::now();
    let run = watch(machine, timeout, verbose, DOMAINS)?;
    let discards = judge(&run, timeout)?;
    for (_, done) in STEPS {
        println!("  ok  {done}");
    }
    if !discards {
        println!("  --  nothing was trimmed: the back end does not offer to discard");
    }
    println!("passed on real Xen with Linux: we served its front end ({:.1} s)", started.elapsed().as_secs_f64());
    Ok(())
}

/// Turns a machine's end and what it said into the result of the run: whether disks were trimmed.
fn judge(run: &Run, timeout: u64) -> Result<bool> {
    judge_end(run, timeout)?;
    let report = Report::read(&run.lines);
    let last = said_in_dom0(&run.lines);
    for (key, done) in STEPS {
        ensure!(report.dom0(key) == Some("ok"), "the job stopped before this: {done}; last lines:\n{last}");
    }
    judge_status(&report, &last)?;
    let mut told: BTreeMap<_, Vec<&str>> = BTreeMap::new();
    for line in &run.lines {
        if let Some((domain, line)) = line.split_once(": xenlab: ")
            && let Some((device, step)) = line.trim_end().split_once(' ')
            && step != "gone"
        {
            told.entry((domain, device)).or_default().push(step);
        }
    }
    let mut told: BTreeMap<_, _> = told.into_iter().map(|(who, steps)| (who, steps.into_iter())).collect();
    // What each disk holds: nothing, before it is used.
    let empty = hex(Sha256::new_with_prefix(vec![0; MIB << 20]));
    let mut sums: BTreeMap<&str, String> = BTreeMap::new();
    let mut trimmed = false;
    for Visit { domain, device, target, again } in VISITS {
        let features = features(&run.lines, domain, device)?;
        let discards = features.contains(&"feature-discard=1");
        trimmed |= discards;
        let before = sums.remove(target).unwrap_or_else(|| empty.clone());
        let mut steps = told.get_mut(&(*domain, *device)).into_iter().flatten();
        for wanted in if *again { AGAIN } else { FIRST } {
            let step = steps.next().with_context(|| format!("{domain} has not told that {device} was {wanted}"))?;
            let (step, value) = step.split_once(' ').unwrap_or((step, ""));
            ensure!(step == *wanted, "{domain} told that {device} was {step}: {wanted} was expected");
            let holds = match step {
                "opened" => value == before,
                "closed" => value.len() == before.len() && value != before,
                "trimmed" => (value != "none") == discards,
                _ => true,
            };
            ensure!(holds, "{domain}: {device} {step} {value}, with {before} before, and {features:?}");
            if step == "closed" {
                sums.insert(target, value.to_owned());
            }
        }
    }
    for ((domain, device), mut steps) in told {
        let known = VISITS.iter().any(|visit| (visit.domain, visit.device) == (domain, device));
        ensure!(!known || steps.next().is_none(), "{domain} has told of {device} more than was expected");
    }
    for (target, sum) in sums {
        let read = run.lines.iter().find_map(|line| line.strip_prefix(&format!("xenlab-dom0: image {target} ")));
        ensure!(read == Some(&*sum), "dom0 read {read:?} from the disk {target}, but {sum} was left there");
    }
    Ok(trimmed)
}

/// Returns what the back end of a device has offered.
fn features<'a>(lines: &'a [String], domain: &str, device: &str) -> Result<Vec<&'a str>> {
    let start = format!("xenlab-dom0: features {domain} {device} ");
    let features = lines.iter().find_map(|line| line.strip_prefix(&start));
    let features: Vec<_> = features.with_context(|| format!("no features of {device} in {domain}"))?.split(' ').collect();
    ensure!(features.contains(&"feature-flush-cache=1"), "{device} in {domain} can't be flushed: {features:?}");
    Ok(features)
}
