//! Our back end of a disk, with all that it can: layouts, rings, queues, operations.
#![cfg(not(target_os = "none"))]

mod common;

use std::cell::RefCell;
use std::rc::Rc;

use common::raw_front::{Asks, Granted, RawFront};
use common::rig::{Rig, direct, discard, flush, indirect, table, whole};
use common::{BackOwner, Bed, Slow};
use hypercall::Platform as _;
use hypercall::mem::PAGE_SIZE;
use mock::Node;
use xbd::SECTOR;
use xbd::back::{Back, BackError, Change, Config, Counters, Queue};
use xbd::features::Discard;
use xbd::protocol::{Layout, Operation, Request, Status, X86_32, X86_64};
use xenbus::Place;
use xenbus::device::State;
use xenbus::ring::RingError;
use xenbus::store::{Store, Tx};

const SECTORS: u64 = 1024;

fn config() -> Config {
    Config { copy_limit: 0, ..Config::default() }
}

fn disk() -> Slow {
    Slow::new(SECTORS as usize)
}

fn forgetful() -> Slow {
    let disk = disk();
    disk.0.borrow_mut().discard = Some(Discard { granularity: 512, alignment: 0, secure: true });
    disk
}

/// Reads back what was written, by all kinds of requests.
fn every_operation<L: Layout>() {
    let disk = forgetful();
    let mut rig = Rig::<L>::new(&disk, config(), Asks::default());
    let pages = Granted::many(&rig.bed, 40);
    for (index, page) in (1..).zip(&pages) {
        page.fill(index);
    }
    let at = |page: usize| (page * PAGE_SIZE)..(page + 1) * PAGE_SIZE;
    let has = |disk: &Slow, page: usize, byte: u8| disk.0.borrow().bytes[at(page)] == [byte; PAGE_SIZE];
    assert_eq!(rig.one(&direct(Operation::Write, u64::MAX, 0, &pages[..11])), Status::Okay);
    assert!((0..11).all(|page| has(&disk, page, page as u8 + 1)));
    let segments = table(&rig.bed, &whole(&pages));
    assert_eq!(rig.one(&indirect(Operation::Write, 1 << 63, 16 * 8, 40, &segments)), Status::Okay);
    assert!((0..40).all(|page| has(&disk, 16 + page, page as u8 + 1)));
    for page in &pages {
        page.fill(0);
    }
    assert_eq!(rig.one(&indirect(Operation::Read, 3, 8 * 8, 40, &segments)), Status::Okay);
    for (index, page) in pages.iter().enumerate() {
        assert_eq!(page.bytes(), disk.0.borrow().bytes[at(8 + index)], "page {index}");
    }
    assert_eq!(rig.one(&direct(Operation::Read, 4, 0, &pages[..11])), Status::Okay);
    assert!((0..11).all(|page| pages[page].bytes() == [page as u8 + 1; PAGE_SIZE]));
    assert_eq!(rig.one(&direct(Operation::Barrier, 5, 80 * 8, &pages[3..4])), Status::Okay);
    assert!(has(&disk, 80, 4));
    assert_eq!(rig.one(&flush(6)), Status::Okay);
    assert_eq!(rig.one(&discard(Operation::Discard, 0, 8)), Status::Okay);
    assert_eq!(rig.one(&discard(Operation::SecureDiscard, 8, 8)), Status::Okay);
    assert!(has(&disk, 0, 0) && has(&disk, 1, 0) && has(&disk, 2, 3));
    let barrier = [("flush", 0), ("write", 640), ("flush", 0)];
    assert_eq!(disk.0.borrow().log[4..], [&barrier[..], &[("flush", 0), ("discard", 0), ("secure", 8)]].concat());
    let counters = rig.counters();
    let expected = Counters {
        requests: 8,
        segments: 11 + 40 + 40 + 11 + 1,
        read_sectors: (40 + 11) * 8,
        written_sectors: (11 + 40 + 1) * 8,
        indirect: 2,
        flushes: 1,
        barriers: 1,
        discards: 2,
        mapped: 11 + 41 + 41 + 11 + 1,
        notifications: counters.notifications,
        ..Counters::default()
    };
    assert_eq!(counters, expected);
    rig.end(pages.into_iter().chain(segments).collect());
}

#[test]
fn every_operation_is_done_in_the_layout_of_64_bits() {
    every_operation::<X86_64>();
}

#[test]
fn every_operation_is_done_in_the_layout_of_32_bits() {
    every_operation::<X86_32>();
}

fn full_depth<L: Layout>(pages: usize, depth: u32) {
    let disk = Slow::new(8 * 512);
    let mut rig = Rig::<L>::new(&disk, config(), Asks { pages, ..Asks::default() });
    assert_eq!(rig.front.queues[0].depth(), depth);
    // A grant can't be mapped more than 127 times at once.
    let pages = Granted::many(&rig.bed, 8);
    disk.hold(true);
    // Twice, so that each slot is used again.
    for _ in 0..2 {
        let requests: Vec<_> = (0..u64::from(depth))
            .map(|id| direct(Operation::Read, id, 8 * id, &pages[id as usize % 8..][..1]))
            .collect();
        assert_eq!(rig.send(&requests), []);
        assert_eq!(disk.0.borrow().jobs(), depth as usize);
        let mut ids: Vec<_> = rig.finish(depth as usize).iter().map(|answer| (answer.id, answer.status)).collect();
        ids.sort_unstable_by_key(|(id, _)| *id);
        assert_eq!(ids, (0..u64::from(depth)).map(|id| (id, Status::Okay)).collect::<Vec<_>>());
    }
    rig.end(pages);
}

#[test]
fn ring_of_many_pages_is_served_at_full_depth() {
    for (pages, depth) in [(1, 32), (2, 64), (4, 128), (8, 256), (16, 512)] {
        full_depth::<X86_64>(pages, depth);
        full_depth::<X86_32>(pages, depth);
    }
}

#[test]
fn what_is_offered_is_told_before_the_front_end_decides() {
    let disk = forgetful();
    let bed = Bed::new(1);
    bed.back_says("device-type", "cdrom").unwrap();
    bed.back_says("removable", 1).unwrap();
    let config = Config { max_queues: 3, max_ring_pages: 7, max_indirect_segments: 40, ..config() };
    let mut back = BackOwner::with(&bed, disk.clone(), config).unwrap();
    back.follow(&bed);
    let says = |node: &str| bed.read(&bed.back, &format!("{}/{node}", bed.device.back_path())).unwrap_or_default();
    let offer = ["multi-queue-max-queues", "max-ring-page-order", "max-ring-pages", "feature-max-indirect-segments"];
    assert_eq!((says("state"), offer.map(says)), ("2".into(), ["3", "2", "4", "40"].map(String::from)));
    let disk_nodes =
        ["sectors", "info", "feature-flush-cache", "feature-barrier", "feature-discard", "feature-persistent"];
    assert_eq!(disk_nodes.map(says), ["1024", "3", "1", "1", "1", "1"].map(String::from));
    // The disk may change until there is a front end.
    disk.0.borrow_mut().bytes.truncate(512 * SECTOR);
    let front = RawFront::<X86_64>::ask(&bed, Asks::default());
    back.follow(&bed);
    assert_eq!((says("state"), says("sectors")), ("4".into(), "512".into()));
    drop((back, front));
    bed.check_quiet();
}

#[test]
fn every_queue_serves_by_itself_and_the_counters_are_summed() {
    let disk = disk();
    let mut rig = Rig::<X86_64>::new(&disk, config(), Asks { queues: 4, pages: 2, persistent: true });
    assert_eq!(rig.back.back.queues(), 4);
    let pages = Granted::many(&rig.bed, 4);
    for (index, queue) in rig.front.queues.iter_mut().enumerate() {
        // The same grant in each: each maps it for itself. And the same ids.
        let requests: Vec<_> =
            (0..=index as u64).map(|id| X86_64::emit(&direct(Operation::Read, id, 0, &pages[..1]))).collect();
        queue.send(&requests);
    }
    rig.back.follow(&rig.bed);
    for (index, queue) in rig.front.queues.iter_mut().enumerate() {
        assert_eq!(queue.responses().len(), index + 1);
        assert_eq!(rig.back.back.counters_of(index).unwrap().requests, index as u64 + 1);
    }
    let counters = rig.counters();
    assert_eq!((counters.requests, counters.persistent), (10, 4));
    rig.end(pages);
}

#[test]
fn node_of_one_queue_that_is_wrong_unwinds_the_others_and_the_front_end_may_try_again() {
    let bed = Bed::new(1);
    let disk = disk();
    let mut back = BackOwner::new(&bed, disk);
    back.follow(&bed);
    let asks = Asks { queues: 3, pages: 2, persistent: false };
    let mut wrong = vec![
        ("multi-queue-num-queues", "0"),
        ("multi-queue-num-queues", "5"),
        ("multi-queue-num-queues", "4"),
        ("multi-queue-num-queues", "4294967297"),
        ("multi-queue-num-queues", "x"),
        ("ring-page-order", "5"),
        ("ring-page-order", "2"),
        ("ring-page-order", "32"),
        ("ring-page-order", "4294967295"),
        ("feature-persistent", "y"),
    ];
    for queue in ["queue-0", "queue-1", "queue-2"] {
        for (node, value) in [
            ("ring-ref0", ""),
            ("ring-ref1", ""),
            ("ring-ref1", "400"),
            ("event-channel", ""),
            ("event-channel", "999"),
        ] {
            wrong.push((format!("{queue}/{node}").leak(), value));
        }
    }
    for (rounds, (node, value)) in (1..).zip(wrong) {
        let front = RawFront::<X86_64>::prepare(&bed, asks);
        match value {
            "" => bed.front.store.rm(Tx::NONE, &format!("{}/{node}", bed.device.front_path())).unwrap(),
            value => bed.front_says(node, value).unwrap(),
        }
        bed.front_says("state", State::Initialised.number()).unwrap();
        back.follow(&bed);
        assert_eq!((back.connections, back.errors.len()), (0, rounds), "{node}={value}: {:?}", back.errors);
        assert_eq!(bed.back_state().as_deref(), Some("5"), "{node}={value}");
        assert!(bed.machine.usage().0[&bed.back.id].mappings.is_empty(), "{node}={value}");
        bed.front_says("state", State::Closed.number()).unwrap();
        back.follow(&bed);
        drop(front);
        bed.front_says("state", State::Initialising.number()).unwrap();
        back.follow(&bed);
    }
    let front = RawFront::<X86_64>::ask(&bed, asks);
    back.follow(&bed);
    assert_eq!((back.connections, back.back.queues()), (1, 3));
    drop((back, front));
    bed.check_quiet();
}

#[test]
fn num_ring_pages_is_believed_where_there_is_no_order() {
    let bed = Bed::new(1);
    let mut back = BackOwner::new(&bed, disk());
    back.follow(&bed);
    for (pages, good) in [("3", false), ("0", false), ("32", false), ("4", true)] {
        let front = RawFront::<X86_64>::prepare(&bed, Asks { pages: 4, ..Asks::default() });
        bed.front.store.rm(Tx::NONE, &format!("{}/ring-page-order", bed.device.front_path())).unwrap();
        bed.front_says("num-ring-pages", pages).unwrap();
        bed.front_says("state", State::Initialised.number()).unwrap();
        back.follow(&bed);
        assert_eq!(back.connections > 0, good, "{pages}");
        bed.front_says("state", State::Closed.number()).unwrap();
        back.follow(&bed);
        drop(front);
        bed.front_says("state", State::Initialising.number()).unwrap();
        back.follow(&bed);
    }
    drop(back);
    bed.check_quiet();
}

#[test]
fn single_page_of_a_ring_may_be_numbered() {
    for queues in [1, 2] {
        let bed = Bed::new(1);
        let mut back = BackOwner::new(&bed, disk());
        back.follow(&bed);
        let mut front = RawFront::<X86_64>::prepare(&bed, Asks { queues, ..Asks::default() });
        for (index, queue) in front.queues.iter().enumerate() {
            let folder = if queues > 1 { format!("queue-{index}/") } else { String::new() };
            let gref = queue.ring.backing().refs()[0].0;
            bed.front.store.rm(Tx::NONE, &format!("{}/{folder}ring-ref", bed.device.front_path())).unwrap();
            bed.front_says(&format!("{folder}ring-ref0"), gref).unwrap();
        }
        bed.front_says("state", State::Initialised.number()).unwrap();
        back.follow(&bed);
        assert_eq!((back.connections, &back.errors), (1, &Vec::new()));
        let pages = Granted::many(&bed, 1);
        for queue in &mut front.queues {
            queue.send(&[X86_64::emit(&direct(Operation::Read, 1, 0, &pages))]);
            back.follow(&bed);
            assert_eq!(queue.responses().len(), 1);
        }
        bed.front_says("state", State::Closed.number()).unwrap();
        back.follow(&bed);
        drop((back, front, pages));
        bed.check_quiet();
    }
}

/// An answer stands where a request was; of its padding, nothing is what was there, nor anything of ours.
fn padding_of_answers<L: Layout>(size: usize) {
    let mut rig = Rig::<L>::new(&forgetful(), config(), Asks::default());
    let id = u64::MAX;
    for (slot, request) in [flush(id), discard(Operation::Discard, 8, 8)].into_iter().enumerate() {
        let request = Request { id, ..request };
        assert_eq!(rig.one(&request), Status::Okay);
        let mut bytes = [0xff; 16];
        let page = rig.front.queues[0].ring.backing().shared();
        page.read(64 + slot * size_of::<L::Request>(), &mut bytes[..size]);
        // After id and operation, padding; after the status, in one of the layouts, too.
        assert_eq!(bytes[..8], [0xff; 8]);
        assert_eq!((bytes[8], bytes[9]), (request.operation.wire().0, 0));
        assert!(bytes[10..size].iter().all(|byte| *byte == 0), "{bytes:?}");
    }
    rig.end(Vec::new());
}

#[test]
fn padding_of_an_answer_is_zero() {
    padding_of_answers::<X86_64>(16);
    padding_of_answers::<X86_32>(12);
}

#[test]
fn ring_that_lies_stops_all_queues_and_is_told_once() {
    let disk = disk();
    let mut rig = Rig::<X86_64>::new(&disk, config(), Asks { queues: 3, ..Asks::default() });
    let pages = Granted::many(&rig.bed, 1);
    rig.front.queues[1].show(33);
    rig.back.follow(&rig.bed);
    assert_eq!((rig.back.errors.len(), rig.bed.back_state().as_deref()), (1, Some("5")), "{:?}", rig.back.errors);
    for queue in &mut rig.front.queues {
        queue.send(&[X86_64::emit(&direct(Operation::Read, 1, 0, &pages))]);
    }
    rig.back.follow(&rig.bed);
    assert_eq!((rig.back.errors.len(), disk.0.borrow().started), (1, 0));
    rig.end(pages);
}

#[test]
fn new_size_holds_in_every_queue() {
    let disk = disk();
    let mut rig = Rig::<X86_64>::new(&disk, config(), Asks { queues: 2, ..Asks::default() });
    let pages = Granted::many(&rig.bed, 1);
    disk.0.borrow_mut().bytes.resize(2048 * SECTOR, 0);
    for (resized, expected) in [(false, Status::Error), (true, Status::Okay)] {
        if resized {
            rig.back.back.resized().unwrap();
        }
        for queue in &mut rig.front.queues {
            queue.send(&[X86_64::emit(&direct(Operation::Read, 1, 2040, &pages))]);
        }
        rig.back.follow(&rig.bed);
        for queue in &mut rig.front.queues {
            let answers: Vec<_> = queue.responses().iter().map(|raw| X86_64::answer(raw).status).collect();
            assert_eq!(answers, [expected]);
        }
    }
    rig.end(pages);
}

#[test]
fn request_that_has_waited_while_the_disk_became_smaller_is_refused_beyond_its_end() {
    let disk = disk();
    let mut rig = Rig::<X86_64>::new(&disk, config(), Asks::default());
    let pages = Granted::many(&rig.bed, 1);
    disk.hold(true);
    // The barrier waits for the write before it.
    let requests = [direct(Operation::Write, 1, 0, &pages), direct(Operation::Barrier, 2, 1000, &pages)];
    assert_eq!(rig.send(&requests), []);
    disk.0.borrow_mut().bytes.truncate(512 * SECTOR);
    rig.back.back.resized().unwrap();
    disk.hold(false);
    rig.back.poll();
    rig.back.follow(&rig.bed);
    let mut answers: Vec<_> = rig.front.answers().iter().map(|answer| (answer.id, answer.status)).collect();
    answers.sort_unstable_by_key(|(id, _)| *id);
    assert_eq!(answers, [(1, Status::Okay), (2, Status::Error)]);
    assert_eq!((disk.0.borrow().started, rig.counters().refused), (1, 1));
    rig.end(pages);
}

/// A place outside of the back end, as behind a kernel's lock.
#[derive(Clone, Default)]
struct Outside(Rc<RefCell<Option<Queue<Node, Slow>>>>);

impl Place<Queue<Node, Slow>> for Outside {
    fn with<R>(&mut self, work: impl FnOnce(&mut Option<Queue<Node, Slow>>) -> R) -> R {
        work(&mut self.0.borrow_mut())
    }
}

#[test]
fn queues_in_places_of_their_own_are_polled_there_and_no_more_are_offered() {
    let bed = Bed::new(1);
    let disk = disk();
    let places = vec![Outside::default(), Outside::default()];
    let path = bed.device.back_path();
    let mut back = Back::with_places(&bed.back, &path, disk.clone(), config(), places.clone()).unwrap();
    let follow = |back: &mut Back<Node, Slow, Outside>| {
        let mut last = Change::None;
        loop {
            bed.settle();
            if !back.device().changed() && !back.closing() {
                let Some(until) = back.again_ns() else { return last };
                bed.machine.advance(until - bed.back.platform.now_ns());
            }
            match back.step().unwrap() {
                Change::None => {}
                change => last = change,
            }
        }
    };
    follow(&mut back);
    assert_eq!(bed.read(&bed.back, &format!("{path}/multi-queue-max-queues")).as_deref(), Some("2"));
    let mut front = RawFront::<X86_64>::ask(&bed, Asks { queues: 2, ..Asks::default() });
    assert_eq!(follow(&mut back), Change::Connected);
    let page = Granted::many(&bed, 1);
    for queue in &mut front.queues {
        queue.send(&[X86_64::emit(&direct(Operation::Read, 1, 0, &page))]);
    }
    for (place, queue) in places.iter().zip(&mut front.queues) {
        assert_eq!(place.0.borrow_mut().as_mut().unwrap().poll(), Ok(false));
        assert_eq!(queue.responses().len(), 1);
    }
    assert_eq!(back.counters().unwrap().requests, 2);
    // One of them lies: its owner tells, and the other is stopped.
    front.queues[0].show(1000);
    let error = places[0].0.borrow_mut().as_mut().unwrap().poll().unwrap_err();
    assert_eq!(error, RingError::PeerOverflow { claimed: 999, size: 32 });
    back.fail(&BackError::from(error));
    front.queues[1].send(&[X86_64::emit(&direct(Operation::Read, 1, 0, &page))]);
    assert_eq!(places[1].0.borrow_mut().as_mut().unwrap().poll(), Ok(false));
    assert_eq!(front.queues[1].responses().len(), 0);
    assert_eq!(bed.back_state().as_deref(), Some("5"));
    bed.front_says("state", State::Closed.number()).unwrap();
    assert_eq!(follow(&mut back), Change::Disconnected);
    assert!(places.iter().all(|place| place.0.borrow().is_none()));
    drop((back, front, page));
    bed.check_quiet();
}

/// Makes sure that the types which kernels move between their CPUs may be.
#[test]
fn queue_may_be_given_to_another_cpu() {
    fn sent<T: Send>() {}
    sent::<Queue<Node, suite::disk::Memory>>();
}
