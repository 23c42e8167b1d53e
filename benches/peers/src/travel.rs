//! Time travel on a large database: rewinds by so many commits, forks, a restore to a new file; beside them what
//! SQLite needs to commit as many pages, a copy of the file, `zstd` unpacking the same bytes to the same disk, and,
//! where its program is given, Litestream putting the same database back to a time.

use std::fs::File;
use std::io::{BufWriter, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use clap::Args;
use rusqlite::{Connection, params};
use serde_json::{Value, json};
use tidelog_archive::store::MeterSnapshot;
use tidelog_engine::bucket::{At, Bucket};
use tidelog_engine::database::Ticket;
use tidelog_engine::operations::OperationState;
use tidelog_engine::travel::forks::Fork;
use tidelog_engine::travel::rewind::{RestoreTarget, Rewind};
use tidelog_engine::{Database, Durability, Engine, NewDatabase, Parts, Settings, Writer};
use tidelog_testkit::oltp::{Oltp, SCHEMA};
use tidelog_wal::Position;

use crate::big_transaction::folder_bytes;
use crate::measure::{made_anew, median, millis, now};

/// Rows of one loading transaction.
const LOAD_BATCH: u32 = 20_000;
/// Everything is stored and settled once nothing was stored for so long.
const QUIET: Duration = Duration::from_secs(5);
/// A rewind begins once the node has done with the one before: nothing was stored for so long.
const REST: Duration = Duration::from_secs(3);
/// How long one operation may take.
const PATIENCE: Duration = Duration::from_mins(10);
/// Rounds of each measurement; the median counts.
const ROUNDS: usize = 3;
/// Rounds of rewinds by up to so many commits, which take milliseconds, and of longer ones.
const SHORT: u32 = 1000;
const ROUNDS_SHORT: usize = 9;
const ROUNDS_LONG: usize = 5;
/// Rounds of what is measured in turns with what it is compared with: in as many the one is first as the other.
const ROUNDS_IN_TURNS: usize = 6;
/// Bytes that are written at once where `zstd` unpacks.
const UNPACK_BUFFER: usize = 1 << 20;
/// How often the writer asks whose waiting is measured: without a pause it would take one core for itself.
const ASKS_EVERY: Duration = Duration::from_micros(100);
/// What it changes, where it does.
const TOUCH: &str = "UPDATE orders SET total = total + 1 WHERE id = 1";

/// What to run.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Rows of `orders`: 3,400,000 make about 1 GB.
    #[arg(long, default_value_t = 3_400_000)]
    rows: u32,
    /// By how many commits to go back.
    #[arg(long, value_delimiter = ',', default_value = "100,1000,10000,60000")]
    back: Vec<u32>,
    /// Rewinds without a pause between them: each then begins while the one before is still being copied and settled.
    #[arg(long)]
    in_a_row: bool,
    /// Litestream's program.
    #[arg(long)]
    litestream: Option<PathBuf>,
    /// Where everything is put; a folder of its own below it.
    #[arg(long)]
    dir: Option<PathBuf>,
}

/// A node with the loaded database, and where it stood after some of its commits.
struct Loaded {
    engine: Engine,
    database: Database,
    writer: Arc<Writer>,
    store: String,
    /// Commits before the newest, and the state then.
    then: Vec<(u32, Position)>,
    newest: Position,
}

async fn load(folder: &Path, options: &Options) -> Loaded {
    let store = format!("file://{}", folder.join("store").display());
    let settings = Settings {
        data: folder.join("data"),
        store_url: store.clone(),
        restores_max: usize::MAX,
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
    let writer = Arc::new(database.writer().await.expect("writer"));
    let (rows, mut back) = (options.rows, options.back.clone());
    back.sort_unstable_by(|a, b| b.cmp(a));
    let most = back.first().copied().unwrap_or(0);
    let loading = Arc::clone(&writer);
    let runtime = tokio::runtime::Handle::current();
    let meter = {
        let engine = engine.clone();
        move || engine.store_meter()
    };
    let (then, newest) = tokio::task::spawn_blocking(move || {
        let wait = |ticket: Ticket| {
            runtime
                .block_on(ticket.wait(Durability::Remote))
                .expect("shipped")
        };
        let mut mix = Oltp::new(1, rows);
        loading
            .transaction(|c| c.execute_batch(SCHEMA))
            .expect("schema");
        let mut newest = None;
        for first in (0..rows).step_by(LOAD_BATCH as usize) {
            let batch = first..rows.min(first + LOAD_BATCH);
            let loaded = loading.transaction(|c| mix.load_rows(c, batch.clone()));
            // One after the other: nothing piles up before it is stored.
            newest = Some(wait(loaded.expect("load").1.expect("rows")));
        }
        settled(&meter, QUIET);
        let mut then: Vec<_> = newest
            .filter(|_| back.contains(&most))
            .map(|at| (most, at))
            .into_iter()
            .collect();
        let mut last = None;
        for i in 0..most {
            let ((), ticket) = loading
                .transaction(|connection| mix.apply(connection, u64::from(i)))
                .expect("commit");
            let left = most - 1 - i;
            if back.contains(&left) {
                then.push((left, wait(ticket.expect("a change"))));
            } else {
                last = ticket.or(last);
            }
        }
        let newest = wait(last.expect("commits"));
        settled(&meter, QUIET);
        (then, newest)
    })
    .await
    .expect("loaded");
    Loaded {
        engine,
        database,
        writer,
        store,
        then,
        newest,
    }
}

/// Waits until the store was left alone for so long. Blocks.
#[expect(clippy::disallowed_methods, reason = "a bench measures real time")]
fn settled(meter: &impl Fn() -> MeterSnapshot, quiet: Duration) {
    let mut before = meter().total();
    loop {
        std::thread::sleep(quiet);
        let after = meter().total();
        if after == before {
            return;
        }
        before = after;
    }
}

/// What a writer beside a rewind does, over and over.
#[derive(Clone, Copy)]
enum Asks {
    /// It asks for its turn, and changes nothing.
    Turn,
    /// It changes a row, and waits until that is acknowledged at `memory`.
    Acknowledgement,
}

/// What a rewind came to.
struct Rewound {
    ms: f64,
    pages: u64,
    /// The longest that the writer beside it waited.
    waited_ms: f64,
    /// How long each phase of the operation took.
    phases_ms: Vec<(String, f64)>,
}

/// Waits until the node has done with the rewind before.
async fn at_rest(loaded: &Loaded, options: &Options) {
    if !options.in_a_row {
        let engine = loaded.engine.clone();
        let resting = move || settled(&|| engine.store_meter(), REST);
        tokio::task::spawn_blocking(resting).await.expect("at rest");
    }
}

/// Puts the database to `at`, beside a writer that `asks`.
#[expect(clippy::disallowed_methods, reason = "a bench measures real time")]
async fn rewind(loaded: &Loaded, at: Position, asks: Asks) -> Rewound {
    let (stop, longest) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    let waiting = {
        let (writer, stop, longest) = (
            Arc::clone(&loaded.writer),
            Arc::clone(&stop),
            Arc::clone(&longest),
        );
        let runtime = tokio::runtime::Handle::current();
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let begun = now();
                match asks {
                    Asks::Turn => drop(writer.transaction(|_| Ok(())).expect("a turn of its own")),
                    Asks::Acknowledgement => {
                        let written = writer.transaction(|c| c.execute(TOUCH, []));
                        let ticket = written.expect("a turn").1.expect("a change");
                        let waited = runtime.block_on(ticket.wait(Durability::Memory));
                        waited.expect("acknowledged");
                    }
                }
                let took = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
                longest.fetch_max(took, Ordering::Relaxed);
                std::thread::sleep(ASKS_EVERY);
            }
        })
    };
    let begun = now();
    let to = Rewind::to(RestoreTarget::At(At::Bookmark(at)));
    let mut handle = loaded.database.rewind(to).await.expect("begun");
    let mut phases_ms = vec![("begun".to_owned(), millis(begun))];
    let (mut phase, mut since) = (handle.current().phase, now());
    while let Some(operation) = handle.changed().await {
        if operation.phase != phase || operation.state.is_final() {
            phases_ms.push((phase, millis(since)));
            (phase, since) = (operation.phase.clone(), now());
        }
        if operation.state.is_final() {
            break;
        }
    }
    let ended = handle.current();
    let took = millis(begun);
    stop.store(true, Ordering::Relaxed);
    waiting.join().expect("the writer ends");
    assert_eq!(ended.state, OperationState::Succeeded, "{ended:?}");
    let result = ended.result.expect("a result");
    let pages = result["restore"]["pages_changed"].as_u64();
    let waited = Duration::from_micros(longest.load(Ordering::Relaxed)).as_secs_f64() * 1000.0;
    Rewound {
        ms: took,
        pages: pages.unwrap_or(0),
        waited_ms: waited,
        phases_ms,
    }
}

/// What SQLite alone needs to commit so many pages spread over such a file, in milliseconds.
fn sqlite_commit(file: &Path, pages: u64) -> f64 {
    let connection = Connection::open(file).expect("open");
    connection
        .execute_batch(
            "pragma journal_mode=wal; pragma synchronous=normal; pragma wal_autocheckpoint=0",
        )
        .expect("pragmas");
    let n: i64 = connection
        .query_row("pragma page_count", [], |row| row.get(0))
        .expect("pages");
    let step = (n / i64::try_from(pages.max(1)).expect("small")).max(1);
    let mut read = connection
        .prepare("select data from sqlite_dbpage where pgno = ?1")
        .expect("dbpage");
    let wanted: Vec<(i64, Vec<u8>)> = (2..n)
        .step_by(usize::try_from(step).expect("small"))
        .take(usize::try_from(pages).expect("small"))
        .map(|pgno| {
            let data = read.query_row([pgno], |row| row.get(0)).expect("a page");
            (pgno, data)
        })
        .collect();
    drop(read);
    let begun = now();
    connection.execute_batch("begin immediate").expect("begin");
    {
        let mut write = connection
            .prepare("insert into sqlite_dbpage(pgno, data) values(?1, ?2)")
            .expect("dbpage");
        for (pgno, data) in &wanted {
            write.execute(params![pgno, data]).expect("a page");
        }
    }
    connection.execute_batch("commit").expect("commit");
    millis(begun)
}

/// Copies a file and syncs the copy, in milliseconds.
fn copy(from: &Path, to: &Path) -> f64 {
    let begun = now();
    std::fs::copy(from, to).expect("copy");
    File::open(to)
        .and_then(|file| file.sync_all())
        .expect("sync");
    millis(begun)
}

/// Unpacks `packed` with libzstd, on one thread, to the same disk and syncs what comes out, in milliseconds.
fn unzstd(packed: &Path, out: &Path) -> f64 {
    let begun = now();
    let target = File::create(out).expect("create");
    let mut target = BufWriter::with_capacity(UNPACK_BUFFER, target);
    let mut source = zstd::stream::Decoder::new(File::open(packed).expect("open")).expect("zstd");
    std::io::copy(&mut source, &mut target).expect("unpack");
    let target = target.into_inner().expect("written");
    target.sync_all().expect("sync");
    millis(begun)
}

/// Restores the newest state from the bucket: milliseconds, and how much memory it took above what there was, in MiB.
async fn restore(store: &str, out: &Path) -> (f64, f64) {
    made_anew(1, out, async |out| {
        let bucket = Bucket::open(store).await.expect("bucket");
        let found = bucket.find("bench", "oltp").await.expect("find");
        let restored = bucket.restore(&found, At::Latest, out, false).await;
        restored.expect("restore");
    })
    .await
}

/// Restores to a new file and, in turns, `zstd` unpacking the same bytes, packed by `zstd -3`, to the same disk: the disk
/// is not as fast at one moment as at another. The file `kept` holds the state already.
async fn restores(loaded: &Loaded, folder: &Path, kept: &Path) -> Value {
    let (packed, out) = (folder.join("packed.zst"), folder.join("anew.db"));
    let source = File::open(kept).expect("open");
    let target = File::create(&packed).expect("create");
    zstd::stream::copy_encode(source, target, 3).expect("pack");
    let (mut restored, mut unpacked, mut peak) = (Vec::new(), Vec::new(), 0.0_f64);
    let bytes = std::fs::metadata(kept).expect("its length").len();
    for round in 0..ROUNDS_IN_TURNS {
        for turn in 0..2 {
            let _ = std::fs::remove_file(&out);
            touch_memory(folder, bytes);
            if turn == round % 2 {
                let (ms, above) = restore(&loaded.store, &out).await;
                restored.push(ms);
                peak = peak.max(above);
            } else {
                unpacked.push(unzstd(&packed, &out));
            }
        }
    }
    for made in [&packed, &out] {
        std::fs::remove_file(made).expect("remove");
    }
    json!({
        "restore_ms": median(restored.clone()),
        "restore_peak_mib_above": peak,
        "zstd_unpack_ms": median(unpacked.clone()),
        "restore_speed_over_zstd": median(ratios(&unpacked, &restored)),
        "restore_speeds_over_zstd": ratios(&unpacked, &restored),
        "restores_ms": restored,
        "zstd_unpacks_ms": unpacked,
    })
}

/// Takes so much memory for a file that goes at once: what is written next finds memory that was touched before, rather
/// than such as a machine's host has yet to give it, which can take longer than all the rest.
fn touch_memory(folder: &Path, bytes: u64) {
    let path = folder.join("touched");
    let mut file = File::create(&path).expect("create");
    let mut nothing = std::io::repeat(0).take(bytes);
    std::io::copy(&mut nothing, &mut file).expect("write");
    std::fs::remove_file(&path).expect("remove");
}

/// What each is beside the other of its round.
fn ratios(some: &[f64], others: &[f64]) -> Vec<f64> {
    some.iter().zip(others).map(|(a, b)| a / b).collect()
}

/// Forks and, in turns, copies of a file of the same size.
async fn forks(loaded: &Loaded, folder: &Path, file: &Path) -> Value {
    let (mut forks, mut copies) = (Vec::new(), Vec::new());
    let bytes = std::fs::metadata(file).expect("its length").len();
    for round in 0..ROUNDS_IN_TURNS {
        for turn in 0..2 {
            touch_memory(folder, bytes);
            if turn == round % 2 {
                forks.push(fork(loaded, &format!("fork-{round}")).await);
            } else {
                copies.push(copy(file, &folder.join(format!("copied-{round}.db"))));
            }
        }
    }
    let of = |field: fn(&Forked) -> f64| forks.iter().map(field).collect::<Vec<_>>();
    let first = of(|fork| fork.first_use_ms);
    json!({
        "exists_ms": median(of(|fork| fork.exists_ms)),
        "first_use_ms": median(first.clone()),
        "copy_of_the_file_ms": median(copies.clone()),
        "first_use_over_copy": median(ratios(&first, &copies)),
        "first_uses_over_copies": ratios(&first, &copies),
        "store_requests": forks.iter().map(|fork| fork.requests).collect::<Vec<_>>(),
        "exist_ms": of(|fork| fork.exists_ms),
        "first_uses_ms": first,
        "copies_of_the_file_ms": copies,
    })
}

/// What a fork came to.
struct Forked {
    exists_ms: f64,
    requests: u64,
    first_use_ms: f64,
}

/// Forks the newest state, and touches what came of it for the first time.
async fn fork(loaded: &Loaded, name: &str) -> Forked {
    let meter = || loaded.engine.store_meter();
    let before = meter().total();
    let begun = now();
    let handle = loaded.database.fork(Fork::named(name)).await;
    let ended = handle.expect("begun").wait(PATIENCE).await;
    let (exists, requests) = (millis(begun), meter().total() - before);
    assert_eq!(ended.state, OperationState::Succeeded, "{ended:?}");
    let row = loaded.database.row();
    let forked = loaded.engine.database(row.namespace, name).await;
    let begun = now();
    forked
        .expect("the fork")
        .bookmark()
        .await
        .expect("its first use");
    Forked {
        exists_ms: exists,
        requests,
        first_use_ms: millis(begun),
    }
}

/// Litestream with one file and one folder to replicate to.
struct Litestream {
    program: PathBuf,
    config: PathBuf,
    database: PathBuf,
    running: Child,
}

impl Litestream {
    fn start(program: &Path, folder: &Path, database: &Path) -> Self {
        let config = folder.join("litestream.yml");
        let text = format!(
            "logging:\n  level: warn\ndbs:\n  - path: {}\n    replica:\n      type: file\n      path: {}\n",
            database.display(),
            folder.join("replica").display()
        );
        std::fs::write(&config, text).expect("a configuration");
        let running = Command::new(program)
            .args(["replicate", "-config"])
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("litestream starts");
        Self {
            program: program.to_owned(),
            config,
            database: database.to_owned(),
            running,
        }
    }

    /// Restores to a time, or to the newest state, into a file that is not there: milliseconds.
    fn restore(&self, at: Option<SystemTime>, out: &Path) -> Option<f64> {
        let mut command = Command::new(&self.program);
        command.arg("restore").arg("-config").arg(&self.config);
        command.arg("-o").arg(out);
        if let Some(at) = at {
            let since = at.duration_since(SystemTime::UNIX_EPOCH).expect("our age");
            let seconds = i64::try_from(since.as_secs()).expect("our age");
            let text: String = Connection::open_in_memory()
                .and_then(|c| {
                    c.query_row(
                        "select strftime('%Y-%m-%dT%H:%M:%SZ', ?1, 'unixepoch')",
                        [seconds],
                        |row| row.get(0),
                    )
                })
                .expect("a time");
            command.arg("-timestamp").arg(text);
        }
        command.arg(&self.database);
        let begun = now();
        let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
        let took = millis(begun);
        status.is_ok_and(|status| status.success()).then_some(took)
    }
}

impl Drop for Litestream {
    fn drop(&mut self) {
        let _ = self.running.kill();
        let _ = self.running.wait();
    }
}

/// The same commits on a plain file beside Litestream, and what it takes to put that back.
#[expect(clippy::disallowed_methods, reason = "a bench measures real time")]
fn litestream(program: &Path, folder: &Path, file: &Path, options: &Options) -> Value {
    let database = folder.join("plain.db");
    std::fs::copy(file, &database).expect("copy");
    let connection = Connection::open(&database).expect("open");
    connection
        .execute_batch(
            "pragma journal_mode=wal; pragma synchronous=normal; pragma busy_timeout=5000; \
             pragma wal_autocheckpoint=0",
        )
        .expect("pragmas");
    let running = Litestream::start(program, folder, &database);
    let replica = folder.join("replica");
    // Its first sync is a snapshot of everything.
    let first = now();
    let mut bytes = 0;
    loop {
        std::thread::sleep(QUIET);
        let grown = folder_bytes(&replica);
        if grown > 0 && grown == bytes {
            break;
        }
        assert!(first.elapsed() < PATIENCE, "no first snapshot");
        bytes = grown;
    }
    let mut back = options.back.clone();
    back.sort_unstable_by(|a, b| b.cmp(a));
    let most = back.first().copied().unwrap_or(0);
    let mut mix = Oltp::new(2, options.rows);
    let mut then = Vec::new();
    for i in 0..most {
        if back.contains(&(most - i)) {
            // It keeps one point a second at best.
            std::thread::sleep(Duration::from_secs(2));
            then.push((most - i, SystemTime::now()));
            std::thread::sleep(Duration::from_secs(2));
        }
        mix.transaction(&connection, u64::from(i)).expect("commit");
    }
    std::thread::sleep(QUIET);
    let out = folder.join("litestream.db");
    let bytes = std::fs::metadata(file).expect("its length").len();
    let restore = |at| {
        let _ = std::fs::remove_file(&out);
        touch_memory(folder, bytes);
        running.restore(at, &out)
    };
    let mut table = serde_json::Map::new();
    for (commits, at) in then {
        let rounds: Vec<f64> = (0..ROUNDS).filter_map(|_| restore(Some(at))).collect();
        let took = (!rounds.is_empty()).then(|| median(rounds));
        table.insert(commits.to_string(), json!(took));
    }
    let latest: Vec<f64> = (0..ROUNDS).filter_map(|_| restore(None)).collect();
    json!({
        "restore_timestamp_ms": table,
        "restore_latest_ms": (!latest.is_empty()).then(|| median(latest)),
    })
}

pub(crate) async fn run(options: Options) -> Value {
    let folder = match &options.dir {
        Some(dir) => tempfile::tempdir_in(dir),
        None => tempfile::tempdir(),
    }
    .expect("a folder");
    let loaded = load(folder.path(), &options).await;
    let out = folder.path().join("restored.db");
    restore(&loaded.store, &out).await;
    let bytes = std::fs::metadata(&out).expect("restored").len();
    let restores = restores(&loaded, folder.path(), &out).await;

    // The shortest first: each leaves a delta behind that the next one has to read.
    let mut rewinds = Vec::new();
    for (commits, at) in loaded.then.iter().rev() {
        let mut rounds = Vec::new();
        let count = if *commits <= SHORT {
            ROUNDS_SHORT
        } else {
            ROUNDS_LONG
        };
        for _ in 0..count {
            at_rest(&loaded, &options).await;
            rounds.push(rewind(&loaded, *at, Asks::Turn).await);
            rewind(&loaded, loaded.newest, Asks::Turn).await;
        }
        at_rest(&loaded, &options).await;
        let pages = rounds[0].pages;
        let sqlite: Vec<f64> = (0..count).map(|_| sqlite_commit(&out, pages)).collect();
        // Behind the rounds above, for what it changes is in the log that the next ones read.
        let mut acknowledged = Vec::new();
        for _ in 0..ROUNDS {
            at_rest(&loaded, &options).await;
            let rewound = rewind(&loaded, *at, Asks::Acknowledgement).await;
            rewind(&loaded, loaded.newest, Asks::Turn).await;
            acknowledged.push(rewound.waited_ms);
        }
        let waits: Vec<f64> = rounds.iter().map(|round| round.waited_ms).collect();
        let (waited, commit) = (median(waits.clone()), median(sqlite.clone()));
        rewinds.push(json!({
            "commits": commits,
            "ms": median(rounds.iter().map(|round| round.ms).collect()),
            // The first alone has no log of its own earlier rounds to read.
            "rounds_ms": rounds.iter().map(|round| round.ms).collect::<Vec<_>>(),
            "phases_ms": rounds.iter().map(|round| &round.phases_ms).collect::<Vec<_>>(),
            "pages_changed": pages,
            "writer_wait_ms": waited,
            "writer_waits_ms": waits,
            "writer_acknowledged_ms": median(acknowledged.clone()),
            "writer_acknowledgements_ms": acknowledged,
            "sqlite_commit_ms": commit,
            "sqlite_commits_ms": sqlite,
            "writer_wait_over_sqlite": waited / commit,
        }));
    }
    at_rest(&loaded, &options).await;
    let forks = forks(&loaded, folder.path(), &out).await;
    eprintln!(
        "{:#}",
        json!({ "rewinds": rewinds, "forks": forks, "restores": restores })
    );
    let Loaded {
        engine,
        database,
        writer,
        ..
    } = loaded;
    // A writer keeps its database open.
    drop((database, writer));
    engine.shutdown().await.expect("shutdown");
    // What was measured through it is in its WAL.
    for left in ["restored.db-wal", "restored.db-shm"] {
        let _ = std::fs::remove_file(folder.path().join(left));
    }
    let peer = options
        .litestream
        .as_ref()
        .map(|program| litestream(program, folder.path(), &out, &options));
    json!({
        "database_bytes": bytes,
        "rewinds": rewinds,
        "forks": forks,
        "restores": restores,
        "litestream": peer,
    })
}
