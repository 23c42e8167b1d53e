//! What tenants do, through the engine: every commit is kept and restores equal from the bucket alone, on an
//! empty folder too.

mod rig;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tidelog_archive::env::Clock;
use tidelog_engine::bucket::{At, Bucket};
use tidelog_engine::request::{IdempotencyKey, Request};
use tidelog_engine::{
    Code, Database, Durability, Engine, Error, NewDatabase, Parts, Settings, TakeOver, Value,
};
use tidelog_testkit::sealing::masters;
use tidelog_testkit::sim::ShiftedClock;
use tidelog_wal::{PageSize, Position};

fn settings(folder: &Path) -> Settings {
    Settings {
        data: folder.join("data"),
        store_url: format!("file://{}", folder.join("store").display()),
        ship_interval: Duration::from_millis(20),
        ship_linger: Duration::from_millis(1),
        settle_bytes: 64 << 10,
        settle_pause: Duration::from_millis(1),
        // A machine that is busy with something else makes no write fail.
        gate_timeout: Duration::from_mins(1),
        durability_timeout: Duration::from_mins(1),
        master_keys: masters(),
        ..Settings::default()
    }
}

async fn start(folder: &Path) -> Engine {
    Engine::start(settings(folder), Parts::production())
        .await
        .expect("start")
}

fn statement(sql: &str) -> Request {
    rig::request(&[sql], Durability::Local)
}

async fn try_run(database: &Database, sql: &str) -> Result<Position, Error> {
    database
        .execute(statement(sql))
        .await
        .map(|response| response.bookmark)
}

async fn run(database: &Database, sql: &str) -> Position {
    try_run(database, sql)
        .await
        .unwrap_or_else(|error| panic!("{sql}: {error:?}"))
}

async fn flush(database: &Database) {
    let mut request = statement("CREATE TABLE IF NOT EXISTS flushed(x)");
    request.durability = Some(Durability::Remote);
    database.execute(request).await.expect("flush");
    let mut request = statement("INSERT INTO flushed VALUES(1)");
    request.durability = Some(Durability::Remote);
    database.execute(request).await.expect("flush");
}

/// Has SQLite prove a restored file.
fn sound(file: &Path) {
    let connection = rusqlite::Connection::open(file).expect("open");
    let check: String = connection
        .query_row("PRAGMA integrity_check", [], |row| row.get(0))
        .expect("check");
    assert_eq!(check, "ok", "{}", file.display());
}

/// Restores `at` from the bucket and hands the file to `look`.
async fn restored<T>(folder: &Path, at: At, look: impl FnOnce(&Path) -> T) -> T {
    let url = format!("file://{}", folder.join("store").display());
    let bucket = Bucket::open_with_keys(&url, &masters())
        .await
        .expect("bucket");
    let found = bucket.find("acme", "orders").await.expect("find");
    let scratch = tempfile::tempdir().expect("tempdir");
    let out = scratch.path().join("out.db");
    bucket
        .restore(&found, at.clone(), &out, false)
        .await
        .unwrap_or_else(|error| panic!("{at:?}: {error:?}"));
    look(&out)
}

fn count(file: &Path, sql: &str) -> i64 {
    rusqlite::Connection::open(file)
        .expect("open")
        .query_row(sql, [], |row| row.get(0))
        .expect(sql)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_change_restores_at_its_bookmark() {
    let folder = tempfile::tempdir().expect("tempdir");
    let engine = start(folder.path()).await;
    let namespace = engine.namespace_create("acme").await.expect("namespace");
    let new = NewDatabase {
        page_size: PageSize::new(1024).expect("1024"),
        auto_vacuum: tidelog_engine::sql::connection::AutoVacuum::Full,
        ..NewDatabase::named("orders")
    };
    let database = engine
        .database_create(namespace.id, new)
        .await
        .expect("create");
    let steps = [
        "CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT)",
        "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM c WHERE x < 3000) INSERT INTO t SELECT x, hex(randomblob(40)) FROM c",
        "CREATE INDEX t_b ON t(b)",
        "UPDATE t SET b = upper(b) WHERE a % 7 = 0",
        "DELETE FROM t WHERE a > 500",
        "CREATE TABLE w(k TEXT PRIMARY KEY, v BLOB) WITHOUT ROWID",
        "INSERT INTO w SELECT b, zeroblob(2000) FROM t",
        "CREATE VIRTUAL TABLE f USING fts5(body)",
        "INSERT INTO f SELECT b FROM t",
        "ALTER TABLE t ADD COLUMN c DEFAULT 5",
        "ALTER TABLE t RENAME COLUMN c TO d",
        "VACUUM",
        "DROP TABLE w",
        "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM c WHERE x < 200) INSERT INTO t(b, d) SELECT hex(randomblob(400)), x FROM c",
        "UPDATE t SET d = 5",
    ];
    let mut states: Vec<Position> = Vec::new();
    for sql in steps {
        states.push(run(&database, sql).await);
    }
    flush(&database).await;
    for bookmark in &states {
        restored(folder.path(), At::Bookmark(*bookmark), sound).await;
    }
    let rows = |sql: &'static str, i: usize| {
        let at = states[i];
        let folder = folder.path().to_owned();
        async move { restored(&folder, At::Bookmark(at), |file| count(file, sql)).await }
    };
    assert_eq!(rows("SELECT count(*) FROM t", 1).await, 3000);
    assert_eq!(rows("SELECT count(*) FROM t", 4).await, 500);
    assert_eq!(rows("SELECT count(*) FROM w", 6).await, 500);
    assert_eq!(rows("SELECT count(*) FROM f", 8).await, 500);
    assert_eq!(rows("SELECT sum(d) FROM t", 14).await, 3500);
    engine.shutdown().await.expect("shutdown");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_transaction_is_spooled_and_restores_from_the_bucket_alone() {
    let folder = tempfile::tempdir().expect("tempdir");
    let engine = start(folder.path()).await;
    let namespace = engine.namespace_create("acme").await.expect("namespace");
    let database = engine
        .database_create(namespace.id, NewDatabase::named("orders"))
        .await
        .expect("create");
    run(&database, "CREATE TABLE t(a INTEGER PRIMARY KEY, b BLOB)").await;
    let large = run(
        &database,
        "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM c WHERE x < 3000) \
         INSERT INTO t SELECT x, randomblob(4000) FROM c",
    )
    .await;
    run(&database, "UPDATE t SET b = zeroblob(10) WHERE a <= 1500").await;
    for i in 0..30 {
        run(
            &database,
            &format!("INSERT INTO t(b) VALUES(randomblob({}))", 100 + i),
        )
        .await;
    }
    flush(&database).await;
    engine.shutdown().await.expect("shutdown");
    drop((database, engine));
    let sum = "SELECT sum(length(b)) FROM t";
    let at_large = restored(folder.path(), At::Bookmark(large), |file| count(file, sum)).await;
    assert_eq!(at_large, 3000 * 4000);
    let latest = restored(folder.path(), At::Latest, |file| count(file, sum)).await;

    std::fs::remove_dir_all(folder.path().join("data")).expect("lose the machine");
    let refused = Engine::start(settings(folder.path()), Parts::production()).await;
    let refused = refused.expect_err("an empty folder on a bucket with history");
    assert_eq!(refused.code(), Code::Refused);
    assert!(refused.to_string().contains("--take-over all"), "{refused}");
    let taking = Settings {
        take_over: TakeOver::All,
        ..settings(folder.path())
    };
    let engine = Engine::start(taking, Parts::production())
        .await
        .expect("take over");
    let namespace = engine.namespace_by_name("acme").await.expect("namespace");
    let database = engine
        .database(namespace.id, "orders")
        .await
        .expect("database");
    let response = database.execute(statement(sum)).await.expect("read");
    assert_eq!(response.results[0].rows, [[Value::Integer(latest)]]);
    run(&database, "INSERT INTO t(b) VALUES(x'00')").await;
    flush(&database).await;
    let later = restored(folder.path(), At::Latest, |file| count(file, sum)).await;
    assert_eq!(later, latest + 1);
    engine.shutdown().await.expect("shutdown");
}

#[tokio::test(flavor = "multi_thread")]
async fn tenant_sql_cannot_leave_its_file() {
    let folder = tempfile::tempdir().expect("tempdir");
    let engine = start(folder.path()).await;
    let namespace = engine.namespace_create("acme").await.expect("namespace");
    let database = engine
        .database_create(namespace.id, NewDatabase::named("orders"))
        .await
        .expect("create");
    run(&database, "CREATE TABLE t(a)").await;
    let refused = [
        ("ATTACH 'other.db' AS o", Code::SqlError),
        ("ATTACH '' AS o", Code::SqlError),
        ("VACUUM INTO 'copy.db'", Code::SqlError),
        ("PRAGMA journal_mode=DELETE", Code::SqlError),
        ("PRAGMA wal_checkpoint(TRUNCATE)", Code::SqlError),
        ("PRAGMA hard_heap_limit=1", Code::SqlError),
        ("PRAGMA writable_schema=ON", Code::SqlError),
        ("PRAGMA database_list", Code::SqlError),
        ("SELECT * FROM sqlite_dbpage", Code::SqlError),
        ("SELECT * FROM dbstat", Code::SqlError),
        ("SELECT load_extension('x')", Code::SqlError),
        ("SELECT fts3_tokenizer('simple')", Code::SqlError),
        ("SELECT * FROM _tidelog_requests", Code::SqlError),
        ("CREATE TABLE _tidelog_x(a)", Code::SqlError),
        ("CREATE TEMP TABLE x(a)", Code::SqlError),
        ("BEGIN", Code::TransactionControl),
        ("COMMIT", Code::TransactionControl),
        ("SAVEPOINT s", Code::TransactionControl),
        ("SELECT 1; SELECT 2", Code::SqlError),
    ];
    for (sql, code) in refused {
        let error = try_run(&database, sql).await.expect_err(sql);
        assert_eq!(error.code(), code, "{sql}: {error}");
    }
    assert!(!folder.path().join("copy.db").exists() && !Path::new("copy.db").exists());
    run(&database, "INSERT INTO t VALUES(1)").await;
    engine.shutdown().await.expect("shutdown");
}

/// The most memory this process has had, in KiB.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("its status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let figure = line.and_then(|line| line.trim().strip_suffix(" kB"));
    figure
        .and_then(|figure| figure.parse().ok())
        .expect("a figure")
}

/// Goal: one statement cannot take the memory of the node. Method: a row of a hundred columns, gigabytes together, which
/// no limit of a result stops before the row is whole; and one whose values are small enough each.
#[tokio::test(flavor = "multi_thread")]
async fn one_row_takes_bounded_memory() {
    let folder = tempfile::tempdir().expect("tempdir");
    let engine = start(folder.path()).await;
    let namespace = engine.namespace_create("acme").await.expect("namespace");
    let database = engine
        .database_create(namespace.id, NewDatabase::named("orders"))
        .await
        .expect("create");
    let before = peak();
    for bytes in [60_000_000, 2_000_000] {
        for function in ["zeroblob", "randomblob"] {
            let values = vec![format!("{function}({bytes})"); 100].join(", ");
            let error = try_run(&database, &format!("SELECT {values}")).await;
            let error = error.expect_err("larger than any result");
            assert_eq!(error.code(), Code::ResultTooLarge, "{function}: {error}");
            assert!(error.members()["limit"].is_u64(), "{error}");
        }
    }
    let grown = peak() - before;
    assert!(grown < 700 << 10, "grown by {grown} KiB");
    // Few columns may hold large values, and what a wide row holds is not bounded by what it could.
    run(&database, "SELECT zeroblob(20000000), 1").await;
    let narrow = vec!["'x'"; 1_900].join(", ");
    run(&database, &format!("SELECT {narrow}")).await;
    engine.shutdown().await.expect("shutdown");
}

/// Goal: the answer to a keyed write is kept for 24 hours, and then the key is free. Method: the wall clock is set on.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_kept_for_a_day() {
    const HOUR: i64 = 3600;
    let folder = tempfile::tempdir().expect("tempdir");
    let clock = Arc::new(ShiftedClock::new());
    let parts = Parts {
        clock: Arc::clone(&clock) as Arc<dyn Clock>,
        ..Parts::production()
    };
    let engine = Engine::start(settings(folder.path()), parts).await;
    let engine = engine.expect("start");
    let namespace = engine.namespace_create("acme").await.expect("namespace");
    let database = engine
        .database_create(namespace.id, NewDatabase::named("orders"))
        .await
        .expect("create");
    run(&database, "CREATE TABLE t(a)").await;
    let insert = async |fingerprint: u8| {
        let request = Request {
            idempotency: Some(IdempotencyKey {
                scope: "orders".to_owned(),
                key: "k".to_owned(),
                fingerprint: [fingerprint; 32],
            }),
            ..statement("INSERT INTO t VALUES(1)")
        };
        database.execute(request).await
    };
    for (hours, replayed) in [(0, false), (23, true), (2, false), (1, true)] {
        clock.step(hours * HOUR);
        let done = insert(1).await.expect("a keyed write");
        assert_eq!(done.replayed, replayed, "{hours} hours later");
    }
    let reused = insert(2).await.expect_err("another request");
    assert_eq!(reused.code(), Code::IdempotencyKeyReused);
    clock.step(25 * HOUR);
    insert(2).await.expect("the key is free");
    let count = database.execute(statement("SELECT count(*) FROM t")).await;
    let rows = &count.expect("read").results[0].rows;
    assert_eq!(rows, &[[Value::Integer(3)]]);
    engine.shutdown().await.expect("shutdown");
}
