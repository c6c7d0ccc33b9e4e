//! What the tests of disks share.
#![allow(dead_code, reason = "each test program uses some of it")]

use std::process::Command;

use netbsd::Kernel;
use netbsd::kernel::Disk;
use netbsd::peer::{DiskKind, Peer};

pub(crate) const XBD0: Disk = Disk(0);

/// Sectors of most disks: 4 MiB.
pub(crate) const SECTORS: usize = 8192;

// NetBSD's.
pub(crate) const EIO: i32 = 5;
pub(crate) const EBUSY: i32 = 16;
pub(crate) const ENODEV: i32 = 19;
pub(crate) const EINVAL: i32 = 22;
pub(crate) const EROFS: i32 = 30;
pub(crate) const EOPNOTSUPP: i32 = 45;

/// Attaches a disk and waits until it can be used, and nobody looks for its label any more.
pub(crate) fn attach(kernel: &Kernel, kind: DiskKind) -> Peer {
    let peer = Peer::serve(kernel, 51712, SECTORS, kind);
    kernel.wait("the disk is there", || XBD0.size() >= 0 && kernel.pending() == 0);
    peer
}

/// Runs a test in a process of its own: a kernel that has dumped is at its end.
pub(crate) fn to_the_end(name: &str, work: impl FnOnce()) {
    const CHILD: &str = "XENPV_TO_THE_END";
    if std::env::var_os(CHILD).is_some() {
        work();
        // Nothing is taken down: the disk belongs to the dump for ever.
        std::process::exit(0);
    }
    let mut child = Command::new(std::env::current_exe().unwrap());
    let done = child.args(["--exact", name, "--nocapture"]).env(CHILD, "1").output().unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{}: {said}", done.status);
}
