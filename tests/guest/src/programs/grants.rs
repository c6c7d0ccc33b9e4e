//! What it costs to get at another domain's pages: mapping and unmapping them, beside letting Xen copy: `grants [shift=N]`.
//!
//! Both domains are this one, which is no difference to Xen's grant calls. Time is to be a count of instructions (QEMU's `-icount`), each
//! of which lasts 2^N ns.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use hypercall::grant::{Access, CopyBatch, Foreign, Local, MapRequest, SharedPages, Window};
use hypercall::mem::{PAGE_SIZE, Pages};
use hypercall::{DomId, GrantRef, Platform as _};

use super::Args;
use crate::bare::{domain_id, services};
use crate::{Bare, println};

/// Bytes of a request.
const SIZES: [usize; 7] = [512, 1024, 2048, 4096, 8192, 16384, 45056];
/// Requests at once.
const BATCHES: [usize; 2] = [1, 32];
/// How often each is done. The first time isn't counted.
const ROUNDS: usize = 64;

const PAGES: usize = 11 * 32;

/// The pages of both sides.
struct Bench {
    refs: Vec<GrantRef>,
    peer: DomId,
    own: Pages<Bare>,
    window: Window<Bare>,
}

/// The length of each piece of a request, which begins at the start of a page.
fn pieces(bytes: usize) -> impl Iterator<Item = usize> + Clone {
    (0..bytes.div_ceil(PAGE_SIZE)).map(move |page| (bytes - page * PAGE_SIZE).min(PAGE_SIZE))
}

impl Bench {
    fn map(&mut self, pages: usize) -> Result<(), String> {
        let peer = self.peer;
        let batch = self.refs[..pages].iter().enumerate();
        let mut failed = 0;
        let requests = batch.map(|(slot, gref)| (slot, MapRequest { gref: *gref, peer, access: Access::ReadWrite }));
        self.window.map_batch(requests, |_, outcome| failed += usize::from(outcome.is_err()));
        let unmapped = self.window.unmap_batch(0..pages);
        if failed > 0 || unmapped.is_err() { Err("a page can't be mapped or unmapped".to_string()) } else { Ok(()) }
    }

    fn copy(&self, bytes: usize, requests: usize, out: bool) -> Result<(), String> {
        let mut batch = CopyBatch::new();
        let mut failed = 0;
        let all = (0..requests).flat_map(|_| pieces(bytes)).zip(&self.refs).enumerate();
        for (page, (len, gref)) in all {
            if batch.is_full() {
                batch.run(&Bare, |_, _| failed += 1);
            }
            let (here, there) =
                (Local::new(&self.own, page * PAGE_SIZE), Foreign { peer: self.peer, gref: *gref, offset: 0 });
            let added =
                if out { batch.to_peer(here, there, len as u16) } else { batch.from_peer(there, here, len as u16) };
            added.map_err(|error| error.to_string())?;
        }
        batch.run(&Bare, |_, _| failed += 1);
        if failed > 0 { Err("a page can't be copied".to_string()) } else { Ok(()) }
    }
}

/// Returns how long a request takes, in instructions.
fn measure(shift: u64, requests: usize, mut work: impl FnMut() -> Result<(), String>) -> Result<u64, String> {
    work()?;
    let begin = Bare.now_ns();
    for _ in 0..ROUNDS {
        work()?;
    }
    Ok(((Bare.now_ns() - begin) >> shift) / (ROUNDS * requests) as u64)
}

pub(super) fn run(args: &Args<'_>) -> Result<(), String> {
    let shift = args.number("shift", 0)?;
    let services = services()?;
    let peer = domain_id().map_err(|error| error.to_string())?;
    let shared = SharedPages::new(&services.grants, peer, PAGES).map_err(|error| error.to_string())?;
    let own = Pages::new(&Bare, PAGES).map_err(|error| error.to_string())?;
    let window = Window::new(&Bare, PAGES).map_err(|error| error.to_string())?;
    let mut bench = Bench { refs: shared.refs().to_vec(), peer, own, window };
    println!("instructions a request   batch  map+unmap  copied from   copied to");
    for requests in BATCHES {
        for bytes in SIZES {
            let pages = requests * pieces(bytes).count();
            let map = measure(shift, requests, || bench.map(pages))?;
            let from = measure(shift, requests, || bench.copy(bytes, requests, false))?;
            let to = measure(shift, requests, || bench.copy(bytes, requests, true))?;
            println!("{bytes:>12} bytes {requests:>12} {map:>10} {from:>12} {to:>11}");
        }
    }
    Ok(())
}
