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
use crate::node::keys::refuse_sealed;
use crate::node::start::store_error;
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

    /// A stamp for a segment part: as [`section_key`](Self::section_key).
    pub(crate) fn part_stamp(
        &self,
        namespace: NamespaceId,
        id: DatabaseId,
    ) -> Result<Stamp, Error> {
        let key = self.section_key(namespace, id)?;
        Ok(Stamp::draw(self.entropy.as_ref(), key))
    }

    /// A stamp for a new journal object.
    pub(crate) fn journal_stamp(&self) -> Result<Stamp, Error> {
        let keys = self.store.keys();
        keys.journal_stamp(self.entropy.as_ref()).map_err(key_error)
    }

    /// The object of audit lines: sealed with the system's key, if it has one.
    pub(crate) fn audit_object(
        &self,
        namespace: NamespaceId,
        lines: String,
    ) -> Result<Bytes, Error> {
        let keys = self.store.keys();
        let key = match keys.system() {
            Some((system, id)) => keys.sealing(system, id).map_err(key_error)?,
            None => None,
        };
        if key.is_none() {
            return Ok(Bytes::from(lines));
        }
        let stamp = Stamp::draw(self.entropy.as_ref(), key);
        let sealed = tidelog_archive::audit::seal(namespace, stamp, &lines);
        let sealed = sealed.map_err(|e| Error::internal("seal audit lines").caused_by(e))?;
        Ok(sealed.bytes)
    }

    /// What seals the journaled records of a database. Those of one whose key object is gone are sealed with the
    /// system's key: an acknowledged record is neither lost nor shown, and the other tenants' are shipped. Those of
    /// one whose keys were destroyed are sealed with a key that nobody keeps.
    pub(crate) fn section_key(
        &self,
        namespace: NamespaceId,
        id: DatabaseId,
    ) -> Result<Option<Arc<SealKey>>, Error> {
        let keys = self.store.keys();
        match (keys.known(id), keys.system()) {
            (Known::Shredded, _) => {
                let thrown_away = SealKey::draw(self.entropy.as_ref(), self.clock.wall());
                Ok(Some(Arc::new(thrown_away)))
            }
            (Known::Lost, Some((namespace, system))) if system != id => {
                keys.sealing(namespace, system).map_err(key_error)
            }
            _ => keys.sealing(namespace, id).map_err(key_error),
        }
    }

    /// Refuses a database whose key object is known to be gone.
    fn sealing_of(&self, namespace: NamespaceId, id: DatabaseId) -> Result<(), Error> {
        let sealing = self.store.keys().sealing(namespace, id);
        sealing.map(drop).map_err(key_error)
    }

    /// Reads the key object of a database anew, aside: a key that was added since seals what is written next. Nobody
    /// waits for it, since opening what this node holds needs no store.
    pub(crate) fn refresh_key(&self, namespace: NamespaceId, id: DatabaseId) {
        if !self.store.keys().is_on() {
            return;
        }
        let keys = self.keys(namespace, id);
        tokio::spawn(async move {
            if let Err(error) = keys.refresh().await {
                tracing::debug!(database = %id, %error, "the key object was not read anew");
            }
        });
    }

    /// Learns how a database is sealed whose records stand in a journal of an earlier life.
    pub(crate) async fn learn(&self, namespace: NamespaceId, id: DatabaseId) -> Result<(), Error> {
        let ring = self.store.keys();
        match self.keys(namespace, id).ensure().await {
            Ok(()) | Err(KeyError::Missing { .. }) => {}
            Err(error) => return Err(key_error(error)),
        }
        if !ring.is_on() || !matches!(ring.known(id), Known::Plain | Known::Lost) {
            return Ok(());
        }
        let place = Key::manifest(namespace, id).to_string();
        match self.store.get(&place).await {
            Ok(bytes) => {
                let sealed = refuse_sealed(&place, &bytes);
                if let Err(error) = sealed.and_then(|()| self.sealing_of(namespace, id)) {
                    tracing::error!(%error, "the key of a database with unshipped commits is gone");
                    ring.note_lost(id);
                }
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(store_error("read a manifest", error)),
        }
    }

    /// Destroys the data keys of a database, in the store and here: from then on nothing of it that is stored
    /// opens, whoever holds the master keys. Doing it again is no error; a plain database has no keys to destroy.
    ///
    /// Whoever purges reads the manifest first, then calls this, then publishes the tombstone, which is plain from
    /// then on, and deletes the objects.
    pub(crate) async fn shred(&self, namespace: NamespaceId, id: DatabaseId) -> Result<(), Error> {
        let now = self.clock.wall();
        let keys = self.keys(namespace, id);
        keys.shred(now, self.entropy.as_ref())
            .await
            .map_err(key_error)
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
