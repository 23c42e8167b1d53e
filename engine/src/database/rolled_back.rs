//! Idempotency-Keys whose effects a rewind took back: a late retry with one of them is neither replayed as
//! success nor run twice.
//!
//! They stand in the system database; this is what the running node looks at. Of a restore that an earlier process
//! life left open it is not known yet what it took back: until that is decided, no key of its database begins anew.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tidelog_wal::DatabaseId;

use crate::error::{Code, Error};

/// The keys, by database.
#[derive(Debug, Default)]
pub(crate) struct RolledBack {
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    keys: HashMap<DatabaseId, HashSet<String>>,
    /// Databases with a restore that is not decided, by its operation.
    undecided: HashMap<String, DatabaseId>,
}

impl RolledBack {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers keys.
    pub(crate) fn add(&self, database: DatabaseId, keys: &[String]) {
        if keys.is_empty() {
            return;
        }
        let mut known = self.lock();
        let of = known.keys.entry(database).or_default();
        of.extend(keys.iter().cloned());
    }

    /// Says that it is not known what an operation took back of a database.
    pub(crate) fn undecided(&self, operation: String, database: DatabaseId) {
        self.lock().undecided.insert(operation, database);
    }

    /// Says that everything is known of an operation.
    pub(crate) fn decided(&self, operation: &str) {
        self.lock().undecided.remove(operation);
    }

    /// Whether an operation of an earlier life is not decided yet.
    pub(crate) fn waits(&self) -> bool {
        !self.lock().undecided.is_empty()
    }

    /// Refuses a key whose effect was taken back, or may have been.
    pub(crate) fn check(&self, database: DatabaseId, key: &str) -> Result<(), Error> {
        let known = self.lock();
        if known
            .keys
            .get(&database)
            .is_some_and(|keys| keys.contains(key))
        {
            return Err(Error::new(
                Code::IdempotencyResultRolledBack,
                "the first call with this Idempotency-Key succeeded and a restore took its effect back; to run \
                 it again, use another key",
            ));
        }
        if known.undecided.values().any(|of| *of == database) {
            return Err(Error::new(
                Code::IdempotencyInProgress,
                "the server stopped during a restore of this database and finds out now which calls it took \
                 back; send the request again with the same Idempotency-Key",
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_key_begins_anew_before_it_is_known_what_was_taken_back() {
        let (here, elsewhere) = (
            DatabaseId::from_bytes([1; 16]),
            DatabaseId::from_bytes([2; 16]),
        );
        let all = RolledBack::default();
        let code = |database, key: &str| all.check(database, key).err().map(|error| error.code());
        all.undecided("op".to_owned(), here);
        assert_eq!(code(here, "k"), Some(Code::IdempotencyInProgress));
        assert_eq!(code(elsewhere, "k"), None);
        all.add(here, &["k".to_owned()]);
        assert_eq!(code(here, "k"), Some(Code::IdempotencyResultRolledBack));
        assert!(all.waits());
        all.decided("op");
        assert!(!all.waits());
        assert_eq!(code(here, "k"), Some(Code::IdempotencyResultRolledBack));
        assert_eq!(code(here, "another"), None);
    }
}
