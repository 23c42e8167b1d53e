//! Running a rewind: gather, note, catch up, change, wait.

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Value as Json, json};
use tidelog_archive::plan::Start;
use tidelog_archive::restore::{RestoreSettings, merge_watched};
use tidelog_wal::record::{RestoreNote, tag};
use tidelog_wal::{PageSize, Position, Timestamp};

use super::apply::{Changed, put_in_place, raw_connection};
use super::plan::{Log, Origin, RewindPlan};
use super::stage::{Source, Staged};
use super::xors::PageXors;
use super::{Accepted, moved, stale};
use crate::bucket::At;
use crate::capture::{CommitNote, Head, Wanted};
use crate::core::Core;
use crate::crash_point;
use crate::database::Lease;
use crate::engine::Database;
use crate::error::{Code, Error};
use crate::executor::blocking;
use crate::journal::hold::ChunkHold;
use crate::operations::{Task, decided};
use crate::rebuild::restore_error;
use crate::rules::rule;
use crate::scratch::{PageWriter, ScratchPages};
use crate::settings::Durability;
use crate::sql::policy::Permission;
use crate::travel::archives::{Archive, Wrong, unpack_into};
use crate::travel::labels::{NewSnapshot, State, check_name};
use crate::travel::restores::{Outcome, RestoreRecord, RolledBackKey};
use crate::travel::watched::materialise_into;

/// Commits that may be left for the gate: catching up before it goes on until so few are missing.
const LEFT_FOR_GATE: u64 = 64;
/// How often it catches up before the gate is taken all the same.
const CATCH_UPS: usize = 5;

/// The note of a snapshot that a restore makes.
const PRESERVED: &str = "the state before a restore";

/// What was gathered from the store.
struct Gathered {
    source: Source,
    /// Keeps what was committed since.
    hold: ChunkHold,
}

/// The restore of one accepted rewind, to its end.
///
/// Its record is stored while the state to come is made, and before anything is changed. What follows the change is
/// committed behind it and stored behind it, in the order of the node's log: the operation's end is stored last, and
/// with it all of that.
pub(super) async fn run(
    database: &Database,
    task: &Task,
    id: String,
    plan: RewindPlan,
    accepted: Accepted,
) -> Result<Json, Error> {
    let engine = database.engine();
    let clock = Arc::clone(&engine.inner.core.parts.clock);
    let began = clock.monotonic_micros();
    let lease = database.lease().await?;
    let row = database.row();
    let mut record = RestoreRecord {
        id: id.clone(),
        namespace: row.namespace,
        database: row.id,
        operation: task.id(),
        created_at: clock.wall(),
        ended_at: None,
        token: accepted.rewind.token.clone(),
        reason: accepted.rewind.reason.clone(),
        undo_of: accepted.undo_of.as_ref().map(|undo| undo.id.clone()),
        target: plan.target.position,
        previous: lease.head().position(),
        bookmark: None,
        outcome: Outcome::Running,
        archive: plan.archive().map(|archive| archive.id.to_string()),
        preserved_as: accepted.rewind.preserve_as.clone(),
        pages_changed: None,
        duration_micros: None,
        error: None,
    };
    let system = &engine.inner.system;
    let asked_at = record.created_at;
    crash_point!("restore.before_record");
    let staging = prepared(database, &lease, task, plan);
    let (noted, staged) = tokio::join!(system.restore_put(&record, Vec::new()), staging);
    let (plan, staged) = match noted.and(staged) {
        Ok(staged) => staged,
        Err(error) => {
            if let Err(left) = system.restore_forget(&id).await {
                tracing::warn!(restore = %id, error = %left, "the record of a restore that changed nothing stays");
            }
            return Err(error);
        }
    };
    crash_point!("restore.after_record");
    let preserved = state(&lease.head());
    let named = match &accepted.rewind.preserve_as {
        Some(name) => preserve(database, name, preserved).await,
        None => Ok(()),
    };
    let changed = match named {
        Ok(()) => change(&lease, task, staged, &plan, &accepted).await,
        Err(error) => Err(error),
    };
    crash_point!("restore.after_commit");
    let changed = match changed {
        Err(error) if lease.is_poisoned() && rule!("rewind.history_decides") => {
            let rolled_back = &engine.inner.core.rolled_back;
            rolled_back.undecided(task.id(), record.database);
            // It is opened anew once nobody holds it any more.
            drop(lease);
            let mut result = decided(engine, task, error).await?;
            if accepted.rewind.quick_check {
                let checked = quick_check(&database.lease().await?).await?;
                result["restore"]["quick_check"] = json!(checked);
            }
            task.phase("store", 0)?;
            return Ok(result);
        }
        changed => changed,
    };
    if let Some(name) = &accepted.rewind.preserve_as {
        let from = changed.as_ref().ok().map(|changed| changed.from);
        if let Err(error) = preserved_at(database, name, asked_at, from.as_ref()).await {
            tracing::warn!(snapshot = name, %error, "what a restore preserves is not exact");
            let at = preserved.0;
            record.error = Some(format!("the snapshot {name:?} is of {at}: {error}"));
        }
    }
    let outcome = match changed {
        Ok(changed) => {
            let keys = changed.rolled_back.clone();
            let finished = finish(&lease, &mut record, changed, &accepted).await;
            finished
                .map_err(|error| (error, keys.clone()))
                .map(|quick| (quick, keys))
        }
        Err(error) => Err((error, Vec::new())),
    };
    let ended = clock.wall();
    record.ended_at = Some(ended);
    record.duration_micros = Some(clock.monotonic_micros().saturating_sub(began));
    let remembered = |keys: Vec<String>| RolledBackKey::all(keys, ended);
    let (keys, ended) = match outcome {
        Ok((quick, keys)) => {
            record.outcome = Outcome::Succeeded;
            (keys, Ok(result(&record, &plan, quick.as_deref())))
        }
        Err((error, keys)) => {
            // What stands behind the commit is not undone by an error that came later.
            record.outcome = match record.bookmark {
                Some(_) => Outcome::Succeeded,
                None => Outcome::Failed,
            };
            record.error = Some(error.to_string());
            (keys, Err(error))
        }
    };
    // The end of the operation is stored behind it, and waits for both.
    let _ = system.restore_note(&record, remembered(keys)).await?;
    crash_point!("restore.after_end");
    let ended = ended?;
    task.phase("store", 0)?;
    Ok(ended)
}

/// A captured state, to be named.
fn state(head: &Head) -> State {
    (head.position(), head.time, head.pages)
}

/// Makes the state to come outside the write gate, and what was committed meanwhile as far as that can be done.
async fn prepared(
    database: &Database,
    lease: &Lease,
    task: &Task,
    plan: RewindPlan,
) -> Result<(RewindPlan, Staged), Error> {
    let (plan, mut staged) = match staged(lease, &plan, task).await {
        // What was settled since the plan was made may have taken the place of objects it reads, or of the chunks
        // that go on from them.
        Err(error) if error.is_gone() && plan.archive().is_none() && !lease.is_poisoned() => {
            let plan = replan(database, plan, Log::Shortest).await?;
            let again = staged(lease, &plan, task).await?;
            (plan, again)
        }
        // What earlier restores recorded is not what they did. The log alone tells; nothing was touched.
        Err(error)
            if matches!(error.code(), Code::DatabaseCorrupt | Code::ObjectCorrupt)
                && plan.is_shortened()
                && !lease.is_poisoned()
                && rule!("rewind.whole_log") =>
        {
            tracing::warn!(database = %database.row().id, %error, "the records of restores do not fit the log");
            let plan = replan(database, plan, Log::Whole).await?;
            let again = staged(lease, &plan, task).await?;
            (plan, again)
        }
        staged => (plan, staged?),
    };
    task.phase("catch_up", 0)?;
    for _ in 0..CATCH_UPS {
        let many;
        (staged, many) = catch_up(lease, staged).await?;
        if !many {
            break;
        }
    }
    Ok((plan, staged))
}

fn result(record: &RestoreRecord, plan: &RewindPlan, quick_check: Option<&str>) -> Json {
    let bookmark = record.bookmark.map(|at| at.to_string());
    json!({
        "restore": {
            "id": record.id,
            "from": record.previous.to_string(),
            "to": record.target.to_string(),
            "bookmark": bookmark,
            "previous_bookmark": record.previous.to_string(),
            "preserved_as": record.preserved_as,
            "pages_changed": record.pages_changed,
            "commits_undone": record.previous.txid.since(record.target.txid).unwrap_or(0),
            "way": plan.way().as_str(),
            "archive": record.archive,
            "quick_check": quick_check,
            "duration_ms": record.duration_micros.unwrap_or(0) / 1000,
        },
        "bookmark": bookmark,
        "previous_bookmark": record.previous.to_string(),
    })
}

fn scratch(core: &Core) -> PathBuf {
    core.settings.data.join("scratch")
}

/// The same plan over what is listed now.
async fn replan(database: &Database, plan: RewindPlan, log: Log) -> Result<RewindPlan, Error> {
    let target = At::Bookmark(plan.target.position);
    let anew = database.plan_back(target, log).await?;
    Ok(RewindPlan {
        id: plan.id,
        current: plan.current,
        made_at: plan.made_at,
        ..anew
    })
}

/// Reads the state to come and makes its pages.
async fn staged(lease: &Lease, plan: &RewindPlan, task: &Task) -> Result<Staged, Error> {
    task.phase("read_log", plan.bytes_to_fetch())?;
    let gathered = task.unless_stopped(gather(lease, plan, task)).await?;
    let page = u64::from(plan.page_size.get());
    task.phase("compare", 0)?;
    let wanted = Wanted {
        n: plan.target.n,
        digest: plan.target.digest,
    };
    let (database, comparing) = (Arc::clone(lease), task.clone());
    blocking(lease.core.executor(), move || {
        let Gathered { source, hold } = gathered;
        let progress = |pages: u64, of: u64| {
            comparing.progress_of(pages * page, of * page);
            comparing.check()
        };
        Staged::make(&database, source, wanted, hold, &progress)
    })
    .await
}

async fn gather(lease: &Lease, plan: &RewindPlan, task: &Task) -> Result<Gathered, Error> {
    let core = &lease.core;
    let store = &core.remote.store;
    let id = lease.meta().id;
    // Before anything is read: what is committed meanwhile stays in the journal.
    let now = lease.head().txid;
    let history = match &plan.origin {
        Origin::History(history) => history,
        Origin::Archive(archive) => {
            let hold = core.journal.hold(id, now);
            return unpacked(core, archive, plan.page_size, hold, task).await;
        }
    };
    if let Start::Base(base) = &history.start {
        let hold = core.journal.hold(id, base.txid);
        let xors = PageXors::new(plan.page_size, scratch(core));
        let fetched = |bytes| task.progress(bytes);
        let merged =
            merge_watched(store, history, xors, RestoreSettings::default(), &fetched).await;
        let (xors, _) = merged.map_err(restore_error)?;
        return Ok(Gathered {
            source: Source::Xors(xors, Some(base.txid)),
            hold,
        });
    }
    let hold = core.journal.hold(id, now);
    let bytes = plan.target.n.bytes(plan.page_size);
    let pages = ScratchPages::create(core, "a restore", plan.page_size, bytes)?;
    task.phase("read_log", bytes)?;
    match materialise_into(store, history, pages, task).await {
        Ok((pages, _)) => Ok(Gathered {
            source: Source::Pages(pages),
            hold,
        }),
        Err(error) => {
            task.check()?;
            Err(restore_error(error))
        }
    }
}

/// The state of an archive, proven by its SHA-256; its digest is proven when it is applied.
async fn unpacked(
    core: &Arc<Core>,
    archive: &Archive,
    size: PageSize,
    hold: ChunkHold,
    task: &Task,
) -> Result<Gathered, Error> {
    let pages = ScratchPages::create(core, "a restore", size, archive.document.bytes)?;
    let unpacked = unpack_into(core, archive, PageWriter::new(pages), task).await?;
    let whole = unpacked.and_then(|writer| {
        let part = |_| Wrong("it does not end with a page".to_owned());
        writer.finish().map_err(part)
    });
    match whole {
        Ok(pages) => Ok(Gathered {
            source: Source::Pages(pages),
            hold,
        }),
        Err(Wrong(what)) => {
            let what = format!("archive {} is damaged: {what}", archive.id);
            Err(Error::new(Code::ObjectCorrupt, what))
        }
    }
}

/// Sees to it that the snapshot names the state the restore began at, and that none stays of one that failed.
async fn preserved_at(
    database: &Database,
    name: &str,
    since: Timestamp,
    from: Option<&Head>,
) -> Result<(), Error> {
    let at = from.map(Head::position);
    match (missing(database, name, since, at).await?, from) {
        // Commits that came in between belong to what is preserved.
        (Some(_), Some(from)) => preserve(database, name, state(from)).await,
        _ => Ok(()),
    }
}

/// Deletes the snapshot of this name where it is not of the state `from`; answers that where there is none of it then.
/// What was not made `since` it was asked for is somebody else's, and stays as it is.
pub(super) async fn missing(
    database: &Database,
    name: &str,
    since: Timestamp,
    from: Option<Position>,
) -> Result<Option<Position>, Error> {
    let manifest = database.manifest().await?.manifest;
    if let Some(label) = manifest.labels.iter().find(|label| label.name == name) {
        let ours = label.note == PRESERVED && label.created >= since;
        if !ours || from == Some(label.position) {
            return Ok(None);
        }
        database.snapshot_delete(name, true).await?;
    }
    Ok(from)
}

/// Pins the state before, under the name that was asked for.
pub(super) async fn preserve(database: &Database, name: &str, state: State) -> Result<(), Error> {
    check_name(name)?;
    let new = NewSnapshot {
        name: name.to_owned(),
        note: PRESERVED.to_owned(),
        at: At::Bookmark(state.0),
        pin: true,
        expires_at: None,
    };
    database.snapshot_of(new, state).await.map(drop)
}

/// Adds the commits that were captured since; answers whether many were.
async fn catch_up(lease: &Lease, mut staged: Staged) -> Result<(Staged, bool), Error> {
    let database = Arc::clone(lease);
    blocking(lease.core.executor(), move || {
        let head = database.capture_now()?;
        let added = staged.catch_up(&database, &head)?;
        Ok((staged, added > LEFT_FOR_GATE))
    })
    .await
}

/// Takes the gate and puts the database to the state.
async fn change(
    lease: &Lease,
    task: &Task,
    staged: Staged,
    plan: &RewindPlan,
    accepted: &Accepted,
) -> Result<Changed, Error> {
    task.phase("wait_for_writers", 0)?;
    let database = Arc::clone(lease);
    let opened = blocking(lease.core.executor(), move || {
        let raw = raw_connection(&database, &staged)?;
        Ok((raw, staged))
    });
    let (raw, staged) = opened.await?;
    // A writer may hold it for long: whoever cancels meanwhile does not wait for them.
    let gate = task.unless_stopped(lease.gate()).await?;
    task.phase("apply", 0)?;
    task.point_of_no_return()?;
    let database = Arc::clone(lease);
    let (to, current) = (plan.target.position, plan.current.position());
    let planned = accepted.rewind.plan.is_some();
    let (accepted, progressing) = (accepted.clone(), task.clone());
    let put_off = lease.put_off_backfill();
    let changed = blocking(lease.core.executor(), move || {
        let head = database.capture_now()?;
        let now = head.position();
        if accepted.rewind.only_at.is_some_and(|at| at != now) {
            return Err(moved(&accepted, now));
        }
        if planned && current != now {
            return Err(stale(now));
        }
        let restore = RestoreNote {
            from: now,
            to,
            undo: now,
        };
        let note = CommitNote {
            annotations: accepted.rewind.annotations(),
            restore: Some(restore),
            ..CommitNote::default()
        };
        let page = u64::from(database.meta().page_size.get());
        let progress = |pages: u64, of: u64| progressing.progress_of(pages * page, of * page);
        put_in_place((gate, raw), head, staged, note, &progress)
    });
    let changed = changed.await?;
    // The operation ends once all of it is stored.
    put_off.until(task.ended());
    Ok(changed)
}

/// Waits until the restore is in the node's log, and checks the state if asked.
async fn finish(
    lease: &Lease,
    record: &mut RestoreRecord,
    changed: Changed,
    accepted: &Accepted,
) -> Result<Option<String>, Error> {
    record.previous = changed.from.position();
    record.pages_changed = Some(changed.pages);
    let position = changed.ticket.wait(Durability::Memory).await?;
    record.bookmark = Some(position);
    if accepted.rewind.quick_check {
        return quick_check(lease).await.map(Some);
    }
    Ok(None)
}

async fn quick_check(lease: &Lease) -> Result<String, Error> {
    let reader = lease.reader().await?;
    let checked = blocking(lease.core.executor(), move || {
        reader.transaction(Permission::READ, None, |sqlite| {
            sqlite
                .as_engine(|c| c.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)))
                .map_err(|error| crate::sql::run::sql_error(sqlite, error))
        })
    })
    .await;
    match checked {
        // It is a look at a state whose digest is proven: what ends it does not undo the restore.
        Err(error) if error.code() == Code::QueryTimeout => Ok(format!("not finished: {error}")),
        checked => checked,
    }
}

impl super::Rewind {
    fn annotations(&self) -> Vec<tidelog_wal::record::Annotation> {
        let id = self
            .token
            .as_deref()
            .and_then(crate::system::tokens::parse_token_id);
        id.map(|id| tidelog_wal::record::Annotation {
            tag: tag::TOKEN,
            value: id.to_vec(),
        })
        .into_iter()
        .collect()
    }
}
