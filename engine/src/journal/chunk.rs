//! The journal chunk: one local file of commit records, in the order they were captured.
//!
//! A chunk is the redo log of the SQLite files (their WALs are not synced) and the source of exactly one
//! journal object. It can be read alone: it names every database it holds records of.
//!
//! # File header, 64 bytes, little-endian
//!
//! | offset | bytes | field |
//! | --- | --- | --- |
//! | 0 | 8 | magic `TIDECHNK` |
//! | 8 | 4 | version, 1 |
//! | 12 | 4 | term |
//! | 16 | 8 | seq, from 1 |
//! | 24 | 8 | local number of the first record |
//! | 32 | 16 | cluster id |
//! | 48 | 12 | zero |
//! | 60 | 4 | CRC-32 of bytes 0..60 |
//!
//! # Entries
//!
//! u32 payload length, u32 CRC-32 of the payload, payload; its first byte says what it is:
//!
//! | kind | payload after the kind byte |
//! | --- | --- |
//! | 1 database | slot u32 (dense from 0), database id, namespace id, log2 of the page size u8, digest seed u64, chain before its first record here (16) |
//! | 2 record | slot u32, local number u64, WAL position (28), chain after (16), canonical record |
//! | 3 spooled record | slot u32, local number u64, WAL position (28), chain after (16), spool file length u64, BLAKE3 of it (32), header of the record as canonical bytes; the spool file holds the rest of them |
//!
//! A WAL position is salts (2 u32), frame u32, checksum (2 u32), change counter u32, size in pages u32.
//! A record moved here from an earlier life (it was never shipped) keeps its WAL position: the WAL is the
//! same. TxId 1 stands in no WAL and has an all-zero one.
//!
//! # What a reader tolerates
//!
//! The last chunk of a life may end inside an entry: what stands before it counts (I2). Local numbers are
//! dense: reading stops at the first that is missing, whatever follows.

use tidelog_wal::codec::Reader;
use tidelog_wal::{
    Chain, ClusterId, DatabaseId, DecodeError, DigestSeed, NamespaceId, PageSize, Term,
};

/// Magic of a chunk.
pub const MAGIC: [u8; 8] = *b"TIDECHNK";
/// The only version of the chunk format.
pub const VERSION: u32 = 1;
/// Bytes of the file header.
pub const HEADER_LEN: usize = 64;
/// Bytes before an entry's payload.
pub const ENTRY_HEAD: usize = 8;
/// The longest payload: a record that is not spooled, with its annotations, stays far below.
pub const PAYLOAD_MAX: usize = 64 << 20;

const KIND_DATABASE: u8 = 1;
const KIND_RECORD: u8 = 2;
const KIND_SPOOLED: u8 = 3;

/// What the header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkHeader {
    /// The process life.
    pub term: Term,
    /// Its place among the life's chunks, from 1.
    pub seq: u64,
    /// Local number of the first record.
    pub first_lsn: u64,
    /// The bucket it belongs to.
    pub cluster: ClusterId,
}

impl ChunkHeader {
    /// The header's bytes.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut out = [0; HEADER_LEN];
        out[..8].copy_from_slice(&MAGIC);
        out[8..12].copy_from_slice(&VERSION.to_le_bytes());
        out[12..16].copy_from_slice(&self.term.get().to_le_bytes());
        out[16..24].copy_from_slice(&self.seq.to_le_bytes());
        out[24..32].copy_from_slice(&self.first_lsn.to_le_bytes());
        out[32..48].copy_from_slice(self.cluster.as_bytes());
        let crc = crc32fast::hash(&out[..60]);
        out[60..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads a header.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let head = Reader::new(bytes).take(60)?;
        if reader.array()? != MAGIC {
            return Err(DecodeError::Magic {
                offset: 0,
                expected: "TIDECHNK",
            });
        }
        let found = reader.u32()?;
        if found != VERSION {
            return Err(DecodeError::Version {
                what: "journal chunk",
                found,
                supported: VERSION,
            });
        }
        let term = Term::new(reader.u32()?);
        let (seq, first_lsn) = (reader.u64()?, reader.u64()?);
        let cluster = ClusterId::from_bytes(reader.array()?);
        reader.take(12)?;
        check_crc(head, reader.u32()?, 0)?;
        Ok(Self {
            term,
            seq,
            first_lsn,
            cluster,
        })
    }
}

fn check_crc(bytes: &[u8], expected: u32, offset: usize) -> Result<(), DecodeError> {
    let found = crc32fast::hash(bytes);
    if found == expected {
        return Ok(());
    }
    Err(DecodeError::Checksum {
        offset,
        what: "CRC-32",
        found: format!("{found:08x}"),
        expected: format!("{expected:08x}"),
    })
}

/// Where in a WAL life a commit ends, as the wal-index header said when it was captured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WalPosition {
    /// Salts of the life.
    pub salts: [u32; 2],
    /// Its last frame.
    pub frame: u32,
    /// Cumulative checksum of that frame.
    pub checksum: [u32; 2],
    /// SQLite's change counter.
    pub change: u32,
    /// Pages after it.
    pub pages: u32,
}

/// Bytes of a WAL position.
pub const WAL_POSITION_LEN: usize = 28;

impl WalPosition {
    /// Appends its bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        for word in [
            self.salts[0],
            self.salts[1],
            self.frame,
            self.checksum[0],
            self.checksum[1],
            self.change,
            self.pages,
        ] {
            out.extend_from_slice(&word.to_le_bytes());
        }
    }

    /// Reads one.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            salts: [reader.u32()?, reader.u32()?],
            frame: reader.u32()?,
            checksum: [reader.u32()?, reader.u32()?],
            change: reader.u32()?,
            pages: reader.u32()?,
        })
    }
}

/// A database as a chunk names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkDatabase {
    /// Its id.
    pub id: DatabaseId,
    /// Its tenant.
    pub namespace: NamespaceId,
    /// Its page size.
    pub page_size: PageSize,
    /// The seed of its digests.
    pub seed: DigestSeed,
    /// The chain before its first record in this chunk.
    pub chain_before: Chain,
}

/// One entry of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry<'a> {
    /// Names a database for the entries after it.
    Database {
        /// Its number in this chunk.
        slot: u32,
        /// What it is.
        database: ChunkDatabase,
    },
    /// A commit record.
    Record {
        /// What stands beside it.
        at: EntryAt,
        /// Its canonical bytes.
        record: &'a [u8],
    },
    /// A commit record whose bytes stand in a spool file.
    Spooled {
        /// What stands beside it.
        at: EntryAt,
        /// Length of the spool file: the canonical record without its header.
        len: u64,
        /// BLAKE3 of the spool file.
        blake3: [u8; 32],
        /// The record's header, as canonical bytes.
        header: &'a [u8],
    },
}

/// What stands beside a record in a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntryAt {
    /// Number of its database in this chunk.
    pub slot: u32,
    /// Local record number: dense in a process life, from 1.
    pub lsn: u64,
    /// Where SQLite's WAL stood.
    pub wal: WalPosition,
    /// The chain after the record.
    pub chain: Chain,
}

impl EntryAt {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.slot.to_le_bytes());
        out.extend_from_slice(&self.lsn.to_le_bytes());
        self.wal.encode(out);
        out.extend_from_slice(self.chain.as_bytes());
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            slot: reader.u32()?,
            lsn: reader.u64()?,
            wal: WalPosition::decode(reader)?,
            chain: Chain::from_bytes(reader.array()?),
        })
    }
}

impl Entry<'_> {
    /// Appends the entry with its length and checksum.
    ///
    /// # Panics
    ///
    /// If the payload exceeds [`PAYLOAD_MAX`]: larger records are spooled.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&[0; ENTRY_HEAD]);
        match self {
            Self::Database { slot, database } => {
                out.push(KIND_DATABASE);
                out.extend_from_slice(&slot.to_le_bytes());
                out.extend_from_slice(database.id.as_bytes());
                out.extend_from_slice(database.namespace.as_bytes());
                out.push(database.page_size.log2());
                out.extend_from_slice(&database.seed.get().to_le_bytes());
                out.extend_from_slice(database.chain_before.as_bytes());
            }
            Self::Record { at, record } => {
                out.push(KIND_RECORD);
                at.encode(out);
                out.extend_from_slice(record);
            }
            Self::Spooled {
                at,
                len,
                blake3,
                header,
            } => {
                out.push(KIND_SPOOLED);
                at.encode(out);
                out.extend_from_slice(&len.to_le_bytes());
                out.extend_from_slice(blake3);
                out.extend_from_slice(header);
            }
        }
        let payload = out.len() - start - ENTRY_HEAD;
        assert!(
            payload <= PAYLOAD_MAX,
            "records above the spool bound do not stand in a chunk"
        );
        let crc = crc32fast::hash(&out[start + ENTRY_HEAD..]);
        let len = u32::try_from(payload).expect("PAYLOAD_MAX fits 32 bits");
        out[start..start + 4].copy_from_slice(&len.to_le_bytes());
        out[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
    }
}

/// Reads the entries of a chunk's bytes, after the header, up to the first that is torn.
#[derive(Debug)]
pub struct Entries<'a> {
    bytes: &'a [u8],
    offset: usize,
}

impl<'a> Entries<'a> {
    /// Reads the entries of a whole chunk file.
    pub const fn new(file: &'a [u8]) -> Self {
        Self {
            bytes: file,
            offset: HEADER_LEN,
        }
    }

    /// Where the first entry that was not read starts: after the last one, the end of the whole part.
    pub const fn offset(&self) -> usize {
        self.offset
    }

    fn decode(&self) -> Result<(Entry<'a>, usize), DecodeError> {
        let mut head = Reader::new(self.bytes.get(self.offset..).unwrap_or_default());
        let len = head.u32()? as usize;
        let crc = head.u32()?;
        if len > PAYLOAD_MAX {
            return Err(DecodeError::TooLarge {
                offset: self.offset,
                what: "chunk entry",
                found: len as u64,
                limit: PAYLOAD_MAX as u64,
            });
        }
        let payload = head.take(len)?;
        check_crc(payload, crc, self.offset)?;
        let mut reader = Reader::new(payload);
        let entry = match reader.u8()? {
            KIND_DATABASE => Entry::Database {
                slot: reader.u32()?,
                database: ChunkDatabase {
                    id: DatabaseId::from_bytes(reader.array()?),
                    namespace: NamespaceId::from_bytes(reader.array()?),
                    page_size: PageSize::from_log2(reader.u8()?, self.offset)?,
                    seed: DigestSeed::new(reader.u64()?),
                    chain_before: Chain::from_bytes(reader.array()?),
                },
            },
            KIND_RECORD => {
                let at = EntryAt::decode(&mut reader)?;
                Entry::Record {
                    at,
                    record: reader.take(reader.remaining())?,
                }
            }
            KIND_SPOOLED => Entry::Spooled {
                at: EntryAt::decode(&mut reader)?,
                len: reader.u64()?,
                blake3: reader.array()?,
                header: reader.take(reader.remaining())?,
            },
            _ => {
                return Err(DecodeError::Invalid {
                    offset: self.offset,
                    what: "chunk entry kind",
                });
            }
        };
        reader.finish()?;
        Ok((entry, self.offset + ENTRY_HEAD + len))
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = Entry<'a>;

    /// The next entry, or `None` at the end or at the first torn one.
    fn next(&mut self) -> Option<Entry<'a>> {
        let (entry, next) = self.decode().ok()?;
        self.offset = next;
        Some(entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(lsn: u64) -> EntryAt {
        EntryAt {
            slot: 0,
            lsn,
            wal: WalPosition {
                salts: [1, 2],
                frame: 3,
                checksum: [4, 5],
                change: 6,
                pages: 7,
            },
            chain: Chain::from_bytes([8; 16]),
        }
    }

    fn file() -> (Vec<u8>, usize) {
        let header = ChunkHeader {
            term: Term::FIRST,
            seq: 1,
            first_lsn: 1,
            cluster: ClusterId::from_bytes([9; 16]),
        };
        let mut file = header.encode().to_vec();
        assert_eq!(ChunkHeader::decode(&file), Ok(header));
        let database = ChunkDatabase {
            id: DatabaseId::from_bytes([1; 16]),
            namespace: NamespaceId::from_bytes([2; 16]),
            page_size: PageSize::DEFAULT,
            seed: DigestSeed::new(3),
            chain_before: Chain::default(),
        };
        Entry::Database { slot: 0, database }.encode(&mut file);
        Entry::Record {
            at: at(1),
            record: b"one",
        }
        .encode(&mut file);
        let last = file.len();
        Entry::Spooled {
            at: at(2),
            len: 9,
            blake3: [1; 32],
            header: b"h",
        }
        .encode(&mut file);
        (file, last)
    }

    #[test]
    fn entries_round_trip() {
        let (file, _) = file();
        let entries: Vec<_> = Entries::new(&file).collect();
        assert_eq!(entries.len(), 3);
        assert_eq!(
            entries[1],
            Entry::Record {
                at: at(1),
                record: b"one"
            }
        );
        assert_eq!(
            entries[2],
            Entry::Spooled {
                at: at(2),
                len: 9,
                blake3: [1; 32],
                header: b"h"
            }
        );
    }

    #[test]
    fn every_truncation_leaves_the_whole_entries_before_it() {
        let (file, last) = file();
        for cut in last..file.len() {
            let mut entries = Entries::new(&file[..cut]);
            assert_eq!(entries.by_ref().count(), 2);
            assert_eq!(entries.offset(), last);
        }
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let (file, _) = file();
        let whole: Vec<_> = Entries::new(&file).collect();
        for at in 0..file.len() {
            let mut damaged = file.clone();
            damaged[at] ^= 0x10;
            let header_ok = ChunkHeader::decode(&damaged).is_ok();
            let entries: Vec<_> = Entries::new(&damaged).collect();
            assert!(!header_ok || entries != whole, "byte {at}");
            assert!(entries.len() < whole.len() || at < HEADER_LEN, "byte {at}");
        }
    }
}
