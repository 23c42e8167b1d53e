//! Backfill: moving captured frames into the database file beside the writers (DESIGN 5.3).
//!
//! A read transaction is begun first; SQLite copies no frame beyond what it sees. Then everything committed is
//! captured and the journal synced, so that every frame the checkpoint may copy has its old image in the log, on
//! disk. PASSIVE runs on another connection, and only when capture was told where it ended does the read
//! transaction end: until then the WAL life cannot end. No writer waits; the gate is not taken, and the capture lock
//! is not held while pages are copied.
//!
//! Where everything was in the file already when the read transaction began, SQLite gives it a mark that holds no
//! frame back. It then excludes the copying as a whole: nothing is copied, and the next backfill does.
//!
//! A stored chunk of the journal waits for the files to hold its commits by themselves. Where one does, the WAL is
//! synced as far as it was captured and the state file says so: file and WAL together are a durable copy, whatever
//! a reader keeps from being backfilled. So no chunk waits for a reader.
//!
//! Copying and syncing what one large commit left in the WAL takes the disk that its way to the store needs. Nobody waits
//! for the first: where somebody waits for the second, it is put off ([`PutOff`]), for as long as little comes behind it.
//!
//! No note goes to the journal: opening proves where files are by their digest (decision 0001), and frames that a
//! dead backfill had copied in part stand in the WAL, which SQLite recovers first.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tidelog_wal::shm::WalIndexHeader;

use super::checkpoint::{WalMark, checkpoint_pragma, wal_position};
use super::{Made, OpenDb};
use crate::capture::Scratch;
use crate::crash_point;
use crate::error::{Code, Error};
use crate::sql::connection::{Purpose, Sqlite, open};

/// A close copies what is left of a WAL itself where that is no more than this share of what makes a backfill.
const LEFT_FOR_CLOSE: u64 = 8;

/// Nothing is put off for longer, whether the store takes the commit or not.
const PUT_OFF_MAX: Duration = Duration::from_secs(5);

/// The connections that move frames.
#[derive(Debug)]
pub(super) struct Checkpointing {
    /// Runs every checkpoint.
    pub(super) mover: Sqlite,
    /// Holds the read transaction of a backfill; opened with the first one.
    pub(super) pin: Option<Sqlite>,
}

impl Checkpointing {
    pub(super) const fn new(mover: Sqlite) -> Self {
        Self { mover, pin: None }
    }
}

/// When a database was backfilled, and whether it waits for it.
#[derive(Debug, Default)]
pub(super) struct Backfilled {
    queued: AtomicBool,
    /// Where the WAL stood after the last attempt.
    last: WalMark,
    /// Bytes of the last transaction that was larger than `wal_soft_bytes`.
    large: AtomicU64,
    /// Up to this frame writers go on while it is copied.
    outrun_at: AtomicU64,
    /// Those who put it off.
    put_off: AtomicUsize,
    /// It was due meanwhile, for the first time with the WAL at `due_at`.
    due: AtomicBool,
    due_at: WalMark,
}

/// While it lives the WAL is not backfilled beside the writers for having grown, until it has grown by as much again.
#[derive(Debug)]
pub(crate) struct PutOff {
    database: Arc<OpenDb>,
}

impl PutOff {
    /// Ends with what is waited for, or after a while.
    pub(crate) fn until<T>(self, end: impl Future<Output = T> + Send + 'static) {
        tokio::spawn(async move {
            let _ = tokio::time::timeout(PUT_OFF_MAX, end).await;
            drop(self);
        });
    }
}

impl Drop for PutOff {
    fn drop(&mut self) {
        let state = &self.database.backfilled;
        let last = state.put_off.fetch_sub(1, Ordering::AcqRel) == 1;
        if last && state.due.swap(false, Ordering::AcqRel) {
            self.database.queue_backfill();
        }
    }
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Arc<OpenDb>>,
    closed: bool,
}

/// The databases whose WAL has grown enough to be backfilled, for the one thread that does it.
#[derive(Debug, Default)]
pub(crate) struct Backfills {
    queue: Mutex<Queue>,
    wake: Condvar,
}

impl Backfills {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, database: Arc<OpenDb>) {
        let mut queue = self.lock();
        // What was put off may become due when there is no thread any more.
        if !queue.closed {
            queue.waiting.push_back(database);
            self.wake.notify_one();
        }
    }

    /// Ends the thread once the queue is empty.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.wake.notify_all();
    }

    fn next(&self) -> Option<Arc<OpenDb>> {
        let waits = |queue: &mut Queue| queue.waiting.is_empty() && !queue.closed;
        let waited = self.wake.wait_while(self.lock(), waits);
        let mut queue = waited.unwrap_or_else(PoisonError::into_inner);
        queue.waiting.pop_front()
    }

    /// The thread's loop: returns when the queue is closed and empty.
    pub(crate) fn run(&self) {
        let mut scratch = Scratch::default();
        while let Some(database) = self.next() {
            database.backfilled.queued.store(false, Ordering::Release);
            if let Err(error) = database.backfill(&mut scratch)
                && !database.is_poisoned()
            {
                // Nothing is lost by it: the frames stay in the WAL.
                tracing::warn!(database = %database.meta.id, %error, "not backfilled yet");
            }
        }
    }
}

impl OpenDb {
    /// Puts off what a large commit to come would have backfilled.
    pub(crate) fn put_off_backfill(self: &Arc<Self>) -> PutOff {
        self.backfilled.put_off.fetch_add(1, Ordering::AcqRel);
        PutOff {
            database: Arc::clone(self),
        }
    }

    /// Has the WAL backfilled beside the writers if it has grown enough since the last time, and, where that is put off,
    /// since it was due.
    pub(super) fn backfill_if_grown(self: &Arc<Self>, header: &WalIndexHeader) {
        let state = &self.backfilled;
        let enough = |mark: &WalMark| {
            let grown = mark.grown(header, self.meta.page_size);
            grown >= self.core.settings.wal_backfill_bytes
        };
        if !enough(&state.last) {
            return;
        }
        if state.put_off.load(Ordering::Acquire) == 0 {
            self.queue_backfill();
        } else if !state.due.swap(true, Ordering::AcqRel) {
            // Where it ends in this moment, the next commit sees to it.
            state.due_at.set(header);
        } else if enough(&state.due_at) {
            self.queue_backfill();
        }
    }

    fn queue_backfill(self: &Arc<Self>) {
        if !self.backfilled.queued.swap(true, Ordering::AcqRel) {
            self.core.backfills.push(Arc::clone(self));
        }
    }

    /// Bytes of the WAL that are not in the database file.
    pub(super) fn left_to_backfill(&self, header: &WalIndexHeader) -> u64 {
        let frames = header
            .max_frame
            .get()
            .saturating_sub(header.backfilled.get());
        u64::from(frames) * u64::from(self.meta.page_size.get())
    }

    /// Notes how long the transaction was that led from one header to the other, if it was large.
    pub(super) fn note_large(&self, before: &WalIndexHeader, after: &WalIndexHeader) {
        let begun = if before.salts == after.salts {
            u64::from(before.max_frame.get())
        } else {
            0
        };
        let frames = u64::from(after.max_frame.get()).saturating_sub(begun);
        let bytes = frames * u64::from(self.meta.page_size.get());
        if bytes > self.core.settings.wal_soft_bytes {
            let until = u64::from(after.max_frame.get()) + frames;
            self.backfilled.large.store(bytes, Ordering::Relaxed);
            self.backfilled.outrun_at.store(until, Ordering::Relaxed);
        }
    }

    /// Whether one large transaction is still to be copied beside the writers, and the WAL has not grown by as much
    /// again since, nor, by a row of such ones, beyond four times that.
    pub(super) fn copies_large(&self, header: &WalIndexHeader, since_restart: u64) -> bool {
        let state = &self.backfilled;
        self.left_to_backfill(header) > self.core.settings.wal_soft_bytes
            && u64::from(header.max_frame.get()) < state.outrun_at.load(Ordering::Relaxed)
            && since_restart < state.large.load(Ordering::Relaxed).saturating_mul(4)
    }

    /// Whether so much of the WAL is left that whoever closes the database should have it backfilled first.
    pub(crate) fn has_much_to_backfill(&self) -> bool {
        let least = self.core.settings.wal_backfill_bytes / LEFT_FOR_CLOSE;
        self.header()
            .is_ok_and(|header| self.left_to_backfill(&header) > least)
    }

    /// Copies what is captured into the database file, as far as readers let it, while writers go on; where a
    /// stored chunk waits for this database it waits no longer. Blocks. Does nothing once the database is closed.
    pub(crate) fn backfill(&self, scratch: &mut Scratch) -> Result<(), Error> {
        self.interrupt_old_reads();
        let mut checkpointing = self.lock_checkpointing();
        let Some(Checkpointing { mover, pin: held }) = checkpointing.as_mut() else {
            return Ok(());
        };
        self.check()?;
        let failed = |what| move |e| Error::new(Code::Internal, what).caused_by(e);
        let pin = match held.take() {
            Some(pin) => pin,
            None => open(
                &self.database_file,
                Purpose::Checkpointer,
                &self.core.parts.clock,
            )
            .map_err(failed("open a connection for a backfill"))?,
        };
        pin.as_engine(|c| c.execute_batch("BEGIN; SELECT 1 FROM sqlite_schema LIMIT 1"))
            .map_err(failed("begin a backfill"))?;
        let done = self.backfill_pinned(mover, scratch);
        pin.as_engine(|c| c.execute_batch("COMMIT"))
            .map_err(failed("end a backfill"))?;
        *held = Some(pin);
        done
    }

    /// The same once the read transaction has begun; it must not end before this returns.
    fn backfill_pinned(&self, mover: &Sqlite, scratch: &mut Scratch) -> Result<(), Error> {
        let (head, captured, lsn) = {
            let mut slot = self.lock_capture();
            let header = self.capture_locked(&mut slot, scratch, Made::Live)?;
            (*slot.capture.head(), header, slot.last_lsn)
        };
        self.core.journal.sync_to(lsn)?;
        crash_point!("backfill.before_copy");
        let copied = checkpoint_pragma(mover, "PASSIVE");
        crash_point!("backfill.after_copy");
        // Also where it failed: capture has to know whether the life may end.
        let (after, ended) = {
            let mut slot = self.lock_capture();
            let after = self.header().inspect_err(|error| self.poison(error))?;
            let ended = slot.capture.checkpointed(&after);
            (after, ended.map_err(|e| self.passed_capture(&e))?)
        };
        copied.map_err(|e| Error::new(Code::Internal, "backfill a WAL").caused_by(e))?;
        self.backfilled.last.set(&after);
        if !self.core.journal.waits_for_checkpoint(self.meta.id) {
            return Ok(());
        }
        if !ended {
            let io = |e| Error::io("sync a WAL", e);
            self.with_files(|files| files.sync_wal().map_err(io))?;
            crate::disk::sync_parent(&self.database_file).map_err(io)?;
        }
        crash_point!("backfill.before_state");
        self.write_state(head, Some(wal_position(&captured)))?;
        crash_point!("backfill.after_state");
        self.core.journal.set_checkpointed(self.meta.id, head.txid);
        self.core.journal.collect()
    }
}
