//! Settling what an earlier life left opens no database: the manifest tells whether an image is due.

mod rig;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use tidelog_archive::env::SystemEntropy;
use tidelog_archive::manifest::ManifestStore;
use tidelog_archive::restore::FileSink;
use tidelog_archive::seal::Keyring;
use tidelog_archive::store::{Store, StoreOptions};
use tidelog_engine::bucket::{At, Bucket};
use tidelog_engine::{Durability, Engine, NewDatabase, Parts, Settings};
use tidelog_testkit::sealing::masters;

const DATABASES: usize = 4;

#[tokio::test(flavor = "multi_thread")]
async fn settling_at_a_start_leaves_no_database_open() {
    let folder = tempfile::tempdir().expect("tempdir");
    let late = Settings {
        settle_bytes: 1 << 40,
        settle_age: Duration::from_hours(1),
        ..rig::settings(folder.path())
    };
    let files = late.data.join("databases");
    let engine = Engine::start(late.clone(), Parts::production())
        .await
        .expect("start");
    let namespace = engine.namespace_create("acme").await.expect("namespace").id;
    let mut last = Vec::new();
    for n in 0..DATABASES {
        let new = NewDatabase::named(format!("d{n}"));
        let database = engine.database_create(namespace, new).await;
        let database = database.expect("create");
        rig::run(&database, "CREATE TABLE t(a)", Durability::Local).await;
        let insert = "INSERT INTO t VALUES(1)";
        let at = rig::run(&database, insert, Durability::Remote).await;
        last.push((database.row().id, at));
    }
    engine.shutdown().await.expect("shutdown");
    drop(engine);

    let at_once = Settings {
        settle_bytes: 1,
        idle_close: Duration::from_hours(1),
        idle_sweep: Duration::from_millis(20),
        ..late
    };
    let engine = Engine::start(at_once, Parts::production())
        .await
        .expect("start");
    let store = Store::open(&rig::url(folder.path()), StoreOptions::default()).expect("a store");
    let store = store.with_keys(Keyring::new(masters()));
    for (id, at) in &last {
        let manifests = ManifestStore::new(store.clone(), namespace, *id, Arc::new(SystemEntropy));
        rig::until("the settle of what was left", || async {
            let loaded = manifests.load().await.expect("a manifest");
            loaded.manifest.settled_position() == Some(*at)
        })
        .await;
    }
    for (id, _) in &last {
        assert_eq!(
            rig::held(&files.join(id.to_string())),
            0,
            "a database was opened"
        );
    }
    engine.shutdown().await.expect("shutdown");
}

fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp")
        .args(["-a", "-T"])
        .args([from, to])
        .status();
    assert!(status.expect("cp").success());
}

/// Goal: a restore from the bucket, beside a node that settles, reads the manifest anew where an object it planned with is
/// gone (DESIGN 5.8). Method: the bucket as it was before all was settled, exchanged for the later one once the plan is
/// made.
#[tokio::test(flavor = "multi_thread")]
async fn a_restore_goes_on_where_a_planned_object_is_gone() {
    let folder = tempfile::tempdir().expect("tempdir");
    let folder = folder.path();
    let late = Settings {
        settle_bytes: 1 << 40,
        settle_age: Duration::from_hours(1),
        ..rig::settings(folder)
    };
    let engine = Engine::start(late.clone(), Parts::production()).await;
    let engine = engine.expect("start");
    let database = rig::orders(&engine).await;
    let id = (database.row().namespace, database.row().id);
    rig::run(&database, "CREATE TABLE t(a)", Durability::Local).await;
    let insert = "INSERT INTO t VALUES(1), (2), (3)";
    let last = rig::run(&database, insert, Durability::Remote).await;
    engine.shutdown().await.expect("shutdown");
    drop((database, engine));
    let [now, before, after] = ["store", "before", "after"].map(|name| folder.join(name));
    copy(&now, &before);

    let at_once = Settings {
        settle_bytes: 1,
        idle_sweep: Duration::from_millis(20),
        ..late
    };
    let engine = Engine::start(at_once, Parts::production()).await;
    let engine = engine.expect("start");
    let store = Store::open(&rig::url(folder), StoreOptions::default()).expect("a store");
    let store = store.with_keys(Keyring::new(masters()));
    let manifests = ManifestStore::new(store, id.0, id.1, Arc::new(SystemEntropy));
    let term = Path::new("journal").join("00000001");
    let planned = std::fs::read_dir(before.join(&term)).expect("a journal");
    let planned: Vec<_> = planned
        .map(|entry| entry.expect("an object").file_name())
        .filter(|name| name != "0000000000000000" && name != "state")
        .collect();
    assert!(planned.len() > 1, "{planned:?}");
    rig::until("the first journal settled and gone", || async {
        let loaded = manifests.load().await.expect("a manifest");
        let left = planned
            .iter()
            .filter(|name| now.join(&term).join(name).exists());
        // The fence stays.
        loaded.manifest.settled_position() == Some(last) && left.count() <= 1
    })
    .await;
    engine.shutdown().await.expect("shutdown");
    std::fs::rename(&now, &after).expect("kept");
    std::fs::rename(&before, &now).expect("as it was");

    let bucket = Bucket::open_with_keys(&rig::url(folder), &masters()).await;
    let bucket = bucket.expect("bucket");
    let named = bucket.find("acme", "orders").await.expect("find");
    let (out, mut tries) = (folder.join("out.db"), 0);
    let restored = bucket.restore_into(&named, At::Latest, |_| {
        tries += 1;
        if tries == 1 {
            std::fs::rename(&now, &before)?;
            std::fs::rename(&after, &now)?;
        }
        FileSink::create(&out)
    });
    let (plan, _, _) = restored.await.expect("by another way");
    assert_eq!((plan.target.position, tries), (last, 2));
    let connection = rusqlite::Connection::open(&out).expect("open");
    let count = connection.query_row("SELECT count(*) FROM t", [], |row| row.get::<_, i64>(0));
    assert_eq!(count.expect("rows"), 3);
}
