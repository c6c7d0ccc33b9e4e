//! Nodes: what is a path, reading, writing, listing, removing.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use hypercall::Platform;
use xen_sys::io::xs_wire::XsdSockmsgType as Op;

use super::Script;

impl<P: Platform> Script<'_, P> {
    /// What a path may look like. A good one that leads nowhere is not there; a bad one is invalid.
    pub(super) fn paths(&mut self) {
        self.step("read domid", Op::READ, b"domid\0");
        let home = format!("/local/domain/{}", self.client.id().0);
        self.step("read domid by its absolute path", Op::READ, format!("{home}/domid\0"));
        let paths = [
            ("missing", "data/none"),
            ("missing, below a missing one", "data/none/none"),
            ("empty", ""),
            ("a slash at the end", "data/"),
            ("two slashes", "data//none"),
            ("two slashes at the start", "//none"),
            ("a blank", "data/a b"),
            ("a dot", "data/a.b"),
            ("two dots", "data/.."),
            ("a colon", "data/a:b"),
            ("an at sign", "data/a@b"),
            ("a minus and an underscore", "data/-_"),
            ("a plus", "data/a+b"),
            ("a tilde", "data/~a"),
            ("an asterisk", "data/*"),
            ("a letter that is not ASCII", "data/\u{e4}"),
            ("a special one", "@releaseDomain"),
            ("an unknown special one", "@none"),
            ("a special one below a node", "data/@none"),
        ];
        for (name, path) in paths {
            self.step(&format!("read a path: {name}"), Op::READ, format!("{path}\0"));
        }
        for length in [256, 1000, 1024, 1025, 2048, 2049, 3072, 3073] {
            let path = long_path("data/", length);
            self.step(&format!("read a relative path of {length} bytes"), Op::READ, format!("{path}\0"));
        }
        for length in [1024, 1025, 2048, 2049, 3072, 3073] {
            let path = long_path("/none/", length);
            self.step(&format!("read an absolute path of {length} bytes"), Op::READ, format!("{path}\0"));
        }
        let path = format!("data/{}", "x".repeat(600));
        self.step("read a path with a name of 600 bytes", Op::READ, format!("{path}\0"));
        self.step("read without NUL", Op::READ, b"domid");
        self.step("read with two NULs", Op::READ, b"domid\0\0");
        self.step("read two paths", Op::READ, b"domid\0domid\0");
        self.step("read without payload", Op::READ, b"");
        self.step("read only a NUL", Op::READ, b"\0");
    }

    pub(super) fn writing(&mut self) {
        self.step("write a new node", Op::WRITE, b"data/conf\0value");
        self.step("read it", Op::READ, b"data/conf\0");
        self.step("write another value", Op::WRITE, b"data/conf\0other");
        self.step("read the other value", Op::READ, b"data/conf\0");
        self.step("write an empty value", Op::WRITE, b"data/conf\0");
        self.step("read the empty value", Op::READ, b"data/conf\0");
        self.step("write a value with NULs", Op::WRITE, b"data/conf\0a\0b\0");
        self.step("read the value with NULs", Op::READ, b"data/conf\0");
        self.step("write bytes that are no text", Op::WRITE, b"data/conf\0\xff\x01\xfe");
        self.step("write without NUL", Op::WRITE, b"data/conf");
        self.step("write without payload", Op::WRITE, b"");
        self.step("write to an empty path", Op::WRITE, b"\0value");
        self.step("write to a bad path", Op::WRITE, b"data/a b\0value");
        self.step("write below missing nodes", Op::WRITE, b"data/p/q/r\0deep");
        self.step("read a node that was made on the way", Op::READ, b"data/p/q\0");
        self.step("write a value beside children", Op::WRITE, b"data/p/q\0both");
        self.step("read a value beside children", Op::READ, b"data/p/q\0");
        for length in [2048, 2049, 4000] {
            let payload = format!("data/conf\0{}", "v".repeat(length));
            self.step(&format!("write a value of {length} bytes"), Op::WRITE, payload);
        }
        let payload = format!("data/long/child\0{}", "v".repeat(2049));
        self.step("write a value that is too long below a missing node", Op::WRITE, payload);
        self.step("read the node above that", Op::READ, b"data/long\0");
        self.step("read the node itself", Op::READ, b"data/long/child\0");
        self.step("write to a path that is too long for a node", Op::WRITE, format!("{}\0", long_path("data/", 3000)));
    }

    pub(super) fn directories(&mut self) {
        self.step("mkdir", Op::MKDIR, b"data/dir\0");
        self.step("read a new directory", Op::READ, b"data/dir\0");
        self.step("mkdir again", Op::MKDIR, b"data/dir\0");
        self.step("mkdir of a node with a value", Op::MKDIR, b"data/p/q\0");
        self.step("read a value after mkdir", Op::READ, b"data/p/q\0");
        self.step("mkdir below missing nodes", Op::MKDIR, b"data/dir/a/b\0");
        self.step("mkdir of an empty path", Op::MKDIR, b"\0");
        self.step("mkdir without NUL", Op::MKDIR, b"data/dir");
        self.step("mkdir of two paths", Op::MKDIR, b"data/dir\0data/dir2\0");
        self.must(Op::WRITE, b"data/dir/second\0x");
        self.must(Op::WRITE, b"data/dir/Third\0x");
        self.step("directory", Op::DIRECTORY, b"data/dir\0");
        self.step("directory of a leaf", Op::DIRECTORY, b"data/dir/second\0");
        self.step("directory of a missing node", Op::DIRECTORY, b"data/none\0");
        self.step("directory of an empty path", Op::DIRECTORY, b"\0");
        self.step("directory without NUL", Op::DIRECTORY, b"data/dir");
        self.step("directory of the root", Op::DIRECTORY, b"/\0");
    }

    pub(super) fn removing(&mut self) {
        self.step("rm of a leaf", Op::RM, b"data/dir/second\0");
        self.step("read what was removed", Op::READ, b"data/dir/second\0");
        self.step("rm of what was removed", Op::RM, b"data/dir/second\0");
        self.step("rm below a missing node", Op::RM, b"data/none/none\0");
        self.step("rm of a tree", Op::RM, b"data/dir\0");
        self.step("read below what was removed", Op::READ, b"data/dir/a/b\0");
        self.step("rm of the root", Op::RM, b"/\0");
        self.step("rm of an empty path", Op::RM, b"\0");
        self.step("rm without NUL", Op::RM, b"data/conf");
        self.step("rm of two paths", Op::RM, b"data/conf\0data/p\0");
    }

    /// Nodes of others.
    pub(super) fn forbidden(&mut self) {
        let nodes = [
            ("of domain 0", "/local/domain/0/name"),
            ("of domain 0 that there isn't", "/local/domain/0/none-such"),
            ("of domain 0, below one that there isn't", "/local/domain/0/none-such/none"),
            ("of a domain that there isn't", "/local/domain/4242/name"),
            ("of the root that there isn't", "/none-such"),
            ("in its home that is the toolstack's", "domid"),
            ("in its home that there isn't", "none-such"),
        ];
        for (name, path) in nodes {
            self.step(&format!("read a node {name}"), Op::READ, format!("{path}\0"));
            self.step(&format!("list a node {name}"), Op::DIRECTORY, format!("{path}\0"));
            self.step(&format!("write a node {name}"), Op::WRITE, format!("{path}\0x"));
            self.step(&format!("mkdir of a node {name}"), Op::MKDIR, format!("{path}\0"));
            self.step(&format!("rm of a node {name}"), Op::RM, format!("{path}\0"));
            self.step(&format!("get_perms of a node {name}"), Op::GET_PERMS, format!("{path}\0"));
            let perms = format!("{path}\0n{}\0", self.client.id().0);
            self.step(&format!("set_perms of a node {name}"), Op::SET_PERMS, perms);
        }
        self.step("read the root", Op::READ, b"/\0");
        self.step("write the root", Op::WRITE, b"/\0x");
        self.step("mkdir of the root", Op::MKDIR, b"/\0");
    }

    /// As many nodes as a domain may own, and lists that are longer than a message.
    pub(super) fn limits(&mut self) {
        self.must(Op::MKDIR, b"data/many\0");
        let (mut made, mut refused) = (0, String::new());
        while made < 1200 && refused.is_empty() {
            let reply = self.client.quick(Op::WRITE, 0, format!("data/many/{made:06}\0").as_bytes());
            if reply.op == Op::ERROR {
                refused = self.client.text(&reply.payload);
            }
            made += 1;
        }
        // How many are the toolstack's is its own business.
        let about = if (900..=1000).contains(&made) { "about 1000" } else { "another number" };
        self.tell("write more nodes than a domain may own", format!("{refused:?} after {about}"));
        self.step("mkdir of more nodes than a domain may own", Op::MKDIR, b"data/more\0");
        self.step("write below missing nodes, at the limit", Op::WRITE, b"data/more/and/more\0x");
        self.step("directory of the first of them", Op::DIRECTORY, b"data/more\0");
        self.step("write a node that is there, at the limit", Op::WRITE, b"data/many/000000\0x");
        self.step("directory that is longer than a message", Op::DIRECTORY, b"data/many\0");
        self.step("rm of all of them", Op::RM, b"data/many\0");
        self.step("write a node after that", Op::WRITE, b"data/more\0x");
        self.client.quick(Op::RM, 0, b"data/more\0");
    }

    /// The domain removes the one node in which it may make others.
    pub(super) fn home_is_lost(&mut self) {
        self.step("rm of the own directory", Op::RM, b"data\0");
        self.step("write into the own directory after that", Op::WRITE, b"data/x\0x");
        self.step("directory of the own directory after that", Op::DIRECTORY, b"data\0");
    }
}

/// Returns a path that begins with `start`, is `length` bytes long, and has no long names.
fn long_path(start: &str, length: usize) -> String {
    let mut path: Vec<u8> =
        start.bytes().chain((0..).map(|index| if index % 50 == 49 { b'/' } else { b'x' })).take(length).collect();
    if let Some(last) = path.last_mut() {
        *last = b'x';
    }
    String::from_utf8_lossy(&path).into_owned()
}
