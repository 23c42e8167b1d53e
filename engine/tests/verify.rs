//! Verifications: they prove what they cover, find what is planted, and are never better than what was looked at.

mod rig;

use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value as Json;
use tidelog_archive::store::{FileStore, Store, StoreOptions, StoreSettings};
use tidelog_engine::bucket::At;
use tidelog_engine::operations::OperationState;
use tidelog_engine::system::Page;
use tidelog_engine::travel::verify::{Level, NewVerification, Outcome, Verification};
use tidelog_engine::{Code, Database, Durability, Engine, NewDatabase, Parts, Settings};
use tidelog_testkit::faultstore::{Call, Fault, FaultStore, Op, Shared, script};
use tidelog_testkit::sealing::masters;
use tidelog_wal::{NamespaceId, Position};

const WAIT: Duration = Duration::from_mins(1);
const LEVELS: [Level; 4] = [Level::Objects, Level::Chain, Level::Restore, Level::Full];

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

async fn start(folder: tempfile::TempDir, settings: Settings) -> World {
    let engine = Engine::start(settings, Parts::production()).await;
    begun(folder, engine.expect("start")).await
}

async fn begun(folder: tempfile::TempDir, engine: Engine) -> World {
    let namespace = match engine.namespace_by_name("acme").await {
        Ok(found) => found.id,
        Err(_) => engine.namespace_create("acme").await.expect("namespace").id,
    };
    let database = match engine.database(namespace, "orders").await {
        Ok(found) => found,
        Err(_) => engine
            .database_create(namespace, NewDatabase::named("orders"))
            .await
            .expect("create"),
    };
    World {
        folder,
        engine,
        namespace,
        database,
    }
}

async fn world() -> World {
    let folder = tempfile::tempdir().expect("tempdir");
    let settings = settings(folder.path());
    start(folder, settings).await
}

/// Stops the node and starts it again; `between` may look at the folder meanwhile.
async fn restart(world: World, settings: Settings, between: impl FnOnce(&World)) -> World {
    world.engine.shutdown().await.expect("shutdown");
    between(&world);
    // The folder is locked as long as the engine is.
    let World {
        folder,
        engine,
        database,
        ..
    } = world;
    drop((engine, database));
    start(folder, settings).await
}

async fn run(database: &Database, sql: &str) -> Position {
    rig::run(database, sql, Durability::Memory).await
}

/// A database of some hundred pages and commits; answers a bookmark in the middle.
async fn fill(database: &Database) -> Position {
    run(database, "CREATE TABLE t(a INTEGER PRIMARY KEY, b)").await;
    run(
        database,
        "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < 4000) \
         INSERT INTO t SELECT x, hex(randomblob(100)) FROM c",
    )
    .await;
    let mut middle = None;
    for i in 0..60 {
        let at = run(
            database,
            &format!("UPDATE t SET b = b || 'x' WHERE a % 60 = {i}"),
        )
        .await;
        if i == 30 {
            middle = Some(at);
        }
    }
    run(database, "DELETE FROM t WHERE a > 3000").await;
    middle.expect("thirty commits")
}

async fn verified(database: &Database, new: NewVerification) -> Verification {
    let mut handle = database.verify(new).await.expect("begin");
    let operation = handle.wait(WAIT).await;
    assert_eq!(operation.state, OperationState::Succeeded, "{operation:?}");
    let listed = database.verifications(Page::default()).await.expect("list");
    let found = listed.items.into_iter().find(|one| one.id == operation.id);
    let found = found.expect("a verification leaves a row");
    let result = operation.result.expect("a result");
    assert_eq!(result["verification"]["outcome"], found.outcome.as_str());
    found
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    // A node that runs may remove what was listed.
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Objects of the database with this in their path.
fn objects(world: &World, part: &str) -> Vec<PathBuf> {
    let id = world.database.row().id.to_string();
    let all = files(&world.folder.path().join("store")).into_iter();
    all.filter(|path| {
        let text = path.to_string_lossy();
        text.contains(&id) && text.contains(part)
    })
    .collect()
}

/// Waits until the database has a segment: it is settled in the background.
async fn settled(world: &World) -> PathBuf {
    let deadline = tokio::time::Instant::now() + WAIT;
    loop {
        if let Some(segment) = objects(world, "/segments/").first() {
            return segment.clone();
        }
        assert!(tokio::time::Instant::now() < deadline, "no segment");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The SQLite file of the database.
fn live_file(world: &World) -> PathBuf {
    let id = world.database.row().id.to_string();
    let all = files(&world.folder.path().join("data/databases").join(id));
    let mut all = all.into_iter();
    all.find(|path| path.ends_with("db.sqlite"))
        .expect("a file")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sound_database_is_verified_at_every_level_and_says_what_was_covered() {
    let world = world().await;
    let database = &world.database;
    let middle = fill(database).await;
    let head = database.bookmark().await.expect("bookmark").bookmark;
    for level in LEVELS {
        let done = verified(database, NewVerification::of(level)).await;
        assert_eq!(done.outcome, Outcome::Verified, "{level:?}: {done:?}");
        assert_eq!(done.findings, Json::Array(Vec::new()));
        let covers = done.covers.as_object().expect("an object");
        let keys: Vec<&str> = covers.keys().map(String::as_str).collect();
        let expected: &[&str] = match level {
            Level::Objects => &["objects"],
            Level::Chain => &["chain", "objects"],
            Level::Restore => &["restore", "sqlite"],
            Level::Full => &["chain", "live", "objects", "restore", "sqlite"],
        };
        assert_eq!(keys, expected, "{level:?}");
        let restores = matches!(level, Level::Restore | Level::Full);
        assert_eq!(done.restore_duration.is_some(), restores);
    }
    let last = database.last_verified().await.expect("read").expect("one");
    assert_eq!(last.level, Level::Full);
    assert_eq!(last.bookmark, Some(head.to_string()));
    assert_eq!(last.covers["chain"]["commits"], head.txid.get());
    assert!(database.measured_restore().await.expect("read").is_some());
    assert!(world.engine.proof_status().last_good.is_some());
    // Of an earlier state: the live file is led back to it.
    let back = NewVerification {
        at: Some(At::Bookmark(middle)),
        ..NewVerification::of(Level::Full)
    };
    let done = verified(database, back).await;
    assert_eq!(done.outcome, Outcome::Verified, "{done:?}");
    assert_eq!(done.bookmark, Some(middle.to_string()));
    assert_eq!(
        done.covers["live_at_target"]["commits"],
        head.txid.get() - middle.txid.get()
    );
    world.engine.shutdown().await.expect("shutdown");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_live_file_that_was_edited_is_a_mismatch_that_only_full_can_see() {
    let world = world().await;
    fill(&world.database).await;
    let settings = settings(world.folder.path());
    // A stop moves everything into the file: the edit is not hidden by a newer frame.
    let world = restart(world, settings, |world| {
        let opened = std::fs::File::options()
            .read(true)
            .write(true)
            .open(live_file(world));
        let opened = opened.expect("open");
        let metadata = opened.metadata().expect("metadata");
        let pages = metadata.len() / 4096;
        let mut byte = [0];
        // In a row's text, so that SQLite finds nothing wrong with it.
        let at = pages / 2 * 4096 + 4000;
        opened.read_exact_at(&mut byte, at).expect("read");
        opened.write_all_at(&[byte[0] ^ 1], at).expect("write");
        // As a disk does it that loses a bit: a file that was written to since the stop is not believed anyway.
        let modified = metadata.modified().expect("a time");
        opened.set_modified(modified).expect("set the time");
    })
    .await;
    for (level, outcome) in [
        (Level::Chain, Outcome::Verified),
        (Level::Restore, Outcome::Verified),
        (Level::Full, Outcome::Mismatch),
    ] {
        let done = verified(&world.database, NewVerification::of(level)).await;
        assert_eq!(done.outcome, outcome, "{level:?}: {done:?}");
    }
    let done = verified(&world.database, NewVerification::of(Level::Full)).await;
    let what = done.findings[0]["what"].as_str().expect("a finding");
    // Found by reading every page, or already when the file was opened.
    let said = ["the live database", "the files of database"];
    assert!(said.iter().any(|said| what.contains(said)), "{what}");
    assert_eq!(done.findings.as_array().map(Vec::len), Some(1));
    world.engine.shutdown().await.expect("shutdown");
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_and_missing_objects_are_found_and_told_apart() {
    let world = world().await;
    let database = &world.database;
    fill(database).await;
    let segment = settled(&world).await;
    let key = segment
        .file_name()
        .expect("a name")
        .to_string_lossy()
        .into_owned();
    let good = std::fs::read(&segment).expect("read");
    let mut flipped = good.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 4;
    for (bytes, outcome, kind) in [
        (Some(flipped), Outcome::Mismatch, "damaged"),
        (
            Some(good[..good.len() / 2].to_vec()),
            Outcome::Mismatch,
            "damaged",
        ),
        (None, Outcome::Error, "missing"),
    ] {
        std::fs::remove_file(&segment).expect("remove");
        if let Some(bytes) = &bytes {
            std::fs::write(&segment, bytes).expect("write");
        }
        for level in LEVELS {
            let done = verified(database, NewVerification::of(level)).await;
            let images = !objects(&world, "/images/").is_empty();
            if level == Level::Restore && images && done.outcome == Outcome::Verified {
                // An image may make the object needless for the newest state.
                continue;
            }
            assert_eq!(done.outcome, outcome, "{level:?}: {done:?}");
            let found = &done.findings[0];
            assert_eq!(found["kind"], kind, "{level:?}");
            let named = found["key"].as_str().expect("a key");
            assert!(named.ends_with(&key), "{level:?}: {named}");
        }
        if bytes.is_none() {
            std::fs::write(&segment, &good).expect("write");
        }
    }
    let good = database.last_verified().await.expect("read");
    assert!(good.is_none_or(|good| good.level == Level::Restore));
    let done = verified(database, NewVerification::of(Level::Full)).await;
    assert_eq!(done.outcome, Outcome::Verified, "whole again: {done:?}");
    world.engine.shutdown().await.expect("shutdown");
}

/// Goal: what could not be read is neither sound nor damaged, at every level, and counts as proof of nothing. Method:
/// the store answers no read of a segment.
#[tokio::test(flavor = "multi_thread")]
async fn what_could_not_be_read_is_inconclusive() {
    let folder = tempfile::tempdir().expect("tempdir");
    let files = FileStore::open(&folder.path().join("store")).expect("a store");
    let faults = FaultStore::new(Arc::new(files), script(|_| Fault::None));
    let options = StoreOptions {
        settings: StoreSettings {
            attempts_max: 1,
            ..StoreSettings::default()
        },
        ..StoreOptions::default()
    };
    let shared = Arc::new(Shared(Arc::clone(&faults)));
    let store = Store::from_object_store(shared, "", options).expect("a store");
    let engine = Engine::start_on(settings(folder.path()), Parts::production(), store).await;
    let world = begun(folder, engine.expect("start")).await;
    let database = &world.database;
    fill(database).await;
    settled(&world).await;
    faults.set_plan(script(|call: &Call| {
        if matches!(call.op, Op::Get | Op::Head) && call.key.contains("/segments/") {
            return Fault::Before;
        }
        Fault::None
    }));
    for level in LEVELS {
        let done = verified(database, NewVerification::of(level)).await;
        let images = !objects(&world, "/images/").is_empty();
        if level == Level::Restore && images && done.outcome == Outcome::Verified {
            // An image may make the object needless for the newest state.
            continue;
        }
        assert_eq!(done.outcome, Outcome::Inconclusive, "{level:?}: {done:?}");
        let found = done.findings.as_array().expect("findings");
        assert!(!found.is_empty(), "{level:?}: it says what");
        for finding in found {
            assert!(
                finding["kind"] != "damaged" && finding["kind"] != "missing",
                "{level:?}: {finding}"
            );
        }
    }
    let good = database.last_verified().await.expect("read");
    assert!(good.is_none_or(|good| good.level == Level::Restore));
    faults.set_plan(script(|_| Fault::None));
    let done = verified(database, NewVerification::of(Level::Full)).await;
    assert_eq!(done.outcome, Outcome::Verified, "{done:?}");
    world.engine.shutdown().await.expect("shutdown");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sample_reads_less_and_says_so() {
    let world = world().await;
    let database = &world.database;
    for _ in 0..4 {
        run(database, "CREATE TABLE IF NOT EXISTS t(a, b)").await;
        for _ in 0..5 {
            run(database, "INSERT INTO t VALUES(1, randomblob(30000))").await;
            let mut waited = database.bookmark().await.expect("bookmark");
            while waited.durable_bookmark != Some(waited.bookmark) {
                tokio::time::sleep(Duration::from_millis(5)).await;
                waited = database.bookmark().await.expect("bookmark");
            }
        }
    }
    let new = NewVerification {
        sample_percent: 1,
        ..NewVerification::of(Level::Chain)
    };
    let done = verified(database, new.clone()).await;
    assert_eq!(done.outcome, Outcome::Verified, "{done:?}");
    let (read, of) = (
        &done.covers["objects"]["read"],
        &done.covers["objects"]["of"],
    );
    assert!(read.as_u64() < of.as_u64(), "{read} of {of}");
    assert!(read.as_u64() >= Some(1), "the newest is always read");
    assert_eq!(done.covers["chain"]["whole"], false);
    for percent in [0, 101] {
        let refused = NewVerification {
            sample_percent: percent,
            ..new.clone()
        };
        let refused = database.verify(refused).await.expect_err("no share");
        assert_eq!(refused.code(), Code::InvalidRequest);
    }
    world.engine.shutdown().await.expect("shutdown");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schedule_is_kept_bounded_and_removed() {
    let world = world().await;
    let database = &world.database;
    assert_eq!(database.verification_schedule().await.expect("read"), None);
    for bad in [Duration::from_secs(59), Duration::from_hours(24 * 367)] {
        let refused = database.set_verification_schedule(Some((bad, Level::Chain, 100)));
        assert_eq!(
            refused.await.expect_err("out of bounds").code(),
            Code::InvalidRequest
        );
    }
    let every = Duration::from_hours(24);
    let set = database.set_verification_schedule(Some((every, Level::Restore, 100)));
    let set = set.await.expect("set").expect("a schedule");
    assert!(set.due.micros_since(world.engine.now()) > 23 * 3600 * 1_000_000);
    let settings = settings(world.folder.path());
    let world = restart(world, settings, |_| {}).await;
    let kept = world.database.verification_schedule().await.expect("read");
    assert_eq!(kept, Some(set), "it outlives the process");
    let removed = world.database.set_verification_schedule(None).await;
    assert_eq!(removed.expect("remove"), None);
    assert_eq!(
        world.database.verification_schedule().await.expect("read"),
        None
    );
    world.engine.shutdown().await.expect("shutdown");
}

/// Goal: drills come by themselves, and reach a database that nobody opens. Method: an interval of milliseconds, a
/// restart so that the database is closed, and waiting for two rows.
#[tokio::test(flavor = "multi_thread")]
async fn drills_of_a_node_restore_by_themselves_without_opening_the_database() {
    let folder = tempfile::tempdir().expect("tempdir");
    // Nothing is settled: making an image of what was would open the database.
    let plain = Settings {
        settle_bytes: 1 << 40,
        settle_age: Duration::from_hours(1),
        ..settings(folder.path())
    };
    let drilled = Settings {
        drill_interval: Some(Duration::from_millis(50)),
        ..plain.clone()
    };
    let world = start(folder, plain).await;
    fill(&world.database).await;
    let shm = |world: &World| live_file(world).with_file_name("db.sqlite-shm");
    let world = restart(world, drilled, |world| {
        let _ = std::fs::remove_file(shm(world));
    })
    .await;
    let deadline = tokio::time::Instant::now() + WAIT;
    let rows = loop {
        let listed = world.database.verifications(Page::default()).await;
        let listed = listed.expect("list").items;
        if listed.len() >= 2 {
            break listed;
        }
        assert!(tokio::time::Instant::now() < deadline, "no drill");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    for row in rows {
        assert!(row.scheduled && row.level == Level::Restore);
        assert_eq!(row.outcome, Outcome::Verified, "{row:?}");
        assert!(row.restore_duration.is_some());
    }
    assert!(!shm(&world).exists(), "a drill of the bucket opens nothing");
    assert!(
        world
            .engine
            .database(world.namespace, "orders")
            .await
            .is_ok()
    );
    world.engine.shutdown().await.expect("shutdown");
}
