//! The main job in one process: write, stop, start, find everything.

mod rig;

use std::time::Duration;

use tidelog_engine::request::Request;
use tidelog_engine::{Code, Database, Durability, Engine, NewDatabase, Parts, Settings, Value};
use tidelog_testkit::sealing::masters;

fn settings(folder: &std::path::Path) -> Settings {
    Settings {
        data: folder.join("data"),
        store_url: format!("file://{}", folder.join("store").display()),
        ship_interval: Duration::from_millis(50),
        // A machine that is busy with something else makes no write fail.
        gate_timeout: Duration::from_mins(1),
        durability_timeout: Duration::from_mins(1),
        master_keys: masters(),
        ..Settings::default()
    }
}

fn request(sql: &str, durability: Durability) -> Request {
    rig::request(&[sql], durability)
}

async fn run(database: &Database, sql: &str) -> Vec<Vec<Value>> {
    let response = database
        .execute(request(sql, Durability::Remote))
        .await
        .expect(sql);
    response
        .results
        .into_iter()
        .next()
        .map(|r| r.rows)
        .unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_written_is_there_after_a_restart() {
    let folder = tempfile::tempdir().expect("tempdir");
    let engine = Engine::start(settings(folder.path()), Parts::production())
        .await
        .expect("start");
    let namespace = engine.namespace_create("acme").await.expect("namespace");
    let database = engine
        .database_create(namespace.id, NewDatabase::named("orders"))
        .await
        .expect("create");
    run(&database, "CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT)").await;
    for i in 0..50 {
        run(&database, &format!("INSERT INTO t(b) VALUES('row {i}')")).await;
    }
    let before = database.bookmark().await.expect("bookmark");
    assert_eq!(before.bookmark.txid.get(), 52);
    assert_eq!(before.durable_bookmark, Some(before.bookmark));
    engine.shutdown().await.expect("shutdown");
    drop((database, engine));

    let engine = Engine::start(settings(folder.path()), Parts::production())
        .await
        .expect("start");
    let namespace = engine.namespace_by_name("acme").await.expect("namespace");
    let database = engine
        .database(namespace.id, "orders")
        .await
        .expect("database");
    let after = database.bookmark().await.expect("bookmark");
    assert_eq!(after.bookmark, before.bookmark);
    assert_eq!(
        run(&database, "SELECT count(*) FROM t").await,
        [[Value::Integer(50)]]
    );
    run(&database, "DELETE FROM t WHERE a > 10").await;
    let later = database.bookmark().await.expect("bookmark");
    assert_eq!(later.bookmark.txid.get(), 53);
    assert!(later.bookmark.term > before.bookmark.term);
    engine.shutdown().await.expect("shutdown");
}

/// Goal: who keeps a session does not keep a node from stopping, nor a database from being closed. Method: a session
/// held over an idle close, after which it writes on, and over a stop, after which it cannot.
#[tokio::test(flavor = "multi_thread")]
async fn a_held_writer_keeps_nothing_open() {
    let folder = tempfile::tempdir().expect("tempdir");
    let settings = Settings {
        idle_close: Duration::from_millis(50),
        idle_sweep: Duration::from_millis(20),
        ..rig::settings(folder.path())
    };
    let engine = Engine::start(settings, Parts::production()).await;
    let engine = engine.expect("start");
    let database = rig::orders(&engine).await;
    let create = "CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT)";
    rig::run(&database, create, Durability::Local).await;
    let writer = std::sync::Arc::new(database.writer().await.expect("a session"));
    let write = || {
        let writer = std::sync::Arc::clone(&writer);
        let insert = move || {
            let insert = "INSERT INTO t(b) VALUES('held')";
            writer.transaction(|connection| connection.execute(insert, []))
        };
        async move { tokio::task::spawn_blocking(insert).await.expect("no panic") }
    };
    assert!(write().await.expect("written").1.is_some());
    let files = folder.path().join("data").join("databases");
    let files = files.join(database.row().id.to_string());
    rig::until("an idle close", || async { rig::held(&files) == 0 }).await;
    write().await.expect("opened anew");
    let stopped = tokio::time::timeout(rig::PATIENCE, engine.shutdown()).await;
    stopped.expect("it stops").expect("in order");
    let refused = write().await.expect_err("the node has stopped");
    assert_eq!(refused.code(), Code::Overloaded, "{refused:?}");
}
