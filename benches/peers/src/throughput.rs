//! Commits a second, beside plain SQLite in the same process.
//!
//! `memory`: one writer of the engine, whose tickets are not awaited one by one, against plain SQLite with the same
//! pragmas. `local`: a writer on each of many databases that awaits every ticket, against plain SQLite with
//! `synchronous=FULL` on as many threads; syncs of both are counted. With `--sync-us N` every sync takes so much
//! longer on both sides: a simulated slow disk.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use clap::Args;
use rusqlite::Connection;
use serde_json::{Value, json};
use tidelog_engine::database::Ticket;
use tidelog_engine::disk::{AppendFile, Disk, StdDisk};
use tidelog_engine::{Database, Durability, Engine, NewDatabase, Parts, Settings};
use tidelog_testkit::oltp::{Oltp, SCHEMA};

use crate::measure::{median, now, spread};

/// What to run.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Rows of `orders` of the one database.
    #[arg(long, default_value_t = 100_000)]
    rows: u32,
    /// Commits of a round of one writer.
    #[arg(long, default_value_t = 30_000)]
    commits: u32,
    /// Databases, and threads, of the second part.
    #[arg(long, default_value_t = 64)]
    writers: u32,
    /// Commits of each of those in a round.
    #[arg(long, default_value_t = 150)]
    commits_each: u32,
    /// Rounds, the two sides in turn; the median counts.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Microseconds that a sync takes longer than on this disk.
    #[arg(long, default_value_t = 0)]
    sync_us: u64,
}

/// Rows of `orders` of each of many databases.
const SMALL_ROWS: u32 = 500;

/// The real disk, whose syncs are counted and may be slowed down.
#[derive(Debug, Clone)]
struct CountingDisk {
    inner: StdDisk,
    syncs: Arc<AtomicU64>,
    slower: Duration,
}

#[derive(Debug)]
struct CountingFile {
    inner: Box<dyn AppendFile>,
    disk: CountingDisk,
}

impl AppendFile for CountingFile {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.inner.write_at(offset, bytes)
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.syncs.fetch_add(1, Ordering::Relaxed);
        pause(self.disk.slower);
        self.inner.sync()
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.inner.truncate(len)
    }
}

impl Disk for CountingDisk {
    fn create(&self, path: &Path) -> io::Result<Box<dyn AppendFile>> {
        let inner = self.inner.create(path)?;
        let disk = self.clone();
        Ok(Box::new(CountingFile { inner, disk }))
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.inner.read(path)
    }

    fn read_at(&self, path: &Path, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        self.inner.read_at(path, offset, len)
    }

    fn write_atomic(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        self.syncs.fetch_add(1, Ordering::Relaxed);
        pause(self.slower);
        self.inner.write_atomic(path, bytes)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.inner.remove(path)
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<(PathBuf, u64)>> {
        self.inner.list(folder)
    }

    fn create_folder(&self, folder: &Path) -> io::Result<()> {
        self.inner.create_folder(folder)
    }

    fn free_bytes(&self, folder: &Path) -> io::Result<u64> {
        self.inner.free_bytes(folder)
    }
}

#[expect(clippy::disallowed_methods, reason = "a bench measures real time")]
fn pause(time: Duration) {
    if !time.is_zero() {
        std::thread::sleep(time);
    }
}

fn per_second(commits: u32, work: impl FnOnce()) -> f64 {
    let begun = now();
    work();
    f64::from(commits) / begun.elapsed().as_secs_f64()
}

/// Plain SQLite with the engine's pragmas.
fn plain(file: &Path, synchronous: &str, rows: u32) -> (Connection, Oltp) {
    let connection = Connection::open(file).expect("open");
    connection
        .execute_batch(&format!(
            "pragma journal_mode=wal; pragma synchronous={synchronous}; pragma wal_autocheckpoint=1024; \
             pragma cache_size=-256; pragma foreign_keys=on; pragma secure_delete=fast; {SCHEMA}"
        ))
        .expect("pragmas");
    let mut mix = Oltp::new(1, rows);
    connection.execute_batch("begin").expect("begin");
    mix.load_rows(&connection, 0..rows).expect("load");
    connection.execute_batch("commit").expect("commit");
    (connection, mix)
}

async fn one_writer(folder: &Path, options: &Options) -> Value {
    let settings = Settings {
        data: folder.join("data"),
        store_url: format!("file://{}", folder.join("store").display()),
        ..Settings::default()
    };
    let engine = Engine::start(settings, Parts::production())
        .await
        .expect("start");
    let namespace = engine.namespace_create("bench").await.expect("namespace");
    let new = NewDatabase::named("oltp");
    let database = engine.database_create(namespace.id, new).await;
    let writer = database.expect("create").writer().await.expect("writer");
    let (connection, mut plain_mix) = plain(&folder.join("plain.db"), "normal", options.rows);
    let (rows, commits, rounds) = (options.rows, options.commits, options.rounds);
    let runtime = tokio::runtime::Handle::current();
    let (ours, theirs) = tokio::task::spawn_blocking(move || {
        let mut mix = Oltp::new(1, rows);
        let loaded = writer.transaction(|c| {
            c.execute_batch(SCHEMA)?;
            mix.load_rows(c, 0..rows)
        });
        let wait = |ticket: Option<Ticket>| {
            let ticket = ticket.expect("a change");
            let stored = ticket.wait(Durability::Remote);
            runtime.block_on(stored).expect("stored");
        };
        wait(loaded.expect("load").1);
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        let mut at = 0;
        for _ in 0..rounds {
            theirs.push(per_second(commits, || {
                for i in at..at + u64::from(commits) {
                    plain_mix.transaction(&connection, i).expect("commit");
                }
            }));
            let mut last = None;
            ours.push(per_second(commits, || {
                for i in at..at + u64::from(commits) {
                    let done = writer.transaction(|connection| mix.apply(connection, i));
                    last = done.expect("commit").1;
                }
            }));
            // The next round of SQLite has the machine to itself.
            wait(last);
            at += u64::from(commits);
        }
        (ours, theirs)
    })
    .await
    .expect("run");
    engine.shutdown().await.expect("shutdown");
    let spreads = (spread(&ours), spread(&theirs));
    let (ours, theirs) = (median(ours), median(theirs));
    json!({
        "tidelog_commits_per_second": ours.round(),
        "tidelog_least_and_most": spreads.0,
        "sqlite_commits_per_second": theirs.round(),
        "sqlite_least_and_most": spreads.1,
        "ratio": ours / theirs,
    })
}

/// Every writer on a thread of its own; answers when all are done.
fn all_at_once<W: Send>(writers: &mut [W], work: impl Fn(&mut W) + Sync) {
    std::thread::scope(|scope| {
        for writer in writers {
            scope.spawn(|| work(writer));
        }
    });
}

async fn many_writers(folder: &Path, options: &Options) -> Value {
    let disk = CountingDisk {
        inner: StdDisk,
        syncs: Arc::default(),
        slower: Duration::from_micros(options.sync_us),
    };
    let settings = Settings {
        data: folder.join("data"),
        store_url: format!("file://{}", folder.join("store").display()),
        ..Settings::default()
    };
    let parts = Parts {
        disk: Arc::new(disk.clone()),
        ..Parts::production()
    };
    let engine = Engine::start(settings, parts).await.expect("start");
    let namespace = engine.namespace_create("bench").await.expect("namespace");
    let mut ours = Vec::new();
    for n in 0..options.writers {
        let new = NewDatabase::named(format!("d{n}"));
        let database: Database = engine
            .database_create(namespace.id, new)
            .await
            .expect("create");
        ours.push((
            database.writer().await.expect("writer"),
            Oltp::new(u64::from(n), SMALL_ROWS),
        ));
    }
    let mut theirs: Vec<(Connection, Oltp)> = (0..options.writers)
        .map(|n| plain(&folder.join(format!("plain-{n}.db")), "full", SMALL_ROWS))
        .collect();
    let (each, rounds) = (u64::from(options.commits_each), options.rounds);
    let commits = options.writers * options.commits_each;
    let runtime = tokio::runtime::Handle::current();
    let slower = disk.slower;
    let syncs = Arc::clone(&disk.syncs);
    let (ours, theirs, syncs) = tokio::task::spawn_blocking(move || {
        all_at_once(&mut ours, |(writer, mix)| {
            let loaded = writer.transaction(|c| {
                c.execute_batch(SCHEMA)?;
                mix.load_rows(c, 0..SMALL_ROWS)
            });
            let ticket = loaded.expect("load").1.expect("a change");
            runtime
                .block_on(ticket.wait(Durability::Remote))
                .expect("stored");
        });
        let (mut our_rates, mut their_rates, mut counted) = (Vec::new(), Vec::new(), 0);
        for round in 0..rounds as u64 {
            let turns = round * each..(round + 1) * each;
            their_rates.push(per_second(commits, || {
                all_at_once(&mut theirs, |(connection, mix)| {
                    for i in turns.clone() {
                        mix.transaction(connection, i).expect("commit");
                        // One sync a commit of the WAL.
                        pause(slower);
                    }
                });
            }));
            let before = syncs.load(Ordering::Relaxed);
            our_rates.push(per_second(commits, || {
                all_at_once(&mut ours, |(writer, mix)| {
                    for i in turns.clone() {
                        let done = writer.transaction(|connection| mix.apply(connection, i));
                        let ticket = done.expect("commit").1.expect("a change");
                        runtime
                            .block_on(ticket.wait(Durability::Local))
                            .expect("synced");
                    }
                });
            }));
            counted += syncs.load(Ordering::Relaxed) - before;
        }
        (our_rates, their_rates, counted)
    })
    .await
    .expect("run");
    engine.shutdown().await.expect("shutdown");
    let spreads = (spread(&ours), spread(&theirs));
    let (ours, theirs) = (median(ours), median(theirs));
    let all = f64::from(commits) * f64::from(u32::try_from(rounds).expect("few"));
    let syncs = f64::from(u32::try_from(syncs).expect("counted"));
    json!({
        "writers": options.writers,
        "sync_slower_us": options.sync_us,
        "tidelog_commits_per_second": ours.round(),
        "tidelog_least_and_most": spreads.0,
        "sqlite_full_commits_per_second": theirs.round(),
        "sqlite_full_least_and_most": spreads.1,
        "ratio": ours / theirs,
        "commits_per_sync": all / syncs,
    })
}

pub(crate) async fn run(options: Options) -> Value {
    let folder = tempfile::tempdir().expect("a folder");
    let one = folder.path().join("one");
    let many = folder.path().join("many");
    std::fs::create_dir_all(&one).expect("a folder");
    std::fs::create_dir_all(&many).expect("a folder");
    json!({
        "memory_one_writer": one_writer(&one, &options).await,
        "local_many_writers": many_writers(&many, &options).await,
    })
}
