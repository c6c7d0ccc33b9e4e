//! The back end's half of a message ring: it takes requests and makes responses.

use super::{Field, Index, Notify, Ordering, RingError, RingMemory, fence, passes};

/// The responding half. See the [module](super) for the picture and for what holds whatever the peer does.
pub struct BackRing<M: RingMemory> {
    memory: M,
    mask: u32,
    /// Requests taken.
    req_cons: M::Index,
    /// The peer's `req_prod` as last read and found good.
    req_prod: M::Index,
    /// Responses written, of which the first `rsp_published` are visible to the peer.
    rsp_prod: M::Index,
    rsp_published: M::Index,
    broken: Option<RingError>,
}

impl<M: RingMemory> BackRing<M> {
    /// Attaches to a ring that a front end has initialised, and goes on where its responses end: a front end that stays
    /// while the back end is exchanged sees its requests answered again.
    pub fn attach(memory: M) -> Self {
        let start = memory.load(Field::RspProd, Ordering::Acquire);
        let mask = memory.slots() - 1;
        Self { memory, mask, req_cons: start, req_prod: start, rsp_prod: start, rsp_published: start, broken: None }
    }

    /// Returns the memory that the ring stands in.
    pub const fn memory(&self) -> &M {
        &self.memory
    }

    /// Returns how many slots there are.
    pub const fn size(&self) -> u32 {
        self.mask + 1
    }

    /// Returns how many requests were taken and not responded to.
    #[inline]
    pub fn unanswered(&self) -> u32 {
        self.req_cons.minus(self.rsp_prod)
    }

    /// Takes the next request, or `None` if there is none at the moment.
    ///
    /// # Errors
    /// [`RingError`] if the peer claims more requests than the ring holds; from then on each time.
    #[inline]
    pub fn pop(&mut self) -> Result<Option<M::Request>, RingError> {
        if self.req_cons == self.req_prod && !self.refresh()? {
            return Ok(None);
        }
        let request = self.memory.read_request(self.req_cons.slot(self.mask));
        self.req_cons = self.req_cons.plus(1);
        Ok(Some(request))
    }

    /// Writes a response into the next slot; the peer sees it after [`publish`](Self::publish). Returns whether a request
    /// was waiting for one: a response to nothing is not written.
    #[inline]
    #[must_use = "without a request nothing was written"]
    pub fn respond(&mut self, response: &M::Response) -> bool {
        if self.unanswered() == 0 {
            return false;
        }
        self.memory.write_response(self.rsp_prod.slot(self.mask), response);
        self.rsp_prod = self.rsp_prod.plus(1);
        true
    }

    /// Makes all responses visible, and tells whether the peer wants an event for them.
    #[inline]
    pub fn publish(&mut self) -> Notify {
        let (old, new) = (self.rsp_published, self.rsp_prod);
        if old == new {
            return Notify::No;
        }
        self.rsp_published = new;
        // Release: the slots before the index, for the front end that reads the index.
        self.memory.store(Field::RspProd, new, Ordering::Release);
        // Our index before our look at its wish; pairs with the fence in `FrontRing::arm`.
        fence(Ordering::SeqCst);
        let event = self.memory.load(Field::RspEvent, Ordering::Relaxed);
        if passes(old, new, event) { Notify::Yes } else { Notify::No }
    }

    /// Asks for an event at the next request. Returns `true` if one has come meanwhile: then go on, no event will tell.
    ///
    /// # Errors
    /// [`RingError`] as [`pop`](Self::pop).
    pub fn arm(&mut self) -> Result<bool, RingError> {
        self.memory.store(Field::ReqEvent, self.req_cons.plus(1), Ordering::Relaxed);
        // Our wish before our last look at its index; pairs with the fence in `FrontRing::publish`.
        fence(Ordering::SeqCst);
        Ok(self.req_cons != self.req_prod || self.refresh()?)
    }

    /// Reads the peer's index, and tells whether there are requests.
    fn refresh(&mut self) -> Result<bool, RingError> {
        if let Some(error) = self.broken {
            return Err(error);
        }
        // Acquire: the index before the slots that it covers.
        let req_prod = self.memory.load(Field::ReqProd, Ordering::Acquire);
        // A slot is the peer's again only when its response is published, so what was published is what counts.
        let (claimed, size) = (req_prod.minus(self.rsp_published), self.size());
        // Nor can it go back behind what was taken already.
        if claimed > size || claimed < self.req_cons.minus(self.rsp_published) {
            return Err(*self.broken.insert(RingError::PeerOverflow { claimed, size }));
        }
        self.req_prod = req_prod;
        Ok(req_prod != self.req_cons)
    }
}
