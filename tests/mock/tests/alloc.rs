//! Counting allocations.

use hypercall::call::event_channel;
use hypercall::grant::{Access, Grants, Loan, LoanTable, MapRequest, SharedPages, Window};
use hypercall::mem::{PAGE_SIZE, PageBuf, Pages};
use hypercall::{DomId, GrantRef, Level, Platform};
use mock::{Domain, Machine, alloc};

#[global_allocator]
static ALLOCATOR: alloc::Counting = alloc::Counting;

#[test]
fn allocations_are_counted_by_thread() {
    let before = alloc::count();
    let kept = std::hint::black_box(vec![1_u8; 100]);
    assert_eq!(alloc::count() - before, 1);
    let others = std::thread::spawn(|| {
        let before = alloc::count();
        drop(std::hint::black_box(Box::new(2)));
        alloc::count() - before
    });
    assert_eq!(others.join().expect("ends"), 1);
    drop(kept);
}

#[test]
fn what_the_mock_allocates_in_a_hypercall_is_not_counted() {
    let machine = Machine::deterministic(1);
    let domain = machine.dom0();
    let before = alloc::count();
    let port = event_channel::alloc_unbound(&domain, DomId(0)).expect("a port");
    event_channel::send(&domain, port).expect("offered");
    domain.wait(&[port], domain.now_ns() + 1000);
    drop(Pages::new(&domain, 4).expect("pages"));
    assert_eq!(alloc::count() - before, 0);
}

#[test]
fn what_a_kernel_cannot_do_while_interrupts_are_held_off_is_a_violation() {
    let machine = Machine::deterministic(1);
    let domain = machine.dom0();
    let mut pages = None;
    let check = |what: &str, work: &mut dyn FnMut()| {
        domain.uninterrupted(|| ());
        assert!(machine.violations().is_empty());
        domain.uninterrupted(|| domain.uninterrupted(&mut *work));
        assert!(machine.violations().iter().any(|violation| violation.contains(what)), "{what}");
    };
    check("allocated while", &mut || drop(std::hint::black_box(Box::new(1))));
    check("allocated pages", &mut || pages = Pages::new(&domain, 1).ok());
    check("freed pages", &mut || drop(pages.take()));
    check("waited", &mut || domain.wait(&[], 1));
    check("logged", &mut || domain.log(Level::Debug, format_args!("nothing")));
}

#[test]
fn the_grant_table_allocates_nothing_while_interrupts_are_held_off() {
    let machine = Machine::deterministic(1);
    let (owner, user) = (machine.boot(), machine.boot());
    let mut window = Window::new(&user.platform, 8).expect("room");
    let many = if cfg!(miri) { 600 } else { 5000 };
    let mut refs = vec![GrantRef(0); many];
    owner.grants.reserve(&mut refs).expect("the table grows");
    // SAFETY: just reserved.
    unsafe { owner.grants.release(&refs) };
    // The list of the quarantine grows, too.
    for slot in 0..8 {
        let page = SharedPages::new(&owner.grants, user.id, 1).expect("a page");
        let request = MapRequest { gref: page.refs()[0], peer: owner.id, access: Access::ReadWrite };
        window.map(slot, request).expect("granted");
    }
    assert_eq!(owner.grants.stats().quarantined_refs, 8);
    drop(window);
    owner.grants.retry_quarantine();
    machine.check_quiet();
}

#[test]
fn what_gives_grants_back_allocates_nothing() {
    let machine = Machine::deterministic(1);
    let (owner, user) = (machine.boot(), machine.boot());
    let buffer = |pages| PageBuf::new(&owner.platform, pages * PAGE_SIZE).expect("pages");
    let page = SharedPages::new(&owner.grants, user.id, 2).expect("pages");
    let [mut dissolved, mut retired] = [0; 2].map(|_| Loan::<_, PageBuf<Domain>, 4>::new(&owner.grants).expect("refs"));
    for loan in [&mut dissolved, &mut retired] {
        loan.lend(user.id, Access::ReadWrite, buffer(3)).expect("it is free");
    }
    let mut loans = LoanTable::new(&owner.grants, user.id, 6).expect("refs");
    loans.lend(Access::ReadOnly, buffer(2)).expect("it is free");
    let before = alloc::count();
    drop(page);
    dissolved.dissolve().expect("nobody maps it");
    retired.retire();
    drop(loans);
    assert_eq!(alloc::count() - before, 0);
    machine.check_quiet();
}

#[test]
#[cfg_attr(miri, ignore = "what is held for ever is a leak")]
fn who_gives_up_a_grant_allocates_no_more_than_the_quarantine() {
    let machine = Machine::deterministic(1);
    let (owner, user) = (machine.boot(), machine.boot());
    let mut window = Window::new(&user.platform, 40).expect("room");
    let count = 40;
    let buffer = PageBuf::new(&owner.platform, count * PAGE_SIZE).expect("pages");
    let mut loans = LoanTable::new(&owner.grants, user.id, 40).expect("refs");
    let loan = loans.lend(Access::ReadWrite, buffer).expect("they are free");
    for (slot, (_, gref)) in loans.refs(loan).enumerate() {
        window.map(slot, MapRequest { gref, peer: owner.id, access: Access::ReadWrite }).expect("granted");
    }
    let before = alloc::count();
    loans.end_all(|_, buffer| assert!(buffer.is_err()));
    // A copy of the references, twice, as they are given in pieces of 32, and the list.
    assert_eq!(alloc::count() - before, 3);
    assert_eq!(owner.grants.stats().quarantined_refs as usize, count);
    drop(window);
    drop(loans);
    owner.grants.retry_quarantine();
    assert_eq!(owner.grants.stats().quarantined_refs, 0);
}
