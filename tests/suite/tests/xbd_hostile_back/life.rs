//! What it says in its nodes, and when it goes.

use hypercall::{DomId, Platform};
use xbd::front::{Config, IoError};
use xbd::protocol::Operation;
use xen_sys::io::blkif::{BLKIF_RSP_OKAY, BlkifResponse};
use xenbus::device::State;
use xenbus::store::{Perm, Store, Tx};

use crate::common::{Bed, Done, FrontOwner, Lots, RawBack, answer};
use crate::{connected, ends};

/// A disk with two requests in flight, one of which the back end maps, when its back end says that it is closed.
fn abandoned(seed: u64, patience_ns: u64) -> (Bed, FrontOwner, RawBack) {
    let (bed, mut front, mut back) = connected(seed);
    front.front.set_patience_ns(patience_ns);
    front.submit(&bed, Operation::Read, 0, 1).unwrap();
    front.submit(&bed, Operation::Read, 8, 1).unwrap();
    let requests = back.requests();
    assert!(back.map(&bed, 0, &requests[0]));
    bed.back_says("state", State::Closed.number()).unwrap();
    front.follow(&bed);
    (bed, front, back)
}

#[test]
fn back_end_that_is_gone_has_the_owners_patience_to_let_go_of_pages() {
    let (bed, mut front, back) = abandoned(29, 1_000_000_000);
    let number = front.next - 1;
    assert_eq!(front.done, [Done { number, result: Err(IoError::Lost), whole: true }], "what nobody maps ends at once");
    assert!(!front.closed && front.front.is_waiting());
    front.step();
    assert!(!front.closed, "it still maps the other");
    drop(back);
    front.step();
    assert!(front.closed && !front.front.is_waiting());
    front.check_each_once();
    assert!(front.done.iter().all(|done| done.whole && done.result == Err(IoError::Lost)));
    drop(front);
    bed.check_quiet();
}

#[test]
fn patience_with_a_back_end_that_is_gone_has_an_end() {
    let (bed, mut front, back) = abandoned(31, 1_000_000_000);
    let platform = &bed.front.platform;
    let end = platform.now_ns() + 1_000_000_000;
    while platform.now_ns() < end {
        assert!(!front.closed);
        platform.wait(&[], end);
    }
    front.step();
    assert!(front.closed);
    front.check_each_once();
    assert_eq!(front.done.iter().filter(|done| !done.whole).count(), 1, "the page that it keeps is never ours again");
    drop((front, back));
    assert_eq!(bed.machine.violations(), [""; 0]);
}

#[test]
fn front_end_that_may_not_write_its_state_any_more_ends_all_the_same() {
    for closes_first in [true, false] {
        let (bed, mut front, back) = connected(41);
        front.submit(&bed, Operation::Read, 0, 1).unwrap();
        let state = format!("/local/domain/{}/{}/state", bed.front.id.0, bed.device.front_path());
        let nobody = Perm { domain: DomId(0), read: false, write: false };
        let reads = Perm { domain: bed.front.id, read: true, write: false };
        bed.toolstack.store.set_permissions(Tx::NONE, &state, &[nobody, reads]).unwrap();
        if closes_first {
            front.front.close().unwrap_err();
            assert!(front.front.device().is_closing());
        }
        drop(back);
        bed.back_says("state", State::Closed.number()).unwrap();
        front.follow(&bed);
        assert!(front.closed, "{:?}", front.errors);
        front.check_each_once();
        drop(front);
        bed.check_quiet();
    }
}

#[test]
fn sector_size_that_changes_under_a_connected_disk_is_a_fault() {
    let (bed, mut front, back) = connected(43);
    bed.back_says("sector-size", 4096).unwrap();
    bed.back_says("state", State::Connected.number()).unwrap();
    front.follow(&bed);
    assert_eq!(front.errors, ["node sector-size has the impossible value \"4096\""]);
    assert_eq!(bed.front_state().as_deref(), Some("5"), "it is being closed");
    ends(&bed, &mut front, back);
    drop(front);
    bed.check_quiet();
}

#[test]
fn owner_that_drops_a_disk_with_requests_in_flight_breaks_no_rule() {
    let (bed, mut front, mut back) = connected(17);
    for sector in 0..4 {
        front.submit(&bed, Operation::Read, sector * 8, 2).unwrap();
    }
    let requests = back.requests();
    assert!(back.map(&bed, 0, &requests[1]));
    drop(front);
    assert_eq!(bed.machine.violations(), [""; 0]);
    assert!(!back.map(&bed, 1, &requests[0]), "its grant is over");
    drop(back);
    assert_eq!(bed.machine.violations(), [""; 0]);
}

#[test]
fn back_end_that_dies_in_flight_ends_each_request_once_with_its_answer_if_there_was_one() {
    for answered in 0..=6usize {
        let (bed, mut front, mut back) = connected(19);
        for sector in 0..6 {
            front.submit(&bed, Operation::Read, sector * 8, 3).unwrap();
        }
        let requests = back.requests();
        assert!(back.map(&bed, 0, &requests[5]));
        let answers: Vec<_> = requests.iter().map(|request| answer(request, BLKIF_RSP_OKAY)).collect();
        // Shown, but its event is lost with the domain.
        back.respond(&answers[..answered]);
        bed.remove_back();
        bed.machine.kill(bed.back.id);
        bed.settle();
        // The owner's thread is faster than its handler of the event.
        assert!(front.front.device().changed());
        front.step();
        assert!(front.closed);
        front.check_each_once();
        front.done.sort_unstable_by_key(|done| done.number);
        for (index, done) in front.done.iter().enumerate() {
            assert_eq!(done.result, if index < answered { Ok(()) } else { Err(IoError::Lost) });
            assert!(done.whole, "a dead domain maps nothing");
        }
        drop((front, back));
        bed.check_quiet();
    }
}

#[test]
fn back_end_whose_domain_dies_unseen_is_found_gone_by_whoever_looks() {
    let (bed, mut front, back) = connected(21);
    front.submit(&bed, Operation::Read, 0, 1).unwrap();
    // What a dead domain owned in the store goes with it, and no watch tells.
    bed.machine.kill(bed.back.id);
    front.follow(&bed);
    front.step();
    assert!(front.closed);
    front.check_each_once();
    drop((front, back));
    bed.check_quiet();
}

#[test]
fn back_end_that_is_gone_for_ever_can_be_given_up_although_our_own_directory_is_gone_too() {
    let (bed, mut front, back) = connected(23);
    front.submit(&bed, Operation::Read, 0, 1).unwrap();
    bed.remove_back();
    // As a toolstack does; and the home of a domain's devices is not its own to make new ones in.
    bed.device.clean_up(&bed.toolstack.store).unwrap();
    front.follow(&bed);
    assert!(front.closed, "{:?}", front.errors);
    assert_eq!(bed.front_state(), None);
    front.check_each_once();
    drop((front, back));
    bed.check_quiet();
}

/// Values that no node may have, or that no disk may have there.
#[test]
fn node_that_is_garbage_closes_the_device_and_nothing_else() {
    let bad: &[(&str, &[&str])] = &[
        (
            "sectors",
            &["", "-1", "x", "1 2", "18446744073709551616", "18446744073709551615", "36028797018963968", "0x10"],
        ),
        ("sector-size", &["0", "1", "511", "513", "8192", "-512", "512.0", "4294967296", "x", ""]),
        ("physical-sector-size", &["0", "256", "513", "x", "4294967296"]),
        ("info", &["x", "-1", "4294967296"]),
        ("feature-flush-cache", &["x", "-1"]),
    ];
    let bed = Bed::new(29);
    for (node, values) in bad {
        for value in *values {
            bed.back_says(node, value).unwrap();
            if *node != "sectors" {
                bed.back_says("sectors", 1024).unwrap();
            }
            bed.back_says("state", State::InitWait.number()).unwrap();
            let mut front = FrontOwner::new(&bed);
            front.follow(&bed);
            let back = RawBack::attach(&bed);
            bed.back_says("state", State::Connected.number()).unwrap();
            front.follow(&bed);
            assert_eq!(front.errors.len(), 1, "{node}={value:?}: {:?}", front.errors);
            assert!(!front.connected, "{node}={value:?}");
            assert_eq!(bed.front_state().as_deref(), Some("5"), "{node}={value:?}");
            let told = bed.read(&bed.front, &format!("error/{}/error", bed.device.front_path()));
            assert_eq!(told.as_ref(), front.errors.first());
            bed.back_says("state", State::Closing.number()).unwrap();
            front.follow(&bed);
            assert_eq!(bed.front_state().as_deref(), Some("6"), "{node}={value:?}");
            ends(&bed, &mut front, back);
        }
        let path = format!("{}/{node}", bed.device.back_path());
        bed.back.store.rm(Tx::NONE, &path).unwrap();
    }
    // And then it is right, and works.
    let mut front = FrontOwner::new(&bed);
    let back = RawBack::connect(&bed, &mut front);
    let disk = *front.front.disk().unwrap();
    assert_eq!((disk.sectors, disk.sector_size, disk.read_only, disk.flush), (1024, 512, false, false));
    front.front.close().unwrap();
    front.step();
    ends(&bed, &mut front, back);
    drop(front);
    bed.check_quiet();
}

#[test]
fn size_that_is_missing_closes_the_device() {
    let bed = Bed::new(31);
    bed.back_says("state", State::InitWait.number()).unwrap();
    let mut front = FrontOwner::new(&bed);
    front.follow(&bed);
    let back = RawBack::attach(&bed);
    bed.back_says("state", State::Connected.number()).unwrap();
    front.follow(&bed);
    assert_eq!(front.errors.len(), 1);
    assert!(front.errors[0].contains("ENOENT"), "{:?}", front.errors);
    ends(&bed, &mut front, back);
    drop(front);
    bed.check_quiet();
}

#[test]
fn state_that_is_garbage_closes_the_device_and_is_reported_once() {
    let (bed, mut front, back) = connected(37);
    front.submit(&bed, Operation::Write, 0, 1).unwrap();
    for garbage in ["9", "x", "-1", ""] {
        bed.back_says("state", garbage).unwrap();
        front.follow(&bed);
    }
    assert_eq!(front.errors.len(), 1, "{:?}", front.errors);
    assert!(front.closed);
    front.check_each_once();
    drop((front, back));
    bed.check_quiet();
}

#[test]
fn back_end_that_is_back_before_it_was_seen_to_go_ends_the_device() {
    for state in [State::Initialising, State::InitWait] {
        for closing in [false, true] {
            let (bed, mut front, mut back) = connected(41);
            front.submit(&bed, Operation::Write, 0, 1).unwrap();
            if closing {
                front.front.close().unwrap();
                front.step();
            }
            drop(back);
            bed.back_says("state", state.number()).unwrap();
            front.follow(&bed);
            assert!(front.closed, "{state}");
            front.check_each_once();
            drop(front);
            // A new one of the same directory finds the new back end.
            let mut front = FrontOwner::new(&bed);
            back = RawBack::connect(&bed, &mut front);
            front.front.close().unwrap();
            front.step();
            ends(&bed, &mut front, back);
            drop(front);
            bed.check_quiet();
        }
    }
}

/// The peer flips its state and its nodes by lot, answers or not, keeps pages or not; whatever happens, each I/O ends once and
/// nothing is left.
#[test]
fn hundred_thousand_flips_of_the_back_end_end_each_request_once_and_leave_nothing() {
    flip(if cfg!(miri) { 20 } else { 100_000 }, Config { max_grants: 20, ..Config::DEFAULT });
}

#[test]
fn flips_of_a_back_end_that_is_waited_for_or_not_trusted_end_each_request_once_too() {
    let flips = if cfg!(miri) { 20 } else { 5_000 };
    let untrusted = Config { trusted: false, max_grants: 20, ..Config::DEFAULT };
    for config in [untrusted, Config { reconnect: true, ..untrusted }, Config { reconnect: true, ..Config::DEFAULT }] {
        flip(flips, config);
    }
}

fn flip(flips: u32, config: Config) {
    let bed = Bed::new(47);
    let mut lots = Lots(47);
    let mut owner: Option<FrontOwner> = None;
    let mut raw: Option<RawBack> = None;
    let (mut lives, mut connections, mut ios) = (0, 0, 0);
    for _ in 0..flips {
        let mut front = owner.take().unwrap_or_else(|| {
            lives += 1;
            FrontOwner::with(&bed, config).unwrap()
        });
        match lots.below(12) {
            // Mostly the way that leads somewhere.
            0..=2 => bed.back_says("state", [1, 2, 4, 5, 6][lots.below(5) as usize]).unwrap(),
            3 => bed.back_says("state", lots.below(12)).unwrap(),
            4 => RawBack::offer(&bed),
            5..=6 if bed.front_state().as_deref() == Some("3") => {
                raw = Some(RawBack::attach(&bed));
                bed.back_says("state", 4).unwrap();
            }
            7 if lots.below(20) == 0 => {
                bed.back_says("sectors", ["1024", "8", "junk"][lots.below(3) as usize]).unwrap();
            }
            _ => {}
        }
        if let Some(back) = &mut raw {
            for request in back.requests() {
                match lots.below(16) {
                    0 => {}
                    1 => back.respond(&[BlkifResponse { id: lots.below(40), ..answer(&request, 0) }]),
                    2 => back.respond(&[answer(&request, lots.below(5) as i16 - 2)]),
                    3 => back.show(lots.below(1 << 20) as u32),
                    _ => back.respond(&[answer(&request, BLKIF_RSP_OKAY)]),
                }
            }
            if lots.below(30) == 0 {
                raw = None;
            }
        }
        front.follow(&bed);
        let was = front.next;
        for _ in 0..lots.below(4) {
            let operation = [Operation::Read, Operation::Write][lots.below(2) as usize];
            let pages = 1 + lots.below(3) as usize;
            front.submit(&bed, operation, lots.below(2) * 8, pages);
        }
        ios += front.next - was;
        if lots.below(40) == 0 {
            let _ = front.front.close();
            front.step();
        }
        if front.closed || front.front.device().state() == State::Closed && lots.below(10) == 0 {
            connections += u32::from(front.connected);
            if front.closed {
                front.check_each_once();
            }
            raw = None;
        } else {
            owner = Some(front);
        }
    }
    assert!(cfg!(miri) || (lives > 20 && connections > 20 && ios > 200), "{lives} {connections} {ios} {config:?}");
    drop((owner, raw));
    bed.check_quiet();
}
