//! Says what the domain runs on.

use alloc::format;
use alloc::string::String;

use hypercall::Platform;

use super::Args;
use crate::bare::domain_id;
use crate::boot::{command_line, is_dom0, start_info};
use crate::memory::{frames, pages};
use crate::{Bare, println};

pub(super) fn run(_: &Args<'_>) -> Result<(), String> {
    let magic = &start_info().magic;
    let end = magic.iter().position(|&byte| byte == 0).unwrap_or(magic.len());
    let (_, heap) = pages::usage();
    println!("hello from a bare domain on {}", core::str::from_utf8(&magic[..end]).unwrap_or("?"));
    println!("  kind         {}", if is_dom0() { "dom0" } else { "domU" });
    match domain_id() {
        Ok(id) => println!("  number       {}", id.0),
        Err(error) => return Err(format!("its own number: {error}")),
    }
    println!("  memory       {} pages, {} KiB of them for pages and heap", frames::count(), heap / 1024);
    println!("  time         {} ns since Xen's start", Bare.now_ns());
    println!("  command line {:?}", command_line());
    Ok(())
}
