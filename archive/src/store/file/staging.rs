//! Where files are written before they get their names: a folder for each process, with a lock on it that
//! says whether the process lives.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::lock::Lock;

/// How many ids a process tries before it gives up.
const ID_TRIES: u64 = 100_000;

/// The staging folder of this handle.
#[derive(Debug)]
pub(super) struct Staging {
    folder: PathBuf,
    lock_path: PathBuf,
    next: AtomicU64,
    _alive: Lock,
}

impl Staging {
    /// A folder of our own below `parent`, after those of the dead have been removed.
    pub(super) fn open(parent: &Path) -> io::Result<Self> {
        fs::create_dir_all(parent)?;
        // One at a time: between making a lock file and locking it, it looks like a dead one's.
        let _turn = Lock::take(&parent.join("turn"))?;
        sweep(parent)?;
        for id in 0..ID_TRIES {
            let lock_path = parent.join(format!("{id}.lock"));
            if lock_path.exists() {
                continue;
            }
            let Some(alive) = Lock::try_take(&lock_path)? else {
                continue;
            };
            let folder = parent.join(id.to_string());
            fs::create_dir_all(&folder)?;
            return Ok(Self {
                folder,
                lock_path,
                next: AtomicU64::new(0),
                _alive: alive,
            });
        }
        Err(io::Error::other("too many processes have this store open"))
    }

    /// A new, empty file, and its path.
    pub(super) fn file(&self) -> io::Result<(File, PathBuf)> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let path = self.folder.join(number.to_string());
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)?;
        Ok((file, path))
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // What fails here is removed by the next process that opens the store. The lock goes last.
        let _ = fs::remove_dir_all(&self.folder);
        let _ = fs::remove_file(&self.lock_path);
    }
}

/// Removes the folders of processes that are gone.
fn sweep(parent: &Path) -> io::Result<()> {
    for entry in fs::read_dir(parent)? {
        let lock_path = entry?.path();
        if lock_path
            .extension()
            .is_none_or(|extension| extension != "lock")
        {
            continue;
        }
        if let Some(_dead) = Lock::try_take(&lock_path)? {
            match fs::remove_dir_all(lock_path.with_extension("")) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            match fs::remove_file(&lock_path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_of_the_living_are_kept_and_those_of_the_dead_removed() {
        let dir = tempfile::tempdir().unwrap();
        let living = Staging::open(dir.path()).unwrap();
        let (_, kept) = living.file().unwrap();
        // A dead process: its folder and its lock file, held by nobody.
        fs::create_dir(dir.path().join("77")).unwrap();
        fs::write(dir.path().join("77/0"), b"half").unwrap();
        fs::write(dir.path().join("77.lock"), b"").unwrap();

        let other = Staging::open(dir.path()).unwrap();
        assert!(kept.exists());
        assert!(!dir.path().join("77").exists());
        assert!(!dir.path().join("77.lock").exists());
        assert_ne!(other.folder, living.folder);
        drop(living);
        assert!(!kept.exists());
    }
}
