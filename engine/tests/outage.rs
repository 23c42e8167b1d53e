//! The store goes away under load and comes back (I8): `memory` and `local` writers see no error until the journal
//! is at its bound, `remote` ones hear that their write stands and is not stored; nothing is lost, what waits on
//! disk is bounded, and everything heals by itself.
//!
//! `TIDELOG_OUTAGE_SECONDS` makes the store stay away longer than the journal takes to fill.

mod detached;
mod rig;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use object_store::ObjectStore;
use tidelog_archive::store::{Store, StoreOptions, StoreSettings};
use tidelog_engine::bucket::{At, Bucket};
use tidelog_engine::{Code, Database, Durability, Engine, Parts, Settings};
use tidelog_testkit::faultstore::{Fault, FaultStore, Shared, script};
use tidelog_testkit::sealing::masters;

const JOURNAL_MAX: u64 = 2 << 20;
const CHUNK: u64 = 64 << 10;

/// A store that fails every call while the switch is on.
fn store(away: &Arc<AtomicBool>) -> Store {
    let away = Arc::clone(away);
    let plan = script(move |_| {
        if away.load(Ordering::SeqCst) {
            Fault::Before
        } else {
            Fault::None
        }
    });
    on(Arc::new(Shared(FaultStore::in_memory(plan))))
}

/// A store on these objects that gives up soon.
fn on(objects: Arc<dyn ObjectStore>) -> Store {
    let settings = StoreSettings {
        attempts_max: 2,
        backoff_max: Duration::from_millis(100),
        ..StoreSettings::default()
    };
    let options = StoreOptions {
        settings,
        ..StoreOptions::default()
    };
    Store::from_object_store(objects, "", options).expect("a store")
}

/// What came of one writer: rows that stand, and how it ended.
struct Wrote {
    standing: Vec<i64>,
    answered: u64,
}

/// Writes rows from `first` on at `level` until the journal is full.
async fn write(database: Database, first: i64, level: Durability) -> Wrote {
    let mut wrote = Wrote {
        standing: Vec::new(),
        answered: 0,
    };
    for row in first.. {
        let sql = format!("INSERT INTO t VALUES({row}, randomblob(3000))");
        match rig::try_run(&database, &sql, level).await {
            Ok(_) => {
                wrote.standing.push(row);
                wrote.answered += 1;
            }
            Err(error) if error.code() == Code::JournalFull => return wrote,
            Err(error)
                if level == Durability::Remote && error.code() == Code::DurabilityTimeout =>
            {
                assert_eq!(error.members()["committed"], true, "{error}");
                wrote.standing.push(row);
            }
            Err(error) => panic!("{level}: row {row}: {error:?}"),
        }
    }
    wrote
}

/// The lengths of the chunks; the node may remove one meanwhile.
fn chunks(journal: &Path) -> Vec<u64> {
    let found = std::fs::read_dir(journal).expect("journal").flatten();
    found
        .filter_map(|entry| Some(entry.metadata().ok()?.len()))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_the_store_is_bounded_and_heals() {
    let folder = tempfile::tempdir().expect("tempdir");
    let away = Arc::new(AtomicBool::new(false));
    let store = store(&away);
    let settings = Settings {
        journal_max_bytes: JOURNAL_MAX,
        chunk_bytes: CHUNK,
        durability_timeout: Duration::from_secs(20),
        // Nothing but the journal's own need moves the WAL into the file.
        wal_soft_bytes: 1 << 30,
        wal_backfill_bytes: 1 << 30,
        idle_sweep: Duration::from_millis(50),
        workers: 4,
        ..rig::settings(folder.path())
    };
    let journal = settings.data.join("journal");
    let engine = Engine::start_on(settings, Parts::production(), store.clone());
    let engine = engine.await.expect("start");
    let database = rig::orders(&engine).await;
    let create = "CREATE TABLE t(a INTEGER PRIMARY KEY, b)";
    rig::run(&database, create, Durability::Remote).await;

    away.store(true, Ordering::SeqCst);
    // Who asks for less than the store is answered while it is away, however long a sync takes here.
    let mut standing = Vec::new();
    for row in 100..142_i64 {
        let level = [Durability::Memory, Durability::Local][usize::from(row % 2 == 0)];
        let sql = format!("INSERT INTO t VALUES({row}, randomblob(3000))");
        rig::run(&database, &sql, level).await;
        standing.push(row);
    }
    // More `remote` writers than there are workers: who waits for the store holds up nobody else.
    let mut writers = Vec::new();
    for (n, level) in [Durability::Memory, Durability::Local]
        .into_iter()
        .enumerate()
    {
        let first = i64::try_from(n + 1).expect("small") * 1_000_000;
        writers.push(tokio::spawn(write(database.clone(), first, level)));
    }
    for n in 3..11 {
        let remote = write(database.clone(), n * 1_000_000, Durability::Remote);
        writers.push(tokio::spawn(remote));
    }
    let mut answered = Vec::new();
    for writer in writers {
        let wrote = writer.await.expect("a writer saw only what it may see");
        answered.push(wrote.answered);
        assert!(!wrote.standing.is_empty(), "a writer wrote nothing");
        standing.extend(wrote.standing);
    }
    assert!(answered[2..].iter().all(|n| *n == 0), "{answered:?}");
    let found = chunks(&journal);
    let bytes: u64 = found.iter().sum();
    // The writers that were admitted below the bound come on top, a group of commits each.
    assert!(bytes < JOURNAL_MAX + (1 << 20), "{bytes} bytes: {found:?}");
    let longest = found.iter().copied().max().unwrap_or(0);
    assert!(longest < 8 * CHUNK, "an endless chunk: {found:?}");
    let rows = i64::try_from(standing.len()).expect("few");
    let count = "SELECT count(*) FROM t";
    assert_eq!(rig::numbers(&database, count).await, [rows], "reads go on");
    let wanted = std::env::var("TIDELOG_OUTAGE_SECONDS").ok();
    if let Some(seconds) = wanted.and_then(|text| text.parse().ok()) {
        tokio::time::sleep(Duration::from_secs(seconds)).await;
    }

    away.store(false, Ordering::SeqCst);
    let insert = "INSERT INTO t VALUES(1, x'00')";
    rig::until("a stored write", || async {
        match rig::try_run(&database, insert, Durability::Remote).await {
            Ok(_) => true,
            Err(error) if error.code() == Code::JournalFull => false,
            // It stands, and all that waited goes first: that it is stored is seen below.
            Err(error) if error.code() == Code::DurabilityTimeout => true,
            Err(error) => panic!("{error:?}"),
        }
    })
    .await;
    standing.push(1);
    rig::until("lag zero", || async {
        database.bookmark().await.expect("bookmark").lag_commits == 0
    })
    .await;
    rig::until("an empty journal folder", || async {
        chunks(&journal).iter().sum::<u64>() < JOURNAL_MAX / 2
    })
    .await;

    let bucket = Bucket::open_on(store, Parts::production(), &masters()).await;
    let bucket = bucket.expect("bucket");
    let named = bucket.find("acme", "orders").await.expect("find");
    let (_folder, restored) = rig::restored(&bucket, &named, At::Latest)
        .await
        .expect("restore");
    let mut select = restored
        .prepare("SELECT a FROM t ORDER BY a")
        .expect("prepare");
    let found: Vec<i64> = select
        .query_map([], |row| row.get(0))
        .and_then(Iterator::collect)
        .expect("rows");
    standing.sort_unstable();
    assert_eq!(found, standing, "every row that was answered, and no other");
    rig::verify(&bucket).await;
    engine.shutdown().await.expect("shutdown");
}

/// A database that stays open and is hardly written keeps no chunk for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_stored_chunk_does_not_wait_for_a_database_that_stays_open() {
    let folder = tempfile::tempdir().expect("tempdir");
    let settings = Settings {
        idle_sweep: Duration::from_millis(20),
        checkpoint_age: Duration::from_millis(50),
        settle_bytes: 1,
        idle_close: Duration::from_hours(1),
        ..rig::settings(folder.path())
    };
    let journal = settings.data.join("journal");
    let engine = Engine::start(settings, Parts::production())
        .await
        .expect("start");
    let database = rig::orders(&engine).await;
    rig::run(&database, "CREATE TABLE t(a)", Durability::Remote).await;
    rig::run(&database, "INSERT INTO t VALUES(1)", Durability::Remote).await;
    rig::until("one open chunk and nothing else", || async {
        rig::numbers(&database, "SELECT count(*) FROM t").await;
        chunks(&journal).len() == 1
    })
    .await;
    engine.shutdown().await.expect("shutdown");
}
