//! What is to go wrong.

use std::ops::{Range, RangeInclusive};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use xbd::back::{StoreFault, Work};

/// A kind of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// [`Work::Read`].
    Read,
    /// [`Work::Write`].
    Write,
    /// [`Work::Flush`].
    Flush,
    /// [`Work::Discard`], secure or not.
    Discard,
}

impl Kind {
    pub(super) const fn of(work: &Work<'_>) -> Self {
        match work {
            Work::Read { .. } => Self::Read,
            Work::Write { .. } => Self::Write,
            Work::Flush => Self::Flush,
            Work::Discard { .. } => Self::Discard,
        }
    }
}

/// What is to go wrong with a disk. The default is nothing.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Decides all that is drawn by lot. The same plan and the same calls make the same faults.
    pub seed: u64,
    /// Which work fails. The first rule that wants it decides.
    pub rules: Vec<Rule>,
    /// How many calls of [`completed`](xbd::back::Store::completed) pass over some work after it is done before one names it, drawn for
    /// each. With 0, work that the store beneath does at once is over at once.
    pub delay: RangeInclusive<u32>,
    /// What could be named is named in any order, not in that in which it was started.
    pub reorder: bool,
}

impl Default for Plan {
    fn default() -> Self {
        Self { seed: 1, rules: Vec::new(), delay: 0..=0, reorder: false }
    }
}

/// Which work fails, and how. The default is all of it.
///
/// ```
/// # #[cfg(target_os = "linux")] {
/// use disk::{Kind, Rule};
/// use xbd::back::StoreFault;
///
/// // The seventh work, whatever it is.
/// Rule { skip: 6, times: 1, ..Rule::default() };
/// // A bad spot: sectors 8 to 15 can't be read.
/// Rule { sectors: 8..16, ..Rule::all(Kind::Read) };
/// // A disk that offers discard and can't.
/// Rule { fault: StoreFault::NotSupported, ..Rule::all(Kind::Discard) };
/// // One write in ten.
/// Rule { one_in: 10, ..Rule::all(Kind::Write) };
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Rule {
    /// The kind; else any.
    pub kind: Option<Kind>,
    /// Work that touches one of these sectors of 512 bytes. A flush touches all.
    pub sectors: Range<u64>,
    /// So many that match are let pass first.
    pub skip: u64,
    /// So many fail at most.
    pub times: u64,
    /// One in so many fails, drawn by lot; all, if 1.
    pub one_in: u32,
    /// What it fails with. Nothing is done to the disk.
    pub fault: StoreFault,
}

impl Default for Rule {
    fn default() -> Self {
        Self { kind: None, sectors: 0..u64::MAX, skip: 0, times: u64::MAX, one_in: 1, fault: StoreFault::Failed }
    }
}

impl Rule {
    /// Makes the rule that all work of a kind fails.
    pub fn all(kind: Kind) -> Self {
        Self { kind: Some(kind), ..Self::default() }
    }
}

/// A plan as it is carried out.
pub(super) struct Course {
    pub(super) plan: Plan,
    pub(super) lots: SmallRng,
    /// For each rule: work that matched, work that failed.
    seen: Vec<(u64, u64)>,
}

impl Course {
    pub(super) fn new(plan: Plan) -> Self {
        Self { lots: SmallRng::seed_from_u64(plan.seed), seen: vec![(0, 0); plan.rules.len()], plan }
    }

    /// Tells whether that work is to fail.
    pub(super) fn fault(&mut self, kind: Kind, sectors: &Range<u64>) -> Option<StoreFault> {
        let mut fault = None;
        for (rule, (matched, failed)) in self.plan.rules.iter().zip(&mut self.seen) {
            let touches = sectors.start < rule.sectors.end && rule.sectors.start < sectors.end;
            if !touches || rule.kind.is_some_and(|wanted| wanted != kind) {
                continue;
            }
            *matched += 1;
            let wanted = fault.is_none() && *matched > rule.skip && *failed < rule.times;
            if wanted && (rule.one_in <= 1 || self.lots.random_ratio(1, rule.one_in)) {
                *failed += 1;
                fault = Some(rule.fault);
            }
        }
        fault
    }

    pub(super) fn delay(&mut self) -> u32 {
        let delay = self.plan.delay.clone();
        if delay.is_empty() { 0 } else { self.lots.random_range(delay) }
    }
}
