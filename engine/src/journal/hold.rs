//! Keeping the chunks that somebody reads: until a hold is dropped, no chunk or spool file goes that holds a commit of
//! its database after the one it names.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tidelog_wal::{DatabaseId, TxId};

use super::{Journal, lock};

/// What is held, by database: the commits after each of these.
#[derive(Debug, Default)]
pub(super) struct Holds(Mutex<HashMap<DatabaseId, Vec<TxId>>>);

impl Holds {
    fn lock(&self) -> MutexGuard<'_, HashMap<DatabaseId, Vec<TxId>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether somebody reads commit `txid` of a database, or may.
    pub(super) fn is_held(&self, database: DatabaseId, txid: TxId) -> bool {
        let held = self.lock();
        held.get(&database)
            .is_some_and(|after| after.iter().any(|after| *after < txid))
    }
}

/// Keeps chunks until it is dropped.
#[derive(Debug)]
pub(crate) struct ChunkHold {
    holds: Arc<Holds>,
    database: DatabaseId,
    after: TxId,
}

impl Drop for ChunkHold {
    fn drop(&mut self) {
        let mut held = self.holds.lock();
        if let Some(all) = held.get_mut(&self.database) {
            if let Some(at) = all.iter().position(|after| *after == self.after) {
                all.swap_remove(at);
            }
            if all.is_empty() {
                held.remove(&self.database);
            }
        }
    }
}

impl Journal {
    /// Keeps every commit of `database` after `after` that stands in this folder, now or later, until the answer is
    /// dropped.
    pub(crate) fn hold(&self, database: DatabaseId, after: TxId) -> ChunkHold {
        // Not while somebody decides what goes.
        let _deciding = lock(&self.state);
        let holds = Arc::clone(&self.holds);
        holds.lock().entry(database).or_default().push(after);
        ChunkHold {
            holds,
            database,
            after,
        }
    }
}
