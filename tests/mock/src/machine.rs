//! The machine: its domains, its clock, and what it does by itself between their hypercalls.

use std::collections::BTreeMap;
use std::fmt;
use std::ptr::NonNull;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hypercall::{DomId, GrantRef, Mfn, Port};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use xen_sys::errno::*;
use xen_sys::event_channel::{EvtchnAllocUnbound, EvtchnBindInterdomain};
use xen_sys::grant_table::{GNTTAB_RESERVED_CONSOLE, GNTTAB_RESERVED_XENSTORE};
use xen_sys::xen::{DOMID_SELF, SharedInfo, VIRQ_DOM_EXC, VIRQ_TIMER};

use crate::domain::Domain;
use crate::events::Channels;
use crate::faults::{Fault, Faults};
use crate::grants::Grants;
use crate::ledger::Ledger;
use crate::memory::{Backing, Frames};
use crate::space::{Pte, Space};
use crate::store::Store;

/// How time passes, and who does the machine's own work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Virtual time. The machine works only in [`Machine::step`] and while a domain waits, and what it does first is drawn
    /// from the seed. All domains are driven from one thread.
    Deterministic,
    /// Real time. A thread does the machine's work; each domain may have threads of its own.
    Threaded,
}

/// What a machine is like.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Seed of all that is drawn by lot: frame numbers, and the order of work in [`Mode::Deterministic`].
    pub seed: u64,
    /// How time passes.
    pub mode: Mode,
    /// What memory is made of.
    pub backing: Backing,
    /// Frames of the machine. They cost nothing until they are used.
    pub frames: u32,
    /// What asking for the time costs in virtual time, so that no loop that only watches the clock is endless.
    pub tick_ns: u64,
}

impl Config {
    /// A deterministic machine. Under Miri its memory is plain.
    pub const fn deterministic(seed: u64) -> Self {
        let backing = if cfg!(miri) { Backing::Plain } else { Backing::Mapped };
        let frames = if cfg!(miri) { 1 << 10 } else { 1 << 16 };
        Self { seed, mode: Mode::Deterministic, backing, frames, tick_ns: 100 }
    }

    /// A threaded machine.
    pub const fn threaded() -> Self {
        Self { mode: Mode::Threaded, ..Self::deterministic(0) }
    }

    /// The same machine with memory from the heap.
    #[must_use]
    pub const fn plain(self) -> Self {
        Self { backing: Backing::Plain, ..self }
    }
}

/// What a domain may have.
#[derive(Clone, Copy, Debug)]
pub struct DomainConfig {
    /// Own pages.
    pub pages: usize,
    /// Pages of address space for foreign pages and the grant table.
    pub unbacked: usize,
    /// The largest number of a port.
    pub max_port: u32,
    /// Frames of the grant table, of 512 entries each.
    pub grant_frames: usize,
    /// Frames of Xen's list of what the domain maps, of 256 mappings each.
    pub maptrack_frames: usize,
    /// Virtual processors. One of them runs.
    pub vcpus: u32,
}

impl Default for DomainConfig {
    /// As `xl` makes a domain that says nothing else.
    fn default() -> Self {
        let pages = if cfg!(miri) { 256 } else { 1 << 14 };
        Self { pages, unbacked: pages, max_port: 1023, grant_frames: 64, maptrack_frames: 1024, vcpus: 1 }
    }
}

/// Where a domain's store ring and console are: what `start_info` tells a PV kernel.
#[derive(Clone, Copy, Debug)]
pub struct Start {
    /// The page of the store ring.
    pub store: NonNull<u8>,
    /// The store's port.
    pub store_port: Port,
    /// Frame of the store ring.
    pub store_mfn: Mfn,
    /// Page of the first console's ring; domain 0 has none.
    pub console: Option<NonNull<u8>>,
    /// The console's port, offered to domain 0; 0 where there is no console.
    pub console_port: Port,
    /// Frame of the console's ring; 0 where there is no console.
    pub console_mfn: Mfn,
}

// SAFETY: the pointers are to pages of the domain, which are tied to no thread.
unsafe impl Send for Start {}
// SAFETY: as above.
unsafe impl Sync for Start {}

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
    limbo: Vec<Mfn>,
    shared_info: Mfn,
    start: Option<Start>,
    vcpus: u32,
}

impl Dom {
    pub(crate) fn is_dead(&self) -> bool {
        self.life == Life::Dead
    }

    /// Checks that there is such a vcpu.
    pub(crate) fn vcpu(&self, vcpu: u32) -> Result<(), i32> {
        if vcpu < self.vcpus { Ok(()) } else { Err(XEN_ENOENT) }
    }
}

enum Clock {
    Virtual(u64),
    Real(Instant),
}

/// Time at the start of a machine. Not 0, which stands for "never" in some hypercalls.
const BOOT_NS: u64 = 1_000_000_000;

/// Everything that the machine's lock guards.
pub(crate) struct State {
    pub(crate) frames: Frames,
    pub(crate) rng: SmallRng,
    pub(crate) domains: BTreeMap<DomId, Dom>,
    pub(crate) faults: Faults,
    pub(crate) store: Store,
    /// Memory of domains that are no more.
    graves: BTreeMap<DomId, Space>,
    /// Events that come once more.
    pub(crate) late: Vec<(DomId, Port)>,
    violations: Vec<String>,
    clock: Clock,
    tick_ns: u64,
    /// Wakes the machine's thread.
    service: Arc<Condvar>,
    stopping: bool,
    next_domain: u16,
}

impl State {
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

    pub(crate) fn alloc_pages(&mut self, dom: DomId, pages: usize) -> Option<NonNull<u8>> {
        if self.faults.alloc(dom) {
            return None;
        }
        let Self { frames, rng, domains, .. } = self;
        let dom = domains.get_mut(&dom).filter(|dom| !dom.is_dead())?;
        dom.space.alloc(frames, rng, pages)
    }

    pub(crate) fn alloc_unbacked(&mut self, dom: DomId, pages: usize) -> Option<NonNull<u8>> {
        if self.faults.alloc(dom) {
            return None;
        }
        self.domains.get_mut(&dom).filter(|dom| !dom.is_dead())?.space.alloc_unbacked(pages)
    }

    /// Frees own pages, and takes note if another domain can still reach one of them.
    pub(crate) fn free_pages(&mut self, dom: DomId, start: NonNull<u8>, pages: usize) {
        if !self.domains.contains_key(&dom) || self.dom(dom).is_dead() {
            return;
        }
        let granted = self.grants_of(dom);
        let mapped: BTreeMap<Mfn, (u32, DomId)> =
            self.dom(dom).grants.active.iter().map(|(gref, active)| (active.mfn, (*gref, active.user))).collect();
        let mut reachable = false;
        for addr in (0..pages).map(|index| start.addr().get() + index * hypercall::mem::PAGE_SIZE) {
            let Some(mfn) = self.dom(dom).space.frame_at(addr) else {
                self.violation(format!("domain {} freed a page at {addr:#x} that it does not have", dom.0));
                return;
            };
            if let Some((gref, user)) = mapped.get(&mfn) {
                reachable = true;
                let what = format!("domain {} freed a page while mapped: grant {gref}, by domain {}", dom.0, user.0);
                self.violation(what);
            } else if let Some(gref) = granted.get(&mfn) {
                self.violation(format!("domain {} freed a page while granted: grant {gref}", dom.0));
            }
        }
        for mfn in self.dom(dom).space.free(start, pages, !reachable) {
            if mapped.contains_key(&mfn) {
                self.frames.disown(mfn);
                self.dom(dom).limbo.push(mfn);
            } else {
                self.frames.give(mfn);
            }
        }
    }

    /// Gives back frames that were freed while mapped and are no more, and forgets a dead domain that nobody maps.
    pub(crate) fn bury(&mut self, dom: DomId) {
        let Dom { limbo, grants, life, .. } = self.dom(dom);
        let (mapped, gone): (Vec<Mfn>, Vec<Mfn>) =
            limbo.drain(..).partition(|mfn| grants.active.values().any(|active| active.mfn == *mfn));
        *limbo = mapped;
        let forgotten = *life == Life::Dead && grants.active.is_empty();
        for mfn in gone {
            self.frames.give(mfn);
        }
        if forgotten {
            // Its memory stays where its threads left it, until they are done with it.
            let grave = self.domains.remove(&dom).expect("just seen");
            self.graves.insert(dom, grave.space);
        }
    }

    /// Frees room, and takes note if something is still mapped there.
    pub(crate) fn free_unbacked(&mut self, dom: DomId, start: NonNull<u8>, pages: usize) {
        if !self.domains.contains_key(&dom) || self.dom(dom).is_dead() {
            return;
        }
        if let Some(addr) = self.dom(dom).space.mapped_within(start.addr().get(), pages).first() {
            let what = format!("domain {} freed address space with a page mapped at {addr:#x}", dom.0);
            self.violation(what);
        }
        self.dom(dom).space.free_unbacked(start, pages);
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
    fn sleep_until(&mut self, time: u64) {
        if let Clock::Virtual(now) = &mut self.clock {
            *now = time.max(*now);
        }
    }

    pub(crate) fn wake_machine(&self) {
        self.service.notify_all();
    }

    /// Returns when the next timer is due.
    fn next_timer(&self) -> Option<u64> {
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
                let (dom, port) = self.late.swap_remove(index);
                if self.domains.contains_key(&dom) {
                    self.deliver(dom, port);
                }
            }
        }
        true
    }

    /// Makes a domain with everything that it starts with.
    fn create(&mut self, config: &DomainConfig) -> DomId {
        let id = DomId(self.next_domain);
        self.next_domain += 1;
        let shared_info = self.frames.take_own(&mut self.rng, id);
        let dom = Dom {
            space: Space::new(id, self.frames.backing(), config.pages, config.unbacked),
            channels: Channels::new(config.max_port),
            grants: Grants::new(config.grant_frames, config.maptrack_frames),
            life: Life::Running,
            ledger: Ledger::default(),
            wake: Arc::new(Condvar::new()),
            timer: None,
            printed: Vec::new(),
            in_multicall: false,
            idle: 0,
            limbo: Vec::new(),
            shared_info,
            start: None,
            vcpus: config.vcpus,
        };
        self.domains.insert(id, dom);
        for vcpu in &self.shared_info(id).vcpu_info[..config.vcpus as usize] {
            vcpu.evtchn_upcall_mask.store(1, std::sync::atomic::Ordering::SeqCst);
        }
        self.grow_grants(id, 1);
        let (store, store_mfn, store_port) = self.first_ring(id, GNTTAB_RESERVED_XENSTORE);
        let mut start =
            Start { store, store_port, store_mfn, console: None, console_port: Port(0), console_mfn: Mfn(0) };
        if id != DomId(0) {
            let (console, mfn, port) = self.first_ring(id, GNTTAB_RESERVED_CONSOLE);
            (start.console, start.console_mfn, start.console_port) = (Some(console), mfn, port);
        }
        self.dom(id).start = Some(start);
        self.open_store(id, &start);
        id
    }

    /// Makes the page and the port of a ring that a domain starts with; domain 0 is to serve it.
    fn first_ring(&mut self, dom: DomId, gref: u32) -> (NonNull<u8>, Mfn, Port) {
        let page = self.alloc_pages(dom, 1).expect("a domain has at least two pages");
        let mfn = self.dom(dom).space.frame_at(page.addr().get()).expect("just allocated");
        self.write_entry(dom, gref, DomId(0), mfn);
        let mut offer = EvtchnAllocUnbound { dom, remote_dom: DomId(0), port: Port(0) };
        self.alloc_unbound(DomId(0), &mut offer).expect("a new domain has ports");
        (page, mfn, offer.port)
    }

    /// Connects a domain to xenstored.
    fn open_store(&mut self, dom: DomId, start: &Start) {
        let mut bind = EvtchnBindInterdomain { remote_dom: dom, remote_port: start.store_port, local_port: Port(0) };
        self.bind_interdomain(DomId(0), &mut bind).expect("the port was offered to domain 0");
        // The event that binding raises is for whoever binds; xenstored looks at the ring anyway.
        let (word, bit) = (bind.local_port.0 as usize / usize::BITS as usize, bind.local_port.0 % usize::BITS);
        let shared = self.shared_info(DomId(0));
        shared.evtchn_pending[word].fetch_and(!(1 << bit), std::sync::atomic::Ordering::SeqCst);
        self.serve_store(bind.local_port, dom);
        self.store.open(dom, bind.local_port, start);
    }

    /// Ends a domain: its ports are closed, its mappings released, its grants can't be mapped any more, and xenstored tells.
    fn kill(&mut self, dom: DomId) {
        if self.dom(dom).is_dead() {
            return;
        }
        self.close_all(dom);
        self.dom(dom).life = Life::Dead;
        self.dom(dom).timer = None;
        self.release_mappings(dom);
        self.dom(dom).wake.notify_all();
        self.store.close(dom);
        self.raise_virq(DomId(0), 0, VIRQ_DOM_EXC);
        self.wake_machine();
        self.bury(dom);
    }

    fn usage(&self) -> Usage {
        let of = |dom: &Dom| DomainUsage {
            ports: dom.channels.open().map(|(port, _)| port).collect(),
            grants_in_use: dom.grants.active.keys().copied().map(GrantRef).collect(),
            mappings: dom.grants.mappings.values().map(|map| (map.dom, GrantRef(map.gref))).collect(),
            pages: dom.space.own_pages(),
            unbacked_pages: dom.space.unbacked_pages(),
        };
        Usage(self.domains.iter().filter(|(_, dom)| !dom.is_dead()).map(|(id, dom)| (*id, of(dom))).collect())
    }
}

/// What the domains hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage(pub BTreeMap<DomId, DomainUsage>);

/// What a domain holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DomainUsage {
    /// Ports that are not closed.
    pub ports: Vec<Port>,
    /// Own grants that somebody uses.
    pub grants_in_use: Vec<GrantRef>,
    /// Foreign grants that it maps.
    pub mappings: Vec<(DomId, GrantRef)>,
    /// Own pages.
    pub pages: usize,
    /// Pages of address space.
    pub unbacked_pages: usize,
}

/// Something that a domain holds now and did not hold before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leak {
    /// The domain.
    pub domain: DomId,
    /// What.
    pub what: String,
}

impl fmt::Display for Leak {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "domain {}: {}", self.domain.0, self.what)
    }
}

impl Usage {
    /// Returns what is held here and was not held at `earlier`.
    pub fn since(&self, earlier: &Self) -> Vec<Leak> {
        let mut leaks = Vec::new();
        for (domain, now) in &self.0 {
            let before = earlier.0.get(domain).cloned().unwrap_or_default();
            let mut leak = |what: String| leaks.push(Leak { domain: *domain, what });
            for port in now.ports.iter().filter(|port| !before.ports.contains(port)) {
                leak(format!("port {} is open", port.0));
            }
            for gref in now.grants_in_use.iter().filter(|gref| !before.grants_in_use.contains(gref)) {
                leak(format!("grant {} is in use", gref.0));
            }
            if now.mappings.len() > before.mappings.len() {
                leak(format!("maps grants {:?}, before {:?}", now.mappings, before.mappings));
            }
            if now.pages > before.pages {
                leak(format!("{} pages, before {}", now.pages, before.pages));
            }
            if now.unbacked_pages > before.unbacked_pages {
                leak(format!("{} pages of address space, before {}", now.unbacked_pages, before.unbacked_pages));
            }
        }
        leaks
    }
}

/// What a machine and the handles of its domains share.
pub(crate) struct Shared {
    state: Mutex<State>,
    pub(crate) mode: Mode,
    service: Arc<Condvar>,
}

/// Waits without a deadline and without an event that a deterministic machine bears in a row.
const IDLE_LIMIT: u32 = 10_000;

impl Shared {
    /// Takes the machine's lock. A thread that panicked under it has broken nothing that matters to the others' tear-down.
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `ready`, or the deadline.
    pub(crate) fn wait(&self, dom: DomId, deadline: u64, ready: impl Fn(&mut State) -> bool) {
        let mut state = self.lock();
        if !state.domains.contains_key(&dom) || state.dom(dom).is_dead() {
            // Whoever is left of a dead domain is not to wait for what never comes.
            state.sleep_until(if deadline == u64::MAX { 0 } else { deadline });
            return;
        }
        if ready(&mut state) {
            state.dom(dom).idle = 0;
            return;
        }
        state.dom(dom).ledger.waits += 1;
        match self.mode {
            Mode::Deterministic => Self::wait_virtual(&mut state, dom, deadline, ready),
            Mode::Threaded => Self::wait_real(state, dom, deadline, ready),
        }
    }

    fn wait_virtual(state: &mut State, dom: DomId, deadline: u64, ready: impl Fn(&mut State) -> bool) {
        while state.now() < deadline && state.domains.contains_key(&dom) && !ready(state) {
            if state.step() {
                continue;
            }
            let next = state.next_timer().unwrap_or(u64::MAX).min(deadline);
            if next == u64::MAX {
                let idle = &mut state.dom(dom).idle;
                *idle += 1;
                assert!(*idle < IDLE_LIMIT, "domain {} waits for ever: nothing is left to happen", dom.0);
                return;
            }
            state.sleep_until(next);
        }
        if let Some(dom) = state.domains.get_mut(&dom) {
            dom.idle = 0;
        }
    }

    fn wait_real(mut state: MutexGuard<'_, State>, dom: DomId, deadline: u64, ready: impl Fn(&mut State) -> bool) {
        let wake = state.dom(dom).wake.clone();
        while state.domains.get(&dom).is_some_and(|dom| !dom.is_dead()) && !ready(&mut state) {
            let left = deadline.saturating_sub(state.now());
            if left == 0 {
                break;
            }
            let left = Duration::from_nanos(left);
            state = wake.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Does the machine's work until it stops.
    fn work(&self) {
        let _pause = crate::alloc::Pause::new();
        let mut state = self.lock();
        while !state.stopping {
            if state.step() {
                // Let the domains have the lock between two steps.
                drop(state);
                state = self.lock();
                continue;
            }
            let idle = Duration::from_secs(1);
            let left = state.next_timer().map_or(idle, |time| Duration::from_nanos(time.saturating_sub(state.now())));
            state = self.service.wait_timeout(state, left.min(idle)).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// A machine with a mock hypervisor, xenstored, and domain 0.
///
/// It is the owner: when it is dropped, its own thread ends, and a violation that was not looked at fails the test. Handles
/// of domains may live longer.
pub struct Machine {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    mark: Mutex<Usage>,
    pub(crate) nodes: crate::node::Nodes,
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Machine").field("mode", &self.shared.mode).finish_non_exhaustive()
    }
}

impl Machine {
    /// Starts a machine. It has domain 0.
    ///
    /// # Panics
    /// If the host gives no memory or no thread.
    pub fn new(config: Config) -> Self {
        let service = Arc::new(Condvar::new());
        let clock = match config.mode {
            Mode::Deterministic => Clock::Virtual(BOOT_NS),
            Mode::Threaded => Clock::Real(Instant::now()),
        };
        let mut state = State {
            frames: Frames::new(config.backing, config.frames),
            rng: SmallRng::seed_from_u64(config.seed),
            domains: BTreeMap::new(),
            faults: Faults::default(),
            store: Store::new(),
            graves: BTreeMap::new(),
            late: Vec::new(),
            violations: Vec::new(),
            clock,
            tick_ns: config.tick_ns,
            service: service.clone(),
            stopping: false,
            next_domain: 0,
        };
        state.create(&DomainConfig { max_port: 4095, ..DomainConfig::default() });
        let mark = Mutex::new(state.usage());
        let shared = Arc::new(Shared { state: Mutex::new(state), mode: config.mode, service });
        let thread = (config.mode == Mode::Threaded).then(|| {
            let shared = shared.clone();
            std::thread::Builder::new().name("machine".into()).spawn(move || shared.work()).expect("a thread")
        });
        Self { shared, thread, mark, nodes: crate::node::Nodes::default() }
    }

    /// Starts a deterministic machine.
    pub fn deterministic(seed: u64) -> Self {
        Self::new(Config::deterministic(seed))
    }

    /// Starts a threaded machine.
    pub fn threaded() -> Self {
        Self::new(Config::threaded())
    }

    /// Makes a domain as a toolstack does: with a store ring, a console, and its home in the store.
    ///
    /// # Panics
    /// If the machine has no frame left for it.
    pub fn create(&self, config: DomainConfig) -> Domain {
        let mut state = self.shared.lock();
        let id = state.create(&config);
        let usage = state.usage();
        self.mark().0.extend(usage.0.into_iter().filter(|(dom, _)| *dom == id));
        drop(state);
        self.domain(id)
    }

    /// Returns a handle of a domain.
    ///
    /// # Panics
    /// If there is none of that number.
    pub fn domain(&self, id: DomId) -> Domain {
        let start = self.shared.lock().dom(id).start.expect("set when the domain was made");
        Domain::new(self.shared.clone(), id, start)
    }

    /// Returns a handle of domain 0.
    pub fn dom0(&self) -> Domain {
        self.domain(DomId(0))
    }

    /// Ends a domain at once, as `xl destroy` does or a crash.
    ///
    /// # Panics
    /// If there is none of that number.
    pub fn kill(&self, id: DomId) {
        self.shared.lock().kill(id);
    }

    /// Tells whether a domain lives; `None` if there is none of that number.
    pub fn life(&self, id: DomId) -> Option<Life> {
        self.shared.lock().domains.get(&id).map(|dom| dom.life)
    }

    /// Does one piece of the machine's own work: a request of xenstored, a timer, a late event. Tells whether there was
    /// any. A threaded machine does it by itself.
    pub fn step(&self) -> bool {
        self.shared.lock().step()
    }

    /// Does all of the machine's work that there is.
    pub fn settle(&self) {
        while self.step() {}
    }

    /// Lets virtual time pass, and fires the timers that are due.
    pub fn advance(&self, nanoseconds: u64) {
        let mut state = self.shared.lock();
        let end = state.now() + nanoseconds;
        while let Some(time) = state.next_timer().filter(|time| *time <= end) {
            state.sleep_until(time);
            while state.step() {}
        }
        state.sleep_until(end);
    }

    /// Orders a fault.
    pub fn order(&self, fault: Fault) {
        self.shared.lock().faults.order(fault);
    }

    /// Returns how many ordered faults have not happened yet.
    pub fn faults_waiting(&self) -> usize {
        self.shared.lock().faults.waiting()
    }

    /// Returns what all domains have cost so far.
    pub fn ledger(&self) -> Ledger {
        let state = self.shared.lock();
        let mut sum = Ledger::default();
        state.domains.values().for_each(|dom| sum.add(&dom.ledger));
        sum
    }

    /// Returns what one domain has cost so far.
    pub fn ledger_of(&self, id: DomId) -> Ledger {
        self.shared.lock().domains.get(&id).map(|dom| dom.ledger.clone()).unwrap_or_default()
    }

    /// Returns what a domain has written to Xen's own console.
    pub fn printed(&self, id: DomId) -> Vec<u8> {
        self.shared.lock().domains.get(&id).map(|dom| dom.printed.clone()).unwrap_or_default()
    }

    /// Tells where a domain's first console is, for a back end in domain 0: the page by grant 0, the port by binding to it.
    ///
    /// # Panics
    /// If there is no such domain.
    pub fn console(&self, id: DomId) -> Console {
        let start = self.shared.lock().dom(id).start.expect("set when the domain was made");
        Console {
            domain: id,
            gref: GrantRef(GNTTAB_RESERVED_CONSOLE),
            mfn: start.console_mfn,
            port: start.console_port,
        }
    }

    /// Returns what the domains hold.
    pub fn usage(&self) -> Usage {
        self.shared.lock().usage()
    }

    /// From here on, [`leaks`](Self::leaks) compares with what is held now.
    pub fn mark_usage(&self) {
        *self.mark() = self.usage();
    }

    fn mark(&self) -> MutexGuard<'_, Usage> {
        self.mark.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes one domain's part of the mark from what it holds now.
    pub(crate) fn mark_domain(&self, id: DomId) {
        let usage = self.usage();
        self.mark().0.extend(usage.0.into_iter().filter(|(dom, _)| *dom == id));
    }

    /// Returns what is held and was not when the domain, or its services, were made, or at
    /// [`mark_usage`](Self::mark_usage).
    pub fn leaks(&self) -> Vec<Leak> {
        let usage = self.usage();
        usage.since(&self.mark())
    }

    /// Returns the rules that were broken, and forgets them.
    #[must_use = "they are forgotten"]
    pub fn violations(&self) -> Vec<String> {
        std::mem::take(&mut self.shared.lock().violations)
    }

    /// Checks that no rule was broken and nothing is leaked.
    ///
    /// # Panics
    /// If it isn't so, with all that was found.
    pub fn check_quiet(&self) {
        let mut found = self.violations();
        found.extend(self.leaks().iter().map(Leak::to_string));
        assert!(found.is_empty(), "the machine is not quiet:\n  {}", found.join("\n  "));
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.nodes.clear();
        {
            let mut state = self.shared.lock();
            state.stopping = true;
            state.wake_machine();
        }
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "the machine's thread has panicked");
        }
        let violations = self.violations();
        if !std::thread::panicking() {
            assert!(violations.is_empty(), "rules were broken:\n  {}", violations.join("\n  "));
        }
    }
}

/// A domain's first console, as domain 0 finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Console {
    /// Whose it is.
    pub domain: DomId,
    /// The grant of the ring's page.
    pub gref: GrantRef,
    /// The ring's frame.
    pub mfn: Mfn,
    /// The port that the domain offers.
    pub port: Port,
}
