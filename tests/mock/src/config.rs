//! What machines and domains are like.

use crate::memory::Backing;

/// How time passes, and who does the machine's own work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Virtual time. The machine works only in [`Machine::step`](crate::Machine::step) and while a domain waits, and what it does first is drawn
    /// from the seed. All domains are driven from one thread.
    Deterministic,
    /// Real time. A thread does the machine's work; each domain may have threads of its own.
    Threaded,
}

/// What a machine is like.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Seed of all that is drawn by lot: frame numbers, and the order of work in [`Mode::Deterministic`].
    pub seed: u64,
    /// How time passes.
    pub mode: Mode,
    /// What memory is made of.
    pub backing: Backing,
    /// Frames of the machine. They cost nothing until they are used.
    pub frames: u32,
    /// Whether all domains are auto-translated, as PVH guests are; else those that say so themselves.
    pub auto_translated: bool,
    /// What asking for the time costs in virtual time, so that no loop that only watches the clock is endless.
    pub tick_ns: u64,
}

impl Config {
    /// A deterministic machine. Under Miri its memory is plain.
    pub const fn deterministic(seed: u64) -> Self {
        let backing = if cfg!(miri) { Backing::Plain } else { Backing::Mapped };
        let frames = if cfg!(miri) { 1 << 12 } else { 1 << 16 };
        Self { seed, mode: Mode::Deterministic, backing, frames, auto_translated: false, tick_ns: 100 }
    }

    /// A threaded machine.
    pub const fn threaded() -> Self {
        Self { mode: Mode::Threaded, ..Self::deterministic(0) }
    }

    /// The same machine with memory from the heap.
    #[must_use]
    pub const fn plain(self) -> Self {
        Self { backing: Backing::Plain, ..self }
    }

    /// The same machine, whose domains are auto-translated.
    #[must_use]
    pub const fn auto_translated(self) -> Self {
        Self { auto_translated: true, ..self }
    }
}

/// What a domain may have.
#[derive(Clone, Copy, Debug)]
pub struct DomainConfig {
    /// Own pages.
    pub pages: usize,
    /// Pages of address space for foreign pages and the grant table.
    pub unbacked: usize,
    /// The largest number of a port.
    pub max_port: u32,
    /// Frames of the grant table, of 512 entries each.
    pub grant_frames: usize,
    /// Frames of Xen's list of what the domain maps, of 256 mappings each.
    pub maptrack_frames: usize,
    /// Virtual processors, at most 32. The first one runs; another is a thread of the test's, which dispatches the events of that vcpu.
    pub vcpus: u32,
    /// Whether the hypervisor translates its frame numbers, as for a PVH guest. The mock has no page tables either way; such a
    /// domain has frame numbers of its own, of unbacked pages too, and maps by them.
    pub auto_translated: bool,
}

impl Default for DomainConfig {
    /// As `xl` makes a domain that says nothing else.
    fn default() -> Self {
        let pages = if cfg!(miri) { 1 << 9 } else { 1 << 14 };
        Self {
            pages,
            unbacked: pages,
            max_port: 1023,
            grant_frames: 64,
            maptrack_frames: 1024,
            vcpus: 1,
            auto_translated: false,
        }
    }
}
