//! History that has a hole, and objects that are damaged, over HTTP: each call that names a point in time says which
//! point nearby can be had, and nobody is given something else in its place.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use reqwest::Method;
use serde_json::{Value as Json, json};
use tempfile::TempDir;
use tidelog_archive::store::{Store, StoreOptions, StoreSettings};
use tidelog_engine::system::Page;
use tidelog_engine::{Engine, Parts, Settings, TakeOver};
use tidelog_testkit::faultstore::{Fault, FaultStore, Op, Shared, script};

use crate::hrana::{CURSOR, PIPELINE, close, execute, failed};
use crate::world::{Got, World, patient, read, unhurried};

const ORDERS: &str = "/v1/namespaces/default/databases/orders";

fn folder() -> Arc<TempDir> {
    Arc::new(tempfile::tempdir().expect("a temporary folder"))
}

fn store_on(objects: &Arc<FaultStore>) -> Store {
    let options = StoreOptions {
        settings: StoreSettings {
            attempts_max: 1,
            ..StoreSettings::default()
        },
        ..StoreOptions::default()
    };
    let shared = Arc::new(Shared(Arc::clone(objects)));
    Store::from_object_store(shared, "", options).expect("a store")
}

/// A life of a server on a folder and a store.
async fn life(folder: &Arc<TempDir>, store: Store, take_over: TakeOver) -> World {
    let settings = Settings {
        data: folder.path().join("data"),
        store_url: "memory:".to_owned(),
        ship_interval: Duration::from_millis(20),
        take_over,
        master_keys: tidelog_testkit::sealing::masters(),
        ..unhurried()
    };
    let engine = Box::pin(Engine::start_on(settings, Parts::production(), store));
    let engine = engine.await.expect("the engine starts");
    let world = World::around(engine, Arc::clone(folder), None, patient());
    Box::pin(world).await
}

/// Every call that takes a point in time, given this one: `name` is bookmark, timestamp or snapshot.
pub(crate) async fn asked_for(world: &World, name: &str, value: &str) -> Vec<(&'static str, Got)> {
    let target = json!({ name: value });
    let with = |mut body: Json| {
        body["target"] = target.clone();
        body
    };
    let keyed = async |path: &str, body: Json| world.keyed(&format!("{ORDERS}/{path}"), body).await;
    let databases = "/v1/namespaces/default/databases";
    let mut seed = json!({ "database": "orders" });
    seed[name] = json!(value);
    let seed = json!({ "name": "seeded", "seed": seed });
    let level = json!({ "level": "restore" });
    let dry = json!({ "dry_run": true });
    let branch = world.ask(Method::PUT, &format!("{ORDERS}/branches/then"));
    let mut answers = vec![
        ("restores", keyed("restores", with(json!({}))).await),
        ("dry run", keyed("restores", with(dry)).await),
        (
            "forks",
            keyed("forks", with(json!({ "name": "copy" }))).await,
        ),
        ("branches", read(branch.json(&with(json!({})))).await),
        ("archives", keyed("archives", with(json!({}))).await),
        ("seed", world.keyed(databases, seed).await),
        ("verifications", keyed("verifications", with(level)).await),
    ];
    let asked = format!("{name}={value}");
    let export = world.get(&format!("{ORDERS}/export?{asked}")).await;
    answers.push(("export", export));
    if name == "snapshot" {
        return answers;
    }
    let mut snapshot = json!({ "name": "then" });
    snapshot[name] = json!(value);
    answers.push(("snapshots", keyed("snapshots", snapshot).await));
    let d1 = keyed(&format!("time_travel/restore?{asked}"), json!({})).await;
    answers.push(("time_travel", d1));
    match name {
        "bookmark" => {
            let history = world.get(&format!("{ORDERS}/history?from={value}")).await;
            answers.push(("history", history));
        }
        _ => {
            for path in ["bookmarks", "time_travel/bookmark"] {
                let found = world.get(&format!("{ORDERS}/{path}?{asked}")).await;
                answers.push(("bookmarks", found));
            }
            // sqld's, whose times are texts.
            let text: String = rusqlite::Connection::open_in_memory()
                .and_then(|c| {
                    let text = "select strftime('%Y-%m-%dT%H:%M:%f', ?1 / 1000.0, 'unixepoch')";
                    c.query_row(text, [value.parse::<i64>().expect("milliseconds")], |row| {
                        row.get(0)
                    })
                })
                .expect("a time");
            let fork = world.ask(Method::POST, "/v1/namespaces/orders/fork/then");
            let forked = read(fork.json(&json!({ "timestamp": text }))).await;
            answers.push(("sqld's fork", forked));
        }
    }
    answers
}

/// Goal: every call that names a state says what is wrong with the name (I3). Method: each is given what is no bookmark,
/// one of a term that never was, one past the newest commit, one of another history, and a snapshot that there is not.
#[tokio::test(flavor = "multi_thread")]
async fn every_call_that_names_a_state_says_what_is_wrong_with_it() {
    let world = World::start().await;
    world.database("orders").await;
    let create = json!({ "sql": "create table t(a)", "durability": "remote" });
    let made = world.post(&format!("{ORDERS}/query"), create).await;
    let now = made.body["bookmark"].as_str().expect("a bookmark");
    let mut parts = now.split('-');
    let mut part = || parts.next().expect("term, txid, chain");
    let (term, txid, chain) = (part(), part(), part());
    let other = "0123456789abcdef0123456789abcdef";
    let cases = [
        ("bookmark", "now".to_owned(), 422, "bookmark-malformed"),
        ("bookmark", now.to_uppercase(), 422, "bookmark-malformed"),
        (
            "bookmark",
            format!("00ffffff-{txid}-{chain}"),
            404,
            "bookmark-unknown",
        ),
        (
            "bookmark",
            format!("{term}-00000000000000ff-{chain}"),
            422,
            "bookmark-in-future",
        ),
        (
            "bookmark",
            format!("{term}-{txid}-{other}"),
            422,
            "bookmark-foreign",
        ),
        ("timestamp", "1000".to_owned(), 410, "bookmark-expired"),
        ("snapshot", "none".to_owned(), 404, "snapshot-not-found"),
    ];
    let mut wrong = Vec::new();
    for (name, value, status, code) in cases {
        for (call, got) in asked_for(&world, name, &value).await {
            if (got.status, got.body["code"].as_str()) != (status, Some(code)) {
                let (status, said) = (got.status, &got.body);
                wrong.push(format!("{call} with {value}, {code}: {status} {said}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let rows = world.get("/v1/namespaces/default/databases").await;
    assert_eq!(rows.body["items"].as_array().map(Vec::len), Some(1));
    world.stop().await;
}

/// Goal: a commit that was acknowledged at `memory` and went with its machine is never somebody else's: every call that
/// names it is 410 `bookmark-lost` with the commit before it (I3). Method: the store takes nothing more from the first
/// server, which commits once more; a second one on an empty disk takes over and commits under the same number.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_went_with_its_machine_is_named_as_lost() {
    let base = FaultStore::in_memory(script(|_| Fault::None));
    let away = Arc::new(AtomicBool::new(false));
    let cut = Arc::clone(&away);
    let beneath = Arc::new(Shared(Arc::clone(&base)));
    let faults = FaultStore::new(
        beneath,
        script(move |_| {
            if cut.load(Ordering::SeqCst) {
                return Fault::Before;
            }
            Fault::None
        }),
    );
    let (first, second) = (folder(), folder());
    let machine = life(&first, store_on(&faults), TakeOver::None).await;
    machine.database("orders").await;
    let query = format!("{ORDERS}/query");
    let create = json!({ "sql": "create table t(a)", "durability": "remote" });
    let kept = machine.post(&query, create).await;
    assert_eq!(kept.status, 200, "{kept:?}");
    let kept = kept.body["bookmark"].clone();
    away.store(true, Ordering::SeqCst);
    let insert = json!({ "sql": "insert into t values(1)", "durability": "memory" });
    let gone = machine.post(&query, insert).await;
    assert_eq!(gone.status, 200, "{gone:?}");
    let gone = gone.body["bookmark"]
        .as_str()
        .expect("a bookmark")
        .to_owned();

    // Tokens outlive the machine: they stand in the bucket.
    let data = second.path().join("data");
    std::fs::create_dir_all(&data).expect("a folder");
    for file in ["owner.token", "server.token"] {
        let from: &Path = first.path();
        std::fs::copy(from.join("data").join(file), data.join(file)).expect("copied");
    }
    let heir = life(&second, store_on(&base), TakeOver::All).await;
    let answers = asked_for(&heir, "bookmark", &gone).await;
    for (call, got) in &answers {
        assert_eq!(
            (got.status, got.code()),
            (410, "bookmark-lost"),
            "{call}: {got:?}"
        );
        assert_eq!(got.body["nearest_earlier"], kept, "{call}: {got:?}");
        assert_eq!(got.body["retryable"], false, "{call}");
    }
    // Its number is the next commit's in another term, and it stays lost.
    let insert = json!({ "sql": "insert into t values(2)", "durability": "remote" });
    assert_eq!(heir.post(&query, insert).await.status, 200);
    let target = json!({ "target": { "bookmark": gone } });
    let got = heir.keyed(&format!("{ORDERS}/restores"), target).await;
    assert_eq!((got.status, got.code()), (410, "bookmark-lost"), "{got:?}");
    let rows = heir.run(ORDERS, "select a from t").await;
    assert_eq!(rows.body["rows"], json!([[2]]), "nothing of it was done");
    // What the answer offers can be had.
    let target = json!({ "target": { "bookmark": kept } });
    let got = heir.keyed(&format!("{ORDERS}/restores"), target).await;
    assert_eq!(got.status, 200, "{got:?}");
    heir.stop().await;
    away.store(false, Ordering::SeqCst);
    machine.lose().await;
}

/// Goal: a time inside a gap is no state of ours: every call that names it is 422 `recovery-gap` with the commits on both
/// sides, and both can be had (I3). Method: somebody writes to the file of a server that has stopped.
#[tokio::test(flavor = "multi_thread")]
async fn a_time_inside_a_gap_is_refused_with_both_its_ends() {
    let base = FaultStore::in_memory(script(|_| Fault::None));
    let place = folder();
    let world = life(&place, store_on(&base), TakeOver::None).await;
    world.database("orders").await;
    world.run(ORDERS, "create table t(a)").await;
    let insert = json!({ "sql": "insert into t values(1)", "durability": "remote" });
    let before = world.post(&format!("{ORDERS}/query"), insert).await;
    let before = before.body["bookmark"].clone();
    let row = world.engine.namespace_by_name("default").await;
    let namespace = row.expect("the namespace").id;
    let database = world.engine.database(namespace, "orders").await;
    let writer = database.expect("the database").writer().await;
    let file = writer.expect("a database in use").file();
    world.stop().await;
    let stranger = rusqlite::Connection::open(file).expect("nobody has it open");
    let written = stranger.execute_batch("insert into t values(7)");
    written.expect("written behind its back");
    drop(stranger);

    let world = life(&place, store_on(&base), TakeOver::None).await;
    let rows = world.run(ORDERS, "select count(*) from t").await;
    assert_eq!(rows.body["rows"], json!([[2]]));
    let after = rows.body["bookmark"].clone();
    assert_ne!(before, after);
    let database = world.engine.database(namespace, "orders").await;
    let database = database.expect("the database");
    let from = before.as_str().and_then(|text| text.parse().ok());
    let around = database.history(from, None, Page::default()).await;
    let around = around.expect("a history").items;
    let [begin, end] = [&around[0], &around[1]].map(|commit| commit.time.micros());
    let inside = begin.midpoint(end) / 1000;
    assert!(
        inside * 1000 > begin && (inside + 1) * 1000 < end,
        "{begin} {end}"
    );
    let answers = asked_for(&world, "timestamp", &inside.to_string()).await;
    for (call, got) in &answers {
        assert_eq!(
            (got.status, got.code()),
            (422, "recovery-gap"),
            "{call}: {got:?}"
        );
        assert_eq!(got.body["nearest_earlier"], before, "{call}: {got:?}");
        assert_eq!(got.body["nearest_later"], after, "{call}: {got:?}");
    }
    let window = world.get(&format!("{ORDERS}/recovery-window")).await;
    assert_eq!(window.body["continuity"], "gap", "{window:?}");
    for (end, rows) in [(&before, 1), (&after, 2)] {
        let target = json!({ "target": { "bookmark": end } });
        let got = world.keyed(&format!("{ORDERS}/restores"), target).await;
        assert_eq!(got.status, 200, "{got:?}");
        let count = world.run(ORDERS, "select count(*) from t").await;
        assert_eq!(count.body["rows"], json!([[rows]]));
    }
    world.stop().await;
}

/// Goal: damage is said as damage, in the words of each protocol: 500 `object-corrupt` of our own and `OBJECT_CORRUPT` of
/// Hrana's, and neither leaves a stream or a lock (HRANA 6). Method: bits rot in whatever is read of the database's
/// manifest while a server that just started opens it; once they do not, everything is there.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_object_is_said_to_be_damaged_by_both_protocols() {
    let base = FaultStore::in_memory(script(|_| Fault::None));
    let place = folder();
    let world = life(&place, store_on(&base), TakeOver::None).await;
    world.database("orders").await;
    world.run(ORDERS, "create table t(a)").await;
    let row = world.engine.namespace_by_name("default").await;
    let namespace = row.expect("the namespace").id;
    let database = world.engine.database(namespace, "orders").await;
    let id = database.expect("the database").row().id.to_string();
    world.stop().await;

    base.set_plan(script(move |call| {
        let manifest = call.key.contains(&id) && call.key.ends_with("/manifest");
        if call.op == Op::Get && manifest {
            return Fault::BitRot;
        }
        Fault::None
    }));
    let world = life(&place, store_on(&base), TakeOver::None).await;
    let query = format!("{ORDERS}/query");
    let got = world.post(&query, json!({ "sql": "select 1" })).await;
    assert_eq!((got.status, got.code()), (500, "object-corrupt"), "{got:?}");
    for requests in [
        json!([execute("select 1"), close()]),
        json!([execute("insert into t values(1)"), execute("select 1")]),
        json!([{ "type": "describe", "sql": "select 1" }]),
        json!([{ "type": "sequence", "sql": "select 1" }]),
        json!([]),
    ] {
        let got = world.hrana(&Json::Null, requests.clone()).await;
        failed(&got, 500, "OBJECT_CORRUPT");
        assert!(got.header("retry-after").is_none(), "{requests}");
    }
    let steps = json!({ "batch": { "steps": [{ "stmt": { "sql": "select 1" } }] } });
    let got = read(world.ask(Method::POST, CURSOR).json(&steps)).await;
    failed(&got, 500, "OBJECT_CORRUPT");
    assert_eq!(world.engine.stream_count(), 0);

    base.set_plan(script(|_| Fault::None));
    let write = json!([execute("insert into t values(1)"), close()]);
    let write = json!({ "requests": write });
    let got = read(world.ask(Method::POST, PIPELINE).json(&write)).await;
    assert_eq!(got.body["results"][0]["type"], "ok", "{got:?}");
    assert_eq!(world.count().await, 1);
    world.stop().await;
}
