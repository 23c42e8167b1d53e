//! Records go into the open chunk: all that are appended at once, in order, or none of them.
//!
//! They are written when an append returns, not synced. A chunk that has grown to its length takes no more records, whether
//! or not the store is there; where the next one cannot be made, the open one grows on and the next append tries again.

use std::collections::HashMap;
use std::sync::Arc;

use tidelog_wal::{Chain, TxId};

use super::chunk::{ChunkDatabase, ChunkHeader, Entry, EntryAt, WalPosition};
use super::{Journal, JournalParts, Kept, OpenChunk, SealedChunk, State, chunk, chunk_path, lock};
use crate::crash_point;
use crate::disk::AppendFile;
use crate::error::{Code, Error};

/// The bytes of a record, or where they stand.
#[derive(Debug, Clone, Copy)]
pub enum Payload<'a> {
    /// The canonical record.
    Record(&'a [u8]),
    /// A record whose bytes stand, synced, in a spool file.
    Spooled {
        /// Its length.
        len: u64,
        /// BLAKE3 of it.
        blake3: [u8; 32],
        /// The record's header as canonical bytes.
        header: &'a [u8],
    },
}

/// A record to append.
#[derive(Debug, Clone, Copy)]
pub struct Append<'a> {
    /// Its number in its database.
    pub txid: TxId,
    /// Where the WAL stood.
    pub wal: WalPosition,
    /// The chain after it.
    pub chain: Chain,
    /// Its bytes.
    pub payload: Payload<'a>,
}

pub(super) fn create_chunk(
    parts: &JournalParts,
    seq: u64,
    first_lsn: u64,
) -> Result<OpenChunk, Error> {
    let id = (parts.term, seq);
    let path = chunk_path(&parts.folder, id);
    let header = ChunkHeader {
        term: parts.term,
        seq,
        first_lsn,
        cluster: parts.cluster,
    };
    let io = |error| Error::io(format!("create journal chunk {}", path.display()), error);
    let file: Arc<dyn AppendFile> = parts.disk.create(&path).map_err(io)?.into();
    if let Err(error) = file.write_at(0, &header.encode()) {
        // Its name must be free for the next attempt; what cannot be removed now fails that one.
        let _ = parts.disk.remove(&path);
        return Err(io(error));
    }
    Ok(OpenChunk {
        id,
        path,
        file,
        len: chunk::HEADER_LEN as u64,
        first_lsn,
        slots: HashMap::new(),
        heads: HashMap::new(),
        first_record_at: None,
        waited_for_since: None,
    })
}

impl Journal {
    /// Appends records of one database, in order; answers the local number of the last.
    ///
    /// They are written when this returns, not synced. On an error none of them counts.
    pub fn append(&self, database: &ChunkDatabase, records: &[Append<'_>]) -> Result<u64, Error> {
        self.check_poison()?;
        let mut guard = lock(&self.state);
        let state = &mut *guard;
        let mut buffer = std::mem::take(&mut state.buffer);
        buffer.clear();
        let known = state.open.slots.get(&database.id).copied();
        let slot = known.unwrap_or_else(|| slot_number(state.open.slots.len()));
        if known.is_none() {
            Entry::Database {
                slot,
                database: *database,
            }
            .encode(&mut buffer);
        }
        let first_lsn = state.next_lsn;
        for (lsn, append) in (first_lsn..).zip(records) {
            let at = EntryAt {
                slot,
                lsn,
                wal: append.wal,
                chain: append.chain,
            };
            match append.payload {
                Payload::Record(record) => Entry::Record { at, record }.encode(&mut buffer),
                Payload::Spooled {
                    len,
                    blake3,
                    header,
                } => {
                    Entry::Spooled {
                        at,
                        len,
                        blake3,
                        header,
                    }
                    .encode(&mut buffer);
                }
            }
        }
        crash_point!("journal.before_append");
        let open = &mut state.open;
        let written = open.file.write_at(open.len, &buffer);
        if let Err(error) = written {
            let cut = open.file.truncate(open.len);
            state.buffer = buffer;
            drop(guard);
            let error = Error::io("append to the journal", error);
            if let Err(cut) = cut {
                self.poison(Error::io("cut back the journal after a failed append", cut));
            }
            return Err(error);
        }
        crash_point!("journal.after_append");
        open.len += buffer.len() as u64;
        open.slots.insert(database.id, slot);
        let marks = state.watermarks.entry(database.id).or_default();
        marks.namespace = database.namespace;
        if let Some(last) = records.last() {
            open.heads.insert(database.id, last.txid);
            open.first_record_at
                .get_or_insert(self.parts.clock.monotonic_micros());
        }
        state.buffer = buffer;
        state.next_lsn += records.len() as u64;
        let appended = state.next_lsn - 1;
        let mut rolled = false;
        if state.open.len >= self.parts.chunk_bytes {
            match self.roll(state) {
                Ok(()) => rolled = true,
                // The records stand where they are; the next append tries again.
                Err(error) => tracing::warn!(%error, "the open chunk grows beyond its length"),
            }
        }
        drop(guard);
        self.appended.send_replace(appended);
        if rolled {
            // Its descriptor is held until it is synced.
            self.want_sync(appended);
        }
        self.ship_wake.notify_one();
        Ok(appended)
    }

    /// Begins the next chunk; the open one, which holds a record, takes no more.
    pub(super) fn roll(&self, state: &mut State) -> Result<(), Error> {
        let next = create_chunk(&self.parts, state.open.id.1 + 1, state.next_lsn)?;
        crash_point!("journal.after_roll");
        let old = std::mem::replace(&mut state.open, next);
        let last_lsn = state.next_lsn - 1;
        state.unsynced.push_back((last_lsn, old.file));
        let kept = Kept {
            path: old.path.clone(),
            len: old.len,
            heads: old.heads,
            shipped: None,
            since: old.first_record_at.unwrap_or(u64::MAX),
        };
        state.kept.insert(old.id, kept);
        state.sealed.push_back(SealedChunk {
            id: old.id,
            path: old.path,
            len: old.len,
            first_lsn: old.first_lsn,
            last_lsn,
        });
        Ok(())
    }

    /// Admission of a write that has not begun: refused when the journal is at its bound or poisoned.
    pub fn admit(&self) -> Result<(), Error> {
        self.check_poison()?;
        let bytes = self.bytes();
        if bytes < self.parts.bytes_max {
            return Ok(());
        }
        Err(Error::new(
            Code::JournalFull,
            format!(
                "the journal folder holds {bytes} bytes, its bound is {}; writes go on when the store has taken them",
                self.parts.bytes_max
            ),
        )
        .with("limit", self.parts.bytes_max)
        .with("used", bytes))
    }
}

fn slot_number(databases: usize) -> u32 {
    u32::try_from(databases).expect("a chunk holds fewer than 2^32 databases")
}
