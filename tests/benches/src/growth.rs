//! Instructions a request where there are many disks, queues or ports: they should be as many as where there is one.

use std::path::Path;

use anyhow::{Result, ensure};

use crate::tables::{Open, Opened, Part, load, xenlab_block_over};

/// Reads that each queue gets at once.
const BATCH: u32 = 8;

/// Disks, and queues of each, one bed after the other.
const SIZES: [(u32, u32); 5] = [(1, 1), (1, 8), (1, 64), (64, 1), (MANY, 1)];
const MANY: u32 = 1024;

/// Ports that are pending, of the 2048 that so many disks have at both ends.
const PENDING: [u32; 3] = [1, 64, 2048];

/// Names of what is counted, each in three sizes: those of the disks, and that of the ports.
pub const NAMES: [&str; 4] = ["queues of a disk", "disks", "disks, one of them busy", "ports pending of 2048"];

struct Parts {
    open: Open,
    submit: Part,
    handle: Part,
    raise: Part,
    scan: Part,
}

impl Parts {
    /// Lets reads travel there and back, so many by each queue.
    fn round(&self, bed: &Opened, count: u32, busy: u32, queues: u32, counted: bool) -> Result<u32> {
        let all = u64::from(count * busy * queues);
        let taken = bed.part(self.submit, counted, count, busy);
        let completed = bed.part(self.handle, counted, 0, 0);
        ensure!((taken, completed) == (all, all), "{all} requests: {taken} taken, {completed} completed");
        Ok(count * busy * queues)
    }
}

/// Runs each case once, and prints a line for each.
///
/// # Errors
/// The object can't be used, or the disks don't do what they should.
pub(crate) fn cases(folder: &Path) -> Result<()> {
    let library = load(folder)?;
    // SAFETY: the source gives the functions of these names these types.
    let parts = unsafe {
        Parts {
            open: *library.get(b"fleet_open")?,
            submit: *library.get(b"fleet_submit")?,
            handle: *library.get(b"fleet_handle")?,
            raise: *library.get(b"fleet_raise")?,
            scan: *library.get(b"fleet_scan")?,
        }
    };
    for (disks, queues) in SIZES {
        let bed = Opened::new(parts.open, u64::from(disks) << 32 | u64::from(queues), true)?;
        let case = |name: &str, busy| -> Result<()> {
            parts.round(&bed, BATCH, busy, queues, false)?;
            let requests = parts.round(&bed, BATCH, busy, queues, true)?;
            xenlab_block_over();
            println!("{name}\teach\t{}\t{requests}", disks * queues);
            Ok(())
        };
        if disks == 1 {
            case(NAMES[0], 1)?;
        }
        if queues == 1 {
            case(NAMES[1], disks)?;
            case(NAMES[2], 1)?;
        }
        if disks < MANY {
            continue;
        }
        for pending in PENDING {
            let raised = bed.part(parts.raise, false, pending, 0);
            let found = bed.part(parts.scan, true, 0, 0);
            ensure!((raised, found) == (pending.into(), pending.into()), "{raised} ports pending, {found} found");
            xenlab_block_over();
            println!("{}\teach\t{pending}\t{pending}", NAMES[3]);
        }
    }
    Ok(())
}
