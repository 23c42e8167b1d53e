//! Key objects in the store: made, read, rotated, wrapped anew, destroyed.

use std::sync::Arc;

use tidelog_wal::{DatabaseId, NamespaceId, Timestamp};

use super::error::KeyError;
use super::keys::SealKey;
use super::object::KeyObject;
use super::ring::{Keyring, Known};
use crate::envelope::{Header, KeyId, ObjectKind, WriteId};
use crate::store::{Store, StoreError, Version};
use crate::{Entropy, ErrorKind};

/// How often a lost compare-and-swap is tried again.
const ATTEMPTS_MAX: u32 = 8;

/// What is said of a database's keys; no secrets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyStatus {
    /// The key that seals new objects, and when it was made; `None` if the database is plain or shredded.
    pub newest: Option<(KeyId, Timestamp)>,
    /// How many keys there are.
    pub keys: usize,
    /// The master keys that wrap them, each once, in order of the keys.
    pub masters: Vec<String>,
    /// When the keys were destroyed, if they were.
    pub shredded: Option<Timestamp>,
    /// The database has history from before its first key.
    pub plain_before: bool,
}

/// The key object of one database in its store.
#[derive(Debug, Clone)]
pub struct KeyStore {
    store: Store,
    namespace: NamespaceId,
    database: DatabaseId,
    place: String,
}

impl KeyStore {
    /// The key object of `database`.
    pub fn new(store: Store, namespace: NamespaceId, database: DatabaseId) -> Self {
        Self {
            store,
            namespace,
            database,
            place: KeyObject::place(namespace, database),
        }
    }

    fn keys(&self) -> &Keyring {
        self.store.keys()
    }

    fn failed(&self, source: StoreError) -> KeyError {
        KeyError::Store {
            object: self.place.clone(),
            source,
        }
    }

    /// Reads it; `None` if there is none.
    pub async fn load(&self) -> Result<Option<(KeyObject, Version)>, KeyError> {
        let (bytes, version) = match self.store.get_versioned(&self.place).await {
            Ok(found) => found,
            Err(StoreError::NotFound { .. }) => return Ok(None),
            Err(source) => return Err(self.failed(source)),
        };
        let object = KeyObject::decode(&bytes, self.namespace, self.database)
            .map_err(|error| error.in_object(&*self.place))?;
        Ok(Some((object, version)))
    }

    /// Reads it and takes its keys into the ring of the store. A database without one is noted as plain, or refused
    /// where it must have one.
    pub async fn admit(&self) -> Result<(), KeyError> {
        if let Some((object, _)) = self.load().await? {
            return self.keys().admit(&object);
        }
        self.keys().note_plain(self.database);
        match self.keys().known(self.database) {
            Known::Lost => Err(KeyError::Missing {
                object: self.place.clone(),
            }),
            _ => Ok(()),
        }
    }

    /// Makes sure that it is known how new objects of the database are sealed. One whose key object is gone is asked
    /// for again: it may have been put back.
    pub async fn ensure(&self) -> Result<(), KeyError> {
        match self.keys().known(self.database) {
            Known::Nothing | Known::Lost => self.admit().await,
            Known::Plain | Known::Key(_) | Known::Shredded => Ok(()),
        }
    }

    /// Reads it anew, so that a key that was added since seals new objects. Where it cannot be had, what is known
    /// stays.
    pub async fn refresh(&self) -> Result<(), KeyError> {
        if !self.keys().is_on() {
            return Ok(());
        }
        match self.load().await? {
            Some((object, _)) => self.keys().admit(&object),
            None => Ok(()),
        }
    }

    /// Makes sure that the key `key_id` is in the ring, if the database has it and it can be unwrapped.
    pub async fn unlock(&self, key_id: KeyId) -> Result<(), KeyError> {
        if !self.keys().is_on() || key_id == KeyId::default() || self.keys().get(key_id).is_some() {
            return Ok(());
        }
        match self.admit().await {
            // What it seals is refused by the key's name when it is decoded.
            Err(KeyError::Missing { .. }) => Ok(()),
            admitted => admitted,
        }
    }

    /// Makes the first data key of a database and stores it, wrapped; answers the key that stands there, which
    /// may have been made before. Nothing of the database is stored earlier, unless it was `plain_before`.
    pub async fn create(
        &self,
        now: Timestamp,
        entropy: &dyn Entropy,
        plain_before: bool,
    ) -> Result<Arc<SealKey>, KeyError> {
        let off = || KeyError::Off {
            object: self.place.clone(),
        };
        let masters = self.keys().masters();
        let master = masters.newest().ok_or_else(off)?;
        let mut object = KeyObject::new(self.namespace, self.database, now, plain_before);
        object.add(&SealKey::draw(entropy, now), master, entropy);
        let bytes = self.encode(&object, entropy)?;
        match self.store.create(&self.place, bytes).await {
            Ok(_) => self.keys().admit(&object)?,
            Err(StoreError::Conflict { .. }) => self.admit().await?,
            Err(source) => return Err(self.failed(source)),
        }
        let sealing = self.keys().sealing(self.namespace, self.database)?;
        sealing.ok_or_else(|| KeyError::Missing {
            object: self.place.clone(),
        })
    }

    fn encode(&self, object: &KeyObject, entropy: &dyn Entropy) -> Result<bytes::Bytes, KeyError> {
        let write_id = WriteId(entropy.bytes16());
        let encoded = object.encode(write_id);
        Ok(encoded.map_err(|e| e.in_object(&*self.place))?.bytes)
    }

    /// Changes the object; `change` answers whether it had to change anything.
    async fn change(
        &self,
        entropy: &dyn Entropy,
        mut change: impl FnMut(&mut KeyObject) -> Result<bool, KeyError>,
    ) -> Result<KeyObject, KeyError> {
        for _ in 0..ATTEMPTS_MAX {
            let Some((mut object, version)) = self.load().await? else {
                return Err(KeyError::Missing {
                    object: self.place.clone(),
                });
            };
            if !change(&mut object)? {
                return Ok(object);
            }
            let bytes = self.encode(&object, entropy)?;
            match self.store.replace(&self.place, bytes, &version).await {
                Ok(_) => return Ok(object),
                Err(error) if error.kind() == ErrorKind::Conflict => {}
                Err(source) => return Err(self.failed(source)),
            }
        }
        Err(KeyError::Contended {
            object: self.place.clone(),
            attempts: ATTEMPTS_MAX,
        })
    }

    fn refuse_shredded(&self, object: &KeyObject) -> Result<(), KeyError> {
        match object.shredded {
            None => Ok(()),
            Some(_) => Err(KeyError::Shredded {
                object: self.place.clone(),
            }),
        }
    }

    /// Adds a new data key: new objects are sealed with it, the old ones stay readable by the old keys. A plain
    /// database gets its first key; one that must have one and whose key object is gone is refused.
    pub async fn rotate(
        &self,
        now: Timestamp,
        entropy: &dyn Entropy,
    ) -> Result<Arc<SealKey>, KeyError> {
        let masters = self.keys().masters();
        let Some(master) = masters.newest() else {
            return Err(KeyError::Off {
                object: self.place.clone(),
            });
        };
        if self.load().await?.is_none() {
            if let Known::Key(_) | Known::Lost = self.keys().known(self.database) {
                return Err(KeyError::Missing {
                    object: self.place.clone(),
                });
            }
            self.admit().await?;
            self.keys().forget(self.database);
            return self.create(now, entropy, true).await;
        }
        let key = SealKey::draw(entropy, now);
        let object = self
            .change(entropy, |object| {
                self.refuse_shredded(object)?;
                // A half-finished attempt of ours may have landed after all.
                if object.keys.iter().any(|known| known.id == key.id) {
                    return Ok(false);
                }
                object.add(&key, master, entropy);
                Ok(true)
            })
            .await?;
        self.keys().admit(&object)?;
        Ok(Arc::new(key))
    }

    /// Wraps every key of the database by the newest master key; answers how many were not. Nothing else is
    /// rewritten.
    pub async fn rewrap(&self, entropy: &dyn Entropy) -> Result<usize, KeyError> {
        let masters = self.keys().masters();
        let mut count = 0;
        self.change(entropy, |object| {
            if object.shredded.is_some() {
                count = 0;
                return Ok(false);
            }
            count = object.rewrap(&masters, entropy)?;
            Ok(count > 0)
        })
        .await?;
        Ok(count)
    }

    /// Destroys the keys of the database: from now on nothing that was sealed with them opens. Doing it twice
    /// is no error; a database without keys has nothing to destroy.
    pub async fn shred(&self, now: Timestamp, entropy: &dyn Entropy) -> Result<(), KeyError> {
        let changed = self
            .change(entropy, |object| {
                let done = object.shredded.is_some();
                if !done {
                    object.shred(now);
                }
                Ok(!done)
            })
            .await;
        match changed {
            Ok(object) => {
                self.keys().forget(self.database);
                if self.keys().is_on() {
                    self.keys().admit(&object)?;
                }
                Ok(())
            }
            Err(KeyError::Missing { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// What is said of the keys; `None` if the database has none. Needs no master key.
    pub async fn status(&self) -> Result<Option<KeyStatus>, KeyError> {
        let Some((object, _)) = self.load().await? else {
            return Ok(None);
        };
        let mut masters: Vec<String> = object.keys.iter().map(|key| key.master.clone()).collect();
        masters.dedup();
        Ok(Some(KeyStatus {
            newest: object.keys.last().map(|key| (key.id, key.created)),
            keys: object.keys.len(),
            masters,
            shredded: object.shredded,
            plain_before: object.plain_before,
        }))
    }
}

impl Store {
    /// Makes sure that the key of the object that begins with `head` is in the ring, if it can be had. What
    /// cannot be had is refused by name when the object is decoded.
    pub async fn unlock_head(&self, head: &[u8]) -> Result<(), KeyError> {
        if !self.keys().is_on() {
            return Ok(());
        }
        let Ok(header) = Header::decode(head) else {
            return Ok(());
        };
        if header.kind == ObjectKind::Manifest {
            // Whether a plain one may stand here is said by the key object.
            let ids = KeyStore::new(self.clone(), header.namespace, header.database);
            ids.ensure().await?;
        }
        let ids = match header.kind {
            ObjectKind::Journal | ObjectKind::Audit => self.keys().system(),
            _ => Some((header.namespace, header.database)),
        };
        match ids {
            Some((namespace, database)) => self.unlock(namespace, database, header.key_id).await,
            None => Ok(()),
        }
    }

    /// Makes sure that the key `key_id` of a database is in the ring, if it can be had.
    pub async fn unlock(
        &self,
        namespace: NamespaceId,
        database: DatabaseId,
        key_id: KeyId,
    ) -> Result<(), KeyError> {
        if !self.keys().is_on() || key_id == KeyId::default() {
            return Ok(());
        }
        let keys = KeyStore::new(self.clone(), namespace, database);
        keys.unlock(key_id).await
    }
}
