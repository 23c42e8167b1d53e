//! Members and their roles: what each may do, other roles in some databases, and nobody above themselves.

use reqwest::Method;
use serde_json::{Value as Json, json};

use crate::world::{Got, World, read};

const MEMBERS: &str = "/v1/namespaces/default/members";

async fn put(world: &World, name: &str, body: Json) -> Got {
    read(
        world
            .ask(Method::PUT, &format!("{MEMBERS}/{name}"))
            .json(&body),
    )
    .await
}

async fn query(world: &World, secret: &str, database: &str, sql: &str) -> Got {
    let url = format!("{}{database}/query", world.base);
    let request = world.client.post(url).bearer_auth(secret);
    read(request.json(&json!({ "sql": sql }))).await
}

/// Goal: the same person reads production and administers staging; a change counts with the next request.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_has_other_roles_in_some_databases() {
    let world = World::start().await;
    let (live, stage) = (world.database("live").await, world.database("stage").await);
    for database in [&live, &stage] {
        world.run(database, "create table t(a)").await;
    }
    let made = put(
        &world,
        "ana",
        json!({ "role": "viewer", "databases": { "stage": "admin", "live": "analyst" } }),
    )
    .await;
    assert_eq!(made.status, 200, "{made:?}");
    let ana = world
        .token(json!({ "scopes": ["admin"], "principal": "ana" }))
        .await;
    assert_eq!(
        query(&world, &ana, &stage, "insert into t values(1)")
            .await
            .status,
        200
    );
    assert_eq!(
        query(&world, &ana, &live, "select * from t").await.status,
        200
    );
    let got = query(&world, &ana, &live, "insert into t values(1)").await;
    assert_eq!(
        (got.status, &got.body["required"]),
        (403, &json!("operator"))
    );
    let patch = |database: &str| {
        let url = format!("{}{database}", world.base);
        read(
            world
                .client
                .patch(url)
                .bearer_auth(&ana)
                .json(&json!({ "block_reads": false })),
        )
    };
    assert_eq!(patch(&stage).await.status, 200);
    assert_eq!(patch(&live).await.body["required"], "admin");
    let made = put(&world, "ana", json!({ "role": "viewer" })).await;
    assert_eq!(made.body["databases"], json!({}));
    assert_eq!(
        query(&world, &ana, &stage, "select * from t").await.body["required"],
        "analyst"
    );
    let gone = read(world.ask(Method::DELETE, &format!("{MEMBERS}/ana"))).await;
    assert_eq!(gone.status, 204);
    let got = query(&world, &ana, &stage, "select 1").await;
    assert_eq!((got.status, &got.body["required"]), (403, &json!("member")));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_of_a_member_is_bounded_by_both() {
    let world = World::start().await;
    let database = world.database("orders").await;
    world.run(&database, "create table t(a)").await;
    put(&world, "ana", json!({ "role": "owner" })).await;
    let reading = world
        .token(json!({ "scopes": ["read"], "principal": "ana" }))
        .await;
    assert_eq!(
        query(&world, &reading, &database, "select * from t")
            .await
            .status,
        200
    );
    let got = query(&world, &reading, &database, "insert into t values(1)").await;
    assert_eq!((got.status, got.code()), (403, "insufficient-permissions"));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn member_is_an_operator_and_names_and_roles_are_checked() {
    let world = World::start().await;
    let made = put(&world, "bob@example.org", json!({ "role": "member" })).await;
    assert_eq!((made.status, &made.body["role"]), (200, &json!("operator")));
    assert_eq!(
        put(&world, "bob", json!({ "role": "king" })).await.code(),
        "invalid-request"
    );
    assert_eq!(
        put(&world, "bob", json!({})).await.code(),
        "invalid-request"
    );
    assert_eq!(
        put(&world, "b%20b", json!({ "role": "viewer" }))
            .await
            .code(),
        "name-invalid"
    );
    let bad = put(
        &world,
        "bob",
        json!({ "role": "viewer", "databases": { "NO": "admin" } }),
    )
    .await;
    assert_eq!(bad.code(), "name-invalid");
    let bad = put(
        &world,
        "bob",
        json!({ "role": "viewer", "databases": { "a": 7 } }),
    )
    .await;
    assert_eq!(bad.code(), "invalid-request");
    let listed = world.get(MEMBERS).await;
    assert_eq!(listed.body["items"].as_array().map(Vec::len), Some(1));
    assert_eq!(
        world.get(&format!("{MEMBERS}/nobody")).await.code(),
        "member-not-found"
    );
    world.stop().await;
}

/// Goal: nobody raises anybody above themselves, or touches who stands above.
#[tokio::test(flavor = "multi_thread")]
async fn an_admin_makes_no_owner_and_takes_none_away() {
    let world = World::start().await;
    put(&world, "boss", json!({ "role": "owner" })).await;
    put(
        &world,
        "half",
        json!({ "role": "viewer", "databases": { "a": "owner" } }),
    )
    .await;
    let admin = world.token(json!({ "scopes": ["admin"] })).await;
    let ask = |method: Method, path: &str, body: Json| {
        let url = format!("{}{MEMBERS}/{path}", world.base);
        read(
            world
                .client
                .request(method, url)
                .bearer_auth(&admin)
                .json(&body),
        )
    };
    for (path, body) in [
        ("new", json!({ "role": "owner" })),
        (
            "new",
            json!({ "role": "viewer", "databases": { "a": "owner" } }),
        ),
        ("boss", json!({ "role": "viewer" })),
        ("half", json!({ "role": "viewer" })),
    ] {
        let got = ask(Method::PUT, path, body.clone()).await;
        assert_eq!(
            (got.status, &got.body["required"]),
            (403, &json!("owner")),
            "{path} {body}"
        );
    }
    let url = format!("{}{MEMBERS}/boss/revoke", world.base);
    assert_eq!(
        read(world.client.post(url).bearer_auth(&admin))
            .await
            .status,
        403
    );
    let url = format!("{}{MEMBERS}/boss", world.base);
    assert_eq!(
        read(world.client.delete(url).bearer_auth(&admin))
            .await
            .status,
        403
    );
    assert_eq!(
        ask(Method::PUT, "new", json!({ "role": "admin" }))
            .await
            .status,
        200
    );
    world.stop().await;
}

/// Goal: what SQL may do follows from SQLite's own judgement, not from the first word of a text.
#[tokio::test(flavor = "multi_thread")]
async fn sql_is_judged_by_what_it_does() {
    let world = World::start().await;
    let database = world.database("orders").await;
    world.run(&database, "create table t(a)").await;
    let reader = world.token(json!({ "scopes": ["read"] })).await;
    let writer = world
        .token(json!({ "scopes": ["write"], "allow_ddl": false }))
        .await;
    for (sql, reads, writes) in [
        ("select * from t", 200, 200),
        ("with x as (select 1) select * from x", 200, 200),
        (
            "with x as (select 1) insert into t select * from x",
            403,
            200,
        ),
        ("/* select */ delete from t", 403, 200),
        ("explain insert into t values(1)", 403, 200),
        ("pragma table_info(t)", 200, 200),
        ("pragma user_version=3", 403, 200),
        ("create table u(a)", 403, 403),
        ("alter table t add column b", 403, 403),
        ("drop table t", 403, 403),
        ("create view v as select 1", 403, 403),
    ] {
        assert_eq!(
            query(&world, &reader, &database, sql).await.status,
            reads,
            "reader: {sql}"
        );
        assert_eq!(
            query(&world, &writer, &database, sql).await.status,
            writes,
            "writer: {sql}"
        );
    }
    world.stop().await;
}
