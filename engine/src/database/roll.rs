//! Rolling files forward: power loss took the tail of a WAL, and the journal holds what it held.
//!
//! Takes no number and makes no record. Memory is bounded whatever is missing: small commits are merged up to
//! [`GATHER_BYTES_MAX`] of page images, a spooled one is read in pieces. Every step proves its base and its result:
//! the digest of the files, followed over the pages it changes, must be the one the journal recorded.
//!
//! It works on a copy. The files as they were stay until the copy is whole, synced and named by the state file, so
//! that a crash in between finds either, never a mixture (HAZARDS W25).

use std::collections::HashSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use tidelog_wal::codec::Reader;
use tidelog_wal::delta::{Merge, PageReader};
use tidelog_wal::digest::PageHash;
use tidelog_wal::page::{mask_page1, unmask_page1};
use tidelog_wal::record::{CommitRecord, RecordHeader};
use tidelog_wal::{DecodeError, Digest, PageCount, PageNo};

use super::DbMeta;
use super::open::Journaled;
use super::state::DbState;
use crate::capture::Head;
use crate::core::Core;
use crate::crash_point;
use crate::disk::Disk;
use crate::error::{Code, Error};
use crate::files::DbPaths;
use crate::spool::read_pieces;
use crate::sql::connection::{Purpose, open};

/// Bytes of page images that are gathered before they are applied.
const GATHER_BYTES_MAX: u64 = 32 << 20;

fn io(error: std::io::Error) -> Error {
    Error::io("roll a database forward", error)
}

/// Makes a new incarnation of the files at the last of `missing`, from files at `from`.
pub(super) fn roll_forward(
    core: &Arc<Core>,
    state: &DbState,
    folder: &Path,
    from: Head,
    missing: &[Journaled],
) -> Result<DbState, Error> {
    let old = DbPaths::in_folder(&folder.join(&state.incarnation));
    // Everything SQLite recovered goes into the file first.
    let sqlite = open(&old.database, Purpose::Checkpointer, &core.parts.clock)
        .map_err(|e| Error::new(Code::Internal, "open the database file").caused_by(e))?;
    sqlite
        .as_engine(|c| {
            c.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| {
                row.get::<_, i64>(0)
            })
        })
        .map_err(|e| Error::new(Code::Internal, "checkpoint the database file").caused_by(e))?;
    sqlite
        .close()
        .map_err(|e| Error::new(Code::Internal, "close the database file").caused_by(e))?;

    let next = super::incarnation_name(core);
    let path = DbPaths::in_folder(&folder.join(&next)).database;
    core.parts
        .disk
        .create_folder(&folder.join(&next))
        .map_err(io)?;
    std::fs::copy(&old.database, &path).map_err(io)?;
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .map_err(io)?;
    let size = state.meta.page_size;
    // What lies beyond the database's end is zeros, whatever the file holds there.
    file.set_len(from.pages.bytes(size)).map_err(io)?;
    let mut roll = Roll {
        disk: core.parts.disk.as_ref(),
        meta: &state.meta,
        image: vec![0; size.bytes()],
        at: from,
        file,
    };
    roll.all(missing)?;
    let target = roll.at;
    roll.file.sync_all().map_err(io)?;
    crate::disk::sync_parent(&path).map_err(io)?;
    crash_point!("roll.before_state");
    let state = DbState {
        incarnation: next,
        head: target,
        wal: None,
        clean: false,
        ..state.clone()
    };
    state.write(core.parts.disk.as_ref(), folder)?;
    crash_point!("roll.after_state");
    if let Some(incarnation) = old.database.parent() {
        std::fs::remove_dir_all(incarnation).map_err(io)?;
    }
    Ok(state)
}

/// Files on their way: a copy that nobody has open.
struct Roll<'a> {
    disk: &'a dyn Disk,
    meta: &'a DbMeta,
    file: File,
    image: Vec<u8>,
    /// The state they are at.
    at: Head,
}

impl<'a> Roll<'a> {
    fn all(&mut self, missing: &[Journaled]) -> Result<(), Error> {
        let size = self.meta.page_size;
        let mut merge = Merge::new(size, self.at.pages);
        let mut gathered = None;
        for commit in missing {
            let chunk = &commit.record.chunk;
            let damaged = |e| {
                let what = format!("journal chunk {}", chunk.display());
                Error::new(Code::DatabaseCorrupt, what).caused_by(e)
            };
            let (start, end) = commit.record.range;
            let len = usize::try_from(end - start).unwrap_or(usize::MAX);
            let bytes = self.disk.read_at(chunk, start, len).map_err(io)?;
            if let Some((path, len)) = &commit.record.spool {
                if let Some(head) = gathered.take() {
                    self.merged(&merge, head)?;
                }
                let (header, _) =
                    RecordHeader::decode(&mut Reader::new(&bytes)).map_err(damaged)?;
                self.spooled(&header, path, *len, commit.head)?;
                merge = Merge::new(size, commit.head.pages);
                continue;
            }
            let record = CommitRecord::decode(&bytes).map_err(damaged)?;
            let pages = record.page_bytes().ok_or_else(|| {
                let what = "a journaled record without pages to roll forward";
                Error::new(Code::DatabaseCorrupt, what)
            })?;
            let (n_before, n_after) = (record.header.n_before, record.header.n_after);
            merge.add(pages, n_before, n_after).map_err(damaged)?;
            gathered = Some(commit.head);
            if merge.bytes() > GATHER_BYTES_MAX {
                self.merged(&merge, commit.head)?;
                merge = Merge::new(size, commit.head.pages);
                gathered = None;
            }
        }
        match gathered {
            Some(head) => self.merged(&merge, head),
            None => Ok(()),
        }
    }

    fn merged(&mut self, merge: &Merge, target: Head) -> Result<(), Error> {
        let mut step = self.step(target)?;
        for (page, xor) in merge.xors() {
            step.change(page, |image| {
                image.iter_mut().zip(xor).for_each(|(byte, x)| *byte ^= x);
            })?;
        }
        step.finish()
    }

    /// Applies one spooled record, a piece of its file at a time.
    fn spooled(
        &mut self,
        header: &RecordHeader,
        path: &Path,
        len: u64,
        target: Head,
    ) -> Result<(), Error> {
        let (size, disk) = (self.meta.page_size, self.disk);
        let max = header.n_before.max(header.n_after);
        let damaged = |e: DecodeError| {
            let what = format!("spool file {}", path.display());
            Error::new(Code::DatabaseCorrupt, what).caused_by(e)
        };
        let mut step = self.step(target)?;
        let (mut carry, mut last) = (Vec::new(), 0);
        let mut cut_off = None;
        read_pieces(disk, path, len, |piece| {
            carry.extend_from_slice(piece);
            let mut pages = PageReader::resume(&carry, size, max, last);
            cut_off = None;
            loop {
                match pages.next_page() {
                    Ok(Some(page)) => step.change(page.page, |image| page.apply(image))?,
                    Ok(None) => break,
                    Err(short @ DecodeError::Short { .. }) => {
                        cut_off = Some(short);
                        break;
                    }
                    Err(error) => return Err(damaged(error)),
                }
            }
            last = PageReader::last(&pages);
            let used = pages.consumed();
            carry.drain(..used);
            Ok(())
        })?;
        match cut_off {
            None => step.finish(),
            Some(short) => Err(damaged(short)),
        }
    }

    fn step(&mut self, target: Head) -> Result<Step<'_, 'a>, Error> {
        let (size, from) = (self.meta.page_size, self.at);
        let high = from.pages.max(target.pages);
        self.file.set_len(high.bytes(size)).map_err(io)?;
        Ok(Step {
            digest: from.digest.resize(from.pages, target.pages, size),
            low: from.pages.min(target.pages),
            touched: HashSet::new(),
            target,
            roll: self,
        })
    }
}

/// From one state to another.
struct Step<'r, 'a> {
    roll: &'r mut Roll<'a>,
    target: Head,
    digest: Digest,
    /// The smaller of the two sizes.
    low: PageCount,
    /// Pages beyond it that were changed.
    touched: HashSet<PageNo>,
}

impl Step<'_, '_> {
    fn hash(&self, page: PageNo, pages: PageCount) -> PageHash {
        if pages.contains(page) {
            self.roll.meta.seed.page(page, &self.roll.image)
        } else {
            PageHash::ABSENT
        }
    }

    fn change(&mut self, page: PageNo, change: impl FnOnce(&mut [u8])) -> Result<(), Error> {
        let (from, target) = (self.roll.at.pages, self.target.pages);
        let offset = page.offset(self.roll.meta.page_size);
        self.roll
            .file
            .read_exact_at(&mut self.roll.image, offset)
            .map_err(io)?;
        if page == PageNo::ONE {
            mask_page1(&mut self.roll.image);
        }
        let old = self.hash(page, from);
        change(&mut self.roll.image);
        let new = self.hash(page, target);
        self.digest = self.digest.replace(old, new);
        if page == PageNo::ONE {
            unmask_page1(&mut self.roll.image, self.target.txid);
        }
        self.roll
            .file
            .write_all_at(&self.roll.image, offset)
            .map_err(io)?;
        if !self.low.contains(page) {
            self.touched.insert(page);
        }
        Ok(())
    }

    /// Proves the step: pages between the two sizes count even where they did not change.
    fn finish(mut self) -> Result<(), Error> {
        let (size, from, target) = (
            self.roll.meta.page_size,
            self.roll.at.pages,
            self.target.pages,
        );
        for page in self.low.grown_to(from.max(target), size) {
            if self.touched.contains(&page) {
                continue;
            }
            self.roll
                .file
                .read_exact_at(&mut self.roll.image, page.offset(size))
                .map_err(io)?;
            let (old, new) = (self.hash(page, from), self.hash(page, target));
            self.digest = self.digest.replace(old, new);
        }
        if self.digest != self.target.digest {
            let what = format!(
                "rolling database {} forward to {} led to digest {}, the journal says {}",
                self.roll.meta.id,
                self.target.position(),
                self.digest,
                self.target.digest
            );
            return Err(Error::new(Code::DatabaseCorrupt, what));
        }
        // A later growth finds zeros there.
        self.roll.file.set_len(target.bytes(size)).map_err(io)?;
        self.roll.at = self.target;
        Ok(())
    }
}
