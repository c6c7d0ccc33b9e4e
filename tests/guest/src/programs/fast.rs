//! The suite's scenarios with both ends in this one domain, on real grants and real event channels:
//! `fast [scenario=NAME|block|all] [seed=N] [list=yes]`.

use alloc::format;
use alloc::string::{String, ToString};

use hypercall::Platform;
use suite::exec::World;
use suite::node::Node;
use suite::scenarios::{Bed, Scenario, meant};
use xenbus::domain;

use super::Args;
use crate::bare::{Services, domain_id, services};
use crate::memory::pages;
use crate::{Bare, local_store, println};

/// The world around the programs: the store daemon, and chance.
struct Fast {
    state: u64,
}

impl World for Fast {
    fn pump(&mut self) -> bool {
        local_store::pump()
    }

    fn choose(&mut self, count: usize) -> usize {
        // A linear congruential generator; its upper half is the random one.
        self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.state >> 33) as usize % count.max(1)
    }
}

pub(super) fn run(args: &Args<'_>) -> Result<(), String> {
    let wanted = args.get("scenario").unwrap_or("all");
    let scenarios = meant::<Bare, Fast>(wanted);
    if args.get("list").is_some() {
        scenarios.iter().for_each(|scenario| println!("{:12} {}", scenario.name, scenario.about));
        return Ok(());
    }
    let seed = args.number("seed", 1)?;
    let services = services()?;
    let node = node(&services)?;
    let (mut done, mut failed) = (0, 0);
    for scenario in &scenarios {
        done += 1;
        let start = Bare.now_ns();
        let outcome = run_one(scenario, &node, seed).and_then(|()| nothing_kept(&services, &node));
        let milliseconds = (Bare.now_ns() - start) / 1_000_000;
        match outcome {
            Ok(()) => println!("fast: ok: {} ({milliseconds} ms)", scenario.name),
            Err(message) => {
                println!("fast: FAILED: {} (seed {seed}): {message}", scenario.name);
                failed += 1;
            }
        }
    }
    match (done, failed) {
        (0, _) => Err(format!("no scenario {wanted:?}")),
        (_, 0) => Ok(()),
        _ => Err(format!("{failed} of {done} scenarios")),
    }
}

/// Makes the one domain, with a store of its own.
pub(super) fn node(services: &Services) -> Result<Node<Bare>, String> {
    let id = domain_id().map_err(|error| error.to_string())?;
    let store = local_store::start(services, id)?;
    let Services { events, grants } = services.clone();
    Ok(Node::new("domain", domain::Services { platform: Bare, grants, events, store, id }, pages::allocations))
}

fn run_one(scenario: &Scenario<Bare, Fast>, node: &Node<Bare>, seed: u64) -> Result<(), String> {
    let mut world = Fast { state: seed };
    let (toolstack, front, back) = (node.clone(), node.clone(), node.clone());
    let mut bed = Bed { toolstack, front, back, world: &mut world, seed };
    let lines = (scenario.run)(&mut bed).map_err(|failure| failure.to_string())?;
    lines.iter().for_each(|line| println!("{line}"));
    Ok(())
}

/// Fails if a scenario has left pages that a peer maps still, or its data path has allocated.
fn nothing_kept(services: &Services, node: &Node<Bare>) -> Result<(), String> {
    if node.allocations() > 0 {
        return Err(format!("{} allocation(s) on the data path", node.allocations()));
    }
    services.grants.retry_quarantine();
    let stats = services.grants.stats();
    match stats.quarantined_refs + stats.quarantined_pages + stats.leaked_refs + stats.leaked_pages {
        0 => Ok(()),
        _ => Err(format!("grants were not given back: {stats:?}")),
    }
}
