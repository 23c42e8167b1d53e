//! A sealed node on a folder store, with master keys of the test's own, and what lies in its folders.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tidelog_archive::store::{Store, StoreOptions, StoreSettings};
use tidelog_engine::bucket::At;
use tidelog_engine::operations::{Handle, OperationState};
use tidelog_engine::travel::archives::{Archive, Format, NewArchive};
use tidelog_engine::{
    Database, Durability, Engine, Error, MasterKey, MasterKeys, NewDatabase, Parts, Settings, Value,
};
use tidelog_testkit::faultstore::{FaultStore, Plan, Shared};
use tidelog_wal::Position;

/// What must not be found. Noise, so that a compressor leaves it as it is.
pub(crate) const PLANTED: &str = "zQ7kX1vB9pLm4RtW8sYc2HdG6nJf3AeU5oTi0KqZxVbNrCwMyPlSgDhFuEjOaI";

pub(crate) fn master(id: &str, first: u8) -> MasterKey {
    let bytes: Vec<u8> = (first..first + 32).collect();
    MasterKey::parse(id, &bytes).expect("a master key")
}

pub(crate) fn masters(keys: &[(&str, u8)]) -> MasterKeys {
    let keys = keys.iter().map(|(id, first)| master(id, *first)).collect();
    MasterKeys::new(keys).expect("master keys")
}

pub(crate) fn url(folder: &Path) -> String {
    format!("file://{}", folder.join("store").display())
}

pub(crate) fn settings(folder: &Path, keys: &MasterKeys) -> Settings {
    Settings {
        data: folder.join("data"),
        store_url: url(folder),
        master_keys: keys.clone(),
        // A machine that is busy with something else makes no write fail.
        gate_timeout: Duration::from_mins(1),
        durability_timeout: Duration::from_mins(1),
        ship_interval: Duration::from_millis(20),
        ship_linger: Duration::from_millis(1),
        settle_bytes: 16 << 10,
        settle_pause: Duration::from_millis(1),
        spool_bytes: 64 << 10,
        ..Settings::default()
    }
}

pub(crate) async fn try_start(folder: &Path, keys: &MasterKeys) -> Result<Engine, Error> {
    Engine::start(settings(folder, keys), Parts::production()).await
}

pub(crate) async fn start(folder: &Path, keys: &MasterKeys) -> Engine {
    try_start(folder, keys).await.expect("start")
}

pub(crate) async fn execute(
    database: &Database,
    sql: &str,
    durability: Durability,
) -> Result<(Position, Vec<Vec<Value>>), Error> {
    let request = crate::rig::request(&[sql], durability);
    let response = database.execute(request).await?;
    let rows = response.results.into_iter().next().map(|found| found.rows);
    Ok((response.bookmark, rows.unwrap_or_default()))
}

pub(crate) async fn run(database: &Database, sql: &str) -> Position {
    let done = execute(database, sql, Durability::Remote).await;
    done.unwrap_or_else(|error| panic!("{sql}: {error:?}")).0
}

pub(crate) async fn count(database: &Database) -> i64 {
    let sql = "SELECT count(*) FROM t";
    let (_, rows) = execute(database, sql, Durability::Local)
        .await
        .expect("count");
    match rows[0][0] {
        Value::Integer(count) => count,
        ref other => panic!("{other:?}"),
    }
}

pub(crate) async fn make(engine: &Engine, name: &str) -> Database {
    let namespace = match engine.namespace_by_name("acme").await {
        Ok(namespace) => namespace,
        Err(_) => engine.namespace_create("acme").await.expect("namespace"),
    };
    let made = engine.database_create(namespace.id, NewDatabase::named(name));
    let database = made.await.expect("create");
    run(&database, "CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT)").await;
    database
}

pub(crate) async fn find(engine: &Engine, name: &str) -> Result<Database, Error> {
    let namespace = engine.namespace_by_name("acme").await?;
    engine.database(namespace.id, name).await
}

/// Small commits, and one above the spool bound.
pub(crate) async fn fill(database: &Database) {
    for n in 0..20 {
        let sql = format!("INSERT INTO t(b) VALUES('{PLANTED}{n}')");
        run(database, &sql).await;
    }
    let large = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM c WHERE x < 60) \
                 INSERT INTO t(b) SELECT hex(randomblob(2000)) || '";
    run(database, &format!("{large}{PLANTED}' FROM c")).await;
}

/// Waits until something is settled into a segment of the database's.
pub(crate) async fn settled(folder: &Path) {
    let deadline = tokio::time::Instant::now() + Duration::from_mins(3);
    while !files(&folder.join("store"))
        .iter()
        .any(|path| path.to_string_lossy().contains("/segments/"))
    {
        assert!(tokio::time::Instant::now() < deadline, "nothing is settled");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub(crate) fn files(folder: &Path) -> Vec<PathBuf> {
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

pub(crate) fn copy(from: &Path, to: &Path) {
    for file in files(from) {
        let target = to.join(file.strip_prefix(from).expect("below"));
        std::fs::create_dir_all(target.parent().expect("a folder")).expect("folder");
        // The running node may remove a file meanwhile.
        if let Ok(bytes) = std::fs::read(&file) {
            std::fs::write(target, bytes).expect("copy");
        }
    }
}

/// A store in memory that does as `plan` says, and gives up soon.
pub(crate) fn faulty(plan: Box<dyn Plan>) -> (Arc<FaultStore>, Store) {
    let faults = FaultStore::in_memory(plan);
    let settings = StoreSettings {
        attempts_max: 2,
        backoff_max: Duration::from_millis(10),
        // What stands still goes on when the test says so.
        request_timeout: Duration::from_mins(10),
        call_time_max: Duration::from_mins(10),
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

pub(crate) async fn succeeded(handle: Result<Handle, Error>) -> serde_json::Value {
    let ended = handle.expect("begun").wait(Duration::from_mins(1)).await;
    assert_eq!(ended.state, OperationState::Succeeded, "{ended:?}");
    ended.result.expect("a result")
}

pub(crate) async fn archived(database: &Database, format: Format) -> Archive {
    let new = NewArchive::of(At::Latest, format);
    let made = succeeded(database.archive_create(new).await).await;
    let id = made["archive"]["id"].as_str().expect("an id").to_owned();
    database.archive(&id).await.expect("the archive")
}
