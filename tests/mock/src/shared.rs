//! The lock, and waiting.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hypercall::{DomId, Port};

use crate::config::Mode;
use crate::state::State;
use crate::trace::What;

/// What a machine and the handles of its domains share.
pub(crate) struct Shared {
    state: Mutex<State>,
    pub(crate) mode: Mode,
    service: Arc<Condvar>,
}

/// Waits without a deadline and without an event that a deterministic machine bears in a row.
const IDLE_LIMIT: u32 = 1_000;

/// How long a wait of a dead domain's thread takes at most, in real time.
const DEAD_PAUSE: Duration = Duration::from_millis(10);

impl Shared {
    pub(crate) fn new(state: State, mode: Mode, service: Arc<Condvar>) -> Self {
        Self { state: Mutex::new(state), mode, service }
    }

    /// Takes the machine's lock. A thread that panicked under it has broken nothing that matters to the others' tear-down.
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until one of the ports, or any upcall, has an event, or the deadline.
    pub(crate) fn wait(&self, dom: DomId, ports: &[Port], deadline: u64) {
        let ready = |state: &mut State| state.has_event(dom, ports);
        let mut state = self.lock();
        if !state.domains.contains_key(&dom) || state.dom(dom).is_dead() {
            self.wait_dead(state, deadline);
            return;
        }
        if ready(&mut state) {
            state.dom(dom).idle = 0;
            return;
        }
        state.dom(dom).ledger.waits += 1;
        state.note(Some(dom), || What::Waits(ports.to_vec()));
        match self.mode {
            Mode::Deterministic => Self::wait_virtual(&mut state, dom, deadline, ready),
            Mode::Threaded => state = Self::wait_real(state, dom, deadline, ready),
        }
        state.note(Some(dom), || What::Woke);
    }

    /// Whoever is left of a dead domain is not to wait for what never comes, and not to turn in a loop either.
    fn wait_dead(&self, mut state: MutexGuard<'_, State>, deadline: u64) {
        state.sleep_until(if deadline == u64::MAX { 0 } else { deadline });
        let left = deadline.saturating_sub(state.now());
        drop(state);
        if self.mode == Mode::Threaded {
            std::thread::sleep(Duration::from_nanos(left).min(DEAD_PAUSE));
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

    fn wait_real<'a>(
        mut state: MutexGuard<'a, State>,
        dom: DomId,
        deadline: u64,
        ready: impl Fn(&mut State) -> bool,
    ) -> MutexGuard<'a, State> {
        let wake = state.dom(dom).wake.clone();
        while state.domains.get(&dom).is_some_and(|dom| !dom.is_dead()) && !ready(&mut state) {
            let left = deadline.saturating_sub(state.now());
            if left == 0 {
                break;
            }
            let left = Duration::from_nanos(left);
            state = wake.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        state
    }

    /// Does the machine's work until it stops.
    pub(crate) fn work(&self) {
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
