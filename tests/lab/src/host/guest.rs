//! The guest: this very package, built for the bare target.

use std::env;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::host::process::die_with_parent;

const TARGET: &str = "x86_64-unknown-none";

/// Builds the guest from the checkout that this program was built from, and opens its ELF.
///
/// # Errors
/// The checkout is gone, or cargo fails; it says why itself.
pub(crate) fn build() -> Result<File> {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let workspace = package.ancestors().nth(2).context("the package stands in a workspace")?;
    ensure!(workspace.join("Cargo.toml").is_file(), "the guest's sources are gone from {}", workspace.display());
    let target_folder = env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
    let target_folder = workspace.join(target_folder);

    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(workspace).args([
        "build",
        "--release",
        "--package",
        "xenlab",
        "--target",
        TARGET,
        "--target-dir",
    ]);
    cargo.arg(&target_folder);
    // Either would take the place of the flags that .cargo/config.toml has for the target.
    cargo.env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS");
    die_with_parent(&mut cargo, Vec::new());
    ensure!(cargo.status().context("cargo can't be started")?.success(), "the guest can't be built");
    let elf = target_folder.join(TARGET).join("release/xenlab");
    File::open(&elf).with_context(|| format!("cargo made no {}", elf.display()))
}
