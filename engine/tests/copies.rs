//! Fuzzy copies: whatever writers do meanwhile, what is copied from a live database's files is the state it says; and
//! a fork of a database that is on this node costs no image and no journal object.
//!
//! `TIDELOG_SEED` chooses what is written.

mod rig;
mod twin;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rusqlite::Connection;
use tidelog_archive::env::SystemEntropy;
use tidelog_archive::manifest::ManifestStore;
use tidelog_archive::seal::Keyring;
use tidelog_archive::store::{Store, StoreOptions};
use tidelog_engine::bucket::At;
use tidelog_engine::operations::{Handle, OperationState};
use tidelog_engine::travel::forks::Fork;
use tidelog_engine::travel::rewind::{RestoreTarget, Rewind};
use tidelog_engine::travel::verify::{Level, NewVerification};
use tidelog_engine::{Database, Durability, Engine, Error, NewDatabase, Parts, Settings, TakeOver};
use tidelog_testkit::faultstore::{Call, Fault, FaultStore, Op, Shared, script};
use tidelog_testkit::sealing::masters;
use tidelog_wal::{PageSize, Position, TxId};

/// States that are copied while writers go on.
const COPIES: usize = 10;

/// A commit of the load.
#[derive(Debug, Clone)]
enum Did {
    Ran(String),
    WentBack(TxId),
}

type Log = Arc<Mutex<Vec<(Did, Position)>>>;

fn statement(rng: &mut StdRng) -> String {
    let (id, len) = (rng.random_range(1..1500), rng.random_range(1..3_000));
    match rng.random_range(0..20) {
        0 => "VACUUM".to_owned(),
        1 => format!("DELETE FROM t WHERE a > {}", id.max(300)),
        2..6 => format!(
            "WITH RECURSIVE s(x) AS (SELECT {id} UNION ALL SELECT x+1 FROM s LIMIT 300) \
             INSERT OR REPLACE INTO t SELECT x, replace(hex(zeroblob({len})), '00', x) FROM s"
        ),
        6..9 => format!(
            "UPDATE t SET b = b || {len} WHERE a BETWEEN {id} AND {}",
            id + 40
        ),
        _ => format!("INSERT OR REPLACE INTO t VALUES({id}, hex(zeroblob({len})))"),
    }
}

async fn ended(handle: Result<Handle, Error>) -> tidelog_engine::operations::Operation {
    let operation = handle.expect("accepted").wait(rig::PATIENCE).await;
    assert_eq!(operation.state, OperationState::Succeeded, "{operation:?}");
    operation
}

/// Writes as fast as it can, and goes back now and then.
async fn load(database: Database, log: Log, stop: Arc<AtomicBool>, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    while !stop.load(Ordering::SeqCst) {
        let did = if rng.random_range(0..60) == 0 {
            let target = {
                let log = log.lock().expect("lock");
                let back = rng.random_range(0..log.len().min(40));
                log[log.len() - 1 - back].1
            };
            let back = Rewind::to(RestoreTarget::At(At::Bookmark(target)));
            let done = ended(database.rewind(back).await).await;
            let result = done.result.expect("a result");
            let at = result["bookmark"].as_str().expect("a bookmark");
            (Did::WentBack(target.txid), at.parse().expect("a bookmark"))
        } else {
            let sql = statement(&mut rng);
            let at = rig::run(&database, &sql, Durability::Memory).await;
            (Did::Ran(sql), at)
        };
        log.lock().expect("lock").push(did);
    }
}

/// What the twin held at the commits that are asked for.
fn twins(log: &[(Did, Position)], wanted: &[TxId]) -> BTreeMap<TxId, blake3::Hash> {
    let folder = tempfile::tempdir().expect("tempdir");
    let gone_back = log.iter().filter_map(|(did, _)| match did {
        Did::WentBack(to) => Some(*to),
        Did::Ran(_) => None,
    });
    let kept: Vec<TxId> = gone_back.collect();
    let copy = |txid: TxId| folder.path().join(format!("{txid}.db"));
    let mut twin = Connection::open_in_memory().expect("twin");
    let mut found = BTreeMap::new();
    for (did, at) in log {
        match did {
            Did::Ran(sql) => twin.execute_batch(sql).expect(sql),
            Did::WentBack(to) => {
                let work = folder.path().join(format!("work-{}.db", at.txid));
                std::fs::copy(copy(*to), &work).expect("copy");
                twin = Connection::open(work).expect("open");
                twin.pragma_update(None, "synchronous", "OFF").expect("off");
            }
        }
        if kept.contains(&at.txid) && !copy(at.txid).exists() {
            let into = format!("VACUUM INTO '{}'", copy(at.txid).display());
            twin.execute_batch(&into).expect("a copy");
        }
        if wanted.contains(&at.txid) {
            found.insert(at.txid, twin::dump(&twin));
        }
    }
    found
}

fn seed() -> u64 {
    std::env::var("TIDELOG_SEED")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(1)
}

/// Goal: images, exports and verifications of a database under full load are states that were (I3). Method: a writer
/// that grows, shrinks, vacuums and rewinds it; exports compared with a twin that is told the same afterwards, live
/// reads proven by digest, every image restored from the bucket.
#[tokio::test(flavor = "multi_thread")]
async fn copies_under_full_load_are_states_that_were() {
    let folder = tempfile::tempdir().expect("tempdir");
    let settings = Settings {
        wal_backfill_bytes: 64 << 10,
        wal_soft_bytes: 512 << 10,
        spool_bytes: 64 << 10,
        chunk_bytes: 1 << 20,
        settle_level: 1,
        restores_max: usize::MAX,
        ..rig::settings(folder.path())
    };
    let engine = Engine::start(settings, Parts::production())
        .await
        .expect("start");
    let namespace = engine.namespace_create("acme").await.expect("namespace");
    let new = NewDatabase {
        page_size: PageSize::new(512).expect("512"),
        ..NewDatabase::named("orders")
    };
    let database = engine
        .database_create(namespace.id, new)
        .await
        .expect("create");
    let log = Log::default();
    for sql in [
        "CREATE TABLE t(a INTEGER PRIMARY KEY, b)",
        "WITH RECURSIVE s(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM s LIMIT 1500) \
         INSERT INTO t SELECT x, hex(zeroblob(600)) FROM s",
    ] {
        let at = rig::run(&database, sql, Durability::Memory).await;
        log.lock()
            .expect("lock")
            .push((Did::Ran(sql.to_owned()), at));
    }
    let stop = Arc::new(AtomicBool::new(false));
    let loading = load(
        database.clone(),
        Arc::clone(&log),
        Arc::clone(&stop),
        seed(),
    );
    let loading = tokio::spawn(loading);
    let mut rng = StdRng::seed_from_u64(seed() + 1);
    let mut exported = Vec::new();
    for n in 0..COPIES {
        let at = match n % 3 {
            0 => At::Latest,
            _ => {
                let log = log.lock().expect("lock");
                At::Bookmark(log[rng.random_range(log.len() / 2..log.len())].1)
            }
        };
        let out = folder.path().join(format!("{n}.db"));
        let position = database.export(at, &out).await.expect("an export");
        exported.push((position.txid, out));
        // It compares what it reads with the digest of the commit it was read at.
        let verification = ended(database.verify(NewVerification::of(Level::Full)).await).await;
        let outcome = &verification.result.expect("a result")["verification"];
        assert_eq!(outcome["outcome"], "verified", "{outcome}");
    }
    stop.store(true, Ordering::SeqCst);
    loading.await.expect("the load");
    let log = log.lock().expect("lock").clone();
    assert!(
        log.iter().any(|(did, _)| matches!(did, Did::WentBack(_))) || log.len() < 200,
        "{} commits and no rewind",
        log.len()
    );
    let wanted: Vec<TxId> = exported.iter().map(|(txid, _)| *txid).collect();
    let known = twins(&log, &wanted);
    for (txid, out) in exported {
        let file = twin::open_restored(&out).unwrap_or_else(|e| panic!("{txid}: {e}"));
        assert_eq!(twin::dump(&file), known[&txid], "commit {txid}");
    }
    engine.shutdown().await.expect("shutdown");
    let bucket = rig::bucket(folder.path()).await.expect("bucket");
    rig::verify(&bucket).await;
}

/// A node on a store that notes every call.
async fn noted(folder: &Path, store: &Arc<FaultStore>) -> Engine {
    let settings = Settings {
        settle_age: Duration::from_millis(100),
        checkpoint_age: Duration::from_millis(50),
        idle_sweep: Duration::from_millis(20),
        settle_level: 1,
        ..rig::settings(folder)
    };
    noted_with(settings, store).await
}

async fn noted_with(settings: Settings, store: &Arc<FaultStore>) -> Engine {
    let shared = Arc::new(Shared(Arc::clone(store)));
    let store = Store::from_object_store(shared, "", StoreOptions::default()).expect("a store");
    let engine = Engine::start_on(settings, Parts::production(), store).await;
    engine.expect("start")
}

/// The keys that were read since the call of this number, of a part of the bucket. Whoever has stored an object asks
/// whether it stands: that is no read.
fn read_since(store: &FaultStore, number: usize, part: &str) -> Vec<String> {
    let calls = store.calls();
    let calls = calls.iter().skip(number);
    let reads = calls.filter(|call: &&Call| call.op == Op::Get);
    let keys = reads.map(|call| call.key.clone());
    keys.filter(|key| key.contains(part)).collect()
}

/// Numbers that tell one state from another.
const STATE: &str = "SELECT count(*), sum(a * length(b)), sum(a * unicode(b)) FROM t";

async fn touched(child: &Database, expected: &[i64], store: &FaultStore) -> Vec<String> {
    let before = store.calls().len();
    assert_eq!(rig::numbers(child, STATE).await, expected);
    let images = read_since(store, before, "/images/");
    assert_eq!(images, Vec::<String>::new(), "an image was read");
    let mut log = read_since(store, before, "/segments/");
    // What a trim asks is how far it came.
    let journal = read_since(store, before, "journal/").into_iter();
    log.extend(journal.filter(|key| !key.ends_with("/state")));
    log
}

/// Goal: the first query of a fork on the node that has its parent reads the parent's files, not the bucket. Method:
/// the store's calls are noted; forks of the newest state, of one before the last commits and of one long settled,
/// while the parent is open, while it is written, and after a restart when it is closed.
#[tokio::test(flavor = "multi_thread")]
async fn a_fork_is_made_from_the_files_of_its_parent() {
    let folder = tempfile::tempdir().expect("tempdir");
    let store = FaultStore::in_memory(script(|_| Fault::None));
    let engine = noted(folder.path(), &store).await;
    let parent = rig::orders(&engine).await;
    let namespace = parent.row().namespace;
    let fork = async |engine: &Engine, name: &str, at: At| {
        let parent = rig::orders(engine).await;
        let new = Fork {
            at,
            ..Fork::named(name)
        };
        ended(parent.fork(new).await).await;
        engine.database(namespace, name).await.expect("the fork")
    };
    let create = "CREATE TABLE t(a INTEGER PRIMARY KEY, b)";
    rig::run(&parent, create, Durability::Memory).await;
    let fill = "WITH RECURSIVE s(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM s LIMIT 6000) \
                INSERT INTO t SELECT x, hex(randomblob(400)) FROM s";
    rig::run(&parent, fill, Durability::Remote).await;
    // An image of the parent is stored, so that there is another way than the log.
    let images = || {
        let calls = store.calls();
        let puts = calls.iter().filter(|call| call.op != Op::Get);
        puts.filter(|call| call.key.contains("/images/")).count()
    };
    rig::until("an image", || async {
        let sql = "UPDATE t SET b = hex(randomblob(401)) WHERE a % 3 = 0";
        rig::run(&parent, sql, Durability::Remote).await;
        images() > 0
    })
    .await;

    let update = |n: i64| format!("UPDATE t SET b = b || 'x{n}' WHERE a % 50 = {n}");
    let old = rig::run(&parent, &update(1), Durability::Remote).await;
    let old_state = rig::numbers(&parent, STATE).await;
    // Settling reads back what was spooled: that is no read of the fork's.
    let shared = Arc::new(Shared(Arc::clone(&store)));
    let own = Store::from_object_store(shared, "", StoreOptions::default()).expect("a store");
    let own = own.with_keys(Keyring::new(masters()));
    let manifests = ManifestStore::new(own, namespace, parent.row().id, Arc::new(SystemEntropy));
    rig::until("the settle of what was written", async || {
        let loaded = manifests.load().await.expect("a manifest");
        loaded.manifest.settled_position() == Some(old)
    })
    .await;
    let newest = fork(&engine, "newest", At::Latest).await;
    assert_eq!(
        touched(&newest, &old_state, &store).await,
        Vec::<String>::new(),
        "the newest state is in the files"
    );
    // While the parent is written, by less than an image would cost.
    let stop = Arc::new(AtomicBool::new(false));
    let (writing, stopped) = (parent.clone(), Arc::clone(&stop));
    let load = tokio::spawn(async move {
        let mut n = 2_i64;
        while !stopped.load(Ordering::SeqCst) {
            let letter = char::from(b'a' + u8::try_from(n % 20).expect("small"));
            let one = n * 37 % 6000;
            let sql = format!("UPDATE t SET b = '{letter}' || substr(b, 2) WHERE a = {one}");
            rig::run(&writing, &sql, Durability::Memory).await;
            n += 1;
        }
    });
    for n in 0..4 {
        let child = fork(&engine, &format!("busy-{n}"), At::Bookmark(old)).await;
        touched(&child, &old_state, &store).await;
    }
    stop.store(true, Ordering::SeqCst);
    load.await.expect("the load");
    // Of a fork.
    rig::run(&newest, "DELETE FROM t WHERE a > 3000", Durability::Remote).await;
    let half = rig::numbers(&newest, STATE).await;
    ended(newest.fork(Fork::named("grandchild")).await).await;
    let grandchild = engine.database(namespace, "grandchild").await;
    touched(&grandchild.expect("the fork"), &half, &store).await;

    // Made now, touched in the next life, when its parent is closed.
    let late_state = rig::numbers(&parent, STATE).await;
    fork(&engine, "late", At::Latest).await;
    engine.shutdown().await.expect("shutdown");
    drop((engine, parent, newest));
    let engine = noted(folder.path(), &store).await;
    let late = engine.database(namespace, "late").await.expect("the fork");
    touched(&late, &late_state, &store).await;
    // What was copied goes its own way, and is whole in the bucket.
    rig::run(&late, "DELETE FROM t WHERE a > 10", Durability::Remote).await;
    let parent = rig::orders(&engine).await;
    assert_eq!(rig::numbers(&parent, STATE).await, late_state);
    engine.shutdown().await.expect("shutdown");
}

/// Goal: the parent that is read for a fork's files takes none of its tenant's places. Method: a tenant that may have one
/// database open has it in the fork; its parent is read all the same, and nothing of the bucket.
#[tokio::test(flavor = "multi_thread")]
async fn a_parent_that_is_copied_is_no_open_database_of_its_tenant() {
    let folder = tempfile::tempdir().expect("tempdir");
    let store = FaultStore::in_memory(script(|_| Fault::None));
    let settings = Settings {
        open_databases_max: 2,
        gate_timeout: Duration::from_secs(20),
        ..rig::settings(folder.path())
    };
    let engine = noted_with(settings, &store).await;
    let parent = rig::orders(&engine).await;
    let create = "CREATE TABLE t(a INTEGER PRIMARY KEY, b)";
    rig::run(&parent, create, Durability::Memory).await;
    let fill = "WITH RECURSIVE s(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM s LIMIT 500) \
                INSERT INTO t SELECT x, hex(randomblob(400)) FROM s";
    rig::run(&parent, fill, Durability::Remote).await;
    let state = rig::numbers(&parent, STATE).await;
    ended(parent.fork(Fork::named("child")).await).await;
    let namespace = parent.row().namespace;
    let child = engine.database(namespace, "child").await.expect("the fork");
    assert_eq!(
        touched(&child, &state, &store).await,
        Vec::<String>::new(),
        "the newest state is in the parent's files"
    );
    engine.shutdown().await.expect("shutdown");
}

/// Goal (I1): whoever opens a database beside the node that settles what it inherited finds all of it, in the tail or in the
/// manifest: else a fork would begin anew where its parent's history ends, and what was written to it were lost. Method: a
/// fork is written, nothing is settled, the machine is lost; the answer to the one who takes the fork over is held up
/// until its commits are settled.
#[tokio::test(flavor = "multi_thread")]
async fn a_fork_whose_commits_are_just_settled_does_not_begin_anew() {
    let folder = tempfile::tempdir().expect("tempdir");
    let store = FaultStore::in_memory(script(|_| Fault::None));
    let unsettled = Settings {
        settle_bytes: 1 << 40,
        settle_age: Duration::from_hours(1),
        ..rig::settings(folder.path())
    };
    let engine = noted_with(unsettled.clone(), &store).await;
    let parent = rig::orders(&engine).await;
    let namespace = parent.row().namespace;
    rig::run(&parent, "CREATE TABLE t(a)", Durability::Remote).await;
    ended(parent.fork(Fork::named("fork")).await).await;
    let fork = engine.database(namespace, "fork").await.expect("a fork");
    let id = fork.row().id;
    let written = rig::run(&fork, "INSERT INTO t VALUES(1)", Durability::Remote).await;
    drop((parent, fork));
    engine.shutdown().await.expect("shutdown");
    std::fs::remove_dir_all(&unsettled.data).expect("a machine that is lost");

    let shared = Arc::new(Shared(Arc::clone(&store)));
    let own = Store::from_object_store(shared, "", StoreOptions::default()).expect("a store");
    let own = own.with_keys(Keyring::new(masters()));
    let manifests = ManifestStore::new(own, namespace, id, Arc::new(SystemEntropy));
    let (first, taken) = (Arc::new(AtomicBool::new(true)), format!("{id}/manifest"));
    store.set_plan(script(move |call| {
        let takes = call.op == Op::Put && call.key.ends_with(&taken);
        if takes && first.swap(false, Ordering::SeqCst) {
            return Fault::HoldAnswer;
        }
        Fault::None
    }));
    let settings = Settings {
        settle_age: Duration::from_secs(1),
        take_over: TakeOver::All,
        ..unsettled
    };
    let engine = noted_with(settings, &store).await;
    // A fork is made from its parent's files where they are at hand.
    let parent = rig::orders(&engine).await;
    assert_eq!(rig::numbers(&parent, "SELECT count(*) FROM t").await, [0]);
    let fork = engine.database(namespace, "fork").await.expect("a fork");
    let opening = tokio::spawn(async move { rig::numbers(&fork, "SELECT a FROM t").await });
    // Where the settler comes first, nobody is held up but the settler.
    rig::until("the settle of what was inherited", async || {
        let settled = manifests.load().await.expect("a manifest").manifest;
        settled.settled_position() == Some(written) || opening.is_finished()
    })
    .await;
    // The node forgets the tail right behind that.
    tokio::time::sleep(Duration::from_millis(100)).await;
    store.set_plan(script(|_| Fault::None));
    store.let_go();
    assert_eq!(opening.await.expect("it is opened"), [1]);
    let fork = engine.database(namespace, "fork").await.expect("a fork");
    let next = rig::run(&fork, "INSERT INTO t VALUES(2)", Durability::Remote).await;
    assert_eq!(next.txid, written.txid.next());
    engine.shutdown().await.expect("shutdown");
}
