//! A xenstored inside this very domain, for a first domain that has no other: the page and the channel at which a client finds
//! it are as they would be with a real one. It runs whenever the domain waits.

use alloc::string::{String, ToString};

use hypercall::DomId;
use hypercall::event::{Channel, EventChannels, Events};
use hypercall::mem::Pages;
use spin::Mutex;
use xen_sys::xen::DOMID_SELF;
use xenbus::ring::Notify;
use xenbus::store::XenStore;
use xenstored::{Daemon, RingClient};

use crate::bare::Services;
use crate::{Bare, println};

static LOCAL: Mutex<Option<Local>> = Mutex::new(None);

struct Local {
    daemon: Daemon,
    client: RingClient<'static>,
    /// The daemon's end. Masked, so that no dispatcher takes its events away.
    channel: Channel<EventChannels<Bare>>,
    events: EventChannels<Bare>,
    is_dropped: bool,
}

/// Starts the daemon and returns a client of it that speaks for domain `id`. To be called once.
///
/// # Errors
/// What was lacking, or Xen refused.
pub fn start(services: &Services, id: DomId) -> Result<XenStore<Bare, EventChannels<Bare>>, String> {
    let events = services.events.clone();
    // For ever: the client's view of it has no end.
    let page =
        alloc::boxed::Box::leak(alloc::boxed::Box::new(Pages::new(&Bare, 1).map_err(|error| error.to_string())?));
    let front = events.alloc_unbound(DOMID_SELF).map_err(|error| error.to_string())?;
    let channel = Channel::bind(&events, DOMID_SELF, front).map_err(|error| error.to_string())?;
    events.mask(channel.port());
    let mut daemon = Daemon::default();
    let client = RingClient::new(daemon.connect(id), page.shared());
    daemon.introduce(id);
    *LOCAL.lock() = Some(Local { daemon, client, channel, events: events.clone(), is_dropped: false });
    Ok(XenStore::new(Bare, events, page.shared(), front))
}

/// Lets the daemon work, if there is one. Tells whether it did anything.
pub fn pump() -> bool {
    // Somebody who holds the lock is the daemon itself.
    LOCAL.try_lock().is_some_and(|mut local| local.as_mut().is_some_and(Local::serve))
}

impl Local {
    fn serve(&mut self) -> bool {
        // The event is taken before the ring is looked at: what comes later makes a new one.
        let asked = self.events.take(self.channel.port());
        if self.is_dropped || !asked && self.daemon.pending(self.client.client()) == 0 {
            return false;
        }
        match self.client.serve(&mut self.daemon) {
            Ok(Notify::Yes) => self.channel.notify(),
            Ok(Notify::No) => {}
            Err(dropped) => {
                println!("error: the store's client is dropped: {dropped}");
                self.is_dropped = true;
            }
        }
        true
    }
}
