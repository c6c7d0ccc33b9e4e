//! What it writes into the ring, and what it does with the pages.

use xbd::front::{IoError, QueueError, SubmitError};
use xbd::protocol::Operation;
use xen_sys::io::blkif::{BLKIF_RSP_EOPNOTSUPP, BLKIF_RSP_ERROR, BLKIF_RSP_OKAY, BlkifOp, BlkifResponse};
use xenbus::device::State;
use xenbus::ring::RingError;

use crate::common::{DEPTH, Done, RawBack, answer};
use crate::{connected, ends};

/// Three requests are in flight, the back end says something impossible: the queue is out of use at once and for ever, and each
/// request ends once.
fn breaks(say: impl FnOnce(&mut RawBack, &[xen_sys::io::blkif::BlkifRequest]), expected: &QueueError) {
    let (bed, mut front, mut back) = connected(3);
    for sector in 0..3 {
        front.submit(&bed, Operation::Write, sector * 8, 1).unwrap();
    }
    let requests = back.requests();
    assert_eq!(requests.len(), 3);
    say(&mut back, &requests);
    bed.settle();
    let mut done = Vec::new();
    for _ in 0..3 {
        let queue = front.front.queue(0).unwrap();
        let polled = queue.poll(|completion| done.push(Done::from(completion)));
        assert_eq!(polled.as_ref(), Err(expected));
    }
    front.done.append(&mut done);
    // No request is taken any more, and none is lost: its buffer comes back.
    let (error, _) = front.front.queue(0).unwrap().submit(Operation::Flush, 0, (99, None)).unwrap_err();
    assert_eq!(error, SubmitError::NotConnected);
    front.poll();
    assert_eq!(bed.front_state().as_deref(), Some("6"));
    front.check_each_once();
    assert!(front.done.iter().all(|done| done.whole));
    ends(&bed, &mut front, back);
    drop(front);
    bed.check_quiet();
}

/// Its signals without answers are looked at less and less often, and an answer among them waits a second at most.
#[test]
fn events_without_answers_cost_a_look_now_and_then() {
    const MS: u64 = 1_000_000;
    let (bed, mut front, mut back) = connected(4);
    let (seconds, at_once) = if cfg!(miri) { (2, 1) } else { (20, 50) };
    front.submit(&bed, Operation::Read, 0, 1).unwrap();
    let mut looks = 0;
    for _ in 0..seconds * 1000 {
        for _ in 0..at_once {
            back.channel.notify();
        }
        while front.turn(&bed) {
            looks += 1;
        }
        bed.machine.advance(MS);
    }
    assert!((seconds..=2 * (seconds + 12)).contains(&looks), "{looks} looks in {seconds} s");
    let requests = back.requests();
    back.respond(&[answer(&requests[0], BLKIF_RSP_OKAY)]);
    back.channel.notify();
    let waited = (0..1000).find(|_| {
        front.follow(&bed);
        bed.machine.advance(MS);
        !front.done.is_empty()
    });
    assert!(waited.is_some(), "an answer has waited for longer than a second");
    assert_eq!(bed.front.events.next_delayed_ns(), None);
    ends(&bed, &mut front, back);
    drop(front);
    bed.check_quiet();
}

#[test]
fn response_to_what_was_never_asked_breaks_the_queue() {
    for id in [3, 31, 32, 33, 0xffff, 0x1_0000, 0x1_0001, 1 << 32, u64::MAX] {
        let say = |back: &mut RawBack, _: &[_]| {
            back.respond(&[BlkifResponse { id, operation: BlkifOp::WRITE, ..Default::default() }]);
        };
        breaks(say, &QueueError::UnknownId(id));
    }
}

#[test]
fn second_response_to_a_request_breaks_the_queue() {
    let say = |back: &mut RawBack, requests: &[_]| {
        back.respond(&[answer(&requests[1], BLKIF_RSP_OKAY), answer(&requests[1], BLKIF_RSP_OKAY)]);
    };
    // Slots are the numbers.
    breaks(say, &QueueError::UnknownId(1));
}

#[test]
fn response_for_another_operation_breaks_the_queue() {
    for op in (0..=u8::MAX).filter(|op| *op != BlkifOp::WRITE.0).step_by(17).chain([0, 2, 3]) {
        let claimed = BlkifOp(op);
        let say = |back: &mut RawBack, _: &[_]| {
            back.respond(&[BlkifResponse { id: 0, operation: claimed, ..Default::default() }]);
        };
        breaks(say, &QueueError::WrongOperation { id: 0, claimed });
    }
}

#[test]
fn producer_beyond_the_requests_breaks_the_queue() {
    for claim in [4, DEPTH - 1, DEPTH, DEPTH + 1, 1 << 31, u32::MAX - 1, u32::MAX] {
        let expected = QueueError::Ring(RingError::PeerOverflow { claimed: claim, size: 3 });
        breaks(|back, _| back.show(claim), &expected);
    }
}

#[test]
fn producer_up_to_the_requests_is_taken() {
    for claim in 0..=3u32 {
        let (bed, mut front, mut back) = connected(5);
        for sector in 0..3 {
            front.submit(&bed, Operation::Read, sector * 8, 1).unwrap();
        }
        let answers: Vec<_> = back.requests().iter().map(|request| answer(request, BLKIF_RSP_OKAY)).collect();
        back.respond(&answers[..claim as usize]);
        front.follow(&bed);
        assert_eq!(front.done.len(), claim as usize);
        back.respond(&answers[claim as usize..]);
        front.follow(&bed);
        assert!(front.done.iter().all(|done| done.result == Ok(()) && done.whole));
        assert_eq!(front.errors, [""; 0]);
        front.front.close().unwrap();
        front.step();
        ends(&bed, &mut front, back);
        drop(front);
        bed.check_quiet();
    }
}

#[test]
fn every_status_ends_its_request_and_none_breaks_the_queue() {
    let (bed, mut front, mut back) = connected(7);
    let all = [BLKIF_RSP_OKAY, BLKIF_RSP_ERROR, BLKIF_RSP_EOPNOTSUPP, 1, -3, i16::MIN, i16::MAX];
    for (index, status) in all.into_iter().enumerate() {
        front.submit(&bed, Operation::Read, 0, 1).unwrap();
        let requests = back.requests();
        back.respond(&[answer(&requests[0], status)]);
        front.follow(&bed);
        let expected = match status {
            BLKIF_RSP_OKAY => Ok(()),
            BLKIF_RSP_ERROR => Err(IoError::Failed),
            BLKIF_RSP_EOPNOTSUPP => Err(IoError::NotSupported),
            other => Err(IoError::BadStatus(other)),
        };
        assert_eq!(front.done[index], Done { number: index as u64, result: expected, whole: true });
    }
    assert_eq!(front.front.queue(0).unwrap().counters().errors, 6);
    assert_eq!(front.errors, [""; 0]);
    front.front.close().unwrap();
    front.step();
    ends(&bed, &mut front, back);
    drop(front);
    bed.check_quiet();
}

#[test]
fn buffer_is_not_given_back_before_the_back_end_lets_go_of_it() {
    let (bed, mut front, mut back) = connected(11);
    front.submit(&bed, Operation::Read, 0, 1).unwrap();
    let requests = back.requests();
    assert!(back.map(&bed, 0, &requests[0]));
    back.respond(&[answer(&requests[0], BLKIF_RSP_OKAY)]);
    front.follow(&bed);
    assert_eq!(front.done, []);
    let queue = front.front.queue(0).unwrap();
    assert_eq!((queue.in_flight(), queue.counters().still_mapped), (1, 1));
    // Others go on meanwhile, and it may be asked as often as one likes.
    for round in 1..=2 * DEPTH as usize {
        front.submit(&bed, Operation::Write, 8, 1).unwrap();
        let requests = back.requests();
        back.respond(&[answer(&requests[0], BLKIF_RSP_OKAY)]);
        front.follow(&bed);
        assert_eq!(front.done.len(), round);
    }
    back.window.unmap(0).unwrap();
    back.channel.notify();
    front.follow(&bed);
    assert_eq!(front.done.last(), Some(&Done { number: 0, result: Ok(()), whole: true }));
    assert_eq!(front.front.queue(0).unwrap().in_flight(), 0);
    front.front.close().unwrap();
    front.step();
    ends(&bed, &mut front, back);
    drop(front);
    bed.check_quiet();
}

#[test]
fn closing_does_not_wait_for_an_answered_request_whose_page_is_kept_and_the_page_is_never_used_again() {
    let (bed, mut front, mut back) = connected(13);
    front.submit(&bed, Operation::Read, 0, 1).unwrap();
    front.submit(&bed, Operation::Read, 8, 1).unwrap();
    let requests = back.requests();
    assert!(back.map(&bed, 0, &requests[0]));
    assert!(back.map(&bed, 1, &requests[1]));
    back.respond(&[answer(&requests[0], BLKIF_RSP_ERROR)]);
    front.follow(&bed);
    front.front.close().unwrap();
    front.step();
    assert_eq!(bed.front_state().as_deref(), Some("5"), "the second request is not answered");
    back.respond(&[answer(&requests[1], BLKIF_RSP_OKAY)]);
    front.follow(&bed);
    assert_eq!(bed.front_state().as_deref(), Some("6"), "both are");
    assert_eq!(front.done, []);
    bed.back_says("state", State::Closed.number()).unwrap();
    front.follow(&bed);
    assert!(front.closed);
    front.check_each_once();
    assert_eq!(front.done[0], Done { number: 0, result: Err(IoError::Failed), whole: false });
    assert_eq!(front.done[1], Done { number: 1, result: Ok(()), whole: false });
    drop(front);
    assert_eq!(bed.machine.violations(), [""; 0]);
    // The ring and two pages are the back end's as long as it keeps them, and their references too.
    let stats = bed.front.grants.stats();
    assert_eq!((stats.quarantined_refs, stats.quarantined_pages), (3, 1));
    drop(back);
    bed.front.grants.retry_quarantine();
    assert_eq!(bed.front.grants.stats().quarantined_refs, 0);
    assert_eq!(bed.machine.violations(), [""; 0]);
    // What is lost is what can't be had back: the two buffers.
    let leaks: Vec<_> = bed.machine.leaks().iter().map(ToString::to_string).collect();
    assert_eq!(leaks.len(), 1, "{leaks:?}");
    assert!(leaks[0].contains("pages, before"), "{leaks:?}");
}

#[test]
fn answer_whose_page_is_held_is_told_of_and_tried_again() {
    let (bed, mut front, mut back) = connected(47);
    front.submit(&bed, Operation::Read, 0, 1).unwrap();
    let requests = back.requests();
    assert!(back.map(&bed, 0, &requests[0]));
    back.respond(&[answer(&requests[0], BLKIF_RSP_OKAY)]);
    front.follow(&bed);
    assert_eq!(front.front.queue(0).unwrap().held(), 1);
    assert_eq!(front.done, []);
    back.window.unmap(0).unwrap();
    // No event tells of that: the owner asks.
    front.poll();
    assert_eq!(front.front.queue(0).unwrap().held(), 0);
    front.check_each_once();
    front.front.close().unwrap();
    front.step();
    ends(&bed, &mut front, back);
    drop(front);
    bed.check_quiet();
}

#[test]
fn owner_tells_by_fail_what_poll_has_found() {
    let (bed, mut front, mut back) = connected(37);
    front.submit(&bed, Operation::Read, 0, 1).unwrap();
    back.show(1000);
    bed.settle();
    let error = front.front.queue(0).unwrap().poll(drop).unwrap_err();
    front.front.fail(&error);
    assert_eq!(bed.front_state().as_deref(), Some("5"));
    let told = bed.read(&bed.front, &format!("error/{}/error", bed.device.front_path())).unwrap();
    assert_eq!(told, error.to_string());
    assert_eq!(front.submit(&bed, Operation::Read, 0, 1), None, "nothing new is taken");
    ends(&bed, &mut front, back);
    front.check_each_once();
    drop(front);
    bed.check_quiet();
}
