//! The audit log in the bucket: what it holds, whose it is, and that it goes with its retention.

mod rig;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value as Json;
use tempfile::TempDir;
use tidelog_archive::Clock;
use tidelog_archive::key::Key;
use tidelog_archive::store::{Store, StoreOptions, StoreSettings};
use tidelog_engine::system::Page;
use tidelog_engine::system::audit::{AuditFilter, AuditLine};
use tidelog_engine::{Durability, Engine, MasterKeys, NewDatabase, Parts, Settings};
use tidelog_testkit::faultstore::{Fault, FaultStore, Op, Shared, script};
use tidelog_testkit::sim::ShiftedClock;
use tidelog_wal::{DatabaseId, NamespaceId};

const DAY: i64 = 86_400;

/// A node on a store that fails where it is told to, and on a clock that is set forward by hand.
struct World {
    engine: Engine,
    store: Store,
    faults: Arc<FaultStore>,
    clock: Arc<ShiftedClock>,
    _folder: TempDir,
}

impl World {
    async fn start() -> Self {
        let folder = tempfile::tempdir().expect("tempdir");
        let clock = Arc::new(ShiftedClock::new());
        let faults = FaultStore::in_memory(script(|_| Fault::None));
        faults.set_clock(Arc::clone(&clock) as Arc<dyn Clock>);
        let options = StoreOptions {
            settings: StoreSettings {
                attempts_max: 1,
                ..StoreSettings::default()
            },
            ..StoreOptions::default()
        };
        let shared = Arc::new(Shared(Arc::clone(&faults)));
        let store = Store::from_object_store(shared, "", options).expect("a store");
        let parts = Parts {
            clock: Arc::clone(&clock) as Arc<dyn Clock>,
            ..Parts::production()
        };
        let settings = Settings {
            audit_retention: Duration::from_hours(90 * 24),
            // The bucket is read without keys.
            master_keys: MasterKeys::default(),
            ..rig::settings(folder.path())
        };
        let engine = Engine::start_on(settings, parts, store.clone());
        Self {
            engine: engine.await.expect("start"),
            store,
            faults,
            clock,
            _folder: folder,
        }
    }

    async fn tenant(&self, name: &str) -> NamespaceId {
        let made = self.engine.namespace_create(name).await;
        made.expect("namespace").id
    }

    fn note(&self, namespace: NamespaceId, event: &str) {
        self.engine.audit(AuditLine {
            namespace: Some(namespace),
            event: event.to_owned(),
            ..AuditLine::default()
        });
    }

    /// The events of a tenant's objects with the day in the key of each.
    async fn stored(&self, namespace: NamespaceId) -> Vec<(String, String)> {
        let folder = format!("tenants/{namespace}/audit/");
        let mut found = Vec::new();
        for entry in self.store.list(&folder).await.expect("a listing") {
            let day = entry.key[folder.len()..].split('/').next();
            let day = day.expect("a day").to_owned();
            let bytes = self.store.get(&entry.key).await.expect("an object");
            for line in std::str::from_utf8(&bytes).expect("text").lines() {
                let line: Json = serde_json::from_str(line).expect("a line of JSON");
                assert_eq!(line["tenant_id"], namespace.to_string(), "{line}");
                let event = line["event_type"].as_str().expect("an event");
                found.push((event.to_owned(), day.clone()));
            }
        }
        found.sort();
        found
    }

    async fn listed(&self, namespace: NamespaceId) -> usize {
        let (filter, page) = (AuditFilter::default(), Page::default());
        let listed = self.engine.audit_list(Some(namespace), filter, page).await;
        listed.expect("a log").items.len()
    }
}

fn events(stored: &[(String, String)]) -> Vec<&str> {
    stored.iter().map(|(event, _)| event.as_str()).collect()
}

/// Goal (LOG-7, LOG-11): every line is in the bucket once, in its tenant's folder and under its day, and goes with the
/// retention, row and object, while what is younger stays.
#[tokio::test(flavor = "multi_thread")]
async fn lines_are_in_the_bucket_by_tenant_and_day_and_go_with_the_retention() {
    let world = World::start().await;
    let (one, two) = (world.tenant("one").await, world.tenant("two").await);
    for event in ["a.first", "a.second"] {
        world.note(one, event);
    }
    world.note(two, "b.first");
    world.engine.ship_audit().await.expect("shipped");
    world.engine.ship_audit().await.expect("nothing to ship");
    let first = world.stored(one).await;
    assert_eq!(events(&first), ["a.first", "a.second"]);
    assert_eq!(events(&world.stored(two).await), ["b.first"]);

    world.clock.pass(60 * DAY);
    world.note(one, "a.third");
    world.engine.ship_audit().await.expect("shipped");
    let both = world.stored(one).await;
    assert_eq!(events(&both), ["a.first", "a.second", "a.third"]);
    assert_ne!(both[0].1, both[2].1, "days of their own");
    assert_eq!(world.listed(one).await, 3);

    world.clock.pass(31 * DAY);
    world.engine.ship_audit().await.expect("pruned");
    assert_eq!(events(&world.stored(one).await), ["a.third"]);
    assert_eq!(events(&world.stored(two).await), [""; 0]);
    assert_eq!((world.listed(one).await, world.listed(two).await), (1, 0));
    world.engine.shutdown().await.expect("shutdown");
}

/// Goal (ISO-5): what is stored of a tenant's databases alone lies below the tenant's prefix. Method: two tenants write and
/// settle; every key of the bucket that names a database names it below its own tenant, and both have some.
#[tokio::test(flavor = "multi_thread")]
async fn every_object_of_a_database_lies_below_its_tenants_prefix() {
    let world = World::start().await;
    let mut owners = BTreeMap::new();
    for name in ["one", "two"] {
        let tenant = world.tenant(name).await;
        let made = NewDatabase::named("orders");
        let database = world.engine.database_create(tenant, made).await;
        let database = database.expect("create");
        owners.insert(database.row().id, tenant);
        rig::run(&database, "CREATE TABLE t(a)", Durability::Local).await;
        for _ in 0..4 {
            let fill = "INSERT INTO t SELECT randomblob(40000)";
            rig::run(&database, fill, Durability::Remote).await;
        }
        world.note(tenant, "a.first");
    }
    world.engine.ship_audit().await.expect("shipped");
    let owned = async || {
        let mut found = BTreeMap::<DatabaseId, usize>::new();
        for entry in world.store.list("tenants/").await.expect("a listing") {
            match Key::parse(&entry.key) {
                Some(Key::Database(tenant, database, _)) => {
                    if let Some(owner) = owners.get(&database) {
                        assert_eq!(*owner, tenant, "{}", entry.key);
                        *found.entry(database).or_default() += 1;
                    }
                }
                Some(Key::Audit(..)) => {}
                other => panic!("{} is {other:?}", entry.key),
            }
        }
        found
    };
    rig::until("both have manifests and segments", async || {
        let found = owned().await;
        found.len() == 2 && found.values().all(|objects| *objects > 1)
    })
    .await;
    world.engine.shutdown().await.expect("shutdown");
}

/// Goal (LOG-11): no object outlives the retention, even one of which the node never heard that it was written. Method:
/// the PUT of an audit object takes effect and every answer about it fails; days later nothing is left.
#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_nobody_knew_was_stored_goes_with_the_retention() {
    let world = World::start().await;
    let tenant = world.tenant("one").await;
    world.note(tenant, "a.first");
    world.faults.set_plan(script(|call| {
        if !call.key.contains("/audit/") {
            Fault::None
        } else if call.op == Op::Put {
            Fault::After
        } else {
            Fault::Before
        }
    }));
    let shipped = world.engine.ship_audit().await;
    assert!(shipped.is_err(), "nobody can know whether it is stored");
    world.faults.set_plan(script(|_| Fault::None));
    assert_eq!(events(&world.stored(tenant).await), ["a.first"]);
    world.engine.ship_audit().await.expect("shipped");
    let twice = world.stored(tenant).await;
    assert_eq!(
        events(&twice),
        ["a.first", "a.first"],
        "once more, to be sure"
    );
    world.clock.pass(91 * DAY);
    world.engine.ship_audit().await.expect("pruned");
    assert_eq!(events(&world.stored(tenant).await), [""; 0]);
    world.engine.shutdown().await.expect("shutdown");
}
