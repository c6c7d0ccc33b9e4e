//! The counts that ours may not exceed, in `baseline-*.txt`: a line for each case, `shape batch instructions rival`.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::{env, fs};

use anyhow::{Context as _, Result, bail};

use crate::count::Count;

/// Above this share of the baseline a count has risen.
const TOLERANCE: f64 = 1.02;

/// Counts that are kept in a file.
#[derive(Clone, Copy, Debug)]
pub struct Baseline {
    /// The command: `xenlab bench …`.
    pub command: &'static str,
    /// What is counted.
    pub what: &'static str,
}

/// Those of the rings.
pub const RING: Baseline = Baseline { command: "ring", what: "our rings, both ends" };
/// Those of the two ends of a disk.
pub const BLOCK: Baseline = Baseline { command: "block", what: "the two ends of a disk, as for a kernel" };

fn parse(text: &str) -> Result<Vec<Count>> {
    let mut counts = Vec::new();
    for line in text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        let mut words = line.splitn(4, ' ');
        let mut word = || words.next().with_context(|| format!("a baseline: {line}"));
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

impl Baseline {
    /// Returns where the baseline stands.
    pub fn path(self) -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("baseline-{}.txt", self.command))
    }

    /// Checks counts against the baseline; says what has fallen.
    ///
    /// # Errors
    /// A count has risen by more than 2 %, or is missing.
    pub fn check(self, counts: &[Count]) -> Result<Vec<String>> {
        let path = self.path();
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
    pub fn write<'a>(self, counts: impl IntoIterator<Item = &'a Count>) -> Result<()> {
        let Self { command, what } = self;
        let mut text = format!(
            "# Instructions a request of {what}, on the toolchain of rust-toolchain.toml.\n\
             # Checked by `xenlab bench {command} --check`, which fails where one has risen by more than 2 %; written by\n\
             # `xenlab bench {command} --write-baseline`.\n"
        );
        for count in counts {
            writeln!(text, "{} {} {:.1} {}", count.shape, count.batch, count.instructions, count.rival)?;
        }
        fs::write(self.path(), text)?;
        Ok(())
    }
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
    fn the_baselines_that_are_kept_can_be_read_and_have_all_cases() {
        for (baseline, cases) in [(RING, 2 * 4 * 3), (BLOCK, (6 + 8) * 3 + 4 * 3)] {
            let kept = parse(&fs::read_to_string(baseline.path()).unwrap()).unwrap();
            assert_eq!(kept.len(), cases, "{}", baseline.command);
        }
    }
}
