//! A database file of this machine, before it is sent anywhere.
//!
//! A rollback journal or a WAL beside a file holds a part of its content: sending the file alone would lose it.
//! It is recovered into a temporary copy, as SQLite would, and that is said.

use std::path::{Path, PathBuf};

use tempfile::TempDir;
use tidelog_engine::sql::fold;

use super::exit::Failure;
use super::output::Output;

/// A file that is a whole database by itself.
#[derive(Debug)]
pub(super) struct Whole {
    path: PathBuf,
    /// Holds the copy, if one had to be made.
    _folder: Option<TempDir>,
}

impl Whole {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

/// The file as a whole database.
pub(super) fn whole_file(path: &Path, output: Output) -> Result<Whole, Failure> {
    if !fold::has_more(path) {
        return Ok(Whole {
            path: path.to_owned(),
            _folder: None,
        });
    }
    let folder = tempfile::tempdir()
        .map_err(|error| Failure::failed(format!("cannot make a temporary folder: {error}")))?;
    let copy = folder.path().join("database");
    fold::fold(path, &copy)?;
    output.remark(&format!(
        "a WAL or rollback journal lies beside {}: it was recovered into a copy, which is sent; \
         the file itself is as it was",
        path.display()
    ));
    Ok(Whole {
        path: copy,
        _folder: Some(folder),
    })
}
