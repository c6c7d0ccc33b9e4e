//! A bound on what a peer can make us say.

/// Lines a second.
const LINES: u32 = 10;

const SECOND_NS: u64 = 1_000_000_000;

/// Bounds how often something is told that a peer can bring about as often as it likes: to ten times a second.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rate {
    since_ns: u64,
    told: u32,
}

impl Rate {
    /// Tells whether it may be told now; counts that it was.
    pub const fn allows(&mut self, now_ns: u64) -> bool {
        if now_ns.saturating_sub(self.since_ns) >= SECOND_NS {
            *self = Self { since_ns: now_ns, told: 0 };
        }
        let allowed = self.told < LINES;
        self.told += allowed as u32;
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg_attr(miri, ignore = "a million are too many for Miri, and nothing here is unsafe")]
    fn a_million_lines_in_five_seconds_are_fifty() {
        let mut rate = Rate::default();
        let told = (0..1_000_000u64).filter(|n| rate.allows(n * 5000)).count();
        assert_eq!(told, 50);
    }

    #[test]
    fn first_line_is_told_whatever_the_clock_says() {
        for now in [0, 1, SECOND_NS, u64::MAX] {
            assert!(Rate::default().allows(now));
        }
    }
}
