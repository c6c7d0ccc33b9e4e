//! A store whose nodes say what the fuzzer wants.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use xen_sys::io::xs_wire::XsdSockmsgType as Op;
use xenbus::store::{Cause, Errno, Request, Store, StoreError, WatchId};

use crate::input::Input;

/// The other end's home, where it has to be.
pub const OTHER: &str = "/local/domain/1/other";

/// A store in which the two nodes that name the other end are right, and every other node says what comes next.
#[derive(Clone)]
pub struct Texts(Rc<Inner>);

struct Inner {
    rest: RefCell<Vec<u8>>,
    at: Cell<usize>,
}

/// Words that nodes do say, so that the fuzzer need not find them out.
const WORDS: &[&[u8]] = &[
    b"0",
    b"1",
    b"2",
    b"3",
    b"4",
    b"8",
    b"16",
    b"512",
    b"4096",
    b"4097",
    b"65536",
    b"x86_64-abi",
    b"x86_32-abi",
    b"w",
    b"r",
    b"cdrom",
    b"4294967295",
    b"4294967296",
    b"18446744073709551615",
    b"-1",
    b"",
    b" 1",
    b"0x10",
    b"\xff\xfe",
    b"1\0",
];

impl Texts {
    /// Makes a store of an input.
    pub fn new(input: Input<'_>) -> Self {
        Self(Rc::new(Inner { rest: RefCell::new(input.0.to_vec()), at: Cell::new(0) }))
    }

    fn next(&self) -> Result<Vec<u8>, Cause> {
        let rest = self.0.rest.borrow();
        let mut input = Input(&rest[self.0.at.get().min(rest.len())..]);
        let before = input.0.len();
        let said = match input.byte() {
            0..=63 => Err(Cause::Refused(Errno::Noent)),
            64 => Err(Cause::Refused(Errno::Acces)),
            65 => Err(Cause::TimedOut(5)),
            66..=95 => {
                let count = input.byte() % 24;
                Ok(input.bytes(count.into()).to_vec())
            }
            choice => Ok(WORDS[usize::from(choice) % WORDS.len()].to_vec()),
        };
        self.0.at.set(self.0.at.get() + before - input.0.len());
        said
    }
}

impl Store for Texts {
    fn request(&self, request: &Request<'_>) -> Result<Vec<u8>, Cause> {
        if request.op != Op::READ {
            // Written is written; a transaction has a number.
            return Ok(if request.op == Op::TRANSACTION_START { b"1\0".to_vec() } else { b"OK\0".to_vec() });
        }
        let path: Vec<u8> = request.parts.concat();
        match path.strip_suffix(b"\0").unwrap_or(&path).rsplit(|byte| *byte == b'/').next() {
            Some(b"backend" | b"frontend") => Ok(OTHER.into()),
            Some(b"backend-id" | b"frontend-id") => Ok(b"1".to_vec()),
            _ => self.next(),
        }
    }

    fn watch(&self, _: &str) -> Result<WatchId, StoreError> {
        Ok(WatchId(0))
    }

    fn unwatch(&self, _: WatchId) -> Result<(), StoreError> {
        Ok(())
    }

    fn fired(&self, _: WatchId) -> bool {
        true
    }
}
