//! Databases that something reads for long: a restore, an archive, an export.
//!
//! While one is held, nothing of it is marked. Take the hold before the manifest is read: what was marked
//! before that is not planned with, and what was planned with is not marked.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tidelog_wal::DatabaseId;

type Counts = HashMap<DatabaseId, usize>;

/// Which databases are held now.
#[derive(Debug, Default)]
pub(crate) struct Holds(Arc<Mutex<Counts>>);

fn lock(counts: &Mutex<Counts>) -> MutexGuard<'_, Counts> {
    counts.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Holds {
    /// Holds a database until the answer is dropped.
    pub(crate) fn hold(&self, id: DatabaseId) -> Hold {
        *lock(&self.0).entry(id).or_default() += 1;
        Hold {
            counts: Arc::clone(&self.0),
            id,
        }
    }

    /// Whether anybody holds it.
    pub(crate) fn is_held(&self, id: DatabaseId) -> bool {
        lock(&self.0).contains_key(&id)
    }
}

/// Keeps a database from being marked.
#[derive(Debug)]
pub(crate) struct Hold {
    counts: Arc<Mutex<Counts>>,
    id: DatabaseId,
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut counts = lock(&self.counts);
        if let Some(count) = counts.get_mut(&self.id) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.id);
            }
        }
    }
}
