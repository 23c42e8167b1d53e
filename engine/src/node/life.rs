//! The mark of the last life of a data folder: `life.json`.
//!
//! It tells the next life whether anything can have been lost: nothing is, if the last one stopped in order, or if
//! the machine was not started anew since (a process that dies leaves everything it wrote to the operating system).
//! It also keeps what a start without the store cannot read from the root.

use std::path::Path;

use serde::{Deserialize, Serialize};
use tidelog_wal::{DatabaseId, NamespaceId};

use crate::disk::Disk;
use crate::error::{Code, Error};

const VERSION: u32 = 1;

/// The id that the running kernel drew when the machine was started; `None` where there is none.
pub fn boot_id() -> Option<String> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

/// What `life.json` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Life {
    /// The boot id of the machine it ran on.
    pub boot: Option<String>,
    /// It stopped in order: everything it wrote is synced.
    pub stopped: bool,
    /// Where the system database is.
    pub system: (NamespaceId, DatabaseId),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    version: u32,
    boot: Option<String>,
    stopped: bool,
    system_namespace: String,
    system_database: String,
}

impl Life {
    /// Reads the mark; `None` if there is none, or none that can be read: a life that is not known is one after
    /// which anything can have been lost.
    pub fn read(disk: &dyn Disk, data: &Path) -> Result<Option<Self>, Error> {
        let path = data.join("life.json");
        let bytes = match disk.read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io(format!("read {}", path.display()), error)),
        };
        let Ok(stored) = serde_json::from_slice::<Stored>(&bytes) else {
            return Ok(None);
        };
        if stored.version != VERSION {
            let (path, found) = (path.display(), stored.version);
            let what = format!("{path} has version {found}, this program reads {VERSION}");
            return Err(Error::new(Code::Refused, what));
        }
        let namespace = stored.system_namespace.parse().ok();
        let database = stored.system_database.parse().ok();
        Ok(namespace.zip(database).map(|system| Self {
            boot: stored.boot,
            stopped: stored.stopped,
            system,
        }))
    }

    /// Replaces the mark, synced.
    pub fn write(&self, disk: &dyn Disk, data: &Path) -> Result<(), Error> {
        let stored = Stored {
            version: VERSION,
            boot: self.boot.clone(),
            stopped: self.stopped,
            system_namespace: self.system.0.to_string(),
            system_database: self.system.1.to_string(),
        };
        let bytes = serde_json::to_vec_pretty(&stored)
            .map_err(|e| Error::internal("encode life.json").caused_by(e))?;
        disk.write_atomic(&data.join("life.json"), &bytes)
            .map_err(|e| Error::io("write life.json", e))
    }

    /// Whether the machine it ran on, with the boot id `now`, was not started anew since.
    pub fn is_of_boot(&self, now: Option<&str>) -> bool {
        now.is_some() && self.boot.as_deref() == now
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::StdDisk;

    #[test]
    fn a_life_round_trips_and_an_unknown_boot_is_no_boot() {
        let folder = tempfile::tempdir().expect("tempdir");
        let read = || Life::read(&StdDisk, folder.path()).expect("read");
        assert_eq!(read(), None);
        let system = (
            NamespaceId::from_bytes([1; 16]),
            DatabaseId::from_bytes([2; 16]),
        );
        let boot = Some("a".to_owned());
        let life = Life {
            boot,
            stopped: true,
            system,
        };
        life.write(&StdDisk, folder.path()).expect("write");
        assert_eq!(read().as_ref(), Some(&life));
        assert!(life.is_of_boot(Some("a")));
        assert!(!life.is_of_boot(Some("b")));
        let unknown = Life { boot: None, ..life };
        assert!(!unknown.is_of_boot(None));
        std::fs::write(folder.path().join("life.json"), b"{").expect("damage");
        assert_eq!(read(), None);
    }
}
