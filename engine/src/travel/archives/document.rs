//! What is known of an archive: its side file in the store, and what may change later.
//!
//! The side file is a JSON object beside the archive, written last and never changed: an archive exists once it
//! stands there, and it tells a finder everything that is needed to use the archive without Tidelog. What may
//! change later (how long it is held, when it was last verified) stands in the row alone. Where the database has a
//! data key, side file and archive are sealed with it ([`tidelog_archive::export`]): names of tables and counts of
//! rows tell as much as many rows do.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use tidelog_archive::key::{ArchiveId, DatabaseObject, Key};
use tidelog_archive::plan::Resolved;
use tidelog_wal::record::ObjectRef;
use tidelog_wal::{DatabaseId, Digest, NamespaceId, PageCount, Timestamp};

use crate::error::{Code, Error};

/// What an archive is written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// The SQLite file, page for page.
    Sqlite,
    /// The text of SQL statements that make the database anew.
    Sql,
}

impl Format {
    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sqlite => "sqlite",
            Self::Sql => "sql",
        }
    }

    /// The format of that name.
    pub fn parse(name: &str) -> Result<Self, String> {
        match name {
            "sqlite" => Ok(Self::Sqlite),
            "sql" => Ok(Self::Sql),
            _ => Err(format!(
                "an archive's format is sqlite or sql, not {name:?}"
            )),
        }
    }
}

/// What the side file of an archive says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Document {
    /// Version of this layout.
    pub version: u32,
    /// The archive's id.
    pub id: String,
    /// Id of the namespace.
    pub namespace: String,
    /// Id of the database.
    pub database: String,
    /// Name of the database when the archive was made.
    pub database_name: String,
    /// The archive's own name, if it was given one.
    pub name: Option<String>,
    /// The commit whose state it is.
    pub bookmark: String,
    /// When that was committed, RFC 3339.
    pub committed_at: String,
    /// When the archive was made, RFC 3339.
    pub created_at: String,
    /// What it is written as.
    pub format: Format,
    /// What it is compressed with.
    pub compression: String,
    /// Bytes of the plain file.
    pub bytes: u64,
    /// Bytes of the compressed frame: what a download gives, and what is stored unless it is sealed.
    pub stored_bytes: u64,
    /// SHA-256 of the plain file, hex.
    pub sha256: String,
    /// SHA-256 of the compressed frame, hex.
    pub stored_sha256: String,
    /// State digest of the pages, hex.
    pub digest: String,
    /// The seed of that digest, hex.
    pub digest_seed: String,
    /// Page size of the database.
    pub page_size: u32,
    /// Pages of the database.
    pub page_count: u32,
    /// Rows by table.
    pub rows: BTreeMap<String, Option<u64>>,
    /// SHA-256 over the schema, hex.
    pub schema_sha256: Option<String>,
    /// `ok`, or what SQLite found when the archive was made.
    pub integrity: String,
    /// Not to be deleted before, as asked when it was made; RFC 3339.
    pub retain_until: Option<String>,
    /// Held without an end, as asked when it was made.
    pub legal_hold: bool,
    /// The data key the stored object is sealed with, hex; none if it is plain.
    pub key_id: Option<String>,
    /// Bytes of the sealed object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealed_bytes: Option<u64>,
    /// BLAKE3 that names the sealed object, hex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealed_blake3: Option<String>,
}

/// An archive.
#[derive(Debug, Clone, PartialEq)]
pub struct Archive {
    /// Its id.
    pub id: ArchiveId,
    /// Whose it is.
    pub namespace: NamespaceId,
    /// Whose state it is.
    pub database: DatabaseId,
    /// What its side file says.
    pub document: Document,
    /// When it was made.
    pub created_at: Timestamp,
    /// Not to be deleted before.
    pub retain_until: Option<Timestamp>,
    /// Held without an end.
    pub legal_hold: bool,
    /// What the last verification said: `{at, outcome}`.
    pub verified: Option<Json>,
    /// Nobody asked for it: a schedule did.
    pub scheduled: bool,
}

impl Archive {
    /// Where it is stored.
    pub fn key(&self) -> Key {
        object_key(self.namespace, self.database, self.id, self.document.format)
    }

    /// Bytes of its object in the store.
    pub fn object_bytes(&self) -> u64 {
        let document = &self.document;
        document.sealed_bytes.unwrap_or(document.stored_bytes)
    }

    /// The state it holds.
    pub(crate) fn state(&self) -> Result<Resolved, Error> {
        let document = &self.document;
        let position = document.bookmark.parse().ok();
        let time = document.committed_at.parse::<jiff::Timestamp>().ok();
        let time = time.and_then(|time| u64::try_from(time.as_microsecond()).ok());
        let digest = u64::from_str_radix(&document.digest, 16).ok();
        let (Some(position), Some(time), Some(digest)) = (position, time, digest) else {
            let what = format!("archive {} does not say which state it holds", self.id);
            return Err(Error::new(Code::ObjectCorrupt, what));
        };
        Ok(Resolved {
            position,
            time: Timestamp::from_micros(time),
            n: PageCount::new(document.page_count),
            digest: Digest::from_u64(digest),
        })
    }

    /// What names its sealed object; `None` if it is plain.
    pub(super) fn sealed(&self) -> Result<Option<ObjectRef>, Error> {
        let document = &self.document;
        let Some(len) = document.sealed_bytes else {
            return Ok(None);
        };
        let blake3 = document.sealed_blake3.as_deref().and_then(unhex);
        let blake3 = blake3.ok_or_else(|| {
            let what = format!("archive {} is sealed and does not say by what", self.id);
            Error::new(Code::ObjectCorrupt, what)
        })?;
        let key = self.key().to_string();
        Ok(Some(ObjectRef { key, len, blake3 }))
    }

    /// Why it may not be deleted now, if it may not.
    pub fn held(&self, now: Timestamp) -> Option<String> {
        if self.legal_hold {
            return Some(format!("archive {} is under legal hold", self.id));
        }
        let until = self.retain_until.filter(|until| *until > now)?;
        Some(format!(
            "archive {} is retained until {}",
            self.id,
            rfc3339(until)
        ))
    }
}

/// The bytes of a BLAKE3 in hex.
fn unhex(text: &str) -> Option<[u8; 32]> {
    blake3::Hash::from_hex(text)
        .ok()
        .map(|hash| *hash.as_bytes())
}

/// The key of an archive's object.
pub(super) fn object_key(
    namespace: NamespaceId,
    database: DatabaseId,
    id: ArchiveId,
    format: Format,
) -> Key {
    let object = match format {
        Format::Sqlite => DatabaseObject::Archive(id),
        Format::Sql => DatabaseObject::ArchiveText(id),
    };
    Key::Database(namespace, database, object)
}

/// The key of an archive's side file.
pub(super) fn document_key(namespace: NamespaceId, database: DatabaseId, id: ArchiveId) -> Key {
    Key::Database(namespace, database, DatabaseObject::ArchiveMetadata(id))
}

/// A time as the side file writes it.
pub(crate) fn rfc3339(time: Timestamp) -> String {
    let micros = i64::try_from(time.micros()).unwrap_or(i64::MAX);
    jiff::Timestamp::from_microsecond(micros)
        .map_or_else(|_| micros.to_string(), |time| format!("{time:.6}"))
}
