//! Faults to order: the n-th hypercall fails, the n-th event is lost.

use hypercall::DomId;

use crate::ledger::Kind;

/// A fault that happens once. `nth` counts what the fault is about from the moment it was ordered; 1 is the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A hypercall fails without having done anything.
    Hypercall {
        /// Only that domain's calls count, if there is one here.
        domain: Option<DomId>,
        /// Only calls of that kind count, if there is one here.
        kind: Option<Kind>,
        /// Which.
        nth: u64,
        /// The error, positive, such as `XEN_ENOMEM`.
        errno: i32,
    },
    /// An entry of a batch of grant work fails; those before and behind it don't.
    Entry {
        /// Only that domain's entries count, if there is one here.
        domain: Option<DomId>,
        /// The command, such as `GNTTABOP_map_grant_ref`, whose entries count.
        cmd: u32,
        /// Which.
        nth: u64,
        /// The status, such as `GNTST_general_error`.
        status: i16,
    },
    /// An event is lost.
    DropEvent {
        /// Only events to that domain count, if there is one here.
        to: Option<DomId>,
        /// Which.
        nth: u64,
    },
    /// An event comes once more, later, when nothing has happened.
    RepeatEvent {
        /// Only events to that domain count, if there is one here.
        to: Option<DomId>,
        /// Which.
        nth: u64,
    },
    /// There is no memory for an allocation of own pages or address space.
    Alloc {
        /// The domain.
        domain: DomId,
        /// Which.
        nth: u64,
    },
}

/// The faults that were ordered and have not happened yet.
#[derive(Debug, Default)]
pub(crate) struct Faults(Vec<Fault>);

/// What becomes of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Delivery {
    Plain,
    Drop,
    Repeat,
}

impl Faults {
    pub(crate) fn order(&mut self, fault: Fault) {
        self.0.push(fault);
    }

    /// Returns how many faults have not happened.
    pub(crate) fn waiting(&self) -> usize {
        self.0.len()
    }

    /// Counts something that happens, for all faults to which `about` gives their counter, and takes the first one that is
    /// due off the list.
    fn due(&mut self, about: impl Fn(&mut Fault) -> Option<&mut u64>) -> Option<Fault> {
        let mut due = None;
        for (index, fault) in self.0.iter_mut().enumerate() {
            if let Some(nth) = about(fault) {
                *nth = nth.saturating_sub(1);
                if *nth == 0 && due.is_none() {
                    due = Some(index);
                }
            }
        }
        due.map(|index| self.0.remove(index))
    }

    /// Returns the error of a hypercall, if it is to fail.
    pub(crate) fn hypercall(&mut self, by: DomId, called: Kind) -> Option<i32> {
        let fault = self.due(|fault| match fault {
            Fault::Hypercall { domain, kind, nth, .. } if is(*domain, by) && kind.is_none_or(|kind| kind == called) => {
                Some(nth)
            }
            _ => None,
        });
        match fault {
            Some(Fault::Hypercall { errno, .. }) => Some(errno),
            _ => None,
        }
    }

    /// Returns the status of an entry of grant work, if it is to fail.
    pub(crate) fn entry(&mut self, by: DomId, command: u32) -> Option<i16> {
        let fault = self.due(|fault| match fault {
            Fault::Entry { domain, cmd, nth, .. } if is(*domain, by) && *cmd == command => Some(nth),
            _ => None,
        });
        match fault {
            Some(Fault::Entry { status, .. }) => Some(status),
            _ => None,
        }
    }

    /// Returns what becomes of an event to a domain.
    pub(crate) fn event(&mut self, dom: DomId) -> Delivery {
        let fault = self.due(|fault| match fault {
            Fault::DropEvent { to, nth } | Fault::RepeatEvent { to, nth } if is(*to, dom) => Some(nth),
            _ => None,
        });
        match fault {
            Some(Fault::DropEvent { .. }) => Delivery::Drop,
            Some(Fault::RepeatEvent { .. }) => Delivery::Repeat,
            _ => Delivery::Plain,
        }
    }

    /// Tells whether an allocation is to fail.
    pub(crate) fn alloc(&mut self, by: DomId) -> bool {
        let fault = self.due(|fault| match fault {
            Fault::Alloc { domain, nth } if *domain == by => Some(nth),
            _ => None,
        });
        fault.is_some()
    }
}

fn is(wanted: Option<DomId>, dom: DomId) -> bool {
    wanted.is_none_or(|wanted| wanted == dom)
}
