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
        let prod = self.req_prod;
        if prod.minus(self.rsp_cons) == self.slots {
            return false;
        }
        // Before the slot is written, while the compiler knows what it is.
        self.req_prod = prod.plus(1);
        self.memory.write_request(prod.slot(self.memory.slots() - 1), request);
        true
    }

    /// Makes all pushed requests visible, and tells whether the peer wants an event for them.
    #[inline]
    pub fn publish(&mut self) -> Notify {
        let memory = self.memory.view();
        let (old, new) = (self.req_published, self.req_prod);
        if old == new {
            return Notify::No;
        }
        self.req_published = new;
        // The slots before the index, for the back end that reads the index; and our index before our look at its wish, which
        // pairs with `BackRing::arm`.
        memory.announce(Field::ReqProd, new);
        let event = memory.load(Field::ReqEvent, Ordering::SeqCst);
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

    /// Takes all responses that are there, one after the other. Those of them that come meanwhile are seen by the next call, or by
    /// [`arm`](Self::arm). When it is dropped before its end, the rest stays for later.
    ///
    /// # Errors
    /// As for [`pop`](Self::pop).
    #[inline]
    pub fn responses(&mut self) -> Result<Responses<'_, M>, RingError> {
        let next = self.rsp_cons;
        let end = self.look(&self.memory, next).map_err(|prod| self.fail(prod))?;
        let memory = self.memory.view();
        Ok(Responses { memory, next, end, cons: &mut self.rsp_cons, prod: &mut self.rsp_prod })
    }

    /// Asks for an event at the next response. Returns `true` if one has come meanwhile: then go on, no event will tell.
    ///
    /// # Errors
    /// [`RingError`] as [`pop`](Self::pop).
    #[inline]
    pub fn arm(&mut self) -> Result<bool, RingError> {
        let (cons, published) = (self.rsp_cons, self.req_published);
        if cons != self.rsp_prod {
            return Ok(true);
        }
        if cons == published && self.broken.is_none() {
            // Nothing is under way, so nothing can come before the next `publish`, which puts its barrier behind our wish.
            self.memory.store(Field::RspEvent, cons.plus(1), Ordering::Relaxed);
            return Ok(false);
        }
        // Our wish before our last look at its index; pairs with `BackRing::publish`.
        self.memory.announce(Field::RspEvent, cons.plus(1));
        self.refresh()
    }

    /// Reads the peer's index when what is known of it is used up, and tells whether there are responses.
    #[inline]
    fn refresh(&mut self) -> Result<bool, RingError> {
        match self.look(&self.memory, self.rsp_cons) {
            Ok(prod) => {
                // Before that is the end of what was taken.
                let more = prod != self.rsp_prod;
                self.rsp_prod = prod;
                Ok(more)
            }
            Err(prod) => Err(self.fail(prod)),
        }
    }

    /// Reads the peer's index; it is the error, if it may not be that.
    #[inline]
    fn look(&self, memory: &impl RingMemory<Index = M::Index>, cons: M::Index) -> Result<M::Index, M::Index> {
        let published = self.req_published;
        if self.broken.is_some() {
            return Err(cons);
        }
        // Acquire: the index before the slots that it covers. And after our wish, if it is `arm` that asks.
        let rsp_prod = memory.load(Field::RspProd, Ordering::SeqCst);
        if rsp_prod.minus(cons) > published.minus(cons) {
            return Err(rsp_prod);
        }
        Ok(rsp_prod)
    }

    /// Breaks the ring, if it isn't broken, and tells why it is.
    #[cold]
    fn fail(&mut self, prod: M::Index) -> RingError {
        let (claimed, size) = (prod.minus(self.rsp_cons), self.req_published.minus(self.rsp_cons));
        // What a batch has left is not taken any more: whoever wants it is told instead.
        self.rsp_prod = self.rsp_cons;
        *self.broken.get_or_insert(RingError::PeerOverflow { claimed, size })
    }
}

/// Responses that are there: see [`FrontRing::responses`].
pub struct Responses<'a, M: RingMemory + 'a> {
    memory: M::View<'a>,
    /// Here while they are taken, in the ring when that is over: between two of them nobody looks.
    next: M::Index,
    end: M::Index,
    cons: &'a mut M::Index,
    prod: &'a mut M::Index,
}

impl<'a, M: RingMemory + 'a> Iterator for Responses<'a, M> {
    type Item = M::Response;

    #[inline]
    fn next(&mut self) -> Option<M::Response> {
        if self.next == self.end {
            return None;
        }
        let response = self.memory.read_response(self.next.slot(self.memory.slots() - 1));
        self.next = self.next.plus(1);
        Some(response)
    }
}

impl<'a, M: RingMemory + 'a> Drop for Responses<'a, M> {
    #[inline]
    fn drop(&mut self) {
        (*self.cons, *self.prod) = (self.next, self.end);
    }
}
