//! Plans of faults: what may go wrong, drawn from a seed; and the smallest plan that still makes a run fail.
//!
//! A *trial* runs something with a seed and a plan, on a machine of its own, and tells whether it bore the faults.
//! [`hunt`] draws plans; where one fails, it [shrinks](shrink) it, and says how to run that one again.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use std::panic::{AssertUnwindSafe, catch_unwind};

use hypercall::DomId;
use mock::{Config, Fault, Kind, Refusal};
use xen_sys::errno::{XEN_EAGAIN, XEN_EINVAL, XEN_ENOMEM, XEN_ENOSPC};
use xen_sys::event_channel::{EVTCHNOP_alloc_unbound, EVTCHNOP_bind_interdomain, EVTCHNOP_close, EVTCHNOP_send};
use xen_sys::grant_table::{
    GNTST_general_error, GNTST_no_device_space, GNTTABOP_map_grant_ref, GNTTABOP_unmap_grant_ref,
};

use crate::Failure;
use crate::on_mock::MockBed;
use crate::scenarios;

/// Runs something with a seed under a plan of faults. Returns how many of them have struck.
pub trait Trial: Fn(u64, &[Fault]) -> Result<usize, Failure> {}

impl<F: Fn(u64, &[Fault]) -> Result<usize, Failure>> Trial for F {}

/// Trials that [`shrink`] makes at most.
const TRIALS: usize = 400;

/// Returns the trial of a scenario, on a [`MockBed`] of its own: it may fail, but it leaves nothing behind.
///
/// # Panics
/// If there is no scenario of that name.
pub fn scenario(name: &str) -> impl Trial {
    let mut all = scenarios::all();
    let at = all.iter().position(|scenario| scenario.name == name).expect("a scenario of that name");
    let scenario = all.swap_remove(at);
    move |seed: u64, plan: &[Fault]| {
        let mut bed = MockBed::new(Config::deterministic(seed));
        plan.iter().for_each(|fault| bed.machine.order(*fault));
        bed.bear(&scenario)
    }
}

/// Draws a plan of `count` faults in the three domains of a [`MockBed`].
pub fn draw(seed: u64, count: usize) -> Vec<Fault> {
    let mut state = seed;
    let mut below = |limit: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % limit
    };
    let mut one = || {
        let dom = DomId(below(3) as u16);
        let any = Some(dom);
        // Early ones more often than late ones: an attach is short.
        let reach = [8, 32, 128][below(3) as usize];
        let nth = 1 + below(reach);
        match below(10) {
            0 | 1 => {
                let commands = [EVTCHNOP_alloc_unbound, EVTCHNOP_bind_interdomain, EVTCHNOP_close, EVTCHNOP_send];
                let kind = match below(6) {
                    4 => Some(Kind::grant(GNTTABOP_map_grant_ref)),
                    5 => None,
                    other => Some(Kind::event(commands[other as usize])),
                };
                let errno = [XEN_ENOMEM, XEN_EAGAIN, XEN_EINVAL, XEN_ENOSPC][below(4) as usize];
                Fault::Hypercall { domain: any, kind, nth, errno }
            }
            2 => {
                let cmd = [GNTTABOP_map_grant_ref, GNTTABOP_unmap_grant_ref][below(2) as usize];
                let status = [GNTST_general_error, GNTST_no_device_space][below(2) as usize];
                Fault::Entry { domain: any, cmd, nth, status }
            }
            3 => Fault::Alloc { domain: dom, nth },
            4 => Fault::DropEvent { to: any, nth },
            5 => Fault::RepeatEvent { to: any, nth },
            6 => Fault::DelayEvent { to: any, nth },
            7 => {
                // Not ENOENT, which is no failure: a node that isn't there is waited for.
                let refusal = [Refusal::Again, Refusal::Acces, Refusal::Quota, Refusal::Io][below(4) as usize];
                Fault::Request { domain: any, nth, refusal }
            }
            8 => Fault::DropWatch { to: any, nth },
            _ => Fault::RepeatWatch { to: any, nth },
        }
    };
    (0..count).map(|_| one()).collect()
}

/// Makes a trial once. A panic is a failure, too.
///
/// # Errors
/// [`Failure`] of the trial.
pub fn attempt(seed: u64, plan: &[Fault], trial: &impl Trial) -> Result<usize, Failure> {
    catch_unwind(AssertUnwindSafe(|| trial(seed, plan))).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
        Err(Failure(format!("panic: {}", text.unwrap_or_default())))
    })
}

/// A plan that fails, and no smaller one does, as far as was tried.
#[derive(Debug)]
pub struct Smallest {
    /// The plan.
    pub plan: Vec<Fault>,
    /// How it fails.
    pub failure: Failure,
    /// How many trials it took to find.
    pub trials: usize,
}

/// Makes a plan that fails smaller, as long as it fails and the trials last: first without parts of it, then with faults
/// that come earlier.
pub fn shrink(seed: u64, plan: &[Fault], failure: Failure, trial: &impl Trial) -> Smallest {
    let mut smallest = Smallest { plan: plan.to_vec(), failure, trials: 0 };
    let fails = |smallest: &mut Smallest, plan: Vec<Fault>| {
        if smallest.trials == TRIALS {
            return false;
        }
        smallest.trials += 1;
        match attempt(seed, &plan, trial) {
            Ok(_) => false,
            Err(failure) => {
                (smallest.plan, smallest.failure) = (plan, failure);
                true
            }
        }
    };
    // Large parts first, so that a long plan is short soon; then one by one, until none can be spared.
    let mut part = smallest.plan.len().div_ceil(2);
    while part > 0 {
        let (mut at, mut any) = (0, false);
        while at < smallest.plan.len() {
            let mut less = smallest.plan.clone();
            less.drain(at..(at + part).min(less.len()));
            if fails(&mut smallest, less) {
                any = true;
            } else {
                at += part;
            }
        }
        part = if part == 1 && any { 1 } else { part / 2 };
    }
    for at in 0..smallest.plan.len() {
        loop {
            let nth = smallest.plan[at].nth();
            let mut earlier = vec![1, nth / 2, nth - 1];
            earlier.retain(|which| (1..nth).contains(which));
            let found = earlier.into_iter().any(|which| {
                let mut plan = smallest.plan.clone();
                plan[at] = plan[at].at(which);
                fails(&mut smallest, plan)
            });
            if !found {
                break;
            }
        }
    }
    smallest
}

/// Makes a trial with plans of `count` faults, one for each seed. `name` is the trial in Rust, for whoever wants to run it
/// again.
///
/// # Errors
/// [`Failure`] of the first plan that fails: with the smallest plan and the seed, as the code that runs it again.
pub fn hunt(seeds: impl IntoIterator<Item = u64>, count: usize, name: &str, trial: &impl Trial) -> Result<(), Failure> {
    seeds.into_iter().try_for_each(|seed| judge(seed, &draw(seed, count), name, trial).map(drop))
}

/// Makes a trial with one plan. Returns how many faults of it have struck.
///
/// # Errors
/// As [`hunt`].
pub fn judge(seed: u64, plan: &[Fault], name: &str, trial: &impl Trial) -> Result<usize, Failure> {
    let failure = match attempt(seed, plan, trial) {
        Ok(struck) => return Ok(struck),
        Err(failure) => failure,
    };
    let Smallest { plan: left, failure, trials } = shrink(seed, plan, failure, trial);
    let code: String = left.iter().map(|fault| format!("      {},\n", fault.code())).collect();
    Err(Failure(format!(
        "seed {seed} fails under {} fault(s); of them, {} are left after {trials} more trials:\n  \
         let plan = [\n{code}  ];\n  \
         suite::faults::attempt({seed}, &plan, &{name}).unwrap();\n{failure}",
        plan.len(),
        left.len(),
    )))
}

/// Makes a trial with one fault, which strikes the first, the second … until it strikes nothing any more. Returns how often
/// it has struck.
///
/// # Errors
/// As [`hunt`].
///
/// # Panics
/// If there is no end to it.
pub fn sweep(seed: u64, fault: Fault, name: &str, trial: &impl Trial) -> Result<u64, Failure> {
    for nth in 1..10_000 {
        if judge(seed, &[fault.at(nth)], name, trial)? == 0 {
            return Ok(nth - 1);
        }
    }
    panic!("{fault:?} strikes for ever")
}
