//! Puts bugs into a copy of the drivers, one at a time, and looks whether the test that is there for it fails.
//!
//! `cargo run -p suite --example seeded` does all of [`rows::ROWS`], `cargo run -p suite --example seeded WORD …` those whose class or bug has one of the words in it. The
//! copy stands in `target/seeded`, and is built there.

mod rows;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use rows::{ROWS, Row, Test};

/// How long a test may take to fail, in seconds, with what is to be built for it on a busy machine.
const PATIENCE_S: &str = "300";

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let wanted =
        |row: &&Row| words.is_empty() || words.iter().any(|word| row.class.contains(word) || row.bug.contains(word));
    let rows: Vec<&Row> = ROWS.iter().filter(wanted).collect();
    ensure!(!rows.is_empty(), "no row has one of {words:?}");
    let tree = copy()?;
    // What a row is to be put in for has to be there, and once: before anything is built.
    for row in &rows {
        patched(&tree, row)?;
    }
    let began = Instant::now();
    println!("{} rows; their tests, on the code as it is:", rows.len());
    sound(&tree, &rows)?;
    println!("{:>5.0} s  all pass", began.elapsed().as_secs_f32());
    let mut missed = 0;
    for row in &rows {
        let began = Instant::now();
        let (path, text, with_bug) = patched(&tree, row)?;
        fs::write(&path, with_bug)?;
        let found = is_found(&tree, row);
        // As it was, whatever came of it.
        fs::write(&path, text)?;
        let verdict = if found? { "caught" } else { "NOT CAUGHT" };
        missed += usize::from(verdict != "caught");
        let seconds = began.elapsed().as_secs_f32();
        println!("{seconds:>5.0} s  {verdict:<10}  {}: {} ({})", row.class, row.bug, row.test.name);
    }
    println!("{} of {} caught, {:.0} s", rows.len() - missed, rows.len(), began.elapsed().as_secs_f32());
    ensure!(missed == 0, "{missed} not caught");
    Ok(())
}

/// Copies what git knows of the workspace, and what has changed since the last time alone, so that little has to be built.
fn copy() -> Result<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).context("the workspace")?;
    let tree = root.join("target/seeded/tree");
    let listed = Command::new("git").args(["ls-files", "-z"]).current_dir(root).output().context("git")?;
    ensure!(listed.status.success(), "git ls-files has failed");
    let listed = String::from_utf8(listed.stdout)?;
    let names: BTreeSet<_> = listed.split('\0').filter(|name| !name.is_empty()).collect();
    remove_others(&tree, &tree, &names)?;
    for name in names {
        // A file that is gone is git's to know of.
        let Ok(now) = fs::read(root.join(name)) else { continue };
        let to = tree.join(name);
        if fs::read(&to).ok().as_ref() != Some(&now) {
            fs::create_dir_all(to.parent().context("a folder")?)?;
            fs::write(&to, now)?;
        }
    }
    Ok(tree)
}

/// Removes what an earlier copy has left in a folder of the tree and is not among these.
fn remove_others(tree: &Path, folder: &Path, names: &BTreeSet<&str>) -> Result<()> {
    // There is none the first time.
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry?.path();
        if path.is_dir() {
            remove_others(tree, &path, names)?;
        } else if !path.strip_prefix(tree)?.to_str().is_some_and(|name| names.contains(name)) {
            fs::remove_file(&path).with_context(|| path.display().to_string())?;
        }
    }
    Ok(())
}

/// Returns a file, what is in it, and the same with the bug of a row.
fn patched(tree: &Path, row: &Row) -> Result<(PathBuf, String, String)> {
    let path = tree.join(row.file);
    let text = fs::read_to_string(&path).with_context(|| row.file.to_string())?;
    let places = text.matches(row.from).count();
    ensure!(places == 1, "{}: {:?} is {places} times in {}", row.class, row.from, row.file);
    let with_bug = text.replace(row.from, row.to);
    Ok((path, text, with_bug))
}

/// Runs tests of one program, and returns what it has said.
fn run(tree: &Path, package: &str, target: &str, names: &[&str]) -> Result<(bool, String)> {
    let mut cargo = Command::new("timeout");
    cargo.args([PATIENCE_S, "cargo", "test", "-q", "-p", package]);
    match target {
        "lib" => cargo.arg("--lib"),
        other => cargo.args(["--test", other]),
    };
    cargo.args(["--", "--exact"]).args(names).current_dir(tree);
    cargo.env("CARGO_TARGET_DIR", tree.with_file_name("build")).env("CARGO_PROFILE_DEV_DEBUG", "0");
    cargo.env("RUST_BACKTRACE", "0").env("RUSTFLAGS", "--cap-lints=allow");
    let ended = cargo.output().context("cargo")?;
    let said = [ended.stdout, ended.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    Ok((ended.status.success(), said))
}

/// Looks whether the tests of all rows are there, and pass.
fn sound(tree: &Path, rows: &[&Row]) -> Result<()> {
    let mut programs = BTreeMap::<_, Vec<&str>>::new();
    for Test { package, target, name } in rows.iter().map(|row| &row.test) {
        let names = programs.entry((*package, *target)).or_default();
        if !names.contains(name) {
            names.push(name);
        }
    }
    for ((package, target), names) in programs {
        let (passed, said) = run(tree, package, target, &names)?;
        ensure!(
            passed && said.contains(&format!("ok. {} passed", names.len())),
            "{package} {target} {names:?}:\n{said}"
        );
    }
    Ok(())
}

/// Tells whether the test of a row fails.
fn is_found(tree: &Path, row: &Row) -> Result<bool> {
    let Test { package, target, name } = row.test;
    let (passed, said) = run(tree, package, target, &[name])?;
    if said.contains("could not compile") {
        bail!("{}: {} is no program:\n{said}", row.class, row.bug);
    }
    // It may wait for ever, or end the whole program.
    Ok(!passed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_row_replaces_stands_in_its_file_once() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("the workspace");
        for row in ROWS {
            patched(root, row).expect("what is replaced");
        }
    }
}
