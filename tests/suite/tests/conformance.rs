//! The mock answers as real Xen and oxenstored did when the transcripts were recorded.
#![cfg(not(target_os = "none"))]

use hypercall::mem::{PAGE_SIZE, Shared};
use mock::{Config, DomainConfig, Machine};
use suite::conformance::store::Link;
use suite::conformance::{self, Subject, differences};

/// All that a machine may be made of.
const CONFIGS: [Config; 4] =
    [Config::deterministic(1), Config::deterministic(2), Config::deterministic(1).plain(), Config::threaded()];

fn compare(config: &Config, recorded: &str, lines: &[String]) {
    let differences = differences(recorded, lines);
    let (count, list) = (differences.len(), differences.join("\n  "));
    assert!(differences.is_empty(), "{count} step(s) differ on {config:?}:\n  {list}");
}

#[test]
#[cfg_attr(miri, ignore = "takes hours")]
fn hypercalls_answer_as_those_of_xen() {
    for config in &CONFIGS {
        let machine = Machine::new(*config);
        let platform = machine.dom0();
        let shared = platform.shared_info();
        // SAFETY: the page lives as long as the machine, and is nothing but atomics.
        let subject = Subject { platform: platform.clone(), id: platform.id(), shared: unsafe { shared.as_ref() } };
        compare(config, conformance::HYPERCALLS, &conformance::hypercalls(&subject));
    }
}

#[test]
#[cfg_attr(miri, ignore = "takes hours")]
fn xenstored_answers_as_oxenstored() {
    for config in &CONFIGS {
        let machine = Machine::new(*config);
        let platform = machine.create(DomainConfig::default());
        let (start, shared) = (platform.start(), platform.shared_info());
        let link = Link {
            id: platform.id(),
            // SAFETY: the page lives as long as the machine, and is nothing but atomics.
            shared: unsafe { shared.as_ref() },
            // SAFETY: the page was made with the domain, which keeps it; here and in the mock it is seen through atomics only.
            page: unsafe { Shared::new(start.store, PAGE_SIZE) },
            port: start.store_port,
            platform,
        };
        compare(config, conformance::XENSTORE, &conformance::store::run(link));
    }
}
