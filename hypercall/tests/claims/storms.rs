//! Events that bring no work.

use hypercall::Port;
use hypercall::event::{Event, EventChannels, Events};

use crate::events::{channels, offer, served};
use crate::fake::{Fake, PEER};

const MS: u64 = 1_000_000;

/// An event of `port` comes, and nothing is found; returns how many milliseconds it takes to be looked at again, none if it need not.
fn in_vain(fake: &Fake, events: &EventChannels<Fake>, port: Port) -> Option<u64> {
    fake.signal(port);
    assert_eq!(served(events, 0), [port.0]);
    events.put_off(port);
    let due = events.next_delayed_ns()?;
    let begin = fake.state().now_ns;
    assert!(events.is_masked(port));
    fake.state().now_ns = due - 1;
    assert_eq!(delayed(events), [], "a moment too early");
    fake.state().now_ns = due;
    assert_eq!(delayed(events), [port.0]);
    assert_eq!((delayed(events), events.next_delayed_ns(), events.is_masked(port)), (vec![], None, true));
    // Looked at once more, in vain.
    events.put_off(port);
    assert!(!events.is_masked(port));
    Some((due - begin) / MS)
}

fn delayed(events: &EventChannels<Fake>) -> Vec<u32> {
    let mut ports = Vec::new();
    let take = |event: Event| {
        assert!(events.is_masked(event.port) && events.is_current(event));
        ports.push(event.port.0);
    };
    let count = events.dispatch_delayed(take);
    assert_eq!(count, ports.len());
    ports
}

/// A port that is left alone, for a few milliseconds.
fn left_alone() -> (Fake, EventChannels<Fake>, Port) {
    let (fake, events) = channels();
    let port = offer(&events, 1)[0];
    for _ in 0..3 {
        in_vain(&fake, &events, port);
    }
    fake.signal(port);
    assert_eq!(served(&events, 0), [port.0]);
    events.put_off(port);
    (fake, events, port)
}

#[test]
fn a_port_without_work_is_left_alone_for_longer_and_longer_until_there_is_some() {
    // Under Miri a round takes a second.
    let (begins, rounds) = if cfg!(miri) { (1, 4) } else { (3, 14) };
    for begin in [0, MS * (u64::from(u32::MAX) - 2), u64::MAX / 2 / MS * MS].into_iter().take(begins) {
        let (fake, events) = channels();
        let port = offer(&events, 1)[0];
        fake.state().now_ns = begin;
        let delays: Vec<_> = (0..rounds).map(|_| in_vain(&fake, &events, port)).collect();
        let expected = [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000, 1000, 1000];
        assert_eq!(delays, expected.map(|ms| (ms > 0).then_some(ms))[..rounds]);
        fake.signal(port);
        assert_eq!(served(&events, 0), [port.0]);
        events.unmask(port);
        assert_eq!(in_vain(&fake, &events, port), None, "all is forgotten");
    }
}

#[test]
fn what_is_found_during_a_delay_ends_it() {
    let (fake, events, port) = left_alone();
    fake.signal(port);
    // Polled for another reason: first in vain, which changes nothing.
    let due = events.next_delayed_ns();
    events.put_off(port);
    assert_eq!((events.next_delayed_ns(), events.is_masked(port)), (due, true));
    events.unmask(port);
    assert_eq!(events.next_delayed_ns(), None);
    assert_eq!(served(&events, 0), [port.0], "what came meanwhile");
}

#[test]
fn others_are_served_while_a_port_is_left_alone() {
    let (fake, events) = channels();
    let ports = offer(&events, 2);
    in_vain(&fake, &events, ports[0]);
    for port in &ports {
        fake.signal(*port);
    }
    assert_eq!(served(&events, 0).len(), 2);
    events.put_off(ports[0]);
    events.unmask(ports[1]);
    for port in &ports {
        fake.signal(*port);
    }
    assert_eq!(served(&events, 0), [ports[1].0]);
}

#[test]
fn a_port_that_nobody_was_sent_for_is_not_left_alone() {
    let (fake, events) = channels();
    let port = offer(&events, 1)[0];
    for _ in 0..10 {
        events.put_off(port);
    }
    assert_eq!((events.is_masked(port), events.next_delayed_ns()), (false, None));
    assert_eq!(in_vain(&fake, &events, port), None);
    events.put_off(Port(hypercall::event::PORTS));
}

#[test]
fn a_port_that_is_closed_or_gone_by_a_suspend_leaves_no_delay_to_the_next() {
    for suspend in [false, true] {
        let (fake, events, port) = left_alone();
        assert!(events.next_delayed_ns().is_some());
        if suspend {
            events.resume();
        } else {
            events.close(port);
        }
        assert_eq!(events.next_delayed_ns(), None);
        fake.state().now_ns += 2000 * MS;
        assert_eq!(delayed(&events), []);
        if !suspend {
            assert_eq!(events.alloc_unbound(PEER), Ok(port), "the fake gives the lowest");
            assert_eq!(in_vain(&fake, &events, port), None);
        }
    }
}
