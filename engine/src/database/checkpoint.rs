//! Checkpoints: the only code that moves frames from a WAL into a database file.
//!
//! A frame must be captured *and journaled, synced* before it is backfilled: copying an uncaptured frame
//! destroys the only old image of its page (DESIGN 5.3). So a checkpoint runs behind the write gate when the
//! WAL is long: everything is captured and synced, PASSIVE copies all, and the next writer starts the WAL anew.
//!
//! TRUNCATE happens only when a database is closed and one connection is left.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tidelog_wal::frame::FrameNo;
use tidelog_wal::shm::WalIndexHeader;

use std::sync::{MutexGuard, PoisonError};

use super::{CaptureSlot, Made, OpenDb};
use crate::capture::{CaptureError, Scratch, salt_words};
use crate::crash_point;
use crate::error::{Code, Error};
use crate::journal::chunk::WalPosition;
use crate::sql::connection::Sqlite;

/// What SQLite answers to `PRAGMA wal_checkpoint`.
fn checkpoint_pragma(sqlite: &Sqlite, mode: &str) -> rusqlite::Result<bool> {
    let sql = format!("PRAGMA wal_checkpoint({mode})");
    sqlite
        .as_engine(|c| c.query_row(&sql, [], |row| row.get::<_, i64>(0)))
        .map(|busy| busy == 0)
}

impl OpenDb {
    fn lock_checkpointing(&self) -> MutexGuard<'_, Option<Sqlite>> {
        self.checkpointing
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the WAL has grown enough since the last attempt for the gate's holder to restart it.
    pub(crate) fn wants_restart(&self, frame: FrameNo) -> bool {
        let frames = u64::from(frame.get());
        let since = frames.saturating_sub(self.last_restart_frame.load(Ordering::Relaxed));
        since * u64::from(self.meta.page_size.get()) >= self.core.settings.wal_soft_bytes
    }

    /// Checkpoints everything. The caller holds the write gate, so that no frame is added meanwhile.
    ///
    /// A reader may keep part of the WAL from being backfilled; it is tried again after the WAL has grown by
    /// the same amount.
    pub(crate) fn restart_wal(self: &Arc<Self>, scratch: &mut Scratch) -> Result<(), Error> {
        let checkpointing = self.lock_checkpointing();
        let checkpointer = checkpointing.as_ref().ok_or_else(closed)?;
        let mut slot = self.lock_capture();
        self.capture_locked(&mut slot, scratch, Made::Live)?;
        let head = *slot.capture.head();
        self.core.journal.sync_to(slot.last_lsn)?;
        crash_point!("checkpoint.before_backfill");
        checkpoint_pragma(checkpointer, "PASSIVE").map_err(|e| self.checkpoint_failed(e))?;
        crash_point!("checkpoint.after_backfill");
        let header = self.header()?;
        let ended = slot
            .capture
            .checkpointed(&header)
            .map_err(|e| self.passed_capture(&e))?;
        drop(slot);
        let next = if ended { 0 } else { header.max_frame.get() };
        self.last_restart_frame
            .store(u64::from(next), Ordering::Relaxed);
        if ended {
            crash_point!("checkpoint.before_state");
            self.write_state(head, Some(wal_position(&header)))?;
            crash_point!("checkpoint.after_state");
            self.core.journal.set_checkpointed(self.meta.id, head.txid);
            self.core.journal.collect()?;
        }
        Ok(())
    }

    fn checkpoint_failed(&self, error: rusqlite::Error) -> Error {
        let what = format!("checkpoint database {}", self.meta.id);
        let code = match &error {
            rusqlite::Error::SqliteFailure(f, _) if f.code == rusqlite::ErrorCode::DiskFull => {
                Code::DiskFull
            }
            _ => Code::Internal,
        };
        let error = Error::new(code, what).caused_by(error);
        self.poison(&error);
        error
    }

    fn passed_capture(&self, error: &CaptureError) -> Error {
        let what = format!("checkpoint of database {}: {error}", self.meta.id);
        let error = Error::new(Code::DatabaseCorrupt, what);
        self.poison(&error);
        error
    }

    /// Checkpoints, empties the WAL and closes every connection. The caller is the registry: it has made
    /// sure that nobody else holds or can get the database.
    ///
    /// The state file says `clean` only if everything went through; else opening proves the files again.
    pub(crate) fn close(self: &Arc<Self>) -> Result<(), Error> {
        let (writer, readers) = {
            let mut connections = self.lock_connections();
            (
                connections.writer.take(),
                std::mem::take(&mut connections.readers),
            )
        };
        let checkpointer = self.lock_checkpointing().take().ok_or_else(closed)?;
        let shut = |error| Error::new(Code::Internal, "close a connection").caused_by(error);
        for connection in readers.into_iter().chain(writer) {
            connection.close().map_err(shut)?;
        }
        // Held until the descriptors are gone: the pump, which may have the database queued, must not take
        // the emptied WAL for a discontinuity.
        let mut slot = self.lock_capture();
        let closed_clean = self.truncate(&checkpointer, &mut slot);
        checkpointer.close().map_err(shut)?;
        self.drop_files();
        drop(slot);
        closed_clean
    }

    /// Closes a database that was never handed out, and changes nothing of its files.
    pub(super) fn abandon(&self) -> Result<(), Error> {
        let checkpointer = self.lock_checkpointing().take().ok_or_else(closed)?;
        let shut = |error| Error::new(Code::Internal, "close a connection").caused_by(error);
        checkpointer.close().map_err(shut)?;
        self.drop_files();
        Ok(())
    }

    fn truncate(&self, last: &Sqlite, slot: &mut CaptureSlot) -> Result<(), Error> {
        self.capture_locked(slot, &mut Scratch::default(), Made::Live)?;
        let head = *slot.capture.head();
        self.core.journal.sync_to(slot.last_lsn)?;
        crash_point!("close.before_truncate");
        let done = checkpoint_pragma(last, "TRUNCATE").map_err(|e| self.checkpoint_failed(e))?;
        if !done {
            return Err(Error::internal(
                "the last connection could not empty the WAL",
            ));
        }
        crash_point!("close.after_truncate");
        self.write_state(head, None)?;
        crash_point!("close.after_state");
        self.core.journal.set_checkpointed(self.meta.id, head.txid);
        self.core.journal.collect()
    }
}

/// Where the end of the log stands.
fn wal_position(header: &WalIndexHeader) -> WalPosition {
    WalPosition {
        salts: salt_words(header.salts),
        frame: header.max_frame.get(),
        checksum: [header.checksum.s0, header.checksum.s1],
        change: header.change,
        pages: header.n_pages.get(),
    }
}

fn closed() -> Error {
    Error::internal("the database is closed")
}
