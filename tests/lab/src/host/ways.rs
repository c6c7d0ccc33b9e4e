//! The ways in which the guest uses a disk besides the plain one, in the suite "disk" of [`linux`](super::linux): what Linux's block back
//! end offers, used to the full, and what has to come of it.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use sha2::{Digest, Sha256};

use suite::scenarios::noise;

use crate::host::linux::{hex, word};

/// Bytes of the disk. Its sum is taken many times in the tests.
pub(crate) const BYTES: usize = if cfg!(test) { 64 << 10 } else { 8 << 20 };
const SECTORS: usize = BYTES / 512;

/// What the last disk has more when it has grown.
pub(crate) fn more() -> Vec<u8> {
    noise(3, 1 << 20)
}

/// A way, as the guest knows it: `WAYS` of its program `linux`.
struct Way {
    disk: &'static str,
    /// Number of the first word that is written.
    first: u64,
    /// Data goes by way of the guest's own pages.
    copied: bool,
    /// The disk is only read.
    read_only: bool,
    /// Bytes of its sectors.
    unit: &'static str,
    /// It grows.
    grows: bool,
    about: &'static str,
}

const PLAIN: Way =
    Way { disk: "xvdb", first: 16 << 20, copied: false, read_only: false, unit: "512", grows: false, about: "" };

const WAYS: &[Way] = &[
    Way { about: "each page mapped for its request", ..PLAIN },
    Way { disk: "xvdc", first: 32 << 20, copied: true, about: "pages that stay mapped", ..PLAIN },
    Way { disk: "xvdd", first: 48 << 20, copied: true, about: "a back end that isn't trusted", ..PLAIN },
    Way { disk: "xvde", read_only: true, about: "a disk that is only read", ..PLAIN },
    Way { disk: "xvdf", first: 80 << 20, unit: "4096", grows: true, about: "sectors of 4 KiB", ..PLAIN },
];

/// What Linux 6.1 offers for a file on a loop device; beside it the discard, unless the disk is only read.
const OFFERED: &[(&str, &str)] = &[
    ("feature-flush-cache", "1"),
    ("feature-barrier", "1"),
    ("feature-persistent", "1"),
    ("feature-max-indirect-segments", "256"),
    ("max-ring-page-order", "4"),
];

impl Way {
    /// What the disk holds after it was used so, if it held these bytes before: the words, and a quarter that was discarded.
    fn after(&self, before: Vec<u8>) -> Vec<u8> {
        if self.read_only {
            return before;
        }
        let words = self.first..self.first + BYTES as u64 / 8;
        let mut bytes: Vec<u8> = words.flat_map(|index| word(index).to_le_bytes()).collect();
        bytes[BYTES / 4..BYTES / 2].fill(0);
        bytes
    }

    /// # Errors
    /// The guest, or Linux in dom0, saw or did something else.
    fn judge(&self, lines: &[String], before: &str, after: &str, left: &str) -> Result<String> {
        let Self { disk, about, .. } = self;
        let writes = u64::from(!self.read_only);
        let guest = |what: &str| find(lines, &format!("guest: xenlab: {disk} {what}"));
        let claims = [
            ("its sectors", guest("sectors="), SECTORS.to_string().as_str()),
            ("SHA-256 in the guest", guest("before "), before),
            ("SHA-256 in the guest after its write", guest("after "), after),
            ("SHA-256 in dom0", find(lines, &format!("xenlab-dom0: {disk} ")), left),
        ]
        .map(|(what, found, expected)| (what, found, expected.to_owned()));
        for (what, found, expected) in claims {
            let found = found.with_context(|| format!("{disk}: {what}: not told, {expected} was expected"))?;
            ensure!(found == expected, "{disk}: {what}: {found}, but {expected} was expected");
        }
        let told = |start: String| find(lines, &start).map(words).with_context(|| format!("no line {start:?}"));
        let offered = told(format!("xenlab-dom0: offered {disk} "))?;
        let discard = if self.read_only { "0" } else { "1" };
        for (feature, value) in OFFERED.iter().chain(&[("feature-discard", discard), ("sector-size", self.unit)]) {
            let found = offered.get(feature).unwrap_or(&"0");
            ensure!(found == value, "{disk}: Linux offers {feature}={found}: {value} was expected");
        }
        if self.read_only {
            ensure!(guest("refused a write").is_some(), "{disk}: the guest has not told that it refused a write");
        }
        if self.grows {
            judge_growth(lines, disk)?;
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
            ("discards", count(&used, "discards")?, writes),
            ("flushes", count(&used, "flushes")?, writes),
            ("barriers", count(&used, "barriers")?, writes),
            // Two times read, once written; Linux counts a barrier as a flush.
            ("rd_sect of Linux", count(&served, "rd_sect")?, 2 * SECTORS as u64),
            ("wr_sect of Linux", count(&served, "wr_sect")?, writes * SECTORS as u64),
            ("ds_req of Linux", count(&served, "ds_req")?, writes),
            ("f_req of Linux", count(&served, "f_req")?, 2 * writes),
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

/// Judges what was told of a disk that has grown while the guest had it, and that was taken away while it was busy.
fn judge_growth(lines: &[String], disk: &str) -> Result<()> {
    let guest = |what: &str| {
        let told = find(lines, &format!("guest: xenlab: {disk} {what}"));
        told.with_context(|| format!("{disk}: the guest has not told how it {what}"))
    };
    let wanted = format!("{} {}", SECTORS + more().len() / 512, hex(Sha256::new_with_prefix(more())));
    let grown = guest("grown ")?;
    ensure!(grown == wanted, "{disk}: grown to {grown}, but {wanted} was expected");
    let goes = guest("goes, ")?;
    let in_flight = goes.strip_suffix(" in flight").and_then(|goes| goes.rsplit_once(' ')?.1.parse::<u32>().ok());
    ensure!(in_flight.is_some_and(|count| count > 0), "{disk} was not busy when it went: {goes}");
    guest("ended all").map(drop)
}

/// Judges what was told of all ways; returns a line for each.
///
/// # Errors
/// Any of it is missing, or not what was expected.
pub(crate) fn judge(lines: &[String]) -> Result<Vec<String>> {
    each(|way, [before, after, left]| way.judge(lines, before, after, left))
}

/// Does something for each way, with the SHA-256 of the disk before it, after it, and when the disk is gone.
fn each<T>(mut visit: impl FnMut(&Way, [&str; 3]) -> Result<T>) -> Result<Vec<T>> {
    let mut bytes = vec![0; BYTES];
    let mut before = hex(Sha256::new_with_prefix(&bytes));
    let mut done = Vec::new();
    for way in WAYS {
        bytes = way.after(bytes);
        let after = Sha256::new_with_prefix(&bytes);
        let left = if way.grows { after.clone().chain_update(more()) } else { after.clone() };
        let after = hex(after);
        done.push(visit(way, [&before, &after, &hex(left)])?);
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
        let told = each(|way, [before, after, left]| {
            let Way { disk, unit, .. } = way;
            let mut text = String::new();
            let writes = usize::from(!way.read_only);
            let copied = if way.copied { 3 * BYTES } else { 0 };
            let offered = OFFERED.iter().map(|(feature, value)| format!(" {feature}={value}")).collect::<String>();
            let discard = if way.read_only { "" } else { " feature-discard=1" };
            text += &format!(
                "guest: xenlab: {disk} sectors={SECTORS}\n\
                 guest: xenlab: {disk} before {before}\n\
                 guest: xenlab: {disk} after {after}\n\
                 guest: xenlab: {disk} used queues=2 requests=100 indirect=97 copied={copied} \
                 flushes={writes} barriers={writes} discards={writes} reconnections=0\n\
                 xenlab-dom0: offered {disk}{offered}{discard} sector-size={unit} multi-queue-max-queues=3\n\
                 xenlab-dom0: served {disk} rd_req={} wr_req=37 f_req={} ds_req={writes} rd_sect={} wr_sect={}\n",
                63 - 3 * writes,
                2 * writes,
                2 * SECTORS,
                writes * SECTORS
            );
            if way.read_only {
                text += "guest: xenlab: xvde refused a write\n";
            }
            if way.grows {
                let sum = hex(Sha256::new_with_prefix(more()));
                text += &format!(
                    "guest: xenlab: xvdf grown 2176 {sum}\n\
                     guest: xenlab: xvdf is busy\n\
                     guest: xenlab: xvdf goes, 123 reads begun, 16 in flight\n\
                     guest: xenlab: xvdf ended all\n"
                );
            }
            text += &format!("guest: xenlab: detached {disk}\nxenlab-dom0: {disk} {left}\n");
            Ok(text)
        });
        told.unwrap().concat()
    }

    fn verdict(text: &str) -> Result<Vec<String>, String> {
        let lines: Vec<_> = text.lines().map(str::to_owned).collect();
        judge(&lines).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn a_good_run_passes_and_tells_its_counters() {
        let done = verdict(&good()).unwrap();
        let copied = "pages that stay mapped: 2 queue(s), 100 requests, 97 of them indirect, 196608 bytes copied";
        assert_eq!((done.len(), done[1].as_str()), (5, copied));
    }

    #[test]
    fn each_sum_and_each_counter_is_compared() {
        let good = good();
        let after = hex(Sha256::new_with_prefix(WAYS[1].after(Vec::new())));
        for (from, to, whose) in [
            ("xvdb sectors=128", "xvdb sectors=127", "xvdb: its sectors"),
            (&*format!("xvdd before {after}"), "xvdd before 1", "xvdd: SHA-256 in the guest:"),
            (&*format!("xvdc after {after}"), "xvdc after 1", "xvdc: SHA-256 in the guest after"),
            (&*format!("xenlab-dom0: xvdc {after}"), "xenlab-dom0: xvdc 1", "xvdc: SHA-256 in dom0"),
            ("used queues=2", "used queues=1", "queues: 1"),
            ("barriers=1", "barriers=0", "barriers: 0"),
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
            ("xvde refused", "xvde took", "xvde: the guest has not told that it refused"),
            ("sector-size=4096", "sector-size=512", "xvdf: Linux offers sector-size=512"),
            ("grown 2176", "grown 2175", "xvdf: grown to 2175"),
            ("16 in flight", "0 in flight", "xvdf was not busy"),
            ("xvdf ended all", "xvdf ended", "xvdf: the guest has not told how it ended all"),
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
