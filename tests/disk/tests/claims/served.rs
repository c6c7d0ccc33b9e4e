//! The disks behind a back end, with a front end before it.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs;

use disk::{Faulty, FileStore, Options, Plan, Workers};
use hypercall::mem::PageBuf;
use mock::{Config, Domain};
use suite::block::{self, Client, Memory, XVDA};
use suite::exec::Program;
use suite::on_mock::MockBed;
use suite::scenarios::noise;
use suite::{Context, Failure};
use xbd::SECTOR;
use xbd::back::Store;
use xbd::protocol::Operation;

/// Attaches a disk, lets `client` use it, and detaches it.
fn served<S: Store>(seed: u64, store: S, client: impl AsyncFnOnce(&mut Client<Domain>) -> Result<(), Failure>) {
    let mut bed = MockBed::new(Config::deterministic(seed));
    let device = block::disk(bed.front.id(), bed.back.id());
    let (toolstack, front, back) = (bed.toolstack.clone(), bed.front.clone(), bed.back.clone());
    device.attach(toolstack.store()).unwrap();
    let client = async {
        let mut disk = Client::attach(&front, XVDA).await?;
        client(&mut disk).await?;
        device.ask_detach(toolstack.store()).context("detach")?;
        disk.wait_close_wanted().await?;
        disk.close().await
    };
    let server = async { block::serve(&back, XVDA, store).await.map(drop) };
    bed.bed().run(vec![Program::new("client", client), Program::new("server", server)]).unwrap();
    device.clean_up(bed.toolstack.store()).unwrap();
    bed.check().unwrap();
}

async fn write(disk: &mut Client<Domain>, first: u64, bytes: &[u8]) -> Result<(), Failure> {
    let end = first + (bytes.len() / SECTOR) as u64;
    let fill = |sector: u64, buffer: &PageBuf<Domain>| {
        buffer.shared().write(0, &bytes[(sector - first) as usize * SECTOR..][..buffer.len()]);
    };
    disk.transfer(Operation::Write, first..end, fill, |_, _| {}).await
}

#[test]
fn a_file_with_workers_is_served() {
    let contents = noise(1, 4 << 20);
    for direct in [false, true] {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(4 << 20).unwrap();
        let options = Options { direct, ..Options::default() };
        let Ok(store) = FileStore::open(file.path(), &options) else {
            println!("left out: no direct access in {}", file.path().display());
            continue;
        };
        // SAFETY: only a back end uses it.
        let store = unsafe { store.with_workers(&Workers { threads: 3, ..Workers::default() }) }.unwrap();
        let sum = RefCell::new(None);
        served(1, store, async |disk: &mut Client<Domain>| {
            write(disk, 0, &contents).await?;
            disk.flush().await?;
            *sum.borrow_mut() = Some(disk.sha256().await?);
            Ok(())
        });
        assert!(fs::read(file.path()).unwrap() == contents);
        let expected: [u8; 32] =
            sha2::Digest::finalize(sha2::Digest::chain_update(sha2::Sha256::default(), &contents)).into();
        assert_eq!(sum.into_inner(), Some(expected));
    }
}

#[test]
fn what_a_front_end_has_flushed_survives_a_crash() {
    const FLUSHED: u64 = 128;
    let mut lost = BTreeSet::new();
    for seed in 1..=8 {
        let plan = Plan { seed, delay: 0..=5, reorder: true, ..Plan::default() };
        let disk = Faulty::new(Memory::new(vec![0; 256 * SECTOR]), plan);
        let control = disk.handle();
        let (first, second) = (noise(seed, 128 * SECTOR), noise(seed + 100, 128 * SECTOR));
        served(seed, disk, async |disk: &mut Client<Domain>| {
            write(disk, 0, &first).await?;
            disk.flush().await?;
            write(disk, FLUSHED, &second).await
        });
        let left = control.crash().unwrap();
        let bytes = left.look(Memory::bytes);
        assert!(bytes[..FLUSHED as usize * SECTOR] == first, "seed {seed}");
        lost.insert(bytes[FLUSHED as usize * SECTOR..] != second);
    }
    assert!(lost.contains(&true), "what was not flushed survives, too");
}
