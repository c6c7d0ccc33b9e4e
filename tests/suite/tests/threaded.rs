//! Both ends of a disk on threads of their own, in real time.
#![cfg(not(target_os = "none"))]

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use hypercall::Port;
use hypercall::call::vcpu as call;
use hypercall::event::Event;
use hypercall::mem::PageBuf;
use mock::{Domain, DomainConfig, Machine};
use suite::block::{self, Client, Memory};
use suite::exec::{Program, World, run};
use suite::node::Node;
use suite::scenarios::noise;
use suite::{Context, Failure};
use xbd::front::{Completion, Returned, SubmitError};
use xbd::protocol::Operation;
use xbd::{SECTOR, back, front};
use xenbus::Place;

/// Sectors of the disk.
const SECTORS: usize = if cfg!(miri) { 64 } else { 16 * 1024 };

/// A thread of a domain: the machine works by itself.
struct Thread;

impl World for Thread {
    fn pump(&mut self) -> bool {
        false
    }

    fn choose(&mut self, _: usize) -> usize {
        0
    }
}

/// Writes the whole disk and reads it back, while others do the same.
async fn copy(node: &Node<Domain>, handle: u32, seed: u64, tell: impl FnOnce()) -> Result<(), Failure> {
    let data = noise(seed, SECTORS * SECTOR);
    let mut disk = Client::attach(node, handle).await?;
    let all = 0..SECTORS as u64;
    let part = |sector: u64, buffer: &PageBuf<Domain>| {
        let start = sector as usize * SECTOR;
        start..start + buffer.len()
    };
    let fill = |sector, buffer: &PageBuf<Domain>| buffer.shared().write(0, &data[part(sector, buffer)]);
    disk.transfer(Operation::Write, all.clone(), fill, |_, _| {}).await?;
    disk.flush().await?;
    let mut wrong = 0;
    let look = |sector, buffer: &PageBuf<Domain>| {
        let mut bytes = vec![0; buffer.len()];
        buffer.shared().read(0, &mut bytes);
        wrong += usize::from(bytes != data[part(sector, buffer)]);
    };
    disk.transfer(Operation::Read, all, |_, _| {}, look).await?;
    suite::ensure(wrong == 0, format_args!("{wrong} request(s) read other than was written"))?;
    tell();
    disk.wait_close_wanted().await?;
    disk.close().await
}

#[test]
fn disks_of_several_domains_are_copied_at_once() {
    let machine = Machine::threaded();
    let toolstack = machine.services(machine.dom0().id());
    // The second pair has its ends the other way round: each domain serves and uses.
    let nodes = [machine.boot(), machine.boot()];
    machine.mark_usage();
    let pairs = [(0, 1), (1, 0)];
    let devices = pairs.map(|(front, back)| block::disk(nodes[front].id, nodes[back].id));
    for device in &devices {
        device.attach(&toolstack.store).context("attach").unwrap();
    }
    std::thread::scope(|scope| {
        let (done, dones) = mpsc::channel();
        for (at, own) in nodes.iter().enumerate() {
            let (own, done, seed) = (own.clone(), done.clone(), at as u64 + 1);
            scope.spawn(move || {
                let node = Node::new("domain", own, mock::alloc::count);
                let client = copy(&node, block::XVDA, seed, move || done.send(at).expect("the toolstack listens"));
                let server = async {
                    let served = block::serve(&node, block::XVDA, Memory::new(vec![0; SECTORS * SECTOR])).await?;
                    let other = noise(3 - seed, SECTORS * SECTOR);
                    suite::ensure(served.store.bytes() == other, "the store has other bytes than were written")?;
                    suite::ensure(served.store.flushes() == 1, "the flush has not reached the store")
                };
                // Client and server of a domain share its thread, as drivers share a kernel.
                let programs = vec![Program::new("client", client), Program::new("server", server)];
                let ended = run(std::slice::from_ref(&node), &mut Thread, programs);
                assert_eq!(ended, Ok(()));
            });
        }
        drop(done);
        for at in dones {
            devices[at].ask_detach(&toolstack.store).context("detach").unwrap();
        }
    });
    for device in &devices {
        assert!(!device.back_exists(&toolstack.store).unwrap());
        device.clean_up(&toolstack.store).unwrap();
    }
    machine.check_quiet();
}

/// Queues, and threads at each end.
const QUEUES: usize = 4;
/// Sectors of an I/O of theirs: three pages.
const STEP: usize = 24;
/// I/Os of a thread, there and back.
const IOS: usize = if cfg!(miri) { 4 } else { 200 };

/// A place that several threads take by turns.
struct Locked<T>(Arc<Mutex<Option<T>>>);

impl<T> Clone for Locked<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Default for Locked<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<T> Place<T> for Locked<T> {
    fn with<R>(&mut self, work: impl FnOnce(&mut Option<T>) -> R) -> R {
        work(&mut self.0.lock().unwrap())
    }
}

type Own = mock::Node;
type Buffer = (usize, PageBuf<Domain>);

/// Whether an event has come to each queue since somebody last looked.
type Told = [AtomicBool; QUEUES];

/// One thread of the front end: writes its part of the disk by its queue, and reads that of its neighbour.
struct Worker<'a> {
    own: usize,
    node: &'a Own,
    place: Locked<front::Queue<Own, Buffer>>,
    told: &'a Told,
    stop: &'a AtomicBool,
}

impl Worker<'_> {
    /// Runs so many I/Os in the part of that thread's; each ends once.
    fn run(&mut self, operation: Operation, part: usize, fill: impl Fn(Range<usize>, &PageBuf<Domain>)) {
        let (mut next, mut ends) = (0, [0_u8; IOS]);
        let range = |io: usize| (part * IOS + io) * STEP * SECTOR..(part * IOS + io + 1) * STEP * SECTOR;
        let mut spare = Vec::new();
        while ends.contains(&0) {
            assert!(!self.stop.load(SeqCst), "thread {} is at {next} of {IOS}: {ends:?}", self.own);
            let mut done = Vec::new();
            hear(self.node, self.own, self.told);
            let look = self.told[self.own].swap(false, SeqCst);
            self.place.with(|queue| {
                let queue = queue.as_mut().expect("a connected queue");
                while next < IOS {
                    let new = || PageBuf::new(&self.node.platform, STEP * SECTOR).unwrap();
                    let buffer = spare.pop().unwrap_or_else(new);
                    if operation == Operation::Write {
                        fill(range(next), &buffer);
                    }
                    let sector = (range(next).start / SECTOR) as u64;
                    match queue.submit(operation, sector, (next, buffer)) {
                        Ok(()) => next += 1,
                        Err((SubmitError::Full, (_, buffer))) => {
                            spare.push(buffer);
                            break;
                        }
                        Err((error, _)) => panic!("{error}"),
                    }
                }
                queue.push();
                if look {
                    queue.poll(|completion| done.push(completion)).unwrap();
                }
            });
            if done.is_empty() {
                thread::yield_now();
            }
            for Completion { buffer, result } in done {
                let Returned::Whole((io, buffer)) = buffer else { panic!("a buffer is lost") };
                assert_eq!(result, Ok(()), "I/O {io}");
                ends[io] += 1;
                if operation == Operation::Read {
                    fill(range(io), &buffer);
                }
                spare.push(buffer);
            }
        }
        assert_eq!(ends, [1; IOS], "each ends once");
    }
}

/// The vcpu that a thread is: the first is that of the thread which leads both lives.
const fn vcpu(thread: usize) -> u32 {
    thread as u32 + 1
}

/// Takes the events of a thread's vcpu, at which those of the queue of the same number arrive.
fn hear(node: &Own, thread: usize, told: &Told) {
    node.events.dispatch(vcpu(thread), |_| told[thread].store(true, SeqCst));
}

/// Makes a domain whose vcpus all run.
fn boot(machine: &Machine) -> Own {
    let config = DomainConfig { vcpus: vcpu(QUEUES), ..DomainConfig::default() };
    let node = machine.services(machine.create(config).id());
    for thread in 0..QUEUES {
        // SAFETY: the threads of the test are what runs.
        unsafe {
            call::initialise(&node.platform, vcpu(thread), &mut std::mem::zeroed()).unwrap();
            call::up(&node.platform, vcpu(thread)).unwrap();
        }
    }
    node
}

/// Lets the events of each queue arrive at a vcpu of its own. Returns their ports.
fn spread(node: &Own, port: impl Fn(usize) -> Option<Port>) -> [Option<Port>; QUEUES] {
    let ports = core::array::from_fn(port);
    for (thread, port) in ports.iter().enumerate() {
        node.events.bind_vcpu(port.expect("a connected queue"), vcpu(thread)).unwrap();
    }
    ports
}

/// Ends the other threads, by a panic, too.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

/// Four vcpus of each end, each a thread: those of the front end have a queue each, those of the back end hear of one and look at all.
#[test]
fn queues_of_a_disk_are_used_by_threads_of_their_own_at_both_ends() {
    let machine = Machine::threaded();
    let toolstack = machine.services(machine.dom0().id());
    let nodes = [boot(&machine), boot(&machine)];
    machine.mark_usage();
    let device = block::disk(nodes[0].id, nodes[1].id);
    device.attach(&toolstack.store).unwrap();
    let sectors = QUEUES * IOS * STEP;
    let (data, disk) = (noise(9, sectors * SECTOR), Memory::new(vec![0; sectors * SECTOR]));
    let fronts: [Locked<front::Queue<Own, Buffer>>; QUEUES] = Default::default();
    let backs: [Locked<back::Queue<Own, Memory>>; QUEUES] = Default::default();
    let config = front::Config { max_queues: QUEUES as u16, ..front::Config::DEFAULT };
    let mut front = front::Front::with_places(&nodes[0], &device.front_path(), config, fronts.to_vec()).unwrap();
    let store = back::Store::handle(&disk);
    let serves = back::Config::default();
    let mut back = back::Back::with_places(&nodes[1], &device.back_path(), store, serves, backs.to_vec()).unwrap();
    let [front_told, back_told]: [Told; 2] = Default::default();
    let (go, stop) = (AtomicBool::new(false), AtomicBool::new(false));
    let [written, over]: [AtomicUsize; 2] = Default::default();
    let until = Instant::now() + Duration::from_secs(60);
    thread::scope(|scope| {
        let mut workers = Vec::new();
        for (own, place) in fronts.iter().enumerate() {
            let (node, place, told) = (&nodes[0], place.clone(), &front_told);
            let (go, written, over, stop, data) = (&go, &written, &over, &stop, &data);
            workers.push(scope.spawn(move || {
                let wait = |until: &dyn Fn() -> bool| {
                    while !until() {
                        assert!(!stop.load(SeqCst), "others have failed");
                        thread::yield_now();
                    }
                };
                wait(&|| go.load(SeqCst));
                let mut worker = Worker { own, node, place, told, stop };
                worker.run(Operation::Write, own, |range, buffer| buffer.shared().write(0, &data[range]));
                written.fetch_add(1, SeqCst);
                wait(&|| written.load(SeqCst) == QUEUES);
                worker.run(Operation::Read, (own + 1) % QUEUES, |range, buffer| {
                    let mut bytes = vec![0; buffer.len()];
                    buffer.shared().read(0, &mut bytes);
                    assert!(bytes == data[range], "it reads other than was written");
                });
                over.fetch_add(1, SeqCst);
            }));
            let (node, mut backs, told) = (&nodes[1], backs.clone(), &back_told);
            scope.spawn(move || {
                let mut turn = own;
                while !stop.load(SeqCst) {
                    hear(node, own, told);
                    turn = (turn + 1) % QUEUES;
                    let look = told[turn].swap(false, SeqCst);
                    let more = backs[turn].with(|queue| {
                        let Some(queue) = queue.as_mut().filter(|queue| look || queue.busy() > 0) else { return false };
                        queue.poll().unwrap()
                    });
                    told[turn].fetch_or(more, SeqCst);
                    thread::yield_now();
                }
            });
        }
        let _stop = Stop(&stop);
        // This thread is the first vcpu of both domains, and leads the life of both ends.
        let (mut ports, mut asked, mut closed, mut removed) = ([[None; QUEUES]; 2], false, false, false);
        while !(closed && removed) {
            let ended = workers.iter().filter(|worker| worker.is_finished()).count();
            assert!(ended <= over.load(SeqCst), "a thread has failed");
            assert!(Instant::now() < until, "{:?} {:?} {over:?}", front.device().state(), back.device().state());
            for ((node, told), ports) in nodes.iter().zip([&front_told, &back_told]).zip(&ports) {
                let queue_of = |event: Event| ports.iter().position(|port| *port == Some(event.port));
                node.events.dispatch(0, |event| {
                    assert_eq!(queue_of(event), None, "an event that belongs to another vcpu");
                    if event.port == node.store.port() {
                        node.store.process();
                    }
                });
                node.events.dispatch_delayed(|event| {
                    queue_of(event).into_iter().for_each(|queue| told[queue].store(true, SeqCst));
                });
            }
            if front.device().changed() {
                match front.step(|_| panic!("an I/O is lost")).unwrap() {
                    front::Change::Connected(_) => {
                        assert_eq!(front.queues(), QUEUES);
                        ports[0] =
                            spread(&nodes[0], |queue| fronts[queue].clone().with(|queue| Some(queue.as_ref()?.port())));
                        go.store(true, SeqCst);
                    }
                    front::Change::CloseWanted => front.close().unwrap(),
                    front::Change::Closed => closed = true,
                    _ => {}
                }
            }
            if !removed && (back.device().changed() || back.closing()) {
                match back.step().unwrap() {
                    back::Change::Connected => {
                        ports[1] =
                            spread(&nodes[1], |queue| backs[queue].clone().with(|queue| Some(queue.as_ref()?.port())));
                        back_told.iter().for_each(|told| told.store(true, SeqCst));
                    }
                    back::Change::Removed => removed = true,
                    _ => {}
                }
            }
            if over.load(SeqCst) == QUEUES && !std::mem::replace(&mut asked, true) {
                let served = (0..QUEUES).map(|queue| back.counters_of(queue).map(|counters| counters.requests));
                assert_eq!(served.collect::<Vec<_>>(), [Some(2 * IOS as u64); QUEUES]);
                device.ask_detach(&toolstack.store).unwrap();
            }
            thread::yield_now();
        }
    });
    assert!(disk.bytes() == data, "the disk has other than was written");
    drop((front, back));
    device.clean_up(&toolstack.store).unwrap();
    machine.check_quiet();
}
