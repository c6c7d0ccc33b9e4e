//! xenbus as the kernel has it: one connection to xenstored for everybody, watches with a thread of their own, and the coming and
//! going of devices.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use xen_sys::io::xs_wire::{XsdSockmsg, XsdSockmsgType as Op};
use xenbus::device::State;
use xenbus::store::{Cause, Request, Store, StoreError, Tx, WatchId};

use crate::interrupts::{due, may_sleep};
use crate::kernel::{own, say};

/// How many more requests get their answer; then the connection fails once. Below 0: no end.
pub static REQUESTS_LEFT: AtomicI32 = AtomicI32::new(-1);

const EIO: c_int = 5;

/// With the reply, the message that is its header has NetBSD's form: that of the wire.
#[repr(C)]
struct Message {
    op: u32,
    id: u32,
    tx: u32,
    len: u32,
}
const _: () = assert!(size_of::<Message>() == size_of::<XsdSockmsg>());

unsafe extern "C" {
    fn port_malloc(size: usize) -> *mut c_void;
    fn kern_free(p: *mut c_void);
    fn host_config_found(class: *const c_char, id: c_int, path: *const c_char) -> *mut c_void;
    fn host_config_detach(device: *mut c_void, flags: c_int) -> c_int;
}

#[unsafe(no_mangle)]
extern "C" fn xenbus_dev_request_and_reply(message: &mut Message, reply: &mut *mut c_void) -> c_int {
    may_sleep(c"xenbus_dev_request_and_reply");
    if due(&REQUESTS_LEFT) {
        return EIO;
    }
    let behind = (&raw const *message).wrapping_add(1).cast::<u8>();
    // SAFETY: the payload stands behind its header.
    let payload = unsafe { std::slice::from_raw_parts(behind, message.len as usize) }.to_vec();
    let request = Request { op: Op(message.op), tx: Tx(message.tx), parts: &[&payload] };
    let answer = match own().store.request(&request) {
        Ok(answer) => answer,
        Err(Cause::Refused(errno)) => {
            message.op = Op::ERROR.0;
            [errno.word().as_bytes(), b"\0"].concat()
        }
        Err(_) => return EIO,
    };
    message.len = answer.len() as u32;
    // SAFETY: as much as is copied; the kernel's own connection puts a NUL behind.
    unsafe {
        *reply = port_malloc(answer.len() + 1);
        std::ptr::copy_nonoverlapping(answer.as_ptr(), reply.cast(), answer.len());
    }
    0
}

#[unsafe(no_mangle)]
extern "C" fn xenbus_dev_reply_free(_: &mut Message, reply: *mut c_void) {
    // SAFETY: what the request returned.
    unsafe { kern_free(reply) };
}

/// struct xenbus_watch of kernel.h.
#[repr(C)]
struct XenbusWatch {
    node: *const c_char,
    node_sz: usize,
    callback: extern "C" fn(*mut Self, *mut *const c_char, c_uint),
}

/// The watches that were registered, by address, and what has fired and was not told yet.
#[derive(Default)]
struct Watches {
    set: Vec<(usize, WatchId)>,
    queue: Vec<usize>,
    woken: bool,
}

static WATCHES: Mutex<Watches> = Mutex::new(Watches { set: Vec::new(), queue: Vec::new(), woken: false });
static WOKEN: Condvar = Condvar::new();

fn watches() -> MutexGuard<'static, Watches> {
    WATCHES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A message has come from xenstored.
pub(crate) fn wake() {
    watches().woken = true;
    WOKEN.notify_all();
}

#[unsafe(no_mangle)]
extern "C" fn register_xenbus_watch(watch: &mut XenbusWatch) -> c_int {
    may_sleep(c"register_xenbus_watch");
    // SAFETY: the node is a C string.
    let node = unsafe { CStr::from_ptr(watch.node) };
    assert_eq!(watch.node_sz, node.count_bytes() + 1, "node_sz");
    if due(&REQUESTS_LEFT) {
        return EIO;
    }
    let Ok(id) = own().store.watch(&node.to_string_lossy()) else { return EIO };
    watches().set.push(((&raw mut *watch).addr(), id));
    wake();
    0
}

#[unsafe(no_mangle)]
extern "C" fn unregister_xenbus_watch(watch: &mut XenbusWatch) {
    may_sleep(c"unregister_xenbus_watch");
    let mut watches = watches();
    let address = (&raw mut *watch).addr();
    let at = watches.set.iter().position(|(watch, _)| *watch == address).expect("a watch that was registered");
    let (_, id) = watches.set.swap_remove(at);
    watches.queue.retain(|watch| *watch != address);
    drop(watches);
    let _ = own().store.unwatch(id);
}

/// Returns how many watches are registered.
pub(crate) fn registered() -> usize {
    watches().set.len()
}

/// A device that xenbus has attached.
struct Attached {
    device: *mut c_void,
    _path: CString,
    other: String,
    watch: WatchId,
}

/// The thread that watches are told by. It also attaches and detaches devices, as the kernel's does.
pub(crate) fn xenwatch() {
    let store = &own().store;
    let root = store.watch("device").expect("a watch");
    let mut devices = BTreeMap::new();
    loop {
        if store.fired(root) {
            probe(&mut devices);
        }
        follow(&mut devices);
        let mut watches = watches();
        let fired = watches.set.iter().filter(|(_, id)| store.fired(*id)).map(|(watch, _)| *watch).collect::<Vec<_>>();
        watches.queue.extend(fired);
        if watches.queue.is_empty() {
            if !watches.woken {
                watches =
                    WOKEN.wait_timeout(watches, Duration::from_millis(100)).unwrap_or_else(PoisonError::into_inner).0;
            }
            watches.woken = false;
            continue;
        }
        let watch = watches.queue.remove(0) as *mut XenbusWatch;
        // What is taken from the queue is told, even if the watch is unset just now: as in the kernel.
        drop(watches);
        // SAFETY: the glue never frees a watch.
        let (callback, node) = unsafe { ((*watch).callback, c"?") };
        callback(watch, [node.as_ptr(), node.as_ptr()].as_mut_ptr(), 2);
    }
}

/// Attaches what is new, and says so: what stands in state "Initialising".
fn probe(devices: &mut BTreeMap<String, Attached>) {
    let store = &own().store;
    for class in store.directory(Tx::NONE, "device").unwrap_or_default() {
        for id in store.directory(Tx::NONE, &format!("device/{class}")).unwrap_or_default() {
            let path = format!("device/{class}/{id}");
            let state = store.read_as(Tx::NONE, &format!("{path}/state"));
            if devices.contains_key(&path) || state != Ok(State::Initialising) {
                continue;
            }
            let Ok(other) = store.read_text(Tx::NONE, &format!("{path}/backend")) else { continue };
            let (name, kept) =
                (CString::new(class.as_str()).expect("a name"), CString::new(path.as_str()).expect("a path"));
            // SAFETY: C strings; the path stays until the device is detached.
            let device = unsafe { host_config_found(name.as_ptr(), id.parse().unwrap_or(-1), kept.as_ptr()) };
            if device.is_null() {
                continue;
            }
            let watch = store.watch(&format!("{other}/state")).expect("a watch");
            devices.insert(path, Attached { device, _path: kept, other, watch });
        }
    }
}

/// Detaches what the other end has left.
fn follow(devices: &mut BTreeMap<String, Attached>) {
    let store = &own().store;
    devices.retain(|path, attached| {
        if !store.fired(attached.watch) {
            return true;
        }
        match store.read_text(Tx::NONE, &format!("{}/state", attached.other)) {
            Ok(state) if state == State::Closed.number().to_string() => {}
            // Removed; what is above it need not be ours to look at.
            Err(StoreError { cause: Cause::Refused(_), .. }) => {}
            _ => return true,
        }
        let hook = ON_DETACH.lock().unwrap_or_else(PoisonError::into_inner).take();
        hook.into_iter().for_each(|hook| hook());
        // SAFETY: a device that was attached and is not detached.
        unsafe { host_config_detach(attached.device, 1) };
        let _ = store.unwatch(attached.watch);
        let _ = store.write_text(Tx::NONE, &format!("{path}/state"), State::Closed.number());
        say(&format!("xenbus0: {path} is free\n"));
        false
    });
    FOLLOWED.store(devices.len() as i32, Ordering::SeqCst);
}

type Hook = Box<dyn FnOnce() + Send>;

/// What is called when the other end of a device has been seen in Closed, before the device is detached.
static ON_DETACH: Mutex<Option<Hook>> = Mutex::new(None);

/// Has something called when the next device is about to be detached.
pub fn on_next_detach(hook: impl FnOnce() + Send + 'static) {
    *ON_DETACH.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(hook));
}

static FOLLOWED: AtomicI32 = AtomicI32::new(0);

/// Returns how many devices are attached.
pub(crate) fn attached() -> usize {
    FOLLOWED.load(Ordering::SeqCst) as usize
}
