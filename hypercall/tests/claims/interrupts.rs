//! Locks that an interrupt handler may want too.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use hypercall::GrantRef;
use hypercall::grant::{Access, GrantTable, Grants, Loan, LoanTable, SharedPages};
use hypercall::mem::PageBuf;

use crate::fake::{Fake, PAGE, PEER};

/// Usable entries of the first frame.
const FIRST: usize = 512 - 8;

fn table() -> (Fake, GrantTable<Fake>) {
    let fake = Fake::new();
    // SAFETY: the fake was just made, and has no other table.
    let table = unsafe { GrantTable::new(fake.clone()) }.unwrap();
    (fake, table)
}

/// Shares a page that the peer maps, and drops it.
fn abandon(fake: &Fake, table: &GrantTable<Fake>) -> GrantRef {
    let pages = SharedPages::new(table, PEER, 1).unwrap();
    let gref = pages.refs()[0];
    assert!(fake.peer_maps(gref));
    gref
}

#[test]
fn whatever_needs_the_lock_of_the_table_takes_it_uninterrupted() {
    let (fake, table) = table();
    let mut refs = vec![GrantRef(0); FIRST];
    let held = abandon(&fake, &table);
    let check = |what, needs: bool, work: &mut dyn FnMut()| {
        let before = fake.uninterrupted();
        work();
        assert_eq!(fake.uninterrupted() > before, needs, "{what}");
    };
    check("reserve", true, &mut || table.reserve(&mut refs[..1]).unwrap());
    check("reserve, growing", true, &mut || table.reserve(&mut refs[1..]).unwrap());
    // SAFETY: reserved here, and not used any more.
    check("release", true, &mut || unsafe { table.release(&refs[1..]) });
    // SAFETY: reserved above; nobody maps the frame. Then given up with the test.
    check("share", false, &mut || unsafe { table.share(refs[0], PEER, hypercall::Gfn(1), Access::ReadWrite) });
    check("end", false, &mut || table.end(refs[0]).unwrap());
    check("quarantine", true, &mut || _ = abandon(&fake, &table));
    check("retry_quarantine", true, &mut || table.retry_quarantine());
    check("stats", true, &mut || _ = table.stats());
    fake.peer_unmaps(held);
    let mut last = Some(table);
    check("drop", true, &mut || drop(last.take()));
}

/// The fake refuses to free pages and to log while interrupts are held off, in this test and in all others.
#[test]
fn a_handler_may_use_the_table_wherever_it_interrupts() {
    let (fake, table) = table();
    let handled = Arc::new(AtomicUsize::new(0));
    let (count, own, page) = (handled.clone(), table.clone(), SharedPages::new(&table, PEER, 1).unwrap());
    let mapped = page.refs()[0];
    fake.interrupt(move || {
        // What a handler may do: give references back, and give up those that are in use.
        let mut refs = [GrantRef(0)];
        own.reserve(&mut refs).unwrap();
        // SAFETY: just reserved.
        unsafe { own.release(&refs) };
        assert_eq!(own.stats().quarantined_refs, own.stats().quarantined_pages);
        count.fetch_add(1, SeqCst);
    });
    let mut refs = vec![GrantRef(0); FIRST];
    table.reserve(&mut refs).unwrap();
    // SAFETY: just reserved.
    unsafe { table.release(&refs) };
    assert!(fake.peer_maps(mapped));
    drop(page);
    table.retry_quarantine();
    fake.peer_unmaps(mapped);
    table.retry_quarantine();
    let mut loan = Loan::<_, PageBuf<Fake>, 2>::new(&table).unwrap();
    loan.lend(PEER, Access::ReadWrite, PageBuf::new(&fake, 2 * PAGE).unwrap()).unwrap();
    loan.retire();
    let mut loans = LoanTable::new(&table, PEER, 3).unwrap();
    loans.lend(Access::ReadWrite, PageBuf::new(&fake, PAGE).unwrap()).unwrap();
    drop(loans);
    // The handler has the table, and the fake the handler.
    fake.stop_interrupts();
    drop(table);
    assert_eq!((fake.pages(), fake.address_space()), (0, 0));
    assert!(handled.load(SeqCst) > 10, "{handled:?}");
}
