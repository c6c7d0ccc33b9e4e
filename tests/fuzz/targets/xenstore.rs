//! xenstored, which says what it likes: right replies with any payload, replies to nothing, events, bytes without form, indices that
//! lie. No call panics or lasts for ever; what was given up is forgotten.
#![no_main]

use std::cell::{Cell, RefCell};
use std::ptr::NonNull;
use std::rc::Rc;

use fuzz::input::Input;
use fuzz::still::Still;
use hypercall::Port;
use hypercall::mem::Shared;
use libfuzzer_sys::fuzz_target;
use xenbus::ring::bytes::ByteRings;
use xenbus::store::{Store, Tx, XenStore};

/// The page of the two rings.
#[repr(C, align(4096))]
struct Page([u8; 4096]);

/// xenstored's end.
struct Server {
    rings: ByteRings<'static>,
    page: Shared<'static>,
    input: Vec<u8>,
    at: usize,
    /// Operation and number of the last request.
    asked: (u32, u32),
}

impl Server {
    /// Reads what was asked, and says something; `false` when it has no more to say.
    fn turn(&mut self) -> bool {
        self.listen();
        let mut input = Input(&self.input[self.at..]);
        if input.is_empty() {
            return false;
        }
        let kind = input.byte();
        let payload = |input: &mut Input<'_>| {
            let count = input.byte();
            input.bytes(count.into()).to_vec()
        };
        let said = match kind % 8 {
            0..=3 => message(self.asked.0, self.asked.1, &payload(&mut input)),
            4 => message(15, 0, &payload(&mut input)),
            5 => message(input.byte().into(), input.word(), &payload(&mut input)),
            6 => message(16, self.asked.1, &payload(&mut input)),
            _ => payload(&mut input),
        };
        if kind == 255 {
            // One of the indices, which is ours alone to write or not.
            let word = 2048 + usize::from(input.byte() % 4) * 4;
            self.page.word(word).store(input.word(), std::sync::atomic::Ordering::Relaxed);
        }
        self.at = self.input.len() - input.0.len();
        let _ = self.rings.tx.write(&said);
        true
    }

    fn listen(&mut self) {
        let mut heard = Vec::new();
        let mut bytes = [0; 1024];
        while let Ok(count @ 1..) = self.rings.rx.read(&mut bytes) {
            heard.extend_from_slice(&bytes[..count]);
        }
        let mut rest = heard.as_slice();
        while let Some((head, after)) = rest.split_first_chunk::<16>() {
            let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
            self.asked = (word(0), word(4));
            rest = after.get(word(12) as usize..).unwrap_or_default();
        }
    }
}

fn message(op: u32, id: u32, payload: &[u8]) -> Vec<u8> {
    let words = [op, id, 0, payload.len() as u32];
    words.into_iter().flat_map(u32::to_le_bytes).chain(payload.iter().copied()).collect()
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let calls = input.bytes(8);
    let memory = Box::into_raw(Box::new(Page([0; 4096])));
    let Some(va) = NonNull::new(memory.cast::<u8>()) else { return };
    {
        // SAFETY: freed below, when nobody has a view of it any more; seen by atomics alone.
        let page = unsafe { Shared::new(va, 4096) };
        let rings = ByteRings::xenstore_back(page);
        let server = Server { rings, page, input: input.0.to_vec(), at: 0, asked: (0, 0) };
        let server = Rc::new(RefCell::new(server));
        let turns = Cell::new(0);
        let still = Still::new(move || {
            turns.set(turns.get() + 1);
            // Each call has a deadline, and each turn without a word brings it nearer.
            assert!(turns.get() < 100_000, "it waits for ever");
            server.borrow_mut().turn()
        });
        let store = XenStore::new(still.clone(), still, page, Port(1));
        let mut watch = None;
        for call in calls {
            match call % 8 {
                0 => _ = store.read(Tx::NONE, "a/b"),
                1 => _ = store.directory(Tx::NONE, "a"),
                2 => _ = store.read_as::<u32>(Tx::NONE, "n"),
                3 => watch = store.watch("a").ok().or(watch),
                4 => _ = watch.take().map(|watch| store.unwatch(watch)),
                5 => _ = store.permissions(Tx::NONE, "a"),
                6 => _ = store.transaction(|tx| store.write_text(tx, "x", 1)),
                _ => _ = watch.map(|watch| store.fired(watch)),
            }
        }
    }
    // SAFETY: from `Box::into_raw`, and all views are gone.
    drop(unsafe { Box::from_raw(memory) });
});
