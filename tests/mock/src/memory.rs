//! The machine's memory: frames, who has which, and how the hypervisor itself sees them.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::collections::BTreeMap;
use std::ptr::NonNull;

use hypercall::mem::{PAGE_SIZE, Shared};
use hypercall::{DomId, Mfn};
use rand::Rng;
use rand::rngs::SmallRng;

/// What the machine's memory is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// One memory file; each domain has an address range of its own, into which frames are mapped. A granted page that was
    /// unmapped faults when it is touched.
    Mapped,
    /// Blocks of the heap, and grant mappings by table: what Miri can run. A page is seen at [`Platform::mapped`], and
    /// nothing faults.
    ///
    /// [`Platform::mapped`]: hypercall::Platform::mapped
    Plain,
}

/// Machine frames begin here, so that no frame number is a page number of a domain.
pub(crate) const FIRST_MFN: u64 = 0x10_0000;

/// All frames of the machine.
pub(crate) struct Frames {
    backing: Seen,
    /// Frames that nobody has, as offsets from [`FIRST_MFN`].
    free: Vec<u32>,
    /// The frame that was handed out last.
    last: u32,
    /// Heap pages that the hypervisor shares with domains.
    shared: Vec<NonNull<u8>>,
    /// Whose each frame is.
    owners: Vec<Option<DomId>>,
}

/// How the hypervisor sees a frame.
enum Seen {
    /// All of them in a row at `view`, through the memory file `fd`.
    File { fd: std::os::fd::OwnedFd, view: NonNull<u8> },
    /// Each where its owner's block of the heap has it.
    Heap(BTreeMap<u64, NonNull<u8>>),
}

impl Seen {
    fn heap(&mut self) -> &mut BTreeMap<u64, NonNull<u8>> {
        match self {
            Self::Heap(pages) => pages,
            Self::File { .. } => unreachable!("a heap page in a machine with a memory file"),
        }
    }
}

// SAFETY: the pointers are to memory that the machine owns and that moves with it; all access to it by the hypervisor is
// made under the machine's lock or through atomics.
unsafe impl Send for Frames {}

impl Frames {
    /// Makes a machine of `total` frames.
    pub(crate) fn new(backing: Backing, total: u32) -> Self {
        let backing = match backing {
            Backing::Mapped => {
                let (fd, view) = file(total as usize * PAGE_SIZE);
                Seen::File { fd, view }
            }
            Backing::Plain => Seen::Heap(BTreeMap::new()),
        };
        Self { backing, free: (0..total).collect(), last: 0, shared: Vec::new(), owners: vec![None; total as usize] }
    }

    /// Tells what the memory is made of.
    pub(crate) fn backing(&self) -> Backing {
        match self.backing {
            Seen::File { .. } => Backing::Mapped,
            Seen::Heap(_) => Backing::Plain,
        }
    }

    /// Returns the number after that of the machine's last frame.
    pub(crate) fn end(&self) -> u64 {
        FIRST_MFN + self.owners.len() as u64
    }

    /// Returns whose a frame is; nobody's if the machine has no such frame.
    pub(crate) fn owner(&self, mfn: Mfn) -> Option<DomId> {
        let index = usize::try_from(mfn.0.checked_sub(FIRST_MFN)?).ok()?;
        self.owners.get(index).copied().flatten()
    }

    /// Says whose a frame is that somebody has.
    pub(crate) fn hand_over(&mut self, mfn: Mfn, owner: DomId) {
        self.owners[index(mfn)] = Some(owner);
    }

    /// Moves what is in a frame of the heap to a page of its own, which lives as long as the machine.
    pub(crate) fn move_away(&mut self, mfn: Mfn) {
        let page = heap_block(1);
        self.shared.push(page);
        copy_page(self.ptr(mfn), page);
        self.backing.heap().insert(mfn.0, page);
    }

    /// Says that a frame is nobody's, though it can't be used again: somebody has it mapped.
    pub(crate) fn disown(&mut self, mfn: Mfn) {
        self.owners[index(mfn)] = None;
    }

    /// Returns how many frames nobody has.
    pub(crate) fn free(&self) -> usize {
        self.free.len()
    }

    /// Takes a frame at random; never the one that follows the last, so that whoever takes frames to be contiguous errs.
    fn pick(&mut self, rng: &mut SmallRng, owner: DomId) -> Option<Mfn> {
        if self.free.is_empty() {
            return None;
        }
        let mut index = rng.random_range(0..self.free.len());
        if self.free[index] == self.last.wrapping_add(1) && self.free.len() > 1 {
            index = (index + 1) % self.free.len();
        }
        self.last = self.free.swap_remove(index);
        self.owners[self.last as usize] = Some(owner);
        Some(Mfn(FIRST_MFN + u64::from(self.last)))
    }

    /// Takes a zeroed frame of the memory file.
    pub(crate) fn take_file(&mut self, rng: &mut SmallRng, owner: DomId) -> Option<Mfn> {
        let mfn = self.pick(rng, owner)?;
        // SAFETY: the frame is ours alone now, and the view covers it.
        unsafe { self.ptr(mfn).write_bytes(0, PAGE_SIZE) };
        Some(mfn)
    }

    /// Takes a frame that is to be seen at `page`, a page of somebody's heap block.
    pub(crate) fn take_heap(&mut self, rng: &mut SmallRng, owner: DomId, page: NonNull<u8>) -> Option<Mfn> {
        let mfn = self.pick(rng, owner)?;
        self.backing.heap().insert(mfn.0, page);
        Some(mfn)
    }

    /// Takes a zeroed frame that the hypervisor shares with a domain, `owner`. Such pages live as long as the machine,
    /// so a heap page under one is never given back.
    ///
    /// # Panics
    /// If the machine has no frame left: the test asked for too much.
    pub(crate) fn take_own(&mut self, rng: &mut SmallRng, owner: DomId) -> Mfn {
        let mfn = match self.backing() {
            Backing::Mapped => self.take_file(rng, owner),
            Backing::Plain => {
                let page = heap_block(1);
                self.shared.push(page);
                self.take_heap(rng, owner, page)
            }
        };
        mfn.expect("the mock machine is out of frames")
    }

    /// Gives a frame back.
    pub(crate) fn give(&mut self, mfn: Mfn) {
        if let Seen::Heap(pages) = &mut self.backing {
            pages.remove(&mfn.0);
        }
        self.disown(mfn);
        self.free.push(index(mfn) as u32);
    }

    /// Returns where the hypervisor sees a frame that somebody has.
    ///
    /// # Panics
    /// If nobody has the frame.
    pub(crate) fn ptr(&self, mfn: Mfn) -> NonNull<u8> {
        match &self.backing {
            // SAFETY: the frame is one of the machine's, all of which the view covers.
            Seen::File { view, .. } => unsafe { view.add(index(mfn) * PAGE_SIZE) },
            Seen::Heap(pages) => *pages.get(&mfn.0).expect("a frame that somebody has"),
        }
    }

    /// Returns the memory file and the offset of a frame in it.
    pub(crate) fn file_of(&self, mfn: Mfn) -> (&std::os::fd::OwnedFd, i64) {
        match &self.backing {
            Seen::File { fd, .. } => (fd, (index(mfn) * PAGE_SIZE) as i64),
            Seen::Heap(_) => unreachable!("no memory file in a plain machine"),
        }
    }
}

impl Drop for Frames {
    fn drop(&mut self) {
        match &self.backing {
            // SAFETY: this is the mapping that `file` made, and nobody has a reference into it: the machine goes.
            Seen::File { view, .. } => unsafe {
                libc::munmap(view.as_ptr().cast(), self.owners.len() * PAGE_SIZE);
            },
            // All other pages belong to the domains' address spaces.
            Seen::Heap(_) => {
                for page in &self.shared {
                    // SAFETY: a block of one page, and the machine goes.
                    unsafe { free_heap_block(*page, 1) };
                }
            }
        }
    }
}

/// Copies a page, which others may use meanwhile.
pub(crate) fn copy_page(from: NonNull<u8>, to: NonNull<u8>) {
    // SAFETY: callers name whole pages that live as long as the machine's lock is held; the views are atomic.
    let (from, to) = unsafe { (Shared::new(from, PAGE_SIZE), Shared::new(to, PAGE_SIZE)) };
    to.copy_from(0, from);
}

/// Writes zeros to a page, which others may use meanwhile.
pub(crate) fn clear_page(page: NonNull<u8>) {
    // SAFETY: as for `copy_page`.
    unsafe { Shared::new(page, PAGE_SIZE) }.clear_from(0);
}

/// Makes a memory file and maps all of it.
fn file(bytes: usize) -> (std::os::fd::OwnedFd, NonNull<u8>) {
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
    // SAFETY: the name is a C string; the descriptor that comes back is ours alone.
    let fd = unsafe { libc::memfd_create(c"mock-machine".as_ptr(), libc::MFD_CLOEXEC) };
    assert!(fd >= 0, "memfd_create: {}", std::io::Error::last_os_error());
    // SAFETY: just made, and owned by nobody else.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let len = i64::try_from(bytes).expect("small");
    // SAFETY: our own descriptor.
    let sized = unsafe { libc::ftruncate(fd.as_raw_fd(), len) };
    assert!(sized == 0, "ftruncate: {}", std::io::Error::last_os_error());
    // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
    let view = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_NORESERVE,
            fd.as_raw_fd(),
            0,
        )
    };
    assert!(view != libc::MAP_FAILED, "mmap: {}", std::io::Error::last_os_error());
    (fd, NonNull::new(view.cast()).expect("a mapping is never at 0"))
}

/// Allocates `pages` zeroed, page aligned pages of the heap.
pub(crate) fn heap_block(pages: usize) -> NonNull<u8> {
    // SAFETY: the layout has a size above 0: nobody allocates no pages.
    NonNull::new(unsafe { alloc_zeroed(layout(pages)) }).expect("out of memory")
}

/// Frees a block of [`heap_block`].
///
/// # Safety
/// The block is of that many pages, and nobody uses it any more.
pub(crate) unsafe fn free_heap_block(block: NonNull<u8>, pages: usize) {
    // SAFETY: as the caller promises.
    unsafe { dealloc(block.as_ptr(), layout(pages)) };
}

fn layout(pages: usize) -> Layout {
    assert!(pages > 0, "an allocation of no pages");
    Layout::from_size_align(pages * PAGE_SIZE, PAGE_SIZE).expect("fits in memory")
}

/// Returns the index of a frame among the machine's.
fn index(mfn: Mfn) -> usize {
    usize::try_from(mfn.0 - FIRST_MFN).expect("a frame of this machine")
}
