//! Keys that are rotated, damaged and lost: what was sealed under an old one stays readable, and one that is lost takes
//! its own database down and no other.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tidelog_archive::ErrorKind;
use tidelog_archive::store::{Store, StoreOptions};
use tidelog_engine::bucket::{At, Bucket};
use tidelog_engine::{Code, Durability, Engine, Parts, Settings, TakeOver};

use super::world::{
    count, execute, files, fill, find, make, masters, run, settings, start, try_start, url,
};

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
    let deadline = tokio::time::Instant::now() + Duration::from_mins(3);
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
