//! Faults to order, and domains that die.

mod common;

use common::*;
use hypercall::call::event_channel::{self as call, Status};
use hypercall::event::{Channel, Events};
use hypercall::grant::{Access, Grants, MapRequest, SharedPages, Window};
use hypercall::mem::{PAGE_SIZE, Pages};
use hypercall::{DomId, GrantRef, Platform, Port, XenError};
use mock::{DomainConfig, Fault, Happened, Kind, Life, Machine, Node, Refusal};
use xen_sys::errno::{XEN_EINVAL, XEN_ENOMEM};
use xen_sys::event_channel::{EVTCHNOP_alloc_unbound, EVTCHNOP_bind_ipi};
use xen_sys::grant_table::*;
use xenbus::store::{Store, Tx};

fn two() -> (Machine, Node, Node) {
    let machine = Machine::deterministic(1);
    let (one, other) = (machine.boot(), machine.boot());
    (machine, one, other)
}

#[test]
fn the_nth_hypercall_of_a_kind_fails_and_no_other() {
    let (machine, one, other) = two();
    let kind = Kind::event(EVTCHNOP_alloc_unbound);
    machine.order(Fault::Hypercall { domain: Some(one.id), kind: Some(kind), nth: 2, errno: XEN_ENOMEM });
    let offer = |node: &Node| call::alloc_unbound(&node.platform, DomId(0));
    assert!(offer(&one).is_ok());
    assert!(offer(&other).is_ok(), "of another domain");
    assert!(call::bind_ipi(&one.platform, 0).is_ok(), "of another kind");
    let before = machine.usage();
    assert_eq!(offer(&one), Err(XenError::ENOMEM));
    assert_eq!(machine.usage(), before, "it has done nothing");
    assert!(offer(&one).is_ok(), "once only");
    assert_eq!(machine.faults_waiting(), 0);
}

#[test]
fn faults_are_counted_apart_and_both_happen() {
    let (machine, one, _other) = two();
    let kind = Some(Kind::event(EVTCHNOP_bind_ipi));
    machine.order(Fault::Hypercall { domain: None, kind, nth: 1, errno: XEN_ENOMEM });
    machine.order(Fault::Hypercall { domain: None, kind: None, nth: 1, errno: XEN_EINVAL });
    assert_eq!(call::bind_ipi(&one.platform, 0), Err(XenError::ENOMEM));
    assert_eq!(call::bind_ipi(&one.platform, 0), Err(XenError::EINVAL), "what was due already is next");
    assert!(call::bind_ipi(&one.platform, 0).is_ok());
}

#[test]
fn the_nth_entry_of_a_batch_fails_and_those_around_it_do_not() {
    let (machine, one, other) = two();
    let pages = SharedPages::new(&one.grants, other.id, 5).expect("pages to share");
    let mut window = Window::new(&other.platform, 5).expect("room");
    let cmd = GNTTABOP_map_grant_ref;
    machine.order(Fault::Entry { domain: Some(other.id), cmd, nth: 3, status: GNTST_no_space });
    let request = |gref| MapRequest { gref, peer: one.id, access: Access::ReadWrite };
    let mut outcomes = Vec::new();
    let batch = pages.refs().iter().copied().map(request).enumerate();
    window.map_batch(batch, |index, outcome| outcomes.push((index, outcome.is_ok())));
    // Those that are refused are told of last.
    outcomes.sort_unstable();
    assert_eq!(outcomes, [(0, true), (1, true), (2, false), (3, true), (4, true)]);
    assert_eq!(machine.ledger_of(other.id).grant_maps, 4);
    drop((window, pages));
    machine.check_quiet();
}

#[test]
fn the_nth_event_is_lost() {
    let (machine, one, other) = two();
    let offered = Channel::offer(&one.events, other.id).expect("a port");
    let bound = Channel::bind(&other.events, one.id, offered.port()).expect("offered");
    machine.order(Fault::DropEvent { to: Some(one.id), nth: 2 });
    let arrives = || {
        bound.notify();
        let arrived = one.events.take(offered.port());
        offered.unmask();
        arrived
    };
    offered.unmask();
    assert_eq!([arrives(), arrives(), arrives()], [true, false, true]);
}

#[test]
fn an_event_comes_once_more_when_nothing_has_happened() {
    let (machine, one, other) = two();
    let offered = Channel::offer(&one.events, other.id).expect("a port");
    let bound = Channel::bind(&other.events, one.id, offered.port()).expect("offered");
    machine.settle();
    machine.order(Fault::RepeatEvent { to: Some(one.id), nth: 1 });
    bound.notify();
    offered.unmask();
    assert!(one.events.take(offered.port()));
    offered.unmask();
    assert!(!one.events.take(offered.port()));
    machine.settle();
    assert!(one.events.take(offered.port()), "spurious");
}

#[test]
fn an_event_comes_late_when_nothing_else_has_happened() {
    let (machine, one, other) = two();
    let offered = Channel::offer(&one.events, other.id).expect("a port");
    let bound = Channel::bind(&other.events, one.id, offered.port()).expect("offered");
    machine.settle();
    machine.order(Fault::DelayEvent { to: Some(one.id), nth: 1 });
    bound.notify();
    offered.unmask();
    assert!(!one.events.take(offered.port()), "not yet");
    machine.settle();
    assert!(one.events.take(offered.port()), "late");
}

#[test]
fn the_nth_request_to_xenstored_is_refused_and_does_nothing() {
    let (machine, one, other) = two();
    machine.order(Fault::Request { domain: Some(one.id), nth: 2, refusal: Refusal::Quota });
    let write = |node: &Node, value: &str| node.store.write(Tx::NONE, "data/x", value.as_bytes());
    assert!(write(&one, "first").is_ok());
    assert!(write(&other, "another's").is_ok());
    let error = write(&one, "second").expect_err("refused");
    assert!(error.to_string().contains("EQUOTA"), "{error}");
    assert_eq!(one.store.read(Tx::NONE, "data/x").expect("there"), b"first");
    assert!(write(&one, "third").is_ok());
    assert_eq!(machine.faults_happened().len(), 1);
}

#[test]
fn the_nth_event_of_a_watch_is_lost_or_comes_twice() {
    let (machine, one, _other) = two();
    let watch = one.store.watch("data").expect("a watch");
    let fired = || {
        machine.settle();
        one.store.process();
        std::iter::from_fn(|| one.store.fired(watch).then_some(())).count()
    };
    let messages = |write: &dyn Fn()| {
        let before = machine.ledger_of(one.id).store_messages;
        write();
        let fired = fired();
        (machine.ledger_of(one.id).store_messages - before, fired > 0)
    };
    let write = || one.store.write(Tx::NONE, "data/x", b"1").expect("its own");
    fired();
    assert_eq!(messages(&write), (3, true), "request, reply, event");
    machine.order(Fault::DropWatch { to: Some(one.id), nth: 1 });
    assert_eq!(messages(&write), (2, false));
    machine.order(Fault::RepeatWatch { to: Some(one.id), nth: 2 });
    assert_eq!(messages(&write), (3, true));
    assert_eq!(messages(&write), (4, true), "two events");
    assert_eq!(messages(&write), (3, true));
}

#[test]
fn what_has_happened_is_known_with_what_it_has_struck() {
    let (machine, one, _other) = two();
    let fault = Fault::Hypercall { domain: None, kind: None, nth: 2, errno: XEN_EINVAL };
    machine.order(fault);
    assert!(call::bind_ipi(&one.platform, 0).is_ok());
    assert_eq!(machine.faults_happened(), []);
    assert!(call::alloc_unbound(&one.platform, DomId(0)).is_err());
    let kind = Some(Kind::event(EVTCHNOP_alloc_unbound));
    assert_eq!(machine.faults_happened(), [Happened { fault, kind }], "as it was ordered");
}

#[test]
fn the_nth_allocation_fails() {
    let (machine, one, _other) = two();
    machine.order(Fault::Alloc { domain: one.id, nth: 2 });
    let first = Pages::new(&one.platform, 1);
    assert!(first.is_ok());
    assert!(Pages::new(&one.platform, 1).is_err());
    assert!(Pages::new(&one.platform, 1).is_ok());
}

#[test]
fn every_step_of_a_failing_attach_unwinds() {
    let mut failed = 0;
    for nth in 1..=40 {
        let (machine, one, other) = two();
        machine.order(Fault::Hypercall { domain: Some(other.id), kind: None, nth, errno: XEN_ENOMEM });
        let pages = SharedPages::new(&one.grants, other.id, 2).expect("not the one that fails");
        let offered = Channel::offer(&one.events, other.id).expect("not the one that fails");
        let attach = || {
            let channel = Channel::bind(&other.events, one.id, offered.port()).ok()?;
            let mut window = Window::new(&other.platform, 2).ok()?;
            for (slot, gref) in pages.refs().iter().enumerate() {
                window.map(slot, MapRequest { gref: *gref, peer: one.id, access: Access::ReadWrite }).ok()?;
            }
            Some((channel, window))
        };
        let attached = attach();
        let happened = machine.faults_waiting() == 0;
        assert!(attached.is_some() || happened, "fault {nth}");
        machine.cancel_faults();
        failed += u32::from(attached.is_none());
        drop((attached, offered, pages));
        machine.check_quiet();
        if !happened {
            assert!(failed >= 3, "the bind and both mappings");
            return;
        }
    }
    panic!("an attach of more than 40 hypercalls");
}

#[test]
fn a_dead_domains_ports_are_closed_and_the_other_ends_offered() {
    let (machine, one, other) = two();
    let offered = call::alloc_unbound(&one.platform, other.id).expect("a port");
    let bound = call::bind_interdomain(&other.platform, one.id, offered).expect("offered");
    machine.kill(one.id);
    assert_eq!(call::status(&other.platform, bound), Ok((Status::Unbound(one.id), 0)));
    assert_eq!(call::send(&other.platform, bound), Ok(()), "which goes nowhere");
    assert_eq!(call::bind_interdomain(&other.platform, one.id, Port(9)), Err(XenError::ESRCH), "it is forgotten");
    assert_eq!(call::alloc_unbound(&one.platform, DomId(0)), Err(XenError::ESRCH), "it calls no more");
    assert!(one.platform.alloc(hypercall::Region::Memory, 1).is_none());
}

#[test]
fn a_dead_domains_mappings_are_released() {
    let (machine, one, other) = two();
    let granted = grant(&one, other.id, Access::ReadWrite);
    let va = room(&other.platform);
    assert_eq!(map(&other.platform, one.id, granted.gref, va, HOST).status, GNTST_okay);
    assert!(one.grants.end(granted.gref).is_err());
    machine.kill(other.id);
    assert!(one.grants.end(granted.gref).is_ok());
    granted.page.shared().write(0, &[7]);
    // SAFETY: what stands there now is an empty page of nobody else's.
    let seen = unsafe { other.platform.mapped(va).read() };
    assert_eq!(seen, 0, "the threads of the dead domain see nothing of it");
    drop(granted);
    machine.check_quiet();
}

#[test]
fn a_dead_domains_grants_can_not_be_mapped_and_those_mapped_stay() {
    let (machine, one, other) = two();
    let (first, second) = (grant(&one, other.id, Access::ReadWrite), grant(&one, other.id, Access::ReadWrite));
    first.page.shared().write(9, b"kept");
    let (va, more) = (room(&other.platform), room(&other.platform));
    let mapped = map(&other.platform, one.id, first.gref, va, HOST);
    machine.kill(one.id);
    assert_eq!(machine.life(one.id), Some(Life::Dead), "as long as somebody maps its memory");
    // SAFETY: still mapped.
    let seen = unsafe { other.platform.mapped(va).add(9).cast::<[u8; 4]>().read() };
    assert_eq!(&seen, b"kept");
    assert_eq!(map(&other.platform, one.id, second.gref, more, HOST).status, GNTST_bad_page);
    assert_eq!(map(&other.platform, one.id, first.gref, more, HOST).status, GNTST_general_error);
    assert_eq!(unmap(&other.platform, mapped.handle, mapped.host_addr), GNTST_okay);
    assert_eq!(machine.life(one.id), None, "and forgotten then");
    assert_eq!(map(&other.platform, one.id, first.gref, more, HOST).status, GNTST_bad_domain);
}

#[test]
fn the_store_tells_that_a_domain_is_gone() {
    let (machine, one, _other) = two();
    let dom0 = machine.services(DomId(0));
    let watch = dom0.store.watch("@releaseDomain").expect("privileged");
    machine.settle();
    dom0.store.process();
    while dom0.store.fired(watch) {}
    machine.kill(one.id);
    machine.settle();
    dom0.store.process();
    assert!(dom0.store.fired(watch));
    one.store.set_timeout_ns(1_000_000);
    assert!(one.store.read(Tx::NONE, "domid").is_err(), "it is answered no more, and does not hang");
}

#[test]
fn the_threads_of_a_dead_domain_can_tear_down() {
    let (machine, one, other) = two();
    let pages = SharedPages::new(&one.grants, other.id, 1).expect("a page to share");
    let offered = Channel::offer(&one.events, other.id).expect("a port");
    let bound = Channel::bind(&other.events, one.id, offered.port()).expect("offered");
    let mut window = Window::new(&other.platform, 1).expect("room");
    window.map(0, MapRequest { gref: pages.refs()[0], peer: one.id, access: Access::ReadWrite }).expect("granted");
    machine.kill(other.id);
    window.view(0).expect("it thinks so").write(0, &[1; PAGE_SIZE]);
    bound.notify();
    bound.unmask();
    drop((window, bound));
    let mut seen = [9];
    pages.shared().read(0, &mut seen);
    assert_eq!(seen, [0], "what the dead write reaches nobody");
    drop((pages, offered));
    machine.check_quiet();
}

#[test]
fn a_domain_that_maps_its_own_grants_can_be_killed() {
    let (machine, one, other) = two();
    let granted = grant(&one, one.id, Access::ReadWrite);
    let shared = grant(&one, other.id, Access::ReadWrite);
    assert_eq!(map(&one.platform, one.id, granted.gref, room(&one.platform), HOST).status, GNTST_okay);
    let va = room(&other.platform);
    let mapped = map(&other.platform, one.id, shared.gref, va, HOST);
    machine.kill(one.id);
    assert_eq!(machine.life(one.id), Some(Life::Dead));
    assert_eq!(unmap(&other.platform, mapped.handle, mapped.host_addr), GNTST_okay);
    assert_eq!(machine.life(one.id), None);
    free_room(&other.platform, va);
    machine.check_quiet();
}

#[test]
fn domain_0_has_no_more_ports_after_many_domains_came_and_went() {
    let machine = Machine::deterministic(1);
    let dom0 = machine.dom0();
    let next = || {
        let port = call::alloc_unbound(&dom0, DomId(0)).expect("a port");
        call::close(&dom0, port).expect("open");
        port
    };
    let first = next();
    for _ in 0..if cfg!(miri) { 2 } else { 20 } {
        machine.kill(machine.create(DomainConfig { pages: 4, unbacked: 4, ..DomainConfig::default() }).id());
    }
    assert_eq!(next(), first);
}

#[test]
fn a_dead_domains_number_is_not_used_again() {
    let (machine, one, other) = two();
    machine.kill(one.id);
    let next = machine.create(DomainConfig::default());
    assert!(next.id() > other.id);
}

#[test]
fn the_console_of_a_new_domain_can_be_served_by_domain_0() {
    let (machine, one, _other) = two();
    let dom0 = machine.services(DomId(0));
    let console = machine.console(one.id);
    let mut window = Window::new(&dom0.platform, 1).expect("room");
    let request = MapRequest { gref: console.gref, peer: one.id, access: Access::ReadWrite };
    let view = window.map(0, request).expect("the toolstack granted it");
    let channel = Channel::bind(&dom0.events, one.id, console.port).expect("offered to domain 0");
    view.write(0, b"x");
    let page = one.platform.start().console.expect("every guest has one");
    // SAFETY: the page is the domain's as long as it lives.
    assert_eq!(unsafe { page.read() }, b'x');
    assert_eq!(console.gref, GrantRef(0));
    one.events.unmask(console.port);
    channel.notify();
    assert!(one.events.take(console.port));
    drop((window, channel));
    machine.check_quiet();
}
