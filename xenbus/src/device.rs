//! The state machine of a split device: its two ends, their directories in xenstore, and their coming and going.
//!
//! ```text
//!        front end                                   back end
//!   Initialising (1)                            Initialising (1)
//!        │                                           │ tells what it offers
//!        │          sees 2: makes the ring ◄──── InitWait (2)
//!   Initialised (3) ────► sees 3: maps the ring      │
//!        │                 sees 4: starts ◄───── Connected (4)
//!   Connected (4)                                    │
//!        │                                           │
//!   Closing (5)     either end may begin         Closing (5)
//!   Closed (6)      the ring is nobody's         Closed (6) ──► InitWait again, if it is still `online`
//! ```
//!
//! Each end writes its own `state` and watches the other's. States don't have an order: 7 and 8 are used by PCI alone.

use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;
use core::str::FromStr;

use hypercall::DomId;

use crate::store::{Cause, Errno, Store, StoreError, Tx, WatchId};

/// io/xenbus.h, enum xenbus_state, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// There is no such end, or it says nothing.
    Unknown,
    /// It has begun.
    Initialising,
    /// The back end has told what it offers and waits for the front end.
    InitWait,
    /// The front end has told where its ring is.
    Initialised,
    /// I/O may flow.
    Connected,
    /// It wants to go, or is going.
    Closing,
    /// It is gone.
    Closed,
    /// PCI only.
    Reconfiguring,
    /// PCI only.
    Reconfigured,
}

/// What the toolstack wants of a back end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Serve.
    Stay,
    /// Close; the front end may come back.
    Close,
    /// Close, and remove the directory.
    Leave,
    /// The directory is removed already, or one for another device stands in the place of a closed one's: let go of everything, and write
    /// nothing any more.
    Gone,
}

/// All states, each at the place of its number.
const STATES: [State; 9] = [
    State::Unknown,
    State::Initialising,
    State::InitWait,
    State::Initialised,
    State::Connected,
    State::Closing,
    State::Closed,
    State::Reconfiguring,
    State::Reconfigured,
];

impl State {
    /// Returns its number on the wire.
    pub const fn number(self) -> u8 {
        self as u8
    }
}

/// A number that stands for no state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoState;

impl FromStr for State {
    type Err = NoState;

    fn from_str(text: &str) -> Result<Self, NoState> {
        let number: usize = text.parse().map_err(|_| NoState)?;
        STATES.get(number).copied().ok_or(NoState)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// One end of a split device: its directory, the other's, and the watches on both.
#[derive(Debug)]
pub struct Device<S: Store> {
    store: S,
    path: String,
    other_path: String,
    other_id: DomId,
    state: State,
    other_watch: WatchId,
    /// A back end watches its own state too: the toolstack asks for the end by writing it.
    own_watch: Option<WatchId>,
}

impl<S: Store> Device<S> {
    /// Takes the front end whose directory is `path`, as in "device/vbd/51712".
    ///
    /// # Errors
    /// [`StoreError`] if `backend` or `backend-id` is not there, is garbage, or doesn't fit together.
    pub fn front(store: &S, path: &str) -> Result<Self, StoreError> {
        Self::new(store, path, "backend", false)
    }

    /// Takes the back end whose directory is `path`, as in "backend/vbd/1/51712". Whom it serves is what the toolstack wrote
    /// into that directory, whatever the front end says.
    ///
    /// # Errors
    /// [`StoreError`] if `frontend` or `frontend-id` is not there, is garbage, or doesn't fit together.
    pub fn back(store: &S, path: &str) -> Result<Self, StoreError> {
        Self::new(store, path, "frontend", true)
    }

    fn new(store: &S, path: &str, other: &str, back: bool) -> Result<Self, StoreError> {
        let (other_path, other_id) = find(store, path, other)?;
        let other_watch = store.watch(&format!("{other_path}/state"))?;
        let own_watch = if back { Some(store.watch(&format!("{path}/state"))) } else { None };
        let own_watch = own_watch.transpose().inspect_err(|_| _ = store.unwatch(other_watch))?;
        Ok(Self {
            store: store.clone(),
            path: path.into(),
            other_path,
            other_id,
            state: State::Unknown,
            other_watch,
            own_watch,
        })
    }

    /// Front end: finds the back end of a domain that has come back from a suspend, where the toolstack has made the device anew. Its own
    /// state is nothing until it is [switched](Self::switch).
    ///
    /// # Errors
    /// As [`front`](Self::front); nothing has changed then.
    pub fn resume(&mut self) -> Result<(), StoreError> {
        let (other_path, other_id) = find(&self.store, &self.path, "backend")?;
        let other_watch = self.store.watch(&format!("{other_path}/state"))?;
        // A watch that can't be unset costs an event that nobody takes.
        let _ = self.store.unwatch(self.other_watch);
        (self.other_path, self.other_id, self.other_watch) = (other_path, other_id, other_watch);
        self.state = State::Unknown;
        Ok(())
    }

    /// Returns the store.
    pub const fn store(&self) -> &S {
        &self.store
    }

    /// Returns the own directory.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Returns the domain of the other end.
    pub const fn other_id(&self) -> DomId {
        self.other_id
    }

    /// Returns the own state, as last [switched](Self::switch) to.
    pub const fn state(&self) -> State {
        self.state
    }

    /// Tells whether either state may have changed since this was last asked.
    pub fn changed(&self) -> bool {
        let other = self.store.fired(self.other_watch);
        let own = self.own_watch.is_some_and(|watch| self.store.fired(watch));
        other || own
    }

    /// Reads the state of the other end: [`State::Unknown`] if it has none.
    ///
    /// # Errors
    /// [`StoreError`]; [`Cause::BadValue`] if it is garbage, unless we are closing: an end that talks rubbish, or lets us not read it,
    /// is as good as gone then.
    pub fn other_state(&self) -> Result<State, StoreError> {
        match self.read_other_if_there(Tx::NONE, "state") {
            Ok(state) => Ok(state.unwrap_or(State::Unknown)),
            Err(StoreError { cause: Cause::BadValue(_) | Cause::Refused(Errno::Acces), .. }) if self.is_closing() => {
                Ok(State::Unknown)
            }
            Err(error) => Err(error),
        }
    }

    /// Tells whether the own state is one of those at the end.
    pub const fn is_closing(&self) -> bool {
        matches!(self.state, State::Closing | State::Closed)
    }

    /// Writes the own state.
    ///
    /// # Errors
    /// [`StoreError`]; the state is the old one then.
    pub fn switch(&mut self, state: State) -> Result<(), StoreError> {
        self.write_own(Tx::NONE, "state", state.number())?;
        self.state = state;
        Ok(())
    }

    /// Writes one of the states at the end. It is the own state even if the store refuses to be told: an end that is going is not
    /// held up by that, and what it may do depends on it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn leave(&mut self, state: State) -> Result<(), StoreError> {
        self.state = state;
        self.write_own(Tx::NONE, "state", state.number())
    }

    /// Back end: tells what the toolstack wants. It asks for the end by writing "closing" into our own state and 0 into `online`.
    /// What we write ourselves may hide the first from us, never the second.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn wish(&self) -> Result<Wish, StoreError> {
        let Some(state) = self.read_own_if_there::<State>(Tx::NONE, "state")? else { return Ok(Wish::Gone) };
        if (self.state, state) == (State::Closed, State::Initialising) {
            return Ok(Wish::Gone);
        }
        if self.read_own_if_there(Tx::NONE, "online")? != Some(1u32) {
            return Ok(Wish::Leave);
        }
        Ok(if state == State::Closing { Wish::Close } else { Wish::Stay })
    }

    /// Reads one of the other end's nodes.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn read_other<T: FromStr>(&self, tx: Tx, node: &str) -> Result<T, StoreError> {
        self.store.read_as(tx, &format!("{}/{node}", self.other_path))
    }

    /// Reads one of the other end's nodes, `None` if it isn't there.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn read_other_if_there<T: FromStr>(&self, tx: Tx, node: &str) -> Result<Option<T>, StoreError> {
        self.store.read_if_there(tx, &format!("{}/{node}", self.other_path))
    }

    /// Reads one of the own nodes, `None` if it isn't there.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn read_own_if_there<T: FromStr>(&self, tx: Tx, node: &str) -> Result<Option<T>, StoreError> {
        self.store.read_if_there(tx, &format!("{}/{node}", self.path))
    }

    /// Writes one of the own nodes.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn write_own(&self, tx: Tx, node: &str, value: impl fmt::Display) -> Result<(), StoreError> {
        self.store.write_text(tx, &format!("{}/{node}", self.path), value)
    }

    /// Removes one of the own nodes, if it is there.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn remove_own(&self, tx: Tx, node: &str) -> Result<(), StoreError> {
        let removed = self.store.rm(tx, &format!("{}/{node}", self.path));
        removed.or_else(|error| if error.is_absent() { Ok(()) } else { Err(error) })
    }

    /// Removes the own directory, if it is still there: a back end's last deed.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn remove(&self) -> Result<(), StoreError> {
        self.store.rm(Tx::NONE, &self.path).or_else(|error| if error.is_absent() { Ok(()) } else { Err(error) })
    }

    /// Tells the toolstack what went wrong, in the node `error/PATH/error` of the domain. It is no more than a message: that it
    /// can't be written is no error of its own.
    pub fn fault(&self, message: fmt::Arguments<'_>) {
        let _ = self.store.write_text(Tx::NONE, &format!("error/{}/error", self.path), message);
    }
}

/// Finds the other end of a device: its directory and its domain.
fn find<S: Store>(store: &S, path: &str, other: &str) -> Result<(String, DomId), StoreError> {
    let node = format!("{path}/{other}");
    let other_path = store.read_text(Tx::NONE, &node)?;
    let other_id = DomId(store.read_as(Tx::NONE, &format!("{node}-id"))?);
    if !other_path.starts_with(&format!("/local/domain/{}/", other_id.0)) {
        return Err(StoreError { op: "read", path: node, cause: Cause::BadValue(other_path) });
    }
    Ok((other_path, other_id))
}

impl<S: Store> Drop for Device<S> {
    fn drop(&mut self) {
        // A watch that can't be unset costs an event that nobody takes.
        let _ = self.store.unwatch(self.other_watch);
        if let Some(watch) = self.own_watch {
            let _ = self.store.unwatch(watch);
        }
    }
}

/// A device came or went. The path is relative to the domain's home, as [`Device::front`] and [`Device::back`] take it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hotplug {
    /// It is new.
    Added(String),
    /// Its directory is not there any more.
    Removed(String),
}

/// Watches for devices of one class.
#[derive(Debug)]
pub struct Enumerator<S: Store> {
    store: S,
    root: String,
    /// Levels of directories between the root and a device: one for front ends, two for back ends.
    levels: usize,
    watch: WatchId,
    /// The watch has fired, and the store was not read since.
    dirty: bool,
    known: BTreeSet<String>,
}

impl<S: Store> Enumerator<S> {
    /// Watches for front ends, in "device/CLASS".
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn front(store: &S, class: &str) -> Result<Self, StoreError> {
        Self::new(store, format!("device/{class}"), 1)
    }

    /// Watches for back ends, in "backend/CLASS", which need not be there yet.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn back(store: &S, class: &str) -> Result<Self, StoreError> {
        Self::new(store, format!("backend/{class}"), 2)
    }

    fn new(store: &S, root: String, levels: usize) -> Result<Self, StoreError> {
        let watch = store.watch(&root)?;
        Ok(Self { store: store.clone(), root, levels, watch, dirty: false, known: BTreeSet::new() })
    }

    /// Returns what has come and gone since this was last asked. However often the store has changed, it is read once.
    ///
    /// # Errors
    /// [`StoreError`]; the changes are told next time then.
    pub fn changes(&mut self) -> Result<Vec<Hotplug>, StoreError> {
        self.dirty |= self.store.fired(self.watch);
        if !self.dirty {
            return Ok(Vec::new());
        }
        let mut now = BTreeSet::from([self.root.clone()]);
        for _ in 0..self.levels {
            let mut below = BTreeSet::new();
            for path in now {
                match self.store.directory(Tx::NONE, &path) {
                    Ok(names) => below.extend(names.iter().map(|name| format!("{path}/{name}"))),
                    // It went between two looks, or was never there.
                    Err(error) if error.is_absent() => {}
                    Err(error) => return Err(error),
                }
            }
            now = below;
        }
        let gone = self.known.difference(&now).map(|path| Hotplug::Removed(path.to_string()));
        let new = now.difference(&self.known).map(|path| Hotplug::Added(path.to_string()));
        let changes = gone.chain(new).collect();
        self.known = now;
        self.dirty = false;
        Ok(changes)
    }
}

impl<S: Store> Drop for Enumerator<S> {
    fn drop(&mut self) {
        // A watch that can't be unset costs an event that nobody takes.
        let _ = self.store.unwatch(self.watch);
    }
}
