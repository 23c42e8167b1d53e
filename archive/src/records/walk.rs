//! Reads a stream record by record, proving TxIds and chain.

use std::borrow::Cow;

use tidelog_wal::codec::Reader;
use tidelog_wal::{Chain, CommitRecord, DecodeError, Position, TxId};

use super::RECORD_WHOLE_MAX;
use crate::envelope::FormatError;

/// Proves that records follow one another: dense TxIds, one chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChainWalk {
    /// The TxId the next record must have.
    pub next: TxId,
    /// The chain before it.
    pub chain: Chain,
}

impl ChainWalk {
    /// Steps over the record in `bytes` and answers it with its Position.
    pub fn step<'a>(
        &mut self,
        bytes: &'a [u8],
    ) -> Result<(CommitRecord<'a>, Position), DecodeError> {
        let record = CommitRecord::decode(bytes)?;
        self.expect(record.header.txid)?;
        let chain = record.chain_after(self.chain, bytes);
        let position = self.advance(&record.header, chain);
        Ok((record, position))
    }

    /// The same for a record whose chain was hashed elsewhere: `chain` is the one after it.
    pub(super) fn step_known<'a>(
        &mut self,
        bytes: &'a [u8],
        chain: Chain,
    ) -> Result<(CommitRecord<'a>, Position), DecodeError> {
        let record = CommitRecord::decode(bytes)?;
        self.expect(record.header.txid)?;
        let position = self.advance(&record.header, chain);
        Ok((record, position))
    }

    /// Refuses a record that is not the next one.
    pub(super) fn expect(&self, txid: TxId) -> Result<(), DecodeError> {
        if txid == self.next && txid.get() != u64::MAX {
            return Ok(());
        }
        Err(DecodeError::Invalid {
            offset: 0,
            what: "txid that does not follow",
        })
    }

    /// Steps over a record whose chain was computed elsewhere.
    pub(super) fn advance(
        &mut self,
        header: &tidelog_wal::record::RecordHeader,
        chain: Chain,
    ) -> Position {
        self.chain = chain;
        self.next = header.txid.next();
        Position {
            term: header.term,
            txid: header.txid,
            chain,
        }
    }
}

/// One record of a stream, with its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawRecord<'a> {
    /// Its Position.
    pub position: Position,
    /// Its canonical bytes.
    pub bytes: &'a [u8],
    /// The same, decoded.
    pub record: CommitRecord<'a>,
}

/// Reads records of at most 2 MiB each from blocks that `B` opens one by one.
///
/// What the stream promises (last TxId, chain after) is proven when its end is reached.
#[derive(Debug)]
pub struct RecordReader<B> {
    blocks: B,
    walk: ChainWalk,
    last: TxId,
    chain_after: Chain,
    offset: u64,
    buffer: Vec<u8>,
    at: usize,
}

impl<'b, B> RecordReader<B>
where
    B: Iterator<Item = Result<Cow<'b, [u8]>, FormatError>>,
{
    /// Reads the stream in `blocks`, whose bytes begin at `offset` of their object: records from the one
    /// `walk` expects to `last`, which must lead to `chain_after`.
    pub const fn new(
        blocks: B,
        walk: ChainWalk,
        last: TxId,
        chain_after: Chain,
        offset: u64,
    ) -> Self {
        Self {
            blocks,
            walk,
            last,
            chain_after,
            offset,
            buffer: Vec::new(),
            at: 0,
        }
    }

    /// The next record, or `None` at the proven end of the stream.
    pub fn next_record(&mut self) -> Result<Option<RawRecord<'_>>, FormatError> {
        if self.walk.next > self.last {
            return self.end().map(|()| None);
        }
        let range = loop {
            if let Some(range) = self.whole_record()? {
                break range;
            }
            let block = self.blocks.next().ok_or(DecodeError::Short {
                offset: 0,
                need: 1,
                have: 0,
            });
            let block = block.map_err(|error| FormatError::from(error).shifted(self.offset))??;
            self.buffer.drain(..self.at);
            self.at = 0;
            self.buffer.extend_from_slice(&block);
        };
        self.at = range.end;
        let bytes = self.buffer.get(range).unwrap_or_default();
        let (record, position) = self
            .walk
            .step(bytes)
            .map_err(|error| FormatError::from(error).shifted(self.offset))?;
        Ok(Some(RawRecord {
            position,
            bytes,
            record,
        }))
    }

    /// Where the next record lies in the buffer, if all of it is there.
    fn whole_record(&self) -> Result<Option<std::ops::Range<usize>>, FormatError> {
        let rest = self.buffer.get(self.at..).unwrap_or_default();
        let mut reader = Reader::new(rest);
        let len = match reader.count("record", RECORD_WHOLE_MAX) {
            Ok(len) => len,
            Err(DecodeError::Short { .. }) => return Ok(None),
            Err(error) => return Err(FormatError::from(error).shifted(self.offset)),
        };
        let start = self.at + reader.offset();
        Ok((len <= reader.remaining()).then_some(start..start + len))
    }

    fn end(&mut self) -> Result<(), FormatError> {
        let left = self.buffer.len() - self.at;
        if left > 0 || self.blocks.next().is_some() {
            return Err(FormatError::from(DecodeError::Trailing {
                offset: 0,
                count: left,
            })
            .shifted(self.offset));
        }
        if self.walk.chain != self.chain_after {
            return Err(FormatError::Chain {
                offset: self.offset,
                txid: self.last,
                found: self.walk.chain,
                expected: self.chain_after,
            });
        }
        Ok(())
    }
}
