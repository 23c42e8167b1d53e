//! How fast a long log is applied: commits of the OLTP mix onto the image they began at, as a restore on a new
//! machine does it.
//!
//! Images that were made on the way are left out of the plan, so that every commit is read, proven and applied. What
//! the image alone takes is measured in the same run: the difference is the log's.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use rusqlite::Connection;
use serde_json::{Value, json};
use tidelog_archive::plan::{Plan, Target, Terms};
use tidelog_archive::restore::{FileSink, RestoreSettings, execute};
use tidelog_engine::bucket::Bucket;
use tidelog_engine::{Durability, Engine, Parts, Settings};
use tidelog_testkit::oltp::{Oltp, SCHEMA};

use crate::measure::made_anew;

/// Nothing more is settled once nothing was stored for so long.
const QUIET: Duration = Duration::from_secs(5);
/// Rounds; the median counts.
const ROUNDS: usize = 5;

/// What to run.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Rows of `orders` in the image.
    #[arg(long, default_value_t = 300_000)]
    rows: u32,
    /// Commits onto it.
    #[arg(long, default_value_t = 100_000)]
    commits: u32,
    /// MiB of page deltas gathered before they are applied; without it what a restore takes.
    #[arg(long)]
    gather_mib: Option<usize>,
}

/// Restores by a plan: milliseconds, and how much memory it took above what there was.
async fn restore(
    bucket: &Bucket,
    plan: &Plan,
    out: &Path,
    settings: RestoreSettings,
) -> (f64, f64) {
    made_anew(ROUNDS, out, async |out| {
        let sink = FileSink::create(out).expect("create");
        let done = execute(bucket.store(), plan, sink, settings).await;
        done.expect("restore");
    })
    .await
}

pub(crate) async fn run(options: Options) -> Value {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("loaded.db");
    let mut mix = Oltp::new(1, options.rows);
    {
        let plain = Connection::open(&file).expect("open");
        plain.execute_batch(SCHEMA).expect("schema");
        plain.execute_batch("BEGIN").expect("begin");
        mix.load_rows(&plain, 0..options.rows).expect("load");
        plain.execute_batch("COMMIT").expect("commit");
    }
    let url = format!("file://{}", folder.path().join("store").display());
    let settings = Settings {
        data: folder.path().join("data"),
        store_url: url.clone(),
        ..Settings::default()
    };
    let engine = Engine::start(settings, Parts::production())
        .await
        .expect("start");
    let namespace = engine.namespace_create("bench").await.expect("namespace");
    let imported = engine.database_import(namespace.id, "oltp", &file).await;
    let database = imported.expect("import");
    let image = database.bookmark().await.expect("a bookmark").bookmark;
    let writer = Arc::new(database.writer().await.expect("writer"));
    let commits = options.commits;
    let newest = tokio::task::spawn_blocking(move || {
        let mut last = None;
        for i in 0..commits {
            let done = writer.transaction(|connection| mix.apply(connection, u64::from(i)));
            last = done.expect("commit").1.or(last);
        }
        last.expect("commits")
    })
    .await
    .expect("written");
    newest.wait(Durability::Remote).await.expect("shipped");
    let mut before = engine.store_meter().total();
    loop {
        tokio::time::sleep(QUIET).await;
        let now = engine.store_meter().total();
        if now == before {
            break;
        }
        before = now;
    }
    drop(database);
    engine.shutdown().await.expect("shutdown");

    let bucket = Bucket::open(&url).await.expect("bucket");
    let found = bucket.find("bench", "oltp").await.expect("the database");
    let mut history = bucket.history(&found).await.expect("a history");
    history.images.retain(|it| it.position == image);
    let mut plans = Vec::new();
    let terms = Terms {
        highest_claimed: image.term,
        present: None,
    };
    for target in [Target::Position(image), Target::Head] {
        let resolved = history.resolve(bucket.store(), target, terms).await;
        let resolved = resolved.expect("a state");
        plans.push(history.plan(resolved, None).await.expect("a plan"));
    }
    // The image is a commit, too.
    assert!(plans[1].commits() >= u64::from(commits), "{}", plans[1]);
    let out = folder.path().join("restored.db");
    let mut restoring = RestoreSettings::default();
    if let Some(mib) = options.gather_mib {
        restoring.gather_bytes_max = mib << 20;
    }
    let (image_ms, _) = restore(&bucket, &plans[0], &out, restoring).await;
    let (all_ms, peak) = restore(&bucket, &plans[1], &out, restoring).await;
    let log_bytes: u64 = plans[1].steps.iter().map(|step| step.bytes).sum();
    json!({
        "commits": commits,
        "database_bytes": std::fs::metadata(&out).expect("restored").len(),
        "log_bytes": log_bytes,
        "image_alone_ms": image_ms,
        "image_and_log_ms": all_ms,
        "commits_per_second_with_image": f64::from(commits) * 1000.0 / all_ms,
        "commits_per_second": f64::from(commits) * 1000.0 / (all_ms - image_ms),
        "peak_mib_above": peak,
    })
}
