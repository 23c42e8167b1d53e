//! What a chunk that takes no more records is kept for.
//!
//! It goes once it is stored, every database in it was checkpointed past its records (the journal is the redo log of the
//! SQLite files), they are settled, and nobody reads it. Beyond half the bound it goes unsettled: settling then reads the
//! object back. A spool file goes when its record is stored and checkpointed.

use std::path::PathBuf;

use tidelog_wal::{DatabaseId, NamespaceId, TxId};

use super::{ChunkId, Journal, Kept, State, lock, replay};
use crate::crash_point;
use crate::error::Error;

impl Journal {
    /// Keeps a stored chunk of an earlier life until its records are settled.
    pub fn keep_earlier(&self, chunk: &replay::FoundChunk) {
        let now = self.parts.clock.monotonic_micros();
        self.keep(chunk, Some(now), u64::MAX);
    }

    /// Keeps a chunk of which it is not known whether it is stored.
    pub fn keep_waiting(&self, chunk: &replay::FoundChunk) {
        let now = self.parts.clock.monotonic_micros();
        self.keep(chunk, None, now);
    }

    fn keep(&self, chunk: &replay::FoundChunk, shipped: Option<u64>, since: u64) {
        let kept = Kept {
            path: chunk.path.clone(),
            len: chunk.len,
            heads: chunk.heads.clone(),
            shipped,
            since,
        };
        let mut state = lock(&self.state);
        state.kept.insert(chunk.id, kept);
        for database in &chunk.databases {
            let marks = state.watermarks.entry(database.id).or_default();
            marks.namespace = database.namespace;
        }
    }

    /// Databases for whose checkpoint alone a stored chunk waits, stored `age_us` ago or longer; when the journal
    /// is crowded, whatever its age.
    pub fn wanting_checkpoint(&self, age_us: u64) -> Vec<(NamespaceId, DatabaseId)> {
        let now = self.parts.clock.monotonic_micros();
        let crowded = self.is_crowded();
        let state = lock(&self.state);
        let old = state.kept.values().filter(|chunk| {
            let waits = |at: u64| crowded || now.saturating_sub(at) >= age_us;
            chunk.shipped.is_some_and(waits)
        });
        let mut wanting: Vec<(NamespaceId, DatabaseId)> = old
            .flat_map(|chunk| &chunk.heads)
            .filter_map(|(id, txid)| {
                let marks = state.watermarks.get(id).copied().unwrap_or_default();
                (marks.checkpointed < *txid).then_some((marks.namespace, *id))
            })
            .collect();
        wanting.sort_unstable();
        wanting.dedup();
        wanting
    }

    /// Whether a stored chunk waits for a checkpoint of `database`.
    pub(crate) fn waits_for_checkpoint(&self, database: DatabaseId) -> bool {
        let state = lock(&self.state);
        let done = state
            .watermarks
            .get(&database)
            .map_or(TxId::ZERO, |marks| marks.checkpointed);
        let waits = |chunk: &Kept| {
            chunk.shipped.is_some() && chunk.heads.get(&database).is_some_and(|head| *head > done)
        };
        state.kept.values().any(waits)
    }

    /// Whether so much stands in the journal folder that what is stored has to go soon.
    pub fn is_crowded(&self) -> bool {
        self.bytes() > self.parts.bytes_max / 2
    }

    /// The file of a chunk that is still here.
    pub fn chunk_file(&self, id: ChunkId) -> Option<PathBuf> {
        lock(&self.state)
            .kept
            .get(&id)
            .map(|kept| kept.path.clone())
    }

    /// Says that the SQLite file of `database` holds everything up to `txid`, synced.
    pub fn set_checkpointed(&self, database: DatabaseId, txid: TxId) {
        let mut state = lock(&self.state);
        let mark = state.watermarks.entry(database).or_default();
        mark.checkpointed = mark.checkpointed.max(txid);
    }

    /// Says that `database` is settled up to `txid`.
    pub fn set_settled(&self, database: DatabaseId, txid: TxId) {
        let mut state = lock(&self.state);
        let mark = state.watermarks.entry(database).or_default();
        mark.settled = mark.settled.max(txid);
    }

    /// Counts a spool file, to be deleted with the chunks: when its record is shipped and checkpointed.
    pub fn add_spool(&self, path: PathBuf, database: DatabaseId, txid: TxId, len: u64) {
        lock(&self.state).spools.insert(path, (database, txid, len));
    }

    /// Deletes what nothing needs any more: stored, checkpointed, settled, and not being read. Beyond half the bound, stored and
    /// checkpointed suffices: settling then reads the objects back.
    pub fn collect(&self) -> Result<(), Error> {
        let crowded = self.is_crowded();
        let doomed: Vec<PathBuf> = {
            let mut state = lock(&self.state);
            let State {
                open,
                kept,
                watermarks,
                spools,
                ..
            } = &mut *state;
            let done = |id: &DatabaseId, txid: &TxId, settle: bool| {
                watermarks.get(id).is_some_and(|mark| {
                    mark.checkpointed >= *txid && (!settle || mark.settled >= *txid)
                }) && !self.holds.is_held(*id, *txid)
            };
            let free: Vec<ChunkId> = kept
                .iter()
                .filter(|(_, chunk)| {
                    chunk.shipped.is_some()
                        && chunk
                            .heads
                            .iter()
                            .all(|(id, txid)| done(id, txid, !crowded))
                })
                .map(|(id, _)| *id)
                .collect();
            let mut doomed: Vec<PathBuf> = free
                .iter()
                .filter_map(|id| kept.remove(id))
                .map(|chunk| chunk.path)
                .collect();
            spools.retain(|path, (id, txid, _)| {
                let free = done(id, txid, false)
                    && !open.heads.contains_key(id)
                    && !kept
                        .values()
                        .any(|c| c.shipped.is_none() && c.heads.contains_key(id));
                if free {
                    doomed.push(path.clone());
                }
                !free
            });
            doomed
        };
        for path in doomed {
            crash_point!("journal.before_remove");
            self.parts
                .disk
                .remove(&path)
                .map_err(|e| Error::io(format!("remove {}", path.display()), e))?;
        }
        Ok(())
    }
}
