//! The bundle of services that a driver is given.

use hypercall::event::Events;
use hypercall::grant::Grants;
use hypercall::{DomId, Platform};

use crate::store::Store;

/// The domain that a driver runs in: its platform and the three services above it. Drivers are generic over this one
/// trait. A handle: cheap to clone.
pub trait Domain: Clone {
    /// Memory, time and frame numbers.
    type Platform: Platform;
    /// Own grants.
    type Grants: Grants<Platform = Self::Platform>;
    /// Event channels.
    type Events: Events;
    /// The store.
    type Store: Store;

    /// Returns the platform.
    fn platform(&self) -> &Self::Platform;
    /// Returns the grant table.
    fn grants(&self) -> &Self::Grants;
    /// Returns the event channels.
    fn events(&self) -> &Self::Events;
    /// Returns the store.
    fn store(&self) -> &Self::Store;
    /// Returns the domain's own number, which grants to oneself must name.
    fn id(&self) -> DomId;
}

/// The plain bundle: four handles and a number.
#[derive(Clone, Debug)]
pub struct Services<P, G, E, S> {
    /// Memory, time and frame numbers.
    pub platform: P,
    /// Own grants.
    pub grants: G,
    /// Event channels.
    pub events: E,
    /// The store.
    pub store: S,
    /// The domain's own number.
    pub id: DomId,
}

impl<P, G, E, S> Domain for Services<P, G, E, S>
where
    P: Platform,
    G: Grants<Platform = P>,
    E: Events,
    S: Store,
{
    type Platform = P;
    type Grants = G;
    type Events = E;
    type Store = S;

    fn platform(&self) -> &P {
        &self.platform
    }

    fn grants(&self) -> &G {
        &self.grants
    }

    fn events(&self) -> &E {
        &self.events
    }

    fn store(&self) -> &S {
        &self.store
    }

    fn id(&self) -> DomId {
        self.id
    }
}
