//! Many disks, or one with many queues, in one domain: what a request costs among so many. Events arrive as a kernel gets them, by the
//! pending bits of the shared page.

use alloc::string::String;
use alloc::vec::Vec;

use hypercall::Port;
use hypercall::event::{Events as _, PORTS, Polled as _};
use xbd::{back, front};

use crate::bed::{Bed, Ground, Host};

/// Whose a port is.
#[derive(Clone, Copy)]
struct Owner {
    disk: u16,
    queue: u16,
    is_back: bool,
}

/// Disks that are all connected.
#[allow(missing_debug_implementations, reason = "nobody prints it")]
pub struct Fleet {
    ground: Ground,
    disks: Vec<Bed>,
    queues: usize,
    owners: Vec<Option<Owner>>,
}

impl Fleet {
    /// Connects so many disks of so many queues each.
    ///
    /// # Errors
    /// What has gone wrong.
    ///
    /// # Safety
    /// As [`Ground::new`].
    pub unsafe fn open(host: Host, disks: usize, queues: u16) -> Result<Self, String> {
        // SAFETY: the caller's.
        let ground = unsafe { Ground::new(host) }?;
        // As little memory as there can be: a page for each request.
        let front = front::Config { max_queues: queues, max_grants: 32, ..front::Config::default() };
        let (max_queues, default) = (queues, back::Config::default());
        let back = back::Config {
            max_queues,
            pages: 32,
            copy_limit: 0,
            max_indirect_segments: 0,
            persistent: false,
            ..default
        };
        let mut fleet = Self { ground, disks: Vec::new(), queues: queues.into(), owners: Vec::new() };
        fleet.owners.resize(PORTS as usize, None);
        for number in 0..disks {
            let mut disk = fleet.ground.disk(number, front, back)?;
            for queue in 0..queues {
                let ports = disk.ports(queue.into()).ok_or("fewer queues than there are to be")?;
                for (port, is_back) in ports.into_iter().zip([false, true]) {
                    let owner = fleet.owners.get_mut(port.0 as usize).ok_or("no such port")?;
                    *owner = Some(Owner { disk: number as u16, queue, is_back });
                }
            }
            fleet.disks.push(disk);
        }
        Ok(fleet)
    }

    /// Submits so many reads of a page to each queue of the first `disks` disks. Returns how many there are now.
    pub fn submit(&mut self, count: u32, disks: u32) -> u64 {
        let mut all = 0;
        for disk in self.disks.iter_mut().take(disks as usize) {
            for queue in 0..self.queues {
                all += disk.submit(queue, count, 1);
            }
        }
        all
    }

    /// Handles events until there are no more. Returns how many reads were completed well.
    pub fn handle(&mut self) -> u64 {
        let Self { ground, disks, owners, .. } = self;
        let mut good = 0;
        while ground.events().upcall_pending(0) {
            ground.events().dispatch(0, |event| {
                let Some(owner) = owners.get(event.port.0 as usize).copied().flatten() else { return };
                let Some(disk) = disks.get_mut(usize::from(owner.disk)) else { return };
                if owner.is_back {
                    disk.serve(owner.queue.into());
                } else {
                    good += disk.complete(owner.queue.into());
                }
            });
        }
        good
    }

    /// Makes so many ports pending; they are those of the first disks.
    pub fn raise(&mut self, ports: u32) -> u64 {
        let owned = (0..).map(Port).zip(&self.owners).filter(|(_, owner)| owner.is_some());
        let raise = |(port, _)| self.ground.events().raise(port);
        owned.take(ports as usize).map(raise).count() as u64
    }

    /// Finds the ports that are pending, and does nothing more with them. Returns how many there were.
    pub fn scan(&mut self) -> u64 {
        let events = self.ground.events();
        events.dispatch(0, |event| events.unmask(event.port)) as u64
    }
}
