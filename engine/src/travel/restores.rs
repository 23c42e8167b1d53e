//! Restore records: who put which database back, from where to where, and what an undo goes back to.
//!
//! A record is stored before anything changes, so that a lost answer never loses the undo. It also keeps the
//! Idempotency-Keys whose effects the restore took back: a late retry with one of them is told so.

use rusqlite::{OptionalExtension as _, Row, params};
use tidelog_archive::plan::Same;
use tidelog_wal::{DatabaseId, NamespaceId, Position, Timestamp};

use crate::database::idempotency::KEEP_MICROS;
use crate::error::{Code, Error};
use crate::rules::rule;
use crate::system::{Noted, Page, PageOf, System, id16, micros, timestamp};

/// Restores of one database that a plan looks at.
const SAME_MAX: i64 = 1000;

/// How a restore ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is at work.
    Running,
    /// The database was put back.
    Succeeded,
    /// Nothing was changed.
    Failed,
}

impl Outcome {
    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
        }
    }

    fn parse(name: &str) -> Option<Self> {
        [Self::Running, Self::Succeeded, Self::Failed]
            .into_iter()
            .find(|outcome| outcome.as_str() == name)
    }
}

/// A restore in place.
#[derive(Debug, Clone, PartialEq)]
pub struct RestoreRecord {
    /// Its id: later ones are greater.
    pub id: String,
    /// Whose database.
    pub namespace: NamespaceId,
    /// Which database.
    pub database: DatabaseId,
    /// The operation that did it.
    pub operation: String,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// Id of the token it was asked for with.
    pub token: Option<String>,
    /// Why, in the caller's words.
    pub reason: Option<String>,
    /// The restore that this one takes back.
    pub undo_of: Option<String>,
    /// The state that was restored.
    pub target: Position,
    /// The state before: what an undo goes back to.
    pub previous: Position,
    /// The commit that is the restore.
    pub bookmark: Option<Position>,
    /// How it ended.
    pub outcome: Outcome,
    /// The archive it was read from, if it was.
    pub archive: Option<String>,
    /// The pinned snapshot of the state before.
    pub preserved_as: Option<String>,
    /// Pages it changed.
    pub pages_changed: Option<u64>,
    /// How long it took, in microseconds.
    pub duration_micros: Option<u64>,
    /// Why it failed.
    pub error: Option<String>,
}

const COLUMNS: &str = "id, namespace, database, operation, created, ended, token, reason, undo_of, \
                       target, previous, bookmark, outcome, preserved_as, pages_changed, duration_us, error, \
                       archive";

fn record(row: &Row<'_>) -> rusqlite::Result<RestoreRecord> {
    let bad = || rusqlite::Error::InvalidQuery;
    let position = |text: String| text.parse::<Position>().map_err(|_| bad());
    let unsigned = |n: Option<i64>| n.and_then(|n| u64::try_from(n).ok());
    Ok(RestoreRecord {
        id: row.get(0)?,
        namespace: NamespaceId::from_bytes(id16(&row.get::<_, Vec<u8>>(1)?)?),
        database: DatabaseId::from_bytes(id16(&row.get::<_, Vec<u8>>(2)?)?),
        operation: row.get(3)?,
        created_at: timestamp(row.get(4)?),
        ended_at: row.get::<_, Option<i64>>(5)?.map(timestamp),
        token: row.get(6)?,
        reason: row.get(7)?,
        undo_of: row.get(8)?,
        target: position(row.get(9)?)?,
        previous: position(row.get(10)?)?,
        bookmark: row
            .get::<_, Option<String>>(11)?
            .map(position)
            .transpose()?,
        outcome: Outcome::parse(&row.get::<_, String>(12)?).ok_or_else(bad)?,
        preserved_as: row.get(13)?,
        pages_changed: unsigned(row.get(14)?),
        duration_micros: unsigned(row.get(15)?),
        error: row.get(16)?,
        archive: row.get(17)?,
    })
}

/// A key whose effect a restore took back, and until when it is remembered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RolledBackKey {
    pub(crate) key: String,
    pub(crate) until: Timestamp,
}

impl RolledBackKey {
    /// Keys of a restore that ended at `ended`, each remembered as long as its answer would have been kept.
    pub(crate) fn all(keys: Vec<String>, ended: Timestamp) -> Vec<Self> {
        let until = Timestamp::from_micros(ended.micros().saturating_add(KEEP_MICROS));
        let keys = keys.into_iter();
        keys.map(|key| Self { key, until }).collect()
    }
}

impl System {
    /// Notes a restore, or how it stands now.
    pub(super) async fn restore_put(
        &self,
        noted: &RestoreRecord,
        rolled_back: Vec<RolledBackKey>,
    ) -> Result<(), Error> {
        self.restore_note(noted, rolled_back).await?.stored().await
    }

    /// Forgets a restore that changed nothing and ended before it could; what follows is stored behind it.
    pub(super) async fn restore_forget(&self, id: &str) -> Result<Noted, Error> {
        let id = id.to_owned();
        let forgotten = self.commit(move |c| c.execute("DELETE FROM restores WHERE id = ?1", [id]));
        Ok(forgotten.await?.1)
    }

    /// Notes a restore, or how it stands now, and leaves it to the caller to wait until it is stored.
    pub(super) async fn restore_note(
        &self,
        noted: &RestoreRecord,
        rolled_back: Vec<RolledBackKey>,
    ) -> Result<Noted, Error> {
        let row = noted.clone();
        let signed = |n: Option<u64>| n.and_then(|n| i64::try_from(n).ok());
        let noted = self.commit(move |c| {
            c.execute(
                &format!(
                    "INSERT OR REPLACE INTO restores({COLUMNS}) VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, \
                     ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18)"
                ),
                params![
                    row.id,
                    row.namespace.as_bytes(),
                    row.database.as_bytes(),
                    row.operation,
                    micros(row.created_at),
                    row.ended_at.map(micros),
                    row.token,
                    row.reason,
                    row.undo_of,
                    row.target.to_string(),
                    row.previous.to_string(),
                    row.bookmark.map(|at| at.to_string()),
                    row.outcome.as_str(),
                    row.preserved_as,
                    signed(row.pages_changed),
                    signed(row.duration_micros),
                    row.error,
                    row.archive,
                ],
            )?;
            c.execute(
                "DELETE FROM rolled_back_keys WHERE until < ?1",
                [micros(row.created_at)],
            )?;
            let mut insert = c.prepare("INSERT OR REPLACE INTO rolled_back_keys VALUES(?1, ?2, ?3, ?4)")?;
            for key in rolled_back {
                insert.execute(params![row.database.as_bytes(), key.key, row.id, micros(key.until)])?;
            }
            Ok(())
        });
        Ok(noted.await?.1)
    }

    /// One restore of a database.
    pub(super) async fn restore(
        &self,
        database: DatabaseId,
        id: &str,
    ) -> Result<RestoreRecord, Error> {
        let wanted = id.to_owned();
        let found = self
            .read(move |c| {
                c.query_row(
                    &format!("SELECT {COLUMNS} FROM restores WHERE database = ?1 AND id = ?2"),
                    params![database.as_bytes(), wanted],
                    record,
                )
                .optional()
            })
            .await?;
        found.ok_or_else(|| {
            let what = format!("this database has no restore {id:?}");
            Error::new(Code::RestoreNotFound, what)
        })
    }

    /// The restores of a database, newest first.
    pub(super) async fn restore_list(
        &self,
        database: DatabaseId,
        page: Page,
    ) -> Result<PageOf<RestoreRecord>, Error> {
        let limit = page.limit();
        // Greater than every id, which begin with "rs_".
        let before = page.cursor.unwrap_or_else(|| "rs_~".to_owned());
        let select = format!(
            "SELECT {COLUMNS} FROM restores WHERE database = ?1 AND id < ?2 ORDER BY id DESC LIMIT ?3"
        );
        let given = vec![database.as_bytes().to_vec().into(), before.into()];
        self.page(select, given, limit, record, |restore| restore.id.clone())
            .await
    }

    /// What the newest restores of a database went back to, and what they made of it: states that are the same.
    pub(super) async fn restored_states(&self, database: DatabaseId) -> Result<Vec<Same>, Error> {
        let old = if rule!("rewind.true_records") {
            "target"
        } else {
            "previous"
        };
        self.read(move |c| {
            let mut select = c.prepare(&format!(
                "SELECT {old}, bookmark FROM restores WHERE database = ?1 AND outcome = 'succeeded' \
                 AND bookmark IS NOT NULL AND bookmark <> target ORDER BY id DESC LIMIT ?2",
            ))?;
            let bad = || rusqlite::Error::InvalidQuery;
            let position = |text: String| text.parse::<Position>().map_err(|_| bad());
            select
                .query_map(params![database.as_bytes(), SAME_MAX], |row| {
                    Ok(Same {
                        old: position(row.get(0)?)?,
                        new: position(row.get(1)?)?,
                    })
                })?
                .collect()
        })
        .await
    }

    /// When the restores of a database since `since` were asked for, oldest first.
    pub(super) async fn restores_since(
        &self,
        database: DatabaseId,
        since: Timestamp,
    ) -> Result<Vec<Timestamp>, Error> {
        self.read(move |c| {
            let mut select = c.prepare(
                "SELECT created FROM restores WHERE database = ?1 AND created >= ?2 ORDER BY created",
            )?;
            select
                .query_map(params![database.as_bytes(), micros(since)], |row| {
                    row.get(0).map(timestamp)
                })?
                .collect()
        })
        .await
    }

    /// Every key whose effect was taken back and that is still remembered.
    pub(crate) async fn rolled_back_keys(&self) -> Result<Vec<(DatabaseId, String)>, Error> {
        self.read(|c| {
            let mut select = c.prepare("SELECT database, key FROM rolled_back_keys")?;
            select
                .query_map([], |row| {
                    let id = id16(&row.get::<_, Vec<u8>>(0)?)?;
                    Ok((DatabaseId::from_bytes(id), row.get(1)?))
                })?
                .collect()
        })
        .await
    }
}
