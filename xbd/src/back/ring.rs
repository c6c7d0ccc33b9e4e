//! A ring of either layout.

use hypercall::{DomId, GrantRef, Platform};
use xenbus::ring::{BackRing, MapPagesError, MappedPages, Notify, RingError, RingPages};

use crate::features::Abi;
use crate::protocol::{Answer, Layout, Malformed, Request, X86_32, X86_64};

type Pages<P, L> = RingPages<MappedPages<P>, <L as Layout>::Request, <L as Layout>::Response>;

/// The back end's half of a ring, in the layout that the front end speaks.
pub(super) enum Ring<P: Platform> {
    X86_64(BackRing<Pages<P, X86_64>>),
    X86_32(BackRing<Pages<P, X86_32>>),
}

/// Does the same to a ring of either layout.
macro_rules! either {
    ($self:expr, $ring:ident => $what:expr) => {
        match $self {
            Ring::X86_64($ring) => $what,
            Ring::X86_32($ring) => $what,
        }
    };
}

impl<P: Platform> Ring<P> {
    /// Maps the ring whose pages are these.
    pub(super) fn new(platform: &P, peer: DomId, refs: &[GrantRef], abi: Abi) -> Result<Self, MapPagesError> {
        let pages = MappedPages::new(platform, peer, refs)?;
        Ok(match abi {
            Abi::X86_64 => Self::X86_64(BackRing::attach(RingPages::new(pages))),
            Abi::X86_32 => Self::X86_32(BackRing::attach(RingPages::new(pages))),
        })
    }

    /// Returns how many slots there are.
    pub(super) const fn size(&self) -> u32 {
        either!(self, ring => ring.size())
    }

    /// Takes the next request, as [`BackRing::pop`] does.
    #[inline]
    pub(super) fn pop(&mut self) -> Result<Option<Result<Request, Malformed>>, RingError> {
        Ok(match self {
            Self::X86_64(ring) => ring.pop()?.map(|raw| X86_64::parse(&raw)),
            Self::X86_32(ring) => ring.pop()?.map(|raw| X86_32::parse(&raw)),
        })
    }

    /// Writes an answer. Each belongs to a request that was taken, so there is room for it.
    #[inline]
    pub(super) fn respond(&mut self, answer: &Answer) {
        let _ = match self {
            Self::X86_64(ring) => ring.respond(&X86_64::respond(answer)),
            Self::X86_32(ring) => ring.respond(&X86_32::respond(answer)),
        };
    }

    /// Shows the answers, as [`BackRing::publish`] does.
    pub(super) fn publish(&mut self) -> Notify {
        either!(self, ring => ring.publish())
    }

    /// Asks for an event, as [`BackRing::arm`] does.
    pub(super) fn arm(&mut self) -> Result<bool, RingError> {
        either!(self, ring => ring.arm())
    }
}
