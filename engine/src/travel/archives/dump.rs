//! A database as the text of SQL statements that make it anew, as `sqlite3`'s `.dump` writes them.
//!
//! Row by row, nothing is held. Values come back exactly: text that is no plain UTF-8 text and blobs as hex,
//! numbers in a form that reads back to the same bits. The table that keeps answers to repeated calls is left
//! out: it means nothing anywhere else.

use std::fmt::Write as _;
use std::io::Write;

use rusqlite::Connection;
use rusqlite::types::ValueRef;

use crate::error::{Code, Error};
use crate::operations::Task;
use crate::travel::inspect::{HIDDEN_TABLE, quoted};

/// Rows between two looks at whether the operation goes on.
const ROWS_PER_CHECK: u64 = 4096;

fn sql(error: rusqlite::Error) -> Error {
    Error::new(Code::DatabaseCorrupt, "read the database for a dump").caused_by(error)
}

fn io(error: std::io::Error) -> Error {
    Error::io("write a dump", error)
}

/// A table, view, index or trigger, as the schema has it.
struct Entry {
    name: String,
    sql: String,
}

fn entries(connection: &Connection, select: &str) -> Result<Vec<Entry>, Error> {
    let mut prepared = connection.prepare(select).map_err(sql)?;
    let rows = prepared.query_map([HIDDEN_TABLE], |row| {
        Ok(Entry {
            name: row.get(0)?,
            sql: row.get(1)?,
        })
    });
    rows.and_then(Iterator::collect).map_err(sql)
}

/// Writes the dump of `connection`.
pub(super) fn dump(connection: &Connection, out: &mut dyn Write, task: &Task) -> Result<(), Error> {
    out.write_all(b"PRAGMA foreign_keys=OFF;\nBEGIN TRANSACTION;\n")
        .map_err(io)?;
    for pragma in ["user_version", "application_id"] {
        let value: i64 = connection
            .query_row(&format!("PRAGMA {pragma}"), [], |row| row.get(0))
            .map_err(sql)?;
        if value != 0 {
            writeln!(out, "PRAGMA {pragma}={value};").map_err(io)?;
        }
    }
    let tables = entries(
        connection,
        "SELECT name, sql FROM sqlite_schema WHERE type = 'table' AND sql IS NOT NULL \
         AND name <> ?1 ORDER BY tbl_name = 'sqlite_sequence', rowid",
    )?;
    let mut writable = false;
    for table in tables {
        if table.name == "sqlite_sequence" {
            out.write_all(b"DELETE FROM sqlite_sequence;\n")
                .map_err(io)?;
        } else if table.name.starts_with("sqlite_stat") {
            out.write_all(b"ANALYZE sqlite_schema;\n").map_err(io)?;
        } else if table.name.starts_with("sqlite_") {
            continue;
        } else if is_virtual(&table.sql) {
            // Creating it would make its shadow tables, which come as tables of their own.
            if !writable {
                writable = true;
                out.write_all(b"PRAGMA writable_schema=ON;\n").map_err(io)?;
            }
            let (name, text) = (literal(&table.name), literal(&table.sql));
            writeln!(
                out,
                "INSERT INTO sqlite_schema(type,name,tbl_name,rootpage,sql)\
                 VALUES('table',{name},{name},0,{text});"
            )
            .map_err(io)?;
            continue;
        } else {
            statement(out, &table.sql)?;
        }
        rows(connection, &table.name, out, task)?;
    }
    let others = entries(
        connection,
        "SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL \
         AND type IN ('index', 'trigger', 'view') AND tbl_name <> ?1 ORDER BY type DESC, rowid",
    )?;
    for other in others {
        statement(out, &other.sql)?;
    }
    if writable {
        out.write_all(b"PRAGMA writable_schema=OFF;\n")
            .map_err(io)?;
    }
    out.write_all(b"COMMIT;\n").map_err(io)
}

/// Whether the SQL of a table makes a virtual one: SQLite keeps it in this form.
fn is_virtual(sql: &str) -> bool {
    sql.get(..20)
        .is_some_and(|head| head.eq_ignore_ascii_case("create virtual table"))
}

/// A statement of the schema; a comment at its end must not swallow the semicolon.
fn statement(out: &mut dyn Write, sql: &str) -> Result<(), Error> {
    let end = if sql.contains("--") { "\n;" } else { ";" };
    writeln!(out, "{sql}{end}").map_err(io)
}

/// The columns of a table that are stored, and whether some are not.
fn columns(connection: &Connection, table: &str) -> Result<(Vec<String>, bool), Error> {
    let mut select = connection
        .prepare("SELECT name, hidden FROM pragma_table_xinfo(?1)")
        .map_err(sql)?;
    let all = select.query_map([table], |row| {
        Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?))
    });
    let all: Vec<(String, i64)> = all.and_then(Iterator::collect).map_err(sql)?;
    let generated = all.iter().any(|(_, hidden)| *hidden != 0);
    let stored = all.into_iter().filter(|(_, hidden)| *hidden == 0);
    Ok((stored.map(|(name, _)| name).collect(), generated))
}

fn rows(
    connection: &Connection,
    table: &str,
    out: &mut dyn Write,
    task: &Task,
) -> Result<(), Error> {
    let (columns, generated) = columns(connection, table)?;
    if columns.is_empty() {
        return Ok(());
    }
    let names: Vec<String> = columns.iter().map(|name| quoted(name)).collect();
    let names = names.join(",");
    let into = if generated {
        format!("{}({names})", quoted(table))
    } else {
        quoted(table)
    };
    let mut select = connection
        .prepare(&format!("SELECT {names} FROM {}", quoted(table)))
        .map_err(sql)?;
    let mut rows = select.query([]).map_err(sql)?;
    let (mut line, mut count) = (String::new(), 0_u64);
    while let Some(row) = rows.next().map_err(sql)? {
        line.clear();
        // Writing to a String cannot fail.
        let _ = write!(line, "INSERT INTO {into} VALUES(");
        for at in 0..columns.len() {
            if at > 0 {
                line.push(',');
            }
            value(&mut line, row.get_ref(at).map_err(sql)?);
        }
        line.push_str(");\n");
        out.write_all(line.as_bytes()).map_err(io)?;
        count += 1;
        if count.is_multiple_of(ROWS_PER_CHECK) {
            task.check()?;
        }
    }
    Ok(())
}

/// A value as SQL writes it.
fn value(line: &mut String, value: ValueRef<'_>) {
    // Writing to a String cannot fail.
    let _ = match value {
        ValueRef::Null => write!(line, "NULL"),
        ValueRef::Integer(number) => write!(line, "{number}"),
        ValueRef::Real(number) if number == f64::INFINITY => write!(line, "1e999"),
        ValueRef::Real(number) if number == f64::NEG_INFINITY => write!(line, "-1e999"),
        ValueRef::Real(number) => write!(line, "{number:?}"),
        ValueRef::Text(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) if !text.contains('\0') => {
                line.push_str(&literal(text));
                Ok(())
            }
            _ => {
                line.push_str("CAST(");
                blob(line, bytes);
                write!(line, " AS TEXT)")
            }
        },
        ValueRef::Blob(bytes) => {
            blob(line, bytes);
            Ok(())
        }
    };
}

fn blob(line: &mut String, bytes: &[u8]) {
    line.push_str("X'");
    for byte in bytes {
        let _ = write!(line, "{byte:02X}");
    }
    line.push('\'');
}

/// A text as SQL writes it.
fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_read_back_as_they_were() {
        let connection = Connection::open_in_memory().expect("open");
        let values: [(ValueRef<'_>, &str); 9] = [
            (ValueRef::Null, "NULL"),
            (ValueRef::Integer(i64::MIN), "-9223372036854775808"),
            (ValueRef::Real(0.1), "0.1"),
            (ValueRef::Real(1.0), "1.0"),
            (ValueRef::Real(f64::NEG_INFINITY), "-1e999"),
            (ValueRef::Real(f64::MIN_POSITIVE), "2.2250738585072014e-308"),
            (ValueRef::Text(b"it's\n"), "'it''s\n'"),
            (ValueRef::Text(b"a\0\xff"), "CAST(X'6100FF' AS TEXT)"),
            (ValueRef::Blob(b"\x00\xff"), "X'00FF'"),
        ];
        for (wanted, text) in values {
            let mut line = String::new();
            value(&mut line, wanted);
            assert_eq!(line, text);
            let sql = format!("SELECT {line}");
            connection
                .query_row(&sql, [], |row| {
                    assert_eq!(row.get_ref(0)?, wanted, "{line}");
                    Ok(())
                })
                .expect("it is SQL");
        }
    }
}
