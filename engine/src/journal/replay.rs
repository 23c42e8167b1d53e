//! What an earlier process life left in the journal folder.
//!
//! Reads every chunk once, in order of (term, seq), and answers an index of records; the record bytes stay
//! in the files. A torn entry ends its life's log there: later chunks of that life are beyond the prefix
//! that survived (I2).

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tidelog_wal::codec::Reader;
use tidelog_wal::record::{RecordHeader, RecordKind};
use tidelog_wal::{Chain, ClusterId, DatabaseId, Digest, PageCount, Term, Timestamp, TxId};

use super::ChunkId;
use super::chunk::{ChunkDatabase, ChunkHeader, Entries, Entry, HEADER_LEN, WalPosition};
use crate::disk::Disk;
use crate::error::{Code, Error};

/// A record found in a chunk.
#[derive(Debug, Clone)]
pub struct FoundRecord {
    /// The chunk.
    pub chunk: ChunkId,
    /// Where the record's bytes stand in the chunk file; for a spooled one, its header's.
    pub range: (u64, u64),
    /// Length of the spool file, if the record stands there.
    pub spooled: Option<SpoolNote>,
    /// What kind it is.
    pub kind: RecordKind,
    /// The process life that committed it.
    pub term: Term,
    /// Its number.
    pub txid: TxId,
    /// Where the WAL stood.
    pub wal: WalPosition,
    /// The chain after it.
    pub chain: Chain,
    /// The digest after it.
    pub digest: Digest,
    /// Pages after it.
    pub pages: PageCount,
    /// Its ordered time.
    pub time: Timestamp,
}

/// A record that stands in a spool file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpoolNote {
    /// Length of the file.
    pub len: u64,
    /// BLAKE3 of the file.
    pub blake3: [u8; 32],
}

/// A chunk that was found.
#[derive(Debug, Clone)]
pub struct FoundChunk {
    /// Its name.
    pub id: ChunkId,
    /// Its file.
    pub path: PathBuf,
    /// Length of its whole part.
    pub len: u64,
    /// Local number of its first record, or of the one that would have been.
    pub first_lsn: u64,
    /// The databases in it.
    pub databases: Vec<ChunkDatabase>,
    /// The highest TxId of each.
    pub heads: HashMap<DatabaseId, TxId>,
    /// Whether it holds any record.
    pub records: usize,
}

/// Everything found in a journal folder.
#[derive(Debug, Default)]
pub struct Replay {
    /// The chunks, in order.
    pub chunks: Vec<FoundChunk>,
    /// Each database's records, in order of TxId.
    pub records: HashMap<DatabaseId, Vec<FoundRecord>>,
    /// What each database is, as its first chunk says.
    pub databases: HashMap<DatabaseId, ChunkDatabase>,
    /// Chunks that lie beyond a torn one: nothing in them counts.
    pub orphans: Vec<PathBuf>,
}

/// Reads the journal folder.
pub fn replay(disk: &Arc<dyn Disk>, folder: &Path, cluster: ClusterId) -> Result<Replay, Error> {
    let mut found = Replay::default();
    let mut torn_term = None;
    let mut last_seq = None;
    let mut next_lsn: HashMap<u32, u64> = HashMap::new();
    let files = disk
        .list(folder)
        .map_err(|e| Error::io("list the journal folder", e))?;
    for (path, _) in files {
        if path.extension().is_none_or(|e| e != "chunk") {
            continue;
        }
        let bytes = match disk.read(&path) {
            Ok(bytes) => bytes,
            // In a running life chunks are collected meanwhile.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(Error::io(format!("read {}", path.display()), error)),
        };
        let header = match ChunkHeader::decode(&bytes) {
            Ok(header) => header,
            // A chunk whose header never reached the disk holds nothing, and ends its life's log.
            Err(_) if never_written(&bytes) => {
                torn_term = term_of(&path).or(torn_term);
                found.orphans.push(path);
                continue;
            }
            Err(error) => {
                let what = format!("journal chunk {} is damaged", path.display());
                return Err(Error::new(Code::DatabaseCorrupt, what).caused_by(error));
            }
        };
        if header.cluster != cluster {
            let what = format!("journal chunk {} belongs to another bucket", path.display());
            return Err(Error::new(Code::Refused, what));
        }
        let expected = next_lsn
            .entry(header.term.get())
            .or_insert(header.first_lsn);
        // Chunks are collected in any order: one that is missing was synced and stored, and all before it.
        if last_seq != Some((header.term, header.seq.wrapping_sub(1))) {
            *expected = (*expected).max(header.first_lsn);
        }
        last_seq = Some((header.term, header.seq));
        if torn_term == Some(header.term) || header.first_lsn != *expected {
            torn_term = Some(header.term);
            found.orphans.push(path);
            continue;
        }
        let whole = read_chunk(
            &mut found,
            header.first_lsn,
            (header.term, header.seq),
            &path,
            &bytes,
            expected,
        )?;
        if whole < bytes.len() as u64 {
            torn_term = Some(header.term);
        }
    }
    Ok(found)
}

/// Whether power was lost before the header of a chunk was on the disk.
fn never_written(bytes: &[u8]) -> bool {
    let header = bytes.get(..HEADER_LEN);
    header.is_none_or(|header| header.iter().all(|byte| *byte == 0))
}

/// The term in the name of a chunk file ([`super::chunk_path`]).
fn term_of(path: &Path) -> Option<Term> {
    let name = path.file_stem()?.to_str()?;
    let (term, _) = name.split_once('-')?;
    u32::from_str_radix(term, 16).ok().map(Term::new)
}

/// Reads one chunk into the index; answers the length of its whole part.
fn read_chunk(
    found: &mut Replay,
    first_lsn: u64,
    id: ChunkId,
    path: &Path,
    bytes: &[u8],
    next_lsn: &mut u64,
) -> Result<u64, Error> {
    let damaged = |what: &str| {
        Error::new(
            Code::DatabaseCorrupt,
            format!("journal chunk {}: {what}", path.display()),
        )
    };
    let mut chunk = FoundChunk {
        id,
        path: path.to_owned(),
        len: 0,
        first_lsn,
        databases: Vec::new(),
        heads: HashMap::new(),
        records: 0,
    };
    let mut entries = Entries::new(bytes);
    let mut start = entries.offset();
    while let Some(entry) = entries.next() {
        let end = entries.offset();
        let (at, payload, spooled) = match entry {
            Entry::Database { slot, database } => {
                if slot as usize != chunk.databases.len() {
                    return Err(damaged("slots are not dense"));
                }
                chunk.databases.push(database);
                found.databases.entry(database.id).or_insert(database);
                start = end;
                continue;
            }
            Entry::Record { at, record } => (at, record, None),
            Entry::Spooled {
                at,
                len,
                blake3,
                header,
            } => (at, header, Some(SpoolNote { len, blake3 })),
        };
        if at.lsn != *next_lsn {
            break;
        }
        let database = chunk
            .databases
            .get(at.slot as usize)
            .ok_or_else(|| damaged("a record of an unnamed database"))?;
        let (header, kind) = RecordHeader::decode(&mut Reader::new(payload))
            .map_err(|e| damaged("undecodable record").caused_by(e))?;
        let records = found.records.entry(database.id).or_default();
        records.push(FoundRecord {
            chunk: id,
            range: ((end - payload.len()) as u64, end as u64),
            spooled,
            kind,
            term: header.term,
            txid: header.txid,
            wal: at.wal,
            chain: at.chain,
            digest: header.digest,
            pages: header.n_after,
            time: header.time,
        });
        chunk.heads.insert(database.id, header.txid);
        chunk.records += 1;
        *next_lsn += 1;
        start = end;
    }
    chunk.len = start as u64;
    found.chunks.push(chunk);
    Ok(start as u64)
}

#[cfg(test)]
mod tests {
    use tidelog_wal::record::TimeFlag;
    use tidelog_wal::{DigestSeed, NamespaceId, PageSize};

    use super::super::chunk::EntryAt;
    use super::super::chunk_path;
    use super::*;
    use crate::disk::StdDisk;

    const CLUSTER: ClusterId = ClusterId::from_bytes([9; 16]);

    fn chunk(seq: u64, lsn: u64) -> Vec<u8> {
        let term = Term::FIRST;
        let mut file = ChunkHeader {
            term,
            seq,
            first_lsn: lsn,
            cluster: CLUSTER,
        }
        .encode()
        .to_vec();
        let database = ChunkDatabase {
            id: DatabaseId::from_bytes([1; 16]),
            namespace: NamespaceId::from_bytes([2; 16]),
            page_size: PageSize::DEFAULT,
            seed: DigestSeed::new(3),
            chain_before: Chain::default(),
        };
        Entry::Database { slot: 0, database }.encode(&mut file);
        let header = RecordHeader {
            term,
            txid: TxId::new(lsn),
            time: Timestamp::from_micros(lsn),
            wall: Timestamp::from_micros(lsn),
            flag: TimeFlag::Live,
            n_before: PageCount::new(1),
            n_after: PageCount::new(1),
            digest: Digest::from_u64(lsn),
            annotations: Vec::new(),
        };
        let mut record = Vec::new();
        header.encode(RecordKind::Delta, &mut record);
        let at = EntryAt {
            slot: 0,
            lsn,
            wal: WalPosition::default(),
            chain: Chain::default(),
        };
        Entry::Record {
            at,
            record: &record,
        }
        .encode(&mut file);
        file
    }

    #[test]
    fn what_follows_a_chunk_that_never_reached_the_disk_does_not_count() {
        let disk: Arc<dyn Disk> = Arc::new(StdDisk);
        for lost in [Vec::new(), vec![0; 40], vec![0; 4096]] {
            let folder = tempfile::tempdir().expect("tempdir");
            let files = [chunk(1, 1), lost, chunk(3, 2)];
            for (seq, bytes) in (1..).zip(&files) {
                let path = chunk_path(folder.path(), (Term::FIRST, seq));
                std::fs::write(path, bytes).expect("write");
            }
            let found = replay(&disk, folder.path(), CLUSTER).expect("replay");
            assert_eq!(found.chunks.len(), 1);
            assert_eq!(found.orphans.len(), 2);
        }
    }
}
