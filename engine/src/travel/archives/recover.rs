//! Ending what an earlier process life left of archives, and deleting.

use serde_json::{Value as Json, json};
use tidelog_archive::key::ArchiveId;
use tidelog_archive::{ErrorKind, export};
use tidelog_wal::{DatabaseId, NamespaceId};

use super::document::{Document, Format, document_key, object_key};
use crate::core::Core;
use crate::crash_point;
use crate::engine::Engine;
use crate::error::{Code, Error};
use crate::node::start::store_error;
use crate::sealing::{key_error, refused};

/// Removes every object of an archive, the side file first: without it the archive does not exist.
pub(super) async fn delete(
    core: &Core,
    namespace: NamespaceId,
    database: DatabaseId,
    id: ArchiveId,
) -> Result<(), Error> {
    let store = &core.remote.store;
    let failed = |e| store_error("delete an archive", e);
    let side = document_key(namespace, database, id).to_string();
    store.delete(&side).await.map_err(failed)?;
    crash_point!("archive.after_document_gone");
    for format in [Format::Sqlite, Format::Sql] {
        let key = object_key(namespace, database, id, format).to_string();
        store.delete(&key).await.map_err(failed)?;
    }
    Ok(())
}

/// The side file of an archive, if it stands.
async fn document(
    core: &Core,
    namespace: NamespaceId,
    database: DatabaseId,
    id: ArchiveId,
) -> Result<Option<Document>, Error> {
    let key = document_key(namespace, database, id).to_string();
    let store = &core.remote.store;
    let bytes = match store.get(&key).await {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(store_error("read an archive's side file", error)),
    };
    let text = if export::is_sealed(&bytes) {
        store.unlock_head(&bytes).await.map_err(key_error)?;
        let ids = (namespace, database);
        export::open_document(&bytes, ids, store.keys()).map_err(|e| refused(&key, e))?
    } else {
        bytes.to_vec()
    };
    serde_json::from_slice(&text).map(Some).map_err(|e| {
        let what = format!("{key} is not a side file of an archive");
        Error::new(Code::ObjectCorrupt, what).caused_by(e)
    })
}

/// The same; none of a database whose keys are destroyed, whose archives are gone with them.
async fn living_document(
    core: &Core,
    namespace: NamespaceId,
    database: DatabaseId,
    id: ArchiveId,
) -> Result<Option<Document>, Error> {
    match document(core, namespace, database, id).await {
        Err(error) if error.code() == Code::KeyUnavailable => {
            if core.remote.is_shredded(namespace, database).await? {
                Ok(None)
            } else {
                Err(error)
            }
        }
        found => found,
    }
}

/// Ends the row of an archive that an earlier life was making: the archive if its side file stands, else nothing.
async fn end(
    engine: &Engine,
    namespace: NamespaceId,
    database: DatabaseId,
    id: ArchiveId,
) -> Result<Option<Document>, Error> {
    let inner = &engine.inner;
    if let Some(document) = living_document(&inner.core, namespace, database, id).await? {
        inner.system.archive_ready(id, &document).await?;
        return Ok(Some(document));
    }
    delete(&inner.core, namespace, database, id).await?;
    inner.system.archive_forget(id).await?;
    Ok(None)
}

/// What came of the archive that an interrupted operation was making.
pub(crate) async fn end_interrupted(
    engine: &Engine,
    namespace: NamespaceId,
    database: Option<DatabaseId>,
    note: &Json,
) -> Result<Option<Json>, Error> {
    let id = note.get("archive").and_then(Json::as_str);
    let (Some(id), Some(database)) = (id.and_then(ArchiveId::parse), database) else {
        return Ok(None);
    };
    let found = end(engine, namespace, database, id).await?;
    Ok(found.map(|document| json!({ "archive": document })))
}

/// Ends the rows of earlier lives that no open operation speaks for, and finishes deletions.
pub(crate) async fn sweep(engine: &Engine) -> Result<(), Error> {
    let inner = &engine.inner;
    let own = inner.core.term().get();
    for row in inner.system.archives_unfinished().await? {
        if row.deleting {
            delete(&inner.core, row.namespace, row.database, row.id).await?;
            inner.system.archive_forget(row.id).await?;
        } else if row.term != own {
            end(engine, row.namespace, row.database, row.id).await?;
        }
    }
    Ok(())
}
