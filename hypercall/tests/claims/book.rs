//! Buffers lent from places of their own.

use std::sync::atomic::Ordering::SeqCst;

use hypercall::GrantRef;
use hypercall::grant::{Access, GrantTable, LoanBook, SharedPages, StillMapped};
use hypercall::mem::{Buffer, PageBuf};
use xen_sys::grant_table::{GTF_permit_access, GTF_readonly};

use crate::fake::{Fake, PAGE, PEER};

type Book = LoanBook<GrantTable<Fake>, PageBuf<Fake>>;

fn book(places: u16, refs: u16) -> (Fake, GrantTable<Fake>, Book) {
    let fake = Fake::new();
    // SAFETY: the fake was just made, and has no other table.
    let table = unsafe { GrantTable::new(fake.clone()) }.unwrap();
    let book = LoanBook::new(&table, PEER, places, refs).unwrap();
    (fake, table, book)
}

fn pages(fake: &Fake, count: usize) -> PageBuf<Fake> {
    PageBuf::new(fake, count * PAGE).unwrap()
}

/// Lends so many pages and returns their references.
fn lend(fake: &Fake, book: &mut Book, place: u16, count: usize) -> Vec<GrantRef> {
    let mut refs = Vec::new();
    book.lend(place, Access::ReadOnly, count, pages(fake, count), |gref, _| refs.push(gref)).unwrap();
    refs
}

#[test]
fn each_place_shares_its_own_segments_in_their_order() {
    let (fake, _table, mut book) = book(3, 6);
    let mut all = Vec::new();
    for (place, count) in [(2, 1), (0, 3), (1, 2)] {
        let buffer = pages(&fake, count);
        let frames: Vec<u32> = buffer.segments().map(|segment| segment.gfn.0 as u32).collect();
        let mut seen = Vec::new();
        book.lend(place, Access::ReadOnly, count, buffer, |gref, segment| seen.push((gref, segment))).unwrap();
        assert_eq!(seen.len(), count);
        for ((gref, segment), frame) in seen.iter().zip(frames) {
            let entry = fake.entry(*gref);
            assert_eq!((entry.frame.load(SeqCst), segment.gfn.0 as u32), (frame, frame));
            assert_eq!(entry.flags.load(SeqCst), GTF_permit_access | GTF_readonly);
        }
        all.extend(seen.iter().map(|(gref, _)| gref.0));
        assert_eq!(book.buffer(place).map(PageBuf::len), Some(count * PAGE));
    }
    all.sort_unstable();
    all.dedup();
    assert_eq!((all.len(), book.free(), book.refs()), (6, 0, 6));
}

#[test]
fn references_come_back_whatever_the_order_and_a_kept_buffer_takes_none() {
    let (fake, table, mut book) = book(4, 6);
    let before = table.stats().free;
    for round in 0..if cfg!(miri) { 8 } else { 50u16 } {
        for (place, count) in [(0, 1), (1, 3), (2, 2), (3, 0)] {
            assert_eq!(lend(&fake, &mut book, place, count).len(), count);
        }
        assert_eq!(book.free(), 0);
        for place in 0..4 {
            assert!(book.recall((place + round) % 4).unwrap().is_some());
            assert!(book.recall((place + round) % 4).unwrap().is_none());
        }
        assert_eq!((book.free(), fake.pages()), (6, 0));
    }
    drop(book);
    assert_eq!(table.stats().free, before + 6);
}

#[test]
fn buffer_that_finds_no_place_or_too_few_references_comes_back_and_nothing_is_shared() {
    let (fake, _table, mut book) = book(2, 4);
    lend(&fake, &mut book, 0, 2);
    for (place, count) in [(0, 1), (2, 1), (u16::MAX, 0), (1, 3)] {
        let back = book.lend(place, Access::ReadWrite, count, pages(&fake, count), |_, _| panic!("shared"));
        assert_eq!(back.unwrap_err().len(), count * PAGE, "{place} {count}");
    }
    assert_eq!(book.free(), 2);
    assert!(book.buffer(1).is_none() && book.buffer(9).is_none() && book.recall(9).unwrap().is_none());
}

#[test]
fn what_is_mapped_stays_and_the_rest_is_free_at_once() {
    let (fake, _table, mut book) = book(2, 4);
    let refs = lend(&fake, &mut book, 0, 3);
    assert!(fake.peer_maps(refs[1]));
    assert_eq!(book.recall(0).unwrap_err(), StillMapped { gref: refs[1] });
    assert_eq!((book.free(), fake.pages(), book.buffer(0).map(PageBuf::len)), (2, 3, Some(3 * PAGE)));
    // Others use what is free, and the first keeps its own.
    let other = lend(&fake, &mut book, 1, 2);
    assert!(!other.contains(&refs[1]) && !other.contains(&refs[2]));
    fake.peer_unmaps(refs[1]);
    assert!(book.recall(0).unwrap().is_some() && book.recall(1).unwrap().is_some());
    assert_eq!(book.free(), 4);
}

#[test]
fn what_places_keep_is_there_for_others() {
    let (fake, _table, mut book) = book(3, 4);
    for place in 0..3 {
        lend(&fake, &mut book, place, 1);
    }
    for place in 0..3 {
        assert!(book.recall(place).unwrap().is_some());
    }
    // One is on the list, one is this place's own, and two are those of the others.
    let mut refs = lend(&fake, &mut book, 1, 4);
    refs.sort_unstable();
    refs.dedup();
    assert_eq!((refs.len(), book.free()), (4, 0));
    assert!(book.lend(0, Access::ReadOnly, 1, pages(&fake, 1), |_, _| panic!("shared")).is_err());
    assert!(book.recall(1).unwrap().is_some());
    assert_eq!(lend(&fake, &mut book, 0, 3).len(), 3);
    assert_eq!(lend(&fake, &mut book, 2, 1).len(), 1);
}

#[test]
fn reference_of_a_place_that_shares_nothing_just_now_is_there_for_others() {
    // The place has a buffer without segments; or one of which another page is held.
    for held in [false, true] {
        let (fake, _table, mut book) = book(3, 3);
        let refs = lend(&fake, &mut book, 0, 2);
        if held {
            assert!(fake.peer_maps(refs[1]));
            assert_eq!(book.recall(0).unwrap_err(), StillMapped { gref: refs[1] });
        } else {
            assert!(book.recall(0).unwrap().is_some());
            lend(&fake, &mut book, 0, 0);
        }
        let free = book.free();
        assert_eq!(free, if held { 2 } else { 3 });
        let mut other = lend(&fake, &mut book, 1, free);
        assert!(other.iter().all(|gref| fake.entry(*gref).flags.load(SeqCst) & GTF_permit_access != 0));
        other.extend(held.then_some(refs[1]));
        other.sort_unstable();
        other.dedup();
        assert_eq!(other.len(), 3, "{other:?}");
        assert!(!other.contains(&GrantRef(0)), "{other:?}");
        fake.peer_unmaps(refs[1]);
        assert!(book.recall(0).unwrap().is_some() && book.recall(1).unwrap().is_some());
        assert_eq!(book.free(), 3);
    }
}

#[test]
#[cfg_attr(miri, ignore = "what is held for ever is a leak")]
fn book_that_ends_holds_what_is_mapped_and_gives_the_rest_back() {
    for count in [2, 40, 64, 65] {
        let (fake, table, mut book) = book(2, 100);
        let before = table.stats().free;
        let refs = lend(&fake, &mut book, 0, count);
        lend(&fake, &mut book, 1, 1);
        assert!(fake.peer_maps(refs[0]));
        let mut ended = Vec::new();
        book.end_all(|place, buffer| ended.push((place, buffer.is_ok())));
        assert_eq!(ended, [(0, false), (1, true)]);
        drop(book);
        let stats = table.stats();
        assert_eq!(stats.free + stats.quarantined_refs, before + 100);
        assert!(stats.quarantined_refs >= 1);
        fake.peer_unmaps(refs[0]);
        table.retry_quarantine();
        assert_eq!((table.stats().free, table.stats().quarantined_refs), (before + 100, 0));
        assert_eq!(fake.pages(), count, "nobody may free a held buffer");
    }
}

#[test]
fn own_page_is_shared_and_taken_back_under_the_same_reference() {
    let (fake, table, _book) = book(0, 0);
    let before = table.stats().free;
    let mut pages = SharedPages::unshared(&table, PEER, 3).unwrap();
    let refs = pages.refs().to_vec();
    let flags = |index: usize| fake.entry(refs[index]).flags.load(SeqCst);
    assert_eq!([flags(0), flags(1), flags(2)], [0; 3]);
    pages.share(1, Access::ReadOnly);
    // It is so already, and stays as it is.
    pages.share(1, Access::ReadWrite);
    assert_eq!([flags(0), flags(1), flags(2)], [0, GTF_permit_access | GTF_readonly, 0]);
    assert!(fake.peer_maps(refs[1]));
    assert_eq!(pages.end(1), Err(StillMapped { gref: refs[1] }));
    fake.peer_unmaps(refs[1]);
    assert_eq!((pages.end(1), flags(1)), (Ok(()), 0));
    pages.share(1, Access::ReadWrite);
    assert_eq!(flags(1), GTF_permit_access);
    assert_eq!(pages.refs(), refs);
    pages.page(2).write(0, &[7]);
    let mut byte = [0];
    pages.shared().read(2 * PAGE, &mut byte);
    assert_eq!(byte, [7]);
    drop(pages);
    assert_eq!((table.stats().free, fake.pages()), (before, 0));
}
