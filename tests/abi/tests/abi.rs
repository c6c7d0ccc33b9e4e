//! Compares xen-sys with the C headers of Xen.
//!
//! Where the headers or a C compiler are missing, the comparison is left out, and says so on the standard error output; with
//! `XEN_ABI_REQUIRED` in the environment it fails.

use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::{env, fs};

use abi::compare::{Facts, differences};

const NATIVE_C: &str = include_str!(concat!(env!("OUT_DIR"), "/native.c"));
const X86_32_C: &str = include_str!(concat!(env!("OUT_DIR"), "/x86_32.c"));
const X86_64_C: &str = include_str!(concat!(env!("OUT_DIR"), "/x86_64.c"));
const SUMMARY: &str = include_str!(concat!(env!("OUT_DIR"), "/summary.txt"));
const EXEMPT: &str = include_str!(concat!(env!("OUT_DIR"), "/exempt.txt"));
const PROBLEMS: &str = include_str!(concat!(env!("OUT_DIR"), "/problems.txt"));

const NATIVE: &str = if cfg!(target_pointer_width = "64") { "-m64" } else { "-m32" };

/// Prints a line past the test harness, which shows what a test prints by the usual macros only if it fails.
fn say(line: &str) {
    // Where nobody listens, there is no one to tell either.
    let _ = writeln!(std::io::stderr(), "abi: {line}");
}

/// Returns what Rust makes of xen-sys.
fn rust_facts() -> Facts {
    let mut told = Facts::default();
    let facts = &mut told;
    include!(concat!(env!("OUT_DIR"), "/facts.rs"));
    told
}

/// Compiles and runs a C program for a word size. Returns what it tells.
fn c_facts(program: &str, word: &str) -> Result<Facts, String> {
    let dir = tempfile::tempdir().map_err(|e| e.to_string())?;
    let (source, binary) = (dir.path().join("abi.c"), dir.path().join("abi"));
    fs::write(&source, program).map_err(|e| e.to_string())?;
    let mut compiler = Command::new("cc");
    // By the older standard the headers give arrays of unknown length a size: 0, as Rust does.
    compiler.args(["-std=gnu89", "-w", word, "-fno-diagnostics-show-caret", "-ftrack-macro-expansion=0"]);
    compiler.arg("-o").arg(&binary).arg(&source);
    compiler.arg("-D__XEN_INTERFACE_VERSION__=__XEN_LATEST_INTERFACE_VERSION__");
    run(&mut compiler)?;
    let mut told = Facts::default();
    told.lines(&run(&mut Command::new(&binary))?);
    Ok(told)
}

fn run(command: &mut Command) -> Result<String, String> {
    let program = command.get_program().to_os_string();
    let output = command.output().map_err(|e| format!("{}: {e}", program.display()))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(format!("{}: {}\n{}", program.display(), output.status, String::from_utf8_lossy(&output.stderr)))
    }
}

/// Returns why programs for a word size can't be compiled here, if so.
fn missing(word: &str) -> Option<String> {
    if !cfg!(any(target_arch = "x86_64", target_arch = "x86")) {
        return Some("the headers' x86 part needs an x86 machine".into());
    }
    let Err(no_c) = c_facts("#include <stdio.h>\nint main(void) { return 0; }\n", word) else {
        return match c_facts("#include <stdint.h>\n#include <xen/xen.h>\nint main(void) { return 0; }\n", word) {
            Ok(_) => None,
            Err(_) => Some("no headers of Xen (xen/xen.h; Debian's libxen-dev)".into()),
        };
    };
    let reason = no_c.lines().last().unwrap_or_default().to_string();
    Some(format!("no C compiler for {word} (cc; Debian's gcc and gcc-multilib): {reason}"))
}

/// Compares the part of xen-sys that one C program tells of. Returns how many facts agree.
fn check(program: &str, word: &str, part: impl Fn(&str) -> bool) -> usize {
    if program.is_empty() {
        return 0;
    }
    if let Some(reason) = missing(word) {
        assert!(env::var_os("XEN_ABI_REQUIRED").is_none(), "the check of the ABI is required: {reason}");
        say(&format!("comparison with {word} left out: {reason}"));
        return 0;
    }
    let mut rust = rust_facts();
    rust.retain(&part);
    let mut c = c_facts(program, word).unwrap_or_else(|e| panic!("{e}"));
    if word != NATIVE {
        // Rust aligns by the rules of this target, wherever explicit padding makes up for it.
        rust.retain(|name| !name.ends_with(" align"));
        c.retain(|name| !name.ends_with(" align"));
    }
    let differences = differences(&rust, &c);
    assert!(differences.is_empty(), "{word}: xen-sys differs from the headers:\n{}", differences.join("\n"));
    assert!(!rust.is_empty(), "{word}: nothing was compared");
    rust.len()
}

fn is_x86_32(name: &str) -> bool {
    name.contains("::x86_32::")
}

fn is_x86_64(name: &str) -> bool {
    name.contains("::x86_64::")
}

#[test]
fn every_public_item_has_a_c_counterpart_or_says_why_not() {
    assert!(PROBLEMS.is_empty(), "not covered:\n{PROBLEMS}");
    say(&format!("listed {SUMMARY}; {} items say that they have no C counterpart", EXEMPT.lines().count()));
    EXEMPT.lines().for_each(say);
}

#[test]
fn sizes_offsets_and_values_equal_those_of_the_headers() {
    let native = check(NATIVE_C, NATIVE, |name| !is_x86_32(name) && !is_x86_64(name));
    say(&format!("{native} sizes, offsets and values compared with cc {NATIVE}"));
}

#[test]
fn both_layouts_of_the_block_protocol_equal_those_of_the_headers() {
    let bits32 = check(X86_32_C, "-m32", is_x86_32);
    let bits64 = check(X86_64_C, "-m64", is_x86_64);
    say(&format!("block protocol: {bits32} facts compared with cc -m32, {bits64} with cc -m64"));
}

#[test]
fn wire_types_have_no_implicit_padding() {
    let types: Vec<(&str, usize, usize, usize)> = include!(concat!(env!("OUT_DIR"), "/wire.rs"));
    assert!(!types.is_empty());
    for (path, size, align, fields) in types {
        assert_eq!(size, fields, "{path} has bytes that belong to no field");
        assert_eq!(size % 4, 0, "{path} isn't whole words");
        assert!(align <= 8, "{path} is aligned to more than 8 bytes");
    }
}

#[test]
fn the_source_that_was_listed_is_that_of_xen_sys() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../xen-sys/src");
    let listing = abi::listing::list(&root.join("lib.rs"), if NATIVE == "-m64" { "64" } else { "32" });
    let listed: Vec<_> = listing.files.iter().filter_map(|f| f.canonicalize().ok()).collect();
    let mut folders = vec![root];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if !path.ends_with("xen_x86_32.rs") && !path.ends_with("xen_x86_64.rs") {
                assert!(listed.contains(&path.canonicalize().unwrap()), "{} wasn't listed", path.display());
            }
        }
    }
}
