//! What ends or happens by itself: namespaces that are deleted and purged, archives by schedule. Clock and store are
//! the test's own.

mod rig;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use object_store::memory::InMemory;
use tidelog_archive::env::{Clock, SystemEntropy};
use tidelog_archive::manifest::{ManifestStore, State};
use tidelog_archive::seal::{KeyStore, Keyring};
use tidelog_archive::store::{Store, StoreOptions, StoreSettings};
use tidelog_engine::bucket::At;
use tidelog_engine::disk::StdDisk;
use tidelog_engine::executor::Threads;
use tidelog_engine::operations::{Handle, Operation, OperationState};
use tidelog_engine::system::Page;
use tidelog_engine::system::audit::AuditFilter;
use tidelog_engine::system::databases::{DatabasePatch, Namespace};
use tidelog_engine::travel::archives::{
    Archive, ArchiveSchedule, Format, Keep, NewArchive, NewArchiveSchedule,
};
use tidelog_engine::travel::forks::Fork;
use tidelog_engine::{Code, Database, Durability, Engine, NewDatabase, Parts, Settings};
use tidelog_testkit::faultstore::{Fault, FaultStore, Shared, script};
use tidelog_testkit::sealing::sealed_masters;
use tidelog_testkit::sim::ShiftedClock as Shifted;
use tidelog_wal::{DatabaseId, Timestamp};

const DAY: i64 = 24 * 3600;
const HOUR: i64 = 3600;
const WAIT: Duration = Duration::from_mins(2);

struct World {
    folder: tempfile::TempDir,
    store: Store,
    /// Ours and the store's.
    clock: Arc<Shifted>,
    theirs: Arc<Shifted>,
    engine: Engine,
    namespace: Namespace,
}

async fn node(folder: &Path, clock: &Arc<Shifted>, store: &Store) -> Engine {
    let settings = Settings {
        data: folder.join("data"),
        store_url: "memory:".to_owned(),
        ship_interval: Duration::from_millis(5),
        settle_bytes: 1,
        settle_pause: Duration::from_millis(1),
        // A machine that is busy with something else makes no write fail.
        durability_timeout: WAIT,
        gate_timeout: WAIT,
        master_keys: sealed_masters(),
        ..Settings::default()
    };
    let parts = Parts {
        boot: None,
        clock: Arc::clone(clock) as Arc<dyn Clock>,
        entropy: Arc::new(SystemEntropy),
        disk: Arc::new(StdDisk),
        executor: Arc::new(Threads),
    };
    let engine = Engine::start_on(settings, parts, store.clone()).await;
    engine.expect("start")
}

impl World {
    async fn new() -> Self {
        let folder = tempfile::tempdir().expect("tempdir");
        let (clock, theirs) = (Arc::new(Shifted::new()), Arc::new(Shifted::new()));
        let faults = FaultStore::new(Arc::new(InMemory::new()), script(|_| Fault::None));
        faults.set_clock(Arc::clone(&theirs) as Arc<dyn Clock>);
        let options = StoreOptions {
            settings: StoreSettings {
                attempts_max: 1,
                ..StoreSettings::default()
            },
            ..StoreOptions::default()
        };
        let store = Store::from_object_store(Arc::new(Shared(faults)), "", options);
        let store = store.expect("a store");
        let engine = node(folder.path(), &clock, &store).await;
        let namespace = engine.namespace_create("acme").await.expect("namespace");
        Self {
            folder,
            store,
            clock,
            theirs,
            engine,
            namespace,
        }
    }

    async fn restart(&mut self) {
        self.engine.shutdown().await.expect("shutdown");
        self.engine = node(self.folder.path(), &self.clock, &self.store).await;
    }

    fn pass(&self, seconds: i64) {
        self.clock.pass(seconds);
        self.theirs.pass(seconds);
    }

    async fn turn(&self) {
        self.engine.calendar_turn().await.expect("a turn");
    }

    /// A database with one row in it.
    async fn filled(&self, name: &str) -> Database {
        let new = NewDatabase::named(name);
        let made = self.engine.database_create(self.namespace.id, new).await;
        let made = made.expect("create");
        write(&made, "CREATE TABLE t(a)").await;
        write(&made, "INSERT INTO t VALUES(1)").await;
        made
    }

    async fn open(&self, name: &str) -> Database {
        let found = self.engine.database(self.namespace.id, name).await;
        found.expect("the database")
    }

    /// Everything the store has of the namespace but its audit log.
    async fn keys(&self) -> BTreeSet<String> {
        let prefix = format!("tenants/{}/", self.namespace.id);
        let listed = self.store.list(&prefix).await.expect("a listing");
        let keys = listed.into_iter().map(|entry| entry.key);
        keys.filter(|key| !key.contains("/audit/")).collect()
    }

    async fn state(&self, id: DatabaseId) -> State {
        let entropy = Arc::new(SystemEntropy);
        let store = self.store.clone().with_keys(Keyring::new(sealed_masters()));
        let manifests = ManifestStore::new(store, self.namespace.id, id, entropy);
        manifests.load().await.expect("a manifest").manifest.state
    }

    async fn audited(&self, event: &str) -> Vec<serde_json::Value> {
        let filter = AuditFilter {
            event: Some(event.to_owned()),
            since: None,
        };
        let log = Some(self.namespace.id);
        let listed = self.engine.audit_list(log, filter, Page::default()).await;
        listed.expect("the log").items
    }
}

async fn try_write(database: &Database, sql: &str) -> Result<(), tidelog_engine::Error> {
    let request = rig::request(&[sql], Durability::Remote);
    database.execute(request).await.map(drop)
}

async fn write(database: &Database, sql: &str) {
    let done = try_write(database, sql).await;
    done.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
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

fn archive(legal_hold: bool) -> NewArchive {
    NewArchive {
        at: At::Latest,
        format: Format::Sqlite,
        name: None,
        retain_until: None,
        legal_hold,
        token: None,
        request: None,
    }
}

async fn eventually<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let waited = tokio::time::timeout(WAIT, async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(waited.await.is_ok(), "never: {what}");
}

/// Goal: a namespace goes and comes back as it was. Method: three databases, one deleted before; a deletion, a restart,
/// an undelete: two are back with their rows, the third is not, and the manifests follow both times.
#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_namespace_comes_back_with_what_went_with_it() {
    let mut world = World::new().await;
    let namespace = world.namespace.id;
    let (orders, users) = (world.filled("orders").await, world.filled("users").await);
    world.filled("old").await;
    let old = world.engine.database_delete(namespace, "old").await;
    old.expect("deleted");
    let protect = |on| DatabasePatch {
        delete_protection: Some(on),
        ..DatabasePatch::default()
    };
    let set = world
        .engine
        .database_patch(namespace, "users", protect(true));
    set.await.expect("protected");
    let refused = world.engine.namespace_delete(namespace).await;
    let refused = refused.expect_err("a database is protected");
    assert_eq!(refused.code(), Code::DatabaseProtected);
    assert_eq!(refused.members()["databases"], serde_json::json!(["users"]));
    write(&orders, "INSERT INTO t VALUES(2)").await;
    let set = world
        .engine
        .database_patch(namespace, "users", protect(false));
    set.await.expect("not protected");

    // The third is deleted at another microsecond.
    world.pass(1);
    let end = world.engine.namespace_delete(namespace).await;
    let end = end.expect("deleted");
    assert_eq!(world.engine.namespace_end(namespace), Some(end));
    let refused = try_write(&orders, "INSERT INTO t VALUES(3)").await;
    assert_eq!(refused.expect_err("gone").code(), Code::DatabaseNotFound);
    let again = world.engine.namespace_delete(namespace).await;
    assert_eq!(again.expect_err("twice").code(), Code::NamespaceDeleted);
    let new = world
        .engine
        .database_create(namespace, NewDatabase::named("new"));
    assert_eq!(
        new.await.expect_err("closed").code(),
        Code::NamespaceDeleted
    );
    let alone = world.engine.database_undelete(namespace, "orders").await;
    assert_eq!(alone.expect_err("closed").code(), Code::NamespaceDeleted);
    let (id, world_) = (orders.row().id, &world);
    eventually("the manifest says so", || async move {
        matches!(world_.state(id).await, State::Deleted(_))
    })
    .await;

    world.restart().await;
    assert_eq!(world.engine.namespace_end(namespace), Some(end), "it lasts");
    let back = world.engine.namespace_undelete(namespace).await;
    assert_eq!(back.expect("undeleted"), 2);
    assert_eq!(world.engine.namespace_end(namespace), None);
    for database in [&orders, &users] {
        let name = &database.row().name;
        write(&world.open(name).await, "INSERT INTO t VALUES(4)").await;
    }
    let old = world.engine.database(namespace, "old").await;
    assert_eq!(old.expect_err("its own").code(), Code::DatabaseNotFound);
    let world_ = &world;
    eventually("the manifest is active again", || async move {
        matches!(world_.state(id).await, State::Active(_))
    })
    .await;
    world.engine.shutdown().await.expect("shutdown");
}

/// Goal: a purge reaches every object of a namespace, destroys every key, and is refused while an archive is held.
/// Method: forks of forks, archives, a deleted database and a draft without a name; then the store's listing: a
/// tombstone and a destroyed key of each database, and nothing else. The name is free again.
#[tokio::test(flavor = "multi_thread")]
async fn a_purged_namespace_leaves_tombstones_alone() {
    let world = World::new().await;
    let namespace = world.namespace.id;
    let orders = world.filled("orders").await;
    let fork = succeeded(orders.fork(Fork::named("copy")).await.expect("begun")).await;
    assert!(fork.is_object(), "{fork}");
    let copy = world.open("copy").await;
    succeeded(copy.fork(Fork::named("copy2")).await.expect("begun")).await;
    world.filled("old").await;
    let old = world.engine.database_delete(namespace, "old").await;
    old.expect("deleted");
    let draft = world
        .engine
        .database_draft(namespace, NewDatabase::named("draft"));
    drop(draft.await.expect("a draft"));
    let made = succeeded(orders.archive_create(archive(true)).await.expect("begun")).await;
    let held = made["archive"]["id"].as_str().expect("an id").to_owned();
    succeeded(copy.archive_create(archive(false)).await.expect("begun")).await;

    let purge = world.engine.namespace_purge(namespace, None).await;
    let refused = ended(purge.expect("begun")).await;
    let why = refused.error.expect("an archive is held");
    assert_eq!(why.code, "archive-held");
    assert_eq!(why.members["archives"], serde_json::json!([held]));
    assert_eq!(
        world.engine.namespace_end(namespace),
        None,
        "nothing is done"
    );
    write(&orders, "INSERT INTO t VALUES(2)").await;
    let lifted = orders.archive_hold(&held, None, Some(false)).await;
    lifted.expect("lifted");

    let databases: BTreeSet<DatabaseId> = world
        .keys()
        .await
        .iter()
        .filter_map(|key| key.split('/').nth(2)?.parse().ok())
        .collect();
    assert_eq!(databases.len(), 5, "the draft among them");
    let purge = world.engine.namespace_purge(namespace, None).await;
    let said = succeeded(purge.expect("begun")).await;
    assert_eq!(said["purged"], "acme", "{said}");
    assert_eq!(said["databases_purged"], 5, "{said}");
    assert_eq!(said["archives_deleted"], 2, "{said}");
    assert!(said["objects_gone_at"].is_string() && said["audit_log_gone_at"].is_string());
    for key in world.keys().await {
        let last = key.rsplit('/').next().expect("a name");
        assert!(matches!(last, "manifest" | "key"), "{key} is left");
    }
    for id in &databases {
        assert!(matches!(world.state(*id).await, State::Purged(_)), "{id}");
        let keys = KeyStore::new(world.store.clone(), namespace, *id);
        let keys = keys.status().await.expect("read").expect("it was sealed");
        assert!(keys.shredded.is_some(), "the keys of {id} are destroyed");
    }
    let gone = world.engine.namespace_by_name("acme").await;
    assert_eq!(gone.expect_err("gone").code(), Code::NamespaceNotFound);
    let anew = world.engine.namespace_create("acme").await.expect("free");
    assert_ne!(anew.id, namespace);
    world.engine.shutdown().await.expect("shutdown");
}

/// Goal: what is deleted is gone after seven days by itself, by two clocks, and not while an archive stands. Method: two
/// namespaces, one without a database; our clock alone a year ahead ends neither.
#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_namespace_goes_by_itself_after_seven_days() {
    let mut world = World::new().await;
    let namespace = world.namespace.id;
    let empty = world.engine.namespace_create("empty").await.expect("made");
    let orders = world.filled("orders").await;
    succeeded(orders.archive_create(archive(false)).await.expect("begun")).await;
    for id in [namespace, empty.id] {
        let end = world.engine.namespace_delete(id).await;
        end.expect("deleted");
    }
    world.clock.step(365 * DAY);
    world.turn().await;
    assert!(world.engine.namespace_end(empty.id).is_some(), "one clock");
    world.clock.step(-365 * DAY);
    world.pass(7 * DAY + HOUR);
    world.restart().await;
    let world_ = &world;
    let empty = empty.id;
    eventually("the empty one is gone", || async move {
        world_.turn().await;
        world_.engine.namespace_end(empty).is_none()
    })
    .await;
    // The other one keeps its archive until somebody says otherwise.
    assert!(world.engine.namespace_end(namespace).is_some());
    assert!(world.keys().await.len() > 2);
    assert_eq!(
        world
            .engine
            .namespace_undelete(namespace)
            .await
            .expect("back"),
        1
    );
    let orders = world.open("orders").await;
    let listed = orders.archives(Page::default()).await.expect("a list");
    let only = listed.items.first().expect("the archive").id.to_string();
    orders.archive_delete(&only).await.expect("deleted");
    world
        .engine
        .namespace_delete(namespace)
        .await
        .expect("deleted");
    world.pass(7 * DAY + HOUR);
    let world_ = &world;
    eventually("the other one is gone, too", || async move {
        world_.turn().await;
        world_.pass(2 * HOUR);
        world_.engine.namespace_end(namespace).is_none()
    })
    .await;
    for key in world.keys().await {
        let last = key.rsplit('/').next().expect("a name");
        assert!(matches!(last, "manifest" | "key"), "{key} is left");
    }
    world.engine.shutdown().await.expect("shutdown");
}

fn daily(keep: Keep) -> NewArchiveSchedule {
    NewArchiveSchedule {
        every: Duration::from_hours(24),
        format: Format::Sqlite,
        keep,
    }
}

async fn scheduled(database: &Database) -> Vec<Archive> {
    let listed = database.archives(Page::default()).await.expect("a list");
    let scheduled = listed.items.into_iter().filter(|one| one.scheduled);
    scheduled.collect()
}

async fn schedule(database: &Database) -> ArchiveSchedule {
    let found = database.archive_schedule().await.expect("read");
    found.expect("a schedule")
}

/// Goal: archives come by themselves at their time, survive restarts, and old ones go by the rule, those that are held
/// or were made by hand never. Method: ten days of two clocks, one archive a day, two kept.
#[tokio::test(flavor = "multi_thread")]
async fn archives_come_by_schedule_and_the_rule_says_which_stay() {
    let mut world = World::new().await;
    let orders = world.filled("orders").await;
    for bad in [
        NewArchiveSchedule {
            every: Duration::from_mins(59),
            ..daily(Keep::default())
        },
        NewArchiveSchedule {
            every: Duration::from_hours(24 * 367),
            ..daily(Keep::default())
        },
        daily(Keep {
            newest: Some(0),
            within: None,
        }),
    ] {
        let refused = orders.set_archive_schedule(Some(bad)).await;
        assert_eq!(refused.expect_err("bounds").code(), Code::InvalidRequest);
    }
    succeeded(orders.archive_create(archive(false)).await.expect("begun")).await;
    let keep = Keep {
        newest: Some(2),
        within: None,
    };
    let set = orders.set_archive_schedule(Some(daily(keep))).await;
    let set = set.expect("set").expect("a schedule");
    assert_eq!(set.last, None);
    world.turn().await;
    assert_eq!(scheduled(&orders).await, [], "the first comes after a day");

    let (mut held, mut before): (_, Option<Timestamp>) = (None, None);
    for day in 1..=6_usize {
        world.pass(DAY + 60);
        if day == 3 {
            world.restart().await;
        }
        let orders = world.open("orders").await;
        let (orders_, world_) = (&orders, &world);
        // A node that has just started may not have read its calendar yet.
        eventually("the day's archive begins", || async move {
            world_.turn().await;
            let last = schedule(orders_).await.last;
            last.map(|run| run.at) > before
        })
        .await;
        let run = schedule(&orders).await.last.expect("a run");
        before = Some(run.at);
        let operation = run.operation.expect("an operation");
        let handle = world.engine.operation_watch(world.namespace.id, &operation);
        let result = succeeded(handle.await.expect("shown")).await;
        let newest = scheduled(&orders).await.remove(0);
        assert_eq!(result["archive"]["id"], newest.id.to_string(), "day {day}");
        // The second day's is held from then on, and one of the newest two on the third.
        let (orders_, kept) = (&orders, [1, 2, 2, 3, 3, 3][day - 1]);
        eventually("old ones are gone", || async move {
            scheduled(orders_).await.len() == kept
        })
        .await;
        world.turn().await;
        assert_eq!(scheduled(&orders).await.len(), kept, "once a day");
        if day == 2 {
            let id = newest.id.to_string();
            let hold = orders.archive_hold(&id, None, Some(true)).await;
            held = Some(hold.expect("held").id);
        }
    }
    let orders = world.open("orders").await;
    let all = orders
        .archives(Page::default())
        .await
        .expect("a list")
        .items;
    assert_eq!(all.iter().filter(|one| !one.scheduled).count(), 1);
    assert!(all.iter().any(|one| Some(one.id) == held));
    let begun = world.audited("backup.archive").await;
    assert_eq!(begun.len(), 6, "{begun:?}");
    assert!(begun.iter().all(|line| line["user_id"] == "schedule"));
    // Of six, two stay and the held one; that went on record before each went.
    assert_eq!(world.audited("backup.archive_delete").await.len(), 3);

    // A database that is deleted is left alone, and goes on when it is back.
    let namespace = world.namespace.id;
    world
        .engine
        .database_delete(namespace, "orders")
        .await
        .expect("deleted");
    world.pass(2 * DAY);
    world.turn().await;
    world
        .engine
        .database_undelete(namespace, "orders")
        .await
        .expect("back");
    let (orders, world_) = (world.open("orders").await, &world);
    let orders_ = &orders;
    eventually("the next one", || async move {
        world_.turn().await;
        world_.audited("backup.archive").await.len() == 7 && scheduled(orders_).await.len() == 3
    })
    .await;
    assert_eq!(
        orders.set_archive_schedule(None).await.expect("ended"),
        None
    );
    world.pass(3 * DAY);
    world.turn().await;
    assert_eq!(world.audited("backup.archive").await.len(), 7);
    world.engine.shutdown().await.expect("shutdown");
}

/// Goal: a clock that ran ahead makes no archive too many and takes none away. Method: our clock goes a year ahead and
/// comes back, with archives kept for two days.
#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_runs_ahead_lets_no_scheduled_archive_go() {
    let mut world = World::new().await;
    let orders = world.filled("orders").await;
    let keep = Keep {
        newest: None,
        within: Some(Duration::from_hours(48)),
    };
    let set = orders.set_archive_schedule(Some(daily(keep))).await;
    set.expect("set");
    world.pass(DAY + 60);
    let (orders_, world_) = (&orders, &world);
    eventually("the first archive", || async move {
        world_.turn().await;
        scheduled(orders_).await.len() == 1
    })
    .await;
    world.clock.step(365 * DAY);
    eventually("one by the wrong clock", || async move {
        world_.turn().await;
        scheduled(orders_).await.len() == 2
    })
    .await;
    world.clock.step(-365 * DAY);
    world.restart().await;
    let orders = world.open("orders").await;
    let (orders_, world_) = (&orders, &world);
    eventually("it is due in a day", || async move {
        world_.turn().await;
        let due = schedule(orders_).await.due;
        due.micros_since(world_.engine.now()) <= DAY as u64 * 1_000_000
    })
    .await;
    assert_eq!(scheduled(&orders).await.len(), 2, "neither is gone");
    world.pass(DAY + 60);
    eventually("the next day's", || async move {
        world_.turn().await;
        scheduled(orders_).await.len() == 3
    })
    .await;
    world.engine.shutdown().await.expect("shutdown");
}
