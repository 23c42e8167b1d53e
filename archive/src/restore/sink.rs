//! Where restored pages go.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use tidelog_wal::delta::PageDelta;

/// A file to be filled with pages.
pub trait PageSink: Send {
    /// Writes `bytes` at `offset`, growing the file if needed; what lies between is zeros.
    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Fills `buf` from `offset` on; what lies beyond the end is zeros.
    fn read(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<()>;

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

/// A file that gets its name when it is finished: until then it stands beside it as `NAME.partial`. It is its owner's
/// alone: the state of a tenant is in it.
#[derive(Debug)]
pub struct FileSink {
    file: File,
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
            partial,
            path: path.to_owned(),
            finished: false,
        })
    }
}

impl PageSink for FileSink {
    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    fn read(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        fill_from(&self.file, offset, buf)
    }

    fn set_len(&mut self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn finish(&mut self) -> io::Result<()> {
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
            // Best effort: the next try replaces what is left.
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

    fn read(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
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
