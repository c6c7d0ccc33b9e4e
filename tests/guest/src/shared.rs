//! The page that Xen and the domain share: pending events, and the time.
//!
//! Events are masked for the whole processor, from Xen's entry on: no upcall ever comes. An event sets its port's bit, and
//! SCHEDOP_poll waits for such bits.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::Acquire, Ordering::Relaxed, Ordering::SeqCst, fence};

use hypercall::XenError;
use hypercall::call::sched;
use xen_sys::xen::{SharedInfo, VcpuTimeInfo};
use xen_sys::{Mfn, Port};

use crate::Bare;
use crate::boot::start_info;
use crate::memory::{map_frame, unmap_boot_page};

/// A page of the image that is replaced by the shared one.
#[repr(C, align(4096))]
struct Page(UnsafeCell<[u8; 4096]>);

// SAFETY: seen as `SharedInfo` alone, which is all atomics.
unsafe impl Sync for Page {}

static PAGE: Page = Page(UnsafeCell::new([0; 4096]));
static MAPPED: AtomicBool = AtomicBool::new(false);

/// Ports that one SCHEDOP_poll takes.
const POLL_PORTS_MAX: usize = 128;
/// How long a wait for more ports than that lasts at most before it looks at all of them again.
const MANY_PORTS_WAIT_NS: u64 = 1_000_000;

/// Maps the shared page: once, and again after each [`remove`].
pub fn install() {
    map_frame(PAGE.0.get() as usize, Mfn((start_info().shared_info >> 12) as u64));
    MAPPED.store(true, Relaxed);
}

/// Takes the shared page away, as a domain that is saved may map frames of its own alone. Until [`install`] there is no time, and there
/// are no events.
pub fn remove() {
    MAPPED.store(false, Relaxed);
    unmap_boot_page(PAGE.0.get() as usize);
}

/// Returns the shared page, once it is mapped.
pub fn shared_info() -> Option<&'static SharedInfo> {
    // SAFETY: the page is mapped, long enough, and every byte of the type is atomic. Nobody looks at it during a suspend.
    MAPPED.load(Relaxed).then(|| unsafe { &*PAGE.0.get().cast::<SharedInfo>() })
}

/// Tells whether an event is pending on `port` (two-level ABI).
pub fn is_pending(port: Port) -> bool {
    let (word, bit) = (port.0 / usize::BITS, port.0 % usize::BITS);
    shared_info()
        .and_then(|info| info.evtchn_pending.get(word as usize))
        .is_some_and(|word| word.load(SeqCst) & 1 << bit != 0)
}

/// Forgets an event on `port`.
pub fn clear(port: Port) {
    let (word, bit) = (port.0 / usize::BITS, port.0 % usize::BITS);
    if let Some(word) = shared_info().and_then(|info| info.evtchn_pending.get(word as usize)) {
        word.fetch_and(!(1 << bit), SeqCst);
    }
}

/// Returns the address of the last page fault; 0 before the shared page is mapped. Xen writes it there, because a PV
/// domain can't read cr2.
pub fn fault_address() -> usize {
    shared_info().map_or(0, |info| info.vcpu_info[0].arch.cr2.load(Relaxed))
}

/// Waits for an event on one of `ports`, or for the clock. Xen refuses to wait for a port that is closed, as one may be since the
/// caller asked for it: then this returns at once.
///
/// # Panics
/// If Xen refuses for another reason.
pub fn wait(ports: &[Port], deadline_ns: u64) {
    let now = now_ns();
    let mut timeout = deadline_ns;
    if ports.len() > POLL_PORTS_MAX {
        if ports.iter().any(|&port| is_pending(port)) {
            return;
        }
        timeout = timeout.min(now + MANY_PORTS_WAIT_NS);
    }
    // A timeout of 0 would mean for ever.
    if timeout <= now {
        return;
    }
    let ports = &ports[..ports.len().min(POLL_PORTS_MAX)];
    // Xen takes the time for a signed number.
    let answer = sched::poll(&Bare, ports, timeout.min(i64::MAX as u64));
    assert!(matches!(answer, Ok(()) | Err(XenError::EINVAL)), "SCHEDOP_poll of {} ports: {answer:?}", ports.len());
}

/// Returns the time since Xen's start, in nanoseconds; 0 before the shared page is mapped.
pub fn now_ns() -> u64 {
    /// Xen corrects its idea of the clock's pace from time to time; what was once told is never taken back.
    static LAST: AtomicU64 = AtomicU64::new(0);
    let Some(info) = shared_info() else { return 0 };
    let time = &info.vcpu_info[0].time;
    let now = loop {
        // Xen makes the version odd before it writes, and even afterwards.
        let version = time.version.load(Acquire);
        let scale = Scale::read(time);
        // SAFETY: the instruction reads the clock, and has no other effect.
        let tsc = unsafe { core::arch::x86_64::_rdtsc() };
        // All that was read above is read before the version is read again.
        fence(Acquire);
        if version & 1 == 0 && time.version.load(Relaxed) == version {
            break scale.system_time(tsc);
        }
    };
    LAST.fetch_max(now, Relaxed).max(now)
}

/// How the processor's clock becomes nanoseconds: xen.h, struct vcpu_time_info.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    /// The clock when Xen last looked.
    pub tsc_timestamp: u64,
    /// Nanoseconds at that moment.
    pub system_time: u64,
    /// Nanoseconds a shifted tick, times 2³².
    pub tsc_to_system_mul: u32,
    /// Bits by which ticks are shifted, to the left if positive.
    pub tsc_shift: i8,
}

impl Scale {
    fn read(time: &VcpuTimeInfo) -> Self {
        Self {
            tsc_timestamp: time.tsc_timestamp.load(Relaxed),
            system_time: time.system_time.load(Relaxed),
            tsc_to_system_mul: time.tsc_to_system_mul.load(Relaxed),
            tsc_shift: time.tsc_shift.load(Relaxed),
        }
    }

    /// Returns the time at which the processor's clock stands at `tsc`. The clock may stand a little before Xen's look at
    /// it, on another processor: that is no time passed. Both wrap: the clock of a young domain counts from its birth, and
    /// Xen may have looked before that.
    pub fn system_time(self, tsc: u64) -> u64 {
        let ticks = tsc.wrapping_sub(self.tsc_timestamp).cast_signed().max(0) as u128;
        let shifted = match self.tsc_shift {
            shift @ 0.. => ticks << shift,
            shift => ticks >> shift.unsigned_abs(),
        };
        self.system_time + ((shifted * u128::from(self.tsc_to_system_mul)) >> 32) as u64
    }
}
