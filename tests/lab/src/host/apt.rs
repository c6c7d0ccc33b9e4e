//! apt-get with a package database of its own: it fetches Debian 12's packages on whatever Debian or Ubuntu the host
//! is, from the host's own mirror, without root and without touching the host's packages.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};

use crate::host::process::stream;

/// The keys of Debian's archive.
pub(crate) const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

const SUITE: &str = "bookworm";

/// A package database below one folder.
#[derive(Debug)]
pub(crate) struct Apt {
    folder: PathBuf,
}

/// What a request for packages comes to, with all that they depend on.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Packages {
    /// Names of files, as [`Apt::file`] takes them.
    pub(crate) files: BTreeSet<String>,
    /// The size of all files.
    pub(crate) bytes: u64,
}

/// Where Debian's packages and their security updates come from.
#[derive(Debug, PartialEq)]
struct Mirrors {
    main: String,
    security: String,
}

impl Apt {
    pub(crate) fn new(folder: &Path) -> Result<Self> {
        for part in ["state/lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(folder.join(part))?;
        }
        fs::write(folder.join("status"), "")?;
        fs::write(folder.join("sources.list"), Mirrors::of_host().sources())?;
        Ok(Self { folder: folder.to_owned() })
    }

    /// Reads the lists of packages.
    ///
    /// # Errors
    /// The mirror can't be reached.
    pub(crate) fn update(&self) -> Result<()> {
        let mut update = self.command(&["-o", "APT::Update::Error-Mode=any"]);
        update.arg("update");
        stream(update, |_| ())
    }

    /// Returns what the packages called `names` come to. To be asked before anything is fetched.
    ///
    /// # Errors
    /// There is no such package.
    pub(crate) fn resolve(&self, names: &[&str]) -> Result<Packages> {
        let mut packages = Packages::default();
        let mut install = self.command(&["--print-uris", "install", "-y"]);
        install.args(names);
        stream(install, |line| {
            if let Some((file, size)) = parse_uri_line(line) {
                packages.files.insert(file.to_owned());
                packages.bytes += size;
            }
        })?;
        ensure!(!packages.files.is_empty(), "apt-get names no package for {}", names.join(" "));
        Ok(packages)
    }

    /// Fetches packages with all that they depend on, and calls `on_file` for each.
    ///
    /// # Errors
    /// The mirror can't be reached, or the disk is full.
    pub(crate) fn fetch(&self, names: &[&str], mut on_file: impl FnMut()) -> Result<()> {
        let mut install = self.command(&["install", "-y", "--download-only"]);
        install.args(names);
        stream(install, |line| {
            if line.starts_with("Get:") {
                on_file();
            }
        })
    }

    /// The path of a fetched file.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.join("cache/archives").join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("apt-get");
        let at = |part: &str| self.folder.join(part).display().to_string();
        let options = [
            ("Dir::Etc::sourcelist", at("sources.list")),
            ("Dir::Etc::sourceparts", "/dev/null".to_owned()),
            ("Dir::Etc::preferences", "/dev/null".to_owned()),
            ("Dir::Etc::preferencesparts", "/dev/null".to_owned()),
            ("Dir::State", at("state")),
            ("Dir::State::status", at("status")),
            ("Dir::Cache", at("cache")),
            ("APT::Architecture", "amd64".to_owned()),
            ("APT::Architectures", "amd64".to_owned()),
            ("APT::Default-Release", String::new()),
            ("APT::Install-Recommends", "false".to_owned()),
            ("APT::Sandbox::User", String::new()),
            ("Debug::NoLocking", "true".to_owned()),
        ];
        for (name, value) in options {
            command.arg("-o").arg(format!("{name}={value}"));
        }
        command.args(arguments).env("LC_ALL", "C").env("DEBIAN_FRONTEND", "noninteractive");
        command
    }
}

impl Mirrors {
    /// Returns the mirrors that the host itself uses if it is a Debian, else Debian's own.
    fn of_host() -> Self {
        let mut texts: Vec<String> = fs::read_to_string("/etc/apt/sources.list").into_iter().collect();
        let parts = fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().flatten().map(|entry| entry.path());
        let mut parts: Vec<PathBuf> = parts
            .filter(|path| path.extension().is_some_and(|extension| extension == "list" || extension == "sources"))
            .collect();
        parts.sort();
        texts.extend(parts.iter().filter_map(|path| fs::read_to_string(path).ok()));
        let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
        let has = |line: &str| release.lines().any(|found| found == line);
        let codename = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
        match codename.filter(|_| has("ID=debian")) {
            Some(codename) => Self::in_sources(&texts, codename),
            None => Self::in_sources(&[], ""),
        }
    }

    /// Finds the first mirror of a Debian called `codename` in texts of either format that apt knows.
    fn in_sources(texts: &[String], codename: &str) -> Self {
        let pairs: Vec<(String, String)> = texts.iter().flat_map(|text| sources(text)).collect();
        let find = |suite: &str, default: &str| {
            let found = pairs.iter().find(|(uri, found)| found == suite && uri.starts_with("http"));
            found.map_or(default, |(uri, _)| uri).trim_end_matches('/').to_owned()
        };
        Self {
            main: find(codename, "http://deb.debian.org/debian"),
            security: find(&format!("{codename}-security"), "http://deb.debian.org/debian-security"),
        }
    }

    fn sources(&self) -> String {
        let Self { main, security } = self;
        format!(
            "deb [signed-by={KEYRING}] {main} {SUITE} main\n\
             deb [signed-by={KEYRING}] {main} {SUITE}-updates main\n\
             deb [signed-by={KEYRING}] {security} {SUITE}-security main\n"
        )
    }
}

/// Returns the pairs of address and suite in a text of apt's sources.
fn sources(text: &str) -> Vec<(String, String)> {
    let mut pairs = Vec::new();
    let mut uris: Vec<&str> = Vec::new();
    let mut suites: Vec<&str> = Vec::new();
    // An empty line ends a stanza; the last one need not have any.
    for line in text.lines().chain([""]) {
        if line.trim().is_empty() {
            for uri in uris.drain(..) {
                pairs.extend(suites.iter().map(|suite| (uri.to_owned(), (*suite).to_owned())));
            }
            suites.clear();
        } else if let Some(values) = line.strip_prefix("URIs:") {
            uris = values.split_whitespace().collect();
        } else if let Some(values) = line.strip_prefix("Suites:") {
            suites = values.split_whitespace().collect();
        } else if let Some(entry) = line.trim_start().strip_prefix("deb ") {
            let entry = entry.trim_start();
            let entry = if entry.starts_with('[') { entry.split_once(']').map_or("", |(_, rest)| rest) } else { entry };
            let mut words = entry.split_whitespace();
            if let (Some(uri), Some(suite)) = (words.next(), words.next()) {
                pairs.push((uri.to_owned(), suite.to_owned()));
            }
        }
    }
    pairs
}

/// Takes the name and the size out of a line `'URI' FILE SIZE HASH` of `apt-get --print-uris`.
fn parse_uri_line(line: &str) -> Option<(&str, u64)> {
    let mut words = line.strip_prefix('\'')?.split_whitespace();
    let (_uri, file, size) = (words.next()?, words.next()?, words.next()?);
    Some((file, size.parse().ok()?)).filter(|(file, _)| file.ends_with(".deb"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mirrors(text: &str) -> Mirrors {
        Mirrors::in_sources(&[text.to_owned()], "trixie")
    }

    fn expected(main: &str, security: &str) -> Mirrors {
        Mirrors { main: main.to_owned(), security: security.to_owned() }
    }

    #[test]
    fn the_hosts_mirror_is_found_in_stanzas() {
        let text = "Types: deb\n# comment\nURIs: http://near/debian/\nSuites: trixie trixie-updates\nComponents: main\n\n\
                    Types: deb\nURIs: https://near/security\nSuites: trixie-security\n";
        assert_eq!(mirrors(text), expected("http://near/debian", "https://near/security"));
    }

    #[test]
    fn the_hosts_mirror_is_found_in_one_line_entries() {
        let text = "#deb http://old/debian trixie main\n\
                    deb [arch=amd64 signed-by=/k] http://near/debian trixie main contrib\n\
                    deb http://other/debian trixie main\ndeb-src http://src/debian trixie-security main\n";
        assert_eq!(mirrors(text), expected("http://near/debian", "http://deb.debian.org/debian-security"));
    }

    #[test]
    fn archives_of_others_and_local_ones_are_no_mirror() {
        let text = "deb https://vendor/apt nodistro main\ndeb file:/media/cdrom trixie main\n";
        assert_eq!(mirrors(text), expected("http://deb.debian.org/debian", "http://deb.debian.org/debian-security"));
    }

    #[test]
    fn a_package_line_gives_its_file_and_size() {
        let line = "'http://m/debian/pool/l/liba_1%3a2_amd64.deb' liba_1%3a2_amd64.deb 22164 SHA256:00";
        assert_eq!(parse_uri_line(line), Some(("liba_1%3a2_amd64.deb", 22164)));
        assert_eq!(parse_uri_line("Reading package lists..."), None);
        assert_eq!(parse_uri_line("'http://m/x' x.deb many"), None);
    }
}
