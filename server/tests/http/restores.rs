//! Restores over HTTP: preview, run, list, undo, the operation behind them, and its events.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use reqwest::Method;
use serde_json::{Value as Json, json};
use tidelog_archive::env::Clock;
use tidelog_archive::store::{Store, StoreOptions};
use tidelog_engine::Parts;
use tidelog_engine::disk::{AppendFile, Disk, StdDisk};
use tidelog_testkit::faultstore::{Fault, FaultStore, Op, Shared, script};
use tidelog_testkit::server::{PATIENCE, deadline};
use tidelog_testkit::sim::ShiftedClock;

use crate::lost::asked_for;
use crate::world::{World, hold, read};

fn at(answer: &crate::world::Got) -> String {
    answer.body["bookmark"]
        .as_str()
        .expect("a bookmark")
        .to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_is_put_back_and_the_restore_taken_back() {
    let world = World::start().await;
    let db = world.database("orders").await;
    world.run(&db, "CREATE TABLE t(a)").await;
    let one = at(&world.run(&db, "INSERT INTO t VALUES(1)").await);
    let two = at(&world.run(&db, "INSERT INTO t VALUES(2)").await);
    let restores = format!("{db}/restores");

    let preview = json!({ "target": { "bookmark": one }, "dry_run": true });
    let preview = world.keyed(&restores, preview).await;
    assert_eq!(preview.status, 200, "{preview:?}");
    let plan = &preview.body["plan"];
    assert_eq!(
        (&plan["bookmark"], &plan["current_bookmark"]),
        (&json!(one), &json!(two))
    );
    assert_eq!(plan["commits_undone"], 1);
    assert_eq!(
        world.run(&db, "SELECT count(*) FROM t").await.body["rows"],
        json!([[2]])
    );

    let run = json!({
        "plan": plan["id"], "reason": "bad migration", "verify": "quick", "preserve_as": "before-fix"
    });
    let restored = world.keyed(&restores, run.clone()).await;
    assert_eq!(restored.status, 200, "{restored:?}");
    assert_eq!(restored.body["operation"]["state"], "succeeded");
    assert_eq!(restored.body["operation"]["progress_percent"], 100);
    assert_eq!(restored.body["previous_bookmark"], two);
    let restore = &restored.body["restore"];
    assert_eq!(
        (&restore["from"], &restore["to"]),
        (&json!(two), &json!(one))
    );
    assert_eq!(
        (&restore["way"], &restore["quick_check"]),
        (&json!("log"), &json!("ok"))
    );
    assert_eq!(
        world.run(&db, "SELECT count(*) FROM t").await.body["rows"],
        json!([[1]])
    );
    assert_eq!(world.keyed(&restores, run).await.code(), "plan-stale");

    let kept = world.get(&format!("{db}/snapshots/before-fix")).await;
    assert_eq!(
        (&kept.body["bookmark"], &kept.body["pinned"]),
        (&json!(two), &json!(true)),
        "{kept:?}"
    );
    let listed = world.get(&restores).await;
    let item = &listed.body["items"][0];
    assert_eq!(
        (&item["outcome"], &item["reason"]),
        (&json!("succeeded"), &json!("bad migration"))
    );
    let id = item["id"].as_str().expect("an id");
    assert_eq!(world.get(&format!("{restores}/{id}")).await.body["to"], one);
    assert_eq!(
        world.get(&format!("{restores}/rs_none")).await.code(),
        "restore-not-found"
    );

    let history = world.get(&format!("{db}/history")).await;
    let kinds: Vec<_> = history.body["items"]
        .as_array()
        .expect("items")
        .iter()
        .collect();
    assert_eq!(kinds.last().expect("commits")["kind"], "restore");

    let undone = world
        .keyed(&format!("{restores}/{id}/undo"), json!({}))
        .await;
    assert_eq!(undone.status, 200, "{undone:?}");
    assert_eq!(
        world.run(&db, "SELECT count(*) FROM t").await.body["rows"],
        json!([[2]])
    );
    let superseded = world
        .keyed(&format!("{restores}/{id}/undo"), json!({}))
        .await;
    assert_eq!(superseded.code(), "restore-superseded");
    assert_eq!(superseded.body["commits_since"], 1);
    let force = json!({ "force": superseded.body["current"] });
    let forced = world.keyed(&format!("{restores}/{id}/undo"), force).await;
    assert_eq!(forced.status, 200, "{forced:?}");

    // The operation is there afterwards, by itself and in the list, with an end to its events.
    let operation = restored.body["operation"]["id"].as_str().expect("an id");
    let place = format!("/v1/namespaces/default/operations/{operation}");
    assert_eq!(restored.header("location"), Some(place.as_str()));
    let shown = world.get(&place).await;
    assert_eq!(
        (&shown.body["type"], &shown.body["cancellable"]),
        (&json!("restore"), &json!(false))
    );
    let list = world
        .get("/v1/namespaces/default/operations?type=restore&state=succeeded")
        .await;
    assert_eq!(list.body["items"].as_array().map(Vec::len), Some(3));
    let cancel = world.post(&format!("{place}/cancel"), json!({})).await;
    assert_eq!(
        cancel.status, 400,
        "a call without a body takes none: {cancel:?}"
    );
    let cancel = read(world.ask(Method::POST, &format!("{place}/cancel"))).await;
    assert_eq!(cancel.code(), "operation-not-cancellable");
    let events = world
        .ask(Method::GET, &format!("{place}/events"))
        .send()
        .await;
    let events = events.expect("events").text().await.expect("they end");
    assert!(events.starts_with("event: operation\ndata: {"), "{events}");
    assert!(events.contains("\"state\":\"succeeded\""), "{events}");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_targets_are_told_apart_and_nothing_happens() {
    let world = World::start().await;
    let db = world.database("orders").await;
    world.run(&db, "CREATE TABLE t(a)").await;
    let here = at(&world.run(&db, "INSERT INTO t VALUES(1)").await);
    let other = world.database("other").await;
    world.run(&other, "CREATE TABLE u(a)").await;
    let foreign = at(&world.run(&other, "INSERT INTO u VALUES(1)").await);
    let restores = format!("{db}/restores");
    let unknown = format!("{}{}", "000000ff", &here[8..]);
    for (body, status, code) in [
        (json!({}), 400, "invalid-request"),
        (json!({ "target": {} }), 400, "invalid-request"),
        (
            json!({ "target": { "bookmark": here, "timestamp": 1 } }),
            400,
            "invalid-request",
        ),
        (
            json!({ "target": { "bookmark": here, "when": 1 } }),
            400,
            "unknown-field",
        ),
        (
            json!({ "target": { "bookmark": "x" } }),
            422,
            "bookmark-malformed",
        ),
        (
            json!({ "target": { "bookmark": foreign } }),
            422,
            "bookmark-foreign",
        ),
        (
            json!({ "target": { "bookmark": unknown } }),
            404,
            "bookmark-unknown",
        ),
        (
            json!({ "target": { "timestamp": "2001-01-01T00:00:00Z" } }),
            410,
            "bookmark-expired",
        ),
        (
            json!({ "target": { "before_restore": "rs_x" } }),
            404,
            "restore-not-found",
        ),
        (
            json!({ "target": { "bookmark": here }, "mode": "new" }),
            400,
            "invalid-request",
        ),
        (json!({ "plan": "pl_none" }), 412, "plan-stale"),
    ] {
        let got = world.keyed(&restores, body.clone()).await;
        assert_eq!((got.status, got.code()), (status, code), "{body}: {got:?}");
        // What cannot be reached names what can.
        let nearest = match code {
            "bookmark-foreign" => "nearest",
            "bookmark-unknown" => "current_bookmark",
            "bookmark-expired" => "oldest_available",
            _ => continue,
        };
        let named = got.body[nearest].as_str().expect("a bookmark");
        let path = format!("{db}/history?from={named}&to={named}");
        let same = world.get(&path).await;
        assert_eq!(same.status, 200, "{nearest} is one: {got:?}");
    }
    let moved = world
        .ask_keyed(&restores)
        .header("if-match", format!("\"{foreign}\""))
        .json(&json!({ "target": { "bookmark": here } }));
    let moved = read(moved).await;
    assert_eq!(
        (moved.code(), &moved.body["current_bookmark"]),
        ("database-moved", &json!(here))
    );
    assert_eq!(world.get(&restores).await.body["items"], json!([]));
    let reader = world
        .token(json!({ "kind": "live", "scopes": ["write"] }))
        .await;
    let refused = world
        .client
        .post(format!("{}{restores}", world.base))
        .bearer_auth(&reader)
        .json(&json!({ "target": { "bookmark": here } }));
    let refused = read(refused).await;
    assert_eq!(
        (refused.status, &refused.body["required"]),
        (403, &json!("admin"))
    );
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_wait_is_told_where_to_look() {
    let world = World::start().await;
    let db = world.database("orders").await;
    let here = at(&world.run(&db, "CREATE TABLE t(a)").await);
    world.run(&db, "INSERT INTO t VALUES(1)").await;
    // It waits for a writer, so that it has not ended when it is answered.
    let namespace = world.engine.namespace_by_name("default").await;
    let namespace = namespace.expect("there").id;
    let session = world.engine.database(namespace, "orders").await;
    let session = session.expect("there").writer().await.expect("a session");
    let (held, release) = hold(session).await;
    let asked = world
        .ask_keyed(&format!("{db}/restores"))
        .header("prefer", "respond-async")
        .json(&json!({ "target": { "bookmark": here } }));
    let accepted = read(asked).await;
    assert_eq!(accepted.status, 202, "{accepted:?}");
    drop(release);
    held.await.expect("the transaction ends");
    let place = accepted.header("location").expect("a place").to_owned();
    let events = world
        .ask(Method::GET, &format!("{place}/events"))
        .send()
        .await;
    let events = events
        .expect("events")
        .text()
        .await
        .expect("they end with the operation");
    assert!(events.contains("\"state\":\"succeeded\""), "{events}");
    assert_eq!(world.get(&place).await.body["state"], "succeeded");
    assert_eq!(
        world.run(&db, "SELECT count(*) FROM t").await.body["rows"],
        json!([[0]])
    );
    world.stop().await;
}

/// Goal (I7): a right that ends takes the events that were opened by it along. Method: a purge waits for a transaction on
/// the database; meanwhile the token that listens is revoked. It hears nothing more, the owner hears the end.
#[tokio::test(flavor = "multi_thread")]
async fn events_end_with_the_right_to_hear_them() {
    use futures::StreamExt as _;
    let world = World::start().await;
    let db = world.database("orders").await;
    world.run(&db, "CREATE TABLE t(a)").await;
    let made = world
        .post(
            "/v1/namespaces/default/tokens",
            json!({ "scopes": ["read"] }),
        )
        .await;
    let (token, id) = (made.body["token"].as_str(), made.body["id"].as_str());
    let (token, id) = (token.expect("a secret"), id.expect("an id"));
    let namespace = world.engine.namespace_by_name("default").await;
    let namespace = namespace.expect("there").id;
    let session = world.engine.database(namespace, "orders").await;
    let session = session.expect("there").writer().await.expect("a session");
    let (held, release) = hold(session).await;
    let purge = world.ask(Method::DELETE, &format!("{db}?purge=true"));
    let begun = read(purge.header("prefer", "wait=0")).await;
    assert_eq!(begun.status, 202, "{begun:?}");
    let operation = begun.body["operation"]["id"].as_str().expect("an id");
    let events = format!("/v1/namespaces/default/operations/{operation}/events");
    let listen = |token: &str| {
        let url = format!("{}{events}", world.base);
        world.client.get(url).bearer_auth(token).send()
    };
    let reader = listen(token).await.expect("events");
    assert_eq!(reader.status(), 200);
    let mut reader = reader.bytes_stream();
    let first = reader.next().await.expect("the first").expect("a piece");
    assert!(String::from_utf8_lossy(&first).contains("\"state\":\"running\""));
    let owner = listen(&world.owner).await.expect("events");
    let path = format!("/v1/namespaces/default/tokens/{id}");
    assert_eq!(read(world.ask(Method::DELETE, &path)).await.status, 204);
    drop(release);
    held.await.expect("the transaction ends");
    let owner = owner.text().await.expect("they end");
    assert!(owner.contains("\"state\":\"succeeded\""), "{owner}");
    while let Some(piece) = reader.next().await {
        let piece = piece.expect("it ends in order");
        let text = String::from_utf8_lossy(&piece);
        assert!(!text.contains("\"state\":\"succeeded\""), "{text}");
    }
    world.stop().await;
}

/// Goal: a restore that waits for a writer can be taken back until the change itself, leaves nothing, and nothing else
/// changes the database meanwhile. Method: a client's transaction holds the gate; a second restore, a deletion and a purge
/// are refused by the operation's name; the cancel ends it although the transaction stays.
#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_waits_is_cancelled_and_alone() {
    let world = World::start().await;
    let db = world.database("orders").await;
    let made = world.run(&db, "CREATE TABLE t(a)").await;
    let target = json!({ "target": { "bookmark": at(&made) } });
    let now = at(&world.run(&db, "INSERT INTO t VALUES(1)").await);
    let begin = json!({ "requests": [
        { "type": "execute", "stmt": { "sql": "BEGIN IMMEDIATE" } },
        { "type": "execute", "stmt": { "sql": "INSERT INTO t VALUES(2)" } },
    ] });
    let held = world.post("/default/orders/v3/pipeline", begin).await;
    let baton = held.body["baton"].as_str().expect("a baton").to_owned();
    let restores = format!("{db}/restores");
    let restore = || {
        world
            .ask_keyed(&restores)
            .header("prefer", "wait=0")
            .json(&target)
    };
    let begun = read(restore()).await;
    assert_eq!(begun.status, 202, "{begun:?}");
    let id = begun.body["operation"]["id"]
        .as_str()
        .expect("an id")
        .to_owned();
    let others = [
        read(restore()).await,
        read(world.ask(Method::DELETE, &db)).await,
        read(world.ask(Method::DELETE, &format!("{db}?purge=true"))).await,
    ];
    for refused in others {
        assert_eq!(
            (refused.status, refused.code()),
            (409, "operation-in-progress")
        );
        assert_eq!(refused.body["operation"], json!(id));
    }
    let place = format!("/v1/namespaces/default/operations/{id}");
    let cancel = read(world.ask(Method::POST, &format!("{place}/cancel"))).await;
    assert!(matches!(cancel.status, 200 | 202), "{cancel:?}");
    let patience = tokio::time::Instant::now() + Duration::from_mins(2);
    while world.get(&place).await.body["state"] != "cancelled" {
        assert!(
            tokio::time::Instant::now() < patience,
            "it is not cancelled"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // Whoever asks again under its key hears the same.
    let key = world
        .ask(Method::POST, &restores)
        .header("idempotency-key", "again");
    let key = || {
        key.try_clone()
            .expect("no stream")
            .header("prefer", "wait=0")
            .json(&target)
    };
    let again = read(key()).await;
    assert_eq!(again.status, 202, "{again:?}");
    let id = again.body["operation"]["id"]
        .as_str()
        .expect("an id")
        .to_owned();
    let cancel = format!("/v1/namespaces/default/operations/{id}/cancel");
    read(world.ask(Method::POST, &cancel)).await;
    loop {
        let told = read(key()).await;
        if told.status == 409 && told.code() == "operation-cancelled" {
            assert_eq!(told.body["operation"], json!(id));
            break;
        }
        assert!(tokio::time::Instant::now() < patience, "{told:?}");
    }
    let commit = json!({ "baton": baton, "requests": [
        { "type": "execute", "stmt": { "sql": "COMMIT" } },
        { "type": "close" },
    ] });
    let done = world.post("/default/orders/v3/pipeline", commit).await;
    assert_eq!(done.body["results"][0]["type"], "ok", "{done:?}");
    let rows = world.run(&db, "SELECT count(*) FROM t").await;
    assert_eq!(rows.body["rows"], json!([[2]]));
    assert!(at(&rows) > now);
    let listed = world.get(&restores).await;
    for record in listed.body["items"].as_array().expect("items") {
        assert_eq!(record["outcome"], "failed", "{record}");
    }
    world.stop().await;
}

/// Goal: what a restore took back is neither answered as done nor done again; too many restores are refused, and for
/// how long. Method: a keyed write, a restore to before it, the same call again; then restores until one is refused.
#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_was_taken_back_and_the_eleventh_restore_are_refused() {
    let world = World::start().await;
    let db = world.database("orders").await;
    let before = at(&world.run(&db, "CREATE TABLE t(a)").await);
    let write = |key: &'static str| {
        let request = world.ask(Method::POST, &format!("{db}/query"));
        let request = request.header("idempotency-key", key);
        request.json(&json!({ "sql": "INSERT INTO t VALUES(1)" }))
    };
    assert_eq!(read(write("one")).await.status, 200);
    let again = read(write("one")).await;
    assert_eq!(
        (again.status, again.header("idempotency-replayed")),
        (200, Some("true"))
    );
    let restores = format!("{db}/restores");
    let target = json!({ "target": { "bookmark": before } });
    for number in 1..=10 {
        let done = world.keyed(&restores, target.clone()).await;
        assert_eq!(done.status, 200, "{number}: {done:?}");
        let refused = read(write("one")).await;
        assert_eq!(
            (refused.status, refused.code()),
            (409, "idempotency-result-rolled-back")
        );
        assert_eq!(refused.body["retryable"], false);
    }
    let rows = world.run(&db, "SELECT count(*) FROM t").await;
    assert_eq!(rows.body["rows"], json!([[0]]));
    assert_eq!(read(write("two")).await.status, 200, "another key is free");

    let refused = world.keyed(&restores, target.clone()).await;
    assert_eq!(
        (refused.status, refused.code()),
        (429, "restore-rate-limited")
    );
    assert_eq!(refused.body["retryable"], true);
    let wait = refused.body["retry_after"].as_u64().expect("seconds");
    assert!((1..=600).contains(&wait), "{wait}");
    let header = refused.header("retry-after").expect("a header");
    assert_eq!(header, wait.to_string());
    let preview = json!({ "target": { "bookmark": before }, "dry_run": true });
    let preview = world.keyed(&restores, preview).await;
    assert_eq!(preview.status, 200, "a look is no restore: {preview:?}");
    world.stop().await;
}

/// A disk with as much room as it is told to have.
#[derive(Debug)]
struct SmallDisk {
    disk: StdDisk,
    free: Arc<AtomicU64>,
}

impl Disk for SmallDisk {
    fn create(&self, path: &Path) -> io::Result<Box<dyn AppendFile>> {
        self.disk.create(path)
    }
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.disk.read(path)
    }
    fn read_at(&self, path: &Path, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        self.disk.read_at(path, offset, len)
    }
    fn write_atomic(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        self.disk.write_atomic(path, bytes)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.disk.remove(path)
    }
    fn list(&self, folder: &Path) -> io::Result<Vec<(PathBuf, u64)>> {
        self.disk.list(folder)
    }
    fn create_folder(&self, folder: &Path) -> io::Result<()> {
        self.disk.create_folder(folder)
    }
    fn free_bytes(&self, _folder: &Path) -> io::Result<u64> {
        Ok(self.free.load(Ordering::Relaxed))
    }
}

/// Goal: a state that left the window, an object that is damaged and a disk that is too small are told apart, each with
/// what belongs to it. Method: clock, store and disk are the test's: forty days pass and retention is applied, bytes of
/// the log rot on their way, the disk has a few bytes left.
#[tokio::test(flavor = "multi_thread")]
async fn what_time_store_and_disk_refuse_is_told_apart() {
    const DAY: i64 = 24 * 3600;
    let free = Arc::new(AtomicU64::new(1 << 40));
    let clock = Arc::new(ShiftedClock::new());
    let faults = FaultStore::in_memory(script(|_| Fault::None));
    faults.set_clock(Arc::clone(&clock) as Arc<dyn Clock>);
    let shared = Arc::new(Shared(Arc::clone(&faults)));
    let store = Store::from_object_store(shared, "", StoreOptions::default()).expect("a store");
    let parts = Parts {
        boot: None,
        clock: Arc::clone(&clock) as Arc<dyn Clock>,
        disk: Arc::new(SmallDisk {
            disk: StdDisk,
            free: Arc::clone(&free),
        }),
        ..Parts::production()
    };
    let world = World::on(parts, store).await;
    let db = world.database("orders").await;
    world.run(&db, "CREATE TABLE t(a, b)").await;
    let mut days = Vec::new();
    for day in 0..3 {
        let sql = format!("INSERT INTO t VALUES({day}, randomblob(2000))");
        let body = json!({ "sql": sql, "durability": "remote" });
        let done = world.post(&format!("{db}/query"), body).await;
        assert_eq!(done.status, 200, "{done:?}");
        days.push(at(&done));
    }
    let label = json!({ "name": "mortal", "bookmark": days[0] });
    let label = world.post(&format!("{db}/snapshots"), label).await;
    assert_eq!(label.status, 201, "{label:?}");
    let restores = format!("{db}/restores");
    let restore = async |target: Json| world.keyed(&restores, json!({ "target": target })).await;

    let log = |key: &str| key.contains("/segments/") || key.starts_with("journal/");
    faults.set_plan(script(move |call| {
        if call.op == Op::Get && log(&call.key) {
            return Fault::BitRot;
        }
        Fault::None
    }));
    let corrupt = restore(json!({ "bookmark": days[0] })).await;
    assert_eq!((corrupt.status, corrupt.code()), (500, "object-corrupt"));
    let object = corrupt.body["object"].as_str().expect("its key");
    assert!(log(object), "{object}");
    assert_eq!(corrupt.body["retryable"], false);
    faults.set_plan(script(|_| Fault::None));

    free.store((64 << 20) + 1000, Ordering::Relaxed);
    let full = world.keyed(&format!("{db}/archives"), json!({})).await;
    assert_eq!((full.status, full.code()), (507, "disk-full"));
    assert_eq!(full.body["free"], (64 << 20) + 1000);
    assert!(full.body["needed"].as_u64() >= Some(8192), "{full:?}");
    free.store(1 << 40, Ordering::Relaxed);

    clock.pass(40 * DAY);
    let url = format!("{}/v1/retention", world.base);
    let gc = async |apply: bool| {
        let asked = world.client.post(&url).bearer_auth(&world.server);
        let body = json!({ "database": "default/orders", "apply": apply });
        let gc = read(asked.json(&body)).await;
        assert_eq!(gc.status, 200, "{gc:?}");
        gc.body["items"][0]["horizon"]
            .as_str()
            .expect("a number")
            .to_owned()
    };
    // States expire where a segment ends, and settling goes on beside the requests.
    let late = deadline(PATIENCE);
    while gc(false).await.as_str() < &days[2][9..25] {
        assert!(!late(), "it is never settled");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    world.run(&db, "INSERT INTO t VALUES(3, NULL)").await;
    gc(true).await;
    let expired = restore(json!({ "snapshot": "mortal" })).await;
    assert_eq!((expired.status, expired.code()), (410, "snapshot-expired"));
    let oldest = expired.body["oldest_available"].as_str().expect("one");
    assert!(oldest > days[0].as_str(), "{expired:?}");
    let expired = restore(json!({ "bookmark": days[0] })).await;
    assert_eq!((expired.status, expired.code()), (410, "bookmark-expired"));
    for (name, value, code) in [
        ("bookmark", days[0].as_str(), "bookmark-expired"),
        ("snapshot", "mortal", "snapshot-expired"),
    ] {
        for (call, got) in asked_for(&world, name, value).await {
            assert_eq!((got.status, got.code()), (410, code), "{call}: {got:?}");
        }
    }
    let back = restore(json!({ "bookmark": oldest })).await;
    assert_eq!(back.status, 200, "what is named can be had: {back:?}");
    world.stop().await;
}
