//! Another disk on the machine, which is not to be harmed.

use hypercall::mem::{PAGE_SIZE, PageBuf};
use mock::{Domain, Node};
use suite::block;
use suite::toolstack::NewDevice;
use xbd::back::{self, Back};
use xbd::front::{self, Front};
use xbd::protocol::Operation;

use super::{Bed, Slow};

const SECTORS: usize = 256;
/// Pages of an I/O.
const PAGES: usize = 2;

/// Another disk on the machine, whose owners look at it whether they are told to or not.
pub(crate) struct Neighbour {
    /// Dropped first: it maps what the other has granted.
    back: Back<Node, Slow>,
    front: Front<Node, PageBuf<Domain>>,
    nodes: [Node; 2],
}

impl Neighbour {
    /// Connects a disk of those two domains. They may be those of the bed's disk.
    pub(crate) fn new(bed: &Bed, front: Node, back: Node) -> Self {
        let nodes = [front, back];
        let usual = block::disk(nodes[0].id, nodes[1].id);
        let device = NewDevice { handle: usual.handle + 16, ..usual };
        device.attach(&bed.toolstack.store).unwrap();
        let front = Front::new(&nodes[0], &device.front_path(), front::Config::default()).unwrap();
        let back = Back::new(&nodes[1], &device.back_path(), Slow::new(SECTORS), back::Config::default()).unwrap();
        let mut this = Self { back, front, nodes };
        for _ in 0..4 {
            this.turn(bed);
        }
        this.works(bed);
        this
    }

    /// Lets both ends go on; returns how many I/Os have ended well.
    fn turn(&mut self, bed: &Bed) -> usize {
        bed.settle();
        // What comes to the bed's domains, the bed has taken.
        for node in self.nodes.iter().filter(|node| node.id != bed.front.id && node.id != bed.back.id) {
            node.events.dispatch(0, |event| {
                if event.port == node.store.port() {
                    node.store.process();
                }
            });
        }
        let mut good = 0;
        self.back.step().unwrap();
        self.back.poll(0).unwrap();
        self.front.step(|_| panic!("an I/O of another disk is lost")).unwrap();
        if let Some(queue) = self.front.queue(0) {
            queue.poll(|completion| good += usize::from(completion.result.is_ok())).unwrap();
        }
        good
    }

    /// Reads and writes, as if nothing had happened.
    pub(crate) fn works(&mut self, bed: &Bed) {
        let queue = self.front.queue(0).expect("a connected disk");
        for number in 0..4 {
            let buffer = PageBuf::new(&self.nodes[0].platform, PAGES * PAGE_SIZE).unwrap();
            let operation = [Operation::Read, Operation::Write][number % 2];
            queue.submit(operation, number as u64 * 16, buffer).map_err(|(error, _)| error).unwrap();
        }
        queue.push();
        let good: usize = (0..3).map(|_| self.turn(bed)).sum();
        assert_eq!(good, 4, "another disk is harmed");
    }
}
