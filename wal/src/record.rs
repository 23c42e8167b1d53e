//! The commit record: one commit in the log.
//!
//! # Canonical encoding, version 1
//!
//! | field | form | |
//! | --- | --- | --- |
//! | version | u8 | 1 |
//! | kind | u8 | 1 delta, 2 image, 3 fork, 4 restore, 5 reference |
//! | flag | u8 | 0 live, 1 recovered, 2 clock suspect |
//! | term | varint | at most 32 bits |
//! | txid | varint | >= 1 |
//! | time | varint | ordered time, microseconds since 1970-01-01 UTC |
//! | wall | signed varint | raw wall time minus `time`, microseconds |
//! | `n_before`, `n_after` | varint | pages, at most 32 bits |
//! | digest | u64 | state digest after the commit, little-endian |
//! | annotations | varint count, then (varint tag, varint length, bytes)* | unknown tags are kept |
//! | body | to the end | by kind, below |
//!
//! | kind | body |
//! | --- | --- |
//! | delta | the pages of a [`crate::delta`]; empty when the commit changed nothing |
//! | image | [`ObjectRef`]: every page stands in an image object |
//! | fork | parent database id (16), parent Position (28) |
//! | restore | from, to, undo Position (28 each), then pages as in a delta |
//! | reference | [`ObjectRef`], chain (16): the record itself stands in that segment part |
//!
//! A Position is term (be32), txid (be64), chain (16): 28 bytes. An object reference is varint length of the
//! key, key, varint object length, BLAKE3 (32) of the object's bytes before its trailer.
//!
//! The bytes are *canonical*: they are what the chain hashes, they are kept verbatim for ever, and settling,
//! sealing and compressing never change them. A `reference` record is the exception that proves it: it stands
//! in the journal for a record too large to stand there, its header is that of the record it names, and it
//! carries the chain after that record: the chain steps to it, not to a hash of the reference.

use crate::codec::{DecodeError, Reader, put_bytes, put_signed, put_varint};
use crate::delta::PageReader;
use crate::digest::Digest;
use crate::ids::{Chain, DatabaseId, Position, Term, Timestamp, TxId};
use crate::page::{PageCount, PageSize};

/// The only version of the canonical encoding.
pub const RECORD_VERSION: u8 = 1;
/// The most annotations a record carries, and the most bytes of one.
pub const ANNOTATIONS_MAX: usize = 64;
/// The most bytes of one annotation.
pub const ANNOTATION_LEN_MAX: usize = 4096;
/// The longest object key a record may name.
pub const KEY_LEN_MAX: usize = 512;
/// Bytes of a Position in a record.
pub const POSITION_LEN: usize = 28;

/// What a commit's wall time is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimeFlag {
    /// Read when the commit was captured.
    Live,
    /// Captured at a later open: the time is a bound, not a reading.
    Recovered,
    /// The clock was seen to disagree with the store's.
    ClockSuspect,
}

/// What kind of commit a record is, without its body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RecordKind {
    /// Pages changed.
    Delta,
    /// An import, or the new start after a gap.
    Image,
    /// The first commit of a fork.
    Fork,
    /// A rewind.
    Restore,
    /// Stands for a record in a segment part.
    Reference,
}

/// Tags of annotations. Numbers are kept stable; unknown ones are carried along.
pub mod tag {
    /// Id of the token whose request committed: 16 bytes.
    pub const TOKEN: u64 = 1;
    /// Id of the request: its text.
    pub const REQUEST: u64 = 2;
    /// Names of the tables touched, separated by NUL.
    pub const TABLES: u64 = 3;
}

/// A tagged value a commit carries beside its pages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Annotation {
    /// What it is ([`tag`]).
    pub tag: u64,
    /// Its bytes.
    pub value: Vec<u8>,
}

/// Names an immutable object, with what proves its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectRef {
    /// Its key in the store.
    pub key: String,
    /// Its length in bytes.
    pub len: u64,
    /// BLAKE3 of its bytes before the trailer, as the trailer itself carries it.
    pub blake3: [u8; 32],
}

impl ObjectRef {
    /// Appends the encoding described in the module docs.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_bytes(out, self.key.as_bytes());
        put_varint(out, self.len);
        out.extend_from_slice(&self.blake3);
    }

    /// Reads one.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let offset = reader.offset();
        let key = std::str::from_utf8(reader.bytes("object key", KEY_LEN_MAX)?)
            .map_err(|_| DecodeError::Invalid {
                offset,
                what: "object key",
            })?
            .to_owned();
        Ok(Self {
            key,
            len: reader.varint()?,
            blake3: reader.array()?,
        })
    }
}

/// Everything of a record but its body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordHeader {
    /// The process life that committed.
    pub term: Term,
    /// The commit's number.
    pub txid: TxId,
    /// Ordered time.
    pub time: Timestamp,
    /// Raw wall time.
    pub wall: Timestamp,
    /// What the wall time is worth.
    pub flag: TimeFlag,
    /// Pages before.
    pub n_before: PageCount,
    /// Pages after.
    pub n_after: PageCount,
    /// Digest after.
    pub digest: Digest,
    /// Tagged values.
    pub annotations: Vec<Annotation>,
}

/// The body of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecordBody<'a> {
    /// Encoded pages.
    Delta(&'a [u8]),
    /// Where the image stands.
    Image(ObjectRef),
    /// Where the fork begins.
    Fork {
        /// The parent.
        parent: DatabaseId,
        /// Its Position.
        at: Position,
    },
    /// A rewind.
    Restore {
        /// Where it started.
        from: Position,
        /// Whose state it restored.
        to: Position,
        /// What an undo goes back to.
        undo: Position,
        /// Encoded pages.
        pages: &'a [u8],
    },
    /// Where the record stands.
    Reference {
        /// The segment part with this one record.
        object: ObjectRef,
        /// The chain after the record that stands there.
        chain: Chain,
    },
}

/// A decoded commit record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommitRecord<'a> {
    /// Everything but the body.
    pub header: RecordHeader,
    /// The body.
    pub body: RecordBody<'a>,
}

fn put_position(out: &mut Vec<u8>, position: &Position) {
    out.extend_from_slice(&position.term.get().to_be_bytes());
    out.extend_from_slice(&position.txid.get().to_be_bytes());
    out.extend_from_slice(position.chain.as_bytes());
}

fn read_position(reader: &mut Reader<'_>) -> Result<Position, DecodeError> {
    Ok(Position {
        term: Term::new(u32::from_be_bytes(reader.array()?)),
        txid: TxId::new(u64::from_be_bytes(reader.array()?)),
        chain: Chain::from_bytes(reader.array()?),
    })
}

impl RecordKind {
    const fn code(self) -> u8 {
        match self {
            Self::Delta => 1,
            Self::Image => 2,
            Self::Fork => 3,
            Self::Restore => 4,
            Self::Reference => 5,
        }
    }
}

/// What a rewind says beside its pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RestoreNote {
    /// Where it started.
    pub from: Position,
    /// Whose state it restored.
    pub to: Position,
    /// What an undo goes back to.
    pub undo: Position,
}

impl RestoreNote {
    /// Appends the Positions as they stand in a restore record, before its pages.
    pub fn encode(&self, out: &mut Vec<u8>) {
        for position in [&self.from, &self.to, &self.undo] {
            put_position(out, position);
        }
    }
}

impl RecordHeader {
    /// Appends the canonical bytes up to the body of a record of `kind`.
    pub fn encode(&self, kind: RecordKind, out: &mut Vec<u8>) {
        out.push(RECORD_VERSION);
        out.push(kind.code());
        out.push(match self.flag {
            TimeFlag::Live => 0,
            TimeFlag::Recovered => 1,
            TimeFlag::ClockSuspect => 2,
        });
        put_varint(out, u64::from(self.term.get()));
        put_varint(out, self.txid.get());
        put_varint(out, self.time.micros());
        #[expect(
            clippy::cast_possible_wrap,
            reason = "a difference of two times, wrapped on both ends"
        )]
        put_signed(
            out,
            self.wall.micros().wrapping_sub(self.time.micros()) as i64,
        );
        put_varint(out, u64::from(self.n_before.get()));
        put_varint(out, u64::from(self.n_after.get()));
        out.extend_from_slice(&self.digest.get().to_le_bytes());
        put_varint(out, self.annotations.len() as u64);
        for annotation in &self.annotations {
            put_varint(out, annotation.tag);
            put_bytes(out, &annotation.value);
        }
    }

    /// Reads a header and its kind; the body begins where the reader then stands.
    pub fn decode(reader: &mut Reader<'_>) -> Result<(Self, RecordKind), DecodeError> {
        let version = reader.u8()?;
        if version != RECORD_VERSION {
            return Err(DecodeError::Version {
                what: "commit record",
                found: u32::from(version),
                supported: u32::from(RECORD_VERSION),
            });
        }
        let offset = reader.offset();
        let kind = match reader.u8()? {
            1 => RecordKind::Delta,
            2 => RecordKind::Image,
            3 => RecordKind::Fork,
            4 => RecordKind::Restore,
            5 => RecordKind::Reference,
            _ => {
                return Err(DecodeError::Invalid {
                    offset,
                    what: "record kind",
                });
            }
        };
        let offset = reader.offset();
        let flag = match reader.u8()? {
            0 => TimeFlag::Live,
            1 => TimeFlag::Recovered,
            2 => TimeFlag::ClockSuspect,
            _ => {
                return Err(DecodeError::Invalid {
                    offset,
                    what: "time flag",
                });
            }
        };
        let term = Term::new(reader.varint_u32("term")?);
        let offset = reader.offset();
        let txid = TxId::new(reader.varint()?);
        if txid == TxId::ZERO {
            return Err(DecodeError::Invalid {
                offset,
                what: "txid",
            });
        }
        let time = Timestamp::from_micros(reader.varint()?);
        #[expect(clippy::cast_sign_loss, reason = "wrapped on both ends")]
        let wall = Timestamp::from_micros(time.micros().wrapping_add(reader.signed()? as u64));
        let n_before = PageCount::new(reader.varint_u32("page count")?);
        let n_after = PageCount::new(reader.varint_u32("page count")?);
        let digest = Digest::from_u64(reader.u64()?);
        let count = reader.count("annotations", ANNOTATIONS_MAX)?;
        let annotations = (0..count)
            .map(|_| {
                let tag = reader.varint()?;
                Ok(Annotation {
                    tag,
                    value: reader.bytes("annotation", ANNOTATION_LEN_MAX)?.to_vec(),
                })
            })
            .collect::<Result<_, _>>()?;
        Ok((
            Self {
                term,
                txid,
                time,
                wall,
                flag,
                n_before,
                n_after,
                digest,
                annotations,
            },
            kind,
        ))
    }
}

impl<'a> CommitRecord<'a> {
    /// The record's kind.
    pub const fn kind(&self) -> RecordKind {
        match self.body {
            RecordBody::Delta(_) => RecordKind::Delta,
            RecordBody::Image(_) => RecordKind::Image,
            RecordBody::Fork { .. } => RecordKind::Fork,
            RecordBody::Restore { .. } => RecordKind::Restore,
            RecordBody::Reference { .. } => RecordKind::Reference,
        }
    }

    /// Appends the canonical bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        self.header.encode(self.kind(), out);
        match &self.body {
            RecordBody::Delta(pages) => out.extend_from_slice(pages),
            RecordBody::Image(object) => object.encode(out),
            RecordBody::Reference { object, chain } => {
                object.encode(out);
                out.extend_from_slice(chain.as_bytes());
            }
            RecordBody::Fork { parent, at } => {
                out.extend_from_slice(parent.as_bytes());
                put_position(out, at);
            }
            RecordBody::Restore {
                from,
                to,
                undo,
                pages,
            } => {
                let (from, to, undo) = (*from, *to, *undo);
                RestoreNote { from, to, undo }.encode(out);
                out.extend_from_slice(pages);
            }
        }
    }

    /// Reads a record from its canonical bytes. Pages are proven when they are read, through
    /// [`CommitRecord::pages`].
    pub fn decode(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let (header, kind) = RecordHeader::decode(&mut reader)?;
        let body = match kind {
            RecordKind::Delta => RecordBody::Delta(reader.take(reader.remaining())?),
            RecordKind::Image => RecordBody::Image(ObjectRef::decode(&mut reader)?),
            RecordKind::Fork => RecordBody::Fork {
                parent: DatabaseId::from_bytes(reader.array()?),
                at: read_position(&mut reader)?,
            },
            RecordKind::Restore => RecordBody::Restore {
                from: read_position(&mut reader)?,
                to: read_position(&mut reader)?,
                undo: read_position(&mut reader)?,
                pages: reader.take(reader.remaining())?,
            },
            RecordKind::Reference => RecordBody::Reference {
                object: ObjectRef::decode(&mut reader)?,
                chain: Chain::from_bytes(reader.array()?),
            },
        };
        reader.finish()?;
        Ok(Self { header, body })
    }

    /// The chain after this record, whose canonical bytes are `bytes` and whose predecessor's chain is
    /// `before`. A reference steps to the chain it carries.
    pub fn chain_after(&self, before: Chain, bytes: &[u8]) -> Chain {
        match self.body {
            RecordBody::Reference { chain, .. } => chain,
            RecordBody::Delta(_)
            | RecordBody::Image(_)
            | RecordBody::Fork { .. }
            | RecordBody::Restore { .. } => crate::chain::step(before, bytes),
        }
    }

    /// The encoded pages this record changes, none for a fork's first, or `None` for kinds whose pages stand
    /// elsewhere.
    pub const fn page_bytes(&self) -> Option<&'a [u8]> {
        match self.body {
            RecordBody::Delta(pages) | RecordBody::Restore { pages, .. } => Some(pages),
            RecordBody::Fork { .. } => Some(&[]),
            RecordBody::Image(_) | RecordBody::Reference { .. } => None,
        }
    }

    /// Reads the pages this record changes; `None` as for [`CommitRecord::page_bytes`].
    pub fn pages(&self, page_size: PageSize) -> Option<PageReader<'a>> {
        let header = &self.header;
        self.page_bytes()
            .map(|p| PageReader::new(p, page_size, header.n_before, header.n_after))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn position(byte: u8) -> Position {
        Position {
            term: Term::new(u32::from(byte)),
            txid: TxId::new(u64::from(byte) + 1),
            chain: Chain::from_bytes([byte; 16]),
        }
    }

    fn header() -> RecordHeader {
        RecordHeader {
            term: Term::new(3),
            txid: TxId::new(77),
            time: Timestamp::from_micros(1_800_000_000_000_001),
            wall: Timestamp::from_micros(1_800_000_000_000_000),
            flag: TimeFlag::Live,
            n_before: PageCount::new(4),
            n_after: PageCount::new(5),
            digest: Digest::from_u64(0xdead_beef),
            annotations: vec![Annotation {
                tag: 900,
                value: b"unknown tag".to_vec(),
            }],
        }
    }

    #[test]
    fn every_kind_round_trips() {
        let object = ObjectRef {
            key: "a/b".into(),
            len: 9,
            blake3: [7; 32],
        };
        let bodies = [
            RecordBody::Delta(&[]),
            RecordBody::Delta(&[1, 1, 0, 1, 9]),
            RecordBody::Image(object.clone()),
            RecordBody::Fork {
                parent: DatabaseId::from_bytes([1; 16]),
                at: position(1),
            },
            RecordBody::Restore {
                from: position(1),
                to: position(2),
                undo: position(3),
                pages: &[1, 1, 0, 1, 9],
            },
            RecordBody::Reference {
                object,
                chain: Chain::from_bytes([9; 16]),
            },
        ];
        for body in bodies {
            let record = CommitRecord {
                header: header(),
                body,
            };
            let mut bytes = Vec::new();
            record.encode(&mut bytes);
            assert_eq!(CommitRecord::decode(&bytes).as_ref(), Ok(&record));
            for cut in 0..20 {
                assert!(CommitRecord::decode(&bytes[..cut]).is_err());
            }
        }
    }

    #[test]
    fn a_newer_version_is_refused_by_name() {
        let error = CommitRecord::decode(&[2, 1, 0]).expect_err("version 2");
        assert_eq!(
            error.to_string(),
            "commit record has format version 2, this program reads up to 1"
        );
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(record) = CommitRecord::decode(&bytes)
                && let Some(pages) = record.pages(PageSize::DEFAULT) {
                    for page in pages.flatten() {
                        page.apply(&mut vec![0; 4096]);
                    }
            }
        }
    }
}
