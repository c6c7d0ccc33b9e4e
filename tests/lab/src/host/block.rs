//! `xenlab xen linux --suite block`: Linux is dom0, the guest a driver domain whose block back end serves disks in its memory, and
//! Linux domUs use them: file systems, files, `fio`, detach and re-attach, several disks and domains at once, one of which lies; a disk
//! that is taken away while it is busy, and one that grows. In the end dom0 reads each disk through a front end of its own.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};

use crate::host::guest;
use crate::host::linux::{DomU, judge_job, machine, watch};
use crate::host::qemu::Run;
use crate::host::setup::Beds;

const JOB: &[u8] = include_bytes!("../../dom0/block-job");
const DOMU_INIT: &[u8] = include_bytes!("../../domu/init");

/// MiB of each disk, and of the one that grows when it has.
const MIB: usize = 16;
const MORE: usize = 24;

/// The disk whose sectors have 4 KiB.
const LARGE: &str = "c";

/// The disk that is taken away while it is busy, its name in `one`, and how often.
const CUT: &str = "e";
const CUT_DEVICE: &str = "xvdc";
const CUTS: usize = 3;

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
    (
        "cut",
        "a disk was taken away, three times, while a Linux domU kept it busy: its I/O failed there, and both ends let go of it",
    ),
    ("grown", "a disk grew while a Linux domU had it, and what was new was written and verified"),
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
    /// What the domain tells of it.
    steps: &'static [&'static str],
}

const fn visit(
    domain: &'static str,
    device: &'static str,
    target: &'static str,
    steps: &'static [&'static str],
) -> Visit {
    Visit { domain, device, target, steps }
}

/// Of one device in their order.
const VISITS: &[Visit] = &[
    visit("one", "xvda", "a", FIRST),
    visit("one", "xvda", "a", AGAIN),
    visit("one", "xvdb", "d", FIRST),
    visit("one", "xvdb", "d", GROWN),
    visit("two", "xvda", "b", FIRST),
    visit("two", "xvdb", LARGE, FIRST),
];

/// What a domain tells of a new disk, of one that there was before, and of one that has grown.
const FIRST: &[&str] = &["unit", "made", "mounted", "written", "flushed", "trimmed", "unmounted", "checked", "closed"];
const AGAIN: &[&str] =
    &["unit", "opened", "mounted", "verified", "written", "flushed", "trimmed", "unmounted", "checked", "closed"];
const GROWN: &[&str] = &["grown", "used", "closed"];

/// How many queues a domain makes: one for each of its processors.
fn queues(domain: &str) -> u64 {
    if domain == "one" { 2 } else { 1 }
}

/// Bytes of a disk's sectors.
fn unit(target: &str) -> u64 {
    if target == LARGE { 4096 } else { 512 }
}

/// Runs the job on real Xen.
///
/// # Errors
/// The bed is missing, or any step went wrong.
pub(crate) fn run(timeout: u64, verbose: bool) -> Result<()> {
    let beds = Beds::find()?;
    let elf = guest::build()?;
    let domu = DomU::new(&beds, DOMU_INIT)?;
    let (mib, more) = (MIB.to_string(), MORE.to_string());
    let files = [&domu.files()[..], &[("job.mib", mib.as_bytes()), ("job.more", more.as_bytes())]].concat();
    let machine = machine(&beds, 2, 1, elf, JOB, timeout, &files)?;
    let started = Instant::now();
    let run = watch(machine, timeout, verbose, DOMAINS)?;
    let served = judge(&run, timeout)?;
    for (_, done) in STEPS {
        println!("  ok  {done}");
    }
    for (disk, did) in served {
        let did: Vec<_> = did.iter().map(|(what, count)| format!("{what} {count}")).collect();
        println!("  ok  disk {disk}: {}", did.join(", "));
    }
    println!("passed on real Xen with Linux: we served its front end ({:.1} s)", started.elapsed().as_secs_f64());
    Ok(())
}

/// What the back end has done for a disk, by the words of its counters.
type Served<'a> = BTreeMap<&'a str, u64>;

/// Turns a machine's end and what it said into the result of the run: what was done for each disk.
fn judge(run: &Run, timeout: u64) -> Result<BTreeMap<&'static str, Served<'_>>> {
    judge_job(run, timeout, STEPS)?;
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
    // What each disk holds, by its SHA-256, and how many of its bytes were trimmed.
    let mut sums: BTreeMap<&str, &str> = BTreeMap::new();
    let mut trimmed: BTreeMap<&str, u64> = BTreeMap::new();
    for Visit { domain, device, target, steps: wanted } in VISITS {
        judge_features(&run.lines, domain, device, target)?;
        let before = sums.remove(target).unwrap_or_default();
        let mut steps = told.get_mut(&(*domain, *device)).into_iter().flatten();
        for wanted in *wanted {
            let step = steps.next().with_context(|| format!("{domain} has not told that {device} was {wanted}"))?;
            let (step, value) = step.split_once(' ').unwrap_or((step, ""));
            ensure!(step == *wanted, "{domain} told that {device} was {step}: {wanted} was expected");
            let bytes = value.strip_suffix(" bytes").and_then(|bytes| bytes.parse().ok()).unwrap_or(0);
            let holds = match step {
                "unit" => value == unit(target).to_string(),
                "grown" => value == (MORE << 20 >> 9).to_string(),
                "opened" => value == before,
                "closed" => value.len() == SUM && value != before,
                "trimmed" => bytes > 0,
                _ => true,
            };
            ensure!(holds, "{domain}: {device} {step} {value}; before: {before:?}");
            *trimmed.entry(target).or_default() += bytes;
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
    judge_cuts(&run.lines)?;
    trimmed.into_iter().map(|(target, bytes)| Ok((target, judge_served(&run.lines, target, bytes)?))).collect()
}

/// Returns what the driver domain says that it did for a disk, for each device that had it, in their order.
fn served<'a>(lines: &'a [String], target: &str) -> Result<Vec<Served<'a>>> {
    let start = format!("driver: xenlab: disk {target} served ");
    let devices = lines.iter().filter_map(|line| line.strip_prefix(&start));
    let count = |word: &'a str| {
        let (what, count) = word.split_once('=').with_context(|| format!("disk {target}: {word:?} is no counter"))?;
        Ok((what, count.parse().with_context(|| format!("disk {target}: {word}"))?))
    };
    devices.map(|device| device.split_whitespace().map(count).collect()).collect()
}

/// Judges the disk that was taken away while it was busy: whether all its I/O ended each time, and what was done for it before.
fn judge_cuts(lines: &[String]) -> Result<()> {
    let end = format!("one: xenlab: {CUT_DEVICE} ended");
    let ends = lines.iter().filter(|line| line.trim_end() == end).count();
    ensure!(ends == CUTS, "{CUT_DEVICE}, taken away {CUTS} times, ended {ends} times");
    let devices = served(lines, CUT)?;
    ensure!(devices.len() == CUTS, "disk {CUT}: served {} times, {CUTS} were expected", devices.len());
    for served in &devices {
        judge_queues(CUT, "one", served)?;
        ensure!(served.get("requests") > Some(&0), "disk {CUT}: nothing was asked for: {served:?}");
        judge_honest(CUT, served)?;
    }
    Ok(())
}

/// Fails if the back end has turned requests away. Whatever a liar has beside them, Linux's front ends are honest.
fn judge_honest(target: &str, served: &Served<'_>) -> Result<()> {
    for what in ["refused", "unmappable"] {
        let found = served.get(what).copied();
        ensure!(found == Some(0), "disk {target}: the back end turned request(s) away: {what}={found:?}: {served:?}");
    }
    Ok(())
}

/// Fails if a front end of Linux had other queues than it should, or left one without work.
fn judge_queues(target: &str, domain: &str, served: &Served<'_>) -> Result<()> {
    for what in ["queues", "used"] {
        let (found, wanted) = (served.get(what).copied(), queues(domain));
        ensure!(found == Some(wanted), "disk {target}, {domain}: {what}={found:?}, {wanted} was expected: {served:?}");
    }
    Ok(())
}

/// Judges what the driver domain says that it did for a disk, of which so many bytes were trimmed.
fn judge_served<'a>(lines: &'a [String], target: &str, trimmed: u64) -> Result<Served<'a>> {
    let devices = self::served(lines, target)?;
    // Each domU that had the disk, and dom0 in the end.
    let attached =
        VISITS.iter().filter(|visit| visit.target == target && visit.steps != GROWN).map(|visit| visit.domain);
    let domains: Vec<_> = attached.chain(["dom0"]).collect();
    ensure!(devices.len() == domains.len(), "disk {target}: served {} times: {domains:?}", devices.len());
    for (domain, device) in domains.iter().zip(&devices) {
        judge_queues(target, domain, device)?;
    }
    let mut served = Served::new();
    for (what, count) in devices.iter().flatten().filter(|(what, _)| !["queues", "used"].contains(*what)) {
        *served.entry(what).or_default() += count;
    }
    served.insert("queues", devices[0]["queues"]);
    let count = |what| served.get(what).copied().unwrap_or(0);
    for what in ["requests", "indirect", "flushes", "discards", "reused"] {
        ensure!(count(what) > 0, "disk {target}: the back end counts no {what}: {served:?}");
    }
    judge_honest(target, &served)?;
    let discarded = count("discarded").saturating_mul(512);
    ensure!(discarded >= trimmed, "disk {target}: {trimmed} bytes were trimmed, {discarded} discarded: {served:?}");
    Ok(served)
}

/// Fails if the back end of a device has not offered what Linux can use, or Linux has not made as many queues as it can.
fn judge_features(lines: &[String], domain: &str, device: &str, target: &str) -> Result<()> {
    let start = format!("xenlab-dom0: features {domain} {device} ");
    let offered = lines.iter().find_map(|line| line.strip_prefix(&start));
    let offered = offered.with_context(|| format!("no features of {device} in {domain}"))?;
    let unit = format!("sector-size={}", unit(target));
    // Of a single queue, Linux writes nothing.
    let queues =
        Some(queues(domain)).filter(|&queues| queues > 1).map(|queues| format!("multi-queue-num-queues={queues}"));
    let fixed =
        ["feature-flush-cache=1", "feature-discard=1", "feature-persistent=1", "multi-queue-max-queues=2", &unit];
    for wanted in fixed.into_iter().chain(queues.as_deref()) {
        let found = offered.split(' ').any(|feature| feature == wanted);
        ensure!(found, "{device} in {domain} has no {wanted}: {offered}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    use super::*;
    use crate::host::qemu::End;

    const FEATURES: &str = "feature-discard=1 feature-flush-cache=1 feature-persistent=1 multi-queue-max-queues=2";
    const SERVED: &str = "requests=9 indirect=2 flushes=3 discards=1 discarded=8 reused=5 refused=0 unmappable=0";

    /// What a good run says; each sum is 64 times its disk's letter, and after the second visit 64 times "e" or "f".
    fn good() -> Vec<String> {
        let mut lines = vec!["xenlab-dom0: up".to_owned()];
        for (index, Visit { domain, device, target, steps }) in VISITS.iter().enumerate() {
            for step in *steps {
                let value = match *step {
                    "trimmed" => " 2048 bytes".to_owned(),
                    "unit" => format!(" {}", unit(target)),
                    "grown" => " 49152".to_owned(),
                    "closed" if *steps == AGAIN => format!(" {}", "e".repeat(SUM)),
                    "closed" if *steps == GROWN => format!(" {}", "f".repeat(SUM)),
                    "opened" | "closed" => format!(" {}", target.repeat(SUM)),
                    _ => String::new(),
                };
                lines.push(format!("{domain}: xenlab: {device} {step}{value}"));
            }
            match index {
                0 => lines.push("one: xenlab: xvda gone".to_owned()),
                3 => {}
                _ => {
                    let queues = if queues(domain) == 2 { " multi-queue-num-queues=2" } else { "" };
                    let unit = unit(target);
                    lines
                        .push(format!("xenlab-dom0: features {domain} {device} {FEATURES} sector-size={unit}{queues}"));
                }
            }
        }
        lines.extend(STEPS.iter().map(|(key, _)| format!("xenlab-dom0: {key} ok")));
        for (target, sum, queues) in
            [("a", "e", &[2, 2, 1][..]), ("b", "b", &[1, 1]), ("c", "c", &[1, 1]), ("d", "f", &[2, 1])]
        {
            lines.push(format!("xenlab-dom0: image {target} {}", sum.repeat(SUM)));
            let devices = queues.iter().map(|count| format!("queues={count} used={count} {SERVED}"));
            lines.extend(devices.map(|device| format!("driver: xenlab: disk {target} served {device}")));
        }
        for _ in 0..CUTS {
            lines.extend(["busy", "ended", "gone"].map(|step| format!("one: xenlab: xvdc {step}")));
            lines.push("driver: xenlab: disk e served queues=2 used=2 requests=7 refused=0 unmappable=0".to_owned());
        }
        lines.push("xenlab-dom0: status 0".to_owned());
        lines
    }

    fn verdict(lines: Vec<String>) -> Result<(), String> {
        let run = Run { lines, end: End::Exited(ExitStatus::from_raw(0)) };
        judge(&run, 9).map(drop).map_err(|error| format!("{error:#}"))
    }

    /// A good run with each `from` replaced.
    fn other(from: &str, to: &str) -> Result<(), String> {
        let lines = good();
        assert!(lines.iter().any(|line| line.contains(from)), "no {from:?}");
        verdict(lines.iter().map(|line| line.replace(from, to)).collect())
    }

    #[test]
    fn a_whole_good_run_passes() {
        assert_eq!(verdict(good()), Ok(()));
        let run = Run { lines: good(), end: End::Exited(ExitStatus::from_raw(0)) };
        let served = judge(&run, 9).unwrap();
        assert_eq!(served.keys().copied().collect::<Vec<_>>(), ["a", "b", "c", "d"]);
        // All of a disk's devices together.
        assert_eq!((served["a"]["requests"], served["b"]["requests"]), (27, 18));
        assert_eq!((served["a"]["queues"], served["b"]["queues"]), (2, 1));
    }

    #[test]
    fn every_line_of_a_run_counts() {
        for (index, line) in good().iter().enumerate() {
            let mut without = good();
            without.remove(index);
            // The first is not judged, and dom0 itself has waited for the others.
            let judged = ![": up", " gone", " busy"].iter().any(|end| line.ends_with(end));
            assert_eq!(verdict(without).is_err(), judged, "without {line:?}");
        }
    }

    #[test]
    fn a_disk_that_changes_while_nobody_has_it_fails() {
        let message =
            other(&format!("opened {}", "a".repeat(SUM)), &format!("opened {}", "0".repeat(SUM))).unwrap_err();
        assert!(message.contains("one: xvda opened"), "{message}");
        let message =
            other(&format!("image c {}", "c".repeat(SUM)), &format!("image c {}", "0".repeat(SUM))).unwrap_err();
        assert!(message.contains("the disk c"), "{message}");
        // What was closed as it was opened was not written.
        assert!(other(&"e".repeat(SUM), &"a".repeat(SUM)).is_err());
    }

    #[test]
    fn a_disk_is_offered_to_be_trimmed_and_is() {
        assert!(other("trimmed 2048 bytes", "trimmed none").unwrap_err().contains("trimmed none"));
        assert!(other("trimmed 2048 bytes", "trimmed 0 bytes").unwrap_err().contains("trimmed 0"));
        for feature in ["feature-flush-cache=1", "feature-discard=1", "feature-persistent=1"] {
            let message = other(feature, "feature-other=1").unwrap_err();
            assert!(message.contains(&format!("has no {feature}")), "{message}");
        }
        // The back end has to have seen it.
        assert!(other("discarded=8", "discarded=1").unwrap_err().contains("4096 bytes were trimmed, 1536 discarded"));
    }

    #[test]
    fn linux_uses_a_queue_for_each_of_its_processors() {
        for (from, to, whose) in [
            (" multi-queue-num-queues=2", "", "has no multi-queue-num-queues=2"),
            ("multi-queue-num-queues=2", "multi-queue-num-queues=1", "has no multi-queue-num-queues=2"),
            ("multi-queue-max-queues=2", "multi-queue-max-queues=1", "has no multi-queue-max-queues=2"),
            ("disk d served queues=2 used=2", "disk d served queues=1 used=1", "disk d, one: queues=Some(1), 2 was"),
            ("disk d served queues=2 used=2", "disk d served queues=2 used=1", "disk d, one: used=Some(1), 2 was"),
            ("disk b served queues=1", "disk b served queues=2", "disk b, two: queues=Some(2), 1 was"),
            ("disk e served queues=2", "disk e served queues=1", "disk e, one: queues=Some(1), 2 was"),
        ] {
            let message = other(from, to).unwrap_err();
            assert!(message.contains(whose), "{from}: {message}");
        }
    }

    #[test]
    fn linux_sees_how_large_sectors_and_disks_are() {
        for (from, to, whose) in [
            ("xvdb unit 4096", "xvdb unit 512", "two: xvdb unit 512"),
            ("sector-size=4096", "sector-size=512", "has no sector-size=4096"),
            ("grown 49152", "grown 32768", "one: xvdb grown 32768"),
            // What is new has to be written.
            (&*"f".repeat(SUM), &*"d".repeat(SUM), "one: xvdb closed dddd"),
        ] {
            let message = other(from, to).unwrap_err();
            assert!(message.contains(whose), "{from}: {message}");
        }
    }

    #[test]
    fn what_is_taken_away_while_it_is_busy_was_used_before() {
        for (from, to, whose) in [
            ("used=2 requests=7", "used=2 requests=0", "nothing was asked for"),
            ("requests=7 refused=0", "requests=7 refused=1", "disk e: the back end turned"),
            ("requests=7 refused=0 unmappable=0", "requests=7 refused=0 unmappable=1", "disk e: the back end turned"),
        ] {
            let message = other(from, to).unwrap_err();
            assert!(message.contains(whose), "{from}: {message}");
        }
    }

    #[test]
    fn each_counter_of_the_back_end_counts() {
        for counter in ["requests=9", "indirect=2", "flushes=3", "discards=1", "reused=5"] {
            let (what, _) = counter.split_once('=').unwrap();
            let message = other(counter, &format!("{what}=0")).unwrap_err();
            assert!(message.contains(&format!("counts no {what}")), "{message}");
        }
        // Not those of the disk that is taken away, which is judged first.
        for (from, to) in [
            ("reused=5 refused=0", "reused=5 refused=1"),
            ("reused=5 refused=0 unmappable=0", "reused=5 refused=0 unmappable=1"),
        ] {
            let message = other(from, to).unwrap_err();
            assert!(message.contains("disk a: the back end turned request(s) away"), "{message}");
        }
        assert!(other("requests=9", "requests").unwrap_err().contains("no counter"));
        assert!(other("requests=9", "requests=x").unwrap_err().contains("requests=x"));
    }

    #[test]
    fn a_step_told_twice_and_a_failure_are_no_good_run() {
        let mut twice = good();
        twice.push("two: xenlab: xvdb closed again".to_owned());
        assert!(verdict(twice).unwrap_err().contains("more than was expected"));
        let failed = other("xenlab-dom0: liar ok", "xenlab-dom0: failed liar: gone");
        assert!(failed.unwrap_err().contains("liar: gone"));
    }
}
