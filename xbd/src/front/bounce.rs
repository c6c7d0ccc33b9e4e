//! Data by way of own pages: for a back end that keeps them mapped, and for one that isn't trusted with the owner's.

use alloc::boxed::Box;

use hypercall::grant::{Access, GrantError, Grants, SharedPages};
use hypercall::mem::{Buffer, PAGE_SIZE, Shared};
use hypercall::{DomId, GrantRef};

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
    list: Box<[Page]>,
    /// First free one, and how many there are.
    vacant: u16,
    free: u16,
    /// Pages of what is over, and that the back end still maps: a chain.
    stuck: u16,
}

struct Page {
    gref: GrantRef,
    /// The next one of the same chain, or the next free one.
    next: u16,
}

impl<G: Grants> Bounce<G> {
    pub(super) fn new(grants: &G, peer: DomId, count: u16, manner: Manner) -> Result<Self, GrantError> {
        let pages = if manner.persistent {
            SharedPages::new(grants, peer, count.into())?
        } else {
            SharedPages::unshared(grants, peer, count.into())?
        };
        let next = |index: u16| if index + 1 < count { index + 1 } else { NONE };
        let list = (0..count).zip(pages.refs()).map(|(index, gref)| Page { gref: *gref, next: next(index) }).collect();
        Ok(Self { pages, manner, list, vacant: if count > 0 { 0 } else { NONE }, free: count, stuck: NONE })
    }

    pub(super) const fn count(&self) -> usize {
        self.list.len()
    }

    pub(super) const fn free(&self) -> usize {
        self.free as usize
    }

    /// Tells whether there are pages that can't be used because the back end still maps them.
    pub(super) const fn is_stuck(&self) -> bool {
        self.stuck != NONE
    }

    /// Takes a page; returns it and its grant, or `None` if none is free. It is granted only by [`share_page`](Self::share_page), unless it
    /// always is.
    #[inline]
    pub(super) fn take_page(&mut self) -> Option<(u16, GrantRef)> {
        let index = self.vacant;
        let page = self.list.get_mut(usize::from(index))?;
        self.vacant = core::mem::replace(&mut page.next, NONE);
        self.free -= 1;
        Some((index, page.gref))
    }

    /// Puts a page back that is not granted, or stays so.
    #[inline]
    pub(super) fn put_page(&mut self, index: u16) {
        if let Some(page) = self.list.get_mut(usize::from(index)) {
            page.next = core::mem::replace(&mut self.vacant, index);
            self.free += 1;
        }
    }

    /// Lets the back end have a page that was taken, for as many bytes as fit into it, those of a buffer's only part if they are to be
    /// written.
    #[inline]
    pub(super) fn share_page<B: Buffer>(&mut self, index: u16, bytes: usize, written: Option<&B>) {
        let mut filled = 0;
        if let Some(part) = written.and_then(|buffer| buffer.parts().next()) {
            filled = part.len().min(bytes);
            self.pages.page(index.into()).copy_from(0, part.slice(0, filled));
        }
        if self.manner.clean {
            self.pages.page(index.into()).clear_from(filled);
        }
        self.share(index, written.is_some());
    }

    /// Grants a page, if it isn't always.
    #[inline]
    fn share(&mut self, index: u16, written: bool) {
        if !self.manner.persistent {
            self.pages.share(index.into(), if written { Access::ReadOnly } else { Access::ReadWrite });
        }
    }

    /// Takes pages for so many bytes, copies into them what is to be written, and gives each to `each` as a segment. Returns the first
    /// of the chain. The caller has seen that enough are free.
    pub(super) fn lend<B: Buffer>(&mut self, bytes: usize, written: Option<&B>, mut each: impl FnMut(Segment)) -> u16 {
        let is_written = written.is_some();
        let mut data = Cursor::new(written.into_iter().flat_map(Buffer::parts));
        // The first of the free ones become the chain.
        let (first, mut last) = (self.vacant, NONE);
        for at in (0..bytes).step_by(PAGE_SIZE) {
            let index = self.vacant;
            let Some(&Page { gref, next }) = self.list.get(usize::from(index)) else { break };
            self.vacant = next;
            self.free -= 1;
            last = index;
            let len = (bytes - at).min(PAGE_SIZE);
            if is_written || self.manner.clean {
                let page = self.pages.page(index.into());
                let filled = data.copy(len, |offset, part| page.copy_from(offset, part));
                if self.manner.clean {
                    page.clear_from(filled);
                }
            }
            self.share(index, is_written);
            if let Some(segment) = Segment::new(gref, 0, (len / SECTOR).saturating_sub(1) as u8) {
                each(segment);
            }
        }
        match self.list.get_mut(usize::from(last)) {
            Some(last) => {
                last.next = NONE;
                first
            }
            None => NONE,
        }
    }

    /// Copies what was read out of a chain of pages. Returns how many bytes.
    pub(super) fn read<B: Buffer>(&self, first: u16, to: &B) -> u64 {
        let mut data = Cursor::new(to.parts());
        let (mut at, mut bytes) = (first, 0);
        while let Some(Page { next, .. }) = self.list.get(usize::from(at)) {
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

    /// Puts a page back that stays granted. If it was read, what is in it is copied into the buffer's only part. Returns how many bytes.
    #[inline(always)]
    pub(super) fn give_back<B: Buffer>(&mut self, index: u16, read: Option<&B>) -> u64 {
        self.put_page(index);
        let Some(part) = read.and_then(|buffer| buffer.parts().next()) else { return 0 };
        let len = part.len().min(PAGE_SIZE);
        part.copy_from(0, self.pages.page(index.into()).slice(0, len));
        len as u64
    }

    /// Takes the pages of a chain back. Returns how many of them the back end still maps, which are lacking until it lets go.
    pub(super) fn end(&mut self, first: u16) -> u64 {
        let (mut at, mut stuck) = (first, 0);
        while let Some(page) = self.list.get_mut(usize::from(at)) {
            let index = core::mem::replace(&mut at, page.next);
            if self.manner.persistent || self.pages.end(index.into()).is_ok() {
                self.put_page(index);
            } else {
                page.next = core::mem::replace(&mut self.stuck, index);
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
