//! Writes segments, records of any size, in the memory of a few blocks.

use tidelog_wal::block::Compressor;
use tidelog_wal::chain::ChainHasher;
use tidelog_wal::codec::Reader;
use tidelog_wal::record::RecordHeader;
use tidelog_wal::{Chain, DatabaseId, DigestSeed, NamespaceId, PageSize, RecordKind};

use super::index::{BlockMark, SegmentMeta, encode_index};
use crate::envelope::{
    BlockEntry, BlockTable, BlockWriter, Expect, Finished, FormatError, ObjectKind, ObjectWriter,
};
use crate::records::{RECORD_LEN_MAX, RecordCutter, Run};
use crate::seal::Stamp;

/// Writes a segment: records by [`push`](Self::push), long ones by [`begin`](Self::begin) and
/// [`part`](Self::part); then [`finish`](Self::finish). [`take`](Self::take) drains what is written.
///
/// It proves that the records follow one another: TxIds, terms, times, page counts.
#[derive(Debug)]
pub struct SegmentWriter {
    namespace: NamespaceId,
    database: DatabaseId,
    page_size: PageSize,
    seed: DigestSeed,
    object: ObjectWriter,
    blocks: BlockWriter,
    cutter: RecordCutter,
    table: BlockTable,
    marks: Vec<BlockMark>,
    /// The mark of the block being filled.
    mark: BlockMark,
    chain: Chain,
    run: Option<Run>,
    long: Option<LongRecord>,
}

#[derive(Debug)]
struct LongRecord {
    hasher: ChainHasher,
    missing: u64,
}

impl SegmentWriter {
    /// A writer of the records that follow the chain `chain_before`.
    pub fn new(
        (namespace, database): (NamespaceId, DatabaseId),
        page_size: PageSize,
        seed: DigestSeed,
        chain_before: Chain,
        stamp: Stamp,
        compressor: Compressor,
    ) -> Self {
        let expect = Expect::database(ObjectKind::Segment, namespace, database);
        Self {
            namespace,
            database,
            page_size,
            seed,
            object: ObjectWriter::new(expect, stamp),
            blocks: BlockWriter::new(compressor),
            cutter: RecordCutter::new(),
            table: BlockTable::default(),
            marks: Vec::new(),
            mark: BlockMark::default(),
            chain: chain_before,
            run: None,
            long: None,
        }
    }

    /// Adds a record by its canonical bytes.
    pub fn push(&mut self, record: &[u8]) -> Result<(), FormatError> {
        let (header, kind) = RecordHeader::decode(&mut Reader::new(record))?;
        self.begin(&header, kind, record.len() as u64)?;
        self.part(record)
    }

    /// Begins a record of `len` bytes, whose canonical bytes (that header among them) follow by
    /// [`part`](Self::part).
    pub fn begin(
        &mut self,
        header: &RecordHeader,
        kind: RecordKind,
        len: u64,
    ) -> Result<(), FormatError> {
        let unwritable = |what| Err(FormatError::Unwritable { what });
        if self.long.is_some() || len > RECORD_LEN_MAX || len == 0 {
            return unwritable("a record of no or too great length, or inside another");
        }
        if kind == RecordKind::Reference {
            return unwritable("a reference record: its part is a segment of its own");
        }
        if let Some(run) = &self.run {
            let follows = run.last.next() == header.txid
                && run.last_term <= header.term
                && run.last_time <= header.time
                && run.n_after == header.n_before;
            if !follows {
                return unwritable("a record that does not follow the one before");
            }
        }
        self.note(header);
        let mut done = Done::new(&mut self.table, &mut self.marks, &mut self.mark);
        self.cutter
            .begin(len, &mut self.object, &mut self.blocks, &mut |entry| {
                done.block(entry);
            });
        self.long = Some(LongRecord {
            hasher: ChainHasher::after(self.chain),
            missing: len,
        });
        Ok(())
    }

    /// Notes where a record begins.
    fn note(&mut self, header: &RecordHeader) {
        if self.mark.records == 0 {
            let block_raw: u64 = self.table.raw_len();
            let offset = self.cutter.raw_len() - block_raw;
            self.mark = BlockMark {
                records: 0,
                offset: usize::try_from(offset).unwrap_or(usize::MAX),
                time: header.time,
                chain_before: self.chain,
            };
        }
        self.mark.records += 1;
        let chain = self.chain;
        let run = self.run.get_or_insert(Run::of(header, chain, chain));
        run.last = header.txid;
        run.last_term = header.term;
        run.last_time = header.time;
        run.digest_after = header.digest;
        run.n_after = header.n_after;
    }

    /// Adds bytes of the record that was begun.
    pub fn part(&mut self, bytes: &[u8]) -> Result<(), FormatError> {
        let open = self
            .long
            .as_mut()
            .filter(|long| long.missing >= bytes.len() as u64);
        let Some(long) = open else {
            return Err(FormatError::Unwritable {
                what: "more bytes than the record has",
            });
        };
        long.hasher.update(bytes);
        long.missing -= bytes.len() as u64;
        let whole = long.missing == 0;
        let mut done = Done::new(&mut self.table, &mut self.marks, &mut self.mark);
        self.cutter
            .part(bytes, &mut self.object, &mut self.blocks, &mut |entry| {
                done.block(entry);
            });
        if whole
            && let Some(long) = self.long.take()
            && let Some(run) = &mut self.run
        {
            self.chain = long.hasher.finish();
            run.chain_after = self.chain;
        }
        Ok(())
    }

    /// Bytes of the object written so far, the open block left out.
    pub fn stored_len(&self) -> u64 {
        self.object.offset()
    }

    /// Raw bytes written so far.
    pub const fn raw_len(&self) -> u64 {
        self.cutter.raw_len()
    }

    /// The chain after the last record.
    pub const fn chain(&self) -> Chain {
        self.chain
    }

    /// Hands out the bytes of the object written since the last call.
    pub fn take(&mut self) -> Vec<u8> {
        self.object.take()
    }

    /// Ends the segment, which must hold at least one record.
    pub fn finish(mut self) -> Result<(Finished, SegmentMeta, Compressor), FormatError> {
        let (Some(run), None) = (self.run, &self.long) else {
            return Err(FormatError::Unwritable {
                what: "a segment without records, or with half of one",
            });
        };
        let mut done = Done::new(&mut self.table, &mut self.marks, &mut self.mark);
        self.cutter
            .flush(&mut self.object, &mut self.blocks, &mut |entry| {
                done.block(entry);
            });
        let meta = SegmentMeta {
            namespace: self.namespace,
            database: self.database,
            page_size: self.page_size,
            seed: self.seed,
            run,
            raw_len: self.cutter.raw_len(),
        };
        let index = encode_index(&meta, &self.table, &self.marks);
        let finished = self.object.finish(&index)?;
        Ok((finished, meta, self.blocks.into_compressor()))
    }
}

/// Notes each block as it is written.
struct Done<'a> {
    table: &'a mut BlockTable,
    marks: &'a mut Vec<BlockMark>,
    mark: &'a mut BlockMark,
}

impl<'a> Done<'a> {
    const fn new(
        table: &'a mut BlockTable,
        marks: &'a mut Vec<BlockMark>,
        mark: &'a mut BlockMark,
    ) -> Self {
        Self { table, marks, mark }
    }

    fn block(&mut self, entry: BlockEntry) {
        self.table.blocks.push(entry);
        self.marks.push(std::mem::take(self.mark));
    }
}
