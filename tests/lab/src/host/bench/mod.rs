//! What things cost.

use std::path::PathBuf;
use std::time::Duration;

use indicatif::ProgressBar;

pub(crate) mod block;
pub(crate) mod grants;
mod plot;
pub(crate) mod ring;
pub(crate) mod xen;

/// What is asked of a table of instruction counts.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Args {
    /// Draws the table as an SVG file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Counts only, and fails if a count of ours has risen by more than 2 % (and with `XEN_BENCH_REQUIRED` set, if something
    /// that is needed is missing here)
    #[arg(long)]
    check: bool,
    /// Counts only, and writes the counts of ours as the new baseline
    #[arg(long, conflicts_with = "check")]
    write_baseline: bool,
    /// What is counted, when this program runs itself under valgrind
    #[arg(long, value_name = "FOLDER", hide = true)]
    cases: Option<PathBuf>,
}

fn spinner(message: &'static str) -> ProgressBar {
    let spinner = ProgressBar::new_spinner().with_message(message);
    spinner.enable_steady_tick(Duration::from_millis(200));
    spinner
}
