//! Verifications: proof that what is stored can be had back.
//!
//! | level | what is looked at |
//! | --- | --- |
//! | [`Level::Objects`] | every listed object: there, its length, its checksum |
//! | [`Level::Chain`] | the same, and that all commit records form one chain without a break |
//! | [`Level::Restore`] | the state is restored into a scratch file, its chain and digest proven, and checked by SQLite; the time this takes is the measured recovery time |
//! | [`Level::Full`] | chain and restore, SQLite's whole integrity check, and the live database: every page of it, read through SQLite, has the digest that the log recorded for that commit |
//!
//! The outcome is never better than what was looked at, and `covers` lists exactly that:
//!
//! - `verified`: everything that is covered is right.
//! - `mismatch`: something differs from what was recorded. Damage.
//! - `error`: something that is recorded is missing.
//! - `inconclusive`: it could not be looked at now (the store does not answer, no room on the disk).
//!
//! Every verification is an operation and leaves a row in the system database. Those of a schedule, and the
//! drills of a node, are begun by one task that sleeps until the next is due: an idle database has no timer.

mod drills;
mod live;
mod record;
mod run;

use std::time::Duration;

use serde_json::json;
use tidelog_wal::Position;

use crate::boxed;
use crate::bucket::At;
use crate::engine::{Database, Engine};
use crate::error::{Code, Error};
use crate::operations::{Begins, Handle, NewOperation, OperationType};
use crate::system::{Page, PageOf};

pub use super::inspect::integrity_of_file;
pub use drills::ProofStatus;
pub(crate) use drills::Proofs;
pub use record::{Schedule, Verification};
pub use run::{finding_shown, outcome_of};

/// The shortest time between two scheduled verifications of one database.
pub const EVERY_MIN: Duration = Duration::from_mins(1);
/// The longest.
pub const EVERY_MAX: Duration = Duration::from_hours(24 * 366);

/// How much is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Level {
    /// Every object is there and intact.
    Objects,
    /// And all records form one chain.
    Chain,
    /// The state restores, and SQLite finds it sound.
    Restore,
    /// All of it, and the live database is what was recorded.
    Full,
}

impl Level {
    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Objects => "objects",
            Self::Chain => "chain",
            Self::Restore => "restore",
            Self::Full => "full",
        }
    }

    /// The level of that name.
    pub fn parse(name: &str) -> Result<Self, String> {
        [Self::Objects, Self::Chain, Self::Restore, Self::Full]
            .into_iter()
            .find(|level| level.as_str() == name)
            .ok_or_else(|| format!("a level is objects, chain, restore or full, not {name:?}"))
    }
}

/// What came of a verification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Everything covered is right.
    Verified,
    /// Something differs from what was recorded.
    Mismatch,
    /// It could not be looked at now.
    Inconclusive,
    /// Something recorded is missing.
    Error,
}

impl Outcome {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::Verified,
        Self::Mismatch,
        Self::Inconclusive,
        Self::Error,
    ];

    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Verified => "verified",
            Self::Mismatch => "mismatch",
            Self::Inconclusive => "inconclusive",
            Self::Error => "error",
        }
    }

    fn parse(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|outcome| outcome.as_str() == name)
    }
}

/// A verification to be made.
#[derive(Debug, Clone)]
pub struct NewVerification {
    /// How much to look at.
    pub level: Level,
    /// Which state to restore; the newest stored one where none is given.
    pub at: Option<At>,
    /// Of every hundred objects, how many are read; 100 for all. The newest always is. What a restore needs is
    /// read in any case.
    pub sample_percent: u8,
    /// Id of the token that asks.
    pub token: Option<String>,
}

impl NewVerification {
    /// All of it, of the newest state.
    pub const fn of(level: Level) -> Self {
        Self {
            level,
            at: None,
            sample_percent: 100,
            token: None,
        }
    }
}

/// Refuses a share that is none.
fn check_sample(percent: u8) -> Result<(), Error> {
    if (1..=100).contains(&percent) {
        return Ok(());
    }
    let what = format!("sample_percent is from 1 to 100, not {percent}");
    Err(Error::new(Code::InvalidRequest, what))
}

impl Database {
    /// Begins a verification. A state that cannot be asked for is refused at once.
    #[boxed]
    pub async fn verify(&self, new: NewVerification) -> Result<Handle, Error> {
        check_sample(new.sample_percent)?;
        let target = match new.at.clone() {
            None | Some(At::Latest) => None,
            Some(at) => Some(self.plan_at(at).await?.1.target.position),
        };
        self.begin_verification(new, target, false).await
    }

    async fn begin_verification(
        &self,
        new: NewVerification,
        target: Option<Position>,
        scheduled: bool,
    ) -> Result<Handle, Error> {
        let row = self.row();
        let operation = NewOperation {
            kind: OperationType::Verification,
            namespace: row.namespace,
            database: Some((row.id, row.name.clone())),
            exclusive: false,
            token: new.token.clone(),
            note: json!({ "level": new.level.as_str(), "scheduled": scheduled }),
            begins: Begins::Stored,
        };
        let database = self.clone();
        let work =
            move |task| async move { run::run(&database, &new, target, scheduled, &task).await };
        self.engine().operate(operation, work).await
    }

    /// The verifications of the database, newest first.
    #[boxed]
    pub async fn verifications(&self, page: Page) -> Result<PageOf<Verification>, Error> {
        let system = &self.engine().inner.system;
        system.verification_list(self.row().id, page).await
    }

    /// The newest verification that found everything right.
    #[boxed]
    pub async fn last_verified(&self) -> Result<Option<Verification>, Error> {
        let system = &self.engine().inner.system;
        system.verification_last_good(self.row().id).await
    }

    /// The newest measured time of a restore.
    #[boxed]
    pub async fn measured_restore(&self) -> Result<Option<Duration>, Error> {
        let system = &self.engine().inner.system;
        system.verification_restore_time(self.row().id).await
    }

    /// When the database is verified by itself.
    #[boxed]
    pub async fn verification_schedule(&self) -> Result<Option<Schedule>, Error> {
        let system = &self.engine().inner.system;
        system.schedule(self.row().id).await
    }

    /// Has the database verified by itself, or no longer; the first time is after `every`.
    #[boxed]
    pub async fn set_verification_schedule(
        &self,
        schedule: Option<(Duration, Level, u8)>,
    ) -> Result<Option<Schedule>, Error> {
        let engine: &Engine = self.engine();
        let row = self.row();
        if let Some((every, _, percent)) = schedule {
            check_sample(percent)?;
            if every < EVERY_MIN || every > EVERY_MAX {
                let (min, max) = (EVERY_MIN.as_secs(), EVERY_MAX.as_secs());
                let what = format!("every is from {min} to {max} seconds");
                return Err(Error::new(Code::InvalidRequest, what));
            }
        }
        let schedule = schedule.map(|(every, level, sample_percent)| Schedule {
            every,
            level,
            sample_percent,
            due: drills::after(engine.now(), every),
        });
        let system = &engine.inner.system;
        system
            .schedule_set(row.namespace, row.id, schedule.as_ref())
            .await?;
        engine.inner.proofs.reschedule();
        Ok(schedule)
    }
}
