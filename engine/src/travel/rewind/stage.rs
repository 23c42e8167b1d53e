//! What a change of state writes, made before the write gate is taken, so that writers wait for one transaction
//! and no more.
//!
//! The pages that differ are read from the live files as a fuzzy copy reads them, a few at a time under the capture
//! lock, and led back to one captured commit, the base, by the deltas since. With what the source says they become
//! the pages of the target, on a thread beside the one that reads the next batch. From their hashes and the digest of
//! the base follows the digest of the target, before a writer waits. Behind the gate only what was committed meanwhile
//! is left to be proven: those pages alone.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use tidelog_wal::digest::PageHash;
use tidelog_wal::page::mask_page1;
use tidelog_wal::parallel::both;
use tidelog_wal::{Digest, DigestSeed, PageCount, PageNo, PageSize, TxId};

use super::xors::PageXors;
use crate::capture::{Head, Wanted};
use crate::copy::gather;
use crate::database::OpenDb;
use crate::error::{Code, Error};
use crate::journal::hold::ChunkHold;
use crate::rules::rule;
use crate::scratch::ScratchPages;

/// Pages of a batch, and its bytes where pages are large.
const BATCH_PAGES: usize = 1024;
const BATCH_BYTES: usize = 4 << 20;
/// Pages read under the capture lock at once. They may lie anywhere, and what is captured meanwhile waits for the disk.
const LOCKED_PAGES: usize = 64;

/// Where the pages of the target come from.
#[derive(Debug)]
pub(crate) enum Source {
    /// What differs, as XORs, from the state at a commit; from the newest, if it is not named.
    Xors(PageXors, Option<TxId>),
    /// A file that holds the whole target.
    File(File),
    /// A sealed one that does.
    Pages(ScratchPages),
}

impl Source {
    /// The target as a file that nobody else has open.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let file = File::open(path).map_err(|e| Error::io("open the state to restore", e))?;
        Ok(Self::File(file))
    }
}

/// The target, as far as it differs from the base.
#[derive(Debug)]
pub(crate) struct Staged {
    to: Wanted,
    base: Head,
    /// What led from the base to the commit `upto`.
    since: PageXors,
    upto: TxId,
    /// The pages whose image differs, ascending.
    pages: Vec<PageNo>,
    images: Images,
    _hold: ChunkHold,
}

/// What their images follow from.
#[derive(Debug)]
enum Images {
    /// Those of the base, and these.
    Xors(PageXors),
    /// What holds all of them.
    Whole(Whole),
}

impl Images {
    fn lead(
        &self,
        page: PageNo,
        to: Wanted,
        size: PageSize,
        image: &mut [u8],
    ) -> Result<(), Error> {
        match self {
            Self::Xors(xors) => drop(xors.apply(page, image).map_err(io)?),
            Self::Whole(whole) if to.n.contains(page) => {
                whole.read(page, size, image).map_err(io)?;
                if page == PageNo::ONE {
                    mask_page1(image);
                }
            }
            Self::Whole(_) => image.fill(0),
        }
        if !rule!("rewind.sound_source")
            && let Some(byte) = image.last_mut()
        {
            *byte ^= 1;
        }
        Ok(())
    }
}

/// A whole target.
#[derive(Debug)]
enum Whole {
    File(File),
    Pages(ScratchPages),
}

impl Whole {
    fn read(&self, page: PageNo, size: PageSize, image: &mut [u8]) -> std::io::Result<()> {
        match self {
            Self::File(file) => file.read_exact_at(image, page.offset(size)),
            Self::Pages(pages) => pages.page(page, image),
        }
    }
}

fn io(error: std::io::Error) -> Error {
    Error::io("read the state to restore", error)
}

/// Adds what led from `after` to `through` to `xors`, from the journal of this node. What it does not hold any more
/// is gone from it because it is stored.
fn add_journaled(
    database: &OpenDb,
    xors: &mut PageXors,
    after: TxId,
    through: TxId,
) -> Result<(), Error> {
    if gather(database, xors, after, through)? {
        return Ok(());
    }
    let what = format!("the journal folder does not hold the commits from {after} to {through}");
    Err(Error::new(Code::StorageUnavailable, what).because_gone(true))
}

impl Staged {
    /// Makes the pages of `to` from `source`. Fails, and nothing was touched, where they do not lead to its digest.
    ///
    /// `hold` keeps what was committed after the source was read, and was taken before it was. `progress` hears how
    /// many pages of how many were looked at, and may end it. Blocks.
    pub(crate) fn make(
        database: &OpenDb,
        source: Source,
        to: Wanted,
        hold: ChunkHold,
        progress: &dyn Fn(u64, u64) -> Result<(), Error>,
    ) -> Result<Self, Error> {
        let (size, seed) = (database.meta().page_size, database.meta().seed);
        let base = database.capture_now()?;
        let (low, high) = (base.pages.min(to.n), base.pages.max(to.n));
        let (mut touched, images) = match source {
            Source::Xors(mut xors, from) => {
                add_journaled(database, &mut xors, from.unwrap_or(base.txid), base.txid)?;
                (xors.pages(), Images::Xors(xors))
            }
            Source::File(file) => (low.pages(size).collect(), Images::Whole(Whole::File(file))),
            Source::Pages(pages) => {
                let whole = Images::Whole(Whole::Pages(pages));
                (low.pages(size).collect(), whole)
            }
        };
        touched.extend(low.grown_to(high, size));
        touched.sort_unstable();
        touched.dedup();
        let since = PageXors::new(size, database.core.settings.data.join("scratch"));
        let mut staged = Self {
            to,
            base,
            since,
            upto: base.txid,
            pages: Vec::new(),
            images,
            _hold: hold,
        };
        let digest = staged.compare(database, &touched, (size, seed), progress)?;
        if rule!("rewind.base_proven") && digest != to.digest {
            return Err(not_led(digest, to.digest));
        }
        Ok(staged)
    }

    /// Makes the image of each of these pages and keeps those that differ; answers the digest of the target.
    fn compare(
        &mut self,
        database: &OpenDb,
        touched: &[PageNo],
        (size, seed): (PageSize, DigestSeed),
        progress: &dyn Fn(u64, u64) -> Result<(), Error>,
    ) -> Result<Digest, Error> {
        let Self {
            to,
            base,
            since,
            upto,
            pages,
            images,
            ..
        } = self;
        let mut digest = base.digest.resize(base.pages, to.n, size);
        let mut target = vec![0; size.bytes()];
        // Fills `read` with these pages as they are in the base.
        let mut read = |batch: &[PageNo], read: &mut Vec<u8>| -> Result<(), Error> {
            read.resize(batch.len() * size.bytes(), 0);
            let few = batch.chunks(LOCKED_PAGES);
            for (few, images) in few.zip(read.chunks_mut(LOCKED_PAGES * size.bytes())) {
                let at = database.read_pages(few, images)?;
                add_journaled(database, since, *upto, at)?;
                *upto = at;
                for (page, image) in few.iter().zip(images.chunks_exact_mut(size.bytes())) {
                    if *page == PageNo::ONE {
                        mask_page1(image);
                    }
                    since.apply(*page, image).map_err(io)?;
                }
            }
            Ok(())
        };
        let mut lead = |batch: &[PageNo], read: &[u8]| -> Result<(), Error> {
            for (page, image) in batch.iter().zip(read.chunks_exact(size.bytes())) {
                target.copy_from_slice(image);
                images.lead(*page, *to, size, &mut target)?;
                let old = hash(seed, *page, image, base.pages);
                digest = digest.replace(old, hash(seed, *page, &target, to.n));
                if to.n.contains(*page) && (!base.pages.contains(*page) || *image != *target) {
                    pages.push(*page);
                }
            }
            Ok(())
        };
        let mut batches = touched.chunks(BATCH_PAGES.min(BATCH_BYTES / size.bytes()).max(1));
        let (mut here, mut there) = (Vec::new(), Vec::new());
        let mut next = batches.next().unwrap_or_default();
        read(next, &mut here)?;
        let mut seen = 0;
        while !next.is_empty() {
            let batch = std::mem::replace(&mut next, batches.next().unwrap_or_default());
            std::mem::swap(&mut here, &mut there);
            if next.is_empty() {
                lead(batch, &there)?;
            } else {
                let (read, led) = both(|| read(next, &mut here), || lead(batch, &there));
                led.and(read)?;
            }
            seen += batch.len() as u64;
            progress(seen, touched.len() as u64)?;
        }
        Ok(digest)
    }

    /// Makes the image of a page in the base, where that is needed, that in the target.
    pub(super) fn lead(&self, page: PageNo, size: PageSize, image: &mut [u8]) -> Result<(), Error> {
        self.images.lead(page, self.to, size, image)
    }

    /// What is to come.
    pub(super) const fn to(&self) -> Wanted {
        self.to
    }

    /// The pages that differ, ascending.
    pub(super) fn differing(&self) -> &[PageNo] {
        &self.pages
    }

    /// Adds what was committed up to `head`; answers how many commits that were.
    pub(crate) fn catch_up(&mut self, database: &OpenDb, head: &Head) -> Result<u64, Error> {
        let added = head.txid.since(self.upto).unwrap_or(0);
        add_journaled(database, &mut self.since, self.upto, head.txid)?;
        self.upto = head.txid;
        Ok(added)
    }

    /// Every page that may have to be written where the database has `from` pages, or that it has more or fewer of
    /// than the base, ascending.
    pub(super) fn touched(&self, from: PageCount, size: PageSize) -> Vec<PageNo> {
        let mut pages = self.since.pages();
        let base = self.base.pages;
        pages.extend(from.min(base).grown_to(from.max(base), size));
        pages.extend(from.grown_to(from.max(self.to.n), size));
        pages.extend(&self.pages);
        pages.sort_unstable();
        pages.dedup();
        pages
    }

    /// The base, whose digest is to be proven from that of the present.
    pub(super) const fn base(&self) -> &Head {
        &self.base
    }

    /// Fills `xor` with what leads from the present image of a page to that in the base; false if they are the same.
    pub(super) fn moved(&self, page: PageNo, xor: &mut [u8]) -> Result<bool, Error> {
        self.since.load(page, xor).map_err(io)
    }

    /// Whether a page differs in the target from the base.
    pub(super) fn differs(&self, page: PageNo) -> bool {
        self.pages.binary_search(&page).is_ok()
    }

    /// Whether the target of a page that differs follows from its image in the base.
    pub(super) const fn needs_base(&self) -> bool {
        matches!(self.images, Images::Xors(_))
    }
}

/// What `page` contributes to the digest of a state of `n` pages.
pub(super) fn hash(seed: DigestSeed, page: PageNo, image: &[u8], n: PageCount) -> PageHash {
    if n.contains(page) {
        seed.page(page, image)
    } else {
        PageHash::ABSENT
    }
}

/// What a state says that is not what it should be.
pub(super) fn not_led(found: Digest, recorded: Digest) -> Error {
    let what = format!(
        "the present state and the log do not lead to the state asked for: digest {found}, recorded is \
         {recorded}; nothing was changed"
    );
    Error::new(Code::DatabaseCorrupt, what)
}
