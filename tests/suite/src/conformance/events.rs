//! `event_channel_op`: every kind of port, bound, signalled and closed, with all its errors.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::sync::atomic::Ordering::SeqCst;

use hypercall::call::event_channel::{self as call, Status};
use hypercall::call::vcpu;
use hypercall::{DomId, Nr, Platform, Port, XenError};
use xen_sys::event_channel::*;
use xen_sys::xen::*;

use super::{NOBODY, Subject, Transcript, XENS, outcome};

/// Ports that there can't be, with two-level events.
const BEYOND: Port = Port(EVTCHN_2L_NR_CHANNELS as u32);

/// Runs the script. All ports of the domain are closed at its end.
pub(super) fn run<P: Platform>(subject: &Subject<'_, P>, transcript: &mut Transcript) {
    let script = &mut Script { subject, transcript };
    // A PV vcpu starts with a periodic timer, whose events would come at any time.
    script.step("stop the periodic timer", outcome(&vcpu::stop_periodic_timer(&subject.platform, 0)));
    script.offers();
    script.channels();
    script.masks();
    script.closing();
    script.interrupts();
    script.signals();
    script.vcpus();
    script.odds();
    script.all_ports();
}

struct Script<'a, 'b, P: Platform> {
    subject: &'a Subject<'b, P>,
    transcript: &'a mut Transcript,
}

impl<P: Platform> Script<'_, '_, P> {
    fn step(&mut self, step: &str, outcome: impl core::fmt::Display) {
        self.transcript.step(&format!("event: {step}"), outcome);
    }

    fn xen(&self) -> &P {
        &self.subject.platform
    }

    /// Tells what a port is; a domain as "me" or by its number, a port as one of `known` or "another port".
    fn status(&self, port: Port, known: &[(Port, &str)]) -> String {
        let domain = |id: DomId| if id == self.subject.id { "me".to_string() } else { format!("domain {}", id.0) };
        let label =
            |port: Port| known.iter().find(|(other, _)| *other == port).map_or("another port", |(_, name)| name);
        match call::status(self.xen(), port) {
            Ok((Status::Unbound(remote), vcpu)) => format!("unbound, for {}, vcpu {vcpu}", domain(remote)),
            Ok((Status::Interdomain(remote, port), vcpu)) => {
                format!("interdomain, {} of {}, vcpu {vcpu}", label(port), domain(remote))
            }
            Ok((Status::Closed, _)) => "closed".to_string(),
            Ok((status, vcpu)) => format!("{status:?}, vcpu {vcpu}"),
            error => outcome(&error),
        }
    }

    /// Makes a port by a call that has worked before, for steps about something else.
    fn must<T>(&mut self, what: &str, result: Result<T, XenError>) -> T {
        match result {
            Ok(value) => value,
            Err(error) => panic!("{what}: {error}"),
        }
    }

    fn pair(&mut self) -> (Port, Port) {
        let offer = call::alloc_unbound(self.xen(), DOMID_SELF);
        let offer = self.must("alloc_unbound", offer);
        let bound = call::bind_interdomain(self.xen(), DOMID_SELF, offer);
        let bound = self.must("bind_interdomain", bound);
        self.subject.take(bound);
        (offer, bound)
    }

    fn close(&mut self, ports: &[Port]) {
        for port in ports {
            let closed = call::close(self.xen(), *port);
            self.must("close", closed);
        }
    }

    fn offers(&mut self) {
        let offer = call::alloc_unbound(self.xen(), DOMID_SELF);
        self.step("alloc_unbound for DOMID_SELF", outcome(&offer));
        let offer = self.must("alloc_unbound", offer);
        self.step("status of a port offered to DOMID_SELF", self.status(offer, &[]));
        self.step("a new port", self.subject.take(offer));
        let named = call::alloc_unbound(self.xen(), self.subject.id);
        self.step("alloc_unbound for the own number", outcome(&named));
        let named = self.must("alloc_unbound", named);
        self.step("a second port is the next", named.0 == offer.0 + 1);
        let other = call::alloc_unbound(self.xen(), NOBODY);
        self.step("alloc_unbound for no such domain", outcome(&other));
        if let Ok(other) = other {
            self.step("status of a port offered to no such domain", self.status(other, &[]));
            self.step("bind to a port offered to another", self.bind(DOMID_SELF, other));
            self.close(&[other]);
        }
        let mut of_nobody = EvtchnAllocUnbound { dom: NOBODY, remote_dom: DOMID_SELF, port: Port(0) };
        // SAFETY: the command's structure, without pointers.
        let ret = unsafe { self.subject.op(Nr::EVENT_CHANNEL_OP, EVTCHNOP_alloc_unbound, &mut of_nobody, 0) };
        self.step("alloc_unbound of no such domain", ret);
        self.step("send on an unbound port", outcome(&call::send(self.xen(), offer)));
        self.step("an unbound port that was signalled", self.subject.take(offer));
        self.close(&[offer]);
        let again = call::alloc_unbound(self.xen(), DOMID_SELF);
        let again = self.must("alloc_unbound", again);
        self.step("the lowest free port is given again", again == offer);
        self.close(&[again, named]);
    }

    fn bind(&self, remote: DomId, port: Port) -> String {
        outcome(&call::bind_interdomain(self.xen(), remote, port))
    }

    fn channels(&mut self) {
        let offer = call::alloc_unbound(self.xen(), DOMID_SELF);
        let offer = self.must("alloc_unbound", offer);
        let bound = call::bind_interdomain(self.xen(), DOMID_SELF, offer);
        self.step("bind_interdomain to an offered port", outcome(&bound));
        let bound = self.must("bind_interdomain", bound);
        self.step("the port that was bound", self.subject.take(bound));
        self.step("the port that was bound to", self.subject.take(offer));
        let known = [(offer, "the offered port"), (bound, "the bound port")];
        self.step("status of the bound port", self.status(bound, &known));
        self.step("status of the offered port", self.status(offer, &known));
        self.step("bind_interdomain once more", self.bind(DOMID_SELF, offer));
        self.step("bind_interdomain to a bound port's other end", self.bind(DOMID_SELF, bound));
        self.step("bind_interdomain to port 0", self.bind(DOMID_SELF, Port(0)));
        self.step("bind_interdomain to a port that can't be", self.bind(DOMID_SELF, BEYOND));
        self.step("bind_interdomain to a closed port", self.bind(DOMID_SELF, Port(bound.0 + 1)));
        self.step("bind_interdomain to no such domain", self.bind(NOBODY, offer));
        self.step("send", outcome(&call::send(self.xen(), bound)));
        self.step("the end that was signalled", self.subject.take(offer));
        self.step("the end that has signalled", self.subject.take(bound));
        self.step("send the other way", outcome(&call::send(self.xen(), offer)));
        self.step("the end that was signalled back", self.subject.take(bound));
        self.step("send on port 0", outcome(&call::send(self.xen(), Port(0))));
        self.step("send on a port that can't be", outcome(&call::send(self.xen(), BEYOND)));
        self.step("send on port 4294967295", outcome(&call::send(self.xen(), Port(u32::MAX))));
        self.step("send on a closed port", outcome(&call::send(self.xen(), Port(bound.0 + 1))));
        self.close(&[bound, offer]);
    }

    fn masks(&mut self) {
        let (offer, bound) = self.pair();
        let (word, bit) = self.subject.place(offer);
        let shared = self.subject.shared;
        shared.evtchn_mask[word].fetch_and(!bit, SeqCst);
        self.subject.take_upcall();
        let sent = call::send(self.xen(), bound);
        self.step("send to an unmasked port", format!("{}, {}", outcome(&sent), self.subject.take_upcall()));
        let sent = call::send(self.xen(), bound);
        self.step("send while it is pending", format!("{}, {}", outcome(&sent), self.subject.take_upcall()));
        self.subject.take(offer);
        shared.evtchn_mask[word].fetch_or(bit, SeqCst);
        let sent = call::send(self.xen(), bound);
        self.step("send to a masked port", format!("{}, {}", outcome(&sent), self.subject.take_upcall()));
        let unmasked = call::unmask(self.xen(), offer);
        let upcall = self.subject.take_upcall();
        self.step("unmask a pending port", format!("{}, {upcall}, {}", outcome(&unmasked), self.subject.take(offer)));
        let is_masked = shared.evtchn_mask[word].load(SeqCst) & bit != 0;
        self.step("the mask bit after unmask", is_masked);
        let unmasked = call::unmask(self.xen(), offer);
        self.step("unmask an unmasked port", format!("{}, {}", outcome(&unmasked), self.subject.take_upcall()));
        self.step("unmask port 0", outcome(&call::unmask(self.xen(), Port(0))));
        self.step("unmask a closed port", outcome(&call::unmask(self.xen(), Port(bound.0 + 1))));
        self.step("unmask a port that can't be", outcome(&call::unmask(self.xen(), BEYOND)));
        self.close(&[offer, bound]);
        self.subject.take_upcall();
    }

    fn closing(&mut self) {
        let (offer, bound) = self.pair();
        let sent = call::send(self.xen(), bound);
        self.must("send", sent);
        self.step("close one end", outcome(&call::close(self.xen(), bound)));
        self.step("the other end of a closed port", self.status(offer, &[]));
        self.step("an event that was pending on the other end", self.subject.take(offer));
        self.step("status of a closed port", self.status(bound, &[]));
        self.step("send to a closed end", outcome(&call::send(self.xen(), offer)));
        self.step("close it again", outcome(&call::close(self.xen(), bound)));
        let bound = call::bind_interdomain(self.xen(), DOMID_SELF, offer);
        self.step("bind to the other end anew", outcome(&bound));
        let bound = self.must("bind_interdomain", bound);
        self.step("a port that was bound anew", if self.subject.is_pending(bound) { "pending" } else { "not pending" });
        self.step("close a pending port", outcome(&call::close(self.xen(), bound)));
        self.step("a pending port that was closed", self.subject.take(bound));
        self.close(&[offer]);
        self.step("close port 0", outcome(&call::close(self.xen(), Port(0))));
        self.step("close a port that can't be", outcome(&call::close(self.xen(), BEYOND)));
        self.step("status of port 0", self.status(Port(0), &[]));
        self.step("status of a port that can't be", self.status(BEYOND, &[]));
    }

    fn interrupts(&mut self) {
        let timer = call::bind_virq(self.xen(), VIRQ_TIMER, 0);
        self.step("bind_virq of the timer", outcome(&timer));
        let timer = self.must("bind_virq", timer);
        self.step("status of the timer's port", self.status(timer, &[]));
        self.step("bind_virq twice", outcome(&call::bind_virq(self.xen(), VIRQ_TIMER, 0)));
        self.step("bind_virq on no such vcpu", outcome(&call::bind_virq(self.xen(), VIRQ_TIMER, 40)));
        self.step("bind_virq of number 24", outcome(&call::bind_virq(self.xen(), NR_VIRQS, 0)));
        self.step("bind_virq of number 4294967295", outcome(&call::bind_virq(self.xen(), u32::MAX, 0)));
        self.step("bind_virq of a global one on vcpu 1", outcome(&call::bind_virq(self.xen(), VIRQ_DOM_EXC, 1)));
        let global = call::bind_virq(self.xen(), VIRQ_DOM_EXC, 0);
        self.step("bind_virq of a global one", outcome(&global));
        let global = self.must("bind_virq", global);
        self.step("send on the timer's port", outcome(&call::send(self.xen(), timer)));
        self.step("bind_interdomain to the timer's port", self.bind(DOMID_SELF, timer));
        self.step("bind_vcpu of the timer's port", outcome(&call::bind_vcpu(self.xen(), timer, 0)));
        self.step("bind_vcpu of a global one", outcome(&call::bind_vcpu(self.xen(), global, 0)));
        self.step("close the timer's port", outcome(&call::close(self.xen(), timer)));
        let timer = call::bind_virq(self.xen(), VIRQ_TIMER, 0);
        self.step("bind_virq after close", outcome(&timer));
        let timer = self.must("bind_virq", timer);
        self.close(&[timer, global]);
        let pirq = call::bind_pirq(self.xen(), 100_000, 0);
        self.step("bind_pirq of an interrupt that can't be", outcome(&pirq));
    }

    fn signals(&mut self) {
        let ipi = call::bind_ipi(self.xen(), 0);
        self.step("bind_ipi", outcome(&ipi));
        let ipi = self.must("bind_ipi", ipi);
        self.step("status of an ipi port", self.status(ipi, &[]));
        self.step("send on an ipi port", outcome(&call::send(self.xen(), ipi)));
        self.step("an ipi port that was signalled", self.subject.take(ipi));
        self.step("bind_vcpu of an ipi port", outcome(&call::bind_vcpu(self.xen(), ipi, 0)));
        self.step("bind_interdomain to an ipi port", self.bind(DOMID_SELF, ipi));
        let second = call::bind_ipi(self.xen(), 0);
        self.step("bind_ipi twice", outcome(&second));
        let second = self.must("bind_ipi", second);
        self.step("bind_ipi on no such vcpu", outcome(&call::bind_ipi(self.xen(), 40)));
        self.close(&[ipi, second]);
    }

    fn vcpus(&mut self) {
        let (offer, bound) = self.pair();
        self.step("bind_vcpu", outcome(&call::bind_vcpu(self.xen(), bound, 0)));
        self.step("bind_vcpu to no such vcpu", outcome(&call::bind_vcpu(self.xen(), bound, 40)));
        self.close(&[bound]);
        self.step("bind_vcpu of an unbound port", outcome(&call::bind_vcpu(self.xen(), offer, 0)));
        self.close(&[offer]);
        self.step("bind_vcpu of a closed port", outcome(&call::bind_vcpu(self.xen(), offer, 0)));
        self.step("bind_vcpu of port 0", outcome(&call::bind_vcpu(self.xen(), Port(0), 0)));
        self.step("bind_vcpu of a port that can't be", outcome(&call::bind_vcpu(self.xen(), BEYOND, 0)));
    }

    fn odds(&mut self) {
        // SAFETY: no such command, so the argument is not looked at.
        let ret = unsafe { self.subject.raw(Nr::EVENT_CHANNEL_OP, [99, 0, 0, 0, 0]) };
        self.step("an unknown command", ret);
        // SAFETY: no domain can read or write there, so nothing is.
        let ret = unsafe { self.subject.raw(Nr::EVENT_CHANNEL_OP, [EVTCHNOP_send as usize, XENS, 0, 0, 0]) };
        self.step("an argument in Xen's memory", ret);
        let mut of_nobody = EvtchnStatus {
            dom: NOBODY,
            port: Port(1),
            // SAFETY: integers only.
            ..unsafe { core::mem::zeroed() }
        };
        // SAFETY: the command's structure, without pointers.
        let ret = unsafe { self.subject.op(Nr::EVENT_CHANNEL_OP, EVTCHNOP_status, &mut of_nobody, 0) };
        self.step("status of a port of no such domain", ret);
        let (offer, _) = self.pair();
        self.step("set_priority with two-level events", outcome(&call::set_priority(self.xen(), offer, 0)));
        let mut reset = EvtchnReset { dom: NOBODY };
        // SAFETY: the command's structure, without pointers.
        let ret = unsafe { self.subject.op(Nr::EVENT_CHANNEL_OP, EVTCHNOP_reset, &mut reset, 0) };
        self.step("reset of no such domain", ret);
        self.step("reset", outcome(&call::reset(self.xen())));
        self.step("status of a port after reset", self.status(offer, &[]));
    }

    /// Takes all the ports that there are. The highest is part of the ABI.
    fn all_ports(&mut self) {
        let mut ports = Vec::new();
        let refused = loop {
            match call::alloc_unbound(self.xen(), DOMID_SELF) {
                Ok(port) => ports.push(port),
                Err(error) => break outcome::<()>(&Err(error)),
            }
        };
        let highest = ports.last().map_or(0, |port| port.0);
        self.step("alloc_unbound when there is none left", format!("{refused}, the last was {highest}"));
        let bound = ports.first().map_or_else(String::new, |port| self.bind(DOMID_SELF, *port));
        self.step("bind_interdomain when there is none left", bound);
        self.step("bind_virq when there is none left", outcome(&call::bind_virq(self.xen(), VIRQ_TIMER, 0)));
        self.step("bind_ipi when there is none left", outcome(&call::bind_ipi(self.xen(), 0)));
        self.close(&ports);
    }
}
