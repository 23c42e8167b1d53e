//! The merged delta of a rewind: for each page that differs, present XOR target.
//!
//! Pages are held in memory up to a bound; beyond it they go to a file without a name in the scratch folder,
//! each at its own offset, so that any number of commits can be merged.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use tidelog_archive::restore::PageSink;
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
    file: Option<File>,
    in_file: BTreeSet<PageNo>,
}

impl PageXors {
    /// No page differs; what does not fit into memory goes to `folder`.
    pub(crate) fn new(size: PageSize, folder: PathBuf) -> Self {
        Self {
            size,
            folder,
            pages_max: (MEMORY_MAX / size.bytes()).max(1),
            memory: HashMap::new(),
            file: None,
            in_file: BTreeSet::new(),
        }
    }

    /// Every page that may differ, ascending.
    pub(crate) fn pages(&self) -> Vec<PageNo> {
        let mut pages: Vec<PageNo> = self.memory.keys().copied().collect();
        pages.extend(&self.in_file);
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
        match &self.file {
            Some(file) if self.in_file.contains(&page) => file
                .read_exact_at(xor, page.offset(self.size))
                .map(|()| true),
            _ => Ok(false),
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
        let file = match &mut self.file {
            Some(file) => file,
            none => {
                std::fs::create_dir_all(&self.folder)?;
                none.insert(tempfile::tempfile_in(&self.folder)?)
            }
        };
        for (page, xor) in self.memory.drain() {
            file.write_all_at(&xor, page.offset(self.size))?;
            self.in_file.insert(page);
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
}
