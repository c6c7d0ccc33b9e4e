//! The bed of three domains on the mock hypervisor, stepped by a seed: dom0 is the toolstack, the others serve and use devices.
//!
//! Two variables of the environment are for whoever wants to see why a run has failed: `MOCK_SEED` is the one seed that
//! [`seeds`] gives, and `MOCK_TRACE` the folder that the timelines of runs are written to.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};

use hypercall::DomId;
use mock::{Config, Domain, DomainConfig, Fault, Happened, Kind, Leak, Machine, Mode};
use xen_sys::event_channel::{EVTCHNOP_close, EVTCHNOP_send, EVTCHNOP_unmask};
use xen_sys::grant_table::GNTTABOP_unmap_grant_ref;

use crate::exec::World;
use crate::node::Node;
use crate::scenarios::{Bed, Scenario};
use crate::toolstack::NewDevice;
use crate::{Context, Failure};

/// The mock machine as the executor sees it, and what it draws lots with.
pub struct Mock {
    machine: Arc<Machine>,
    lots: u64,
}

impl Mock {
    /// Returns the machine.
    pub fn machine(&self) -> Arc<Machine> {
        self.machine.clone()
    }
}

/// Saves and restores a domain that has this device, as `xl` does: it is another then, and has a device like it. To be called while no
/// program of the domain is at work; each resumes its end of the device when it sees that the domain was
/// [suspended](hypercall::event::Events::suspends).
///
/// # Errors
/// [`Failure`] of the toolstack or of the suspend.
pub fn save_and_restore(
    machine: &Machine,
    toolstack: &Node<Domain>,
    node: &Node<Domain>,
    device: &mut NewDevice<'_>,
) -> Result<(), Failure> {
    let old = device.clone();
    device.front = machine.restore_next(old.front);
    device.attach(toolstack.store()).context("attach to the restored domain")?;
    let ended = mock::suspend(node.own()).context("suspend")?;
    crate::ensure(ended == mock::Suspended::Restored, "the suspend was cancelled")?;
    old.remove(toolstack.store()).context("remove the saved domain's device")
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

    fn turn_of(&mut self, program: Option<&'static str>) {
        self.machine.turn_of(program);
    }
}

/// Returns the seeds of a test: these, or `MOCK_SEED` alone, if it is set.
///
/// # Panics
/// If `MOCK_SEED` is no number.
pub fn seeds(usual: impl IntoIterator<Item = u64>) -> Vec<u64> {
    match std::env::var("MOCK_SEED") {
        Ok(seed) => vec![seed.parse().expect("MOCK_SEED is a number")],
        Err(_) => usual.into_iter().collect(),
    }
}

/// What happens that a trace has room for: more than any scenario needs.
pub const TRACE_ENTRIES: usize = 1 << 18;

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
    /// What the machine and its domains are, if they aren't the usual ones, for the names of files.
    kind: &'static str,
    /// The folder for timelines, if one is wanted.
    traces: Option<PathBuf>,
}

impl MockBed {
    /// Boots the domains.
    pub fn new(config: Config) -> Self {
        Self::of(config, DomainConfig::default(), DomainConfig::default())
    }

    /// Boots domains that are like this: the one where the front ends live, and the one where the back ends live.
    pub fn of(config: Config, front: DomainConfig, back: DomainConfig) -> Self {
        let machine = Arc::new(Machine::new(config));
        let traces = std::env::var_os("MOCK_TRACE").map(PathBuf::from);
        if traces.is_some() {
            machine.record(TRACE_ENTRIES);
        }
        let translated = |own: DomainConfig| config.auto_translated || own.auto_translated;
        let kind = match (config.mode, translated(front), translated(back)) {
            (Mode::Threaded, ..) => "threaded-",
            (_, false, false) => "",
            (_, true, true) => "pvh-",
            (_, true, false) => "pvh-pv-",
            (_, false, true) => "pv-pvh-",
        };
        let node = |name, own| Node::new(name, own, mock::alloc::count);
        let toolstack = node("dom0", machine.services(machine.dom0().id()));
        let front = node("domU", machine.services(machine.create(front).id()));
        let back = node("driver domain", machine.services(machine.create(back).id()));
        machine.mark_usage();
        let world = Mock { machine: machine.clone(), lots: config.seed | 1 };
        Self { machine, toolstack, front, back, world, seed: config.seed, kind, traces }
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
    /// [`Failure`] of the scenario, or one that tells what was leaked; and with which seed, and how to see more of it.
    pub fn run(&mut self, scenario: &Scenario<Domain, Mock>) -> Result<Vec<String>, Failure> {
        self.watched(scenario.name, |bed| {
            let lines = (scenario.run)(&mut bed.bed())?;
            bed.check()?;
            Ok(lines)
        })
    }

    /// Runs a scenario on a machine with faults. It may fail for them; but it says so, and leaves nothing behind. Returns
    /// how many have struck.
    ///
    /// # Errors
    /// [`Failure`] that tells what was left behind, who waits for what no fault has taken away, or what went wrong
    /// without a fault.
    pub fn bear(&mut self, scenario: &Scenario<Domain, Mock>) -> Result<usize, Failure> {
        self.watched(scenario.name, |bed| {
            let ended = (scenario.run)(&mut bed.bed());
            let happened = bed.machine.faults_happened();
            bed.machine.cancel_faults();
            // What the other end has let go of meanwhile.
            for node in [&bed.front, &bed.back] {
                node.own().grants.retry_quarantine();
            }
            let violations = bed.machine.violations();
            crate::ensure(violations.is_empty(), format_args!("violations: {violations:?}; it said {ended:?}"))?;
            // A program that gives up lets go of its end with requests in flight, whose pages are lost; a port is not.
            let gave_up = ended.is_err();
            let excused = |leak: &Leak| (gave_up && !is_port(leak)) || happened.iter().any(|one| explains(one, leak));
            let leaks: Vec<Leak> = bed.machine.leaks().into_iter().filter(|leak| !excused(leak)).collect();
            crate::ensure(leaks.is_empty(), format_args!("leaks: {leaks:?}; it said {ended:?}"))?;
            match ended {
                Err(failure) if happened.is_empty() => Err(failure),
                Err(failure) if failure.0.starts_with("stuck") && !happened.iter().any(silences) => Err(failure),
                _ => Ok(happened.len()),
            }
        })
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

    /// Writes the timeline of what the machine has recorded.
    ///
    /// # Errors
    /// If the file can't be written.
    pub fn write_trace(&self, path: &Path) -> io::Result<()> {
        let named = [&self.toolstack, &self.front, &self.back].map(|node| (node.id(), node.name()));
        let names: BTreeMap<DomId, &str> = named.into_iter().collect();
        let mut file = io::BufWriter::new(std::fs::File::create(path)?);
        self.machine.trace().write_timeline(&names, &mut file)?;
        io::Write::flush(&mut file)
    }

    /// Does something of that name; writes its timeline, if it is wanted, and says how to get it if something went
    /// wrong.
    fn watched<T>(&mut self, name: &str, work: impl FnOnce(&mut Self) -> Result<T, Failure>) -> Result<T, Failure> {
        let ended = catch_unwind(AssertUnwindSafe(|| work(self)));
        let file = std::format!("{name}-{}{}.json", self.kind, self.seed);
        let hint = match &self.traces {
            None => {
                let seed = self.seed;
                std::format!(
                    "seed {seed}: MOCK_SEED={seed} MOCK_TRACE=folder cargo test … writes folder/{file}, its timeline"
                )
            }
            Some(folder) => {
                let path = folder.join(file);
                match std::fs::create_dir_all(folder).and_then(|()| self.write_trace(&path)) {
                    Ok(()) => std::format!("seed {}: its timeline is {}", self.seed, path.display()),
                    Err(error) => std::format!("seed {}: {} can't be written: {error}", self.seed, path.display()),
                }
            }
        };
        match ended {
            Ok(result) => result.map_err(|Failure(message)| Failure(std::format!("{message}\n  {hint}"))),
            Err(panic) => {
                std::eprintln!("{name} has panicked; {hint}");
                resume_unwind(panic)
            }
        }
    }
}

/// Tells whether a fault is the reason of a leak: what the hypervisor refuses to let go stays held.
fn explains(happened: &Happened, leak: &Leak) -> bool {
    let refused = if is_port(leak) { Kind::event(EVTCHNOP_close) } else { Kind::grant(GNTTABOP_unmap_grant_ref) };
    happened.kind == Some(refused)
}

fn is_port(leak: &Leak) -> bool {
    leak.what.ends_with("is open")
}

/// Tells whether a fault takes a notice away that somebody may then wait for, for ever.
fn silences(Happened { fault, kind }: &Happened) -> bool {
    // What stays mapped is never given back: the other end waits for it until somebody ends the device.
    let notice = [Kind::event(EVTCHNOP_send), Kind::event(EVTCHNOP_unmask), Kind::grant(GNTTABOP_unmap_grant_ref)];
    matches!(fault, Fault::DropEvent { .. } | Fault::DropWatch { .. })
        || kind.is_some_and(|kind| notice.contains(&kind))
}
