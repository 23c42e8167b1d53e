//! Import, bookmarks by time, history and exports of one database.

mod rig;

use std::path::Path;
use std::time::Duration;

use tidelog_engine::bucket::At;
use tidelog_engine::system::Page;
use tidelog_engine::{Code, Database, Durability, Engine, Parts, Settings};
use tidelog_testkit::sealing::masters;
use tidelog_wal::Position;

fn settings(folder: &Path) -> Settings {
    Settings {
        data: folder.join("data"),
        store_url: format!("file://{}", folder.join("store").display()),
        ship_interval: Duration::from_millis(20),
        settle_bytes: 32 << 10,
        settle_pause: Duration::from_millis(1),
        gate_timeout: Duration::from_mins(1),
        durability_timeout: Duration::from_mins(1),
        master_keys: masters(),
        ..Settings::default()
    }
}

async fn run(database: &Database, sql: &str) -> Position {
    rig::run(database, sql, Durability::Memory).await
}

fn query<T: rusqlite::types::FromSql>(file: &Path, sql: &str) -> T {
    let connection = rusqlite::Connection::open(file).expect("open");
    connection.query_row(sql, [], |row| row.get(0)).expect(sql)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_imported_database_is_changed_listed_and_exported_at_every_bookmark() {
    let folder = tempfile::tempdir().expect("tempdir");
    let source = folder.path().join("source.db");
    let plain = rusqlite::Connection::open(&source).expect("open");
    plain
        .execute_batch(
            "PRAGMA page_size=8192; CREATE TABLE t(a INTEGER PRIMARY KEY, b);
             WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM c WHERE x < 5000)
             INSERT INTO t SELECT x, hex(x * 7919) FROM c; CREATE INDEX i ON t(b);",
        )
        .expect("fill");
    drop(plain);
    let engine = Engine::start(settings(folder.path()), Parts::production())
        .await
        .expect("start");
    let namespace = engine.namespace_create("acme").await.expect("namespace");
    let database = engine
        .database_import(namespace.id, "orders", &source)
        .await
        .expect("import");
    let mut bookmarks = vec![database.bookmark().await.expect("bookmark").bookmark];
    assert_eq!(bookmarks[0].txid.get(), 1);
    for i in 0..40 {
        bookmarks.push(run(&database, &format!("DELETE FROM t WHERE a % 40 = {i}")).await);
    }
    let scratch = tempfile::tempdir().expect("tempdir");
    for (i, bookmark) in (0_i64..).zip(&bookmarks) {
        let out = scratch.path().join(format!("{i}.db"));
        let position = database
            .export(At::Bookmark(*bookmark), &out)
            .await
            .expect("export");
        assert_eq!(position, *bookmark);
        assert_eq!(query::<i64>(&out, "SELECT count(*) FROM t"), 5000 - 125 * i);
        assert_eq!(query::<String>(&out, "PRAGMA integrity_check"), "ok");
        assert_eq!(query::<i64>(&out, "PRAGMA page_size"), 8192);
    }
    let mut listed = Vec::new();
    let mut cursor = None;
    loop {
        let page = Page { limit: 7, cursor };
        let found = database.history(None, None, page).await.expect("history");
        listed.extend(
            found
                .items
                .into_iter()
                .map(|commit| (commit.position, commit.time)),
        );
        cursor = found.next_cursor;
        if cursor.is_none() {
            break;
        }
    }
    let positions: Vec<Position> = listed.iter().map(|(position, _)| *position).collect();
    assert_eq!(positions, bookmarks);
    for (position, time) in &listed {
        let found = database.bookmark_at(*time).await.expect("by time");
        assert_eq!((found.bookmark, found.exact), (*position, true));
    }
    let window = database.recovery_window().await.expect("window");
    assert_eq!(
        window.earliest.map(|(position, _)| position),
        Some(bookmarks[0])
    );
    engine.shutdown().await.expect("shutdown");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_database_is_refused_by_name_and_leaves_nothing() {
    let folder = tempfile::tempdir().expect("tempdir");
    let engine = Engine::start(settings(folder.path()), Parts::production())
        .await
        .expect("start");
    let namespace = engine.namespace_create("acme").await.expect("namespace");
    let good = folder.path().join("good.db");
    let plain = rusqlite::Connection::open(&good).expect("open");
    plain
        .execute_batch("CREATE TABLE t(a); INSERT INTO t VALUES(zeroblob(50000))")
        .expect("fill");
    drop(plain);
    let bytes = std::fs::read(&good).expect("read");
    let mut damaged = bytes.clone();
    damaged[4096..4196].fill(0xff);
    let cases: [(&str, &[u8], &str); 4] = [
        ("empty", b"", "empty"),
        ("text", &[b'x'; 5000], "none, or it is encrypted"),
        ("cut", &bytes[..bytes.len() - 4096], "cut off"),
        ("damaged", &damaged, "damaged"),
    ];
    for (name, content, reason) in cases {
        let file = folder.path().join(name);
        std::fs::write(&file, content).expect("write");
        let error = engine
            .database_import(namespace.id, "orders", &file)
            .await
            .expect_err(name);
        assert_eq!(error.code(), Code::ImportInvalid, "{name}");
        assert!(error.to_string().contains(reason), "{name}: {error}");
        let missing = engine
            .database(namespace.id, "orders")
            .await
            .expect_err("nothing");
        assert_eq!(missing.code(), Code::DatabaseNotFound);
    }
    engine
        .database_import(namespace.id, "orders", &good)
        .await
        .expect("the good one");
    engine.shutdown().await.expect("shutdown");
}
