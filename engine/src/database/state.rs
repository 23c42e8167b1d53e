//! The state file of a database: which incarnation of its files is current, and up to which commit the SQLite
//! file is known to hold everything, synced.
//!
//! One JSON object in `databases/{id}/state`, replaced atomically. `clean` says that the file was closed with
//! an empty WAL at exactly that commit: it then needs no proof when it is opened. It is cleared before the
//! first connection is opened, so that a state that says clean is never stale. Beside it stands a [`Stamp`] of the
//! file as it was left: whoever wrote to it since, behind the engine's back, changed that.

use std::path::Path;

use serde::{Deserialize, Serialize};
use tidelog_wal::{
    DatabaseId, Digest, DigestSeed, NamespaceId, PageCount, PageSize, Position, Timestamp,
};

use super::DbMeta;
use crate::capture::Head;
use crate::disk::Disk;
use crate::error::{Code, Error};
use crate::files::DbPaths;
use crate::journal::chunk::WalPosition;

/// The version of the state file that is written; version 1 had no stamp.
const VERSION: u32 = 2;

/// How a file was left: its length, and when it was last written, in nanoseconds.
///
/// It proves nothing and costs nothing: where it is another one, the digest of the file decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    bytes: u64,
    modified_ns: u64,
}

impl Stamp {
    /// The stamp of the SQLite file at `path`, if there is one.
    pub fn of(path: &Path) -> Option<Self> {
        let meta = std::fs::metadata(path).ok()?;
        let since = meta.modified().ok()?;
        let since = since.duration_since(std::time::UNIX_EPOCH).ok()?;
        Some(Self {
            bytes: meta.len(),
            modified_ns: u64::try_from(since.as_nanos()).ok()?,
        })
    }
}

/// What the state file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DbState {
    /// What the database is.
    pub meta: DbMeta,
    /// The folder of the current files, below the database's own.
    pub incarnation: String,
    /// The commit that the SQLite file holds, with all before it.
    pub head: Head,
    /// Where `head` stood in the WAL, if its life may go on: a life that a reader kept from ending, or that
    /// was recovered, gets its next frames behind it.
    pub wal: Option<WalPosition>,
    /// The WAL is empty and the file is exactly at `head`.
    pub clean: bool,
    /// How the file was left when that was written. Writing a state takes it anew.
    pub stamp: Option<Stamp>,
    /// The newest Position known to be stored.
    pub durable: Option<Position>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    version: u32,
    database: String,
    namespace: String,
    page_size: u32,
    seed: String,
    incarnation: String,
    bookmark: String,
    pages: u32,
    digest: String,
    time_us: u64,
    /// Salts, frame and checksum.
    #[serde(default)]
    wal: Option<[u32; 5]>,
    clean: bool,
    #[serde(default)]
    stamp: Option<Stamp>,
    durable: Option<String>,
}

impl DbState {
    /// Reads the state of the database in `folder`; `None` if there is none.
    pub fn read(disk: &dyn Disk, folder: &Path) -> Result<Option<Self>, Error> {
        let path = folder.join("state");
        let bytes = match disk.read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io(format!("read {}", path.display()), error)),
        };
        let damaged = || {
            Error::new(
                Code::DatabaseCorrupt,
                format!("state file {} is damaged", path.display()),
            )
        };
        let file: File =
            serde_json::from_slice(&bytes).map_err(|error| damaged().caused_by(error))?;
        if !(1..=VERSION).contains(&file.version) {
            let (path, found) = (path.display(), file.version);
            let what =
                format!("state file {path} has version {found}, this program reads {VERSION}");
            return Err(Error::new(Code::Refused, what));
        }
        file.parse().map(Some).ok_or_else(damaged)
    }

    /// Replaces the state of the database in `folder`, synced.
    pub fn write(&self, disk: &dyn Disk, folder: &Path) -> Result<(), Error> {
        let database = DbPaths::in_folder(&folder.join(&self.incarnation)).database;
        let stamp = self.clean.then(|| Stamp::of(&database)).flatten();
        let file = File {
            version: VERSION,
            database: self.meta.id.to_string(),
            namespace: self.meta.namespace.to_string(),
            page_size: self.meta.page_size.get(),
            seed: format!("{:016x}", self.meta.seed.get()),
            incarnation: self.incarnation.clone(),
            bookmark: self.head.position().to_string(),
            pages: self.head.pages.get(),
            digest: self.head.digest.to_string(),
            time_us: self.head.time.micros(),
            wal: self.wal.map(|wal| {
                let ([a, b], [c, d]) = (wal.salts, wal.checksum);
                [a, b, wal.frame, c, d]
            }),
            clean: self.clean,
            stamp,
            durable: self.durable.map(|position| position.to_string()),
        };
        let bytes = serde_json::to_vec_pretty(&file)
            .map_err(|e| Error::internal("encode a state file").caused_by(e))?;
        let path = folder.join("state");
        disk.write_atomic(&path, &bytes)
            .map_err(|error| Error::io(format!("write {}", path.display()), error))
    }
}

impl File {
    fn parse(&self) -> Option<DbState> {
        let Position { term, txid, chain } = self.bookmark.parse().ok()?;
        let hex = |text: &str| u64::from_str_radix(text, 16).ok();
        let plain = |name: &str| name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
        if self.incarnation.is_empty() || !plain(&self.incarnation) {
            return None;
        }
        Some(DbState {
            meta: DbMeta {
                id: self.database.parse::<DatabaseId>().ok()?,
                namespace: self.namespace.parse::<NamespaceId>().ok()?,
                page_size: PageSize::new(self.page_size)?,
                seed: DigestSeed::new(hex(&self.seed)?),
            },
            incarnation: self.incarnation.clone(),
            head: Head {
                term,
                txid,
                chain,
                pages: PageCount::new(self.pages),
                digest: Digest::from_u64(hex(&self.digest)?),
                time: Timestamp::from_micros(self.time_us),
            },
            wal: self.wal.map(|[a, b, frame, c, d]| WalPosition {
                salts: [a, b],
                frame,
                checksum: [c, d],
                ..WalPosition::default()
            }),
            clean: self.clean,
            stamp: self.stamp,
            durable: match &self.durable {
                None => None,
                Some(text) => Some(text.parse().ok()?),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use tidelog_wal::{Chain, Term, TxId};

    use super::*;
    use crate::disk::StdDisk;

    #[test]
    fn state_round_trips_and_damage_is_named() {
        let folder = tempfile::tempdir().expect("tempdir");
        assert_eq!(DbState::read(&StdDisk, folder.path()).expect("none"), None);
        let state = DbState {
            meta: DbMeta {
                id: DatabaseId::from_bytes([1; 16]),
                namespace: NamespaceId::from_bytes([2; 16]),
                page_size: PageSize::DEFAULT,
                seed: DigestSeed::new(3),
            },
            incarnation: "00000001-0a".to_owned(),
            head: Head {
                term: Term::FIRST,
                txid: TxId::new(9),
                chain: Chain::from_bytes([4; 16]),
                pages: PageCount::new(5),
                digest: Digest::from_u64(6),
                time: Timestamp::from_micros(7),
            },
            wal: Some(WalPosition {
                salts: [8, 9],
                frame: 10,
                checksum: [11, 12],
                ..WalPosition::default()
            }),
            clean: true,
            stamp: None,
            durable: None,
        };
        state.write(&StdDisk, folder.path()).expect("write");
        assert_eq!(
            DbState::read(&StdDisk, folder.path()).expect("read"),
            Some(state.clone())
        );
        let file = DbPaths::in_folder(&folder.path().join(&state.incarnation)).database;
        std::fs::create_dir_all(file.parent().expect("a folder")).expect("create");
        std::fs::write(&file, b"pages").expect("a file");
        state.write(&StdDisk, folder.path()).expect("write");
        let read = DbState::read(&StdDisk, folder.path()).expect("read");
        let stamp = read.expect("a state").stamp;
        assert!(stamp.is_some());
        assert_eq!(stamp, Stamp::of(&file));
        std::fs::write(&file, b"other pages").expect("a file");
        assert_ne!(stamp, Stamp::of(&file));
        std::fs::write(folder.path().join("state"), b"{").expect("damage");
        let error = DbState::read(&StdDisk, folder.path()).expect_err("damaged");
        assert_eq!(error.code(), Code::DatabaseCorrupt);
    }
}
