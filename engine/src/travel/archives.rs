//! Archives: self-contained exports in the store, which outlive the retention window and are kept until somebody
//! deletes them.
//!
//! ```text
//! tenants/{namespace}/{database}/archives/{id}.db.zst     the SQLite file, zstd; or
//! tenants/{namespace}/{database}/archives/{id}.sql.zst    the text of a dump, zstd
//! tenants/{namespace}/{database}/archives/{id}.json       the side file: what it is (see `document`)
//! ```
//!
//! Order of writing: a row `creating` in the system database, the operation, the object, the side file (created
//! if absent, and the moment from which the archive exists), the row `ready`. Order of deleting: the row
//! `deleting`, side file, object, no row. A process life that finds rows of an earlier one in between ends
//! them: a row whose side file stands becomes ready, every other one is deleted with its objects. Listing reads
//! rows and never lists the store.
//!
//! An archive is written as the state is restored: materialised to a scratch file, proven by its digest, looked
//! at by SQLite, compressed, and sealed where the database has a data key, on its way up. Nothing is held in memory
//! whole. A sealed archive opens as long as the data key stands wrapped in the database's `key` object, whichever
//! master key wraps it, and no longer: a copy of the wrapped key elsewhere would outlive the purge that destroys it.

mod decrypt;
mod document;
mod dump;
mod pipe;
mod read;
mod record;
mod recover;
mod restore;
mod schedule;

use std::fs::File;
use std::io::{Read as _, Write};
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use serde_json::json;
use tidelog_archive::envelope::KeyId;
use tidelog_archive::export::SealedArchiveWriter;
use tidelog_archive::key::ArchiveId;
use tidelog_archive::plan::Plan;
use tidelog_archive::{ErrorKind, export};
use tidelog_wal::{NamespaceId, Timestamp};

use super::inspect::{Check, Inspection, hex, inspect, open_finished};
use super::retention::hold::Hold;
use super::retention::run::trusted;
use super::watched::materialise;
use crate::boxed;
use crate::bucket::At;
use crate::copy as local;
use crate::core::Core;
use crate::crash_point;
use crate::engine::Database;
use crate::error::{Code, Error};
use crate::executor::blocking;
use crate::operations::{Begins, Handle, NewOperation, OperationType, Task};
use crate::request::IdempotencyKey;
use crate::scratch;
use crate::system::{Page, PageOf};

pub use decrypt::{Decrypted, decrypt, owner};
pub(crate) use document::rfc3339;
pub use document::{Archive, Document, Format};
use document::{document_key, object_key};
pub use read::Content;
pub(crate) use read::{Wrong, digest_of_file, unpack_into};
use record::Begun;
pub(crate) use record::{held, refuse_held};
pub(crate) use recover::{end_interrupted, sweep};
pub(crate) use restore::end_interrupted as end_interrupted_import;
pub use schedule::{ArchiveSchedule, Keep, NewArchiveSchedule, ScheduledRun};

/// Bytes read from the scratch file at a time.
const PIECE: usize = 1 << 18;
/// The longest name of an archive, in characters.
const NAME_MAX: usize = 80;
/// Between two tries to note an archive that stands.
const NOTE_PAUSE: Duration = Duration::from_millis(500);
/// Version of the side file.
const DOCUMENT_VERSION: u32 = 1;

/// An archive to be made.
#[derive(Debug, Clone)]
pub struct NewArchive {
    /// Of which state.
    pub at: At,
    /// What to write.
    pub format: Format,
    /// A name for people, 1 to 80 characters.
    pub name: Option<String>,
    /// Not to be deleted before.
    pub retain_until: Option<Timestamp>,
    /// Not to be deleted while this stands.
    pub legal_hold: bool,
    /// Id of the token that asks.
    pub token: Option<String>,
    /// A repeated call with this key follows the operation of the first.
    pub request: Option<IdempotencyKey>,
}

impl NewArchive {
    /// One that is kept until somebody deletes it.
    pub const fn of(at: At, format: Format) -> Self {
        Self {
            at,
            format,
            name: None,
            retain_until: None,
            legal_hold: false,
            token: None,
            request: None,
        }
    }
}

impl Database {
    /// Begins to make an archive. Errors that concern the state asked for come at once.
    #[boxed]
    pub async fn archive_create(&self, new: NewArchive) -> Result<Handle, Error> {
        self.archive_begin(new, false).await
    }

    /// The same for a schedule, or not.
    async fn archive_begin(&self, new: NewArchive, scheduled: bool) -> Result<Handle, Error> {
        check_name(new.name.as_deref())?;
        let system = &self.engine().inner.system;
        if let Some(key) = &new.request
            && let Some(handle) = self.repeated(key).await?
        {
            return Ok(handle);
        }
        let hold = self.hold().await?;
        let (core, plan) = self.plan_at(new.at.clone()).await?;
        let now = core.parts.clock.wall();
        let row = self.row();
        let begun = Begun {
            id: new_id(&core, now),
            namespace: row.namespace,
            database: row.id,
            term: core.term().get(),
            created: now,
            retain_until: new.retain_until,
            legal_hold: new.legal_hold,
            request: new.request.clone(),
            scheduled,
        };
        // Refused before it begins where it would not fit.
        drop(scratch::folder(&core, "an archive", plain_bytes(&plan))?);
        if let Err(error) = system.archive_begin(&begun).await {
            if let Some(key) = new.request.as_ref().filter(|_| record::is_repeated(&error))
                && let Some(handle) = self.repeated(key).await?
            {
                return Ok(handle);
            }
            return Err(error);
        }
        crash_point!("archive.after_row");
        let operation = NewOperation {
            kind: OperationType::Archive,
            namespace: row.namespace,
            database: Some((row.id, row.name.clone())),
            exclusive: false,
            token: new.token.clone(),
            note: json!({
                "archive": begun.id.to_string(),
                "format": new.format.as_str(),
                "scheduled": scheduled,
            }),
            begins: Begins::Stored,
        };
        let (id, name) = (begun.id, row.name.clone());
        let maker = Maker {
            database: self.clone(),
            core,
            plan,
            begun,
            new,
            name,
            _hold: hold,
        };
        let started = self.engine().operate(operation, |task| maker.run(task));
        let handle = match started.await {
            Ok(handle) => handle,
            Err(error) => {
                system.archive_forget(id).await?;
                return Err(error);
            }
        };
        Ok(handle)
    }

    /// The operation of an earlier call with this key.
    async fn repeated(&self, key: &IdempotencyKey) -> Result<Option<Handle>, Error> {
        let engine = self.engine();
        let Some(found) = engine.inner.system.archive_request(key).await? else {
            return Ok(None);
        };
        if found.fingerprint != key.fingerprint {
            return Err(Error::new(
                Code::IdempotencyKeyReused,
                "the Idempotency-Key was used for another request in the last 24 hours",
            ));
        }
        let Some(operation) = found.operation else {
            return Err(Error::new(
                Code::IdempotencyInProgress,
                "the first call with this Idempotency-Key is just beginning",
            ));
        };
        let namespace = self.row().namespace;
        engine
            .operation_watch(namespace, &operation)
            .await
            .map(Some)
    }

    /// The archives of the database, newest first.
    #[boxed]
    pub async fn archives(&self, page: Page) -> Result<PageOf<Archive>, Error> {
        let system = &self.engine().inner.system;
        system.archive_list(self.row().id, page).await
    }

    /// One archive of the database.
    #[boxed]
    pub async fn archive(&self, id: &str) -> Result<Archive, Error> {
        let row = self.row();
        let system = &self.engine().inner.system;
        system.archive(row.namespace, Some(row.id), id).await
    }

    /// Changes how long an archive is held. The time until which it is retained can be put off and never brought
    /// forward; a legal hold comes and goes.
    #[boxed]
    pub async fn archive_hold(
        &self,
        id: &str,
        retain_until: Option<Timestamp>,
        legal_hold: Option<bool>,
    ) -> Result<Archive, Error> {
        let archive = self.archive(id).await?;
        if let (Some(asked), Some(now)) = (retain_until, archive.retain_until)
            && asked < now
        {
            let what = format!(
                "archive {id} is retained until {}; the time can be put off, not brought forward",
                rfc3339(now)
            );
            return Err(Error::new(Code::ArchiveHeld, what));
        }
        let until = retain_until.or(archive.retain_until);
        let hold = legal_hold.unwrap_or(archive.legal_hold);
        let system = &self.engine().inner.system;
        system.archive_hold(&archive, until, hold).await?;
        self.archive(id).await
    }

    /// Deletes an archive. [`Code::ArchiveHeld`] while it is retained or under legal hold.
    #[boxed]
    pub async fn archive_delete(&self, id: &str) -> Result<(), Error> {
        let archive = self.archive(id).await?;
        let inner = &self.engine().inner;
        let now = match archive.retain_until {
            // A clock that runs ahead ends no retention (HAZARDS S39).
            Some(_) => trusted(&inner.core, archive.namespace, archive.database).await?,
            None => self.engine().now(),
        };
        if let Some(held) = archive.held(now) {
            return Err(Error::new(Code::ArchiveHeld, held));
        }
        inner.system.archive_hide(archive.id).await?;
        crash_point!("archive.after_hide");
        recover::delete(&inner.core, archive.namespace, archive.database, archive.id).await?;
        inner.system.archive_forget(archive.id).await
    }
}

fn check_name(name: Option<&str>) -> Result<(), Error> {
    let Some(name) = name else { return Ok(()) };
    let length = name.chars().count();
    if length == 0 || length > NAME_MAX || name.chars().any(char::is_control) {
        let what = format!(
            "an archive's name has 1 to {NAME_MAX} characters and no control characters among them"
        );
        return Err(Error::new(Code::NameInvalid, what));
    }
    Ok(())
}

/// An id that sorts by time.
fn new_id(core: &Core, now: Timestamp) -> ArchiveId {
    let mut bytes = core.parts.entropy.bytes16();
    bytes[..8].copy_from_slice(&now.micros().to_be_bytes());
    ArchiveId::from_bytes(bytes)
}

/// Bytes of the plain SQLite file.
fn plain_bytes(plan: &Plan) -> u64 {
    plan.target.n.bytes(plan.page_size)
}

/// Makes one archive.
struct Maker {
    database: Database,
    core: std::sync::Arc<Core>,
    plan: Plan,
    begun: Begun,
    new: NewArchive,
    name: String,
    /// What the plan reads is not marked while it is read.
    _hold: Hold,
}

impl Maker {
    async fn run(self, task: Task) -> Result<serde_json::Value, Error> {
        let system = &self.database.engine().inner.system;
        let id = self.begun.id;
        match self.make(&task).await {
            Ok(document) => {
                self.note_ready(&document).await?;
                Ok(json!({ "archive": document }))
            }
            Err(error) if error.code() == Code::OperationInterrupted => Err(error),
            Err(error) => {
                // What cannot be removed now is found again by its row at the next start.
                let (namespace, database) = (self.begun.namespace, self.begun.database);
                let removed = recover::delete(&self.core, namespace, database, id).await;
                if removed.is_ok() {
                    system.archive_forget(id).await?;
                } else {
                    system.archive_hide(id).await?;
                }
                Err(error)
            }
        }
    }

    async fn make(&self, task: &Task) -> Result<Document, Error> {
        let (core, plan) = (&self.core, &self.plan);
        let system = &self.database.engine().inner.system;
        system.archive_operation(self.begun.id, task.id()).await?;
        let folder = scratch::folder(core, "an archive", plain_bytes(plan))?;
        let file = folder.path().join("state.db");
        task.phase("restoring", plain_bytes(plan))?;
        let lease = self.database.lease().await?;
        let copied = local::into_file(&lease, plan.target, &file, Some(task)).await?;
        drop(lease);
        let restored = if copied {
            Ok(())
        } else {
            let restored = materialise(&core.remote.store, plan, &file, task).await;
            restored.map(drop)
        };
        if let Err(error) = restored {
            // What was settled since the plan was made may have taken the place of objects it reads.
            let again = self.database.plan_at(At::Bookmark(plan.target.position));
            let (_, again) = again.await?;
            if error.code() != Code::ObjectCorrupt || again == *plan {
                return Err(error);
            }
            materialise(&core.remote.store, &again, &file, task).await?;
        }
        task.phase("checking", 0)?;
        let (looked, watched) = (file.clone(), task.clone());
        let inspection = blocking(core.executor(), move || {
            inspect(&looked, Check::Quick, &watched)
        })
        .await?;
        let bytes = plain_bytes(plan);
        task.phase("storing", bytes)?;
        crash_point!("archive.before_object");
        let (namespace, database) = (self.begun.namespace, self.begun.database);
        let key = object_key(namespace, database, self.begun.id, self.new.format).to_string();
        let stamp = core.remote.stamp(namespace, database)?;
        let key_id = stamp.key_id();
        let ids = (namespace, database);
        let sealing = key_id.map(|_| SealedArchiveWriter::new(ids, self.begun.id, stamp));
        let stored = match self.new.format {
            Format::Sqlite => {
                let fill = move |out: &mut dyn Write| copy(&file, out);
                pipe::store(core, &key, (Some(bytes), sealing), task, fill).await?
            }
            Format::Sql => {
                let watched = task.clone();
                let fill = move |out: &mut dyn Write| {
                    let connection = open_finished(&file, Some(&watched))?;
                    dump::dump(&connection, out, &watched)
                };
                pipe::store(core, &key, (None, sealing), task, fill).await?
            }
        };
        crash_point!("archive.after_object");
        drop(folder);
        let document = self.document(inspection, stored, key_id);
        task.point_of_no_return()?;
        task.phase("noting", 0)?;
        let text = serde_json::to_vec_pretty(&document)
            .map_err(|e| Error::internal("write an archive's side file").caused_by(e))?;
        let side = document_key(namespace, database, self.begun.id).to_string();
        let text = if key_id.is_some() {
            let stamp = core.remote.stamp(namespace, database)?;
            let sealed = export::seal_document(ids, stamp, text);
            sealed
                .map_err(|e| Error::internal("seal an archive's side file").caused_by(e))?
                .bytes
        } else {
            Bytes::from(text)
        };
        core.remote.create(&side, text).await?;
        crash_point!("archive.after_document");
        Ok(document)
    }

    /// Notes that the archive stands, as often as it takes: its side file is there, so that it is not undone any
    /// more. A node that stops before leaves it to the next life.
    async fn note_ready(&self, document: &Document) -> Result<(), Error> {
        let inner = &self.database.engine().inner;
        let mut stop = inner.stop_signal();
        loop {
            let Err(error) = inner.system.archive_ready(self.begun.id, document).await else {
                return Ok(());
            };
            if !matches!(
                error.kind(),
                ErrorKind::Unavailable | ErrorKind::OutcomeUnknown
            ) {
                return Err(error);
            }
            tracing::warn!(archive = %self.begun.id, %error, "an archive is not noted yet");
            tokio::select! {
                () = tokio::time::sleep(NOTE_PAUSE) => {}
                _ = stop.wait_for(|stop| *stop) => {
                    let what = "the server is stopping; the archive is noted at its next start";
                    return Err(Error::new(Code::OperationInterrupted, what));
                }
            }
        }
    }

    fn document(
        &self,
        inspection: Inspection,
        stored: pipe::Written,
        key_id: Option<KeyId>,
    ) -> Document {
        let target = &self.plan.target;
        Document {
            version: DOCUMENT_VERSION,
            id: self.begun.id.to_string(),
            namespace: self.begun.namespace.to_string(),
            database: self.begun.database.to_string(),
            database_name: self.name.clone(),
            name: self.new.name.clone(),
            bookmark: target.position.to_string(),
            committed_at: rfc3339(target.time),
            created_at: rfc3339(self.begun.created),
            format: self.new.format,
            compression: "zstd".to_owned(),
            bytes: stored.bytes,
            stored_bytes: stored.stored_bytes,
            sha256: stored.sha256,
            stored_sha256: stored.stored_sha256,
            digest: target.digest.to_string(),
            digest_seed: format!("{:016x}", self.plan.seed.get()),
            page_size: self.plan.page_size.get(),
            page_count: target.n.get(),
            rows: inspection.rows,
            schema_sha256: inspection.schema_sha256,
            integrity: inspection.integrity,
            retain_until: self.new.retain_until.map(rfc3339),
            legal_hold: self.new.legal_hold,
            key_id: key_id.map(|id| id.to_string()),
            sealed_bytes: stored.sealed.map(|(bytes, _)| bytes),
            sealed_blake3: stored.sealed.map(|(_, sum)| hex(&sum)),
        }
    }
}

/// Copies a file into `out`.
fn copy(file: &Path, out: &mut dyn Write) -> Result<(), Error> {
    let io = |e| Error::io("read a scratch file", e);
    let mut file = File::open(file).map_err(io)?;
    let mut piece = vec![0; PIECE];
    loop {
        let read = file.read(&mut piece).map_err(io)?;
        let Some(bytes) = piece.get(..read).filter(|bytes| !bytes.is_empty()) else {
            return Ok(());
        };
        out.write_all(bytes).map_err(io)?;
    }
}

/// An archive of a namespace, whichever database's.
pub(crate) async fn find(
    engine: &crate::engine::Engine,
    namespace: NamespaceId,
    id: &str,
) -> Result<Archive, Error> {
    engine.inner.system.archive(namespace, None, id).await
}
