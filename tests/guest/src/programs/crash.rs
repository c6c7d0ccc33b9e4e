//! Ends badly, on purpose: so that those who watch the domain can be seen to notice.

use alloc::format;
use alloc::string::{String, ToString};
use core::hint::black_box;

use hypercall::{Platform, Region};

use super::Args;
use crate::{Bare, console, println};

pub(super) fn run(args: &Args<'_>) -> Result<(), String> {
    match args.get("kind") {
        Some("panic") => panic!("on purpose"),
        // SAFETY: not safe at all: nothing is mapped there, which is the point.
        Some("fault") => Err(format!("read {}", unsafe { (0x1000 as *const u64).read_volatile() })),
        Some("write") => {
            // SAFETY: not safe at all: code is mapped read-only, which is the point.
            unsafe { (run as *const () as *mut u8).write_volatile(0) };
            Err("wrote over code".to_string())
        }
        // SAFETY: an opcode that the processor always refuses.
        Some("opcode") => unsafe { core::arch::asm!("ud2", options(noreturn)) },
        Some("stack") => Err(format!("went {} deep", dive(0))),
        Some("memory") => {
            while Bare.alloc(Region::Memory, 16).is_some() {}
            Err(format!("took {} more bytes", black_box(alloc::vec![0u8; 1 << 20]).len()))
        }
        Some("driver") => {
            console::set_driver(Some(|_| panic!("in the console's driver")));
            println!("this line is lost");
            Err("the driver returned".to_string())
        }
        Some("error") => Err("on purpose".to_string()),
        kind => Err(format!("kind={kind:?}: no such end")),
    }
}

/// Calls itself until the stack is used up.
#[expect(unconditional_recursion, reason = "it is to overflow the stack")]
fn dive(depth: u64) -> u64 {
    let room = black_box([depth; 64]);
    dive(depth + 1) + room[0]
}
