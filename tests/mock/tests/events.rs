//! Event channels of the mock: the bits in the shared page, and the codes of Xen.

mod common;

use std::sync::atomic::Ordering::SeqCst;

use common::*;
use hypercall::call::event_channel::{self as call, Status};
use hypercall::event::Channel;
use hypercall::{DomId, Nr, Port, XenError};
use mock::{Domain, DomainConfig, Machine};
use xen_sys::event_channel::*;
use xen_sys::xen::*;

fn two() -> (Machine, Domain, Domain) {
    let machine = Machine::deterministic(1);
    let (one, other) = (machine.create(DomainConfig::default()), machine.create(DomainConfig::default()));
    (machine, one, other)
}

fn connect(one: &Domain, other: &Domain) -> (Port, Port) {
    let offered = call::alloc_unbound(one, other.id()).expect("a port");
    (offered, call::bind_interdomain(other, one.id(), offered).expect("offered"))
}

fn shared(domain: &Domain) -> &'static SharedInfo {
    // SAFETY: the tests look at it only while the machine lives; nothing but atomics.
    unsafe { domain.shared_info().as_ref() }
}

fn is_pending(domain: &Domain, port: Port) -> bool {
    shared(domain).evtchn_pending[port.0 as usize / 64].load(SeqCst) >> (port.0 % 64) & 1 != 0
}

fn clear(domain: &Domain, port: Port) {
    shared(domain).evtchn_pending[port.0 as usize / 64].fetch_and(!(1 << (port.0 % 64)), SeqCst);
}

/// Clears what the machine has raised for the vcpu, as a dispatcher does before it scans.
fn take_upcall(domain: &Domain) -> (bool, usize) {
    let vcpu = &shared(domain).vcpu_info[0];
    (vcpu.evtchn_upcall_pending.swap(0, SeqCst) != 0, vcpu.evtchn_pending_sel.swap(0, SeqCst))
}

#[test]
fn binding_raises_the_new_port_and_sending_the_other() {
    let (_machine, one, other) = two();
    let (offered, bound) = connect(&one, &other);
    assert!(is_pending(&other, bound), "an event may have been lost before");
    assert!(!is_pending(&one, offered));
    clear(&other, bound);
    call::send(&other, bound).expect("bound");
    assert!(is_pending(&one, offered) && !is_pending(&other, bound));
    call::send(&one, offered).expect("bound");
    assert!(is_pending(&other, bound));
}

#[test]
fn an_event_marks_its_word_and_the_vcpu_unless_the_port_is_masked() {
    let (_machine, one, other) = two();
    let (offered, bound) = connect(&one, &other);
    let (word, bit) = (offered.0 as usize / 64, 1 << (offered.0 % 64));
    take_upcall(&one);
    call::send(&other, bound).expect("bound");
    assert_eq!(take_upcall(&one), (true, 1 << word));
    call::send(&other, bound).expect("bound");
    assert_eq!(take_upcall(&one), (false, 0), "it is pending already");
    clear(&one, offered);
    shared(&one).evtchn_mask[word].fetch_or(bit, SeqCst);
    call::send(&other, bound).expect("bound");
    assert!(is_pending(&one, offered));
    assert_eq!(take_upcall(&one), (false, 0), "it is masked");
    call::unmask(&one, offered).expect("a port");
    assert_eq!(take_upcall(&one), (true, 1 << word), "what was pending is raised again");
    assert_eq!(shared(&one).evtchn_mask[word].load(SeqCst) & bit, 0);
    call::unmask(&one, offered).expect("a port");
    assert_eq!(take_upcall(&one), (false, 0), "it was not masked");
}

#[test]
fn a_closed_channel_leaves_the_other_end_offered_and_its_events_dropped() {
    let (_machine, one, other) = two();
    let (offered, bound) = connect(&one, &other);
    call::send(&one, offered).expect("bound");
    call::close(&other, bound).expect("open");
    assert!(!is_pending(&other, bound), "closing clears what was pending");
    assert_eq!(call::status(&one, offered), Ok((Status::Unbound(other.id()), 0)));
    assert_eq!(call::status(&other, bound), Ok((Status::Closed, 0)));
    assert_eq!(call::send(&one, offered), Ok(()), "without an error");
    assert_eq!(call::send(&other, bound), Err(XenError::EINVAL));
    let again = call::bind_interdomain(&other, one.id(), offered).expect("it is offered again");
    assert_eq!(call::status(&one, offered), Ok((Status::Interdomain(other.id(), again), 0)));
}

#[test]
fn binding_is_refused_with_xens_codes() {
    let (machine, one, other) = two();
    let (offered, _) = connect(&one, &other);
    let for_dom0 = call::alloc_unbound(&one, DomId(0)).expect("a port");
    let bind = |dom, port| call::bind_interdomain(&other, dom, port);
    assert_eq!(bind(DomId(99), offered), Err(XenError::ESRCH));
    assert_eq!(bind(one.id(), offered), Err(XenError::EINVAL), "bound already");
    assert_eq!(bind(one.id(), for_dom0), Err(XenError::EINVAL), "offered to another");
    assert_eq!(bind(one.id(), Port(0)), Err(XenError::EINVAL), "never allocated");
    assert_eq!(bind(one.id(), Port(63)), Err(XenError::EINVAL), "closed");
    assert_eq!(bind(one.id(), Port(5000)), Err(XenError::EINVAL), "no port");
    let mut op = EvtchnAllocUnbound { dom: one.id(), remote_dom: other.id(), port: Port(0) };
    assert_eq!(raw(&other, Nr::EVENT_CHANNEL_OP, EVTCHNOP_alloc_unbound, &mut op, 0), -1, "not for another domain");
    assert_eq!(raw(&machine.dom0(), Nr::EVENT_CHANNEL_OP, EVTCHNOP_alloc_unbound, &mut op, 0), 0, "but domain 0 may");
    assert_eq!(bind(one.id(), op.port).map(|_| ()), Ok(()));
    op.dom = DomId(99);
    assert_eq!(raw(&other, Nr::EVENT_CHANNEL_OP, EVTCHNOP_alloc_unbound, &mut op, 0), -3);
}

#[test]
fn a_domain_has_channels_to_itself() {
    let (_machine, one, _other) = two();
    let offered = call::alloc_unbound(&one, DOMID_SELF).expect("a port");
    assert_eq!(call::status(&one, offered), Ok((Status::Unbound(one.id()), 0)));
    let bound = call::bind_interdomain(&one, DOMID_SELF, offered).expect("offered");
    clear(&one, bound);
    call::send(&one, offered).expect("bound");
    assert!(is_pending(&one, bound) && !is_pending(&one, offered));
    call::reset(&one).expect("everything can be closed");
    assert_eq!(call::status(&one, offered), Ok((Status::Closed, 0)));
    assert_eq!(call::status(&one, bound), Ok((Status::Closed, 0)));
}

#[test]
fn ports_are_used_again_from_the_lowest_until_there_are_no_more() {
    let machine = Machine::deterministic(1);
    let domain = machine.create(DomainConfig { max_port: 66, ..DomainConfig::default() });
    let ports: Vec<Port> = std::iter::from_fn(|| call::alloc_unbound(&domain, DomId(0)).ok()).collect();
    assert_eq!(ports.iter().map(|port| port.0).collect::<Vec<_>>(), (3..=66).collect::<Vec<_>>(), "1 and 2 are taken");
    assert_eq!(call::alloc_unbound(&domain, DomId(0)), Err(XenError::ENOSPC));
    call::close(&domain, Port(40)).expect("open");
    assert_eq!(call::bind_ipi(&domain, 0), Ok(Port(40)));
}

#[test]
fn virtual_interrupts_follow_xens_rules() {
    let machine = Machine::deterministic(1);
    let domain = machine.create(DomainConfig { vcpus: 2, ..DomainConfig::default() });
    assert_eq!(call::bind_virq(&domain, NR_VIRQS, 0), Err(XenError::EINVAL));
    assert_eq!(call::bind_virq(&domain, VIRQ_CONSOLE, 1), Err(XenError::EINVAL), "a global one belongs to vcpu 0");
    assert_eq!(call::bind_virq(&domain, VIRQ_TIMER, 2), Err(XenError::ENOENT), "no such vcpu");
    let port = call::bind_virq(&domain, VIRQ_TIMER, 1).expect("free");
    assert_eq!(call::bind_virq(&domain, VIRQ_TIMER, 1), Err(XenError::EEXIST));
    assert_eq!(call::status(&domain, port), Ok((Status::Virq(VIRQ_TIMER), 1)));
    assert_eq!(call::bind_vcpu(&domain, port, 0), Err(XenError::EINVAL), "it belongs to its vcpu");
    assert_eq!(call::send(&domain, port), Err(XenError::EINVAL), "nobody but Xen raises it");
    call::close(&domain, port).expect("open");
    assert_eq!(call::bind_virq(&domain, VIRQ_TIMER, 1), Ok(port));
    let global = call::bind_virq(&domain, VIRQ_CONSOLE, 0).expect("free");
    assert_eq!(call::bind_vcpu(&domain, global, 1), Ok(()));
}

#[test]
fn an_event_arrives_at_the_vcpu_that_the_port_is_bound_to() {
    let machine = Machine::deterministic(1);
    let domain = machine.create(DomainConfig { vcpus: 2, ..DomainConfig::default() });
    let ipi = call::bind_ipi(&domain, 1).expect("there is a vcpu 1");
    assert_eq!(call::bind_ipi(&domain, 2), Err(XenError::ENOENT));
    assert_eq!(call::bind_vcpu(&domain, ipi, 0), Err(XenError::EINVAL), "an IPI can't be moved");
    call::send(&domain, ipi).expect("bound");
    let raised = |vcpu: usize| shared(&domain).vcpu_info[vcpu].evtchn_upcall_pending.load(SeqCst) != 0;
    assert!(raised(1) && !raised(0));
    let offered = call::alloc_unbound(&domain, DomId(0)).expect("a port");
    assert_eq!(call::bind_vcpu(&domain, offered, 1), Ok(()));
    assert_eq!(call::bind_vcpu(&domain, offered, 7), Err(XenError::ENOENT));
    assert_eq!(call::bind_vcpu(&domain, Port(4000), 0), Err(XenError::EINVAL));
    assert_eq!(call::status(&domain, offered), Ok((Status::Unbound(DomId(0)), 1)));
}

#[test]
fn odd_operations_are_refused_with_xens_codes() {
    let (_machine, one, other) = two();
    assert_eq!(call::close(&one, Port(0)), Err(XenError::EINVAL));
    assert_eq!(call::close(&one, Port(50)), Err(XenError::EINVAL));
    assert_eq!(call::close(&one, Port(u32::MAX)), Err(XenError::EINVAL));
    assert_eq!(call::send(&one, Port(0)), Err(XenError::EINVAL));
    assert_eq!(call::unmask(&one, Port(63)), Ok(()), "a valid number, if closed");
    assert_eq!(call::unmask(&one, Port(64)), Err(XenError::EINVAL));
    assert_eq!(call::status(&one, Port(64)), Err(XenError::EINVAL));
    assert_eq!(call::status(&one, Port(63)), Ok((Status::Closed, 0)));
    assert_eq!(call::set_priority(&one, Port(1), 3), Err(XenError::ENOSYS), "the two-level scheme has none");
    let mut reset = EvtchnReset { dom: other.id() };
    assert_eq!(raw(&one, Nr::EVENT_CHANNEL_OP, EVTCHNOP_reset, &mut reset, 0), -1);
    reset.dom = DomId(99);
    assert_eq!(raw(&one, Nr::EVENT_CHANNEL_OP, EVTCHNOP_reset, &mut reset, 0), -3);
    assert_eq!(raw(&one, Nr::EVENT_CHANNEL_OP, 77, &mut reset, 0), -38);
    assert_eq!(plain(&one, Nr::EVENT_CHANNEL_OP, [EVTCHNOP_close as usize, 0, 0, 0, 0]), -14, "no structure there");
}

#[test]
fn the_end_that_xenstored_serves_is_out_of_domain_0s_reach() {
    let (machine, one, _other) = two();
    let dom0 = machine.dom0();
    let (status, _) = call::status(&one, one.start().store_port).expect("a port");
    let Status::Interdomain(DomId(0), served) = status else { panic!("{status:?}") };
    assert_eq!(call::send(&dom0, served), Err(XenError::EINVAL));
    assert_eq!(call::close(&dom0, served), Err(XenError::EINVAL));
    assert_eq!(call::status(&dom0, served), Err(XenError::EACCES));
}

#[test]
fn our_event_channels_dispatch_what_the_other_domain_sends() {
    let machine = Machine::deterministic(1);
    let (one, other) = (machine.boot(), machine.boot());
    let offered = Channel::offer(&one.events, other.id).expect("a port");
    let bound = Channel::bind(&other.events, one.id, offered.port()).expect("offered");
    offered.unmask();
    assert!(!one.events.take(offered.port()));
    bound.notify();
    bound.notify();
    assert!(one.events.take(offered.port()));
    assert!(!one.events.take(offered.port()), "two events are one");
    let sent = machine.ledger_of(other.id).notifications;
    assert_eq!(sent, 2);
    drop((offered, bound));
    machine.check_quiet();
}
