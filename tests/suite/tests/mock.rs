//! Every scenario on the mock, each with several seeds.
#![cfg(not(target_os = "none"))]

use mock::{Config, Domain, DomainConfig};
use suite::on_mock::{Mock, MockBed, seeds};
use suite::scenarios::{self, Scenario};

#[global_allocator]
static ALLOCATOR: mock::alloc::Counting = mock::alloc::Counting;

/// Under Miri one seed takes minutes.
const SEEDS: u64 = if cfg!(miri) { 1 } else { 32 };

fn every_seed(name: &str) {
    let all = scenarios::all();
    let scenario = all.iter().find(|scenario| scenario.name == name).expect("a scenario of that name");
    for seed in seeds(1..=SEEDS) {
        let mut bed = MockBed::new(Config::deterministic(seed));
        if let Err(failure) = bed.run(scenario) {
            panic!("scenario {name}: {failure}");
        }
    }
}

#[test]
fn a_word_means_one_scenario_or_those_of_disks_or_all() {
    let meant = |word| scenarios::meant(word).iter().map(|scenario: &Scenario<Domain, Mock>| scenario.name).collect();
    let (all, disks, one, none): (Vec<_>, Vec<_>, Vec<_>, Vec<_>) =
        (meant("all"), meant("block"), meant("net"), meant("nothing"));
    assert_eq!(all.len(), scenarios::all::<Domain, Mock>().len());
    assert_eq!(disks, scenarios::BLOCK);
    assert_eq!((one, none), (vec!["net"], vec![]));
}

#[test]
fn block() {
    every_seed("block");
}

#[test]
fn reattach() {
    every_seed("reattach");
}

#[test]
fn features() {
    every_seed("features");
}

#[test]
fn readonly() {
    every_seed("readonly");
}

#[test]
fn console() {
    every_seed("console");
}

#[test]
#[cfg_attr(miri, ignore = "a ring of pages is more than a domain has there")]
fn net() {
    every_seed("net");
}

#[test]
#[cfg_attr(miri, ignore = "the scenarios have tests of their own there, and PV domains")]
fn every_scenario_between_translated_domains() {
    for scenario in scenarios::all() {
        for seed in seeds(1..=8) {
            let mut bed = MockBed::new(Config::deterministic(seed).auto_translated());
            if let Err(failure) = bed.run(&scenario) {
                panic!("scenario {}: {failure}", scenario.name);
            }
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "as above")]
fn every_scenario_between_a_translated_domain_and_a_pv_one() {
    let (pv, pvh) = (DomainConfig::default(), DomainConfig { auto_translated: true, ..DomainConfig::default() });
    for (front, back) in [(pvh, pv), (pv, pvh)] {
        for scenario in scenarios::all() {
            let mut bed = MockBed::of(Config::deterministic(3), front, back);
            if let Err(failure) = bed.run(&scenario) {
                panic!("scenario {}, front {front:?}: {failure}", scenario.name);
            }
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "the machine's thread would take minutes")]
fn every_scenario_on_a_machine_that_works_by_itself() {
    for scenario in scenarios::all() {
        let mut bed = MockBed::new(Config::threaded());
        if let Err(failure) = bed.run(&scenario) {
            panic!("scenario {}: {failure}", scenario.name);
        }
    }
}

#[test]
fn each_scenario_has_its_test() {
    let names: Vec<_> = scenarios::all::<mock::Domain, suite::on_mock::Mock>().iter().map(|each| each.name).collect();
    assert_eq!(names, ["block", "reattach", "features", "readonly", "console", "net"]);
}

#[test]
fn a_program_that_waits_for_nothing_is_called_stuck() {
    let mut bed = MockBed::new(Config::deterministic(1));
    let front = bed.front.clone();
    let waits = async {
        loop {
            front.turn().await;
        }
    };
    let failure = bed.bed().run(vec![suite::exec::Program::new("sleeper", waits)]).unwrap_err();
    assert_eq!(failure.0, "stuck: sleeper wait(s) for something that doesn't come");
}
