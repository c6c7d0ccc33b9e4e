//! What the client makes of replies, events and rings that it can't rely on: xenstored's end is played by hand.

extern crate std;

use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::boxed::Box;
use std::fmt::Arguments;
use std::string::ToString;
use std::vec;

use hypercall::event::{EventError, Events, Polled};
use hypercall::{DomId, Gfn, Hypervisor, Level, Nr, Region};
use xen_sys::io::xs_wire::{XENSTORE_RING_SIZE, XenstoreDomainInterface};

use super::*;

/// A page that lives until the bed is gone.
struct Page(NonNull<[u64; 512]>);

impl Page {
    fn new() -> Self {
        Self(NonNull::from(Box::leak(Box::new([0; 512]))))
    }

    fn view(&self) -> Shared<'static> {
        // SAFETY: freed when the page is dropped, and each test drops it last. Nobody else has it.
        unsafe { Shared::new(self.0.cast(), 4096) }
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: from `Box::leak`, and not freed before.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

/// A platform and event channels on which nothing ever happens, except that waiting lets time pass.
#[derive(Clone, Default)]
struct Still(Arc<StillInner>);

#[derive(Default)]
struct StillInner {
    now: AtomicU64,
    notified: AtomicUsize,
    pending: AtomicBool,
}

// SAFETY: there is no hypervisor, and it does nothing.
unsafe impl Hypervisor for Still {
    unsafe fn hypercall(&self, _: Nr, _: [usize; 5]) -> isize {
        -38
    }
}

// SAFETY: it never gives a page.
unsafe impl Platform for Still {
    fn alloc(&self, _: Region, _: usize) -> Option<NonNull<u8>> {
        None
    }

    unsafe fn free(&self, _: Region, _: NonNull<u8>, _: usize) {}

    fn gfn_of(&self, _: NonNull<u8>) -> Gfn {
        Gfn(0)
    }

    fn now_ns(&self) -> u64 {
        self.0.now.load(Relaxed)
    }

    fn wait(&self, _: &[Port], deadline_ns: u64) {
        if !self.0.pending.load(SeqCst) {
            self.0.now.fetch_max(deadline_ns, SeqCst);
        }
    }

    fn log(&self, _: Level, _: Arguments<'_>) {}
}

impl Events for Still {
    fn alloc_unbound(&self, _: DomId) -> Result<Port, EventError> {
        Ok(Port(1))
    }

    fn bind_interdomain(&self, _: DomId, port: Port) -> Result<Port, EventError> {
        Ok(port)
    }

    fn notify(&self, _: Port) {
        self.0.notified.fetch_add(1, SeqCst);
    }

    fn unmask(&self, _: Port) {}

    fn close(&self, _: Port) {}
}

impl Polled for Still {
    fn take(&self, _: Port) -> bool {
        self.0.pending.swap(false, SeqCst)
    }

    fn raise(&self, _: Port) {
        self.0.pending.store(true, SeqCst);
    }
}

fn message(op: Op, id: u32, payload: &[u8]) -> Vec<u8> {
    let words = [op.0, id, 0, payload.len() as u32];
    words.into_iter().flat_map(u32::to_le_bytes).chain(payload.iter().copied()).collect()
}

fn read_request<'a>() -> Request<'a> {
    Request { op: Op::READ, tx: Tx::NONE, parts: &[b"a\0"] }
}

#[test]
fn replies_find_their_requests_in_any_order_and_unknown_ones_are_dropped() {
    let page = Page::new();
    let watches = Watches::new();
    let mut link = Link::new(page.view());
    let mut server = ByteRings::xenstore_back(page.view());
    let ids: Vec<_> = (0..3).map(|_| link.submit(&read_request()).unwrap().unwrap()).collect();
    for (id, text) in [(ids[2], "two"), (ids[0], "zero")] {
        server.tx.write(&message(Op::READ, id.0, text.as_bytes())).unwrap();
    }
    server.tx.write(&message(Op::READ, 4711, b"nobody's")).unwrap();
    server.tx.write(&message(Op::READ, ids[0].0, b"again")).unwrap();
    server.tx.write(&message(Op::WRITE, ids[1].0, b"OK\0")).unwrap();
    link.exchange(&watches);
    assert_eq!(link.take_reply(ids[0]), Some(Ok(b"zero".to_vec())));
    assert_eq!(link.take_reply(ids[0]), None);
    assert_eq!(link.take_reply(ids[1]), Some(Err(Cause::Malformed)));
    assert_eq!(link.take_reply(ids[2]), Some(Ok(b"two".to_vec())));
    assert_eq!((link.stats.replies, link.stats.unknown_replies), (3, 2));
    assert!(link.pending.is_empty());
}

#[test]
fn events_are_one_flag_a_watch_and_those_of_nobody_are_counted() {
    let page = Page::new();
    let watches = Watches::new();
    let mut link = Link::new(page.view());
    let mut server = ByteRings::xenstore_back(page.view());
    let watch = watches.add().unwrap();
    let token = watch.0.to_string();
    for payload in ["a\0TOKEN\0", "b\0TOKEN\0", "a\x007\0", "a\0TOKEN", ""] {
        let payload = payload.replace("TOKEN", &token);
        server.tx.write(&message(Op::WATCH_EVENT, 0, payload.as_bytes())).unwrap();
    }
    link.exchange(&watches);
    assert!(watches.take(watch));
    assert!(!watches.take(watch));
    assert_eq!((link.stats.events, link.stats.unknown_events, link.stats.malformed), (2, 1, 2));
}

#[test]
fn requests_are_bounded_and_streamed_through_the_ring() {
    let page = Page::new();
    let watches = Watches::new();
    let mut link = Link::new(page.view());
    let mut server = ByteRings::xenstore_back(page.view());
    let value = vec![7; 4096];
    let request = Request { op: Op::WRITE, tx: Tx::NONE, parts: &[&value] };
    for _ in 0..REQUESTS {
        assert!(link.submit(&request).unwrap().is_some());
    }
    assert_eq!(link.submit(&request), Ok(None));
    let (mut got, mut buffer) = (0, [0; 300]);
    loop {
        link.exchange(&watches);
        match server.rx.read(&mut buffer).unwrap() {
            0 => break,
            count => got += count,
        }
    }
    assert_eq!(got, REQUESTS * (16 + 4096));
    assert_eq!(link.outgoing.capacity(), Link::new(page.view()).outgoing.capacity());
}

#[test]
fn requests_that_were_given_up_make_no_queue_without_bound() {
    let page = Page::new();
    let mut link = Link::new(page.view());
    let value = [7; 4096];
    let request = Request { op: Op::WRITE, tx: Tx::NONE, parts: &[&value] };
    for _ in 0..100 {
        if let Some(id) = link.submit(&request).unwrap() {
            link.give_up(id);
        }
    }
    assert!(link.outgoing.len() <= OUTGOING);
    assert!(link.pending.is_empty());
}

#[test]
fn lying_indices_put_the_store_out_of_use_once_and_for_all() {
    let prod = core::mem::offset_of!(xen_sys::io::xs_wire::XenstoreDomainInterface, rsp_prod);
    let cons = core::mem::offset_of!(xen_sys::io::xs_wire::XenstoreDomainInterface, req_cons);
    for (word, lie) in [(prod, 1025), (prod, 1 << 31), (prod, u32::MAX), (cons, 1), (cons, 1 << 31), (cons, 5000)] {
        let page = Page::new();
        let still = Still::default();
        let store = XenStore::new(still.clone(), still, page.view(), Port(1));
        page.view().word(word).store(lie, Relaxed);
        assert_eq!(store.read(Tx::NONE, "a").unwrap_err().cause, Cause::Broken, "{word} {lie}");
        page.view().word(word).store(0, Relaxed);
        store.process();
        assert_eq!(store.read(Tx::NONE, "a").unwrap_err().cause, Cause::Broken);
        assert_eq!(store.watch("a").unwrap_err().cause, Cause::Broken);
    }
}

#[test]
fn oversize_reply_puts_the_store_out_of_use() {
    for len in [4097u32, 1 << 31, u32::MAX] {
        let page = Page::new();
        let still = Still::default();
        let store = XenStore::new(still.clone(), still, page.view(), Port(1));
        let mut reply = message(Op::READ, 1, b"");
        reply[12..].copy_from_slice(&len.to_le_bytes());
        ByteRings::xenstore_back(page.view()).tx.write(&reply).unwrap();
        assert_eq!(store.read(Tx::NONE, "a").unwrap_err().cause, Cause::Broken);
    }
}

#[test]
fn late_reply_is_dropped_and_the_next_request_gets_its_own() {
    let page = Page::new();
    let still = Still::default();
    let store = XenStore::new(still.clone(), still.clone(), page.view(), Port(1));
    let mut server = ByteRings::xenstore_back(page.view());
    store.set_timeout_ns(70_000_000);
    assert_eq!(store.read(Tx::NONE, "a").unwrap_err().cause, Cause::TimedOut(70_000_000));
    assert_eq!(still.now_ns(), 70_000_000);
    server.tx.write(&message(Op::READ, 1, b"late")).unwrap();
    server.tx.write(&message(Op::READ, 2, b"in time")).unwrap();
    // The ring is looked at before the second request is numbered, so its reply is nobody's yet.
    assert_eq!(store.read(Tx::NONE, "a").unwrap_err().cause, Cause::TimedOut(70_000_000));
    assert_eq!(store.stats().unknown_replies, 2);
    assert_eq!(store.stats().timeouts, 2);
    store.set_timeout_ns(u64::MAX);
    let answer = std::thread::scope(|scope| {
        scope.spawn(|| {
            let id = 3;
            server.tx.write(&message(Op::READ, 9, b"unknown")).unwrap();
            let mut request = [0; 64];
            let mut got = 0;
            while got < 3 * 18 {
                got += server.rx.read(&mut request).unwrap();
                std::thread::yield_now();
            }
            server.tx.write(&message(Op::READ, id, b"in time")).unwrap();
        });
        store.read(Tx::NONE, "a")
    });
    assert_eq!(answer.unwrap(), b"in time");
}

#[test]
fn handler_that_meets_the_lock_returns_at_once_and_its_look_is_made_up_for_and_told_on() {
    let page = Page::new();
    let still = Still::default();
    let store = XenStore::new(still.clone(), still.clone(), page.view(), Port(1));
    let watch = store.0.watches.add().unwrap();
    let event = message(Op::WATCH_EVENT, 0, std::format!("a\0{}\0", watch.0).as_bytes());
    store.with(|_link| {
        ByteRings::xenstore_back(page.view()).tx.write(&event).unwrap();
        store.process();
        assert!(!store.fired(watch));
    });
    // Whoever the handler has woken saw nothing, so the event comes once more.
    assert!(still.take(Port(1)));
    assert!(store.fired(watch));
}

#[test]
fn watch_that_fires_while_somebody_waits_for_an_answer_is_passed_on_to_the_dispatcher() {
    let page = Page::new();
    let still = Still::default();
    let store = XenStore::new(still.clone(), still.clone(), page.view(), Port(1));
    let mut server = ByteRings::xenstore_back(page.view());
    store.set_timeout_ns(1);
    for fired in [true, false] {
        let watch = store.0.watches.add().unwrap();
        let token = if fired { watch.0 } else { 1 };
        server.tx.write(&message(Op::WATCH_EVENT, 0, std::format!("a\0{token}\0").as_bytes())).unwrap();
        still.raise(Port(1));
        assert!(store.read(Tx::NONE, "a").is_err());
        // The next call takes what this one has passed on, and passes it on again.
        assert!(store.read(Tx::NONE, "a").is_err());
        assert_eq!(store.fired(watch), fired);
        assert_eq!(still.take(Port(1)), fired);
        store.process();
    }
}

#[test]
fn path_with_a_nul_never_reaches_the_wire() {
    let page = Page::new();
    let still = Still::default();
    let store = XenStore::new(still.clone(), still.clone(), page.view(), Port(1));
    assert_eq!(store.write(Tx::NONE, "a\0b", b"v").unwrap_err().cause, Cause::BadValue("a\0b".into()));
    assert_eq!(store.write(Tx::NONE, "a", &[0; 4095]).unwrap_err().cause, Cause::TooLong(4097));
    assert_eq!(store.stats().requests, 0);
}

#[test]
fn nothing_is_under_way_only_when_all_is_answered_and_read() {
    let page = Page::new();
    let watches = Watches::new();
    let mut link = Link::new(page.view());
    let mut server = ByteRings::xenstore_back(page.view());
    assert!(link.is_calm());
    let id = link.submit(&read_request()).unwrap().unwrap();
    assert!(!link.is_calm(), "not sent");
    link.exchange(&watches);
    assert!(!link.is_calm(), "not answered");
    link.give_up(id);
    assert!(!link.is_calm(), "not read by xenstored");
    server.rx.read(&mut [0; 100]).unwrap();
    assert!(link.is_calm());
    let event = message(Op::WATCH_EVENT, 0, b"a\x007\0");
    server.tx.write(&event[..7]).unwrap();
    link.exchange(&watches);
    assert!(!link.is_calm(), "half an event");
    server.tx.write(&event[7..]).unwrap();
    link.exchange(&watches);
    assert!(link.is_calm());
}

#[test]
fn what_is_begun_outside_of_transactions_waits_when_calm_is_wanted() {
    let page = Page::new();
    let mut link = Link::new(page.view());
    link.calm.wanted = true;
    assert_eq!(link.submit(&read_request()), Ok(None));
    assert!(link.submit(&Request { tx: Tx(9), ..read_request() }).unwrap().is_some());
    link.calm.wanted = false;
    assert!(link.submit(&read_request()).unwrap().is_some());
}

#[test]
fn other_xenstored_is_not_taken_at_the_word_of_the_last() {
    let page = Page::new();
    let watches = Watches::new();
    let watch = watches.add().unwrap();
    let mut link = Link::new(page.view());
    let ids: Vec<_> = (0..2).map(|_| link.submit(&read_request()).unwrap().unwrap()).collect();
    link.exchange(&watches);
    let mut server = ByteRings::xenstore_back(page.view());
    server.rx.read(&mut [0; 100]).unwrap();
    server.tx.write(&message(Op::READ, ids[1].0, b"answered")).unwrap();
    let event = message(Op::WATCH_EVENT, 0, b"a\x007\0");
    server.tx.write(&event[..18]).unwrap();
    link.exchange(&watches);
    // What has come since the last look is in the page that is saved.
    server.tx.write(&event[18..]).unwrap();
    let unsent = link.submit(&read_request()).unwrap().unwrap();
    link.calm = Calm { wanted: true, transactions: 3 };

    link.begin_again();
    assert_eq!(link.take_reply(ids[1]), Some(Ok(b"answered".to_vec())));
    for id in [ids[0], unsent] {
        assert_eq!(link.take_reply(id), Some(Err(Cause::Refused(Errno::Again))));
    }
    let mut server = ByteRings::xenstore_back(page.view());
    assert_eq!(server.rx.available(), Ok(0));
    let id = link.submit(&read_request()).unwrap().unwrap();
    link.exchange(&watches);
    assert_eq!(server.rx.available(), Ok(18));
    server.tx.write(&message(Op::WATCH_EVENT, 0, std::format!("a\0{}\0", watch.0).as_bytes())).unwrap();
    server.tx.write(&message(Op::READ, id.0, b"new")).unwrap();
    link.exchange(&watches);
    assert_eq!(link.take_reply(id), Some(Ok(b"new".to_vec())));
    assert!(watches.take(watch));
    assert_eq!((link.stats.malformed, link.stats.unknown_events, link.broken), (0, 0, false));
    server.rx.read(&mut [0; 100]).unwrap();
    assert!(link.is_calm());
}

#[test]
fn page_that_was_wiped_is_as_good_as_one_that_was_kept() {
    let page = Page::new();
    let watches = Watches::new();
    let mut link = Link::new(page.view());
    link.submit(&read_request()).unwrap().unwrap();
    link.exchange(&watches);
    // Each by its size: Miri can't follow a place that is accessed in two.
    let view = page.view();
    view.write(0, &[0; 2 * XENSTORE_RING_SIZE]);
    for word in (2 * XENSTORE_RING_SIZE..size_of::<XenstoreDomainInterface>()).step_by(size_of::<u32>()) {
        view.word(word).store(0, SeqCst);
    }
    link.begin_again();
    let id = link.submit(&read_request()).unwrap().unwrap();
    link.exchange(&watches);
    let mut server = ByteRings::xenstore_back(page.view());
    assert_eq!(server.rx.available(), Ok(18));
    server.tx.write(&message(Op::READ, id.0, b"new")).unwrap();
    link.exchange(&watches);
    assert_eq!(link.take_reply(id), Some(Ok(b"new".to_vec())));
}
