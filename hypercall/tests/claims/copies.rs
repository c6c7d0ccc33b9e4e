//! Copies by the hypervisor.

use std::sync::atomic::Ordering::SeqCst;

use hypercall::call::grant_table::GrantOpError;
use hypercall::grant::{CopyBatch, CopyError, Foreign, GrantStatus, Local};
use hypercall::mem::{PageBuf, Pages};
use hypercall::{GrantRef, Nr, XenError};
use xen_sys::grant_table::*;

use crate::fake::{Fake, PAGE, PEER};

fn peer(gref: u32, offset: u16) -> Foreign {
    Foreign { peer: PEER, gref: GrantRef(gref), offset }
}

fn domain() -> (Fake, Pages<Fake>) {
    let fake = Fake::new();
    fake.peer_grants(0, 32);
    let pages = Pages::new(&fake, 2).unwrap();
    (fake, pages)
}

fn fail(index: usize, error: GrantOpError) {
    panic!("copy {index} failed: {error}");
}

#[test]
fn bytes_go_both_ways_and_between_peers() {
    let (fake, pages) = domain();
    pages.shared().write(PAGE + 10, b"own");
    fake.peer_byte(1, 4095).store(b'!', SeqCst);
    let mut batch = CopyBatch::new();
    batch.to_peer(Local::new(&pages, PAGE + 10), peer(0, 100), 3).unwrap();
    batch.from_peer(peer(1, 4095), Local::new(&pages, 0), 1).unwrap();
    batch.between(peer(1, 4095), peer(2, 5), 1).unwrap();
    assert_eq!(batch.run(&fake, fail), 3);
    assert!(batch.is_empty());
    let mut own = [0; 2];
    pages.shared().read(0, &mut own);
    assert_eq!(own, [b'!', 0]);
    assert_eq!([0, 1, 2].map(|index| fake.peer_byte(0, 100 + index).load(SeqCst)), *b"own");
    assert_eq!(fake.peer_byte(2, 5).load(SeqCst), b'!');
    assert_eq!(fake.calls(Nr::GRANT_TABLE_OP, GNTTABOP_copy), 1);
}

#[test]
fn a_place_can_be_used_piece_by_piece() {
    let (fake, pages) = domain();
    (0..4u8).for_each(|byte| fake.peer_byte(0, byte.into()).store(10 + byte, SeqCst));
    let place = Local::new(&pages, PAGE - 4);
    let mut batch = CopyBatch::new();
    batch.from_peer(peer(0, 0), place, 1).unwrap();
    batch.from_peer(peer(0, 1), place.skip(1), 3).unwrap();
    assert_eq!(batch.from_peer(peer(0, 1), place.skip(2), 3), Err(CopyError::Range { len: 3 }));
    assert!(place.skip(4).is_empty() && place.skip(u16::MAX).is_empty());
    batch.run(&fake, fail);
    let mut own = [0; 4];
    pages.shared().read(PAGE - 4, &mut own);
    assert_eq!(own, [10, 11, 12, 13]);
}

#[test]
fn a_buffer_is_copied_segment_by_segment() {
    let fake = Fake::new();
    fake.peer_grants(0, 2);
    fake.peer_byte(1, 3).store(9, SeqCst);
    let buffer = PageBuf::new(&fake, PAGE + 4).unwrap();
    let mut batch = CopyBatch::new();
    for (gref, place) in Local::segments(&buffer).enumerate() {
        batch.from_peer(peer(gref as u32, 0), place, place.len()).unwrap();
    }
    assert_eq!(batch.len(), 2);
    batch.run(&fake, fail);
    let mut last = [0];
    buffer.shared().read(PAGE + 3, &mut last);
    assert_eq!(last, [9]);
}

#[test]
fn failures_are_told_by_index_and_the_rest_is_copied() {
    let (fake, pages) = domain();
    fake.answer(1, &[GNTST_bad_gntref]);
    fake.answer(3, &[GNTST_permission_denied]);
    let mut batch = CopyBatch::new();
    for gref in 0..5 {
        fake.peer_byte(gref, 0).store(gref as u8 + 1, SeqCst);
        batch.from_peer(peer(gref, 0), Local::new(&pages, gref as usize), 1).unwrap();
    }
    let mut failures = Vec::new();
    assert_eq!(batch.run(&fake, |index, error| failures.push((index, error))), 3);
    let status = |status| GrantOpError::Status(GrantStatus(status));
    assert_eq!(failures, [(1, status(GNTST_bad_gntref)), (3, status(GNTST_permission_denied))]);
    let mut own = [0; 5];
    pages.shared().read(0, &mut own);
    assert_eq!(own, [1, 0, 3, 0, 5]);
}

#[test]
fn a_page_that_is_being_paged_in_is_tried_again_but_not_for_ever() {
    let (fake, pages) = domain();
    fake.answer(0, &[GNTST_eagain; 2]);
    fake.answer(2, &[GNTST_eagain; 1000]);
    fake.peer_byte(0, 0).store(1, SeqCst);
    let mut batch = CopyBatch::new();
    for gref in 0..3 {
        batch.from_peer(peer(gref, 0), Local::new(&pages, gref as usize), 1).unwrap();
    }
    let mut failures = Vec::new();
    assert_eq!(batch.run(&fake, |index, error| failures.push((index, error))), 2);
    assert_eq!(failures, [(2, GrantOpError::Status(GrantStatus(GNTST_eagain)))]);
    assert_eq!(fake.calls(Nr::GRANT_TABLE_OP, GNTTABOP_copy), 16);
    let mut own = [0];
    pages.shared().read(0, &mut own);
    assert_eq!(own, [1]);
}

#[test]
fn a_call_that_fails_half_way_tells_which_copies_were_not_done() {
    let (fake, pages) = domain();
    fake.fail_in(Nr::GRANT_TABLE_OP, Some(GNTTABOP_copy), 0, 2, 14);
    let mut batch = CopyBatch::new();
    for gref in 0..4 {
        batch.from_peer(peer(gref, 0), Local::new(&pages, 0), 1).unwrap();
    }
    let mut failures = Vec::new();
    assert_eq!(batch.run(&fake, |index, error| failures.push((index, error))), 2);
    assert_eq!(failures, [2, 3].map(|index| (index, GrantOpError::Xen(XenError::EFAULT))));
}

#[test]
fn a_copy_that_leaves_its_page_is_not_taken() {
    let (fake, pages) = domain();
    let mut batch = CopyBatch::new();
    let range = |len| Err(CopyError::Range { len });
    assert_eq!(batch.from_peer(peer(0, 4000), Local::new(&pages, 0), 97), range(97));
    assert_eq!(batch.from_peer(peer(0, 5000), Local::new(&pages, 0), 1), range(1));
    assert_eq!(batch.to_peer(Local::new(&pages, 4000), peer(0, 0), 97), range(97));
    assert_eq!(batch.between(peer(0, 0), peer(1, 1), 4096), range(4096));
    let small = PageBuf::new(&fake, 10).unwrap();
    let place = Local::segments(&small).next().unwrap();
    assert_eq!(batch.from_peer(peer(0, 0), place, 11), range(11));
    assert_eq!(batch.from_peer(peer(0, 4000), Local::new(&pages, 0), 96), Ok(0));
}

#[test]
fn a_full_batch_takes_no_more_until_it_was_run() {
    let (fake, pages) = domain();
    let mut batch = CopyBatch::new();
    for index in 0..CopyBatch::MAX {
        assert_eq!(batch.from_peer(peer(0, 0), Local::new(&pages, 0), 1), Ok(index));
    }
    assert_eq!(batch.from_peer(peer(0, 0), Local::new(&pages, 0), 1), Err(CopyError::Full));
    assert_eq!(batch.run(&fake, fail), CopyBatch::MAX);
    assert_eq!(batch.from_peer(peer(0, 0), Local::new(&pages, 0), 1), Ok(0));
    assert_eq!(batch.run(&fake, fail), 1);
    assert_eq!(batch.run(&fake, fail), 0);
}
