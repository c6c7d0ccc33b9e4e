//! Grants in a domain whose frame numbers the hypervisor translates: PVH.

use std::sync::atomic::Ordering::SeqCst;

use hypercall::call::grant_table::GrantOpError;
use hypercall::grant::{Access, GrantError, GrantTable, Grants, MapRequest, SharedPages, Window};
use hypercall::{GrantRef, Nr, XenError};
use xen_sys::grant_table::{GNTTABOP_setup_table, GTF_permit_access};
use xen_sys::memory::*;
use xen_sys::version::XENVER_get_features;

use crate::fake::{Fake, PAGE, PEER};

/// Usable entries of the first frame.
const FIRST: usize = 512 - 8;

fn new_table(fake: &Fake) -> Result<GrantTable<Fake>, GrantError> {
    // SAFETY: each test has a fake of its own, and drops one table before it makes the next.
    unsafe { GrantTable::new(fake.clone()) }
}

fn table() -> (Fake, GrantTable<Fake>) {
    let fake = Fake::translated();
    let table = new_table(&fake).unwrap();
    (fake, table)
}

fn memory(fake: &Fake, cmd: u32) -> usize {
    fake.calls(Nr::MEMORY_OP, cmd)
}

#[test]
fn the_table_stands_in_the_place_of_own_pages() {
    let (fake, table) = table();
    assert_eq!((fake.pages(), fake.address_space()), (4, 0));
    let page = SharedPages::new(&table, PEER, 1).unwrap();
    let entry = fake.entry(page.refs()[0]);
    assert_eq!(entry.flags.load(SeqCst), GTF_permit_access, "where Xen looks for it");
    assert!(fake.peer_maps(page.refs()[0]));
    assert!(table.end(page.refs()[0]).is_err());
    fake.peer_unmaps(page.refs()[0]);
    assert_eq!(fake.calls(Nr::UPDATE_VA_MAPPING, 0), 0);
}

#[test]
fn the_table_grows_into_one_page_after_the_other() {
    let (fake, table) = table();
    assert_eq!(memory(&fake, XENMEM_add_to_physmap), 1);
    let mut refs = vec![GrantRef(0); FIRST + 513];
    table.reserve(&mut refs).unwrap();
    assert_eq!((table.frames(), memory(&fake, XENMEM_add_to_physmap)), (3, 3));
    assert_eq!(fake.calls(Nr::GRANT_TABLE_OP, GNTTABOP_setup_table), 2);
    for gref in [refs[0], refs[FIRST], refs[FIRST + 512]] {
        // SAFETY: just reserved; nobody maps the frame.
        unsafe { table.share(gref, PEER, hypercall::Gfn(1), Access::ReadWrite) };
        assert_eq!(fake.entry(gref).flags.load(SeqCst), GTF_permit_access);
    }
    assert_eq!(fake.pages(), 4, "no more than at the beginning");
}

#[test]
fn the_last_handle_puts_memory_back_where_the_frames_were() {
    let (fake, table) = table();
    table.grow_to(3).unwrap();
    drop(table);
    // The fake would not take pages back that have no memory.
    assert_eq!(fake.pages(), 0);
    assert_eq!((memory(&fake, XENMEM_remove_from_physmap), memory(&fake, XENMEM_populate_physmap)), (3, 3));
    drop(new_table(&fake).unwrap());
}

#[test]
fn pages_without_memory_are_given_to_nobody() {
    for cmd in [XENMEM_remove_from_physmap, XENMEM_populate_physmap] {
        let (fake, table) = table();
        table.grow_to(3).unwrap();
        fake.fail(Nr::MEMORY_OP, cmd, 1, 12);
        drop(table);
        assert_eq!(fake.pages(), 4);
        assert_eq!(fake.state().log, ["grant table: 4 page(s) of address space lost"]);
    }
}

#[test]
fn a_frame_that_is_refused_can_be_asked_for_again() {
    let (fake, table) = table();
    fake.fail(Nr::MEMORY_OP, XENMEM_add_to_physmap, 1, 12);
    assert_eq!(table.grow_to(4), Err(GrantError::Xen(GrantOpError::Xen(XenError::ENOMEM))));
    assert_eq!((table.frames(), table.stats().free as usize), (2, FIRST + 512));
    table.grow_to(4).unwrap();
    assert_eq!(table.frames(), 4);
    drop(table);
    assert_eq!(fake.pages(), 4, "whether the refused page was still there was not known");
}

#[test]
#[cfg_attr(miri, ignore = "the other kernel is a leak")]
fn a_frame_that_another_kernel_showed_elsewhere_is_moved() {
    let (fake, table) = table();
    table.grow_to(2).unwrap();
    // A kernel that ended without a word: its pages are lost, the table is not.
    std::mem::forget(table.clone());
    drop(table);
    let table = new_table(&fake).unwrap();
    let page = SharedPages::new(&table, PEER, 1).unwrap();
    assert!(fake.peer_maps(page.refs()[0]));
    fake.peer_unmaps(page.refs()[0]);
}

#[test]
fn a_window_is_mapped_by_frame_numbers() {
    let fake = Fake::translated();
    fake.peer_grants(50, 2);
    let mut window = Window::new(&fake, 2).unwrap();
    let request = |gref| MapRequest { gref: GrantRef(gref), peer: PEER, access: Access::ReadWrite };
    let view = window.map_run(0, &[request(50), request(51)]).unwrap();
    view.write(PAGE - 1, b"ab");
    assert_eq!((fake.peer_byte(50, PAGE - 1).load(SeqCst), fake.peer_byte(51, 0).load(SeqCst)), (b'a', b'b'));
    window.unmap(1).unwrap();
    assert_eq!(fake.mapped_now(), 1);
    drop(window);
    assert_eq!((fake.mapped_now(), fake.address_space()), (0, 0));
}

#[test]
fn a_hypervisor_that_cannot_say_translates_nothing() {
    let fake = Fake::new();
    fake.fail(Nr::XEN_VERSION, XENVER_get_features, 0, 38);
    let table = new_table(&fake).unwrap();
    assert_eq!((fake.pages(), fake.address_space()), (0, 4));
    drop(table);
}
