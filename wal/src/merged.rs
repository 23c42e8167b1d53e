//! Deltas of many commits merged by page, in memory.
//!
//! They are kept as they come, sparse, behind each other; what a page's XOR is comes out when it is asked for. How much
//! memory they may take is for the owner to bound: [`MergedDeltas::fold`] leaves one delta a page. While it runs, what
//! comes out is held beside what there was.

use std::collections::HashMap;

use crate::delta::{DeltaEncoder, PageDelta, PageReader, apply_encoded};
use crate::page::{PageCount, PageNo, PageSize};
use crate::parallel::both;

/// No delta of a page came before this one.
const NONE: u32 = u32::MAX;
/// What stands before the runs of a delta: where the one of its page before stands and its length, four bytes each.
const HEAD: usize = 8;
/// What a page takes beside its deltas: its entry of 8 bytes and one of the map's own, in a map that is between 7/16 and
/// 7/8 full.
const ENTRY: usize = 20;

/// Deltas behind each other; those of one page are a chain.
#[derive(Debug, Default)]
pub struct MergedDeltas {
    /// Of each delta its head and its encoded runs.
    bytes: Vec<u8>,
    /// Where the newest delta of each page stands.
    newest: HashMap<PageNo, u32>,
}

impl MergedDeltas {
    /// The most bytes that may be held: as many as four bytes can tell apart.
    pub const BYTES_MAX: usize = u32::MAX as usize - 1;

    /// Bytes held, roughly.
    pub fn bytes(&self) -> usize {
        self.bytes.len() + ENTRY * self.newest.len()
    }

    /// The most bytes held once `delta` was added.
    pub fn bytes_with(&self, delta: &PageDelta<'_>) -> usize {
        self.bytes() + ENTRY + HEAD + delta.encoded().len()
    }

    /// Adds a delta.
    ///
    /// # Panics
    ///
    /// If more than [`MergedDeltas::BYTES_MAX`] would be held then.
    pub fn add(&mut self, delta: &PageDelta<'_>) {
        self.push(delta.page, delta.encoded());
    }

    fn push(&mut self, page: PageNo, runs: &[u8]) {
        assert!(self.bytes.len() + HEAD + runs.len() <= Self::BYTES_MAX);
        let at = u32::try_from(self.bytes.len()).expect("it was just compared");
        let len = u32::try_from(runs.len()).expect("it was just compared");
        let before = self.newest.insert(page, at).unwrap_or(NONE);
        self.bytes.extend_from_slice(&before.to_le_bytes());
        self.bytes.extend_from_slice(&len.to_le_bytes());
        self.bytes.extend_from_slice(runs);
    }

    fn word(&self, at: usize) -> u32 {
        let bytes = self.bytes.get(at..).and_then(<[u8]>::first_chunk);
        u32::from_le_bytes(*bytes.expect("an offset that was written"))
    }

    /// The runs of the delta at `at`, and where the one of its page before stands.
    fn delta(&self, at: u32) -> (&[u8], u32) {
        let at = at as usize;
        let (before, len) = (self.word(at), self.word(at + 4) as usize);
        let runs = self.bytes.get(at + HEAD..at + HEAD + len);
        (runs.expect("a delta that was written"), before)
    }

    fn apply_from(&self, newest: u32, image: &mut [u8]) {
        let mut next = newest;
        while next != NONE {
            let (runs, before) = self.delta(next);
            apply_encoded(runs, image);
            next = before;
        }
    }

    /// XORs everything of `page` into `image`, one page long; false if there is nothing.
    pub fn apply(&self, page: PageNo, image: &mut [u8]) -> bool {
        let newest = self.newest.get(&page).copied();
        self.apply_from(newest.unwrap_or(NONE), image);
        newest.is_some()
    }

    /// The same, and forgets the page. Its bytes are given back with the rest.
    pub fn take(&mut self, page: PageNo, image: &mut [u8]) -> bool {
        let newest = self.newest.remove(&page);
        self.apply_from(newest.unwrap_or(NONE), image);
        newest.is_some()
    }

    /// Every page that has a delta, ascending.
    pub fn pages(&self) -> Vec<PageNo> {
        let mut pages: Vec<PageNo> = self.newest.keys().copied().collect();
        pages.sort_unstable();
        pages
    }

    /// The runs of the newest delta of `page`: of all of them, if it was folded last.
    pub fn newest_runs(&self, page: PageNo) -> Option<&[u8]> {
        self.newest.get(&page).map(|at| self.delta(*at).0)
    }

    /// Makes of each page's deltas one; pages whose deltas come to nothing are left out.
    pub fn fold(&mut self, size: PageSize) {
        let pages = self.pages();
        let (first, second) = pages.split_at(pages.len() / 2);
        let (mut folded, second) = both(
            || self.folded_of(first, size),
            || self.folded_of(second, size),
        );
        folded.append(&second);
        *self = folded;
    }

    fn folded_of(&self, pages: &[PageNo], size: PageSize) -> Self {
        let mut folded = Self::default();
        let mut encoder = DeltaEncoder::new(size);
        let (mut xor, mut encoded) = (vec![0; size.bytes()], Vec::new());
        for page in pages {
            xor.fill(0);
            self.apply(*page, &mut xor);
            encoder.reset();
            encoded.clear();
            if encoder.xor_page(*page, &xor, &mut encoded) {
                let n = PageCount::new(page.get());
                let delta = PageReader::new(&encoded, size, n, n).next_page();
                let delta = delta.ok().flatten().expect("what was just encoded");
                folded.add(&delta);
            }
        }
        folded
    }

    /// Adds what was folded of other pages: of each there is one delta, which names none before it.
    fn append(&mut self, folded: &Self) {
        let moved = u32::try_from(self.bytes.len()).expect("no more than before they were folded");
        let newest = folded.newest.iter().map(|(page, at)| (*page, moved + at));
        self.newest.extend(newest);
        self.bytes.extend_from_slice(&folded.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: usize = 512;

    fn page(n: u32) -> PageNo {
        PageNo::new(n).expect("not 0")
    }

    fn add(merged: &mut MergedDeltas, number: u32, xor: &[u8]) {
        let (mut encoded, n) = (Vec::new(), PageCount::new(number));
        let size = PageSize::new(512).expect("512");
        DeltaEncoder::new(size).xor_page(page(number), xor, &mut encoded);
        let delta = PageReader::new(&encoded, size, n, n).next_page();
        let delta = delta.expect("encoded").expect("it differs");
        let most = merged.bytes_with(&delta);
        merged.add(&delta);
        assert!(merged.bytes() == most || merged.bytes() + ENTRY == most);
    }

    #[test]
    fn each_page_is_the_xor_of_its_deltas_folded_or_not() {
        let mut merged = MergedDeltas::default();
        let mut expected = vec![[0_u8; SIZE]; 9];
        for round in 0..200_usize {
            let mut xor = [0_u8; SIZE];
            xor[round * 7 % SIZE] = u8::try_from(round % 255 + 1).expect("small");
            xor[round * 31 % SIZE] ^= 0x55;
            let number = round * round % 9;
            expected[number]
                .iter_mut()
                .zip(&xor)
                .for_each(|(a, b)| *a ^= b);
            add(&mut merged, u32::try_from(number + 1).expect("small"), &xor);
            if round % 50 == 49 {
                let before = merged.bytes();
                merged.fold(PageSize::new(512).expect("512"));
                assert!(merged.bytes() < before, "{round}");
            }
        }
        let pages = merged.pages();
        assert!(pages.is_sorted() && !pages.is_empty());
        for (number, expected) in (1..).zip(&expected) {
            let held = pages.contains(&page(number));
            let mut image = [0; SIZE];
            assert_eq!(merged.apply(page(number), &mut image), held);
            assert_eq!(&image, expected);
            let mut runs = [0; SIZE];
            if let Some(of_all) = merged.newest_runs(page(number)) {
                apply_encoded(of_all, &mut runs);
            }
            assert_eq!(&runs, expected);
            let mut taken = [0; SIZE];
            assert_eq!(merged.take(page(number), &mut taken), held);
            assert_eq!(&taken, expected);
            assert!(!merged.take(page(number), &mut taken));
        }
        assert!(merged.pages().is_empty());
    }

    #[test]
    fn what_comes_to_nothing_is_folded_away() {
        let mut merged = MergedDeltas::default();
        for _ in 0..2 {
            add(&mut merged, 3, &[1; SIZE]);
        }
        merged.fold(PageSize::new(512).expect("512"));
        assert_eq!(merged.bytes(), 0);
    }
}
