//! Starting a node: which bucket, which term, what the last lives left.
//!
//! The order matters: the folder is locked, the store proven fit, the root read; then a term is claimed; then
//! the terms this node had before are closed, so that nothing of an earlier life can still land; only then is
//! the journal of this life made and what was not stored goes out again. Nothing is served before.

use std::collections::HashMap;
use std::sync::Arc;

use tidelog_archive::ErrorKind;
use tidelog_archive::envelope::WriteId;
use tidelog_archive::key::Key;
use tidelog_archive::root::Root;
use tidelog_archive::store::{Store, StoreError, StoreOptions, StoreSettings};
use tidelog_archive::term::{End, Terms};
use tidelog_wal::{ClusterId, DatabaseId, NamespaceId, NodeId, Term};

use super::detached;
use super::identity::{FolderLock, Identity};
use super::inherit::{Inherited, inherit};
use super::keys::{is_sealed, prepare_bucket, refuse_unsealed, seal_disk, unlock_bucket};
use super::life::Life;
use super::tail::unsettled;
use super::terms::{Closed, close_earlier, refuse_beside_open, term_error};
use crate::core::{Core, Parts};
use crate::crash_point;
use crate::error::{Code, Error};
use crate::journal::replay::{Replay, replay};
use crate::journal::{Journal, JournalParts};
use crate::remote::Remote;
use crate::settings::{Settings, TakeOver};
use crate::ship::ShippedSection;
use crate::sql::connection::{unfit_library, use_temp_folder};

/// A node that has its term and its journal, and serves nothing yet.
#[derive(Debug)]
pub(crate) struct Started {
    pub(crate) lock: FolderLock,
    pub(crate) core: Arc<Core>,
    pub(crate) terms: Terms,
    /// Stored sections that no segment holds yet.
    pub(crate) tail: Vec<ShippedSection>,
    pub(crate) root: Root,
    pub(crate) inherited: Inherited,
    /// The bucket was empty: everything is still to be made.
    pub(crate) fresh: bool,
    /// What to tell the person who started it.
    pub(crate) notices: Vec<String>,
    /// The store, if it could not be reached.
    pub(crate) away: Option<Store>,
}

/// Turns a failure of the store into the engine's.
pub(crate) fn store_error(what: &str, error: StoreError) -> Error {
    let code = match error.kind() {
        ErrorKind::OutcomeUnknown => Code::OutcomeUnknown,
        ErrorKind::Corrupt => Code::ObjectCorrupt,
        ErrorKind::KeyUnavailable => Code::KeyUnavailable,
        ErrorKind::Conflict => Code::DatabaseMoved,
        ErrorKind::Invalid => Code::Refused,
        _ => Code::StorageUnavailable,
    };
    Error::new(code, format!("{what}: {error}")).caused_by(error)
}

/// Opens the store of a URL.
pub(crate) fn open_store(url: &str, parts: &Parts) -> Result<Store, Error> {
    let options = StoreOptions {
        settings: StoreSettings::default(),
        clock: Arc::clone(&parts.clock),
        entropy: Arc::clone(&parts.entropy),
    };
    Store::open(url, options).map_err(|e| store_error("open the store", e))
}

/// Starts a node up to its journal.
pub(crate) async fn start(
    settings: Settings,
    parts: Parts,
    store: Store,
) -> Result<Started, Error> {
    if let Some(sentence) = unfit_library() {
        return Err(Error::new(Code::Refused, sentence));
    }
    let mut parts = parts;
    let journal_folder = settings.data.join("journal");
    let temp_folder = settings.data.join("temp");
    for folder in [
        &settings.data,
        &journal_folder,
        &temp_folder,
        &settings.data.join("databases"),
    ] {
        parts
            .disk
            .create_folder(folder)
            .map_err(|e| Error::io(format!("create {}", folder.display()), e))?;
    }
    let lock = FolderLock::take(&settings.data)?;
    use_temp_folder(&temp_folder).map_err(|e| {
        Error::new(Code::Internal, "choose a folder for temporary files").caused_by(e)
    })?;
    let fitness = match store.probe().await {
        Ok(fitness) => fitness,
        Err(error) => {
            let gone = is_away(&error);
            let error = store_error("probe the store", error);
            if gone {
                return detached::start(settings, parts, store, lock, error);
            }
            return Err(error);
        }
    };
    let mut notices = Vec::new();
    let known = Identity::read(parts.disk.as_ref(), &settings.data)?;
    let (root, fresh) = read_or_make_root(&store, &parts, known.as_ref()).await?;
    let store = unlock_bucket(store, &settings.master_keys, &root).await?;
    if known.as_ref().is_some_and(|known| known.sealed) {
        refuse_unsealed(&store, &root, &settings.data)?;
    }
    prepare_bucket(&store, &parts, &root, &mut notices).await?;
    parts.disk = seal_disk(&parts, &settings.data, &settings.master_keys)?;
    let disk = Arc::clone(&parts.disk);
    let mut identity = identify(&settings, &parts, known, &root, fresh)?;
    identity.sealed |= is_sealed(&store, &root);
    identity.write(disk.as_ref(), &settings.data)?;

    let terms = Terms::new(
        store.clone(),
        identity.node,
        root.cluster,
        Arc::clone(&parts.clock),
        Arc::clone(&parts.entropy),
    );
    if settings.visit {
        refuse_beside_open(&terms, settings.take_over, &root).await?;
    }
    crash_point!("start.before_claim");
    let previous = identity.terms.last().copied();
    let claimed = terms.claim(previous, root.highest_term).await;
    let term = claimed.map_err(|e| term_error("claim a term", e))?.term;
    crash_point!("start.after_claim");
    // Before anything is closed by it: the folder must know its own hand.
    identity.terms.push(term);
    identity.write(disk.as_ref(), &settings.data)?;
    let closed = close_earlier(&terms, &identity, settings.take_over, &root, term).await;
    if closed.is_err() && settings.visit {
        // A visitor leaves no open term behind: its folder goes, so that nobody could close it as its own.
        let _ = terms.close(term, term).await;
    }
    let closed = closed?;
    crash_point!("start.after_close");
    if !closed.foreign.is_empty() {
        notices.push(set_aside(&settings, term, &closed.foreign)?);
    }
    identity.terms = vec![term];
    identity.write(disk.as_ref(), &settings.data)?;
    terms
        .note_claim(term)
        .await
        .map_err(|e| term_error("note the claim in the root", e))?;

    crash_point!("start.after_note");
    let before = Life::read(disk.as_ref(), &settings.data)?;
    let same_boot = before.is_some_and(|life| life.is_of_boot(parts.boot.as_deref()));
    let life = Life {
        boot: parts.boot.clone(),
        stopped: false,
        system: (root.system_namespace, root.system_database),
    };
    life.write(disk.as_ref(), &settings.data)?;
    let found = replay(&disk, &journal_folder, root.cluster)?;
    let fences = fences_of(&terms, &closed, &found).await?;
    let journal = Journal::create(
        JournalParts {
            folder: journal_folder,
            disk: Arc::clone(&disk),
            clock: Arc::clone(&parts.clock),
            cluster: root.cluster,
            term,
            bytes_max: settings.journal_max_bytes,
            chunk_bytes: settings.chunk_bytes,
        },
        1,
    )?;
    let (clock, entropy) = (Arc::clone(&parts.clock), Arc::clone(&parts.entropy));
    let mut remote = Remote::new(store, term, identity.node, clock, entropy);
    remote.keeps_versions = fitness.versioned;
    let core = Core::new(settings, parts, journal, remote, same_boot, None);
    for database in found.databases.values() {
        core.remote.learn(database.namespace, database.id).await?;
    }
    let inherited = inherit(&core, &found, &fences)?;
    if inherited.reappended > 0 {
        notices.push(format!(
            "{} commits of the last run were not stored yet; they are being shipped now",
            inherited.reappended
        ));
    }
    let tail = unsettled(&core, &terms, &closed.inherited).await?;
    core.tails.add(&tail);
    Ok(Started {
        lock,
        core,
        terms,
        tail,
        root,
        inherited,
        fresh,
        notices,
        away: None,
    })
}

/// Whether a store did not answer; one that refuses is there.
pub(crate) fn is_away(error: &StoreError) -> bool {
    let kind = error.kind();
    let away = kind == ErrorKind::Unavailable || kind == ErrorKind::OutcomeUnknown;
    away && !matches!(error, StoreError::Denied { .. })
}

async fn read_or_make_root(
    store: &Store,
    parts: &Parts,
    known: Option<&Identity>,
) -> Result<(Root, bool), Error> {
    let key = Key::Root.to_string();
    match store.get(&key).await {
        Ok(bytes) => {
            let (root, _) = Root::decode(&bytes).map_err(|e| {
                Error::new(Code::ObjectCorrupt, format!("the root of {}", store.url())).caused_by(e)
            })?;
            Ok((root, false))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            if known.is_some() {
                let what = format!(
                    "{} holds no root, but this data folder belongs to a bucket that has one: \
                     is the store URL right?",
                    store.url()
                );
                return Err(Error::new(Code::Refused, what));
            }
            make_root(store, parts).await
        }
        Err(error) => Err(store_error("read the root", error)),
    }
}

async fn make_root(store: &Store, parts: &Parts) -> Result<(Root, bool), Error> {
    let entropy = &parts.entropy;
    let root = Root {
        cluster: ClusterId::from_bytes(entropy.bytes16()),
        format_version: tidelog_archive::envelope::VERSION,
        system_namespace: NamespaceId::from_bytes(entropy.bytes16()),
        system_database: DatabaseId::from_bytes(entropy.bytes16()),
        highest_term: Term::NONE,
        nodes: Vec::new(),
    };
    let encoded = root
        .encode(WriteId(entropy.bytes16()))
        .map_err(|e| Error::internal("encode the root").caused_by(e))?;
    crash_point!("start.before_root");
    let created = store.create(&Key::Root.to_string(), encoded.bytes).await;
    created.map_err(|e| store_error("create the root", e))?;
    crash_point!("start.after_root");
    Ok((root, true))
}

fn identify(
    settings: &Settings,
    parts: &Parts,
    known: Option<Identity>,
    root: &Root,
    fresh: bool,
) -> Result<Identity, Error> {
    match known {
        Some(identity) if identity.cluster != root.cluster => Err(Error::new(
            Code::Refused,
            format!(
                "the data folder {} belongs to cluster {}, the store {} to cluster {}",
                settings.data.display(),
                identity.cluster,
                settings.store_url,
                root.cluster
            ),
        )),
        Some(identity) => Ok(Identity {
            store_url: settings.store_url.clone(),
            ..identity
        }),
        None => {
            // A bucket whose root was made and whose first term was never claimed is still nobody's.
            let asks = settings.take_over == TakeOver::None && !settings.visit;
            if !fresh && !root.nodes.is_empty() && asks {
                return Err(refuse_empty_folder(settings, root));
            }
            Ok(Identity {
                node: NodeId::from_bytes(parts.entropy.bytes16()),
                cluster: root.cluster,
                store_url: settings.store_url.clone(),
                terms: Vec::new(),
                sealed: false,
            })
        }
    }
}

fn refuse_empty_folder(settings: &Settings, root: &Root) -> Error {
    let nodes: Vec<String> = root
        .nodes
        .iter()
        .map(|node| format!("{} (last term {})", node.node, node.last_term.get()))
        .collect();
    Error::new(
        Code::Refused,
        format!(
            "{} holds history of other nodes, and the data folder {} is empty: {}. If they are dead, \
             start again with --take-over all (or --take-over NODE); a node that still runs would \
             be shut out by that",
            settings.store_url,
            settings.data.display(),
            nodes.join(", ")
        ),
    )
}

/// The fences of every term that has a chunk here: those inherited, and those settled long ago whose chunks
/// are only kept as redo.
async fn fences_of(
    terms: &Terms,
    closed: &Closed,
    found: &Replay,
) -> Result<HashMap<Term, u64>, Error> {
    let mut fences = closed.inherited.clone();
    for (term, _) in found.chunks.iter().map(|chunk| chunk.id) {
        if fences.contains_key(&term) {
            continue;
        }
        match terms
            .end(term)
            .await
            .map_err(|e| term_error("look at an earlier term", e))?
        {
            End::Closed(fence) => fences.insert(term, fence.seq.get()),
            End::Open(_) => {
                let what = format!(
                    "the journal folder holds chunks of the open term {}",
                    term.get()
                );
                return Err(Error::new(Code::Refused, what));
            }
        };
    }
    Ok(fences)
}

/// Puts files and journal of a folder whose term another life closed out of the way: the store holds the
/// history, and what stands here beyond it is kept for people to look at.
fn set_aside(settings: &Settings, term: Term, foreign: &[Term]) -> Result<String, Error> {
    let aside = settings.data.join(format!("fenced-{term}"));
    let io = |e| Error::io(format!("move files to {}", aside.display()), e);
    std::fs::create_dir_all(&aside).map_err(io)?;
    for name in ["databases", "journal"] {
        let (from, to) = (settings.data.join(name), aside.join(name));
        if from.exists() && !to.exists() {
            std::fs::rename(&from, &to).map_err(io)?;
        }
        std::fs::create_dir_all(&from).map_err(io)?;
    }
    let terms: Vec<String> = foreign.iter().map(|term| term.get().to_string()).collect();
    Ok(format!(
        "another server closed term {} of this folder: its files and unshipped commits were moved to \
         {} and every database is restored from the store",
        terms.join(", "),
        aside.display()
    ))
}
