//! All other hypercalls that a driver or its kernel makes: memory, time, waiting, vcpus, version, console, page tables, lists of
//! calls.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use hypercall::call::{self, console, event_channel, memory, mmu, sched, vcpu, version};
use hypercall::mem::Pages;
use hypercall::{Nr, Platform, Port, Region};
use xen_sys::event_channel::EVTCHN_2L_NR_CHANNELS;
use xen_sys::features::*;
use xen_sys::memory::*;
use xen_sys::sched::*;
use xen_sys::vcpu::*;
use xen_sys::version::*;
use xen_sys::xen::*;

use super::{NOBODY, Subject, Transcript, XENS, answer, outcome};

/// A vcpu that there isn't.
const NO_VCPU: u32 = 40;
/// A short wait, long enough to be told from none.
const SOON_NS: u64 = 3_000_000;
/// When timers are due: late enough to be stopped before, by a script that somebody else's work may hold up.
const LATER_NS: u64 = 200_000_000;
/// A frame beyond what any processor can address, which not even domain 0 may take for a device's.
const NO_MFN: u64 = 0xffff_ffff;
/// Bits of a page-table entry: present, writable, user, accessed, dirty.
const PTE: u64 = 0x67;

/// Runs the script. No ports are left at its end, and the timer stands still.
pub(super) fn run<P: Platform>(subject: &Subject<'_, P>, transcript: &mut Transcript) {
    let script = &mut Script { subject, transcript };
    script.memory();
    script.page_tables();
    script.waiting();
    script.timer();
    script.vcpus();
    script.version();
    script.features();
    script.console();
    script.lists();
    script.unknown();
}

struct Script<'a, 'b, P: Platform> {
    subject: &'a Subject<'b, P>,
    transcript: &'a mut Transcript,
}

impl<P: Platform> Script<'_, '_, P> {
    fn step(&mut self, step: &str, outcome: impl core::fmt::Display) {
        self.transcript.step(step, outcome);
    }

    fn xen(&self) -> &P {
        &self.subject.platform
    }

    /// Makes a hypercall with an argument in Xen's memory, which no domain can read or write.
    fn of_xen(&self, nr: Nr, cmd: u32) -> String {
        // SAFETY: the argument can't be read or written, so nothing is.
        unsafe { self.subject.raw(nr, [cmd as usize, XENS, 0, 0, 0]) }
    }

    /// Makes a hypercall by numbers that mean no memory.
    fn plain(&self, nr: Nr, args: [usize; 5]) -> String {
        // SAFETY: the callers pass commands that don't exist, or that take plain numbers.
        unsafe { self.subject.raw(nr, args) }
    }

    fn memory(&mut self) {
        let (now, most) = (memory::current_reservation(self.xen()), memory::maximum_reservation(self.xen()));
        self.step("memory: current_reservation", outcome(&now));
        self.step("memory: maximum_reservation", outcome(&most));
        let within = now.is_ok_and(|now| now > 0 && most.is_ok_and(|most| now <= most));
        self.step("memory: the reservation is within the maximum", within);
        self.step("memory: maximum_ram_page", outcome(&memory::maximum_ram_page(self.xen())));
        for (command, name) in [(XENMEM_current_reservation, "current"), (XENMEM_maximum_reservation, "maximum")] {
            let mut of_nobody = XenMemoryDomain { domid: NOBODY };
            // SAFETY: the command's structure, without pointers.
            let ret = unsafe { self.subject.op(Nr::MEMORY_OP, command, &mut of_nobody, 0) };
            self.step(&format!("memory: {name}_reservation of no such domain"), ret);
        }
        self.step("memory: an argument in Xen's memory", self.of_xen(Nr::MEMORY_OP, XENMEM_current_reservation));
        self.step("memory: an unknown command", self.plain(Nr::MEMORY_OP, [63, 0, 0, 0, 0]));
    }

    fn page_tables(&mut self) {
        let Ok(page) = Pages::new(self.xen(), 1) else { panic!("no memory for a page") };
        let Some(room) = self.xen().alloc(Region::Unbacked, 1) else { panic!("no address space for a page") };
        let at = room.as_ptr().expose_provenance();
        let entry = page.gfn(0).0 << 12 | PTE;
        let set = |va: usize, entry: u64| {
            // SAFETY: the address is free address space of the script's, or one at which nothing can be mapped; what is
            // mapped is the script's own page, which it doesn't touch.
            outcome(&unsafe { mmu::update_va_mapping(self.xen(), va, entry, UVMF_INVLPG | UVMF_ALL) })
        };
        let steps = [
            ("update_va_mapping", at, entry),
            ("update_va_mapping to nothing", at, 0),
            ("update_va_mapping to nothing again", at, 0),
            ("update_va_mapping of a frame that there isn't", at, NO_MFN << 12 | PTE),
            ("update_va_mapping in Xen's memory", XENS, entry),
        ];
        let outcomes = steps.map(|(name, va, entry)| (name, set(va, entry)));
        set(at, 0);
        for (name, outcome) in outcomes {
            self.step(&format!("mmu: {name}"), outcome);
        }
        // SAFETY: nothing is mapped there any more.
        unsafe { self.xen().free(Region::Unbacked, room, 1) };
        self.step("mmu: mmu_update of nothing", outcome(&self.update(&[])));
        let foreign = MmuUpdate { ptr: NO_MFN << 12 | MMU_MACHPHYS_UPDATE, val: 0 };
        self.step("mmu: mmu_update of a frame that there isn't", outcome(&self.update(&[foreign])));
        self.step("mmu: mmu_update of a list in Xen's memory", {
            self.plain(Nr::MMU_UPDATE, [XENS, 1, 0, usize::from(DOMID_SELF.0), 0])
        });
    }

    fn update(&self, updates: &[MmuUpdate]) -> Result<usize, hypercall::XenError> {
        // SAFETY: the callers ask for nothing, or for what can't be.
        unsafe { mmu::mmu_update(self.xen(), updates) }
    }

    fn ipi(&self) -> Port {
        match event_channel::bind_ipi(self.xen(), 0) {
            Ok(port) => port,
            Err(error) => panic!("bind_ipi: {error}"),
        }
    }

    fn waiting(&mut self) {
        self.step("sched: yield", outcome(&sched::yield_now(self.xen())));
        let port = self.ipi();
        let sent = event_channel::send(self.xen(), port);
        assert!(sent.is_ok(), "send: {sent:?}");
        self.step("sched: poll a pending port", outcome(&sched::poll(self.xen(), &[port], 0)));
        self.step("sched: a port that was polled", self.subject.take(port));
        self.step("sched: poll until a time", self.poll_until(&[port]));
        self.step("sched: poll no port until a time", self.poll_until(&[]));
        self.step("sched: poll until a time that is past", outcome(&sched::poll(self.xen(), &[port], 1)));
        let beyond = Port(EVTCHN_2L_NR_CHANNELS as u32);
        self.step("sched: poll a port that can't be", self.poll_until(&[beyond]));
        self.step("sched: poll a port that can't be, behind a good one", self.poll_until(&[port, beyond]));
        self.step("sched: poll port 0", self.poll_until(&[Port(0)]));
        let closed = self.ipi();
        self.close(closed);
        self.step("sched: poll a closed port", self.poll_until(&[closed]));
        let many = Vec::from([port; 129]);
        self.step("sched: poll 128 ports", self.poll_until(&many[..128]));
        self.step("sched: poll 129 ports", self.poll_until(&many));
        self.close(port);
        self.step("sched: an argument in Xen's memory", self.of_xen(Nr::SCHED_OP, SCHEDOP_poll));
        self.step("sched: an unknown command", self.plain(Nr::SCHED_OP, [99, 0, 0, 0, 0]));
    }

    /// Polls ports for a short while, and tells whether it lasted.
    fn poll_until(&self, ports: &[Port]) -> String {
        let deadline = self.xen().now_ns() + SOON_NS;
        let polled = sched::poll(self.xen(), ports, deadline);
        let late = if polled.is_ok() && self.xen().now_ns() >= deadline { ", at that time" } else { "" };
        format!("{}{late}", outcome(&polled))
    }

    fn close(&self, port: Port) {
        let closed = event_channel::close(self.xen(), port);
        assert!(closed.is_ok(), "close: {closed:?}");
    }

    fn timer(&mut self) {
        let port = match event_channel::bind_virq(self.xen(), VIRQ_TIMER, 0) {
            Ok(port) => port,
            Err(error) => panic!("bind_virq: {error}"),
        };
        let later = self.xen().now_ns() + LATER_NS;
        let set = outcome(&sched::set_timer(self.xen(), later));
        let early = self.subject.take(port);
        self.step("timer: set_timer_op", format!("{set}, {early}, then {}", self.await_timer(port)));
        let set = outcome(&sched::set_timer(self.xen(), 1));
        self.step("timer: set_timer_op to a time that is past", format!("{set}, {}", self.await_timer(port)));
        let set = outcome(&sched::set_timer(self.xen(), self.xen().now_ns() + LATER_NS));
        let stopped = outcome(&sched::set_timer(self.xen(), 0));
        self.step("timer: set_timer_op to 0", format!("{set}, {stopped}, {}", self.await_timer(port)));

        let xen = &self.subject.platform;
        let single = |deadline, flags| outcome(&vcpu::set_singleshot_timer(xen, 0, deadline, flags));
        let set = single(xen.now_ns() + LATER_NS, VCPU_SSHOTTMR_future);
        self.step("timer: set_singleshot_timer", format!("{set}, {}", self.await_timer(port)));
        let set = single(1, VCPU_SSHOTTMR_future);
        self.step(
            "timer: set_singleshot_timer to a time that is past, with VCPU_SSHOTTMR_future",
            format!("{set}, {}", self.await_timer(port)),
        );
        let set = single(1, 0);
        self.step("timer: set_singleshot_timer to a time that is past", format!("{set}, {}", self.await_timer(port)));
        let set = single(xen.now_ns() + LATER_NS, 0);
        let stopped = outcome(&vcpu::stop_singleshot_timer(xen, 0));
        self.step("timer: stop_singleshot_timer", format!("{set}, {stopped}, {}", self.await_timer(port)));
        self.close(port);
    }

    /// Waits longer than any timer of the script, and tells whether its event came; forgets it.
    fn await_timer(&self, port: Port) -> &'static str {
        let _ = sched::poll(self.xen(), &[port], self.xen().now_ns() + 2 * LATER_NS);
        self.subject.take(port)
    }

    fn vcpus(&mut self) {
        self.step("vcpu: is_up", outcome(&vcpu::is_up(self.xen(), 0)));
        self.step("vcpu: the calling vcpu is up", vcpu::is_up(self.xen(), 0).is_ok_and(|up| up));
        self.step("vcpu: is_up of no such vcpu", outcome(&vcpu::is_up(self.xen(), NO_VCPU)));
        let info = vcpu::get_runstate_info(self.xen(), 0);
        self.step("vcpu: get_runstate_info", outcome(&info));
        self.step("vcpu: the calling vcpu runs", info.is_ok_and(|info| info.state == RUNSTATE_running));
        self.step("vcpu: get_runstate_info of no such vcpu", outcome(&vcpu::get_runstate_info(self.xen(), NO_VCPU)));
        let timer = vcpu::set_singleshot_timer(self.xen(), NO_VCPU, 1, 0);
        self.step("vcpu: set_singleshot_timer of no such vcpu", outcome(&timer));
        self.step("vcpu: stop_periodic_timer again", outcome(&vcpu::stop_periodic_timer(self.xen(), 0)));
        self.step("vcpu: down of no such vcpu", outcome(&vcpu::down(self.xen(), NO_VCPU)));
        let args = [VCPUOP_get_runstate_info as usize, 0, XENS, 0, 0];
        self.step("vcpu: an argument in Xen's memory", self.plain(Nr::VCPU_OP, args));
        self.step("vcpu: an unknown command", self.plain(Nr::VCPU_OP, [99, 0, 0, 0, 0]));
        self.step("vcpu: an unknown command of no such vcpu", self.plain(Nr::VCPU_OP, [99, 40, 0, 0, 0]));
    }

    fn version(&mut self) {
        self.step(
            "version: version",
            version::version(self.xen())
                .map_or_else(|error| outcome::<()>(&Err(error)), |(major, minor)| format!("{major}.{minor}")),
        );
        self.step("version: extraversion", outcome(&version::extraversion(self.xen())));
        let capabilities = version::capabilities(self.xen());
        let has_pv = capabilities.is_ok_and(|text| text.as_str().split(' ').any(|word| word == "xen-3.0-x86_64"));
        self.step("version: capabilities", format!("{}, PV guests: {has_pv}", outcome(&capabilities)));
        self.step("version: changeset", outcome(&version::changeset(self.xen())));
        let parameters = version::platform_parameters(self.xen());
        self.step(
            "version: platform_parameters",
            match parameters {
                Ok(start) => format!("ok, {start:#x}"),
                Err(error) => outcome::<()>(&Err(error)),
            },
        );
        self.step("version: pagesize", super::told(version::page_size(self.xen())));
        for command in [XENVER_extraversion, XENVER_get_features] {
            self.step(&format!("version: command {command} into Xen's memory"), self.of_xen(Nr::XEN_VERSION, command));
        }
        self.step("version: an unknown command", self.plain(Nr::XEN_VERSION, [99, 0, 0, 0, 0]));
    }

    fn features(&mut self) {
        let features = [
            (XENFEAT_writable_page_tables, "writable_page_tables"),
            (XENFEAT_writable_descriptor_tables, "writable_descriptor_tables"),
            (XENFEAT_auto_translated_physmap, "auto_translated_physmap"),
            (XENFEAT_pae_pgdir_above_4gb, "pae_pgdir_above_4gb"),
            (XENFEAT_mmu_pt_update_preserve_ad, "mmu_pt_update_preserve_ad"),
            (XENFEAT_highmem_assist, "highmem_assist"),
            (XENFEAT_gnttab_map_avail_bits, "gnttab_map_avail_bits"),
            (XENFEAT_hvm_callback_vector, "hvm_callback_vector"),
            (XENFEAT_dom0, "dom0"),
            (XENFEAT_memory_op_vnode_supported, "memory_op_vnode_supported"),
        ];
        for (feature, name) in features {
            let has = version::has_feature(self.xen(), feature);
            self.step(&format!("version: the feature {name}"), has.is_ok_and(|has| has));
        }
        self.step("version: get_features beyond the last word", outcome(&version::get_features(self.xen(), 1)));
    }

    fn console(&mut self) {
        self.step("console: write nothing", outcome(&console::write(self.xen(), b"")));
        let read = console::read(self.xen(), &mut []);
        self.step("console: read nothing", outcome(&read));
        let write = [CONSOLEIO_write as usize, 1, XENS, 0, 0];
        self.step("console: write from Xen's memory", self.plain(Nr::CONSOLE_IO, write));
        self.step("console: an unknown command", self.plain(Nr::CONSOLE_IO, [99, 0, 0, 0, 0]));
    }

    fn lists(&mut self) {
        let entry =
            |nr: Nr, args: [usize; 2]| MulticallEntry { op: nr.0, result: 0, args: [args[0], args[1], 0, 0, 0, 0] };
        let good = entry(Nr::XEN_VERSION, [XENVER_pagesize as usize, 0]);
        let bad = entry(Nr::EVENT_CHANNEL_OP, [99, 0]);
        let unknown = entry(Nr(47), [0, 0]);
        let far = entry(Nr(1 << 20), [0, 0]);
        let mut inner = [good];
        let nested = entry(Nr::MULTICALL, [inner.as_mut_ptr().expose_provenance(), 1]);
        let lists = [
            ("good, bad, good", Vec::from([good, bad, good])),
            ("unknown hypercalls", Vec::from([unknown, far, good])),
            ("a list in a list", Vec::from([nested, good])),
            ("nothing", Vec::new()),
        ];
        for (name, mut calls) in lists {
            // SAFETY: the calls take plain numbers, or don't exist; the inner list is valid for the time of the call.
            let made = unsafe { call::multicall(self.xen(), &mut calls) };
            let answers = calls.iter().map(|call| answer(call.result.cast_signed()));
            let answers: Vec<String> = core::iter::once(outcome(&made)).chain(answers).collect();
            self.step(&format!("multicall: {name}"), answers.join("; "));
        }
        self.step("multicall: a list in Xen's memory", self.plain(Nr::MULTICALL, [XENS, 1, 0, 0, 0]));
    }

    fn unknown(&mut self) {
        for number in [47, 55, 63, 64, 1 << 20] {
            self.step(&format!("hypercall {number}"), self.plain(Nr(number), [0; 5]));
        }
    }
}
