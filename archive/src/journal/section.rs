//! A section: one database's run of records in a journal object.

use std::ops::Range;

use tidelog_wal::codec::{Reader, put_varint};
use tidelog_wal::{
    Chain, DatabaseId, DecodeError, Digest, DigestSeed, NamespaceId, PageCount, PageSize, Position,
    Term, Timestamp, TxId,
};

use crate::envelope::{BlockTable, KeyId};
use crate::records::ChainWalk;

/// What is known of a section before its records are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SectionMeta {
    /// Whose database it is.
    pub namespace: NamespaceId,
    /// Whose records they are.
    pub database: DatabaseId,
    /// Its page size.
    pub page_size: PageSize,
    /// The seed of its digests.
    pub seed: DigestSeed,
    /// The key its blocks are sealed with; zero when plain.
    pub key_id: KeyId,
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
    /// The page count after the last record.
    pub n_after: PageCount,
}

impl SectionMeta {
    /// The Position after the last record.
    pub const fn end(&self) -> Position {
        Position {
            term: self.last_term,
            txid: self.last,
            chain: self.chain_after,
        }
    }

    /// How many records, if first and last are in order.
    pub fn records(&self) -> Option<u64> {
        self.last.since(self.first)?.checked_add(1)
    }

    /// Proves the records one by one.
    pub const fn walk(&self) -> ChainWalk {
        ChainWalk {
            next: self.first,
            chain: self.chain_before,
        }
    }
}

/// A section of a journal object: what it is and where its blocks lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    /// What it is.
    pub meta: SectionMeta,
    /// Its blocks.
    pub table: BlockTable,
    /// Number of its first block in the object.
    pub(super) first_block: u64,
}

impl Section {
    /// Where it lies in the object: one ranged GET fetches it.
    pub fn range(&self) -> Range<u64> {
        self.table.range()
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let meta = &self.meta;
        out.extend_from_slice(meta.namespace.as_bytes());
        out.extend_from_slice(meta.database.as_bytes());
        out.push(meta.page_size.log2());
        out.extend_from_slice(&meta.seed.get().to_le_bytes());
        out.extend_from_slice(&meta.key_id.0);
        put_varint(out, meta.first.get());
        put_varint(out, meta.records().unwrap_or(0));
        put_varint(out, u64::from(meta.first_term.get()));
        put_varint(out, u64::from(meta.last_term.get()));
        put_varint(out, meta.first_time.micros());
        put_varint(out, meta.last_time.micros_since(meta.first_time));
        out.extend_from_slice(meta.chain_before.as_bytes());
        out.extend_from_slice(meta.chain_after.as_bytes());
        out.extend_from_slice(&meta.digest_after.get().to_le_bytes());
        put_varint(out, u64::from(meta.n_after.get()));
        self.table.encode(out);
    }

    pub(super) fn decode(
        reader: &mut Reader<'_>,
        body: &Range<u64>,
        first_block: u64,
    ) -> Result<Self, DecodeError> {
        let namespace = NamespaceId::from_bytes(reader.array()?);
        let database = DatabaseId::from_bytes(reader.array()?);
        let offset = reader.offset();
        let page_size = PageSize::from_log2(reader.u8()?, offset)?;
        let seed = DigestSeed::new(reader.u64()?);
        let key_id = KeyId(reader.array()?);
        let (first, last) = read_run(reader)?;
        let first_term = Term::new(reader.varint_u32("term")?);
        let last_term = Term::new(reader.varint_u32("term")?);
        let (first_time, last_time) = read_times(reader)?;
        let meta = SectionMeta {
            namespace,
            database,
            page_size,
            seed,
            key_id,
            first,
            last,
            first_term,
            last_term,
            first_time,
            last_time,
            chain_before: Chain::from_bytes(reader.array()?),
            chain_after: Chain::from_bytes(reader.array()?),
            digest_after: Digest::from_u64(reader.u64()?),
            n_after: PageCount::new(reader.varint_u32("page count")?),
        };
        Ok(Self {
            meta,
            table: BlockTable::decode(reader, body)?,
            first_block,
        })
    }
}

/// First TxId and count, as first and last TxId.
pub(crate) fn read_run(reader: &mut Reader<'_>) -> Result<(TxId, TxId), DecodeError> {
    let offset = reader.offset();
    let first = reader.varint()?;
    let records = reader.varint()?;
    let last = records
        .checked_sub(1)
        .and_then(|more| first.checked_add(more))
        .filter(|last| first > 0 && *last < u64::MAX)
        .ok_or(DecodeError::Invalid {
            offset,
            what: "run of txids",
        })?;
    Ok((TxId::new(first), TxId::new(last)))
}

/// First time and distance, as first and last time.
pub(crate) fn read_times(reader: &mut Reader<'_>) -> Result<(Timestamp, Timestamp), DecodeError> {
    let offset = reader.offset();
    let first = reader.varint()?;
    let last = first
        .checked_add(reader.varint()?)
        .ok_or(DecodeError::Invalid {
            offset,
            what: "time",
        })?;
    Ok((Timestamp::from_micros(first), Timestamp::from_micros(last)))
}
