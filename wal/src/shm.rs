//! The wal-index header: the first 136 bytes of the `-shm` file, and the only authority on where the
//! committed log ends.
//!
//! All numbers are in the byte order of this machine, whose SQLite alone writes the file, except the salts,
//! which are copied as bytes:
//!
//! | offset | | |
//! | --- | --- | --- |
//! | 0 | u32 | version, 3007000 |
//! | 4 | u32 | unused |
//! | 8 | u32 | iChange: one more with each commit; starts again when SQLite recovers the WAL |
//! | 12 | u8 | 1 once initialised |
//! | 13 | u8 | 1 if the WAL's checksums read big-endian words |
//! | 14 | u16 | page size, where 1 means 65,536; 0 while nothing was ever committed |
//! | 16 | u32 | mxFrame: the last committed frame |
//! | 20 | u32 | nPage: pages of the database |
//! | 24 | 2 u32 | checksum of frame mxFrame |
//! | 32 | 8 | salts |
//! | 40 | 2 u32 | [`Checksum`] over bytes 0..40, words in this machine's order |
//! | 48 | 48 | the same again |
//! | 96 | u32 | nBackfill: frames already copied into the database file |
//! | 100 | 5 u32 | read marks |
//! | 120 | 8 | lock bytes, never read |
//! | 128 | u32 | nBackfillAttempted |
//! | 132 | u32 | unused |
//!
//! A writer stores the second copy, then the first; a reader that finds both equal and the checksum right has
//! seen one whole header. It may be read at any time, beside running writers. Anything else is
//! [`ShmError::Unstable`]: read again.
//!
//! While `max_frame` is 0 the frame checksum and page count are left over from an earlier life. `backfilled`
//! is not covered by the checksum, and a restart stores it just after the header: for a moment a new life
//! shows the old one's.

use crate::checksum::{ByteOrder, Checksum};
use crate::frame::FrameNo;
use crate::header::{Salts, WAL_VERSION};
use crate::page::{PageCount, PageSize};

/// Bytes to read from the start of the `-shm` file.
pub const SHM_HEADER_LEN: usize = 136;
const COPY_LEN: usize = 48;
const SUMMED_LEN: usize = 40;
const NBACKFILL_AT: usize = 96;
const NBACKFILL_ATTEMPTED_AT: usize = 128;
const _: () = assert!(NBACKFILL_AT == 2 * COPY_LEN && COPY_LEN == SUMMED_LEN + 8);
const _: () = assert!(NBACKFILL_ATTEMPTED_AT == NBACKFILL_AT + 4 + 5 * 4 + 8);
const _: () = assert!(SHM_HEADER_LEN == NBACKFILL_ATTEMPTED_AT + 4 + 4);

/// Why a wal-index header could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ShmError {
    /// A writer is in the middle of it, or nobody has initialised it yet: read again.
    #[error("wal-index header is not stable: {what}")]
    Unstable {
        /// What gave it away.
        what: &'static str,
    },
    /// The header is whole and of a version SQLite never released.
    #[error("wal-index has version {found}, expected {WAL_VERSION}")]
    Version {
        /// The version found.
        found: u32,
    },
    /// The header is whole and nonsense.
    #[error("invalid {what} in the wal-index header")]
    Invalid {
        /// Which field.
        what: &'static str,
    },
}

/// What the wal-index publishes: how far the committed log reaches, and what it looks like there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalIndexHeader {
    /// Commits since SQLite last recovered the WAL, modulo 2^32.
    pub change: u32,
    /// How the WAL's checksums read their words.
    pub order: ByteOrder,
    /// The page size; `None` while nothing was ever committed, and then `max_frame` is 0.
    pub page_size: Option<PageSize>,
    /// The last committed frame.
    pub max_frame: FrameNo,
    /// Pages of the database after it.
    pub n_pages: PageCount,
    /// The checksum of that frame.
    pub checksum: Checksum,
    /// The salts of this WAL life.
    pub salts: Salts,
    /// Frames up to and including this one stand in the database file.
    pub backfilled: FrameNo,
    /// Frames up to and including this one may stand there, if a checkpoint was cut off.
    pub backfill_attempted: FrameNo,
}

impl WalIndexHeader {
    /// Reads a header from the first [`SHM_HEADER_LEN`] bytes of the file.
    pub fn decode(bytes: &[u8]) -> Result<Self, ShmError> {
        let unstable = |what| ShmError::Unstable { what };
        let bytes: &[u8; SHM_HEADER_LEN] =
            bytes.first_chunk().ok_or_else(|| unstable("too short"))?;
        if bytes[..COPY_LEN] != bytes[COPY_LEN..2 * COPY_LEN] {
            return Err(unstable("copies differ"));
        }
        if bytes[12] == 0 {
            return Err(unstable("not initialised"));
        }
        let native = ByteOrder::NATIVE;
        let word = |at: usize| {
            let mut word = [0; 4];
            word.copy_from_slice(&bytes[at..at + 4]);
            native.u32(word)
        };
        let sums = |at: usize| Checksum {
            s0: word(at),
            s1: word(at + 4),
        };
        if Checksum::ZERO.update(native, &bytes[..SUMMED_LEN]) != sums(SUMMED_LEN) {
            return Err(unstable("checksum differs"));
        }
        if word(0) != WAL_VERSION {
            return Err(ShmError::Version { found: word(0) });
        }
        let max_frame = FrameNo::new(word(16));
        let mut salts = [0; 8];
        salts.copy_from_slice(&bytes[32..40]);
        Ok(Self {
            change: word(8),
            order: match bytes[13] {
                0 => ByteOrder::Little,
                _ => ByteOrder::Big,
            },
            page_size: Self::page_size([bytes[14], bytes[15]], max_frame)?,
            max_frame,
            n_pages: PageCount::new(word(20)),
            checksum: sums(24),
            salts: Salts::from_bytes(salts),
            backfilled: FrameNo::new(word(NBACKFILL_AT)),
            backfill_attempted: FrameNo::new(word(NBACKFILL_ATTEMPTED_AT)),
        })
    }

    fn page_size(coded: [u8; 2], max_frame: FrameNo) -> Result<Option<PageSize>, ShmError> {
        let coded = match ByteOrder::NATIVE {
            ByteOrder::Little => u16::from_le_bytes(coded),
            ByteOrder::Big => u16::from_be_bytes(coded),
        };
        match PageSize::from_header(coded) {
            None if coded != 0 || max_frame > FrameNo::ZERO => {
                Err(ShmError::Invalid { what: "page size" })
            }
            size => Ok(size),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A header as SQLite writes it, from its fields.
    fn encode(change: u32, coded_size: u16, max_frame: u32, backfilled: u32) -> Vec<u8> {
        let native = ByteOrder::NATIVE;
        let mut copy = Vec::new();
        for word in [WAL_VERSION, 0, change] {
            copy.extend(native.bytes(word));
        }
        copy.extend([1, 0]);
        copy.extend(match native {
            ByteOrder::Little => coded_size.to_le_bytes(),
            ByteOrder::Big => coded_size.to_be_bytes(),
        });
        for word in [max_frame, 9, 0x1111, 0x2222] {
            copy.extend(native.bytes(word));
        }
        copy.extend([1, 2, 3, 4, 5, 6, 7, 8]);
        let sums = Checksum::ZERO.update(native, &copy);
        copy.extend(native.bytes(sums.s0));
        copy.extend(native.bytes(sums.s1));
        let mut bytes = copy.repeat(2);
        bytes.extend(native.bytes(backfilled));
        bytes.resize(SHM_HEADER_LEN, 0);
        bytes
    }

    #[test]
    fn every_field_is_read_from_its_place() {
        let header = WalIndexHeader::decode(&encode(77, 1, 5, 3)).expect("whole");
        assert_eq!(
            header,
            WalIndexHeader {
                change: 77,
                order: ByteOrder::Little,
                page_size: Some(PageSize::MAX),
                max_frame: FrameNo::new(5),
                n_pages: PageCount::new(9),
                checksum: Checksum {
                    s0: 0x1111,
                    s1: 0x2222
                },
                salts: Salts::new([0x0102_0304, 0x0506_0708]),
                backfilled: FrameNo::new(3),
                backfill_attempted: FrameNo::ZERO,
            }
        );
    }

    #[test]
    fn a_header_that_any_write_is_tearing_is_unstable() {
        let good = encode(77, 4096, 5, 3);
        for at in 0..2 * COPY_LEN {
            let mut torn = good.clone();
            torn[at] ^= 1;
            let error = WalIndexHeader::decode(&torn).expect_err("copies differ");
            assert!(matches!(error, ShmError::Unstable { .. }), "byte {at}");
            // The same change in both copies: only the checksum can tell.
            let other = (at + COPY_LEN) % (2 * COPY_LEN);
            torn[other] ^= 1;
            let error = WalIndexHeader::decode(&torn).expect_err("checksum differs");
            assert!(matches!(error, ShmError::Unstable { .. }), "byte {at}");
        }
        assert!(WalIndexHeader::decode(&good[..135]).is_err());
        assert!(WalIndexHeader::decode(&[0; SHM_HEADER_LEN]).is_err());
    }

    #[test]
    fn no_page_size_means_no_frames() {
        assert_eq!(
            WalIndexHeader::decode(&encode(0, 0, 0, 0))
                .expect("empty")
                .page_size,
            None
        );
        assert!(WalIndexHeader::decode(&encode(0, 0, 1, 0)).is_err());
        assert!(WalIndexHeader::decode(&encode(0, 1000, 0, 0)).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = WalIndexHeader::decode(&bytes);
            let mut twice = bytes.clone();
            twice.truncate(COPY_LEN);
            let mut twice = twice.repeat(2);
            twice.resize(SHM_HEADER_LEN, 7);
            let _ = WalIndexHeader::decode(&twice);
        }
    }
}
