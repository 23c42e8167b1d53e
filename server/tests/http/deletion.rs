//! Deletion, purge and the retention window over HTTP.

use reqwest::Method;
use serde_json::json;

use crate::world::{World, read};

#[tokio::test(flavor = "multi_thread")]
async fn a_purge_is_an_operation_and_nothing_comes_back() {
    let world = World::start().await;
    let orders = world.database("orders").await;
    world.run(&orders, "create table t(a)").await;
    let got = read(world.ask(Method::DELETE, &orders)).await;
    assert_eq!(got.status, 204, "{got:?}");
    let undelete = world.ask(Method::POST, &format!("{orders}/undelete"));
    let got = read(undelete).await;
    assert_eq!(got.status, 200, "{got:?}");
    world.run(&orders, "insert into t values(1)").await;

    let protect = |on: bool| {
        let request = world.ask(Method::PATCH, &orders);
        request.json(&json!({ "delete_protection": on }))
    };
    assert_eq!(read(protect(true)).await.status, 200);
    let purge = || world.ask(Method::DELETE, &format!("{orders}?purge=true"));
    let got = read(purge()).await;
    assert_eq!((got.status, got.code()), (409, "database-protected"));
    assert_eq!(read(protect(false)).await.status, 200);
    let got = read(purge()).await;
    assert_eq!(got.status, 200, "{got:?}");
    assert_eq!(got.body["operation"]["type"], "purge");
    assert_eq!(got.body["operation"]["state"], "succeeded");
    assert_eq!(got.body["purged"], "orders");
    assert!(got.body["journal"]["complete_when"].is_string(), "{got:?}");
    let got = read(world.ask(Method::POST, &format!("{orders}/undelete"))).await;
    assert_eq!((got.status, got.code()), (410, "database-purged"));
    let got = read(purge()).await;
    assert_eq!((got.status, got.code()), (410, "database-purged"));
    let got = world.get(&orders).await;
    assert_eq!((got.status, got.code()), (404, "database-not-found"));
    world.database("orders").await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_with_a_fork_is_purged_only_after_it() {
    let world = World::start().await;
    let orders = world.database("orders").await;
    world.run(&orders, "create table t(a)").await;
    let fork = world
        .ask(Method::POST, &format!("{orders}/forks"))
        .header("idempotency-key", "one")
        .json(&json!({ "name": "copy" }));
    let got = read(fork).await;
    assert_eq!(got.status, 201, "{got:?}");
    let purge = |path: &str| world.ask(Method::DELETE, &format!("{path}?purge=true"));
    let got = read(purge(&orders)).await;
    assert_eq!((got.status, got.code()), (409, "fork-parent-pinned"));
    assert_eq!(got.body["forks"], json!(["copy"]));
    world.run(&orders, "insert into t values(1)").await;
    let copy = orders.replace("orders", "copy");
    let got = read(purge(&copy)).await;
    assert_eq!(got.status, 200, "{got:?}");
    let got = read(purge(&orders)).await;
    assert_eq!(got.status, 200, "{got:?}");
    world.stop().await;
}

/// Goal: who deletes a database is told which forks need it, and one call makes them independent and destroys it.
/// Method: two forks, one of them deleted: that one is in the way, by name, and nothing is detached for it; then the
/// purge, after which the fork has all its rows and no parent.
#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_names_the_forks_and_a_purge_detaches_them_if_told() {
    let world = World::start().await;
    let orders = world.database("orders").await;
    world.run(&orders, "create table t(a)").await;
    world.run(&orders, "insert into t values(1), (2)").await;
    let of = |name: &str| orders.replace("orders", name);
    for name in ["copy", "doomed"] {
        let forks = format!("{orders}/forks");
        let made = world.keyed(&forks, json!({ "name": name })).await;
        assert_eq!(made.status, 201, "{name}: {made:?}");
    }
    let got = read(world.ask(Method::DELETE, &of("doomed"))).await;
    assert_eq!(got.status, 204, "nothing hangs on it: {got:?}");

    let bare = world.ask(Method::DELETE, &format!("{orders}?detach_forks=true"));
    let got = read(bare).await;
    assert_eq!((got.status, got.code()), (400, "invalid-request"));
    let got = read(world.ask(Method::DELETE, &orders)).await;
    assert_eq!(got.status, 200, "{got:?}");
    assert_eq!(got.body, json!({ "deleted": "orders", "forks": ["copy"] }));

    let purge = || {
        world.ask(
            Method::DELETE,
            &format!("{orders}?purge=true&detach_forks=true"),
        )
    };
    let got = read(purge()).await;
    assert_eq!((got.status, got.code()), (409, "fork-parent-pinned"));
    assert_eq!(got.body["forks"], json!(["doomed"]));
    assert!(world.get(&of("copy")).await.body["parent"].is_object());
    let doomed = world.ask(Method::DELETE, &format!("{}?purge=true", of("doomed")));
    assert_eq!(read(doomed).await.status, 200);
    let got = read(purge()).await;
    assert_eq!(got.status, 200, "{got:?}");
    assert_eq!(got.body["purged"], "orders");
    assert!(world.get(&of("copy")).await.body["parent"].is_null());
    let rows = world.run(&of("copy"), "select count(*) from t").await;
    assert_eq!(rows.body["rows"], json!([[2]]));
    world.run(&of("copy"), "insert into t values(3)").await;
    let done = world
        .get("/v1/namespaces/default/operations?type=detach")
        .await;
    assert_eq!(done.body["items"].as_array().map(Vec::len), Some(1));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purge_is_refused_while_an_archive_is_held_and_reaches_it_then() {
    let world = World::start().await;
    let orders = world.database("orders").await;
    world.run(&orders, "create table t(a)").await;
    let archives = format!("{orders}/archives");
    let got = world.keyed(&archives, json!({ "legal_hold": true })).await;
    assert_eq!(got.status, 201, "{got:?}");
    let id = got.body["archive"]["id"]
        .as_str()
        .expect("an id")
        .to_owned();
    let purge = || world.ask(Method::DELETE, &format!("{orders}?purge=true"));
    let got = read(purge()).await;
    assert_eq!((got.status, got.code()), (409, "archive-held"), "{got:?}");
    assert_eq!(got.body["archives"], json!([id]));
    // A deletion that can be undone is fine.
    assert_eq!(read(world.ask(Method::DELETE, &orders)).await.status, 204);
    let got = read(purge()).await;
    assert_eq!((got.status, got.code()), (409, "archive-held"), "{got:?}");
    let undelete = world.ask(Method::POST, &format!("{orders}/undelete"));
    assert_eq!(read(undelete).await.status, 200);
    let lift = world.ask(Method::PATCH, &format!("{archives}/{id}"));
    let got = read(lift.json(&json!({ "legal_hold": false }))).await;
    assert_eq!(got.status, 200, "{got:?}");
    let got = read(purge()).await;
    assert_eq!(got.status, 200, "{got:?}");
    assert_eq!(got.body["archives_deleted"], 1);
    assert!(got.body["objects_gone_at"].is_string(), "{got:?}");
    let seed = json!({ "name": "again", "seed": { "archive": id } });
    let got = world.post("/v1/namespaces/default/databases", seed).await;
    assert_eq!((got.status, got.code()), (404, "archive-not-found"));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_window_is_set_by_days_or_by_a_name_and_looked_at_dry() {
    let world = World::start().await;
    let orders = world.database("orders").await;
    world.run(&orders, "create table t(a)").await;
    let set = |value: serde_json::Value| {
        let request = world.ask(Method::PATCH, &orders);
        request.json(&json!({ "retention": value }))
    };
    for (value, days) in [(json!({ "days": 12 }), 12), (json!("hipaa"), 90)] {
        let got = read(set(value)).await;
        assert_eq!(
            (got.status, &got.body["retention"]["days"]),
            (200, &json!(days))
        );
    }
    for bad in [
        json!({ "days": 0 }),
        json!("nonsense"),
        json!({}),
        json!(7),
        json!({ "days": 4000 }),
    ] {
        let got = read(set(bad.clone())).await;
        assert_eq!((got.status, got.code()), (400, "invalid-request"), "{bad}");
    }
    let got = read(set(json!({ "days": 1, "hours": 1 }))).await;
    assert_eq!((got.status, got.code()), (400, "unknown-field"));
    let ask = |token: String, body: serde_json::Value| {
        let url = format!("{}/v1/retention", world.base);
        let key = uniq(&body);
        world
            .client
            .post(url)
            .bearer_auth(token)
            .header("idempotency-key", key)
            .json(&body)
    };
    let got = read(ask(world.server.clone(), json!({}))).await;
    assert_eq!(got.status, 200, "{got:?}");
    assert_eq!(got.body["items"][0]["database"], "orders");
    assert_eq!(got.body["items"][0]["applied"], false);
    let body = json!({ "database": "default/orders", "apply": true });
    let got = read(ask(world.server.clone(), body)).await;
    assert_eq!(
        (got.status, &got.body["items"][0]["applied"]),
        (200, &json!(true))
    );
    let got = read(ask(world.server.clone(), json!({ "database": "orders" }))).await;
    assert_eq!((got.status, got.code()), (400, "invalid-request"));
    let got = read(ask(world.owner.clone(), json!({}))).await;
    assert_eq!(got.status, 403, "{got:?}");
    world.stop().await;
}

fn uniq(body: &serde_json::Value) -> String {
    format!("k{}", body.to_string().len())
}
