//! What a program tells, and the comparison.

use std::collections::BTreeMap;

/// What a program tells, by name; see [`generate`](crate::generate).
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Facts(BTreeMap<String, String>);

impl Facts {
    /// Notes a number.
    pub fn integer(&mut self, name: &str, value: i128) {
        self.0.insert(name.into(), value.to_string());
    }

    /// Notes a text.
    pub fn text(&mut self, name: &str, text: &str) {
        let bytes: Vec<String> = text.bytes().map(|b| b.to_string()).collect();
        self.0.insert(name.into(), bytes.join(" "));
    }

    /// Notes the lines `name=value` that the C program printed.
    pub fn lines(&mut self, output: &str) {
        for line in output.lines() {
            let (name, value) = line.split_once('=').unwrap_or((line, ""));
            self.0.insert(name.into(), value.trim_end().into());
        }
    }

    /// Forgets the facts of other paths than those for which `keep` says so.
    pub fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        self.0.retain(|name, _| keep(name));
    }

    /// Returns how many facts there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Returns what differs, one line each.
///
/// Of alignments, Rust's may be the larger: a 64-bit atomic is aligned to 8 bytes in 32-bit Rust, to 4 in C. Offsets and sizes
/// around it, which must be equal, tell if that does harm.
pub fn differences(rust: &Facts, c: &Facts) -> Vec<String> {
    let mut differences = Vec::new();
    for (name, value) in &rust.0 {
        let Some(expected) = c.0.get(name) else {
            differences.push(format!("{name}: {value} in Rust, not told by C"));
            continue;
        };
        let same = if name.ends_with(" align") { at_least(value, expected) } else { value == expected };
        if !same {
            differences.push(format!("{name}: {value} in Rust, {expected} in C"));
        }
    }
    for name in c.0.keys().filter(|name| !rust.0.contains_key(*name)) {
        differences.push(format!("{name}: not told by Rust"));
    }
    differences
}

fn at_least(value: &str, bound: &str) -> bool {
    matches!((value.parse::<u64>(), bound.parse::<u64>()), (Ok(value), Ok(bound)) if value >= bound)
}

/// Returns the size of the field that `field` points to.
pub fn field_size<T, F>(_field: fn(&T) -> *const F) -> usize {
    size_of::<F>()
}
