//! `xenlab xen linux --suite block`: Linux is dom0, the guest a driver domain whose block back end serves disks in its memory, and
//! Linux domUs use them: file systems, files, `fio`, detach and re-attach, several disks and domains at once, one of which lies.
//! In the end dom0 reads each disk through a front end of its own.

use std::collections::BTreeMap;
use std::fs;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};

use crate::host::cpio::Archive;
use crate::host::guest;
use crate::host::linux::{Report, judge_end, judge_status, machine, said_in_dom0, watch};
use crate::host::qemu::Run;
use crate::host::setup::Beds;

const JOB: &[u8] = include_bytes!("../../dom0/block-job");
const DOMU_INIT: &[u8] = include_bytes!("../../domu/init");

/// MiB of each disk.
const MIB: usize = 16;

/// Digits of a SHA-256.
const SUM: usize = 64;

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
const FIRST: &[&str] = &["made", "mounted", "written", "flushed", "trimmed", "unmounted", "checked", "closed"];
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
    // What each disk holds, by its SHA-256.
    let mut sums: BTreeMap<&str, &str> = BTreeMap::new();
    let mut trimmed = false;
    for Visit { domain, device, target, again } in VISITS {
        let features = features(&run.lines, domain, device)?;
        let discards = features.contains(&"feature-discard=1");
        trimmed |= discards;
        let before = sums.remove(target).unwrap_or_default();
        let mut steps = told.get_mut(&(*domain, *device)).into_iter().flatten();
        for wanted in if *again { AGAIN } else { FIRST } {
            let step = steps.next().with_context(|| format!("{domain} has not told that {device} was {wanted}"))?;
            let (step, value) = step.split_once(' ').unwrap_or((step, ""));
            ensure!(step == *wanted, "{domain} told that {device} was {step}: {wanted} was expected");
            let holds = match step {
                "opened" => value == before,
                "closed" => value.len() == SUM && value != before,
                "trimmed" => (value != "none") == discards,
                _ => true,
            };
            ensure!(holds, "{domain}: {device} {step} {value}; before: {before:?}, features: {features:?}");
            if step == "closed" {
                sums.insert(target, value);
            }
        }
    }
    for ((domain, device), mut steps) in told {
        let known = VISITS.iter().any(|visit| (visit.domain, visit.device) == (domain, device));
        ensure!(!known || steps.next().is_none(), "{domain} has told of {device} more than was expected");
    }
    for (target, sum) in sums {
        let read = run.lines.iter().find_map(|line| line.strip_prefix(&format!("xenlab-dom0: image {target} ")));
        ensure!(read == Some(sum), "dom0 read {read:?} from the disk {target}, but {sum} was left there");
    }
    Ok(trimmed)
}

/// Returns what the back end of a device has offered.
fn features<'a>(lines: &'a [String], domain: &str, device: &str) -> Result<Vec<&'a str>> {
    let start = format!("xenlab-dom0: features {domain} {device} ");
    let features = lines.iter().find_map(|line| line.strip_prefix(&start));
    let features: Vec<_> =
        features.with_context(|| format!("no features of {device} in {domain}"))?.split(' ').collect();
    ensure!(features.contains(&"feature-flush-cache=1"), "{device} in {domain} can't be flushed: {features:?}");
    Ok(features)
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    use super::*;
    use crate::host::qemu::End;

    /// What a good run says; each sum is 64 times its disk's letter, and after the second visit 64 times "e".
    fn good() -> Vec<String> {
        let mut lines = vec!["xenlab-dom0: up".to_owned()];
        for (index, Visit { domain, device, target, again }) in VISITS.iter().enumerate() {
            for step in if *again { AGAIN } else { FIRST } {
                let value = match *step {
                    "trimmed" => " none".to_owned(),
                    "closed" if *again => format!(" {}", "e".repeat(SUM)),
                    "opened" | "closed" => format!(" {}", target.repeat(SUM)),
                    _ => String::new(),
                };
                lines.push(format!("{domain}: xenlab: {device} {step}{value}"));
            }
            match index {
                0 => lines.push("one: xenlab: xvda gone".to_owned()),
                _ => {
                    lines.push(format!("xenlab-dom0: features {domain} {device} feature-flush-cache=1 sector-size=512"))
                }
            }
        }
        lines.extend(STEPS.iter().map(|(key, _)| format!("xenlab-dom0: {key} ok")));
        for (target, sum) in [("a", "e"), ("b", "b"), ("c", "c"), ("d", "d")] {
            lines.push(format!("xenlab-dom0: image {target} {}", sum.repeat(SUM)));
        }
        lines.push("xenlab-dom0: status 0".to_owned());
        lines
    }

    fn verdict(lines: Vec<String>) -> Result<bool, String> {
        let run = Run { lines, end: End::Exited(ExitStatus::from_raw(0)) };
        judge(&run, 9).map_err(|error| format!("{error:#}"))
    }

    /// A good run with each `from` replaced.
    fn other(from: &str, to: &str) -> Result<bool, String> {
        let lines = good();
        assert!(lines.iter().any(|line| line.contains(from)), "no {from:?}");
        verdict(lines.iter().map(|line| line.replace(from, to)).collect())
    }

    #[test]
    fn a_whole_good_run_passes() {
        assert_eq!(verdict(good()), Ok(false));
    }

    #[test]
    fn every_line_of_a_run_counts() {
        for (index, line) in good().iter().enumerate() {
            let mut without = good();
            without.remove(index);
            // The first is not judged, and dom0 itself has waited for the second.
            let judged = !line.ends_with(": up") && !line.ends_with(" gone");
            assert_eq!(verdict(without).is_err(), judged, "without {line:?}");
        }
    }

    #[test]
    fn a_disk_that_changes_while_nobody_has_it_fails() {
        let message =
            other(&format!("opened {}", "a".repeat(SUM)), &format!("opened {}", "f".repeat(SUM))).unwrap_err();
        assert!(message.contains("one: xvda opened"), "{message}");
        let message =
            other(&format!("image c {}", "c".repeat(SUM)), &format!("image c {}", "f".repeat(SUM))).unwrap_err();
        assert!(message.contains("the disk c"), "{message}");
        // What was closed as it was opened was not written.
        assert!(other(&"e".repeat(SUM), &"a".repeat(SUM)).is_err());
    }

    #[test]
    fn a_disk_is_trimmed_if_and_only_if_its_back_end_discards() {
        assert!(other("trimmed none", "trimmed 4096 bytes").unwrap_err().contains("trimmed"));
        assert!(other("sector-size=512", "feature-discard=1").unwrap_err().contains("trimmed"));
        let lines = good().into_iter().map(|line| line.replace("sector-size=512", "feature-discard=1"));
        assert_eq!(verdict(lines.map(|line| line.replace("trimmed none", "trimmed 4096 bytes")).collect()), Ok(true));
    }

    #[test]
    fn a_step_told_twice_and_a_failure_are_no_good_run() {
        let mut twice = good();
        twice.push("two: xenlab: xvdb closed again".to_owned());
        assert!(verdict(twice).unwrap_err().contains("more than was expected"));
        let failed = other("xenlab-dom0: liar ok", "xenlab-dom0: failed liar: gone");
        assert!(failed.unwrap_err().contains("liar: gone"));
        assert!(other("feature-flush-cache=1", "feature-flush-cache=0").unwrap_err().contains("can't be flushed"));
    }
}
