//! Faults to order: the n-th hypercall fails, the n-th event is lost, the n-th watch comes twice.

use hypercall::DomId;
use xenstored::Refusal;

use crate::ledger::Kind;
use crate::state::State;
use crate::trace::What;

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
    /// An event comes late, when nothing else has happened for it to come with.
    DelayEvent {
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
    /// xenstored refuses a request without having done anything.
    Request {
        /// Only that domain's requests count, if there is one here.
        domain: Option<DomId>,
        /// Which.
        nth: u64,
        /// The answer.
        refusal: Refusal,
    },
    /// The event of a watch is lost.
    DropWatch {
        /// Only events to that domain count, if there is one here.
        to: Option<DomId>,
        /// Which.
        nth: u64,
    },
    /// The event of a watch comes twice.
    RepeatWatch {
        /// Only events to that domain count, if there is one here.
        to: Option<DomId>,
        /// Which.
        nth: u64,
    },
}

impl Fault {
    /// Returns the Rust expression that makes it.
    pub fn code(&self) -> String {
        format!("Fault::{self:?}").replace("refusal: ", "refusal: Refusal::")
    }

    /// Returns which of those that it counts the fault is about.
    pub const fn nth(&self) -> u64 {
        match self {
            Self::Hypercall { nth, .. }
            | Self::Entry { nth, .. }
            | Self::DropEvent { nth, .. }
            | Self::RepeatEvent { nth, .. }
            | Self::DelayEvent { nth, .. }
            | Self::Alloc { nth, .. }
            | Self::Request { nth, .. }
            | Self::DropWatch { nth, .. }
            | Self::RepeatWatch { nth, .. } => *nth,
        }
    }

    /// Returns the same fault, about another of those that it counts.
    #[must_use]
    pub const fn at(mut self, which: u64) -> Self {
        match &mut self {
            Self::Hypercall { nth, .. }
            | Self::Entry { nth, .. }
            | Self::DropEvent { nth, .. }
            | Self::RepeatEvent { nth, .. }
            | Self::DelayEvent { nth, .. }
            | Self::Alloc { nth, .. }
            | Self::Request { nth, .. }
            | Self::DropWatch { nth, .. }
            | Self::RepeatWatch { nth, .. } => *nth = which,
        }
        self
    }
}

/// A fault that has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Happened {
    /// The fault, as it was ordered.
    pub fault: Fault,
    /// The hypercall that it has struck, if it was one.
    pub kind: Option<Kind>,
}

/// A fault that was ordered.
#[derive(Debug)]
struct Order {
    fault: Fault,
    /// How many more of what it is about there are until it happens.
    left: u64,
}

/// The faults that were ordered.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    orders: Vec<Order>,
    happened: Vec<Happened>,
}

/// What becomes of an event, of a port or of a watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Delivery {
    Plain,
    Drop,
    Repeat,
    Delay,
}

impl Faults {
    pub(crate) fn order(&mut self, fault: Fault) {
        self.orders.push(Order { fault, left: fault.nth() });
    }

    /// Takes back what has not happened.
    pub(crate) fn cancel(&mut self) {
        self.orders.clear();
    }

    /// Returns how many faults have not happened.
    pub(crate) fn waiting(&self) -> usize {
        self.orders.len()
    }

    /// Returns those that have happened, in their order.
    pub(crate) fn happened(&self) -> &[Happened] {
        &self.happened
    }

    /// Counts something that happens, for all faults that are `about` it, and takes the first one that is due off the
    /// list.
    fn due(&mut self, kind: Option<Kind>, about: impl Fn(&Fault) -> bool) -> Option<Fault> {
        let mut due = None;
        for (index, order) in self.orders.iter_mut().enumerate() {
            if about(&order.fault) {
                order.left = order.left.saturating_sub(1);
                if order.left == 0 && due.is_none() {
                    due = Some(index);
                }
            }
        }
        let Order { fault, .. } = self.orders.remove(due?);
        self.happened.push(Happened { fault, kind });
        Some(fault)
    }

    /// Returns the error of a hypercall, if it is to fail.
    pub(crate) fn hypercall(&mut self, by: DomId, called: Kind) -> Option<i32> {
        let fault = self.due(Some(called), |fault| match fault {
            Fault::Hypercall { domain, kind, .. } => is(*domain, by) && kind.is_none_or(|kind| kind == called),
            _ => false,
        });
        match fault {
            Some(Fault::Hypercall { errno, .. }) => Some(errno),
            _ => None,
        }
    }

    /// Returns the status of an entry of grant work, if it is to fail.
    pub(crate) fn entry(&mut self, by: DomId, command: u32) -> Option<i16> {
        let fault = self.due(Some(Kind::grant(command)), |fault| match fault {
            Fault::Entry { domain, cmd, .. } => is(*domain, by) && *cmd == command,
            _ => false,
        });
        match fault {
            Some(Fault::Entry { status, .. }) => Some(status),
            _ => None,
        }
    }

    /// Returns what becomes of an event to a domain.
    pub(crate) fn event(&mut self, dom: DomId) -> Delivery {
        let fault = self.due(None, |fault| match fault {
            Fault::DropEvent { to, .. } | Fault::RepeatEvent { to, .. } | Fault::DelayEvent { to, .. } => is(*to, dom),
            _ => false,
        });
        match fault {
            Some(Fault::DropEvent { .. }) => Delivery::Drop,
            Some(Fault::RepeatEvent { .. }) => Delivery::Repeat,
            Some(Fault::DelayEvent { .. }) => Delivery::Delay,
            _ => Delivery::Plain,
        }
    }

    /// Tells whether an allocation is to fail.
    pub(crate) fn alloc(&mut self, by: DomId) -> bool {
        self.due(None, |fault| matches!(fault, Fault::Alloc { domain, .. } if *domain == by)).is_some()
    }

    /// Returns how a domain's request to xenstored is refused, if it is to be.
    pub(crate) fn request(&mut self, by: DomId) -> Option<Refusal> {
        match self.due(None, |fault| matches!(fault, Fault::Request { domain, .. } if is(*domain, by))) {
            Some(Fault::Request { refusal, .. }) => Some(refusal),
            _ => None,
        }
    }

    /// Returns what becomes of a watch's event to a domain.
    pub(crate) fn watch(&mut self, dom: DomId) -> Delivery {
        let fault = self.due(None, |fault| match fault {
            Fault::DropWatch { to, .. } | Fault::RepeatWatch { to, .. } => is(*to, dom),
            _ => false,
        });
        match fault {
            Some(Fault::DropWatch { .. }) => Delivery::Drop,
            Some(Fault::RepeatWatch { .. }) => Delivery::Repeat,
            _ => Delivery::Plain,
        }
    }
}

impl State {
    /// Asks the faults about something that a domain does or gets, and takes note if one strikes.
    pub(crate) fn struck<T>(&mut self, dom: DomId, ask: impl FnOnce(&mut Faults) -> T) -> T {
        let before = self.faults.happened().len();
        let answer = ask(&mut self.faults);
        if let Some(Happened { fault, .. }) = self.faults.happened().get(before).copied() {
            self.note(Some(dom), || What::Fault(fault));
        }
        answer
    }
}

fn is(wanted: Option<DomId>, dom: DomId) -> bool {
    wanted.is_none_or(|wanted| wanted == dom)
}
