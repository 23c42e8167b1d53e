//! Blocks and the table that finds them.
//!
//! ```text
//! table := varint(offset of the first block) varint(blocks) entry*
//! entry := varint(stored length) varint(raw length) u8(codec) u32(CRC-32 of the stored bytes)
//! ```
//!
//! Blocks stand one after another; the CRC-32 covers them as stored, sealed or not. Every block but the last
//! of a record stream is 256 KiB raw.

use std::ops::Range;

use tidelog_wal::DecodeError;
use tidelog_wal::block::{BLOCK_RAW_MAX, Codec, Compressor, decompress};
use tidelog_wal::codec::{Reader, put_varint};
use tidelog_wal::parallel::both;

use super::error::{FormatError, at};
use super::writer::ObjectWriter;
use crate::seal::BlockSealer;

/// The shortest entry in bytes, which bounds what a count may claim.
const ENTRY_LEN_MIN: usize = 7;

/// One block of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockEntry {
    /// Where it starts in the object.
    pub offset: u64,
    /// Bytes stored.
    pub stored_len: u32,
    /// Bytes when opened.
    pub raw_len: u32,
    /// How it is compressed.
    pub codec: Codec,
    /// CRC-32 of the stored bytes.
    pub crc: u32,
}

impl BlockEntry {
    /// Where it lies.
    pub fn range(&self) -> Range<u64> {
        self.offset..self.offset + u64::from(self.stored_len)
    }

    /// Opens the stored bytes of this block, number `block` of its object, which `sealer` opens; `None` if it is
    /// plain.
    pub fn open(
        &self,
        sealer: Option<&BlockSealer>,
        block: u64,
        stored: &[u8],
    ) -> Result<Vec<u8>, FormatError> {
        let found = crc32fast::hash(stored);
        if stored.len() != self.stored_len as usize || found != self.crc {
            return Err(FormatError::from(DecodeError::Checksum {
                offset: 0,
                what: "CRC-32 of a block",
                found: format!("{found:08x}"),
                expected: format!("{:08x}", self.crc),
            })
            .shifted(self.offset));
        }
        let opened = sealer.map(|sealer| {
            let offset = self.offset;
            let what = "a block";
            sealer
                .open(block, stored)
                .ok_or(FormatError::Unauthentic { offset, what })
        });
        let opened = opened.transpose()?;
        let compressed = opened.as_deref().unwrap_or(stored);
        let raw = decompress(self.codec, compressed, self.raw_len as usize, 0);
        at(self.offset, raw)
    }
}

/// The blocks of an object or of one section of it, in order and without holes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BlockTable {
    /// The blocks.
    pub blocks: Vec<BlockEntry>,
}

impl BlockTable {
    /// Raw bytes of all blocks.
    pub fn raw_len(&self) -> u64 {
        self.blocks.iter().map(|b| u64::from(b.raw_len)).sum()
    }

    /// Where all of its blocks lie; empty at 0 if there are none.
    pub fn range(&self) -> Range<u64> {
        match (self.blocks.first(), self.blocks.last()) {
            (Some(first), Some(last)) => first.offset..last.range().end,
            _ => 0..0,
        }
    }

    /// Appends the encoding described in the module docs.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_varint(out, self.range().start);
        put_varint(out, self.blocks.len() as u64);
        for block in &self.blocks {
            put_varint(out, u64::from(block.stored_len));
            put_varint(out, u64::from(block.raw_len));
            out.push(block.codec.code());
            out.extend_from_slice(&block.crc.to_le_bytes());
        }
    }

    /// Reads a table whose blocks must lie inside `body`.
    pub fn decode(reader: &mut Reader<'_>, body: &Range<u64>) -> Result<Self, DecodeError> {
        let start = reader.offset();
        let mut offset = reader.varint()?;
        let count = reader.count("blocks", reader.remaining() / ENTRY_LEN_MIN)?;
        let mut blocks = Vec::with_capacity(count);
        let invalid = |what| DecodeError::Invalid {
            offset: start,
            what,
        };
        if count > 0 && offset < body.start || count == 0 && offset != 0 {
            return Err(invalid("block offset"));
        }
        for _ in 0..count {
            let stored_len = reader.varint_u32("stored block length")?;
            let at = reader.offset();
            let raw_len = reader.varint_u32("raw block length")?;
            if raw_len as usize > BLOCK_RAW_MAX || raw_len == 0 {
                return Err(DecodeError::TooLarge {
                    offset: at,
                    what: "raw block length",
                    found: u64::from(raw_len),
                    limit: BLOCK_RAW_MAX as u64,
                });
            }
            let at = reader.offset();
            let codec = Codec::from_code(reader.u8()?, at)?;
            let block = BlockEntry {
                offset,
                stored_len,
                raw_len,
                codec,
                crc: reader.u32()?,
            };
            offset = offset
                .checked_add(u64::from(stored_len))
                .filter(|end| *end <= body.end)
                .ok_or(invalid("block beyond the body"))?;
            blocks.push(block);
        }
        Ok(Self { blocks })
    }
}

/// Compresses, seals and appends blocks to an object.
#[derive(Debug)]
pub struct BlockWriter {
    compressor: Compressor,
    /// Compresses every other block where many are written at once.
    helper: Option<Compressor>,
    stored: [Vec<u8>; 2],
    next: u64,
}

impl BlockWriter {
    /// A writer whose first block of the object is number 0.
    pub const fn new(compressor: Compressor) -> Self {
        Self {
            compressor,
            helper: None,
            stored: [Vec::new(), Vec::new()],
            next: 0,
        }
    }

    /// Appends `raw`, at most 256 KiB and not empty, as the next block of `object`, sealed as the object is
    /// ([`ObjectWriter::set_sealer`]).
    ///
    /// # Panics
    ///
    /// If `raw` is longer than a block may be.
    pub fn write(&mut self, object: &mut ObjectWriter, raw: &[u8]) -> BlockEntry {
        let [stored, _] = &mut self.stored;
        stored.clear();
        let codec = self.compressor.compress(raw, stored);
        let entry = append(object, self.next, codec, raw.len(), stored);
        self.next += 1;
        entry
    }

    /// Appends several blocks, as [`BlockWriter::write`] does one after the other; two at a time are compressed at
    /// once.
    ///
    /// # Panics
    ///
    /// If one of them is longer than a block may be.
    pub fn write_each(
        &mut self,
        object: &mut ObjectWriter,
        raws: &[&[u8]],
        written: &mut impl FnMut(BlockEntry),
    ) {
        for raws in raws.chunks(2) {
            let [first, second] = *raws else {
                for raw in raws {
                    written(self.write(object, raw));
                }
                continue;
            };
            let compressor = &mut self.compressor;
            let helper = self.helper.get_or_insert_with(|| compressor.another());
            let [here, there] = &mut self.stored;
            here.clear();
            there.clear();
            let codecs = both(
                || compressor.compress(first, here),
                || helper.compress(second, there),
            );
            written(append(object, self.next, codecs.0, first.len(), here));
            written(append(object, self.next + 1, codecs.1, second.len(), there));
            self.next += 2;
        }
    }

    /// The compressor, for the next object.
    pub fn into_compressor(self) -> Compressor {
        self.compressor
    }
}

/// Seals what block `number` of `object` came to, `raw` bytes before it was compressed, and appends it.
fn append(
    object: &mut ObjectWriter,
    number: u64,
    codec: Codec,
    raw: usize,
    stored: &mut Vec<u8>,
) -> BlockEntry {
    if let Some(sealer) = object.sealer() {
        sealer.seal(number, stored);
    }
    let length = |len: usize| u32::try_from(len).expect("a block is at most 256 KiB and a bit");
    let entry = BlockEntry {
        offset: object.offset(),
        stored_len: length(stored.len()),
        raw_len: length(raw),
        codec,
        crc: crc32fast::hash(stored),
    };
    object.append(stored);
    entry
}
