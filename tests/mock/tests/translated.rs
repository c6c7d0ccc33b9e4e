//! Auto-translated (PVH) domains: frame numbers of their own, and what the hypervisor puts behind them.

mod common;

use common::*;
use hypercall::call::{grant_table, memory, mmu, version};
use hypercall::grant::{Access, CopyBatch, Foreign, GrantTable, Grants, Local, MapRequest, SharedPages, Window};
use hypercall::mem::{PAGE_SIZE, PageBuf, Pages};
use hypercall::{DomId, Gfn, Nr, Platform, Region, XenError};
use mock::{Config, Domain, DomainConfig, Machine, Node};
use xen_sys::XenPfn;
use xen_sys::features::*;
use xen_sys::grant_table::*;
use xen_sys::memory::*;

/// The number of the machine's first frame: all of a domain's own are below.
const FIRST_MFN: u64 = 0x10_0000;

const PVH: DomainConfig = DomainConfig {
    pages: 128,
    unbacked: 64,
    max_port: 1023,
    grant_frames: 4,
    maptrack_frames: 16,
    vcpus: 1,
    auto_translated: true,
};

/// Machines of both kinds of memory; Miri has only one.
fn machines() -> impl Iterator<Item = Machine> {
    let config = Config::deterministic(1);
    let configs = if cfg!(miri) { vec![config] } else { vec![config, config.plain()] };
    configs.into_iter().map(Machine::new)
}

fn boot(machine: &Machine) -> Node {
    machine.services(machine.create(PVH).id())
}

/// Puts a frame of the grant table somewhere, and returns what the hypervisor says.
fn put(domain: &Domain, frame: usize, gfn: Gfn) -> Result<(), XenError> {
    // SAFETY: the tests have no reference into what is there.
    unsafe { memory::add_to_physmap(domain, XENMAPSPACE_grant_table, frame, gfn) }
}

fn remove(domain: &Domain, gfn: Gfn) -> Result<(), XenError> {
    // SAFETY: as above.
    unsafe { memory::remove_from_physmap(domain, gfn) }
}

fn populate(domain: &Domain, gfn: Gfn) -> Result<usize, XenError> {
    // SAFETY: the tests do it where nothing is, or where it is refused.
    unsafe { memory::populate_physmap(domain, &mut [XenPfn(gfn.0 as usize)], 0, 0) }
}

/// Address space for a page and its frame number.
fn hole(domain: &Domain) -> (std::ptr::NonNull<u8>, Gfn) {
    let va = room(domain);
    (va, domain.gfn_of(va))
}

/// The flags of an entry of the table's first frame, which is seen at `va`.
fn flags(domain: &Domain, va: std::ptr::NonNull<u8>, index: usize) -> u16 {
    let offset = index * size_of::<GrantEntryV1>();
    // SAFETY: a frame of the table is there, made of atomics.
    let entry = unsafe { domain.mapped(va).add(offset).cast::<GrantEntryV1>().as_ref() };
    entry.flags.load(std::sync::atomic::Ordering::SeqCst)
}

#[test]
fn features_tell_which_domain_is_translated() {
    let machine = Machine::deterministic(1);
    let (pv, pvh) = (machine.create(DomainConfig::default()), machine.create(PVH));
    let all = Machine::new(Config::deterministic(1).auto_translated());
    let of = |domain: &Domain| version::is_auto_translated(domain);
    assert_eq!([of(&pv), of(&pvh), of(&machine.dom0()), of(&all.dom0())], [false, true, false, true]);
    assert_eq!(version::has_feature(&pvh, XENFEAT_writable_page_tables), Ok(true));
    assert_eq!(version::has_feature(&pvh, XENFEAT_mmu_pt_update_preserve_ad), Ok(false));
}

#[test]
fn each_kind_of_domain_is_refused_what_is_the_others() {
    let machine = Machine::deterministic(1);
    let (pv, pvh) = (machine.create(DomainConfig::default()), machine.create(PVH));
    let va = room(&pvh);
    // SAFETY: nothing uses the address, and nothing is done.
    let mapped = unsafe { mmu::update_va_mapping(&pvh, va.as_ptr().expose_provenance(), 0, 0) };
    assert_eq!(mapped, Err(XenError::ENOSYS));
    // SAFETY: there are no updates.
    assert_eq!(unsafe { mmu::mmu_update(&pvh, &[]) }, Err(XenError::ENOSYS));
    let gfn = pv.gfn_of(pv.start().store);
    assert_eq!((put(&pv, 0, gfn), remove(&pv, gfn)), (Err(XenError::EACCES), Err(XenError::EACCES)));
    free_room(&pvh, va);
}

#[test]
fn frame_numbers_are_the_domains_own_and_all_pages_have_one() {
    let machine = Machine::deterministic(1);
    let (one, other) = (machine.create(PVH), machine.create(PVH));
    let pages = Pages::new(&one, 30).expect("pages");
    let holes = one.alloc(Region::Unbacked, 8).expect("room");
    // SAFETY: inside the allocation.
    let hole = |index| one.gfn_of(unsafe { holes.add(index * PAGE_SIZE) });
    let numbers: std::collections::BTreeSet<Gfn> =
        (0..30).map(|index| pages.gfn(index)).chain((0..8).map(hole)).collect();
    assert_eq!(numbers.len(), 38);
    assert!(numbers.iter().all(|gfn| gfn.0 < FIRST_MFN));
    assert!(put(&other, 0, pages.gfn(0)).is_err(), "they mean nothing to another domain");
    let old = [pages.gfn(0), hole(0)];
    // SAFETY: from `alloc`, and nothing is mapped there.
    unsafe { one.free(Region::Unbacked, holes, 8) };
    drop(pages);
    assert!(old.iter().all(|gfn| put(&one, 0, *gfn).is_err()), "they mean nothing any more");
    machine.check_quiet();
}

#[test]
fn grants_work_from_and_to_translated_domains() {
    for machine in machines() {
        let (first, second, pv) = (boot(&machine), boot(&machine), machine.boot());
        for (owner, user) in [(&first, &second), (&first, &pv), (&pv, &second), (&first, &first)] {
            let pages = SharedPages::new(&owner.grants, user.id, 1).expect("a page to share");
            pages.shared().write(5, b"from the owner");
            let mut window = Window::new(&user.platform, 1).expect("room");
            let request = MapRequest { gref: pages.refs()[0], peer: owner.id, access: Access::ReadWrite };
            let view = window.map(0, request).expect("granted");
            let mut seen = [0; 14];
            view.read(5, &mut seen);
            assert_eq!(&seen, b"from the owner");
            view.write(4000, b"from the user");
            let mut seen = [0; 13];
            pages.shared().read(4000, &mut seen);
            assert_eq!(&seen, b"from the user");
            assert!(owner.grants.end(pages.refs()[0]).is_err(), "it is mapped");
            drop(window);
            let to = Pages::new(&user.platform, 1).expect("a page");
            let mut batch = CopyBatch::new();
            let from = Foreign { peer: owner.id, gref: pages.refs()[0], offset: 5 };
            batch.from_peer(from, Local::new(&to, 100), 14).expect("fits");
            assert_eq!(batch.run(&user.platform, |_, error| panic!("{error}")), 1);
            let mut seen = [0; 14];
            to.shared().read(100, &mut seen);
            assert_eq!(&seen, b"from the owner");
        }
        machine.check_quiet();
    }
}

#[test]
fn a_frame_of_the_table_takes_the_place_of_a_page_and_moves() {
    for machine in machines() {
        let domain = machine.create(PVH);
        let before = memory::current_reservation(&domain).expect("always told");
        let pages = std::mem::ManuallyDrop::new(Pages::new(&domain, 2).expect("pages"));
        let va = pages.shared().as_ptr();
        put(&domain, 0, pages.gfn(0)).expect("own memory");
        assert_eq!(memory::current_reservation(&domain), Ok(before + 1), "its memory is the machine's again");
        // The toolstack's grant of the store ring.
        assert_eq!(flags(&domain, va, GNTTAB_RESERVED_XENSTORE as usize), GTF_permit_access);
        let mut frames = [XenPfn(0); 2];
        grant_table::setup_table(&domain, 2, &mut frames).expect("two frames");
        assert_eq!((frames[0].0 as u64, frames[1].0), (pages.gfn(0).0, usize::MAX), "the second is nowhere yet");
        put(&domain, 0, pages.gfn(1)).expect("own memory");
        // SAFETY: the second page.
        assert_eq!(flags(&domain, unsafe { va.add(PAGE_SIZE) }, GNTTAB_RESERVED_XENSTORE as usize), GTF_permit_access);
        assert_eq!(remove(&domain, pages.gfn(0)), Err(XenError::ENOENT), "it was moved");
        assert_eq!(remove(&domain, pages.gfn(1)), Ok(()));
        assert_eq!(remove(&domain, pages.gfn(1)), Err(XenError::ENOENT), "not twice");
        for index in 0..2 {
            assert_eq!(populate(&domain, pages.gfn(index)), Ok(1));
        }
        assert_eq!(memory::current_reservation(&domain), Ok(before + 2));
        let mut bytes = vec![1; 2 * PAGE_SIZE];
        pages.shared().read(0, &mut bytes);
        assert!(bytes.iter().all(|byte| *byte == 0), "memory, and not the table's");
        drop(std::mem::ManuallyDrop::into_inner(pages));
        machine.check_quiet();
    }
}

#[test]
fn memory_that_is_taken_away_is_the_machines_again() {
    let machine = Machine::new(Config { frames: 32, ..Config::deterministic(1) });
    let domain = machine.create(PVH);
    let page = Pages::new(&domain, 1).expect("a page");
    for _ in 0..40 {
        put(&domain, 0, page.gfn(0)).expect("own memory");
        remove(&domain, page.gfn(0)).expect("the table");
        assert_eq!(populate(&domain, page.gfn(0)), Ok(1));
        remove(&domain, page.gfn(0)).expect("own memory");
        assert_eq!(populate(&domain, page.gfn(0)), Ok(1));
    }
}

#[test]
fn the_physmap_is_refused_with_xens_codes() {
    for machine in machines() {
        let (owner, user) = (boot(&machine), boot(&machine));
        let domain = &user.platform;
        let (va, gfn) = hole(domain);
        let add = |domid, space, idx, gpfn: u64| {
            let mut op = XenAddToPhysmap { domid, size: 0, space, idx, gpfn: XenPfn(gpfn as usize) };
            raw(domain, Nr::MEMORY_OP, XENMEM_add_to_physmap, &mut op, 0)
        };
        let table = XENMAPSPACE_grant_table;
        assert_eq!(add(user.id, table, PVH.grant_frames, gfn.0), -22, "a frame that the table can't have");
        assert_eq!(add(user.id, XENMAPSPACE_shared_info, 1, gfn.0), -22);
        assert_eq!(add(user.id, 99, 0, gfn.0), -22, "no such space");
        assert_eq!(add(user.id, table, 0, u64::MAX), -22, "no frame number");
        assert_eq!(add(user.id, table, 0, FIRST_MFN), -22, "not the machine's numbers");
        assert_eq!(add(user.id, XENMAPSPACE_gmfn_foreign, 0, gfn.0), -38);
        assert_eq!(add(DomId(99), table, 0, gfn.0), -3);
        assert_eq!(add(owner.id, table, 0, gfn.0), -1);
        let mut op = XenRemoveFromPhysmap { domid: owner.id, gpfn: XenPfn(gfn.0 as usize) };
        assert_eq!(raw(domain, Nr::MEMORY_OP, XENMEM_remove_from_physmap, &mut op, 0), -1);
        let granted = grant(&owner, user.id, Access::ReadWrite);
        let mapped = map_at(domain, owner.id, granted.gref, gfn.0 << 12, HOST);
        assert_eq!(mapped.status, GNTST_okay);
        assert_eq!(add(user.id, table, 0, gfn.0), -6, "a foreign page is there");
        assert_eq!(remove(domain, gfn), Err(XenError::ENOENT), "and is no page of this domain");
        assert_eq!(unmap(domain, mapped.handle, mapped.host_addr), GNTST_okay);
        assert_eq!(add(user.id, XENMAPSPACE_shared_info, 0, gfn.0), 0);
        assert_eq!(remove(domain, gfn), Ok(()));
        free_room(domain, va);
        end(&owner, granted);
        machine.check_quiet();
    }
}

#[test]
fn a_grant_is_mapped_by_frame_number_and_not_over_memory() {
    for machine in machines() {
        let (owner, user) = (boot(&machine), boot(&machine));
        let granted = grant(&owner, user.id, Access::ReadWrite);
        let (va, gfn) = hole(&user.platform);
        let status = |addr, flags| map_at(&user.platform, owner.id, granted.gref, addr, flags).status;
        assert_eq!(status(va.as_ptr().expose_provenance() as u64, HOST), GNTST_general_error, "an address");
        assert_eq!(status(gfn.0 << 12, HOST | GNTMAP_device_map), GNTST_general_error);
        let page = Pages::new(&user.platform, 1).expect("a page");
        assert_eq!(status(page.gfn(0).0 << 12, HOST), GNTST_general_error);
        assert!(machine.violations()[0].contains("over memory"));
        owner.grants.end(granted.gref).expect("a refused mapping leaves no mark");
        free_room(&user.platform, va);
        drop((page, granted));
    }
}

#[test]
fn memory_over_what_is_there_is_a_violation() {
    for machine in machines() {
        let domain = machine.create(PVH);
        let page = Pages::new(&domain, 1).expect("a page");
        assert_eq!(populate(&domain, page.gfn(0)), Ok(0));
        assert!(machine.violations()[0].contains("put memory over"));
    }
}

#[test]
fn pages_that_have_no_memory_are_freed_as_a_violation() {
    for machine in machines() {
        let domain = machine.create(PVH);
        let page = Pages::new(&domain, 1).expect("a page");
        put(&domain, 0, page.gfn(0)).expect("own memory");
        drop(page);
        assert!(machine.violations()[0].contains("does not have"));
    }
}

#[test]
fn a_grant_table_that_ends_gives_all_its_pages_back() {
    for machine in machines() {
        let domain = machine.create(PVH);
        let before = memory::current_reservation(&domain).expect("always told");
        // SAFETY: the domain has no other table.
        let grants = unsafe { GrantTable::new(domain.clone()) }.expect("there is memory");
        assert_eq!(memory::current_reservation(&domain), Ok(before + PVH.grant_frames - 1));
        grants.grow_to(u32::MAX).expect("there is memory");
        assert_eq!(memory::current_reservation(&domain), Ok(before), "Xen has the place's memory");
        drop(grants);
        assert_eq!(memory::current_reservation(&domain), Ok(before));
        machine.check_quiet();
    }
}

#[test]
fn a_domain_that_is_killed_leaves_its_threads_a_table_to_look_at() {
    for machine in machines() {
        let node = boot(&machine);
        let page = PageBuf::new(&node.platform, 100).expect("a page");
        let gref = grant_frame(&node, DomId(0), node.platform.gfn_of(page.shared().as_ptr()), Access::ReadOnly);
        machine.kill(node.id);
        assert_eq!(node.grants.end(gref), Ok(()));
        drop(page);
    }
}

#[test]
#[cfg_attr(miri, ignore = "a fault needs an MMU, and a process of its own")]
fn a_page_whose_memory_was_taken_away_faults() {
    if in_child() {
        let machine = Machine::deterministic(1);
        let domain = machine.create(PVH);
        let page = Pages::new(&domain, 1).expect("a page");
        remove(&domain, page.gfn(0)).expect("own memory");
        about_to_fault();
        page.shared().write(0, &[1]);
        return;
    }
    child_faults("a_page_whose_memory_was_taken_away_faults");
}
