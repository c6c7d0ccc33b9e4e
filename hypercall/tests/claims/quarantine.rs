//! Pages that a peer doesn't give back.

use hypercall::GrantRef;
use hypercall::grant::{GrantTable, SharedPages};

use crate::fake::{Fake, PEER};

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
    let pages = SharedPages::new(&table, PEER, 503).unwrap();
    assert!(!pages.refs().contains(&held));
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
