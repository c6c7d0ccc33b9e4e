//! A small world for the client: domains with a real ring page each, served by the daemon whenever somebody waits.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::fmt::Arguments;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard};

use hypercall::event::{EventError, Events, Polled};
use hypercall::mem::Shared;
use hypercall::{DomId, Gfn, Hypervisor, Level, Nr, Platform, Port, Region};
use xenbus::ring::Notify;
use xenbus::store::{Op, XenStore};
use xenstored::{ConnId, Daemon, Quota, Refusal, RingClient};

pub(crate) type Client = XenStore<Domain, Domain>;

/// The daemon and its clients.
#[derive(Clone, Default)]
pub(crate) struct World(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    daemon: Daemon,
    clients: Vec<Served>,
    now_ns: u64,
}

struct Served {
    ring: RingClient<'static>,
    page: NonNull<[u64; 512]>,
    /// An event for the client is pending.
    pending: bool,
    /// The client has notified the daemon.
    kicked: bool,
}

// SAFETY: the page is seen through atomics only.
unsafe impl Send for Served {}

impl Drop for Served {
    fn drop(&mut self) {
        // SAFETY: made by `Box::leak` in `new_page`. Each client holds a handle of the world, so all are gone.
        drop(unsafe { Box::from_raw(self.page.as_ptr()) });
    }
}

impl World {
    pub(crate) fn new(quota: Quota) -> Self {
        let world = Self::default();
        world.inner().daemon = Daemon::new(quota);
        world
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }

    /// Makes a client for a domain, with a home of its own.
    pub(crate) fn domain(&self, id: u16) -> Client {
        let page = new_page();
        let port = self.inner().serve_domain(id, page);
        let domain = Domain(self.clone());
        XenStore::new(domain.clone(), domain, view(page), port)
    }

    /// Saves a client's domain and restores it as domain `id`: in the same page it has another daemon's ear, by another port, which is
    /// returned.
    pub(crate) fn restore(&self, client: &Client, id: u16) -> Port {
        let mut inner = self.inner();
        let old = client.port().0 as usize - 1;
        let gone = inner.clients[old].ring.client();
        inner.daemon.disconnect(gone);
        let empty = new_page();
        let page = std::mem::replace(&mut inner.clients[old].page, empty);
        inner.clients[old].ring = RingClient::new(gone, view(empty));
        inner.serve_domain(id, page)
    }

    /// Does something to the daemon.
    pub(crate) fn daemon<T>(&self, work: impl FnOnce(&mut Daemon) -> T) -> T {
        work(&mut self.inner().daemon)
    }

    /// Lets the daemon refuse the next request that comes by a port.
    pub(crate) fn refuse_next(&self, port: Port) {
        let mut inner = self.inner();
        let conn = inner.clients[port.0 as usize - 1].ring.client();
        inner.daemon.refuse_next(conn, Refusal::Quota);
    }

    /// Returns the daemon's name for a client.
    pub(crate) fn conn(&self, client: &Client) -> ConnId {
        self.inner().clients[client.port().0 as usize - 1].ring.client()
    }

    /// Returns how many watches and open transactions the daemon has for a client.
    pub(crate) fn holds(&self, client: &Client) -> (usize, usize) {
        let conn = self.conn(client);
        self.inner().daemon.holds(conn)
    }

    /// Lets the daemon do what there is to do, and the clients handle their events.
    pub(crate) fn settle(&self, clients: &[&Client]) {
        self.inner().serve();
        for client in clients {
            if (Domain(self.clone())).take(client.port()) {
                client.process();
            }
        }
    }
}

fn new_page() -> NonNull<[u64; 512]> {
    NonNull::from(Box::leak(Box::new([0u64; 512])))
}

fn view(page: NonNull<[u64; 512]>) -> Shared<'static> {
    // SAFETY: freed with the world, which every client holds; nobody else has it.
    unsafe { Shared::new(page.cast(), 4096) }
}

impl Inner {
    /// Makes a domain with a home of its own, and serves its page. Returns its port.
    fn serve_domain(&mut self, id: u16, page: NonNull<[u64; 512]>) -> Port {
        self.daemon.introduce(DomId(id));
        let toolstack = self.daemon.connect(DomId(0));
        for (op, text) in [(Op::MKDIR, ""), (Op::SET_PERMS, "nID\0")] {
            let payload = format!("/local/domain/{id}\0{text}").replace("ID", &id.to_string());
            self.daemon.call(toolstack, op, 0, payload.as_bytes()).unwrap();
        }
        self.daemon.disconnect(toolstack);
        let ring = RingClient::new(self.daemon.connect(DomId(id)), view(page));
        self.clients.push(Served { ring, page, pending: false, kicked: false });
        Port(self.clients.len() as u32)
    }

    fn serve(&mut self) {
        loop {
            let mut moved = false;
            for client in &mut self.clients {
                let waits = self.daemon.pending(client.ring.client()) > 0;
                if !client.kicked && !waits {
                    continue;
                }
                client.kicked = false;
                if let Ok(Notify::Yes) = client.ring.serve(&mut self.daemon) {
                    client.pending = true;
                    moved = true;
                }
            }
            if !moved {
                return;
            }
        }
    }
}

/// A domain's platform and its event channels.
#[derive(Clone)]
pub(crate) struct Domain(World);

// SAFETY: there is no hypervisor, and it does nothing.
unsafe impl Hypervisor for Domain {
    unsafe fn hypercall(&self, _: Nr, _: [usize; 5]) -> isize {
        -38
    }
}

// SAFETY: it never gives a page.
unsafe impl Platform for Domain {
    fn alloc(&self, _: Region, _: usize) -> Option<NonNull<u8>> {
        None
    }

    unsafe fn free(&self, _: Region, _: NonNull<u8>, _: usize) {}

    fn gfn_of(&self, _: NonNull<u8>) -> Gfn {
        Gfn(0)
    }

    fn now_ns(&self) -> u64 {
        self.0.inner().now_ns
    }

    fn wait(&self, ports: &[Port], deadline_ns: u64) {
        let mut inner = self.0.inner();
        let pending = |inner: &Inner| ports.iter().any(|port| inner.clients[port.0 as usize - 1].pending);
        if pending(&inner) {
            return;
        }
        inner.serve();
        if !pending(&inner) {
            inner.now_ns = inner.now_ns.max(deadline_ns);
        }
    }

    fn log(&self, _: Level, _: Arguments<'_>) {}
}

impl Events for Domain {
    fn alloc_unbound(&self, _: DomId) -> Result<Port, EventError> {
        Ok(Port(0))
    }

    fn bind_interdomain(&self, _: DomId, port: Port) -> Result<Port, EventError> {
        Ok(port)
    }

    fn notify(&self, port: Port) {
        self.0.inner().clients[port.0 as usize - 1].kicked = true;
    }

    fn unmask(&self, _: Port) {}

    fn close(&self, _: Port) {}
}

impl Polled for Domain {
    fn take(&self, port: Port) -> bool {
        std::mem::take(&mut self.0.inner().clients[port.0 as usize - 1].pending)
    }

    fn raise(&self, port: Port) {
        self.0.inner().clients[port.0 as usize - 1].pending = true;
    }
}
