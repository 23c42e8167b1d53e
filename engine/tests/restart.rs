//! The main job in one process: write, stop, start, find everything.

use std::time::Duration;

use tidelog_engine::request::{Access, Request};
use tidelog_engine::{
    Database, Durability, Engine, Limits, NewDatabase, Params, Parts, Settings, Statement, Value,
};
use tidelog_testkit::sealing::masters;

fn settings(folder: &std::path::Path) -> Settings {
    Settings {
        data: folder.join("data"),
        store_url: format!("file://{}", folder.join("store").display()),
        ship_interval: Duration::from_millis(50),
        master_keys: masters(),
        ..Settings::default()
    }
}

fn request(sql: &str, durability: Durability) -> Request {
    Request {
        statements: vec![Statement {
            sql: sql.to_owned(),
            params: Params::None,
        }],
        transaction: true,
        durability: Some(durability),
        access: Access::owner(),
        limits: Limits::default(),
        idempotency: None,
    }
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
