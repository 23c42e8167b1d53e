//! An idle database costs nothing (I9): no descriptor, no request, whatever their number.
//!
//! Alone in its executable: it looks at the descriptors of the whole process.

mod rig;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use tidelog_engine::{Code, Durability, Engine, NewDatabase, Parts, Settings};

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
    // It is closed again soon: whoever looks late looks again.
    rig::until("an open database that holds descriptors", || async {
        rig::numbers(&database, "SELECT count(*) FROM t").await;
        !held(&files).is_empty()
    })
    .await;
    rig::until("every descriptor closed", || async {
        held(&files).is_empty()
    })
    .await;

    // What was begun before may end a moment after the last file is closed.
    rig::until("a second without a request or a descriptor", || async {
        let before = engine.store_meter();
        for _ in 0..50 {
            tokio::time::sleep(Duration::from_millis(20)).await;
            if !held(&files).is_empty() {
                return false;
            }
        }
        engine.store_meter().since(&before).total() == 0
    })
    .await;

    // And it is there again at a touch.
    assert_eq!(rig::numbers(&database, "SELECT count(*) FROM t").await, [1]);
    engine.shutdown().await.expect("shutdown");
}

/// The databases whose files this process holds open.
fn open_of(files: &std::path::Path) -> BTreeSet<String> {
    let of = |path: PathBuf| Some(path.strip_prefix(files).ok()?.iter().next()?.to_owned());
    let names = held(files).into_iter().filter_map(of);
    names
        .map(|name| name.to_string_lossy().into_owned())
        .collect()
}

/// Goal: I7 for descriptors. Method: clients of a tenant use forty databases all at once where eight may be open; then
/// it keeps four in use, while another tenant opens its own.
#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_with_many_databases_holds_half_of_the_places() {
    const MAX: usize = 8;
    let folder = tempfile::tempdir().expect("tempdir");
    let settings = Settings {
        open_databases_max: MAX,
        ..rig::settings(folder.path())
    };
    let files = settings.data.join("databases");
    let engine = Engine::start(settings, Parts::production())
        .await
        .expect("start");
    let loud = engine.namespace_create("loud").await.expect("namespace");
    let mut databases = Vec::new();
    for n in 0..40 {
        let new = NewDatabase::named(format!("d{n}"));
        let database = engine.database_create(loud.id, new).await.expect("create");
        rig::run(&database, "CREATE TABLE t(a)", Durability::Memory).await;
        databases.push(database);
    }
    let clients: Vec<_> = databases
        .iter()
        .cloned()
        .map(|database| {
            tokio::spawn(async move {
                for n in 0..5 {
                    let insert = format!("INSERT INTO t VALUES({n})");
                    rig::run(&database, &insert, Durability::Memory).await;
                }
            })
        })
        .collect();
    let ids: BTreeSet<String> = databases
        .iter()
        .map(|database| database.row().id.to_string())
        .collect();
    let mut most = 0;
    while !clients.iter().all(tokio::task::JoinHandle::is_finished) {
        // What two looks find was open between them: one look takes a while, and finds what followed one another.
        let open = &open_of(&files) & &open_of(&files);
        let own = open.intersection(&ids).count();
        // The engine's own work may have one more of them open.
        assert!(open.len() <= MAX && own <= MAX / 2 + 1, "{own} of {open:?}");
        most = most.max(own);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    for client in clients {
        client.await.expect("every client is answered");
    }
    assert!(most > 1, "the files were looked at where they are");
    for database in &databases {
        assert_eq!(rig::numbers(database, "SELECT count(*) FROM t").await, [5]);
    }

    let mut kept = Vec::new();
    for database in &databases[..MAX / 2] {
        kept.push(rig::hold_gate(database).await);
    }
    let more = databases[MAX].clone();
    let waits = tokio::spawn(async move { rig::numbers(&more, "SELECT count(*) FROM t").await });
    let quiet = engine.namespace_create("quiet").await.expect("namespace");
    for n in 0..3 {
        let new = NewDatabase::named(format!("q{n}"));
        let database = engine.database_create(quiet.id, new).await.expect("create");
        rig::run(&database, "CREATE TABLE t(a)", Durability::Memory).await;
    }
    assert!(!waits.is_finished(), "its own tenant has all of its share");
    drop(kept);
    assert_eq!(waits.await.expect("it is opened once one ends"), [5]);
    engine.shutdown().await.expect("shutdown");
}

/// Goal: what cannot be opened is refused with a kind a client may act on, and opened later.
#[tokio::test(flavor = "multi_thread")]
async fn where_every_open_database_is_in_use_another_is_refused() {
    let folder = tempfile::tempdir().expect("tempdir");
    let settings = Settings {
        open_databases_max: 4,
        gate_timeout: Duration::from_secs(1),
        ..rig::settings(folder.path())
    };
    let engine = Engine::start(settings, Parts::production())
        .await
        .expect("start");
    let namespace = engine.namespace_create("acme").await.expect("namespace");
    let mut databases = Vec::new();
    for name in ["a", "b", "c"] {
        let new = NewDatabase::named(name);
        let made = engine.database_create(namespace.id, new).await;
        databases.push(made.expect("create"));
    }
    let mut kept = Vec::new();
    for database in &databases[..2] {
        kept.push(rig::hold_gate(database).await);
    }
    let third = &databases[2];
    let refused = rig::try_run(third, "CREATE TABLE t(a)", Durability::Memory).await;
    let refused = refused.expect_err("two are all this tenant may have");
    assert_eq!(refused.code(), Code::Overloaded);
    drop(kept.pop());
    // Its transaction ends on a thread of its own.
    rig::until("a place for the third", || async {
        let made = rig::try_run(third, "CREATE TABLE t(a)", Durability::Memory).await;
        made.inspect_err(|error| assert_eq!(error.code(), Code::Overloaded))
            .is_ok()
    })
    .await;
    drop(kept);
    engine.shutdown().await.expect("shutdown");
}

/// Goal (ISO-1): databases of different tenants share nothing in a process, be their names the same. Method: both are open
/// and written to; each holds files of its own, and rows of its own are in them.
#[tokio::test(flavor = "multi_thread")]
async fn databases_of_one_name_are_instances_of_their_own() {
    let folder = tempfile::tempdir().expect("tempdir");
    let settings = rig::settings(folder.path());
    let files = settings.data.join("databases");
    let engine = Engine::start(settings, Parts::production())
        .await
        .expect("start");
    let mut kept = Vec::new();
    for (tenant, version) in [("one", 7), ("two", 8)] {
        let namespace = engine.namespace_create(tenant).await.expect("namespace");
        let new = NewDatabase::named("orders");
        let database = engine
            .database_create(namespace.id, new)
            .await
            .expect("create");
        rig::run(&database, "CREATE TABLE t(a)", Durability::Memory).await;
        let insert = format!("INSERT INTO t VALUES({version})");
        rig::run(&database, &insert, Durability::Memory).await;
        kept.push((database, version));
    }
    let mut paths = BTreeSet::new();
    for (database, version) in &kept {
        assert_eq!(rig::numbers(database, "SELECT a FROM t").await, [*version]);
        let id = database.row().id.to_string();
        let own: Vec<PathBuf> = held(&files.join(&id));
        assert!(own.len() > 2, "the file, its WAL and its index: {own:?}");
        let main = database.writer().await.expect("a database in use").file();
        assert!(own.contains(&main), "{main:?} in {own:?}");
        paths.insert(main);
    }
    assert_eq!(paths.len(), 2);
    engine.shutdown().await.expect("shutdown");
}
