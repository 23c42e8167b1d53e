//! An idle database costs nothing (I9): no descriptor, no request, whatever their number.
//!
//! Alone in its executable: it looks at the descriptors of the whole process.

mod rig;

use std::path::PathBuf;
use std::time::Duration;

use tidelog_engine::{Durability, Engine, NewDatabase, Parts, Settings};

const DATABASES: usize = 48;

/// What this process holds open below a folder.
fn held(below: &std::path::Path) -> Vec<PathBuf> {
    std::fs::read_dir("/proc/self/fd")
        .expect("the descriptors of this process")
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .filter(|target| target.starts_with(below))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_databases_hold_no_descriptor_and_make_no_request() {
    let folder = tempfile::tempdir().expect("tempdir");
    let settings = Settings {
        idle_close: Duration::from_millis(100),
        idle_sweep: Duration::from_millis(20),
        checkpoint_age: Duration::from_millis(40),
        ..rig::settings(folder.path())
    };
    let files = settings.data.join("databases");
    let engine = Engine::start(settings, Parts::production())
        .await
        .expect("start");
    let namespace = engine.namespace_create("acme").await.expect("namespace");
    for n in 0..DATABASES {
        let new = NewDatabase::named(format!("d{n}"));
        let database = engine
            .database_create(namespace.id, new)
            .await
            .expect("create");
        rig::run(&database, "CREATE TABLE t(a)", Durability::Local).await;
        rig::run(&database, "INSERT INTO t VALUES(1)", Durability::Remote).await;
    }
    let database = engine.database(namespace.id, "d0").await.expect("database");
    rig::numbers(&database, "SELECT count(*) FROM t").await;
    assert!(
        !held(&files).is_empty(),
        "an open database holds descriptors"
    );
    rig::until("every descriptor closed", || async {
        held(&files).is_empty()
    })
    .await;

    let before = engine.store_meter();
    for _ in 0..50 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(
            held(&files),
            Vec::<PathBuf>::new(),
            "an idle database was opened"
        );
    }
    let requests = engine.store_meter().since(&before);
    assert_eq!(requests.total(), 0, "{requests:?}");

    // And it is there again at a touch.
    assert_eq!(rig::numbers(&database, "SELECT count(*) FROM t").await, [1]);
    engine.shutdown().await.expect("shutdown");
}
