//! Mapped foreign pages.

use std::sync::atomic::Ordering::SeqCst;

use hypercall::grant::{Access, GrantStatus, MapError, MapRequest, UnmapError, Window};
use hypercall::{GrantRef, Nr, XenError};
use xen_sys::grant_table::*;
use xen_sys::sched::SCHEDOP_yield;

use crate::fake::{Fake, PAGE, PEER};

fn window(grants: usize, slots: usize) -> (Fake, Window<Fake>) {
    let fake = Fake::new();
    fake.peer_grants(0, grants);
    let window = Window::new(&fake, slots).unwrap();
    (fake, window)
}

fn request(gref: u32) -> MapRequest {
    MapRequest { gref: GrantRef(gref), peer: PEER, access: Access::ReadWrite }
}

fn requests(grants: usize) -> Vec<MapRequest> {
    (0..grants as u32).map(request).collect()
}

fn refused(gref: u32, status: i16) -> MapError {
    MapError::Refused { gref: GrantRef(gref), status: GrantStatus(status) }
}

#[test]
fn a_mapped_page_is_the_peers_page() {
    let (fake, mut window) = window(1, 2);
    fake.peer_byte(0, 17).store(42, SeqCst);
    let view = window.map(1, request(0)).unwrap();
    let mut byte = [0];
    view.read(17, &mut byte);
    assert_eq!((view.len(), byte), (PAGE, [42]));
    view.write(4095, &[7]);
    assert_eq!(fake.peer_byte(0, 4095).load(SeqCst), 7);
    assert!(window.view(0).is_none());
    window.unmap(1).unwrap();
    assert!(window.view(1).is_none());
    assert_eq!(fake.mapped_now(), 0);
}

#[test]
fn neighbouring_slots_are_one_view() {
    let (fake, mut window) = window(4, 6);
    let view = window.map_run(2, &requests(4)).unwrap();
    view.write(2 * PAGE - 1, &[1, 2]);
    assert_eq!((fake.peer_byte(1, PAGE - 1).load(SeqCst), fake.peer_byte(2, 0).load(SeqCst)), (1, 2));
    assert!(window.view_run(2, 5).is_none());
    assert!(window.view_run(1, 2).is_none());
    assert!(window.view_run(5, usize::MAX).is_none());
    assert_eq!(window.view_run(3, 2).unwrap().len(), 2 * PAGE);
}

#[test]
fn pages_that_are_not_neighbours_are_not_one_view() {
    let (fake, mut window) = window(4, 2);
    window.map(0, request(3)).unwrap();
    window.map(1, request(0)).unwrap();
    assert!(window.view_run(0, 2).is_none());
    drop(window);
    assert_eq!(fake.mapped_now(), 0);
}

#[test]
#[should_panic(expected = "read-only")]
fn a_page_mapped_for_reading_cannot_be_written() {
    let (_fake, mut window) = window(1, 1);
    let view = window.map(0, MapRequest { access: Access::ReadOnly, ..request(0) }).unwrap();
    assert!(!view.is_writable());
    view.write(0, &[1]);
}

#[test]
fn every_subset_of_failures_unwinds_exactly() {
    let grants = if cfg!(miri) { 4 } else { 10 };
    for subset in 0_u32..1 << grants {
        let (fake, mut window) = window(grants, grants);
        for gref in (0..grants as u32).filter(|gref| subset & 1 << gref != 0) {
            fake.answer(gref, &[GNTST_bad_gntref]);
        }
        let mapped = window.map_run(0, &requests(grants)).map(drop);
        if subset == 0 {
            assert_eq!((mapped, fake.mapped_now()), (Ok(()), grants));
        } else {
            let first = subset.trailing_zeros();
            assert_eq!((mapped, fake.mapped_now()), (Err(refused(first, GNTST_bad_gntref)), 0));
            assert_eq!((window.mapped(), window.stuck()), (0, 0));
        }
        drop(window);
        assert_eq!((fake.mapped_now(), fake.address_space()), (0, 0));
    }
}

#[test]
fn a_long_batch_tells_the_outcome_of_each_and_takes_a_call_for_32() {
    let (fake, mut window) = window(70, 100);
    fake.answer(33, &[GNTST_permission_denied]);
    window.map(75, request(0)).unwrap();
    let mut outcomes = vec![None; 101];
    let batch = (0..70).map(|index| (index, request(index as u32))).chain([(75, request(0)), (100, request(0))]);
    window.map_batch(batch, |slot, mapped| assert!(outcomes[slot].replace(mapped).is_none()));
    for (slot, outcome) in outcomes.into_iter().enumerate() {
        let expected = match slot {
            33 => Some(Err(refused(33, GNTST_permission_denied))),
            75 => Some(Err(MapError::Occupied { slot })),
            100 => Some(Err(MapError::NoSlot { slot })),
            _ => (slot < 70).then_some(Ok(())),
        };
        assert_eq!(outcome, expected, "{slot}");
    }
    window.unmap(75).unwrap();
    assert_eq!(fake.calls(Nr::GRANT_TABLE_OP, GNTTABOP_map_grant_ref), 1 + 3);
    assert_eq!(fake.mapped_now(), 69);
    window.unmap_batch(0..100).unwrap();
    assert_eq!(fake.calls(Nr::GRANT_TABLE_OP, GNTTABOP_unmap_grant_ref), 1 + 3);
    assert_eq!(fake.mapped_now(), 0);
}

#[test]
fn a_slot_is_used_once_also_within_a_batch() {
    let (fake, mut window) = window(2, 1);
    let mut outcomes = Vec::new();
    window.map_batch([(0, request(0)), (0, request(1))], |_, mapped| outcomes.push(mapped));
    // What can't be tried is told of at once.
    assert_eq!(outcomes, [Err(MapError::Occupied { slot: 0 }), Ok(())]);
    assert!(!window.add(0, request(1)) && window.is_mapped(0));
    // What is mapped already stays, whatever fails on top.
    assert_eq!(window.map_run(0, &requests(2)).map(drop), Err(MapError::Occupied { slot: 0 }));
    assert_eq!(fake.mapped_now(), 1);
}

#[test]
fn a_run_that_leaves_the_window_maps_nothing() {
    let (fake, mut window) = window(4, 3);
    assert_eq!(window.map_run(1, &requests(4)).map(drop), Err(MapError::NoSlot { slot: 3 }));
    assert_eq!(window.map_run(usize::MAX, &requests(2)).map(drop), Err(MapError::NoSlot { slot: usize::MAX }));
    assert_eq!(fake.mapped_now(), 0);
}

#[test]
fn a_batch_takes_32_and_what_is_forgotten_is_not_mapped() {
    let (fake, mut window) = window(40, 40);
    for slot in 0..32 {
        assert!(window.add(slot, request(slot as u32)));
    }
    assert!(!window.add(32, request(32)) && window.is_empty(32), "it is full");
    assert!(!window.is_mapped(0) && !window.is_empty(0) && window.view(0).is_none());
    window.forget(40);
    assert_eq!(window.added(), 32);
    window.forget(2);
    assert_eq!((window.added(), window.is_empty(1), window.is_empty(2)), (2, false, true));
    let mut mapped = Vec::new();
    window.map_added(|slot, outcome| mapped.push((slot, outcome.is_ok())));
    assert_eq!((mapped, fake.mapped_now(), window.added()), (vec![(0, true), (1, true)], 2, 0));
    // What was forgotten can be added again.
    assert!(window.add(2, request(2)));
}

#[test]
fn a_slot_that_is_to_be_unmapped_is_not_seen_and_not_used_until_it_is() {
    let (fake, mut window) = window(40, 40);
    window.map_run(0, &requests(40)).unwrap();
    for slot in 0..32 {
        assert!(window.remove(slot) && !window.remove(slot));
    }
    assert!(!window.remove(32) && window.is_mapped(32), "the batch is full");
    assert!(window.view(0).is_none() && window.view_run(0, 2).is_none() && !window.is_empty(0));
    assert!(!window.add(0, request(0)));
    // As a whole refused: they are still to be unmapped, and still mapped.
    fake.fail_in(Nr::GRANT_TABLE_OP, Some(GNTTABOP_unmap_grant_ref), 0, 30, 14);
    let mut freed = Vec::new();
    assert_eq!(window.unmap_removed(|slot, ()| freed.push(slot)), 0);
    assert_eq!((freed.len(), window.removed(), window.mapped(), fake.mapped_now()), (30, 2, 10, 10));
    assert!(window.view(31).is_none() && !window.add(31, request(31)) && window.is_empty(29));
    assert_eq!(window.unmap_removed(|slot, ()| freed.push(slot)), 0);
    assert_eq!((freed, window.removed(), fake.mapped_now()), ((0..32).collect(), 0, 8));
    fake.state().unmap_refused = true;
    assert!(window.remove(32));
    assert_eq!((window.unmap_removed(|_, ()| panic!("it is still mapped")), window.stuck()), (1, 1));
    fake.state().unmap_refused = false;
}

#[test]
fn a_window_keeps_a_note_for_each_slot() {
    let (fake, _) = window(2, 0);
    let mut window = Window::with_notes(&fake, 2, 7).unwrap();
    window.map(1, request(1)).unwrap();
    *window.note_mut(1).unwrap() += 1;
    assert_eq!([0, 1, 2].map(|slot| window.note(slot).copied()), [Some(7), Some(8), None]);
    assert!(window.remove(1));
    assert_eq!(window.unmap_removed(|_, note| *note += 1), 0);
    assert_eq!(window.note(1), Some(&9));
}

#[test]
fn a_page_that_is_being_paged_in_is_tried_again() {
    let (fake, mut window) = window(3, 3);
    fake.answer(1, &[GNTST_eagain; 3]);
    window.map_run(0, &requests(3)).unwrap();
    assert_eq!(fake.calls(Nr::GRANT_TABLE_OP, GNTTABOP_map_grant_ref), 4);
    assert_eq!(fake.calls(Nr::SCHED_OP, SCHEDOP_yield), 3);
    assert_eq!(fake.mapped_now(), 3);
}

#[test]
fn a_page_that_never_comes_is_given_up() {
    let (fake, mut window) = window(2, 2);
    fake.answer(1, &[GNTST_eagain; 1000]);
    assert_eq!(window.map_run(0, &requests(2)).map(drop), Err(refused(1, GNTST_eagain)));
    assert_eq!(fake.calls(Nr::GRANT_TABLE_OP, GNTTABOP_map_grant_ref), 16);
    assert_eq!(fake.mapped_now(), 0);
}

#[test]
fn a_call_that_fails_half_way_leaves_nothing_mapped() {
    for done in 0..4 {
        let (fake, mut window) = window(4, 4);
        fake.fail_in(Nr::GRANT_TABLE_OP, Some(GNTTABOP_map_grant_ref), 0, done, 14);
        assert_eq!(window.map_run(0, &requests(4)).map(drop), Err(MapError::Xen(XenError::EFAULT)));
        assert_eq!((fake.mapped_now(), window.mapped()), (0, 0), "{done} were done");
        window.map_run(0, &requests(4)).unwrap();
    }
}

#[test]
fn an_unmap_that_is_refused_as_a_whole_can_be_repeated() {
    let (fake, mut window) = window(3, 3);
    window.map_run(0, &requests(3)).unwrap();
    fake.fail_in(Nr::GRANT_TABLE_OP, Some(GNTTABOP_unmap_grant_ref), 0, 1, 14);
    assert_eq!(window.unmap_batch(0..3), Err(UnmapError { failed: 2 }));
    assert_eq!((window.mapped(), window.stuck(), fake.mapped_now()), (2, 0, 2));
    window.unmap_batch(0..3).unwrap();
    assert_eq!(fake.mapped_now(), 0);
}

#[test]
fn a_slot_that_cannot_be_unmapped_is_not_used_again_and_its_address_space_is_kept() {
    let (fake, mut window) = window(2, 3);
    window.map_run(0, &requests(2)).unwrap();
    fake.state().unmap_refused = true;
    assert_eq!(window.unmap(0), Err(UnmapError { failed: 1 }));
    fake.state().unmap_refused = false;
    assert_eq!((window.mapped(), window.stuck()), (1, 1));
    assert!(window.view(0).is_none());
    // Stuck, mapped, empty, and not there.
    assert_eq!(
        [0, 1, 2, 3].map(|slot| (window.is_mapped(slot), window.is_empty(slot))),
        [(false, false), (true, false), (false, true), (false, false)]
    );
    assert_eq!(window.map(0, request(0)).map(drop), Err(MapError::Occupied { slot: 0 }));
    drop(window);
    assert_eq!((fake.mapped_now(), fake.address_space()), (1, 3));
    assert_eq!(fake.state().log.len(), 1);
}

#[test]
fn a_dropped_window_unmaps_everything() {
    let (fake, mut window) = window(40, 40);
    window.map_run(0, &requests(40)).unwrap();
    // Even if the first try is refused.
    fake.fail(Nr::GRANT_TABLE_OP, GNTTABOP_unmap_grant_ref, 0, 4);
    drop(window);
    assert_eq!((fake.mapped_now(), fake.address_space()), (0, 0));
    assert!(fake.state().log.is_empty());
}
