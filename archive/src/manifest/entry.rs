//! Entries of manifests and index objects.
//!
//! | entry | form |
//! | --- | --- |
//! | segment | run ([`crate::records::Run`]), object |
//! | image | Position, time varint, page count varint, digest u64, object |
//! | index | level u8 (>= 0), run of all below, segments, images, bytes varint, object |
//! | marked | u8 (0 segment, 1 image, 2 index), first, last TxId varint, object, marked at varint |
//!
//! object: nonce (term varint, counter varint), length varint, BLAKE3 (32).

use tidelog_wal::codec::{Reader, put_varint};
use tidelog_wal::record::ObjectRef;
use tidelog_wal::{
    Chain, DatabaseId, DecodeError, Digest, NamespaceId, PageCount, Position, Term, Timestamp, TxId,
};

use crate::key::{DatabaseObject, Key, KeyNonce};
use crate::records::{RUN_LEN_MIN, Run};

/// Names an object of a known kind and range: what is left of its key, and what proves its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Named {
    pub(super) nonce: KeyNonce,
    pub(super) len: u64,
    pub(super) blake3: [u8; 32],
}

impl Named {
    fn encode(&self, out: &mut Vec<u8>) {
        put_varint(out, u64::from(self.nonce.term.get()));
        put_varint(out, self.nonce.counter);
        put_varint(out, self.len);
        out.extend_from_slice(&self.blake3);
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            nonce: KeyNonce {
                term: Term::new(reader.varint_u32("term")?),
                counter: reader.varint()?,
            },
            len: reader.varint()?,
            blake3: reader.array()?,
        })
    }
}

const NAMED_LEN_MIN: usize = 3 + 32;

pub(super) fn put_position(out: &mut Vec<u8>, position: &Position) {
    put_varint(out, u64::from(position.term.get()));
    put_varint(out, position.txid.get());
    out.extend_from_slice(position.chain.as_bytes());
}

pub(super) fn read_position(reader: &mut Reader<'_>) -> Result<Position, DecodeError> {
    Ok(Position {
        term: Term::new(reader.varint_u32("term")?),
        txid: TxId::new(reader.varint()?),
        chain: Chain::from_bytes(reader.array()?),
    })
}

/// An entry of a list.
pub(crate) trait Entry: Sized {
    /// The shortest encoded one, which bounds what a count may claim.
    const LEN_MIN: usize;

    /// Appends its encoding.
    fn encode(&self, out: &mut Vec<u8>);

    /// Reads one.
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError>;
}

/// Appends a list with its count.
pub(crate) fn put_list<E: Entry>(out: &mut Vec<u8>, entries: &[E]) {
    put_varint(out, entries.len() as u64);
    for entry in entries {
        entry.encode(out);
    }
}

/// Reads a list of at most `limit` entries.
pub(crate) fn read_list<E: Entry>(
    reader: &mut Reader<'_>,
    what: &'static str,
    limit: usize,
) -> Result<Vec<E>, DecodeError> {
    let count = reader.count(what, limit.min(reader.remaining() / E::LEN_MIN))?;
    (0..count).map(|_| E::decode(reader)).collect()
}

/// A listed segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentEntry {
    /// The run of records in it.
    pub run: Run,
    /// The rest of its key.
    pub nonce: KeyNonce,
    /// Bytes of it.
    pub len: u64,
    /// BLAKE3 of every byte before its trailer.
    pub blake3: [u8; 32],
}

impl SegmentEntry {
    /// Its key.
    pub const fn key(&self, namespace: NamespaceId, database: DatabaseId) -> Key {
        Key::segment(
            namespace,
            database,
            self.run.first,
            self.run.last,
            self.nonce,
        )
    }

    /// Names it, with what proves its bytes.
    pub fn object(&self, namespace: NamespaceId, database: DatabaseId) -> ObjectRef {
        ObjectRef {
            key: self.key(namespace, database).to_string(),
            len: self.len,
            blake3: self.blake3,
        }
    }
}

impl Entry for SegmentEntry {
    const LEN_MIN: usize = RUN_LEN_MIN + NAMED_LEN_MIN;

    fn encode(&self, out: &mut Vec<u8>) {
        self.run.encode(out);
        let (nonce, len, blake3) = (self.nonce, self.len, self.blake3);
        Named { nonce, len, blake3 }.encode(out);
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let run = Run::decode(reader)?;
        let Named { nonce, len, blake3 } = Named::decode(reader)?;
        Ok(Self {
            run,
            nonce,
            len,
            blake3,
        })
    }
}

/// A listed image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageEntry {
    /// Whose state it is.
    pub position: Position,
    /// Ordered time of that commit.
    pub time: Timestamp,
    /// Page count.
    pub n: PageCount,
    /// State digest.
    pub digest: Digest,
    /// The rest of its key.
    pub nonce: KeyNonce,
    /// Bytes of it.
    pub len: u64,
    /// BLAKE3 of every byte before its trailer.
    pub blake3: [u8; 32],
}

impl ImageEntry {
    /// Its key.
    pub const fn key(&self, namespace: NamespaceId, database: DatabaseId) -> Key {
        Key::image(namespace, database, self.position.txid, self.nonce)
    }

    /// Names it, with what proves its bytes.
    pub fn object(&self, namespace: NamespaceId, database: DatabaseId) -> ObjectRef {
        ObjectRef {
            key: self.key(namespace, database).to_string(),
            len: self.len,
            blake3: self.blake3,
        }
    }
}

impl Entry for ImageEntry {
    const LEN_MIN: usize = 18 + 1 + 1 + 8 + NAMED_LEN_MIN;

    fn encode(&self, out: &mut Vec<u8>) {
        put_position(out, &self.position);
        put_varint(out, self.time.micros());
        put_varint(out, u64::from(self.n.get()));
        out.extend_from_slice(&self.digest.get().to_le_bytes());
        let (nonce, len, blake3) = (self.nonce, self.len, self.blake3);
        Named { nonce, len, blake3 }.encode(out);
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let position = read_position(reader)?;
        let time = Timestamp::from_micros(reader.varint()?);
        let n = PageCount::new(reader.varint_u32("page count")?);
        let digest = Digest::from_u64(reader.u64()?);
        let Named { nonce, len, blake3 } = Named::decode(reader)?;
        Ok(Self {
            position,
            time,
            n,
            digest,
            nonce,
            len,
            blake3,
        })
    }
}

/// A listed index object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndexEntry {
    /// 0 lists segments and images, higher ones list index objects of the level below.
    pub level: u8,
    /// From the first segment below to the last. Between them there may be holes below the horizon.
    pub run: Run,
    /// Segments below.
    pub segments: u64,
    /// Images below.
    pub images: u64,
    /// Bytes of all of them.
    pub bytes: u64,
    /// The rest of its key.
    pub nonce: KeyNonce,
    /// Bytes of it.
    pub len: u64,
    /// BLAKE3 of every byte before its trailer.
    pub blake3: [u8; 32],
}

impl IndexEntry {
    /// Its key.
    pub const fn key(&self, namespace: NamespaceId, database: DatabaseId) -> Key {
        Key::index(
            namespace,
            database,
            self.run.first,
            self.run.last,
            self.nonce,
        )
    }

    /// Names it, with what proves its bytes.
    pub fn object(&self, namespace: NamespaceId, database: DatabaseId) -> ObjectRef {
        ObjectRef {
            key: self.key(namespace, database).to_string(),
            len: self.len,
            blake3: self.blake3,
        }
    }
}

impl Entry for IndexEntry {
    const LEN_MIN: usize = 1 + RUN_LEN_MIN + 3 + NAMED_LEN_MIN;

    fn encode(&self, out: &mut Vec<u8>) {
        out.push(self.level);
        self.run.encode(out);
        put_varint(out, self.segments);
        put_varint(out, self.images);
        put_varint(out, self.bytes);
        let (nonce, len, blake3) = (self.nonce, self.len, self.blake3);
        Named { nonce, len, blake3 }.encode(out);
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let offset = reader.offset();
        let level = reader.u8()?;
        if level > crate::index::LEVEL_MAX {
            return Err(DecodeError::TooLarge {
                offset,
                what: "level of an index object",
                found: u64::from(level),
                limit: u64::from(crate::index::LEVEL_MAX),
            });
        }
        let run = Run::decode(reader)?;
        let segments = reader.varint()?;
        let images = reader.varint()?;
        let bytes = reader.varint()?;
        let Named { nonce, len, blake3 } = Named::decode(reader)?;
        Ok(Self {
            level,
            run,
            segments,
            images,
            bytes,
            nonce,
            len,
            blake3,
        })
    }
}

/// An object marked for deletion: from the manifest version that marks it on it does not exist. Marking an
/// index object marks everything below it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Marked {
    /// Which: a segment, an image or an index object.
    pub object: DatabaseObject,
    /// Bytes of it.
    pub len: u64,
    /// BLAKE3 of every byte before its trailer.
    pub blake3: [u8; 32],
    /// When it was marked.
    pub at: Timestamp,
}

impl Marked {
    /// A segment marked at `at`.
    pub const fn segment(entry: &SegmentEntry, at: Timestamp) -> Self {
        Self {
            object: DatabaseObject::Segment {
                first: entry.run.first,
                last: entry.run.last,
                nonce: entry.nonce,
            },
            len: entry.len,
            blake3: entry.blake3,
            at,
        }
    }

    /// An image marked at `at`.
    pub const fn image(entry: &ImageEntry, at: Timestamp) -> Self {
        Self {
            object: DatabaseObject::Image {
                txid: entry.position.txid,
                nonce: entry.nonce,
            },
            len: entry.len,
            blake3: entry.blake3,
            at,
        }
    }

    /// An index object marked at `at`, with all below it.
    pub const fn index(entry: &IndexEntry, at: Timestamp) -> Self {
        Self {
            object: DatabaseObject::Index {
                first: entry.run.first,
                last: entry.run.last,
                nonce: entry.nonce,
            },
            len: entry.len,
            blake3: entry.blake3,
            at,
        }
    }
}

impl Entry for Marked {
    const LEN_MIN: usize = 3 + NAMED_LEN_MIN + 1;

    fn encode(&self, out: &mut Vec<u8>) {
        let (code, first, last, nonce) = match self.object {
            DatabaseObject::Image { txid, nonce } => (1, txid, txid, nonce),
            DatabaseObject::Index { first, last, nonce } => (2, first, last, nonce),
            DatabaseObject::Segment { first, last, nonce } => (0, first, last, nonce),
            // `check_self` refuses to publish a mark on anything else.
            DatabaseObject::Manifest
            | DatabaseObject::Key
            | DatabaseObject::Archive(_)
            | DatabaseObject::ArchiveText(_)
            | DatabaseObject::ArchiveMetadata(_) => {
                (3, TxId::ZERO, TxId::ZERO, KeyNonce::default())
            }
        };
        out.push(code);
        put_varint(out, first.get());
        put_varint(out, last.get());
        let (len, blake3) = (self.len, self.blake3);
        Named { nonce, len, blake3 }.encode(out);
        put_varint(out, self.at.micros());
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let offset = reader.offset();
        let code = reader.u8()?;
        let first = TxId::new(reader.varint()?);
        let last = TxId::new(reader.varint()?);
        let Named { nonce, len, blake3 } = Named::decode(reader)?;
        let object = match code {
            0 => DatabaseObject::Segment { first, last, nonce },
            1 if first == last => DatabaseObject::Image { txid: first, nonce },
            2 => DatabaseObject::Index { first, last, nonce },
            _ => {
                return Err(DecodeError::Invalid {
                    offset,
                    what: "kind of a marked object",
                });
            }
        };
        Ok(Self {
            object,
            len,
            blake3,
            at: Timestamp::from_micros(reader.varint()?),
        })
    }
}
