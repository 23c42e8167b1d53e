//! Frames: one page image each, behind the WAL header.
//!
//! A frame is a header of 24 bytes and one page. All numbers are big-endian:
//!
//! | offset | | |
//! | --- | --- | --- |
//! | 0 | u32 | page number, from 1 |
//! | 4 | u32 | in a commit frame the pages of the database after the commit, else 0 |
//! | 8 | 8 | salts of the WAL header |
//! | 16 | 8 | [`Checksum`]: the chain so far, over bytes 0..8 and the page |
//!
//! Frame `f`, from 1, starts at `32 + (f - 1) * (24 + page size)`. Frame numbers have 32 bits, offsets more
//! than that (HAZARDS W28).
//!
//! Inside a transaction frames are not append-only, and until its commit they may carry zeroed salts and
//! checksums (HAZARDS W3): nothing behind the last commit frame means anything.

use std::fmt;

use crate::checksum::{ByteOrder, Checksum};
use crate::codec::DecodeError;
use crate::header::{Salts, WAL_HEADER_LEN};
use crate::page::{PageCount, PageNo, PageSize};

/// Bytes of a frame's header.
pub const FRAME_HEADER_LEN: usize = 24;
const _: () = assert!(FRAME_HEADER_LEN == 4 + 4 + 8 + 8);

/// Bytes of a frame of pages of this size.
pub const fn frame_len(page_size: PageSize) -> usize {
    FRAME_HEADER_LEN + page_size.bytes()
}

/// The number of a frame in its WAL life, from 1. [`FrameNo::ZERO`] stands before the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct FrameNo(u32);

impl FrameNo {
    /// Before the first frame.
    pub const ZERO: Self = Self(0);
    /// The first frame.
    pub const FIRST: Self = Self(1);

    /// The frame with this number.
    pub const fn new(number: u32) -> Self {
        Self(number)
    }

    /// Its number.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// The following frame, or `None` after the last of the four billion.
    pub const fn next(self) -> Option<Self> {
        match self.0.checked_add(1) {
            Some(n) => Some(Self(n)),
            None => None,
        }
    }

    /// How many frames lie after `earlier` up to and including this one; `None` when `earlier` is later.
    pub const fn since(self, earlier: Self) -> Option<u32> {
        self.0.checked_sub(earlier.0)
    }

    /// Where the frame starts. For [`FrameNo::ZERO`], where the first one does.
    pub const fn offset(self, page_size: PageSize) -> u64 {
        WAL_HEADER_LEN as u64 + self.0.saturating_sub(1) as u64 * frame_len(page_size) as u64
    }

    /// Where the frame's page starts.
    pub const fn image_offset(self, page_size: PageSize) -> u64 {
        self.offset(page_size) + FRAME_HEADER_LEN as u64
    }

    /// Where the frame ends: the length of a WAL whose last frame it is.
    pub const fn end(self, page_size: PageSize) -> u64 {
        WAL_HEADER_LEN as u64 + self.0 as u64 * frame_len(page_size) as u64
    }
}

impl fmt::Display for FrameNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A frame's header, its fields well-formed; salts and checksum are the reader's to compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// Which page.
    pub page: PageNo,
    /// In a commit frame, the pages after the commit.
    pub commit: Option<PageCount>,
    /// The salts it was written under.
    pub salts: Salts,
    /// The chain up to and including this frame.
    pub checksum: Checksum,
}

impl FrameHeader {
    /// Reads a header.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let fields: &[u8; FRAME_HEADER_LEN] = bytes.first_chunk().ok_or(DecodeError::Short {
            offset: 0,
            need: FRAME_HEADER_LEN,
            have: bytes.len(),
        })?;
        let word = |at: usize| {
            let mut word = [0; 4];
            word.copy_from_slice(&fields[at..at + 4]);
            u32::from_be_bytes(word)
        };
        let pair = |at: usize| {
            let mut pair = [0; 8];
            pair.copy_from_slice(&fields[at..at + 8]);
            pair
        };
        let size = word(4);
        Ok(Self {
            page: PageNo::new(word(0)).ok_or(DecodeError::Invalid {
                offset: 0,
                what: "page number",
            })?,
            commit: (size > 0).then(|| PageCount::new(size)),
            salts: Salts::from_bytes(pair(8)),
            checksum: Checksum::from_be_bytes(pair(16)),
        })
    }

    /// The header of the frame that follows one whose chain is `before`.
    pub fn chained(
        page: PageNo,
        commit: Option<PageCount>,
        salts: Salts,
        image: &[u8],
        (order, before): (ByteOrder, Checksum),
    ) -> Self {
        let mut header = Self {
            page,
            commit,
            salts,
            checksum: before,
        };
        header.checksum = before.update(order, &header.summed()).update(order, image);
        header
    }

    fn summed(&self) -> [u8; 8] {
        let mut bytes = [0; 8];
        bytes[..4].copy_from_slice(&self.page.get().to_be_bytes());
        bytes[4..].copy_from_slice(&self.commit.unwrap_or_default().get().to_be_bytes());
        bytes
    }

    /// Whether the frame with this header and `image` continues the chain `before`.
    pub fn continues(&self, image: &[u8], order: ByteOrder, before: Checksum) -> bool {
        before.update(order, &self.summed()).update(order, image) == self.checksum
    }

    /// Its bytes.
    pub fn encode(&self) -> [u8; FRAME_HEADER_LEN] {
        let mut bytes = [0; FRAME_HEADER_LEN];
        bytes[..8].copy_from_slice(&self.summed());
        bytes[8..16].copy_from_slice(&self.salts.to_bytes());
        bytes[16..].copy_from_slice(&self.checksum.to_be_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_exceed_four_gigabytes_without_wrapping() {
        let last = FrameNo::new(u32::MAX);
        assert_eq!(FrameNo::FIRST.offset(PageSize::DEFAULT), 32);
        assert_eq!(
            FrameNo::new(2).image_offset(PageSize::DEFAULT),
            32 + 4120 + 24
        );
        assert_eq!(
            last.end(PageSize::MAX),
            32 + u64::from(u32::MAX) * (65_536 + 24)
        );
        assert_eq!(last.end(PageSize::MAX), last.offset(PageSize::MAX) + 65_560);
        assert_eq!(last.next(), None);
    }

    #[test]
    fn a_size_of_zero_marks_no_commit_and_page_zero_is_refused() {
        let mut bytes = [0; FRAME_HEADER_LEN];
        assert!(FrameHeader::decode(&bytes).is_err());
        bytes[3] = 1;
        let header = FrameHeader::decode(&bytes).expect("page 1");
        assert_eq!((header.page, header.commit), (PageNo::ONE, None));
        assert_eq!(header.encode(), bytes);
        assert!(FrameHeader::decode(&bytes[..23]).is_err());
    }
}
