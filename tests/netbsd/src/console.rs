//! The kernel's console, as tests use it.

use std::ffi::{c_char, c_int, c_void};

use crate::Kernel;
use crate::kernel::{balance, own};

/// The kernel's console, and the terminal on it.
#[derive(Clone, Copy, Debug)]
pub struct Console;

unsafe extern "C" {
    fn host_conf_xencons();
    fn host_cons_early(page: *mut c_void, port: u32);
    fn host_cons_attach();
    fn host_cons_put(text: *const c_char, len: usize);
    fn host_cons_get() -> c_int;
    fn host_cons_poll(on: c_int);
    fn host_magics() -> c_int;
    fn host_tty_open() -> c_int;
    fn host_tty_close() -> c_int;
    fn host_tty_write(text: *const c_char, len: usize);
    fn host_tty_input(text: *mut c_char, len: usize) -> usize;
}

impl Console {
    /// Takes a kernel that has a console, and neither disks nor a grant table. Its first steps come with `early`, before anything
    /// is attached, if this is the first test.
    ///
    /// # Panics
    /// As [`Kernel::take`].
    pub fn boot(early: &[u8]) -> (Kernel, Self) {
        let mut kernel = Kernel::take(host_conf_xencons, false);
        if std::mem::take(&mut kernel.fresh) {
            let start = own().domain.start();
            // SAFETY: the page of the domain's console; once.
            unsafe { host_cons_early(start.console.expect("a console").as_ptr().cast(), start.console_port.0) };
            Self.put(early);
            // SAFETY: once.
            unsafe { host_cons_attach() };
            kernel.balance = balance();
        }
        (kernel, Self)
    }

    /// Writes as the kernel does, byte by byte.
    pub fn put(self, text: &[u8]) {
        // SAFETY: text of that length.
        unsafe { host_cons_put(text.as_ptr().cast(), text.len()) };
    }

    /// Reads a byte as the kernel does; waits for it.
    pub fn get(self) -> u8 {
        // SAFETY: the console is there.
        unsafe { host_cons_get() as u8 }
    }

    /// Begins, or ends, what the debugger does.
    pub fn poll(self, on: bool) {
        // SAFETY: the console is there.
        unsafe { host_cons_poll(c_int::from(on)) };
    }

    /// Returns how often the word for the debugger has come in.
    pub fn magics(self) -> i32 {
        // SAFETY: only looks.
        unsafe { host_magics() }
    }

    /// Opens the terminal.
    pub fn open(self) -> i32 {
        // SAFETY: the console is there.
        unsafe { host_tty_open() }
    }

    /// Closes the terminal, when all is written.
    pub fn close(self) -> i32 {
        // SAFETY: the console is there.
        unsafe { host_tty_close() }
    }

    /// Writes to the terminal, as a process.
    pub fn write(self, text: &[u8]) {
        // SAFETY: text of that length.
        unsafe { host_tty_write(text.as_ptr().cast(), text.len()) };
    }

    /// Returns what has come in at the terminal since this was last asked.
    pub fn input(self) -> Vec<u8> {
        let mut text = vec![0; 4096];
        // SAFETY: room of that length.
        let count = unsafe { host_tty_input(text.as_mut_ptr().cast(), text.len()) };
        text.truncate(count);
        text
    }
}
