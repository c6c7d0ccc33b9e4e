//! `xenlab xen conformance`: real Xen and oxenstored answer the suite's scripts, and what they say is compared with the
//! transcripts that the mock is held to, or recorded.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use clap::ValueEnum;
use indicatif::ProgressBar;
use suite::conformance::differences;

use crate::host::qemu::{Machine, Run};
use crate::host::setup::Beds;
use crate::host::{fast, guest, linux};

const JOB: &[u8] = include_bytes!("../../dom0/conformance-job");

/// What the guest says before each step.
const STEP: &str = "conformance: ";

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The script to run; without it, both
    script: Option<Script>,
    /// Writes the transcript into the checkout instead of comparing with what is there
    #[arg(long)]
    record: bool,
    /// Seconds until a run is given up
    #[arg(long, default_value_t = 300)]
    timeout: u64,
    /// Shows every line of the machine
    #[arg(long, short)]
    verbose: bool,
}

/// A script, and the bed that it runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Script {
    /// Hypercalls, with the guest as dom0
    Hypercalls,
    /// Xenstore operations, with the guest as an unprivileged domain of a Linux dom0
    Xenstore,
}

impl Script {
    const fn file(self) -> &'static str {
        match self {
            Self::Hypercalls => "hypercalls.txt",
            Self::Xenstore => "xenstore.txt",
        }
    }

    const fn about(self) -> &'static str {
        match self {
            Self::Hypercalls => "Hypercalls of domain 0",
            Self::Xenstore => "Messages of an unprivileged domain and of oxenstored",
        }
    }

    /// The transcript in the checkout that this program was built from.
    fn path(self) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../suite/conformance").join(self.file())
    }
}

/// Runs the scripts, and compares or records what they say.
///
/// # Errors
/// The bed is missing, a run didn't end well, or a transcript differs.
pub(crate) fn run(args: &Args) -> Result<()> {
    let beds = Beds::find()?;
    for script in args.script.map_or(vec![Script::Hypercalls, Script::Xenstore], |script| vec![script]) {
        let run = play(script, &beds, args)?;
        let lines = steps(&run.lines);
        ensure!(!lines.is_empty(), "the guest has made no step");
        let path = script.path();
        if args.record {
            fs::write(&path, transcript(script, &run.lines, &lines))
                .with_context(|| format!("can't write {}", path.display()))?;
            println!("recorded {} steps: {}", lines.len(), path.display());
            continue;
        }
        let recorded = fs::read_to_string(&path).with_context(|| format!("no transcript {}", path.display()))?;
        let differences = differences(&recorded, &lines);
        if !differences.is_empty() {
            bail!("{} differs from {}:\n  {}", script.about(), path.display(), differences.join("\n  "));
        }
        println!("passed on real Xen: {} steps as in {}", lines.len(), script.file());
    }
    Ok(())
}

/// Runs a script on its bed.
fn play(script: Script, beds: &Beds, args: &Args) -> Result<Run> {
    let elf = guest::build()?;
    let machine = match script {
        Script::Hypercalls => {
            let mut machine = Machine::new(beds, 2, "dom0_mem=512M,max:512M dom0_max_vcpus=1 guest_loglvl=all");
            machine.boot(elf, "conformance", None);
            machine
        }
        Script::Xenstore => linux::machine(beds, 2, 1, elf, JOB, args.timeout, &[])?,
    };
    let spinner = ProgressBar::new_spinner().with_message(script.about());
    spinner.enable_steady_tick(Duration::from_millis(100));
    let run = machine.run(Duration::from_secs(args.timeout), |line| {
        if args.verbose {
            spinner.suspend(|| println!("{line}"));
        }
    })?;
    spinner.finish_and_clear();
    match script {
        Script::Hypercalls => fast::judge(&run, "conformance", args.timeout)?,
        Script::Xenstore => drop(linux::judge_job(&run, args.timeout, &[])?),
    }
    Ok(run)
}

/// Finds the steps among all that a machine has said.
fn steps(lines: &[String]) -> Vec<String> {
    let step = |line: &String| {
        let line = line.strip_prefix("guest: ").unwrap_or(line);
        line.strip_prefix(STEP).map(|step| step.trim_end().to_owned())
    };
    lines.iter().filter_map(step).collect()
}

/// Returns the text of a transcript's file.
fn transcript(script: Script, said: &[String], steps: &[String]) -> String {
    let version = said.iter().find_map(|line| line.split_once("Xen version ").map(|(_, version)| version));
    let version = version.and_then(|version| version.split_whitespace().next()).unwrap_or("of unknown version");
    let head = format!(
        "# {}, recorded from Xen {version} by `xenlab xen conformance --record`.\n# Never written by hand, or from the mock.\n",
        script.about()
    );
    steps.iter().fold(head, |text, step| format!("{text}{step}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn a_recorded_transcript_is_that_of_its_run_on_either_bed() {
        for prefix in ["", "guest: "] {
            let said = format!(
                "(XEN) Xen version 4.17.9 (x)\n{prefix}conformance: a -> ok\nnoise\n{prefix}conformance: b -> EINVAL\n"
            );
            let steps = steps(&lines(&said));
            assert_eq!(steps, ["a -> ok", "b -> EINVAL"]);
            let text = transcript(Script::Xenstore, &lines(&said), &steps);
            assert!(text.contains("Xen 4.17.9"), "{text}");
            assert_eq!(differences(&text, &steps), Vec::<String>::new());
        }
    }

    #[test]
    fn another_outcome_a_lost_step_and_a_new_one_are_told_by_name() {
        let recorded = "# head\na -> ok\nb -> EINVAL\n";
        for (now, told) in [
            ("a -> ok\nb -> ENOENT", "b\n    recorded: EINVAL\n    here:     ENOENT"),
            ("a -> ok", "b: recorded, but not made here"),
            ("a -> ok\nb -> EINVAL\nc -> ok", "c: made here, but not recorded"),
            ("b -> EINVAL\na -> ok", "the same steps, but in another order or with other lines between them"),
        ] {
            assert_eq!(differences(recorded, &lines(now)), [told]);
        }
    }
}
