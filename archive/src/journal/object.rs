//! Reads journal objects.

use std::borrow::Cow;
use std::ops::Range;

use bytes::Bytes;
use tidelog_wal::codec::Reader;
use tidelog_wal::{DecodeError, Term};

use super::section::Section;
use super::{SECTIONS_MAX, check_place};
use crate::envelope::{
    BlockEntry, Expect, FormatError, KeyId, Object, ObjectKind, ObjectNonce, WriteId,
};
use crate::key::Seq;
use crate::records::{RUN_LEN_MIN, RawRecord, RecordReader};
use crate::seal::{BlockSealer, Keyring};

/// The shortest section in an index, which bounds what a count may claim.
const SECTION_LEN_MIN: usize = 2 * 16 + 1 + 8 + 16 + RUN_LEN_MIN + 2;

/// A decoded journal object: its index, and its bytes if it was read whole.
#[derive(Debug, Clone)]
pub struct JournalObject {
    /// Which PUT wrote it.
    pub write_id: WriteId,
    /// The term it belongs to.
    pub term: Term,
    /// Its number in the term.
    pub seq: Seq,
    /// The first local record inside.
    pub first_local: u64,
    /// The last local record inside.
    pub last_local: u64,
    /// One a database.
    pub sections: Vec<Section>,
    nonce: ObjectNonce,
    keys: Keyring,
    whole: Option<Bytes>,
}

impl JournalObject {
    /// Reads the whole object `seq` of `term`, proving every byte of it.
    ///
    /// Sections are opened with the keys that are in `keys` when their blocks are read.
    pub fn decode(
        bytes: &Bytes,
        term: Term,
        seq: Seq,
        keys: &Keyring,
    ) -> Result<Self, FormatError> {
        let object = Object::open(bytes, Expect::node(ObjectKind::Journal), keys)?;
        Self::from_object(&object, term, seq, keys)
    }

    /// Reads the index of an object opened by its tail.
    pub fn from_object(
        object: &Object,
        term: Term,
        seq: Seq,
        keys: &Keyring,
    ) -> Result<Self, FormatError> {
        object.header.check(Expect::node(ObjectKind::Journal))?;
        let journal = Self::index(object, keys)
            .map_err(|error| FormatError::from(error).shifted(object.trailer.index_offset))?;
        check_place((journal.term, journal.seq), (term, seq))?;
        Ok(journal)
    }

    fn index(object: &Object, keys: &Keyring) -> Result<Self, DecodeError> {
        let body = object.body();
        let mut reader = Reader::new(&object.index);
        let term = Term::new(reader.varint_u32("term")?);
        let seq = Seq::new(reader.varint()?);
        let first_local = reader.varint()?;
        let offset = reader.offset();
        let last_local = first_local
            .checked_add(reader.varint()?)
            .ok_or(DecodeError::Invalid {
                offset,
                what: "local record number",
            })?;
        let limit = SECTIONS_MAX.min(reader.remaining() / SECTION_LEN_MIN);
        let count = reader.count("sections", limit)?;
        let mut sections = Vec::with_capacity(count);
        let mut next_block = 0;
        for _ in 0..count {
            let section = Section::decode(&mut reader, &body, next_block)?;
            next_block += section.table.blocks.len() as u64;
            sections.push(section);
        }
        reader.finish()?;
        Ok(Self {
            write_id: object.header.write_id,
            term,
            seq,
            first_local,
            last_local,
            sections,
            nonce: object.header.nonce,
            keys: keys.clone(),
            whole: object.whole.clone(),
        })
    }

    /// The stored bytes of a section, if the object was read whole.
    pub fn section_bytes(&self, section: &Section) -> Option<Bytes> {
        let Range { start, end } = section.range();
        let (start, end) = (usize::try_from(start).ok()?, usize::try_from(end).ok()?);
        let whole = self.whole.as_ref()?;
        (start <= end && end <= whole.len()).then(|| whole.slice(start..end))
    }

    /// The same object without its bytes: index only.
    #[must_use]
    pub fn without_bytes(self) -> Self {
        Self {
            whole: None,
            ..self
        }
    }

    /// Opens the blocks of `section` one by one from `stored`, the bytes of [`Section::range`].
    pub fn blocks<'a>(
        &self,
        section: &'a Section,
        stored: &'a [u8],
    ) -> impl Iterator<Item = Result<Cow<'static, [u8]>, FormatError>> + use<'a> {
        self.section_blocks(section, stored)
    }

    fn section_blocks<'a>(&self, section: &'a Section, stored: &'a [u8]) -> SectionBlocks<'a> {
        SectionBlocks {
            section,
            stored,
            next: 0,
            sealer: self.sealer(section),
        }
    }

    /// What opens a section: its database's key, unless it is plain and may be.
    fn sealer(&self, section: &Section) -> Result<Option<BlockSealer>, FormatError> {
        let meta = &section.meta;
        if meta.key_id == KeyId::default() {
            return if self.keys.must_be_sealed(meta.database) {
                Err(FormatError::NotSealed)
            } else {
                Ok(None)
            };
        }
        let ids = (meta.namespace, meta.database);
        self.keys
            .opener(ObjectKind::Journal, self.nonce, ids, meta.key_id)
            .map(Some)
    }

    /// Reads the records of `section` from `stored`, the bytes of [`Section::range`].
    pub fn records<'a>(&self, section: &'a Section, stored: &'a [u8]) -> SectionRecords<'a> {
        let blocks = self.section_blocks(section, stored);
        let meta = &section.meta;
        let (walk, offset) = (meta.walk(), section.range().start);
        SectionRecords {
            reader: RecordReader::new(blocks, walk, meta.last, meta.chain_after, offset),
            section,
        }
    }
}

/// Reads the records of a section, proving that they are dense, that the chain leads from the one before
/// to the one after, and that the last one says of the state what the section says.
#[derive(Debug)]
pub struct SectionRecords<'a> {
    reader: RecordReader<SectionBlocks<'a>>,
    section: &'a Section,
}

impl SectionRecords<'_> {
    /// The next record, or `None` at the proven end.
    pub fn next_record(&mut self) -> Result<Option<RawRecord<'_>>, FormatError> {
        let meta = &self.section.meta;
        let record = self.reader.next_record()?;
        if let Some(RawRecord { record, .. }) = &record {
            let header = &record.header;
            let first = header.txid != meta.first
                || header.term == meta.first_term
                    && header.time == meta.first_time
                    && header.n_before == meta.n_before;
            let last = header.txid != meta.last
                || header.term == meta.last_term
                    && header.time == meta.last_time
                    && header.digest == meta.digest_after
                    && header.n_after == meta.n_after;
            if !first || !last {
                return Err(FormatError::invalid(0, "record that its section belies")
                    .shifted(self.section.range().start));
            }
        }
        Ok(record)
    }
}

/// Opens the blocks of a section one by one.
#[derive(Debug)]
struct SectionBlocks<'a> {
    section: &'a Section,
    stored: &'a [u8],
    next: usize,
    sealer: Result<Option<BlockSealer>, FormatError>,
}

impl SectionBlocks<'_> {
    fn open(&self, entry: &BlockEntry) -> Result<Vec<u8>, FormatError> {
        let from = entry.offset - self.section.range().start;
        let stored = usize::try_from(from)
            .ok()
            .and_then(|from| self.stored.get(from..from + entry.stored_len as usize))
            .ok_or(FormatError::from(DecodeError::Short {
                offset: 0,
                need: entry.stored_len as usize,
                have: 0,
            }))
            .map_err(|error| error.shifted(entry.offset))?;
        let block = self.section.first_block + self.next as u64;
        let sealer = self.sealer.as_ref().map_err(Clone::clone)?;
        entry.open(sealer.as_ref(), block, stored)
    }
}

impl Iterator for SectionBlocks<'_> {
    type Item = Result<Cow<'static, [u8]>, FormatError>;

    fn next(&mut self) -> Option<Self::Item> {
        let entry = self.section.table.blocks.get(self.next)?;
        let raw = self.open(entry);
        self.next += 1;
        Some(raw.map(Cow::Owned))
    }
}
