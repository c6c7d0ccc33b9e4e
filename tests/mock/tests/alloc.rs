//! Counting allocations.

use hypercall::call::event_channel;
use hypercall::mem::Pages;
use hypercall::{DomId, Platform};
use mock::{Machine, alloc};

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
