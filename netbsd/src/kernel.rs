//! The kernel as the drivers see it: memory, frame numbers, time and a log.

use core::ffi::{CStr, c_char, c_int};
use core::fmt::{self, Write};
use core::ptr::NonNull;

use hypercall::{Gfn, Hypervisor, Level, Nr, Platform, Port, Region, stub};

use crate::upcalls;

/// The kernel, and the name under which somebody speaks in its log: that of a device, as in "xbd0".
#[derive(Clone, Copy, Debug)]
pub struct Kernel {
    name: &'static CStr,
}

impl Kernel {
    /// The kernel, spoken to as `name`.
    pub const fn named(name: &'static CStr) -> Self {
        Self { name }
    }

    /// Returns the name.
    pub const fn name(&self) -> &'static CStr {
        self.name
    }
}

// SAFETY: the kernel's hypercall page enters the hypervisor that it runs on.
unsafe impl Hypervisor for Kernel {
    unsafe fn hypercall(&self, nr: Nr, args: [usize; 5]) -> isize {
        // SAFETY: Xen has filled the page before anything here runs; the caller answers for the arguments.
        unsafe { stub::hypercall_page(upcalls::hypercalls(), nr, args) }
    }
}

// SAFETY: the glue's functions hand out pages that nobody else owns, zeroed if they are memory, and know their frames.
unsafe impl Platform for Kernel {
    fn alloc(&self, region: Region, pages: usize) -> Option<NonNull<u8>> {
        // SAFETY: any count will do.
        let va = unsafe { upcalls::xenpv_pages_alloc(pages, region == Region::Memory) };
        NonNull::new(va).map(NonNull::cast)
    }

    unsafe fn free(&self, region: Region, va: NonNull<u8>, pages: usize) {
        // SAFETY: the caller's promise.
        unsafe { upcalls::xenpv_pages_free(va.as_ptr().cast(), pages, region == Region::Memory) }
    }

    fn gfn_of(&self, va: NonNull<u8>) -> Gfn {
        // SAFETY: the caller names a page of the kernel's; the kernel looks it up.
        Gfn(unsafe { upcalls::xenpv_frame(va.as_ptr().cast()) })
    }

    fn uninterrupted<T>(&self, work: impl FnOnce() -> T) -> T {
        // SAFETY: the level is put back as it was.
        let level = unsafe { upcalls::xenpv_splvm() };
        let done = work();
        // SAFETY: as above.
        unsafe { upcalls::xenpv_splx(level) };
        done
    }

    fn now_ns(&self) -> u64 {
        // SAFETY: needs nothing.
        unsafe { upcalls::xenpv_uptime_ns() }
    }

    /// Waits for a millisecond at most: events come by handlers, and whoever waits looks again.
    fn wait(&self, _: &[Port], deadline_ns: u64) {
        let us = deadline_ns.saturating_sub(self.now_ns()) / 1000;
        // SAFETY: needs nothing.
        unsafe { upcalls::xenpv_delay_us(us.clamp(1, 1000) as u32) };
    }

    fn log(&self, level: Level, line: fmt::Arguments<'_>) {
        let mut text = Line::default();
        // It fails only where the line is cut.
        let _ = text.write_fmt(line);
        let level: c_int = match level {
            Level::Error => upcalls::XENPV_LOG_ERROR,
            Level::Warn => upcalls::XENPV_LOG_WARN,
            Level::Info => upcalls::XENPV_LOG_INFO,
            Level::Debug => upcalls::XENPV_LOG_DEBUG,
        };
        // SAFETY: the name and the line are there for as long as the call lasts.
        unsafe { upcalls::xenpv_log(level, self.name.as_ptr(), text.bytes.as_ptr().cast(), text.len) }
    }
}

/// A line of text that needs no memory: what doesn't fit is cut.
pub(crate) struct Line {
    bytes: [u8; 240],
    len: usize,
}

impl Default for Line {
    fn default() -> Self {
        Self { bytes: [0; 240], len: 0 }
    }
}

impl Line {
    #[cfg(target_os = "none")]
    pub(crate) const fn as_ptr(&self) -> *const c_char {
        self.bytes.as_ptr().cast()
    }

    #[cfg(target_os = "none")]
    pub(crate) const fn len(&self) -> usize {
        self.len
    }
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = &mut self.bytes[self.len..];
        let count = text.len().min(room.len());
        for (to, from) in room.iter_mut().zip(text.bytes()) {
            // What a peer has written into the store must not move the cursor of a terminal.
            *to = if from.is_ascii_control() { b'?' } else { from };
        }
        self.len += count;
        if count == text.len() { Ok(()) } else { Err(fmt::Error) }
    }
}

/// Makes a name that the library was given its own for ever: devices come again under the same names.
///
/// # Safety
/// `name` is a C string that stays until the device is destroyed.
pub(crate) unsafe fn borrowed(name: *const c_char) -> &'static CStr {
    // SAFETY: the caller's promise; nothing of a device outlives it.
    unsafe { CStr::from_ptr(name) }
}
