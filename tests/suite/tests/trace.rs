//! What a run leaves for whoever wants to know why: the same trace for the same seed, a timeline, and the way to both.
#![cfg(not(target_os = "none"))]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use hypercall::DomId;
use mock::{Config, Domain, Trace, What};
use serde_json::Value;
use suite::Failure;
use suite::on_mock::{Mock, MockBed, TRACE_ENTRIES, seeds};
use suite::scenarios::{self, Bed, Scenario};

/// Runs a scenario and returns what has happened, and where.
fn traced(scenario: &Scenario<Domain, Mock>, config: Config) -> (Trace, MockBed) {
    let mut bed = MockBed::new(config);
    bed.machine.record(TRACE_ENTRIES);
    bed.run(scenario).unwrap();
    (bed.machine.trace(), bed)
}

#[test]
#[cfg_attr(miri, ignore = "takes hours")]
fn same_seed_gives_the_same_trace_to_the_last_word_and_another_seed_another() {
    for scenario in scenarios::all() {
        for config in [Config::deterministic(1), Config::deterministic(2).auto_translated()] {
            // Both beds are there at the same time, so that they have nothing of the host in common: no address, for one.
            let ((one, _first), (again, _second)) = (traced(&scenario, config), traced(&scenario, config));
            assert_eq!(one.dropped, 0);
            let differs = one.entries.iter().zip(&again.entries).find(|(one, again)| one != again);
            assert!(differs.is_none(), "{}: {differs:#?}", scenario.name);
            assert!(one == again, "{}: {} and {} entries", scenario.name, one.entries.len(), again.entries.len());
            let (other, _third) = traced(&scenario, Config { seed: 99, ..config });
            assert!(one != other, "{}: two seeds, one trace", scenario.name);
        }
    }
}

/// What each phase of the Trace Event Format has to have.
fn check_fields(event: &Value) {
    let has = |field: &str| assert!(!event[field].is_null(), "no {field} in {event}");
    ["ph", "pid", "tid", "name"].iter().for_each(|field| has(field));
    match event["ph"].as_str().unwrap() {
        "M" => {
            assert!(["process_name", "thread_name"].contains(&event["name"].as_str().unwrap()), "{event}");
            assert!(event["args"]["name"].is_string(), "{event}");
        }
        "X" => {
            has("cat");
            assert!(event["ts"].as_f64().unwrap() >= 0.0 && event["dur"].as_f64().unwrap() > 0.0, "{event}");
        }
        "i" => assert!(event["ts"].is_f64() && event["s"] == "t", "{event}"),
        "s" => assert!(event["ts"].is_f64() && event["id"].is_u64(), "{event}"),
        "f" => assert!(event["ts"].is_f64() && event["id"].is_u64() && event["bp"] == "e", "{event}"),
        other => panic!("phase {other}"),
    }
}

/// Checks that a timeline is as Perfetto takes it. Returns how many arrows there are.
fn check_timeline(timeline: &Value) -> usize {
    let events = timeline["traceEvents"].as_array().unwrap();
    let place = |event: &Value| (event["pid"].as_u64().unwrap(), event["tid"].as_u64().unwrap());
    // The slices of each track, the arrows' ends, and the names of tracks.
    let (mut slices, mut arrows) = (BTreeMap::<_, Vec<(f64, f64)>>::new(), BTreeMap::<u64, Vec<&Value>>::new());
    let mut named = Vec::new();
    for event in events {
        check_fields(event);
        match event["ph"].as_str().unwrap() {
            "M" => named.push(place(event)),
            "X" => {
                let start = event["ts"].as_f64().unwrap();
                let track = slices.entry(place(event)).or_default();
                let last = track.last().copied().unwrap_or_default();
                assert!(start >= last.0, "goes back: {event}");
                let end = start + event["dur"].as_f64().unwrap();
                // Either after the one before or within it.
                assert!(start >= last.1 || end <= last.1, "crosses the slice before: {event}");
                track.push((start, end));
            }
            "s" | "f" => arrows.entry(event["id"].as_u64().unwrap()).or_default().push(event),
            _ => {}
        }
    }
    assert!(slices.keys().all(|track| named.contains(track)), "a track without a name");
    for (id, ends) in &arrows {
        let phases: Vec<_> = ends.iter().map(|end| end["ph"].as_str().unwrap()).collect();
        assert_eq!(phases, ["s", "f"], "arrow {id}");
        let times: Vec<f64> = ends.iter().map(|end| end["ts"].as_f64().unwrap()).collect();
        assert!(times[0] < times[1], "arrow {id} goes back");
        for (end, time) in ends.iter().zip(times) {
            let track = &slices[&place(end)];
            let slice = track.partition_point(|(start, _)| *start <= time).checked_sub(1).map(|at| track[at]);
            assert!(slice.is_some_and(|(_, stop)| time <= stop), "an arrow without a slice: {end}");
        }
    }
    arrows.len()
}

#[test]
#[cfg_attr(miri, ignore = "takes hours")]
fn timeline_of_each_scenario_is_one_that_perfetto_takes() {
    let names = BTreeMap::from([(DomId(0), "dom0"), (DomId(1), "domU")]);
    for scenario in scenarios::all() {
        let (trace, _bed) = traced(&scenario, Config::deterministic(3));
        let mut text = Vec::new();
        trace.write_timeline(&names, &mut text).unwrap();
        let timeline: Value = serde_json::from_slice(&text).unwrap();
        let arrived = trace.entries.iter().filter(|entry| matches!(entry.what, What::Arrived { .. })).count();
        assert_eq!(check_timeline(&timeline), arrived, "each event that arrives is an arrow");
        assert!(arrived > 20, "{arrived}");
        let text = String::from_utf8(text).unwrap();
        for word in ["domU (1)", "domain 2", "programs", "hypercalls", "events", "store", "event_channel_op send"] {
            assert!(text.contains(word), "{}: no {word}", scenario.name);
        }
    }
}

/// Fails on seed 7, and panics on seed 8.
fn moody(bed: &mut Bed<'_, Domain, Mock>) -> Result<Vec<String>, Failure> {
    assert!(bed.seed != 8, "seed 8 panics");
    suite::ensure(bed.seed != 7, "seed 7 is unlucky")?;
    Ok(Vec::new())
}

const MOODY: Scenario<Domain, Mock> = Scenario { name: "moody", about: "fails by the seed", run: moody };

/// Run by the tests below, in a process of its own, with variables of the environment.
#[test]
#[ignore = "fails, for other tests"]
fn moody_by_seed() {
    for seed in seeds(1..=9) {
        MockBed::new(Config::deterministic(seed)).run(&MOODY).unwrap();
    }
}

/// Runs the test above as somebody would who looks for its fault. Returns what it says.
fn run_moody(variables: &[(&str, &str)]) -> String {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--ignored", "--exact", "moody_by_seed", "--nocapture"]);
    command.env_remove("MOCK_SEED").env_remove("MOCK_TRACE").envs(variables.iter().copied());
    let output = command.output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
#[cfg_attr(miri, ignore = "starts processes")]
fn failure_names_its_seed_and_the_way_to_its_timeline() {
    let said = run_moody(&[]);
    assert!(said.contains("seed 7 is unlucky"), "{said}");
    assert!(said.contains("seed 7: MOCK_SEED=7 MOCK_TRACE=folder cargo test"), "{said}");
    assert!(said.contains("writes folder/moody-7.json"), "{said}");
}

#[test]
#[cfg_attr(miri, ignore = "starts processes")]
fn environment_chooses_the_seed_and_where_timelines_go() {
    let folder = tempfile::tempdir().unwrap();
    let files = |folder: &Path| {
        let mut names: Vec<String> =
            folder.read_dir().unwrap().map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    let path = folder.path().to_str().unwrap();
    let said = run_moody(&[("MOCK_SEED", "8"), ("MOCK_TRACE", path)]);
    assert!(said.contains("moody has panicked; seed 8: its timeline is"), "{said}");
    assert_eq!(files(folder.path()), ["moody-8.json"]);
    let timeline = std::fs::read(folder.path().join("moody-8.json")).unwrap();
    check_timeline(&serde_json::from_slice(&timeline).unwrap());
    assert!(String::from_utf8(timeline).unwrap().contains("was made"), "the domains are made under its eyes");
    let said = run_moody(&[("MOCK_SEED", "2"), ("MOCK_TRACE", path)]);
    assert!(said.contains("1 passed"), "{said}");
    assert_eq!(files(folder.path()), ["moody-2.json", "moody-8.json"]);
}
