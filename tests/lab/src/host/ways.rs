//! The ways in which the guest uses a disk besides the plain one, in the suite "disk" of [`linux`](super::linux): what Linux's block back
//! end offers, used to the full, and what has to come of it.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use sha2::{Digest, Sha256};

use crate::host::linux::{hex, word};

/// Bytes of the disk. Its sum is taken many times in the tests.
pub(crate) const BYTES: usize = if cfg!(test) { 64 << 10 } else { 16 << 20 };
const SECTORS: usize = BYTES / 512;

/// A way, as the guest knows it: `WAYS` of its program `linux`.
struct Way {
    disk: &'static str,
    /// Number of the first word that is written.
    first: u64,
    /// Data goes by way of the guest's own pages.
    copied: bool,
    about: &'static str,
}

const WAYS: &[Way] = &[
    Way { disk: "xvdb", first: 16 << 20, copied: false, about: "each page mapped for its request" },
    Way { disk: "xvdc", first: 32 << 20, copied: true, about: "pages that stay mapped" },
    Way { disk: "xvdd", first: 48 << 20, copied: true, about: "a back end that isn't trusted" },
];

/// What Linux 6.1 offers for a file on a loop device.
const OFFERED: &[(&str, &str)] = &[
    ("feature-flush-cache", "1"),
    ("feature-barrier", "1"),
    ("feature-discard", "1"),
    ("feature-persistent", "1"),
    ("feature-max-indirect-segments", "256"),
    ("max-ring-page-order", "4"),
];

impl Way {
    /// What the disk holds after it was used so: the words, and a quarter that was discarded.
    fn after(&self) -> Vec<u8> {
        let words = self.first..self.first + BYTES as u64 / 8;
        let mut bytes: Vec<u8> = words.flat_map(|index| word(index).to_le_bytes()).collect();
        bytes[BYTES / 4..BYTES / 2].fill(0);
        bytes
    }

    /// # Errors
    /// The guest, or Linux in dom0, saw or did something else.
    fn judge(&self, lines: &[String], before: &str, after: &str) -> Result<String> {
        let Self { disk, about, .. } = self;
        let guest = |what: &str| find(lines, &format!("guest: xenlab: {disk} {what}"));
        let claims = [
            ("its sectors", guest("sectors="), SECTORS.to_string().as_str()),
            ("SHA-256 in the guest", guest("before "), before),
            ("SHA-256 in the guest after its write", guest("after "), after),
            ("SHA-256 in dom0", find(lines, &format!("xenlab-dom0: {disk} ")), after),
        ]
        .map(|(what, found, expected)| (what, found, expected.to_owned()));
        for (what, found, expected) in claims {
            let found = found.with_context(|| format!("{disk}: {what}: not told, {expected} was expected"))?;
            ensure!(found == expected, "{disk}: {what}: {found}, but {expected} was expected");
        }
        let told = |start: String| find(lines, &start).map(words).with_context(|| format!("no line {start:?}"));
        let offered = told(format!("xenlab-dom0: offered {disk} "))?;
        for (feature, value) in OFFERED {
            let found = offered.get(feature);
            ensure!(found == Some(value), "{disk}: Linux offers {feature}={found:?}: {value} was expected");
        }
        let used = told(format!("guest: xenlab: {disk} used "))?;
        let served = told(format!("xenlab-dom0: served {disk} "))?;
        let count = |from: &BTreeMap<_, &str>, what| -> Result<u64> {
            from.get(what).and_then(|count| count.parse().ok()).with_context(|| format!("{disk}: no number {what}"))
        };
        let queues = count(&offered, "multi-queue-max-queues")?.min(2);
        let by_linux = ["rd_req", "wr_req", "f_req", "ds_req"].map(|what| count(&served, what));
        let by_linux = by_linux.into_iter().sum::<Result<u64>>()?;
        let copied = count(&used, "copied")?;
        let claims = [
            ("queues", count(&used, "queues")?, queues),
            ("discards", count(&used, "discards")?, 1),
            ("flushes", count(&used, "flushes")?, 1),
            // Two times read, once written; Linux counts a barrier as a flush.
            ("rd_sect of Linux", count(&served, "rd_sect")?, 2 * SECTORS as u64),
            ("wr_sect of Linux", count(&served, "wr_sect")?, SECTORS as u64),
            ("ds_req of Linux", count(&served, "ds_req")?, 1),
            ("f_req of Linux", count(&served, "f_req")?, 2),
            ("requests, as Linux counts them", by_linux, count(&used, "requests")?),
            ("bytes copied", copied, if self.copied { 3 * BYTES as u64 } else { 0 }),
        ];
        for (what, found, expected) in claims {
            ensure!(found == expected, "{disk}, {about}: {what}: {found}, but {expected} was expected");
        }
        let (requests, indirect) = (count(&used, "requests")?, count(&used, "indirect")?);
        ensure!(indirect > 0, "{disk}, {about}: none of {requests} requests was indirect");
        Ok(format!(
            "{about}: {queues} queue(s), {requests} requests, {indirect} of them indirect, {copied} bytes copied"
        ))
    }
}

/// Judges what was told of all ways; returns a line for each.
///
/// # Errors
/// Any of it is missing, or not what was expected.
pub(crate) fn judge(lines: &[String]) -> Result<Vec<String>> {
    let mut before = hex(Sha256::new_with_prefix(vec![0; BYTES]));
    let mut done = Vec::new();
    for way in WAYS {
        let after = hex(Sha256::new_with_prefix(way.after()));
        done.push(way.judge(lines, &before, &after)?);
        before = after;
    }
    Ok(done)
}

/// Returns the rest of the first line that begins so.
fn find<'a>(lines: &'a [String], start: &str) -> Option<&'a str> {
    lines.iter().find_map(|line| line.strip_prefix(start)).map(str::trim_end)
}

/// Splits "NAME=VALUE NAME=VALUE".
fn words(line: &str) -> BTreeMap<&str, &str> {
    line.split_whitespace().filter_map(|word| word.split_once('=')).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// What a good run says of the ways.
    pub(crate) fn good() -> String {
        let mut before = hex(Sha256::new_with_prefix(vec![0; BYTES]));
        let mut text = String::new();
        for way @ Way { disk, .. } in WAYS {
            let after = hex(Sha256::new_with_prefix(way.after()));
            let copied = if way.copied { 3 * BYTES } else { 0 };
            let offered = OFFERED.iter().map(|(feature, value)| format!(" {feature}={value}")).collect::<String>();
            text += &format!(
                "guest: xenlab: {disk} sectors={SECTORS}\n\
                 guest: xenlab: {disk} before {before}\n\
                 guest: xenlab: {disk} after {after}\n\
                 guest: xenlab: {disk} used queues=2 requests=100 indirect=97 copied={copied} flushes=1 discards=1\n\
                 xenlab-dom0: offered {disk}{offered} multi-queue-max-queues=3\n\
                 xenlab-dom0: served {disk} rd_req=60 wr_req=37 f_req=2 ds_req=1 rd_sect={} wr_sect={SECTORS}\n\
                 guest: xenlab: detached {disk}\n\
                 xenlab-dom0: {disk} {after}\n",
                2 * SECTORS
            );
            before = after;
        }
        text
    }

    fn verdict(text: &str) -> Result<Vec<String>, String> {
        let lines: Vec<_> = text.lines().map(str::to_owned).collect();
        judge(&lines).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn a_good_run_passes_and_tells_its_counters() {
        let done = verdict(&good()).unwrap();
        let copied = "pages that stay mapped: 2 queue(s), 100 requests, 97 of them indirect, 196608 bytes copied";
        assert_eq!((done.len(), done[1].as_str()), (3, copied));
    }

    #[test]
    fn each_sum_and_each_counter_is_compared() {
        let good = good();
        let after = hex(Sha256::new_with_prefix(WAYS[1].after()));
        for (from, to, whose) in [
            ("xvdb sectors=128", "xvdb sectors=127", "xvdb: its sectors"),
            (&*format!("xvdd before {after}"), "xvdd before 1", "xvdd: SHA-256 in the guest:"),
            (&*format!("xvdc after {after}"), "xvdc after 1", "xvdc: SHA-256 in the guest after"),
            (&*format!("xenlab-dom0: xvdc {after}"), "xenlab-dom0: xvdc 1", "xvdc: SHA-256 in dom0"),
            ("used queues=2", "used queues=1", "queues: 1"),
            ("copied=0", "copied=4096", "bytes copied: 4096"),
            ("copied=196608", "copied=0", "bytes copied: 0"),
            ("indirect=97", "indirect=0", "none of 100 requests was indirect"),
            ("flushes=1", "flushes=0", "flushes: 0"),
            ("discards=1", "discards=0", "discards: 0"),
            ("rd_sect=256", "rd_sect=255", "rd_sect"),
            ("wr_sect=128", "wr_sect=127", "wr_sect"),
            ("wr_req=37", "wr_req=36", "requests, as Linux counts them: 99"),
            ("rd_req=60", "rd_req=x", "no number rd_req"),
            ("f_req=2 ds_req=1", "f_req=3 ds_req=0", "ds_req of Linux: 0"),
            ("rd_req=60 wr_req=37 f_req=2", "rd_req=61 wr_req=37 f_req=1", "f_req of Linux: 1"),
        ] {
            assert!(good.contains(from), "no {from:?}");
            let message = verdict(&good.replace(from, to)).unwrap_err();
            assert!(message.contains(whose), "{from}: {message}");
        }
        for (feature, value) in OFFERED {
            let message = verdict(&good.replace(&format!(" {feature}={value}"), "")).unwrap_err();
            assert!(message.contains(feature), "{message}");
        }
    }

    #[test]
    fn a_back_end_of_one_queue_is_used_by_one() {
        let one = good().replace("max-queues=3", "max-queues=1").replace("used queues=2", "used queues=1");
        assert!(verdict(&one).unwrap()[0].contains("1 queue(s)"));
    }
}
