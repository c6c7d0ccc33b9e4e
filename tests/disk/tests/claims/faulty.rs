use std::collections::BTreeSet;

use disk::{Faulty, FileStore, Kind, Options, Plan, Rule, Workers};
use proptest::prelude::*;
use suite::block::Memory;
use xbd::SECTOR;
use xbd::back::{Parts, Started, Store, StoreFault, Token, Work};

use crate::common::{Area, Outcome, contents, discard, fill, next, read, run, write};

fn disk(sectors: usize, plan: Plan) -> Faulty<Memory> {
    Faulty::new(Memory::new(vec![0; sectors * SECTOR]), plan)
}

fn rules(rules: Vec<Rule>) -> Plan {
    Plan { rules, ..Plan::default() }
}

const FAILED: Outcome = Err(StoreFault::Failed);
const NOT_SUPPORTED: Outcome = Err(StoreFault::NotSupported);

#[test]
fn without_a_plan_it_is_the_disk_beneath() {
    let mut disk = disk(64, Plan::default());
    write(&mut disk, 3, &[1; 1024]).unwrap();
    run(&mut disk, Work::Flush).unwrap();
    discard(&mut disk, 4, 1).unwrap();
    assert_eq!(read(&mut disk, 2, 2048).unwrap(), [[0; 512], [1; 512], [0; 512], [0; 512]].concat());
    let counters = disk.counters();
    assert_eq!([counters.reads, counters.writes, counters.flushes, counters.discards], [1, 1, 1, 1]);
    assert_eq!((disk.sectors(), disk.sector_size()), (64, 512));
    assert_eq!(disk.look(|memory| (memory.flushes(), memory.discarded())), (1, 1));
}

#[test]
fn the_work_that_is_to_fail_fails_and_no_other() {
    let mut disk = disk(64, rules(vec![Rule { skip: 2, times: 1, ..Rule::default() }]));
    let ends: Vec<Outcome> = (0..5u8).map(|n| write(&mut disk, u64::from(n), &[n + 1; 512])).collect();
    assert_eq!(ends, [Ok(()), Ok(()), FAILED, Ok(()), Ok(())]);
    // What fails is not done.
    assert_eq!(read(&mut disk, 2, 512).unwrap(), [0; 512]);
    assert_eq!(disk.counters().failed, 1);
}

#[test]
fn a_bad_spot_fails_whatever_touches_it() {
    let bad = Rule { sectors: 8..10, ..Rule::all(Kind::Read) };
    let mut disk = disk(64, rules(vec![bad]));
    for (sector, len, expected) in [(0, 8, true), (0, 9, false), (9, 1, false), (10, 8, true), (0, 64, false)] {
        assert_eq!(read(&mut disk, sector, len * SECTOR).is_ok(), expected, "{len} at {sector}");
    }
    assert_eq!(write(&mut disk, 8, &[1; 512]), Ok(()));
}

#[test]
fn a_flush_or_discard_may_turn_out_to_be_impossible() {
    let not = |kind| Rule { fault: StoreFault::NotSupported, ..Rule::all(kind) };
    let mut disk = disk(64, rules(vec![not(Kind::Flush), not(Kind::Discard)]));
    assert!(disk.discard().is_some(), "it is offered");
    assert_eq!(run(&mut disk, Work::Flush), NOT_SUPPORTED);
    assert_eq!(discard(&mut disk, 0, 8), NOT_SUPPORTED);
    assert_eq!(write(&mut disk, 0, &[1; 512]), Ok(()));
    assert_eq!(disk.look(|memory| (memory.flushes(), memory.discarded())), (0, 0));
}

#[test]
fn lots_are_drawn_by_the_seed_alone() {
    let trace = |seed| {
        let one_in_four = Rule { one_in: 4, ..Rule::default() };
        let mut disk = disk(64, Plan { seed, rules: vec![one_in_four], delay: 0..=3, reorder: true });
        let mut trace = Vec::new();
        for token in 0..200 {
            trace.push((token, Some(disk.start(Token(token), Work::Flush))));
            trace.extend(disk.completed().map(|(token, result)| (token.0, Some(Started::Done(result)))));
        }
        trace
    };
    assert_eq!(trace(1), trace(1));
    assert_ne!(trace(1), trace(2));
    let failed = |end: &&(u16, Option<Started>)| end.1 == Some(Started::Done(FAILED));
    let share = trace(1).iter().filter(failed).count();
    assert!((20..80).contains(&share), "{share} of 200");
}

#[test]
fn a_delay_is_counted_in_calls() {
    // A disk that is done at once, each time.
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 16).unwrap();
    let file = FileStore::open(file.path(), &Options::default()).unwrap();
    let mut disk = Faulty::new(file, Plan { delay: 3..=3, ..Plan::default() });
    assert_eq!(disk.start(Token(5), Work::Flush), Started::Pending);
    let calls = [disk.completed(), disk.completed(), disk.completed(), disk.completed(), disk.completed()];
    assert_eq!(calls, [None, None, None, Some((Token(5), Ok(()))), None]);
    assert_eq!(disk.counters().delayed, 1);
    disk.set_plan(Plan::default());
    assert_eq!(disk.start(Token(5), Work::Flush), Started::Done(Ok(())));
}

#[test]
fn work_overtakes_if_it_may_and_each_ends_once() {
    for reorder in [false, true] {
        let mut disk = disk(64, Plan { delay: 2..=2, reorder, ..Plan::default() });
        for token in 0..32 {
            assert_eq!(disk.start(Token(token), Work::Flush), Started::Pending);
        }
        let order: Vec<u16> = (0..32).map(|_| next(&mut disk).0.0).collect();
        assert_eq!(disk.completed(), None);
        assert_eq!(order.iter().collect::<BTreeSet<_>>().len(), 32, "{order:?}");
        let overtaking = disk.counters().overtaking;
        assert!(if reorder { overtaking > 5 && !order.is_sorted() } else { overtaking == 0 && order.is_sorted() });
    }
}

#[test]
fn a_disk_that_is_cut_fails_what_is_beyond() {
    let mut disk = disk(64, Plan::default());
    let control = disk.handle();
    control.truncate(32);
    assert_eq!(disk.sectors(), 32);
    assert_eq!(read(&mut disk, 31, 1024).map(drop), FAILED);
    assert_eq!(write(&mut disk, 32, &[1; 512]), FAILED);
    assert_eq!(write(&mut disk, 31, &[1; 512]), Ok(()));
    assert_eq!(run(&mut disk, Work::Flush), Ok(()));
    assert_eq!(control.counters().beyond_end, 2);
    control.truncate(u64::MAX);
    assert_eq!((disk.sectors(), read(&mut disk, 32, 512).unwrap()), (64, vec![0; 512]));
}

/// Writes a sector with a number, for as long as the store may want.
fn numbered(disk: &mut Faulty<Memory>, token: u16, sector: u64, number: u8) -> Started {
    let area = Area::new(1);
    let parts = area.parts(&[512], 0);
    fill(&parts, &[number; 512]);
    // It writes from a copy, so the area may go.
    disk.start(Token(token), Work::Write { sector, parts: Parts::new(&parts) })
}

#[test]
fn a_crash_loses_what_was_not_flushed_and_only_that() {
    let mut seen = BTreeSet::new();
    let mut torn = false;
    for seed in 0..64 {
        let mut disk = disk(8, Plan { seed, ..Plan::default() });
        write(&mut disk, 0, &[1; 1024]).unwrap();
        run(&mut disk, Work::Flush).unwrap();
        write(&mut disk, 0, &[2; 1024]).unwrap();
        write(&mut disk, 0, &[3; 1024]).unwrap();
        write(&mut disk, 4, &[4; 512]).unwrap();
        let mut left = disk.crash().unwrap();
        let bytes = read(&mut left, 0, 8 * SECTOR).unwrap();
        assert!(bytes.chunks(SECTOR).all(|sector| sector.iter().all(|byte| *byte == sector[0])));
        let [a, b, c] = [bytes[0], bytes[SECTOR], bytes[4 * SECTOR]];
        assert!((1..=3).contains(&a) && (1..=3).contains(&b) && [0, 4].contains(&c), "{a} {b} {c}");
        seen.extend([(0, a), (1, b), (4, c)]);
        torn |= a != b;
        let lost = u64::from(a != 3) + u64::from(b != 3) + u64::from(c != 4);
        assert_eq!(left.counters().lost_sectors, lost);
        // What is left is all there is: it doesn't change by another crash.
        assert_eq!(read(&mut left.crash().unwrap(), 0, 8 * SECTOR).unwrap(), bytes);
    }
    assert!(torn, "no write was torn");
    assert_eq!(seen.len(), 8, "not all that may happen has happened: {seen:?}");
}

#[test]
fn a_flush_is_about_what_was_completed_before_it_began() {
    let mut survived = BTreeSet::new();
    for seed in 0..64 {
        // Nothing is told before its third call.
        let mut disk = disk(8, Plan { seed, delay: 2..=2, ..Plan::default() });
        assert_eq!(numbered(&mut disk, 1, 0, 1), Started::Pending);
        assert_eq!(disk.start(Token(2), Work::Flush), Started::Pending);
        assert_eq!([next(&mut disk).0, next(&mut disk).0], [Token(1), Token(2)]);
        let mut left = disk.crash().unwrap();
        // The plan delays this, too.
        survived.insert(read(&mut left, 0, 512).unwrap()[0]);
    }
    assert_eq!(
        survived,
        BTreeSet::from([0, 1]),
        "a flush made durable what wasn't completed when it was asked for, or can't be"
    );
}

#[test]
fn a_flush_that_failed_promises_nothing() {
    let lost = (0..64).any(|seed| {
        // It is the disk beneath that fails it.
        let beneath = disk(8, rules(vec![Rule::all(Kind::Flush)]));
        let mut disk = Faulty::new(beneath, Plan { seed, ..Plan::default() });
        write(&mut disk, 0, &[1; 512]).unwrap();
        assert_eq!(run(&mut disk, Work::Flush), FAILED);
        read(&mut disk.crash().unwrap(), 0, 512).unwrap()[0] == 0
    });
    assert!(lost, "it is durable each time");
}

#[test]
fn a_crash_ends_all_handles() {
    let mut first = disk(8, Plan { delay: 100..=100, ..Plan::default() });
    let mut second = first.handle();
    assert_eq!(numbered(&mut second, 7, 0, 1), Started::Pending);
    let mut left = first.crash().unwrap();
    left.set_plan(Plan::default());
    assert_eq!(second.completed(), Some((Token(7), FAILED)));
    assert_eq!(second.completed(), None);
    for dead in [&mut first, &mut second] {
        assert_eq!(dead.start(Token(1), Work::Flush), Started::Done(FAILED));
        assert_eq!(write(dead, 1, &[5; 512]), FAILED);
    }
    assert_eq!(read(&mut left, 1, 512).unwrap(), [0; 512]);
    assert_eq!(write(&mut left, 1, &[6; 512]), Ok(()));
}

/// What may be done to a disk of four sectors that has two handles.
#[derive(Clone, Debug)]
enum Step {
    Write { handle: usize, sector: u64, sectors: usize },
    Flush { handle: usize },
    Complete { handle: usize },
}

/// What the other side of the seam knows of a write.
struct Written {
    number: u8,
    sectors: std::ops::Range<u64>,
    started: usize,
    told: Option<usize>,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let handle = || 0..2usize;
    let write = (handle(), 0..4u64, 1..=4usize).prop_map(|(handle, sector, sectors)| {
        let sectors = sectors.min(4 - sector as usize);
        Step::Write { handle, sector, sectors }
    });
    let complete = handle().prop_map(|handle| Step::Complete { handle });
    let step = prop_oneof![4 => write, 1 => handle().prop_map(|handle| Step::Flush { handle }), 5 => complete];
    prop::collection::vec(step, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// By what its owner has seen, and nothing else: a sector never has a content older than one that a completed flush was about.
    #[test]
    fn what_was_completed_before_a_completed_flush_survives(steps in steps(), seed in any::<u64>()) {
        let plan = Plan { seed, delay: 0..=3, reorder: true, ..Plan::default() };
        let mut handles = [disk(4, plan), disk(4, Plan::default())];
        handles[1] = handles[0].handle();
        let area = Area::new(1);
        let mut writes: Vec<Written> = Vec::new();
        // Token, beginning, end.
        let mut flushes: Vec<(u16, usize, bool)> = Vec::new();
        for (now, step) in steps.iter().enumerate() {
            let token = now as u16;
            let mut ended = |token: u16, result: Outcome| {
                assert_eq!(result, Ok(()));
                writes.iter_mut().filter(|write| write.started == usize::from(token)).for_each(|write| write.told = Some(now));
                flushes.iter_mut().filter(|flush| flush.0 == token).for_each(|flush| flush.2 = true);
            };
            match *step {
                Step::Complete { handle } => {
                    if let Some((token, result)) = handles[handle].completed() {
                        ended(token.0, result);
                    }
                }
                Step::Flush { handle } => {
                    flushes.push((token, now, false));
                    if let Started::Done(result) = handles[handle].start(Token(token), Work::Flush) {
                        assert_eq!(result, Ok(()));
                        flushes.last_mut().unwrap().2 = true;
                    }
                }
                Step::Write { handle, sector, sectors } => {
                    let number = now as u8 + 1;
                    let parts = area.parts(&[sectors * SECTOR], 0);
                    fill(&parts, &vec![number; sectors * SECTOR]);
                    let written = sector..sector + sectors as u64;
                    let started = handles[handle].start(Token(token), Work::Write { sector, parts: Parts::new(&parts) });
                    let told = (started == Started::Done(Ok(()))).then_some(now);
                    writes.push(Written { number, sectors: written, started: now, told });
                }
            }
        }
        let mut left = handles[0].crash().unwrap();
        left.set_plan(Plan::default());
        let bytes = read(&mut left, 0, 4 * SECTOR).unwrap();
        for sector in 0..4 {
            let here: Vec<&Written> = writes.iter().filter(|write| write.sectors.contains(&sector)).collect();
            let content = &bytes[sector as usize * SECTOR..][..SECTOR];
            prop_assert!(content.iter().all(|byte| *byte == content[0]), "a sector is torn");
            // 0 is what was there in the beginning.
            let found = here.iter().position(|write| write.number == content[0]);
            prop_assert!(found.is_some() || content[0] == 0, "{} was never written", content[0]);
            let newer = &here[found.map_or(0, |found| found + 1)..];
            let promised = |write: &&&Written| {
                flushes.iter().any(|(_, began, done)| *done && write.told.is_some_and(|told| told < *began))
            };
            let broken = newer.iter().find(promised).map(|write| write.number);
            prop_assert_eq!(broken, None, "sector {} has {} only", sector, content[0]);
        }
    }
}

#[test]
fn it_may_stand_on_a_disk_with_threads() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 20).unwrap();
    let store = FileStore::open(file.path(), &Options::default()).unwrap();
    // SAFETY: what is written from is a copy that `Faulty` keeps; what is read into is waited for.
    let store = unsafe { store.with_workers(&Workers::default()) }.unwrap();
    let mut disk = Faulty::new(store, Plan { delay: 0..=2, reorder: true, ..Plan::default() });
    let area = Area::new(1);
    let parts = area.parts(&[4096], 0);
    for number in 0..64u16 {
        fill(&parts, &[number as u8 + 1; 4096]);
        let work = Work::Write { sector: u64::from(number) * 8, parts: Parts::new(&parts) };
        assert_eq!(disk.start(Token(number), work), Started::Pending);
    }
    for _ in 0..64 {
        next(&mut disk).1.unwrap();
    }
    run(&mut disk, Work::Flush).unwrap();
    // In flight when the power fails.
    let work = Work::Write { sector: 1024, parts: Parts::new(&parts) };
    disk.start(Token(1), work);
    let mut left = disk.crash().unwrap();
    for number in 0..64u16 {
        assert_eq!(read(&mut left, u64::from(number) * 8, 4096).unwrap(), [number as u8 + 1; 4096]);
    }
    let last = read(&mut left, 1024, 4096).unwrap();
    assert!(last.iter().all(|byte| [0, 64].contains(byte)));
}

/// A disk that writes when it is asked what is completed, and not before.
struct Late {
    memory: Memory,
    waiting: Vec<(Token, u64, Vec<u8>)>,
}

impl Store for Late {
    fn handle(&self) -> Self {
        Self { memory: self.memory.handle(), waiting: Vec::new() }
    }

    fn sectors(&self) -> u64 {
        self.memory.sectors()
    }

    fn start(&mut self, token: Token, work: Work<'_>) -> Started {
        let Work::Write { sector, parts } = work else { return Started::Done(run(&mut self.memory, work)) };
        self.waiting.push((token, sector, contents(&parts.iter().collect::<Vec<_>>())));
        Started::Pending
    }

    fn completed(&mut self) -> Option<(Token, Outcome)> {
        let (token, sector, bytes) = self.waiting.pop()?;
        Some((token, write(&mut self.memory, sector, &bytes)))
    }
}

#[test]
fn nothing_comes_late_into_what_a_crash_has_left() {
    let memory = Memory::new(vec![0; 8 * SECTOR]);
    let mut disk = Faulty::new(Late { memory, waiting: Vec::new() }, Plan::default());
    let area = Area::new(1);
    let parts = area.parts(&[512], 0);
    fill(&parts, &[1; 512]);
    let work = Work::Write { sector: 0, parts: Parts::new(&parts) };
    assert_eq!(disk.start(Token(1), work), Started::Pending);
    let mut left = disk.crash().unwrap();
    write(&mut left, 0, &[9; 512]).unwrap();
    assert_eq!(disk.completed(), Some((Token(1), FAILED)));
    assert_eq!(read(&mut left, 0, 512).unwrap(), [9; 512]);
}
