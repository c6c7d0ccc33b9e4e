//! The two ends of a device, and their coming and going, against the daemon.

mod common;

use common::{Client, World};
use hypercall::DomId;
use xenbus::device::{Device, Enumerator, Hotplug, State, Wish};
use xenbus::store::{Cause, Perm, Store, Tx};

const FRONT: &str = "/local/domain/1/device/vbd/51712";
const BACK: &str = "/local/domain/2/backend/vbd/1/51712";
const FRONT_PATH: &str = "device/vbd/51712";
const BACK_PATH: &str = "backend/vbd/1/51712";

struct Bed {
    world: World,
    toolstack: Client,
    front: Client,
    back: Client,
}

impl Bed {
    /// A device between domains 1 and 2, as a toolstack makes it.
    fn new() -> Self {
        let world = World::default();
        let bed = Self { toolstack: world.domain(0), front: world.domain(1), back: world.domain(2), world };
        bed.attach();
        bed
    }

    fn attach(&self) {
        let owned = |owner, reader| {
            let perm = |domain, read| Perm { domain: DomId(domain), read, write: false };
            [perm(owner, false), perm(reader, true)]
        };
        let toolstack = &self.toolstack;
        for (path, owner, reader) in [(FRONT, 1, 2), (BACK, 2, 1)] {
            toolstack.mkdir(Tx::NONE, path).unwrap();
            toolstack.set_permissions(Tx::NONE, path, &owned(owner, reader)).unwrap();
        }
        for (path, value) in [
            (format!("{BACK}/frontend"), FRONT),
            (format!("{BACK}/frontend-id"), "1"),
            (format!("{BACK}/online"), "1"),
            (format!("{BACK}/state"), "1"),
            (format!("{FRONT}/backend"), BACK),
            (format!("{FRONT}/backend-id"), "2"),
            (format!("{FRONT}/state"), "1"),
        ] {
            toolstack.write_text(Tx::NONE, &path, value).unwrap();
        }
    }

    fn settle(&self) {
        self.world.settle(&[&self.toolstack, &self.front, &self.back]);
    }
}

#[test]
fn each_end_finds_the_other_and_sees_its_state() {
    let bed = Bed::new();
    let mut front = Device::front(&bed.front, FRONT_PATH).unwrap();
    let mut back = Device::back(&bed.back, BACK_PATH).unwrap();
    assert_eq!((front.other_id(), back.other_id()), (DomId(2), DomId(1)));
    assert!(front.changed() && back.changed());
    assert!(!front.changed() && !back.changed());
    for state in [State::InitWait, State::Connected, State::Closing, State::Closed] {
        back.switch(state).unwrap();
        bed.settle();
        assert!(front.changed());
        assert_eq!(front.other_state().unwrap(), state);
        front.switch(state).unwrap();
        bed.settle();
        assert!(back.changed());
        assert_eq!(back.other_state().unwrap(), state);
        assert_eq!(back.state(), state);
    }
    back.write_own(Tx::NONE, "sectors", 77).unwrap();
    assert_eq!(front.read_other::<u64>(Tx::NONE, "sectors").unwrap(), 77);
    assert_eq!(front.read_other_if_there::<u64>(Tx::NONE, "none").unwrap(), None);
}

#[test]
fn other_end_that_vanishes_or_talks_rubbish_is_seen() {
    let bed = Bed::new();
    let mut front = Device::front(&bed.front, FRONT_PATH).unwrap();
    front.changed();
    for garbage in ["9", "-1", "four", "", "4 4", "18446744073709551616"] {
        bed.toolstack.write_text(Tx::NONE, &format!("{BACK}/state"), garbage).unwrap();
        assert!(matches!(front.other_state().unwrap_err().cause, Cause::BadValue(_)), "{garbage:?}");
    }
    bed.settle();
    assert!(front.changed());
    // To one that is closing it is as good as gone.
    for state in [State::Closing, State::Closed] {
        front.switch(state).unwrap();
        assert_eq!(front.other_state().unwrap(), State::Unknown);
    }
    bed.toolstack.rm(Tx::NONE, BACK).unwrap();
    bed.settle();
    assert!(front.changed());
    assert_eq!(front.other_state().unwrap(), State::Unknown);
}

#[test]
fn back_end_serves_whom_the_toolstack_says_whatever_the_front_end_writes() {
    let bed = Bed::new();
    for node in ["frontend", "frontend-id", "state", "online"] {
        assert!(bed.front.write_text(Tx::NONE, &format!("{BACK}/{node}"), "0").is_err());
    }
    for node in ["backend", "backend-id", "state"] {
        bed.front.write_text(Tx::NONE, &format!("{FRONT_PATH}/{node}"), "0").unwrap();
    }
    let back = Device::back(&bed.back, BACK_PATH).unwrap();
    assert_eq!(back.other_id(), DomId(1));
    // Nor does the back end follow a directory that is not of the domain that it was told.
    for frontend in ["/local/domain/11/device/vbd/51712", "/local/domain/1", "device/vbd/51712", "/", ""] {
        bed.toolstack.write_text(Tx::NONE, &format!("{BACK}/frontend"), frontend).unwrap();
        let error = Device::back(&bed.back, BACK_PATH).unwrap_err();
        assert!(matches!(error.cause, Cause::BadValue(_)), "{frontend}: {error}");
    }
    for id in ["65536", "-1", "one", ""] {
        bed.toolstack.write_text(Tx::NONE, &format!("{BACK}/frontend-id"), id).unwrap();
        assert!(Device::back(&bed.back, BACK_PATH).is_err());
    }
}

#[test]
fn toolstack_ends_a_device_by_the_back_ends_own_nodes() {
    let bed = Bed::new();
    let mut back = Device::back(&bed.back, BACK_PATH).unwrap();
    back.changed();
    let toolstack = |node: &str, value: u32| {
        bed.toolstack.write_text(Tx::NONE, &format!("{BACK}/{node}"), value).unwrap();
        bed.settle();
    };
    assert_eq!(back.wish().unwrap(), Wish::Stay);
    toolstack("state", 5);
    assert!(back.changed());
    assert_eq!(back.wish().unwrap(), Wish::Close);
    toolstack("online", 0);
    assert_eq!(back.wish().unwrap(), Wish::Leave);
    // It was written over by our own step, and is seen nevertheless.
    back.switch(State::InitWait).unwrap();
    bed.settle();
    assert!(back.changed());
    assert_eq!(back.wish().unwrap(), Wish::Leave);
    back.fault(format_args!("disk {} is on fire", 7));
    let fault = format!("/local/domain/2/error/{BACK_PATH}/error");
    assert_eq!(bed.toolstack.read_text(Tx::NONE, &fault).unwrap(), "disk 7 is on fire");
    back.remove().unwrap();
    assert!(bed.toolstack.directory(Tx::NONE, BACK).unwrap_err().is_absent());
    assert_eq!(back.wish().unwrap(), Wish::Gone);
    back.remove().unwrap();
}

#[test]
fn device_that_is_dropped_or_was_never_right_leaves_no_watch() {
    let bed = Bed::new();
    let device = Device::back(&bed.back, BACK_PATH).unwrap();
    assert_eq!(bed.world.holds(&bed.back).0, 2);
    drop(device);
    assert_eq!(bed.world.holds(&bed.back).0, 0);
    bed.toolstack.rm(Tx::NONE, &format!("{BACK}/frontend-id")).unwrap();
    assert!(Device::back(&bed.back, BACK_PATH).is_err());
    drop(Enumerator::back(&bed.back, "vbd").unwrap());
    assert_eq!(bed.world.holds(&bed.back).0, 0);
}

#[test]
fn states_are_the_numbers_of_the_wire_and_nothing_else() {
    let names = "Unknown Initialising InitWait Initialised Connected Closing Closed Reconfiguring Reconfigured";
    for (number, name) in names.split(' ').enumerate() {
        let state: State = number.to_string().parse().unwrap();
        assert_eq!(usize::from(state.number()), number);
        assert_eq!(state.to_string(), name);
    }
    for text in ["9", "10", "255", "256", "-1", "", "x", "4x"] {
        assert!(text.parse::<State>().is_err(), "{text:?}");
    }
}

#[test]
fn devices_that_come_and_go_are_told_once() {
    let bed = Bed::new();
    let mut fronts = Enumerator::front(&bed.front, "vbd").unwrap();
    let mut backs = Enumerator::back(&bed.back, "vbd").unwrap();
    let mut others = Enumerator::back(&bed.back, "vif").unwrap();
    bed.settle();
    assert_eq!(fronts.changes().unwrap(), [Hotplug::Added(FRONT_PATH.into())]);
    assert_eq!(backs.changes().unwrap(), [Hotplug::Added(BACK_PATH.into())]);
    assert_eq!(others.changes().unwrap(), []);
    assert_eq!(fronts.changes().unwrap(), []);

    bed.toolstack.mkdir(Tx::NONE, "/local/domain/2/backend/vif/3/0").unwrap();
    bed.toolstack.rm(Tx::NONE, BACK).unwrap();
    bed.settle();
    assert_eq!(backs.changes().unwrap(), [Hotplug::Removed(BACK_PATH.into())]);
    assert_eq!(others.changes().unwrap(), [Hotplug::Added("backend/vif/3/0".into())]);
    bed.toolstack.rm(Tx::NONE, "/local/domain/2/backend").unwrap();
    bed.settle();
    assert_eq!(others.changes().unwrap(), [Hotplug::Removed("backend/vif/3/0".into())]);
    assert_eq!(backs.changes().unwrap(), []);
}

#[test]
fn flood_of_devices_that_come_and_go_is_told_by_its_last_state() {
    let bed = Bed::new();
    let mut fronts = Enumerator::front(&bed.front, "vbd").unwrap();
    bed.settle();
    fronts.changes().unwrap();
    let rounds = if cfg!(miri) { 5 } else { 2000 };
    for n in 0..rounds {
        let path = format!("device/vbd/{}", n % 7);
        bed.front.mkdir(Tx::NONE, &path).unwrap();
        bed.front.write_text(Tx::NONE, &format!("{path}/state"), n % 9).unwrap();
        bed.front.rm(Tx::NONE, &path).unwrap();
    }
    bed.front.mkdir(Tx::NONE, "device/vbd/8").unwrap();
    bed.settle();
    assert_eq!(fronts.changes().unwrap(), [Hotplug::Added("device/vbd/8".into())]);
    assert_eq!(fronts.changes().unwrap(), []);
}

#[test]
fn front_end_of_a_restored_domain_finds_its_new_back_end() {
    let bed = Bed::new();
    let mut front = Device::front(&bed.front, FRONT_PATH).unwrap();
    let mut old = Device::back(&bed.back, BACK_PATH).unwrap();
    front.switch(State::Connected).unwrap();
    bed.front.suspend().unwrap();
    let port = bed.world.restore(&bed.front, 7);
    bed.front.reconnect(port).unwrap();
    // As long as the toolstack has not made the device anew, all stays.
    assert!(front.resume().unwrap_err().is_absent());
    assert_eq!((front.state(), front.other_id()), (State::Connected, DomId(2)));

    let (home, back) = ("/local/domain/7/device/vbd/51712", "/local/domain/3/backend/vbd/7/51712");
    for (path, value) in [
        (format!("{home}/backend"), back),
        (format!("{home}/backend-id"), "3"),
        (format!("{home}/state"), "1"),
        (format!("{back}/state"), "2"),
    ] {
        bed.toolstack.write_text(Tx::NONE, &path, value).unwrap();
    }
    let read = [Perm { domain: DomId(3), read: true, write: false }];
    bed.toolstack.set_permissions(Tx::NONE, &format!("{back}/state"), &read).unwrap();
    let own = [Perm { domain: DomId(7), read: false, write: false }];
    bed.toolstack.set_permissions(Tx::NONE, &format!("{home}/state"), &own).unwrap();
    front.resume().unwrap();
    assert_eq!((front.state(), front.other_id()), (State::Unknown, DomId(3)));
    assert_eq!(bed.world.holds(&bed.front), (1, 0), "the watch on the last one is unset");
    bed.settle();
    assert!(front.changed());
    assert_eq!(front.other_state().unwrap(), State::InitWait);
    old.switch(State::Closing).unwrap();
    bed.settle();
    assert!(!front.changed());
    bed.toolstack.write_text(Tx::NONE, &format!("{back}/state"), 4).unwrap();
    bed.settle();
    assert!(front.changed());
    assert_eq!(front.other_state().unwrap(), State::Connected);
    front.switch(State::Initialising).unwrap();
    assert_eq!(bed.toolstack.read_as::<u8>(Tx::NONE, &format!("{home}/state")).unwrap(), 1);
}
