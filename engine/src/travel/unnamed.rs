//! Databases that no row names: what is left in the bucket of one whose making ended before its row.
//!
//! A database has a manifest before it has a name. Where the process life dies between the two, or the name was taken
//! meanwhile, its objects stay: no history lists them, no call reaches them. An operation cleans up behind itself; for
//! the rest the operator asks, and is told.
//!
//! One counts as unnamed when the bucket has objects of it, its manifest is no tombstone, no row names it, and the store
//! says that all of it is older than the grace: what is being made now is younger. The row is looked for after the
//! objects were listed. That a row is missing proves only that nothing leads there: nothing is destroyed for that alone.

use std::collections::BTreeSet;

use tidelog_archive::key::Key;
use tidelog_archive::manifest::State;
use tidelog_wal::{DatabaseId, NamespaceId};

use super::retention::{GRACE_MICROS, ObjectGone};
use crate::engine::Engine;
use crate::error::{Code, Error};
use crate::node::start::store_error;
use crate::remote::publish_error;

/// A database that no row names.
#[derive(Debug, Clone)]
pub struct Unnamed {
    /// Its namespace, which may be gone itself.
    pub namespace: NamespaceId,
    /// Its id.
    pub id: DatabaseId,
    /// The name it was to have, where its manifest tells.
    pub name_hint: String,
    /// Everything the bucket has of it.
    pub objects: Vec<ObjectGone>,
}

impl Engine {
    /// The databases that no row names, by namespace and id.
    pub(crate) async fn unnamed(&self) -> Result<Vec<Unnamed>, Error> {
        let store = &self.inner.core.remote.store;
        let failed = |e| store_error("list the databases of the bucket", e);
        let mut found = Vec::new();
        for namespace in store.folders("tenants").await.map_err(failed)? {
            let Ok(namespace) = namespace.parse::<NamespaceId>() else {
                continue;
            };
            let folder = format!("tenants/{namespace}");
            // What is no id is no database: the audit log lies there, too.
            let ids = store.folders(&folder).await.map_err(failed)?;
            let ids: BTreeSet<DatabaseId> = ids.iter().filter_map(|id| id.parse().ok()).collect();
            for id in ids {
                if id != self.inner.system.id {
                    found.extend(self.unnamed_one(namespace, id).await?);
                }
            }
        }
        Ok(found)
    }

    async fn unnamed_one(
        &self,
        namespace: NamespaceId,
        id: DatabaseId,
    ) -> Result<Option<Unnamed>, Error> {
        // Most have a row: the bucket is asked about the others alone.
        if self.inner.system.database_exists(id).await? {
            return Ok(None);
        }
        let remote = &self.inner.core.remote;
        let listed = remote
            .store
            .list(&Key::database_prefix(namespace, id))
            .await;
        let listed = listed.map_err(|e| store_error("list the objects of a database", e))?;
        let newest = listed
            .iter()
            .map(|entry| entry.last_modified.micros())
            .max();
        let young = |at: u64| at.saturating_add(GRACE_MICROS) > self.now().micros();
        if newest.is_none_or(young) || self.inner.system.database_exists(id).await? {
            return Ok(None);
        }
        let loaded = remote.manifests(namespace, id).load().await;
        let loaded = loaded.map_err(|e| publish_error("read the manifest of a database", e));
        let name_hint = match loaded {
            Ok(loaded) if matches!(loaded.manifest.state, State::Purged(_)) => return Ok(None),
            Ok(loaded) => loaded.manifest.name_hint,
            Err(error) if error.code() == Code::DatabaseNotFound => String::new(),
            // Its keys are destroyed, as a purge does: a tombstone that nobody can read any more.
            Err(error) if error.code() == Code::KeyUnavailable => {
                if remote.is_shredded(namespace, id).await? {
                    return Ok(None);
                }
                return Err(error);
            }
            Err(error) => return Err(error),
        };
        let gone = |entry: tidelog_archive::store::Entry| ObjectGone {
            key: entry.key,
            bytes: entry.length,
        };
        Ok(Some(Unnamed {
            namespace,
            id,
            name_hint,
            objects: listed.into_iter().map(gone).collect(),
        }))
    }

    /// Destroys a database that no row names: a tombstone stands in its place.
    pub(crate) async fn destroy_unnamed(&self, one: &Unnamed) -> Result<(), Error> {
        self.purge_unnamed(one.namespace, one.id, None).await?;
        // Without a manifest there was nothing to put a tombstone in the place of.
        let remote = &self.inner.core.remote;
        let manifest = Key::manifest(one.namespace, one.id).to_string();
        if one.objects.iter().any(|object| object.key == manifest) {
            return Ok(());
        }
        let keys: Vec<String> = one.objects.iter().map(|one| one.key.clone()).collect();
        let deleted = remote.store.delete_all(&keys).await;
        deleted.map_err(|e| store_error("delete what no row names", e))
    }
}
