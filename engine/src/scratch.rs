//! Scratch files of long work, below `work` in the data folder, that go away with their owner, and with the process life:
//! folders for what SQLite reads, sealed files without a name for what this program alone reads. Work that would not
//! fit the disk is refused before it begins, with both figures.

mod pages;

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::core::Core;
use crate::error::{Code, Error};

pub(crate) use pages::{PageWriter, ScratchPages};

/// Left free of what the disk has, for everything else that writes: journal, WALs.
const KEPT_FREE: u64 = 64 << 20;

fn root(core: &Core) -> PathBuf {
    core.settings.data.join("work")
}

/// Removes what an earlier process life left; older programs had a folder of their own for images.
pub(crate) fn empty(core: &Core) -> Result<(), Error> {
    for folder in [root(core), core.settings.data.join("retention")] {
        match std::fs::remove_dir_all(folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io("empty the scratch folder", error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// A folder for `what`, on whose disk `bytes` will be written.
pub(crate) fn folder(core: &Core, what: &str, bytes: u64) -> Result<TempDir, Error> {
    let io = |e| Error::io("make a scratch folder", e);
    let root = root(core);
    std::fs::create_dir_all(&root).map_err(io)?;
    ensure(core, &root, what, bytes)?;
    tempfile::Builder::new()
        .prefix("scratch-")
        .tempdir_in(&root)
        .map_err(io)
}

/// Refuses `what`, which writes `bytes` below `folder`, where they do not fit.
pub(crate) fn ensure(core: &Core, folder: &Path, what: &str, bytes: u64) -> Result<(), Error> {
    let io = |e| Error::io("look how much of the disk is free", e);
    let free = core.parts.disk.free_bytes(folder).map_err(io)?;
    if free.saturating_sub(KEPT_FREE) >= bytes {
        return Ok(());
    }
    let text = format!(
        "{what} needs {bytes} bytes of disk below {} beside {KEPT_FREE} that stay free; {free} are free",
        folder.display()
    );
    Err(Error::new(Code::DiskFull, text)
        .with("needed", bytes)
        .with("free", free))
}
