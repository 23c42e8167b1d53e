//! Forks: databases that begin at a state of another's history and share its objects.
//!
//! Making one takes the same few requests whatever its size (DESIGN 5.7), four in a row with the operation's: its
//! manifest in state *creating*, a pin in the parent's that keeps the state, then at once the manifest to *active* and the
//! row that names it. Nothing is copied;
//! the files are made when it is first touched. Its history goes on from the parent's TxId with a `fork` record;
//! bookmarks of the parent up to that state name the same states on it.
//!
//! A fork of a fork at a state that is older than where that one began hangs on the database that has the state.

use std::time::Duration;

use serde_json::{Value as Json, json};
use tidelog_archive::manifest::{Parent, Pin, PublishError, State};
use tidelog_archive::plan::Resolved;
use tidelog_wal::record::{CommitRecord, RecordBody, RecordHeader, TimeFlag};
use tidelog_wal::{DatabaseId, NamespaceId, Position, Timestamp, chain};

use crate::boxed;
use crate::bucket::At;
use crate::capture::Head;
use crate::core::Core;
use crate::crash_point;
use crate::database::DbMeta;
use crate::engine::{Database, Engine};
use crate::error::{Code, Error};
use crate::journal::chunk::{ChunkDatabase, WalPosition};
use crate::journal::{Append, Payload};
use crate::operations::{Begins, Handle, NewOperation, Operation, OperationType, Task};
use crate::remote::publish_error;
use crate::scratch;
use crate::system::databases::{DatabaseRow, ParentRow};
use crate::system::names::check_name;

/// A fork that is asked for.
#[derive(Debug, Clone)]
pub struct Fork {
    /// Its name.
    pub name: String,
    /// The state it begins with.
    pub at: At,
    /// Tables, indexes, views and triggers without rows: a database of its own that shares nothing.
    pub schema_only: bool,
    /// Delete it after so long.
    pub lives: Option<Duration>,
    /// The name it has as a branch.
    pub branch: Option<String>,
    /// Id of the token that asks.
    pub token: Option<String>,
}

impl Fork {
    /// A fork of the newest state that lives until it is deleted.
    pub fn named(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            at: At::Latest,
            schema_only: false,
            lives: None,
            branch: None,
            token: None,
        }
    }
}

/// What becomes a fork.
#[derive(Debug, Clone)]
pub(super) struct Child {
    pub(super) meta: DbMeta,
    pub(super) parent: Parent,
    pub(super) row: DatabaseRow,
}

impl Database {
    /// Begins a fork of this database. What is wrong with the name or the state is answered at once.
    #[boxed]
    pub async fn fork(&self, fork: Fork) -> Result<Handle, Error> {
        check_name("database", &fork.name)?;
        let engine = self.engine();
        engine.check_free(self.row().namespace, &fork.name).await?;
        self.fork_instead(fork, None).await
    }

    /// The same in the place of `old`, which is deleted when the fork is there and not before.
    pub(super) async fn fork_instead(
        &self,
        fork: Fork,
        old: Option<DatabaseRow>,
    ) -> Result<Handle, Error> {
        let engine = self.engine();
        let row = self.row();
        let hold = self.hold().await?;
        let (lease, _, target) = self.resolve(fork.at.clone()).await?;
        if fork.schema_only {
            let bytes = target.n.bytes(lease.meta().page_size);
            drop(scratch::folder(&lease.core, "a fork without rows", bytes)?);
        }
        drop(lease);
        let id = DatabaseId::from_bytes(engine.inner.core.parts.entropy.bytes16());
        let new = NewOperation {
            kind: OperationType::Fork,
            namespace: row.namespace,
            database: Some((row.id, row.name.clone())),
            exclusive: false,
            token: fork.token.clone(),
            note: json!({ "child": id.to_string() }),
            begins: Begins::Stored,
        };
        let database = self.clone();
        let work = async move |task: Task| {
            // Until its own pin stands.
            let _hold = hold;
            let made = if fork.schema_only {
                super::schema_only::make(&database, &task, &fork, id, target).await?
            } else {
                make(&database, &task, &fork, old.as_ref(), id, target).await?
            };
            Ok(result(&made, target.position, &database.row().name))
        };
        engine.operate(new, work).await
    }

    /// The live forks of this database, by name.
    #[boxed]
    pub async fn forks(&self) -> Result<Vec<DatabaseRow>, Error> {
        let system = &self.engine().inner.system;
        system.databases_forked(self.row().id).await
    }
}

fn result(made: &DatabaseRow, at: Position, parent: &str) -> Json {
    json!({
        "database": {
            "name": made.name,
            "id": made.id.to_string(),
            "parent": made.parent.map(|_| json!({ "database": parent, "bookmark": at.to_string() })),
        },
        "bookmark": at.to_string(),
    })
}

/// The row of a database that is made of this one now.
pub(super) fn row_of(
    database: &Database,
    meta: &DbMeta,
    fork: &Fork,
    parent: Option<ParentRow>,
) -> DatabaseRow {
    let now = database.engine().now();
    let ends = |lives: Duration| {
        let micros = u64::try_from(lives.as_micros()).unwrap_or(u64::MAX);
        Timestamp::from_micros(now.micros().saturating_add(micros))
    };
    DatabaseRow {
        id: meta.id,
        namespace: meta.namespace,
        name: fork.name.clone(),
        page_size: meta.page_size.get(),
        created_at: now,
        deleted_at: None,
        durability: None,
        block_reads: false,
        block_writes: false,
        delete_protection: false,
        size_limit: None,
        history_limit: None,
        foreign_keys: database.row().foreign_keys,
        parent,
        branch: fork.branch.clone(),
        branch_of: fork.branch.as_ref().map(|_| database.row().id),
        expires_at: fork.lives.map(ends),
        retention_micros: None,
        purging: false,
    }
}

/// Makes a fork by reference.
async fn make(
    database: &Database,
    task: &Task,
    fork: &Fork,
    old: Option<&DatabaseRow>,
    id: DatabaseId,
    target: Resolved,
) -> Result<DatabaseRow, Error> {
    task.phase("create", 0)?;
    let engine = database.engine();
    let child = child_of(database, fork, id, target.position).await?;
    if let Err(error) = create(engine, &child, old, task).await {
        let of = (child.meta.namespace, id);
        engine.stands_after(of, Some(&child.parent), error).await?;
        make_ready(engine, of).await;
    }
    let core = &engine.inner.core;
    core.untouched.add(id, target);
    if let Some(at) = child.row.expires_at {
        core.calendar.not_later(id, at);
    }
    Ok(child.row)
}

/// What a fork at `at` hangs on: the database whose own history holds that state.
async fn child_of(
    database: &Database,
    fork: &Fork,
    id: DatabaseId,
    at: Position,
) -> Result<Child, Error> {
    let core = &database.engine().inner.core;
    let row = database.row();
    let mut owner = core.remote.owned_manifest(row.namespace, row.id).await?;
    while let Some(parent) = owner.manifest.parent.filter(|p| at.txid <= p.at.txid) {
        owner = core
            .remote
            .owned_manifest(parent.namespace, parent.database)
            .await?;
    }
    let manifest = &owner.manifest;
    let parent = Parent {
        namespace: manifest.namespace,
        database: manifest.database,
        at,
        pin: core.parts.entropy.bytes16(),
    };
    let meta = DbMeta {
        id,
        namespace: row.namespace,
        page_size: manifest.page_size,
        seed: manifest.seed,
    };
    let from = ParentRow {
        database: parent.database,
        at,
    };
    let row = row_of(database, &meta, fork, Some(from));
    Ok(Child { meta, parent, row })
}

/// The four writes that make a fork, in an order that leaves garbage at worst.
async fn create(
    engine: &Engine,
    child: &Child,
    old: Option<&DatabaseRow>,
    task: &Task,
) -> Result<(), Error> {
    let core = &engine.inner.core;
    let Child { meta, parent, row } = child;
    let creating = State::Creating(engine.now());
    let made = core
        .remote
        .create_manifest_of(meta, &row.name, creating, Some(*parent))
        .await?;
    crash_point!("fork.after_manifest");
    let pin = Pin {
        id: parent.pin,
        position: parent.at,
        created: engine.now(),
        child: Some(meta.id),
    };
    let current = core
        .remote
        .owned_manifest(parent.namespace, parent.database)
        .await?;
    core.remote
        .change(&current, "pin a fork's state", |manifest| {
            // Marked history is gone for good: a fork that came too late finds nothing to hang on.
            let pinned = || manifest.pins.iter().any(|pin| pin.position == parent.at);
            if parent.at.txid < manifest.horizon && !pinned() {
                let what = "the state left the retention window while it was forked";
                return Err(Error::new(Code::BookmarkExpired, what));
            }
            if matches!(manifest.state, State::Purged(_)) {
                let what = "the database was purged while it was forked";
                return Err(Error::new(Code::DatabasePurged, what));
            }
            if manifest.pins.iter().all(|other| other.id != pin.id) {
                manifest.pins.push(pin);
            }
            Ok(())
        })
        .await?;
    crash_point!("fork.after_pin");
    task.point_of_no_return()?;
    // Each is a request of its own, and neither needs the other: what stands is decided by the row.
    let ready = core.remote.change(&made, "make a fork ready", |manifest| {
        manifest.state = State::Active(engine.now());
        Ok(())
    });
    let named = async {
        match old {
            None => engine.inner.system.database_add(row, None).await,
            Some(old) => engine.database_put_instead(row, old).await,
        }
    };
    let (ready, named) = tokio::join!(ready, named);
    crash_point!("fork.after_row");
    named?;
    ready.map(drop)
}

/// Makes a fork ready whose row stands, should its manifest not say so yet. It is for those who have the bucket alone:
/// nothing here waits for it.
async fn make_ready(engine: &Engine, (namespace, id): (NamespaceId, DatabaseId)) {
    let remote = &engine.inner.core.remote;
    let made = remote.change_of(namespace, id, "make a fork ready", |manifest| {
        if let State::Creating(_) = manifest.state {
            manifest.state = State::Active(engine.now());
        }
        Ok(())
    });
    if let Err(error) = made.await {
        tracing::warn!(database = %id, %error, "the manifest of a fork says that it is being made");
    }
}

/// Takes a fork's pin out of its parent's manifest. The fork must not need it any more.
pub(crate) async fn unpin(core: &Core, parent: &Parent) -> Result<(), Error> {
    let found = core
        .remote
        .owned_manifest(parent.namespace, parent.database);
    let current = match found.await {
        Ok(current) => current,
        Err(error) if error.code() == Code::DatabaseNotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if current.manifest.pins.iter().all(|pin| pin.id != parent.pin) {
        return Ok(());
    }
    core.remote
        .change(&current, "unpin a fork's state", |manifest| {
            manifest.pins.retain(|pin| pin.id != parent.pin);
            Ok(())
        })
        .await
        .map(drop)
}

/// Journals the first commit of a fork whose files stand at `head`, where it begins, and answers the state after
/// it: the same pages under the next TxId, on a chain of its own.
pub(crate) fn first_record(
    core: &Core,
    meta: DbMeta,
    parent: &Parent,
    head: Head,
) -> Result<Head, Error> {
    let wall = core.parts.clock.wall();
    let header = RecordHeader {
        term: core.term(),
        txid: head.txid.next(),
        time: head.time.ordered_next(wall),
        wall,
        flag: TimeFlag::Live,
        n_before: head.pages,
        n_after: head.pages,
        digest: head.digest,
        annotations: Vec::new(),
    };
    let time = header.time;
    let record = CommitRecord {
        header,
        body: RecordBody::Fork {
            parent: parent.database,
            at: parent.at,
        },
    };
    let mut bytes = Vec::new();
    record.encode(&mut bytes);
    let chain_before = chain::fork(meta.id, &parent.at);
    let chain = chain::step(chain_before, &bytes);
    let database = ChunkDatabase {
        id: meta.id,
        namespace: meta.namespace,
        page_size: meta.page_size,
        seed: meta.seed,
        chain_before,
    };
    let append = Append {
        txid: head.txid.next(),
        wal: WalPosition::default(),
        chain,
        payload: Payload::Record(&bytes),
    };
    core.journal.append(&database, &[append])?;
    crash_point!("fork.after_first_record");
    Ok(Head {
        term: core.term(),
        txid: head.txid.next(),
        chain,
        time,
        ..head
    })
}

/// Ends a fork that an earlier life left open: it stands if its row does, else nothing of it stays.
pub(crate) async fn recover(engine: &Engine, operation: &Operation) -> Result<Option<Json>, Error> {
    let child = operation.note.get("child").and_then(Json::as_str);
    let Some(id) = child.and_then(|text| text.parse::<DatabaseId>().ok()) else {
        return Ok(None);
    };
    if let Some(row) = engine.inner.system.database_by_id(id).await? {
        if row.parent.is_some() {
            make_ready(engine, (row.namespace, id)).await;
        }
        let at = row.parent.map(|parent| parent.at);
        let parent = operation.database_name.clone().unwrap_or_default();
        return Ok(Some(match at {
            Some(at) => result(&row, at, &parent),
            None => json!({ "database": { "name": row.name, "id": row.id.to_string() } }),
        }));
    }
    engine.purge_unnamed(operation.namespace, id, None).await?;
    Ok(None)
}

impl crate::remote::Remote {
    /// Publishes a change of a manifest and remembers the outcome.
    pub(crate) async fn change(
        &self,
        current: &tidelog_archive::manifest::Loaded,
        what: &str,
        mut change: impl FnMut(&mut tidelog_archive::manifest::Manifest) -> Result<(), Error>,
    ) -> Result<tidelog_archive::manifest::Loaded, Error> {
        enum Why {
            Ours(Error),
            Published(PublishError),
        }
        impl From<PublishError> for Why {
            fn from(error: PublishError) -> Self {
                Self::Published(error)
            }
        }
        let changed = self
            .publish(current, |manifest| change(manifest).map_err(Why::Ours))
            .await;
        match changed {
            Ok(loaded) => {
                self.remember(current.manifest.database, loaded.clone());
                Ok(loaded)
            }
            Err(Why::Ours(error)) => Err(error),
            Err(Why::Published(error)) => {
                // Whether the write landed may be open: what stands there is read anew.
                self.forget(current.manifest.database);
                Err(publish_error(what, error))
            }
        }
    }
}
