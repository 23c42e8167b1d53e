//! The state digest: one 64-bit number for all pages of a state, changed in constant time a page.
//!
//! ```text
//! digest = XOR over i in 1..=n, lock page left out, of xxh3_64_with_seed(page_i, seed XOR i)
//!          XOR xxh3_64(le64(n) || le32(page size))
//! ```
//!
//! Page 1 is masked as everywhere ([`crate::page`]), and its schema cookie counts as zero too: a rewind sets
//! its own. The seed is random per database and inherited by forks. A page above `n` contributes 0.
//!
//! The digest finds accidents; the chain and BLAKE3 find adversaries. Equal digests of different TxIds are
//! normal: state A, then B, then A again.

use std::fmt;

use xxhash_rust::xxh3::{Xxh3, xxh3_64, xxh3_64_with_seed};

use crate::page::{MASKED_PAGE1, PageCount, PageNo, PageSize, SCHEMA_COOKIE};

/// The bytes of page 1 that can differ between equal states all lie before this offset.
const PAGE1_HEAD: usize = 100;
const _: () = assert!(MASKED_PAGE1[1].end == PAGE1_HEAD && SCHEMA_COOKIE.end < PAGE1_HEAD);

/// The seed of a database's digests.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct DigestSeed(u64);

impl DigestSeed {
    /// The seed with this number, which should be random.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Its number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// What page `page` with this image contributes to the digest.
    pub fn page(self, page: PageNo, image: &[u8]) -> PageHash {
        if page == PageNo::ONE {
            return PageHash(self.page1(image));
        }
        PageHash(xxh3_64_with_seed(image, self.0 ^ u64::from(page.get())))
    }

    fn page1(self, image: &[u8]) -> u64 {
        let (head, rest) = image.split_at(PAGE1_HEAD.min(image.len()));
        let mut masked = [0; PAGE1_HEAD];
        masked[..head.len()].copy_from_slice(head);
        for range in MASKED_PAGE1.into_iter().chain([SCHEMA_COOKIE]) {
            masked[range].fill(0);
        }
        let mut hasher = Xxh3::with_seed(self.0 ^ 1);
        hasher.update(&masked[..head.len()]);
        hasher.update(rest);
        hasher.digest()
    }
}

impl fmt::Debug for DigestSeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DigestSeed({:016x})", self.0)
    }
}

/// What one page contributes to a digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PageHash(u64);

impl PageHash {
    /// What a page above the page count contributes.
    pub const ABSENT: Self = Self(0);

    /// What the pages of both contribute together.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 ^ other.0)
    }
}

/// The digest of a state, or, while pages are still being added, of part of one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Digest(u64);

impl Digest {
    /// The digest of the state with no pages.
    pub fn empty(size: PageSize) -> Self {
        Self(size_term(PageCount::ZERO, size))
    }

    /// The digest with this number.
    pub const fn from_u64(number: u64) -> Self {
        Self(number)
    }

    /// Its number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The digest after one page changed from `old` to `new`.
    #[must_use]
    pub const fn replace(self, old: PageHash, new: PageHash) -> Self {
        Self(self.0 ^ old.0 ^ new.0)
    }

    /// The digest after the page count changed, beside the pages that came or went.
    #[must_use]
    pub fn resize(self, from: PageCount, to: PageCount, size: PageSize) -> Self {
        Self(self.0 ^ size_term(from, size) ^ size_term(to, size))
    }

    /// The digest of a whole state whose page `i` contributes `hash(i)`; the lock page is not asked for.
    pub fn of<E>(
        size: PageSize,
        n: PageCount,
        mut hash: impl FnMut(PageNo) -> Result<PageHash, E>,
    ) -> Result<Self, E> {
        let start = Self::empty(size).resize(PageCount::ZERO, n, size);
        n.pages(size).try_fold(start, |digest, page| {
            Ok(digest.replace(PageHash::ABSENT, hash(page)?))
        })
    }
}

fn size_term(n: PageCount, size: PageSize) -> u64 {
    let mut bytes = [0; 12];
    bytes[..8].copy_from_slice(&u64::from(n.get()).to_le_bytes());
    bytes[8..].copy_from_slice(&size.get().to_le_bytes());
    xxh3_64(&bytes)
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    const SEED: DigestSeed = DigestSeed::new(7);
    const SIZE: PageSize = PageSize::DEFAULT;

    fn full(pages: &[Vec<u8>]) -> Digest {
        let n = PageCount::new(u32::try_from(pages.len()).expect("few"));
        Digest::of(SIZE, n, |page| {
            Ok::<_, Infallible>(SEED.page(page, &pages[page.get() as usize - 1]))
        })
        .expect("infallible")
    }

    #[test]
    fn incremental_change_equals_the_full_digest() {
        let mut pages = vec![vec![1; 4096], vec![2; 4096]];
        let before = full(&pages);
        let old = SEED.page(PageNo::new(2).expect("2"), &pages[1]);
        pages[1] = vec![9; 4096];
        pages.push(vec![0; 4096]);
        let new = SEED.page(PageNo::new(2).expect("2"), &pages[1]);
        let grown = SEED.page(PageNo::new(3).expect("3"), &pages[2]);
        let after = before
            .replace(old, new)
            .replace(PageHash::ABSENT, grown)
            .resize(PageCount::new(2), PageCount::new(3), SIZE);
        assert_eq!(after, full(&pages));
        assert_ne!(after, before);
    }

    #[test]
    fn masked_bytes_and_cookie_do_not_count_and_all_others_do() {
        let page = vec![0; 4096];
        for at in 0..=PAGE1_HEAD {
            let mut other = page.clone();
            other[at] = 1;
            let masked =
                (24..28).contains(&at) || (40..44).contains(&at) || (92..100).contains(&at);
            assert_eq!(
                SEED.page(PageNo::ONE, &page) == SEED.page(PageNo::ONE, &other),
                masked,
                "byte {at}"
            );
        }
    }

    #[test]
    fn page_1_hashes_as_its_masked_bytes_do_in_one_piece() {
        for len in [512, 4096, 65_536] {
            let image: Vec<u8> = (0..len)
                .map(|i| u8::try_from(i % 251).expect("below"))
                .collect();
            let mut masked = image.clone();
            for range in [24..28, 40..44, 92..100] {
                if let Some(bytes) = masked.get_mut(range) {
                    bytes.fill(0);
                }
            }
            let whole = PageHash(xxh3_64_with_seed(&masked, 7 ^ 1));
            assert_eq!(SEED.page(PageNo::ONE, &image), whole, "{len} bytes");
        }
    }

    #[test]
    fn equal_pages_in_other_places_or_under_another_seed_differ() {
        let page = vec![3; 4096];
        let two = PageNo::new(2).expect("2");
        let three = PageNo::new(3).expect("3");
        assert_ne!(SEED.page(two, &page), SEED.page(three, &page));
        assert_ne!(SEED.page(two, &page), DigestSeed::new(8).page(two, &page));
    }
}
