//! Where restored pages go.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, SyncSender};
use std::thread::{self, JoinHandle};

use tidelog_wal::delta::PageDelta;

/// A file to be filled with pages.
pub trait PageSink: Send + Sync {
    /// Writes `bytes` at `offset`, growing the file if needed; what lies between is zeros.
    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Fills `buf` from `offset` on; what lies beyond the end is zeros.
    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;

    /// Asked every few MiB that are read, whether they lead to a write or not: an error ends what fills the sink.
    fn check(&self) -> io::Result<()> {
        Ok(())
    }

    /// Takes the delta of one page as it is, where deltas are merged and no state is made. `false`, and nothing is
    /// taken, where whole pages are wanted instead.
    fn add(&mut self, _page: &PageDelta<'_>) -> io::Result<bool> {
        Ok(false)
    }

    /// Cuts or grows the file to `len` bytes.
    fn set_len(&mut self, len: u64) -> io::Result<()>;

    /// Makes the finished file durable under its name. Called once, after everything was proven.
    fn finish(&mut self) -> io::Result<()>;
}

/// Fills `buf` from `offset` on; what lies beyond the end of the file is zeros.
pub fn fill_from(file: &File, offset: u64, buf: &mut [u8]) -> io::Result<()> {
    let mut filled = 0;
    while let Some(rest) = buf.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, offset + filled as u64) {
            Ok(0) => {
                rest.fill(0);
                return Ok(());
            }
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Bytes that are written between two syncs beside them.
const SYNC_EVERY: u64 = 64 << 20;

/// A thread that syncs a file while it is written, so that its end has little left to wait for.
#[derive(Debug)]
struct Syncing {
    due: SyncSender<()>,
    thread: JoinHandle<io::Result<()>>,
}

impl Syncing {
    fn of(file: File) -> io::Result<Self> {
        let (due, asked) = mpsc::sync_channel(1);
        let sync = move || asked.iter().try_for_each(|()| file.sync_data());
        let thread = thread::Builder::new().name("tidelog-sync".to_owned());
        Ok(Self {
            due,
            thread: thread.spawn(sync)?,
        })
    }

    /// Ends it. The kernel tells an error of writing back once: this may be who heard of it.
    fn end(self) -> io::Result<()> {
        drop(self.due);
        let ended = self.thread.join();
        ended.map_err(|_| io::Error::other("the thread that syncs a file ended"))?
    }
}

/// A file that gets its name when it is finished: until then it stands beside it as `NAME.partial`. It is its owner's
/// alone: the state of a tenant is in it.
///
/// While a large one is written from its start towards its end it is on its way to the disk already. That ends with
/// the first write behind the end: what is written in no order is written more than once, and need reach the disk once.
#[derive(Debug)]
pub struct FileSink {
    file: File,
    /// Where the last write ended, while each began where the one before ended or beyond.
    ordered: Option<u64>,
    /// Bytes written since a sync was asked for.
    unsynced: u64,
    syncing: Option<Syncing>,
    partial: PathBuf,
    path: PathBuf,
    finished: bool,
}

impl FileSink {
    /// A file that will be `path`, which must not exist. A partial file left by an earlier try is replaced.
    pub fn create(path: &Path) -> io::Result<Self> {
        if path.try_exists()? {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                format!("{} exists", path.display()),
            ));
        }
        let mut partial = path.as_os_str().to_owned();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&partial)?;
        Ok(Self {
            file,
            ordered: Some(0),
            unsynced: 0,
            syncing: None,
            partial,
            path: path.to_owned(),
            finished: false,
        })
    }

    /// Has what is written so far synced beside what follows. One sync that still runs is enough: the next takes the rest.
    fn sync_beside(&mut self) {
        self.unsynced = 0;
        if self.syncing.is_none() {
            // Where there is no thread for it, the sync at the end has more to do.
            self.syncing = self.file.try_clone().and_then(Syncing::of).ok();
        }
        if let Some(syncing) = &self.syncing {
            // One that failed says so at the end.
            let _ = syncing.due.try_send(());
        }
    }
}

impl PageSink for FileSink {
    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)?;
        self.ordered = self.ordered.filter(|end| *end <= offset);
        let Some(end) = &mut self.ordered else {
            return Ok(());
        };
        let len = bytes.len() as u64;
        *end = offset.saturating_add(len);
        self.unsynced = self.unsynced.saturating_add(len);
        if self.unsynced >= SYNC_EVERY {
            self.sync_beside();
        }
        Ok(())
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        fill_from(&self.file, offset, buf)
    }

    fn set_len(&mut self, len: u64) -> io::Result<()> {
        self.file.set_len(len)?;
        if self.syncing.is_some() {
            // Little comes behind it; what it is proven by is read meanwhile.
            self.sync_beside();
        }
        Ok(())
    }

    fn finish(&mut self) -> io::Result<()> {
        if let Some(syncing) = self.syncing.take() {
            syncing.end()?;
        }
        self.file.sync_all()?;
        std::fs::rename(&self.partial, &self.path)?;
        self.finished = true;
        let folder = match self.path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        File::open(folder)?.sync_all()
    }
}

impl Drop for FileSink {
    fn drop(&mut self) {
        if !self.finished {
            // Best effort: the next try replaces what is left. A thread that still syncs ends by itself, and holds the file
            // until then: what it takes is given back at once, and nothing is left to sync.
            let _ = self.file.set_len(0);
            let _ = std::fs::remove_file(&self.partial);
        }
    }
}

/// A file in memory: for checks that need no file.
#[derive(Debug, Default)]
pub struct MemorySink {
    /// Its bytes.
    pub bytes: Vec<u8>,
}

impl PageSink for MemorySink {
    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let end = start + bytes.len();
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        if let Some(target) = self.bytes.get_mut(start..end) {
            target.copy_from_slice(bytes);
        }
        Ok(())
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let have = self.bytes.get(start..).unwrap_or_default();
        let now = have.len().min(buf.len());
        let (filled, rest) = buf.split_at_mut(now);
        filled.copy_from_slice(have.get(..now).unwrap_or_default());
        rest.fill(0);
        Ok(())
    }

    fn set_len(&mut self, len: u64) -> io::Result<()> {
        let len = usize::try_from(len).map_err(io::Error::other)?;
        self.bytes.resize(len, 0);
        Ok(())
    }

    fn finish(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: u64 = 4 << 20;

    /// Writes a run of bytes that show where they belong.
    fn write(sink: &mut FileSink, at: u64) -> io::Result<()> {
        let number = u8::try_from(at % 251).expect("below 251");
        let run: Vec<u8> = (0..RUN).map(|at| at.to_le_bytes()[1] ^ number).collect();
        sink.write(at * RUN, &run)
    }

    fn check(path: &Path, runs: u64) {
        let file = File::open(path).expect("its name");
        let mut read = vec![0; usize::try_from(RUN).expect("small")];
        for run in 0..runs {
            fill_from(&file, run * RUN, &mut read).expect("read");
            let number = u8::try_from(run % 251).expect("below 251");
            let same = |(at, byte): (usize, &u8)| *byte == at.to_le_bytes()[1] ^ number;
            assert!(read.iter().enumerate().all(same), "run {run}");
        }
    }

    #[test]
    fn a_large_file_is_synced_beside_what_follows_and_whole() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("large");
        let mut sink = FileSink::create(&path).expect("created");
        let runs = 2 * SYNC_EVERY / RUN + 1;
        for run in 0..runs {
            assert_eq!(sink.syncing.is_some(), run * RUN >= SYNC_EVERY);
            write(&mut sink, run).expect("written");
        }
        assert_eq!(sink.unsynced, RUN);
        sink.finish().expect("finished");
        assert!(sink.syncing.is_none());
        check(&path, runs);
    }

    #[test]
    fn what_is_written_in_no_order_is_synced_at_its_end_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("large");
        let mut sink = FileSink::create(&path).expect("created");
        let runs = 2 * SYNC_EVERY / RUN;
        for run in [1, 0].into_iter().chain(2..runs) {
            write(&mut sink, run).expect("written");
        }
        assert_eq!((sink.unsynced, sink.syncing.is_some()), (RUN, false));
        sink.finish().expect("finished");
        check(&path, runs);
    }

    #[test]
    fn scattered_pages_are_counted_by_their_bytes() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut sink = FileSink::create(&folder.path().join("sparse")).expect("created");
        for page in 0..8 {
            sink.write(page * SYNC_EVERY, &[1; 512]).expect("written");
        }
        assert!(sink.syncing.is_none());
    }

    #[test]
    fn a_sync_that_failed_beside_fails_the_end() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("file");
        let mut sink = FileSink::create(&path).expect("created");
        sink.write(0, &[1; 512]).expect("written");
        // What is no file cannot be synced.
        let other = File::open("/dev/null").expect("open");
        sink.syncing = Some(Syncing::of(other).expect("begun"));
        sink.sync_beside();
        sink.finish().expect_err("it failed");
        drop(sink);
        assert_eq!(std::fs::read_dir(folder.path()).expect("list").count(), 0);
    }
}
