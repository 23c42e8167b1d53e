//! The pages of a live database as they are at its newest captured commit, read while writers run.
//!
//! Called under the capture lock. A page that has a captured frame in this WAL life is read from there: nobody
//! overwrites it, for a life ends only after a checkpoint whose end capture was told of, under the same lock. Every other
//! page is read from the database file, where nobody writes it: a backfill copies captured frames alone. Once the
//! life is fully backfilled the file alone is read, since a writer may begin the WAL anew at any moment. So no page
//! is torn and no read transaction is needed.

use std::io;

use tidelog_wal::PageNo;

use super::Capture;
use crate::files::DbFiles;

impl Capture {
    /// Fills `run` with the pages from `first` on, as they are at the newest captured commit; those above its
    /// end are zeros.
    pub(crate) fn present(&self, files: &DbFiles, first: PageNo, run: &mut [u8]) -> io::Result<()> {
        files.pages(first, self.page_size, run)?;
        let numbers = (first.get()..).filter_map(PageNo::new);
        for (page, image) in numbers.zip(run.chunks_exact_mut(self.page_size.bytes())) {
            if !self.head.pages.contains(page) {
                image.fill(0);
            } else if !self.life.ended
                && let Some((frame, _)) = self.index.get(&page)
            {
                files.frame(*frame, self.page_size, image)?;
            }
        }
        Ok(())
    }
}
