//! Operations that are not about nodes, those that a domain may not ask for, and those that there aren't.

use alloc::format;
use alloc::vec::Vec;

use hypercall::Platform;
use xen_sys::io::xs_wire::XsdSockmsgType as Op;

use super::Script;

impl<P: Platform> Script<'_, P> {
    pub(super) fn others(&mut self) {
        let me = self.client.id().0;
        self.step("get_domain_path", Op::GET_DOMAIN_PATH, format!("{me}\0"));
        self.step("get_domain_path of no such domain", Op::GET_DOMAIN_PATH, b"4242\0");
        self.step("get_domain_path of no domain's number", Op::GET_DOMAIN_PATH, b"99999\0");
        self.step("get_domain_path of no number", Op::GET_DOMAIN_PATH, b"word\0");
        self.step("get_domain_path of a negative number", Op::GET_DOMAIN_PATH, b"-1\0");
        self.step("get_domain_path without NUL", Op::GET_DOMAIN_PATH, b"0");
        self.step("get_domain_path without payload", Op::GET_DOMAIN_PATH, b"");
        self.step("is_domain_introduced", Op::IS_DOMAIN_INTRODUCED, format!("{me}\0"));
        self.step("introduce", Op::INTRODUCE, b"4242\x001\x001\0");
        self.step("introduce without arguments", Op::INTRODUCE, b"\0");
        self.step("release", Op::RELEASE, b"4242\0");
        self.step("release of itself", Op::RELEASE, format!("{me}\0"));
        self.step("resume", Op::RESUME, format!("{me}\0"));
        self.step("set_target", Op::SET_TARGET, format!("{me}\x000\0"));
        self.step("control", Op::CONTROL, b"print\0hello\0");
        self.step("control without command", Op::CONTROL, b"\0");
        let tx = self.start();
        self.step_in("is_domain_introduced in a transaction", tx, Op::IS_DOMAIN_INTRODUCED, format!("{me}\0"));
        self.step_in("reset_watches in a transaction", tx, Op::RESET_WATCHES, b"\0");
        self.step("reset_watches without payload", Op::RESET_WATCHES, b"");
        self.step("reset_watches with a word", Op::RESET_WATCHES, b"word\0");
        self.must(Op::RESET_WATCHES, b"\0");
        for number in [15, 16, 20, 23, 24, 25, 26, 27, 99, 65535, u32::MAX] {
            self.step(&format!("operation {number}"), Op(number), b"data\0");
        }
    }

    /// Requests that come together, and one that comes in pieces.
    pub(super) fn streams(&mut self) {
        self.must(Op::WATCH, b"data/s\0s\0");
        let requests = [(Op::WRITE, &b"data/s\0first"[..]), (Op::READ, b"data/s\0"), (Op::WRITE, b"data/s\0second")];
        for (op, payload) in requests {
            self.client.send(op, 0, payload);
        }
        let last = self.client.send(Op::GET_DOMAIN_PATH, 0, b"0\0");
        let mut told = Vec::new();
        loop {
            let message = self.client.receive();
            if message.id == last {
                break;
            }
            told.push(self.client.text(&message.payload));
        }
        self.tell("three requests at once", told.join(" "));
        self.must(Op::RESET_WATCHES, b"\0");
        let pieces: [&[u8]; 3] = [b"dat", b"a/", b"s\0"];
        let id = self.client.send_pieces(Op::READ, &pieces);
        let reply = self.client.reply(id).1;
        let text = self.client.text(&reply.payload);
        self.tell("a request in pieces", text);
        self.must(Op::RM, b"data/s\0");
    }

    /// A message that is longer than may be. After that nobody knows where the next begins.
    pub(super) fn oversize(&mut self) {
        let home = format!("data/{}\0", "v".repeat(4096 - 6));
        self.step("read with a payload of 4096 bytes", Op::READ, home);
        self.client.send_header(Op::READ, 1, 0, 4097, b"domid\0");
        let silence = self.client.silence();
        self.tell("a message of 4097 bytes", silence);
    }
}
