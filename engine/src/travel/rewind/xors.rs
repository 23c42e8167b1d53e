//! Merged deltas: for each page that differs, the XOR of two states.
//!
//! Deltas are merged in memory ([`MergedDeltas`]). Once they are more than a bound they are folded, each page to one;
//! what then still takes much memory goes, by page, to a file without a name in the scratch folder, so that any number of
//! commits can be merged. The file is sealed with a key that is drawn for it and stands nowhere: what of it is left on the
//! disk is noise once it is dropped.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use tidelog_archive::SystemEntropy;
use tidelog_archive::env::Entropy as _;
use tidelog_archive::restore::PageSink;
use tidelog_archive::seal::{DataKey, FileSealer};
use tidelog_wal::delta::{PageDelta, apply_encoded};
use tidelog_wal::merged::MergedDeltas;
use tidelog_wal::{PageNo, PageSize};

/// Bytes of deltas held in memory.
const MEMORY_MAX: usize = 64 << 20;
/// Bytes that are sealed as one piece, roughly.
const PIECE: usize = 64 << 10;

/// XORs by page.
#[derive(Debug)]
pub(crate) struct PageXors {
    size: PageSize,
    folder: PathBuf,
    bytes_max: usize,
    memory: MergedDeltas,
    spills: Vec<Spill>,
}

/// Folded deltas in a file, by page.
#[derive(Debug)]
struct Spill {
    file: File,
    sealer: FileSealer,
    /// Where each piece begins in the file, and the end of the last.
    pieces: Vec<u64>,
    /// Of each page, ascending: its piece, and where in it its runs lie.
    index: Vec<(PageNo, u32, std::ops::Range<u32>)>,
    /// The piece that was read last: pages are mostly asked for in order.
    read: Mutex<Option<(u32, Vec<u8>)>>,
}

/// A length or a number of what is in memory, or comes from there.
fn small(value: usize) -> u32 {
    u32::try_from(value).expect("merged deltas are a few MiB at a time")
}

impl Spill {
    fn create(folder: &Path, folded: &MergedDeltas) -> io::Result<Self> {
        std::fs::create_dir_all(folder)?;
        let (entropy, file) = (&SystemEntropy, tempfile::tempfile_in(folder)?);
        let key = DataKey::draw(entropy);
        let mut spill = Self {
            file,
            sealer: FileSealer::new(&key, &entropy.bytes16()),
            pieces: vec![0],
            index: Vec::new(),
            read: Mutex::default(),
        };
        let mut piece = Vec::new();
        for page in folded.pages() {
            let runs = folded.newest_runs(page).unwrap_or_default();
            let from = small(piece.len());
            piece.extend_from_slice(runs);
            let number = small(spill.pieces.len() - 1);
            spill.index.push((page, number, from..small(piece.len())));
            if piece.len() >= PIECE {
                spill.write(&mut piece)?;
            }
        }
        if !piece.is_empty() {
            spill.write(&mut piece)?;
        }
        Ok(spill)
    }

    fn write(&mut self, piece: &mut Vec<u8>) -> io::Result<()> {
        let number = self.pieces.len() - 1;
        let at = self.pieces.last().copied().unwrap_or(0);
        self.sealer.seal(number as u64, at, piece);
        self.file.write_all_at(piece, at)?;
        self.pieces.push(at + piece.len() as u64);
        piece.clear();
        Ok(())
    }

    fn open(&self, number: u32) -> io::Result<Vec<u8>> {
        let lost = || {
            let what = format!("piece {number} of a merged delta is not what was written");
            io::Error::new(io::ErrorKind::InvalidData, what)
        };
        let piece = |number: usize| self.pieces.get(number).copied().ok_or_else(lost);
        let (at, end) = (piece(number as usize)?, piece(number as usize + 1)?);
        let len = usize::try_from(end - at).map_err(|_| lost())?;
        let mut stored = vec![0; len];
        self.file.read_exact_at(&mut stored, at)?;
        self.sealer
            .open(u64::from(number), at, &stored)
            .ok_or_else(lost)
    }

    /// XORs what there is of `page` into `xor`; false if there is nothing.
    fn apply(&self, page: PageNo, xor: &mut [u8]) -> io::Result<bool> {
        let found = self.index.binary_search_by_key(&page, |entry| entry.0);
        let Some((_, number, runs)) = found.ok().and_then(|at| self.index.get(at)) else {
            return Ok(false);
        };
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let runs = runs.start as usize..runs.end as usize;
        let piece = match &mut *read {
            Some((held, piece)) if held == number => piece,
            other => &other.insert((*number, self.open(*number)?)).1,
        };
        let runs = piece.get(runs);
        apply_encoded(runs.expect("as it was written, or it had not opened"), xor);
        Ok(true)
    }
}

impl PageXors {
    /// No page differs; what does not fit into memory goes to `folder`.
    pub(crate) fn new(size: PageSize, folder: PathBuf) -> Self {
        Self {
            size,
            folder,
            bytes_max: MEMORY_MAX,
            memory: MergedDeltas::default(),
            spills: Vec::new(),
        }
    }

    /// Every page that may differ, ascending.
    pub(crate) fn pages(&self) -> Vec<PageNo> {
        let mut pages = self.memory.pages();
        if !self.spills.is_empty() {
            let spilled = self.spills.iter().flat_map(|spill| &spill.index);
            pages.extend(spilled.map(|entry| entry.0));
            pages.sort_unstable();
            pages.dedup();
        }
        pages
    }

    /// Fills `xor` with the XOR of `page`: zeros if it does not differ. Answers whether it may.
    pub(crate) fn load(&self, page: PageNo, xor: &mut [u8]) -> io::Result<bool> {
        xor.fill(0);
        self.apply(page, xor)
    }

    /// XORs the XOR of `page` into `image`; false if it does not differ.
    pub(crate) fn apply(&self, page: PageNo, image: &mut [u8]) -> io::Result<bool> {
        let mut any = self.memory.apply(page, image);
        for spill in &self.spills {
            any |= spill.apply(page, image)?;
        }
        Ok(any)
    }

    /// Adds one page of a delta.
    pub(crate) fn add(&mut self, delta: &PageDelta<'_>) -> io::Result<()> {
        if self.memory.bytes_with(delta) > self.bytes_max {
            self.fold()?;
        }
        self.memory.add(delta);
        Ok(())
    }

    /// Makes room: half of it at least.
    fn fold(&mut self) -> io::Result<()> {
        self.memory.fold(self.size);
        if self.memory.bytes() > self.bytes_max / 2 {
            self.spills.push(Spill::create(&self.folder, &self.memory)?);
            self.memory = MergedDeltas::default();
        }
        Ok(())
    }
}

/// Takes deltas, as merging hands them over, and nothing else.
impl PageSink for PageXors {
    fn add(&mut self, page: &PageDelta<'_>) -> io::Result<bool> {
        Self::add(self, page).map(|()| true)
    }

    fn write(&mut self, _offset: u64, _bytes: &[u8]) -> io::Result<()> {
        Err(io::Error::other("a merged delta takes no pages"))
    }

    fn read(&self, _offset: u64, _buf: &mut [u8]) -> io::Result<()> {
        Err(io::Error::other("a merged delta is made of no pages"))
    }

    fn set_len(&mut self, _len: u64) -> io::Result<()> {
        Err(io::Error::other("a merged delta has no length"))
    }

    fn finish(&mut self) -> io::Result<()> {
        Err(io::Error::other("a merged delta is not a state"))
    }
}

#[cfg(test)]
mod tests {
    use tidelog_wal::PageCount;
    use tidelog_wal::delta::{DeltaEncoder, PageReader};

    use super::*;

    /// Adds the delta of one page whose XOR is `xor`.
    fn add(xors: &mut PageXors, page: PageNo, xor: &[u8]) {
        let (mut encoded, n) = (Vec::new(), PageCount::new(page.get()));
        DeltaEncoder::new(xors.size).xor_page(page, xor, &mut encoded);
        let delta = PageReader::new(&encoded, xors.size, n, n).next_page();
        let delta = delta.expect("encoded").expect("it differs");
        xors.add(&delta).expect("added");
    }

    fn page(n: u32) -> PageNo {
        PageNo::new(n).expect("not 0")
    }

    fn in_folder(folder: &Path, bytes_max: usize) -> PageXors {
        let size = PageSize::new(512).expect("512");
        let mut xors = PageXors::new(size, folder.join("scratch"));
        xors.bytes_max = bytes_max;
        xors
    }

    #[test]
    fn what_is_folded_and_spilled_comes_to_the_same() {
        // Goal: however little fits into memory, a page's XOR is that of all its deltas. Method: random deltas of few
        // pages beside an array that holds each page's XOR, with bounds from a few deltas to everything.
        let folder = tempfile::tempdir().expect("a folder");
        for bytes_max in [64, 1_000, 20_000, 1 << 20] {
            let mut xors = in_folder(folder.path(), bytes_max);
            let mut expected = vec![[0_u8; 512]; 50];
            let mut chance = 1_u64;
            let mut draw = |below: u64| {
                chance = chance
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                (chance >> 33) % below
            };
            for _ in 0..2_000 {
                let n = usize::try_from(draw(50)).expect("small");
                let mut xor = [0_u8; 512];
                for _ in 0..=draw(20) {
                    let at = usize::try_from(draw(512)).expect("small");
                    xor[at] = u8::try_from(draw(255)).expect("small") + 1;
                }
                expected[n].iter_mut().zip(&xor).for_each(|(a, b)| *a ^= b);
                add(&mut xors, page(u32::try_from(n + 1).expect("small")), &xor);
            }
            assert_eq!(bytes_max > 100_000, xors.spills.is_empty(), "{bytes_max}");
            let mut held = [7; 512];
            for (n, expected) in (1..).zip(&expected) {
                assert!(xors.load(page(n), &mut held).expect("loaded"));
                assert_eq!(&held, expected, "page {n}, {bytes_max} bytes");
            }
            assert_eq!(xors.pages(), (1..=50).map(page).collect::<Vec<_>>());
            assert!(!xors.load(page(51), &mut held).expect("loaded"));
            assert_eq!(held, [0; 512]);
        }
    }

    #[test]
    fn what_comes_to_nothing_takes_no_memory() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut xors = in_folder(folder.path(), 2_000);
        for round in 0..1_000_u32 {
            let mut xor = [0; 512];
            xor[0] = 1;
            add(&mut xors, page(round / 2 % 10 + 1), &xor);
        }
        assert!(xors.spills.is_empty(), "{:?}", xors.spills.len());
    }

    #[test]
    fn a_spill_shows_nothing_and_takes_nothing_for_a_page_that_is_none() {
        // Goal: what a merge leaves on the disk is noise. Method: the raw file is searched for the planted text; then
        // a byte of it is changed, and the file of another spill put in its place.
        let folder = tempfile::tempdir().expect("a folder");
        let planted = *b"a planted text of a tenant's row";
        let spilled = |round: u8| {
            let mut xors = in_folder(folder.path(), 100);
            for n in 1..=4 {
                let mut held = vec![round; 512];
                held[100..132].copy_from_slice(&planted);
                add(&mut xors, page(n), &held);
            }
            xors
        };
        let raw = |xors: &PageXors| {
            let file = &xors.spills.first().expect("it spilled").file;
            let len = file.metadata().expect("metadata").len();
            let mut bytes = vec![0; usize::try_from(len).expect("small")];
            file.read_exact_at(&mut bytes, 0).expect("the raw file");
            bytes
        };
        let (xors, other) = (spilled(1), spilled(2));
        let (first, second) = (raw(&xors), raw(&other));
        for bytes in [&first, &second] {
            assert!(bytes.len() > 512);
            let shows = |text: &[u8]| bytes.windows(text.len()).any(|window| window == text);
            assert!(!shows(&planted) && !shows(&[1; 64]) && !shows(&[2; 64]));
        }
        let mut held = vec![0; 512];
        assert!(xors.load(page(1), &mut held).expect("loaded"));
        assert_eq!((held[0], &held[100..132]), (1, &planted[..]));
        let spill = xors.spills.first().expect("it spilled");
        let mut flipped = first.clone();
        flipped[7] ^= 1;
        for bytes in [&second, &flipped] {
            spill.file.write_all_at(bytes, 0).expect("changed");
            *spill.read.lock().expect("nobody else") = None;
            let refused = xors.load(page(1), &mut held).expect_err("not that page");
            assert_eq!(refused.kind(), io::ErrorKind::InvalidData);
        }
    }
}
