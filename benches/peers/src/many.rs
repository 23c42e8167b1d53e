//! Many databases on one node: memory, and what the store is asked while some of them are written.

use std::time::{Duration, Instant};

use clap::Args;
use serde_json::{Value, json};
use tidelog_archive::store::Verb;
use tidelog_engine::{Database, Durability, Engine, NewDatabase, Parts, Settings};

use crate::idle::request;
use crate::memory::{mib, resident};

/// What to run.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Databases, each with a table and a row.
    #[arg(long, default_value_t = 10_000)]
    databases: u32,
    /// How many of them are written.
    #[arg(long, default_value_t = 100)]
    active: u32,
    /// Commits a second of each of those.
    #[arg(long, default_value_t = 1.0)]
    rate: f64,
    /// How long.
    #[arg(long, default_value_t = 60)]
    seconds: u32,
}

fn per_second(count: u64, seconds: f64) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX)) / seconds
}

/// Creations at a time.
const AT_A_TIME: usize = 32;

async fn create(engine: &Engine, options: &Options) -> Vec<Database> {
    use futures::StreamExt as _;
    let namespace = engine.namespace_create("bench").await.expect("namespace");
    futures::stream::iter(0..options.databases)
        .map(|n| {
            let (engine, id) = (engine.clone(), namespace.id);
            async move {
                let new = NewDatabase::named(format!("d{n}"));
                let database = engine.database_create(id, new).await.expect("create");
                for sql in [
                    "CREATE TABLE t(a INTEGER PRIMARY KEY, b)",
                    "INSERT INTO t VALUES(1, 0)",
                ] {
                    database.execute(request(sql)).await.expect(sql);
                }
                database
            }
        })
        .buffer_unordered(AT_A_TIME)
        .collect()
        .await
}

#[expect(clippy::disallowed_methods, reason = "a bench measures real time")]
pub(crate) async fn run(options: Options) -> Value {
    let folder = tempfile::tempdir().expect("tempdir");
    let settings = Settings {
        data: folder.path().join("data"),
        store_url: format!("file://{}", folder.path().join("store").display()),
        durability: Durability::Local,
        ..Settings::default()
    };
    let engine = Engine::start(settings, Parts::production())
        .await
        .expect("start");
    let (empty, _) = resident(std::process::id()).expect("this process");
    let begun = Instant::now();
    let mut databases = create(&engine, &options).await;
    let created_in = begun.elapsed();
    databases.truncate(options.active as usize);
    // What the creations left is shipped and settled.
    let mut before = engine.store_meter().total();
    loop {
        tokio::time::sleep(Duration::from_secs(5)).await;
        let now = engine.store_meter().total();
        if now == before {
            break;
        }
        before = now;
    }
    let before = engine.store_meter();
    let (mut peak, mut commits) = (0, 0_u64);
    let started = Instant::now();
    let until = Duration::from_secs(u64::from(options.seconds));
    let mut writing = tokio::task::JoinSet::new();
    for (number, database) in (0_u32..).zip(databases) {
        let gap = Duration::from_secs_f64(1.0 / options.rate);
        let share = f64::from(number) / f64::from(options.active.max(1));
        writing.spawn(async move {
            let mut due = started + gap.mul_f64(share);
            let mut done = 0_u64;
            while due.duration_since(started) < until {
                tokio::time::sleep_until(due.into()).await;
                let sql = "UPDATE t SET b = b + 1 WHERE a = 1";
                database.execute(request(sql)).await.expect(sql);
                done += 1;
                due += gap;
            }
            done
        });
    }
    loop {
        tokio::select! {
            ended = writing.join_next() => match ended {
                Some(done) => commits += done.expect("a writer"),
                None => break,
            },
            () = tokio::time::sleep(Duration::from_millis(500)) => {
                let (now, _) = resident(std::process::id()).expect("this process");
                peak = peak.max(now);
            }
        }
    }
    let took = started.elapsed().as_secs_f64();
    let asked = engine.store_meter().since(&before);
    engine.shutdown().await.expect("shutdown");
    json!({
        "databases": options.databases,
        "created_per_second": f64::from(options.databases) / created_in.as_secs_f64(),
        "active": options.active,
        "commits": commits,
        "seconds": took,
        "puts_per_second": per_second(asked.all(Verb::Put), took),
        "requests_per_second": per_second(asked.total(), took),
        "put_bytes_per_commit": asked.bytes(Verb::Put) / commits.max(1),
        "resident_peak_mib": mib(peak),
        "resident_before_databases_mib": mib(empty),
    })
}
