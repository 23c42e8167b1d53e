//! What a SQLite file holds, as a hash: of what the `sqlite3` program dumps, or of schema and rows where there is none.

use std::io::Read as _;
use std::path::Path;
use std::process::{Command, Stdio};

use rusqlite::{Connection, OpenFlags};

/// Whether the `sqlite3` program is installed.
pub(crate) fn program() -> bool {
    let asked = Command::new("sqlite3")
        .arg("--version")
        .stdout(Stdio::null())
        .status();
    asked.is_ok_and(|status| status.success())
}

/// A hash of the logical content of `file`.
pub(crate) fn dump(file: &Path, program: bool) -> blake3::Hash {
    if program {
        by_program(file)
    } else {
        by_rows(file)
    }
}

fn by_program(file: &Path) -> blake3::Hash {
    let mut dumping = Command::new("sqlite3")
        .arg("-readonly")
        .arg(file)
        .arg(".dump")
        .stdout(Stdio::piped())
        .spawn()
        .expect("sqlite3 runs");
    let mut hasher = blake3::Hasher::new();
    let mut out = dumping.stdout.take().expect("its output");
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = out.read(&mut buffer).expect("its output");
        if read == 0 {
            break;
        }
        hasher.update(&buffer[..read]);
    }
    assert!(dumping.wait().expect("sqlite3 ends").success());
    hasher.finalize()
}

/// A hash over the schema and every row of every table, engine tables left out.
pub(crate) fn by_rows(file: &Path) -> blake3::Hash {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY;
    let connection = Connection::open_with_flags(file, flags).expect("open");
    let mut hasher = blake3::Hasher::new();
    let schema = "SELECT type, name, tbl_name, sql FROM sqlite_schema \
                  WHERE substr(name, 1, 9) <> '_tidelog_' ORDER BY type, name";
    rows(&connection, schema, &mut hasher);
    let mut tables = connection
        .prepare(
            "SELECT name, wr FROM pragma_table_list WHERE schema = 'main' AND type IN ('table', 'virtual') \
             AND substr(name, 1, 7) <> 'sqlite_' AND substr(name, 1, 9) <> '_tidelog_' ORDER BY name",
        )
        .expect("tables");
    let names: Vec<(String, bool)> = tables
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
        .and_then(Iterator::collect)
        .expect("tables");
    for (name, without_rowid) in names {
        let quoted = name.replace('"', "\"\"");
        // Without a rowid the primary key is the order.
        let sql = if without_rowid {
            format!("SELECT * FROM \"{quoted}\"")
        } else {
            format!("SELECT rowid, * FROM \"{quoted}\" ORDER BY rowid")
        };
        hasher.update(name.as_bytes());
        rows(&connection, &sql, &mut hasher);
    }
    hasher.finalize()
}

fn rows(connection: &Connection, sql: &str, hasher: &mut blake3::Hasher) {
    use rusqlite::types::ValueRef as V;
    let mut statement = connection.prepare(sql).expect(sql);
    let columns = statement.column_count();
    let mut rows = statement.query([]).expect(sql);
    while let Some(row) = rows.next().expect(sql) {
        for column in 0..columns {
            let (kind, bytes) = match row.get_ref(column).expect("a column") {
                V::Null => (0_u8, Vec::new()),
                V::Integer(number) => (1, number.to_le_bytes().to_vec()),
                V::Real(number) => (2, number.to_bits().to_le_bytes().to_vec()),
                V::Text(text) => (3, text.to_vec()),
                V::Blob(blob) => (4, blob.to_vec()),
            };
            hasher.update(&[kind]);
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(&bytes);
        }
    }
}
