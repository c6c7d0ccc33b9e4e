//! What a back end may offer besides a plain disk: discards, large sectors, queues, indirect requests, another size.
#![cfg(not(target_os = "none"))]

#[path = "common/disk.rs"]
mod common;

use std::sync::atomic::Ordering::SeqCst;

use common::{EINVAL, ENODEV, EROFS, SECTORS, XBD0, attach, to_the_end};
use netbsd::Kernel;
use netbsd::kernel::{RAW, as_panicked, counter, go_to_cpu};
use netbsd::memory::{Wired, on_next_frame};
use netbsd::peer::{DiskKind, Peer, QUEUES};
use suite::scenarios::noise;
use xbd::SECTOR;
use xbd::features::Discard;

/// Bytes of a page, and of a large sector.
const PAGE: usize = 4096;

/// Units of 16 sectors, of which the first begins with the third sector.
const UNITS: DiskKind =
    DiskKind { discard: Some(Discard { granularity: 8192, alignment: 1024, secure: true }), ..DiskKind::PLAIN };

/// Sectors of 4096 bytes, of which four are a physical one.
const LARGE: DiskKind = DiskKind {
    sector_size: 4096,
    physical_sector_size: 16384,
    discard: Some(Discard { granularity: 4096, alignment: 0, secure: false }),
    ..DiskKind::PLAIN
};

/// Returns how many requests each queue has taken.
fn by_queue(peer: &Peer) -> [u64; QUEUES] {
    std::array::from_fn(|queue| peer.medium.by_queue[queue].load(SeqCst))
}

/// Closes the disk, takes it away, and gives the kernel back.
fn end(kernel: Kernel, peer: Peer) {
    assert_eq!(XBD0.close(true), 0);
    peer.detach(&kernel);
    kernel.give_back();
}

#[test]
fn a_discard_reaches_the_store_in_whole_units() {
    let kernel = Kernel::with_disks();
    let peer = attach(&kernel, UNITS);
    assert_eq!(XBD0.open(true, true), 0);
    let before = peer.medium.bytes(0, SECTORS * SECTOR);
    let bytes = |sectors: i64| sectors * SECTOR as i64;
    assert_eq!(XBD0.discard(RAW, 0, bytes(64)), 0);
    // The second half of the disk, by its partition.
    assert_eq!(XBD0.discard(1, bytes(1), bytes(64)), 0);
    // Nothing whole: nothing is sent, and all is well.
    for (from, len) in [(0, 17), (3, 30), (2, 15), (0, 0), (8191, 1)] {
        assert_eq!(XBD0.discard(RAW, bytes(from), bytes(len)), 0, "{from}, {len}");
    }
    let ranges = [(2, 48), (4098, 48)];
    assert_eq!(peer.medium.discarded(), ranges);
    let mut after = before;
    for (sector, sectors) in ranges {
        after[sector as usize * SECTOR..][..sectors as usize * SECTOR].fill(0);
    }
    assert!(peer.medium.bytes(0, SECTORS * SECTOR) == after, "nothing else was touched");
    assert_eq!((counter(c"discards"), counter(c"errors")), (2, 0));
    // All of a larger one than a buf can tell of is sent at once, or nothing.
    for (from, len) in [(0, 8193), (8192, 1), (1, i64::MAX / 512), (-1, 16), (0, -16)] {
        assert_eq!(XBD0.discard(RAW, bytes(from), bytes(len)), EINVAL, "{from}, {len}");
    }
    for (from, len) in [(100, 8192), (1024, 8191)] {
        assert_eq!(XBD0.discard(RAW, from, len), EINVAL, "{from}, {len}");
    }
    // The label is protected in a partition as it is from being written.
    assert_eq!(XBD0.discard(0, 0, bytes(64)), EROFS);
    assert_eq!(peer.medium.discarded().len(), 2);
    end(kernel, peer);
}

#[test]
fn a_discard_is_refused_where_it_is_not_offered() {
    let kernel = Kernel::with_disks();
    let peer = attach(&kernel, DiskKind::PLAIN);
    assert_eq!(XBD0.open(true, true), 0);
    assert_eq!(XBD0.discard(RAW, 0, 65536), ENODEV);
    end(kernel, peer);

    let kernel = Kernel::with_disks();
    let peer = attach(&kernel, DiskKind { read_only: true, ..UNITS });
    assert_eq!(XBD0.open(true, false), 0);
    assert_eq!(XBD0.discard(RAW, 0, 65536), EROFS);
    end(kernel, peer);

    // One that offers it, and doesn't do it: it is asked once.
    let kernel = Kernel::with_disks();
    let peer = attach(&kernel, UNITS);
    assert_eq!(XBD0.open(true, true), 0);
    peer.medium.refuses.store(true, SeqCst);
    assert_eq!((XBD0.discard(RAW, 0, 65536), counter(c"discards")), (ENODEV, 1));
    assert_eq!((XBD0.discard(RAW, 0, 65536), counter(c"discards")), (ENODEV, 1));
    end(kernel, peer);
}

#[test]
fn sectors_of_4096_bytes_are_the_unit_of_everything() {
    let kernel = Kernel::with_disks();
    // An odd number of them: the second half begins with an odd one.
    let sectors = 1023 * 8;
    let peer = Peer::serve(&kernel, 51712, sectors, LARGE);
    kernel.wait_said("xbd0: 4092 KB, 4096 bytes/sect x 1023 sectors");
    kernel.wait("nobody looks for its label", || kernel.pending() == 0);
    assert_eq!((XBD0.open(true, true), XBD0.open(false, true)), (0, 0));
    assert_eq!((XBD0.size(), XBD0.sector_size()), (sectors as i32, (0, 4096)));
    assert_eq!((XBD0.alignment(RAW), XBD0.alignment(1)), ((0, [0, 4]), (0, [1, 4])));

    let data = noise(11, 3 * PAGE);
    for offset in [0, 512, 12] {
        let wired = Wired::new(5);
        wired.fill(offset, &data);
        let (error, wired) = XBD0.transfer(false, 80, wired, offset, 3 * PAGE);
        assert_eq!(error, 0);
        assert!(peer.medium.bytes(80 * SECTOR, 3 * PAGE) == data);
        wired.fill(0, &[0; 5 * PAGE]);
        let (error, wired) = XBD0.transfer(true, 88, wired, offset, PAGE);
        assert_eq!(error, 0);
        assert!(wired.bytes(offset, PAGE) == data[PAGE..2 * PAGE]);
    }

    let (taken, before) = (peer.medium.taken.load(SeqCst), peer.medium.bytes(0, sectors * SECTOR));
    let mut wired = Wired::new(3);
    for read in [true, false] {
        for (sector, len) in [(4, PAGE), (7, 512), (8, 512), (8, PAGE + 512), (1, 2 * PAGE)] {
            let error;
            (error, wired) = XBD0.transfer(read, sector, wired, 0, len);
            assert_eq!(error, EINVAL, "{len} bytes at {sector}");
        }
        assert_eq!(XBD0.raw(!read, &wired, 0, PAGE, 3), EINVAL);
    }
    for (from, len) in [(512, 4096), (4096, 512)] {
        assert_eq!(XBD0.discard(RAW, from, len), EINVAL);
    }
    assert_eq!(peer.medium.taken.load(SeqCst), taken, "nothing of it was sent");
    assert!(peer.medium.bytes(0, sectors * SECTOR) == before);

    drop(wired);
    // The second sector of the second half.
    assert_eq!(XBD0.discard(1, 4096, 8192), 0);
    assert_eq!(peer.medium.discarded(), [(512 * 8, 16)]);
    assert_eq!(XBD0.close(false), 0);
    end(kernel, peer);
}

#[test]
fn each_cpu_has_a_queue_of_its_own() {
    for queues in [1, 2, 4] {
        let kernel = Kernel::with_disks();
        let peer = attach(&kernel, DiskKind { queues, ..DiskKind::PLAIN });
        let said = if queues > 1 { format!("sectors, {queues} queues\n") } else { "sectors\n".into() };
        kernel.wait_said(&said);
        assert_eq!(XBD0.open(true, true), 0);
        let mut expected = by_queue(&peer);
        for cpu in 0..8 {
            let reader = std::thread::spawn(move || {
                go_to_cpu(cpu);
                let mut wired = Wired::new(1);
                for sector in 0..10 {
                    let error;
                    (error, wired) = XBD0.transfer(true, sector, wired, 0, SECTOR);
                    assert_eq!(error, 0);
                }
            });
            reader.join().unwrap();
            expected[cpu as usize % usize::from(queues)] += 10;
            assert_eq!(by_queue(&peer), expected, "CPU {cpu} of {queues} queue(s)");
        }
        end(kernel, peer);
    }
}

#[test]
fn all_queues_are_used_at_once_and_one_that_is_full_lends_to_the_others() {
    let kernel = Kernel::with_disks();
    let peer = attach(&kernel, DiskKind::PLAIN);
    assert_eq!(XBD0.open(true, true), 0);
    let before = by_queue(&peer);
    peer.medium.hold.store(true, SeqCst);
    // From one CPU, more than its ring takes; nothing ends meanwhile.
    let transfers: Vec<_> =
        (0..100).map(|at| XBD0.start(false, at, Wired::new(1), at as usize % 8 * SECTOR, SECTOR)).collect();
    let taken = |queue: usize| by_queue(&peer)[queue] - before[queue];
    kernel.wait("all are taken", || (0..QUEUES).map(taken).sum::<u64>() == 100);
    assert_eq!([0, 1, 2, 3].map(taken), [32, 32, 32, 4]);
    peer.medium.hold.store(false, SeqCst);
    for transfer in transfers {
        assert_eq!(transfer.wait().0, 0);
    }

    // From all CPUs at once, each in a part of its own.
    let threads: Vec<_> = (0..QUEUES)
        .map(|cpu| {
            std::thread::spawn(move || {
                go_to_cpu(cpu as u32);
                for round in 0..40 {
                    let data = noise((cpu * 100 + round) as u64, 5 * PAGE);
                    let sector = (cpu * 2000 + round * 48) as u64;
                    let wired = Wired::new(6);
                    wired.fill(512, &data);
                    let (error, wired) = XBD0.transfer(false, sector, wired, 512, 5 * PAGE);
                    assert_eq!(error, 0);
                    wired.fill(0, &[0; 6 * PAGE]);
                    let (error, wired) = XBD0.transfer(true, sector, wired, 512, 5 * PAGE);
                    assert!(error == 0 && wired.bytes(512, 5 * PAGE) == data);
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    assert_eq!((counter(c"errors"), counter(c"kept")), (0, 0));
    end(kernel, peer);
}

#[test]
fn a_large_transfer_is_cut_by_the_queue_and_ends_once() {
    const LEN: usize = 16 * PAGE;
    // How many requests 16 pages take, and 17 of which the first and the last are halves.
    for (kind, requests, segments) in [(DiskKind::PLAIN, 1, [16, 17]), (DiskKind::POOR, 2, [11, 11])] {
        let kernel = Kernel::with_disks();
        let peer = attach(&kernel, kind);
        assert_eq!(XBD0.open(true, true), 0);
        for (offset, largest) in [0, 2048].into_iter().zip(segments) {
            let counters = || [c"requests", c"indirect", c"segments", c"bounced"].map(counter);
            let before = counters();
            let data = noise(offset as u64, LEN);
            let wired = Wired::new(17);
            wired.fill(offset, &data);
            let (error, wired) = XBD0.transfer(false, 77, wired, offset, LEN);
            assert_eq!(error, 0);
            assert!(peer.medium.bytes(77 * SECTOR, LEN) == data);
            wired.fill(0, &[0; 17 * PAGE]);
            let (error, wired) = XBD0.transfer(true, 77, wired, offset, LEN);
            assert!(error == 0 && wired.bytes(offset, LEN) == data);
            let pages = 16 + u64::from(offset > 0);
            let indirect = if requests == 1 { 2 } else { 0 };
            let now = counters();
            let did: [u64; 4] = std::array::from_fn(|index| now[index] - before[index]);
            assert_eq!(did, [2 * requests, indirect, 2 * pages, 0]);
            assert_eq!(peer.medium.largest.load(SeqCst), largest);
        }
        end(kernel, peer);
    }
}

#[test]
fn another_size_is_told_and_used_at_once_in_both_directions() {
    let kernel = Kernel::with_disks();
    let peer = attach(&kernel, DiskKind::PLAIN);
    assert_eq!(XBD0.open(true, true), 0);
    let far = 2 * SECTORS as u64 - 8;
    let (error, wired) = XBD0.transfer(false, far, Wired::new(1), 0, PAGE);
    assert_eq!(error, EINVAL);

    peer.medium.resize(2 * SECTORS);
    let (error, wired) = XBD0.transfer(true, 0, wired, 0, SECTOR);
    assert_eq!(error, 0);
    kernel.wait_said("xbd0: was 4096 KB, now 8192 KB, 512 bytes/sect x 16384 sectors, 4 queues\n");
    assert_eq!(XBD0.size(), 2 * SECTORS as i32);
    kernel.wait("wedges are looked for", || XBD0.searched() == 2 * SECTORS as i64);
    let data = noise(5, PAGE);
    wired.fill(0, &data);
    let (error, wired) = XBD0.transfer(false, far, wired, 0, PAGE);
    assert_eq!(error, 0);
    assert!(peer.medium.bytes(far as usize * SECTOR, PAGE) == data);

    // Whoever opens it may hold the lock for long: then it is told later, and the thread waits for nobody, but goes on.
    let wired = XBD0.while_opening(|| {
        let mut wired = wired;
        for sectors in [SECTORS, SECTORS / 2] {
            peer.medium.resize(sectors);
            let error;
            (error, wired) = XBD0.transfer(true, 0, wired, 0, SECTOR);
            assert_eq!(error, 0);
            let ends = || XBD0.transfer(true, sectors as u64, Wired::new(1), 0, SECTOR).0 == EINVAL;
            kernel.wait("the thread sees the new end", ends);
        }
        assert_eq!(XBD0.size(), 2 * SECTORS as i32);
        wired
    });
    kernel.wait_said("xbd0: was 8192 KB, now 2048 KB, 512 bytes/sect x 4096 sectors, 4 queues\n");
    assert_eq!(XBD0.size(), SECTORS as i32 / 2);
    kernel.wait("wedges are looked for", || XBD0.searched() == SECTORS as i64 / 2);
    let (error, wired) = XBD0.transfer(true, SECTORS as u64 / 2 - 4, wired, 0, PAGE);
    assert_eq!(error, EINVAL);
    let (error, wired) = XBD0.transfer(true, SECTORS as u64 / 2 - 8, wired, 0, PAGE);
    assert_eq!(error, 0);
    drop(wired);
    end(kernel, peer);
}

#[test]
fn a_cd_rom_and_a_removable_medium_are_called_so() {
    let kernel = Kernel::with_disks();
    let nodes = &[("device-type", "cdrom"), ("removable", "1"), ("mode", "r")];
    let peer = attach(&kernel, DiskKind { nodes, ..DiskKind::PLAIN });
    kernel.wait_said("sectors, read-only, CD-ROM, removable, 4 queues\n");
    assert_eq!((XBD0.open(true, true), XBD0.open(true, false)), (EROFS, 0));
    end(kernel, peer);
}

#[test]
fn a_dump_goes_by_another_queue_if_the_panic_came_inside_the_lock_of_one() {
    to_the_end("a_dump_goes_by_another_queue_if_the_panic_came_inside_the_lock_of_one", || {
        let kernel = Kernel::with_disks();
        let peer = attach(&kernel, DiskKind::PLAIN);
        assert_eq!(XBD0.open(true, true), 0);
        let data = noise(3, 40 * PAGE);
        let dumped = Wired::new(40);
        dumped.fill(0, &data);
        let (told, tells) = std::sync::mpsc::channel();
        let before = by_queue(&peer);
        // Of the first queue, which a dump would take.
        on_next_frame(move || {
            told.send(as_panicked(|| [0, 400].map(|sector| XBD0.dump(sector, &dumped, 0, 40 * PAGE)))).unwrap();
            // Who was interrupted does not go on with what it was about to submit.
            loop {
                std::thread::park();
            }
        });
        // It never ends: who it interrupts has the disk no more, and nobody else is let in.
        std::thread::spawn(|| XBD0.transfer(true, 0, Wired::new(1), 0, SECTOR));
        assert_eq!(tells.recv(), Ok([0, 0]));
        assert!(peer.medium.bytes(0, 40 * PAGE) == data && peer.medium.bytes(400 * SECTOR, 40 * PAGE) == data);
        assert_eq!(by_queue(&peer)[0], before[0]);
    });
}

#[test]
fn a_dump_has_room_beside_what_was_in_flight_in_all_queues() {
    to_the_end("a_dump_has_room_beside_what_was_in_flight_in_all_queues", || {
        let kernel = Kernel::with_disks();
        let peer = attach(&kernel, DiskKind::PLAIN);
        assert_eq!(XBD0.open(true, true), 0);
        peer.medium.hold.store(true, SeqCst);
        let started = |at: usize| XBD0.start(false, 4096 + at as u64, Wired::new(1), 0, SECTOR);
        let transfers: Vec<_> = (0..140).map(started).collect();
        kernel.wait("all rings are full", || counter(c"queue_full") > 0);
        let data = noise(4, 20 * PAGE);
        let wired = Wired::new(20);
        wired.fill(0, &data);
        let medium = peer.medium.clone();
        // The back end goes on while the dump waits for room.
        let release = std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(200));
            medium.hold.store(false, SeqCst);
        });
        assert_eq!(kernel.panicked(|| XBD0.dump(8, &wired, 0, 20 * PAGE)), 0);
        assert!(peer.medium.bytes(8 * SECTOR, 20 * PAGE) == data);
        release.join().unwrap();
        std::mem::forget(transfers);
    });
}

#[test]
fn a_dump_to_large_sectors_begins_and_ends_with_one() {
    to_the_end("a_dump_to_large_sectors_begins_and_ends_with_one", || {
        let kernel = Kernel::with_disks();
        let peer = attach(&kernel, LARGE);
        let data = noise(6, 2 * PAGE);
        let wired = Wired::new(2);
        wired.fill(0, &data);
        let before = peer.medium.bytes(0, SECTORS * SECTOR);
        let said = kernel
            .panicked(|| [XBD0.dump(4, &wired, 0, PAGE), XBD0.dump(8, &wired, 0, 512), XBD0.dump(9, &wired, 0, PAGE)]);
        assert_eq!(said, [EINVAL; 3]);
        assert!(peer.medium.bytes(0, SECTORS * SECTOR) == before);
        assert_eq!(kernel.panicked(|| XBD0.dump(16, &wired, 0, 2 * PAGE)), 0);
        assert!(peer.medium.bytes(16 * SECTOR, 2 * PAGE) == data);
    });
}
