//! Compiles the glue, and the host that plays the kernel, for the tests that run them.
//!
//! `XENPV_HOST_CFLAGS` has more flags, such as `-fsanitize=thread`; `CC` names another compiler than cc.

use std::env;
use std::error::Error;
use std::path::Path;
use std::process::Command;

/// What is compiled as a kernel is, with no header but ours and the compiler's own.
const KERNEL: [&str; 12] = [
    "../../netbsd/glue/xbd_xenbus.c",
    "../../netbsd/glue/xbd_disk.c",
    "../../netbsd/glue/xencons.c",
    "../../netbsd/glue/xengnt.c",
    "../../netbsd/glue/xenpv_subr.c",
    "../../netbsd/glue/xenpv_device.c",
    "host/kernel.c",
    "host/nodes.c",
    "host/disk.c",
    "host/tty.c",
    "host/conf_xbd.c",
    "host/conf_xencons.c",
];

fn build() -> cc::Build {
    let mut build = cc::Build::new();
    build.flag("-std=gnu99").flag("-Werror").flag("-fno-omit-frame-pointer").debug(true).extra_warnings(true);
    build.flag("-Wno-unused-parameter");
    env::var("XENPV_HOST_CFLAGS").unwrap_or_default().split_whitespace().for_each(|flag| _ = build.flag(flag));
    build
}

fn main() -> Result<(), Box<dyn Error>> {
    for changed in ["build.rs", "host", "include", "../../netbsd/glue", "../../netbsd/include"] {
        println!("cargo::rerun-if-changed={changed}");
    }
    println!("cargo::rerun-if-env-changed=XENPV_HOST_CFLAGS");
    if env::var("CARGO_CFG_TARGET_OS")? == "none" {
        return Ok(());
    }
    build().files(["host/port.c", "host/memory.c"]).try_compile("host_port")?;

    let mut kernel = build();
    let own = Command::new(kernel.get_compiler().path()).arg("-print-file-name=include").output()?;
    let own = String::from_utf8(own.stdout)?;
    kernel.flag("-ffreestanding").flag("-nostdinc").flag("-isystem").flag(own.trim()).define("XENPV", None);
    for folder in ["include", "../../netbsd/include", "../../netbsd/glue"] {
        kernel.include(Path::new(&env::var("CARGO_MANIFEST_DIR")?).join(folder));
    }
    // Also the members that nothing calls: Rust and C call each other in a circle.
    kernel.files(KERNEL).try_compile("host_kernel")?;
    Ok(())
}
