//! Encryption through the engine: nothing shows in bucket, journal and spools; keys are needed, rotated, lost and
//! destroyed, and each behaves as said.
//!
//! These tests bring their own master keys; `TIDELOG_TEST_SEALED=1` runs the other suites of a whole node with encryption on.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt as _;
use sha2::{Digest as _, Sha256};
use tidelog_archive::ErrorKind;
use tidelog_archive::envelope::WriteId;
use tidelog_archive::key::Key;
use tidelog_archive::manifest::Manifest;
use tidelog_archive::seal::Stamp;
use tidelog_archive::store::{Store, StoreOptions, StoreSettings};
use tidelog_engine::bucket::{At, Bucket};
use tidelog_engine::operations::{Handle, OperationState};
use tidelog_engine::request::{Access, Request};
use tidelog_engine::travel::archives::{self, Archive, Format, NewArchive};
use tidelog_engine::travel::deletion::Purge;
use tidelog_engine::travel::rewind::{RestoreTarget, Rewind};
use tidelog_engine::travel::verify::{Level, NewVerification};
use tidelog_engine::{
    Code, Database, Durability, Engine, Error, Limits, MasterKey, MasterKeys, NewDatabase, Params,
    Parts, Settings, Statement, TakeOver, Value,
};
use tidelog_testkit::faultstore::{Fault, FaultStore, Op, Plan, Shared, script};
use tidelog_testkit::sealing::sealed_masters;
use tidelog_wal::{DatabaseId, NamespaceId, Position};

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
    // commits, in names; every file of the bucket and of the data folder but SQLite's own is searched, first with
    // everything stored, then while a node ships nothing, so that a spool stands. Sealed, and, to see that the search
    // finds, plain. Key bytes are searched for too.
    let name = b"orders-of-acme";
    let is_spool = |path: &PathBuf| path.extension().is_some_and(|e| e == "spool");
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
        drop((database, engine));

        let slow = Settings {
            ship_interval: Duration::from_hours(1),
            ..settings(folder.path(), &keys)
        };
        let engine = Engine::start(slow, Parts::production()).await;
        let engine = engine.expect("start");
        let database = find(&engine, "orders-of-acme").await.expect("there");
        let sql = format!(
            "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM c WHERE x < 60) \
             INSERT INTO t(b) SELECT hex(randomblob(2000)) || '{PLANTED}' FROM c"
        );
        execute(&database, &sql, Durability::Local)
            .await
            .expect("local");
        let spools = files(&folder.path().join("data/journal"));
        let spools: Vec<PathBuf> = spools.into_iter().filter(is_spool).collect();
        assert!(!spools.is_empty(), "a spool stands");
        let shown = outside_sqlite(folder.path(), &texts);
        if keys.is_empty() {
            let found = spools.iter().any(|spool| shown.contains(spool));
            assert!(found, "the search finds it: {shown:?}");
        } else {
            assert_eq!(shown, Vec::<PathBuf>::new());
        }
        engine.shutdown().await.expect("shutdown");
    }
}

/// The files of the data folder that hold one of `texts`, but for those of the databases.
fn outside_sqlite(folder: &Path, texts: &[&[u8]]) -> Vec<PathBuf> {
    let data = folder.join("data");
    let mut shown = showing(&data, texts);
    shown.retain(|path| !path.starts_with(data.join("databases")));
    shown
}

/// A store in memory that does as `plan` says, and gives up soon.
fn faulty(plan: Box<dyn Plan>) -> (Arc<FaultStore>, Store) {
    let faults = FaultStore::in_memory(plan);
    let settings = StoreSettings {
        attempts_max: 2,
        backoff_max: Duration::from_millis(10),
        ..StoreSettings::default()
    };
    let options = StoreOptions {
        settings,
        ..StoreOptions::default()
    };
    let objects = Arc::new(Shared(Arc::clone(&faults)));
    let store = Store::from_object_store(objects, "", options).expect("a store");
    (faults, store)
}

#[tokio::test(flavor = "multi_thread")]
async fn beside_the_databases_the_scratch_copies_of_long_work_alone_show_text() {
    // Goal: docs/security.md names every place where plain copies stand. Method: the data folder is searched while the
    // PUT of an archive is held up, and again and again while it is verified and the database is restored in place.
    let folder = tempfile::tempdir().expect("tempdir");
    let (faults, store) = faulty(script(|call| {
        let archive = call.key.contains("/archives/");
        let writes = matches!(call.op, Op::Put | Op::Upload);
        if archive && writes {
            Fault::Delay(Duration::from_secs(2))
        } else {
            Fault::None
        }
    }));
    let keys = masters(&[("k1", 1)]);
    let started = Engine::start_on(settings(folder.path(), &keys), Parts::production(), store);
    let engine = started.await.expect("start");
    let database = make(&engine, "orders").await;
    let middle = run(&database, &format!("INSERT INTO t(b) VALUES('{PLANTED}')")).await;
    fill(&database).await;
    let texts: [&[u8]; 1] = [&PLANTED.as_bytes()[..24]];
    let (data, work) = (folder.path().join("data"), folder.path().join("data/work"));
    let allowed = |shown: &[PathBuf]| {
        let allowed = ["work", "scratch", "temp"].map(|name| data.join(name));
        let strange = shown
            .iter()
            .find(|path| !allowed.iter().any(|folder| path.starts_with(folder)));
        assert_eq!(strange, None);
    };

    let new = NewArchive {
        at: At::Latest,
        format: Format::Sqlite,
        name: None,
        retain_until: None,
        legal_hold: false,
        token: None,
        request: None,
    };
    let making = database.archive_create(new).await;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    while !faults
        .calls()
        .iter()
        .any(|call| call.key.contains("/archives/") && matches!(call.op, Op::Put | Op::Upload))
    {
        assert!(tokio::time::Instant::now() < deadline, "no archive comes");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let shown = outside_sqlite(folder.path(), &texts);
    assert!(
        shown.iter().any(|path| path.starts_with(&work)),
        "the copy that is packed: {shown:?}"
    );
    allowed(&shown);
    let made = succeeded(making).await;
    let id = made["archive"]["id"].as_str().expect("an id").to_owned();
    for round in 0..3 {
        let begun = match round {
            0 => database.archive_verify(&id, None).await,
            1 => database.verify(NewVerification::of(Level::Full)).await,
            _ => {
                let target = RestoreTarget::At(At::Bookmark(middle));
                database.rewind(Rewind::to(target)).await
            }
        };
        let mut handle = begun.expect("begun");
        let ended = loop {
            allowed(&outside_sqlite(folder.path(), &texts));
            let soon = handle.wait(Duration::from_millis(1)).await;
            if soon.state.is_final() {
                break soon;
            }
        };
        assert_eq!(ended.state, OperationState::Succeeded, "{ended:?}");
    }
    assert_eq!(count(&database).await, 1);
    drop((database, engine.shutdown().await));
    assert_eq!(outside_sqlite(folder.path(), &texts), Vec::<PathBuf>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_whose_self_test_fails_claims_nothing() {
    // Goal: a store that does not give back what was sealed is found before anything depends on it. Method: a bit of
    // the test's object is flipped, or its end is cut off; no object of a journal was written then, so no term claimed.
    for fault in [Fault::BitRot, Fault::CutBody, Fault::Denied] {
        let folder = tempfile::tempdir().expect("tempdir");
        let (faults, store) = faulty(script(move |call| {
            let of_it = call.key.starts_with("probe/") && call.key.ends_with("-sealed");
            if of_it && call.op == Op::Get {
                fault
            } else {
                Fault::None
            }
        }));
        let settings = settings(folder.path(), &masters(&[("k1", 1)]));
        let refused = Engine::start_on(settings.clone(), Parts::production(), store.clone()).await;
        let refused = refused.expect_err("refused");
        assert!(refused.to_string().contains("self-test"), "{refused}");
        if fault == Fault::BitRot {
            assert_eq!(refused.code(), Code::Refused, "{refused}");
        }
        let written = faults.calls().into_iter();
        let written = written.filter(|call| matches!(call.op, Op::Put | Op::Upload));
        for call in written {
            assert!(!call.key.starts_with("journal/"), "{fault:?}: {call:?}");
        }
        // It was the store alone: the next start finds everything in order.
        faults.set_plan(script(|_| Fault::None));
        let engine = Engine::start_on(settings, Parts::production(), store).await;
        engine.expect("start").shutdown().await.expect("shutdown");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purge_says_whether_and_until_when_old_versions_live() {
    // Goal: nobody takes a purge for more than it is. Method: one in a bucket that keeps versions, without and with
    // the rule that removes them said, and one in a bucket that keeps none.
    for (versions, rule) in [(true, None), (true, Some(3)), (false, Some(3))] {
        let folder = tempfile::tempdir().expect("tempdir");
        let (faults, store) = faulty(script(|_| Fault::None));
        if versions {
            faults.keep_versions();
        }
        let settings = Settings {
            old_versions: rule.map(|days| Duration::from_secs(days * 86_400)),
            ..settings(folder.path(), &masters(&[("k1", 1)]))
        };
        let engine = Engine::start_on(settings, Parts::production(), store).await;
        let engine = engine.expect("start");
        let database = make(&engine, "orders").await;
        let namespace = database.row().namespace;
        drop(database);
        let said = succeeded(
            engine
                .database_purge(namespace, "orders", Purge::default())
                .await,
        )
        .await;
        let old = &said["old_versions"];
        assert_eq!(old["kept"], versions, "{said}");
        assert_eq!(old["gone_at"].is_string(), versions && rule.is_some());
        if let Some(gone) = old["gone_at"].as_str() {
            let now = said["objects_gone_at"].as_str().expect("a time");
            assert!(gone[..10] > now[..10], "{said}");
        }
        let copies = said["copies"].as_str().expect("words");
        assert_eq!(copies.contains("open with the master key"), versions);
        let said = succeeded(engine.namespace_purge(namespace, None).await).await;
        assert_eq!(said["old_versions"]["kept"], versions, "{said}");
        engine.shutdown().await.expect("shutdown");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purge_that_may_not_delete_says_so_and_is_ended_once_it_may() {
    // Goal: a bucket that refuses deletions, by its policy or a lock, keeps noise alone, and the answer says what was
    // refused. Method: deletions below the database are forbidden; its keys are destroyed all the same; then they are
    // allowed, and the purge is asked for again.
    let folder = tempfile::tempdir().expect("tempdir");
    let (faults, store) = faulty(script(|call| {
        if call.op == Op::Delete && call.key.starts_with("tenants/") {
            Fault::Denied
        } else {
            Fault::None
        }
    }));
    let settings = settings(folder.path(), &masters(&[("k1", 1)]));
    let engine = Engine::start_on(settings, Parts::production(), store).await;
    let engine = engine.expect("start");
    let database = make(&engine, "orders").await;
    archived(&database, Format::Sqlite).await;
    let (namespace, id) = (database.row().namespace, database.row().id);
    drop(database);
    let begun = engine
        .database_purge(namespace, "orders", Purge::default())
        .await;
    let ended = begun.expect("begun").wait(Duration::from_mins(1)).await;
    let why = ended.error.expect("it may not delete");
    assert_eq!(why.code, "storage-unavailable", "{}", why.detail);
    assert!(why.detail.contains("not permitted"), "{}", why.detail);
    let status = engine.key_status(namespace, id).await.expect("status");
    assert!(status.expect("it was sealed").shredded.is_some());
    faults.set_plan(script(|_| Fault::None));
    let said = succeeded(
        engine
            .database_purge(namespace, "orders", Purge::default())
            .await,
    )
    .await;
    assert_eq!(said["purged"], "orders", "{said}");
    find(&engine, "orders").await.expect_err("gone");
    engine.shutdown().await.expect("shutdown");
}

/// The manifest of a database as somebody who can write the bucket would forge it: plain.
async fn forged(bucket: &Bucket, (namespace, id): (NamespaceId, DatabaseId)) -> Bytes {
    let (store, key) = (bucket.store(), Key::manifest(namespace, id).to_string());
    let bytes = store.get(&key).await.expect("the manifest");
    store.unlock_head(&bytes).await.expect("its key");
    let (manifest, _) = Manifest::decode(&bytes, namespace, id, store.keys()).expect("read");
    let plain = manifest.encode(Stamp::plain(WriteId([9; 16])));
    plain.expect("encode").bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_without_its_key_objects_takes_nothing_plain_for_its_own() {
    // Goal: whoever can write the bucket and has no key makes no sealed history plain by deleting key objects. Method:
    // a tenant's is deleted and a plain manifest put in its place, then the system's; the commands on the bucket, a
    // node with its folder and one without are asked. Put back, everything is there.
    let folder = tempfile::tempdir().expect("tempdir");
    let keys = masters(&[("k1", 1)]);
    let engine = start(folder.path(), &keys).await;
    let a = make(&engine, "a").await;
    fill(&a).await;
    let ids = (a.row().namespace, a.row().id);
    engine.shutdown().await.expect("shutdown");
    drop((a, engine));
    let opened = Bucket::open_with_keys(&url(folder.path()), &keys).await;
    let bucket = opened.expect("bucket");
    let system = bucket.system();
    let system = (system.namespace_id, system.id);
    let lies = [forged(&bucket, ids).await, forged(&bucket, system).await];
    drop(bucket);
    let places = [ids, system].map(|(namespace, id)| {
        let place = format!("store/tenants/{namespace}/{id}");
        folder.path().join(place)
    });
    let taking = Settings {
        take_over: TakeOver::All,
        data: folder.path().join("elsewhere"),
        ..settings(folder.path(), &keys)
    };
    for (place, lie) in places.iter().zip(&lies) {
        let kept = ["key", "manifest"].map(|name| std::fs::read(place.join(name)).expect("read"));
        std::fs::remove_file(place.join("key")).expect("delete it");
        std::fs::write(place.join("manifest"), lie).expect("forge");
        let before = objects(folder.path());
        if *place == places[0] {
            let opened = Bucket::open_with_keys(&url(folder.path()), &keys).await;
            let bucket = opened.expect("the names are there");
            let found = bucket.find("acme", "a").await.expect("a name");
            let refused = bucket.history(&found).await.expect_err("forged");
            assert_eq!(refused.code(), Code::KeyUnavailable, "{refused}");
            let refused = bucket.rotate_data_key(&found).await.expect_err("lost");
            assert_eq!(refused.code(), Code::KeyUnavailable, "{refused}");
            drop(bucket);
            for settings in [settings(folder.path(), &keys), taking.clone()] {
                let engine = Engine::start(settings, Parts::production()).await;
                let engine = engine.expect("the system's key is there");
                let a = find(&engine, "a").await.expect("a name");
                let refused = execute(&a, "SELECT count(*) FROM t", Durability::Local).await;
                let refused = refused.expect_err("forged");
                assert_eq!(refused.code(), Code::KeyUnavailable, "{refused}");
                let refused = engine.rotate_data_key(ids.0, ids.1).await;
                let refused = refused.expect_err("lost");
                assert_eq!(refused.code(), Code::KeyUnavailable, "{refused}");
                engine.shutdown().await.expect("shutdown");
            }
            std::fs::remove_dir_all(&taking.data).expect("only to look");
        } else {
            // Those who ask for no key are served no forgery either.
            for keys in [&keys, &MasterKeys::default()] {
                let refused = try_start(folder.path(), keys).await.expect_err("forged");
                assert_eq!(refused.code(), Code::KeyUnavailable, "{refused}");
                assert!(refused.to_string().contains("/key"), "{refused}");
            }
            assert!(before == objects(folder.path()), "nothing was changed");
        }
        assert!(!place.join("key").exists(), "no other took its place");
        for (name, bytes) in ["key", "manifest"].iter().zip(kept) {
            std::fs::write(place.join(name), bytes).expect("put it back");
        }
        let back = Settings {
            take_over: TakeOver::All,
            ..settings(folder.path(), &keys)
        };
        let engine = Engine::start(back, Parts::production()).await;
        let engine = engine.expect("start");
        let a = find(&engine, "a").await.expect("a");
        assert_eq!(count(&a).await, 80);
        engine.shutdown().await.expect("shutdown");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_key_object_keeps_no_other_from_a_new_master_key() {
    // Goal: a rotation of the master key gets through whatever one object is like, and names it. Method: the key object
    // of the first of three databases is damaged; the rotation is run, and run again with the object put back.
    let folder = tempfile::tempdir().expect("tempdir");
    let (one, both) = (masters(&[("k1", 1)]), masters(&[("k1", 1), ("k2", 90)]));
    let engine = start(folder.path(), &one).await;
    let mut places = Vec::new();
    for name in ["a", "b", "c"] {
        let database = make(&engine, name).await;
        let (namespace, id) = (database.row().namespace, database.row().id);
        let place = format!("store/tenants/{namespace}/{id}/key");
        places.push(folder.path().join(place));
    }
    engine.shutdown().await.expect("shutdown");
    drop(engine);
    let good = std::fs::read(&places[0]).expect("read");
    let mut damaged = good.clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    std::fs::write(&places[0], &damaged).expect("damage it");
    let bucket = Bucket::open_with_keys(&url(folder.path()), &both).await;
    let bucket = bucket.expect("bucket");
    let refused = bucket.rewrap_keys().await.expect_err("one is damaged");
    assert_eq!(refused.code(), Code::ObjectCorrupt, "{refused}");
    assert_eq!(
        refused.members()["rewrapped"],
        3,
        "the system's, b's and c's"
    );
    assert_eq!(
        refused.members()["databases"],
        serde_json::json!(["acme/a"])
    );
    assert!(refused.to_string().contains("acme/a"), "{refused}");
    std::fs::write(&places[0], &good).expect("put it back");
    assert_eq!(bucket.rewrap_keys().await.expect("again"), 1);
    for found in bucket.key_status().await.expect("status") {
        assert_eq!(found.keys.expect("sealed").masters, ["k2"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_node_seals_with_a_new_data_key_once_it_opens_the_database_again() {
    // Goal: a rotation from the command line needs no restart. Method: the key is added behind the node's back; the
    // database is closed as idle between writes, until a segment names the new key. Old segments name the old one.
    let folder = tempfile::tempdir().expect("tempdir");
    let keys = masters(&[("k1", 1)]);
    let quick = Settings {
        idle_close: Duration::from_millis(20),
        idle_sweep: Duration::from_millis(5),
        settle_bytes: 1,
        settle_age: Duration::from_millis(50),
        ..settings(folder.path(), &keys)
    };
    let engine = Engine::start(quick, Parts::production()).await;
    let engine = engine.expect("start");
    let database = make(&engine, "orders").await;
    fill(&database).await;
    let (namespace, id) = (database.row().namespace, database.row().id);
    let place = format!("store/tenants/{namespace}/{id}/segments");
    let place = folder.path().join(place);
    let named = || -> BTreeSet<Vec<u8>> {
        let segments = files(&place);
        let heads = segments.iter().filter_map(|path| std::fs::read(path).ok());
        heads.map(|bytes| bytes[32..48].to_vec()).collect()
    };
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    while named().is_empty() {
        assert!(tokio::time::Instant::now() < deadline, "nothing is settled");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let old = named();
    assert_eq!(old.len(), 1, "one key so far");
    let bucket = Bucket::open_with_keys(&url(folder.path()), &keys).await;
    let bucket = bucket.expect("bucket");
    let found = bucket.find("acme", "orders").await.expect("find");
    bucket.rotate_data_key(&found).await.expect("rotate");
    let status = bucket.key_status_of(&found).await.expect("status");
    let newest = status.expect("keys").newest.expect("a key").0;
    assert!(!old.contains(&newest.0[..]));
    while !named().contains(&newest.0[..]) {
        assert!(
            tokio::time::Instant::now() < deadline,
            "no segment has the new key"
        );
        run(&database, "INSERT INTO t(b) VALUES('on')").await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    engine.shutdown().await.expect("shutdown");
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
    let row = a.row();
    let error = engine.rotate_data_key(row.namespace, row.id).await;
    assert_eq!(error.expect_err("lost").code(), Code::KeyUnavailable);
    assert!(!place.join("key").exists(), "no other takes its place");
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
    let said = succeeded(
        engine
            .database_purge(namespace, "a", Purge::default())
            .await,
    )
    .await;
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
    (namespace, id): (NamespaceId, DatabaseId),
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
