//! What it writes into the ring.

use std::collections::BTreeMap;

use hypercall::GrantRef;
use hypercall::grant::{Access, Grants};
use hypercall::mem::Pages;
use mock::{Fault, Kind};
use xen_sys::grant_table::{GNTST_general_error, GNTTABOP_unmap_grant_ref};
use xen_sys::io::blkif::{BLKIF_RSP_EOPNOTSUPP, BLKIF_RSP_ERROR, BLKIF_RSP_OKAY, BlkifOp};
use xenbus::device::State;

use crate::common::raw_front::{Granted, RawFront, raw_request};
use crate::common::{BackOwner, Bed, DEPTH, Lots, Slow};
use crate::{SECTORS, answered_as, bad_request, connected, ends, honest_at_full_depth, one};

#[test]
fn sectors_beyond_the_end_are_refused_and_up_to_it_are_served() {
    let disk = Slow::new(SECTORS as usize);
    let (bed, mut back, mut front) = connected(1, &disk);
    let page = Granted::new(&bed);
    for (sector, expected) in [
        (0, BLKIF_RSP_OKAY),
        (SECTORS - 8, BLKIF_RSP_OKAY),
        (SECTORS - 7, BLKIF_RSP_ERROR),
        (SECTORS, BLKIF_RSP_ERROR),
        (1 << 32, BLKIF_RSP_ERROR),
        (1 << 55, BLKIF_RSP_ERROR),
        (u64::MAX - 8, BLKIF_RSP_ERROR),
        (u64::MAX - 7, BLKIF_RSP_ERROR),
        (u64::MAX, BLKIF_RSP_ERROR),
    ] {
        for op in [BlkifOp::READ, BlkifOp::WRITE] {
            let request = raw_request(op, sector, sector, &[page.gref()]);
            assert_eq!(one(&bed, &mut back, &mut front, &request), expected, "{op:?} {sector}");
        }
    }
    assert_eq!(disk.0.borrow().started, 4);
    assert_eq!(back.counters().refused, 14);
    drop(page);
    ends(&bed, &mut back, front);
    bed.check_quiet();
}

#[test]
fn read_only_disk_takes_no_write_of_any_kind() {
    let disk = Slow::new(SECTORS as usize);
    disk.0.borrow_mut().read_only = true;
    let (bed, mut back, mut front) = connected(2, &disk);
    let before = disk.0.borrow().bytes.clone();
    let page = Granted::new(&bed);
    for op in (0..=u8::MAX).map(BlkifOp) {
        let grefs = [page.gref()];
        let request = raw_request(op, 7, 0, if op == BlkifOp::FLUSH_DISKCACHE { &[] } else { &grefs });
        let expected = match op {
            BlkifOp::READ | BlkifOp::FLUSH_DISKCACHE => BLKIF_RSP_OKAY,
            BlkifOp::WRITE | BlkifOp::WRITE_BARRIER | BlkifOp::DISCARD | BlkifOp::INDIRECT => BLKIF_RSP_ERROR,
            _ => BLKIF_RSP_EOPNOTSUPP,
        };
        assert_eq!(one(&bed, &mut back, &mut front, &request), expected, "{op:?}");
    }
    assert_eq!(disk.0.borrow().bytes, before);
    drop(page);
    ends(&bed, &mut back, front);
    bed.check_quiet();
}

#[test]
fn toolstack_makes_a_disk_read_only_whatever_the_store_says() {
    let disk = Slow::new(SECTORS as usize);
    let bed = Bed::new(3);
    bed.back_says("mode", "r").unwrap();
    let mut back = BackOwner::new(&bed, disk.clone());
    back.follow(&bed);
    let mut front = RawFront::offer(&bed);
    back.follow(&bed);
    let page = Granted::new(&bed);
    let write = raw_request(BlkifOp::WRITE, 7, 0, &[page.gref()]);
    assert_eq!(one(&bed, &mut back, &mut front, &write), BLKIF_RSP_ERROR);
    assert_eq!(disk.0.borrow().started, 0);
    drop(page);
    ends(&bed, &mut back, front);
    bed.check_quiet();
}

#[test]
fn grants_that_are_not_there_or_not_ours_or_read_only_are_refused_and_nothing_stays_mapped() {
    let disk = Slow::new(SECTORS as usize);
    let (bed, mut back, mut front) = connected(4, &disk);
    let good: Vec<_> = (0..11).map(|_| Granted::new(&bed)).collect();
    // Granted to another domain, and for reading only.
    let page = Pages::new(&bed.front.platform, 1).unwrap();
    let mut refs = [GrantRef(0); 2];
    bed.front.grants.reserve(&mut refs).unwrap();
    // SAFETY: just reserved; the page is seen through atomics only, and freed after the grants are ended.
    unsafe {
        bed.front.grants.share(refs[0], bed.toolstack.id, page.gfn(0), Access::ReadWrite);
        bed.front.grants.share(refs[1], bed.back.id, page.gfn(0), Access::ReadOnly);
    }
    let maps = |bed: &Bed| bed.machine.usage().0[&bed.back.id].mappings.len();
    let base = maps(&bed);
    let bad = [GrantRef(300), GrantRef(511), GrantRef(512), GrantRef(u32::MAX), refs[0]];
    for bad in bad {
        for place in 0..11 {
            let mut grefs: Vec<_> = good.iter().map(Granted::gref).collect();
            grefs[place] = bad;
            let request = raw_request(BlkifOp::READ, 1, 0, &grefs);
            assert_eq!(one(&bed, &mut back, &mut front, &request), BLKIF_RSP_ERROR, "{bad:?} {place}");
            assert_eq!(maps(&bed), base);
        }
    }
    // For reading only: good enough for a write of the disk, not for a read.
    let read = raw_request(BlkifOp::READ, 1, 0, &[refs[1]]);
    assert_eq!(one(&bed, &mut back, &mut front, &read), BLKIF_RSP_ERROR);
    let write = raw_request(BlkifOp::WRITE, 1, 0, &[refs[1]]);
    assert_eq!(one(&bed, &mut back, &mut front, &write), BLKIF_RSP_OKAY);
    // The same page eleven times is the front end's own business.
    let same = raw_request(BlkifOp::WRITE, 1, 0, &[good[0].gref(); 11]);
    assert_eq!(one(&bed, &mut back, &mut front, &same), BLKIF_RSP_OKAY);
    assert_eq!((back.counters().unmappable, back.counters().copy_failed), (5 * 11, 1));
    honest_at_full_depth(&bed, &mut back, &mut front, &disk);
    drop(good);
    for gref in refs {
        bed.front.grants.end(gref).unwrap();
    }
    // SAFETY: reserved above, and ended.
    unsafe { bed.front.grants.release(&refs) };
    drop(page);
    ends(&bed, &mut back, front);
    bed.check_quiet();
}

#[test]
fn data_goes_where_the_segments_say_and_nowhere_else() {
    let disk = Slow::new(SECTORS as usize);
    let (bed, mut back, mut front) = connected(5, &disk);
    let page = Granted::new(&bed);
    for first in 0..8u8 {
        for last in first..8 {
            page.fill(0xee);
            let mut request = raw_request(BlkifOp::READ, 1, 16, &[page.gref()]);
            (request.seg[0].first_sect, request.seg[0].last_sect) = (first, last);
            assert_eq!(one(&bed, &mut back, &mut front, &request), BLKIF_RSP_OKAY);
            let (start, end) = (usize::from(first) * 512, (usize::from(last) + 1) * 512);
            let mut expected = [0xee; 4096];
            expected[start..end].copy_from_slice(&disk.0.borrow().bytes[16 * 512..][..end - start]);
            assert_eq!(page.bytes(), expected, "{first} {last}");
        }
    }
    drop(page);
    ends(&bed, &mut back, front);
    bed.check_quiet();
}

#[test]
fn million_bad_requests_get_one_answer_each_and_no_line_of_log_and_nothing_sticks() {
    let count = if cfg!(miri) { 64 } else { 1_000_000 };
    let disk = Slow::new(SECTORS as usize);
    let (bed, mut back, mut front) = connected(6, &disk);
    let page = Granted::new(&bed);
    let mut lots = Lots(6);
    let mut id = 0;
    while id < count {
        let mut expected = BTreeMap::new();
        let mut batch = Vec::new();
        for _ in 0..=lots.below(u64::from(DEPTH)) {
            let (request, status) = bad_request(&mut lots, page.gref(), id);
            expected.insert(id, (answered_as(&request), status));
            batch.push(request);
            id += 1;
        }
        front.send(&batch);
        // Now and then: it takes its time.
        let watched = lots.below(256) == 0;
        bed.machine.record(if watched { 1000 } else { 0 });
        back.follow(&bed);
        if watched {
            let trace = bed.machine.trace();
            let lines: Vec<_> =
                trace.entries.iter().filter(|entry| matches!(entry.what, mock::What::Log(..))).collect();
            assert!(lines.is_empty() && !trace.entries.is_empty(), "{lines:?}");
        }
        for response in front.responses() {
            let expected = expected.remove(&response.id).expect("one answer for a request");
            assert_eq!((response.operation, response.status), expected);
        }
        assert!(expected.is_empty(), "no answer for {expected:?}");
    }
    assert_eq!(disk.0.borrow().started, 0, "none reached the disk");
    let counters = back.counters();
    assert_eq!(counters.refused + counters.unmappable, id);
    assert_eq!(back.errors, [""; 0]);
    honest_at_full_depth(&bed, &mut back, &mut front, &disk);
    drop(page);
    ends(&bed, &mut back, front);
    bed.check_quiet();
}

#[test]
fn producer_beyond_the_ring_closes_the_device_once_and_nothing_leaks() {
    for taken in [0, 3u32] {
        for claim in [DEPTH + 1, 2 * DEPTH, 1 << 31, u32::MAX - 1, u32::MAX] {
            let disk = Slow::new(SECTORS as usize);
            let (bed, mut back, mut front) = connected(7, &disk);
            let page = Granted::new(&bed);
            // What is being worked on when it happens is finished, and let go of.
            disk.hold(true);
            let request = raw_request(BlkifOp::READ, 1, 0, &[page.gref()]);
            // Not in vain: what comes after that is not looked at at once.
            if taken > 0 {
                front.send(&vec![request; taken as usize]);
                back.follow(&bed);
            }
            assert_eq!(disk.0.borrow().jobs(), taken as usize);
            front.show(claim);
            back.follow(&bed);
            assert_eq!(back.errors.len(), 1, "{claim}: {:?}", back.errors);
            assert_eq!(bed.back_state().as_deref(), Some("5"));
            // Whatever it does now: it isn't heard.
            for _ in 0..20 {
                front.show(taken);
                front.send(&[request]);
                back.follow(&bed);
            }
            assert_eq!((back.errors.len(), disk.0.borrow().jobs()), (1, taken as usize));
            disk.hold(false);
            back.poll();
            bed.front_says("state", State::Closed.number()).unwrap();
            back.follow(&bed);
            assert_eq!((back.disconnections, bed.back_state().as_deref()), (1, Some("6")));
            drop((front, page));
            bed.check_quiet();
        }
    }
}

#[test]
fn full_ring_is_legal_at_every_place_of_it() {
    let disk = Slow::new(SECTORS as usize);
    let (bed, mut back, mut front) = connected(8, &disk);
    let page = Granted::new(&bed);
    for _ in 0..DEPTH {
        one(&bed, &mut back, &mut front, &raw_request(BlkifOp::READ, 0, 0, &[page.gref()]));
        front.send(&vec![raw_request(BlkifOp::READ, 0, 0, &[page.gref()]); DEPTH as usize]);
        back.follow(&bed);
        let responses = front.responses();
        assert_eq!(responses.len(), DEPTH as usize);
        assert!(responses.iter().all(|response| response.status == BLKIF_RSP_OKAY));
    }
    assert_eq!(back.errors, [""; 0]);
    drop(page);
    ends(&bed, &mut back, front);
    bed.check_quiet();
}

#[test]
fn ring_that_was_used_before_is_taken_where_its_responses_end() {
    let disk = Slow::new(SECTORS as usize);
    let bed = Bed::new(9);
    let mut back = BackOwner::new(&bed, disk.clone());
    back.follow(&bed);
    let mut front = RawFront::offer(&bed);
    front.start_at(u32::MAX - 5);
    back.follow(&bed);
    let page = Granted::new(&bed);
    for _ in 0..DEPTH {
        let request = raw_request(BlkifOp::READ, 3, 0, &[page.gref()]);
        assert_eq!(one(&bed, &mut back, &mut front, &request), BLKIF_RSP_OKAY);
    }
    drop(page);
    ends(&bed, &mut back, front);
    bed.check_quiet();
}

#[test]
fn place_whose_pages_can_not_be_unmapped_is_lost_alone() {
    let disk = Slow::new(SECTORS as usize);
    let (bed, mut back, mut front) = connected(16, &disk);
    let pages: Vec<_> = (0..3).map(|_| Granted::new(&bed)).collect();
    let request = raw_request(BlkifOp::WRITE, 4, 8, &pages.iter().map(Granted::gref).collect::<Vec<_>>());
    // The whole call fails once: it is done again when the place is needed.
    let errno = xen_sys::errno::XEN_ENOMEM;
    let kind = Some(Kind::grant(GNTTABOP_unmap_grant_ref));
    bed.machine.order(Fault::Hypercall { domain: Some(bed.back.id), kind, nth: 1, errno });
    for _ in 0..3 {
        assert_eq!(one(&bed, &mut back, &mut front, &request), BLKIF_RSP_OKAY);
    }
    assert_eq!(back.counters().lost, 0);
    // A page stays where it is for ever.
    bed.machine.order(Fault::Entry {
        domain: Some(bed.back.id),
        cmd: GNTTABOP_unmap_grant_ref,
        nth: 2,
        status: GNTST_general_error,
    });
    for _ in 0..3 {
        assert_eq!(one(&bed, &mut back, &mut front, &request), BLKIF_RSP_OKAY);
    }
    assert_eq!(back.counters().lost, 1);
    assert_eq!(back.errors, [""; 0]);
    ends(&bed, &mut back, front);
    drop(pages);
    assert_eq!(bed.machine.violations(), [""; 0]);
    assert_eq!(bed.front.grants.stats().quarantined_pages, 1);
}
