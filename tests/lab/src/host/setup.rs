//! `xenlab xen setup`: everything that real Xen needs, in the user's cache folder, once for all checkouts.
//!
//! Nothing is installed on the host and nothing needs root. apt, with a package database of its own, fetches Debian 12's
//! packages, and trees are unpacked from them: QEMU, which is run by its tree's own dynamic loader, and dom0, which
//! becomes an initramfs; a Linux domU's small one is made of a third. So the host's versions of QEMU and Xen don't matter, nor
//! whether it has any.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, io};

use anyhow::{Context as _, Result, bail, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use sha2::{Digest, Sha256};

use crate::host::apt::{Apt, Packages};
use crate::host::cpio::Archive;
use crate::host::process::die_with_parent;

/// What QEMU's tree is made of, with a program that unpacks Linux.
const QEMU_PACKAGES: &[&str] = &["qemu-system-x86", "seabios", "xen-hypervisor-4.17-amd64", "xz-utils"];

/// What dom0 is made of: Linux, what `xl` needs, and what scripts expect of any Debian.
const DOM0_PACKAGES: &[&str] = &[
    "linux-image-amd64",
    "xen-utils-4.17",
    "xenstore-utils",
    "busybox-static",
    "bash",
    "bridge-utils",
    "bsdutils",
    "coreutils",
    "dash",
    "e2fsprogs",
    "findutils",
    "grep",
    "iproute2",
    "kmod",
    "mawk",
    "mount",
    "sed",
    "udev",
    "util-linux",
];

/// Kernel modules that dom0 keeps, of 390 MB: folders and files below `kernel/`.
const DOM0_MODULES: &[&str] = &[
    "arch/x86/crypto",
    "crypto",
    "drivers/block",
    "drivers/net/tun.ko",
    "drivers/net/xen-netback",
    "drivers/virtio",
    "drivers/xen",
    "fs/ext4",
    "fs/jbd2",
    "fs/mbcache.ko",
    "lib",
    "net/802",
    "net/bridge",
    "net/llc",
];

/// What dom0 can do without.
const DOM0_LEFT_OUT: &[&str] = &[
    "boot",
    "usr/share/bash-completion",
    "usr/share/doc",
    "usr/share/info",
    "usr/share/initramfs-tools",
    "usr/share/lintian",
    "usr/share/locale",
    "usr/share/man",
    "usr/share/perl5",
];

/// What a Linux domU's programs come from; no more is kept than the lists below say.
const DOMU_PACKAGES: &[&str] = &["busybox-static", "e2fsprogs", "fio"];

/// What a Linux domU keeps, with the libraries that these need.
const DOMU_PROGRAMS: &[&str] = &["usr/bin/busybox", "usr/bin/fio", "usr/sbin/e2fsck", "usr/sbin/mke2fs"];

/// Kernel modules of a Linux domU, below dom0's `kernel/`, in the order in which they can be loaded.
const DOMU_MODULES: &[&str] = &[
    "crypto/crc32c_generic.ko",
    "lib/libcrc32c.ko",
    "lib/crc16.ko",
    "fs/mbcache.ko",
    "fs/jbd2/jbd2.ko",
    "fs/ext4/ext4.ko",
    "drivers/block/xen-blkfront.ko",
];

/// Changes when the same lists above come to mean something else.
const RECIPE: u32 = 3;

/// The beds of real Xen: a folder that [`run`] has made.
#[derive(Debug)]
pub(crate) struct Beds(PathBuf);

impl Beds {
    /// Finds the beds.
    ///
    /// # Errors
    /// They have not been made yet.
    pub(crate) fn find() -> Result<Self> {
        let folder = cache()?.join(version());
        ensure!(folder.is_dir(), "real Xen is not set up: run `xenlab xen setup` first");
        Ok(Self(folder))
    }

    /// The hypervisor.
    pub(crate) fn xen(&self) -> PathBuf {
        self.0.join("xen")
    }

    /// dom0's Linux, and that of its domUs, not compressed: to unpack it takes an emulated machine ten seconds.
    pub(crate) fn linux(&self) -> PathBuf {
        self.0.join("vmlinux")
    }

    /// dom0's tree, as an initramfs without `/init`.
    pub(crate) fn dom0(&self) -> PathBuf {
        self.0.join("dom0.cpio")
    }

    /// A Linux domU's tree, as an initramfs without `/init`.
    pub(crate) fn domu(&self) -> PathBuf {
        self.0.join("domu.cpio")
    }

    pub(crate) fn qemu(&self) -> PathBuf {
        self.0.join("qemu/usr/bin/qemu-system-x86_64")
    }

    /// The folder of QEMU's libraries, of its dynamic loader and of the folder `qemu` with its modules.
    pub(crate) fn qemu_library(&self) -> PathBuf {
        self.0.join("qemu/usr/lib/x86_64-linux-gnu")
    }

    pub(crate) fn firmware(&self) -> [PathBuf; 2] {
        ["qemu/usr/share/qemu", "qemu/usr/share/seabios"].map(|folder| self.0.join(folder))
    }
}

/// Makes the beds if they aren't there.
///
/// # Errors
/// A tool or the network is missing, or the cache folder can't be written; the message says which.
pub(crate) fn run() -> Result<()> {
    let cache = cache()?;
    let target = cache.join(version());
    if target.is_dir() {
        println!("already set up: {}", target.display());
        return Ok(());
    }
    ensure!(cfg!(target_arch = "x86_64"), "real Xen needs an x86-64 host: QEMU comes from Debian's amd64 packages");
    check_tools()?;

    fs::create_dir_all(&cache).with_context(|| format!("can't make the cache folder {}", cache.display()))?;
    let lock = File::create(cache.join("lock")).with_context(|| format!("can't write to {}", cache.display()))?;
    if lock.try_lock().is_err() {
        eprintln!("another setup is at work; waiting for it");
        lock.lock().context("can't wait for the other setup")?;
    }
    if target.is_dir() {
        println!("already set up: {}", target.display());
        return Ok(());
    }

    // Whatever an interrupted setup left is started anew: only the last step, a rename, makes a folder count.
    let work = cache.join("partial");
    remove(&work)?;
    fs::create_dir_all(&work)?;
    let made = make(&work, &work.join("done"));
    if made.is_ok() {
        fs::rename(work.join("done"), &target)?;
    }
    remove(&work)?;
    made?;
    println!("set up: {}", target.display());
    Ok(())
}

/// Does all the work in the folder `work`; the result is the folder `done`.
fn make(work: &Path, done: &Path) -> Result<()> {
    let apt = Apt::new(&work.join("apt"))?;
    step("reading the package lists of Debian 12");
    apt.update()?;
    let qemu = apt.resolve(QEMU_PACKAGES)?;
    let dom0 = apt.resolve(DOM0_PACKAGES)?;
    let domu = apt.resolve(DOMU_PACKAGES)?;
    let names = [QEMU_PACKAGES, DOM0_PACKAGES, DOMU_PACKAGES].concat();
    let all = apt.resolve(&names)?;
    step(&format!("fetching {} packages, at most {} MB", all.files.len(), all.bytes / 1_000_000));
    let bar = progress(all.files.len(), "packages");
    apt.fetch(&names, || bar.inc(1))?;
    bar.finish_and_clear();

    let trees = work.join("trees");
    step("unpacking QEMU");
    unpack(&apt, &qemu, &trees.join("qemu"))?;
    step("unpacking dom0");
    unpack(&apt, &dom0, &trees.join("dom0"))?;
    step("unpacking a Linux domU");
    unpack(&apt, &domu, &trees.join("domu"))?;

    fs::create_dir(done)?;
    step("making dom0's initramfs, and a domU's");
    make_dom0(&trees, done)?;
    make_domu(&trees, done)?;
    keep_qemu(&trees, done)
}

/// Unpacks packages into `tree`, which gets the merged layout of Debian 12 first. No script of theirs is run.
fn unpack(apt: &Apt, packages: &Packages, tree: &Path) -> Result<()> {
    for folder in ["bin", "lib", "lib64", "sbin"] {
        fs::create_dir_all(tree.join("usr").join(folder))?;
        symlink(Path::new("usr").join(folder), tree.join(folder))?;
    }
    let bar = progress(packages.files.len(), "packages");
    for file in &packages.files {
        let mut open = Command::new("dpkg-deb");
        open.arg("--fsys-tarfile").arg(apt.file(file)).stdin(Stdio::null()).stdout(Stdio::piped());
        die_with_parent(&mut open, Vec::new());
        let mut open = open.spawn().context("dpkg-deb can't be started")?;
        let content = open.stdout.take().context("dpkg-deb has no output")?;
        let mut tar = Command::new("tar");
        tar.args(["-x", "-p", "--keep-directory-symlink", "-C"]).arg(tree).stdin(content);
        die_with_parent(&mut tar, Vec::new());
        let written = tar.status();
        let opened = open.wait()?;
        ensure!(opened.success() && written?.success(), "the package {file} can't be unpacked");
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(())
}

/// Makes `vmlinux` and `dom0.cpio` from dom0's tree.
fn make_dom0(trees: &Path, done: &Path) -> Result<()> {
    let tree = &trees.join("dom0");
    let modules = tree.join("usr/lib/modules");
    let release = only_entry(&modules, "")?;
    unpack_linux(trees, &fs::read(only_entry(&tree.join("boot"), "vmlinuz-")?)?, &done.join("vmlinux"))?;

    let all = release.join("all");
    fs::rename(release.join("kernel"), &all)?;
    for module in DOM0_MODULES {
        let kept = release.join("kernel").join(module);
        fs::create_dir_all(kept.parent().context("a module stands in a folder")?)?;
        fs::rename(all.join(module), &kept).with_context(|| format!("Debian's Linux has no module {module}"))?;
    }
    remove(&all)?;
    for folder in DOM0_LEFT_OUT {
        remove(&tree.join(folder))?;
    }
    let mut depmod = Command::new(tree.join("usr/bin/busybox"));
    depmod.arg("depmod").arg("-b").arg(tree).arg(release.file_name().context("a release has a name")?);
    die_with_parent(&mut depmod, Vec::new());
    ensure!(depmod.status().context("busybox can't be started")?.success(), "depmod failed");

    // What the packages' scripts would have made.
    fs::write(tree.join("etc/passwd"), "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534::/:/bin/false\n")?;
    fs::write(tree.join("etc/group"), "root:x:0:\nnogroup:x:65534:\n")?;
    relink("mawk", &tree.join("usr/bin/awk"))?;
    relink("/run", &tree.join("var/run"))?;
    relink("/run/lock", &tree.join("var/lock"))?;
    for folder in ["dev", "proc", "sys", "run", "tmp", "root"] {
        fs::create_dir_all(tree.join(folder))?;
    }
    let mut archive = Archive::new(BufWriter::new(File::create(done.join("dom0.cpio"))?));
    archive.tree(tree).context("dom0's tree can't be packed")?;
    archive.finish()?.flush()?;
    Ok(())
}

/// Unpacks the ELF file that a bootable Linux carries.
fn unpack_linux(trees: &Path, image: &[u8], linux: &Path) -> Result<()> {
    let packed = trees.join("vmlinux.xz");
    fs::write(&packed, payload(image).context("Debian's Linux is no image that Xen boots")?)?;
    let mut xz = in_tree(&trees.join("qemu"), "usr/bin/xz");
    xz.args(["--decompress", "--stdout"]).stdin(File::open(packed)?).stdout(File::create(linux)?);
    die_with_parent(&mut xz, Vec::new());
    ensure!(xz.status().context("xz can't be started")?.success(), "Debian's Linux can't be unpacked");
    Ok(())
}

/// Returns what is packed in a bootable Linux: the header at byte 497 tells where. Behind it stands its length, unpacked.
fn payload(image: &[u8]) -> Option<&[u8]> {
    let word = |at: usize| Some(u32::from_le_bytes(image.get(at..)?.first_chunk().copied()?) as usize);
    if image.get(0x202..0x206)? != b"HdrS" {
        return None;
    }
    let first = (usize::from(*image.get(0x1f1)?) + 1) * 512 + word(0x248)?;
    image.get(first..)?.get(..word(0x24c)?.checked_sub(4)?)
}

/// Returns the command for a program of a tree, run by the tree's own dynamic loader.
fn in_tree(tree: &Path, program: &str) -> Command {
    let library = tree.join("usr/lib/x86_64-linux-gnu");
    let mut command = Command::new(library.join("ld-linux-x86-64.so.2"));
    command.arg("--library-path").arg(library).arg(tree.join(program));
    command
}

/// Makes `domu.cpio`: of the tree `domu` what its programs need, of `dom0` the modules, in `/modules` and by their number.
fn make_domu(trees: &Path, done: &Path) -> Result<()> {
    const LOADER: &str = "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2";
    let (tree, kept) = (trees.join("domu"), trees.join("domu-kept"));
    let mut files = BTreeSet::from([PathBuf::from(LOADER), "etc/mke2fs.conf".into()]);
    for program in DOMU_PROGRAMS {
        files.insert(program.into());
        // The loader tells where it finds each library; of a program without any it says so, and fails.
        let libraries = tree.join("usr/lib/x86_64-linux-gnu");
        let mut list = Command::new(tree.join(LOADER));
        list.arg("--library-path").arg(format!("{0}:{0}/ceph", libraries.display()));
        list.arg("--list").arg(tree.join(program));
        die_with_parent(&mut list, Vec::new());
        let listed = list.output().context("the loader of a domU's tree can't be started")?;
        let listed = String::from_utf8(listed.stdout).context("the loader's list is no text")?;
        ensure!(!listed.contains("not found"), "{program} lacks a library:\n{listed}");
        let paths = listed.lines().filter_map(|line| line.split_once(" => ")?.1.split_whitespace().next());
        files.extend(paths.filter_map(|path| Some(Path::new(path).strip_prefix(&tree).ok()?.to_owned())));
    }
    for file in &files {
        keep(&tree.join(file), &kept.join(file))?;
    }
    let modules = only_entry(&trees.join("dom0/usr/lib/modules"), "")?.join("kernel");
    for (number, module) in DOMU_MODULES.iter().enumerate() {
        keep(&modules.join(module), &kept.join(format!("modules/{number}.ko")))?;
    }
    for folder in ["bin", "lib", "lib64", "sbin"] {
        fs::create_dir_all(kept.join("usr").join(folder))?;
        symlink(Path::new("usr").join(folder), kept.join(folder))?;
    }
    relink("../lib/x86_64-linux-gnu/ld-linux-x86-64.so.2", &kept.join("usr/lib64/ld-linux-x86-64.so.2"))?;
    for folder in ["dev", "proc", "sys", "tmp", "mnt"] {
        fs::create_dir_all(kept.join(folder))?;
    }
    let mut archive = Archive::new(BufWriter::new(File::create(done.join("domu.cpio"))?));
    archive.tree(&kept).context("a domU's tree can't be packed")?;
    archive.finish()?.flush()?;
    Ok(())
}

/// Copies a file and makes the folders above it.
fn keep(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to.parent().context("a file stands in a folder")?)?;
    fs::copy(from, to).with_context(|| format!("Debian's packages have no {}", from.display()))?;
    Ok(())
}

/// Keeps what QEMU needs of its tree, and the hypervisor, uncompressed as QEMU wants it.
fn keep_qemu(trees: &Path, done: &Path) -> Result<()> {
    let tree = trees.join("qemu");
    for path in ["usr/bin/qemu-system-x86_64", "usr/lib/x86_64-linux-gnu", "usr/share/qemu", "usr/share/seabios"] {
        let kept = done.join("qemu").join(path);
        fs::create_dir_all(kept.parent().context("a path has a folder")?)?;
        fs::rename(tree.join(path), kept).with_context(|| format!("Debian's QEMU has no {path}"))?;
    }
    let mut gunzip = Command::new(trees.join("dom0/usr/bin/busybox"));
    gunzip.args(["gunzip", "-c"]).arg(tree.join("boot/xen-4.17-amd64.gz")).stdout(File::create(done.join("xen"))?);
    die_with_parent(&mut gunzip, Vec::new());
    ensure!(gunzip.status().context("busybox can't be started")?.success(), "the hypervisor can't be unpacked");
    Ok(())
}

/// Names all programs and files of the host that are missing, not only the first.
fn check_tools() -> Result<()> {
    let path = env::var_os("PATH").unwrap_or_default();
    let is_there = |tool: &str| env::split_paths(&path).any(|folder| folder.join(tool).is_file());
    let tools = [("apt-get", "apt"), ("dpkg-deb", "dpkg"), ("tar", "tar")];
    let mut missing: Vec<&str> =
        tools.iter().filter(|(tool, _)| !is_there(tool)).map(|&(_, package)| package).collect();
    if !Path::new(crate::host::apt::KEYRING).exists() {
        missing.push("debian-archive-keyring");
    }
    if !missing.is_empty() {
        bail!("install these first, on a Debian or Ubuntu host: apt-get install {}", missing.join(" "));
    }
    Ok(())
}

/// The folder of all versions of the beds.
fn cache() -> Result<PathBuf> {
    let set = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
    Ok(base.context("neither XDG_CACHE_HOME nor HOME is set: no place for the beds")?.join("xenlab"))
}

/// The name of what this program would make: another recipe, another folder.
fn version() -> String {
    let recipe = format!(
        "{RECIPE} {QEMU_PACKAGES:?} {DOM0_PACKAGES:?} {DOM0_MODULES:?} {DOM0_LEFT_OUT:?} {DOMU_PACKAGES:?} \
         {DOMU_PROGRAMS:?} {DOMU_MODULES:?}"
    );
    Sha256::digest(recipe).iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

/// Returns the one entry of `folder` whose name begins with `prefix`.
fn only_entry(folder: &Path, prefix: &str) -> Result<PathBuf> {
    let entries = fs::read_dir(folder)?.collect::<io::Result<Vec<_>>>()?;
    let mut found = entries.iter().filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix));
    match (found.next(), found.next()) {
        (Some(entry), None) => Ok(entry.path()),
        _ => bail!("one {prefix}* was expected in {}", folder.display()),
    }
}

/// Makes `link` lead to `target`, instead of what may be there.
fn relink(target: &str, link: &Path) -> Result<()> {
    remove(link)?;
    Ok(symlink(target, link)?)
}

/// Removes a file or a whole folder, if it is there.
fn remove(path: &Path) -> Result<()> {
    let removed = match path.symlink_metadata() {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(_) => Ok(()),
    };
    removed.with_context(|| format!("can't remove {}", path.display()))
}

fn step(what: &str) {
    eprintln!("setup: {what}");
}

/// A bar on standard error; nothing where that is no terminal.
fn progress(length: usize, unit: &str) -> ProgressBar {
    let style =
        ProgressStyle::with_template("  {wide_bar} {pos}/{len} {msg} {elapsed}").expect("the template is right");
    ProgressBar::new(length as u64).with_style(style).with_message(unit.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_bootable_linux_carries_is_found_by_its_header() {
        // Two sectors of set-up code besides the first, 16 bytes of code, and a packed kernel of 6 bytes with its length.
        let mut image = vec![0; 3 * 512 + 16];
        image.extend(b"packed\x10\0\0\0 and more");
        image[0x1f1] = 2;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x248] = 16;
        image[0x24c] = 10;
        assert_eq!(payload(&image), Some(&b"packed"[..]));
        for (at, value) in [(0x202, 0), (0x24c, 3), (0x24c, 200), (0x1f1, 255), (0x24b, 255)] {
            let mut other = image.clone();
            other[at] = value;
            assert_eq!(payload(&other), None, "{at:#x}");
        }
        for short in [0, 0x201, 0x24f, 3 * 512 + 21] {
            assert_eq!(payload(&image[..short]), None, "{short}");
        }
    }
}
