//! What a rewind will do: the one object that preview shows and execution runs (I10).

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tidelog_archive::plan::{Plan, Resolved, Start};
use tidelog_wal::{DatabaseId, PageSize, Timestamp};

use super::RestoreTarget;
use crate::bucket::At;
use crate::capture::Head;
use crate::engine::Database;
use crate::error::{Code, Error};
use crate::rebuild::plan_error;
use crate::scratch;
use crate::travel::archives::{Archive, Format};

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
    /// By an archive, compared page by page.
    Archive,
}

impl Way {
    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Log => "log",
            Self::Image => "image",
            Self::Archive => "archive",
        }
    }
}

/// Where the state to come is read.
#[derive(Debug, Clone, PartialEq)]
pub enum Origin {
    /// In the history: what is fetched and applied.
    History(Box<Plan>),
    /// In an archive of the database.
    Archive(Box<Archive>),
}

/// How much of the log is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Log {
    /// Not what restores took back, as they recorded it.
    Shortest,
    /// All of it.
    Whole,
}

/// What a rewind will do.
#[derive(Debug, Clone, PartialEq)]
pub struct RewindPlan {
    /// Names the plan: it can be run once.
    pub id: String,
    /// The state to come.
    pub target: Resolved,
    /// Where the database was when the plan was made.
    pub current: Head,
    /// Page size of the database.
    pub page_size: PageSize,
    /// Where the state is read.
    pub origin: Origin,
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
    pub fn way(&self) -> Way {
        match &self.origin {
            Origin::Archive(_) => Way::Archive,
            Origin::History(plan) => match plan.start {
                Start::Base(_) => Way::Log,
                Start::Empty | Start::Image(_) => Way::Image,
            },
        }
    }

    /// Bytes that are fetched from the store.
    pub fn bytes_to_fetch(&self) -> u64 {
        match &self.origin {
            Origin::History(plan) => plan.bytes,
            Origin::Archive(archive) => archive.object_bytes(),
        }
    }

    /// Objects that are fetched from the store.
    pub fn objects_to_fetch(&self) -> usize {
        match &self.origin {
            Origin::History(plan) => plan.objects(),
            Origin::Archive(_) => 1,
        }
    }

    /// Whether it leaves out what earlier restores took back.
    pub(super) fn is_shortened(&self) -> bool {
        match &self.origin {
            Origin::History(plan) => plan.legs.is_some(),
            Origin::Archive(_) => false,
        }
    }

    /// The archive it is read from, if it is.
    pub fn archive(&self) -> Option<&Archive> {
        match &self.origin {
            Origin::History(_) => None,
            Origin::Archive(archive) => Some(archive),
        }
    }

    /// About how long it takes.
    pub fn estimate(&self) -> Duration {
        let (bytes, commits) = ESTIMATE;
        let micros = |part: u64, rate: u64| part.saturating_mul(1_000_000) / rate;
        let read = match self.way() {
            Way::Log => 0,
            // Every page of the database is looked at.
            Way::Image | Way::Archive => {
                micros(self.current.pages.bytes(self.page_size), bytes * 4)
            }
        };
        let fetched = micros(self.bytes_to_fetch(), bytes);
        let applied = match &self.origin {
            Origin::History(plan) => micros(plan.commits(), commits),
            Origin::Archive(_) => 0,
        };
        Duration::from_micros(fetched + applied + read)
    }
}

impl Database {
    /// Plans a rewind to what is asked for from where the database stands.
    pub(super) async fn rewind_plan(&self, target: &RestoreTarget) -> Result<RewindPlan, Error> {
        match target {
            RestoreTarget::At(at) => self.plan_back(at.clone(), Log::Shortest).await,
            RestoreTarget::Before(id) => {
                let previous = self.restore(id).await?.previous;
                self.plan_back(At::Bookmark(previous), Log::Shortest).await
            }
            RestoreTarget::Archive(id) => self.plan_from_archive(id).await,
        }
    }

    /// Plans to take the state from an archive of this very database, whose history it may have left long ago.
    async fn plan_from_archive(&self, id: &str) -> Result<RewindPlan, Error> {
        let archive = self.archive(id).await?;
        if archive.document.format == Format::Sql {
            let what = "an archive of format sql is a text for other programs: run it through sqlite3 \
                        and import the file";
            return Err(Error::new(Code::ImportInvalid, what));
        }
        let target = archive.state()?;
        // Captured to the end, as a plan from the history is.
        self.bookmark().await?;
        let lease = self.lease().await?;
        let meta = lease.meta();
        let document = &archive.document;
        let seed = format!("{:016x}", meta.seed.get());
        if document.page_size != meta.page_size.get() || document.digest_seed != seed {
            let what = format!("archive {id} does not fit the database: page size or digest seed");
            return Err(Error::new(Code::ImportInvalid, what));
        }
        drop(scratch::folder(&lease.core, "a restore", document.bytes)?);
        let current = lease.head();
        let chance = u128::from_be_bytes(lease.core.parts.entropy.bytes16());
        Ok(RewindPlan {
            id: format!("pl_{chance:032x}"),
            target,
            current,
            page_size: meta.page_size,
            origin: Origin::Archive(Box::new(archive)),
            made_at: lease.core.parts.clock.wall(),
        })
    }

    /// Plans to go to a state of the history.
    pub(super) async fn plan_back(&self, at: At, log: Log) -> Result<RewindPlan, Error> {
        let (lease, mut history, target) = self.resolve(at).await?;
        // Everything up to the newest stored commit, which is at least where the resolving began.
        let base = history.head().ok_or_else(|| {
            Error::new(Code::DatabaseCorrupt, "a database without a stored commit")
        })?;
        let same = match log {
            Log::Shortest => {
                self.engine()
                    .inner
                    .system
                    .restored_states(self.row().id)
                    .await?
            }
            Log::Whole => Vec::new(),
        };
        let plan = history.plan_past(target, Some(base), &same).await;
        let plan = plan.map_err(plan_error)?;
        let page_size = lease.meta().page_size;
        if !matches!(plan.start, Start::Base(_)) {
            let bytes = target.n.bytes(page_size);
            drop(scratch::folder(&lease.core, "a restore", bytes)?);
        }
        let current = lease.head();
        let id = u128::from_be_bytes(lease.core.parts.entropy.bytes16());
        Ok(RewindPlan {
            id: format!("pl_{id:032x}"),
            target,
            current,
            page_size,
            origin: Origin::History(Box::new(plan)),
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
