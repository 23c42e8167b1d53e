//! Managing keys: how old they are, rotating and destroying them.
//!
//! Rotating a master key wraps the data keys anew, object by object, and touches nothing else: until the last one is
//! done both master keys are needed, and a rotation that was cut short is simply run again. Rotating a data key adds
//! one: what was sealed before stays readable by the old one. A running server reads the key object anew when it opens
//! the database again.

use tidelog_archive::key::Key;
use tidelog_archive::seal::{KeyStatus, KeyStore};
use tidelog_archive::store::Store;
use tidelog_wal::{DatabaseId, NamespaceId, Timestamp};

use crate::boxed;
use crate::bucket::{Bucket, BucketDatabase};
use crate::crash_point;
use crate::engine::Engine;
use crate::error::{Code, Error};
use crate::node::keys::refuse_sealed;
use crate::node::start::store_error;
use crate::sealing::{key_error, refused};
use crate::system::id16;
use crate::travel::archives::refuse_held;

/// What a node knows of the keys it uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyAges {
    /// Whether there are master keys: new databases are sealed then.
    pub on: bool,
    /// Databases whose key is in memory.
    pub databases: u64,
    /// When the oldest of the keys that seal their new objects was made.
    pub oldest: Option<Timestamp>,
}

impl Engine {
    /// What this node knows of the keys it uses.
    pub fn key_ages(&self) -> KeyAges {
        let keys = self.inner.core.remote.store.keys();
        let (databases, oldest) = keys.ages();
        KeyAges {
            on: keys.is_on(),
            databases,
            oldest,
        }
    }

    /// What stands in the key object of a database; `None` if it is plain.
    #[boxed]
    pub async fn key_status(
        &self,
        namespace: NamespaceId,
        id: DatabaseId,
    ) -> Result<Option<KeyStatus>, Error> {
        let keys = self.inner.core.remote.keys(namespace, id);
        keys.status().await.map_err(key_error)
    }

    /// Gives a database a new data key, used from now on by this node. A plain database gets its first; one that is
    /// sealed and has lost its key object is refused.
    #[boxed]
    pub async fn rotate_data_key(
        &self,
        namespace: NamespaceId,
        id: DatabaseId,
    ) -> Result<(), Error> {
        let remote = &self.inner.core.remote;
        let keys = remote.keys(namespace, id);
        refuse_lost(&remote.store, &keys, (namespace, id)).await?;
        let rotated = keys.rotate(remote.clock.wall(), remote.entropy.as_ref());
        rotated.await.map(drop).map_err(key_error)
    }

    /// Destroys the data keys of a deleted database: nothing of it that is stored opens any more, whoever holds the
    /// master keys. Refused while the database is not deleted, and while forks read through it or archives of it are
    /// held, which it names.
    #[boxed]
    pub async fn destroy_keys(&self, namespace: NamespaceId, id: DatabaseId) -> Result<(), Error> {
        let core = &self.inner.core;
        let deleted = self.inner.system.read(move |c| {
            let mut select = c.prepare("SELECT deleted, id FROM databases WHERE id = ?1")?;
            let mut rows = select.query([id.as_bytes()])?;
            match rows.next()? {
                None => Ok(None),
                Some(row) => {
                    id16(&row.get::<_, Vec<u8>>(1)?)?;
                    Ok(Some(row.get::<_, Option<i64>>(0)?.is_some()))
                }
            }
        });
        match deleted.await? {
            Some(true) => {}
            Some(false) => {
                let what = format!("database {id} is not deleted: its keys are in use");
                return Err(Error::new(Code::Refused, what));
            }
            None => {
                let what = format!("there is no database {id}");
                return Err(Error::new(Code::DatabaseNotFound, what));
            }
        }
        let loaded = core.remote.owned_manifest(namespace, id).await?;
        let pins = &loaded.manifest.pins;
        let forks: Vec<String> = pins
            .iter()
            .filter_map(|pin| pin.child)
            .map(|child| child.to_string())
            .collect();
        if !forks.is_empty() {
            let what = format!(
                "database {id} is read by its forks {}: detach or purge them first",
                forks.join(", ")
            );
            return Err(Error::new(Code::ForkParentPinned, what).with("forks", forks));
        }
        refuse_held(self.inner.system.archives_held(id, self.now()).await?)?;
        self.inner.registry.close(id).await;
        core.remote.shred(namespace, id).await
    }
}

/// A database of a bucket with its keys.
#[derive(Debug, Clone)]
pub struct DatabaseKeys {
    /// The database.
    pub database: BucketDatabase,
    /// Its keys; `None` if it is plain.
    pub keys: Option<KeyStatus>,
}

impl Bucket {
    fn keys(&self, database: &BucketDatabase) -> KeyStore {
        KeyStore::new(self.store().clone(), database.namespace_id, database.id)
    }

    /// The system database and all others.
    async fn all(&self) -> Result<Vec<BucketDatabase>, Error> {
        let mut all = vec![self.system()];
        all.extend(self.databases().await?);
        Ok(all)
    }

    /// The time by this machine's clock.
    pub fn now(&self) -> Timestamp {
        self.parts().clock.wall()
    }

    /// The keys of one database; `None` if it is plain.
    #[boxed]
    pub async fn key_status_of(
        &self,
        database: &BucketDatabase,
    ) -> Result<Option<KeyStatus>, Error> {
        self.keys(database).status().await.map_err(key_error)
    }

    /// The keys of every database, the system's first.
    #[boxed]
    pub async fn key_status(&self) -> Result<Vec<DatabaseKeys>, Error> {
        let mut found = Vec::new();
        for database in self.all().await? {
            let keys = self.key_status_of(&database).await?;
            found.push(DatabaseKeys { database, keys });
        }
        Ok(found)
    }

    /// The lines of an audit object.
    #[boxed]
    pub async fn audit_lines(&self, key: &str) -> Result<String, Error> {
        let Some(Key::Audit(namespace, _, _)) = Key::parse(key) else {
            let what = format!("{key:?} is not the key of an audit object");
            return Err(Error::new(Code::InvalidRequest, what));
        };
        let read = self.store().get(key).await;
        let bytes = read.map_err(|e| store_error("read an audit object", e))?;
        self.store().unlock_head(&bytes).await.map_err(key_error)?;
        tidelog_archive::audit::open(&bytes, namespace, self.store().keys())
            .map_err(|e| refused(key, e))
    }

    /// Wraps every data key by the newest master key; answers how many were not. A database whose key object is
    /// damaged or cannot be unwrapped keeps no other from it: all that could not be done are named at the end.
    #[boxed]
    pub async fn rewrap_keys(&self) -> Result<usize, Error> {
        let (mut count, mut refused) = (0, Vec::new());
        for database in self.all().await? {
            match self.rewrap_of(&database).await {
                Ok(rewrapped) => count += rewrapped,
                Err(error) => match error.code() {
                    Code::KeyUnavailable | Code::ObjectCorrupt => refused.push((database, error)),
                    _ => return Err(error),
                },
            }
        }
        let Some((_, first)) = refused.first() else {
            return Ok(count);
        };
        let name = |of: &BucketDatabase| format!("{}/{}", of.namespace, of.name);
        let names: Vec<String> = refused.iter().map(|(of, _)| name(of)).collect();
        let why: Vec<String> = refused
            .iter()
            .map(|(of, error)| format!("{}: {error}", name(of)))
            .collect();
        let what = format!(
            "{count} data keys were wrapped anew; not those of {} databases: {}",
            refused.len(),
            why.join("; ")
        );
        Err(Error::new(first.code(), what)
            .with("rewrapped", count)
            .with("databases", names))
    }

    async fn rewrap_of(&self, database: &BucketDatabase) -> Result<usize, Error> {
        let keys = self.keys(database);
        if keys.load().await.map_err(key_error)?.is_none() {
            return Ok(0);
        }
        let rewrapped = keys.rewrap(self.parts().entropy.as_ref()).await;
        crash_point!("keys.mid_rewrap");
        rewrapped.map_err(key_error)
    }

    /// Gives a database a new data key; a plain one gets its first. A database that is sealed and has lost its key
    /// object is refused.
    #[boxed]
    pub async fn rotate_data_key(&self, database: &BucketDatabase) -> Result<(), Error> {
        let keys = self.keys(database);
        let ids = (database.namespace_id, database.id);
        refuse_lost(self.store(), &keys, ids).await?;
        let parts = self.parts();
        let rotated = keys.rotate(parts.clock.wall(), parts.entropy.as_ref());
        let rotated = rotated.await.map(drop).map_err(key_error);
        crash_point!("keys.after_rotate");
        rotated
    }
}

/// Refuses a sealed database whose key object is gone: a new one in its place would keep it from being put back.
async fn refuse_lost(
    store: &Store,
    keys: &KeyStore,
    (namespace, id): (NamespaceId, DatabaseId),
) -> Result<(), Error> {
    if keys.load().await.map_err(key_error)?.is_some() {
        return Ok(());
    }
    let place = Key::manifest(namespace, id).to_string();
    let manifest = store.get(&place).await;
    let bytes = manifest.map_err(|e| store_error("read a manifest", e))?;
    refuse_sealed(&place, &bytes)
}
