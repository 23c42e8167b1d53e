//! What the last lives of this folder left: which of their records are stored, and which must go out again.
//!
//! A term that this folder's next life closed: chunks below its fence are stored; the records of the others go
//! out again, verbatim, under the new term. Chunk files stay as redo until their databases are checkpointed.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use tidelog_wal::record::{CommitRecord, RecordBody, RecordKind};
use tidelog_wal::{Chain, DatabaseId, Term, Timestamp, TxId};

use crate::capture::Head;
use crate::core::Core;
use crate::crash_point;
use crate::database::open::{Journaled, RecordPlace};
use crate::error::{Code, Error};
use crate::gap::Break;
use crate::journal::chunk::{ChunkDatabase, Entries, Entry};
use crate::journal::replay::{FoundRecord, Replay, replay};
use crate::journal::{Append, ChunkId, Payload, chunk_path};
use crate::spool::spool_path;

/// The journaled commits of a database, each once, in order, with whether it is stored.
pub(crate) type Commits = BTreeMap<TxId, (FoundRecord, bool)>;

/// What was found, ready for the registry.
#[derive(Debug, Default)]
pub(crate) struct Inherited {
    /// The commits each database's files may lack.
    pub(crate) journaled: HashMap<DatabaseId, Vec<Journaled>>,
    /// The newest commit of each database that is stored already.
    pub(crate) stored: HashMap<DatabaseId, Head>,
    /// Records that went out again.
    pub(crate) reappended: u64,
}

fn head(record: &FoundRecord) -> Head {
    Head {
        term: record.term,
        txid: record.txid,
        chain: record.chain,
        pages: record.pages,
        digest: record.digest,
        time: record.time,
    }
}

fn journaled_commit(core: &Core, id: DatabaseId, record: &FoundRecord, chunk: &Path) -> Journaled {
    Journaled {
        head: head(record),
        wal: record.wal,
        image: record.kind == RecordKind::Image,
        record: RecordPlace {
            chunk: chunk.to_owned(),
            range: record.range,
            spool: record.spooled.map(|note| {
                let folder = core.journal.folder();
                (spool_path(folder, id, record.txid), note.len)
            }),
        },
    }
}

/// Every commit of one database that stands in the journal folder, for opening it again in this life after
/// it was not closed cleanly. Nobody has it open: nothing of it is being appended.
pub(crate) fn journaled_of(core: &Core, id: DatabaseId) -> Result<Vec<Journaled>, Error> {
    let journal = &core.journal;
    let found = replay(&core.parts.disk, journal.folder(), journal.cluster())?;
    let records = found.records.get(&id).map_or(&[][..], Vec::as_slice);
    let commits = unify(id, records, |_| false)?;
    let made = commits.values().map(|(record, _)| {
        let path = chunk_path(journal.folder(), record.chunk);
        journaled_commit(core, id, record, &path)
    });
    Ok(made.collect())
}

/// Takes over what `replay` found without knowing what of it is stored: nothing goes out, everything is kept.
pub(crate) fn hold(core: &Core, replay: &Replay) -> Result<Inherited, Error> {
    let found = look(core, replay, |_| false)?;
    for chunk in &replay.chunks {
        core.journal.keep_waiting(chunk);
    }
    Ok(found)
}

/// What `replay` found, by database.
fn look(
    core: &Core,
    replay: &Replay,
    is_stored: impl Fn(ChunkId) -> bool,
) -> Result<Inherited, Error> {
    let paths: HashMap<ChunkId, &PathBuf> = replay
        .chunks
        .iter()
        .map(|chunk| (chunk.id, &chunk.path))
        .collect();
    let mut found = Inherited::default();
    for (id, records) in &replay.records {
        let commits = unify(*id, records, &is_stored)?;
        let mut journaled = Vec::with_capacity(commits.len());
        let mut before = None;
        for (record, stored) in commits.values() {
            let chunk = paths
                .get(&record.chunk)
                .ok_or_else(|| Error::internal("a found chunk"))?;
            if record.kind == RecordKind::Image {
                note_break(core, *id, record, chunk, before)?;
            }
            before = Some(record.time);
            if *stored {
                found.stored.insert(*id, head(record));
            }
            journaled.push(journaled_commit(core, *id, record, chunk));
        }
        found.journaled.insert(*id, journaled);
    }
    for (id, commits) in &found.journaled {
        for commit in commits {
            if let Some((path, len)) = &commit.record.spool {
                core.journal
                    .add_spool(path.clone(), *id, commit.head.txid, *len);
            }
        }
    }
    Ok(found)
}

/// Takes over what `replay` found. `fences` holds the first missing number of each closed term.
pub(crate) fn inherit(
    core: &Core,
    replay: &Replay,
    fences: &HashMap<Term, u64>,
) -> Result<Inherited, Error> {
    let is_stored = |(term, seq): ChunkId| fences.get(&term).is_some_and(|fence| seq < *fence);
    let mut found = look(core, replay, is_stored)?;
    // Beyond what is stored, then beyond what this loop has appended: a record may stand in two chunks.
    let mut done: HashMap<DatabaseId, TxId> = found
        .stored
        .iter()
        .map(|(id, head)| (*id, head.txid))
        .collect();
    for chunk in &replay.chunks {
        if !is_stored(chunk.id) {
            crash_point!("inherit.before_append");
            found.reappended += reappend(core, &chunk.path, &mut done)?;
            // Chunks that filled up hold a descriptor until they are synced.
            core.journal.sync_to(core.journal.appended_lsn())?;
        }
        core.journal.keep_earlier(chunk);
    }
    crash_point!("inherit.before_sync");
    core.journal.sync_to(core.journal.appended_lsn())?;
    crash_point!("inherit.after_sync");
    for orphan in &replay.orphans {
        let io = |e| Error::io(format!("remove {}", orphan.display()), e);
        core.parts.disk.remove(orphan).map_err(io)?;
    }
    Ok(found)
}

/// Remembers the gap before an image record, and the image, until they are settled.
fn note_break(
    core: &Core,
    id: DatabaseId,
    found: &FoundRecord,
    chunk: &Path,
    before: Option<Timestamp>,
) -> Result<(), Error> {
    let (start, end) = found.range;
    let len = usize::try_from(end.saturating_sub(start)).unwrap_or(usize::MAX);
    let bytes = core.parts.disk.read_at(chunk, start, len);
    let bytes = bytes.map_err(|e| Error::io(format!("read {}", chunk.display()), e))?;
    let record = CommitRecord::decode(&bytes)
        .map_err(|e| Error::new(Code::DatabaseCorrupt, "a journaled record").caused_by(e))?;
    if let RecordBody::Image(object) = &record.body {
        let found = Break::of_record(&record.header, object, found.chain, before)?;
        core.breaks.add(id, found);
    }
    Ok(())
}

/// Records that went out again stand in two chunks: they are one commit.
pub(crate) fn unify(
    id: DatabaseId,
    records: &[FoundRecord],
    is_stored: impl Fn(ChunkId) -> bool,
) -> Result<Commits, Error> {
    let mut commits = Commits::new();
    for record in records {
        let stored = is_stored(record.chunk);
        match commits.get_mut(&record.txid) {
            None => {
                commits.insert(record.txid, (record.clone(), stored));
            }
            Some((known, known_stored)) if known.chain == record.chain => *known_stored |= stored,
            Some(_) => {
                let what = format!(
                    "the journal holds two commits {} of database {id}",
                    record.txid
                );
                return Err(Error::new(Code::DatabaseCorrupt, what));
            }
        }
    }
    Ok(commits)
}

/// Appends the records of a chunk that are not stored to this life's journal, verbatim.
fn reappend(core: &Core, path: &Path, done: &mut HashMap<DatabaseId, TxId>) -> Result<u64, Error> {
    let bytes = core
        .parts
        .disk
        .read(path)
        .map_err(|e| Error::io(format!("read {}", path.display()), e))?;
    let mut databases: Vec<(ChunkDatabase, Chain)> = Vec::new();
    let mut count = 0;
    for entry in Entries::new(&bytes) {
        let (at, payload, txid) = match entry {
            Entry::Database { database, .. } => {
                databases.push((database, database.chain_before));
                continue;
            }
            Entry::Record { at, record } => (at, Payload::Record(record), txid_of(record)?),
            Entry::Spooled {
                at,
                len,
                blake3,
                header,
            } => (
                at,
                Payload::Spooled {
                    len,
                    blake3,
                    header,
                },
                txid_of(header)?,
            ),
        };
        let Some((database, chain_before)) = databases.get_mut(at.slot as usize) else {
            return Err(Error::new(
                Code::DatabaseCorrupt,
                "a record of an unnamed database",
            ));
        };
        let before = std::mem::replace(chain_before, at.chain);
        if done.get(&database.id).is_some_and(|last| *last >= txid) {
            continue;
        }
        done.insert(database.id, txid);
        let meta = ChunkDatabase {
            chain_before: before,
            ..*database
        };
        core.journal.append(
            &meta,
            &[Append {
                txid,
                wal: at.wal,
                chain: at.chain,
                payload,
            }],
        )?;
        count += 1;
    }
    Ok(count)
}

fn txid_of(record: &[u8]) -> Result<TxId, Error> {
    use tidelog_wal::codec::Reader;
    use tidelog_wal::record::RecordHeader;
    RecordHeader::decode(&mut Reader::new(record))
        .map(|(header, _)| header.txid)
        .map_err(|e| Error::new(Code::DatabaseCorrupt, "a journaled record").caused_by(e))
}
