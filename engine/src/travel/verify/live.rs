//! The live database, read page by page through SQLite: what it holds now, not what was kept in memory of it.
//!
//! It is read through a read transaction whose Position is known (see [`crate::image`]); writers go on.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use tidelog_archive::restore::PageSink;
use tidelog_wal::digest::PageHash;
use tidelog_wal::{Digest, PageCount, PageNo};

use crate::capture::Head;
use crate::database::Lease;
use crate::error::{Code, Error};
use crate::image::snapshot;
use crate::operations::Task;

/// A live database at one commit.
#[derive(Debug)]
pub(super) struct Live {
    /// The commit, with the digest that was recorded for it.
    pub(super) head: Head,
    /// The digest of the pages as they were read.
    pub(super) digest: Digest,
}

/// Reads every page, and writes them to `copy` where one is wanted.
pub(super) async fn read(lease: &Lease, copy: Option<PathBuf>, task: &Task) -> Result<Live, Error> {
    let snapshot = snapshot(lease).await?;
    let head = snapshot.head;
    let (size, seed) = (lease.meta().page_size, lease.meta().seed);
    task.phase("reading the live database", head.pages.bytes(size))?;
    let task = task.clone();
    crate::executor::blocking(lease.core.executor(), move || {
        let io = |e| Error::io("copy the live database", e);
        let sql = |e| Error::new(Code::DatabaseCorrupt, "read the live database").caused_by(e);
        let copy = copy.map(File::create_new).transpose().map_err(io)?;
        let read: Result<Digest, Error> = snapshot.sqlite.as_engine(|connection| {
            let mut select = connection
                .prepare("SELECT pgno, data FROM sqlite_dbpage ORDER BY pgno")
                .map_err(sql)?;
            let mut rows = select.query([]).map_err(sql)?;
            let mut digest = Digest::empty(size).resize(PageCount::ZERO, head.pages, size);
            let mut bytes = 0_u64;
            while let Some(row) = rows.next().map_err(sql)? {
                let number: u32 = row.get(0).map_err(sql)?;
                let data = row.get_ref(1).map_err(sql)?;
                let image = data.as_blob().map_err(|e| {
                    Error::new(Code::DatabaseCorrupt, "a page without bytes").caused_by(e)
                })?;
                let page = PageNo::new(number).ok_or_else(|| Error::internal("page 0"))?;
                let counts = number <= head.pages.get() && page != size.lock_page();
                if counts {
                    digest = digest.replace(PageHash::ABSENT, seed.page(page, image));
                }
                if let Some(copy) = copy.as_ref().filter(|_| counts) {
                    copy.write_all_at(image, page.offset(size)).map_err(io)?;
                }
                bytes += image.len() as u64;
                task.progress(bytes);
                task.check()?;
            }
            Ok(digest)
        });
        let closed = snapshot.sqlite.close();
        let digest = read?;
        closed.map_err(|e| Error::new(Code::Internal, "end a snapshot").caused_by(e))?;
        Ok(Live { head, digest })
    })
    .await
}

/// A copy of the live database that a plan leads to another state, in place.
#[derive(Debug)]
pub(super) struct CopySink {
    file: File,
}

impl CopySink {
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        let opened = File::options().read(true).write(true).open(path);
        let file = opened.map_err(|e| Error::io("open a copy of the live database", e))?;
        Ok(Self { file })
    }
}

impl PageSink for CopySink {
    fn write(&mut self, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    fn read(&mut self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
        let mut filled = 0;
        while let Some(rest) = buf.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match self.file.read_at(rest, offset + filled as u64) {
                Ok(0) => {
                    rest.fill(0);
                    return Ok(());
                }
                Ok(read) => filled += read,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn set_len(&mut self, len: u64) -> std::io::Result<()> {
        self.file.set_len(len)
    }

    fn finish(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
