//! xencons(4) on the host, in a kernel that has no disks and no grant table: the other end is a back end in domain 0.
#![cfg(not(target_os = "none"))]

use std::sync::{Mutex, PoisonError};

use mock::Node;
use netbsd::Kernel;
use netbsd::console::Console;
use netbsd::interrupts;
use xencons::back;

/// Bytes of the ring that the kernel writes to.
const RING: usize = 2048;

/// What the kernel says before there is anything but a page.
const EARLY: &[u8] = b"a kernel begins\r\n";

/// The daemon's end. It may be read by several threads of a test.
struct Daemon(Mutex<back::Console<Node>>);

impl Daemon {
    fn new(kernel: &Kernel) -> Self {
        let end = kernel.machine().console(kernel.id());
        Self(Mutex::new(back::Console::attach(&kernel.toolstack(), end.domain, end.gref, end.port).unwrap()))
    }

    /// Takes what there is.
    fn read(&self) -> Vec<u8> {
        let mut text = [0; 300];
        let count = self.0.lock().unwrap_or_else(PoisonError::into_inner).read(&mut text).unwrap();
        text[..count].to_vec()
    }

    /// Takes so many bytes.
    fn read_all(&self, kernel: &Kernel, count: usize) -> Vec<u8> {
        let text = Mutex::new(Vec::new());
        kernel.wait("all is written", || {
            let mut text = text.lock().unwrap_or_else(PoisonError::into_inner);
            text.extend(self.read());
            text.len() >= count
        });
        text.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    /// Types.
    fn write(&self, kernel: &Kernel, text: &[u8]) {
        let sent = Mutex::new(0);
        kernel.wait("all is typed", || {
            let mut sent = sent.lock().unwrap_or_else(PoisonError::into_inner);
            *sent += self.0.lock().unwrap_or_else(PoisonError::into_inner).write(&text[*sent..]).unwrap();
            *sent == text.len()
        });
    }
}

/// Boots if nobody has, and has a daemon, which has read what was said before.
fn boot() -> (Kernel, Console, Daemon) {
    let (kernel, console) = Console::boot(EARLY);
    let daemon = Daemon::new(&kernel);
    static READ: std::sync::Once = std::sync::Once::new();
    READ.call_once(|| assert_eq!(daemon.read_all(&kernel, EARLY.len()), EARLY));
    (kernel, console, daemon)
}

/// Text that tells where in it one is.
fn text(len: usize) -> Vec<u8> {
    (0..len).map(|at| b"0123456789abcdefghijklmnopqrstuvwxyz\n"[(at + at / 37) % 37]).collect()
}

#[test]
fn what_the_kernel_says_before_anything_is_attached_comes_out() {
    // `boot` reads it, whichever test is first.
    let (kernel, console, daemon) = boot();
    console.put(b"and goes on");
    assert_eq!(daemon.read_all(&kernel, 11), b"and goes on");
    drop(daemon);
    kernel.give_back();
}

#[test]
fn a_terminal_takes_more_than_its_ring_whole_and_in_order() {
    let (kernel, console, daemon) = boot();
    assert_eq!(console.open(), 0);
    let long = text(20 * RING);
    let writer = {
        let long = long.clone();
        std::thread::spawn(move || {
            console.write(&long);
            assert_eq!(console.close(), 0);
        })
    };
    assert!(daemon.read_all(&kernel, long.len()) == long);
    writer.join().unwrap();
    drop(daemon);
    kernel.give_back();
}

#[test]
fn what_is_typed_reaches_the_line_discipline() {
    let (kernel, console, daemon) = boot();
    assert_eq!(console.open(), 0);
    let typed = text(3000);
    daemon.write(&kernel, &typed);
    let got = Mutex::new(Vec::new());
    kernel.wait("all came in", || {
        let mut got = got.lock().unwrap();
        got.extend(console.input());
        got.len() >= typed.len()
    });
    assert!(got.into_inner().unwrap() == typed);
    assert_eq!(console.close(), 0);
    drop(daemon);
    kernel.give_back();
}

#[test]
fn the_word_for_the_debugger_is_seen() {
    let (kernel, console, daemon) = boot();
    let before = console.magics();
    daemon.write(&kernel, b"++++ no, +++++ yes");
    kernel.wait("it is seen", || console.magics() == before + 1);
    kernel.wait("all came in", || console.input().ends_with(b"s"));
    drop(daemon);
    kernel.give_back();
}

#[test]
fn a_terminal_that_nobody_reads_costs_one_delay() {
    let (kernel, console, daemon) = boot();
    // Far more bytes than delays of a second would let pass while a test waits.
    let long = text(RING + 5000);
    console.put(&long);
    // What was lost is lost; what had room is there, and the console works as before.
    assert!(daemon.read_all(&kernel, RING) == long[..RING]);
    console.put(b"again");
    assert_eq!(daemon.read_all(&kernel, 5), b"again");
    drop(daemon);
    kernel.give_back();
}

#[test]
fn the_debugger_writes_and_reads_whatever_it_interrupted_and_the_console_goes_on() {
    let (kernel, console, daemon) = boot();
    console.put(b"before ");
    // The debugger stops all other processors when it begins and ends; what an interrupt finds in between it leaves to the debugger.
    interrupts::without(|| console.poll(true));
    console.put(b"db> ");
    daemon.write(&kernel, b"cont");
    assert_eq!([(); 4].map(|()| console.get()), *b"cont");
    interrupts::without(|| console.poll(false));
    console.put(b"after");
    assert_eq!(daemon.read_all(&kernel, 16), b"before db> after");
    assert_eq!(console.input(), b"");
    daemon.write(&kernel, b"x");
    kernel.wait("it came in", || console.input() == b"x");
    drop(daemon);
    kernel.give_back();
}

#[test]
fn a_panic_is_told_by_polling() {
    let (kernel, console, daemon) = boot();
    kernel.panicked(|| {
        console.put(b"panic: test");
        // Here nobody is really dead: the debugger, which a panic enters, leaves the console in order.
        console.poll(true);
        console.poll(false);
    });
    assert_eq!(daemon.read_all(&kernel, 11), b"panic: test");
    console.put(b"!");
    assert_eq!(daemon.read_all(&kernel, 1), b"!");
    drop(daemon);
    kernel.give_back();
}
