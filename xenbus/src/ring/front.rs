//! The front end's half of a message ring: it makes requests and takes responses.

use super::{Field, Index, Notify, Ordering, RingError, RingMemory, passes};

/// The requesting half. See the [module](super) for the picture and for what holds whatever the peer does.
pub struct FrontRing<M: RingMemory> {
    memory: M,
    slots: u32,
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
        Self {
            slots: memory.slots(),
            memory,
            req_prod: start,
            req_published: start,
            rsp_cons: start,
            rsp_prod: start,
            broken: None,
        }
    }

    /// Returns the memory that the ring stands in.
    pub const fn memory(&self) -> &M {
        &self.memory
    }

    /// Returns how many slots there are.
    pub const fn size(&self) -> u32 {
        self.slots
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
        self.memory.write_request(self.req_prod.slot(self.memory.slots() - 1), request);
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
        // The slots before the index, for the back end that reads the index; and our index before our look at its wish, which
        // pairs with `BackRing::arm`.
        self.memory.announce(Field::ReqProd, new);
        let event = self.memory.load(Field::ReqEvent, Ordering::SeqCst);
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
        let response = self.memory.read_response(self.rsp_cons.slot(self.memory.slots() - 1));
        self.rsp_cons = self.rsp_cons.plus(1);
        Ok(Some(response))
    }

    /// Asks for an event at the next response. Returns `true` if one has come meanwhile: then go on, no event will tell.
    ///
    /// # Errors
    /// [`RingError`] as [`pop`](Self::pop).
    #[inline]
    pub fn arm(&mut self) -> Result<bool, RingError> {
        if self.rsp_cons != self.rsp_prod {
            return Ok(true);
        }
        let wish = self.rsp_cons.plus(1);
        if self.rsp_cons == self.req_published {
            // Nothing is under way, so nothing can come before the next `publish`, which puts its barrier behind our wish.
            self.memory.store(Field::RspEvent, wish, Ordering::Relaxed);
        } else {
            // Our wish before our last look at its index; pairs with `BackRing::publish`.
            self.memory.announce(Field::RspEvent, wish);
        }
        self.refresh()
    }

    /// Reads the peer's index when what is known of it is used up, and tells whether there are responses.
    #[inline]
    fn refresh(&mut self) -> Result<bool, RingError> {
        if self.broken.is_some() {
            return self.fail(0);
        }
        // Acquire: the index before the slots that it covers. And after our wish, if it is `arm` that asks.
        let rsp_prod = self.memory.load(Field::RspProd, Ordering::SeqCst);
        let claimed = rsp_prod.minus(self.rsp_cons);
        if claimed == 0 {
            return Ok(false);
        }
        if claimed > self.req_published.minus(self.rsp_cons) {
            return self.fail(claimed);
        }
        self.rsp_prod = rsp_prod;
        Ok(true)
    }

    /// Breaks the ring, if it isn't broken, and tells why it is.
    #[cold]
    fn fail(&mut self, claimed: u32) -> Result<bool, RingError> {
        let size = self.req_published.minus(self.rsp_cons);
        Err(*self.broken.get_or_insert(RingError::PeerOverflow { claimed, size }))
    }
}
