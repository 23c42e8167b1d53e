//! Reversible deltas: the XOR of two states, as sparse runs.
//!
//! # Meaning
//!
//! The delta from state *a* to state *c* is `{n_a, n_c, i -> p_a(i) XOR p_c(i)}` over the pages that differ;
//! pages above a state's page count and the lock page are all zeros, page 1 is masked ([`crate::page`]).
//! Therefore the same delta steps forward and backward, and deltas in a row merge by XOR without any base.
//!
//! # Encoding of a delta's pages, version 1
//!
//! ```text
//! pages := page*                                    ascending, to the end of the bytes
//! page  := varint(number - number of the page before, first from 0)   >= 1
//!          varint(runs) run*                        >= 1 run
//! run   := varint(zero bytes since the run before) varint(length) length * byte     length >= 1
//! ```
//!
//! Run bytes are `old XOR new`. A run ends where an aligned word of eight bytes is zero: closer zeros cost
//! less inside a run than a new run does. Encodings of one delta are not unique; the one that was hashed
//! into the chain is kept for ever.
//!
//! # Guarantees
//!
//! Decoding takes untrusted bytes: no page outside `1..=max(n_before, n_after)`, no lock page, no run
//! beyond the page, no panic. All-zero pages never appear.

use std::collections::BTreeMap;

use crate::codec::{DecodeError, Reader, put_varint};
use crate::page::{PageCount, PageNo, PageSize, mask_page1};

const WORD: usize = 8;
/// Bytes compared at once: one cache line, which the compiler turns into vector instructions. Every page
/// size is a multiple of it.
const BLOCK: usize = 64;

/// A delta: what turns one state into another, in either direction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delta {
    /// Page size of both states.
    pub page_size: PageSize,
    /// Page count of the state it starts from.
    pub n_before: PageCount,
    /// Page count of the state it leads to.
    pub n_after: PageCount,
    /// The encoded pages.
    pub pages: Vec<u8>,
}

/// Appends pages to an encoded delta, in ascending order.
///
/// It keeps only the number of the last page, so that the bytes written so far may be moved elsewhere
/// between two calls: a delta of any size needs the memory of one page.
#[derive(Debug, Clone)]
pub struct DeltaEncoder {
    page_size: PageSize,
    last: u32,
    runs: Vec<(usize, usize)>,
    xor: Vec<u8>,
}

impl DeltaEncoder {
    /// An encoder for pages of `page_size`.
    pub fn new(page_size: PageSize) -> Self {
        Self {
            page_size,
            last: 0,
            runs: Vec::new(),
            xor: vec![0; page_size.bytes()],
        }
    }

    /// Begins the next delta, keeping the buffers.
    pub fn reset(&mut self) {
        self.last = 0;
    }

    /// Appends what `later` has encoded since it was reset, `encoded`, to what this one has: the pages of the same delta
    /// that follow its own. The bytes are those of one encoder that saw them all.
    ///
    /// # Panics
    ///
    /// If its pages do not follow, or `encoded` is not what it encoded.
    pub fn join(&mut self, later: &Self, encoded: &[u8], out: &mut Vec<u8>) {
        if encoded.is_empty() {
            return;
        }
        let mut reader = Reader::new(encoded);
        let first = reader.varint_u32("page").expect("what was encoded");
        assert!(
            first > self.last && later.last >= first,
            "pages of a delta ascend"
        );
        put_varint(out, u64::from(first - self.last));
        out.extend_from_slice(&encoded[encoded.len() - reader.remaining()..]);
        self.last = later.last;
    }

    /// Appends the change of `page` from `old` to `new`; answers whether there was any. Both must be one
    /// page long; page 1 must be masked already ([`mask_page1`]).
    ///
    /// # Panics
    ///
    /// If pages do not come in ascending order, or are not one page long.
    pub fn page(&mut self, page: PageNo, old: &[u8], new: &[u8], out: &mut Vec<u8>) -> bool {
        let size = self.page_size.bytes();
        assert!(
            old.len() == size && new.len() == size,
            "a delta is made of whole pages"
        );
        let mut finder = RunFinder::new(&mut self.runs);
        let (olds, _) = old.as_chunks();
        let (news, _) = new.as_chunks();
        let (xors, _) = self.xor.as_chunks_mut();
        for ((old, new), xor) in olds.iter().zip(news).zip(xors) {
            // Where nothing changed, `xor` keeps what an earlier page left: no run reaches there.
            if differs(old, new) {
                for (x, (a, b)) in xor.iter_mut().zip(old.iter().zip(new)) {
                    *x = a ^ b;
                }
                finder.block(xor);
            } else {
                finder.zeros();
            }
        }
        finder.finish();
        let xor = std::mem::take(&mut self.xor);
        let changed = self.emit(page, &xor, out);
        self.xor = xor;
        changed
    }

    /// Appends the change of `page` whose XOR of old and new is `xor`; answers whether there was any.
    ///
    /// # Panics
    ///
    /// If pages do not come in ascending order, or are not one page long.
    pub fn xor_page(&mut self, page: PageNo, xor: &[u8], out: &mut Vec<u8>) -> bool {
        assert_eq!(
            xor.len(),
            self.page_size.bytes(),
            "a delta is made of whole pages"
        );
        let mut finder = RunFinder::new(&mut self.runs);
        let (xors, _) = xor.as_chunks();
        for xor in xors {
            if differs(xor, &[0; BLOCK]) {
                finder.block(xor);
            } else {
                finder.zeros();
            }
        }
        finder.finish();
        self.emit(page, xor, out)
    }

    /// Appends the runs that were found in `xor`; answers whether there were any.
    fn emit(&mut self, page: PageNo, xor: &[u8], out: &mut Vec<u8>) -> bool {
        assert!(page.get() > self.last, "pages of a delta ascend");
        if self.runs.is_empty() {
            return false;
        }
        put_varint(out, u64::from(page.get() - self.last));
        put_varint(out, self.runs.len() as u64);
        let mut at = 0;
        for &(start, end) in &self.runs {
            put_varint(out, (start - at) as u64);
            put_varint(out, (end - start) as u64);
            out.extend_from_slice(&xor[start..end]);
            at = end;
        }
        self.last = page.get();
        true
    }
}

/// Whether two blocks differ anywhere: eight words at once, without a branch between them.
fn differs(a: &[u8; BLOCK], b: &[u8; BLOCK]) -> bool {
    let (a, b) = (a.as_chunks::<WORD>().0, b.as_chunks::<WORD>().0);
    let differ = |(a, b): (&[u8; WORD], &[u8; WORD])| word(*a) ^ word(*b);
    a.iter().zip(b).map(differ).fold(0, |any, word| any | word) != 0
}

/// A word whose lowest bits are its first byte, on every machine.
const fn word(bytes: [u8; WORD]) -> u64 {
    u64::from_le_bytes(bytes)
}

/// Finds the runs of a page, block by block: words that are not zero, in a row, trimmed to their first and
/// last byte that is not.
struct RunFinder<'r> {
    runs: &'r mut Vec<(usize, usize)>,
    at: usize,
    /// Where the run begins that is still open, and its last word.
    open: Option<(usize, u64)>,
}

impl<'r> RunFinder<'r> {
    fn new(runs: &'r mut Vec<(usize, usize)>) -> Self {
        runs.clear();
        Self {
            runs,
            at: 0,
            open: None,
        }
    }

    /// A block without a change.
    fn zeros(&mut self) {
        self.close();
        self.at += BLOCK;
    }

    fn block(&mut self, xor: &[u8; BLOCK]) {
        for bytes in xor.as_chunks::<WORD>().0 {
            let word = word(*bytes);
            if word == 0 {
                self.close();
            } else {
                let start = match self.open {
                    Some((start, _)) => start,
                    None => self.at + word.trailing_zeros() as usize / 8,
                };
                self.open = Some((start, word));
            }
            self.at += WORD;
        }
    }

    fn close(&mut self) {
        if let Some((start, last)) = self.open.take() {
            self.runs
                .push((start, self.at - last.leading_zeros() as usize / 8));
        }
    }

    fn finish(mut self) {
        self.close();
    }
}

/// One page of an encoded delta.
#[derive(Debug, Clone, Copy)]
pub struct PageDelta<'a> {
    /// Which page.
    pub page: PageNo,
    /// Its encoded runs, proven to lie inside the page.
    runs: &'a [u8],
}

impl<'a> PageDelta<'a> {
    /// Its runs as they are encoded, for [`apply_encoded`].
    pub const fn encoded(&self) -> &'a [u8] {
        self.runs
    }

    /// XORs the change into `image`, one page long. Applying it twice changes nothing.
    ///
    /// # Panics
    ///
    /// If `image` is shorter than a page of the delta: runs were proven against the page size.
    pub fn apply(&self, image: &mut [u8]) {
        apply_encoded(self.runs, image);
    }
}

/// XORs runs that were kept as [`PageDelta::encoded`] gave them into `image`, one page long.
///
/// # Panics
///
/// If these are no such runs, or `image` is shorter than a page of their delta.
pub fn apply_encoded(runs: &[u8], image: &mut [u8]) {
    let mut reader = Reader::new(runs);
    let mut at = 0;
    while !reader.is_empty() {
        let (skip, bytes) = next_run(&mut reader).expect("runs were proven when they were decoded");
        at += skip;
        let (end, target) = (at + bytes.len(), &mut image[at..]);
        for (x, y) in target.iter_mut().zip(bytes) {
            *x ^= y;
        }
        at = end;
    }
}

fn next_run<'a>(reader: &mut Reader<'a>) -> Result<(usize, &'a [u8]), DecodeError> {
    let limit = PageSize::MAX.bytes();
    let skip = reader.count("zero gap", limit)?;
    let offset = reader.offset();
    let bytes = reader.bytes("run", limit)?;
    if bytes.is_empty() {
        return Err(DecodeError::Invalid {
            offset,
            what: "empty run",
        });
    }
    Ok((skip, bytes))
}

/// Reads the pages of an encoded delta, proving each before it is handed out.
///
/// An error of kind [`DecodeError::Short`] leaves the reader where it was: a caller that streams may hand in
/// more bytes through [`PageReader::resume`].
#[derive(Debug, Clone)]
pub struct PageReader<'a> {
    reader: Reader<'a>,
    page_size: PageSize,
    last: u32,
    max: PageCount,
}

impl<'a> PageReader<'a> {
    /// Reads `pages`, the pages of a delta between states of `n_before` and `n_after` pages.
    pub fn new(
        pages: &'a [u8],
        page_size: PageSize,
        n_before: PageCount,
        n_after: PageCount,
    ) -> Self {
        Self::resume(pages, page_size, n_before.max(n_after), 0)
    }

    /// Reads on in a delta whose page `last` was the latest one read; `max` is the larger page count.
    pub fn resume(pages: &'a [u8], page_size: PageSize, max: PageCount, last: u32) -> Self {
        Self {
            reader: Reader::new(pages),
            page_size,
            last,
            max,
        }
    }

    /// Bytes read so far.
    pub fn consumed(&self) -> usize {
        self.reader.offset()
    }

    /// The number of the latest page read, 0 before the first.
    pub fn last(&self) -> u32 {
        self.last
    }

    /// The next page, or `None` at the end of the bytes.
    pub fn next_page(&mut self) -> Result<Option<PageDelta<'a>>, DecodeError> {
        if self.reader.is_empty() {
            return Ok(None);
        }
        let mut reader = self.reader.clone();
        let offset = reader.offset();
        let gap = reader.varint_u32("page gap")?;
        let page = (gap > 0)
            .then(|| self.last.checked_add(gap).and_then(PageNo::new))
            .flatten()
            .filter(|page| self.max.contains(*page) && *page != self.page_size.lock_page())
            .ok_or(DecodeError::Invalid {
                offset,
                what: "page number",
            })?;
        let runs_offset = reader.offset();
        let runs = reader.count("runs of a page", self.page_size.bytes())?;
        if runs == 0 {
            return Err(DecodeError::Invalid {
                offset: runs_offset,
                what: "page without runs",
            });
        }
        let start = reader.offset();
        let before = reader.rest();
        let mut at = 0;
        for _ in 0..runs {
            let offset = reader.offset();
            let (skip, bytes) = next_run(&mut reader)?;
            at += skip + bytes.len();
            if at > self.page_size.bytes() {
                return Err(DecodeError::Invalid {
                    offset,
                    what: "run beyond the page",
                });
            }
        }
        let runs = before.get(..reader.offset() - start).unwrap_or_default();
        self.reader = reader;
        self.last = page.get();
        Ok(Some(PageDelta { page, runs }))
    }
}

impl<'a> Iterator for PageReader<'a> {
    type Item = Result<PageDelta<'a>, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = self.next_page().transpose();
        if matches!(next, Some(Err(_))) {
            self.reader = Reader::new(&[]);
        }
        next
    }
}

impl Delta {
    /// A delta that changes nothing.
    pub const fn empty(page_size: PageSize, n: PageCount) -> Self {
        Self {
            page_size,
            n_before: n,
            n_after: n,
            pages: Vec::new(),
        }
    }

    /// Its pages, in ascending order.
    pub fn pages(&self) -> PageReader<'_> {
        PageReader::new(&self.pages, self.page_size, self.n_before, self.n_after)
    }

    /// The same change in the other direction.
    #[must_use]
    pub fn reversed(self) -> Self {
        Self {
            n_before: self.n_after,
            n_after: self.n_before,
            ..self
        }
    }

    /// The delta between two states given as functions from page numbers to images; both answer zeros
    /// above their page count. For tests and whole images.
    pub fn between<'p>(
        page_size: PageSize,
        (n_before, before): (PageCount, impl Fn(PageNo) -> &'p [u8]),
        (n_after, after): (PageCount, impl Fn(PageNo) -> &'p [u8]),
    ) -> Self {
        let mut encoder = DeltaEncoder::new(page_size);
        let mut pages = Vec::new();
        let zeros = vec![0; page_size.bytes()];
        for page in n_before.max(n_after).pages(page_size) {
            let image = |n: PageCount, at: &dyn Fn(PageNo) -> &'p [u8]| {
                let mut image = if n.contains(page) {
                    at(page).to_vec()
                } else {
                    zeros.clone()
                };
                if page == PageNo::ONE {
                    mask_page1(&mut image);
                }
                image
            };
            encoder.page(
                page,
                &image(n_before, &before),
                &image(n_after, &after),
                &mut pages,
            );
        }
        Self {
            page_size,
            n_before,
            n_after,
            pages,
        }
    }
}

/// Merges deltas in a row into one, by XOR, without any base.
///
/// Memory: one page for each page touched, bounded by the caller through [`Merge::bytes`].
#[derive(Debug)]
pub struct Merge {
    page_size: PageSize,
    n_before: PageCount,
    n_after: PageCount,
    pages: BTreeMap<PageNo, Box<[u8]>>,
}

impl Merge {
    /// An empty merge that starts at a state of `n` pages.
    pub const fn new(page_size: PageSize, n: PageCount) -> Self {
        Self {
            page_size,
            n_before: n,
            n_after: n,
            pages: BTreeMap::new(),
        }
    }

    /// Adds the encoded `pages` of a delta that starts where the last one ended.
    ///
    /// Fails, leaving the merge unusable, if the bytes are not a delta or do not start at the merge's end.
    pub fn add(
        &mut self,
        pages: &[u8],
        n_before: PageCount,
        n_after: PageCount,
    ) -> Result<(), DecodeError> {
        if n_before != self.n_after {
            return Err(DecodeError::Invalid {
                offset: 0,
                what: "delta that does not follow",
            });
        }
        let size = self.page_size.bytes();
        let mut reader = PageReader::new(pages, self.page_size, n_before, n_after);
        while let Some(page) = reader.next_page()? {
            let image = self
                .pages
                .entry(page.page)
                .or_insert_with(|| vec![0; size].into_boxed_slice());
            page.apply(image);
        }
        self.n_after = n_after;
        Ok(())
    }

    /// Bytes of page images held.
    pub fn bytes(&self) -> u64 {
        self.pages.len() as u64 * u64::from(self.page_size.get())
    }

    /// The page counts it leads from and to.
    pub const fn sizes(&self) -> (PageCount, PageCount) {
        (self.n_before, self.n_after)
    }

    /// The XOR of every page touched, ascending; some may be all zeros by now.
    pub fn xors(&self) -> impl Iterator<Item = (PageNo, &[u8])> {
        self.pages.iter().map(|(page, xor)| (*page, xor.as_ref()))
    }

    /// The merged delta.
    pub fn finish(self) -> Delta {
        let mut encoder = DeltaEncoder::new(self.page_size);
        let mut out = Vec::new();
        for (page, xor) in &self.pages {
            encoder.xor_page(*page, xor, &mut out);
        }
        Delta {
            page_size: self.page_size,
            n_before: self.n_before,
            n_after: self.n_after,
            pages: out,
        }
    }
}
