//! The last 64 bytes of every object. The layout stands in [`super`].

use tidelog_wal::DecodeError;
use tidelog_wal::codec::Reader;

use super::error::{FormatError, at};
use super::header::HEADER_LEN;

/// How every object ends.
pub const END_MAGIC: [u8; 8] = *b"\0GOLEDIT";
/// Bytes of a trailer.
pub const TRAILER_LEN: usize = 64;
const _: () = assert!(TRAILER_LEN == 8 + 4 + 4 + 32 + 8 + 8);
/// The longest index that is read: an image of about a hundred gigabytes with every second page zero.
pub const INDEX_LEN_MAX: usize = 64 << 20;

/// A decoded trailer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trailer {
    /// Where the index starts.
    pub index_offset: u64,
    /// Bytes of the index.
    pub index_len: u32,
    /// CRC-32 of the index.
    pub index_crc: u32,
    /// BLAKE3 of every byte before the trailer.
    pub blake3: [u8; 32],
    /// Bytes of the object, trailer included.
    pub object_len: u64,
}

impl Trailer {
    /// Its bytes.
    pub fn encode(&self) -> [u8; TRAILER_LEN] {
        let mut out = [0; TRAILER_LEN];
        out[..8].copy_from_slice(&self.index_offset.to_le_bytes());
        out[8..12].copy_from_slice(&self.index_len.to_le_bytes());
        out[12..16].copy_from_slice(&self.index_crc.to_le_bytes());
        out[16..48].copy_from_slice(&self.blake3);
        out[48..56].copy_from_slice(&self.object_len.to_le_bytes());
        out[56..].copy_from_slice(&END_MAGIC);
        out
    }

    /// Reads the trailer at the end of `tail`, the last bytes of an object of `object_len` bytes.
    pub fn decode(tail: &[u8], object_len: u64) -> Result<Self, FormatError> {
        let Some(bytes) = tail.last_chunk::<TRAILER_LEN>() else {
            return Err(DecodeError::Short {
                offset: 0,
                need: TRAILER_LEN,
                have: tail.len(),
            }
            .into());
        };
        let base = object_len.saturating_sub(TRAILER_LEN as u64);
        let trailer = at(base, Self::fields(bytes))?;
        let end = trailer
            .index_offset
            .checked_add(u64::from(trailer.index_len));
        let body_fits = trailer.index_offset >= HEADER_LEN as u64 && end == Some(base);
        let sized = trailer.object_len == object_len && object_len > TRAILER_LEN as u64;
        if !body_fits || !sized {
            return Err(FormatError::invalid(0, "object length").shifted(base));
        }
        if trailer.index_len as usize > INDEX_LEN_MAX {
            return Err(FormatError::from(DecodeError::TooLarge {
                offset: 8,
                what: "index",
                found: u64::from(trailer.index_len),
                limit: INDEX_LEN_MAX as u64,
            })
            .shifted(base));
        }
        Ok(trailer)
    }

    fn fields(bytes: &[u8; TRAILER_LEN]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let trailer = Self {
            index_offset: reader.u64()?,
            index_len: reader.u32()?,
            index_crc: reader.u32()?,
            blake3: reader.array()?,
            object_len: reader.u64()?,
        };
        if reader.array()? != END_MAGIC {
            return Err(DecodeError::Magic {
                offset: 56,
                expected: "GOLEDIT",
            });
        }
        Ok(trailer)
    }

    /// Refuses index bytes that are not those this trailer speaks of.
    pub fn check_index(&self, index: &[u8]) -> Result<(), FormatError> {
        let found = crc32fast::hash(index);
        if index.len() == self.index_len as usize && found == self.index_crc {
            return Ok(());
        }
        Err(FormatError::from(DecodeError::Checksum {
            offset: 0,
            what: "CRC-32 of the index",
            found: format!("{found:08x}"),
            expected: format!("{:08x}", self.index_crc),
        })
        .shifted(self.index_offset))
    }
}
