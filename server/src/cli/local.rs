//! A database file of this machine, before it is sent anywhere.
//!
//! A rollback journal or a WAL beside a file holds a part of its content: sending the file alone would lose it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::exit::{Exit, Failure};
use super::output::Output;

/// A file that is a whole database by itself.
#[derive(Debug)]
pub(super) struct Whole {
    path: PathBuf,
}

impl Whole {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

/// The file as a whole database.
pub(super) fn whole_file(path: &Path, _output: &Output) -> Result<Whole, Failure> {
    for suffix in ["-wal", "-journal"] {
        let mut beside = OsString::from(path);
        beside.push(suffix);
        let beside = PathBuf::from(beside);
        if beside.metadata().is_ok_and(|found| found.len() > 0) {
            let text = format!(
                "{} stands beside the database and holds a part of it: close the program that writes it, \
                 or fold it in with `sqlite3 {} 'pragma journal_mode=delete'`",
                beside.display(),
                path.display()
            );
            return Err(Failure::new(Exit::Refused, text));
        }
    }
    Ok(Whole {
        path: path.to_owned(),
    })
}
