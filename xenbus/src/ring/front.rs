//! The front end's half of a message ring: it makes requests and takes responses.

use super::{Field, Index, Notify, Ordering, RingError, RingMemory, fence, passes};

/// The requesting half. See the [module](super) for the picture and for what holds whatever the peer does.
pub struct FrontRing<M: RingMemory> {
    memory: M,
    mask: u32,
    /// Requests written, of which the first `req_published` are visible to the peer.
    req_prod: M::Index,
    req_published: M::Index,
    /// Responses taken.
    rsp_cons: M::Index,
    /// The peer's `rsp_prod` as last read and found good.
    rsp_prod: M::Index,
    broken: Option<RingError>,
}

impl<M: RingMemory> FrontRing<M> {
    /// Initialises the ring in memory that the peer doesn't use yet.
    pub fn new(memory: M) -> Self {
        Self::starting_at(memory, M::Index::ZERO)
    }

    /// Initialises the ring with all indices at `start`, so that tests need not wait for four billion requests to see
    /// them wrap. The peer must be told, or read them from the ring.
    pub fn starting_at(memory: M, start: M::Index) -> Self {
        // Before the ring's grant is told to anybody: no order is needed.
        memory.store(Field::ReqProd, start, Ordering::Relaxed);
        memory.store(Field::RspProd, start, Ordering::Relaxed);
        memory.store(Field::ReqEvent, start.plus(1), Ordering::Relaxed);
        memory.store(Field::RspEvent, start.plus(1), Ordering::Relaxed);
        let mask = memory.slots() - 1;
        Self { memory, mask, req_prod: start, req_published: start, rsp_cons: start, rsp_prod: start, broken: None }
    }

    /// Returns the memory that the ring stands in.
    pub const fn memory(&self) -> &M {
        &self.memory
    }

    /// Returns how many slots there are.
    pub const fn size(&self) -> u32 {
        self.mask + 1
    }

    /// Returns how many requests may be pushed now.
    #[inline]
    pub fn free(&self) -> u32 {
        self.size() - self.req_prod.minus(self.rsp_cons)
    }

    /// Writes a request into the next slot; the peer sees it after [`publish`](Self::publish). Returns whether there was
    /// room for it.
    #[inline]
    #[must_use = "without room nothing was written"]
    pub fn push(&mut self, request: &M::Request) -> bool {
        if self.free() == 0 {
            return false;
        }
        self.memory.write_request(self.req_prod.slot(self.mask), request);
        self.req_prod = self.req_prod.plus(1);
        true
    }

    /// The same for a request of which only the first `bytes` bytes are of use. What is written behind them is not said: more of
    /// it, or what the slot had before, which the peer has seen.
    #[inline(always)]
    #[must_use = "without room nothing was written"]
    pub fn push_start(&mut self, request: &M::Request, bytes: usize) -> bool {
        if self.free() == 0 {
            return false;
        }
        self.memory.write_request_start(self.req_prod.slot(self.mask), request, bytes);
        self.req_prod = self.req_prod.plus(1);
        true
    }

    /// Makes all pushed requests visible, and tells whether the peer wants an event for them.
    #[inline]
    pub fn publish(&mut self) -> Notify {
        let (old, new) = (self.req_published, self.req_prod);
        if old == new {
            return Notify::No;
        }
        self.req_published = new;
        // Release: the slots before the index, for the back end that reads the index.
        self.memory.store(Field::ReqProd, new, Ordering::Release);
        // Our index before our look at its wish; pairs with the fence in `BackRing::arm`.
        fence(Ordering::SeqCst);
        let event = self.memory.load(Field::ReqEvent, Ordering::Relaxed);
        if passes(old, new, event) { Notify::Yes } else { Notify::No }
    }

    /// Takes the next response, or `None` if there is none at the moment.
    ///
    /// # Errors
    /// [`RingError`] if the peer claims responses to requests that were never made; from then on each time.
    #[inline]
    pub fn pop(&mut self) -> Result<Option<M::Response>, RingError> {
        if self.rsp_cons == self.rsp_prod && !self.refresh()? {
            return Ok(None);
        }
        let response = self.memory.read_response(self.rsp_cons.slot(self.mask));
        self.rsp_cons = self.rsp_cons.plus(1);
        Ok(Some(response))
    }

    /// Asks for an event at the next response. Returns `true` if one has come meanwhile: then go on, no event will tell.
    ///
    /// # Errors
    /// [`RingError`] as [`pop`](Self::pop).
    pub fn arm(&mut self) -> Result<bool, RingError> {
        self.memory.store(Field::RspEvent, self.rsp_cons.plus(1), Ordering::Relaxed);
        // Our wish before our last look at its index; pairs with the fence in `BackRing::publish`.
        fence(Ordering::SeqCst);
        Ok(self.rsp_cons != self.rsp_prod || self.refresh()?)
    }

    /// Reads the peer's index, and tells whether there are responses.
    fn refresh(&mut self) -> Result<bool, RingError> {
        if let Some(error) = self.broken {
            return Err(error);
        }
        // Acquire: the index before the slots that it covers.
        let rsp_prod = self.memory.load(Field::RspProd, Ordering::Acquire);
        let (claimed, size) = (rsp_prod.minus(self.rsp_cons), self.req_published.minus(self.rsp_cons));
        if claimed > size {
            return Err(*self.broken.insert(RingError::PeerOverflow { claimed, size }));
        }
        self.rsp_prod = rsp_prod;
        Ok(claimed > 0)
    }
}
