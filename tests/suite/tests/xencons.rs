//! The console: flow control, an other end that lies, and the last words of a kernel.
#![cfg(not(target_os = "none"))]

use hypercall::event::Channel;
use hypercall::grant::{GrantTable, SharedPages};
use hypercall::mem::Shared;
use hypercall::{Platform, XenError};
use mock::{Config, Domain, Machine, Node};
use xen_sys::io::console::XenconsInterface;
use xenbus::ring::RingError;
use xencons::front::panic_write;
use xencons::{back, front};

use std::mem::offset_of;
use std::sync::atomic::Ordering::SeqCst;

const IN: usize = 1024;
const OUT: usize = 2048;

type Events = hypercall::event::EventChannels<Domain>;
type Page = SharedPages<GrantTable<Domain>>;

/// A guest with a console, and the daemon that serves it.
struct Bed {
    guest: Node,
    daemon: Node,
    /// Both ends write here; a test may, too.
    page: Shared<'static>,
    machine: Machine,
}

impl Bed {
    fn new() -> (Self, front::Console<Events, Page>, back::Console<Node>) {
        let machine = Machine::new(Config::deterministic(1));
        let (guest, daemon) = (machine.boot(), machine.boot());
        machine.mark_usage();
        let page = SharedPages::new(&guest.grants, daemon.id, 1).unwrap();
        let gref = page.refs()[0];
        let view = page.shared();
        // SAFETY: the page is freed with the front end, which each test drops last of all that looks at the view.
        let view = unsafe { Shared::new(view.as_ptr(), view.len()) };
        let channel = Channel::offer(&guest.events, daemon.id).unwrap();
        let port = channel.port();
        let front = front::Console::new(page, channel);
        let back = back::Console::attach(&daemon, guest.id, gref, port).unwrap();
        // Binding signals once.
        daemon.events.take(back.port());
        guest.events.take(front.port());
        (Self { guest, daemon, page: view, machine }, front, back)
    }

    /// Writes one of the page's indices, as the other end could.
    fn lie(&self, offset: usize, value: u32) {
        self.page.word(offset).store(value, SeqCst);
    }

    fn ends(self, front: front::Console<Events, Page>, back: back::Console<Node>) {
        drop(back);
        drop(front);
        self.machine.check_quiet();
    }
}

fn text(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at % 251) as u8).collect()
}

#[test]
fn writer_is_stopped_by_a_full_ring_and_goes_on_when_it_is_told_of_room() {
    let (bed, mut front, mut back) = Bed::new();
    let text = text(OUT + 100);
    assert_eq!(front.write(&text), Ok(OUT));
    assert_eq!((front.room(), front.write(&text[OUT..])), (Ok(0), Ok(0)));
    assert!(bed.daemon.events.take(back.port()), "there is output");
    assert!(!bed.guest.events.take(front.port()));
    let mut got = vec![0; 300];
    assert_eq!(back.read(&mut got), Ok(300));
    assert!(bed.guest.events.take(front.port()), "there is room");
    assert_eq!(front.write(&text[OUT..]), Ok(100));
    let mut rest = vec![0; 2 * OUT];
    assert_eq!(back.read(&mut rest), Ok(OUT - 200));
    got.extend_from_slice(&rest[..OUT - 200]);
    assert_eq!(got, text);
    assert_eq!(front.counters().written, text.len() as u64);
    // Nothing to read, nothing to tell.
    bed.guest.events.take(front.port());
    assert_eq!(back.read(&mut rest), Ok(0));
    assert!(!bed.guest.events.take(front.port()));
    bed.ends(front, back);
}

#[test]
fn input_that_does_not_fit_stays_with_the_daemon() {
    let (bed, mut front, mut back) = Bed::new();
    let text = text(IN + 1);
    assert_eq!(back.write(&text), Ok(IN));
    assert!(bed.guest.events.take(front.port()));
    assert_eq!(back.write(&text[IN..]), Ok(0));
    let mut got = [0; IN + 1];
    assert_eq!(front.read(&mut got[..1]), Ok(1));
    assert!(bed.daemon.events.take(back.port()), "there is room");
    assert_eq!(back.write(&text[IN..]), Ok(1));
    assert_eq!(front.read(&mut got[1..]), Ok(IN));
    assert_eq!(got[..], text);
    assert_eq!((front.counters().read, front.counters().notifications), (IN as u64 + 1, 2));
    bed.ends(front, back);
}

#[test]
fn what_goes_through_is_the_same_whatever_the_pieces() {
    let (bed, mut front, mut back) = Bed::new();
    let text = text(50_000);
    let (mut sent, mut got, mut round) = (0, Vec::new(), 0);
    while got.len() < text.len() {
        round += 1;
        let piece = (sent + round * 37 % 700).min(text.len());
        sent += front.write(&text[sent..piece]).unwrap();
        let mut buffer = vec![0; round * 53 % 900];
        let count = back.read(&mut buffer).unwrap();
        got.extend_from_slice(&buffer[..count]);
    }
    assert_eq!(got, text);
    bed.ends(front, back);
}

#[test]
fn index_that_lies_breaks_its_direction_for_ever_and_leaves_the_other() {
    let out_cons = offset_of!(XenconsInterface, out_cons);
    let out_prod = offset_of!(XenconsInterface, out_prod);
    let in_cons = offset_of!(XenconsInterface, in_cons);
    let in_prod = offset_of!(XenconsInterface, in_prod);
    for claim in [1, 2, 1 << 31, u32::MAX / 2] {
        // Each index of the other end, as seen by each end: a reader that is ahead of its writer, a writer that is too far.
        let (bed, mut front, back) = Bed::new();
        bed.lie(out_cons, claim);
        let error = RingError::PeerOverflow { claimed: 0u32.wrapping_sub(claim), size: OUT as u32 };
        assert_eq!(front.write(b"x"), Err(error));
        bed.lie(out_cons, 0);
        assert_eq!((front.write(b"x"), front.room()), (Err(error), Err(error)));
        assert_eq!(front.read(&mut [0; 8]), Ok(0));
        bed.ends(front, back);

        let (bed, mut front, back) = Bed::new();
        let claimed = IN as u32 + claim;
        bed.lie(in_prod, claimed);
        let error = RingError::PeerOverflow { claimed, size: IN as u32 };
        assert_eq!(front.read(&mut [0; 8]), Err(error));
        bed.lie(in_prod, 0);
        assert_eq!(front.read(&mut [0; 8]), Err(error));
        assert_eq!(front.write(b"x"), Ok(1));
        bed.ends(front, back);

        let (bed, front, mut back) = Bed::new();
        let claimed = OUT as u32 + claim;
        bed.lie(out_prod, claimed);
        let error = RingError::PeerOverflow { claimed, size: OUT as u32 };
        assert_eq!(back.read(&mut [0; 8]), Err(error));
        bed.lie(out_prod, 0);
        assert_eq!(back.read(&mut [0; 8]), Err(error));
        assert_eq!(back.write(b"x"), Ok(1));
        bed.ends(front, back);

        let (bed, front, mut back) = Bed::new();
        bed.lie(in_cons, claim);
        let error = RingError::PeerOverflow { claimed: 0u32.wrapping_sub(claim), size: IN as u32 };
        assert_eq!(back.write(b"x"), Err(error));
        bed.lie(in_cons, 0);
        assert_eq!(back.write(b"x"), Err(error));
        assert_eq!(back.read(&mut [0; 8]), Ok(0));
        bed.ends(front, back);
    }
}

#[test]
fn full_rings_are_legal() {
    let (bed, mut front, mut back) = Bed::new();
    for _ in 0..5 {
        assert_eq!(front.write(&[1; OUT]), Ok(OUT));
        assert_eq!(back.write(&[2; IN]), Ok(IN));
        assert_eq!(back.read(&mut [0; OUT]), Ok(OUT));
        assert_eq!(front.read(&mut [0; IN]), Ok(IN));
    }
    bed.ends(front, back);
}

#[test]
fn daemon_that_comes_back_goes_on_where_the_last_one_stopped() {
    let (bed, mut front, mut back) = Bed::new();
    front.write(b"before ").unwrap();
    back.read(&mut [0; 3]).unwrap();
    // The page and the port are the toolstack's to hand out once more; here the guest offers both anew.
    front.write(b"after").unwrap();
    let rings = &mut xenbus::ring::bytes::ByteRings::console_back(bed.page);
    let mut got = [0; 32];
    let count = rings.rx.read(&mut got).unwrap();
    assert_eq!(&got[..count], b"ore after");
    bed.ends(front, back);
}

#[test]
fn last_words_go_out_behind_what_the_driver_has_written_and_not_shown_of_itself() {
    let (bed, mut front, mut back) = Bed::new();
    front.write(b"driver ").unwrap();
    // In the midst of a write: bytes are in the ring, the index is not.
    bed.page.write(offset_of!(XenconsInterface, out) + 7, b"half a line");
    bed.daemon.events.take(back.port());
    let now = bed.guest.platform.now_ns();
    let port = front.port();
    let done = panic_write(&bed.guest.platform, &bed.guest.events, bed.page, port, b"panic: nobody home", now);
    assert_eq!(done, 18);
    assert!(bed.daemon.events.take(back.port()), "the daemon is told");
    let mut got = [0; 64];
    let count = back.read(&mut got).unwrap();
    assert_eq!(&got[..count], b"driver panic: nobody home");
    bed.ends(front, back);
}

#[test]
fn console_goes_on_behind_what_a_debugger_has_written_and_read() {
    let (bed, mut front, mut back) = Bed::new();
    front.write(b"before ").unwrap();
    back.write(b"typed").unwrap();
    // The debugger knows nothing of the driver's object.
    let debugger = &mut xenbus::ring::bytes::ByteRings::console_front(bed.page);
    debugger.tx.write(b"debugger ").unwrap();
    assert_eq!(debugger.rx.read(&mut [0; 3]).unwrap(), 3);
    front.resync();
    front.write(b"after").unwrap();
    let mut got = [0; 64];
    let count = back.read(&mut got).unwrap();
    assert_eq!(&got[..count], b"before debugger after");
    let count = front.read(&mut got).unwrap();
    assert_eq!(&got[..count], b"ed");
    bed.ends(front, back);
}

#[test]
fn last_words_end_by_the_deadline_if_nobody_reads_them() {
    let (bed, front, back) = Bed::new();
    let start = bed.guest.platform.now_ns();
    let words = text(3 * OUT);
    let deadline = start + 250_000_000;
    let done = panic_write(&bed.guest.platform, &bed.guest.events, bed.page, front.port(), &words, deadline);
    assert_eq!(done, OUT, "what there is room for");
    let passed = bed.guest.platform.now_ns() - start;
    assert!((250_000_000..300_000_000).contains(&passed), "{passed} ns");
    bed.ends(front, back);
}

#[test]
fn last_words_to_a_daemon_that_is_dead_or_lies_do_not_wait() {
    let (bed, front, back) = Bed::new();
    bed.machine.kill(bed.daemon.id);
    let start = bed.guest.platform.now_ns();
    let write = |words: &[u8]| {
        panic_write(&bed.guest.platform, &bed.guest.events, bed.page, front.port(), words, start + 1_000_000_000)
    };
    assert_eq!(write(b"to nobody"), 9);
    bed.lie(offset_of!(XenconsInterface, out_cons), 5000);
    assert_eq!(write(b"to a liar"), 0);
    assert!(bed.guest.platform.now_ns() - start < 1_000_000);
    drop(back);
    drop(front);
}

#[test]
fn last_words_longer_than_the_ring_come_through_to_a_daemon_that_reads() {
    let machine = Machine::threaded();
    let (guest, daemon) = (machine.boot(), machine.boot());
    let page = SharedPages::new(&guest.grants, daemon.id, 1).unwrap();
    let channel = Channel::offer(&guest.events, daemon.id).unwrap();
    let mut back = back::Console::attach(&daemon, guest.id, page.refs()[0], channel.port()).unwrap();
    let words = text(if cfg!(miri) { OUT + 10 } else { 20 * OUT });
    let got = std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let (mut got, mut buffer) = (Vec::new(), [0; 333]);
            let deadline = daemon.platform.now_ns() + 60_000_000_000;
            while got.len() < words.len() {
                assert!(daemon.platform.now_ns() < deadline, "{} bytes came", got.len());
                let count = back.read(&mut buffer).unwrap();
                got.extend_from_slice(&buffer[..count]);
                if count == 0 {
                    daemon.platform.wait(&[back.port()], daemon.platform.now_ns() + 1_000_000);
                    daemon.events.take(back.port());
                }
            }
            got
        });
        let deadline = guest.platform.now_ns() + 60_000_000_000;
        let done = panic_write(&guest.platform, &guest.events, page.shared(), channel.port(), &words, deadline);
        assert_eq!(done, words.len());
        reader.join().unwrap()
    });
    assert_eq!(got, words);
    drop((back, channel));
    drop(page);
    machine.check_quiet();
}

#[test]
fn hypervisors_console_is_domain_0s_alone() {
    let machine = Machine::new(Config::deterministic(1));
    let first = front::HypervisorConsole::new(machine.dom0());
    assert_eq!(first.write(b"out of the serial port"), Ok(()));
    assert_eq!(machine.printed(machine.dom0().id()), b"out of the serial port");
    assert_eq!(first.read(&mut [0; 16]), Ok(0));
    let guest = front::HypervisorConsole::new(machine.boot().platform);
    assert_eq!(guest.write(b"x"), Err(XenError::EPERM));
    assert_eq!(guest.read(&mut [0; 16]), Err(XenError::EPERM));
}

/// The first console of a guest, which stands in a page that the toolstack has made and will make again.
#[test]
fn console_goes_on_in_the_page_of_a_restored_domain_with_another_daemon() {
    for config in [Config::deterministic(1), Config::deterministic(1).auto_translated()] {
        let machine = Machine::new(config);
        let (dom0, guest) = (machine.services(machine.dom0().id()), machine.boot());
        let start = guest.platform.start();
        // SAFETY: the page was made with the domain, which never frees it, and nobody else looks at it.
        let page = unsafe { Shared::<'static>::new(start.console.unwrap(), 4096) };
        let mut front = front::Console::new(page, Channel::adopt(&guest.events, start.console_port));
        let attach = || {
            let found = machine.console(guest.platform.id());
            back::Console::attach(&dom0, found.domain, found.gref, found.port).unwrap()
        };
        let mut old: back::Console<Node> = attach();
        assert_eq!(front.write(b"read, "), Ok(6));
        let mut got = [0; 64];
        assert_eq!(old.read(&mut got), Ok(6));
        front.write(b"unread, ").unwrap();

        assert_eq!(mock::suspend(&guest), Ok(mock::Suspended::Restored));
        let port = guest.platform.start().console_port;
        let mut new: back::Console<Node> = attach();
        dom0.events.take(new.port());
        front.resume(Channel::adopt(&guest.events, port));
        assert_eq!(front.port(), port);
        assert!(dom0.events.take(new.port()), "there may be something to read");
        assert_eq!(front.write(b"new"), Ok(3));
        let wiped = config.auto_translated;
        let count = new.read(&mut got).unwrap();
        assert_eq!(&got[..count], if wiped { &b"new"[..] } else { b"unread, new" });
        assert_eq!(new.write(b"typed"), Ok(5));
        assert!(guest.events.take(port), "by the new channel");
        assert_eq!(front.read(&mut got), Ok(5));
        // The last daemon has the page of before.
        assert_eq!(old.write(b"lost"), Ok(4));
        assert_eq!(front.read(&mut got), Ok(0));
        drop((old, new, front));
        machine.check_quiet();
    }
}
