//! A tenant that sends the very text of a statement of the engine is judged like any other.

mod rig;

use std::time::Duration;

use tidelog_engine::{
    Code, Database, Durability, Engine, IdempotencyKey, NewDatabase, Parts, Request, Settings,
};
use tidelog_testkit::sealing::masters;

fn request(sql: &[&str]) -> Request {
    rig::request(sql, Durability::Memory)
}

async fn refused(database: &Database, sql: &[&str]) -> Code {
    match database.execute(request(sql)).await {
        Ok(response) => panic!("{sql:?}: {response:?}"),
        Err(error) => error.code(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cached_statement_of_the_engine_gives_a_tenant_no_rights() {
    let folder = tempfile::tempdir().expect("tempdir");
    let settings = Settings {
        data: folder.path().join("data"),
        store_url: "memory:".to_owned(),
        ship_interval: Duration::from_millis(20),
        // A machine that is busy with something else makes no write fail.
        gate_timeout: Duration::from_mins(1),
        durability_timeout: Duration::from_mins(1),
        master_keys: masters(),
        ..Settings::default()
    };
    let engine = Engine::start(settings, Parts::production())
        .await
        .expect("start");
    let namespace = engine.namespace_create("acme").await.expect("namespace");
    let new = NewDatabase::named("orders");
    let database = engine
        .database_create(namespace.id, new)
        .await
        .expect("create");
    let good = async |sql: &[&str]| database.execute(request(sql)).await.expect("runs");
    good(&["CREATE TABLE t(a)"]).await;
    // The engine's statements are in the caches of writer and reader from here on.
    let keyed = Request {
        idempotency: Some(IdempotencyKey {
            scope: "token route".to_owned(),
            key: "k".to_owned(),
            fingerprint: [1; 32],
        }),
        ..request(&["INSERT INTO t VALUES(1)"])
    };
    database.execute(keyed).await.expect("runs");
    good(&["SELECT count(*) FROM t"]).await;
    for mark in ["", "/*tidelog*/", " /*tidelog*/ /*tidelog*/"] {
        for word in ["COMMIT", "BEGIN", "BEGIN IMMEDIATE"] {
            let text = format!("{mark}{word}");
            assert_eq!(
                refused(&database, &[&text]).await,
                Code::TransactionControl,
                "{text}"
            );
            let inside = ["INSERT INTO t VALUES(2)", &text, "INSERT INTO t VALUES(3)"];
            assert_eq!(
                refused(&database, &inside).await,
                Code::TransactionControl,
                "{text}"
            );
        }
        let hidden = format!("{mark}DELETE FROM _tidelog_requests WHERE at < ?1 OR database <> ?2");
        refused(&database, &[&hidden]).await;
    }
    let rows = good(&["SELECT count(*) FROM t"]).await;
    assert_eq!(
        rows.results[0].rows[0][0],
        tidelog_engine::Value::Integer(1)
    );
    engine.shutdown().await.expect("shutdown");
}
