//! Grant tables of the mock: mappings are the same memory, and the codes are Xen's.

mod common;

use common::*;
use hypercall::call::grant_table as call;
use hypercall::grant::{Access, CopyBatch, Foreign, GrantStatus, Grants, Local, MapRequest, SharedPages, Window};
use hypercall::mem::{PAGE_SIZE, Pages};
use hypercall::{DomId, Gfn, GrantRef, Nr, Platform};
use mock::{Config, DomainConfig, Machine, Node};
use xen_sys::grant_table::*;
use xen_sys::xen::DOMID_SELF;
use xen_sys::{GrantHandle, XenPfn};

fn two() -> (Machine, Node, Node) {
    let machine = Machine::deterministic(1);
    let (owner, user) = (machine.boot(), machine.boot());
    (machine, owner, user)
}

#[test]
fn a_mapped_grant_is_the_same_memory_in_both_domains() {
    let (machine, owner, user) = two();
    let pages = SharedPages::new(&owner.grants, user.id, 1).expect("a page to share");
    let mut window = Window::new(&user.platform, 1).expect("room");
    let request = MapRequest { gref: pages.refs()[0], peer: owner.id, access: Access::ReadWrite };
    let view = window.map(0, request).expect("granted");
    pages.shared().write(5, b"from the owner");
    let mut seen = [0; 14];
    view.read(5, &mut seen);
    assert_eq!(&seen, b"from the owner");
    view.write(4000, b"from the user");
    let mut seen = [0; 13];
    pages.shared().read(4000, &mut seen);
    assert_eq!(&seen, b"from the user");
    drop((window, pages));
    machine.check_quiet();
}

#[test]
#[cfg_attr(miri, ignore = "a fault needs an MMU, and a process of its own")]
fn a_page_faults_after_its_grant_was_unmapped() {
    if in_child() {
        let (_machine, owner, user) = two();
        let granted = grant(&owner, user.id, Access::ReadWrite);
        let va = room(&user.platform);
        let mapped = map(&user.platform, owner.id, granted.gref, va, HOST);
        // SAFETY: mapped, and an atomic access.
        unsafe { std::sync::atomic::AtomicU8::from_ptr(va.as_ptr()) }.store(1, std::sync::atomic::Ordering::SeqCst);
        assert_eq!(unmap(&user.platform, mapped.handle, mapped.host_addr), GNTST_okay);
        about_to_fault();
        // SAFETY: it is not, which is what this is about: the process ends here.
        unsafe { std::sync::atomic::AtomicU8::from_ptr(va.as_ptr()) }.store(2, std::sync::atomic::Ordering::SeqCst);
        return;
    }
    child_faults("a_page_faults_after_its_grant_was_unmapped");
}

#[test]
#[cfg_attr(miri, ignore = "a fault needs an MMU, and a process of its own")]
fn a_read_only_mapping_can_be_read_and_faults_when_it_is_written() {
    if in_child() {
        let (_machine, owner, user) = two();
        let granted = grant(&owner, user.id, Access::ReadOnly);
        let va = room(&user.platform);
        assert_eq!(map(&user.platform, owner.id, granted.gref, va, HOST_RO).status, GNTST_okay);
        // SAFETY: mapped, and an atomic access.
        let byte = unsafe { std::sync::atomic::AtomicU8::from_ptr(va.as_ptr()) };
        assert_eq!(byte.load(std::sync::atomic::Ordering::SeqCst), 0);
        about_to_fault();
        byte.store(2, std::sync::atomic::Ordering::SeqCst);
        return;
    }
    child_faults("a_read_only_mapping_can_be_read_and_faults_when_it_is_written");
}

#[test]
#[cfg_attr(miri, ignore = "a fault needs an MMU, and a process of its own")]
fn own_memory_faults_after_it_was_freed() {
    if in_child() {
        let (_machine, owner, _user) = two();
        let page = Pages::new(&owner.platform, 1).expect("a page");
        let va = page.shared().as_ptr();
        drop(page);
        about_to_fault();
        // SAFETY: it is not, which is what this is about: the process ends here.
        unsafe { std::sync::atomic::AtomicU8::from_ptr(va.as_ptr()) }.load(std::sync::atomic::Ordering::SeqCst);
        return;
    }
    child_faults("own_memory_faults_after_it_was_freed");
}

#[test]
fn mapping_is_refused_with_xens_codes() {
    let (_machine, owner, user) = two();
    let granted = grant(&owner, user.id, Access::ReadOnly);
    let va = room(&user.platform);
    let status = |dom, gref, flags| map(&user.platform, dom, gref, va, flags).status;
    assert_eq!(status(owner.id, granted.gref, 0), GNTST_bad_gntref, "no kind of mapping");
    assert_eq!(status(DOMID_SELF, granted.gref, HOST), GNTST_bad_domain, "not by that number");
    assert_eq!(status(DomId(99), granted.gref, HOST), GNTST_bad_domain);
    assert_eq!(status(owner.id, GrantRef(512), HOST), GNTST_bad_gntref, "behind the table's one frame");
    assert_eq!(status(owner.id, GrantRef(100), HOST), GNTST_general_error, "not granted");
    assert_eq!(status(owner.id, granted.gref, HOST), GNTST_general_error, "only for reading");
    let for_dom0 = grant(&owner, DomId(0), Access::ReadWrite);
    assert_eq!(status(owner.id, for_dom0.gref, HOST), GNTST_general_error, "to another domain");
    let foreign = grant_frame(&owner, user.id, user.platform.gfn_of(user.platform.start().store), Access::ReadWrite);
    assert_eq!(status(owner.id, foreign, HOST), GNTST_bad_page, "a frame of somebody else");
    let none = grant_frame(&owner, user.id, Gfn(3), Access::ReadWrite);
    assert_eq!(status(owner.id, none, HOST), GNTST_bad_page, "a frame that there isn't");
    let pte = status(owner.id, granted.gref, HOST_RO | GNTMAP_contains_pte);
    assert_eq!(pte, GNTST_general_error, "no page tables here");
    for gref in [granted.gref, for_dom0.gref, foreign, none] {
        assert_eq!(entry_flags(&owner, gref) & (GTF_reading | GTF_writing), 0, "a refused mapping leaves no mark");
    }
    end(&owner, granted);
    end(&owner, for_dom0);
}

#[test]
fn an_address_outside_of_the_domain_can_not_be_mapped() {
    let (_machine, owner, user) = two();
    let granted = grant(&owner, user.id, Access::ReadWrite);
    let foreign = room(&owner.platform);
    assert_eq!(map(&user.platform, owner.id, granted.gref, foreign, HOST).status, GNTST_general_error);
    assert_eq!(entry_flags(&owner, granted.gref) & (GTF_reading | GTF_writing), 0);
    end(&owner, granted);
}

#[test]
fn a_domain_uses_its_own_grants_by_its_number_and_not_by_domid_self() {
    let machine = Machine::deterministic(1);
    let node = machine.boot();
    let va = room(&node.platform);
    let real = grant(&node, node.id, Access::ReadWrite);
    let mapped = map(&node.platform, node.id, real.gref, va, HOST);
    assert_eq!(mapped.status, GNTST_okay);
    assert_eq!(unmap(&node.platform, mapped.handle, mapped.host_addr), GNTST_okay);
    let by_self = grant(&node, DOMID_SELF, Access::ReadWrite);
    assert_eq!(map(&node.platform, DOMID_SELF, by_self.gref, va, HOST).status, GNTST_bad_domain);
    let to = Pages::new(&node.platform, 1).expect("a page");
    let copy = |peer, gref| {
        let mut batch = CopyBatch::new();
        batch.from_peer(Foreign { peer, gref, offset: 0 }, Local::new(&to, 0), 8).expect("fits");
        let mut status = None;
        batch.run(&node.platform, |_, error| status = Some(error));
        status
    };
    let refused = call::GrantOpError::Status(GrantStatus(GNTST_general_error));
    assert_eq!(copy(DOMID_SELF, by_self.gref), Some(refused));
    assert_eq!(copy(node.id, real.gref), None);
    end(&node, real);
    end(&node, by_self);
}

#[test]
fn the_entry_tells_whether_the_page_is_read_or_written() {
    let (_machine, owner, user) = two();
    let granted = grant(&owner, user.id, Access::ReadWrite);
    let marks = || entry_flags(&owner, granted.gref) & (GTF_reading | GTF_writing);
    let (first, second) = (room(&user.platform), room(&user.platform));
    let reader = map(&user.platform, owner.id, granted.gref, first, HOST_RO);
    assert_eq!(marks(), GTF_reading);
    let writer = map(&user.platform, owner.id, granted.gref, second, HOST);
    assert_eq!(marks(), GTF_reading | GTF_writing);
    assert!(owner.grants.end(granted.gref).is_err(), "it is mapped");
    assert_eq!(unmap(&user.platform, writer.handle, writer.host_addr), GNTST_okay);
    assert_eq!(marks(), GTF_reading);
    assert_eq!(unmap(&user.platform, reader.handle, reader.host_addr), GNTST_okay);
    assert_eq!(marks(), 0);
    end(&owner, granted);
}

#[test]
fn unmapping_is_refused_with_xens_codes() {
    let (_machine, owner, user) = two();
    let granted = grant(&owner, user.id, Access::ReadWrite);
    let (va, other) = (room(&user.platform), room(&user.platform));
    let mapped = map(&user.platform, owner.id, granted.gref, va, HOST);
    let (handle, addr) = (mapped.handle, mapped.host_addr);
    assert_eq!(unmap(&user.platform, GrantHandle(77), addr), GNTST_bad_handle);
    assert_eq!(unmap(&user.platform, handle, other.as_ptr().addr() as u64), GNTST_general_error, "nothing is there");
    assert_eq!(unmap(&user.platform, handle, 0), GNTST_okay, "which unmaps nothing");
    assert_eq!(entry_flags(&owner, granted.gref) & GTF_writing, GTF_writing);
    assert_eq!(unmap(&user.platform, handle, addr), GNTST_okay);
    assert_eq!(unmap(&user.platform, handle, addr), GNTST_bad_handle, "not twice");
    end(&owner, granted);
}

#[test]
fn a_device_mapping_has_a_bus_address_and_no_page() {
    let (_machine, owner, user) = two();
    let granted = grant(&owner, user.id, Access::ReadWrite);
    let mapped = map(&user.platform, owner.id, granted.gref, room(&user.platform), GNTMAP_device_map);
    assert_eq!((mapped.status, mapped.dev_bus_addr), (GNTST_okay, granted.page.gfn(0).0 << 12));
    let undo = |dev_bus_addr| {
        let mut op = [GnttabUnmapGrantRef { dev_bus_addr, handle: mapped.handle, ..Default::default() }];
        // SAFETY: no memory was mapped.
        unsafe { call::unmap_grant_ref(&user.platform, &mut op) }.expect("the call as a whole works");
        op[0].status
    };
    assert_eq!(undo(mapped.dev_bus_addr + 4096), GNTST_bad_dev_addr);
    assert_eq!(undo(mapped.dev_bus_addr), GNTST_okay);
    end(&owner, granted);
}

#[test]
fn one_grant_is_mapped_128_times_at_most_and_a_domain_has_so_many_mappings() {
    let machine = Machine::deterministic(1);
    let owner = machine.boot();
    let user = machine.create(DomainConfig { maptrack_frames: 1, ..DomainConfig::default() });
    let user = machine.services(user.id());
    let grants: Vec<Granted> = (0..3).map(|_| grant(&owner, user.id, Access::ReadWrite)).collect();
    let va = room(&user.platform);
    let again = |grant: &Granted| map(&user.platform, owner.id, grant.gref, va, GNTMAP_device_map).status;
    for _ in 0..128 {
        assert_eq!(again(&grants[0]), GNTST_okay);
    }
    assert_eq!(again(&grants[0]), GNTST_general_error, "the counter would overflow");
    for _ in 0..128 {
        assert_eq!(again(&grants[1]), GNTST_okay);
    }
    assert_eq!(again(&grants[2]), GNTST_no_space, "one frame holds 256 mappings");
    machine.kill(user.id);
    grants.into_iter().for_each(|grant| end(&owner, grant));
}

#[test]
fn the_table_grows_to_its_largest_size_and_no_further() {
    let machine = Machine::deterministic(1);
    let domain = machine.create(DomainConfig { grant_frames: 3, ..DomainConfig::default() });
    assert_eq!(call::query_size(&domain), Ok((1, 3)));
    let mut frames = [XenPfn(0); 4];
    call::setup_table(&domain, 3, &mut frames[..3]).expect("three are allowed");
    assert_eq!(call::query_size(&domain), Ok((3, 3)));
    let kept = frames;
    call::setup_table(&domain, 1, &mut frames[..1]).expect("it never shrinks");
    assert_eq!((kept[0], call::query_size(&domain)), (frames[0], Ok((3, 3))));
    let more = call::setup_table(&domain, 4, &mut frames);
    assert_eq!(more, Err(call::GrantOpError::Status(GrantStatus(GNTST_general_error))));
    let mut op = GnttabQuerySize { dom: DomId(99), ..Default::default() };
    assert_eq!(raw(&domain, Nr::GRANT_TABLE_OP, GNTTABOP_query_size, &mut op, 1), 0);
    assert_eq!(op.status, GNTST_bad_domain);
    op.dom = DomId(0);
    assert_eq!(raw(&domain, Nr::GRANT_TABLE_OP, GNTTABOP_query_size, &mut op, 1), 0);
    assert_eq!(op.status, GNTST_permission_denied);
    assert_eq!(raw(&domain, Nr::GRANT_TABLE_OP, GNTTABOP_query_size, &mut op, 2), -22, "one at a time");
    assert_eq!(raw(&domain, Nr::GRANT_TABLE_OP, GNTTABOP_query_size, &mut op, 1 << 31), -22);
    assert_eq!(raw(&domain, Nr::GRANT_TABLE_OP, 99, &mut op, 1), -38);
    assert_eq!(call::get_version(&domain, DOMID_SELF), Ok(1));
}

#[test]
fn a_copy_moves_the_bytes_that_were_named_and_no_other() {
    let (machine, owner, user) = two();
    let granted = grant(&owner, user.id, Access::ReadWrite);
    granted.page.shared().write(100, b"abcdefgh");
    let local = Pages::new(&user.platform, 1).expect("a page");
    let mut batch = CopyBatch::new();
    let peer = |offset| Foreign { peer: owner.id, gref: granted.gref, offset };
    batch.from_peer(peer(102), Local::new(&local, 7), 3).expect("fits");
    batch.to_peer(Local::new(&local, 7), peer(4093), 3).expect("fits");
    assert_eq!(batch.run(&user.platform, |_, error| panic!("{error:?}")), 2);
    let mut seen = [9; 5];
    local.shared().read(6, &mut seen);
    assert_eq!(&seen, b"\0cde\0");
    let mut seen = [9; 4];
    granted.page.shared().read(4092, &mut seen);
    assert_eq!(&seen, b"\0cde");
    let ledger = machine.ledger_of(user.id);
    assert_eq!((ledger.grant_copies, ledger.copied_bytes), (2, 6));
    end(&owner, granted);
}

#[test]
fn copying_is_refused_with_xens_codes() {
    let (_machine, owner, user) = two();
    let granted = grant(&owner, user.id, Access::ReadOnly);
    let local = Pages::new(&user.platform, 1).expect("a page");
    let own =
        GnttabCopyPtr { u: GnttabCopyPtrU { gmfn: XenPfn(local.gfn(0).0 as usize) }, domid: DOMID_SELF, offset: 0 };
    let theirs = GnttabCopyPtr { u: GnttabCopyPtrU { r#ref: granted.gref }, domid: owner.id, offset: 0 };
    let copy = |source, dest, len, flags| {
        let mut op = [GnttabCopy { source, dest, len, flags, status: 1 }];
        // SAFETY: the pages are seen through atomics only.
        unsafe { call::copy(&user.platform, &mut op) }.expect("the call as a whole works");
        op[0].status
    };
    const FROM: u16 = GNTCOPY_source_gref;
    const TO: u16 = GNTCOPY_dest_gref;
    assert_eq!(copy(theirs, own, 4096, FROM), GNTST_okay);
    assert_eq!(copy(own, own, 8, 0), GNTST_okay, "frames of the caller");
    assert_eq!(copy(theirs, own, 8, 0), GNTST_permission_denied, "a frame of another");
    let named = GnttabCopyPtr { domid: user.id, ..own };
    assert_eq!(copy(named, own, 8, 0), GNTST_permission_denied, "even by one's own number");
    assert_eq!(copy(GnttabCopyPtr { domid: DomId(99), ..theirs }, own, 8, FROM), GNTST_bad_domain);
    assert_eq!(copy(own, theirs, 8, TO), GNTST_general_error, "only for reading");
    let far = GnttabCopyPtr { u: GnttabCopyPtrU { r#ref: GrantRef(600) }, ..theirs };
    assert_eq!(copy(far, own, 8, FROM), GNTST_bad_gntref);
    let past = GnttabCopyPtr { offset: 4090, ..theirs };
    assert_eq!(copy(past, own, 7, FROM), GNTST_bad_copy_arg);
    assert_eq!(copy(past, own, 6, FROM), GNTST_okay);
    let alien = GnttabCopyPtr { u: GnttabCopyPtrU { gmfn: XenPfn(granted.page.gfn(0).0 as usize) }, ..own };
    assert_eq!(copy(alien, own, 8, 0), GNTST_bad_page);
    assert_eq!(entry_flags(&owner, granted.gref) & (GTF_reading | GTF_writing), 0, "a copy leaves no mark");
    end(&owner, granted);
}

#[test]
fn freeing_a_page_that_is_mapped_is_a_violation() {
    let machine = Machine::new(Config { frames: 64, ..Config::deterministic(1) });
    let (owner, user) = (machine.boot(), machine.boot());
    let Granted { page, gref } = grant(&owner, user.id, Access::ReadWrite);
    let frame = page.gfn(0);
    let va = room(&user.platform);
    let mapped = map(&user.platform, owner.id, gref, va, HOST);
    drop(page);
    let violations = machine.violations();
    assert!(violations[0].contains("while mapped"), "{violations:?}");
    let all: Vec<_> = std::iter::from_fn(|| Pages::new(&owner.platform, 1).ok()).collect();
    assert!(all.iter().all(|page| page.gfn(0) != frame), "a mapped frame is nobody else's");
    assert_eq!(unmap(&user.platform, mapped.handle, mapped.host_addr), GNTST_okay);
    owner.grants.end(gref).expect("unmapped");
    assert_eq!(Pages::new(&owner.platform, 1).expect("one is free again").gfn(0), frame);
}

#[test]
fn freeing_a_page_that_is_granted_is_a_violation() {
    let (machine, owner, user) = two();
    let Granted { page, gref } = grant(&owner, user.id, Access::ReadWrite);
    drop(page);
    let violations = machine.violations();
    assert!(violations[0].contains("while granted"), "{violations:?}");
    let late = map(&user.platform, owner.id, gref, room(&user.platform), HOST);
    assert_eq!(late.status, GNTST_bad_page, "the frame is not the owner's any more");
}

#[test]
fn pages_that_are_dropped_while_mapped_are_kept_by_the_grant_table() {
    let (machine, owner, user) = two();
    let pages = SharedPages::new(&owner.grants, user.id, 2).expect("pages to share");
    let va = room(&user.platform);
    let mapped = map(&user.platform, owner.id, pages.refs()[1], va, HOST);
    drop(pages);
    assert_eq!(owner.grants.stats().quarantined_pages, 2);
    assert_eq!(machine.leaks().len(), 4, "pages, the grant, the mapping, and its room: {:?}", machine.leaks());
    assert_eq!(unmap(&user.platform, mapped.handle, mapped.host_addr), GNTST_okay);
    free_room(&user.platform, va);
    owner.grants.retry_quarantine();
    machine.check_quiet();
}

#[test]
#[should_panic(expected = "not quiet")]
fn a_mapping_that_is_left_is_a_leak() {
    let (machine, owner, user) = two();
    let granted = grant(&owner, user.id, Access::ReadWrite);
    map(&user.platform, owner.id, granted.gref, room(&user.platform), HOST);
    machine.check_quiet();
}

#[test]
#[should_panic(expected = "rules were broken")]
fn a_violation_that_nobody_looked_at_fails_the_test() {
    let (machine, owner, user) = two();
    drop(grant(&owner, user.id, Access::ReadWrite).page);
    drop(machine);
}

#[test]
fn address_space_that_is_freed_with_a_page_in_it_is_a_violation() {
    let (machine, owner, user) = two();
    let granted = grant(&owner, user.id, Access::ReadWrite);
    let va = room(&user.platform);
    assert_eq!(map(&user.platform, owner.id, granted.gref, va, HOST).status, GNTST_okay);
    free_room(&user.platform, va);
    assert!(machine.violations()[0].contains("mapped at"));
    granted.page.leak();
}

#[test]
#[cfg_attr(miri, ignore = "pages of different blocks of the heap are no neighbours")]
fn a_window_shows_several_grants_in_a_row() {
    let (machine, owner, user) = two();
    let pages = SharedPages::new(&owner.grants, user.id, 3).expect("pages to share");
    let mut window = Window::new(&user.platform, 3).expect("room");
    let request = |gref| MapRequest { gref, peer: owner.id, access: Access::ReadWrite };
    let requests: Vec<MapRequest> = pages.refs().iter().copied().map(request).collect();
    let view = window.map_run(0, &requests).expect("granted");
    view.write(PAGE_SIZE - 2, b"over the edge");
    let mut seen = [0; 13];
    pages.shared().read(PAGE_SIZE - 2, &mut seen);
    assert_eq!(&seen, b"over the edge");
    drop((window, pages));
    machine.check_quiet();
}
