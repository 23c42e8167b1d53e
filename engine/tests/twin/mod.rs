//! Comparing databases by what they hold, not by their pages.

use std::path::Path;

use rusqlite::Connection;

/// Opens a restored file after SQLite found it sound, full-text tables included.
pub(crate) fn open_restored(file: &Path) -> Result<Connection, String> {
    let failed = |e: rusqlite::Error| format!("{}: {e}", file.display());
    let connection = Connection::open(file).map_err(failed)?;
    let found: String = connection
        .query_row("PRAGMA integrity_check", [], |row| row.get(0))
        .map_err(failed)?;
    if found != "ok" {
        return Err(format!("integrity_check: {found}"));
    }
    Ok(connection)
}

/// A hash over schema, `user_version` and every row of every table.
pub(crate) fn dump(connection: &Connection) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    rows(
        connection,
        "SELECT type, name, tbl_name, sql FROM sqlite_schema \
         WHERE substr(name, 1, 9) <> '_tidelog_' ORDER BY type, name",
        &mut hasher,
    );
    rows(connection, "PRAGMA user_version", &mut hasher);
    let mut tables = connection
        .prepare(
            "SELECT name FROM pragma_table_list WHERE schema = 'main' AND type IN ('table', 'virtual') \
             AND substr(name, 1, 7) <> 'sqlite_' AND substr(name, 1, 9) <> '_tidelog_' ORDER BY name",
        )
        .expect("tables");
    let names: Vec<String> = tables
        .query_map([], |row| row.get(0))
        .expect("tables")
        .collect::<Result<_, _>>()
        .expect("tables");
    for name in names {
        hasher.update(name.as_bytes());
        let sql = match name.as_bytes().first() {
            Some(b'f') => format!("SELECT rowid, * FROM \"{name}\" ORDER BY 1"),
            Some(b'w') => format!("SELECT * FROM \"{name}\" ORDER BY 1, 2"),
            _ => format!("SELECT * FROM \"{name}\" ORDER BY 1"),
        };
        rows(connection, &sql, &mut hasher);
    }
    hasher.finalize()
}

fn rows(connection: &Connection, sql: &str, hasher: &mut blake3::Hasher) {
    let mut statement = connection.prepare(sql).expect(sql);
    let columns = statement.column_count();
    let mut rows = statement.query([]).expect(sql);
    while let Some(row) = rows.next().expect(sql) {
        for column in 0..columns {
            let value = row.get_ref(column).expect("a column");
            let text = format!("{value:?}");
            hasher.update(&(text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        }
    }
}
