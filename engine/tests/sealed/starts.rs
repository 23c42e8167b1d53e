//! Starts: with the keys everything is there again; without them, with wrong ones, or over a bucket that somebody made
//! plain, a node claims nothing and takes nothing for its own.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use tidelog_archive::envelope::WriteId;
use tidelog_archive::key::Key;
use tidelog_archive::manifest::Manifest;
use tidelog_archive::seal::Stamp;
use tidelog_engine::bucket::{At, Bucket};
use tidelog_engine::{Code, Durability, Engine, MasterKeys, Parts, Settings, TakeOver};
use tidelog_testkit::faultstore::{Fault, Op, script};
use tidelog_wal::{DatabaseId, NamespaceId};

use super::world::{
    PLANTED, copy, count, execute, faulty, files, fill, find, make, masters, run, settings, start,
    try_start, url,
};

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
