//! The one entry: arguments as a guest passes them, decoded as Xen does.

use std::sync::atomic::Ordering::SeqCst;

use hypercall::mem::PAGE_SIZE;
use hypercall::{DomId, Gfn, Mfn, Nr, Port};
use xen_sys::XenPfn;
use xen_sys::arch_x86::xen_x86_64::{HYPERVISOR_VIRT_END, HYPERVISOR_VIRT_START};
use xen_sys::errno::*;
use xen_sys::event_channel::*;
use xen_sys::features::*;
use xen_sys::grant_table::*;
use xen_sys::memory::*;
use xen_sys::sched::*;
use xen_sys::vcpu::*;
use xen_sys::version::*;
use xen_sys::xen::*;

use crate::ledger::Kind;
use crate::shared::Shared;
use crate::space::Pte;
use crate::state::{BOOT_NS, Life, State};
use crate::trace::What;

/// Present bit of a page-table entry.
const PTE_PRESENT: u64 = 1 << 0;
/// Writable bit of a page-table entry.
const PTE_WRITABLE: u64 = 1 << 1;
/// The bits of a page-table entry that are the frame, shifted by 12.
const PTE_FRAME: u64 = 0x000f_ffff_ffff_f000;

/// The version that the mock plays: 4.17.
const VERSION: isize = 4 << 16 | 17;
/// What it offers to every PV domain.
const FEATURES: u32 = 1 << XENFEAT_mmu_pt_update_preserve_ad
    | 1 << XENFEAT_highmem_assist
    | 1 << XENFEAT_gnttab_map_avail_bits
    | 1 << XENFEAT_memory_op_vnode_supported;
/// What it offers to every auto-translated domain.
const TRANSLATED_FEATURES: u32 = 1 << XENFEAT_writable_page_tables
    | 1 << XENFEAT_auto_translated_physmap
    | 1 << XENFEAT_hvm_callback_vector
    | 1 << XENFEAT_hvm_safe_pvclock
    | 1 << XENFEAT_memory_op_vnode_supported
    | 1 << XENFEAT_not_direct_mapped;
/// Numbers that a physical interrupt may have.
const PIRQS: u32 = 256;
/// Ports that one `SCHEDOP_poll` may name.
const POLL_PORTS: u32 = 128;
/// Set timers further away than this, in ns, are taken for a mistake.
const TIMER_FAR: u64 = 1 << 50;

type Outcome = Result<isize, i32>;

/// Returns a guest's pointer, if Xen could take it for one.
fn guest<T>(addr: usize) -> Result<*mut T, i32> {
    if addr < PAGE_SIZE || (HYPERVISOR_VIRT_START..HYPERVISOR_VIRT_END).contains(&addr) {
        return Err(XEN_EFAULT);
    }
    Ok(std::ptr::with_exposed_provenance_mut(addr))
}

/// Copies a structure in from the guest.
///
/// # Safety
/// `addr` is what the caller of the hypercall passed for a `T`, which is plain data.
pub(crate) unsafe fn copy_in<T: Copy>(addr: usize) -> Result<T, i32> {
    // SAFETY: the caller of the hypercall answers for the pointer.
    Ok(unsafe { guest::<T>(addr)?.read_unaligned() })
}

/// Copies a structure out to the guest.
///
/// # Safety
/// As for [`copy_in`].
unsafe fn copy_out<T: Copy>(addr: usize, value: T) -> Result<(), i32> {
    // SAFETY: the caller of the hypercall answers for the pointer.
    unsafe { guest::<T>(addr)?.write_unaligned(value) };
    Ok(())
}

/// Copies a structure in, lets `work` change it, and copies it out if that went well.
///
/// # Safety
/// As for [`copy_in`].
unsafe fn in_out<T: Copy>(addr: usize, work: impl FnOnce(&mut T) -> Result<(), i32>) -> Outcome {
    // SAFETY: the caller's.
    let mut op = unsafe { copy_in(addr)? };
    work(&mut op)?;
    // SAFETY: the caller's.
    unsafe { copy_out(addr, op)? };
    Ok(0)
}

/// Works through a batch of entries; each is copied out with its status.
///
/// # Safety
/// As for [`copy_in`], for `count` entries.
unsafe fn batch<T: Copy>(addr: usize, count: usize, mut work: impl FnMut(&mut T)) -> Outcome {
    for index in 0..count {
        let addr = addr.checked_add(index * size_of::<T>()).ok_or(XEN_EFAULT)?;
        // SAFETY: the caller's.
        unsafe {
            in_out(addr, |op| {
                work(op);
                Ok(())
            })?;
        }
    }
    Ok(0)
}

impl Shared {
    /// Enters the hypervisor.
    ///
    /// # Safety
    /// The arguments are right for `nr`.
    pub(crate) unsafe fn enter(&self, caller: DomId, nr: Nr, args: [usize; 5]) -> isize {
        let outcome = match (nr, args[0] as u32) {
            (Nr::SCHED_OP, SCHEDOP_poll | SCHEDOP_block) => {
                // SAFETY: the caller's.
                unsafe { self.sleep(caller, nr, args) }
            }
            (Nr::SCHED_OP, SCHEDOP_yield) => {
                // SAFETY: the caller's.
                let outcome = unsafe { self.lock().call(caller, nr, args) };
                std::thread::yield_now();
                outcome
            }
            // SAFETY: the caller's.
            _ => unsafe { self.lock().call(caller, nr, args) },
        };
        outcome.unwrap_or_else(|errno| -(errno as isize))
    }

    /// Does the two calls that wait.
    unsafe fn sleep(&self, caller: DomId, nr: Nr, args: [usize; 5]) -> Outcome {
        // SAFETY: the caller's.
        unsafe { self.lock().noted(caller, nr, args, |state| state.admit(caller, nr, &args).map(|()| 0))? };
        if args[0] as u32 == SCHEDOP_block {
            self.lock().shared_info(caller).vcpu_info[0].evtchn_upcall_mask.store(0, SeqCst);
            self.wait(caller, &[], u64::MAX);
            return Ok(0);
        }
        // SAFETY: the caller's: the argument of a poll.
        let poll: SchedPoll = unsafe { copy_in(args[1])? };
        if poll.nr_ports > POLL_PORTS {
            return Err(XEN_EINVAL);
        }
        let mut ports = Vec::new();
        for index in 0..poll.nr_ports as usize {
            // SAFETY: the caller's: a list of that many ports.
            let port: Port = unsafe { copy_in(poll.ports.0.expose_provenance() + index * size_of::<Port>())? };
            if self.lock().poll_port(caller, port)? {
                return Ok(0);
            }
            ports.push(port);
        }
        let deadline = if poll.timeout == 0 { u64::MAX } else { poll.timeout };
        self.wait(caller, &ports, deadline);
        Ok(0)
    }
}

impl State {
    /// Counts a call, and refuses it if the domain is dead or a fault was ordered.
    fn admit(&mut self, caller: DomId, nr: Nr, args: &[usize; 5]) -> Result<(), i32> {
        let dom = self.domains.get_mut(&caller).filter(|dom| !dom.is_dead()).ok_or(XEN_ESRCH)?;
        let kind = Kind::of(nr, args);
        *dom.ledger.hypercalls.entry(kind).or_default() += 1;
        self.struck(caller, |faults| faults.hypercall(caller, kind)).map_or(Ok(()), Err)
    }

    /// Does what a hypercall asks for, and takes it down.
    ///
    /// # Safety
    /// The arguments are right for `nr`.
    unsafe fn noted(
        &mut self,
        caller: DomId,
        nr: Nr,
        args: [usize; 5],
        work: impl FnOnce(&mut Self) -> Outcome,
    ) -> Outcome {
        let begun = self.note_call(caller, Kind::of(nr, &args));
        let outcome = work(self);
        if let Some(begun) = begun {
            let answer = outcome.unwrap_or_else(|errno| -(errno as isize));
            // SAFETY: the caller's.
            let words = unsafe { self.words(caller, nr, args, answer) };
            self.note_answer(begun, words, answer);
        }
        outcome
    }

    /// Carries out a hypercall that does not wait.
    ///
    /// # Safety
    /// The arguments are right for `nr`.
    unsafe fn call(&mut self, caller: DomId, nr: Nr, args: [usize; 5]) -> Outcome {
        // SAFETY: the caller's, for both.
        unsafe { self.noted(caller, nr, args, |state| state.dispatch(caller, nr, args)) }
    }

    /// # Safety
    /// The arguments are right for `nr`.
    unsafe fn dispatch(&mut self, caller: DomId, nr: Nr, args: [usize; 5]) -> Outcome {
        self.admit(caller, nr, &args)?;
        // SAFETY: the caller's, for each of them.
        unsafe {
            match nr {
                Nr::EVENT_CHANNEL_OP => self.event_channel_op(caller, args[0] as u32, args[1]),
                Nr::GRANT_TABLE_OP => self.grant_table_op(caller, args[0] as u32, args[1], args[2] as u32),
                Nr::MEMORY_OP => self.memory_op(caller, args[0] as u32, args[1]),
                Nr::SCHED_OP => self.sched_op(caller, args[0] as u32, args[1]),
                Nr::VCPU_OP => self.vcpu_op(caller, args[0] as u32, args[1] as u32, args[2]),
                Nr::CONSOLE_IO => self.console_io(caller, args[0] as u32, args[1], args[2]),
                Nr::XEN_VERSION => self.xen_version(caller, args[0] as u32, args[1]),
                Nr::SET_TIMER_OP => self.set_timer(caller, args[0] as u64),
                // The page tables of an auto-translated domain are its own.
                Nr::UPDATE_VA_MAPPING | Nr::MMU_UPDATE if self.dom(caller).space.is_translated() => Err(XEN_ENOSYS),
                Nr::UPDATE_VA_MAPPING => self.update_va_mapping(caller, args[0], args[1] as u64),
                Nr::MMU_UPDATE => self.mmu_update(caller, &args),
                Nr::MULTICALL => self.multicall(caller, args[0], args[1] as u32),
                _ => Err(XEN_ENOSYS),
            }
        }
    }

    unsafe fn event_channel_op(&mut self, caller: DomId, cmd: u32, arg: usize) -> Outcome {
        // SAFETY: the caller's: the argument is the structure of the command.
        unsafe {
            match cmd {
                EVTCHNOP_alloc_unbound => in_out(arg, |op| self.alloc_unbound(caller, op)),
                EVTCHNOP_bind_interdomain => in_out(arg, |op| self.bind_interdomain(caller, op)),
                EVTCHNOP_bind_virq => in_out(arg, |op| self.bind_virq(caller, op)),
                EVTCHNOP_bind_ipi => in_out(arg, |op| self.bind_ipi(caller, op)),
                // No domain of the mock has a physical interrupt that it might bind.
                EVTCHNOP_bind_pirq => {
                    Err(if copy_in::<EvtchnBindPirq>(arg)?.pirq < PIRQS { XEN_EPERM } else { XEN_EINVAL })
                }
                EVTCHNOP_status => in_out(arg, |op| self.port_status(caller, op)),
                EVTCHNOP_close => self.close_port(caller, copy_in::<EvtchnClose>(arg)?.port).map(|()| 0),
                EVTCHNOP_send => {
                    let port = copy_in::<EvtchnSend>(arg)?.port;
                    self.dom(caller).ledger.notifications += 1;
                    self.send(caller, port).map(|()| 0)
                }
                EVTCHNOP_bind_vcpu => self.bind_vcpu(caller, copy_in(arg)?).map(|()| 0),
                EVTCHNOP_unmask => self.unmask(caller, copy_in::<EvtchnUnmask>(arg)?.port).map(|()| 0),
                EVTCHNOP_reset => self.reset_ports(caller, copy_in::<EvtchnReset>(arg)?.dom).map(|()| 0),
                _ => Err(XEN_ENOSYS),
            }
        }
    }

    unsafe fn grant_table_op(&mut self, caller: DomId, cmd: u32, arg: usize, count: u32) -> Outcome {
        if i32::try_from(count).is_err() {
            return Err(XEN_EINVAL);
        }
        let count = count as usize;
        // SAFETY: the caller's: the argument is a list of so many structures of the command.
        unsafe {
            match cmd {
                GNTTABOP_map_grant_ref => batch(arg, count, |op| self.map_grant(caller, op)),
                GNTTABOP_unmap_grant_ref => batch(arg, count, |op| self.unmap_grant(caller, op)),
                GNTTABOP_copy => batch(arg, count, |op| self.copy_grant(caller, op)),
                GNTTABOP_setup_table | GNTTABOP_query_size if count != 1 => Err(XEN_EINVAL),
                GNTTABOP_setup_table => self.answer_setup_table(caller, arg),
                GNTTABOP_query_size => in_out(arg, |op| {
                    self.query_size(caller, op);
                    Ok(())
                }),
                GNTTABOP_get_version => in_out(arg, |op| self.grant_version(caller, op)),
                GNTTABOP_set_version => in_out(arg, |op: &mut GnttabSetVersion| match op.version {
                    1 => Ok(()),
                    // As a domain that its toolstack has limited to version 1.
                    2 => Err(XEN_ENOSYS),
                    _ => Err(XEN_EINVAL),
                }),
                _ => Err(XEN_ENOSYS),
            }
        }
    }

    unsafe fn answer_setup_table(&mut self, caller: DomId, arg: usize) -> Outcome {
        // SAFETY: the caller's.
        let mut op: GnttabSetupTable = unsafe { copy_in(arg)? };
        // Seen before anything is done. A list that is only not mapped is found out later, and has a status of its own.
        if (HYPERVISOR_VIRT_START..HYPERVISOR_VIRT_END).contains(&op.frame_list.0.addr()) {
            return Err(XEN_EFAULT);
        }
        op.status = match self.setup_table(caller, &op) {
            Err(status) => status,
            Ok(frames) => {
                let mut status = GNTST_okay;
                for (index, gfn) in frames.iter().enumerate() {
                    let addr = op.frame_list.0.expose_provenance() + index * size_of::<XenPfn>();
                    // SAFETY: the caller's: the list has room for as many frames as it asks for.
                    if unsafe { copy_out(addr, XenPfn(gfn.0 as usize)) }.is_err() {
                        status = GNTST_bad_virt_addr;
                    }
                }
                status
            }
        };
        // SAFETY: the caller's.
        unsafe { copy_out(arg, op)? };
        Ok(0)
    }

    unsafe fn memory_op(&mut self, caller: DomId, cmd: u32, arg: usize) -> Outcome {
        match cmd {
            XENMEM_maximum_ram_page => Ok(self.frames.end() as isize),
            XENMEM_current_reservation | XENMEM_maximum_reservation => {
                // SAFETY: the caller's.
                let op: XenMemoryDomain = unsafe { copy_in(arg)? };
                let dom = self.resolve(caller, op.domid).ok_or(XEN_ESRCH)?;
                self.target(caller, dom)?;
                let space = &self.dom(dom).space;
                let pages = if cmd == XENMEM_current_reservation { space.own_pages() } else { space.max_pages() };
                Ok(pages as isize)
            }
            // SAFETY: the caller's, for each of them.
            XENMEM_add_to_physmap => self.add_to_physmap(caller, &unsafe { copy_in(arg)? }).map(|()| 0),
            // SAFETY: as above.
            XENMEM_remove_from_physmap => self.remove_from_physmap(caller, &unsafe { copy_in(arg)? }).map(|()| 0),
            // SAFETY: as above.
            XENMEM_populate_physmap => unsafe { self.populate_physmap(caller, arg) },
            _ => Err(XEN_ENOSYS),
        }
    }

    /// Puts memory behind frame numbers of an auto-translated domain, page by page. Returns for how many there was some.
    unsafe fn populate_physmap(&mut self, caller: DomId, arg: usize) -> Outcome {
        // SAFETY: the caller's.
        let op: XenMemoryReservation = unsafe { copy_in(arg)? };
        let dom = self.resolve(caller, op.domid).ok_or(XEN_ESRCH)?;
        self.target(caller, dom)?;
        if op.extent_order != 0 || !self.dom(dom).space.is_translated() {
            return Err(XEN_ENOSYS);
        }
        let mut done = 0;
        for index in 0..op.nr_extents {
            // SAFETY: the caller's: a list of so many frame numbers.
            let gfn: XenPfn = unsafe { copy_in(op.extent_start.0.expose_provenance() + index * size_of::<XenPfn>())? };
            if self.populate(dom, Gfn(gfn.0 as u64)).is_none() {
                break;
            }
            done += 1;
        }
        Ok(done)
    }

    unsafe fn sched_op(&mut self, caller: DomId, cmd: u32, arg: usize) -> Outcome {
        match cmd {
            SCHEDOP_yield => Ok(0),
            SCHEDOP_shutdown => {
                // SAFETY: the caller's.
                let op: SchedShutdown = unsafe { copy_in(arg)? };
                if op.reason & 0xff == SHUTDOWN_suspend && caller != DomId(0) {
                    return Ok(self.suspend(caller));
                }
                // Xen keeps the low byte. It would not return; the mock's domain has threads that have to end somewhere.
                self.dom(caller).life = Life::Shutdown(op.reason & 0xff);
                self.note(Some(caller), || What::Life(format!("shut itself down, reason {}", op.reason & 0xff)));
                self.raise_virq(DomId(0), 0, VIRQ_DOM_EXC);
                Ok(0)
            }
            _ => Err(XEN_ENOSYS),
        }
    }

    unsafe fn vcpu_op(&mut self, caller: DomId, cmd: u32, vcpu: u32, arg: usize) -> Outcome {
        let dom = self.dom(caller);
        let bit = dom.vcpu(vcpu)?;
        match cmd {
            // What its registers are means nothing here: a thread of the test plays it.
            VCPUOP_initialise if dom.vcpus_made & bit != 0 => Err(XEN_EEXIST),
            VCPUOP_initialise => {
                dom.vcpus_made |= bit;
                Ok(0)
            }
            VCPUOP_up if dom.vcpus_made & bit == 0 => Err(XEN_EINVAL),
            VCPUOP_up => {
                dom.vcpus_up |= bit;
                Ok(0)
            }
            // With the last one Xen would power the domain off.
            VCPUOP_down if dom.vcpus_up == bit => Err(XEN_ENOSYS),
            VCPUOP_down => {
                dom.vcpus_up &= !bit;
                Ok(0)
            }
            VCPUOP_is_up => Ok(isize::from(dom.vcpus_up & bit != 0)),
            VCPUOP_stop_periodic_timer => Ok(0),
            VCPUOP_get_runstate_info => {
                let state = if dom.vcpus_up & bit != 0 { RUNSTATE_running } else { RUNSTATE_offline };
                let now = self.now();
                let mut info = VcpuRunstateInfo { state, state_entry_time: BOOT_NS, time: [0; 4] };
                info.time[state as usize] = now - BOOT_NS;
                // SAFETY: the caller's.
                unsafe { copy_out(arg, info)? };
                Ok(0)
            }
            VCPUOP_set_singleshot_timer if vcpu == 0 => {
                // SAFETY: the caller's.
                let op: VcpuSetSingleshotTimer = unsafe { copy_in(arg)? };
                // VCPU_SSHOTTMR_future means nothing any more: a time that is past fires at once.
                self.dom(caller).timer = Some(op.timeout_abs_ns);
                self.wake_machine();
                Ok(0)
            }
            // The mock doesn't know which vcpu calls, and only a vcpu itself may set its timer.
            VCPUOP_set_singleshot_timer | VCPUOP_stop_singleshot_timer if vcpu != 0 => Err(XEN_EINVAL),
            VCPUOP_stop_singleshot_timer => {
                self.dom(caller).timer = None;
                Ok(0)
            }
            _ => Err(XEN_ENOSYS),
        }
    }

    /// Only domain 0 has Xen's console.
    unsafe fn console_io(&mut self, caller: DomId, cmd: u32, count: usize, buffer: usize) -> Outcome {
        if caller != DomId(0) {
            return Err(XEN_EPERM);
        }
        match cmd {
            CONSOLEIO_write => {
                for offset in 0..count {
                    // SAFETY: the caller's: so many bytes.
                    let byte = unsafe { copy_in(buffer + offset)? };
                    self.dom(caller).printed.push(byte);
                }
                Ok(0)
            }
            // Nobody types.
            CONSOLEIO_read => Ok(0),
            _ => Err(XEN_ENOSYS),
        }
    }

    fn set_timer(&mut self, caller: DomId, time: u64) -> Outcome {
        let now = self.now();
        self.dom(caller).timer = match time {
            0 => None,
            far if far > i64::MAX as u64 || far.saturating_sub(now) >= TIMER_FAR => Some(now + 100_000_000),
            time => Some(time),
        };
        self.wake_machine();
        Ok(0)
    }

    /// Maps a frame of the caller's own, such as the grant table's, or unmaps what is there.
    fn update_va_mapping(&mut self, caller: DomId, va: usize, pte: u64) -> Outcome {
        if !self.dom(caller).space.covers(va) {
            return Err(XEN_EINVAL);
        }
        if pte & PTE_PRESENT == 0 {
            self.dom(caller).space.unmap(va);
            return Ok(0);
        }
        let mfn = Mfn((pte & PTE_FRAME) >> 12);
        match self.frames.owner(mfn) {
            Some(owner) if owner == caller => {}
            Some(_) => return Err(XEN_EINVAL),
            None => return Err(XEN_EPERM),
        }
        self.map_page(caller, va, Pte { mfn, writable: pte & PTE_WRITABLE != 0 });
        Ok(0)
    }

    /// Takes updates of the machine-to-physical table, for own frames. The mock's domains have no page tables.
    unsafe fn mmu_update(&mut self, caller: DomId, args: &[usize; 5]) -> Outcome {
        let mut done = 0_u32;
        let mut outcome = Ok(0);
        for index in 0..args[1] {
            // SAFETY: the caller's: a list of so many updates.
            let update: MmuUpdate = unsafe { copy_in(args[0] + index * size_of::<MmuUpdate>())? };
            let of_table = update.ptr & 3 == MMU_MACHPHYS_UPDATE;
            if !of_table || self.frames.owner(Mfn(update.ptr >> 12)) != Some(caller) {
                outcome = Err(XEN_EINVAL);
                break;
            }
            done += 1;
        }
        if args[2] != 0 {
            // SAFETY: the caller's: where the count goes.
            unsafe { copy_out(args[2], done)? };
        }
        outcome
    }

    unsafe fn multicall(&mut self, caller: DomId, list: usize, count: u32) -> Outcome {
        if std::mem::replace(&mut self.dom(caller).in_multicall, true) {
            return Err(XEN_EINVAL);
        }
        let mut outcome = Ok(0);
        for index in 0..count as usize {
            // SAFETY: the caller's: a list of so many calls, each with arguments that are right for it.
            let done = unsafe {
                in_out(list + index * size_of::<MulticallEntry>(), |entry: &mut MulticallEntry| {
                    let args = [entry.args[0], entry.args[1], entry.args[2], entry.args[3], entry.args[4]];
                    let result = self.call(caller, Nr(entry.op), args);
                    entry.result = result.unwrap_or_else(|errno| -(errno as isize)) as usize;
                    Ok(())
                })
            };
            if done.is_err() {
                outcome = done;
                break;
            }
        }
        self.dom(caller).in_multicall = false;
        outcome
    }

    unsafe fn xen_version(&mut self, caller: DomId, cmd: u32, arg: usize) -> Outcome {
        /// Returns a text with zeros behind it.
        fn text<const N: usize>(text: &str) -> [u8; N] {
            let mut field = [0; N];
            field[..text.len()].copy_from_slice(text.as_bytes());
            field
        }
        // SAFETY: the caller's: the argument is the structure of the command.
        unsafe {
            match cmd {
                XENVER_version => return Ok(VERSION),
                XENVER_pagesize => return Ok(PAGE_SIZE as isize),
                XENVER_extraversion => copy_out::<XenExtraversion>(arg, text(".0-mock"))?,
                XENVER_capabilities => copy_out::<XenCapabilitiesInfo>(arg, text("xen-3.0-x86_64 "))?,
                XENVER_changeset => copy_out::<XenChangesetInfo>(arg, text("mock"))?,
                XENVER_platform_parameters => {
                    copy_out(arg, XenPlatformParameters { virt_start: HYPERVISOR_VIRT_START })?;
                }
                XENVER_get_features => {
                    let asked: XenFeatureInfo = copy_in(arg)?;
                    if asked.submap_idx != 0 {
                        return Err(XEN_EINVAL);
                    }
                    let dom0 = if caller == DomId(0) { 1 << XENFEAT_dom0 } else { 0 };
                    let is_translated = self.dom(caller).space.is_translated();
                    let features = if is_translated { TRANSLATED_FEATURES } else { FEATURES };
                    copy_out(arg, XenFeatureInfo { submap_idx: 0, submap: features | dom0 })?;
                }
                _ => return Err(XEN_ENOSYS),
            }
        }
        Ok(0)
    }
}
