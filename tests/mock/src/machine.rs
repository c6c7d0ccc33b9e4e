//! The machine, as tests hold it.

use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use hypercall::{DomId, Gfn, GrantRef, Port};
use xen_sys::grant_table::GNTTAB_RESERVED_CONSOLE;

use crate::config::{Config, DomainConfig, Mode};
use crate::domain::Domain;
use crate::faults::{Fault, Happened};
use crate::ledger::Ledger;
use crate::shared::Shared;
use crate::state::{Life, State};
use crate::suspend::Fate;
use crate::trace::Trace;
use crate::usage::{DomainUsage, Leak, Usage};

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
        let mut state = State::new(&config, service.clone());
        state.create(&DomainConfig { max_port: 4095, ..DomainConfig::default() });
        let mark = Mutex::new(state.usage());
        let shared = Arc::new(Shared::new(state, config.mode, service));
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
        let identity = self.shared.lock().dom(id).identity.clone().expect("set when the domain was made");
        Domain::new(self.shared.clone(), identity)
    }

    /// Returns a handle of domain 0.
    pub fn dom0(&self) -> Domain {
        self.domain(DomId(0))
    }

    /// Ends a domain at once, as `xl destroy` does or a crash.
    ///
    /// # Panics
    /// If there is none of that number, or it is domain 0, without which there is no machine.
    pub fn kill(&self, id: DomId) {
        assert!(id != DomId(0), "domain 0 can't be killed");
        self.shared.lock().kill(id);
    }

    /// Decides what becomes of a domain the next time that it suspends itself: it is saved, and restored as a domain of the number that
    /// is returned, which nobody has had. So a toolstack can make its devices before it runs. Without this the number is not known
    /// before.
    ///
    /// # Panics
    /// If there is no such domain.
    pub fn restore_next(&self, id: DomId) -> DomId {
        let mut state = self.shared.lock();
        let new = state.new_number();
        state.dom(id).fate = Some(Fate::Restored(new));
        new
    }

    /// Decides that the next suspend of a domain is cancelled: nothing changes.
    ///
    /// # Panics
    /// If there is no such domain.
    pub fn cancel_next_suspend(&self, id: DomId) {
        self.shared.lock().dom(id).fate = Some(Fate::Cancelled);
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
        self.shared.lock().advance(nanoseconds);
    }

    /// Orders a fault.
    pub fn order(&self, fault: Fault) {
        self.shared.lock().faults.order(fault);
    }

    /// Takes back the faults that have not happened yet.
    pub fn cancel_faults(&self) {
        self.shared.lock().faults.cancel();
    }

    /// Returns how many ordered faults have not happened yet.
    pub fn faults_waiting(&self) -> usize {
        self.shared.lock().faults.waiting()
    }

    /// Returns the faults that have happened, in their order.
    pub fn faults_happened(&self) -> Vec<Happened> {
        self.shared.lock().faults.happened().to_vec()
    }

    /// Begins to take down what happens, from here on: the newest `entries` of it. What was taken down before is forgotten;
    /// with 0, nothing more is. As long as nothing is taken down, it costs nothing.
    pub fn record(&self, entries: usize) {
        self.shared.lock().record(entries);
    }

    /// Returns what was taken down since [`record`](Self::record).
    pub fn trace(&self) -> Trace {
        self.shared.lock().recorded()
    }

    /// Takes down whose turn it is among the programs that drive the domains from one thread; `None` at its end. A turn in
    /// which nothing has happened is forgotten.
    pub fn turn_of(&self, program: Option<&'static str>) {
        self.shared.lock().note_turn(program);
    }

    /// Returns what all domains have cost so far.
    pub fn ledger(&self) -> Ledger {
        self.shared.lock().ledger()
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
            gfn: start.console_gfn,
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
        self.follow_restored();
        usage.since(&self.mark())
    }

    /// Marks of domains that were restored are those of the domains that they are now.
    fn follow_restored(&self) {
        let restored = std::mem::take(&mut self.shared.lock().restored);
        let mut mark = self.mark();
        for (old, new, start) in restored {
            if let Some(usage) = mark.0.remove(&old) {
                // Ports of before are gone; those that it begins with are no leak.
                mark.0.insert(new, DomainUsage { ports: vec![start.store_port, start.console_port], ..usage });
            }
        }
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
    /// The ring's frame, as the domain knows it.
    pub gfn: Gfn,
    /// The port that the domain offers.
    pub port: Port,
}
