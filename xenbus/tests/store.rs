//! The client against the daemon, over a real ring page.

mod common;

use common::World;
use hypercall::{DomId, Gfn, Port};
use xenbus::store::{Cause, Errno, Op, Perm, Store, TRANSACTION_TRIES, Tx, WATCHES};
use xenstored::Quota;

const fn perm(domain: u16, read: bool, write: bool) -> Perm {
    Perm { domain: DomId(domain), read, write }
}

fn refused<T: std::fmt::Debug>(result: Result<T, xenbus::store::StoreError>) -> Errno {
    match result.unwrap_err().cause {
        Cause::Refused(errno) => errno,
        cause => panic!("{cause:?}"),
    }
}

#[test]
fn what_was_written_is_read_listed_and_removed() {
    let world = World::default();
    let guest = world.domain(1);
    guest.write(Tx::NONE, "a/b", b"va\0lue").unwrap();
    guest.write_text(Tx::NONE, "a/n", 42).unwrap();
    guest.mkdir(Tx::NONE, "a/c").unwrap();
    assert_eq!(guest.read(Tx::NONE, "/local/domain/1/a/b").unwrap(), b"va\0lue");
    assert_eq!(guest.read_as::<u32>(Tx::NONE, "a/n").unwrap(), 42);
    assert_eq!(guest.read_if_there::<u32>(Tx::NONE, "a/x").unwrap(), None);
    assert!(matches!(guest.read_as::<u32>(Tx::NONE, "a/c").unwrap_err().cause, Cause::BadValue(_)));
    assert_eq!(guest.directory(Tx::NONE, "a").unwrap(), ["b", "c", "n"]);
    assert_eq!(guest.directory(Tx::NONE, "a/c").unwrap(), [""; 0]);
    guest.rm(Tx::NONE, "a").unwrap();
    guest.rm(Tx::NONE, "a").unwrap();
    assert!(guest.read(Tx::NONE, "a/b").unwrap_err().is_absent());
    assert_eq!(refused(guest.read(Tx::NONE, "a//b")), Errno::Inval);
    let stats = guest.stats();
    assert_eq!(stats.requests, stats.replies);
    assert_eq!((stats.unknown_replies, stats.malformed, stats.timeouts), (0, 0, 0));
}

#[test]
fn message_that_is_larger_than_the_ring_goes_through_it() {
    let world = World::new(Quota { node_bytes: 4096, ..Quota::default() });
    let guest = world.domain(1);
    let value: Vec<u8> = (0..4000u32).map(|n| (n % 253) as u8).collect();
    for _ in 0..3 {
        guest.write(Tx::NONE, "a", &value).unwrap();
        assert_eq!(guest.read(Tx::NONE, "a").unwrap(), value);
    }
    assert_eq!(guest.write(Tx::NONE, "a", &[0; 4095]).unwrap_err().cause, Cause::TooLong(4097));
    guest.write(Tx::NONE, "a", &[0; 4094]).unwrap();
}

#[test]
fn permissions_are_read_set_and_kept() {
    let world = World::new(Quota { perms: 5, ..Quota::default() });
    let (guest, other) = (world.domain(1), world.domain(2));
    guest.write(Tx::NONE, "a", b"v").unwrap();
    assert_eq!(guest.permissions(Tx::NONE, "a").unwrap(), [perm(1, false, false)]);
    assert_eq!(refused(other.read(Tx::NONE, "/local/domain/1/a")), Errno::Acces);
    let perms = [perm(1, false, true), perm(2, true, false), perm(3, true, true)];
    guest.set_permissions(Tx::NONE, "a", &perms).unwrap();
    assert_eq!(guest.permissions(Tx::NONE, "a").unwrap(), perms);
    assert_eq!(other.read(Tx::NONE, "/local/domain/1/a").unwrap(), b"v");
    assert_eq!(refused(other.write(Tx::NONE, "/local/domain/1/a", b"w")), Errno::Acces);
    assert_eq!(refused(other.set_permissions(Tx::NONE, "/local/domain/1/a", &perms)), Errno::Acces);
    assert_eq!(refused(guest.set_permissions(Tx::NONE, "a", &[])), Errno::Inval);
    assert_eq!(refused(guest.set_permissions(Tx::NONE, "a", &[perm(1, true, true); 6])), Errno::Nospc);
}

#[test]
fn quota_that_is_used_up_is_an_error_of_its_own() {
    let world = World::new(Quota { nodes: 3, transactions: 1, ..Quota::default() });
    let guest = world.domain(1);
    guest.mkdir(Tx::NONE, "a").unwrap();
    guest.mkdir(Tx::NONE, "b").unwrap();
    assert_eq!(refused(guest.mkdir(Tx::NONE, "c")), Errno::Quota);
    assert_eq!(refused(guest.write(Tx::NONE, "a", &[0; 2049])), Errno::Toobig);
    let tx = guest.start().unwrap();
    assert_eq!(refused(guest.start()), Errno::Quota);
    guest.end(tx, false).unwrap();
}

#[test]
fn transaction_is_all_or_nothing() {
    let world = World::default();
    let guest = world.domain(1);
    let failed = guest.transaction(|tx| {
        guest.write(tx, "a", b"1")?;
        guest.read(tx, "missing")
    });
    assert!(failed.unwrap_err().is_absent());
    assert!(guest.read(Tx::NONE, "a").unwrap_err().is_absent());
    assert_eq!(world.holds(&guest).1, 0);
    let value = guest.transaction(|tx| {
        guest.write(tx, "a", b"1")?;
        assert!(guest.read(Tx::NONE, "a").unwrap_err().is_absent());
        guest.read(tx, "a")
    });
    assert_eq!(value.unwrap(), b"1");
    assert_eq!(guest.read(Tx::NONE, "a").unwrap(), b"1");
}

#[test]
fn transaction_that_meets_another_is_tried_again_and_given_up_in_the_end() {
    let world = World::default();
    let (guest, toolstack) = (world.domain(1), world.domain(0));
    guest.write_text(Tx::NONE, "n", 1).unwrap();
    let mut tries = 0;
    guest
        .transaction(|tx| {
            tries += 1;
            let n: u32 = guest.read_as(tx, "n")?;
            if tries < 3 {
                toolstack.write_text(Tx::NONE, "/local/domain/1/n", n + 10)?;
            }
            guest.write_text(tx, "n", n + 1)
        })
        .unwrap();
    assert_eq!(tries, 3);
    assert_eq!(guest.read_as::<u32>(Tx::NONE, "n").unwrap(), 22);

    tries = 0;
    let error = guest
        .transaction(|tx| {
            tries += 1;
            guest.read(tx, "n")?;
            toolstack.write_text(Tx::NONE, "/local/domain/1/n", tries)?;
            guest.write_text(tx, "n", 0)
        })
        .unwrap_err();
    assert_eq!(error.cause, Cause::Contended(TRANSACTION_TRIES));
    assert_eq!(tries, TRANSACTION_TRIES);
    assert_eq!(guest.read_as::<u32>(Tx::NONE, "n").unwrap(), TRANSACTION_TRIES);
}

#[test]
fn watch_fires_once_when_set_and_for_each_look_at_most_once() {
    let world = World::default();
    let (guest, toolstack) = (world.domain(1), world.domain(0));
    let (watch, other) = (guest.watch("a").unwrap(), guest.watch("b").unwrap());
    world.settle(&[&guest]);
    assert!(guest.fired(watch) && guest.fired(other));
    assert!(!guest.fired(watch) && !guest.fired(other));
    toolstack.write(Tx::NONE, "/local/domain/1/a/below", b"v").unwrap();
    toolstack.write(Tx::NONE, "/local/domain/1/a/below", b"w").unwrap();
    world.settle(&[&guest]);
    assert!(guest.fired(watch));
    assert!(!guest.fired(watch) && !guest.fired(other));
    // What was pending is forgotten with the watch.
    toolstack.write(Tx::NONE, "/local/domain/1/a", b"v").unwrap();
    guest.unwatch(watch).unwrap();
    world.settle(&[&guest]);
    assert!(!guest.fired(watch));
    assert!(guest.unwatch(watch).is_err());
    toolstack.write(Tx::NONE, "/local/domain/1/a", b"v").unwrap();
    world.settle(&[&guest]);
    assert_eq!(world.holds(&guest).0, 1);
}

#[test]
fn flood_of_a_million_writes_is_one_pending_event_and_bounded_memory() {
    let writes = if cfg!(miri) { 100 } else { 1_000_000 };
    let world = World::default();
    let guest = world.domain(1);
    let watch = guest.watch("a").unwrap();
    let toolstack = world.daemon(|daemon| daemon.connect(DomId(0)));
    let conn = world.conn(&guest);
    for n in 0..writes {
        world.daemon(|daemon| {
            daemon.call(toolstack, Op::WRITE, 0, format!("/local/domain/1/a\0{n}").as_bytes()).unwrap();
            assert!(daemon.pending(conn) <= 64);
        });
        if n % 5000 == 0 {
            world.settle(&[&guest]);
        }
    }
    // The ring was drained in part; what is left comes while the client reads.
    assert_eq!(guest.read_as::<u32>(Tx::NONE, "a").unwrap(), writes - 1);
    assert!(guest.fired(watch));
    assert!(!guest.fired(watch));
    assert_eq!(guest.stats().unknown_events, 0);
}

#[test]
#[cfg_attr(miri, ignore = "hundreds of requests take Miri minutes, and do nothing that the others don't")]
fn table_of_watches_is_bounded_and_its_places_come_back() {
    let world = World::new(Quota { watches: 1000, ..Quota::default() });
    let guest = world.domain(1);
    let watches: Vec<_> = (0..WATCHES).map(|_| guest.watch("a").unwrap()).collect();
    assert_eq!(guest.watch("a").unwrap_err().cause, Cause::NoWatch(WATCHES));
    guest.unwatch(watches[3]).unwrap();
    let again = guest.watch("a").unwrap();
    assert_ne!(again, watches[3]);
    guest.unwatch(again).unwrap();
    // A watch that was refused leaves no place taken.
    for _ in 0..2 * WATCHES {
        assert_eq!(refused(guest.watch("a//b")), Errno::Inval);
    }
    guest.watch("a").unwrap();
}

#[test]
fn silent_daemon_is_a_time_out_and_not_a_hang() {
    let world = World::default();
    let guest = world.domain(1);
    guest.write(Tx::NONE, "a", b"v").unwrap();
    // A daemon that is gone: it takes the bytes, and never answers.
    let conn = world.conn(&guest);
    world.daemon(|daemon| daemon.disconnect(conn));
    guest.set_timeout_ns(1_000_000_000);
    assert_eq!(guest.read(Tx::NONE, "a").unwrap_err().cause, Cause::TimedOut(1_000_000_000));
    assert!(guest.write(Tx::NONE, "a", &[0; 4000]).is_err());
    assert_eq!(guest.stats().timeouts, 2);
}

#[test]
fn toolstack_introduces_and_releases_domains() {
    let world = World::default();
    let (toolstack, guest) = (world.domain(0), world.domain(1));
    let (came, left) = (toolstack.watch("@introduceDomain").unwrap(), toolstack.watch("@releaseDomain").unwrap());
    world.settle(&[&toolstack]);
    assert!(toolstack.fired(came) && toolstack.fired(left));
    assert!(!toolstack.is_introduced(DomId(7)).unwrap());
    toolstack.introduce(DomId(7), Gfn(77), Port(3)).unwrap();
    assert!(toolstack.is_introduced(DomId(7)).unwrap());
    assert!(toolstack.fired(came) && !toolstack.fired(left));
    toolstack.resume(DomId(7)).unwrap();
    toolstack.release(DomId(7)).unwrap();
    assert!(!toolstack.fired(came) && toolstack.fired(left));
    assert_eq!(refused(toolstack.release(DomId(7))), Errno::Inval);
    assert_eq!(refused(guest.introduce(DomId(8), Gfn(1), Port(1))), Errno::Acces);
    assert_eq!(guest.home(DomId(7)).unwrap(), "/local/domain/7");
    toolstack.write(Tx::NONE, "/local/domain/0/a", b"v").unwrap();
    assert_eq!(refused(guest.read(Tx::NONE, "/local/domain/0/a")), Errno::Acces);
    toolstack.set_target(DomId(1), DomId(0)).unwrap();
    assert_eq!(guest.read(Tx::NONE, "/local/domain/0/a").unwrap(), b"v");
    toolstack.control("print\0hello").unwrap();
    let watch = guest.watch("a").unwrap();
    guest.reset_watches().unwrap();
    world.settle(&[&guest]);
    guest.fired(watch);
    guest.write(Tx::NONE, "a", b"v").unwrap();
    world.settle(&[&guest]);
    assert!(!guest.fired(watch));
}

#[test]
fn directory_that_is_longer_than_a_message_is_read_in_parts_of_one_state() {
    let world = World::default();
    let toolstack = world.domain(0);
    let names: Vec<String> = (0..400).map(|n| format!("name-{n:04}")).collect();
    let conn = world.conn(&toolstack);
    world.daemon(|daemon| {
        for name in &names {
            daemon.call(conn, Op::MKDIR, 0, format!("/d/{name}\0").as_bytes()).unwrap();
        }
    });
    assert_eq!(toolstack.directory(Tx::NONE, "/d").unwrap(), names);
    assert_eq!(toolstack.directory_in_parts(Tx::NONE, "/d/name-0000").unwrap(), [""; 0]);
    assert!(toolstack.directory_in_parts(Tx::NONE, "/none").unwrap_err().is_absent());
}

#[test]
fn threads_share_the_client_and_each_gets_its_own_answers() {
    let world = World::default();
    let guest = world.domain(1);
    // The clock runs when nobody has anything to do, which here is no sign of trouble.
    guest.set_timeout_ns(u64::MAX);
    let rounds = if cfg!(miri) { 3 } else { 300 };
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let guest = guest.clone();
            scope.spawn(move || {
                for round in 0..rounds {
                    let path = format!("t/{thread}/{}", round % 20);
                    guest.write_text(Tx::NONE, &path, round * 10 + thread).unwrap();
                    assert_eq!(guest.read_as::<u32>(Tx::NONE, &path).unwrap(), round * 10 + thread);
                }
            });
        }
    });
    let stats = guest.stats();
    assert_eq!((stats.replies, stats.unknown_replies), (stats.requests, 0));
}

#[test]
fn watches_are_set_again_and_fire_in_a_restored_domain() {
    let world = World::default();
    let (toolstack, guest) = (world.domain(0), world.domain(1));
    let watch = guest.watch("device/vbd").unwrap();
    let other = guest.watch("data").unwrap();
    guest.unwatch(other).unwrap();
    world.settle(&[&guest]);
    assert!(guest.fired(watch));
    guest.suspend().unwrap();
    let port = world.restore(&guest, 7);
    guest.reconnect(port).unwrap();
    assert_eq!((guest.port(), world.holds(&guest)), (port, (1, 0)));
    assert!(guest.fired(watch), "what has changed meanwhile is to be looked at");
    guest.write(Tx::NONE, "name", b"anew").unwrap();
    assert_eq!(toolstack.read(Tx::NONE, "/local/domain/7/name").unwrap(), b"anew");
    assert!(!guest.fired(watch));
    toolstack.write(Tx::NONE, "/local/domain/1/device/vbd/1", b"").unwrap();
    world.settle(&[&guest]);
    assert!(!guest.fired(watch), "the home of before is another's");
    toolstack.write(Tx::NONE, "/local/domain/7/device/vbd/1", b"").unwrap();
    world.settle(&[&guest]);
    assert!(guest.fired(watch));
    guest.unwatch(watch).unwrap();
    assert_eq!(world.holds(&guest), (0, 0));
}

#[test]
fn watch_that_is_refused_keeps_no_other_from_being_set_again() {
    let world = World::default();
    let guest = world.domain(1);
    let watches = ["a", "b"].map(|path| guest.watch(path).unwrap());
    assert_eq!(watches.map(|watch| guest.fired(watch)), [true, true]);
    guest.suspend().unwrap();
    let port = world.restore(&guest, 7);
    world.refuse_next(port);
    assert_eq!(refused(guest.reconnect(port)), Errno::Quota);
    assert_eq!(watches.map(|watch| guest.fired(watch)), [false, true]);
    guest.write(Tx::NONE, "x", b"").unwrap();
}

#[test]
fn suspend_waits_for_transactions_and_holds_back_what_is_none() {
    let world = World::default();
    let guest = world.domain(1);
    let tx = guest.start().unwrap();
    guest.write(tx, "a", b"1").unwrap();
    assert!(matches!(guest.suspend().unwrap_err().cause, Cause::TimedOut(_)));
    // All goes on, and what is begun comes to its end.
    guest.write(Tx::NONE, "b", b"1").unwrap();
    guest.end(tx, true).unwrap();
    guest.suspend().unwrap();
    assert!(matches!(guest.read(Tx::NONE, "a").unwrap_err().cause, Cause::TimedOut(_)));
    guest.cancel_suspend();
    assert_eq!(guest.read(Tx::NONE, "a").unwrap(), b"1");
}
