//! Fuzzy copy: a state of an open database made from its files on this node while writers go on (DESIGN 5.7).
//!
//! Pages are read a run at a time, each run under the capture lock and for no longer ([`OpenDb::read_run`]), so that a
//! run is the pages of one captured commit. Runs are of different commits, all at or after the wanted one; each is
//! led back to it by the deltas between, which the local journal holds: those made during the copy are kept there until
//! it is over. No read transaction, no torn page, and whoever writes waits for one run at most. The digest of the
//! whole proves the state.
//!
//! An earlier state is made in the same way, by the deltas since it, from the local journal or the store's log. It is
//! chosen by bytes: where an image and what follows it are less to fetch than the log since the state, there is
//! no copy to make here and the store is the way.
//!
//! For a fork that nobody has touched yet the files are those of its parent, if they are on this node.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;

use tidelog_archive::plan::{Resolved, Start, Target};
use tidelog_archive::restore::{FileSink, PageSink, RestoreSettings, merge};
use tidelog_wal::digest::PageHash;
use tidelog_wal::page::{mask_page1, unmask_page1};
use tidelog_wal::{DatabaseId, Digest, NamespaceId, PageCount, PageNo, TxId};

use crate::boxed;
use crate::capture::Head;
use crate::core::Core;
use crate::crash_point;
use crate::database::state::DbState;
use crate::database::{Lease, OpenDb};
use crate::error::{Code, Error};
use crate::executor::blocking;
use crate::journal::hold::ChunkHold;
use crate::operations::Task;
use crate::places::For;
use crate::rebuild::{Unsettled, history, plan_error, present, restore_error};
use crate::registry::Registry;
use crate::travel::rewind::PageXors;

/// Pages of a run, and its bytes where pages are large.
const RUN_PAGES: usize = 1024;
const RUN_BYTES: usize = 8 << 20;
/// Runs that were read and wait to be written.
const RUNS_AHEAD: usize = 1;
/// Local log that is read rather than the store asked, beside twice the bytes of the state.
const LOCAL_LOG: u64 = 64 << 20;
/// States of untouched forks that are remembered.
const FORKS_MAX: usize = 4096;

/// A state to be copied.
#[derive(Debug)]
pub(crate) struct Copy {
    lease: Lease,
    target: Resolved,
    /// What leads from the commit `upto` back to the target.
    xors: PageXors,
    upto: TxId,
    /// The commits that are still to come stay in the journal.
    _hold: ChunkHold,
}

fn resolved(head: &Head) -> Resolved {
    Resolved {
        position: head.position(),
        time: head.time,
        n: head.pages,
        digest: head.digest,
    }
}

fn xors(database: &OpenDb) -> PageXors {
    let folder = database.core.settings.data.join("scratch");
    PageXors::new(database.meta().page_size, folder)
}

/// Adds what led from `after` to `through`, as far as the journal of this node holds it; answers whether it does.
pub(crate) fn gather(
    database: &OpenDb,
    xors: &mut PageXors,
    after: TxId,
    through: TxId,
) -> Result<bool, Error> {
    if after == through {
        return Ok(true);
    }
    let of = (database.meta().id, database.meta().page_size);
    let journal = &database.core.journal;
    let read = journal.pages_between(of, (after, through), &mut |page| {
        xors.add(page).map_err(|e| Error::io("merge a delta", e))
    });
    match read {
        Ok(last) => Ok(last == through),
        Err(error) if error.code() == Code::StorageUnavailable => Ok(false),
        Err(error) => Err(error),
    }
}

impl Copy {
    /// A copy of the newest commit. Blocks.
    pub(crate) fn newest(database: &Arc<OpenDb>) -> Result<Self, Error> {
        let lease = database.lease().ok_or_else(closing)?;
        // Before the capture, so that nothing behind it can go.
        let journal = &lease.core.journal;
        let hold = journal.hold(lease.meta().id, lease.head().txid);
        let head = lease.capture_now()?;
        Ok(Self {
            xors: xors(&lease),
            lease,
            target: resolved(&head),
            upto: head.txid,
            _hold: hold,
        })
    }

    /// The state it is of.
    pub(crate) const fn target(&self) -> &Resolved {
        &self.target
    }

    /// Shows `each` every page of the state in order, a run at a time with the number of its first page, as they stand
    /// in a file, and answers their digest: the caller compares it with the state's. `each` may keep the run, and leave
    /// another buffer in its place. Blocks.
    pub(crate) fn pages(
        mut self,
        task: Option<&Task>,
        mut each: impl FnMut(PageNo, &mut Vec<u8>) -> Result<(), Error>,
    ) -> Result<Digest, Error> {
        let (size, seed) = (self.lease.meta().page_size, self.lease.meta().seed);
        let n = self.target.n;
        let io = |e| Error::io("lead a copied page back", e);
        let most = RUN_PAGES.min(RUN_BYTES / size.bytes()).max(1);
        let mut run = Vec::new();
        let mut digest = Digest::empty(size).resize(PageCount::ZERO, n, size);
        let mut next = 1_u32;
        while let Some(first) = PageNo::new(next).filter(|first| n.contains(*first)) {
            let left = usize::try_from(n.get() - next)
                .unwrap_or(most)
                .saturating_add(1);
            let count = left.min(most);
            run.resize(count * size.bytes(), 0);
            let at = self.lease.read_run(first, &mut run)?;
            self.catch_up(at)?;
            let numbers = (next..).filter_map(PageNo::new);
            for (page, image) in numbers.zip(run.chunks_exact_mut(size.bytes())) {
                if page == size.lock_page() {
                    image.fill(0);
                    continue;
                }
                if page == PageNo::ONE {
                    mask_page1(image);
                }
                self.xors.apply(page, image).map_err(io)?;
                digest = digest.replace(PageHash::ABSENT, seed.page(page, image));
                if page == PageNo::ONE {
                    unmask_page1(image, self.target.position.txid);
                }
            }
            crash_point!("copy.run");
            each(first, &mut run)?;
            next = next.saturating_add(u32::try_from(count).unwrap_or(u32::MAX));
            if let Some(task) = task {
                task.progress(u64::from(next - 1) * u64::from(size.get()));
                task.check()?;
            }
        }
        Ok(digest)
    }

    /// Has the deltas lead back from commit `at`.
    fn catch_up(&mut self, at: TxId) -> Result<(), Error> {
        if !gather(&self.lease, &mut self.xors, self.upto, at)? {
            let what = format!("the journal lacks commits between {} and {at}", self.upto);
            return Err(Error::new(Code::StorageUnavailable, what));
        }
        self.upto = at;
        Ok(())
    }

    /// Fails unless `digest` is that of the state.
    fn prove(id: DatabaseId, target: &Resolved, digest: Digest) -> Result<(), Error> {
        if digest == target.digest {
            return Ok(());
        }
        let what = format!(
            "a copy of database {id} at {} has digest {digest}, recorded is {}",
            target.position, target.digest
        );
        Err(Error::new(Code::DatabaseCorrupt, what))
    }

    /// Writes the state into `sink`, which is finished once it is proven, and hands it back. A thread of its own
    /// writes while the next run is read and hashed. Blocks.
    pub(crate) fn write_to<S: PageSink>(
        self,
        mut sink: S,
        task: Option<&Task>,
    ) -> Result<S, Error> {
        let io = |e| Error::io("write a copy", e);
        let (id, size, target) = (
            self.lease.meta().id,
            self.lease.meta().page_size,
            self.target,
        );
        let (full, filled) = mpsc::sync_channel::<(u64, Vec<u8>)>(RUNS_AHEAD);
        let (empty, emptied) = mpsc::channel::<Vec<u8>>();
        let (read, written) = thread::scope(|scope| {
            let sink = &mut sink;
            let writing = scope.spawn(move || {
                for (offset, run) in filled {
                    sink.write(offset, &run)?;
                    // Nobody takes the last ones.
                    let _ = empty.send(run);
                }
                Ok(())
            });
            let read = self.pages(task, |first, run| {
                let read = std::mem::replace(run, emptied.try_recv().unwrap_or_default());
                let sent = full.send((first.offset(size), read));
                sent.map_err(|_| Error::internal("the copy is written no further"))
            });
            drop(full);
            (read, writing.join())
        });
        let written = written.map_err(|_| Error::internal("write a copy"))?;
        // Why the file could not be written comes before what that did to the reader.
        written.map_err(io)?;
        Self::prove(id, &target, read?)?;
        sink.set_len(target.n.bytes(size)).map_err(io)?;
        sink.finish().map_err(io)?;
        Ok(sink)
    }
}

fn closing() -> Error {
    Error::new(Code::DatabaseBusy, "the database is closing; try again")
}

/// A copy of a stored state of the database's history, or `None` where the store is the cheaper way.
#[boxed]
async fn back_to(lease: &Lease, target: Resolved) -> Result<Option<Copy>, Error> {
    let core = &lease.core;
    let (namespace, id) = (lease.meta().namespace, lease.meta().id);
    let then = target.position.txid;
    // Before it is looked what is where.
    let hold = core.journal.hold(id, then);
    let database = Arc::clone(lease);
    let log_max = LOCAL_LOG + 2 * target.n.bytes(lease.meta().page_size);
    let (now, local) = blocking(lease.core.executor(), move || {
        let now = database.capture_now()?.txid;
        let mut local = xors(&database);
        let reached = now >= then
            && database.core.journal.bytes_after(id, then) <= log_max
            && gather(&database, &mut local, then, now)?;
        Ok((now, reached.then_some(local)))
    })
    .await?;
    let copy = |xors, upto| {
        let lease = lease.lease().ok_or_else(closing)?;
        Ok(Some(Copy {
            lease,
            target,
            xors,
            upto,
            _hold: hold,
        }))
    };
    if let Some(xors) = local {
        return copy(xors, now);
    }
    let mut known = history(core, namespace, id).await?;
    let Some(stored) = known.head().filter(|stored| then <= stored.txid) else {
        return Ok(None);
    };
    let plan = known.plan(target, Some(stored)).await.map_err(plan_error)?;
    if !matches!(plan.start, Start::Base(_)) {
        return Ok(None);
    }
    let store = &core.remote.store;
    let merged = merge(store, &plan, xors(lease), RestoreSettings::default()).await;
    let (mut xors, _) = merged.map_err(restore_error)?;
    let database = Arc::clone(lease);
    let (reached, xors, now) = blocking(lease.core.executor(), move || {
        let now = database.capture_now()?.txid;
        let reached = now >= stored.txid && gather(&database, &mut xors, stored.txid, now)?;
        Ok((reached, xors, now))
    })
    .await?;
    if reached { copy(xors, now) } else { Ok(None) }
}

/// Writes a stored state of the database's history into a file at `path`, which must not exist, from the files on this
/// node, where that is the cheaper way; answers whether it did. What fails here leaves no file, and is no reason not
/// to ask the store.
pub(crate) async fn into_file(
    lease: &Lease,
    target: Resolved,
    path: &Path,
    task: Option<&Task>,
) -> Result<bool, Error> {
    let path = path.to_owned();
    let make = move || {
        let failed = |e| Error::io(format!("create {}", path.display()), e);
        FileSink::create(&path).map_err(failed)
    };
    let copied = into_sink(lease, target, make, task).await?;
    Ok(copied.is_some())
}

/// The same into the sink that `make` makes.
pub(crate) async fn into_sink<S: PageSink + 'static>(
    lease: &Lease,
    target: Resolved,
    make: impl FnOnce() -> Result<S, Error> + Send + 'static,
    task: Option<&Task>,
) -> Result<Option<S>, Error> {
    let watched = task.cloned();
    let copied = async {
        let Some(copy) = back_to(lease, target).await? else {
            return Ok(None);
        };
        let writing = blocking(lease.core.executor(), move || {
            copy.write_to(make()?, watched.as_ref())
        });
        writing.await.map(Some)
    }
    .await;
    if let Some(task) = task {
        task.check()?;
    }
    copied.or_else(|error: Error| match error.code() {
        Code::DiskFull => Err(error),
        _ => {
            tracing::warn!(database = %lease.meta().id, %error, "not copied from the files here; the store is asked");
            Ok(None)
        }
    })
}

/// The states that forks of this process life begin with, until they are touched for the first time: then nothing
/// has to be read to know them.
#[derive(Debug, Default)]
pub(crate) struct Untouched {
    states: Mutex<HashMap<DatabaseId, Resolved>>,
}

impl Untouched {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<DatabaseId, Resolved>> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers where a new fork begins.
    pub(crate) fn add(&self, fork: DatabaseId, state: Resolved) {
        let mut states = self.lock();
        if states.len() >= FORKS_MAX {
            states.clear();
        }
        states.insert(fork, state);
    }
}

/// Writes the files of a fork without a commit of its own, from those of its parent, if these are on this node and that
/// is the cheaper way; answers the state.
#[boxed]
pub(crate) async fn fork_files(
    core: &Arc<Core>,
    registry: &Registry,
    (namespace, id): (NamespaceId, DatabaseId),
    path: PathBuf,
) -> Result<Option<Resolved>, Error> {
    let own = Unsettled::of(core, id).newest();
    let manifest = core.remote.owned_manifest(namespace, id).await?.manifest;
    let Some(parent) = manifest.parent else {
        return Ok(None);
    };
    if manifest.settled.is_some() || own.is_some() {
        return Ok(None);
    }
    // One whose files would have to be made or proven first is no help.
    let folder = core.database_folder(parent.database);
    let clean = |state: DbState| state.clean;
    if !registry.is_open(parent.database).await
        && !DbState::read(core.parts.disk.as_ref(), &folder)?.is_some_and(clean)
    {
        return Ok(None);
    }
    let remembered = core.untouched.lock().remove(&id);
    let target = match remembered.filter(|state| state.position == parent.at) {
        Some(state) => state,
        None => {
            let mut known = history(core, namespace, id).await?;
            let at = Target::Position(parent.at);
            let store = &core.remote.store;
            let found = known.resolve(store, at, present(core.term())).await;
            found.map_err(plan_error)?
        }
    };
    let lease = registry
        .lease_for(For::Engine, parent.namespace, parent.database)
        .await?;
    let copied = into_file(&lease, target, &path, None).await?;
    Ok(copied.then_some(target))
}
