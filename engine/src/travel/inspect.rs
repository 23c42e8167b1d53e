//! Looking at a finished SQLite file that nobody else has open: is it sound, what does it hold.
//!
//! The file is read as immutable: no lock, no WAL beside it, no byte changed. It may come from anywhere, so its
//! schema is untrusted.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};
use sha2::{Digest as _, Sha256};

use crate::error::{Code, Error};
use crate::operations::Task;

/// Virtual machine steps between two looks at whether the operation goes on.
const STEPS_PER_CHECK: i32 = 100_000;
/// Findings of an integrity check that are kept.
const FINDINGS_MAX: u32 = 10;
/// The table that keeps answers to repeated calls, closed to tenants.
pub(crate) const HIDDEN_TABLE: &str = "_tidelog_requests";

/// How thoroughly a file is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Check {
    /// Every page and cell, without comparing indexes with their tables.
    Quick,
    /// Everything SQLite can check.
    Full,
}

/// What a file holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Inspection {
    /// `ok`, or what SQLite found.
    pub(crate) integrity: String,
    /// Rows by table; `None` where the table could not be read.
    pub(crate) rows: BTreeMap<String, Option<u64>>,
    /// SHA-256 over the schema, where it can be read.
    pub(crate) schema_sha256: Option<String>,
}

/// Opens a finished file for reading alone. `task` stops what runs on it.
pub(crate) fn open_finished(file: &Path, task: Option<&Task>) -> Result<Connection, Error> {
    let failed = |e: rusqlite::Error| {
        Error::new(Code::DatabaseCorrupt, "open a finished database file").caused_by(e)
    };
    let mut uri = String::from("file:");
    for byte in file.as_os_str().as_bytes() {
        if byte.is_ascii_alphanumeric() || b"/._-".contains(byte) {
            uri.push(char::from(*byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(uri, "%{byte:02X}");
        }
    }
    uri.push_str("?immutable=1");
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY
        | OpenFlags::SQLITE_OPEN_URI
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(uri, flags).map_err(failed)?;
    connection
        .set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)
        .and_then(|_| connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true))
        .and_then(|_| {
            connection.execute_batch(
                "PRAGMA cell_size_check=ON; PRAGMA mmap_size=0; PRAGMA temp_store=MEMORY; \
                 PRAGMA query_only=ON",
            )
        })
        .map_err(failed)?;
    if let Some(task) = task.cloned() {
        connection
            .progress_handler(STEPS_PER_CHECK, Some(move || task.check().is_err()))
            .map_err(failed)?;
    }
    Ok(connection)
}

/// Has SQLite check a file: `ok`, or what it found.
pub(crate) fn integrity(file: &Path, check: Check, task: &Task) -> Result<String, Error> {
    let connection = open_finished(file, Some(task))?;
    let found = integrity_of(&connection, check);
    task.check()?;
    Ok(found)
}

/// Has SQLite check everything it can of a finished file that nobody else has open: `ok`, or what it found.
pub fn integrity_of_file(file: &Path) -> Result<String, Error> {
    let connection = open_finished(file, None)?;
    Ok(integrity_of(&connection, Check::Full))
}

/// Checks a file and says what it holds. A damaged file is no error: the inspection says so.
pub(crate) fn inspect(file: &Path, check: Check, task: &Task) -> Result<Inspection, Error> {
    let connection = open_finished(file, Some(task))?;
    let integrity = integrity_of(&connection, check);
    task.check()?;
    let mut rows = BTreeMap::new();
    for table in tables(&connection).unwrap_or_default() {
        let sql = format!("SELECT count(*) FROM {}", quoted(&table));
        let count = connection.query_row(&sql, [], |row| row.get::<_, i64>(0));
        task.check()?;
        rows.insert(
            table,
            count.ok().and_then(|count| u64::try_from(count).ok()),
        );
    }
    Ok(Inspection {
        integrity,
        rows,
        schema_sha256: schema_sha256(&connection).ok(),
    })
}

fn integrity_of(connection: &Connection, check: Check) -> String {
    let found = lines_of(connection, check);
    found.unwrap_or_else(|e| format!("SQLite cannot check it: {e}"))
}

fn lines_of(connection: &Connection, check: Check) -> rusqlite::Result<String> {
    let pragma = match check {
        Check::Quick => "quick_check",
        Check::Full => "integrity_check",
    };
    let mut select = connection.prepare(&format!("PRAGMA {pragma}({FINDINGS_MAX})"))?;
    let lines = select.query_map([], |row| row.get::<_, String>(0))?;
    let lines: Vec<String> = lines.collect::<Result<_, _>>()?;
    Ok(lines.join("; "))
}

/// The tables that hold rows of their own: not virtual ones, not SQLite's and not ours.
fn tables(connection: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut select = connection.prepare(
        "SELECT name FROM pragma_table_list WHERE schema = 'main' AND type = 'table' \
         AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' AND name <> ?1 ORDER BY name",
    )?;
    select
        .query_map([HIDDEN_TABLE], |row| row.get(0))?
        .collect()
}

/// SHA-256 over type, name, table and SQL of every entry of the schema, in that order, each ended by a zero
/// byte. Entries of SQLite's own and of ours do not count.
fn schema_sha256(connection: &Connection) -> rusqlite::Result<String> {
    let mut select = connection.prepare(
        "SELECT type, name, tbl_name, coalesce(sql, '') FROM sqlite_schema \
         WHERE name NOT LIKE 'sqlite\\_%' ESCAPE '\\' AND tbl_name <> ?1 ORDER BY 1, 2, 3, 4",
    )?;
    let mut rows = select.query([HIDDEN_TABLE])?;
    let mut hash = Sha256::new();
    while let Some(row) = rows.next()? {
        for column in 0..4 {
            hash.update(row.get_ref(column)?.as_bytes().unwrap_or_default());
            hash.update([0]);
        }
    }
    Ok(hex(&hash.finalize()))
}

/// A name as SQL writes it.
pub(crate) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Bytes as lower-case hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}
