//! Lists xen-sys and writes the Rust and C programs that the test compares; see the library of this package.

#[path = "src/generate.rs"]
#[allow(unreachable_pub, dead_code, reason = "the module is public in the library, and all of it in use there")]
mod generate;
#[path = "src/listing.rs"]
#[allow(unreachable_pub, dead_code, reason = "the module is public in the library, and all of it in use there")]
mod listing;

use std::error::Error;
use std::path::Path;
use std::{env, fs};

use listing::Abi;

fn main() -> Result<(), Box<dyn Error>> {
    let source = Path::new(&env::var("CARGO_MANIFEST_DIR")?).join("../../xen-sys/src");
    let out = env::var("OUT_DIR")?;
    let out = Path::new(&out);
    let listing = listing::list(&source.join("lib.rs"), &env::var("CARGO_CFG_TARGET_POINTER_WIDTH")?);

    println!("cargo::rerun-if-changed={}", source.display());
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=src");

    for (abi, file) in [(Abi::Native, "native.c"), (Abi::Bits32, "x86_32.c"), (Abi::Bits64, "x86_64.c")] {
        fs::write(out.join(file), generate::c(&listing, abi).unwrap_or_default())?;
    }
    fs::write(out.join("facts.rs"), generate::rust(&listing))?;
    fs::write(out.join("wire.rs"), generate::wire(&listing))?;
    fs::write(out.join("summary.txt"), generate::summary(&listing))?;
    fs::write(out.join("exempt.txt"), listing.exempt.join("\n"))?;
    fs::write(out.join("problems.txt"), listing.problems.join("\n"))?;
    Ok(())
}
