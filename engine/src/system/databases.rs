//! Rows of namespaces and databases.

use std::collections::HashMap;
use std::str::FromStr as _;
use std::sync::{Mutex, PoisonError};

use rusqlite::{Connection, OptionalExtension as _, Row, params};
use tidelog_wal::{DatabaseId, NamespaceId, PageSize, Position, Timestamp};

use super::names::check_name;
use super::requests::Record;
use super::token_rows;
use super::tokens::{NewToken, TokenInfo, hash};
use super::{Page, PageOf, System, id16, is_unique_violation, micros, timestamp};
use crate::error::{Code, Error};
use crate::settings::Durability;

/// How long a deleted database can be brought back.
pub const UNDELETE_MICROS: u64 = 7 * 24 * 3600 * 1_000_000;

/// A tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace {
    /// Its id.
    pub id: NamespaceId,
    /// Its name.
    pub name: String,
    /// When it was made.
    pub created_at: Timestamp,
}

/// A database as the system database knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a column of its own")]
pub struct DatabaseRow {
    /// Its id.
    pub id: DatabaseId,
    /// Its tenant.
    pub namespace: NamespaceId,
    /// Its name.
    pub name: String,
    /// Its page size in bytes.
    pub page_size: u32,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was deleted, if it is hidden.
    pub deleted_at: Option<Timestamp>,
    /// Durability of writes that do not ask for one.
    pub durability: Option<Durability>,
    /// Reads are refused.
    pub block_reads: bool,
    /// Writes are refused.
    pub block_writes: bool,
    /// Deletion is refused.
    pub delete_protection: bool,
    /// The most bytes it may have.
    pub size_limit: Option<u64>,
    /// The most bytes its history may take in the store.
    pub history_limit: Option<u64>,
    /// Foreign keys are enforced.
    pub foreign_keys: bool,
    /// Where it begins in another's history.
    pub parent: Option<ParentRow>,
    /// The name it has as a branch.
    pub branch: Option<String>,
    /// The database it is a branch of.
    pub branch_of: Option<DatabaseId>,
    /// When it is deleted by itself.
    pub expires_at: Option<Timestamp>,
    /// How long every commit is kept, if it is not the default.
    pub retention_micros: Option<u64>,
    /// It is being destroyed for good.
    pub purging: bool,
}

impl DatabaseRow {
    /// The row of a database with settings that nobody has changed.
    pub(crate) fn plain(
        (namespace, id): (NamespaceId, DatabaseId),
        name: String,
        page_size: PageSize,
        created_at: Timestamp,
    ) -> Self {
        Self {
            id,
            namespace,
            name,
            page_size: page_size.get(),
            created_at,
            deleted_at: None,
            durability: None,
            block_reads: false,
            block_writes: false,
            delete_protection: false,
            size_limit: None,
            history_limit: None,
            foreign_keys: true,
            parent: None,
            branch: None,
            branch_of: None,
            expires_at: None,
            retention_micros: None,
            purging: false,
        }
    }
}

/// Where a fork begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParentRow {
    /// The database that was forked.
    pub database: DatabaseId,
    /// Its state.
    pub at: Position,
}

/// Changes to a database's settings; `None` leaves a setting as it is.
#[derive(Debug, Clone, Default)]
pub struct DatabasePatch {
    /// Durability; `Some(None)` goes back to the server's.
    pub durability: Option<Option<Durability>>,
    /// Refuse reads.
    pub block_reads: Option<bool>,
    /// Refuse writes.
    pub block_writes: Option<bool>,
    /// Refuse deletion.
    pub delete_protection: Option<bool>,
    /// The most bytes it may have; `Some(None)` lifts it.
    pub size_limit: Option<Option<u64>>,
    /// The most bytes its history may take in the store; `Some(None)` lifts it.
    pub history_limit: Option<Option<u64>>,
    /// Enforce foreign keys.
    pub foreign_keys: Option<bool>,
    /// How long every commit is kept.
    pub retention_micros: Option<u64>,
}

/// Databases by tenant and name, once read.
#[derive(Debug, Default)]
pub(crate) struct Cache {
    by_name: Mutex<HashMap<(NamespaceId, String), DatabaseRow>>,
}

/// Databases kept in memory.
const CACHED_MAX: usize = 100_000;

impl Cache {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<(NamespaceId, String), DatabaseRow>> {
        self.by_name.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, row: &DatabaseRow) {
        let mut rows = self.lock();
        if rows.len() >= CACHED_MAX {
            rows.clear();
        }
        rows.insert((row.namespace, row.name.clone()), row.clone());
    }

    pub(super) fn forget(&self, namespace: NamespaceId, name: &str) {
        self.lock().remove(&(namespace, name.to_owned()));
    }

    pub(super) fn forget_all_of(&self, namespace: NamespaceId) {
        self.lock().retain(|(of, _), _| *of != namespace);
    }
}

pub(super) const COLUMNS: &str = "id, namespace, name, page_size, created, deleted, durability, \
                       block_reads, block_writes, delete_protection, size_limit, parent, parent_at, \
                       branch, expires, retention, purging, branch_of, history_limit, foreign_keys";

pub(super) fn row(row: &Row<'_>) -> rusqlite::Result<DatabaseRow> {
    let durability: Option<String> = row.get(6)?;
    Ok(DatabaseRow {
        id: DatabaseId::from_bytes(id16(&row.get::<_, Vec<u8>>(0)?)?),
        namespace: NamespaceId::from_bytes(id16(&row.get::<_, Vec<u8>>(1)?)?),
        name: row.get(2)?,
        page_size: row.get(3)?,
        created_at: timestamp(row.get(4)?),
        deleted_at: row.get::<_, Option<i64>>(5)?.map(timestamp),
        durability: durability.and_then(|text| Durability::from_str(&text).ok()),
        block_reads: row.get(7)?,
        block_writes: row.get(8)?,
        delete_protection: row.get(9)?,
        size_limit: row
            .get::<_, Option<i64>>(10)?
            .and_then(|n| u64::try_from(n).ok()),
        parent: parent(row)?,
        branch: row.get(13)?,
        expires_at: row.get::<_, Option<i64>>(14)?.map(timestamp),
        retention_micros: row
            .get::<_, Option<i64>>(15)?
            .and_then(|n| u64::try_from(n).ok()),
        purging: row.get::<_, Option<i64>>(16)?.is_some(),
        branch_of: row
            .get::<_, Option<Vec<u8>>>(17)?
            .map(|id| id16(&id).map(DatabaseId::from_bytes))
            .transpose()?,
        history_limit: row
            .get::<_, Option<i64>>(18)?
            .and_then(|n| u64::try_from(n).ok()),
        foreign_keys: row.get(19)?,
    })
}

fn parent(row: &Row<'_>) -> rusqlite::Result<Option<ParentRow>> {
    let (id, at): (Option<Vec<u8>>, Option<String>) = (row.get(11)?, row.get(12)?);
    let (Some(id), Some(at)) = (id, at) else {
        return Ok(None);
    };
    let at = at.parse().map_err(|_| rusqlite::Error::InvalidQuery)?;
    let database = DatabaseId::from_bytes(id16(&id)?);
    Ok(Some(ParentRow { database, at }))
}

pub(super) fn not_found(name: &str) -> Error {
    Error::new(
        Code::DatabaseNotFound,
        format!("there is no database {name:?} in this namespace"),
    )
}

impl System {
    /// Makes a namespace.
    pub(crate) async fn namespace_create(&self, name: &str) -> Result<Namespace, Error> {
        let made = self.namespace_draw(name)?;
        let row = made.clone();
        self.write(move |c| namespace_insert(c, &row))
            .await
            .map_err(|error| taken("namespace", name, error))?;
        Ok(made)
    }

    fn namespace_draw(&self, name: &str) -> Result<Namespace, Error> {
        check_name("namespace", name)?;
        let parts = &self.core.parts;
        Ok(Namespace {
            id: NamespaceId::from_bytes(parts.entropy.bytes16()),
            name: name.to_owned(),
            created_at: parts.clock.wall(),
        })
    }

    /// Makes a namespace with its first owner token, whose secret nothing keeps. `record` is the answer to
    /// repeat.
    pub(crate) async fn namespace_create_owned(
        &self,
        name: &str,
        record: impl FnOnce(&Namespace, &TokenInfo) -> Option<Record>,
    ) -> Result<(Namespace, TokenInfo, String), Error> {
        let made = self.namespace_draw(name)?;
        let parts = &self.core.parts;
        let token = NewToken::owner(Some(made.id));
        let (token, secret) = token.draw(parts.entropy.as_ref(), made.created_at);
        let record = record(&made, &token);
        let (row, owner, hash) = (made.clone(), token.clone(), hash(&secret));
        self.write_recorded(record, move |c| {
            namespace_insert(c, &row)?;
            token_rows::insert(c, &owner, hash)
        })
        .await
        .map_err(|error| taken("namespace", name, error))?;
        Ok((made, token, secret))
    }

    /// The namespace of this name.
    pub(crate) async fn namespace_by_name(&self, name: &str) -> Result<Namespace, Error> {
        let wanted = name.to_owned();
        let found = self
            .read(move |c| {
                c.query_row(
                    "SELECT id, name, created FROM namespaces WHERE name = ?1",
                    [wanted],
                    namespace_row,
                )
                .optional()
            })
            .await?;
        found.ok_or_else(|| {
            Error::new(
                Code::NamespaceNotFound,
                format!("there is no namespace {name:?}"),
            )
        })
    }

    /// The namespace of this id.
    pub(crate) async fn namespace_by_id(&self, id: NamespaceId) -> Result<Namespace, Error> {
        let found = self
            .read(move |c| {
                c.query_row(
                    "SELECT id, name, created FROM namespaces WHERE id = ?1",
                    [id.as_bytes()],
                    namespace_row,
                )
                .optional()
            })
            .await?;
        found.ok_or_else(|| {
            Error::new(
                Code::NamespaceNotFound,
                format!("there is no namespace with id {id}"),
            )
        })
    }

    /// All namespaces, by name.
    pub(crate) async fn namespaces(&self) -> Result<Vec<Namespace>, Error> {
        self.read(|c| {
            let mut select = c.prepare("SELECT id, name, created FROM namespaces ORDER BY name")?;
            select.query_map([], namespace_row)?.collect()
        })
        .await
    }

    /// Adds the row of a database whose history exists.
    pub(crate) async fn database_add(
        &self,
        made: &DatabaseRow,
        record: Option<Record>,
    ) -> Result<(), Error> {
        self.database_insert(made, None, record).await
    }

    /// The same in the place of `old`, which is hidden by the same commit.
    pub(crate) async fn database_add_instead(
        &self,
        made: &DatabaseRow,
        old: DatabaseId,
    ) -> Result<(), Error> {
        let now = self.core.parts.clock.wall();
        self.database_insert(made, Some((old, now)), None).await
    }

    async fn database_insert(
        &self,
        made: &DatabaseRow,
        replaced: Option<(DatabaseId, Timestamp)>,
        record: Option<Record>,
    ) -> Result<(), Error> {
        let row = made.clone();
        let added = self.write_recorded(record, move |c| {
            if let Some((old, now)) = replaced {
                hide(c, old, now)?;
            }
            // Nothing begins in a namespace that is deleted: it would be left behind.
            let rows = c.execute(
                "INSERT INTO databases(id, namespace, name, page_size, created, parent, parent_at, \
                 branch, expires, due, branch_of, foreign_keys) \
                 SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?9, ?10, ?11 \
                 WHERE NOT EXISTS(SELECT 1 FROM namespaces WHERE id = ?2 AND deleted IS NOT NULL)",
                params![
                    row.id.as_bytes(),
                    row.namespace.as_bytes(),
                    row.name,
                    row.page_size,
                    micros(row.created_at),
                    row.parent.map(|parent| parent.database.as_bytes().to_vec()),
                    row.parent.map(|parent| parent.at.to_string()),
                    row.branch,
                    row.expires_at.map(micros),
                    row.branch_of.map(|id| id.as_bytes().to_vec()),
                    row.foreign_keys,
                ],
            )?;
            some_row(rows)
        });
        if let Err(error) = added.await {
            // The commit may stand.
            self.databases.forget(made.namespace, &made.name);
            self.refuse_ended(made.namespace)?;
            return Err(taken("database", &made.name, error));
        }
        self.databases.put(made);
        Ok(())
    }

    /// Adds the row of a database whose history exists and whose name was taken meanwhile, as deleted.
    pub(crate) async fn database_add_hidden(&self, made: &DatabaseRow) -> Result<(), Error> {
        let row = made.clone();
        self.write(move |c| {
            c.execute(
                "INSERT INTO databases(id, namespace, name, page_size, created, deleted) \
                 VALUES(?1, ?2, ?3, ?4, ?5, ?5)",
                params![
                    row.id.as_bytes(),
                    row.namespace.as_bytes(),
                    row.name,
                    row.page_size,
                    micros(row.created_at)
                ],
            )
        })
        .await
        .map(|_| ())
    }

    /// Whether a database has a row, live or deleted.
    pub(crate) async fn database_exists(&self, id: DatabaseId) -> Result<bool, Error> {
        self.read(move |c| {
            c.query_row(
                "SELECT EXISTS(SELECT 1 FROM databases WHERE id = ?1)",
                [id.as_bytes()],
                |row| row.get(0),
            )
        })
        .await
    }

    /// The live database of this name.
    pub(crate) async fn database(
        &self,
        namespace: NamespaceId,
        name: &str,
    ) -> Result<DatabaseRow, Error> {
        if let Some(row) = self.databases.lock().get(&(namespace, name.to_owned())) {
            return Ok(row.clone());
        }
        let wanted = name.to_owned();
        let found = self
            .read(move |c| {
                c.query_row(
                    &format!(
                        "SELECT {COLUMNS} FROM databases \
                         WHERE namespace = ?1 AND name = ?2 AND deleted IS NULL"
                    ),
                    params![namespace.as_bytes(), wanted],
                    row,
                )
                .optional()
            })
            .await?
            .ok_or_else(|| not_found(name))?;
        self.databases.put(&found);
        Ok(found)
    }

    /// The database of this id, deleted or not.
    pub(crate) async fn database_by_id(
        &self,
        id: DatabaseId,
    ) -> Result<Option<DatabaseRow>, Error> {
        self.read(move |c| {
            let sql = format!("SELECT {COLUMNS} FROM databases WHERE id = ?1");
            c.query_row(&sql, [id.as_bytes()], row).optional()
        })
        .await
    }

    /// The live databases that begin in the history of `parent`, by name.
    pub(crate) async fn databases_forked(
        &self,
        parent: DatabaseId,
    ) -> Result<Vec<DatabaseRow>, Error> {
        self.read(move |c| {
            let mut select = c.prepare(&format!(
                "SELECT {COLUMNS} FROM databases WHERE parent = ?1 AND deleted IS NULL ORDER BY name"
            ))?;
            select.query_map([parent.as_bytes()], row)?.collect()
        })
        .await
    }

    /// The live branches of a database, by name; of a branch name, that one.
    pub(crate) async fn databases_branched(
        &self,
        of: DatabaseId,
        branch: Option<String>,
    ) -> Result<Vec<DatabaseRow>, Error> {
        self.read(move |c| {
            let mut select = c.prepare(&format!(
                "SELECT {COLUMNS} FROM databases WHERE branch_of = ?1 AND branch IS NOT NULL \
                 AND deleted IS NULL AND (?2 IS NULL OR branch = ?2) ORDER BY name"
            ))?;
            select
                .query_map(params![of.as_bytes(), branch], row)?
                .collect()
        })
        .await
    }

    /// Says that a database shares nothing with another any more. A branch stays one.
    pub(crate) async fn database_detached(&self, detached: &DatabaseRow) -> Result<(), Error> {
        let id = detached.id;
        self.write(move |c| {
            c.execute(
                "UPDATE databases SET parent = NULL, parent_at = NULL WHERE id = ?1",
                [id.as_bytes()],
            )
        })
        .await?;
        self.databases.forget(detached.namespace, &detached.name);
        Ok(())
    }

    /// The live databases of a namespace, by name.
    pub(crate) async fn database_list(
        &self,
        namespace: NamespaceId,
        page: Page,
    ) -> Result<PageOf<DatabaseRow>, Error> {
        let limit = page.limit();
        let after = page.cursor.unwrap_or_default();
        let select = format!(
            "SELECT {COLUMNS} FROM databases WHERE namespace = ?1 AND deleted IS NULL \
             AND name > ?2 ORDER BY name LIMIT ?3"
        );
        let given = vec![namespace.as_bytes().to_vec().into(), after.into()];
        self.page(select, given, limit, row, |row| row.name.clone())
            .await
    }

    /// Changes settings.
    pub(crate) async fn database_patch(
        &self,
        namespace: NamespaceId,
        name: &str,
        patch: DatabasePatch,
    ) -> Result<DatabaseRow, Error> {
        let mut changed = self.database(namespace, name).await?;
        changed.durability = patch.durability.unwrap_or(changed.durability);
        changed.block_reads = patch.block_reads.unwrap_or(changed.block_reads);
        changed.block_writes = patch.block_writes.unwrap_or(changed.block_writes);
        changed.delete_protection = patch.delete_protection.unwrap_or(changed.delete_protection);
        changed.size_limit = patch.size_limit.unwrap_or(changed.size_limit);
        changed.history_limit = patch.history_limit.unwrap_or(changed.history_limit);
        changed.foreign_keys = patch.foreign_keys.unwrap_or(changed.foreign_keys);
        changed.retention_micros = patch.retention_micros.or(changed.retention_micros);
        let row = changed.clone();
        self.write(move |c| {
            c.execute(
                "UPDATE databases SET durability = ?2, block_reads = ?3, block_writes = ?4, \
                 delete_protection = ?5, size_limit = ?6, retention = ?7, history_limit = ?8, \
                 foreign_keys = ?9 WHERE id = ?1",
                params![
                    row.id.as_bytes(),
                    row.durability.map(Durability::as_str),
                    row.block_reads,
                    row.block_writes,
                    row.delete_protection,
                    row.size_limit.and_then(|n| i64::try_from(n).ok()),
                    row.retention_micros.and_then(|n| i64::try_from(n).ok()),
                    row.history_limit.and_then(|n| i64::try_from(n).ok()),
                    row.foreign_keys,
                ],
            )
        })
        .await?;
        self.databases.put(&changed);
        Ok(changed)
    }

    /// Hides a database; it can be brought back for seven days.
    pub(crate) async fn database_delete(
        &self,
        namespace: NamespaceId,
        name: &str,
    ) -> Result<DatabaseRow, Error> {
        let found = self.database(namespace, name).await?;
        if found.delete_protection {
            let what = format!("database {name:?} is protected against deletion");
            return Err(Error::new(Code::DatabaseProtected, what));
        }
        let (id, now) = (found.id, self.core.parts.clock.wall());
        let hidden = self.write(move |c| hide(c, id, now)).await?;
        self.databases.forget(namespace, name);
        if hidden == 0 {
            return Err(not_found(name));
        }
        Ok(DatabaseRow {
            deleted_at: Some(now),
            ..found
        })
    }

    /// The database of this name that was deleted last, if it can still be brought back.
    pub(crate) async fn database_deleted(
        &self,
        namespace: NamespaceId,
        name: &str,
    ) -> Result<DatabaseRow, Error> {
        let now = self.core.parts.clock.wall();
        let oldest = micros(Timestamp::from_micros(
            now.micros().saturating_sub(UNDELETE_MICROS),
        ));
        let wanted = name.to_owned();
        let found = self
            .read(move |c| {
                c.query_row(
                    &format!(
                        "SELECT {COLUMNS} FROM databases WHERE namespace = ?1 AND name = ?2 \
                         AND deleted IS NOT NULL ORDER BY deleted DESC LIMIT 1"
                    ),
                    params![namespace.as_bytes(), wanted],
                    row,
                )
                .optional()
            })
            .await?;
        let Some(found) = found else {
            return Err(if self.was_purged(namespace, name).await? {
                super::lifecycle::purged(name)
            } else {
                not_found(name)
            });
        };
        // While its archives keep it, it can be brought back, and they can be reached.
        let late = found.deleted_at.is_none_or(|at| micros(at) < oldest);
        if found.purging || late && !self.has_archives(found.id).await? {
            let what =
                format!("database {name:?} was deleted for good, or more than seven days ago");
            return Err(Error::new(Code::DatabasePurged, what));
        }
        Ok(found)
    }

    /// Brings a deleted database back.
    pub(crate) async fn database_undelete(
        &self,
        found: DatabaseRow,
        record: Option<Record>,
    ) -> Result<DatabaseRow, Error> {
        let id = found.id;
        let changed = self
            .write_recorded(record, move |c| {
                // A namespace that is deleted brings its databases back itself.
                let rows = c.execute(
                    "UPDATE databases SET deleted = NULL, due = 0 \
                     WHERE id = ?1 AND purging IS NULL AND NOT EXISTS(SELECT 1 FROM namespaces \
                     WHERE id = databases.namespace AND deleted IS NOT NULL)",
                    [id.as_bytes()],
                )?;
                some_row(rows)
            })
            .await;
        if let Err(error) = changed {
            self.refuse_ended(found.namespace)?;
            return Err(if is_no_row(&error) {
                super::lifecycle::purged(&found.name)
            } else {
                taken("database", &found.name, error)
            });
        }
        Ok(DatabaseRow {
            deleted_at: None,
            ..found
        })
    }
}

/// Marks a database as deleted; answers how many rows that changed, none where it is.
fn hide(c: &Connection, id: DatabaseId, now: Timestamp) -> rusqlite::Result<usize> {
    let gone = Timestamp::from_micros(now.micros().saturating_add(UNDELETE_MICROS));
    c.execute(
        "UPDATE databases SET deleted = ?2, due = min(coalesce(due, ?3), ?3) \
         WHERE id = ?1 AND deleted IS NULL",
        params![id.as_bytes(), micros(now), micros(gone)],
    )
}

/// Ends a transaction that was to change a row and did not, so that no answer of it is kept.
fn some_row(rows: usize) -> rusqlite::Result<()> {
    if rows == 0 {
        return Err(rusqlite::Error::StatementChangedRows(0));
    }
    Ok(())
}

/// Whether [`some_row`] ended it.
fn is_no_row(error: &Error) -> bool {
    let source = std::error::Error::source(error);
    let source = source.and_then(|source| source.downcast_ref::<rusqlite::Error>());
    matches!(source, Some(rusqlite::Error::StatementChangedRows(0)))
}

fn namespace_insert(c: &Connection, row: &Namespace) -> rusqlite::Result<()> {
    c.execute(
        "INSERT INTO namespaces(id, name, created) VALUES(?1, ?2, ?3)",
        params![row.id.as_bytes(), row.name, micros(row.created_at)],
    )?;
    Ok(())
}

fn namespace_row(row: &Row<'_>) -> rusqlite::Result<Namespace> {
    Ok(Namespace {
        id: NamespaceId::from_bytes(id16(&row.get::<_, Vec<u8>>(0)?)?),
        name: row.get(1)?,
        created_at: timestamp(row.get(2)?),
    })
}

fn taken(what: &str, name: &str, error: Error) -> Error {
    if is_unique_violation(&error) {
        Error::new(
            Code::NameTaken,
            format!("there is a {what} {name:?} already"),
        )
    } else {
        error
    }
}
