//! Encryption through the engine: nothing shows in bucket, journal and spools; keys are needed, rotated, lost and
//! destroyed, and each behaves as said.
//!
//! These tests bring their own master keys; `TIDELOG_TEST_SEALED=1` runs the other suites with encryption on.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt as _;
use sha2::{Digest as _, Sha256};
use tidelog_archive::ErrorKind;
use tidelog_archive::key::Key;
use tidelog_archive::store::{Store, StoreOptions};
use tidelog_engine::bucket::{At, Bucket};
use tidelog_engine::operations::{Handle, OperationState};
use tidelog_engine::request::{Access, Request};
use tidelog_engine::travel::archives::{self, Archive, Format, NewArchive};
use tidelog_engine::travel::rewind::{RestoreTarget, Rewind};
use tidelog_engine::{
    Code, Database, Durability, Engine, Error, Limits, MasterKey, MasterKeys, NewDatabase, Params,
    Parts, Settings, Statement, TakeOver, Value,
};
use tidelog_testkit::sealing::sealed_masters;
use tidelog_wal::Position;

/// What must not be found. Noise, so that a compressor leaves it as it is.
const PLANTED: &str = "zQ7kX1vB9pLm4RtW8sYc2HdG6nJf3AeU5oTi0KqZxVbNrCwMyPlSgDhFuEjOaI";

fn master(id: &str, first: u8) -> MasterKey {
    let bytes: Vec<u8> = (first..first + 32).collect();
    MasterKey::parse(id, &bytes).expect("a master key")
}

fn masters(keys: &[(&str, u8)]) -> MasterKeys {
    let keys = keys.iter().map(|(id, first)| master(id, *first)).collect();
    MasterKeys::new(keys).expect("master keys")
}

fn url(folder: &Path) -> String {
    format!("file://{}", folder.join("store").display())
}

fn settings(folder: &Path, keys: &MasterKeys) -> Settings {
    Settings {
        data: folder.join("data"),
        store_url: url(folder),
        master_keys: keys.clone(),
        ship_interval: Duration::from_millis(20),
        ship_linger: Duration::from_millis(1),
        settle_bytes: 16 << 10,
        settle_pause: Duration::from_millis(1),
        spool_bytes: 64 << 10,
        ..Settings::default()
    }
}

async fn try_start(folder: &Path, keys: &MasterKeys) -> Result<Engine, Error> {
    Engine::start(settings(folder, keys), Parts::production()).await
}

async fn start(folder: &Path, keys: &MasterKeys) -> Engine {
    try_start(folder, keys).await.expect("start")
}

async fn execute(
    database: &Database,
    sql: &str,
    durability: Durability,
) -> Result<(Position, Vec<Vec<Value>>), Error> {
    let request = Request {
        statements: vec![Statement {
            sql: sql.to_owned(),
            params: Params::None,
        }],
        transaction: true,
        durability: Some(durability),
        access: Access::owner(),
        limits: Limits::default(),
        idempotency: None,
    };
    let response = database.execute(request).await?;
    let rows = response.results.into_iter().next().map(|found| found.rows);
    Ok((response.bookmark, rows.unwrap_or_default()))
}

async fn run(database: &Database, sql: &str) -> Position {
    let done = execute(database, sql, Durability::Remote).await;
    done.unwrap_or_else(|error| panic!("{sql}: {error:?}")).0
}

async fn count(database: &Database) -> i64 {
    let sql = "SELECT count(*) FROM t";
    let (_, rows) = execute(database, sql, Durability::Local)
        .await
        .expect("count");
    match rows[0][0] {
        Value::Integer(count) => count,
        ref other => panic!("{other:?}"),
    }
}

async fn make(engine: &Engine, name: &str) -> Database {
    let namespace = match engine.namespace_by_name("acme").await {
        Ok(namespace) => namespace,
        Err(_) => engine.namespace_create("acme").await.expect("namespace"),
    };
    let made = engine.database_create(namespace.id, NewDatabase::named(name));
    let database = made.await.expect("create");
    run(&database, "CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT)").await;
    database
}

async fn find(engine: &Engine, name: &str) -> Result<Database, Error> {
    let namespace = engine.namespace_by_name("acme").await?;
    engine.database(namespace.id, name).await
}

/// Small commits, and one above the spool bound.
async fn fill(database: &Database) {
    for n in 0..20 {
        let sql = format!("INSERT INTO t(b) VALUES('{PLANTED}{n}')");
        run(database, &sql).await;
    }
    let large = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM c WHERE x < 60) \
                 INSERT INTO t(b) SELECT hex(randomblob(2000)) || '";
    run(database, &format!("{large}{PLANTED}' FROM c")).await;
}

/// Waits until something is settled into a segment of the database's.
async fn settled(folder: &Path) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    while !files(&folder.join("store"))
        .iter()
        .any(|path| path.to_string_lossy().contains("/segments/"))
    {
        assert!(tokio::time::Instant::now() < deadline, "nothing is settled");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let Ok(entries) = std::fs::read_dir(folder) else {
        return found;
    };
    for entry in entries {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found
}

/// The objects of the bucket with their bytes.
fn objects(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let root = folder.join("store");
    let key = |path: &PathBuf| {
        let key = path.strip_prefix(&root).expect("below").to_string_lossy();
        Key::parse(&key).map(|_| (key.into_owned(), std::fs::read(path).expect("read")))
    };
    let mut found: Vec<_> = files(&root).iter().filter_map(key).collect();
    found.sort();
    found
}

/// The files below `folder` that hold one of `texts`.
fn showing(folder: &Path, texts: &[&[u8]]) -> Vec<PathBuf> {
    let shows = |path: &PathBuf| {
        let bytes = std::fs::read(path).unwrap_or_default();
        texts
            .iter()
            .any(|text| bytes.windows(text.len()).any(|window| window == *text))
    };
    files(folder).into_iter().filter(shows).collect()
}

fn copy(from: &Path, to: &Path) {
    for file in files(from) {
        let target = to.join(file.strip_prefix(from).expect("below"));
        std::fs::create_dir_all(target.parent().expect("a folder")).expect("folder");
        // The running node may remove a file meanwhile.
        if let Ok(bytes) = std::fs::read(&file) {
            std::fs::write(target, bytes).expect("copy");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_planted_shows_in_bucket_journal_and_spools() {
    // Goal: stolen bucket, journal and spools are worthless. Method: planted text in rows of small and spooled
    // commits, in names; every file of the bucket and of the journal folder is searched, sealed and, to see that
    // the search finds, plain. Key bytes are searched for too.
    let name = b"orders-of-acme";
    for keys in [masters(&[("k1", 1)]), MasterKeys::default()] {
        let folder = tempfile::tempdir().expect("tempdir");
        let engine = start(folder.path(), &keys).await;
        let database = make(&engine, "orders-of-acme").await;
        fill(&database).await;
        settled(folder.path()).await;
        // In the open chunk, not shipped.
        let sql = format!("INSERT INTO t(b) VALUES('{PLANTED}')");
        execute(&database, &sql, Durability::Local)
            .await
            .expect("local");
        let key: Vec<u8> = (1..=32).collect();
        let texts: [&[u8]; 3] = [&PLANTED.as_bytes()[..24], name, &key];
        let store = showing(&folder.path().join("store"), &texts);
        let journal = showing(&folder.path().join("data/journal"), &texts);
        if keys.is_empty() {
            assert!(!store.is_empty() && !journal.is_empty(), "the search finds");
        } else {
            assert_eq!((store, journal), (Vec::new(), Vec::new()));
        }
        engine.shutdown().await.expect("shutdown");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_starts_again_and_refuses_wrong_and_missing_keys() {
    let folder = tempfile::tempdir().expect("tempdir");
    let keys = masters(&[("k1", 1)]);
    let engine = start(folder.path(), &keys).await;
    let database = make(&engine, "orders").await;
    fill(&database).await;
    engine.shutdown().await.expect("shutdown");
    drop((database, engine));

    let before = objects(folder.path());
    let others = [
        MasterKeys::default(),
        masters(&[("k2", 1)]),
        masters(&[("k1", 77)]),
    ];
    for wrong in &others {
        let error = try_start(folder.path(), wrong).await.expect_err("refused");
        assert_eq!(error.code(), Code::KeyUnavailable, "{error}");
        assert!(
            error.to_string().contains("/key"),
            "names the object: {error}"
        );
        let error = Bucket::open_with_keys(&url(folder.path()), wrong)
            .await
            .expect_err("refused");
        assert_eq!(error.code(), Code::KeyUnavailable, "{error}");
    }
    let after = objects(folder.path());
    assert!(before == after, "a start that is refused changes nothing");

    let engine = start(folder.path(), &keys).await;
    let database = find(&engine, "orders").await.expect("database");
    assert_eq!(count(&database).await, 80);
    engine.shutdown().await.expect("shutdown");
    drop((database, engine));

    // The machine is lost; the bucket and its key are enough, and not less.
    std::fs::remove_dir_all(folder.path().join("data")).expect("lose the machine");
    let taking = |keys: &MasterKeys| Settings {
        take_over: TakeOver::All,
        ..settings(folder.path(), keys)
    };
    for wrong in &others {
        let refused = Engine::start(taking(wrong), Parts::production()).await;
        let code = refused.expect_err("refused").code();
        assert_eq!(code, Code::KeyUnavailable);
    }
    let engine = Engine::start(taking(&keys), Parts::production())
        .await
        .expect("take over");
    let database = find(&engine, "orders").await.expect("database");
    assert_eq!(count(&database).await, 80);
    run(&database, "INSERT INTO t(b) VALUES('after')").await;
    engine.shutdown().await.expect("shutdown");
    let bucket = Bucket::open_with_keys(&url(folder.path()), &keys)
        .await
        .expect("bucket");
    let found = bucket.find("acme", "orders").await.expect("find");
    let out = folder.path().join("out.db");
    bucket
        .restore(&found, At::Latest, &out, false)
        .await
        .expect("restore");
    let restored = rusqlite::Connection::open(&out).expect("open");
    let rows: i64 = restored
        .query_row("SELECT count(*) FROM t", [], |row| row.get(0))
        .expect("count");
    assert_eq!(rows, 81);
}

#[tokio::test(flavor = "multi_thread")]
async fn commits_in_a_sealed_chunk_survive_a_crash() {
    // Goal: what was answered at `local` is found in sealed chunks and spools by the next life. Method: the folder
    // and the bucket of a running node that ships nothing are copied, and a node is started on the copies.
    let folder = tempfile::tempdir().expect("tempdir");
    let crashed = tempfile::tempdir().expect("tempdir");
    let keys = masters(&[("k1", 1)]);
    let engine = start(folder.path(), &keys).await;
    let database = make(&engine, "orders").await;
    engine.shutdown().await.expect("shutdown");
    drop((database, engine));
    let slow = Settings {
        ship_interval: Duration::from_hours(1),
        ..settings(folder.path(), &keys)
    };
    let engine = Engine::start(slow, Parts::production())
        .await
        .expect("start");
    let database = find(&engine, "orders").await.expect("database");
    let large = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM c WHERE x < 60) \
                 INSERT INTO t(b) SELECT hex(randomblob(2000)) FROM c";
    for sql in ["INSERT INTO t(b) VALUES('small')", large] {
        execute(&database, sql, Durability::Local)
            .await
            .expect("local");
    }
    let spooled = files(&folder.path().join("data/journal"));
    assert!(
        spooled
            .iter()
            .any(|path| path.extension().is_some_and(|e| e == "spool"))
    );
    copy(folder.path(), crashed.path());
    // The WAL is not synced: what the journal holds must do.
    for file in files(&crashed.path().join("data/databases")) {
        if file.to_string_lossy().ends_with("-wal") {
            std::fs::remove_file(file).expect("lose the WAL");
        }
    }
    let error = try_start(crashed.path(), &masters(&[("k1", 9)])).await;
    assert_eq!(error.expect_err("refused").code(), Code::KeyUnavailable);
    let engine = start(crashed.path(), &keys).await;
    assert!(
        engine
            .notices()
            .iter()
            .any(|said| said.contains("2 commits"))
    );
    let database = find(&engine, "orders").await.expect("database");
    assert_eq!(count(&database).await, 61);
    run(&database, "INSERT INTO t(b) VALUES('on')").await;
    engine.shutdown().await.expect("shutdown");
}

#[tokio::test(flavor = "multi_thread")]
async fn encryption_is_turned_on_over_a_plain_bucket() {
    let folder = tempfile::tempdir().expect("tempdir");
    let engine = start(folder.path(), &MasterKeys::default()).await;
    let old = make(&engine, "old").await;
    let first = run(&old, &format!("INSERT INTO t(b) VALUES('{PLANTED}')")).await;
    engine.shutdown().await.expect("shutdown");
    drop((old, engine));
    let keys = masters(&[("k1", 1)]);
    let engine = start(folder.path(), &keys).await;
    assert!(
        engine
            .notices()
            .iter()
            .any(|said| said.contains("encryption is on"))
    );
    let (old, new) = (
        find(&engine, "old").await.expect("old"),
        make(&engine, "new").await,
    );
    fill(&old).await;
    fill(&new).await;
    let status = |row: &tidelog_engine::system::databases::DatabaseRow| {
        let (engine, namespace, id) = (engine.clone(), row.namespace, row.id);
        async move { engine.key_status(namespace, id).await.expect("status") }
    };
    assert_eq!(status(old.row()).await, None, "it was made before");
    let sealed = status(new.row()).await.expect("a key");
    assert_eq!((sealed.keys, sealed.plain_before), (1, false));
    // A plain database gets its first key; its plain history stays readable.
    let ids = (old.row().namespace, old.row().id);
    engine
        .rotate_data_key(ids.0, ids.1)
        .await
        .expect("first key");
    assert!(status(old.row()).await.expect("a key").plain_before);
    run(&old, "INSERT INTO t(b) VALUES('sealed from here')").await;
    engine.shutdown().await.expect("shutdown");
    drop((old, new, engine));
    let engine = start(folder.path(), &keys).await;
    let old = find(&engine, "old").await.expect("old");
    assert_eq!(count(&old).await, 82);
    engine.shutdown().await.expect("shutdown");
    let bucket = Bucket::open_with_keys(&url(folder.path()), &keys)
        .await
        .expect("bucket");
    for (name, at, rows) in [
        ("old", At::Bookmark(first), 1),
        ("old", At::Latest, 82),
        ("new", At::Latest, 80),
    ] {
        let found = bucket.find("acme", name).await.expect("find");
        let out = folder.path().join(format!("{name}-{rows}.db"));
        bucket
            .restore(&found, at, &out, false)
            .await
            .expect("restore");
        let restored = rusqlite::Connection::open(&out).expect("open");
        let count: i64 = restored
            .query_row("SELECT count(*) FROM t", [], |row| row.get(0))
            .expect("count");
        assert_eq!(count, rows, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn master_keys_are_rotated_and_a_rotation_cut_short_is_run_again() {
    let folder = tempfile::tempdir().expect("tempdir");
    let (one, both, two) = (
        masters(&[("k1", 1)]),
        masters(&[("k1", 1), ("k2", 90)]),
        masters(&[("k2", 90)]),
    );
    let engine = start(folder.path(), &one).await;
    let (a, b) = (make(&engine, "a").await, make(&engine, "b").await);
    fill(&a).await;
    fill(&b).await;
    engine.shutdown().await.expect("shutdown");
    let ids = (a.row().namespace, a.row().id);
    drop((a, b, engine));
    let immutable = |folder: &Path| -> Vec<(PathBuf, Vec<u8>)> {
        let mut found: Vec<_> = files(&folder.join("store"))
            .into_iter()
            .filter(|path| path.to_string_lossy().contains("/segments/"))
            .map(|path| (path.clone(), std::fs::read(path).expect("read")))
            .collect();
        found.sort();
        found
    };
    let before = immutable(folder.path());
    // Cut short: one database is done, and the process is gone.
    let store = Store::open(&url(folder.path()), StoreOptions::default()).expect("store");
    let store = store.with_keys(tidelog_archive::seal::Keyring::new(both.clone()));
    let half = tidelog_archive::seal::KeyStore::new(store, ids.0, ids.1);
    half.rewrap(&tidelog_archive::SystemEntropy)
        .await
        .expect("one of them");
    for alone in [&one, &two] {
        // Neither key is enough now: the databases it does not open are refused, by name, and no other.
        let opened = Bucket::open_with_keys(&url(folder.path()), alone).await;
        match opened {
            Ok(bucket) => {
                let found = bucket.find("acme", "a").await.expect("a name");
                let refused = bucket.history(&found).await.expect_err("wrapped by k2");
                assert_eq!(refused.code(), Code::KeyUnavailable, "{refused}");
                let found = bucket.find("acme", "b").await.expect("a name");
                bucket.history(&found).await.expect("still wrapped by k1");
            }
            Err(error) => assert_eq!(error.code(), Code::KeyUnavailable, "{error}"),
        }
    }
    let bucket = Bucket::open_with_keys(&url(folder.path()), &both)
        .await
        .expect("both");
    let due: Vec<bool> = bucket
        .key_status()
        .await
        .expect("status")
        .iter()
        .map(|found| {
            found
                .keys
                .as_ref()
                .is_some_and(|keys| keys.masters == ["k1"])
        })
        .collect();
    assert_eq!(
        due.iter().filter(|due| **due).count(),
        2,
        "the system's and b's"
    );
    assert_eq!(bucket.rewrap_keys().await.expect("again"), 2);
    assert_eq!(bucket.rewrap_keys().await.expect("done"), 0);
    assert_eq!(before, immutable(folder.path()), "no segment is rewritten");
    // The data folder's own key is wrapped anew by the next start that has both.
    let refused = try_start(folder.path(), &two).await.expect_err("local.key");
    assert_eq!(refused.code(), Code::KeyUnavailable);
    assert!(refused.to_string().contains("local.key"), "{refused}");
    start(folder.path(), &both)
        .await
        .shutdown()
        .await
        .expect("shutdown");
    let engine = start(folder.path(), &two).await;
    let a = find(&engine, "a").await.expect("a");
    assert_eq!(count(&a).await, 80);
    let refused = try_start(folder.path(), &one)
        .await
        .expect_err("the old key alone");
    assert!(matches!(
        refused.code(),
        Code::KeyUnavailable | Code::Refused
    ));
    engine.shutdown().await.expect("shutdown");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotated_data_key_seals_what_is_new_and_the_old_one_reads_what_was() {
    let folder = tempfile::tempdir().expect("tempdir");
    let keys = masters(&[("k1", 1)]);
    let engine = start(folder.path(), &keys).await;
    let database = make(&engine, "orders").await;
    fill(&database).await;
    let old = run(&database, "INSERT INTO t(b) VALUES('before')").await;
    let ids = (database.row().namespace, database.row().id);
    let first = engine
        .key_status(ids.0, ids.1)
        .await
        .expect("status")
        .expect("a key");
    engine.rotate_data_key(ids.0, ids.1).await.expect("rotate");
    let second = engine
        .key_status(ids.0, ids.1)
        .await
        .expect("status")
        .expect("a key");
    assert_eq!((first.keys, second.keys), (1, 2));
    let newest = second.newest.expect("a key").0;
    assert_ne!(first.newest.expect("a key").0, newest);
    fill(&database).await;
    engine.shutdown().await.expect("shutdown");
    drop((database, engine));
    // Objects name the key that seals them: both occur.
    let start_again = start(folder.path(), &keys).await;
    let database = find(&start_again, "orders").await.expect("database");
    assert_eq!(count(&database).await, 161);
    run(&database, "INSERT INTO t(b) VALUES('after')").await;
    assert_eq!(
        start_again.key_ages().databases,
        2,
        "the system's and this one"
    );
    start_again.shutdown().await.expect("shutdown");
    let named = files(&folder.path().join("store"))
        .iter()
        .filter(|path| path.to_string_lossy().contains("/manifest"))
        .filter(|path| std::fs::read(path).expect("read")[32..48] == newest.0)
        .count();
    assert_eq!(named, 1, "the manifest is sealed with the new key");
    let bucket = Bucket::open_with_keys(&url(folder.path()), &keys)
        .await
        .expect("bucket");
    let found = bucket.find("acme", "orders").await.expect("find");
    let out = folder.path().join("old.db");
    bucket
        .restore(&found, At::Bookmark(old), &out, false)
        .await
        .expect("restore");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_key_is_told_and_takes_no_other_database_down() {
    let folder = tempfile::tempdir().expect("tempdir");
    let keys = masters(&[("k1", 1)]);
    let engine = start(folder.path(), &keys).await;
    let (a, b) = (make(&engine, "a").await, make(&engine, "b").await);
    fill(&a).await;
    fill(&b).await;
    let place = folder
        .path()
        .join("store/tenants")
        .join(a.row().namespace.to_string())
        .join(a.row().id.to_string());
    engine.shutdown().await.expect("shutdown");
    drop((a, b, engine));
    let kept = std::fs::read(place.join("key")).expect("the key object");
    std::fs::remove_file(place.join("key")).expect("lose it");
    // The machine is lost too, so that the bucket is asked.
    std::fs::remove_dir_all(folder.path().join("data")).expect("lose the machine");
    let taking = Settings {
        take_over: TakeOver::All,
        ..settings(folder.path(), &keys)
    };
    let engine = Engine::start(taking, Parts::production())
        .await
        .expect("take over");
    let b = find(&engine, "b").await.expect("b");
    assert_eq!(count(&b).await, 80);
    let a = find(&engine, "a").await.expect("a name");
    let error = execute(&a, "SELECT count(*) FROM t", Durability::Local)
        .await
        .expect_err("no key");
    assert_eq!(error.code(), Code::KeyUnavailable, "{error:?}");
    assert_eq!(error.kind(), ErrorKind::KeyUnavailable);
    // Rotating does not paper over it.
    engine.shutdown().await.expect("shutdown");
    drop((a, b, engine));
    let bucket = Bucket::open_with_keys(&url(folder.path()), &keys)
        .await
        .expect("bucket");
    let found = bucket.find("acme", "a").await.expect("find");
    let error = bucket.rotate_data_key(&found).await.expect_err("lost");
    assert_eq!(error.code(), Code::KeyUnavailable, "{error}");
    // Put back, everything is there.
    std::fs::write(place.join("key"), kept).expect("put it back");
    let engine = start(folder.path(), &keys).await;
    let a = find(&engine, "a").await.expect("a");
    assert_eq!(count(&a).await, 80);
    engine.shutdown().await.expect("shutdown");
}

async fn succeeded(handle: Result<Handle, Error>) -> serde_json::Value {
    let ended = handle.expect("begun").wait(Duration::from_mins(1)).await;
    assert_eq!(ended.state, OperationState::Succeeded, "{ended:?}");
    ended.result.expect("a result")
}

async fn archived(database: &Database, format: Format) -> Archive {
    let new = NewArchive {
        at: At::Latest,
        format,
        name: None,
        retain_until: None,
        legal_hold: false,
        token: None,
        request: None,
    };
    let made = succeeded(database.archive_create(new).await).await;
    let id = made["archive"]["id"].as_str().expect("an id").to_owned();
    database.archive(&id).await.expect("the archive")
}

async fn content(database: &Database, id: &str, range: std::ops::Range<u64>) -> Vec<u8> {
    let content = database.archive_content(id).await.expect("content");
    let pieces: Vec<_> = content.stream(range).try_collect().await.expect("a stream");
    pieces.concat()
}

fn sha256(bytes: &[u8]) -> String {
    let sum = Sha256::digest(bytes);
    sum.iter()
        .fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn sealed_archives_show_nothing_outlive_rotations_and_go_with_their_database() {
    // Goal: an archive of a sealed database is worthless to a thief, and to its owner all that a plain one is, over
    // rotations of data keys and master keys, until the database is purged. Method: what lies in the bucket is
    // scanned; what is read back is compared by SHA-256, whole, in ranges, as a new database and by decrypting the file.
    let folder = tempfile::tempdir().expect("tempdir");
    let (one, two) = (masters(&[("k1", 1)]), masters(&[("k2", 90)]));
    let both = masters(&[("k1", 1), ("k2", 90)]);
    let engine = start(folder.path(), &one).await;
    let a = make(&engine, "a").await;
    fill(&a).await;
    // Several blocks of 256 KiB.
    run(&a, "INSERT INTO t(b) VALUES(randomblob(900000))").await;
    let (namespace, id) = (a.row().namespace, a.row().id);
    let first = archived(&a, Format::Sqlite).await;
    engine.rotate_data_key(namespace, id).await.expect("rotate");
    let second = archived(&a, Format::Sql).await;
    let keys = [&first, &second].map(|archive| archive.document.key_id.clone().expect("sealed"));
    assert_ne!(keys[0], keys[1], "each by the newest key of its time");
    let place = folder
        .path()
        .join(format!("store/tenants/{namespace}/{id}"));
    let stored = files(&place.join("archives"));
    assert_eq!(stored.len(), 4);
    for path in &stored {
        let bytes = std::fs::read(path).expect("read");
        assert!(bytes.starts_with(b"TIDELOG\0"), "{}", path.display());
        for plain in [
            PLANTED.as_bytes(),
            b"stored_sha256",
            b"SQLite format 3",
            &[0x28, 0xb5, 0x2f, 0xfd],
        ] {
            let shown = bytes.windows(plain.len()).any(|window| window == plain);
            assert!(!shown, "{}: {plain:?}", path.display());
        }
    }
    engine.shutdown().await.expect("shutdown");
    drop((a, engine));
    let bucket = Bucket::open_with_keys(&url(folder.path()), &both)
        .await
        .expect("bucket");
    assert!(bucket.rewrap_keys().await.expect("rewrap") >= 3);
    drop(bucket);
    // A start with both wraps the data folder's own key anew.
    let engine = start(folder.path(), &both).await;
    engine.shutdown().await.expect("shutdown");
    drop(engine);

    let engine = start(folder.path(), &two).await;
    let a = find(&engine, "a").await.expect("a");
    for archive in [&first, &second] {
        let document = &archive.document;
        let frame = content(&a, &document.id, 0..document.stored_bytes).await;
        assert_eq!(sha256(&frame), document.stored_sha256);
        let plain = zstd::decode_all(&frame[..]).expect("unpack");
        assert_eq!(sha256(&plain), document.sha256);
        let block = 256 << 10;
        let end = document.stored_bytes;
        for (from, to) in [
            (0, 1),
            (block - 3, block + 3),
            (end - 5, end),
            (17, end - 17),
        ] {
            let part = content(&a, &document.id, from..to).await;
            let (from, to) = (usize::try_from(from), usize::try_from(to));
            assert_eq!(part, frame[from.expect("small")..to.expect("small")]);
        }
        let verified = succeeded(a.archive_verify(&document.id, None).await).await;
        assert_eq!(verified["outcome"], "verified", "{verified}");
    }
    let name = first.document.id.clone();
    succeeded(
        engine
            .database_from_archive(namespace, "again", &name, None)
            .await,
    )
    .await;
    let again = find(&engine, "again").await.expect("again");
    assert_eq!(count(&again).await, 81);
    run(&a, "DELETE FROM t").await;
    let back = Rewind::to(RestoreTarget::Archive(name.clone()));
    succeeded(a.rewind(back).await).await;
    assert_eq!(count(&a).await, 81);

    // The file alone, as it lies in the bucket, with the key object beside it.
    let file = place.join(format!("archives/{name}.db.zst"));
    let key_object = |place: &Path| Bytes::from(std::fs::read(place.join("key")).expect("keys"));
    let (out, keys) = (folder.path().join("out"), key_object(&place));
    let opened = |compressed, masters: &MasterKeys, keys: &Bytes| {
        let _ = std::fs::remove_file(&out);
        archives::decrypt(&file, &out, keys, masters, compressed, &|_, _| ())
    };
    for (compressed, sum) in [
        (false, &first.document.sha256),
        (true, &first.document.stored_sha256),
    ] {
        let decrypted = opened(compressed, &two, &keys).expect("it opens");
        assert_eq!(decrypted.id, name);
        assert_eq!(sha256(&std::fs::read(&out).expect("read")), *sum);
    }
    for masters in [&one, &MasterKeys::default()] {
        let refused = opened(false, masters, &keys).expect_err("no key");
        assert_eq!(refused.code(), Code::KeyUnavailable, "{refused}");
    }

    // Damage, and one archive in another's place, are found by name and make nothing.
    let good = std::fs::read(&file).expect("read");
    let mut flipped = good.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    std::fs::write(&file, &flipped).expect("write");
    let refused = opened(false, &two, &keys).expect_err("damaged");
    assert_eq!(refused.code(), Code::ObjectCorrupt, "{refused}");
    let verified = succeeded(a.archive_verify(&name, None).await).await;
    assert_eq!(verified["outcome"], "mismatch", "{verified}");
    let made = engine
        .database_from_archive(namespace, "never", &name, None)
        .await;
    let failed = made.expect("begun").wait(Duration::from_mins(1)).await;
    assert_eq!(failed.error.expect("an error").code, "object-corrupt");
    let missing = find(&engine, "never").await.expect_err("nothing was made");
    assert_eq!(missing.code(), Code::DatabaseNotFound);
    std::fs::write(&file, &good).expect("put it back");

    // Purged: the archives are gone, and a thief's copies open no more.
    let copy = folder.path().join("copy");
    std::fs::write(&copy, &good).expect("write");
    let said = succeeded(engine.database_purge(namespace, "a", None).await).await;
    assert_eq!(said["archives_deleted"], 2, "{said}");
    assert!(files(&place.join("archives")).is_empty());
    let keys = key_object(&place);
    let refused = archives::decrypt(
        &copy,
        &out.with_extension("2"),
        &keys,
        &both,
        false,
        &|_, _| (),
    );
    let refused = refused.expect_err("its key is destroyed");
    assert_eq!(refused.code(), Code::KeyUnavailable, "{refused}");
    engine.shutdown().await.expect("shutdown");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sealed_archive_that_was_changed_is_refused_by_name() {
    // Goal: no byte of a sealed archive changes, goes or is another's unnoticed. Method: flips, cuts, additions, an
    // archive of another moment and one of another database in its place; a verification, a database made of it, a
    // download and the decryption of the file alone each refuse it; put back, it is whole.
    let folder = tempfile::tempdir().expect("tempdir");
    let keys = masters(&[("k1", 1)]);
    let engine = start(folder.path(), &keys).await;
    let (a, b) = (make(&engine, "a").await, make(&engine, "b").await);
    run(&a, "INSERT INTO t(b) VALUES(randomblob(700000))").await;
    let first = archived(&a, Format::Sqlite).await;
    run(&a, "INSERT INTO t(b) VALUES('later')").await;
    let second = archived(&a, Format::Sqlite).await;
    run(&b, "INSERT INTO t(b) VALUES(randomblob(700000))").await;
    let foreign = archived(&b, Format::Sqlite).await;
    let namespace = a.row().namespace;
    let file = |archive: &Archive| folder.path().join("store").join(archive.key().to_string());
    let read = |archive: &Archive| std::fs::read(file(archive)).expect("read");
    let good = read(&first);
    let flipped = |at: usize| {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        bytes
    };
    let end = good.len();
    let changed = [
        ("a flip in the header", flipped(70)),
        ("a flip in a block", flipped(end / 2)),
        ("a flip at the end", flipped(end - 1)),
        ("the last byte gone", good[..end - 1].to_vec()),
        ("half of it", good[..end / 2].to_vec()),
        ("nothing", Vec::new()),
        ("a byte more", [&good[..], &[0]].concat()),
        ("another moment's", read(&second)),
        ("another database's", read(&foreign)),
    ];
    let id = first.document.id.clone();
    let key_object = file(&first).with_file_name("../key");
    let key_object = Bytes::from(std::fs::read(key_object).expect("the key object"));
    let out = folder.path().join("out");
    for (what, bytes) in changed {
        std::fs::write(file(&first), &bytes).expect("write");
        let verified = succeeded(a.archive_verify(&id, None).await).await;
        assert_eq!(verified["outcome"], "mismatch", "{what}: {verified}");
        let made = engine.database_from_archive(namespace, "never", &id, None);
        let mut made = made.await.expect("begun");
        let failed = made.wait(Duration::from_mins(1)).await;
        let why = failed.error.expect("an error");
        assert_eq!(why.code, "object-corrupt", "{what}");
        assert!(why.detail.contains(&id), "{what}: {}", why.detail);
        // What is given out is read in ranges: a byte behind the last one is in none of them.
        if let Ok(content) = a.archive_content(&id).await {
            let whole = 0..first.document.stored_bytes;
            let pieces: Result<Vec<_>, _> = content.stream(whole).try_collect().await;
            match pieces {
                Ok(pieces) => {
                    assert_eq!(what, "a byte more", "it was given out");
                    assert_eq!(sha256(&pieces.concat()), first.document.stored_sha256);
                }
                Err(error) => assert!(!error.to_string().is_empty(), "{what}"),
            }
        }
        let _ = std::fs::remove_file(&out);
        let decrypted =
            archives::decrypt(&file(&first), &out, &key_object, &keys, false, &|_, _| ());
        // The file alone is what it says it is: an archive of another moment, whole.
        if what != "another moment's" {
            let refused = decrypted.expect_err(what);
            assert_ne!(refused.code(), Code::Internal, "{what}: {refused:?}");
            assert!(!out.exists(), "{what}: something was written");
        }
    }
    std::fs::write(file(&first), &good).expect("put it back");
    let verified = succeeded(a.archive_verify(&id, None).await).await;
    assert_eq!(verified["outcome"], "verified", "{verified}");
    engine.shutdown().await.expect("shutdown");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_of_a_data_key_cut_short_loses_nothing() {
    // Goal: a process that dies between writing a new data key and using it leaves both usable. Method: the key is
    // added behind the node's back, as by a process that died there; the next life writes with it and reads the old.
    let folder = tempfile::tempdir().expect("tempdir");
    let keys = masters(&[("k1", 1)]);
    let engine = start(folder.path(), &keys).await;
    let database = make(&engine, "orders").await;
    fill(&database).await;
    let ids = (database.row().namespace, database.row().id);
    engine.shutdown().await.expect("shutdown");
    drop((database, engine));
    let store = Store::open(&url(folder.path()), StoreOptions::default()).expect("store");
    let store = store.with_keys(tidelog_archive::seal::Keyring::new(keys.clone()));
    let half = tidelog_archive::seal::KeyStore::new(store, ids.0, ids.1);
    let entropy = tidelog_archive::SystemEntropy;
    let now = tidelog_wal::Timestamp::from_micros(1);
    let newest = half.rotate(now, &entropy).await.expect("added").id;
    drop(half);
    let engine = start(folder.path(), &keys).await;
    let database = find(&engine, "orders").await.expect("there");
    assert_eq!(count(&database).await, 80);
    fill(&database).await;
    let status = engine.key_status(ids.0, ids.1).await.expect("status");
    let status = status.expect("keys");
    assert_eq!((status.keys, status.newest.expect("one").0), (2, newest));
    engine.rotate_data_key(ids.0, ids.1).await.expect("again");
    run(&database, "INSERT INTO t(b) VALUES('on')").await;
    engine.shutdown().await.expect("shutdown");
    let bucket = Bucket::open_with_keys(&url(folder.path()), &keys).await;
    let bucket = bucket.expect("bucket");
    let found = bucket.find("acme", "orders").await.expect("find");
    let out = folder.path().join("out.db");
    let restored = bucket.restore(&found, At::Latest, &out, false).await;
    restored.expect("restore");
    let restored = rusqlite::Connection::open(&out).expect("open");
    let rows: i64 = restored
        .query_row("SELECT count(*) FROM t", [], |row| row.get(0))
        .expect("count");
    assert_eq!(rows, 161);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shredded_database_opens_from_no_copy_of_the_bucket() {
    // Goal: one write makes a deleted tenant unreadable. Method: its keys are destroyed; then, from the raw bytes of
    // the bucket and every master key, each of its objects and journal sections is tried. Before, all open.
    let folder = tempfile::tempdir().expect("tempdir");
    let keys = sealed_masters();
    let engine = start(folder.path(), &keys).await;
    let (gone, stays) = (make(&engine, "gone").await, make(&engine, "stays").await);
    fill(&gone).await;
    fill(&stays).await;
    settled(folder.path()).await;
    let (namespace, id) = (gone.row().namespace, gone.row().id);
    let refused = engine
        .destroy_keys(namespace, id)
        .await
        .expect_err("in use");
    assert_eq!(refused.code(), Code::Refused);
    let before = tempfile::tempdir().expect("tempdir");
    copy(&folder.path().join("store"), &before.path().join("store"));
    engine
        .database_delete(namespace, "gone")
        .await
        .expect("delete");
    engine.destroy_keys(namespace, id).await.expect("destroy");
    engine.destroy_keys(namespace, id).await.expect("twice");
    // Only the key object was written: everything else still lies there.
    assert_eq!(opened(before.path(), &keys, (namespace, id)).await.1, 0);
    let (opens, refused) = opened(folder.path(), &keys, (namespace, id)).await;
    assert_eq!(opens, 0, "of {refused} objects and sections");
    assert!(refused >= 3, "there was something to open: {refused}");
    // Nobody else notices.
    run(&stays, "INSERT INTO t(b) VALUES('on')").await;
    assert_eq!(count(&stays).await, 81);
    engine.shutdown().await.expect("shutdown");
    drop((gone, stays, engine));
    let engine = start(folder.path(), &keys).await;
    let stays = find(&engine, "stays").await.expect("stays");
    assert_eq!(count(&stays).await, 81);
    engine.shutdown().await.expect("shutdown");
}

/// How many objects and journal sections of a database open from the raw bytes of a bucket, and how many are refused
/// for want of a key.
async fn opened(
    folder: &Path,
    keys: &MasterKeys,
    (namespace, id): (tidelog_wal::NamespaceId, tidelog_wal::DatabaseId),
) -> (usize, usize) {
    use tidelog_archive::envelope::{Expect, FormatError, Header, Object, ObjectKind};
    use tidelog_archive::journal::{JournalObject, slot_kind};
    let bucket = Bucket::open_with_keys(&url(folder), keys)
        .await
        .expect("bucket");
    let store = bucket.store();
    let root = folder.join("store");
    let (mut opens, mut refused) = (0, 0);
    let mut judge = |result: Result<(), FormatError>| match result {
        Ok(()) => opens += 1,
        Err(FormatError::KeyUnavailable { .. }) => refused += 1,
        Err(error) => panic!("{error}"),
    };
    for file in files(&root) {
        let key = file.strip_prefix(&root).expect("below");
        let bytes: Bytes = std::fs::read(&file).expect("read").into();
        match Key::parse(&key.to_string_lossy()) {
            Some(Key::Journal(term, seq)) if slot_kind(&bytes) == Ok(ObjectKind::Journal) => {
                store.unlock_head(&bytes).await.expect("the system's key");
                let journal =
                    JournalObject::decode(&bytes, term, seq, store.keys()).expect("index");
                for section in &journal.sections {
                    let meta = &section.meta;
                    if meta.database != id {
                        continue;
                    }
                    store
                        .unlock(meta.namespace, meta.database, meta.key_id)
                        .await
                        .expect("read the key object");
                    let stored = journal.section_bytes(section).expect("whole");
                    let mut blocks = journal.blocks(section, &stored);
                    judge(blocks.next().expect("a block").map(drop));
                }
            }
            Some(Key::Database(_, database, _)) if database == id => {
                let header = Header::decode(&bytes).expect("header");
                if header.kind == ObjectKind::Key {
                    continue;
                }
                store
                    .unlock_head(&bytes)
                    .await
                    .expect("read the key object");
                let expect = Expect::database(header.kind, namespace, id);
                judge(Object::open(&bytes, expect, store.keys()).map(drop));
            }
            _ => {}
        }
    }
    (opens, refused)
}
