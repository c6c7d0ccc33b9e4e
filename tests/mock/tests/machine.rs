//! Memory, time and the smaller hypercalls of the mock.

mod common;

use std::collections::BTreeSet;

use common::*;
use hypercall::call::{console, event_channel, memory, mmu, sched, vcpu, version};
use hypercall::mem::{PAGE_SIZE, Pages};
use hypercall::{DomId, Hypervisor, Nr, Platform, Region, XenError};
use mock::{Backing, Config, Domain, DomainConfig, Life, Machine};
use xen_sys::memory::{XENMEM_current_reservation, XenMemoryDomain};
use xen_sys::sched::{SCHEDOP_poll, SHUTDOWN_crash, SchedPoll};
use xen_sys::version::*;
use xen_sys::xen::*;

fn one() -> (Machine, Domain) {
    let machine = Machine::deterministic(1);
    let domain = machine.create(DomainConfig::default());
    (machine, domain)
}

fn frames(domain: &Domain, pages: usize) -> Vec<u64> {
    let pages = Pages::new(domain, pages).expect("pages");
    (0..pages.count()).map(|index| pages.gfn(index).0).collect()
}

#[test]
fn pages_are_zeroed_even_if_they_were_used_before() {
    for config in [Config::deterministic(1), Config::deterministic(1).plain()] {
        let machine = Machine::new(Config { frames: 16, ..config });
        let domain = machine.create(DomainConfig { pages: 5, ..DomainConfig::default() });
        for _ in 0..8 {
            let pages = Pages::new(&domain, 3).expect("pages");
            let mut bytes = [1; 3 * PAGE_SIZE];
            pages.shared().read(0, &mut bytes);
            assert!(bytes.iter().all(|byte| *byte == 0));
            pages.shared().write(0, &[0xa5; 3 * PAGE_SIZE]);
        }
    }
}

#[test]
fn frames_are_unique_and_never_neighbours() {
    for seed in 0..if cfg!(miri) { 2 } else { 20 } {
        let machine = Machine::new(Config { frames: 40, ..Config::deterministic(seed) });
        let frames = frames(&machine.create(DomainConfig::default()), 30);
        assert!(frames.windows(2).all(|two| two[1] != two[0] + 1), "{frames:?}");
        assert_eq!(frames.iter().collect::<BTreeSet<_>>().len(), 30);
    }
}

#[test]
fn the_same_seed_draws_the_same_frames_and_another_seed_others() {
    let drawn = |seed| {
        let machine = Machine::deterministic(seed);
        frames(&machine.create(DomainConfig::default()), 8)
    };
    assert_eq!(drawn(3), drawn(3));
    assert_ne!(drawn(3), drawn(4));
}

#[test]
fn a_domain_gets_no_more_pages_than_it_may_have() {
    let machine = Machine::deterministic(1);
    let domain = machine.create(DomainConfig { pages: 6, unbacked: 4, ..DomainConfig::default() });
    assert_eq!(memory::current_reservation(&domain), Ok(2), "the rings that it starts with");
    assert_eq!(memory::maximum_reservation(&domain), Ok(6));
    assert!(Pages::new(&domain, 5).is_err());
    let four = Pages::new(&domain, 4).expect("exactly what is left");
    assert_eq!(memory::current_reservation(&domain), Ok(6));
    assert!(Pages::new(&domain, 1).is_err());
    drop(four);
    assert_eq!(memory::current_reservation(&domain), Ok(2));
    assert!(domain.alloc(Region::Unbacked, 5).is_none());
    assert!(domain.alloc(Region::Unbacked, 0).is_none());
    let mut other = XenMemoryDomain { domid: DomId(0) };
    assert_eq!(raw(&domain, Nr::MEMORY_OP, XENMEM_current_reservation, &mut other, 0), -1);
    other.domid = DomId(99);
    assert_eq!(raw(&domain, Nr::MEMORY_OP, XENMEM_current_reservation, &mut other, 0), -3);
}

#[test]
fn a_domain_maps_its_own_frames_only() {
    let (machine, domain) = one();
    let page = Pages::new(&domain, 1).expect("a page");
    let va = room(&domain);
    let map = |frame: u64| {
        // SAFETY: nothing but this test uses the address.
        unsafe { mmu::update_va_mapping(&domain, va.as_ptr().expose_provenance(), frame << 12 | 3, 0) }
    };
    assert_eq!(map(machine.dom0().gfn_of(machine.dom0().start().store).0), Err(XenError::EINVAL));
    assert_eq!(map(5), Err(XenError::EPERM));
    assert_eq!(map(page.gfn(0).0), Ok(()));
    page.shared().write(8, b"seen twice");
    // SAFETY: mapped just now, and read by nobody else.
    let seen = unsafe { domain.mapped(va).add(8).cast::<[u8; 10]>().read() };
    assert_eq!(&seen, b"seen twice");
    // SAFETY: as above.
    let outside = unsafe { mmu::update_va_mapping(&domain, 0x1000, page.gfn(0).0 << 12 | 3, 0) };
    assert_eq!(outside, Err(XenError::EINVAL));
    // SAFETY: the reference is gone.
    unsafe { mmu::update_va_mapping(&domain, va.as_ptr().expose_provenance(), 0, 0) }.expect("it can be unmapped");
    free_room(&domain, va);
    drop(page);
    machine.check_quiet();
}

#[test]
fn waiting_jumps_to_the_deadline_when_nothing_happens() {
    let (machine, domain) = one();
    let start = domain.now_ns();
    domain.wait(&[], start + 5_000_000_000);
    let passed = domain.now_ns() - start;
    assert!((5_000_000_000..5_000_100_000).contains(&passed), "{passed}");
    machine.advance(1_000);
    assert!(domain.now_ns() - start >= 5_000_001_000);
}

#[test]
fn waiting_ends_at_once_when_an_event_is_pending() {
    let (_machine, domain) = one();
    let port = event_channel::bind_ipi(&domain, 0).expect("a port");
    event_channel::send(&domain, port).expect("bound");
    let start = domain.now_ns();
    domain.wait(&[port], start + 5_000_000_000);
    assert!(domain.now_ns() - start < 1_000_000);
}

#[test]
fn the_timer_raises_its_interrupt_when_it_is_due_and_not_before() {
    let (_machine, domain) = one();
    let port = event_channel::bind_virq(&domain, VIRQ_TIMER, 0).expect("free");
    let start = domain.now_ns();
    sched::set_timer(&domain, start + 3_000_000).expect("a time");
    domain.wait(&[port], start + 1_000_000);
    let early = domain.now_ns() - start;
    assert!((1_000_000..1_100_000).contains(&early), "{early}");
    sched::poll(&domain, &[port], start + 9_000_000).expect("a port");
    let due = domain.now_ns() - start;
    assert!((3_000_000..3_100_000).contains(&due), "{due}");
}

#[test]
#[should_panic(expected = "waits for ever")]
fn a_domain_that_waits_for_ever_fails_the_test() {
    let (_machine, domain) = one();
    loop {
        domain.wait(&[], u64::MAX);
    }
}

#[test]
fn polling_is_refused_with_xens_codes() {
    let (_machine, domain) = one();
    let far = domain.now_ns() + 1_000_000_000;
    assert_eq!(sched::poll(&domain, &[hypercall::Port(64)], far), Err(XenError::EINVAL), "not a port");
    assert_eq!(sched::poll(&domain, &[hypercall::Port(1); 129], far), Err(XenError::EINVAL), "too many");
    assert_eq!(sched::poll(&domain, &[hypercall::Port(1); 128], far), Ok(()));
    assert_eq!(plain(&domain, Nr::SCHED_OP, [SCHEDOP_poll as usize, 0, 0, 0, 0]), -14);
    let mut none = SchedPoll { nr_ports: 1, timeout: far, ..SchedPoll::default() };
    assert_eq!(raw(&domain, Nr::SCHED_OP, SCHEDOP_poll, &mut none, 0), -14, "no list of ports there");
    assert_eq!(sched::yield_now(&domain), Ok(()));
}

#[test]
fn a_domain_that_shuts_down_says_why() {
    let (machine, domain) = one();
    let dom0 = machine.dom0();
    let port = event_channel::bind_virq(&dom0, VIRQ_DOM_EXC, 0).expect("free");
    assert_eq!(machine.life(domain.id()), Some(Life::Running));
    sched::shutdown(&domain, SHUTDOWN_crash).expect("a reason");
    assert_eq!(machine.life(domain.id()), Some(Life::Shutdown(SHUTDOWN_crash)));
    assert_eq!(machine.life(DomId(99)), None);
    let start = dom0.now_ns();
    dom0.wait(&[port], start + 1_000_000_000);
    assert!(dom0.now_ns() - start < 1_000_000, "domain 0 is told");
}

#[test]
fn only_vcpus_that_there_are_can_be_asked_for() {
    let machine = Machine::deterministic(1);
    let domain = machine.create(DomainConfig { vcpus: 2, ..DomainConfig::default() });
    assert_eq!(vcpu::is_up(&domain, 0), Ok(true));
    assert_eq!(vcpu::is_up(&domain, 1), Ok(false));
    assert_eq!(vcpu::is_up(&domain, 2), Err(XenError::ENOENT));
}

#[test]
fn a_vcpu_runs_when_it_has_registers_and_was_told_to_until_it_is_told_not_to() {
    let machine = Machine::deterministic(1);
    let domain = machine.create(DomainConfig { vcpus: 2, ..DomainConfig::default() });
    // SAFETY: numbers; nothing but this test runs.
    unsafe {
        assert_eq!(vcpu::up(&domain, 1), Err(XenError::EINVAL));
        assert_eq!(vcpu::initialise(&domain, 1, &mut std::mem::zeroed()), Ok(()));
        assert_eq!(vcpu::initialise(&domain, 1, &mut std::mem::zeroed()), Err(XenError::EEXIST));
        assert_eq!(vcpu::is_up(&domain, 1), Ok(false));
        assert_eq!(vcpu::up(&domain, 1), Ok(()));
    }
    assert_eq!(vcpu::is_up(&domain, 1), Ok(true));
    assert_eq!(vcpu::down(&domain, 1), Ok(()));
    assert_eq!((vcpu::is_up(&domain, 1), vcpu::is_up(&domain, 0)), (Ok(false), Ok(true)));
}

#[test]
fn xens_console_is_domain_0s() {
    let (machine, domain) = one();
    assert_eq!(console::write(&domain, b"hello"), Err(XenError::EPERM));
    assert_eq!(console::write(&machine.dom0(), b"hello"), Ok(()));
    assert_eq!(machine.printed(DomId(0)), b"hello");
}

#[test]
fn the_mock_says_that_it_is_xen_4_17() {
    let (_machine, domain) = one();
    assert_eq!(plain(&domain, Nr::XEN_VERSION, [XENVER_version as usize, 0, 0, 0, 0]), 4 << 16 | 17);
    assert_eq!(plain(&domain, Nr::XEN_VERSION, [XENVER_pagesize as usize, 0, 0, 0, 0]), 4096);
    assert_eq!(plain(&domain, Nr::XEN_VERSION, [77, 0, 0, 0, 0]), -38);
    assert_eq!(version::version(&domain), Ok((4, 17)));
}

#[test]
fn unknown_hypercalls_do_not_exist() {
    let (machine, domain) = one();
    for nr in [Nr::PHYSDEV_OP, Nr::SYSCTL, Nr::DOMCTL, Nr(63), Nr(usize::MAX)] {
        assert_eq!(plain(&domain, nr, [0; 5]), -38);
    }
    assert_eq!(machine.ledger_of(domain.id()).all_hypercalls(), 5);
}

#[test]
fn a_multicall_does_its_calls_in_order_and_holds_each_result() {
    let (_machine, domain) = one();
    let entry = |op: Nr, args: [usize; 6]| MulticallEntry { op: op.0, result: 1, args };
    let mut calls = [
        entry(Nr::XEN_VERSION, [XENVER_pagesize as usize, 0, 0, 0, 0, 0]),
        entry(Nr(60), [0; 6]),
        entry(Nr::MULTICALL, [0; 6]),
        entry(Nr::XEN_VERSION, [XENVER_version as usize, 0, 0, 0, 0, 0]),
    ];
    // SAFETY: none of the calls takes a pointer.
    unsafe { hypercall::call::multicall(&domain, &mut calls) }.expect("the list is there");
    let results: Vec<isize> = calls.iter().map(|call| call.result as isize).collect();
    assert_eq!(results, [4096, -38, -22, 4 << 16 | 17], "one inside another is refused");
    // SAFETY: as above.
    unsafe { hypercall::call::multicall(&domain, &mut calls[..1]) }.expect("afterwards it works again");
}

#[test]
fn the_machine_to_physical_table_takes_own_frames_only() {
    let (machine, domain) = one();
    let page = Pages::new(&domain, 1).expect("a page");
    let foreign = machine.dom0().gfn_of(machine.dom0().start().store).0;
    let update = |frame: u64| MmuUpdate { ptr: frame << 12 | MMU_MACHPHYS_UPDATE, val: 1 };
    // SAFETY: the table is nobody's memory.
    let done = unsafe { mmu::mmu_update(&domain, &[update(page.gfn(0).0); 2]) };
    assert_eq!(done, Ok(2));
    // SAFETY: as above.
    assert_eq!(unsafe { mmu::mmu_update(&domain, &[update(foreign)]) }, Err(XenError::EINVAL));
}

#[test]
fn memory_that_is_held_is_a_leak_until_it_is_freed() {
    let (machine, domain) = one();
    machine.check_quiet();
    let page = Pages::new(&domain, 1).expect("a page");
    let port = event_channel::alloc_unbound(&domain, DomId(0)).expect("a port");
    let leaks: Vec<String> = machine.leaks().iter().map(ToString::to_string).collect();
    assert_eq!(leaks, ["domain 1: port 3 is open", "domain 1: 3 pages, before 2"]);
    machine.mark_usage();
    machine.check_quiet();
    event_channel::close(&domain, port).expect("open");
    drop(page);
    machine.check_quiet();
}

#[test]
fn a_plain_machine_shows_a_mapping_at_another_address() {
    let machine = Machine::new(Config::deterministic(1).plain());
    let domain = machine.create(DomainConfig { pages: 8, unbacked: 8, ..DomainConfig::default() });
    let page = Pages::new(&domain, 1).expect("a page");
    let va = room(&domain);
    assert_eq!(domain.mapped(va), va);
    // SAFETY: nothing else uses the address.
    unsafe { mmu::update_va_mapping(&domain, va.as_ptr().expose_provenance(), page.gfn(0).0 << 12 | 3, 0) }
        .expect("own");
    assert_eq!(domain.mapped(va), page.shared().as_ptr());
    // SAFETY: one byte further is in the page.
    let (further, there) = unsafe { (va.add(77), page.shared().as_ptr().add(77)) };
    assert_eq!(domain.mapped(further), there);
    // SAFETY: nobody looks there.
    unsafe { mmu::update_va_mapping(&domain, va.as_ptr().expose_provenance(), 0, 0) }.expect("mapped");
    free_room(&domain, va);
    assert_eq!(Config::deterministic(1).plain().backing, Backing::Plain);
}

#[test]
fn handles_may_outlive_the_machine() {
    let (machine, domain) = one();
    let page = Pages::new(&domain, 1).expect("a page");
    drop(machine);
    page.shared().write(0, b"still there");
    // SAFETY: no argument is a pointer.
    assert_eq!(unsafe { domain.hypercall(Nr::XEN_VERSION, [XENVER_version as usize, 0, 0, 0, 0]) }, 4 << 16 | 17);
}
