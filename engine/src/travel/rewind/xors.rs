//! The merged delta of a rewind: for each page that differs, present XOR target.
//!
//! Pages are held in memory up to a bound; beyond it they go to a file without a name in the scratch folder,
//! each in a slot of its own, so that any number of commits can be merged. The file is sealed with a key that is
//! drawn for it and stands nowhere: what of it is left on the disk is noise once it is dropped.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use tidelog_archive::SystemEntropy;
use tidelog_archive::env::Entropy as _;
use tidelog_archive::restore::PageSink;
use tidelog_archive::seal::{DataKey, FileSealer};
use tidelog_wal::delta::PageDelta;
use tidelog_wal::{PageNo, PageSize};

/// Bytes of pages held in memory.
const MEMORY_MAX: usize = 64 << 20;

/// XORs by page.
#[derive(Debug)]
pub(crate) struct PageXors {
    size: PageSize,
    folder: PathBuf,
    pages_max: usize,
    memory: HashMap<PageNo, Box<[u8]>>,
    spill: Option<Spill>,
}

/// The pages that did not fit into memory.
#[derive(Debug)]
struct Spill {
    file: File,
    sealer: FileSealer,
    /// The next piece: no number seals twice.
    number: u64,
    /// Under which number the page in each slot was sealed.
    numbers: BTreeMap<PageNo, u64>,
}

impl Spill {
    fn create(folder: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(folder)?;
        let (entropy, file) = (&SystemEntropy, tempfile::tempfile_in(folder)?);
        let key = DataKey::draw(entropy);
        Ok(Self {
            file,
            sealer: FileSealer::new(&key, &entropy.bytes16()),
            number: 0,
            numbers: BTreeMap::new(),
        })
    }

    /// Where the slot of a page begins.
    fn slot(page: PageNo, size: PageSize) -> u64 {
        let stored = size.bytes() + FileSealer::OVERHEAD;
        u64::from(page.get() - 1) * stored as u64
    }

    fn write(&mut self, page: PageNo, size: PageSize, xor: Box<[u8]>) -> io::Result<()> {
        let (slot, number) = (Self::slot(page, size), self.number);
        self.number += 1;
        let mut stored = xor.into_vec();
        self.sealer.seal(number, slot, &mut stored);
        self.file.write_all_at(&stored, slot)?;
        self.numbers.insert(page, number);
        Ok(())
    }

    /// Fills `xor` with what was written last; false if nothing was.
    fn read(&self, page: PageNo, size: PageSize, xor: &mut [u8]) -> io::Result<bool> {
        let Some(number) = self.numbers.get(&page) else {
            return Ok(false);
        };
        let slot = Self::slot(page, size);
        let mut stored = vec![0; size.bytes() + FileSealer::OVERHEAD];
        self.file.read_exact_at(&mut stored, slot)?;
        let opened = self.sealer.open(*number, slot, &stored).ok_or_else(|| {
            let page = page.get();
            let what = format!("page {page} of a merged delta is not what was written");
            io::Error::new(io::ErrorKind::InvalidData, what)
        })?;
        xor.copy_from_slice(&opened);
        Ok(true)
    }
}

impl PageXors {
    /// No page differs; what does not fit into memory goes to `folder`.
    pub(crate) fn new(size: PageSize, folder: PathBuf) -> Self {
        Self {
            size,
            folder,
            pages_max: (MEMORY_MAX / size.bytes()).max(1),
            memory: HashMap::new(),
            spill: None,
        }
    }

    /// Every page that may differ, ascending.
    pub(crate) fn pages(&self) -> Vec<PageNo> {
        let mut pages: Vec<PageNo> = self.memory.keys().copied().collect();
        let spilled = self.spill.iter().flat_map(|spill| spill.numbers.keys());
        pages.extend(spilled);
        pages.sort_unstable();
        pages.dedup();
        pages
    }

    /// Fills `xor` with the XOR of `page`: zeros if it does not differ.
    pub(crate) fn load(&self, page: PageNo, xor: &mut [u8]) -> io::Result<()> {
        if !self.load_changed(page, xor)? {
            xor.fill(0);
        }
        Ok(())
    }

    /// The same, or false if `page` does not differ.
    pub(crate) fn load_changed(&self, page: PageNo, xor: &mut [u8]) -> io::Result<bool> {
        if let Some(held) = self.memory.get(&page) {
            xor.copy_from_slice(held);
            return Ok(true);
        }
        match &self.spill {
            Some(spill) => spill.read(page, self.size, xor),
            None => Ok(false),
        }
    }

    /// Adds one page of a delta.
    pub(crate) fn add(&mut self, delta: &PageDelta<'_>) -> io::Result<()> {
        let mut xor = vec![0; self.size.bytes()].into_boxed_slice();
        self.load(delta.page, &mut xor)?;
        delta.apply(&mut xor);
        self.put(delta.page, xor)
    }

    /// Puts the whole XOR of a page.
    pub(super) fn put(&mut self, page: PageNo, xor: Box<[u8]>) -> io::Result<()> {
        self.memory.insert(page, xor);
        if self.memory.len() > self.pages_max {
            self.spill()?;
        }
        Ok(())
    }

    fn spill(&mut self) -> io::Result<()> {
        let spill = match &mut self.spill {
            Some(spill) => spill,
            none => none.insert(Spill::create(&self.folder)?),
        };
        for (page, xor) in self.memory.drain() {
            spill.write(page, self.size, xor)?;
        }
        Ok(())
    }

    /// The pages that an access of `len` bytes at `offset` means.
    fn span(&self, offset: u64, len: usize) -> io::Result<impl Iterator<Item = PageNo> + use<>> {
        let size = u64::from(self.size.get());
        let first = u32::try_from(offset / size)
            .ok()
            .and_then(|index| index.checked_add(1));
        let count = u32::try_from(len as u64 / size).ok();
        let (Some(first), Some(count)) = (first, count) else {
            return Err(io::Error::other("a page beyond the largest database"));
        };
        Ok((first..first.saturating_add(count)).filter_map(PageNo::new))
    }
}

/// Takes whole pages of XORs, as merging hands them over.
impl PageSink for PageXors {
    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let size = self.size.bytes();
        let pages = self.span(offset, bytes.len())?;
        for (page, xor) in pages.zip(bytes.chunks_exact(size)) {
            self.put(page, xor.into())?;
        }
        Ok(())
    }

    fn read(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let size = self.size.bytes();
        let pages = self.span(offset, buf.len())?;
        for (page, xor) in pages.zip(buf.chunks_exact_mut(size)) {
            self.load(page, xor)?;
        }
        Ok(())
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
    use super::*;

    #[test]
    fn pages_spill_and_come_back() {
        let folder = tempfile::tempdir().expect("a folder");
        let size = PageSize::new(512).expect("512");
        let mut xors = PageXors::new(size, folder.path().join("scratch"));
        xors.pages_max = 3;
        let page = |n: u32| PageNo::new(n).expect("not 0");
        for round in 0..2_u8 {
            for n in 1..=10_u32 {
                let mut held = vec![0; 512];
                let offset = page(n).offset(size);
                xors.read(offset, &mut held).expect("read");
                held[0] ^= u8::try_from(n).expect("small");
                held[1] ^= round + 1;
                xors.write(offset, &held).expect("written");
            }
        }
        assert_eq!(xors.pages(), (1..=10).map(page).collect::<Vec<_>>());
        for n in 1..=10 {
            let mut held = vec![7; 512];
            xors.load(page(n), &mut held).expect("loaded");
            assert_eq!(&held[..3], &[0, 3, 0], "page {n}");
        }
        let mut held = vec![7; 512];
        xors.load(page(11), &mut held).expect("loaded");
        assert!(held.iter().all(|byte| *byte == 0));
    }

    #[test]
    fn a_spill_shows_nothing_and_takes_nothing_for_a_page_that_is_none() {
        // Goal: what a merge leaves on the disk is noise, also where a page was written twice. Method: the raw
        // file is searched for the planted text; then a slot is changed and an older version of it put back.
        let folder = tempfile::tempdir().expect("a folder");
        let size = PageSize::new(512).expect("512");
        let mut xors = PageXors::new(size, folder.path().join("scratch"));
        xors.pages_max = 1;
        let page = |n: u32| PageNo::new(n).expect("not 0");
        let planted = *b"a planted text of a tenant's row";
        let put = |xors: &mut PageXors, round: u8| {
            for n in 1..=4 {
                let mut held = vec![round; 512].into_boxed_slice();
                held[100..132].copy_from_slice(&planted);
                xors.put(page(n), held).expect("put");
            }
        };
        let raw = |xors: &PageXors| {
            let file = &xors.spill.as_ref().expect("it spilled").file;
            let len = file.metadata().expect("metadata").len();
            let mut bytes = vec![0; usize::try_from(len).expect("small")];
            file.read_exact_at(&mut bytes, 0).expect("the raw file");
            bytes
        };
        put(&mut xors, 1);
        let first = raw(&xors);
        put(&mut xors, 2);
        let second = raw(&xors);
        for bytes in [&first, &second] {
            assert_eq!(bytes.len(), 4 * (512 + FileSealer::OVERHEAD));
            let shows = |text: &[u8]| bytes.windows(text.len()).any(|window| window == text);
            assert!(!shows(&planted) && !shows(&[1; 64]) && !shows(&[2; 64]));
        }
        let mut held = vec![0; 512];
        xors.load(page(1), &mut held).expect("loaded");
        assert_eq!((held[0], &held[100..132]), (2, &planted[..]));
        let spill = xors.spill.as_ref().expect("it spilled");
        let mut flipped = second.clone();
        flipped[7] ^= 1;
        for other in [&first, &flipped] {
            spill.file.write_all_at(other, 0).expect("changed");
            let refused = xors.load(page(1), &mut held).expect_err("not that page");
            assert_eq!(refused.kind(), io::ErrorKind::InvalidData);
        }
    }
}
