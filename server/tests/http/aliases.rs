//! Routes under the names they have elsewhere: D1's time travel, sqld's fork.

use reqwest::Method;
use serde_json::{Value as Json, json};

use crate::records::{events, lines};
use crate::tenants::tenant;
use crate::world::{Got, World, read};

async fn filled(world: &World) -> (String, String, String) {
    let database = world.database("orders").await;
    world.run(&database, "create table t(a)").await;
    let mut bookmarks = Vec::new();
    for value in 1..=2 {
        let sql = format!("insert into t values({value})");
        let got = world.run(&database, &sql).await;
        bookmarks.push(got.body["bookmark"].as_str().expect("a text").to_owned());
    }
    let two = bookmarks.pop().expect("two");
    (database, bookmarks.pop().expect("one"), two)
}

async fn count(world: &World, database: &str) -> Json {
    let got = world.run(database, "select count(*) from t").await;
    got.body["rows"][0][0].clone()
}

/// An answer in the envelope of D1's API, and bare.
fn enveloped(got: &Got) -> &Json {
    assert_eq!(got.status, 200, "{got:?}");
    assert_eq!(
        (
            &got.body["success"],
            &got.body["errors"],
            &got.body["messages"]
        ),
        (&json!(true), &json!([]), &json!([]))
    );
    for (name, value) in got.body["result"].as_object().expect("a result") {
        assert_eq!(&got.body[name], value, "{got:?}");
    }
    &got.body["result"]
}

/// Goal: D1's two routes do what ours do, under the same rules.
#[tokio::test(flavor = "multi_thread")]
async fn d1_clients_travel_in_time() {
    let world = World::start().await;
    let (database, one, two) = filled(&world).await;
    let travel = format!("{database}/time_travel");
    let now = world.get(&format!("{travel}/bookmark")).await;
    assert_eq!(enveloped(&now), &json!({ "bookmark": two }));
    let ask = |query: String| world.ask(Method::POST, &format!("{travel}/restore{query}"));

    for query in [
        String::new(),
        format!("?bookmark={one}&timestamp=2026-01-02T03:04:05Z"),
        "?bookmark=x".to_owned(),
        "?timestamp=yesterday".to_owned(),
        format!("?bookmark={one}&dry_run=true"),
    ] {
        let refused = read(ask(query.clone())).await;
        assert!(matches!(refused.status, 400 | 422), "{query}: {refused:?}");
    }
    let moved =
        read(ask(format!("?bookmark={one}")).header("if-match", format!("\"{one}\""))).await;
    assert_eq!((moved.status, moved.code()), (412, "database-moved"));
    assert_eq!(count(&world, &database).await, 2, "nothing has happened");

    // The type that its command line sends with no body.
    let typed = ask(format!("?bookmark={one}"))
        .header("content-type", "application/json")
        .header("if-match", format!("\"{two}\""));
    let done = read(typed).await;
    let result = enveloped(&done);
    assert_eq!(result["previous_bookmark"], two);
    assert!(result["bookmark"].as_str() > Some(two.as_str()), "{result}");
    assert!(result["message"].is_string());
    assert_eq!(count(&world, &database).await, 1);

    // Back, by the time at which the second row stood; and once more under the same key, which acts once.
    let at = world.get(&format!("{database}/history")).await;
    let items = at.body["items"].as_array().expect("commits");
    let commit = items.iter().find(|item| item["bookmark"] == two);
    let time = commit.expect("the second row")["committed_at"]
        .as_str()
        .expect("a time");
    let at = world
        .get(&format!("{travel}/bookmark?timestamp={time}"))
        .await;
    assert_eq!(enveloped(&at), &json!({ "bookmark": two }));
    let mut answers = Vec::new();
    for _ in 0..2 {
        let keyed = ask(format!("?timestamp={time}")).header("idempotency-key", "back");
        let back = read(keyed).await;
        answers.push(enveloped(&back).clone());
    }
    assert_eq!(answers[0], answers[1]);
    assert_eq!(count(&world, &database).await, 2);
    let restores = world.get(&format!("{database}/restores")).await;
    assert_eq!(restores.body["items"].as_array().map(Vec::len), Some(2));
    let seen = lines(&world, "&action=backup.restore").await;
    assert!(seen.len() >= 4, "before and after each: {seen:?}");

    let waiting = ask(format!("?bookmark={one}")).header("prefer", "wait=0");
    let begun = read(waiting).await;
    assert!(matches!(begun.status, 200 | 202), "{begun:?}");
    assert_eq!(begun.body["success"], true);
    if begun.status == 202 {
        assert!(begun.header("location").is_some());
    }
    world.stop().await;
}

/// Goal: sqld's fork route makes a fork of a database in the caller's own namespace, and of no other.
#[tokio::test(flavor = "multi_thread")]
async fn sqld_clients_fork() {
    let world = World::start().await;
    let (database, _, two) = filled(&world).await;
    let ask = |from: &str, to: &str| {
        let path = format!("/v1/namespaces/{from}/fork/{to}");
        world.ask(Method::POST, &path)
    };
    let done = read(ask("orders", "copy")).await;
    assert_eq!(done.status, 200, "{done:?}");
    let copy = "/v1/namespaces/default/databases/copy";
    assert_eq!(count(&world, copy).await, 2);
    assert_eq!(read(ask("orders", "copy")).await.code(), "name-taken");
    assert_eq!(
        read(ask("none", "other")).await.code(),
        "database-not-found"
    );

    // A time without a zone is UTC.
    let history = world.get(&format!("{database}/history")).await;
    let items = history.body["items"].as_array().expect("commits");
    let place = items.iter().position(|item| item["bookmark"] == two);
    let before = &items[place.expect("the second row") - 1];
    let time = before["committed_at"]
        .as_str()
        .expect("a time")
        .trim_end_matches('Z');
    let timed = ask("orders", "earlier").json(&json!({ "timestamp": time }));
    assert_eq!(read(timed).await.status, 200);
    assert_eq!(
        count(&world, "/v1/namespaces/default/databases/earlier").await,
        1
    );
    for body in [json!({ "timestamp": "soon" }), json!({ "dump_url": "x" })] {
        let refused = read(ask("orders", "odd").json(&body)).await;
        assert_eq!(refused.status, 400, "{refused:?}");
    }

    // The namespace is the credential's: another's database is not there, and a lesser role may not.
    let stranger = tenant(&world, "stranger").await;
    let url = format!("{}/v1/namespaces/orders/fork/stolen", world.base);
    let foreign = read(world.client.post(&url).bearer_auth(&stranger)).await;
    assert_eq!(
        (foreign.status, foreign.code()),
        (404, "database-not-found")
    );
    let writer = world.token(json!({ "scopes": ["write"] })).await;
    let refused = read(world.client.post(&url).bearer_auth(&writer)).await;
    assert_eq!(
        (refused.status, refused.code()),
        (403, "insufficient-permissions")
    );
    let server = read(world.client.post(&url).bearer_auth(&world.server)).await;
    assert_eq!((server.status, server.code()), (403, "namespace-mismatch"));
    let maintenance = async |on: bool| {
        let put = world.ask(Method::PUT, "/v1/namespaces/default/maintenance");
        assert_eq!(read(put.json(&json!({ "enabled": on }))).await.status, 200);
    };
    maintenance(true).await;
    let paused = read(ask("orders", "paused")).await;
    assert_eq!((paused.status, paused.code()), (503, "maintenance"));
    maintenance(false).await;
    let seen = lines(&world, "&action=backup.fork").await;
    assert!(events(&seen).len() >= 2, "{seen:?}");
    world.stop().await;
}
