//! Verifications that nobody asks for: schedules of databases, and the restore drills of a node.
//!
//! One task sleeps until the first is due and runs them one after the other. The next time of a schedule is
//! written before its verification begins, so that one that kills the process is not tried for ever.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::json;
use tidelog_wal::Timestamp;
use tokio::sync::{Notify, watch};

use super::record::{Due, Schedule, Verification};
use super::{Level, NewVerification, Outcome};
use crate::engine::Engine;
use crate::error::Error;
use crate::operations::Operation;
use crate::system::audit::{AuditLine, Severity};

/// The longest sleep: the wall clock, which says what is due, may be set.
const SLEEP_MAX: Duration = Duration::from_hours(1);
/// The pause after the system database could not be read or written.
const FAILED_PAUSE: Duration = Duration::from_secs(30);
/// How long a drill is followed before the next one begins beside it.
const RUN_MAX: Duration = Duration::from_hours(6);

/// `every` after `now`.
pub(super) fn after(now: Timestamp, every: Duration) -> Timestamp {
    let micros = u64::try_from(every.as_micros()).unwrap_or(u64::MAX);
    Timestamp::from_micros(now.micros().saturating_add(micros))
}

/// What a node knows of its verifications without asking.
#[derive(Debug, Default)]
pub(crate) struct Proofs {
    status: Mutex<ProofStatus>,
    changed: Notify,
}

/// Verifications of a node, for whoever watches it.
#[derive(Debug, Clone, Copy, Default)]
pub struct ProofStatus {
    /// When the newest good one ended, of whichever database.
    pub last_good: Option<Timestamp>,
    /// The newest measured time of a restore.
    pub restore_duration: Option<Duration>,
    /// How many ended in this process life, by outcome as in [`Outcome::ALL`].
    pub ended: [u64; Outcome::ALL.len()],
}

impl Proofs {
    fn lock(&self) -> std::sync::MutexGuard<'_, ProofStatus> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a verification that ended.
    pub(super) fn note(&self, ended: &Verification) {
        let mut status = self.lock();
        for (count, outcome) in status.ended.iter_mut().zip(Outcome::ALL) {
            *count += u64::from(outcome == ended.outcome);
        }
        if ended.outcome == Outcome::Verified {
            status.last_good = Some(ended.ended_at);
        }
        if ended.restore_duration.is_some() {
            status.restore_duration = ended.restore_duration;
        }
    }

    /// Says that schedules changed.
    pub(super) fn reschedule(&self) {
        self.changed.notify_one();
    }
}

impl Engine {
    /// What is known of verifications.
    pub fn proof_status(&self) -> ProofStatus {
        *self.inner.proofs.lock()
    }

    /// The task that runs what is due until the node stops. It does not keep the node alive while it sleeps.
    pub(crate) fn drill_loop(
        &self,
        mut stop: watch::Receiver<bool>,
    ) -> impl Future<Output = ()> + Send + 'static + use<> {
        let (inner, proofs) = (Arc::downgrade(&self.inner), Arc::clone(&self.inner.proofs));
        let interval = self.inner.core.settings.drill_interval;
        let mut drill_due = interval.map(|every| after(self.now(), every));
        async move {
            let mut first = true;
            loop {
                let Some(inner) = inner.upgrade() else { return };
                let engine = Self { inner };
                if std::mem::take(&mut first) {
                    engine.remember_newest().await;
                }
                let pause = match engine.drill_once(&mut drill_due).await {
                    Ok(None) => None,
                    Ok(Some(pause)) => Some(pause.min(SLEEP_MAX)),
                    Err(error) => {
                        tracing::warn!(%error, "scheduled verifications are not run now");
                        Some(FAILED_PAUSE)
                    }
                };
                drop(engine);
                let sleep = async {
                    match pause {
                        Some(pause) => tokio::time::sleep(pause).await,
                        // Nothing is ever due: until somebody makes a schedule.
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    () = sleep => {}
                    () = proofs.changed.notified() => {}
                    _ = stop.wait_for(|stop| *stop) => return,
                }
            }
        }
    }

    async fn remember_newest(&self) {
        match self.inner.system.verification_newest().await {
            Ok((last_good, restore_duration)) => {
                let mut status = self.inner.proofs.lock();
                status.last_good = status.last_good.or(last_good);
                status.restore_duration = status.restore_duration.or(restore_duration);
            }
            Err(error) => tracing::warn!(%error, "earlier verifications are not known"),
        }
    }

    /// Runs the first that is due; answers how long to sleep before the next, `None` for ever.
    async fn drill_once(
        &self,
        drill_due: &mut Option<Timestamp>,
    ) -> Result<Option<Duration>, Error> {
        let now = self.now();
        let first = self.inner.system.schedule_first().await?;
        if let Some(due) = first.as_ref().filter(|due| due.schedule.due <= now) {
            self.run_schedule(due).await?;
            return Ok(Some(Duration::ZERO));
        }
        if let (Some(due), Some(every)) = (*drill_due, self.inner.core.settings.drill_interval)
            && due <= now
        {
            *drill_due = Some(after(now, every));
            if let Some((namespace, name)) = self.inner.system.least_drilled().await? {
                let new = NewVerification::of(Level::Restore);
                let database = self.database(namespace, &name).await?;
                self.follow(database, new).await?;
            }
            return Ok(Some(Duration::ZERO));
        }
        let next = first.map(|due| due.schedule.due);
        let next = next.into_iter().chain(*drill_due).min();
        Ok(next.map(|due| Duration::from_micros(due.micros_since(now))))
    }

    async fn run_schedule(&self, due: &Due) -> Result<(), Error> {
        let system = &self.inner.system;
        let Some(name) = &due.name else {
            // The database is deleted: if it comes back, its owner schedules it anew.
            return system.schedule_set(due.namespace, due.database, None).await;
        };
        let schedule = Schedule {
            due: after(self.now(), due.schedule.every),
            ..due.schedule.clone()
        };
        system
            .schedule_set(due.namespace, due.database, Some(&schedule))
            .await?;
        let new = NewVerification {
            sample_percent: schedule.sample_percent,
            ..NewVerification::of(schedule.level)
        };
        let database = self.database(due.namespace, name).await?;
        self.follow(database, new).await
    }

    /// Puts on record how a verification that nobody asked for came out.
    fn note_run(&self, database: &crate::engine::Database, ended: &Operation) {
        let row = database.row();
        let outcome = ended.result.as_ref();
        let outcome = outcome.and_then(|result| result["verification"]["outcome"].as_str());
        let right = outcome == Some(Outcome::Verified.as_str());
        let failed = ended.error.as_ref().map(|failure| failure.code.clone());
        self.audit(AuditLine {
            namespace: Some(row.namespace),
            event: "backup.verify".to_owned(),
            severity: if right {
                Severity::Info
            } else {
                Severity::Critical
            },
            user: Some("schedule".to_owned()),
            action: "verification-schedule".to_owned(),
            resource: "database".to_owned(),
            resource_id: Some(row.name.clone()),
            details: json!({
                "database": row.name,
                "operation": ended.id,
                "outcome": outcome,
                "scheduled": true,
            }),
            success: right,
            error_code: failed,
            ..AuditLine::default()
        });
    }

    async fn follow(
        &self,
        database: crate::engine::Database,
        new: NewVerification,
    ) -> Result<(), Error> {
        let mut handle = database.begin_verification(new, None, true).await?;
        let mut stop = self.inner.stop_signal();
        tokio::select! {
            ended = handle.wait(RUN_MAX) => self.note_run(&database, &ended),
            _ = stop.wait_for(|stop| *stop) => {}
        }
        Ok(())
    }
}
