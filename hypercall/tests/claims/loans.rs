//! Many buffers lent from one stock of references.

use std::sync::atomic::Ordering::SeqCst;

use hypercall::GrantRef;
use hypercall::grant::{Access, GrantTable, LoanTable, StillMapped};
use hypercall::mem::{Buffer, PageBuf};
use xen_sys::grant_table::{GTF_permit_access, GTF_readonly};

use crate::fake::{Fake, PAGE, PEER};

fn loans(count: u16) -> (Fake, GrantTable<Fake>, LoanTable<GrantTable<Fake>, PageBuf<Fake>>) {
    let fake = Fake::new();
    // SAFETY: the fake was just made, and has no other table.
    let table = unsafe { GrantTable::new(fake.clone()) }.unwrap();
    let loans = LoanTable::new(&table, PEER, count).unwrap();
    (fake, table, loans)
}

fn pages(fake: &Fake, count: usize) -> PageBuf<Fake> {
    PageBuf::new(fake, count * PAGE).unwrap()
}

fn refs(loans: &LoanTable<GrantTable<Fake>, PageBuf<Fake>>, loan: u16) -> Vec<GrantRef> {
    loans.refs(loan).map(|(_, gref)| gref).collect()
}

#[test]
fn each_loan_shares_its_own_segments_by_references_of_its_own() {
    let (fake, _table, mut loans) = loans(6);
    let buffers = [pages(&fake, 1), pages(&fake, 3), pages(&fake, 2)];
    let frames: Vec<Vec<u32>> =
        buffers.iter().map(|buffer| buffer.segments().map(|segment| segment.gfn.0 as u32).collect()).collect();
    let lent: Vec<u16> = buffers.map(|buffer| loans.lend(Access::ReadOnly, buffer).unwrap()).into();
    let mut indices: Vec<u16> = lent.iter().flat_map(|loan| loans.refs(*loan).map(|(index, _)| index)).collect();
    indices.sort_unstable();
    assert_eq!(indices, [0, 1, 2, 3, 4, 5]);
    for (loan, frames) in lent.iter().zip(frames) {
        let entries: Vec<_> = refs(&loans, *loan).iter().map(|gref| fake.entry(*gref)).collect();
        assert_eq!(entries.iter().map(|entry| entry.frame.load(SeqCst)).collect::<Vec<_>>(), frames);
        assert!(entries.iter().all(|entry| entry.flags.load(SeqCst) == GTF_permit_access | GTF_readonly));
    }
    assert_eq!(loans.free(), 0);
}

#[test]
fn a_recalled_loan_frees_its_references_whatever_the_order() {
    let (fake, table, mut loans) = loans(6);
    let before = table.stats().free;
    for round in 0..if cfg!(miri) { 8 } else { 50 } {
        let lent: Vec<u16> = [1, 3, 2].map(|count| loans.lend(Access::ReadWrite, pages(&fake, count)).unwrap()).into();
        assert_eq!(loans.free(), 0);
        let granted: Vec<GrantRef> = lent.iter().flat_map(|loan| refs(&loans, *loan)).collect();
        for place in 0..3 {
            let loan = lent[(place + round) % 3];
            assert!(loans.recall(loan).unwrap().is_some());
            assert!(loans.recall(loan).unwrap().is_none());
            assert!(refs(&loans, loan).is_empty());
        }
        assert!(granted.iter().all(|gref| !fake.peer_maps(*gref)));
        assert_eq!((loans.free(), fake.pages()), (6, 0));
    }
    drop(loans);
    assert_eq!(table.stats().free, before + 6);
}

#[test]
fn a_buffer_that_does_not_fit_comes_back() {
    let (fake, _table, mut loans) = loans(4);
    loans.lend(Access::ReadWrite, pages(&fake, 2)).unwrap();
    assert_eq!(loans.lend(Access::ReadWrite, pages(&fake, 3)).unwrap_err().len(), 3 * PAGE);
    assert_eq!(loans.lend(Access::ReadWrite, pages(&fake, 0)).unwrap_err().len(), 0);
    assert_eq!(loans.free(), 2);
    assert!(loans.buffer(3).is_none() && loans.buffer(u16::MAX).is_none());
}

#[test]
fn a_mapped_loan_stays_until_the_peer_lets_go() {
    let (fake, _table, mut loans) = loans(4);
    let loan = loans.lend(Access::ReadWrite, pages(&fake, 3)).unwrap();
    let second = refs(&loans, loan)[1];
    assert!(fake.peer_maps(second));
    assert_eq!(loans.recall(loan).unwrap_err(), StillMapped { gref: second });
    assert_eq!((loans.free(), fake.pages(), loans.buffer(loan).map(PageBuf::len)), (1, 3, Some(3 * PAGE)));
    fake.peer_unmaps(second);
    assert!(loans.recall(loan).unwrap().is_some());
    assert_eq!(loans.free(), 4);
}

#[test]
#[cfg_attr(miri, ignore = "what is held for ever is a leak")]
fn a_table_that_ends_holds_what_is_mapped_and_gives_the_rest_back() {
    let (fake, table, mut loans) = loans(6);
    let before = table.stats().free;
    let mapped = loans.lend(Access::ReadWrite, pages(&fake, 2)).unwrap();
    let other = loans.lend(Access::ReadWrite, pages(&fake, 1)).unwrap();
    let gref = refs(&loans, mapped)[1];
    assert!(fake.peer_maps(gref));
    let mut ended = Vec::new();
    loans.end_all(|loan, buffer| ended.push((loan, buffer.is_ok())));
    assert_eq!(ended, [(mapped, false), (other, true)]);
    drop(loans);
    assert_eq!((table.stats().free, table.stats().quarantined_refs), (before + 5, 1));
    fake.peer_unmaps(gref);
    table.retry_quarantine();
    assert_eq!((table.stats().free, table.stats().quarantined_refs), (before + 6, 0));
    assert_eq!(fake.pages(), 2, "nobody may free a held buffer");
}
