//! A local SQLite file made whole: what lies beside it as WAL or rollback journal is recovered into a copy.

use std::fs;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags};

use crate::error::{Code, Error};

/// The files that may hold a part of a database.
const BESIDE: [&str; 2] = ["-wal", "-journal"];

fn beside(file: &Path, suffix: &str) -> PathBuf {
    let mut path = file.as_os_str().to_owned();
    path.push(suffix);
    PathBuf::from(path)
}

/// Whether a WAL or rollback journal with content lies beside `file`.
pub fn has_more(file: &Path) -> bool {
    let more = |suffix: &str| {
        let found = fs::metadata(beside(file, suffix));
        found.is_ok_and(|found| found.len() > 0)
    };
    BESIDE.into_iter().any(more)
}

/// Copies `file` with what lies beside it to `copy`, where SQLite recovers it into one file. The original is
/// only read; a program that writes to it meanwhile makes the copy worthless, which its import finds out.
pub fn fold(file: &Path, copy: &Path) -> Result<(), Error> {
    let io = |e| Error::io(format!("copy {}", file.display()), e);
    fs::copy(file, copy).map_err(io)?;
    for suffix in BESIDE {
        let from = beside(file, suffix);
        if from.exists() {
            fs::copy(from, beside(copy, suffix)).map_err(io)?;
        }
    }
    let refused = |e: rusqlite::Error| {
        let what = format!("SQLite cannot recover {}: {e}", file.display());
        Error::new(Code::ImportInvalid, what).caused_by(e)
    };
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(copy, flags).map_err(refused)?;
    // Leaving WAL mode checkpoints; a hot rollback journal is rolled back by the first read.
    let mode = connection.query_row("PRAGMA journal_mode=DELETE", [], |row| {
        row.get::<_, String>(0)
    });
    mode.map_err(refused)?;
    connection.close().map_err(|(_, e)| refused(e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_only_in_the_wal_is_in_the_copy() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (file, copy) = (folder.path().join("a.db"), folder.path().join("b.db"));
        let writer = Connection::open(&file).expect("opens");
        writer
            .execute_batch(
                "PRAGMA journal_mode=WAL; PRAGMA wal_autocheckpoint=0;
                 CREATE TABLE t(a); INSERT INTO t VALUES(1), (2);",
            )
            .expect("written");
        assert!(has_more(&file), "the rows stand in the WAL");
        let before = fs::read(&file).expect("readable");
        fold(&file, &copy).expect("folded");
        assert!(!has_more(&copy));
        assert_eq!(
            fs::read(&file).expect("readable"),
            before,
            "the original is not touched"
        );
        let folded = Connection::open(&copy).expect("opens");
        let rows = folded.query_row("SELECT count(*) FROM t", [], |row| row.get::<_, i64>(0));
        assert_eq!(rows.expect("a count"), 2);
    }

    /// Method: both files are copied out of a transaction that has written to the database already, as a crash leaves
    /// them.
    #[test]
    fn a_hot_journal_is_rolled_back_in_the_copy() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let [live, file, copy] = ["live.db", "a.db", "b.db"].map(|name| folder.path().join(name));
        let writer = Connection::open(&live).expect("opens");
        writer
            .execute_batch(
                "PRAGMA journal_mode=DELETE; PRAGMA cache_size=1; CREATE TABLE t(a, b);
                 WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < 200)
                 INSERT INTO t SELECT x, zeroblob(2000) FROM c;
                 BEGIN; UPDATE t SET a = 0; PRAGMA cache_spill=1; UPDATE t SET b = zeroblob(1999);",
            )
            .expect("written");
        fs::copy(&live, &file).expect("copied");
        fs::copy(beside(&live, "-journal"), beside(&file, "-journal")).expect("a journal");
        drop(writer);
        let torn = fs::read(&file).expect("readable");
        let whole = fs::read(&live).expect("readable");
        assert!(torn != whole, "the transaction has reached the file");
        assert!(has_more(&file));
        fold(&file, &copy).expect("folded");
        assert!(!has_more(&copy));
        assert_eq!(fs::read(&file).expect("readable"), torn, "the original");
        let folded = Connection::open(&copy).expect("opens");
        let sum = "SELECT sum(a), sum(length(b)) FROM t";
        let found = folded.query_row(sum, [], |row| Ok((row.get(0)?, row.get(1)?)));
        assert_eq!(found.expect("sums"), (20_100_i64, 400_000_i64));
    }
}
