//! Checkpoints: with [`super::backfill`] the only code that moves frames from a WAL into a database file.
//!
//! A frame must be captured *and journaled, synced* before it is backfilled: copying an uncaptured frame
//! destroys the only old image of its page (DESIGN 5.3). Most of the copying is done beside the writers, that of one
//! large transaction too. When the WAL is long all the same, one checkpoint runs behind the write gate: everything is
//! captured and synced, PASSIVE copies what is left, which is little, and the next writer starts the WAL anew.
//!
//! TRUNCATE happens only when a database is closed and one connection is left.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tidelog_wal::PageSize;
use tidelog_wal::shm::WalIndexHeader;

use std::sync::{MutexGuard, PoisonError, TryLockError};

use super::backfill::Checkpointing;
use super::{CaptureSlot, Made, OpenDb};
use crate::capture::{CaptureError, Scratch, salt_words};
use crate::crash_point;
use crate::error::{Code, Error};
use crate::journal::chunk::WalPosition;
use crate::sql::connection::Sqlite;

/// What SQLite answers to `PRAGMA wal_checkpoint`.
pub(super) fn checkpoint_pragma(sqlite: &Sqlite, mode: &str) -> rusqlite::Result<bool> {
    let sql = format!("PRAGMA wal_checkpoint({mode})");
    sqlite
        .as_engine(|c| c.query_row(&sql, [], |row| row.get::<_, i64>(0)))
        .map(|busy| busy == 0)
}

/// Where the WAL stood when something was done about it: its life, told by its first salt, which SQLite counts up with
/// every one, and its last frame. It says when to look again and proves nothing.
#[derive(Debug, Default)]
pub(super) struct WalMark(AtomicU64);

impl WalMark {
    pub(super) fn set(&self, header: &WalIndexHeader) {
        let [life, _] = header.salts.get();
        let mark = u64::from(life) << 32 | u64::from(header.max_frame.get());
        self.0.store(mark, Ordering::Relaxed);
    }

    /// Bytes by which the WAL has grown since: one that began anew by all it has, however long the one before was.
    pub(super) fn grown(&self, header: &WalIndexHeader, size: PageSize) -> u64 {
        let (mark, [life, _]) = (self.0.load(Ordering::Relaxed), header.salts.get());
        let before = if mark >> 32 == u64::from(life) {
            mark & u64::from(u32::MAX)
        } else {
            0
        };
        let frames = u64::from(header.max_frame.get()).saturating_sub(before);
        frames * u64::from(size.get())
    }
}

impl OpenDb {
    pub(super) fn lock_checkpointing(&self) -> MutexGuard<'_, Option<Checkpointing>> {
        self.checkpointing
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes by which the WAL has grown since it was last tried to restart it.
    fn since_restart(&self, header: &WalIndexHeader) -> u64 {
        self.last_restart.grown(header, self.meta.page_size)
    }

    /// Whether the WAL has grown enough since the last attempt for the gate's holder to restart it.
    pub(crate) fn wants_restart(&self, header: &WalIndexHeader) -> bool {
        self.since_restart(header) >= self.core.settings.wal_soft_bytes
    }

    /// Checkpoints everything, unless it is better done beside the writers: where one transaction alone is larger than
    /// `wal_soft_bytes`, or a backfill runs that does as well and the WAL is not much too long yet. Answers whether it
    /// did. The caller holds the write gate, so that no frame is added to `header`'s.
    pub(super) fn restart_wal_soon(
        self: &Arc<Self>,
        header: &WalIndexHeader,
        scratch: &mut Scratch,
    ) -> Result<bool, Error> {
        self.backfill_if_grown(header);
        let since_restart = self.since_restart(header);
        if self.copies_large(header, since_restart) {
            return Ok(false);
        }
        let checkpointing = match self.checkpointing.try_lock() {
            Ok(checkpointing) => checkpointing,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => {
                if since_restart < self.core.settings.wal_soft_bytes.saturating_mul(2) {
                    return Ok(false);
                }
                self.lock_checkpointing()
            }
        };
        self.restart_locked(checkpointing.as_ref(), scratch)
            .map(|()| true)
    }

    /// Checkpoints everything. The caller holds the write gate.
    ///
    /// A reader may keep part of the WAL from being backfilled; it is tried again after the WAL has grown by
    /// the same amount.
    pub(crate) fn restart_wal(&self, scratch: &mut Scratch) -> Result<(), Error> {
        let checkpointing = self.lock_checkpointing();
        self.restart_locked(checkpointing.as_ref(), scratch)
    }

    fn restart_locked(
        &self,
        checkpointing: Option<&Checkpointing>,
        scratch: &mut Scratch,
    ) -> Result<(), Error> {
        let checkpointer = &checkpointing.ok_or_else(closed)?.mover;
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
        self.last_restart.set(&header);
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

    pub(super) fn passed_capture(&self, error: &CaptureError) -> Error {
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
        let Checkpointing {
            mover: checkpointer,
            pin,
        } = self.lock_checkpointing().take().ok_or_else(closed)?;
        let shut = |error| Error::new(Code::Internal, "close a connection").caused_by(error);
        for connection in readers.into_iter().chain(writer).chain(pin) {
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
        let checkpointing = self.lock_checkpointing().take().ok_or_else(closed)?;
        let shut = |error| Error::new(Code::Internal, "close a connection").caused_by(error);
        checkpointing.mover.close().map_err(shut)?;
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
pub(super) fn wal_position(header: &WalIndexHeader) -> WalPosition {
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

#[cfg(test)]
mod tests {
    use tidelog_wal::PageCount;
    use tidelog_wal::checksum::{ByteOrder, Checksum};
    use tidelog_wal::frame::FrameNo;
    use tidelog_wal::header::Salts;

    use super::*;

    #[test]
    fn a_wal_that_began_anew_has_grown_by_all_of_it() {
        let size = PageSize::DEFAULT;
        let header = |life, frames| WalIndexHeader {
            change: 1,
            order: ByteOrder::Little,
            page_size: Some(size),
            max_frame: FrameNo::new(frames),
            n_pages: PageCount::new(1),
            checksum: Checksum::default(),
            salts: Salts::new([life, 9]),
            backfilled: FrameNo::ZERO,
            backfill_attempted: FrameNo::ZERO,
        };
        let mark = WalMark::default();
        assert_eq!(mark.grown(&header(7, 3), size), 3 * 4096);
        mark.set(&header(7, 3));
        assert_eq!(mark.grown(&header(7, 3), size), 0);
        assert_eq!(mark.grown(&header(7, 5), size), 2 * 4096);
        // Shorter than the one before, as long, and longer.
        for frames in [2, 3, 5] {
            assert_eq!(
                mark.grown(&header(8, frames), size),
                u64::from(frames) * 4096
            );
        }
    }
}
