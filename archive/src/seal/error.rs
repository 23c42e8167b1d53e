//! What can go wrong with keys.

use crate::ErrorKind;
use crate::envelope::{CorruptObject, KeyId};
use crate::store::StoreError;

/// Why a key is not at hand, or was not changed.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The data key is wrapped by a master key that was not given.
    #[error(
        "{object}: data key {key_id} is wrapped by master key {master:?}, which is not at hand"
    )]
    MasterMissing {
        /// The key object.
        object: String,
        /// The data key.
        key_id: KeyId,
        /// The master key.
        master: String,
    },
    /// The master key of that id does not open it: it is another key, or the object was changed.
    #[error(
        "{object}: master key {master:?} does not open data key {key_id}: it is another key of \
         that name, or the object was changed"
    )]
    MasterWrong {
        /// The key object.
        object: String,
        /// The data key.
        key_id: KeyId,
        /// The master key.
        master: String,
    },
    /// The database's keys were destroyed.
    #[error("{object}: the keys of this database were destroyed")]
    Shredded {
        /// The key object.
        object: String,
    },
    /// Nothing is known of the database's key, so nothing is written for it.
    #[error("{object}: the data key was not read")]
    Unread {
        /// The key object.
        object: String,
    },
    /// There is no key object.
    #[error("{object} is missing: the database is not sealed, or its keys are lost")]
    Missing {
        /// Where it would stand.
        object: String,
    },
    /// No master key was given.
    #[error("{object}: no master key is at hand")]
    Off {
        /// The key object.
        object: String,
    },
    /// Others changed the object each time.
    #[error("{object} changed under {attempts} attempts to change it")]
    Contended {
        /// Which object.
        object: String,
        /// How often it was tried.
        attempts: u32,
    },
    /// The object is refused.
    #[error(transparent)]
    Corrupt(#[from] CorruptObject),
    /// The store did not do what was asked.
    #[error("reading or writing {object} failed")]
    Store {
        /// Which object.
        object: String,
        /// Why.
        #[source]
        source: StoreError,
    },
}

impl KeyError {
    /// What it means for the caller.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::MasterMissing { .. }
            | Self::MasterWrong { .. }
            | Self::Shredded { .. }
            | Self::Unread { .. }
            | Self::Missing { .. }
            | Self::Off { .. } => ErrorKind::KeyUnavailable,
            Self::Contended { .. } => ErrorKind::Conflict,
            Self::Corrupt(error) => error.kind(),
            Self::Store { source, .. } => source.kind(),
        }
    }
}
