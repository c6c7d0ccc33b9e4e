//! The scripts whose transcripts are the same on every bed: hypercalls within the first domain, xenstore within any other, from
//! which no program has used it yet.

use alloc::string::{String, ToString};
use core::ptr::NonNull;

use hypercall::mem::{PAGE_SIZE, Shared};
use suite::conformance::{self, Subject, store};
use xen_sys::Mfn;

use super::Args;
use crate::bare::domain_id;
use crate::boot::{is_dom0, start_info};
use crate::memory::frames;
use crate::shared::shared_info;
use crate::{Bare, println};

pub(super) fn run(_: &Args<'_>) -> Result<(), String> {
    let id = domain_id().map_err(|error| error.to_string())?;
    let shared = shared_info().ok_or("the shared page is not mapped")?;
    let lines = if is_dom0() {
        conformance::hypercalls(&Subject { platform: Bare, id, shared })
    } else {
        let info = start_info();
        let address = frames::address(Mfn(info.store_mfn.0 as u64)) as *mut u8;
        let address = NonNull::new(address).ok_or("there is no store")?;
        // SAFETY: the builder's page lies in the boot region, which stays mapped, and is seen through atomics only.
        let page = unsafe { Shared::new(address, PAGE_SIZE) };
        store::run(store::Link { platform: Bare, id, shared, page, port: info.store_evtchn })
    };
    lines.iter().for_each(|line| println!("conformance: {line}"));
    Ok(())
}
