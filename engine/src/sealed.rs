//! A disk whose growing files are sealed: journal chunks and spools.
//!
//! A layer over another [`Disk`]. Files made through it are sealed with the data folder's own key; the callers see
//! plain bytes and plain offsets. Files that are not sealed are read as they are, so that what was written before
//! encryption was turned on is still found. Small files that are replaced whole (state files, the node's
//! identity) hold no tenant's data and pass through.
//!
//! # Layout
//!
//! ```text
//! header (48): magic `TIDELOG SEALED 1` | key id (16) | file nonce (16)
//! piece*:      plain length u32 | number u64 | sealed bytes (plain length + 16)
//! ```
//!
//! Numbers only ever rise within a file, also over a failed write that was cut back: no number seals twice, since
//! a file is written by the process that made it alone. A piece is bound to its offset in the plain file.
//!
//! # What a reader tolerates
//!
//! As in a plain chunk, a file may end inside a piece. What stands whole before it is read; one byte 0xff behind it
//! says that there was more, which no entry of a chunk can be. A file whose first piece is whole and does not open is
//! damaged, and one whose key is not at hand is refused.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tidelog_archive::env::Entropy;
use tidelog_archive::envelope::KeyId;
use tidelog_archive::seal::{FileSealer, Keyring, SealKey};

use crate::disk::{AppendFile, Disk};

const MAGIC: &[u8; 16] = b"TIDELOG SEALED 1";
const HEADER_LEN: usize = 48;
const PIECE_HEAD: usize = 12;
/// The longest piece: what one read has to open.
const PIECE_MAX: usize = 256 << 10;
/// Stands behind the whole pieces of a torn file.
const TORN: u8 = 0xff;

/// The key of a sealed file is not at hand.
#[derive(Debug, thiserror::Error)]
#[error("{} is sealed with key {key_id}, which is not at hand", path.display())]
pub(crate) struct FileKeyMissing {
    /// The file.
    pub(crate) path: PathBuf,
    /// Its key.
    pub(crate) key_id: KeyId,
}

/// A sealed file is not what was written.
#[derive(Debug, thiserror::Error)]
#[error("{}: {what}", path.display())]
pub(crate) struct FileDamaged {
    path: PathBuf,
    what: &'static str,
}

/// Where a piece lies.
#[derive(Debug, Clone, Copy)]
struct Piece {
    number: u64,
    /// In the plain file.
    offset: u64,
    len: usize,
    /// Where its sealed bytes begin in the file.
    at: u64,
}

impl Piece {
    fn end(&self) -> u64 {
        self.offset + self.len as u64
    }

    fn stored(&self) -> usize {
        self.len + FileSealer::OVERHEAD
    }
}

/// The pieces of the file that was read last: ranges of one file are read in order.
#[derive(Debug)]
struct Known {
    path: PathBuf,
    sealer: Arc<FileSealer>,
    pieces: Arc<Vec<Piece>>,
}

/// A disk that seals what grows.
#[derive(Debug)]
pub(crate) struct SealedDisk {
    inner: Arc<dyn Disk>,
    key: Arc<SealKey>,
    keys: Keyring,
    entropy: Arc<dyn Entropy>,
    known: Mutex<Option<Known>>,
}

#[derive(Debug)]
struct SealedFile {
    inner: Box<dyn AppendFile>,
    header: [u8; HEADER_LEN],
    sealer: FileSealer,
    state: Mutex<Written>,
}

#[derive(Debug, Default)]
struct Written {
    plain: u64,
    stored: u64,
    number: u64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn damaged(path: &Path, what: &'static str) -> io::Error {
    let path = path.to_owned();
    io::Error::new(io::ErrorKind::InvalidData, FileDamaged { path, what })
}

impl AppendFile for SealedFile {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut state = lock(&self.state);
        if offset != state.plain {
            return Err(io::Error::other("a sealed file is written at its end"));
        }
        let mut out = Vec::with_capacity(bytes.len() + HEADER_LEN + 2 * PIECE_HEAD);
        if state.stored == 0 {
            out.extend_from_slice(&self.header);
        }
        let mut plain = offset;
        for piece in bytes.chunks(PIECE_MAX) {
            let number = state.number;
            // Before the write: a number that may have reached the disk is never used again.
            state.number += 1;
            let len = u32::try_from(piece.len()).expect("a piece is at most 256 KiB");
            out.extend_from_slice(&len.to_le_bytes());
            out.extend_from_slice(&number.to_le_bytes());
            let mut sealed = piece.to_vec();
            self.sealer.seal(number, plain, &mut sealed);
            out.extend_from_slice(&sealed);
            plain += piece.len() as u64;
        }
        self.inner.write_at(state.stored, &out)?;
        state.stored += out.len() as u64;
        state.plain = plain;
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.inner.sync()
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        let state = lock(&self.state);
        if len != state.plain {
            return Err(io::Error::other(
                "a sealed file is cut back to its last whole write alone",
            ));
        }
        self.inner.truncate(state.stored)
    }
}

impl SealedDisk {
    /// Seals with `key`, which is in `keys`, as are those of earlier files.
    pub(crate) fn new(
        inner: Arc<dyn Disk>,
        key: Arc<SealKey>,
        keys: Keyring,
        entropy: Arc<dyn Entropy>,
    ) -> Self {
        Self {
            inner,
            key,
            keys,
            entropy,
            known: Mutex::new(None),
        }
    }

    fn sealer(&self, path: &Path, header: &[u8]) -> io::Result<FileSealer> {
        let field = |at: usize| {
            let bytes = header.get(at..at + 16).unwrap_or_default();
            <[u8; 16]>::try_from(bytes).map_err(|_| damaged(path, "the header of a sealed file"))
        };
        let key_id = KeyId(field(16)?);
        let Some(key) = self.keys.get(key_id) else {
            let path = path.to_owned();
            return Err(io::Error::other(FileKeyMissing { path, key_id }));
        };
        Ok(FileSealer::new(&key.key, &field(32)?))
    }

    /// Reads a sealed file whole.
    fn open_all(&self, path: &Path, file: &[u8]) -> io::Result<Vec<u8>> {
        let sealer = self.sealer(path, file)?;
        let mut plain = Vec::with_capacity(file.len());
        let mut at = HEADER_LEN;
        while at < file.len() {
            let piece = head(file.get(at..).unwrap_or_default());
            let stored = piece.and_then(|(len, number)| {
                let from = at + PIECE_HEAD;
                let stored = file.get(from..from + len + FileSealer::OVERHEAD)?;
                Some((number, stored))
            });
            let opened =
                stored.and_then(|(number, stored)| sealer.open(number, plain.len() as u64, stored));
            let (Some(opened), Some((_, stored))) = (opened, stored) else {
                if plain.is_empty() && stored.is_some() {
                    return Err(damaged(path, "the first piece does not open"));
                }
                plain.push(TORN);
                break;
            };
            plain.extend_from_slice(&opened);
            at += PIECE_HEAD + stored.len();
        }
        Ok(plain)
    }

    /// The pieces of a sealed file; `None` if it is plain.
    #[expect(clippy::type_complexity, reason = "used in one place")]
    fn pieces(&self, path: &Path) -> io::Result<Option<(Arc<FileSealer>, Arc<Vec<Piece>>)>> {
        let at = |offset, len| match self.inner.read_at(path, offset, len) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            read => read.map(Some),
        };
        let header = match at(0, HEADER_LEN)? {
            Some(header) if header.starts_with(MAGIC) => header,
            _ => return Ok(None),
        };
        let sealer = Arc::new(self.sealer(path, &header)?);
        let mut pieces: Vec<Piece> = Vec::new();
        let (mut offset, mut next) = (0, HEADER_LEN as u64);
        while let Some((len, number)) = at(next, PIECE_HEAD)?.as_deref().and_then(head) {
            let piece = Piece {
                number,
                offset,
                len,
                at: next + PIECE_HEAD as u64,
            };
            offset = piece.end();
            next = piece.at + piece.stored() as u64;
            pieces.push(piece);
        }
        Ok(Some((sealer, Arc::new(pieces))))
    }

    fn known(&self, path: &Path) -> Option<(Arc<FileSealer>, Arc<Vec<Piece>>)> {
        let known = lock(&self.known);
        let known = known.as_ref().filter(|known| known.path == path)?;
        Some((Arc::clone(&known.sealer), Arc::clone(&known.pieces)))
    }

    fn read_pieces(
        &self,
        path: &Path,
        sealer: &FileSealer,
        pieces: &[Piece],
        (start, end): (u64, u64),
    ) -> io::Result<Option<Vec<u8>>> {
        let first = pieces.partition_point(|piece| piece.end() <= start);
        let mut plain = Vec::with_capacity(usize::try_from(end - start).unwrap_or_default());
        for piece in pieces.iter().skip(first) {
            if piece.offset >= end {
                break;
            }
            let stored = self.inner.read_at(path, piece.at, piece.stored())?;
            let opened = sealer
                .open(piece.number, piece.offset, &stored)
                .ok_or_else(|| damaged(path, "a piece does not open"))?;
            let cut =
                |at: u64| usize::try_from(at.saturating_sub(piece.offset)).unwrap_or(piece.len);
            let (from, to) = (cut(start).min(piece.len), cut(end).min(piece.len));
            plain.extend_from_slice(opened.get(from..to).unwrap_or_default());
        }
        Ok((plain.len() as u64 == end - start).then_some(plain))
    }
}

/// Length and number in the head of a piece.
fn head(bytes: &[u8]) -> Option<(usize, u64)> {
    let (len, rest) = bytes.split_first_chunk::<4>()?;
    let (number, _) = rest.split_first_chunk::<8>()?;
    let len = u32::from_le_bytes(*len) as usize;
    (1..=PIECE_MAX)
        .contains(&len)
        .then_some((len, u64::from_le_bytes(*number)))
}

impl Disk for SealedDisk {
    fn create(&self, path: &Path) -> io::Result<Box<dyn AppendFile>> {
        let inner = self.inner.create(path)?;
        let nonce = self.entropy.bytes16();
        let mut header = [0; HEADER_LEN];
        header[..16].copy_from_slice(MAGIC);
        header[16..32].copy_from_slice(&self.key.id.0);
        header[32..].copy_from_slice(&nonce);
        Ok(Box::new(SealedFile {
            inner,
            header,
            sealer: FileSealer::new(&self.key.key, &nonce),
            state: Mutex::default(),
        }))
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let bytes = self.inner.read(path)?;
        if bytes.starts_with(MAGIC) {
            return self.open_all(path, &bytes);
        }
        Ok(bytes)
    }

    fn read_at(&self, path: &Path, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let range = (offset, offset.saturating_add(len as u64));
        if let Some((sealer, pieces)) = self.known(path)
            && let Ok(Some(plain)) = self.read_pieces(path, &sealer, &pieces, range)
        {
            return Ok(plain);
        }
        // Not the file that was read last, or it has grown or was replaced since.
        let Some((sealer, pieces)) = self.pieces(path)? else {
            return self.inner.read_at(path, offset, len);
        };
        let plain = self.read_pieces(path, &sealer, &pieces, range)?;
        *lock(&self.known) = Some(Known {
            path: path.to_owned(),
            sealer,
            pieces,
        });
        plain.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    fn write_atomic(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        self.inner.write_atomic(path, bytes)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.inner.remove(path)
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<(PathBuf, u64)>> {
        self.inner.list(folder)
    }

    fn create_folder(&self, folder: &Path) -> io::Result<()> {
        self.inner.create_folder(folder)
    }

    fn free_bytes(&self, folder: &Path) -> io::Result<u64> {
        self.inner.free_bytes(folder)
    }
}

#[cfg(test)]
mod tests {
    use tidelog_archive::SystemEntropy;
    use tidelog_archive::seal::{KeyObject, MasterKey, MasterKeys};
    use tidelog_wal::{DatabaseId, NamespaceId, Timestamp};

    use super::*;
    use crate::disk::StdDisk;

    fn keys() -> (Arc<SealKey>, Keyring) {
        let master: Vec<u8> = (0..32).collect();
        let master = MasterKey::parse("k1", &master).expect("a key");
        let key = SealKey::draw(&SystemEntropy, Timestamp::ZERO);
        let ids = (NamespaceId::default(), DatabaseId::default());
        let mut object = KeyObject::new(ids.0, ids.1, Timestamp::ZERO, false);
        object.add(&key, &master, &SystemEntropy);
        let ring = Keyring::new(MasterKeys::new(vec![master]).expect("one"));
        ring.admit(&object).expect("its own master");
        (Arc::new(key), ring)
    }

    fn disk((key, ring): (Arc<SealKey>, Keyring)) -> SealedDisk {
        SealedDisk::new(Arc::new(StdDisk), key, ring, Arc::new(SystemEntropy))
    }

    fn noise(len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        SystemEntropy.fill(&mut bytes);
        bytes
    }

    #[test]
    fn what_was_written_is_read_whole_and_in_ranges_and_shows_nothing() {
        let folder = tempfile::tempdir().expect("tempdir");
        let path = folder.path().join("chunk");
        let disk = disk(keys());
        let file = disk.create(&path).expect("create");
        let mut plain = Vec::new();
        for len in [64, 1, 700_000, 300] {
            let bytes = noise(len);
            file.write_at(plain.len() as u64, &bytes).expect("write");
            plain.extend(bytes);
        }
        assert_eq!(disk.read(&path).expect("read"), plain);
        for (from, to) in [
            (0, 64),
            (60, 70),
            (65, 700_065),
            (300_000, 600_000),
            (700_300, 700_365),
        ] {
            let read = disk
                .read_at(&path, from as u64, to - from)
                .expect("a range");
            assert_eq!(read, plain[from..to], "{from}..{to}");
        }
        let beyond = disk
            .read_at(&path, 700_300, 100)
            .expect_err("beyond the end");
        assert_eq!(beyond.kind(), io::ErrorKind::UnexpectedEof);
        // It grows after ranges of it were read.
        file.write_at(plain.len() as u64, b"more").expect("write");
        let read = disk
            .read_at(&path, plain.len() as u64, 4)
            .expect("the new end");
        assert_eq!(read, b"more");
        let raw = std::fs::read(&path).expect("raw");
        assert!(!raw.windows(16).any(|window| window == &plain[..16]));
        // A plain file is read as it is.
        let old = folder.path().join("old");
        std::fs::write(&old, b"plain").expect("write");
        assert_eq!(disk.read(&old).expect("read"), b"plain");
        assert_eq!(disk.read_at(&old, 1, 2).expect("read"), b"la");
    }

    #[test]
    fn every_cut_leaves_the_whole_pieces_and_says_that_there_was_more() {
        let folder = tempfile::tempdir().expect("tempdir");
        let path = folder.path().join("chunk");
        let disk = disk(keys());
        let file = disk.create(&path).expect("create");
        file.write_at(0, b"first").expect("write");
        let whole = std::fs::metadata(&path).expect("meta").len();
        file.write_at(5, b"second").expect("write");
        let raw = std::fs::read(&path).expect("raw");
        let cut = folder.path().join("cut");
        for len in usize::try_from(whole).expect("short")..raw.len() {
            std::fs::write(&cut, &raw[..len]).expect("write");
            let mut want = b"first".to_vec();
            if len as u64 > whole {
                want.push(TORN);
            }
            assert_eq!(disk.read(&cut).expect("read"), want, "{len}");
        }
        for at in HEADER_LEN..raw.len() {
            let mut damaged = raw.clone();
            damaged[at] ^= 4;
            std::fs::write(&cut, &damaged).expect("write");
            let read = disk.read(&cut);
            assert!(
                !matches!(&read, Ok(plain) if plain == b"firstsecond"),
                "byte {at}: {read:?}"
            );
        }
    }

    #[test]
    fn numbers_are_not_used_again_after_a_write_that_failed() {
        /// Fails every second write after half of it.
        #[derive(Debug)]
        struct Half(Box<dyn AppendFile>, Mutex<u32>);
        impl AppendFile for Half {
            fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
                let mut count = lock(&self.1);
                *count += 1;
                if count.is_multiple_of(2) {
                    self.0.write_at(offset, &bytes[..bytes.len() / 2])?;
                    return Err(io::ErrorKind::StorageFull.into());
                }
                self.0.write_at(offset, bytes)
            }
            fn sync(&self) -> io::Result<()> {
                self.0.sync()
            }
            fn truncate(&self, len: u64) -> io::Result<()> {
                self.0.truncate(len)
            }
        }
        let folder = tempfile::tempdir().expect("tempdir");
        let path = folder.path().join("chunk");
        let (key, ring) = keys();
        let nonce = [7; 16];
        let mut header = [0; HEADER_LEN];
        header[..16].copy_from_slice(MAGIC);
        header[16..32].copy_from_slice(&key.id.0);
        header[32..].copy_from_slice(&nonce);
        let file = SealedFile {
            inner: Box::new(Half(StdDisk.create(&path).expect("create"), Mutex::new(0))),
            header,
            sealer: FileSealer::new(&key.key, &nonce),
            state: Mutex::default(),
        };
        file.write_at(0, b"one").expect("the first");
        file.write_at(3, b"lost").expect_err("half of it");
        file.truncate(3).expect("cut back");
        file.write_at(3, b"two").expect("the third");
        let disk = disk((key, ring));
        assert_eq!(disk.read(&path).expect("read"), b"onetwo");
        let (_, pieces) = disk.pieces(&path).expect("pieces").expect("sealed");
        let numbers: Vec<u64> = pieces.iter().map(|piece| piece.number).collect();
        assert_eq!(numbers, [0, 2]);
    }

    #[test]
    fn another_folders_key_is_refused_by_name() {
        let folder = tempfile::tempdir().expect("tempdir");
        let path = folder.path().join("chunk");
        let file = disk(keys()).create(&path).expect("create");
        file.write_at(0, b"secret").expect("write");
        let error = disk(keys()).read(&path).expect_err("another key");
        let inner = error.get_ref().expect("says why");
        assert!(inner.downcast_ref::<FileKeyMissing>().is_some(), "{inner}");
    }
}
