//! Whatever may happen to a disk, in every state that its life has. Each cell is a disk of its own, on a machine with another disk of
//! other domains beside it: nothing panics or lasts for ever, no rule of a kernel is broken, nothing is left, each I/O ends once, and the
//! other disk works all the time.
//!
//! `cargo test -p suite --test xbd_matrix -- --nocapture` prints the table.
#![cfg(not(target_os = "none"))]
#![cfg(not(miri))]

#[path = "../common/mod.rs"]
mod common;
mod pair;

use std::panic::{AssertUnwindSafe, catch_unwind};

use common::neighbour::Neighbour;
use common::{FrontOwner, Lots};
use hypercall::event::Events;
use hypercall::grant::Grants;
use hypercall::{DomId, GrantRef};
use mock::{Fault, Node, Refusal, Suspended, suspend};
use pair::{Pair, SECTORS, Setup, setups};
use xbd::SECTOR;
use xbd::protocol::Operation;
use xenbus::device::State;
use xenbus::ring::Field;
use xenbus::store::{Perm, Store, Tx};

type Happens = fn(&mut Pair);

/// The states, in the order of a life.
const STATES: [(&str, Happens); 9] = [
    ("begun", |_| {}),
    ("offered", |pair| pair.back_turns()),
    ("asked", |pair| {
        pair.back_turns();
        pair.front_turns();
    }),
    ("answered", |pair| {
        pair.back_turns();
        pair.front_turns();
        pair.back_turns();
    }),
    ("connected", Pair::connect),
    ("submitted", |pair| {
        pair.connect();
        pair.submit();
    }),
    ("in flight", |pair| {
        pair.connect();
        pair.disk.hold(true);
        pair.submit();
        pair.back_turns();
    }),
    ("done", |pair| {
        pair.connect();
        pair.submit();
        pair.back_turns();
    }),
    ("closing", |pair| {
        pair.connect();
        pair.disk.hold(true);
        pair.submit();
        pair.back_turns();
        pair.front.front.close().unwrap();
        pair.back_turns();
    }),
];

fn order(pair: &Pair, faults: impl IntoIterator<Item = Fault>) {
    faults.into_iter().for_each(|fault| pair.bed.machine.order(fault));
}

fn ends(pair: &Pair) -> [DomId; 2] {
    [pair.bed.front.id, pair.bed.back.id]
}

/// Takes all grants that the front end's domain has, and all ports of both.
fn full_tables(pair: &mut Pair) {
    let mut one = [GrantRef(0)];
    while pair.bed.front.grants.reserve(&mut one).is_ok() {
        pair.refs.push(one[0]);
    }
    for node in [&pair.bed.front, &pair.bed.back] {
        while let Ok(port) = node.events.alloc_unbound(DomId(0)) {
            pair.ports.push((node.clone(), port));
        }
    }
    pair.follow();
}

fn hide(node: &Node, path: &str) {
    let hidden = [Perm { domain: node.id, read: false, write: false }];
    let _ = node.store.set_permissions(Tx::NONE, &format!("{path}/state"), &hidden);
}

/// What happens.
const FAULTS: [(&str, Happens); 27] = [
    ("front end crashes", |pair| {
        pair.bed.machine.kill(pair.bed.front.id);
        pair.front_is_dead = true;
        pair.back_turns();
    }),
    ("back end crashes", |pair| {
        pair.bed.machine.kill(pair.bed.back.id);
        pair.back = None;
        pair.front_turns();
    }),
    ("front end begins anew", |pair| {
        // What its I/Os were, its kernel has forgotten; what it has granted is taken back when the back end has let go.
        let new = FrontOwner::with(&pair.bed, pair.setup.front).unwrap();
        let old = std::mem::replace(&mut pair.front, new);
        pair.follow();
        pair.disk.hold(false);
        pair.recover();
        drop(old);
    }),
    ("front end is restored", |pair| {
        pair.bed.restore();
        pair.front.resume();
        // Whoever has served the saved domain ends what he has of it, and another serves the restored one.
        pair.disk.hold(false);
        pair.back_turns();
        if let Some(back) = &mut pair.back {
            back.poll();
            back.follow(&pair.bed);
            assert!(back.removed);
        }
        pair.serve();
        pair.follow();
    }),
    ("suspend is cancelled", |pair| {
        pair.bed.machine.cancel_next_suspend(pair.bed.front.id);
        assert_eq!(suspend(&pair.bed.front), Ok(Suspended::Cancelled));
        pair.follow();
    }),
    ("back end goes and returns", |pair| {
        // As where its driver is taken away and put back. An owner who is asked to let go does so.
        pair.bed.back_says("state", State::Closing.number()).unwrap();
        pair.follow();
        pair.disk.hold(false);
        if let Some(back) = &mut pair.back {
            back.poll();
        }
        if pair.front.close_wanted {
            pair.front.front.close().unwrap();
        }
        pair.follow();
    }),
    ("events are lost", |pair| {
        order(
            pair,
            ends(pair).into_iter().flat_map(|to| (1..=3).map(move |nth| Fault::DropEvent { to: Some(to), nth })),
        );
        pair.follow();
    }),
    ("events come twice", |pair| {
        let twice = |to| (1..=3).map(move |nth| Fault::RepeatEvent { to: Some(to), nth });
        order(pair, ends(pair).into_iter().flat_map(twice));
        pair.notify(1);
        pair.follow();
    }),
    ("events come late", |pair| {
        order(
            pair,
            ends(pair).into_iter().flat_map(|to| (1..=3).map(move |nth| Fault::DelayEvent { to: Some(to), nth })),
        );
        pair.follow();
    }),
    ("events storm", |pair| {
        for _ in 0..20 {
            pair.notify(100);
            pair.follow();
        }
    }),
    ("requests without end", |pair| pair.corrupt(Field::ReqProd)),
    ("answers without end", |pair| pair.corrupt(Field::RspProd)),
    ("grant in use at its end", |pair| {
        // The first segment of the first request.
        let gref = pair.ring().and_then(|gref| {
            let mut bytes = [0; 4];
            pair.map(gref)?.view(0)?.read(64 + 24, &mut bytes);
            Some(GrantRef(u32::from_le_bytes(bytes)))
        });
        pair.window = None;
        if let Some(gref) = gref.filter(|gref| gref.0 > 0) {
            pair.map(gref);
        }
        pair.disk.hold(false);
        if let Some(back) = &mut pair.back {
            back.poll();
        }
        pair.follow();
        // It lets go when it is asked once more.
        pair.window = None;
    }),
    ("tables are full", full_tables),
    ("first allocation fails", |pair| {
        order(pair, ends(pair).map(|domain| Fault::Alloc { domain, nth: 1 }));
        pair.follow();
    }),
    ("second allocation fails", |pair| {
        order(pair, ends(pair).map(|domain| Fault::Alloc { domain, nth: 2 }));
        pair.follow();
    }),
    ("third allocation fails", |pair| {
        order(pair, ends(pair).map(|domain| Fault::Alloc { domain, nth: 3 }));
        pair.follow();
    }),
    ("disk is slow", |pair| {
        pair.disk.hold(true);
        pair.follow();
        for _ in 0..10 {
            pair.bed.machine.advance(30_000_000_000);
            pair.follow();
        }
    }),
    ("disk fails", |pair| {
        pair.disk.0.borrow_mut().fail = true;
        pair.disk.hold(false);
        if let Some(back) = &mut pair.back {
            back.poll();
        }
        pair.follow();
        pair.disk.0.borrow_mut().fail = false;
    }),
    ("disk is asked to go", |pair| {
        pair.bed.device.ask_detach(&pair.bed.toolstack.store).unwrap();
        pair.follow();
    }),
    ("disk is taken away", |pair| {
        pair.bed.remove_back();
        pair.follow();
    }),
    ("disk ends earlier", |pair| {
        // What it works on is within; what comes later, no more.
        pair.disk.0.borrow_mut().bytes.truncate(SECTORS / 2 * SECTOR);
        if let Some(back) = &mut pair.back {
            let _ = back.back.resized();
        }
        pair.follow();
        assert_eq!(
            pair.front.submit(&pair.bed, Operation::Read, SECTORS as u64 - 8, 1).is_some(),
            !pair.front.connected
        );
    }),
    ("front end talks rubbish", |pair| {
        for value in ["\u{7f}", "-1", "99999999999999999999", ""] {
            let _ = pair.bed.front_says("state", value);
            let _ = pair.bed.front_says("ring-ref", value);
            pair.follow();
        }
    }),
    ("back end talks rubbish", |pair| {
        for node in ["sectors", "sector-size", "state"] {
            let _ = pair.bed.back_says(node, "rubbish");
            pair.follow();
        }
    }),
    ("front end hides its state", |pair| {
        hide(&pair.bed.front, &pair.bed.device.front_path());
        pair.follow();
    }),
    ("back end hides its state", |pair| {
        hide(&pair.bed.back, &pair.bed.device.back_path());
        pair.follow();
    }),
    ("store refuses", |pair| {
        for (nth, refusal) in [Refusal::Again, Refusal::Acces, Refusal::Quota, Refusal::Io].into_iter().enumerate() {
            let refused = |dom| Fault::Request { domain: Some(dom), nth: 1 + nth as u64, refusal };
            order(pair, ends(pair).map(refused));
        }
        pair.follow();
        pair.front.step();
        if let Some(back) = &mut pair.back {
            back.step();
        }
        pair.follow();
    }),
];

/// One cell: what becomes of the disk.
fn cell(setup: Setup, state: Happens, fault: Happens) -> &'static str {
    let mut pair = Pair::new(setup);
    let mut other = Neighbour::new(&pair.bed, pair.bed.machine.boot(), pair.bed.machine.boot());
    pair.mark();
    state(&mut pair);
    fault(&mut pair);
    other.works(&pair.bed);
    pair.recover();
    other.works(&pair.bed);
    let verdict = match (pair.front_is_dead, pair.works()) {
        (true, _) => "dead",
        (_, true) => "works",
        (_, false) if pair.front.closed => "closed",
        (_, false) => "waits",
    };
    other.works(&pair.bed);
    pair.end();
    verdict
}

/// The rows of a setup, and the cells that fail.
fn rows(setup: Setup) -> (Vec<String>, Vec<String>) {
    let mut failed = Vec::new();
    let rows = FAULTS.map(|(fault, happens)| {
        let row = STATES.map(|(state, reach)| {
            let verdict = catch_unwind(AssertUnwindSafe(|| cell(setup, reach, happens)));
            if verdict.is_err() {
                failed.push(format!("{state}: {fault}"));
            }
            format!("{:<10}", verdict.unwrap_or("FAILS"))
        });
        format!("{fault:<27}{}", row.concat())
    });
    (rows.into(), failed)
}

/// Of the setups behind the first, only what is different stands in the page.
#[test]
fn whatever_happens_in_whatever_state_each_io_ends_once_and_nothing_is_left_or_harmed() {
    let head = format!("{:<27}{}", "", STATES.map(|(state, _)| format!("{state:<10}")).concat());
    let page = include_str!("../../../../docs/xbd.md");
    let (mut usual, mut failed, mut untold) = (Vec::new(), Vec::new(), Vec::new());
    for (number, setup) in setups().into_iter().enumerate() {
        let (rows, cells) = rows(setup);
        failed.extend(cells.iter().map(|cell| format!("setup {number}: {cell}")));
        let different: Vec<_> = rows.iter().filter(|row| !usual.contains(*row)).collect();
        let lines = [&head].into_iter().chain(different.iter().copied());
        let table: String = lines.map(|line| format!("{}\n", line.trim_end())).collect();
        println!("setup {number}\n{table}");
        if !different.is_empty() && !page.contains(&format!("```text\n{table}```")) {
            untold.push(table);
        }
        if number == 0 {
            usual = rows;
        }
    }
    assert!(failed.is_empty(), "{} cells fail: {failed:#?}", failed.len());
    assert!(untold.is_empty(), "docs/xbd.md has others than these tables:\n{}", untold.concat());
}

/// A disk that nothing happens to works in every state but the last, in which it goes.
#[test]
fn without_a_fault_every_state_leads_to_a_disk_that_works() {
    for (setup, (state, reach)) in setups().into_iter().flat_map(|setup| STATES.map(|state| (setup, state))) {
        let expected = if state == "closing" { "closed" } else { "works" };
        assert_eq!(cell(setup, reach, Pair::follow), expected, "{state}");
    }
}

/// Nodes that the front end's domain can write, and that the back end reads.
const FRONTS_NODES: [&str; 13] = [
    "state",
    "ring-ref",
    "ring-ref0",
    "event-channel",
    "protocol",
    "feature-persistent",
    "multi-queue-num-queues",
    "ring-page-order",
    "num-ring-pages",
    "queue-0/ring-ref",
    "queue-0/event-channel",
    "backend",
    "backend-id",
];
/// The same the other way round.
const BACKS_NODES: [&str; 18] = [
    "state",
    "online",
    "sectors",
    "sector-size",
    "physical-sector-size",
    "info",
    "feature-flush-cache",
    "feature-barrier",
    "feature-discard",
    "discard-granularity",
    "discard-alignment",
    "discard-secure",
    "feature-persistent",
    "feature-max-indirect-segments",
    "multi-queue-max-queues",
    "max-ring-page-order",
    "max-ring-pages",
    "frontend-id",
];
const GARBAGE: [&str; 7] = ["", "x", "-1", "0", "4294967295", "18446744073709551615", "/local/domain/0"];

/// An end has come to a step and writes such values into a node, one after the other. Another disk of the end that reads
/// it works.
fn lie(front_lies: bool, step: usize, node: &str, values: &[&str]) {
    let mut pair = Pair::new(setups()[0]);
    let (stranger, [front, back]) = (pair.bed.machine.boot(), [pair.bed.front.clone(), pair.bed.back.clone()]);
    let [front, back] = if front_lies { [stranger, back] } else { [front, stranger] };
    let mut other = Neighbour::new(&pair.bed, front, back);
    pair.mark();
    STATES[step].1(&mut pair);
    for value in values {
        // The state again, so that it is looked at.
        let again = if front_lies { pair.bed.front_state() } else { pair.bed.back_state() };
        for (node, value) in [(node, *value), ("state", again.as_deref().unwrap_or("1"))] {
            let _ = if front_lies { pair.bed.front_says(node, value) } else { pair.bed.back_says(node, value) };
        }
        pair.follow();
        other.works(&pair.bed);
    }
    pair.recover();
    other.works(&pair.bed);
    pair.end();
}

/// Garbage in any node that the other end can write, at any step, ends that disk at most.
#[test]
fn garbage_in_any_node_at_any_step_harms_no_other_disk_and_leaves_nothing() {
    let mut lots = Lots(3);
    for (front_lies, nodes) in [(true, &FRONTS_NODES[..]), (false, &BACKS_NODES)] {
        for node in nodes {
            // Begun, behind the one step from which it is read, connected, closing.
            let read = if front_lies { 2 } else { [3, 1][usize::from(node.starts_with('m'))] };
            GARBAGE.iter().for_each(|value| lie(front_lies, read, node, &[value]));
            for step in [0, 4, 8] {
                let values = [(); 3].map(|()| GARBAGE[lots.below(GARBAGE.len() as u64) as usize]);
                lie(front_lies, step, node, &values);
            }
        }
    }
}

/// The setups are what they are meant to be.
#[test]
fn setups_go_the_ways_that_they_are_there_for() {
    let counted = setups().map(|setup| {
        let mut pair = Pair::new(setup);
        pair.mark();
        pair.connect();
        pair.submit();
        pair.follow();
        let counters = pair.back.as_mut().unwrap().counters();
        let (queues, done) = (pair.front.front.queues(), pair.front.done.len());
        pair.end();
        (queues, done, counters.persistent, counters.indirect, counters.copied)
    });
    assert_eq!(counted, [(1, 5, 0, 0, 0), (2, 5, 8, 0, 0), (1, 5, 0, 2, 4)]);
}
