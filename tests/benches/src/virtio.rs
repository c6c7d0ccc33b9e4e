//! What a Rust program would use otherwise: a virtio queue, the driver's half by `virtio-drivers` and the device's by rust-vmm's
//! `virtio-queue`. A request is a chain as virtio-blk has it: a header, the segments, and a byte for the status.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};

use virtio_drivers::queue::VirtQueue;
use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE, PhysAddr};
use virtio_queue::{Queue, QueueT as _};
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

use crate::work::{BROKEN, Work};

/// Descriptors: 32 requests of 13 at the most.
const SIZE: usize = 512;
/// Requests under way.
const REQUESTS: usize = 32;
/// Bytes that both halves see: the queue, headers and data.
const MEMORY: usize = 256 * PAGE_SIZE;
/// Bytes of a header of virtio-blk.
const HEADER: usize = 16;

/// Where the next queue's memory is taken from, by [`Identity`], which the crate gives nothing of ours.
static NEXT: AtomicUsize = AtomicUsize::new(0);

/// A guest whose physical addresses are the program's own.
struct Identity;

// SAFETY: the memory that `Pair::new` has set aside is handed out once.
unsafe impl Hal for Identity {
    fn dma_alloc(pages: usize, _: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        let at = NEXT.fetch_add(pages * PAGE_SIZE, Ordering::Relaxed);
        (at as PhysAddr, NonNull::new(std::ptr::with_exposed_provenance_mut(at)).expect("memory was set aside"))
    }

    unsafe fn dma_dealloc(_: PhysAddr, _: NonNull<u8>, _: usize) -> i32 {
        0
    }

    unsafe fn mmio_phys_to_virt(paddr: PhysAddr, _: usize) -> NonNull<u8> {
        NonNull::new(std::ptr::with_exposed_provenance_mut(paddr as usize)).expect("no device has registers here")
    }

    unsafe fn share(buffer: NonNull<[u8]>, _: BufferDirection) -> PhysAddr {
        buffer.cast::<u8>().expose_provenance().get() as PhysAddr
    }

    unsafe fn unshare(_: PhysAddr, _: NonNull<[u8]>, _: BufferDirection) {}
}

/// A device that learns where its queue is, and no more.
#[derive(Default)]
struct Places {
    descriptors: PhysAddr,
    driver: PhysAddr,
    device: PhysAddr,
}

impl Transport for Places {
    fn device_type(&self) -> DeviceType {
        DeviceType::Block
    }

    fn read_device_features(&mut self) -> u64 {
        0
    }

    fn write_driver_features(&mut self, _: u64) {}

    fn max_queue_size(&mut self, _: u16) -> u32 {
        SIZE as u32
    }

    fn notify(&mut self, _: u16) {}

    fn get_status(&self) -> DeviceStatus {
        DeviceStatus::empty()
    }

    fn set_status(&mut self, _: DeviceStatus) {}

    fn set_guest_page_size(&mut self, _: u32) {}

    fn requires_legacy_layout(&self) -> bool {
        false
    }

    fn queue_set(&mut self, _: u16, _: u32, descriptors: PhysAddr, driver: PhysAddr, device: PhysAddr) {
        *self = Self { descriptors, driver, device };
    }

    fn queue_unset(&mut self, _: u16) {}

    fn queue_used(&mut self, _: u16) -> bool {
        false
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        InterruptStatus::empty()
    }

    fn read_config_generation(&self) -> u32 {
        0
    }

    fn read_config_space<T: zerocopy::FromBytes + zerocopy::IntoBytes>(&self, _: usize) -> virtio_drivers::Result<T> {
        Err(virtio_drivers::Error::ConfigSpaceMissing)
    }

    fn write_config_space<T: zerocopy::IntoBytes + zerocopy::Immutable>(
        &mut self,
        _: usize,
        _: T,
    ) -> virtio_drivers::Result<()> {
        Err(virtio_drivers::Error::ConfigSpaceMissing)
    }
}

/// Both halves of a queue.
struct Pair<const SEGMENTS: usize> {
    driver: VirtQueue<Identity, SIZE>,
    device: Queue,
    memory: GuestMemoryMmap,
    /// Headers and status bytes of the requests, and one page of data for all.
    requests: NonNull<u8>,
    data: NonNull<u8>,
    tokens: Vec<u16>,
    notified: u64,
}

impl<const SEGMENTS: usize> Pair<SEGMENTS> {
    fn new() -> Option<Self> {
        let layout = std::alloc::Layout::from_size_align(MEMORY, PAGE_SIZE).ok()?;
        // SAFETY: the size isn't zero. It is never freed: the process counts a few and ends.
        let base = NonNull::new(unsafe { std::alloc::alloc_zeroed(layout) })?;
        let address = base.expose_provenance().get();
        NEXT.store(address + 2 * PAGE_SIZE, Ordering::Relaxed);
        let mut places = Places::default();
        let driver = VirtQueue::new(&mut places, 0, false, true).ok()?;
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: that many bytes are there, for ever.
        let region: MmapRegion = unsafe { MmapRegion::build_raw(base.as_ptr(), MEMORY, protection, flags) }.ok()?;
        let region = GuestRegionMmap::new(region, GuestAddress(address as u64))?;
        let memory = GuestMemoryMmap::from_regions(vec![region]).ok()?;
        let mut device = Queue::new(SIZE as u16).ok()?;
        device.try_set_desc_table_address(GuestAddress(places.descriptors)).ok()?;
        device.try_set_avail_ring_address(GuestAddress(places.driver)).ok()?;
        device.try_set_used_ring_address(GuestAddress(places.device)).ok()?;
        device.set_event_idx(true);
        device.set_ready(true);
        // SAFETY: the second page of many.
        let data = unsafe { base.add(PAGE_SIZE) };
        let tokens = Vec::with_capacity(REQUESTS);
        Some(Self { driver, device, memory, requests: base, data, tokens, notified: 0 })
    }

    /// Returns the buffers of the request in a place: the header and the data, and the status.
    ///
    /// # Safety
    /// Nobody else has the status of that place, in this program.
    unsafe fn buffers(&self, place: usize) -> ([&'static [u8]; 12], &'static mut [u8]) {
        let at = place % REQUESTS * 2 * HEADER;
        // SAFETY: `new` has set them aside for ever, for as many requests; the queue's other half has only their numbers.
        unsafe {
            let header = std::slice::from_raw_parts(self.requests.add(at).as_ptr(), HEADER);
            let status = std::slice::from_raw_parts_mut(self.requests.add(at + HEADER).as_ptr(), 1);
            let mut inputs = [std::slice::from_raw_parts(self.data.as_ptr(), PAGE_SIZE); 12];
            inputs[0] = header;
            (inputs, status)
        }
    }

    #[inline(never)]
    fn submit(&mut self, first: u64, batch: u32) {
        for count in 0..u64::from(batch) {
            let place = (first + count) as usize;
            let header = [first + count, (first + count) << 3];
            // SAFETY: the header of a place that is free.
            unsafe { self.requests.add(place % REQUESTS * 2 * HEADER).cast::<[u64; 2]>().write(header) };
            // SAFETY: the place is free; and then nobody touches it until it is used up, by `poll_driver`.
            let token = unsafe {
                let (inputs, status) = self.buffers(place);
                self.driver.add(&inputs[..=SEGMENTS], &mut [status])
            };
            self.tokens.extend(token.ok());
        }
        self.notified += u64::from(self.driver.should_notify());
    }

    #[inline(never)]
    fn poll_device(&mut self) -> u64 {
        let mut sum = 0u64;
        loop {
            while let Some(chain) = self.device.pop_descriptor_chain(&self.memory) {
                let head = chain.head_index();
                for descriptor in chain {
                    if descriptor.is_write_only() {
                        if self.memory.write_obj(0u8, descriptor.addr()).is_err() {
                            return BROKEN;
                        }
                    } else if descriptor.len() == HEADER as u32 {
                        let Ok(header) = self.memory.read_obj::<[u64; 2]>(descriptor.addr()) else { return BROKEN };
                        sum = sum.wrapping_add(header[0]).wrapping_add(header[1]);
                    } else {
                        sum = sum.wrapping_add(descriptor.addr().0).wrapping_add(u64::from(descriptor.len()));
                    }
                }
                if self.device.add_used(&self.memory, head, 1).is_err() {
                    return BROKEN;
                }
            }
            self.notified += u64::from(self.device.needs_notification(&self.memory).unwrap_or(false));
            match self.device.enable_notification(&self.memory) {
                Ok(true) => {}
                Ok(false) => return sum,
                Err(_) => return BROKEN,
            }
        }
    }

    #[inline(never)]
    fn poll_driver(&mut self, first: u64) -> u64 {
        let (mut sum, mut place) = (0u64, first as usize);
        let tokens = std::mem::take(&mut self.tokens);
        for &token in &tokens {
            // SAFETY: what was added by this token.
            let used = unsafe {
                let (inputs, status) = self.buffers(place);
                self.driver.pop_used(token, &inputs[..=SEGMENTS], &mut [status])
            };
            let Ok(length) = used else { return BROKEN };
            sum = sum.wrapping_add(u64::from(length));
            place += 1;
        }
        self.tokens = tokens;
        self.tokens.clear();
        sum
    }
}

extern "C" fn state_size() -> u64 {
    size_of::<*mut ()>() as u64
}

unsafe extern "C" fn open<const SEGMENTS: usize>(_: *mut u8, state: *mut u8) {
    let pair = Pair::<SEGMENTS>::new().map_or(std::ptr::null_mut(), |pair| Box::into_raw(Box::new(pair)));
    // SAFETY: the caller gives so many bytes, aligned.
    unsafe { state.cast::<*mut Pair<SEGMENTS>>().write(pair) };
}

unsafe extern "C" fn run<const SEGMENTS: usize>(state: *mut u8, rounds: u64, batch: u32) -> u64 {
    // SAFETY: `open` has written it, and it is never freed.
    let Some(pair) = (unsafe { state.cast::<*mut Pair<SEGMENTS>>().read().as_mut() }) else { return BROKEN };
    let mut sum = 0u64;
    for round in 0..rounds {
        let first = round * u64::from(batch);
        pair.submit(first, batch);
        sum = sum.wrapping_add(pair.poll_device());
        sum = sum.wrapping_add(pair.poll_driver(first));
    }
    sum.wrapping_add(pair.notified)
}

/// Returns the functions for requests of so many segments.
pub(crate) const fn work<const SEGMENTS: usize>() -> Work {
    Work { state_size, open: open::<SEGMENTS>, run: run::<SEGMENTS>, ends: None }
}
