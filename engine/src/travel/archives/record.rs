//! The rows of archives in the system database.

use rusqlite::{Connection, OptionalExtension as _, Row, params};
use serde_json::Value as Json;
use tidelog_archive::key::ArchiveId;
use tidelog_wal::{DatabaseId, NamespaceId, Timestamp};

use super::document::{Archive, Document};
use crate::error::{Code, Error};
use crate::request::IdempotencyKey;
use crate::system::{Page, PageOf, System, id16, is_unique_violation, micros, timestamp};

/// How long the key of the call that made an archive is remembered.
const REQUEST_MICROS: u64 = 24 * 3600 * 1_000_000;

/// Where a row is between its first and its last write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RowState {
    /// Being written: the object may be there, the side file is not.
    Creating,
    /// There.
    Ready,
    /// Being deleted: gone for everybody, its objects follow.
    Deleting,
}

impl RowState {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Ready => "ready",
            Self::Deleting => "deleting",
        }
    }
}

/// An archive that begins.
#[derive(Debug, Clone)]
pub(super) struct Begun {
    pub(super) id: ArchiveId,
    pub(super) namespace: NamespaceId,
    pub(super) database: DatabaseId,
    pub(super) term: u32,
    pub(super) created: Timestamp,
    pub(super) retain_until: Option<Timestamp>,
    pub(super) legal_hold: bool,
    pub(super) request: Option<IdempotencyKey>,
    pub(super) scheduled: bool,
}

/// What was found under a caller's key: the operation, once it is known.
#[derive(Debug)]
pub(super) struct Repeated {
    pub(super) operation: Option<String>,
    pub(super) fingerprint: Vec<u8>,
}

/// A row that is not ready, of whichever life.
#[derive(Debug)]
pub(super) struct Unfinished {
    pub(super) id: ArchiveId,
    pub(super) namespace: NamespaceId,
    pub(super) database: DatabaseId,
    pub(super) term: u32,
    pub(super) deleting: bool,
}

fn invalid() -> rusqlite::Error {
    rusqlite::Error::InvalidQuery
}

fn ids(row: &Row<'_>) -> rusqlite::Result<(ArchiveId, NamespaceId, DatabaseId)> {
    let id: String = row.get("id")?;
    Ok((
        ArchiveId::parse(&id).ok_or_else(invalid)?,
        NamespaceId::from_bytes(id16(&row.get::<_, Vec<u8>>("namespace")?)?),
        DatabaseId::from_bytes(id16(&row.get::<_, Vec<u8>>("database")?)?),
    ))
}

fn archive(row: &Row<'_>) -> rusqlite::Result<Archive> {
    let (id, namespace, database) = ids(row)?;
    let document: String = row.get("document")?;
    let verified: Option<String> = row.get("verified")?;
    Ok(Archive {
        id,
        namespace,
        database,
        document: serde_json::from_str(&document).map_err(|_| invalid())?,
        created_at: timestamp(row.get("created")?),
        retain_until: row.get::<_, Option<i64>>("retain_until")?.map(timestamp),
        legal_hold: row.get("legal_hold")?,
        verified: verified.and_then(|text| serde_json::from_str(&text).ok()),
        scheduled: row.get("scheduled")?,
    })
}

fn request_text(key: &IdempotencyKey) -> String {
    format!("{}\u{0}{}", key.scope, key.key)
}

/// Whether a unique request stood in the way of a row.
pub(super) fn is_repeated(error: &Error) -> bool {
    is_unique_violation(error)
}

/// Ids of the archives of a database that are under legal hold, or retained beyond `now`.
pub(crate) fn held(
    c: &Connection,
    database: DatabaseId,
    now: Timestamp,
) -> rusqlite::Result<Vec<String>> {
    let mut select = c.prepare(
        "SELECT id FROM archives WHERE database = ?1 AND state <> 'deleting' \
         AND (legal_hold OR retain_until > ?2) ORDER BY id",
    )?;
    select
        .query_map(params![database.as_bytes(), micros(now)], |row| row.get(0))?
        .collect()
}

/// Why a database is not purged while archives of it are held.
pub(crate) fn refuse_held(held: Vec<String>) -> Result<(), Error> {
    if held.is_empty() {
        return Ok(());
    }
    let what = format!(
        "archives of this database are retained or under legal hold, and a purge would destroy them: {}; lift the \
         holds first",
        held.join(", ")
    );
    Err(Error::new(Code::ArchiveHeld, what).with("archives", held))
}

fn found_living(rows: usize, database: DatabaseId) -> Result<(), Error> {
    if rows > 0 {
        return Ok(());
    }
    let what = format!("database {database} is being purged, and its archives with it");
    Err(Error::new(Code::DatabasePurged, what))
}

impl System {
    /// Notes an archive that begins; a repeated key violates its uniqueness.
    pub(super) async fn archive_begin(&self, begun: &Begun) -> Result<(), Error> {
        let row = begun.clone();
        let oldest = Timestamp::from_micros(row.created.micros().saturating_sub(REQUEST_MICROS));
        self.write(move |c| {
            let request = row.request.as_ref().map(request_text);
            c.execute(
                "UPDATE archives SET request = NULL WHERE request = ?1 AND created < ?2",
                params![request, micros(oldest)],
            )?;
            // Nothing begins in a database that is being purged: it would be left behind.
            c.execute(
                "INSERT INTO archives(id, namespace, database, state, term, created, retain_until, \
                 legal_hold, request, fingerprint, scheduled) \
                 SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11 \
                 WHERE EXISTS(SELECT 1 FROM databases WHERE id = ?3 AND purging IS NULL)",
                params![
                    row.id.to_string(),
                    row.namespace.as_bytes(),
                    row.database.as_bytes(),
                    RowState::Creating.as_str(),
                    row.term,
                    micros(row.created),
                    row.retain_until.map(micros),
                    row.legal_hold,
                    request,
                    row.request.map(|key| key.fingerprint.to_vec()),
                    row.scheduled,
                ],
            )
        })
        .await
        .and_then(|rows| found_living(rows, begun.database))
    }

    /// What an earlier call with this key began in the last 24 hours.
    pub(super) async fn archive_request(
        &self,
        key: &IdempotencyKey,
    ) -> Result<Option<Repeated>, Error> {
        let request = request_text(key);
        let now = self.core.parts.clock.wall();
        let oldest = micros(now).saturating_sub_unsigned(REQUEST_MICROS);
        self.read(move |c| {
            c.query_row(
                "SELECT operation, fingerprint FROM archives WHERE request = ?1 AND created >= ?2",
                params![request, oldest],
                |row| {
                    Ok(Repeated {
                        operation: row.get(0)?,
                        fingerprint: row.get(1)?,
                    })
                },
            )
            .optional()
        })
        .await
    }

    /// Names the operation that makes an archive.
    pub(super) async fn archive_operation(
        &self,
        id: ArchiveId,
        operation: String,
    ) -> Result<(), Error> {
        self.write(move |c| {
            c.execute(
                "UPDATE archives SET operation = ?2 WHERE id = ?1",
                params![id.to_string(), operation],
            )
        })
        .await
        .map(|_| ())
    }

    /// Says that an archive is complete: its side file stands.
    pub(super) async fn archive_ready(
        &self,
        id: ArchiveId,
        document: &Document,
    ) -> Result<(), Error> {
        let text = serde_json::to_string(document)
            .map_err(|e| Error::internal("write an archive's side file").caused_by(e))?;
        self.write(move |c| {
            c.execute(
                "UPDATE archives SET state = ?2, document = ?3 WHERE id = ?1",
                params![id.to_string(), RowState::Ready.as_str(), text],
            )
        })
        .await
        .map(|_| ())
    }

    /// Begins to delete an archive: from here on nobody finds it.
    pub(super) async fn archive_hide(&self, id: ArchiveId) -> Result<(), Error> {
        self.write(move |c| {
            c.execute(
                "UPDATE archives SET state = ?2 WHERE id = ?1",
                params![id.to_string(), RowState::Deleting.as_str()],
            )
        })
        .await
        .map(|_| ())
    }

    /// Forgets an archive whose objects are gone.
    pub(super) async fn archive_forget(&self, id: ArchiveId) -> Result<(), Error> {
        self.write(move |c| c.execute("DELETE FROM archives WHERE id = ?1", [id.to_string()]))
            .await
            .map(|_| ())
    }

    /// Changes how long an archive is held; not that of a database which is being purged.
    pub(super) async fn archive_hold(
        &self,
        archive: &Archive,
        retain_until: Option<Timestamp>,
        legal_hold: bool,
    ) -> Result<(), Error> {
        let id = archive.id;
        self.write(move |c| {
            c.execute(
                "UPDATE archives SET retain_until = ?2, legal_hold = ?3 WHERE id = ?1 AND EXISTS(\
                 SELECT 1 FROM databases WHERE id = archives.database AND purging IS NULL)",
                params![id.to_string(), retain_until.map(micros), legal_hold],
            )
        })
        .await
        .and_then(|rows| found_living(rows, archive.database))
    }

    /// The archives of a database that may not be deleted at `now`, those that are being made among them.
    pub(crate) async fn archives_held(
        &self,
        database: DatabaseId,
        now: Timestamp,
    ) -> Result<Vec<String>, Error> {
        self.read(move |c| held(c, database, now)).await
    }

    /// Whether a database has archives.
    pub(crate) async fn has_archives(&self, database: DatabaseId) -> Result<bool, Error> {
        self.read(move |c| {
            c.query_row(
                "SELECT EXISTS(SELECT 1 FROM archives WHERE database = ?1)",
                [database.as_bytes()],
                |row| row.get(0),
            )
        })
        .await
    }

    /// Hides every archive of a database that is being purged; how many there are.
    pub(crate) async fn archives_hide_all(&self, database: DatabaseId) -> Result<u64, Error> {
        self.write(move |c| {
            c.execute(
                "UPDATE archives SET state = ?2 WHERE database = ?1",
                params![database.as_bytes(), RowState::Deleting.as_str()],
            )
        })
        .await
        .map(|rows| rows as u64)
    }

    /// Notes what a verification said.
    pub(super) async fn archive_verified(&self, id: ArchiveId, said: &Json) -> Result<(), Error> {
        let said = said.to_string();
        self.write(move |c| {
            c.execute(
                "UPDATE archives SET verified = ?2 WHERE id = ?1",
                params![id.to_string(), said],
            )
        })
        .await
        .map(|_| ())
    }

    /// A complete archive of a namespace; of one database, if one is named.
    pub(super) async fn archive(
        &self,
        namespace: NamespaceId,
        database: Option<DatabaseId>,
        id: &str,
    ) -> Result<Archive, Error> {
        let wanted = id.to_owned();
        let found = self
            .read(move |c| {
                c.query_row(
                    "SELECT * FROM archives WHERE id = ?1 AND namespace = ?2 AND state = ?3 \
                     AND (?4 IS NULL OR database = ?4)",
                    params![
                        wanted,
                        namespace.as_bytes(),
                        RowState::Ready.as_str(),
                        database.map(|id| id.as_bytes().to_vec())
                    ],
                    archive,
                )
                .optional()
            })
            .await?;
        found
            .ok_or_else(|| Error::new(Code::ArchiveNotFound, format!("there is no archive {id:?}")))
    }

    /// The complete archives of a database, newest first.
    pub(crate) async fn archive_list(
        &self,
        database: DatabaseId,
        page: Page,
    ) -> Result<PageOf<Archive>, Error> {
        let limit = page.limit();
        // Greater than every id, which is hex.
        let before = page.cursor.unwrap_or_else(|| "~".to_owned());
        let select = "SELECT * FROM archives WHERE database = ?1 AND state = ?2 AND id < ?3 \
                      ORDER BY id DESC LIMIT ?4";
        let given = vec![
            database.as_bytes().to_vec().into(),
            RowState::Ready.as_str().to_owned().into(),
            before.into(),
        ];
        self.page(select.to_owned(), given, limit, archive, |archive| {
            archive.id.to_string()
        })
        .await
    }

    /// The complete archives that a schedule made of a database, newest first.
    pub(super) async fn archives_scheduled(
        &self,
        database: DatabaseId,
    ) -> Result<Vec<Archive>, Error> {
        self.read(move |c| {
            let mut select = c.prepare(
                "SELECT * FROM archives WHERE database = ?1 AND state = ?2 AND scheduled \
                 ORDER BY id DESC",
            )?;
            let ready = RowState::Ready.as_str();
            select
                .query_map(params![database.as_bytes(), ready], archive)?
                .collect()
        })
        .await
    }

    /// Rows that are not ready.
    pub(super) async fn archives_unfinished(&self) -> Result<Vec<Unfinished>, Error> {
        self.read(|c| {
            let mut select =
                c.prepare("SELECT * FROM archives WHERE state <> 'ready' ORDER BY id")?;
            select
                .query_map([], |row| {
                    let (id, namespace, database) = ids(row)?;
                    let state: String = row.get("state")?;
                    Ok(Unfinished {
                        id,
                        namespace,
                        database,
                        term: row.get("term")?,
                        deleting: state == RowState::Deleting.as_str(),
                    })
                })?
                .collect()
        })
        .await
    }
}
