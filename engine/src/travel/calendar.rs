//! What is due: one task a node looks after every database that owes something, at the time it owes it.
//!
//! Due times stand in the rows of the system database, so that a restart forgets none. A database that owes
//! nothing has no entry, no timer and no request (I9); its first settle after that gives it one. One look
//! does, in this order: end a purge that was begun; purge what was deleted seven days ago and has no archives; delete
//! what has expired; let the manifest's state follow the row; begin an archive that a schedule asks for; apply the
//! retention window. Namespaces that are deleted end after their last database.
//!
//! What ends by time ends by two clocks (see [`super::retention`]): what is due by ours alone is looked at again
//! later.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tidelog_archive::manifest::State;
use tidelog_wal::{DatabaseId, NamespaceId, Timestamp};
use tokio::sync::{Notify, watch};

use super::deletion::Purge;
use super::retention::{self, DAY_MICROS, GRACE_MICROS, RetentionReport, WINDOW_MICROS};
use crate::boxed;
use crate::core::Core;
use crate::engine::{Engine, Inner};
use crate::error::{Code, Error};
use crate::system::databases::{DatabaseRow, UNDELETE_MICROS};
use crate::system::{Page, PageOf};

/// The longest sleep: a clock that was set is noticed by then.
const SLEEP_MAX: Duration = Duration::from_mins(10);
/// The pause before what failed, or is due by our clock alone, is looked at again.
const PAUSE_MICROS: u64 = 3600 * 1_000_000;

/// Who is due when.
#[derive(Debug, Default)]
pub(crate) struct Calendar {
    inner: Mutex<Entries>,
    wake: Notify,
    pub(crate) turn: tokio::sync::Mutex<()>,
    purging: tokio::sync::Mutex<()>,
    ending: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Entries {
    by_time: BTreeSet<(Timestamp, DatabaseId)>,
    of: HashMap<DatabaseId, Timestamp>,
    /// Databases that owed nothing and have settled something.
    begun: HashSet<DatabaseId>,
}

impl Entries {
    fn set(&mut self, id: DatabaseId, at: Option<Timestamp>) {
        if let Some(known) = self.of.remove(&id) {
            self.by_time.remove(&(known, id));
        }
        if let Some(at) = at {
            self.of.insert(id, at);
            self.by_time.insert((at, id));
        }
    }
}

impl Calendar {
    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says that a database has settled something: it owes a look some day.
    pub(crate) fn settled(&self, id: DatabaseId) {
        let mut inner = self.lock();
        if !inner.of.contains_key(&id) && inner.begun.insert(id) {
            self.wake.notify_one();
        }
    }

    /// Sets when a database is due.
    pub(crate) fn set(&self, id: DatabaseId, at: Option<Timestamp>) {
        self.lock().set(id, at);
        self.wake.notify_one();
    }

    /// Brings a look forward to `at`.
    pub(crate) fn not_later(&self, id: DatabaseId, at: Timestamp) {
        let mut inner = self.lock();
        if inner.of.get(&id).is_none_or(|known| *known > at) {
            inner.set(id, Some(at));
            self.wake.notify_one();
        }
    }

    /// One purge at a time: the calendar and the recovery of operations may both come to it.
    pub(crate) async fn purging(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.purging.lock().await
    }

    /// One namespace ends at a time, for the same reason.
    pub(crate) async fn ending(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.ending.lock().await
    }

    /// The same, unless one ends now.
    pub(crate) fn try_ending(&self) -> Option<tokio::sync::MutexGuard<'_, ()>> {
        self.ending.try_lock().ok()
    }

    fn take_begun(&self) -> Vec<DatabaseId> {
        self.lock().begun.drain().collect()
    }

    fn due(&self, now: Timestamp) -> Vec<DatabaseId> {
        let inner = self.lock();
        let due = inner.by_time.iter().take_while(|(at, _)| *at <= now);
        due.map(|(_, id)| *id).collect()
    }

    fn known(&self, id: DatabaseId) -> Option<Timestamp> {
        self.lock().of.get(&id).copied()
    }

    /// Makes everything due: what was planned under a clock that ran ahead may lie far in the future.
    fn all_due(&self, now: Timestamp) {
        let mut inner = self.lock();
        let all: Vec<DatabaseId> = inner.of.keys().copied().collect();
        for id in all {
            inner.set(id, Some(now));
        }
    }

    fn pause(&self, now: Timestamp) -> Duration {
        let inner = self.lock();
        let next = inner.by_time.first().map(|(at, _)| at.micros_since(now));
        let next = next.map_or(SLEEP_MAX, Duration::from_micros);
        next.clamp(Duration::from_secs(1), SLEEP_MAX)
    }
}

/// `at`, `micros` later.
pub(super) fn later(at: Timestamp, micros: u64) -> Timestamp {
    Timestamp::from_micros(at.micros().saturating_add(micros))
}

/// When a database that has begun to owe something is looked at: nothing of it expires earlier.
fn first_look(now: Timestamp, retention_micros: Option<u64>) -> Timestamp {
    let window = retention_micros.unwrap_or(WINDOW_MICROS);
    later(now, window.saturating_add(window / 10))
}

/// Does what is due, sleeps, and so on. Holds the node only while it works.
async fn keep(inner: Weak<Inner>, core: Arc<Core>, mut stop: watch::Receiver<bool>) {
    let clock = &core.parts.clock;
    let mut loaded = false;
    let (mut wall, mut monotonic) = (clock.wall(), clock.monotonic_micros());
    loop {
        let Some(inner) = inner.upgrade() else { return };
        let work = async {
            let engine = Engine { inner };
            if !loaded {
                engine.load_calendar().await?;
                loaded = true;
            }
            engine.calendar_turn().await.map(drop)
        };
        tokio::select! {
            done = work => if let Err(error) = done {
                tracing::warn!(%error, "the calendar is tried again");
            },
            _ = stop.wait_for(|stop| *stop) => return,
        }
        let pause = core.calendar.pause(clock.wall());
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = core.calendar.wake.notified() => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
        let passed = clock.monotonic_micros().saturating_sub(monotonic);
        if later(clock.wall(), PAUSE_MICROS) < later(wall, passed) {
            core.calendar.all_due(clock.wall());
        }
        (wall, monotonic) = (clock.wall(), clock.monotonic_micros());
    }
}

impl Engine {
    /// Looks after the calendar until the node stops.
    pub(crate) fn spawn_calendar(&self) {
        let (inner, core) = (Arc::downgrade(&self.inner), Arc::clone(&self.inner.core));
        self.spawn_until_stop(move |stop| keep(inner, core, stop));
    }

    async fn load_calendar(&self) -> Result<(), Error> {
        let (calendar, now) = (&self.inner.core.calendar, self.now());
        for row in self.inner.system.databases_due().await? {
            // Nothing is ever due later than this: beyond it, a clock ran ahead when it was noted.
            let last = later(
                first_look(now, row.retention_micros),
                GRACE_MICROS + DAY_MICROS,
            );
            calendar.set(row.id, Some(if row.due > last { now } else { row.due }));
        }
        // The system database has no row, and a history of its own.
        calendar.set(self.inner.system.id, Some(now));
        Ok(())
    }

    /// Does what is due now; answers what the retention window did.
    #[boxed]
    pub async fn calendar_turn(&self) -> Result<Vec<RetentionReport>, Error> {
        let calendar = &self.inner.core.calendar;
        let _turn = calendar.turn.lock().await;
        self.note_begun().await?;
        let mut reports = Vec::new();
        for id in calendar.due(self.now()) {
            let before = calendar.known(id);
            match self.look_after(id).await {
                Ok((report, mut next)) => {
                    reports.extend(report);
                    // Brought forward while it was looked at.
                    let meanwhile = calendar.known(id).filter(|at| Some(*at) != before);
                    next = meanwhile.into_iter().chain(next).min();
                    self.set_due(id, next).await?;
                }
                Err(error) => {
                    tracing::warn!(database = %id, %error, "what is due is tried again");
                    calendar.set(id, Some(later(self.now(), PAUSE_MICROS)));
                    if error.code() == Code::WriterFenced {
                        return Err(error);
                    }
                }
            }
        }
        self.end_deleted_namespaces().await?;
        Ok(reports)
    }

    async fn note_begun(&self) -> Result<(), Error> {
        let (calendar, now) = (&self.inner.core.calendar, self.now());
        let mut due = Vec::new();
        for id in calendar.take_begun() {
            let row = self.inner.system.database_by_id(id).await?;
            if id == self.inner.system.id {
                calendar.not_later(id, first_look(now, None));
            } else if let Some(row) = row {
                due.push((id, Some(first_look(now, row.retention_micros))));
            }
        }
        self.inner.system.databases_set_due(due.clone()).await?;
        for (id, at) in due {
            if let Some(at) = at {
                calendar.not_later(id, at);
            }
        }
        Ok(())
    }

    /// Brings a look forward to `at`, durably.
    pub(crate) async fn due_not_later(&self, id: DatabaseId, at: Timestamp) -> Result<(), Error> {
        let calendar = &self.inner.core.calendar;
        calendar.not_later(id, at);
        match calendar.known(id) {
            Some(due) => {
                let system = &self.inner.system;
                system.databases_set_due(vec![(id, Some(due))]).await
            }
            None => Ok(()),
        }
    }

    async fn set_due(&self, id: DatabaseId, next: Option<Timestamp>) -> Result<(), Error> {
        let calendar = &self.inner.core.calendar;
        let changed = calendar.known(id) != next;
        calendar.set(id, next);
        if changed && id != self.inner.system.id {
            let system = &self.inner.system;
            system.databases_set_due(vec![(id, next)]).await?;
        }
        Ok(())
    }

    /// Sets how long every commit of a database is kept. The caller has it looked at behind that.
    pub(crate) async fn set_retention(
        &self,
        namespace: NamespaceId,
        name: &str,
        micros: u64,
    ) -> Result<(), Error> {
        let (least, most) = retention::WINDOW_DAYS;
        if !(least * DAY_MICROS..=most * DAY_MICROS).contains(&micros) {
            let what = format!("the retention window has {least} to {most} days");
            return Err(Error::new(Code::InvalidRequest, what));
        }
        let row = self.inner.system.database(namespace, name).await?;
        let core = &self.inner.core;
        core.remote
            .change_of(namespace, row.id, "set the retention window", |manifest| {
                manifest.retention_micros = micros;
                Ok(())
            })
            .await?;
        Ok(())
    }

    /// Applies the retention window to one database, deleted or not, due or not; a dry run changes nothing.
    #[boxed]
    pub async fn retention_of(
        &self,
        namespace: NamespaceId,
        name: &str,
        apply: bool,
    ) -> Result<(DatabaseRow, RetentionReport), Error> {
        let row = self
            .inner
            .system
            .database_or_deleted(namespace, name)
            .await?;
        let report = self.retain(&row, apply).await?;
        Ok((row, report))
    }

    /// The same for a page of all databases, by id.
    #[boxed]
    pub async fn retention(
        &self,
        page: Page,
        apply: bool,
    ) -> Result<PageOf<(DatabaseRow, RetentionReport)>, Error> {
        let bad = || Error::new(Code::InvalidRequest, "the cursor is not one of this list");
        let after = page.cursor.as_deref().map(str::parse).transpose();
        let after = after.map_err(|_| bad())?;
        let limit = page.limit();
        let rows = self.inner.system.databases_after(after, limit + 1).await?;
        let rows = PageOf::cut(rows, limit, |row| row.id.to_string());
        let mut items = Vec::new();
        for row in rows.items {
            let report = self.retain(&row, apply).await?;
            items.push((row, report));
        }
        Ok(PageOf {
            items,
            next_cursor: rows.next_cursor,
        })
    }

    async fn retain(&self, row: &DatabaseRow, apply: bool) -> Result<RetentionReport, Error> {
        let core = &self.inner.core;
        let _turn = core.calendar.turn.lock().await;
        let report = retention::run::run(core, row.namespace, row.id, apply).await?;
        if let Some(next) = report.next.filter(|_| apply) {
            core.calendar.not_later(row.id, next);
        }
        Ok(report)
    }

    /// One look at one database; when the next one is due.
    async fn look_after(
        &self,
        id: DatabaseId,
    ) -> Result<(Option<RetentionReport>, Option<Timestamp>), Error> {
        let (core, system) = (&self.inner.core, &self.inner.system);
        let soon = later(self.now(), PAUSE_MICROS);
        if id == system.id {
            let report = retention::run::run(core, system.namespace, id, true).await?;
            let next = report.next.map(|at| at.max(soon));
            return Ok((Some(report), next));
        }
        let Some(row) = system.database_by_id(id).await? else {
            return Ok((None, None));
        };
        let ends = match row.deleted_at {
            Some(deleted) => Some(later(deleted, UNDELETE_MICROS)),
            None => row.expires_at,
        };
        let over = row.purging
            || match ends.filter(|at| *at <= self.now()) {
                Some(at) => at <= retention::run::trusted(core, row.namespace, id).await?,
                None => false,
            };
        // What was archived is kept until somebody deletes it: nothing is purged by itself under its archives.
        let kept =
            over && !row.purging && row.deleted_at.is_some() && system.has_archives(id).await?;
        if over && !kept {
            return Ok((None, Some(self.end(&row).await?)));
        }
        self.follow_row(&row).await?;
        let archive = match row.deleted_at {
            None => self.archive_by_schedule(&row).await?,
            Some(_) => None,
        };
        let report = retention::run::run(core, row.namespace, id, true).await?;
        let ends = if kept {
            Some(later(self.now(), DAY_MICROS))
        } else {
            ends
        };
        let next = [report.next, ends].into_iter().flatten().min();
        let next = next.map(|at| at.max(soon)).into_iter().chain(archive);
        Ok((Some(report), next.min()))
    }

    /// Deletes a database whose time is over, or purges one that was deleted long enough; when to look again.
    async fn end(&self, row: &DatabaseRow) -> Result<Timestamp, Error> {
        if row.deleted_at.is_none() {
            return match self.database_delete(row.namespace, &row.name).await {
                Ok(_) => Ok(later(self.now(), UNDELETE_MICROS)),
                // Whoever protects it decides when it goes.
                Err(error) if error.code() == Code::DatabaseProtected => {
                    Ok(later(self.now(), DAY_MICROS))
                }
                Err(error) => Err(error),
            };
        }
        match self.purge_row(row.clone(), Purge::default()).await {
            Ok(_) => Ok(later(self.now(), PAUSE_MICROS)),
            Err(error) => match error.code() {
                // Its forks read through it, its archives are held, or somebody works on it.
                Code::ForkParentPinned | Code::DatabaseProtected | Code::ArchiveHeld => {
                    Ok(later(self.now(), DAY_MICROS))
                }
                Code::OperationInProgress => Ok(later(self.now(), PAUSE_MICROS)),
                _ => Err(error),
            },
        }
    }

    /// Lets the manifest say what the row says: the two are written one after the other.
    async fn follow_row(&self, row: &DatabaseRow) -> Result<(), Error> {
        let remote = &self.inner.core.remote;
        let loaded = remote.owned_manifest(row.namespace, row.id).await?;
        let wanted = match (row.deleted_at, loaded.manifest.state) {
            (Some(at), State::Active(_)) => State::Deleted(at),
            (None, State::Deleted(_)) => State::Active(self.now()),
            _ => return Ok(()),
        };
        remote
            .change_of(
                row.namespace,
                row.id,
                "change a database's state",
                |manifest| {
                    manifest.state = wanted;
                    Ok(())
                },
            )
            .await
            .map(drop)
    }
}
