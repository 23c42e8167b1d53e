//! Time passes over a database: the window moves, what is promised stays, what is not goes. Clock and store are
//! the test's own.

mod rig;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use object_store::memory::InMemory;
use tidelog_archive::ErrorKind;
use tidelog_archive::env::{Clock, SystemEntropy};
use tidelog_archive::key::{Key, NonceSource};
use tidelog_archive::manifest::{
    Loaded, Manifest, ManifestStore, Marked, Pin, PublishError, State,
};
use tidelog_archive::seal::Keyring;
use tidelog_archive::store::Store;
use tidelog_engine::bucket::{At, Bucket};
use tidelog_engine::disk::StdDisk;
use tidelog_engine::executor::Threads;
use tidelog_engine::operations::{Handle, Operation, OperationState};
use tidelog_engine::system::Page;
use tidelog_engine::system::databases::{DatabasePatch, Namespace};
use tidelog_engine::travel::archives::{Format, NewArchive};
use tidelog_engine::travel::branches::Branched;
use tidelog_engine::travel::deletion::Purge;
use tidelog_engine::travel::forks::Fork;
use tidelog_engine::travel::labels::{NewSnapshot, SnapshotState};
use tidelog_engine::travel::rewind::{RestoreTarget, Rewind};
use tidelog_engine::{Code, Database, Durability, Engine, NewDatabase, Parts, Settings};
use tidelog_testkit::faultstore::{Call, Fault, FaultStore, Op, script};
use tidelog_testkit::sealing::{masters, sealed};
use tidelog_testkit::sim::ShiftedClock as Shifted;
use tidelog_wal::{DatabaseId, Position, Timestamp};

const DAY: i64 = 24 * 3600;
const HOUR: i64 = 3600;
/// How long anything may take that takes a moment, and how often that is looked at.
const WAIT: Duration = Duration::from_mins(2);
const LOOK: Duration = Duration::from_millis(5);
const LOOKS: usize = 24_000;

struct World {
    folder: tempfile::TempDir,
    faults: Arc<FaultStore>,
    store: Store,
    /// Ours and the store's.
    clock: Arc<Shifted>,
    theirs: Arc<Shifted>,
    settle_age: Duration,
    engine: Engine,
    namespace: Namespace,
}

fn parts(clock: &Arc<Shifted>) -> Parts {
    Parts {
        boot: None,
        clock: Arc::clone(clock) as Arc<dyn Clock>,
        entropy: Arc::new(SystemEntropy),
        disk: Arc::new(StdDisk),
        executor: Arc::new(Threads),
    }
}

fn settings(folder: &Path, settle_age: Duration) -> Settings {
    Settings {
        data: folder.join("data"),
        store_url: "memory:".to_owned(),
        ship_interval: Duration::from_millis(5),
        settle_bytes: if settle_age.is_zero() { 1 } else { 1 << 30 },
        settle_age,
        settle_pause: Duration::from_millis(1),
        // A machine that is busy with something else makes no write fail.
        durability_timeout: WAIT,
        gate_timeout: WAIT,
        master_keys: masters(),
        ..Settings::default()
    }
}

impl World {
    async fn new() -> Self {
        Self::with(Duration::ZERO).await
    }

    async fn with(settle_age: Duration) -> Self {
        let folder = tempfile::tempdir().expect("tempdir");
        let (clock, theirs) = (Arc::new(Shifted::new()), Arc::new(Shifted::new()));
        let memory = Arc::new(InMemory::new());
        let faults = FaultStore::new(memory, script(|_| Fault::None));
        faults.set_clock(Arc::clone(&theirs) as Arc<dyn Clock>);
        let store = rig::patient_store(&faults);
        let engine = Engine::start_on(
            settings(folder.path(), settle_age),
            parts(&clock),
            store.clone(),
        );
        let engine = engine.await.expect("start");
        let namespace = engine.namespace_create("acme").await.expect("namespace");
        Self {
            folder,
            faults,
            store,
            clock,
            theirs,
            settle_age,
            engine,
            namespace,
        }
    }

    async fn restart(&mut self) {
        self.engine.shutdown().await.expect("shutdown");
        let engine = Engine::start_on(
            settings(self.folder.path(), self.settle_age),
            parts(&self.clock),
            self.store.clone(),
        );
        self.engine = engine.await.expect("start");
    }

    fn pass(&self, seconds: i64) {
        self.clock.pass(seconds);
        self.theirs.pass(seconds);
    }

    async fn create(&self, name: &str) -> Database {
        let made = self
            .engine
            .database_create(self.namespace.id, NewDatabase::named(name));
        made.await.expect("create")
    }

    async fn open(&self, name: &str) -> Database {
        let found = self.engine.database(self.namespace.id, name).await;
        found.expect("the database")
    }

    fn manifests(&self, id: DatabaseId) -> ManifestStore {
        let entropy = Arc::new(SystemEntropy);
        let store = self.store.clone().with_keys(Keyring::new(masters()));
        ManifestStore::new(store, self.namespace.id, id, entropy)
    }

    async fn manifest(&self, id: DatabaseId) -> Loaded {
        self.manifests(id).load().await.expect("a manifest")
    }

    async fn settled(&self, database: &Database, at: Position) {
        for _ in 0..LOOKS {
            let loaded = self.manifest(database.row().id).await;
            if loaded.manifest.settled_position() == Some(at) {
                return;
            }
            tokio::time::sleep(LOOK).await;
        }
        panic!("{at} is not settled in time");
    }

    async fn turn(&self) {
        self.engine.calendar_turn().await.expect("a turn");
    }

    /// Everything the store has of a database but its key object.
    async fn keys(&self, id: DatabaseId) -> BTreeSet<String> {
        let prefix = format!("tenants/{}/{id}/", self.namespace.id);
        let listed = self.store.list(&prefix).await.expect("a listing");
        let keys = listed.into_iter().map(|entry| entry.key);
        keys.filter(|key| !key.ends_with("/key")).collect()
    }

    async fn exported(&self, database: &Database, at: At) -> i64 {
        let folder = tempfile::tempdir().expect("tempdir");
        let out = folder.path().join("out.db");
        database
            .export(at.clone(), &out)
            .await
            .unwrap_or_else(|e| panic!("{at:?}: {e:?}"));
        let file = rusqlite::Connection::open(&out).expect("open");
        let newest = file.query_row("SELECT max(a) FROM t", [], |row| row.get(0));
        newest.expect("a row")
    }
}

async fn write(database: &Database, sql: &str) -> Position {
    write_at(database, sql, Durability::Remote).await
}

async fn write_at(database: &Database, sql: &str, durability: Durability) -> Position {
    let request = rig::request(&[sql], durability);
    let done = database.execute(request).await;
    done.unwrap_or_else(|e| panic!("{sql}: {e:?}")).bookmark
}

fn label(name: &str, pin: bool) -> NewSnapshot {
    NewSnapshot {
        name: name.to_owned(),
        note: String::new(),
        at: At::Latest,
        pin,
        expires_at: None,
    }
}

async fn refused(database: &Database, at: At) -> tidelog_engine::Error {
    let folder = tempfile::tempdir().expect("tempdir");
    let out = folder.path().join("out.db");
    database.export(at, &out).await.expect_err("it is refused")
}

/// Goal: I5 and the promise of the window over ninety days of one write a day; storage stays bounded. Method: every day
/// the oldest bookmark that is promised restores; on the last day all of them do, and the rest is expired by name.
#[tokio::test(flavor = "multi_thread")]
async fn the_window_moves_and_what_it_promises_stays() {
    let world = World::new().await;
    let orders = world.create("orders").await;
    let patch = DatabasePatch {
        retention_micros: Some(10 * DAY as u64 * 1_000_000),
        ..DatabasePatch::default()
    };
    let patched = world
        .engine
        .database_patch(world.namespace.id, "orders", patch);
    patched.await.expect("ten days");
    let id = orders.row().id;
    write(&orders, "CREATE TABLE t(a INTEGER PRIMARY KEY, b)").await;
    let mut days: Vec<(Position, i64)> = Vec::new();
    let mut first_keys = BTreeSet::new();
    let (mut most, mut before) = (0, String::new());
    for day in 0..90_i64 {
        let sql = format!("INSERT INTO t VALUES({day}, randomblob(3000))");
        let at = write(&orders, &sql).await;
        days.push((at, day));
        if day == 2 {
            let made = orders.snapshot_create(label("kept", true)).await;
            assert!(made.expect("a label").pinned);
        }
        if day == 3 {
            let made = orders.snapshot_create(label("mortal", false)).await;
            made.expect("a label");
        }
        world.settled(&orders, at).await;
        if day == 0 {
            first_keys = world.keys(id).await;
            first_keys.retain(|key| !key.ends_with("/manifest"));
        }
        world.pass(DAY);
        world.turn().await;
        // The day that has begun, and ten before it.
        let oldest = usize::try_from((day - 9).max(0)).expect("small");
        let (at, value) = days[oldest];
        assert_eq!(
            world.exported(&orders, At::Bookmark(at)).await,
            value,
            "day {day}"
        );
        if day > 2 {
            let kept = At::Snapshot("kept".to_owned());
            let shape = shape(&world.manifest(id).await.manifest);
            let out = tempfile::tempdir().expect("tempdir");
            let restored = orders.export(kept, &out.path().join("out.db")).await;
            let newest = restored.unwrap_or_else(|e| panic!("day {day}: {e:?}\n{before}\n{shape}"));
            assert_eq!(newest, days[2].0, "day {day}: {shape}");
            before = shape;
        }
        most = most.max(world.keys(id).await.len());
    }
    for (at, value) in &days[80..] {
        assert_eq!(world.exported(&orders, At::Bookmark(*at)).await, *value);
    }
    let expired = refused(&orders, At::Bookmark(days[5].0)).await;
    assert_eq!(expired.code(), Code::BookmarkExpired);
    let oldest = expired.members()["oldest_available"]
        .as_str()
        .expect("a bookmark");
    let oldest: Position = oldest.parse().expect("a bookmark");
    assert!(oldest.txid <= days[80].0.txid);
    world.exported(&orders, At::Bookmark(oldest)).await;
    let window = orders.recovery_window().await.expect("a window");
    assert_eq!(window.earliest.map(|(at, _)| at), Some(oldest));
    assert_eq!(
        world
            .exported(&orders, At::Snapshot("kept".to_owned()))
            .await,
        2
    );
    let expired = refused(&orders, At::Snapshot("mortal".to_owned())).await;
    assert_eq!(expired.code(), Code::SnapshotExpired);
    let shown = orders.snapshot("mortal").await.expect("it is shown");
    assert_eq!(shown.state, SnapshotState::Expired);
    assert!(most < 60, "storage stays bounded: {most} objects at most");
    // The bucket alone says the same.
    let bucket = Bucket::open_on(world.store.clone(), parts(&world.clock), &masters())
        .await
        .expect("bucket");
    let found = bucket.find("acme", "orders").await.expect("orders");
    let labels = bucket.snapshots(&found).await.expect("labels");
    let states: Vec<_> = labels.iter().map(|l| (l.name.as_str(), l.state)).collect();
    let wanted = [
        ("kept", SnapshotState::Restorable),
        ("mortal", SnapshotState::Expired),
    ];
    assert_eq!(states, wanted);
    let out = world.folder.path().join("kept.db");
    let at = At::Snapshot("kept".to_owned());
    bucket
        .restore(&found, at, &out, false)
        .await
        .expect("from the bucket alone");
    // Without its pin the label's state goes.
    orders
        .snapshot_delete("kept", true)
        .await
        .expect("unpinned");
    for _ in 0..3 {
        world.pass(2 * DAY);
        world.turn().await;
    }
    let gone = refused(&orders, At::Bookmark(days[2].0)).await;
    assert_eq!(gone.code(), Code::BookmarkExpired);
    // The pin may have kept the first day: the way to its state can begin there.
    let left: Vec<_> = world
        .keys(id)
        .await
        .intersection(&first_keys)
        .cloned()
        .collect();
    assert!(left.is_empty(), "{left:?} are left of the first day");
    world.engine.shutdown().await.expect("shutdown");
}

/// What a manifest lists, for a failure's message.
fn shape(manifest: &Manifest) -> String {
    let segments = manifest.segments.iter();
    let segments: Vec<_> = segments
        .map(|entry| (entry.run.first.get(), entry.run.last.get()))
        .collect();
    let images = manifest.images.iter();
    let images: Vec<_> = images.map(|entry| entry.position.txid.get()).collect();
    format!(
        "horizon {}, segments {segments:?}, images {images:?}, {} index objects, {} marked, {} pins",
        manifest.horizon.get(),
        manifest.index.len(),
        manifest.marked.len(),
        manifest.pins.len(),
    )
}

/// Goal: an outage at any call of a look leaves what the next look goes on with. Method: two databases alike;
/// each call of the looks of the second fails once, before or after its effect; in the end both hold as much.
#[tokio::test(flavor = "multi_thread")]
async fn an_outage_at_any_step_of_a_look_is_made_up_for() {
    let world = World::new().await;
    let mut before = None;
    for fault in [None, Some(Fault::Before), Some(Fault::After)] {
        let name = format!("db{}", fault.map_or(0, |f| 1 + u8::from(f == Fault::After)));
        let orders = world.create(&name).await;
        let id = orders.row().id;
        let mut at = write(&orders, "CREATE TABLE t(a INTEGER PRIMARY KEY, b)").await;
        for day in 0..5 {
            let sql = format!("INSERT INTO t VALUES({day}, randomblob(2000))");
            at = write(&orders, &sql).await;
            world.settled(&orders, at).await;
            world.pass(DAY);
        }
        world.pass(40 * DAY);
        let mut failed = 0;
        for number in 0.. {
            if let Some(fault) = fault {
                let prefix = id.to_string();
                let seen = std::sync::atomic::AtomicU64::new(0);
                world.faults.set_plan(script(move |call: &Call| {
                    let ours = call.key.contains(&prefix);
                    if ours && seen.fetch_add(1, Ordering::SeqCst) == number {
                        return fault;
                    }
                    Fault::None
                }));
            }
            let calls = world.faults.calls().len();
            world.turn().await;
            let ours = world.faults.calls()[calls..]
                .iter()
                .filter(|call| call.key.contains(&id.to_string()))
                .count() as u64;
            world.faults.set_plan(script(|_| Fault::None));
            failed += u64::from(fault.is_some() && ours > number);
            world.pass(2 * HOUR);
            if fault.is_none() && number > 30 || fault.is_some() && number > 60 {
                break;
            }
            // Half of the time no grace is over yet.
            if number % 2 == 1 {
                world.pass(DAY);
            }
            assert_eq!(world.exported(&orders, At::Bookmark(at)).await, 4);
        }
        assert_eq!(fault.is_some(), failed > 0, "{failed} faults were met");
        for _ in 0..3 {
            world.pass(2 * DAY);
            world.turn().await;
        }
        let manifest = world.manifest(id).await.manifest;
        assert!(manifest.marked.is_empty(), "{:?}", manifest.marked);
        let listed = manifest.segments.len() + manifest.images.len() + manifest.index.len();
        let shape = (manifest.segments.len(), manifest.images.len());
        assert_eq!(*before.get_or_insert(shape), shape);
        // An image whose listing failed is garbage of this life: the next one's business.
        assert!(world.keys(id).await.len() > listed);
    }
    world.engine.shutdown().await.expect("shutdown");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_marked_before_a_restart_is_swept_after_it_and_garbage_with_it() {
    let mut world = World::new().await;
    let orders = world.create("orders").await;
    let id = orders.row().id;
    let mut at = write(&orders, "CREATE TABLE t(a INTEGER PRIMARY KEY, b)").await;
    for day in 0..4 {
        let sql = format!("INSERT INTO t VALUES({day}, randomblob(2000))");
        at = write(&orders, &sql).await;
        world.settled(&orders, at).await;
        world.pass(DAY);
    }
    // Something this life wrote and never listed.
    let manifest = world.manifest(id).await.manifest;
    let listed = manifest.segments[0];
    let mut stray = listed;
    stray.nonce.counter += 1_000_000;
    let bytes = world
        .store
        .get(&listed.key(world.namespace.id, id).to_string())
        .await;
    let stray = stray.key(world.namespace.id, id).to_string();
    world
        .store
        .create(&stray, bytes.expect("a segment"))
        .await
        .expect("a stray");
    world.pass(40 * DAY);
    world.turn().await;
    let marked = world.manifest(id).await.manifest.marked;
    assert!(!marked.is_empty());
    let keys = world.keys(id).await;
    world.restart().await;
    let orders = world.open("orders").await;
    world.pass(23 * HOUR);
    world.turn().await;
    assert!(
        world.keys(id).await.is_superset(&keys),
        "the grace is not over"
    );
    // A node that has just started may not have read its calendar yet.
    for round in 0..LOOKS {
        if round < 10 {
            world.pass(2 * HOUR);
        }
        world.turn().await;
        let swept = world.manifest(id).await.manifest.marked.is_empty();
        if swept && !world.keys(id).await.contains(&stray) {
            break;
        }
        tokio::time::sleep(LOOK).await;
    }
    let left = world.keys(id).await;
    let manifest = world.manifest(id).await.manifest;
    assert!(manifest.marked.is_empty(), "{:?}", manifest.marked);
    assert!(!left.contains(&stray), "garbage of an earlier life is gone");
    assert_eq!(
        left.len(),
        1 + manifest.segments.len() + manifest.images.len()
    );
    assert_eq!(world.exported(&orders, At::Bookmark(at)).await, 3);
    assert_eq!(world.exported(&orders, At::Latest).await, 3);
    // It takes writes, and they are restorable, behind an end that only an image tells.
    let next = write(&orders, "INSERT INTO t VALUES(9, 'x')").await;
    world.settled(&orders, next).await;
    assert_eq!(world.exported(&orders, At::Bookmark(next)).await, 9);
    world.engine.shutdown().await.expect("shutdown");
}

/// Goal: nothing lies in the bucket that the operator is not told of: a database whose making ended before its row is
/// named once it is older than the grace, and goes only when that is asked for by its own word. Method: one is made and
/// never named, beside one in use, one that is deleted and can come back, and a tombstone.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_no_row_names_is_told_of_and_destroyed_when_asked() {
    let world = World::new().await;
    let namespace = world.namespace.id;
    let orders = world.create("orders").await;
    let at = write(&orders, "CREATE TABLE t(a)").await;
    world.settled(&orders, at).await;
    for name in ["deleted", "purged"] {
        world.create(name).await;
    }
    let deleted = world.engine.database_delete(namespace, "deleted").await;
    deleted.expect("deleted");
    let purge = world
        .engine
        .database_purge(namespace, "purged", Purge::default())
        .await;
    succeeded(purge.expect("begun")).await;
    let draft = world
        .engine
        .database_draft(namespace, NewDatabase::named("ghost"));
    let draft = draft.await.expect("a draft");
    let ghost = draft.database().row().id;
    drop(draft);
    let told = async |apply, unnamed| {
        let found = world
            .engine
            .reconcile(Page::default(), apply, unnamed)
            .await;
        found.expect("a look").unnamed
    };
    // What is written after the clock was set would be young.
    rig::until("the settle of the ghost", async || {
        world.manifest(ghost).await.manifest.settled.is_some()
    })
    .await;
    world.pass(23 * HOUR);
    assert!(told(true, true).await.is_empty(), "it may be in the making");
    world.pass(2 * HOUR);
    // Whoever asks for the objects of histories does not ask for this.
    for (apply, unnamed) in [(false, false), (false, true), (true, false)] {
        let found = told(apply, unnamed).await;
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!((found[0].namespace, found[0].id), (namespace, ghost));
        assert_eq!(found[0].name_hint, "ghost");
        let keys: BTreeSet<String> = found[0].objects.iter().map(|one| one.key.clone()).collect();
        assert!(keys.is_superset(&world.keys(ghost).await), "{keys:?}");
        assert!(!world.keys(ghost).await.is_empty());
    }
    assert_eq!(told(true, true).await.len(), 1);
    let left = world.keys(ghost).await;
    assert_eq!(left.len(), 1, "the tombstone alone: {left:?}");
    assert!(told(false, false).await.is_empty());
    world.pass(2 * DAY);
    assert!(told(true, true).await.is_empty());
    assert!(!world.keys(orders.row().id).await.is_empty());
    write(&orders, "INSERT INTO t VALUES(1)").await;
    let undeleted = world.engine.database_undelete(namespace, "deleted").await;
    undeleted.expect("it can come back");
    world.engine.shutdown().await.expect("shutdown");
}

/// HAZARDS S39: our clock, or the store's alone, set forward by a year expires nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_clock_set_forward_by_a_year_expires_nothing() {
    let world = World::new().await;
    let orders = world.create("orders").await;
    let id = orders.row().id;
    write(&orders, "CREATE TABLE t(a INTEGER PRIMARY KEY, b)").await;
    let mut bookmarks = BTreeMap::new();
    for day in 0..3 {
        let at = write(&orders, &format!("INSERT INTO t VALUES({day}, 'x')")).await;
        world.settled(&orders, at).await;
        bookmarks.insert(day, at);
    }
    let hidden = world.create("hidden").await;
    let made = world.engine.now();
    let mut new = label("short", true);
    new.expires_at = Some(Timestamp::from_micros(made.micros() + 86_400_000_000));
    orders.snapshot_create(new).await.expect("a label");
    let deleted = world.engine.database_delete(world.namespace.id, "hidden");
    deleted.await.expect("deleted");
    for clock in [&world.clock, &world.theirs] {
        clock.step(365 * DAY);
        for _ in 0..3 {
            world.turn().await;
            clock.step(2 * DAY);
        }
        let manifest = world.manifest(id).await.manifest;
        assert!(manifest.marked.is_empty() && manifest.labels.len() == 1);
        let state = world.manifest(hidden.row().id).await.manifest.state;
        assert!(matches!(state, State::Deleted(_)), "{state:?}");
        clock.step(-371 * DAY);
    }
    for (day, at) in bookmarks {
        assert_eq!(world.exported(&orders, At::Bookmark(at)).await, day);
    }
    let back = world.engine.database_undelete(world.namespace.id, "hidden");
    back.await.expect("undeleted");
    world.engine.shutdown().await.expect("shutdown");
}

/// Goal: a fork whose time is over goes as a deleted database goes and lets its parent's history go; one clock alone
/// that is set forward ends nothing (HAZARDS S39), and a protected fork stays.
#[tokio::test(flavor = "multi_thread")]
async fn a_fork_goes_when_two_clocks_say_that_its_time_is_over() {
    let mut world = World::new().await;
    let namespace = world.namespace.id;
    let orders = world.create("orders").await;
    let parent = orders.row().id;
    write(&orders, "CREATE TABLE t(a INTEGER PRIMARY KEY, b)").await;
    let at = write(&orders, "INSERT INTO t VALUES(1, 'x')").await;
    world.settled(&orders, at).await;
    for name in ["copy", "guarded"] {
        let fork = Fork {
            lives: Some(Duration::from_hours(48)),
            ..Fork::named(name)
        };
        succeeded(orders.fork(fork).await.expect("begun")).await;
    }
    let protect = DatabasePatch {
        delete_protection: Some(true),
        ..DatabasePatch::default()
    };
    let patched = world.engine.database_patch(namespace, "guarded", protect);
    patched.await.expect("protected");
    let id = world.open("copy").await.row().id;
    for clock in [&world.clock, &world.theirs] {
        clock.step(365 * DAY);
        for _ in 0..3 {
            world.turn().await;
            clock.step(2 * DAY);
        }
        assert_eq!(world.open("copy").await.row().id, id, "one clock alone");
        clock.step(-371 * DAY);
    }
    // What was planned under the clock that ran ahead is looked at again.
    world.restart().await;
    world.turn().await;
    world.open("copy").await;
    world.pass(2 * DAY + HOUR);
    // A node that has just started may not have read its calendar yet.
    for _ in 0..LOOKS {
        world.turn().await;
        if world.engine.database(namespace, "copy").await.is_err() {
            break;
        }
        tokio::time::sleep(LOOK).await;
    }
    let gone = world.engine.database(namespace, "copy").await;
    assert_eq!(gone.expect_err("over").code(), Code::DatabaseNotFound);
    let state = world.manifest(id).await.manifest.state;
    assert!(matches!(state, State::Deleted(_)), "{state:?}");
    world.open("guarded").await;
    let pins = async || world.manifest(parent).await.manifest.pins.len();
    assert_eq!(pins().await, 2, "it can be brought back");
    world.pass(7 * DAY + HOUR);
    world.turn().await;
    for _ in 0..LOOKS {
        if world.keys(id).await.len() == 1 && pins().await == 1 {
            break;
        }
        tokio::time::sleep(LOOK).await;
    }
    assert_eq!(world.keys(id).await.len(), 1, "the tombstone alone");
    assert_eq!(pins().await, 1, "only the other fork's");
    let guarded = world.open("guarded").await;
    assert_eq!(world.exported(&guarded, At::Latest).await, 1);
    world.engine.shutdown().await.expect("shutdown");
}

/// Goal: a label says whether its state can be restored from the store yet. Method: the store takes no journal objects
/// for a while.
#[tokio::test(flavor = "multi_thread")]
async fn a_label_of_a_commit_that_is_not_stored_says_so() {
    let world = World::new().await;
    let orders = world.create("orders").await;
    write(&orders, "CREATE TABLE t(a INTEGER PRIMARY KEY, b)").await;
    let stored = orders.snapshot_create(label("stored", false)).await;
    assert_eq!(stored.expect("a label").state, SnapshotState::Restorable);
    world.faults.set_plan(script(|call: &Call| {
        if call.op == Op::Put && call.key.starts_with("journal/") {
            return Fault::Before;
        }
        Fault::None
    }));
    let at = write_at(&orders, "INSERT INTO t VALUES(1, 'x')", Durability::Memory).await;
    let made = orders.snapshot_create(label("fresh", true)).await;
    let made = made.expect("a name needs no stored commit");
    assert_eq!(
        (made.state, made.bookmark),
        (SnapshotState::PendingDurable, at)
    );
    let listed = orders.snapshots(Page::default()).await.expect("list").items;
    let states: Vec<_> = listed.iter().map(|one| one.state).collect();
    assert_eq!(
        states,
        [SnapshotState::PendingDurable, SnapshotState::Restorable]
    );
    world.faults.set_plan(script(|_| Fault::None));
    for round in 0.. {
        let fresh = orders.snapshot("fresh").await.expect("a label");
        if fresh.state == SnapshotState::Restorable {
            break;
        }
        assert!(round < LOOKS, "{fresh:?}");
        tokio::time::sleep(LOOK).await;
    }
    let fresh = At::Snapshot("fresh".to_owned());
    assert_eq!(world.exported(&orders, fresh).await, 1);
    world.engine.shutdown().await.expect("shutdown");
}

/// Goal: a branch that cannot be made anew stays as it is, and of the attempt nothing holds its parent. Method: the
/// store takes no manifest of what is new.
#[tokio::test(flavor = "multi_thread")]
async fn a_branch_stands_until_the_new_one_is_there() {
    let world = World::new().await;
    let orders = world.create("orders").await;
    let parent = orders.row().id;
    write(&orders, "CREATE TABLE t(a INTEGER PRIMARY KEY, b)").await;
    let one = write(&orders, "INSERT INTO t VALUES(1, 'x')").await;
    let two = write(&orders, "INSERT INTO t VALUES(2, 'x')").await;
    let put = async |at| match orders.branch_put("x", At::Bookmark(at), None, None).await {
        Ok(Branched::Begun(handle)) => ended(handle).await,
        other => panic!("{other:?}"),
    };
    assert_eq!(put(one).await.state, OperationState::Succeeded);
    let stands = orders.branch("x").await.expect("the branch");
    let keep = [parent.to_string(), stands.id.to_string()];
    let tenant = format!("tenants/{}/", world.namespace.id);
    world.faults.set_plan(script(move |call: &Call| {
        let new = call.key.starts_with(&tenant) && keep.iter().all(|id| !call.key.contains(id));
        if call.op == Op::Put && new {
            return Fault::Before;
        }
        Fault::None
    }));
    let failed = put(two).await;
    assert_eq!(failed.state, OperationState::Failed, "{failed:?}");
    let still = orders.branch("x").await.expect("the branch");
    assert_eq!(still.id, stands.id);
    let branch = world.open(&still.name).await;
    assert_eq!(world.exported(&branch, At::Latest).await, 1);
    world.faults.set_plan(script(|_| Fault::None));
    assert_eq!(put(two).await.state, OperationState::Succeeded);
    let anew = orders.branch("x").await.expect("the branch");
    assert_eq!(anew.parent.expect("it shares its state").at, two);
    let branch = world.open(&anew.name).await;
    assert_eq!(world.exported(&branch, At::Latest).await, 2);
    // The old one is deleted, and can be brought back.
    let old = world.manifest(stands.id).await.manifest.state;
    assert!(matches!(old, State::Deleted(_)), "{old:?}");
    let pins = world.manifest(parent).await.manifest.pins;
    let children: BTreeSet<_> = pins.iter().filter_map(|pin| pin.child).collect();
    assert_eq!(children, BTreeSet::from([stands.id, anew.id]));
    world.engine.shutdown().await.expect("shutdown");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_database_comes_back_or_is_purged_after_seven_days() {
    let world = World::new().await;
    let namespace = world.namespace.id;
    let orders = world.create("orders").await;
    let id = orders.row().id;
    write(&orders, "CREATE TABLE t(a)").await;
    let at = write(&orders, "INSERT INTO t VALUES(1)").await;
    world
        .engine
        .database_delete(namespace, "orders")
        .await
        .expect("deleted");
    let refused = orders.bookmark().await.expect_err("a handle is refused");
    assert_eq!(refused.code(), Code::DatabaseNotFound);
    assert!(matches!(
        world.manifest(id).await.manifest.state,
        State::Deleted(_)
    ));
    let other = world.create("orders").await;
    let taken = world.engine.database_undelete(namespace, "orders").await;
    assert_eq!(
        taken.expect_err("the name is in use").code(),
        Code::NameTaken
    );
    let purged = world
        .engine
        .database_purge(namespace, "orders", Purge::default())
        .await;
    let purged = purged.expect("begun").wait(WAIT).await;
    assert_eq!(purged.state, OperationState::Succeeded, "{purged:?}");
    assert_eq!(
        world.keys(other.row().id).await.len(),
        1,
        "the live one was meant"
    );
    world
        .engine
        .database_undelete(namespace, "orders")
        .await
        .expect("undeleted");
    let orders = world.open("orders").await;
    assert_eq!(orders.bookmark().await.expect("open").bookmark, at);
    assert!(matches!(
        world.manifest(id).await.manifest.state,
        State::Active(_)
    ));
    world
        .engine
        .database_delete(namespace, "orders")
        .await
        .expect("deleted");
    world.pass(6 * DAY);
    world.turn().await;
    assert!(world.keys(id).await.len() > 1, "six days");
    world.pass(DAY + HOUR);
    world.turn().await;
    for _ in 0..LOOKS {
        if world.keys(id).await.len() == 1 {
            break;
        }
        tokio::time::sleep(LOOK).await;
    }
    assert_eq!(world.keys(id).await.len(), 1, "the tombstone alone");
    assert!(matches!(
        world.manifest(id).await.manifest.state,
        State::Purged(_)
    ));
    world.engine.shutdown().await.expect("shutdown");
}

/// Goal: nothing of a purged database is left, and its part of shared journal objects holds nobody up. Method:
/// nothing is settled when it is purged; a restart then settles the other database.
#[tokio::test(flavor = "multi_thread")]
async fn a_purge_reaches_every_object_and_the_journal_goes_on() {
    let mut world = World::with(Duration::from_hours(1000)).await;
    let namespace = world.namespace.id;
    let (orders, other) = (world.create("orders").await, world.create("other").await);
    for database in [&orders, &other] {
        write(database, "CREATE TABLE t(a INTEGER PRIMARY KEY, b)").await;
        // Spooled: uploaded as a part of its own.
        write(database, "INSERT INTO t VALUES(1, randomblob(3000000))").await;
    }
    orders
        .snapshot_create(label("a", true))
        .await
        .expect("a label");
    let id = orders.row().id;
    assert!(world.keys(id).await.len() > 1, "a part is stored");
    let pinned = fork_pin(&world, &orders).await;
    let refused = world
        .engine
        .database_purge(namespace, "orders", Purge::default())
        .await;
    let refused = match refused {
        Err(error) => error.code().as_str().to_owned(),
        Ok(mut handle) => {
            let ended = handle.wait(WAIT).await;
            ended.error.expect("it failed").code
        }
    };
    assert_eq!(refused, "fork-parent-pinned");
    let (orders, folder) = (world.open("orders").await, world.folder.path().join("data"));
    write(&orders, "INSERT INTO t VALUES(2, 'x')").await;
    unpin(&world, id, pinned).await;
    let protect = |on| DatabasePatch {
        delete_protection: Some(on),
        ..DatabasePatch::default()
    };
    let patched = world
        .engine
        .database_patch(namespace, "orders", protect(true));
    patched.await.expect("protected");
    let refused = world
        .engine
        .database_purge(namespace, "orders", Purge::default())
        .await;
    assert_eq!(
        refused.expect_err("protected").code(),
        Code::DatabaseProtected
    );
    let patched = world
        .engine
        .database_patch(namespace, "orders", protect(false));
    patched.await.expect("not protected");
    let purge = world
        .engine
        .database_purge(namespace, "orders", Purge::default())
        .await;
    let ended = purge.expect("begun").wait(WAIT).await;
    assert_eq!(ended.state, OperationState::Succeeded, "{ended:?}");
    let result = ended.result.expect("a result");
    assert!(result["journal"]["complete_when"].is_string(), "{result}");
    let keys = world.keys(id).await;
    assert_eq!(keys.len(), 1, "{keys:?}");
    let tombstone = world.manifest(id).await.manifest;
    assert!(matches!(tombstone.state, State::Purged(_)));
    assert!(tombstone.name_hint.is_empty() && tombstone.labels.is_empty());
    assert!(!folder.join("databases").join(id.to_string()).exists());
    let spools = std::fs::read_dir(folder.join("journal")).expect("a folder");
    let of_it = |entry: &std::fs::DirEntry| {
        entry
            .file_name()
            .to_string_lossy()
            .starts_with(&id.to_string())
    };
    assert_eq!(spools.flatten().filter(of_it).count(), 0);
    for refused in [
        orders.bookmark().await.expect_err("a handle"),
        world
            .engine
            .database_undelete(namespace, "orders")
            .await
            .expect_err("undelete"),
        world
            .engine
            .database_purge(namespace, "orders", Purge::default())
            .await
            .expect_err("again"),
    ] {
        assert_eq!(refused.code(), Code::DatabasePurged);
    }
    // The next life settles what is left, and trims what held both.
    world.settle_age = Duration::ZERO;
    let journals = |keys: Vec<tidelog_archive::store::Entry>| {
        let object = |key: &str| key.len() == 33 && !key.ends_with("0000");
        keys.iter().filter(|entry| object(&entry.key)).count()
    };
    let before = journals(world.store.list("journal").await.expect("a listing"));
    world.restart().await;
    let other = world.open("other").await;
    let at = other.bookmark().await.expect("open").bookmark;
    world.settled(&other, at).await;
    for round in 0.. {
        let now = journals(
            world
                .store
                .list("journal/00000001")
                .await
                .expect("a listing"),
        );
        if now < before {
            break;
        }
        assert!(round < LOOKS, "{now} of {before} journal objects are left");
        tokio::time::sleep(LOOK).await;
    }
    assert_eq!(world.keys(id).await.len(), 1);
    world.create("orders").await;
    world.engine.shutdown().await.expect("shutdown");
}

/// Puts a pin with a child into the manifest of a database, as a fork does.
async fn fork_pin(world: &World, database: &Database) -> [u8; 16] {
    let id = database.row().id;
    let at = database.bookmark().await.expect("open").bookmark;
    let pin = Pin {
        id: [9; 16],
        position: at,
        created: world.engine.now(),
        child: Some(DatabaseId::from_bytes([8; 16])),
    };
    change(world, id, |manifest| manifest.pins.push(pin)).await;
    pin.id
}

async fn unpin(world: &World, id: DatabaseId, pin: [u8; 16]) {
    change(world, id, |manifest| {
        manifest.pins.retain(|known| known.id != pin);
    })
    .await;
}

async fn change(world: &World, id: DatabaseId, mut change: impl FnMut(&mut Manifest)) {
    let loaded = world.manifest(id).await;
    let owner = loaded.manifest.owner;
    let nonces = NonceSource::new(owner.term, 1 << 40);
    let changed = world
        .manifests(id)
        .publish(&loaded, owner, &nonces, |manifest| {
            change(manifest);
            Ok::<_, PublishError>(())
        })
        .await;
    changed.expect("changed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_says_what_an_applied_one_does() {
    let world = World::new().await;
    let namespace = world.namespace.id;
    let orders = world.create("orders").await;
    write(&orders, "CREATE TABLE t(a INTEGER PRIMARY KEY, b)").await;
    for day in 0..3 {
        let sql = format!("INSERT INTO t VALUES({day}, randomblob(2000))");
        let at = write(&orders, &sql).await;
        world.settled(&orders, at).await;
        world.pass(DAY);
    }
    world.pass(40 * DAY);
    let id = orders.row().id;
    let version = world.manifest(id).await.manifest.version;
    let keys = world.keys(id).await;
    let (_, dry) = world
        .engine
        .retention_of(namespace, "orders", false)
        .await
        .expect("dry");
    assert!(!dry.applied && dry.image_at.is_some());
    assert_eq!(
        world.manifest(id).await.manifest.version,
        version,
        "nothing is written"
    );
    assert_eq!(world.keys(id).await, keys);
    let (_, first) = world
        .engine
        .retention_of(namespace, "orders", true)
        .await
        .expect("applied");
    assert_eq!((first.applied, first.image_at), (true, dry.image_at));
    assert!(!first.marked.is_empty());
    world.pass(25 * HOUR);
    let (_, dry) = world
        .engine
        .retention_of(namespace, "orders", false)
        .await
        .expect("dry");
    let (_, second) = world
        .engine
        .retention_of(namespace, "orders", true)
        .await
        .expect("applied");
    assert_eq!(dry.deleted, second.deleted);
    assert_eq!(first.marked, second.deleted);
    world.engine.shutdown().await.expect("shutdown");
}

fn archive(at: At) -> NewArchive {
    NewArchive::of(at, Format::Sqlite)
}

async fn ended(mut handle: Handle) -> Operation {
    let operation = handle.wait(WAIT).await;
    assert!(operation.state.is_final(), "{operation:?}");
    operation
}

async fn succeeded(handle: Handle) -> serde_json::Value {
    let operation = ended(handle).await;
    assert_eq!(operation.state, OperationState::Succeeded, "{operation:?}");
    operation.result.expect("a result")
}

/// Goal (I5): what a running archive, restore or fork reads is never taken from it, however long it runs. Method: its
/// first read of the store stands still, while forty days pass and retention is applied again and again, graces
/// over; then it goes on, and holds what it should. Afterwards the same retention takes the old state away.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_running_archive_restore_or_fork_reads_is_not_taken_from_it() {
    for what in ["archive", "restore", "fork"] {
        let mut world = World::new().await;
        let orders = world.create("orders").await;
        let id = orders.row().id;
        write(&orders, "CREATE TABLE t(a INTEGER PRIMARY KEY, b)").await;
        let mut days = Vec::new();
        for day in 0..6 {
            let sql = format!("INSERT INTO t VALUES({day}, randomblob(2000))");
            let at = write(&orders, &sql).await;
            world.settled(&orders, at).await;
            days.push(at);
            world.pass(DAY);
        }
        // The journal of this folder must not have what is to be read from the store.
        drop(orders);
        world.restart().await;
        let orders = world.open("orders").await;
        let old = At::Bookmark(days[1]);
        // Its work begins while it is noted: it is planned before, so that it reads nothing but what is meant.
        let target = RestoreTarget::At(old.clone());
        let planned = match what {
            "restore" => Some(orders.preview(&target).await.expect("a plan").id),
            _ => None,
        };
        let begin = async || match what {
            "archive" => orders.archive_create(archive(old.clone())).await,
            "restore" => {
                let rewind = Rewind {
                    plan: planned.clone(),
                    ..Rewind::to(target.clone())
                };
                orders.rewind(rewind).await
            }
            _ => {
                let fork = Fork {
                    at: old.clone(),
                    ..Fork::named("copy")
                };
                orders.fork(fork).await
            }
        };
        // A fork writes a manifest of its own, not the system's; the others read segments.
        let tenant = format!("tenants/{}/", world.namespace.id);
        let slow = move |call: &Call| match what {
            "fork" => {
                let own = call.key.starts_with(&tenant) && call.key.ends_with("/manifest");
                call.op == Op::Put && own
            }
            _ => call.op == Op::Get && call.key.contains("/segments/"),
        };
        let waiting = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let seen = Arc::clone(&waiting);
        let ours = id.to_string();
        world.faults.set_plan(script(move |call| {
            // The first of them alone: it is enough, and retention reads on.
            if slow(call)
                && (what == "fork") != call.key.contains(&ours)
                && !seen.swap(true, Ordering::SeqCst)
            {
                return Fault::Hold;
            }
            Fault::None
        }));
        // What is read before the work begins goes on at once: the work's own first read is meant.
        let mut begin = std::pin::pin!(begin());
        let handle = loop {
            tokio::select! {
                biased;
                begun = &mut begin => break begun.expect("begun"),
                () = tokio::time::sleep(LOOK), if planned.is_none() => {
                    waiting.store(false, Ordering::SeqCst);
                    world.faults.let_go();
                }
            }
        };
        for round in 0.. {
            if waiting.load(Ordering::SeqCst) {
                break;
            }
            assert!(round < LOOKS, "{what}: it reads nothing");
            tokio::time::sleep(LOOK).await;
        }
        world.pass(40 * DAY);
        for _ in 0..4 {
            let (_, report) = world
                .engine
                .retention_of(world.namespace.id, "orders", true)
                .await
                .expect("retention");
            assert!(report.held, "{what}: {report:?}");
            world.pass(2 * DAY);
        }
        assert!(!handle.current().state.is_final(), "{what}: it runs on");
        let manifest = world.manifest(id).await.manifest;
        assert!(manifest.marked.is_empty(), "{what}: {:?}", manifest.marked);
        world.faults.let_go();
        let result = succeeded(handle).await;
        let newest = match what {
            "archive" => {
                let id = result["archive"]["id"].as_str().expect("an id");
                let made =
                    world
                        .engine
                        .database_from_archive(world.namespace.id, "again", id, None);
                succeeded(made.await.expect("begun")).await;
                world.exported(&world.open("again").await, At::Latest).await
            }
            "restore" => world.exported(&orders, At::Latest).await,
            _ => world.exported(&world.open("copy").await, At::Latest).await,
        };
        assert_eq!(newest, 1, "{what}");
        for _ in 0..4 {
            world.turn().await;
            world.pass(2 * DAY);
        }
        let expired = refused(&orders, At::Bookmark(days[0])).await;
        assert_eq!(expired.code(), Code::BookmarkExpired, "{what}");
        world.engine.shutdown().await.expect("shutdown");
    }
}

/// Archives are kept until somebody deletes them: held ones stop a purge, others the one that comes by itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_purge_waits_for_held_archives_and_reaches_the_others() {
    let world = World::new().await;
    let namespace = world.namespace.id;
    let orders = world.create("orders").await;
    let id = orders.row().id;
    write(&orders, "CREATE TABLE t(a INTEGER PRIMARY KEY, b)").await;
    write(&orders, "INSERT INTO t VALUES(1, 'x')").await;
    let retained = NewArchive {
        retain_until: Some(Timestamp::from_micros(
            world.engine.now().micros() + 9 * DAY as u64 * 1_000_000,
        )),
        ..archive(At::Latest)
    };
    let retained = succeeded(orders.archive_create(retained).await.expect("begun")).await;
    let held = NewArchive {
        legal_hold: true,
        ..archive(At::Latest)
    };
    let held = succeeded(orders.archive_create(held).await.expect("begun")).await;
    succeeded(
        orders
            .archive_create(archive(At::Latest))
            .await
            .expect("begun"),
    )
    .await;
    let name = |made: &serde_json::Value| made["archive"]["id"].as_str().expect("an id").to_owned();
    let (retained, held) = (name(&retained), name(&held));
    let refused = async |names: &[&String]| {
        let purge = world
            .engine
            .database_purge(namespace, "orders", Purge::default())
            .await;
        let error = purge.expect_err("held");
        assert_eq!(error.code(), Code::ArchiveHeld, "{error}");
        assert_eq!(error.members()["archives"], serde_json::json!(names));
    };
    refused(&[&retained, &held]).await;
    orders
        .archive_hold(&held, None, Some(false))
        .await
        .expect("lifted");
    refused(&[&retained]).await;
    // Our clock alone, set forward, ends no retention.
    world.clock.step(20 * DAY);
    refused(&[&retained]).await;
    let kept = orders
        .archive_delete(&retained)
        .await
        .expect_err("retained");
    assert_eq!(kept.code(), Code::ArchiveHeld);
    world.clock.step(-20 * DAY);
    // A soft deletion is fine, and does not become a purge while archives stand.
    world
        .engine
        .database_delete(namespace, "orders")
        .await
        .expect("deleted");
    world.pass(8 * DAY);
    for _ in 0..3 {
        world.turn().await;
        world.pass(2 * DAY);
    }
    let archives = async || {
        let keys = world.keys(id).await;
        keys.iter().filter(|key| key.contains("/archives/")).count()
    };
    assert_eq!(archives().await, 6);
    world
        .engine
        .database_undelete(namespace, "orders")
        .await
        .expect("it stands");
    assert_eq!(
        world
            .exported(&world.open("orders").await, At::Latest)
            .await,
        1
    );
    world
        .engine
        .database_delete(namespace, "orders")
        .await
        .expect("deleted");
    let purge = world
        .engine
        .database_purge(namespace, "orders", Purge::default())
        .await;
    let said = succeeded(purge.expect("nothing is held any more")).await;
    assert_eq!(said["archives_deleted"], 3, "{said}");
    assert!(said["objects_gone_at"].is_string(), "{said}");
    assert_eq!(world.keys(id).await.len(), 1, "the tombstone alone");
    let gone = world
        .engine
        .archive(namespace, &held)
        .await
        .expect_err("gone");
    assert_eq!(gone.code(), Code::ArchiveNotFound);
    world.engine.shutdown().await.expect("shutdown");
}

/// Goal: a byte that a tenant deleted leaves the bucket (DESIGN 5.8). Method: fifty megabytes are imported, one row is
/// planted among them and deleted; after forty days of one write each, every stored object is opened block by block,
/// and none shows the row. Before, one does.
#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_row_has_left_every_stored_object_after_forty_days() {
    const PLANTED: &str = "zQ7kX1vB9pLm4RtW8sYc2HdG6nJf3AeU5oTi0KqZxVbNrCwMyPlSgDhFuEjOaI";
    if sealed() {
        // Sealed text shows nowhere: that it is gone is seen in plain.
        return;
    }
    let mut world = World::new().await;
    let file = world.folder.path().join("import.db");
    {
        let made = rusqlite::Connection::open(&file).expect("open");
        let sql = format!(
            "CREATE TABLE t(a INTEGER PRIMARY KEY, b);
             WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < 25000)
             INSERT INTO t SELECT x, randomblob(2000) FROM c;
             INSERT INTO t VALUES(50000, '{PLANTED}')"
        );
        made.execute_batch(&sql).expect("fill");
    }
    let orders = world
        .engine
        .database_import(world.namespace.id, "orders", &file);
    let mut orders = orders.await.expect("imported");
    let id = orders.row().id;
    assert!(
        !found_in(&world, PLANTED).await.is_empty(),
        "it is there at first"
    );
    write(&orders, "DELETE FROM t WHERE a = 50000").await;
    for day in 0..40 {
        if day == 38 {
            // The image that an import made is unlisted: it is the next life's to remove.
            world.restart().await;
            orders = world.open("orders").await;
        }
        let at = write(
            &orders,
            &format!("INSERT INTO t VALUES({}, 'day')", 60_000 + day),
        )
        .await;
        world.settled(&orders, at).await;
        world.pass(DAY);
        world.turn().await;
    }
    let mut found = found_in(&world, PLANTED).await;
    for _ in 0..LOOKS {
        if found.is_empty() {
            break;
        }
        // The journal is trimmed behind the last settle.
        tokio::time::sleep(LOOK).await;
        found = found_in(&world, PLANTED).await;
    }
    let manifest = world.manifest(id).await.manifest;
    assert!(
        found.is_empty(),
        "{found:?}
{}",
        shape(&manifest)
    );
    assert_eq!(world.exported(&orders, At::Latest).await, 60_039);
    world.engine.shutdown().await.expect("shutdown");
}

/// The keys of the stored objects, of whatever kind, that show a text, as they lie there or in one of their blocks.
async fn found_in(world: &World, text: &str) -> Vec<String> {
    use tidelog_archive::envelope::{Expect, Header, Object};
    let shows = |bytes: &[u8]| {
        bytes
            .windows(text.len())
            .any(|window| window == text.as_bytes())
    };
    let mut found = Vec::new();
    for entry in world.store.list("").await.expect("a listing") {
        let key = entry.key;
        let bytes = match world.store.get(&key).await {
            // Trimmed since it was listed.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            read => read.expect("an object"),
        };
        let mut shown = shows(&bytes);
        // Audit lines and the root have no envelope: all of them is looked at.
        let mut body = bytes.as_ref();
        if let Ok(header) = Header::decode(&bytes) {
            let expect = Expect {
                kind: header.kind,
                namespace: header.namespace,
                database: header.database,
            };
            let object = Object::open(&bytes, expect, world.store.keys()).expect("whole");
            let range = object.body();
            let end = |at| usize::try_from(at).expect("small");
            body = &bytes[end(range.start)..end(range.end)];
        }
        // Zstd frames in the body, wherever they begin.
        let magic = [0x28, 0xb5, 0x2f, 0xfd];
        let starts = body
            .windows(4)
            .enumerate()
            .filter(|(_, window)| *window == magic);
        for (at, _) in starts {
            let mut raw = vec![0; 1 << 18];
            let opened = zstd::zstd_safe::find_frame_compressed_size(&body[at..]);
            let opened = opened.ok().and_then(|len| body.get(at..at + len));
            let opened =
                opened.and_then(|frame| zstd::bulk::decompress_to_buffer(frame, &mut raw).ok());
            shown |= opened.is_some_and(|len| shows(&raw[..len]));
        }
        if shown {
            found.push(key);
        }
    }
    found
}

/// Goal: an object that the store refuses to delete keeps its mark and its place, holds back no other, and goes once it
/// may. Method: two objects or more are marked; the deletion of the first is forbidden when their grace is over.
#[tokio::test(flavor = "multi_thread")]
async fn what_may_not_be_deleted_keeps_its_mark_and_holds_back_no_other() {
    let world = World::new().await;
    let orders = world.create("orders").await;
    let patch = DatabasePatch {
        retention_micros: Some(DAY as u64 * 1_000_000),
        ..DatabasePatch::default()
    };
    let (namespace, id) = (world.namespace.id, orders.row().id);
    let patched = world.engine.database_patch(namespace, "orders", patch);
    patched.await.expect("a day");
    write(&orders, "CREATE TABLE t(a INTEGER PRIMARY KEY, b)").await;
    let of = |marked: &Marked| Key::Database(namespace, id, marked.object).to_string();
    let mut marked = Vec::new();
    for row in 0..60 {
        let at = write(
            &orders,
            &format!("INSERT INTO t VALUES({row}, randomblob(3000))"),
        )
        .await;
        world.settled(&orders, at).await;
        world.pass(DAY / 4);
        world.turn().await;
        marked = world.manifest(id).await.manifest.marked;
        if marked.len() > 1 {
            break;
        }
    }
    let (first, others) = marked.split_first().expect("objects were marked");
    assert!(!others.is_empty(), "more than one");
    let kept = of(first);
    let forbidden = kept.clone();
    world.faults.set_plan(script(move |call: &Call| {
        if call.op == Op::Delete && call.key == forbidden {
            Fault::Denied
        } else {
            Fault::None
        }
    }));
    world.pass(2 * DAY);
    for _ in 0..2 {
        let refused = world.engine.retention_of(namespace, "orders", true).await;
        let refused = refused.expect_err("it may not");
        assert_eq!(refused.code(), Code::StorageUnavailable, "{refused}");
        assert!(refused.to_string().contains("not permitted"), "{refused}");
        let keys = world.keys(id).await;
        assert!(keys.contains(&kept), "{keys:?}");
        let marked = world.manifest(id).await.manifest.marked;
        assert!(marked.iter().any(|mark| of(mark) == kept), "{marked:?}");
        for other in others {
            assert!(!keys.contains(&of(other)), "{other:?} is held back");
            assert!(!marked.contains(other), "{other:?} is forgotten");
        }
    }
    // What is due is tried again, and the calendar goes on.
    world.turn().await;
    world.faults.set_plan(script(|_| Fault::None));
    let done = world.engine.retention_of(namespace, "orders", true).await;
    let (_, report) = done.expect("it may");
    assert!(report.deleted.iter().any(|gone| gone.key == kept));
    assert!(!world.keys(id).await.contains(&kept));
    let marked = world.manifest(id).await.manifest.marked;
    assert!(!marked.iter().any(|mark| of(mark) == kept), "{marked:?}");
    world.engine.shutdown().await.expect("shutdown");
}
