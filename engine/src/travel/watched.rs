//! Restoring into a file as part of an operation: it shows its progress and stops when the operation does.

use std::io;
use std::path::Path;

use tidelog_archive::plan::Plan;
use tidelog_archive::restore::{
    FileSink, PageSink, Report, RestoreError, RestoreSettings, execute,
};
use tidelog_archive::store::Store;

use crate::error::Error;
use crate::operations::Task;
use crate::rebuild::restore_error;

/// Bytes between two reports.
const REPORT_BYTES: u64 = 1 << 20;

/// A sink that counts what is written for an operation.
#[derive(Debug)]
pub(crate) struct Watched<S> {
    sink: S,
    task: Task,
    written: u64,
    reported: u64,
}

impl<S> Watched<S> {
    /// Counts what goes to `sink`.
    pub(crate) const fn new(sink: S, task: Task) -> Self {
        Self {
            sink,
            task,
            written: 0,
            reported: 0,
        }
    }
}

impl<S: PageSink> PageSink for Watched<S> {
    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.sink.write(offset, bytes)?;
        self.written += bytes.len() as u64;
        if self.written - self.reported >= REPORT_BYTES {
            self.reported = self.written;
            self.task.progress(self.written);
            self.check()?;
        }
        Ok(())
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.sink.read(offset, buf)
    }

    fn check(&self) -> io::Result<()> {
        self.task.check().map_err(io::Error::other)
    }

    fn set_len(&mut self, len: u64) -> io::Result<()> {
        self.sink.set_len(len)
    }

    fn finish(&mut self) -> io::Result<()> {
        self.sink.finish()
    }
}

/// Executes a plan into a new file, as a phase of an operation.
pub(crate) async fn materialise(
    store: &Store,
    plan: &Plan,
    path: &Path,
    task: &Task,
) -> Result<Report, Error> {
    task.phase("restoring", plan.target.n.bytes(plan.page_size))?;
    match materialise_raw(store, plan, path, task).await {
        Ok(report) => Ok(report),
        Err(error) => {
            task.check()?;
            Err(restore_error(error))
        }
    }
}

/// The same, for those who tell one failure from another.
pub(crate) async fn materialise_raw(
    store: &Store,
    plan: &Plan,
    path: &Path,
    task: &Task,
) -> Result<Report, RestoreError> {
    let sink = FileSink::create(path)?;
    let (_, report) = materialise_into(store, plan, sink, task).await?;
    Ok(report)
}

/// The same into any sink, which is handed back.
pub(crate) async fn materialise_into<S: PageSink + 'static>(
    store: &Store,
    plan: &Plan,
    sink: S,
    task: &Task,
) -> Result<(S, Report), RestoreError> {
    let sink = Watched::new(sink, task.clone());
    let (watched, report) = execute(store, plan, sink, RestoreSettings::default()).await?;
    Ok((watched.sink, report))
}
