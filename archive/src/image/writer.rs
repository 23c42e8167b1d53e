//! Writes images in the memory of a block.

use tidelog_wal::block::{BLOCK_RAW_MAX, Compressor};
use tidelog_wal::digest::PageHash;
use tidelog_wal::page::mask_page1;
use tidelog_wal::{Digest, PageCount, PageNo};

use super::index::{ImageMeta, PageRun, encode_index};
use crate::envelope::{
    BlockTable, BlockWriter, Expect, Finished, FormatError, ObjectKind, ObjectWriter,
};
use crate::seal::Stamp;

/// Writes an image: pages ascending by [`page`](Self::page), those left out are all zeros; then
/// [`finish`](Self::finish), which proves the digest. [`take`](Self::take) drains what is written.
#[derive(Debug)]
pub struct ImageWriter {
    meta: ImageMeta,
    object: ObjectWriter,
    blocks: BlockWriter,
    table: BlockTable,
    runs: Vec<Vec<PageRun>>,
    open: Vec<PageRun>,
    raw: Vec<u8>,
    zeros: Vec<u8>,
    /// Page hashes so far, and the next page expected.
    digest: Digest,
    next: u32,
}

impl ImageWriter {
    /// A writer of the state that `meta` describes.
    pub fn new(meta: ImageMeta, stamp: Stamp, compressor: Compressor) -> Self {
        let expect = Expect::database(ObjectKind::Image, meta.namespace, meta.database);
        let start = Digest::empty(meta.page_size);
        Self {
            object: ObjectWriter::new(expect, stamp),
            blocks: BlockWriter::new(compressor),
            table: BlockTable::default(),
            runs: Vec::new(),
            open: Vec::new(),
            raw: Vec::with_capacity(BLOCK_RAW_MAX),
            zeros: vec![0; meta.page_size.bytes()],
            digest: start.resize(PageCount::ZERO, meta.n, meta.page_size),
            next: 1,
            meta,
        }
    }

    /// Adds `page`, one page long. Page 1 is masked here; the lock page is passed over.
    pub fn page(&mut self, page: PageNo, image: &[u8]) -> Result<(), FormatError> {
        let size = self.meta.page_size;
        if page.get() < self.next || !self.meta.n.contains(page) || image.len() != size.bytes() {
            return Err(FormatError::Unwritable {
                what: "pages of an image out of order, of wrong length, or above its page count",
            });
        }
        self.skip_to(page.get());
        self.next = page.get() + 1;
        if page == size.lock_page() {
            return Ok(());
        }
        let hash = self.meta.seed.page(page, image);
        self.digest = self.digest.replace(PageHash::ABSENT, hash);
        let start = self.raw.len();
        self.raw.extend_from_slice(image);
        let stored = self.raw.get_mut(start..).unwrap_or_default();
        if page == PageNo::ONE {
            mask_page1(stored);
        }
        if *stored == *self.zeros {
            self.raw.truncate(start);
            return Ok(());
        }
        match self.open.last_mut() {
            Some(run) if run.first.get() + run.pages == page.get() => run.pages += 1,
            _ => self.open.push(PageRun {
                first: page,
                pages: 1,
            }),
        }
        if self.raw.len() + size.bytes() > BLOCK_RAW_MAX {
            self.flush();
        }
        Ok(())
    }

    /// Counts the pages that were left out before `page` as zeros.
    fn skip_to(&mut self, page: u32) {
        let lock = self.meta.page_size.lock_page();
        for skipped in (self.next..page).filter_map(PageNo::new) {
            if skipped != lock {
                let hash = self.meta.seed.page(skipped, &self.zeros);
                self.digest = self.digest.replace(PageHash::ABSENT, hash);
            }
        }
    }

    fn flush(&mut self) {
        if self.raw.is_empty() {
            return;
        }
        let entry = self.blocks.write(&mut self.object, &self.raw);
        self.table.blocks.push(entry);
        self.runs.push(std::mem::take(&mut self.open));
        self.raw.clear();
    }

    /// Bytes of the object written so far.
    pub fn stored_len(&self) -> u64 {
        self.object.offset()
    }

    /// Hands out the bytes of the object written since the last call.
    pub fn take(&mut self) -> Vec<u8> {
        self.object.take()
    }

    /// Ends the image, if its pages have the digest that was promised.
    pub fn finish(mut self) -> Result<(Finished, ImageMeta, Compressor), FormatError> {
        self.skip_to(self.meta.n.get().saturating_add(1));
        if self.digest != self.meta.digest {
            return Err(FormatError::Foreign {
                what: "digest of the pages",
                found: self.digest.to_string(),
                expected: self.meta.digest.to_string(),
            });
        }
        self.flush();
        let index = encode_index(&self.meta, &self.table, &self.runs);
        let finished = self.object.finish(&index)?;
        Ok((finished, self.meta, self.blocks.into_compressor()))
    }
}
