//! SQLite's cumulative WAL checksum: two 32-bit sums, in either byte order.
//!
//! ```text
//! for each pair of 32-bit words (x0, x1):   s0 += x0 + s1      modulo 2^32
//!                                           s1 += x1 + s0
//! ```
//!
//! Words are read in the byte order that the WAL's magic number names; the sums themselves are stored big-endian
//! in the WAL, and in the machine's byte order in the wal-index. The chain runs from the WAL header
//! over the first eight bytes and the page of every frame, so that a torn frame breaks everything behind it.
//!
//! It finds torn writes and stale frames, no adversary (HAZARDS W8): what leaves the file is proven otherwise.

/// A byte order of 32-bit words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ByteOrder {
    /// Low byte first.
    Little,
    /// High byte first.
    Big,
}

impl ByteOrder {
    /// The order of this machine: that of the wal-index, which only SQLite on this machine writes.
    pub const NATIVE: Self = if cfg!(target_endian = "big") {
        Self::Big
    } else {
        Self::Little
    };

    /// The number these bytes hold.
    pub const fn u32(self, bytes: [u8; 4]) -> u32 {
        match self {
            Self::Little => u32::from_le_bytes(bytes),
            Self::Big => u32::from_be_bytes(bytes),
        }
    }

    /// The bytes that hold this number.
    pub const fn bytes(self, number: u32) -> [u8; 4] {
        match self {
            Self::Little => number.to_le_bytes(),
            Self::Big => number.to_be_bytes(),
        }
    }
}

/// The running sums.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Checksum {
    /// The sum that the first word of a pair enters.
    pub s0: u32,
    /// The sum that the second word enters.
    pub s1: u32,
}

impl Checksum {
    /// What the WAL header's checksum starts from.
    pub const ZERO: Self = Self { s0: 0, s1: 0 };

    /// The sums after `bytes`, read as words in `order`.
    ///
    /// # Panics
    ///
    /// If the length is no multiple of 8: the sum is defined for pairs of words alone.
    #[must_use]
    pub fn update(self, order: ByteOrder, bytes: &[u8]) -> Self {
        let (pairs, rest) = bytes.as_chunks::<8>();
        assert!(
            rest.is_empty(),
            "the WAL checksum takes whole pairs of words"
        );
        match order {
            ByteOrder::Little => self.sum(pairs, u32::from_le_bytes),
            ByteOrder::Big => self.sum(pairs, u32::from_be_bytes),
        }
    }

    fn sum(self, pairs: &[[u8; 8]], word: impl Fn([u8; 4]) -> u32) -> Self {
        let Self { mut s0, mut s1 } = self;
        for [a, b, c, d, e, f, g, h] in pairs {
            s0 = s0.wrapping_add(word([*a, *b, *c, *d])).wrapping_add(s1);
            s1 = s1.wrapping_add(word([*e, *f, *g, *h])).wrapping_add(s0);
        }
        Self { s0, s1 }
    }

    /// The sums as the WAL stores them.
    #[expect(clippy::many_single_char_names, reason = "the bytes in order")]
    pub const fn from_be_bytes([a, b, c, d, e, f, g, h]: [u8; 8]) -> Self {
        Self {
            s0: u32::from_be_bytes([a, b, c, d]),
            s1: u32::from_be_bytes([e, f, g, h]),
        }
    }

    /// The bytes the WAL stores.
    pub fn to_be_bytes(self) -> [u8; 8] {
        let mut bytes = [0; 8];
        bytes[..4].copy_from_slice(&self.s0.to_be_bytes());
        bytes[4..].copy_from_slice(&self.s1.to_be_bytes());
        bytes
    }
}

impl std::fmt::Display for Checksum {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:08x}{:08x}", self.s0, self.s1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_follow_the_recurrence_in_both_orders() {
        let bytes = [1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 3, 0xff, 0xff, 0xff, 0xff];
        // s0 = 1, s1 = 2 + 1 = 3; s0 = 1 + 0x03000000 + 3, s1 = 3 + 0xffffffff + s0.
        let little = Checksum {
            s0: 0x0300_0004,
            s1: 0x0300_0006,
        };
        assert_eq!(Checksum::ZERO.update(ByteOrder::Little, &bytes), little);
        // s0 = 0x01000000, s1 = 0x03000000; s0 = 0x04000003, s1 = 0x07000002.
        let big = Checksum {
            s0: 0x0400_0003,
            s1: 0x0700_0002,
        };
        assert_eq!(Checksum::ZERO.update(ByteOrder::Big, &bytes), big);
    }

    #[test]
    fn pieces_sum_as_the_whole() {
        let bytes: Vec<u8> = (0..=255).collect();
        for order in [ByteOrder::Little, ByteOrder::Big] {
            let whole = Checksum::ZERO.update(order, &bytes);
            let (head, tail) = bytes.split_at(24);
            let pieces = Checksum::ZERO.update(order, head).update(order, tail);
            assert_eq!(pieces, whole);
            assert_eq!(Checksum::from_be_bytes(whole.to_be_bytes()), whole);
        }
    }

    #[test]
    #[should_panic(expected = "whole pairs")]
    fn half_a_pair_is_a_broken_promise_of_the_caller() {
        let _ = Checksum::ZERO.update(ByteOrder::Little, &[0; 12]);
    }
}
