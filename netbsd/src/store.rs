//! Xenstore by the kernel's own connection, which its other drivers and its user land share.

use alloc::ffi::CString;
use alloc::vec::Vec;
use core::ffi::c_void;

use xen_sys::io::xs_wire::{XENSTORE_PAYLOAD_MAX, XsdSockmsg, XsdSockmsgType as Op};
use xenbus::store::{Cause, Reply, Request, Store, StoreError, WATCHES, WatchId};

use crate::errno;
use crate::upcalls::{
    xenpv_store_reply_free, xenpv_store_request, xenpv_watch_fired, xenpv_watch_set, xenpv_watch_unset,
};

/// The store as a device uses it; its watches wake the device's thread.
#[derive(Clone, Copy, Debug)]
pub struct KernelStore {
    device: *mut c_void,
}

// SAFETY: the glue's device may be named by any thread.
unsafe impl Send for KernelStore {}

impl KernelStore {
    /// The store for the glue's `device`.
    ///
    /// # Safety
    /// `device` stays what the up-calls want for as long as this or a copy of it is used.
    pub(crate) const unsafe fn new(device: *mut c_void) -> Self {
        Self { device }
    }
}

impl Store for KernelStore {
    fn request(&self, request: &Request<'_>) -> Result<Vec<u8>, Cause> {
        let len = request.len();
        if len > XENSTORE_PAYLOAD_MAX {
            return Err(Cause::TooLong(len));
        }
        // As words: the kernel looks at the header as what it is.
        let mut words = alloc::vec![0u32; (size_of::<XsdSockmsg>() + len).div_ceil(4)];
        words[..4].copy_from_slice(&[request.op.0, 0, request.tx.0, len as u32]);
        let bytes = request.parts.iter().flat_map(|part| part.iter());
        for (index, byte) in bytes.enumerate() {
            words[4 + index / 4] |= u32::from(*byte) << (index % 4 * 8);
        }
        let mut reply = core::ptr::null_mut();
        // SAFETY: a header with its payload behind it.
        if unsafe { xenpv_store_request(words.as_mut_ptr().cast(), &raw mut reply) } != 0 || reply.is_null() {
            return Err(Cause::Broken);
        }
        let (op, len) = (Op(words[0]), words[3] as usize);
        let mut payload = Vec::new();
        let whole = len <= XENSTORE_PAYLOAD_MAX && payload.try_reserve_exact(len).is_ok();
        if whole {
            // SAFETY: the connection returned so many bytes.
            payload.extend_from_slice(unsafe { core::slice::from_raw_parts(reply.cast::<u8>(), len) });
        }
        // SAFETY: what the request returned.
        unsafe { xenpv_store_reply_free(words.as_mut_ptr().cast(), reply) };
        if !whole {
            return Err(Cause::Malformed);
        }
        Reply { op, id: 0, payload: &payload }.result(request.op)?;
        Ok(payload)
    }

    fn watch(&self, path: &str) -> Result<WatchId, StoreError> {
        let fail = |cause| StoreError { op: "watch", path: path.into(), cause };
        let name = CString::new(path).map_err(|_| fail(Cause::BadValue(path.into())))?;
        let mut watch = 0;
        // SAFETY: the device is there, as `new` demands, and the path is a C string.
        match unsafe { xenpv_watch_set(self.device, name.as_ptr(), &raw mut watch) } {
            0 => Ok(WatchId(watch)),
            errno::XENPV_ENOSPC => Err(fail(Cause::NoWatch(WATCHES))),
            errno => Err(fail(Cause::UnknownRefusal(alloc::format!("error {errno}")))),
        }
    }

    fn unwatch(&self, watch: WatchId) -> Result<(), StoreError> {
        // SAFETY: watches are set by `watch` alone, and unset once.
        unsafe { xenpv_watch_unset(watch.0) };
        Ok(())
    }

    fn fired(&self, watch: WatchId) -> bool {
        // SAFETY: set by `watch`, and not unset.
        unsafe { xenpv_watch_fired(watch.0) }
    }
}

/// Returns the domain's own number, as the store has it.
pub(crate) fn own_id(store: &KernelStore) -> Result<hypercall::DomId, StoreError> {
    store.read_as(xenbus::store::Tx::NONE, "domid").map(hypercall::DomId)
}
