//! Scenarios under faults: they may fail, but they say so, and leave nothing behind. And plans of faults, which shrink.
#![cfg(not(target_os = "none"))]

use hypercall::DomId;
use hypercall::event::Channel;
use mock::{Fault, Kind, Machine, Refusal};
use suite::faults::{attempt, draw, hunt, judge, scenario, shrink, sweep};
use suite::on_mock::seeds;
use suite::{Failure, ensure};
use xen_sys::errno::{XEN_EAGAIN, XEN_EINVAL, XEN_ENOMEM};
use xen_sys::event_channel::EVTCHNOP_alloc_unbound;
use xenbus::store::{Store, Tx};

/// The domains of a bed's front ends and back ends.
const ENDS: [DomId; 2] = [DomId(1), DomId(2)];

/// Lets the first, the second … of each sort of thing go wrong that happens at either end of a scenario. Returns how much
/// did.
fn goes_wrong(name: &str, sorts: &[fn(DomId) -> Fault]) -> u64 {
    let trial = scenario(name);
    let code = format!("suite::faults::scenario({name:?})");
    let each = |dom| sorts.iter().map(move |sort| sort(dom));
    let count = |fault| sweep(1, fault, &code, &trial).unwrap_or_else(|failure| panic!("{name}: {failure}"));
    ENDS.into_iter().flat_map(each).map(count).sum()
}

/// What a domain asks for.
const ASKED: [fn(DomId) -> Fault; 3] = [
    |dom| Fault::Hypercall { domain: Some(dom), kind: None, nth: 1, errno: XEN_ENOMEM },
    |domain| Fault::Alloc { domain, nth: 1 },
    |dom| Fault::Request { domain: Some(dom), nth: 1, refusal: Refusal::Again },
];

/// What it is told.
const TOLD: [fn(DomId) -> Fault; 5] = [
    |dom| Fault::DropEvent { to: Some(dom), nth: 1 },
    |dom| Fault::RepeatEvent { to: Some(dom), nth: 1 },
    |dom| Fault::DelayEvent { to: Some(dom), nth: 1 },
    |dom| Fault::DropWatch { to: Some(dom), nth: 1 },
    |dom| Fault::RepeatWatch { to: Some(dom), nth: 1 },
];

#[test]
#[cfg_attr(miri, ignore = "hundreds of runs")]
fn everything_may_go_wrong_once_in_a_console() {
    let faults = goes_wrong("console", &ASKED) + goes_wrong("console", &TOLD);
    assert!(faults > 200, "{faults}");
}

#[test]
#[cfg_attr(miri, ignore = "hundreds of runs")]
fn everything_that_is_asked_may_fail_once_in_a_disk() {
    // What a disk is told, or not, `xbd_lifecycle.rs` has: with owners that go on.
    let faults = goes_wrong("readonly", &ASKED);
    assert!(faults > 200, "{faults}");
}

/// What a toolstack asks of the store may be refused, and what it calls.
#[test]
#[cfg_attr(miri, ignore = "many runs")]
fn toolstack_may_fail_at_every_step() {
    let domain = Some(DomId(0));
    for fault in [
        Fault::Hypercall { domain, kind: None, nth: 1, errno: XEN_EAGAIN },
        Fault::Request { domain, nth: 1, refusal: Refusal::Quota },
    ] {
        let faults = sweep(2, fault, r#"suite::faults::scenario("readonly")"#, &scenario("readonly")).unwrap();
        assert!(faults > 10, "{faults}");
    }
}

/// Several faults at once, in every scenario.
#[test]
#[cfg_attr(miri, ignore = "many runs")]
fn plans_of_faults_are_borne_by_every_scenario() {
    for (name, plans) in [("block", 8), ("reattach", 30), ("readonly", 60), ("console", 60), ("net", 8)] {
        let code = format!("suite::faults::scenario({name:?})");
        if let Err(failure) = hunt(seeds(1..=plans), 6, &code, &scenario(name)) {
            panic!("{name}: {failure}");
        }
    }
}

/// A program that is wrong on purpose, that of docs/testing.md: where it can't have its second port, it forgets the
/// first.
fn careless(seed: u64, plan: &[Fault]) -> Result<usize, Failure> {
    let machine = Machine::deterministic(seed);
    let node = machine.boot();
    machine.record(1000);
    plan.iter().for_each(|fault| machine.order(*fault));
    if let Ok(one) = Channel::offer(&node.events, DomId(0)) {
        match Channel::offer(&node.events, DomId(0)) {
            Ok(two) => drop((one, two)),
            Err(_) => std::mem::forget(one),
        }
    }
    let leaks = machine.leaks();
    ensure(leaks.is_empty(), format!("{leaks:?}\n{}", machine.trace()))?;
    Ok(machine.faults_happened().len())
}

const OFFER: Kind = Kind::event(EVTCHNOP_alloc_unbound);
/// The one fault that shows what is wrong with it.
const SECOND: Fault = Fault::Hypercall { domain: Some(DomId(1)), kind: Some(OFFER), nth: 2, errno: XEN_EINVAL };

/// Many faults, of which one matters.
fn many() -> Vec<Fault> {
    // Drawn ones that can't strike its ports, and the one.
    let mut plan: Vec<Fault> = draw(5, 30);
    plan.retain(|fault| !matches!(fault, Fault::Hypercall { .. }));
    plan.insert(plan.len() / 2, SECOND);
    assert!(plan.len() > 20, "{}", plan.len());
    plan
}

#[test]
#[cfg_attr(miri, ignore = "hundreds of machines")]
fn plan_of_many_faults_shrinks_to_the_one_that_matters() {
    let plan = many();
    let failure = careless(3, &plan).unwrap_err();
    let smallest = shrink(3, &plan, failure, &careless);
    assert_eq!(smallest.plan, [SECOND]);
    assert!(smallest.failure.0.contains("port 3 is open"), "{}", smallest.failure);
    assert!(smallest.trials < 60, "{} trials", smallest.trials);
}

#[test]
fn failure_under_faults_is_the_code_that_runs_its_smallest_plan_again() {
    let Failure(said) = judge(3, &many(), "careless", &careless).unwrap_err();
    let code = "  let plan = [
      Fault::Hypercall { domain: Some(DomId(1)), kind: Some(Kind::event(6)), nth: 2, errno: 22 },
  ];
  suite::faults::attempt(3, &plan, &careless).unwrap();
[Leak { domain: DomId(1), what: \"port 3 is open\" }]";
    assert!(said.starts_with("seed 3 fails under ") && said.contains("of them, 1 are left"), "{said}");
    assert!(said.contains(code), "{said}");
    // And that code does it.
    let plan = [Fault::Hypercall { domain: Some(DomId(1)), kind: Some(Kind::event(6)), nth: 2, errno: 22 }];
    assert!(attempt(3, &plan, &careless).is_err());
}

#[test]
#[cfg_attr(miri, ignore = "hundreds of machines")]
fn worked_example_of_the_documentation_says_what_it_is_said_to_say() {
    let Failure(said) = hunt(1..=100, 20, "careless", &careless).unwrap_err();
    let page = include_str!("../../../docs/testing.md");
    assert!(page.contains(&format!("```text\n{said}```")), "docs/testing.md has another text than:\n{said}");
}

/// Fails from the tenth request on, whatever is refused.
fn impatient(seed: u64, plan: &[Fault]) -> Result<usize, Failure> {
    let machine = Machine::deterministic(seed);
    let node = machine.services(machine.create(mock::DomainConfig::default()).id());
    plan.iter().for_each(|fault| machine.order(*fault));
    let mut wrong = 0;
    for round in 1..=40 {
        let refused = node.store.write(Tx::NONE, "data/round", b"").is_err();
        wrong += u32::from(refused && round >= 10);
    }
    assert!(wrong == 0, "{wrong} refused");
    Ok(machine.faults_happened().len())
}

#[test]
fn faults_that_are_left_come_as_early_as_they_may_and_a_panic_is_a_failure() {
    let plan = [33, 21, 38].map(|nth| Fault::Request { domain: None, nth, refusal: Refusal::Quota });
    let failure = attempt(1, &plan, &impatient).unwrap_err();
    assert!(failure.0.starts_with("panic: "), "{failure}");
    let smallest = shrink(1, &plan, failure, &impatient);
    assert_eq!(smallest.plan, [Fault::Request { domain: None, nth: 10, refusal: Refusal::Quota }]);
    assert_eq!(smallest.failure.0, "panic: 1 refused");
}

#[test]
fn search_for_a_smaller_plan_ends_even_where_everything_fails_or_nothing_smaller_does() {
    let plan = draw(1, 200);
    let wrong = |_: u64, _: &[Fault]| -> Result<usize, Failure> { Err(Failure::new("always")) };
    let smallest = shrink(1, &plan, Failure::new("always"), &wrong);
    assert_eq!(smallest.plan, []);
    let tied = |_: u64, plan: &[Fault]| ensure(plan.len() < 200, "all of them").map(|()| 0);
    let smallest = shrink(1, &plan, Failure::new("all of them"), &tied);
    assert_eq!(smallest.plan.len(), 200);
    assert!(smallest.trials <= 400, "{} trials", smallest.trials);
}

#[test]
fn drawn_plans_are_those_of_their_seed() {
    assert_eq!(draw(7, 50), draw(7, 50));
    assert_ne!(draw(7, 50), draw(8, 50));
    let code: Vec<String> = draw(7, 200).iter().map(|fault| fault.code()[..14].to_string()).collect();
    for kind in ["Hypercall", "Entry", "Alloc", "DropEvent", "DelayEvent", "Request", "DropWatch", "RepeatWat"] {
        assert!(code.iter().any(|code| code.contains(&kind[..kind.len().min(7)])), "no {kind}");
    }
}
