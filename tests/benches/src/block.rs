//! Instructions of the two ends of a disk, built as for a kernel: the hypervisor below [`crate::bed`], and the counting.

use std::cell::RefCell;
use std::ffi::{OsStr, c_void};
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use anyhow::{Context as _, Result, ensure};
use hypercall::Port;
use hypercall::mem::PAGE_SIZE;
use libloading::Library;
use xen_sys::event_channel::{
    EVTCHNOP_alloc_unbound, EVTCHNOP_bind_interdomain, EvtchnAllocUnbound, EvtchnBindInterdomain,
};
use xen_sys::grant_table::{
    GNTST_bad_gntref, GNTST_bad_handle, GNTST_okay, GNTTABOP_copy, GNTTABOP_map_grant_ref, GNTTABOP_query_size,
    GNTTABOP_setup_table, GNTTABOP_unmap_grant_ref, GTF_permit_access, GTF_reading, GTF_type_mask, GTF_writing,
    GnttabCopy, GnttabMapGrantRef, GnttabQuerySize, GnttabSetupTable, GnttabUnmapGrantRef, GrantEntryV1,
};
use xen_sys::{GrantHandle, Nr, XenPfn};

use crate::bed::{Bed, COPIED, DEPTH, Host, KEPT, MAPPED};
use crate::count::Counted;
use crate::rivals::{BATCHES, compile_bare};

/// Frames of the domain, and of its grant table behind them.
const FRAMES: usize = 4096;
const TABLE: usize = 4;
const ROOM: usize = 16384;

/// Requests of a case; each is like the one before.
const REQUESTS: u32 = 256;

/// What is submitted: pages of a request, and how the back end gets at them.
pub const SHAPES: [(&str, u32, u64); 6] = [
    ("mapped1", 1, MAPPED),
    ("mapped11", 11, MAPPED),
    ("kept1", 1, KEPT),
    ("kept11", 11, KEPT),
    ("copied1", 1, COPIED),
    ("copied11", 11, COPIED),
];

/// The whole machine: memory as a file, so that a frame can be seen at two addresses.
struct Machine {
    file: i32,
    memory: NonNull<u8>,
    /// Where each handle is mapped from, if it is.
    handles: Vec<Option<u32>>,
    free: Vec<u32>,
    ports: u32,
}

impl Machine {
    fn new() -> Result<Self> {
        // SAFETY: the name is a C string, and what comes of it is ours.
        let file = unsafe { libc::memfd_create(c"bench".as_ptr(), libc::MFD_CLOEXEC) };
        ensure!(file >= 0, "no memory file: {}", std::io::Error::last_os_error());
        let frames = FRAMES + TABLE;
        // SAFETY: as above.
        ensure!(unsafe { libc::ftruncate(file, (frames * PAGE_SIZE) as i64) } == 0, "no memory");
        let flags = libc::MAP_SHARED | libc::MAP_NORESERVE;
        let memory = map(std::ptr::null_mut(), frames, libc::PROT_READ | libc::PROT_WRITE, flags, file, 0)?;
        Ok(Self { file, memory, handles: Vec::new(), free: Vec::new(), ports: 1 })
    }

    /// Shows a frame at an address.
    fn show(&self, va: usize, frame: usize) -> Result<()> {
        let flags = libc::MAP_SHARED | libc::MAP_FIXED;
        map(std::ptr::with_exposed_provenance_mut(va), 1, libc::PROT_READ | libc::PROT_WRITE, flags, self.file, frame)?;
        Ok(())
    }

    fn hide(va: usize) -> Result<()> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
        map(std::ptr::with_exposed_provenance_mut(va), 1, libc::PROT_NONE, flags, -1, 0)?;
        Ok(())
    }

    fn entry(&self, gref: u32) -> Option<&GrantEntryV1> {
        let at = FRAMES * PAGE_SIZE + gref as usize * size_of::<GrantEntryV1>();
        // SAFETY: the frames of the table are behind the domain's; entries are atomics.
        (at < (FRAMES + TABLE) * PAGE_SIZE).then(|| unsafe { self.memory.add(at).cast().as_ref() })
    }

    fn map(&mut self, op: &mut GnttabMapGrantRef) -> Result<()> {
        op.status = GNTST_bad_gntref;
        let Some(entry) = self.entry(op.r#ref.0) else { return Ok(()) };
        if entry.flags.load(Relaxed) & GTF_type_mask != GTF_permit_access {
            return Ok(());
        }
        entry.flags.fetch_or(GTF_reading | GTF_writing, Relaxed);
        self.show(op.host_addr as usize, entry.frame.load(Relaxed) as usize)?;
        let handle = self.free.pop().unwrap_or_else(|| {
            self.handles.push(None);
            self.handles.len() as u32 - 1
        });
        self.handles[handle as usize] = Some(op.r#ref.0);
        (op.handle, op.status) = (GrantHandle(handle), GNTST_okay);
        Ok(())
    }

    fn unmap(&mut self, op: &mut GnttabUnmapGrantRef) -> Result<()> {
        op.status = GNTST_bad_handle;
        let Some(gref) = self.handles.get_mut(op.handle.0 as usize).and_then(Option::take) else { return Ok(()) };
        if let Some(entry) = self.entry(gref) {
            entry.flags.fetch_and(!(GTF_reading | GTF_writing), Relaxed);
        }
        self.free.push(op.handle.0);
        op.status = GNTST_okay;
        Self::hide(op.host_addr as usize)
    }

    /// Does what a hypercall asks for.
    ///
    /// # Safety
    /// The arguments are right.
    #[allow(non_upper_case_globals, reason = "the constants have their C names")]
    unsafe fn call(&mut self, nr: u32, args: [usize; 5]) -> Result<isize> {
        let pointer = |arg: usize| std::ptr::with_exposed_provenance_mut::<c_void>(args[arg]);
        match (Nr(nr as usize), args[0] as u32) {
            (Nr::GRANT_TABLE_OP, GNTTABOP_map_grant_ref) => {
                // SAFETY: as the caller promises, here and below.
                let ops = unsafe { std::slice::from_raw_parts_mut(pointer(1).cast(), args[2]) };
                ops.iter_mut().try_for_each(|op| self.map(op))?;
            }
            (Nr::GRANT_TABLE_OP, GNTTABOP_unmap_grant_ref) => {
                // SAFETY: as above.
                let ops = unsafe { std::slice::from_raw_parts_mut(pointer(1).cast(), args[2]) };
                ops.iter_mut().try_for_each(|op| self.unmap(op))?;
            }
            (Nr::GRANT_TABLE_OP, GNTTABOP_copy) => {
                // SAFETY: as above.
                let ops = unsafe { std::slice::from_raw_parts_mut(pointer(1).cast::<GnttabCopy>(), args[2]) };
                // Nobody looks at the data.
                ops.iter_mut().for_each(|op| op.status = GNTST_okay);
            }
            (Nr::GRANT_TABLE_OP, GNTTABOP_query_size) => {
                // SAFETY: as above.
                let op = unsafe { &mut *pointer(1).cast::<GnttabQuerySize>() };
                (op.nr_frames, op.max_nr_frames, op.status) = (TABLE as u32, TABLE as u32, GNTST_okay);
            }
            (Nr::GRANT_TABLE_OP, GNTTABOP_setup_table) => {
                // SAFETY: as above.
                let op = unsafe { &mut *pointer(1).cast::<GnttabSetupTable>() };
                for frame in 0..op.nr_frames as usize {
                    // SAFETY: as above.
                    unsafe { op.frame_list.0.add(frame).write(XenPfn(FRAMES + frame)) };
                }
                op.status = GNTST_okay;
            }
            (Nr::UPDATE_VA_MAPPING, _) if args[1] != 0 => self.show(args[0], args[1] >> 12)?,
            (Nr::EVENT_CHANNEL_OP, EVTCHNOP_alloc_unbound) => {
                self.ports += 1;
                // SAFETY: as above.
                unsafe { (*pointer(1).cast::<EvtchnAllocUnbound>()).port = Port(self.ports) };
            }
            (Nr::EVENT_CHANNEL_OP, EVTCHNOP_bind_interdomain) => {
                self.ports += 1;
                // SAFETY: as above.
                unsafe { (*pointer(1).cast::<EvtchnBindInterdomain>()).local_port = Port(self.ports) };
            }
            // Signals: nobody is asleep.
            (Nr::EVENT_CHANNEL_OP, _) => {}
            // No features, no calls that have no business here.
            _ => return Ok(-38),
        }
        Ok(0)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // SAFETY: ours. What is mapped of it stays so; the process does no more with it.
        unsafe { libc::close(self.file) };
    }
}

fn map(at: *mut c_void, pages: usize, prot: i32, flags: i32, file: i32, frame: usize) -> Result<NonNull<u8>> {
    // SAFETY: a new place, or one in the domain's address space for mappings, of which the drivers say that it is free.
    let at = unsafe { libc::mmap(at, pages * PAGE_SIZE, prot, flags, file, (frame * PAGE_SIZE) as i64) };
    ensure!(at != libc::MAP_FAILED, "mmap: {}", std::io::Error::last_os_error());
    at.expose_provenance();
    NonNull::new(at.cast()).context("a mapping is never at 0")
}

/// Whether what happens now is counted, so that the hypervisor has to be left out.
static COUNTING: AtomicBool = AtomicBool::new(false);

/// A hypervisor with what it was asked for: grant calls, and all others, while instructions are counted.
struct Below {
    machine: RefCell<Machine>,
    calls: RefCell<[u64; 2]>,
}

unsafe extern "C" fn enter(context: *mut c_void, nr: u32, args: *const [usize; 5]) -> isize {
    if COUNTING.load(Relaxed) { xenlab_left_out(context, nr, args) } else { call(context, nr, args) }
}

/// What callgrind looks for: it doesn't count what happens in here.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn xenlab_left_out(context: *mut c_void, nr: u32, args: *const [usize; 5]) -> isize {
    // SAFETY: `Opened` has set the context.
    let below = unsafe { &*context.cast::<Below>() };
    below.calls.borrow_mut()[usize::from(Nr(nr as usize) != Nr::GRANT_TABLE_OP)] += 1;
    call(context, nr, args)
}

fn call(context: *mut c_void, nr: u32, args: *const [usize; 5]) -> isize {
    // SAFETY: as above; the arguments are the drivers'.
    unsafe { (*context.cast::<Below>()).machine.borrow_mut().call(nr, *args) }.unwrap_or(-12)
}

type Part = unsafe extern "C" fn(*mut Bed, u32, u32) -> u64;

/// What callgrind looks for: it counts what happens in here.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn xenlab_block_measured(part: Part, bed: *mut Bed, count: u32, pages: u32) -> u64 {
    // SAFETY: `Opened` has the bed.
    std::hint::black_box(unsafe { part(bed, count, pages) })
}

/// What callgrind looks for: what was counted until here is one case.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn xenlab_block_over() {
    std::hint::black_box(());
}

/// The functions that a bed has.
struct Parts {
    open: unsafe extern "C" fn(*const Host, u64, *mut u8, usize) -> *mut Bed,
    submit: Part,
    serve: Part,
    complete: Part,
    copy: Part,
    counted: Part,
}

/// Which part of the work is counted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Counting {
    Front,
    Back,
    None,
}

struct Opened<'a> {
    parts: &'a Parts,
    bed: *mut Bed,
    below: &'static Below,
}

impl<'a> Opened<'a> {
    /// Sets a bed up. What it is made of stays until the process ends.
    fn new(parts: &'a Parts, way: u64) -> Result<Self> {
        let machine = Machine::new()?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let room = map(std::ptr::null_mut(), ROOM, libc::PROT_NONE, flags, -1, 0)?;
        let memory = machine.memory;
        let below: &Below = Box::leak(Box::new(Below { machine: RefCell::new(machine), calls: RefCell::new([0; 2]) }));
        let context = std::ptr::from_ref(below).cast_mut().cast();
        let host = Host { memory, pages: FRAMES, room, room_pages: ROOM, enter, context };
        let arena = Vec::leak(vec![0_u64; 1 << 18]);
        // SAFETY: all of it is set aside for this bed alone, for ever.
        let bed = unsafe { (parts.open)(&raw const host, way, arena.as_mut_ptr().cast(), size_of_val(arena)) };
        ensure!(!bed.is_null(), "the two ends of the disk don't come together");
        Ok(Self { parts, bed, below })
    }

    /// Runs one part.
    fn part(&self, part: Part, counted: bool, count: u32, pages: u32) -> u64 {
        if !counted {
            // SAFETY: `new` has opened it.
            return unsafe { part(self.bed, count, pages) };
        }
        COUNTING.store(true, Relaxed);
        let result = xenlab_block_measured(std::hint::black_box(part), self.bed, count, pages);
        COUNTING.store(false, Relaxed);
        result
    }

    /// Lets so many requests travel there and back.
    fn run(&self, requests: u32, batch: u32, pages: u32, counting: Counting) -> Result<()> {
        let (front, back) = (counting == Counting::Front, counting == Counting::Back);
        for _ in 0..requests / batch {
            let taken = self.part(self.parts.submit, front, batch, pages);
            let served = self.part(self.parts.serve, back, 0, 0);
            let completed = self.part(self.parts.complete, front, 0, 0);
            let all = (u64::from(batch), 1, u64::from(batch));
            ensure!((taken, served, completed) == all, "{batch} requests: {taken} taken, {completed} completed");
        }
        Ok(())
    }

    /// Returns what was counted by the drivers.
    fn counted(&self) -> [u64; 3] {
        // SAFETY: `new` has opened it.
        [0, 1, 2].map(|which| unsafe { (self.parts.counted)(self.bed, which, 0) })
    }
}

fn load(folder: &Path) -> Result<Parts> {
    let path = folder.join("bare.so");
    // SAFETY: we have compiled it, and it does nothing when it is loaded.
    let library = unsafe { Library::new(&path) }.with_context(|| path.display().to_string())?;
    let library: &'static Library = Box::leak(Box::new(library));
    // SAFETY: the source gives the functions of these names these types.
    unsafe {
        Ok(Parts {
            open: *library.get(b"block_open")?,
            submit: *library.get(b"block_submit")?,
            serve: *library.get(b"block_serve")?,
            complete: *library.get(b"block_complete")?,
            copy: *library.get(b"block_copy")?,
            counted: *library.get(b"block_counted")?,
        })
    }
}

/// Runs each case once, and prints a line for each: what runs under callgrind. `folder` has the object.
///
/// # Errors
/// The object can't be used, or the two ends don't do what they should.
pub fn cases(folder: &Path) -> Result<()> {
    let parts = load(folder)?;
    for (name, counting) in [("front end", Counting::Front), ("back end", Counting::Back)] {
        for (shape, pages, way) in SHAPES {
            // To the front end that is the same as what is mapped.
            if way == COPIED && counting == Counting::Front {
                continue;
            }
            for batch in BATCHES {
                let bed = Opened::new(&parts, way)?;
                // What happens once only, such as a page that is mapped to stay.
                bed.run(DEPTH, batch, pages, Counting::None)?;
                *bed.below.calls.borrow_mut() = [0; 2];
                let before = bed.counted();
                bed.run(REQUESTS, batch, pages, counting)?;
                let bytes = bed.counted()[0] - before[0];
                ensure!(bytes == u64::from(REQUESTS * pages) * PAGE_SIZE as u64, "the disk has read {bytes} bytes");
                xenlab_block_over();
                let [grants, signals] = *bed.below.calls.borrow();
                println!("{name}\t{shape}\t{batch}\t{REQUESTS}\t{grants}\t{signals}");
            }
        }
    }
    let bed = Opened::new(&parts, MAPPED)?;
    for _ in 0..REQUESTS {
        ensure!(bed.part(parts.copy, true, 0, 0) == 1, "no copy");
    }
    xenlab_block_over();
    println!("copy\tpage\t1\t{REQUESTS}\t0\t0");
    Ok(())
}

/// Counts all cases: this program is run with `arguments` and a folder, by which it is to call [`cases`].
///
/// # Errors
/// It can't be compiled or run.
pub fn count(arguments: &[&str]) -> Result<Vec<Counted>> {
    let folder = tempfile::tempdir()?;
    compile_bare(&folder.path().join("bare.so"))?;
    let mut all: Vec<&OsStr> = arguments.iter().map(OsStr::new).collect();
    all.push(folder.path().as_os_str());
    let options = [
        "--toggle-collect=xenlab_block_measured",
        "--toggle-collect=xenlab_left_out",
        "--dump-before=xenlab_block_over",
    ];
    crate::count::under_valgrind(&options, &all)
}
