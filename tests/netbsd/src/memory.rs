//! Pages of the domain, as uvm(9) and pmap(9) have them.

use std::ffi::{c_uint, c_ulong, c_void};
use std::ptr::NonNull;
use std::sync::{Mutex, PoisonError};

use hypercall::mem::PAGE_SIZE;
use hypercall::{Platform, Region};

use crate::interrupts::may_sleep;
use crate::kernel::own;

const VAONLY: c_uint = 2;

type Hook = Box<dyn FnOnce() + Send>;

/// What is called when the library next asks for a frame: it is inside the disk's mutex then.
static ON_FRAME: Mutex<Option<Hook>> = Mutex::new(None);

/// Has something called when the library next asks for a frame.
pub fn on_next_frame(hook: impl FnOnce() + Send + 'static) {
    *ON_FRAME.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(hook));
}

fn region(flags: c_uint) -> Region {
    if flags & VAONLY != 0 { Region::Unbacked } else { Region::Memory }
}

#[unsafe(no_mangle)]
static kernel_map: usize = 0;

#[unsafe(no_mangle)]
extern "C" fn uvm_km_alloc(_: *mut c_void, size: c_ulong, _: c_ulong, flags: c_uint) -> usize {
    may_sleep(c"uvm_km_alloc");
    own().domain.alloc(region(flags), size as usize / PAGE_SIZE).map_or(0, |va| va.addr().get())
}

#[unsafe(no_mangle)]
extern "C" fn uvm_km_free(_: *mut c_void, va: usize, size: c_ulong, flags: c_uint) {
    may_sleep(c"uvm_km_free");
    let va = NonNull::new(va as *mut u8).expect("an address");
    // SAFETY: the caller frees what `uvm_km_alloc` returned.
    unsafe { own().domain.free(region(flags), va, size as usize / PAGE_SIZE) };
}

#[unsafe(no_mangle)]
extern "C" fn pmap_kernel() -> *mut c_void {
    std::ptr::null_mut()
}

#[unsafe(no_mangle)]
extern "C" fn pmap_extract_ma(_: *mut c_void, va: usize, pa: &mut c_ulong) -> bool {
    let hook = ON_FRAME.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(hook) = hook {
        hook();
    }
    let page = NonNull::new((va & !(PAGE_SIZE - 1)) as *mut u8).expect("an address");
    *pa = (own().domain.gfn_of(page).0 << 12) as c_ulong + (va % PAGE_SIZE) as c_ulong;
    true
}

/// Wired memory of the kernel, for transfers.
#[derive(Debug)]
pub struct Wired {
    start: NonNull<u8>,
    pages: usize,
}

// SAFETY: the pages are the owner's alone.
unsafe impl Send for Wired {}

impl Wired {
    /// Allocates pages.
    ///
    /// # Panics
    /// If there are none.
    pub fn new(pages: usize) -> Self {
        Self { start: own().domain.alloc(Region::Memory, pages).expect("pages"), pages }
    }

    /// Returns the address of a byte.
    ///
    /// # Panics
    /// If it is beyond the pages.
    pub fn at(&self, offset: usize) -> *mut c_void {
        assert!(offset < self.pages * PAGE_SIZE);
        self.start.as_ptr().wrapping_add(offset).cast()
    }

    /// Writes bytes. Nothing is in flight there.
    ///
    /// # Panics
    /// If it is beyond the pages.
    pub fn fill(&self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= self.pages * PAGE_SIZE);
        // SAFETY: inside the pages, which nobody else uses now.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.at(offset).cast(), bytes.len()) };
    }

    /// Reads bytes. Nothing is in flight there.
    ///
    /// # Panics
    /// If it is beyond the pages.
    pub fn bytes(&self, offset: usize, len: usize) -> Vec<u8> {
        assert!(offset + len <= self.pages * PAGE_SIZE);
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts(self.at(offset).cast::<u8>(), len).to_vec() }
    }
}

impl Drop for Wired {
    fn drop(&mut self) {
        // SAFETY: what `new` allocated; transfers are over.
        unsafe { own().domain.free(Region::Memory, self.start, self.pages) };
    }
}
