//! A second domain, built by the first as a toolstack would build it, but without one: memory, image, page tables,
//! `start_info`, registers. What it is good for: tests between two real domains in two seconds.
//!
//! ```text
//! VIRT_BASE + image's address    image
//!                                frame list
//!                                start_info, store ring, console ring: a page each
//!                                page tables: level 4, 3, 2, and a level 1 for each 2 MiB
//!                                stack: a page
//!                                512 KiB or more of free memory, up to a multiple of 4 MiB
//! ```

mod domctl;
mod foreign;
mod image;

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use hypercall::call::event_channel;
use hypercall::{DomId, Mfn, Port, XenError};
use xen_sys::xen::{MMUEXT_PIN_L4_TABLE, StartInfo, StartInfoConsole, StartInfoConsoleDomU};
use xen_sys::{PAGE_SIZE, XenPfn};

use crate::Bare;
use crate::boot::VIRT_BASE;
use domctl::Registers;
pub(crate) use foreign::Foreign;
use image::Image;

/// Pages that one level-1 table maps.
const TABLE_PAGES: usize = 512;
/// Free pages at least behind the stack.
const SLACK_PAGES: usize = 128;
/// Flags of a page-table entry: present, writable, user, accessed, dirty.
const ENTRY: u64 = 0x67;
/// The flag among them that a mapping of a page table must not have.
const WRITABLE: u64 = 0x2;

/// A domain that was built, and the ends of its channels in this one.
#[derive(Debug)]
pub struct DomU {
    /// Its number.
    pub id: DomId,
    /// Frame of its console ring.
    pub console_ring: Mfn,
    /// This domain's end of its console channel.
    pub console: Port,
    /// Frame of its xenstore ring.
    pub store_ring: Mfn,
    /// Its own end of its xenstore channel, to which this domain may bind.
    pub store: Port,
}

/// Why a domain has ended.
pub use domctl::Ended;

/// Where in the new domain's memory things stand: page numbers.
#[derive(Clone, Copy, Debug)]
struct Plan {
    frame_list: usize,
    start_info: usize,
    store_ring: usize,
    console_ring: usize,
    tables: usize,
    leaf_tables: usize,
    stack: usize,
    boot_end: usize,
}

impl Plan {
    fn new(image_end: usize, pages: usize) -> Self {
        let frame_list = image_end;
        let start_info = frame_list + (pages * size_of::<usize>()).div_ceil(PAGE_SIZE);
        let tables = start_info + 3;
        // The tables map themselves, so their number is tried from below.
        let fits = |&leaf_tables: &usize| tables + 3 + leaf_tables + 1 + SLACK_PAGES <= leaf_tables * TABLE_PAGES;
        let leaf_tables = (2..).step_by(2).find(fits).unwrap_or(0);
        let stack = tables + 3 + leaf_tables;
        Self {
            frame_list,
            start_info,
            store_ring: start_info + 1,
            console_ring: start_info + 2,
            tables,
            leaf_tables,
            stack,
            boot_end: leaf_tables * TABLE_PAGES,
        }
    }

    fn is_table(&self, page: usize) -> bool {
        (self.tables..self.stack).contains(&page)
    }
}

/// Returns the virtual address of a page of the new domain.
const fn va(page: usize) -> usize {
    VIRT_BASE + page * PAGE_SIZE
}

/// Builds a domain of `pages` pages from an ELF image and starts it with that command line.
///
/// # Errors
/// What was refused, and by whom.
pub fn start(elf: &[u8], pages: usize, command_line: &str) -> Result<DomU, String> {
    let image = Image::parse(elf)?;
    let plan = Plan::new(image.end.div_ceil(PAGE_SIZE), pages);
    if plan.boot_end > pages {
        return Err(format!("{pages} pages are too few: the image alone needs {}", plan.boot_end));
    }
    let id = domctl::create(pages).map_err(said("domctl createdomain"))?;
    let domain = build(id, &image, plan, pages, command_line);
    if domain.is_err() {
        let _ = domctl::destroy(id);
    }
    domain
}

fn build(id: DomId, image: &Image<'_>, plan: Plan, pages: usize, command_line: &str) -> Result<DomU, String> {
    let frames = domctl::populate(id, pages).map_err(said("populate_physmap"))?;
    let shared_info = domctl::info(id).map_err(said("domctl getdomaininfo"))?.shared_info_frame;
    let store = domctl::offer_port(id).map_err(said("alloc_unbound"))?;
    let console = domctl::offer_port(id).map_err(said("alloc_unbound"))?;

    let mut foreign = Foreign::new(id)?;
    for &frame in &frames[..plan.boot_end] {
        foreign.with(frame, |page| page.fill(0))?;
    }
    load(&mut foreign, image, &frames)?;
    write_frame_list(&mut foreign, plan, &frames)?;
    write_tables(&mut foreign, plan, &frames)?;
    let mut info = start_info(plan, pages, shared_info, &frames, store, console);
    let text = command_line.as_bytes();
    let room = info.cmd_line.len() - 1;
    info.cmd_line[..text.len().min(room)].copy_from_slice(&text[..text.len().min(room)]);
    foreign.with(frames[plan.start_info], |page| {
        // SAFETY: the page is long enough and aligned, and the structure is plain data.
        unsafe { page.as_mut_ptr().cast::<StartInfo>().write(info) };
    })?;
    // The new processor starts with events masked: byte 1 of its part of the shared page.
    foreign.with(shared_info, |page| page[1] = 1)?;
    drop(foreign);

    domctl::pin(id, MMUEXT_PIN_L4_TABLE, frames[plan.tables]).map_err(said("mmuext_op pin"))?;
    if let Some(page) = image.hypercall_page {
        let frame = frames[(page - VIRT_BASE) / PAGE_SIZE];
        domctl::fill_hypercall_page(id, frame).map_err(said("domctl hypercall_init"))?;
    }
    let registers = Registers {
        entry: image.entry,
        start_info: va(plan.start_info),
        stack: va(plan.stack + 1),
        tables: frames[plan.tables],
    };
    domctl::set_registers(id, registers).map_err(said("domctl setvcpucontext"))?;
    let own = event_channel::bind_interdomain(&Bare, id, console).map_err(said("bind_interdomain"))?;
    domctl::unpause(id).map_err(said("domctl unpausedomain"))?;
    Ok(DomU { id, console_ring: frames[plan.console_ring], console: own, store_ring: frames[plan.store_ring], store })
}

impl DomU {
    /// Returns how the domain has ended, if it has.
    ///
    /// # Errors
    /// Xen's, if there is no such domain any more.
    pub fn ended(&self) -> Result<Option<Ended>, XenError> {
        domctl::info(self.id).map(|info| info.ended)
    }

    /// Takes the domain apart. Its frames must not be mapped any more.
    ///
    /// # Errors
    /// Xen's.
    pub fn destroy(self) -> Result<(), XenError> {
        event_channel::close(&Bare, self.console)?;
        domctl::destroy(self.id)
    }
}

fn load(foreign: &mut Foreign, image: &Image<'_>, frames: &[Mfn]) -> Result<(), String> {
    for segment in &image.segments {
        let mut at = segment.address;
        let mut bytes = segment.bytes;
        while !bytes.is_empty() {
            let offset = at % PAGE_SIZE;
            let (now, later) = bytes.split_at(bytes.len().min(PAGE_SIZE - offset));
            foreign.with(frames[at / PAGE_SIZE], |page| page[offset..offset + now.len()].copy_from_slice(now))?;
            at += now.len();
            bytes = later;
        }
    }
    Ok(())
}

/// Writes a run of words from page `first` on.
fn write_words(foreign: &mut Foreign, frames: &[Mfn], first: usize, words: &[u64]) -> Result<(), String> {
    for (page, words) in words.chunks(TABLE_PAGES).enumerate() {
        foreign.with(frames[first + page], |bytes| {
            for (to, word) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(words) {
                *to = word.to_le_bytes();
            }
        })?;
    }
    Ok(())
}

fn write_frame_list(foreign: &mut Foreign, plan: Plan, frames: &[Mfn]) -> Result<(), String> {
    let words: Vec<u64> = frames.iter().map(|frame| frame.0).collect();
    write_words(foreign, frames, plan.frame_list, &words)
}

fn write_tables(foreign: &mut Foreign, plan: Plan, frames: &[Mfn]) -> Result<(), String> {
    let entry = |page: usize| frames[page].0 << 12 | ENTRY;
    let one_entry = |index: usize, page: usize| {
        let mut table = [0; TABLE_PAGES];
        table[index] = entry(page);
        table
    };
    // VIRT_BASE is entry 511 of level 4, 510 of level 3, 0 of level 2.
    write_words(foreign, frames, plan.tables, &one_entry(511, plan.tables + 1))?;
    write_words(foreign, frames, plan.tables + 1, &one_entry(510, plan.tables + 2))?;
    let leaf_tables = plan.tables + 3..plan.stack;
    write_words(foreign, frames, plan.tables + 2, &leaf_tables.clone().map(entry).collect::<Vec<_>>())?;
    let leaves = (0..plan.boot_end).map(|page| if plan.is_table(page) { entry(page) & !WRITABLE } else { entry(page) });
    write_words(foreign, frames, leaf_tables.start, &leaves.collect::<Vec<_>>())
}

fn start_info(plan: Plan, pages: usize, shared_info: Mfn, frames: &[Mfn], store: Port, console: Port) -> StartInfo {
    let mut magic = [0; 32];
    magic[..14].copy_from_slice(b"xen-3.0-x86_64");
    StartInfo {
        magic,
        nr_pages: pages,
        shared_info: (shared_info.0 as usize) << 12,
        flags: 0,
        store_mfn: XenPfn(frames[plan.store_ring].0 as usize),
        store_evtchn: store,
        console: StartInfoConsole {
            domU: StartInfoConsoleDomU { mfn: XenPfn(frames[plan.console_ring].0 as usize), evtchn: console },
        },
        pt_base: va(plan.tables),
        nr_pt_frames: 3 + plan.leaf_tables,
        mfn_list: va(plan.frame_list),
        mod_start: 0,
        mod_len: 0,
        cmd_line: [0; _],
        first_p2m_pfn: 0,
        nr_p2m_frames: 0,
    }
}

/// Says which step Xen refused.
fn said(what: &'static str) -> impl Fn(XenError) -> String {
    move |error| format!("{what}: {error}")
}
