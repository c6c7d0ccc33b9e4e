//! Processes that never outlive this one.

use std::io::{self, BufRead, BufReader};
use std::os::fd::RawFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};

/// Ends its process, whatever happens to the function that holds it.
#[derive(Debug)]
pub(crate) struct Guard(pub(crate) Child);

impl Drop for Guard {
    fn drop(&mut self) {
        // Both fail only for a process that has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Makes the process that `command` starts end when this one ends, even by a signal, and hands it `inherited`.
pub(crate) fn die_with_parent(command: &mut Command, inherited: Vec<RawFd>) {
    let parent = std::process::id();
    let prepare = move || {
        // SAFETY: prctl takes plain numbers here, and PR_SET_PDEATHSIG touches no memory of ours.
        if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // The parent may have ended before the request was made.
        if std::os::unix::process::parent_id() != parent {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        for &fd in &inherited {
            // SAFETY: fcntl with F_SETFD takes plain numbers; the files are open in this process.
            if unsafe { libc::fcntl(fd, libc::F_SETFD, 0) } != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: between fork and exec `prepare` makes system calls only: no allocation, no lock.
    unsafe { command.pre_exec(prepare) };
}

/// Calls `on_line` for each line of a command's output.
///
/// # Errors
/// The command can't be started or fails; the message ends with what it said.
pub(crate) fn stream(mut command: Command, mut on_line: impl FnMut(&str)) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let (output, input) = io::pipe()?;
    command.stdin(Stdio::null()).stdout(input.try_clone()?).stderr(input);
    die_with_parent(&mut command, Vec::new());
    let mut child = command.spawn().with_context(|| format!("{name} can't be started"))?;
    drop(command);
    let mut said = Vec::new();
    for line in BufReader::new(output).lines() {
        let line = line?;
        on_line(&line);
        said.push(line);
    }
    let complaints = said.iter().filter(|line| line.starts_with("E: ") || line.starts_with("Err:"));
    let complaints: Vec<&str> = complaints.map(String::as_str).collect();
    ensure!(child.wait()?.success(), "{name} failed\n{}", complaints.join("\n"));
    Ok(())
}
