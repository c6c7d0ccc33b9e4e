//! A back end that goes and comes back: what was in flight is sent again.

use hypercall::Platform;
use hypercall::grant::{Access, MapRequest};
use hypercall::mem::PAGE_SIZE;
use xbd::front::{Change, Config, IoError, SubmitError};
use xbd::protocol::Operation;
use xen_sys::io::blkif::{BLKIF_RSP_ERROR, BLKIF_RSP_OKAY, BlkifOp};
use xenbus::device::State;

use crate::common::{BackOwner, Bed, Done, FrontOwner, Slow, follow_both};
use crate::player::{Player, buffer, bytes, connected, ends, submit, submit_on};

const AGAIN: Config = Config { reconnect: true, ..Config::DEFAULT };
const FLUSHES: (&str, &str) = ("feature-flush-cache", "1");

/// The back end lets go of everything and says that it is closed, or nothing at all any more, or that it is ready anew.
fn goes(bed: &Bed, front: &mut FrontOwner, players: Vec<Player>, how: State) {
    drop(players);
    if how == State::Unknown {
        bed.remove_back();
        bed.settle();
    } else {
        bed.back_says("state", how.number()).unwrap();
    }
    bed.settle();
    assert!(front.front.device().changed());
    let done = &mut front.done;
    let change = front.front.step(|completion| done.push(completion.into()));
    assert_eq!(change, Ok(Change::Reconnecting), "{how}");
    assert_eq!(bed.front_state().as_deref(), Some("1"));
    assert!(front.front.queue(0).is_none() && front.front.disk().is_none());
}

#[test]
fn what_is_in_flight_is_sent_to_the_next_back_end_in_its_order_and_ends_once() {
    for how in [State::Closed, State::InitWait, State::Initialising] {
        let (bed, mut front, mut players) = connected(1, AGAIN, &[FLUSHES]);
        submit(&mut front, Operation::Write, 0, Some(buffer(&bed, 2 * PAGE_SIZE, 1))).unwrap();
        submit(&mut front, Operation::Write, 100, Some(buffer(&bed, 30 * PAGE_SIZE, 2))).unwrap();
        submit(&mut front, Operation::Flush, 0, None).unwrap();
        submit(&mut front, Operation::Read, 8, Some(buffer(&bed, 512, 3))).unwrap();
        submit(&mut front, Operation::Write, 0, Some(buffer(&bed, 512, 4))).unwrap();
        let requests = players[0].requests(&bed);
        assert_eq!(requests.len(), 7);
        // The read is answered; of the large one a part; of the first it is not known.
        players[0].answer(&[(&requests[5], BLKIF_RSP_OKAY), (&requests[2], BLKIF_RSP_ERROR)]);
        goes(&bed, &mut front, players, how);
        assert_eq!(front.done, [Done { number: 3, result: Ok(()), whole: true }]);
        let mut players = Player::connect(&bed, &mut front, &[FLUSHES]);
        let requests = players[0].requests(&bed);
        let shape: Vec<_> = requests.iter().map(|seen| (seen.op, seen.sector, seen.segments.len())).collect();
        let (write, flush) = (BlkifOp::WRITE, BlkifOp::FLUSH_DISKCACHE);
        let expected =
            [(write, 0, 2), (write, 100, 11), (write, 188, 11), (write, 276, 8), (flush, 0, 0), (write, 0, 1)];
        assert_eq!(shape, expected, "{how}");
        assert_eq!(players[0].data(&bed, &requests[0]), bytes(2 * PAGE_SIZE, 1));
        let data: Vec<u8> = (1..4).flat_map(|index| players[0].data(&bed, &requests[index])).collect();
        assert!(data == bytes(30 * PAGE_SIZE, 2));
        players[0].all_well(&requests);
        front.follow(&bed);
        assert!(front.done.iter().all(|done| done.result == Ok(()) && done.whole));
        front.check_each_once();
        let counters = front.front.counters();
        assert_eq!((counters.requests, counters.reconnections), (13, 1), "both lives count");
        ends(bed, front, players);
    }
}

#[test]
fn back_end_whose_directory_vanishes_is_waited_for_too() {
    let (bed, mut front, mut players) = connected(2, AGAIN, &[]);
    submit(&mut front, Operation::Write, 0, Some(buffer(&bed, 512, 1))).unwrap();
    players[0].requests(&bed);
    goes(&bed, &mut front, players, State::Unknown);
    front.step();
    assert_eq!((bed.front_state().as_deref(), front.done.len()), (Some("1"), 0));
    front.front.close().unwrap();
    front.step();
    assert!(front.closed);
    assert_eq!(front.done, [Done { number: 0, result: Err(IoError::Lost), whole: true }]);
    drop(front);
    bed.check_quiet();
}

/// The back end says that it is going, while the toolstack keeps the device, or takes it away.
fn wants_to_go(bed: &Bed, front: &mut FrontOwner, online: u8) -> Change {
    bed.back_says("online", online).unwrap();
    bed.back_says("state", State::Closing.number()).unwrap();
    bed.settle();
    assert!(front.front.device().changed());
    front.front.step(|completion| panic!("{completion:?} is lost")).unwrap()
}

#[test]
fn back_end_that_is_going_and_is_kept_is_seen_off_and_waited_for() {
    let (bed, mut front, mut players) = connected(1, AGAIN, &[]);
    for sector in 0..3 {
        submit(&mut front, Operation::Write, sector * 8, Some(buffer(&bed, 512, 1))).unwrap();
    }
    let requests = players[0].requests(&bed);
    assert_eq!(wants_to_go(&bed, &mut front, 1), Change::Reconnecting);
    let error = submit(&mut front, Operation::Read, 0, Some(buffer(&bed, 512, 0))).unwrap_err();
    assert_eq!((error, bed.front_state().as_deref()), (SubmitError::NotConnected, Some("5")));
    // It answers what it has taken, and only then we let it go.
    players[0].answer(&[(&requests[0], BLKIF_RSP_OKAY), (&requests[2], BLKIF_RSP_OKAY)]);
    front.follow(&bed);
    assert_eq!((front.done.len(), bed.front_state().as_deref()), (2, Some("5")));
    players[0].answer(&[(&requests[1], BLKIF_RSP_ERROR)]);
    front.follow(&bed);
    assert_eq!((front.done.len(), bed.front_state().as_deref()), (3, Some("6")));
    assert!(!front.closed && !front.close_wanted);
    drop(players);
    bed.back_says("state", State::Closed.number()).unwrap();
    front.follow(&bed);
    assert_eq!(bed.front_state().as_deref(), Some("1"));
    let mut players = Player::connect(&bed, &mut front, &[]);
    submit(&mut front, Operation::Write, 0, Some(buffer(&bed, 512, 1))).unwrap();
    let requests = players[0].requests(&bed);
    players[0].all_well(&requests);
    front.follow(&bed);
    front.check_each_once();
    ends(bed, front, players);
}

#[test]
fn back_end_that_dies_while_it_is_seen_off_leaves_the_rest_to_the_next() {
    for (how, answers) in [(State::Closed, 1), (State::InitWait, 1), (State::Unknown, 0)] {
        let (bed, mut front, mut players) = connected(1, AGAIN, &[]);
        for sector in 0..2 {
            submit(&mut front, Operation::Write, sector * 8, Some(buffer(&bed, 512, 1))).unwrap();
        }
        let requests = players[0].requests(&bed);
        assert_eq!(wants_to_go(&bed, &mut front, 1), Change::Reconnecting);
        players[0].answer(&vec![(&requests[0], BLKIF_RSP_OKAY); answers]);
        front.follow(&bed);
        drop(players);
        match how {
            State::Unknown => bed.remove_back(),
            how => bed.back_says("state", how.number()).unwrap(),
        }
        front.follow(&bed);
        assert_eq!((front.done.len(), bed.front_state().as_deref()), (answers, Some("1")), "{how}");
        if how == State::Unknown {
            front.front.close().unwrap();
            front.step();
            assert!(front.closed);
            front.check_each_once();
            drop(front);
            bed.check_quiet();
            continue;
        }
        let mut players = Player::connect(&bed, &mut front, &[]);
        let requests = players[0].requests(&bed);
        assert_eq!(requests.iter().map(|request| request.sector).collect::<Vec<_>>(), [8], "{how}");
        players[0].all_well(&requests);
        front.follow(&bed);
        front.check_each_once();
        ends(bed, front, players);
    }
}

#[test]
fn owner_may_still_close_a_disk_whose_back_end_is_seen_off() {
    let (bed, mut front, mut players) = connected(1, AGAIN, &[]);
    submit(&mut front, Operation::Write, 0, Some(buffer(&bed, 512, 1))).unwrap();
    let requests = players[0].requests(&bed);
    assert_eq!(wants_to_go(&bed, &mut front, 1), Change::Reconnecting);
    front.front.close().unwrap();
    players[0].all_well(&requests);
    front.follow(&bed);
    assert_eq!(bed.front_state().as_deref(), Some("6"));
    ends(bed, front, players);
}

#[test]
fn back_end_whose_device_is_taken_away_is_not_waited_for() {
    let (bed, mut front, players) = connected(1, AGAIN, &[]);
    assert_eq!(wants_to_go(&bed, &mut front, 0), Change::CloseWanted);
    front.front.close().unwrap();
    front.follow(&bed);
    ends(bed, front, players);
}

/// The same before it is connected, for the first time or again: a disk that waits for its next back end is told, too.
#[test]
fn device_that_is_taken_away_while_it_connects_is_told_to_its_owner() {
    for again in [false, true] {
        let bed = Bed::new(1);
        let mut back = BackOwner::new(&bed, Slow::new(1024));
        let mut front = FrontOwner::with(&bed, AGAIN).unwrap();
        if again {
            follow_both(&bed, &mut front, &mut back);
            front.submit(&bed, Operation::Write, 0, 1).unwrap();
            bed.back_says("state", State::Closing.number()).unwrap();
        }
        while bed.front_state().as_deref() != Some("3") {
            back.turn(&bed);
            front.turn(&bed);
        }
        assert!(!front.close_wanted);
        bed.device.ask_detach(&bed.toolstack.store).unwrap();
        follow_both(&bed, &mut front, &mut back);
        assert!(front.close_wanted && !back.removed);
        front.front.close().unwrap();
        front.step();
        follow_both(&bed, &mut front, &mut back);
        assert!(front.closed && back.removed);
        front.check_each_once();
        assert_eq!((&front.errors, &back.errors), (&Vec::new(), &Vec::new()));
        drop(front);
        bed.check_quiet();
    }
}

/// Both ends are ours: the administrator lets the back end go by its state alone, as where its driver is taken away and put back.
#[test]
fn our_own_back_end_goes_and_is_back_while_the_disk_is_in_use() {
    let bed = Bed::new(1);
    let disk = Slow::new(1024);
    let mut back = BackOwner::new(&bed, disk.clone());
    let mut front = FrontOwner::with(&bed, AGAIN).unwrap();
    follow_both(&bed, &mut front, &mut back);
    for life in 1..4 {
        assert_eq!((back.connections, front.front.queues()), (life, 1), "{:?} {:?}", back.errors, front.errors);
        disk.0.borrow_mut().hold = true;
        for _ in 0..5 {
            front.submit(&bed, Operation::Write, 0, 1).unwrap();
        }
        follow_both(&bed, &mut front, &mut back);
        bed.back_says("state", State::Closing.number()).unwrap();
        follow_both(&bed, &mut front, &mut back);
        assert_eq!((front.done.len(), bed.front_state().as_deref()), (5 * (life as usize - 1), Some("5")));
        disk.0.borrow_mut().hold = false;
        back.poll();
        follow_both(&bed, &mut front, &mut back);
        front.check_each_once();
        assert!(front.done.iter().all(|done| done.result == Ok(())));
    }
    assert_eq!(front.front.counters().reconnections, 3);
    front.front.close().unwrap();
    follow_both(&bed, &mut front, &mut back);
    assert!(front.closed && !front.close_wanted);
    drop(front);
    bed.check_quiet();
}

#[test]
fn fewer_queues_and_a_smaller_ring_and_no_indirect_requests_take_the_same_ios_bit_by_bit() {
    let config = Config { max_queues: 3, max_ring_pages: 4, ..AGAIN };
    let rich =
        [("multi-queue-max-queues", "3"), ("max-ring-page-order", "2"), ("feature-max-indirect-segments", "256")];
    let poor = [("multi-queue-max-queues", "1"), ("max-ring-page-order", "0"), ("feature-max-indirect-segments", "0")];
    let (bed, mut front, mut players) = connected(3, config, &rich);
    let mut order = vec![Vec::new(); 3];
    for queue in 0..3usize {
        for index in 0..40u64 {
            // No part of the large one begins where another does.
            let (pages, shift) = if index == 7 { (40, 3) } else { (1, 0) };
            let sector = queue as u64 * 4096 + index * 16 + shift;
            submit_on(&mut front, queue, Operation::Write, sector, Some(buffer(&bed, pages * PAGE_SIZE, 0))).unwrap();
            order[queue].push(sector);
        }
        assert_eq!(players[queue].requests(&bed).len(), 40);
    }
    goes(&bed, &mut front, players, State::Closed);
    let mut players = Player::connect(&bed, &mut front, &poor);
    assert_eq!((players.len(), front.front.queues(), players[0].slots), (1, 1, 32));
    assert_eq!(front.front.queue(0).unwrap().in_flight(), 120);
    let error = submit(&mut front, Operation::Read, 0, Some(buffer(&bed, 512, 0))).unwrap_err();
    assert_eq!(error, SubmitError::Full, "those that wait come first");
    let mut seen = Vec::new();
    for _ in 0..20 {
        let requests = players[0].requests(&bed);
        seen.extend(requests.iter().map(|request| (request.sector, request.segments.len())));
        players[0].all_well(&requests);
        front.follow(&bed);
    }
    assert_eq!(front.done.len(), 120);
    assert!(front.done.iter().all(|done| done.result == Ok(()) && done.whole));
    front.check_each_once();
    assert_eq!(seen.len(), 120 + 3 * 3, "a large one is four requests now");
    for sectors in order {
        let firsts: Vec<_> = seen.iter().map(|seen| seen.0).filter(|sector| sectors.contains(sector)).collect();
        assert_eq!(firsts, sectors, "each queue's are in their order");
    }
    submit(&mut front, Operation::Read, 0, Some(buffer(&bed, 512, 0))).unwrap();
    let requests = players[0].requests(&bed);
    players[0].all_well(&requests);
    front.follow(&bed);
    ends(bed, front, players);
}

#[test]
fn io_that_the_new_disk_does_not_take_fails_and_says_why() {
    let (bed, mut front, players) = connected(4, AGAIN, &[FLUSHES]);
    submit(&mut front, Operation::Write, 8, Some(buffer(&bed, 512, 0))).unwrap();
    submit(&mut front, Operation::Write, 65528, Some(buffer(&bed, PAGE_SIZE, 0))).unwrap();
    submit(&mut front, Operation::Write, 16, Some(buffer(&bed, PAGE_SIZE, 0))).unwrap();
    submit(&mut front, Operation::Flush, 0, None).unwrap();
    goes(&bed, &mut front, players, State::Closed);
    // What `connect` says of the size is overwritten before it is looked at.
    let nodes = [("sector-size", "4096"), ("feature-flush-cache", "0"), ("sectors", "4096")];
    let mut players = Player::connect(&bed, &mut front, &nodes);
    let refused = |number, error| Done { number, result: Err(IoError::Refused(error)), whole: true };
    let beyond = SubmitError::BeyondEnd { sector: 65528, sectors: 8, capacity: 4096 };
    assert_eq!(
        front.done,
        [
            refused(0, SubmitError::BadBuffer),
            refused(1, beyond),
            refused(3, SubmitError::NotSupported(Operation::Flush))
        ]
    );
    let requests = players[0].requests(&bed);
    assert_eq!(requests.iter().map(|seen| seen.sector).collect::<Vec<_>>(), [16]);
    players[0].all_well(&requests);
    front.follow(&bed);
    ends(bed, front, players);
}

#[test]
fn page_that_the_old_back_end_maps_has_the_owners_patience_and_then_its_io_is_lost_alone() {
    for lets_go in [true, false] {
        let (bed, mut front, mut players) = connected(5, AGAIN, &[]);
        front.front.set_patience_ns(1_000_000_000);
        for sector in [0, 8] {
            submit(&mut front, Operation::Write, sector, Some(buffer(&bed, PAGE_SIZE, 0))).unwrap();
        }
        let requests = players[0].requests(&bed);
        let request = MapRequest { gref: requests[0].segments[0].gref, peer: bed.front.id, access: Access::ReadOnly };
        players[0].window.map(0, request).unwrap();
        bed.back_says("state", State::Closed.number()).unwrap();
        front.follow(&bed);
        assert!(front.front.is_waiting() && !front.closed);
        let error = submit(&mut front, Operation::Read, 0, Some(buffer(&bed, 512, 0))).unwrap_err();
        assert_eq!(error, SubmitError::NotConnected);
        // It may say what it wants meanwhile.
        bed.back_says("state", State::InitWait.number()).unwrap();
        front.follow(&bed);
        assert_eq!((front.done.len(), bed.front_state().as_deref()), (0, Some("4")));
        if lets_go {
            drop(players.drain(..));
        } else {
            let platform = &bed.front.platform;
            let end = platform.now_ns() + 1_000_000_000;
            while platform.now_ns() < end {
                platform.wait(&[], end);
            }
        }
        front.step();
        assert_eq!(bed.front_state().as_deref(), Some("1"));
        assert!(!front.front.is_waiting());
        let lost = [Done { number: 0, result: Err(IoError::Lost), whole: false }];
        assert_eq!(front.done, if lets_go { &[][..] } else { &lost });
        drop(players);
        let mut players = Player::connect(&bed, &mut front, &[]);
        let requests = players[0].requests(&bed);
        let sectors: Vec<_> = requests.iter().map(|seen| seen.sector).collect();
        assert_eq!(sectors, if lets_go { &[0, 8][..] } else { &[8] });
        players[0].all_well(&requests);
        front.follow(&bed);
        front.check_each_once();
        if lets_go {
            ends(bed, front, players);
        }
    }
}

#[test]
fn copied_data_is_sent_again_though_the_old_back_end_keeps_its_pages() {
    let config = Config { trusted: false, ..AGAIN };
    let (bed, mut front, mut old) = connected(6, config, &[]);
    submit(&mut front, Operation::Write, 0, Some(buffer(&bed, PAGE_SIZE, 9))).unwrap();
    let requests = old[0].requests(&bed);
    let request = MapRequest { gref: requests[0].segments[0].gref, peer: bed.front.id, access: Access::ReadOnly };
    old[0].window.map(0, request).unwrap();
    bed.back_says("state", State::Closed.number()).unwrap();
    front.follow(&bed);
    assert_eq!(bed.front_state().as_deref(), Some("1"));
    let mut players = Player::connect(&bed, &mut front, &[]);
    let requests = players[0].requests(&bed);
    assert_eq!(players[0].data(&bed, &requests[0]), bytes(PAGE_SIZE, 9));
    players[0].all_well(&requests);
    front.follow(&bed);
    drop(old);
    ends(bed, front, players);
}

#[test]
fn back_end_may_go_at_any_moment_of_the_next_connection_and_again() {
    let (bed, mut front, mut players) = connected(7, AGAIN, &[]);
    submit(&mut front, Operation::Write, 0, Some(buffer(&bed, 512, 0))).unwrap();
    submit(&mut front, Operation::Write, 8, Some(buffer(&bed, 512, 0))).unwrap();
    players[0].requests(&bed);
    goes(&bed, &mut front, players, State::Closed);
    // Before it has found the rings.
    bed.back_says("state", State::InitWait.number()).unwrap();
    front.follow(&bed);
    assert_eq!(bed.front_state().as_deref(), Some("3"));
    bed.back_says("state", State::Closed.number()).unwrap();
    front.follow(&bed);
    assert_eq!(bed.front_state().as_deref(), Some("1"));
    // And as soon as it is connected, with one of them done.
    let mut players = Player::connect(&bed, &mut front, &[]);
    let requests = players[0].requests(&bed);
    assert_eq!(requests.len(), 2);
    players[0].answer(&[(&requests[0], BLKIF_RSP_OKAY)]);
    goes(&bed, &mut front, players, State::Closed);
    assert_eq!(front.done, [Done { number: 0, result: Ok(()), whole: true }]);
    let mut players = Player::connect(&bed, &mut front, &[]);
    let requests = players[0].requests(&bed);
    assert_eq!(requests.iter().map(|seen| seen.sector).collect::<Vec<_>>(), [8]);
    assert_eq!(front.front.counters().reconnections, 2, "one has not come as far as that");
    players[0].all_well(&requests);
    front.follow(&bed);
    ends(bed, front, players);
}

#[test]
fn owner_may_close_while_what_is_to_be_sent_again_is_not_sent_yet_and_it_is_done_all_the_same() {
    let config = Config { max_ring_pages: 2, ..AGAIN };
    let (bed, mut front, players) = connected(8, config, &[("max-ring-page-order", "1")]);
    for sector in 0..50 {
        submit(&mut front, Operation::Write, sector, Some(buffer(&bed, 512, 0))).unwrap();
    }
    goes(&bed, &mut front, players, State::Closed);
    let mut players = Player::connect(&bed, &mut front, &[("max-ring-page-order", "0")]);
    front.front.close().unwrap();
    front.step();
    assert_eq!(bed.front_state().as_deref(), Some("5"));
    for _ in 0..2 {
        let requests = players[0].requests(&bed);
        players[0].all_well(&requests);
        front.follow(&bed);
    }
    assert_eq!(bed.front_state().as_deref(), Some("6"));
    assert!(front.done.len() == 50 && front.done.iter().all(|done| done.result == Ok(())));
    ends(bed, front, players);
}

#[test]
fn back_end_that_broke_the_protocol_is_not_waited_for() {
    let (bed, mut front, mut players) = connected(9, AGAIN, &[]);
    submit(&mut front, Operation::Write, 0, Some(buffer(&bed, 512, 0))).unwrap();
    let mut requests = players[0].requests(&bed);
    requests[0].id = 31;
    players[0].all_well(&requests);
    front.follow(&bed);
    assert_eq!(bed.front_state().as_deref(), Some("6"));
    assert_eq!(front.done, [Done { number: 0, result: Err(IoError::Lost), whole: true }]);
    ends(bed, front, players);
}

#[test]
fn back_end_that_broke_the_protocol_is_not_waited_for_even_if_it_goes_before_its_owner_has_closed() {
    let (bed, mut front, mut players) = connected(10, AGAIN, &[]);
    submit(&mut front, Operation::Write, 0, Some(buffer(&bed, 512, 0))).unwrap();
    let mut requests = players[0].requests(&bed);
    requests[0].id = 31;
    players[0].all_well(&requests);
    bed.settle();
    assert!(front.front.queue(0).unwrap().poll(drop).is_err());
    drop(players);
    bed.back_says("state", State::Closed.number()).unwrap();
    bed.settle();
    front.step();
    assert!(front.closed);
    assert_eq!(front.done, [Done { number: 0, result: Err(IoError::Lost), whole: true }]);
    assert_eq!(front.front.counters().errors, 1);
    drop(front);
    bed.check_quiet();
}

#[test]
fn io_that_waits_for_room_is_not_overtaken_by_a_smaller_one() {
    let config = Config { max_ring_pages: 2, ..AGAIN };
    let (bed, mut front, players) = connected(11, config, &[("max-ring-page-order", "1")]);
    for sector in 0..31 {
        submit(&mut front, Operation::Write, sector, Some(buffer(&bed, 512, 0))).unwrap();
    }
    submit(&mut front, Operation::Write, 1000, Some(buffer(&bed, 12 * PAGE_SIZE, 0))).unwrap();
    goes(&bed, &mut front, players, State::Closed);
    let mut players = Player::connect(&bed, &mut front, &[("max-ring-page-order", "0")]);
    let requests = players[0].requests(&bed);
    assert_eq!(requests.len(), 31, "the last one takes two, and there is room for one");
    assert_eq!(submit(&mut front, Operation::Flush, 0, None), Err(SubmitError::Full));
    assert_eq!(submit(&mut front, Operation::Read, 0, Some(buffer(&bed, 512, 0))), Err(SubmitError::Full));
    players[0].all_well(&requests);
    front.follow(&bed);
    submit(&mut front, Operation::Read, 0, Some(buffer(&bed, 512, 0))).unwrap();
    let requests = players[0].requests(&bed);
    assert_eq!(requests.iter().map(|seen| seen.sector).collect::<Vec<_>>(), [1000, 1088, 0]);
    players[0].all_well(&requests);
    front.follow(&bed);
    ends(bed, front, players);
}
