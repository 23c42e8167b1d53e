//! Writes an object front to back, in memory or piece by piece.

use std::fmt;

use bytes::Bytes;
use tidelog_wal::record::ObjectRef;

use super::error::FormatError;
use super::header::Header;
use super::trailer::{INDEX_LEN_MAX, TRAILER_LEN, Trailer};
use crate::key::Key;

/// Writes an object: header first, then what is appended, then index and trailer.
///
/// Bytes gather in memory until [`ObjectWriter::take`] hands them out: a writer that is drained needs the
/// memory of what was appended since.
pub struct ObjectWriter {
    header: Header,
    hasher: blake3::Hasher,
    pending: Vec<u8>,
    /// Bytes handed out already.
    taken: u64,
}

impl fmt::Debug for ObjectWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ObjectWriter")
            .field("header", &self.header)
            .field("offset", &self.offset())
            .finish_non_exhaustive()
    }
}

/// What was written, and the last bytes of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    /// The bytes not taken before: the whole object if nothing was.
    pub bytes: Bytes,
    /// Bytes of the whole object.
    pub len: u64,
    /// BLAKE3 of every byte before the trailer: what names the object.
    pub blake3: [u8; 32],
}

impl Finished {
    /// Names the object under `key`.
    pub fn object_ref(&self, key: &Key) -> ObjectRef {
        ObjectRef {
            key: key.to_string(),
            len: self.len,
            blake3: self.blake3,
        }
    }
}

impl ObjectWriter {
    /// A writer that has written the header.
    pub fn new(header: Header) -> Self {
        let mut writer = Self {
            header,
            hasher: blake3::Hasher::new(),
            pending: Vec::new(),
            taken: 0,
        };
        writer.append(&header.encode());
        writer
    }

    /// The header it began with.
    pub const fn header(&self) -> &Header {
        &self.header
    }

    /// Bytes written so far: where the next ones will stand.
    pub fn offset(&self) -> u64 {
        self.taken + self.pending.len() as u64
    }

    /// Appends bytes of the body.
    pub fn append(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        self.pending.extend_from_slice(bytes);
    }

    /// Bytes that wait to be taken.
    pub const fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Hands out the bytes written since the last call; they follow those.
    pub fn take(&mut self) -> Vec<u8> {
        self.taken += self.pending.len() as u64;
        std::mem::take(&mut self.pending)
    }

    /// Writes index and trailer.
    pub fn finish(mut self, index: &[u8]) -> Result<Finished, FormatError> {
        let index_len = u32::try_from(index.len())
            .ok()
            .filter(|len| *len as usize <= INDEX_LEN_MAX)
            .ok_or(FormatError::Unwritable {
                what: "the index is too long",
            })?;
        let index_offset = self.offset();
        self.append(index);
        let trailer = Trailer {
            index_offset,
            index_len,
            index_crc: crc32fast::hash(index),
            blake3: *self.hasher.finalize().as_bytes(),
            object_len: self.offset() + TRAILER_LEN as u64,
        };
        self.pending.extend_from_slice(&trailer.encode());
        Ok(Finished {
            len: trailer.object_len,
            blake3: trailer.blake3,
            bytes: self.pending.into(),
        })
    }
}
