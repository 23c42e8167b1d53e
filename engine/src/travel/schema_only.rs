//! Forks without rows: the schema of a state, run in a new database that shares nothing.
//!
//! Tables come first, then what hangs on them. Shadow tables of virtual tables are left to their modules, and
//! the engine's own tables are left out.

use std::path::Path;

use rusqlite::{Connection, OpenFlags};
use tidelog_archive::plan::Resolved;
use tidelog_wal::{DatabaseId, PageSize};

use super::forks::{Fork, row_of};
use crate::bucket::At;
use crate::crash_point;
use crate::engine::{Database, NewDatabase};
use crate::error::{Code, Error};
use crate::executor::blocking;
use crate::operations::Task;
use crate::scratch;
use crate::settings::Durability;
use crate::sql::connection::AutoVacuum;
use crate::sql::policy::Permission;
use crate::sql::run::sql_error;
use crate::system::databases::DatabaseRow;

/// What makes an empty copy of a database.
#[derive(Debug)]
struct Schema {
    auto_vacuum: AutoVacuum,
    statements: Vec<String>,
}

/// Makes the database `id` with the schema of the state that is forked.
pub(super) async fn make(
    database: &Database,
    task: &Task,
    fork: &Fork,
    id: DatabaseId,
    target: Resolved,
) -> Result<DatabaseRow, Error> {
    let engine = database.engine();
    let core = &engine.inner.core;
    task.phase("read_schema", 0)?;
    let page_size = PageSize::new(database.row().page_size)
        .ok_or_else(|| Error::internal("a database without a page size"))?;
    let bytes = target.n.bytes(page_size);
    let folder = scratch::folder(core, "a fork without rows", bytes)?;
    let file = folder.path().join("database");
    let at = At::Bookmark(target.position);
    task.unless_stopped(database.export(at, &file)).await?;
    let schema = blocking(core.executor(), move || {
        let read = read(&file);
        drop(folder);
        read.map_err(|e| Error::new(Code::DatabaseCorrupt, "read a schema").caused_by(e))
    })
    .await?;
    task.phase("create", 0)?;
    if let Err(error) = create(database, task, fork, id, page_size, schema).await {
        let of = (database.row().namespace, id);
        engine.stands_after(of, None, error).await?;
    }
    let row = engine.inner.system.database_by_id(id).await?;
    let row = row.ok_or_else(|| Error::internal("a fork without a row"))?;
    if let Some(at) = row.expires_at {
        core.calendar.not_later(id, at);
    }
    Ok(row)
}

/// Makes the database, and its row last: until then it can be cancelled.
async fn create(
    database: &Database,
    task: &Task,
    fork: &Fork,
    id: DatabaseId,
    page_size: PageSize,
    schema: Schema,
) -> Result<(), Error> {
    let engine = database.engine();
    let new = NewDatabase {
        name: fork.name.clone(),
        page_size,
        auto_vacuum: schema.auto_vacuum,
    };
    let namespace = database.row().namespace;
    let meta = engine.make_database(namespace, id, &new).await?;
    crash_point!("schema.after_database");
    task.check()?;
    let lease = engine.inner.registry.lease(namespace, id).await?;
    let gate = lease.gate().await?;
    let written = blocking(lease.core.executor(), move || {
        gate.transaction(Permission::ENGINE, None, Vec::new(), |sqlite| {
            let run = |sql: &String| sqlite.raw().execute_batch(sql);
            let ran = schema.statements.iter().try_for_each(run);
            ran.map_err(|error| sql_error(sqlite, error))
        })
    })
    .await?;
    if let Some(ticket) = written.ticket {
        task.unless_stopped(ticket.wait(Durability::Remote)).await?;
    }
    drop(lease);
    task.point_of_no_return()?;
    crash_point!("schema.before_row");
    let row = row_of(database, &meta, fork, None);
    engine.inner.system.database_add(&row, None).await
}

fn read(file: &Path) -> rusqlite::Result<Schema> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(file, flags)?;
    let number = |pragma: &str| {
        connection.query_row(&format!("PRAGMA {pragma}"), [], |row| row.get::<_, i64>(0))
    };
    let auto_vacuum = match number("auto_vacuum")? {
        1 => AutoVacuum::Full,
        2 => AutoVacuum::Incremental,
        _ => AutoVacuum::None,
    };
    let mut select = connection.prepare(
        "SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL \
         AND substr(name, 1, 7) <> 'sqlite_' AND substr(tbl_name, 1, 9) <> '_tidelog_' \
         AND tbl_name NOT IN (SELECT name FROM pragma_table_list WHERE schema = 'main' AND type = 'shadow') \
         ORDER BY CASE type WHEN 'table' THEN 0 WHEN 'index' THEN 1 WHEN 'view' THEN 2 ELSE 3 END, rowid",
    )?;
    let mut statements: Vec<String> = select
        .query_map([], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    for pragma in ["user_version", "application_id"] {
        statements.push(format!("PRAGMA {pragma}={}", number(pragma)?));
    }
    Ok(Schema {
        auto_vacuum,
        statements,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schema_is_read_in_an_order_that_can_be_run() {
        let folder = tempfile::tempdir().expect("tempdir");
        let file = folder.path().join("a.db");
        let source = Connection::open(&file).expect("open");
        source
            .execute_batch(
                "CREATE TABLE t(a INTEGER PRIMARY KEY AUTOINCREMENT, b); CREATE INDEX i ON t(b);
                 CREATE TRIGGER tr AFTER INSERT ON t BEGIN DELETE FROM t WHERE a < 0; END;
                 CREATE VIEW v AS SELECT b FROM t; CREATE VIRTUAL TABLE f USING fts5(x);
                 CREATE TABLE _tidelog_requests(key); PRAGMA user_version=7; INSERT INTO t(b) VALUES(1);",
            )
            .expect("fill");
        let schema = read(&file).expect("read");
        let copy = Connection::open_in_memory().expect("open");
        for sql in &schema.statements {
            copy.execute_batch(sql).expect(sql);
        }
        let names = |c: &Connection| {
            let sql = "SELECT group_concat(name) FROM (SELECT name FROM sqlite_schema \
                       WHERE name <> '_tidelog_requests' AND name NOT LIKE '%autoindex%' ORDER BY name)";
            c.query_row(sql, [], |row| row.get::<_, String>(0))
                .expect("names")
        };
        assert_eq!(names(&copy), names(&source));
        let rows: i64 = copy
            .query_row("SELECT count(*) FROM t", [], |r| r.get(0))
            .expect("count");
        assert_eq!(rows, 0);
    }
}
