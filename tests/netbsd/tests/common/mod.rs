//! What the checks share: where things are, commands, and how one that can't be done here says so.
#![allow(dead_code, reason = "each test program uses some of it")]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Flags for the glue. It is compiled as a kernel is: with no header but ours and the compiler's own.
pub(crate) const FLAGS: &[&str] = &[
    "-std=gnu99",
    "-O2",
    "-ffreestanding",
    "-nostdinc",
    "-Wall",
    "-Wextra",
    "-Werror",
    // Functions of a device switch have parameters that one driver needs and another doesn't.
    "-Wno-unused-parameter",
    "-Wmissing-prototypes",
    "-Wstrict-prototypes",
    "-Wold-style-definition",
    "-Wshadow",
    "-Wpointer-arith",
    "-Wcast-qual",
    "-Wwrite-strings",
    "-Wundef",
    "-Wredundant-decls",
];

/// Returns a path of the workspace.
pub(crate) fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

/// Prints a line past the test harness, which shows what a test prints by the usual macros only if it fails.
pub(crate) fn say(line: &str) {
    // Where nobody listens, there is no one to tell either.
    let _ = writeln!(std::io::stderr(), "netbsd: {line}");
}

/// A check can't be done here, for this reason. With `XENPV_CHECK_REQUIRED` in the environment that is a failure.
pub(crate) fn left_out(what: &str, reason: &str) {
    assert!(std::env::var_os("XENPV_CHECK_REQUIRED").is_none(), "{what} is required: {reason}");
    say(&format!("{what} left out: {reason}"));
}

/// Runs a command and returns what it prints.
pub(crate) fn run(command: &mut Command) -> Result<String, String> {
    let program = command.get_program().to_os_string();
    let output = command.output().map_err(|error| format!("{}: {error}", program.display()))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        Err(format!("{}: {}\n{said}", program.display(), output.status))
    }
}

/// Returns a compiler with the flags and folders for the glue, or why there is none.
pub(crate) fn compiler(name: &str) -> Result<Command, String> {
    let own = run(Command::new(name).arg("-print-file-name=include"))?;
    let mut command = Command::new(name);
    command.args(FLAGS).arg("-isystem").arg(own.trim());
    for folder in ["tests/netbsd/include", "netbsd/include", "netbsd/glue"] {
        command.arg("-I").arg(root(folder));
    }
    Ok(command)
}

/// Returns the glue's C files.
pub(crate) fn glue() -> Vec<PathBuf> {
    let files = std::fs::read_dir(root("netbsd/glue")).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> = files.filter(|path| path.extension().is_some_and(|end| end == "c")).collect();
    files.sort();
    assert!(files.len() >= 4, "the glue isn't where it was");
    files
}
