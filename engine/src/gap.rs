//! Gaps: a place in history that no delta crosses, because the files changed behind the engine's back.
//!
//! Found when a database is opened and its files are at no commit that the journal leads to. What then:
//!
//! | the files | then |
//! | --- | --- |
//! | hold every journaled commit and are sound | they are stored as an image, and the next commit is a record of kind `image`: history goes on from them, with a gap before |
//! | cannot be shown to hold every journaled commit, or are damaged | history wins (HAZARDS W21): they are made anew from the store, and the old ones are set aside, for people to look at |
//!
//! Either way nothing that was acknowledged is gone: bookmarks on both sides of a gap restore exactly (I3), and no
//! path leads over it. An ERROR is logged, and `tidelog_discontinuities_total` counts.
//!
//! The record itself says where the gap is. Settling lists gap and image in the manifest; until then this life knows
//! them from its memory ([`Breaks`]), and a restore from the bucket alone reads forward through the record, which
//! replaces the state.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use tidelog_archive::key::{DatabaseObject, Key};
use tidelog_archive::manifest::{Gap, GapReason, ImageEntry, Loaded, Manifest};
use tidelog_wal::record::{ObjectRef, RecordHeader};
use tidelog_wal::{Chain, DatabaseId, Position, Timestamp, TxId};

use crate::core::Core;
use crate::database::open::Unproven;
use crate::database::state::DbState;
use crate::error::{Code, Error};
use crate::executor::blocking;
use crate::files::DbPaths;
use crate::import::{Before, prove_beside, record_image};
use crate::rebuild::restore_files;

/// Where history begins with an image: at its first commit, or behind a gap.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Break {
    /// What is missing; nothing before the first commit.
    pub(crate) gap: Option<Gap>,
    /// The state it goes on from.
    pub(crate) image: ImageEntry,
}

impl Break {
    /// What an image record says; `before` is the time of the commit before it.
    pub(crate) fn of_record(
        header: &RecordHeader,
        object: &ObjectRef,
        chain: Chain,
        before: Option<Timestamp>,
    ) -> Result<Self, Error> {
        let named = Key::parse(&object.key);
        let Some(Key::Database(_, _, DatabaseObject::Image { nonce, .. })) = named else {
            let what = format!("an image record names {:?}, which is no image", object.key);
            return Err(Error::new(Code::ObjectCorrupt, what));
        };
        let image = ImageEntry {
            position: Position {
                term: header.term,
                txid: header.txid,
                chain,
            },
            time: header.time,
            n: header.n_after,
            digest: header.digest,
            nonce,
            len: object.len,
            blake3: object.blake3,
        };
        let after = header.txid.prev().filter(|after| *after > TxId::ZERO);
        let gap = after.map(|after| Gap {
            after,
            resumes: header.txid,
            from: before.unwrap_or(header.time).min(header.time),
            to: header.time,
            reason: GapReason::Discontinuity,
        });
        Ok(Self { gap, image })
    }

    /// Lists it in a manifest whose settled history holds its record.
    pub(crate) fn list(&self, manifest: &mut Manifest) {
        manifest.gaps.extend(self.gap);
        manifest.add_image(self.image);
    }
}

/// Breaks whose records are not settled yet.
#[derive(Debug, Default)]
pub(crate) struct Breaks {
    by_database: Mutex<HashMap<DatabaseId, Vec<Break>>>,
}

impl Breaks {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<DatabaseId, Vec<Break>>> {
        self.by_database
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn add(&self, id: DatabaseId, found: Break) {
        self.lock().entry(id).or_default().push(found);
    }

    /// Drops those that are settled: the manifest lists them.
    pub(crate) fn settled(&self, id: DatabaseId, txid: TxId) {
        let mut breaks = self.lock();
        if let Some(found) = breaks.get_mut(&id) {
            found.retain(|found| found.image.position.txid > txid);
            if found.is_empty() {
                breaks.remove(&id);
            }
        }
    }

    /// Those of a database.
    pub(crate) fn of(&self, id: DatabaseId) -> Vec<Break> {
        self.lock().get(&id).cloned().unwrap_or_default()
    }
}

/// Has a copy of a manifest tell of the `breaks` between settled history and `stored`, the newest stored commit.
pub(crate) fn tell(breaks: &[Break], manifest: &mut Manifest, stored: Option<TxId>) {
    let settled = manifest.settled_position().map_or(TxId::ZERO, |at| at.txid);
    for found in breaks {
        let at = found.image.position.txid;
        let known = manifest
            .images
            .iter()
            .any(|image| image.position.txid == at);
        if at > settled && stored.is_some_and(|stored| at <= stored) && !known {
            found.list(manifest);
        }
    }
}

/// Has history go on where files were found that it does not lead to: by an image of them, or by files made anew.
/// Nobody has the database open. Answers its state file.
pub(crate) async fn go_on(
    core: &Arc<Core>,
    loaded: &Loaded,
    found: Unproven,
) -> Result<DbState, Error> {
    let (id, newest) = (found.state.meta.id, found.newest);
    let discontinuities = &core.meters.discontinuities;
    if found.whole {
        match begin_anew(core, &found).await {
            Ok(state) => {
                discontinuities.fetch_add(1, Ordering::Relaxed);
                tracing::error!(
                    database = %id, why = found.why, after = %newest.position(), resumes = %state.head.position(),
                    "the files changed behind the engine's back: history has a gap and goes on with an image of them"
                );
                return Ok(state);
            }
            Err(error) if error.code() == Code::ImportInvalid => {
                tracing::error!(database = %id, %error, "files that history does not lead to are damaged");
            }
            Err(error) => return Err(error),
        }
    }
    let (folder, incarnation) = (core.database_folder(id), found.state.incarnation);
    let state = restore_files(core, None, loaded, None).await?;
    let aside = folder.join(format!("unproven-{incarnation}"));
    std::fs::rename(folder.join(&incarnation), &aside)
        .map_err(|e| Error::io("set files aside", e))?;
    discontinuities.fetch_add(1, Ordering::Relaxed);
    tracing::error!(
        database = %id, why = found.why, restored = %state.head.position(), aside = %aside.display(),
        "the files are at no known commit: they were set aside, and the database is restored from the store"
    );
    Ok(state)
}

/// Stores the files as an image and journals it as the next commit. [`Code::ImportInvalid`] says that they are
/// damaged, or no longer fit the history.
async fn begin_anew(core: &Arc<Core>, found: &Unproven) -> Result<DbState, Error> {
    let (meta, newest) = (found.state.meta, found.newest);
    let folder = core.database_folder(meta.id);
    let old = folder.join(&found.state.incarnation);
    let (proving, file) = (Arc::clone(core), DbPaths::in_folder(&old).database);
    let proven = blocking(core.executor(), move || {
        prove_beside(&proving, meta.id, &file)
    })
    .await?;
    if proven.page_size != meta.page_size {
        let what = format!(
            "their pages have {} bytes, those of history {}",
            proven.page_size.get(),
            meta.page_size.get()
        );
        return Err(Error::new(Code::ImportInvalid, what));
    }
    let before = Before {
        txid: newest.txid,
        chain: newest.chain,
        pages: newest.pages,
        time: Some(newest.time),
    };
    let state = record_image(core, meta, proven, before).await?;
    // The state file names the copy: nothing names these any more.
    std::fs::remove_dir_all(&old).map_err(|e| Error::io("remove old files", e))?;
    Ok(state)
}
