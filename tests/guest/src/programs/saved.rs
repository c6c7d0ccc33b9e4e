//! tiny
use alloc::string::{String, ToString};
use core::ptr::NonNull;

use hypercall::event::EventChannels;
use hypercall::{Mfn, Platform};
use xenbus::store::{Store, Tx, XenStore};

use super::Args;
use super::outside::boot_page;
use crate::boot::start_info;
use crate::suspend::{Outcome, suspend};
use crate::{Bare, println, shared};

pub(super) fn run(_: &Args<'_>) -> Result<(), String> {
    let info = start_info();
    let shared = shared::shared_info().ok_or("no")?;
    let events = unsafe { EventChannels::new(Bare, NonNull::from(shared)) };
    let store = XenStore::new(Bare, events, boot_page(Mfn(info.store_mfn.0 as u64)), info.store_evtchn);
    store.set_timeout_ns(60_000_000_000);
    println!("xenlab: ready");
    loop {
        let reason: Option<String> =
            store.read_if_there(Tx::NONE, "control/shutdown").map_err(|error| error.to_string())?;
        match reason.as_deref() {
            Some("suspend") => {
                store.write_text(Tx::NONE, "control/shutdown", "").map_err(|error| error.to_string())?;
                println!("xenlab: suspends {}", Bare.now_ns());
                let outcome = suspend().map_err(|error| error.to_string())?;
                println!("xenlab: resumed {outcome:?} {}", Bare.now_ns());
                if outcome == Outcome::Restored {
                    return Ok(());
                }
            }
            None | Some("") => shared::wait(&[], Bare.now_ns() + 200_000_000),
            Some(other) => return Err(other.into()),
        }
    }
}
