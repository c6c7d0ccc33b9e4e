//! What `xl` does with xenstore: makes and removes devices.

use alloc::format;
use alloc::string::String;

use hypercall::DomId;
use xenbus::device::State;
use xenbus::store::{Perm, Store, StoreError, Tx};

/// A device that is to be made, as `xl` is told of it.
#[derive(Clone, Debug)]
pub struct NewDevice<'a> {
    /// Its class, as in "vbd" and "vif".
    pub class: &'static str,
    /// Its number, as in 51712 for xvda.
    pub handle: u32,
    /// The domain that uses it.
    pub front: DomId,
    /// The domain that serves it.
    pub back: DomId,
    /// More nodes of the back end's directory.
    pub back_nodes: &'a [(&'a str, &'a str)],
    /// More nodes of the front end's directory.
    pub front_nodes: &'a [(&'a str, &'a str)],
}

impl NewDevice<'_> {
    /// Returns the front end's directory, from the front end's home.
    pub fn front_path(&self) -> String {
        format!("device/{}/{}", self.class, self.handle)
    }

    /// Returns the back end's directory, from the back end's home.
    pub fn back_path(&self) -> String {
        format!("backend/{}/{}/{}", self.class, self.front.0, self.handle)
    }

    fn absolute(&self) -> (String, String) {
        (
            format!("/local/domain/{}/{}", self.front.0, self.front_path()),
            format!("/local/domain/{}/{}", self.back.0, self.back_path()),
        )
    }

    /// Makes the directories of both ends, each owned by its own domain and readable by the other.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn attach<S: Store>(&self, toolstack: &S) -> Result<(), StoreError> {
        let (front, back) = self.absolute();
        toolstack.transaction(|tx| {
            let owned = |owner, reader| {
                [Perm { domain: owner, read: false, write: false }, Perm { domain: reader, read: true, write: false }]
            };
            toolstack.mkdir(tx, &front)?;
            toolstack.set_permissions(tx, &front, &owned(self.front, self.back))?;
            toolstack.mkdir(tx, &back)?;
            toolstack.set_permissions(tx, &back, &owned(self.back, self.front))?;
            toolstack.write_text(tx, &format!("{back}/frontend"), &front)?;
            toolstack.write_text(tx, &format!("{back}/frontend-id"), self.front.0)?;
            toolstack.write_text(tx, &format!("{back}/online"), 1)?;
            for (node, value) in self.back_nodes {
                toolstack.write_text(tx, &format!("{back}/{node}"), value)?;
            }
            toolstack.write_text(tx, &format!("{back}/state"), State::Initialising.number())?;
            toolstack.write_text(tx, &format!("{front}/backend"), &back)?;
            toolstack.write_text(tx, &format!("{front}/backend-id"), self.back.0)?;
            toolstack.write_text(tx, &format!("{front}/handle"), self.handle)?;
            for (node, value) in self.front_nodes {
                toolstack.write_text(tx, &format!("{front}/{node}"), value)?;
            }
            toolstack.write_text(tx, &format!("{front}/state"), State::Initialising.number())
        })
    }

    /// Asks the back end to let the device go, as `xl block-detach` does.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn ask_detach<S: Store>(&self, toolstack: &S) -> Result<(), StoreError> {
        let (_, back) = self.absolute();
        toolstack.transaction(|tx| {
            toolstack.write_text(tx, &format!("{back}/online"), 0)?;
            toolstack.write_text(tx, &format!("{back}/state"), State::Closing.number())
        })
    }

    /// Removes the directories of both ends, as is done for a domain that is no more.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn remove<S: Store>(&self, toolstack: &S) -> Result<(), StoreError> {
        let (front, back) = self.absolute();
        toolstack.rm(Tx::NONE, &back).and(toolstack.rm(Tx::NONE, &front))
    }

    /// Removes what is left of the front end's directory.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn clean_up<S: Store>(&self, toolstack: &S) -> Result<(), StoreError> {
        toolstack.rm(Tx::NONE, &self.absolute().0)
    }

    /// Tells whether the back end's directory is there.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn back_exists<S: Store>(&self, toolstack: &S) -> Result<bool, StoreError> {
        match toolstack.directory(Tx::NONE, &self.absolute().1) {
            Ok(_) => Ok(true),
            Err(error) if error.is_absent() => Ok(false),
            Err(error) => Err(error),
        }
    }
}
