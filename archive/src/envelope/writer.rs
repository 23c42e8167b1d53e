//! Writes an object front to back, in memory or piece by piece.

use std::fmt;

use bytes::Bytes;
use tidelog_wal::record::ObjectRef;

use super::error::FormatError;
use super::header::{Expect, Header};
use super::trailer::{INDEX_LEN_MAX, TRAILER_LEN, Trailer};
use crate::key::Key;
use crate::seal::{BlockSealer, INDEX_BLOCK, Stamp};

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
    /// Seals the index, and the blocks unless another is set.
    own: Option<BlockSealer>,
    /// Seals the blocks of a section.
    section: Section,
}

impl fmt::Debug for ObjectWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ObjectWriter")
            .field("header", &self.header)
            .field("offset", &self.offset())
            .finish_non_exhaustive()
    }
}

/// What seals the next block.
enum Section {
    /// The object has no sections.
    None,
    /// A section of a plain database.
    Plain,
    /// A section with a key of its own.
    Sealed(BlockSealer),
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
    /// A writer that has written the header of the object that `stamp` is for.
    pub fn new(expect: Expect, stamp: Stamp) -> Self {
        let header = Header::new(expect, &stamp);
        let own = stamp.key.map(|key| {
            let ids = (header.namespace, header.database);
            BlockSealer::new(&key.key, header.kind, header.nonce, ids)
        });
        let mut writer = Self {
            header,
            hasher: blake3::Hasher::new(),
            pending: Vec::new(),
            taken: 0,
            own,
            section: Section::None,
        };
        writer.append(&header.encode());
        writer
    }

    /// The header it began with.
    pub const fn header(&self) -> &Header {
        &self.header
    }

    /// What seals the next block; `None` if it is plain.
    pub(crate) const fn sealer(&self) -> Option<&BlockSealer> {
        match &self.section {
            Section::None => self.own.as_ref(),
            Section::Plain => None,
            Section::Sealed(sealer) => Some(sealer),
        }
    }

    /// From here on blocks are sealed by `sealer`: they belong to a section of its own. The index stays the
    /// object's.
    pub(crate) fn set_sealer(&mut self, sealer: Option<BlockSealer>) {
        self.section = sealer.map_or(Section::Plain, Section::Sealed);
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

    /// Seals and writes the index, then the trailer. An empty index stays empty.
    pub fn finish(mut self, index: &[u8]) -> Result<Finished, FormatError> {
        let mut stored = index.to_vec();
        if let Some(own) = self.own.take().filter(|_| !index.is_empty()) {
            own.seal(INDEX_BLOCK, &mut stored);
        }
        let index = stored.as_slice();
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
