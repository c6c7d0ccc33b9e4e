//! Both ends, whoever does what when.

use hypercall::mem::PageBuf;
use proptest::collection::vec;
use proptest::prelude::*;
use xennet::back::{self, Back, Interface};
use xennet::front::{self, Front};

use crate::rig::{Cut, FRONT, Platform, Rig};

/// Keeps what is delivered, and counts what comes back.
struct Desk {
    platform: Platform,
    delivered: Vec<Cut>,
    allocated: usize,
    released: usize,
}

impl Interface for Desk {
    type Packet = Cut;

    fn allocate(&mut self, len: usize) -> Option<Cut> {
        self.allocated += 1;
        Some(Cut { whole: PageBuf::new(&self.platform, len).unwrap(), piece: 4096 })
    }

    fn deliver(&mut self, packet: Cut) {
        self.delivered.push(packet);
    }

    fn release(&mut self, _: Cut) {
        self.released += 1;
    }
}

/// Both ends, and what has become of the packets.
struct Pair {
    // Before the machine that they live on.
    front: Option<Front<mock::Node, Cut>>,
    back: Option<Back<mock::Node, Desk>>,
    submitted: usize,
    completed: usize,
    sent: usize,
    received: usize,
    rig: Rig,
}

impl Pair {
    fn new() -> Self {
        let rig = Rig::new();
        let desk = Desk { platform: rig.back.platform.clone(), delivered: Vec::new(), allocated: 0, released: 0 };
        let front = Some(Front::new(&rig.front, FRONT).unwrap());
        let back = Some(Back::new(&rig.back, &rig.back_path(), desk).unwrap());
        Self { front, back, submitted: 0, completed: 0, sent: 0, received: 0, rig }
    }

    fn step_front(&mut self) {
        let Some(front) = &mut self.front else {
            self.front = Some(Front::new(&self.rig.front, FRONT).unwrap());
            return;
        };
        match front.step(|_| self.completed += 1).unwrap() {
            front::Change::Closed => self.front = None,
            front::Change::CloseWanted => front.close().unwrap(),
            front::Change::None | front::Change::Connected(_) => {}
        }
    }

    /// Tells whether the device is over.
    fn step_back(&mut self) -> bool {
        self.back.as_mut().is_none_or(|back| back.step().unwrap() == back::Change::Removed)
    }

    fn poll_front(&mut self) {
        let Some(queue) = self.front.as_mut().and_then(Front::queue) else { return };
        let received = &mut self.received;
        let mut take = |packet: front::Received<'_, hypercall::grant::GrantTable<Platform>>| {
            let mut bytes = vec![0; packet.len()];
            packet.read(&mut bytes);
            assert!(bytes.iter().zip(0..).all(|(byte, at)| *byte == crate::rig::pattern(at)));
            *received += 1;
        };
        while queue.poll(|_| self.completed += 1, &mut take).unwrap() {}
    }

    fn poll_back(&mut self) {
        while self.back.as_mut().is_some_and(|back| back.poll().unwrap()) {}
    }

    fn submit(&mut self, len: usize) {
        let packet = Cut::new(&self.rig.front.platform, len, 4096);
        let Some(queue) = self.front.as_mut().and_then(Front::queue) else { return };
        self.submitted += usize::from(queue.submit(packet).is_ok());
        queue.push();
    }

    fn send(&mut self, len: usize) {
        let packet = Cut::new(&self.rig.back.platform, len, 1000);
        let Some(back) = &mut self.back else { return };
        self.sent += usize::from(back.send(packet).is_ok());
        back.push().unwrap();
    }

    fn act(&mut self, action: u8, len: usize) {
        match action {
            0..3 => self.step_front(),
            // Unless the toolstack wants it, the device is never over.
            3..6 => assert!(!self.step_back()),
            6 => self.poll_front(),
            7 => self.poll_back(),
            8 => self.submit(len),
            9 => self.send(len),
            _ => self.front.iter_mut().for_each(|front| front.close().unwrap()),
        }
    }

    /// The toolstack ends the device; both ends come to rest, and nothing is left.
    fn end(mut self, patient: bool) {
        if patient {
            self.rig.ask_detach();
        } else {
            self.rig.remove();
        }
        let mut over = false;
        for _ in 0..8 {
            if self.front.is_some() {
                self.step_front();
            }
            over = over || self.step_back();
        }
        assert!(over && !self.rig.back_exists());
        assert_eq!(self.back.as_ref().unwrap().port(), None, "something of the front end is held");
        let desk = self.back.take().unwrap().into_interface();
        assert_eq!(desk.released, self.sent);
        assert_eq!(desk.allocated, desk.delivered.len());
        assert!(desk.delivered.len() <= self.submitted && self.received <= self.sent);
        // A front end that was never connected is still waiting.
        self.front = None;
        assert_eq!(self.completed, self.submitted);
        drop(desk);
        // A front end whose directories were removed does not wait for the back end to let go of its rings.
        self.rig.front.grants.retry_quarantine();
        self.rig.machine.check_quiet();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn whoever_does_what_when_all_packets_come_back_and_nothing_is_left(
        actions in vec((0u8..11, 14usize..20_000), 0..120),
        patient: bool,
    ) {
        let mut pair = Pair::new();
        for (action, len) in actions {
            // Closing is rare.
            pair.act(if action == 10 && len % 4 > 0 { 8 } else { action }, len);
        }
        pair.end(patient);
    }
}

#[test]
fn packets_cross_when_both_ends_send() {
    let mut pair = Pair::new();
    for _ in 0..3 {
        pair.step_front();
        pair.step_back();
    }
    for len in 14..114 {
        pair.submit(len * 100);
        pair.send(len * 100);
        pair.poll_back();
        pair.poll_front();
    }
    assert_eq!((pair.submitted, pair.completed, pair.sent, pair.received), (100, 100, 100, 100));
    assert_eq!(pair.back.as_ref().unwrap().interface().delivered.len(), 100);
    pair.end(true);
}
