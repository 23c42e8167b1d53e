//! Opening a database: which commit are its files at?
//!
//! A database that was closed cleanly says so in its state file, and is believed if nobody has written to the file
//! since. Otherwise SQLite recovers
//! its files first. If the newest journaled commit stands in the recovered WAL (same salts, same checksum at
//! its frame), what lies behind it is captured. Else the *full state digest* decides, before the first write:
//!
//! | the digest equals that of | then |
//! | --- | --- |
//! | the newest journaled commit | the files are there |
//! | an earlier one | power loss took the tail of the WAL: the rest is rolled forward from the journal |
//! | none | a WAL life the journal does not know began at the newest journaled commit (a life ends only after a checkpoint of everything journaled): all of it is captured now |
//!
//! Commits captured at an open carry the flag *recovered*, and what they lead to must have the digest of the
//! files: it is proven before they are journaled.
//!
//! Equal digests of different commits are equal states, so that taking the newest is right (A, B, A).
//! Where nothing fits the files are [`Unproven`], and history is never guessed: [`crate::gap`] says what then.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::sync::{Mutex, RwLock};

use tidelog_wal::frame::FrameNo;
use tidelog_wal::shm::WalIndexHeader;
use tidelog_wal::{Digest, PageCount, Timestamp};
use tokio::sync::{Semaphore, watch};

use super::backfill::{Backfilled, Checkpointing};
use super::checkpoint::WalMark;
use super::reads::Reads;
use super::roll::roll_forward;
use super::state::{DbState, Stamp};
use super::texts::WriteTexts;
use super::ticket::Pending;
use super::{CaptureSlot, Connections, LEASES_MAX, Ledger, Made, OpenDb, READERS_MAX};
use crate::capture::{Capture, CaptureError, Head, Scratch, salt_words};
use crate::core::Core;
use crate::error::{Code, Error};
use crate::files::{DbFiles, DbPaths};
use crate::journal::chunk::WalPosition;
use crate::node::detached::Detached;
use crate::sql::connection::{Purpose, Sqlite, open};

/// A commit that the local journal holds beyond the state file, for opening.
#[derive(Debug, Clone)]
pub(crate) struct Journaled {
    /// The state after it.
    pub(crate) head: Head,
    /// Where the WAL stood.
    pub(crate) wal: WalPosition,
    /// Its canonical record.
    pub(crate) record: RecordPlace,
    /// Its pages stand in an image: the way to it does not lead over the log.
    pub(crate) image: bool,
}

/// Where a journaled record's bytes stand.
#[derive(Debug, Clone)]
pub(crate) struct RecordPlace {
    pub(crate) chunk: std::path::PathBuf,
    pub(crate) range: (u64, u64),
    /// The spool file that holds the pages, and its length.
    pub(crate) spool: Option<(std::path::PathBuf, u64)>,
}

/// What opening came to.
#[derive(Debug)]
pub(crate) enum Opening {
    /// The files are where history says.
    Open(Arc<OpenDb>),
    /// They are not, and are closed again.
    Unproven(Box<Unproven>),
}

/// Files that no journaled commit leads to.
#[derive(Debug)]
pub(crate) struct Unproven {
    /// Where they are.
    pub(crate) state: DbState,
    /// The newest journaled commit.
    pub(crate) newest: Head,
    /// They hold every journaled commit, and something that history does not know.
    pub(crate) whole: bool,
    /// What was seen.
    pub(crate) why: String,
}

/// The files of a database with their first connection, before it is known where they are.
struct Opened {
    checkpointer: Sqlite,
    files: DbFiles,
    header: WalIndexHeader,
}

impl Opened {
    fn new(core: &Core, paths: &DbPaths) -> Result<Self, Error> {
        let sql = |what: &'static str| move |e| Error::new(Code::Internal, what).caused_by(e);
        let checkpointer = open(&paths.database, Purpose::Checkpointer, &core.parts.clock)
            .map_err(sql("open the database file"))?;
        // The first read recovers the WAL and builds the wal-index.
        let _: i64 = checkpointer
            .as_engine(|c| c.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)))
            .map_err(sql("recover the database file"))?;
        let files = DbFiles::open(paths).map_err(|e| Error::io("open the database files", e))?;
        let header = files
            .header()
            .map_err(|e| Error::io("read the wal-index header", e))?;
        Ok(Self {
            checkpointer,
            files,
            header,
        })
    }

    fn pages(&self) -> Result<PageCount, Error> {
        let pages: u32 = self
            .checkpointer
            .as_engine(|c| c.query_row("PRAGMA page_count", [], |row| row.get(0)))
            .map_err(|e| Error::new(Code::Internal, "count the pages").caused_by(e))?;
        Ok(PageCount::new(pages))
    }

    /// Connections first, descriptors last (HAZARDS W0a).
    fn close(self) -> Result<(), Error> {
        self.checkpointer
            .close()
            .map_err(|e| Error::new(Code::Internal, "close the database file").caused_by(e))
    }
}

/// Opens a database whose state file is `state`; `journaled` are the commits after the state's that the
/// local journal holds, in order. `continuous` says that no power was lost since they were made: what SQLite
/// committed then is in the files, whoever has written to them since.
pub(crate) fn open_database(
    core: &Arc<Core>,
    mut state: DbState,
    journaled: &[Journaled],
    ledger: Arc<Ledger>,
    continuous: bool,
) -> Result<Opening, Error> {
    let folder = core.database_folder(state.meta.id);
    let paths = |state: &DbState| DbPaths::in_folder(&folder.join(&state.incarnation));
    let at = paths(&state);
    let wal = std::fs::metadata(&at.wal).ok();
    let wal_empty = wal.as_ref().is_none_or(|meta| meta.len() == 0);
    let written = wal.as_ref().and_then(last_write);
    let untouched = state.stamp.is_some() && Stamp::of(&at.database) == state.stamp;
    let trusted = state.clean && untouched && wal_empty && journaled.is_empty();
    if state.clean {
        state.clean = false;
        state.write(core.parts.disk.as_ref(), &folder)?;
    }
    let opened = Opened::new(core, &at)?;
    if trusted && opened.header.max_frame == FrameNo::ZERO {
        let head = state.head;
        let open = assemble(core, &state, &folder, opened, head, FrameNo::ZERO, ledger);
        return Ok(Opening::Open(open));
    }
    let mut scratch = Scratch::default();
    let actual = actual_digest(&state, &opened, &mut scratch)?;
    let newest = journaled.last().map_or(state.head, |j| j.head);
    let noted = journaled.last().map(|j| j.wal).or(state.wal);
    let unproven = |state: DbState, whole: bool, why: String| {
        Opening::Unproven(Box::new(Unproven {
            state,
            newest,
            whole,
            why,
        }))
    };
    if let Some(frame) = same_life_frame(&opened, noted)? {
        let open = assemble(core, &state, &folder, opened, newest, frame, ledger);
        return Ok(
            match open.prove_by_capture(actual, written, &mut scratch)? {
                Proof::Proven(open) => Opening::Open(open),
                // The newest journaled commit stands in the WAL. With nothing behind it to explain the difference,
                // the file below the WAL was changed or damaged.
                Proof::Failed { behind, why } => unproven(state, behind, why),
            },
        );
    }
    let known: Vec<&Head> = std::iter::once(&state.head)
        .chain(journaled.iter().map(|j| &j.head))
        .collect();
    match known
        .iter()
        .rposition(|head| (head.digest, head.pages) == actual)
    {
        Some(at) if at == journaled.len() => {
            let frame = opened.header.max_frame;
            let open = assemble(core, &state, &folder, opened, newest, frame, ledger);
            open.index_existing(&mut scratch)?;
            Ok(Opening::Open(open))
        }
        Some(at) => {
            opened.close()?;
            let missing = journaled.get(at..).unwrap_or_default();
            let from = known.get(at).map_or(state.head, |head| **head);
            let (id, commits) = (state.meta.id, missing.len());
            if missing.iter().any(|commit| commit.image) {
                let why = format!(
                    "they are at {} and the image behind it is not here",
                    from.txid
                );
                return Ok(unproven(state, false, why));
            }
            tracing::warn!(database = %id, commits, "rolling forward from the journal");
            let state = roll_forward(core, &state, &folder, from, missing)?;
            let opened = Opened::new(core, &paths(&state))?;
            let from = FrameNo::ZERO;
            let open = assemble(core, &state, &folder, opened, newest, from, ledger);
            Ok(Opening::Open(open))
        }
        None => {
            let open = assemble(core, &state, &folder, opened, newest, FrameNo::ZERO, ledger);
            Ok(
                match open.prove_by_capture(actual, written, &mut scratch)? {
                    Proof::Proven(open) => Opening::Open(open),
                    // The state file says that the SQLite file held everything up to it, synced.
                    Proof::Failed { why, .. } => {
                        unproven(state, journaled.is_empty() || continuous, why)
                    }
                },
            )
        }
    }
}

/// When a file was last written.
fn last_write(meta: &std::fs::Metadata) -> Option<Timestamp> {
    let since = meta
        .modified()
        .ok()?
        .duration_since(std::time::UNIX_EPOCH)
        .ok()?;
    Some(Timestamp::from_micros(
        u64::try_from(since.as_micros()).ok()?,
    ))
}

fn actual_digest(
    state: &DbState,
    opened: &Opened,
    scratch: &mut Scratch,
) -> Result<(Digest, PageCount), Error> {
    let pages = opened.pages()?;
    let head = Head {
        pages,
        ..state.head
    };
    let (size, seed, header) = (state.meta.page_size, state.meta.seed, &opened.header);
    let mut capture = Capture::new(size, seed, head, header, header.max_frame);
    let failed = |e| Error::new(Code::DatabaseCorrupt, "read the database files").caused_by(e);
    capture
        .index_wal(&opened.files, header, scratch)
        .map_err(failed)?;
    let digest = capture
        .full_digest(&opened.files, scratch)
        .map_err(failed)?;
    Ok((digest, pages))
}

/// The frame of the newest known commit, if it stands in the WAL that was recovered.
///
/// The same salts and frame number under another checksum are another history (HAZARDS W2).
fn same_life_frame(opened: &Opened, newest: Option<WalPosition>) -> Result<Option<FrameNo>, Error> {
    let header = &opened.header;
    let Some(newest) = newest.filter(|wal| wal.salts == salt_words(header.salts)) else {
        return Ok(None);
    };
    let frame = FrameNo::new(newest.frame);
    if frame == FrameNo::ZERO || frame > header.max_frame {
        return Ok(None);
    }
    let found = opened
        .files
        .frame_checksum(frame, header.page_size)
        .map_err(|e| Error::io("read a WAL frame", e))?;
    Ok((found == newest.checksum).then_some(frame))
}

fn assemble(
    core: &Arc<Core>,
    state: &DbState,
    folder: &Path,
    opened: Opened,
    head: Head,
    from: FrameNo,
    ledger: Arc<Ledger>,
) -> Arc<OpenDb> {
    let Opened {
        checkpointer,
        files,
        header,
    } = opened;
    let database_file = DbPaths::in_folder(&folder.join(&state.incarnation)).database;
    let capture = Capture::new(state.meta.page_size, state.meta.seed, head, &header, from);
    if let Some(durable) = state.durable {
        ledger.set_durable(durable);
    }
    // Earlier uses in this life, and whoever made the database, may have journaled what is neither synced nor stored.
    let last_lsn = core.journal.appended_lsn();
    ledger.add(last_lsn, head.position(), core.journal.shipped_lsn());
    let open = OpenDb {
        core: Arc::clone(core),
        meta: state.meta,
        ledger,
        folder: folder.to_owned(),
        database_file,
        connections: Mutex::new(Connections {
            writer: None,
            readers: Vec::new(),
        }),
        checkpointing: Mutex::new(Some(Checkpointing::new(checkpointer))),
        backfilled: Backfilled::default(),
        reads: Reads::default(),
        files: RwLock::new(Some(files)),
        leases: Arc::new(Semaphore::new(LEASES_MAX as usize)),
        gate: Arc::new(Semaphore::new(1)),
        gate_queue: AtomicUsize::new(0),
        reader_slots: Arc::new(Semaphore::new(READERS_MAX)),
        write_texts: WriteTexts::default(),
        capture: Mutex::new(CaptureSlot { capture, last_lsn }),
        base: (head.txid, header.change),
        head: watch::Sender::new(head),
        pending: Pending::default(),
        queued: AtomicBool::new(false),
        closing: AtomicBool::new(false),
        last_used: AtomicU64::new(core.parts.clock.monotonic_micros()),
        last_restart: WalMark::default(),
        poison: std::sync::OnceLock::new(),
    };
    Arc::new(open)
}

/// Whether what was captured at an open leads to the files as they are.
enum Proof {
    Proven(Arc<OpenDb>),
    Failed {
        /// Commits lie behind the newest journaled one, or frames that cannot be told.
        behind: bool,
        why: String,
    },
}

impl OpenDb {
    fn index_existing(&self, scratch: &mut Scratch) -> Result<(), Error> {
        let header = self.header()?;
        let mut slot = self.lock_capture();
        self.with_files(|files| {
            slot.capture
                .index_wal(files, &header, scratch)
                .map_err(|e| Error::new(Code::DatabaseCorrupt, "read the WAL").caused_by(e))
        })
    }

    /// Captures what lies behind the frame the capture was made with, and proves that it leads to the state
    /// whose digest and size were computed from the files; only then is it journaled. They were committed when the
    /// WAL was last `written`, or before. On a failed proof everything is closed again.
    fn prove_by_capture(
        mut self: Arc<Self>,
        actual: (Digest, PageCount),
        written: Option<Timestamp>,
        scratch: &mut Scratch,
    ) -> Result<Proof, Error> {
        let from = self.head();
        self.index_existing(scratch)?;
        let (head, behind, failed) = {
            let mut slot = self.lock_capture();
            let now = self.core.parts.clock.wall();
            let made = Made::Recovered(written.map_or(now, |written| written.min(now)));
            let passed = self.pass_locked(&mut slot, scratch, made)?;
            let head = *slot.capture.head();
            let behind = !scratch.batch.commits.is_empty();
            match passed {
                Err(CaptureError::Io(error)) => return Err(Error::io("capture commits", error)),
                Err(CaptureError::Discontinuity(why) | CaptureError::Unproven(why)) => {
                    (head, true, Some(why))
                }
                Ok(_) if (head.digest, head.pages) != actual => {
                    let why = format!(
                        "their digest is {} of {} pages, history leads to {} of {}",
                        actual.0,
                        actual.1.get(),
                        head.digest,
                        head.pages.get()
                    );
                    (head, behind, Some(why))
                }
                // What the store may hold under the same numbers is not to be taken.
                Ok(_) if behind && self.core.detached == Some(Detached::Reads) => {
                    drop(slot);
                    self.abandon()?;
                    let what = format!(
                        "database {} has commits that were not journaled: it is opened when the store is back",
                        self.meta.id
                    );
                    return Err(Error::new(Code::StorageUnavailable, what));
                }
                Ok(_) => {
                    self.journal_locked(&mut slot, scratch, from)?;
                    (head, behind, None)
                }
            }
        };
        if let Some(why) = failed {
            for spooled in scratch
                .batch
                .commits
                .iter()
                .filter_map(|c| c.spooled.as_ref())
            {
                let io = |e| Error::io("remove a spool file", e);
                self.core.parts.disk.remove(&spooled.path).map_err(io)?;
            }
            self.abandon()?;
            return Ok(Proof::Failed { behind, why });
        }
        let commits = head.txid.since(from.txid).unwrap_or(0);
        if commits > 0 {
            tracing::warn!(database = %self.meta.id, commits, "captured commits that were not journaled");
        }
        // Numbers and the change counter go in step from the recovered head on, not from the journaled one.
        let change = self.header()?.change;
        let open = Arc::get_mut(&mut self)
            .ok_or_else(|| Error::internal("a database is shared before it is open"))?;
        open.base = (head.txid, change);
        Ok(Proof::Proven(self))
    }

    /// Writes the state file: the SQLite file holds everything up to `head`, whose frame of the WAL is `wal`;
    /// `None` says that the WAL is empty.
    pub(crate) fn write_state(&self, head: Head, wal: Option<WalPosition>) -> Result<(), Error> {
        let incarnation = self
            .database_file
            .parent()
            .and_then(Path::file_name)
            .map(|name| name.to_string_lossy().into_owned())
            .ok_or_else(|| Error::internal("a database file lies in an incarnation folder"))?;
        let state = DbState {
            meta: self.meta,
            incarnation,
            head,
            wal,
            clean: wal.is_none(),
            stamp: None,
            durable: self.durable(),
        };
        state.write(self.core.parts.disk.as_ref(), &self.folder)
    }
}
