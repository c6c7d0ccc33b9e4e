//! `xenlab xen fast`: the guest is dom0 itself, both ends of each device in one domain, no Linux. Seconds.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use indicatif::ProgressBar;

use crate::host::qemu::{End, Machine, Run, tail};
use crate::host::setup::Beds;
use crate::host::{crash, guest};

/// QEMU's status after a guest's end, and what that end was: `tests/guest`'s exit values, doubled plus one.
const PASSED: i32 = 33;
const ENDS: &[(i32, &str)] = &[(35, "failed"), (37, "panicked"), (39, "faulted")];

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The scenario to run, with both ends in one domain; "block" is all those of disks
    #[arg(default_value = "all")]
    scenario: String,
    /// Seed of all that the scenarios choose at random
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Lists the guest's scenarios instead of running any
    #[arg(long, conflicts_with_all = ["scenario", "seed"])]
    list: bool,
    /// Runs another of the guest's programs with its arguments: "selftest"; "dom0", which serves disks to a second domain
    #[arg(long, value_name = "LINE", conflicts_with_all = ["scenario", "seed", "list"])]
    program: Option<String>,
    /// Virtual processors that Xen gives the guest; it runs on the first alone
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=8))]
    vcpus: u32,
    /// Seconds until the run is given up
    #[arg(long, default_value_t = 120)]
    timeout: u64,
    /// Shows Xen's own lines too
    #[arg(long, short)]
    verbose: bool,
}

/// Runs a scenario on real Xen.
///
/// # Errors
/// The bed is missing, or the guest didn't end well.
pub(crate) fn run(args: &Args) -> Result<()> {
    let beds = Beds::find()?;
    let elf = guest::build()?;
    let line = command_line(args)?;

    let options = format!("dom0_mem=512M,max:512M dom0_max_vcpus={} guest_loglvl=all", args.vcpus);
    let mut machine = Machine::new(&beds, args.vcpus.max(2), &options);
    // Once more, for programs that build a second domain.
    let second = elf.try_clone()?;
    machine.boot(elf, &line, Some(second));

    let spinner = ProgressBar::new_spinner().with_message("Xen boots");
    spinner.enable_steady_tick(Duration::from_millis(100));
    let started = Instant::now();
    let run = machine.run(Duration::from_secs(args.timeout), |line| {
        if args.verbose || !line.starts_with("(XEN)") {
            spinner.set_message("the guest runs");
            spinner.suspend(|| println!("{line}"));
        }
    })?;
    spinner.finish_and_clear();
    judge(&run, &line, args.timeout)?;
    if args.list {
        return Ok(());
    }
    println!("passed on real Xen: {line} ({:.1} s)", started.elapsed().as_secs_f64());
    Ok(())
}

/// What the guest is told.
fn command_line(args: &Args) -> Result<String> {
    let line = match &args.program {
        Some(program) => program.clone(),
        None if args.list => "fast list=yes".to_owned(),
        None => format!("fast scenario={} seed={}", args.scenario, args.seed),
    };
    if line.contains(|c: char| c == ',' || c.is_control()) {
        bail!("the guest's command line can't hold commas or control characters: {line:?}");
    }
    Ok(line)
}

/// Turns a machine's end into the result of the run.
///
/// # Errors
/// It crashed, lasted too long, or the guest says that it failed.
pub(crate) fn judge(run: &Run, line: &str, timeout: u64) -> Result<()> {
    if let Some(report) = crash::report(&run.lines) {
        bail!("crash in {line:?}:\n{report}");
    }
    let last = tail(&run.lines, 20);
    match &run.end {
        End::Exited(status) => match (status.code(), ENDS.iter().find(|(code, _)| status.code() == Some(*code))) {
            (Some(PASSED), _) => Ok(()),
            (_, Some((_, end))) => bail!("the guest {end} in {line:?}{}", last_words(&run.lines)),
            _ => bail!("QEMU ended with {status} without a word of the guest in {line:?}; last lines:\n{last}"),
        },
        End::Dead => bail!("the machine stopped in {line:?}; last lines:\n{last}"),
        End::TimedOut => bail!("{line:?} is not done after {timeout} s; last lines:\n{last}"),
    }
}

/// Returns what the guest itself says of its end.
fn last_words(lines: &[String]) -> String {
    let words = lines.iter().rev().find_map(|line| line.strip_prefix("guest: "));
    words.map_or_else(String::new, |words| format!(": {words}"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        args: Args,
    }

    fn parse(arguments: &[&str]) -> Result<Args, clap::Error> {
        Command::try_parse_from([&["fast"], arguments].concat()).map(|command| command.args)
    }

    fn outcome(end: End, lines: &[&str]) -> Result<(), String> {
        let run = Run { lines: lines.iter().map(ToString::to_string).collect(), end };
        judge(&run, "program", 9).map_err(|error| format!("{error:#}"))
    }

    fn exited(code: i32) -> End {
        End::Exited(ExitStatus::from_raw(code << 8))
    }

    #[test]
    fn only_the_guests_own_good_end_passes() {
        assert_eq!(outcome(exited(33), &["guest: ok"]), Ok(()));
        for (code, word) in
            [(0, "without a word"), (1, "without a word"), (35, "failed"), (37, "panicked"), (39, "faulted")]
        {
            let message = outcome(exited(code), &[]).unwrap_err();
            assert!(message.contains(word), "{code}: {message}");
        }
        assert!(outcome(End::Exited(ExitStatus::from_raw(9)), &[]).is_err());
    }

    #[test]
    fn a_failure_is_told_in_the_guests_words() {
        let message = outcome(exited(35), &["guest: failed: 1 of 4 scenarios"]).unwrap_err();
        assert!(message.contains("failed in \"program\": failed: 1 of 4 scenarios"), "{message}");
    }

    #[test]
    fn a_time_out_tells_the_last_lines() {
        let message = outcome(End::TimedOut, &["it hangs here"]).unwrap_err();
        assert!(message.contains("after 9 s") && message.contains("it hangs here"), "{message}");
    }

    #[test]
    fn a_crash_tells_the_registers_whatever_the_status() {
        let lines = ["(XEN) Domain 0 (vcpu#0) crashed on cpu#0:", "(XEN) rax: 0000000000000007"];
        for end in [End::Dead, End::TimedOut, exited(33)] {
            assert!(outcome(end, &lines).unwrap_err().contains("rax: 0000000000000007"));
        }
    }

    #[test]
    fn the_guest_is_told_the_scenario_and_the_seed() {
        assert_eq!(command_line(&parse(&[]).unwrap()).unwrap(), "fast scenario=all seed=1");
        assert_eq!(command_line(&parse(&["block", "--seed", "7"]).unwrap()).unwrap(), "fast scenario=block seed=7");
        assert_eq!(command_line(&parse(&["--program", "crash kind=fault"]).unwrap()).unwrap(), "crash kind=fault");
    }

    #[test]
    fn arguments_that_contradict_are_refused() {
        assert!(parse(&["--vcpus", "0"]).is_err());
        assert!(parse(&["--vcpus", "9"]).is_err());
        assert!(parse(&["--list", "--program", "x"]).is_err());
        assert!(parse(&["block", "--program", "x"]).is_err());
        assert!(command_line(&parse(&["a,b"]).unwrap()).is_err());
    }
}
