//! The mock answers as real Xen and oxenstored did when the transcripts were recorded.
#![cfg(not(target_os = "none"))]

use hypercall::mem::{PAGE_SIZE, Shared};
use mock::{DomainConfig, Machine};
use suite::conformance::{self, Subject, differences};

fn compare(recorded: &str, lines: &[String]) {
    if let Some(folder) = std::env::var_os("CONFORMANCE_OUT") {
        let name = if lines[0].starts_with("store: ") { "xenstore.txt" } else { "hypercalls.txt" };
        std::fs::write(std::path::Path::new(&folder).join(name), lines.join("\n") + "\n").unwrap();
    }
    let differences = differences(recorded, lines);
    assert!(differences.is_empty(), "the mock differs in {} steps:\n  {}", differences.len(), differences.join("\n  "));
}

#[test]
fn hypercalls_answer_as_those_of_xen() {
    let machine = Machine::deterministic(1);
    let platform = machine.dom0();
    let shared = platform.shared_info();
    // SAFETY: the page lives as long as the machine, and is nothing but atomics.
    let subject = Subject { platform: platform.clone(), id: platform.id(), shared: unsafe { shared.as_ref() } };
    compare(conformance::HYPERCALLS, &conformance::hypercalls(&subject));
}

#[test]
fn xenstored_answers_as_oxenstored() {
    let machine = Machine::deterministic(1);
    let platform = machine.create(DomainConfig::default());
    let (start, shared) = (platform.start(), platform.shared_info());
    let link = conformance::store::Link {
        id: platform.id(),
        // SAFETY: the page lives as long as the machine, and is nothing but atomics.
        shared: unsafe { shared.as_ref() },
        // SAFETY: the page was made with the domain, which keeps it; here and in the mock it is seen through atomics only.
        page: unsafe { Shared::new(start.store, PAGE_SIZE) },
        port: start.store_port,
        platform,
    };
    compare(conformance::XENSTORE, &conformance::store::run(link));
}
