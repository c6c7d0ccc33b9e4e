//! What the typed calls hand to the hypervisor, and what they make of its answer.

use std::cell::Cell;
use std::ptr::with_exposed_provenance_mut;

use hypercall::call::{console, memory, mmu, physdev, sched, trap, vcpu, version};
use hypercall::error::from_ret;
use hypercall::{Hypervisor, Nr, Port, XenError};
use xen_sys::arch_x86::xen::TrapInfo;
use xen_sys::features::XENFEAT_auto_translated_physmap;
use xen_sys::xen::MmuUpdate;

/// A hypervisor that notes the call, writes an answer behind the pointer in argument `writes.0`, and returns `ret`.
struct Recorder {
    called: Cell<(Nr, [usize; 5])>,
    writes: (usize, Vec<u8>),
    ret: isize,
}

impl Recorder {
    fn new(ret: isize) -> Self {
        Self { called: Cell::new((Nr(99), [0; 5])), writes: (0, Vec::new()), ret }
    }

    fn writing(argument: usize, bytes: &[u8]) -> Self {
        Self { writes: (argument, bytes.to_vec()), ..Self::new(0) }
    }

    fn nr(&self) -> Nr {
        self.called.get().0
    }

    fn args(&self) -> [usize; 5] {
        self.called.get().1
    }
}

// SAFETY: writes as many bytes as the test says that the call's structure has.
unsafe impl Hypervisor for Recorder {
    unsafe fn hypercall(&self, nr: Nr, args: [usize; 5]) -> isize {
        self.called.set((nr, args));
        let (argument, bytes) = &self.writes;
        if !bytes.is_empty() {
            let to = with_exposed_provenance_mut::<u8>(args[*argument]);
            // SAFETY: the test has chosen bytes that fit the structure.
            unsafe { to.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        }
        self.ret
    }
}

#[test]
fn errors_are_negative_answers() {
    assert_eq!(from_ret(0), Ok(0));
    assert_eq!(from_ret(7), Ok(7));
    assert_eq!(from_ret(-11), Err(XenError::EAGAIN));
    assert_eq!(from_ret(-11).unwrap_err().to_string(), "EAGAIN (11)");
    assert_eq!(from_ret(-4095).unwrap_err().to_string(), "unknown error (4095)");
}

#[test]
fn the_version_comes_apart_in_major_and_minor() {
    let xen = Recorder::new(4 << 16 | 17);
    assert_eq!(version::version(&xen), Ok((4, 17)));
    assert_eq!(xen.nr(), Nr::XEN_VERSION);
}

#[test]
fn a_text_ends_at_its_end_mark_or_at_what_is_no_text() {
    assert_eq!(version::extraversion(&Recorder::writing(1, b".5-pre\0rest")).unwrap().as_str(), ".5-pre");
    assert_eq!(version::extraversion(&Recorder::writing(1, &[b'x'; 16])).unwrap().as_str(), "xxxxxxxxxxxxxxxx");
    assert_eq!(version::extraversion(&Recorder::writing(1, b"ab\xff\0")).unwrap().as_str(), "ab");
}

#[test]
fn a_feature_is_a_bit_of_its_word() {
    let submap = 1_u32 << XENFEAT_auto_translated_physmap;
    let xen = Recorder::writing(1, &[[0; 4], submap.to_ne_bytes()].concat());
    assert_eq!(version::has_feature(&xen, XENFEAT_auto_translated_physmap), Ok(true));
    assert_eq!(version::has_feature(&xen, XENFEAT_auto_translated_physmap + 1), Ok(false));
}

#[test]
fn console_bytes_are_passed_by_length_and_address() {
    let xen = Recorder::new(0);
    console::write(&xen, b"hello").unwrap();
    assert_eq!((xen.nr(), xen.args()[0], xen.args()[1]), (Nr::CONSOLE_IO, 0, 5));
    let xen = Recorder { writes: (2, b"hi".to_vec()), ..Recorder::new(2) };
    let mut bytes = [0; 8];
    assert_eq!(console::read(&xen, &mut bytes), Ok(2));
    assert_eq!(&bytes[..2], b"hi");
    assert_eq!(console::write(&Recorder::new(-1), b"x"), Err(XenError::EPERM));
}

#[test]
fn scheduling_passes_what_it_is_given() {
    let xen = Recorder::new(0);
    sched::poll(&xen, &[Port(1), Port(2)], 5).unwrap();
    assert_eq!((xen.nr(), xen.args()[0]), (Nr::SCHED_OP, 3));
    sched::set_timer(&xen, 0x1_0000_0001).unwrap();
    assert_eq!((xen.nr(), xen.args()[0]), (Nr::SET_TIMER_OP, 0x1_0000_0001));
    assert_eq!(sched::block(&Recorder::new(-38)), Err(XenError::ENOSYS));
}

#[test]
fn page_table_calls_tell_how_much_was_done() {
    let xen = Recorder::writing(2, &2_u32.to_ne_bytes());
    // SAFETY: no page table is changed by a recorder.
    let done = unsafe { mmu::mmu_update(&xen, &[MmuUpdate::default(); 2]) };
    assert_eq!((done, xen.args()[1], xen.args()[3]), (Ok(2), 2, 0x7ff0));
    let xen = Recorder::new(0);
    // SAFETY: as above.
    unsafe { mmu::update_va_mapping(&xen, 0x1000, 0x2067, 2) }.unwrap();
    assert_eq!(xen.args(), [0x1000, 0x2067, 2, 0, 0]);
}

#[test]
#[should_panic(expected = "no end mark")]
fn a_trap_table_without_its_end_mark_is_not_passed() {
    // SAFETY: nothing traps.
    let _ = unsafe { trap::set_trap_table(&Recorder::new(0), &[TrapInfo { address: 1, ..TrapInfo::default() }]) };
}

#[test]
fn vcpus_are_named_in_the_second_argument() {
    let xen = Recorder::new(1);
    assert_eq!(vcpu::is_up(&xen, 3), Ok(true));
    assert_eq!((xen.nr(), xen.args()[1]), (Nr::VCPU_OP, 3));
    assert_eq!(vcpu::is_up(&Recorder::new(-2), 9), Err(XenError::ENOENT));
}

#[test]
fn a_memory_map_is_never_longer_than_its_room() {
    // The recorder claims more entries than there is room for.
    let xen = Recorder::writing(1, &9_u32.to_ne_bytes());
    let mut entries = [memory::MemoryMapEntry::default(); 2];
    assert_eq!(memory::memory_map(&xen, &mut entries), Ok(2));
    assert_eq!(memory::current_reservation(&Recorder::new(512)), Ok(512));
}

#[test]
fn interrupt_status_comes_back_in_the_argument() {
    let xen = Recorder::writing(1, &[[0; 4], 3_u32.to_ne_bytes()].concat());
    assert_eq!(physdev::irq_status_query(&xen, 9), Ok(3));
    assert_eq!(xen.nr(), Nr::PHYSDEV_OP);
}
