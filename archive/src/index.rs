//! Index objects: entries of a manifest that do not fit its root. Immutable, uploaded once.
//!
//! Payload: level u8, then three lists as in a manifest ([`crate::manifest`]): index entries (of the level
//! below; empty at level 0), images, segments (both empty above level 0). Each list ascends; together at
//! most 4,096 entries ([`ENTRIES_MAX`]). Runs inside need not join: what expired may be missing.

use bytes::Bytes;
use tidelog_wal::codec::Reader;
use tidelog_wal::record::ObjectRef;
use tidelog_wal::{DatabaseId, DecodeError, NamespaceId};

use crate::envelope::{Expect, Finished, FormatError, ObjectKind, decode_payload, encode_payload};
use crate::key::{Key, KeyNonce};
use crate::manifest::{
    ImageEntry, IndexEntry, Marked, SegmentEntry, put_list, read_list, spanning,
};
use crate::records::Run;
use crate::seal::{Keyring, Stamp};

/// The most entries of one index object.
pub const ENTRIES_MAX: usize = 4096;
/// The highest level: 48 objects of it hold more segments than a database ever has.
pub const LEVEL_MAX: u8 = 4;

/// An index object.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct IndexObject {
    /// Index objects of the level below.
    pub children: Vec<IndexEntry>,
    /// Images.
    pub images: Vec<ImageEntry>,
    /// Segments.
    pub segments: Vec<SegmentEntry>,
}

impl IndexObject {
    /// From the first run below to the last.
    pub fn run(&self) -> Option<Run> {
        let children = self.children.iter().map(|entry| &entry.run);
        spanning(children.chain(self.segments.iter().map(|entry| &entry.run)))
    }

    /// Segments, images and bytes of both, all levels below counted.
    pub fn totals(&self) -> (u64, u64, u64) {
        let mut totals = (self.segments.len() as u64, self.images.len() as u64, 0_u64);
        let lens = self.segments.iter().map(|entry| entry.len);
        for len in lens.chain(self.images.iter().map(|entry| entry.len)) {
            totals.2 = totals.2.saturating_add(len);
        }
        for child in &self.children {
            totals.0 = totals.0.saturating_add(child.segments);
            totals.1 = totals.1.saturating_add(child.images);
            totals.2 = totals.2.saturating_add(child.bytes);
        }
        totals
    }

    /// What lists it, as it was encoded, at a key with `nonce`.
    pub fn entry(&self, run: Run, level: u8, nonce: KeyNonce, encoded: &Finished) -> IndexEntry {
        let (segments, images, bytes) = self.totals();
        IndexEntry {
            level,
            run,
            segments,
            images,
            bytes,
            nonce,
            len: encoded.len,
            blake3: encoded.blake3,
        }
    }

    /// The object.
    pub fn encode(
        &self,
        namespace: NamespaceId,
        database: DatabaseId,
        level: u8,
        stamp: Stamp,
    ) -> Result<Finished, FormatError> {
        if !self.is_sound(level) {
            return Err(FormatError::Unwritable {
                what: "entries of an index object out of order or too many",
            });
        }
        let mut out = vec![level];
        put_list(&mut out, &self.children);
        put_list(&mut out, &self.images);
        put_list(&mut out, &self.segments);
        let expect = Expect::database(ObjectKind::Index, namespace, database);
        encode_payload(expect, stamp, out)
    }

    /// Reads the object that `entry` of the database's manifest names.
    pub fn decode(
        bytes: &Bytes,
        namespace: NamespaceId,
        database: DatabaseId,
        entry: &IndexEntry,
        keys: &Keyring,
    ) -> Result<Self, FormatError> {
        let expect = Expect::database(ObjectKind::Index, namespace, database);
        let (index, object) = decode_payload(bytes, expect, keys, |_, payload| {
            Self::from_payload(payload, entry.level)
        })?;
        object
            .trailer
            .check_name(&entry.object(namespace, database))?;
        let totals = (entry.segments, entry.images, entry.bytes);
        if index.run() != Some(entry.run) || index.totals() != totals {
            return Err(FormatError::Foreign {
                what: "run of an index object",
                found: format!("{:?}, {:?}", index.run(), index.totals()),
                expected: format!("{:?}, {totals:?}", entry.run),
            });
        }
        Ok(index)
    }

    /// Reads an index object that is marked for deletion: what was to be deleted with it.
    pub fn decode_marked(
        bytes: &Bytes,
        namespace: NamespaceId,
        database: DatabaseId,
        marked: &Marked,
        keys: &Keyring,
    ) -> Result<Self, FormatError> {
        let expect = Expect::database(ObjectKind::Index, namespace, database);
        let (index, object) = decode_payload(bytes, expect, keys, |_, payload| {
            let level = payload.first().copied().unwrap_or(LEVEL_MAX);
            Self::from_payload(payload, level)
        })?;
        object.trailer.check_name(&ObjectRef {
            key: Key::Database(namespace, database, marked.object).to_string(),
            len: marked.len,
            blake3: marked.blake3,
        })?;
        Ok(index)
    }

    fn from_payload(payload: &[u8], level: u8) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(payload);
        let invalid = |what| DecodeError::Invalid { offset: 0, what };
        if reader.u8()? != level {
            return Err(invalid("level of an index object"));
        }
        let index = Self {
            children: read_list(&mut reader, "index objects", ENTRIES_MAX)?,
            images: read_list(&mut reader, "images", ENTRIES_MAX)?,
            segments: read_list(&mut reader, "segments", ENTRIES_MAX)?,
        };
        reader.finish()?;
        if index.is_sound(level) {
            Ok(index)
        } else {
            Err(invalid("order of entries"))
        }
    }

    /// Each list ascends, and holds what its level may.
    fn is_sound(&self, level: u8) -> bool {
        let ascend = |runs: Vec<&Run>| {
            runs.iter().all(|run| run.first <= run.last)
                && runs.is_sorted_by(|a, b| a.last < b.first)
        };
        let leaf = level == 0;
        let count = self.children.len() + self.images.len() + self.segments.len();
        count <= ENTRIES_MAX
            && self
                .children
                .iter()
                .all(|child| child.level.checked_add(1) == Some(level))
            && (leaf || self.segments.is_empty() && self.images.is_empty())
            && ascend(self.children.iter().map(|entry| &entry.run).collect())
            && ascend(self.segments.iter().map(|entry| &entry.run).collect())
            && self
                .images
                .is_sorted_by(|a, b| a.position.txid < b.position.txid)
    }
}
