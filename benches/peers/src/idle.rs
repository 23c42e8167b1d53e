//! What an idle node costs: store requests and descriptors of many databases that nobody uses.

use std::time::{Duration, Instant};

use clap::Args;
use serde_json::{Value, json};
use tidelog_engine::{
    Access, Durability, Engine, Limits, NewDatabase, Params, Parts, Request, Settings, Statement,
};

use crate::memory::{held_below, mib, resident};

/// What to run.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Databases, each with a table and a row.
    #[arg(long, default_value_t = 1_000)]
    databases: u32,
    /// How long to look on.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
}

/// One statement, answered at `local`.
pub(crate) fn request(sql: &str) -> Request {
    Request {
        statements: vec![Statement {
            sql: sql.to_owned(),
            params: Params::None,
        }],
        transaction: true,
        durability: Some(Durability::Local),
        access: Access::owner(),
        limits: Limits::default(),
        idempotency: None,
    }
}

#[expect(clippy::disallowed_methods, reason = "a bench measures real time")]
pub(crate) async fn run(options: Options) -> Value {
    let folder = tempfile::tempdir().expect("tempdir");
    let settings = Settings {
        data: folder.path().join("data"),
        store_url: format!("file://{}", folder.path().join("store").display()),
        ..Settings::default()
    };
    let files = settings.data.join("databases");
    let engine = Engine::start(settings, Parts::production())
        .await
        .expect("start");
    let (empty, _) = resident(std::process::id()).expect("this process");
    let namespace = engine.namespace_create("bench").await.expect("namespace");
    for n in 0..options.databases {
        let new = NewDatabase::named(format!("d{n}"));
        let database = engine.database_create(namespace.id, new).await;
        let database = database.expect("create");
        for sql in ["CREATE TABLE t(a)", "INSERT INTO t VALUES(1)"] {
            database.execute(request(sql)).await.expect(sql);
        }
    }
    let held_open = held_below(&files).len();
    let waiting = Instant::now();
    while !held_below(&files).is_empty() {
        assert!(
            waiting.elapsed() < Duration::from_mins(10),
            "databases stay open"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let until_closed = waiting.elapsed();
    // What was written last is shipped.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let before = engine.store_meter();
    let looking = Instant::now();
    let mut held_most = 0;
    while looking.elapsed() < Duration::from_secs(options.seconds) {
        held_most = held_most.max(held_below(&files).len());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let requests = engine.store_meter().since(&before).total();
    let (rss, _) = resident(std::process::id()).expect("this process");
    engine.shutdown().await.expect("shutdown");
    json!({
        "databases": options.databases,
        "descriptors_while_open": held_open,
        "seconds_until_closed": until_closed.as_secs_f64(),
        "looked_on_seconds": options.seconds,
        "store_requests": requests,
        "descriptors_of_databases": held_most,
        "resident_mib": mib(rss),
        "resident_before_databases_mib": mib(empty),
    })
}
