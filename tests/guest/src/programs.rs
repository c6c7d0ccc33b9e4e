//! What can be run: `program [key=value...]` on the domain's command line.
//!
//! A new program is a function and a line in [`PROGRAMS`].

mod bench;
mod busy;
mod conformance;
mod crash;
mod dom0;
mod fast;
mod grants;
mod hello;
mod hostile;
mod linux;
mod outside;
mod pair;
mod saved;
mod selftest;
mod serve;

use alloc::format;
use alloc::string::String;
use core::sync::atomic::Ordering::Relaxed;

use crate::bare::LOG_DEBUG;
use crate::println;

/// One program.
#[derive(Clone, Copy, Debug)]
pub struct Program {
    /// The word that chooses it.
    pub name: &'static str,
    /// What it does and takes, in a line.
    pub about: &'static str,
    /// Runs it; the error is the line that says what went wrong.
    pub run: fn(&Args<'_>) -> Result<(), String>,
}

/// All programs.
pub static PROGRAMS: &[Program] = &[
    Program { name: "hello", about: "says what it runs on", run: hello::run },
    Program { name: "selftest", about: "tests the platform itself", run: selftest::run },
    Program {
        name: "fast",
        about: "runs the scenarios within this domain: [scenario=NAME|block|all] [seed=N] [list=yes]",
        run: fast::run,
    },
    Program { name: "linux", about: "uses disks and the console that a Linux dom0 serves: [disks=N]", run: linux::run },
    Program { name: "serve", about: "serves disks in memory to other domains: [mib=N] [large=NAME]", run: serve::run },
    Program { name: "saved", about: "keeps disks busy while a Linux dom0 saves and restores it", run: saved::run },
    Program { name: "hostile", about: "breaks every rule of the protocol on a disk: [seed=N]", run: hostile::run },
    Program { name: "bench", about: "reads a disk: [passes=N] [persistent=yes]", run: bench::run },
    Program { name: "grants", about: "measures mapping beside copying: [shift=N]", run: grants::run },
    Program {
        name: "conformance",
        about: "makes calls and errors, and tells what Xen or xenstored says",
        run: conformance::run,
    },
    Program {
        name: "crash",
        about: "ends badly: kind=panic|fault|write|opcode|stack|memory|driver|error",
        run: crash::run,
    },
    Program { name: "dom0", about: "serves \"linux\" in a second domain: [sectors=N] [seed=N]", run: dom0::run },
    Program {
        name: "pair",
        about: "runs another program in a second domain: pair PROGRAM [key=value...]",
        run: pair::run,
    },
];

/// The words behind the program's name. Any program takes `log=debug`.
#[derive(Clone, Copy, Debug)]
pub struct Args<'a>(&'a str);

impl<'a> Args<'a> {
    /// Splits a command line into the program's name and its arguments.
    pub fn split(line: &'a str) -> (&'a str, Self) {
        let line = line.trim();
        let (name, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        (name, Self(rest))
    }

    /// Returns the value of `key`.
    pub fn get(self, key: &str) -> Option<&'a str> {
        self.0.split_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
    }

    /// Returns the value of `key` as a number, or `default` where the key is missing.
    ///
    /// # Errors
    /// A line that says so if the value is no number.
    pub fn number(self, key: &str, default: u64) -> Result<u64, String> {
        let Some(text) = self.get(key) else { return Ok(default) };
        text.parse().map_err(|_| format!("{key}={text}: not a number"))
    }
}

/// Runs the program that the command line names.
///
/// # Errors
/// What the program returns; or the list of programs if there is no such program.
pub fn run(line: &str) -> Result<(), String> {
    let (name, args) = Args::split(line);
    LOG_DEBUG.store(args.get("log") == Some("debug"), Relaxed);
    match PROGRAMS.iter().find(|program| program.name == name) {
        Some(program) => (program.run)(&args),
        None => {
            for program in PROGRAMS {
                println!("{:12} {}", program.name, program.about);
            }
            Err(format!("no program {name:?}"))
        }
    }
}
