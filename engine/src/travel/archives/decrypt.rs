//! Opening a sealed archive that lies in a file: no server, no data folder, and no bucket if the database's `key`
//! object is at hand as well.
//!
//! What it takes: the archive as it is stored, the `key` object of its database (`tenants/{ns}/{db}/key`), which holds
//! the data keys wrapped, and the master key that wraps them. Nothing is written before every byte of the file is
//! proven.

use std::fs::File;
use std::io::{self, Read, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use bytes::Bytes;
use tidelog_archive::envelope::{Expect, HEADER_LEN, Header, ObjectKind};
use tidelog_archive::export::{SealedArchive, is_sealed};
use tidelog_archive::seal::{KeyObject, Keyring, MasterKeys};
use tidelog_wal::{DatabaseId, NamespaceId};

use super::PIECE;
use crate::error::{Code, Error};
use crate::sealing::{key_error, refused};

/// A sealed archive that was opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decrypted {
    /// Which archive it is.
    pub id: String,
    /// Bytes written.
    pub bytes: u64,
}

/// Whose archive a file is: what names the `key` object that opens it. A file that is not sealed is refused.
pub fn owner(file: &Path) -> Result<(NamespaceId, DatabaseId), Error> {
    let io = |e| Error::io(format!("read {}", file.display()), e);
    let mut head = Vec::with_capacity(HEADER_LEN);
    let opened = File::open(file).map_err(io)?;
    let wanted = HEADER_LEN as u64;
    opened.take(wanted).read_to_end(&mut head).map_err(io)?;
    if !is_sealed(&head) {
        let what = format!(
            "{} is not sealed: `zstd -d` opens an archive that is not",
            file.display()
        );
        return Err(Error::new(Code::InvalidRequest, what));
    }
    let header = Header::decode(&head).and_then(|header| {
        let (namespace, database) = (header.namespace, header.database);
        header.check(Expect::database(ObjectKind::Archive, namespace, database))?;
        Ok(header)
    });
    let header = header.map_err(|error| refused(&file.display().to_string(), error))?;
    Ok((header.namespace, header.database))
}

/// Opens `file` into `out`, which must not exist: the plain file, or with `compressed` the zstd frame that a server's
/// download gives. `key_object` is the `key` object of its database. `progress` hears how many bytes of the frame were
/// opened, and of how many.
pub fn decrypt(
    file: &Path,
    out: &Path,
    key_object: &Bytes,
    masters: &MasterKeys,
    compressed: bool,
    progress: &dyn Fn(u64, u64),
) -> Result<Decrypted, Error> {
    let (namespace, database) = owner(file)?;
    let keys = ring(key_object, masters, namespace, database)?;
    let io = |e| Error::io(format!("read {}", file.display()), e);
    let mut opened = File::open(file).map_err(io)?;
    let archive = SealedArchive::open_file(&mut opened, &keys).map_err(io)?;
    let archive = archive.map_err(|error| refused(&file.display().to_string(), error))?;
    let id = archive.id.to_string();
    let mut frame = Frame {
        name: file.display().to_string(),
        file: opened,
        archive,
        given: 0,
        at: Bytes::new(),
        progress,
    };
    let written = write(&mut frame, out, compressed);
    let bytes = written.map_err(|error| match error.downcast::<Error>() {
        Ok(ours) => ours,
        Err(error) => Error::io(format!("write {}", out.display()), error),
    })?;
    Ok(Decrypted { id, bytes })
}

fn ring(
    key_object: &Bytes,
    masters: &MasterKeys,
    namespace: NamespaceId,
    database: DatabaseId,
) -> Result<Keyring, Error> {
    let place = KeyObject::place(namespace, database);
    let object = KeyObject::decode(key_object, namespace, database);
    let object = object.map_err(|error| refused(&place, error))?;
    if let Some(at) = object.shredded {
        let what = format!(
            "the keys of the database were destroyed at {}: its archives open no more",
            super::rfc3339(at)
        );
        return Err(Error::new(Code::KeyUnavailable, what).with("object", place));
    }
    let keys = Keyring::new(masters.clone());
    if !keys.is_on() {
        let master = object.keys.last().map_or("?", |key| key.master.as_str());
        let what = format!(
            "the archive is sealed, and no master key was given: --master-key-file {master}=PATH"
        );
        return Err(Error::new(Code::KeyUnavailable, what).with("object", place));
    }
    keys.admit(&object).map_err(key_error)?;
    Ok(keys)
}

fn write(frame: &mut Frame<'_>, out: &Path, compressed: bool) -> io::Result<u64> {
    let mut to = File::create_new(out)?;
    if compressed {
        return copy(frame, &mut to);
    }
    let name = frame.name.clone();
    let mut decoder = zstd::Decoder::new(frame)?;
    copy(&mut decoder, &mut to).map_err(|error| {
        let ours = error
            .get_ref()
            .is_some_and(<dyn std::error::Error + Send + Sync>::is::<Error>);
        let local = matches!(
            error.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
        );
        if ours || local {
            return error;
        }
        let what = format!("{name} does not decompress: {error}");
        io::Error::other(Error::new(Code::ObjectCorrupt, what))
    })
}

fn copy(from: &mut impl Read, to: &mut File) -> io::Result<u64> {
    let (mut piece, mut bytes) = (vec![0; PIECE], 0);
    loop {
        let read = from.read(&mut piece)?;
        let Some(plain) = piece.get(..read).filter(|plain| !plain.is_empty()) else {
            to.sync_all()?;
            return Ok(bytes);
        };
        to.write_all(plain)?;
        bytes += plain.len() as u64;
    }
}

/// The frame of a sealed archive in a file, opened block by block.
struct Frame<'a> {
    name: String,
    file: File,
    archive: SealedArchive,
    given: u64,
    at: Bytes,
    progress: &'a dyn Fn(u64, u64),
}

impl Frame<'_> {
    /// The next blocks, opened; empty at the end.
    fn next(&mut self) -> io::Result<Bytes> {
        let rest = self.given..self.archive.raw_len();
        let Some((blocks, at)) = self.archive.blocks(&rest, PIECE as u64) else {
            return Ok(Bytes::new());
        };
        let mut stored = vec![0; usize::try_from(at.end - at.start).unwrap_or_default()];
        self.file.read_exact_at(&mut stored, at.start)?;
        let opened = self.archive.open_blocks(&blocks, &stored, &rest);
        let opened = opened.map_err(|error| io::Error::other(refused(&self.name, error)))?;
        self.given += opened.len() as u64;
        (self.progress)(self.given, self.archive.raw_len());
        Ok(opened.into())
    }
}

impl Read for Frame<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.at.is_empty() {
            self.at = self.next()?;
        }
        let taken = self.at.split_to(self.at.len().min(buf.len()));
        if let Some(to) = buf.get_mut(..taken.len()) {
            to.copy_from_slice(&taken);
        }
        Ok(taken.len())
    }
}
