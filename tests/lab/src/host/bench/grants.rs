//! Mapping beside copying, on real Xen.

use std::time::Duration;

use anyhow::Result;

use crate::host::fast::judge;
use crate::host::guest;
use crate::host::qemu::Machine;
use crate::host::setup::Beds;

/// Counts what it costs on real Xen to map a request's pages and unmap them, beside letting Xen copy its bytes: instructions of the
/// domain and of Xen
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Seconds until the run is given up
    #[arg(long, default_value_t = 300)]
    timeout: u64,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let beds = Beds::find()?;
    let elf = guest::build()?;
    // One processor: an instruction is a nanosecond for all of the machine, and only one may have it.
    let mut machine = Machine::new(&beds, 1, "dom0_mem=512M,max:512M dom0_max_vcpus=1 guest_loglvl=all");
    machine.count(0);
    machine.boot(elf, "grants", None);
    let run = machine.run(Duration::from_secs(args.timeout), |line| {
        if !line.starts_with("(XEN)") {
            println!("{line}");
        }
    })?;
    judge(&run, "grants", args.timeout)
}
