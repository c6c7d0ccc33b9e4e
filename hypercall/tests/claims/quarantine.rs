//! Pages that a peer doesn't give back.

use hypercall::GrantRef;
use hypercall::grant::{GrantError, GrantTable, Grants, SharedPages};
use hypercall::mem::OutOfMemory;

use crate::fake::{Fake, PEER};
use crate::memory::without;

fn table() -> (Fake, GrantTable<Fake>) {
    let fake = Fake::new();
    // SAFETY: the fake was just made, and has no other table.
    let table = unsafe { GrantTable::new(fake.clone()) }.unwrap();
    (fake, table)
}

/// Shares pages, of which the peer maps those at `mapped`, and drops them.
fn abandon(fake: &Fake, table: &GrantTable<Fake>, count: usize, mapped: &[usize]) -> Vec<GrantRef> {
    let pages = SharedPages::new(table, PEER, count).unwrap();
    let refs: Vec<GrantRef> = mapped.iter().map(|index| pages.refs()[*index]).collect();
    assert!(refs.iter().all(|gref| fake.peer_maps(*gref)));
    refs
}

#[test]
fn pages_are_freed_at_once_if_nobody_maps_them() {
    let (fake, table) = table();
    let free = table.stats().free;
    abandon(&fake, &table, 4, &[]);
    assert_eq!((fake.pages(), table.stats().free), (0, free));
    assert!(fake.state().log.is_empty());
}

#[test]
fn pages_stay_while_one_of_them_is_mapped_and_are_freed_later() {
    let (fake, table) = table();
    let free = table.stats().free;
    let refs = abandon(&fake, &table, 4, &[0, 2]);
    let stats = table.stats();
    assert_eq!((stats.quarantined_refs, stats.quarantined_pages, stats.free), (2, 4, free - 2));
    fake.peer_unmaps(refs[0]);
    table.retry_quarantine();
    assert_eq!((table.stats().quarantined_refs, fake.pages()), (1, 4));
    fake.peer_unmaps(refs[1]);
    // Whoever reserves sweeps first.
    drop(SharedPages::new(&table, PEER, 1).unwrap());
    let stats = table.stats();
    assert_eq!((stats.quarantined_refs, stats.quarantined_pages, stats.free), (0, 0, free));
    assert_eq!(fake.pages(), 0);
}

#[test]
fn a_reference_in_the_quarantine_is_not_given_to_anybody() {
    let (fake, table) = table();
    let held = abandon(&fake, &table, 1, &[0])[0];
    let mut rest = [GrantRef(0); 503];
    table.reserve(&mut rest).unwrap();
    assert_eq!((rest.contains(&held), table.stats().free), (false, 0));
}

#[test]
#[cfg_attr(miri, ignore = "a thousand devices are too many for Miri")]
fn the_quarantine_has_a_cap_behind_which_pages_are_leaked_and_counted() {
    let (fake, table) = table();
    let total = 1100;
    for _ in 0..total {
        abandon(&fake, &table, 1, &[0]);
    }
    let stats = table.stats();
    assert_eq!((stats.quarantined_refs, stats.leaked_refs), (1024, total - 1024));
    assert_eq!((stats.quarantined_pages, stats.leaked_pages), (stats.quarantined_refs, stats.leaked_refs));
    assert_eq!(fake.pages() as u32, total);
    assert!(fake.state().log.len() <= 12, "a log line for each");
    // What is in quarantine comes back; what was leaked doesn't.
    for gref in (8..8 + total).map(GrantRef) {
        fake.peer_unmaps(gref);
    }
    table.retry_quarantine();
    assert_eq!((table.stats().quarantined_refs, table.stats().leaked_refs), (0, stats.leaked_refs));
    assert_eq!(fake.pages() as u32, stats.leaked_pages);
}

#[test]
fn a_peer_cannot_flood_the_log() {
    let (fake, table) = table();
    for _ in 0..50 {
        let refs = abandon(&fake, &table, 1, &[0]);
        fake.peer_unmaps(refs[0]);
        table.retry_quarantine();
    }
    assert_eq!(table.stats().given_up, 50);
    assert_eq!(fake.state().log.len(), 6);
}

#[test]
fn the_end_of_the_table_leaks_what_is_mapped_and_frees_the_rest() {
    let (fake, table) = table();
    abandon(&fake, &table, 1, &[0]);
    let late = abandon(&fake, &table, 2, &[1]);
    fake.peer_unmaps(late[0]);
    drop(table);
    assert_eq!((fake.pages(), fake.address_space()), (1, 0));
}

#[test]
#[cfg_attr(miri, ignore = "what is leaked for ever is a leak")]
fn what_there_is_no_memory_to_remember_is_leaked_and_counted() {
    let (fake, table) = table();
    let free = table.stats().free;
    let pages = SharedPages::new(&table, PEER, 77).unwrap();
    assert!(pages.refs().iter().all(|gref| fake.peer_maps(*gref)));
    without(77 * size_of::<GrantRef>(), || drop(pages));
    let stats = table.stats();
    assert_eq!((stats.leaked_refs, stats.leaked_pages, stats.given_up), (77, 77, 77));
    assert_eq!((stats.quarantined_refs, stats.free, fake.pages()), (0, free - 77, 77));
    assert!(fake.state().log[0].contains("77 grant(s) and 77 page(s) leaked"));
}

#[test]
fn a_table_without_memory_does_not_grow_and_takes_nothing() {
    let (_fake, table) = table();
    let before = table.stats();
    let mut refs = vec![GrantRef(0); 512];
    let refused = without(2 * 512 * size_of::<GrantRef>(), || table.reserve(&mut refs));
    assert_eq!(refused, Err(GrantError::OutOfMemory(OutOfMemory { pages: 1 })));
    assert_eq!(table.stats(), before);
    table.reserve(&mut refs).unwrap();
}
