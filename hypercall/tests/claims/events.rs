//! Event channels.

use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::SeqCst;

use hypercall::event::{Channel, EventChannels, EventError, Events, PORTS, Polled, Status};
use hypercall::{Nr, Port, XenError};
use xen_sys::event_channel::*;
use xen_sys::xen::VIRQ_TIMER;

use crate::fake::{Fake, PEER};

pub(crate) fn channels() -> (Fake, EventChannels<Fake>) {
    let fake = Fake::new();
    // SAFETY: the page lives as long as the domain, of which the channels have a handle.
    let events = unsafe { EventChannels::new(fake.clone(), fake.shared_page()) };
    (fake, events)
}

/// Dispatches once and returns the ports that were served.
pub(crate) fn served(events: &EventChannels<Fake>, vcpu: u32) -> Vec<u32> {
    let mut ports = Vec::new();
    let count = events.dispatch(vcpu, |event| ports.push(event.port.0));
    assert_eq!(count, ports.len());
    ports
}

pub(crate) fn offer(events: &EventChannels<Fake>, count: usize) -> Vec<Port> {
    (0..count).map(|_| events.alloc_unbound(PEER).unwrap()).collect()
}

#[test]
fn a_port_is_masked_until_it_is_made_and_after_it_was_closed() {
    let (fake, events) = channels();
    assert!(fake.shared().evtchn_mask.iter().all(|word| word.load(SeqCst) == usize::MAX));
    let port = events.alloc_unbound(PEER).unwrap();
    assert_eq!(fake.shared().evtchn_mask[0].load(SeqCst), !(1 << port.0));
    assert!(!events.is_masked(port));
    events.close(port);
    assert_eq!(fake.shared().evtchn_mask[0].load(SeqCst), usize::MAX);
    assert!(events.is_masked(port) && events.is_masked(Port(PORTS)));
}

#[test]
fn a_port_is_masked_from_its_dispatch_until_it_is_unmasked() {
    let (fake, events) = channels();
    let port = offer(&events, 2)[0];
    fake.signal(port);
    events.dispatch(0, |event| assert!(events.is_masked(event.port)));
    assert!(events.is_masked(port) && !events.is_masked(Port(port.0 + 1)));
    events.unmask(port);
    assert!(!events.is_masked(port));
}

#[test]
fn the_event_that_comes_with_the_bind_is_dispatched() {
    let (_fake, events) = channels();
    let port = events.bind_interdomain(PEER, Port(7)).unwrap();
    assert!(events.upcall_pending(0));
    assert_eq!(served(&events, 0), [port.0]);
    assert!(!events.upcall_pending(0));
}

#[test]
fn a_port_starts_without_the_events_of_its_past() {
    let (fake, events) = channels();
    let port = events.alloc_unbound(PEER).unwrap();
    fake.signal(port);
    events.close(port);
    assert_eq!(events.alloc_unbound(PEER).unwrap(), port);
    assert_eq!(served(&events, 0), []);
}

#[test]
fn a_port_that_was_dispatched_is_masked_until_its_handler_unmasks_it() {
    let (fake, events) = channels();
    let port = offer(&events, 1)[0];
    for _ in 0..3 {
        fake.signal(port);
    }
    assert_eq!(served(&events, 0), [port.0]);
    fake.signal(port);
    assert_eq!(served(&events, 0), []);
    assert!(!events.upcall_pending(0));
}

#[test]
fn an_event_that_comes_while_the_handler_runs_is_not_lost() {
    let (fake, events) = channels();
    let port = offer(&events, 1)[0];
    fake.signal(port);
    events.dispatch(0, |event| {
        fake.signal(event.port);
        events.unmask(event.port);
    });
    assert!(events.upcall_pending(0));
    assert_eq!(served(&events, 0), [port.0]);
}

#[test]
fn unmask_asks_xen_only_if_an_event_is_pending() {
    let (fake, events) = channels();
    let port = offer(&events, 1)[0];
    events.mask(port);
    events.unmask(port);
    assert_eq!(fake.calls(Nr::EVENT_CHANNEL_OP, EVTCHNOP_unmask), 0);
    events.mask(port);
    fake.signal(port);
    events.unmask(port);
    assert_eq!(fake.calls(Nr::EVENT_CHANNEL_OP, EVTCHNOP_unmask), 1);
}

#[test]
fn a_storm_on_a_low_port_keeps_nobody_waiting() {
    let (fake, events) = channels();
    let ports = offer(&events, 40);
    fake.signal(ports[0]);
    fake.signal(ports[39]);
    let mut seen = Vec::new();
    events.dispatch(0, |event| {
        seen.push(event.port);
        // The storm: signalled again before the handler is done, and unmasked at once.
        fake.signal(event.port);
        events.unmask(event.port);
    });
    assert_eq!(seen, [ports[0], ports[39]]);
}

#[test]
fn a_scan_goes_on_behind_the_port_that_was_served_last() {
    let (fake, events) = channels();
    let ports = offer(&events, 4);
    let order = |wanted: &[usize]| {
        for index in wanted {
            events.unmask(ports[*index]);
            fake.signal(ports[*index]);
        }
        served(&events, 0)
    };
    assert_eq!(order(&[1]), [ports[1].0]);
    assert_eq!(order(&[0, 1, 2, 3]), [2, 3, 0, 1].map(|index: usize| ports[index].0));
    assert_eq!(order(&[3]), [ports[3].0]);
    assert_eq!(order(&[0, 1]), [ports[0].0, ports[1].0]);
}

#[test]
fn every_port_of_every_word_is_found_wherever_the_scan_begins() {
    let (fake, events) = channels();
    let ports = [1, 63, 64, 127, 128, 2048, PORTS - 1].map(Port);
    for start in ports {
        events.unmask(start);
        raise(&fake, start);
        assert_eq!(served(&events, 0), [start.0]);
        for port in ports {
            events.unmask(port);
            raise(&fake, port);
        }
        let mut all = served(&events, 0);
        assert_eq!(all.len(), ports.len());
        all.sort_unstable();
        assert_eq!(all, ports.map(|port| port.0));
    }
}

/// Sets the bits of a port as Xen does, also beyond the ports that the fake knows.
fn raise(fake: &Fake, port: Port) {
    let shared = fake.shared();
    shared.evtchn_pending[port.0 as usize / 64].fetch_or(1 << (port.0 % 64), SeqCst);
    shared.vcpu_info[0].evtchn_pending_sel.fetch_or(1 << (port.0 / 64), SeqCst);
    shared.vcpu_info[0].evtchn_upcall_pending.store(1, SeqCst);
}

#[test]
fn take_clears_the_pending_bit_and_tells_what_it_was() {
    let (fake, events) = channels();
    let port = offer(&events, 1)[0];
    assert!(!events.take(port));
    events.mask(port);
    fake.signal(port);
    assert!(events.take(port));
    assert!(!events.take(port));
    assert_eq!(served(&events, 0), []);
}

#[test]
fn an_event_taken_by_polling_leaves_the_port_unmasked() {
    let (fake, events) = channels();
    let port = offer(&events, 1)[0];
    fake.signal(port);
    assert!(events.take(port));
    assert_eq!(served(&events, 0), []);
    fake.signal(port);
    assert_eq!(served(&events, 0), [port.0]);
}

#[test]
fn an_event_taken_by_polling_during_the_scan_leaves_the_port_unmasked() {
    let (fake, events) = channels();
    let ports = offer(&events, 2);
    fake.signal(ports[0]);
    fake.signal(ports[1]);
    let mut seen = Vec::new();
    events.dispatch(0, |event| {
        seen.push(event.port);
        events.take(ports[1]);
    });
    assert_eq!(seen, [ports[0]]);
    fake.signal(ports[1]);
    assert_eq!(served(&events, 0), [ports[1].0]);
}

#[test]
fn an_event_that_was_taken_can_be_passed_on_to_the_dispatcher() {
    let (fake, events) = channels();
    let port = offer(&events, 1)[0];
    fake.signal(port);
    assert!(events.take(port));
    served(&events, 0);
    events.raise(port);
    assert!(events.upcall_pending(0));
    assert_eq!(served(&events, 0), [port.0]);
    // On a masked port it waits for the handler, as a signal would.
    events.raise(port);
    assert_eq!(served(&events, 0), []);
    events.unmask(port);
    assert_eq!(served(&events, 0), [port.0]);
}

#[test]
fn a_late_event_of_a_closed_port_is_known() {
    let (fake, events) = channels();
    let port = offer(&events, 1)[0];
    fake.signal(port);
    let mut late = None;
    events.dispatch(0, |event| late = Some(event));
    let late = late.unwrap();
    assert!(events.is_current(late));
    events.close(port);
    assert!(!events.is_current(late));
    assert_eq!(events.alloc_unbound(PEER).unwrap(), port);
    assert!(!events.is_current(late));
    fake.signal(port);
    events.dispatch(0, |event| assert!(events.is_current(event)));
}

#[test]
fn events_of_another_vcpu_are_left_to_it() {
    let (fake, events) = channels();
    let timer = events.bind_virq(VIRQ_TIMER, 1).unwrap();
    let other = offer(&events, 1)[0];
    fake.signal(timer);
    fake.signal(other);
    assert_eq!(served(&events, 0), [other.0]);
    assert_eq!(served(&events, 1), [timer.0]);
}

#[test]
fn a_port_that_moves_to_another_vcpu_takes_its_event_along() {
    let (fake, events) = channels();
    let port = offer(&events, 1)[0];
    fake.signal(port);
    events.bind_vcpu(port, 2).unwrap();
    assert!(events.upcall_pending(2));
    assert_eq!(served(&events, 0), []);
    assert_eq!(served(&events, 2), [port.0]);
    // While a handler has the port, too.
    fake.signal(port);
    events.bind_vcpu(port, 3).unwrap();
    assert_eq!(served(&events, 3), []);
    events.unmask(port);
    assert_eq!(served(&events, 3), [port.0]);
}

#[test]
fn an_event_that_comes_in_the_middle_of_a_move_is_not_lost() {
    let (fake, events) = channels();
    let port = offer(&events, 1)[0];
    fake.signal(port);
    assert_eq!(served(&events, 0), [port.0]);
    // Xen has moved the port, and before this domain has taken note of it, the handler ends and the next event comes.
    let (elsewhere, other) = (events.clone(), fake.clone());
    fake.state().after_bind_vcpu = Some(Box::new(move || {
        elsewhere.unmask(port);
        other.signal(port);
        assert_eq!(served(&elsewhere, 2), []);
    }));
    events.bind_vcpu(port, 2).unwrap();
    assert!(events.upcall_pending(2));
    assert_eq!(served(&events, 2), [port.0]);
}

#[test]
fn an_interrupt_between_vcpus_arrives_where_it_was_bound() {
    let (fake, events) = channels();
    let port = events.bind_ipi(5).unwrap();
    fake.signal(port);
    assert_eq!(served(&events, 5), [port.0]);
}

#[test]
fn a_refusal_tells_what_it_was_about() {
    let (fake, events) = channels();
    fake.fail(Nr::EVENT_CHANNEL_OP, EVTCHNOP_bind_interdomain, 0, 22);
    let error = events.bind_interdomain(PEER, Port(9)).unwrap_err();
    assert_eq!(error, EventError { op: "bind_interdomain", about: 3, error: XenError::EINVAL });
    assert_eq!(error.to_string(), "event channel bind_interdomain (3): EINVAL (22)");
    offer(&events, 63);
    assert_eq!(events.alloc_unbound(PEER).unwrap_err().error, XenError::ENOSPC);
}

#[test]
fn a_channel_signals_and_closes_its_port() {
    let (fake, events) = channels();
    let channel = Channel::offer(&events, PEER).unwrap();
    let port = channel.port();
    channel.notify();
    assert_eq!(fake.state().sent, [port]);
    assert_eq!(events.status(port), Ok((Status::Unbound(PEER), 0)));
    drop(channel);
    assert_eq!(events.status(port), Ok((Status::Closed, 0)));
}

#[test]
fn a_number_that_is_no_port_does_nothing() {
    let (_fake, events) = channels();
    for port in [Port(PORTS), Port(u32::MAX)] {
        assert!(!events.mask(port));
        assert!(!events.take(port));
        events.unmask(port);
        events.close(port);
        events.notify(port);
        assert!(events.status(port).is_err());
    }
}

#[test]
fn no_signal_is_lost_between_a_peer_and_two_dispatchers() {
    let (fake, events) = channels();
    let port = offer(&events, 1)[0];
    let rounds = if cfg!(miri) { 30 } else { 20_000 };
    let (made, seen, running) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    let dispatch = || {
        while seen.load(SeqCst) < rounds {
            if !events.upcall_pending(0) {
                std::thread::yield_now();
                continue;
            }
            events.dispatch(0, |event| {
                assert_eq!(running.fetch_add(1, SeqCst), 0, "a handler runs twice at a time");
                seen.fetch_max(made.load(SeqCst), SeqCst);
                running.fetch_sub(1, SeqCst);
                events.unmask(event.port);
            });
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(dispatch);
        scope.spawn(dispatch);
        for round in 1..=rounds {
            made.store(round, SeqCst);
            fake.signal(port);
            // Now and then let them run dry: the last signal before that must be enough.
            if round % 7 == 0 {
                let since = std::time::Instant::now();
                while seen.load(SeqCst) < round {
                    assert!(cfg!(miri) || since.elapsed().as_secs() < 10, "the signal of round {round} was lost");
                    std::thread::yield_now();
                }
            }
        }
        let since = std::time::Instant::now();
        while seen.load(SeqCst) < rounds {
            assert!(cfg!(miri) || since.elapsed().as_secs() < 10, "the last signal was lost");
            std::thread::yield_now();
        }
    });
}
