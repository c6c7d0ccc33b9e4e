//! Event channels, two-level: ports, and the bits in the page that Xen shares with a domain.
//!
//! Rules and error numbers are those of Xen 4.17. What may surprise: an event to an unbound port is dropped without an error,
//! nobody is told when the other end closes, and a port whose consumer is the hypervisor itself (here: xenstored's end of a
//! store ring) can't be used by the domain that it stands in.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::SeqCst;

use hypercall::{DomId, Port};
use xen_sys::errno::*;
use xen_sys::event_channel::*;
use xen_sys::xen::*;

use crate::faults::Delivery;
use crate::state::State;
use crate::trace::{Arrival, What};

/// Ports whose records Xen allocates together; a port below the last such record is valid, even if it is closed.
const BUCKET: usize = 64;

/// What a port is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    Free,
    Reserved,
    Unbound(DomId),
    Interdomain(DomId, Port),
    Virq(u32),
    Ipi,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Chan {
    pub(crate) state: Use,
    vcpu: u32,
    /// The domain whose store ring this end serves, if the consumer is xenstored.
    pub(crate) serves: Option<DomId>,
}

const FREE: Chan = Chan { state: Use::Free, vcpu: 0, serves: None };

/// An event on its way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Event {
    number: u64,
    pub(crate) dom: DomId,
    port: Port,
}

/// The ports of a domain.
pub(crate) struct Channels {
    ports: Vec<Chan>,
    /// The largest number a port may have.
    max: u32,
    virqs: BTreeMap<(u32, u32), Port>,
}

impl Channels {
    pub(crate) fn new(max: u32) -> Self {
        let mut ports = vec![FREE; BUCKET];
        ports[0].state = Use::Reserved;
        Self { ports, max, virqs: BTreeMap::new() }
    }

    fn get(&self, port: Port) -> Result<Chan, i32> {
        self.ports.get(port.0 as usize).copied().ok_or(XEN_EINVAL)
    }

    /// Finds a free port and makes it valid.
    fn find(&mut self) -> Result<Port, i32> {
        let last = (self.max as usize).min(EVTCHN_2L_NR_CHANNELS - 1);
        let index = self.ports.iter().position(|chan| chan.state == Use::Free).unwrap_or(self.ports.len());
        if index > last {
            return Err(XEN_ENOSPC);
        }
        if index == self.ports.len() {
            self.ports.resize(index + BUCKET, FREE);
        }
        Ok(Port(index as u32))
    }

    /// Returns the other end of a bound port.
    pub(crate) fn remote(&self, port: Port) -> Option<(DomId, Port)> {
        match self.get(port).ok()?.state {
            Use::Interdomain(dom, port) => Some((dom, port)),
            _ => None,
        }
    }

    /// Returns the ports in use; those that xenstored serves are not the domain's.
    pub(crate) fn open(&self) -> impl Iterator<Item = (Port, Use)> {
        let open = |chan: &Chan| !matches!(chan.state, Use::Free | Use::Reserved) && chan.serves.is_none();
        (0..).map(Port).zip(&self.ports).filter(move |(_, chan)| open(chan)).map(|(port, chan)| (port, chan.state))
    }
}

/// Virtual interrupts that each vcpu has of its own.
fn is_per_vcpu(virq: u32) -> bool {
    matches!(virq, VIRQ_TIMER | VIRQ_DEBUG | VIRQ_XENOPROF | VIRQ_XENPMU)
}

impl State {
    fn chan(&mut self, dom: DomId, port: Port) -> &mut Chan {
        &mut self.dom(dom).channels.ports[port.0 as usize]
    }

    /// Offers a port of `op.dom` to `op.remote_dom`.
    pub(crate) fn alloc_unbound(&mut self, caller: DomId, op: &mut EvtchnAllocUnbound) -> Result<(), i32> {
        let dom = self.resolve(caller, op.dom).ok_or(XEN_ESRCH)?;
        let remote = if op.remote_dom == DOMID_SELF { caller } else { op.remote_dom };
        let port = self.find_port(dom)?;
        self.target(caller, dom)?;
        *self.chan(dom, port) = Chan { state: Use::Unbound(remote), ..FREE };
        op.port = port;
        Ok(())
    }

    fn find_port(&mut self, dom: DomId) -> Result<Port, i32> {
        let dom = self.dom(dom);
        if dom.is_dead() { Err(XEN_EINVAL) } else { dom.channels.find() }
    }

    /// Binds a new port to one that was offered, and signals it, since events may have been lost.
    pub(crate) fn bind_interdomain(&mut self, caller: DomId, op: &mut EvtchnBindInterdomain) -> Result<(), i32> {
        let remote = self.resolve(caller, op.remote_dom).ok_or(XEN_ESRCH)?;
        let local = self.find_port(caller)?;
        if self.dom(remote).channels.get(op.remote_port)?.state != Use::Unbound(caller) {
            return Err(XEN_EINVAL);
        }
        *self.chan(caller, local) = Chan { state: Use::Interdomain(remote, op.remote_port), ..FREE };
        self.chan(remote, op.remote_port).state = Use::Interdomain(caller, local);
        op.local_port = local;
        self.raise(None, caller, local);
        Ok(())
    }

    /// Makes xenstored the consumer of domain 0's `port`, which is an end of a domain's store channel.
    pub(crate) fn serve_store(&mut self, port: Port, dom: DomId) {
        self.chan(DomId(0), port).serves = Some(dom);
    }

    /// Closes xenstored's end of a dead domain's store channel.
    pub(crate) fn unserve_store(&mut self, dom: DomId) {
        for chan in self.dom(DomId(0)).channels.ports.iter_mut().filter(|chan| chan.serves == Some(dom)) {
            *chan = FREE;
        }
    }

    pub(crate) fn bind_virq(&mut self, caller: DomId, op: &mut EvtchnBindVirq) -> Result<(), i32> {
        if op.virq >= NR_VIRQS || (!is_per_vcpu(op.virq) && op.vcpu != 0) {
            return Err(XEN_EINVAL);
        }
        self.dom(caller).vcpu(op.vcpu)?;
        if self.dom(caller).channels.virqs.contains_key(&(op.vcpu, op.virq)) {
            return Err(XEN_EEXIST);
        }
        op.port = self.find_port(caller)?;
        *self.chan(caller, op.port) = Chan { state: Use::Virq(op.virq), vcpu: op.vcpu, serves: None };
        self.dom(caller).channels.virqs.insert((op.vcpu, op.virq), op.port);
        Ok(())
    }

    pub(crate) fn bind_ipi(&mut self, caller: DomId, op: &mut EvtchnBindIpi) -> Result<(), i32> {
        self.dom(caller).vcpu(op.vcpu)?;
        op.port = self.find_port(caller)?;
        *self.chan(caller, op.port) = Chan { state: Use::Ipi, vcpu: op.vcpu, serves: None };
        Ok(())
    }

    pub(crate) fn bind_vcpu(&mut self, caller: DomId, op: EvtchnBindVcpu) -> Result<(), i32> {
        self.dom(caller).vcpu(op.vcpu)?;
        let chan = self.dom(caller).channels.get(op.port)?;
        let movable = match chan.state {
            Use::Virq(virq) => !is_per_vcpu(virq),
            Use::Unbound(_) | Use::Interdomain(..) => chan.serves.is_none(),
            Use::Free | Use::Reserved | Use::Ipi => false,
        };
        if !movable {
            return Err(XEN_EINVAL);
        }
        self.chan(caller, op.port).vcpu = op.vcpu;
        Ok(())
    }

    pub(crate) fn close_port(&mut self, dom: DomId, port: Port) -> Result<(), i32> {
        let chan = self.dom(dom).channels.get(port)?;
        if chan.serves.is_some() {
            return Err(XEN_EINVAL);
        }
        match chan.state {
            Use::Free | Use::Reserved => return Err(XEN_EINVAL),
            Use::Interdomain(remote, other) => {
                let other = self.chan(remote, other);
                other.state = Use::Unbound(dom);
            }
            Use::Virq(virq) => {
                self.dom(dom).channels.virqs.remove(&(chan.vcpu, virq));
            }
            Use::Unbound(_) | Use::Ipi => {}
        }
        *self.chan(dom, port) = FREE;
        self.clear_pending(dom, port);
        Ok(())
    }

    pub(crate) fn clear_pending(&mut self, dom: DomId, port: Port) {
        let (word, bit) = place(port);
        self.shared_info(dom).evtchn_pending[word].fetch_and(!bit, SeqCst);
    }

    /// Closes all ports of a domain, except those that xenstored serves.
    pub(crate) fn close_all(&mut self, dom: DomId) {
        let open: Vec<Port> = self.dom(dom).channels.open().map(|(port, _)| port).collect();
        for port in open {
            // A channel to oneself has two open ends, and both are closed, one after the other.
            self.close_port(dom, port).expect("an open port can be closed");
        }
    }

    pub(crate) fn send(&mut self, caller: DomId, port: Port) -> Result<(), i32> {
        let chan = self.dom(caller).channels.get(port)?;
        if chan.serves.is_some() {
            return Err(XEN_EINVAL);
        }
        match chan.state {
            Use::Interdomain(remote, other) => self.raise(Some((caller, port)), remote, other),
            Use::Ipi => self.raise(Some((caller, port)), caller, port),
            Use::Unbound(_) => {
                self.events += 1;
                let event = self.events;
                self.note(Some(caller), || What::Sent { event, from: Some(port), to: None });
            }
            Use::Free | Use::Reserved | Use::Virq(_) => return Err(XEN_EINVAL),
        }
        Ok(())
    }

    pub(crate) fn port_status(&mut self, caller: DomId, op: &mut EvtchnStatus) -> Result<(), i32> {
        let dom = self.resolve(caller, op.dom).ok_or(XEN_ESRCH)?;
        let chan = self.dom(dom).channels.get(op.port)?;
        if chan.serves.is_some() {
            return Err(XEN_EACCES);
        }
        self.target(caller, dom)?;
        op.vcpu = chan.vcpu;
        op.status = match chan.state {
            Use::Free | Use::Reserved => EVTCHNSTAT_closed,
            Use::Unbound(dom) => {
                op.u.unbound = EvtchnStatusUnbound { dom };
                EVTCHNSTAT_unbound
            }
            Use::Interdomain(dom, port) => {
                op.u.interdomain = EvtchnStatusInterdomain { dom, port };
                EVTCHNSTAT_interdomain
            }
            Use::Virq(virq) => {
                op.u.virq = virq;
                EVTCHNSTAT_virq
            }
            Use::Ipi => EVTCHNSTAT_ipi,
        };
        Ok(())
    }

    pub(crate) fn unmask(&mut self, caller: DomId, port: Port) -> Result<(), i32> {
        let vcpu = self.dom(caller).channels.get(port)?.vcpu;
        let (word, bit) = place(port);
        let shared = self.shared_info(caller);
        let was_masked = shared.evtchn_mask[word].fetch_and(!bit, SeqCst) & bit != 0;
        if was_masked && shared.evtchn_pending[word].load(SeqCst) & bit != 0 {
            mark(shared, vcpu, word);
        }
        Ok(())
    }

    pub(crate) fn reset_ports(&mut self, caller: DomId, dom: DomId) -> Result<(), i32> {
        let dom = self.resolve(caller, dom).ok_or(XEN_ESRCH)?;
        self.target(caller, dom)?;
        if dom != caller {
            // Only for a domain that the toolstack has paused, which no domain of the mock ever is.
            return Err(XEN_EINVAL);
        }
        self.close_all(dom);
        Ok(())
    }

    /// Raises a virtual interrupt of a vcpu, if the domain has bound it.
    pub(crate) fn raise_virq(&mut self, dom: DomId, vcpu: u32, virq: u32) {
        if let Some(port) = self.dom(dom).channels.virqs.get(&(vcpu, virq)).copied() {
            self.raise(None, dom, port);
        }
    }

    /// Delivers an event, unless a fault was planned for it. `by` is the port that it was sent from, if it was sent.
    pub(crate) fn raise(&mut self, by: Option<(DomId, Port)>, dom: DomId, port: Port) {
        self.events += 1;
        let event = Event { number: self.events, dom, port };
        self.note(by.map(|(dom, _)| dom), || What::Sent {
            event: event.number,
            from: by.map(|(_, port)| port),
            to: Some((dom, port)),
        });
        match self.struck(dom, |faults| faults.event(dom)) {
            Delivery::Plain => self.deliver(event),
            Delivery::Drop => {}
            Delivery::Repeat => {
                self.deliver(event);
                self.late.push(event);
            }
            Delivery::Delay => {
                self.late.push(event);
                self.wake_machine();
            }
        }
    }

    /// Sets the bits of a pending event and wakes whoever waits.
    pub(crate) fn deliver(&mut self, Event { number, dom, port }: Event) {
        let how = self.arrive(dom, port);
        self.note(Some(dom), || What::Arrived { event: number, port, how });
    }

    fn arrive(&mut self, dom: DomId, port: Port) -> Arrival {
        let Ok(chan) = self.dom(dom).channels.get(port) else { return Arrival::Closed };
        if let Some(served) = chan.serves {
            self.store.kick(served);
            self.wake_machine();
            return Arrival::Xenstored;
        }
        if matches!(chan.state, Use::Free | Use::Reserved) {
            return Arrival::Closed;
        }
        let (word, bit) = place(port);
        let shared = self.shared_info(dom);
        if shared.evtchn_pending[word].fetch_or(bit, SeqCst) & bit != 0 {
            return Arrival::Merged;
        }
        let is_masked = shared.evtchn_mask[word].load(SeqCst) & bit != 0;
        if !is_masked {
            mark(shared, chan.vcpu, word);
        }
        self.dom(dom).wake.notify_all();
        if is_masked { Arrival::Masked } else { Arrival::Delivered }
    }

    /// Tells whether one of `ports` has an event, or any event waits for an upcall that is not masked.
    pub(crate) fn has_event(&mut self, dom: DomId, ports: &[Port]) -> bool {
        let shared = self.shared_info(dom);
        let vcpu = &shared.vcpu_info[0];
        let upcall = vcpu.evtchn_upcall_pending.load(SeqCst) != 0 && vcpu.evtchn_upcall_mask.load(SeqCst) == 0;
        upcall || ports.iter().any(|port| is_pending(shared, *port))
    }

    /// Tells whether the port may be polled, and whether it has an event.
    pub(crate) fn poll_port(&mut self, dom: DomId, port: Port) -> Result<bool, i32> {
        match self.dom(dom).channels.get(port)?.state {
            Use::Free | Use::Reserved => Err(XEN_EINVAL),
            _ => Ok(is_pending(self.shared_info(dom), port)),
        }
    }
}

fn is_pending(shared: &SharedInfo, port: Port) -> bool {
    let (word, bit) = place(port);
    shared.evtchn_pending.get(word).is_some_and(|pending| pending.load(SeqCst) & bit != 0)
}

/// Returns the word and the bit of a port.
fn place(port: Port) -> (usize, usize) {
    let bits = usize::BITS as usize;
    (port.0 as usize / bits, 1 << (port.0 as usize % bits))
}

/// Says in the vcpu's own record that a word has an event.
fn mark(shared: &SharedInfo, vcpu: u32, word: usize) {
    let info = &shared.vcpu_info[vcpu as usize];
    if info.evtchn_pending_sel.fetch_or(1 << word, SeqCst) & (1 << word) == 0 {
        info.evtchn_upcall_pending.store(1, SeqCst);
    }
}
