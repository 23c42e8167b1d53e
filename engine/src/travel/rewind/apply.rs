//! Putting a live database to another state, as one ordinary SQLite write transaction (DESIGN 5.7; each rule
//! prevents a corruption that was seen):
//!
//! 1. a private connection, defensive mode off, closed afterwards (HAZARDS W0c); present pages are read
//!    through it, never from the WAL by an index of ours: its spills may restart the WAL;
//! 2. `auto_vacuum=INCREMENTAL`, else COMMIT would vacuum the restored state;
//! 3. pages 2..n, one row a statement: those that differ, and every page the database grows by, all-zero ones
//!    too; never the lock page;
//! 4. page 1 alone, with the present schema cookie; then, if the database shrinks, the row `(n + 1, NULL)`
//!    alone: in one statement with page 1 the truncation is silently lost;
//! 5. `schema_version` one above the present: an old cookie would let idle connections use a stale schema for
//!    other tables (HAZARDS W0d);
//! 6. the base is proven from page hashes before page 1 is written; page count and digest are proven again
//!    from the captured commit.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rusqlite::{Connection, OptionalExtension as _, params};
use tidelog_wal::digest::PageHash;
use tidelog_wal::page::{MASKED_PAGE1, SCHEMA_COOKIE, mask_page1};
use tidelog_wal::{Digest, DigestSeed, PageCount, PageNo, PageSize};

use super::xors::PageXors;
use crate::capture::Head;
use crate::error::{Code, Error};
use crate::rules::rule;

/// Pages between two reports of progress.
const PROGRESS_EVERY: u64 = 1024;

/// Where the pages of the target come from.
#[derive(Debug)]
pub(crate) enum Source {
    /// What differs, as XORs.
    Xors(PageXors),
    /// A file that holds the whole target.
    File(File),
}

impl Source {
    /// The target as a file that nobody else has open.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let file = File::open(path).map_err(|e| Error::io("open the state to restore", e))?;
        Ok(Self::File(file))
    }
}

/// The state to come.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted {
    /// Its pages.
    pub(crate) n: PageCount,
    /// Its digest.
    pub(crate) digest: Digest,
}

/// A state change inside an open IMMEDIATE transaction.
pub(crate) struct Change<'a> {
    pub(crate) connection: &'a Connection,
    pub(crate) size: PageSize,
    pub(crate) seed: DigestSeed,
    /// The present state: captured to the end.
    pub(crate) from: Head,
    pub(crate) to: Wanted,
}

fn sql(error: rusqlite::Error) -> Error {
    Error::new(Code::Internal, "write restored pages").caused_by(error)
}

fn io(error: std::io::Error) -> Error {
    Error::io("read the state to restore", error)
}

impl Change<'_> {
    /// Writes the state; answers the number of pages that changed. The caller commits. `progress` hears how many
    /// pages were looked at.
    pub(crate) fn run(&self, source: &Source, progress: &dyn Fn(u64)) -> Result<u64, Error> {
        let c = self.connection;
        let cookie: u32 = c
            .query_row("PRAGMA schema_version", [], |row| row.get(0))
            .map_err(sql)?;
        let mut present = vec![0; self.size.bytes()];
        self.read(PageNo::ONE, &mut present)?;
        let present_page1 = present.clone();
        if rule!("rewind.no_vacuum") {
            c.execute_batch("PRAGMA auto_vacuum=INCREMENTAL")
                .map_err(sql)?;
        }
        let mut digest = self
            .from
            .digest
            .resize(self.from.pages, self.to.n, self.size);
        let mut target = present.clone();
        let mut changed = 0;
        let mut page1 = None;
        for (at, page) in (0_u64..).zip(self.touched(source)) {
            if at % PROGRESS_EVERY == 0 {
                progress(at);
            }
            if page == PageNo::ONE {
                // As it was before auto_vacuum was set, which may have changed a word of it.
                present.copy_from_slice(&present_page1);
            } else {
                self.read(page, &mut present)?;
            }
            let old = self.hash(page, &present, self.from.pages);
            self.target(source, page, &present, &mut target)?;
            if !rule!("rewind.sound_source")
                && let Some(byte) = target.last_mut()
            {
                *byte ^= 1;
            }
            let new = self.hash(page, &target, self.to.n);
            digest = digest.replace(old, new);
            if page == PageNo::ONE {
                page1 = Some(target.clone());
                continue;
            }
            let grown = rule!("rewind.grown_pages") && !self.from.pages.contains(page);
            if self.to.n.contains(page) && (grown || present != target) {
                self.write(page, &target)?;
                changed += 1;
            }
        }
        if rule!("rewind.base_proven") && digest != self.to.digest {
            let what = format!(
                "the present state and the log do not lead to the state asked for: digest {digest}, \
                 recorded is {}; nothing was changed",
                self.to.digest
            );
            return Err(Error::new(Code::DatabaseCorrupt, what));
        }
        let mut page1 = page1.unwrap_or_else(|| present_page1.clone());
        let mut next = cookie.wrapping_add(1);
        if !rule!("rewind.cookie_is_new")
            && let Some(Ok(of_target)) = page1.get(SCHEMA_COOKIE).map(<[u8; 4]>::try_from)
        {
            next = u32::from_be_bytes(of_target);
        }
        let cookie_kept = rule!("rewind.present_cookie").then_some(SCHEMA_COOKIE);
        for range in MASKED_PAGE1.into_iter().chain(cookie_kept) {
            if let (Some(to), Some(from)) = (page1.get_mut(range.clone()), present_page1.get(range))
            {
                to.copy_from_slice(from);
            }
        }
        // Page 1 always, for the same reason.
        self.last_pages(&page1)?;
        changed += 1 + u64::from(self.from.pages.get().saturating_sub(self.to.n.get()));
        if rule!("rewind.cookie_moves_on") {
            c.pragma_update(None, "schema_version", next).map_err(sql)?;
        }
        Ok(changed)
    }

    /// Page 1, then the end of a database that shrinks: two statements.
    fn last_pages(&self, page1: &[u8]) -> Result<(), Error> {
        let above = self.to.n.get().saturating_add(1);
        let shrinks = self.to.n < self.from.pages;
        if shrinks && !rule!("rewind.truncation_alone") {
            return self
                .connection
                .prepare_cached("INSERT INTO sqlite_dbpage(pgno, data) VALUES(1, ?1), (?2, NULL)")
                .and_then(|mut insert| insert.execute(params![page1, above]))
                .map_err(sql)
                .map(drop);
        }
        self.write(PageNo::ONE, page1)?;
        if shrinks {
            self.connection
                .prepare_cached("INSERT INTO sqlite_dbpage(pgno, data) VALUES(?1, NULL)")
                .and_then(|mut insert| insert.execute([above]))
                .map_err(sql)?;
        }
        Ok(())
    }

    /// Every page that may change, ascending: those that differ and those between the two sizes.
    fn touched(&self, source: &Source) -> Vec<PageNo> {
        let (low, high) = (
            self.from.pages.min(self.to.n),
            self.from.pages.max(self.to.n),
        );
        let mut pages: Vec<PageNo> = match source {
            Source::Xors(xors) => xors.pages(),
            Source::File(_) => low.pages(self.size).collect(),
        };
        pages.extend(low.grown_to(high, self.size));
        pages.sort_unstable();
        pages.dedup();
        pages
    }

    /// The present page: zeros above the database's end.
    fn read(&self, page: PageNo, image: &mut [u8]) -> Result<(), Error> {
        if !self.from.pages.contains(page) {
            image.fill(0);
            return Ok(());
        }
        let mut select = self
            .connection
            .prepare_cached("SELECT data FROM sqlite_dbpage WHERE pgno = ?1")
            .map_err(sql)?;
        let found = select
            .query_row([page.get()], |row| {
                let data = row.get_ref(0)?.as_blob()?;
                let fits = data.len() == image.len();
                if fits {
                    image.copy_from_slice(data);
                }
                Ok(fits)
            })
            .optional()
            .map_err(sql)?;
        if found == Some(true) {
            return Ok(());
        }
        let what = format!("page {} of the present state cannot be read", page.get());
        Err(Error::new(Code::DatabaseCorrupt, what))
    }

    /// The page as it is to be, masked where the log masks it.
    fn target(
        &self,
        source: &Source,
        page: PageNo,
        present: &[u8],
        target: &mut [u8],
    ) -> Result<(), Error> {
        match source {
            Source::Xors(xors) => {
                xors.load(page, target).map_err(io)?;
                let mut base = present.to_vec();
                if page == PageNo::ONE {
                    mask_page1(&mut base);
                }
                target.iter_mut().zip(&base).for_each(|(x, old)| *x ^= old);
            }
            Source::File(file) if self.to.n.contains(page) => {
                file.read_exact_at(target, page.offset(self.size))
                    .map_err(io)?;
            }
            Source::File(_) => target.fill(0),
        }
        Ok(())
    }

    fn hash(&self, page: PageNo, image: &[u8], n: PageCount) -> PageHash {
        if n.contains(page) {
            self.seed.page(page, image)
        } else {
            PageHash::ABSENT
        }
    }

    fn write(&self, page: PageNo, image: &[u8]) -> Result<(), Error> {
        self.connection
            .prepare_cached("INSERT INTO sqlite_dbpage(pgno, data) VALUES(?1, ?2)")
            .and_then(|mut insert| insert.execute(params![page.get(), image]))
            .map_err(sql)?;
        Ok(())
    }
}
