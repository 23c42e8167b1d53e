//! Who waits for a place is told at once of whatever makes one: what no test from outside can hold still.
//!
//! All on one thread, so that nobody else uses a database between two lines without an await: what wakes the waiter is
//! what the test did last.

use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use super::Registry;
use crate::database::Lease;
use crate::error::{Code, Error};
use crate::executor::Inline;
use crate::rig;
use crate::{Database, Durability, Engine, NewDatabase, Parts, Settings};

const NEVER: Duration = Duration::from_hours(1);

/// Whether somebody was woken.
#[derive(Debug, Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// A call that waits for a place.
struct Waiting<'a> {
    call: Pin<Box<dyn Future<Output = Result<Lease, Error>> + 'a>>,
    woken: Arc<Woken>,
}

impl<'a> Waiting<'a> {
    /// Asks for a database until the call waits.
    fn begin(registry: &'a Registry, database: &Database) -> Self {
        let (namespace, id) = (database.row().namespace, database.row().id);
        let mut waiting = Self {
            call: Box::pin(registry.lease(namespace, id)),
            woken: Arc::default(),
        };
        waiting.waits_on();
        waiting
    }

    /// Looks again, and in vain.
    fn waits_on(&mut self) {
        self.woken.0.store(false, Ordering::SeqCst);
        let waker = Waker::from(Arc::clone(&self.woken));
        let polled = self.call.as_mut().poll(&mut Context::from_waker(&waker));
        assert!(matches!(polled, Poll::Pending), "{polled:?}");
        assert!(!self.is_woken(), "nothing has ended");
    }

    fn is_woken(&self) -> bool {
        self.woken.0.load(Ordering::SeqCst)
    }
}

/// A node on which a tenant may have two databases open, and three of its databases.
async fn node(folder: &Path) -> (Engine, [Database; 3]) {
    let settings = Settings {
        open_databases_max: 4,
        gate_timeout: NEVER,
        idle_sweep: NEVER,
        idle_close: NEVER,
        ..rig::settings(folder)
    };
    let parts = Parts {
        executor: Arc::new(Inline),
        ..Parts::production()
    };
    let engine = Box::pin(Engine::start(settings, parts)).await;
    let engine = engine.expect("starts");
    let namespace = engine.namespace_create("acme").await.expect("made");
    let made = async |name: &str| {
        let new = NewDatabase::named(name);
        let database = engine.database_create(namespace.id, new).await;
        let database = database.expect("made");
        rig::run(&database, "CREATE TABLE t(a)", Durability::Remote).await;
        database
    };
    let databases = [made("a").await, made("b").await, made("c").await];
    (engine, databases)
}

/// Goal: the last user of a database who goes lets the one in that waits for its place. Method: a database with two
/// users; the first makes no place.
#[tokio::test]
async fn the_last_user_who_goes_wakes_who_waits_for_a_place() {
    let folder = tempfile::tempdir().expect("tempdir");
    let (engine, [a, b, c]) = node(folder.path()).await;
    let kept = a.lease().await.expect("a place");
    let (one, other) = (b.lease().await, b.lease().await);
    let mut waiting = Waiting::begin(&engine.inner.registry, &c);
    drop(one.expect("a place"));
    assert!(!waiting.is_woken(), "it is still in use");
    drop(other.expect("the same place"));
    assert!(waiting.is_woken(), "nobody uses it any more");
    let lease = waiting.call.as_mut().await.expect("a place");
    assert_eq!(lease.meta().id, c.row().id);
    assert!(
        !engine.inner.registry.is_open(b.row().id).await,
        "in its place"
    );
    drop((kept, lease, waiting));
    engine.shutdown().await.expect("shutdown");
}

/// Goal: a database that was passed by, since its slot was held, is not forgotten. Method: its last user goes while the
/// slot is held, and the look that follows comes upon the lock.
#[tokio::test]
async fn a_slot_that_is_let_go_of_wakes_who_passed_it_by() {
    let folder = tempfile::tempdir().expect("tempdir");
    let (engine, [a, b, c]) = node(folder.path()).await;
    let registry = &engine.inner.registry;
    let (kept, used) = (a.lease().await, b.lease().await);
    let (kept, used) = (kept.expect("a place"), used.expect("a place"));
    let slot = registry.slot(b.row().id);
    let held = registry.hold(&slot).await;
    let mut waiting = Waiting::begin(registry, &c);
    drop(used);
    assert!(waiting.is_woken(), "nobody uses it any more");
    waiting.waits_on();
    drop(held);
    assert!(waiting.is_woken(), "it can be closed now");
    let lease = waiting.call.as_mut().await.expect("a place");
    drop((kept, lease, waiting));
    engine.shutdown().await.expect("shutdown");
}

/// Goal: a database that ends by itself gives its place to who waits for it. Method: it is closed while its user goes.
#[tokio::test]
async fn a_database_that_is_closed_wakes_who_waits_for_its_place() {
    let folder = tempfile::tempdir().expect("tempdir");
    let (engine, [a, b, c]) = node(folder.path()).await;
    let registry = &engine.inner.registry;
    let (kept, used) = (a.lease().await, b.lease().await);
    let (kept, used) = (kept.expect("a place"), used.expect("a place"));
    let mut closing = Box::pin(registry.close(b.row().id));
    assert!(
        futures::poll!(closing.as_mut()).is_pending(),
        "it is in use"
    );
    let mut waiting = Waiting::begin(registry, &c);
    drop(used);
    assert!(!waiting.is_woken(), "whoever closes it has it");
    closing.await;
    assert!(waiting.is_woken(), "its place is free");
    let lease = waiting.call.as_mut().await.expect("a place");
    drop((kept, lease, waiting));
    engine.shutdown().await.expect("shutdown");
}

/// Goal: a node that stops keeps nobody waiting for a place.
#[tokio::test]
async fn a_stop_refuses_who_waits_for_a_place() {
    let folder = tempfile::tempdir().expect("tempdir");
    let (engine, [a, b, c]) = node(folder.path()).await;
    let registry = &engine.inner.registry;
    let (kept, used) = (a.lease().await, b.lease().await);
    let mut waiting = Waiting::begin(registry, &c);
    registry.shut();
    assert!(waiting.is_woken(), "there will be no place");
    let refused = waiting.call.as_mut().await.expect_err("no place");
    assert_eq!(refused.code(), Code::Overloaded);
    drop((kept, used, waiting));
    engine.shutdown().await.expect("shutdown");
}
