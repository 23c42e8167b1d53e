//! What is said of a run of records wherever it is named: in a segment's own index, in a manifest, in an
//! index object.
//!
//! | field | form |
//! | --- | --- |
//! | first TxId, records | varint, varint (>= 1) |
//! | term of the first, of the last record | varint, varint |
//! | time of the first, then to the last | varint, varint |
//! | chain before the first, after the last | 16, 16 |
//! | digest after the last | u64 |
//! | page count before the first, after the last | varint, varint |

use tidelog_wal::codec::{Reader, put_varint};
use tidelog_wal::record::RecordHeader;
use tidelog_wal::{Chain, DecodeError, Digest, PageCount, Position, Term, Timestamp, TxId};

use super::walk::ChainWalk;

/// The shortest encoded run, which bounds what a count may claim.
pub(crate) const RUN_LEN_MIN: usize = 6 + 32 + 8 + 2;

/// A contiguous run of commit records of one database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// TxId of the first record.
    pub first: TxId,
    /// TxId of the last record.
    pub last: TxId,
    /// Term of the first record.
    pub first_term: Term,
    /// Term of the last record.
    pub last_term: Term,
    /// Ordered time of the first record.
    pub first_time: Timestamp,
    /// Ordered time of the last record.
    pub last_time: Timestamp,
    /// The chain before the first record.
    pub chain_before: Chain,
    /// The chain after the last record.
    pub chain_after: Chain,
    /// The digest after the last record.
    pub digest_after: Digest,
    /// The page count before the first record.
    pub n_before: PageCount,
    /// The page count after the last record.
    pub n_after: PageCount,
}

impl Run {
    /// The run of one record.
    pub const fn of(header: &RecordHeader, chain_before: Chain, chain_after: Chain) -> Self {
        Self {
            first: header.txid,
            last: header.txid,
            first_term: header.term,
            last_term: header.term,
            first_time: header.time,
            last_time: header.time,
            chain_before,
            chain_after,
            digest_after: header.digest,
            n_before: header.n_before,
            n_after: header.n_after,
        }
    }

    /// The Position after the last record.
    pub const fn end(&self) -> Position {
        Position {
            term: self.last_term,
            txid: self.last,
            chain: self.chain_after,
        }
    }

    /// Proves the records one by one.
    pub const fn walk(&self) -> ChainWalk {
        ChainWalk {
            next: self.first,
            chain: self.chain_before,
        }
    }

    /// Whether the record `txid` is inside.
    pub fn contains(&self, txid: TxId) -> bool {
        self.first <= txid && txid <= self.last
    }

    /// Whether `next` goes on where this one ends.
    pub fn is_followed_by(&self, next: &Self) -> bool {
        self.last.get().checked_add(1) == Some(next.first.get())
            && self.chain_after == next.chain_before
            && self.n_after == next.n_before
            && self.last_term <= next.first_term
            && self.last_time <= next.first_time
    }

    /// Appends the encoding described in the module docs.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_varint(out, self.first.get());
        put_varint(out, self.last.since(self.first).map_or(0, |more| more + 1));
        put_varint(out, u64::from(self.first_term.get()));
        put_varint(out, u64::from(self.last_term.get()));
        put_varint(out, self.first_time.micros());
        put_varint(out, self.last_time.micros_since(self.first_time));
        out.extend_from_slice(self.chain_before.as_bytes());
        out.extend_from_slice(self.chain_after.as_bytes());
        out.extend_from_slice(&self.digest_after.get().to_le_bytes());
        put_varint(out, u64::from(self.n_before.get()));
        put_varint(out, u64::from(self.n_after.get()));
    }

    /// Reads one.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let start = reader.offset();
        let invalid = |what| DecodeError::Invalid {
            offset: start,
            what,
        };
        let first = reader.varint()?;
        let last = reader
            .varint()?
            .checked_sub(1)
            .and_then(|more| first.checked_add(more))
            .filter(|last| first > 0 && *last < u64::MAX)
            .ok_or(invalid("run of txids"))?;
        let first_term = Term::new(reader.varint_u32("term")?);
        let last_term = Term::new(reader.varint_u32("term")?);
        if first_term > last_term {
            return Err(invalid("terms of a run"));
        }
        let first_time = reader.varint()?;
        let last_time = first_time
            .checked_add(reader.varint()?)
            .ok_or(invalid("times of a run"))?;
        Ok(Self {
            first: TxId::new(first),
            last: TxId::new(last),
            first_term,
            last_term,
            first_time: Timestamp::from_micros(first_time),
            last_time: Timestamp::from_micros(last_time),
            chain_before: Chain::from_bytes(reader.array()?),
            chain_after: Chain::from_bytes(reader.array()?),
            digest_after: Digest::from_u64(reader.u64()?),
            n_before: PageCount::new(reader.varint_u32("page count")?),
            n_after: PageCount::new(reader.varint_u32("page count")?),
        })
    }
}
