//! The mock with threads and real time.

use std::time::{Duration, Instant};

use hypercall::call::{event_channel, sched};
use hypercall::event::Channel;
use hypercall::grant::{Access, MapRequest, SharedPages, Window};
use hypercall::{DomId, Platform};
use mock::{DomainConfig, Machine};
use xen_sys::xen::VIRQ_TIMER;
use xenbus::store::{Store, Tx};

const SECOND: u64 = 1_000_000_000;

/// Rounds of a test: Miri is slow.
const ROUNDS: u32 = if cfg!(miri) { 5 } else { 500 };

#[test]
fn two_threads_play_ping_pong_by_events() {
    let machine = Machine::threaded();
    let (one, other) = (machine.boot(), machine.boot());
    let offered = Channel::offer(&one.events, other.id).expect("a port");
    let bound = Channel::bind(&other.events, one.id, offered.port()).expect("offered");
    let serve = |node: mock::Node, channel: Channel<_>, first: bool| {
        if first {
            channel.notify();
        }
        for _ in 0..ROUNDS {
            let deadline = node.platform.now_ns() + 20 * SECOND;
            while !node.events.take(channel.port()) {
                assert!(node.platform.now_ns() < deadline, "an event was lost");
                node.platform.wait(&[channel.port()], deadline);
            }
            channel.unmask();
            channel.notify();
        }
        channel
    };
    offered.unmask();
    bound.unmask();
    // The event that binding raises is taken off, so that each notify is one turn.
    other.events.take(bound.port());
    bound.unmask();
    let (one_, other_) = (one.clone(), other.clone());
    let first = std::thread::spawn(move || serve(one_, offered, true));
    let second = std::thread::spawn(move || serve(other_, bound, false));
    drop((first.join().expect("ends"), second.join().expect("ends")));
    assert!(machine.ledger_of(one.id).notifications > u64::from(ROUNDS));
    machine.check_quiet();
}

#[test]
fn many_threads_use_the_store_of_many_domains() {
    let machine = Machine::threaded();
    let nodes: Vec<_> = (0..3).map(|_| machine.boot()).collect();
    std::thread::scope(|scope| {
        for node in nodes.iter().chain(&nodes) {
            scope.spawn(|| {
                for round in 0..ROUNDS / 5 {
                    node.store.write_text(Tx::NONE, "data/round", round).expect("its own");
                    assert!(node.store.read_as::<u32>(Tx::NONE, "data/round").is_ok());
                }
            });
        }
    });
}

#[test]
fn the_timer_fires_in_real_time() {
    let machine = Machine::threaded();
    let domain = machine.create(DomainConfig::default());
    let port = event_channel::bind_virq(&domain, VIRQ_TIMER, 0).expect("free");
    let start = Instant::now();
    sched::set_timer(&domain, domain.now_ns() + 30_000_000).expect("a time");
    domain.wait(&[port], domain.now_ns() + 20 * SECOND);
    let passed = start.elapsed();
    assert!(passed >= Duration::from_millis(29) && passed < Duration::from_secs(10), "{passed:?}");
}

#[test]
fn waiting_ends_at_the_deadline() {
    let machine = Machine::threaded();
    let start = Instant::now();
    let dom0 = machine.dom0();
    sched::poll(&dom0, &[], dom0.now_ns() + 20_000_000).expect("no ports are fine");
    assert!(start.elapsed() >= Duration::from_millis(19));
}

#[test]
fn killing_a_domain_ends_what_its_threads_wait_for() {
    let machine = Machine::threaded();
    let domain = machine.create(DomainConfig::default());
    let id = domain.id();
    let waiter = std::thread::spawn(move || domain.wait(&[], domain.now_ns() + 600 * SECOND));
    std::thread::sleep(Duration::from_millis(5));
    machine.kill(id);
    waiter.join().expect("it ends");
}

#[test]
fn a_page_that_two_threads_write_is_one_page() {
    let machine = Machine::threaded();
    let (owner, user) = (machine.boot(), machine.boot());
    let pages = SharedPages::new(&owner.grants, user.id, 1).expect("a page to share");
    let mut window = Window::new(&user.platform, 1).expect("room");
    let request = MapRequest { gref: pages.refs()[0], peer: owner.id, access: Access::ReadWrite };
    let theirs = window.map(0, request).expect("granted");
    let ours = pages.shared();
    std::thread::scope(|scope| {
        scope.spawn(|| (0..ROUNDS).for_each(|round| ours.write(0, &u64::from(round).to_ne_bytes())));
        scope.spawn(|| (0..ROUNDS).for_each(|round| theirs.write(8, &u64::from(round).to_ne_bytes())));
    });
    let mut bytes = [0; 16];
    ours.read(0, &mut bytes);
    let last = u64::from(ROUNDS - 1).to_ne_bytes();
    assert_eq!(bytes, [last, last].concat()[..]);
    drop((window, pages));
    machine.check_quiet();
}

#[test]
fn domain_0_has_a_store_too() {
    let machine = Machine::threaded();
    let dom0 = machine.services(DomId(0));
    assert_eq!(dom0.store.read_text(Tx::NONE, "name"), Ok("Domain-0".into()));
}
