//! Starting without the store (DESIGN 5.6): the data folder serves what it holds.
//!
//! | the last life of the folder | then |
//! | --- | --- |
//! | stopped in order, or died and the machine was not started anew since | nothing can be lost: reads and writes, under the folder's last term and its next chunk number |
//! | anything else | reads: the store may hold commits that this folder has lost |
//! | never served a bucket, or another store is named now | no start |
//!
//! Such a life makes no request to the store at all: it claims no term, ships, settles and deletes nothing, and its
//! handle of the store fails every call ([`Store::away`]). Whatever it commits stands in chunks of the last term,
//! numbered on behind those that are there. Once the store answers again the node is started anew in place, which is
//! an ordinary start: the last term is closed at its first missing number, and every chunk from there on goes out
//! again, verbatim, under the new term; was the term closed meanwhile by a life that the folder does not know, it
//! writes no more (I4).
//!
//! Chunk numbers must never be used twice: a number below the fence counts as stored. The open chunk of a life has a
//! file from its beginning and has the highest number, so that the next one is free.

use std::path::Path;
use std::sync::Arc;

use tidelog_archive::root::Root;
use tidelog_archive::seal::Keyring;
use tidelog_archive::store::Store;
use tidelog_archive::term::Terms;
use tidelog_wal::Term;

use super::identity::{FolderLock, Identity};
use super::inherit::hold;
use super::keys::seal_disk;
use super::life::Life;
use super::start::Started;
use crate::core::{Core, Parts};
use crate::disk::Disk;
use crate::error::{Code, Error};
use crate::journal::replay::{FoundChunk, Replay, replay};
use crate::journal::{Journal, JournalParts};
use crate::remote::Remote;
use crate::settings::{Settings, TakeOver};

/// Bytes written at once to a chunk that is mended.
const PIECE: usize = 64 << 10;

/// What a node does whose store could not be reached when it was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detached {
    /// It answers reads.
    Reads,
    /// It takes writes, too; they are shipped when the store is back.
    Writes,
}

/// Starts a node that makes no request to its store; `error` is why it cannot.
pub(crate) fn start(
    settings: Settings,
    mut parts: Parts,
    store: Store,
    lock: FolderLock,
    error: Error,
) -> Result<Started, Error> {
    if settings.visit {
        return Err(error);
    }
    let refused = |error: Error, why: &str| {
        let what = format!(
            "{error}, and {} cannot serve without it: {why}",
            settings.data.display()
        );
        Error::new(Code::StorageUnavailable, what).caused_by(error)
    };
    let Some(identity) = Identity::read(parts.disk.as_ref(), &settings.data)? else {
        return Err(refused(error, "it has never served"));
    };
    if identity.store_url != settings.store_url {
        return Err(refused(error, "it was last served with another store"));
    }
    if settings.take_over != TakeOver::None {
        return Err(refused(error, "nothing can be taken over"));
    }
    let life = Life::read(parts.disk.as_ref(), &settings.data)?;
    let (Some(life), Some(term)) = (life, identity.terms.last().copied()) else {
        return Err(refused(error, "its last life left no mark"));
    };
    let same_boot = life.is_of_boot(parts.boot.as_deref());
    let mode = if same_boot || life.stopped {
        Detached::Writes
    } else {
        Detached::Reads
    };
    let store_away = store
        .clone()
        .with_keys(Keyring::new(settings.master_keys.clone()))
        .away();
    parts.disk = seal_disk(&parts, &settings.data, &settings.master_keys)?;
    if mode == Detached::Writes {
        // From here on a loss of power loses what is not synced. The mark of one that may have lost something stays.
        let boot = parts.boot.clone();
        let now = Life {
            boot,
            stopped: false,
            system: life.system,
        };
        now.write(parts.disk.as_ref(), &settings.data)?;
    }
    let (journal, found) = resume(&settings, &parts, &identity, term)?;
    let terms = Terms::new(
        store_away.clone(),
        identity.node,
        identity.cluster,
        Arc::clone(&parts.clock),
        Arc::clone(&parts.entropy),
    );
    let (clock, entropy) = (Arc::clone(&parts.clock), Arc::clone(&parts.entropy));
    let remote = Remote::new(store_away, term, identity.node, clock, entropy);
    let core = Core::new(settings, parts, journal, remote, same_boot, Some(mode));
    let inherited = hold(&core, &found)?;
    let notice = match mode {
        Detached::Writes => format!(
            "{error}; nothing of this folder can be lost: it serves reads and writes, and ships when the store is back"
        ),
        Detached::Reads => format!(
            "{error}; this folder may have lost commits with the machine's memory: it serves reads until the store is back"
        ),
    };
    Ok(Started {
        lock,
        core,
        terms,
        tail: Vec::new(),
        root: root(&identity, &life, term),
        inherited,
        fresh: false,
        notices: vec![notice],
        away: Some(store),
    })
}

/// The root as far as the folder knows it.
fn root(identity: &Identity, life: &Life, term: Term) -> Root {
    Root {
        cluster: identity.cluster,
        format_version: tidelog_archive::envelope::VERSION,
        system_namespace: life.system.0,
        system_database: life.system.1,
        highest_term: term,
        nodes: Vec::new(),
    }
}

/// The journal of the last life, to be gone on with, and what stands in it.
fn resume(
    settings: &Settings,
    parts: &Parts,
    identity: &Identity,
    term: Term,
) -> Result<(Journal, Replay), Error> {
    let folder = settings.data.join("journal");
    let disk = &parts.disk;
    let mut found = replay(disk, &folder, identity.cluster)?;
    let mut mended = false;
    for chunk in &found.chunks {
        mended |= mend(disk.as_ref(), chunk)?;
    }
    for orphan in &found.orphans {
        let io = |e| Error::io(format!("remove {}", orphan.display()), e);
        disk.remove(orphan).map_err(io)?;
        mended = true;
    }
    // Numbers that have ever had a file, whatever is left of it.
    let orphans = found.orphans.iter().filter_map(|path| number(path, term));
    let chunks = found.chunks.iter().map(|chunk| chunk.id);
    let numbers = chunks.filter(|(of, _)| *of == term).map(|(_, seq)| seq);
    let last_seq = numbers.chain(orphans).max().unwrap_or(0);
    if mended {
        found = replay(disk, &folder, identity.cluster)?;
    }
    let ends = found.chunks.iter().filter(|chunk| chunk.id.0 == term);
    let next_lsn = ends
        .map(|chunk| chunk.first_lsn + chunk.records as u64)
        .max()
        .unwrap_or(1);
    let journal = Journal::resume(
        JournalParts {
            folder,
            disk: Arc::clone(disk),
            clock: Arc::clone(&parts.clock),
            cluster: identity.cluster,
            term,
            bytes_max: settings.journal_max_bytes,
            chunk_bytes: settings.chunk_bytes,
        },
        last_seq + 1,
        next_lsn,
    )?;
    Ok((journal, found))
}

/// The number of a chunk file of `term`.
fn number(path: &Path, term: Term) -> Option<u64> {
    let name = path.file_stem()?.to_str()?;
    let (of, seq) = name.split_once('-')?;
    (of == term.to_string()).then(|| u64::from_str_radix(seq, 16).ok())?
}

/// Cuts a torn end off a chunk: behind one, later chunks of its term would not count. Answers whether there was one.
fn mend(disk: &dyn Disk, chunk: &FoundChunk) -> Result<bool, Error> {
    let io = |e| Error::io(format!("mend {}", chunk.path.display()), e);
    let bytes = disk.read(&chunk.path).map_err(io)?;
    let len = usize::try_from(chunk.len).unwrap_or(usize::MAX);
    let Some(whole) = bytes.get(..len).filter(|whole| whole.len() < bytes.len()) else {
        return Ok(false);
    };
    let made = chunk.path.with_extension("mended");
    if made.exists() {
        disk.remove(&made).map_err(io)?;
    }
    let file = disk.create(&made).map_err(io)?;
    let mut at = 0;
    for piece in whole.chunks(PIECE) {
        file.write_at(at, piece).map_err(io)?;
        at += piece.len() as u64;
    }
    file.sync().map_err(io)?;
    std::fs::rename(&made, &chunk.path).map_err(io)?;
    crate::disk::sync_parent(&chunk.path).map_err(io)?;
    Ok(true)
}
