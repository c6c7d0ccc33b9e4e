//! The machine: Xen under QEMU, its serial console line by line, a limit of time, and no process left behind.

use std::fs::File;
use std::io::{self, BufRead, BufReader, PipeReader};
use std::os::fd::AsRawFd;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::host::crash;
use crate::host::process::{Guard, die_with_parent};
use crate::host::setup::Beds;

/// The port of QEMU's isa-debug-exit: a guest that writes `v` there ends QEMU with the status `v << 1 | 1`.
const EXIT_PORT: u16 = 0xf4;

/// A machine that boots Xen, before it is switched on.
#[derive(Debug)]
pub(crate) struct Machine {
    command: Command,
    /// Files that QEMU opens by number: neither blanks nor commas in a path can be misread, and none needs a name.
    inherited: Vec<File>,
}

/// How a machine ended.
#[derive(Debug)]
pub(crate) enum End {
    /// QEMU left by itself: the guest asked for it, or QEMU could not start.
    Exited(ExitStatus),
    /// Xen or dom0 crashed.
    Dead,
    TimedOut,
}

/// A machine's life.
#[derive(Debug)]
pub(crate) struct Run {
    /// All lines of the serial console and of QEMU itself.
    pub(crate) lines: Vec<String>,
    pub(crate) end: End,
}

impl Machine {
    /// Returns a machine of `cpus` processors that boots Xen with `options` besides those for its console.
    ///
    /// SMAP, SMEP and LA57 are off: with SMAP on, QEMU 7.2's emulation crashes a PV dom0 in Xen's bounce frame. KVM is
    /// never used: where it exists inside another virtual machine it can't run Xen.
    pub(crate) fn new(beds: &Beds, cpus: u32, options: &str) -> Self {
        let library = beds.qemu_library();
        // QEMU is run by its own tree's dynamic loader, so that it needs nothing of the host.
        let mut command = Command::new(library.join("ld-linux-x86-64.so.2"));
        command.arg("--library-path").arg(&library).arg(beds.qemu());
        command.env("QEMU_MODULE_DIR", library.join("qemu"));
        for folder in beds.firmware() {
            command.arg("-L").arg(folder);
        }
        command.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]);
        command.args(["-serial", "stdio", "-monitor", "none"]);
        command.args(["-machine", "q35", "-accel", "tcg", "-cpu", "max,smap=off,smep=off,la57=off"]);
        command.args(["-m", "4096", "-smp", &cpus.to_string()]);
        command.args(["-device", &format!("isa-debug-exit,iobase={EXIT_PORT:#x},iosize=4")]);
        command.arg("-kernel").arg(beds.xen());
        command.args([
            "-append",
            &format!("console=com1 com1=115200,8n1 noreboot=1 loglvl=warning spec-ctrl=eager-fpu {options}"),
        ]);
        Self { command, inherited: Vec::new() }
    }

    /// Lets time be a count of instructions: each lasts 2^`shift` nanoseconds, and what nobody does lasts nothing.
    pub(crate) fn count(&mut self, shift: u32) {
        self.command.args(["-icount", &format!("shift={shift},sleep=off")]);
    }

    /// Adds the boot modules: the ELF of dom0 with its command line, and its initrd.
    pub(crate) fn boot(&mut self, kernel: File, command_line: &str, initrd: Option<File>) {
        let mut modules = format!("{} {command_line}", self.inherit(kernel));
        if let Some(initrd) = initrd {
            modules = format!("{modules},{}", self.inherit(initrd));
        }
        self.command.arg("-initrd").arg(modules);
    }

    /// Adds a virtio disk. What the machine writes is kept aside until it ends: `image` never changes.
    pub(crate) fn disk(&mut self, image: File) {
        let path = self.inherit(image);
        let drive = format!("if=none,id=disk,format=raw,snapshot=on,file.driver=file,file.filename={path}");
        self.command.args(["-drive", &drive, "-device", "virtio-blk-pci,drive=disk"]);
    }

    /// Runs the machine until it ends, calling `on_line` for each line of its console.
    ///
    /// # Errors
    /// QEMU can't be started.
    pub(crate) fn run(mut self, limit: Duration, mut on_line: impl FnMut(&str)) -> Result<Run> {
        let (output, input) = io::pipe().context("no pipe for QEMU's output")?;
        self.command.stdin(Stdio::null()).stdout(input.try_clone()?).stderr(input);
        die_with_parent(&mut self.command, self.inherited.iter().map(AsRawFd::as_raw_fd).collect());
        let mut child = Guard(self.command.spawn().context("QEMU can't be started; try `xenlab xen setup`")?);
        // The command holds the pipe's other end: while it lives the output has no end.
        drop(self);

        let console = read_lines(output);
        let mut lines = Vec::new();
        let mut deadline = Instant::now() + limit;
        let mut dead = false;
        let end = loop {
            match console.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    on_line(&line);
                    if !dead && crash::machine_is_dead(&line) {
                        dead = true;
                        deadline = deadline.min(Instant::now() + Duration::from_millis(300));
                    }
                    lines.push(line);
                }
                Err(_) if dead => break End::Dead,
                Err(RecvTimeoutError::Disconnected) => break End::Exited(child.0.wait()?),
                Err(RecvTimeoutError::Timeout) => break End::TimedOut,
            }
        };
        Ok(Run { lines, end })
    }

    fn inherit(&mut self, file: File) -> String {
        let path = format!("/dev/fd/{}", file.as_raw_fd());
        self.inherited.push(file);
        path
    }
}

/// Reads lines in a thread of its own, so that waiting for one can have a limit. The thread ends with the output.
fn read_lines(output: PipeReader) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut output = BufReader::new(output);
        let mut bytes = Vec::new();
        while let Ok(1..) = output.read_until(b'\n', &mut bytes) {
            if sender.send(printable(&bytes)).is_err() {
                break;
            }
            bytes.clear();
        }
    });
    receiver
}

/// Returns a line without its end and without what could play tricks on a terminal.
fn printable(line: &[u8]) -> String {
    String::from_utf8_lossy(line).chars().filter(|&c| c == '\t' || !c.is_control()).collect()
}

/// Returns the last `count` lines, indented, for a message of failure.
pub(crate) fn tail(lines: &[String], count: usize) -> String {
    let first = lines.len().saturating_sub(count);
    lines[first..].iter().map(|line| format!("    {line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine whose QEMU is a shell script.
    fn script(text: &str) -> Machine {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", text]);
        Machine { command, inherited: Vec::new() }
    }

    fn is_running(pid: &str) -> bool {
        std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
    }

    #[test]
    fn a_machine_that_ends_by_itself_tells_its_lines_and_status() {
        let mut seen = 0;
        let run = script("echo one; echo two >&2; printf three; exit 33");
        let run = run.run(Duration::from_secs(20), |_| seen += 1).unwrap();
        assert_eq!(run.lines, ["one", "two", "three"]);
        assert_eq!(seen, 3);
        assert!(matches!(run.end, End::Exited(status) if status.code() == Some(33)));
    }

    #[test]
    fn a_machine_past_its_time_is_ended_and_leaves_no_process() {
        let run = script("echo $$; exec sleep 30").run(Duration::from_millis(300), |_| ()).unwrap();
        assert!(matches!(run.end, End::TimedOut));
        assert!(!is_running(&run.lines[0]));
    }

    #[test]
    fn a_crash_ends_the_machine_at_once_and_keeps_what_follows() {
        let text = "echo $$; echo '(XEN) Hardware Dom0 crashed: x'; echo '(XEN) more'; exec sleep 30";
        let started = Instant::now();
        let run = script(text).run(Duration::from_secs(25), |_| ()).unwrap();
        assert!(matches!(run.end, End::Dead));
        assert!(started.elapsed() < Duration::from_secs(20));
        assert_eq!(run.lines[2], "(XEN) more");
        assert!(!is_running(&run.lines[0]));
    }

    #[test]
    fn an_inherited_file_is_read_under_its_number() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "from a file\n").unwrap();
        let mut machine = script("");
        let path = machine.inherit(file.reopen().unwrap());
        machine.command = Command::new("/bin/cat");
        machine.command.arg(path);
        assert_eq!(machine.run(Duration::from_secs(20), |_| ()).unwrap().lines, ["from a file"]);
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        assert_eq!(printable(b"a\x1b[2Jb\tc\xff\r\n"), "a[2Jb\tc\u{fffd}");
    }
}
