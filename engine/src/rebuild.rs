//! History as the store holds it, for one database: its manifest, and the stored journal sections that no
//! segment holds yet. From it files are made anew.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::json;
use tidelog_archive::ErrorKind;
use tidelog_archive::key::{Key, Seq};
use tidelog_archive::manifest::{Loaded, Manifest};
use tidelog_archive::plan::{self, History, Layer, Plan, PlanError, Resolved, TailSection, Target};
use tidelog_archive::restore::{FileSink, PageSink, RestoreError, RestoreSettings, execute};
use tidelog_archive::store::Store;
use tidelog_wal::{DatabaseId, NamespaceId, Position, Term, TxId};

use crate::capture::Head;
use crate::copy;
use crate::core::Core;
use crate::crash_point;
use crate::database::state::{DbState, Stamp};
use crate::database::{DbMeta, incarnation_name};
use crate::error::{Code, Error};
use crate::files::DbPaths;
use crate::gap::{self, Break};
use crate::registry::Registry;
use crate::ship::ShippedSection;

/// Stored, unsettled sections by database: what a restore reads beyond the manifest.
#[derive(Debug, Default)]
pub(crate) struct Tails {
    by_database: Mutex<HashMap<DatabaseId, Vec<Tail>>>,
}

#[derive(Debug)]
struct Tail {
    section: TailSection,
    part_bytes: u64,
}

impl Tails {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<DatabaseId, Vec<Tail>>> {
        self.by_database
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds sections that are stored.
    pub(crate) fn add(&self, sections: &[ShippedSection]) {
        let mut tails = self.lock();
        for section in sections {
            let (term, seq) = (section.object.0, Seq::new(section.object.1));
            let tail = TailSection {
                key: Key::Journal(term, seq).to_string(),
                term,
                seq,
                meta: section.meta,
                bytes: section.stored_bytes,
            };
            tails.entry(section.meta.database).or_default().push(Tail {
                section: tail,
                part_bytes: section.part_bytes,
            });
        }
    }

    /// Drops sections that are settled.
    pub(crate) fn settled(&self, id: DatabaseId, txid: TxId) {
        let mut tails = self.lock();
        if let Some(sections) = tails.get_mut(&id) {
            sections.retain(|tail| tail.section.meta.last > txid);
            if sections.is_empty() {
                tails.remove(&id);
            }
        }
    }

    /// The sections of a database.
    pub(crate) fn of(&self, id: DatabaseId) -> Vec<TailSection> {
        let tails = self.lock();
        let sections = tails.get(&id).into_iter().flatten();
        sections.map(|tail| tail.section.clone()).collect()
    }

    /// What those beyond `settled` take in the store, with the segment parts that they name; roughly.
    pub(crate) fn bytes_after(&self, id: DatabaseId, settled: TxId) -> u64 {
        let tails = self.lock();
        let sections = tails.get(&id).into_iter().flatten();
        let beyond = sections.filter(|tail| tail.section.meta.last > settled);
        beyond.fold(0, |bytes, tail| {
            bytes.saturating_add(tail.section.bytes.saturating_add(tail.part_bytes))
        })
    }
}

/// Turns a failure to find a point in time into the engine's, with the nearest usable point.
pub(crate) fn plan_error(error: PlanError) -> Error {
    let bookmark = |position: &Position| position.to_string();
    let (code, members) = match &error {
        PlanError::Unknown { head, .. } => (
            Code::BookmarkUnknown,
            vec![("current_bookmark", head.as_ref().map(bookmark))],
        ),
        PlanError::Foreign { nearest, .. } => (
            Code::BookmarkForeign,
            vec![("nearest", nearest.as_ref().map(bookmark))],
        ),
        PlanError::Lost {
            nearest_earlier, ..
        } => (
            Code::BookmarkLost,
            vec![("nearest_earlier", nearest_earlier.as_ref().map(bookmark))],
        ),
        PlanError::InFuture { head, .. } => (
            Code::BookmarkInFuture,
            vec![("current_bookmark", head.as_ref().map(bookmark))],
        ),
        PlanError::Expired { nearest, .. } | PlanError::BeforeHistory { nearest, .. } => (
            Code::BookmarkExpired,
            vec![("oldest_available", nearest.as_ref().map(bookmark))],
        ),
        PlanError::Gap {
            nearest_earlier,
            nearest_later,
            ..
        } => (
            Code::RecoveryGap,
            vec![
                ("nearest_earlier", nearest_earlier.as_ref().map(bookmark)),
                ("nearest_later", nearest_later.as_ref().map(bookmark)),
            ],
        ),
        PlanError::NoPath { .. } => (Code::ObjectCorrupt, vec![]),
        PlanError::Manifest(_) | PlanError::Read(_) => (code_of(error.kind()), vec![]),
    };
    let mut what = error.to_string();
    if let Some((name, Some(at))) = members.iter().find(|(_, at)| at.is_some()) {
        what = format!("{what}; {}: {at}", name.replace('_', " "));
    }
    let mut made = Error::new(code, what);
    for (name, at) in &members {
        made = made.with(name, at.clone());
    }
    match &error {
        PlanError::Gap { .. } => {
            // The last state before it and the first behind it, as the recovery window tells a gap.
            let mut ends = members.into_iter().map(|(_, at)| at);
            let (after, resumes) = (ends.next().flatten(), ends.next().flatten());
            made = made.with("gaps", json!([{ "after": after, "resumes": resumes }]));
        }
        PlanError::Read(read) => made = made.with("object", read.key()),
        _ => {}
    }
    let read = matches!(error, PlanError::Manifest(_) | PlanError::Read(_));
    let gone = read && error.kind() == ErrorKind::NotFound;
    made.because_gone(gone).caused_by(error)
}

fn code_of(kind: ErrorKind) -> Code {
    match kind {
        ErrorKind::Corrupt | ErrorKind::NotFound => Code::ObjectCorrupt,
        ErrorKind::Unavailable => Code::StorageUnavailable,
        ErrorKind::KeyUnavailable => Code::KeyUnavailable,
        ErrorKind::Exhausted => Code::DiskFull,
        ErrorKind::OutcomeUnknown => Code::OutcomeUnknown,
        _ => Code::Internal,
    }
}

/// Turns a failure of a restore into the engine's: it names object and offset.
pub(crate) fn restore_error(error: RestoreError) -> Error {
    let mut chain = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(inner) = source {
        chain = format!("{chain}: {inner}");
        source = inner.source();
    }
    let mut made = Error::new(code_of(error.kind()), chain);
    if let RestoreError::Read(read) = &error {
        made = made.with("object", read.key());
    }
    made.because_gone(error.kind() == ErrorKind::NotFound)
        .caused_by(error)
}

/// Awaits what reads the manifest, plans, and reads what it planned with; once more if an object was gone: journal
/// objects go once they are settled, and what is marked goes after its grace (DESIGN 5.8).
macro_rules! replanned {
    ($attempt:expr) => {
        match $attempt.await {
            Err(error) if error.is_gone() => $attempt.await,
            done => done,
        }
    };
}
pub(crate) use replanned;

/// The history of a database as it is stored, with those of the databases it was forked from.
pub(crate) async fn history(
    core: &Core,
    namespace: NamespaceId,
    id: DatabaseId,
) -> Result<History, Error> {
    let unsettled = Unsettled::of(core, id);
    let loaded = core.remote.owned_manifest(namespace, id).await?;
    history_of(core, unsettled, loaded.manifest).await
}

/// What is stored of a database and not settled.
///
/// It is looked at before the manifest is: what is settled between the two looks is then in both, else it would be in
/// neither, and a database would seem to end where its manifest once said.
#[derive(Debug)]
pub(crate) struct Unsettled {
    tail: Vec<TailSection>,
    breaks: Vec<Break>,
}

impl Unsettled {
    pub(crate) fn of(core: &Core, id: DatabaseId) -> Self {
        Self {
            tail: core.tails.of(id),
            breaks: core.breaks.of(id),
        }
    }

    /// Its newest commit.
    pub(crate) fn newest(&self) -> Option<Position> {
        let ends = self.tail.iter().map(|section| section.meta.end());
        ends.max_by_key(|end| end.txid)
    }

    /// The newest stored commit, by it and a manifest that was read later.
    pub(crate) fn stored(&self, manifest: &Manifest) -> Option<Position> {
        match (manifest.settled_position(), self.newest()) {
            (Some(a), Some(b)) => Some(if a.txid >= b.txid { a } else { b }),
            (one, other) => one.or(other),
        }
    }
}

/// The history by a manifest, and what was not settled before it was read.
pub(crate) async fn history_of(
    core: &Core,
    unsettled: Unsettled,
    manifest: Manifest,
) -> Result<History, Error> {
    let (mut unsettled, mut manifest) = (unsettled, manifest);
    let mut layers = Vec::new();
    loop {
        let Unsettled { tail, breaks } = unsettled;
        let stored = tail.iter().map(|section| section.meta.last).max();
        gap::tell(&breaks, &mut manifest, stored);
        let parent = manifest.parent;
        layers.push(Layer {
            manifests: core.remote.manifests(manifest.namespace, manifest.database),
            tail,
            manifest,
        });
        let Some(parent) = parent else { break };
        unsettled = Unsettled::of(core, parent.database);
        manifest = core
            .remote
            .owned_manifest(parent.namespace, parent.database)
            .await?
            .manifest;
    }
    History::new(layers).ok_or_else(|| Error::internal("a history without a database"))
}

/// The terms of the cluster, for telling a lost bookmark from an unknown one.
pub(crate) fn present(own: Term) -> plan::Terms {
    plan::Terms {
        highest_claimed: own,
        present: Some(own),
    }
}

/// Finds what `target` means and plans the way there.
pub(crate) async fn plan(
    store: &Store,
    history: &mut History,
    target: Target,
    terms: plan::Terms,
) -> Result<Plan, Error> {
    let resolved: Resolved = history
        .resolve(store, target, terms)
        .await
        .map_err(plan_error)?;
    history.plan(resolved, None).await.map_err(plan_error)
}

/// Executes a plan into a file that must not exist.
pub(crate) async fn materialise(store: &Store, plan: &Plan, path: &Path) -> Result<(), Error> {
    let sink =
        FileSink::create(path).map_err(|e| Error::io(format!("create {}", path.display()), e))?;
    materialise_into(store, plan, sink).await.map(drop)
}

/// Executes a plan into a sink, which is handed back.
pub(crate) async fn materialise_into<S: PageSink + 'static>(
    store: &Store,
    plan: &Plan,
    sink: S,
) -> Result<S, Error> {
    let done = execute(store, plan, sink, RestoreSettings::default()).await;
    done.map(|(sink, _)| sink).map_err(restore_error)
}

/// The files of a database at the newest stored commit, in a new incarnation of its folder, and that commit. Those of
/// an untouched fork may be copied from its parent's, where `registry` has them.
async fn newest_files(
    core: &Arc<Core>,
    registry: Option<&Registry>,
    (namespace, id): (NamespaceId, DatabaseId),
    folder: &Path,
) -> Result<(String, Resolved), Error> {
    let incarnation = incarnation_name(core);
    let files = folder.join(&incarnation);
    let io = |e| Error::io("restore a database", e);
    core.parts.disk.create_folder(&files).map_err(io)?;
    let path = DbPaths::in_folder(&files).database;
    if let Some(registry) = registry {
        match copy::fork_files(core, registry, (namespace, id), path.clone()).await {
            Ok(Some(state)) => return Ok((incarnation, state)),
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(database = %id, %error, "not copied from its parent's files; the store is asked");
            }
        }
    }
    let mut history = history(core, namespace, id).await?;
    let store = &core.remote.store;
    let plan = plan(store, &mut history, Target::Head, present(core.term())).await?;
    materialise(store, &plan, &path).await?;
    Ok((incarnation, plan.target))
}

/// Makes the files of a database at the newest stored commit, in a new incarnation, and says so in its state
/// file. An incarnation that stood there is removed afterwards.
pub(crate) async fn restore_files(
    core: &Arc<Core>,
    registry: Option<&Registry>,
    loaded: &Loaded,
    old: Option<DbState>,
) -> Result<DbState, Error> {
    let manifest = &loaded.manifest;
    let (namespace, id) = (manifest.namespace, manifest.database);
    if core.journal.holds(id) {
        // Commits of this life whose files were not finished are read back from the store.
        core.journal
            .wait_shipped(core.journal.appended_lsn())
            .await?;
    }
    let folder = core.database_folder(id);
    let io = |e| Error::io("restore a database", e);
    core.parts.disk.create_folder(&folder).map_err(io)?;
    let (incarnation, target) = replanned!(newest_files(core, registry, (namespace, id), &folder))?;
    let head = Head {
        term: target.position.term,
        txid: target.position.txid,
        chain: target.position.chain,
        pages: target.n,
        digest: target.digest,
        time: target.time,
    };
    let meta = DbMeta {
        id,
        namespace,
        page_size: manifest.page_size,
        seed: manifest.seed,
    };
    // A fork that was never written begins with a record that says so.
    let head = match manifest
        .parent
        .filter(|parent| parent.at == head.position())
    {
        Some(parent) => crate::travel::forks::first_record(core, meta, &parent, head)?,
        None => head,
    };
    let file = DbPaths::in_folder(&folder.join(&incarnation)).database;
    let state = DbState {
        meta,
        incarnation,
        head,
        wal: None,
        clean: true,
        // Its digest was proven as it was written: opening need not prove it again.
        stamp: Stamp::of(&file),
        durable: Some(target.position),
    };
    crash_point!("restore.before_state");
    state.write(core.parts.disk.as_ref(), &folder)?;
    crash_point!("restore.after_state");
    if let Some(old) = old {
        std::fs::remove_dir_all(folder.join(old.incarnation)).map_err(io)?;
    }
    core.journal.set_checkpointed(id, head.txid);
    Ok(state)
}
