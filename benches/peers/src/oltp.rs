//! The OLTP mix through the engine: what is shipped for each commit, all commits kept.
//!
//! Two figures, always together: the first copy (journal objects), and everything uploaded meanwhile (segments,
//! images, manifests, index objects too). `--speed N` runs N times as fast with every interval N times as short, so
//! that an hour of 100 commits a second in batches of one second takes its N-th part.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
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
    /// Commits between the load and the run, as fast as they go. The published figure of Litestream begins behind
    /// 8,500.
    #[arg(long, default_value_t = 8_500)]
    warm_up: u32,
    /// Commits of the run, if not rate times seconds.
    #[arg(long)]
    commits: Option<u32>,
    /// How many times as fast as said, with intervals as much shorter.
    #[arg(long, default_value_t = 1)]
    speed: u32,
}

/// How often the journal folder of the store is looked at: an object stays there until it is settled and trimmed.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// The backlog of the load counts as settled once nothing was stored for so long: an image is compressed that long.
const QUIET: Duration = Duration::from_secs(25);

/// Sums the journal objects that come to stand in a store that is a folder.
#[derive(Debug)]
struct JournalWatch {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<HashMap<PathBuf, u64>>,
}

impl JournalWatch {
    #[expect(clippy::disallowed_methods, reason = "a bench measures real time")]
    fn start(journal: PathBuf) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let before = objects(&journal);
            let mut seen = HashMap::new();
            loop {
                let last = stopped.load(Ordering::Relaxed);
                let found = objects(&journal).into_iter();
                seen.extend(found.filter(|(path, _)| !before.contains_key(path)));
                if last {
                    return seen;
                }
                std::thread::sleep(LOOK_EVERY);
            }
        });
        Self { stop, thread }
    }

    fn finish(self) -> (usize, u64) {
        self.stop.store(true, Ordering::Relaxed);
        let seen = self.thread.join().expect("the watch ends");
        (seen.len(), seen.values().sum())
    }
}

/// Journal objects and their lengths; claims and states are not among them.
fn objects(journal: &Path) -> HashMap<PathBuf, u64> {
    let mut found = HashMap::new();
    for term in std::fs::read_dir(journal).into_iter().flatten().flatten() {
        for object in std::fs::read_dir(term.path())
            .into_iter()
            .flatten()
            .flatten()
        {
            let path = object.path();
            let name = path.file_name().and_then(|name| name.to_str());
            let number = name.and_then(|name| u64::from_str_radix(name, 16).ok());
            if number.is_some_and(|number| number > 0)
                && let Ok(meta) = object.metadata()
            {
                found.insert(path, meta.len());
            }
        }
    }
    found
}

#[expect(clippy::disallowed_methods, reason = "a bench measures real time")]
pub(crate) async fn run(options: Options) -> Value {
    let folder = tempfile::tempdir().expect("tempdir");
    let settings = Settings {
        data: folder.path().join("data"),
        store_url: format!("file://{}", folder.path().join("store").display()),
        ..Settings::default()
    };
    let speed = options.speed.max(1);
    let settings = Settings {
        ship_interval: settings.ship_interval / speed,
        settle_age: settings.settle_age / speed,
        settle_pause: settings.settle_pause / speed,
        ..settings
    };
    let journal = folder.path().join("store").join("journal");
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
    let rate = options.rate * speed;
    let (rows, warm_up) = (options.rows, options.warm_up);
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
        for i in 0..warm_up {
            loaded = writer
                .transaction(|connection| mix.apply(connection, u64::from(i)))
                .expect("commit")
                .1;
        }
        wait(loaded.expect("the load commits"));
        let mut before = put_bytes();
        loop {
            std::thread::sleep(QUIET);
            let now = put_bytes();
            if now == before {
                break;
            }
            before = now;
        }
        let watch = JournalWatch::start(journal);
        let start = Instant::now();
        let mut last = None;
        for i in 0..commits {
            let ((), ticket) = writer
                .transaction(|connection| mix.apply(connection, u64::from(warm_up + i)))
                .expect("commit");
            last = ticket.or(last);
            if rate > 0 {
                let due = Duration::from_secs_f64(f64::from(i + 1) / f64::from(rate));
                std::thread::sleep(due.saturating_sub(start.elapsed()));
            }
        }
        let took = start.elapsed();
        wait(last.expect("commits"));
        (put_bytes() - before, watch.finish(), took)
    });
    let (bytes, (journal_objects, journal_bytes), took) = run.await.expect("run");
    let all = meter();
    engine.shutdown().await.expect("shutdown");
    json!({
        "warm_up": warm_up,
        "commits": commits,
        "rate": rate,
        "seconds": took.as_secs_f64(),
        "commits_per_second": f64::from(commits) / took.as_secs_f64(),
        "speed": speed,
        "journal_objects": journal_objects,
        "first_copy_bytes_per_commit": journal_bytes / u64::from(commits.max(1)),
        "all_bytes_per_commit": bytes / u64::from(commits.max(1)),
        "put_bytes_with_load": all,
        "recoverable_points": commits,
    })
}
