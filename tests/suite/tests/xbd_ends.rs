//! A disk whose both ends are ours: what is largest, and what is beside what wants all.
#![cfg(not(target_os = "none"))]

mod common;

use common::neighbour::Neighbour;
use common::raw_front::{Asks, Granted, RawFront};
use common::rig::{indirect, table, whole};
use common::{BackOwner, Bed, FrontOwner, Slow, follow_both};
use hypercall::mem::{PAGE_SIZE, PageBuf};
use suite::scenarios::noise;
use xbd::front::Returned;
use xbd::protocol::{Layout, Operation, Status, X86_64};
use xbd::{back, front};
use xenbus::device::State;

/// 4096 segments, on eight pages, there and back.
#[test]
fn largest_request_there_can_be_goes_from_end_to_end() {
    let pages = if cfg!(miri) { 600 } else { 4096 };
    let data = noise(4, pages * PAGE_SIZE);
    for persistent in [false, true] {
        let (bed, disk) = (Bed::new(1), Slow::new(pages * PAGE_SIZE / xbd::SECTOR));
        let largest = front::Config { max_indirect_segments: 4096, max_grants: 4096, ..front::Config::DEFAULT };
        let mut front = FrontOwner::with(&bed, front::Config { persistent, ..largest }).unwrap();
        let taken = back::Config { max_indirect_segments: 4096, max_persistent: 5000, ..back::Config::default() };
        let mut back = BackOwner::with(&bed, disk.clone(), taken).unwrap();
        follow_both(&bed, &mut front, &mut back);
        let mut run = |operation, buffer: PageBuf<_>| {
            let queue = front.front.queue(0).unwrap();
            queue.submit(operation, 0, (0, Some(buffer))).map_err(|(error, _)| error).unwrap();
            queue.push();
            back.follow(&bed);
            let mut ended = Vec::new();
            queue.poll(|completion| ended.push((completion.buffer, completion.result))).unwrap();
            match ended.pop() {
                Some((Returned::Whole((_, Some(buffer))), Ok(()))) if ended.is_empty() => buffer,
                other => panic!("{operation:?}: {:?}", other.map(|(_, result)| result)),
            }
        };
        let buffer = PageBuf::new(&bed.front.platform, data.len()).unwrap();
        buffer.shared().write(0, &data);
        let buffer = run(Operation::Write, buffer);
        assert!(disk.0.borrow().bytes == data, "the disk has other than was written");
        disk.0.borrow_mut().bytes.reverse();
        let buffer = run(Operation::Read, buffer);
        let mut read = vec![0; data.len()];
        buffer.shared().read(0, &mut read);
        assert!(read == disk.0.borrow().bytes, "other was read than the disk has");
        let counters = back.counters();
        assert_eq!((counters.requests, counters.indirect, counters.segments), (2, 2, 2 * pages as u64));
        front.front.close().unwrap();
        front.step();
        follow_both(&bed, &mut front, &mut back);
        assert!(front.closed);
        drop((front, back, buffer));
        bed.check_quiet();
    }
}

/// One front end has filled all its rings with the largest requests, at a disk that does nothing, and signals all the
/// time; another, of the same back-end domain, is served as if it were alone.
#[test]
fn greedy_front_end_takes_no_more_than_it_may_and_nothing_of_an_honest_one() {
    const SEGMENTS: usize = 256;
    for persistent in [false, true] {
        let (bed, disk) = (Bed::new(1), Slow::new(SEGMENTS * 8));
        let mut back = BackOwner::new(&bed, disk.clone());
        let mut honest = Neighbour::new(&bed, bed.machine.boot(), bed.back.clone());
        bed.machine.mark_usage();
        let mapped = || bed.machine.usage().0[&bed.back.id].mappings.len();
        let before = mapped();
        back.follow(&bed);
        let mut greedy = RawFront::<X86_64>::ask(&bed, Asks { queues: 4, pages: 2, persistent });
        back.follow(&bed);
        assert_eq!((back.connections, back.back.queues()), (1, 4));
        let pages = Granted::many(&bed, SEGMENTS);
        let segments = table(&bed, &whole(&pages));
        disk.hold(true);
        for queue in &mut greedy.queues {
            let operation = |id| if id % 2 == 0 { Operation::Read } else { Operation::Write };
            let request = |id| X86_64::emit(&indirect(operation(id), id, 0, SEGMENTS, &segments));
            let requests: Vec<_> = (0..u64::from(queue.depth())).map(request).collect();
            queue.send(&requests);
        }
        let config = back::Config::default();
        let most =
            4 * (2 + usize::from(config.pages) + if persistent { usize::from(config.max_persistent) } else { 0 });
        for _ in 0..20 {
            greedy.queues.iter().for_each(|queue| (0..100).for_each(|_| queue.channel.notify()));
            back.turn(&bed);
            assert!((1..=most).contains(&(mapped() - before)), "{} pages are mapped", mapped());
            honest.works(&bed);
        }
        let waiting = disk.0.borrow().jobs();
        assert!((4..=4 * 8).contains(&waiting), "the disk has {waiting} requests");
        // The disk goes on, and all that was asked for is done.
        disk.hold(false);
        let mut answers = [0; 4];
        for _ in 0..200 {
            back.poll();
            honest.works(&bed);
            for (answered, queue) in answers.iter_mut().zip(&mut greedy.queues) {
                *answered += queue.responses().iter().filter(|raw| X86_64::answer(raw).status == Status::Okay).count();
            }
        }
        assert_eq!((answers, &back.errors), ([64; 4], &Vec::new()));
        for state in [State::Closing, State::Closed] {
            bed.front_says("state", state.number()).unwrap();
            back.follow(&bed);
        }
        assert_eq!((back.disconnections, mapped()), (1, before));
        honest.works(&bed);
        drop((greedy, pages, segments));
        bed.check_quiet();
    }
}
