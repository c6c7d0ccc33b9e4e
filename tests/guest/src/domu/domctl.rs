//! domctl.h, as far as building a domain needs it: Xen 4.17's, interface version 0x15. The header is no stable ABI, so it
//! has no place in `xen-sys`; another Xen answers EACCES to the version.

use alloc::boxed::Box;
use alloc::vec::Vec;

use hypercall::error::from_ret;
use hypercall::{DomId, Hypervisor, Mfn, Nr, Port, XenError};
use xen_sys::arch_x86::xen::{VGCF_in_kernel, VGCF_online, VcpuGuestContext};
use xen_sys::arch_x86::xen_x86_64::{FLAT_KERNEL_CS, FLAT_KERNEL_SS};
use xen_sys::event_channel::{EVTCHNOP_alloc_unbound, EvtchnAllocUnbound};
use xen_sys::memory::{XENMEM_populate_physmap, XenMemoryReservation};
use xen_sys::xen::{DOMID_SELF, MmuextOp, MmuextOpArg1, MmuextOpArg2};
use xen_sys::{GuestHandle, PAGE_SIZE, XenPfn};

use crate::Bare;

const INTERFACE_VERSION: u32 = 0x15;

const CREATEDOMAIN: u32 = 1;
const DESTROYDOMAIN: u32 = 2;
const UNPAUSEDOMAIN: u32 = 4;
const GETDOMAININFO: u32 = 5;
const MAX_MEM: u32 = 11;
const SETVCPUCONTEXT: u32 = 12;
const MAX_VCPUS: u32 = 15;
const HYPERCALL_INIT: u32 = 22;

/// struct xen_domctl. The union is as long as its padding, 128 bytes.
#[repr(C)]
struct Domctl<T> {
    cmd: u32,
    interface_version: u32,
    domain: DomId,
    pad: [u16; 3],
    u: Union<T>,
}

#[repr(C)]
union Union<T> {
    pad: [u64; 16],
    value: core::mem::ManuallyDrop<T>,
}

/// struct xen_domctl_createdomain.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CreateDomain {
    ssidref: u32,
    handle: [u8; 16],
    flags: u32,
    iommu_opts: u32,
    max_vcpus: u32,
    max_evtchn_port: u32,
    max_grant_frames: i32,
    max_maptrack_frames: i32,
    grant_opts: u32,
    vmtrace_size: u32,
    cpupool_id: u32,
    emulation_flags: u32,
    misc_flags: u32,
}

/// struct xen_domctl_getdomaininfo, up to what is of interest here.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct GetDomainInfo {
    domain: DomId,
    pad1: u16,
    flags: u32,
    tot_pages: u64,
    max_pages: u64,
    outstanding_pages: u64,
    shr_pages: u64,
    paged_pages: u64,
    shared_info_frame: u64,
}

/// XEN_DOMINF_shutdown, and where among the flags the reason stands.
const DOMINF_SHUTDOWN: u32 = 1 << 2;
const DOMINF_SHUTDOWN_SHIFT: u32 = 16;

/// What there is to know of a domain.
#[derive(Clone, Copy, Debug)]
pub(super) struct Info {
    pub(super) shared_info_frame: Mfn,
    pub(super) ended: Option<Ended>,
}

/// The reason, `SHUTDOWN_` of sched.h, for which a domain has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended(pub u32);

/// How the first processor starts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Registers {
    pub(super) entry: usize,
    pub(super) start_info: usize,
    pub(super) stack: usize,
    pub(super) tables: Mfn,
}

/// Makes the hypercall; returns the domain and the argument as Xen leaves them.
///
/// # Safety
/// `T` is the argument of that command, at most 128 bytes; what it points to is valid for the call.
unsafe fn domctl<T: Copy>(cmd: u32, domain: DomId, value: T) -> Result<(DomId, T), XenError> {
    let mut u = Union { pad: [0; 16] };
    u.value = core::mem::ManuallyDrop::new(value);
    let mut op = Domctl { cmd, interface_version: INTERFACE_VERSION, domain, pad: [0; 3], u };
    // SAFETY: the structure lives as long as the call; the rest is the caller's promise.
    from_ret(unsafe { Bare.hypercall(Nr::DOMCTL, [&raw mut op as usize, 0, 0, 0, 0]) })?;
    // SAFETY: what was put in, perhaps changed by Xen; plain integers all.
    Ok((op.domain, *unsafe { op.u.value }))
}

/// Makes an empty domain with one processor that may have so many pages.
pub(super) fn create(pages: usize) -> Result<DomId, XenError> {
    let arg = CreateDomain {
        max_vcpus: 1,
        max_evtchn_port: 1023,
        max_grant_frames: -1,
        max_maptrack_frames: -1,
        grant_opts: 1,
        ..CreateDomain::default()
    };
    // SAFETY: their arguments.
    unsafe {
        let (id, _) = domctl(CREATEDOMAIN, DomId(0), arg)?;
        domctl(MAX_VCPUS, id, 1_u32)?;
        // KiB, and some for what Xen counts beside.
        domctl(MAX_MEM, id, (pages * PAGE_SIZE / 1024 + 1024) as u64)?;
        Ok(id)
    }
}

/// Gives the domain memory: frame `n` of the list is its page `n`.
pub(super) fn populate(id: DomId, pages: usize) -> Result<Vec<Mfn>, XenError> {
    let mut frames: Vec<XenPfn> = (0..pages).map(XenPfn).collect();
    let mut arg = XenMemoryReservation {
        extent_start: GuestHandle(frames.as_mut_ptr()),
        nr_extents: pages,
        extent_order: 0,
        mem_flags: 0,
        domid: id,
    };
    let args = [XENMEM_populate_physmap as usize, &raw mut arg as usize, 0, 0, 0];
    // SAFETY: Xen reads and writes the list, which is as long as the argument says.
    let done = from_ret(unsafe { Bare.hypercall(Nr::MEMORY_OP, args) })?;
    if done < pages {
        return Err(XenError::ENOMEM);
    }
    Ok(frames.into_iter().map(|frame| Mfn(frame.0 as u64)).collect())
}

/// Asks for the state of the domain.
pub(super) fn info(id: DomId) -> Result<Info, XenError> {
    // SAFETY: its argument, which Xen fills.
    let (_, info) = unsafe { domctl(GETDOMAININFO, id, GetDomainInfo::default()) }?;
    // Xen answers for the next domain where there is no such one.
    if info.domain != id {
        return Err(XenError::ESRCH);
    }
    let ended = info.flags & DOMINF_SHUTDOWN != 0;
    Ok(Info {
        shared_info_frame: Mfn(info.shared_info_frame),
        ended: ended.then_some(Ended(info.flags >> DOMINF_SHUTDOWN_SHIFT & 0xff)),
    })
}

/// Makes a port of the domain's, to which this domain may bind.
pub(super) fn offer_port(id: DomId) -> Result<Port, XenError> {
    let mut arg = EvtchnAllocUnbound { dom: id, remote_dom: DOMID_SELF, port: Port(0) };
    let args = [EVTCHNOP_alloc_unbound as usize, &raw mut arg as usize, 0, 0, 0];
    // SAFETY: its argument, without pointers.
    from_ret(unsafe { Bare.hypercall(Nr::EVENT_CHANNEL_OP, args) })?;
    Ok(arg.port)
}

/// Makes a page of the domain's a page table for good.
pub(super) fn pin(id: DomId, cmd: u32, frame: Mfn) -> Result<(), XenError> {
    let op = MmuextOp {
        cmd,
        arg1: MmuextOpArg1 { mfn: XenPfn(frame.0 as usize) },
        arg2: MmuextOpArg2 { src_mfn: XenPfn(0) },
    };
    let mut done = 0_u32;
    let args = [&raw const op as usize, 1, &raw mut done as usize, id.0 as usize, 0];
    // SAFETY: one operation on a frame of the other domain's, and a counter.
    from_ret(unsafe { Bare.hypercall(Nr::MMUEXT_OP, args) }).map(drop)
}

/// Lets Xen fill the domain's hypercall page.
pub(super) fn fill_hypercall_page(id: DomId, frame: Mfn) -> Result<(), XenError> {
    // SAFETY: its argument; the frame is the other domain's.
    unsafe { domctl(HYPERCALL_INIT, id, frame.0) }.map(drop)
}

/// Sets the registers of the domain's processor.
pub(super) fn set_registers(id: DomId, registers: Registers) -> Result<(), XenError> {
    /// Interrupt flag of rflags.
    const IF: u64 = 1 << 9;
    /// struct xen_domctl_vcpucontext.
    #[repr(C)]
    #[derive(Clone, Copy)]
    struct VcpuContext {
        vcpu: u32,
        pad: u32,
        ctxt: *const VcpuGuestContext,
    }
    // SAFETY: plain integers, for which zero is a value.
    let mut context: Box<VcpuGuestContext> = unsafe { Box::new_zeroed().assume_init() };
    context.flags = VGCF_in_kernel | VGCF_online;
    context.user_regs.rip = registers.entry as u64;
    context.user_regs.rsp = registers.stack as u64;
    context.user_regs.rsi = registers.start_info as u64;
    context.user_regs.rflags = IF;
    context.user_regs.cs = FLAT_KERNEL_CS;
    context.user_regs.ss = FLAT_KERNEL_SS;
    context.kernel_ss = FLAT_KERNEL_SS.into();
    context.kernel_sp = registers.stack;
    context.ctrlreg[3] = (registers.tables.0 as usize) << 12;
    // SAFETY: its argument; the context lives as long as the call.
    unsafe { domctl(SETVCPUCONTEXT, id, VcpuContext { vcpu: 0, pad: 0, ctxt: &raw const *context }) }.map(drop)
}

/// Lets the domain run.
pub(super) fn unpause(id: DomId) -> Result<(), XenError> {
    // SAFETY: a command without argument.
    unsafe { domctl(UNPAUSEDOMAIN, id, ()) }.map(drop)
}

/// Ends the domain and frees what it has.
pub(super) fn destroy(id: DomId) -> Result<(), XenError> {
    // SAFETY: a command without argument.
    unsafe { domctl(DESTROYDOMAIN, id, ()) }.map(drop)
}
