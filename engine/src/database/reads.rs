//! The read transactions of one open database, and the end of those that keep its WAL from starting anew.
//!
//! One that is older than `reader_max_age` is interrupted once the WAL is longer than `wal_hard_bytes`. Streams have
//! their own rule ([`crate::streams`]); nothing else of the engine reads through SQLite for long: images, copies and
//! verifications read pages ([`crate::copy`]).

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::OpenDb;
use crate::error::{Code, Error};
use crate::sql::connection::{Sqlite, Timing};

#[derive(Debug, Default)]
struct Running {
    next: u64,
    reads: HashMap<u64, One>,
}

#[derive(Debug)]
struct One {
    since: u64,
    timing: Timing,
    ended: Arc<AtomicBool>,
}

/// The read transactions that run.
#[derive(Debug, Default)]
pub(super) struct Reads {
    running: Mutex<Running>,
}

impl Reads {
    fn lock(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a transaction that begins `now` on a connection, whose statements end at `deadline`.
    pub(super) fn begin(&self, sqlite: &Sqlite, now: u64, deadline: Option<u64>) -> Read<'_> {
        let ended = Arc::new(AtomicBool::new(false));
        let mut running = self.lock();
        sqlite.set_deadline(deadline);
        running.next += 1;
        let id = running.next;
        let one = One {
            since: now,
            timing: sqlite.timing(),
            ended: Arc::clone(&ended),
        };
        running.reads.insert(id, one);
        drop(running);
        Read {
            reads: self,
            id,
            ended,
        }
    }

    /// Interrupts those that began at `before` or earlier.
    fn interrupt(&self, before: u64) {
        let running = self.lock();
        for one in running.reads.values().filter(|one| one.since <= before) {
            one.ended.store(true, Ordering::Release);
            one.timing.end_now();
        }
    }
}

/// A read transaction, until it is dropped.
#[derive(Debug)]
pub(super) struct Read<'a> {
    reads: &'a Reads,
    id: u64,
    ended: Arc<AtomicBool>,
}

impl Read<'_> {
    /// Says what it was interrupted for, if it was for its age.
    pub(super) fn judge<T>(&self, result: Result<T, Error>) -> Result<T, Error> {
        result.map_err(|error| {
            if !self.ended.load(Ordering::Acquire) || error.code() != Code::QueryTimeout {
                return error;
            }
            let what = "the read was ended: it kept the write-ahead log of the database from starting anew, \
                        which had become too long; read less at a time";
            Error::new(Code::QueryTimeout, what)
        })
    }
}

impl Drop for Read<'_> {
    fn drop(&mut self) {
        // From here on nobody moves the deadline of the connection, which others will use.
        self.reads.lock().reads.remove(&self.id);
    }
}

impl OpenDb {
    /// Ends read transactions that are too old while the WAL is too long.
    pub(crate) fn interrupt_old_reads(&self) {
        let settings = &self.core.settings;
        if self.wal_bytes() <= settings.wal_hard_bytes {
            return;
        }
        let age = u64::try_from(settings.reader_max_age.as_micros()).unwrap_or(u64::MAX);
        let now = self.core.parts.clock.monotonic_micros();
        if let Some(before) = now.checked_sub(age) {
            self.reads.interrupt(before);
        }
    }
}
