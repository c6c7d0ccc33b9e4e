//! `grant_table_op`: the table, mapping, unmapping and copying, with all their errors; what the entries say meanwhile.
//!
//! The domain grants its pages to itself, by its own number. The entries are written by hand, as no driver would.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::ptr::NonNull;
use core::sync::atomic::Ordering::SeqCst;

use hypercall::call::{grant_table as call, mmu};
use hypercall::mem::{PAGE_SIZE, Pages, Shared};
use hypercall::{DomId, GrantRef, Nr, Platform, Region};
use xen_sys::grant_table::*;
use xen_sys::xen::{DOMID_SELF, UVMF_ALL, UVMF_INVLPG};
use xen_sys::{GrantHandle, GuestHandle, XenPfn};

use super::{NOBODY, Subject, Transcript, XENS, grant_outcome, outcome, status};

/// Bits of a page-table entry: present, writable, user, accessed, dirty.
const PTE: u64 = 0x67;
/// Entries of this script, all in the table's first frame.
const PAGE: GrantRef = GrantRef(100);
const READONLY: GrantRef = GrantRef(101);
const OTHERS: GrantRef = GrantRef(102);
const NO_FRAME: GrantRef = GrantRef(103);
const INVALID: GrantRef = GrantRef(104);
const TRANSFER: GrantRef = GrantRef(105);
const SECOND: GrantRef = GrantRef(106);
/// An entry beyond every table.
const BEYOND: GrantRef = GrantRef(1 << 30);
/// A frame beyond what any processor can address, which not even domain 0 may take for a device's.
const NO_MFN: u32 = 0xffff_ffff;
/// What `host_addr` is for a mapping for devices only.
const NOWHERE: u64 = 0;
const MAP: u32 = GNTMAP_host_map;
const MAP_READONLY: u32 = GNTMAP_host_map | GNTMAP_readonly;

/// Runs the script. Nothing is granted or mapped at its end; what the platform has no memory for fails it.
pub(super) fn run<P: Platform>(subject: &Subject<'_, P>, transcript: &mut Transcript) {
    let Ok(pages) = Pages::new(&subject.platform, 2) else { panic!("no memory for two pages") };
    let table = Table::map(subject);
    let (room, other) = (Room::new(&subject.platform), Room::new(&subject.platform));
    let script = &mut Script { subject, transcript, table: &table, pages: &pages, room: &room, other: &other };
    script.table();
    script.entries();
    script.mapping();
    script.refusals();
    script.uses();
    script.batches();
    script.devices();
    script.copies();
    script.copy_refusals();
    script.odds();
    room.free();
    other.free();
    table.unmap();
}

/// Address space for one page, and what is mapped there.
struct Room<'a, P: Platform> {
    platform: &'a P,
    va: NonNull<u8>,
}

impl<'a, P: Platform> Room<'a, P> {
    fn new(platform: &'a P) -> Self {
        let Some(va) = platform.alloc(Region::Unbacked, 1) else { panic!("no address space for a page") };
        Self { platform, va }
    }

    fn address(&self) -> u64 {
        self.va.as_ptr().expose_provenance() as u64
    }

    /// Returns a view of the page that is mapped there now.
    fn shared(&self) -> Shared<'_> {
        // SAFETY: callers have mapped a page there, which stays so for as long as they use the view.
        unsafe { Shared::new(self.platform.mapped(self.va), PAGE_SIZE) }
    }

    fn free(self) {
        // SAFETY: from `new`; callers have unmapped what they had mapped.
        unsafe { self.platform.free(Region::Unbacked, self.va, 1) };
    }
}

/// The first frame of the grant table.
struct Table<'a, P: Platform>(Room<'a, P>);

impl<'a, P: Platform> Table<'a, P> {
    fn map(subject: &'a Subject<'_, P>) -> Self {
        let room = Room::new(&subject.platform);
        let mut frames = [XenPfn(0)];
        let set_up = call::setup_table(&subject.platform, 1, &mut frames);
        assert!(set_up.is_ok(), "setup_table: {set_up:?}");
        let entry = (frames[0].0 as u64) << 12 | PTE;
        // SAFETY: nothing is mapped there yet; the table's frame is seen through atomics only.
        let mapped = unsafe { mmu::update_va_mapping(&subject.platform, room.address() as usize, entry, UVMF_INVLPG) };
        assert!(mapped.is_ok(), "the table can't be mapped: {mapped:?}");
        Self(room)
    }

    fn entry(&self, gref: GrantRef) -> &GrantEntryV1 {
        let offset = gref.0 as usize * size_of::<GrantEntryV1>();
        let entry = self.0.shared().slice(offset, size_of::<GrantEntryV1>()).as_ptr();
        // SAFETY: an entry of the mapped frame, which is nothing but atomics; the borrow ends before the table is unmapped.
        unsafe { entry.cast().as_ref() }
    }

    fn set(&self, gref: GrantRef, flags: u16, user: DomId, frame: u32) {
        let entry = self.entry(gref);
        entry.frame.store(frame, SeqCst);
        entry.domid.store(user.0, SeqCst);
        entry.flags.store(flags, SeqCst);
    }

    /// Names the flags of an entry.
    fn flags(&self, gref: GrantRef) -> String {
        let flags = self.entry(gref).flags.load(SeqCst);
        let kinds = [(GTF_invalid, "invalid"), (GTF_permit_access, "access"), (GTF_accept_transfer, "transfer")];
        let kind = kinds.iter().find(|(kind, _)| *kind == flags & GTF_type_mask);
        let mut words = Vec::from([kind.map_or("another kind", |(_, word)| word)]);
        for (flag, word) in [(GTF_readonly, "readonly"), (GTF_reading, "reading"), (GTF_writing, "writing")] {
            if flags & flag != 0 {
                words.push(word);
            }
        }
        words.join("+")
    }

    fn unmap(self) {
        // SAFETY: the references into it are gone.
        let unmapped =
            unsafe { mmu::update_va_mapping(self.0.platform, self.0.address() as usize, 0, UVMF_INVLPG | UVMF_ALL) };
        assert!(unmapped.is_ok(), "the table can't be unmapped: {unmapped:?}");
        self.0.free();
    }
}

struct Script<'a, 'b, P: Platform> {
    subject: &'a Subject<'b, P>,
    transcript: &'a mut Transcript,
    table: &'a Table<'a, P>,
    pages: &'a Pages<P>,
    /// Address space to map at.
    room: &'a Room<'a, P>,
    other: &'a Room<'a, P>,
}

/// What came of a mapping.
struct Mapped {
    status: i16,
    handle: GrantHandle,
    bus_address: u64,
}

impl<P: Platform> Script<'_, '_, P> {
    fn step(&mut self, step: &str, outcome: impl core::fmt::Display) {
        self.transcript.step(&format!("grant: {step}"), outcome);
    }

    fn xen(&self) -> &P {
        &self.subject.platform
    }

    /// Makes a call of one argument without pointers to anything but numbers.
    fn op<T>(&self, cmd: u32, arg: &mut T) -> String {
        // SAFETY: the callers pair each command with its structure; none of them maps or copies anything.
        unsafe { self.subject.op(Nr::GRANT_TABLE_OP, cmd, arg, 1) }
    }

    fn map_op(&self, dom: DomId, gref: GrantRef, at: u64, flags: u32) -> GnttabMapGrantRef {
        GnttabMapGrantRef { host_addr: at, flags, r#ref: gref, dom, status: 1, ..Default::default() }
    }

    fn map_of(&self, dom: DomId, gref: GrantRef, at: u64, flags: u32) -> Mapped {
        let mut op = [self.map_op(dom, gref, at, flags)];
        // SAFETY: the address is free address space of the script's, or one at which nothing can be mapped.
        let made = unsafe { call::map_grant_ref(self.xen(), &mut op) };
        assert!(made.is_ok(), "map_grant_ref: {made:?}");
        let [GnttabMapGrantRef { status, handle, dev_bus_addr: bus_address, .. }] = op;
        Mapped { status, handle, bus_address }
    }

    fn map(&self, gref: GrantRef, at: u64, flags: u32) -> Mapped {
        self.map_of(self.subject.id, gref, at, flags)
    }

    /// Tells the status of a mapping that is not meant to work; undoes it if it does.
    fn try_map(&self, dom: DomId, gref: GrantRef, at: u64, flags: u32) -> String {
        let mapped = self.map_of(dom, gref, at, flags);
        if mapped.status == GNTST_okay {
            self.unmap(at, mapped.handle);
        }
        status(mapped.status)
    }

    fn unmap(&self, at: u64, handle: GrantHandle) -> String {
        let mut op = [GnttabUnmapGrantRef { host_addr: at, handle, status: 1, ..Default::default() }];
        // SAFETY: the script has no reference into what it unmaps.
        let made = unsafe { call::unmap_grant_ref(self.xen(), &mut op) };
        assert!(made.is_ok(), "unmap_grant_ref: {made:?}");
        status(op[0].status)
    }

    fn table(&mut self) {
        let size = call::query_size(self.xen());
        self.step("query_size", format!("{}, at most {}", grant_outcome(&size), size.map_or(0, |(_, most)| most)));
        let mut of_nobody = GnttabQuerySize { dom: NOBODY, status: 1, ..Default::default() };
        let ret = self.op(GNTTABOP_query_size, &mut of_nobody);
        self.step("query_size of no such domain", format!("{ret}, {}", status(of_nobody.status)));
        let (_, most) = size.unwrap_or_default();
        let mut frames = Vec::from([XenPfn(0); 2]);
        self.step("setup_table of 2 frames", grant_outcome(&call::setup_table(self.xen(), 2, &mut frames)));
        self.step("the table's frames", if frames[0] != frames[1] { "two different" } else { "the same" });
        let size = call::query_size(self.xen());
        self.step("query_size after setup_table", size.is_ok_and(|(now, _)| now >= 2));
        let fewer = call::setup_table(self.xen(), 1, &mut frames[..1]);
        self.step("setup_table of fewer frames", grant_outcome(&fewer));
        self.step("setup_table of 0 frames", grant_outcome(&call::setup_table(self.xen(), 0, &mut frames)));
        let mut many = Vec::new();
        many.resize(most as usize + 1, XenPfn(0));
        self.step("setup_table of too many frames", grant_outcome(&call::setup_table(self.xen(), most + 1, &mut many)));
        let frame_list = GuestHandle(frames.as_mut_ptr());
        let mut of_nobody = GnttabSetupTable { dom: NOBODY, nr_frames: 1, status: 1, frame_list };
        let ret = self.op(GNTTABOP_setup_table, &mut of_nobody);
        self.step("setup_table of no such domain", format!("{ret}, {}", status(of_nobody.status)));
        // SAFETY: the command takes exactly one argument, and is refused before it is looked at.
        let ret = unsafe { self.subject.op(Nr::GRANT_TABLE_OP, GNTTABOP_setup_table, &mut of_nobody, 2) };
        self.step("setup_table of two arguments", ret);
        let frame_list = GuestHandle(core::ptr::with_exposed_provenance_mut(XENS));
        let mut into_xen = GnttabSetupTable { dom: DOMID_SELF, nr_frames: 1, status: 1, frame_list };
        let ret = self.op(GNTTABOP_setup_table, &mut into_xen);
        self.step("setup_table with a list in Xen's memory", format!("{ret}, {}", status(into_xen.status)));
        self.step("get_version", call::get_version(self.xen(), DOMID_SELF).map_or(0, |version| version));
        self.step("get_version of no such domain", outcome(&call::get_version(self.xen(), NOBODY)));
        for version in [1, 0, 3] {
            // SAFETY: version 1 is in use, and the others don't exist.
            let set = unsafe { call::set_version(self.xen(), version) };
            self.step(&format!("set_version {version}"), outcome(&set));
        }
    }

    /// Writes the entries that the rest of the script uses.
    fn entries(&mut self) {
        let me = self.subject.id;
        let [first, second] = [0, 1].map(|index| self.pages.gfn(index).0 as u32);
        self.table.set(PAGE, GTF_permit_access, me, first);
        self.table.set(READONLY, GTF_permit_access | GTF_readonly, me, first);
        self.table.set(OTHERS, GTF_permit_access, NOBODY, first);
        self.table.set(NO_FRAME, GTF_permit_access, me, NO_MFN);
        self.table.set(INVALID, GTF_invalid, me, first);
        self.table.set(TRANSFER, GTF_accept_transfer, me, first);
        self.table.set(SECOND, GTF_permit_access, me, second);
    }

    fn mapping(&mut self) {
        let (at, other) = (self.room.address(), self.other.address());
        let mapped = self.map(PAGE, at, MAP);
        self.step("map", status(mapped.status));
        self.step("the entry while it is mapped", self.table.flags(PAGE));
        let bus = if mapped.bus_address == self.pages.gfn(0).0 << 12 { "the frame's" } else { "another" };
        self.step("the bus address of a mapping", bus);
        let (own, seen) = (self.pages.shared(), self.room.shared());
        let mut byte = [0];
        own.write(7, b"o");
        seen.read(7, &mut byte);
        let through = byte == *b"o";
        seen.write(9, b"m");
        own.read(9, &mut byte);
        self.step("the page and its mapping are one", through && byte == *b"m");
        self.step("unmap at another address", self.unmap(other, mapped.handle));
        self.step("unmap at an odd address", self.unmap(at + 8, mapped.handle));
        self.step("unmap by a handle that can't be", self.unmap(at, GrantHandle(u32::MAX)));
        self.step("unmap by a handle not in use", self.unmap(at, GrantHandle(mapped.handle.0 + 7)));
        self.step("unmap without an address", self.unmap(NOWHERE, mapped.handle));
        self.step("the entry after failed unmaps", self.table.flags(PAGE));
        self.step("unmap", self.unmap(at, mapped.handle));
        self.step("the entry after unmap", self.table.flags(PAGE));
        self.step("unmap twice", self.unmap(at, mapped.handle));
        let mapped = self.map(PAGE, at, MAP_READONLY);
        self.step("map for reading", status(mapped.status));
        self.step("the entry while it is mapped for reading", self.table.flags(PAGE));
        self.step("unmap what was mapped for reading", self.unmap(at, mapped.handle));
        self.step("the entry after it was mapped for reading", self.table.flags(PAGE));
        let mapped = self.map(READONLY, at, MAP_READONLY);
        self.step("map a read-only grant for reading", status(mapped.status));
        self.step("the entry of a read-only grant while mapped", self.table.flags(READONLY));
        self.unmap(at, mapped.handle);
    }

    fn refusals(&mut self) {
        let (me, at) = (self.subject.id, self.room.address());
        self.step("map a read-only grant for writing", self.try_map(me, READONLY, at, MAP));
        self.step("map a grant to another", self.try_map(me, OTHERS, at, MAP));
        self.step("map an invalid entry", self.try_map(me, INVALID, at, MAP));
        self.step("map an entry for transfer", self.try_map(me, TRANSFER, at, MAP));
        self.step("map a frame that there isn't", self.try_map(me, NO_FRAME, at, MAP));
        self.step("map an entry beyond the table", self.try_map(me, BEYOND, at, MAP));
        self.step("map of no such domain", self.try_map(NOBODY, PAGE, at, MAP));
        self.step("map of DOMID_SELF", self.try_map(DOMID_SELF, PAGE, at, MAP));
        self.step("map with neither kind of mapping", self.try_map(me, PAGE, at, 0));
        self.step("map at address 0", self.try_map(me, PAGE, 0, MAP));
        self.step("map in Xen's memory", self.try_map(me, PAGE, XENS as u64, MAP));
        self.step("map at an odd address", self.try_map(me, PAGE, at + 8, MAP));
        for (gref, name) in [(READONLY, "read-only"), (OTHERS, "another's"), (NO_FRAME, "bad"), (PAGE, "good")] {
            self.step(&format!("the {name} entry after refusals"), self.table.flags(gref));
        }
    }

    /// Several mappings of a grant, and owners that change what is in use.
    fn uses(&mut self) {
        let (at, other) = (self.room.address(), self.other.address());
        let reader = self.map(PAGE, at, MAP_READONLY);
        let writer = self.map(PAGE, other, MAP);
        self.step("map for reading, then for writing", format!("{}, {}", status(reader.status), status(writer.status)));
        self.step("the handles of two mappings", if reader.handle == writer.handle { "the same" } else { "different" });
        self.step("the entry of two mappings", self.table.flags(PAGE));
        self.unmap(other, writer.handle);
        self.step("the entry without its writer", self.table.flags(PAGE));
        let writer = self.map(PAGE, other, MAP);
        self.unmap(at, reader.handle);
        self.step("the entry without its reader", self.table.flags(PAGE));
        self.unmap(other, writer.handle);

        let mapped = self.map(PAGE, at, MAP_READONLY);
        self.table.entry(PAGE).flags.fetch_or(GTF_readonly, SeqCst);
        self.step("map for writing what has become read-only", self.try_map(self.subject.id, PAGE, other, MAP));
        self.table.entry(PAGE).flags.store(GTF_invalid, SeqCst);
        self.step("map what its owner ended while mapped", self.try_map(self.subject.id, PAGE, other, MAP_READONLY));
        self.step("the entry that its owner ended", self.table.flags(PAGE));
        self.step("unmap what its owner ended", self.unmap(at, mapped.handle));
        self.step("the ended entry after unmap", self.table.flags(PAGE));
        self.step("map what was ended", self.try_map(self.subject.id, PAGE, at, MAP));
        self.entries();
    }

    fn batches(&mut self) {
        let (me, at, other) = (self.subject.id, self.room.address(), self.other.address());
        let mut maps =
            [self.map_op(me, PAGE, at, MAP), self.map_op(me, INVALID, other, MAP), self.map_op(me, SECOND, other, MAP)];
        // SAFETY: free address space of the script's.
        let made = unsafe { call::map_grant_ref(self.xen(), &mut maps) };
        let words = maps.map(|op| status(op.status)).join(", ");
        self.step("map three, the middle one bad", format!("{}, {words}", outcome(&made)));
        let unmap = |at, handle| GnttabUnmapGrantRef { host_addr: at, handle, status: 1, ..Default::default() };
        let mut unmaps = [unmap(at, maps[0].handle), unmap(other, GrantHandle(u32::MAX)), unmap(other, maps[2].handle)];
        // SAFETY: nothing looks at the pages any more.
        let made = unsafe { call::unmap_grant_ref(self.xen(), &mut unmaps) };
        let words = unmaps.map(|op| status(op.status)).join(", ");
        self.step("unmap three, the middle one bad", format!("{}, {words}", outcome(&made)));
        // SAFETY: a list of nothing is not looked at.
        let made = unsafe { call::map_grant_ref(self.xen(), &mut []) };
        self.step("map none", outcome(&made));
    }

    /// Mappings for devices, and for both.
    fn devices(&mut self) {
        let at = self.room.address();
        let mapped = self.map(PAGE, NOWHERE, GNTMAP_device_map);
        self.step("map for devices", status(mapped.status));
        self.step("the entry while it is mapped for devices", self.table.flags(PAGE));
        self.step(
            "unmap for devices, by a wrong bus address",
            self.unmap_bus(0, mapped.bus_address + 4096, mapped.handle),
        );
        self.step("unmap for devices", self.unmap_bus(0, mapped.bus_address, mapped.handle));
        self.step("the entry after it was mapped for devices", self.table.flags(PAGE));
        let mapped = self.map(PAGE, at, GNTMAP_device_map | MAP);
        self.step("map for both", status(mapped.status));
        self.step("unmap the host's half", self.unmap(at, mapped.handle));
        self.step("the entry with one half left", self.table.flags(PAGE));
        self.step("unmap the devices' half", self.unmap_bus(0, mapped.bus_address, mapped.handle));
        self.step("the entry without both halves", self.table.flags(PAGE));
        self.step("unmap of both halves that are gone", self.unmap_bus(at, mapped.bus_address, mapped.handle));
    }

    fn unmap_bus(&self, at: u64, bus: u64, handle: GrantHandle) -> String {
        let mut op = [GnttabUnmapGrantRef { host_addr: at, dev_bus_addr: bus, handle, status: 1 }];
        // SAFETY: the script has no reference into what it unmaps.
        let made = unsafe { call::unmap_grant_ref(self.xen(), &mut op) };
        assert!(made.is_ok(), "unmap_grant_ref: {made:?}");
        status(op[0].status)
    }

    fn by_ref(&self, dom: DomId, gref: GrantRef, offset: u16) -> Side {
        Side { ptr: GnttabCopyPtr { u: GnttabCopyPtrU { r#ref: gref }, domid: dom, offset }, by_ref: true }
    }

    fn by_frame(&self, dom: DomId, frame: u64, offset: u16) -> Side {
        let u = GnttabCopyPtrU { gmfn: XenPfn(frame as usize) };
        Side { ptr: GnttabCopyPtr { u, domid: dom, offset }, by_ref: false }
    }

    fn copy(&self, source: Side, dest: Side, len: u16) -> String {
        let mut op = [copy_op(source, dest, len)];
        // SAFETY: the only own frames are those of `pages`, which are seen through atomics.
        let made = unsafe { call::copy(self.xen(), &mut op) };
        assert!(made.is_ok(), "copy: {made:?}");
        status(op[0].status)
    }

    fn copies(&mut self) {
        let (me, second) = (self.subject.id, self.pages.gfn(1).0);
        let own = self.pages.shared();
        let text = |offset| {
            let mut bytes = [0; 4];
            own.read(offset, &mut bytes);
            String::from_utf8_lossy(&bytes).replace('\0', ".")
        };
        own.write(100, b"here");
        let copied = self.copy(self.by_ref(me, PAGE, 100), self.by_frame(DOMID_SELF, second, 200), 4);
        self.step("copy from a grant to an own frame", format!("{copied}, {:?}", text(PAGE_SIZE + 200)));
        own.write(PAGE_SIZE + 300, b"back");
        let copied = self.copy(self.by_frame(DOMID_SELF, second, 300), self.by_ref(me, PAGE, 400), 3);
        self.step("copy from an own frame to a grant", format!("{copied}, {:?}", text(400)));
        let copied = self.copy(self.by_ref(me, PAGE, 100), self.by_ref(me, SECOND, 500), 4);
        self.step("copy from a grant to a grant", format!("{copied}, {:?}", text(PAGE_SIZE + 500)));
        let copied = self.copy(self.by_frame(DOMID_SELF, second, 300), self.by_frame(DOMID_SELF, second, 600), 4);
        self.step("copy from an own frame to an own frame", format!("{copied}, {:?}", text(PAGE_SIZE + 600)));
        let copied = self.copy(self.by_ref(DOMID_SELF, PAGE, 100), self.by_frame(DOMID_SELF, second, 700), 4);
        self.step("copy from a grant of DOMID_SELF", format!("{copied}, {:?}", text(PAGE_SIZE + 700)));
        let copied = self.copy(self.by_ref(me, PAGE, 0), self.by_frame(DOMID_SELF, second, 0), PAGE_SIZE as u16);
        self.step("copy a whole page", copied);
        let copied = self.copy(self.by_ref(me, PAGE, 0), self.by_frame(DOMID_SELF, second, 0), 0);
        self.step("copy nothing", copied);
        self.step("the entry after copies", self.table.flags(PAGE));
        let mapped = self.map(PAGE, self.room.address(), MAP);
        let copied = self.copy(self.by_ref(me, PAGE, 100), self.by_frame(DOMID_SELF, second, 0), 4);
        self.step("copy from a grant that is mapped", copied);
        self.step("the mapped entry after a copy", self.table.flags(PAGE));
        self.unmap(self.room.address(), mapped.handle);
    }

    fn copy_refusals(&mut self) {
        let (me, second) = (self.subject.id, self.pages.gfn(1).0);
        let grant = self.by_ref(me, PAGE, 0);
        let frame = self.by_frame(DOMID_SELF, second, 0);
        let last = self.by_ref(me, PAGE, 4095);
        let last_of_frame = self.by_frame(DOMID_SELF, second, 4095);
        let behind = self.by_ref(me, PAGE, 4096);
        let refusals = [
            ("beyond the source's page", last, frame, 2),
            ("beyond the destination's page", grant, last_of_frame, 2),
            ("the last byte", last, last_of_frame, 1),
            ("nothing from behind the page", behind, frame, 0),
            ("more than a page", grant, frame, 4097),
            ("from an entry beyond the table", self.by_ref(me, BEYOND, 0), frame, 4),
            ("from an invalid entry", self.by_ref(me, INVALID, 0), frame, 4),
            ("from a grant to another", self.by_ref(me, OTHERS, 0), frame, 4),
            ("from a granted frame that there isn't", self.by_ref(me, NO_FRAME, 0), frame, 4),
            ("from a read-only grant", self.by_ref(me, READONLY, 0), frame, 4),
            ("to a read-only grant", frame, self.by_ref(me, READONLY, 0), 4),
            ("from no such domain", self.by_ref(NOBODY, PAGE, 0), frame, 4),
            ("to no such domain", frame, self.by_ref(NOBODY, PAGE, 0), 4),
            ("from a frame by the own number", self.by_frame(me, second, 0), grant, 4),
            ("from a frame that there isn't", self.by_frame(DOMID_SELF, u64::from(NO_MFN), 0), grant, 4),
            ("to a frame that there isn't", grant, self.by_frame(DOMID_SELF, u64::from(NO_MFN), 0), 4),
        ];
        for (name, source, dest, len) in refusals {
            self.step(&format!("copy {name}"), self.copy(source, dest, len));
        }
        let mut batch = [copy_op(grant, frame, 4), copy_op(last, frame, 2), copy_op(grant, frame, 4)];
        // SAFETY: as in `copy`.
        let made = unsafe { call::copy(self.xen(), &mut batch) };
        let words = batch.map(|op| status(op.status)).join(", ");
        self.step("copy three, the middle one bad", format!("{}, {words}", outcome(&made)));
        self.step("the read-only entry after refused copies", self.table.flags(READONLY));
        self.step("the entry after refused copies", self.table.flags(PAGE));
    }

    fn odds(&mut self) {
        for (command, name) in [(99, "an unknown command"), (GNTTABOP_copy, "an argument in Xen's memory")] {
            // SAFETY: no domain can read or write there, so nothing is.
            let ret = unsafe { self.subject.raw(Nr::GRANT_TABLE_OP, [command as usize, XENS, 1, 0, 0]) };
            self.step(name, ret);
        }
        // SAFETY: refused before the list is looked at.
        let ret = unsafe { self.subject.raw(Nr::GRANT_TABLE_OP, [GNTTABOP_copy as usize, XENS, 1 << 31, 0, 0]) };
        self.step("2147483648 arguments", ret);
        for gref in [PAGE, READONLY, OTHERS, NO_FRAME, INVALID, TRANSFER, SECOND] {
            self.table.set(gref, GTF_invalid, DomId(0), 0);
        }
    }
}

/// One side of a copy.
#[derive(Clone, Copy)]
struct Side {
    ptr: GnttabCopyPtr,
    by_ref: bool,
}

fn copy_op(source: Side, dest: Side, len: u16) -> GnttabCopy {
    let flag = |side: Side, flag| if side.by_ref { flag } else { 0 };
    let flags = flag(source, GNTCOPY_source_gref) | flag(dest, GNTCOPY_dest_gref);
    GnttabCopy { source: source.ptr, dest: dest.ptr, len, flags, status: 1 }
}
