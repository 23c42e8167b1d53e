//! A segment's index.

use std::ops::Range;

use bytes::Bytes;
use tidelog_wal::codec::{Reader, put_varint};
use tidelog_wal::record::ObjectRef;
use tidelog_wal::{
    Chain, DatabaseId, DecodeError, DigestSeed, NamespaceId, PageSize, Timestamp, TxId,
};

use crate::envelope::{BlockTable, Expect, FormatError, Object, ObjectKind};
use crate::records::Run;
use crate::seal::Keyring;

/// What a segment says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentMeta {
    /// Whose database it is.
    pub namespace: NamespaceId,
    /// Whose records they are.
    pub database: DatabaseId,
    /// Its page size.
    pub page_size: PageSize,
    /// The seed of its digests.
    pub seed: DigestSeed,
    /// The run of records.
    pub run: Run,
    /// Bytes of the raw stream.
    pub raw_len: u64,
}

/// A place in the stream where reading can begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// The block it lies in.
    pub block: usize,
    /// Where the record starts in the raw block.
    pub offset: usize,
    /// The record.
    pub txid: TxId,
    /// Its time.
    pub time: Timestamp,
    /// The chain before it.
    pub chain_before: Chain,
}

/// A segment whose index was read, and its bytes if it was read whole.
#[derive(Debug, Clone)]
pub struct Segment {
    /// What it says of itself.
    pub meta: SegmentMeta,
    /// Its blocks.
    pub table: BlockTable,
    /// Where reading can begin, ascending; the first is the start of the stream.
    pub marks: Vec<Mark>,
    pub(super) object: Object,
}

impl Segment {
    /// Reads a whole segment, proving every byte of it.
    pub fn decode(
        bytes: &Bytes,
        namespace: NamespaceId,
        database: DatabaseId,
        named: &ObjectRef,
        keys: &Keyring,
    ) -> Result<Self, FormatError> {
        let expect = Expect::database(ObjectKind::Segment, namespace, database);
        Self::from_object(Object::open_named(bytes, expect, named, keys)?)
    }

    /// Reads the index of an opened segment.
    pub fn from_object(object: Object) -> Result<Self, FormatError> {
        let header = object.header;
        header.check(Expect::database(
            ObjectKind::Segment,
            header.namespace,
            header.database,
        ))?;
        let (meta, table, marks) = decode_index(&object)
            .map_err(|error| FormatError::from(error).shifted(object.trailer.index_offset))?;
        Ok(Self {
            meta,
            table,
            marks,
            object,
        })
    }

    /// Refuses a segment that is not the run a manifest says it is.
    pub fn check_run(&self, run: &Run) -> Result<(), FormatError> {
        if self.meta.run == *run {
            return Ok(());
        }
        Err(FormatError::Foreign {
            what: "run of records",
            found: format!("{} to {}", self.meta.run.first, self.meta.run.end()),
            expected: format!("{} to {}", run.first, run.end()),
        })
    }

    /// Its bytes, if it was read whole.
    pub const fn whole(&self) -> Option<&Bytes> {
        self.object.whole.as_ref()
    }

    /// The last mark whose record is `txid` or before.
    pub fn mark_at(&self, txid: TxId) -> Option<&Mark> {
        let after = self.marks.partition_point(|mark| mark.txid <= txid);
        self.marks.get(after.checked_sub(1)?)
    }

    /// The TxIds of one block's records among which the last commit at or before `time` is, if any commit
    /// of this segment is that old.
    pub fn run_at(&self, time: Timestamp) -> Option<(TxId, TxId)> {
        let after = self.marks.partition_point(|mark| mark.time <= time);
        let mark = self.marks.get(after.checked_sub(1)?)?;
        let next = self.marks.get(after).and_then(|next| next.txid.prev());
        Some((mark.txid, next.unwrap_or(self.meta.run.last)))
    }
}

fn decode_index(object: &Object) -> Result<(SegmentMeta, BlockTable, Vec<Mark>), DecodeError> {
    let mut reader = Reader::new(&object.index);
    let page_size = PageSize::from_log2(reader.u8()?, 0)?;
    let seed = DigestSeed::new(reader.u64()?);
    let run = Run::decode(&mut reader)?;
    let offset = reader.offset();
    let raw_len = reader.varint()?;
    let table = BlockTable::decode(&mut reader, &object.body())?;
    if table.raw_len() != raw_len || table.range().end != object.body().end {
        return Err(DecodeError::Invalid {
            offset,
            what: "raw length of the stream",
        });
    }
    let marks = decode_marks(&mut reader, &table, &run)?;
    reader.finish()?;
    let meta = SegmentMeta {
        namespace: object.header.namespace,
        database: object.header.database,
        page_size,
        seed,
        run,
        raw_len,
    };
    Ok((meta, table, marks))
}

fn decode_marks(
    reader: &mut Reader<'_>,
    table: &BlockTable,
    run: &Run,
) -> Result<Vec<Mark>, DecodeError> {
    let start = reader.offset();
    let invalid = |what| DecodeError::Invalid {
        offset: start,
        what,
    };
    let mut marks: Vec<Mark> = Vec::new();
    let mut next = run.first.get();
    let mut time = 0_u64;
    for (block, entry) in table.blocks.iter().enumerate() {
        let records = reader.varint()?;
        if records == 0 {
            continue;
        }
        let offset = reader.count("record offset", entry.raw_len as usize - 1)?;
        time = time
            .checked_add(reader.varint()?)
            .ok_or(invalid("time of a mark"))?;
        marks.push(Mark {
            block,
            offset,
            txid: TxId::new(next),
            time: Timestamp::from_micros(time),
            chain_before: Chain::from_bytes(reader.array()?),
        });
        next = next
            .checked_add(records)
            .filter(|next| *next <= run.last.get() + 1)
            .ok_or(invalid("records of a block"))?;
    }
    let first = Mark {
        block: 0,
        offset: 0,
        txid: run.first,
        time: run.first_time,
        chain_before: run.chain_before,
    };
    if next != run.last.get() + 1 || marks.first() != Some(&first) {
        return Err(invalid("marks"));
    }
    Ok(marks)
}

/// A mark while a segment is written: how many records start in a block, and the first of them.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct BlockMark {
    pub(super) records: u64,
    pub(super) offset: usize,
    pub(super) time: Timestamp,
    pub(super) chain_before: Chain,
}

pub(super) fn encode_index(meta: &SegmentMeta, table: &BlockTable, marks: &[BlockMark]) -> Vec<u8> {
    let mut out = Vec::new();
    out.push(meta.page_size.log2());
    out.extend_from_slice(&meta.seed.get().to_le_bytes());
    meta.run.encode(&mut out);
    put_varint(&mut out, meta.raw_len);
    table.encode(&mut out);
    let mut time = Timestamp::ZERO;
    for mark in marks {
        put_varint(&mut out, mark.records);
        if mark.records > 0 {
            put_varint(&mut out, mark.offset as u64);
            put_varint(&mut out, mark.time.micros_since(time));
            out.extend_from_slice(mark.chain_before.as_bytes());
            time = mark.time;
        }
    }
    out
}

/// The bytes of an object that a range of its blocks needs.
pub(super) fn blocks_range(table: &BlockTable, blocks: &Range<usize>) -> Range<u64> {
    let blocks = table.blocks.get(blocks.clone()).unwrap_or_default();
    match (blocks.first(), blocks.last()) {
        (Some(first), Some(last)) => first.offset..last.range().end,
        _ => 0..0,
    }
}
