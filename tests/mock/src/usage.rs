//! What the domains hold, and what of it is a leak.

use std::collections::BTreeMap;
use std::fmt;

use hypercall::{DomId, GrantRef, Port};

use crate::state::{Dom, State};

impl State {
    pub(crate) fn usage(&self) -> Usage {
        let of = |dom: &Dom| DomainUsage {
            ports: dom.channels.open().map(|(port, _)| port).collect(),
            grants_in_use: dom.grants.active.keys().copied().map(GrantRef).collect(),
            mappings: dom.grants.mappings.values().map(|map| (map.dom, GrantRef(map.gref))).collect(),
            pages: dom.space.memory_pages(),
            unbacked_pages: dom.space.unbacked_pages(),
        };
        Usage(self.domains.iter().filter(|(_, dom)| !dom.is_dead()).map(|(id, dom)| (*id, of(dom))).collect())
    }
}

/// What the domains hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage(pub BTreeMap<DomId, DomainUsage>);

/// What a domain holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DomainUsage {
    /// Ports that are not closed.
    pub ports: Vec<Port>,
    /// Own grants that somebody uses.
    pub grants_in_use: Vec<GrantRef>,
    /// Foreign grants that it maps.
    pub mappings: Vec<(DomId, GrantRef)>,
    /// Own pages.
    pub pages: usize,
    /// Pages of address space.
    pub unbacked_pages: usize,
}

/// Something that a domain holds now and did not hold before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leak {
    /// The domain.
    pub domain: DomId,
    /// What.
    pub what: String,
}

impl fmt::Display for Leak {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "domain {}: {}", self.domain.0, self.what)
    }
}

impl Usage {
    /// Returns what is held here and was not held at `earlier`.
    pub fn since(&self, earlier: &Self) -> Vec<Leak> {
        let mut leaks = Vec::new();
        for (domain, now) in &self.0 {
            let before = earlier.0.get(domain).cloned().unwrap_or_default();
            let mut leak = |what: String| leaks.push(Leak { domain: *domain, what });
            for port in now.ports.iter().filter(|port| !before.ports.contains(port)) {
                leak(format!("port {} is open", port.0));
            }
            for gref in now.grants_in_use.iter().filter(|gref| !before.grants_in_use.contains(gref)) {
                leak(format!("grant {} is in use", gref.0));
            }
            if now.mappings.len() > before.mappings.len() {
                leak(format!("maps grants {:?}, before {:?}", now.mappings, before.mappings));
            }
            if now.pages > before.pages {
                leak(format!("{} pages, before {}", now.pages, before.pages));
            }
            if now.unbacked_pages > before.unbacked_pages {
                leak(format!("{} pages of address space, before {}", now.unbacked_pages, before.unbacked_pages));
            }
        }
        leaks
    }
}
