//! Restores over HTTP: preview, run, list, undo, the operation behind them, and its events.

use reqwest::Method;
use serde_json::json;

use crate::world::{World, read};

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
    let asked = world
        .ask_keyed(&format!("{db}/restores"))
        .header("prefer", "respond-async")
        .json(&json!({ "target": { "bookmark": here } }));
    let accepted = read(asked).await;
    assert_eq!(accepted.status, 202, "{accepted:?}");
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
