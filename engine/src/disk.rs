//! The local disk as the engine's own files see it: journal chunks, spools, state files.
//!
//! A trait, so that tests can make the n-th call fail. SQLite's files are not written through it: they
//! belong to [`crate::files`].
//!
//! Guarantees of [`StdDisk`]: `write_atomic` leaves the old or the new bytes, synced with their folder,
//! whatever dies; `create` syncs the folder, so that a chunk that was synced is found again.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// A file that grows at its end.
pub trait AppendFile: Send + Sync + fmt::Debug {
    /// Writes `bytes` at `offset`. On an error some of them may stand there.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Makes everything written durable.
    fn sync(&self) -> io::Result<()>;
    /// Cuts the file back to `len` bytes.
    fn truncate(&self, len: u64) -> io::Result<()>;
}

/// The calls the engine makes to its own files.
pub trait Disk: Send + Sync + fmt::Debug {
    /// Creates a file that must not exist, and syncs its folder.
    fn create(&self, path: &Path) -> io::Result<Box<dyn AppendFile>>;
    /// Reads a whole file.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;
    /// Reads `len` bytes at `offset`.
    fn read_at(&self, path: &Path, offset: u64, len: usize) -> io::Result<Vec<u8>>;
    /// Replaces a file by these bytes, or leaves the old ones; synced, with its folder.
    fn write_atomic(&self, path: &Path, bytes: &[u8]) -> io::Result<()>;
    /// Removes a file; one that does not exist is no error.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// The files of a folder, sorted by name, with their lengths.
    fn list(&self, folder: &Path) -> io::Result<Vec<(PathBuf, u64)>>;
    /// Makes a folder and those above it, synced.
    fn create_folder(&self, folder: &Path) -> io::Result<()>;
    /// Bytes that this user may still write on the disk of `folder`.
    fn free_bytes(&self, folder: &Path) -> io::Result<u64>;
}

/// The real disk.
#[derive(Debug, Clone, Copy, Default)]
pub struct StdDisk;

#[derive(Debug)]
struct StdFile(File);

impl AppendFile for StdFile {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
}

/// Syncs the folder that holds `path`, so that its entry survives power loss.
pub(crate) fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
        _ => Ok(()),
    }
}

/// Everything the engine writes is private to its user.
fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.mode(0o600);
    options
}

impl Disk for StdDisk {
    fn create(&self, path: &Path) -> io::Result<Box<dyn AppendFile>> {
        let file = private()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path)?;
        sync_parent(path)?;
        Ok(Box::new(StdFile(file)))
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(path)?.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn read_at(&self, path: &Path, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        File::open(path)?.read_exact_at(&mut bytes, offset)?;
        Ok(bytes)
    }

    fn write_atomic(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut staged = path.as_os_str().to_owned();
        staged.push(".new");
        let staged = PathBuf::from(staged);
        let mut file = private()
            .write(true)
            .create(true)
            .truncate(true)
            .open(&staged)?;
        file.write_all(bytes)?;
        file.sync_data()?;
        fs::rename(&staged, path)?;
        sync_parent(path)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        match fs::remove_file(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<(PathBuf, u64)>> {
        let mut files = Vec::new();
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let meta = match entry.metadata() {
                Ok(meta) => meta,
                // Removed since the folder was read: it is not there.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            if meta.is_file() {
                files.push((entry.path(), meta.len()));
            }
        }
        files.sort();
        Ok(files)
    }

    fn create_folder(&self, folder: &Path) -> io::Result<()> {
        fs::create_dir_all(folder)?;
        sync_parent(folder)
    }

    fn free_bytes(&self, folder: &Path) -> io::Result<u64> {
        let found = rustix::fs::statvfs(folder)?;
        Ok(found.f_bavail.saturating_mul(found.f_frsize))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_removed_twice() {
        let folder = tempfile::tempdir().expect("tempdir");
        let path = folder.path().join("state");
        StdDisk.write_atomic(&path, b"one").expect("write");
        StdDisk.write_atomic(&path, b"three").expect("write");
        assert_eq!(StdDisk.read(&path).expect("read"), b"three");
        assert_eq!(
            StdDisk.list(folder.path()).expect("list"),
            [(path.clone(), 5)]
        );
        StdDisk.remove(&path).expect("remove");
        StdDisk
            .remove(&path)
            .expect("removing what is gone is no error");
    }

    #[test]
    fn a_folder_is_listed_while_files_in_it_go() {
        // Goal: what is removed between the reading of a folder and the look at a file is no failure. Method: many
        // lists beside a thread that makes and removes; nearly every run meets it.
        let folder = tempfile::tempdir().expect("tempdir");
        let stays = folder.path().join("stays");
        fs::write(&stays, b"x").expect("write");
        let done = std::sync::atomic::AtomicBool::new(false);
        let paths: Vec<_> = (0..64)
            .map(|n| folder.path().join(format!("goes-{n}")))
            .collect();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    for path in &paths {
                        fs::write(path, b"y").expect("write");
                    }
                    for path in &paths {
                        StdDisk.remove(path).expect("remove");
                    }
                }
            });
            for _ in 0..500 {
                let listed = StdDisk.list(folder.path());
                let found = listed
                    .as_ref()
                    .is_ok_and(|it| it.contains(&(stays.clone(), 1)));
                if !found {
                    done.store(true, std::sync::atomic::Ordering::Relaxed);
                }
                assert!(found, "{listed:?}");
            }
            done.store(true, std::sync::atomic::Ordering::Relaxed);
        });
    }

    #[test]
    fn creating_a_file_that_exists_is_refused() {
        let folder = tempfile::tempdir().expect("tempdir");
        let path = folder.path().join("chunk");
        let file = StdDisk.create(&path).expect("create");
        file.write_at(0, b"abcdef").expect("write");
        file.truncate(3).expect("truncate");
        file.sync().expect("sync");
        assert!(StdDisk.create(&path).is_err());
        assert_eq!(StdDisk.read_at(&path, 1, 2).expect("read"), b"bc");
    }
}
