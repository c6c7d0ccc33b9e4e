//! Permissions: who owns a node, who may read and write it, and how that is changed.

use alloc::format;
use alloc::string::String;

use hypercall::Platform;
use xen_sys::io::xs_wire::XsdSockmsgType as Op;

use super::Script;

impl<P: Platform> Script<'_, P> {
    pub(super) fn permissions(&mut self) {
        let me = self.client.id().0;
        self.step("get_perms of the own directory", Op::GET_PERMS, b"data\0");
        self.must(Op::WRITE, b"data/perm\0x");
        self.step("get_perms of a new node", Op::GET_PERMS, b"data/perm\0");
        self.step("get_perms of an empty path", Op::GET_PERMS, b"\0");
        self.step("get_perms of a missing node", Op::GET_PERMS, b"data/none\0");
        self.step("get_perms without NUL", Op::GET_PERMS, b"data/perm");
        self.set_perms("set_perms", &format!("n{me}\0r0\0"));
        self.set_perms("set_perms with all letters", &format!("b{me}\0n5\0r6\0w7\0"));
        self.set_perms("set_perms for the same domain twice", &format!("n{me}\0r5\0w5\0"));
        self.must(Op::MKDIR, b"data/perm/child\0");
        self.step("get_perms of a child", Op::GET_PERMS, b"data/perm/child\0");
        let bad = [
            ("without permissions", String::new()),
            ("with an empty one", String::from("\0")),
            ("with an unknown letter", format!("x{me}\0")),
            ("with a capital letter", format!("N{me}\0")),
            ("without a number", String::from("n\0")),
            ("with a word for a number", String::from("nfoo\0")),
            ("without a NUL at the end", format!("n{me}\0r5")),
            ("with an empty one in between", format!("n{me}\0\0r5\0")),
            ("with another owner", String::from("n0\0")),
            ("with another owner, itself behind", format!("n0\0b{me}\0")),
        ];
        for (name, perms) in bad {
            self.set_perms(&format!("set_perms {name}"), &perms);
            self.must(Op::SET_PERMS, format!("data/perm\0n{me}\0"));
        }
        for count in [5, 6, 20] {
            let readers: String = (1..count).map(|index| format!("r{}\0", 100 + index)).collect();
            self.set_perms(&format!("set_perms with {count}"), &format!("n{me}\0{readers}"));
        }
        self.step("set_perms of a missing node", Op::SET_PERMS, format!("data/none\0n{me}\0"));
        self.step("set_perms of an empty path", Op::SET_PERMS, format!("\0n{me}\0"));
        self.must(Op::RM, b"data/perm\0");
    }

    /// Sets the permissions of a node, and tells what they are then.
    fn set_perms(&mut self, step: &str, perms: &str) {
        let got = self.client.call(Op::SET_PERMS, 0, format!("data/perm\0{perms}").as_bytes());
        let set = self.told(Op::SET_PERMS, 0, &got);
        let got = self.client.call(Op::GET_PERMS, 0, b"data/perm\0");
        let now = self.told(Op::GET_PERMS, 0, &got);
        self.tell(step, format!("{set}, then {now}"));
    }
}
