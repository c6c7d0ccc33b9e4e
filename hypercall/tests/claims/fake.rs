//! A domain on a small hypervisor in plain heap memory, so that Miri can watch.

#![allow(non_upper_case_globals, reason = "constants in patterns have their C names")]

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::cell::Cell;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::fmt;
use std::ptr::{NonNull, with_exposed_provenance_mut};
use std::sync::atomic::Ordering::SeqCst;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use hypercall::{DomId, Gfn, GrantRef, Hypervisor, Level, Nr, Platform, Port, Region};
use xen_sys::errno;
use xen_sys::event_channel::*;
use xen_sys::features::XENFEAT_auto_translated_physmap;
use xen_sys::grant_table::*;
use xen_sys::version::{XENVER_get_features, XenFeatureInfo};
use xen_sys::xen::{DOMID_SELF, SharedInfo};

mod grants;

pub(crate) const PAGE: usize = 4096;
pub(crate) const PEER: DomId = DomId(3);

/// What the hypervisor does with a hypercall instead of carrying it out.
pub(crate) struct Fault {
    pub(crate) nr: Nr,
    /// The command, if the hypercall has one in its first argument.
    pub(crate) cmd: Option<u32>,
    /// How many such calls pass first.
    pub(crate) after: usize,
    /// For batches: how many entries are done before it fails.
    pub(crate) entries: usize,
    pub(crate) errno: i32,
}

#[derive(Default)]
pub(crate) struct State {
    /// Own memory and address space: first address, pages.
    regions: BTreeMap<usize, (Region, usize)>,
    /// Own memory by frame, for copies, and the other way round.
    frames: HashMap<u64, usize>,
    frame_of: HashMap<usize, u64>,
    next_frame: u64,
    /// The hypervisor translates this domain's frame numbers; address space without memory has some, too.
    is_translated: bool,
    /// Pages of own memory whose memory is gone: nothing is there, or a frame of the table.
    without_memory: HashSet<usize>,
    /// What is mapped where, page by page.
    mappings: HashMap<usize, NonNull<u8>>,
    table: Vec<NonNull<u8>>,
    pub(crate) max_table_frames: u32,
    pub(crate) now_ns: u64,
    /// What the peer grants, and the statuses with which map and copy answer before they do it.
    foreign: HashMap<u32, NonNull<u8>>,
    pub(crate) answers: HashMap<u32, VecDeque<i16>>,
    foreign_blocks: Vec<(NonNull<u8>, usize)>,
    handles: HashMap<u32, usize>,
    next_handle: u32,
    pub(crate) unmap_refused: bool,
    ports: Vec<PortState>,
    /// What happens elsewhere right after the next move of a port to another vcpu.
    pub(crate) after_bind_vcpu: Option<Box<dyn FnOnce() + Send>>,
    pub(crate) sent: Vec<Port>,
    pub(crate) faults: Vec<Fault>,
    pub(crate) calls: HashMap<(usize, u32), usize>,
    pub(crate) log: Vec<String>,
    /// How often work was done uninterrupted, and which threads are at it now, and how deep.
    uninterrupted: usize,
    interrupts: Interrupts,
}

/// What a CPU does on an interrupt.
#[derive(Default)]
enum Interrupts {
    #[default]
    None,
    Handler(Arc<dyn Fn() + Send + Sync>),
    /// The handler is at work; it isn't interrupted itself.
    Handled,
}

// SAFETY: the pointers are to heap memory that only this state frees.
unsafe impl Send for State {}

#[derive(Clone, Copy, Default)]
struct PortState {
    open: bool,
    vcpu: u32,
}

impl State {
    /// The page to which the hypervisor's address of a mapping leads.
    fn at(&self, host_addr: u64) -> usize {
        if self.is_translated { self.frames[&(host_addr / PAGE as u64)] } else { host_addr as usize }
    }
}

thread_local! {
    /// How deep this thread is in work that nothing interrupts.
    static DEPTH: Cell<usize> = const { Cell::new(0) };
}

struct Inner {
    shared: NonNull<u8>,
    state: Mutex<State>,
}

// SAFETY: the shared page is made of atomics.
unsafe impl Send for Inner {}
// SAFETY: as above.
unsafe impl Sync for Inner {}

/// A handle of the domain.
#[derive(Clone)]
pub(crate) struct Fake(Arc<Inner>);

impl fmt::Debug for Fake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fake")
    }
}

fn layout(pages: usize) -> Layout {
    Layout::from_size_align(pages.max(1) * PAGE, PAGE).unwrap()
}

fn zeroed(pages: usize) -> NonNull<u8> {
    // SAFETY: not of size 0.
    NonNull::new(unsafe { alloc_zeroed(layout(pages)) }).unwrap()
}

impl Fake {
    pub(crate) fn new() -> Self {
        let state = State {
            max_table_frames: 4,
            now_ns: 0,
            next_frame: 0x7700,
            ports: vec![PortState::default(); 64],
            ..State::default()
        };
        Self(Arc::new(Inner { shared: zeroed(1), state: Mutex::new(state) }))
    }

    /// An auto-translated domain.
    pub(crate) fn translated() -> Self {
        let fake = Self::new();
        fake.state().is_translated = true;
        fake
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap()
    }

    pub(crate) fn shared_page(&self) -> NonNull<SharedInfo> {
        self.0.shared.cast()
    }

    pub(crate) fn shared(&self) -> &SharedInfo {
        // SAFETY: a zeroed page, aligned, alive as long as the domain.
        unsafe { self.shared_page().as_ref() }
    }

    /// Pages of own memory that are allocated.
    pub(crate) fn pages(&self) -> usize {
        self.count(Region::Memory)
    }

    /// Pages of address space that are set aside.
    pub(crate) fn address_space(&self) -> usize {
        self.count(Region::Unbacked)
    }

    fn count(&self, kind: Region) -> usize {
        self.state().regions.values().filter(|(region, _)| *region == kind).map(|(_, pages)| pages).sum()
    }

    pub(crate) fn calls(&self, nr: Nr, cmd: u32) -> usize {
        self.state().calls.get(&(nr.0, cmd)).copied().unwrap_or(0)
    }

    /// Hypercalls of all kinds.
    pub(crate) fn all_calls(&self) -> usize {
        self.state().calls.values().sum()
    }

    /// Foreign pages that are mapped now.
    pub(crate) fn mapped_now(&self) -> usize {
        self.state().handles.len()
    }

    pub(crate) fn fail(&self, nr: Nr, cmd: u32, after: usize, errno: i32) {
        self.fail_in(nr, Some(cmd), after, 0, errno);
    }

    pub(crate) fn fail_in(&self, nr: Nr, cmd: Option<u32>, after: usize, entries: usize, errno: i32) {
        self.state().faults.push(Fault { nr, cmd, after, entries, errno });
    }

    /// Lets the peer grant pages that are neighbours, from reference `first` on.
    pub(crate) fn peer_grants(&self, first: u32, pages: usize) {
        let block = zeroed(pages);
        let mut state = self.state();
        state.foreign_blocks.push((block, pages));
        for index in 0..pages {
            // SAFETY: inside the block.
            state.foreign.insert(first + index as u32, unsafe { block.add(index * PAGE) });
        }
    }

    /// A byte of a page that the peer grants.
    pub(crate) fn peer_byte(&self, gref: u32, offset: usize) -> &std::sync::atomic::AtomicU8 {
        let page = self.state().foreign[&gref];
        // SAFETY: inside the page, which lives as long as the domain.
        unsafe { std::sync::atomic::AtomicU8::from_ptr(page.as_ptr().add(offset)) }
    }

    /// Returns how often something was done uninterrupted.
    pub(crate) fn uninterrupted(&self) -> usize {
        self.state().uninterrupted
    }

    /// From now on, an interrupt comes at each call into the platform or the hypervisor that isn't made uninterrupted.
    pub(crate) fn interrupt(&self, handler: impl Fn() + Send + Sync + 'static) {
        self.state().interrupts = Interrupts::Handler(Arc::new(handler));
    }

    pub(crate) fn stop_interrupts(&self) {
        self.state().interrupts = Interrupts::None;
    }

    /// A place at which an interrupt may come. The thread goes on only when the handler has returned, as on one CPU.
    fn interruptible(&self) {
        if DEPTH.get() > 0 {
            return;
        }
        let Interrupts::Handler(handler) = std::mem::replace(&mut self.state().interrupts, Interrupts::Handled) else {
            return;
        };
        let (done, waits) = channel();
        let (by, work) = (self.clone(), handler.clone());
        std::thread::spawn(move || {
            work();
            // Before it is said to be done.
            drop(work);
            by.state().interrupts = Interrupts::Handler(handler);
            let _ = done.send(());
        });
        let handled = waits.recv_timeout(Duration::from_secs(20));
        assert!(handled.is_ok(), "the handler waits for what the thread holds that it has interrupted");
    }

    /// Says that this is slow work, which nobody does uninterrupted.
    fn slow(&self) {
        assert_eq!(DEPTH.get(), 0, "slow work while interrupts are held off");
        self.interruptible();
    }

    /// The statuses with which the hypervisor answers for a grant of the peer's, before it maps it or copies.
    pub(crate) fn answer(&self, gref: u32, statuses: &[i16]) {
        self.state().answers.entry(gref).or_default().extend(statuses);
    }

    /// An entry of this domain's grant table, as the hypervisor sees it.
    pub(crate) fn entry(&self, gref: GrantRef) -> &GrantEntryV1 {
        let page = self.state().table[gref.0 as usize / 512].cast::<GrantEntryV1>();
        // SAFETY: inside the frame, which lives as long as the domain.
        unsafe { page.add(gref.0 as usize % 512).as_ref() }
    }

    /// What becomes of a domain that is saved and restored: its ports and grants are gone, and its table is another.
    ///
    /// # Panics
    /// If a page-table entry leads to a frame that is no memory: such a domain can't be saved.
    pub(crate) fn restore(&self) {
        let mut state = self.state();
        if state.is_translated {
            // What has stood in the place of memory is lost, and memory is there.
            state.without_memory.clear();
            state.mappings.clear();
        }
        let savable = state.mappings.is_empty();
        state.ports.fill(PortState::default());
        let frames = std::mem::replace(&mut state.table, vec![zeroed(1)]);
        state.foreign_blocks.extend(frames.iter().map(|frame| (*frame, 1)));
        // Out of reach of the lock, which a panic must not take along.
        drop(state);
        assert!(savable, "saved with a frame mapped that is no memory");
        for (pending, mask) in self.shared().evtchn_pending.iter().zip(&self.shared().evtchn_mask) {
            pending.store(0, SeqCst);
            mask.store(0, SeqCst);
        }
    }

    /// Maps a grant of this domain's in the peer, as Xen does: by compare-and-swap. Returns whether it was allowed.
    pub(crate) fn peer_maps(&self, gref: GrantRef) -> bool {
        let entry = self.entry(gref);
        let map = |flags| match flags & GTF_type_mask {
            GTF_permit_access if flags & GTF_readonly != 0 => Some(flags | GTF_reading),
            GTF_permit_access => Some(flags | GTF_reading | GTF_writing),
            _ => None,
        };
        entry.flags.fetch_update(SeqCst, SeqCst, map).is_ok()
    }

    pub(crate) fn peer_unmaps(&self, gref: GrantRef) {
        self.entry(gref).flags.fetch_and(!(GTF_reading | GTF_writing), SeqCst);
    }

    /// Signals a port of this domain's, as Xen does.
    pub(crate) fn signal(&self, port: Port) {
        let (word, bit) = (port.0 as usize / 64, 1_usize << (port.0 % 64));
        if self.shared().evtchn_pending[word].fetch_or(bit, SeqCst) & bit != 0 {
            return;
        }
        if self.shared().evtchn_mask[word].load(SeqCst) & bit == 0 {
            self.raise(port);
        }
    }

    fn raise(&self, port: Port) {
        let vcpu = self.state().ports[port.0 as usize].vcpu;
        let info = &self.shared().vcpu_info[vcpu as usize];
        let bit = 1_usize << (port.0 / 64);
        if info.evtchn_pending_sel.fetch_or(bit, SeqCst) & bit == 0 {
            info.evtchn_upcall_pending.store(1, SeqCst);
        }
    }

    fn open_port(&self, vcpu: u32) -> Result<Port, i32> {
        let mut state = self.state();
        // Port 0 is never given.
        let free = state.ports.iter().skip(1).position(|port| !port.open).ok_or(errno::XEN_ENOSPC)? + 1;
        state.ports[free] = PortState { open: true, vcpu };
        Ok(Port(free as u32))
    }

    /// # Safety
    /// `arg` is the address of the command's argument.
    unsafe fn event_channel_op(&self, cmd: u32, arg: usize) -> Result<(), i32> {
        // SAFETY: the caller's, for each command below.
        unsafe {
            match cmd {
                EVTCHNOP_alloc_unbound => at::<EvtchnAllocUnbound>(arg).port = self.open_port(0)?,
                EVTCHNOP_bind_interdomain => {
                    let port = self.open_port(0)?;
                    at::<EvtchnBindInterdomain>(arg).local_port = port;
                    self.signal(port);
                }
                EVTCHNOP_bind_virq => {
                    let arg = at::<EvtchnBindVirq>(arg);
                    arg.port = self.open_port(arg.vcpu)?;
                }
                EVTCHNOP_bind_ipi => {
                    let arg = at::<EvtchnBindIpi>(arg);
                    arg.port = self.open_port(arg.vcpu)?;
                }
                EVTCHNOP_bind_vcpu => {
                    let arg = at::<EvtchnBindVcpu>(arg);
                    self.state().ports[arg.port.0 as usize].vcpu = arg.vcpu;
                    let meanwhile = self.state().after_bind_vcpu.take();
                    meanwhile.into_iter().for_each(|happen| happen());
                }
                EVTCHNOP_close => {
                    let port = at::<EvtchnClose>(arg).port.0 as usize;
                    if !self.state().ports.get(port).is_some_and(|port| port.open) {
                        return Err(errno::XEN_EINVAL);
                    }
                    self.shared().evtchn_pending[port / 64].fetch_and(!(1 << (port % 64)), SeqCst);
                    self.state().ports[port] = PortState::default();
                }
                EVTCHNOP_send => self.state().sent.push(at::<EvtchnSend>(arg).port),
                EVTCHNOP_unmask => {
                    let port = at::<EvtchnUnmask>(arg).port;
                    let (word, bit) = (port.0 as usize / 64, 1_usize << (port.0 % 64));
                    let masked = self.shared().evtchn_mask[word].fetch_and(!bit, SeqCst) & bit != 0;
                    if masked && self.shared().evtchn_pending[word].load(SeqCst) & bit != 0 {
                        self.raise(port);
                    }
                }
                EVTCHNOP_status => {
                    let arg = at::<EvtchnStatus>(arg);
                    assert_eq!(arg.dom, DOMID_SELF);
                    let port = self.state().ports.get(arg.port.0 as usize).copied().ok_or(errno::XEN_EINVAL)?;
                    arg.vcpu = port.vcpu;
                    arg.status = if port.open { EVTCHNSTAT_unbound } else { EVTCHNSTAT_closed };
                    arg.u.unbound.dom = PEER;
                }
                _ => return Err(errno::XEN_ENOSYS),
            }
        }
        Ok(())
    }

    /// Counts the call, and finds out whether it is to fail: after how many entries, and how.
    fn fault(&self, nr: Nr, cmd: u32) -> Option<(usize, i32)> {
        let mut state = self.state();
        *state.calls.entry((nr.0, cmd)).or_default() += 1;
        let hit =
            state.faults.iter().position(|fault| fault.nr == nr && fault.cmd.is_none_or(|wanted| wanted == cmd))?;
        if state.faults[hit].after > 0 {
            state.faults[hit].after -= 1;
            return None;
        }
        let fault = state.faults.remove(hit);
        Some((fault.entries, fault.errno))
    }
}

/// Looks at the argument of a hypercall.
///
/// # Safety
/// `address` is that of a `T` which the caller lends for the time of the call.
unsafe fn at<'a, T>(address: usize) -> &'a mut T {
    // SAFETY: the caller's.
    unsafe { &mut *with_exposed_provenance_mut(address) }
}

// SAFETY: the calls below do to memory what Xen's do.
unsafe impl Hypervisor for Fake {
    unsafe fn hypercall(&self, nr: Nr, args: [usize; 5]) -> isize {
        self.interruptible();
        // The first argument of these two is no command.
        let cmd = if matches!(nr, Nr::UPDATE_VA_MAPPING | Nr::MULTICALL) { 0 } else { args[0] as u32 };
        let fault = self.fault(nr, cmd);
        let result = match (nr, fault) {
            (Nr::GRANT_TABLE_OP, _) => {
                let entries = fault.map_or(args[2], |(entries, _)| entries);
                // SAFETY: the caller's.
                let done = unsafe { self.grant_table_op(cmd, args[1], entries) };
                fault.map_or(done, |(_, errno)| Err(errno))
            }
            (_, Some((_, errno))) => Err(errno),
            // SAFETY: the caller's.
            (Nr::EVENT_CHANNEL_OP, None) => unsafe { self.event_channel_op(cmd, args[1]) },
            // SAFETY: the caller's.
            (Nr::MEMORY_OP, None) => match unsafe { self.memory_op(cmd, args[1]) } {
                Ok(count) => return count,
                Err(errno) => Err(errno),
            },
            (Nr::XEN_VERSION, None) if cmd == XENVER_get_features => {
                // SAFETY: the caller's.
                let arg = unsafe { at::<XenFeatureInfo>(args[1]) };
                assert_eq!(arg.submap_idx, 0);
                arg.submap = u32::from(self.state().is_translated) << XENFEAT_auto_translated_physmap;
                Ok(())
            }
            (Nr::UPDATE_VA_MAPPING, None) => self.update_va_mapping(args[0], args[1]),
            (Nr::SCHED_OP, None) => Ok(()),
            _ => Err(errno::XEN_ENOSYS),
        };
        result.map_or_else(|errno| -(errno as isize), |()| 0)
    }
}

// SAFETY: pages come from the allocator; a frame number is given once.
unsafe impl Platform for Fake {
    fn alloc(&self, region: Region, pages: usize) -> Option<NonNull<u8>> {
        self.slow();
        let va = zeroed(pages);
        let address = va.as_ptr().expose_provenance();
        let mut state = self.state();
        state.regions.insert(address, (region, pages));
        if region == Region::Memory || state.is_translated {
            for index in 0..pages {
                // Not contiguous.
                state.next_frame += 7;
                let frame = state.next_frame;
                state.frames.insert(frame, address + index * PAGE);
                state.frame_of.insert(address + index * PAGE, frame);
            }
        }
        Some(va)
    }

    unsafe fn free(&self, region: Region, va: NonNull<u8>, pages: usize) {
        self.slow();
        let address = va.as_ptr().addr();
        let mut state = self.state();
        assert_eq!(state.regions.remove(&address), Some((region, pages)));
        let range = address..address + pages * PAGE;
        for page in range.clone().step_by(PAGE) {
            if let Some(frame) = state.frame_of.remove(&page) {
                state.frames.remove(&frame);
            }
        }
        assert!(!state.mappings.keys().any(|page| range.contains(page)), "freed while something is mapped there");
        assert!(!state.without_memory.iter().any(|page| range.contains(page)), "freed without memory");
        // SAFETY: `alloc` got it with this layout.
        unsafe { dealloc(va.as_ptr(), layout(pages)) };
    }

    fn gfn_of(&self, va: NonNull<u8>) -> Gfn {
        let page = va.as_ptr().addr() & !(PAGE - 1);
        Gfn(self.state().frame_of[&page])
    }

    fn mapped(&self, va: NonNull<u8>) -> NonNull<u8> {
        let state = self.state();
        let offset = va.as_ptr().addr() % PAGE;
        let page = state.mappings.get(&(va.as_ptr().addr() - offset)).copied();
        // SAFETY: the offset lies inside the page.
        let mapped = page.map_or(va, |page| unsafe { page.add(offset) });
        // Asked for each entry of a table: what is mostly in vain is to cost little under Miri.
        let interrupted = matches!(state.interrupts, Interrupts::Handler(_));
        drop(state);
        if interrupted {
            self.interruptible();
        }
        mapped
    }

    fn now_ns(&self) -> u64 {
        self.state().now_ns
    }

    fn wait(&self, _ports: &[Port], _deadline_ns: u64) {}

    fn uninterrupted<T>(&self, work: impl FnOnce() -> T) -> T {
        /// Comes out again, even by a panic.
        struct Inside;

        impl Drop for Inside {
            fn drop(&mut self) {
                DEPTH.set(DEPTH.get() - 1);
            }
        }

        self.state().uninterrupted += 1;
        DEPTH.set(DEPTH.get() + 1);
        let _inside = Inside;
        work()
    }

    fn log(&self, _level: Level, line: fmt::Arguments<'_>) {
        self.slow();
        self.state().log.push(line.to_string());
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap();
        let regions = state.regions.iter().map(|(va, (_, pages))| (with_exposed_provenance_mut(*va), *pages));
        let blocks = state.foreign_blocks.iter().map(|(va, pages)| (va.as_ptr(), *pages));
        let table = state.table.iter().map(|va| (va.as_ptr(), 1));
        for (va, pages) in regions.chain(blocks).chain(table).chain([(self.shared.as_ptr(), 1)]) {
            // SAFETY: `zeroed` got it with this layout, and nothing else frees it.
            unsafe { dealloc(va, layout(pages)) };
        }
    }
}
