//! Rewind: putting a live database back to an earlier state, in place, as one more commit.
//!
//! History is never cut: the commit that restores a state is appended like any other, so an undo is another
//! rewind and every bookmark stays valid. Readers keep their snapshot; writers wait for one transaction.
//!
//! The work is done outside the write gate as far as it can be: the log since the target is read and merged
//! from the store, or, where that would cost more bytes than the database, the target is materialised from an
//! image; or it is unpacked from an archive of the database, which may be older than the window. Then its pages are
//! made and proven. Only the commits made meanwhile are looked at under the gate, from the local journal. A restore
//! record with what an undo goes back to is stored before anything changes.
//!
//! Preview and execution run the same [`RewindPlan`] (I10).

mod apply;
mod plan;
mod recover;
mod run;
mod stage;
mod xors;

use std::time::Duration;

use serde_json::{Value as Json, json};
use tidelog_wal::{Position, Timestamp};

use super::restores::{Outcome, RestoreRecord};
use crate::boxed;
use crate::bucket::At;
use crate::engine::{Database, Engine};
use crate::error::{Code, Error};
use crate::operations::{Begins, Handle, NewOperation, Operation, OperationType};
use crate::system::{Page, PageOf};

pub(crate) use apply::{Changed, put_in_place, raw_connection};
pub(crate) use plan::Plans;
pub use plan::{Origin, RewindPlan, Way};
pub(crate) use recover::taken_back;
pub(crate) use stage::{Source, Staged};
pub(crate) use xors::PageXors;

/// The window in which the restores of one database are bounded.
const LIMIT_WINDOW: Duration = Duration::from_mins(10);

/// What is to be restored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RestoreTarget {
    /// A state of the history.
    At(At),
    /// The state before an earlier restore.
    Before(String),
    /// The state that an archive of the database holds.
    Archive(String),
}

/// A rewind that is asked for.
#[derive(Debug, Clone)]
pub struct Rewind {
    /// To which state.
    pub target: RestoreTarget,
    /// Only if the database is still at this Position.
    pub only_at: Option<Position>,
    /// Run this previewed plan, and no other.
    pub plan: Option<String>,
    /// Pin the state before under this name.
    pub preserve_as: Option<String>,
    /// Run SQLite's quick check on the restored state.
    pub quick_check: bool,
    /// Why, in the caller's words.
    pub reason: Option<String>,
    /// Id of the token that asks.
    pub token: Option<String>,
}

impl Rewind {
    /// A rewind to a state, without conditions.
    pub const fn to(target: RestoreTarget) -> Self {
        Self {
            target,
            only_at: None,
            plan: None,
            preserve_as: None,
            quick_check: false,
            reason: None,
            token: None,
        }
    }
}

/// What goes with an accepted rewind.
#[derive(Debug, Clone)]
struct Accepted {
    rewind: Rewind,
    undo_of: Option<Undo>,
}

/// The restore that is taken back.
#[derive(Debug, Clone)]
struct Undo {
    id: String,
    /// Where that restore left the database.
    bookmark: Position,
}

impl Database {
    /// What a rewind would do. The plan can be run once, within ten minutes, while the database has not moved.
    #[boxed]
    pub async fn preview(&self, target: &RestoreTarget) -> Result<RewindPlan, Error> {
        let plan = self.rewind_plan(target).await?;
        self.engine().inner.plans.keep(self.row().id, plan.clone());
        Ok(plan)
    }

    /// Begins a rewind. What is wrong with the target is answered at once.
    #[boxed]
    pub async fn rewind(&self, rewind: Rewind) -> Result<Handle, Error> {
        let accepted = Accepted {
            rewind,
            undo_of: None,
        };
        self.begin_rewind(accepted).await
    }

    /// Begins taking a restore back. Commits that came after it would be undone too: refused with
    /// [`Code::RestoreSuperseded`] unless `force` names the present bookmark.
    #[boxed]
    pub async fn undo(
        &self,
        id: &str,
        force: Option<Position>,
        token: Option<String>,
    ) -> Result<Handle, Error> {
        let undone = self.restore(id).await?;
        let Some(bookmark) = undone
            .bookmark
            .filter(|_| undone.outcome == Outcome::Succeeded)
        else {
            let what = format!("restore {id} changed nothing: there is nothing to undo");
            return Err(Error::new(Code::RestoreNotFound, what));
        };
        let only_at = force.unwrap_or(bookmark);
        let accepted = Accepted {
            rewind: Rewind {
                only_at: Some(only_at),
                reason: Some(format!("undo of {id}")),
                token,
                ..Rewind::to(RestoreTarget::At(At::Bookmark(undone.previous)))
            },
            undo_of: Some(Undo {
                id: id.to_owned(),
                bookmark,
            }),
        };
        let now = self.bookmark().await?.bookmark;
        if now != only_at {
            return Err(moved(&accepted, now));
        }
        self.begin_rewind(accepted).await
    }

    /// One restore of this database.
    #[boxed]
    pub async fn restore(&self, id: &str) -> Result<RestoreRecord, Error> {
        let system = &self.engine().inner.system;
        system.restore(self.row().id, id).await
    }

    /// The restores of this database, newest first.
    #[boxed]
    pub async fn restores(&self, page: Page) -> Result<PageOf<RestoreRecord>, Error> {
        let system = &self.engine().inner.system;
        system.restore_list(self.row().id, page).await
    }

    async fn begin_rewind(&self, accepted: Accepted) -> Result<Handle, Error> {
        let engine = self.engine();
        let row = self.row();
        self.check_rate().await?;
        let hold = self.hold().await?;
        let plan = match &accepted.rewind.plan {
            Some(id) => engine.inner.plans.take(row.id, id, engine.now())?,
            None => self.rewind_plan(&accepted.rewind.target).await?,
        };
        let now = self.bookmark().await?.bookmark;
        let expected = accepted.rewind.only_at;
        if expected.is_some_and(|expected| expected != now) {
            return Err(moved(&accepted, now));
        }
        if accepted.rewind.plan.is_some() && plan.current.position() != now {
            return Err(stale(now));
        }
        let id = self.restore_id();
        let new = NewOperation {
            kind: OperationType::Restore,
            namespace: row.namespace,
            database: Some((row.id, row.name.clone())),
            exclusive: true,
            token: accepted.rewind.token.clone(),
            note: note(&id, &plan, accepted.rewind.preserve_as.as_deref()),
            begins: Begins::Noted,
        };
        let database = self.clone();
        engine
            .operate(new, async move |task| {
                let _hold = hold;
                run::run(&database, &task, id, plan, accepted).await
            })
            .await
    }

    /// An id for a restore record: later ones are greater.
    pub(crate) fn restore_id(&self) -> String {
        let engine = self.engine();
        let mut chance = [0; 4];
        engine.inner.core.parts.entropy.fill(&mut chance);
        let chance = u32::from_le_bytes(chance);
        format!("rs_{:014x}{chance:08x}", engine.now().micros())
    }

    /// Each restore is a commit as large as what it takes back: nobody needs many of them at once.
    async fn check_rate(&self) -> Result<(), Error> {
        let engine = self.engine();
        let now = engine.now().micros();
        let window = u64::try_from(LIMIT_WINDOW.as_micros()).unwrap_or(u64::MAX);
        let since = Timestamp::from_micros(now.saturating_sub(window));
        let system = &engine.inner.system;
        let recent = system.restores_since(self.row().id, since).await?;
        let limit = engine.inner.core.settings.restores_max;
        let over = recent.len().checked_sub(limit);
        let Some(oldest) = over.and_then(|at| recent.get(at)) else {
            return Ok(());
        };
        let free = oldest.micros().saturating_add(window).saturating_sub(now);
        let seconds = free.div_ceil(1_000_000);
        let what = format!(
            "a database is restored at most {limit} times in {} minutes; try again in {seconds} s",
            LIMIT_WINDOW.as_secs() / 60
        );
        Err(Error::new(Code::RestoreRateLimited, what).with("retry_after", seconds))
    }
}

fn note(id: &str, plan: &RewindPlan, preserve_as: Option<&str>) -> Json {
    json!({
        "restore": id,
        "preserve_as": preserve_as,
        "target": plan.target.position.to_string(),
        "previous": plan.current.position().to_string(),
        "pages": plan.target.n.get(),
        "digest": plan.target.digest.to_string(),
    })
}

fn moved(accepted: &Accepted, now: Position) -> Error {
    match &accepted.undo_of {
        None => {
            let what = format!("the database has moved: it is at {now}");
            Error::new(Code::DatabaseMoved, what).with("current_bookmark", now.to_string())
        }
        Some(undo) => {
            let since = now.txid.since(undo.bookmark.txid).unwrap_or(0);
            let what = format!(
                "{since} commits were made after restore {}: an undo would take them back too; \
                 to do so, force it by naming the present bookmark {now}",
                undo.id
            );
            Error::new(Code::RestoreSuperseded, what)
                .with("commits_since", since)
                .with("current", now.to_string())
        }
    }
}

fn stale(now: Position) -> Error {
    let what = "the database has moved since the plan was made; preview it again";
    Error::new(Code::PlanStale, what).with("current_bookmark", now.to_string())
}

/// Ends a restore that an earlier life left open: by whether its commit stands in the history.
pub(crate) async fn recover(engine: &Engine, operation: &Operation) -> Result<Option<Json>, Error> {
    let ended = recover::recover(engine, operation).await?;
    engine.inner.core.rolled_back.decided(&operation.id);
    Ok(ended)
}
