//! A disk that is in use while its domain is saved and restored again and again, at moments that the seed decides.
#![cfg(not(target_os = "none"))]

use std::cell::{Cell, RefCell};

use hypercall::DomId;
use hypercall::mem::PageBuf;
use mock::{Config, Domain, Fault, Refusal};
use suite::block::{self, Client, Memory, XVDA};
use suite::exec::Program;
use suite::faults::{hunt, sweep};
use suite::on_mock::{Mock, MockBed, save_and_restore, seeds};
use suite::scenarios::{Bed, Scenario};
use suite::{Context, Failure, ensure};
use xbd::protocol::Operation;
use xbd::{SECTOR, back, front};
use xen_sys::errno::XEN_ENOMEM;

#[global_allocator]
static ALLOCATOR: mock::alloc::Counting = mock::alloc::Counting;

const SECTORS: u64 = 128;

/// How the front end moves data, and what it has to do it with.
fn ways() -> [(front::Config, back::Config); 4] {
    let small = (block::SMALL_FRONT, block::SMALL_BACK);
    let back = back::Config { max_queues: 2, persistent: true, max_persistent: 64, ..block::SMALL_BACK };
    [
        small,
        (front::Config { max_queues: 2, ..small.0 }, back),
        (front::Config { persistent: true, max_grants: 60, ..small.0 }, back),
        (front::Config { trusted: false, max_grants: 60, ..small.0 }, back),
    ]
}

/// What a round writes into a sector.
fn contents(round: u64, sector: u64) -> [u8; SECTOR] {
    std::array::from_fn(|at| (round * 31 + sector * 7 + at as u64) as u8)
}

/// Rounds of writing all of the disk and reading it back, in a domain that is saved `SAVES` times meanwhile.
fn saved<const WAY: usize, const ROUNDS: u64, const SAVES: u64>(
    bed: &mut Bed<'_, Domain, Mock>,
) -> Result<Vec<String>, Failure> {
    let (front_config, back_config) = ways()[WAY];
    let machine = bed.world.machine();
    let (toolstack, front, back, seed) = (bed.toolstack.clone(), bed.front.clone(), bed.back.clone(), bed.seed);
    let device = RefCell::new(block::disk(front.id(), back.id()));
    device.borrow().attach(toolstack.store()).context("attach")?;
    let (done, requests) = (Cell::new(false), Cell::new(0));
    let client = async {
        let mut disk = Client::attach_with(&front, XVDA, front_config).await?;
        disk.set_io_pages(2);
        for round in 0..ROUNDS {
            let fill = |sector: u64, buffer: &PageBuf<Domain>| {
                for at in 0..buffer.len() / SECTOR {
                    buffer.shared().write(at * SECTOR, &contents(round, sector + at as u64));
                }
            };
            disk.transfer(Operation::Write, 0..SECTORS, fill, |_, _| {}).await?;
            disk.flush().await?;
            let (mut wrong, mut seen) = (Vec::new(), 0);
            let check = |sector: u64, buffer: &PageBuf<Domain>| {
                for at in 0..buffer.len() / SECTOR {
                    let mut bytes = [0; SECTOR];
                    buffer.shared().read(at * SECTOR, &mut bytes);
                    seen += 1;
                    if bytes != contents(round, sector + at as u64) {
                        wrong.push(sector + at as u64);
                    }
                }
            };
            disk.transfer(Operation::Read, 0..SECTORS, |_, _| {}, check).await?;
            ensure(wrong.is_empty(), format_args!("round {round}: sectors {wrong:?} read other than written"))?;
            ensure(seen == SECTORS, format_args!("round {round}: {seen} sectors were read"))?;
        }
        done.set(true);
        requests.set(disk.counters().requests);
        device.borrow().ask_detach(toolstack.store()).context("detach")?;
        disk.wait_close_wanted().await?;
        disk.close().await
    };
    let saves = Cell::new(0);
    let kernel = async {
        let mut lots = seed;
        while saves.get() < SAVES {
            lots = lots.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            // A round takes a few turns.
            for _ in 0..(lots >> 32) % (8 * ROUNDS) {
                front.pause().await;
            }
            if done.get() {
                break;
            }
            save_and_restore(&machine, &toolstack, &front, &mut device.borrow_mut())?;
            saves.set(saves.get() + 1);
        }
        Ok(())
    };
    let disk = Memory::new(vec![0xee; SECTORS as usize * SECTOR]);
    let mut flushes = 0;
    let server = async {
        // The next one serves when the last has let go: no write of before comes after one of now.
        while !done.get() {
            let handle = back::Store::handle(&disk);
            flushes = block::serve_with(&back, XVDA, handle, back_config).await?.store.flushes();
        }
        Ok(())
    };
    bed.run(vec![Program::new("client", client), Program::new("kernel", kernel), Program::new("server", server)])?;
    device.borrow().clean_up(bed.toolstack.store()).context("clean up")?;
    let right: Vec<u8> = (0..SECTORS).flat_map(|sector| contents(ROUNDS - 1, sector)).collect();
    ensure(disk.bytes() == right, "the store has other bytes than were written last")?;
    ensure(flushes >= ROUNDS, format_args!("{flushes} flushes"))?;
    // Two pages a request, or one where it takes a request for each eleven.
    let once = ROUNDS * (2 * SECTORS / 16 + 1);
    Ok(vec![format!("{} {}", saves.get(), requests.get() - once)])
}

fn scenario<const WAY: usize, const ROUNDS: u64, const SAVES: u64>() -> Scenario<Domain, Mock> {
    let about = "a disk in use, in a domain that is saved and restored";
    Scenario { name: "saved", about, run: saved::<WAY, ROUNDS, SAVES> }
}

fn all_ways() -> [Scenario<Domain, Mock>; 4] {
    [scenario::<0, 6, 8>(), scenario::<1, 6, 8>(), scenario::<2, 6, 8>(), scenario::<3, 6, 8>()]
}

/// Runs all ways with these seeds. Returns how often a domain was saved, and how many requests were sent again for it.
fn run(config: impl Fn(u64) -> Config, last: u64) -> (u64, u64) {
    let (mut saves, mut again) = (0, 0);
    for (way, scenario) in all_ways().iter().enumerate() {
        for seed in seeds(1..=last) {
            let mut bed = MockBed::new(config(seed));
            match bed.run(scenario) {
                Err(failure) => panic!("way {way}: {failure}"),
                Ok(lines) => {
                    let numbers: Vec<u64> = lines[0].split(' ').map(|number| number.parse().unwrap()).collect();
                    (saves, again) = (saves + numbers[0], again + numbers[1]);
                }
            }
        }
    }
    (saves, again)
}

#[test]
fn a_disk_loses_nothing_in_a_domain_that_is_saved_and_restored() {
    let seeds = if cfg!(miri) { 1 } else { 12 };
    let (saves, again) = run(Config::deterministic, seeds);
    assert!(saves > 3 * seeds && again > saves, "{saves} saves, {again} requests sent again");
}

#[test]
#[cfg_attr(miri, ignore = "the other test is for PV domains")]
fn nor_in_one_whose_frame_numbers_are_translated() {
    let (saves, again) = run(|seed| Config::deterministic(seed).auto_translated(), 6);
    assert!(saves > 20 && again > saves, "{saves} saves, {again} requests sent again");
}

/// A trial: one round, and one save, under a plan of faults.
fn trial(seed: u64, plan: &[Fault]) -> Result<usize, Failure> {
    let mut bed = MockBed::new(Config::deterministic(seed));
    plan.iter().for_each(|fault| bed.machine.order(*fault));
    bed.bear(&scenario::<1, 1, 1>())
}

/// The number of the restored domain.
const RESTORED: DomId = DomId(3);

#[test]
#[cfg_attr(miri, ignore = "hundreds of runs")]
fn everything_may_go_wrong_once_in_the_domain_that_comes_back() {
    let faults = [
        Fault::Hypercall { domain: Some(RESTORED), kind: None, nth: 1, errno: XEN_ENOMEM },
        Fault::Alloc { domain: RESTORED, nth: 1 },
        Fault::Request { domain: Some(RESTORED), nth: 1, refusal: Refusal::Again },
        Fault::Request { domain: Some(RESTORED), nth: 1, refusal: Refusal::Quota },
        Fault::RepeatEvent { to: Some(RESTORED), nth: 1 },
        Fault::DelayEvent { to: Some(RESTORED), nth: 1 },
        Fault::RepeatWatch { to: Some(RESTORED), nth: 1 },
    ];
    let struck = faults.map(|fault| sweep(1, fault, "trial", &trial).unwrap_or_else(|failure| panic!("{failure}")));
    assert!(struck.iter().all(|count| *count > 0), "{struck:?}");
}

#[test]
#[cfg_attr(miri, ignore = "many runs")]
fn plans_of_faults_are_borne_before_and_after() {
    hunt(seeds(1..=30), 6, "trial", &trial).unwrap_or_else(|failure| panic!("{failure}"));
}
