//! What tests of a whole node share: quick settings, one database to write to, the bucket read without a node.

#![allow(dead_code, reason = "each test uses a part of it")]

use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use tidelog_archive::ErrorKind;
use tidelog_archive::restore::FileSink;
use tidelog_archive::scrub::{Finding, Level, scrub};
use tidelog_archive::store::{Store, StoreOptions, StoreSettings};
use tidelog_engine::bucket::{At, Bucket, BucketDatabase};
use tidelog_engine::operations::Handle;
use tidelog_engine::{
    Access, Database, Durability, Engine, Error, Limits, Params, Request, Settings, Statement,
    Value,
};
use tidelog_testkit::faultstore::{FaultStore, Shared};
use tidelog_testkit::sealing::masters;
use tidelog_wal::Position;

/// How long anything may take that takes a moment: a machine that is busy with something else keeps it waiting.
pub(crate) const PATIENCE: Duration = Duration::from_mins(3);

/// A node that ships and settles at once, sealed if the environment asks for it. Nobody gives up soon: what a test
/// expects to be given up has a setting of its own there.
pub(crate) fn settings(folder: &Path) -> Settings {
    Settings {
        data: folder.join("data"),
        store_url: url(folder),
        ship_interval: Duration::from_millis(20),
        ship_linger: Duration::from_millis(1),
        settle_bytes: 64 << 10,
        settle_pause: Duration::from_millis(1),
        gate_timeout: Duration::from_mins(1),
        durability_timeout: Duration::from_mins(1),
        stream_gate_idle: Duration::from_mins(10),
        stream_idle: Duration::from_mins(10),
        master_keys: masters(),
        ..Settings::default()
    }
}

pub(crate) fn url(folder: &Path) -> String {
    format!("file://{}", folder.join("store").display())
}

/// The bucket of a node, without it.
pub(crate) async fn bucket(folder: &Path) -> Result<Bucket, Error> {
    Bucket::open_with_keys(&url(folder), &masters()).await
}

/// A store on which what stands still goes on when the test says so, and what fails is not tried again.
pub(crate) fn patient_store(faults: &Arc<FaultStore>) -> Store {
    let options = StoreOptions {
        settings: StoreSettings {
            attempts_max: 1,
            request_timeout: Duration::from_mins(10),
            call_time_max: Duration::from_mins(10),
            ..StoreSettings::default()
        },
        ..StoreOptions::default()
    };
    let shared = Arc::new(Shared(Arc::clone(faults)));
    Store::from_object_store(shared, "", options).expect("a store")
}

/// Statements in one transaction.
pub(crate) fn request<S: AsRef<str>>(statements: &[S], durability: Durability) -> Request {
    let statement = |sql: &S| Statement {
        sql: sql.as_ref().to_owned(),
        params: Params::None,
    };
    Request {
        statements: statements.iter().map(statement).collect(),
        transaction: true,
        durability: Some(durability),
        access: Access::owner(),
        limits: Limits::default(),
        idempotency: None,
    }
}

pub(crate) async fn try_run(
    database: &Database,
    sql: &str,
    durability: Durability,
) -> Result<Position, Error> {
    let done = database.execute(request(&[sql], durability)).await;
    done.map(|response| response.bookmark)
}

pub(crate) async fn run(database: &Database, sql: &str, durability: Durability) -> Position {
    let done = try_run(database, sql, durability).await;
    done.unwrap_or_else(|error| panic!("{sql}: {error:?}"))
}

/// The integers of a one-row answer.
pub(crate) async fn numbers(database: &Database, sql: &str) -> Vec<i64> {
    let done = database.execute(request(&[sql], Durability::Memory)).await;
    let done = done.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    let row = done.results[0].rows.first().expect("a row");
    row.iter()
        .map(|value| match value {
            Value::Integer(number) => *number,
            other => panic!("{sql}: {other:?}"),
        })
        .collect()
}

/// The database `acme/orders` of a node, made if need be.
pub(crate) async fn orders(engine: &Engine) -> Database {
    let namespace = match engine.namespace_by_name("acme").await {
        Ok(found) => found,
        Err(_) => engine.namespace_create("acme").await.expect("namespace"),
    };
    match engine.database(namespace.id, "orders").await {
        Ok(found) => found,
        Err(_) => engine
            .database_create(namespace.id, tidelog_engine::NewDatabase::named("orders"))
            .await
            .expect("create"),
    }
}

/// Begins a write transaction that lasts until what is answered is dropped.
pub(crate) async fn hold_gate(database: &Database) -> mpsc::Sender<()> {
    let writer = database.writer().await.expect("a writer");
    let (release, released) = mpsc::channel();
    let (entered, inside) = tokio::sync::oneshot::channel();
    tokio::task::spawn_blocking(move || {
        let held = writer.transaction(|_| {
            entered.send(()).expect("the test waits");
            let _ = released.recv();
            Ok(())
        });
        held.expect("a transaction");
    });
    inside.await.expect("it has begun");
    release
}

/// Waits until an operation stands at the gate of its database.
pub(crate) async fn at_gate(engine: &Engine, operation: &Handle) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while operation.current().phase != "wait_for_writers" {
        let standing = operation.current();
        assert!(tokio::time::Instant::now() < deadline, "{standing:?}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    queued(engine, 1).await;
}

/// Waits until so many stand at the gates of a node.
pub(crate) async fn queued(engine: &Engine, many: u64) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while engine.status().await.gates_waiting < many {
        assert!(
            tokio::time::Instant::now() < deadline,
            "fewer than {many} at the gates"
        );
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Descriptors of this process below a folder.
pub(crate) fn held(below: &Path) -> usize {
    std::fs::read_dir("/proc/self/fd")
        .expect("the descriptors of this process")
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .filter(|target| target.starts_with(below))
        .count()
}

/// Restores a state of a database from the bucket alone, and has SQLite prove it.
pub(crate) async fn restored(
    bucket: &Bucket,
    database: &BucketDatabase,
    at: At,
) -> Result<(tempfile::TempDir, Connection), Error> {
    let folder = tempfile::tempdir().expect("tempdir");
    let file = folder.path().join("restored.db");
    bucket.restore(database, at.clone(), &file, false).await?;
    let connection = Connection::open(&file).expect("open");
    let check: String = connection
        .query_row("PRAGMA integrity_check", [], |row| row.get(0))
        .expect("check");
    assert_eq!(check, "ok", "{at:?}");
    Ok((folder, connection))
}

/// Everything the bucket holds is whole: every object, chain and image.
pub(crate) async fn verify(bucket: &Bucket) {
    let mut all = vec![bucket.system()];
    all.extend(bucket.databases().await.expect("the names"));
    let folder = tempfile::tempdir().expect("tempdir");
    for database in all {
        let (mut files, mut looks) = (0, 0);
        // What was listed may be settled, and its journal objects gone, while it is read: then it is listed anew.
        let report = loop {
            looks += 1;
            let history = bucket.history(&database).await.expect("a history");
            let report = scrub(bucket.store(), history, Level::Restore, || {
                files += 1;
                FileSink::create(&folder.path().join(format!("{}-{files}", database.id)))
            });
            let report = report.await.expect("scrub");
            let gone = |one: &Finding| one.kind == ErrorKind::NotFound;
            if report.is_clean() || looks == 3 || !report.findings.iter().all(gone) {
                break report;
            }
        };
        assert!(
            report.is_clean(),
            "{}: {:?}",
            database.name,
            report.findings
        );
    }
}

/// Waits until `done`; `what` says for what when it does not come.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, mut done: impl FnMut() -> F) {
    #[expect(clippy::disallowed_methods, reason = "a whole node lives in real time")]
    let begun = Instant::now();
    while !done().await {
        assert!(begun.elapsed() < PATIENCE, "{what} did not come");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
