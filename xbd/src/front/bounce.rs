//! Data by way of own pages: for a back end that keeps them mapped, and for one that isn't trusted with the owner's.

use alloc::boxed::Box;
use alloc::vec;

use hypercall::grant::{Access, GrantError, Grants, SharedPages};
use hypercall::mem::{Buffer, PAGE_SIZE, Shared};
use hypercall::{DomId, GrantRef};

use super::numbers::Numbers;
use crate::SECTOR;
use crate::protocol::Segment;

/// The end of a chain.
pub(super) const NONE: u16 = u16::MAX;

/// How own pages are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Manner {
    /// They stay granted. Else each is granted for the time of a request, and taken back.
    pub(super) persistent: bool,
    /// Nothing but the sectors of a request may be in them.
    pub(super) clean: bool,
}

/// Own pages, those of an I/O in a chain.
pub(super) struct Bounce<G: Grants> {
    pages: SharedPages<G>,
    manner: Manner,
    free: Numbers,
    /// The next page of the same chain.
    next: Box<[u16]>,
    /// Pages of what is over, and that the back end still maps: a chain.
    stuck: u16,
}

impl<G: Grants> Bounce<G> {
    pub(super) fn new(grants: &G, peer: DomId, count: u16, manner: Manner) -> Result<Self, GrantError> {
        let pages = if manner.persistent {
            SharedPages::new(grants, peer, count.into())?
        } else {
            SharedPages::unshared(grants, peer, count.into())?
        };
        let next = vec![NONE; count.into()].into();
        Ok(Self { pages, manner, free: Numbers::new(count), next, stuck: NONE })
    }

    pub(super) const fn count(&self) -> usize {
        self.free.count()
    }

    pub(super) const fn free(&self) -> usize {
        self.free.free()
    }

    /// Tells whether there are pages that can't be used because the back end still maps them.
    pub(super) const fn is_stuck(&self) -> bool {
        self.stuck != NONE
    }

    /// Takes a page for as many bytes as fit into one, as [`lend`](Self::lend) takes more; returns it and its grant, or `None` if none is
    /// free.
    pub(super) fn lend_page<B: Buffer>(&mut self, bytes: usize, written: Option<&B>) -> Option<(u16, GrantRef)> {
        let index = self.free.take()?;
        let mut filled = 0;
        let page = self.pages.page(index.into());
        for part in written.into_iter().flat_map(Buffer::parts) {
            let part = part.slice(0, part.len().min(bytes - filled));
            page.copy_from(filled, part);
            filled += part.len();
        }
        if self.manner.clean {
            page.clear_from(filled);
        }
        let access = if written.is_some() { Access::ReadOnly } else { Access::ReadWrite };
        self.pages.share(index.into(), access);
        self.next[usize::from(index)] = NONE;
        Some((index, self.pages.refs()[usize::from(index)]))
    }

    /// Takes pages for so many bytes, copies into them what is to be written, and gives each to `each` as a segment. Returns the first
    /// of the chain. The caller has seen that enough are free.
    pub(super) fn lend<B: Buffer>(&mut self, bytes: usize, written: Option<&B>, mut each: impl FnMut(Segment)) -> u16 {
        let access = if written.is_some() { Access::ReadOnly } else { Access::ReadWrite };
        let mut data = Cursor::new(written.into_iter().flat_map(Buffer::parts));
        let (mut first, mut last) = (NONE, NONE);
        for at in (0..bytes).step_by(PAGE_SIZE) {
            let Some(index) = self.free.take() else { break };
            let len = (bytes - at).min(PAGE_SIZE);
            let page = self.pages.page(index.into());
            let filled = data.copy(len, |offset, part| page.copy_from(offset, part));
            if self.manner.clean {
                page.clear_from(filled);
            }
            self.pages.share(index.into(), access);
            match self.next.get_mut(usize::from(last)) {
                Some(last) => *last = index,
                None => first = index,
            }
            self.next[usize::from(index)] = NONE;
            last = index;
            let gref = self.pages.refs()[usize::from(index)];
            if let Some(segment) = Segment::new(gref, 0, (len / SECTOR).saturating_sub(1) as u8) {
                each(segment);
            }
        }
        first
    }

    /// Copies what was read out of a chain of pages. Returns how many bytes.
    pub(super) fn read<B: Buffer>(&self, first: u16, to: &B) -> u64 {
        let mut data = Cursor::new(to.parts());
        let (mut at, mut bytes) = (first, 0);
        while let Some(next) = self.next.get(usize::from(at)) {
            let page = self.pages.page(at.into());
            bytes += data.copy(PAGE_SIZE, |offset, part| part.copy_from(0, page.slice(offset, part.len()))) as u64;
            at = *next;
        }
        bytes
    }

    /// Tells whether pages stay granted.
    pub(super) const fn is_persistent(&self) -> bool {
        self.manner.persistent
    }

    /// Copies what was read out of a page. Returns how many bytes.
    pub(super) fn read_page<B: Buffer>(&self, page: u16, to: &B) -> u64 {
        let page = self.pages.page(page.into());
        let mut done = 0;
        for part in to.parts() {
            let len = part.len().min(page.len() - done);
            part.copy_from(0, page.slice(done, len));
            done += len;
        }
        done as u64
    }

    /// Takes back a page that stays granted.
    pub(super) fn put_page(&mut self, page: u16) {
        self.free.put(page);
    }

    /// Takes the pages of a chain back. Returns how many of them the back end still maps, which are lacking until it lets go.
    pub(super) fn end(&mut self, first: u16) -> u64 {
        let (mut at, mut stuck) = (first, 0);
        while let Some(next) = self.next.get_mut(usize::from(at)) {
            let index = at;
            if self.manner.persistent || self.pages.end(index.into()).is_ok() {
                at = *next;
                self.free.put(index);
            } else {
                at = core::mem::replace(next, self.stuck);
                self.stuck = index;
                stuck += 1;
            }
        }
        stuck
    }

    /// Tries once more to take back what the back end still mapped.
    pub(super) fn retry(&mut self) {
        let stuck = core::mem::replace(&mut self.stuck, NONE);
        self.end(stuck);
    }
}

/// A place in the bytes of a buffer.
struct Cursor<'a, I: Iterator<Item = Shared<'a>>> {
    parts: I,
    /// What is left of the part at hand.
    part: Shared<'a>,
}

impl<'a, I: Iterator<Item = Shared<'a>>> Cursor<'a, I> {
    const fn new(parts: I) -> Self {
        Self { parts, part: Shared::EMPTY }
    }

    /// Gives the next `len` bytes to `piece`, or what is left of them, piece by piece with its place among them. Returns how many.
    fn copy(&mut self, len: usize, mut piece: impl FnMut(usize, Shared<'a>)) -> usize {
        let mut done = 0;
        while done < len {
            if self.part.is_empty() {
                match self.parts.next() {
                    Some(part) => self.part = part,
                    None => break,
                }
            }
            let now = self.part.len().min(len - done);
            piece(done, self.part.slice(0, now));
            self.part = self.part.slice(now, self.part.len() - now);
            done += now;
        }
        done
    }
}
