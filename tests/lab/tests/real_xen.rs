//! The beds that `cargo test` leaves out, named so that it says so. `cargo test -p xenlab -- --ignored` runs them.
#![cfg(not(target_os = "none"))]

use std::process::Command;

fn xenlab(args: &[&str]) {
    let status = Command::new(env!("CARGO_BIN_EXE_xenlab")).args(args).status().expect("xenlab starts");
    assert!(status.success(), "xenlab {}: {status}", args.join(" "));
}

#[test]
#[ignore = "needs real Xen under QEMU: `xenlab xen setup` fetches it, `xenlab xen fast` runs this"]
fn every_scenario_passes_in_one_domain_on_real_xen() {
    xenlab(&["xen", "fast"]);
}

#[test]
#[ignore = "needs real Xen under QEMU: `xenlab xen setup` fetches it, `xenlab xen fast --program dom0` runs this"]
fn the_guest_serves_a_second_real_domain() {
    xenlab(&["xen", "fast", "--program", "dom0"]);
}

#[test]
#[ignore = "needs real Xen under QEMU: `xenlab xen setup` fetches it, `xenlab xen conformance` runs this"]
fn real_xen_answers_as_the_mock_is_held_to() {
    xenlab(&["xen", "conformance"]);
}

#[test]
#[ignore = "needs real Xen under QEMU: `xenlab xen setup` fetches it, `xenlab xen linux --disk IMAGE` runs this"]
fn the_guest_lives_under_a_linux_dom0() {
    let image = tempfile::NamedTempFile::new().expect("a temporary file");
    image.as_file().set_len(8 << 20).expect("room for the image");
    xenlab(&["xen", "linux", "--disk", image.path().to_str().expect("a path of plain letters")]);
}

#[test]
#[ignore = "needs real Xen under QEMU: `xenlab xen setup` fetches it, `xenlab xen linux --suite block` runs this"]
fn the_guest_serves_linux_as_a_driver_domain() {
    xenlab(&["xen", "linux", "--suite", "block"]);
}

#[test]
#[ignore = "needs real Xen under QEMU: `xenlab xen setup` fetches it, `xenlab xen linux --suite save` runs this"]
fn the_guest_is_saved_and_restored_by_a_linux_dom0() {
    xenlab(&["xen", "linux", "--suite", "save"]);
}
