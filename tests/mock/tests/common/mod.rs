//! What the tests of the mock share.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::ptr::NonNull;

use hypercall::call::grant_table as call;
use hypercall::grant::{Access, Grants};
use hypercall::mem::{PAGE_SIZE, Pages};
use hypercall::{DomId, Gfn, GrantRef, Hypervisor, Nr, Platform, Region};
use mock::{Domain, Node};
use xen_sys::GrantHandle;
use xen_sys::grant_table::*;

/// Flags of a plain mapping.
pub(crate) const HOST: u32 = GNTMAP_host_map;
pub(crate) const HOST_RO: u32 = GNTMAP_host_map | GNTMAP_readonly;

/// Enters the hypervisor with a structure, as C code would.
pub(crate) fn raw<T>(domain: &Domain, nr: Nr, cmd: u32, arg: &mut T, count: usize) -> isize {
    let arg = std::ptr::from_mut(arg).expose_provenance();
    // SAFETY: the tests pair commands with their structures.
    unsafe { domain.hypercall(nr, [cmd as usize, arg, count, 0, 0]) }
}

/// Enters the hypervisor with plain numbers, none of which it takes for a pointer that is not there.
pub(crate) fn plain(domain: &Domain, nr: Nr, args: [usize; 5]) -> isize {
    // SAFETY: as said.
    unsafe { domain.hypercall(nr, args) }
}

/// Maps one grant, and returns what the hypervisor wrote.
pub(crate) fn map(user: &Domain, owner: DomId, gref: GrantRef, va: NonNull<u8>, flags: u32) -> GnttabMapGrantRef {
    map_at(user, owner, gref, va.as_ptr().expose_provenance() as u64, flags)
}

/// Maps one grant where the hypervisor is told.
pub(crate) fn map_at(user: &Domain, owner: DomId, gref: GrantRef, host_addr: u64, flags: u32) -> GnttabMapGrantRef {
    let mut op = [GnttabMapGrantRef { host_addr, flags, r#ref: gref, dom: owner, status: 1, ..Default::default() }];
    // SAFETY: the address is one of unbacked space, which nothing uses.
    unsafe { call::map_grant_ref(user, &mut op) }.expect("the call as a whole works");
    op[0]
}

/// Unmaps one grant, and returns the status.
pub(crate) fn unmap(user: &Domain, handle: GrantHandle, addr: u64) -> i16 {
    let mut op = [GnttabUnmapGrantRef { host_addr: addr, handle, status: 1, ..Default::default() }];
    // SAFETY: the tests have no reference into what they unmap.
    unsafe { call::unmap_grant_ref(user, &mut op) }.expect("the call as a whole works");
    op[0].status
}

/// Address space for a page.
pub(crate) fn room(user: &Domain) -> NonNull<u8> {
    user.alloc(Region::Unbacked, 1).expect("there is room")
}

/// Gives address space for a page back.
pub(crate) fn free_room(user: &Domain, va: NonNull<u8>) {
    // SAFETY: from `room`, and nothing is mapped there any more.
    unsafe { user.free(Region::Unbacked, va, 1) };
}

/// A page, and a reference by which a peer is granted it.
pub(crate) struct Granted {
    pub(crate) page: Pages<Domain>,
    pub(crate) gref: GrantRef,
}

/// Grants a new page.
pub(crate) fn grant(owner: &Node, peer: DomId, access: Access) -> Granted {
    let page = Pages::new(&owner.platform, 1).expect("a page");
    Granted { gref: grant_frame(owner, peer, page.gfn(0), access), page }
}

/// Grants any frame.
pub(crate) fn grant_frame(owner: &Node, peer: DomId, gfn: Gfn, access: Access) -> GrantRef {
    let mut gref = [GrantRef(0)];
    owner.grants.reserve(&mut gref).expect("a reference");
    // SAFETY: just reserved; the page is seen through atomics only.
    unsafe { owner.grants.share(gref[0], peer, gfn, access) };
    gref[0]
}

/// Ends a grant that nobody uses.
pub(crate) fn end(owner: &Node, granted: Granted) {
    owner.grants.end(granted.gref).expect("nobody uses it");
    // SAFETY: reserved by `grant`, ended just now, and its holder is gone.
    unsafe { owner.grants.release(&[granted.gref]) };
}

/// The flags of an entry, as the hypervisor left them: the first frame of the table, mapped once more.
pub(crate) fn entry_flags(owner: &Node, gref: GrantRef) -> u16 {
    let mut frames = [xen_sys::XenPfn(0)];
    call::setup_table(&owner.platform, 1, &mut frames).expect("the table has a frame");
    let va = room(&owner.platform);
    let entry = (frames[0].0 as u64) << 12 | 1;
    // SAFETY: nothing else is at the address.
    let done =
        unsafe { hypercall::call::mmu::update_va_mapping(&owner.platform, va.as_ptr().expose_provenance(), entry, 0) };
    done.expect("a frame of the own table can be mapped");
    let offset = gref.0 as usize * size_of::<GrantEntryV1>();
    assert!(offset < PAGE_SIZE);
    // SAFETY: mapped just now; nothing but atomics is there.
    let flags = unsafe { owner.platform.mapped(va).add(offset).cast::<GrantEntryV1>().as_ref() }
        .flags
        .load(std::sync::atomic::Ordering::SeqCst);
    // SAFETY: the reference is gone.
    let done =
        unsafe { hypercall::call::mmu::update_va_mapping(&owner.platform, va.as_ptr().expose_provenance(), 0, 0) };
    done.expect("and unmapped");
    free_room(&owner.platform, va);
    flags
}

/// Runs the test `name` of this program once more, in a process of its own where [`in_child`] holds, and checks that it came
/// to [`about_to_fault`] and was ended there by a page fault.
pub(crate) fn child_faults(name: &str) {
    use std::os::unix::process::ExitStatusExt;
    let program = std::env::current_exe().expect("a test knows its program");
    let child = std::process::Command::new(program)
        .args(["--exact", name, "--test-threads=1", "--nocapture"])
        .env("IN_CHILD", "1")
        .output()
        .expect("a test can start itself");
    let said = String::from_utf8_lossy(&child.stderr);
    assert!(said.contains(ABOUT_TO_FAULT), "the child did not get there: {said}");
    assert_eq!(child.status.signal(), Some(libc::SIGSEGV));
}

/// Tells whether this is the child of [`child_faults`].
pub(crate) fn in_child() -> bool {
    std::env::var_os("IN_CHILD").is_some()
}

/// Says that the next access is to fault.
pub(crate) fn about_to_fault() {
    eprintln!("{ABOUT_TO_FAULT}");
}

const ABOUT_TO_FAULT: &str = "about to fault";
