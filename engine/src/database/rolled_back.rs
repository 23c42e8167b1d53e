//! Idempotency-Keys whose effects a rewind took back: a late retry with one of them is neither replayed as
//! success nor run twice.
//!
//! They stand in the system database; this is what the running node looks at.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};

use tidelog_wal::DatabaseId;

use crate::error::{Code, Error};

/// The keys, by database.
#[derive(Debug, Default)]
pub(crate) struct RolledBack {
    keys: Mutex<HashMap<DatabaseId, HashSet<String>>>,
}

impl RolledBack {
    /// Remembers keys.
    pub(crate) fn add(&self, database: DatabaseId, keys: &[String]) {
        if keys.is_empty() {
            return;
        }
        let mut all = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry(database)
            .or_default()
            .extend(keys.iter().cloned());
    }

    /// Refuses a key whose effect was taken back.
    pub(crate) fn check(&self, database: DatabaseId, key: &str) -> Result<(), Error> {
        let all = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        if all.get(&database).is_none_or(|keys| !keys.contains(key)) {
            return Ok(());
        }
        Err(Error::new(
            Code::IdempotencyResultRolledBack,
            "the first call with this Idempotency-Key succeeded and a restore took its effect back; to run \
             it again, use another key",
        ))
    }
}
