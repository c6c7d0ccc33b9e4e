//! Instructions, counted by callgrind. The program runs itself under it; the rings are the same to the instruction.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use crate::rivals::{BATCHES, Opened, SHAPES, load};

/// Requests of each case; enough that what comes before and after doesn't count.
const REQUESTS: u64 = 4096;

/// Instructions a request of one case.
#[derive(Clone, Debug)]
pub struct Count {
    /// Whose.
    pub rival: String,
    /// One of [`SHAPES`].
    pub shape: String,
    /// Requests a round.
    pub batch: u32,
    /// Instructions a request.
    pub instructions: f64,
}

/// Runs each case once, and prints a line for each: what runs under callgrind. `folder` has the objects.
///
/// # Errors
/// An object can't be used, or two don't agree in what they have seen.
pub fn cases(folder: &Path) -> Result<()> {
    let rivals = load(folder)?;
    for (index, shape) in SHAPES.iter().enumerate() {
        for batch in BATCHES {
            let mut agreed = None;
            for rival in &rivals {
                let Some(work) = rival.works[index] else { continue };
                let sum = Opened::new(work)?.run(REQUESTS / u64::from(batch), batch);
                // Virtio has other requests.
                if rival.name != "virtio" {
                    let first = *agreed.get_or_insert(sum);
                    ensure!(sum == first, "{} {shape} {batch}: saw {sum:#x}, and ours {first:#x}", rival.name);
                }
                println!("{}\t{shape}\t{batch}", rival.name);
            }
        }
    }
    Ok(())
}

/// Returns why nothing can be counted here, if so.
pub fn missing() -> Option<String> {
    let valgrind = Command::new("valgrind").arg("--version").output();
    match valgrind {
        Ok(output) if output.status.success() => None,
        _ => Some("no valgrind (Debian's valgrind)".into()),
    }
}

/// One case that was counted, with the words behind it.
#[derive(Clone, Debug)]
pub struct Counted {
    /// What was counted.
    pub count: Count,
    /// What else the case has told: numbers a request.
    pub rest: Vec<f64>,
}

/// Counts all cases: this program is run with `arguments`, by which it is to call [`cases`].
///
/// # Errors
/// It can't be run, or callgrind tells something else than one number a case.
pub fn count(arguments: &[&OsStr]) -> Result<Vec<Count>> {
    let options = ["--toggle-collect=xenlab_measured", "--dump-after=xenlab_measured"];
    Ok(under_valgrind(&options, arguments)?.into_iter().map(|counted| counted.count).collect())
}

/// Runs this program under callgrind, and reads what it dumps: one file for each line that it prints. A line has a name, a shape, a
/// batch, and how many requests there were, or [`REQUESTS`]; numbers may follow.
///
/// # Errors
/// As [`count`].
pub(crate) fn under_valgrind(options: &[&str], arguments: &[&OsStr]) -> Result<Vec<Counted>> {
    let folder = tempfile::tempdir()?;
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--quiet", "--tool=callgrind"]).args(options);
    let mut file = std::ffi::OsString::from("--callgrind-out-file=");
    file.push(folder.path().join("out"));
    valgrind.arg(file).arg(env::current_exe()?).args(arguments);
    let output = valgrind.output().context("valgrind can't be started")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "under valgrind: {}", said.lines().last().unwrap_or_default());
    let cases = String::from_utf8(output.stdout)?;
    let mut counts = Vec::new();
    for (index, case) in cases.lines().enumerate() {
        let words: Vec<_> = case.split('\t').collect();
        let [rival, shape, batch, rest @ ..] = &words[..] else { bail!("no case: {case}") };
        let (requests, rest) = match rest {
            [requests, rest @ ..] => (requests.parse()?, rest),
            [] => (REQUESTS as f64, rest),
        };
        let dump =
            fs::read_to_string(folder.path().join(format!("out.{}", index + 1))).context("a case wasn't counted")?;
        let total = dump.lines().find_map(|line| line.strip_prefix("totals: ").or(line.strip_prefix("summary: ")));
        let total: f64 = total.context("callgrind tells no total")?.trim().parse()?;
        ensure!(total > requests, "callgrind has counted {total} instructions for {case}");
        let rest: Result<Vec<f64>, _> = rest.iter().map(|number| number.parse().map(|n: f64| n / requests)).collect();
        let (rival, shape) = ((*rival).into(), (*shape).into());
        let count = Count { rival, shape, batch: batch.parse()?, instructions: total / requests };
        counts.push(Counted { count, rest: rest? });
    }
    ensure!(!counts.is_empty(), "nothing was counted");
    Ok(counts)
}
