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

#[cfg(test)]
mod tests {
    use tidelog_archive::env::SystemClock;
    use tidelog_wal::{Chain, ClusterId, DigestSeed, NamespaceId, PageSize, Term};

    use super::super::chunk::{ChunkDatabase, WalPosition};
    use super::super::{Append, JournalParts, Payload};
    use super::*;
    use crate::disk::StdDisk;

    /// A chunk that nothing else needs stays while a commit in it is held, and no longer.
    #[test]
    fn what_somebody_reads_is_not_collected() {
        let folder = tempfile::tempdir().expect("tempdir");
        let parts = JournalParts {
            folder: folder.path().to_owned(),
            disk: Arc::new(StdDisk),
            clock: Arc::new(SystemClock::default()),
            cluster: ClusterId::from_bytes([9; 16]),
            term: Term::FIRST,
            bytes_max: 1 << 30,
            chunk_bytes: 1 << 20,
        };
        let journal = Journal::create(parts, 1).expect("a journal");
        let (id, one) = (DatabaseId::from_bytes([1; 16]), TxId::FIRST);
        let database = ChunkDatabase {
            id,
            namespace: NamespaceId::from_bytes([2; 16]),
            page_size: PageSize::DEFAULT,
            seed: DigestSeed::new(3),
            chain_before: Chain::default(),
        };
        let append = Append {
            txid: one,
            wal: WalPosition::default(),
            chain: Chain::default(),
            payload: Payload::Record(b"a record"),
        };
        journal.append(&database, &[append]).expect("appended");
        let sealed = journal.seal().expect("sealed").expect("a chunk");
        let (before, behind) = (journal.hold(id, TxId::ZERO), journal.hold(id, one));
        journal.set_shipped(&sealed);
        journal.set_settled(id, one);
        assert!(journal.waits_for_checkpoint(id));
        journal.set_checkpointed(id, one);
        assert!(!journal.waits_for_checkpoint(id));
        journal.collect().expect("collected");
        assert!(journal.chunk_file(sealed.id).is_some(), "it is read");
        drop(before);
        journal.collect().expect("collected");
        assert!(
            journal.chunk_file(sealed.id).is_none(),
            "what is behind it is read"
        );
        drop(behind);
    }
}
