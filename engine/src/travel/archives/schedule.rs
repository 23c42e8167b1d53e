//! Archives that nobody asks for: the schedule of a database, and which of the archives it makes stay.
//!
//! The calendar of the node begins them. The next time is noted before an archive begins, so that one that kills the
//! process is not tried for ever. What stays is judged after an archive is complete and never before, so that a
//! schedule that fails takes nothing away; only archives of schedules are judged, and none that is held. The audit
//! log has a line for each that begins, fails or is deleted.

use std::time::Duration;

use rusqlite::{Connection, OptionalExtension as _, Row, params};
use serde_json::json;
use tidelog_wal::{DatabaseId, Timestamp};

use super::{Archive, Format, NewArchive, trusted};
use crate::boxed;
use crate::bucket::At;
use crate::engine::{Database, Engine};
use crate::error::{Code, Error};
use crate::operations::OperationState;
use crate::system::audit::{AuditLine, Severity};
use crate::system::databases::DatabaseRow;
use crate::system::{System, micros, timestamp};
use crate::travel::calendar::later;

/// The shortest time between two archives of one schedule: how exact the calendar is.
const EVERY_MIN: Duration = Duration::from_hours(1);
/// The longest.
const EVERY_MAX: Duration = Duration::from_hours(24 * 366);
/// The longest time that archives are kept by a rule.
const KEPT_MAX: Duration = Duration::from_hours(24 * 36_525);
/// Archives that are kept by number at most.
const NEWEST_MAX: u32 = 10_000;

/// Which archives of a schedule stay: those that any part of the rule keeps; all of them where it has no part.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Keep {
    /// As many of the newest.
    pub newest: Option<u32>,
    /// Those made within this time.
    pub within: Option<Duration>,
}

impl Keep {
    /// Whether the archive at `place`, counted from the newest, made at `made`, stays at `now`.
    fn keeps(&self, place: usize, made: Timestamp, now: Timestamp) -> bool {
        let newest = self
            .newest
            .map(|count| usize::try_from(count).is_ok_and(|count| place < count));
        let within = self.within.map(|span| now < after(made, span));
        match (newest, within) {
            (None, None) => true,
            (newest, within) => newest == Some(true) || within == Some(true),
        }
    }

    fn check(&self) -> Result<(), Error> {
        let count = self.newest.is_none_or(|n| (1..=NEWEST_MAX).contains(&n));
        let span = self
            .within
            .is_none_or(|span| span >= EVERY_MIN && span <= KEPT_MAX);
        if count && span {
            return Ok(());
        }
        let what = format!(
            "a schedule keeps 1 to {NEWEST_MAX} of its newest archives, or those of an hour to 36525 days"
        );
        Err(Error::new(Code::InvalidRequest, what))
    }
}

/// A schedule to be set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewArchiveSchedule {
    /// Time from one archive to the next.
    pub every: Duration,
    /// What to write.
    pub format: Format,
    /// Which stay.
    pub keep: Keep,
}

/// When archives of a database are made by themselves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArchiveSchedule {
    /// Time from one archive to the next.
    pub every: Duration,
    /// What is written.
    pub format: Format,
    /// Which stay.
    pub keep: Keep,
    /// The next.
    pub due: Timestamp,
    /// The newest that was tried.
    pub last: Option<ScheduledRun>,
}

/// An archive that a schedule asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScheduledRun {
    /// When it began.
    pub at: Timestamp,
    /// The operation that makes it, if it came to one.
    pub operation: Option<String>,
    /// The code of what refused it otherwise.
    pub error: Option<String>,
}

/// `span` after `at`.
fn after(at: Timestamp, span: Duration) -> Timestamp {
    later(at, u64::try_from(span.as_micros()).unwrap_or(u64::MAX))
}

fn whole_micros(span: Duration) -> i64 {
    i64::try_from(span.as_micros()).unwrap_or(i64::MAX)
}

fn span(micros: i64) -> Duration {
    Duration::from_micros(u64::try_from(micros).unwrap_or(0))
}

fn schedule(row: &Row<'_>) -> rusqlite::Result<ArchiveSchedule> {
    let invalid = |_| rusqlite::Error::InvalidQuery;
    let last = row.get::<_, Option<i64>>("begun")?.map(timestamp);
    let (operation, error) = (row.get("operation")?, row.get("failed")?);
    Ok(ArchiveSchedule {
        every: span(row.get("every")?),
        format: Format::parse(&row.get::<_, String>("format")?).map_err(invalid)?,
        keep: Keep {
            newest: row.get("keep_newest")?,
            within: row.get::<_, Option<i64>>("keep_for")?.map(span),
        },
        due: timestamp(row.get("due")?),
        last: last.map(|at| ScheduledRun {
            at,
            operation,
            error,
        }),
    })
}

/// Forgets the schedule of a database.
pub(crate) fn forget(c: &Connection, database: DatabaseId) -> rusqlite::Result<usize> {
    c.execute(
        "DELETE FROM archive_schedules WHERE database = ?1",
        [database.as_bytes()],
    )
}

impl System {
    async fn archive_schedule(&self, id: DatabaseId) -> Result<Option<ArchiveSchedule>, Error> {
        self.read(move |c| {
            c.query_row(
                "SELECT * FROM archive_schedules WHERE database = ?1",
                [id.as_bytes()],
                schedule,
            )
            .optional()
        })
        .await
    }

    async fn archive_schedule_set(
        &self,
        row: &DatabaseRow,
        set: &ArchiveSchedule,
    ) -> Result<(), Error> {
        let (id, namespace, set) = (row.id, row.namespace, set.clone());
        self.write(move |c| {
            c.execute(
                "INSERT INTO archive_schedules(database, namespace, every, format, keep_newest, \
                 keep_for, due) VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT(database) DO UPDATE \
                 SET every = ?3, format = ?4, keep_newest = ?5, keep_for = ?6, due = ?7",
                params![
                    id.as_bytes(),
                    namespace.as_bytes(),
                    whole_micros(set.every),
                    set.format.as_str(),
                    set.keep.newest,
                    set.keep.within.map(whole_micros),
                    micros(set.due),
                ],
            )
        })
        .await
        .map(drop)
    }

    async fn archive_schedule_due(&self, id: DatabaseId, due: Timestamp) -> Result<(), Error> {
        self.write(move |c| {
            c.execute(
                "UPDATE archive_schedules SET due = ?2 WHERE database = ?1",
                params![id.as_bytes(), micros(due)],
            )
        })
        .await
        .map(drop)
    }

    async fn archive_schedule_tried(&self, id: DatabaseId, run: ScheduledRun) -> Result<(), Error> {
        self.write(move |c| {
            c.execute(
                "UPDATE archive_schedules SET begun = ?2, operation = ?3, failed = ?4 \
                 WHERE database = ?1",
                params![id.as_bytes(), micros(run.at), run.operation, run.error],
            )
        })
        .await
        .map(drop)
    }
}

impl Database {
    /// When archives of the database are made by themselves.
    #[boxed]
    pub async fn archive_schedule(&self) -> Result<Option<ArchiveSchedule>, Error> {
        let system = &self.engine().inner.system;
        system.archive_schedule(self.row().id).await
    }

    /// Has archives made by themselves, or no longer; the first after `every`. What was made stays.
    #[boxed]
    pub async fn set_archive_schedule(
        &self,
        new: Option<NewArchiveSchedule>,
    ) -> Result<Option<ArchiveSchedule>, Error> {
        let (engine, row) = (self.engine(), self.row());
        let system = &engine.inner.system;
        let Some(new) = new else {
            let id = row.id;
            system.write(move |c| forget(c, id)).await?;
            return Ok(None);
        };
        new.keep.check()?;
        if new.every < EVERY_MIN || new.every > EVERY_MAX {
            let (min, max) = (EVERY_MIN.as_secs(), EVERY_MAX.as_secs());
            let what = format!("every is from {min} to {max} seconds");
            return Err(Error::new(Code::InvalidRequest, what));
        }
        let set = ArchiveSchedule {
            every: new.every,
            format: new.format,
            keep: new.keep,
            due: after(engine.now(), new.every),
            last: None,
        };
        system.archive_schedule_set(row, &set).await?;
        engine.due_not_later(row.id, set.due).await?;
        system.archive_schedule(row.id).await
    }
}

impl Engine {
    /// Begins the archive that is due of a database; when the next one is, if it has a schedule.
    pub(crate) async fn archive_by_schedule(
        &self,
        row: &DatabaseRow,
    ) -> Result<Option<Timestamp>, Error> {
        let system = &self.inner.system;
        let Some(schedule) = system.archive_schedule(row.id).await? else {
            return Ok(None);
        };
        let now = self.now();
        let next = after(now, schedule.every);
        if schedule.due > now && schedule.due <= next {
            return Ok(Some(schedule.due));
        }
        system.archive_schedule_due(row.id, next).await?;
        // Later than any that could have been noted: the clock ran ahead then, and nothing is due.
        if schedule.due <= now {
            self.begin_scheduled(row, &schedule, now).await?;
        }
        Ok(Some(next))
    }

    async fn begin_scheduled(
        &self,
        row: &DatabaseRow,
        schedule: &ArchiveSchedule,
        now: Timestamp,
    ) -> Result<(), Error> {
        let database = Database {
            engine: self.clone(),
            row: row.clone(),
        };
        let new = NewArchive::of(At::Latest, schedule.format);
        let begun = database.archive_begin(new, true).await;
        let run = ScheduledRun {
            at: now,
            operation: begun.as_ref().ok().map(|handle| handle.current().id),
            error: begun
                .as_ref()
                .err()
                .map(|error| error.code().as_str().to_owned()),
        };
        self.audit(line(row, "backup.archive", &run));
        self.inner
            .system
            .archive_schedule_tried(row.id, run.clone())
            .await?;
        match begun {
            Err(error) => {
                tracing::warn!(database = %row.id, %error, "an archive of a schedule was not begun");
            }
            Ok(mut handle) => {
                let (engine, mut stop) = (self.clone(), self.inner.stop_signal());
                tokio::spawn(async move {
                    let ended = tokio::select! {
                        ended = handle.ended() => ended,
                        _ = stop.wait_for(|stop| *stop) => return,
                    };
                    if ended.state == OperationState::Succeeded {
                        if let Err(error) = engine.let_go_of_old(&database).await {
                            tracing::warn!(database = %database.row().id, %error, "old archives stay until the next one");
                        }
                        return;
                    }
                    let failed = ended.error.map(|failure| failure.code);
                    let error = failed.or_else(|| Some(ended.state.as_str().to_owned()));
                    let run = ScheduledRun { error, ..run };
                    engine.audit(line(database.row(), "backup.archive", &run));
                });
            }
        }
        Ok(())
    }

    /// Deletes what the rule, as it is now, keeps no longer of the archives that the schedule made.
    async fn let_go_of_old(&self, database: &Database) -> Result<(), Error> {
        let (row, system) = (database.row(), &self.inner.system);
        let Some(ArchiveSchedule { keep, .. }) = system.archive_schedule(row.id).await? else {
            return Ok(());
        };
        let archives = system.archives_scheduled(row.id).await?;
        // A clock that runs ahead ends nothing (HAZARDS S39).
        let now = trusted(&self.inner.core, row.namespace, row.id).await?;
        let over = |(place, archive): &(usize, &Archive)| {
            !keep.keeps(*place, archive.created_at, now) && archive.held(now).is_none()
        };
        for (_, archive) in archives.iter().enumerate().filter(over) {
            let id = archive.id.to_string();
            let mut before = line(
                row,
                "backup.archive_delete",
                &ScheduledRun {
                    at: now,
                    operation: None,
                    error: None,
                },
            );
            before.severity = Severity::Critical;
            before.details["archive"] = json!(id);
            self.audit_now(before).await?;
            database.archive_delete(&id).await?;
        }
        Ok(())
    }
}

/// The audit line of something that a schedule does.
fn line(row: &DatabaseRow, event: &str, run: &ScheduledRun) -> AuditLine {
    AuditLine {
        namespace: Some(row.namespace),
        event: event.to_owned(),
        severity: match run.error {
            None => Severity::Info,
            Some(_) => Severity::Warning,
        },
        user: Some("schedule".to_owned()),
        action: "archive-schedule".to_owned(),
        resource: "database".to_owned(),
        resource_id: Some(row.name.clone()),
        details: json!({ "database": row.name, "operation": run.operation, "scheduled": true }),
        success: run.error.is_none(),
        error_code: run.error.clone(),
        ..AuditLine::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_keeps_what_any_part_of_it_keeps() {
        let hour = Duration::from_hours(1);
        let made = Timestamp::from_micros(1_000_000);
        let (young, old) = (after(made, hour / 2), after(made, hour * 2));
        let keep = |newest, within| Keep { newest, within };
        assert!(keep(None, None).keeps(1_000, made, old));
        assert!(keep(Some(2), None).keeps(1, made, old));
        assert!(!keep(Some(2), None).keeps(2, made, young));
        assert!(keep(None, Some(hour)).keeps(9, made, young));
        assert!(!keep(None, Some(hour)).keeps(0, made, old));
        assert!(keep(Some(2), Some(hour)).keeps(0, made, old));
        assert!(keep(Some(2), Some(hour)).keeps(9, made, young));
        assert!(!keep(Some(2), Some(hour)).keeps(2, made, old));
    }

    #[test]
    fn rules_that_keep_nothing_or_everything_by_mistake_are_refused() {
        let hour = Duration::from_hours(1);
        for (newest, within, fits) in [
            (None, None, true),
            (Some(1), Some(hour), true),
            (Some(0), None, false),
            (Some(NEWEST_MAX + 1), None, false),
            (None, Some(hour / 2), false),
            (None, Some(KEPT_MAX * 2), false),
        ] {
            assert_eq!(Keep { newest, within }.check().is_ok(), fits);
        }
    }
}
