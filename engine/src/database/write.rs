//! Writing: the gate, the engine's transaction, the ticket.
//!
//! Every statement that SQLite does not call read-only runs here: behind the FIFO gate, inside a transaction
//! that the engine opens and commits. COMMIT is run to its end and its result read; rows are handed out only
//! after it. Admission (journal bound, gate queue) is checked before the first write, never after COMMIT.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tidelog_wal::record::Annotation;
use tidelog_wal::shm::WalIndexHeader;
use tokio::sync::OwnedSemaphorePermit;

use super::OpenDb;
use super::ticket::Ticket;
use crate::capture::{CommitNote, Head};
use crate::crash_point;
use crate::error::{Code, Error};
use crate::sql::connection::{Purpose, Sqlite, open};
use crate::sql::own;
use crate::sql::policy::Permission;
use crate::sql::run::sql_error;

/// The write gate of one database, held.
#[derive(Debug)]
pub(crate) struct Gate {
    database: Arc<OpenDb>,
    /// Whoever holds it captures what it commits.
    own_capture: bool,
    _permit: OwnedSemaphorePermit,
}

/// Capture that is owed for commits behind a gate, by whoever took it with [`Gate::owing`]. What is not paid is left
/// to the pump.
#[derive(Debug)]
pub(crate) struct Owed {
    database: Arc<OpenDb>,
    paid: bool,
}

impl Owed {
    /// Captures, on this thread.
    pub(crate) fn pay(mut self) -> Result<Head, Error> {
        self.paid = true;
        // Where it fails the database is poisoned, and the pump could do no more.
        self.database.capture_now()
    }
}

impl Drop for Owed {
    fn drop(&mut self) {
        if !self.paid {
            self.database.mark_dirty();
        }
    }
}

impl OpenDb {
    /// A connection for [`Gate::raw_transaction`], to be opened before the gate is taken: nobody waits for that then.
    /// Blocks.
    pub(crate) fn raw_connection(&self) -> Result<Sqlite, Error> {
        let clock = &self.core.parts.clock;
        let failed = |e| Error::new(Code::Internal, "open a connection for raw pages").caused_by(e);
        open(&self.database_file, Purpose::RawPages, clock).map_err(failed)
    }

    /// Waits for the write gate, first come first served.
    pub(crate) async fn gate(self: &Arc<Self>) -> Result<Gate, Error> {
        self.core.admit()?;
        let gate = self.gate_unasked().await?;
        self.touch();
        Ok(gate)
    }

    /// Waits for the write gate to write nothing: neither admission nor idleness are concerned.
    pub(crate) async fn gate_unasked(self: &Arc<Self>) -> Result<Gate, Error> {
        self.check()?;
        let settings = &self.core.settings;
        let busy = |what: String| Error::new(Code::DatabaseBusy, what);
        let semaphore = Arc::clone(&self.gate);
        let permit = if let Ok(permit) = Arc::clone(&semaphore).try_acquire_owned() {
            permit
        } else {
            if self.gate_queue.fetch_add(1, Ordering::AcqRel) >= settings.gate_queue_max {
                self.gate_queue.fetch_sub(1, Ordering::AcqRel);
                let what = format!("{} writers wait already", settings.gate_queue_max);
                return Err(Error::new(Code::Overloaded, what));
            }
            let waiting = &self.core.meters.gates_waiting;
            waiting.fetch_add(1, Ordering::Relaxed);
            let waited = tokio::time::timeout(settings.gate_timeout, semaphore.acquire_owned());
            let waited = waited.await;
            waiting.fetch_sub(1, Ordering::Relaxed);
            self.gate_queue.fetch_sub(1, Ordering::AcqRel);
            match waited {
                Ok(Ok(permit)) => permit,
                Ok(Err(_)) => {
                    return Err(busy("the database is closing; try again".to_owned()));
                }
                Err(_) => {
                    let ms = settings.gate_timeout.as_millis();
                    return Err(busy(format!("another write held the database for {ms} ms")));
                }
            }
        };
        self.check()?;
        Ok(Gate {
            database: Arc::clone(self),
            own_capture: false,
            _permit: permit,
        })
    }
}

/// What a write transaction returned: what its closure answered, and the ticket of the commit, if any page
/// or counter changed.
#[derive(Debug)]
pub(crate) struct Written<T> {
    pub(crate) value: T,
    pub(crate) ticket: Option<Ticket>,
}

impl Gate {
    /// From now on the caller captures what is committed, who is about to wait for it anyway: the pump is not woken
    /// for every commit.
    pub(crate) fn owing(&mut self) -> Owed {
        self.own_capture = true;
        Owed {
            database: Arc::clone(&self.database),
            paid: false,
        }
    }

    /// Has foreign keys enforced, or not, in the transactions that follow.
    pub(crate) fn enforce_foreign_keys(&self, on: bool) -> Result<(), Error> {
        self.database.with_writer(|sqlite| {
            let set = sqlite.enforce_foreign_keys(on);
            set.map_err(|error| sql_error(sqlite, error))
        })
    }

    /// Runs `work` in one IMMEDIATE transaction and commits it. An error of `work` rolls back. Blocks.
    pub(crate) fn transaction<T>(
        &self,
        permission: Permission,
        deadline: Option<u64>,
        annotations: Vec<Annotation>,
        work: impl FnOnce(&Sqlite) -> Result<T, Error>,
    ) -> Result<Written<T>, Error> {
        self.database.with_writer(|sqlite| {
            self.transaction_on(sqlite, permission, deadline, annotations, work)
        })
    }

    /// The same on a connection of the caller's, which must be in autocommit.
    pub(crate) fn transaction_on<T>(
        &self,
        sqlite: &Sqlite,
        permission: Permission,
        deadline: Option<u64>,
        annotations: Vec<Annotation>,
        work: impl FnOnce(&Sqlite) -> Result<T, Error>,
    ) -> Result<Written<T>, Error> {
        let database = &self.database;
        let before = database.header()?;
        sqlite
            .as_engine(|c| {
                c.prepare_cached(own::BEGIN_IMMEDIATE)?.execute([])?;
                // Reads the schema cookie: what a rewind took away would be called there still.
                c.prepare_cached(own::TOUCH)?.exists([])
            })
            .map_err(|error| {
                self.roll_back(sqlite);
                sql_error(sqlite, error)
            })?;
        database
            .pending
            .note(database.committed_txid(&before).next(), annotations.into());
        sqlite.permit(permission);
        sqlite.set_deadline(deadline);
        let outcome = work(sqlite);
        sqlite.set_deadline(None);
        let value = match outcome {
            Ok(value) => value,
            Err(error) => {
                self.roll_back(sqlite);
                return Err(error);
            }
        };
        crash_point!("commit.before");
        // Before COMMIT: capture may see the commit before this thread goes on.
        let ticket = database
            .pending
            .issue(database, database.committed_txid(&before).next());
        let committed = sqlite.as_engine(|c| c.prepare_cached(own::COMMIT)?.execute([]));
        if let Err(error) = committed {
            return Err(self.commit_failed(sqlite, error));
        }
        crash_point!("commit.after");
        self.committed(&before, ticket)
            .map(|ticket| Written { value, ticket })
    }

    /// Runs `commit`, which ends a transaction that a client opened behind this gate; `before` is the header as
    /// it stood when the gate was taken. What SQLite refuses (a
    /// constraint, a savepoint that is none) leaves the transaction open, as in SQLite.
    pub(crate) fn commit_on(
        &self,
        sqlite: &Sqlite,
        before: &WalIndexHeader,
        annotations: Vec<Annotation>,
        commit: impl FnOnce(&Sqlite) -> rusqlite::Result<()>,
    ) -> Result<Option<Ticket>, Error> {
        let database = &self.database;
        let txid = database.committed_txid(before).next();
        database.pending.note(txid, annotations.into());
        crash_point!("commit.before");
        let ticket = database.pending.issue(database, txid);
        if let Err(error) = commit(sqlite) {
            use rusqlite::ErrorCode as C;
            let damaged = matches!(
                error.sqlite_error_code(),
                Some(C::SystemIoFailure | C::DiskFull | C::DatabaseCorrupt | C::CannotOpen)
            );
            return Err(if !damaged && !sqlite.raw().is_autocommit() {
                sql_error(sqlite, error)
            } else {
                self.commit_failed(sqlite, error)
            });
        }
        if !sqlite.raw().is_autocommit() {
            // An inner savepoint was released.
            return Ok(None);
        }
        crash_point!("commit.after");
        self.committed(before, ticket)
    }

    /// Runs one statement in autocommit: VACUUM alone needs it.
    pub(crate) fn autocommit<T>(
        &self,
        work: impl FnOnce(&Sqlite) -> Result<T, Error>,
    ) -> Result<Written<T>, Error> {
        self.database
            .with_writer(|sqlite| self.autocommit_on(sqlite, work))
    }

    /// The same on a connection of the caller's.
    pub(crate) fn autocommit_on<T>(
        &self,
        sqlite: &Sqlite,
        work: impl FnOnce(&Sqlite) -> Result<T, Error>,
    ) -> Result<Written<T>, Error> {
        let database = &self.database;
        let before = database.header()?;
        let txid = database.committed_txid(&before).next();
        // Whoever was rolled back before may have left a note for this number.
        database.pending.note(txid, CommitNote::default());
        let ticket = database.pending.issue(database, txid);
        let value = work(sqlite)?;
        self.committed(&before, ticket)
            .map(|ticket| Written { value, ticket })
    }

    /// The database it is the gate of.
    pub(crate) const fn database(&self) -> &Arc<OpenDb> {
        &self.database
    }

    /// Runs `work` in one IMMEDIATE transaction on `sqlite`, a connection of its own that may write raw pages
    /// ([`OpenDb::raw_connection`]), and commits it. An error of `work` rolls back; one behind COMMIT poisons the
    /// database. Afterwards the caller closes the connection and does nothing else with it: its caches are not to be
    /// trusted (HAZARDS W0c). Blocks.
    pub(crate) fn raw_transaction<T>(
        &self,
        sqlite: &Sqlite,
        note: CommitNote,
        work: impl FnOnce(&rusqlite::Connection) -> Result<T, Error>,
    ) -> Result<Written<T>, Error> {
        let database = &self.database;
        database.check()?;
        let before = database.header()?;
        let txid = database.committed_txid(&before).next();
        sqlite
            .as_engine(|c| c.execute_batch("BEGIN IMMEDIATE"))
            .map_err(|error| sql_error(sqlite, error))?;
        database.pending.note(txid, note);
        let value = match sqlite.as_engine(work) {
            Ok(value) => value,
            Err(error) => {
                self.roll_back(sqlite);
                database.pending.note(txid, CommitNote::default());
                return Err(error);
            }
        };
        crash_point!("raw.before_commit");
        let ticket = database.pending.issue(database, txid);
        if let Err(error) = sqlite.as_engine(|c| c.execute_batch("COMMIT")) {
            return Err(self.commit_failed(sqlite, error));
        }
        let committed = self.committed(&before, ticket);
        // Behind it the commit stands, whatever fails.
        let ticket = committed.inspect_err(|error| database.poison(error))?;
        Ok(Written { value, ticket })
    }

    /// Reads as the engine on a fresh connection, closed afterwards. Blocks.
    pub(crate) fn fresh_read<T>(
        &self,
        work: impl FnOnce(&rusqlite::Connection) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let database = &self.database;
        let clock = &database.core.parts.clock;
        let failed = |e| Error::new(Code::Internal, "open a reader").caused_by(e);
        let sqlite = open(&database.database_file, Purpose::Reader, clock).map_err(failed)?;
        let read = sqlite.as_engine(work);
        sqlite.close().map_err(failed)?;
        read
    }

    /// The ticket, if anything was committed; sees to it that capture follows.
    fn committed(&self, before: &WalIndexHeader, ticket: Ticket) -> Result<Option<Ticket>, Error> {
        let database = &self.database;
        let after = database.header()?;
        let txid = database.committed_txid(&after);
        match after.change.wrapping_sub(before.change) {
            0 => return Ok(None),
            1 => {}
            more => {
                let what = format!("one transaction counted as {more} commits up to {txid}");
                let error = Error::internal(what);
                database.poison(&error);
                return Err(error);
            }
        }
        database.note_large(before, &after);
        let mut restarted = false;
        if database.wants_restart(&after) {
            let scratches = &database.core.scratches;
            match scratches.with(|scratch| database.restart_wal_soon(&after, scratch)) {
                Ok(done) => restarted = done,
                Err(error) if database.is_poisoned() => return Err(after_commit(error)),
                // The commit is captured or will be; the WAL is restarted after a later one.
                Err(error) => {
                    tracing::warn!(database = %database.meta.id, %error, "not checkpointed yet");
                }
            }
        } else {
            database.backfill_if_grown(&after);
        }
        let behind = txid.since(database.head().txid).unwrap_or(0);
        if !restarted && behind > RUN_AHEAD_COMMITS {
            database.capture_now().map_err(after_commit)?;
        } else if !restarted && !self.own_capture {
            database.mark_dirty();
        }
        Ok(Some(ticket))
    }

    /// Rolls back; the database is poisoned if it cannot.
    pub(crate) fn roll_back(&self, sqlite: &Sqlite) {
        if sqlite.raw().is_autocommit() {
            return;
        }
        if let Err(error) = sqlite.as_engine(|c| c.execute_batch("ROLLBACK")) {
            let error = Error::new(Code::Internal, "roll back a transaction").caused_by(error);
            self.database.poison(&error);
        }
    }

    /// A COMMIT that failed: still open (a deferred constraint, a busy lock) means rolled back and nothing
    /// happened; anything else is unknown until the files are read again.
    fn commit_failed(&self, sqlite: &Sqlite, error: rusqlite::Error) -> Error {
        use rusqlite::ErrorCode as C;
        let harmless = matches!(
            error.sqlite_error_code(),
            Some(C::ConstraintViolation | C::DatabaseBusy | C::OperationInterrupted)
        );
        if harmless && !sqlite.raw().is_autocommit() {
            self.roll_back(sqlite);
            return sql_error(sqlite, error);
        }
        let code = match error.sqlite_error_code() {
            Some(C::DiskFull) => Code::DiskFull,
            _ => Code::OutcomeUnknown,
        };
        let error = Error::new(
            code,
            "commit: the outcome shows when the database is opened anew",
        )
        .caused_by(error);
        self.database.poison(&error);
        error
    }
}

/// What fails behind a COMMIT does not undo it: the caller hears that it stands, not that it failed.
pub(crate) fn after_commit(error: Error) -> Error {
    let what = "the write is committed, but what follows it failed; it shows when the database is read again";
    Error::new(Code::OutcomeUnknown, what)
        .with("committed", true)
        .caused_by(error)
}

/// A writer may run ahead of capture by so many commits; then it captures them itself.
const RUN_AHEAD_COMMITS: u64 = 4096;

impl OpenDb {
    /// Runs `work` on the writer connection, opening it if need be. The caller holds the gate.
    fn with_writer<T>(&self, work: impl FnOnce(&Sqlite) -> Result<T, Error>) -> Result<T, Error> {
        self.check()?;
        let taken = self.lock_connections().writer.take();
        let sqlite = match taken {
            Some(sqlite) => sqlite,
            None => open(&self.database_file, Purpose::Writer, &self.core.parts.clock)
                .map_err(|e| Error::new(Code::Internal, "open the writer").caused_by(e))?,
        };
        let result = work(&sqlite);
        if sqlite.raw().is_autocommit() && !sqlite.raw().is_busy() {
            self.lock_connections().writer = Some(sqlite);
        } else {
            let error = Error::internal("the writer was left inside a transaction");
            self.poison(&error);
            self.lock_connections().writer = Some(sqlite);
        }
        result
    }
}
