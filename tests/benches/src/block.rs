//! Instructions of the two ends of a disk, built as for a kernel.

use std::ffi::OsStr;
use std::path::Path;

use anyhow::{Result, ensure};
use hypercall::mem::PAGE_SIZE;

use crate::bed::{COPIED, DEPTH, KEPT, MAPPED};
use crate::count::Counted;
use crate::growth;
use crate::rivals::{BATCHES, compile_bare};
use crate::tables::{OPTIONS, Open, Opened, Part, load, xenlab_block_over};

/// Requests of a case; each is like the one before.
const REQUESTS: u32 = 256;

/// What is submitted: pages of a request, and how the back end gets at them.
pub const SHAPES: [(&str, u32, u64); 8] = [
    ("mapped1", 1, MAPPED),
    ("mapped11", 11, MAPPED),
    ("mapped16", 16, MAPPED),
    ("kept1", 1, KEPT),
    ("kept11", 11, KEPT),
    ("kept16", 16, KEPT),
    ("copied1", 1, COPIED),
    ("copied11", 11, COPIED),
];

/// The functions that a bed has.
struct Parts {
    open: Open,
    submit: Part,
    serve: Part,
    complete: Part,
    copy: Part,
    bytes: Part,
}

/// Which part of the work is counted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Counting {
    Front,
    Back,
    None,
}

impl Parts {
    fn open(&self, way: u64) -> Result<Opened> {
        Opened::new(self.open, way, false)
    }

    /// Lets so many requests travel there and back.
    fn run(&self, bed: &Opened, requests: u32, batch: u32, pages: u32, counting: Counting) -> Result<()> {
        let (front, back) = (counting == Counting::Front, counting == Counting::Back);
        for _ in 0..requests / batch {
            let taken = bed.part(self.submit, front, batch, pages);
            let served = bed.part(self.serve, back, 0, 0);
            let completed = bed.part(self.complete, front, 0, 0);
            let all = (u64::from(batch), 1, u64::from(batch));
            ensure!((taken, served, completed) == all, "{batch} requests: {taken} taken, {completed} completed");
        }
        Ok(())
    }

    fn load(folder: &Path) -> Result<Self> {
        let library = load(folder)?;
        // SAFETY: the source gives the functions of these names these types.
        unsafe {
            Ok(Self {
                open: *library.get(b"block_open")?,
                submit: *library.get(b"block_submit")?,
                serve: *library.get(b"block_serve")?,
                complete: *library.get(b"block_complete")?,
                copy: *library.get(b"block_copy")?,
                bytes: *library.get(b"block_bytes")?,
            })
        }
    }
}

/// Runs each case once, and prints a line for each: what runs under callgrind. `folder` has the object.
///
/// # Errors
/// The object can't be used, or the two ends don't do what they should.
pub fn cases(folder: &Path) -> Result<()> {
    let parts = Parts::load(folder)?;
    for (name, counting) in [("front end", Counting::Front), ("back end", Counting::Back)] {
        for (shape, pages, way) in SHAPES {
            // To the front end that is the same as what is mapped.
            if way == COPIED && counting == Counting::Front {
                continue;
            }
            for batch in BATCHES {
                let bed = parts.open(way)?;
                // What happens once only, such as a page that is mapped to stay.
                parts.run(&bed, DEPTH, batch, pages, Counting::None)?;
                *bed.below.calls.borrow_mut() = [0; 2];
                let before = bed.part(parts.bytes, false, 0, 0);
                parts.run(&bed, REQUESTS, batch, pages, counting)?;
                let bytes = bed.part(parts.bytes, false, 0, 0) - before;
                ensure!(bytes == u64::from(REQUESTS * pages) * PAGE_SIZE as u64, "the disk has read {bytes} bytes");
                xenlab_block_over();
                let [grants, signals] = *bed.below.calls.borrow();
                println!("{name}\t{shape}\t{batch}\t{REQUESTS}\t{grants}\t{signals}");
            }
        }
    }
    let bed = parts.open(MAPPED)?;
    for _ in 0..REQUESTS {
        ensure!(bed.part(parts.copy, true, 0, 0) == 1, "no copy");
    }
    xenlab_block_over();
    println!("copy\tpage\t1\t{REQUESTS}\t0\t0");
    growth::cases(folder)
}

/// Counts all cases: this program is run with `arguments` and a folder, by which it is to call [`cases`].
///
/// # Errors
/// It can't be compiled or run.
pub fn count(arguments: &[&str]) -> Result<Vec<Counted>> {
    let folder = tempfile::tempdir()?;
    compile_bare(&folder.path().join("bare.so"))?;
    let mut all: Vec<&OsStr> = arguments.iter().map(OsStr::new).collect();
    all.push(folder.path().as_os_str());
    crate::count::under_valgrind(&OPTIONS, &all)
}
