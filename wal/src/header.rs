//! The header of a WAL file.
//!
//! 32 bytes, all numbers big-endian:
//!
//! | offset | | |
//! | --- | --- | --- |
//! | 0 | u32 | magic: `0x377f0682`, checksums over little-endian words, or `0x377f0683`, big-endian |
//! | 4 | u32 | format version, 3007000 |
//! | 8 | u32 | page size, plainly: 65,536 stands here as itself (HAZARDS W30) |
//! | 12 | u32 | checkpoint sequence, private to the connection that wrote it: proves nothing |
//! | 16 | 8 | salts; they name this WAL life |
//! | 24 | 8 | [`Checksum`] over bytes 0..24 |
//!
//! Any other magic or version is refused by name: two WAL files at once, or frames of another shape, would
//! break every assumption here (HAZARDS W27).

use std::fmt;

use crate::checksum::{ByteOrder, Checksum};
use crate::codec::DecodeError;
use crate::page::PageSize;

/// Bytes of a WAL header.
pub const WAL_HEADER_LEN: usize = 32;
const SUMMED_LEN: usize = 24;
const _: () = assert!(WAL_HEADER_LEN == SUMMED_LEN + 8 && SUMMED_LEN == 4 * 4 + 8);

/// The only version of the WAL format that SQLite has released, and of the wal-index.
pub const WAL_VERSION: u32 = 3_007_000;
const MAGIC_LITTLE: u32 = 0x377f_0682;
const MAGIC_BIG: u32 = 0x377f_0683;

/// The two random numbers that every frame of one WAL life carries.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Salts([u32; 2]);

impl Salts {
    /// The salts with these numbers.
    pub const fn new(salts: [u32; 2]) -> Self {
        Self(salts)
    }

    /// Their numbers.
    pub const fn get(self) -> [u32; 2] {
        self.0
    }

    /// The salts of these bytes. They are big-endian in the wal-index too, where SQLite copies them as bytes.
    #[expect(clippy::many_single_char_names, reason = "the bytes in order")]
    pub const fn from_bytes([a, b, c, d, e, f, g, h]: [u8; 8]) -> Self {
        Self([
            u32::from_be_bytes([a, b, c, d]),
            u32::from_be_bytes([e, f, g, h]),
        ])
    }

    /// Their bytes.
    pub fn to_bytes(self) -> [u8; 8] {
        let mut bytes = [0; 8];
        bytes[..4].copy_from_slice(&self.0[0].to_be_bytes());
        bytes[4..].copy_from_slice(&self.0[1].to_be_bytes());
        bytes
    }
}

impl fmt::Display for Salts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}{:08x}", self.0[0], self.0[1])
    }
}

impl fmt::Debug for Salts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Salts({self})")
    }
}

/// A proven WAL header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalHeader {
    /// How checksums of this WAL read their words.
    pub order: ByteOrder,
    /// The page size of every frame.
    pub page_size: PageSize,
    /// The checkpoint sequence.
    pub sequence: u32,
    /// The salts of this life.
    pub salts: Salts,
    /// What the checksum chain of the frames starts from.
    pub checksum: Checksum,
}

impl WalHeader {
    /// The header of a WAL life that starts now.
    pub fn new(order: ByteOrder, page_size: PageSize, sequence: u32, salts: Salts) -> Self {
        let mut header = Self {
            order,
            page_size,
            sequence,
            salts,
            checksum: Checksum::ZERO,
        };
        header.checksum = Checksum::ZERO.update(order, &header.summed());
        header
    }

    fn summed(&self) -> [u8; SUMMED_LEN] {
        let magic = match self.order {
            ByteOrder::Little => MAGIC_LITTLE,
            ByteOrder::Big => MAGIC_BIG,
        };
        let mut bytes = [0; SUMMED_LEN];
        bytes[..4].copy_from_slice(&magic.to_be_bytes());
        bytes[4..8].copy_from_slice(&WAL_VERSION.to_be_bytes());
        bytes[8..12].copy_from_slice(&self.page_size.get().to_be_bytes());
        bytes[12..16].copy_from_slice(&self.sequence.to_be_bytes());
        bytes[16..].copy_from_slice(&self.salts.to_bytes());
        bytes
    }

    /// Its bytes.
    pub fn encode(&self) -> [u8; WAL_HEADER_LEN] {
        let mut bytes = [0; WAL_HEADER_LEN];
        bytes[..SUMMED_LEN].copy_from_slice(&self.summed());
        bytes[SUMMED_LEN..].copy_from_slice(&self.checksum.to_be_bytes());
        bytes
    }

    /// Reads and proves a header, in SQLite's order: magic, page size, checksum, then the version.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let bytes: &[u8; WAL_HEADER_LEN] = bytes.first_chunk().ok_or(DecodeError::Short {
            offset: 0,
            need: WAL_HEADER_LEN,
            have: bytes.len(),
        })?;
        let word = |at: usize| {
            let mut word = [0; 4];
            word.copy_from_slice(&bytes[at..at + 4]);
            u32::from_be_bytes(word)
        };
        let pair = |at: usize| {
            let mut pair = [0; 8];
            pair.copy_from_slice(&bytes[at..at + 8]);
            pair
        };
        let order = match word(0) {
            MAGIC_LITTLE => ByteOrder::Little,
            MAGIC_BIG => ByteOrder::Big,
            _ => {
                return Err(DecodeError::Magic {
                    offset: 0,
                    expected: "SQLite WAL",
                });
            }
        };
        let page_size = PageSize::new(word(8)).ok_or(DecodeError::Invalid {
            offset: 8,
            what: "page size",
        })?;
        let checksum = Checksum::ZERO.update(order, &bytes[..SUMMED_LEN]);
        let stored = Checksum::from_be_bytes(pair(SUMMED_LEN));
        if checksum != stored {
            return Err(DecodeError::Checksum {
                offset: 0,
                what: "WAL header checksum",
                found: checksum.to_string(),
                expected: stored.to_string(),
            });
        }
        if word(4) != WAL_VERSION {
            return Err(DecodeError::Version {
                what: "SQLite WAL",
                found: word(4),
                supported: WAL_VERSION,
            });
        }
        Ok(Self {
            order,
            page_size,
            sequence: word(12),
            salts: Salts::from_bytes(pair(16)),
            checksum,
        })
    }
}
