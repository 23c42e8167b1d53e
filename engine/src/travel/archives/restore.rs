//! An archive becomes a database again: unpacked into a scratch file, proven by its SHA-256, then brought in as
//! every file is. Before that proof nothing is created.
//!
//! The id of the database to be is noted in the operation first. A process life that finds the operation open
//! looks whether the first commit was journaled: if so the database gets its row, else what was made of it is
//! removed, files and objects.

use serde_json::{Value as Json, json};
use tidelog_archive::ErrorKind;
use tidelog_archive::key::Key;
use tidelog_wal::{DatabaseId, NamespaceId};

use super::read::{Wrong, unpack};
use super::{Archive, Format};
use crate::boxed;
use crate::core::Core;
use crate::crash_point;
use crate::database::DbMeta;
use crate::database::state::DbState;
use crate::engine::Engine;
use crate::error::{Code, Error};
use crate::node::start::store_error;
use crate::operations::{Begins, Handle, NewOperation, OperationType, Task};
use crate::scratch;

impl Engine {
    /// An archive of a namespace by its id, also of a database that was deleted.
    #[boxed]
    pub async fn archive(&self, namespace: NamespaceId, id: &str) -> Result<Archive, Error> {
        super::find(self, namespace, id).await
    }

    /// Begins to make a database of an archive of the same namespace, also of one whose database was deleted.
    #[boxed]
    pub async fn database_from_archive(
        &self,
        namespace: NamespaceId,
        name: &str,
        archive: &str,
        token: Option<String>,
    ) -> Result<Handle, Error> {
        self.check_new(namespace, name).await?;
        let archive = self.archive(namespace, archive).await?;
        if archive.document.format == Format::Sql {
            let what = "an archive of format sql is a text for other programs: run it through sqlite3 \
                        and import the file";
            return Err(Error::new(Code::ImportInvalid, what));
        }
        let core = &self.inner.core;
        let bytes = archive.document.bytes.saturating_mul(2);
        drop(scratch::folder(core, "a restore", bytes)?);
        let id = DatabaseId::from_bytes(core.parts.entropy.bytes16());
        let operation = NewOperation {
            kind: OperationType::Import,
            namespace,
            database: Some((id, name.to_owned())),
            exclusive: true,
            token,
            note: json!({ "archive": archive.id.to_string() }),
            begins: Begins::Stored,
        };
        let (engine, name) = (self.clone(), name.to_owned());
        let work = move |task| async move { restore(&engine, &archive, id, &name, &task).await };
        self.operate(operation, work).await
    }
}

async fn restore(
    engine: &Engine,
    archive: &Archive,
    id: DatabaseId,
    name: &str,
    task: &Task,
) -> Result<Json, Error> {
    let core = &engine.inner.core;
    let bytes = archive.document.bytes.saturating_mul(2);
    let folder = scratch::folder(core, "a restore", bytes)?;
    let file = folder.path().join("state.db");
    if let Err(Wrong(what)) = unpack(core, archive, &file, task).await? {
        let what = format!("archive {} is damaged: {what}", archive.id);
        return Err(Error::new(Code::ObjectCorrupt, what));
    }
    crash_point!("archive_restore.before_import");
    task.phase("importing", archive.document.bytes)?;
    task.point_of_no_return()?;
    let made = engine.import_as(archive.namespace, name, &file, id).await;
    if let Err(error) = &made
        && matches!(
            error.code(),
            Code::StorageUnavailable | Code::OutcomeUnknown
        )
        && !is_begun(engine, archive.namespace, id).await?
    {
        // Nothing was journaled: what stands of it is of no use.
        discard(core, archive.namespace, id).await?;
    }
    engine.publish_or_hide(made?).await?;
    Ok(result(id, name, &archive.id.to_string()))
}

fn result(id: DatabaseId, name: &str, archive: &str) -> Json {
    json!({ "database": { "id": id.to_string(), "name": name }, "seed": { "archive": archive } })
}

/// Whether the first commit of a database stands anywhere.
async fn is_begun(engine: &Engine, namespace: NamespaceId, id: DatabaseId) -> Result<bool, Error> {
    let inner = &engine.inner;
    let core = &inner.core;
    let state = DbState::read(core.parts.disk.as_ref(), &core.database_folder(id))?;
    if state.is_some() || inner.registry.has_journaled(id) || !core.tails.of(id).is_empty() {
        return Ok(true);
    }
    match core.remote.owned_manifest(namespace, id).await {
        Ok(loaded) => Ok(loaded.manifest.settled_position().is_some()),
        Err(error) if error.code() == Code::DatabaseNotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Removes a database that never had a commit: its folder, and every object below its own prefix.
async fn discard(core: &Core, namespace: NamespaceId, id: DatabaseId) -> Result<(), Error> {
    let folder = core.database_folder(id);
    match std::fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(Error::io("remove an unfinished database", error));
        }
        _ => {}
    }
    let failed = |e| store_error("remove an unfinished database", e);
    let prefix = Key::database_prefix(namespace, id);
    let store = &core.remote.store;
    let listed = store.list(&prefix).await.map_err(failed)?;
    let keys: Vec<String> = listed.into_iter().map(|entry| entry.key).collect();
    match store.delete_all(&keys).await {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(failed(error)),
        _ => Ok(()),
    }
}

/// What came of the database that an interrupted operation was making of an archive.
pub(crate) async fn end_interrupted(
    engine: &Engine,
    namespace: NamespaceId,
    database: Option<DatabaseId>,
    name: Option<&str>,
    note: &Json,
) -> Result<Option<Json>, Error> {
    let archive = note.get("archive").and_then(Json::as_str);
    let (Some(archive), Some(id), Some(name)) = (archive, database, name) else {
        return Ok(None);
    };
    let inner = &engine.inner;
    let has_row = inner.system.database_exists(id).await?;
    if !has_row {
        if !is_begun(engine, namespace, id).await? {
            discard(&inner.core, namespace, id).await?;
            return Ok(None);
        }
        let loaded = inner.core.remote.owned_manifest(namespace, id).await?;
        let meta = DbMeta {
            id,
            namespace,
            page_size: loaded.manifest.page_size,
            seed: loaded.manifest.seed,
        };
        engine.publish_or_hide(engine.draft(meta, name)).await?;
    }
    Ok(Some(result(id, name, archive)))
}
