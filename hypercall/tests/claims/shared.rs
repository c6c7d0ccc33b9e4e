//! Views of shared memory: each way to move bytes moves those that it says, wherever they begin and end, and no others.

use std::panic::catch_unwind;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;

use hypercall::mem::Shared;

const WORDS: usize = 8;
const BYTES: usize = WORDS * size_of::<u64>();

/// Memory that begins at a word, whose bytes count from a number on.
struct Memory([AtomicU64; WORDS]);

impl Memory {
    fn new(first: u8) -> Self {
        let byte = |word: usize, at: usize| first + (word * size_of::<u64>() + at) as u8;
        Self(std::array::from_fn(|word| u64::from_ne_bytes(std::array::from_fn(|at| byte(word, at))).into()))
    }

    fn va(&self) -> NonNull<u8> {
        NonNull::from(&self.0).cast()
    }

    fn view(&self) -> Shared<'_> {
        // SAFETY: the words are there for as long as `self` is borrowed, and are atomics.
        unsafe { Shared::new(self.va(), BYTES) }
    }

    fn view_read_only(&self) -> Shared<'_> {
        // SAFETY: as above.
        unsafe { Shared::read_only(self.va(), BYTES) }
    }

    fn bytes(&self) -> Vec<u8> {
        self.0.iter().flat_map(|word| word.load(SeqCst).to_ne_bytes()).collect()
    }
}

/// What memory has whose bytes count from 0 on, but for those at `at`.
fn with(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut all = Memory::new(0).bytes();
    all[at..at + bytes.len()].copy_from_slice(bytes);
    all
}

/// Where bytes begin and how many they are, in all alignments of both ends.
fn places() -> impl Iterator<Item = (usize, usize)> {
    let step = if cfg!(miri) { 5 } else { 1 };
    (0..2 * size_of::<u64>()).step_by(step).flat_map(move |at| (0..=BYTES - at).step_by(step).map(move |len| (at, len)))
}

#[test]
fn bytes_are_read_and_written_wherever_they_begin_and_end() {
    for (at, len) in places() {
        let memory = Memory::new(0);
        let mut read = vec![0; len];
        memory.view().read(at, &mut read);
        assert_eq!(read, memory.bytes()[at..at + len], "{at}+{len}");
        let new: Vec<_> = (100..).take(len).collect();
        memory.view().write(at, &new);
        assert_eq!(memory.bytes(), with(at, &new), "{at}+{len}");
    }
}

#[test]
fn an_entry_is_written_wherever_it_begins() {
    for at in 0..=BYTES - 8 {
        let memory = Memory::new(0);
        let new = std::array::from_fn(|index| 100 + index as u8);
        memory.view().write_entry(at, new);
        assert_eq!(memory.bytes(), with(at, &new), "{at}");
    }
}

#[test]
fn views_are_copied_wherever_they_begin_and_end() {
    for (at, len) in places() {
        for from in (0..size_of::<u64>().min(BYTES - len + 1)).step_by(if cfg!(miri) { 7 } else { 1 }) {
            let (memory, source) = (Memory::new(0), Memory::new(100));
            memory.view().copy_from(at, source.view_read_only().slice(from, len));
            assert_eq!(memory.bytes(), with(at, &source.bytes()[from..from + len]), "{from}, {at}+{len}");
        }
    }
}

#[test]
fn what_is_cleared_is_cleared_to_its_end_and_not_before_its_beginning() {
    for (at, len) in places() {
        let memory = Memory::new(0);
        memory.view().slice(0, at + len).clear_from(at);
        assert_eq!(memory.bytes(), with(at, &vec![0; len]), "{at}+{len}");
    }
}

#[test]
fn nothing_is_moved_beyond_the_end_or_into_what_is_for_reading_only() {
    type Work = fn(Shared<'_>, usize);
    let works: [Work; 4] = [
        |view, at| view.write(at, &[1; 8]),
        |view, at| view.write_entry(at, [1; 8]),
        |view, at| view.copy_from(at, Memory::new(100).view().slice(0, 8)),
        |view, at| _ = view.word(at + 4),
    ];
    for (index, work) in works.into_iter().enumerate() {
        for (at, writable) in [(BYTES - 7, true), (BYTES, true), (usize::MAX - 9, true), (0, false)] {
            let memory = Memory::new(0);
            let view = if writable { memory.view() } else { memory.view_read_only() };
            let done = catch_unwind(|| work(view, at));
            assert!(done.is_err(), "{index} at {at}");
            assert_eq!(memory.bytes(), with(0, &[]), "{index} at {at}");
        }
    }
}
