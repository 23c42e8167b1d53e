//! The OLTP mix through the engine: what is shipped for each commit, all commits kept.

use std::time::{Duration, Instant};

use clap::Args;
use serde_json::{Value, json};
use tidelog_engine::{Durability, Engine, NewDatabase, Parts, Settings};
use tidelog_testkit::oltp::{Oltp, SCHEMA};

/// Rows of one loading transaction.
const LOAD_BATCH: u32 = 500;

/// What to run.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Rows of `orders` before the run.
    #[arg(long, default_value_t = 300_000)]
    rows: u32,
    /// Commits a second; 0: as fast as it goes.
    #[arg(long, default_value_t = 100)]
    rate: u32,
    /// Length of the run.
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// Commits of the run, if not rate times seconds.
    #[arg(long)]
    commits: Option<u32>,
}

#[expect(clippy::disallowed_methods, reason = "a bench measures real time")]
pub(crate) async fn run(options: Options) -> Value {
    let folder = tempfile::tempdir().expect("tempdir");
    let settings = Settings {
        data: folder.path().join("data"),
        store_url: format!("file://{}", folder.path().join("store").display()),
        ..Settings::default()
    };
    let engine = Engine::start(settings, Parts::production())
        .await
        .expect("start");
    let namespace = engine.namespace_create("bench").await.expect("namespace");
    let database = engine
        .database_create(namespace.id, NewDatabase::named("oltp"))
        .await
        .expect("create");
    let writer = database.writer().await.expect("writer");
    let commits = options
        .commits
        .unwrap_or(options.rate.max(1) * options.seconds);
    let rate = options.rate;
    let rows = options.rows;
    let meter = {
        let engine = engine.clone();
        move || {
            engine
                .store_meter()
                .bytes(tidelog_archive::store::Verb::Put)
        }
    };
    let put_bytes = meter.clone();
    let runtime = tokio::runtime::Handle::current();
    let run = tokio::task::spawn_blocking(move || {
        let mut mix = Oltp::new(1, rows);
        let mut loaded = writer
            .transaction(|c| c.execute_batch(SCHEMA))
            .expect("schema")
            .1;
        for first in (0..rows).step_by(LOAD_BATCH as usize) {
            let batch = first..rows.min(first + LOAD_BATCH);
            loaded = writer
                .transaction(|c| mix.load_rows(c, batch.clone()))
                .expect("load")
                .1;
        }
        let wait = |ticket: tidelog_engine::database::Ticket| {
            runtime
                .block_on(ticket.wait(Durability::Remote))
                .expect("shipped")
        };
        wait(loaded.expect("the load commits"));
        let before = put_bytes();
        let start = Instant::now();
        let mut last = None;
        for i in 0..commits {
            let ((), ticket) = writer
                .transaction(|connection| mix.apply(connection, u64::from(i)))
                .expect("commit");
            last = ticket.or(last);
            if rate > 0 {
                let due = Duration::from_secs_f64(f64::from(i + 1) / f64::from(rate));
                std::thread::sleep(due.saturating_sub(start.elapsed()));
            }
        }
        let took = start.elapsed();
        wait(last.expect("commits"));
        (put_bytes() - before, took)
    });
    let (bytes, took) = run.await.expect("run");
    let all = meter();
    engine.shutdown().await.expect("shutdown");
    json!({
        "commits": commits,
        "rate": rate,
        "seconds": took.as_secs_f64(),
        "commits_per_second": f64::from(commits) / took.as_secs_f64(),
        "put_bytes_per_commit": bytes / u64::from(commits.max(1)),
        "put_bytes_with_load": all,
        "recoverable_points": commits,
    })
}
