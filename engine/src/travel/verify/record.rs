//! Rows of verifications and of their schedules.

use std::time::Duration;

use rusqlite::{OptionalExtension as _, Row, params};
use serde_json::Value as Json;
use tidelog_wal::{DatabaseId, NamespaceId, Timestamp};

use super::{Level, Outcome};
use crate::error::Error;
use crate::operations::KEPT_MICROS;
use crate::system::{Page, PageOf, System, id16, micros, timestamp};

/// A verification that has ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Verification {
    /// Its id: that of its operation.
    pub id: String,
    /// How much was to be looked at.
    pub level: Level,
    /// What came of it.
    pub outcome: Outcome,
    /// When it began.
    pub started_at: Timestamp,
    /// When it ended.
    pub ended_at: Timestamp,
    /// The state that was restored, or up to which history was read.
    pub bookmark: Option<String>,
    /// How long the restore took.
    pub restore_duration: Option<Duration>,
    /// Nobody asked for it: a schedule did.
    pub scheduled: bool,
    /// Exactly what was looked at.
    pub covers: Json,
    /// What is wrong, each with its key.
    pub findings: Json,
}

/// When a database is verified by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    /// Time from one to the next.
    pub every: Duration,
    /// How much is looked at.
    pub level: Level,
    /// Of every hundred objects, how many are read.
    pub sample_percent: u8,
    /// The next.
    pub due: Timestamp,
}

/// A database whose schedule is due.
#[derive(Debug, Clone)]
pub(super) struct Due {
    pub(super) database: DatabaseId,
    pub(super) namespace: NamespaceId,
    pub(super) name: Option<String>,
    pub(super) schedule: Schedule,
}

fn whole_micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

fn duration(micros: i64) -> Duration {
    Duration::from_micros(u64::try_from(micros).unwrap_or(0))
}

fn invalid() -> rusqlite::Error {
    rusqlite::Error::InvalidQuery
}

fn level(row: &Row<'_>) -> rusqlite::Result<Level> {
    Level::parse(&row.get::<_, String>("level")?).map_err(|_| invalid())
}

fn verification(row: &Row<'_>) -> rusqlite::Result<Verification> {
    let report: String = row.get("report")?;
    let mut report: Json = serde_json::from_str(&report).map_err(|_| invalid())?;
    let outcome: String = row.get("outcome")?;
    Ok(Verification {
        id: row.get("id")?,
        level: level(row)?,
        outcome: Outcome::parse(&outcome).ok_or_else(invalid)?,
        started_at: timestamp(row.get("started")?),
        ended_at: timestamp(row.get("ended")?),
        bookmark: row.get("bookmark")?,
        restore_duration: row.get::<_, Option<i64>>("restore_us")?.map(duration),
        scheduled: row.get("scheduled")?,
        covers: report["covers"].take(),
        findings: report["findings"].take(),
    })
}

fn schedule(row: &Row<'_>) -> rusqlite::Result<Schedule> {
    Ok(Schedule {
        every: duration(row.get("every")?),
        level: level(row)?,
        sample_percent: row.get("sample")?,
        due: timestamp(row.get("due")?),
    })
}

impl System {
    /// Notes a verification that has ended, and forgets those that are too old.
    pub(super) async fn verification_add(
        &self,
        namespace: NamespaceId,
        database: DatabaseId,
        ended: &Verification,
    ) -> Result<(), Error> {
        let row = ended.clone();
        let old = ended.ended_at.micros().saturating_sub(KEPT_MICROS);
        self.write(move |c| {
            c.execute(
                "DELETE FROM verifications WHERE ended < ?1",
                [micros(Timestamp::from_micros(old))],
            )?;
            let report = serde_json::json!({ "covers": row.covers, "findings": row.findings });
            c.execute(
                "INSERT OR REPLACE INTO verifications(id, namespace, database, level, outcome, started, \
                 ended, bookmark, restore_us, scheduled, report) \
                 VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
                params![
                    row.id,
                    namespace.as_bytes(),
                    database.as_bytes(),
                    row.level.as_str(),
                    row.outcome.as_str(),
                    micros(row.started_at),
                    micros(row.ended_at),
                    row.bookmark,
                    row.restore_duration.map(whole_micros),
                    row.scheduled,
                    report.to_string(),
                ],
            )
        })
        .await
        .map(|_| ())
    }

    /// The verifications of a database, newest first.
    pub(super) async fn verification_list(
        &self,
        database: DatabaseId,
        page: Page,
    ) -> Result<PageOf<Verification>, Error> {
        let limit = page.limit();
        // Greater than every id, which begin with "op_".
        let before = page.cursor.unwrap_or_else(|| "op_~".to_owned());
        let select = "SELECT * FROM verifications WHERE database = ?1 AND id < ?2 \
                      ORDER BY id DESC LIMIT ?3";
        let given = vec![database.as_bytes().to_vec().into(), before.into()];
        self.page(select.to_owned(), given, limit, verification, |item| {
            item.id.clone()
        })
        .await
    }

    /// The newest good verification of a database.
    pub(super) async fn verification_last_good(
        &self,
        database: DatabaseId,
    ) -> Result<Option<Verification>, Error> {
        self.read(move |c| {
            c.query_row(
                "SELECT * FROM verifications WHERE database = ?1 AND outcome = ?2 \
                 ORDER BY id DESC LIMIT 1",
                params![database.as_bytes(), Outcome::Verified.as_str()],
                verification,
            )
            .optional()
        })
        .await
    }

    /// The newest measured restore of a database.
    pub(super) async fn verification_restore_time(
        &self,
        database: DatabaseId,
    ) -> Result<Option<Duration>, Error> {
        self.read(move |c| {
            c.query_row(
                "SELECT restore_us FROM verifications WHERE database = ?1 \
                 AND restore_us IS NOT NULL ORDER BY id DESC LIMIT 1",
                [database.as_bytes()],
                |row| row.get(0).map(duration),
            )
            .optional()
        })
        .await
    }

    /// The newest good verification of any database, and the newest measured restore: when and how long.
    pub(super) async fn verification_newest(
        &self,
    ) -> Result<(Option<Timestamp>, Option<Duration>), Error> {
        self.read(|c| {
            let good: Option<i64> = c.query_row(
                "SELECT max(ended) FROM verifications WHERE outcome = ?1",
                [Outcome::Verified.as_str()],
                |row| row.get(0),
            )?;
            let took: Option<i64> = c
                .query_row(
                    "SELECT restore_us FROM verifications WHERE restore_us IS NOT NULL \
                     ORDER BY ended DESC LIMIT 1",
                    [],
                    |row| row.get(0),
                )
                .optional()?;
            Ok((good.map(timestamp), took.map(duration)))
        })
        .await
    }

    /// The schedule of a database.
    pub(super) async fn schedule(&self, database: DatabaseId) -> Result<Option<Schedule>, Error> {
        self.read(move |c| {
            c.query_row(
                "SELECT * FROM verification_schedules WHERE database = ?1",
                [database.as_bytes()],
                schedule,
            )
            .optional()
        })
        .await
    }

    /// Sets or removes the schedule of a database.
    pub(super) async fn schedule_set(
        &self,
        namespace: NamespaceId,
        database: DatabaseId,
        schedule: Option<&Schedule>,
    ) -> Result<(), Error> {
        let schedule = schedule.cloned();
        self.write(move |c| match schedule {
            None => c.execute(
                "DELETE FROM verification_schedules WHERE database = ?1",
                [database.as_bytes()],
            ),
            Some(schedule) => c.execute(
                "INSERT OR REPLACE INTO verification_schedules(database, namespace, every, level, \
                 sample, due) VALUES(?1, ?2, ?3, ?4, ?5, ?6)",
                params![
                    database.as_bytes(),
                    namespace.as_bytes(),
                    whole_micros(schedule.every),
                    schedule.level.as_str(),
                    schedule.sample_percent,
                    micros(schedule.due),
                ],
            ),
        })
        .await
        .map(|_| ())
    }

    /// The schedule that is due first, with the name of its database unless that was deleted.
    pub(super) async fn schedule_first(&self) -> Result<Option<Due>, Error> {
        self.read(|c| {
            c.query_row(
                "SELECT s.*, d.name FROM verification_schedules s \
                 LEFT JOIN databases d ON d.id = s.database AND d.deleted IS NULL \
                 ORDER BY s.due LIMIT 1",
                [],
                |row| {
                    Ok(Due {
                        database: DatabaseId::from_bytes(id16(
                            &row.get::<_, Vec<u8>>("database")?,
                        )?),
                        namespace: NamespaceId::from_bytes(id16(
                            &row.get::<_, Vec<u8>>("namespace")?,
                        )?),
                        name: row.get("name")?,
                        schedule: schedule(row)?,
                    })
                },
            )
            .optional()
        })
        .await
    }

    /// The live database whose last restore was proven longest ago, or never.
    pub(super) async fn least_drilled(&self) -> Result<Option<(NamespaceId, String)>, Error> {
        self.read(|c| {
            c.query_row(
                "SELECT d.namespace, d.name FROM databases d LEFT JOIN \
                 (SELECT database, max(ended) AS ended FROM verifications \
                  WHERE level IN ('restore', 'full') GROUP BY database) v ON v.database = d.id \
                 WHERE d.deleted IS NULL ORDER BY v.ended, d.id LIMIT 1",
                [],
                |row| {
                    let namespace = id16(&row.get::<_, Vec<u8>>(0)?)?;
                    Ok((NamespaceId::from_bytes(namespace), row.get(1)?))
                },
            )
            .optional()
        })
        .await
    }
}
