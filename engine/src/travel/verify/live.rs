//! The live database, read page by page from its files: what they hold now, not what was kept in memory of it.
//!
//! It is read by a fuzzy copy (see [`crate::copy`]); writers go on.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tidelog_archive::plan::Resolved;
use tidelog_archive::restore::{PageSink, fill_from};
use tidelog_wal::Digest;

use crate::copy::Copy;
use crate::database::Lease;
use crate::error::Error;
use crate::executor::blocking;
use crate::operations::Task;

/// A live database at one commit.
#[derive(Debug)]
pub(super) struct Live {
    /// The commit, with the digest that was recorded for it.
    pub(super) state: Resolved,
    /// The digest of the pages as they were read.
    pub(super) digest: Digest,
}

/// Reads every page, and writes them to `copy` where one is wanted.
pub(super) async fn read(lease: &Lease, copy: Option<PathBuf>, task: &Task) -> Result<Live, Error> {
    let database = Arc::clone(lease);
    let live = blocking(lease.core.executor(), move || Copy::newest(&database)).await?;
    let (size, state) = (lease.meta().page_size, *live.target());
    task.phase("reading the live database", state.n.bytes(size))?;
    let task = task.clone();
    blocking(lease.core.executor(), move || {
        let io = |e| Error::io("copy the live database", e);
        let copy = copy.map(File::create_new).transpose().map_err(io)?;
        let digest = live.pages(Some(&task), |first, run| match &copy {
            Some(copy) => copy.write_all_at(run, first.offset(size)).map_err(io),
            None => Ok(()),
        })?;
        Ok(Live { state, digest })
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

    fn read(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
        fill_from(&self.file, offset, buf)
    }

    fn set_len(&mut self, len: u64) -> std::io::Result<()> {
        self.file.set_len(len)
    }

    fn finish(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
