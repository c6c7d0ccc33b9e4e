//! xbd(4) on the host: the glue as the kernel compiles it, the library, and a back end in another domain.
#![cfg(not(target_os = "none"))]

#[path = "common/disk.rs"]
mod common;

use std::sync::atomic::Ordering::SeqCst;

use common::{EBUSY, EINVAL, EIO, EOPNOTSUPP, EROFS, SECTORS, XBD0, attach, to_the_end};
use hypercall::Port;
use hypercall::event::Channel;
use mock::{Fault, Kind};
use netbsd::Kernel;
use netbsd::kernel::{Failing, Transfer, as_panicked, counter, go_to_cpu};
use netbsd::memory::{Wired, on_next_frame};
use netbsd::peer::{DiskKind, Peer};
use netbsd::store::on_next_detach;
use suite::block;
use suite::toolstack::NewDevice;
use xbd::SECTOR;
use xen_sys::errno::XEN_ENOSPC;
use xen_sys::event_channel::EVTCHNOP_alloc_unbound;
use xenbus::store::{Store, Tx};

#[test]
fn a_disk_shows_its_size_and_goes_when_it_is_closed() {
    let kernel = Kernel::with_disks();
    let peer = attach(&kernel, DiskKind::PLAIN);
    assert_eq!(XBD0.size(), SECTORS as i32);
    kernel.wait_said("xbd0: 4096 KB, 512 bytes/sect x 8192 sectors, 4 queues\n");
    assert_eq!(XBD0.open(true, true), 0);
    assert_eq!(XBD0.open_mask(), 1);
    assert_eq!(XBD0.close(true), 0);
    assert_eq!(XBD0.open_mask(), 0);
    peer.detach(&kernel);
    kernel.give_back();
}

#[test]
fn a_read_only_disk_says_so_and_takes_no_write() {
    let kernel = Kernel::with_disks();
    let peer = attach(&kernel, DiskKind { read_only: true, ..DiskKind::PLAIN });
    kernel.wait_said("sectors, read-only, 4 queues\n");
    assert_eq!(XBD0.open(true, true), EROFS);
    assert_eq!(XBD0.open(true, false), 0);
    let (error, wired) = XBD0.transfer(false, 0, Wired::new(1), 0, SECTOR);
    assert_eq!(error, EROFS);
    assert_eq!(XBD0.raw(true, &wired, 0, SECTOR, 0), EROFS);
    let (error, wired) = XBD0.transfer(true, 8, wired, 0, SECTOR);
    assert_eq!((error, wired.bytes(0, SECTOR)), (0, peer.medium.bytes(8 * SECTOR, SECTOR)));
    drop(wired);
    assert_eq!(XBD0.close(true), 0);
    peer.detach(&kernel);
    kernel.give_back();
}

/// Numbers drawn by lot.
struct Lots(u64);

impl Lots {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % end as u64) as usize
    }
}

/// Transfers of a thread that may be under way at once, and the sectors that each has for itself: as many as the largest needs.
const SLOTS: usize = 8;
const SLOT_SECTORS: usize = 128;

/// Reads and writes at random in a part of the disk of its own, and knows what has to be there. Returns that.
fn shuffle(seed: u64, first: usize, mut known: Vec<u8>, rounds: usize, alignments: usize) -> Vec<u8> {
    let mut lots = Lots(seed);
    // The transfer, whether it reads, where on the disk, where in memory, how long.
    type UnderWay = (Transfer, bool, usize, usize, usize);
    let mut under_way: Vec<Option<UnderWay>> = (0..SLOTS).map(|_| None).collect();
    for round in 0..rounds + SLOTS {
        let slot = round % SLOTS;
        if let Some((transfer, read, at, offset, len)) = under_way[slot].take() {
            let (error, wired) = transfer.wait();
            assert_eq!(error, 0);
            if read {
                assert!(
                    wired.bytes(offset, len) == known[at..at + len],
                    "seed {seed}, round {round}: read other bytes"
                );
                let around = [wired.bytes(0, offset), wired.bytes(offset + len, 18 * 4096 - offset - len)].concat();
                assert!(
                    around.iter().all(|byte| *byte == 0xee),
                    "seed {seed}, round {round}: bytes beside the transfer"
                );
            }
        }
        if round >= rounds {
            continue;
        }
        let read = lots.below(2) == 0;
        let sectors = 1 + lots.below(SLOT_SECTORS);
        let at = (slot * SLOT_SECTORS + lots.below(SLOT_SECTORS - sectors + 1)) * SECTOR;
        // Aligned to pages, to sectors, or not at all.
        let offset = match lots.below(alignments) {
            0 => 0,
            1 => lots.below(8) * SECTOR,
            _ => 4 + lots.below(4000),
        };
        let len = sectors * SECTOR;
        let wired = Wired::new(18);
        wired.fill(0, &[0xee; 18 * 4096]);
        if !read {
            let data: Vec<u8> = (0..len / 8).flat_map(|_| lots.below(usize::MAX).to_le_bytes()).collect();
            wired.fill(offset, &data);
            known[at..at + len].copy_from_slice(&data);
        }
        let transfer = XBD0.start(read, (first + at / SECTOR) as u64, wired, offset, len);
        under_way[slot] = Some((transfer, read, at, offset, len));
    }
    known
}

#[test]
fn what_is_written_is_read_from_any_address_by_any_length_by_many_at_once() {
    const THREADS: usize = 4;
    const ROUNDS: usize = 160;
    let kernel = Kernel::with_disks();
    let peer = attach(&kernel, DiskKind::POOR);
    assert_eq!(XBD0.open(true, true), 0);
    let part = SLOTS * SLOT_SECTORS;
    // First aligned to sectors, so that the ring is full; then to nothing, so that the buffer for such memory is wanted.
    for (alignments, met) in [(2, c"queue_full"), (3, c"bounce_busy")] {
        let start = |at: usize| {
            let known = peer.medium.bytes(at * part * SECTOR, part * SECTOR);
            std::thread::spawn(move || shuffle(at as u64 + 1, at * part, known, ROUNDS, alignments))
        };
        peer.medium.hold.store(true, SeqCst);
        let threads: Vec<_> = (0..THREADS).map(start).collect();
        kernel.wait("too much for the ring", || counter(met) > 0);
        peer.medium.hold.store(false, SeqCst);
        for (at, thread) in threads.into_iter().enumerate() {
            let known = thread.join().unwrap();
            assert!(peer.medium.bytes(at * part * SECTOR, part * SECTOR) == known, "part {at} is not what was written");
        }
    }
    assert!(counter(c"requests") >= (2 * THREADS * ROUNDS) as u64 && counter(c"bounced") > 0);
    assert_eq!((counter(c"errors"), counter(c"kept")), (0, 0));
    assert_eq!(XBD0.close(true), 0);
    peer.detach(&kernel);
    kernel.give_back();
}

#[test]
fn a_large_transfer_of_the_character_device_is_cut_and_comes_whole() {
    let kernel = Kernel::with_disks();
    let peer = attach(&kernel, DiskKind::PLAIN);
    assert_eq!(XBD0.open(false, true), 0);
    let wired = Wired::new(64);
    let len = 60 * 4096 + SECTOR;
    assert_eq!(XBD0.raw(false, &wired, 100, len, 3), 0);
    assert!(wired.bytes(100, len) == peer.medium.bytes(3 * SECTOR, len));
    assert_eq!(XBD0.raw(true, &wired, 100, len, 1000), 0);
    assert!(peer.medium.bytes(1000 * SECTOR, len) == wired.bytes(100, len));
    drop(wired);
    assert_eq!(XBD0.close(false), 0);
    peer.detach(&kernel);
    kernel.give_back();
}

#[test]
fn what_is_beyond_the_end_or_no_whole_sector_is_refused() {
    let kernel = Kernel::with_disks();
    let peer = attach(&kernel, DiskKind::PLAIN);
    assert_eq!(XBD0.open(true, true), 0);
    let (error, wired) = XBD0.transfer(true, SECTORS as u64 - 1, Wired::new(1), 0, 2 * SECTOR);
    assert_eq!(error, EINVAL);
    let (error, wired) = XBD0.transfer(false, 0, wired, 0, 700);
    assert_eq!(error, EINVAL);
    drop(wired);
    assert_eq!(XBD0.close(true), 0);
    peer.detach(&kernel);
    kernel.give_back();
}

#[test]
fn a_cache_is_flushed_and_a_disk_without_one_says_so() {
    let kernel = Kernel::with_disks();
    let peer = attach(&kernel, DiskKind::PLAIN);
    assert_eq!(XBD0.open(false, true), 0);
    assert_eq!(XBD0.cache(), (0, 2));
    assert_eq!(XBD0.sync(), 0);
    assert_eq!(peer.medium.flushes.load(SeqCst), 1);
    assert_eq!(XBD0.close(false), 0);
    peer.detach(&kernel);

    let back = Script::connect(&kernel, &[("sectors", "64"), ("feature-flush-cache", "0")]);
    kernel.wait("the disk is there", || XBD0.size() == 64);
    assert_eq!(XBD0.open(false, true), 0);
    assert_eq!(XBD0.cache(), (0, 0));
    assert_eq!(XBD0.sync(), EOPNOTSUPP);
    assert_eq!(XBD0.close(false), 0);
    back.remove(&kernel);
    kernel.give_back();
}

#[test]
fn a_disk_in_use_is_not_taken_away_until_its_last_close() {
    let kernel = Kernel::with_disks();
    let peer = attach(&kernel, DiskKind::PLAIN);
    assert_eq!((XBD0.open(true, true), XBD0.open(false, false), XBD0.open(true, false)), (0, 0, 0));
    peer.device.ask_detach(&kernel.toolstack().store).unwrap();
    kernel.wait_said("xbd0: the back end wants to be closed, but the disk is in use\n");
    let (error, wired) = XBD0.transfer(true, 8, Wired::new(1), 0, SECTOR);
    assert_eq!((error, wired.bytes(0, SECTOR)), (0, peer.medium.bytes(8 * SECTOR, SECTOR)));
    drop(wired);
    assert_eq!((XBD0.close(true), XBD0.close(true)), (0, 0));
    assert_eq!(XBD0.open_mask(), 1);
    assert!(!kernel.log().contains("is free"));
    assert_eq!(XBD0.close(false), 0);
    peer.gone(&kernel);
    kernel.give_back();
}

#[test]
fn each_transfer_ends_once_if_the_back_end_vanishes() {
    let kernel = Kernel::with_disks();
    let peer = attach(&kernel, DiskKind::POOR);
    assert_eq!(XBD0.open(true, true), 0);
    peer.medium.hold.store(true, SeqCst);
    let before = peer.medium.taken.load(SeqCst);
    // More than the ring takes, and of all kinds, so that some wait in the queue and for the bounce buffer.
    let start = |at: usize| XBD0.start(at.is_multiple_of(2), at as u64 * 128, Wired::new(18), at % 3 * 256, 16 * 4096);
    let transfers: Vec<_> = (0..48).map(start).collect();
    let sync = std::thread::spawn(|| XBD0.sync());
    kernel.wait("the back end has some", || peer.medium.taken.load(SeqCst) > before + 8);
    assert!(transfers.iter().all(|transfer| !transfer.is_over()));
    peer.kill(&kernel);
    for transfer in transfers {
        assert_eq!(transfer.wait().0, EIO);
    }
    assert_eq!(sync.join().unwrap(), EIO);
    // The device is gone from below whoever had it open, who may close it still.
    assert_eq!((XBD0.size(), XBD0.close(true)), (-1, 0));
    kernel.give_back();
}

/// A back end that is nothing but what a test writes into the store.
struct Script(NewDevice<'static>);

impl Script {
    /// Makes the device; the front end is attached, and waits.
    fn new(kernel: &Kernel, back_nodes: &'static [(&'static str, &'static str)]) -> Self {
        let device = NewDevice { back_nodes, ..block::disk(kernel.id(), kernel.machine().boot().id) };
        device.attach(&kernel.toolstack().store).unwrap();
        kernel.wait_said("xbd0 at xenbus0");
        Self(device)
    }

    /// Goes as far as the front end's ring, and says that it is connected.
    fn connect(kernel: &Kernel, back_nodes: &'static [(&'static str, &'static str)]) -> Self {
        let this = Self::new(kernel, back_nodes);
        this.state(kernel, "2");
        kernel.wait("the front end has a ring", || this.front(kernel, "state").as_deref() == Some("3"));
        this.state(kernel, "4");
        this
    }

    /// Says in which state the back end is.
    fn state(&self, kernel: &Kernel, state: &str) {
        kernel.write(&format!("/local/domain/{}/{}/state", self.0.back.0, self.0.back_path()), state);
    }

    /// Reads a node of the front end.
    fn front(&self, kernel: &Kernel, node: &str) -> Option<String> {
        kernel.node(&format!("/local/domain/{}/{}/{node}", self.0.front.0, self.0.front_path()))
    }

    /// Takes the back end away.
    fn remove(self, kernel: &Kernel) {
        kernel.remove_back(&self.0);
        kernel.machine().kill(self.0.back);
        kernel.wait_said(&format!("{} is free", self.0.front_path()));
        self.0.clean_up(&kernel.toolstack().store).unwrap();
    }
}

#[test]
fn garbage_in_any_node_costs_the_device_and_no_more() {
    const GARBAGE: [&[(&str, &str)]; 10] = [
        &[],
        &[("sectors", "many")],
        &[("sectors", "18446744073709551615")],
        &[("sectors", "-1")],
        &[("sectors", "64"), ("sector-size", "17")],
        &[("sectors", "64"), ("sector-size", "\u{1b}[2J")],
        &[("sectors", "64"), ("sector-size", "8192")],
        &[("sectors", "64"), ("physical-sector-size", "0")],
        &[("sectors", "64"), ("info", "?")],
        &[("sectors", "64"), ("feature-flush-cache", "no")],
    ];
    for nodes in GARBAGE {
        let kernel = Kernel::with_disks();
        let back = Script::connect(&kernel, nodes);
        kernel.wait_said("xbd0: error: xbd device/vbd/51712: ");
        kernel.wait("nobody waits for the disk", || kernel.pending() == 0);
        assert_eq!(XBD0.size(), -1);
        assert!(!kernel.log().contains('\u{1b}'), "{:?}", kernel.log());
        back.remove(&kernel);
        kernel.give_back();
    }
}

#[test]
fn a_state_that_is_none_costs_the_device_and_no_more() {
    for (before, state) in [("1", "connected"), ("2", "99"), ("4", "")] {
        let kernel = Kernel::with_disks();
        let back = Script::new(&kernel, &[("sectors", "64")]);
        match before {
            "1" => {}
            "2" => back.state(&kernel, "2"),
            _ => {
                back.state(&kernel, "2");
                kernel.wait("the front end has a ring", || back.front(&kernel, "state").as_deref() == Some("3"));
                back.state(&kernel, "4");
                kernel.wait("the disk is there", || XBD0.size() == 64);
            }
        }
        back.state(&kernel, state);
        kernel.wait_said("xbd0: error: xbd device/vbd/51712: ");
        if before != "4" {
            kernel.wait("nobody waits for the disk", || kernel.pending() == 0);
        }
        back.remove(&kernel);
        kernel.give_back();
    }
}

#[test]
fn a_back_end_of_another_domain_than_it_says_is_refused() {
    let kernel = Kernel::with_disks();
    let mut device = block::disk(kernel.id(), kernel.machine().boot().id);
    device.front_nodes = &[("backend-id", "0")];
    device.attach(&kernel.toolstack().store).unwrap();
    kernel.wait_said("xbd0: can't be used, error 88\n");
    kernel.wait("nobody waits for the disk", || kernel.pending() == 0);
    Script(device).remove(&kernel);
    kernel.give_back();
}

#[test]
fn an_event_before_the_disk_is_connected_does_no_harm() {
    let kernel = Kernel::with_disks();
    let back = Script::new(&kernel, &[("sectors", "64")]);
    back.state(&kernel, "2");
    kernel.wait("the front end has a ring", || back.front(&kernel, "state").as_deref() == Some("3"));
    let port = back.front(&kernel, "event-channel").unwrap().parse().unwrap();
    let own = kernel.machine().services(back.0.back);
    let channel = Channel::bind(&own.events, kernel.id(), Port(port)).unwrap();
    for _ in 0..100 {
        channel.notify();
    }
    back.state(&kernel, "4");
    kernel.wait("the disk is there", || XBD0.size() == 64);
    drop(channel);
    back.remove(&kernel);
    kernel.give_back();
}

#[test]
fn a_detach_does_not_wait_for_a_watch_that_only_its_own_thread_could_tell_of() {
    let kernel = Kernel::with_disks();
    let back = Script::connect(&kernel, &[("sectors", "many")]);
    kernel.wait("the front end has closed", || back.front(&kernel, "state").as_deref() == Some("6"));
    // It says "Closed", which xenbus sees; then something else, before the front end has looked.
    let path = format!("/local/domain/{}/{}/state", back.0.back.0, back.0.back_path());
    let store = kernel.toolstack().store;
    on_next_detach(move || store.write_text(Tx::NONE, &path, 5).unwrap());
    back.state(&kernel, "6");
    let is_back =
        |kernel: &Kernel| kernel.node(&format!("/local/domain/{}/{}/state", back.0.back.0, back.0.back_path()));
    kernel.wait("it was seen", || is_back(&kernel).as_deref() == Some("5"));
    back.remove(&kernel);
    kernel.give_back();
}

#[test]
fn a_back_end_that_neither_answers_nor_goes_is_given_up_by_a_forced_detach() {
    const GIVEN_UP: &str = "xbd0: the back end neither answers nor goes; given up\n";
    // It says "Closed", which xenbus sees, and then "Connected". Whether the front end sees the first is a matter of luck; if it does,
    // the disk goes at once.
    let given_up = (0..40).any(|_| {
        let kernel = Kernel::with_disks();
        let back = Script::connect(&kernel, &[("sectors", "64")]);
        kernel.wait("the disk is there", || XBD0.open(true, true) == 0);
        let ended = std::thread::spawn(|| XBD0.transfer(false, 0, Wired::new(1), 0, SECTOR).0);
        kernel.wait("something is in flight", || counter(c"requests") >= 1);
        let path = format!("/local/domain/{}/{}/state", back.0.back.0, back.0.back_path());
        let (store, node) = (kernel.toolstack().store, path.clone());
        on_next_detach(move || store.write_text(Tx::NONE, &node, 4).unwrap());
        back.state(&kernel, "6");
        kernel.wait("it was seen", || kernel.node(&path).as_deref() == Some("4"));
        kernel.skip_seconds(30);
        kernel.wait_said(&format!("{} is free", back.0.front_path()));
        assert_eq!(ended.join().unwrap(), EIO);
        let given_up = kernel.log().contains(GIVEN_UP);
        back.remove(&kernel);
        kernel.give_back();
        given_up
    });
    assert!(given_up);
}

#[test]
fn a_boot_does_not_wait_for_ever_for_a_silent_back_end() {
    let kernel = Kernel::with_disks();
    let back = Script::new(&kernel, &[]);
    kernel.wait("the boot waits for the disk", || kernel.pending() == 1);
    kernel.skip_seconds(60);
    kernel.wait_said("xbd0: the back end doesn't answer; not waited for any longer\n");
    kernel.wait("nobody waits for the disk", || kernel.pending() == 0);
    back.remove(&kernel);
    kernel.give_back();
}

/// Attaches a disk with one failure after the other, until there is none left that attaching meets.
fn attach_with(order: impl Fn(&Kernel, u32), is_left: impl Fn(&Kernel) -> bool, at_least: u32) {
    for nth in 0.. {
        let kernel = Kernel::with_disks();
        order(&kernel, nth);
        let peer = Peer::serve(&kernel, 51712, 64, DiskKind::PLAIN);
        kernel.wait_said("xbd0 at xenbus0");
        kernel.wait("it is settled", || kernel.pending() == 0 && (XBD0.size() == 64 || !is_left(&kernel)));
        let done = is_left(&kernel);
        if done {
            kernel.machine().cancel_faults();
        } else {
            let words = ["error", "no thread", "no memory", "can't be"];
            kernel
                .wait(&format!("a word about failure {nth}"), || words.iter().any(|word| kernel.log().contains(word)));
        }
        peer.detach(&kernel);
        kernel.give_back();
        if done {
            assert!(nth >= at_least, "only {nth} failures");
            return;
        }
    }
}

#[test]
fn attaching_survives_each_allocation_of_pages_that_fails() {
    let order = |kernel: &Kernel, nth| {
        kernel.machine().order(Fault::Alloc { domain: kernel.id(), nth: u64::from(nth) + 1 });
    };
    attach_with(order, |kernel| kernel.machine().faults_waiting() > 0, 2);
}

#[test]
fn attaching_survives_each_hypercall_that_fails() {
    let order = |kernel: &Kernel, nth| {
        let kind = Some(Kind::event(EVTCHNOP_alloc_unbound));
        let nth = u64::from(nth) + 1;
        kernel.machine().order(Fault::Hypercall { domain: Some(kernel.id()), kind, nth, errno: XEN_ENOSPC });
    };
    attach_with(order, |kernel| kernel.machine().faults_waiting() > 0, 1);
}

#[test]
fn attaching_survives_each_thread_handler_and_request_that_fails() {
    for (what, at_least) in [(Failing::Threads, 2), (Failing::Handlers, 1), (Failing::Requests, 10)] {
        attach_with(|kernel, nth| kernel.fail_after(what, nth as i32), |kernel| kernel.is_to_fail(what), at_least);
    }
}

#[test]
fn a_dump_after_a_panic_reaches_the_disk_without_interrupts() {
    to_the_end("a_dump_after_a_panic_reaches_the_disk_without_interrupts", || {
        let kernel = Kernel::with_disks();
        let peer = attach(&kernel, DiskKind::PLAIN);
        let wired = Wired::new(40);
        let data = suite::scenarios::noise(7, 40 * 4096);
        wired.fill(0, &data);
        let said = kernel.panicked(|| {
            [
                XBD0.dump(100, &wired, 0, 40 * 4096),
                XBD0.dump(SECTORS as i64 - 1, &wired, 0, 2 * SECTOR),
                XBD0.dump(0, &wired, 1, SECTOR),
            ]
        });
        assert_eq!(said, [0, EINVAL, EINVAL]);
        assert!(peer.medium.bytes(100 * SECTOR, data.len()) == data);
    });
}

#[test]
fn a_dump_keeps_other_processors_from_the_disk() {
    to_the_end("a_dump_keeps_other_processors_from_the_disk", || {
        let kernel = Kernel::with_disks();
        let peer = attach(&kernel, DiskKind::PLAIN);
        assert_eq!(XBD0.open(true, true), 0);
        // Interrupts go on being taken by another thread, as by a processor that nobody has stopped.
        let wired = Wired::new(16);
        let data = suite::scenarios::noise(9, 16 * 4096);
        wired.fill(0, &data);
        for round in 0..20 {
            assert_eq!(as_panicked(|| XBD0.dump(round * 128, &wired, 0, 16 * 4096)), 0);
            assert!(peer.medium.bytes(round as usize * 128 * SECTOR, data.len()) == data);
        }
        for cpu in 0..8 {
            go_to_cpu(cpu);
            assert_eq!(XBD0.transfer(true, 0, Wired::new(1), 0, SECTOR).0, EIO, "nothing else is taken");
        }
    });
}

#[test]
fn a_dump_is_refused_if_the_panic_came_inside_the_lock() {
    to_the_end("a_dump_is_refused_if_the_panic_came_inside_the_lock", || {
        let kernel = Kernel::with_disks();
        let _peer = attach(&kernel, DiskKind::POOR);
        assert_eq!(XBD0.open(true, true), 0);
        let (told, tells) = std::sync::mpsc::channel();
        let dumped = Wired::new(1);
        on_next_frame(move || told.send(as_panicked(|| XBD0.dump(0, &dumped, 0, SECTOR))).unwrap());
        // It never ends: who it interrupts has the disk no more, and nobody else is let in.
        std::thread::spawn(|| XBD0.transfer(true, 0, Wired::new(1), 0, SECTOR));
        assert_eq!(tells.recv(), Ok(EBUSY));
    });
}
