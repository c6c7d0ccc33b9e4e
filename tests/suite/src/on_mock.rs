//! The bed of three domains on the mock hypervisor, stepped by a seed: dom0 is the toolstack, the others serve and use devices.

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use mock::{Config, Domain, DomainConfig, Machine};

use crate::Failure;
use crate::exec::World;
use crate::node::Node;
use crate::scenarios::{Bed, Scenario};

/// The mock machine as the executor sees it, and what it draws lots with.
pub struct Mock {
    machine: Arc<Machine>,
    lots: u64,
}

impl World for Mock {
    fn pump(&mut self) -> bool {
        self.machine.step()
    }

    fn choose(&mut self, count: usize) -> usize {
        // Xorshift: any generator will do, as long as the seed alone decides.
        self.lots ^= self.lots << 13;
        self.lots ^= self.lots >> 7;
        self.lots ^= self.lots << 17;
        (self.lots % count as u64) as usize
    }
}

/// Three domains on one machine.
pub struct MockBed {
    /// The machine.
    pub machine: Arc<Machine>,
    /// The toolstack: domain 0.
    pub toolstack: Node<Domain>,
    /// Where the front ends live.
    pub front: Node<Domain>,
    /// Where the back ends live.
    pub back: Node<Domain>,
    /// What the executor sees.
    pub world: Mock,
    seed: u64,
}

impl MockBed {
    /// Boots the domains.
    pub fn new(config: Config) -> Self {
        Self::of(config, DomainConfig::default(), DomainConfig::default())
    }

    /// Boots domains that are like this: the one where the front ends live, and the one where the back ends live.
    pub fn of(config: Config, front: DomainConfig, back: DomainConfig) -> Self {
        let machine = Arc::new(Machine::new(config));
        let node = |name, own| Node::new(name, own, mock::alloc::count);
        let toolstack = node("dom0", machine.services(machine.dom0().id()));
        let front = node("domU", machine.services(machine.create(front).id()));
        let back = node("driver domain", machine.services(machine.create(back).id()));
        machine.mark_usage();
        let world = Mock { machine: machine.clone(), lots: config.seed | 1 };
        Self { machine, toolstack, front, back, world, seed: config.seed }
    }

    /// Returns the bed for scenarios.
    pub fn bed(&mut self) -> Bed<'_, Domain, Mock> {
        Bed {
            toolstack: self.toolstack.clone(),
            front: self.front.clone(),
            back: self.back.clone(),
            seed: self.seed,
            world: &mut self.world,
        }
    }

    /// Runs a scenario and looks whether it has left anything behind.
    ///
    /// # Errors
    /// [`Failure`] of the scenario, or one that tells what was leaked.
    pub fn run(&mut self, scenario: &Scenario<Domain, Mock>) -> Result<Vec<String>, Failure> {
        let lines = (scenario.run)(&mut self.bed())?;
        self.check()?;
        Ok(lines)
    }

    /// Looks whether anything was left behind, or done that no kernel may do.
    ///
    /// # Errors
    /// [`Failure`] that tells what.
    pub fn check(&self) -> Result<(), Failure> {
        let violations = self.machine.violations();
        crate::ensure(violations.is_empty(), format_args!("violations: {violations:?}"))?;
        let leaks = self.machine.leaks();
        crate::ensure(leaks.is_empty(), format_args!("leaks: {leaks:?}"))?;
        let allocations = self.front.allocations() + self.back.allocations();
        crate::ensure(allocations == 0, format_args!("{allocations} allocation(s) on the data path"))
    }
}
