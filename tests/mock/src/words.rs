//! The arguments of hypercalls, and messages of xenstored, in words.

use hypercall::grant::GrantStatus;
use hypercall::{DomId, Nr, Port};
use xen_sys::event_channel::*;
use xen_sys::grant_table::*;
use xen_sys::io::xs_wire::{XsdSockmsg, XsdSockmsgType};
use xen_sys::memory::*;
use xen_sys::sched::*;
use xen_sys::vcpu::*;
use xen_sys::xen::{DOMID_SELF, VIRQ_DEBUG, VIRQ_DOM_EXC, VIRQ_TIMER};

use crate::grants::Mapping;
use crate::hypercall::copy_in;
use crate::state::State;
use crate::trace::{Message, What};

/// Bytes of a message's payload that are taken down.
const PAYLOAD: usize = 200;

fn domain(dom: DomId) -> String {
    if dom == DOMID_SELF { "itself".into() } else { format!("domain {}", dom.0) }
}

fn ports(list: &[Port]) -> String {
    list.iter().map(|port| port.0.to_string()).collect::<Vec<_>>().join(", ")
}

impl State {
    /// Says what a hypercall was about, after it was done. Nothing that it could not read, and no address of the host's.
    ///
    /// # Safety
    /// The arguments are right for `nr`.
    pub(crate) unsafe fn words(&self, caller: DomId, nr: Nr, args: [usize; 5], answer: isize) -> String {
        let (cmd, arg) = (args[0] as u32, args[1]);
        // SAFETY: the caller's, for each of them.
        let words = unsafe {
            match nr {
                Nr::EVENT_CHANNEL_OP => event_words(cmd, arg, answer >= 0),
                Nr::GRANT_TABLE_OP => grant_words(cmd, arg, args[2]),
                Nr::MEMORY_OP => memory_words(cmd, arg),
                Nr::SCHED_OP => sched_words(cmd, arg),
                Nr::VCPU_OP => vcpu_words(cmd, args[1], args[2]),
                Nr::CONSOLE_IO => Ok(format!("{} bytes", args[1])),
                Nr::SET_TIMER_OP => Ok(format!("at {} ns", args[0])),
                Nr::UPDATE_VA_MAPPING => Ok(self.mapping_words(caller, args[0], args[1] as u64)),
                Nr::MMU_UPDATE => Ok(format!("{} update(s)", args[1])),
                Nr::MULTICALL => Ok(format!("{} call(s)", args[1])),
                _ => Ok(String::new()),
            }
        };
        words.unwrap_or_else(|_| "an argument that can't be read".into())
    }

    fn mapping_words(&self, caller: DomId, va: usize, pte: u64) -> String {
        let page = self.page_words(caller, va);
        if pte & 1 == 0 {
            format!("nothing at {page}")
        } else {
            format!("frame {} at {page}", (pte & !(1 << 63)) >> 12)
        }
    }

    /// Names a page of a domain by its place in the domain's range.
    pub(crate) fn page_words(&self, dom: DomId, va: usize) -> String {
        match self.space(dom).place(va) {
            Some(page) => format!("page {page}"),
            None => "a page".into(),
        }
    }
}

impl State {
    /// Takes down what became of a mapping.
    pub(crate) fn note_map(&mut self, caller: DomId, op: &GnttabMapGrantRef) {
        if !self.trace.is_on() {
            return;
        }
        let at =
            self.dom(caller).space.host_addr(op.host_addr).map_or("nowhere".into(), |at| self.page_words(caller, at));
        let access = if op.flags & GNTMAP_readonly == 0 { "" } else { ", read-only" };
        let handle = if op.status == GNTST_okay { format!(", handle {}", op.handle.0) } else { String::new() };
        let (gref, status) = (op.r#ref.0, GrantStatus(op.status));
        let words = format!("maps {gref} of {} at {at}{access}: {status}{handle}", domain(op.dom));
        self.note(Some(caller), || What::Grant(words));
    }

    /// Takes down what became of a mapping that was to end.
    pub(crate) fn note_unmap(&mut self, caller: DomId, op: &GnttabUnmapGrantRef, mapping: Option<Mapping>) {
        let status = GrantStatus(op.status);
        self.note(Some(caller), || match mapping {
            Some(Mapping { dom, gref, .. }) => What::Grant(format!("unmaps {gref} of {}: {status}", domain(dom))),
            None => What::Grant(format!("unmaps handle {}, which it does not have: {status}", op.handle.0)),
        });
    }

    /// Takes down what became of a copy.
    pub(crate) fn note_copy(&mut self, caller: DomId, op: &GnttabCopy) {
        let side = |side: &GnttabCopyPtr, by_ref| {
            // SAFETY: both members are plain integers, and the flag says which one was meant.
            let gref = (op.flags & by_ref != 0).then_some(unsafe { side.u.r#ref }.0);
            gref.map_or("an own page".into(), |gref| format!("{gref} of {}", domain(side.domid)))
        };
        self.note(Some(caller), || {
            let (from, to) = (side(&op.source, GNTCOPY_source_gref), side(&op.dest, GNTCOPY_dest_gref));
            What::Grant(format!("copies {} bytes from {from} to {to}: {}", op.len, GrantStatus(op.status)))
        });
    }
}

unsafe fn event_words(cmd: u32, arg: usize, done: bool) -> Result<String, i32> {
    let got = |port: Port| if done { format!(" → port {}", port.0) } else { String::new() };
    // SAFETY: the caller's: the argument is the structure of the command.
    Ok(unsafe {
        match cmd {
            EVTCHNOP_alloc_unbound => {
                let op: EvtchnAllocUnbound = copy_in(arg)?;
                format!("of {} for {}{}", domain(op.dom), domain(op.remote_dom), got(op.port))
            }
            EVTCHNOP_bind_interdomain => {
                let op: EvtchnBindInterdomain = copy_in(arg)?;
                format!("port {} of {}{}", op.remote_port.0, domain(op.remote_dom), got(op.local_port))
            }
            EVTCHNOP_bind_virq => {
                let op: EvtchnBindVirq = copy_in(arg)?;
                let name = match op.virq {
                    VIRQ_TIMER => "VIRQ_TIMER".into(),
                    VIRQ_DEBUG => "VIRQ_DEBUG".into(),
                    VIRQ_DOM_EXC => "VIRQ_DOM_EXC".into(),
                    other => format!("virq {other}"),
                };
                format!("{name} of vcpu {}{}", op.vcpu, got(op.port))
            }
            EVTCHNOP_bind_ipi => {
                let op: EvtchnBindIpi = copy_in(arg)?;
                format!("vcpu {}{}", op.vcpu, got(op.port))
            }
            EVTCHNOP_bind_vcpu => {
                let op: EvtchnBindVcpu = copy_in(arg)?;
                format!("port {} to vcpu {}", op.port.0, op.vcpu)
            }
            EVTCHNOP_status => {
                let op: EvtchnStatus = copy_in(arg)?;
                format!("port {} of {}", op.port.0, domain(op.dom))
            }
            EVTCHNOP_close => format!("port {}", copy_in::<EvtchnClose>(arg)?.port.0),
            EVTCHNOP_send => format!("port {}", copy_in::<EvtchnSend>(arg)?.port.0),
            EVTCHNOP_unmask => format!("port {}", copy_in::<EvtchnUnmask>(arg)?.port.0),
            EVTCHNOP_reset => domain(copy_in::<EvtchnReset>(arg)?.dom),
            _ => String::new(),
        }
    })
}

unsafe fn grant_words(cmd: u32, arg: usize, count: usize) -> Result<String, i32> {
    // SAFETY: the caller's: the argument is a list of so many structures of the command.
    Ok(unsafe {
        match cmd {
            GNTTABOP_setup_table if count == 1 => {
                let op: GnttabSetupTable = copy_in(arg)?;
                format!("{} frame(s) of {}", op.nr_frames, domain(op.dom))
            }
            GNTTABOP_set_version if count == 1 => format!("version {}", copy_in::<GnttabSetVersion>(arg)?.version),
            _ => format!("{count} entries"),
        }
    })
}

unsafe fn memory_words(cmd: u32, arg: usize) -> Result<String, i32> {
    // SAFETY: the caller's: the argument is the structure of the command.
    Ok(unsafe {
        match cmd {
            XENMEM_add_to_physmap => {
                let op: XenAddToPhysmap = copy_in(arg)?;
                format!("index {} of space {} at frame {}", op.idx, op.space, op.gpfn.0)
            }
            XENMEM_remove_from_physmap => format!("frame {}", copy_in::<XenRemoveFromPhysmap>(arg)?.gpfn.0),
            XENMEM_populate_physmap => format!("{} frame(s)", copy_in::<XenMemoryReservation>(arg)?.nr_extents),
            _ => String::new(),
        }
    })
}

unsafe fn sched_words(cmd: u32, arg: usize) -> Result<String, i32> {
    // SAFETY: the caller's: the argument is the structure of the command.
    Ok(unsafe {
        match cmd {
            SCHEDOP_shutdown => format!("reason {}", copy_in::<SchedShutdown>(arg)?.reason),
            SCHEDOP_poll => {
                let op: SchedPoll = copy_in(arg)?;
                let mut list = Vec::new();
                // As many as the mock itself would read.
                for index in 0..op.nr_ports.min(128) as usize {
                    list.push(copy_in(op.ports.0.expose_provenance() + index * size_of::<Port>())?);
                }
                let until = if op.timeout == 0 { String::new() } else { format!(" until {} ns", op.timeout) };
                format!("port {}{until}", ports(&list))
            }
            _ => String::new(),
        }
    })
}

unsafe fn vcpu_words(cmd: u32, vcpu: usize, arg: usize) -> Result<String, i32> {
    if cmd == VCPUOP_set_singleshot_timer {
        // SAFETY: the caller's: the argument is the structure of the command.
        let op: VcpuSetSingleshotTimer = unsafe { copy_in(arg)? };
        return Ok(format!("vcpu {vcpu} at {} ns", op.timeout_abs_ns));
    }
    Ok(format!("vcpu {vcpu}"))
}

/// Takes a message of a store ring down.
pub(crate) fn message(is_request: bool, bytes: &[u8]) -> What {
    let (header, payload) = bytes.split_at(size_of::<XsdSockmsg>().min(bytes.len()));
    let (words, _) = header.as_chunks::<4>();
    let word = |index: usize| words.get(index).copied().map_or(0, u32::from_le_bytes);
    let (op, transaction) = (XsdSockmsgType(word(0)), word(2));
    let kind = match op {
        XsdSockmsgType::WATCH_EVENT if !is_request => Message::Watch,
        _ if is_request => Message::Request,
        _ => Message::Reply,
    };
    let shown = &payload[..payload.len().min(PAYLOAD)];
    let parts: Vec<String> = shown.split(|byte| *byte == 0).map(|part| part.escape_ascii().to_string()).collect();
    let mut text = parts.join(" ").trim_end().to_string();
    if shown.len() < payload.len() {
        text.push('…');
    }
    let within = if transaction == 0 { String::new() } else { format!(" in transaction {transaction}") };
    let name = if kind == Message::Watch { String::new() } else { format!("{}{within} ", store_command(op)) };
    What::Store(kind, format!("{name}{text}"))
}

fn store_command(op: XsdSockmsgType) -> String {
    let name = match op {
        XsdSockmsgType::CONTROL => "control",
        XsdSockmsgType::DIRECTORY => "directory",
        XsdSockmsgType::READ => "read",
        XsdSockmsgType::GET_PERMS => "get_perms",
        XsdSockmsgType::WATCH => "watch",
        XsdSockmsgType::UNWATCH => "unwatch",
        XsdSockmsgType::TRANSACTION_START => "transaction_start",
        XsdSockmsgType::TRANSACTION_END => "transaction_end",
        XsdSockmsgType::INTRODUCE => "introduce",
        XsdSockmsgType::RELEASE => "release",
        XsdSockmsgType::GET_DOMAIN_PATH => "get_domain_path",
        XsdSockmsgType::WRITE => "write",
        XsdSockmsgType::MKDIR => "mkdir",
        XsdSockmsgType::RM => "rm",
        XsdSockmsgType::SET_PERMS => "set_perms",
        XsdSockmsgType::ERROR => "error",
        XsdSockmsgType::IS_DOMAIN_INTRODUCED => "is_domain_introduced",
        XsdSockmsgType::RESUME => "resume",
        XsdSockmsgType::SET_TARGET => "set_target",
        XsdSockmsgType::RESET_WATCHES => "reset_watches",
        XsdSockmsgType::DIRECTORY_PART => "directory_part",
        XsdSockmsgType(other) => return format!("operation {other}"),
    };
    name.into()
}
