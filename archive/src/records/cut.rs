//! Cuts a stream of records into blocks.

use std::iter;

use tidelog_wal::block::BLOCK_RAW_MAX;
use tidelog_wal::codec::put_varint;

use crate::envelope::{BlockEntry, BlockWriter, ObjectWriter};

/// Appends records to an object, block by block, with the memory of one block and of what is compressed beside it.
#[derive(Debug)]
pub struct RecordCutter {
    raw: Vec<u8>,
    raw_len: u64,
}

impl Default for RecordCutter {
    fn default() -> Self {
        Self::new()
    }
}

impl RecordCutter {
    /// A cutter at the start of a stream.
    pub fn new() -> Self {
        Self {
            raw: Vec::with_capacity(BLOCK_RAW_MAX),
            raw_len: 0,
        }
    }

    /// Raw bytes written so far: where the next record starts in the stream.
    pub const fn raw_len(&self) -> u64 {
        self.raw_len
    }

    /// Begins a record of `len` bytes; its bytes follow by [`RecordCutter::part`].
    pub fn begin(
        &mut self,
        len: u64,
        object: &mut ObjectWriter,
        blocks: &mut BlockWriter,
        written: &mut impl FnMut(BlockEntry),
    ) {
        let mut prefix = Vec::with_capacity(10);
        put_varint(&mut prefix, len);
        self.part(&prefix, object, blocks, written);
    }

    /// Adds bytes of the record that was begun; the more at once, the more of it is compressed side by side.
    pub fn part(
        &mut self,
        bytes: &[u8],
        object: &mut ObjectWriter,
        blocks: &mut BlockWriter,
        written: &mut impl FnMut(BlockEntry),
    ) {
        self.raw_len += bytes.len() as u64;
        let room = BLOCK_RAW_MAX - self.raw.len();
        let (now, later) = bytes.split_at(room.min(bytes.len()));
        self.raw.extend_from_slice(now);
        if self.raw.len() < BLOCK_RAW_MAX {
            return;
        }
        let (whole, rest) = later.as_chunks::<BLOCK_RAW_MAX>();
        let full = iter::once(self.raw.as_slice()).chain(whole.iter().map(<[u8; _]>::as_slice));
        blocks.write_each(object, &full.collect::<Vec<_>>(), written);
        self.raw.clear();
        self.raw.extend_from_slice(rest);
    }

    /// Writes what is left as the last, shorter block.
    pub fn flush(
        &mut self,
        object: &mut ObjectWriter,
        blocks: &mut BlockWriter,
        written: &mut impl FnMut(BlockEntry),
    ) {
        if !self.raw.is_empty() {
            written(blocks.write(object, &self.raw));
            self.raw.clear();
        }
    }
}
