//! The operations that a driver has no use for: what a toolstack tells of domains.

use alloc::string::String;
use alloc::vec::Vec;

use hypercall::event::Polled;
use hypercall::{DomId, Gfn, Platform, Port};
use xen_sys::io::xs_wire::XsdSockmsgType as Op;

use super::codec::Request;
use super::{Cause, StoreError, Tx, XenStore};

impl<P: Platform, E: Polled> XenStore<P, E> {
    /// Returns the home of a domain, `/local/domain/ID`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn home(&self, domain: DomId) -> Result<String, StoreError> {
        let payload = self.about(domain, "get_domain_path", Op::GET_DOMAIN_PATH, "")?;
        let fail = || StoreError { op: "get_domain_path", path: of(domain), cause: Cause::Malformed };
        let text = core::str::from_utf8(payload.strip_suffix(&[0]).unwrap_or(&payload)).map_err(|_| fail())?;
        Ok(text.into())
    }

    /// Tells xenstored of a new domain: the frame of its ring page, and its event channel.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn introduce(&self, domain: DomId, page: Gfn, port: Port) -> Result<(), StoreError> {
        self.about(domain, "introduce", Op::INTRODUCE, &alloc::format!("{}\0{}\0", page.0, port.0)).map(drop)
    }

    /// Tells xenstored that a domain is gone.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn release(&self, domain: DomId) -> Result<(), StoreError> {
        self.about(domain, "release", Op::RELEASE, "").map(drop)
    }

    /// Tells whether xenstored knows a domain.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn is_introduced(&self, domain: DomId) -> Result<bool, StoreError> {
        match self.about(domain, "is_domain_introduced", Op::IS_DOMAIN_INTRODUCED, "")?.first() {
            Some(b'T') => Ok(true),
            Some(b'F') => Ok(false),
            _ => Err(StoreError { op: "is_domain_introduced", path: of(domain), cause: Cause::Malformed }),
        }
    }

    /// Tells xenstored that a domain goes on after a suspend that was cancelled.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn resume(&self, domain: DomId) -> Result<(), StoreError> {
        self.about(domain, "resume", Op::RESUME, "").map(drop)
    }

    /// Lets a domain act with the rights of another.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn set_target(&self, domain: DomId, target: DomId) -> Result<(), StoreError> {
        self.about(domain, "set_target", Op::SET_TARGET, &alloc::format!("{}\0", target.0)).map(drop)
    }

    /// Makes xenstored forget all watches and transactions of this domain, those of whoever ran in it before too.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn reset_watches(&self) -> Result<(), StoreError> {
        self.call("reset_watches", "", Request { op: Op::RESET_WATCHES, tx: Tx::NONE, parts: &[&[0]] }).map(drop)
    }

    /// Gives xenstored a command of its own, and returns what it says.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn control(&self, command: &str) -> Result<Vec<u8>, StoreError> {
        let parts: [&[u8]; 2] = [command.as_bytes(), &[0]];
        self.call("control", command, Request { op: Op::CONTROL, tx: Tx::NONE, parts: &parts })
    }

    fn about(&self, domain: DomId, name: &'static str, op: Op, rest: &str) -> Result<Vec<u8>, StoreError> {
        let payload = alloc::format!("{}\0{rest}", domain.0);
        self.call(name, &of(domain), Request { op, tx: Tx::NONE, parts: &[payload.as_bytes()] })
    }
}

fn of(domain: DomId) -> String {
    alloc::format!("domain {}", domain.0)
}
