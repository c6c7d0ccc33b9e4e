//! What the crate promises, tried on a hypervisor of a few hundred lines that knows only the calls made here.

mod book;
mod calls;
mod copies;
mod events;
mod fake;
mod grants;
mod interrupts;
mod loans;
mod memory;
mod quarantine;
mod shared;
mod storms;
mod suspend;
mod translated;
mod windows;

#[global_allocator]
static ALLOCATOR: memory::Refusing = memory::Refusing;
