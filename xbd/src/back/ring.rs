//! A ring of either layout.

use hypercall::{DomId, GrantRef, Platform};
use xenbus::ring::{BackRing, MapPagesError, MappedPages, Notify, RingError, RingPages};

use crate::features::Abi;
use crate::protocol::{Answer, Direct, Layout, Malformed, Request, X86_32, X86_64};

type Pages<P, L> = RingPages<MappedPages<P>, <L as Layout>::Request, <L as Layout>::Response>;

/// The back end's half of a ring, in the layout that the front end speaks, with the request that was taken last.
pub(super) enum Ring<P: Platform> {
    X86_64(BackRing<Pages<P, X86_64>>, <X86_64 as Layout>::Request),
    X86_32(BackRing<Pages<P, X86_32>>, <X86_32 as Layout>::Request),
}

/// Does the same to a ring of either layout.
macro_rules! either {
    ($self:expr, $ring:ident => $what:expr) => {
        match $self {
            Ring::X86_64($ring, _) => $what,
            Ring::X86_32($ring, _) => $what,
        }
    };
}

impl<P: Platform> Ring<P> {
    /// Maps the ring whose pages are these.
    pub(super) fn new(platform: &P, peer: DomId, refs: &[GrantRef], abi: Abi) -> Result<Self, MapPagesError> {
        let pages = MappedPages::new(platform, peer, refs)?;
        Ok(match abi {
            Abi::X86_64 => Self::X86_64(BackRing::attach(RingPages::new(pages)), Default::default()),
            Abi::X86_32 => Self::X86_32(BackRing::attach(RingPages::new(pages)), Default::default()),
        })
    }

    /// Returns how many slots there are.
    pub(super) const fn size(&self) -> u32 {
        either!(self, ring => ring.size())
    }

    /// Returns how many requests there are, as [`BackRing::ready`] does.
    #[inline]
    pub(super) fn ready(&mut self) -> Result<u32, RingError> {
        either!(self, ring => ring.ready())
    }

    /// Takes the next request, as [`BackRing::pop_into`] does; `None` if there is none. Returns what it is if it reads or writes, by
    /// segments that are in it; they are not checked.
    #[inline(always)]
    pub(super) fn pop(&mut self) -> Result<Option<Option<Direct<'_>>>, RingError> {
        Ok(match self {
            Self::X86_64(ring, raw) => ring.pop_into(raw)?.then(|| X86_64::direct(raw)),
            Self::X86_32(ring, raw) => ring.pop_into(raw)?.then(|| X86_32::direct(raw)),
        })
    }

    /// Checks the request that was taken last, whatever it is.
    #[cold]
    pub(super) fn parse(&self) -> Result<Request, Malformed> {
        match self {
            Self::X86_64(_, raw) => X86_64::parse(raw),
            Self::X86_32(_, raw) => X86_32::parse(raw),
        }
    }

    /// Writes an answer. Each belongs to a request that was taken, so there is room for it.
    #[inline]
    pub(super) fn respond(&mut self, answer: &Answer) {
        let _ = match self {
            Self::X86_64(ring, _) => ring.respond(&X86_64::respond(answer)),
            Self::X86_32(ring, _) => ring.respond(&X86_32::respond(answer)),
        };
    }

    /// Shows the answers, as [`BackRing::publish`] does.
    pub(super) fn publish(&mut self) -> Notify {
        either!(self, ring => ring.publish())
    }

    /// Shows the answers and asks for an event, as [`BackRing::publish_and_arm`] does.
    pub(super) fn publish_and_arm(&mut self) -> (Notify, Result<bool, RingError>) {
        either!(self, ring => ring.publish_and_arm())
    }
}
