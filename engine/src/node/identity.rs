//! Who this data folder is: a lock against a second process, and the identity file.
//!
//! `node.json` names the node, the bucket it belongs to and the store it was started with. A folder that meets
//! another bucket refuses to start: it would mix two histories.

use std::fs::{File, TryLockError};
use std::path::Path;

use serde::{Deserialize, Serialize};
use tidelog_wal::{ClusterId, NodeId, Term};

use crate::disk::Disk;
use crate::error::{Code, Error};

const VERSION: u32 = 1;

/// Holds the data folder for this process.
#[derive(Debug)]
pub struct FolderLock {
    file: File,
}

impl Drop for FolderLock {
    /// Said, not left to the last descriptor: a child that this process is just starting has a copy of it until it runs
    /// its own program.
    fn drop(&mut self) {
        // Closing is what is left where it cannot be said.
        let _ = self.file.unlock();
    }
}

impl FolderLock {
    /// Takes the folder, or says that another process has it.
    pub fn take(data: &Path) -> Result<Self, Error> {
        let path = data.join("lock");
        let io = |e| Error::io(format!("open the lock file {}", path.display()), e);
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(io)?;
        match file.try_lock() {
            Ok(()) => Ok(Self { file }),
            Err(TryLockError::WouldBlock) => {
                let what = format!("another server runs on the data folder {}", data.display());
                Err(Error::new(Code::Refused, what))
            }
            Err(TryLockError::Error(error)) => Err(io(error)),
        }
    }
}

/// What `node.json` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// This node.
    pub node: NodeId,
    /// The bucket it belongs to.
    pub cluster: ClusterId,
    /// The store it was started with.
    pub store_url: String,
    /// The terms of its last life and of starts since then that did not come about, ascending: a term of
    /// this folder that was closed by any other was closed by a life the folder does not know.
    pub terms: Vec<Term>,
    /// The bucket was sealed when it was served last: one without the system database's key has lost it.
    pub sealed: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    version: u32,
    node: String,
    cluster: String,
    store: String,
    terms: Vec<u32>,
    #[serde(default, skip_serializing_if = "is_false")]
    sealed: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks so")]
const fn is_false(flag: &bool) -> bool {
    !*flag
}

impl Identity {
    /// Reads the identity of the folder; `None` if it never served.
    pub fn read(disk: &dyn Disk, data: &Path) -> Result<Option<Self>, Error> {
        let path = data.join("node.json");
        let bytes = match disk.read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io(format!("read {}", path.display()), error)),
        };
        let damaged = || Error::new(Code::Refused, format!("{} is damaged", path.display()));
        let stored: Stored = serde_json::from_slice(&bytes).map_err(|e| damaged().caused_by(e))?;
        if stored.version != VERSION {
            let what = format!(
                "{} has version {}, this program reads 1",
                path.display(),
                stored.version
            );
            return Err(Error::new(Code::Refused, what));
        }
        Ok(Some(Self {
            node: stored.node.parse().map_err(|e| damaged().caused_by(e))?,
            cluster: stored.cluster.parse().map_err(|e| damaged().caused_by(e))?,
            store_url: stored.store,
            terms: stored.terms.into_iter().map(Term::new).collect(),
            sealed: stored.sealed,
        }))
    }

    /// Replaces the identity of the folder, synced.
    pub fn write(&self, disk: &dyn Disk, data: &Path) -> Result<(), Error> {
        let stored = Stored {
            version: VERSION,
            node: self.node.to_string(),
            cluster: self.cluster.to_string(),
            store: self.store_url.clone(),
            terms: self.terms.iter().map(|term| term.get()).collect(),
            sealed: self.sealed,
        };
        let bytes = serde_json::to_vec_pretty(&stored)
            .map_err(|e| Error::internal("encode node.json").caused_by(e))?;
        disk.write_atomic(&data.join("node.json"), &bytes)
            .map_err(|e| Error::io("write node.json", e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::StdDisk;

    #[test]
    fn a_second_process_on_the_folder_is_refused() {
        let folder = tempfile::tempdir().expect("tempdir");
        let held = FolderLock::take(folder.path()).expect("first");
        let error = FolderLock::take(folder.path()).expect_err("second");
        assert_eq!(error.code(), Code::Refused);
        drop(held);
        FolderLock::take(folder.path()).expect("after the first is gone");
    }

    #[test]
    fn identity_round_trips() {
        let folder = tempfile::tempdir().expect("tempdir");
        assert_eq!(Identity::read(&StdDisk, folder.path()).expect("none"), None);
        for sealed in [false, true] {
            let identity = Identity {
                node: NodeId::from_bytes([1; 16]),
                cluster: ClusterId::from_bytes([2; 16]),
                store_url: "file://./x".to_owned(),
                terms: vec![Term::new(3)],
                sealed,
            };
            identity.write(&StdDisk, folder.path()).expect("write");
            assert_eq!(
                Identity::read(&StdDisk, folder.path()).expect("read"),
                Some(identity)
            );
        }
    }
}
