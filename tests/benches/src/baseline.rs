//! The counts that ours may not exceed, in `baseline.txt`: a line for each case, `shape batch instructions rival`.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::{env, fs};

use anyhow::{Context as _, Result, bail};

use crate::count::Count;

/// Above this share of the baseline a count has risen.
const TOLERANCE: f64 = 1.02;

const HEADING: &str = "\
# Instructions a request of our rings, both ends, on the toolchain of rust-toolchain.toml. Checked by `xenlab bench ring --check`,
# which fails where one has risen by more than 2 %; written by `xenlab bench ring --write-baseline`.
";

/// Returns where the baseline stands.
pub fn path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("baseline.txt")
}

fn parse(text: &str) -> Result<Vec<Count>> {
    let mut counts = Vec::new();
    for line in text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        let mut words = line.splitn(4, ' ');
        let mut word = || words.next().with_context(|| format!("baseline.txt: {line}"));
        let (shape, batch, instructions, rival) = (word()?, word()?, word()?, word()?);
        counts.push(Count {
            shape: shape.into(),
            batch: batch.parse()?,
            instructions: instructions.parse()?,
            rival: rival.into(),
        });
    }
    Ok(counts)
}

/// Compares counts with the baseline. Returns what has risen, and what has fallen so far that the baseline tells nothing any more.
fn compare(baseline: &[Count], counts: &[Count]) -> (Vec<String>, Vec<String>) {
    let (mut risen, mut fallen) = (Vec::new(), Vec::new());
    for base in baseline {
        let same = |count: &&Count| (&count.rival, &count.shape, count.batch) == (&base.rival, &base.shape, base.batch);
        let case = format!("{} {} batch {}", base.rival, base.shape, base.batch);
        match counts.iter().find(same).map(|count| count.instructions) {
            None => risen.push(format!("{case}: not counted")),
            Some(now) if now > base.instructions * TOLERANCE => {
                risen.push(format!("{case}: {now:.1} instructions a request, {:.1} before", base.instructions));
            }
            Some(now) if now * TOLERANCE < base.instructions => {
                fallen.push(format!("{case}: {now:.1} instructions a request, {:.1} before", base.instructions));
            }
            Some(_) => {}
        }
    }
    (risen, fallen)
}

/// Checks counts against the baseline; says what has fallen.
///
/// # Errors
/// A count has risen by more than 2 %, or is missing.
pub fn check(counts: &[Count]) -> Result<Vec<String>> {
    let path = path();
    let baseline = parse(&fs::read_to_string(&path).with_context(|| path.display().to_string())?)?;
    let (risen, fallen) = compare(&baseline, counts);
    if baseline.is_empty() || !risen.is_empty() {
        bail!("more instructions than before:\n{}", risen.join("\n"));
    }
    Ok(fallen)
}

/// Writes the counts of ours as the baseline.
///
/// # Errors
/// The file can't be written.
pub fn write(counts: &[Count]) -> Result<()> {
    let mut text = String::from(HEADING);
    for count in counts.iter().filter(|count| count.rival.starts_with("ours")) {
        writeln!(text, "{} {} {:.1} {}", count.shape, count.batch, count.instructions, count.rival)?;
    }
    fs::write(path(), text)?;
    Ok(())
}

/// Tells whether what can't be measured here is a failure: `XEN_BENCH_REQUIRED` is set.
pub fn required() -> bool {
    env::var_os("XEN_BENCH_REQUIRED").is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(instructions: f64) -> Vec<Count> {
        vec![Count { rival: "ours, kernel".into(), shape: "blk1".into(), batch: 8, instructions }]
    }

    #[test]
    fn a_count_may_rise_by_two_per_cent_and_no_more() {
        let base = parse("# a comment\nblk1 8 100.0 ours, kernel\n").unwrap();
        assert_eq!(compare(&base, &count(101.9)), (vec![], vec![]));
        assert_eq!(
            compare(&base, &count(102.1)).0,
            ["ours, kernel blk1 batch 8: 102.1 instructions a request, 100.0 before"]
        );
        assert_eq!(compare(&base, &count(97.0)).1.len(), 1);
    }

    #[test]
    fn a_case_that_is_not_counted_is_none_that_is_good() {
        let base = parse("net_tx 1 100.0 ours\n").unwrap();
        assert_eq!(compare(&base, &count(100.0)).0, ["ours net_tx batch 1: not counted"]);
    }

    #[test]
    fn the_baseline_that_is_kept_can_be_read_and_has_each_case_twice() {
        let kept = parse(&fs::read_to_string(path()).unwrap()).unwrap();
        assert_eq!(kept.len(), 2 * 4 * 3);
    }
}
