//! Replacing a live database by a file: one commit, taken back by a rewind, refused where it does not fit.

mod rig;

use std::path::{Path, PathBuf};
use std::time::Duration;

use tidelog_engine::bucket::At;
use tidelog_engine::operations::{Operation, OperationState};
use tidelog_engine::system::Page;
use tidelog_engine::system::databases::DatabasePatch;
use tidelog_engine::travel::verify::{Level, NewVerification};
use tidelog_engine::{Code, Database, Durability, Engine, NewDatabase, Parts, Settings};
use tidelog_testkit::sealing::masters;
use tidelog_wal::{NamespaceId, Position};

const WAIT: Duration = Duration::from_mins(1);

struct World {
    folder: tempfile::TempDir,
    engine: Engine,
    namespace: NamespaceId,
    database: Database,
}

async fn world() -> World {
    let folder = tempfile::tempdir().expect("tempdir");
    let settings = Settings {
        data: folder.path().join("data"),
        store_url: format!("file://{}", folder.path().join("store").display()),
        ship_interval: Duration::from_millis(20),
        // A machine that is busy with something else makes no write fail.
        gate_timeout: Duration::from_mins(1),
        durability_timeout: Duration::from_mins(1),
        master_keys: masters(),
        ..Settings::default()
    };
    let engine = Engine::start(settings, Parts::production()).await;
    let engine = engine.expect("start");
    let namespace = engine.namespace_create("acme").await.expect("namespace").id;
    let database = engine
        .database_create(namespace, NewDatabase::named("orders"))
        .await
        .expect("create");
    World {
        folder,
        engine,
        namespace,
        database,
    }
}

async fn run(database: &Database, sql: &str) -> (Position, i64) {
    let request = rig::request(&[sql], Durability::Memory);
    let response = database.execute(request).await;
    let response = response.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    let row = response
        .results
        .into_iter()
        .next()
        .and_then(|r| r.rows.into_iter().next());
    let first = match row.and_then(|row| row.into_iter().next()) {
        Some(tidelog_engine::Value::Integer(number)) => number,
        _ => 0,
    };
    (response.bookmark, first)
}

fn file(folder: &Path, name: &str, sql: &str) -> PathBuf {
    let path = folder.join(name);
    let plain = rusqlite::Connection::open(&path).expect("open");
    plain.execute_batch(sql).expect("fill");
    path
}

async fn replaced(database: &Database, file: &Path) -> Operation {
    let mut handle = database.replace(file, None, None).await.expect("begin");
    let operation = handle.wait(WAIT).await;
    assert_eq!(operation.state, OperationState::Succeeded, "{operation:?}");
    operation
}

const MANY: &str = "CREATE TABLE u(x, y); WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c \
                    WHERE x < 3000) INSERT INTO u SELECT x, hex(randomblob(60)) FROM c; CREATE INDEX i ON u(y)";

#[tokio::test(flavor = "multi_thread")]
async fn a_file_takes_the_place_of_a_database_and_is_taken_back() {
    let world = world().await;
    let database = &world.database;
    run(database, "CREATE TABLE t(a)").await;
    let (before, _) = run(database, "INSERT INTO t VALUES(1), (2)").await;
    let grown = file(world.folder.path(), "grown.db", MANY);
    let operation = replaced(database, &grown).await;
    let result = operation.result.expect("a result");
    assert_eq!(result["previous_bookmark"], before.to_string());
    // A connection that knew the old schema sees the new one, larger and smaller again.
    assert_eq!(run(database, "SELECT count(*) FROM u").await.1, 3000);
    let exported = world.folder.path().join("exported.db");
    database
        .export(At::Latest, &exported)
        .await
        .expect("export");
    let plain = rusqlite::Connection::open(&exported).expect("open");
    let sound: String = plain
        .query_row("PRAGMA integrity_check", [], |row| row.get(0))
        .expect("check");
    assert_eq!(sound, "ok");
    run(database, "INSERT INTO u VALUES(0, 'more')").await;
    let mut checked = database
        .verify(NewVerification::of(Level::Full))
        .await
        .expect("begin");
    let checked = checked.wait(WAIT).await.result.expect("a result");
    assert_eq!(checked["verification"]["outcome"], "verified", "{checked}");
    let small = file(world.folder.path(), "small.db", "CREATE TABLE s(a)");
    replaced(database, &small).await;
    assert_eq!(run(database, "SELECT count(*) FROM s").await.1, 0);
    let restores = database
        .restores(Page::default())
        .await
        .expect("list")
        .items;
    assert_eq!(restores.len(), 2);
    let mut undone = database
        .undo(&restores[0].id, None, None)
        .await
        .expect("begin");
    assert_eq!(undone.wait(WAIT).await.state, OperationState::Succeeded);
    assert_eq!(run(database, "SELECT count(*) FROM u").await.1, 3001);
    let first = world.folder.path().join("first.db");
    let at = database.export(At::Bookmark(before), &first).await;
    assert_eq!(at.expect("every bookmark stays valid"), before);
    world.engine.shutdown().await.expect("shutdown");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_is_refused_with_the_reason_and_changes_nothing() {
    let world = world().await;
    let database = &world.database;
    run(database, "CREATE TABLE t(a)").await;
    let (head, _) = run(database, "INSERT INTO t VALUES(1)").await;
    let folder = world.folder.path();
    let text = folder.join("text");
    std::fs::write(&text, vec![b'x'; 5000]).expect("write");
    for (path, reason) in [
        (
            file(
                folder,
                "pages.db",
                "PRAGMA page_size=8192; CREATE TABLE t(a)",
            ),
            "page size",
        ),
        (
            file(
                folder,
                "utf16.db",
                "PRAGMA encoding='UTF-16le'; CREATE TABLE t(a)",
            ),
            "text encoding",
        ),
        (text, "none, or it is encrypted"),
    ] {
        let error = database.replace(&path, None, None).await.expect_err(reason);
        assert_eq!(error.code(), Code::ImportInvalid, "{reason}");
        assert!(error.to_string().contains(reason), "{error}");
    }
    let fits = file(folder, "fits.db", MANY);
    let elsewhere = Position {
        txid: head.txid.next(),
        ..head
    };
    let moved = database.replace(&fits, Some(elsewhere), None).await;
    let moved = moved.expect_err("it is not there");
    assert_eq!(moved.code(), Code::DatabaseMoved);
    assert_eq!(moved.members()["current_bookmark"], head.to_string());
    let patch = |patch| {
        world
            .engine
            .database_patch(world.namespace, "orders", patch)
    };
    let limit = DatabasePatch {
        size_limit: Some(Some(4096)),
        ..DatabasePatch::default()
    };
    patch(limit).await.expect("patch");
    let database = world
        .engine
        .database(world.namespace, "orders")
        .await
        .expect("there");
    let large = database
        .replace(&fits, None, None)
        .await
        .expect_err("too large");
    assert_eq!(large.code(), Code::QuotaExceeded);
    let blocked = DatabasePatch {
        size_limit: Some(None),
        block_writes: Some(true),
        ..DatabasePatch::default()
    };
    patch(blocked).await.expect("patch");
    let database = world
        .engine
        .database(world.namespace, "orders")
        .await
        .expect("there");
    let blocked = database
        .replace(&fits, None, None)
        .await
        .expect_err("blocked");
    assert_eq!(blocked.code(), Code::DatabaseReadOnly);
    assert_eq!(database.bookmark().await.expect("bookmark").bookmark, head);
    world.engine.shutdown().await.expect("shutdown");
}
