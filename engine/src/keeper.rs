//! Checkpoints that a stored chunk waits for.
//!
//! A chunk is the redo log of the SQLite files: it stays until each database in it was checkpointed past its
//! records. A busy database is backfilled when its WAL grows and an idle one when it is closed; one that stays
//! open and is rarely written comes to neither, nor does one that nobody touches after a crash. For these a stored
//! chunk waits `checkpoint_age`, or not at all once the journal folder is half full; then they are backfilled
//! here, beside their writers. A database without a record in a stored chunk costs nothing (I9).

use std::sync::Arc;

use tidelog_wal::{DatabaseId, NamespaceId};

use crate::core::Core;
use crate::error::Error;
use crate::executor::blocking;
use crate::places::For;
use crate::registry::Registry;

/// Databases backfilled in one turn: the next one comes soon.
const TURN_MAX: usize = 64;

/// Backfills what stored chunks wait for. A failure is tried again in the next turn.
pub(crate) async fn checkpoint_waiting(core: &Arc<Core>, registry: &Registry) {
    let age = core.settings.checkpoint_age.as_micros();
    let waiting = core
        .journal
        .wanting_checkpoint(u64::try_from(age).unwrap_or(u64::MAX));
    for (namespace, id) in waiting.into_iter().take(TURN_MAX) {
        if registry.is_shut() {
            return;
        }
        if let Err(error) = backfill(core, registry, namespace, id).await {
            tracing::debug!(database = %id, %error, "not backfilled yet");
        }
    }
}

/// Backfills one database, so that no stored chunk waits for it.
async fn backfill(
    core: &Arc<Core>,
    registry: &Registry,
    namespace: NamespaceId,
    id: DatabaseId,
) -> Result<(), Error> {
    let lease = registry.lease_for(For::Engine, namespace, id).await?;
    // Opening alone may have settled it.
    let (core, database) = (Arc::clone(core), Arc::clone(&lease));
    blocking(lease.core.executor(), move || {
        core.scratches.with(|scratch| database.backfill(scratch))
    })
    .await
}

/// Checkpoints one database and restarts its WAL.
pub(crate) async fn checkpoint(
    core: &Arc<Core>,
    registry: &Registry,
    namespace: NamespaceId,
    id: DatabaseId,
) -> Result<(), Error> {
    let lease = registry.lease_for(For::Engine, namespace, id).await?;
    let _gate = lease.gate_unasked().await?;
    let (core, database) = (Arc::clone(core), Arc::clone(&lease));
    blocking(lease.core.executor(), move || {
        core.scratches.with(|scratch| database.restart_wal(scratch))
    })
    .await
}
