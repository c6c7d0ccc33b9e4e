//! The two ends of a disk, beside what others' drivers take for the same.

use anyhow::{Result, bail};
use benches::count::Counted;
use benches::rivals::BATCHES;
use benches::{baseline, block, count, growth};

use crate::host::bench::plot::{self, Bars};
use crate::host::bench::{Args, spinner};

/// A line of the table.
struct Row {
    title: &'static str,
    /// At batches 1, 8 and 32.
    values: [f64; 3],
    /// What is aimed at, at batch 32.
    goal: Option<f64>,
    /// Others' figures, which were measured once and don't change: docs/performance.md tells how.
    others: &'static [(&'static str, f64)],
}

impl Row {
    fn bars(&self) -> Bars<'_> {
        let mut bars: Vec<_> = ["batch 1", "batch 8", "batch 32"].into_iter().zip(self.values).collect();
        bars.extend(self.goal.map(|goal| ("goal", goal)));
        bars.extend(self.others);
        Bars { title: self.title.trim(), bars }
    }
}

const FRONTS: &[(&str, f64)] = &[("Mini-OS", 248.0), ("Linux", 1125.0)];
const FURTHER: &[(&str, f64)] = &[("Mini-OS", 101.0)];
const BACKS: &[(&str, f64)] = &[("Linux", 1110.0)];

pub(crate) fn run(args: &Args) -> Result<()> {
    if let Some(folder) = &args.cases {
        return block::cases(folder);
    }
    if let Some(what) = count::missing() {
        eprintln!("xenlab: not measured: {what}");
        if baseline::required() || args.write_baseline {
            bail!("it is needed, and can't be measured here");
        }
        return Ok(());
    }
    let waiting = spinner("compiling, and counting instructions under valgrind");
    let counts = block::count(&["bench", "block", "--cases"]);
    waiting.finish_and_clear();
    let counts = counts?;
    let rows = rows(&counts);
    print_rows(&rows);
    print_calls(&counts);
    let grown = print_growth(&counts);
    if let Some(path) = &args.svg {
        plot::draw_groups(path, "instructions a read of 4 KiB", &rows.iter().map(Row::bars).collect::<Vec<_>>())?;
        println!("drawn in {}", path.display());
    }
    let plain = || counts.iter().map(|counted| &counted.count).filter(|count| count.rival != "copy");
    if args.write_baseline {
        return baseline::BLOCK.write(plain());
    }
    if args.check {
        for case in baseline::BLOCK.check(&plain().cloned().collect::<Vec<_>>())? {
            println!("less than before, write a new baseline: {case}");
        }
        grown?;
        println!("ok");
    }
    Ok(())
}

fn rows(counts: &[Counted]) -> Vec<Row> {
    let find = |name: &str, shape: &str, batch| {
        let same = |counted: &&Counted| {
            let count = &counted.count;
            (&*count.rival, &*count.shape, count.batch) == (name, shape, batch)
        };
        counts.iter().find(same).map_or(f64::NAN, |counted| counted.count.instructions)
    };
    let of = |name, shape| BATCHES.map(|batch| find(name, shape, batch));
    let further = |name, one, eleven| BATCHES.map(|batch| (find(name, eleven, batch) - find(name, one, batch)) / 10.0);
    let copy = find("copy", "page", 1);
    let (front, back) = ("front end", "back end");
    let both = |shape| BATCHES.map(|batch| find(front, shape, batch) + find(back, shape, batch));
    let row = |title, values, goal, others| Row { title, values, goal, others };
    vec![
        row("front end, granted and revoked", of(front, "mapped1"), Some(120.0), FRONTS),
        row("  each further segment", further(front, "mapped1", "mapped11"), Some(30.0), FURTHER),
        row("  64 KiB, by an indirect request", of(front, "mapped16"), None, &[]),
        row("front end, pages that stay granted", of(front, "kept1"), None, &[]),
        row("  without the copy", of(front, "kept1").map(|count| count - copy), Some(60.0), &[]),
        row("  each further segment, with its copy", further(front, "kept1", "kept11"), None, &[]),
        row("  the copy of a page", [copy; 3], None, &[]),
        row("  64 KiB, with its copy", of(front, "kept16"), None, &[]),
        row("back end, mapped and unmapped", of(back, "mapped1"), Some(250.0), BACKS),
        row("  each further segment", further(back, "mapped1", "mapped11"), None, &[]),
        row("  64 KiB, by an indirect request", of(back, "mapped16"), None, &[]),
        row("back end, pages kept mapped", of(back, "kept1"), Some(250.0), &[]),
        row("  each further segment", further(back, "kept1", "kept11"), None, &[]),
        row("  64 KiB, by an indirect request", of(back, "kept16"), None, &[]),
        row("back end, copied", of(back, "copied1"), None, &[]),
        row("  each further segment", further(back, "copied1", "copied11"), None, &[]),
        row("both ends, mapped", both("mapped1"), None, &[]),
        row("both ends, kept", both("kept1"), None, &[]),
    ]
}

fn print_rows(rows: &[Row]) {
    println!("{:42}{:>9}{:>9}{:>9}{:>8}  others", "instructions a read of 4 KiB", "batch 1", "8", "32", "goal");
    for Row { title, values, goal, others } in rows {
        let [one, eight, all] = values.map(|value| format!("{value:.1}"));
        let goal = goal.map_or(String::new(), |goal| format!("{goal:.0}"));
        let others: Vec<_> = others.iter().map(|(name, count)| format!("{name} {count}")).collect();
        println!("  {title:40}{one:>9}{eight:>9}{all:>9}{goal:>8}  {}", others.join(", "));
    }
    println!();
}

/// Prints how often the hypervisor is called; each part of the work is told by the run in which it was counted.
fn print_calls(counts: &[Counted]) {
    println!("{:42}{:>9}{:>9}{:>9}", "hypercalls a read of 4 KiB", "batch 1", "8", "32");
    for name in ["front end", "back end"] {
        let copied = (name == "back end").then_some(("copied1", "copied"));
        for (shape, title) in [("mapped1", "mapped"), ("kept1", "kept")].into_iter().chain(copied) {
            for (place, what) in ["grants", "notifications"].into_iter().enumerate() {
                let value = |batch| {
                    let same = |counted: &&Counted| {
                        let count = &counted.count;
                        (&*count.rival, &*count.shape, count.batch) == (name, shape, batch)
                    };
                    let rest = counts.iter().find(same).map(|counted| &counted.rest);
                    rest.and_then(|rest| rest.get(place)).copied().unwrap_or(f64::NAN)
                };
                let [one, eight, all] = BATCHES.map(|batch| format!("{:.3}", value(batch)));
                println!("  {:40}{one:>9}{eight:>9}{all:>9}", format!("{name}, {title}: {what}"));
            }
        }
    }
    println!();
}

/// Above this share of what one needs, a request needs more where there are many.
const FLAT: f64 = 1.05;

/// Prints what it costs that there are many; fails if that is more than what one costs.
fn print_growth(counts: &[Counted]) -> Result<()> {
    println!("instructions a request at batch 8, both ends and their events; and a port that is found pending");
    let mut grown = Vec::new();
    for name in growth::NAMES {
        let mut of: Vec<_> = counts.iter().map(|counted| &counted.count).filter(|count| count.rival == name).collect();
        of.sort_by_key(|count| count.batch);
        let sizes: Vec<_> = of.iter().map(|count| format!("{}: {:.1}", count.batch, count.instructions)).collect();
        println!("  {name:40}  {}", sizes.join("   "));
        let [one, .., most] = of[..] else { bail!("not counted: {name}") };
        if most.instructions > one.instructions * FLAT {
            grown.push(format!(
                "{name}: {:.1} at {}, {:.1} at {}",
                one.instructions, one.batch, most.instructions, most.batch
            ));
        }
    }
    println!();
    if grown.is_empty() { Ok(()) } else { bail!("more instructions where there are many:\n{}", grown.join("\n")) }
}
