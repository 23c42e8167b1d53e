//! A section: one database's run of records in a journal object.

use std::ops::Range;

use tidelog_wal::codec::Reader;
use tidelog_wal::{
    Chain, DatabaseId, DecodeError, Digest, DigestSeed, NamespaceId, PageCount, PageSize, Position,
    Term, Timestamp, TxId,
};

use crate::envelope::{BlockTable, KeyId};
use crate::records::{ChainWalk, Run};

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
    /// The key its blocks are sealed with; zero when plain. Set by whoever seals the section.
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
    /// The page count before the first record.
    pub n_before: PageCount,
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

    /// The run of records.
    pub const fn run(&self) -> Run {
        Run {
            first: self.first,
            last: self.last,
            first_term: self.first_term,
            last_term: self.last_term,
            first_time: self.first_time,
            last_time: self.last_time,
            chain_before: self.chain_before,
            chain_after: self.chain_after,
            digest_after: self.digest_after,
            n_before: self.n_before,
            n_after: self.n_after,
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
        meta.run().encode(out);
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
        let run = Run::decode(reader)?;
        let meta = SectionMeta {
            namespace,
            database,
            page_size,
            seed,
            key_id,
            first: run.first,
            last: run.last,
            first_term: run.first_term,
            last_term: run.last_term,
            first_time: run.first_time,
            last_time: run.last_time,
            chain_before: run.chain_before,
            chain_after: run.chain_after,
            digest_after: run.digest_after,
            n_before: run.n_before,
            n_after: run.n_after,
        };
        Ok(Self {
            meta,
            table: BlockTable::decode(reader, body)?,
            first_block,
        })
    }
}
