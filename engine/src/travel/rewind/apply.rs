//! Putting a live database to another state, as one ordinary SQLite write transaction (DESIGN 5.7; each rule
//! prevents a corruption that was seen):
//!
//! 1. a private connection, defensive mode off, closed afterwards (HAZARDS W0c); behind the gate present pages are
//!    read through it, never from the WAL by an index of ours: its spills may restart the WAL;
//! 2. `auto_vacuum=INCREMENTAL`, else COMMIT would vacuum the restored state;
//! 3. pages 2..n, one row a statement: those that differ, and every page the database grows by, all-zero ones
//!    too; never the lock page;
//! 4. page 1 alone, with the present schema cookie; then, if the database shrinks, the row `(n + 1, NULL)`
//!    alone: in one statement with page 1 the truncation is silently lost;
//! 5. `schema_version` one above the present: an old cookie would let idle connections use a stale schema for
//!    other tables (HAZARDS W0d);
//! 6. the base is proven from page hashes before page 1 is written, that of the target from the base when it is
//!    staged; page count and digest are proven again from the captured commit, by capture itself
//!    ([`CommitNote::leads_to`]).
//!
//! The pages of the target were made and proven before the gate was taken ([`Staged`]), and what leads to them from
//! the present is kept. SQLite reads a page before it takes another in its place, so that to look at it first costs
//! those who wait next to nothing; unless somebody commits in between, it has read the first of them before the gate was
//! taken.
//!
//! Writers wait for the transaction. It is captured, and with that proven, beside the next of them, whose commit comes
//! behind it: where it is not what was asked for, neither is acknowledged. The database is opened anew then, with what
//! SQLite holds, and whoever asked finds out from its history what stands.

use std::sync::Arc;

use rusqlite::{CachedStatement, Connection, OptionalExtension as _, params};
use tidelog_wal::page::{MASKED_PAGE1, SCHEMA_COOKIE, mask_page1};
use tidelog_wal::{DigestSeed, PageCount, PageNo, PageSize};

use super::stage::{Staged, hash, not_led};
use crate::capture::{CommitNote, Head};
use crate::crash_point;
use crate::database::idempotency::request_keys;
use crate::database::write::{Gate, after_commit};
use crate::database::{OpenDb, Ticket};
use crate::error::{Code, Error};
use crate::rules::rule;
use crate::sql::connection::{RAW_CACHE_KIB, Sqlite};

/// Pages between two reports of progress.
const PROGRESS_EVERY: u64 = 1024;
/// Bytes of pages that are read ahead: half of the connection's cache, which holds more beside each page.
const READ_AHEAD_BYTES: usize = (RAW_CACHE_KIB as usize) << 9;

/// A connection for [`put_in_place`], to be opened before the gate is taken. What the change reads first is in its cache,
/// the schema and the first of the pages that differ: unless somebody commits meanwhile, no writer waits for that. Blocks.
pub(crate) fn raw_connection(database: &OpenDb, staged: &Staged) -> Result<Sqlite, Error> {
    let sqlite = database.raw_connection()?;
    let size = database.meta().page_size;
    let read_ahead = |c: &Connection| {
        c.execute_batch("BEGIN").map_err(sql)?;
        request_keys(c, database.meta().id)?;
        let mut pages = Pages::of(c)?;
        for page in staged
            .differing()
            .iter()
            .take(READ_AHEAD_BYTES / size.bytes())
        {
            pages.look(*page)?;
        }
        c.execute_batch("COMMIT").map_err(sql)
    };
    sqlite.as_engine(read_ahead)?;
    Ok(sqlite)
}

/// What a change of state came to.
#[derive(Debug)]
pub(crate) struct Changed {
    /// Where the database was.
    pub(crate) from: Head,
    /// The commit's.
    pub(crate) ticket: Ticket,
    /// Pages that were written.
    pub(crate) pages: u64,
    /// The Idempotency-Keys whose effects are gone.
    pub(crate) rolled_back: Vec<String>,
}

/// Puts a database whose write gate is held from `head`, where it stands, to the state that is staged: one commit on
/// `raw`, a connection for it. The gate is let go as soon as that is made, and the node knows whose effects are gone; it
/// is captured and proven when this answers. Blocks.
///
/// An error that leaves the database poisoned does not tell whether the commit stands: its history does.
pub(crate) fn put_in_place(
    (mut gate, raw): (Gate, Sqlite),
    head: Head,
    mut staged: Staged,
    note: CommitNote,
    progress: &dyn Fn(u64, u64),
) -> Result<Changed, Error> {
    let database = Arc::clone(gate.database());
    let (size, seed) = (database.meta().page_size, database.meta().seed);
    staged.catch_up(&database, &head)?;
    let note = CommitNote {
        leads_to: Some(staged.to()),
        ..note
    };
    let owed = gate.owing();
    let written = gate.raw_transaction(&raw, note, |connection| {
        let keys = request_keys(connection, database.meta().id)?;
        let change = Change {
            connection,
            size,
            seed,
            from: head,
        };
        Ok((change.run(&staged, progress)?, keys))
    })?;
    let (pages, keys) = written.value;
    let ticket = written
        .ticket
        .ok_or_else(|| Error::internal("a restore committed nothing"))?;
    let rolled_back = if keys.is_empty() {
        keys
    } else {
        keys_gone(&gate, keys)
    };
    // The next writer may be a retry.
    let core = &database.core;
    core.rolled_back.add(database.meta().id, &rolled_back);
    drop(gate);
    crash_point!("raw.after_commit");
    if !rule!("rewind.sound_handle") {
        database.poison(&Error::internal("a handle that fails behind a change"));
    }
    owed.pay().map_err(after_commit)?;
    if let Err(error) = raw.close() {
        tracing::warn!(database = %database.meta().id, %error, "a connection was not closed");
    }
    Ok(Changed {
        from: head,
        ticket,
        pages,
        rolled_back,
    })
}

/// Which of these Idempotency-Keys stand no more, behind the commit, on a connection that never saw the pages before.
/// Where they cannot be read it is all of them: one that stands is found before it is refused.
fn keys_gone(gate: &Gate, mut keys: Vec<String>) -> Vec<String> {
    let id = gate.database().meta().id;
    match gate.fresh_read(|connection| request_keys(connection, id)) {
        Ok(left) => keys.retain(|key| !left.contains(key)),
        Err(error) => {
            tracing::warn!(database = %id, %error, "the Idempotency-Keys behind a restore cannot be read");
        }
    }
    keys
}

/// A state change inside an open IMMEDIATE transaction.
struct Change<'a> {
    connection: &'a Connection,
    size: PageSize,
    seed: DigestSeed,
    /// The present state: captured to the end, and the target is staged up to it.
    from: Head,
}

fn sql(error: rusqlite::Error) -> Error {
    Error::new(Code::Internal, "read or write restored pages").caused_by(error)
}

impl Change<'_> {
    /// Writes the state; answers the number of pages that changed. The caller commits. `progress` hears how many
    /// pages of how many were looked at.
    fn run(&self, staged: &Staged, progress: &dyn Fn(u64, u64)) -> Result<u64, Error> {
        let c = self.connection;
        let cookie: u32 = c
            .query_row("PRAGMA schema_version", [], |row| row.get(0))
            .map_err(sql)?;
        let mut present = vec![0; self.size.bytes()];
        let mut pages = Pages::of(c)?;
        self.read(&mut pages, PageNo::ONE, &mut present)?;
        let present_page1 = present.clone();
        if rule!("rewind.no_vacuum") {
            c.execute_batch("PRAGMA auto_vacuum=INCREMENTAL")
                .map_err(sql)?;
        }
        let (base, to) = (staged.base(), staged.to());
        let mut digest = self
            .from
            .digest
            .resize(self.from.pages, base.pages, self.size);
        let (mut target, mut xor) = (present.clone(), present.clone());
        let mut changed = 0;
        let mut page1 = None;
        let touched = staged.touched(self.from.pages, self.size);
        let all = touched.len() as u64;
        for (at, page) in (0_u64..).zip(touched) {
            if at % PROGRESS_EVERY == 0 {
                progress(at, all);
            }
            // The base is proven from the present by what is not the same in both.
            let resized = self.from.pages.contains(page) != base.pages.contains(page);
            let moved = staged.moved(page, &mut xor)? || resized;
            let differs = staged.differs(page);
            // What was not committed since is in the base as it is now.
            if moved || (differs && staged.needs_base()) {
                if page == PageNo::ONE {
                    // As it was before auto_vacuum was set, which may have changed a word of it.
                    present.copy_from_slice(&present_page1);
                } else {
                    self.read(&mut pages, page, &mut present)?;
                }
                target.copy_from_slice(&present);
                if page == PageNo::ONE {
                    mask_page1(&mut target);
                }
            } else {
                target.fill(0);
            }
            if moved {
                let now = hash(self.seed, page, &present, self.from.pages);
                target.iter_mut().zip(&xor).for_each(|(byte, x)| *byte ^= x);
                let then = hash(self.seed, page, &target, base.pages);
                digest = digest.replace(now, then);
            }
            if differs {
                staged.lead(page, self.size, &mut target)?;
            }
            if page == PageNo::ONE {
                page1 = (moved || differs).then(|| target.clone());
                continue;
            }
            let grown = !self.from.pages.contains(page);
            // A page that neither differs nor moved is there because the database grows by it.
            let write = if grown {
                rule!("rewind.grown_pages") || target.iter().any(|byte| *byte != 0)
            } else {
                !moved || present != target
            };
            if to.n.contains(page) && write {
                pages.put(page, &target)?;
                changed += 1;
            }
        }
        if rule!("rewind.base_proven") && digest != base.digest {
            return Err(not_led(digest, base.digest));
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
        self.last_pages(&mut pages, &page1, to.n)?;
        changed += 1 + u64::from(self.from.pages.get().saturating_sub(to.n.get()));
        if rule!("rewind.cookie_moves_on") {
            c.pragma_update(None, "schema_version", next).map_err(sql)?;
        }
        Ok(changed)
    }

    /// Page 1, then the end of a database that shrinks: two statements.
    fn last_pages(&self, pages: &mut Pages<'_>, page1: &[u8], n: PageCount) -> Result<(), Error> {
        let above = n.get().saturating_add(1);
        let shrinks = n < self.from.pages;
        if shrinks && !rule!("rewind.truncation_alone") {
            return self
                .connection
                .prepare_cached("INSERT INTO sqlite_dbpage(pgno, data) VALUES(1, ?1), (?2, NULL)")
                .and_then(|mut insert| insert.execute(params![page1, above]))
                .map_err(sql)
                .map(drop);
        }
        pages.put(PageNo::ONE, page1)?;
        if shrinks {
            self.connection
                .prepare_cached("INSERT INTO sqlite_dbpage(pgno, data) VALUES(?1, NULL)")
                .and_then(|mut insert| insert.execute([above]))
                .map_err(sql)?;
        }
        Ok(())
    }

    /// The present page: zeros above the database's end.
    fn read(&self, pages: &mut Pages<'_>, page: PageNo, image: &mut [u8]) -> Result<(), Error> {
        if self.from.pages.contains(page) {
            return pages.get(page, image);
        }
        image.fill(0);
        Ok(())
    }
}

/// The pages of the database as its transaction sees them. The statements are made once, by whoever opens the connection:
/// a writer waits for every page.
struct Pages<'c> {
    select: CachedStatement<'c>,
    insert: CachedStatement<'c>,
}

impl<'c> Pages<'c> {
    fn of(connection: &'c Connection) -> Result<Self, Error> {
        let prepare = |text| connection.prepare_cached(text).map_err(sql);
        Ok(Self {
            select: prepare("SELECT data FROM sqlite_dbpage WHERE pgno = ?1")?,
            insert: prepare("INSERT INTO sqlite_dbpage(pgno, data) VALUES(?1, ?2)")?,
        })
    }

    /// Has the page read into the connection's cache, if there is one.
    fn look(&mut self, page: PageNo) -> Result<(), Error> {
        let looked = self.select.exists([page.get()]);
        looked.map(drop).map_err(sql)
    }

    fn get(&mut self, page: PageNo, image: &mut [u8]) -> Result<(), Error> {
        let found = self
            .select
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

    fn put(&mut self, page: PageNo, image: &[u8]) -> Result<(), Error> {
        let row = params![page.get(), image];
        self.insert.execute(row).map_err(sql).map(drop)
    }
}
