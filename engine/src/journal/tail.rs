//! Reading back what this life journaled of one database beyond a commit: the deltas that are not stored yet.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tidelog_wal::codec::Reader;
use tidelog_wal::delta::{PageDelta, PageReader};
use tidelog_wal::record::{CommitRecord, RecordHeader};
use tidelog_wal::{DatabaseId, PageSize, TxId};

use super::chunk::{Entries, Entry};
use super::{Journal, lock};
use crate::disk::Disk;
use crate::error::{Code, Error};
use crate::spool::spool_path;

/// Bytes of a spool file held at once, beside one page.
const PIECE: usize = 1 << 20;

impl Journal {
    /// Whether a chunk of this folder holds a commit of `database`.
    pub(crate) fn holds(&self, database: DatabaseId) -> bool {
        !self.chunks_after(database, TxId::ZERO).is_empty()
    }

    /// The chunks that hold commits of `database` after `after`, in order, with their whole lengths.
    fn chunks_after(&self, database: DatabaseId, after: TxId) -> Vec<(PathBuf, u64)> {
        let state = lock(&self.state);
        let holds = |heads: &super::Heads| heads.get(&database).is_some_and(|head| *head > after);
        let kept = state.kept.values().filter(|chunk| holds(&chunk.heads));
        let mut chunks: Vec<_> = kept.map(|chunk| (chunk.path.clone(), chunk.len)).collect();
        if holds(&state.open.heads) {
            chunks.push((state.open.path.clone(), state.open.len));
        }
        chunks
    }

    /// Shows `each` the pages of every commit of `database` after `after` up to `through`, as they stand in this folder, and
    /// answers the newest commit seen, `after` if there is none. The commits must not be collected meanwhile:
    /// those that are not stored never are.
    pub(crate) fn pages_between(
        &self,
        (database, size): (DatabaseId, PageSize),
        (after, through): (TxId, TxId),
        each: &mut dyn FnMut(&PageDelta<'_>) -> Result<(), Error>,
    ) -> Result<TxId, Error> {
        let chunks = self.chunks_after(database, after);
        let place = (&self.parts.disk, self.parts.folder.as_path());
        pages_in(place, &chunks, (database, size), (after, through), each)
    }

    /// Bytes of the chunks, and of the spool files beside them, that hold commits of `database` after `after`.
    pub(crate) fn bytes_after(&self, database: DatabaseId, after: TxId) -> u64 {
        let chunks = self.chunks_after(database, after);
        let chunks: u64 = chunks.iter().map(|(_, len)| len).sum();
        let state = lock(&self.state);
        let spools = state.spools.values();
        let ours = spools.filter(|(id, txid, _)| *id == database && *txid > after);
        chunks + ours.map(|(_, _, len)| len).sum::<u64>()
    }
}

/// As [`Journal::pages_between`], of the chunks of any journal folder, given with their whole lengths.
pub(crate) fn pages_in(
    (disk, folder): (&Arc<dyn Disk>, &Path),
    chunks: &[(PathBuf, u64)],
    (database, size): (DatabaseId, PageSize),
    (after, through): (TxId, TxId),
    each: &mut dyn FnMut(&PageDelta<'_>) -> Result<(), Error>,
) -> Result<TxId, Error> {
    let mut last = after;
    for (path, len) in chunks {
        let io = |e| Error::io(format!("read {}", path.display()), e);
        let len = usize::try_from(*len).unwrap_or(usize::MAX);
        let file = disk.read_at(path, 0, len).map_err(io)?;
        let (mut ours, mut slots) = (None, 0);
        for entry in Entries::new(&file) {
            match entry {
                Entry::Database {
                    database: named, ..
                } => {
                    if named.id == database {
                        ours = Some(slots);
                    }
                    slots += 1;
                }
                Entry::Record { at, record } if ours == Some(at.slot) => {
                    let record = CommitRecord::decode(record).map_err(damaged)?;
                    if record.header.txid > through {
                        return Ok(last);
                    }
                    if !follows(record.header.txid, &mut last)? {
                        continue;
                    }
                    let pages = record.pages(size).ok_or_else(|| {
                        Error::new(Code::DatabaseCorrupt, "a journaled record without pages")
                    })?;
                    for page in pages {
                        each(&page.map_err(damaged)?)?;
                    }
                }
                Entry::Spooled {
                    at, len, header, ..
                } if ours == Some(at.slot) => {
                    let (header, _) =
                        RecordHeader::decode(&mut Reader::new(header)).map_err(damaged)?;
                    if header.txid > through {
                        return Ok(last);
                    }
                    if follows(header.txid, &mut last)? {
                        let path = spool_path(folder, database, header.txid);
                        spooled(disk, &path, len, size, &header, each)?;
                    }
                }
                Entry::Record { .. } | Entry::Spooled { .. } => {}
            }
        }
    }
    Ok(last)
}

/// Whether a commit is the next one; one that was seen before is not, one further on is an error.
fn follows(txid: TxId, last: &mut TxId) -> Result<bool, Error> {
    if txid <= *last {
        return Ok(false);
    }
    if txid != last.next() {
        let what = format!("the journal folder lacks the commit before {txid}; try again");
        return Err(Error::new(Code::StorageUnavailable, what));
    }
    *last = txid;
    Ok(true)
}

fn damaged(error: tidelog_wal::DecodeError) -> Error {
    Error::new(Code::DatabaseCorrupt, "a journaled record is damaged").caused_by(error)
}

/// Shows the pages in a spool file, holding a piece of it at a time.
fn spooled(
    disk: &Arc<dyn Disk>,
    path: &Path,
    len: u64,
    size: PageSize,
    header: &RecordHeader,
    each: &mut dyn FnMut(&PageDelta<'_>) -> Result<(), Error>,
) -> Result<(), Error> {
    let io = |e| Error::io(format!("read {}", path.display()), e);
    let max = header.n_before.max(header.n_after);
    let (mut at, mut last) = (0, 0);
    let mut held: Vec<u8> = Vec::new();
    while at < len || !held.is_empty() {
        let piece = usize::try_from(len - at).unwrap_or(PIECE).min(PIECE);
        held.extend_from_slice(&disk.read_at(path, at, piece).map_err(io)?);
        at += piece as u64;
        let mut pages = PageReader::resume(&held, size, max, last);
        loop {
            match pages.next_page() {
                Ok(Some(page)) => each(&page)?,
                Ok(None) => break,
                Err(tidelog_wal::DecodeError::Short { .. }) if at < len => break,
                Err(error) => return Err(damaged(error)),
            }
        }
        last = PageReader::last(&pages);
        let used = pages.consumed();
        held.drain(..used);
    }
    Ok(())
}
