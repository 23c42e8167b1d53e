//! The pages of a commit, encoded: of each its old and its new image, their hashes, and what differs.
//!
//! A commit of many pages is encoded by two threads, joined in order: the record is the same, byte for byte, and whoever
//! waits for it waits for little more than half as long. Of a large one each encodes a piece at a time: memory holds two
//! of them, until the commit is captured.

use tidelog_wal::PageSize;
use tidelog_wal::cursor::{Commit, FramePage};
use tidelog_wal::delta::DeltaEncoder;
use tidelog_wal::digest::PageHash;
use tidelog_wal::page::{PageNo, mask_page1};
use tidelog_wal::parallel::both;

use super::{Capture, CaptureError, Scratch};
use crate::files::DbFiles;

/// Bytes of the pages that one thread encodes alone: to begin a second takes as long as to encode a tenth of them.
const ALONE_BYTES: usize = 512 << 10;
/// Bytes of the pages that each of two encodes at a time, at most.
const PIECE_BYTES: usize = 4 << 20;

/// Pages being encoded, and the buffers for it.
#[derive(Debug)]
pub(super) struct Encoding {
    pub(super) size: PageSize,
    pub(super) encoder: DeltaEncoder,
    pub(super) old: Vec<u8>,
    pub(super) new: Vec<u8>,
    /// What was encoded and not moved on yet.
    pub(super) body: Vec<u8>,
    /// The pages encoded last, and the hash of each before and after.
    pub(super) changed: Vec<(FramePage, PageHash, PageHash)>,
}

impl Encoding {
    pub(super) fn new(size: PageSize) -> Self {
        Self {
            size,
            encoder: DeltaEncoder::new(size),
            old: vec![0; size.bytes()],
            new: vec![0; size.bytes()],
            body: Vec::new(),
            changed: Vec::new(),
        }
    }

    /// Begins with the first page of a commit.
    pub(super) fn begin(&mut self) {
        self.encoder.reset();
        self.body.clear();
        self.changed.clear();
    }
}

impl Capture {
    /// Encodes the first of the pages that are `left`, all of them if they are few, behind what `scratch` holds of the
    /// commit, and takes them off.
    pub(super) fn encode_some(
        &self,
        files: &DbFiles,
        commit: &Commit<'_>,
        left: &mut &[FramePage],
        scratch: &mut Scratch,
    ) -> Result<(), CaptureError> {
        let pages = &mut scratch.pages;
        pages.changed.clear();
        let many = |bytes: usize| bytes / self.page_size.bytes();
        if left.len() <= many(ALONE_BYTES) {
            return self.encode(files, commit, std::mem::take(left), pages);
        }
        let half = many(PIECE_BYTES).min(left.len().div_ceil(2));
        let (here, rest) = left.split_at(half);
        let (there, rest) = rest.split_at(half.min(rest.len()));
        let beside = scratch
            .beside
            .get_or_insert_with(|| Box::new(Encoding::new(self.page_size)));
        beside.begin();
        let (first, second) = both(
            || self.encode(files, commit, here, pages),
            || self.encode(files, commit, there, beside),
        );
        first.and(second)?;
        pages
            .encoder
            .join(&beside.encoder, &beside.body, &mut pages.body);
        pages.changed.append(&mut beside.changed);
        *left = rest;
        Ok(())
    }

    fn encode(
        &self,
        files: &DbFiles,
        commit: &Commit<'_>,
        pages: &[FramePage],
        into: &mut Encoding,
    ) -> Result<(), CaptureError> {
        for changed in pages {
            let page = changed.page;
            let new = commit.image(files.wal(), changed.frame, &mut into.new)?;
            let new_hash = self.seed.page(page, new);
            let old_hash = if self.head.pages.contains(page) {
                self.old_image(files, commit, page, &mut into.old)?
            } else {
                into.old.fill(0);
                PageHash::ABSENT
            };
            if page == PageNo::ONE {
                let mut masked = new.to_vec();
                mask_page1(&mut masked);
                mask_page1(&mut into.old);
                into.encoder.page(page, &into.old, &masked, &mut into.body);
            } else {
                into.encoder.page(page, &into.old, new, &mut into.body);
            }
            into.changed.push((*changed, old_hash, new_hash));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use rusqlite::Connection;
    use tidelog_wal::cursor::PublishedCursor;
    use tidelog_wal::frame::FrameNo;
    use tidelog_wal::{Chain, Digest, DigestSeed, PageCount, Term, Timestamp, TxId};

    use super::super::{Head, WINDOW_BYTES};
    use super::*;
    use crate::files::DbPaths;

    /// Goal: what two threads encode is what one would. Method: one commit that changes most of 6,000 pages, some of them
    /// to what they were, and adds some; once as a whole by one encoder.
    #[test]
    fn a_large_commit_is_encoded_by_two_as_by_one() {
        let folder = tempfile::tempdir().expect("a folder");
        let paths = DbPaths::in_folder(folder.path());
        let connection = Connection::open(&paths.database).expect("open");
        let many = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 6000)";
        let made = format!(
            "pragma page_size=4096; create table t(a integer primary key, b);
             {many} insert into t select i, randomblob(3000) from n;
             pragma journal_mode=wal; pragma wal_autocheckpoint=0"
        );
        connection.execute_batch(&made).expect("a database");
        let before: u32 = connection
            .query_row("pragma page_count", [], |row| row.get(0))
            .expect("pages");
        let change = "begin; update t set b = randomblob(3000) where a % 7 > 0;
                      update t set b = b where a % 7 = 0;
                      insert into t select a + 6000, b from t where a > 5000; commit";
        connection.execute_batch(change).expect("one commit");
        let files = DbFiles::open(&paths).expect("the files");
        let header = files.header().expect("nobody writes");
        let size = PageSize::DEFAULT;
        let head = Head {
            term: Term::new(1),
            txid: TxId::new(1),
            chain: Chain::default(),
            pages: PageCount::new(before),
            digest: Digest::default(),
            time: Timestamp::from_micros(1),
        };
        let capture = Capture::new(size, DigestSeed::new(7), head, &header, FrameNo::ZERO);
        let mut cursor = PublishedCursor::new(WINDOW_BYTES);
        cursor.begin(FrameNo::ZERO, &header).expect("a WAL");
        let commit = cursor.next_commit(files.wal()).expect("a WAL");
        let commit = commit.expect("a commit");
        assert_eq!(commit.last, header.max_frame);

        let mut alone = Encoding::new(size);
        let encoded = capture.encode(&files, &commit, commit.pages, &mut alone);
        encoded.expect("encoded");
        let mut scratch = Scratch::default();
        scratch.pages.begin();
        let (mut left, mut changed, mut rounds) = (commit.pages, Vec::new(), 0);
        while !left.is_empty() {
            let some = capture.encode_some(&files, &commit, &mut left, &mut scratch);
            some.expect("encoded");
            changed.extend_from_slice(&scratch.pages.changed);
            rounds += 1;
        }
        assert!(commit.pages.len() > 6000 && rounds > 2, "{rounds} rounds");
        assert!(changed == alone.changed, "pages, frames and hashes");
        assert!(scratch.pages.body == alone.body, "the record");
    }
}
