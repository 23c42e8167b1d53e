//! Settling what an earlier life left opens no database: the manifest tells whether an image is due.

mod rig;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tidelog_archive::env::SystemEntropy;
use tidelog_archive::manifest::ManifestStore;
use tidelog_archive::seal::Keyring;
use tidelog_archive::store::{Store, StoreOptions};
use tidelog_engine::{Durability, Engine, NewDatabase, Parts, Settings};
use tidelog_testkit::sealing::masters;

const DATABASES: usize = 4;

/// Descriptors of this process below a folder.
fn held(below: &Path) -> usize {
    std::fs::read_dir("/proc/self/fd")
        .expect("the descriptors of this process")
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .filter(|target| target.starts_with(below))
        .count()
}

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
            held(&files.join(id.to_string())),
            0,
            "a database was opened"
        );
    }
    engine.shutdown().await.expect("shutdown");
}
