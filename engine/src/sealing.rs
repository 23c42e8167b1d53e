//! Keys as the engine uses them: how objects of a database are stamped, and what a missing key means.
//!
//! What is sealed, and how, stands in [`tidelog_archive::seal`]. A key that is not at hand is always
//! [`Code::KeyUnavailable`], naming object and key: nothing is guessed, nothing is served as empty.

use std::sync::Arc;

use bytes::Bytes;
use tidelog_archive::ErrorKind;
use tidelog_archive::envelope::FormatError;
use tidelog_archive::journal::JournalObject;
use tidelog_archive::key::{Key, Seq};
use tidelog_archive::seal::{KeyError, KeyStore, Known, SealKey, Stamp};
use tidelog_archive::store::Store;
use tidelog_wal::{DatabaseId, NamespaceId, Term};

use crate::error::{Code, Error};
use crate::remote::Remote;

/// Turns a failure to get at a key into the engine's.
pub(crate) fn key_error(error: KeyError) -> Error {
    let code = match error.kind() {
        ErrorKind::KeyUnavailable => Code::KeyUnavailable,
        ErrorKind::Corrupt => Code::ObjectCorrupt,
        ErrorKind::OutcomeUnknown => Code::OutcomeUnknown,
        ErrorKind::Conflict => Code::DatabaseMoved,
        ErrorKind::Unavailable => Code::StorageUnavailable,
        ErrorKind::Invalid => Code::Refused,
        _ => Code::Internal,
    };
    Error::new(code, error.to_string()).caused_by(error)
}

/// Turns a refusal of the object at `key` into the engine's.
pub(crate) fn refused(key: &str, error: FormatError) -> Error {
    let code = match error.kind() {
        ErrorKind::KeyUnavailable => Code::KeyUnavailable,
        _ => Code::ObjectCorrupt,
    };
    let mut made = Error::new(code, format!("object {key}: {error}")).with("object", key);
    if let FormatError::KeyUnavailable { key_id } = &error {
        made = made.with("key_id", key_id.to_string());
    }
    made.caused_by(error)
}

/// Reads a journal object: its index, and on demand the sections whose keys are at hand.
pub(crate) async fn journal(
    store: &Store,
    bytes: &Bytes,
    term: Term,
    seq: Seq,
) -> Result<JournalObject, Error> {
    store.unlock_head(bytes).await.map_err(key_error)?;
    JournalObject::decode(bytes, term, seq, store.keys())
        .map_err(|error| refused(&Key::Journal(term, seq).to_string(), error))
}

impl Remote {
    /// The key object of a database.
    pub(crate) fn keys(&self, namespace: NamespaceId, id: DatabaseId) -> KeyStore {
        KeyStore::new(self.store.clone(), namespace, id)
    }

    /// A stamp for a new object of a database whose manifest was read or made in this life.
    pub(crate) fn stamp(&self, namespace: NamespaceId, id: DatabaseId) -> Result<Stamp, Error> {
        let keys = self.store.keys();
        keys.stamp(namespace, id, self.entropy.as_ref())
            .map_err(key_error)
    }

    /// A stamp for a new journal object.
    pub(crate) fn journal_stamp(&self) -> Result<Stamp, Error> {
        let keys = self.store.keys();
        keys.journal_stamp(self.entropy.as_ref()).map_err(key_error)
    }

    /// What seals the sections of a database.
    pub(crate) fn section_key(
        &self,
        namespace: NamespaceId,
        id: DatabaseId,
    ) -> Result<Option<Arc<SealKey>>, Error> {
        let keys = self.store.keys();
        keys.sealing(namespace, id).map_err(key_error)
    }

    /// Makes the data key of a new database, before anything else of it is stored. Nothing to do without master
    /// keys.
    pub(crate) async fn make_key(
        &self,
        namespace: NamespaceId,
        id: DatabaseId,
    ) -> Result<(), Error> {
        if !self.store.keys().is_on() || matches!(self.store.keys().known(id), Known::Key(_)) {
            return Ok(());
        }
        let now = self.clock.wall();
        let keys = self.keys(namespace, id);
        let made = keys.create(now, self.entropy.as_ref(), false).await;
        made.map(drop).map_err(key_error)
    }
}
