//! Rows of databases over time: due dates, deletion, the end.

use rusqlite::{OptionalExtension as _, params};
use tidelog_wal::{DatabaseId, NamespaceId, Timestamp};

use super::databases::{COLUMNS, DatabaseRow, not_found, row};
use super::{System, id16, micros, timestamp};
use crate::error::{Code, Error};
use crate::travel::archives::{held, refuse_held};

/// A database that something is due for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DueRow {
    pub(crate) id: DatabaseId,
    pub(crate) due: Timestamp,
    /// Its window, if it has one of its own.
    pub(crate) retention_micros: Option<u64>,
}

/// Tables whose rows go with their database.
const OF_A_DATABASE: [&str; 8] = [
    "archives",
    "archive_schedules",
    "verifications",
    "verification_schedules",
    "restores",
    "rolled_back_keys",
    "insights",
    "slow_queries",
];

impl System {
    /// The live database of this name, or the one that was deleted last.
    pub(crate) async fn database_or_deleted(
        &self,
        namespace: NamespaceId,
        name: &str,
    ) -> Result<DatabaseRow, Error> {
        let wanted = name.to_owned();
        let found = self
            .read(move |c| {
                let select = format!(
                    "SELECT {COLUMNS} FROM databases WHERE namespace = ?1 AND name = ?2 \
                     ORDER BY deleted IS NOT NULL, deleted DESC LIMIT 1"
                );
                let key = params![namespace.as_bytes(), wanted];
                c.query_row(&select, key, row).optional()
            })
            .await?;
        match found {
            Some(found) => Ok(found),
            None if self.was_purged(namespace, name).await? => Err(purged(name)),
            None => Err(not_found(name)),
        }
    }

    /// Whether a database of this name was purged.
    pub(crate) async fn was_purged(
        &self,
        namespace: NamespaceId,
        name: &str,
    ) -> Result<bool, Error> {
        let wanted = name.to_owned();
        self.read(move |c| {
            c.query_row(
                "SELECT EXISTS(SELECT 1 FROM purged WHERE namespace = ?1 AND name = ?2)",
                params![namespace.as_bytes(), wanted],
                |row| row.get(0),
            )
        })
        .await
    }

    /// A page of all databases by id, deleted ones among them.
    pub(crate) async fn databases_after(
        &self,
        after: Option<DatabaseId>,
        limit: usize,
    ) -> Result<Vec<DatabaseRow>, Error> {
        let after = after.map(|id| id.as_bytes().to_vec()).unwrap_or_default();
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.read(move |c| {
            let mut select = c.prepare(&format!(
                "SELECT {COLUMNS} FROM databases WHERE id > ?1 ORDER BY id LIMIT ?2"
            ))?;
            select.query_map(params![after, limit], row)?.collect()
        })
        .await
    }

    /// Every database that something is due for.
    pub(crate) async fn databases_due(&self) -> Result<Vec<DueRow>, Error> {
        self.read(|c| {
            let mut select =
                c.prepare("SELECT id, due, retention FROM databases WHERE due IS NOT NULL")?;
            let rows = select.query_map([], |row| {
                Ok(DueRow {
                    id: DatabaseId::from_bytes(id16(&row.get::<_, Vec<u8>>(0)?)?),
                    due: timestamp(row.get(1)?),
                    retention_micros: row
                        .get::<_, Option<i64>>(2)?
                        .and_then(|n| u64::try_from(n).ok()),
                })
            })?;
            rows.collect()
        })
        .await
    }

    /// Notes when databases are due.
    pub(crate) async fn databases_set_due(
        &self,
        due: Vec<(DatabaseId, Option<Timestamp>)>,
    ) -> Result<(), Error> {
        if due.is_empty() {
            return Ok(());
        }
        self.write(move |c| {
            let mut update = c.prepare("UPDATE databases SET due = ?2 WHERE id = ?1")?;
            for (id, at) in &due {
                update.execute(params![id.as_bytes(), at.map(micros)])?;
            }
            Ok(())
        })
        .await
    }

    /// Says that a database is being purged: from now on it is deleted and cannot be brought back. Refused while
    /// archives of it are held at `trusted`: the same transaction looks, so that no hold comes in between.
    pub(crate) async fn database_purging(
        &self,
        found: &DatabaseRow,
        trusted: Timestamp,
    ) -> Result<(), Error> {
        let (id, now) = (found.id, self.core.parts.clock.wall());
        let (begun, term) = (found.purging, self.core.term().get());
        let refused = self
            .write(move |c| {
                let held = if begun { Vec::new() } else { held(c, id, trusted)? };
                let working = "SELECT coalesce(operation, id) FROM archives \
                               WHERE database = ?1 AND state = 'creating' AND term = ?2 LIMIT 1";
                let working: Option<String> = c
                    .query_row(working, params![id.as_bytes(), term], |row| row.get(0))
                    .optional()?;
                if held.is_empty() && working.is_none() {
                    c.execute(
                        "UPDATE databases SET deleted = coalesce(deleted, ?2), purging = ?2, due = ?2 \
                         WHERE id = ?1",
                        params![id.as_bytes(), micros(now)],
                    )?;
                }
                Ok((held, working))
            })
            .await?;
        refuse_held(refused.0)?;
        refuse_working(refused.1)?;
        self.databases.forget(found.namespace, &found.name);
        Ok(())
    }

    /// Takes [`Self::database_purging`] back: the row is as it was found.
    pub(crate) async fn database_not_purging(&self, found: &DatabaseRow) -> Result<(), Error> {
        let (id, deleted) = (found.id, found.deleted_at.map(micros));
        self.write(move |c| {
            c.execute(
                "UPDATE databases SET deleted = ?2, purging = NULL WHERE id = ?1",
                params![id.as_bytes(), deleted],
            )
        })
        .await
        .map(drop)
    }

    /// Forgets a database that is gone; its name is remembered as purged.
    pub(crate) async fn database_purged(&self, gone: &DatabaseRow) -> Result<(), Error> {
        let row = gone.clone();
        let now = self.core.parts.clock.wall();
        self.write(move |c| {
            c.execute("DELETE FROM databases WHERE id = ?1", [row.id.as_bytes()])?;
            // Nothing that tells of what was in it stays: what is shown of it was its own.
            for table in OF_A_DATABASE {
                let delete = format!("DELETE FROM {table} WHERE database = ?1");
                c.execute(&delete, [row.id.as_bytes()])?;
            }
            c.execute(
                "INSERT OR IGNORE INTO purged(id, namespace, name, purged) VALUES(?1, ?2, ?3, ?4)",
                params![
                    row.id.as_bytes(),
                    row.namespace.as_bytes(),
                    row.name,
                    micros(now)
                ],
            )
        })
        .await?;
        self.databases.forget(gone.namespace, &gone.name);
        Ok(())
    }
}

/// Refused while `operation` makes an archive of the database.
fn refuse_working(operation: Option<String>) -> Result<(), Error> {
    let Some(operation) = operation else {
        return Ok(());
    };
    let what = format!(
        "operation {operation} makes an archive of this database; wait for it or cancel it"
    );
    Err(Error::new(Code::OperationInProgress, what).with("operation", operation))
}

/// A database that is gone for good.
pub(crate) fn purged(name: &str) -> Error {
    let what = format!("database {name:?} was purged: nothing of it is left");
    Error::new(Code::DatabasePurged, what)
}
