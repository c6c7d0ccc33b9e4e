//! `xenlab xen linux --suite save`: Linux is dom0, and saves and restores our guest while it is at work on two disks that Linux serves:
//! so that the guest goes on, so that it ends and comes back, and so that it goes on once more. About two minutes.
//!
//! The guest checks what it reads, and ends with a whole round of writes. What each disk must hold then follows from the number of the
//! round.

use std::fs::File;
use std::io::{Seek, Write};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use sha2::{Digest, Sha256};
use suite::scenarios::noise;

use crate::host::guest;
use crate::host::linux::{judge_job, machine, watch};
use crate::host::qemu::Run;
use crate::host::setup::Beds;

const JOB: &[u8] = include_bytes!("../../dom0/save-job");

/// Bytes of each disk, and of the area at its end that the guest works in.
const BYTES: usize = 8 << 20;
const AREA: usize = 4 << 20;

/// The disks, and the seeds of what they hold at first.
const DISKS: [(&str, u64); 2] = [("xvda", 1), ("xvdb", 2)];

/// Queues of each disk.
const QUEUES: usize = 2;

/// All steps of the job, in order; the first that is missing in its report tells where it stopped.
const STEPS: &[(&str, &str)] = &[
    ("create", "the guest is at work on two disks"),
    ("cancelled", "xl save -c saved it, and it went on"),
    ("saved", "xl save saved it, and ended it"),
    ("restored", "xl restore brought it back, and it went on"),
    ("again", "xl save -c saved what was restored"),
    ("end", "the guest shut down"),
];

/// How the guest came out of each suspend.
const RESUMED: &[&str] = &["cancelled", "restored", "cancelled"];

/// Runs the job on real Xen.
///
/// # Errors
/// The bed is missing, or any step went wrong.
pub(crate) fn run(timeout: u64, verbose: bool) -> Result<()> {
    let beds = Beds::find()?;
    let elf = guest::build()?;
    let disks = DISKS.map(|(name, seed)| (name, noise(seed, BYTES)));
    let [(_, first), (_, second)] = &disks;
    // As many queues as Linux has processors.
    let mut machine = machine(&beds, 2, QUEUES as u32, elf, JOB, timeout, &[("disk.b", second)])?;
    machine.disk(file(first)?);
    let started = Instant::now();
    let run = watch(machine, timeout, verbose, &["guest"])?;
    judge(&run, &disks, AREA, timeout)?;
    for (_, done) in STEPS {
        println!("  ok  {done}");
    }
    println!(
        "passed on real Xen with Linux: saved and restored at work, SHA-256 as expected ({:.1} s)",
        started.elapsed().as_secs_f64()
    );
    Ok(())
}

/// Returns a file without a name that holds `bytes`.
fn file(bytes: &[u8]) -> Result<File> {
    let mut file = tempfile::tempfile().context("no temporary file for a disk")?;
    file.write_all(bytes)?;
    file.rewind()?;
    Ok(file)
}

/// Turns a machine's end and what it said into the result of the run, on disks that held these bytes, with areas of so many.
fn judge(run: &Run, disks: &[(&str, Vec<u8>)], area: usize, timeout: u64) -> Result<()> {
    let report = judge_job(run, timeout, STEPS)?;
    let resumed: Vec<_> = told(&run.lines, "resumed ").collect();
    let how: Vec<_> = resumed.iter().filter_map(|line| line.split(", ").next()).collect();
    ensure!(how == RESUMED, "the guest was resumed {how:?}, but {RESUMED:?} was expected");
    for (line, wanted) in resumed.iter().zip([&["in flight"][..], &["in flight", "sent again"], &["in flight"]]) {
        for what in wanted {
            let counts = line.split(", ").find_map(|part| part.strip_prefix(what)).unwrap_or_default();
            let busy =
                counts.split_whitespace().filter(|count| count.parse::<u32>().is_ok_and(|count| count > 0)).count();
            let (each, by) = if *what == "in flight" { (QUEUES, "queues") } else { (1, "disks") };
            ensure!(busy == disks.len() * each, "{what}, by {by}, when the guest was suspended:{counts}");
        }
    }
    for (name, bytes) in disks {
        let start = format!("{name} rounds ");
        let ended = told(&run.lines, &start).next().and_then(|ended| ended.split_once(" sha256 "));
        let (rounds, in_guest) = ended.with_context(|| format!("the guest has not told what is on {name}"))?;
        let rounds = rounds.parse().with_context(|| format!("{name}: {rounds:?} rounds"))?;
        let expected = expect(bytes, area, rounds);
        ensure!(in_guest == expected, "SHA-256 of {name} in the guest: {in_guest}, but {expected} was expected");
        let in_dom0 = report.dom0(name);
        ensure!(in_dom0 == Some(&expected), "SHA-256 of {name} in dom0: {in_dom0:?}, but {expected} was expected");
    }
    ensure!(run.lines.iter().any(|line| line.trim_end() == "guest: guest: ok"), "the guest did not end well");
    Ok(())
}

/// Returns what the guest has told, of lines that begin so.
fn told<'a>(lines: &'a [String], start: &str) -> impl Iterator<Item = &'a str> {
    let start = format!("guest: xenlab: {start}");
    lines.iter().filter_map(move |line| Some(line.strip_prefix(&start)?.trim_end()))
}

/// Returns the SHA-256 of a disk that held `bytes`, after so many rounds of writes to the area at its end.
fn expect(bytes: &[u8], area: usize, rounds: u32) -> String {
    let mut bytes = bytes.to_vec();
    let begin = bytes.len() - area;
    if rounds > 0 {
        for (index, word) in (0u32..).zip(bytes[begin..].as_chunks_mut::<8>().0) {
            *word = (u64::from(rounds) << 32 | u64::from(index)).to_le_bytes();
        }
    }
    Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    use super::*;
    use crate::host::qemu::End;

    /// The area of disks that are small enough for a test.
    const SMALL: usize = 64;

    fn disks() -> [(&'static str, Vec<u8>); 2] {
        DISKS.map(|(name, seed)| (name, noise(seed, 2 * SMALL)))
    }

    fn sums() -> [String; 2] {
        disks().map(|(_, bytes)| expect(&bytes, SMALL, 7))
    }

    fn good() -> Vec<String> {
        let [a, b] = sums();
        format!(
            "xenlab-dom0: up
guest: xenlab: ready
guest: xenlab: busy, 100 blocks read as written
xenlab-dom0: create ok
guest: xenlab: resumed cancelled, in flight 20 12 31 1
xenlab-dom0: cancelled ok
xenlab-dom0: saved ok
guest: xenlab: resumed restored, in flight 32 30 1 2, sent again 3 1
xenlab-dom0: restored ok
guest: xenlab: resumed cancelled, in flight 5 4 6 7
xenlab-dom0: again ok
guest: xenlab: xvda rounds 7 sha256 {a}
guest: xenlab: xvdb rounds 7 sha256 {b}
guest: guest: ok
xenlab-dom0: xvda {a}
xenlab-dom0: xvdb {b}
xenlab-dom0: end ok
xenlab-dom0: status 0"
        )
        .lines()
        .map(str::to_owned)
        .collect()
    }

    fn verdict(lines: Vec<String>) -> Result<(), String> {
        let run = Run { lines, end: End::Exited(ExitStatus::from_raw(0)) };
        judge(&run, &disks(), SMALL, 9).map_err(|error| format!("{error:#}"))
    }

    /// A good run in which the first `from` is replaced.
    fn other(from: &str, to: &str) -> String {
        let mut lines = good();
        let line = lines.iter_mut().find(|line| line.contains(from)).expect("a line to replace");
        *line = line.replace(from, to);
        verdict(lines).unwrap_err()
    }

    #[test]
    fn a_whole_good_run_passes() {
        assert_eq!(verdict(good()), Ok(()));
    }

    #[test]
    fn every_line_of_a_run_counts() {
        for (index, line) in good().iter().enumerate() {
            let mut without = good();
            without.remove(index);
            // The first is not judged, and dom0 itself has waited for the others.
            let judged = ![": up", ": ready", " as written"].iter().any(|end| line.ends_with(end));
            assert_eq!(verdict(without).is_err(), judged, "without {line:?}");
        }
    }

    #[test]
    fn a_disk_that_holds_anything_else_fails_and_is_named() {
        assert!(other("rounds 7", "rounds 8").contains("xvda in the guest"));
        assert!(other("rounds 7", "rounds x").contains("xvda"));
        let [a, b] = sums();
        assert!(other(&format!("xvda {a}"), &format!("xvda {b}")).contains("xvda in dom0"));
        assert!(other(&format!("xvdb {b}"), &format!("xvdb {a}")).contains("xvdb in dom0"));
    }

    #[test]
    fn the_guest_is_suspended_three_times_and_in_the_midst_of_its_work() {
        assert!(other("resumed restored", "resumed cancelled").contains("was resumed"));
        assert!(other("in flight 20 12 31 1", "in flight 20 0 31 1").contains("in flight"));
        assert!(other("in flight 32 30 1 2,", "in flight 32 30 1,").contains("in flight"));
        assert!(other("sent again 3 1", "sent again 0 1").contains("sent again"));
        assert!(other(", sent again 3 1", "").contains("sent again"));
        let mut once_more = good();
        once_more.insert(5, "guest: xenlab: resumed cancelled, in flight 1 1 1 1".to_owned());
        assert!(verdict(once_more).unwrap_err().contains("was resumed"));
    }

    #[test]
    fn a_failure_in_dom0_is_told() {
        assert!(other("saved ok", "failed saved: the domain is still there").contains("still there"));
        assert!(other("status 0", "status 1").contains("did not end well"));
    }

    #[test]
    fn what_is_expected_is_the_disk_with_the_last_round_in_its_area() {
        let sum = |bytes: &[u8]| Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let mut bytes = vec![7; 32 + SMALL];
        assert_eq!(expect(&bytes, SMALL, 0), sum(&bytes));
        let expected = expect(&bytes, SMALL, 3);
        bytes.truncate(32);
        for index in 0..SMALL as u32 / 8 {
            bytes.extend(index.to_le_bytes());
            bytes.extend([3, 0, 0, 0]);
        }
        assert_eq!(expected, sum(&bytes));
    }
}
