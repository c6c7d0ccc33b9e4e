//! Every file of the glue compiles for every version of NetBSD and every option that it knows, against our own declarations of what
//! it uses (`include/kernel.h`). That they are NetBSD's can only be shown by a build in a real kernel.
#![cfg(not(target_os = "none"))]

mod common;

use std::process::Command;

use common::{compiler, glue, left_out, run, say};

/// `__NetBSD_Version__` of 7.0, 8.0, 9.0, 10.0 and of the current system.
const VERSIONS: [u32; 5] = [700_000_000, 800_000_000, 900_000_000, 1_000_000_000, 1_099_001_200];

/// A PV kernel and a PVH one, with the debugger and without, and with another number of queues.
const OPTIONS: [&[&str]; 5] =
    [&["-DXENPV"], &[], &["-DXENPV", "-DDDB"], &["-DDDB"], &["-DXENPV", "-DXENPV_XBD_QUEUES=16"]];

/// Compiles all files in all ways. Returns how many times that was.
fn compile(name: &str) -> Result<usize, String> {
    let mut done = 0;
    for file in glue() {
        for version in VERSIONS {
            for options in OPTIONS {
                let mut command = compiler(name)?;
                command.arg(format!("-D__NetBSD_Version__={version}")).args(options);
                command.args(["-c", "-o", "/dev/null"]).arg(&file);
                run(&mut command).map_err(|error| format!("{version} {options:?} {error}"))?;
                done += 1;
            }
        }
    }
    Ok(done)
}

fn check(name: &str) {
    if let Err(reason) = run(Command::new(name).arg("--version")) {
        left_out(&format!("compilation of the glue by {name}"), &reason);
        return;
    }
    let done = compile(name).unwrap_or_else(|error| panic!("{error}"));
    say(&format!("{name} compiled the glue {done} times"));
}

#[test]
fn gcc_compiles_the_glue_for_every_version_and_option() {
    check("gcc");
}

#[test]
fn clang_compiles_the_glue_for_every_version_and_option() {
    check("clang");
}
