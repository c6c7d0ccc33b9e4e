//! What the machine's lock guards: the domains, the clock, and the work between their hypercalls.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar};
use std::time::Instant;

use hypercall::{DomId, Mfn};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use xen_sys::errno::*;
use xen_sys::xen::{DOMID_SELF, SharedInfo, VIRQ_TIMER};

use crate::config::{Config, Mode};
use crate::domain::Identity;
use crate::events::{Channels, Event};
use crate::faults::Faults;
use crate::grants::Grants;
use crate::ledger::Ledger;
use crate::life::Start;
use crate::memory::Frames;
use crate::space::{Pte, Space};
use crate::store::Store;
use crate::suspend::Fate;
use crate::trace::Recorder;

/// Whether a domain lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// It runs.
    Running,
    /// It shut itself down, for that reason (`SHUTDOWN_…`).
    Shutdown(u32),
    /// It was killed. It is forgotten once nobody maps a page of it.
    Dead,
}

/// A domain, as the hypervisor knows it.
pub(crate) struct Dom {
    pub(crate) space: Space,
    pub(crate) channels: Channels,
    pub(crate) grants: Grants,
    pub(crate) life: Life,
    pub(crate) ledger: Ledger,
    /// Wakes the threads that wait for events of this domain.
    pub(crate) wake: Arc<Condvar>,
    /// When the timer's virtual interrupt is due.
    pub(crate) timer: Option<u64>,
    /// What the domain wrote to Xen's own console.
    pub(crate) printed: Vec<u8>,
    pub(crate) in_multicall: bool,
    /// Waits in a row that ended with nothing, and without a deadline.
    pub(crate) idle: u32,
    /// Frames that were freed while another domain mapped them.
    pub(crate) limbo: Vec<Mfn>,
    pub(crate) shared_info: Mfn,
    pub(crate) start: Option<Start>,
    /// What the handles of the domain share.
    pub(crate) identity: Option<Arc<Identity>>,
    /// What becomes of the domain when it suspends itself; `None` if nobody has said.
    pub(crate) fate: Option<Fate>,
    pub(crate) vcpus: u32,
    /// Those that have registers to run with, and those that run, a bit each.
    pub(crate) vcpus_made: u64,
    pub(crate) vcpus_up: u64,
}

impl Dom {
    pub(crate) fn is_dead(&self) -> bool {
        self.life == Life::Dead
    }

    /// Checks that there is such a vcpu, and returns its bit.
    pub(crate) fn vcpu(&self, vcpu: u32) -> Result<u64, i32> {
        if vcpu < self.vcpus { Ok(1 << vcpu) } else { Err(XEN_ENOENT) }
    }
}

enum Clock {
    Virtual(u64),
    Real(Instant),
}

/// Time at the start of a machine. Not 0, which stands for "never" in some hypercalls.
pub(crate) const BOOT_NS: u64 = 1_000_000_000;

/// Everything that the machine's lock guards.
pub(crate) struct State {
    pub(crate) frames: Frames,
    pub(crate) rng: SmallRng,
    pub(crate) domains: BTreeMap<DomId, Dom>,
    pub(crate) faults: Faults,
    pub(crate) store: Store,
    /// Memory of domains that are no more.
    pub(crate) graves: BTreeMap<DomId, Space>,
    /// What the domains had cost that are no more.
    pub(crate) spent: Ledger,
    /// Events that come late, or once more.
    pub(crate) late: Vec<Event>,
    /// Events so far.
    pub(crate) events: u64,
    pub(crate) trace: Recorder,
    pub(crate) violations: Vec<String>,
    /// Whether all domains are auto-translated.
    pub(crate) auto_translated: bool,
    clock: Clock,
    tick_ns: u64,
    /// Wakes the machine's thread.
    service: Arc<Condvar>,
    pub(crate) stopping: bool,
    pub(crate) next_domain: u16,
    /// Domains that were restored as others, since somebody last asked: the old number, the new one, and what the new one starts with.
    pub(crate) restored: Vec<(DomId, DomId, Start)>,
}

impl State {
    /// Makes the state of a machine without domains. `service` wakes its thread, if it has one.
    pub(crate) fn new(config: &Config, service: Arc<Condvar>) -> Self {
        Self {
            frames: Frames::new(config.backing, config.frames),
            rng: SmallRng::seed_from_u64(config.seed),
            domains: BTreeMap::new(),
            faults: Faults::default(),
            store: Store::new(),
            graves: BTreeMap::new(),
            spent: Ledger::default(),
            late: Vec::new(),
            events: 0,
            trace: Recorder::default(),
            violations: Vec::new(),
            auto_translated: config.auto_translated,
            clock: match config.mode {
                Mode::Deterministic => Clock::Virtual(BOOT_NS),
                Mode::Threaded => Clock::Real(Instant::now()),
            },
            tick_ns: config.tick_ns,
            service,
            stopping: false,
            next_domain: 0,
            restored: Vec::new(),
        }
    }

    /// Returns a domain that there is.
    ///
    /// # Panics
    /// If there is none of that number: callers have looked.
    pub(crate) fn dom(&mut self, dom: DomId) -> &mut Dom {
        self.domains.get_mut(&dom).expect("a domain that there is")
    }

    /// Returns the memory of a domain, dead or alive.
    ///
    /// # Panics
    /// If there never was a domain of that number.
    pub(crate) fn space(&self, dom: DomId) -> &Space {
        let alive = self.domains.get(&dom).map(|dom| &dom.space);
        alive.or_else(|| self.graves.get(&dom)).expect("a domain that there is or was")
    }

    /// Returns the domain that a number means, which may be `DOMID_SELF`.
    pub(crate) fn resolve(&self, caller: DomId, dom: DomId) -> Option<DomId> {
        let dom = if dom == DOMID_SELF { caller } else { dom };
        self.domains.contains_key(&dom).then_some(dom)
    }

    /// Checks that the caller may act on a domain: on itself, and domain 0 on all.
    pub(crate) fn target(&self, caller: DomId, dom: DomId) -> Result<(), i32> {
        if caller == dom || caller == DomId(0) { Ok(()) } else { Err(XEN_EPERM) }
    }

    /// Returns the page that the hypervisor shares with a domain.
    pub(crate) fn shared_info<'a>(&mut self, dom: DomId) -> &'a SharedInfo {
        let mfn = self.dom(dom).shared_info;
        // SAFETY: the page was made with the domain and lives as long as the machine, which outlives every borrow that is
        // made under its lock; it is nothing but atomics.
        unsafe { self.frames.ptr(mfn).cast().as_ref() }
    }

    /// Maps a frame into a domain. What was mapped there is lost, as on Xen.
    pub(crate) fn map_page(&mut self, dom: DomId, addr: usize, pte: Pte) {
        let Self { frames, domains, .. } = self;
        domains.get_mut(&dom).expect("a domain that there is").space.map(frames, addr, pte);
    }

    pub(crate) fn violation(&mut self, what: String) {
        self.violations.push(what);
    }

    /// Returns the time in nanoseconds.
    pub(crate) fn now(&self) -> u64 {
        match self.clock {
            Clock::Virtual(now) => now,
            Clock::Real(start) => BOOT_NS + start.elapsed().as_nanos() as u64,
        }
    }

    /// Returns the time, and lets a little of it pass.
    pub(crate) fn look_at_clock(&mut self) -> u64 {
        if let Clock::Virtual(now) = &mut self.clock {
            *now += self.tick_ns;
        }
        self.now()
    }

    /// Lets virtual time jump.
    pub(crate) fn sleep_until(&mut self, time: u64) {
        if let Clock::Virtual(now) = &mut self.clock {
            *now = time.max(*now);
        }
    }

    /// Lets virtual time pass, and does what is due meanwhile.
    pub(crate) fn advance(&mut self, nanoseconds: u64) {
        let end = self.now() + nanoseconds;
        while let Some(time) = self.next_timer().filter(|time| *time <= end) {
            self.sleep_until(time);
            while self.step() {}
        }
        self.sleep_until(end);
    }

    /// Returns what all domains have cost so far, the dead ones too.
    pub(crate) fn ledger(&self) -> Ledger {
        let mut sum = self.spent.clone();
        self.domains.values().for_each(|dom| sum.add(&dom.ledger));
        sum
    }

    pub(crate) fn wake_machine(&self) {
        self.service.notify_all();
    }

    /// Returns when the next timer is due.
    pub(crate) fn next_timer(&self) -> Option<u64> {
        self.domains.values().filter_map(|dom| dom.timer).min()
    }

    /// Does one piece of the machine's own work, drawn by lot among those there are. Tells whether there was any.
    pub(crate) fn step(&mut self) -> bool {
        enum Work {
            Store(DomId),
            Timer(DomId),
            Late(usize),
        }
        let now = self.now();
        let mut work: Vec<Work> = self.store.ready(&self.frames).map(Work::Store).collect();
        let due = |dom: &Dom| dom.timer.is_some_and(|time| time <= now);
        work.extend(self.domains.iter().filter(|(_, dom)| due(dom)).map(|(id, _)| Work::Timer(*id)));
        work.extend((0..self.late.len()).map(Work::Late));
        if work.is_empty() {
            return false;
        }
        match work.swap_remove(self.rng.random_range(0..work.len())) {
            Work::Store(dom) => self.serve(dom),
            Work::Timer(dom) => {
                self.dom(dom).timer = None;
                self.raise_virq(dom, 0, VIRQ_TIMER);
            }
            Work::Late(index) => {
                let event = self.late.swap_remove(index);
                if self.domains.contains_key(&event.dom) {
                    self.deliver(event);
                }
            }
        }
        true
    }
}
