//! A disk whose front end's domain is saved and restored: what becomes of what was in flight, step by step.
#![cfg(not(target_os = "none"))]

mod common;

use common::{BackOwner, Bed, Done, FrontOwner, RawBack, Slow, answer, follow_both};
use hypercall::DomId;
use hypercall::event::Events;
use mock::{Suspended, suspend};
use suite::block;
use xbd::front::{Change, Config, Front, IoError};
use xbd::protocol::Operation;
use xen_sys::io::blkif::{BLKIF_RSP_ERROR, BLKIF_RSP_OKAY};
use xenbus::device::State;
use xenbus::store::{Store, Tx};

const SECTORS: usize = 1024;

fn resume(front: &mut FrontOwner) -> Change {
    let done = &mut front.done;
    let change = front.front.resume(|completion| done.push(completion.into())).unwrap();
    front.connected = false;
    change
}

/// The disk goes as it should, each I/O is over, and nothing is left.
fn end(bed: &Bed, mut front: FrontOwner, mut back: BackOwner<Slow>) {
    front.check_each_once();
    front.front.close().unwrap();
    front.step();
    follow_both(bed, &mut front, &mut back);
    assert!(front.closed);
    assert_eq!((&front.errors, &back.errors), (&Vec::new(), &Vec::new()));
    drop((front, back));
    bed.check_quiet();
}

/// Ways in which a front end moves data.
fn ways() -> [Config; 4] {
    [
        Config::DEFAULT,
        Config { max_queues: 2, max_ring_pages: 4, ..Config::DEFAULT },
        Config { persistent: true, max_grants: 200, ..Config::DEFAULT },
        Config { trusted: false, max_grants: 200, ..Config::DEFAULT },
    ]
}

#[test]
fn what_was_in_flight_is_done_by_the_next_back_end_in_its_order_and_completes_once() {
    for config in ways() {
        let (mut bed, disk) = (Bed::new(1), Slow::new(SECTORS));
        let mut front = FrontOwner::with(&bed, config).unwrap();
        let mut old = BackOwner::new(&bed, disk.clone());
        follow_both(&bed, &mut front, &mut old);
        assert!(front.connected);
        disk.hold(true);
        for number in 0..10 {
            let operation = if number % 2 == 0 { Operation::Read } else { Operation::Write };
            // Every fourth is indirect, if there are such.
            front.submit(&bed, operation, number * 96, if number % 4 == 0 { 12 } else { 1 }).unwrap();
        }
        front.submit_buffer(Operation::Flush, 0, None).unwrap();
        old.follow(&bed);
        disk.0.borrow_mut().allowed = 2;
        old.poll();
        bed.settle();

        bed.restore();
        assert_eq!(resume(&mut front), Change::Reconnecting);
        let answered: Vec<u64> = front.done.iter().map(|done| done.number).collect();
        assert_eq!(answered, [0, 1], "what was answered is not sent again");
        assert_eq!(front.front.queues(), 0);
        assert_eq!(bed.front_state().as_deref(), Some("1"));
        // The last back end is still at work, on pages that are nobody's.
        disk.hold(false);
        old.follow(&bed);
        assert!(old.removed);
        drop(old);
        disk.0.borrow_mut().log.clear();
        let mut new = BackOwner::new(&bed, disk.clone());
        follow_both(&bed, &mut front, &mut new);
        assert!(front.connected, "{:?}", front.errors);
        front.check_each_once();
        assert!(front.done.iter().all(|done| done.result.is_ok() && done.whole), "{:?}", front.done);
        let log: Vec<(&str, u64)> = disk.0.borrow().log.clone();
        let again = (2..10).map(|number| (if number % 2 == 0 { "read" } else { "write" }, number * 96));
        assert_eq!(log, again.chain([("flush", 0)]).collect::<Vec<_>>());
        // And it goes on.
        front.submit(&bed, Operation::Write, 8, 1).unwrap();
        follow_both(&bed, &mut front, &mut new);
        end(&bed, front, new);
    }
}

#[test]
fn data_of_requests_that_are_sent_again_is_that_of_before() {
    for config in ways() {
        let (mut bed, disk) = (Bed::new(2), Slow::new(SECTORS));
        let mut front = FrontOwner::with(&bed, config).unwrap();
        let mut old = BackOwner::new(&bed, disk.clone());
        follow_both(&bed, &mut front, &mut old);
        disk.hold(true);
        let buffer = hypercall::mem::PageBuf::new(&bed.front.platform, 2 * 4096).unwrap();
        for at in (0..2 * 4096).step_by(8) {
            buffer.shared().write(at, &(at as u64).to_le_bytes());
        }
        front.submit_buffer(Operation::Write, 16, Some(buffer)).unwrap();
        old.follow(&bed);
        bed.restore();
        resume(&mut front);
        // It ends, and what it has done is undone: it counts for nothing.
        disk.hold(false);
        old.follow(&bed);
        drop(old);
        disk.0.borrow_mut().bytes[16 * 512..][..2 * 4096].fill(0xee);
        let mut new = BackOwner::new(&bed, disk.clone());
        follow_both(&bed, &mut front, &mut new);
        front.check_each_once();
        let written = disk.0.borrow().bytes[16 * 512..][..2 * 4096].to_vec();
        let right = (0..2 * 4096).step_by(8).flat_map(|at| (at as u64).to_le_bytes()).collect::<Vec<_>>();
        assert!(written == right, "{config:?}");
        end(&bed, front, new);
    }
}

#[test]
fn last_answers_of_the_back_end_are_believed_and_the_rest_is_sent_again() {
    let mut bed = Bed::new(3);
    let mut front = FrontOwner::new(&bed);
    let mut raw = RawBack::connect(&bed, &mut front);
    for sector in 0..4 {
        front.submit(&bed, Operation::Read, sector * 8, 1).unwrap();
    }
    let requests = raw.requests();
    assert_eq!(requests.len(), 4);
    // One is mapped when the domain is saved, and stays so.
    assert!(raw.map(&bed, 0, &requests[2]));
    raw.respond(&[answer(&requests[1], BLKIF_RSP_OKAY), answer(&requests[3], BLKIF_RSP_ERROR)]);
    bed.restore();
    assert_eq!(resume(&mut front), Change::Reconnecting);
    let done = |number, result| Done { number, result, whole: true };
    assert_eq!(front.done, [done(1, Ok(())), done(3, Err(IoError::Failed))]);
    assert_eq!(front.front.counters().still_mapped, 0);
    assert!(!front.front.is_waiting(), "nobody maps anything of a restored domain");

    // The next one is another's port and ring: the last can neither signal nor answer.
    let mut next = RawBack::connect(&bed, &mut front);
    raw.respond(&[answer(&requests[0], BLKIF_RSP_OKAY)]);
    front.follow(&bed);
    assert_eq!(front.done.len(), 2);
    let again = next.requests();
    assert_eq!(again.iter().map(|request| request.sector_number).collect::<Vec<_>>(), [0, 16]);
    next.respond(&[answer(&again[0], BLKIF_RSP_OKAY), answer(&again[1], BLKIF_RSP_OKAY)]);
    front.follow(&bed);
    front.check_each_once();
    assert_eq!(front.errors, Vec::<String>::new());
    drop((front, raw, next));
    bed.check_quiet();
}

#[test]
fn queues_of_before_close_no_port_of_now() {
    let mut bed = Bed::new(4);
    let other = suite::toolstack::NewDevice { handle: block::XVDA + 16, ..bed.device.clone() };
    let attach = |bed: &Bed, device: &suite::toolstack::NewDevice<'_>, state: State| {
        let path = format!("/local/domain/{}/{}", device.back.0, device.back_path());
        for (node, value) in [("sectors", 1024), ("state", u64::from(state.number()))] {
            bed.toolstack.store.write_text(Tx::NONE, &format!("{path}/{node}"), value).unwrap();
        }
    };
    other.attach(&bed.toolstack.store).unwrap();
    let config = Config { max_queues: 1, ..Config::DEFAULT };
    let mut disks = [&bed.device, &other].map(|device| {
        attach(&bed, device, State::InitWait);
        let mut disk = Front::<mock::Node, common::Io>::new(&bed.front, &device.front_path(), config).unwrap();
        disk.step(drop).unwrap();
        attach(&bed, device, State::Connected);
        assert!(matches!(disk.step(drop), Ok(Change::Connected(_))));
        disk
    });
    let ports = disks.each_ref().map(|disk| disk.port(0).unwrap());
    let old = other;
    let new = bed.machine.restore_next(bed.front.id);
    let devices = [&bed.device, &old].map(|device| suite::toolstack::NewDevice { front: new, ..device.clone() });
    devices.iter().for_each(|device| device.attach(&bed.toolstack.store).unwrap());
    assert_eq!(suspend(&bed.front), Ok(Suspended::Restored));
    bed.front.id = new;
    // A port that others take first, and the first disk: they may have the numbers of both disks' ports.
    let taken: Vec<_> = (0..6).map(|_| bed.front.events.alloc_unbound(DomId(0)).unwrap()).collect();
    taken.iter().for_each(|port| bed.front.events.close(*port));
    assert!(ports.iter().all(|port| taken.contains(port)), "{ports:?} {taken:?}");
    let mut made = Vec::new();
    // The last first: it gets the number that a queue of the other disk's has had, which is dropped after that.
    for (disk, device) in disks.iter_mut().zip(&devices).rev() {
        assert_eq!(disk.resume(drop), Ok(Change::Reconnecting));
        attach(&bed, device, State::InitWait);
        disk.step(drop).unwrap();
        made.push(disk.port(0).unwrap());
        let open = &bed.machine.usage().0[&new].ports;
        assert!(made.iter().all(|port| open.contains(port)), "{made:?} {open:?}");
    }
    assert_eq!(made[0], ports[0], "a number was given again");
    assert_ne!(made[0], made[1]);
    drop(disks);
    let open = &bed.machine.usage().0[&new].ports;
    assert_eq!(open.len(), 2, "those of store and console: {open:?}");
}

#[test]
fn disk_that_was_never_connected_begins_anew() {
    for initialised in [false, true] {
        let mut bed = Bed::new(5);
        let mut front = FrontOwner::new(&bed);
        if initialised {
            RawBack::offer(&bed);
            front.follow(&bed);
            assert_eq!(bed.front_state().as_deref(), Some("3"));
        }
        bed.restore();
        assert_eq!(resume(&mut front), Change::Reconnecting);
        assert_eq!(bed.front_state().as_deref(), Some("1"));
        let back = RawBack::connect(&bed, &mut front);
        drop((front, back));
        bed.check_quiet();
    }
}

#[test]
fn disk_that_is_being_closed_is_closed_by_a_suspend() {
    let mut bed = Bed::new(6);
    let mut front = FrontOwner::new(&bed);
    let raw = RawBack::connect(&bed, &mut front);
    front.submit(&bed, Operation::Read, 0, 1).unwrap();
    front.front.close().unwrap();
    front.step();
    assert!(!front.closed);
    bed.restore();
    assert_eq!(resume(&mut front), Change::Closed);
    assert_eq!(front.done, [Done { number: 0, result: Err(IoError::Lost), whole: true }]);
    assert_eq!(bed.front_state().as_deref(), Some("6"));
    drop((front, raw));
    bed.check_quiet();
}

#[test]
fn disk_that_the_restored_domain_does_not_have_is_lost() {
    let mut bed = Bed::new(7);
    let mut front = FrontOwner::new(&bed);
    let raw = RawBack::connect(&bed, &mut front);
    front.submit(&bed, Operation::Read, 0, 1).unwrap();
    assert_eq!(suspend(&bed.front), Ok(Suspended::Restored));
    bed.front.id = bed.front.platform.id();
    let refused = front.front.resume(drop).unwrap_err();
    assert!(refused.to_string().contains("device/vbd/51712/backend"), "{refused}");
    // Its owner lets it go, as one whose back end has gone.
    front.step();
    assert!(front.closed, "{:?}", front.errors);
    assert_eq!(front.done, [Done { number: 0, result: Err(IoError::Lost), whole: true }]);
    drop((front, raw));
    bed.check_quiet();
}

#[test]
fn cancelled_suspend_is_nothing_to_a_disk() {
    let (bed, disk) = (Bed::new(8), Slow::new(SECTORS));
    let (mut front, mut back) = (FrontOwner::new(&bed), BackOwner::new(&bed, disk.clone()));
    follow_both(&bed, &mut front, &mut back);
    disk.hold(true);
    for sector in 0..8 {
        front.submit(&bed, Operation::Write, sector * 8, 1).unwrap();
    }
    back.follow(&bed);
    bed.machine.cancel_next_suspend(bed.front.id);
    assert_eq!(suspend(&bed.front), Ok(Suspended::Cancelled));
    disk.hold(false);
    back.poll();
    follow_both(&bed, &mut front, &mut back);
    front.check_each_once();
    assert!(front.done.iter().all(|done| done.result.is_ok()));
    assert_eq!((disk.0.borrow().started, back.connections), (8, 1));
    end(&bed, front, back);
}
