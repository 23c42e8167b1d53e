//! Blocks: compressed units of at most 256 KiB raw.
//!
//! A block can be fetched and opened alone. It is stored as zstd ([`Codec::Zstd`]), or as it is where that
//! is not shorter ([`Codec::Raw`]). Which one, the raw length, and the CRC-32 stand in the index of the
//! object that holds it.

use std::cell::RefCell;
use std::fmt;

use zstd::bulk::Decompressor;

use crate::codec::DecodeError;

/// The most raw bytes of a block.
pub const BLOCK_RAW_MAX: usize = 256 * 1024;

/// How a block is stored. Codes are kept stable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    /// As it is.
    Raw,
    /// One zstd frame.
    Zstd,
}

impl Codec {
    /// The code in an object's index.
    pub const fn code(self) -> u8 {
        match self {
            Self::Raw => 0,
            Self::Zstd => 1,
        }
    }

    /// The codec of a code found at `offset`.
    pub const fn from_code(code: u8, offset: usize) -> Result<Self, DecodeError> {
        match code {
            0 => Ok(Self::Raw),
            1 => Ok(Self::Zstd),
            _ => Err(DecodeError::Invalid {
                offset,
                what: "block codec",
            }),
        }
    }
}

/// Compresses blocks, keeping its context between them.
pub struct Compressor {
    level: i32,
    zstd: zstd::bulk::Compressor<'static>,
}

impl fmt::Debug for Compressor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Compressor").finish_non_exhaustive()
    }
}

impl Compressor {
    /// A compressor of the given zstd level, 1 to 19.
    ///
    /// # Panics
    ///
    /// If memory for the context cannot be had.
    pub fn new(level: i32) -> Self {
        let zstd =
            zstd::bulk::Compressor::new(level).expect("zstd accepts every level of its range");
        Self { level, zstd }
    }

    /// Another of the same level: from both come the same bytes.
    ///
    /// # Panics
    ///
    /// As [`Compressor::new`].
    #[must_use]
    pub fn another(&self) -> Self {
        Self::new(self.level)
    }

    /// Appends the stored form of `raw` to `out` and says how it is stored.
    ///
    /// # Panics
    ///
    /// If `raw` is longer than [`BLOCK_RAW_MAX`].
    pub fn compress(&mut self, raw: &[u8], out: &mut Vec<u8>) -> Codec {
        assert!(raw.len() <= BLOCK_RAW_MAX, "a block holds at most 256 KiB");
        let start = out.len();
        out.resize(start + zstd::zstd_safe::compress_bound(raw.len()), 0);
        let written = self.zstd.compress_to_buffer(raw, &mut out[start..]);
        if let Ok(written) = written
            && written < raw.len()
        {
            out.truncate(start + written);
            return Codec::Zstd;
        }
        out.truncate(start);
        out.extend_from_slice(raw);
        Codec::Raw
    }
}

/// Opens a stored block whose raw length is known, refusing any other length. `offset` is where the block
/// starts in its object, for the error.
pub fn decompress(
    codec: Codec,
    stored: &[u8],
    raw_len: usize,
    offset: usize,
) -> Result<Vec<u8>, DecodeError> {
    if raw_len > BLOCK_RAW_MAX {
        return Err(DecodeError::TooLarge {
            offset,
            what: "raw block length",
            found: raw_len as u64,
            limit: BLOCK_RAW_MAX as u64,
        });
    }
    let raw = match codec {
        Codec::Raw => stored.to_vec(),
        Codec::Zstd => unpack(stored, raw_len).ok_or(DecodeError::Invalid {
            offset,
            what: "compressed block",
        })?,
    };
    if raw.len() == raw_len {
        Ok(raw)
    } else {
        Err(DecodeError::Invalid {
            offset,
            what: "raw block length",
        })
    }
}

thread_local! {
    /// Making a context and touching its memory for the first time takes a good part of what opening a block does.
    static CONTEXT: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
}

/// The bytes of a zstd frame, if it is one of at most `raw_len`.
fn unpack(stored: &[u8], raw_len: usize) -> Option<Vec<u8>> {
    CONTEXT.with_borrow_mut(|context| {
        let context = match context {
            Some(context) => context,
            none => none.insert(Decompressor::new().ok()?),
        };
        context.decompress(stored, raw_len).ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_round_trip_and_incompressible_ones_are_kept() {
        let mut compressor = Compressor::new(3);
        let noise: Vec<u8> = (0..1000_u32)
            .flat_map(|i| blake3::hash(&i.to_le_bytes()).as_bytes()[..8].to_vec())
            .collect();
        for (raw, want) in [
            (vec![7; BLOCK_RAW_MAX], Codec::Zstd),
            (noise, Codec::Raw),
            (Vec::new(), Codec::Raw),
        ] {
            let mut stored = Vec::new();
            let codec = compressor.compress(&raw, &mut stored);
            assert_eq!(codec, want);
            assert_eq!(decompress(codec, &stored, raw.len(), 0), Ok(raw.clone()));
            assert!(decompress(codec, &stored, raw.len() + 1, 0).is_err());
        }
    }

    #[test]
    fn a_bomb_takes_no_more_memory_than_its_index_allows() {
        let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 3).expect("compress");
        assert!(decompress(Codec::Zstd, &bomb, BLOCK_RAW_MAX, 0).is_err());
        assert!(decompress(Codec::Zstd, &bomb, 64 << 20, 0).is_err());
    }
}
