//! Transactions: what they hide, when they meet others, and how they are ended.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use hypercall::Platform;
use xen_sys::io::xs_wire::XsdSockmsgType as Op;

use super::{Script, number};

/// A transaction that there isn't.
const NO_TX: u32 = 0x7fff_0000;

/// An operation on a node, and its payload.
type Asked = (Op, &'static [u8]);

impl<P: Platform> Script<'_, P> {
    pub(super) fn transactions(&mut self) {
        self.step("transaction_start", Op::TRANSACTION_START, b"\0");
        self.step("transaction_start without payload", Op::TRANSACTION_START, b"");
        self.step("transaction_start with a word", Op::TRANSACTION_START, b"word\0");
        self.must(Op::RESET_WATCHES, b"\0");
        self.must(Op::WRITE, b"data/t\0old");
        let tx = self.start();
        self.step_in("write in a transaction", tx, Op::WRITE, b"data/t\0new");
        self.step_in("read in the transaction", tx, Op::READ, b"data/t\0");
        self.step("read outside of the transaction", Op::READ, b"data/t\0");
        self.step_in("mkdir in the transaction", tx, Op::MKDIR, b"data/t/dir\0");
        self.step_in("directory in the transaction", tx, Op::DIRECTORY, b"data/t\0");
        self.step("directory outside of the transaction", Op::DIRECTORY, b"data/t\0");
        self.step_in("read a missing node in a transaction", tx, Op::READ, b"data/none\0");
        self.step_in("get_perms in a transaction", tx, Op::GET_PERMS, b"data/t\0");
        self.step_in("get_domain_path in a transaction", tx, Op::GET_DOMAIN_PATH, b"0\0");
        self.step_in("transaction_start in a transaction", tx, Op::TRANSACTION_START, b"\0");
        self.step_in("transaction_end with commit", tx, Op::TRANSACTION_END, b"T\0");
        self.step("read after the commit", Op::READ, b"data/t\0");
        self.step_in("transaction_end again", tx, Op::TRANSACTION_END, b"T\0");
        self.step_in("read in a transaction that has ended", tx, Op::READ, b"data/t\0");
        self.step_in("write in a transaction that has ended", tx, Op::WRITE, b"data/t\0x");
        let tx = self.start();
        self.must_in(tx, Op::RM, b"data/t/dir\0");
        self.step_in("read what was removed in the transaction", tx, Op::READ, b"data/t/dir\0");
        self.step_in("transaction_end without commit", tx, Op::TRANSACTION_END, b"F\0");
        self.step("read what was removed in the transaction that was given up", Op::READ, b"data/t/dir\0");

        self.step_in("read in no such transaction", NO_TX, Op::READ, b"data/t\0");
        self.step_in("write in no such transaction", NO_TX, Op::WRITE, b"data/t\0x");
        self.step_in("transaction_start in no such transaction", NO_TX, Op::TRANSACTION_START, b"\0");
        self.step_in("transaction_end of no such transaction", NO_TX, Op::TRANSACTION_END, b"T\0");
        self.step_in("transaction_end of no such transaction without commit", NO_TX, Op::TRANSACTION_END, b"F\0");
        self.step("transaction_end outside of transactions", Op::TRANSACTION_END, b"T\0");
        self.step("transaction_end outside of transactions without commit", Op::TRANSACTION_END, b"F\0");
        for (name, payload) in
            [("a word", &b"X\0"[..]), ("a small letter", b"t\0"), ("nothing", b""), ("T without NUL", b"T")]
        {
            let tx = self.start();
            self.step_in(&format!("transaction_end with {name}"), tx, Op::TRANSACTION_END, payload);
            self.step_in(&format!("read after transaction_end with {name}"), tx, Op::READ, b"data/t\0");
            self.must(Op::RESET_WATCHES, b"\0");
        }
        self.step("a transaction's number after reset_watches", Op::TRANSACTION_START, b"\0");
        self.must(Op::RESET_WATCHES, b"\0");
    }

    /// Two that want the same, or not.
    pub(super) fn conflicts(&mut self) {
        const READ: Asked = (Op::READ, b"data/t\0");
        const WRITE: Asked = (Op::WRITE, b"data/t\0inside");
        const OTHER: Asked = (Op::WRITE, b"data/u\0inside");
        const LIST: Asked = (Op::DIRECTORY, b"data/t\0");
        const MISSING: Asked = (Op::READ, b"data/t/new\0");
        const MAKE: Asked = (Op::MKDIR, b"data/t/new\0");
        const PERMS: Asked = (Op::GET_PERMS, b"data/t\0");
        const REMOVE: Asked = (Op::RM, b"data/t\0");
        let outside: Asked = (Op::WRITE, b"data/t\0outside");
        let same: Asked = (Op::WRITE, b"data/t\0old");
        let far: Asked = (Op::WRITE, b"data/far\0outside");
        let child: Asked = (Op::WRITE, b"data/t/new\0outside");
        let removed: Asked = (Op::RM, b"data/t\0");
        let cases: [(&str, &[Asked], Asked); 15] = [
            ("reads and writes what is written outside", &[READ, WRITE], outside),
            ("reads what is written outside, and writes another", &[READ, OTHER], outside),
            ("only reads what is written outside", &[READ], outside),
            ("writes what is written outside", &[WRITE], outside),
            ("reads what is written outside with the same value", &[READ, OTHER], same),
            ("writes while others are written outside", &[READ, WRITE], far),
            ("lists where a node is made outside", &[LIST, OTHER], child),
            ("looks for what is made outside", &[MISSING, OTHER], child),
            ("makes what is made outside", &[MAKE], child),
            ("reads what is removed outside", &[READ, OTHER], removed),
            ("writes what is removed outside", &[WRITE], removed),
            ("removes what is removed outside", &[REMOVE], removed),
            ("removes what is written outside", &[REMOVE], outside),
            ("looks at the permissions of what is written outside", &[PERMS, OTHER], outside),
            ("removes that in which a node is made outside", &[REMOVE], child),
        ];
        for (name, inside, (op, payload)) in cases {
            self.must(Op::WRITE, b"data/t\0old");
            self.client.quick(Op::RM, 0, b"data/t/new\0");
            self.must(Op::WRITE, b"data/u\0old");
            let tx = self.start();
            for (op, payload) in inside {
                self.client.quick(*op, tx, payload);
            }
            self.must(op, payload);
            let got = self.client.call(Op::TRANSACTION_END, tx, b"T\0");
            let end = self.told(Op::TRANSACTION_END, tx, &got);
            let values: Vec<String> = [&b"data/t\0"[..], b"data/u\0"]
                .iter()
                .map(|path| {
                    let got = self.client.call(Op::READ, 0, path);
                    self.told(Op::READ, 0, &got)
                })
                .collect();
            self.tell(&format!("a transaction {name}"), format!("{end}, then {}", values.join(", ")));
        }
        self.client.quick(Op::RM, 0, b"data/t\0");
        self.must(Op::RM, b"data/u\0");
        self.must(Op::RM, b"data/far\0");

        let (first, second) = (self.start(), self.start());
        self.must_in(first, Op::WRITE, b"data/t\0first");
        self.must_in(second, Op::WRITE, b"data/t\0second");
        self.step_in("two transactions make a node, the first", first, Op::TRANSACTION_END, b"T\0");
        self.step_in("two transactions make a node, the second", second, Op::TRANSACTION_END, b"T\0");
        self.step("read what two transactions made", Op::READ, b"data/t\0");
        self.must(Op::RM, b"data/t\0");
    }

    /// As many transactions, and operations in one, as a domain may have.
    pub(super) fn transaction_limits(&mut self) {
        let mut open = Vec::new();
        let refused = loop {
            let reply = self.client.quick(Op::TRANSACTION_START, 0, b"\0");
            match number(&reply.payload) {
                Some(tx) if reply.op != Op::ERROR && open.len() < 100 => open.push(tx),
                _ => break self.client.text(&reply.payload),
            }
        };
        self.tell("transaction_start once too often", format!("{refused:?} after {}", open.len()));
        if let Some(tx) = open.pop() {
            self.step_in("transaction_end at the limit", tx, Op::TRANSACTION_END, b"T\0");
        }
        self.step("transaction_start after that", Op::TRANSACTION_START, b"\0");
        self.must(Op::RESET_WATCHES, b"\0");

        let tx = self.start();
        let (mut done, mut refused) = (0, String::new());
        while done < 1500 && refused.is_empty() {
            let reply = self.client.quick(Op::READ, tx, b"domid\0");
            if reply.op == Op::ERROR {
                refused = self.client.text(&reply.payload);
            } else {
                done += 1;
            }
        }
        self.tell("an operation too many in a transaction", format!("{refused:?} after {done}"));
        self.step_in("transaction_end after too many operations", tx, Op::TRANSACTION_END, b"T\0");
        self.step_in("transaction_end without commit after that", tx, Op::TRANSACTION_END, b"F\0");
        self.step_in("read after that", tx, Op::READ, b"domid\0");
        self.must(Op::RESET_WATCHES, b"\0");
        self.step_in("read after reset_watches", tx, Op::READ, b"domid\0");
    }
}
