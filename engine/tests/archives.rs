//! Archives: what they hold, that they outlive and return, that none is ever half there.

mod rig;

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::TryStreamExt as _;
use rusqlite::Connection;
use sha2::{Digest as _, Sha256};
use tidelog_engine::bucket::At;
use tidelog_engine::disk::{AppendFile, Disk, StdDisk};
use tidelog_engine::operations::{Handle, Operation, OperationState};
use tidelog_engine::request::IdempotencyKey;
use tidelog_engine::system::Page;
use tidelog_engine::travel::archives::{Archive, Format, NewArchive};
use tidelog_engine::travel::forks::Fork;
use tidelog_engine::travel::rewind::{RestoreTarget, Rewind, Way};
use tidelog_engine::{Code, Database, Durability, Engine, NewDatabase, Parts, Settings};
use tidelog_testkit::sealing::{masters, sealed};
use tidelog_wal::{NamespaceId, Position, Timestamp};

const WAIT: Duration = Duration::from_mins(1);

fn settings(folder: &Path) -> Settings {
    Settings {
        data: folder.join("data"),
        store_url: format!("file://{}", folder.join("store").display()),
        ship_interval: Duration::from_millis(20),
        settle_bytes: 32 << 10,
        settle_pause: Duration::from_millis(1),
        gate_timeout: Duration::from_mins(1),
        durability_timeout: Duration::from_mins(1),
        master_keys: masters(),
        ..Settings::default()
    }
}

struct World {
    folder: tempfile::TempDir,
    engine: Engine,
    namespace: NamespaceId,
    database: Database,
}

async fn world() -> World {
    world_with(Parts::production()).await
}

async fn world_with(parts: Parts) -> World {
    let folder = tempfile::tempdir().expect("tempdir");
    let engine = Engine::start(settings(folder.path()), parts).await;
    let engine = engine.expect("start");
    let namespace = engine.namespace_create("acme").await.expect("namespace").id;
    let database = engine
        .database_create(namespace, NewDatabase::named("orders"))
        .await
        .expect("create");
    World {
        folder,
        engine,
        namespace,
        database,
    }
}

async fn run(database: &Database, sql: &str) -> Position {
    rig::run(database, sql, Durability::Memory).await
}

async fn done(mut handle: Handle) -> Operation {
    let operation = handle.wait(WAIT).await;
    assert!(operation.state.is_final(), "{operation:?}");
    operation
}

async fn archived(database: &Database, new: NewArchive) -> Archive {
    let operation = done(database.archive_create(new).await.expect("begin")).await;
    assert_eq!(operation.state, OperationState::Succeeded, "{operation:?}");
    let result = operation.result.expect("a result");
    let id = result["archive"]["id"].as_str().expect("an id").to_owned();
    database.archive(&id).await.expect("the archive")
}

async fn content(database: &Database, archive: &Archive) -> Vec<u8> {
    let content = database
        .archive_content(&archive.id.to_string())
        .await
        .expect("content");
    let pieces: Vec<_> = content
        .stream(0..archive.document.stored_bytes)
        .try_collect()
        .await
        .expect("stream");
    pieces.concat()
}

fn unpacked(stored: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    let mut decoder = zstd::Decoder::new(stored).expect("zstd");
    decoder.read_to_end(&mut plain).expect("unpack");
    plain
}

fn sha256(bytes: &[u8]) -> String {
    let sum = Sha256::digest(bytes);
    sum.iter()
        .fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

/// Everything a database holds, by table.
fn rows(connection: &Connection) -> BTreeMap<String, Vec<String>> {
    let tables =
        "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE '\\_%' ESCAPE '\\'";
    let mut select = connection.prepare(tables).expect("schema");
    let tables: Vec<String> = select
        .query_map([], |row| row.get(0))
        .expect("tables")
        .collect::<Result<_, _>>()
        .expect("tables");
    let mut all = BTreeMap::new();
    for table in tables {
        let mut select = connection
            .prepare(&format!("SELECT * FROM \"{table}\""))
            .expect("select");
        let columns = select.column_count();
        let rows: Vec<String> = select
            .query_map([], |row| {
                let values = (0..columns).map(|at| row.get_ref(at).map(|v| format!("{v:?}")));
                values.collect::<Result<Vec<_>, _>>().map(|v| v.join("|"))
            })
            .expect("rows")
            .collect::<Result<_, _>>()
            .expect("rows");
        all.insert(table, rows);
    }
    all
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let Ok(entries) = std::fs::read_dir(folder) else {
        return found;
    };
    for entry in entries {
        let path = entry.expect("entry").path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// The stored objects of archives.
fn objects(world: &World) -> Vec<PathBuf> {
    let all = files(&world.folder.path().join("store"));
    let mine = all.into_iter();
    mine.filter(|path| path.to_string_lossy().contains("/archives/"))
        .collect()
}

const FILL: &str = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < 3000) \
                    INSERT INTO t SELECT x, hex(x * 7919), x * 0.1 FROM c";

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_is_the_plain_file_of_its_bookmark_and_says_what_it_holds() {
    let world = world().await;
    let database = &world.database;
    run(
        database,
        "CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT, c REAL)",
    )
    .await;
    let full = run(database, FILL).await;
    run(database, "DELETE FROM t WHERE a % 2").await;
    let archive = archived(
        database,
        NewArchive {
            name: Some("before the fix".to_owned()),
            ..NewArchive::of(At::Bookmark(full), Format::Sqlite)
        },
    )
    .await;
    let document = &archive.document;
    assert_eq!(document.bookmark, full.to_string());
    assert_eq!(document.rows["t"], Some(3000));
    assert_eq!(document.integrity, "ok");
    assert_eq!(document.name.as_deref(), Some("before the fix"));
    let stored = content(database, &archive).await;
    assert_eq!(stored.len() as u64, document.stored_bytes);
    assert_eq!(sha256(&stored), document.stored_sha256);
    let plain = unpacked(&stored);
    assert_eq!(plain.len() as u64, document.bytes);
    assert_eq!(sha256(&plain), document.sha256);
    let file = world.folder.path().join("plain.db");
    std::fs::write(&file, &plain).expect("write");
    let connection = Connection::open(&file).expect("open");
    let count: i64 = connection
        .query_row("SELECT count(*) FROM t", [], |row| row.get(0))
        .expect("count");
    assert_eq!(count, 3000);
    // The side file in the store says the same, without a server.
    let side = objects(&world)
        .into_iter()
        .find(|path| path.extension() == Some("json".as_ref()));
    let side = std::fs::read(side.expect("a side file")).expect("read");
    if !sealed() {
        let side: serde_json::Value = serde_json::from_slice(&side).expect("JSON");
        assert_eq!(side["sha256"], document.sha256.as_str());
        assert_eq!(side["rows"]["t"], 3000);
    }
    let checked = done(
        database
            .archive_verify(&document.id, None)
            .await
            .expect("begin"),
    )
    .await;
    assert_eq!(checked.result.expect("a result")["outcome"], "verified");
    world.engine.shutdown().await.expect("shutdown");
}

/// Everything a dump has to carry: quotes, bytes that are no text, infinite and odd numbers, generated columns,
/// views, triggers, counters, a virtual table.
#[tokio::test(flavor = "multi_thread")]
async fn a_dump_makes_the_same_database_anew() {
    let world = world().await;
    let database = &world.database;
    for sql in [
        "CREATE TABLE \"odd 'name\"(a INTEGER PRIMARY KEY AUTOINCREMENT, \"b\"\"c\", d AS (a * 2), e)",
        "CREATE TABLE w(k TEXT PRIMARY KEY, v) WITHOUT ROWID",
        "CREATE INDEX i ON w(v) -- to the end",
        "CREATE VIEW v AS SELECT k FROM w",
        "CREATE TRIGGER g AFTER INSERT ON w BEGIN SELECT 1; END",
        "INSERT INTO \"odd 'name\"(\"b\"\"c\", e) VALUES('it''s', X'00ff'), (9e999, -9e999), \
         (0.1, 1e-300), (CAST(X'610062' AS TEXT), NULL), (-9223372036854775808, ''), \
         ('line' || char(10) || 'feed', 2.0)",
        "INSERT INTO w VALUES('k', 1), ('', NULL), (CAST(X'ff' AS TEXT), 3)",
        "CREATE VIRTUAL TABLE f USING fts5(x)",
        "INSERT INTO f VALUES('some words'), ('other words')",
        "PRAGMA user_version=7",
    ] {
        run(database, sql).await;
    }
    let archive = archived(database, NewArchive::of(At::Latest, Format::Sql)).await;
    let plain = unpacked(&content(database, &archive).await);
    assert_eq!(sha256(&plain), archive.document.sha256);
    let text = String::from_utf8(plain).expect("a dump is text");
    // SQLite reads a schema that was written by hand when the file is opened next.
    let remade = world.folder.path().join("remade.db");
    let again = Connection::open(&remade).expect("open");
    again
        .execute_batch(&text)
        .unwrap_or_else(|e| panic!("{e}\n{text}"));
    drop(again);
    let file = world.folder.path().join("exported.db");
    database.export(At::Latest, &file).await.expect("export");
    let (exact, again) = (Connection::open(&file), Connection::open(&remade));
    let (exact, again) = (exact.expect("open"), again.expect("open"));
    assert_eq!(rows(&again), rows(&exact), "{text}");
    for connection in [&exact, &again] {
        let version: i64 = connection
            .query_row("PRAGMA user_version", [], |row| row.get(0))
            .expect("pragma");
        assert_eq!(version, 7);
        let others = "SELECT group_concat(type || name) FROM (SELECT type, name FROM sqlite_schema \
                      WHERE type <> 'table' ORDER BY type, name)";
        let others: String = connection
            .query_row(others, [], |row| row.get(0))
            .expect("schema");
        assert!(
            others.contains("indexi,") && others.contains("triggerg") && others.contains("viewv")
        );
        let matched: String = connection
            .query_row("SELECT x FROM f WHERE f MATCH 'other'", [], |row| {
                row.get(0)
            })
            .expect("match");
        assert_eq!(matched, "other words");
    }
    world.engine.shutdown().await.expect("shutdown");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_becomes_a_database_again_after_its_own_was_deleted() {
    let world = world().await;
    let database = &world.database;
    run(
        database,
        "CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT, c REAL)",
    )
    .await;
    run(database, FILL).await;
    let archive = archived(database, NewArchive::of(At::Latest, Format::Sqlite)).await;
    let id = archive.id.to_string();
    let engine = &world.engine;
    engine
        .database_delete(world.namespace, "orders")
        .await
        .expect("delete");
    let handle = engine
        .database_from_archive(world.namespace, "again", &id, None)
        .await
        .expect("begin");
    let operation = done(handle).await;
    assert_eq!(operation.state, OperationState::Succeeded, "{operation:?}");
    let again = engine
        .database(world.namespace, "again")
        .await
        .expect("made");
    let file = world.folder.path().join("again.db");
    again.export(At::Latest, &file).await.expect("export");
    let connection = Connection::open(&file).expect("open");
    assert_eq!(rows(&connection)["t"].len(), 3000);
    run(&again, "DELETE FROM t").await;
    let taken = engine
        .database_from_archive(world.namespace, "again", &id, None)
        .await
        .expect_err("the name is taken");
    assert_eq!(taken.code(), Code::NameTaken);
    let other = engine.namespace_create("other").await.expect("namespace");
    let foreign = engine
        .database_from_archive(other.id, "mine", &id, None)
        .await
        .expect_err("another tenant's archive");
    assert_eq!(foreign.code(), Code::ArchiveNotFound);
    world.engine.shutdown().await.expect("shutdown");
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_is_told_from_absence_and_makes_no_database() {
    let world = world().await;
    let database = &world.database;
    run(
        database,
        "CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT, c REAL)",
    )
    .await;
    run(database, FILL).await;
    let archive = archived(database, NewArchive::of(At::Latest, Format::Sqlite)).await;
    let id = archive.id.to_string();
    let object = objects(&world)
        .into_iter()
        .find(|path| path.extension() == Some("zst".as_ref()))
        .expect("the object");
    let good = std::fs::read(&object).expect("read");
    let mut flipped = good.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    let longer = [&good[..], b"x"].concat();
    for (bytes, outcome) in [
        (Some(flipped), "mismatch"),
        (Some(good[..good.len() - 1].to_vec()), "mismatch"),
        (Some(longer), "mismatch"),
        (None, "error"),
    ] {
        std::fs::remove_file(&object).expect("remove");
        if let Some(bytes) = &bytes {
            std::fs::write(&object, bytes).expect("write");
        }
        let checked = done(database.archive_verify(&id, None).await.expect("begin")).await;
        assert_eq!(checked.result.expect("a result")["outcome"], outcome);
        let handle = world
            .engine
            .database_from_archive(world.namespace, "again", &id, None)
            .await
            .expect("begin");
        let failed = done(handle).await;
        assert_eq!(failed.error.expect("an error").code, "object-corrupt");
        let missing = world.engine.database(world.namespace, "again").await;
        assert_eq!(missing.expect_err("nothing").code(), Code::DatabaseNotFound);
        if bytes.is_none() {
            std::fs::write(&object, &good).expect("write");
        }
    }
    let listed = database.archive(&id).await.expect("the archive");
    assert_eq!(listed.verified.expect("verified")["outcome"], "error");
    world.engine.shutdown().await.expect("shutdown");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_held_archive_is_not_deleted_and_a_deleted_one_leaves_nothing() {
    let world = world().await;
    let database = &world.database;
    run(database, "CREATE TABLE t(a)").await;
    let now = world.engine.now();
    let later = |seconds: u64| Timestamp::from_micros(now.micros() + seconds * 1_000_000);
    let archive = archived(
        database,
        NewArchive {
            retain_until: Some(later(3600)),
            legal_hold: true,
            ..NewArchive::of(At::Latest, Format::Sqlite)
        },
    )
    .await;
    let id = archive.id.to_string();
    let held = |error: tidelog_engine::Error| assert_eq!(error.code(), Code::ArchiveHeld);
    held(database.archive_delete(&id).await.expect_err("held"));
    let earlier = database.archive_hold(&id, Some(later(60)), None).await;
    held(earlier.expect_err("not brought forward"));
    let loosened = database
        .archive_hold(&id, Some(later(7200)), Some(false))
        .await;
    assert!(!loosened.expect("put off").legal_hold);
    held(database.archive_delete(&id).await.expect_err("retained"));
    let free = archived(database, NewArchive::of(At::Latest, Format::Sql)).await;
    assert_eq!(objects(&world).len(), 4);
    database
        .archive_delete(&free.id.to_string())
        .await
        .expect("delete");
    assert_eq!(objects(&world).len(), 2);
    let listed = database.archives(Page::default()).await.expect("list");
    let ids: Vec<String> = listed.items.iter().map(|one| one.id.to_string()).collect();
    assert_eq!(ids, [id]);
    let gone = database.archive(&free.id.to_string()).await;
    assert_eq!(gone.expect_err("gone").code(), Code::ArchiveNotFound);
    world.engine.shutdown().await.expect("shutdown");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_call_follows_the_first_and_another_request_is_refused() {
    let world = world().await;
    let database = &world.database;
    run(database, "CREATE TABLE t(a)").await;
    let key = |fingerprint: u8| IdempotencyKey {
        scope: "token route".to_owned(),
        key: "k1".to_owned(),
        fingerprint: [fingerprint; 32],
    };
    let keyed = |fingerprint| NewArchive {
        request: Some(key(fingerprint)),
        ..NewArchive::of(At::Latest, Format::Sqlite)
    };
    let first = done(database.archive_create(keyed(1)).await.expect("begin")).await;
    let again = done(database.archive_create(keyed(1)).await.expect("again")).await;
    assert_eq!(first.id, again.id);
    let other = database.archive_create(keyed(2)).await;
    let error = other.expect_err("another request");
    assert_eq!(error.code(), Code::IdempotencyKeyReused);
    let listed = database.archives(Page::default()).await.expect("list");
    assert_eq!(listed.items.len(), 1);
    world.engine.shutdown().await.expect("shutdown");
}

/// Goal: a restore in place from an archive is a restore like any other: previewed and run by one plan, recorded,
/// undone; its state may have left the window long ago.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_is_put_back_in_place_to_what_an_archive_holds() {
    let world = world().await;
    let database = &world.database;
    let create = "CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT, c REAL)";
    run(database, create).await;
    let full = run(database, FILL).await;
    let archive = archived(database, NewArchive::of(At::Latest, Format::Sqlite)).await;
    let id = archive.id.to_string();
    run(database, "DELETE FROM t WHERE a % 2").await;
    run(database, "CREATE TABLE later(x)").await;
    let before = run(database, "INSERT INTO later VALUES(1)").await;
    let exported = async |name: &str| {
        let file = world.folder.path().join(name);
        database.export(At::Latest, &file).await.expect("export");
        let connection = Connection::open(&file).expect("open");
        let check: String = connection
            .query_row("PRAGMA integrity_check", [], |row| row.get(0))
            .expect("check");
        assert_eq!(check, "ok");
        rows(&connection)
    };
    let changed = exported("changed.db").await;
    let target = RestoreTarget::Archive(id.clone());
    let plan = database.preview(&target).await.expect("preview");
    assert_eq!((plan.way(), plan.target.position), (Way::Archive, full));
    assert_eq!(plan.commits_undone(), 3);
    // A sealed object is longer than what it holds.
    let (fetched, held) = (plan.bytes_to_fetch(), archive.document.stored_bytes);
    assert!(
        fetched == held || sealed() && fetched > held,
        "{fetched}, {held}"
    );
    assert_eq!(
        exported("previewed.db").await,
        changed,
        "a preview changes nothing"
    );
    let restored = async |rewind: Rewind| {
        let operation = done(database.rewind(rewind).await.expect("begin")).await;
        assert_eq!(operation.state, OperationState::Succeeded, "{operation:?}");
        operation.result.expect("a result")
    };
    let by_plan = Rewind {
        plan: Some(plan.id.clone()),
        preserve_as: Some("before".to_owned()),
        quick_check: true,
        ..Rewind::to(RestoreTarget::At(At::Latest))
    };
    let said = restored(by_plan).await;
    assert_eq!(said["restore"]["archive"], id.as_str());
    assert_eq!(said["restore"]["way"], "archive");
    assert_eq!(said["restore"]["quick_check"], "ok");
    assert_eq!(said["previous_bookmark"], before.to_string());
    let back = exported("back.db").await;
    assert_eq!(back["t"].len(), 3000);
    assert!(!back.contains_key("later"));
    let state = database.state_at(At::Latest).await.expect("a state");
    assert_eq!(
        state.digest.to_string(),
        archive.document.digest,
        "page for page"
    );
    let record = said["restore"]["id"].as_str().expect("an id");
    let noted = database.restore(record).await.expect("a record");
    assert_eq!(noted.archive.as_deref(), Some(id.as_str()));
    assert_eq!((noted.target, noted.previous), (full, before));
    // Undone as any other.
    let undone = done(database.undo(record, None, None).await.expect("begin")).await;
    assert_eq!(undone.state, OperationState::Succeeded, "{undone:?}");
    assert_eq!(exported("undone.db").await, changed);
    // Only where the database is, only once, and only its own.
    let moved = Rewind {
        only_at: Some(full),
        ..Rewind::to(target.clone())
    };
    let refused = database.rewind(moved).await.expect_err("it has moved");
    assert_eq!(refused.code(), Code::DatabaseMoved);
    let again = Rewind {
        plan: Some(plan.id),
        ..Rewind::to(target.clone())
    };
    let refused = database.rewind(again).await.expect_err("run already");
    assert_eq!(refused.code(), Code::PlanStale);
    let other = world
        .engine
        .database_create(world.namespace, NewDatabase::named("other"))
        .await
        .expect("create");
    let refused = other.preview(&target).await.expect_err("another's");
    assert_eq!(refused.code(), Code::ArchiveNotFound);
    let text = archived(database, NewArchive::of(At::Latest, Format::Sql)).await;
    let text = RestoreTarget::Archive(text.id.to_string());
    let refused = database.preview(&text).await.expect_err("a text");
    assert_eq!(refused.code(), Code::ImportInvalid);
    // A damaged one changes nothing.
    let object = objects(&world).into_iter().find(|path| {
        let name = path.to_string_lossy();
        name.contains(&id) && name.ends_with(".db.zst")
    });
    let object = object.expect("the object");
    let mut bytes = std::fs::read(&object).expect("read");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&object, bytes).expect("write");
    let head = database.bookmark().await.expect("open").bookmark;
    let failed = done(database.rewind(Rewind::to(target)).await.expect("begin")).await;
    assert_eq!(failed.error.expect("an error").code, "object-corrupt");
    assert_eq!(database.bookmark().await.expect("open").bookmark, head);
    assert_eq!(exported("still.db").await, changed);
    world.engine.shutdown().await.expect("shutdown");
}

/// A disk that says how much is free.
#[derive(Debug)]
struct SmallDisk {
    disk: StdDisk,
    free: Arc<AtomicU64>,
}

impl Disk for SmallDisk {
    fn create(&self, path: &Path) -> std::io::Result<Box<dyn AppendFile>> {
        self.disk.create(path)
    }
    fn read(&self, path: &Path) -> std::io::Result<Vec<u8>> {
        self.disk.read(path)
    }
    fn read_at(&self, path: &Path, offset: u64, len: usize) -> std::io::Result<Vec<u8>> {
        self.disk.read_at(path, offset, len)
    }
    fn write_atomic(&self, path: &Path, bytes: &[u8]) -> std::io::Result<()> {
        self.disk.write_atomic(path, bytes)
    }
    fn remove(&self, path: &Path) -> std::io::Result<()> {
        self.disk.remove(path)
    }
    fn list(&self, folder: &Path) -> std::io::Result<Vec<(PathBuf, u64)>> {
        self.disk.list(folder)
    }
    fn create_folder(&self, folder: &Path) -> std::io::Result<()> {
        self.disk.create_folder(folder)
    }
    fn free_bytes(&self, _folder: &Path) -> std::io::Result<u64> {
        Ok(self.free.load(Ordering::Relaxed))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_too_small_refuses_with_both_figures_before_anything_begins() {
    let free = Arc::new(AtomicU64::new(1 << 40));
    let disk = SmallDisk {
        disk: StdDisk,
        free: Arc::clone(&free),
    };
    let parts = Parts {
        disk: Arc::new(disk),
        ..Parts::production()
    };
    let world = world_with(parts).await;
    let database = &world.database;
    run(
        database,
        "CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT, c REAL)",
    )
    .await;
    run(database, FILL).await;
    let archive = archived(database, NewArchive::of(At::Latest, Format::Sqlite)).await;
    free.store((64 << 20) + 1000, Ordering::Relaxed);
    let bytes = archive.document.bytes;
    let refused = database
        .archive_create(NewArchive::of(At::Latest, Format::Sqlite))
        .await;
    let id = archive.id.to_string();
    let restore = world
        .engine
        .database_from_archive(world.namespace, "again", &id, None);
    let out = world.folder.path().join("out.db");
    let export = database.export(At::Latest, &out).await;
    let fork = Fork {
        schema_only: true,
        ..Fork::named("empty")
    };
    let fork = database.fork(fork).await.map(drop);
    let rewind = Rewind::to(RestoreTarget::Archive(id.clone()));
    let rewind = database.rewind(rewind).await.map(drop);
    for (error, needed) in [
        (refused.expect_err("too small"), bytes),
        (restore.await.expect_err("too small"), 2 * bytes),
        (export.expect_err("too small"), bytes),
        (fork.expect_err("too small"), bytes),
        (rewind.expect_err("too small"), bytes),
    ] {
        assert_eq!(error.code(), Code::DiskFull);
        assert_eq!(error.members()["needed"], needed);
        assert_eq!(error.members()["free"], (64 << 20) + 1000);
    }
    assert_eq!(objects(&world).len(), 2);
    world.engine.shutdown().await.expect("shutdown");
}

#[tokio::test(flavor = "multi_thread")]
async fn states_that_cannot_be_had_are_refused_at_once() {
    let world = world().await;
    let head = run(&world.database, "CREATE TABLE t(a)").await;
    let future = Position {
        txid: head.txid.next(),
        ..head
    };
    let at = At::Bookmark(future);
    let refused = world
        .database
        .archive_create(NewArchive::of(at, Format::Sqlite))
        .await;
    let error = refused.expect_err("in the future");
    assert_eq!(error.code(), Code::BookmarkInFuture);
    assert!(error.members().contains_key("current_bookmark"));
    let refused = world
        .database
        .archive_create(NewArchive {
            name: Some(String::new()),
            ..NewArchive::of(At::Latest, Format::Sqlite)
        })
        .await;
    assert_eq!(refused.expect_err("no name").code(), Code::NameInvalid);
    world.engine.shutdown().await.expect("shutdown");
}
