//! Both ends of a disk on threads of their own, in real time.
#![cfg(not(target_os = "none"))]

use std::sync::mpsc;

use hypercall::mem::PageBuf;
use mock::{Domain, Machine};
use suite::block::{self, Client, Memory};
use suite::exec::{Program, World, run};
use suite::node::Node;
use suite::scenarios::noise;
use suite::{Context, Failure};
use xbd::SECTOR;
use xbd::protocol::Operation;

/// Sectors of the disk.
const SECTORS: usize = if cfg!(miri) { 64 } else { 16 * 1024 };

/// A thread of a domain: the machine works by itself.
struct Thread;

impl World for Thread {
    fn pump(&mut self) -> bool {
        false
    }

    fn choose(&mut self, _: usize) -> usize {
        0
    }
}

/// Writes the whole disk and reads it back, while others do the same.
async fn copy(node: &Node<Domain>, handle: u32, seed: u64, tell: impl FnOnce()) -> Result<(), Failure> {
    let data = noise(seed, SECTORS * SECTOR);
    let mut disk = Client::attach(node, handle).await?;
    let all = 0..SECTORS as u64;
    let part = |sector: u64, buffer: &PageBuf<Domain>| {
        let start = sector as usize * SECTOR;
        start..start + buffer.len()
    };
    let fill = |sector, buffer: &PageBuf<Domain>| buffer.shared().write(0, &data[part(sector, buffer)]);
    disk.transfer(Operation::Write, all.clone(), fill, |_, _| {}).await?;
    disk.flush().await?;
    let mut wrong = 0;
    let look = |sector, buffer: &PageBuf<Domain>| {
        let mut bytes = vec![0; buffer.len()];
        buffer.shared().read(0, &mut bytes);
        wrong += usize::from(bytes != data[part(sector, buffer)]);
    };
    disk.transfer(Operation::Read, all, |_, _| {}, look).await?;
    suite::ensure(wrong == 0, format_args!("{wrong} request(s) read other than was written"))?;
    tell();
    disk.wait_close_wanted().await?;
    disk.close().await
}

#[test]
fn disks_of_several_domains_are_copied_at_once() {
    let machine = Machine::threaded();
    let toolstack = machine.services(machine.dom0().id());
    // The second pair has its ends the other way round: each domain serves and uses.
    let nodes = [machine.boot(), machine.boot()];
    machine.mark_usage();
    let pairs = [(0, 1), (1, 0)];
    let devices = pairs.map(|(front, back)| block::disk(nodes[front].id, nodes[back].id));
    for device in &devices {
        device.attach(&toolstack.store).context("attach").unwrap();
    }
    std::thread::scope(|scope| {
        let (done, dones) = mpsc::channel();
        for (at, own) in nodes.iter().enumerate() {
            let (own, done, seed) = (own.clone(), done.clone(), at as u64 + 1);
            scope.spawn(move || {
                let node = Node::new("domain", own, mock::alloc::count);
                let client = copy(&node, block::XVDA, seed, move || done.send(at).expect("the toolstack listens"));
                let server = async {
                    let served = block::serve(&node, block::XVDA, Memory::new(vec![0; SECTORS * SECTOR])).await?;
                    let other = noise(3 - seed, SECTORS * SECTOR);
                    suite::ensure(served.store.bytes() == other, "the store has other bytes than were written")?;
                    suite::ensure(served.store.flushes() == 1, "the flush has not reached the store")
                };
                // Client and server of a domain share its thread, as drivers share a kernel.
                let programs = vec![Program::new("client", client), Program::new("server", server)];
                let ended = run(std::slice::from_ref(&node), &mut Thread, programs);
                assert_eq!(ended, Ok(()));
            });
        }
        drop(done);
        for at in dones {
            devices[at].ask_detach(&toolstack.store).context("detach").unwrap();
        }
    });
    for device in &devices {
        assert!(!device.back_exists(&toolstack.store).unwrap());
        device.clean_up(&toolstack.store).unwrap();
    }
    machine.check_quiet();
}
