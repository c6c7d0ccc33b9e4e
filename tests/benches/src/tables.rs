//! A hypervisor that is no more than tables, and what runs on it while callgrind counts: [`crate::bed`] and [`crate::fleet`].

use std::cell::RefCell;
use std::ffi::c_void;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use anyhow::{Context as _, Result, ensure};
use hypercall::Port;
use hypercall::mem::PAGE_SIZE;
use libloading::Library;
use xen_sys::event_channel::{
    EVTCHNOP_alloc_unbound, EVTCHNOP_bind_interdomain, EVTCHNOP_send, EVTCHNOP_unmask, EvtchnAllocUnbound,
    EvtchnBindInterdomain, EvtchnSend, EvtchnUnmask,
};
use xen_sys::grant_table::{
    GNTST_bad_gntref, GNTST_bad_handle, GNTST_okay, GNTTABOP_copy, GNTTABOP_map_grant_ref, GNTTABOP_query_size,
    GNTTABOP_setup_table, GNTTABOP_unmap_grant_ref, GTF_permit_access, GTF_reading, GTF_type_mask, GTF_writing,
    GnttabCopy, GnttabMapGrantRef, GnttabQuerySize, GnttabSetupTable, GnttabUnmapGrantRef, GrantEntryV1,
};
use xen_sys::xen::SharedInfo;
use xen_sys::{GrantHandle, Nr, XenPfn};

use crate::bed::Host;

/// Frames of the domain, and of its grant table behind them.
const FRAMES: usize = 4096;
const TABLE: usize = 80;
/// Pages of address space without memory.
const ROOM: usize = 1 << 17;

/// The whole machine: memory as a file, so that a frame can be seen at two addresses.
struct Machine {
    file: i32,
    memory: NonNull<u8>,
    /// Where each handle is mapped from, if it is.
    handles: Vec<Option<u32>>,
    free: Vec<u32>,
    /// The other end of each port, 0 if it has none.
    peers: Vec<u32>,
    /// Signals set their bits in the shared page, the first frame. If not, nobody is asleep, and needs none.
    signals: bool,
}

impl Machine {
    fn new(signals: bool) -> Result<Self> {
        // SAFETY: the name is a C string, and what comes of it is ours.
        let file = unsafe { libc::memfd_create(c"bench".as_ptr(), libc::MFD_CLOEXEC) };
        ensure!(file >= 0, "no memory file: {}", std::io::Error::last_os_error());
        let frames = FRAMES + TABLE;
        // SAFETY: as above.
        ensure!(unsafe { libc::ftruncate(file, (frames * PAGE_SIZE) as i64) } == 0, "no memory");
        let flags = libc::MAP_SHARED | libc::MAP_NORESERVE;
        let memory = map(std::ptr::null_mut(), frames, libc::PROT_READ | libc::PROT_WRITE, flags, file, 0)?;
        Ok(Self { file, memory, handles: Vec::new(), free: Vec::new(), peers: vec![0; 2], signals })
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

    /// Makes a port with this one at its other end.
    fn port(&mut self, peer: u32) -> Port {
        self.peers.push(peer);
        Port(self.peers.len() as u32 - 1)
    }

    fn shared(&self) -> &SharedInfo {
        // SAFETY: the first frame, made of atomics.
        unsafe { self.memory.cast().as_ref() }
    }

    /// A port gets an event.
    fn signal(&self, port: u32) {
        self.shared().evtchn_pending[port as usize / 64].fetch_or(1 << (port % 64), Relaxed);
        self.raise(port);
    }

    /// Tells the domain of a port, if it is pending and not masked.
    fn raise(&self, port: u32) {
        let (shared, word) = (self.shared(), port as usize / 64);
        let word = shared.evtchn_pending[word].load(Relaxed) & !shared.evtchn_mask[word].load(Relaxed);
        if word & 1 << (port % 64) != 0 {
            let vcpu = &shared.vcpu_info[0];
            vcpu.evtchn_pending_sel.fetch_or(1 << (port / 64), Relaxed);
            vcpu.evtchn_upcall_pending.store(1, Relaxed);
        }
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
                // SAFETY: as above.
                unsafe { (*pointer(1).cast::<EvtchnAllocUnbound>()).port = self.port(0) };
            }
            (Nr::EVENT_CHANNEL_OP, EVTCHNOP_bind_interdomain) => {
                // SAFETY: as above.
                let op = unsafe { &mut *pointer(1).cast::<EvtchnBindInterdomain>() };
                op.local_port = self.port(op.remote_port.0);
                self.peers[op.remote_port.0 as usize] = op.local_port.0;
            }
            (Nr::EVENT_CHANNEL_OP, EVTCHNOP_send) if self.signals => {
                // SAFETY: as above.
                let port = unsafe { (*pointer(1).cast::<EvtchnSend>()).port };
                self.signal(self.peers[port.0 as usize]);
            }
            (Nr::EVENT_CHANNEL_OP, EVTCHNOP_unmask) if self.signals => {
                // SAFETY: as above.
                let Port(port) = unsafe { (*pointer(1).cast::<EvtchnUnmask>()).port };
                self.shared().evtchn_mask[port as usize / 64].fetch_and(!(1 << (port % 64)), Relaxed);
                self.raise(port);
            }
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
pub(crate) struct Below {
    machine: RefCell<Machine>,
    pub(crate) calls: RefCell<[u64; 2]>,
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

/// Not a part of `enter`, which is counted.
#[inline(never)]
fn call(context: *mut c_void, nr: u32, args: *const [usize; 5]) -> isize {
    // SAFETY: as above; the arguments are the drivers'.
    unsafe { (*context.cast::<Below>()).machine.borrow_mut().call(nr, *args) }.unwrap_or(-12)
}

/// A function of a bed's.
pub(crate) type Part = unsafe extern "C" fn(*mut c_void, u32, u32) -> u64;
/// The one that opens a bed, with what it is to be like.
pub(crate) type Open = unsafe extern "C" fn(*const Host, u64) -> *mut c_void;

/// What callgrind looks for: it counts what happens in here.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn xenlab_block_measured(part: Part, bed: *mut c_void, one: u32, other: u32) -> u64 {
    // SAFETY: `Opened` has the bed.
    std::hint::black_box(unsafe { part(bed, one, other) })
}

/// What callgrind looks for: what was counted until here is one case.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn xenlab_block_over() {
    std::hint::black_box(());
}

/// How callgrind is told of the three.
pub(crate) const OPTIONS: [&str; 3] =
    ["--toggle-collect=xenlab_block_measured", "--toggle-collect=xenlab_left_out", "--dump-before=xenlab_block_over"];

/// A bed that is open.
pub(crate) struct Opened {
    bed: *mut c_void,
    pub(crate) below: &'static Below,
}

impl Opened {
    /// Sets a bed up. What it is made of stays until the process ends.
    pub(crate) fn new(open: Open, like: u64, signals: bool) -> Result<Self> {
        let machine = Machine::new(signals)?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let room = map(std::ptr::null_mut(), ROOM, libc::PROT_NONE, flags, -1, 0)?;
        let memory = machine.memory;
        let below: &Below = Box::leak(Box::new(Below { machine: RefCell::new(machine), calls: RefCell::new([0; 2]) }));
        let context = std::ptr::from_ref(below).cast_mut().cast();
        let host = Host { memory, pages: FRAMES, room, room_pages: ROOM, enter, context };
        // SAFETY: all of it is set aside for this bed alone, for ever.
        let bed = unsafe { open(&raw const host, like) };
        ensure!(!bed.is_null(), "the two ends of the disk don't come together");
        Ok(Self { bed, below })
    }

    /// Runs one part.
    pub(crate) fn part(&self, part: Part, counted: bool, one: u32, other: u32) -> u64 {
        if !counted {
            // SAFETY: `new` has opened it.
            return unsafe { part(self.bed, one, other) };
        }
        COUNTING.store(true, Relaxed);
        let result = xenlab_block_measured(std::hint::black_box(part), self.bed, one, other);
        COUNTING.store(false, Relaxed);
        result
    }
}

/// Loads the object with the beds.
pub(crate) fn load(folder: &Path) -> Result<&'static Library> {
    let path = folder.join("bare.so");
    // SAFETY: we have compiled it, and it does nothing when it is loaded.
    let library = unsafe { Library::new(&path) }.with_context(|| path.display().to_string())?;
    Ok(Box::leak(Box::new(library)))
}
