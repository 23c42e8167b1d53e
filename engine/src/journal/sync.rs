//! Syncing: one sync serves every writer that waits.
//!
//! Whoever syncs has the turn; who comes meanwhile waits for it, and mostly finds its records synced then. A sync covers all
//! that was appended when it began, in the open chunk and in those before it. One that fails poisons the journal.

use std::sync::Arc;

use super::{Journal, lock};
use crate::boxed;
use crate::crash_point;
use crate::error::Error;

impl Journal {
    /// Makes every record up to `lsn` durable on this disk. Blocks; one sync serves all that wait.
    pub fn sync_to(&self, lsn: u64) -> Result<(), Error> {
        if *self.synced.borrow() >= lsn {
            return Ok(());
        }
        let turn = lock(&self.syncing);
        if *self.synced.borrow() >= lsn {
            return Ok(());
        }
        self.check_poison()?;
        let (files, appended) = {
            let state = lock(&self.state);
            let mut files: Vec<_> = state
                .unsynced
                .iter()
                .map(|(_, file)| Arc::clone(file))
                .collect();
            files.push(Arc::clone(&state.open.file));
            (files, state.next_lsn - 1)
        };
        for file in files {
            if let Err(error) = file.sync() {
                drop(turn);
                self.poison(Error::io("sync the journal", error));
                return self.check_poison();
            }
        }
        crash_point!("journal.after_sync");
        lock(&self.state)
            .unsynced
            .retain(|(last, _)| *last > appended);
        self.synced.send_replace(appended);
        drop(turn);
        Ok(())
    }

    /// The loop of the sync thread: syncs whenever somebody waits. Returns when the journal is closed or
    /// poisoned.
    pub fn sync_loop(&self) {
        loop {
            let wanted = {
                let mut guard = lock(&self.sync_wanted);
                while guard.0 <= *self.synced.borrow() && !guard.1 {
                    guard = self
                        .sync_wake
                        .wait(guard)
                        .unwrap_or_else(std::sync::PoisonError::into_inner);
                }
                if guard.1 {
                    return;
                }
                guard.0
            };
            if self.sync_to(wanted).is_err() {
                return;
            }
        }
    }

    /// Ends the sync thread.
    pub fn stop_syncing(&self) {
        lock(&self.sync_wanted).1 = true;
        self.sync_wake.notify_all();
    }

    pub(super) fn want_sync(&self, lsn: u64) {
        let mut guard = lock(&self.sync_wanted);
        if guard.0 < lsn {
            guard.0 = lsn;
            self.sync_wake.notify_one();
        }
    }

    /// Waits until every record up to `lsn` is synced.
    #[boxed]
    pub async fn wait_synced(&self, lsn: u64) -> Result<(), Error> {
        self.want_sync(lsn);
        self.wait(&self.synced, lsn).await
    }
}
