//! The past of a database: what a time or bookmark means, how far back it reaches, its commits, exports.
//!
//! Everything here reads what is *stored*: a commit that is not shipped yet is waited for, within the durability
//! timeout, before it is looked up.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tidelog_archive::manifest::Loaded;
use tidelog_archive::plan::{CommitInfo, History, Plan, Resolved, Target};
use tidelog_wal::{Position, Timestamp, TxId};

use crate::boxed;
use crate::bucket::At;
use crate::copy;
use crate::core::Core;
use crate::database::Lease;
use crate::engine::Database;
use crate::error::{Code, Error};
use crate::rebuild::{history, materialise, materialise_into, plan_error, present, replanned};
use crate::scratch::{self, ScratchPages};
use crate::settings::Durability;
use crate::system::{Page, PageOf};
use crate::travel::labels;
use crate::travel::retention::hold::Hold;

/// What a point in time resolves to.
#[derive(Debug, Clone, Copy)]
pub struct BookmarkAt {
    /// The commit.
    pub bookmark: Position,
    /// When it was committed.
    pub committed_at: Timestamp,
    /// The commit was made at exactly that time.
    pub exact: bool,
    /// Bytes of the database then.
    pub database_bytes: u64,
}

/// How far back a database can be put.
#[derive(Debug, Clone)]
pub struct RecoveryWindow {
    /// The oldest state that can be restored.
    pub earliest: Option<(Position, Timestamp)>,
    /// The newest commit.
    pub latest: Position,
    /// The newest stored commit.
    pub latest_durable: Option<Position>,
    /// Age of the newest commit that is not stored.
    pub lag: Duration,
    /// States that are missing in between: after, resumes.
    pub gaps: Vec<(TxId, TxId)>,
}

/// Bytes of an export that are read at once.
const EXPORT_PIECE: u64 = 256 << 10;

/// A plain SQLite file that is read piece by piece.
#[derive(Debug)]
pub struct Exported {
    position: Position,
    bytes: u64,
    pages: ScratchPages,
}

impl Exported {
    /// The state it holds.
    pub const fn position(&self) -> Position {
        self.position
    }

    /// How long the file is, in bytes.
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The next bytes from `offset` on, where the piece before ended; none at the end. Blocks.
    pub fn piece(&self, offset: u64) -> std::io::Result<Vec<u8>> {
        let len = self.bytes.saturating_sub(offset).min(EXPORT_PIECE);
        let mut piece = vec![0; usize::try_from(len).unwrap_or(0)];
        self.pages.read_at(offset, &mut piece)?;
        Ok(piece)
    }
}

impl Database {
    /// The history of the database as it is stored, with everything up to now.
    async fn stored_history(&self) -> Result<(Lease, History), Error> {
        let lease = self.lease().await?;
        let capturing = Arc::clone(&lease);
        crate::executor::blocking(lease.core.executor(), move || capturing.capture_now()).await?;
        lease
            .wait_durable(lease.last_lsn(), Durability::Remote)
            .await?;
        let meta = lease.meta();
        let history = history(&lease.core, meta.namespace, meta.id).await?;
        Ok((lease, history))
    }

    /// The stored history, and what `target` means in it.
    async fn resolve_target(&self, target: Target) -> Result<(Lease, History, Resolved), Error> {
        replanned!(self.resolve_once(target))
    }

    async fn resolve_once(&self, target: Target) -> Result<(Lease, History, Resolved), Error> {
        let (lease, mut history) = self.stored_history().await?;
        let store = &lease.core.remote.store;
        let resolved = history
            .resolve(store, target, present(lease.core.term()))
            .await;
        Ok((lease, history, resolved.map_err(plan_error)?))
    }

    /// The manifest of the database.
    pub(crate) async fn manifest(&self) -> Result<Loaded, Error> {
        let remote = &self.engine.inner.core.remote;
        remote.owned_manifest(self.row.namespace, self.row.id).await
    }

    /// The stored history, and the state that is asked for.
    pub(crate) async fn resolve(&self, at: At) -> Result<(Lease, History, Resolved), Error> {
        let target = at.target(&self.manifest().await?.manifest)?;
        let resolved = self.resolve_target(target).await;
        resolved.map_err(|error| labels::unreachable(&at, error))
    }

    /// The state that is asked for.
    #[boxed]
    pub async fn state_at(&self, at: At) -> Result<Resolved, Error> {
        Ok(self.resolve(at).await?.2)
    }

    /// The last commit at or before `time`.
    #[boxed]
    pub async fn bookmark_at(&self, time: Timestamp) -> Result<BookmarkAt, Error> {
        let (lease, _, found) = self.resolve(At::Time(time)).await?;
        Ok(BookmarkAt {
            bookmark: found.position,
            committed_at: found.time,
            exact: found.time == time,
            database_bytes: found.n.bytes(lease.meta().page_size),
        })
    }

    /// How far back the database can be put.
    #[boxed]
    pub async fn recovery_window(&self) -> Result<RecoveryWindow, Error> {
        let now = self.bookmark().await?;
        let (lease, mut history) = self.stored_history().await?;
        let oldest = history.horizon.max(TxId::FIRST);
        let store = &lease.core.remote.store;
        let earliest = history
            .resolve(store, Target::TxId(oldest), present(lease.core.term()))
            .await
            .map_err(plan_error)?;
        Ok(RecoveryWindow {
            earliest: Some((earliest.position, earliest.time)),
            latest: now.bookmark,
            latest_durable: now.durable_bookmark,
            lag: now.lag,
            gaps: history
                .gaps
                .iter()
                .map(|gap| (gap.after, gap.resumes))
                .collect(),
        })
    }

    /// The commits from `from` to `to`, oldest first, in pages. Both must be commits of this history.
    #[boxed]
    pub async fn history(
        &self,
        from: Option<Position>,
        to: Option<Position>,
        page: Page,
    ) -> Result<PageOf<CommitInfo>, Error> {
        for position in [from, to].into_iter().flatten() {
            self.resolve_target(Target::Position(position)).await?;
        }
        let txid = |position: Position| position.txid;
        self.commits(from.map(txid), to.map(txid), page).await
    }

    /// The same by number, which need not be one of a commit.
    pub(crate) async fn commits(
        &self,
        from: Option<TxId>,
        to: Option<TxId>,
        page: Page,
    ) -> Result<PageOf<CommitInfo>, Error> {
        let bad = || Error::new(Code::InvalidRequest, "the cursor is not one of this list");
        let cursor = match &page.cursor {
            None => None,
            Some(text) => Some(u64::from_str_radix(text, 16).map_err(|_| bad())?),
        };
        let (lease, mut history) = self.stored_history().await?;
        let limit = page.limit();
        let start = cursor.map_or(TxId::ZERO, TxId::new).next();
        let first = from.unwrap_or(TxId::FIRST).max(start).max(history.horizon);
        let last = to
            .unwrap_or(TxId::new(u64::MAX))
            .min(first.plus(limit as u64));
        let store = &lease.core.remote.store;
        let items = history
            .commits(store, first, last)
            .await
            .map_err(plan_error)?;
        Ok(PageOf::cut(items, limit, |commit| {
            commit.position.txid.to_string()
        }))
    }

    /// The plan to a state: what preview shows and [`Database::export`] does.
    #[boxed]
    pub async fn plan(&self, at: At) -> Result<Plan, Error> {
        let (_, mut history, resolved) = self.resolve(at).await?;
        history.plan(resolved, None).await.map_err(plan_error)
    }

    /// The plan to a state, with what executes it.
    pub(crate) async fn plan_at(&self, at: At) -> Result<(Arc<Core>, Plan), Error> {
        let (lease, mut history, resolved) = self.resolve(at).await?;
        let plan = history.plan(resolved, None).await.map_err(plan_error)?;
        Ok((Arc::clone(&lease.core), plan))
    }

    /// Keeps from being marked what the database's states are made of, in its own history and in those it began in,
    /// until the answer is dropped (I5). Taken before anything is planned.
    pub(crate) async fn hold(&self) -> Result<Hold, Error> {
        let core = &self.engine.inner.core;
        let mut ids = vec![self.row.id];
        let mut manifest = self.manifest().await?.manifest;
        while let Some(parent) = manifest.parent {
            ids.push(parent.database);
            let of = core
                .remote
                .owned_manifest(parent.namespace, parent.database);
            manifest = of.await?.manifest;
        }
        Ok(core.holds.hold(ids).await)
    }

    /// Writes a state as a plain SQLite file at `out`, which must not exist; proven before it has its name.
    #[boxed]
    pub async fn export(&self, at: At, out: &Path) -> Result<Position, Error> {
        let _hold = self.hold().await?;
        let folder = match out.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        replanned!(self.export_once(at.clone(), folder, out))
    }

    /// A state as a plain SQLite file to be sent, proven; on this machine it stands sealed, without a name.
    #[boxed]
    pub async fn export_to_send(&self, at: At) -> Result<Exported, Error> {
        let _hold = self.hold().await?;
        replanned!(self.export_sealed_once(at.clone()))
    }

    async fn export_sealed_once(&self, at: At) -> Result<Exported, Error> {
        let (lease, mut history, target) = self.resolve(at).await?;
        let (core, size) = (Arc::clone(&lease.core), lease.meta().page_size);
        let bytes = target.n.bytes(size);
        let of = Arc::clone(&core);
        let make = move || ScratchPages::create(&of, "an export", size, bytes);
        let pages = match copy::into_sink(&lease, target, make.clone(), None).await? {
            Some(pages) => pages,
            None => {
                let plan = history.plan(target, None).await.map_err(plan_error)?;
                materialise_into(&core.remote.store, &plan, make()?).await?
            }
        };
        Ok(Exported {
            position: target.position,
            bytes,
            pages,
        })
    }

    async fn export_once(&self, at: At, folder: &Path, out: &Path) -> Result<Position, Error> {
        let (lease, mut history, target) = self.resolve(at).await?;
        let core = &lease.core;
        let bytes = target.n.bytes(lease.meta().page_size);
        scratch::ensure(core, folder, "an export", bytes)?;
        if !copy::into_file(&lease, target, out, None).await? {
            let plan = history.plan(target, None).await.map_err(plan_error)?;
            materialise(&core.remote.store, &plan, out).await?;
        }
        Ok(target.position)
    }
}
