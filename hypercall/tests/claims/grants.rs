//! The grant table and what stands on it.

use std::collections::HashSet;
use std::sync::atomic::Ordering::SeqCst;

use hypercall::call::grant_table::GrantOpError;
use hypercall::grant::{
    Access, GrantError, GrantStatus, GrantTable, Grants, LendError, Loan, SharedPages, StillMapped,
};
use hypercall::mem::{Buffer, PageBuf};
use hypercall::{Gfn, GrantRef, Nr, XenError};
use xen_sys::grant_table::*;

use crate::fake::{Fake, PAGE, PEER};

/// Usable entries of the first frame.
const FIRST: usize = 512 - 8;

/// Makes the one table of a fake.
fn new_table(fake: &Fake) -> Result<GrantTable<Fake>, GrantError> {
    // SAFETY: each test has a fake of its own, and drops one table before it makes the next.
    unsafe { GrantTable::new(fake.clone()) }
}

fn table() -> (Fake, GrantTable<Fake>) {
    let fake = Fake::new();
    let table = new_table(&fake).unwrap();
    (fake, table)
}

fn reserve(table: &GrantTable<Fake>, count: usize) -> Result<Vec<GrantRef>, GrantError> {
    let mut refs = vec![GrantRef(0); count];
    table.reserve(&mut refs).map(|()| refs)
}

#[test]
fn share_writes_the_entry_that_xen_reads() {
    let (fake, table) = table();
    let gref = reserve(&table, 1).unwrap()[0];
    // SAFETY: just reserved; nobody maps the frame.
    unsafe { table.share(gref, PEER, Gfn(0x1234_5678), Access::ReadOnly) };
    let entry = fake.entry(gref);
    assert_eq!(entry.frame.load(SeqCst), 0x1234_5678);
    assert_eq!(entry.domid.load(SeqCst), PEER.0);
    assert_eq!(entry.flags.load(SeqCst), GTF_permit_access | GTF_readonly);
    table.end(gref).unwrap();
    assert_eq!(entry.flags.load(SeqCst), GTF_invalid);
    // SAFETY: as above.
    unsafe { table.share(gref, PEER, Gfn(1), Access::ReadWrite) };
    assert_eq!(entry.flags.load(SeqCst), GTF_permit_access);
}

#[test]
fn a_frame_that_the_entry_cannot_hold_is_not_shared() {
    let (fake, table) = table();
    let gref = reserve(&table, 1).unwrap()[0];
    // SAFETY: just reserved; nothing is shared.
    unsafe { table.share(gref, PEER, Gfn(0x1_0000_0005), Access::ReadWrite) };
    assert!(!fake.peer_maps(gref));
}

#[test]
fn end_is_refused_while_the_peer_maps_and_works_after() {
    let (fake, table) = table();
    let pages = SharedPages::new(&table, PEER, 1).unwrap();
    let gref = pages.refs()[0];
    assert!(fake.peer_maps(gref));
    assert_eq!(table.end(gref), Err(StillMapped { gref }));
    assert_eq!(fake.entry(gref).flags.load(SeqCst), GTF_permit_access | GTF_reading | GTF_writing);
    fake.peer_unmaps(gref);
    assert_eq!(table.end(gref), Ok(()));
    assert!(!fake.peer_maps(gref));
}

#[test]
fn end_and_map_never_both_succeed() {
    let (fake, table) = table();
    let gref = reserve(&table, 1).unwrap()[0];
    let entry = fake.entry(gref);
    let rounds = if cfg!(miri) { 60 } else { 60_000 };
    for _ in 0..rounds / 2 {
        // SAFETY: reserved, and ended by the last round.
        unsafe { table.share(gref, PEER, Gfn(5), Access::ReadWrite) };
        let start = std::sync::Barrier::new(2);
        let mapped = std::thread::scope(|scope| {
            let peer = scope.spawn(|| {
                start.wait();
                fake.peer_maps(gref)
            });
            start.wait();
            let ended = table.end(gref).is_ok();
            let mapped = peer.join().unwrap();
            assert!(ended != mapped, "ended {ended}, mapped {mapped}");
            mapped
        });
        assert_eq!(entry.flags.load(SeqCst) & GTF_reading != 0, mapped);
        if mapped {
            fake.peer_unmaps(gref);
            table.end(gref).unwrap();
        }
    }
}

#[test]
fn references_are_unique_and_never_the_toolstacks() {
    let (_fake, table) = table();
    let refs = reserve(&table, FIRST + 512).unwrap();
    assert_eq!(refs.iter().collect::<HashSet<_>>().len(), refs.len());
    assert!(refs.iter().all(|gref| gref.0 >= GNTTAB_NR_RESERVED_ENTRIES));
}

#[test]
fn the_table_grows_when_it_must_and_only_then() {
    let (fake, table) = table();
    let first = reserve(&table, FIRST).unwrap();
    assert_eq!((table.stats().entries, table.stats().grown, table.stats().free), (512, 1, 0));
    let second = reserve(&table, 1).unwrap();
    assert_eq!((table.stats().entries, table.stats().grown, table.stats().free), (1024, 2, 511));
    // SAFETY: reserved here, and not used any more.
    unsafe { table.release(&first) };
    reserve(&table, FIRST + 511).unwrap();
    assert_eq!(table.stats().grown, 2);
    assert_eq!(fake.calls(Nr::GRANT_TABLE_OP, GNTTABOP_setup_table), 2);
    // The entries of the new frame are where Xen looks for them.
    // SAFETY: reserved; nobody maps the frame.
    unsafe { table.share(second[0], PEER, Gfn(9), Access::ReadWrite) };
    assert!(fake.peer_maps(second[0]));
}

#[test]
fn a_table_grows_by_several_frames_at_once() {
    let (fake, table) = table();
    reserve(&table, FIRST + 2 * 512).unwrap();
    assert_eq!(table.stats().entries, 3 * 512);
    assert_eq!(fake.calls(Nr::GRANT_TABLE_OP, GNTTABOP_setup_table), 2);
}

#[test]
#[cfg_attr(miri, ignore = "two thousand references are too many for Miri")]
fn a_table_that_has_all_its_frames_asks_the_hypervisor_for_nothing() {
    let (fake, table) = table();
    assert_eq!((table.frames(), table.max_frames()), (1, 4));
    table.grow_to(3).unwrap();
    assert_eq!((table.frames(), table.stats().grown, table.stats().free as usize), (3, 2, FIRST + 1024));
    table.grow_to(u32::MAX).unwrap();
    assert_eq!((table.frames(), table.stats().grown), (4, 3));
    for fewer in [0, 2, 4] {
        table.grow_to(fewer).unwrap();
    }
    let calls = fake.all_calls();
    let all = reserve(&table, FIRST + 3 * 512).unwrap();
    assert_eq!(reserve(&table, 1), Err(GrantError::TableFull { entries: 2048 }));
    // SAFETY: reserved here, and not used any more.
    unsafe { table.release(&all) };
    assert_eq!(fake.all_calls(), calls);
}

#[test]
fn a_table_that_cannot_have_all_its_frames_keeps_those_that_it_got() {
    let (fake, table) = table();
    fake.fail(Nr::UPDATE_VA_MAPPING, 0, 1, 12);
    assert_eq!(table.grow_to(u32::MAX), Err(GrantError::Xen(GrantOpError::Xen(XenError::ENOMEM))));
    assert_eq!((table.frames(), table.stats().free as usize), (2, FIRST + 512));
    table.grow_to(u32::MAX).unwrap();
    assert_eq!(table.frames(), 4);
}

#[test]
fn reserve_takes_all_or_none() {
    let (_fake, table) = table();
    let before = table.stats();
    assert_eq!(reserve(&table, 4 * 512), Err(GrantError::TableFull { entries: 512 }));
    assert_eq!(table.stats(), before);
    let all = reserve(&table, 4 * 512 - 8).unwrap();
    assert_eq!(table.stats().free, 0);
    assert_eq!(reserve(&table, 1), Err(GrantError::TableFull { entries: 2048 }));
    // SAFETY: reserved here, and not used any more.
    unsafe { table.release(&all[..1]) };
    assert_eq!(reserve(&table, 1).unwrap(), all[..1]);
}

#[test]
fn a_refused_growth_takes_nothing_and_can_be_repeated() {
    let (fake, table) = table();
    fake.fail(Nr::GRANT_TABLE_OP, GNTTABOP_setup_table, 0, 12);
    let refused = GrantError::Xen(GrantOpError::Xen(XenError::ENOMEM));
    assert_eq!(reserve(&table, FIRST + 1), Err(refused));
    assert_eq!(table.stats().free as usize, FIRST);
    // Two frames are lacking, and the second can't be mapped: the first stays, for the next time.
    fake.fail(Nr::UPDATE_VA_MAPPING, 0, 1, 22);
    assert_eq!(reserve(&table, FIRST + 513), Err(GrantError::Xen(GrantOpError::Xen(XenError::EINVAL))));
    assert_eq!(table.stats().free as usize, FIRST + 512);
    assert_eq!(reserve(&table, FIRST + 513).unwrap().len(), FIRST + 513);
}

#[test]
fn a_refused_table_is_an_error_and_leaves_no_address_space() {
    let fake = Fake::new();
    fake.state().max_table_frames = 0;
    assert!(matches!(new_table(&fake), Err(GrantError::TableFull { entries: 0 })));
    fake.state().max_table_frames = 4;
    fake.fail(Nr::UPDATE_VA_MAPPING, 0, 0, 38);
    let error = new_table(&fake).unwrap_err();
    assert_eq!(error, GrantError::Xen(GrantOpError::Xen(XenError::ENOSYS)));
    assert_eq!(error.to_string(), "grant table can't grow: ENOSYS (38)");
    assert_eq!(fake.address_space(), 0);
}

#[test]
fn grants_of_a_former_kernel_are_ended_or_left_alone() {
    let fake = Fake::new();
    drop(new_table(&fake).unwrap());
    for (gref, flags) in [(1, GTF_permit_access), (9, GTF_permit_access), (10, GTF_permit_access | GTF_reading)] {
        fake.entry(GrantRef(gref)).flags.store(flags, SeqCst);
    }
    let table = new_table(&fake).unwrap();
    assert_eq!(table.stats().leaked_refs, 1);
    let refs = reserve(&table, FIRST - 1).unwrap();
    assert!(!refs.contains(&GrantRef(10)));
    assert_eq!(table.stats().grown, 1);
    assert_eq!(fake.entry(GrantRef(9)).flags.load(SeqCst), 0);
    // The toolstack's.
    assert_eq!(fake.entry(GrantRef(1)).flags.load(SeqCst), GTF_permit_access);
}

#[test]
fn the_last_handle_takes_the_table_out_of_the_address_space() {
    let (fake, table) = table();
    reserve(&table, FIRST + 1).unwrap();
    let other = table.clone();
    drop(table);
    assert_eq!(fake.address_space(), 4);
    other.end(GrantRef(100)).unwrap();
    drop(other);
    assert_eq!(fake.address_space(), 0);
}

#[test]
fn ending_a_reference_that_there_is_not_is_refused() {
    let (_fake, table) = table();
    let gref = GrantRef(u32::MAX);
    assert_eq!(table.end(gref), Err(StillMapped { gref }));
}

#[test]
fn a_loan_shares_each_segment_and_gives_the_buffer_back() {
    let (fake, table) = table();
    let mut loan = Loan::<_, PageBuf<Fake>, 4>::new(&table).unwrap();
    let buffer = PageBuf::new(&fake, 2 * PAGE + 100).unwrap();
    let frames: Vec<u32> = buffer.segments().map(|segment| segment.gfn.0 as u32).collect();
    let refs = loan.lend(PEER, Access::ReadOnly, buffer).unwrap().to_vec();
    let shared: Vec<u32> = refs.iter().map(|gref| fake.entry(*gref).frame.load(SeqCst)).collect();
    assert_eq!(shared, frames);
    assert!(refs.iter().all(|gref| fake.entry(*gref).flags.load(SeqCst) == GTF_permit_access | GTF_readonly));
    assert_eq!(loan.recall().unwrap().unwrap().len(), 2 * PAGE + 100);
    assert!(refs.iter().all(|gref| !fake.peer_maps(*gref)));
    assert!(loan.recall().unwrap().is_none());
    assert!(loan.dissolve().unwrap().is_none());
    assert_eq!(table.stats().free as usize, FIRST);
}

#[test]
fn a_loan_refuses_a_second_buffer_and_one_that_is_too_large() {
    let (fake, table) = table();
    let mut loan = Loan::<_, PageBuf<Fake>, 2>::new(&table).unwrap();
    let large = PageBuf::new(&fake, 2 * PAGE + 1).unwrap();
    let (error, large) = loan.lend(PEER, Access::ReadWrite, large).unwrap_err();
    assert_eq!((error, large.len()), (LendError::TooManySegments { max: 2 }, 2 * PAGE + 1));
    loan.lend(PEER, Access::ReadWrite, PageBuf::new(&fake, PAGE).unwrap()).unwrap();
    let (error, _) = loan.lend(PEER, Access::ReadWrite, large).unwrap_err();
    assert_eq!(error, LendError::Busy);
    loan.recall().unwrap();
    loan.dissolve().unwrap();
}

#[test]
fn a_loan_keeps_the_buffer_while_one_segment_is_mapped() {
    let (fake, table) = table();
    let mut loan = Loan::<_, PageBuf<Fake>, 3>::new(&table).unwrap();
    let buffer = PageBuf::new(&fake, 3 * PAGE).unwrap();
    let refs = loan.lend(PEER, Access::ReadWrite, buffer).unwrap().to_vec();
    assert!(fake.peer_maps(refs[1]));
    assert_eq!(loan.recall().unwrap_err(), StillMapped { gref: refs[1] });
    assert_eq!(loan.buffer().map(PageBuf::len), Some(3 * PAGE));
    assert_eq!(fake.pages(), 3);
    fake.peer_unmaps(refs[1]);
    assert!(loan.recall().unwrap().is_some());
    loan.dissolve().unwrap();
    assert_eq!(fake.pages(), 0);
}

#[test]
#[cfg_attr(miri, ignore = "what is held for ever is a leak")]
fn a_dissolved_loan_holds_a_mapped_buffer_for_ever_and_its_references_until_they_are_free() {
    let (fake, table) = table();
    let mut loan = Loan::<_, PageBuf<Fake>, 3>::new(&table).unwrap();
    let refs = loan.lend(PEER, Access::ReadWrite, PageBuf::new(&fake, 2 * PAGE).unwrap()).unwrap().to_vec();
    assert!(fake.peer_maps(refs[0]));
    let held = loan.dissolve().unwrap_err();
    assert_eq!(held.buffer().len(), 2 * PAGE);
    drop(held);
    assert_eq!((table.stats().free as usize, table.stats().quarantined_refs), (FIRST - 1, 1));
    fake.peer_unmaps(refs[0]);
    table.retry_quarantine();
    assert_eq!((table.stats().free as usize, table.stats().quarantined_refs), (FIRST, 0));
    assert_eq!(fake.pages(), 2, "nobody may free a held buffer");
}

#[test]
fn a_retired_loan_leaves_mapped_pages_to_the_quarantine() {
    let (fake, table) = table();
    let mut loan = Loan::<_, PageBuf<Fake>, 3>::new(&table).unwrap();
    let refs = loan.lend(PEER, Access::ReadWrite, PageBuf::new(&fake, 2 * PAGE).unwrap()).unwrap().to_vec();
    assert!(fake.peer_maps(refs[1]));
    loan.retire();
    assert_eq!((table.stats().free as usize, table.stats().quarantined_pages, fake.pages()), (FIRST - 2, 2, 2));
    fake.peer_unmaps(refs[1]);
    table.retry_quarantine();
    assert_eq!((table.stats().free as usize, table.stats().quarantined_pages, fake.pages()), (FIRST, 0, 0));
}

#[test]
fn statuses_and_errors_have_names() {
    assert_eq!(GrantStatus(GNTST_bad_gntref).to_string(), "GNTST_bad_gntref (-3)");
    assert_eq!(GrantStatus(-99).to_string(), "unknown grant status (-99)");
}
