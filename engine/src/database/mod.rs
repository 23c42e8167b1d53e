//! One open database: its connections, its capture, its place in the journal.
//!
//! Locks are taken in this order: write gate, checkpointing, capture lock, journal. Nobody waits for the gate or for durability
//! while inside a SQLite statement.
//!
//! After a failure that leaves the local state in doubt (a COMMIT with an I/O error, a failed append, a
//! discontinuity) the handle is *poisoned*: it refuses everything until the database is opened anew, and
//! opening derives what is true from the files and the journal (HAZARDS W6).

pub(crate) mod backfill;
pub mod checkpoint;
pub(crate) mod execute;
pub(crate) mod growth;
pub(crate) mod idempotency;
pub mod open;
pub mod read;
mod reads;
mod roll;
pub(crate) mod rolled_back;
pub mod state;
mod texts;
pub mod ticket;
pub mod write;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};

use tidelog_wal::record::TimeFlag;
use tidelog_wal::shm::WalIndexHeader;
use tidelog_wal::{
    DatabaseId, DigestSeed, NamespaceId, PageNo, PageSize, Position, Timestamp, TxId,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::capture::{Capture, CaptureError, Head, Pass, Scratch};
use crate::core::Core;
use crate::error::{Code, Error};
use crate::files::DbFiles;
use crate::journal::chunk::ChunkDatabase;
use crate::journal::{Append, Payload};
use crate::settings::Durability;
use crate::spool::Spooled;
use crate::sql::connection::Sqlite;

use backfill::{Backfilled, Checkpointing};
use checkpoint::WalMark;
use reads::Reads;
use texts::WriteTexts;
use ticket::Pending;
pub use ticket::Ticket;

/// Connections that read tenant SQL at once, in one database.
const READERS_MAX: usize = 2;
/// Users of one open database at once.
const LEASES_MAX: u32 = 1 << 20;

/// What a database is, whatever its state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DbMeta {
    /// Its id.
    pub id: DatabaseId,
    /// Its tenant.
    pub namespace: NamespaceId,
    /// Its page size.
    pub page_size: PageSize,
    /// The seed of its digests.
    pub seed: DigestSeed,
}

/// Where the captured commits of a database stand in the journal; outlives the open database.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    inner: Mutex<LedgerInner>,
}

#[derive(Debug, Default)]
struct LedgerInner {
    durable: Option<Position>,
    marks: VecDeque<(u64, Position)>,
}

/// Marks kept at most: beyond them neighbours are joined, and a Position counts as stored only with the next.
const MARKS_MAX: usize = 4096;

/// When commits that are captured were made.
#[derive(Debug, Clone, Copy)]
enum Made {
    /// Just now.
    Live,
    /// Before this process, at the latest at this time.
    Recovered(Timestamp),
}

impl Ledger {
    fn lock(&self) -> MutexGuard<'_, LedgerInner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a journaled commit while the journal is shipped up to `shipped_lsn`.
    pub(crate) fn add(&self, lsn: u64, position: Position, shipped_lsn: u64) {
        let mut inner = self.lock();
        inner.advance(shipped_lsn);
        inner.marks.push_back((lsn, position));
        if inner.marks.len() > MARKS_MAX {
            // The last one stays: it is the head's.
            let last = inner.marks.len() - 1;
            let mut at = 0;
            inner.marks.retain(|_| {
                at += 1;
                at % 2 == 0 || at > last
            });
        }
    }

    /// Says that everything up to `position` is stored.
    pub(crate) fn set_durable(&self, position: Position) {
        let mut inner = self.lock();
        // A state file may be older than what was shipped since it was written.
        if inner.durable.is_none_or(|known| known.txid < position.txid) {
            inner.durable = Some(position);
        }
    }

    /// The newest Position that is stored, when the journal is shipped up to `shipped_lsn`.
    pub(crate) fn durable(&self, shipped_lsn: u64) -> Option<Position> {
        let mut inner = self.lock();
        inner.advance(shipped_lsn);
        inner.durable
    }
}

impl LedgerInner {
    fn advance(&mut self, shipped_lsn: u64) {
        while let Some((_, position)) = self.marks.front().filter(|(lsn, _)| *lsn <= shipped_lsn) {
            if self.durable.is_none_or(|known| known.txid < position.txid) {
                self.durable = Some(*position);
            }
            self.marks.pop_front();
        }
    }
}

/// The connections of an open database.
#[derive(Debug)]
struct Connections {
    writer: Option<Sqlite>,
    readers: Vec<Sqlite>,
}

#[derive(Debug)]
struct CaptureSlot {
    capture: Capture,
    /// Local number of the newest record of this database, 0 before the first in this process life.
    last_lsn: u64,
}

/// The use of an open database: it is not closed while one exists.
#[derive(Debug)]
pub(crate) struct Lease {
    database: Arc<OpenDb>,
    permit: Option<OwnedSemaphorePermit>,
}

impl Drop for Lease {
    /// The last one says that the database could be closed for another, once that is so.
    fn drop(&mut self) {
        self.permit = None;
        if self.database.is_idle() {
            self.database.core.place_changes.tell();
        }
    }
}

impl std::ops::Deref for Lease {
    type Target = Arc<OpenDb>;

    fn deref(&self) -> &Arc<OpenDb> {
        &self.database
    }
}

/// A database with connections.
#[derive(Debug)]
pub struct OpenDb {
    pub(crate) core: Arc<Core>,
    pub(crate) meta: DbMeta,
    pub(crate) ledger: Arc<Ledger>,
    folder: PathBuf,
    database_file: PathBuf,
    connections: Mutex<Connections>,
    /// The connections that move frames; locked before the capture lock.
    checkpointing: Mutex<Option<Checkpointing>>,
    backfilled: Backfilled,
    reads: Reads,
    files: RwLock<Option<DbFiles>>,
    /// One permit a user; closing takes them all.
    leases: Arc<Semaphore>,
    gate: Arc<Semaphore>,
    gate_queue: AtomicUsize,
    reader_slots: Arc<Semaphore>,
    /// Texts of statements that were found to write.
    write_texts: WriteTexts,
    capture: Mutex<CaptureSlot>,
    /// TxId and change counter when it was opened: they go in step from there.
    base: (TxId, u32),
    head: watch::Sender<Head>,
    pending: Pending,
    queued: AtomicBool,
    /// Closing has begun: streams are ended, and no new one gets a connection.
    closing: AtomicBool,
    last_used: AtomicU64,
    last_restart: WalMark,
    poison: OnceLock<(Code, String)>,
}

impl OpenDb {
    /// The newest captured state.
    pub fn head(&self) -> Head {
        *self.head.borrow()
    }

    /// The newest Position that is stored.
    pub fn durable(&self) -> Option<Position> {
        self.ledger.durable(self.core.journal.shipped_lsn())
    }

    /// What it is.
    pub const fn meta(&self) -> &DbMeta {
        &self.meta
    }

    /// Its SQLite file. Nobody but the engine may open it.
    pub fn file(&self) -> &Path {
        &self.database_file
    }

    fn chunk_database(&self, chain_before: tidelog_wal::Chain) -> ChunkDatabase {
        ChunkDatabase {
            id: self.meta.id,
            namespace: self.meta.namespace,
            page_size: self.meta.page_size,
            seed: self.meta.seed,
            chain_before,
        }
    }

    fn lock_capture(&self) -> MutexGuard<'_, CaptureSlot> {
        self.capture.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_connections(&self) -> MutexGuard<'_, Connections> {
        self.connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses everything from now on.
    pub(crate) fn poison(&self, error: &Error) {
        let reason = (error.code(), error.to_string());
        if self.poison.set(reason).is_ok() {
            tracing::error!(database = %self.meta.id, %error, "database poisoned until it is opened anew");
            // Wakes those who wait for a capture that will not come.
            self.head.send_modify(|_| {});
        }
    }

    /// Whether it must be opened anew.
    pub(crate) fn is_poisoned(&self) -> bool {
        self.poison.get().is_some()
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        match self.poison.get() {
            None => Ok(()),
            Some((code, reason)) => Err(Error::new(
                *code,
                format!("the database is being opened anew after: {reason}"),
            )),
        }
    }

    pub(crate) fn clear_queued(&self) {
        self.queued.store(false, Ordering::Release);
    }

    /// Has the pump capture this database.
    pub(crate) fn mark_dirty(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::AcqRel) {
            self.core.pump.push(Arc::clone(self));
        }
    }

    /// Says that it is in use now.
    pub(crate) fn touch(&self) {
        self.last_used
            .store(self.core.parts.clock.monotonic_micros(), Ordering::Relaxed);
    }

    /// When it was last used, on the monotonic clock.
    pub(crate) fn last_used(&self) -> u64 {
        self.last_used.load(Ordering::Relaxed)
    }

    /// Takes a lease; `None` once closing has begun.
    pub(crate) fn lease(self: &Arc<Self>) -> Option<Lease> {
        let permit = Arc::clone(&self.leases).try_acquire_owned().ok()?;
        Some(Lease {
            database: Arc::clone(self),
            permit: Some(permit),
        })
    }

    /// How many leases of it are held now.
    pub(crate) fn users(&self) -> usize {
        (LEASES_MAX as usize).saturating_sub(self.leases.available_permits())
    }

    /// Whether nobody uses it now.
    pub(crate) fn is_idle(&self) -> bool {
        self.users() == 0
    }

    /// Says that closing has begun.
    pub(crate) fn begin_closing(&self) {
        self.closing.store(true, Ordering::SeqCst);
    }

    /// Whether closing has begun.
    pub(crate) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::SeqCst)
    }

    /// Lets nobody in any more if nobody uses it now; whether that is so.
    pub(crate) fn drain_unused(&self) -> bool {
        let unused = self.leases.try_acquire_many(LEASES_MAX);
        if let Ok(all) = unused {
            all.forget();
            self.leases.close();
            return true;
        }
        false
    }

    /// Waits until nobody uses it and lets nobody in any more.
    pub(crate) async fn drain(&self) {
        if let Ok(all) = self.leases.acquire_many(LEASES_MAX).await {
            all.forget();
        }
        self.leases.close();
    }

    /// What the wal-index publishes.
    pub(crate) fn header(&self) -> Result<WalIndexHeader, Error> {
        self.with_files(|files| {
            files
                .header()
                .map_err(|e| Error::io("read the wal-index header", e))
        })
    }

    /// Runs `work` on the descriptors, which only closing takes away.
    fn with_files<T>(&self, work: impl FnOnce(&DbFiles) -> Result<T, Error>) -> Result<T, Error> {
        let files = self.files.read().unwrap_or_else(PoisonError::into_inner);
        work(
            files
                .as_ref()
                .ok_or_else(|| Error::internal("the database is closed"))?,
        )
    }

    fn is_closed(&self) -> bool {
        self.files
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .is_none()
    }

    /// Closes the descriptors, after the last connection (HAZARDS W0a).
    fn drop_files(&self) {
        drop(
            self.files
                .write()
                .unwrap_or_else(PoisonError::into_inner)
                .take(),
        );
    }

    /// Fills `run` with the pages from `first` on as they are at the newest captured commit, and answers its number.
    /// Writers go on meanwhile; capture waits.
    pub(crate) fn read_run(&self, first: PageNo, run: &mut [u8]) -> Result<TxId, Error> {
        self.check()?;
        let slot = self.lock_capture();
        let io = |e| Error::io("read a live database", e);
        self.with_files(|files| slot.capture.present(files, first, run).map_err(io))?;
        Ok(slot.capture.head().txid)
    }

    /// The same of any pages, ascending, one behind the other in `images`.
    pub(crate) fn read_pages(&self, pages: &[PageNo], images: &mut [u8]) -> Result<TxId, Error> {
        self.check()?;
        let slot = self.lock_capture();
        let io = |e| Error::io("read a live database", e);
        self.with_files(|files| {
            let mut left = images;
            for run in pages.chunk_by(|page, next| page.get() + 1 == next.get()) {
                let bytes = run.len() * self.meta.page_size.bytes();
                let images = left.split_off_mut(..bytes).unwrap_or_default();
                let first = run.first().copied().unwrap_or(PageNo::ONE);
                slot.capture.present(files, first, images).map_err(io)?;
            }
            Ok(())
        })?;
        Ok(slot.capture.head().txid)
    }

    /// How long the WAL is; 0 where that cannot be told.
    pub(crate) fn wal_bytes(&self) -> u64 {
        let frames = self.header().map_or(0, |header| header.max_frame.get());
        u64::from(frames) * u64::from(self.meta.page_size.get())
    }

    /// The number of the newest commit SQLite has made, captured or not.
    pub(crate) fn committed_txid(&self, header: &WalIndexHeader) -> TxId {
        let (txid, change) = self.base;
        txid.plus(u64::from(header.change.wrapping_sub(change)))
    }

    /// Captures what is committed, on this thread.
    pub(crate) fn capture_now(&self) -> Result<Head, Error> {
        self.core
            .scratches
            .with(|scratch| self.capture_with(scratch))
    }

    /// Captures what is committed and appends it to the journal; answers the newest captured state.
    pub(crate) fn capture_with(&self, scratch: &mut Scratch) -> Result<Head, Error> {
        let mut slot = self.lock_capture();
        // Closing captured everything; the pump may still have it queued.
        if !self.is_closed() {
            let clock = &self.core.parts.clock;
            let (began, before) = (clock.monotonic_micros(), slot.capture.head().txid);
            self.capture_locked(&mut slot, scratch, Made::Live)?;
            if slot.capture.head().txid != before {
                let took = clock.monotonic_micros().saturating_sub(began);
                self.core.meters.capture.record(took);
            }
        }
        Ok(*slot.capture.head())
    }

    fn capture_locked(
        &self,
        slot: &mut CaptureSlot,
        scratch: &mut Scratch,
        made: Made,
    ) -> Result<WalIndexHeader, Error> {
        let before = *slot.capture.head();
        let header = self
            .pass_locked(slot, scratch, made)?
            .map_err(|error| self.capture_failed(error))?;
        self.journal_locked(slot, scratch, before)?;
        Ok(header)
    }

    /// Captures what is committed into `scratch`, and journals nothing of it yet.
    fn pass_locked(
        &self,
        slot: &mut CaptureSlot,
        scratch: &mut Scratch,
        made: Made,
    ) -> Result<Result<WalIndexHeader, CaptureError>, Error> {
        self.check()?;
        let files = self.files.read().unwrap_or_else(PoisonError::into_inner);
        let files = files
            .as_ref()
            .ok_or_else(|| Error::internal("the database is closed"))?;
        let spools = self.core.spools(self.meta.id);
        let header = match files.header() {
            Ok(header) => header,
            Err(error) => return Ok(Err(error.into())),
        };
        // After the header: what it publishes has its notes queued by now, and they are final.
        let mut notes = self.pending.take_notes(self.committed_txid(&header));
        let (wall, flag) = match made {
            Made::Live => (self.core.parts.clock.wall(), TimeFlag::Live),
            Made::Recovered(at) => (at, TimeFlag::Recovered),
        };
        let mut pass = Pass {
            term: self.core.term(),
            wall,
            flag,
            spools: &spools,
            notes: &mut notes,
            recovering: matches!(made, Made::Recovered(_)),
        };
        let passed = slot.capture.pass(files, header, scratch, &mut pass);
        Ok(passed.map(|()| header))
    }

    /// Journals what a pass found behind `before`.
    fn journal_locked(
        &self,
        slot: &mut CaptureSlot,
        scratch: &Scratch,
        before: Head,
    ) -> Result<(), Error> {
        let batch = &scratch.batch;
        if batch.commits.is_empty() {
            return Ok(());
        }
        let appends: Vec<Append<'_>> = batch
            .commits
            .iter()
            .map(|commit| Append {
                txid: commit.head.txid,
                wal: commit.wal,
                chain: commit.head.chain,
                payload: payload(&batch.bytes[commit.range.clone()], commit.spooled.as_ref()),
            })
            .collect();
        let lsn = self
            .core
            .journal
            .append(&self.chunk_database(before.chain), &appends)
            .inspect_err(|error| self.poison(error))?;
        for (txid, spooled) in batch
            .commits
            .iter()
            .filter_map(|c| c.spooled.as_ref().map(|s| (c.head.txid, s)))
        {
            let (path, len) = (spooled.path.clone(), spooled.len);
            self.core.journal.add_spool(path, self.meta.id, txid, len);
        }
        slot.last_lsn = lsn;
        let head = *slot.capture.head();
        let shipped = self.core.journal.shipped_lsn();
        self.ledger.add(lsn, head.position(), shipped);
        self.pending.resolve(&batch.commits, lsn);
        self.head.send_replace(head);
        Ok(())
    }

    fn capture_failed(&self, error: CaptureError) -> Error {
        let error = match error {
            CaptureError::Io(source) => Error::io("capture commits", source),
            wrong @ (CaptureError::Discontinuity(_) | CaptureError::Unproven(_)) => {
                let what = format!("capture of database {}: {wrong}", self.meta.id);
                Error::new(Code::DatabaseCorrupt, what)
            }
        };
        self.poison(&error);
        error
    }

    pub(crate) async fn wait_captured(self: &Arc<Self>, txid: TxId) -> Result<(), Error> {
        let mut head = self.head.subscribe();
        self.core.pump.hurry();
        let reached = head
            .wait_for(|head| head.txid >= txid || self.is_poisoned())
            .await;
        match reached {
            Ok(head) if head.txid >= txid => Ok(()),
            _ => self.check().and(Err(self.lost_ticket(txid))),
        }
    }

    pub(crate) fn lost_ticket(&self, txid: TxId) -> Error {
        let what = format!(
            "commit {txid} of database {} was not captured",
            self.meta.id
        );
        Error::new(Code::OutcomeUnknown, what)
    }

    /// Waits until the journal is durable up to `lsn`, as `durability` asks, within the set bound.
    pub(crate) async fn wait_durable(&self, lsn: u64, durability: Durability) -> Result<(), Error> {
        let journal = &self.core.journal;
        let waited = async {
            match durability {
                Durability::Memory => Ok(()),
                Durability::Local => journal.wait_synced(lsn).await,
                Durability::Remote => journal.wait_shipped(lsn).await,
            }
        };
        let bound = self.core.settings.durability_timeout;
        match tokio::time::timeout(bound, waited).await {
            Ok(result) => result,
            Err(_) => Err(Error::new(
                Code::DurabilityTimeout,
                format!(
                    "the write is committed, but not {durability} after {} ms",
                    bound.as_millis()
                ),
            )
            .with("committed", true)),
        }
    }

    /// The newest record's local number.
    pub(crate) fn last_lsn(&self) -> u64 {
        self.lock_capture().last_lsn
    }
}

fn payload<'a>(bytes: &'a [u8], spooled: Option<&Spooled>) -> Payload<'a> {
    match spooled {
        None => Payload::Record(bytes),
        Some(Spooled { len, blake3, .. }) => Payload::Spooled {
            len: *len,
            blake3: *blake3,
            header: bytes,
        },
    }
}

/// A name for a new incarnation of a database's files: the term, and chance.
pub(crate) fn incarnation_name(core: &Core) -> String {
    let mut nonce = [0; 4];
    core.parts.entropy.fill(&mut nonce);
    format!("{}-{:08x}", core.term(), u32::from_le_bytes(nonce))
}

#[cfg(test)]
mod tests;
