//! The Idempotency-Key on every POST: one effect, one answer, however often it is sent.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value as Json, json};

use crate::world::{Got, World, read};

async fn keyed(world: &World, path: &str, key: &str, body: Json) -> Got {
    let request = world.ask(Method::POST, path).header("idempotency-key", key);
    read(request.json(&body)).await
}

const DATABASES: &str = "/v1/namespaces/default/databases";
const TOKENS: &str = "/v1/namespaces/default/tokens";

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_creation_is_answered_and_not_repeated() {
    let world = World::start().await;
    let body = json!({ "name": "orders" });
    let first = keyed(&world, DATABASES, "k1", body.clone()).await;
    assert_eq!(first.status, 201, "{first:?}");
    assert_eq!(first.header("idempotency-replayed"), None);
    let again = keyed(&world, DATABASES, "k1", body.clone()).await;
    assert_eq!(
        (again.status, again.header("idempotency-replayed")),
        (201, Some("true"))
    );
    assert_eq!(again.body, first.body);
    let other = keyed(&world, DATABASES, "k1", json!({ "name": "others" })).await;
    assert_eq!(
        (other.status, other.code()),
        (422, "idempotency-key-reused")
    );
    let fresh = keyed(&world, DATABASES, "k2", body).await;
    assert_eq!((fresh.status, fresh.code()), (409, "name-taken"));
    world.stop().await;
}

/// Goal: the answer to a repeated token creation names the same token and not its secret, which is kept nowhere.
#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_token_is_the_same_and_shows_no_secret() {
    let world = World::start().await;
    let body = json!({ "scopes": ["read"] });
    let first = keyed(&world, TOKENS, "k1", body.clone()).await;
    let secret = first.body["token"].as_str().expect("a secret").to_owned();
    let again = keyed(&world, TOKENS, "k1", body).await;
    assert_eq!(
        (again.status, again.header("idempotency-replayed")),
        (201, Some("true"))
    );
    assert_eq!(again.body["id"], first.body["id"]);
    assert_eq!(again.body["token"], Json::Null);
    let listed = world.get(TOKENS).await;
    let same = listed.body["items"].as_array().expect("items").iter();
    assert_eq!(
        same.filter(|token| token["id"] == first.body["id"]).count(),
        1
    );
    let request = world.client.get(format!("{}{DATABASES}", world.base));
    assert_eq!(read(request.bearer_auth(secret)).await.status, 200);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_belongs_to_its_token_and_its_route() {
    let world = World::start().await;
    let made = |name: &str| json!({ "name": name });
    assert_eq!(keyed(&world, DATABASES, "k", made("a")).await.status, 201);
    let other = world.token(json!({ "scopes": ["admin"] })).await;
    let request = world.client.post(format!("{}{DATABASES}", world.base));
    let request = request.bearer_auth(other).header("idempotency-key", "k");
    let got = read(request.json(&made("b"))).await;
    assert_eq!(
        (got.status, got.header("idempotency-replayed")),
        (201, None)
    );
    let got = keyed(&world, TOKENS, "k", json!({ "scopes": ["read"] })).await;
    assert_eq!(
        (got.status, got.header("idempotency-replayed")),
        (201, None)
    );
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_undelete_namespace_and_import_answer_alike() {
    let world = World::start().await;
    let database = world.database("orders").await;
    world.run(&database, "create table t(a)").await;
    assert_eq!(read(world.ask(Method::DELETE, &database)).await.status, 204);
    let path = format!("{database}/undelete");
    let back = || {
        read(
            world
                .ask(Method::POST, &path)
                .header("idempotency-key", "k"),
        )
    };
    let (first, again) = (back().await, back().await);
    assert_eq!(
        (first.status, again.status),
        (200, 200),
        "{first:?} {again:?}"
    );
    assert_eq!(first.body, again.body);
    assert_eq!(again.header("idempotency-replayed"), Some("true"));
    world.run(&database, "insert into t values(1)").await;

    let namespace = || {
        let request = world.client.post(format!("{}/v1/namespaces", world.base));
        let request = request
            .bearer_auth(&world.server)
            .header("idempotency-key", "k");
        read(request.json(&json!({ "name": "acme" })))
    };
    let (first, again) = (namespace().await, namespace().await);
    assert_eq!((first.status, again.status), (201, 201));
    assert_eq!(again.body["id"], first.body["id"]);
    assert_eq!(again.body["owner_token"]["token"], Json::Null);

    let export = world.ask(Method::GET, &format!("{database}/export"));
    let file = export
        .send()
        .await
        .expect("an answer")
        .bytes()
        .await
        .expect("a file");
    let import = |file: Vec<u8>| {
        let path = "/v1/namespaces/default/databases/copy/import";
        read(
            world
                .ask(Method::POST, path)
                .header("idempotency-key", "k")
                .body(file),
        )
    };
    let (first, again) = (import(file.to_vec()).await, import(file.to_vec()).await);
    assert_eq!(
        (first.status, again.status),
        (201, 201),
        "{first:?} {again:?}"
    );
    assert_eq!(again.header("idempotency-replayed"), Some("true"));
    let mut other = file.to_vec();
    other.push(0);
    assert_eq!(import(other).await.code(), "idempotency-key-reused");
    world.stop().await;
}

/// Goal: two calls with one key act once even when they overlap. Method: both at once, many times; one makes
/// the database, the other hears its answer or that it still runs.
#[tokio::test(flavor = "multi_thread")]
async fn overlapping_calls_with_one_key_act_once() {
    let world = World::start().await;
    let mut met = false;
    for round in 0..100 {
        if met && round >= 5 {
            break;
        }
        let body = json!({ "name": format!("d{round}") });
        let key = format!("k{round}");
        let (a, b) = tokio::join!(
            keyed(&world, DATABASES, &key, body.clone()),
            keyed(&world, DATABASES, &key, body.clone())
        );
        for got in [&a, &b] {
            let fine = got.status == 201 || got.code() == "idempotency-in-progress";
            assert!(fine, "{got:?}");
        }
        assert!(a.status == 201 || b.status == 201);
        met |= a.status != 201 || b.status != 201;
        let later = keyed(&world, DATABASES, &key, body).await;
        assert_eq!(
            (later.status, later.header("idempotency-replayed")),
            (201, Some("true"))
        );
    }
    assert!(met, "the calls never overlap");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_call_leaves_its_key_free() {
    let world = World::start().await;
    let bad = keyed(&world, DATABASES, "k", json!({ "name": "NO" })).await;
    assert_eq!((bad.status, bad.code()), (422, "name-invalid"));
    let good = keyed(&world, DATABASES, "k", json!({ "name": "yes" })).await;
    assert_eq!(good.status, 201, "{good:?}");
    let shown = world.get("/v1/namespaces/default/databases/yes").await;
    assert!(
        shown.body["size_bytes"]
            .as_u64()
            .is_some_and(|bytes| bytes >= 4096)
    );
    assert!(shown.body["lag_bytes"].is_u64() && shown.body["lag_ms"].is_number());
    tokio::time::timeout(Duration::from_mins(1), world.stop())
        .await
        .expect("the stop ends");
}

/// Goal: a repeated restore is told of the operation that the first one began, and runs no second one. Method: do
/// not wait for the first; the list of restores holds one.
#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_restore_is_its_operation() {
    let world = World::start().await;
    let database = world.database("orders").await;
    let made = world.run(&database, "create table t(a)").await;
    world.run(&database, "insert into t values(1)").await;
    let path = format!("{database}/restores");
    let body = json!({ "target": { "bookmark": made.body["bookmark"] } });
    let ask = |wait: &'static str| {
        let url = format!("{}{path}", world.base);
        let request = world.client.post(url).bearer_auth(&world.owner);
        let request = request
            .header("idempotency-key", "k")
            .header("prefer", wait);
        read(request.json(&body))
    };
    let first = ask("respond-async").await;
    assert!(matches!(first.status, 200 | 202), "{first:?}");
    let again = ask("wait=10").await;
    assert!(matches!(again.status, 200 | 202), "{again:?}");
    assert_eq!(again.header("idempotency-replayed"), Some("true"));
    assert_eq!(again.body["operation"]["id"], first.body["operation"]["id"]);
    let listed = world.get(&path).await;
    assert_eq!(listed.body["items"].as_array().map(Vec::len), Some(1));
    world.stop().await;
}

/// Goal: keyed statements that overlap act once: the second waits for the first and hears its answer.
#[tokio::test(flavor = "multi_thread")]
async fn overlapping_statements_with_one_key_act_once() {
    let world = World::start().await;
    let database = world.database("orders").await;
    world.run(&database, "create table t(a)").await;
    let query = format!("{database}/query");
    // Long enough that they meet.
    let sql = "with recursive n(x) as (select 1 union all select x + 1 from n limit 300000) insert into t select count(*) from n";
    for round in 0..5 {
        let key = format!("k{round}");
        let send = || keyed(&world, &query, &key, json!({ "sql": sql }));
        let (a, b) = tokio::join!(send(), send());
        assert_eq!((a.status, b.status), (200, 200), "{a:?} {b:?}");
        let replayed = [&a, &b].map(|got| got.header("idempotency-replayed"));
        assert_eq!(replayed.iter().flatten().count(), 1, "{replayed:?}");
        let count = world.run(&database, "select count(*) from t").await;
        assert_eq!(count.body["rows"], json!([[round + 1]]));
    }
    world.stop().await;
}

/// Goal: what cannot be kept under a key takes none, and says so before anything is done; what a restore took back is
/// not answered from what was kept.
#[tokio::test(flavor = "multi_thread")]
async fn keys_are_refused_where_they_mean_nothing() {
    let world = World::start().await;
    let database = world.database("orders").await;
    let made = world.run(&database, "create table t(a)").await;
    let query = format!("{database}/query");
    let vacuum = keyed(&world, &query, "v", json!({ "sql": "vacuum" })).await;
    assert_eq!((vacuum.status, vacuum.code()), (400, "invalid-request"));
    world.run(&database, "vacuum").await;
    let insert = || {
        let body = json!({ "sql": "insert into t values(1)" });
        keyed(&world, &query, "k", body)
    };
    assert_eq!(insert().await.status, 200);
    let target = json!({ "target": { "bookmark": made.body["bookmark"] } });
    let restored = world.keyed(&format!("{database}/restores"), target).await;
    assert_eq!(restored.status, 200, "{restored:?}");
    let again = insert().await;
    assert_eq!(
        (again.status, again.code()),
        (409, "idempotency-result-rolled-back")
    );
    let count = world.run(&database, "select count(*) from t").await;
    assert_eq!(count.body["rows"], json!([[0]]));
    world.stop().await;
}
