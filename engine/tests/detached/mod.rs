//! Starting without the store (DESIGN 5.6): reads, and writes where nothing can be lost; when the store is back
//! everything is shipped, and a term that was closed meanwhile is not written to.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use object_store::memory::InMemory;
use tidelog_archive::store::Store;
use tidelog_engine::bucket::{At, Bucket};
use tidelog_engine::node::detached::Detached;
use tidelog_engine::{
    Code, Database, Durability, Engine, Error, MasterKey, MasterKeys, Parts, Settings,
};
use tidelog_testkit::faultstore::{Fault, FaultStore, Shared, script};
use tidelog_testkit::sealing::sealed_masters;
use tidelog_wal::Position;

use crate::{on, rig};

const COUNT: &str = "SELECT count(*) FROM t";
const ROW: &str = "INSERT INTO t(b) VALUES(randomblob(100))";
/// Spooled.
const LARGE: &str = "INSERT INTO t(b) VALUES(randomblob(60000))";

/// One bucket, and a switch for each way to it.
struct Bench {
    folder: tempfile::TempDir,
    keys: MasterKeys,
    objects: Arc<InMemory>,
}

/// One way to the bucket.
struct Way {
    store: Store,
    away: Arc<AtomicBool>,
}

impl Way {
    fn cut(&self, away: bool) {
        self.away.store(away, Ordering::SeqCst);
    }
}

impl Bench {
    fn new() -> Self {
        Self::with(MasterKeys::default())
    }

    fn with(keys: MasterKeys) -> Self {
        Self {
            folder: tempfile::tempdir().expect("tempdir"),
            keys,
            objects: Arc::default(),
        }
    }

    fn way(&self) -> Way {
        let away = Arc::new(AtomicBool::new(false));
        let switch = Arc::clone(&away);
        let plan = script(move |_| {
            if switch.load(Ordering::SeqCst) {
                Fault::Before
            } else {
                Fault::None
            }
        });
        let objects = Arc::clone(&self.objects) as Arc<dyn object_store::ObjectStore>;
        let store = on(Arc::new(Shared(FaultStore::new(objects, plan))));
        Way { store, away }
    }

    fn settings(&self, name: &str) -> Settings {
        Settings {
            data: self.folder.path().join(name),
            store_url: "s3://bucket".to_owned(),
            // A `remote` write without a store waits so long: no shorter than a busy disk may need for a `local` one.
            durability_timeout: Duration::from_secs(10),
            spool_bytes: 16 << 10,
            master_keys: self.keys.clone(),
            ..rig::settings(self.folder.path())
        }
    }

    async fn try_start(&self, name: &str, way: &Way, parts: Parts) -> Result<Engine, Error> {
        Engine::start_on(self.settings(name), parts, way.store.clone()).await
    }

    async fn start(&self, name: &str, way: &Way) -> (Engine, Database) {
        let engine = self.try_start(name, way, Parts::production()).await;
        let engine = engine.expect("start");
        let database = rig::orders(&engine).await;
        (engine, database)
    }

    fn copy(&self, from: &str, to: &str) {
        let place = |name: &str| self.folder.path().join(name);
        // A running node may remove a file that `cp` has listed: then once more.
        for _ in 0..100 {
            let _ = std::fs::remove_dir_all(place(to));
            let status = Command::new("cp")
                .args(["-a", "-T"])
                .args([place(from), place(to)])
                .status();
            if status.expect("cp").success() {
                return;
            }
        }
        panic!("{from} cannot be copied");
    }

    async fn bucket(&self, way: &Way) -> Bucket {
        let (store, keys) = (way.store.clone(), &self.keys);
        let bucket = Bucket::open_on(store, Parts::production(), keys).await;
        bucket.expect("bucket")
    }
}

async fn made(database: &Database) -> Position {
    let create = "CREATE TABLE t(a INTEGER PRIMARY KEY, b)";
    rig::run(database, create, Durability::Local).await;
    rig::run(database, ROW, Durability::Local).await;
    rig::run(database, ROW, Durability::Remote).await
}

/// Leaves half a record behind the newest chunk, as a process that dies in the middle of an append does.
fn tear(data: &Path) {
    use std::io::Write as _;
    let chunks = std::fs::read_dir(data.join("journal")).expect("list");
    let chunks = chunks.map(|entry| entry.expect("an entry").path());
    let newest = chunks.filter(|path| path.extension().is_some_and(|e| e == "chunk"));
    let newest = newest.max().expect("a chunk");
    let file = std::fs::OpenOptions::new().append(true).open(newest);
    file.expect("open").write_all(&[1, 2, 3]).expect("write");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_store_is_away_at_its_start_goes_on_and_ships_later() {
    goes_on_and_ships_later(&Bench::new()).await;
}

/// The same with everything sealed: the folder's own key, wrapped by the master key, is all that such a start has.
#[tokio::test(flavor = "multi_thread")]
async fn a_sealed_node_whose_store_is_away_at_its_start_goes_on_and_ships_later() {
    goes_on_and_ships_later(&Bench::with(sealed_masters())).await;
}

/// Goal: a sealed folder opens without the store by its own master key alone. Method: no key and another one.
#[tokio::test(flavor = "multi_thread")]
async fn a_sealed_folder_without_its_store_refuses_wrong_and_missing_keys() {
    let mut bench = Bench::with(sealed_masters());
    let way = bench.way();
    let (engine, database) = bench.start("a", &way).await;
    made(&database).await;
    // What is not shipped stands in sealed chunks: they are what has to be opened.
    way.cut(true);
    rig::run(&database, ROW, Durability::Local).await;
    rig::run(&database, LARGE, Durability::Local).await;
    // It may say that something is not shipped, or be too quick to know.
    let _ = engine.shutdown().await;
    let other = MasterKey::parse("k1", blake3::hash(b"another").as_bytes()).expect("a key");
    let other = MasterKeys::new(vec![other]).expect("one key");
    for wrong in [MasterKeys::default(), other] {
        bench.keys = wrong;
        let refused = bench.try_start("a", &way, Parts::production()).await;
        let refused = refused.expect_err("it does not open");
        assert_eq!(refused.code(), Code::KeyUnavailable, "{refused}");
    }
    bench.keys = sealed_masters();
    let (engine, database) = bench.start("a", &way).await;
    assert_eq!(engine.detached(), Some(Detached::Writes));
    assert_eq!(rig::numbers(&database, COUNT).await, [4]);
    engine.shutdown().await.expect("shutdown");
}

async fn goes_on_and_ships_later(bench: &Bench) {
    let way = bench.way();
    let (engine, database) = bench.start("a", &way).await;
    made(&database).await;
    engine.shutdown().await.expect("shutdown");

    way.cut(true);
    // Stopped in order, on a machine that was started anew since.
    let parts = Parts {
        boot: Some("another".to_owned()),
        ..Parts::production()
    };
    let engine = bench.try_start("a", &way, parts).await.expect("start");
    assert_eq!(engine.detached(), Some(Detached::Writes));
    let database = rig::orders(&engine).await;
    assert_eq!(rig::numbers(&database, COUNT).await, [2]);
    let mut names = vec![rig::run(&database, ROW, Durability::Local).await];
    names.push(rig::run(&database, LARGE, Durability::Local).await);
    let error = rig::try_run(&database, ROW, Durability::Remote).await;
    let error = error.expect_err("no store");
    assert_eq!(error.code(), Code::DurabilityTimeout, "{error:?}");
    assert_eq!(error.members()["committed"], true, "{error:?}");
    engine.shutdown().await.expect("shutdown");

    // Once more, and this time it dies in the middle of an append.
    let (engine, database) = bench.start("a", &way).await;
    assert_eq!(engine.detached(), Some(Detached::Writes));
    assert_eq!(rig::numbers(&database, COUNT).await, [5]);
    names.push(rig::run(&database, ROW, Durability::Memory).await);
    bench.copy("a", "b");
    engine.shutdown().await.expect("shutdown");
    tear(&bench.settings("b").data);

    let (engine, database) = bench.start("b", &way).await;
    assert_eq!(engine.detached(), Some(Detached::Writes));
    assert_eq!(rig::numbers(&database, COUNT).await, [6]);
    names.push(rig::run(&database, ROW, Durability::Local).await);
    let pause = Duration::from_millis(5);
    let waited = tokio::time::timeout(Duration::from_millis(100), engine.store_returned(pause));
    assert!(waited.await.is_err(), "it is away");
    way.cut(false);
    engine.store_returned(pause).await;
    engine.shutdown().await.expect("shutdown");

    let (engine, database) = bench.start("b", &way).await;
    assert_eq!(engine.detached(), None);
    assert_eq!(rig::numbers(&database, COUNT).await, [7]);
    rig::run(&database, ROW, Durability::Remote).await;
    let bucket = bench.bucket(&way).await;
    let named = bucket.find("acme", "orders").await.expect("find");
    for (at, rows) in names.iter().zip([3, 4, 6, 7]) {
        let restored = rig::restored(&bucket, &named, At::Bookmark(*at)).await;
        let (_folder, restored) = restored.expect("restore");
        let found: i64 = restored
            .query_row(COUNT, [], |row| row.get(0))
            .expect("count");
        assert_eq!(found, rows, "{at}");
    }
    rig::verify(&bucket).await;
    engine.shutdown().await.expect("shutdown");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_may_have_lost_commits_is_read_until_the_store_is_back() {
    let bench = Bench::new();
    let way = bench.way();
    let (engine, database) = bench.start("a", &way).await;
    made(&database).await;
    bench.copy("a", "b");
    engine.shutdown().await.expect("shutdown");

    way.cut(true);
    let parts = Parts {
        boot: Some("another".to_owned()),
        ..Parts::production()
    };
    // Twice: the first must not make the second believe that nothing was lost.
    for _ in 0..2 {
        let engine = bench.try_start("b", &way, parts.clone()).await;
        let engine = engine.expect("start");
        assert_eq!(engine.detached(), Some(Detached::Reads));
        let database = rig::orders(&engine).await;
        assert_eq!(rig::numbers(&database, COUNT).await, [2]);
        let error = rig::try_run(&database, ROW, Durability::Memory).await;
        let error = error.expect_err("read only");
        assert_eq!(error.code(), Code::StorageUnavailable, "{error:?}");
        engine.shutdown().await.expect("shutdown");
    }
    way.cut(false);
    let (engine, database) = bench.start("b", &way).await;
    rig::run(&database, ROW, Durability::Remote).await;
    assert_eq!(rig::numbers(&database, COUNT).await, [3]);
    rig::verify(&bench.bucket(&way).await).await;
    engine.shutdown().await.expect("shutdown");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_cannot_serve_says_why() {
    let bench = Bench::new();
    let way = bench.way();
    way.cut(true);
    let error = bench.try_start("new", &way, Parts::production()).await;
    let error = error.expect_err("nothing to serve");
    assert_eq!(error.code(), Code::StorageUnavailable, "{error:?}");
    assert!(error.to_string().contains("it has never served"), "{error}");

    way.cut(false);
    let (engine, _) = bench.start("a", &way).await;
    engine.shutdown().await.expect("shutdown");
    way.cut(true);
    let elsewhere = Settings {
        store_url: "s3://another".to_owned(),
        ..bench.settings("a")
    };
    let started = Engine::start_on(elsewhere, Parts::production(), way.store.clone()).await;
    let error = started.expect_err("another store");
    assert!(error.to_string().contains("with another store"), "{error}");
}

/// Another process on a copy of the folder closes the term meanwhile: what was committed without the store is not
/// mixed into its history.
#[tokio::test(flavor = "multi_thread")]
async fn a_term_that_was_closed_meanwhile_is_not_gone_on_with() {
    let bench = Bench::new();
    let (first, second) = (bench.way(), bench.way());
    let (engine, database) = bench.start("a", &first).await;
    made(&database).await;
    engine.shutdown().await.expect("shutdown");
    bench.copy("a", "b");

    first.cut(true);
    let (engine, database) = bench.start("a", &first).await;
    rig::run(&database, ROW, Durability::Local).await;
    rig::run(&database, LARGE, Durability::Local).await;
    let lost = rig::run(&database, "UPDATE t SET b = 7", Durability::Local).await;
    let (other, theirs) = bench.start("b", &second).await;
    rig::run(&theirs, "DELETE FROM t", Durability::Remote).await;
    other.release().await.expect("release");

    first.cut(false);
    engine.store_returned(Duration::from_millis(5)).await;
    engine.shutdown().await.expect("shutdown");
    let (engine, database) = bench.start("a", &first).await;
    assert_eq!(
        rig::numbers(&database, COUNT).await,
        [0],
        "the store's history"
    );
    rig::until("a fork of what was not stored", || async {
        engine.status().await.diverged_forks == 1
    })
    .await;
    let name = format!("orders-diverged-{}", engine.term().get());
    let fork = engine.database(database.row().namespace, &name).await;
    let fork = fork.expect("a fork");
    let sum = "SELECT count(*), sum(b) FROM t";
    assert_eq!(rig::numbers(&fork, sum).await, [4, 28]);
    let bucket = bench.bucket(&first).await;
    let named = bucket.find("acme", "orders").await.expect("find");
    let restored = rig::restored(&bucket, &named, At::Bookmark(lost)).await;
    restored.expect_err("it is no commit of that history");
    let named = bucket.find("acme", &name).await.expect("find the fork");
    let (_folder, restored) = rig::restored(&bucket, &named, At::Latest)
        .await
        .expect("the fork is stored");
    let found: i64 = restored
        .query_row("SELECT sum(b) FROM t", [], |row| row.get(0))
        .expect("sum");
    assert_eq!(found, 28);
    rig::verify(&bucket).await;
    engine.shutdown().await.expect("shutdown");

    // Reported once.
    let (engine, _) = bench.start("a", &first).await;
    rig::until("what an earlier life left open", || async {
        let folder = bench.settings("a").data;
        let aside = std::fs::read_dir(folder).expect("list").flatten();
        let mut aside = aside.filter(|e| e.file_name().to_string_lossy().starts_with("fenced-"));
        aside.all(|entry| entry.path().join("reported.json").exists())
    })
    .await;
    assert_eq!(engine.status().await.diverged_forks, 0);
    engine.shutdown().await.expect("shutdown");
}
