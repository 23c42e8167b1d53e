//! Namespaces that end: hidden together with all their databases, brought back, or forgotten.
//!
//! Those that are deleted are kept in memory, since every request asks. A namespace that is *purging* never comes
//! back; its row is the last thing of it that goes.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use rusqlite::{Connection, params};
use tidelog_wal::{DatabaseId, NamespaceId, Timestamp};

use super::databases::{COLUMNS, DatabaseRow, UNDELETE_MICROS, row};
use super::{System, id16, micros, timestamp};
use crate::error::{Code, Error};
use crate::travel::archives::{held, refuse_held};

/// The end of a namespace that is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NamespaceEnd {
    /// Since when it is deleted.
    pub deleted_at: Timestamp,
    /// It is being destroyed, and cannot be brought back.
    pub purging: bool,
}

impl NamespaceEnd {
    /// When it is destroyed by itself.
    pub fn over_at(&self) -> Timestamp {
        Timestamp::from_micros(self.deleted_at.micros().saturating_add(UNDELETE_MICROS))
    }
}

/// Namespaces that are deleted.
#[derive(Debug, Default)]
pub(crate) struct Closed {
    of: RwLock<HashMap<NamespaceId, NamespaceEnd>>,
}

impl Closed {
    fn read(&self) -> RwLockReadGuard<'_, HashMap<NamespaceId, NamespaceEnd>> {
        self.of.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, id: NamespaceId, end: Option<NamespaceEnd>) {
        let mut of = self.of.write().unwrap_or_else(PoisonError::into_inner);
        match end {
            Some(end) => of.insert(id, end),
            None => of.remove(&id),
        };
    }
}

/// What is answered in a namespace that is deleted.
pub(crate) fn refused(end: NamespaceEnd) -> Error {
    let what = if end.purging {
        "the namespace is being destroyed for good"
    } else {
        "the namespace is deleted; its owner can bring it back for seven days"
    };
    Error::new(Code::NamespaceDeleted, what)
}

/// Why a transaction that was to end a namespace changed nothing.
enum Kept {
    Protected(Vec<String>),
    Held(Vec<String>),
    Making(String),
}

impl Kept {
    fn refusal(self) -> Error {
        match self {
            Self::Protected(names) => {
                let what = format!(
                    "databases of the namespace are protected against deletion: {}",
                    names.join(", ")
                );
                Error::new(Code::DatabaseProtected, what).with("databases", names)
            }
            Self::Held(ids) => match refuse_held(ids) {
                Err(error) => error,
                Ok(()) => Error::internal("an archive is held and is not"),
            },
            Self::Making(operation) => {
                let what = format!(
                    "operation {operation} makes an archive in this namespace; wait for it or cancel it"
                );
                Error::new(Code::OperationInProgress, what).with("operation", operation)
            }
        }
    }
}

fn texts(c: &Connection, sql: &str, id: NamespaceId) -> rusqlite::Result<Vec<String>> {
    let mut select = c.prepare(sql)?;
    select
        .query_map([id.as_bytes()], |row| row.get(0))?
        .collect()
}

fn protected(c: &Connection, id: NamespaceId) -> rusqlite::Result<Option<Kept>> {
    let names = texts(
        c,
        "SELECT name FROM databases WHERE namespace = ?1 AND delete_protection ORDER BY name",
        id,
    )?;
    Ok((!names.is_empty()).then_some(Kept::Protected(names)))
}

/// Why the archives of a namespace do not let it go at `trusted`.
fn archived(
    c: &Connection,
    id: NamespaceId,
    trusted: Timestamp,
    term: u32,
) -> rusqlite::Result<Option<Kept>> {
    let mut select = c.prepare("SELECT DISTINCT database FROM archives WHERE namespace = ?1")?;
    let databases = select
        .query_map([id.as_bytes()], |row| row.get::<_, Vec<u8>>(0))?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    let mut ids = Vec::new();
    for database in databases {
        ids.extend(held(c, DatabaseId::from_bytes(id16(&database)?), trusted)?);
    }
    if !ids.is_empty() {
        return Ok(Some(Kept::Held(ids)));
    }
    let mut select = c.prepare(
        "SELECT coalesce(operation, id) FROM archives \
         WHERE namespace = ?1 AND state = 'creating' AND term = ?2 LIMIT 1",
    )?;
    let mut making = select.query_map(params![id.as_bytes(), term], |row| row.get(0))?;
    Ok(making.next().transpose()?.map(Kept::Making))
}

fn rows_of(c: &Connection, id: NamespaceId) -> rusqlite::Result<Vec<DatabaseRow>> {
    let mut select = c.prepare(&format!(
        "SELECT {COLUMNS} FROM databases WHERE namespace = ?1 ORDER BY created DESC, id"
    ))?;
    select.query_map([id.as_bytes()], row)?.collect()
}

impl System {
    /// Reads which namespaces earlier lives left deleted.
    pub(super) async fn load_closed(&self) -> Result<(), Error> {
        let rows = self
            .read(|c| {
                let mut select = c.prepare(
                    "SELECT id, deleted, purging FROM namespaces WHERE deleted IS NOT NULL",
                )?;
                let rows = select.query_map([], |row| {
                    let id = NamespaceId::from_bytes(id16(&row.get::<_, Vec<u8>>(0)?)?);
                    let end = NamespaceEnd {
                        deleted_at: timestamp(row.get(1)?),
                        purging: row.get::<_, Option<i64>>(2)?.is_some(),
                    };
                    Ok((id, end))
                })?;
                rows.collect::<rusqlite::Result<HashMap<_, _>>>()
            })
            .await?;
        let closed = &self.closed.of;
        *closed.write().unwrap_or_else(PoisonError::into_inner) = rows;
        Ok(())
    }

    /// The end of a namespace, if it is deleted.
    pub(crate) fn namespace_end(&self, id: NamespaceId) -> Option<NamespaceEnd> {
        self.closed.read().get(&id).copied()
    }

    /// All that are deleted.
    pub(crate) fn namespaces_ended(&self) -> Vec<(NamespaceId, NamespaceEnd)> {
        let closed = self.closed.read();
        closed.iter().map(|(id, end)| (*id, *end)).collect()
    }

    /// Refuses what begins something in a namespace that is deleted.
    pub(crate) fn refuse_ended(&self, id: NamespaceId) -> Result<(), Error> {
        self.namespace_end(id)
            .map_or(Ok(()), |end| Err(refused(end)))
    }

    /// The databases of a namespace, deleted ones among them, the newest first: forks before what they began in.
    pub(crate) async fn databases_of(&self, id: NamespaceId) -> Result<Vec<DatabaseRow>, Error> {
        self.read(move |c| rows_of(c, id)).await
    }

    fn forget_of(&self, id: NamespaceId) {
        self.databases.forget_all_of(id);
        self.members.forget_all_of(id);
        self.tokens.forget(|token| token.namespace == Some(id));
    }

    /// Hides a namespace with all its databases, which can be brought back for seven days; answers those databases.
    pub(crate) async fn namespace_delete(
        &self,
        id: NamespaceId,
    ) -> Result<(NamespaceEnd, Vec<DatabaseRow>), Error> {
        let now = self.core.parts.clock.wall();
        let done = self
            .write(move |c| {
                if let Some(kept) = protected(c, id)? {
                    return Ok(Err(kept));
                }
                let live = rows_of(c, id)?;
                let live = live.into_iter().filter(|row| row.deleted_at.is_none());
                let live = live.collect::<Vec<_>>();
                c.execute(
                    "UPDATE namespaces SET deleted = ?2 WHERE id = ?1",
                    params![id.as_bytes(), micros(now)],
                )?;
                c.execute(
                    "UPDATE databases SET deleted = ?2, due = ?2 WHERE namespace = ?1 AND deleted IS NULL",
                    params![id.as_bytes(), micros(now)],
                )?;
                Ok(Ok(live))
            })
            .await?;
        let live = done.map_err(Kept::refusal)?;
        let end = NamespaceEnd {
            deleted_at: now,
            purging: false,
        };
        self.closed.set(id, Some(end));
        self.forget_of(id);
        Ok((end, live))
    }

    /// Brings a namespace back with the databases that went with it; answers those.
    pub(crate) async fn namespace_undelete(
        &self,
        id: NamespaceId,
    ) -> Result<Vec<DatabaseRow>, Error> {
        let back = self
            .write(move |c| {
                let deleted: Option<i64> = c.query_row(
                    "SELECT deleted FROM namespaces WHERE id = ?1 AND purging IS NULL",
                    [id.as_bytes()],
                    |row| row.get(0),
                )?;
                let with_it = |row: &DatabaseRow| {
                    !row.purging && deleted.is_some() && row.deleted_at.map(micros) == deleted
                };
                let back: Vec<_> = rows_of(c, id)?.into_iter().filter(with_it).collect();
                c.execute(
                    "UPDATE namespaces SET deleted = NULL WHERE id = ?1",
                    [id.as_bytes()],
                )?;
                c.execute(
                    "UPDATE databases SET deleted = NULL, due = 0 \
                     WHERE namespace = ?1 AND deleted = ?2 AND purging IS NULL",
                    params![id.as_bytes(), deleted],
                )?;
                Ok(back)
            })
            .await?;
        self.closed.set(id, None);
        self.forget_of(id);
        Ok(back)
    }

    /// Closes a namespace for good. Refused while databases of it are protected, or archives of them held at
    /// `trusted` or being made: the same transaction looks.
    pub(crate) async fn namespace_purging(
        &self,
        id: NamespaceId,
        trusted: Timestamp,
    ) -> Result<Vec<DatabaseRow>, Error> {
        let (now, term) = (self.core.parts.clock.wall(), self.core.term().get());
        let done = self
            .write(move |c| {
                if let Some(kept) = protected(c, id)? {
                    return Ok(Err(kept));
                }
                if let Some(kept) = archived(c, id, trusted, term)? {
                    return Ok(Err(kept));
                }
                c.execute(
                    "UPDATE namespaces SET deleted = coalesce(deleted, ?2), \
                     purging = coalesce(purging, ?2) WHERE id = ?1",
                    params![id.as_bytes(), micros(now)],
                )?;
                c.execute(
                    "UPDATE databases SET deleted = coalesce(deleted, ?2), due = ?2 WHERE namespace = ?1",
                    params![id.as_bytes(), micros(now)],
                )?;
                Ok(Ok(rows_of(c, id)?))
            })
            .await?;
        let rows = done.map_err(Kept::refusal)?;
        let deleted_at = self.namespace_end(id).map_or(now, |end| end.deleted_at);
        let end = NamespaceEnd {
            deleted_at,
            purging: true,
        };
        self.closed.set(id, Some(end));
        self.forget_of(id);
        Ok(rows)
    }

    /// Whether an archive of a namespace is retained until some time.
    pub(crate) async fn any_retained(&self, id: NamespaceId) -> Result<bool, Error> {
        self.read(move |c| {
            c.query_row(
                "SELECT EXISTS(SELECT 1 FROM archives WHERE namespace = ?1 AND retain_until IS NOT NULL)",
                [id.as_bytes()],
                |row| row.get(0),
            )
        })
        .await
    }

    /// Forgets a namespace whose databases are gone, in one transaction; its audit lines stay for their own time,
    /// and `operation`, which tells how it ended.
    pub(crate) async fn namespace_forget(
        &self,
        id: NamespaceId,
        operation: Option<String>,
    ) -> Result<(), Error> {
        self.write(move |c| {
            c.execute(
                "DELETE FROM token_uses WHERE token IN (SELECT id FROM tokens WHERE namespace = ?1)",
                [id.as_bytes()],
            )?;
            for table in [
                "tokens",
                "members",
                "revoked_principals",
                "restores",
                "verifications",
                "verification_schedules",
                "archive_schedules",
                "archives",
                "purged",
            ] {
                let delete = format!("DELETE FROM {table} WHERE namespace = ?1");
                c.execute(&delete, [id.as_bytes()])?;
            }
            c.execute("DELETE FROM maintenance WHERE scope = ?1", [id.as_bytes()])?;
            c.execute(
                "DELETE FROM operations WHERE namespace = ?1 AND id IS NOT ?2",
                params![id.as_bytes(), operation],
            )?;
            c.execute("DELETE FROM namespaces WHERE id = ?1", [id.as_bytes()])
        })
        .await?;
        self.forget_of(id);
        self.closed.set(id, None);
        self.drop_maintenance(id);
        Ok(())
    }
}
