//! Time by criterion: the message ring beside its rivals, and the scenarios with both ends of each device on the mock. For whoever
//! looks at one change on one machine; what is compared in the documents is counted, or taken in turns (`xenlab bench ring`).

use benches::rivals::{self, BATCHES, Opened, SHAPES};
use criterion::{BenchmarkId, Criterion, Throughput};
use mock::Config;
use suite::on_mock::MockBed;
use suite::scenarios;

/// Requests of one measurement.
const REQUESTS: u32 = 4096;

fn ring(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for missing in rivals::compile(folder.path()) {
        eprintln!("not measured: {missing}");
    }
    let rivals = rivals::load(folder.path()).expect("what was just compiled");
    for (index, shape) in SHAPES.into_iter().enumerate() {
        let mut group = criterion.benchmark_group(format!("ring {shape}"));
        group.throughput(Throughput::Elements(REQUESTS.into()));
        for batch in BATCHES {
            for rival in &rivals {
                let Some(work) = rival.works[index] else { continue };
                let mut ring = Opened::new(work).expect("a ring");
                let id = BenchmarkId::new(rival.name, batch);
                group.bench_function(id, |bencher| bencher.iter(|| ring.run((REQUESTS / batch).into(), batch)));
            }
        }
    }
}

fn both_ends(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("mock");
    group.sample_size(10);
    for scenario in scenarios::all() {
        group.bench_function(scenario.name, |bencher| {
            bencher.iter(|| MockBed::new(Config::deterministic(1)).run(&scenario).expect("the scenario"));
        });
    }
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    ring(&mut criterion);
    both_ends(&mut criterion);
    criterion.final_summary();
}
