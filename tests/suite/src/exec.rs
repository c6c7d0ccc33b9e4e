//! Runs programs until all are done, or tells which one is stuck.

use alloc::boxed::Box;
use alloc::format;
use alloc::sync::Arc;
use alloc::task::Wake;
use alloc::vec::Vec;
use core::future::Future;
use core::pin::Pin;
use core::sync::atomic::{AtomicBool, Ordering};
use core::task::{Context, Poll, Waker};

use hypercall::Platform;

use crate::Failure;
use crate::node::Node;

/// A program: what one domain does in a scenario.
pub struct Program<'a> {
    name: &'static str,
    future: Pin<Box<dyn Future<Output = Result<(), Failure>> + 'a>>,
}

impl<'a> Program<'a> {
    /// Makes a program; `name` stands in messages.
    pub fn new(name: &'static str, future: impl Future<Output = Result<(), Failure>> + 'a) -> Self {
        Self { name, future: Box::pin(future) }
    }
}

/// What a bed lends to the executor beside its nodes.
pub trait World {
    /// Lets everything run that is no program: the store daemon, timers. Returns whether anything has moved.
    fn pump(&mut self) -> bool;

    /// Chooses one of `count`, by the seed: which program runs next.
    fn choose(&mut self, count: usize) -> usize;

    /// Takes note whose turn it is; of nobody's, when the turn ends.
    fn turn_of(&mut self, _program: Option<&'static str>) {}

    /// How long nothing may happen before the programs count as stuck, in nanoseconds. Longer where somebody outside decides
    /// when something happens.
    fn patience_ns(&self) -> u64 {
        PATIENCE_NS
    }
}

/// How long nothing may happen before a scenario counts as stuck, in nanoseconds, unless its [`World`] has more patience.
pub const PATIENCE_NS: u64 = 10_000_000_000;

struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Runs the programs, in an order that `world` chooses, until all are done.
///
/// # Errors
/// The [`Failure`] of the first program that fails, or one that names the programs that wait for something that doesn't come.
pub fn run<P: Platform>(nodes: &[Node<P>], world: &mut impl World, programs: Vec<Program<'_>>) -> Result<(), Failure> {
    let mut running = programs;
    let woken = Arc::new(Woken(AtomicBool::new(false)));
    let waker = Waker::from(woken.clone());
    let mut context = Context::from_waker(&waker);
    let mut idle_since = None;
    while !running.is_empty() {
        let mut moved = false;
        // Each program has one turn a round, in an order of the world's choice.
        let mut turns: Vec<usize> = (0..running.len()).collect();
        let mut done = Vec::new();
        while !turns.is_empty() {
            let index = turns.swap_remove(world.choose(turns.len()));
            let program = &mut running[index];
            world.turn_of(Some(program.name));
            let turn = program.future.as_mut().poll(&mut context);
            world.turn_of(None);
            match turn {
                Poll::Ready(Ok(())) => done.push(index),
                Poll::Ready(Err(failure)) => return Err(Failure(format!("{}: {failure}", program.name))),
                Poll::Pending => {}
            }
            moved |= world.pump();
            for node in nodes {
                moved |= node.deliver();
            }
        }
        moved |= !done.is_empty() | woken.0.swap(false, Ordering::Relaxed);
        done.sort_unstable();
        done.into_iter().rev().for_each(|index| drop(running.swap_remove(index)));
        if moved {
            idle_since = None;
            continue;
        }
        wait(nodes, &running, &mut idle_since, world.patience_ns())?;
    }
    Ok(())
}

/// Nobody has anything to do: waits for the outside, which on a deterministic bed is nothing but the clock.
fn wait<P: Platform>(
    nodes: &[Node<P>],
    running: &[Program<'_>],
    idle_since: &mut Option<u64>,
    patience_ns: u64,
) -> Result<(), Failure> {
    let Some(node) = nodes.first() else { return Ok(()) };
    let platform = &node.own().platform;
    let now = platform.now_ns();
    let since = *idle_since.get_or_insert(now);
    if now.saturating_sub(since) > patience_ns {
        let names: Vec<&str> = running.iter().map(|program| program.name).collect();
        return Err(Failure(format!("stuck: {} wait(s) for something that doesn't come", names.join(", "))));
    }
    let ports: Vec<_> = nodes.iter().flat_map(Node::waits).collect();
    platform.wait(&ports, now + PATIENCE_NS / 100);
    Ok(())
}
