//! What is left of ports and grants when a domain has been saved and restored.

use std::sync::atomic::Ordering::SeqCst;

use hypercall::event::{Channel, EventChannels, Events};
use hypercall::grant::{Access, GrantError, GrantTable, Grants, Loan, SharedPages, StillMapped};
use hypercall::mem::PageBuf;
use hypercall::{GrantRef, Nr};
use xen_sys::event_channel::EVTCHNOP_close;
use xen_sys::grant_table::{GNTTABOP_setup_table, GTF_invalid, GTF_permit_access};

use crate::fake::{Fake, PAGE, PEER};

fn events(fake: &Fake) -> EventChannels<Fake> {
    // SAFETY: the page lives as long as the domain, of which the channels have a handle.
    unsafe { EventChannels::new(fake.clone(), fake.shared_page()) }
}

fn table(fake: &Fake) -> GrantTable<Fake> {
    // SAFETY: each test has a fake of its own, and one table.
    unsafe { GrantTable::new(fake.clone()) }.unwrap()
}

fn kinds() -> [Fake; 2] {
    [Fake::new(), Fake::translated()]
}

/// Shares pages whose references are of two frames of the table.
fn shared(table: &GrantTable<Fake>) -> SharedPages<GrantTable<Fake>> {
    table.grow_to(2).unwrap();
    // Those of the second frame come first.
    let mut rest = [GrantRef(0); 508];
    table.reserve(&mut rest).unwrap();
    let pages = SharedPages::new(table, PEER, 8).unwrap();
    // SAFETY: reserved above, and not used.
    unsafe { table.release(&rest) };
    assert_eq!(pages.refs().iter().filter(|gref| gref.0 < 512).count(), 4);
    pages
}

fn suspend(table: &GrantTable<Fake>) -> Result<(), GrantError> {
    // SAFETY: the table is not used before `resume`.
    unsafe { table.suspend() }
}

#[test]
fn a_channel_of_before_closes_nothing() {
    let fake = Fake::new();
    let events = events(&fake);
    let old = Channel::offer(&events, PEER).unwrap();
    fake.restore();
    events.resume();
    assert!(fake.shared().evtchn_mask.iter().all(|word| word.load(SeqCst) == usize::MAX));
    let new = Channel::offer(&events, PEER).unwrap();
    assert_eq!(new.port(), old.port(), "Xen gives the number again");
    drop(old);
    assert_eq!(fake.calls(Nr::EVENT_CHANNEL_OP, EVTCHNOP_close), 0);
    fake.signal(new.port());
    assert_eq!(events.dispatch(0, drop), 1, "and the new port is not masked");
    drop(new);
    assert_eq!(fake.calls(Nr::EVENT_CHANNEL_OP, EVTCHNOP_close), 1);
}

#[test]
fn an_event_of_before_is_not_current() {
    let fake = Fake::new();
    let events = events(&fake);
    let port = events.bind_ipi(3).unwrap();
    fake.signal(port);
    let mut taken = None;
    events.dispatch(3, |event| taken = Some(event));
    assert!(taken.is_some_and(|event| events.is_current(event)));
    fake.restore();
    events.resume();
    assert!(taken.is_some_and(|event| !events.is_current(event)));
    // The number was vcpu 3's, and is vcpu 0's now.
    assert_eq!(events.alloc_unbound(PEER).unwrap(), port);
    fake.signal(port);
    assert_eq!(events.dispatch(0, drop), 1);
}

#[test]
fn what_was_mapped_is_ours_again_in_the_restored_domain() {
    for fake in kinds() {
        let table = table(&fake);
        let pages = shared(&table);
        let refs = pages.refs().to_vec();
        let mut loan = Loan::<_, PageBuf<Fake>, 1>::new(&table).unwrap();
        loan.lend(PEER, Access::ReadWrite, PageBuf::new(&fake, PAGE).unwrap()).unwrap();
        for gref in [refs[0], refs[7]] {
            assert!(fake.peer_maps(gref));
            assert_eq!(table.end(gref), Err(StillMapped { gref }));
        }
        let held = SharedPages::new(&table, PEER, 1).unwrap();
        assert!(fake.peer_maps(held.refs()[0]));
        drop(held);
        let before = table.stats();
        assert_eq!((before.quarantined_refs, table.frames()), (1, 2));

        suspend(&table).unwrap();
        fake.restore();
        table.resume().unwrap();
        assert_eq!((table.stats(), table.frames()), (before, 2));
        assert!(loan.dissolve().unwrap().is_some());
        drop(pages);
        table.retry_quarantine();
        let after = table.stats();
        assert_eq!((after.free, after.quarantined_refs, after.leaked_refs), (2 * 512 - 8, 0, 0));
        // And the table is the one that Xen looks at.
        let again = SharedPages::new(&table, PEER, 8).unwrap();
        assert!(again.refs().iter().all(|gref| fake.entry(*gref).flags.load(SeqCst) == GTF_permit_access));
        drop(again);
        assert!(refs.iter().all(|gref| fake.entry(*gref).flags.load(SeqCst) == GTF_invalid));
    }
}

#[test]
fn a_cancelled_suspend_changes_nothing() {
    for fake in kinds() {
        let table = table(&fake);
        let pages = shared(&table);
        let gref = pages.refs()[7];
        assert!(fake.peer_maps(gref));
        suspend(&table).unwrap();
        table.resume().unwrap();
        assert_eq!(table.end(gref), Err(StillMapped { gref }));
        fake.peer_unmaps(gref);
        assert_eq!(table.end(gref), Ok(()));
        assert_eq!(fake.entry(pages.refs()[0]).flags.load(SeqCst), GTF_permit_access);
    }
}

#[test]
fn a_table_that_xen_does_not_let_go_of_is_as_it_was() {
    let fake = Fake::new();
    let table = table(&fake);
    let pages = shared(&table);
    fake.fail(Nr::UPDATE_VA_MAPPING, 0, 1, 22);
    assert!(matches!(suspend(&table), Err(GrantError::Xen(_))));
    for gref in pages.refs() {
        assert!(fake.peer_maps(*gref));
        assert_eq!(table.end(*gref), Err(StillMapped { gref: *gref }));
        fake.peer_unmaps(*gref);
    }
}

#[test]
fn what_cannot_be_shown_again_is_never_taken_for_ended() {
    for shown in 0..2 {
        let fake = Fake::new();
        let table = table(&fake);
        let pages = shared(&table);
        suspend(&table).unwrap();
        fake.fail(Nr::UPDATE_VA_MAPPING, 0, shown, 22);
        assert!(matches!(table.resume(), Err(GrantError::Xen(_))));
        assert_eq!(table.frames() as usize, shown);
        let lost: Vec<GrantRef> = pages.refs().iter().copied().filter(|gref| gref.0 as usize >= shown * 512).collect();
        assert!(!lost.is_empty() && lost.iter().all(|gref| table.end(*gref).is_err()));
        drop(pages);
        assert_eq!(table.stats().quarantined_refs as usize, lost.len());
        assert_eq!(fake.calls(Nr::GRANT_TABLE_OP, GNTTABOP_setup_table), 3);
    }
}
