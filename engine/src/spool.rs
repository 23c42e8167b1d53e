//! Spool files: the pages of commits too large for the journal chunk.
//!
//! A commit whose encoded delta exceeds `spool_bytes` is written, as it is encoded, to a file of its own,
//! `journal/{database}-{txid}.spool`, synced before its note enters the chunk. The note carries the record's
//! header; header and file together are the canonical record. Shipping uploads it as a segment part of its
//! database, so that memory never holds more than a piece of it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tidelog_wal::chain::ChainHasher;
use tidelog_wal::{Chain, DatabaseId, TxId};

use crate::crash_point;
use crate::disk::{AppendFile, Disk};

/// Bytes read at once.
const PIECE: usize = 1 << 20;

/// The spool file of a commit.
pub fn spool_path(folder: &Path, database: DatabaseId, txid: TxId) -> PathBuf {
    folder.join(format!("{database}-{txid}.spool"))
}

/// Where large commits of one database are spooled.
#[derive(Debug, Clone)]
pub struct Spools {
    /// The disk.
    pub disk: Arc<dyn Disk>,
    /// The journal folder.
    pub folder: PathBuf,
    /// The database.
    pub database: DatabaseId,
    /// A delta longer than this is spooled.
    pub limit: usize,
}

/// A spool file being written.
#[derive(Debug)]
pub struct Spool {
    file: Box<dyn AppendFile>,
    path: PathBuf,
    len: u64,
    hasher: blake3::Hasher,
}

/// A finished spool file.
#[derive(Debug, Clone)]
pub struct Spooled {
    /// The file.
    pub path: PathBuf,
    /// Its length.
    pub len: u64,
    /// BLAKE3 of it.
    pub blake3: [u8; 32],
}

impl Spools {
    /// Begins the file of a commit. One left by an attempt that failed is replaced.
    pub fn begin(&self, txid: TxId) -> io::Result<Spool> {
        let path = spool_path(&self.folder, self.database, txid);
        self.disk.remove(&path)?;
        let file = self.disk.create(&path)?;
        Ok(Spool {
            file,
            path,
            len: 0,
            hasher: blake3::Hasher::new(),
        })
    }
}

impl Spool {
    /// Appends `bytes` and empties them.
    pub fn append(&mut self, bytes: &mut Vec<u8>) -> io::Result<()> {
        self.file.write_at(self.len, bytes)?;
        self.hasher.update(bytes);
        self.len += bytes.len() as u64;
        bytes.clear();
        Ok(())
    }

    /// Syncs the file.
    pub fn finish(self) -> io::Result<Spooled> {
        crash_point!("spool.before_sync");
        self.file.sync()?;
        crash_point!("spool.after_sync");
        let blake3 = *self.hasher.finalize().as_bytes();
        Ok(Spooled {
            path: self.path,
            len: self.len,
            blake3,
        })
    }
}

/// Reads a spool file in pieces.
pub fn read_pieces<E: From<io::Error>>(
    disk: &dyn Disk,
    path: &Path,
    len: u64,
    mut each: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let mut at = 0;
    while at < len {
        let piece = usize::try_from(len - at).unwrap_or(PIECE).min(PIECE);
        each(&disk.read_at(path, at, piece)?)?;
        at += piece as u64;
    }
    Ok(())
}

/// The chain after a spooled record.
pub fn chain_after(
    disk: &dyn Disk,
    before: Chain,
    header: &[u8],
    spooled: &Spooled,
) -> io::Result<Chain> {
    let mut hasher = ChainHasher::after(before);
    hasher.update(header);
    read_pieces(disk, &spooled.path, spooled.len, |piece| {
        hasher.update(piece);
        Ok::<_, io::Error>(())
    })?;
    Ok(hasher.finish())
}
