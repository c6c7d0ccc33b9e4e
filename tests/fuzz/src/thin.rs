//! A domain with as little around it as a driver can bear: pages from an array, grants in an array, ports that are bits. A whole life of
//! a disk in it costs microseconds. What no kernel may do ends the program: to unmap what is not mapped, to map over something, to free
//! what is mapped or granted.

#![allow(non_upper_case_globals, reason = "the names are those of the public headers")]

use std::cell::RefCell;
use std::fmt::{Arguments, Write};
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::atomic::Ordering::SeqCst;

use hypercall::event::{EventError, Events};
use hypercall::mem::{PAGE_SIZE, Shared};
use hypercall::{DomId, Gfn, GrantRef, Hypervisor, Level, Nr, Platform, Port, Region, XenError};
use xen_sys::errno::{XEN_EINVAL, XEN_ENOMEM, XEN_ENOSPC, XEN_ENOSYS};
use xen_sys::grant_table::*;
use xen_sys::version::{XENVER_get_features, XenFeatureInfo};
use xen_sys::xen::DOMID_SELF;

/// The other end's domain.
pub const PEER: DomId = DomId(1);

/// Own pages, and pages of address space.
const PAGES: usize = 256;
/// Pages that the other end has, and grants.
pub const FOREIGN: usize = 64;
/// Lines of log that the other end may bring about in a second.
const LINES: u64 = 10;
const SECOND_NS: u64 = 1_000_000_000;

/// A run of pages, never given back to the host.
struct Arena {
    base: NonNull<u8>,
    /// How many pages the allocation has that begins here; 0 if none does.
    runs: [u16; PAGES],
    used: [bool; PAGES],
}

impl Arena {
    fn new() -> Self {
        // The layout is right for a slice of pages.
        let pages = Box::leak(vec![Page([0; PAGE_SIZE]); PAGES].into_boxed_slice());
        Self { base: NonNull::from(pages).cast(), runs: [0; PAGES], used: [false; PAGES] }
    }

    fn alloc(&mut self, pages: usize) -> Option<usize> {
        let first = (0..(PAGES + 1).checked_sub(pages)?).find(|at| !self.used[*at..at + pages].contains(&true))?;
        self.used[first..first + pages].fill(true);
        self.runs[first] = pages as u16;
        Some(first)
    }

    fn free(&mut self, first: usize, pages: usize) {
        assert_eq!(usize::from(self.runs[first]), pages, "freed what was not allocated so");
        self.runs[first] = 0;
        self.used[first..first + pages].fill(false);
    }

    fn va(&self, page: usize) -> NonNull<u8> {
        assert!(page < PAGES);
        // SAFETY: inside.
        unsafe { self.base.add(page * PAGE_SIZE) }
    }

    fn page(&self, va: NonNull<u8>) -> Option<usize> {
        let at = va.as_ptr().addr().checked_sub(self.base.as_ptr().addr())? / PAGE_SIZE;
        (at < PAGES).then_some(at)
    }
}

#[derive(Clone)]
#[repr(C, align(4096))]
struct Page([u8; PAGE_SIZE]);

/// How the other end grants one of its pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Grant {
    /// Not at all.
    #[default]
    None,
    /// For reading and writing.
    Whole,
    /// For reading.
    ReadOnly,
    /// It is being paged in, so many times that it is asked for.
    Away(u8),
}

/// What is mapped at a page of address space.
#[derive(Clone, Copy, Debug)]
enum There {
    /// A page of the other end's.
    Foreign { gref: u32, readonly: bool },
    /// The frame of the own grant table.
    Table,
}

struct Inner {
    now_ns: u64,
    own: Arena,
    /// Address space without memory: what is behind it is elsewhere.
    space: Arena,
    there: [Option<There>; PAGES],
    mapped: usize,
    foreign: Arena,
    grants: [Grant; FOREIGN],
    table: NonNull<u8>,
    ports: u64,
    notified: u32,
    lines: (u64, u64),
    /// Allocations that are refused next.
    refuse_allocs: u32,
}

/// The domain: platform, hypervisor, and event channels. A handle.
#[derive(Clone)]
pub struct Thin(Rc<RefCell<Inner>>);

impl Default for Thin {
    fn default() -> Self {
        Self::new()
    }
}

impl Thin {
    /// Makes a domain; one is enough for a program.
    pub fn new() -> Self {
        let table = Box::leak(Box::new(Page([0; PAGE_SIZE])));
        Self(Rc::new(RefCell::new(Inner {
            now_ns: 0,
            own: Arena::new(),
            space: Arena::new(),
            there: [None; PAGES],
            mapped: 0,
            foreign: Arena::new(),
            grants: [Grant::None; FOREIGN],
            table: NonNull::from(table).cast(),
            ports: 0,
            notified: 0,
            lines: (0, 0),
            refuse_allocs: 0,
        })))
    }

    /// Makes it as it was, but for what the owner of the grant table has.
    pub fn reset(&self) {
        let mut inner = self.0.borrow_mut();
        (inner.now_ns, inner.lines, inner.notified, inner.refuse_allocs) = (0, (0, 0), 0, 0);
        inner.grants = [Grant::None; FOREIGN];
    }

    /// Lets time pass.
    pub fn pass(&self, ns: u64) {
        self.0.borrow_mut().now_ns += ns;
    }

    /// Refuses the next allocations of pages or address space.
    pub fn refuse_allocs(&self, count: u32) {
        self.0.borrow_mut().refuse_allocs = count;
    }

    /// Returns how many pages of the other end's are mapped.
    pub fn mapped(&self) -> usize {
        self.0.borrow().mapped
    }

    /// Returns how often the other end was notified.
    pub fn notified(&self) -> u32 {
        self.0.borrow().notified
    }

    /// Returns how many own pages and ports are in use.
    pub fn in_use(&self) -> (usize, u32) {
        let inner = self.0.borrow();
        (inner.own.used.iter().filter(|used| **used).count(), inner.ports.count_ones())
    }

    /// Returns how many pages of address space are in use.
    pub fn space_in_use(&self) -> usize {
        self.0.borrow().space.used.iter().filter(|used| **used).count()
    }

    /// Forgets own pages that were lost on purpose: a buffer that the other end never gave back.
    pub fn forget_lost(&self) {
        let mut inner = self.0.borrow_mut();
        inner.own.runs = [0; PAGES];
        inner.own.used = [false; PAGES];
    }

    /// Sets how the other end grants its page of that number.
    pub fn grant(&self, gref: usize, grant: Grant) {
        self.0.borrow_mut().grants[gref] = grant;
    }

    /// Returns pages of the other end's, from that number on, as that end sees them.
    pub fn foreign(&self, gref: usize, pages: usize) -> Shared<'static> {
        assert!(gref + pages <= FOREIGN);
        // SAFETY: inside, and seen by atomics alone; it is never given back to the host.
        unsafe { Shared::new(self.0.borrow().foreign.va(gref), pages * PAGE_SIZE) }
    }

    /// Tells whether a disk may work on an address: of a page of the other end's that is mapped now, for writing if that is asked for,
    /// or of an own page that is in use.
    pub fn is_usable(&self, va: NonNull<u8>, write: bool) -> bool {
        let inner = self.0.borrow();
        let Some(page) = inner.foreign.page(va) else {
            return inner.own.page(va).is_some_and(|page| inner.own.used[page]);
        };
        let is = |there: &Option<There>| match there {
            Some(There::Foreign { gref, readonly }) => *gref as usize == page && !(write && *readonly),
            _ => false,
        };
        inner.there.iter().any(is)
    }

    /// Returns an entry of the own grant table, as the hypervisor sees it.
    pub fn entry(&self, gref: u32) -> &'static GrantEntryV1 {
        assert!((gref as usize) < PAGE_SIZE / size_of::<GrantEntryV1>());
        // SAFETY: inside the frame, which is never given back to the host, and made of atomics.
        unsafe { self.0.borrow().table.cast::<GrantEntryV1>().add(gref as usize).as_ref() }
    }

    /// Maps an own grant at the other end, as Xen does; `false` if it isn't granted so.
    pub fn peer_maps(&self, gref: u32, write: bool) -> bool {
        let change = |flags: u16| match flags & GTF_type_mask {
            GTF_permit_access if !write => Some(flags | GTF_reading),
            GTF_permit_access if flags & GTF_readonly == 0 => Some(flags | GTF_reading | GTF_writing),
            _ => None,
        };
        self.entry(gref).flags.fetch_update(SeqCst, SeqCst, change).is_ok()
    }

    /// Unmaps it.
    pub fn peer_unmaps(&self, gref: u32) {
        self.entry(gref).flags.fetch_and(!(GTF_reading | GTF_writing), SeqCst);
    }

    /// Returns the own page that a grant is of.
    pub fn granted(&self, gref: u32) -> Option<Shared<'static>> {
        let page = self.entry(gref).frame.load(SeqCst) as usize;
        let inner = self.0.borrow();
        // SAFETY: as in `foreign`.
        (page < PAGES && inner.own.used[page]).then(|| unsafe { Shared::new(inner.own.va(page), PAGE_SIZE) })
    }
}

impl Inner {
    fn entries(&self) -> &[GrantEntryV1] {
        // SAFETY: the frame is never given back to the host, and made of atomics.
        unsafe { std::slice::from_raw_parts(self.table.cast().as_ptr(), PAGE_SIZE / size_of::<GrantEntryV1>()) }
    }

    fn map(&mut self, op: &mut GnttabMapGrantRef) -> i16 {
        let va = NonNull::new(std::ptr::with_exposed_provenance_mut(op.host_addr as usize));
        let at = va.and_then(|va| self.space.page(va)).expect("mapped where nothing was set aside");
        assert!(self.space.used[at] && self.there[at].is_none(), "mapped over something");
        assert_eq!(op.dom, PEER, "mapped from somebody else");
        let GrantRef(gref) = op.r#ref;
        let readonly = op.flags & GNTMAP_readonly != 0;
        let granted = self.granted(gref, !readonly);
        if granted != GNTST_okay {
            return granted;
        }
        self.there[at] = Some(There::Foreign { gref, readonly });
        self.mapped += 1;
        op.handle = xen_sys::GrantHandle(at as u32);
        GNTST_okay
    }

    /// Tells how a use of a page of the other end's ends.
    fn granted(&mut self, gref: u32, write: bool) -> i16 {
        match self.grants.get_mut(gref as usize) {
            Some(Grant::Whole) => GNTST_okay,
            Some(Grant::ReadOnly) if !write => GNTST_okay,
            Some(Grant::ReadOnly) => GNTST_general_error,
            Some(grant @ Grant::Away(_)) => {
                let Grant::Away(left) = *grant else { return GNTST_general_error };
                *grant = left.checked_sub(1).map_or(Grant::Whole, Grant::Away);
                GNTST_eagain
            }
            Some(Grant::None) | None => GNTST_bad_gntref,
        }
    }

    fn copy(&mut self, op: &GnttabCopy) -> i16 {
        let from = self.side(&op.source, op.flags & GNTCOPY_source_gref != 0, false, op.len);
        let to = self.side(&op.dest, op.flags & GNTCOPY_dest_gref != 0, true, op.len);
        match (from, to) {
            (Ok(from), Ok(to)) => {
                // SAFETY: both lie inside their pages, of which one is ours and one the other end's.
                unsafe { to.copy_from_nonoverlapping(from, op.len.into()) };
                GNTST_okay
            }
            (Err(status), _) | (_, Err(status)) => status,
        }
    }

    /// Finds one side of a copy.
    fn side(&mut self, side: &GnttabCopyPtr, by_grant: bool, write: bool, len: u16) -> Result<NonNull<u8>, i16> {
        assert!(usize::from(side.offset) + usize::from(len) <= PAGE_SIZE, "copied beyond a page");
        let page = if by_grant {
            assert_eq!(side.domid, PEER, "copied from or to somebody else");
            // SAFETY: as the flag says.
            let GrantRef(gref) = unsafe { side.u.r#ref };
            match self.granted(gref, write) {
                GNTST_okay => self.foreign.va(gref as usize),
                status => return Err(status),
            }
        } else {
            assert_eq!(side.domid, DOMID_SELF, "a frame of somebody else's");
            // SAFETY: as the flag says.
            let page = unsafe { side.u.gmfn }.0 as usize;
            assert!(self.own.used[page], "copied from or to what is not ours");
            self.own.va(page)
        };
        // SAFETY: inside.
        Ok(unsafe { page.add(side.offset.into()) })
    }

    fn unmap(&mut self, op: &GnttabUnmapGrantRef) -> i16 {
        let at = op.handle.0 as usize;
        let va = self.space.va(at).as_ptr().addr() as u64;
        assert!(matches!(self.there[at], Some(There::Foreign { .. })), "unmapped what is not mapped");
        assert_eq!(op.host_addr, va, "unmapped elsewhere than it was mapped");
        self.there[at] = None;
        self.mapped -= 1;
        GNTST_okay
    }
}

/// Looks at the argument of a hypercall.
///
/// # Safety
/// `address` is that of `count` objects of that type which the caller lends for the time of the call.
unsafe fn at<'a, T>(address: usize, count: usize) -> &'a mut [T] {
    // SAFETY: the caller's.
    unsafe { std::slice::from_raw_parts_mut(std::ptr::with_exposed_provenance_mut(address), count) }
}

// SAFETY: the calls below do to memory what Xen's do.
unsafe impl Hypervisor for Thin {
    unsafe fn hypercall(&self, nr: Nr, args: [usize; 5]) -> isize {
        let mut inner = self.0.borrow_mut();
        // SAFETY: the caller's, for each command.
        unsafe {
            match (nr, args[0] as u32) {
                (Nr::GRANT_TABLE_OP, GNTTABOP_map_grant_ref) => {
                    at::<GnttabMapGrantRef>(args[1], args[2]).iter_mut().for_each(|op| op.status = inner.map(op));
                    0
                }
                (Nr::GRANT_TABLE_OP, GNTTABOP_unmap_grant_ref) => {
                    at::<GnttabUnmapGrantRef>(args[1], args[2]).iter_mut().for_each(|op| op.status = inner.unmap(op));
                    0
                }
                (Nr::GRANT_TABLE_OP, GNTTABOP_copy) => {
                    at::<GnttabCopy>(args[1], args[2]).iter_mut().for_each(|op| op.status = inner.copy(op));
                    0
                }
                (Nr::GRANT_TABLE_OP, GNTTABOP_query_size) => {
                    let arg = &mut at::<GnttabQuerySize>(args[1], 1)[0];
                    (arg.nr_frames, arg.max_nr_frames, arg.status) = (1, 1, GNTST_okay);
                    0
                }
                (Nr::GRANT_TABLE_OP, GNTTABOP_setup_table) => {
                    at::<GnttabSetupTable>(args[1], 1)[0].status = GNTST_okay;
                    0
                }
                (Nr::UPDATE_VA_MAPPING, _) => {
                    let va = NonNull::new(std::ptr::with_exposed_provenance_mut(args[0]));
                    let Some(page) = va.and_then(|va| inner.space.page(va)) else { return -(XEN_EINVAL as isize) };
                    inner.there[page] = (args[1] != 0).then_some(There::Table);
                    0
                }
                (Nr::XEN_VERSION, XENVER_get_features) => {
                    at::<XenFeatureInfo>(args[1], 1)[0].submap = 0;
                    0
                }
                (Nr::SCHED_OP, _) => 0,
                _ => -(XEN_ENOSYS as isize),
            }
        }
    }
}

// SAFETY: pages come from arrays of pages, each given once; a frame number is the place in the array.
unsafe impl Platform for Thin {
    fn alloc(&self, region: Region, pages: usize) -> Option<NonNull<u8>> {
        let mut inner = self.0.borrow_mut();
        if inner.refuse_allocs > 0 {
            inner.refuse_allocs -= 1;
            return None;
        }
        if region == Region::Unbacked {
            let first = inner.space.alloc(pages)?;
            return Some(inner.space.va(first));
        }
        let first = inner.own.alloc(pages)?;
        let va = inner.own.va(first);
        // SAFETY: inside, and nobody's.
        unsafe { va.write_bytes(0, pages * PAGE_SIZE) };
        Some(va)
    }

    unsafe fn free(&self, region: Region, va: NonNull<u8>, pages: usize) {
        let mut inner = self.0.borrow_mut();
        if region == Region::Unbacked {
            let first = inner.space.page(va).expect("freed what was never allocated");
            let still = inner.there[first..first + pages].iter().any(Option::is_some);
            assert!(!still, "freed while something is mapped there");
            return inner.space.free(first, pages);
        }
        let first = inner.own.page(va).expect("freed what was never allocated");
        let reached = |entry: &GrantEntryV1| {
            let page = entry.frame.load(SeqCst) as usize;
            entry.flags.load(SeqCst) != GTF_invalid && (first..first + pages).contains(&page)
        };
        assert!(!inner.entries().iter().any(reached), "freed while the other end can reach it");
        inner.own.free(first, pages);
    }

    fn gfn_of(&self, va: NonNull<u8>) -> Gfn {
        Gfn(self.0.borrow().own.page(va).expect("no page of ours") as u64)
    }

    fn mapped(&self, va: NonNull<u8>) -> NonNull<u8> {
        let inner = self.0.borrow();
        let page = match inner.space.page(va).and_then(|page| inner.there[page]) {
            Some(There::Foreign { gref, .. }) => inner.foreign.va(gref as usize),
            Some(There::Table) => inner.table,
            None => return va,
        };
        // SAFETY: the same place in that page.
        unsafe { page.add(va.addr().get() % PAGE_SIZE) }
    }

    fn now_ns(&self) -> u64 {
        self.0.borrow().now_ns
    }

    fn wait(&self, _: &[Port], deadline_ns: u64) {
        let mut inner = self.0.borrow_mut();
        inner.now_ns = inner.now_ns.max(deadline_ns);
    }

    fn log(&self, _: Level, line: Arguments<'_>) {
        // It has to be written, or nobody would see that it can't be.
        let mut text = Length(0);
        let _ = text.write_fmt(line);
        assert!(text.0 < 1000, "a line of {} bytes", text.0);
        let mut inner = self.0.borrow_mut();
        let second = inner.now_ns / SECOND_NS;
        inner.lines = if inner.lines.0 == second { (second, inner.lines.1 + 1) } else { (second, 1) };
        // A second of theirs may begin in the middle of one of ours.
        assert!(inner.lines.1 <= 2 * LINES, "a flood of lines");
    }
}

struct Length(usize);

impl Write for Length {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        self.0 += text.len();
        Ok(())
    }
}

impl Events for Thin {
    fn alloc_unbound(&self, remote: DomId) -> Result<Port, EventError> {
        let mut inner = self.0.borrow_mut();
        // Port 0 is nobody's.
        let port = (!inner.ports >> 1).trailing_zeros() + 1;
        if port > 16 {
            let error = XenError(XEN_ENOSPC);
            return Err(EventError { op: "alloc_unbound", about: remote.0.into(), error });
        }
        inner.ports |= 1 << port;
        Ok(Port(port))
    }

    fn bind_interdomain(&self, remote: DomId, port: Port) -> Result<Port, EventError> {
        if port.0 > 100 {
            let error = XenError(if port.0 % 2 == 0 { XEN_EINVAL } else { XEN_ENOMEM });
            return Err(EventError { op: "bind_interdomain", about: remote.0.into(), error });
        }
        self.alloc_unbound(remote)
    }

    fn notify(&self, port: Port) {
        let mut inner = self.0.borrow_mut();
        assert!(inner.ports & 1 << port.0 != 0, "notified by a port that is closed");
        inner.notified += 1;
    }

    fn unmask(&self, port: Port) {
        assert!(self.0.borrow().ports & 1 << port.0 != 0, "unmasked a port that is closed");
    }

    fn close(&self, port: Port) {
        let mut inner = self.0.borrow_mut();
        assert!(inner.ports & 1 << port.0 != 0, "closed twice");
        inner.ports &= !(1 << port.0);
    }
}
