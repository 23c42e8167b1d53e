//! The sealed form of an archive: its object and its side file.
//!
//! A plain archive is one zstd frame and a JSON text, outside every envelope. That of a database that has a data key
//! is the same two texts, each in an envelope that is sealed with that key:
//!
//! ```text
//! object (kind `Archive`):    header | blocks | index | trailer
//!   blocks:  the zstd frame, cut every 256 KiB; each stored as it is, then sealed
//!   index:   archive id (16) | block table
//! side file (kind `ArchiveMetadata`): one payload, the JSON text
//! ```
//!
//! The frame is compressed already, so that blocks are not compressed again, and every one but the last is full: a
//! byte of the frame is found without reading the blocks before it. A reader fetches and opens the blocks of a range
//! and nothing else ([`SealedArchive::blocks`]).
//!
//! The object is named, by length and BLAKE3, in the side file and wherever that is kept. Whoever has the object alone
//! proves it by its own trailer ([`SealedArchive::open_file`]): that it is whole, and by the seal that it was written
//! for this database by somebody who had its key.

use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;

use bytes::Bytes;
use tidelog_wal::block::{BLOCK_RAW_MAX, Codec};
use tidelog_wal::codec::Reader;
use tidelog_wal::record::ObjectRef;
use tidelog_wal::{DatabaseId, DecodeError, NamespaceId};

use crate::envelope::{
    BlockEntry, BlockTable, Expect, Finished, FormatError, HEADER_LEN, Header, MAGIC, Object,
    ObjectKind, ObjectWriter, TRAILER_LEN, TailRange, Trailer, decode_payload, encode_payload,
};
use crate::key::ArchiveId;
use crate::seal::{Keyring, Stamp};

/// Bytes of a file hashed at a time.
const PIECE: usize = 1 << 20;

/// Whether these first bytes are those of a sealed object rather than of a plain archive or side file.
pub fn is_sealed(head: &[u8]) -> bool {
    head.starts_with(&MAGIC)
}

/// Writes a sealed archive in the memory of a block and of what was not taken yet.
#[derive(Debug)]
pub struct SealedArchiveWriter {
    id: ArchiveId,
    object: ObjectWriter,
    table: BlockTable,
    raw: Vec<u8>,
}

impl SealedArchiveWriter {
    /// A writer of the archive `id` of a database.
    pub fn new(
        (namespace, database): (NamespaceId, DatabaseId),
        id: ArchiveId,
        stamp: Stamp,
    ) -> Self {
        let expect = Expect::database(ObjectKind::Archive, namespace, database);
        Self {
            id,
            object: ObjectWriter::new(expect, stamp),
            table: BlockTable::default(),
            raw: Vec::with_capacity(BLOCK_RAW_MAX),
        }
    }

    /// Adds bytes of the frame.
    pub fn push(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = BLOCK_RAW_MAX - self.raw.len();
            let (now, rest) = bytes.split_at(room.min(bytes.len()));
            self.raw.extend_from_slice(now);
            bytes = rest;
            if self.raw.len() == BLOCK_RAW_MAX {
                self.flush();
            }
        }
    }

    fn flush(&mut self) {
        if self.raw.is_empty() {
            return;
        }
        let length = |len: usize| u32::try_from(len).expect("a block is at most 256 KiB and a bit");
        let raw_len = length(self.raw.len());
        let mut stored = std::mem::replace(&mut self.raw, Vec::with_capacity(BLOCK_RAW_MAX));
        if let Some(sealer) = self.object.sealer() {
            sealer.seal(self.table.blocks.len() as u64, &mut stored);
        }
        self.table.blocks.push(BlockEntry {
            offset: self.object.offset(),
            stored_len: length(stored.len()),
            raw_len,
            codec: Codec::Raw,
            crc: crc32fast::hash(&stored),
        });
        self.object.append(&stored);
    }

    /// Bytes that wait to be taken.
    pub const fn pending(&self) -> usize {
        self.object.pending()
    }

    /// Hands out the bytes of the object written since the last call.
    pub fn take(&mut self) -> Vec<u8> {
        self.object.take()
    }

    /// Ends the object.
    pub fn finish(mut self) -> Result<Finished, FormatError> {
        self.flush();
        let mut index = self.id.to_bytes().to_vec();
        self.table.encode(&mut index);
        self.object.finish(&index)
    }
}

/// The index of a sealed archive, which finds and opens its blocks.
#[derive(Debug)]
pub struct SealedArchive {
    /// Which archive it is.
    pub id: ArchiveId,
    object: Object,
    table: BlockTable,
}

impl SealedArchive {
    /// Opens the object that `named` names, of archive `id` of a database, from its head and its last bytes. Where
    /// those do not reach back to the index, the answer is the range that does.
    pub fn open_tail(
        head: &[u8],
        tail: &Bytes,
        (namespace, database): (NamespaceId, DatabaseId),
        id: ArchiveId,
        named: &ObjectRef,
        keys: &Keyring,
    ) -> Result<Result<Self, TailRange>, FormatError> {
        let expect = Expect::database(ObjectKind::Archive, namespace, database);
        let object = match Object::open_tail(head, tail, expect, named, keys)? {
            Ok(object) => object,
            Err(more) => return Ok(Err(more)),
        };
        let opened = Self::from_object(object)?;
        if opened.id != id {
            return Err(FormatError::Foreign {
                what: "archive",
                found: opened.id.to_string(),
                expected: id.to_string(),
            });
        }
        Ok(Ok(opened))
    }

    /// Opens a file that holds a sealed archive, having proven every byte of it.
    pub fn open_file<F: Read + Seek>(
        file: &mut F,
        keys: &Keyring,
    ) -> io::Result<Result<Self, FormatError>> {
        let len = file.seek(SeekFrom::End(0))?;
        let tail_len = len.min(TRAILER_LEN as u64);
        let mut end = vec![0; usize::try_from(tail_len).unwrap_or(TRAILER_LEN)];
        file.seek(SeekFrom::Start(len - tail_len))?;
        file.read_exact(&mut end)?;
        let trailer = match Trailer::decode(&end, len) {
            Ok(trailer) => trailer,
            Err(error) => return Ok(Err(error)),
        };
        let covered = len - TRAILER_LEN as u64;
        let mut head = [0; HEADER_LEN];
        file.seek(SeekFrom::Start(0))?;
        file.read_exact(&mut head)?;
        file.seek(SeekFrom::Start(0))?;
        let found = hash(&mut file.by_ref().take(covered))?;
        if found.as_bytes() != &trailer.blake3 {
            return Ok(Err(FormatError::Decode(DecodeError::Checksum {
                offset: 0,
                what: "BLAKE3 of the object",
                found: found.to_string(),
                expected: blake3::Hash::from_bytes(trailer.blake3).to_string(),
            })));
        }
        let mut tail = Vec::new();
        file.seek(SeekFrom::Start(trailer.index_offset))?;
        file.read_to_end(&mut tail)?;
        let named = ObjectRef {
            key: String::new(),
            len,
            blake3: trailer.blake3,
        };
        Ok(Self::from_file(&head, &tail.into(), &named, keys))
    }

    fn from_file(
        head: &[u8],
        tail: &Bytes,
        named: &ObjectRef,
        keys: &Keyring,
    ) -> Result<Self, FormatError> {
        let header = Header::decode(head)?;
        let expect = Expect::database(ObjectKind::Archive, header.namespace, header.database);
        match Object::open_tail(head, tail, expect, named, keys)? {
            Ok(object) => Self::from_object(object),
            Err(_) => Err(FormatError::invalid(0, "index offset")),
        }
    }

    fn from_object(object: Object) -> Result<Self, FormatError> {
        if object.sealer.is_none() {
            // Anybody could have written it.
            return Err(FormatError::NotSealed);
        }
        let (id, table) = decode_index(&object)
            .map_err(|error| FormatError::from(error).shifted(object.trailer.index_offset))?;
        Ok(Self { id, object, table })
    }

    /// Bytes of the frame.
    pub fn raw_len(&self) -> u64 {
        self.table.raw_len()
    }

    /// The blocks that hold `range` of the frame, at most `bytes_max` stored bytes of them but at least one, and
    /// where they lie in the object. `None` where the frame has no byte of the range.
    pub fn blocks(&self, range: &Range<u64>, bytes_max: u64) -> Option<(Range<usize>, Range<u64>)> {
        let block = |at: u64| usize::try_from(at / BLOCK_RAW_MAX as u64).ok();
        let last = range.end.min(self.raw_len()).checked_sub(1)?;
        if range.start > last {
            return None;
        }
        let (first, last) = (block(range.start)?, block(last)?);
        let blocks = self.table.blocks.get(first..=last)?;
        let from = blocks.first()?.offset;
        let fits = blocks.partition_point(|block| block.range().end - from <= bytes_max);
        let taken = blocks.get(..fits.max(1))?;
        Some((first..first + taken.len(), from..taken.last()?.range().end))
    }

    /// What of `range` stands in blocks `blocks`, whose bytes in the object are `stored`; the frame's bytes.
    pub fn open_blocks(
        &self,
        blocks: &Range<usize>,
        stored: &[u8],
        range: &Range<u64>,
    ) -> Result<Vec<u8>, FormatError> {
        let mut raw = Vec::new();
        let mut rest = stored;
        for number in blocks.clone() {
            let entry = self.table.blocks.get(number).ok_or(DecodeError::Invalid {
                offset: 0,
                what: "block number",
            })?;
            let short = DecodeError::Short {
                offset: 0,
                need: entry.stored_len as usize,
                have: rest.len(),
            };
            let (bytes, next) = rest
                .split_at_checked(entry.stored_len as usize)
                .ok_or_else(|| FormatError::from(short).shifted(entry.offset))?;
            rest = next;
            raw.extend(entry.open(self.object.sealer.as_deref(), number as u64, bytes)?);
        }
        let base = blocks.start as u64 * BLOCK_RAW_MAX as u64;
        let cut = |at: u64| {
            let at = usize::try_from(at.saturating_sub(base)).unwrap_or(usize::MAX);
            at.min(raw.len())
        };
        let (from, to) = (cut(range.start), cut(range.end));
        raw.truncate(to);
        raw.drain(..from.min(to));
        Ok(raw)
    }
}

fn hash(from: &mut impl Read) -> io::Result<blake3::Hash> {
    let mut hasher = blake3::Hasher::new();
    let mut piece = vec![0; PIECE];
    loop {
        let read = from.read(&mut piece)?;
        let Some(bytes) = piece.get(..read).filter(|bytes| !bytes.is_empty()) else {
            return Ok(hasher.finalize());
        };
        hasher.update(bytes);
    }
}

fn decode_index(object: &Object) -> Result<(ArchiveId, BlockTable), DecodeError> {
    let mut reader = Reader::new(&object.index);
    let id = ArchiveId::from_bytes(reader.array()?);
    let offset = reader.offset();
    let table = BlockTable::decode(&mut reader, &object.body())?;
    reader.finish()?;
    let full = |block: &BlockEntry| block.raw_len as usize == BLOCK_RAW_MAX;
    let all = table.blocks.iter().rev().skip(1).all(full);
    if !all || table.blocks.iter().any(|block| block.codec != Codec::Raw) {
        return Err(DecodeError::Invalid {
            offset,
            what: "blocks of an archive",
        });
    }
    // From the header to the index, nothing between and nothing left over.
    let body = object.body();
    let sound = if table.blocks.is_empty() {
        body.is_empty()
    } else {
        table.range() == body
    };
    if !sound {
        return Err(DecodeError::Invalid {
            offset,
            what: "extent of the blocks of an archive",
        });
    }
    Ok((id, table))
}

/// Seals the side file of an archive.
pub fn seal_document(
    (namespace, database): (NamespaceId, DatabaseId),
    stamp: Stamp,
    text: Vec<u8>,
) -> Result<Finished, FormatError> {
    let expect = Expect::database(ObjectKind::ArchiveMetadata, namespace, database);
    encode_payload(expect, stamp, text)
}

/// The text of a sealed side file.
pub fn open_document(
    bytes: &Bytes,
    (namespace, database): (NamespaceId, DatabaseId),
    keys: &Keyring,
) -> Result<Vec<u8>, FormatError> {
    let expect = Expect::database(ObjectKind::ArchiveMetadata, namespace, database);
    let (text, object) = decode_payload(bytes, expect, keys, |_, payload| Ok(payload.to_vec()))?;
    if object.sealer.is_none() {
        return Err(FormatError::NotSealed);
    }
    Ok(text)
}
