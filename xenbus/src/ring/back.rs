//! The back end's half of a message ring: it takes requests and makes responses.

use super::{Field, Index, Notify, Ordering, RingError, RingMemory, passes};

/// The responding half. See the [module](super) for the picture and for what holds whatever the peer does.
pub struct BackRing<M: RingMemory> {
    memory: M,
    slots: u32,
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
        Self {
            slots: memory.slots(),
            memory,
            req_cons: start,
            req_prod: start,
            rsp_prod: start,
            rsp_published: start,
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

    /// Returns how many requests were taken and not responded to.
    #[inline]
    pub fn unanswered(&self) -> u32 {
        self.req_cons.minus(self.rsp_prod)
    }

    /// Returns how many requests can be taken without another look at the peer's index, which is made if there are none.
    ///
    /// # Errors
    /// As for [`pop`](Self::pop).
    #[inline]
    pub fn ready(&mut self) -> Result<u32, RingError> {
        if self.req_cons == self.req_prod {
            self.refresh()?;
        }
        Ok(self.req_prod.minus(self.req_cons))
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
        let request = self.memory.read_request(self.req_cons.slot(self.memory.slots() - 1));
        self.req_cons = self.req_cons.plus(1);
        Ok(Some(request))
    }

    /// Takes the next request as [`pop`](Self::pop) does, into `request`; returns whether there was one. Only what is in use of it is
    /// written (see [`Wire::tail`](xen_sys::Wire::tail)); what was there before stays behind that.
    ///
    /// # Errors
    /// As for `pop`.
    #[inline]
    pub fn pop_into(&mut self, request: &mut M::Request) -> Result<bool, RingError> {
        if self.req_cons == self.req_prod && !self.refresh()? {
            return Ok(false);
        }
        self.memory.read_request_into(self.req_cons.slot(self.memory.slots() - 1), request);
        self.req_cons = self.req_cons.plus(1);
        Ok(true)
    }

    /// Takes all requests that are there, one after the other, and lets them be answered meanwhile. Those that come meanwhile are seen by
    /// the next call, or by [`arm`](Self::arm). When it is dropped before its end, the rest stays for later.
    ///
    /// # Errors
    /// As for [`pop`](Self::pop).
    #[inline]
    pub fn requests(&mut self) -> Result<Requests<'_, M>, RingError> {
        let (next, answer) = (self.req_cons, self.rsp_prod);
        let end = self.look(&self.memory, next).map_err(|prod| self.fail(prod))?;
        let memory = self.memory.view();
        let state = (&mut self.req_cons, &mut self.req_prod, &mut self.rsp_prod);
        Ok(Requests { memory, next, end, answer, state })
    }

    /// Writes a response into the next slot; the peer sees it after [`publish`](Self::publish). Returns whether a request
    /// was waiting for one: a response to nothing is not written.
    #[inline]
    #[must_use = "without a request nothing was written"]
    pub fn respond(&mut self, response: &M::Response) -> bool {
        if self.unanswered() == 0 {
            return false;
        }
        self.memory.write_response(self.rsp_prod.slot(self.memory.slots() - 1), response);
        self.rsp_prod = self.rsp_prod.plus(1);
        true
    }

    /// Makes all responses visible, and tells whether the peer wants an event for them.
    #[inline]
    pub fn publish(&mut self) -> Notify {
        let memory = self.memory.view();
        let (old, new) = (self.rsp_published, self.rsp_prod);
        if old == new {
            return Notify::No;
        }
        self.rsp_published = new;
        // The slots before the index, for the front end that reads the index; and our index before our look at its wish, which
        // pairs with `FrontRing::arm`.
        memory.announce(Field::RspProd, new);
        let event = memory.load(Field::RspEvent, Ordering::SeqCst);
        if passes(old, new, event) { Notify::Yes } else { Notify::No }
    }

    /// Does what [`publish`](Self::publish) and then [`arm`](Self::arm) do, at the price of one of them: their barriers, which cost
    /// more than all else, are one. For whoever has answered all that it took.
    ///
    /// # Errors
    /// As for `arm`. What is published is so nevertheless.
    #[inline(always)]
    pub fn publish_and_arm(&mut self) -> (Notify, Result<bool, RingError>) {
        let memory = self.memory.view();
        let (cons, old, new) = (self.req_cons, self.rsp_published, self.rsp_prod);
        let used_up = cons == self.req_prod;
        let mut notify = Notify::No;
        if old != new {
            self.rsp_published = new;
            if used_up {
                // Before the barrier of the next, behind which both are looked at: its wish here, its index below.
                memory.store(Field::ReqEvent, cons.plus(1), Ordering::Relaxed);
            }
            // As in `publish`.
            memory.announce(Field::RspProd, new);
            if passes(old, new, memory.load(Field::RspEvent, Ordering::SeqCst)) {
                notify = Notify::Yes;
            }
        } else if used_up {
            // As in `arm`.
            memory.announce(Field::ReqEvent, cons.plus(1));
        }
        if !used_up {
            return (notify, Ok(true));
        }
        let seen = self.look(&memory, cons);
        drop(memory);
        (notify, self.learn(cons, seen))
    }

    /// Asks for an event at the next request. Returns `true` if one has come meanwhile: then go on, no event will tell.
    ///
    /// # Errors
    /// [`RingError`] as [`pop`](Self::pop).
    #[inline]
    pub fn arm(&mut self) -> Result<bool, RingError> {
        let cons = self.req_cons;
        if cons != self.req_prod {
            return Ok(true);
        }
        // Our wish before our last look at its index; pairs with `FrontRing::publish`.
        self.memory.announce(Field::ReqEvent, cons.plus(1));
        self.refresh()
    }

    /// Reads the peer's index when what is known of it is used up, and tells whether there are requests.
    #[inline]
    fn refresh(&mut self) -> Result<bool, RingError> {
        let cons = self.req_cons;
        self.learn(cons, self.look(&self.memory, cons))
    }

    /// Takes what [`look`](Self::look) has seen for what is there.
    #[inline]
    fn learn(&mut self, cons: M::Index, seen: Result<M::Index, M::Index>) -> Result<bool, RingError> {
        match seen {
            Ok(prod) => {
                self.req_prod = prod;
                Ok(prod != cons)
            }
            Err(prod) => Err(self.fail(prod)),
        }
    }

    /// Reads the peer's index; it is the error, if it may not be that.
    #[inline]
    fn look(&self, memory: &impl RingMemory<Index = M::Index>, cons: M::Index) -> Result<M::Index, M::Index> {
        // A slot is the peer's again only when its response is published, so what was published is what counts. An index that has
        // gone back behind what was taken is far ahead, too.
        let (size, published) = (self.size(), self.rsp_published);
        if self.broken.is_some() {
            return Err(cons);
        }
        // Acquire: the index before the slots that it covers. And after our wish, if it is `arm` that asks.
        let req_prod = memory.load(Field::ReqProd, Ordering::SeqCst);
        if req_prod.minus(cons) > size - cons.minus(published) {
            return Err(req_prod);
        }
        Ok(req_prod)
    }

    /// Breaks the ring, if it isn't broken, and tells why it is.
    #[cold]
    fn fail(&mut self, prod: M::Index) -> RingError {
        let (claimed, size) = (prod.minus(self.rsp_published), self.size());
        // What a batch has left is not taken any more: whoever wants it is told instead.
        self.req_prod = self.req_cons;
        *self.broken.get_or_insert(RingError::PeerOverflow { claimed, size })
    }
}

/// Requests that are there: see [`BackRing::requests`].
pub struct Requests<'a, M: RingMemory + 'a> {
    memory: M::View<'a>,
    /// Here while they are taken and answered, in the ring when that is over: between two of them nobody looks.
    next: M::Index,
    end: M::Index,
    answer: M::Index,
    state: (&'a mut M::Index, &'a mut M::Index, &'a mut M::Index),
}

impl<'a, M: RingMemory + 'a> Requests<'a, M> {
    /// Takes the next into `request`, as [`BackRing::pop_into`] does; returns whether there was one.
    #[inline]
    pub fn next_into(&mut self, request: &mut M::Request) -> bool {
        if self.next == self.end {
            return false;
        }
        self.memory.read_request_into(self.next.slot(self.memory.slots() - 1), request);
        self.next = self.next.plus(1);
        true
    }

    /// Writes a response, as [`BackRing::respond`] does: also to a request that was taken before.
    #[inline]
    #[must_use = "without a request nothing was written"]
    pub fn respond(&mut self, response: &M::Response) -> bool {
        if self.answer == self.next {
            return false;
        }
        self.memory.write_response(self.answer.slot(self.memory.slots() - 1), response);
        self.answer = self.answer.plus(1);
        true
    }
}

impl<'a, M: RingMemory + 'a> Iterator for Requests<'a, M> {
    type Item = M::Request;

    #[inline]
    fn next(&mut self) -> Option<M::Request> {
        if self.next == self.end {
            return None;
        }
        let request = self.memory.read_request(self.next.slot(self.memory.slots() - 1));
        self.next = self.next.plus(1);
        Some(request)
    }
}

impl<'a, M: RingMemory + 'a> Drop for Requests<'a, M> {
    #[inline]
    fn drop(&mut self) {
        let (cons, prod, answered) = &mut self.state;
        (**cons, **prod, **answered) = (self.next, self.end, self.answer);
    }
}
