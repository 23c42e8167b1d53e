//! Ending a rewind that an earlier process life left open, or of which this one does not know what it came to: by whether
//! its commit stands in the history.
//!
//! What follows the commit is done then, if it stands: the record says where it led, its snapshot names the state
//! before, and the Idempotency-Keys whose effects are gone are remembered. If it does not, nothing of it stays.

use rusqlite::{Connection, OpenFlags};
use serde_json::{Value as Json, json};
use tidelog_archive::ErrorKind;
use tidelog_wal::record::RecordKind;
use tidelog_wal::{Digest, PageCount, Position};

use super::run::{missing, preserve};
use crate::bucket::At;
use crate::database::idempotency::{KEEP_MICROS, request_keys};
use crate::engine::{Database, Engine};
use crate::error::{Code, Error};
use crate::executor::blocking;
use crate::operations::Operation;
use crate::scratch;
use crate::sql::policy::Permission;
use crate::system::Page;
use crate::travel::restores::{Outcome, RestoreRecord, RolledBackKey};

/// The result of the restore if it stands.
pub(super) async fn recover(engine: &Engine, operation: &Operation) -> Result<Option<Json>, Error> {
    let text = |name: &str| operation.note.get(name).and_then(Json::as_str);
    let (Some(id), Some(name)) = (text("restore"), &operation.database_name) else {
        return Ok(None);
    };
    let database = match engine.database(operation.namespace, name).await {
        Ok(database) if Some(database.row().id) == operation.database => database,
        Ok(_) => return Ok(None),
        Err(error) if error.code() == Code::DatabaseNotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let asked_at = operation.started_at;
    let mut record = match database.restore(id).await {
        Ok(record) => record,
        // It never came to its record: nothing was changed.
        Err(error) if error.code() == Code::RestoreNotFound => {
            if let Some(name) = text("preserve_as") {
                missing(&database, name, asked_at, None).await?;
            }
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let state = match state_noted(operation) {
        Some(state) => state,
        None => {
            let target = database.state_at(At::Bookmark(record.target)).await?;
            (target.n, target.digest)
        }
    };
    let found = find_commit(&database, &record, state).await?;
    if let Some(name) = &record.preserved_as {
        let from = found.map(|(from, _)| from);
        if let Some(from) = missing(&database, name, asked_at, from).await? {
            let state = database.named(&At::Bookmark(from)).await?;
            preserve(&database, name, state).await?;
        }
    }
    let mut keys = Vec::new();
    record.ended_at = Some(engine.now());
    if let Some((previous, bookmark)) = found {
        record.outcome = Outcome::Succeeded;
        record.previous = previous;
        record.bookmark = Some(bookmark);
        keys = taken_back(&database, previous).await?;
    } else {
        record.outcome = Outcome::Failed;
        record.error = Some("it ended before its change stood".to_owned());
    }
    engine.inner.system.restore_put(&record, keys).await?;
    Ok(found.map(|_| {
        let bookmark = record.bookmark.map(|at| at.to_string());
        json!({
            "restore": {
                "id": record.id,
                "from": record.previous.to_string(),
                "to": record.target.to_string(),
                "bookmark": bookmark,
                "previous_bookmark": record.previous.to_string(),
            },
            "bookmark": bookmark,
            "previous_bookmark": record.previous.to_string(),
        })
    }))
}

/// Which state an operation led to, by its note: that of an archive may stand nowhere in the history any more.
fn state_noted(operation: &Operation) -> Option<(PageCount, Digest)> {
    let note = &operation.note;
    let pages = u32::try_from(note.get("pages")?.as_u64()?).ok()?;
    let digest = u64::from_str_radix(note.get("digest")?.as_str()?, 16).ok()?;
    Some((PageCount::new(pages), Digest::from_u64(digest)))
}

/// The commit of a restore: the first one behind its record that is marked as a rewind, or that was recovered
/// without its mark and leads to the target's very state. Answers the state before it, and itself.
async fn find_commit(
    database: &Database,
    record: &RestoreRecord,
    wanted: (PageCount, Digest),
) -> Result<Option<(Position, Position)>, Error> {
    let mut before = record.previous;
    let mut cursor = None;
    loop {
        let page = Page { limit: 500, cursor };
        let from = Some(record.previous.txid.next());
        let page = database.commits(from, None, page).await?;
        for commit in &page.items {
            let state = (commit.n, commit.digest);
            // A large one stands elsewhere; one that was captured at an open lost its mark.
            let unmarked = commit.recovered || commit.kind == RecordKind::Reference;
            let restored = commit.kind == RecordKind::Restore || unmarked;
            if restored && state == wanted {
                return Ok(Some((before, commit.position)));
            }
            before = commit.position;
        }
        cursor = page.next_cursor;
        if cursor.is_none() {
            return Ok(None);
        }
    }
}

/// The Idempotency-Keys that stood at `previous`, the state before a restore, and stand no more. From here on the
/// running node knows them, too.
pub(crate) async fn taken_back(
    database: &Database,
    previous: Position,
) -> Result<Vec<RolledBackKey>, Error> {
    let engine = database.engine();
    let (core, now) = (&engine.inner.core, engine.now());
    let before = match database.state_at(At::Bookmark(previous)).await {
        Ok(state) => state,
        // Out of the window, or lost with its machine: it is not known, and will not be.
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Invalid) => {
            tracing::warn!(database = %database.row().id, %error,
                "the Idempotency-Keys that a restore took back are not known");
            return Ok(Vec::new());
        }
        Err(error) => return Err(error),
    };
    if before.time.micros().saturating_add(KEEP_MICROS) <= now.micros() {
        return Ok(Vec::new());
    }
    let page_size = database.lease().await?.meta().page_size;
    let bytes = before.n.bytes(page_size);
    let folder = scratch::folder(core, "the end of a restore", bytes)?;
    let file = folder.path().join("before");
    database.export(At::Bookmark(previous), &file).await?;
    let reader = database.lease().await?.reader().await?;
    let id = database.row().id;
    let gone = blocking(core.executor(), move || {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let before = Connection::open_with_flags(&file, flags).map_err(|e| {
            Error::new(Code::Internal, "open the state before a restore").caused_by(e)
        })?;
        let mut keys = request_keys(&before, id)?;
        drop((before, folder));
        if !keys.is_empty() {
            let left = reader.transaction(Permission::READ, None, |sqlite| {
                sqlite.as_engine(|connection| request_keys(connection, id))
            })?;
            let left: std::collections::HashSet<String> = left.into_iter().collect();
            keys.retain(|key| !left.contains(key));
        }
        Ok(keys)
    })
    .await?;
    core.rolled_back.add(id, &gone);
    Ok(RolledBackKey::all(gone, now))
}
