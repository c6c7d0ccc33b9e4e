//! xenstored behind the rings of the mock, driven by the real client.

mod common;

use std::sync::atomic::Ordering::SeqCst;

use hypercall::{DomId, Platform};
use mock::{Machine, Node};
use xen_sys::io::xs_wire::{XENSTORE_ERROR_COMM, XENSTORE_ERROR_PROTO, XenstoreDomainInterface, XsdSockmsg};
use xenbus::store::{Cause, Errno, Perm, Store, StoreError, Tx};

fn ring(node: &Node) -> &XenstoreDomainInterface {
    // SAFETY: the page is there as long as the domain; nothing but atomics.
    unsafe { node.platform.start().store.cast().as_ref() }
}

fn refused<T: std::fmt::Debug>(result: Result<T, StoreError>) -> Errno {
    match result.expect_err("refused").cause {
        Cause::Refused(errno) => errno,
        cause => panic!("{cause:?}"),
    }
}

#[test]
fn a_domain_finds_its_home_and_writes_where_a_guest_may() {
    let machine = Machine::deterministic(1);
    let node = machine.boot();
    assert_eq!(node.store.read_text(Tx::NONE, "domid"), Ok("1".into()));
    let port = node.platform.start().console_port.0;
    assert_eq!(node.store.read_as(Tx::NONE, "console/port"), Ok(port));
    node.store.write(Tx::NONE, "data/greeting", b"hello").expect("its own");
    assert_eq!(node.store.read(Tx::NONE, "/local/domain/1/data/greeting"), Ok(b"hello".to_vec()));
    assert_eq!(refused(node.store.write(Tx::NONE, "name", b"other")), Errno::Acces);
    assert_eq!(refused(node.store.write(Tx::NONE, "/local/domain/0/name", b"other")), Errno::Acces);
    assert_eq!(refused(node.store.read(Tx::NONE, "data/nothing")), Errno::Noent);
    assert!(machine.ledger_of(node.id).store_messages >= 14, "requests and replies both count");
}

#[test]
fn domain_0_is_the_toolstack() {
    let machine = Machine::deterministic(2);
    let (dom0, guest) = (machine.services(DomId(0)), machine.boot());
    let device = format!("/local/domain/{}/device/vbd/51712", guest.id.0);
    dom0.store.write_text(Tx::NONE, &device, 1).expect("privileged");
    assert_eq!(guest.store.read_text(Tx::NONE, "device/vbd/51712"), Ok("1".into()), "as all in its home");
    let path = "/tool/secret";
    dom0.store.write_text(Tx::NONE, path, 2).expect("privileged");
    assert_eq!(refused(guest.store.read(Tx::NONE, path)), Errno::Acces, "not before it is allowed to");
    let perms =
        [Perm { domain: DomId(0), read: false, write: false }, Perm { domain: guest.id, read: true, write: false }];
    dom0.store.set_permissions(Tx::NONE, path, &perms).expect("privileged");
    assert_eq!(guest.store.read_text(Tx::NONE, path), Ok("2".into()));
}

#[test]
fn a_watch_fires_when_another_domain_writes() {
    let machine = Machine::deterministic(3);
    let (one, other) = (machine.boot(), machine.boot());
    let path = format!("/local/domain/{}/data/state", one.id.0);
    one.store.write(Tx::NONE, &path, b"1").expect("its own");
    let everybody = [Perm { domain: one.id, read: true, write: false }];
    one.store.set_permissions(Tx::NONE, &path, &everybody).expect("its own");
    let watch = other.store.watch(&path).expect("anybody may watch");
    let fired = || {
        machine.settle();
        other.store.process();
        other.store.fired(watch)
    };
    assert!(fired(), "it fires once at once");
    assert!(!fired());
    one.store.write(Tx::NONE, &path, b"2").expect("its own");
    one.store.write(Tx::NONE, &path, b"3").expect("its own");
    assert!(fired());
    assert_eq!(other.store.read_as(Tx::NONE, &path), Ok(3));
    other.store.unwatch(watch).expect("it is set");
}

#[test]
fn a_transaction_that_met_another_is_tried_again() {
    let machine = Machine::deterministic(4);
    let (one, dom0) = (machine.boot(), machine.services(DomId(0)));
    let path = format!("/local/domain/{}/data/counter", one.id.0);
    one.store.write_text(Tx::NONE, &path, 1).expect("its own");
    let mut tries = 0;
    let result = one.store.transaction(|tx| {
        tries += 1;
        let count: u32 = one.store.read_as(tx, &path)?;
        if tries == 1 {
            dom0.store.write_text(Tx::NONE, &path, 10)?;
        }
        one.store.write_text(tx, &path, count + 1)
    });
    assert_eq!((result, tries), (Ok(()), 2));
    assert_eq!(one.store.read_as(Tx::NONE, &path), Ok(11));
}

#[test]
fn values_longer_than_the_ring_arrive_whole() {
    let machine = Machine::deterministic(5);
    let node = machine.boot();
    let long: Vec<u8> = (0..2000_u32).map(|index| b'a' + (index % 23) as u8).collect();
    node.store.write(Tx::NONE, "data/long", &long).expect("its own");
    assert_eq!(node.store.read(Tx::NONE, "data/long"), Ok(long));
}

#[test]
fn a_ring_whose_indices_lie_is_served_no_more() {
    let machine = Machine::deterministic(6);
    let (node, other) = (machine.boot(), machine.boot());
    node.store.set_timeout_ns(1_000_000);
    ring(&node).req_prod.fetch_add(5000, SeqCst);
    hypercall::call::event_channel::send(&node.platform, node.store.port()).expect("bound");
    machine.settle();
    assert_eq!(ring(&node).error.load(SeqCst), XENSTORE_ERROR_COMM);
    assert!(node.store.read(Tx::NONE, "domid").is_err());
    assert_eq!(other.store.read_text(Tx::NONE, "domid"), Ok("2".into()), "others are not harmed");
}

/// Puts bytes into the ring as a domain's own client would.
fn put(node: &Node, bytes: &[u8]) {
    let ring = ring(node);
    let start = ring.req_prod.load(SeqCst);
    for (index, byte) in bytes.iter().enumerate() {
        ring.req[(start as usize + index) % 1024].store(*byte, SeqCst);
    }
    ring.req_prod.store(start + bytes.len() as u32, SeqCst);
    hypercall::call::event_channel::send(&node.platform, node.store.port()).expect("bound");
}

#[test]
fn many_requests_behind_one_event_are_all_answered() {
    let machine = Machine::deterministic(6);
    let node = machine.boot();
    // READ "domid", 40 times: more than the daemon takes of a client at once.
    let header = |id: u32| [2, id, 0, 6].map(u32::to_ne_bytes).concat();
    let requests: Vec<u8> = (0..40).flat_map(|id| [header(id), b"domid\0".to_vec()].concat()).collect();
    let before = ring(&node).rsp_prod.load(SeqCst);
    put(&node, &requests);
    machine.settle();
    assert_eq!(ring(&node).rsp_prod.load(SeqCst) - before, 40 * 17);
}

#[test]
fn a_message_longer_than_the_wire_allows_ends_the_service() {
    let machine = Machine::deterministic(6);
    let node = machine.boot();
    // A header that announces 4097 bytes.
    let header = [2_u32, 1, 0, 4097].map(u32::to_ne_bytes).concat();
    assert_eq!(header.len(), size_of::<XsdSockmsg>());
    put(&node, &header);
    machine.settle();
    assert_eq!(ring(&node).error.load(SeqCst), XENSTORE_ERROR_PROTO);
}

#[test]
fn the_same_seed_takes_the_same_time_and_does_the_same_work() {
    let run = |seed| {
        let machine = Machine::deterministic(seed);
        let nodes: Vec<Node> = (0..3).map(|_| machine.boot()).collect();
        let watches: Vec<_> =
            nodes.iter().map(|node| node.store.watch("/local/domain/1/data").expect("a watch")).collect();
        for round in 0..4 {
            nodes[0].store.write_text(Tx::NONE, "data/round", round).expect("its own");
        }
        let fired: Vec<bool> = nodes.iter().zip(&watches).map(|(node, watch)| node.store.fired(*watch)).collect();
        (nodes[0].platform.now_ns(), machine.ledger(), fired)
    };
    assert_eq!(run(11), run(11));
}
