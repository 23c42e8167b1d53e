//! The store as this process life uses it: reads with context, manifests it owns, names for new objects.
//!
//! A manifest is read once and kept while it is in use; every change goes through
//! [`ManifestStore::publish`], which applies it again to a newer version or says that another life owns it.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tidelog_archive::ErrorKind;
use tidelog_archive::env::{Clock, Entropy};
use tidelog_archive::key::NonceSource;
use tidelog_archive::manifest::{
    Loaded, Manifest, ManifestStore, Owner, Parent, PublishError, State,
};
use tidelog_archive::store::Store;
use tidelog_wal::{DatabaseId, NamespaceId, NodeId, Term, TxId};

use crate::crash_point;
use crate::database::DbMeta;
use crate::error::{Code, Error};
use crate::node::start::store_error;

/// Manifests kept in memory.
const KEPT_MAX: usize = 4096;

/// The store of a process life.
#[derive(Debug)]
pub(crate) struct Remote {
    pub(crate) store: Store,
    pub(crate) nonces: NonceSource,
    owner: Owner,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) entropy: Arc<dyn Entropy>,
    kept: Mutex<HashMap<DatabaseId, Loaded>>,
    /// The databases whose manifests are being read for nobody in particular.
    reading: Mutex<HashSet<DatabaseId>>,
    /// The store keeps old versions of what is replaced or deleted.
    pub(crate) keeps_versions: bool,
}

impl Remote {
    pub(crate) fn new(
        store: Store,
        term: Term,
        node: NodeId,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
    ) -> Self {
        Self {
            store,
            nonces: NonceSource::new(term, 1),
            owner: Owner { term, node },
            clock,
            entropy,
            kept: Mutex::new(HashMap::new()),
            reading: Mutex::default(),
            keeps_versions: false,
        }
    }

    /// The manifest of a database.
    pub(crate) fn manifests(&self, namespace: NamespaceId, id: DatabaseId) -> ManifestStore {
        ManifestStore::new(self.store.clone(), namespace, id, Arc::clone(&self.entropy))
    }

    /// Reads a whole object.
    pub(crate) async fn get(&self, key: &str) -> Result<Bytes, Error> {
        self.store
            .get(key)
            .await
            .map_err(|e| store_error("read an object", e))
    }

    /// Creates an immutable object under a key of this life's own.
    pub(crate) async fn create(&self, key: &str, bytes: Bytes) -> Result<(), Error> {
        match self.store.create(key, bytes).await {
            Ok(_) => Ok(()),
            Err(error) => Err(store_error("write an object", error)),
        }
    }

    pub(crate) fn remember(&self, id: DatabaseId, loaded: Loaded) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        // Two writers of this life may come here in either order: the newer version counts.
        let newer = |known: &Loaded| known.manifest.version > loaded.manifest.version;
        if kept.get(&id).is_some_and(newer) {
            return;
        }
        if kept.len() >= KEPT_MAX {
            kept.clear();
        }
        kept.insert(id, loaded);
    }

    /// Ordered time, in microseconds, of the oldest state that some database of this life's can be put back to;
    /// of those whose manifests are in memory.
    pub(crate) fn oldest_restorable(&self) -> Option<u64> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let reach = |loaded: &Loaded| {
            let manifest = &loaded.manifest;
            let base = manifest
                .images
                .iter()
                .filter(|image| image.position.txid <= manifest.horizon)
                .max_by_key(|image| image.position.txid);
            base.map_or(manifest.created, |image| image.time).micros()
        };
        kept.values().map(reach).min()
    }

    /// Bytes that a database's manifest lists, and up to which commit, if it is in memory.
    pub(crate) fn listed(&self, id: DatabaseId) -> Option<(u64, TxId)> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let manifest = &kept.get(&id)?.manifest;
        let settled = manifest.settled_position();
        let settled = settled.map_or(TxId::ZERO, |position| position.txid);
        Some((manifest.listed_bytes(), settled))
    }

    /// Whether nobody reads the manifest of a database for its own sake; from now on somebody does, until
    /// [`Remote::end_reading`].
    pub(crate) fn begin_reading(&self, id: DatabaseId) -> bool {
        let mut reading = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        reading.insert(id)
    }

    /// The manifest was read, or could not be.
    pub(crate) fn end_reading(&self, id: DatabaseId) {
        let mut reading = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        reading.remove(&id);
    }

    /// Forgets what is known of a manifest: it is read again when it is needed.
    pub(crate) fn forget(&self, id: DatabaseId) {
        self.kept
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&id);
    }

    fn remembered(&self, id: DatabaseId) -> Option<Loaded> {
        self.kept
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&id)
            .cloned()
    }

    /// Creates the manifest of a new database.
    pub(crate) async fn create_manifest(&self, meta: &DbMeta, name: &str) -> Result<(), Error> {
        let state = State::Active(self.clock.wall());
        self.create_manifest_of(meta, name, state, None)
            .await
            .map(drop)
    }

    /// Creates the manifest of a new database that may begin in another's history.
    pub(crate) async fn create_manifest_of(
        &self,
        meta: &DbMeta,
        name: &str,
        state: State,
        parent: Option<Parent>,
    ) -> Result<Loaded, Error> {
        self.make_key(meta.namespace, meta.id).await?;
        let now = self.clock.wall();
        let manifest = Manifest {
            namespace: meta.namespace,
            database: meta.id,
            version: 1,
            owner: self.owner,
            state,
            name_hint: name.to_owned(),
            page_size: meta.page_size,
            seed: meta.seed,
            created: now,
            retention_micros: crate::travel::retention::WINDOW_MICROS,
            horizon: TxId::ZERO,
            key_ids: Vec::new(),
            parent,
            settled: None,
            terms: Vec::new(),
            labels: Vec::new(),
            pins: Vec::new(),
            gaps: Vec::new(),
            index: Vec::new(),
            images: Vec::new(),
            segments: Vec::new(),
            marked: Vec::new(),
        };
        crash_point!("manifest.before_create");
        let created = self
            .manifests(meta.namespace, meta.id)
            .create(manifest)
            .await;
        let loaded = created.map_err(|e| publish_error("create a manifest", e))?;
        crash_point!("manifest.after_create");
        self.remember(meta.id, loaded.clone());
        Ok(loaded)
    }

    /// The manifest of a database, owned by this life: whoever finds it so may write.
    pub(crate) async fn owned_manifest(
        &self,
        namespace: NamespaceId,
        id: DatabaseId,
    ) -> Result<Loaded, Error> {
        if let Some(loaded) = self.remembered(id) {
            return Ok(loaded);
        }
        let manifests = self.manifests(namespace, id);
        let loaded = manifests
            .load()
            .await
            .map_err(|e| publish_error("read a manifest", e))?;
        let owned = if loaded.manifest.owner == self.owner {
            loaded
        } else {
            crash_point!("manifest.before_owner");
            self.publish(&loaded, |_| Ok(()))
                .await
                .map_err(|error: PublishError| publish_error("take a database over", error))?
        };
        crash_point!("manifest.after_owner");
        self.remember(id, owned.clone());
        // Somebody else of this life may have changed it meanwhile.
        Ok(self.remembered(id).unwrap_or(owned))
    }

    /// Whether a database was purged: its tombstone stands, or its keys are destroyed.
    pub(crate) async fn is_gone(
        &self,
        namespace: NamespaceId,
        id: DatabaseId,
    ) -> Result<bool, Error> {
        match self.owned_manifest(namespace, id).await {
            Ok(loaded) => Ok(matches!(loaded.manifest.state, State::Purged(_))),
            Err(error) if error.code() == Code::KeyUnavailable => {
                if self.is_shredded(namespace, id).await? {
                    Ok(true)
                } else {
                    Err(error)
                }
            }
            Err(error) => Err(error),
        }
    }

    /// Whether the keys of a database are destroyed.
    pub(crate) async fn is_shredded(
        &self,
        namespace: NamespaceId,
        id: DatabaseId,
    ) -> Result<bool, Error> {
        let status = self.keys(namespace, id).status().await;
        let status = status.map_err(crate::sealing::key_error)?;
        Ok(status.is_some_and(|status| status.shredded.is_some()))
    }

    /// Changes the manifest of a database, which this life takes over if need be. `change` may be called again
    /// on a newer version; an error of its own changes nothing.
    pub(crate) async fn change_of(
        &self,
        namespace: NamespaceId,
        id: DatabaseId,
        what: &str,
        change: impl FnMut(&mut Manifest) -> Result<(), Error>,
    ) -> Result<Loaded, Error> {
        let current = self.owned_manifest(namespace, id).await?;
        self.change(&current, what, change).await
    }

    /// Publishes a change of a manifest.
    pub(crate) async fn publish<E, C>(&self, current: &Loaded, change: C) -> Result<Loaded, E>
    where
        E: From<PublishError>,
        C: FnMut(&mut Manifest) -> Result<(), E>,
    {
        let manifest = &current.manifest;
        self.manifests(manifest.namespace, manifest.database)
            .publish(current, self.owner, &self.nonces, change)
            .await
    }
}

/// Turns a failure to read or publish a manifest into the engine's.
pub(crate) fn publish_error(what: &str, error: PublishError) -> Error {
    let code = match error.kind() {
        ErrorKind::Fenced => Code::WriterFenced,
        ErrorKind::Corrupt => Code::ObjectCorrupt,
        ErrorKind::KeyUnavailable => Code::KeyUnavailable,
        ErrorKind::OutcomeUnknown => Code::OutcomeUnknown,
        ErrorKind::Unavailable => Code::StorageUnavailable,
        ErrorKind::NotFound => Code::DatabaseNotFound,
        ErrorKind::Exhausted => Code::QuotaExceeded,
        _ => Code::Internal,
    };
    Error::new(code, format!("{what}: {error}")).caused_by(error)
}
