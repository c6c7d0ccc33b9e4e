//! What the daemon promises its clients.

use proptest::prelude::*;
use xen_sys::DomId;
use xenstored::{BadFrame, ConnId, Daemon, Op, Quota, Refusal};

type Answer = Result<String, Refusal>;

/// A daemon with dom0 and domain 1, whose home it owns.
struct Bed {
    daemon: Daemon,
    dom0: ConnId,
    guest: ConnId,
}

impl Bed {
    fn new() -> Self {
        Self::with(Quota::default())
    }

    fn with(quota: Quota) -> Self {
        let mut daemon = Daemon::new(quota);
        let dom0 = daemon.connect(DomId(0));
        daemon.introduce(DomId(1));
        let guest = daemon.connect(DomId(1));
        let mut bed = Self { daemon, dom0, guest };
        bed.dom0(Op::MKDIR, "/local/domain/1\0").unwrap();
        bed.dom0(Op::SET_PERMS, "/local/domain/1\0n1\0").unwrap();
        bed
    }

    fn ask(&mut self, who: ConnId, op: Op, tx: u32, payload: &str) -> Answer {
        let reply = self.daemon.call(who, op, tx, payload.as_bytes())?;
        Ok(String::from_utf8(reply).unwrap())
    }

    fn dom0(&mut self, op: Op, payload: &str) -> Answer {
        self.ask(self.dom0, op, 0, payload)
    }

    fn guest(&mut self, op: Op, payload: &str) -> Answer {
        self.ask(self.guest, op, 0, payload)
    }

    fn start(&mut self, who: ConnId) -> u32 {
        let answer = self.ask(who, Op::TRANSACTION_START, 0, "\0").unwrap();
        answer.trim_end_matches('\0').parse().unwrap()
    }

    /// Takes all messages for a client: operation, request id, payload.
    fn messages(&mut self, who: ConnId) -> Vec<(Op, u32, String)> {
        let mut bytes = Vec::new();
        loop {
            let next = self.daemon.output(who).to_vec();
            if next.is_empty() {
                break;
            }
            // Odd pieces, so that a packet is never taken as a whole.
            let piece = next.len().min(5);
            bytes.extend_from_slice(&next[..piece]);
            self.daemon.consume(who, piece);
        }
        let mut messages = Vec::new();
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let word = |at: usize| u32::from_le_bytes(rest[at..at + 4].try_into().unwrap());
            let (op, id, len) = (word(0), word(4), word(12) as usize);
            messages.push((Op(op), id, String::from_utf8(rest[16..16 + len].to_vec()).unwrap()));
            rest = &rest[16 + len..];
        }
        messages
    }

    fn events(&mut self, who: ConnId) -> Vec<String> {
        self.messages(who).into_iter().filter(|(op, ..)| *op == Op::WATCH_EVENT).map(|(.., text)| text).collect()
    }
}

fn packet(op: Op, req_id: u32, payload: &[u8]) -> Vec<u8> {
    let words = [op.0, req_id, 0, payload.len() as u32];
    words.into_iter().flat_map(u32::to_le_bytes).chain(payload.iter().copied()).collect()
}

#[test]
fn write_makes_the_nodes_above_and_directory_lists_them() {
    let mut bed = Bed::new();
    assert_eq!(bed.guest(Op::WRITE, "a/b/c\0v").unwrap(), "OK\0");
    bed.guest(Op::MKDIR, "a/b-x\0").unwrap();
    bed.guest(Op::MKDIR, "a/b0\0").unwrap();
    assert_eq!(bed.guest(Op::READ, "/local/domain/1/a/b/c\0").unwrap(), "v");
    assert_eq!(bed.guest(Op::DIRECTORY, "a\0").unwrap(), "b\0b-x\0b0\0");
    assert_eq!(bed.guest(Op::DIRECTORY, "a/b/c\0").unwrap(), "");
    assert_eq!(bed.guest(Op::MKDIR, "a\0").unwrap(), "OK\0");
    assert_eq!(bed.dom0(Op::DIRECTORY, "/\0").unwrap(), "@introduceDomain\0@releaseDomain\0local\0");
}

#[test]
fn rm_of_a_missing_node_succeeds_and_of_one_without_parent_does_not() {
    let mut bed = Bed::new();
    bed.guest(Op::WRITE, "a/b/c\0v").unwrap();
    bed.guest(Op::WRITE, "ab\0v").unwrap();
    assert_eq!(bed.guest(Op::RM, "a\0").unwrap(), "OK\0");
    assert_eq!(bed.guest(Op::RM, "a\0").unwrap(), "OK\0");
    assert_eq!(bed.guest(Op::RM, "a/b\0"), Err(Refusal::Noent));
    assert_eq!(bed.guest(Op::READ, "a/b/c\0"), Err(Refusal::Noent));
    assert_eq!(bed.guest(Op::READ, "ab\0").unwrap(), "v");
}

#[test]
fn bad_paths_and_arguments_are_refused() {
    let mut bed = Bed::new();
    let long = format!("{}\0", "a".repeat(1025));
    for path in ["\0", "", "a", "a\0b\0", "/a/\0", "//a\0", "/a b\0", "a//b\0", "/a.b\0", "\u{e9}\0", &long] {
        assert_eq!(bed.dom0(Op::READ, path), Err(Refusal::Inval), "{path:?}");
        assert_eq!(bed.dom0(Op::DIRECTORY, path), Err(Refusal::Inval), "{path:?}");
    }
    assert_eq!(bed.guest(Op::READ, &format!("{}\0", "a".repeat(1024))), Err(Refusal::Noent));
    assert_eq!(bed.guest(Op::WRITE, "a"), Err(Refusal::Inval));
    for perms in ["a\0", "a\0b1", "a\0x1\0", "a\0r\0", "a\0r65536\0", "a\0r-1\0", "a\0\0"] {
        assert_eq!(bed.guest(Op::SET_PERMS, perms), Err(Refusal::Inval), "{perms:?}");
    }
    for op in [20, 23, 24, 25, 26, 0xffff, u32::MAX] {
        assert_eq!(bed.dom0(Op(op), "/\0"), Err(Refusal::Nosys));
    }
    assert_eq!(bed.dom0(Op::WATCH_EVENT, "/\0"), Err(Refusal::Nosys));
    assert_eq!(bed.guest(Op::GET_DOMAIN_PATH, "7\0").unwrap(), "/local/domain/7\0");
}

#[test]
fn permissions_keep_others_out() {
    let mut bed = Bed::new();
    bed.daemon.introduce(DomId(2));
    let other = bed.daemon.connect(DomId(2));
    bed.guest(Op::WRITE, "a\0v").unwrap();
    let path = "/local/domain/1/a\0";
    assert_eq!(bed.guest(Op::GET_PERMS, path).unwrap(), "n1\0");
    assert_eq!(bed.ask(other, Op::READ, 0, path), Err(Refusal::Acces));
    assert_eq!(bed.ask(other, Op::READ, 0, "/local/domain/1/none\0"), Err(Refusal::Noent));
    assert_eq!(bed.ask(other, Op::RM, 0, path), Err(Refusal::Acces));
    bed.guest(Op::SET_PERMS, "a\0n1\0r2\0").unwrap();
    assert_eq!(bed.ask(other, Op::READ, 0, path).unwrap(), "v");
    assert_eq!(bed.ask(other, Op::WRITE, 0, "/local/domain/1/a\0w"), Err(Refusal::Acces));
    assert_eq!(bed.ask(other, Op::MKDIR, 0, "/local/domain/1/a/x\0"), Err(Refusal::Acces));
    assert_eq!(bed.ask(other, Op::SET_PERMS, 0, "/local/domain/1/a\0b2\0"), Err(Refusal::Acces));
    // Nor may one who doesn't own the node but could write it open it to others.
    bed.guest(Op::SET_PERMS, "a\0n1\0b2\0").unwrap();
    assert_eq!(bed.ask(other, Op::SET_PERMS, 0, "/local/domain/1/a\0n1\0b2\0b3\0"), Err(Refusal::Acces));
    bed.ask(other, Op::WRITE, 0, "/local/domain/1/a/x\0w").unwrap();
    // A new node is its parent's owner's, and only dom0 gives nodes away.
    assert_eq!(bed.guest(Op::GET_PERMS, "a/x\0").unwrap(), "n1\0b2\0");
    assert_eq!(bed.ask(other, Op::SET_PERMS, 0, "/local/domain/1/a/x\0b2\0"), Err(Refusal::Acces));
    assert_eq!(bed.guest(Op::SET_PERMS, "a/x\0b2\0"), Err(Refusal::Acces));
    bed.dom0(Op::SET_PERMS, "/local/domain/1/a/x\0b2\0").unwrap();
    assert_eq!(bed.guest(Op::READ, "a/x\0").unwrap(), "w");
    assert_eq!(bed.guest(Op::DIRECTORY, "/\0"), Err(Refusal::Acces));
}

#[test]
fn set_target_lends_the_rights_of_another_domain() {
    let mut bed = Bed::new();
    let stub = bed.daemon.connect(DomId(2));
    bed.guest(Op::WRITE, "a\0v").unwrap();
    assert_eq!(bed.ask(stub, Op::READ, 0, "/local/domain/1/a\0"), Err(Refusal::Acces));
    assert_eq!(bed.guest(Op::SET_TARGET, "2\x001\0"), Err(Refusal::Acces));
    assert_eq!(bed.dom0(Op::SET_TARGET, "9\x001\0"), Err(Refusal::Noent));
    bed.dom0(Op::SET_TARGET, "2\x001\0").unwrap();
    assert_eq!(bed.ask(stub, Op::READ, 0, "/local/domain/1/a\0").unwrap(), "v");
}

#[test]
fn quotas_hold_for_guests() {
    let mut bed =
        Bed::with(Quota { nodes: 4, perms: 5, watches: 2, transactions: 2, transaction_ops: 3, ..Quota::default() });
    // The home counts as one.
    for name in ["a", "b", "c"] {
        bed.guest(Op::MKDIR, &format!("{name}\0")).unwrap();
    }
    assert_eq!(bed.guest(Op::MKDIR, "d\0"), Err(Refusal::Quota));
    assert_eq!(bed.guest(Op::WRITE, "a\0v").unwrap(), "OK\0");
    bed.guest(Op::RM, "c\0").unwrap();
    bed.guest(Op::MKDIR, "d\0").unwrap();
    bed.dom0(Op::MKDIR, "/local/domain/1/e\0").unwrap();

    assert_eq!(bed.guest(Op::WRITE, &format!("a\0{}", "v".repeat(2049))), Err(Refusal::Toobig));
    assert_eq!(bed.dom0(Op::WRITE, &format!("/a\0{}", "v".repeat(2049))), Err(Refusal::Toobig));
    bed.guest(Op::WRITE, &format!("a\0{}", "v".repeat(2048))).unwrap();

    assert_eq!(bed.guest(Op::SET_PERMS, "a\0n1\0r2\0r3\0r4\0r5\0r6\0"), Err(Refusal::Nospc));
    bed.guest(Op::SET_PERMS, "a\0n1\0r2\0r3\0r4\0r5\0").unwrap();

    bed.guest(Op::WATCH, "a\0one\0").unwrap();
    bed.guest(Op::WATCH, "a\0two\0").unwrap();
    assert_eq!(bed.guest(Op::WATCH, "a\0three\0"), Err(Refusal::Quota));

    let tx = bed.start(bed.guest);
    bed.start(bed.guest);
    assert_eq!(bed.guest(Op::TRANSACTION_START, "\0"), Err(Refusal::Quota));
    for _ in 0..3 {
        bed.ask(bed.guest, Op::READ, tx, "a\0").unwrap();
    }
    assert_eq!(bed.ask(bed.guest, Op::READ, tx, "a\0"), Err(Refusal::Quota));
}

#[test]
fn watch_fires_once_when_set_and_then_for_each_change_below() {
    let mut bed = Bed::new();
    let guest = bed.guest;
    bed.guest(Op::WATCH, "a/none\0t\0").unwrap();
    assert_eq!(bed.events(guest), ["a/none\0t\0"]);
    assert_eq!(bed.guest(Op::WATCH, "a/none\0t\0"), Err(Refusal::Exist));
    assert_eq!(bed.guest(Op::WATCH, "/local/domain/1/a/none\0t\0"), Err(Refusal::Exist));
    assert_eq!(bed.guest(Op::WATCH, "a//b\0t\0"), Err(Refusal::Inval));
    assert_eq!(bed.guest(Op::UNWATCH, "a/none\0u\0"), Err(Refusal::Noent));

    bed.guest(Op::WATCH, "/local/domain/1/a\0abs\0").unwrap();
    bed.events(guest);
    bed.guest(Op::WRITE, "a/none\0v").unwrap();
    bed.dom0(Op::WRITE, "/local/domain/1/a/none/below\0v").unwrap();
    bed.guest(Op::WRITE, "a/nonesuch\0v").unwrap();
    let abs = "/local/domain/1/a";
    assert_eq!(
        bed.events(guest),
        [
            format!("{abs}/none\0abs\0"),
            "a/none\0t\0".to_owned(),
            format!("{abs}/none/below\0abs\0"),
            "a/none/below\0t\0".into(),
            format!("{abs}/nonesuch\0abs\0"),
        ]
    );
    // A removal above tells each watch its own path.
    bed.guest(Op::RM, "a\0").unwrap();
    assert_eq!(bed.events(guest), [format!("{abs}\0abs\0"), "a/none\0t\0".to_owned()]);
    bed.guest(Op::UNWATCH, "a/none\0t\0").unwrap();
    bed.guest(Op::RESET_WATCHES, "\0").unwrap();
    bed.guest(Op::WRITE, "a/none\0v").unwrap();
    assert_eq!(bed.events(guest), [""; 0]);
}

#[test]
fn watch_tells_nothing_of_what_the_client_may_not_read() {
    let mut bed = Bed::new();
    let other = bed.daemon.connect(DomId(2));
    bed.guest(Op::MKDIR, "a\0").unwrap();
    bed.guest(Op::MKDIR, "secret\0").unwrap();
    bed.ask(other, Op::WATCH, 0, "/local/domain/1\0t\0").unwrap();
    bed.events(other);
    bed.guest(Op::WRITE, "secret\0v").unwrap();
    assert_eq!(bed.events(other), [""; 0]);
    bed.guest(Op::SET_PERMS, "a\0n1\0r2\0").unwrap();
    assert_eq!(bed.events(other), ["/local/domain/1/a\0t\0"]);
    bed.guest(Op::SET_PERMS, "a\0n1\0").unwrap();
    bed.guest(Op::WRITE, "a\0v").unwrap();
    assert_eq!(bed.events(other), ["/local/domain/1/a\0t\0"]);
}

#[test]
fn a_flood_of_changes_keeps_a_bounded_queue_and_the_watcher_hears_of_the_last() {
    let mut bed = Bed::new();
    let guest = bed.guest;
    bed.guest(Op::WATCH, "a\0t\0").unwrap();
    let floods = if cfg!(miri) { 200 } else { 100_000 };
    for n in 0..floods {
        bed.dom0(Op::WRITE, &format!("/local/domain/1/a/{}\0{n}", n % 1000)).unwrap();
    }
    assert!(bed.daemon.pending(guest) <= 65, "{}", bed.daemon.pending(guest));
    assert_eq!(bed.events(guest).last().unwrap(), "a\0t\0");
    bed.dom0(Op::WRITE, "/local/domain/1/a/b\0v").unwrap();
    assert_eq!(bed.events(guest), ["a/b\0t\0"]);
}

#[test]
fn transaction_is_invisible_until_it_ends() {
    let mut bed = Bed::new();
    let guest = bed.guest;
    bed.dom0(Op::WATCH, "/local/domain/1\0t\0").unwrap();
    bed.events(bed.dom0);
    let tx = bed.start(guest);
    bed.ask(guest, Op::WRITE, tx, "a\0v").unwrap();
    bed.ask(guest, Op::WRITE, tx, "b/c\0v").unwrap();
    assert_eq!(bed.guest(Op::READ, "a\0"), Err(Refusal::Noent));
    assert_eq!(bed.ask(guest, Op::READ, tx, "a\0").unwrap(), "v");
    assert_eq!(bed.ask(guest, Op::TRANSACTION_START, tx, "\0"), Err(Refusal::Busy));
    assert_eq!(bed.ask(guest, Op::TRANSACTION_END, tx, "X\0"), Err(Refusal::Inval));
    assert_eq!(bed.events(bed.dom0), [""; 0]);
    bed.ask(guest, Op::TRANSACTION_END, tx, "T\0").unwrap();
    assert_eq!(bed.guest(Op::READ, "a\0").unwrap(), "v");
    assert_eq!(bed.events(bed.dom0), ["/local/domain/1/a\0t\0", "/local/domain/1/b/c\0t\0"]);
    assert_eq!(bed.ask(guest, Op::TRANSACTION_END, tx, "T\0"), Err(Refusal::Io));
    assert_eq!(bed.guest(Op::TRANSACTION_END, "T\0"), Err(Refusal::Noent));
    let tx = bed.start(guest);
    bed.ask(guest, Op::RM, tx, "a\0").unwrap();
    bed.ask(guest, Op::TRANSACTION_END, tx, "F\0").unwrap();
    assert_eq!(bed.guest(Op::READ, "a\0").unwrap(), "v");
}

#[test]
fn transaction_that_met_another_is_refused_and_one_that_did_not_is_merged() {
    let mut bed = Bed::new();
    let guest = bed.guest;
    bed.guest(Op::WRITE, "n\x001").unwrap();
    let (loser, merged, reader) = (bed.start(guest), bed.start(guest), bed.start(guest));
    bed.ask(guest, Op::READ, loser, "n\0").unwrap();
    bed.ask(guest, Op::WRITE, loser, "n\x002").unwrap();
    bed.ask(guest, Op::WRITE, merged, "m\x001").unwrap();
    bed.ask(guest, Op::READ, reader, "n\0").unwrap();
    bed.guest(Op::WRITE, "n\x003").unwrap();
    assert_eq!(bed.ask(guest, Op::TRANSACTION_END, loser, "T\0"), Err(Refusal::Again));
    assert_eq!(bed.guest(Op::READ, "n\0").unwrap(), "3");
    bed.ask(guest, Op::TRANSACTION_END, merged, "T\0").unwrap();
    assert_eq!(bed.guest(Op::READ, "m\0").unwrap(), "1");
    assert_eq!(bed.guest(Op::READ, "n\0").unwrap(), "3");
    bed.ask(guest, Op::TRANSACTION_END, reader, "T\0").unwrap();
}

#[test]
fn domains_come_and_go_and_take_their_nodes_with_them() {
    let mut bed = Bed::new();
    let dom0 = bed.dom0;
    bed.dom0(Op::WATCH, "@introduceDomain\0i\0").unwrap();
    bed.dom0(Op::WATCH, "@releaseDomain\0r\0").unwrap();
    bed.guest(Op::WATCH, "@releaseDomain\0r\0").unwrap();
    bed.events(dom0);
    bed.dom0(Op::INTRODUCE, "5\x0077\x003\0").unwrap();
    assert_eq!(bed.events(dom0), ["@introduceDomain\0i\0"]);
    assert_eq!(bed.dom0(Op::INTRODUCE, "5\x0078\x003\0"), Err(Refusal::Inval));
    bed.dom0(Op::INTRODUCE, "5\x0077\x004\0").unwrap();
    assert_eq!(bed.dom0(Op::IS_DOMAIN_INTRODUCED, "5\0").unwrap(), "T\0");
    assert_eq!(bed.guest(Op::IS_DOMAIN_INTRODUCED, "5\0"), Err(Refusal::Acces));
    bed.dom0(Op::RESUME, "5\0").unwrap();

    bed.dom0(Op::WRITE, "/local/domain/5/a\0v").unwrap();
    bed.dom0(Op::SET_PERMS, "/local/domain/5\0n5\0").unwrap();
    bed.dom0(Op::WRITE, "/shared\0v").unwrap();
    bed.dom0(Op::SET_PERMS, "/shared\0n0\0r5\0r1\0").unwrap();
    bed.events(bed.guest);
    bed.dom0(Op::RELEASE, "5\0").unwrap();
    assert_eq!(bed.events(dom0), ["@releaseDomain\0r\0"]);
    // A guest may not know who else dies, unless dom0 says so.
    assert_eq!(bed.events(bed.guest), [""; 0]);
    assert_eq!(bed.dom0(Op::READ, "/local/domain/5/a\0"), Err(Refusal::Noent));
    assert_eq!(bed.dom0(Op::GET_PERMS, "/shared\0").unwrap(), "n0\0r1\0");
    for op in [Op::RELEASE, Op::RESUME] {
        assert_eq!(bed.dom0(op, "5\0"), Err(Refusal::Inval));
    }
    assert_eq!(bed.dom0(Op::IS_DOMAIN_INTRODUCED, "5\0").unwrap(), "F\0");
    bed.dom0(Op::SET_PERMS, "@releaseDomain\0n0\0r1\0").unwrap();
    bed.daemon.introduce(DomId(6));
    bed.daemon.release(DomId(6));
    assert_eq!(bed.events(bed.guest), ["@releaseDomain\0r\0"]);
}

#[test]
#[cfg_attr(miri, ignore = "no unsafe code is involved, and it takes Miri minutes")]
fn directory_part_pieces_add_up() {
    let mut bed = Bed::new();
    let names: Vec<String> = (0..900).map(|n| format!("name-{n:04}")).collect();
    for name in &names {
        bed.dom0(Op::MKDIR, &format!("/d/{name}\0")).unwrap();
    }
    assert_eq!(bed.dom0(Op::DIRECTORY, "/d\0"), Err(Refusal::Toobig));
    let mut list = String::new();
    loop {
        let reply = bed.dom0(Op::DIRECTORY_PART, &format!("/d\0{}\0", list.len())).unwrap();
        assert!(reply.len() <= 4096);
        let (_, piece) = reply.split_once('\0').unwrap();
        if let Some(last) = piece.strip_suffix("\0\0") {
            list += last;
            list += "\0";
            break;
        }
        assert!(piece.ends_with('\0'));
        list += piece;
    }
    assert_eq!(list.split_terminator('\0').collect::<Vec<_>>(), names);
    assert!(bed.dom0(Op::DIRECTORY_PART, "/d\0999999\0").unwrap().ends_with("\0\0"));
}

#[test]
fn replies_come_before_events_and_carry_the_request_id() {
    let mut bed = Bed::new();
    let guest = bed.guest;
    let mut bytes = packet(Op::WATCH, 7, b"a\0t\0");
    bytes.extend(packet(Op::WRITE, 8, b"a\0v"));
    bytes.extend(packet(Op::READ, 9, b"none\0"));
    for byte in bytes {
        assert_eq!(bed.daemon.input(guest, &[byte]), Ok(1));
    }
    assert_eq!(
        bed.messages(guest),
        [
            (Op::WATCH, 7, "OK\0".into()),
            (Op::WATCH_EVENT, 0, "a\0t\0".into()),
            (Op::WRITE, 8, "OK\0".into()),
            (Op::WATCH_EVENT, 0, "a\0t\0".into()),
            (Op::ERROR, 9, "ENOENT\0".into()),
        ]
    );
}

#[test]
fn client_that_does_not_read_is_not_listened_to() {
    let mut bed = Bed::new();
    let guest = bed.guest;
    let bytes = packet(Op::READ, 1, b"a\0").repeat(30);
    let taken = bed.daemon.input(guest, &bytes).unwrap();
    assert_eq!(taken, bytes.len() / 30 * 20);
    assert_eq!(bed.daemon.pending(guest), 20);
    assert_eq!(bed.messages(guest).len(), 20);
    assert_eq!(bed.daemon.input(guest, &bytes[taken..]).unwrap(), bytes.len() - taken);
}

#[test]
fn oversize_message_ends_the_conversation() {
    for len in [4097u32, 4112, 65536, i32::MAX as u32, u32::MAX] {
        let mut bed = Bed::new();
        let mut bytes = packet(Op::READ, 1, b"");
        bytes[12..].copy_from_slice(&len.to_le_bytes());
        bytes.extend([0; 8192]);
        assert_eq!(bed.daemon.input(bed.guest, &bytes), Err(BadFrame { len }));
        assert_eq!(bed.daemon.input(bed.guest, &packet(Op::READ, 1, b"a\0")), Err(BadFrame { len }));
        assert_eq!(bed.daemon.pending(bed.guest), 0);
        assert_eq!(bed.dom0(Op::READ, "/\0").unwrap(), "");
    }
    let mut bed = Bed::new();
    assert!(bed.daemon.input(bed.guest, &packet(Op::READ, 1, &[0; 4096])).is_ok());
    assert_eq!(bed.messages(bed.guest)[0].2, "EINVAL\0");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 4 } else { 256 }, failure_persistence: None, ..Default::default() })]

    #[test]
    fn no_bytes_make_it_panic(chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..80), 0..40)) {
        let mut bed = Bed::new();
        for chunk in chunks {
            let _ = bed.daemon.input(bed.guest, &chunk);
            bed.events(bed.guest);
        }
    }

    #[test]
    fn no_requests_make_it_panic(requests in prop::collection::vec((0u32..28, 0u32..4, "[/@ab0-9\\x00.nrwbT]{0,24}"), 0..60)) {
        let mut bed = Bed::new();
        for (op, tx, payload) in requests {
            for who in [bed.guest, bed.dom0] {
                let _ = bed.ask(who, Op(op), tx, &payload);
            }
        }
        let _ = bed.messages(bed.guest);
    }
}
