//! A real SQLite file, imported, changed by some thousand transactions beside a plain SQLite twin, and restored from
//! the bucket at random bookmarks: each must hold what the twin held at that commit.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use rusqlite::Connection;
use serde_json::{Value, json};
use tidelog_engine::bucket::{At, Bucket};
use tidelog_engine::{
    Access, Code, Database, Durability, Engine, Error, Limits, Params, Parts, Request, Settings,
    Statement,
};
use tidelog_wal::Position;

use crate::dump::{dump, program};

/// What to run.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The SQLite file.
    file: PathBuf,
    /// Transactions.
    #[arg(long, default_value_t = 3_000)]
    transactions: usize,
    /// Bookmarks that are restored.
    #[arg(long, default_value_t = 200)]
    bookmarks: usize,
    /// Chance.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// A table to change: its name, quoted, its columns, quoted, and those that may be set.
struct Table {
    name: String,
    columns: Vec<String>,
    settable: Vec<String>,
    rows: i64,
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn tables(twin: &Connection) -> Vec<Table> {
    let mut select = twin
        .prepare(
            "SELECT name FROM pragma_table_list WHERE schema = 'main' AND type = 'table' AND wr = 0 \
             AND substr(name, 1, 7) <> 'sqlite_' ORDER BY name",
        )
        .expect("tables");
    let names: Vec<String> = select
        .query_map([], |row| row.get(0))
        .and_then(Iterator::collect)
        .expect("tables");
    let mut found = Vec::new();
    for name in names {
        let mut info = twin
            .prepare("SELECT name, pk FROM pragma_table_info(?1)")
            .expect("columns");
        let columns: Vec<(String, i64)> = info
            .query_map([&name], |row| Ok((row.get(0)?, row.get(1)?)))
            .and_then(Iterator::collect)
            .expect("columns");
        let table = quoted(&name);
        let count = format!("SELECT coalesce(max(rowid), 0) FROM {table}");
        let rows = twin.query_row(&count, [], |row| row.get(0)).unwrap_or(0);
        let settable = columns.iter().filter(|(_, pk)| *pk == 0);
        found.push(Table {
            settable: settable.map(|(column, _)| quoted(column)).collect(),
            columns: columns.iter().map(|(column, _)| quoted(column)).collect(),
            name: table,
            rows,
        });
    }
    found
}

/// The statements of a transaction: they may meet a constraint of the file's schema.
fn statements(rng: &mut StdRng, tables: &[Table], number: usize) -> Vec<String> {
    if number == 0 {
        return vec!["CREATE TABLE tidelog_extra(a INTEGER PRIMARY KEY, b, c)".to_owned()];
    }
    if number % 1_000 == 500 {
        return vec!["VACUUM".to_owned()];
    }
    let mut made = Vec::new();
    for _ in 0..rng.random_range(1..4) {
        let table = &tables[rng.random_range(0..tables.len())];
        let row = rng.random_range(0..table.rows.max(1)) + 1;
        let name = &table.name;
        let column = match table.settable.len() {
            0 => None,
            n => table.settable.get(rng.random_range(0..n)),
        };
        let bytes = rng.random_range(1..3_000);
        made.push(match (rng.random_range(0..10), column) {
            (0, _) => format!("DELETE FROM {name} WHERE rowid = {row}"),
            (1 | 2, _) => {
                let columns = table.columns.join(", ");
                let source = row % table.rows.max(1) + 1;
                format!("INSERT OR IGNORE INTO {name}({columns}) SELECT {columns} FROM {name} WHERE rowid = {source}")
            }
            (3..6, Some(column)) => {
                format!("UPDATE {name} SET {column} = {column} WHERE rowid BETWEEN {row} AND {row}+20; \
                         UPDATE {name} SET {column} = {column} || '-{number}' WHERE rowid = {row}")
            }
            (6, _) => format!("UPDATE tidelog_extra SET c = {number}, b = b || 'x' WHERE a % 97 = {}", number % 97),
            (7, _) => format!("DELETE FROM tidelog_extra WHERE a % 31 = {}", number % 31),
            _ => format!(
                "INSERT INTO tidelog_extra(b, c) VALUES(substr(hex(zeroblob({bytes})), 1, {bytes}) || {number}, {row})"
            ),
        });
    }
    made.iter()
        .flat_map(|sql| sql.split("; ").map(str::to_owned))
        .collect()
}

async fn write(database: &Database, statements: &[String]) -> Result<Position, Error> {
    let statement = |sql: &String| Statement {
        sql: sql.clone(),
        params: Params::None,
    };
    let request = Request {
        statements: statements.iter().map(statement).collect(),
        transaction: true,
        durability: Some(Durability::Memory),
        access: Access::owner(),
        limits: Limits {
            deadline: Duration::from_mins(5),
            ..Limits::default()
        },
        idempotency: None,
    };
    database.execute(request).await.map(|done| done.bookmark)
}

fn also(twin: &Connection, statements: &[String]) -> rusqlite::Result<()> {
    let vacuum = statements == ["VACUUM"];
    if !vacuum {
        twin.execute_batch("BEGIN")?;
    }
    for sql in statements {
        twin.execute_batch(sql)?;
    }
    if !vacuum {
        twin.execute_batch("COMMIT")?;
    }
    Ok(())
}

fn integrity(file: &Path) -> String {
    let connection = Connection::open(file).expect("open");
    connection
        .query_row("PRAGMA integrity_check", [], |row| row.get(0))
        .expect("check")
}

#[expect(clippy::disallowed_methods, reason = "a bench measures real time")]
pub(crate) async fn run(options: Options) -> Value {
    let folder = tempfile::tempdir().expect("tempdir");
    let settings = Settings {
        data: folder.path().join("data"),
        store_url: format!("file://{}", folder.path().join("store").display()),
        settle_pause: Duration::from_millis(50),
        ..Settings::default()
    };
    let url = settings.store_url.clone();
    let bytes = std::fs::metadata(&options.file).expect("the file").len();
    let engine = Engine::start(settings, Parts::production())
        .await
        .expect("start");
    let namespace = engine.namespace_create("bench").await.expect("namespace");
    let importing = Instant::now();
    let database = engine
        .database_import(namespace.id, "real", &options.file)
        .await
        .expect("import");
    let import_seconds = importing.elapsed().as_secs_f64();
    let twin_file = folder.path().join("twin.db");
    std::fs::copy(&options.file, &twin_file).expect("copy");
    let twin = Connection::open(&twin_file).expect("twin");
    twin.execute_batch("PRAGMA foreign_keys=ON; PRAGMA synchronous=OFF; PRAGMA journal_mode=TRUNCATE; PRAGMA trusted_schema=OFF")
        .expect("twin");
    let by_program = program();
    let mut rng = StdRng::seed_from_u64(options.seed);
    let tables = tables(&twin);
    assert!(!tables.is_empty(), "no table to change");
    let wanted: std::collections::BTreeSet<usize> = rand::seq::index::sample(
        &mut rng,
        options.transactions,
        options.bookmarks.min(options.transactions),
    )
    .into_iter()
    .collect();
    let mut promises: BTreeMap<usize, (Position, blake3::Hash)> = BTreeMap::new();
    let (mut commits, mut refused) = (0_u64, 0_u64);
    let mut at = database.bookmark().await.expect("bookmark").bookmark;
    let writing = Instant::now();
    for number in 0..options.transactions {
        let statements = statements(&mut rng, &tables, number);
        match write(&database, &statements).await {
            Ok(bookmark) => {
                also(&twin, &statements).unwrap_or_else(|e| panic!("twin: {statements:?}: {e}"));
                at = bookmark;
                commits += 1;
            }
            Err(error) if error.code() == Code::SqlError => {
                // A constraint of the schema: rolled back on both sides.
                refused += 1;
                let also = also(&twin, &statements);
                assert!(
                    also.is_err(),
                    "only the engine refuses {statements:?}: {error}"
                );
                if !twin.is_autocommit() {
                    twin.execute_batch("ROLLBACK").expect("twin");
                }
            }
            Err(error) => panic!("{statements:?}: {error:?}"),
        }
        if wanted.contains(&number) {
            promises.insert(number, (at, dump(&twin_file, by_program)));
        }
    }
    let write_seconds = writing.elapsed().as_secs_f64();
    engine.shutdown().await.expect("shutdown");

    let bucket = Bucket::open(&url).await.expect("bucket");
    let found = bucket.find("bench", "real").await.expect("find");
    let out = folder.path().join("restored.db");
    let restoring = Instant::now();
    for (number, (bookmark, expected)) in &promises {
        bucket
            .restore(&found, At::Bookmark(*bookmark), &out, true)
            .await
            .unwrap_or_else(|e| panic!("transaction {number}: {bookmark}: {e:?}"));
        assert_eq!(integrity(&out), "ok", "transaction {number}: {bookmark}");
        assert_eq!(
            dump(&out, by_program),
            *expected,
            "transaction {number}: {bookmark}"
        );
    }
    json!({
        "file": options.file.display().to_string(),
        "file_bytes": bytes,
        "import_seconds": import_seconds,
        "tables": tables.len(),
        "transactions_committed": commits,
        "transactions_refused_by_both": refused,
        "write_seconds_with_twin_and_dumps": write_seconds,
        "bookmarks_restored": promises.len(),
        "restore_and_check_seconds": restoring.elapsed().as_secs_f64(),
        "digest_equal": true,
        "integrity_check": "ok",
        "dump_equal": true,
        "dumped_by": if by_program { "sqlite3 .dump" } else { "schema and rows" },
    })
}
