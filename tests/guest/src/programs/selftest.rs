//! Tests of the platform by itself: what the drivers' scenarios take for granted.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::ptr::NonNull;

use hypercall::call::event_channel;
use hypercall::grant::{self, CopyBatch, Local, MapRequest, SharedPages, Window};
use hypercall::mem::Pages;
use hypercall::{Hypervisor, Nr, Platform, Region, XenError};
use xen_sys::version::XENVER_version;
use xen_sys::xen::DOMID_SELF;
use xen_sys::{Mfn, Pfn};

use super::Args;
use crate::bare::{Services, domain_id, services};
use crate::memory::tables::{self, Access};
use crate::memory::{PAGE_SIZE, TABLE_SPAN, WINDOW_PAGES, frames, pages};
use crate::shared::{self, Scale};
use crate::traps::{probe_read, probe_write};
use crate::{Bare, bare, println};

/// A claim, and how it is tried.
type Test = (&'static str, fn() -> Result<(), String>);

const TESTS: &[Test] = &[
    ("each frame number leads to the machine frame and back", frame_numbers_agree),
    ("page tables say what the frame list says", page_tables_agree),
    ("code and constants can't be written", image_is_protected),
    ("pages come zeroed and aligned, and go back", pages_come_zeroed),
    ("no two pages share a frame", pages_are_distinct),
    ("the heap keeps what it is given, and loses nothing", heap_keeps),
    ("more pages than there are, are refused", too_much_is_refused),
    ("the window faults, shows a frame, and faults again", window_shows_frames),
    ("a read-only mapping refuses a write", read_only_refuses),
    ("window space is taken once and reused", window_is_reused),
    ("ticks become nanoseconds as the header says", ticks_become_nanoseconds),
    ("time goes on and never back", time_goes_on),
    ("waiting ends at its deadline, not before", waiting_ends),
    ("waiting ends early for an event", event_ends_waiting),
    ("a page granted to oneself is mapped, and is gone once unmapped", grants_are_mapped),
    ("a page granted to oneself is copied", grants_are_copied),
    ("both ways into Xen answer alike", both_entries_agree),
    ("arguments are found by key", arguments_are_found),
];

pub(super) fn run(_: &Args<'_>) -> Result<(), String> {
    let mut failed = 0;
    for (claim, test) in TESTS {
        match test() {
            Ok(()) => println!("selftest: ok: {claim}"),
            Err(message) => {
                println!("selftest: FAILED: {claim}: {message}");
                failed += 1;
            }
        }
    }
    if failed == 0 { Ok(()) } else { Err(format!("{failed} of {} tests", TESTS.len())) }
}

/// Fails with the line if the condition doesn't hold.
macro_rules! ensure {
    ($condition:expr, $($line:tt)+) => {
        if !$condition {
            return Err(format!($($line)+));
        }
    };
}

fn frame_numbers_agree() -> Result<(), String> {
    for pfn in (0..frames::count() as u64).map(Pfn) {
        let mfn = frames::mfn(pfn);
        ensure!(frames::pfn(mfn) == pfn, "{pfn:x?} is {mfn:x?}, which is {:x?}", frames::pfn(mfn));
    }
    Ok(())
}

fn page_tables_agree() -> Result<(), String> {
    let page = take(Region::Memory, 1)?;
    let stack = &raw const page as usize;
    for va in [page.as_ptr() as usize, stack] {
        let (mfn, access) = tables::mapping(va).ok_or_else(|| format!("{va:#x} is not mapped"))?;
        ensure!(mfn == frames::mfn_at(va), "{va:#x} maps {mfn:x?}, not {:x?}", frames::mfn_at(va));
        ensure!(access == Access::ReadWrite, "{va:#x} is read-only");
    }
    give(Region::Memory, page, 1);
    Ok(())
}

fn image_is_protected() -> Result<(), String> {
    let code = run as *const () as usize;
    let constants = TESTS.as_ptr() as usize;
    for (va, expected) in [(code, Access::Execute), (constants, Access::ReadOnly)] {
        let access = tables::mapping(va).map(|(_, access)| access);
        ensure!(access == Some(expected), "{va:#x} is mapped {access:?}");
        let aligned = va & !7;
        let held = probe_read(aligned).ok_or_else(|| format!("{va:#x} can't be read"))?;
        // SAFETY: were it possible, it would change nothing.
        ensure!(!unsafe { probe_write(aligned, held) }, "{va:#x} can be written");
    }
    Ok(())
}

fn pages_come_zeroed() -> Result<(), String> {
    let before = pages::usage();
    for round in 0..3 {
        for count in [1, 2, 7, 64] {
            let pages = take(Region::Memory, count)?;
            let address = pages.as_ptr() as usize;
            ensure!(address.is_multiple_of(PAGE_SIZE), "{address:#x} is no page");
            // SAFETY: just allocated, and nobody else's.
            let bytes = unsafe { core::slice::from_raw_parts_mut(pages.as_ptr(), count * PAGE_SIZE) };
            ensure!(bytes.iter().all(|&byte| byte == 0), "round {round}: {count} pages are not zero");
            bytes.fill(0xa5);
            give(Region::Memory, pages, count);
        }
    }
    ensure!(pages::usage() == before, "in use: {:?}, before: {before:?}", pages::usage());
    Ok(())
}

fn pages_are_distinct() -> Result<(), String> {
    let pages = (0..100).map(|_| take(Region::Memory, 1)).collect::<Result<Vec<_>, _>>()?;
    let mut frames: Vec<_> = pages.iter().map(|&page| Bare.gfn_of(page)).collect();
    frames.sort_unstable();
    frames.dedup();
    pages.into_iter().for_each(|page| give(Region::Memory, page, 1));
    ensure!(frames.len() == 100, "100 pages have {} frames", frames.len());
    Ok(())
}

fn heap_keeps() -> Result<(), String> {
    let before = pages::usage();
    {
        let mut kept: Vec<Vec<u8>> = Vec::new();
        for round in 0..200usize {
            kept.push(alloc::vec![round as u8; round * 37 % 5000 + 1]);
            if round % 3 == 2 {
                kept.swap_remove(round / 3);
            }
        }
        for piece in &kept {
            ensure!(piece.iter().all(|byte| byte == &piece[0]), "a piece of {} bytes changed", piece.len());
        }
        let (used, _) = pages::usage();
        ensure!(used > before.0, "{used} bytes in use with {} pieces", kept.len());
    }
    ensure!(pages::usage() == before, "in use: {:?}, before: {before:?}", pages::usage());
    Ok(())
}

fn too_much_is_refused() -> Result<(), String> {
    let (_, size) = pages::usage();
    for (region, count) in [
        (Region::Memory, size / PAGE_SIZE + 1),
        (Region::Memory, 0),
        (Region::Memory, usize::MAX),
        (Region::Unbacked, WINDOW_PAGES + 1),
        (Region::Unbacked, 0),
    ] {
        ensure!(Bare.alloc(region, count).is_none(), "{count} pages of {region:?} were granted");
    }
    Ok(())
}

fn window_shows_frames() -> Result<(), String> {
    let page = take(Region::Memory, 1)?;
    let window = take(Region::Unbacked, 3)?;
    let at = window.as_ptr() as usize + PAGE_SIZE;
    let word = page.cast::<u64>();
    // SAFETY: own page.
    unsafe { word.write_volatile(0x0123_4567_89ab_cdef) };
    ensure!(probe_read(at).is_none(), "readable before it is mapped");
    tables::set_leaf(at, Some((frame(page), Access::ReadWrite)));
    let seen = probe_read(at);
    ensure!(seen == Some(0x0123_4567_89ab_cdef), "shows {seen:x?}");
    ensure!(probe_read(at + PAGE_SIZE).is_none(), "the neighbour is readable");
    // SAFETY: the address shows the own page.
    ensure!(unsafe { probe_write(at, 42) }, "can't be written");
    // SAFETY: own page.
    let written = unsafe { word.read_volatile() };
    ensure!(written == 42, "the page holds {written}");
    tables::set_leaf(at, None);
    ensure!(probe_read(at).is_none(), "readable after it was unmapped");
    give(Region::Unbacked, window, 3);
    give(Region::Memory, page, 1);
    Ok(())
}

fn read_only_refuses() -> Result<(), String> {
    let page = take(Region::Memory, 1)?;
    let window = take(Region::Unbacked, 1)?;
    let at = window.as_ptr() as usize;
    tables::set_leaf(at, Some((frame(page), Access::ReadOnly)));
    ensure!(probe_read(at) == Some(0), "can't be read");
    // SAFETY: were it possible, it would go to the own page.
    ensure!(!unsafe { probe_write(at, 1) }, "was written");
    ensure!(probe_read(at) == Some(0), "has changed");
    tables::set_leaf(at, None);
    give(Region::Unbacked, window, 1);
    give(Region::Memory, page, 1);
    Ok(())
}

fn window_is_reused() -> Result<(), String> {
    // More than one level-1 table maps.
    let count = TABLE_SPAN / PAGE_SIZE + 10;
    let first = take(Region::Unbacked, count)?;
    let last = first.as_ptr() as usize + (count - 1) * PAGE_SIZE;
    ensure!(tables::has_leaf_table(last), "no table for the last page");
    let second = take(Region::Unbacked, 1)?;
    ensure!(second.as_ptr() as usize == first.as_ptr() as usize + count * PAGE_SIZE, "{second:p} overlaps {first:p}");
    give(Region::Unbacked, first, count);
    let third = take(Region::Unbacked, 2)?;
    ensure!(third == first, "{third:p} instead of {first:p}");
    give(Region::Unbacked, third, 2);
    give(Region::Unbacked, second, 1);
    Ok(())
}

fn ticks_become_nanoseconds() -> Result<(), String> {
    // 2 GHz: a tick is half a nanosecond.
    let half = Scale { tsc_timestamp: 1000, system_time: 7, tsc_to_system_mul: 1 << 31, tsc_shift: 0 };
    let cases = [
        (half, 1000, 7),
        (half, 3000, 1007),
        (half, 999, 7),
        (Scale { tsc_timestamp: 1000_u64.wrapping_neg(), ..half }, 1000, 1007),
        (Scale { tsc_shift: 1, ..half }, 3000, 2007),
        (Scale { tsc_shift: -2, ..half }, 3000, 257),
        // An hour of ticks at 4 GHz shifted up by 8 is more than 64 bits hold once it is multiplied.
        (Scale { tsc_timestamp: 0, tsc_shift: 8, ..half }, 14_400_000_000_000, 1_843_200_000_000_007),
    ];
    for (scale, tsc, expected) in cases {
        let time = scale.system_time(tsc);
        ensure!(time == expected, "{scale:?} at {tsc}: {time}, not {expected}");
    }
    Ok(())
}

fn time_goes_on() -> Result<(), String> {
    let start = Bare.now_ns();
    let mut last = start;
    for _ in 0..10_000 {
        let now = Bare.now_ns();
        ensure!(now >= last, "{now} after {last}");
        last = now;
    }
    ensure!(last > start, "stands at {start}");
    Ok(())
}

fn waiting_ends() -> Result<(), String> {
    for milliseconds in [1, 5, 20] {
        let start = Bare.now_ns();
        let deadline = start + milliseconds * 1_000_000;
        Bare.wait(&[], deadline);
        let now = Bare.now_ns();
        // Xen's timers may be early by their slop of 50 µs.
        ensure!(now + 100_000 >= deadline, "{} ns too early", deadline - now);
        ensure!(now < deadline + 500_000_000, "{} ns too late", now - deadline);
    }
    Bare.wait(&[], 0);
    Ok(())
}

fn event_ends_waiting() -> Result<(), String> {
    let port = event_channel::alloc_unbound(&Bare, DOMID_SELF).map_err(refused)?;
    ensure!(!shared::is_pending(port), "{port:?} is pending at birth");
    // The port at the other end is one of our own.
    let own = event_channel::bind_interdomain(&Bare, DOMID_SELF, port).map_err(refused)?;
    let start = Bare.now_ns();
    event_channel::send(&Bare, own).map_err(refused)?;
    Bare.wait(&[port], start + 10_000_000_000);
    ensure!(shared::is_pending(port), "{port:?} is not pending");
    ensure!(Bare.now_ns() < start + 5_000_000_000, "waited to the end");
    // More ports than one poll takes, and the one with the event behind all those.
    let mut many = alloc::vec![own; 200];
    many.push(port);
    shared::clear(own);
    let start = Bare.now_ns();
    Bare.wait(&many, start + 10_000_000_000);
    ensure!(Bare.now_ns() < start + 5_000_000_000, "waited to the end for {} ports", many.len());
    shared::clear(port);
    ensure!(!shared::is_pending(port), "{port:?} is pending still");
    Bare.wait(&many, Bare.now_ns() + 3_000_000);
    event_channel::close(&Bare, own).map_err(refused)?;
    event_channel::close(&Bare, port).map_err(refused)
}

fn grants_are_mapped() -> Result<(), String> {
    let Services { grants, .. } = services()?;
    let free = grants.stats().free;
    {
        let own = SharedPages::new(&grants, domain_id().map_err(refused)?, 2).map_err(|error| format!("{error}"))?;
        own.shared().write(PAGE_SIZE, b"second page");
        let mut window = Window::new(&Bare, 2).map_err(|error| format!("{error}"))?;
        let peer = domain_id().map_err(refused)?;
        let request = MapRequest { gref: own.refs()[1], peer, access: grant::Access::ReadWrite };
        let seen = window.map(0, request).map_err(|error| format!("{error}"))?;
        let address = seen.as_ptr().as_ptr() as usize;
        let mut text = [0; 11];
        seen.read(0, &mut text);
        ensure!(&text == b"second page", "shows {text:?}");
        seen.write(0, b"written to");
        own.shared().read(PAGE_SIZE, &mut text);
        ensure!(text.starts_with(b"written to"), "holds {text:?}");
        window.unmap(0).map_err(|error| format!("{error}"))?;
        ensure!(probe_read(address).is_none(), "readable once unmapped");
    }
    let stats = grants.stats();
    ensure!(stats.free >= free && stats.quarantined_refs == 0, "before {free} free, after {stats:?}");
    Ok(())
}

fn grants_are_copied() -> Result<(), String> {
    let Services { grants, .. } = services()?;
    let peer = domain_id().map_err(refused)?;
    let own = SharedPages::new(&grants, peer, 1).map_err(|error| format!("{error}"))?;
    let to = Pages::new(&Bare, 1).map_err(|error| format!("{error}"))?;
    own.shared().write(1000, b"copied");
    let mut batch = CopyBatch::new();
    let from = grant::Foreign { peer, gref: own.refs()[0], offset: 1000 };
    batch.from_peer(from, Local::new(&to, 7), 6).map_err(|error| format!("{error:?}"))?;
    let mut failure = None;
    batch.run(&Bare, |_, error| failure = Some(error));
    ensure!(failure.is_none(), "{failure:?}");
    let mut text = [0; 6];
    to.shared().read(7, &mut text);
    ensure!(&text == b"copied", "{text:?}");
    Ok(())
}

fn both_entries_agree() -> Result<(), String> {
    let nr = Nr::XEN_VERSION;
    let args = [XENVER_version as usize, 0, 0, 0, 0];
    // SAFETY: no pointer is passed.
    let (plain, by_page) = unsafe { (Bare.hypercall(nr, args), bare::by_page(nr, args)) };
    ensure!(plain == by_page && plain > 0, "{plain:#x} and {by_page:#x}");
    Ok(())
}

fn arguments_are_found() -> Result<(), String> {
    let (name, args) = Args::split("  linux disk=xvda count=12  flag x=1=2");
    ensure!(name == "linux", "{name:?}");
    for (key, value) in [("disk", Some("xvda")), ("x", Some("1=2")), ("dis", None), ("flag", None)] {
        ensure!(args.get(key) == value, "{key}: {:?}", args.get(key));
    }
    ensure!(args.number("count", 3) == Ok(12), "{:?}", args.number("count", 3));
    ensure!(args.number("none", 3) == Ok(3), "{:?}", args.number("none", 3));
    ensure!(args.number("disk", 3).is_err(), "{:?}", args.number("disk", 3));
    ensure!(Args::split("").0.is_empty(), "{:?}", Args::split("").0);
    Ok(())
}

fn take(region: Region, count: usize) -> Result<NonNull<u8>, String> {
    Bare.alloc(region, count).ok_or_else(|| format!("no {count} pages of {region:?}"))
}

fn give(region: Region, va: NonNull<u8>, count: usize) {
    // SAFETY: each test gives back what it took, and has unmapped what it mapped.
    unsafe { Bare.free(region, va, count) };
}

fn frame(page: NonNull<u8>) -> Mfn {
    Mfn(Bare.gfn_of(page).0)
}

fn refused(error: XenError) -> String {
    format!("Xen refused: {error}")
}
