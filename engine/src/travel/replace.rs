//! Replacing a live database by a file, in place: one more commit, so that a rewind to the bookmark before it
//! takes it back. Readers keep their snapshot, writers wait for one transaction, clients stay connected.
//!
//! The file is hostile until it is proven (see [`crate::import`]), and it must fit the database: a page size, a
//! text encoding and bytes reserved in each page are for the life of a database, because connections that are
//! open have them in memory.
//!
//! What is to come (page count and digest) is noted in the operation before anything changes: a process life
//! that finds the operation open looks for that state behind the bookmark before.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value as Json, json};
use tempfile::TempDir;
use tidelog_wal::record::{Annotation, tag};
use tidelog_wal::{Digest, PageCount, Position};

use super::archives::digest_of_file;
use super::restores::{Outcome, RestoreRecord, RolledBackKey};
use super::rewind::{Changed, Source, Staged, put_in_place, raw_connection, taken_back};
use crate::boxed;
use crate::capture::{CommitNote, Wanted};
use crate::crash_point;
use crate::database::Lease;
use crate::engine::{Database, Engine};
use crate::error::{Code, Error};
use crate::executor::blocking;
use crate::import::prove_at;
use crate::operations::{Begins, Handle, NewOperation, Operation, OperationType, Task, decided};
use crate::scratch;
use crate::settings::Durability;
use crate::sql::policy::Permission;
use crate::system::Page;

/// Bytes of a database header that say what every connection keeps in memory: offset, length, what it is.
const FIXED: [(usize, usize, &str); 2] = [
    (20, 1, "bytes reserved in each page"),
    (56, 4, "text encoding"),
];
/// Bytes of a database header.
const HEADER: usize = 100;

/// A file that is proven and fits.
struct Fitting {
    folder: TempDir,
    file: PathBuf,
    to: Wanted,
}

impl Database {
    /// Begins to replace the database by a SQLite file; `only_at` is where it must still be. The file is copied
    /// and proven before this returns: [`Code::ImportInvalid`] says what is wrong with it, or why it does not fit.
    #[boxed]
    pub async fn replace(
        &self,
        file: &Path,
        only_at: Option<Position>,
        token: Option<String>,
    ) -> Result<Handle, Error> {
        let row = self.row();
        if row.block_writes {
            let what = format!("writes to database {:?} are blocked", row.name);
            return Err(Error::new(Code::DatabaseReadOnly, what));
        }
        self.history_pause().await;
        self.admit_history()?;
        let lease = self.lease().await?;
        let fitting = self.fitting(&lease, file).await?;
        let previous = lease.head().position();
        check_place(only_at, previous)?;
        let id = self.restore_id();
        let operation = NewOperation {
            kind: OperationType::Import,
            namespace: row.namespace,
            database: Some((row.id, row.name.clone())),
            exclusive: true,
            token: token.clone(),
            note: json!({
                "replace": id,
                "previous": previous.to_string(),
                "pages": fitting.to.n.get(),
                "digest": fitting.to.digest.to_string(),
            }),
            begins: Begins::Stored,
        };
        let database = self.clone();
        let work = move |task| async move {
            run(&database, lease, fitting, only_at, (id, token), &task).await
        };
        self.engine().operate(operation, work).await
    }

    /// Copies and proves the file, and refuses one that does not fit.
    async fn fitting(&self, lease: &Lease, file: &Path) -> Result<Fitting, Error> {
        let core = &lease.core;
        let io = |e| Error::io("look at the file to import", e);
        let bytes = std::fs::metadata(file).map_err(io)?.len();
        if let Some(limit) = self.row().size_limit.filter(|limit| bytes > *limit) {
            let what = format!("the file has {bytes} bytes, the database may have {limit}");
            return Err(Error::new(Code::QuotaExceeded, what)
                .with("limit", limit)
                .with("used", bytes));
        }
        let folder = scratch::folder(core, "an import", bytes)?;
        let (from, to) = (file.to_owned(), folder.path().join("db.sqlite"));
        let ours = page_one(lease).await?;
        let database = Arc::clone(lease);
        let copy = to.clone();
        let wanted = blocking(lease.core.executor(), move || {
            let (size, pages) = prove_at(&from, &copy)?;
            let meta = database.meta();
            if size != meta.page_size {
                let (theirs, ours) = (size.get(), meta.page_size.get());
                let what = format!(
                    "the file has pages of {theirs} bytes and the database of {ours}: a database keeps its page \
                     size; import the file under a new name, or VACUUM it with `PRAGMA page_size={ours}` first"
                );
                return Err(Error::new(Code::ImportInvalid, what)
                    .with("page_size", ours)
                    .with("found", theirs));
            }
            check_header(&ours, &copy)?;
            let digest = digest_of_file(&copy, size, pages, meta.seed)?;
            Ok(Wanted { n: pages, digest })
        })
        .await?;
        Ok(Fitting {
            folder,
            file: to,
            to: wanted,
        })
    }
}

fn check_place(only_at: Option<Position>, now: Position) -> Result<(), Error> {
    if only_at.is_none_or(|at| at == now) {
        return Ok(());
    }
    let what = format!("the database has moved: it is at {now}");
    Err(Error::new(Code::DatabaseMoved, what).with("current_bookmark", now.to_string()))
}

/// The first page of the live database.
async fn page_one(lease: &Lease) -> Result<Vec<u8>, Error> {
    let reader = lease.reader().await?;
    blocking(lease.core.executor(), move || {
        reader.transaction(Permission::READ, None, |sqlite| {
            let sql = "SELECT data FROM sqlite_dbpage WHERE pgno = 1";
            sqlite
                .as_engine(|c| c.query_row(sql, [], |row| row.get(0)))
                .map_err(|error| crate::sql::run::sql_error(sqlite, error))
        })
    })
    .await
}

/// Compares what connections keep in memory of a database.
fn check_header(ours: &[u8], file: &Path) -> Result<(), Error> {
    use std::io::Read as _;
    let io = |e| Error::io("read the file to import", e);
    let mut theirs = [0; HEADER];
    let mut opened = std::fs::File::open(file).map_err(io)?;
    opened.read_exact(&mut theirs).map_err(io)?;
    for (at, len, what) in FIXED {
        let of = |header: &[u8]| -> u64 {
            let bytes = header.get(at..at + len).unwrap_or_default();
            let value = bytes
                .iter()
                .fold(0, |all, byte| all << 8 | u64::from(*byte));
            // A database without a table may not have chosen its encoding: it will be UTF-8.
            if at == 56 { value.max(1) } else { value }
        };
        if of(&theirs) != of(ours) {
            let what = format!(
                "the file's {what} ({}) differs from the database's ({}), which keeps its own: import the file \
                 under a new name",
                of(&theirs),
                of(ours)
            );
            return Err(Error::new(Code::ImportInvalid, what));
        }
    }
    Ok(())
}

async fn run(
    database: &Database,
    lease: Lease,
    fitting: Fitting,
    only_at: Option<Position>,
    (id, token): (String, Option<String>),
    task: &Task,
) -> Result<Json, Error> {
    let engine = database.engine();
    let core = &engine.inner.core;
    let began = core.parts.clock.monotonic_micros();
    let created_at = core.parts.clock.wall();
    let size = u64::from(lease.meta().page_size.get());
    task.phase("compare", u64::from(fitting.to.n.get()) * size)?;
    let hold = core.journal.hold(lease.meta().id, lease.head().txid);
    let (open, comparing) = (Arc::clone(&lease), task.clone());
    let compared = blocking(lease.core.executor(), move || {
        let progress = |pages: u64, of: u64| {
            comparing.progress_of(pages * size, of * size);
            comparing.check()
        };
        let source = Source::open(&fitting.file)?;
        let staged = Staged::make(&open, source, fitting.to, hold, &progress)?;
        let raw = raw_connection(&open, &staged)?;
        Ok((staged, raw, fitting.folder))
    });
    let (staged, raw, folder) = compared.await?;
    task.phase("wait_for_writers", 0)?;
    let gate = task.unless_stopped(lease.gate()).await?;
    task.phase("apply", 0)?;
    task.point_of_no_return()?;
    let note = CommitNote {
        annotations: annotations(token.as_deref()),
        ..CommitNote::default()
    };
    let (open, progressing) = (Arc::clone(&lease), task.clone());
    let put_off = lease.put_off_backfill();
    crash_point!("replace.before_commit");
    let done = blocking(lease.core.executor(), move || {
        let head = open.capture_now()?;
        check_place(only_at, head.position())?;
        let progress = |pages: u64, of: u64| progressing.progress_of(pages * size, of * size);
        let done = put_in_place((gate, raw), head, staged, note, &progress)?;
        drop(folder);
        Ok(done)
    });
    let changed = match done.await {
        Err(error) if lease.is_poisoned() => {
            core.rolled_back.undecided(task.id(), lease.meta().id);
            // It is opened anew once nobody holds it any more.
            drop(lease);
            return decided(engine, task, error).await;
        }
        changed => changed?,
    };
    let Changed {
        from,
        ticket,
        pages,
        rolled_back,
    } = changed;
    let previous = from.position();
    put_off.until(task.ended());
    crash_point!("replace.after_commit");
    let bookmark = ticket.wait(Durability::Memory).await?;
    let row = database.row();
    let ended = core.parts.clock.wall();
    let record = RestoreRecord {
        id,
        namespace: row.namespace,
        database: row.id,
        operation: task.id(),
        created_at,
        ended_at: Some(ended),
        token,
        reason: Some("replaced by an imported file".to_owned()),
        undo_of: None,
        target: bookmark,
        previous,
        bookmark: Some(bookmark),
        outcome: Outcome::Succeeded,
        archive: None,
        preserved_as: None,
        pages_changed: Some(pages),
        duration_micros: Some(core.parts.clock.monotonic_micros().saturating_sub(began)),
        error: None,
    };
    let keys = RolledBackKey::all(rolled_back, ended);
    engine.inner.system.restore_put(&record, keys).await?;
    ticket.wait(Durability::Remote).await.map_err(|error| {
        error
            .with("bookmark", bookmark.to_string())
            .with("previous_bookmark", previous.to_string())
    })?;
    Ok(result(&record))
}

fn annotations(token: Option<&str>) -> Vec<Annotation> {
    let id = token.and_then(crate::system::tokens::parse_token_id);
    id.map(|id| Annotation {
        tag: tag::TOKEN,
        value: id.to_vec(),
    })
    .into_iter()
    .collect()
}

fn result(record: &RestoreRecord) -> Json {
    let bookmark = record.bookmark.map(|at| at.to_string());
    let previous = record.previous.to_string();
    json!({
        "restore": {
            "id": record.id,
            "from": previous,
            "to": record.target.to_string(),
            "bookmark": bookmark,
            "previous_bookmark": previous,
            "pages_changed": record.pages_changed,
            "duration_ms": record.duration_micros.unwrap_or(0) / 1000,
        },
        "bookmark": bookmark,
        "previous_bookmark": previous,
    })
}

/// Whether a replacement that an earlier life left open stands: by the history itself.
pub(crate) async fn recover(engine: &Engine, operation: &Operation) -> Result<Option<Json>, Error> {
    let ended = find(engine, operation).await?;
    engine.inner.core.rolled_back.decided(&operation.id);
    Ok(ended)
}

async fn find(engine: &Engine, operation: &Operation) -> Result<Option<Json>, Error> {
    let note = &operation.note;
    let text = |name: &str| note.get(name).and_then(Json::as_str);
    let (Some(id), Some(previous), Some(digest)) = (
        text("replace"),
        text("previous").and_then(|text| text.parse::<Position>().ok()),
        text("digest").and_then(|text| u64::from_str_radix(text, 16).ok()),
    ) else {
        return Ok(None);
    };
    let pages = note.get("pages").and_then(Json::as_u64);
    let pages = pages.and_then(|pages| u32::try_from(pages).ok());
    let (Some(pages), Some(name)) = (pages, &operation.database_name) else {
        return Ok(None);
    };
    let wanted = (PageCount::new(pages), Digest::from_u64(digest));
    let database = match engine.database(operation.namespace, name).await {
        Ok(database) if Some(database.row().id) == operation.database => database,
        Ok(_) => return Ok(None),
        Err(error) if error.code() == Code::DatabaseNotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let (mut before, mut cursor) = (previous, None);
    loop {
        let page = Page { limit: 500, cursor };
        let from = Some(previous.txid.next());
        let page = database.commits(from, None, page).await?;
        for commit in &page.items {
            if (commit.n, commit.digest) == wanted {
                let record = RestoreRecord {
                    id: id.to_owned(),
                    namespace: operation.namespace,
                    database: database.row().id,
                    operation: operation.id.clone(),
                    created_at: operation.started_at,
                    ended_at: Some(engine.now()),
                    token: operation.token.clone(),
                    reason: Some("replaced by an imported file".to_owned()),
                    undo_of: None,
                    target: commit.position,
                    previous: before,
                    bookmark: Some(commit.position),
                    outcome: Outcome::Succeeded,
                    archive: None,
                    preserved_as: None,
                    pages_changed: None,
                    duration_micros: None,
                    error: None,
                };
                let keys = taken_back(&database, before).await?;
                engine.inner.system.restore_put(&record, keys).await?;
                return Ok(Some(result(&record)));
            }
            before = commit.position;
        }
        cursor = page.next_cursor;
        if cursor.is_none() {
            return Ok(None);
        }
    }
}
