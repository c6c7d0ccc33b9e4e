//! What is taken down of a run, in words.

mod common;

use std::collections::BTreeSet;

use common::*;
use hypercall::call::event_channel as call;
use hypercall::event::Channel;
use hypercall::grant::{Access, CopyBatch, Foreign, Local, MapRequest, SharedPages, Window};
use hypercall::mem::Pages;
use hypercall::{DomId, Level, Platform, Port};
use mock::{Arrival, Fault, Kind, Machine, Message, Node, Refusal, Trace, What};
use xen_sys::errno::XEN_ENOMEM;
use xen_sys::event_channel::{EVTCHNOP_alloc_unbound, EVTCHNOP_bind_ipi, EVTCHNOP_send};
use xenbus::store::{Store, Tx};

const ROOM: usize = 10_000;

fn two() -> (Machine, Node, Node) {
    let machine = Machine::deterministic(1);
    let (one, other) = (machine.boot(), machine.boot());
    (machine, one, other)
}

/// Does something, and returns what was taken down of it.
fn of(machine: &Machine, work: impl FnOnce()) -> Trace {
    machine.record(ROOM);
    work();
    let trace = machine.trace();
    machine.record(0);
    trace
}

/// Returns the entries as they are written, without their time.
fn lines(trace: &Trace) -> Vec<String> {
    trace
        .entries
        .iter()
        .map(|entry| {
            let domain = entry.domain.map_or("machine".into(), |dom| dom.0.to_string());
            format!("{domain}: {}", entry.what)
        })
        .collect()
}

#[test]
fn nothing_is_taken_down_unless_somebody_wants_it() {
    let (machine, one, _other) = two();
    let offer = || drop(Channel::offer(&one.events, DomId(0)).expect("a port"));
    offer();
    assert_eq!(machine.trace(), Trace::default());
    machine.record(ROOM);
    offer();
    assert_ne!(machine.trace(), Trace::default());
    machine.record(0);
    offer();
    assert_eq!(machine.trace(), Trace::default());
}

#[test]
fn hypercall_is_its_domain_kind_arguments_and_answer() {
    let (machine, one, other) = two();
    let trace = of(&machine, || {
        let port = call::alloc_unbound(&one.platform, other.id).expect("a port");
        call::bind_interdomain(&other.platform, one.id, port).expect("offered");
        assert!(call::bind_interdomain(&other.platform, one.id, port).is_err());
        assert!(call::close(&one.platform, Port(77)).is_err());
    });
    let calls: Vec<String> = lines(&trace).into_iter().filter(|line| line.contains("hypercall")).collect();
    assert_eq!(
        calls,
        [
            "1: hypercall event_channel_op alloc_unbound: of itself for domain 2 → port 3 = 0",
            "2: hypercall event_channel_op bind_interdomain: port 3 of domain 1 → port 3 = 0",
            "2: hypercall event_channel_op bind_interdomain: port 3 of domain 1 = -EINVAL (22)",
            "1: hypercall event_channel_op close: port 77 = -EINVAL (22)",
        ]
    );
    let first = &trace.entries[0];
    assert!(first.time_ns >= 1_000_000_000 && first.domain == Some(one.id), "{first:?}");
    assert!(matches!(first.what, What::Hypercall { kind, .. } if kind == Kind::event(EVTCHNOP_alloc_unbound)));
}

#[test]
fn event_is_known_by_its_number_from_where_it_is_sent_to_where_it_comes() {
    let (machine, one, other) = two();
    let offered = Channel::offer(&one.events, other.id).expect("a port");
    let bound = Channel::bind(&other.events, one.id, offered.port()).expect("offered");
    let of_events = |work: &dyn Fn()| {
        let trace = of(&machine, work);
        let sent: Vec<_> = trace
            .entries
            .iter()
            .filter_map(|entry| match entry.what {
                What::Sent { event, from, to } => Some((event, from, to)),
                _ => None,
            })
            .collect();
        let arrived: Vec<_> = trace
            .entries
            .iter()
            .filter_map(|entry| match entry.what {
                What::Arrived { event, port, how } => Some((entry.domain, event, port, how)),
                _ => None,
            })
            .collect();
        assert_eq!(sent.len(), 1);
        assert_eq!((sent[0].1, sent[0].2), (Some(bound.port()), Some((one.id, offered.port()))));
        assert!(arrived.iter().all(|it| (it.0, it.1, it.2) == (Some(one.id), sent[0].0, offered.port())));
        arrived.iter().map(|it| it.3).collect::<Vec<_>>()
    };
    offered.unmask();
    assert_eq!(of_events(&|| bound.notify()), [Arrival::Delivered]);
    assert_eq!(of_events(&|| bound.notify()), [Arrival::Merged]);
    assert!(one.events.take(offered.port()));
    one.events.mask(offered.port());
    assert_eq!(of_events(&|| bound.notify()), [Arrival::Masked]);
    offered.unmask();
    machine.order(Fault::DropEvent { to: None, nth: 1 });
    assert_eq!(of_events(&|| bound.notify()), []);
    one.events.take(offered.port());
    offered.unmask();
    machine.order(Fault::RepeatEvent { to: None, nth: 1 });
    let twice = || {
        bound.notify();
        machine.settle();
    };
    assert_eq!(of_events(&twice), [Arrival::Delivered, Arrival::Merged]);
    let trace = of(&machine, || (0..5).for_each(|_| bound.notify()));
    let numbers: BTreeSet<u64> = trace
        .entries
        .iter()
        .filter_map(|entry| match entry.what {
            What::Sent { event, .. } => Some(event),
            _ => None,
        })
        .collect();
    assert_eq!(numbers.len(), 5, "each has its own number");
    drop(offered);
    let trace = of(&machine, || bound.notify());
    assert!(trace.entries.iter().any(|entry| matches!(entry.what, What::Sent { to: None, .. })), "{trace}");
}

#[test]
fn grants_are_seen_when_they_are_given_used_and_ended() {
    let (machine, one, other) = two();
    let trace = of(&machine, || {
        let pages = SharedPages::new(&one.grants, other.id, 1).expect("a page to share");
        let gref = pages.refs()[0];
        let mut window = Window::new(&other.platform, 1).expect("room");
        // What is written into a grant table is seen at the domain's next hypercall.
        let _ = call::bind_ipi(&one.platform, 0);
        window.map(0, MapRequest { gref, peer: one.id, access: Access::ReadOnly }).expect("granted");
        drop(window);
        drop(pages);
        let _ = call::bind_ipi(&one.platform, 0);
    });
    let grants: Vec<String> = lines(&trace).into_iter().filter(|line| line.contains(": grant ")).collect();
    assert_eq!(grants.len(), 4, "{grants:#?}");
    assert!(grants[0].starts_with("1: grant 8 to domain 2: frame "), "{grants:#?}");
    assert!(grants[1].starts_with("2: grant maps 8 of domain 1 at page "), "{grants:#?}");
    assert!(grants[1].ends_with(", read-only: GNTST_okay (0), handle 0"), "{grants:#?}");
    assert_eq!(grants[2], "2: grant unmaps 8 of domain 1: GNTST_okay (0)");
    assert_eq!(grants[3], "1: grant 8 ended");
}

#[test]
fn copy_names_both_sides_and_what_became_of_it() {
    let (machine, one, other) = two();
    let granted = grant(&one, other.id, Access::ReadOnly);
    let page = Pages::new(&other.platform, 1).expect("a page");
    let trace = of(&machine, || {
        let mut batch = CopyBatch::new();
        let from = Foreign { peer: one.id, gref: granted.gref, offset: 0 };
        batch.from_peer(from, Local::new(&page, 0), 16).expect("room in the batch");
        assert_eq!(batch.run(&other.platform, |_, error| panic!("{error}")), 1);
    });
    let copies: Vec<String> = lines(&trace).into_iter().filter(|line| line.contains("copies")).collect();
    end(&one, granted);
    assert_eq!(copies, ["2: grant copies 16 bytes from 8 of domain 1 to an own page: GNTST_okay (0)"]);
}

#[test]
fn store_is_seen_by_request_reply_and_watch() {
    let (machine, one, _other) = two();
    let watch = one.store.watch("data").expect("a watch");
    machine.settle();
    one.store.process();
    while one.store.fired(watch) {}
    let trace = of(&machine, || {
        one.store.write(Tx::NONE, "data/colour", b"blue\x01").expect("its own");
        assert!(one.store.read(Tx::NONE, "data/none").is_err());
    });
    let store: Vec<(Message, String)> = trace
        .entries
        .iter()
        .filter_map(|entry| match &entry.what {
            What::Store(message, words) if entry.domain == Some(one.id) => Some((*message, words.clone())),
            _ => None,
        })
        .collect();
    let words: Vec<(Message, &str)> = store.iter().map(|(message, words)| (*message, words.as_str())).collect();
    assert_eq!(words[0], (Message::Request, r"write data/colour blue\x01"));
    assert_eq!(words[1], (Message::Reply, "write OK"));
    assert!(words[2].0 == Message::Watch && words[2].1.starts_with("data/colour "), "{words:?}");
    assert_eq!(words[3..], [(Message::Request, "read data/none"), (Message::Reply, "error ENOENT")]);
}

#[test]
fn faults_logs_waits_lives_and_turns_are_taken_down() {
    let (machine, one, other) = two();
    machine.order(Fault::Hypercall {
        domain: None,
        kind: Some(Kind::event(EVTCHNOP_bind_ipi)),
        nth: 1,
        errno: XEN_ENOMEM,
    });
    let trace = of(&machine, || {
        machine.turn_of(Some("idler"));
        machine.turn_of(None);
        machine.turn_of(Some("worker"));
        assert!(call::bind_ipi(&one.platform, 0).is_err());
        machine.turn_of(None);
        one.platform.log(Level::Debug, format_args!("hello {}", 1));
        one.platform.wait(&[Port(1)], one.platform.now_ns() + 5_000);
        machine.kill(other.id);
    });
    let said = lines(&trace);
    let at =
        |line: &str| said.iter().position(|said| said.starts_with(line)).unwrap_or_else(|| panic!("{line}: {said:#?}"));
    assert!(!said.iter().any(|line| line.contains("idler")), "nothing happened in its turn");
    let (turn, call, fault) =
        (at("machine: program worker"), at("1: hypercall event_channel_op bind_ipi: vcpu 0 = -ENOMEM"), at("1: FAULT"));
    assert!(turn < call && call < fault, "{said:#?}");
    let (turn, call) = (&trace.entries[turn], &trace.entries[call]);
    assert!(turn.drawn_ns < call.drawn_ns && call.drawn_end_ns < turn.drawn_end_ns, "a turn holds what happens in it");
    let (log, waits, woke) = (at("1: log Debug: hello 1"), at("1: waits for port 1"), at("1: wakes"));
    assert!(log < waits && waits < woke && woke < at("2: is killed"), "{said:#?}");
    assert_eq!(trace.entries[woke].time_ns - trace.entries[waits].time_ns, 5_000);
}

#[test]
fn only_the_newest_entries_are_kept_and_the_others_counted() {
    let (machine, one, _other) = two();
    let whole = of(&machine, || (0..10).for_each(|_| drop(Channel::offer(&one.events, DomId(0)))));
    let all = whole.entries.len();
    machine.record(7);
    (0..10).for_each(|_| drop(Channel::offer(&one.events, DomId(0))));
    let trace = machine.trace();
    assert_eq!((trace.entries.len(), trace.dropped as usize), (7, all - 7));
    assert_eq!(lines(&trace), lines(&whole)[all - 7..]);
    assert!(trace.to_string().starts_with(&format!("{} older entries were dropped\n", all - 7)), "{trace}");
    // The turn that is open may be among what was dropped.
    machine.record(2);
    machine.turn_of(Some("long"));
    (0..10).for_each(|_| drop(Channel::offer(&one.events, DomId(0))));
    machine.turn_of(None);
    assert_eq!(machine.trace().entries.len(), 2);
}

#[test]
fn times_on_the_drawn_line_never_meet() {
    let (machine, one, _other) = two();
    let trace = of(&machine, || {
        for _ in 0..3 {
            drop(Channel::offer(&one.events, DomId(0)));
            one.store.read(Tx::NONE, "domid").expect("its own");
        }
    });
    for pair in trace.entries.windows(2) {
        assert!(pair[0].drawn_ns < pair[1].drawn_ns && pair[0].time_ns <= pair[1].time_ns, "{pair:#?}");
    }
    assert!(trace.entries.iter().all(|entry| entry.drawn_ns < entry.drawn_end_ns));
    let sends =
        |entry: &&mock::Entry| matches!(entry.what, What::Hypercall { kind, .. } if kind == Kind::event(EVTCHNOP_send));
    assert!(trace.entries.iter().filter(sends).count() >= 3);
}

#[test]
fn fault_is_written_as_the_code_that_makes_it() {
    let fault = Fault::Request { domain: Some(DomId(2)), nth: 3, refusal: Refusal::Again };
    assert_eq!(fault.code(), "Fault::Request { domain: Some(DomId(2)), nth: 3, refusal: Refusal::Again }");
    assert_eq!((fault.nth(), fault.at(9).nth()), (3, 9));
}
