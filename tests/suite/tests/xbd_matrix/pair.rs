//! A disk whose both ends are ours, to which something is to happen.

use std::sync::atomic::Ordering::SeqCst;

use hypercall::event::Events;
use hypercall::grant::{Access, Grants, MapRequest, Window};
use hypercall::mem::{PAGE_SIZE, PageBuf};
use hypercall::{GrantRef, Port};
use mock::{Domain, Node};
use xbd::protocol::Operation;
use xbd::{back, front};
use xenbus::ring::Field;

use crate::common::{BackOwner, Bed, FrontOwner, Slow, follow_both};

pub(crate) const SECTORS: usize = 256;

/// How the two ends are to be.
#[derive(Clone, Copy)]
pub(crate) struct Setup {
    pub(crate) front: front::Config,
    pub(crate) back: back::Config,
    /// Pages of every second pair of I/Os, and of the others.
    pub(crate) pages: [usize; 2],
}

/// The default, and two that go other ways wherever there is another: of connections, and of data.
pub(crate) fn setups() -> [Setup; 3] {
    let plain = front::Config::DEFAULT;
    let waiting = front::Config { reconnect: true, max_queues: 2, persistent: true, max_grants: 64, ..plain };
    let keeping = back::Config { max_persistent: 64, pages: 64, ..back::Config::default() };
    // All requests of a page or two are copied, and those of more than eleven are indirect.
    let copying = back::Config { copy_limit: 11 * PAGE_SIZE as u32, ..back::Config::default() };
    [
        Setup { front: plain, back: back::Config::default(), pages: [2, 2] },
        Setup { front: waiting, back: keeping, pages: [2, 2] },
        Setup { front: plain, back: copying, pages: [2, 13] },
    ]
}

/// A disk whose both ends are ours.
pub(crate) struct Pair {
    pub(crate) setup: Setup,
    pub(crate) bed: Bed,
    pub(crate) disk: Slow,
    pub(crate) front: FrontOwner,
    /// The back end, unless its domain is dead.
    pub(crate) back: Option<BackOwner<Slow>>,
    pub(crate) front_is_dead: bool,
    /// Pages of the front end's domain at the beginning.
    pub(crate) pages: usize,
    /// What a fault has taken away for a while.
    pub(crate) refs: Vec<GrantRef>,
    pub(crate) ports: Vec<(Node, Port)>,
    /// A page of the front end's that the back end's domain maps.
    pub(crate) window: Option<Window<Domain>>,
}

impl Pair {
    pub(crate) fn new(setup: Setup) -> Self {
        let (bed, disk) = (Bed::new(7), Slow::new(SECTORS));
        let front = FrontOwner::with(&bed, setup.front).unwrap();
        let back = Some(BackOwner::with(&bed, disk.clone(), setup.back).unwrap());
        let (refs, ports) = (Vec::new(), Vec::new());
        Self { setup, bed, disk, front, back, front_is_dead: false, pages: 0, refs, ports, window: None }
    }

    /// Takes note of what the domains have.
    pub(crate) fn mark(&mut self) {
        self.bed.machine.mark_usage();
        self.pages = self.bed.machine.usage().0[&self.bed.front.id].pages;
    }

    /// Pages of one of the I/Os that are submitted together.
    pub(crate) fn pages_of(&self, number: u64) -> usize {
        self.setup.pages[number as usize / 2 % 2]
    }

    pub(crate) fn front_turns(&mut self) {
        while self.front.turn(&self.bed) {}
    }

    pub(crate) fn back_turns(&mut self) {
        while self.back.as_mut().is_some_and(|back| back.turn(&self.bed)) {}
    }

    pub(crate) fn connect(&mut self) {
        if let Some(back) = &mut self.back {
            follow_both(&self.bed, &mut self.front, back);
        }
        assert!(self.front.connected);
    }

    pub(crate) fn submit(&mut self) {
        for number in 0..4 {
            let operation = [Operation::Read, Operation::Write][number as usize % 2];
            self.submit_to(
                number as usize / 2 % self.front.front.queues(),
                operation,
                number * 8,
                self.pages_of(number),
            );
        }
        self.front.submit_buffer(Operation::Flush, 0, None);
    }

    pub(crate) fn submit_to(&mut self, queue: usize, operation: Operation, sector: u64, pages: usize) -> Option<u64> {
        let buffer = PageBuf::new(&self.bed.front.platform, pages * PAGE_SIZE).ok()?;
        self.front.submit_on(queue, operation, sector, Some(buffer))
    }

    /// The first ring's grant, if the front end has told one.
    pub(crate) fn ring(&self) -> Option<GrantRef> {
        let read = |node| self.bed.read(&self.bed.front, &format!("{}/{node}", self.bed.device.front_path()));
        read("ring-ref").or_else(|| read("queue-0/ring-ref"))?.parse().ok().map(GrantRef)
    }

    /// Maps a page of the front end's in the back end's domain, beside the back end.
    pub(crate) fn map(&mut self, gref: GrantRef) -> Option<&Window<Domain>> {
        let mut window = Window::new(&self.bed.back.platform, 1).ok()?;
        window.map(0, MapRequest { gref, peer: self.bed.front.id, access: Access::ReadWrite }).ok()?;
        Some(self.window.insert(window))
    }

    /// Writes a word of the ring that neither end has said.
    pub(crate) fn corrupt(&mut self, field: Field) {
        if let Some(gref) = self.ring()
            && let Some(view) = self.map(gref).and_then(|window| window.view(0))
        {
            view.word(field.offset()).store(0x4000_0000, SeqCst);
        }
        self.window = None;
        self.front.poll();
        if let Some(back) = &mut self.back {
            back.poll();
        }
    }

    pub(crate) fn notify(&self, times: usize) {
        // Whatever their numbers stand for: a signal to nothing is none.
        let fronts = (0..self.front.front.queues()).map(|queue| (&self.bed.front, self.front.front.port(queue)));
        let served = self.back.iter().flat_map(|back| (0..back.back.queues()).map(|queue| back.back.port(queue)));
        for (node, port) in fronts.chain(served.map(|port| (&self.bed.back, port))) {
            for _ in 0..times {
                port.into_iter().for_each(|port| node.events.notify(port));
            }
        }
    }

    /// Tells whether the disk does what is asked now, in each queue, without anybody's help.
    pub(crate) fn works(&mut self) -> bool {
        let (before, queues) = (self.front.done.len(), self.front.front.queues());
        let asked: Vec<_> = (0..queues).map(|queue| self.submit_to(queue, Operation::Read, 0, 1)).collect();
        self.follow();
        let done = |number| self.front.done[before..].iter().any(|done| done.number == number && done.result == Ok(()));
        queues > 0 && asked.into_iter().all(|number| number.is_some_and(done))
    }

    /// The back end's driver begins with what the toolstack has made.
    pub(crate) fn serve(&mut self) {
        self.back = Some(BackOwner::with(&self.bed, self.disk.clone(), self.setup.back).unwrap());
    }

    pub(crate) fn follow(&mut self) {
        match &mut self.back {
            Some(back) if self.front_is_dead => back.follow(&self.bed),
            Some(back) => follow_both(&self.bed, &mut self.front, back),
            None => self.front.follow(&self.bed),
        }
    }

    /// What was taken away comes back, the disk finishes what it has, time passes, and whoever missed an event looks.
    pub(crate) fn recover(&mut self) {
        // SAFETY: reserved by `full_table`, and never shared.
        unsafe { self.bed.front.grants.release(&std::mem::take(&mut self.refs)) };
        self.ports.drain(..).for_each(|(node, port)| node.events.close(port));
        self.bed.machine.cancel_faults();
        self.disk.hold(false);
        for _ in 0..3 {
            self.bed.machine.advance(1_000_000_000);
            if !self.front_is_dead {
                self.front.poll();
                self.front.step();
            }
            if let Some(back) = &mut self.back
                && !back.removed
            {
                back.poll();
                back.step();
            }
            self.follow();
        }
    }

    /// The toolstack takes the disk away, and both ends have gone.
    pub(crate) fn end(mut self) {
        self.window = None;
        if !self.front_is_dead {
            let _ = self.front.front.close();
        }
        let _ = self.bed.device.ask_detach(&self.bed.toolstack.store);
        self.recover();
        if let Some(back) = &self.back
            && !back.removed
        {
            // The last means of a toolstack.
            self.bed.remove_back();
            self.recover();
        }
        if !self.front_is_dead {
            let over = self.front.closed || self.front.front.queues() == 0;
            assert!(over, "the front end is {} for ever: {:?}", self.front.front.device().state(), self.front.errors);
            self.front.check_each_once();
        }
        // Buffers of which a page was mapped to the last: they are lost, as their owner was told.
        let gone = self.front.done.iter().filter(|done| !done.whole);
        let lost: usize = gone.map(|done| self.pages_of(done.number)).sum();
        let Self { bed, front, back, pages, .. } = self;
        assert!(back.as_ref().is_none_or(|back| back.removed), "the back end stays");
        drop((front, back));
        bed.settle();
        bed.front.grants.retry_quarantine();
        assert_eq!(bed.machine.violations(), [""; 0]);
        let leaks: Vec<_> = bed.machine.leaks().iter().map(ToString::to_string).collect();
        let expected = format!("domain {}: {} pages, before {pages}", bed.front.id.0, pages + lost);
        assert_eq!(leaks, if lost > 0 { vec![expected] } else { Vec::new() });
    }
}
