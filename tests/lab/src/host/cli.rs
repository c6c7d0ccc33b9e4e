//! The command line.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::host::{bench, conformance, demo, fast, linux, setup};

/// Xen PV drivers in Rust, at work
#[derive(Debug, Parser)]
#[command(name = "xenlab", version, args_conflicts_with_subcommands = true)]
struct Cli {
    /// Without a command, the demo is run.
    #[command(flatten)]
    demo: demo::Args,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Copies a disk image between two domains of the mock hypervisor, and shows what it cost (the default)
    Demo(demo::Args),
    /// What things cost: instructions of the rings and of the two ends of a disk, if nothing else is asked for
    Bench {
        #[command(subcommand)]
        what: Option<Bench>,
    },
    /// Real Xen under QEMU
    #[command(subcommand)]
    Xen(Xen),
}

#[derive(Debug, Subcommand)]
enum Bench {
    /// A request through the message ring, beside the C macros of Xen's headers and virtio
    Ring(bench::Args),
    /// A request through the two ends of a disk, beside the figures of other systems' drivers
    Block(bench::Args),
    /// A block request on real Xen, beside Linux's front end
    Xen(bench::xen::Args),
    /// Mapping a request's pages on real Xen, beside copying
    Grants(bench::grants::Args),
}

#[derive(Debug, Subcommand)]
enum Xen {
    /// Makes everything that real Xen needs, in the user's cache folder (320 MB; 2 GB while at work)
    Setup,
    /// Boots the guest as dom0 and runs a scenario with both ends in one domain
    Fast(fast::Args),
    /// Boots Linux as dom0 and the guest as domU, on a disk that Linux serves; or the guest serves Linux
    Linux(linux::Args),
    /// Compares what real Xen and oxenstored answer with the transcripts that the mock is held to
    Conformance(conformance::Args),
}

pub(crate) fn main() -> ExitCode {
    // Who reads our output may stop early, as `head` does: then we end, too, without a panic about it.
    // SAFETY: no other thread runs yet, and the default action runs no code of ours.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xenlab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<()> {
    match &cli.command {
        None => demo::run(&cli.demo),
        Some(Command::Demo(args)) => demo::run(args),
        Some(Command::Bench { what }) => match what {
            None => bench::ring::run(&bench::Args::default()).and_then(|()| bench::block::run(&bench::Args::default())),
            Some(Bench::Ring(args)) => bench::ring::run(args),
            Some(Bench::Block(args)) => bench::block::run(args),
            Some(Bench::Xen(args)) => bench::xen::run(args),
            Some(Bench::Grants(args)) => bench::grants::run(args),
        },
        Some(Command::Xen(Xen::Setup)) => setup::run(),
        Some(Command::Xen(Xen::Fast(args))) => fast::run(args),
        Some(Command::Xen(Xen::Linux(args))) => linux::run(args),
        Some(Command::Xen(Xen::Conformance(args))) => conformance::run(args),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_disk_must_be_named_for_the_suite_that_needs_one() {
        assert!(Cli::try_parse_from(["xenlab", "xen", "linux"]).is_err());
        assert!(Cli::try_parse_from(["xenlab", "xen", "linux", "--disk", "x.img"]).is_ok());
        assert!(Cli::try_parse_from(["xenlab", "xen", "linux", "--suite", "disk"]).is_err());
        assert!(Cli::try_parse_from(["xenlab", "xen", "linux", "--suite", "block"]).is_ok());
        assert!(Cli::try_parse_from(["xenlab", "xen", "linux", "--suite", "save"]).is_ok());
        assert!(Cli::try_parse_from(["xenlab", "xen", "none"]).is_err());
    }
}
