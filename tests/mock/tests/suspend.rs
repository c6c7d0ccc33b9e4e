//! A domain that is saved and restored as another.

mod common;

use std::sync::atomic::Ordering::SeqCst;

use common::{HOST, map, room, unmap};
use hypercall::call::{memory, sched, version};
use hypercall::event::{Channel, Events};
use hypercall::grant::{Grants, SharedPages, StillMapped};
use hypercall::mem::Pages;
use hypercall::{DomId, Mfn, Platform, Port};
use mock::{Config, Life, Machine, Suspended, suspend};
use xen_sys::grant_table::GNTST_okay;
use xenbus::store::{Store, Tx};

/// All kinds of machines.
fn machines() -> [Machine; 4] {
    let usual = Config::deterministic(5);
    [usual, usual.plain(), usual.auto_translated(), usual.plain().auto_translated()].map(Machine::new)
}

#[test]
fn a_restored_domain_has_the_same_memory_and_nothing_else() {
    for machine in machines() {
        let node = machine.boot();
        let old = node.id;
        let pages = Pages::new(&node.platform, 3).unwrap();
        pages.shared().write(
            4000,
            b"across two pages, and kept: ................................................................",
        );
        let gfns = [0, 1, 2].map(|index| pages.gfn(index));
        let before = node.platform.start();
        let port = node.events.alloc_unbound(DomId(0)).unwrap();
        let home = node.store.read_text(Tx::NONE, "domid").unwrap();
        let watch = node.store.watch("data").unwrap();

        let new = machine.restore_next(old);
        assert_eq!(suspend(&node), Ok(Suspended::Restored));
        assert_ne!(new, old);
        assert_eq!((node.platform.id(), machine.domain(new).id()), (new, new));
        assert_eq!(machine.life(old), None, "nobody maps a page of it");
        assert_eq!(machine.life(new), Some(Life::Running));

        let mut kept = [0; 88];
        pages.shared().read(4000, &mut kept);
        assert!(kept.starts_with(b"across two pages, and kept: ..."));
        let is_translated = version::is_auto_translated(&node.platform);
        for (index, gfn) in gfns.into_iter().enumerate() {
            assert_eq!(pages.gfn(index) == gfn, is_translated, "frames of the machine are others");
        }
        let after = node.platform.start();
        assert_eq!((after.store, after.console), (before.store, before.console));
        assert_ne!((after.store_port, after.console_port), (before.store_port, before.console_port));
        let open: Vec<Port> = machine.usage().0[&new].ports.clone();
        assert_eq!(open.len(), 2, "those of store and console: {open:?}");
        assert!(!open.contains(&port) || [after.store_port, after.console_port].contains(&port));

        // The store is that of the new domain.
        assert_ne!(node.store.read_text(Tx::NONE, "domid").unwrap(), home);
        assert_eq!(node.store.read_text(Tx::NONE, "domid").unwrap(), new.0.to_string());
        assert!(node.store.fired(watch));
        node.store.unwatch(watch).unwrap();
        drop(pages);
        machine.check_quiet();
    }
}

#[test]
fn who_maps_a_page_of_before_has_the_page_of_before() {
    for machine in machines() {
        let (one, other) = (machine.boot(), machine.boot());
        let pages = SharedPages::new(&one.grants, other.id, 1).unwrap();
        let gref = pages.refs()[0];
        pages.shared().write(0, b"before");
        let at = room(&other.platform);
        let address = if version::is_auto_translated(&other.platform) {
            other.platform.gfn_of(at).0 << 12
        } else {
            at.as_ptr().expose_provenance() as u64
        };
        let op = common::map_at(&other.platform, one.id, gref, address, HOST);
        assert_eq!(op.status, GNTST_okay);
        assert_eq!(one.grants.end(gref), Err(StillMapped { gref }));
        let old = one.id;
        assert_eq!(suspend(&one), Ok(Suspended::Restored));
        assert_eq!(machine.life(old), Some(Life::Dead), "as long as its page is mapped");

        let theirs = other.platform.mapped(at);
        let mut seen = [0; 6];
        // SAFETY: mapped above, and seen through atomics.
        let view = unsafe { hypercall::mem::Shared::new(theirs, 4096) };
        view.read(0, &mut seen);
        assert_eq!(&seen, b"before");
        view.write(0, b"theirs");
        pages.shared().read(0, &mut seen);
        assert_eq!(&seen, b"before", "what is written there reaches nobody");
        assert_eq!(one.grants.end(gref), Ok(()));

        assert_eq!(unmap(&other.platform, op.handle, address), GNTST_okay);
        assert_eq!(machine.life(old), None);
        drop(pages);
        common::free_room(&other.platform, at);
        machine.check_quiet();
    }
}

#[test]
fn a_cancelled_suspend_leaves_ports_grants_and_store_as_they_were() {
    for machine in machines() {
        let (one, other) = (machine.boot(), machine.boot());
        let pages = SharedPages::new(&one.grants, other.id, 1).unwrap();
        let offered = Channel::offer(&one.events, other.id).unwrap();
        let bound = Channel::bind(&other.events, one.id, offered.port()).unwrap();
        machine.cancel_next_suspend(one.id);
        assert_eq!(suspend(&one), Ok(Suspended::Cancelled));
        assert_eq!((one.platform.id(), machine.life(one.id)), (one.id, Some(Life::Running)));
        one.events.dispatch(0, drop);
        bound.notify();
        assert!(one.events.take(offered.port()));
        assert_eq!(one.store.read_text(Tx::NONE, "domid").unwrap(), one.id.0.to_string());
        drop((pages, offered, bound));
        machine.check_quiet();
        // The next one is none of that.
        assert_eq!(suspend(&one), Ok(Suspended::Restored));
        machine.check_quiet();
    }
}

#[test]
fn a_channel_to_a_domain_that_was_saved_leads_nowhere() {
    let machine = Machine::deterministic(1);
    let (one, other) = (machine.boot(), machine.boot());
    let offered = Channel::offer(&one.events, other.id).unwrap();
    let bound = Channel::bind(&other.events, one.id, offered.port()).unwrap();
    let generation = one.events.suspends();
    assert_eq!(suspend(&one), Ok(Suspended::Restored));
    assert_eq!(one.events.suspends(), generation + 1);
    bound.notify();
    let pending = &one.platform.shared_info();
    // SAFETY: the page lives as long as the machine, and is made of atomics.
    let pending = unsafe { pending.as_ref() }.evtchn_pending[0].load(SeqCst);
    let start = one.platform.start();
    assert_eq!(pending & !(1 << start.store_port.0 | 1 << start.console_port.0), 0);
    drop((offered, bound));
    machine.check_quiet();
}

#[test]
fn memory_is_again_where_the_table_of_a_translated_domain_was() {
    let usual = Config::deterministic(1).auto_translated();
    for machine in [usual, usual.plain()].map(Machine::new) {
        let one = machine.boot();
        let before = memory::current_reservation(&one.platform).unwrap();
        // SAFETY: nothing of before is used until it was resumed.
        assert_eq!(unsafe { sched::suspend(&one.platform, Mfn(0)) }, Ok(false));
        assert_eq!(memory::current_reservation(&one.platform), Ok(before + 1));
        one.events.resume();
        one.grants.resume().unwrap();
        assert_eq!(memory::current_reservation(&one.platform), Ok(before));
        machine.check_quiet();
    }
}

#[test]
fn a_domain_that_maps_what_is_not_its_memory_cannot_be_saved() {
    let suspend = |node: &mock::Node| {
        // SAFETY: what is wrong is what the test is about.
        unsafe { sched::suspend(&node.platform, Mfn(0)) }
    };
    let machine = Machine::deterministic(1);
    let one = machine.boot();
    assert_eq!(suspend(&one), Ok(false));
    let said = machine.violations();
    assert!(said.len() == 1 && said[0].contains("1 frame(s) mapped that are not its memory"), "{said:?}");
    one.events.resume();
    one.grants.resume().unwrap();

    let (mapper, granter) = (machine.boot(), machine.boot());
    let pages = SharedPages::new(&granter.grants, mapper.id, 1).unwrap();
    let at = room(&mapper.platform);
    assert_eq!(map(&mapper.platform, granter.id, pages.refs()[0], at, HOST).status, GNTST_okay);
    // SAFETY: the table is not used before `resume`.
    unsafe { mapper.grants.suspend() }.unwrap();
    assert_eq!(suspend(&mapper), Ok(false));
    let said = machine.violations();
    assert!(said.len() == 1 && said[0].contains("1 foreign grant(s)"), "{said:?}");
    mapper.events.resume();
    mapper.grants.resume().unwrap();
}
