//! A xenstored inside this very domain, for a first domain that has no other. It serves this domain and those that it builds,
//! each through a page and a channel, as a real one would. It runs whenever the domain waits.

use alloc::boxed::Box;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use hypercall::event::{Channel, EventChannels, Events};
use hypercall::mem::{PAGE_SIZE, Pages, Shared};
use hypercall::{DomId, Port};
use spin::Mutex;
use xen_sys::xen::DOMID_SELF;
use xenbus::ring::Notify;
use xenbus::store::XenStore;
use xenstored::{Daemon, RingClient};

use crate::bare::Services;
use crate::domu::{DomU, Foreign};
use crate::{Bare, println};

static LOCAL: Mutex<Option<Local>> = Mutex::new(None);

struct Local {
    daemon: Daemon,
    clients: Vec<Client>,
}

struct Client {
    id: DomId,
    ring: RingClient<'static>,
    /// The daemon's end. Masked, so that no dispatcher takes its events away.
    channel: Channel<EventChannels<Bare>>,
    events: EventChannels<Bare>,
    is_dropped: bool,
    /// What shows the page of another domain; goes after the ring.
    _page: Option<Foreign>,
}

/// Starts the daemon and returns a client of it that speaks for this domain, `id`. To be called once.
///
/// # Errors
/// What was lacking, or Xen refused.
pub fn start(services: &Services, id: DomId) -> Result<XenStore<Bare, EventChannels<Bare>>, String> {
    let events = services.events.clone();
    // For ever: the client's view of it has no end.
    let page: &'static Pages<Bare> = Box::leak(Box::new(Pages::new(&Bare, 1).map_err(|error| error.to_string())?));
    let front = events.alloc_unbound(DOMID_SELF).map_err(|error| error.to_string())?;
    let mut local = Local { daemon: Daemon::default(), clients: Vec::new() };
    local.add(&events, id, (DOMID_SELF, front), page.shared(), None)?;
    *LOCAL.lock() = Some(local);
    Ok(XenStore::new(Bare, events, page.shared(), front))
}

/// Serves another domain, too.
///
/// # Errors
/// What was lacking, or Xen refused; or there is no daemon.
pub fn introduce(services: &Services, domain: &DomU) -> Result<(), String> {
    let mut foreign = Foreign::new(domain.id)?;
    let va = foreign.map(domain.store_ring)?;
    // SAFETY: the page is mapped until `foreign` goes, which is kept beside the view. The other domain writes it, atomically or
    // not; here it is seen through atomics only.
    let page = unsafe { Shared::new(va, PAGE_SIZE) };
    let mut local = LOCAL.lock();
    let local = local.as_mut().ok_or("there is no store")?;
    local.add(&services.events, domain.id, (domain.id, domain.store), page, Some(foreign))
}

/// Forgets another domain: its page is unmapped, its nodes are removed.
pub fn release(id: DomId) {
    if let Some(local) = LOCAL.lock().as_mut() {
        local.clients.retain(|client| client.id != id);
        local.daemon.release(id);
    }
}

/// Lets the daemon work, if there is one. Tells whether it did anything.
pub fn pump() -> bool {
    // Somebody who holds the lock is the daemon itself.
    LOCAL.try_lock().is_some_and(|mut local| local.as_mut().is_some_and(Local::serve))
}

impl Local {
    fn add(
        &mut self,
        events: &EventChannels<Bare>,
        id: DomId,
        (remote, port): (DomId, Port),
        page: Shared<'static>,
        foreign: Option<Foreign>,
    ) -> Result<(), String> {
        let channel = Channel::bind(events, remote, port).map_err(|error| error.to_string())?;
        events.mask(channel.port());
        let ring = RingClient::new(self.daemon.connect(id), page);
        self.daemon.introduce(id);
        let events = events.clone();
        self.clients.push(Client { id, ring, channel, events, is_dropped: false, _page: foreign });
        Ok(())
    }

    fn serve(&mut self) -> bool {
        let Self { daemon, clients } = self;
        clients.iter_mut().fold(false, |any, client| client.serve(daemon) | any)
    }
}

impl Client {
    fn serve(&mut self, daemon: &mut Daemon) -> bool {
        // The event is taken before the ring is looked at: what comes later makes a new one.
        let asked = self.events.take(self.channel.port());
        if self.is_dropped || !asked && daemon.pending(self.ring.client()) == 0 {
            return false;
        }
        match self.ring.serve(daemon) {
            Ok(Notify::Yes) => {
                self.channel.notify();
                true
            }
            // Asked in vain, or it has no room for what it is to get.
            Ok(Notify::No) => asked,
            Err(dropped) => {
                println!("error: the store drops domain {}: {dropped}", self.id.0);
                self.is_dropped = true;
                true
            }
        }
    }
}
