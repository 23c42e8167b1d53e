//! Forks over HTTP: made, listed, seeded, branched, detached.

use reqwest::Method;
use serde_json::{Value as Json, json};

use crate::world::{World, read};

async fn count(world: &World, db: &str) -> Json {
    world.run(db, "SELECT count(*) FROM t").await.body["rows"][0][0].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn forks_are_made_in_every_way_and_live_on_their_own() {
    let world = World::start().await;
    let db = world.database("orders").await;
    world.run(&db, "CREATE TABLE t(a)").await;
    let one = world.run(&db, "INSERT INTO t VALUES(1)").await.body["bookmark"].clone();
    world.run(&db, "INSERT INTO t VALUES(2)").await;
    let forks = format!("{db}/forks");
    let of = |name: &str| format!("/v1/namespaces/default/databases/{name}");

    let body = json!({ "name": "then", "target": { "bookmark": one }, "ttl_seconds": 86_400 });
    let made = world.keyed(&forks, body).await;
    assert_eq!(made.status, 201, "{made:?}");
    assert_eq!(
        made.body["database"]["parent"],
        json!({ "database": "orders", "bookmark": one })
    );
    let shown = world.get(&of("then")).await;
    assert_eq!(shown.body["parent"]["bookmark"], one);
    assert!(shown.body["expires_at"].is_string(), "{shown:?}");
    assert_eq!(
        world.keyed(&forks, json!({ "name": "now" })).await.status,
        201
    );
    let new = json!({ "target": { "bookmark": one }, "mode": "new", "name": "restored" });
    assert_eq!(
        world.keyed(&format!("{db}/restores"), new).await.status,
        201
    );
    let seed = json!({ "name": "seeded", "seed": { "database": "orders", "bookmark": one, "schema_only": true } });
    let seeded = world.post("/v1/namespaces/default/databases", seed).await;
    assert_eq!(seeded.status, 201, "{seeded:?}");
    for (name, rows) in [("then", 1), ("now", 2), ("restored", 1), ("seeded", 0)] {
        assert_eq!(count(&world, &of(name)).await, rows, "{name}");
        world.run(&of(name), "INSERT INTO t VALUES(3)").await;
    }
    assert_eq!(count(&world, &db).await, 2);
    let listed = world.get(&forks).await;
    let names: Vec<&Json> = listed.body["items"]
        .as_array()
        .expect("items")
        .iter()
        .map(|item| &item["name"])
        .collect();
    assert_eq!(names, ["now", "restored", "then"]);

    let detached = read(world.ask(Method::POST, &format!("{}/detach", of("now")))).await;
    assert_eq!(
        (detached.status, &detached.body["detached"]),
        (200, &json!(true)),
        "{detached:?}"
    );
    assert_eq!(world.get(&of("now")).await.body["parent"], Json::Null);
    assert_eq!(count(&world, &of("now")).await, 3);

    for (body, code) in [
        (json!({}), "invalid-request"),
        (json!({ "name": "A b" }), "name-invalid"),
        (json!({ "name": "orders" }), "name-taken"),
        (json!({ "name": "x", "ttl_seconds": 5 }), "invalid-request"),
        (json!({ "name": "x", "lazy": true }), "unknown-field"),
        (
            json!({ "name": "x", "target": { "before_restore": "rs_1" } }),
            "invalid-request",
        ),
        (
            json!({ "name": "x", "target": { "timestamp": 1 } }),
            "bookmark-expired",
        ),
    ] {
        let got = world.keyed(&forks, body.clone()).await;
        assert_eq!(got.code(), code, "{body}");
    }
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_branch_is_put_shown_put_anew_and_deleted() {
    let world = World::start().await;
    let db = world.database("orders").await;
    world.run(&db, "CREATE TABLE t(a)").await;
    let branch = format!("{db}/branches/pr-17");
    let put = |body: Json| read(world.ask(Method::PUT, &branch).json(&body));
    let made = put(json!({})).await;
    assert_eq!(made.status, 201, "{made:?}");
    let name = made.body["database"]["name"]
        .as_str()
        .expect("a name")
        .to_owned();
    assert_eq!(world.get(&branch).await.body["branch"], "pr-17");
    assert_eq!(put(json!({})).await.status, 200, "it stands");
    let its = format!("/v1/namespaces/default/databases/{name}");
    world.run(&its, "INSERT INTO t VALUES(1)").await;
    assert_eq!(put(json!({})).await.status, 201, "it was written to");
    let listed = world.get(&format!("{db}/branches")).await;
    assert_eq!(listed.body["items"].as_array().map(Vec::len), Some(1));
    assert_eq!(read(world.ask(Method::DELETE, &branch)).await.status, 204);
    assert_eq!(world.get(&branch).await.code(), "database-not-found");
    world.stop().await;
}

/// Goal: a database that was deleted and can be brought back is forked like a live one, under its own name, too, and
/// stays as it is; one that nobody can bring back is not. Method: both calls that fork, of a state before the newest,
/// while the source is deleted; rows, and the source after its undelete.
#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_database_is_forked_while_it_can_be_brought_back() {
    let world = World::start().await;
    let db = world.database("orders").await;
    world.run(&db, "CREATE TABLE t(a)").await;
    let one = world.run(&db, "INSERT INTO t VALUES(1)").await.body["bookmark"].clone();
    world.run(&db, "INSERT INTO t VALUES(2)").await;
    let of = |name: &str| format!("/v1/namespaces/default/databases/{name}");
    let forks = format!("{db}/forks");
    assert_eq!(read(world.ask(Method::DELETE, &db)).await.status, 204);

    let body = json!({ "name": "then", "target": { "bookmark": one } });
    let made = world.keyed(&forks, body).await;
    assert_eq!(made.status, 201, "{made:?}");
    let seed = json!({ "name": "seeded", "seed": { "database": "orders" } });
    let seeded = world.post("/v1/namespaces/default/databases", seed).await;
    assert_eq!(seeded.status, 201, "{seeded:?}");
    let schema = json!({ "name": "orders", "schema_only": true });
    let schema = world.keyed(&forks, schema).await;
    assert_eq!(schema.status, 201, "the name is free: {schema:?}");
    for (name, rows) in [("then", 1), ("seeded", 2), ("orders", 0)] {
        assert_eq!(count(&world, &of(name)).await, rows, "{name}");
        world.run(&of(name), "INSERT INTO t VALUES(3)").await;
    }
    // The live one of that name is meant from now on.
    let live = world.keyed(&forks, json!({ "name": "live" })).await;
    assert_eq!(live.status, 201, "{live:?}");
    assert_eq!(count(&world, &of("live")).await, 1);

    for name in ["live", "orders"] {
        let purged = read(world.ask(Method::DELETE, &format!("{}?purge=true", of(name)))).await;
        assert_eq!(purged.status, 200, "{name}: {purged:?}");
    }
    let back = read(world.ask(Method::POST, &format!("{db}/undelete"))).await;
    assert_eq!(back.status, 200, "{back:?}");
    assert_eq!(count(&world, &db).await, 2);
    let gone = world
        .keyed(&format!("{}/forks", of("live")), json!({ "name": "x" }))
        .await;
    assert_eq!((gone.status, gone.code()), (410, "database-purged"));
    world.stop().await;
}
