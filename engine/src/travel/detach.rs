//! Detaching: a fork gets an image of its own of the state it begins with, and shares nothing any more.
//!
//! Its bookmarks stay; those of the parent before it began name nothing on it from then on.

use std::sync::Arc;

use serde_json::{Value as Json, json};
use tidelog_archive::image::ImageMeta;
use tidelog_archive::manifest::{ImageEntry, Parent, Settled};
use tidelog_archive::plan::{Plan, Target};
use tidelog_wal::Position;

use super::forks::unpin;
use super::watched::materialise_into;
use crate::boxed;
use crate::copy;
use crate::crash_point;
use crate::database::Lease;
use crate::engine::{Database, Engine};
use crate::error::{Code, Error};
use crate::image;
use crate::operations::{
    Begins, Handle, NewOperation, Operation, OperationState, OperationType, Task,
};
use crate::rebuild::{history, plan, present, replanned, restore_error};
use crate::scratch::ScratchPages;
use crate::settings::Durability;
use crate::system::databases::DatabaseRow;

impl Database {
    /// Begins making this database independent of the one it was forked from. One that is, stays as it is.
    #[boxed]
    pub async fn detach(&self, token: Option<String>) -> Result<Handle, Error> {
        let row = self.row();
        let new = NewOperation {
            kind: OperationType::Detach,
            namespace: row.namespace,
            database: Some((row.id, row.name.clone())),
            exclusive: true,
            token,
            note: Json::Null,
            begins: Begins::Stored,
        };
        let database = self.clone();
        self.engine()
            .operate(new, async move |task| detach(&database, &task).await)
            .await
    }
}

/// Detaches these forks one after the other, each as an operation of its own, within `task`.
pub(super) async fn detach_forks(
    engine: &Engine,
    forks: &[DatabaseRow],
    task: &Task,
    token: Option<&String>,
) -> Result<(), Error> {
    for row in forks {
        task.phase("detach_forks", 0)?;
        let database = engine.database(row.namespace, &row.name).await?;
        let mut handle = database.detach(token.cloned()).await?;
        let ended = task.unless_stopped(async { Ok(handle.ended().await) });
        let ended = ended.await?;
        if ended.state != OperationState::Succeeded {
            let why = ended
                .error
                .map_or_else(|| "it was cancelled".to_owned(), |failure| failure.detail);
            let what = format!("fork {:?} was not detached: {why}", row.name);
            let error = Error::new(Code::ForkParentPinned, what);
            return Err(error.with("forks", vec![row.name.clone()]));
        }
    }
    Ok(())
}

/// The state that the fork begins with, in a scratch file.
async fn state(lease: &Lease, task: &Task, at: Position) -> Result<(Plan, ScratchPages), Error> {
    let (core, meta) = (&lease.core, lease.meta());
    let mut history = history(core, meta.namespace, meta.id).await?;
    let store = &core.remote.store;
    let target = Target::Position(at);
    let plan = plan(store, &mut history, target, present(core.term())).await?;
    let bytes = plan.target.n.bytes(plan.page_size);
    task.phase("copy", bytes)?;
    let (of, size) = (Arc::clone(core), plan.page_size);
    let make = move || ScratchPages::create(&of, "detaching", size, bytes);
    if let Some(pages) = copy::into_sink(lease, plan.target, make.clone(), Some(task)).await? {
        return Ok((plan, pages));
    }
    let restored = async {
        let done = materialise_into(store, &plan, make()?, task).await;
        done.map_err(restore_error)
    };
    let (pages, _) = task.unless_stopped(restored).await?;
    Ok((plan, pages))
}

async fn detach(database: &Database, task: &Task) -> Result<Json, Error> {
    let engine = database.engine();
    let core = &engine.inner.core;
    let row = database.row();
    // Its first commit, which says that it is a fork, stands in the store before its parent is let go.
    let lease = database.lease().await?;
    lease
        .wait_durable(lease.last_lsn(), Durability::Remote)
        .await?;
    let loaded = core.remote.owned_manifest(row.namespace, row.id).await?;
    let Some(parent) = loaded.manifest.parent else {
        return Ok(json!({ "detached": false }));
    };
    let (plan, pages) = replanned!(state(&lease, task, parent.at))?;
    task.phase("store", plan.target.n.bytes(plan.page_size))?;
    let state = plan.target;
    let meta = ImageMeta {
        namespace: row.namespace,
        database: row.id,
        page_size: plan.page_size,
        seed: plan.seed,
        position: state.position,
        time: state.time,
        n: state.n,
        digest: state.digest,
    };
    let entry = image::write_pages(core, meta, pages).await?;
    crash_point!("detach.after_image");
    task.point_of_no_return()?;
    let settled = Settled {
        position: state.position,
        time: state.time,
        n: state.n,
        digest: state.digest,
    };
    let loaded = core.remote.owned_manifest(row.namespace, row.id).await?;
    core.remote
        .change(&loaded, "detach a fork", |manifest| {
            let parent = manifest.parent.take();
            if parent.is_some() {
                manifest.settled.get_or_insert(settled);
                manifest.horizon = manifest.horizon.max(state.position.txid.next());
                add(manifest, entry);
            }
            Ok(())
        })
        .await?;
    crash_point!("detach.after_manifest");
    finish(engine, database, &parent).await?;
    Ok(json!({ "detached": true, "bytes": entry.len }))
}

fn add(manifest: &mut tidelog_archive::manifest::Manifest, entry: ImageEntry) {
    if !manifest.images.contains(&entry) {
        manifest.add_image(entry);
    }
}

/// What follows once nothing is shared: the row, and the parent's pin.
async fn finish(engine: &Engine, database: &Database, parent: &Parent) -> Result<(), Error> {
    engine
        .inner
        .system
        .database_detached(database.row())
        .await?;
    unpin(&engine.inner.core, parent).await
}

/// Ends a detaching that an earlier life left open: if nothing is shared any more, what follows is done.
pub(crate) async fn recover(engine: &Engine, operation: &Operation) -> Result<Option<Json>, Error> {
    let (Some(id), core) = (operation.database, &engine.inner.core) else {
        return Ok(None);
    };
    let Some(row) = engine.inner.system.database_by_id(id).await? else {
        return Ok(None);
    };
    let loaded = core.remote.owned_manifest(row.namespace, id).await?;
    let Some(parent) = row.parent else {
        return Ok(Some(json!({ "detached": true })));
    };
    if loaded.manifest.parent.is_some() {
        return Ok(None);
    }
    let current = core
        .remote
        .owned_manifest(row.namespace, parent.database)
        .await?;
    core.remote
        .change(&current, "unpin a fork's state", |manifest| {
            manifest.pins.retain(|pin| pin.child != Some(id));
            Ok(())
        })
        .await?;
    engine.inner.system.database_detached(&row).await?;
    Ok(Some(json!({ "detached": true })))
}
