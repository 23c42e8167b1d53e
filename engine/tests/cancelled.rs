//! Long work that is watched and cancelled: it shows how far it is, stops when it is told to, and nothing of it stays.

mod rig;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tidelog_archive::env::SystemEntropy;
use tidelog_archive::manifest::ManifestStore;
use tidelog_archive::store::Store;
use tidelog_engine::bucket::At;
use tidelog_engine::operations::{Handle, Operation, OperationFilter, OperationState};
use tidelog_engine::system::Page;
use tidelog_engine::travel::archives::{Format, NewArchive};
use tidelog_engine::travel::deletion::Purge;
use tidelog_engine::travel::forks::Fork;
use tidelog_engine::travel::restores::Outcome;
use tidelog_engine::travel::rewind::{RestoreTarget, Rewind};
use tidelog_engine::travel::verify::{Level, NewVerification};
use tidelog_engine::{Code, Database, Durability, Engine, Error, MasterKeys, Parts, Settings};
use tidelog_testkit::faultstore::{Call, Fault, FaultStore, Op, script};
use tidelog_wal::{NamespaceId, Position};

/// How much longer each call takes than the one before it.
const LATER: Duration = Duration::from_millis(300);
/// How often calls that stand still before the work begins are let go.
const STEP: Duration = Duration::from_millis(5);
const COUNT: &str = "SELECT count(*) FROM t";

/// A node on a store that is slow when told to, with a database of six settled commits that only the store has.
struct World {
    folder: tempfile::TempDir,
    faults: Arc<FaultStore>,
    store: Store,
    engine: Engine,
    namespace: NamespaceId,
    orders: Database,
    states: Vec<Position>,
    /// An archive of the newest state.
    archive: String,
}

fn settings(folder: &std::path::Path) -> Settings {
    Settings {
        settle_bytes: 1,
        settle_age: Duration::ZERO,
        // Longer than a cancelled operation is waited for: it must not end because it gives up.
        gate_timeout: 2 * rig::PATIENCE,
        // The bucket is read without keys.
        master_keys: MasterKeys::default(),
        ..rig::settings(folder)
    }
}

fn archive() -> NewArchive {
    NewArchive::of(At::Latest, Format::Sqlite)
}

impl World {
    async fn new() -> Self {
        let folder = tempfile::tempdir().expect("tempdir");
        let faults = FaultStore::in_memory(script(|_| Fault::None));
        let store = rig::patient_store(&faults);
        let start = async || {
            let parts = Parts::production();
            let engine = Engine::start_on(settings(folder.path()), parts, store.clone());
            engine.await.expect("start")
        };
        let engine = start().await;
        let orders = rig::orders(&engine).await;
        let create = "CREATE TABLE t(a INTEGER PRIMARY KEY, b)";
        rig::run(&orders, create, Durability::Remote).await;
        // So that the log since a state is less to fetch than an image of it.
        let ballast = "CREATE TABLE ballast AS SELECT randomblob(300000) AS b";
        rig::run(&orders, ballast, Durability::Remote).await;
        let mut states = Vec::new();
        for row in 0..6 {
            let sql = format!("INSERT INTO t VALUES({row}, randomblob(2000))");
            let at = rig::run(&orders, &sql, Durability::Remote).await;
            states.push(at);
            // One segment each.
            let (namespace, id) = (orders.row().namespace, orders.row().id);
            let entropy = Arc::new(SystemEntropy);
            let manifests = ManifestStore::new(store.clone(), namespace, id, entropy);
            rig::until("a settled commit", async || {
                let loaded = manifests.load().await.expect("a manifest");
                loaded.manifest.settled_position() == Some(at)
            })
            .await;
        }
        let made = orders
            .archive_create(archive())
            .await
            .expect("begun")
            .ended()
            .await;
        let made = made.result.expect("an archive")["archive"]["id"].clone();
        engine.shutdown().await.expect("shutdown");
        let engine = start().await;
        let orders = rig::orders(&engine).await;
        Self {
            namespace: orders.row().namespace,
            archive: made.as_str().expect("an id").to_owned(),
            folder,
            faults,
            store,
            engine,
            orders,
            states,
        }
    }

    /// Has each of these calls stand still.
    fn hold(&self, which: impl Fn(&Call) -> bool + Send + Sync + 'static) {
        self.faults.set_plan(script(move |call| {
            if which(call) {
                return Fault::Hold;
            }
            Fault::None
        }));
    }

    /// Has them all go on.
    fn let_go(&self) {
        self.faults.set_plan(script(|_| Fault::None));
        self.faults.let_go();
    }

    async fn begin(&self, what: &str) -> Result<Handle, Error> {
        let orders = &self.orders;
        let old = At::Bookmark(self.states[1]);
        match what {
            "archive" => {
                let new = NewArchive {
                    at: old,
                    ..archive()
                };
                orders.archive_create(new).await
            }
            "restore" => orders.rewind(Rewind::to(RestoreTarget::At(old))).await,
            "fork" => {
                let fork = Fork {
                    at: old,
                    ..Fork::named("copy")
                };
                orders.fork(fork).await
            }
            "schema" => {
                let fork = Fork {
                    at: old,
                    schema_only: true,
                    ..Fork::named("copy")
                };
                orders.fork(fork).await
            }
            "detach" => {
                let copy = self.engine.database(self.namespace, "copy").await?;
                copy.detach(None).await
            }
            "verification" => {
                let new = NewVerification {
                    level: Level::Restore,
                    at: None,
                    sample_percent: 100,
                    token: None,
                };
                orders.verify(new).await
            }
            "import" => {
                let (engine, id) = (&self.engine, &self.archive);
                engine
                    .database_from_archive(self.namespace, "again", id, None)
                    .await
            }
            "replace" => {
                let file = self.folder.path().join("replacement.db");
                if !file.exists() {
                    let plain = rusqlite::Connection::open(&file).expect("open");
                    let fill = "CREATE TABLE t(a, b); INSERT INTO t VALUES(7, 7)";
                    plain.execute_batch(fill).expect("fill");
                }
                orders.replace(&file, None, None).await
            }
            other => panic!("no work {other}"),
        }
    }

    /// The operation that has not ended.
    async fn running(&self) -> Option<Operation> {
        let (engine, filter) = (&self.engine, OperationFilter::default());
        let listed = engine.operations(self.namespace, filter, Page::default());
        let mut operations = listed.await.expect("a list").items.into_iter();
        operations.find(|one| !one.state.is_final())
    }

    async fn objects(&self, part: &str) -> usize {
        let listed = self.store.list("").await.expect("a listing");
        listed.iter().filter(|one| one.key.contains(part)).count()
    }

    /// What lies in the folders for scratch files.
    fn scratch(&self) -> Vec<PathBuf> {
        let folders = ["scratch", "work"].map(|name| self.folder.path().join("data").join(name));
        let entries = folders
            .iter()
            .filter_map(|folder| std::fs::read_dir(folder).ok());
        entries
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .collect()
    }

    /// Nothing that a cancelled `what` made is there.
    async fn nothing_stays(&self, what: &str) {
        let (orders, engine) = (&self.orders, &self.engine);
        assert_eq!(rig::numbers(orders, COUNT).await, [6], "{what}");
        let restores = orders
            .restores(Page::default())
            .await
            .expect("a list")
            .items;
        let failed = restores.iter().all(|one| one.outcome == Outcome::Failed);
        assert!(failed, "{what}: {restores:?}");
        let archives = orders
            .archives(Page::default())
            .await
            .expect("a list")
            .items;
        assert_eq!(archives.len(), 1, "{what}");
        // Its content and its side file.
        assert_eq!(self.objects("/archives/").await, 2, "{what}");
        let proofs = orders.verifications(Page::default()).await.expect("a list");
        assert!(proofs.items.is_empty(), "{what}");
        let again = engine.database(self.namespace, "again").await;
        let again = again.expect_err("it was never made");
        assert_eq!(again.code(), Code::DatabaseNotFound, "{what}");
        let copy = engine.database(self.namespace, "copy").await;
        match what {
            // It hangs on its parent as before.
            "detach" => assert!(copy.expect("it stands").row().parent.is_some()),
            _ => assert!(copy.is_err(), "{what}"),
        }
        rig::until("empty scratch folders", async || self.scratch().is_empty()).await;
    }
}

/// Goal: what is cancelled before its point of no return ends as cancelled, and nothing of it stays: no row, no
/// object, no pin, no scratch file, no lock on the database. Method: the calls of the store that the work needs stand
/// still, or a session holds the write gate; it is cancelled meanwhile. Then the same work is begun again and succeeds,
/// and so does the purge of the parent, which a pin that was left would refuse.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_cancelled_leaves_nothing_and_can_be_done_again() {
    for what in [
        "archive",
        "restore",
        "fork",
        "schema",
        "detach",
        "verification",
        "import",
        "replace",
    ] {
        let world = World::new().await;
        if what == "detach" {
            let made = world.begin("fork").await.expect("begun").ended().await;
            assert_eq!(made.state, OperationState::Succeeded, "{made:?}");
        }
        let ours = world.orders.row().id.to_string();
        world.hold(move |call| match what {
            "fork" | "schema" => call.op == Op::Put && call.key.ends_with("/manifest"),
            "import" => call.op == Op::Get && call.key.contains("/archives/"),
            "detach" => call.op == Op::Put && call.key.contains("/images/"),
            "replace" => false,
            _ => call.op == Op::Get && call.key.contains(&ours) && !call.key.ends_with("/manifest"),
        });
        // A transaction of somebody else's: what is to replace the database waits for it.
        let held = match what {
            "replace" => Some(rig::hold_gate(&world.orders).await),
            _ => None,
        };
        let mut begin = std::pin::pin!(world.begin(what));
        let mut begun = None;
        let works = |phase: &str| match what {
            "replace" => phase == "wait_for_writers",
            // Its copy of the state is done, and the new database is being made.
            "schema" => phase == "create",
            _ => phase != "starting",
        };
        // Step by step until it works; from then on it stands still. Only calls that stood before the look go on: one
        // that the work makes behind it is the one that has to stand.
        let deadline = tokio::time::Instant::now() + rig::PATIENCE;
        let id = loop {
            assert!(tokio::time::Instant::now() < deadline, "{what}: no work");
            let calls = world.faults.calls_made();
            if let Some(running) = world.running().await
                && works(&running.phase)
            {
                break running.id;
            }
            world.faults.let_go_before(calls);
            tokio::select! {
                handle = &mut begin, if begun.is_none() => begun = Some(handle.expect("begun")),
                () = tokio::time::sleep(STEP) => {}
            }
        };
        let told = world.engine.operation_cancel(world.namespace, &id).await;
        let told = told.unwrap_or_else(|error| panic!("{what}: {error:?}"));
        assert!(
            matches!(
                told.state,
                OperationState::Cancelling | OperationState::Cancelled
            ),
            "{what}: {told:?}"
        );
        world.let_go();
        let mut handle = match begun {
            Some(handle) => handle,
            None => begin.await.expect("begun"),
        };
        let ended = handle.wait(rig::PATIENCE).await;
        assert_eq!(ended.state, OperationState::Cancelled, "{what}: {ended:?}");
        assert_eq!((&ended.result, &ended.error), (&None, &None), "{what}");
        drop(held);
        world.nothing_stays(what).await;

        let again = world.begin(what).await;
        let again = again.unwrap_or_else(|error| panic!("{what}: {error:?}"));
        let again = again.clone().ended().await;
        assert_eq!(again.state, OperationState::Succeeded, "{what}: {again:?}");
        if matches!(what, "fork" | "schema" | "detach") {
            let engine = &world.engine;
            let copy = engine
                .database(world.namespace, "copy")
                .await
                .expect("copy");
            let rows = if what == "schema" { 0 } else { 2 };
            assert_eq!(rig::numbers(&copy, COUNT).await, [rows], "{what}");
            for name in ["copy", "orders"] {
                let purge = engine
                    .database_purge(world.namespace, name, Purge::default())
                    .await;
                let purged = purge.expect("begun").ended().await;
                assert_eq!(
                    purged.state,
                    OperationState::Succeeded,
                    "{what}: {purged:?}"
                );
            }
        }
        world.engine.shutdown().await.expect("shutdown");
    }
}

/// Goal: whoever watches a rewind sees it move: percent and time left while it reads the log, and no more than that
/// phase took for the estimate. Method: each segment it asks for comes later than the one before.
#[tokio::test(flavor = "multi_thread")]
async fn a_rewind_shows_how_far_it_is_while_it_reads_the_log() {
    let world = World::new().await;
    let asked = AtomicU32::new(0);
    world.faults.set_plan(script(move |call| {
        if call.op == Op::Get && call.key.contains("/segments/") {
            return Fault::Delay(LATER * asked.fetch_add(1, Ordering::SeqCst));
        }
        Fault::None
    }));
    let old = RestoreTarget::At(At::Bookmark(world.states[0]));
    let mut handle = world.orders.rewind(Rewind::to(old)).await.expect("begun");
    let mut seen = Vec::new();
    while let Some(operation) = handle.changed().await {
        if operation.phase == "read_log" && operation.bytes_done > 0 {
            assert!(operation.phase_started_at >= operation.started_at);
            seen.push((operation.progress_percent(), operation.eta_seconds()));
        }
    }
    let ended = handle.current();
    assert_eq!(ended.state, OperationState::Succeeded, "{ended:?}");
    let part_way = |(percent, _): &(Option<u8>, _)| percent.is_some_and(|at| (1..99).contains(&at));
    assert!(seen.iter().any(part_way), "{seen:?}");
    assert!(seen.iter().all(|(_, eta)| eta.is_some()), "{seen:?}");
    assert_eq!(ended.progress_percent(), Some(100));
    world.engine.shutdown().await.expect("shutdown");
}
