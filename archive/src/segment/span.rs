//! A span: the part of a segment that holds some TxIds, from mark to mark.

use std::borrow::Cow;
use std::ops::Range;

use tidelog_wal::{Chain, DecodeError, TxId};

use super::index::{Segment, blocks_range};
use crate::envelope::FormatError;
use crate::records::{ChainWalk, RecordReader, RecordScanner, RecordVisitor};

/// The blocks that hold a range of TxIds, and what proves the records in them.
///
/// The records read run from mark to mark, so there may be some before and after those asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentSpan {
    /// Which blocks.
    pub blocks: Range<usize>,
    /// Where they lie in the object.
    pub range: Range<u64>,
    /// Proves the records from the first one read.
    pub walk: ChainWalk,
    /// The last record read.
    pub last: TxId,
    /// The chain after it.
    pub chain_after: Chain,
    /// Raw bytes of the first block that come before.
    skip: usize,
    /// Raw bytes of the last block that belong to it.
    cut: usize,
}

impl Segment {
    /// The span that holds `first` to `last`, both inside this segment.
    pub fn span(&self, first: TxId, last: TxId) -> Option<SegmentSpan> {
        let run = &self.meta.run;
        if !run.contains(first) || !run.contains(last) || first > last {
            return None;
        }
        let from = self.mark_at(first)?;
        let after = self.marks.partition_point(|mark| mark.txid <= last);
        let end_of = |block: usize| self.table.blocks.get(block).map(|b| b.raw_len as usize);
        let (end_block, cut, last, chain_after) = match self.marks.get(after) {
            // The record before a mark at offset 0 ends with the block before.
            Some(mark) if mark.offset == 0 => {
                let block = mark.block.checked_sub(1)?;
                (block, end_of(block)?, mark.txid.prev()?, mark.chain_before)
            }
            Some(mark) => (
                mark.block,
                mark.offset,
                mark.txid.prev()?,
                mark.chain_before,
            ),
            None => {
                let block = self.table.blocks.len().checked_sub(1)?;
                (block, end_of(block)?, run.last, run.chain_after)
            }
        };
        let blocks = from.block..end_block + 1;
        Some(SegmentSpan {
            range: blocks_range(&self.table, &blocks),
            blocks,
            walk: ChainWalk {
                next: from.txid,
                chain: from.chain_before,
            },
            last,
            chain_after,
            skip: from.offset,
            cut,
        })
    }

    /// The span of everything.
    pub fn all(&self) -> Option<SegmentSpan> {
        self.span(self.meta.run.first, self.meta.run.last)
    }

    /// Opens block number `block` from its stored bytes.
    pub fn open_block(&self, block: usize, stored: &[u8]) -> Result<Vec<u8>, FormatError> {
        let entry = self.table.blocks.get(block).ok_or(DecodeError::Invalid {
            offset: 0,
            what: "block number",
        })?;
        entry.open(self.object.sealer.as_deref(), block as u64, stored)
    }

    /// Opens block number `block` from `stored`, which begins at `base` of the object.
    pub fn open_block_in(
        &self,
        block: usize,
        stored: &[u8],
        base: u64,
    ) -> Result<Vec<u8>, FormatError> {
        let bytes = self.table.blocks.get(block).and_then(|entry| {
            let from = usize::try_from(entry.offset.checked_sub(base)?).ok()?;
            stored.get(from..from.checked_add(entry.stored_len as usize)?)
        });
        let short = DecodeError::Short {
            offset: 0,
            need: 1,
            have: stored.len(),
        };
        self.open_block(block, bytes.ok_or(FormatError::from(short).shifted(base))?)
    }

    /// Reads the records of `span` one by one from `stored`, the bytes of its range. For records of at most
    /// 2 MiB; [`Segment::scan`] takes any.
    pub fn records<'a>(
        &'a self,
        span: &'a SegmentSpan,
        stored: &'a [u8],
    ) -> RecordReader<impl Iterator<Item = Result<Cow<'static, [u8]>, FormatError>> + 'a> {
        let blocks = span.blocks.clone().map(move |block| {
            let raw = self.open_block_in(block, stored, span.range.start)?;
            Ok(Cow::Owned(span.piece(block, &raw).to_vec()))
        });
        RecordReader::new(
            blocks,
            span.walk,
            span.last,
            span.chain_after,
            span.range.start,
        )
    }

    /// Shows `visitor` the records of `span` from `stored`, the bytes of its range, and proves them.
    pub fn scan<V: RecordVisitor>(
        &self,
        span: &SegmentSpan,
        stored: &[u8],
        visitor: &mut V,
    ) -> Result<(), V::Error> {
        let mut scanner = RecordScanner::new(self.meta.page_size, span.walk);
        for block in span.blocks.clone() {
            let raw = self.open_block_in(block, stored, span.range.start)?;
            scanner.feed(span.piece(block, &raw), visitor)?;
        }
        Ok(scanner.finish(span.last, span.chain_after, span.range.start)?)
    }
}

impl SegmentSpan {
    /// What of block number `block`, whose raw bytes are `raw`, belongs to the span.
    pub fn piece<'r>(&self, block: usize, raw: &'r [u8]) -> &'r [u8] {
        let from = if block == self.blocks.start {
            self.skip
        } else {
            0
        };
        let to = if block + 1 == self.blocks.end {
            self.cut
        } else {
            raw.len()
        };
        raw.get(from..to).unwrap_or_default()
    }
}
