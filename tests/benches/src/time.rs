//! Time, as a ratio of what ran in turns: the machine may do as it likes, it does so to all of them.

use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::rivals::{BATCHES, Opened, Rival, SHAPES};

/// Requests between two looks at the clock.
const REQUESTS: u64 = 4096;
/// Turns of each.
const TURNS: u32 = 200;
const VIRTIO_TURNS: u32 = 20;
/// Rounds of two threads between two looks at the clock, and turns.
const ROUNDS: u64 = 2000;
const LOCKSTEP_TURNS: u32 = 40;
const LOCKSTEP_LIMIT: Duration = Duration::from_secs(10);

/// What one rival needs for a request.
#[derive(Clone, Debug)]
pub struct Time {
    /// Whose.
    pub rival: &'static str,
    /// One of [`SHAPES`].
    pub shape: &'static str,
    /// Requests a round.
    pub batch: u32,
    /// The least that a request took, in nanoseconds: only to be compared within one run.
    pub nanoseconds: f64,
}

/// Measures all rivals in one thread, in turns; `progress` is told each turn.
///
/// # Errors
/// A ring can't be opened.
pub fn single(rivals: &[Rival], mut progress: impl FnMut()) -> Result<Vec<Time>> {
    let mut times = Vec::new();
    for (index, shape) in SHAPES.into_iter().enumerate() {
        for batch in BATCHES {
            let mut runners = Vec::new();
            for rival in rivals {
                if let Some(work) = rival.works[index] {
                    runners.push((rival.name, Opened::new(work)?, f64::MAX));
                }
            }
            for turn in 0..TURNS {
                for (name, ring, best) in &mut runners {
                    if *name == "virtio" && turn >= VIRTIO_TURNS {
                        continue;
                    }
                    let start = Instant::now();
                    ring.run(REQUESTS / u64::from(batch), batch);
                    *best = best.min(start.elapsed().as_nanos() as f64 / REQUESTS as f64);
                }
            }
            progress();
            times.extend(runners.iter().map(|(rival, _, nanoseconds)| Time {
                rival,
                shape,
                batch,
                nanoseconds: *nanoseconds,
            }));
        }
    }
    Ok(times)
}

/// Measures block requests of one segment between two threads, in turns. The times are in units of the line's way there and back
/// between two processors; of both, the least counts. A machine with other work to do has less turns.
///
/// # Errors
/// A ring can't be opened.
pub fn lockstep(rivals: &[Rival], mut progress: impl FnMut()) -> Result<Vec<Time>> {
    let mut times = Vec::new();
    for batch in [1, 32] {
        let mut unit = f64::MAX;
        let mut least = vec![f64::MAX; rivals.len()];
        let start = Instant::now();
        for turn in 0..LOCKSTEP_TURNS {
            progress();
            if turn > 0 && start.elapsed() > LOCKSTEP_LIMIT {
                continue;
            }
            unit = unit.min(ping_pong());
            for (rival, least) in rivals.iter().zip(&mut least) {
                let Some(work) = rival.works[0] else { continue };
                let Some(took) = Opened::new(work)?.run_ends(ROUNDS, batch) else { continue };
                *least = least.min(took.as_nanos() as f64 / (ROUNDS as f64 * f64::from(batch)));
            }
        }
        for (rival, least) in rivals.iter().zip(least).filter(|(_, least)| *least < f64::MAX) {
            times.push(Time { rival: rival.name, shape: SHAPES[0], batch, nanoseconds: least / unit });
        }
    }
    Ok(times)
}

/// How often [`single`] and [`lockstep`] tell their progress.
pub const STEPS: u64 = (SHAPES.len() * BATCHES.len()) as u64 + 2 * LOCKSTEP_TURNS as u64;

/// Returns how many nanoseconds a line of the cache needs to another processor and back.
fn ping_pong() -> f64 {
    #[repr(align(128))]
    struct Line(AtomicU32);
    let line = Line(AtomicU32::new(0));
    let wait = |for_value| {
        while line.0.load(Ordering::Acquire) != for_value {
            std::hint::spin_loop();
        }
    };
    let mut nanoseconds = 0.0;
    thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..=ROUNDS as u32 {
                wait(2 * round + 1);
                line.0.store(2 * round + 2, Ordering::Release);
            }
        });
        let turn = |round| {
            line.0.store(2 * round + 1, Ordering::Release);
            wait(2 * round + 2);
        };
        // Both are at it then.
        turn(0);
        let start = Instant::now();
        (1..=ROUNDS as u32).for_each(turn);
        nanoseconds = start.elapsed().as_nanos() as f64 / ROUNDS as f64;
    });
    nanoseconds
}
