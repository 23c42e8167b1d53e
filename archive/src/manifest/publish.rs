//! Publishing: the one way a manifest changes.
//!
//! A change is a function of the current manifest, applied again to a newer one whenever the
//! compare-and-swap is lost to a writer of the same owner. Losing it to a newer owner means fenced. Whether
//! our write stands is judged by the write id in the stored bytes alone, never by an answer that may be late
//! or lost.

use std::fmt;
use std::sync::Arc;

use tidelog_wal::{DatabaseId, NamespaceId};

use super::entry::{IndexEntry, Marked};
use super::fold::NewIndexObject;
use super::invariants::ManifestError;
use super::model::{Manifest, Owner, State};
use crate::envelope::{FormatError, WriteId};
use crate::index::IndexObject;
use crate::key::{Key, NonceSource};
use crate::seal::{KeyError, KeyStore, Known, Stamp};
use crate::store::{Store, StoreError, Version};
use crate::{Entropy, ErrorKind};

/// How often a lost compare-and-swap is tried again: writers of one owner are few and take turns.
const ATTEMPTS_MAX: u32 = 16;

/// Why a manifest was not read or published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The store did not do what was asked.
    #[error("reading or writing {key} failed")]
    Store {
        /// Which object.
        key: String,
        /// Why.
        #[source]
        source: StoreError,
    },
    /// The database's key is not at hand.
    #[error("{key} cannot be sealed or opened")]
    Key {
        /// Which object.
        key: String,
        /// Why.
        #[source]
        source: KeyError,
    },
    /// The store shows an older version than it did before: the object was put back.
    #[error("{key} went back from version {known} to {found}")]
    WentBack {
        /// Which manifest.
        key: String,
        /// The version that is known to have been written.
        known: u64,
        /// The version that stands there.
        found: u64,
    },
    /// Stored bytes, or the manifest to be written, are refused.
    #[error("{key} is refused")]
    Manifest {
        /// Which object.
        key: String,
        /// Why.
        #[source]
        source: ManifestError,
    },
    /// A newer process life owns the database.
    #[error("{key} belongs to term {} of node {}", by.term, by.node)]
    Fenced {
        /// Which manifest.
        key: String,
        /// Who owns it.
        by: Owner,
    },
    /// There is no such database.
    #[error("no manifest at {key}")]
    Missing {
        /// Where it would stand.
        key: String,
    },
    /// There is such a database already.
    #[error("a manifest stands at {key} already")]
    Exists {
        /// Where it stands.
        key: String,
    },
    /// Other writers of the same owner were faster each time.
    #[error("{key} changed under {attempts} attempts to change it")]
    Contended {
        /// Which manifest.
        key: String,
        /// How often it was tried.
        attempts: u32,
    },
}

impl PublishError {
    /// What it means for the caller.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Store { source, .. } => source.kind(),
            Self::Key { source, .. } => source.kind(),
            Self::WentBack { .. } => ErrorKind::Corrupt,
            Self::Manifest { source, .. } => source.kind(),
            Self::Fenced { .. } => ErrorKind::Fenced,
            Self::Missing { .. } => ErrorKind::NotFound,
            Self::Exists { .. } | Self::Contended { .. } => ErrorKind::Conflict,
        }
    }
}

/// A manifest as it stands in the store.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// What it says.
    pub manifest: Manifest,
    /// Which PUT wrote it.
    pub write_id: WriteId,
    /// What the store calls that write.
    pub version: Version,
}

/// The manifest of one database in its store.
#[derive(Clone)]
pub struct ManifestStore {
    store: Store,
    entropy: Arc<dyn Entropy>,
    namespace: NamespaceId,
    database: DatabaseId,
    key: String,
}

impl fmt::Debug for ManifestStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ManifestStore")
            .field("key", &self.key)
            .finish_non_exhaustive()
    }
}

impl ManifestStore {
    /// The manifest of `database`.
    pub fn new(
        store: Store,
        namespace: NamespaceId,
        database: DatabaseId,
        entropy: Arc<dyn Entropy>,
    ) -> Self {
        Self {
            store,
            entropy,
            namespace,
            database,
            key: Key::manifest(namespace, database).to_string(),
        }
    }

    /// The store it stands in.
    pub const fn store(&self) -> &Store {
        &self.store
    }

    /// Reads it; [`PublishError::Missing`] if there is none.
    pub async fn load(&self) -> Result<Loaded, PublishError> {
        let (bytes, version) = match self.store.get_versioned(&self.key).await {
            Ok(found) => found,
            Err(StoreError::NotFound { key }) => return Err(PublishError::Missing { key }),
            Err(source) => return Err(self.store_error(source)),
        };
        self.store
            .unlock_head(&bytes)
            .await
            .map_err(|source| self.key_error(source))?;
        let keys = self.store.keys();
        let (manifest, write_id) = Manifest::decode(&bytes, self.namespace, self.database, keys)
            .map_err(|source| self.refused(source))?;
        Ok(Loaded {
            manifest,
            write_id,
            version,
        })
    }

    /// Creates it, version 1; [`PublishError::Exists`] if there is one that is not this one.
    pub async fn create(&self, manifest: Manifest) -> Result<Loaded, PublishError> {
        let first = manifest.version == 1
            && (manifest.namespace, manifest.database) == (self.namespace, self.database);
        if !first {
            return Err(self.refused(ManifestError::NotFollowing {
                what: "it is not the first of this database",
                at: tidelog_wal::TxId::ZERO,
            }));
        }
        let mut manifest = manifest;
        let stamp = self.sealing(&mut manifest).await?;
        let write_id = stamp.write_id;
        let bytes = manifest
            .encode(stamp)
            .map_err(|source| self.refused(source))?
            .bytes;
        match self.store.create(&self.key, bytes).await {
            Ok(version) => Ok(Loaded {
                manifest,
                write_id,
                version,
            }),
            Err(source) => match self.ours(write_id, &source).await? {
                Ok(loaded) => Ok(loaded),
                Err(Some(_)) => Err(PublishError::Exists {
                    key: self.key.clone(),
                }),
                Err(None) => Err(self.store_error(source)),
            },
        }
    }

    /// Publishes `change` on top of `current` as `owner`, folding old entries into index objects when the
    /// root is full. `change` may be called again on a newer manifest.
    pub async fn publish<E, C>(
        &self,
        current: &Loaded,
        owner: Owner,
        nonces: &NonceSource,
        mut change: C,
    ) -> Result<Loaded, E>
    where
        E: From<PublishError>,
        C: FnMut(&mut Manifest) -> Result<(), E>,
    {
        let mut current = current.clone();
        for _ in 0..ATTEMPTS_MAX {
            self.check_owner(owner, &current.manifest)?;
            let mut next = current.manifest.clone();
            next.owner = owner;
            change(&mut next)?;
            next.version = current.manifest.version.saturating_add(1);
            match self.swap(&current, next, nonces).await? {
                Ok(published) => return Ok(published),
                Err(newer) => current = newer,
            }
        }
        self.check_owner(owner, &current.manifest)?;
        Err(PublishError::Contended {
            key: self.key.clone(),
            attempts: ATTEMPTS_MAX,
        }
        .into())
    }

    /// Refuses to write what a newer process life owns.
    fn check_owner(&self, owner: Owner, manifest: &Manifest) -> Result<(), PublishError> {
        let by = manifest.owner;
        if by.term > owner.term || by.term == owner.term && by.node != owner.node {
            return Err(PublishError::Fenced {
                key: self.key.clone(),
                by,
            });
        }
        Ok(())
    }

    /// One compare-and-swap: the published manifest, or the one that stands in its way.
    async fn swap(
        &self,
        current: &Loaded,
        mut next: Manifest,
        nonces: &NonceSource,
    ) -> Result<Result<Loaded, Loaded>, PublishError> {
        let stamp = self.sealing(&mut next).await?;
        let key = stamp.key.clone();
        let folded = next
            .fold(
                || nonces.next(),
                || Stamp::draw(self.entropy.as_ref(), key.clone()),
            )
            .map_err(|error| self.refused(error.into()))?;
        next.check_follows(&current.manifest)
            .map_err(|source| self.refused(source))?;
        let write_id = stamp.write_id;
        let bytes = next
            .encode(stamp)
            .map_err(|source| self.refused(source))?
            .bytes;
        for NewIndexObject { key, bytes } in folded {
            let key = key.to_string();
            if let Err(source) = self.store.create(&key, bytes).await {
                return Err(PublishError::Store { key, source });
            }
        }
        match self.store.replace(&self.key, bytes, &current.version).await {
            Ok(version) => Ok(Ok(Loaded {
                manifest: next,
                write_id,
                version,
            })),
            Err(source) => match self.ours(write_id, &source).await? {
                Ok(loaded) => Ok(Ok(loaded)),
                Err(Some(newer)) if newer.manifest.version < current.manifest.version => {
                    Err(PublishError::WentBack {
                        key: self.key.clone(),
                        known: current.manifest.version,
                        found: newer.manifest.version,
                    })
                }
                Err(Some(newer)) if newer.write_id != current.write_id => Ok(Err(newer)),
                Err(_) => Err(self.store_error(source)),
            },
        }
    }

    /// After a conditional write failed: what stands there, `Ok` if it is ours. `Err(None)` if the failure
    /// does not call for a look, or the look does not settle it.
    async fn ours(
        &self,
        write_id: WriteId,
        failure: &StoreError,
    ) -> Result<Result<Loaded, Option<Loaded>>, PublishError> {
        if !matches!(
            failure.kind(),
            ErrorKind::Conflict | ErrorKind::OutcomeUnknown
        ) {
            return Ok(Err(None));
        }
        match self.load().await {
            Ok(loaded) if loaded.write_id == write_id => Ok(Ok(loaded)),
            // An unknown outcome stays unknown: the write may land later than this look.
            Ok(_) if failure.kind() == ErrorKind::OutcomeUnknown => Ok(Err(None)),
            Ok(loaded) => Ok(Err(Some(loaded))),
            Err(PublishError::Manifest { key, source }) => {
                Err(PublishError::Manifest { key, source })
            }
            Err(_) => Ok(Err(None)),
        }
    }

    /// Reads an index object that the manifest names.
    pub async fn load_index(&self, entry: &IndexEntry) -> Result<IndexObject, PublishError> {
        let key = entry.key(self.namespace, self.database).to_string();
        let bytes = match self.store.get(&key).await {
            Ok(bytes) => bytes,
            Err(source) => return Err(PublishError::Store { key, source }),
        };
        self.store
            .unlock_head(&bytes)
            .await
            .map_err(|source| self.key_error(source))?;
        let keys = self.store.keys();
        IndexObject::decode(&bytes, self.namespace, self.database, entry, keys).map_err(
            |error: FormatError| PublishError::Manifest {
                key,
                source: error.into(),
            },
        )
    }

    /// How the next version is sealed; its key is noted in it. A database whose keys were destroyed gets a plain
    /// tombstone: nothing secret may stand in it then.
    async fn sealing(&self, next: &mut Manifest) -> Result<Stamp, PublishError> {
        let keys = KeyStore::new(self.store.clone(), self.namespace, self.database);
        keys.ensure()
            .await
            .map_err(|source| self.key_error(source))?;
        let ring = self.store.keys();
        let tombstone = matches!(next.state, State::Purged(_));
        if tombstone && ring.known(self.database) == Known::Shredded {
            return Ok(Stamp::draw(self.entropy.as_ref(), None));
        }
        let key = ring
            .sealing(self.namespace, self.database)
            .map_err(|source| self.key_error(source))?;
        if let Some(key) = &key
            && !next.key_ids.contains(&key.id)
        {
            next.key_ids.push(key.id);
        }
        Ok(Stamp::draw(self.entropy.as_ref(), key))
    }

    fn key_error(&self, source: KeyError) -> PublishError {
        PublishError::Key {
            key: self.key.clone(),
            source,
        }
    }

    /// Reads an index object that the manifest marks for deletion; `None` if it is gone.
    pub async fn load_marked(&self, marked: &Marked) -> Result<Option<IndexObject>, PublishError> {
        let key = Key::Database(self.namespace, self.database, marked.object).to_string();
        let bytes = match self.store.get(&key).await {
            Ok(bytes) => bytes,
            Err(StoreError::NotFound { .. }) => return Ok(None),
            Err(source) => return Err(PublishError::Store { key, source }),
        };
        self.store
            .unlock_head(&bytes)
            .await
            .map_err(|source| self.key_error(source))?;
        let keys = self.store.keys();
        IndexObject::decode_marked(&bytes, self.namespace, self.database, marked, keys)
            .map(Some)
            .map_err(|error: FormatError| PublishError::Manifest {
                key,
                source: error.into(),
            })
    }

    fn store_error(&self, source: StoreError) -> PublishError {
        PublishError::Store {
            key: self.key.clone(),
            source,
        }
    }

    fn refused(&self, source: ManifestError) -> PublishError {
        PublishError::Manifest {
            key: self.key.clone(),
            source,
        }
    }
}
