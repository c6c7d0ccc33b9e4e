//! What the domains cost: hypercalls by kind, events, grant work, messages of the store.

use std::collections::BTreeMap;
use std::fmt;

use hypercall::Nr;
use xen_sys::event_channel::*;
use xen_sys::grant_table::*;
use xen_sys::sched::*;

/// A kind of hypercall: its number, and its command where it has one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kind {
    /// The hypercall.
    pub nr: Nr,
    /// Its command; 0 where it has none.
    pub cmd: u32,
}

impl Kind {
    /// `event_channel_op`, with a command such as `EVTCHNOP_send`.
    pub const fn event(cmd: u32) -> Self {
        Self { nr: Nr::EVENT_CHANNEL_OP, cmd }
    }

    /// `grant_table_op`, with a command such as `GNTTABOP_copy`.
    pub const fn grant(cmd: u32) -> Self {
        Self { nr: Nr::GRANT_TABLE_OP, cmd }
    }

    /// Returns the kind of a call.
    pub(crate) fn of(nr: Nr, args: &[usize; 5]) -> Self {
        let has_command = matches!(
            nr,
            Nr::EVENT_CHANNEL_OP
                | Nr::GRANT_TABLE_OP
                | Nr::MEMORY_OP
                | Nr::SCHED_OP
                | Nr::VCPU_OP
                | Nr::CONSOLE_IO
                | Nr::XEN_VERSION
                | Nr::PHYSDEV_OP
                | Nr::VM_ASSIST
                | Nr::CALLBACK_OP
        );
        Self { nr, cmd: if has_command { args[0] as u32 } else { 0 } }
    }
}

/// As the Rust that makes it, for [`Fault::code`](crate::Fault::code).
impl fmt::Debug for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.nr {
            Nr::EVENT_CHANNEL_OP => write!(f, "Kind::event({})", self.cmd),
            Nr::GRANT_TABLE_OP => write!(f, "Kind::grant({})", self.cmd),
            nr => write!(f, "Kind {{ nr: {nr:?}, cmd: {} }}", self.cmd),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, command) = match self.nr {
            Nr::EVENT_CHANNEL_OP => ("event_channel_op", event_command(self.cmd)),
            Nr::GRANT_TABLE_OP => ("grant_table_op", grant_command(self.cmd)),
            Nr::SCHED_OP => ("sched_op", sched_command(self.cmd)),
            Nr::MEMORY_OP => ("memory_op", None),
            Nr::VCPU_OP => ("vcpu_op", None),
            Nr::CONSOLE_IO => ("console_io", None),
            Nr::XEN_VERSION => ("xen_version", None),
            Nr::PHYSDEV_OP => ("physdev_op", None),
            Nr::SET_TIMER_OP => return f.pad("set_timer_op"),
            Nr::MULTICALL => return f.pad("multicall"),
            Nr::MMU_UPDATE => return f.pad("mmu_update"),
            Nr::UPDATE_VA_MAPPING => return f.pad("update_va_mapping"),
            Nr(other) => return f.pad(&format!("hypercall {other}")),
        };
        match command {
            Some(command) => f.pad(&format!("{name} {command}")),
            None => f.pad(&format!("{name} {}", self.cmd)),
        }
    }
}

fn event_command(cmd: u32) -> Option<&'static str> {
    Some(match cmd {
        EVTCHNOP_alloc_unbound => "alloc_unbound",
        EVTCHNOP_bind_interdomain => "bind_interdomain",
        EVTCHNOP_bind_virq => "bind_virq",
        EVTCHNOP_bind_ipi => "bind_ipi",
        EVTCHNOP_bind_vcpu => "bind_vcpu",
        EVTCHNOP_close => "close",
        EVTCHNOP_send => "send",
        EVTCHNOP_status => "status",
        EVTCHNOP_unmask => "unmask",
        EVTCHNOP_reset => "reset",
        _ => return None,
    })
}

fn grant_command(cmd: u32) -> Option<&'static str> {
    Some(match cmd {
        GNTTABOP_map_grant_ref => "map",
        GNTTABOP_unmap_grant_ref => "unmap",
        GNTTABOP_copy => "copy",
        GNTTABOP_setup_table => "setup_table",
        GNTTABOP_query_size => "query_size",
        GNTTABOP_get_version => "get_version",
        GNTTABOP_set_version => "set_version",
        _ => return None,
    })
}

fn sched_command(cmd: u32) -> Option<&'static str> {
    Some(match cmd {
        SCHEDOP_yield => "yield",
        SCHEDOP_block => "block",
        SCHEDOP_shutdown => "shutdown",
        SCHEDOP_poll => "poll",
        _ => return None,
    })
}

/// What one domain, or all, did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    /// Hypercalls by kind; those inside a multicall too.
    pub hypercalls: BTreeMap<Kind, u64>,
    /// Events sent.
    pub notifications: u64,
    /// Grants mapped, each page counted, if it succeeded.
    pub grant_maps: u64,
    /// Grants unmapped, if it succeeded.
    pub grant_unmaps: u64,
    /// Grant copies, each segment counted, if it succeeded.
    pub grant_copies: u64,
    /// Bytes that the grant copies moved.
    pub copied_bytes: u64,
    /// Messages to xenstored and from it.
    pub store_messages: u64,
    /// Times that the domain waited and nothing was pending.
    pub waits: u64,
}

impl Ledger {
    /// Returns the number of all hypercalls.
    pub fn all_hypercalls(&self) -> u64 {
        self.hypercalls.values().sum()
    }

    /// Returns the number of hypercalls of a kind.
    pub fn calls(&self, kind: Kind) -> u64 {
        self.hypercalls.get(&kind).copied().unwrap_or(0)
    }

    /// Returns what was added since `earlier`, a copy taken before.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let count = |(kind, calls): (&Kind, &u64)| (*kind, calls - earlier.calls(*kind));
        Self {
            hypercalls: self.hypercalls.iter().map(count).filter(|(_, calls)| *calls > 0).collect(),
            notifications: self.notifications - earlier.notifications,
            grant_maps: self.grant_maps - earlier.grant_maps,
            grant_unmaps: self.grant_unmaps - earlier.grant_unmaps,
            grant_copies: self.grant_copies - earlier.grant_copies,
            copied_bytes: self.copied_bytes - earlier.copied_bytes,
            store_messages: self.store_messages - earlier.store_messages,
            waits: self.waits - earlier.waits,
        }
    }

    /// Adds another's.
    pub(crate) fn add(&mut self, other: &Self) {
        for (kind, calls) in &other.hypercalls {
            *self.hypercalls.entry(*kind).or_default() += calls;
        }
        self.notifications += other.notifications;
        self.grant_maps += other.grant_maps;
        self.grant_unmaps += other.grant_unmaps;
        self.grant_copies += other.grant_copies;
        self.copied_bytes += other.copied_bytes;
        self.store_messages += other.store_messages;
        self.waits += other.waits;
    }
}

impl fmt::Display for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (kind, calls) in &self.hypercalls {
            writeln!(f, "{kind:32} {calls:>12}")?;
        }
        let rest = [
            ("notifications", self.notifications),
            ("grant maps", self.grant_maps),
            ("grant unmaps", self.grant_unmaps),
            ("grant copies", self.grant_copies),
            ("bytes copied by grant", self.copied_bytes),
            ("store messages", self.store_messages),
            ("waits", self.waits),
        ];
        rest.iter().try_for_each(|(name, count)| writeln!(f, "{name:32} {count:>12}"))
    }
}
