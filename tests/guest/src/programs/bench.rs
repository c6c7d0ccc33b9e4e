//! Reads a disk by requests of a page, as many at once as the ring takes, with quiet before and after, in which who started it can
//! look at what the domain has cost: `bench`.

use alloc::string::{String, ToString};

use hypercall::Platform as _;
use hypercall::call::vcpu;
use hypercall::mem::PAGE_SIZE;
use suite::block::{Client, XVDA};
use suite::exec::{Program, run as run_programs};
use suite::node::Node;
use suite::{Context as _, Failure};
use xbd::SECTOR;
use xbd::front::Config;
use xbd::protocol::Operation;
use xen_sys::vcpu::RUNSTATE_running;

use super::Args;
use super::outside::{self, Administrator, Outside};
use crate::{Bare, println, shared};

/// How long the domain does nothing before it begins.
const QUIET_NS: u64 = 10_000_000_000;

pub(super) fn run(args: &Args<'_>) -> Result<(), String> {
    let passes = args.number("passes", 1)?;
    let persistent = args.get("persistent") == Some("yes");
    let node = outside::node()?;
    let life = Program::new("domU", live(&node, passes, persistent));
    run_programs(core::slice::from_ref(&node), &mut Outside, [life].into()).map_err(|failure| failure.to_string())
}

/// Returns the processor time that Xen has charged this domain.
fn running_ns() -> Result<u64, Failure> {
    Ok(vcpu::get_runstate_info(&Bare, 0).context("runstate")?.time[RUNSTATE_running as usize])
}

async fn live(node: &Node<Bare>, passes: u64, persistent: bool) -> Result<(), Failure> {
    let administrator = Administrator::new(node)?;
    let mut disk = Client::attach_with(node, XVDA, Config { persistent, ..Config::DEFAULT }).await?;
    disk.set_io_pages(1);
    let sectors = disk.disk().sectors - disk.disk().sectors % (PAGE_SIZE / SECTOR) as u64;
    // What is made once is made.
    disk.transfer(Operation::Read, 0..sectors.min(4096), |_, _| {}, |_, _| {}).await?;
    let before = disk.counters();
    println!("xenlab: bench ready");
    let begin = Bare.now_ns() + QUIET_NS;
    while Bare.now_ns() < begin {
        shared::wait(&[], begin);
    }
    let begin = running_ns()?;
    for _ in 0..passes {
        disk.transfer(Operation::Read, 0..sectors, |_, _| {}, |_, _| {}).await?;
    }
    let running_ns = running_ns()? - begin;
    let counters = disk.counters();
    println!(
        "xenlab: bench done requests={} running_ns={running_ns} notifications={} copied={}",
        counters.requests - before.requests,
        counters.notifications - before.notifications,
        counters.bounced_bytes - before.bounced_bytes,
    );
    loop {
        let seen = node.happened();
        disk.follow()?;
        if administrator.wants_the_end()? {
            return Ok(());
        }
        if node.happened() == seen {
            node.turn().await;
        }
    }
}
