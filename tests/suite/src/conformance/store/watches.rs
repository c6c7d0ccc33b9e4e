//! Watches: when they fire, what they say, and how they are set and unset.

use alloc::format;
use alloc::string::String;

use hypercall::Platform;
use xen_sys::io::xs_wire::XsdSockmsgType as Op;

use super::Script;

impl<P: Platform> Script<'_, P> {
    pub(super) fn watches(&mut self) {
        self.must(Op::WRITE, b"data/w\0x");
        let home = format!("/local/domain/{}", self.client.id().0);
        self.step("watch", Op::WATCH, b"data/w\0token\0");
        self.step("watch again", Op::WATCH, b"data/w\0token\0");
        self.step("watch with another token", Op::WATCH, b"data/w\0second\0");
        self.step("watch the absolute path with the same token", Op::WATCH, format!("{home}/data/w\0token\0"));
        self.step("watch the absolute path", Op::WATCH, format!("{home}/data/w\0absolute\0"));
        self.step("write what is watched", Op::WRITE, b"data/w\0y");
        self.step("unwatch", Op::UNWATCH, b"data/w\0second\0");
        self.step("unwatch again", Op::UNWATCH, b"data/w\0second\0");
        self.step("unwatch with an unknown token", Op::UNWATCH, b"data/w\0none\0");
        self.step("unwatch a path that is not watched", Op::UNWATCH, b"data/none\0token\0");
        self.step("unwatch by the absolute path", Op::UNWATCH, format!("{home}/data/w\0token\0"));
        self.step("write what is watched less", Op::WRITE, b"data/w\0z");
        self.step("reset_watches", Op::RESET_WATCHES, b"\0");
        self.step("write what was watched", Op::WRITE, b"data/w\0z");
        self.step("unwatch after reset_watches", Op::UNWATCH, b"data/w\0absolute\0");
        let watches = [
            ("a missing node", &b"data/none\0a\0"[..]),
            ("below a missing node", b"data/none/none\0a\0"),
            ("a node of domain 0", b"/local/domain/0/name\0a\0"),
            ("an empty path", b"\0a\0"),
            ("a path with a blank", b"data/a b\0a\0"),
            ("a path that ends with a slash", b"data/\0a\0"),
            ("with an empty token", b"data/w\0\0"),
            ("without a token", b"data/w\0"),
            ("without NUL behind the token", b"data/w\0unended"),
            ("with a third string", b"data/w\0a\0b\0"),
            ("without payload", b""),
            ("@releaseDomain", b"@releaseDomain\0a\0"),
            ("@introduceDomain", b"@introduceDomain\0a\0"),
            ("@releaseDomain of a domain", b"@releaseDomain/1\0a\0"),
            ("an unknown special path", b"@none\0a\0"),
            ("the root", b"/\0a\0"),
        ];
        for (name, payload) in watches {
            self.step(&format!("watch {name}"), Op::WATCH, payload);
            self.must(Op::RESET_WATCHES, b"\0");
        }
        for length in [1024, 2048, 3072] {
            let path = format!("data/{}", "x/".repeat((length - 6) / 2));
            let payload = format!("{path}x\0a\0");
            self.step(&format!("watch a path of {length} bytes"), Op::WATCH, payload);
            self.must(Op::RESET_WATCHES, b"\0");
        }
        self.step("watch with a token of 3000 bytes", Op::WATCH, format!("data/w\0{}\0", "t".repeat(3000)));
        self.must(Op::RESET_WATCHES, b"\0");
        for (name, payload) in [
            ("unwatch without a token", &b"data/w\0"[..]),
            ("unwatch an empty path", b"\0a\0"),
            ("unwatch without payload", b""),
        ] {
            self.step(name, Op::UNWATCH, payload);
        }
        let tx = self.start();
        self.step_in("watch in a transaction", tx, Op::WATCH, b"data/w\0tx\0");
        self.step_in("unwatch in a transaction", tx, Op::UNWATCH, b"data/w\0tx\0");
        self.must(Op::RESET_WATCHES, b"\0");
    }

    /// Which changes fire a watch, and by what path.
    pub(super) fn watched_changes(&mut self) {
        let me = self.client.id().0;
        self.must(Op::WRITE, b"data/w\0x");
        self.must(Op::WATCH, b"data/w\0w\0");
        self.step("watched: write a child", Op::WRITE, b"data/w/child\0x");
        self.step("watched: write a child again", Op::WRITE, b"data/w/child\0x");
        self.step("watched: write below missing nodes", Op::WRITE, b"data/w/a/b/c\0x");
        self.step("watched: mkdir", Op::MKDIR, b"data/w/dir\0");
        self.step("watched: mkdir again", Op::MKDIR, b"data/w/dir\0");
        self.step("watched: set_perms", Op::SET_PERMS, format!("data/w/dir\0n{me}\0r5\0"));
        self.step("watched: set_perms to the same", Op::SET_PERMS, format!("data/w/dir\0n{me}\0r5\0"));
        self.step("watched: rm a leaf", Op::RM, b"data/w/child\0");
        self.step("watched: rm what is not there", Op::RM, b"data/w/child\0");
        self.step("watched: rm a tree", Op::RM, b"data/w/a\0");
        self.step("watched: a node whose name begins the same", Op::WRITE, b"data/w2\0x");
        self.step("watched: write above", Op::WRITE, b"data\0x");
        self.step("watched: set_perms above", Op::SET_PERMS, format!("data\0n{me}\0"));
        self.step("watched: a refused write", Op::WRITE, b"name\0x");
        self.must(Op::WATCH, b"data/w/dir/deep\0deep\0");
        self.step("watched: rm above", Op::RM, b"data/w\0");
        self.step("watched: make it again", Op::WRITE, b"data/w\0x");
        self.step("watched: make what is below again", Op::WRITE, b"data/w/dir/deep\0x");
        let tx = self.start();
        self.step_in("watched: write in a transaction", tx, Op::WRITE, b"data/w\0y");
        self.must_in(tx, Op::WRITE, b"data/w\0z");
        self.must_in(tx, Op::WRITE, b"data/w/one\0y");
        self.must_in(tx, Op::RM, b"data/w/dir\0");
        self.step_in("watched: commit", tx, Op::TRANSACTION_END, b"T\0");
        let tx = self.start();
        self.must_in(tx, Op::WRITE, b"data/w\0y");
        self.must_in(tx, Op::RM, b"data/w/one\0");
        self.step_in("watched: give a transaction up", tx, Op::TRANSACTION_END, b"F\0");
        let tx = self.start();
        self.must_in(tx, Op::READ, b"data/w\0");
        self.must_in(tx, Op::WRITE, b"data/w/two\0y");
        self.step("watched: write while a transaction looks", Op::WRITE, b"data/w\0outside");
        self.step_in("watched: a commit that comes too late", tx, Op::TRANSACTION_END, b"T\0");
        self.must(Op::RESET_WATCHES, b"\0");
        self.must(Op::RM, b"data/w\0");
        self.must(Op::RM, b"data/w2\0");
    }

    /// As many watches as a domain may have.
    pub(super) fn watch_limits(&mut self) {
        let (mut set, mut refused) = (0, String::new());
        while set < 300 && refused.is_empty() {
            let reply = self.client.quick(Op::WATCH, 0, format!("data/w{set}\0t\0").as_bytes());
            if reply.op == Op::ERROR {
                refused = self.client.text(&reply.payload);
            } else {
                set += 1;
            }
        }
        self.must(Op::UNWATCH, b"data/w0\0t\0");
        self.tell("watch once too often", format!("{refused:?} after {set}"));
        self.step("watch after that", Op::WATCH, b"data/w0\0t\0");
        self.must(Op::RESET_WATCHES, b"\0");
    }
}
