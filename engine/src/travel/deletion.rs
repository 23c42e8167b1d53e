//! Deletion: hidden for seven days, then gone for good; or gone at once.
//!
//! *Soft*: the row says deleted, the name is free, handles are refused; the manifest says so, too, for whoever has
//! only the bucket. Everything else stays, so that undelete is a change of state.
//!
//! *Purge* reaches archives, too: it is refused while one of them is retained, under legal hold, or being made. In this
//! order, each step of which may be the last before a crash:
//!
//! 1. the row says that it is being purged: nobody brings it back, holds an archive of it or makes one;
//! 2. the tombstone: the manifest's state, refused while forks read through it;
//! 3. the pin in the parent's manifest, if it is a fork;
//! 4. everybody lets go of it, and what the journal holds of it is shipped;
//! 5. the keys, where it is sealed: what was sealed is noise from here on, the tombstone plain and empty;
//!    then the files here, and what the journal still needs counts as settled;
//! 6. its archives are hidden; every object that manifest and index objects list goes, then, the tombstone standing,
//!    what a listing finds, archives among it;
//! 7. an empty tombstone, which stays for ever: the id is never used again;
//! 8. the row.
//!
//! What was begun is ended by the calendar or by the recovery of operations, whichever comes first. Journal
//! objects are shared by all databases of the node: they are deleted when everything in them is settled, for
//! which a purged database does not count.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value as Json, json};
use tidelog_archive::key::{DatabaseObject, Key, Seq};
use tidelog_archive::manifest::{Manifest, Parent, State};
use tidelog_wal::{DatabaseId, NamespaceId, Timestamp};

use super::archives::{refuse_held, rfc3339};
use super::detach::detach_forks;
use super::forks;
use super::old_versions::{copies, old_versions};
use super::retention::garbage::{keys_below, keys_under};
use super::retention::run::trusted;
use crate::boxed;
use crate::crash_point;
use crate::engine::Engine;
use crate::error::{Code, Error};
use crate::executor::blocking;
use crate::node::start::store_error;
use crate::operations::{Begins, Handle, NewOperation, Operation, OperationType, Task};
use crate::system::databases::{DatabaseRow, UNDELETE_MICROS};
use crate::system::requests::Record;

/// Listings of what is left, before the rest is somebody else's write that goes on landing.
const ROUNDS_MAX: usize = 5;
/// The pause before clearing away is tried again.
const CLEAR_PAUSE: Duration = Duration::from_millis(500);

/// What a purge does about forks that read through its database.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Forks {
    /// It is refused while there is one.
    #[default]
    Refuse,
    /// It first makes every live one independent. Refused, before any is, while others read through it.
    Detach,
}

/// A purge that is asked for.
#[derive(Debug, Clone, Default)]
pub struct Purge {
    /// What is done about forks.
    pub forks: Forks,
    /// Id of the token that asks.
    pub token: Option<String>,
}

fn protected(row: &DatabaseRow) -> Result<(), Error> {
    if row.delete_protection {
        let what = format!("database {:?} is protected against deletion", row.name);
        return Err(Error::new(Code::DatabaseProtected, what));
    }
    Ok(())
}

fn forks_of(manifest: &Manifest) -> BTreeSet<DatabaseId> {
    manifest.pins.iter().filter_map(|pin| pin.child).collect()
}

impl Engine {
    /// Hides a database; it can be brought back for seven days.
    #[boxed]
    pub async fn database_delete(
        &self,
        namespace: NamespaceId,
        name: &str,
    ) -> Result<DatabaseRow, Error> {
        let found = self.inner.system.database(namespace, name).await?;
        self.check_deletable(&found)?;
        let deleted = self.inner.system.database_delete(namespace, name).await?;
        self.hidden(&deleted).await;
        Ok(deleted)
    }

    /// Refuses to delete what is protected or worked on.
    pub(super) fn check_deletable(&self, row: &DatabaseRow) -> Result<(), Error> {
        protected(row)?;
        self.refuse_while_worked_on(row.id)
    }

    /// Adds the row of a database in the place of `old`, which is deleted by the same commit.
    pub(super) async fn database_put_instead(
        &self,
        made: &DatabaseRow,
        old: &DatabaseRow,
    ) -> Result<(), Error> {
        let system = &self.inner.system;
        let before = system.database_by_id(old.id).await?;
        self.check_deletable(before.as_ref().unwrap_or(old))?;
        let added = system.database_add_instead(made, old.id).await;
        // Whether the commit stands may be more than the store said.
        let after = system.database_by_id(old.id).await?;
        if let Some(deleted) = after.filter(|row| row.deleted_at.is_some()) {
            self.hidden(&deleted).await;
        }
        added
    }

    /// What follows the row of a database that is hidden now.
    async fn hidden(&self, deleted: &DatabaseRow) {
        self.inner.registry.slot(deleted.id).hide(true);
        let at = deleted.deleted_at.unwrap_or_else(|| self.now());
        let gone = Timestamp::from_micros(at.micros().saturating_add(UNDELETE_MICROS));
        self.inner.core.calendar.not_later(deleted.id, gone);
        self.say_state(deleted, State::Deleted(at)).await;
    }

    /// Brings a hidden database back.
    #[boxed]
    pub async fn database_undelete(
        &self,
        namespace: NamespaceId,
        name: &str,
    ) -> Result<DatabaseRow, Error> {
        let found = self.inner.system.database_deleted(namespace, name).await?;
        self.revive(found, None).await
    }

    /// Brings it back; `record` is the answer to repeat.
    pub(crate) async fn revive(
        &self,
        found: DatabaseRow,
        record: Option<Record>,
    ) -> Result<DatabaseRow, Error> {
        let row = self.inner.system.database_undelete(found, record).await?;
        self.inner.registry.slot(row.id).hide(false);
        self.inner.core.calendar.not_later(row.id, self.now());
        self.say_state(&row, State::Active(self.now())).await;
        Ok(row)
    }

    /// Writes the state into the manifest. The row counts; where this fails the calendar makes up for it.
    async fn say_state(&self, row: &DatabaseRow, state: State) {
        let (remote, calendar) = (&self.inner.core.remote, &self.inner.core.calendar);
        let said = remote
            .change_of(
                row.namespace,
                row.id,
                "change a database's state",
                |manifest| {
                    manifest.state = state;
                    Ok(())
                },
            )
            .await;
        if let Err(error) = said {
            tracing::warn!(database = %row.id, %error, "the manifest does not say the new state yet");
            calendar.not_later(row.id, self.now());
        }
    }

    fn refuse_while_worked_on(&self, id: DatabaseId) -> Result<(), Error> {
        let Some(operation) = self.inner.running.working_on(id) else {
            return Ok(());
        };
        let what =
            format!("operation {operation} works on this database; wait for it or cancel it");
        Err(Error::new(Code::OperationInProgress, what).with("operation", operation))
    }

    /// Destroys a database for good: the live one of this name, else the one that was deleted last.
    #[boxed]
    pub async fn database_purge(
        &self,
        namespace: NamespaceId,
        name: &str,
        purge: Purge,
    ) -> Result<Handle, Error> {
        let row = self
            .inner
            .system
            .database_or_deleted(namespace, name)
            .await?;
        self.purge_row(row, purge).await
    }

    /// Begins the purge of a database.
    pub(crate) async fn purge_row(&self, row: DatabaseRow, purge: Purge) -> Result<Handle, Error> {
        let Purge { forks: then, token } = purge;
        let mut detached = Vec::new();
        if !row.purging {
            protected(&row)?;
            let remote = &self.inner.core.remote;
            let loaded = remote.owned_manifest(row.namespace, row.id).await?;
            let mut forks = forks_of(&loaded.manifest);
            if then == Forks::Detach {
                for id in forks.clone() {
                    let fork = self.inner.system.database_by_id(id).await?;
                    if let Some(fork) = fork.filter(|fork| fork.deleted_at.is_none()) {
                        forks.remove(&id);
                        detached.push(fork);
                    }
                }
            }
            self.refuse_forks(&forks).await?;
            let now = self.retained_until(&row).await?;
            refuse_held(self.inner.system.archives_held(row.id, now).await?)?;
        }
        let new = NewOperation {
            kind: OperationType::Purge,
            namespace: row.namespace,
            database: Some((row.id, row.name.clone())),
            exclusive: true,
            token: token.clone(),
            note: json!({ "database": row.id.to_string() }),
            begins: Begins::Stored,
        };
        let engine = self.clone();
        self.operate(new, async move |task| {
            detach_forks(&engine, &detached, &task, token.as_ref()).await?;
            engine.purge(&row, Some(&task)).await
        })
        .await
    }

    /// The time by which the retention of archives is judged: a clock that runs ahead ends none (HAZARDS S39), so
    /// that the store is asked where any archive is retained at all.
    async fn retained_until(&self, row: &DatabaseRow) -> Result<Timestamp, Error> {
        let system = &self.inner.system;
        let any = system.archives_held(row.id, Timestamp::ZERO).await?;
        if row.purging || any.is_empty() {
            return Ok(self.now());
        }
        trusted(&self.inner.core, row.namespace, row.id).await
    }

    async fn refuse_forks(&self, forks: &BTreeSet<DatabaseId>) -> Result<(), Error> {
        if forks.is_empty() {
            return Ok(());
        }
        let mut names = Vec::new();
        for id in forks {
            let row = self.inner.system.database_by_id(*id).await?;
            names.push(row.map_or_else(|| id.to_string(), |row| row.name));
        }
        let what = format!(
            "forks read through this database: {}; detach or purge them first",
            names.join(", ")
        );
        Err(Error::new(Code::ForkParentPinned, what).with("forks", names))
    }

    /// Ends a purge that an earlier life began; `None` if it had not come to anything.
    pub(crate) async fn recover_purge(&self, operation: &Operation) -> Result<Option<Json>, Error> {
        let Some(id) = operation.database else {
            return Ok(None);
        };
        match self.inner.system.database_by_id(id).await? {
            None => Ok(Some(
                json!({ "purged": operation.database_name, "id": id.to_string() }),
            )),
            Some(row) if row.purging => self.purge(&row, None).await.map(Some),
            Some(_) => Ok(None),
        }
    }

    /// Purges a database, from wherever an earlier attempt stopped.
    pub(super) async fn purge(
        &self,
        row: &DatabaseRow,
        task: Option<&Task>,
    ) -> Result<Json, Error> {
        let core = &self.inner.core;
        let _turn = core.calendar.purging().await;
        let (namespace, id) = (row.namespace, row.id);
        if self.inner.system.database_by_id(id).await?.is_none() {
            return Ok(json!({ "purged": row.name, "id": id.to_string() }));
        }
        if let Some(task) = task {
            task.phase("tombstone", 0)?;
            task.point_of_no_return()?;
        }
        let now = self.retained_until(row).await?;
        self.inner.system.database_purging(row, now).await?;
        self.inner.registry.slot(id).hide(true);
        crash_point!("purge.before_tombstone");
        let parent = match self.tombstone(row).await {
            Ok(parent) => parent,
            Err(error) if error.code() == Code::ForkParentPinned && !row.purging => {
                self.inner.system.database_not_purging(row).await?;
                let hidden = row.deleted_at.is_some();
                self.inner.registry.slot(id).hide(hidden);
                return Err(error);
            }
            Err(error) => return Err(error),
        };
        crash_point!("purge.after_tombstone");
        if let Some(parent) = parent {
            forks::unpin(core, &parent).await?;
            self.due_not_later(parent.database, self.now()).await?;
        } else if let Some(parent) = row.parent {
            self.unpin_child(namespace, parent.database, id).await?;
        }
        // What is still to be shipped is sealed, and what is listed read, while the key is there.
        self.let_go(id).await?;
        let listed = self.listed(namespace, id).await?;
        self.shred(namespace, id).await?;
        if let Some(task) = task {
            task.progress(0);
        }
        self.forget_here(id).await?;
        let archives = self.inner.system.archives_hide_all(id).await?;
        crash_point!("purge.before_objects");
        let (objects, bytes) = self.delete_objects(namespace, id, listed).await?;
        crash_point!("purge.after_objects");
        self.empty_tombstone(namespace, id).await?;
        core.calendar.set(id, None);
        self.inner.system.database_purged(row).await?;
        let (through, gone) = (core.journal.newest_chunk(), self.now());
        let age = core.settings.settle_age.as_secs();
        Ok(json!({
            "purged": row.name,
            "id": id.to_string(),
            "objects_deleted": objects,
            "bytes_deleted": bytes,
            "archives_deleted": archives,
            "objects_gone_at": rfc3339(gone),
            "copies": copies(core),
            "old_versions": old_versions(core, self.now()),
            "journal": {
                "complete": false,
                "through": Key::Journal(through.0, Seq::new(through.1)).to_string(),
                "complete_when": format!(
                    "its last commits stand in journal objects that hold other databases, too; they are \
                     deleted once those are settled, which a running server does within {age} s, and 64 \
                     of them have come together or a day has passed"
                ),
            },
        }))
    }

    /// What comes of the database `id` when a step of making it failed with `error`: it stands if its row does, though
    /// the store did not say so. Else what was made of it is cleared away, as often as it takes; where the process life
    /// ends meanwhile the operation stays open for the next.
    pub(super) async fn stands_after(
        &self,
        (namespace, id): (NamespaceId, DatabaseId),
        parent: Option<&Parent>,
        error: Error,
    ) -> Result<(), Error> {
        let mut stop = self.inner.stop_signal();
        loop {
            let ended = match self.inner.system.database_exists(id).await {
                Ok(true) => return Ok(()),
                Ok(false) => self.purge_unnamed(namespace, id, parent).await,
                Err(error) => Err(error),
            };
            let Err(left) = ended else { return Err(error) };
            tracing::warn!(database = %id, error = %left, "what failed is not cleared away yet");
            tokio::select! {
                () = tokio::time::sleep(CLEAR_PAUSE) => {}
                _ = stop.wait_for(|stop| *stop) => {
                    let what = "the server is stopping; what was half-made is cleared away at its next start";
                    return Err(Error::new(Code::OperationInterrupted, what).caused_by(error));
                }
            }
        }
    }

    /// Destroys what was made of a database that no row names. It comes to an empty tombstone, as a purge does; `parent`
    /// is what it may have pinned if its manifest never came to stand.
    pub(crate) async fn purge_unnamed(
        &self,
        namespace: NamespaceId,
        id: DatabaseId,
        parent: Option<&Parent>,
    ) -> Result<(), Error> {
        let (core, now) = (&self.inner.core, self.now());
        let remote = &core.remote;
        let written = remote.change_of(namespace, id, "write a tombstone", |manifest| {
            manifest.state = State::Purged(now);
            Ok(())
        });
        let (stands, parent) = match written.await {
            Ok(loaded) => (true, loaded.manifest.parent.or(parent.copied())),
            Err(error) if error.code() == Code::DatabaseNotFound => (false, parent.copied()),
            // An earlier attempt got as far as the keys.
            Err(error) if error.code() == Code::KeyUnavailable => {
                if !remote.is_shredded(namespace, id).await? {
                    return Err(error);
                }
                (true, parent.copied())
            }
            Err(error) => return Err(error),
        };
        crash_point!("discard.after_tombstone");
        if let Some(parent) = parent {
            forks::unpin(core, &parent).await?;
        }
        self.let_go(id).await?;
        if !stands {
            return self.forget_here(id).await;
        }
        let listed = self.listed(namespace, id).await?;
        self.shred(namespace, id).await?;
        self.forget_here(id).await?;
        self.delete_objects(namespace, id, listed).await?;
        self.empty_tombstone(namespace, id).await
    }

    /// Writes the tombstone; answers what the database was a fork of. One that has no manifest is gone already.
    async fn tombstone(&self, row: &DatabaseRow) -> Result<Option<Parent>, Error> {
        let (remote, now) = (&self.inner.core.remote, self.now());
        let mut forks = BTreeSet::new();
        let written = remote
            .change_of(row.namespace, row.id, "write a tombstone", |manifest| {
                forks = forks_of(manifest);
                if !forks.is_empty() {
                    return Err(Error::new(Code::ForkParentPinned, "forks read through it"));
                }
                manifest.state = match manifest.state {
                    State::Purged(since) => State::Purged(since),
                    _ => State::Purged(now),
                };
                Ok(())
            })
            .await;
        match written {
            Ok(loaded) => Ok(loaded.manifest.parent),
            // An earlier attempt got as far as the keys, past the pin: what stands there opens no more.
            Err(error) if error.code() == Code::KeyUnavailable => {
                if remote.is_shredded(row.namespace, row.id).await? {
                    Ok(None)
                } else {
                    Err(error)
                }
            }
            Err(error) => {
                self.refuse_forks(&forks).await?;
                Err(error)
            }
        }
    }

    /// Removes what pins the parent for a fork whose manifest opens no more.
    async fn unpin_child(
        &self,
        namespace: NamespaceId,
        parent: DatabaseId,
        id: DatabaseId,
    ) -> Result<(), Error> {
        let remote = &self.inner.core.remote;
        let unpinned = remote
            .change_of(namespace, parent, "unpin a fork's state", |manifest| {
                manifest.pins.retain(|pin| pin.child != Some(id));
                Ok(())
            })
            .await;
        match unpinned {
            Err(error) if error.code() != Code::DatabaseNotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Destroys the keys of a sealed database. The tombstone is plain from then on, and says nothing else.
    async fn shred(&self, namespace: NamespaceId, id: DatabaseId) -> Result<(), Error> {
        let remote = &self.inner.core.remote;
        remote.shred(namespace, id).await?;
        crash_point!("purge.after_keys");
        if remote.is_shredded(namespace, id).await? {
            self.empty_tombstone(namespace, id).await?;
        }
        Ok(())
    }

    /// Closes the database for good and waits until nothing of it is on its way to the store.
    async fn let_go(&self, id: DatabaseId) -> Result<(), Error> {
        let core = &self.inner.core;
        self.inner.registry.bury(id).await;
        if core.journal.owes(id) {
            // Spooled commits become objects when they are shipped: those are deleted with the others.
            core.journal.wake_shipper();
            core.journal
                .wait_shipped(core.journal.appended_lsn())
                .await?;
        }
        Ok(())
    }

    /// Lets what the journal holds of it go, and removes its files.
    async fn forget_here(&self, id: DatabaseId) -> Result<(), Error> {
        let core = &self.inner.core;
        core.pass_over(id).await?;
        let collecting = Arc::clone(core);
        blocking(core.executor(), move || {
            let io = |e| Error::io("remove the files of a purged database", e);
            match std::fs::remove_dir_all(collecting.database_folder(id)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(io(error));
                }
                _ => {}
            }
            let disk = collecting.parts.disk.as_ref();
            let of_it = id.to_string();
            for (path, _) in disk.list(collecting.journal.folder()).map_err(io)? {
                let name = path.file_name().and_then(|name| name.to_str());
                if name.is_some_and(|name| name.starts_with(&of_it)) {
                    disk.remove(&path).map_err(io)?;
                }
            }
            Ok(())
        })
        .await
    }

    /// The keys that manifest and index objects name.
    async fn listed(
        &self,
        namespace: NamespaceId,
        id: DatabaseId,
    ) -> Result<BTreeSet<String>, Error> {
        let remote = &self.inner.core.remote;
        let loaded = match remote.owned_manifest(namespace, id).await {
            Err(error) if error.code() == Code::KeyUnavailable => return Ok(BTreeSet::new()),
            loaded => loaded?,
        };
        let manifests = remote.manifests(namespace, id);
        // Index objects may be gone, or sealed with a key that is gone: an earlier attempt got that far.
        let below = keys_below(&manifests, &loaded.manifest, |_| true).await;
        let mut keys: BTreeSet<String> = below.unwrap_or_default().into_iter().collect();
        for marked in &loaded.manifest.marked {
            let under = keys_under(&manifests, (namespace, id), marked).await;
            keys.extend(under.unwrap_or_default());
        }
        Ok(keys)
    }

    /// Deletes what is listed, then what a listing of the store finds; how many objects and bytes those were.
    async fn delete_objects(
        &self,
        namespace: NamespaceId,
        id: DatabaseId,
        listed: BTreeSet<String>,
    ) -> Result<(usize, u64), Error> {
        let store = &self.inner.core.remote.store;
        let failed = |e| store_error("delete the objects of a purged database", e);
        let prefix = Key::database_prefix(namespace, id);
        let manifest = Key::manifest(namespace, id).to_string();
        let keys = Key::Database(namespace, id, DatabaseObject::Key).to_string();
        let stays = |key: &String| *key == manifest || *key == keys;
        let mut bytes = 0_u64;
        let mut gone = listed;
        gone.retain(|key| !stays(key));
        for round in 0..ROUNDS_MAX {
            let found = store.list(&prefix).await.map_err(failed)?;
            let found: Vec<_> = found.into_iter().filter(|e| !stays(&e.key)).collect();
            if round > 0 && found.is_empty() {
                break;
            }
            for entry in found {
                bytes = bytes.saturating_add(entry.length);
                gone.insert(entry.key);
            }
            let keys: Vec<String> = gone.iter().cloned().collect();
            store.delete_all(&keys).await.map_err(failed)?;
            crash_point!("purge.mid_objects");
        }
        Ok((gone.len(), bytes))
    }

    /// Leaves nothing in the tombstone but that it is one.
    async fn empty_tombstone(&self, namespace: NamespaceId, id: DatabaseId) -> Result<(), Error> {
        let remote = &self.inner.core.remote;
        let emptied = remote
            .change_of(namespace, id, "empty a tombstone", |manifest| {
                manifest.name_hint.clear();
                manifest.parent = None;
                manifest.terms.clear();
                manifest.labels.clear();
                manifest.pins.clear();
                manifest.gaps.clear();
                manifest.index.clear();
                manifest.images.clear();
                manifest.segments.clear();
                manifest.marked.clear();
                Ok(())
            })
            .await;
        match emptied {
            Ok(_) => {}
            // Sealed with a key that is destroyed: it says nothing to anybody, and that it is gone.
            Err(error) if error.code() == Code::KeyUnavailable => {
                if !remote.is_shredded(namespace, id).await? {
                    return Err(error);
                }
            }
            Err(error) => return Err(error),
        }
        remote.forget(id);
        Ok(())
    }
}
