//! What a rewind will do: the one object that preview shows and execution runs (I10).

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tidelog_archive::plan::{Plan, Resolved, Start};
use tidelog_wal::{DatabaseId, PageSize, Timestamp};

use crate::bucket::At;
use crate::capture::Head;
use crate::engine::Database;
use crate::error::{Code, Error};
use crate::rebuild::plan_error;

/// How long a previewed plan can be run.
const PLAN_LIFE: Duration = Duration::from_mins(10);
/// Plans kept at once.
const PLANS_MAX: usize = 1024;
/// Bytes fetched a second and commits applied a second, for the estimate alone.
const ESTIMATE: (u64, u64) = (50 << 20, 150_000);

/// How the state is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// By the log since the target, read backward.
    Log,
    /// By an image and the log behind it, compared page by page.
    Image,
}

impl Way {
    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Log => "log",
            Self::Image => "image",
        }
    }
}

/// What a rewind will do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RewindPlan {
    /// Names the plan: it can be run once.
    pub id: String,
    /// The state to come.
    pub target: Resolved,
    /// Where the database was when the plan was made.
    pub current: Head,
    /// Page size of the database.
    pub page_size: PageSize,
    /// What is fetched and applied.
    pub plan: Plan,
    /// When it was made.
    pub made_at: Timestamp,
}

impl RewindPlan {
    /// Commits that are taken back.
    pub fn commits_undone(&self) -> u64 {
        let (now, then) = (self.current.txid, self.target.position.txid);
        now.since(then).unwrap_or(0)
    }

    /// How the state is reached.
    pub const fn way(&self) -> Way {
        match self.plan.start {
            Start::Base(_) => Way::Log,
            Start::Empty | Start::Image(_) => Way::Image,
        }
    }

    /// About how long it takes.
    pub fn estimate(&self) -> Duration {
        let (bytes, commits) = ESTIMATE;
        let micros = |part: u64, rate: u64| part.saturating_mul(1_000_000) / rate;
        let read = match self.way() {
            Way::Log => 0,
            // Every page of the database is looked at.
            Way::Image => micros(self.current.pages.bytes(self.page_size), bytes * 4),
        };
        let fetched = micros(self.plan.bytes, bytes);
        let applied = micros(self.plan.commits(), commits);
        Duration::from_micros(fetched + applied + read)
    }
}

impl Database {
    /// Plans a rewind to `at` from where the database stands.
    pub(super) async fn rewind_plan(&self, at: At) -> Result<RewindPlan, Error> {
        let (lease, mut history, target) = self.resolve(at).await?;
        // Everything up to the newest stored commit, which is at least where the resolving began.
        let base = history.head().ok_or_else(|| {
            Error::new(Code::DatabaseCorrupt, "a database without a stored commit")
        })?;
        let plan = history.plan(target, Some(base)).await.map_err(plan_error)?;
        let current = lease.head();
        let id = u128::from_be_bytes(lease.core.parts.entropy.bytes16());
        Ok(RewindPlan {
            id: format!("pl_{id:032x}"),
            target,
            current,
            page_size: lease.meta().page_size,
            plan,
            made_at: lease.core.parts.clock.wall(),
        })
    }
}

/// Previewed plans that can still be run.
#[derive(Debug, Default)]
pub(crate) struct Plans {
    kept: Mutex<HashMap<String, (DatabaseId, RewindPlan)>>,
}

impl Plans {
    /// Keeps a plan for its one run.
    pub(crate) fn keep(&self, database: DatabaseId, plan: RewindPlan) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let now = plan.made_at;
        kept.retain(|_, (_, plan)| is_alive(plan, now));
        if kept.len() >= PLANS_MAX {
            kept.clear();
        }
        kept.insert(plan.id.clone(), (database, plan));
    }

    /// Takes a plan to run it.
    pub(crate) fn take(
        &self,
        database: DatabaseId,
        id: &str,
        now: Timestamp,
    ) -> Result<RewindPlan, Error> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let ours = kept
            .get(id)
            .is_some_and(|(of, plan)| *of == database && is_alive(plan, now));
        match kept.remove(id).filter(|_| ours) {
            Some((_, plan)) => Ok(plan),
            None => {
                let what =
                    format!("plan {id:?} was run already, is too old or is another database's");
                Err(Error::new(Code::PlanStale, what))
            }
        }
    }
}

fn is_alive(plan: &RewindPlan, now: Timestamp) -> bool {
    u128::from(now.micros_since(plan.made_at)) <= PLAN_LIFE.as_micros()
}
