//! The blocking half of the filesystem store: staging, publishing, locking, syncing. See [`super`].

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use object_store::PutPayload;

use super::lock::Lock;
use super::staging::Staging;
use super::{DIGEST_MAX, PRIVATE};

/// A failure of the filesystem, with the path and what was attempted.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}", path.display())]
struct FileError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// A sync has failed: what is on disk is unknown.
#[derive(Debug, thiserror::Error)]
#[error("an earlier sync of this folder failed, so it is not used any more")]
struct Poisoned;

pub(super) fn failed(action: &'static str, path: &Path, source: io::Error) -> object_store::Error {
    object_store::Error::Generic {
        store: "FileStore",
        source: Box::new(FileError {
            action,
            path: path.to_owned(),
            source,
        }),
    }
}

fn refused(path: &Path) -> object_store::Error {
    object_store::Error::Precondition {
        path: path.display().to_string(),
        source: "the object is another version".into(),
    }
}

/// A file that is written and synced, and not yet named. Removed if it is never published.
#[derive(Debug)]
pub(super) struct Staged {
    pub(super) file: File,
    pub(super) path: PathBuf,
    pub(super) version: Option<String>,
}

impl Drop for Staged {
    fn drop(&mut self) {
        // Renamed files are gone already; linked ones have their own name.
        let _ = fs::remove_file(&self.path);
    }
}

/// The folder of a store.
#[derive(Debug)]
pub(super) struct Place {
    root: PathBuf,
    locks: PathBuf,
    staging: Staging,
    /// Folders whose own names are known to be synced.
    synced: Mutex<HashSet<PathBuf>>,
    poisoned: AtomicBool,
}

impl Place {
    pub(super) fn open(folder: &Path) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let root = fs::canonicalize(folder)?;
        // The root's own name, and those of the folders above it that may have been made just now.
        for above in root.ancestors().skip(1) {
            match File::open(above).and_then(|file| file.sync_all()) {
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => break,
                other => other?,
            }
        }
        let locks = root.join(PRIVATE).join("locks");
        fs::create_dir_all(&locks)?;
        let staging = Staging::open(&root.join(PRIVATE).join("staging"))?;
        Ok(Self {
            root,
            locks,
            staging,
            synced: Mutex::new(HashSet::new()),
            poisoned: AtomicBool::new(false),
        })
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Refuses everything after a failed sync.
    pub(super) fn check(&self) -> object_store::Result<()> {
        if self.poisoned.load(Ordering::Acquire) {
            return Err(object_store::Error::Generic {
                store: "FileStore",
                source: Box::new(Poisoned),
            });
        }
        Ok(())
    }

    /// From now on nothing is known about what is on disk.
    pub(super) fn poison(&self) {
        self.poisoned.store(true, Ordering::Release);
    }

    pub(super) fn stage_empty(&self) -> object_store::Result<Staged> {
        let (file, path) = self
            .staging
            .file()
            .map_err(|error| failed("stage a file in", &self.root, error))?;
        Ok(Staged {
            file,
            path,
            version: None,
        })
    }

    pub(super) fn stage(&self, payload: &PutPayload) -> object_store::Result<Staged> {
        let mut staged = self.stage_empty()?;
        for bytes in payload {
            (&staged.file)
                .write_all(bytes)
                .map_err(|error| failed("write", &staged.path, error))?;
        }
        self.sync(&staged.file, &staged.path)?;
        if payload.content_length() as u64 <= DIGEST_MAX {
            let mut hasher = blake3::Hasher::new();
            for bytes in payload {
                hasher.update(bytes);
            }
            staged.version = Some(quoted(&hasher));
        }
        Ok(staged)
    }

    /// Syncs a staged file that was written piece by piece, and names its version.
    pub(super) fn seal(&self, staged: &mut Staged) -> object_store::Result<()> {
        self.sync(&staged.file, &staged.path)?;
        let version = staged
            .file
            .metadata()
            .and_then(|metadata| version_of(&staged.file, metadata.len()))
            .map_err(|error| failed("read", &staged.path, error))?;
        staged.version = version;
        Ok(())
    }

    pub(super) fn create(&self, staged: &Staged, target: &Path) -> object_store::Result<()> {
        let folder = self.folder_of(target)?;
        match fs::hard_link(&staged.path, target) {
            Ok(()) => self.sync(&folder, target),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                self.sync(&folder, target)?;
                Err(object_store::Error::AlreadyExists {
                    path: target.display().to_string(),
                    source: Box::new(error),
                })
            }
            Err(error) => Err(failed("link", target, error)),
        }
    }

    pub(super) fn overwrite(&self, staged: &Staged, target: &Path) -> object_store::Result<()> {
        let folder = self.folder_of(target)?;
        let _lock = self.lock(target)?;
        self.publish(staged, target, &folder)
    }

    pub(super) fn replace(
        &self,
        staged: &Staged,
        target: &Path,
        expected: &str,
    ) -> object_store::Result<()> {
        let folder = self.folder_of(target)?;
        let _lock = self.lock(target)?;
        let found = match File::open(target).and_then(|file| {
            let length = file.metadata()?.len();
            version_of(&file, length)
        }) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(refused(target)),
            Err(error) => return Err(failed("read", target, error)),
        };
        if found.as_deref() != Some(expected) {
            self.sync(&folder, target)?;
            return Err(refused(target));
        }
        self.publish(staged, target, &folder)
    }

    pub(super) fn delete(&self, target: &Path) -> object_store::Result<()> {
        let missing = |error| object_store::Error::NotFound {
            path: target.display().to_string(),
            source: Box::new(error),
        };
        let folder = match File::open(target.parent().unwrap_or(&self.root)) {
            Ok(folder) => folder,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(missing(error)),
            Err(error) => return Err(failed("open the folder of", target, error)),
        };
        let _lock = self.lock(target)?;
        match fs::remove_file(target) {
            Ok(()) => self.sync(&folder, target),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(missing(error)),
            Err(error) => Err(failed("delete", target, error)),
        }
    }

    fn publish(&self, staged: &Staged, target: &Path, folder: &File) -> object_store::Result<()> {
        fs::rename(&staged.path, target).map_err(|error| failed("rename", target, error))?;
        self.sync(folder, target)
    }

    /// The lock of `target`'s key. Shared with one in 256 other keys by chance, which only costs time.
    fn lock(&self, target: &Path) -> object_store::Result<Lock> {
        let hash = blake3::hash(target.as_os_str().as_encoded_bytes());
        let path = self.locks.join(format!("{:02x}", hash.as_bytes()[0]));
        Lock::take(&path).map_err(|error| failed("lock", &path, error))
    }

    /// The folder of `target`, open for syncing, made if need be, with its name synced and those of the
    /// folders above it. Opened before anything is named in it: once a name is visible, the only thing that
    /// can still fail is the sync, and that poisons.
    fn folder_of(&self, target: &Path) -> object_store::Result<File> {
        let path = target.parent().unwrap_or(&self.root);
        let open =
            |path: &Path| File::open(path).map_err(|error| failed("open the folder", path, error));
        if !self.knows(path) {
            fs::create_dir_all(path).map_err(|error| failed("make the folder", path, error))?;
            // Another process may have made a folder and not synced it yet: sync them all, once.
            for above in path.ancestors() {
                self.sync(&open(above)?, above)?;
                if above == self.root {
                    break;
                }
            }
            if let Ok(mut synced) = self.synced.lock() {
                synced.insert(path.to_owned());
            }
        }
        open(path)
    }

    fn knows(&self, folder: &Path) -> bool {
        // A poisoned set only costs a sync.
        self.synced
            .lock()
            .is_ok_and(|synced| synced.contains(folder))
    }

    fn sync(&self, file: &File, path: &Path) -> object_store::Result<()> {
        file.sync_all().map_err(|error| {
            self.poison();
            failed("sync", path, error)
        })
    }
}

fn quoted(hasher: &blake3::Hasher) -> String {
    format!("\"{}\"", hasher.finalize().to_hex())
}

/// The version of a file of this length, read through its descriptor without moving it.
pub(super) fn version_of(file: &File, length: u64) -> io::Result<Option<String>> {
    if length > DIGEST_MAX {
        return Ok(None);
    }
    let mut hasher = blake3::Hasher::new();
    let (mut buffer, mut offset) = (vec![0; 64 << 10], 0);
    loop {
        match file.read_at(&mut buffer, offset) {
            Ok(0) => return Ok(Some(quoted(&hasher))),
            Ok(read) => {
                hasher.update(buffer.get(..read).unwrap_or_default());
                offset += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
