//! `xenlab xen linux`: Linux is dom0, and the guest a domU that `xl` makes, with a disk that Linux's block back end
//! serves. Two minutes. The other suites are other rooms': [`block`], [`save`].
//!
//! dom0 lives in memory: QEMU loads its tree as an initramfs, to which each run adds the first process, the job, and the
//! guest's ELF. What dom0 and the guest say goes out by the serial console, and is judged here.

use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressStyle};
use sha2::{Digest, Sha256};

use crate::host::cpio::Archive;
use crate::host::qemu::{End, Machine, Run, tail};
use crate::host::setup::Beds;
use crate::host::{block, crash, guest, save, ways};

const INIT: &[u8] = include_bytes!("../../dom0/init");
const COMMON: &[u8] = include_bytes!("../../dom0/common");
const DISK_JOB: &[u8] = include_bytes!("../../dom0/disk-job");

const UNFIT: &str = "the bed is incomplete; remove its folder and set up again";

/// What the guest writes at the end of the disk: 64-bit words, the tag above the word's index.
const PATTERN_BYTES: usize = 1 << 20;
const PATTERN_TAG: u64 = 0x5845_4e50 << 32;

/// All steps of the disk job, in order; the first that is missing in its report tells where it stopped.
const STEPS: &[(&str, &str)] = &[
    ("before", "dom0 read the disk"),
    ("create", "xl started the guest"),
    ("after", "dom0 read what the guest wrote"),
    ("console", "console input reached the guest"),
    ("detach", "the disk was detached"),
    ("xvdb", "another disk came, was used with all that Linux offers, and went"),
    ("xvdc", "the same, with pages that stay mapped"),
    ("xvdd", "the same, with pages in which nothing else is"),
    ("xvde", "a disk that is only read: a write was refused"),
    ("xvdf", "a disk with sectors of 4 KiB: it grew, what was new was read, and it was taken away while it was busy"),
    ("shutdown", "xl shutdown ended the guest"),
];

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What is run; "disk" unless it is said
    #[arg(long, value_enum)]
    suite: Option<Suite>,
    /// The disk image that the guest works on in the suite "disk"; it is read only, what the guest writes is thrown away
    #[arg(long, value_name = "IMAGE", required_unless_present = "suite", required_if_eq("suite", "disk"))]
    disk: Option<PathBuf>,
    /// Seconds until the run is given up
    #[arg(long, default_value_t = 900)]
    timeout: u64,
    /// Shows the lines of Xen and of dom0's start too
    #[arg(long, short)]
    verbose: bool,
}

/// What can be run on the Linux bed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Suite {
    /// The guest is a domU on a disk that Linux serves
    Disk,
    /// The guest is a driver domain and serves disks to Linux domUs
    Block,
    /// The guest is saved and restored while it works on disks that Linux serves
    Save,
}

/// A disk image, and what its SHA-256 must be before and after the guest wrote.
#[derive(Debug, PartialEq)]
struct Expected {
    sectors: u64,
    before: String,
    after: String,
}

/// What dom0 (`xenlab-dom0: KEY VALUE`) and the guest (`guest: xenlab: KEY VALUE`) told.
#[derive(Debug, Default)]
pub(crate) struct Report<'a> {
    dom0: Vec<(&'a str, &'a str)>,
    guest: Vec<&'a str>,
}

/// Runs a suite on real Xen.
///
/// # Errors
/// The bed or the image is missing or unfit, or any step went wrong.
pub(crate) fn run(args: &Args) -> Result<()> {
    match (args.suite.unwrap_or(Suite::Disk), &args.disk) {
        (Suite::Disk, Some(image)) => run_disk(args, image),
        (Suite::Disk, None) => bail!("the suite \"disk\" needs an image: --disk IMAGE"),
        (Suite::Block, None) => block::run(args.timeout, args.verbose),
        (Suite::Save, None) => save::run(args.timeout, args.verbose),
        (Suite::Block | Suite::Save, Some(_)) => {
            bail!("this suite has disks of its own: --disk is for the suite \"disk\"")
        }
    }
}

fn run_disk(args: &Args, image: &Path) -> Result<()> {
    let mut image = open_image(image)?;
    let beds = Beds::find()?;
    let elf = guest::build()?;
    let expected = expect(&mut image)?;

    let bytes = ways::BYTES.to_string();
    // As many queues as Linux has processors.
    let mut machine = machine(
        &beds,
        2,
        2,
        elf,
        DISK_JOB,
        args.timeout,
        &[("job.bytes", bytes.as_bytes()), ("job.more", &ways::more())],
    )?;
    machine.disk(image);
    let started = Instant::now();
    let run = watch(machine, args.timeout, args.verbose, &["guest"])?;
    let ways = judge(&run, &expected, args.timeout)?;
    for done in STEPS.iter().map(|(_, done)| *done).chain(ways.iter().map(String::as_str)) {
        println!("  ok  {done}");
    }
    println!("passed on real Xen with Linux: SHA-256 as expected, twice ({:.1} s)", started.elapsed().as_secs_f64());
    Ok(())
}

/// Runs a machine and shows what dom0's job and its `domains` say, or every line if `verbose`.
///
/// # Errors
/// QEMU can't be started.
pub(crate) fn watch(machine: Machine, timeout: u64, verbose: bool, domains: &[&str]) -> Result<Run> {
    let spinner = ProgressBar::new_spinner().with_message("Xen and dom0 boot");
    spinner.enable_steady_tick(Duration::from_millis(100));
    let run = machine.run(Duration::from_secs(timeout), |line| {
        let who = line.split_once(": ").map_or("", |(who, _)| who);
        if verbose || who == "xenlab-dom0" || domains.contains(&who) {
            spinner.set_message("dom0 and its domains run");
            spinner.suspend(|| println!("{line}"));
        }
    })?;
    spinner.finish_and_clear();
    Ok(run)
}

/// Returns a machine of `cpus` processors whose dom0 has `vcpus` of them, runs `job` with the guest, and has these `files` at its root.
///
/// # Errors
/// The bed is incomplete, or there is no room for dom0's initrd.
pub(crate) fn machine(
    beds: &Beds,
    cpus: u32,
    vcpus: u32,
    elf: File,
    job: &[u8],
    timeout: u64,
    files: &[(&str, &[u8])],
) -> Result<Machine> {
    let options = format!("dom0_mem=1536M,max:1536M dom0_max_vcpus={vcpus} guest_loglvl=all");
    let mut machine = Machine::new(beds, cpus, &options);
    let kernel = File::open(beds.linux()).context(UNFIT)?;
    machine.boot(kernel, "console=hvc0 quiet", Some(initrd(beds, elf, job, timeout, files)?));
    Ok(machine)
}

/// A Linux domU, as `xl` in dom0 is given it.
pub(crate) struct DomU {
    kernel: Vec<u8>,
    initrd: Vec<u8>,
}

impl DomU {
    /// Makes one whose first process is `init`.
    ///
    /// # Errors
    /// The bed is incomplete.
    pub(crate) fn new(beds: &Beds, init: &[u8]) -> Result<Self> {
        let kernel = fs::read(beds.linux()).context(UNFIT)?;
        let mut initrd = Archive::new(fs::read(beds.domu()).context(UNFIT)?);
        initrd.file(b"init", 0o755, init)?;
        Ok(Self { kernel, initrd: initrd.finish()? })
    }

    /// Returns its files and the names under which the jobs look for them.
    pub(crate) fn files(&self) -> [(&'static str, &[u8]); 2] {
        [("vmlinux", &self.kernel), ("domu.cpio", &self.initrd)]
    }
}

/// Opens a disk image for reading.
fn open_image(path: &Path) -> Result<File> {
    let name = path.display();
    let image = File::open(path).with_context(|| format!("no disk image {name}"))?;
    let about = image.metadata()?;
    ensure!(about.is_file(), "{name} is no file: a disk image is wanted");
    let bytes = about.len();
    ensure!(bytes > 0, "the disk image {name} is empty");
    ensure!(bytes % 512 == 0, "the disk image {name} has {bytes} bytes: not a whole number of 512-byte sectors");
    ensure!(
        bytes >= PATTERN_BYTES as u64,
        "the disk image {name} has {bytes} bytes: too small for the pattern of {PATTERN_BYTES} bytes that the guest writes"
    );
    Ok(image)
}

/// What the guest writes into the last [`PATTERN_BYTES`] of the disk.
fn pattern() -> Vec<u8> {
    (0..PATTERN_BYTES as u64 / 8).flat_map(|index| word(index).to_le_bytes()).collect()
}

/// A word that the guest writes.
pub(crate) const fn word(index: u64) -> u64 {
    PATTERN_TAG | index
}

/// Works out what the guest and dom0 must see on the disk.
fn expect(image: &mut File) -> Result<Expected> {
    let bytes = image.metadata()?.len();
    let style = ProgressStyle::with_template("reading the image {wide_bar} {bytes}/{total_bytes}")?;
    let bar = ProgressBar::new(bytes).with_style(style);
    let mut head = bar.wrap_read(&*image).take(bytes - PATTERN_BYTES as u64);
    let mut before = Sha256::new();
    let mut chunk = vec![0; 1 << 20];
    loop {
        match head.read(&mut chunk)? {
            0 => break,
            count => before.update(&chunk[..count]),
        }
    }
    let mut after = before.clone();
    after.update(pattern());
    io::copy(&mut &*image, &mut before)?;
    bar.finish_and_clear();
    Ok(Expected { sectors: bytes / 512, before: hex(before), after: hex(after) })
}

pub(crate) fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Puts dom0's tree and this run's own files together. The file has no name, so that nothing is left of it.
fn initrd(beds: &Beds, mut elf: File, job: &[u8], timeout: u64, files: &[(&str, &[u8])]) -> Result<File> {
    let mut initrd = tempfile::tempfile().context("no temporary file for dom0's initrd")?;
    let mut tree = File::open(beds.dom0()).context(UNFIT)?;
    io::copy(&mut tree, &mut initrd).context("no room for dom0's initrd in the temporary folder")?;
    let mut program = Vec::new();
    elf.read_to_end(&mut program)?;
    let mut archive = Archive::new(initrd);
    archive.file(b"init", 0o755, INIT)?;
    archive.file(b"common", 0o644, COMMON)?;
    archive.file(b"job", 0o755, job)?;
    // dom0 gives up before this program does: it can tell more.
    archive.file(b"job.seconds", 0o644, (timeout * 2 / 3).to_string().as_bytes())?;
    archive.file(b"guest.elf", 0o644, &program)?;
    for (name, content) in files {
        archive.file(name.as_bytes(), 0o644, content)?;
    }
    let mut initrd = archive.finish()?;
    initrd.flush()?;
    initrd.rewind()?;
    Ok(initrd)
}

impl<'a> Report<'a> {
    fn read(lines: &'a [String]) -> Self {
        let mut report = Self::default();
        for line in lines {
            if let Some(told) = line.strip_prefix("xenlab-dom0: ") {
                report.dom0.push(told.split_once(' ').unwrap_or((told, "")));
            } else if let Some(told) = line.strip_prefix("guest: xenlab: ") {
                report.guest.push(told.trim_end());
            }
        }
        report
    }

    /// Returns what dom0 has told by that word first.
    pub(crate) fn dom0(&self, key: &str) -> Option<&'a str> {
        self.dom0.iter().find(|(found, _)| *found == key).map(|&(_, value)| value)
    }

    fn guest(&self, key: &str) -> Option<&'a str> {
        self.guest.iter().find_map(|line| line.strip_prefix(key))
    }

    /// # Errors
    /// What dom0 or the guest saw is not what was expected.
    fn compare(&self, expected: &Expected) -> Result<()> {
        let sectors = expected.sectors.to_string();
        let claims = [
            ("the guest's sectors", self.guest("xvda sectors="), &sectors),
            ("SHA-256 of the disk in dom0", self.dom0("before"), &expected.before),
            ("SHA-256 of the disk in the guest", self.guest("xvda before "), &expected.before),
            ("SHA-256 in the guest after its write", self.guest("xvda after "), &expected.after),
            ("SHA-256 in dom0 after the guest's write", self.dom0("after"), &expected.after),
        ];
        for (what, found, expected) in claims {
            match found {
                None => bail!("{what}: not told, {expected} was expected"),
                Some(found) => ensure!(found == expected, "{what}: {found}, but {expected} was expected"),
            }
        }
        Ok(())
    }
}

/// Returns the last lines of dom0 and the guest, or, if dom0 never came up, those of the boot.
pub(crate) fn said_in_dom0(lines: &[String]) -> String {
    match lines.iter().position(|line| line == "xenlab-dom0: up") {
        None => tail(lines, 20),
        Some(up) => {
            let said = lines[up + 1..].iter().filter(|line| !line.is_empty() && !line.starts_with("(XEN)"));
            tail(&said.cloned().collect::<Vec<_>>(), 20)
        }
    }
}

/// Turns a machine's end and what it said into the result of the run; returns what there is to tell of it.
fn judge(run: &Run, expected: &Expected, timeout: u64) -> Result<Vec<String>> {
    judge_job(run, timeout, STEPS)?.compare(expected)?;
    ways::judge(&run.lines)
}

/// Turns the end of a machine, and which of its job's `steps` were told by their words, into a report of the rest.
///
/// # Errors
/// Something crashed, the job or QEMU failed, a step is missing, or it lasted too long.
pub(crate) fn judge_job<'a>(run: &'a Run, timeout: u64, steps: &[(&str, &str)]) -> Result<Report<'a>> {
    judge_end(run, timeout)?;
    let report = Report::read(&run.lines);
    let last = said_in_dom0(&run.lines);
    for (key, done) in steps {
        ensure!(report.dom0(key).is_some(), "the job stopped before this: {done}; last lines:\n{last}");
    }
    ensure!(report.dom0("status") == Some("0"), "the job in dom0 did not end well; last lines:\n{last}");
    Ok(report)
}

fn judge_end(run: &Run, timeout: u64) -> Result<()> {
    if let Some(report) = crash::report(&run.lines) {
        bail!("crash:\n{report}");
    }
    let last = said_in_dom0(&run.lines);
    if let Some(failure) = Report::read(&run.lines).dom0("failed") {
        bail!("the job in dom0 failed: {failure}; last lines:\n{last}");
    }
    match &run.end {
        End::Exited(status) => ensure!(status.success(), "QEMU ended with {status}; last lines:\n{last}"),
        End::Dead => bail!("Xen or dom0 crashed; last lines:\n{last}"),
        End::TimedOut => bail!("the job is not done after {timeout} s; last lines:\n{last}"),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    use super::*;

    fn image(bytes: usize) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), vec![7; bytes]).unwrap();
        file
    }

    #[test]
    fn an_unfit_image_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let refusal = |path: &Path| format!("{:#}", open_image(path).unwrap_err());
        assert!(refusal(&folder.path().join("none.img")).contains("no disk image"));
        assert!(refusal(folder.path()).contains("is no file"));
        assert!(refusal(image(0).path()).contains("is empty"));
        assert!(refusal(image((2 << 20) + 1).path()).contains("not a whole number of 512-byte sectors"));
        assert!(refusal(image(1024).path()).contains("too small"));
        assert!(open_image(image(1 << 20).path()).is_ok());
    }

    #[test]
    fn the_expected_sums_are_those_of_the_image_and_of_it_with_the_pattern() {
        let file = image(PATTERN_BYTES + 512);
        let expected = expect(&mut file.reopen().unwrap()).unwrap();
        assert_eq!(expected.sectors, 2049);
        let sum = |bytes: &[u8]| hex(Sha256::new_with_prefix(bytes));
        assert_eq!(expected.before, sum(&vec![7; PATTERN_BYTES + 512]));
        let mut written = vec![7; 512];
        for index in 0..PATTERN_BYTES as u32 / 8 {
            written.extend(index.to_le_bytes());
            written.extend(b"PNEX");
        }
        assert_eq!(expected.after, sum(&written));
    }

    fn expected() -> Expected {
        Expected { sectors: 2048, before: "aa".to_owned(), after: "bb".to_owned() }
    }

    /// What a good run says, before the other ways of using a disk and after them.
    const BEGIN: &str = "\
xenlab-dom0: up
xenlab-dom0: before aa
xenlab-dom0: create ok
guest: xenlab: ready
guest: xenlab: xvda sectors=2048
guest: xenlab: xvda before aa
guest: xenlab: xvda after bb
xenlab-dom0: after bb
guest: xenlab: console got hello
xenlab-dom0: console ok
guest: xenlab: detached xvda
xenlab-dom0: detach ok
";
    const END: &str = "\
guest: xenlab: shutdown
xenlab-dom0: shutdown ok
xenlab-dom0: status 0
";

    fn good() -> String {
        format!("{BEGIN}{}{END}", ways::tests::good())
    }

    fn verdict(text: &str, end: End) -> Result<(), String> {
        let run = Run { lines: text.lines().map(str::to_owned).collect(), end };
        judge(&run, &expected(), 9).map(drop).map_err(|error| format!("{error:#}"))
    }

    fn good_end() -> End {
        End::Exited(ExitStatus::from_raw(0))
    }

    #[test]
    fn a_whole_good_run_passes() {
        assert_eq!(verdict(&good(), good_end()), Ok(()));
    }

    #[test]
    fn every_line_of_a_run_counts() {
        let not_judged = ["xenlab-dom0: up", "guest: xenlab: ready"];
        // dom0 itself has waited for these lines of the guest.
        let judged_in_dom0 = [
            "guest: xenlab: console",
            "guest: xenlab: detached",
            "guest: xenlab: xvdf is busy",
            "guest: xenlab: shutdown",
        ];
        let good = good();
        for line in good.lines() {
            if not_judged.contains(&line) || judged_in_dom0.iter().any(|start| line.starts_with(start)) {
                continue;
            }
            let without = good.replace(&format!("{line}\n"), "");
            assert!(verdict(&without, good_end()).is_err(), "passed without {line:?}");
        }
    }

    #[test]
    fn another_sum_or_size_fails_and_says_whose() {
        for (from, to, whose) in [
            ("sectors=2048", "sectors=2047", "sectors"),
            ("xenlab-dom0: before aa", "xenlab-dom0: before ab", "in dom0"),
            ("xenlab: xvda before aa", "xenlab: xvda before ab", "in the guest"),
            ("xenlab: xvda after bb", "xenlab: xvda after aa", "in the guest after its write"),
            ("xenlab-dom0: after bb", "xenlab-dom0: after aa", "in dom0 after the guest's write"),
        ] {
            let message = verdict(&good().replace(from, to), good_end()).unwrap_err();
            assert!(message.contains(whose), "{from}: {message}");
        }
    }

    #[test]
    fn failures_of_the_job_the_machine_and_time_are_told_apart() {
        let good = good();
        let failed = good.replace("xenlab-dom0: detach ok", "xenlab-dom0: failed detach: still listed");
        assert!(verdict(&failed, good_end()).unwrap_err().contains("detach: still listed"));
        assert!(verdict(&good, End::TimedOut).unwrap_err().contains("after 9 s"));
        assert!(verdict(&good, End::Dead).unwrap_err().contains("crashed"));
        assert!(verdict(&good, End::Exited(ExitStatus::from_raw(1 << 8))).unwrap_err().contains("QEMU ended"));
        let status = good.replace("xenlab-dom0: status 0", "xenlab-dom0: status 1");
        assert!(verdict(&status, good_end()).unwrap_err().contains("did not end well"));
        let crash = format!("{good}(XEN) Domain 1 (vcpu#0) crashed on cpu#1:\n(XEN) rax: 0000000000000007\n");
        assert!(verdict(&crash, good_end()).unwrap_err().contains("rax: 0000000000000007"));
    }
}
