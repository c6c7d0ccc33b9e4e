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

/// Makes the process that `command` starts end when this one ends, even by a signal, and hands it `inherited`. For Linux
/// the parent is the thread that starts it, so let that be one which stays.
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

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::thread;

    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_process_ends_with_the_thread_that_started_it() {
        let start = || {
            let mut sleep = shell("exec sleep 30");
            die_with_parent(&mut sleep, Vec::new());
            sleep.spawn().unwrap()
        };
        let mut child = thread::spawn(start).join().unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
    }

    #[test]
    fn a_dropped_guard_leaves_no_process() {
        let child = shell("exec sleep 30").spawn().unwrap();
        let pid = child.id();
        drop(Guard(child));
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    }

    #[test]
    fn a_failed_command_is_told_with_its_complaints_only() {
        let mut lines = 0;
        let error = stream(shell("echo Get:1; echo 'E: no room' >&2; exit 100"), |_| lines += 1).unwrap_err();
        assert_eq!(error.to_string(), "/bin/sh failed\nE: no room");
        assert_eq!(lines, 2);
    }
}
