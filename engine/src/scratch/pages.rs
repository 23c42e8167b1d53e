//! The pages of a state in a file that only this program reads: what a rewind leads to, what an image is made of, what
//! an export sends.
//!
//! The file has no name and is sealed with a key that is drawn for it and stands nowhere: what of it is left on the
//! disk is noise once it is dropped. Copies that SQLite has to open cannot be kept this way (decision 0038).
//!
//! # Layout
//!
//! ```text
//! slot of page i, at (i - 1) * (page size + 24) := number u64 | sealed page (page size + 16)
//! ```
//!
//! Numbers rise with every page that is written, so that none seals twice however often a page is replaced; a page is
//! bound to its place. Number 0, as in what was never written and beyond the end, is a page of zeros: what reads here
//! proves the digest of what it read.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use tidelog_archive::SystemEntropy;
use tidelog_archive::env::Entropy as _;
use tidelog_archive::restore::{PageSink, fill_from};
use tidelog_archive::seal::{DataKey, FileSealer};
use tidelog_wal::{PageNo, PageSize};

use crate::core::Core;
use crate::error::Error;

const NUMBER_LEN: usize = 8;

/// Pages in a sealed scratch file.
#[derive(Debug)]
pub(crate) struct ScratchPages {
    file: File,
    sealer: FileSealer,
    size: PageSize,
    /// The number of the next page that is written.
    next: u64,
}

impl ScratchPages {
    /// An empty state for `what`, whose pages take `bytes`; refused where they do not fit the disk.
    pub(crate) fn create(
        core: &Core,
        what: &str,
        size: PageSize,
        bytes: u64,
    ) -> Result<Self, Error> {
        let root = super::root(core);
        let io = |e| Error::io("make a scratch file", e);
        std::fs::create_dir_all(&root).map_err(io)?;
        let slot = Self::slot_len(size) as u64;
        let pages = bytes / size.bytes() as u64;
        super::ensure(core, &root, what, pages.saturating_mul(slot))?;
        Self::in_folder(&root, size).map_err(io)
    }

    fn in_folder(folder: &Path, size: PageSize) -> io::Result<Self> {
        let entropy = &SystemEntropy;
        let key = DataKey::draw(entropy);
        Ok(Self {
            file: tempfile::tempfile_in(folder)?,
            sealer: FileSealer::new(&key, &entropy.bytes16()),
            size,
            next: 1,
        })
    }

    fn slot_len(size: PageSize) -> usize {
        NUMBER_LEN + size.bytes() + FileSealer::OVERHEAD
    }

    /// The slots of the whole pages in `len` bytes at `offset`: the first one's place, and how many.
    fn slots(&self, offset: u64, len: usize) -> io::Result<(u64, usize)> {
        let size = self.size.bytes();
        if !offset.is_multiple_of(size as u64) || !len.is_multiple_of(size) {
            return Err(io::Error::other("a scratch file holds whole pages"));
        }
        let first = offset / size as u64;
        Ok((first * Self::slot_len(self.size) as u64, len / size))
    }

    /// Fills `buf`, whole pages, from `offset` of the state on; zeros where nothing was written.
    pub(crate) fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let (at, count) = self.slots(offset, buf.len())?;
        let slot = Self::slot_len(self.size);
        let mut stored = vec![0; count * slot];
        fill_from(&self.file, at, &mut stored)?;
        let places = (at..).step_by(slot);
        let slots = stored.chunks_exact(slot).zip(places);
        for (page, (slot, at)) in buf.chunks_exact_mut(self.size.bytes()).zip(slots) {
            let (number, sealed) = slot.split_at(NUMBER_LEN);
            let number = number.first_chunk().map_or(0, |it| u64::from_le_bytes(*it));
            if number == 0 {
                page.fill(0);
                continue;
            }
            let opened = self.sealer.open(number, at, sealed).ok_or_else(|| {
                let what = "a page of a scratch file is not what was written";
                io::Error::new(io::ErrorKind::InvalidData, what)
            })?;
            page.copy_from_slice(&opened);
        }
        Ok(())
    }

    /// Fills `image` with a page.
    pub(crate) fn page(&self, page: PageNo, image: &mut [u8]) -> io::Result<()> {
        self.read_at(page.offset(self.size), image)
    }
}

impl PageSink for ScratchPages {
    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let (first, count) = self.slots(offset, bytes.len())?;
        let slot = Self::slot_len(self.size);
        let mut stored = Vec::with_capacity(count * slot);
        let places = (first..).step_by(slot);
        let mut piece = Vec::with_capacity(slot);
        for (page, at) in bytes.chunks_exact(self.size.bytes()).zip(places) {
            piece.clear();
            piece.extend_from_slice(page);
            self.sealer.seal(self.next, at, &mut piece);
            stored.extend_from_slice(&self.next.to_le_bytes());
            stored.extend_from_slice(&piece);
            self.next += 1;
        }
        self.file.write_all_at(&stored, first)
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.read_at(offset, buf)
    }

    fn set_len(&mut self, len: u64) -> io::Result<()> {
        let pages = len / self.size.bytes() as u64;
        self.file.set_len(pages * Self::slot_len(self.size) as u64)
    }

    fn finish(&mut self) -> io::Result<()> {
        // Nobody looks for it after a crash.
        Ok(())
    }
}

/// Writes a state from its first byte to its last, in pieces of any length.
#[derive(Debug)]
pub(crate) struct PageWriter {
    pages: ScratchPages,
    /// How much of the state was written, and what follows and is no whole page yet.
    written: u64,
    held: Vec<u8>,
}

impl PageWriter {
    /// Fills `pages`, which are empty.
    pub(crate) const fn new(pages: ScratchPages) -> Self {
        Self {
            pages,
            written: 0,
            held: Vec::new(),
        }
    }

    /// What was written, unless it ends inside a page.
    pub(crate) fn finish(self) -> io::Result<ScratchPages> {
        if self.held.is_empty() {
            return Ok(self.pages);
        }
        Err(io::Error::other("a state ends inside a page"))
    }
}

impl io::Write for PageWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.held.extend_from_slice(bytes);
        let whole = self.held.len() - self.held.len() % self.pages.size.bytes();
        if whole > 0 {
            let pages = self.held.get(..whole).unwrap_or_default();
            self.pages.write(self.written, pages)?;
            self.written += whole as u64;
            self.held.drain(..whole);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn empty(folder: &Path) -> ScratchPages {
        let size = PageSize::new(512).expect("512");
        ScratchPages::in_folder(folder, size).expect("a file")
    }

    #[test]
    fn pages_come_back_as_they_were_written_last() {
        // Method: random writes, growth and cuts, beside the same on an array.
        let folder = tempfile::tempdir().expect("a folder");
        let mut pages = empty(folder.path());
        let mut expected: Vec<[u8; 512]> = Vec::new();
        let mut chance = 1_u64;
        let mut draw = |below: u64| {
            chance = chance
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (chance >> 33) % below
        };
        for round in 0..3_000_u64 {
            let at = usize::try_from(draw(64)).expect("small");
            if draw(50) == 0 {
                expected.resize(at, [0; 512]);
                pages.set_len(at as u64 * 512).expect("cut");
            } else {
                let bytes = vec![u8::try_from(round % 251).expect("small") + 1; 1024];
                pages.write(at as u64 * 512, &bytes).expect("written");
                if expected.len() < at + 2 {
                    expected.resize(at + 2, [0; 512]);
                }
                expected[at..at + 2].fill([bytes[0]; 512]);
            }
            let mut held = vec![9; 70 * 512];
            pages.read(0, &mut held).expect("read");
            let (written, beyond) = held.split_at(expected.len() * 512);
            assert_eq!(written, expected.concat());
            assert!(beyond.iter().all(|byte| *byte == 0));
        }
    }

    #[test]
    fn no_number_seals_twice() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut pages = empty(folder.path());
        let slot = ScratchPages::slot_len(pages.size);
        let mut seen = std::collections::HashSet::new();
        for _ in 0..3 {
            pages.write(0, &[7; 3 * 512]).expect("written");
            let mut stored = vec![0; 3 * slot];
            pages.file.read_exact_at(&mut stored, 0).expect("stored");
            for slot in stored.chunks_exact(slot) {
                assert!(seen.insert(slot[..NUMBER_LEN].to_vec()), "used before");
            }
        }
    }

    #[test]
    fn a_stream_becomes_pages_however_it_is_cut() {
        use std::io::Write as _;
        let folder = tempfile::tempdir().expect("a folder");
        let state: Vec<u8> = (0..=250).cycle().take(512 * 9).collect();
        for cut in [1, 500, 512, 513, 2000, state.len()] {
            let mut writer = PageWriter::new(empty(folder.path()));
            for piece in state.chunks(cut) {
                writer.write_all(piece).expect("written");
            }
            let mut held = vec![0; state.len()];
            let pages = writer.finish().expect("whole pages");
            pages.read_at(0, &mut held).expect("read");
            assert!(held == state, "pieces of {cut}");
        }
        let mut writer = PageWriter::new(empty(folder.path()));
        writer.write_all(&state[..700]).expect("written");
        assert!(writer.finish().is_err());
    }

    #[test]
    fn the_file_shows_nothing_and_takes_nothing_for_a_page_that_is_none() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut pages = empty(folder.path());
        let planted = [b"planted text ".repeat(40).as_slice(), &[0; 504]].concat();
        pages.write(0, &planted).expect("written");
        let mut stored = vec![0; 2 * ScratchPages::slot_len(pages.size)];
        pages.file.read_exact_at(&mut stored, 0).expect("stored");
        assert!(!stored.windows(7).any(|it| it == b"planted"));
        assert_eq!(std::fs::read_dir(folder.path()).expect("listed").count(), 0);
        let mut image = vec![0; 512];
        pages.page(PageNo::ONE, &mut image).expect("it is whole");
        // A flipped bit, and one page in the place of another.
        let slot = ScratchPages::slot_len(pages.size);
        let (one, two) = stored.split_at(slot);
        let mut flipped = one.to_vec();
        flipped[100] ^= 1;
        for wrong in [flipped.as_slice(), two] {
            pages.file.write_all_at(wrong, 0).expect("changed");
            let error = pages.page(PageNo::ONE, &mut image).expect_err("refused");
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
        assert!(pages.write(100, &planted).is_err(), "no whole page");
        assert!(pages.read(0, &mut [0; 100]).is_err(), "no whole page");
    }
}
