//! Copies between own and foreign pages, done by the hypervisor.

use core::fmt;
use core::marker::PhantomData;
use core::mem::MaybeUninit;

use xen_sys::grant_table::{GNTCOPY_dest_gref, GNTCOPY_source_gref, GnttabCopy, GnttabCopyPtr, GnttabCopyPtrU};
use xen_sys::xen::DOMID_SELF;
use xen_sys::{DomId, Gfn, GrantRef, XenPfn};

use super::{GrantStatus, UNTRIED};
use crate::call::grant_table::GrantOpError;
use crate::call::{grant_table as call, sched};
use crate::mem::{Buffer, PAGE_SIZE, Pages};
use crate::platform::{Hypervisor, Platform};

/// Copies of one hypercall.
const MAX: usize = 32;

/// How often a copy is tried again whose frame is being paged in.
const TRIES: usize = 16;

/// A place in a page that another domain granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Foreign {
    /// The domain that granted it.
    pub peer: DomId,
    /// The reference, as the peer named it.
    pub gref: GrantRef,
    /// First byte within the page.
    pub offset: u16,
}

/// A place in memory of our own: part of a page that is borrowed for as long as the copy takes.
#[derive(Clone, Copy, Debug)]
pub struct Local<'a> {
    gfn: Gfn,
    offset: u16,
    /// Bytes from `offset` on that belong to it.
    len: u16,
    life: PhantomData<&'a ()>,
}

impl<'a> Local<'a> {
    /// Names the place at byte `offset` of `pages`, up to the end of that page.
    ///
    /// # Panics
    /// If it does not lie inside.
    pub fn new<P: Platform>(pages: &'a Pages<P>, offset: usize) -> Self {
        let within = offset % PAGE_SIZE;
        let gfn = pages.gfn(offset / PAGE_SIZE);
        Self { gfn, offset: within as u16, len: (PAGE_SIZE - within) as u16, life: PhantomData }
    }

    /// Names the segments of a buffer, in order.
    pub fn segments<B: Buffer>(buffer: &'a B) -> impl Iterator<Item = Self> {
        buffer.segments().map(|segment| Self {
            gfn: segment.gfn,
            offset: segment.offset,
            len: segment.len,
            life: PhantomData,
        })
    }

    /// Returns how many bytes there are.
    pub const fn len(self) -> u16 {
        self.len
    }

    /// Returns the place without its first `bytes`; nothing if it has no more than those.
    #[must_use]
    pub const fn skip(self, bytes: u16) -> Self {
        let bytes = if bytes < self.len { bytes } else { self.len };
        Self { offset: self.offset + bytes, len: self.len - bytes, ..self }
    }

    /// Tells whether there is no byte.
    pub const fn is_empty(self) -> bool {
        self.len == 0
    }
}

/// Why a copy was not taken into a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyError {
    /// The batch is full: run it first.
    Full,
    /// The bytes don't lie in one page, or not in the memory that was named.
    Range {
        /// Bytes to copy.
        len: u16,
    },
}

impl fmt::Display for CopyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => write!(f, "the batch of grant copies is full"),
            Self::Range { len } => write!(f, "a grant copy of {len} bytes leaves its page"),
        }
    }
}

/// Copies to be done in one hypercall. Stands on the stack, and allocates nothing.
pub struct CopyBatch<'a> {
    /// The first `len` are filled in. To fill in the others would cost more than most batches are worth.
    ops: [MaybeUninit<GnttabCopy>; MAX],
    len: usize,
    life: PhantomData<&'a ()>,
}

impl fmt::Debug for CopyBatch<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CopyBatch({} of {})", self.len, Self::MAX)
    }
}

impl Default for CopyBatch<'_> {
    fn default() -> Self {
        Self::new()
    }
}

/// One side of a copy, as Xen takes it.
struct Side {
    ptr: GnttabCopyPtr,
    is_grant: bool,
    /// Bytes that there are.
    room: usize,
}

impl From<Foreign> for Side {
    fn from(place: Foreign) -> Self {
        let u = GnttabCopyPtrU { r#ref: place.gref };
        let room = PAGE_SIZE.saturating_sub(place.offset as usize);
        Self { ptr: GnttabCopyPtr { u, domid: place.peer, offset: place.offset }, is_grant: true, room }
    }
}

impl From<Local<'_>> for Side {
    fn from(place: Local<'_>) -> Self {
        let u = GnttabCopyPtrU { gmfn: XenPfn(place.gfn.0 as usize) };
        let ptr = GnttabCopyPtr { u, domid: DOMID_SELF, offset: place.offset };
        Self { ptr, is_grant: false, room: place.len as usize }
    }
}

impl<'a> CopyBatch<'a> {
    /// Copies that a batch can hold.
    pub const MAX: usize = MAX;

    /// Makes an empty batch.
    #[inline]
    pub const fn new() -> Self {
        Self { ops: [const { MaybeUninit::uninit() }; MAX], len: 0, life: PhantomData }
    }

    /// Returns how many copies are in the batch.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Tells whether there is none.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Tells whether no more fit in.
    pub const fn is_full(&self) -> bool {
        self.len == Self::MAX
    }

    /// Adds a copy of `len` bytes from a peer's page. Returns its index.
    ///
    /// # Errors
    /// [`CopyError`]; the batch is as before then.
    pub fn from_peer(&mut self, from: Foreign, to: Local<'a>, len: u16) -> Result<usize, CopyError> {
        self.add(from.into(), to.into(), len)
    }

    /// Adds a copy of `len` bytes to a peer's page. Returns its index.
    ///
    /// # Errors
    /// [`CopyError`]; the batch is as before then.
    pub fn to_peer(&mut self, from: Local<'a>, to: Foreign, len: u16) -> Result<usize, CopyError> {
        self.add(from.into(), to.into(), len)
    }

    /// Adds a copy of `len` bytes from one peer's page to another's. Returns its index.
    ///
    /// # Errors
    /// [`CopyError`]; the batch is as before then.
    pub fn between(&mut self, from: Foreign, to: Foreign, len: u16) -> Result<usize, CopyError> {
        self.add(from.into(), to.into(), len)
    }

    fn add(&mut self, from: Side, to: Side, len: u16) -> Result<usize, CopyError> {
        if self.is_full() {
            return Err(CopyError::Full);
        }
        if len as usize > from.room || len as usize > to.room {
            return Err(CopyError::Range { len });
        }
        let source_flag = if from.is_grant { GNTCOPY_source_gref } else { 0 };
        let dest_flag = if to.is_grant { GNTCOPY_dest_gref } else { 0 };
        let index = self.len;
        let flags = source_flag | dest_flag;
        self.ops[index].write(GnttabCopy { source: from.ptr, dest: to.ptr, len, flags, status: UNTRIED });
        self.len += 1;
        Ok(index)
    }

    /// Does the copies and empties the batch. `failed` is called once for each copy that was not done, with its index; its
    /// destination may be partly written. Returns how many were done.
    ///
    /// `hypervisor` is that of the domain whose memory the local sides name.
    pub fn run<H: Hypervisor>(&mut self, hypervisor: &H, mut failed: impl FnMut(usize, GrantOpError)) -> usize {
        let mut of: [u8; MAX] = core::array::from_fn(|index| index as u8);
        // SAFETY: `add` has filled in as many.
        let mut ops = unsafe { self.ops[..self.len].assume_init_mut() };
        let mut done = 0;
        for left in (0..TRIES).rev() {
            if ops.is_empty() {
                break;
            }
            // SAFETY: local sides are borrowed pages or buffers, which nobody sees but by atomics.
            let called = unsafe { call::copy(hypervisor, ops) };
            let mut again = 0;
            for at in 0..ops.len() {
                let op = ops[at];
                match (GrantStatus(op.status).ok(), called) {
                    (Ok(()), _) => done += 1,
                    (Err(status), _) if status.is_again() && left > 0 => {
                        ops[again] = GnttabCopy { status: UNTRIED, ..op };
                        of[again] = of[at];
                        again += 1;
                    }
                    (Err(GrantStatus(UNTRIED)), Err(error)) => failed(of[at] as usize, GrantOpError::Xen(error)),
                    (Err(status), _) => failed(of[at] as usize, GrantOpError::Status(status)),
                }
            }
            ops = &mut ops[..again];
            if again > 0 {
                // The pager runs in another domain. Yielding can't fail, and nothing would follow from it.
                let _ = sched::yield_now(hypervisor);
            }
        }
        self.len = 0;
        done
    }
}
