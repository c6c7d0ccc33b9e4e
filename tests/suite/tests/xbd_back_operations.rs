//! Our back end of a disk: what it does with each operation, and when it does not.
#![cfg(not(target_os = "none"))]

mod common;

use common::raw_front::{Asks, Granted, RawFront};
use common::rig::{Rig, direct, discard, flush, indirect, table, whole};
use common::{BackOwner, Bed, Slow};
use hypercall::GrantRef;
use hypercall::mem::PAGE_SIZE;
use xbd::MAX_INDIRECT_SEGMENTS;
use xbd::back::Config;
use xbd::features::Discard;
use xbd::protocol::{Data, IndirectPages, Layout, Operation, Request, Segment, Status, X86_32, X86_64};

const SECTORS: u64 = 1024;

fn config() -> Config {
    Config { copy_limit: 0, ..Config::default() }
}

fn disk() -> Slow {
    Slow::new(SECTORS as usize)
}

fn forgetful() -> Slow {
    let disk = disk();
    disk.0.borrow_mut().discard = Some(Discard { granularity: 512, alignment: 0, secure: true });
    disk
}

#[test]
fn barrier_waits_for_what_is_before_it_and_nothing_overtakes_it() {
    let disk = disk();
    let mut rig = Rig::<X86_64>::new(&disk, config(), Asks::default());
    let pages = Granted::many(&rig.bed, 1);
    disk.hold(true);
    disk.0.borrow_mut().lifo = true;
    let write = |id| direct(Operation::Write, id, 8 * id, &pages);
    let barrier = |id| direct(Operation::Barrier, id, 8 * id, &pages);
    rig.send(&[write(1), write(2), barrier(3), write(4), barrier(5), write(6)]);
    let mut answered = Vec::new();
    let mut log = Vec::new();
    let mut jobs = Vec::new();
    while disk.0.borrow().jobs() > 0 {
        jobs.push(disk.0.borrow().jobs());
        answered.push(rig.finish(1).iter().map(|answer| (answer.id, answer.status)).collect::<Vec<_>>());
        log.append(&mut disk.0.borrow_mut().log);
    }
    let okay = |id| vec![(id, Status::Okay)];
    let nothing = Vec::new;
    let expected = [
        // Two writes, in the disk's order; then flush, write, flush.
        okay(2),
        okay(1),
        nothing(),
        nothing(),
        okay(3),
        okay(4),
        nothing(),
        nothing(),
        okay(5),
        okay(6),
    ];
    assert_eq!(answered, expected);
    assert_eq!(jobs, [2, 1, 1, 1, 1, 1, 1, 1, 1, 1], "nothing is started beside a barrier");
    let one = |name, sector| [(name, sector), ("ends", sector)];
    let flushed = |sector| [one("flush", 0), one("write", sector), one("flush", 0)].concat();
    let first = [("write", 8), ("write", 16), ("ends", 16), ("ends", 8)].to_vec();
    let rest = [flushed(24), one("write", 32).to_vec(), flushed(40), one("write", 48).to_vec()].concat();
    assert_eq!(log, [first, rest].concat());
    assert_eq!((rig.counters().barriers, rig.counters().waits), (2, 2));
    // With a disk that does all at once, all of it is one poll's.
    disk.hold(false);
    assert_eq!(rig.send(&[write(1), barrier(2), write(3), barrier(4), barrier(5), write(6)]).len(), 6);
    rig.end(pages);
}

#[test]
fn barrier_without_data_is_a_flush_and_a_disk_without_a_cache_is_not_flushed() {
    for cache in [false, true] {
        let disk = disk();
        disk.0.borrow_mut().cache = cache;
        let mut rig = Rig::<X86_64>::new(&disk, config(), Asks::default());
        let says = rig.bed.read(&rig.bed.back, &format!("{}/feature-flush-cache", rig.bed.device.back_path()));
        assert_eq!(says, Some(u8::from(cache).to_string()));
        let pages = Granted::many(&rig.bed, 1);
        assert_eq!(rig.one(&direct(Operation::Barrier, 1, 0, &[])), Status::Okay);
        assert_eq!(rig.one(&flush(2)), Status::Okay);
        assert_eq!(rig.one(&direct(Operation::Barrier, 3, 8, &pages)), Status::Okay);
        let log = std::mem::take(&mut disk.0.borrow_mut().log);
        let flushed = [("flush", 0), ("flush", 0), ("flush", 0), ("write", 8), ("flush", 0)];
        assert_eq!(log, if cache { flushed.to_vec() } else { vec![("write", 8)] });
        rig.end(pages);
    }
}

#[test]
fn barrier_that_fails_at_any_step_fails_once_and_goes_no_further() {
    for good in 0..3 {
        let disk = disk();
        let mut rig = Rig::<X86_64>::new(&disk, config(), Asks::default());
        let pages = Granted::many(&rig.bed, 1);
        disk.hold(true);
        rig.send(&[direct(Operation::Barrier, 1, 0, &pages), direct(Operation::Read, 2, 0, &pages)]);
        for _ in 0..good {
            assert_eq!(rig.finish(1), []);
        }
        disk.0.borrow_mut().fail = true;
        let answers = rig.finish(1);
        assert_eq!((answers.len(), answers[0].id, answers[0].status), (1, 1, Status::Error));
        disk.0.borrow_mut().fail = false;
        assert_eq!(rig.finish(1)[0].status, Status::Okay, "what has waited for it");
        let counters = rig.counters();
        assert_eq!((counters.store_faults, disk.0.borrow().started), (1, good + 2));
        rig.end(pages);
    }
}

#[test]
fn discard_stays_on_the_disk_and_is_done_if_it_was_offered() {
    for (store_can, wished, secure) in
        [(true, true, true), (true, true, false), (true, false, true), (false, true, true)]
    {
        let disk = disk();
        disk.0.borrow_mut().discard = store_can.then_some(Discard { granularity: 4096, alignment: 512, secure });
        let bed = Bed::new(1);
        if !wished {
            bed.back_says("discard-enable", 0).unwrap();
        }
        let mut back = BackOwner::new(&bed, disk.clone());
        back.follow(&bed);
        let front = RawFront::<X86_32>::ask(&bed, Asks::default());
        back.follow(&bed);
        let says = |node: &str| bed.read(&bed.back, &format!("{}/{node}", bed.device.back_path()));
        let offered = store_can && wished;
        assert_eq!(says("feature-discard"), Some(u8::from(offered).to_string()));
        if offered {
            let nodes = ["discard-granularity", "discard-alignment", "discard-secure"].map(|node| says(node).unwrap());
            assert_eq!(nodes, ["4096".to_string(), "512".into(), u8::from(secure).to_string()]);
        }
        let mut rig = Rig { back, front, disk: disk.clone(), bed };
        for (sector, sectors, good) in [
            (0, 1, true),
            (0, SECTORS, true),
            (SECTORS - 1, 1, true),
            (1, SECTORS, false),
            (SECTORS, 1, false),
            (u64::MAX, 1, false),
            (1, u64::MAX, false),
            (u64::MAX, u64::MAX, false),
        ] {
            let expected = match (offered, good) {
                (false, _) => Status::NotSupported,
                (true, false) => Status::Error,
                (true, true) => Status::Okay,
            };
            for operation in [Operation::Discard, Operation::SecureDiscard] {
                disk.0.borrow_mut().log.clear();
                assert_eq!(rig.one(&discard(operation, sector, sectors)), expected, "{sector} {sectors}");
                // Without the means, a secure discard is a discard.
                let really = operation == Operation::SecureDiscard && secure;
                let name = if really { "secure" } else { "discard" };
                let log = disk.0.borrow().log.clone();
                assert_eq!(log, if offered && good { vec![(name, sector)] } else { vec![] });
            }
        }
        rig.end(Vec::new());
    }
}

#[test]
fn what_the_disk_can_not_do_as_it_turns_out_is_not_supported() {
    let disk = forgetful();
    let mut rig = Rig::<X86_64>::new(&disk, config(), Asks::default());
    disk.0.borrow_mut().discard = None;
    assert_eq!(rig.one(&discard(Operation::Discard, 0, 8)), Status::NotSupported);
    assert_eq!((disk.0.borrow().started, rig.counters().store_faults), (1, 1));
    rig.end(Vec::new());
}

#[test]
fn read_only_disk_is_not_changed_by_any_operation_nor_by_one_inside_another() {
    for by_toolstack in [false, true] {
        let disk = forgetful();
        disk.0.borrow_mut().read_only = !by_toolstack;
        let bed = Bed::new(1);
        if by_toolstack {
            bed.back_says("mode", "r").unwrap();
        }
        let mut back = BackOwner::new(&bed, disk.clone());
        back.follow(&bed);
        let front = RawFront::<X86_64>::ask(&bed, Asks::default());
        back.follow(&bed);
        let mut rig = Rig { back, front, disk: disk.clone(), bed };
        let pages = Granted::many(&rig.bed, 2);
        let segments = table(&rig.bed, &whole(&pages));
        let before = disk.0.borrow().bytes.clone();
        let requests: [(Request, Status); 10] = [
            (direct(Operation::Read, 1, 0, &pages), Status::Okay),
            (indirect(Operation::Read, 1, 0, 2, &segments), Status::Okay),
            (flush(1), Status::Okay),
            (direct(Operation::Write, 1, 0, &pages), Status::Error),
            (indirect(Operation::Write, 1, 0, 2, &segments), Status::Error),
            (direct(Operation::Barrier, 1, 0, &pages), Status::Error),
            (direct(Operation::Barrier, 1, 0, &[]), Status::Error),
            (discard(Operation::Discard, 0, 8), Status::Error),
            (discard(Operation::SecureDiscard, 0, 8), Status::Error),
            (discard(Operation::SecureDiscard, SECTORS, 8), Status::Error),
        ];
        for (request, expected) in requests {
            assert_eq!(rig.one(&request), expected, "{request:?}");
        }
        assert_eq!(disk.0.borrow().started, 3);
        assert_eq!(disk.0.borrow().bytes, before);
        rig.end(pages.into_iter().chain(segments).collect());
    }
}

#[test]
fn disk_of_large_sectors_takes_whole_ones_only() {
    let disk = forgetful();
    disk.0.borrow_mut().sector_size = 4096;
    let mut rig = Rig::<X86_64>::new(&disk, config(), Asks::default());
    let pages = Granted::many(&rig.bed, 2);
    // Two halves are a whole.
    let half = |first, last| Segment::new(pages[0].gref(), first, last).unwrap().to_bytes();
    let halves = table(&rig.bed, &[half(0, 3), half(4, 7)]);
    let less = table(&rig.bed, &[half(0, 3), half(4, 6)]);
    for (request, expected) in [
        (direct(Operation::Write, 1, 8, &pages), Status::Okay),
        (direct(Operation::Write, 1, 12, &pages), Status::Error),
        (indirect(Operation::Write, 1, 8, 2, &halves), Status::Okay),
        (indirect(Operation::Write, 1, 12, 2, &halves), Status::Error),
        (indirect(Operation::Write, 1, 8, 2, &less), Status::Error),
        (discard(Operation::Discard, 8, 16), Status::Okay),
        (discard(Operation::Discard, 8, 12), Status::Error),
        (discard(Operation::Discard, 4, 8), Status::Error),
    ] {
        assert_eq!(rig.one(&request), expected, "{request:?}");
    }
    assert_eq!(disk.0.borrow().started, 3);
    rig.end(pages.into_iter().chain(halves).chain(less).collect());
}

#[test]
fn empty_drive_moves_no_data() {
    let disk = Slow::new(0);
    disk.0.borrow_mut().discard = Some(Discard { granularity: 512, alignment: 0, secure: false });
    let mut rig = Rig::<X86_64>::new(&disk, config(), Asks::default());
    let pages = Granted::many(&rig.bed, 1);
    let segments = table(&rig.bed, &whole(&pages));
    for operation in [Operation::Read, Operation::Write] {
        assert_eq!(rig.one(&direct(operation, 1, 0, &pages)), Status::Error);
        assert_eq!(rig.one(&indirect(operation, 1, 0, 1, &segments)), Status::Error);
    }
    assert_eq!(rig.one(&direct(Operation::Barrier, 1, 0, &pages)), Status::Error);
    assert_eq!(rig.one(&discard(Operation::Discard, 0, 1)), Status::Error);
    assert_eq!(disk.0.borrow().started, 0);
    rig.end(pages.into_iter().chain(segments).collect());
}

#[test]
fn indirect_request_with_anything_wrong_is_refused_and_nothing_of_it_stays_mapped() {
    let disk = disk();
    let config = Config { max_indirect_segments: 600, ..config() };
    let mut rig = Rig::<X86_64>::new(&disk, config, Asks::default());
    let pages = Granted::many(&rig.bed, 3);
    let good = whole(&pages);
    let base = rig.mapped();
    let mut tables = Vec::new();
    for place in 0..3 {
        for (first, last) in [(1, 0), (0, 8), (8, 8), (7, 255), (255, 0), (255, 255)] {
            let mut bad = good.clone();
            bad[place][4..6].copy_from_slice(&[first, last]);
            let segments = table(&rig.bed, &bad);
            assert_eq!(rig.one(&indirect(Operation::Read, 1, 0, 3, &segments)), Status::Error);
            tables.extend(segments);
        }
        let mut bad = good.clone();
        bad[place][..4].copy_from_slice(&400u32.to_ne_bytes());
        let segments = table(&rig.bed, &bad);
        assert_eq!(rig.one(&indirect(Operation::Read, 1, 0, 3, &segments)), Status::Error);
        tables.extend(segments);
    }
    assert_eq!((rig.counters().refused, rig.counters().unmappable), (18, 3));
    // Nor is anything mapped of it but the page of segments, before it is known to be good.
    assert_eq!(rig.counters().mapped, 18 + 3 * (1 + 2));
    // The pages of segments: the second of two is not there.
    let many: Vec<_> = good.iter().cycle().take(600).copied().collect();
    let mut segments = table(&rig.bed, &many[..]);
    let nowhere = |grefs: &[GrantRef]| {
        let pages = IndirectPages::new(600, grefs).unwrap();
        Request { id: 1, operation: Operation::Read, sector: 0, data: Data::Indirect(pages) }
    };
    assert_eq!(rig.one(&nowhere(&[segments[0].gref(), GrantRef(400)])), Status::Error);
    assert_eq!(rig.one(&nowhere(&[GrantRef(400), segments[1].gref()])), Status::Error);
    assert_eq!(rig.counters().unmappable, 5);
    // Beyond the end of the disk, and more than was offered.
    assert_eq!(rig.one(&indirect(Operation::Read, 1, 0, 600, &segments)), Status::Error);
    segments.extend(table(&rig.bed, &many));
    assert_eq!(rig.one(&indirect(Operation::Read, 1, 0, 601, &segments)), Status::Error);
    assert_eq!(rig.counters().refused, 20);
    assert_eq!((disk.0.borrow().started, rig.mapped()), (0, base));
    // And the disk is served as before: 128 pages are all of it.
    assert_eq!(rig.one(&indirect(Operation::Read, 1, 0, 128, &segments)), Status::Okay);
    assert_eq!(rig.one(&indirect(Operation::Read, 1, 1, 128, &segments)), Status::Error);
    rig.end(pages.into_iter().chain(segments).chain(tables).collect());
}

#[test]
fn indirect_request_that_was_not_offered_is_not_supported() {
    let disk = disk();
    let mut rig = Rig::<X86_64>::new(&disk, Config { max_indirect_segments: 0, ..config() }, Asks::default());
    let node = format!("{}/feature-max-indirect-segments", rig.bed.device.back_path());
    assert_eq!(rig.bed.read(&rig.bed.back, &node), None);
    let pages = Granted::many(&rig.bed, 1);
    let segments = table(&rig.bed, &whole(&pages));
    assert_eq!(rig.one(&indirect(Operation::Read, 1, 0, 1, &segments)), Status::NotSupported);
    rig.end(pages.into_iter().chain(segments).collect());
}

#[test]
fn indirect_request_of_more_segments_than_were_offered_is_an_error() {
    let disk = disk();
    let mut rig = Rig::<X86_64>::new(&disk, Config { max_indirect_segments: 3, ..config() }, Asks::default());
    let pages = Granted::many(&rig.bed, 4);
    let segments = table(&rig.bed, &whole(&pages));
    assert_eq!(rig.one(&indirect(Operation::Read, 1, 0, 3, &segments)), Status::Okay);
    assert_eq!(rig.one(&indirect(Operation::Read, 1, 0, 4, &segments)), Status::Error);
    assert_eq!((disk.0.borrow().started, rig.counters().refused), (1, 1));
    rig.end(pages.into_iter().chain(segments).collect());
}

fn largest<L: Layout>(persistent: bool) {
    let disk = Slow::new(8 * MAX_INDIRECT_SEGMENTS);
    let most = MAX_INDIRECT_SEGMENTS as u16;
    // As many pages as it takes, although fewer are asked for.
    let config = Config { max_indirect_segments: most, pages: 1, max_persistent: 100, ..config() };
    let mut rig = Rig::<L>::new(&disk, config, Asks { persistent, ..Asks::default() });
    // So many that no two pages of segments are the same.
    let pages = Granted::many(&rig.bed, 60);
    for (index, page) in (1..).zip(&pages) {
        page.fill(index);
    }
    let all: Vec<_> = whole(&pages).into_iter().cycle().take(MAX_INDIRECT_SEGMENTS).collect();
    let segments = table(&rig.bed, &all);
    disk.hold(true);
    let write = indirect(Operation::Write, 1, 0, MAX_INDIRECT_SEGMENTS, &segments);
    assert_eq!(rig.send(&[write, write, write]), []);
    assert_eq!((disk.0.borrow().jobs(), rig.mapped()), (1, 1 + MAX_INDIRECT_SEGMENTS + 8));
    for _ in 0..3 {
        assert_eq!(rig.finish(1)[0].status, Status::Okay);
    }
    assert_eq!(rig.counters().waits, 2);
    for (index, page) in disk.0.borrow().bytes.chunks(PAGE_SIZE).enumerate() {
        assert!(page.iter().all(|byte| *byte == (index % 60) as u8 + 1), "page {index}");
    }
    rig.end(pages.into_iter().chain(segments).collect());
}

#[test]
fn largest_request_there_can_be_is_served_one_at_a_time_if_there_is_room_for_no_more() {
    largest::<X86_64>(false);
    largest::<X86_32>(true);
}
