//! Pages: sizes, numbers, counts, the lock page, and the mask of page 1.
//!
//! A state of a database is a page count `n` and the images of pages `1..=n`. Every page above `n`, and the
//! lock page, counts as all zeros. So do the bytes of page 1 that SQLite rewrites at will
//! ([`MASKED_PAGE1`]): masking them is what lets two runs of one history agree byte for byte.

use std::ops::Range;

use crate::codec::DecodeError;

/// Byte offset of SQLite's lock page: 1 GiB (`PENDING_BYTE` of SQLite's `os.h`).
pub const PENDING_BYTE: u64 = 1 << 30;

/// Bytes of page 1 that count as zero everywhere in the log: the change counter (24..28), and the
/// version-valid-for number with the library version (92..100).
pub const MASKED_PAGE1: [Range<usize>; 2] = [24..28, 92..100];

/// Bytes of page 1 that hold the schema cookie: part of the log, but not of the state digest.
pub const SCHEMA_COOKIE: Range<usize> = 40..44;

/// A page size SQLite accepts: a power of two from 512 to 65,536 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageSize(u32);

impl PageSize {
    /// SQLite's default.
    pub const DEFAULT: Self = Self(4096);
    /// The largest there is.
    pub const MAX: Self = Self(65_536);

    /// The page size of `bytes` bytes, or `None` if SQLite has none such.
    pub const fn new(bytes: u32) -> Option<Self> {
        if bytes.is_power_of_two() && bytes >= 512 && bytes <= 65_536 {
            Some(Self(bytes))
        } else {
            None
        }
    }

    /// The page size from the database header's coding, where 1 means 65,536.
    pub const fn from_header(coded: u16) -> Option<Self> {
        if coded == 1 {
            Some(Self(65_536))
        } else {
            Self::new(coded as u32)
        }
    }

    /// Bytes of a page.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// Bytes of a page, for slices.
    pub const fn bytes(self) -> usize {
        self.0 as usize
    }

    /// The page that SQLite locks and never writes.
    pub const fn lock_page(self) -> PageNo {
        #[expect(clippy::cast_possible_truncation, reason = "2^30 / 512 + 1 fits")]
        PageNo((PENDING_BYTE / self.0 as u64) as u32 + 1)
    }

    /// Its one-byte form in our formats: the binary logarithm, 9 to 16.
    pub const fn log2(self) -> u8 {
        #[expect(clippy::cast_possible_truncation, reason = "at most 16")]
        {
            self.0.trailing_zeros() as u8
        }
    }

    /// The page size of a binary logarithm found at `offset`.
    pub fn from_log2(log2: u8, offset: usize) -> Result<Self, DecodeError> {
        1_u32
            .checked_shl(u32::from(log2))
            .and_then(Self::new)
            .ok_or(DecodeError::Invalid {
                offset,
                what: "page size",
            })
    }
}

/// The number of a page, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageNo(u32);

impl PageNo {
    /// The page with the database header.
    pub const ONE: Self = Self(1);

    /// The page with this number, or `None` for 0.
    pub const fn new(number: u32) -> Option<Self> {
        if number == 0 {
            None
        } else {
            Some(Self(number))
        }
    }

    /// Its number.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// Where the page starts in the database file.
    pub const fn offset(self, size: PageSize) -> u64 {
        (self.0 as u64 - 1) * size.0 as u64
    }
}

/// How many pages a database has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct PageCount(u32);

impl PageCount {
    /// The empty state.
    pub const ZERO: Self = Self(0);

    /// `pages` pages.
    pub const fn new(pages: u32) -> Self {
        Self(pages)
    }

    /// How many pages.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// The length of a database file of this many pages.
    pub const fn bytes(self, size: PageSize) -> u64 {
        self.0 as u64 * size.0 as u64
    }

    /// Whether `page` lies inside.
    pub const fn contains(self, page: PageNo) -> bool {
        page.0 <= self.0
    }

    /// The pages above this count, up to and including `upper`, without the lock page.
    pub fn grown_to(self, upper: Self, size: PageSize) -> impl Iterator<Item = PageNo> {
        let lock = size.lock_page();
        (self.0..upper.0)
            .filter_map(|below| PageNo::new(below + 1))
            .filter(move |page| *page != lock)
    }

    /// All pages of a database this long, without the lock page.
    pub fn pages(self, size: PageSize) -> impl Iterator<Item = PageNo> {
        Self::ZERO.grown_to(self, size)
    }
}

/// Zeroes the bytes of page 1 that the log does not carry.
pub fn mask_page1(page: &mut [u8]) {
    for range in MASKED_PAGE1 {
        if let Some(bytes) = page.get_mut(range) {
            bytes.fill(0);
        }
    }
}

/// Sets the bytes that [`mask_page1`] zeroed to what a materialised file carries: the low 32 bits of the
/// TxId as change counter and as version-valid-for. The library version stays zero.
pub fn unmask_page1(page: &mut [u8], txid: crate::TxId) {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the low 32 bits are what is wanted"
    )]
    let counter = (txid.get() as u32).to_be_bytes();
    for start in [24, 92] {
        if let Some(bytes) = page.get_mut(start..start + 4) {
            bytes.copy_from_slice(&counter);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lock_page_numbers_are_those_of_sqlite() {
        let lock = |bytes| PageSize::new(bytes).expect("valid").lock_page().get();
        assert_eq!(lock(512), 2_097_153);
        assert_eq!(lock(4096), 262_145);
        assert_eq!(lock(65_536), 16_385);
    }

    #[test]
    fn page_sizes_outside_sqlites_are_refused() {
        for bad in [0, 1, 256, 513, 1000, 131_072] {
            assert_eq!(PageSize::new(bad), None);
        }
        assert_eq!(PageSize::from_header(1), Some(PageSize::MAX));
        assert!(PageSize::from_log2(8, 0).is_err());
        assert!(PageSize::from_log2(200, 0).is_err());
        assert_eq!(
            PageSize::from_log2(PageSize::DEFAULT.log2(), 0),
            Ok(PageSize::DEFAULT)
        );
    }

    #[test]
    fn growth_leaves_the_lock_page_out() {
        let size = PageSize::MAX;
        let grown: Vec<u32> = PageCount::new(16_383)
            .grown_to(PageCount::new(16_386), size)
            .map(PageNo::get)
            .collect();
        assert_eq!(grown, [16_384, 16_386]);
    }
}
