//! What Xen's serial console tells about domains that crash.

/// Lines before the news of a crash in which its reason is looked for.
const REASON_LINES: usize = 4;
/// Lines of a guest's stack that are shown; each holds four words.
const STACK_LINES: usize = 4;

/// Tells whether this line of the serial console is the last that the machine will say: Xen panicked, or dom0 ended in
/// another way than by switching the machine off.
pub(crate) fn machine_is_dead(line: &str) -> bool {
    ["Hardware Dom0 crashed", "Hardware Dom0 halted", "Manual reset required", "Reboot in five seconds"]
        .iter()
        .any(|end| line.starts_with("(XEN) ") && line.contains(end))
}

/// Returns why the first domain that crashed did so, with its registers and the top of its stack, or Xen's own panic.
pub(crate) fn report(lines: &[String]) -> Option<String> {
    let xen: Vec<&str> = lines.iter().filter_map(|line| line.strip_prefix("(XEN) ")).collect();
    let at = xen.iter().position(|line| {
        line.starts_with("Panic on CPU") || line.starts_with("Domain ") && line.contains(" crashed on cpu#")
    })?;
    let mut shown: Vec<&str> =
        xen[at.saturating_sub(REASON_LINES)..at].iter().copied().filter(|line| says_why(line)).collect();
    let mut stack = None;
    for line in &xen[at..] {
        if line.starts_with("****") || line.starts_with("Hardware Dom0") || line.starts_with("mtrr") {
            break;
        }
        shown.push(line);
        match &mut stack {
            None if line.starts_with("Guest stack trace") => stack = Some(0),
            None => {}
            Some(seen) => *seen += 1,
        }
        if stack == Some(STACK_LINES) {
            break;
        }
    }
    Some(shown.join("\n"))
}

/// Tells whether a line that stands before "crashed" belongs to the crash, not to the boot.
fn says_why(line: &str) -> bool {
    line.starts_with("domain_crash")
        || line.starts_with("ERROR")
        || line.contains("Unhandled")
        || line.contains("fault")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(str::to_owned).collect()
    }

    const CRASH: &str = "\
(XEN) Freed 656kB init memory
hello
(XEN) d1v0 Unhandled: vec 6, #UD[ffffffff]
(XEN) domain_crash_sync called from entry.S: fault at ffff82d040204b78
(XEN) Domain 1 (vcpu#0) crashed on cpu#1:
(XEN) RIP:    e033:[<ffffffff8010001d>]
guest: still talking
(XEN) rax: ffffffffffffffff   rbx: 00000000deadbeef   rcx: ffffffff80100018
(XEN) Guest stack trace from rsp=ffffffff8012bfc8:
(XEN)    0000000000000001 0000000000000000 0000000000000000 0000000000000000
(XEN)    0000000000000002 0000000000000000 0000000000000000 0000000000000000
(XEN)    0000000000000003 0000000000000000 0000000000000000 0000000000000000
(XEN)    0000000000000004 0000000000000000 0000000000000000 0000000000000000
(XEN)    0000000000000005 0000000000000000 0000000000000000 0000000000000000
";

    #[test]
    fn a_crash_is_told_with_its_reason_registers_and_the_top_of_the_stack() {
        let report = report(&lines(CRASH)).unwrap();
        assert!(report.starts_with("d1v0 Unhandled: vec 6, #UD"), "{report}");
        assert!(report.contains("RIP:    e033:[<ffffffff8010001d>]"), "{report}");
        assert!(report.contains("rbx: 00000000deadbeef"), "{report}");
        assert!(report.contains("0000000000000004") && !report.contains("0000000000000005"), "{report}");
        assert!(!report.contains("Freed") && !report.contains("talking"), "{report}");
    }

    #[test]
    fn a_panic_of_xen_is_told_with_its_words() {
        let text = "(XEN) ERROR: bad image\n(XEN) \n(XEN) ****\n(XEN) Panic on CPU 0:\n(XEN) Could not construct domain 0\n\
                    (XEN) ****\n(XEN) \n";
        assert_eq!(report(&lines(text)).unwrap(), "ERROR: bad image\nPanic on CPU 0:\nCould not construct domain 0");
    }

    #[test]
    fn a_run_without_a_crash_has_no_report() {
        assert_eq!(report(&lines("(XEN) Freed 656kB init memory\nDomain 1 (vcpu#0) crashed on cpu#1:\n")), None);
    }

    #[test]
    fn only_xens_own_words_end_the_machine() {
        assert!(machine_is_dead("(XEN) Hardware Dom0 crashed: 'noreboot' set - not rebooting."));
        assert!(machine_is_dead("(XEN) Manual reset required ('noreboot' specified)"));
        assert!(!machine_is_dead("Hardware Dom0 crashed"));
        assert!(!machine_is_dead("(XEN) Domain 1 (vcpu#0) crashed on cpu#1:"));
    }
}
