//! The process dies at every named crash point (RELIABILITY 4; I1 to I3): what it acknowledged is there when the
//! next life starts, the bucket verifies, every bookmark restores, and writing goes on.
//!
//! The lives are child processes: this executable run again as `a_life`, with `TIDELOG_CRASH_AT` naming the point.
//! The names are read from the sources. A point that no life reaches fails the suite: a life has to do what leads
//! there (`work` below). `TIDELOG_CRASH_POINTS` chooses points by a part of their name.

mod rig;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rusqlite::Connection;
use tidelog_archive::env::{Clock, SystemEntropy};
use tidelog_archive::manifest::ManifestStore;
use tidelog_archive::seal::Keyring;
use tidelog_archive::store::{FileStore, Store, StoreOptions};
use tidelog_engine::bucket::At;
use tidelog_engine::operations::{Handle, OperationState};
use tidelog_engine::system::Page;
use tidelog_engine::system::databases::DatabasePatch;
use tidelog_engine::travel::archives::{Format, NewArchive};
use tidelog_engine::travel::deletion::Purge;
use tidelog_engine::travel::forks::Fork;
use tidelog_engine::travel::rewind::{RestoreTarget, Rewind};
use tidelog_engine::{
    Code, Database, Durability, Engine, Error, NewDatabase, Parts, Settings, TakeOver,
};
use tidelog_testkit::faultstore::{Fault, FaultStore, Shared, script};
use tidelog_testkit::sealing::masters;
use tidelog_testkit::sim::ShiftedClock;
use tidelog_wal::Position;

/// Points that have lives of their own: those that this test names.
const SWEPT_BY_ARCHIVES: &str = include_str!("crash_archives.rs");

/// SIGABRT.
const ABORTED: i32 = 6;
/// Lives of one kind that may pass a point by before it counts as out of reach.
const LIVES: usize = 4;
const LEVELS: [Durability; 3] = [Durability::Memory, Durability::Local, Durability::Remote];

fn settings(folder: &Path) -> Settings {
    // No checkpoint at all: then the whole WAL can be lost with the power.
    let calm = std::env::var_os("TIDELOG_CRASH_CALM").is_some();
    Settings {
        take_over: TakeOver::All,
        spool_bytes: 16 << 10,
        wal_backfill_bytes: if calm { 1 << 40 } else { 16 << 10 },
        wal_soft_bytes: if calm { 1 << 40 } else { 64 << 10 },
        settle_bytes: 4 << 10,
        settle_age: Duration::from_millis(300),
        ship_interval: Duration::from_millis(5),
        idle_close: Duration::from_millis(if calm { 1 << 30 } else { 20 }),
        idle_sweep: Duration::from_millis(if calm { 1 << 30 } else { 10 }),
        checkpoint_age: Duration::from_millis(50),
        restores_max: usize::MAX,
        // Cheap, so that many lives are.
        settle_level: 1,
        ..rig::settings(folder)
    }
}

/// Where a life begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Before {
    /// Nothing: an empty folder, an empty bucket.
    Nothing,
    /// A life that died with commits that are not stored.
    Death,
    /// The same, and power loss took the tail of the WAL.
    PowerLoss,
    /// A life that ended well, and the loss of its disk.
    DiskLoss,
    /// Nothing; and the life is another: weeks pass in it, history expires, a database is purged.
    WeeksPass,
}

const BEFORE: [Before; 5] = [
    Before::Nothing,
    Before::Death,
    Before::PowerLoss,
    Before::DiskLoss,
    Before::WeeksPass,
];

/// Stands in a folder whose lives are those of [`Before::WeeksPass`].
fn weeks_pass(folder: &Path) -> PathBuf {
    folder.join("weeks-pass")
}

/// Runs one life to its end; whether it died at its crash point.
fn live(folder: &Path, crash_at: Option<&str>, trace: Option<&Path>) -> bool {
    run(folder, crash_at, trace, false)
}

fn run(folder: &Path, crash_at: Option<&str>, trace: Option<&Path>, calm: bool) -> bool {
    let mut command = Command::new(std::env::current_exe().expect("this executable"));
    command
        .args(["a_life", "--exact", "--nocapture", "--test-threads=1"])
        .env("TIDELOG_CRASH_LIFE", folder)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    if calm {
        command.env("TIDELOG_CRASH_CALM", "1");
    }
    if let Some(point) = crash_at {
        command.env("TIDELOG_CRASH_AT", point);
    }
    if let Some(trace) = trace {
        command.env("TIDELOG_CRASH_TRACE", trace);
    }
    let ended = command.output().expect("a life runs");
    let died = ended.status.signal() == Some(ABORTED);
    assert!(
        died || ended.status.success(),
        "a life with {crash_at:?} ended by {}: {}",
        ended.status,
        String::from_utf8_lossy(&ended.stderr)
    );
    died
}

/// One life; does nothing unless it was called as one.
#[test]
fn a_life() {
    let Some(folder) = std::env::var_os("TIDELOG_CRASH_LIFE") else {
        return;
    };
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    let folder = Path::new(&folder);
    if weeks_pass(folder).exists() {
        runtime.block_on(weeks(folder));
    } else {
        runtime.block_on(work(folder));
    }
}

/// What was acknowledged, kept in a file that outlives the process: rows of `orders`, or "import".
#[derive(Debug, Clone)]
struct Acknowledged {
    what: String,
    bookmark: Position,
}

fn acknowledged_file(folder: &Path) -> PathBuf {
    folder.join("acknowledged")
}

fn acknowledge(folder: &Path, what: &str, bookmark: Position) {
    let file = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(acknowledged_file(folder));
    let line = format!("{what} {bookmark}\n");
    file.and_then(|mut file| file.write_all(line.as_bytes()))
        .expect("an acknowledgement is noted");
}

fn acknowledged(folder: &Path) -> Vec<Acknowledged> {
    let text = std::fs::read_to_string(acknowledged_file(folder)).unwrap_or_default();
    text.lines()
        .map(|line| {
            let mut words = line.split(' ').map(str::to_owned);
            let mut next = || words.next().expect("two words");
            Acknowledged {
                what: next(),
                bookmark: next().parse().expect("a bookmark"),
            }
        })
        .collect()
}

/// The highest row that was acknowledged.
fn last_row(folder: &Path) -> i64 {
    let rows = acknowledged(folder);
    let rows = rows.iter().filter_map(|a| a.what.parse().ok());
    rows.max().unwrap_or(0)
}

/// Row `n` of `orders` is its `n`-th insert, so that what survives is a prefix exactly if no number is missing.
async fn insert(folder: &Path, database: &Database, row: i64, bytes: u32, level: Durability) {
    let sql = format!("INSERT INTO t VALUES({row}, randomblob({bytes}))");
    let bookmark = rig::run(database, &sql, level).await;
    acknowledge(folder, &row.to_string(), bookmark);
}

/// Files of the store whose path contains this.
fn stored(folder: &Path, part: &str) -> usize {
    let mut folders = vec![folder.join("store")];
    let mut count = 0;
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(next).into_iter().flatten().flatten() {
            let path = entry.path();
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                folders.push(path);
            } else if path.to_string_lossy().contains(part) {
                count += 1;
            }
        }
    }
    count
}

/// Everything that leads to a crash point: start, create, import, small and large commits at every level,
/// checkpoints, settling, an image, idle closing, trimming what earlier lives left, stopping.
async fn work(folder: &Path) {
    let engine = Engine::start(settings(folder), Parts::production()).await;
    let engine = engine.expect("start");
    let database = rig::orders(&engine).await;
    let create = "CREATE TABLE IF NOT EXISTS t(a INTEGER PRIMARY KEY, b)";
    rig::run(&database, create, Durability::Local).await;
    let mut row = rig::numbers(&database, "SELECT coalesce(max(a), 0) FROM t").await[0];
    import(folder, &engine).await;
    rewind(&engine).await;
    fork(&engine).await;
    for n in 0..12 {
        for level in LEVELS {
            row += 1;
            let bytes = if n % 4 == 3 { 40_000 } else { 2_000 };
            insert(folder, &database, row, bytes, level).await;
        }
    }
    // An image pays when the log is longer than the database.
    let mut rounds = 0;
    while stored(folder, "/images/") < 2 && rounds < 400 {
        let sql = "UPDATE t SET b = randomblob(20000) WHERE a <= 12";
        rig::run(&database, sql, LEVELS[rounds % 3]).await;
        rounds += 1;
    }
    let term = engine.term();
    rig::until("segments, and nothing of earlier lives", || async {
        let earlier = (1..term.get()).all(|term| {
            // The claim, the fence and the state stay.
            stored(folder, &format!("/journal/{term:08x}/")) <= 3
        });
        stored(folder, "/segments/") > 0 && earlier
    })
    .await;
    let files = folder.join("data/databases");
    rig::until("idle databases closed", || async { held(&files) == 0 }).await;
    row += 1;
    insert(folder, &database, row, 100, Durability::Local).await;
    engine.shutdown().await.expect("shutdown");
}

/// Descriptors of this process below a folder.
fn held(below: &Path) -> usize {
    std::fs::read_dir("/proc/self/fd")
        .expect("the descriptors of this process")
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .filter(|target| target.starts_with(below))
        .count()
}

/// Makes a fork of the rewound database, writes to it, and makes it stand alone.
async fn fork(engine: &Engine) {
    let namespace = engine.namespace_by_name("acme").await.expect("namespace");
    let parent = engine
        .database(namespace.id, "rewound")
        .await
        .expect("parent");
    let name = format!("fork-{}", engine.term());
    let done = async |handle: Result<Handle, Error>| {
        let operation = handle.expect("accepted").wait(rig::PATIENCE).await;
        let state = operation.state;
        assert_eq!(state, OperationState::Succeeded, "{operation:?}");
    };
    done(parent.fork(Fork::named(&name)).await).await;
    let child = engine.database(namespace.id, &name).await.expect("child");
    let count = "SELECT count(*) FROM r";
    assert_eq!(rig::numbers(&child, count).await, [1]);
    rig::run(&child, "INSERT INTO r VALUES(2)", Durability::Remote).await;
    done(child.detach(None).await).await;
    assert_eq!(rig::numbers(&child, count).await, [2]);
    assert_eq!(rig::numbers(&parent, count).await, [1]);
}

/// Puts a database of its own back by two commits.
async fn rewind(engine: &Engine) {
    let namespace = engine.namespace_by_name("acme").await.expect("namespace");
    let database = match engine.database(namespace.id, "rewound").await {
        Ok(found) => found,
        Err(_) => engine
            .database_create(namespace.id, NewDatabase::named("rewound"))
            .await
            .expect("create"),
    };
    let create = "CREATE TABLE IF NOT EXISTS r(a)";
    rig::run(&database, create, Durability::Local).await;
    rig::run(&database, "DELETE FROM r", Durability::Local).await;
    let insert = "INSERT INTO r VALUES(1)";
    let back = rig::run(&database, insert, Durability::Remote).await;
    for _ in 0..2 {
        rig::run(&database, insert, Durability::Local).await;
    }
    let target = RestoreTarget::At(At::Bookmark(back));
    let handle = database.rewind(Rewind::to(target)).await;
    let operation = handle.expect("accepted").wait(rig::PATIENCE).await;
    let state = operation.state;
    assert_eq!(state, OperationState::Succeeded, "{operation:?}");
    let rows = rig::numbers(&database, "SELECT count(*) FROM r").await;
    assert_eq!(rows, [1], "rewound by two commits");
}

async fn import(folder: &Path, engine: &Engine) {
    let namespace = engine.namespace_by_name("acme").await.expect("namespace");
    if engine.database(namespace.id, "imported").await.is_ok() {
        return;
    }
    let file = folder.join("import.db");
    let made = engine
        .database_import(namespace.id, "imported", &file)
        .await;
    let bookmark = made.expect("import").bookmark().await.expect("bookmark");
    acknowledge(folder, "import", bookmark.bookmark);
}

fn make_import(folder: &Path) {
    let file = Connection::open(folder.join("import.db")).expect("open");
    file.execute_batch(
        "CREATE TABLE i(a INTEGER PRIMARY KEY, b);
         WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM c WHERE x < 100)
         INSERT INTO i SELECT x, hex(x*x) FROM c",
    )
    .expect("a file to import");
}

/// A folder as a life finds it.
fn prepare(before: Before) -> tempfile::TempDir {
    let home = tempfile::tempdir().expect("tempdir");
    let folder = home.path();
    make_import(folder);
    match before {
        Before::Nothing => {}
        Before::WeeksPass => std::fs::write(weeks_pass(folder), "").expect("a mark"),
        Before::Death => assert!(live(folder, Some("ship.before_put:12"), None)),
        Before::PowerLoss => {
            assert!(run(folder, Some("ship.before_put:12"), None, true));
            lose_wal(&folder.join("data/databases"));
        }
        Before::DiskLoss => {
            assert!(!live(folder, None, None));
            std::fs::remove_dir_all(folder.join("data")).expect("lose the disk");
        }
    }
    home
}

/// Empties every WAL that no checkpoint of which has begun: those were never synced.
fn lose_wal(databases: &Path) {
    let mut folders = vec![databases.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(next).expect("list").flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.to_string_lossy().ends_with("-wal") {
                let shm = PathBuf::from(path.to_string_lossy().replace("-wal", "-shm"));
                let index = std::fs::read(&shm).unwrap_or_default();
                let backfilled = index.get(96..100).is_some_and(|bytes| bytes != [0; 4]);
                if !backfilled {
                    // The first life of the file: what came before it was synced when the file was made.
                    let file = std::fs::OpenOptions::new().write(true).open(&path);
                    file.and_then(|file| file.set_len(0)).expect("cut");
                    std::fs::remove_file(&shm).expect("remove");
                }
            }
        }
    }
}

/// The next life finds everything, and so does whoever has only the bucket.
async fn recovered(folder: &Path, chosen: &str) {
    let promised = acknowledged(folder);
    let engine = Engine::start(settings(folder), Parts::production()).await;
    let engine = engine.unwrap_or_else(|e| panic!("{chosen}: {e:?}"));
    let database = rig::orders(&engine).await;
    let create = "CREATE TABLE IF NOT EXISTS t(a INTEGER PRIMARY KEY, b)";
    rig::run(&database, create, Durability::Local).await;
    let found = "SELECT count(*), coalesce(max(a), 0) FROM t";
    let found = rig::numbers(&database, found).await;
    let last = last_row(folder);
    assert_eq!(found[0], found[1], "{chosen}: a prefix of the commit order");
    assert!(
        (last..=last + 1).contains(&found[1]),
        "{chosen}: {} rows are there, {last} were acknowledged",
        found[1]
    );
    import(folder, &engine).await;
    let namespace = engine.namespace_by_name("acme").await.expect("namespace");
    let imported = engine.database(namespace.id, "imported").await;
    let rows = rig::numbers(&imported.expect("imported"), "SELECT count(*) FROM i").await;
    assert_eq!(rows, [100], "{chosen}");
    rewind(&engine).await;
    fork(&engine).await;
    insert(folder, &database, found[1] + 1, 10, Durability::Remote).await;
    engine.shutdown().await.expect("shutdown");

    let bucket = rig::bucket(folder).await;
    let bucket = bucket.unwrap_or_else(|e| panic!("{chosen}: {e:?}"));
    rig::verify(&bucket).await;
    let named = bucket.find("acme", "orders").await.expect("find");
    for promise in promised.iter().rev().filter(|p| p.what != "import").take(5) {
        let restored = rig::restored(&bucket, &named, At::Bookmark(promise.bookmark)).await;
        let (_folder, restored) =
            restored.unwrap_or_else(|e| panic!("{chosen}: {promise:?}: {e:?}"));
        let count: i64 = restored
            .query_row("SELECT count(*) FROM t", [], |row| row.get(0))
            .expect("count");
        assert_eq!(promise.what, count.to_string(), "{chosen}: {promise:?}");
    }
}

const DAY: i64 = 24 * 3600;
/// The rows of `orders` in a life in which weeks pass, one a day.
const DAYS: i64 = 6;

/// A node on the file store whose clock, and whose store's, `ahead` days have passed on.
async fn aged(folder: &Path, ahead: i64) -> (Engine, Arc<ShiftedClock>) {
    let clock = Arc::new(ShiftedClock::new());
    clock.pass(ahead * DAY);
    let files = FileStore::open(&folder.join("store")).expect("a store");
    let dated = FaultStore::new(Arc::new(files), script(|_| Fault::None));
    dated.set_clock(Arc::clone(&clock) as Arc<dyn Clock>);
    let shared = Arc::new(Shared(dated));
    let store = Store::from_object_store(shared, "", StoreOptions::default()).expect("a store");
    let parts = Parts {
        clock: Arc::clone(&clock) as Arc<dyn Clock>,
        ..Parts::production()
    };
    let settings = Settings {
        settle_bytes: 1,
        settle_age: Duration::ZERO,
        ..settings(folder)
    };
    let engine = Engine::start_on(settings, parts, store).await;
    (engine.expect("start"), clock)
}

async fn succeeded(handle: Result<Handle, Error>) {
    let operation = handle.expect("accepted").wait(rig::PATIENCE).await;
    let state = operation.state;
    assert_eq!(state, OperationState::Succeeded, "{operation:?}");
}

/// Keys of the objects of a database.
fn objects(folder: &Path, database: &str) -> BTreeSet<String> {
    let (mut folders, mut found) = (vec![folder.join("store/tenants")], BTreeSet::new());
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(next).into_iter().flatten().flatten() {
            let path = entry.path();
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                folders.push(path);
                continue;
            }
            let key = path.to_string_lossy().into_owned();
            if let Some((_, name)) = key.split_once(&format!("/{database}/")) {
                found.insert(name.to_owned());
            }
        }
    }
    found
}

/// A life in which weeks pass: `orders` outgrows a window of a day, so that an image is written, objects are marked
/// and, after their grace, swept; `doomed`, which has an archive, is purged.
async fn weeks(folder: &Path) {
    let (engine, clock) = aged(folder, 0).await;
    let orders = rig::orders(&engine).await;
    let namespace = orders.row().namespace;
    let window = DatabasePatch {
        retention_micros: Some(DAY as u64 * 1_000_000),
        ..DatabasePatch::default()
    };
    engine
        .database_patch(namespace, "orders", window)
        .await
        .expect("a window");
    rig::run(
        &orders,
        "CREATE TABLE t(a INTEGER PRIMARY KEY, b)",
        Durability::Remote,
    )
    .await;
    let doomed = engine
        .database_create(namespace, NewDatabase::named("doomed"))
        .await
        .expect("create");
    rig::run(&doomed, "CREATE TABLE d(a)", Durability::Remote).await;
    std::fs::write(folder.join("doomed"), doomed.row().id.to_string()).expect("its id");
    let archive = NewArchive::of(At::Latest, Format::Sqlite);
    succeeded(doomed.archive_create(archive).await).await;
    for row in 1..=DAYS {
        insert(folder, &orders, row, 2_000, Durability::Remote).await;
        let segments = usize::try_from(row).expect("small");
        let id = orders.row().id.to_string();
        rig::until("a segment a day", || async {
            let stored = objects(folder, &id);
            stored
                .iter()
                .filter(|key| key.starts_with("segments/"))
                .count()
                >= segments
        })
        .await;
        clock.pass(DAY);
    }
    // Marks; and once their grace is over, the sweep.
    for _ in 0..2 {
        clock.pass(2 * DAY);
        let (_, report) = engine
            .retention_of(namespace, "orders", true)
            .await
            .expect("retention");
        assert!(report.applied && !report.held, "{report:?}");
    }
    std::fs::write(folder.join("purging"), "").expect("a mark");
    succeeded(
        engine
            .database_purge(namespace, "doomed", Purge::default())
            .await,
    )
    .await;
    engine.shutdown().await.expect("shutdown");
}

/// The next life, weeks later: the newest state is there, older ones are or are expired by name; `doomed` is whole
/// or goes on going; when all is due and done nothing lies in the store that nothing lists.
async fn recovered_weeks(folder: &Path, chosen: &str) {
    let (engine, clock) = aged(folder, 40).await;
    let orders = rig::orders(&engine).await;
    let (namespace, id) = (orders.row().namespace, orders.row().id);
    let found = "SELECT count(*), coalesce(max(a), 0) FROM t";
    let found = rig::numbers(&orders, found).await;
    let last = last_row(folder);
    assert_eq!(found[0], found[1], "{chosen}: a prefix of the commit order");
    assert!(
        (last..=last + 1).contains(&found[1]),
        "{chosen}: {found:?}, {last}"
    );
    for promise in acknowledged(folder) {
        let out = folder.join("out.db");
        match orders.export(At::Bookmark(promise.bookmark), &out).await {
            Ok(_) => {
                let restored = Connection::open(&out).expect("open");
                let count: i64 = restored
                    .query_row("SELECT count(*) FROM t", [], |row| row.get(0))
                    .expect("count");
                assert_eq!(promise.what, count.to_string(), "{chosen}: {promise:?}");
                std::fs::remove_file(&out).expect("remove");
            }
            Err(error) => {
                assert_eq!(error.code(), Code::BookmarkExpired, "{chosen}: {error:?}");
                assert_ne!(
                    promise.what,
                    last.to_string(),
                    "{chosen}: the newest expired"
                );
            }
        }
    }
    let doomed = std::fs::read_to_string(folder.join("doomed")).expect("its id");
    if folder.join("purging").exists() {
        // Old: it is there, as it was, and is purged now. New: it goes on going by itself.
        match engine.database(namespace, "doomed").await {
            Ok(whole) => {
                let rows = rig::numbers(&whole, "SELECT count(*) FROM d").await;
                assert_eq!(rows, [0], "{chosen}");
                let archives = whole.archives(Page::default()).await.expect("archives");
                assert_eq!(archives.items.len(), 1, "{chosen}");
                succeeded(
                    engine
                        .database_purge(namespace, "doomed", Purge::default())
                        .await,
                )
                .await;
            }
            Err(error) => assert!(
                matches!(error.code(), Code::DatabaseNotFound | Code::DatabasePurged),
                "{chosen}: {error:?}"
            ),
        }
        rig::until("the end of a purge", || async {
            let left = objects(folder, &doomed);
            left.iter().all(|key| key == "manifest" || key == "key")
                && engine
                    .database_undelete(namespace, "doomed")
                    .await
                    .is_err_and(|error| error.code() == Code::DatabasePurged)
        })
        .await;
    }
    insert(folder, &orders, found[1] + 1, 10, Durability::Remote).await;
    let position = orders.bookmark().await.expect("open").bookmark;
    let store = Store::open(&rig::url(folder), StoreOptions::default()).expect("a store");
    let store = store.with_keys(Keyring::new(masters()));
    let manifests = ManifestStore::new(store, namespace, id, Arc::new(SystemEntropy));
    rig::until("the settle of the last commit", || async {
        let loaded = manifests.load().await.expect("a manifest");
        loaded.manifest.settled_position() == Some(position)
    })
    .await;
    // Everything that is due, and every grace over.
    for _ in 0..5 {
        engine.calendar_turn().await.expect("a turn");
        let applied = engine.retention_of(namespace, "orders", true).await;
        applied.unwrap_or_else(|error| panic!("{chosen}: {error:?}"));
        clock.pass(2 * DAY);
    }
    engine.shutdown().await.expect("shutdown");

    let bucket = rig::bucket(folder).await;
    let bucket = bucket.unwrap_or_else(|e| panic!("{chosen}: {e:?}"));
    rig::verify(&bucket).await;
    let named = bucket.find("acme", "orders").await.expect("find");
    let restored = rig::restored(&bucket, &named, At::Bookmark(position)).await;
    restored.unwrap_or_else(|e| panic!("{chosen}: {e:?}"));
    // What lies there is what is listed: the scrub would name what is missing, this what is too much.
    let manifest = manifests.load().await.expect("a manifest").manifest;
    assert!(
        manifest.marked.is_empty() && manifest.index.is_empty(),
        "{chosen}"
    );
    let (segments, images) = (manifest.segments.iter(), manifest.images.iter());
    let mut listed: BTreeSet<String> = segments
        .map(|entry| entry.key(namespace, id).to_string())
        .chain(images.map(|entry| entry.key(namespace, id).to_string()))
        .filter_map(|key| {
            key.split_once(&format!("/{id}/"))
                .map(|(_, name)| name.to_owned())
        })
        .collect();
    listed.insert("manifest".to_owned());
    let mut left = objects(folder, &id.to_string());
    left.remove("key");
    assert_eq!(left, listed, "{chosen}");
}

/// The names in the sources.
fn points() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(next).expect("list").flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let text = std::fs::read_to_string(&path).expect("a source");
            for part in text.split("crash_point!(\"").skip(1) {
                found.extend(part.split('"').next().map(str::to_owned));
            }
        }
    }
    found
}

#[test]
fn what_was_acknowledged_survives_death_at_every_crash_point() {
    let chosen = std::env::var("TIDELOG_CRASH_POINTS").unwrap_or_default();
    let wanted = points().into_iter();
    let wanted: BTreeSet<String> = wanted.filter(|name| name.contains(&chosen)).collect();
    assert!(!wanted.is_empty(), "no crash point is named {chosen:?}");

    // Which life reaches which point, and how often. What a life comes by depends on its timing: what none came by may
    // be met by another one of its kind.
    let mut reached: BTreeMap<String, BTreeMap<Before, usize>> = BTreeMap::new();
    for round in 1..=LIVES {
        for before in BEFORE {
            let home = prepare(before);
            let trace = home.path().join("trace");
            assert!(!live(home.path(), None, Some(&trace)));
            let mut met: BTreeMap<String, usize> = BTreeMap::new();
            for name in std::fs::read_to_string(&trace).expect("a trace").lines() {
                *met.entry(name.to_owned()).or_default() += 1;
            }
            for (name, times) in met {
                let of = reached.entry(name).or_default();
                of.entry(before).or_insert(times);
            }
        }
        let swept = |point: &String| SWEPT_BY_ARCHIVES.contains(&format!("\"{point}\""));
        let missed = wanted.iter().filter(|p| !reached.contains_key(*p));
        let missed: Vec<&String> = missed.filter(|p| !swept(p)).collect();
        if missed.is_empty() {
            break;
        }
        assert!(round < LIVES, "no life reaches {missed:?}");
    }

    // Each point dies in the first life that reaches it, the first time and a later one.
    let mut deaths = Vec::new();
    for point in &wanted {
        let Some((before, times)) = reached.get(point).and_then(BTreeMap::first_key_value) else {
            continue;
        };
        deaths.push((*before, point.clone()));
        if *times > 8 {
            deaths.push((*before, format!("{point}:{}", times / 2)));
        }
    }
    let queue = Mutex::new(deaths.into_iter());
    let failures = Mutex::new(String::new());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let runtime = tokio::runtime::Runtime::new().expect("runtime");
                loop {
                    let next = queue.lock().expect("lock").next();
                    let Some((before, point)) = next else { return };
                    let run = || {
                        let mut home = prepare(before);
                        let mut died = live(home.path(), Some(&point), None);
                        // Whether a life comes by depends on its timing, and so does how often.
                        let later = point.contains(':');
                        for _ in 1..LIVES {
                            if died || later {
                                break;
                            }
                            home = prepare(before);
                            died = live(home.path(), Some(&point), None);
                        }
                        assert!(died || later, "{before:?}: {point} was not reached");
                        let chosen = format!("{before:?}, {point}");
                        if before == Before::WeeksPass {
                            runtime.block_on(recovered_weeks(home.path(), &chosen));
                        } else {
                            runtime.block_on(recovered(home.path(), &chosen));
                        }
                    };
                    if std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err() {
                        let mut failed = failures.lock().expect("lock");
                        writeln!(failed, "{before:?}: {point}").expect("a string");
                    }
                }
            });
        }
    });
    let failed = failures.into_inner().expect("lock");
    assert!(failed.is_empty(), "not recovered, see above:\n{failed}");
}
