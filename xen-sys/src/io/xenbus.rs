//! `io/xenbus.h`: the state of one end of a split device.

/// `io/xenbus.h`, `enum xenbus_state`. State of a device's end, as a decimal number in its xenstore node `state`.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct XenbusState(pub u32);

impl XenbusState {
    /// `XenbusStateUnknown`: no node.
    pub const UNKNOWN: Self = Self(0);
    /// `XenbusStateInitialising`: the end has just been made.
    pub const INITIALISING: Self = Self(1);
    /// `XenbusStateInitWait`: the back end has written its features and waits for the front end.
    pub const INIT_WAIT: Self = Self(2);
    /// `XenbusStateInitialised`: the front end has written its rings and waits for the back end.
    pub const INITIALISED: Self = Self(3);
    /// `XenbusStateConnected`: works.
    pub const CONNECTED: Self = Self(4);
    /// `XenbusStateClosing`: about to close; asks the other end to do the same.
    pub const CLOSING: Self = Self(5);
    /// `XenbusStateClosed`: done.
    pub const CLOSED: Self = Self(6);
    /// `XenbusStateReconfiguring`: devices of a bus change.
    pub const RECONFIGURING: Self = Self(7);
    /// `XenbusStateReconfigured`: devices of a bus have changed.
    pub const RECONFIGURED: Self = Self(8);
}
